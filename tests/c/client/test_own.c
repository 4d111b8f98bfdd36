/* SPDX-License-Identifier: Apache-2.0
 * The inputs and outputs of a single client in a round (fed_own), and a learning rate with a factor
 * for each local step. Results are compared with a softmax regression in double. */
#include "fixtures.h"

enum { INPUTS = 37, CLASSES = 5, PARAMS = (INPUTS + 1) * CLASSES, CLIENTS = 11, MAX_EXAMPLES = 40 };

static const fed_layer LAYER = DENSE(INPUTS, CLASSES, 0, FED_LINEAR);
static const fed_model MODEL = {&LAYER, 1, INPUTS, CLASSES, PARAMS};
static const size_t SIZES[CLIENTS] = {12, 0, 40, 1, 7, 33, 20, 5, 9, 31, 2};
enum { BATCH_SIZE = 8, MAX_STEPS = 2 * MAX_EXAMPLES / BATCH_SIZE };

static const fed_step_row SGD_ROW = {FED_STEP_SGD, {0.1}};
static const fed_step PLAIN = {&SGD_ROW, 1};
static const fed_step_row LINEAR_ROWS[] = {{FED_STEP_LINEAR, {0}}, {FED_STEP_SGD, {0.1}}};
static const fed_step LINEAR = {LINEAR_ROWS, 2};
static const fed_step_row ANCHOR_ROWS[] = {
    {FED_STEP_ANCHOR, {0}}, {FED_STEP_LINEAR, {0}}, {FED_STEP_SGD, {0.1}}};
static const fed_step ANCHOR = {ANCHOR_ROWS, 3};
static const fed_step_row GRADIENT_ROW = {FED_STEP_GRADIENT, {0}};
static const fed_step GRADIENT = {&GRADIENT_ROW, 1};

typedef struct problem {
    float server[PARAMS];
    float pixels[CLIENTS][MAX_EXAMPLES * INPUTS];
    int32_t labels[CLIENTS][MAX_EXAMPLES];
    float linear[CLIENTS][PARAMS], deltas[CLIENTS][PARAMS];
    fed_own own[CLIENTS];
    fed_client clients[CLIENTS];
} problem;

static problem prob;
static double total[PARAMS], weight;
static fed_client_stats stats[CLIENTS];
static atomic_int cancel;
static fed_fault fault;

/* With fixed_pixels most pixels are the same in all images, so plain SGD trains a narrow layer. */
static void set_problem(int fixed_pixels) {
    memset(&prob, 0, sizeof prob);
    fill_floats(1, 0.5, prob.server, PARAMS);
    for (size_t c = 0; c < CLIENTS; c++) {
        fill_floats(10 + c, 1, prob.pixels[c], SIZES[c] * INPUTS);
        for (size_t i = 0; fixed_pixels && i < SIZES[c] * INPUTS; i++)
            if (i % INPUTS < 28) prob.pixels[c][i] = 0.75f;
        fill_labels(30 + c, CLASSES, prob.labels[c], SIZES[c]);
        fill_floats(50 + c, 0.3, prob.linear[c], PARAMS);
        prob.own[c] =
            (fed_own){.linear = prob.linear[c], .delta = prob.deltas[c], .delta_factor = 1};
        prob.clients[c] = (fed_client){.pixels = prob.pixels[c],
                                       .pixel_type = FED_PIXELS_FLOAT32,
                                       .scale = 1,
                                       .labels = prob.labels[c],
                                       .num_examples = SIZES[c],
                                       .plan = {FED_REPEAT_SHUFFLE, 2, BATCH_SIZE, 1, SIZE_MAX},
                                       .own = &prob.own[c]};
    }
}

static const float CLASS_WEIGHTS[CLASSES] = {0.5f, 0, 3, 1, 0.25f};

