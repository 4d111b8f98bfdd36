/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of compress/: values worked out by hand from each paper's formula with given random words;
 * sizes around those of a chunk and a block; bytes that no encoder writes; and rows on threads. The
 * codecs are compiled once, so only their loops are tested on each instruction set.
 */
#include "compress/codec.h"
#include "compress/loops.h"
#include "fixtures.h"

enum { N = 8, MAX_VALUES = 1200, MAX_BYTES = 16 * MAX_VALUES };

static const float X[N] = {.3f, -1.2f, .05f, 2, -.7f, 0, 1.1f, -.4f};
static const double COINS[N] = {.5, .1, .9, .3, .6, .2, .8, .4};
static const double SQUARES = 7.3925; /* |X|^2 */
/* The tolerance for one or two rounding errors of a float. */
static const double ROUNDED = 4e-7;

static uint8_t payload[MAX_BYTES];
static float decoded[MAX_VALUES];

static fed_codec codec_of(const char *kind, const fed_tensor *tensors, size_t num) {
    fed_codec codec = {.kind = fed_codec_kind_named(kind), .tensors = {tensors, num}};
    for (size_t t = 0; t < num; t++) codec.num_params += fed_tensor_size(&tensors[t]);
    return codec;
}

static const fed_tensor VECTOR = {1, 0, N};

/* A codec of one vector of N values. */
static fed_codec small_codec(const char *kind) { return codec_of(kind, &VECTOR, 1); }

/* Encodes and decodes X with given words; returns the bytes of the payload. */
static size_t pass_x(const fed_codec *codec, const uint32_t *words, size_t num_words) {
    size_t num_bytes = 0;
    fed_draws draws = {.given = words, .num_given = num_words};
    CHECK_EQUAL(fed_codec_check(codec), FED_OK);
    CHECK_EQUAL(fed_codec_encode_with(codec, &draws, X, payload, &num_bytes), FED_OK);
    draws = (fed_draws){.given = words, .num_given = num_words};
    CHECK_EQUAL(fed_codec_decode_with(codec, &draws, payload, num_bytes, decoded), FED_OK);
    return num_bytes;
}

static size_t pass_with_coins(const fed_codec *codec) {
    uint32_t words[N];
    for (size_t i = 0; i < N; i++) words[i] = (uint32_t)(COINS[i] * 0x1p32);
    return pass_x(codec, words, N);
}

static void check_decoded(const double *expected, double tolerance) {
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(decoded[i], expected[i], tolerance);
}

static double squared_error(void) {
    double sum = 0;
    for (size_t i = 0; i < N; i++) sum += pow((double)X[i] - (double)decoded[i], 2);
    return sum;
}

static double inner_product(void) {
    double sum = 0;
    for (size_t i = 0; i < N; i++) sum += (double)X[i] * (double)decoded[i];
    return sum;
}

/* ---- Values by hand -------------------------------------------------------------------------- */

static void test_uniform(void) {
    fed_codec codec = small_codec("uniform");
    codec.bits = 2;
    CHECK_EQUAL(pass_with_coins(&codec), 2 * 4 + 2);
    const double low = -.4 / 3, expected[N] = {low, -1.2, low, 2, -1.2, low, 2.8 / 3, low};
    check_decoded(expected, ROUNDED);
    CHECK_EQUAL(payload[8], 1 | 0 << 2 | 1 << 4 | 3 << 6); /* levels 1 0 1 3, then 0 1 2 1 */
    CHECK_EQUAL(payload[9], 0 | 1 << 2 | 2 << 4 | 1 << 6);
}

static void test_fixed_step_rounds_to_multiples_and_saturates(void) {
    fed_codec codec = small_codec("fixed-step");
    codec.bits = 3; /* multiples -4..3 */
    codec.step = .5;
    CHECK_EQUAL(pass_with_coins(&codec), 3);
    /* x / step is .6 -2.4 .1 4 -1.4 0 2.2 -.8 exactly; but -.7f is slightly above -.7 */
    const double multiples[N] = {1, -2, 0, 3, -1, 0, 2, -1};
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(decoded[i], .5 * multiples[i], 0);
}

static void test_qsgd(void) {
    fed_codec codec = small_codec("qsgd");
    codec.levels = 4;
    const double step = 2.7189152 / 4, levels[N] = {0, -2, 0, 3, -1, 0, 1, -1};
    CHECK_EQUAL(pass_with_coins(&codec), 4 + 4); /* 9 levels take 4 bits */
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(decoded[i], step * levels[i], ROUNDED);
    codec.is_short = 1;
    CHECK_EQUAL(pass_with_coins(&codec), 4 + 4); /* 25 bits */
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(decoded[i], step * levels[i], ROUNDED);
    CHECK(payload[7] <= 1); /* bits from 25 on are padding */
}

