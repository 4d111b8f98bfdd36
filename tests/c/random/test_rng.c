/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of rng.c: known answers from numpy.random.Philox, how halves and words are read, and the
 * distributions' moments. Tolerances are about five standard errors of the drawn sample.
 */
#include "fed.h"
#include "fixtures.h"
#include "kernels/kernels.h"
#include "test.h"

#define ALL_ONES UINT64_MAX

static fed_rng rng_of(uint64_t seed) {
    const fed_key key = {.seed = seed, .client = 2, .round = 3, .purpose = 4, .occurrence = 5};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    return rng;
}

/* numpy.random.Philox(key=[seed, client], counter=[0, round, purpose, occurrence] minus one, as
 * a 256-bit number, low word first).random_raw(9) */
static void test_known_answers(void) {
    static const struct {
        fed_key key;
        uint64_t values[9];
    } answers[] = {
        {{0, 0, 0, 0, 0},
         {0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b,
          0x02f4ba6408e4d89b, 0x3dd62b0b9ca8c5b2, 0x1c8667a55d902e79, 0x907d7a052fd5b4dc,
          0x809bf322883987c3}},
        {{1, 2, 3, 4, 5},
         {0xbca35fd8119c2ddd, 0xdecd5a961ef297af, 0x7d821419b3e425a5, 0x9ce8185d99df8fd1,
          0x3a2521b7927bbb55, 0xafc7ff19479996f0, 0x37d95196e907db97, 0x19dd01d453e1f915,
          0x29241b625856eaec}},
        {{ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES},
         {0xaefc6005647a0716, 0xe6757b183bccf3be, 0xdf79a3af3980e3aa, 0xf5bab204669b81c1,
          0xe253df8964e26d9c, 0x2db50acd1513d80b, 0x54eac66227f1f7e6, 0xf2bb65eb59fa2739,
          0x3a674bae7a6305ee}},
        {{0x0123456789abcdef, 0xfedcba9876543210, 1000, 1, 7},
         {0x991001b7d3f32b35, 0xe9f6a65986cbb22b, 0x04bd4a28182bac87, 0xbdcbeb8db5658dad,
          0xf3baf4e67e9ec911, 0xda94525fc8554179, 0xf30987831482ae41, 0x55a0b5aafcb921cd,
          0x7fdeed3949750768}},
    };
    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        uint64_t values[9];
        fed_rng_fill(&answers[i].key, values, 9);
        CHECK_BYTES(values, answers[i].values, sizeof(values));
    }
}

static void test_fill_from_continues_a_stream(void) {
    enum { NUM = 150 }; /* more than two groups of blocks */
    const fed_key key = {1, 2, 3, 4, 5};
    uint64_t all[NUM], rest[NUM];
    fed_rng rng;
    fed_rng_init(&rng, &key);
    for (size_t i = 0; i < NUM; i++) all[i] = fed_rng_u64(&rng);
    for (size_t first = 0; first <= NUM; first++) {
        fed_rng_fill_from(&key, first, rest, NUM - first);
        CHECK_BYTES(rest, all + first, (NUM - first) * sizeof(all[0]));
    }
}

static void test_filling_halves_continues_a_stream(void) {
    const fed_key key = {1, 2, 3, 4, 5};
    enum { NUM = 300 }; /* more than two groups of blocks */
    for (size_t first = 0; first < 20; first++)
        for (size_t num = 0; num <= NUM; num += num < 100 || num > 260 ? 1 : 7) {
            fed_rng one, other;
            uint32_t filled[NUM];
            fed_rng_init(&one, &key);
            fed_rng_init(&other, &key);
            for (size_t i = 0; i < first; i++) CHECK_EQUAL(fed_rng_u32(&one), fed_rng_u32(&other));
            fed_rng_fill_u32(&one, filled, num);
            for (size_t i = 0; i < num; i++) CHECK_EQUAL(filled[i], fed_rng_u32(&other));
            CHECK_EQUAL(fed_rng_u64(&one), fed_rng_u64(&other));
        }
}

static void test_fill_none(void) {
    const fed_key key = {.seed = 1};
    uint64_t guard = 77;
    fed_rng_fill(&key, &guard, 0);
    CHECK_EQUAL(guard, 77);
}

