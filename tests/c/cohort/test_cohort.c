/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of cohort.c and client.c: training and scoring whole cohorts. Threads change no byte, and a
 * cohort is the sum of its clients. Invalid labels, numbers that are not finite and a raised cancel
 * flag are handled. The numbers equal those of a reference in double.
 */
#include "fixtures.h"

#include <limits.h>
#include <pthread.h>
#include <time.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { MAX_CLIENTS = 400, MAX_INPUTS = 48, NUM_CLASSES = 5, MAX_PARAMS = 300 };

static const int THREADS[] = {1, 2, 3, 7};
static const size_t UNEVEN[] = {20, 0, 200, 1, 21, 19, 0, 3, 64};
static const fed_plan PLAN = {.pipeline = FED_REPEAT_SHUFFLE,
                              .epochs = 2,
                              .batch_size = 20,
                              .shuffle_buffer = 50,
                              .max_examples = SIZE_MAX};
static const fed_plan IN_ORDER = {.epochs = 1, .batch_size = 20, .max_examples = SIZE_MAX};

static const fed_step_row ROWS[] = {
    {FED_STEP_SGD, {0.05f}}, {FED_STEP_SGD, {0.05f, 0.9f}}, {FED_STEP_SGD, {0.05f, 0.9f, 1}}};
static const fed_step PLAIN = {&ROWS[0], 1}, MOMENTUM = {&ROWS[1], 1}, NESTEROV = {&ROWS[2], 1};
static const fed_step_row GRADIENT_ROW = {FED_STEP_GRADIENT, {0}};
static const fed_step GRADIENT = {&GRADIENT_ROW, 1};
static const fed_step *const STEPS[] = {&PLAIN, &MOMENTUM, &NESTEROV};

static const fed_layer LAYER_7 = DENSE(7, NUM_CLASSES, 0, FED_LINEAR);
static const fed_layer LAYER_17 = DENSE(17, NUM_CLASSES, 0, FED_LINEAR);
static const fed_layer LAYER_48 = DENSE(48, NUM_CLASSES, 0, FED_LINEAR);
static const fed_layer LAYERS_TWO[] = {DENSE(17, 9, 0, FED_LINEAR),
                                       DENSE(9, NUM_CLASSES, 162, FED_LINEAR)};
static const fed_model MODEL_7 = {&LAYER_7, 1, 7, NUM_CLASSES, 8 * NUM_CLASSES};
static const fed_model MODEL_17 = {&LAYER_17, 1, 17, NUM_CLASSES, 18 * NUM_CLASSES};
static const fed_model MODEL_48 = {&LAYER_48, 1, 48, NUM_CLASSES, 49 * NUM_CLASSES};
static const fed_model MODEL_TWO = {LAYERS_TWO, 2, 17, NUM_CLASSES, 162 + 50};
static const fed_model *const MODELS[] = {&MODEL_7, &MODEL_17, &MODEL_48, &MODEL_TWO};

static atomic_int cancel;
static fed_fault fault;

/* ---- Cohorts --------------------------------------------------------------------------------- */

/* Random clients, each in exactly the memory that it needs. */
typedef struct cohort {
    const fed_model *model;
    size_t num_clients;
    fed_client clients[MAX_CLIENTS];
    float server[MAX_PARAMS];
} cohort;

static int32_t *new_labels(size_t num_examples, uint64_t seed) {
    int32_t *labels = test_alloc(num_examples * sizeof(*labels));
    fill_labels(seed, NUM_CLASSES, labels, num_examples);
    return labels;
}

static uint8_t *new_bytes(size_t num_bytes, uint64_t seed) {
    uint8_t *bytes = test_alloc(num_bytes);
    for (size_t i = 0; i < num_bytes; i++) bytes[i] = (uint8_t)next_bits(&seed);
    return bytes;
}

static void add_client(cohort *co, size_t num_examples, const fed_plan *plan) {
    const uint64_t c = co->num_clients++;
    CHECK(co->num_clients <= MAX_CLIENTS);
    co->clients[c] = (fed_client){
        .pixels = new_bytes(num_examples * co->model->num_inputs, c),
        .scale = 1.0f / 255,
        .labels = new_labels(num_examples, c),
        .num_examples = num_examples,
        .plan = *plan,
        .shuffle_key = {.seed = 1, .client = c, .round = 2, .purpose = 3},
    };
}

/* Makes clients with the sizes in UNEVEN, which are repeated. */
static cohort *new_cohort(const fed_model *model, size_t num_clients, const fed_plan *plan) {
    cohort *co = test_alloc(sizeof(*co));
    co->model = model;
    co->num_clients = 0;
    fill_floats(99, 0.1, co->server, model->num_params);
    for (size_t c = 0; c < num_clients; c++) add_client(co, UNEVEN[c % LENGTH(UNEVEN)], plan);
    return co;
}

/* A cohort of one client. */
static cohort *new_lone_client(const fed_model *model, size_t num_examples, const fed_plan *plan) {
    cohort *co = new_cohort(model, 0, plan);
    add_client(co, num_examples, plan);
    return co;
}

static void free_client(fed_client *client) {
    free((void *)(uintptr_t)client->pixels);
    free((void *)(uintptr_t)client->labels);
}

static void free_cohort(cohort *co) {
    for (size_t c = 0; c < co->num_clients; c++) free_client(&co->clients[c]);
    free(co);
}

/* The tests own labels and pixels and may write them; the core must not. */
static int32_t *labels_of(cohort *co, size_t c) {
    return (int32_t *)(uintptr_t)co->clients[c].labels;
}

/* Converts the client's pixels from bytes to float32: factor times the byte. */
static float *make_floats(cohort *co, size_t c, float factor) {
    fed_client *client = &co->clients[c];
    const uint8_t *bytes = client->pixels;
    const size_t num_pixels = client->num_examples * co->model->num_inputs;
    float *floats = test_alloc(num_pixels * sizeof(*floats));
    for (size_t i = 0; i < num_pixels; i++) floats[i] = factor * (float)bytes[i];
    free((void *)(uintptr_t)client->pixels);
    client->pixels = floats;
    client->pixel_type = FED_PIXELS_FLOAT32;
    return floats;
}

/* ---- Runs ------------------------------------------------------------------------------------ */

/* All results of a cohort, comparable byte by byte. */
typedef struct outcome {
    int status;
    double total[MAX_PARAMS], weight;
    fed_client_stats stats[MAX_CLIENTS];
} outcome;

static outcome outcomes[2]; /* too large for a stack frame */

static void train_within(fed_team *team, const cohort *co, const fed_step *step, int weighting,
                         const fed_bounds *bounds, outcome *out) {
    memset(out, 0, sizeof(*out));
    fed_sum *sum = fed_sum_new_of(co->model);
    CHECK(team != NULL && sum != NULL);
    out->status = fed_train_cohort(team, co->model, step, co->server, co->clients, co->num_clients,
                                   &(fed_terms){.weighting = weighting, .bounds = bounds}, &cancel,
                                   sum, out->stats, &fault);
    if (out->status == FED_OK) fed_sum_total(sum, out->total, &out->weight);
    fed_sum_free(sum);
}

static void train_on(fed_team *team, const cohort *co, const fed_step *step, int weighting,
                     outcome *out) {
    train_within(team, co, step, weighting, NULL, out);
}

static void train(int num_threads, const cohort *co, const fed_step *step, int weighting,
                  outcome *out) {
    fed_team *team = fed_team_new(num_threads);
    train_on(team, co, step, weighting, out);
    fed_team_free(team);
}