static void test_terngrad(void) {
    fed_codec codec = small_codec("terngrad");
    const double expected[N] = {0, -2, 0, 2, 0, 0, 0, 0};
    for (codec.is_short = 0; codec.is_short < 2; codec.is_short++) {
        CHECK_EQUAL(pass_with_coins(&codec), 4 + 2);
        check_decoded(expected, 0);
        codec.clip = 2.5; /* clips at 2.3761819, above the largest value */
        pass_with_coins(&codec);
        check_decoded(expected, 0);
        codec.clip = 0;
    }
    codec.clip = 1; /* clips at .95047 */
    pass_with_coins(&codec);
    CHECK_CLOSE(decoded[3], 2.3761819 / 2.5, ROUNDED);
}

static void test_sign(void) {
    const fed_codec codec = small_codec("sign");
    CHECK_EQUAL(pass_x(&codec, NULL, 0), 4 + 1);
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(decoded[i], X[i] < 0 ? -.71875 : .71875, ROUNDED);
    CHECK_CLOSE(squared_error(), 3.2596875, 4 * ROUNDED);
    CHECK_CLOSE(1 - squared_error() / SQUARES, .5590548, ROUNDED);
}

static void test_top_k(void) {
    fed_codec codec = small_codec("top-k");
    codec.count = 2;
    CHECK_EQUAL(pass_x(&codec, NULL, 0), 2 * 4 + 1); /* 6 bits of indices: a bitmap has 8 */
    const double expected[N] = {0, -1.2, 0, 2, 0, 0, 0, 0};
    check_decoded(expected, ROUNDED);
    CHECK_CLOSE(squared_error(), 1.9525, 4 * ROUNDED);
    CHECK_EQUAL(payload[8], 1 | 3 << 3);
    codec.count = 3; /* 9 bits of indices: a bitmap of 8 is shorter */
    CHECK_EQUAL(pass_x(&codec, NULL, 0), 3 * 4 + 1);
    CHECK_EQUAL(payload[12], 1 << 1 | 1 << 3 | 1 << 6);
    codec.count = N;
    pass_x(&codec, NULL, 0);
    CHECK_BYTES(decoded, X, sizeof X);
}

static void test_top_k_takes_the_lower_of_equal_indices(void) {
    static const float equal[N] = {1, -2, 2, -1, 2, 0, 1, -2};
    fed_codec codec = small_codec("top-k");
    for (codec.count = 1; codec.count <= N; codec.count++) {
        static const size_t order[N] = {1, 2, 4, 7, 0, 3, 6, 5};
        float expected[N] = {0};
        for (size_t k = 0; k < codec.count; k++) expected[order[k]] = equal[order[k]];
        size_t num_bytes;
        fed_draws draws = {0};
        CHECK_EQUAL(fed_codec_encode_with(&codec, &draws, equal, payload, &num_bytes), FED_OK);
        CHECK_EQUAL(fed_codec_decode_with(&codec, &draws, payload, num_bytes, decoded), FED_OK);
        CHECK_BYTES(decoded, expected, sizeof expected);
    }
}

static void test_error_feedback_of_top_k(void) {
    /* What is sent in three rounds, each with the same X. */
    static const double sent[3][N] = {
        {0, -1.2, 0, 2}, {0, 0, 0, 2, 0, 0, 2.2}, {0, -2.4, 0, 0, -2.1}};
    static const double left[N] = {.9, 0, .15, 2, 0, 0, 1.1, -1.2};
    fed_codec codec = small_codec("top-k");
    codec.count = 2;
    float residuals[4][N] = {{0}}; /* before each round, and after the last */
    const fed_key key = {0};
    for (size_t round = 0; round < 3; round++) {
        float row[N], *rows[] = {row}, *after[] = {residuals[round + 1]};
        const float *before[] = {round == 0 ? NULL : residuals[round]}; /* NULL: zeros */
        fed_sent result;
        memcpy(row, X, sizeof row);
        CHECK_EQUAL(fed_codec_compress_rows(&codec, 1, &key, rows, 1, before, after, 1, &result),
                    FED_OK);
        CHECK(result.is_sent);
        CHECK_EQUAL(result.num_bytes, 9);
        for (size_t i = 0; i < N; i++) CHECK_CLOSE(row[i], sent[round][i], ROUNDED);
    }
    for (size_t i = 0; i < N; i++) CHECK_CLOSE(residuals[3][i], left[i], ROUNDED);
}