static void test_every_key_field_names_a_stream(void) {
    const fed_key base = {1, 2, 3, 4, 5};
    fed_key changed[5] = {base, base, base, base, base};
    changed[0].seed++;
    changed[1].client++;
    changed[2].round++;
    changed[3].purpose++;
    changed[4].occurrence++;
    uint64_t expected, value;
    fed_rng_fill(&base, &expected, 1);
    for (size_t i = 0; i < 5; i++) {
        fed_rng_fill(&changed[i], &value, 1);
        CHECK(value != expected);
    }
}

static void test_halves_come_low_first(void) {
    fed_rng words = rng_of(1), halves = rng_of(1);
    for (int i = 0; i < 9; i++) {
        const uint64_t word = fed_rng_u64(&words);
        CHECK_EQUAL(fed_rng_u32(&halves), (uint32_t)word);
        CHECK_EQUAL(fed_rng_u32(&halves), (uint32_t)(word >> 32));
    }
}

static void test_words_skip_an_odd_half(void) {
    fed_rng words = rng_of(1), mixed = rng_of(1);
    for (int i = 0; i < 9; i++) {
        const uint64_t skipped = fed_rng_u64(&words);
        CHECK_EQUAL(fed_rng_u32(&mixed), (uint32_t)skipped);
        CHECK_EQUAL(fed_rng_u64(&mixed), fed_rng_u64(&words));
    }
}

static void test_below_is_uniform(void) {
    enum { BOUND = 10, NUM_DRAWS = 100000 };
    fed_rng rng = rng_of(2);
    double counts[BOUND] = {0};
    for (int i = 0; i < NUM_DRAWS; i++) {
        const uint32_t value = fed_rng_below(&rng, BOUND);
        CHECK(value < BOUND);
        counts[value] += 1.0;
    }
    double chi_squared = 0.0;
    for (int k = 0; k < BOUND; k++) {
        const double off = counts[k] - (double)NUM_DRAWS / BOUND;
        chi_squared += off * off / ((double)NUM_DRAWS / BOUND);
    }
    CHECK(chi_squared < 33.7); /* 9 degrees of freedom: exceeded with probability 1e-4 */
}

/* Without rejection, with bound 3 * 2^30, a third of the values would be drawn twice as often. */
static void test_below_rejects(void) {
    enum { NUM_DRAWS = 100000 };
    const uint32_t bound = UINT32_C(3) << 30;
    fed_rng rng = rng_of(3);
    int num_multiples_of_three = 0;
    for (int i = 0; i < NUM_DRAWS; i++) {
        const uint32_t value = fed_rng_below(&rng, bound);
        CHECK(value < bound);
        num_multiples_of_three += value % 3 == 0;
    }
    CHECK_CLOSE((double)num_multiples_of_three / NUM_DRAWS, 1.0 / 3.0, 0.0075);
}

static void test_below_at_the_ends(void) {
    fed_rng rng = rng_of(4);
    for (int i = 0; i < 100; i++) {
        CHECK_EQUAL(fed_rng_below(&rng, 1), 0);
        CHECK(fed_rng_below(&rng, UINT32_MAX) < UINT32_MAX);
    }
}

static void check_moments(double (*draw)(fed_rng *, double), double shape, double mean,
                          double variance) {
    enum { NUM_DRAWS = 200000 };
    fed_rng rng = rng_of(5);
    double sum = 0.0, sum_of_squares = 0.0;
    for (int i = 0; i < NUM_DRAWS; i++) {
        const double off = draw(&rng, shape) - mean;
        sum += off;
        sum_of_squares += off * off;
    }
    CHECK_CLOSE(sum / NUM_DRAWS, 0.0, 5.0 * sqrt(variance / NUM_DRAWS));
    CHECK_CLOSE(sum_of_squares / NUM_DRAWS / variance, 1.0, 0.05);
}

static double draw_uniform(fed_rng *rng, double unused) {
    (void)unused;
    const double value = fed_rng_uniform(rng);
    CHECK(value >= 0.0 && value < 1.0);
    return value;
}

static double draw_normal(fed_rng *rng, double unused) {
    (void)unused;
    return fed_rng_normal(rng);
}

static double draw_squared_normal(fed_rng *rng, double unused) {
    (void)unused;
    const double value = fed_rng_normal(rng);
    return value * value;
}

static double draw_gamma(fed_rng *rng, double shape) {
    const double value = fed_rng_gamma(rng, shape);
    CHECK(value >= 0.0 && isfinite(value));
    return value;
}

static double draw_beta(fed_rng *rng, double shape) {
    const double value = fed_rng_beta(rng, shape);
    CHECK(value >= 0.0 && value <= 1.0);
    return value;
}