static void evaluate(int num_threads, const cohort *co, outcome *out) {
    memset(out, 0, sizeof(*out));
    fed_team *team = fed_team_new(num_threads);
    CHECK(team != NULL);
    out->status = fed_evaluate(team, co->model, co->server, co->clients, co->num_clients, &cancel,
                               out->stats, &fault);
    fed_team_free(team);
}

static void check_equal_outcomes(void) {
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    CHECK_BYTES(&outcomes[1], &outcomes[0], sizeof(outcomes[0]));
}

/* Computes client c's model delta by training the client alone. */
static void lone_delta(const cohort *co, size_t c, const fed_step *step, float *delta /* out [P] */,
                       fed_client_stats *stats /* out */) {
    static outcome lone;
    cohort one = {.model = co->model, .num_clients = 1, .clients = {co->clients[c]}};
    memcpy(one.server, co->server, sizeof(one.server));
    train(1, &one, step, FED_WEIGHT_UNIFORM, &lone);
    CHECK_EQUAL(lone.status, FED_OK);
    for (size_t p = 0; p < co->model->num_params; p++) delta[p] = (float)lone.total[p];
    *stats = lone.stats[0];
}

/* ---- The reference: local SGD in double ------------------------------------------------------ */

typedef struct reference {
    double params[MAX_PARAMS], slot[MAX_PARAMS], gradient[MAX_PARAMS];
    double loss_sum;
    int64_t num_correct;
} reference;

static void reference_pixels(const cohort *co, const fed_client *client, size_t example,
                             double *pixels) {
    const size_t num_inputs = co->model->num_inputs;
    for (size_t i = 0; i < num_inputs; i++) {
        const size_t at = example * num_inputs + i;
        const double pixel = client->pixel_type == FED_PIXELS_UINT8
                                 ? (double)((const uint8_t *)client->pixels)[at]
                                 : (double)((const float *)client->pixels)[at];
        pixels[i] = (double)client->scale * pixel + (double)client->offset;
    }
}

/* Scores one example on a one-layer model, and adds factor times its gradient. */
static void reference_example(const cohort *co, const fed_client *client, size_t example,
                              double factor, reference *t) {
    const size_t num_inputs = co->model->num_inputs;
    double pixels[MAX_INPUTS], logits[NUM_CLASSES];
    reference_pixels(co, client, example, pixels);
    reference_logits(co->model, t->params, pixels, logits);
    const int32_t label = client->labels[example];
    t->loss_sum += reference_loss(logits, NUM_CLASSES, label);
    t->num_correct += (int32_t)reference_argmax(logits, NUM_CLASSES) == label;
    const double exp_sum = reference_exp_sum(logits, NUM_CLASSES);
    const double max = logits[reference_argmax(logits, NUM_CLASSES)];
    for (int32_t k = 0; k < NUM_CLASSES; k++) {
        const double g = factor * (exp(logits[k] - max) / exp_sum - (k == label));
        for (size_t i = 0; i < num_inputs; i++)
            t->gradient[i * NUM_CLASSES + (size_t)k] += g * pixels[i];
        t->gradient[num_inputs * NUM_CLASSES + (size_t)k] += g;
    }
}

static void reference_step(const fed_step_row *row, size_t num_params, reference *t) {
    const double rate = (double)row->options[0], momentum = (double)row->options[1];
    for (size_t p = 0; p < num_params; p++) {
        const double g = t->gradient[p];
        t->slot[p] = momentum * t->slot[p] + g;
        t->params[p] -= rate * (row->options[2] != 0 ? g + momentum * t->slot[p] : t->slot[p]);
    }
}

static reference reference_start(const cohort *co) {
    reference t = {.loss_sum = 0};
    for (size_t p = 0; p < co->model->num_params; p++) t.params[p] = (double)co->server[p];
    return t;
}

/* Processes the client's batches; if row is NULL, it scores them without an update. */
static void reference_run(const cohort *co, size_t c, const fed_step_row *row, reference *t) {
    const fed_client *client = &co->clients[c];
    const size_t capacity = fed_order_capacity(&client->plan, client->num_examples);
    uint32_t *buffer = test_alloc(capacity * sizeof(*buffer));
    uint32_t *indices = test_alloc(client->plan.batch_size * sizeof(*indices));
    fed_order order;
    fed_order_init(&order, &client->plan, client->num_examples, &client->shuffle_key, buffer);
    for (size_t num; (num = fed_order_next(&order, indices)) > 0;) {
        memset(t->gradient, 0, sizeof(t->gradient));
        for (size_t b = 0; b < num; b++)
            reference_example(co, client, indices[b], 1.0 / (double)num, t);
        if (row != NULL) reference_step(row, co->model->num_params, t);
    }
    free(buffer);
    free(indices);
}

/* ---- Training: threads and order ------------------------------------------------------------- */

static void check_threads(const cohort *co, const fed_step *step, int weighting) {
    train(THREADS[0], co, step, weighting, &outcomes[0]);
    for (size_t t = 1; t < LENGTH(THREADS); t++) {
        train(THREADS[t], co, step, weighting, &outcomes[1]);
        check_equal_outcomes();
    }
}

static void test_threads_change_no_byte_for_any_cohort_size(void) {
    static const size_t counts[] = {0, 1, 2, 7, 8, 9, 17, 40};
    for (size_t i = 0; i < LENGTH(counts); i++) {
        cohort *co = new_cohort(&MODEL_17, counts[i], &PLAN);
        check_threads(co, &PLAIN, FED_WEIGHT_NUM_EXAMPLES);
        free_cohort(co);
    }
}

static void test_threads_change_no_byte_for_any_model_step_and_weighting(void) {
    for (size_t m = 0; m < LENGTH(MODELS); m++) {
        cohort *co = new_cohort(MODELS[m], 17, &PLAN);
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            check_threads(co, STEPS[s], FED_WEIGHT_NUM_EXAMPLES);
            check_threads(co, STEPS[s], FED_WEIGHT_UNIFORM);
        }
        check_threads(co, &GRADIENT, FED_WEIGHT_NUM_EXAMPLES);
        free_cohort(co);
    }
}

/* Tiny clients: several threads work on every block, and each slot of the window is used many
 * times. */
static void test_threads_change_no_byte_of_many_tiny_clients(void) {
    const fed_plan plan = {.epochs = 1, .batch_size = 2, .max_examples = SIZE_MAX};
    cohort *co = new_cohort(&MODEL_7, 0, &plan);
    for (size_t c = 0; c < 333; c++) add_client(co, c % 3, &plan);
    for (int repeat = 0; repeat < 5; repeat++) check_threads(co, &MOMENTUM, FED_WEIGHT_UNIFORM);
    free_cohort(co);
}

/* One client takes much longer than a window of other clients. It is the first, one in the middle
 * or the last. */
static void test_one_large_client_among_small_ones_changes_no_byte(void) {
    static const size_t places[] = {0, 5, 39};
    for (size_t i = 0; i < LENGTH(places); i++) {
        cohort *co = new_cohort(&MODEL_7, 0, &PLAN);
        for (size_t c = 0; c < 40; c++) add_client(co, c == places[i] ? 5000 : 2, &PLAN);
        check_threads(co, &PLAIN, FED_WEIGHT_NUM_EXAMPLES);
        free_cohort(co);
    }
}