static void test_power_sgd(void) {
    static const fed_tensor MATRIX = {1, 2, 3};
    static const float M[6] = {1, 2, 3, 4, 5, 6.5f}, RIGHT[3] = {1, 0, 0};
    static const float LEFT[2] = {.24253563f, .97014250f};
    static const double RESIDUAL[6] = {0, .70588235, 1.29411765, 0, -.17647059, -.32352941};
    fed_codec codec = codec_of("powersgd-left", &MATRIX, 1);
    size_t num_bytes;
    fed_draws draws = {0};
    float sent[3];
    codec.rank = 1;
    codec.factors = RIGHT;
    CHECK_EQUAL(fed_codec_check(&codec), FED_OK);
    CHECK_EQUAL(fed_codec_encode_with(&codec, &draws, M, payload, &num_bytes), FED_OK);
    CHECK_EQUAL(num_bytes, 2 * 4);
    memcpy(sent, payload, num_bytes); /* M RIGHT; LEFT is this divided by its norm */
    CHECK_CLOSE(sent[0], 1, 0);
    CHECK_CLOSE(sent[1], 4, 0);
    codec.kind = fed_codec_kind_named("powersgd");
    codec.factors = LEFT;
    CHECK_EQUAL(fed_codec_encode_with(&codec, &draws, M, payload, &num_bytes), FED_OK);
    CHECK_EQUAL(num_bytes, 3 * 4);
    memcpy(sent, payload, num_bytes);
    CHECK_CLOSE(sent[0], 4.12310563, 1e-6);
    CHECK_CLOSE(sent[1], 5.33578375, 1e-6);
    CHECK_CLOSE(sent[2], 7.03353313, 1e-6);
    CHECK_EQUAL(fed_codec_decode_with(&codec, &draws, payload, num_bytes, decoded), FED_OK);
    for (size_t i = 0; i < 6; i++) CHECK_CLOSE(M[i] - decoded[i], RESIDUAL[i], 2e-6);
}

static void test_sketch(void) {
    static const char *const BUCKETS[3] = {"01230123", "32100123", "00112233"};
    static const char *const SIGNS[3] = {"+-+-++--", "++--+-+-", "-++-+-+-"};
    static const double MEDIANS[N] = {.7, -1.2, -1.05, 1.95, -.7, .7, 1.05, -.7};
    uint32_t words[3 * N];
    for (size_t i = 0; i < N; i++)
        for (size_t r = 0; r < 3; r++)
            words[3 * i + r] =
                (uint32_t)(BUCKETS[r][i] - '0') << 30 | (SIGNS[r][i] == '-' ? 1u : 0u);
    fed_codec codec = small_codec("sketch");
    codec.depth = 3;
    codec.width = 4;
    CHECK_EQUAL(pass_x(&codec, words, 3 * N), 3 * 4 * 4);
    check_decoded(MEDIANS, 4 * ROUNDED);
}

/* Signs + - + + - - + -. */
static const uint32_t ROTATION = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7;

static void test_drive(void) {
    fed_codec codec = small_codec("drive");
    codec.block = N;
    codec.is_unbiased = 1;
    const double v = .896061, expected[N] = {v, -v, -v, 2.688182, v, v, v, -v};
    CHECK_EQUAL(pass_x(&codec, &ROTATION, 1), 4 + 1);
    check_decoded(expected, 1e-6);
    CHECK_CLOSE(inner_product(), SQUARES, 8 * ROUNDED);
    CHECK_CLOSE(squared_error(), 5.454294, 4e-6);
    codec.is_unbiased = 0;
    pass_x(&codec, &ROTATION, 1);
    check_decoded((const double[N]){v * .7292039 / 1.2672211, -v * .7292039 / 1.2672211,
                                    -v * .7292039 / 1.2672211, 3 * v * .7292039 / 1.2672211,
                                    v * .7292039 / 1.2672211, v * .7292039 / 1.2672211,
                                    v * .7292039 / 1.2672211, -v * .7292039 / 1.2672211},
                  2e-6);
}

static void test_eden(void) {
    fed_codec codec = small_codec("eden");
    codec.block = N;
    codec.bits = 2;
    const double a = .370935, b = 1.237392;
    const double expected[N] = {a, -b, -a, 1.979262, -.495523, a, b, -a};
    CHECK_EQUAL(pass_x(&codec, &ROTATION, 1), 4 + 2);
    check_decoded(expected, 1e-6);
    CHECK_CLOSE(inner_product(), SQUARES, 8 * ROUNDED);
    CHECK_CLOSE(squared_error(), .383171, 2e-6);
}

