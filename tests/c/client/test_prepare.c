/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of prepare.c: prepared data change no byte of the results; steps that must not use them;
 * and allocations that fail, which are simulated as in test_status.c.
 */
#include "fixtures.h"

#include <errno.h>
#include <limits.h>

enum { NUM_INPUTS = 96, NUM_CLASSES = 10, NUM_PARAMS = (NUM_INPUTS + 1) * NUM_CLASSES };
enum { NUM_CLIENTS = 21, NUM_ROUNDS = 4 };

static const int THREADS[] = {1, 2, 7};

static const fed_layer LAYER = DENSE(NUM_INPUTS, NUM_CLASSES, 0, FED_LINEAR);
static const fed_model MODEL = {&LAYER, 1, NUM_INPUTS, NUM_CLASSES, NUM_PARAMS};
static const fed_layer TWO_LAYERS[] = {DENSE(NUM_INPUTS, 7, 0, FED_LINEAR),
                                       DENSE(7, NUM_CLASSES, (NUM_INPUTS + 1) * 7, FED_LINEAR)};
static const fed_model MODEL_TWO = {TWO_LAYERS, 2, NUM_INPUTS, NUM_CLASSES,
                                    (NUM_INPUTS + 1) * 7 + 8 * NUM_CLASSES};
static const fed_model *const MODELS[] = {&MODEL, &MODEL_TWO};

static const fed_step_row ROWS[] = {
    {FED_STEP_SGD, {0.01f}},
    {FED_STEP_SGD, {0.01f, 0.9f}},
    {FED_STEP_SGD, {0.01f, 0.9f, 1}},
    /* These steps leave the span of the gradients, so prepared data must not be used. */
    {FED_STEP_ADAM, {0.01, 0.9, 0.999, 0}},
    {FED_STEP_ADAGRAD, {0.01, 1e-7, 0, 0.1}},
};

/* With one epoch, images are decoded a batch at a time; with several epochs, all of them are
 * decoded before the first step. */
static const fed_plan PLANS[] = {
    {FED_REPEAT_SHUFFLE, 3, 20, 50, SIZE_MAX}, {FED_SHUFFLE_REPEAT, 1, 33, SIZE_MAX, SIZE_MAX},
    {FED_PER_EPOCH, 2, 7, 10, SIZE_MAX},       {FED_REPEAT_SHUFFLE, 1, 20, 1, 15},
    {FED_REPEAT_SHUFFLE, 2, 20, 100, 30},
};

static atomic_int cancel;
static fed_fault fault;

/* ---- Memory that runs out -------------------------------------------------------------------- */

/* How many more allocations succeed; the threads of the team share the counter. */
static atomic_long allocations_left = LONG_MAX;

int posix_memalign(void **memory, size_t alignment, size_t num_bytes) {
    if (atomic_fetch_sub(&allocations_left, 1) <= 0) return ENOMEM;
    *memory = aligned_alloc(alignment, (num_bytes + alignment - 1) / alignment * alignment);
    return *memory != NULL ? 0 : ENOMEM;
}

/* ---- Clients --------------------------------------------------------------------------------- */

static const size_t COUNTS[] = {20, 0, 200, 1, 21, 2, 64};

/* Makes clients of all kinds: with bytes or floats, used in place or not, narrow or not, small and
 * empty. */
