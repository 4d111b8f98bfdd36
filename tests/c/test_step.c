/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of step.c: which tables are refused, and the forms of SGD against values worked out by
 * hand.
 */
#include "fixtures.h"

static const float LEARNING_RATE = 0.1f;
static const float GRADIENTS[] = {0.5f, -0.25f, 1.0f};

static int check_sgd(float learning_rate, float momentum, float nesterov) {
    const fed_step_row row = {FED_STEP_SGD, {learning_rate, momentum, nesterov}};
    return fed_step_check(&(fed_step){&row, 1});
}

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

static void test_only_one_row_without_momentum_is_plain_sgd(void) {
    const fed_step_row rows[] = {{FED_STEP_SGD, {0.25f}}, {FED_STEP_SGD, {0.1f, 0.9f}}};
    float learning_rate = 0;
    CHECK(fed_step_is_plain_sgd(&(fed_step){rows, 1}, &learning_rate));
    CHECK(learning_rate == 0.25f);
    CHECK(!fed_step_is_plain_sgd(&(fed_step){rows, 2}, &learning_rate));
    CHECK(!fed_step_is_plain_sgd(&(fed_step){rows + 1, 1}, &learning_rate));
}

static void test_refused_step_moves_nothing(void) {
    const fed_step_row row = {FED_STEP_SGD, {NAN}};
    float params[] = {1, 2}, gradient[] = {3, 4};
    const float server[] = {0, 0};
    CHECK_EQUAL(fed_step_apply(&(fed_step){&row, 1}, 2, params, server, gradient, NULL),
                FED_ERR_ARGUMENT);
    CHECK(params[0] == 1 && params[1] == 2);
}

/* ---- Steps ----------------------------------------------------------------------------------- */

/* From 1, three steps on each of num_params equal coordinates; the values after each step by hand,
 * in double. Four roundings of numbers near 1 a step make 1e-6 ample for three steps. */
static void check_steps(float momentum, float nesterov, const double *expected) {
    enum { MAX_PARAMS = 37 };
    const fed_step_row row = {FED_STEP_SGD, {LEARNING_RATE, momentum, nesterov}};
    const fed_step step = {&row, 1};
    const float server[MAX_PARAMS] = {0};
    for (size_t num_params = 0; num_params < MAX_PARAMS; num_params++) {
        float params[MAX_PARAMS], slots[MAX_PARAMS] = {0}, gradient[MAX_PARAMS];
        for (size_t p = 0; p < MAX_PARAMS; p++) params[p] = 1;
        for (size_t s = 0; s < LENGTH(GRADIENTS); s++) {
            for (size_t p = 0; p < num_params; p++) gradient[p] = GRADIENTS[s];
            CHECK_EQUAL(fed_step_apply(&step, num_params, params, server, gradient,
                                       momentum > 0 ? slots : NULL),
                        FED_OK);
            for (size_t p = 0; p < num_params; p++) CHECK_CLOSE(params[p], expected[s], 1e-6);
            for (size_t p = num_params; p < MAX_PARAMS; p++) CHECK(params[p] == 1 && slots[p] == 0);
        }
    }
}

static void test_sgd_equals_hand_worked_steps(void) {
    check_steps(0, 0, (const double[]){0.95, 0.975, 0.875});
}

static void test_momentum_equals_hand_worked_steps(void) {
    check_steps(0.9f, 0, (const double[]){0.95, 0.93, 0.812});
}

static void test_nesterov_equals_hand_worked_steps(void) {
    check_steps(0.9f, 1, (const double[]){0.905, 0.912, 0.7058});
}

/* Both rows see the same gradient; each keeps its own slot. */
static void test_rows_act_in_turn_with_slots_of_their_own(void) {
    const fed_step_row rows[] = {{FED_STEP_SGD, {1, 0.5f}}, {FED_STEP_SGD, {1, 0.25f}}};
    const float server[2] = {0};
    float params[2] = {0}, slots[4] = {0};
    for (int s = 0; s < 2; s++) {
        float gradient[2] = {1, 2};
        CHECK_EQUAL(fed_step_apply(&(fed_step){rows, 2}, 2, params, server, gradient, slots),
                    FED_OK);
    }
    CHECK(slots[0] == 1.5f && slots[1] == 3 && slots[2] == 1.25f && slots[3] == 2.5f);
    CHECK(params[0] == -4.75f && params[1] == -9.5f);
}

static const test_case TESTS[] = {
    TEST(test_sgd_within_its_ranges_is_accepted),
    TEST(test_bad_learning_rates_are_refused),
    TEST(test_bad_momenta_are_refused),
    TEST(test_bad_nesterov_is_refused),
    TEST(test_nesterov_without_momentum_is_refused),
    TEST(test_unknown_kinds_are_refused),
    TEST(test_empty_table_is_refused),
    TEST(test_every_row_is_checked),
    TEST(test_only_momentum_needs_a_slot),
    TEST(test_only_one_row_without_momentum_is_plain_sgd),
    TEST(test_refused_step_moves_nothing),
    TEST(test_sgd_equals_hand_worked_steps),
    TEST(test_momentum_equals_hand_worked_steps),
    TEST(test_nesterov_equals_hand_worked_steps),
    TEST(test_rows_act_in_turn_with_slots_of_their_own),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