static void check_is_sum_of_clients(const cohort *co, const fed_step *step, int weighting) {
    train(3, co, step, weighting, &outcomes[0]);
    outcomes[1] = outcomes[0];
    fed_sum *sum = fed_sum_new(co->model->num_params);
    for (size_t c = 0; c < co->num_clients; c++) {
        float delta[MAX_PARAMS];
        fed_client_stats *stats = &outcomes[1].stats[c];
        lone_delta(co, c, step, delta, stats);
        if (weighting == FED_WEIGHT_NUM_EXAMPLES) stats->weight = (double)stats->num_examples;
        const float *vector = delta;
        CHECK_EQUAL(fed_sum_add(sum, &vector, &stats->weight, 1), FED_OK);
    }
    fed_sum_total(sum, outcomes[1].total, &outcomes[1].weight);
    fed_sum_free(sum);
    check_equal_outcomes();
}

static void test_cohort_is_the_ordered_sum_of_its_clients(void) {
    static const size_t counts[] = {1, 8, 17, 40};
    for (size_t i = 0; i < LENGTH(counts); i++) {
        cohort *co = new_cohort(&MODEL_17, counts[i], &PLAN);
        check_is_sum_of_clients(co, &PLAIN, FED_WEIGHT_NUM_EXAMPLES);
        check_is_sum_of_clients(co, &NESTEROV, FED_WEIGHT_UNIFORM);
        free_cohort(co);
    }
}

/* ---- Bounds ---------------------------------------------------------------------------------- */

static void train_bounded(int num_threads, const cohort *co, fed_bounds bounds, outcome *out) {
    fed_team *team = fed_team_new(num_threads);
    train_within(team, co, &PLAIN, FED_WEIGHT_NUM_EXAMPLES, &bounds, out);
    fed_team_free(team);
}

static void sizes_of(const float *delta, size_t num_params, double *max_abs, double *norm) {
    double sum = 0;
    *max_abs = 0;
    for (size_t p = 0; p < num_params; p++) {
        const double size = fabs((double)delta[p]);
        sum += size * size;
        if (size > *max_abs) *max_abs = size;
    }
    *norm = sqrt(sum);
}

/* Some deltas are replaced by zeros, some clipped and some unchanged. The sum is that of the
 * resulting deltas. */
static void check_bounds(const cohort *co, fed_bounds bounds) {
    double expected[MAX_PARAMS] = {0}, weight = 0;
    train_bounded(2, co, bounds, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    for (size_t c = 0; c < co->num_clients; c++) {
        float delta[MAX_PARAMS];
        fed_client_stats stats;
        double max_abs, norm;
        lone_delta(co, c, &PLAIN, delta, &stats);
        CHECK(stats.max_abs == 0 && stats.norm == 0); /* no bounds: not measured */
        sizes_of(delta, co->model->num_params, &max_abs, &norm);
        const double factor = max_abs > bounds.max_abs ? 0
                              : norm > bounds.norm     ? bounds.norm / norm
                                                       : 1;
        const fed_client_stats *measured = &outcomes[0].stats[c];
        CHECK_CLOSE(measured->max_abs, max_abs, 0);
        CHECK_CLOSE(measured->norm, max_abs > bounds.max_abs ? 0 : norm, 1e-12 * norm);
        CHECK(measured->weight == (double)stats.num_examples);
        weight += measured->weight;
        for (size_t p = 0; p < co->model->num_params; p++)
            expected[p] += (double)stats.num_examples * factor * (double)delta[p];
    }
    CHECK(outcomes[0].weight == weight);
    for (size_t p = 0; p < co->model->num_params; p++)
        CHECK_CLOSE(outcomes[0].total[p], expected[p], 1e-9 * (1 + fabs(expected[p])));
}

static void test_deltas_are_kept_within_bounds(void) {
    cohort *co = new_cohort(&MODEL_17, 12, &PLAN);
    train_bounded(1, co, (fed_bounds){INFINITY, INFINITY}, &outcomes[1]);
    double largest = 0, longest = 0;
    for (size_t c = 0; c < co->num_clients; c++) {
        largest = fmax(largest, outcomes[1].stats[c].max_abs);
        longest = fmax(longest, outcomes[1].stats[c].norm);
    }
    check_bounds(co, (fed_bounds){INFINITY, INFINITY});
    check_bounds(co, (fed_bounds){0.8 * largest, 0.4 * longest});
    check_bounds(co, (fed_bounds){0, INFINITY});
    check_bounds(co, (fed_bounds){INFINITY, 0});
    free_cohort(co);
}

static void test_threads_change_no_byte_of_bounded_deltas(void) {
    cohort *co = new_cohort(&MODEL_17, 21, &PLAN);
    const fed_bounds bounds = {0.1, 0.2};
    train_bounded(1, co, bounds, &outcomes[0]);
    for (size_t t = 1; t < LENGTH(THREADS); t++) {
        train_bounded(THREADS[t], co, bounds, &outcomes[1]);
        check_equal_outcomes();
    }
    free_cohort(co);
}

static void test_bounds_that_are_no_sizes_are_refused(void) {
    const double bad[] = {NAN, -1, -INFINITY};
    cohort *co = new_cohort(&MODEL_7, 1, &PLAN);
    for (size_t i = 0; i < LENGTH(bad); i++) {
        train_bounded(1, co, (fed_bounds){bad[i], 1}, &outcomes[0]);
        CHECK_EQUAL(outcomes[0].status, FED_ERR_ARGUMENT);
        train_bounded(1, co, (fed_bounds){1, bad[i]}, &outcomes[0]);
        CHECK_EQUAL(outcomes[0].status, FED_ERR_ARGUMENT);
    }
    free_cohort(co);
}

/* The gradient over all batches equals the step of one full batch at rate 1, up to rounding. The
 * step, but not the gradient, is rounded to the digits of the parameters. The sum multiplies this
 * error by up to a hundred examples. */
static void test_gradient_equals_one_full_batch(void) {
    const fed_step_row full_row = {FED_STEP_SGD, {1}};
    const fed_step full = {&full_row, 1};
    cohort *batches = new_cohort(&MODEL_TWO, 7, &IN_ORDER);
    fed_plan one_batch = IN_ORDER;
    one_batch.batch_size = 1000;
    cohort *whole = new_cohort(&MODEL_TWO, 7, &one_batch);
    train(2, batches, &GRADIENT, FED_WEIGHT_NUM_EXAMPLES, &outcomes[0]);
    train(2, whole, &full, FED_WEIGHT_NUM_EXAMPLES, &outcomes[1]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    for (size_t p = 0; p < MODEL_TWO.num_params; p++)
        CHECK_CLOSE(outcomes[0].total[p], outcomes[1].total[p],
                    5e-5 * (1 + fabs(outcomes[1].total[p])));
    for (size_t c = 0; c < batches->num_clients; c++) {
        const size_t num_batches = fed_plan_batches(&IN_ORDER, batches->clients[c].num_examples);
        CHECK(outcomes[0].stats[c].num_batches == (int64_t)num_batches);
        CHECK_CLOSE(outcomes[0].stats[c].loss_sum, outcomes[1].stats[c].loss_sum,
                    1e-6 * (1 + outcomes[1].stats[c].loss_sum));
        CHECK(outcomes[0].stats[c].num_correct == outcomes[1].stats[c].num_correct);
    }
    free_cohort(batches);
    free_cohort(whole);
}

/* ---- Frozen slots ---------------------------------------------------------------------------- */

/* Processes a client's batches; each step starts from the same slot. */
static void reference_run_frozen(const cohort *co, size_t c, const fed_step_row *row,
                                 const float *slot, reference *t) {
    const fed_client *client = &co->clients[c];
    const size_t capacity = fed_order_capacity(&client->plan, client->num_examples);
    uint32_t *buffer = test_alloc(capacity * sizeof(*buffer));
    uint32_t *indices = test_alloc(client->plan.batch_size * sizeof(*indices));
    fed_order order;
    fed_order_init(&order, &client->plan, client->num_examples, &client->shuffle_key, buffer);
    for (size_t num; (num = fed_order_next(&order, indices)) > 0;) {
        memset(t->gradient, 0, sizeof(t->gradient));
        for (size_t b = 0; b < num; b++)
            reference_example(co, client, indices[b], 1.0 / (double)num, t);
        for (size_t p = 0; p < co->model->num_params; p++) t->slot[p] = (double)slot[p];
        reference_step(row, co->model->num_params, t);
    }
    free(buffer);
    free(indices);
}

static void test_frozen_slots_start_every_step(void) {
    float slot[MAX_PARAMS];
    cohort *co = new_cohort(&MODEL_17, 3, &IN_ORDER);
    fill_floats(7, 0.3, slot, co->model->num_params);
    const fed_terms terms = {
        .weighting = FED_WEIGHT_UNIFORM, .frozen_slots = slot, .frozen_step_num = 4};
    for (size_t s = 1; s < LENGTH(ROWS); s++) { /* with momentum, with Nesterov */
        double expected[MAX_PARAMS] = {0};
        fed_team *team = fed_team_new(2);
        fed_sum *sum = fed_sum_new_of(co->model);
        CHECK_EQUAL(fed_train_cohort(team, co->model, &(fed_step){&ROWS[s], 1}, co->server,
                                     co->clients, co->num_clients, &terms, &cancel, sum,
                                     outcomes[0].stats, &fault),
                    FED_OK);
        fed_sum_total(sum, outcomes[0].total, &outcomes[0].weight);
        for (size_t c = 0; c < co->num_clients; c++) {
            reference t = reference_start(co);
            if (co->clients[c].num_examples > 0) reference_run_frozen(co, c, &ROWS[s], slot, &t);
            for (size_t p = 0; p < co->model->num_params; p++)
                expected[p] += t.params[p] - (double)co->server[p];
        }
        for (size_t p = 0; p < co->model->num_params; p++)
            CHECK_CLOSE(outcomes[0].total[p], expected[p], 1e-4 * (1 + fabs(expected[p])));
        fed_sum_free(sum);
        fed_team_free(team);
    }
    free_cohort(co);
}

/* Only Adam's bias correction depends on the step number. */
static void test_frozen_step_number_reaches_the_rows(void) {
    const fed_step_row row = {FED_STEP_ADAM, {0.01, 0.9, 0.999, 1e-7}};
    float slots[2 * MAX_PARAMS] = {0};
    double moved[2] = {0, 0};
    cohort *co = new_lone_client(&MODEL_7, 20, &IN_ORDER);
    for (size_t i = 0; i < 2; i++) {
        const fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM,
                                 .frozen_slots = slots,
                                 .frozen_step_num = i == 0 ? 1 : 5};
        fed_team *team = fed_team_new(1);
        fed_sum *sum = fed_sum_new_of(co->model);
        CHECK_EQUAL(fed_train_cohort(team, co->model, &(fed_step){&row, 1}, co->server, co->clients,
                                     1, &terms, &cancel, sum, outcomes[0].stats, &fault),
                    FED_OK);
        fed_sum_total(sum, outcomes[0].total, &outcomes[0].weight);
        for (size_t p = 0; p < co->model->num_params; p++) moved[i] += fabs(outcomes[0].total[p]);
        fed_sum_free(sum);
        fed_team_free(team);
    }
    const double ratio = sqrt((1 - pow(0.999, 5)) / 0.001) / ((1 - pow(0.9, 5)) / 0.1);
    CHECK_CLOSE(moved[1] / moved[0], ratio, 1e-3);
    free_cohort(co);
}

static void test_frozen_step_number_0_is_refused(void) {
    const float slot[MAX_PARAMS] = {0};
    cohort *co = new_cohort(&MODEL_7, 1, &PLAN);
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(co->model);
    const fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM, .frozen_slots = slot};
    CHECK_EQUAL(fed_train_cohort(team, co->model, &MOMENTUM, co->server, co->clients, 1, &terms,
                                 &cancel, sum, outcomes[0].stats, &fault),
                FED_ERR_ARGUMENT);
    fed_sum_free(sum);
    fed_team_free(team);
    free_cohort(co);
}

