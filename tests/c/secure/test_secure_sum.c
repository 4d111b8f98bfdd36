/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of secure_sum.c: sums against a loop without masks, for sizes around the size of a slice;
 * drop-outs; threads; and terms that are refused. tests/learning/test_secure_sums.py compares
 * masked rows. */
#include "fed.h"
#include "test.h"

enum { MAX_CLIENTS = 5, MAX_PARAMS = 8200, GUARD = 3 };

static float values[MAX_CLIENTS][MAX_PARAMS];
static const float *const rows[MAX_CLIENTS] = {values[0], values[1], values[2], values[3],
                                               values[4]};
static const uint64_t weights[MAX_CLIENTS] = {1, 0, 7, 8, 3};
static const double factors[MAX_CLIENTS] = {0.125, 0, 0.875, 1, 0.375};
static double center[MAX_PARAMS];
static uint64_t total[MAX_PARAMS + 1 + GUARD], other[MAX_PARAMS + 1 + GUARD];

static void fill(void) {
    const fed_key key = {.seed = 1};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    for (size_t i = 0; i < MAX_CLIENTS; i++)
        for (size_t p = 0; p < MAX_PARAMS; p++)
            values[i][p] = (float)(2 * fed_rng_uniform(&rng) - 1);
    for (size_t p = 0; p < MAX_PARAMS; p++) center[p] = fed_rng_uniform(&rng) - 0.5;
}

static fed_secure_terms terms_of(size_t num_clients, size_t num_params) {
    return (fed_secure_terms){
        .num_clients = num_clients,
        .num_params = num_params,
        .rows = rows,
        .weights = weights,
        .factors = factors,
        .clip = 0.75,
        .low = -0.75,
        .high = 0.75,
        .top_level = 4095,
        .mask_bits = 15,
        .masks = {.seed = 2, .round = 3, .purpose = 21},
    };
}

/* The sum of the levels of one coordinate, each rounded half to even. */
static uint64_t plain(const fed_secure_terms *terms, size_t p, uint64_t *clipped) {
    uint64_t sum = 0;
    const double scale = (double)terms->top_level / (terms->high - terms->low);
    for (size_t i = 0; i < terms->num_clients; i++) {
        const double from = terms->center == NULL ? 0 : terms->center[p];
        double x = (double)values[i][p] - from;
        if (terms->weights[i] == 0) continue;
        if (terms->takes_signs) x = (double)((x > 0) - (x < 0));
        const double y = fmin(fmax(x, -terms->clip), terms->clip);
        const double product = terms->factors[i] * y;
        const double within = fmin(fmax(product, terms->low), terms->high);
        *clipped += y != x || within != product;
        sum += (uint64_t)nearbyint((within - terms->low) * scale);
    }
    return sum;
}

static void test_sums_for_all_sizes(void) {
    static const size_t sizes[] = {1, 2, 3, 4, 5, 63, 64, 65, 4094, 4095, 4096, 4097, MAX_PARAMS};
    fill();
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (size_t num_clients = 0; num_clients <= MAX_CLIENTS; num_clients++) {
            const fed_secure_terms terms = terms_of(num_clients, sizes[s]);
            uint64_t clipped = 0, found = 99, weight = 0;
            memset(total, 0xab, sizeof(total));
            CHECK_EQUAL(fed_secure_sum(1, &terms, total, NULL, &found), FED_OK);
            for (size_t p = 0; p < sizes[s]; p++) CHECK_EQUAL(total[p], plain(&terms, p, &clipped));
            for (size_t i = 0; i < num_clients; i++) weight += weights[i];
            CHECK_EQUAL(total[sizes[s]], weight);
            CHECK_EQUAL(found, clipped);
            for (size_t g = 1; g <= GUARD; g++)
                CHECK(total[sizes[s] + g] == UINT64_C(0xabababababababab));
        }
    }
}

static void test_centers_signs_and_ranges(void) {
    static const double ones[MAX_CLIENTS] = {1, 1, 1, 1, 1};
    fed_secure_terms terms = terms_of(MAX_CLIENTS, 70);
    fill();
    for (int kind = 0; kind < 3; kind++) {
        uint64_t clipped = 0, found = 99;
        terms.center = center;
        terms.clip = (double)INFINITY;
        if (kind == 1) { /* votes: the sum of signs, exactly */
            terms.takes_signs = 1, terms.factors = ones;
            terms.low = -1, terms.high = 1, terms.top_level = 2, terms.mask_bits = 5;
        } else if (kind == 2) { /* an asymmetric range */
            terms.takes_signs = 0, terms.factors = factors;
            terms.low = -0.25, terms.high = 0.5, terms.top_level = 3;
        }
        CHECK_EQUAL(fed_secure_sum(2, &terms, total, NULL, &found), FED_OK);
        for (size_t p = 0; p < 70; p++) CHECK_EQUAL(total[p], plain(&terms, p, &clipped));
        CHECK_EQUAL(found, clipped);
        CHECK_EQUAL(clipped == 0, kind == 1);
    }
}

static void test_pairs_of_another_base_have_other_masks(void) {
    static uint64_t sent[2 * 2], again[2 * 2];
    static const uint64_t one[2] = {1, 1};
    fed_secure_terms terms = terms_of(2, 1);
    uint64_t clipped;
    fill();
    terms.weights = one;
    CHECK_EQUAL(fed_secure_sum(1, &terms, total, sent, &clipped), FED_OK);
    terms.masks.client = UINT64_C(1) << 32;
    CHECK_EQUAL(fed_secure_sum(1, &terms, other, again, &clipped), FED_OK);
    CHECK_BYTES(other, total, 2 * sizeof(total[0]));
    CHECK(sent[0] != again[0]);
}