/* ---- All kinds, many sizes ------------------------------------------------------------------- */

typedef struct variant {
    const char *kind;
    fed_codec options;
} variant;

/* Options for all sizes; count 0 stands for a third of the values. */
static const variant VARIANTS[] = {
    {"uniform", {.bits = 8}},
    {"uniform", {.bits = 1}},
    {"uniform", {.bits = 13}},
    {"fixed-step", {.bits = 11, .step = .01}},
    {"qsgd", {.levels = 4}},
    {"qsgd", {.levels = 300, .is_short = 1}},
    {"qsgd", {.levels = 1, .is_short = 1}},
    {"terngrad", {.clip = 2.5}},
    {"terngrad", {.is_short = 1}},
    {"sign", {0}},
    {"top-k", {.count = 1}},
    {"top-k", {.count = 0}},
    {"random-k", {.count = 0, .is_unbiased = 1}},
    {"powersgd", {.rank = 2}},
    {"sketch", {.depth = 5, .width = 7}},
    {"drive", {.block = 64, .is_unbiased = 1}},
    {"eden", {.block = 1, .bits = 1}},
    {"eden", {.block = 32, .bits = 3}},
};

static const size_t SIZES[] = {1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1025};

static fed_tensor tensors[2];
static float values[MAX_VALUES], factors[2 * MAX_VALUES];

/* A codec of a matrix [2, size / 3] and a vector with the rest. */
static fed_codec make_variant(const variant *chosen, size_t size) {
    size_t num = 0;
    const size_t columns = size / 3;
    if (columns > 0) tensors[num++] = (fed_tensor){1, 2, columns};
    tensors[num++] = (fed_tensor){1, 0, size - 2 * columns};
    fed_codec codec = chosen->options;
    codec.kind = fed_codec_kind_named(chosen->kind);
    codec.num_params = size;
    codec.tensors = (fed_tensors){tensors, num};
    if (codec.count == 0) codec.count = (size + 2) / 3;
    codec.factors = factors;
    CHECK_EQUAL(fed_codec_check(&codec), FED_OK);
    return codec;
}

typedef void examine(const fed_codec *codec, const fed_key *key);

static void for_each_codec(examine *run) {
    uint64_t state = 1;
    for (size_t i = 0; i < LENGTH(factors); i++) factors[i] = next_float(&state, 1);
    for (size_t s = 0; s < LENGTH(SIZES); s++)
        for (size_t v = 0; v < LENGTH(VARIANTS); v++) {
            const fed_key key = {.seed = s, .client = v, .purpose = 17};
            const fed_codec codec = make_variant(&VARIANTS[v], SIZES[s]);
            fill_floats(s, 1, values, SIZES[s]);
            CHECK(fed_codec_capacity(&codec) <= MAX_BYTES);
            run(&codec, &key);
        }
}

/* Encodes `values` into memory of exactly the capacity, so that a sanitizer finds any access
 * outside it. */
static uint8_t *encoded(const fed_codec *codec, const fed_key *key, size_t *num_bytes) {
    uint8_t *bytes = test_alloc(fed_codec_capacity(codec));
    CHECK_EQUAL(fed_codec_encode(codec, key, values, bytes, num_bytes), FED_OK);
    CHECK(*num_bytes <= fed_codec_capacity(codec));
    return bytes;
}

static void check_round_trip(const fed_codec *codec, const fed_key *key) {
    size_t num_bytes, again;
    uint8_t *bytes = encoded(codec, key, &num_bytes);
    float *out = test_alloc(codec->num_params * sizeof *out);
    if (!codec->is_short) CHECK_EQUAL(num_bytes, fed_codec_capacity(codec));
    CHECK_EQUAL(fed_codec_decode(codec, key, bytes, num_bytes, out), FED_OK);
    for (size_t i = 0; i < codec->num_params; i++) CHECK(isfinite(out[i]));
    uint8_t *second = encoded(codec, key, &again);
    CHECK_EQUAL(again, num_bytes);
    CHECK_BYTES(second, bytes, num_bytes);
    free(second);
    free(bytes);
    free(out);
}

static void test_round_trips_of_all_sizes(void) { for_each_codec(check_round_trip); }

