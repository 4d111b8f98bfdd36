/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of step.c: which tables are refused, and the steps of every optimizer, compared with known
 * values.
 */
#include "fixtures.h"

static const double LEARNING_RATE = 0.1;
static const float GRADIENTS[] = {0.5f, -0.25f, 1.0f};

static int check_row(const fed_step_row *row) { return fed_step_check(&(fed_step){row, 1}); }

static int check_sgd(float learning_rate, float momentum, float nesterov) {
    return check_row(&(fed_step_row){FED_STEP_SGD, {learning_rate, momentum, nesterov}});
}

/* A row of every kind except SGD, LINEAR and ANCHOR, with the range of each option. 'a': an amount,
 * from 0 to the largest float; 's': a share, from 0 to 1; 'f': a flag, 0 or 1; 'p': an amount above
 * 0; 'n': a negative amount. */
static const struct {
    fed_step_row row;
    const char *ranges;
    size_t num_slots;
} KINDS[] = {
    {{FED_STEP_PROXIMAL, {0.1}}, "a", 0},
    {{FED_STEP_DECAY, {0.1}}, "a", 0},
    {{FED_STEP_ADAM, {0.1, 0.9, 0.999, 1e-7, 1}}, "assaf", 2},
    {{FED_STEP_ADAMW, {0.1, 0.9, 0.999, 1e-7, 0, 0.004}}, "assafa", 2},
    {{FED_STEP_YOGI, {0.1, 0.9, 0.999, 1e-3, 0, 1e-6}}, "assafa", 2},
    {{FED_STEP_ADAGRAD, {0.1, 1e-7, 1, 0.1}}, "aafa", 1},
    {{FED_STEP_RMSPROP, {0.1, 0.9, 1e-7}}, "asa", 1},
    {{FED_STEP_GRADIENT, {0}}, "", 0},
    {{FED_STEP_CLIP, {1.5}}, "p", 0},
    {{FED_STEP_ADAFACTOR, {0.1, -0.8, 1e-30, 1e-3, 1, 1}}, "anpapf", 2},
};

/* Checks the row of a kind with one option set to the value, or to minus the value if the option
 * must be negative. */
static int check_with(size_t kind, size_t option, double value) {
    fed_step_row row = KINDS[kind].row;
    row.options[option] = KINDS[kind].ranges[option] == 'n' ? -value : value;
    return check_row(&row);
}

static int is_above_0(char range) { return range == 'p' || range == 'n'; }

/* ---- Tables ---------------------------------------------------------------------------------- */

static void test_sgd_within_its_ranges_is_accepted(void) {
    CHECK_EQUAL(check_sgd(0, 0, 0), FED_OK);
    CHECK_EQUAL(check_sgd(1e30f, 0, 0), FED_OK);
    CHECK_EQUAL(check_sgd(0.1f, 1, 0), FED_OK);
    CHECK_EQUAL(check_sgd(0.1f, 0.9f, 1), FED_OK);
}

static void test_bad_learning_rates_are_refused(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY, -0.1f, -1e-30f};
    for (size_t i = 0; i < LENGTH(bad); i++) CHECK_EQUAL(check_sgd(bad[i], 0, 0), FED_ERR_ARGUMENT);
}

static void test_bad_momenta_are_refused(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY, -0.1f, 1.0001f};
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(check_sgd(0.1f, bad[i], 0), FED_ERR_ARGUMENT);
}

static void test_bad_nesterov_is_refused(void) {
    const float bad[] = {NAN, INFINITY, -1, 0.5f, 2};
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(check_sgd(0.1f, 0.9f, bad[i]), FED_ERR_ARGUMENT);
}

static void test_nesterov_without_momentum_is_refused(void) {
    CHECK_EQUAL(check_sgd(0.1f, 0, 1), FED_ERR_ARGUMENT);
}

static void test_options_within_their_ranges_are_accepted(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t o = 0; KINDS[k].ranges[o] != 0; o++) {
            const int is_amount = KINDS[k].ranges[o] == 'a' || is_above_0(KINDS[k].ranges[o]);
            if (!is_above_0(KINDS[k].ranges[o])) CHECK_EQUAL(check_with(k, o, 0), FED_OK);
            CHECK_EQUAL(check_with(k, o, 1), FED_OK);
            if (is_amount) CHECK_EQUAL(check_with(k, o, 3e38), FED_OK);
            if (KINDS[k].ranges[o] != 'f') CHECK_EQUAL(check_with(k, o, 0.5), FED_OK);
        }
}