static int train(int num_threads, const fed_step *step, const fed_terms *terms) {
    fed_team *team = fed_team_new(num_threads);
    fed_sum *sum = fed_sum_new_of(&MODEL);
    CHECK(team != NULL && sum != NULL);
    const int status = fed_train_cohort(team, &MODEL, step, prob.server, prob.clients, CLIENTS,
                                        terms, &cancel, sum, stats, &fault);
    if (status == FED_OK) fed_sum_total(sum, total, &weight);
    fed_sum_free(sum);
    fed_team_free(team);
    return status;
}

static const fed_terms UNIFORM = {.weighting = FED_WEIGHT_UNIFORM};

/* ---- The reference --------------------------------------------------------------------------- */

/* Adds factor times the gradient of one example's loss. */
static void add_gradient(const float *pixels, int32_t label, const double *params, double factor,
                         double *gradient) {
    double inputs[INPUTS], logits[CLASSES];
    for (size_t i = 0; i < INPUTS; i++) inputs[i] = (double)pixels[i];
    reference_logits(&MODEL, params, inputs, logits);
    const double largest = logits[reference_argmax(logits, CLASSES)];
    const double sum = reference_exp_sum(logits, CLASSES);
    for (size_t k = 0; k < CLASSES; k++) {
        const double g = factor * (exp(logits[k] - largest) / sum - ((int32_t)k == label));
        for (size_t i = 0; i < INPUTS; i++) gradient[i * CLASSES + k] += g * inputs[i];
        gradient[INPUTS * CLASSES + k] += g;
    }
}

/* Moves parameters to at most max_distance from the server's; 0: does not change them. */
static void reference_project(double *params, const double *server, double max_distance) {
    double squares = 0;
    for (size_t p = 0; p < PARAMS; p++)
        squares += (params[p] - server[p]) * (params[p] - server[p]);
    if (max_distance == 0 || sqrt(squares) <= max_distance) return;
    for (size_t p = 0; p < PARAMS; p++)
        params[p] = server[p] + (params[p] - server[p]) * max_distance / sqrt(squares);
}

/* Computes a client's delta after its local steps, with rate 0.1 times the factors. factors and
 * class_weights may be NULL. */
static void reference_delta(size_t c, int has_linear, int has_anchor, const double *factors,
                            const float *class_weights, double *delta /* out [PARAMS] */) {
    double params[PARAMS], server[PARAMS];
    for (size_t p = 0; p < PARAMS; p++) params[p] = server[p] = (double)prob.server[p];
    const size_t num_visits = 2 * SIZES[c];
    for (size_t first = 0, step = 0; first < num_visits; first += BATCH_SIZE, step++) {
        const size_t left = num_visits - first, num = left < BATCH_SIZE ? left : BATCH_SIZE;
        double gradient[PARAMS] = {0};
        for (size_t v = first; v < first + num; v++) {
            const float *pixels = prob.pixels[c] + v % SIZES[c] * INPUTS;
            const int32_t label = prob.labels[c][v % SIZES[c]];
            const double share =
                (class_weights != NULL ? (double)class_weights[label] : 1) / (double)num;
            add_gradient(pixels, label, params, share, gradient);
            if (has_anchor) add_gradient(pixels, label, server, -share, gradient);
        }
        const double rate = 0.1 * (factors != NULL ? factors[step] : 1);
        for (size_t p = 0; p < PARAMS; p++)
            params[p] -= rate * (gradient[p] + (has_linear ? (double)prob.linear[c][p] : 0));
        /* An epoch ends in the batch that has its last example, and so does the training. */
        const size_t last = first + BATCH_SIZE;
        if (last >= num_visits || last / SIZES[c] > first / SIZES[c])
            reference_project(params, server, prob.own[c].max_distance);
    }
    for (size_t p = 0; p < PARAMS; p++) delta[p] = params[p] - server[p];
}