/* Checks that a row without a residual is replaced by its encoded and decoded values. */
static void check_replaced(const fed_codec *codec, const fed_key *key) {
    const size_t num = codec->num_params;
    size_t num_bytes;
    uint8_t *bytes = encoded(codec, key, &num_bytes);
    float *expected = test_alloc(num * sizeof *expected), *row = test_alloc(num * sizeof *row);
    CHECK_EQUAL(fed_codec_decode(codec, key, bytes, num_bytes, expected), FED_OK);
    memcpy(row, values, num * sizeof *row);
    fed_sent sent;
    CHECK_EQUAL(fed_codec_compress_rows(codec, 1, key, &row, 1, NULL, NULL, 1, &sent), FED_OK);
    CHECK_BYTES(row, expected, num * sizeof *row);
    CHECK_EQUAL(sent.is_sent, 1);
    CHECK_EQUAL(sent.num_bytes, num_bytes);
    double squares = 0, norm = 0;
    for (size_t i = 0; i < num; i++) {
        const float error = values[i] - expected[i];
        squares += (double)error * error;
        norm += (double)values[i] * values[i];
    }
    CHECK_CLOSE(sent.squared_error, squares, 1e-13 * squares);
    CHECK_CLOSE(sent.squared_norm, norm, 1e-13 * norm);
    free(row);
    free(expected);
    free(bytes);
}

static void test_rows_are_replaced_by_decoded_values(void) { for_each_codec(check_replaced); }

/* The squares of a vector are added up in pieces, whose ends are not those of tensors. */
static void test_uniform_replaces_many_tensors(void) {
    enum { NUM = 3 * FED_CODEC_PIECE + 700 };
    static float all[NUM], rows[2][NUM], left[NUM];
    const fed_tensor parts[] = {{0, 0, 500}, {1, 40, 130}, {0, 0, 1}, {0, 0, NUM - 5701}};
    const fed_key key = {.seed = 5};
    fed_codec codec = {.kind = fed_codec_kind_named("uniform"),
                       .num_params = NUM,
                       .tensors = {parts, LENGTH(parts)}};
    fill_floats(3, 1, all, NUM);
    for (codec.bits = 1; codec.bits <= 16; codec.bits++) {
        float *in_place = rows[0], *with_rest = rows[1], *after = left;
        fed_sent sent[2];
        memcpy(rows[0], all, sizeof all);
        memcpy(rows[1], all, sizeof all);
        CHECK_EQUAL(fed_codec_compress_rows(&codec, 1, &key, &in_place, 1, NULL, NULL, 1, &sent[0]),
                    FED_OK);
        CHECK_EQUAL(
            fed_codec_compress_rows(&codec, 1, &key, &with_rest, 1, NULL, &after, 1, &sent[1]),
            FED_OK);
        CHECK_BYTES(rows[0], rows[1], sizeof all);
        CHECK_BYTES(&sent[0], &sent[1], sizeof sent[0]);
        CHECK(sent[0].is_sent);
    }
}

static void check_zeros(const fed_codec *codec, const fed_key *key) {
    size_t num_bytes;
    memset(values, 0, sizeof values);
    uint8_t *bytes = encoded(codec, key, &num_bytes);
    CHECK_EQUAL(fed_codec_decode(codec, key, bytes, num_bytes, decoded), FED_OK);
    for (size_t i = 0; i < codec->num_params; i++) CHECK(decoded[i] == 0);
    free(bytes);
}

static void test_zeros_stay_zeros(void) { for_each_codec(check_zeros); }

static void check_not_finite(const fed_codec *codec, const fed_key *key) {
    static const float BAD[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < LENGTH(BAD); b++) {
        const float before = values[codec->num_params / 2];
        float *row = values;
        float residual[MAX_VALUES] = {1}, left[MAX_VALUES];
        const float *of_residual = residual;
        float *to_left = left;
        fed_sent sent;
        size_t num_bytes;
        values[codec->num_params / 2] = BAD[b];
        CHECK_EQUAL(fed_codec_encode(codec, key, values, payload, &num_bytes), FED_ERR_ARGUMENT);
        CHECK_EQUAL(
            fed_codec_compress_rows(codec, 1, key, &row, 1, &of_residual, &to_left, 1, &sent),
            FED_OK);
        CHECK_EQUAL(sent.is_sent, 0);
        CHECK_EQUAL(sent.num_bytes, 0);
        CHECK(residual[0] == 1 && residual[MAX_VALUES - 1] == 0);
        values[codec->num_params / 2] = before;
    }
}

static void test_nothing_is_sent_of_values_that_are_not_finite(void) {
    for_each_codec(check_not_finite);
}

/* Payloads that are too short, too long, or changed give an error or finite values, and no access
 * outside. */