static void test_options_out_of_range_are_refused(void) {
    const double bad[] = {NAN, INFINITY, -INFINITY, -0.1, -1e-300, 1e39};
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t o = 0; KINDS[k].ranges[o] != 0; o++) {
            for (size_t i = 0; i < LENGTH(bad); i++)
                CHECK_EQUAL(check_with(k, o, bad[i]), FED_ERR_ARGUMENT);
            if (KINDS[k].ranges[o] == 's' || KINDS[k].ranges[o] == 'f')
                CHECK_EQUAL(check_with(k, o, 1.0001), FED_ERR_ARGUMENT);
            if (is_above_0(KINDS[k].ranges[o])) CHECK_EQUAL(check_with(k, o, 0), FED_ERR_ARGUMENT);
            if (KINDS[k].ranges[o] == 'f') CHECK_EQUAL(check_with(k, o, 0.5), FED_ERR_ARGUMENT);
        }
}

static void test_each_kind_has_its_slots(void) {
    CHECK_EQUAL(LENGTH(KINDS) + 3,
                FED_NUM_STEP_KINDS); /* SGD, LINEAR and ANCHOR have tests of their own */
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        CHECK_EQUAL(fed_step_slots(&(fed_step){&KINDS[k].row, 1}), KINDS[k].num_slots);
}

/* Slots start at 0, except the preconditioners of Yogi and Adagrad. */
static void test_slots_start_at_the_rows_initial_values(void) {
    const fed_step_row rows[] = {{FED_STEP_PROXIMAL, {0.1}},
                                 {FED_STEP_SGD, {0.1, 0.9}},
                                 {FED_STEP_YOGI, {0.1, 0.9, 0.999, 1e-3, 0, 0.25}},
                                 {FED_STEP_ADAM, {0.1, 0.9, 0.999, 1e-7}},
                                 {FED_STEP_ADAGRAD, {0.1, 1e-7, 0, 0.5}},
                                 {FED_STEP_RMSPROP, {0.1, 0.9, 1e-7}}};
    const float expected[] = {0, 0, 0.25f, 0, 0, 0.5f, 0};
    enum { NUM_SLOTS = LENGTH(expected), NUM_PARAMS = 3 };
    float slots[NUM_SLOTS * NUM_PARAMS + 1];
    for (size_t i = 0; i < LENGTH(slots); i++) slots[i] = -1;
    const fed_step step = {rows, LENGTH(rows)};
    CHECK_EQUAL(fed_step_slots(&step), NUM_SLOTS);
    fed_step_init_slots(&step, NUM_PARAMS, slots);
    for (size_t i = 0; i < NUM_SLOTS * NUM_PARAMS; i++) CHECK(slots[i] == expected[i / NUM_PARAMS]);
    CHECK(slots[NUM_SLOTS * NUM_PARAMS] == -1);
}

/* Steps with momentum stay in the span of the gradients; steps that divide each coordinate by its
 * own number leave the span. */
static void test_only_what_adds_gradients_keeps_the_span(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        const int32_t kind = KINDS[k].row.kind;
        CHECK_EQUAL(fed_step_keeps_span(&(fed_step){&KINDS[k].row, 1}),
                    kind == FED_STEP_PROXIMAL || kind == FED_STEP_GRADIENT ||
                        kind == FED_STEP_CLIP);
    }
    const fed_step_row rows[] = {{FED_STEP_PROXIMAL, {0.1}}, {FED_STEP_SGD, {0.1, 0.9}}};
    CHECK(fed_step_keeps_span(&(fed_step){rows, 2}));
    const fed_step_row mixed[] = {{FED_STEP_PROXIMAL, {0.1}}, {FED_STEP_RMSPROP, {0.1, 0.9, 1e-7}}};
    CHECK(!fed_step_keeps_span(&(fed_step){mixed, 2}));
}