/* Adafactor is refused without the model's tensors, and with frozen slots, whose layout differs. */
static void test_adafactor_is_refused_without_tensors_and_with_frozen_slots(void) {
    const fed_step_row row = {FED_STEP_ADAFACTOR, {0.1, -0.8, 1e-30, 1e-3, 1, 1}};
    const float slots[2 * MAX_PARAMS] = {0};
    cohort *co = new_cohort(&MODEL_7, 1, &PLAN);
    const fed_tensor all = {1, 0, co->model->num_params}, less = {1, 0, co->model->num_params - 1};
    const fed_tensors tensors = {&all, 1}, fewer = {&less, 1};
    const fed_terms terms[] = {
        {.tensors = &tensors},
        {.tensors = NULL},
        {.tensors = &fewer},
        {.tensors = &tensors, .frozen_slots = slots, .frozen_step_num = 1},
    };
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(co->model);
    for (size_t i = 0; i < LENGTH(terms); i++)
        CHECK_EQUAL(fed_train_cohort(team, co->model, &(fed_step){&row, 1}, co->server, co->clients,
                                     1, &terms[i], &cancel, sum, outcomes[0].stats, &fault),
                    i == 0 ? FED_OK : FED_ERR_ARGUMENT);
    fed_sum_free(sum);
    fed_team_free(team);
    free_cohort(co);
}

/* ---- Pieces and teams ------------------------------------------------------------------------ */

static void test_pieces_of_whole_blocks_equal_the_whole(void) {
    cohort *co = new_cohort(&MODEL_17, 37, &PLAN);
    train(2, co, &PLAIN, FED_WEIGHT_NUM_EXAMPLES, &outcomes[0]);
    static const size_t pieces[][5] = {
        {8, 8, 8, 8, 5}, {16, 16, 5, 0, 0}, {0, 32, 0, 5, 0}, {24, 13}};
    for (size_t i = 0; i < LENGTH(pieces); i++) {
        memset(&outcomes[1], 0, sizeof(outcomes[1]));
        fed_team *team = fed_team_new(3);
        fed_sum *sum = fed_sum_new_of(co->model);
        size_t first = 0;
        for (size_t k = 0; first < co->num_clients; first += pieces[i][k++])
            CHECK_EQUAL(fed_train_cohort(team, co->model, &PLAIN, co->server, co->clients + first,
                                         pieces[i][k],
                                         &(fed_terms){.weighting = FED_WEIGHT_NUM_EXAMPLES},
                                         &cancel, sum, outcomes[1].stats + first, &fault),
                        FED_OK);
        fed_sum_total(sum, outcomes[1].total, &outcomes[1].weight);
        fed_sum_free(sum);
        fed_team_free(team);
        check_equal_outcomes();
    }
    free_cohort(co);
}

static void test_team_may_change_models_and_cohorts(void) {
    fed_team *team = fed_team_new(3);
    for (size_t i = 0; i < 8; i++) {
        cohort *co = new_cohort(MODELS[i % LENGTH(MODELS)], 1 + 9 * i, &PLAN);
        train_on(team, co, STEPS[i % LENGTH(STEPS)], FED_WEIGHT_UNIFORM, &outcomes[1]);
        train(1, co, STEPS[i % LENGTH(STEPS)], FED_WEIGHT_UNIFORM, &outcomes[0]);
        check_equal_outcomes();
        free_cohort(co);
    }
    fed_team_free(team);
}

