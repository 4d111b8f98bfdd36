/* SPDX-License-Identifier: Apache-2.0
 *
 * The results must be the same byte for byte with any number of threads. This is tested for clients
 * that are distributed over the threads, and for cohorts of so few clients that threads share the
 * batches (threads.c).
 */
#include "cohort/cohort.h"
#include "stacks.h"

/* An emulator trains only every third stack and every third step, because it is ten times as slow.
 * Its threads are threads of this machine, which other builds test with every stack and step. */
#ifdef FED_EMULATED
enum { STRIDE = 3 };
#else
enum { STRIDE = 1 };
#endif

/* ---- Clients shared out ---------------------------------------------------------------------- */

enum { MOST_CLIENTS = 11 };

/* A case of test_threads_change_no_byte. */
typedef struct clients_case {
    uint32_t epochs;
    size_t num_clients, num_examples;
    size_t num_counts;
    int counts[3]; /* of threads */
} clients_case;

/* Clients with different numbers of examples, also 0, taken from the start of the problem's
 * examples. */
static void cohort_of(const problem *p, const clients_case *of, fed_client *clients) {
    for (size_t c = 0; c < of->num_clients; c++) {
        clients[c] = client_of(p, 4);
        clients[c].num_examples = (c * 7) % (p->num_examples + 1);
        clients[c].plan.epochs = of->epochs;
        clients[c].plan.shuffle_buffer = SIZE_MAX;
        clients[c].shuffle_key.client = clients[c].dropout_key.client = c;
    }
}

static void train_on_threads(const problem *p, const fed_step *step, const clients_case *of,
                             int num_threads, double *delta, fed_client_stats *stats) {
    fed_client clients[MOST_CLIENTS];
    cohort_of(p, of, clients);
    atomic_int cancel = 0;
    fed_fault fault;
    double weight;
    fed_team *team = fed_team_new(num_threads);
    fed_sum *sum = fed_sum_new_of(p->model);
    CHECK_EQUAL(fed_train_cohort(team, p->model, step, p->params, clients, of->num_clients,
                                 &(fed_terms){.weighting = FED_WEIGHT_NUM_EXAMPLES}, &cancel, sum,
                                 stats, &fault),
                FED_OK);
    CHECK_EQUAL(fed_evaluate(team, p->model, p->params, clients, of->num_clients, &cancel,
                             stats + MOST_CLIENTS, &fault),
                FED_OK);
    fed_sum_total(sum, delta, &weight);
    fed_sum_free(sum);
    fed_team_free(team);
}

static void check_threads(const stack *s, const fed_step *step, const clients_case *of) {
    table t;
    build(s, &t);
    problem p = new_problem(&t.model, of->num_examples, 41);
    fed_client_stats stats[LENGTH(of->counts)][2 * MOST_CLIENTS];
    double *deltas[LENGTH(of->counts)];
    memset(stats, 0, sizeof stats);
    for (size_t i = 0; i < of->num_counts; i++) {
        deltas[i] = naive_doubles(t.model.num_params);
        train_on_threads(&p, step, of, of->counts[i], deltas[i], stats[i]);
        CHECK_BYTES(deltas[i], deltas[0], t.model.num_params * sizeof(double));
        CHECK_BYTES(stats[i], stats[0], sizeof stats[0]);
    }
    for (size_t i = 0; i < of->num_counts; i++) free(deltas[i]);
    free_problem(&p);
}

/* Without OpenMP, where one thread does all, the small stacks are enough. */
static void test_threads_change_no_byte(void) {
    static const clients_case small = {2, 11, 9, 3, {1, 2, 7}}, large = {1, 8, 5, 2, {1, 7}};
    const size_t num_large = fed_has_openmp() ? LENGTH(LARGE) : 0;
    for (size_t s = 0; s < LENGTH(SMALL); s += STRIDE) check_threads(&SMALL[s], &PLAIN, &small);
    for (size_t s = 0; s < num_large; s += STRIDE)
        check_threads(&LARGE[s], s / STRIDE % 2 == 0 ? &PLAIN : &MOMENTUM, &large);
}

/* ---- Batches shared out ---------------------------------------------------------------------- */