static void test_unknown_kinds_are_refused(void) {
    const int32_t bad[] = {-1, FED_NUM_STEP_KINDS, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        const fed_step_row row = {bad[i], {0.1f}};
        CHECK_EQUAL(fed_step_check(&(fed_step){&row, 1}), FED_ERR_ARGUMENT);
    }
}

static void test_empty_table_is_refused(void) {
    const fed_step_row row = {FED_STEP_SGD, {0.1f}};
    CHECK_EQUAL(fed_step_check(&(fed_step){&row, 0}), FED_ERR_ARGUMENT);
}

static void test_every_row_is_checked(void) {
    const fed_step_row rows[] = {{FED_STEP_SGD, {0.1f}}, {FED_STEP_SGD, {NAN}}};
    CHECK_EQUAL(fed_step_check(&(fed_step){rows, 1}), FED_OK);
    CHECK_EQUAL(fed_step_check(&(fed_step){rows, 2}), FED_ERR_ARGUMENT);
}

static void test_only_momentum_needs_a_slot(void) {
    const fed_step_row rows[] = {
        {FED_STEP_SGD, {0.1f}}, {FED_STEP_SGD, {0.1f, 0.9f}}, {FED_STEP_SGD, {0.1f, 0.9f, 1}}};
    CHECK_EQUAL(fed_step_slots(&(fed_step){rows, 1}), 0);
    CHECK_EQUAL(fed_step_slots(&(fed_step){rows + 1, 1}), 1);
    CHECK_EQUAL(fed_step_slots(&(fed_step){rows, 3}), 2);
}

static int is_affine(const fed_step_row *rows, size_t num_rows, const fed_frozen *frozen) {
    fed_affine_step affine;
    return fed_affine_init(&affine, &(fed_step){rows, num_rows}, frozen, NULL);
}

static void test_affine_steps_are_sgd_with_terms_that_are_linear(void) {
    const fed_step_row sgd = {FED_STEP_SGD, {0.25}}, momentum = {FED_STEP_SGD, {0.1, 0.9}};
    const float slots[1] = {0};
    const fed_frozen frozen = {slots, 1};
    CHECK(is_affine(&sgd, 1, NULL));
    CHECK(!is_affine(&momentum, 1, NULL));
    CHECK(is_affine(&momentum, 1, &frozen));
    CHECK(!is_affine((const fed_step_row[]){sgd, sgd}, 2, NULL));
    CHECK(is_affine((const fed_step_row[]){{FED_STEP_PROXIMAL, {2}}, sgd}, 2, NULL));
    CHECK(!is_affine((const fed_step_row[]){{FED_STEP_PROXIMAL, {2.01}}, sgd}, 2, NULL));
    CHECK(is_affine((const fed_step_row[]){{FED_STEP_LINEAR, {0}}, sgd}, 2, NULL));
    CHECK(!is_affine((const fed_step_row[]){{FED_STEP_CLIP, {1}}, sgd}, 2, NULL));
    for (size_t k = 0; k < LENGTH(KINDS); k++) CHECK(!is_affine(&KINDS[k].row, 1, NULL));
}

static void test_the_gradient_stands_alone(void) {
    const fed_step_row rows[] = {{FED_STEP_PROXIMAL, {0.1}}, {FED_STEP_GRADIENT, {0}}};
    CHECK_EQUAL(fed_step_check(&(fed_step){rows + 1, 1}), FED_OK);
    CHECK_EQUAL(fed_step_check(&(fed_step){rows, 2}), FED_ERR_ARGUMENT);
    CHECK(fed_step_is_gradient(&(fed_step){rows + 1, 1}));
    CHECK(!fed_step_is_gradient(&(fed_step){rows, 1}));
}

static void test_refused_step_moves_nothing(void) {
    const fed_step_row row = {FED_STEP_SGD, {NAN}};
    float params[] = {1, 2}, gradient[] = {3, 4};
    const float server[] = {0, 0};
    CHECK_EQUAL(
        fed_step_apply(&(fed_step){&row, 1}, NULL, 1, 2, params, server, NULL, gradient, NULL),
        FED_ERR_ARGUMENT);
    const fed_step_row good = {FED_STEP_SGD, {0.1}};
    CHECK_EQUAL(
        fed_step_apply(&(fed_step){&good, 1}, NULL, 0, 2, params, server, NULL, gradient, NULL),
        FED_ERR_ARGUMENT);
    CHECK(params[0] == 1 && params[1] == 2);
}