static void check_malformed(const fed_codec *codec, const fed_key *key) {
    size_t num_bytes;
    uint8_t *bytes = encoded(codec, key, &num_bytes);
    uint8_t *longer = test_alloc(num_bytes + 1);
    memcpy(longer, bytes, num_bytes);
    longer[num_bytes] = 0;
    CHECK_EQUAL(fed_codec_decode(codec, key, longer, num_bytes + 1, decoded), FED_ERR_PAYLOAD);
    for (size_t num = 0; num < num_bytes; num += 1 + num_bytes / 16) {
        uint8_t *shorter = test_alloc(num);
        memcpy(shorter, bytes, num);
        const int status = fed_codec_decode(codec, key, shorter, num, decoded);
        CHECK(status == FED_ERR_PAYLOAD || codec->is_short); /* with gamma codes a payload may end
                                                                after any level */
        free(shorter);
    }
    uint64_t state = key->seed + 1;
    for (int i = 0; i < 50; i++) {
        memcpy(longer, bytes, num_bytes);
        for (int k = 0; k <= i % 3; k++)
            longer[next_bits(&state) % num_bytes] = (uint8_t)next_bits(&state);
        const int status = fed_codec_decode(codec, key, longer, num_bytes, decoded);
        CHECK(status == FED_OK || status == FED_ERR_PAYLOAD);
    }
    free(longer);
    free(bytes);
}

static void test_malformed_payloads_are_refused(void) { for_each_codec(check_malformed); }

static void test_impossible_codes_are_refused(void) {
    const fed_key key = {0};
    fed_codec codec = small_codec("terngrad");
    pass_with_coins(&codec);
    payload[4] = 3; /* 3 is not a code of two bits */
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 6, decoded), FED_ERR_PAYLOAD);
    codec.is_short = 1;
    payload[4] = 243;
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 6, decoded), FED_ERR_PAYLOAD);
    codec = small_codec("qsgd");
    codec.levels = 4;
    pass_with_coins(&codec);
    payload[4] = 9; /* levels are 0..8 */
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 8, decoded), FED_ERR_PAYLOAD);
    codec = small_codec("top-k");
    codec.count = 2;
    pass_x(&codec, NULL, 0);
    payload[8] = 3 | 1 << 3; /* descending */
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 9, decoded), FED_ERR_PAYLOAD);
    payload[8] = 1 | 3 << 3 | 1 << 6; /* padding bits that are not zero */
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 9, decoded), FED_ERR_PAYLOAD);
    const char *const scaled[] = {"terngrad", "sign", "drive", "qsgd"};
    for (size_t k = 0; k < LENGTH(scaled); k++) {
        static const float zeros[N] = {0};
        const float scale = -0.0f;
        size_t num_bytes;
        codec = small_codec(scaled[k]);
        codec.block = N;
        codec.levels = 4;
        CHECK_EQUAL(fed_codec_encode(&codec, &key, zeros, payload, &num_bytes), FED_OK);
        CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, num_bytes, decoded), FED_OK);
        memcpy(payload, &scale, sizeof scale);
        CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, num_bytes, decoded), FED_ERR_PAYLOAD);
    }
    codec = small_codec("uniform");
    codec.bits = 2;
    pass_with_coins(&codec);
    const float nan = NAN;
    memcpy(payload, &nan, sizeof nan);
    CHECK_EQUAL(fed_codec_decode(&codec, &key, payload, 10, decoded), FED_ERR_PAYLOAD);
}

static void test_codecs_that_are_not_valid(void) {
    fed_codec good = small_codec("uniform");
    good.bits = 8;
    CHECK_EQUAL(fed_codec_check(&good), FED_OK);
    CHECK_EQUAL(fed_codec_kind_named("zip"), -1);
    fed_codec bad = good;
    bad.kind = -1;
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    bad = good;
    bad.bits = 17;
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    bad = good;
    bad.num_params = N + 1;
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    static const fed_tensor OVERFLOWING[] = {{SIZE_MAX / 2, 3, 5}, {1, 0, 1}};
    bad = good;
    bad.tensors = (fed_tensors){OVERFLOWING, 2};
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    bad = small_codec("drive");
    bad.block = 12; /* not a power of two */
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    bad = small_codec("top-k");
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT);
    bad = small_codec("powersgd");
    bad.rank = 1;
    CHECK_EQUAL(fed_codec_check(&bad), FED_ERR_ARGUMENT); /* no factors */
}

/* ---- Rows on threads ------------------------------------------------------------------------- */

enum { NUM_ROWS = 9 };