/* Checks that every client's delta, and their sum, equal the reference's. */
static void check_weighted_deltas(const fed_step *step, int has_linear, int has_anchor,
                                  const double *factors, const float *class_weights) {
    const fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM,
                             .class_weights = class_weights,
                             .rate_factors = factors,
                             .num_rate_factors = factors != NULL ? MAX_STEPS : 0};
    CHECK_EQUAL(train(2, step, &terms), FED_OK);
    double sum[PARAMS] = {0};
    for (size_t c = 0; c < CLIENTS; c++) {
        double delta[PARAMS];
        reference_delta(c, has_linear, has_anchor, factors, class_weights, delta);
        for (size_t p = 0; p < PARAMS; p++) {
            CHECK_CLOSE(prob.deltas[c][p], delta[p], 2e-6); /* ten roundings of parameters < 1 */
            sum[p] += prob.own[c].delta_factor * delta[p];
        }
    }
    for (size_t p = 0; p < PARAMS; p++) CHECK_CLOSE(total[p], sum[p], 2e-5);
}

static void check_deltas(const fed_step *step, int has_linear, int has_anchor,
                         const double *factors) {
    check_weighted_deltas(step, has_linear, has_anchor, factors, NULL);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void test_deltas_come_back_in_flat_order(void) {
    for (int fixed = 0; fixed < 2; fixed++) {
        set_problem(fixed);
        check_deltas(&PLAIN, 0, 0, NULL);
    }
}

static void test_linear_terms_are_each_clients_own(void) {
    for (int fixed = 0; fixed < 2; fixed++) {
        set_problem(fixed);
        check_deltas(&LINEAR, 1, 0, NULL);
    }
}

static void test_no_linear_term_is_zeros(void) {
    set_problem(0);
    for (size_t c = 0; c < CLIENTS; c++) prob.own[c].linear = NULL;
    check_deltas(&LINEAR, 0, 0, NULL);
    for (size_t c = 0; c < CLIENTS; c++) prob.clients[c].own = NULL;
    CHECK_EQUAL(train(1, &LINEAR, &UNIFORM), FED_OK);
}

static void test_an_anchor_takes_the_servers_gradient_off(void) {
    for (int fixed = 0; fixed < 2; fixed++) {
        set_problem(fixed);
        check_deltas(&ANCHOR, 1, 1, NULL);
    }
}

static void test_metrics_are_not_the_anchors(void) {
    set_problem(0);
    CHECK_EQUAL(train(1, &PLAIN, &UNIFORM), FED_OK);
    /* The sum of an example's losses in two steps; the first loss is before any update. */
    const double loss = stats[3].loss_sum;
    prob.clients[3].plan.epochs = 1;
    CHECK_EQUAL(train(1, &ANCHOR, &UNIFORM), FED_OK);
    CHECK_EQUAL(stats[3].num_examples, 1);
    CHECK(stats[3].loss_sum > 0 && stats[3].loss_sum < loss);
}

static void test_class_weights_multiply_the_losses_of_every_kind_of_step(void) {
    for (int fixed = 0; fixed < 2; fixed++) {
        set_problem(fixed);
        check_weighted_deltas(&PLAIN, 0, 0, NULL, CLASS_WEIGHTS);
        check_weighted_deltas(&LINEAR, 1, 0, NULL, CLASS_WEIGHTS);
        check_weighted_deltas(&ANCHOR, 1, 1, NULL, CLASS_WEIGHTS);
    }
}

static void test_mean_gradients_are_of_the_weighted_losses(void) {
    const fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM, .class_weights = CLASS_WEIGHTS};
    set_problem(0);
    CHECK_EQUAL(train(2, &GRADIENT, &terms), FED_OK);
    double params[PARAMS];
    for (size_t p = 0; p < PARAMS; p++) params[p] = (double)prob.server[p];
    for (size_t c = 0; c < CLIENTS; c++) {
        double gradient[PARAMS] = {0};
        for (size_t e = 0; e < SIZES[c]; e++) {
            const int32_t label = prob.labels[c][e];
            const double share = (double)CLASS_WEIGHTS[label] / (double)SIZES[c];
            add_gradient(prob.pixels[c] + e * INPUTS, label, params, -share, gradient);
        }
        for (size_t p = 0; p < PARAMS; p++) CHECK_CLOSE(prob.deltas[c][p], gradient[p], 2e-6);
    }
}