static void fill_client(size_t c, fed_client *client) {
    const size_t num_examples = COUNTS[c % LENGTH(COUNTS)];
    const int is_float = c % 2 == 1, is_in_place = c % 4 == 1, has_fixed_pixels = c % 3 != 2;
    const size_t num_pixels = num_examples * NUM_INPUTS;
    uint8_t *bytes = test_alloc(num_pixels * (is_float ? sizeof(float) : 1));
    uint64_t state = c;
    for (size_t i = 0; i < num_pixels; i++) {
        const uint8_t drawn = (uint8_t)next_bits(&state);
        const uint8_t byte = has_fixed_pixels && i % NUM_INPUTS % 16 < 8 ? 7 : drawn;
        if (is_float)
            ((float *)(void *)bytes)[i] = (float)byte / 255;
        else
            bytes[i] = byte;
    }
    int32_t *labels = test_alloc(num_examples * sizeof(*labels));
    fill_labels(c, NUM_CLASSES, labels, num_examples);
    *client = (fed_client){.pixels = bytes,
                           .pixel_type = is_float ? FED_PIXELS_FLOAT32 : FED_PIXELS_UINT8,
                           .scale = is_float ? (is_in_place ? 1.0f : 0.5f) : -1.0f / 255,
                           .offset = is_in_place ? 0 : 1,
                           .labels = labels,
                           .num_examples = num_examples,
                           .plan = PLANS[c % LENGTH(PLANS)],
                           .shuffle_key = {.seed = 1, .client = c, .purpose = 1}};
}

static void fill_cohort(fed_client *clients) {
    for (size_t c = 0; c < NUM_CLIENTS; c++) fill_client(c, &clients[c]);
}

/* One small client with fixed pixels. */
static fed_client new_client(void) {
    fed_client client;
    fill_client(0, &client);
    return client;
}

static void prepare_client(const fed_model *model, fed_client *client) {
    CHECK(client->prepared == NULL);
    client->prepared = fed_prepare(model, client);
    CHECK(client->prepared != NULL);
}

static void free_prepared(fed_client *client) {
    fed_prepared_free((fed_prepared *)(uintptr_t)client->prepared);
    client->prepared = NULL;
}

static void free_client(fed_client *client) {
    free_prepared(client);
    free((void *)(uintptr_t)client->pixels);
    free((void *)(uintptr_t)client->labels);
}

static void free_cohort(fed_client *clients) {
    for (size_t c = 0; c < NUM_CLIENTS; c++) free_client(&clients[c]);
}

/* ---- Runs ------------------------------------------------------------------------------------ */

/* All results of some rounds, comparable byte by byte. */
typedef struct outcome {
    float server[NUM_PARAMS]; /* after the last round */
    double total[NUM_ROUNDS][NUM_PARAMS], weight[NUM_ROUNDS];
    fed_client_stats stats[NUM_ROUNDS][NUM_CLIENTS];
} outcome;

static outcome outcomes[2]; /* too large for a stack frame */

static void check_equal_outcomes(void) {
    CHECK_BYTES(&outcomes[1], &outcomes[0], sizeof(outcomes[0]));
}

/* Trains several rounds of federated averaging on one team; each round has another shuffle. */
static void train_rounds(const fed_model *model, const fed_step_row *row, int num_threads,
                         fed_client *clients, size_t num_clients, outcome *out) {
    memset(out, 0, sizeof(*out));
    fill_floats(9, 0.1, out->server, model->num_params);
    fed_team *team = fed_team_new(num_threads);
    fed_sum *sum = fed_sum_new_of(model);
    for (uint64_t r = 0; r < NUM_ROUNDS; r++) {
        for (size_t c = 0; c < num_clients; c++) clients[c].shuffle_key.round = r;
        fed_sum_reset(sum);
        CHECK_EQUAL(fed_train_cohort(team, model, &(fed_step){row, 1}, out->server, clients,
                                     num_clients,
                                     &(fed_terms){.weighting = FED_WEIGHT_NUM_EXAMPLES}, &cancel,
                                     sum, out->stats[r], &fault),
                    FED_OK);
        fed_sum_total(sum, out->total[r], &out->weight[r]);
        if (out->weight[r] == 0) continue;
        for (size_t p = 0; p < model->num_params; p++)
            out->server[p] += (float)(out->total[r][p] / out->weight[r]);
    }
    fed_sum_free(sum);
    fed_team_free(team);
}

