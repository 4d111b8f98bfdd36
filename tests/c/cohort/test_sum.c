/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of sum.c: the order of addition, bit for bit against a recursive reference, and when more
 * may be added to a sum.
 */
#include "fixtures.h"

enum { NUM_INPUTS = 3, NUM_CLASSES = 5, NUM_PARAMS = 20, MAX_DELTAS = 100 };

static const fed_layer LAYER = DENSE(NUM_INPUTS, NUM_CLASSES, 0, FED_LINEAR);
static const fed_model MODEL = {&LAYER, 1, NUM_INPUTS, NUM_CLASSES, NUM_PARAMS};
static const fed_step_row SGD = {FED_STEP_SGD, {0.1f}};
static const fed_step STEP = {&SGD, 1};

/* Deltas of very different sizes, so that another order of addition gives other bits. */
static float deltas[MAX_DELTAS][NUM_PARAMS];
static double weights[MAX_DELTAS];

static void make_deltas(void) {
    uint64_t state = 1;
    for (size_t d = 0; d < MAX_DELTAS; d++) {
        fill_floats(d, pow(10, (double)(next_bits(&state) % 13) - 6), deltas[d], NUM_PARAMS);
        weights[d] = d % 5 == 3 ? 0 : (double)(next_bits(&state) % 1000);
    }
}

static int add(fed_sum *sum, const float *vector, double weight) {
    return fed_sum_add(sum, &vector, &weight, 1);
}

/* Adds deltas first..last-1 at once. */
static int add_many(fed_sum *sum, size_t first, size_t last) {
    const float *vectors[MAX_DELTAS];
    for (size_t d = first; d < last; d++) vectors[d - first] = deltas[d];
    return fed_sum_add(sum, vectors, weights + first, last - first);
}

static fed_sum *sum_of(size_t num_deltas) {
    fed_sum *sum = fed_sum_new(NUM_PARAMS);
    CHECK(sum != NULL);
    for (size_t d = 0; d < num_deltas; d++) CHECK_EQUAL(add(sum, deltas[d], weights[d]), FED_OK);
    return sum;
}

/* ---- The reference --------------------------------------------------------------------------- */

static void reference_block(size_t first, size_t num_deltas, double *total) {
    for (size_t p = 0; p < NUM_PARAMS; p++) total[p] = 0;
    for (size_t d = first; d < num_deltas && d < first + FED_BLOCK_CLIENTS; d++)
        for (size_t p = 0; p < NUM_PARAMS; p++) {
            const double term = weights[d] * (double)deltas[d][p]; /* exact, because weights are
                                                                      whole numbers */
            total[p] += term;
        }
}

/* Adds blocks first..first+num-1. The left part has as many blocks as the largest power of two
 * below num, the right part has the rest. */
static void reference_tree(size_t first, size_t num, size_t num_deltas, double *total) {
    if (num <= 1) {
        reference_block(first * FED_BLOCK_CLIENTS, num_deltas, total);
        return;
    }
    size_t left = 1;
    while (2 * left < num) left *= 2;
    double right[NUM_PARAMS];
    reference_tree(first, left, num_deltas, total);
    reference_tree(first + left, num - left, num_deltas, right);
    for (size_t p = 0; p < NUM_PARAMS; p++) total[p] += right[p];
}