static void test_bad_class_weights_are_refused(void) {
    const float bad[] = {NAN, INFINITY, -0.5f};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        set_problem(0);
        float weights[CLASSES] = {1, 1, 1, 1, bad[i]};
        const fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM, .class_weights = weights};
        CHECK_EQUAL(train(1, &PLAIN, &terms), FED_ERR_ARGUMENT);
    }
}

static void test_factors_multiply_deltas_in_the_sum(void) {
    set_problem(0);
    for (size_t c = 0; c < CLIENTS; c++) prob.own[c].delta_factor = 0.25 * (double)c;
    check_deltas(&PLAIN, 0, 0, NULL);
    CHECK(weight == CLIENTS - 1); /* the weight of the empty client is 0; factors do not change the
                                     other weights */
}

static void test_bad_factors_are_refused(void) {
    const double bad[] = {NAN, INFINITY, -1};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        set_problem(0);
        prob.own[2].delta_factor = bad[i];
        CHECK_EQUAL(train(1, &PLAIN, &UNIFORM), FED_ERR_ARGUMENT);
    }
}

static void test_each_epoch_ends_within_the_largest_distance(void) {
    static const fed_step *const steps[] = {&PLAIN, &LINEAR, &ANCHOR};
    for (size_t s = 0; s < LENGTH(steps); s++)
        for (int fixed = 0; fixed < 2; fixed++) {
            set_problem(fixed);
            for (size_t c = 0; c < CLIENTS; c++) prob.own[c].max_distance = 0.05 * (double)c;
            check_deltas(steps[s], s > 0, s > 1, NULL);
            size_t num_moved = 0;
            for (size_t c = 1; c < CLIENTS; c++) {
                double squares = 0;
                for (size_t p = 0; p < PARAMS; p++)
                    squares += (double)prob.deltas[c][p] * (double)prob.deltas[c][p];
                CHECK(sqrt(squares) <= prob.own[c].max_distance * (1 + 1e-6));
                num_moved += sqrt(squares) > 0.999 * prob.own[c].max_distance;
            }
            CHECK(num_moved > 3); /* so the bound had an effect */
        }
}

static void test_bad_largest_distances_are_refused(void) {
    const double bad[] = {NAN, -1};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        set_problem(0);
        prob.own[2].max_distance = bad[i];
        CHECK_EQUAL(train(1, &PLAIN, &UNIFORM), FED_ERR_ARGUMENT);
    }
}

/* With every kind of step, a client with its own start trains as if the server's parameters were
 * this start. */
static void test_a_start_of_its_own_is_the_servers_to_a_client(void) {
    static const fed_step *const steps[] = {&PLAIN, &LINEAR, &ANCHOR, &GRADIENT};
    static float starts[CLIENTS][PARAMS], wanted[CLIENTS][PARAMS];
    for (size_t c = 0; c < CLIENTS; c++) fill_floats(70 + c, 0.5, starts[c], PARAMS);
    for (size_t s = 0; s < LENGTH(steps); s++)
        for (int fixed = 0; fixed < 2; fixed++) {
            for (size_t c = 0; c < CLIENTS; c++) {
                set_problem(fixed);
                memcpy(prob.server, starts[c], sizeof prob.server);
                CHECK_EQUAL(train(1, steps[s], &UNIFORM), FED_OK);
                memcpy(wanted[c], prob.deltas[c], sizeof wanted[c]);
            }
            for (int num_threads = 1; num_threads <= 7; num_threads += 3) {
                set_problem(fixed);
                for (size_t c = 0; c < CLIENTS; c++) {
                    prob.own[c].start = starts[c];
                    prob.own[c].delta_factor = 0;
                }
                CHECK_EQUAL(train(num_threads, steps[s], &UNIFORM), FED_OK);
                for (size_t c = 0; c < CLIENTS; c++)
                    CHECK_BYTES(prob.deltas[c], wanted[c], sizeof wanted[c]);
                for (size_t p = 0; p < PARAMS; p++) CHECK(total[p] == 0);
                CHECK(weight == CLIENTS - 1);
            }
        }
}