static void test_uniform(void) { check_moments(draw_uniform, 0.0, 0.5, 1.0 / 12.0); }

static void test_normal(void) {
    check_moments(draw_normal, 0.0, 0.0, 1.0);
    check_moments(draw_squared_normal, 0.0, 1.0, 2.0); /* the fourth moment too */
}

static void test_gamma(void) {
    static const double shapes[] = {0.35, 1.0, 1.4, 20.0};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_moments(draw_gamma, shapes[i], shapes[i], shapes[i]);
    }
}

static void test_beta(void) {
    static const double shapes[] = {0.001, 0.35, 1.0, 20.0, 1000.0};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_moments(draw_beta, shapes[i], 0.5, 0.25 / (2.0 * shapes[i] + 1.0));
    }
}

/* The same numbers by the mathematical library, one value at a time. */
static double plain_normal(const uint64_t *words, size_t place) {
    const size_t half = FED_NORMAL_GROUP / 2, in_group = place % FED_NORMAL_GROUP;
    const uint64_t *group = words + (place - in_group);
    const uint64_t for_radius = group[in_group % half], for_angle = group[half + in_group % half];
    const double uniform = 1.0 - (double)(for_radius >> 12) * 0x1p-52;
    const double angle = ((double)(for_angle << 2 >> 12) * 0x1p-52 - 0.5) * acos(0.0);
    const int is_odd = (int)(for_angle >> 62 & 1), is_high = (int)(for_angle >> 63);
    const int is_second = in_group >= half;
    const double leg = is_second == is_odd ? cos(angle) : sin(angle);
    const int is_negative = is_second ? is_high ^ is_odd : is_high;
    return sqrt(-2.0 * log(uniform)) * (is_negative ? -leg : leg);
}

/* Sizes around a group, on every instruction set. The memory after the values must not change. */
static void test_add_normal(void) {
    static const char *const isas[] = {"generic", "avx2", "avx512"};
    static const size_t sizes[] = {0, 1, 2, 127, 128, 129, 255, 256, 257, 511, 512, 513, 5000};
    enum { MOST = 5120 };
    const fed_key key = {1, 2, 3, 4, 5};
    static uint64_t words[MOST];
    fed_rng_fill(&key, words, MOST);
    for (size_t v = 0; v < sizeof(isas) / sizeof(isas[0]); v++) {
        if (!fed_isa_runs(isas[v])) {
            printf("skipped: %s\n", isas[v]);
            continue;
        }
        CHECK_EQUAL(fed_select_isa(isas[v]), FED_OK);
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            static double values[MOST];
            for (size_t i = 0; i < MOST; i++) values[i] = 7.0;
            fed_rng_add_normal(&key, 0, 0.5, values, sizes[s]);
            for (size_t i = 0; i < sizes[s]; i++)
                CHECK_CLOSE(values[i], 7.0 + 0.5 * plain_normal(words, i), 4e-15);
            for (size_t i = sizes[s]; i < MOST; i++) CHECK(values[i] == 7.0);
        }
    }
    CHECK_EQUAL(fed_select_isa(NULL), FED_OK);
}

/* A word with all bits set gives the largest distance from 0. For the word 0 the uniform number is
 * 1, and the distance is 0. */
static void test_add_normal_at_the_ends(void) {
    uint64_t words[4] = {ALL_ONES, 0, ALL_ONES >> 2, 0};
    double values[4] = {0};
    fed_active_kernels()->add_normal(words, 2, 1.0, values);
    CHECK_CLOSE(hypot(values[0], values[2]), sqrt(104.0 * log(2.0)), 1e-14);
    CHECK(values[1] == 0.0 && values[3] == 0.0);
}

static const test_case TESTS[] = {
    TEST(test_known_answers),
    TEST(test_fill_from_continues_a_stream),
    TEST(test_filling_halves_continues_a_stream),
    TEST(test_fill_none),
    TEST(test_every_key_field_names_a_stream),
    TEST(test_halves_come_low_first),
    TEST(test_words_skip_an_odd_half),
    TEST(test_below_is_uniform),
    TEST(test_below_rejects),
    TEST(test_below_at_the_ends),
    TEST(test_uniform),
    TEST(test_normal),
    TEST(test_gamma),
    TEST(test_beta),
    TEST(test_add_normal),
    TEST(test_add_normal_at_the_ends),
};

/* Kernels make the groups of blocks, so the tests run on each instruction set. */
int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