/* ---- Steps ----------------------------------------------------------------------------------- */

enum { MAX_PARAMS = 37, MAX_SLOTS = 2 };
static const float UNTOUCHED = -7;

/* Takes three steps on num_params coordinates that all start at 1, and compares the values after
 * each step. Each step has a few rounding errors of numbers near 1, so 1e-6 is ample. */
static void check_num_steps(const fed_step *step, size_t num_params, const double *expected) {
    const float server[MAX_PARAMS] = {0};
    float params[MAX_PARAMS], slots[MAX_SLOTS * MAX_PARAMS], gradient[MAX_PARAMS];
    const size_t num_values = fed_step_slots(step) * num_params;
    for (size_t p = 0; p < MAX_PARAMS; p++) params[p] = 1;
    for (size_t i = 0; i < LENGTH(slots); i++) slots[i] = UNTOUCHED;
    fed_step_init_slots(step, num_params, slots);
    for (size_t s = 0; s < LENGTH(GRADIENTS); s++) {
        for (size_t p = 0; p < num_params; p++) gradient[p] = GRADIENTS[s];
        CHECK_EQUAL(fed_step_apply(step, NULL, s + 1, num_params, params, server, NULL, gradient,
                                   fed_step_slots(step) > 0 ? slots : NULL),
                    FED_OK);
        for (size_t p = 0; p < num_params; p++) CHECK_CLOSE(params[p], expected[s], 1e-6);
        for (size_t p = num_params; p < MAX_PARAMS; p++) CHECK(params[p] == 1);
        for (size_t i = num_values; i < LENGTH(slots); i++) CHECK(slots[i] == UNTOUCHED);
    }
}

static void check_steps(fed_step_row row, const double *expected) {
    for (size_t num_params = 0; num_params <= MAX_PARAMS; num_params++)
        check_num_steps(&(fed_step){&row, 1}, num_params, expected);
}

static void test_sgd_equals_hand_worked_steps(void) {
    check_steps((fed_step_row){FED_STEP_SGD, {LEARNING_RATE}},
                (const double[]){0.95, 0.975, 0.875});
}

static void test_momentum_equals_hand_worked_steps(void) {
    check_steps((fed_step_row){FED_STEP_SGD, {LEARNING_RATE, 0.9}},
                (const double[]){0.95, 0.93, 0.812});
}

static void test_nesterov_equals_hand_worked_steps(void) {
    check_steps((fed_step_row){FED_STEP_SGD, {LEARNING_RATE, 0.9, 1}},
                (const double[]){0.905, 0.912, 0.7058});
}

/* The following values are computed in double by TFF's rules, those of the reddi forms by the rules
 * of the paper. */
static void test_adam_equals_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_ADAM, {LEARNING_RATE, 0.9, 0.999, 1e-7}},
                (const double[]){0.900000632, 0.873367079, 0.807556101});
}

static void test_adamw_equals_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_ADAMW, {LEARNING_RATE, 0.9, 0.999, 1e-7, 0, 0.004}},
                (const double[]){0.899600632, 0.872607239, 0.806447218});
}

static void test_yogi_equals_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_YOGI, {LEARNING_RATE, 0.9, 0.999, 1e-3, 0, 1e-6}},
                (const double[]){0.906124755, 0.880965171, 0.816959219});
}

static void test_adagrad_equals_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_ADAGRAD, {LEARNING_RATE, 1e-7, 0, 0.1}},
                (const double[]){0.915484587, 0.954409529, 0.870268900});
}

static void test_rmsprop_equals_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_RMSPROP, {LEARNING_RATE, 0.9, 1e-7}},
                (const double[]){0.683772434, 0.831214303, 0.549356453});
}

static void test_reddi_forms_equal_known_steps(void) {
    check_steps((fed_step_row){FED_STEP_ADAM, {LEARNING_RATE, 0.9, 0.999, 1e-7, 1}},
                (const double[]){0.683774234, 0.570592507, 0.244812676});
    check_steps((fed_step_row){FED_STEP_YOGI, {LEARNING_RATE, 0.9, 0.999, 1e-3, 1, 1e-6}},
                (const double[]){0.703140410, 0.596222450, 0.279377925});
    check_steps((fed_step_row){FED_STEP_ADAGRAD, {LEARNING_RATE, 1e-7, 1, 0.1}},
                (const double[]){0.915484589, 0.954409530, 0.870268905});
}