static int evaluate(const fed_model *model, const fed_client *clients, size_t num_clients,
                    fed_client_stats *stats) {
    float params[NUM_PARAMS];
    fill_floats(9, 0.1, params, model->num_params);
    fed_team *team = fed_team_new(2);
    const int status =
        fed_evaluate(team, model, params, clients, num_clients, &cancel, stats, &fault);
    fed_team_free(team);
    return status;
}

static int train_one(const fed_model *model, const fed_client *client) {
    static const float server[NUM_PARAMS];
    fed_client_stats stats;
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(model);
    const int status = sum != NULL
                           ? fed_train_cohort(team, model, &(fed_step){&ROWS[1], 1}, server, client,
                                              1, &(fed_terms){.weighting = FED_WEIGHT_UNIFORM},
                                              &cancel, sum, &stats, &fault)
                           : FED_ERR_NO_MEMORY;
    fed_sum_free(sum);
    fed_team_free(team);
    return status;
}

/* ---- Prepared and unprepared ----------------------------------------------------------------- */

static void test_prepared_clients_give_the_same_bytes(void) {
    for (size_t m = 0; m < LENGTH(MODELS); m++)
        for (size_t s = 0; s < LENGTH(ROWS); s++) {
            fed_client clients[NUM_CLIENTS];
            fill_cohort(clients);
            train_rounds(MODELS[m], &ROWS[s], 1, clients, NUM_CLIENTS, &outcomes[0]);
            for (size_t c = 0; c < NUM_CLIENTS; c++) prepare_client(MODELS[m], &clients[c]);
            for (size_t i = 0; i < LENGTH(THREADS); i++) {
                train_rounds(MODELS[m], &ROWS[s], THREADS[i], clients, NUM_CLIENTS, &outcomes[1]);
                check_equal_outcomes();
            }
            free_cohort(clients);
        }
}

static void test_some_prepared_clients_give_the_same_bytes(void) {
    fed_client clients[NUM_CLIENTS];
    fill_cohort(clients);
    train_rounds(&MODEL, &ROWS[0], 2, clients, NUM_CLIENTS, &outcomes[0]);
    for (size_t c = 0; c < NUM_CLIENTS; c += 1 + c % 3) prepare_client(&MODEL, &clients[c]);
    train_rounds(&MODEL, &ROWS[0], 2, clients, NUM_CLIENTS, &outcomes[1]);
    check_equal_outcomes();
    free_cohort(clients);
}

/* The clients must be of all kinds; otherwise the tests above would prove little. */
static void test_clients_of_the_cohort_are_of_all_kinds(void) {
    size_t num_narrow = 0, num_full = 0;
    for (size_t c = 0; c < NUM_CLIENTS; c++) {
        fed_client client;
        fill_client(c, &client);
        prepare_client(&MODEL, &client);
        if (client.num_examples > 1) *(client.prepared->is_narrow ? &num_narrow : &num_full) += 1;
        free_client(&client);
    }
    CHECK(num_narrow >= 5 && num_full >= 5);
}

/* One client takes part many times; its copies read the same memory at the same time. */
static void test_copies_share_what_is_prepared(void) {
    fed_client clients[NUM_CLIENTS];
    for (size_t c = 0; c < NUM_CLIENTS; c++) {
        clients[c] = c == 0 ? new_client() : clients[0];
        clients[c].shuffle_key.occurrence = c;
    }
    train_rounds(&MODEL, &ROWS[2], 1, clients, NUM_CLIENTS, &outcomes[0]);
    prepare_client(&MODEL, &clients[0]);
    for (size_t c = 1; c < NUM_CLIENTS; c++) clients[c].prepared = clients[0].prepared;
    for (size_t i = 0; i < LENGTH(THREADS); i++) {
        train_rounds(&MODEL, &ROWS[2], THREADS[i], clients, NUM_CLIENTS, &outcomes[1]);
        check_equal_outcomes();
    }
    free_client(&clients[0]);
}