/* Stacks with example stages (batch.c): some before a dense layer, some in the whole net. */
static const stack SHARED[] = {
    {"dropout, norms and dense layers",
     {9, 10, 2},
     {DROP(0.2), CONV(17, 3, 3, 1, 1, true, FED_RELU), POOL2, NORM(17, FED_TANH),
      CONV(33, 3, 3, 1, 1, false, FED_RELU), DROP(0.5), FULL(20, FED_RELU), NORM(4, FED_LINEAR),
      FULL(5, FED_LINEAR)}},
    {"no dense layer",
     {8, 8, 1},
     {CONV(32, 3, 3, 1, 1, true, FED_RELU), CONV(32, 3, 3, 1, 1, true, FED_RELU), POOL2,
      MAX(3, 3, 1, 1, true), NORM(8, FED_LINEAR), CONV(6, 4, 4, 1, 1, false, FED_LINEAR)}},
    {"a large and a small value that two layers read",
     {8, 8, 3},
     {CONV(33, 3, 3, 1, 1, true, FED_TANH), MEAN(4, 4, 4, 4, false),
      CONV(8, 2, 2, 1, 1, true, FED_TANH), CONV_OF(1, 8, 1, 1, 1, 1, FED_TANH),
      ADD(0, 1, FED_LINEAR), CONV_OF(4, 8, 3, 3, 4, 4, FED_TANH), ADD(0, 1, FED_LINEAR),
      FULL(5, FED_LINEAR)}},
};

static const fed_step_row ADAM_ROW = {FED_STEP_ADAM, {0.01, 0.9, 0.99, 1e-7, 0}};
static const fed_step_row CLIP_ROWS[] = {{FED_STEP_CLIP, {0.5}}, {FED_STEP_SGD, {0.5, 0.9, 1}}};
static const fed_step_row ADAFACTOR_ROW = {FED_STEP_ADAFACTOR, {0.1, -0.8, 1e-30, 1e-3, 1, 1}};
static const fed_step ADAM = {&ADAM_ROW, 1}, CLIP = {CLIP_ROWS, 2}, ADAFACTOR = {&ADAFACTOR_ROW, 1};
static const fed_step *const ALL_STEPS[] = {&PLAIN, &MOMENTUM, &CLIP, &ADAM, &GRADIENT, &ADAFACTOR};

enum { FEW_CLIENTS = 8, SHARED_EXAMPLES = 41 };

/* Sizes of clients and of batches just below and above a block of examples and the number of lanes.
 * A batch of 41 examples has blocks of more than the usual five examples. */
static void few_clients(const problem *p, fed_client *clients) {
    static const size_t batches[FEW_CLIENTS] = {70, 33, 13, 10, 5, 1, 6, 40};
    for (size_t c = 0; c < FEW_CLIENTS; c++) {
        clients[c] = client_of(p, batches[c]);
        clients[c].num_examples = SHARED_EXAMPLES - c * 5;
        clients[c].plan.shuffle_buffer = SIZE_MAX;
        clients[c].shuffle_key.client = clients[c].dropout_key.client = c;
    }
}

static int train_few(fed_team *team, const problem *p, const fed_step *step,
                     const fed_client *clients, size_t num_clients, int is_cancelled, double *delta,
                     fed_client_stats *stats) {
    atomic_int cancel = is_cancelled;
    fed_fault fault;
    double weight;
    fed_sum *sum = fed_sum_new_of(p->model);
    const fed_tensor all = {1, 0, p->model->num_params};
    const fed_tensors tensors = {&all, 1};
    const fed_terms terms = {.weighting = FED_WEIGHT_NUM_EXAMPLES, .tensors = &tensors};
    const int status = fed_train_cohort(team, p->model, step, p->params, clients, num_clients,
                                        &terms, &cancel, sum, stats, &fault);
    if (status == FED_OK && delta != NULL) fed_sum_total(sum, delta, &weight);
    fed_sum_free(sum);
    return status;
}

/* Trains a small cohort on each team, and compares with a new team of one thread. */
static void check_shared(fed_team *const *teams, size_t num_teams, const problem *p,
                         const fed_step *step, const fed_client *clients, size_t num_clients) {
    double *expected = naive_doubles(p->model->num_params);
    double *delta = naive_doubles(p->model->num_params);
    fed_client_stats expected_stats[FEW_CLIENTS] = {0}, stats[FEW_CLIENTS] = {0};
    fed_team *alone = fed_team_new(1);
    CHECK_EQUAL(train_few(alone, p, step, clients, num_clients, 0, expected, expected_stats),
                FED_OK);
    fed_team_free(alone);
    for (size_t i = 0; i < num_teams; i++) {
        CHECK_EQUAL(train_few(teams[i], p, step, clients, num_clients, 0, delta, stats), FED_OK);
        CHECK_BYTES(delta, expected, p->model->num_params * sizeof *delta);
        CHECK_BYTES(stats, expected_stats, sizeof stats);
    }
    free(expected);
    free(delta);
}

/* The same teams train one model after the other, so that values of an earlier model are left in
 * their memory. Without OpenMP all teams are alike. A step gets the complete gradient, however
 * threads have computed it, so each step is tested with only half of the stacks. */