/* mu = 0.5 from server parameters of 0 adds half of params to each gradient. */
static void test_proximal_term_equals_hand_worked_steps(void) {
    const fed_step_row rows[] = {{FED_STEP_PROXIMAL, {0.5}}, {FED_STEP_SGD, {LEARNING_RATE}}};
    for (size_t num_params = 0; num_params <= MAX_PARAMS; num_params++)
        check_num_steps(&(fed_step){rows, 2}, num_params, (const double[]){0.9, 0.88, 0.736});
}

/* A proximal term pulls to the server's parameters, and decay pulls to 0. If the server's
 * parameters are 0, both agree. */
static void test_decay_equals_a_proximal_term_from_zero(void) {
    const fed_step_row rows[] = {{FED_STEP_DECAY, {0.5}}, {FED_STEP_SGD, {LEARNING_RATE}}};
    for (size_t num_params = 0; num_params <= MAX_PARAMS; num_params++)
        check_num_steps(&(fed_step){rows, 2}, num_params, (const double[]){0.9, 0.88, 0.736});
}

/* A matrix whose squares are represented exactly by rows and columns, and a vector. Each coordinate
 * moves by the rate times the size of its tensor. */
static void test_adafactor_equals_hand_worked_tensors(void) {
    static const fed_tensor each[] = {{1, 2, 2}, {1, 0, 3}};
    static const fed_tensors tensors = {each, 2};
    const fed_step_row row = {FED_STEP_ADAFACTOR, {0.1, -0.8, 1e-30, 1e-3, 1, 1}};
    const float server[7] = {0};
    float params[] = {2, -2, 2, 2, 0, 0, 0}, gradient[] = {1, 2, -2, 4, 5, -6, 0};
    float slots[14] = {0};
    CHECK_EQUAL(
        fed_step_apply(&(fed_step){&row, 1}, &tensors, 1, 7, params, server, NULL, gradient, slots),
        FED_OK);
    const double expected[] = {1.8, -2.2, 2.2, 1.8, -1e-4, 1e-4, 0};
    for (size_t p = 0; p < 7; p++) CHECK_CLOSE((double)params[p], expected[p], 1e-7);
    const double means[] = {2.5, 10, 0, 0, 25, 36, 1e-30, 2.5, 10, 0, 0, 0, 0, 0};
    for (size_t s = 0; s < 14; s++) CHECK_CLOSE((double)slots[s], means[s], 1e-6 * means[s]);
}

static void test_adafactor_takes_all_parameters_as_tensors(void) {
    static const fed_tensor all[] = {{2, 1, 2}, {1, 0, 1}}, huge[] = {{2, SIZE_MAX / 2, 3}};
    const fed_tensors choices[] = {{all, 2}, {all, 1}, {all, 0}, {huge, 1}};
    const fed_step_row row = {FED_STEP_ADAFACTOR, {0.1, -0.8, 1e-30, 1e-3, 1, 1}};
    const fed_step step = {&row, 1}, plain = {&KINDS[0].row, 1};
    for (size_t i = 0; i < LENGTH(choices); i++)
        CHECK(fed_step_takes_tensors(&step, &choices[i], 5) == (i == 0));
    CHECK(!fed_step_takes_tensors(&step, NULL, 5));
    CHECK(fed_step_takes_tensors(&plain, NULL, 5));
}

/* Clips a gradient to norm 5: SGD of rate 1 from 0 moves by minus the clipped gradient. */
static void clipped(size_t num_params, const float *gradient, float *result /* out [P] */) {
    const fed_step_row rows[] = {{FED_STEP_CLIP, {5}}, {FED_STEP_SGD, {1}}};
    float params[MAX_PARAMS + 1] = {0}, scratch[MAX_PARAMS];
    const float server[MAX_PARAMS] = {0};
    params[num_params] = UNTOUCHED;
    memcpy(scratch, gradient, num_params * sizeof(float));
    CHECK_EQUAL(fed_step_apply(&(fed_step){rows, 2}, NULL, 1, num_params, params, server, NULL,
                               scratch, NULL),
                FED_OK);
    CHECK(params[num_params] == UNTOUCHED);
    for (size_t p = 0; p < num_params; p++) result[p] = -params[p];
}