static void test_team_of_no_or_too_many_threads_is_refused(void) {
    static const int refused[] = {0, -1, INT_MIN, FED_MAX_THREADS + 1, INT_MAX};
    for (size_t i = 0; i < LENGTH(refused); i++) CHECK(fed_team_new(refused[i]) == NULL);
    fed_team *largest = fed_team_new(FED_MAX_THREADS);
    CHECK(largest != NULL);
    fed_team_free(largest);
    fed_team_free(NULL);
}

/* ---- Training: values ------------------------------------------------------------------------ */

/* Parameters and losses stay below 10, and every step has a few dozen rounding errors, so 1e-5 is
 * ample. */
static void check_trained(const cohort *co, const fed_step *step) {
    train(2, co, step, FED_WEIGHT_NUM_EXAMPLES, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    double weight = 0;
    for (size_t c = 0; c < co->num_clients; c++) {
        reference t = reference_start(co);
        reference_run(co, c, step->rows, &t);
        const fed_client_stats *stats = &outcomes[0].stats[c];
        const fed_client *client = &co->clients[c];
        CHECK_CLOSE(stats->loss_sum, t.loss_sum, 1e-5 * (t.loss_sum + 1));
        CHECK_EQUAL(stats->num_correct, t.num_correct);
        CHECK_EQUAL(stats->num_examples, fed_plan_visits(&client->plan, client->num_examples));
        CHECK_EQUAL(stats->num_batches, fed_plan_batches(&client->plan, client->num_examples));
        CHECK_EQUAL(stats->is_finite, 1);
        CHECK(stats->weight == (double)stats->num_examples);
        weight += stats->weight;
        for (size_t p = 0; p < co->model->num_params; p++)
            outcomes[0].total[p] -= stats->weight * (t.params[p] - (double)co->server[p]);
    }
    CHECK(outcomes[0].weight == weight);
    for (size_t p = 0; p < co->model->num_params; p++)
        CHECK_CLOSE(outcomes[0].total[p], 0, 1e-5 * (weight + 1));
}

static void test_training_equals_the_reference(void) {
    static const fed_model *const models[] = {&MODEL_7, &MODEL_17, &MODEL_48};
    for (size_t m = 0; m < LENGTH(models); m++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            cohort *co = new_cohort(models[m], 9, &PLAN);
            check_trained(co, STEPS[s]);
            free_cohort(co);
        }
}

static void test_training_equals_the_reference_for_every_pipeline_and_batch(void) {
    static const size_t batch_sizes[] = {1, 7, 33, 64, 1000};
    for (int32_t pipeline = FED_REPEAT_SHUFFLE; pipeline <= FED_PER_EPOCH; pipeline++)
        for (size_t i = 0; i < LENGTH(batch_sizes); i++) {
            const fed_plan plan = {.pipeline = pipeline,
                                   .epochs = 3,
                                   .batch_size = batch_sizes[i],
                                   .shuffle_buffer = 10,
                                   .max_examples = 130};
            cohort *co = new_cohort(&MODEL_7, 9, &plan);
            check_trained(co, &PLAIN);
            free_cohort(co);
        }
}

static void test_batch_of_any_size_is_the_full_batch(void) {
    cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
    for (size_t i = 0; i < 2; i++) {
        for (size_t c = 0; c < 9; c++) co->clients[c].plan.batch_size = i == 0 ? 1000 : SIZE_MAX;
        train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[i]);
    }
    check_equal_outcomes();
    free_cohort(co);
}

static void test_clients_without_examples_weigh_nothing(void) {
    cohort *co = new_cohort(&MODEL_7, 0, &PLAN);
    for (size_t c = 0; c < 9; c++) add_client(co, 0, &PLAN);
    train(2, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    CHECK(outcomes[0].weight == 0);
    for (size_t c = 0; c < 9; c++) {
        const fed_client_stats *stats = &outcomes[0].stats[c];
        CHECK(stats->weight == 0 && stats->loss_sum == 0);
        CHECK_EQUAL(stats->num_examples + stats->num_batches + stats->num_correct, 0);
        CHECK_EQUAL(stats->is_finite, 1);
    }
    for (size_t p = 0; p < MODEL_7.num_params; p++) CHECK(outcomes[0].total[p] == 0);
    free_cohort(co);
}

static void test_learning_rate_0_moves_nothing(void) {
    const fed_step_row row = {FED_STEP_SGD, {0}};
    cohort *co = new_cohort(&MODEL_17, 3, &PLAN);
    train(1, co, &(fed_step){&row, 1}, FED_WEIGHT_UNIFORM, &outcomes[0]);
    for (size_t p = 0; p < MODEL_17.num_params; p++) CHECK(outcomes[0].total[p] == 0);
    CHECK(outcomes[0].stats[0].loss_sum > 0);
    free_cohort(co);
}

/* ---- Pixels ---------------------------------------------------------------------------------- */

static void test_bytes_with_scale_and_offset_equal_the_same_floats(void) {
    cohort *co = new_cohort(&MODEL_17, 9, &PLAN);
    for (size_t c = 0; c < 9; c++) {
        co->clients[c].scale = -1.0f / 255;
        co->clients[c].offset = 1;
    }
    train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
    for (size_t c = 0; c < 9; c++) {
        float *floats = make_floats(co, c, -1.0f / 255);
        for (size_t i = 0; i < co->clients[c].num_examples * 17; i++) floats[i] += 1;
        co->clients[c].scale = 1;
        co->clients[c].offset = 0;
    }
    train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[1]);
    for (size_t p = 0; p < MODEL_17.num_params; p++)
        CHECK_CLOSE(outcomes[1].total[p], outcomes[0].total[p], 1e-5);
    free_cohort(co);
}

/* One run uses the values in place, as pixels of scale 1. The other decodes halves of the values
 * at scale 2. Both are exact. */
static void test_floats_in_place_equal_decoded_floats(void) {
    for (size_t i = 0; i < 2; i++) {
        cohort *co = new_cohort(&MODEL_48, 9, &PLAN);
        for (size_t c = 0; c < 9; c++) {
            make_floats(co, c, i == 0 ? 0x1p-8f : 0x1p-9f);
            co->clients[c].scale = i == 0 ? 1 : 2;
        }
        train(2, co, &MOMENTUM, FED_WEIGHT_UNIFORM, &outcomes[i]);
        free_cohort(co);
    }
    check_equal_outcomes();
}

/* The data of two epochs are decoded once; the doubled data of one epoch are decoded a batch at a
 * time. */
static void test_decoded_once_equals_decoded_per_batch(void) {
    enum { NUM = 50 };
    const fed_plan twice = {.epochs = 2, .batch_size = 20, .max_examples = SIZE_MAX};
    cohort *co = new_lone_client(&MODEL_17, NUM, &twice);
    train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
    fed_client *client = &co->clients[0];
    uint8_t *bytes = test_alloc(2 * NUM * 17);
    int32_t *labels = test_alloc(2 * NUM * sizeof(*labels));
    for (size_t half = 0; half < 2; half++) {
        memcpy(bytes + half * NUM * 17, client->pixels, NUM * 17);
        memcpy(labels + half * NUM, client->labels, NUM * sizeof(*labels));
    }
    free_client(client);
    client->pixels = bytes;
    client->labels = labels;
    client->num_examples = 2 * NUM;
    client->plan.epochs = 1;
    train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[1]);
    check_equal_outcomes();
    free_cohort(co);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