/* The core treats denormals as zero, so preparing must, too: 1e-39 * 1e39 must be 0, not 1. */
static void test_denormal_pixels_are_zero_when_prepared(void) {
    fed_client client;
    fill_client(7, &client); /* floats that are not used in place, with fixed pixels */
    CHECK(client.pixel_type == FED_PIXELS_FLOAT32 && client.offset != 0);
    float *pixels = (float *)(uintptr_t)client.pixels;
    for (size_t i = 0; i < client.num_examples * NUM_INPUTS; i++)
        pixels[i] = i % NUM_INPUTS < 60 ? 1e-39f : pixels[i] * 1e-37f;
    client.scale = 1e38f;
    train_rounds(&MODEL, &ROWS[1], 1, &client, 1, &outcomes[0]);
    prepare_client(&MODEL, &client);
    train_rounds(&MODEL, &ROWS[1], 1, &client, 1, &outcomes[1]);
    check_equal_outcomes();
    free_client(&client);
}

static void test_a_prepared_client_with_a_bad_pixel_is_dropped(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        fed_client clients[NUM_CLIENTS];
        fill_cohort(clients);
        float *pixels = (float *)(uintptr_t)clients[7].pixels;
        for (size_t e = 0; e < clients[7].num_examples; e++) pixels[e * NUM_INPUTS] = bad[i];
        train_rounds(&MODEL, &ROWS[1], 2, clients, NUM_CLIENTS, &outcomes[0]);
        for (size_t c = 0; c < NUM_CLIENTS; c++)
            CHECK_EQUAL(outcomes[0].stats[0][c].is_finite, c != 7);
        for (size_t c = 0; c < NUM_CLIENTS; c++) prepare_client(&MODEL, &clients[c]);
        train_rounds(&MODEL, &ROWS[1], 2, clients, NUM_CLIENTS, &outcomes[1]);
        check_equal_outcomes();
        free_cohort(clients);
    }
}

static void test_an_empty_client_can_be_prepared(void) {
    fed_client client = {.plan = PLANS[0], .scale = 1};
    for (int32_t type = FED_PIXELS_UINT8; type <= FED_PIXELS_FLOAT32; type++) {
        client.pixel_type = type;
        prepare_client(&MODEL, &client);
        train_rounds(&MODEL, &ROWS[0], 1, &client, 1, &outcomes[0]);
        CHECK(outcomes[0].weight[0] == 0);
        CHECK_EQUAL(outcomes[0].stats[0][0].is_finite, 1);
        free_prepared(&client);
    }
}

static void test_evaluation_takes_no_notice(void) {
    for (size_t m = 0; m < LENGTH(MODELS); m++) {
        fed_client clients[NUM_CLIENTS];
        fed_client_stats before[NUM_CLIENTS], after[NUM_CLIENTS];
        fill_cohort(clients);
        CHECK_EQUAL(evaluate(MODELS[m], clients, NUM_CLIENTS, before), FED_OK);
        for (size_t c = 0; c < NUM_CLIENTS; c++) prepare_client(MODELS[m], &clients[c]);
        CHECK_EQUAL(evaluate(MODELS[m], clients, NUM_CLIENTS, after), FED_OK);
        CHECK_BYTES(after, before, sizeof(before));
        free_cohort(clients);
    }
}

/* ---- Refusals -------------------------------------------------------------------------------- */

/* A table with equal contents at another address counts as another model, because contents are not
 * compared. */
static void test_a_client_prepared_for_another_model_is_refused(void) {
    const fed_model copy = MODEL;
    const fed_model *const others[] = {&MODEL_TWO, &copy};
    for (size_t i = 0; i < LENGTH(others); i++) {
        fed_client client = new_client();
        fed_client_stats stats;
        prepare_client(others[i], &client);
        CHECK_EQUAL(train_one(&MODEL, &client), FED_ERR_ARGUMENT);
        CHECK_EQUAL(evaluate(&MODEL, &client, 1, &stats), FED_ERR_ARGUMENT);
        CHECK_EQUAL(train_one(others[i], &client), FED_OK);
        free_client(&client);
    }
}