/* The norm is that of all coordinates together, for any number of coordinates. */
static void test_clipping_scales_long_gradients_to_the_norm(void) {
    for (size_t num_params = 1; num_params <= MAX_PARAMS; num_params++) {
        float gradient[MAX_PARAMS], result[MAX_PARAMS];
        double sum_of_squares = 0, clipped_sum = 0;
        for (size_t p = 0; p < num_params; p++) {
            gradient[p] = p % 2 == 0 ? 7 + (float)p : -(float)p;
            sum_of_squares += (double)gradient[p] * (double)gradient[p];
        }
        clipped(num_params, gradient, result);
        const double factor = 5 / sqrt(sum_of_squares);
        for (size_t p = 0; p < num_params; p++) {
            CHECK_CLOSE(result[p], (double)gradient[p] * factor, 1e-6);
            clipped_sum += (double)result[p] * (double)result[p];
        }
        CHECK_CLOSE(sqrt(clipped_sum), 5, 5e-6);
    }
}

static void test_clipping_leaves_short_gradients_alone(void) {
    float result[3];
    clipped(3, (const float[]){3, 0, -4}, result); /* exactly as long as allowed */
    CHECK(result[0] == 3 && result[1] == 0 && result[2] == -4);
    clipped(3, (const float[]){0, 0, 0}, result);
    CHECK(result[0] == 0 && result[1] == 0 && result[2] == 0);
    clipped(0, (const float[]){1}, result);
    clipped(3, (const float[]){3, 0, -4.01f}, result); /* a little longer */
    CHECK(result[0] < 3 && result[1] == 0 && result[2] > -4.01f);
}

/* Squares that exceed float are summed in double. */
static void test_clipping_holds_the_largest_gradients(void) {
    float result[2];
    clipped(2, (const float[]){3e38f, -3e38f}, result);
    CHECK_CLOSE(result[0], 5 / sqrt(2), 1e-6);
    CHECK_CLOSE(result[1], -5 / sqrt(2), 1e-6);
}

static void test_clipping_lets_what_is_not_finite_through(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < LENGTH(bad); i++)
        for (size_t at = 0; at < MAX_PARAMS; at++) {
            float gradient[MAX_PARAMS], result[MAX_PARAMS];
            for (size_t p = 0; p < MAX_PARAMS; p++) gradient[p] = p == at ? bad[i] : 1;
            clipped(MAX_PARAMS, gradient, result);
            CHECK(isnan(result[at]));
            if (isnan(bad[i])) CHECK(result[(at + 1) % MAX_PARAMS] == 1);
        }
}

/* Rows act in order: a term that comes after is not clipped. */
static void test_a_proximal_term_is_added_to_the_clipped_gradient(void) {
    const fed_step_row rows[] = {
        {FED_STEP_CLIP, {5}}, {FED_STEP_PROXIMAL, {2}}, {FED_STEP_SGD, {1}}};
    float params[] = {100, 0}, gradient[] = {30, 40};
    const float server[] = {0, 0};
    CHECK_EQUAL(
        fed_step_apply(&(fed_step){rows, 3}, NULL, 1, 2, params, server, NULL, gradient, NULL),
        FED_OK);
    CHECK_CLOSE(params[0], 100 - 3 - 200, 1e-5);
    CHECK_CLOSE(params[1], -4, 1e-6);
}

/* Rows act in order: decay 0.5 of the parameters, then the linear term, if there is one. */
static void test_a_linear_term_is_added_after_decay(void) {
    const fed_step_row rows[] = {
        {FED_STEP_CLIP, {5}}, {FED_STEP_DECAY, {0.5}}, {FED_STEP_LINEAR, {0}}, {FED_STEP_SGD, {1}}};
    const float server[] = {0, 0}, linear[] = {7, -9}, *const terms[] = {NULL, linear};
    for (size_t i = 0; i < LENGTH(terms); i++) {
        float params[] = {100, 0}, gradient[] = {30, 40};
        CHECK_EQUAL(fed_step_apply(&(fed_step){rows, 4}, NULL, 1, 2, params, server, terms[i],
                                   gradient, NULL),
                    FED_OK);
        CHECK_CLOSE(params[0], 100 - 3 - 50 - (i == 1 ? 7 : 0), 1e-5);
        CHECK_CLOSE(params[1], -4 + (i == 1 ? 9 : 0), 1e-6);
    }
}