static void test_threads_that_share_batches_change_no_byte(void) {
    fed_team *teams[] = {fed_team_new(3), fed_team_new(1), fed_team_new(7)};
    const size_t num_teams = fed_has_openmp() ? LENGTH(teams) : 1;
    size_t num_done = 0;
    for (size_t r = 0; r < LENGTH(ALL_STEPS); r += STRIDE)
        for (size_t s = r % 2; s < LENGTH(SHARED); s += 2 * STRIDE) {
            table t;
            build(&SHARED[s], &t);
            problem p = new_problem(&t.model, SHARED_EXAMPLES, 51);
            fed_client clients[FEW_CLIENTS];
            few_clients(&p, clients);
            const size_t num_clients = 1 + num_done++ % FEW_CLIENTS;
            check_shared(teams, num_teams, &p, ALL_STEPS[r], clients, num_clients);
            free_problem(&p);
        }
    for (size_t i = 0; i < LENGTH(teams); i++) fed_team_free(teams[i]);
}

/* This stack is too wide for a whole batch (fed_net_part_size): threads take parts of the batch,
 * and the last part is shorter. The last batch, of four examples, is one part. */
static const stack WIDE = {"a batch in parts",
                           {9, 10, 2},
                           {CONV(32, 3, 3, 1, 1, true, FED_RELU), DROP(0.3),
                            CONV(32, 3, 3, 1, 1, true, FED_TANH),
                            CONV(112, 1, 1, 1, 1, true, FED_TANH),
                            CONV(64, 3, 3, 4, 4, true, FED_RELU), FULL(5, FED_LINEAR)}};

static void test_threads_that_share_parts_of_batches_change_no_byte(void) {
    enum { BATCH = 13, NUM_EXAMPLES = 17 };
    table t;
    build(&WIDE, &t);
    fed_net net;
    CHECK_EQUAL(fed_net_init(&net, &t.model), FED_OK);
    const size_t part = fed_net_part_size(&net, BATCH, 1);
    fed_net_free(&net);
    CHECK(part >= NUM_EXAMPLES - BATCH && part < BATCH && BATCH % part != 0);
    fed_team *teams[] = {fed_team_new(3), fed_team_new(2), fed_team_new(7)};
    problem p = new_problem(&t.model, NUM_EXAMPLES, 55);
    fed_client client = client_of(&p, BATCH);
    client.plan.shuffle_buffer = SIZE_MAX;
    static const fed_step *const steps[] = {&MOMENTUM, &ADAFACTOR};
    for (size_t r = 0; r < LENGTH(steps); r += STRIDE)
        check_shared(teams, fed_has_openmp() ? LENGTH(teams) : 1, &p, steps[r], &client, 1);
    for (size_t i = 0; i < LENGTH(teams); i++) fed_team_free(teams[i]);
    free_problem(&p);
}

/* Trains one client on one batch. Then the team's first workspace must have room for exactly the
 * batch's memory, a velocity, the order of the examples and decoded images. */
static void check_batch_bytes(const fed_net *net, const problem *p, size_t batch_size,
                              int num_threads) {
    const size_t part = fed_net_part_size(net, batch_size, 1);
    const size_t num_part_workers = fed_smaller(fed_pieces(batch_size, part), (size_t)num_threads);
    fed_carver beside = {NULL, 0};
    fed_carve(&beside, net->size, sizeof(float));
    fed_carve(&beside, batch_size, sizeof(uint32_t));
    fed_carve(&beside, num_part_workers * part * fed_padded(p->model->num_inputs), sizeof(float));
    fed_client client = client_of(p, batch_size);
    client.num_examples = batch_size;
    client.plan.shuffle_buffer = SIZE_MAX;
    fed_client_stats stats;
    fed_team *team = fed_team_new(num_threads);
    CHECK_EQUAL(train_few(team, p, &MOMENTUM, &client, 1, 0, NULL, &stats), FED_OK);
    CHECK_EQUAL(team->workspaces[0].num_bytes,
                beside.used + fed_batch_bytes(p->model, batch_size, 1, num_threads));
    fed_team_free(team);
}