static void test_what_is_prepared_for_other_images_is_refused(void) {
    fed_client client = new_client();
    prepare_client(&MODEL, &client);
    client.num_examples--;
    CHECK_EQUAL(train_one(&MODEL, &client), FED_ERR_ARGUMENT);
    client.num_examples++;
    CHECK_EQUAL(train_one(&MODEL, &client), FED_OK);
    free_client(&client);
}

static void test_nothing_is_prepared_for_a_bad_model(void) {
    fed_client client = new_client();
    fed_model bad = MODEL;
    bad.num_params++;
    CHECK(fed_prepare(&bad, &client) == NULL);
    free_client(&client);
    fed_prepared_free(NULL);
}

static void test_more_examples_than_memory_can_hold_are_not_prepared(void) {
    fed_client client = new_client();
    client.num_examples = SIZE_MAX / sizeof(float) / fed_padded(NUM_INPUTS) + 2;
    CHECK(fed_prepare(&MODEL, &client) == NULL); /* the size would wrap around to some 300 bytes */
    client.num_examples = SIZE_MAX;
    CHECK(fed_prepare(&MODEL, &client) == NULL);
    free_client(&client);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* AddressSanitizer reports memory that is not freed. */
static void test_each_failing_allocation_of_preparing_is_reported(void) {
    for (size_t c = 0; c < NUM_CLIENTS; c++) {
        fed_client client;
        fill_client(c, &client);
        for (long num_allowed = 0; num_allowed < 3; num_allowed++) {
            allocations_left = num_allowed;
            fed_prepared *prepared = fed_prepare(&MODEL, &client);
            allocations_left = LONG_MAX;
            CHECK(prepared == NULL);
        }
        allocations_left = 3; /* the net, the narrow net and the images */
        client.prepared = fed_prepare(&MODEL, &client);
        allocations_left = LONG_MAX;
        CHECK(client.prepared != NULL);
        CHECK_EQUAL(train_one(&MODEL, &client), FED_OK);
        free_client(&client);
    }
}

static void test_failing_allocations_of_training_leave_it_usable(void) {
    fed_client client = new_client();
    train_rounds(&MODEL, &ROWS[0], 1, &client, 1, &outcomes[0]);
    prepare_client(&MODEL, &client);
    int status = FED_ERR_NO_MEMORY;
    for (long num_allowed = 0; num_allowed < 100 && status != FED_OK; num_allowed++) {
        allocations_left = num_allowed;
        status = train_one(&MODEL, &client);
        allocations_left = LONG_MAX;
        CHECK(status == FED_OK || status == FED_ERR_NO_MEMORY);
    }
    CHECK_EQUAL(status, FED_OK);
    train_rounds(&MODEL, &ROWS[0], 1, &client, 1, &outcomes[1]);
    check_equal_outcomes();
    free_client(&client);
}

static const test_case TESTS[] = {
    TEST(test_prepared_clients_give_the_same_bytes),
    TEST(test_some_prepared_clients_give_the_same_bytes),
    TEST(test_clients_of_the_cohort_are_of_all_kinds),
    TEST(test_copies_share_what_is_prepared),
    TEST(test_denormal_pixels_are_zero_when_prepared),
    TEST(test_a_prepared_client_with_a_bad_pixel_is_dropped),
    TEST(test_an_empty_client_can_be_prepared),
    TEST(test_evaluation_takes_no_notice),
    TEST(test_a_client_prepared_for_another_model_is_refused),
    TEST(test_what_is_prepared_for_other_images_is_refused),
    TEST(test_nothing_is_prepared_for_a_bad_model),
    TEST(test_more_examples_than_memory_can_hold_are_not_prepared),
    TEST(test_each_failing_allocation_of_preparing_is_reported),
    TEST(test_failing_allocations_of_training_leave_it_usable),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