static void compress_all(const fed_codec *codec, int num_threads, float *all, float *left,
                         fed_sent *sent) {
    static float residuals[NUM_ROWS][MAX_VALUES];
    fed_key keys[NUM_ROWS];
    float *rows[NUM_ROWS], *after[NUM_ROWS];
    const float *before[NUM_ROWS];
    for (size_t r = 0; r < NUM_ROWS; r++) {
        keys[r] = (fed_key){.client = r};
        rows[r] = all + r * codec->num_params;
        before[r] = residuals[r];
        after[r] = left + r * codec->num_params;
        fill_floats(r, 1, rows[r], codec->num_params);
        fill_floats(r + 100, 1, residuals[r], codec->num_params);
    }
    CHECK_EQUAL(
        fed_codec_compress_rows(codec, num_threads, keys, rows, NUM_ROWS, before, after, .5, sent),
        FED_OK);
}

static void check_threads(const fed_codec *codec, const fed_key *key) {
    static float rows[2][NUM_ROWS * MAX_VALUES], left[2][NUM_ROWS * MAX_VALUES];
    static fed_sent sent[2][NUM_ROWS];
    (void)key;
    if (codec->num_params < 255) return;
    compress_all(codec, 1, rows[0], left[0], sent[0]);
    for (int t = 2; t <= 7; t += 5) {
        compress_all(codec, t, rows[1], left[1], sent[1]);
        CHECK_BYTES(rows[1], rows[0], NUM_ROWS * codec->num_params * sizeof(float));
        CHECK_BYTES(left[1], left[0], NUM_ROWS * codec->num_params * sizeof(float));
        CHECK_BYTES(sent[1], sent[0], sizeof sent[0]);
    }
}

static void test_threads_change_nothing(void) { for_each_codec(check_threads); }

/* ---- The loops of each instruction set ------------------------------------------------------- */

enum { MOST = 4500 }; /* more than two of the pieces that loops work on */

/* Writes the results of all loops for num values, one after another. */
static size_t run_loops(const fed_codec_loops *loops, const float *given, const float *others,
                        const uint32_t *words, size_t num, void *out) {
    uint8_t *at = out, bytes[MOST];
    uint32_t room[10 + FED_CODEC_PIECE];
    memcpy((float *)at + 2 * num, given, num * sizeof *given);
    memcpy((float *)at + 3 * num, given, num * sizeof *given);
    double sums[6] = {loops->take_input(given, NULL, 1, num, (float *)at),
                      loops->take_input(given, others, .7, num, (float *)at + num),
                      loops->subtract((float *)at + 2 * num, others, num),
                      loops->sum_of_magnitudes(given, num),
                      loops->sum_of_squares(given, num),
                      loops->replace((float *)at + 3 * num, others, num)};
    double magnitudes = 0;
    for (size_t v = 0; v < num; v++) {
        CHECK(((float *)at)[2 * num + v] == given[v] - others[v]);
        CHECK(((float *)at)[3 * num + v] == others[v]);
        magnitudes += fabs((double)given[v]);
    }
    CHECK_CLOSE(sums[3], magnitudes, 1e-13 * magnitudes);
    CHECK(sums[4] == sums[0]);
    CHECK(sums[5] == sums[2]);
    at += 4 * num * sizeof(float);
    memcpy(at, sums, sizeof sums);
    at += sizeof sums;
    if (num > 0) loops->find_range(given, num, (float *)at, (float *)at + 1);
    at += 2 * sizeof(float);
    loops->round_levels(given, words, num, -1, 127.5, 255, (int32_t *)at);
    const int32_t *levels = (int32_t *)at;
    loops->pack_bytes(levels, num, bytes);
    for (size_t v = 0; v < num; v++) CHECK_EQUAL(bytes[v], levels[v]);
    at += num * sizeof(int32_t);
    float *expanded = (float *)at, *replaced = expanded + num, *errors = replaced + num;
    loops->expand_bytes(bytes, num, -1.1, .3, expanded);
    memcpy(replaced, given, num * sizeof *given);
    loops->replace_levels(levels, num, -1.1, .3, replaced, errors);
    for (size_t v = 0; v < num; v++) {
        CHECK(replaced[v] == expanded[v]);
        CHECK(errors[v] == given[v] - expanded[v]);
    }
    at += 3 * num * sizeof(float);
    loops->pack_signs(given, num / 8, bytes);
    loops->expand_signs(bytes, num / 8, 2.5f, (float *)at);
    for (size_t v = 0; v < num / 8 * 8; v++) {
        CHECK_EQUAL(bytes[v / 8] >> v % 8 & 1, given[v] < 0);
        CHECK(((float *)at)[v] == (given[v] < 0 ? -2.5f : 2.5f));
    }
    at += num / 8 * 8 * sizeof(float);
    const float least = .9f;
    const size_t num_large =
        loops->find_large(given, num, fed_magnitude_bits(&least), num, (uint32_t *)at);
    size_t expected = 0;
    for (size_t v = 0; v < num; v++)
        if (fabsf(given[v]) >= least) CHECK_EQUAL(((uint32_t *)at)[expected++], v);
    if (expected > 10) /* there are more than fit */
        CHECK(loops->find_large(given, num, fed_magnitude_bits(&least), 10, room) > 10);
    CHECK_EQUAL(num_large, expected);
    return (size_t)(at - (uint8_t *)out) + num_large * sizeof(uint32_t);
}