/* One instruction set is enough: all pad to the same number of lanes, so memory is the same. */
static void test_the_memory_of_a_batch_is_what_its_threads_reserve(void) {
    if (strcmp(fed_isa_name(), "generic") != 0) return;
    enum { MOST_EXAMPLES = 40 };
    static const int threads[] = {1, 2, 3, 7};
    table t;
    build(&WIDE, &t);
    fed_net net;
    CHECK_EQUAL(fed_net_init(&net, &t.model), FED_OK);
    problem p = new_problem(&t.model, MOST_EXAMPLES, 57);
    for (size_t i = 0; i < (fed_has_openmp() ? LENGTH(threads) : 1); i += STRIDE)
        for (size_t batch_size = 1; batch_size <= MOST_EXAMPLES; batch_size += 13 * STRIDE)
            check_batch_bytes(&net, &p, batch_size, threads[i]);
    /* Gradients are kept for the parts of a wave, not for all parts of a batch. */
    const size_t gradient = net.size * sizeof(float);
    const size_t growth = fed_batch_bytes(&t.model, 40, 1, 2) - fed_batch_bytes(&t.model, 20, 1, 2);
    CHECK(fed_net_part_size(&net, 40, 1) == fed_net_part_size(&net, 20, 1) && growth < gradient);
    const size_t once = fed_batch_bytes(&t.model, 10, 1, 1);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 10, 3, 3), 3 * once);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 10, 8, 3), 3 * once);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 0, 1, 1), 0);
    CHECK_EQUAL(fed_batch_bytes(&t.model, FED_MAX_BATCH + 1, 1, 1), 0);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 1, 0, 1), 0);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 1, 1, 0), 0);
    CHECK_EQUAL(fed_batch_bytes(&t.model, 1, 1, FED_MAX_THREADS + 1), 0);
    fed_net_free(&net);
    free_problem(&p);
}

static void test_prepared_clients_of_a_convolution_give_the_same_bytes(void) {
    fed_team *teams[] = {fed_team_new(1), fed_team_new(3)};
    table t;
    build(&SHARED[0], &t);
    problem p = new_problem(&t.model, SHARED_EXAMPLES, 61);
    fed_client clients[FEW_CLIENTS];
    few_clients(&p, clients);
    double *expected = naive_doubles(t.model.num_params);
    double *delta = naive_doubles(t.model.num_params);
    fed_client_stats stats[FEW_CLIENTS];
    CHECK_EQUAL(train_few(teams[0], &p, &PLAIN, clients, 2, 0, expected, stats), FED_OK);
    fed_prepared *prepared[2];
    for (size_t c = 0; c < LENGTH(prepared); c++)
        clients[c].prepared = prepared[c] = fed_prepare(&t.model, &clients[c]);
    for (size_t i = 0; i < LENGTH(teams); i++) {
        CHECK_EQUAL(train_few(teams[i], &p, &PLAIN, clients, 2, 0, delta, stats), FED_OK);
        CHECK_BYTES(delta, expected, t.model.num_params * sizeof *delta);
    }
    for (size_t c = 0; c < LENGTH(prepared); c++) fed_prepared_free(prepared[c]);
    for (size_t i = 0; i < LENGTH(teams); i++) fed_team_free(teams[i]);
    free(expected);
    free(delta);
    free_problem(&p);
}

/* A NaN of one client must not stay in the memory that the next client uses. */
static void test_a_bad_client_leaves_nothing_behind(void) {
    fed_team *team = fed_team_new(3);
    for (size_t s = 0; s < LENGTH(SHARED); s += STRIDE) {
        table t;
        build(&SHARED[s], &t);
        problem p = new_problem(&t.model, SHARED_EXAMPLES, 71), bad;
        bad = new_problem(&t.model, SHARED_EXAMPLES, 71);
        for (size_t i = 0; i < t.model.num_inputs; i++) bad.pixels[i] = i % 2 == 0 ? NAN : INFINITY;
        double *delta = naive_doubles(t.model.num_params);
        fed_client clients[FEW_CLIENTS];
        fed_client_stats stats[FEW_CLIENTS];
        few_clients(&bad, clients);
        CHECK_EQUAL(train_few(team, &bad, &PLAIN, clients, 1, 0, delta, stats), FED_OK);
        CHECK_EQUAL(stats[0].is_finite, 0);
        few_clients(&p, clients);
        check_shared(&team, 1, &p, &PLAIN, clients, 2);
        free(delta);
        free_problem(&p);
        free_problem(&bad);
    }
    fed_team_free(team);
}

static void test_flag_stops_threads_that_share_batches(void) {
    fed_team *team = fed_team_new(3);
    table t;
    build(&SHARED[0], &t);
    problem p = new_problem(&t.model, SHARED_EXAMPLES, 81);
    fed_client clients[FEW_CLIENTS];
    fed_client_stats stats[FEW_CLIENTS];
    few_clients(&p, clients);
    CHECK_EQUAL(train_few(team, &p, &PLAIN, clients, 2, 1, NULL, stats), FED_ERR_CANCELLED);
    check_shared(&team, 1, &p, &PLAIN, clients, 2);
    fed_team_free(team);
    free_problem(&p);
}

static const test_case TESTS[] = {
    TEST(test_threads_change_no_byte),
    TEST(test_threads_that_share_batches_change_no_byte),
    TEST(test_threads_that_share_parts_of_batches_change_no_byte),
    TEST(test_the_memory_of_a_batch_is_what_its_threads_reserve),
    TEST(test_prepared_clients_of_a_convolution_give_the_same_bytes),
    TEST(test_a_bad_client_leaves_nothing_behind),
    TEST(test_flag_stops_threads_that_share_batches),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