static void test_threads_change_nothing_in_either_rounding(void) {
    static const int counts[] = {2, 3, 7};
    fed_key rounding_keys[MAX_CLIENTS] = {
        {.seed = 1}, {.seed = 2}, {.seed = 3}, {.seed = 4}, {.seed = 5}};
    fed_secure_terms terms = terms_of(MAX_CLIENTS, MAX_PARAMS);
    uint64_t clipped = 0;
    fill();
    for (int rounds_randomly = 0; rounds_randomly < 2; rounds_randomly++) {
        terms.rounding_keys = rounds_randomly ? rounding_keys : NULL;
        CHECK_EQUAL(fed_secure_sum(1, &terms, total, NULL, &clipped), FED_OK);
        for (size_t c = 0; c < 3; c++) {
            CHECK_EQUAL(fed_secure_sum(counts[c], &terms, other, NULL, &clipped), FED_OK);
            CHECK_BYTES(other, total, (MAX_PARAMS + 1) * sizeof(total[0]));
        }
    }
}

static void test_sent_rows_hide_levels_and_add_up(void) {
    static uint64_t sent[MAX_CLIENTS * (MAX_PARAMS + 1)];
    static const uint64_t all[MAX_CLIENTS] = {1, 2, 7, 8, 3};
    fed_secure_terms terms = terms_of(MAX_CLIENTS, MAX_PARAMS);
    uint64_t clipped;
    fill();
    terms.weights = all;
    CHECK_EQUAL(fed_secure_sum(2, &terms, total, sent, &clipped), FED_OK);
    size_t num_open = 0;
    for (size_t p = 0; p <= MAX_PARAMS; p++) {
        uint64_t sum = 0;
        for (size_t i = 0; i < MAX_CLIENTS; i++) sum += sent[i * (MAX_PARAMS + 1) + p];
        CHECK_EQUAL(sum % 32768, total[p]);
        num_open += sent[p] < 4096; /* without masks all values would be below 4096 */
    }
    CHECK(num_open < MAX_PARAMS / 4); /* an eighth is expected */
}

static void test_largest_levels_do_not_wrap(void) {
    static float high[2][3] = {{9, 9, 9}, {9, 9, 9}};
    static const float *const pair[2] = {high[0], high[1]};
    static const uint64_t most[2] = {UINT32_MAX, UINT32_MAX};
    static const double ones[2] = {1, 1};
    fed_secure_terms terms = terms_of(2, 3);
    uint64_t clipped;
    terms.rows = pair;
    terms.weights = most;
    terms.factors = ones;
    terms.top_level = UINT32_MAX;
    terms.mask_bits = 33;
    CHECK_EQUAL(fed_secure_sum(1, &terms, total, NULL, &clipped), FED_OK);
    for (size_t p = 0; p < 4; p++) CHECK(total[p] == 2 * (uint64_t)UINT32_MAX);
    CHECK_EQUAL(clipped, 6);
}

static void check_refused(fed_secure_terms terms) {
    uint64_t clipped;
    CHECK_EQUAL(fed_secure_check(&terms), 0);
    CHECK_EQUAL(fed_secure_sum(1, &terms, total, NULL, &clipped), FED_ERR_ARGUMENT);
}

static void test_refused_terms(void) {
    static const double wrong[MAX_CLIENTS] = {1, 1, -1, 1, 1};
    static const uint64_t heavy[MAX_CLIENTS] = {1, 32760, 7, 0, 0};
    const fed_secure_terms good = terms_of(MAX_CLIENTS, 4);
    fed_secure_terms terms = good;
    uint64_t clipped;
    CHECK_EQUAL(fed_secure_check(&terms), 1);
    CHECK_EQUAL(fed_secure_sum(0, &good, total, NULL, &clipped), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_secure_sum(FED_MAX_THREADS + 1, &good, total, NULL, &clipped),
                FED_ERR_ARGUMENT);
    terms.num_params = 0;
    check_refused(terms);
    terms = good, terms.top_level = 0;
    check_refused(terms);
    terms = good, terms.top_level = (UINT64_C(1) << FED_MAX_LEVEL_BITS) + 1, terms.mask_bits = 60;
    check_refused(terms);
    terms = good, terms.mask_bits = 14; /* too few for five clients */
    check_refused(terms);
    terms = good, terms.mask_bits = 63;
    check_refused(terms);
    terms = good, terms.mask_bits = 0;
    check_refused(terms);
    terms = good, terms.high = terms.low;
    check_refused(terms);
    terms = good, terms.low = 2; /* above the greatest */
    check_refused(terms);
    terms = good, terms.low = (double)NAN;
    check_refused(terms);
    terms = good, terms.high = (double)INFINITY;
    check_refused(terms);
    terms = good, terms.low = -1e-310, terms.high = 1e-310; /* its scale is infinite */
    check_refused(terms);
    terms = good, terms.clip = 0;
    check_refused(terms);
    terms = good, terms.clip = (double)NAN;
    check_refused(terms);
    terms = good, terms.factors = wrong;
    check_refused(terms);
    terms = good, terms.weights = heavy; /* their sum exceeds the modulus */
    check_refused(terms);
}

static const test_case TESTS[] = {
    TEST(test_sums_for_all_sizes),
    TEST(test_centers_signs_and_ranges),
    TEST(test_pairs_of_another_base_have_other_masks),
    TEST(test_threads_change_nothing_in_either_rounding),
    TEST(test_sent_rows_hide_levels_and_add_up),
    TEST(test_largest_levels_do_not_wrap),
    TEST(test_refused_terms),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