/* Checks that training and scoring fail with the same status. */
static void check_both_fail(const cohort *co, int status) {
    for (size_t t = 0; t < LENGTH(THREADS); t++) {
        train(THREADS[t], co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
        CHECK_EQUAL(outcomes[0].status, status);
        evaluate(THREADS[t], co, &outcomes[0]);
        CHECK_EQUAL(outcomes[0].status, status);
    }
}

static void check_label_fault(size_t client_index, size_t example_index, int32_t label) {
    CHECK_EQUAL(fault.client_index, client_index);
    CHECK_EQUAL(fault.example_index, example_index);
    CHECK_EQUAL(fault.label, label);
}

static void test_label_fault_names_the_lowest_client_and_its_example(void) {
    cohort *co = new_cohort(&MODEL_17, 17, &PLAN);
    labels_of(co, 13)[0] = -1;
    labels_of(co, 11)[63] = NUM_CLASSES;
    labels_of(co, 11)[199] = INT32_MIN;
    fault = (fed_fault){0, 0, 0};
    check_both_fail(co, FED_ERR_LABEL);
    check_label_fault(11, 63, NUM_CLASSES);
    free_cohort(co);
}

/* A cohort gives the same deltas and stats with and without a sum. */
static void test_cohort_without_a_sum(void) {
    enum { NUM = 21 };
    static float deltas[2][NUM][MAX_PARAMS];
    fed_own owns[NUM];
    cohort *co = new_cohort(&MODEL_17, NUM, &PLAN);
    for (size_t t = 1; t <= 2; t++)
        for (size_t k = 0; k < 2; k++) {
            memset(deltas[k], 0, sizeof deltas[k]);
            for (size_t c = 0; c < NUM; c++) {
                owns[c] = (fed_own){.delta = deltas[k][c], .delta_factor = 1};
                co->clients[c].own = &owns[c];
            }
            fed_team *team = fed_team_new((int)t);
            fed_sum *sum = k == 0 ? fed_sum_new_of(co->model) : NULL;
            memset(&outcomes[k], 0, sizeof outcomes[k]);
            CHECK_EQUAL(fed_train_cohort(team, co->model, &PLAIN, co->server, co->clients, NUM,
                                         &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel,
                                         sum, outcomes[k].stats, &fault),
                        FED_OK);
            fed_sum_free(sum);
            fed_team_free(team);
            CHECK(outcomes[k].stats[NUM - 1].weight == 1);
            CHECK(deltas[k][NUM - 1][0] != 0);
            CHECK_BYTES(outcomes[k].stats, outcomes[0].stats, sizeof outcomes[k].stats);
            CHECK_BYTES(deltas[k], deltas[0], sizeof deltas[k]);
        }
    for (size_t c = 0; c < NUM; c++) co->clients[c].own = NULL;
    free_cohort(co);
}

static void test_every_label_outside_the_classes_is_refused(void) {
    static const int32_t bad[] = {-1, INT32_MIN, INT32_MAX, NUM_CLASSES, NUM_CLASSES + 1};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
        labels_of(co, 2)[199] = bad[i];
        check_both_fail(co, FED_ERR_LABEL);
        check_label_fault(2, 199, bad[i]);
        free_cohort(co);
    }
}

/* A bad label is refused even if the plan never visits its example. */
static void test_label_of_an_unvisited_example_is_refused(void) {
    fed_plan plan = IN_ORDER;
    plan.max_examples = 1;
    cohort *co = new_lone_client(&MODEL_7, 9, &plan);
    labels_of(co, 0)[8] = -1;
    check_both_fail(co, FED_ERR_LABEL);
    check_label_fault(0, 8, -1);
    free_cohort(co);
}

static void test_label_fault_adds_nothing_to_the_sum(void) {
    cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
    labels_of(co, 8)[0] = -1;
    fed_team *team = fed_team_new(2);
    fed_sum *sum = fed_sum_new_of(co->model);
    CHECK_EQUAL(fed_train_cohort(team, co->model, &PLAIN, co->server, co->clients, 9,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 outcomes[0].stats, &fault),
                FED_ERR_LABEL);
    double weight;
    fed_sum_total(sum, outcomes[0].total, &weight);
    CHECK(weight == 0);
    for (size_t p = 0; p < MODEL_7.num_params; p++) CHECK(outcomes[0].total[p] == 0);
    fed_sum_free(sum);
    fed_team_free(team);
    free_cohort(co);
}

static void check_plan_is_refused(fed_plan plan) {
    cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
    co->clients[8].plan = plan;
    check_both_fail(co, FED_ERR_ARGUMENT);
    free_cohort(co);
}

static void test_bad_plans_are_refused(void) {
    check_plan_is_refused((fed_plan){.epochs = 0, .batch_size = 1, .max_examples = SIZE_MAX});
    check_plan_is_refused((fed_plan){.epochs = 1, .batch_size = 0, .max_examples = SIZE_MAX});
    check_plan_is_refused((fed_plan){.pipeline = -1, .epochs = 1, .batch_size = 1});
    check_plan_is_refused((fed_plan){.pipeline = FED_PER_EPOCH + 1, .epochs = 1, .batch_size = 1});
}

/* The number of bytes of such a batch does not fit in a size_t. */
static void test_batches_beyond_memory_are_refused(void) {
    check_plan_is_refused(
        (fed_plan){.epochs = SIZE_MAX / 64, .batch_size = SIZE_MAX / 64, .max_examples = SIZE_MAX});
    check_plan_is_refused(
        (fed_plan){.epochs = SIZE_MAX, .batch_size = SIZE_MAX, .max_examples = SIZE_MAX});
}

static void test_bad_clients_are_refused(void) {
    cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
    co->clients[3].pixel_type = 2;
    check_both_fail(co, FED_ERR_ARGUMENT);
    co->clients[3].pixel_type = -1;
    check_both_fail(co, FED_ERR_ARGUMENT);
    co->clients[3].pixel_type = FED_PIXELS_UINT8;
    co->clients[3].num_examples = (size_t)UINT32_MAX + 1;
    check_both_fail(co, FED_ERR_ARGUMENT);
    free_cohort(co);
}

static void test_bad_weighting_step_model_and_sum_are_refused(void) {
    const fed_step_row bad_row = {FED_STEP_SGD, {NAN}};
    cohort *co = new_cohort(&MODEL_7, 1, &PLAN);
    train(1, co, &PLAIN, FED_WEIGHT_UNIFORM + 1, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_ERR_ARGUMENT);
    train(1, co, &PLAIN, -1, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_ERR_ARGUMENT);
    train(1, co, &(fed_step){&bad_row, 1}, FED_WEIGHT_UNIFORM, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_ERR_ARGUMENT);
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(&MODEL_48);
    CHECK_EQUAL(fed_train_cohort(team, co->model, &PLAIN, co->server, co->clients, 1,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 outcomes[0].stats, &fault),
                FED_ERR_ARGUMENT);
    fed_model model = MODEL_7;
    model.num_params--;
    CHECK_EQUAL(
        fed_evaluate(team, &model, co->server, co->clients, 1, &cancel, outcomes[0].stats, &fault),
        FED_ERR_ARGUMENT);
    fed_sum_free(sum);
    fed_team_free(team);
    free_cohort(co);
}

/* ---- Cancellation ---------------------------------------------------------------------------- */

static void sleep_for(long nanoseconds) {
    const struct timespec pause = {0, nanoseconds};
    nanosleep(&pause, NULL);
}

/* Raises the flag after the given time. */
static void *raise_later(void *nanoseconds) {
    sleep_for(*(const long *)nanoseconds);
    atomic_store(&cancel, 1);
    return NULL;
}