static void evaluate(int num_threads) {
    fed_team *team = fed_team_new(num_threads);
    CHECK(team != NULL);
    CHECK_EQUAL(
        fed_evaluate(team, &MODEL, prob.server, prob.clients, CLIENTS, &cancel, stats, &fault),
        FED_OK);
    fed_team_free(team);
}

static void test_clients_are_scored_at_their_own_starts(void) {
    static float starts[CLIENTS][PARAMS];
    fed_client_stats wanted[CLIENTS];
    set_problem(0);
    for (size_t c = 0; c < CLIENTS; c++) {
        fill_floats(70 + c, 0.5, starts[c], PARAMS);
        if (c % 3 == 2) memcpy(starts[c], prob.server, sizeof prob.server);
    }
    for (size_t c = 0; c < CLIENTS; c++) {
        set_problem(0);
        memcpy(prob.server, starts[c], sizeof prob.server);
        evaluate(1);
        wanted[c] = stats[c];
    }
    for (int num_threads = 1; num_threads <= 7; num_threads += 3) {
        set_problem(0);
        for (size_t c = 0; c < CLIENTS; c++) {
            prob.own[c].delta_factor = 0;
            if (c % 3 != 2) prob.own[c].start = starts[c]; /* others: the server's */
        }
        evaluate(num_threads);
        CHECK_BYTES(stats, wanted, sizeof stats);
    }
}

static void test_the_sum_is_of_differences_from_the_server_wherever_clients_start(void) {
    static float starts[CLIENTS][PARAMS];
    static double first[PARAMS];
    for (size_t c = 0; c < CLIENTS; c++) fill_floats(70 + c, 0.5, starts[c], PARAMS);
    for (int fixed = 0; fixed < 2; fixed++)
        for (int num_threads = 1; num_threads <= 7; num_threads += 3) {
            set_problem(fixed);
            for (size_t c = 0; c < CLIENTS; c++) {
                memcpy(starts[c], prob.server, PARAMS / 2 * sizeof(float)); /* as the server's */
                prob.own[c].delta_factor = 0.5 * (double)(c % 3);
                if (c != 4) prob.own[c].start = starts[c];
            }
            CHECK_EQUAL(train(num_threads, &PLAIN, &UNIFORM), FED_OK);
            for (size_t p = 0; p < PARAMS; p++) {
                double sum = 0;
                for (size_t c = 0; c < CLIENTS; c++) {
                    const double own = c == 4 ? prob.server[p] : starts[c][p];
                    const double moved = SIZES[c] > 0 ? own + prob.deltas[c][p] : prob.server[p];
                    sum += prob.own[c].delta_factor * (moved - prob.server[p]);
                }
                CHECK_CLOSE(total[p], sum, 2e-6);
            }
            if (num_threads == 1) memcpy(first, total, sizeof first);
            CHECK_BYTES(total, first, sizeof first);
        }
}

static void test_rates_follow_their_factors_step_by_step(void) {
    double factors[MAX_STEPS];
    for (size_t s = 0; s < MAX_STEPS; s++) factors[s] = 1 / (1 + (double)s);
    factors[3] = 0;
    for (int fixed = 0; fixed < 2; fixed++) {
        set_problem(fixed);
        check_deltas(&PLAIN, 0, 0, factors);
        check_deltas(&LINEAR, 1, 0, factors);
    }
}

/* ---- Steps of affine_step.c give the same results as step.c ---------------------------------- */

enum { MOST_ROWS = 4 };
#define LINEAR_ROW {FED_STEP_LINEAR, {0}}
#define ANCHOR_ROW {FED_STEP_ANCHOR, {0}}

