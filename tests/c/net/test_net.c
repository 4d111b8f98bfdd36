/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole networks. First the gradients of the naive network in double are compared with central
 * differences of its loss, for each kind of layer. Then the core is compared with the naive
 * network, through the public functions, on every instruction set: one gradient, some local steps,
 * and scores.
 */
#include "net/net.h"
#include "stacks.h"

/* ---- The naive network ----------------------------------------------------------------------- */

/* Central differences with steps of 1e-6 have two errors: 1e-12 times a third derivative, and 1e-16
 * / 1e-6 of the loss. Both are far below 1e-7. No relu or max may switch within a step. */
static void check_naive(const stack *s, size_t num_examples) {
    table t;
    build(s, &t);
    problem p = new_problem(&t.model, num_examples, 11);
    naive_net net = naive_new(&t.model, num_examples);
    naive_draw_masks(&net, &DROPOUT_KEY, 0);
    double *gradient = naive_doubles(t.model.num_params);
    const double loss = naive_gradient(&net, p.wide, p.pixels, p.labels, gradient);
    CHECK_CLOSE(naive_loss(&net, p.wide, p.pixels, p.labels), loss, 0);
    CHECK(net.margin.smallest > 1e-4);
    const double h = 1e-6;
    for (size_t i = 0; i < t.model.num_params; i++) {
        const double before = p.wide[i];
        p.wide[i] = before + h;
        const double up = naive_loss(&net, p.wide, p.pixels, p.labels);
        p.wide[i] = before - h;
        const double down = naive_loss(&net, p.wide, p.pixels, p.labels);
        p.wide[i] = before;
        const double slope = (up - down) / (2 * h * (double)num_examples);
        CHECK_CLOSE(gradient[i], slope, 1e-7);
    }
    free(gradient);
    naive_free(&net);
    free_problem(&p);
}

static void test_the_naive_gradient_equals_central_differences(void) {
    for (size_t s = 0; s < LENGTH(SMALL); s++) check_naive(&SMALL[s], 3);
}

/* ---- The core against it --------------------------------------------------------------------- */

static fed_client_stats train(const problem *p, const fed_step *step, size_t batch_size,
                              double *delta) {
    const fed_client client = client_of(p, batch_size);
    atomic_int cancel = 0;
    fed_client_stats stats;
    fed_fault fault;
    double weight;
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(p->model);
    CHECK_EQUAL(fed_train_cohort(team, p->model, step, p->params, &client, 1,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 &stats, &fault),
                FED_OK);
    fed_sum_total(sum, delta, &weight);
    CHECK(stats.is_finite);
    fed_sum_free(sum);
    fed_team_free(team);
    return stats;
}

/* Trains the naive network on the batches in order; momentum 0 is plain SGD. Returns the sum of the
 * losses, and writes the delta. */
static double naive_train(const problem *p, double momentum, size_t batch_size, double *delta,
                          naive_margin *margin) {
    const fed_model *model = p->model;
    double *params = naive_doubles(model->num_params), *slot = naive_doubles(model->num_params);
    double *gradient = naive_doubles(model->num_params), loss = 0;
    memcpy(params, p->wide, model->num_params * sizeof(*params));
    for (size_t first = 0; first < p->num_examples; first += batch_size) {
        const size_t left = p->num_examples - first;
        naive_net net = naive_new(model, left < batch_size ? left : batch_size);
        naive_draw_masks(&net, &DROPOUT_KEY, first);
        loss += naive_gradient(&net, params, p->pixels + first * model->num_inputs,
                               p->labels + first, gradient);
        for (size_t i = 0; i < model->num_params; i++) {
            slot[i] = momentum * slot[i] + gradient[i];
            params[i] -= RATE * slot[i];
        }
        naive_note(margin, net.margin.smallest);
        naive_free(&net);
    }
    for (size_t i = 0; i < model->num_params; i++) delta[i] = params[i] - p->wide[i];
    free(params);
    free(slot);
    free(gradient);
    return loss;
}

/* Each entry of a layer may be off by `share` of the layer's largest entry, plus a rounding error
 * of the parameters. */