static void check_total(fed_sum *sum, size_t num_deltas) {
    double total[NUM_PARAMS], expected[NUM_PARAMS], weight, expected_weight = 0;
    fed_sum_total(sum, total, &weight);
    const size_t num_blocks = (num_deltas + FED_BLOCK_CLIENTS - 1) / FED_BLOCK_CLIENTS;
    reference_tree(0, num_blocks, num_deltas, expected);
    for (size_t d = 0; d < num_deltas; d++) expected_weight += weights[d];
    CHECK_BYTES(total, expected, sizeof(total));
    CHECK(weight == expected_weight);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void test_order_is_the_tree_bit_for_bit(void) {
    static const size_t counts[] = {0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 40, 63, 64, 65, 100};
    make_deltas();
    for (size_t i = 0; i < LENGTH(counts); i++) {
        fed_sum *sum = sum_of(counts[i]);
        check_total(sum, counts[i]);
        fed_sum_free(sum);
    }
}

/* Without this, the test above would prove little: a plain sum must have other bits. */
static void test_tree_differs_from_a_plain_sum(void) {
    make_deltas();
    double total[NUM_PARAMS], plain[NUM_PARAMS] = {0};
    reference_tree(0, 13, MAX_DELTAS, total);
    for (size_t d = 0; d < MAX_DELTAS; d++)
        for (size_t p = 0; p < NUM_PARAMS; p++) plain[p] += weights[d] * (double)deltas[d][p];
    CHECK(memcmp(total, plain, sizeof(total)) != 0);
    for (size_t p = 0; p < NUM_PARAMS; p++) CHECK_CLOSE(total[p], plain[p], 1e-12 * 1e11);
}

static void test_total_may_be_taken_on_the_way(void) {
    make_deltas();
    fed_sum *sum = fed_sum_new(NUM_PARAMS);
    for (size_t d = 0; d < MAX_DELTAS; d++) {
        check_total(sum, d);
        check_total(sum, d);
        CHECK_EQUAL(add(sum, deltas[d], weights[d]), FED_OK);
    }
    check_total(sum, MAX_DELTAS);
    fed_sum_free(sum);
}

static void test_reset_sum_is_as_new(void) {
    static const size_t counts[] = {0, 3, 8, 11, 100};
    make_deltas();
    for (size_t i = 0; i < LENGTH(counts); i++) {
        fed_sum *sum = sum_of(counts[i]);
        fed_sum_reset(sum);
        check_total(sum, 0);
        for (size_t d = 0; d < 25; d++) CHECK_EQUAL(add(sum, deltas[d], weights[d]), FED_OK);
        check_total(sum, 25);
        fed_sum_free(sum);
    }
}

static void test_many_at_once_are_one_after_the_other(void) {
    make_deltas();
    static const size_t steps[] = {1, 3, 8, 11, MAX_DELTAS};
    for (size_t i = 0; i < LENGTH(steps); i++) {
        fed_sum *sum = fed_sum_new(NUM_PARAMS);
        CHECK_EQUAL(add_many(sum, 0, 0), FED_OK);
        for (size_t d = 0; d < MAX_DELTAS; d += steps[i])
            CHECK_EQUAL(add_many(sum, d, d + steps[i] < MAX_DELTAS ? d + steps[i] : MAX_DELTAS),
                        FED_OK);
        check_total(sum, MAX_DELTAS);
        fed_sum_free(sum);
    }
}

static void test_vectors_that_are_all_there_are_added_in_the_same_order(void) {
    make_deltas();
    for (size_t num = 0; num <= MAX_DELTAS; num++) {
        double total[NUM_PARAMS], weight, expected[NUM_PARAMS];
        const float *vectors[MAX_DELTAS];
        for (size_t d = 0; d < num; d++) vectors[d] = deltas[d];
        fed_sum *sum = fed_sum_new(NUM_PARAMS);
        CHECK_EQUAL(add_many(sum, 0, num), FED_OK);
        fed_sum_total(sum, expected, &weight);
        CHECK_EQUAL(fed_sum_vectors(2, vectors, weights, num, NUM_PARAMS, total), FED_OK);
        CHECK_BYTES(total, expected, sizeof total);
        fed_sum_free(sum);
    }
    const double negative = -1;
    const float *vector = deltas[0];
    double total[NUM_PARAMS];
    CHECK_EQUAL(fed_sum_vectors(1, &vector, &negative, 1, NUM_PARAMS, total), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_sum_vectors(0, &vector, weights, 1, NUM_PARAMS, total), FED_ERR_ARGUMENT);
}

/* Lengths around RANGE in sum.c: RANGE values of every vector are added before the next RANGE
 * values. Value p of vector d is d + p. */
static void test_sums_of_any_length(void) {
    static const size_t lengths[] = {0, 1, 65535, 65536, 65537, 140000};
    enum { NUM_VECTORS = 19 };
    for (size_t i = 0; i < LENGTH(lengths); i++) {
        const size_t length = lengths[i];
        float *values[NUM_VECTORS];
        const float *vectors[NUM_VECTORS];
        double ones[NUM_VECTORS], weight;
        for (size_t d = 0; d < NUM_VECTORS; d++) {
            vectors[d] = values[d] = malloc((length + 1) * sizeof(float));
            for (size_t p = 0; p < length; p++) values[d][p] = (float)(d + p);
            ones[d] = 1;
        }
        fed_sum *sum = fed_sum_new(length);
        CHECK_EQUAL(fed_sum_add(sum, vectors, ones, NUM_VECTORS), FED_OK);
        double *total = malloc((length + 1) * sizeof(double));
        fed_sum_total(sum, total, &weight);
        CHECK(weight == NUM_VECTORS);
        for (size_t p = 0; p < length; p++) CHECK(total[p] == (double)(171 + NUM_VECTORS * p));
        for (int t = 1; t <= 7; t += 3) {
            memset(total, 0, length * sizeof *total);
            CHECK_EQUAL(fed_sum_vectors(t, vectors, ones, NUM_VECTORS, length, total), FED_OK);
            for (size_t p = 0; p < length; p++) CHECK(total[p] == (double)(171 + NUM_VECTORS * p));
        }
        for (size_t d = 0; d < NUM_VECTORS; d++) free(values[d]);
        free(total);
        fed_sum_free(sum);
    }
}

/* A delta of weight 0 takes a place in a block, but adds nothing. */
static void test_weight_0_adds_nothing_of_its_delta(void) {
    const float poison[NUM_PARAMS] = {NAN, INFINITY, -INFINITY};
    make_deltas();
    fed_sum *sum = fed_sum_new(NUM_PARAMS);
    for (size_t d = 0; d < 20; d++)
        CHECK_EQUAL(add(sum, weights[d] == 0 ? poison : deltas[d], weights[d]), FED_OK);
    check_total(sum, 20);
    fed_sum_free(sum);
}

static void test_impossible_weights_are_refused(void) {
    static const double bad[] = {-1, -1e-300, NAN, INFINITY, -INFINITY};
    make_deltas();
    fed_sum *sum = sum_of(3);
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(add(sum, deltas[0], bad[i]), FED_ERR_ARGUMENT);
    check_total(sum, 3);
    fed_sum_free(sum);
}

static void test_invalid_model_has_no_sum(void) {
    fed_model model = MODEL;
    model.num_params++;
    CHECK(fed_sum_new_of(&model) == NULL);
    fed_sum_free(NULL);
}

/* ---- Open and closed ------------------------------------------------------------------------- */

/* Trains num_clients clients without examples, which add zeros. */
static int train_empty(size_t num_clients, fed_sum *sum) {
    static const float server[NUM_PARAMS] = {0};
    fed_client clients[FED_BLOCK_CLIENTS + 1];
    fed_client_stats stats[FED_BLOCK_CLIENTS + 1];
    fed_fault fault;
    atomic_int cancel = 0;
    for (size_t c = 0; c < num_clients; c++)
        clients[c] = (fed_client){.plan = {.epochs = 1, .batch_size = 1, .max_examples = SIZE_MAX}};
    fed_team *team = fed_team_new(1);
    const int status = fed_train_cohort(team, &MODEL, &STEP, server, clients, num_clients,
                                        &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                        stats, &fault);
    fed_team_free(team);
    return status;
}

static void test_a_sum_is_of_vectors_or_of_cohorts(void) {
    make_deltas();
    fed_sum *vectors = sum_of(8), *cohorts = fed_sum_new_of(&MODEL);
    CHECK_EQUAL(train_empty(1, vectors), FED_ERR_ARGUMENT);
    CHECK_EQUAL(add(cohorts, deltas[0], 1), FED_ERR_ARGUMENT);
    check_total(vectors, 8);
    check_total(cohorts, 0);
    fed_sum_free(vectors);
    fed_sum_free(cohorts);
}

static void test_whole_blocks_leave_a_sum_open(void) {
    fed_sum *sum = fed_sum_new_of(&MODEL);
    CHECK_EQUAL(train_empty(8, sum), FED_OK);
    CHECK_EQUAL(train_empty(0, sum), FED_OK);
    CHECK_EQUAL(train_empty(1, sum), FED_OK);
    fed_sum_free(sum);
}

static void test_short_block_closes_a_sum_until_it_is_reset(void) {
    fed_sum *sum = fed_sum_new_of(&MODEL);
    CHECK_EQUAL(train_empty(9, sum), FED_OK);
    CHECK_EQUAL(train_empty(8, sum), FED_ERR_ARGUMENT);
    check_total(sum, 0);
    fed_sum_reset(sum);
    CHECK_EQUAL(train_empty(8, sum), FED_OK);
    CHECK_EQUAL(train_empty(8, sum), FED_OK);
    fed_sum_free(sum);
}

/* Denormals are zero in sums, as in fed_train_cohort, and in the vectors that clients keep. */
static void test_denormals_are_zero_in_sums(void) {
#if defined(__x86_64__) || defined(__aarch64__)
    const float denormal = 1e-40f, zero = 0;
    double total = 1, weight = 0, change = 0;
    fed_sum *sum = fed_sum_new(1);
    CHECK_EQUAL(add(sum, &denormal, 1e30), FED_OK);
    fed_sum_total(sum, &total, &weight);
    CHECK(total == 0 && weight == 1e30);
    fed_sum_free(sum);
    float delta = 1e-10f;
    CHECK_EQUAL(fed_next_client_vector(1, 1e-30, &zero, &delta), 1);
    CHECK(delta == 0);
    fed_add_change(1, &zero, &denormal, &change);
    CHECK(change == 0);
    CHECK(denormal * 2 != 0); /* outside the core they are not zero */
#else
    printf("skip: mode is not touched here\n");
#endif
}

/* Sizes around the vector widths; the value after the last is not written. */
static void test_quotients_are_rounded_once(void) {
    double sum[40];
    float quotient[41];
    for (size_t i = 0; i < 40; i++) sum[i] = 1e-3 * (double)i - 0.7;
    sum[0] = 1e-40; /* a denormal float is kept */
    for (size_t num = 0; num <= 40; num++) {
        quotient[num] = 5;
        fed_divide(num, sum, 3.0, quotient);
        for (size_t i = 0; i < num; i++) CHECK(quotient[i] == (float)(sum[i] / 3.0));
        CHECK(quotient[num] == 5);
    }
    CHECK(quotient[0] > 0);
}

static const test_case TESTS[] = {
    TEST(test_quotients_are_rounded_once),
    TEST(test_order_is_the_tree_bit_for_bit),
    TEST(test_tree_differs_from_a_plain_sum),
    TEST(test_total_may_be_taken_on_the_way),
    TEST(test_reset_sum_is_as_new),
    TEST(test_many_at_once_are_one_after_the_other),
    TEST(test_vectors_that_are_all_there_are_added_in_the_same_order),
    TEST(test_sums_of_any_length),
    TEST(test_weight_0_adds_nothing_of_its_delta),
    TEST(test_impossible_weights_are_refused),
    TEST(test_invalid_model_has_no_sum),
    TEST(test_a_sum_is_of_vectors_or_of_cohorts),
    TEST(test_whole_blocks_leave_a_sum_open),
    TEST(test_short_block_closes_a_sum_until_it_is_reset),
    TEST(test_denormals_are_zero_in_sums),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
