/* SPDX-License-Identifier: Apache-2.0
 *
 * Batch norms against a reference in double, on batches of unusual sizes and on each
 * instruction set. The reference's gradients are compared with central differences.
 */
#include "fixtures.h"
#include "net/net.h"

static const float GUARD = -12345.0f;
enum { NUM_GUARDS = 64 };

typedef struct norm_case {
    size_t num_images, height, width, channels;
    int activation, has_scale, has_bias, is_frozen, is_scoring;
} norm_case;

/* A net in which the batch norm is the first layer; the second layer gives the logits. */
typedef struct layers {
    fed_layer each[2];
    fed_model model;
    fed_net net;
} layers;

static void make_net(const norm_case *is, layers *of) {
    const fed_shape shape = {is->height, is->width, is->channels};
    const size_t num_norm = is->channels * (size_t)(is->has_scale + is->has_bias);
    const size_t num_trained = num_norm + fed_shape_size(&shape) * 2;
    of->each[0] = (fed_layer){.kind = KIND_BATCH_NORM,
                              .activation = is->activation,
                              .in = shape,
                              .out = shape,
                              .has_scale = is->has_scale,
                              .has_bias = is->has_bias,
                              .epsilon = 0.01,
                              .momentum = 0.75,
                              .is_frozen = is->is_frozen,
                              .moving_offset = num_trained};
    of->each[1] = (fed_layer){.kind = KIND_DENSE,
                              .in = shape,
                              .out = {1, 1, 2},
                              .offset = num_norm,
                              .moving_offset = num_trained + 2 * is->channels};
    of->model = (fed_model){.layers = of->each,
                            .num_layers = 2,
                            .num_inputs = fed_shape_size(&shape),
                            .num_classes = 2,
                            .num_params = num_trained + 2 * is->channels};
    CHECK_EQUAL(fed_net_init(&of->net, &of->model), FED_OK);
}

/* ---- The reference: values [num_images, pixels, channels] ------------------------------------ */

typedef struct reference {
    norm_case is;
    size_t num_pixels, num_values;                     /* of all images */
    double *values, *gamma, *beta, *means, *variances; /* the last two are moving statistics */
    double *out, *normal, *inverses, *batch_means, *batch_variances;
} reference;

static reference new_reference(const norm_case *is, uint64_t seed) {
    reference t = {.is = *is};
    const size_t c = is->channels;
    t.num_pixels = is->num_images * is->height * is->width;
    t.num_values = t.num_pixels * c;
    double **arrays[] = {&t.values, &t.out, &t.normal};
    for (size_t i = 0; i < LENGTH(arrays); i++) *arrays[i] = test_alloc(t.num_values * 8);
    double **rows[] = {&t.gamma,    &t.beta,        &t.means,          &t.variances,
                       &t.inverses, &t.batch_means, &t.batch_variances};
    for (size_t i = 0; i < LENGTH(rows); i++) *rows[i] = test_alloc(c * 8);
    float *drawn = test_alloc((t.num_values + 4 * c) * sizeof *drawn);
    fill_floats(seed, 1, drawn, t.num_values + 4 * c);
    for (size_t i = 0; i < t.num_values; i++) /* far from 0, as after a bias */
        t.values[i] = (double)(drawn[i] + 3 + (float)(i % c % 5));
    const float *more = drawn + t.num_values;
    for (size_t i = 0; i < c; i++) {
        t.gamma[i] = is->has_scale ? (double)(more[i] + 1) : 1;
        t.beta[i] = is->has_bias ? (double)more[c + i] : 0;
        t.means[i] = (double)(more[2 * c + i] + 3);
        t.variances[i] = fabs((double)more[3 * c + i]) + 0.5;
        t.means[i] = (double)(float)t.means[i];
        t.variances[i] = (double)(float)t.variances[i];
    }
    free(drawn);
    return t;
}

static void free_reference(reference *t) {
    double *all[] = {t->values, t->gamma,  t->beta,     t->means,       t->variances,
                     t->out,    t->normal, t->inverses, t->batch_means, t->batch_variances};
    for (size_t i = 0; i < LENGTH(all); i++) free(all[i]);
}

static double activated(int activation, double z) {
    return activation == FED_RELU ? fmax(z, 0) : activation == FED_TANH ? tanh(z) : z;
}

static double slope(int activation, double z, double out) {
    return activation == FED_RELU ? z > 0 : activation == FED_TANH ? 1 - out * out : 1;
}

static int takes_moving(const reference *t) { return t->is.is_frozen || t->is.is_scoring; }