static void check_delta(const problem *p, const char *name, const double *delta, double factor,
                        const double *expected, double share) {
    for (size_t l = 0; l < p->model->num_layers; l++) {
        const fed_layer *layer = &p->model->layers[l];
        double largest = 0, param = 0;
        for (size_t i = 0; i < num_layer_params(layer); i++) {
            largest = fmax(largest, fabs(expected[layer->offset + i]));
            param = fmax(param, fabs(p->wide[layer->offset + i]));
        }
        const double tolerance = share * largest + 4 * UNIT_ROUNDOFF * param;
        for (size_t i = layer->offset; i < layer->offset + num_layer_params(layer); i++) {
            const bool holds = fabs(factor * delta[i] - expected[i]) <= tolerance;
            if (!holds)
                fprintf(stderr, "%s: layer %zu, parameter %zu\n", name, l, i - layer->offset);
            CHECK_CLOSE(factor * delta[i], expected[i], tolerance);
        }
    }
}

static bool is_on_background(const stack *s) {
    return s >= ON_BACKGROUND && s < ON_BACKGROUND + LENGTH(ON_BACKGROUND);
}

/* Makes problems until one has no near-ties. At a near-tie float32 may rightly decide differently,
 * because values have errors of some 1e-7. */
static problem clear_problem(const stack *s, const fed_model *model, size_t num_examples,
                             size_t batch_size, double momentum, double *delta, double *loss) {
    for (uint64_t seed = 21;; seed += 1000) {
        naive_margin margin = {INFINITY};
        problem p = new_problem(model, num_examples, seed);
        if (is_on_background(s)) draw_background(s, &p);
        *loss = naive_train(&p, momentum, batch_size, delta, &margin);
        if (margin.smallest > 2e-6) return p;
        free_problem(&p);
        if (seed > 100000) fprintf(stderr, "near-ties everywhere: %s\n", s->name);
        CHECK(seed <= 100000);
    }
}

/* A gradient entry is a sum of products, each of which has the rounding errors of its factors. The
 * error is some sqrt(terms) * depth * 6e-8 of the largest entries, up to 1e-5 for the largest of
 * these stacks. A wrong tap, border or mask gives errors of 1e-2. */
static void check_gradient(const stack *s, size_t num_examples) {
    table t;
    build(s, &t);
    double *expected = naive_doubles(t.model.num_params);
    double *delta = naive_doubles(t.model.num_params), loss;
    problem p = clear_problem(s, &t.model, num_examples, num_examples, 0, expected, &loss);
    static const fed_step *const steps[] = {&GRADIENT, &PLAIN, &MOMENTUM};
    for (size_t i = 0; i < LENGTH(steps); i++) {
        const fed_client_stats stats = train(&p, steps[i], num_examples, delta);
        check_delta(&p, s->name, delta, i == 0 ? RATE : 1, expected, 2e-5);
        CHECK_CLOSE(stats.loss_sum, loss, 1e-5 * (loss + (double)num_examples));
        CHECK_EQUAL(stats.num_examples, num_examples);
    }
    free(expected);
    free(delta);
    free_problem(&p);
}

static void test_gradients_of_small_nets_equal_the_naive_ones(void) {
    static const size_t counts[] = {1, 2, 7, 33};
    for (size_t s = 0; s < LENGTH(SMALL); s++)
        for (size_t i = 0; i < LENGTH(counts); i++) check_gradient(&SMALL[s], counts[i]);
}

static void test_gradients_of_large_nets_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(LARGE); s++) {
        check_gradient(&LARGE[s], 1);
        check_gradient(&LARGE[s], 5);
    }
}

/* The second convolution computes once what sees only background. */
static void test_gradients_of_images_with_background_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(ON_BACKGROUND); s++) {
        check_gradient(&ON_BACKGROUND[s], 1);
        check_gradient(&ON_BACKGROUND[s], 6);
    }
}

/* Three local steps, the last with a smaller batch; the stream of masks continues from step to
 * step. Errors of a step affect the next steps, so the tolerance is wider. */
static void check_local_steps(const stack *s, double momentum) {
    table t;
    build(s, &t);
    double *expected = naive_doubles(t.model.num_params);
    double *delta = naive_doubles(t.model.num_params), loss;
    problem p = clear_problem(s, &t.model, 8, 3, momentum, expected, &loss);
    const fed_client_stats stats = train(&p, momentum > 0 ? &MOMENTUM : &PLAIN, 3, delta);
    check_delta(&p, s->name, delta, 1, expected, 2e-4);
    CHECK_CLOSE(stats.loss_sum, loss, 1e-4 * (loss + 8));
    CHECK_EQUAL(stats.num_batches, 3);
    free(expected);
    free(delta);
    free_problem(&p);
}

