/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of status.c: each code has a message, and some call returns it (for FED_ERR_PAYLOAD, see
 * compress/test_codecs.c). To test calls that get no memory, this program replaces posix_memalign,
 * by which training and scoring get all large blocks of memory.
 */
#include "fixtures.h"

#include <errno.h>
#include <limits.h>

static const int CODES[] = {FED_OK,          FED_ERR_NO_MEMORY, FED_ERR_ARGUMENT,
                            FED_ERR_LABEL,   FED_ERR_CANCELLED, FED_ERR_ISA,
                            FED_ERR_CHANGED, FED_ERR_PAYLOAD};

/* ---- Memory that runs out -------------------------------------------------------------------- */

/* How many more allocations succeed; the threads of the team share the counter. */
static atomic_long allocations_left = LONG_MAX;
/* The value that an allocation writes to labels[1], as another thread could; -1: nothing is
 * written. The first allocation of a call, for its net, is made before the check of labels; the
 * later ones are made after this check. */
static int32_t label_to_write = -1;
static int is_net_allocated;
static int32_t labels[] = {0, 1, 1};

int posix_memalign(void **memory, size_t alignment, size_t num_bytes) {
    if (atomic_fetch_sub(&allocations_left, 1) <= 0) return ENOMEM;
    if (label_to_write >= 0 && is_net_allocated) labels[1] = label_to_write;
    is_net_allocated = 1;
    *memory = aligned_alloc(alignment, (num_bytes + alignment - 1) / alignment * alignment);
    return *memory != NULL ? 0 : ENOMEM;
}

/* ---- A small cohort -------------------------------------------------------------------------- */

/* So many clients need more blocks than a team keeps open. Therefore an allocation between blocks
 * can fail, too. */
enum { NUM_CLIENTS = 83, NUM_EXAMPLES = 3, NUM_INPUTS = 2, NUM_CLASSES = 2, NUM_PARAMS = 6 };

static const fed_layer LAYER = DENSE(NUM_INPUTS, NUM_CLASSES, 0, FED_LINEAR);
static const fed_model MODEL = {&LAYER, 1, NUM_INPUTS, NUM_CLASSES, NUM_PARAMS};
static const fed_step_row MOMENTUM = {FED_STEP_SGD, {0.1f, 0.9f}};
static const fed_step STEP = {&MOMENTUM, 1};
static const uint8_t PIXELS[NUM_EXAMPLES][NUM_INPUTS] = {{0, 1}, {1, 0}, {2, 2}};
static const float SERVER[NUM_PARAMS] = {0};

static atomic_int cancel;
static fed_client_stats stats[NUM_CLIENTS];
static fed_fault fault;

static void fill_clients(fed_client *clients) {
    for (size_t c = 0; c < NUM_CLIENTS; c++)
        clients[c] = (fed_client){.pixels = PIXELS,
                                  .scale = 1,
                                  .labels = labels,
                                  .num_examples = NUM_EXAMPLES,
                                  .plan = {.epochs = 1, .batch_size = 2, .max_examples = SIZE_MAX}};
}

static int train(fed_team *team, size_t num_clients, fed_sum *sum) {
    fed_client clients[NUM_CLIENTS];
    fill_clients(clients);
    return fed_train_cohort(team, &MODEL, &STEP, SERVER, clients, num_clients,
                            &(fed_terms){.weighting = FED_WEIGHT_NUM_EXAMPLES}, &cancel, sum, stats,
                            &fault);
}

static int evaluate(fed_team *team) {
    fed_client clients[NUM_CLIENTS];
    fill_clients(clients);
    return fed_evaluate(team, &MODEL, SERVER, clients, NUM_CLIENTS, &cancel, stats, &fault);
}