static double *new_row(size_t num) {
    double *row = test_alloc(num * sizeof *row);
    for (size_t i = 0; i < num; i++) row[i] = 0;
    return row;
}

static double sum_of_column(const reference *t, const double *values, size_t c, double less,
                            int power) {
    double sum = 0;
    for (size_t p = 0; p < t->num_pixels; p++)
        sum += pow(values[p * t->is.channels + c] - less, power);
    return sum;
}

static double input_of_activation(const reference *t, size_t i) {
    const size_t c = i % t->is.channels;
    return t->normal[i] * t->gamma[c] + t->beta[c];
}

static void reference_forward(reference *t) {
    const double count = (double)t->num_pixels;
    for (size_t c = 0; c < t->is.channels; c++) {
        t->batch_means[c] = sum_of_column(t, t->values, c, 0, 1) / count;
        t->batch_variances[c] = sum_of_column(t, t->values, c, t->batch_means[c], 2) / count;
        const double mean = takes_moving(t) ? t->means[c] : t->batch_means[c];
        const double variance = takes_moving(t) ? t->variances[c] : t->batch_variances[c];
        t->inverses[c] = 1 / sqrt(variance + 0.01);
        for (size_t p = 0; p < t->num_pixels; p++) {
            const size_t i = p * t->is.channels + c;
            t->normal[i] = (t->values[i] - mean) * t->inverses[c];
            t->out[i] = activated(t->is.activation, input_of_activation(t, i));
        }
    }
}

/* The gradients of the sum of by_out * out by values, gamma and beta, computed by the formula. */
static void reference_backward(const reference *t, const double *by_out, double *by_values,
                               double *by_gamma, double *by_beta) {
    const size_t channels = t->is.channels;
    for (size_t c = 0; c < channels; c++) {
        for (size_t p = 0; p < t->num_pixels; p++) {
            const size_t i = p * channels + c;
            const double g =
                by_out[i] * slope(t->is.activation, input_of_activation(t, i), t->out[i]);
            by_values[i] = g;
            by_gamma[c] += g * t->normal[i];
            by_beta[c] += g;
        }
        for (size_t p = 0; p < t->num_pixels; p++) {
            const size_t i = p * channels + c;
            const double shared = (by_beta[c] + t->normal[i] * by_gamma[c]) / (double)t->num_pixels;
            const double inner = takes_moving(t) ? by_values[i] : by_values[i] - shared;
            by_values[i] = inner * t->gamma[c] * t->inverses[c];
        }
    }
}

static double loss_at(reference *t, const double *by_out) {
    double sum = 0;
    reference_forward(t);
    for (size_t i = 0; i < t->num_values; i++) sum += by_out[i] * t->out[i];
    return sum;
}

static double slope_at(reference *t, const double *by_out, double *place) {
    const double before = *place, step = 1e-6;
    *place = before + step;
    const double above = loss_at(t, by_out);
    *place = before - step;
    const double below = loss_at(t, by_out);
    *place = before;
    return (above - below) / (2 * step);
}

/* ---- The core -------------------------------------------------------------------------------- */

/* The arrays that a pass of the core reads and writes, with guards after those that it writes. */
typedef struct run {
    const reference *reference;
    size_t channels;                                     /* padded */
    float *in, *out, *out_gradient, *in_gradient;        /* [num_images, num_values] */
    float *params, *moving, *gradient, *scratch, *saved; /* the last is NULL when scoring */
    size_t num_values, num_params, num_saved;
} run;

static float *guarded(size_t num, float value) {
    float *values = aligned_alloc(64, fed_padded(num + NUM_GUARDS) * sizeof *values);
    CHECK(values != NULL);
    for (size_t i = 0; i < num; i++) values[i] = value;
    for (size_t i = 0; i < NUM_GUARDS; i++) values[num + i] = GUARD;
    return values;
}

static void check_guards(const float *values, size_t num) {
    for (size_t i = 0; i < NUM_GUARDS; i++) CHECK(values[num + i] == GUARD);
}

/* The index in a buffer of the reference's value i. */
static size_t place_of(const run *r, size_t i) {
    const size_t channels = r->reference->is.channels, c = i % channels;
    return i / channels * r->channels + c; /* the buffers have no border */
}