static void test_local_steps_of_small_nets_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(SMALL); s++) {
        check_local_steps(&SMALL[s], 0);
        check_local_steps(&SMALL[s], 0.9);
    }
}

/* ---- Scores ---------------------------------------------------------------------------------- */

/* Scores are computed without dropout and do not depend on the batches. */
static void check_scores(const stack *s, size_t num_examples) {
    table t;
    build(s, &t);
    problem p = new_problem(&t.model, num_examples, 31);
    if (is_on_background(s)) draw_background(s, &p);
    naive_net net = naive_new(&t.model, num_examples);
    const fed_client client = client_of(&p, 4);
    atomic_int cancel = 0;
    fed_client_stats stats;
    fed_fault fault;
    double loss = 0;
    int64_t num_correct = 0;
    for (size_t e = 0; e < num_examples; e++) {
        const double *logits = naive_logits(&net, p.wide, p.pixels, e);
        loss += reference_loss(logits, t.model.num_classes, p.labels[e]);
        num_correct += reference_argmax(logits, t.model.num_classes) == (size_t)p.labels[e];
    }
    fed_team *team = fed_team_new(1);
    CHECK_EQUAL(fed_evaluate(team, &t.model, p.params, &client, 1, &cancel, &stats, &fault),
                FED_OK);
    CHECK_CLOSE(stats.loss_sum, loss, 1e-5 * (loss + (double)num_examples));
    CHECK_EQUAL(stats.num_correct, num_correct);
    CHECK_EQUAL(stats.num_examples, num_examples);
    fed_team_free(team);
    naive_free(&net);
    free_problem(&p);
}

static void test_scores_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(SMALL); s++) check_scores(&SMALL[s], 70);
    for (size_t s = 0; s < LENGTH(LARGE); s++) check_scores(&LARGE[s], 5);
    for (size_t s = 0; s < LENGTH(ON_BACKGROUND); s++) check_scores(&ON_BACKGROUND[s], 5);
}

/* ---- Stages that run by example -------------------------------------------------------------- */

static fed_net net_named(const char *name, table *t) {
    fed_net net = {0};
    for (size_t s = 0; s < LENGTH(LARGE); s++) {
        if (strcmp(LARGE[s].name, name) != 0) continue;
        build(&LARGE[s], t);
        CHECK_EQUAL(fed_net_init(&net, &t->model), FED_OK);
    }
    CHECK(net.num_stages > 0);
    return net;
}

/* The stages end before the first one with many parameters. Later stages read only the last of
 * their values. Outputs of norms are not kept inside these stages, unless the norm's own input is
 * not kept. */
static void test_leading_stages_with_large_images_run_by_example(void) {
    table t;
    fed_net net = net_named("wide, behind large images with norms", &t);
    CHECK_EQUAL(net.num_example_stages, 6);
    for (size_t v = 0; v <= net.num_stages; v++)
        CHECK_EQUAL(net.values[v].is_kept, v != 2 && v != 4);
    fed_net_free(&net);
    net = net_named("wide, behind large images with a norm behind a norm", &t);
    CHECK_EQUAL(net.num_example_stages, 5);
    for (size_t v = 0; v <= net.num_stages; v++) CHECK_EQUAL(net.values[v].is_kept, v != 2);
    fed_net_free(&net);
    net = net_named("wide, behind large images that are read again later", &t);
    CHECK_EQUAL(net.num_example_stages, 2);
    fed_net_free(&net);
    net = net_named("wide residual blocks", &t);
    CHECK_EQUAL(net.num_example_stages, 0);
    for (size_t v = 0; v <= net.num_stages; v++) CHECK(net.values[v].is_kept);
    fed_net_free(&net);
}

static const test_case TESTS[] = {
    TEST(test_the_naive_gradient_equals_central_differences),
    TEST(test_gradients_of_small_nets_equal_the_naive_ones),
    TEST(test_gradients_of_large_nets_equal_the_naive_ones),
    TEST(test_gradients_of_images_with_background_equal_the_naive_ones),
    TEST(test_local_steps_of_small_nets_equal_the_naive_ones),
    TEST(test_scores_equal_the_naive_ones),
    TEST(test_leading_stages_with_large_images_run_by_example),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