static const struct {
    fed_step_row rows[MOST_ROWS];
    size_t num_rows;
    int is_frozen;
} DRIFTS[] = {
    {{LINEAR_ROW, {FED_STEP_SGD, {0.1}}}, 2, 0},
    {{{FED_STEP_PROXIMAL, {0.7}}, {FED_STEP_SGD, {0.1}}}, 2, 0},
    {{{FED_STEP_PROXIMAL, {0.7}}, LINEAR_ROW, {FED_STEP_SGD, {0.1}}}, 3, 0},
    {{ANCHOR_ROW, LINEAR_ROW, {FED_STEP_SGD, {0.1}}}, 3, 0},
    {{{FED_STEP_SGD, {0.1, 0.9}}}, 1, 1},
    {{{FED_STEP_SGD, {0.1, 0.9, 1}}}, 1, 1},
    {{ANCHOR_ROW, LINEAR_ROW, {FED_STEP_SGD, {0.1, 0.9}}}, 3, 1},
    {{{FED_STEP_PROXIMAL, {0.7}}, LINEAR_ROW, LINEAR_ROW, {FED_STEP_SGD, {0.1, 0.5, 1}}}, 4, 1},
};

/* A bound that no gradient exceeds. With it, affine_step.c does not compute the step, but the
 * result must be the same. */
static const fed_step_row NO_BOUND = {FED_STEP_CLIP, {1e30}};

static void check_affine_step(size_t d, const fed_terms *terms) {
    static float deltas[CLIENTS][PARAMS];
    CHECK_EQUAL(train(2, &(fed_step){DRIFTS[d].rows, DRIFTS[d].num_rows}, terms), FED_OK);
    memcpy(deltas, prob.deltas, sizeof deltas);
    fed_step_row rows[1 + MOST_ROWS] = {NO_BOUND};
    memcpy(rows + 1, DRIFTS[d].rows, sizeof DRIFTS[d].rows);
    CHECK_EQUAL(train(2, &(fed_step){rows, 1 + DRIFTS[d].num_rows}, terms), FED_OK);
    for (size_t c = 0; c < CLIENTS; c++)
        for (size_t p = 0; p < PARAMS; p++) /* ten steps, each with two rounding errors of
                                               parameters up to 4 */
            CHECK_CLOSE(deltas[c][p], prob.deltas[c][p], 5e-6);
}

static void test_affine_steps_are_their_rows_steps(void) {
    float slots[PARAMS];
    double factors[MAX_STEPS];
    fill_floats(70, 0.5, slots, PARAMS);
    for (size_t s = 0; s < MAX_STEPS; s++) factors[s] = 1 / (1 + (double)s);
    for (size_t d = 0; d < LENGTH(DRIFTS); d++)
        for (int fixed = 0; fixed < 2; fixed++) {
            set_problem(fixed);
            fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM,
                               .frozen_slots = DRIFTS[d].is_frozen ? slots : NULL,
                               .frozen_step_num = 1};
            check_affine_step(d, &terms);
            terms.rate_factors = factors;
            terms.num_rate_factors = MAX_STEPS;
            check_affine_step(d, &terms);
        }
}

static void test_too_few_or_bad_rate_factors_are_refused(void) {
    set_problem(0);
    double factors[MAX_STEPS];
    for (size_t s = 0; s < MAX_STEPS; s++) factors[s] = 1;
    fed_terms terms = {.weighting = FED_WEIGHT_UNIFORM,
                       .rate_factors = factors,
                       .num_rate_factors = MAX_STEPS - 1};
    CHECK_EQUAL(train(1, &PLAIN, &terms), FED_ERR_ARGUMENT);
    terms.num_rate_factors = MAX_STEPS;
    CHECK_EQUAL(train(1, &PLAIN, &terms), FED_OK);
    const double bad[] = {NAN, -0.1, 1.1};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        factors[4] = bad[i];
        CHECK_EQUAL(train(1, &PLAIN, &terms), FED_ERR_ARGUMENT);
    }
}

/* If a gradient of 0.1 were added to a parameter of a million in float32, it would lose almost all
 * of its digits. So the two must not be added before the step. */