static run new_run(const reference *t, const fed_stage *stage, const double *by_out) {
    const size_t channels = stage->in.pixel_stride, images = t->is.num_images;
    run r = {.reference = t, .channels = channels, .num_values = images * stage->in.num_values};
    r.num_params = fed_larger(stage->packed_size, 1);
    r.num_saved = images * stage->saved_bytes / sizeof(float);
    r.in = guarded(r.num_values, 0);
    r.out = guarded(r.num_values, 0);
    r.out_gradient = guarded(r.num_values, 0);
    r.in_gradient = guarded(r.num_values, 0);
    r.params = guarded(r.num_params, 0);
    r.gradient = guarded(r.num_params, 0);
    r.moving = guarded(2 * channels, 0);
    r.scratch = guarded(stage->ops->images_scratch(stage, images, 7), 0);
    r.saved = guarded(r.num_saved, 0);
    for (size_t i = 0; i < t->num_values; i++) {
        r.in[place_of(&r, i)] = (float)t->values[i];
        r.out_gradient[place_of(&r, i)] = (float)by_out[i];
    }
    for (size_t c = 0; c < t->is.channels; c++) {
        if (t->is.has_scale) r.params[c] = (float)t->gamma[c];
        if (t->is.has_bias) r.params[(t->is.has_scale ? channels : 0) + c] = (float)t->beta[c];
        r.moving[c] = (float)t->means[c];
        r.moving[channels + c] = (float)t->variances[c];
    }
    return r;
}

static void free_run(run *r) {
    float *all[] = {r->in,       r->out,    r->out_gradient, r->in_gradient, r->params,
                    r->gradient, r->moving, r->scratch,      r->saved};
    for (size_t i = 0; i < LENGTH(all); i++) free(all[i]);
}

static void pass_through(run *r, const fed_stage *stage, int num_workers) {
    const int is_scoring = r->reference->is.is_scoring;
    const fed_images_pass pass = {
        .kernels = fed_active_kernels(),
        .stage = stage,
        .params = r->params,
        .moving = r->moving,
        .num_images = r->reference->is.num_images,
        .num_workers = num_workers,
        .in = r->in,
        .out = r->out,
        .scratch = r->scratch,
        .saved = is_scoring ? NULL : r->saved,
        .out_gradient = r->out_gradient,
        .in_gradient = r->in_gradient,
        .gradient = r->gradient,
    };
    stage->ops->forward_images(&pass);
    if (is_scoring) return;
    stage->ops->backward_images(&pass);
    stage->ops->move(stage, r->saved, r->moving);
}

/* Values are far from 0, so their rounding errors are large compared with their differences. */
static void check_near(double found, double right, double scale) {
    CHECK_CLOSE(found, right, 4e-5 * scale);
}

static double largest(const double *values, size_t num) {
    double most = 1e-3;
    for (size_t i = 0; i < num; i++) most = fmax(most, fabs(values[i]));
    return most;
}

static void check_run(const run *r, const fed_stage *stage, const double *by_out) {
    const reference *t = r->reference;
    const size_t channels = t->is.channels;
    double *by_values = new_row(t->num_values), *by_gamma = new_row(channels);
    double *by_beta = new_row(channels);
    reference_backward(t, by_out, by_values, by_gamma, by_beta);
    const double most_out = largest(t->out, t->num_values);
    const double most_in = fmax(largest(by_values, t->num_values), largest(t->inverses, channels));
    for (size_t i = 0; i < t->num_values; i++) {
        check_near((double)r->out[place_of(r, i)], t->out[i], most_out);
        if (!t->is.is_scoring)
            check_near((double)r->in_gradient[place_of(r, i)], by_values[i], most_in);
    }
    const size_t beta_at = t->is.has_scale ? r->channels : 0;
    for (size_t c = 0; c < channels; c++) {
        const double count = (double)t->num_pixels;
        const double kept = t->is.is_frozen || t->is.is_scoring ? 1 : 0.75;
        check_near((double)r->moving[c], kept * t->means[c] + (1 - kept) * t->batch_means[c], 8);
        check_near((double)r->moving[r->channels + c],
                   kept * t->variances[c] + (1 - kept) * t->batch_variances[c], 1);
        if (t->is.is_scoring) continue;
        if (t->is.has_scale) check_near((double)r->gradient[c], by_gamma[c], 4 * count);
        if (t->is.has_bias) check_near((double)r->gradient[beta_at + c], by_beta[c], count);
    }
    check_guards(r->out, r->num_values);
    check_guards(r->in_gradient, r->num_values);
    check_guards(r->gradient, r->num_params);
    check_guards(r->moving, 2 * r->channels);
    check_guards(r->saved, r->num_saved);
    check_guards(r->scratch, stage->ops->images_scratch(stage, t->is.num_images, 7));
    for (size_t i = t->num_values / channels * r->channels; i < r->num_values; i++)
        CHECK(r->out[i] == 0); /* after the last pixel */
    free(by_values);
    free(by_gamma);
    free(by_beta);
}