/* Both rows see the same gradient; each keeps its own slot. */
static void test_rows_act_in_turn_with_slots_of_their_own(void) {
    const fed_step_row rows[] = {{FED_STEP_SGD, {1, 0.5f}}, {FED_STEP_SGD, {1, 0.25f}}};
    const float server[2] = {0};
    float params[2] = {0}, slots[4] = {0};
    for (int s = 0; s < 2; s++) {
        float gradient[2] = {1, 2};
        CHECK_EQUAL(
            fed_step_apply(&(fed_step){rows, 2}, NULL, 1, 2, params, server, NULL, gradient, slots),
            FED_OK);
    }
    CHECK(slots[0] == 1.5f && slots[1] == 3 && slots[2] == 1.25f && slots[3] == 2.5f);
    CHECK(params[0] == -4.75f && params[1] == -9.5f);
}

/* 1e-30 * 1e-10 is a denormal, which the training loop treats as zero. */
static void test_denormals_are_zero_in_a_step(void) {
#if defined(__x86_64__) || defined(__aarch64__)
    const fed_step_row row = {FED_STEP_SGD, {1e-30f}};
    float param = 0, server_param = 0, gradient = 1e-10f;
    CHECK(LENGTH(row.options) > 0 && 1e-30f * gradient != 0);
    CHECK_EQUAL(fed_step_apply(&(fed_step){&row, 1}, NULL, 1, 1, &param, &server_param, NULL,
                               &gradient, NULL),
                FED_OK);
    CHECK(param == 0);
    CHECK(1e-30f * gradient != 0); /* outside the core they are not zero */
#else
    printf("skip: mode is not touched here\n");
#endif
}

static const test_case TESTS[] = {
    TEST(test_sgd_within_its_ranges_is_accepted),
    TEST(test_bad_learning_rates_are_refused),
    TEST(test_bad_momenta_are_refused),
    TEST(test_bad_nesterov_is_refused),
    TEST(test_nesterov_without_momentum_is_refused),
    TEST(test_options_within_their_ranges_are_accepted),
    TEST(test_options_out_of_range_are_refused),
    TEST(test_each_kind_has_its_slots),
    TEST(test_slots_start_at_the_rows_initial_values),
    TEST(test_only_what_adds_gradients_keeps_the_span),
    TEST(test_unknown_kinds_are_refused),
    TEST(test_empty_table_is_refused),
    TEST(test_every_row_is_checked),
    TEST(test_only_momentum_needs_a_slot),
    TEST(test_affine_steps_are_sgd_with_terms_that_are_linear),
    TEST(test_the_gradient_stands_alone),
    TEST(test_refused_step_moves_nothing),
    TEST(test_sgd_equals_hand_worked_steps),
    TEST(test_momentum_equals_hand_worked_steps),
    TEST(test_nesterov_equals_hand_worked_steps),
    TEST(test_adam_equals_known_steps),
    TEST(test_adamw_equals_known_steps),
    TEST(test_yogi_equals_known_steps),
    TEST(test_adagrad_equals_known_steps),
    TEST(test_rmsprop_equals_known_steps),
    TEST(test_reddi_forms_equal_known_steps),
    TEST(test_proximal_term_equals_hand_worked_steps),
    TEST(test_decay_equals_a_proximal_term_from_zero),
    TEST(test_adafactor_equals_hand_worked_tensors),
    TEST(test_adafactor_takes_all_parameters_as_tensors),
    TEST(test_clipping_scales_long_gradients_to_the_norm),
    TEST(test_clipping_leaves_short_gradients_alone),
    TEST(test_clipping_holds_the_largest_gradients),
    TEST(test_clipping_lets_what_is_not_finite_through),
    TEST(test_a_proximal_term_is_added_to_the_clipped_gradient),
    TEST(test_a_linear_term_is_added_after_decay),
    TEST(test_rows_act_in_turn_with_slots_of_their_own),
    TEST(test_denormals_are_zero_in_a_step),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