/* Trains the cohort with a new team. Returns the status of the first failure. */
static int train_afresh(int num_threads) {
    fed_team *team = fed_team_new(num_threads);
    fed_sum *sum = fed_sum_new_of(&MODEL);
    const int status = sum != NULL ? train(team, NUM_CLIENTS, sum) : FED_ERR_NO_MEMORY;
    fed_sum_free(sum);
    fed_team_free(team);
    return status;
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void test_every_code_has_its_own_message(void) {
    for (size_t i = 0; i < LENGTH(CODES); i++) {
        CHECK(strlen(fed_strerror(CODES[i])) > 0);
        CHECK(strcmp(fed_strerror(CODES[i]), fed_strerror(12345)) != 0);
        for (size_t k = 0; k < i; k++)
            CHECK(strcmp(fed_strerror(CODES[i]), fed_strerror(CODES[k])) != 0);
    }
}

static void test_unknown_code_has_a_message(void) {
    CHECK(fed_strerror(1) != NULL && fed_strerror(-1000) != NULL);
    CHECK(strlen(fed_strerror(INT_MIN)) > 0);
}

/* A label that changes between the check and its use must not become an index. */
static void test_changed_is_reached(void) {
    fed_team *scoring = fed_team_new(1), *training = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(&MODEL);
    label_to_write = 1 << 30;
    is_net_allocated = 0;
    const int scored = evaluate(scoring);
    labels[1] = 1;
    is_net_allocated = 0;
    const int trained = train(training, 8, sum);
    label_to_write = -1;
    labels[1] = 1;
    const int trained_again = train(training, 8, sum);
    fed_sum_free(sum);
    fed_team_free(training);
    fed_team_free(scoring);
    CHECK_EQUAL(scored, FED_ERR_CHANGED);
    CHECK_EQUAL(trained, FED_ERR_CHANGED);
    CHECK_EQUAL(trained_again, FED_OK);
}

static void test_argument_label_cancelled_and_isa_are_reached(void) {
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(&MODEL);
    CHECK_EQUAL(train(team, 8, sum), FED_OK);
    CHECK_EQUAL(fed_sum_add(sum, NULL, NULL, 0), FED_ERR_ARGUMENT);
    labels[1] = NUM_CLASSES;
    CHECK_EQUAL(train(team, 8, sum), FED_ERR_LABEL);
    labels[1] = 1;
    cancel = 1;
    CHECK_EQUAL(train(team, 8, sum), FED_ERR_CANCELLED);
    cancel = 0;
    CHECK_EQUAL(fed_select_isa("abacus"), FED_ERR_ISA);
    fed_sum_free(sum);
    fed_team_free(team);
}

/* Whichever allocation fails, the status says so and nothing is lost or freed twice. */
static void test_each_failing_allocation_of_training_is_reported(void) {
    for (int num_threads = 1; num_threads <= 3; num_threads += 2) {
        int status = FED_ERR_NO_MEMORY;
        long num_allowed = 0;
        for (; num_allowed < 1000 && status != FED_OK; num_allowed++) {
            allocations_left = num_allowed;
            status = train_afresh(num_threads);
            allocations_left = LONG_MAX;
            CHECK(status == FED_OK || status == FED_ERR_NO_MEMORY);
        }
        CHECK_EQUAL(status, FED_OK);
        CHECK(num_allowed > 8);
    }
}

static void test_failing_allocations_of_evaluation_are_reported(void) {
    for (long num_allowed = 0; num_allowed < 2; num_allowed++) {
        fed_team *team = fed_team_new(1);
        allocations_left = num_allowed;
        const int status = evaluate(team);
        allocations_left = LONG_MAX;
        CHECK_EQUAL(status, FED_ERR_NO_MEMORY);
        CHECK_EQUAL(evaluate(team), FED_OK);
        fed_team_free(team);
    }
}

static void test_team_and_sum_work_again_after_memory_ran_out(void) {
    double expected[NUM_PARAMS], total[NUM_PARAMS], weight;
    for (long num_allowed = 0; num_allowed < 30; num_allowed++) {
        fed_team *team = fed_team_new(2);
        fed_sum *sum = fed_sum_new_of(&MODEL);
        allocations_left = num_allowed;
        (void)train(team, NUM_CLIENTS, sum);
        allocations_left = LONG_MAX;
        fed_sum_reset(sum);
        CHECK_EQUAL(train(team, NUM_CLIENTS, sum), FED_OK);
        fed_sum_total(sum, total, &weight);
        CHECK(weight == NUM_CLIENTS * NUM_EXAMPLES);
        if (num_allowed == 0) memcpy(expected, total, sizeof(total));
        CHECK_BYTES(total, expected, sizeof(total));
        fed_sum_free(sum);
        fed_team_free(team);
    }
}

static void test_failing_allocations_of_a_sum_are_reported(void) {
    allocations_left = 0;
    fed_sum *of_vectors = fed_sum_new(NUM_PARAMS), *of_model = fed_sum_new_of(&MODEL);
    allocations_left = LONG_MAX;
    CHECK(of_vectors == NULL);
    CHECK(of_model == NULL);
}

/* The eighth vector closes a block, which needs memory of its own. */
static void test_sum_works_again_after_memory_ran_out(void) {
    static const float vector[NUM_PARAMS] = {1, 2, 3, 4, 5, 6};
    static const double one = 1, two = 2;
    const float *vectors = vector;
    double total[NUM_PARAMS], weight;
    fed_sum *sum = fed_sum_new(NUM_PARAMS);
    for (int c = 0; c < 7; c++) CHECK_EQUAL(fed_sum_add(sum, &vectors, &one, 1), FED_OK);
    allocations_left = 0;
    const int status = fed_sum_add(sum, &vectors, &one, 1);
    allocations_left = LONG_MAX;
    CHECK_EQUAL(status, FED_ERR_NO_MEMORY);
    fed_sum_reset(sum);
    CHECK_EQUAL(fed_sum_add(sum, &vectors, &two, 1), FED_OK);
    fed_sum_total(sum, total, &weight);
    CHECK(weight == 2);
    for (size_t p = 0; p < NUM_PARAMS; p++) CHECK(total[p] == 2 * vector[p]);
    fed_sum_free(sum);
}

static const test_case TESTS[] = {
    TEST(test_every_code_has_its_own_message),
    TEST(test_unknown_code_has_a_message),
    TEST(test_changed_is_reached),
    TEST(test_argument_label_cancelled_and_isa_are_reached),
    TEST(test_each_failing_allocation_of_training_is_reported),
    TEST(test_failing_allocations_of_evaluation_are_reported),
    TEST(test_team_and_sum_work_again_after_memory_ran_out),
    TEST(test_failing_allocations_of_a_sum_are_reported),
    TEST(test_sum_works_again_after_memory_ran_out),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