static void test_loops_give_the_same_bytes_on_all_instruction_sets(void) {
    static const char *const isas[] = {"generic", "avx2", "avx512"};
    static const size_t sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 2047, 2048, 2049, MOST};
    static float all[MOST + 1], others[MOST];
    static uint32_t words[MOST];
    static double first[7 * MOST], other[7 * MOST];
    const fed_key key = {.seed = 3};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    fed_rng_fill_u32(&rng, words, MOST);
    fill_floats(1, 1, all, MOST + 1);
    fill_floats(2, 1, others, MOST);
    for (size_t s = 0; s < LENGTH(sizes); s++)
        for (size_t v = 0; v < LENGTH(isas); v++) {
            if (fed_select_isa(isas[v]) != FED_OK) continue;
            memset(other, 0, sizeof other);
            const size_t num = run_loops(fed_active_loops(), all + 1, others, words, sizes[s],
                                         v == 0 ? first : other);
            if (v > 0) CHECK_BYTES(other, first, num);
        }
    CHECK_EQUAL(fed_select_isa(NULL), FED_OK);
}

/* Of many values, the encoder first examines those above a guessed threshold. The decoded vector
 * must have the k largest values, and no others. */
static void test_top_k_of_many_values(void) {
    enum { NUM = 20000 };
    static float many[NUM], received[NUM];
    static uint8_t bytes[8 * NUM];
    static const size_t counts[] = {1, 2, 200, 1000, 9000, NUM};
    const fed_tensor vector = {0, 0, NUM};
    const fed_key key = {0};
    for (int kind = 0; kind < 3; kind++) {
        fill_floats(5, 1, many, NUM);
        for (size_t v = 0; v < NUM && kind > 0; v++) /* many equal values; or almost only zeros */
            many[v] = kind == 1 ? (float)(int)(4 * many[v]) : (v % 1000 == 7 ? many[v] : 0);
        for (size_t c = 0; c < LENGTH(counts); c++) {
            const fed_codec codec = {.kind = fed_codec_kind_named("top-k"),
                                     .num_params = NUM,
                                     .tensors = {&vector, 1},
                                     .count = counts[c]};
            size_t num_bytes, num_above = 0, num_sent = 0;
            CHECK(fed_codec_capacity(&codec) <= sizeof bytes);
            CHECK_EQUAL(fed_codec_encode(&codec, &key, many, bytes, &num_bytes), FED_OK);
            CHECK_EQUAL(fed_codec_decode(&codec, &key, bytes, num_bytes, received), FED_OK);
            float least = HUGE_VALF, most_left = 0;
            for (size_t v = 0; v < NUM; v++) {
                CHECK(received[v] == 0 || received[v] == many[v]);
                if (received[v] != 0) least = fminf(least, fabsf(many[v]));
                if (received[v] == 0) most_left = fmaxf(most_left, fabsf(many[v]));
                num_sent += received[v] != 0;
                num_above += many[v] != 0;
            }
            CHECK(most_left <= least);
            CHECK_EQUAL(num_sent, num_above < counts[c] ? num_above : counts[c]);
        }
    }
}

static const test_case TESTS[] = {
    TEST(test_loops_give_the_same_bytes_on_all_instruction_sets),
    TEST(test_top_k_of_many_values),
    TEST(test_rows_are_replaced_by_decoded_values),
    TEST(test_uniform_replaces_many_tensors),
    TEST(test_uniform),
    TEST(test_fixed_step_rounds_to_multiples_and_saturates),
    TEST(test_qsgd),
    TEST(test_terngrad),
    TEST(test_sign),
    TEST(test_top_k),
    TEST(test_top_k_takes_the_lower_of_equal_indices),
    TEST(test_error_feedback_of_top_k),
    TEST(test_power_sgd),
    TEST(test_sketch),
    TEST(test_drive),
    TEST(test_eden),
    TEST(test_round_trips_of_all_sizes),
    TEST(test_zeros_stay_zeros),
    TEST(test_nothing_is_sent_of_values_that_are_not_finite),
    TEST(test_malformed_payloads_are_refused),
    TEST(test_impossible_codes_are_refused),
    TEST(test_codecs_that_are_not_valid),
    TEST(test_threads_change_nothing),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