static void test_gradients_keep_their_digits_beside_large_parameters(void) {
    set_problem(0);
    for (size_t c = 0; c < CLIENTS; c++)
        for (size_t e = 0; e < SIZES[c]; e++) prob.pixels[c][e * INPUTS] = 0;
    float small[PARAMS];
    memcpy(small, prob.server, sizeof small);
    double expected[PARAMS];
    CHECK_EQUAL(train(2, &GRADIENT, &UNIFORM), FED_OK);
    memcpy(expected, total, sizeof expected);
    for (size_t k = 0; k < CLASSES; k++) prob.server[k] = 1e6f; /* weights of the pixel that is 0 */
    for (size_t k = 0; k < CLASSES; k++) prob.server[INPUTS * CLASSES + k] += 1024;
    CHECK_EQUAL(train(2, &GRADIENT, &UNIFORM), FED_OK);
    /* Logits near 1024 have rounding errors of up to 6e-5. */
    for (size_t p = 0; p < PARAMS; p++) CHECK_CLOSE(total[p], expected[p], 1e-3);
    for (size_t p = 0; p < CLASSES; p++) CHECK(total[p] == 0);
}

static void test_deltas_that_are_not_finite_are_left_alone(void) {
    set_problem(0);
    prob.pixels[4][0] = NAN;
    for (size_t p = 0; p < PARAMS; p++) prob.deltas[4][p] = 7;
    CHECK_EQUAL(train(2, &PLAIN, &UNIFORM), FED_OK);
    CHECK_EQUAL(stats[4].is_finite, 0);
    for (size_t p = 0; p < PARAMS; p++) CHECK(prob.deltas[4][p] == 7);
}

static void test_threads_change_no_byte(void) {
    double first[PARAMS];
    float deltas[CLIENTS][PARAMS];
    static const int threads[] = {1, 2, 7};
    for (size_t t = 0; t < LENGTH(threads); t++) {
        set_problem(0);
        CHECK_EQUAL(train(threads[t], &ANCHOR, &UNIFORM), FED_OK);
        if (t == 0) {
            memcpy(first, total, sizeof first);
            memcpy(deltas, prob.deltas, sizeof deltas);
        }
        CHECK(memcmp(first, total, sizeof first) == 0);
        CHECK(memcmp(deltas, prob.deltas, sizeof deltas) == 0);
    }
}

static void test_a_lone_step_has_no_second_gradient(void) {
    float params[2] = {0}, gradient[2] = {0};
    CHECK_EQUAL(fed_step_apply(&ANCHOR, NULL, 1, 2, params, params, NULL, gradient, NULL),
                FED_ERR_ARGUMENT);
}

static const test_case TESTS[] = {
    TEST(test_deltas_come_back_in_flat_order),
    TEST(test_linear_terms_are_each_clients_own),
    TEST(test_no_linear_term_is_zeros),
    TEST(test_an_anchor_takes_the_servers_gradient_off),
    TEST(test_metrics_are_not_the_anchors),
    TEST(test_class_weights_multiply_the_losses_of_every_kind_of_step),
    TEST(test_mean_gradients_are_of_the_weighted_losses),
    TEST(test_bad_class_weights_are_refused),
    TEST(test_factors_multiply_deltas_in_the_sum),
    TEST(test_bad_factors_are_refused),
    TEST(test_each_epoch_ends_within_the_largest_distance),
    TEST(test_bad_largest_distances_are_refused),
    TEST(test_a_start_of_its_own_is_the_servers_to_a_client),
    TEST(test_clients_are_scored_at_their_own_starts),
    TEST(test_the_sum_is_of_differences_from_the_server_wherever_clients_start),
    TEST(test_rates_follow_their_factors_step_by_step),
    TEST(test_affine_steps_are_their_rows_steps),
    TEST(test_too_few_or_bad_rate_factors_are_refused),
    TEST(test_gradients_keep_their_digits_beside_large_parameters),
    TEST(test_deltas_that_are_not_finite_are_left_alone),
    TEST(test_threads_change_no_byte),
    TEST(test_a_lone_step_has_no_second_gradient),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