static double *drawn_gradient(const reference *t) {
    float *floats = test_alloc(t->num_values * sizeof *floats);
    double *by_out = new_row(t->num_values);
    fill_floats(77, 1, floats, t->num_values);
    for (size_t i = 0; i < t->num_values; i++) {
        /* Near the kink, core and reference could choose different sides. */
        const double z = input_of_activation(t, i);
        by_out[i] = t->is.activation == FED_RELU && fabs(z) < 1e-4 ? 0 : (double)floats[i];
    }
    free(floats);
    return by_out;
}

static void check_case(const norm_case *is) {
    layers of;
    make_net(is, &of);
    const fed_stage *stage = &of.net.stages[0];
    CHECK(stage->in.origin == 0 && stage->in.num_values == stage->out.num_values);
    reference t = new_reference(is, 5);
    reference_forward(&t);
    double *by_out = drawn_gradient(&t);
    const int workers[] = {1, 2, 7};
    run runs[3];
    for (size_t w = 0; w < 3; w++) {
        runs[w] = new_run(&t, stage, by_out);
        pass_through(&runs[w], stage, workers[w]);
        const size_t num_bytes = runs[0].num_values * sizeof(float);
        CHECK(memcmp(runs[0].out, runs[w].out, num_bytes) == 0);
        CHECK(memcmp(runs[0].in_gradient, runs[w].in_gradient, num_bytes) == 0);
        CHECK(memcmp(runs[0].gradient, runs[w].gradient, runs[0].num_params * sizeof(float)) == 0);
        CHECK(memcmp(runs[0].moving, runs[w].moving, 2 * runs[0].channels * sizeof(float)) == 0);
    }
    check_run(&runs[0], stage, by_out);
    for (size_t w = 0; w < 3; w++) free_run(&runs[w]);
    free(by_out);
    free_reference(&t);
    fed_net_free(&of.net);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void test_the_reference_has_the_slopes_of_its_loss(void) {
    for (int is_frozen = 0; is_frozen < 2; is_frozen++) {
        const norm_case is = {3, 2, 1, 2, FED_TANH, 1, 1, is_frozen, 0};
        reference t = new_reference(&is, 9);
        reference_forward(&t);
        double *by_out = drawn_gradient(&t);
        double *by_values = new_row(t.num_values), *by_gamma = new_row(2), *by_beta = new_row(2);
        reference_backward(&t, by_out, by_values, by_gamma, by_beta);
        for (size_t i = 0; i < t.num_values; i++)
            CHECK_CLOSE(slope_at(&t, by_out, &t.values[i]), by_values[i], 1e-7);
        for (size_t c = 0; c < 2; c++) {
            CHECK_CLOSE(slope_at(&t, by_out, &t.gamma[c]), by_gamma[c], 1e-7);
            CHECK_CLOSE(slope_at(&t, by_out, &t.beta[c]), by_beta[c], 1e-7);
        }
        free(by_out);
        free(by_values);
        free(by_gamma);
        free(by_beta);
        free_reference(&t);
    }
}

static void test_batches_of_all_sizes(void) {
    static const size_t sizes[][3] = {{1, 1, 1}, {2, 1, 1}, {20, 1, 1}, {1, 3, 5},
                                      {7, 2, 3}, {8, 4, 4}, {9, 1, 7},  {17, 5, 1}};
    static const size_t channels[] = {1, 15, 16, 17, 33, 64};
    for (size_t s = 0; s < LENGTH(sizes); s++)
        for (size_t c = 0; c < LENGTH(channels); c++)
            for (int activation = FED_LINEAR; activation <= FED_TANH; activation++) {
                const norm_case is = {
                    sizes[s][0], sizes[s][1], sizes[s][2], channels[c], activation, 1, 1, 0, 0};
                check_case(&is);
            }
}

static void test_layers_without_gamma_or_beta(void) {
    for (int flags = 0; flags < 3; flags++) {
        const norm_case is = {5, 3, 2, 19, FED_TANH, flags & 1, flags >> 1, 0, 0};
        check_case(&is);
    }
}

static void test_frozen_layers_and_scoring_take_the_moving_statistics(void) {
    for (int is_scoring = 0; is_scoring < 2; is_scoring++)
        for (int activation = FED_LINEAR; activation <= FED_TANH; activation++) {
            const norm_case is = {6, 2, 3, 21, activation, 1, 1, !is_scoring, is_scoring};
            check_case(&is);
        }
}

/* If all values of the batch are equal, and far from 0, the variance is 0. */
static void test_equal_values_become_beta(void) {
    const norm_case is = {4, 3, 3, 5, FED_LINEAR, 1, 1, 0, 0};
    layers of;
    make_net(&is, &of);
    reference t = new_reference(&is, 3);
    for (size_t i = 0; i < t.num_values; i++) t.values[i] = 1000.1;
    double *by_out = new_row(t.num_values);
    run r = new_run(&t, &of.net.stages[0], by_out);
    pass_through(&r, &of.net.stages[0], 1);
    for (size_t i = 0; i < t.num_values; i++)
        CHECK_CLOSE((double)r.out[place_of(&r, i)], t.beta[i % is.channels], 2e-3);
    for (size_t c = 0; c < is.channels; c++)
        CHECK_CLOSE((double)r.moving[r.channels + c], 0.75 * t.variances[c], 1e-6);
    free_run(&r);
    free(by_out);
    free_reference(&t);
    fed_net_free(&of.net);
}

/* A net with a batch norm trains on whole batches, and its moving statistics are packed last. */
static void test_moving_statistics_are_packed_last(void) {
    const norm_case is = {1, 2, 2, 3, FED_LINEAR, 1, 1, 0, 0};
    layers of;
    make_net(&is, &of);
    const fed_net *net = &of.net;
    const size_t num = of.model.num_params;
    CHECK_EQUAL(net->size, net->num_trained + 2 * net->stages[0].in.pixel_stride);
    CHECK_EQUAL(fed_num_trained(&of.model), num - 6);
    CHECK_EQUAL(fed_net_part_size(net, 1000, 1), 1000);
    CHECK_EQUAL(net->num_example_stages, 0);
    float *flat = test_alloc(num * sizeof *flat), *packed = test_alloc(net->size * sizeof *packed);
    float *back = test_alloc(num * sizeof *back);
    double *scratch = test_alloc((net->size + num) * sizeof *scratch);
    for (size_t i = 0; i < num; i++) flat[i] = (float)i + 1;
    fed_net_pack(net, flat, packed);
    CHECK(packed[net->num_trained] == flat[num - 6]);
    CHECK(packed[net->num_trained + 3] == 0);
    fed_net_flatten(net, packed, scratch, back);
    for (size_t i = 0; i < num; i++) CHECK(back[i] == flat[i]);
    memset(packed, 0, net->size * sizeof *packed);
    float *after = test_alloc(net->size * sizeof *after);
    fed_net_pack(net, flat, after);
    fed_net_unpack_delta(net, after, packed, scratch, back);
    for (size_t i = 0; i < num; i++) CHECK(back[i] == flat[i]);
    for (size_t i = 0; i < num; i++) flat[i] = -1;
    fed_net_pack_trained(net, flat, after);
    CHECK(after[0] == -1 && after[net->num_trained] == (float)(num - 5));
    free(flat);
    free(packed);
    free(back);
    free(scratch);
    free(after);
    fed_net_free(&of.net);
}

static void test_wrong_layers_are_refused(void) {
    const norm_case is = {1, 2, 2, 3, FED_LINEAR, 1, 1, 0, 0};
    layers of;
    make_net(&is, &of);
    fed_net_free(&of.net);
    CHECK_EQUAL(fed_model_check(&of.model), FED_OK);
    of.each[0].momentum = 1.5;
    CHECK_EQUAL(fed_model_check(&of.model), FED_ERR_ARGUMENT);
    of.each[0].momentum = NAN;
    CHECK_EQUAL(fed_model_check(&of.model), FED_ERR_ARGUMENT);
    of.each[0].momentum = 0.5;
    of.each[0].is_frozen = 2;
    CHECK_EQUAL(fed_model_check(&of.model), FED_ERR_ARGUMENT);
    of.each[0].is_frozen = 0;
    of.each[0].moving_offset++;
    CHECK_EQUAL(fed_model_check(&of.model), FED_ERR_ARGUMENT);
    of.each[0].moving_offset--;
    of.model.num_params++;
    CHECK_EQUAL(fed_model_check(&of.model), FED_ERR_ARGUMENT);
}

static const test_case TESTS[] = {
    TEST(test_the_reference_has_the_slopes_of_its_loss),
    TEST(test_batches_of_all_sizes),
    TEST(test_layers_without_gamma_or_beta),
    TEST(test_frozen_layers_and_scoring_take_the_moving_statistics),
    TEST(test_equal_values_become_beta),
    TEST(test_moving_statistics_are_packed_last),
    TEST(test_wrong_layers_are_refused),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