static void test_flag_raised_beforehand_stops_everything(void) {
    cohort *co = new_cohort(&MODEL_7, 17, &PLAN);
    cancel = 1;
    check_both_fail(co, FED_ERR_CANCELLED);
    cancel = 0;
    free_cohort(co);
}

/* Starts work that would take years, and stops it. */
static void check_is_stopped(const cohort *co, fed_team *team, int is_training, long nanoseconds) {
    pthread_t thread;
    cancel = 0;
    CHECK_EQUAL(pthread_create(&thread, NULL, raise_later, &nanoseconds), 0);
    if (is_training)
        train_on(team, co, &MOMENTUM, FED_WEIGHT_UNIFORM, &outcomes[1]);
    else
        outcomes[1].status = fed_evaluate(team, co->model, co->server, co->clients, co->num_clients,
                                          &cancel, outcomes[1].stats, &fault);
    pthread_join(thread, NULL);
    cancel = 0;
    CHECK_EQUAL(outcomes[1].status, FED_ERR_CANCELLED);
}

/* Small clients before and after the endless one, so that some wait, some are added, and some
 * blocks are finished. */
static void test_flag_raised_from_another_thread_stops_training(void) {
    fed_plan endless = PLAN;
    endless.epochs = (size_t)1 << 40;
    for (size_t t = 0; t < LENGTH(THREADS); t++) {
        fed_team *team = fed_team_new(THREADS[t]);
        cohort *co = new_cohort(&MODEL_7, 40, &PLAN);
        train(1, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
        for (long attempt = 0; attempt < 4; attempt++) {
            const size_t c = attempt % 2 == 0 ? 20 : 3; /* clients of 200 examples, and of 1 */
            co->clients[c].plan = endless;
            check_is_stopped(co, team, 1, 1000000 * (1 + 5 * attempt));
            co->clients[c].plan = PLAN;
        }
        train_on(team, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[1]);
        check_equal_outcomes();
        free_cohort(co);
        fed_team_free(team);
    }
}

static void test_flag_raised_from_another_thread_stops_evaluation(void) {
    fed_plan endless = PLAN;
    endless.epochs = (size_t)1 << 40;
    endless.max_examples = ((size_t)1 << 40) + 1; /* the last epoch is cut short, so the order must
                                                     be drawn */
    fed_team *team = fed_team_new(3);
    cohort *co = new_cohort(&MODEL_7, 17, &PLAN);
    co->clients[4].plan = endless;
    check_is_stopped(co, team, 0, 10000000);
    free_cohort(co);
    fed_team_free(team);
}

/* ---- Numbers that are not finite ------------------------------------------------------------- */

/* Client `bad` must be dropped, without an effect on the others. */
static void check_is_dropped(const cohort *co, size_t bad, const fed_step *step) {
    train(3, co, step, FED_WEIGHT_UNIFORM, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    const fed_client_stats *stats = &outcomes[0].stats[bad];
    CHECK(stats->weight == 0 && stats->loss_sum == 0);
    CHECK_EQUAL(stats->num_correct, 0);
    CHECK_EQUAL(stats->num_examples, 0);
    CHECK_EQUAL(stats->num_batches, 0);
    CHECK_EQUAL(stats->is_finite, 0);
    check_is_sum_of_clients(co, step, FED_WEIGHT_UNIFORM);
    check_is_sum_of_clients(co, step, FED_WEIGHT_NUM_EXAMPLES);
}

static void test_client_with_a_bad_pixel_is_dropped_and_reset(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        cohort *co = new_cohort(&MODEL_48, 17, &PLAN);
        for (size_t c = 0; c < 17; c++) {
            float *pixels = make_floats(co, c, 1.0f / 255);
            if (c == 0) pixels[19 * 48 + 47] = bad[i]; /* the very last pixel */
        }
        check_is_dropped(co, 0, &PLAIN);
        check_is_dropped(co, 0, &MOMENTUM);
        free_cohort(co);
    }
}

/* Byte pixels with an enormous scale, so that the first steps overflow with any learning rate. */
static void test_client_that_overflows_is_dropped_and_reset(void) {
    cohort *co = new_cohort(&MODEL_17, 17, &PLAN);
    co->clients[2].scale = 1e38f;
    check_is_dropped(co, 2, &PLAIN);
    check_is_dropped(co, 2, &NESTEROV);
    free_cohort(co);
}

static void test_huge_learning_rate_drops_every_client(void) {
    const fed_step_row row = {FED_STEP_SGD, {3e38f}};
    cohort *co = new_cohort(&MODEL_17, 9, &PLAN);
    for (size_t c = 0; c < 9; c++) co->clients[c].scale = 1000;
    train(2, co, &(fed_step){&row, 1}, FED_WEIGHT_NUM_EXAMPLES, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    CHECK(outcomes[0].weight == 0);
    for (size_t c = 0; c < 9; c++)
        CHECK_EQUAL(outcomes[0].stats[c].is_finite, co->clients[c].num_examples == 0);
    for (size_t p = 0; p < MODEL_17.num_params; p++) CHECK(outcomes[0].total[p] == 0);
    free_cohort(co);
}

static void test_bad_pixels_make_the_evaluated_loss_nan(void) {
    cohort *co = new_cohort(&MODEL_48, 3, &IN_ORDER);
    make_floats(co, 0, 1)[0] = NAN;
    evaluate(2, co, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    CHECK(isnan(outcomes[0].stats[0].loss_sum) && isfinite(outcomes[0].stats[2].loss_sum));
    CHECK_EQUAL(outcomes[0].stats[0].num_examples, 20);
    free_cohort(co);
}

/* ---- Evaluation ------------------------------------------------------------------------------ */

static void check_evaluated(const cohort *co) {
    evaluate(1, co, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    for (size_t c = 0; c < co->num_clients; c++) {
        reference t = reference_start(co);
        reference_run(co, c, NULL, &t);
        const fed_client_stats *stats = &outcomes[0].stats[c];
        const fed_client *client = &co->clients[c];
        CHECK_CLOSE(stats->loss_sum, t.loss_sum, 1e-6 * (t.loss_sum + 1));
        CHECK_EQUAL(stats->num_correct, t.num_correct);
        CHECK_EQUAL(stats->num_examples, fed_plan_visits(&client->plan, client->num_examples));
        CHECK_EQUAL(stats->num_batches, fed_plan_batches(&client->plan, client->num_examples));
    }
    for (size_t t = 1; t < LENGTH(THREADS); t++) {
        evaluate(THREADS[t], co, &outcomes[1]);
        check_equal_outcomes();
    }
}

static void check_plan_is_evaluated(size_t epochs, size_t shuffle_buffer, size_t max_examples) {
    for (int32_t pipeline = FED_REPEAT_SHUFFLE; pipeline <= FED_PER_EPOCH; pipeline++) {
        const fed_plan plan = {pipeline, epochs, 20, shuffle_buffer, max_examples};
        cohort *co = new_cohort(&MODEL_17, 9, &plan);
        check_evaluated(co);
        free_cohort(co);
    }
}

static void test_evaluation_equals_the_reference(void) {
    check_plan_is_evaluated(1, 1, SIZE_MAX);
    check_plan_is_evaluated(1, 100, SIZE_MAX);
}

static void test_evaluation_counts_every_epoch(void) {
    check_plan_is_evaluated(3, 1, SIZE_MAX);
    check_plan_is_evaluated(3, 100, SIZE_MAX);
}

static void test_evaluation_keeps_max_examples_of_each_client(void) {
    static const size_t limits[] = {0, 1, 20, 50, 203};
    for (size_t i = 0; i < LENGTH(limits); i++) {
        check_plan_is_evaluated(1, 1, limits[i]);
        check_plan_is_evaluated(2, 1, limits[i]);
        check_plan_is_evaluated(2, 100, limits[i]);
        check_plan_is_evaluated(2, SIZE_MAX, limits[i]);
    }
}

/* Large clients are scored in blocks of 256 examples (score.c), by several threads. */
static void test_large_client_is_evaluated_in_pieces(void) {
    static const size_t sizes[] = {2047, 2048, 2049, 5000};
    cohort *co = new_cohort(&MODEL_7, 0, &IN_ORDER);
    for (size_t i = 0; i < LENGTH(sizes); i++) add_client(co, sizes[i], &IN_ORDER);
    check_evaluated(co);
    co->clients[3].plan.epochs = 2;
    co->clients[3].plan.max_examples = 8000; /* one epoch and 3000 more */
    check_evaluated(co);
    free_cohort(co);
}

static void test_empty_cohort_is_evaluated(void) {
    cohort *co = new_cohort(&MODEL_7, 0, &IN_ORDER);
    evaluate(2, co, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    free_cohort(co);
}

/* A stack of two layers. It is only evaluated, because the reference computes gradients for one
 * layer only. */
static void test_two_layers_are_evaluated(void) {
    cohort *co = new_cohort(&MODEL_TWO, 9, &IN_ORDER);
    evaluate(2, co, &outcomes[0]);
    for (size_t c = 0; c < 9; c++) {
        double loss = 0, pixels[MAX_INPUTS], logits[NUM_CLASSES];
        const reference t = reference_start(co);
        for (size_t e = 0; e < co->clients[c].num_examples; e++) {
            reference_pixels(co, &co->clients[c], e, pixels);
            reference_logits(co->model, t.params, pixels, logits);
            loss += reference_loss(logits, NUM_CLASSES, co->clients[c].labels[e]);
        }
        CHECK_CLOSE(outcomes[0].stats[c].loss_sum, loss, 1e-6 * (loss + 1));
    }
    free_cohort(co);
}

/* ---- Floating-point mode --------------------------------------------------------------------- */

#if defined(__x86_64__)
enum { MODE_BITS = 0xffc0 }; /* all bits except the sticky exception flags */
static uint64_t get_mode(void) { return _mm_getcsr() & MODE_BITS; }
static void set_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
static const uint64_t FLUSHING = 0x8040;
#elif defined(__aarch64__)
static uint64_t get_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
static const uint64_t FLUSHING = 1u << 24;
#endif

#if defined(__x86_64__) || defined(__aarch64__)
static void check_mode_is_restored(uint64_t mode) {
    cohort *co = new_cohort(&MODEL_7, 9, &PLAN);
    const uint64_t before = get_mode();
    set_mode(mode);
    train(2, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
    const uint64_t after_training = get_mode();
    evaluate(2, co, &outcomes[0]);
    const uint64_t after_evaluation = get_mode();
    cancel = 1;
    train(2, co, &PLAIN, FED_WEIGHT_UNIFORM, &outcomes[0]);
    cancel = 0;
    const uint64_t after_cancelling = get_mode();
    set_mode(before);
    CHECK_EQUAL(after_training, mode);
    CHECK_EQUAL(after_evaluation, mode);
    CHECK_EQUAL(after_cancelling, mode);
    free_cohort(co);
}

static void test_floating_point_mode_is_restored(void) {
    check_mode_is_restored(get_mode() & ~FLUSHING);
    check_mode_is_restored(get_mode() | FLUSHING);
}

/* One step of denormal size from zero parameters: the core flushes it to zero, whatever mode the
 * caller has. */
static void test_denormals_are_zero_inside(void) {
    const fed_step_row row = {FED_STEP_SGD, {1e-39f}};
    cohort *co = new_lone_client(&MODEL_7, 20, &IN_ORDER);
    memset(co->server, 0, sizeof(co->server));
    train(1, co, &(fed_step){&row, 1}, FED_WEIGHT_UNIFORM, &outcomes[0]);
    CHECK_EQUAL(outcomes[0].status, FED_OK);
    for (size_t p = 0; p < MODEL_7.num_params; p++) CHECK(outcomes[0].total[p] == 0);
    free_cohort(co);
}
#else
static void test_floating_point_mode_is_restored(void) {
    printf("skip: mode is not touched here\n");
}
static void test_denormals_are_zero_inside(void) { printf("skip: mode is not touched here\n"); }
#endif

static const test_case TESTS[] = {
    TEST(test_threads_change_no_byte_for_any_cohort_size),
    TEST(test_threads_change_no_byte_for_any_model_step_and_weighting),
    TEST(test_threads_change_no_byte_of_many_tiny_clients),
    TEST(test_one_large_client_among_small_ones_changes_no_byte),
    TEST(test_cohort_is_the_ordered_sum_of_its_clients),
    TEST(test_deltas_are_kept_within_bounds),
    TEST(test_threads_change_no_byte_of_bounded_deltas),
    TEST(test_bounds_that_are_no_sizes_are_refused),
    TEST(test_gradient_equals_one_full_batch),
    TEST(test_frozen_slots_start_every_step),
    TEST(test_frozen_step_number_reaches_the_rows),
    TEST(test_frozen_step_number_0_is_refused),
    TEST(test_adafactor_is_refused_without_tensors_and_with_frozen_slots),
    TEST(test_pieces_of_whole_blocks_equal_the_whole),
    TEST(test_team_may_change_models_and_cohorts),
    TEST(test_team_of_no_or_too_many_threads_is_refused),
    TEST(test_training_equals_the_reference),
    TEST(test_training_equals_the_reference_for_every_pipeline_and_batch),
    TEST(test_batch_of_any_size_is_the_full_batch),
    TEST(test_clients_without_examples_weigh_nothing),
    TEST(test_learning_rate_0_moves_nothing),
    TEST(test_bytes_with_scale_and_offset_equal_the_same_floats),
    TEST(test_floats_in_place_equal_decoded_floats),
    TEST(test_decoded_once_equals_decoded_per_batch),
    TEST(test_label_fault_names_the_lowest_client_and_its_example),
    TEST(test_cohort_without_a_sum),
    TEST(test_every_label_outside_the_classes_is_refused),
    TEST(test_label_of_an_unvisited_example_is_refused),
    TEST(test_label_fault_adds_nothing_to_the_sum),
    TEST(test_bad_plans_are_refused),
    TEST(test_batches_beyond_memory_are_refused),
    TEST(test_bad_clients_are_refused),
    TEST(test_bad_weighting_step_model_and_sum_are_refused),
    TEST(test_flag_raised_beforehand_stops_everything),
    TEST(test_flag_raised_from_another_thread_stops_training),
    TEST(test_flag_raised_from_another_thread_stops_evaluation),
    TEST(test_client_with_a_bad_pixel_is_dropped_and_reset),
    TEST(test_client_that_overflows_is_dropped_and_reset),
    TEST(test_huge_learning_rate_drops_every_client),
    TEST(test_bad_pixels_make_the_evaluated_loss_nan),
    TEST(test_evaluation_equals_the_reference),
    TEST(test_evaluation_counts_every_epoch),
    TEST(test_evaluation_keeps_max_examples_of_each_client),
    TEST(test_large_client_is_evaluated_in_pieces),
    TEST(test_empty_cohort_is_evaluated),
    TEST(test_two_layers_are_evaluated),
    TEST(test_floating_point_mode_is_restored),
    TEST(test_denormals_are_zero_inside),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
