/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of the layers that treat single values or windows: activations, pools, normalisations,
 * padding, dropout. Each is run alone on one example, forward and backward, and compared with the
 * naive network, on shapes with and without padding channels. The output is inside a border, which
 * must not change.
 */
#include "naive_net.h"

extern const fed_stage_ops fed_max_pool, fed_group_norm, fed_dropout;

/* One layer laid out, in memory of exactly the size that it requests. */
typedef struct layer_under_test {
    fed_stage stage;
    float *params, *in, *out, *out_gradient, *in_gradient, *gradient;
    void *saved, *scratch;
} layer_under_test;

static const fed_key DROPOUT_KEY = {1, 2, 3, 4, 5};
static const float BORDER = 7; /* the values of a border; the core has zeros there, but no layer may
                                  read them */

/* The layout of an output that a later convolution reads with a border. */
static fed_buffer bordered(const fed_shape *shape, size_t border) {
    const size_t channels = fed_padded(shape->channels),
                 row = (shape->width + 2 * border) * channels;
    return (fed_buffer){.origin = border * (row + channels),
                        .pixel_stride = channels,
                        .row_stride = row,
                        .num_values = (shape->height + 2 * border) * row};
}

static size_t position(const fed_buffer *buffer, const fed_shape *shape, size_t i) {
    const size_t c = i % shape->channels, pixel = i / shape->channels;
    return buffer->origin + pixel / shape->width * buffer->row_stride +
           pixel % shape->width * buffer->pixel_stride + c;
}

static float *new_floats(size_t num_values, float value) {
    float *values = fed_allocate((num_values > 0 ? num_values : 1) * sizeof(*values));
    CHECK(values != NULL);
    for (size_t i = 0; i < num_values; i++) values[i] = value;
    return values;
}

/* Writes values to a buffer's interior, and zeros to its padding channels. */
static void put_values(const fed_buffer *buffer, const fed_shape *shape, const double *values,
                       float *to) {
    for (size_t y = 0; y < shape->height; y++)
        memset(to + buffer->origin + y * buffer->row_stride, 0,
               shape->width * buffer->pixel_stride * sizeof(*to));
    for (size_t i = 0; i < fed_shape_size(shape); i++)
        to[position(buffer, shape, i)] = (float)values[i];
}

static layer_under_test new_layer_under_test(const fed_layer *layer, const double *params,
                                             const double *in, const double *out_gradient) {
    layer_under_test b = {
        .stage = {.ops = fed_kind_of(layer)->ops, .layer = layer, .shape = layer->out}};
    b.stage.in = own_input(&b.stage);
    if (b.stage.ops->lay_out != NULL) b.stage.ops->lay_out(&b.stage);
    b.stage.out = bordered(&layer->out, 2);
    b.in = new_floats(b.stage.in.num_values, 0);
    b.out = new_floats(b.stage.out.num_values, BORDER);
    b.out_gradient = new_floats(b.stage.out.num_values, BORDER);
    b.in_gradient = new_floats(b.stage.in.num_values, NAN);
    b.params = new_floats(b.stage.packed_size, NAN);
    b.gradient = new_floats(b.stage.packed_size, 0);
    b.saved = fed_allocate(b.stage.saved_bytes + 1);
    b.scratch = fed_allocate(b.stage.scratch_bytes + 1);
    float flat[256];
    for (size_t p = 0; p < 256; p++) flat[p] = (float)params[p];
    if (b.stage.ops->pack != NULL) b.stage.ops->pack(&b.stage, flat, b.params);
    put_values(&b.stage.in, &layer->in, in, b.in);
    put_values(&b.stage.out, &layer->out, out_gradient, b.out_gradient);
    return b;
}

static void free_layer_under_test(layer_under_test *b) {
    free(b->in);
    free(b->out);
    free(b->out_gradient);
    free(b->in_gradient);
    free(b->params);
    free(b->gradient);
    free(b->saved);
    free(b->scratch);
}

/* Checks that borders have not changed, and that padding channels are 0. */
static void check_surroundings(const layer_under_test *b) {
    const fed_buffer *buffer = &b->stage.out;
    const fed_shape *shape = &b->stage.shape;
    size_t num_zeros = 0, num_border = 0;
    const size_t size = fed_shape_size(shape);
    float *copy = new_floats(buffer->num_values, 0);
    memcpy(copy, b->out, buffer->num_values * sizeof(*copy));
    for (size_t i = 0; i < size; i++) copy[position(buffer, shape, i)] = -1;
    for (size_t i = 0; i < buffer->num_values; i++) {
        num_zeros += copy[i] == 0;
        num_border += copy[i] == BORDER;
    }
    free(copy);
    const size_t num_pixels = shape->height * shape->width;
    CHECK_EQUAL(num_zeros, num_pixels * (buffer->pixel_stride - shape->channels));
    CHECK_EQUAL(num_border, buffer->num_values - num_pixels * buffer->pixel_stride);
}

static fed_pass pass_of(const layer_under_test *b, fed_rng *dropout) {
    return (fed_pass){.kernels = fed_active_kernels(),
                      .stage = &b->stage,
                      .params = b->params,
                      .in = b->in,
                      .out = b->out,
                      .saved = dropout != NULL ? b->saved : NULL,
                      .scratch = b->scratch,
                      .dropout = dropout,
                      .out_gradient = b->out_gradient,
                      .in_gradient = b->in_gradient,
                      .gradient = b->gradient};
}

static void check_values(const fed_buffer *buffer, const fed_shape *shape, const float *values,
                         const double *expected, double tolerance) {
    for (size_t i = 0; i < fed_shape_size(shape); i++)
        CHECK_CLOSE(values[position(buffer, shape, i)], expected[i], tolerance);
}

/* Values and gradients are of order 1. A value is a sum of up to `terms` values, with one rounding
 * error each; activations add a few. Parameter gradients are sums over all pixels. */
static void check_layer(const fed_layer *layer, double terms) {
    const size_t in_size = fed_shape_size(&layer->in), size = fed_shape_size(&layer->out);
    double params[256], gradient[256] = {0}, unpacked[256] = {0};
    double *in = naive_doubles(in_size), *in_gradient = naive_doubles(in_size);
    double *out = naive_doubles(size), *out_gradient = naive_doubles(size);
    double *mask = naive_doubles(size), *packed = naive_doubles(512);
    uint64_t seed = 1 + in_size;
    for (size_t i = 0; i < in_size; i++) in[i] = (double)next_float(&seed, 2);
    for (size_t i = 0; i < size; i++) out_gradient[i] = (double)next_float(&seed, 1);
    for (size_t p = 0; p < 256; p++) params[p] = (double)next_float(&seed, 1);
    layer_under_test b = new_layer_under_test(layer, params, in, out_gradient);
    const double tolerance = (terms + 8) * 2 * UNIT_ROUNDOFF;
    naive_margin margin = {INFINITY};

    fed_pass scoring = pass_of(&b, NULL);
    b.stage.ops->forward(&scoring);
    naive_layer_forward(layer, params, in, NULL, NULL, out, &margin);
    check_values(&b.stage.out, &layer->out, b.out, out, tolerance);
    check_surroundings(&b);

    fed_rng rng, reference;
    fed_rng_init(&rng, &DROPOUT_KEY);
    fed_rng_init(&reference, &DROPOUT_KEY);
    fed_pass training = pass_of(&b, &rng);
    b.stage.ops->forward(&training);
    const int drops = layer->kind == KIND_DROPOUT;
    if (drops) naive_draw_mask(layer, &reference, mask);
    CHECK_EQUAL(fed_rng_u64(&rng), fed_rng_u64(&reference));
    naive_layer_forward(layer, params, in, NULL, drops ? mask : NULL, out, &margin);
    check_values(&b.stage.out, &layer->out, b.out, out, tolerance);
    check_surroundings(&b);

    b.stage.ops->backward(&training);
    naive_layer_backward(layer, params, in, out, drops ? mask : NULL, out_gradient, in_gradient,
                         gradient);
    check_values(&b.stage.in, &layer->in, b.in_gradient, in_gradient, 2 * tolerance);
    for (size_t p = 0; p < b.stage.packed_size; p++) packed[p] = (double)b.gradient[p];
    if (b.stage.ops->unpack != NULL) b.stage.ops->unpack(&b.stage, packed, unpacked);
    double num_pixels = (double)(layer->in.height * layer->in.width);
    for (size_t p = 0; p < 256; p++)
        CHECK_CLOSE(unpacked[p], gradient[p], num_pixels * 8 * UNIT_ROUNDOFF);
    free_layer_under_test(&b);
    free(in);
    free(in_gradient);
    free(out);
    free(out_gradient);
    free(mask);
    free(packed);
}

static const fed_shape SHAPES[] = {{1, 1, 1},  {1, 1, 16}, {1, 1, 17}, {3, 5, 1}, {4, 4, 16},
                                   {7, 6, 31}, {5, 9, 32}, {2, 3, 33}, {8, 8, 3}, {14, 14, 64}};

/* ---- Activations ----------------------------------------------------------------------------- */

static void test_activations_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (int32_t a = 0; a < FED_NUM_ACTIVATIONS; a++)
            check_layer(&(fed_layer){.kind = KIND_ACTIVATION,
                                     .activation = a,
                                     .in = SHAPES[s],
                                     .out = SHAPES[s],
                                     .constants = {0.25}},
                        1);
}

/* Tests values at which the formulas change, and values far from 0 on both sides. */
static void test_tanh_and_sigmoid_are_right_to_a_few_roundings(void) {
    enum { NUM = 1 << 14 };
    float *values = new_floats(NUM, 0), *sigmoids = new_floats(NUM, 0);
    float *tanhs = new_floats(NUM, 0);
    for (size_t i = 0; i < NUM; i++) {
        const float size = ldexpf(1 + (float)(i % 512) / 512, (int)(i / 1024) - 9);
        values[i] = i % 1024 < 512 ? size : -size;
    }
    fed_active_kernels()->activate(FED_TANH, 0, values, NUM, tanhs);
    fed_active_kernels()->activate(FED_SIGMOID, 0, values, NUM, sigmoids);
    for (size_t i = 0; i < NUM; i++) {
        const double x = (double)values[i], tanh_x = tanh(x);
        const double sigmoid_x = 1 / (1 + exp(-(x > -87 ? x : -87)));
        CHECK_CLOSE(tanhs[i], tanh_x, 4e-7 * fabs(tanh_x));
        CHECK_CLOSE(sigmoids[i], sigmoid_x, 4e-7 * sigmoid_x);
    }
    free(values);
    free(tanhs);
    free(sigmoids);
}

static void test_activations_at_the_ends(void) {
    float ends[FED_PAD] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 3e38f, -3e38f};
    const uint32_t nan_with_payload = 0x7fc000d1;
    memcpy(&ends[8], &nan_with_payload, sizeof nan_with_payload);
    float tanhs[FED_PAD], sigmoids[FED_PAD];
    fed_active_kernels()->activate(FED_TANH, 0, ends, FED_PAD, tanhs);
    fed_active_kernels()->activate(FED_SIGMOID, 0, ends, FED_PAD, sigmoids);
    for (int i = 0; i < 2; i++) CHECK(isnan(tanhs[i]) && isnan(sigmoids[i]));
    CHECK(isnan(tanhs[8]) && isnan(sigmoids[8]));
    CHECK(tanhs[2] == 1 && tanhs[3] == -1 && tanhs[6] == 1 && tanhs[7] == -1);
    CHECK(tanhs[4] == 0 && tanhs[5] == 0 && signbit(tanhs[5]) && !signbit(tanhs[4]));
    CHECK(sigmoids[2] == 1 && sigmoids[6] == 1);
    CHECK(sigmoids[3] >= 0 && sigmoids[3] < 2e-38f && sigmoids[7] >= 0 && sigmoids[7] < 2e-38f);
    CHECK(sigmoids[4] == 0.5f && sigmoids[5] == 0.5f);
}

/* Tests every multiple of 2^-9 from -13 to 13, and small numbers, for which exp(x) - 1 would lose
 * digits. The exponent is rounded, too, which counts as |x|^2 / 2 rounding errors, or for gelu by
 * tanh up to |x|^3 / 12. */
static void test_smooth_activations_are_right_to_a_few_roundings(void) {
    enum { NUM = 1 << 14 };
    float *values = new_floats(NUM, 0), *outputs = new_floats(NUM, 0), *slopes = new_floats(NUM, 0);
    for (size_t i = 0; i < NUM; i++)
        values[i] = i % 64 == 0 ? ldexpf(i % 128 ? 1 : -1, -(int)(i / 512))
                                : ((float)i - NUM / 2) * 13 / (NUM / 2);
    for (int32_t a = FED_RELU6; a < FED_NUM_ACTIVATIONS; a++) {
        const fed_layer layer = {.activation = a, .constants = {0.25}};
        naive_margin margin = {INFINITY};
        fed_active_kernels()->activate(a, 0.25f, values, NUM, outputs);
        for (size_t i = 0; i < NUM; i++) slopes[i] = 1;
        fed_active_kernels()->undo_activation(
            a, 0.25f, fed_activation_sees_inputs(a) ? values : outputs, NUM, slopes);
        for (size_t i = 0; i < NUM; i++) {
            const double x = (double)values[i], y = naive_activation(&layer, x, &margin);
            const double slope = naive_slope(&layer, x, y);
            const double share = (10 + x * x + fabs(x * x * x) / 6) * UNIT_ROUNDOFF;
            /* Exponents are not below -87, where exp is 2e-38. */
            CHECK_CLOSE(outputs[i], y, share * fabs(y) + 1e-36);
            /* Near its minimum a slope is a difference of larger numbers. */
            CHECK_CLOSE(slopes[i], slope,
                        share * fmin(1, fabs(slope) + fabs(y)) + 4 * UNIT_ROUNDOFF);
        }
    }
    free(values);
    free(outputs);
    free(slopes);
}

/* Far from 0 the outputs are 0 or the input, with slopes of 0 or 1; NaN stays NaN. */
static void test_smooth_activations_at_the_ends(void) {
    const float ends[FED_PAD] = {NAN, 1e20f, -1e20f, 3e38f, -3e38f, 100, -100, 0};
    for (int32_t a = FED_SILU; a < FED_NUM_ACTIVATIONS; a++) {
        float outputs[FED_PAD], slopes[FED_PAD];
        for (size_t i = 0; i < FED_PAD; i++) slopes[i] = 1;
        fed_active_kernels()->activate(a, 0, ends, FED_PAD, outputs);
        fed_active_kernels()->undo_activation(a, 0, ends, FED_PAD, slopes);
        CHECK(isnan(outputs[0]) && isnan(slopes[0]));
        for (size_t i = 1; i < 7; i++) {
            const double limit = i % 2 ? (double)ends[i] : 0;
            /* At -87 and below the sigmoid is 2e-38. */
            CHECK_CLOSE(outputs[i], limit, i % 2 ? 0 : 2e-38 * (double)fabsf(ends[i]));
            CHECK_CLOSE(slopes[i], i % 2, i % 2 ? 2 * UNIT_ROUNDOFF : 1e-24);
        }
        CHECK(outputs[7] == 0 && slopes[7] == 0.5f);
    }
}

/* ---- Pools ----------------------------------------------------------------------------------- */

static size_t pooled(size_t size, size_t window, size_t stride, size_t pad_both) {
    return size + pad_both < window ? 0 : (size + pad_both - window) / stride + 1;
}

/* Checks a pool with as many windows as fit, with `pad` before and after the image. */
static void check_pool(int32_t kind, fed_shape in, size_t height, size_t width, size_t stride_y,
                       size_t stride_x, size_t pad, int32_t activation) {
    fed_layer layer = {.kind = kind,
                       .activation = activation,
                       .in = in,
                       .window_height = height,
                       .window_width = width,
                       .stride_y = stride_y,
                       .stride_x = stride_x,
                       .pad_top = pad < height ? pad : 0,
                       .pad_left = pad < width ? pad : 0};
    layer.out = (fed_shape){pooled(in.height, height, stride_y, 2 * layer.pad_top),
                            pooled(in.width, width, stride_x, 2 * layer.pad_left), in.channels};
    if (layer.out.height == 0 || layer.out.width == 0) return;
    check_layer(&layer, (double)(height * width));
}

static void test_pools_equal_the_naive_ones(void) {
    static const size_t windows[][5] = {{1, 1, 1, 1, 0}, {2, 2, 2, 2, 0}, {2, 2, 1, 1, 1},
                                        {3, 3, 2, 2, 1}, {3, 2, 1, 3, 1}, {2, 4, 2, 1, 0},
                                        {2, 2, 3, 3, 0}, {1, 3, 2, 2, 1}, {5, 5, 5, 5, 4}};
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (size_t w = 0; w < LENGTH(windows); w++)
            for (int32_t kind = KIND_MAX_POOL; kind <= KIND_AVERAGE_POOL; kind++)
                check_pool(kind, SHAPES[s], windows[w][0], windows[w][1], windows[w][2],
                           windows[w][3], windows[w][4], (int32_t)((s + w) % 4));
}

static void test_global_pools_equal_the_naive_ones(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (int32_t kind = KIND_MAX_POOL; kind <= KIND_AVERAGE_POOL; kind++)
            check_pool(kind, SHAPES[s], SHAPES[s].height, SHAPES[s].width, 1, 1, 0, FED_LINEAR);
}

static fed_layer max_pool_2x2(fed_shape in) {
    return (fed_layer){.kind = KIND_MAX_POOL,
                       .in = in,
                       .out = {in.height / 2, in.width / 2, in.channels},
                       .window_height = 2,
                       .window_width = 2,
                       .stride_y = 2,
                       .stride_x = 2};
}

/* Worked by hand: the gradient goes to the first of equal values. */
static void test_the_first_maximum_of_a_window_takes_the_gradient(void) {
    const fed_layer layer = max_pool_2x2((fed_shape){2, 4, 1});
    const double in[8] = {3, 3, -1, -2, 3, 1, -2, -1}, out_gradient[2] = {5, 7}, params[256] = {0};
    const double expected[8] = {5, 0, 7, 0, 0, 0, 0, 0};
    layer_under_test b = new_layer_under_test(&layer, params, in, out_gradient);
    fed_rng rng = {.next_half = 0};
    const fed_pass pass = pass_of(&b, &rng);
    fed_max_pool.forward(&pass);
    fed_max_pool.backward(&pass);
    CHECK(b.out[position(&b.stage.out, &layer.out, 0)] == 3);
    CHECK(b.out[position(&b.stage.out, &layer.out, 1)] == -1);
    check_values(&b.stage.in, &layer.in, b.in_gradient, expected, 0);
    free_layer_under_test(&b);
}

static void test_a_nan_anywhere_in_a_window_comes_out(void) {
    const fed_layer layer = max_pool_2x2((fed_shape){2, 2, 3});
    const double out_gradient[3] = {1, 1, 1}, params[256] = {0};
    for (size_t at = 0; at < 12; at++) {
        double in[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
        in[at] = (double)NAN;
        layer_under_test b = new_layer_under_test(&layer, params, in, out_gradient);
        const fed_pass pass = pass_of(&b, NULL);
        fed_max_pool.forward(&pass);
        for (size_t c = 0; c < 3; c++)
            CHECK(isnan(b.out[position(&b.stage.out, &layer.out, c)]) == (c == at % 3));
        free_layer_under_test(&b);
    }
}

/* ---- Group normalisation --------------------------------------------------------------------- */

static fed_layer group_norm(fed_shape shape, size_t num_groups, int parts, double epsilon) {
    return (fed_layer){.kind = KIND_GROUP_NORM,
                       .in = shape,
                       .out = shape,
                       .has_scale = parts % 2,
                       .has_bias = parts / 2,
                       .num_groups = num_groups,
                       .epsilon = epsilon};
}

/* A group of one value is constant: its deviation is sqrt(epsilon). */
static void test_group_norm_equals_the_naive_one(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (size_t groups = 1; groups <= SHAPES[s].channels; groups++) {
            if (SHAPES[s].channels % groups != 0) continue;
            for (int parts = 0; parts < 4; parts++) {
                fed_layer layer = group_norm(SHAPES[s], groups, parts, 0.1);
                layer.activation = (int32_t)((s + groups) % 4);
                check_layer(&layer, 32);
            }
        }
}

/* Values are far from 0 compared with their spread, so the mean must be subtracted before squares
 * are summed. */
static void test_group_norm_of_a_distant_mean_keeps_its_digits(void) {
    const fed_layer layer = group_norm((fed_shape){8, 8, 2}, 1, 0, 1e-3);
    double in[128], out_gradient[128] = {0}, expected[128], params[256] = {0};
    uint64_t seed = 5;
    naive_margin margin = {INFINITY};
    for (size_t i = 0; i < 128; i++) in[i] = (double)(1000 + next_float(&seed, 1));
    layer_under_test b = new_layer_under_test(&layer, params, in, out_gradient);
    const fed_pass pass = pass_of(&b, NULL);
    fed_group_norm.forward(&pass);
    naive_layer_forward(&layer, params, in, NULL, NULL, expected, &margin);
    /* The mean is rounded to 2^-15; the deviation is about 0.58. */
    check_values(&b.stage.out, &layer.out, b.out, expected, 0x1p-15 / 0.5);
    free_layer_under_test(&b);
}

/* ---- Layer normalisation, zero padding ------------------------------------------------------- */

/* A pixel of one channel is constant: its deviation is sqrt(epsilon). */
static void test_layer_norm_equals_the_naive_one(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (int parts = 0; parts < 4; parts++)
            check_layer(&(fed_layer){.kind = KIND_LAYER_NORM,
                                     .activation = (int32_t)((s + (size_t)parts) % 4),
                                     .in = SHAPES[s],
                                     .out = SHAPES[s],
                                     .has_scale = parts % 2,
                                     .has_bias = parts / 2,
                                     .epsilon = 0.1},
                        32);
}

static void test_zero_padding_equals_the_naive_one(void) {
    static const size_t frames[][4] = {{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 2, 3, 0}, {4, 0, 0, 1}};
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (size_t f = 0; f < LENGTH(frames); f++) {
            const size_t *frame = frames[f];
            const fed_shape in = SHAPES[s];
            check_layer(&(fed_layer){.kind = KIND_ZERO_PADDING,
                                     .activation = (int32_t)((s + f) % 4),
                                     .in = in,
                                     .out = {in.height + frame[0] + frame[1],
                                             in.width + frame[2] + frame[3], in.channels},
                                     .pad_top = frame[0],
                                     .pad_left = frame[2]},
                        1);
        }
}

/* ---- Convolutions of each channel by itself -------------------------------------------------- */

static void test_depthwise_convolutions_equal_the_naive_ones(void) {
    static const size_t windows[][5] = {{1, 1, 1, 1, 0}, {3, 3, 1, 1, 1}, {3, 3, 2, 2, 1},
                                        {3, 3, 2, 2, 0}, {2, 3, 1, 2, 1}, {5, 5, 1, 1, 2},
                                        {5, 5, 2, 2, 2}, {1, 4, 3, 2, 3}, {2, 1, 3, 3, 0}};
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (size_t w = 0; w < LENGTH(windows); w++) {
            const size_t *window = windows[w], num_taps = window[0] * window[1];
            const size_t pad_y = window[4] < window[0] ? window[4] : 0;
            const size_t pad_x = window[4] < window[1] ? window[4] : 0;
            fed_layer layer = {.kind = KIND_DEPTHWISE,
                               .activation = (int32_t)((s + w) % 4),
                               .in = SHAPES[s],
                               .has_bias = (s + w) % 3 > 0,
                               .window_height = window[0],
                               .window_width = window[1],
                               .stride_y = window[2],
                               .stride_x = window[3],
                               .pad_top = pad_y,
                               .pad_left = pad_x};
            layer.out = (fed_shape){pooled(layer.in.height, window[0], window[2], 2 * pad_y),
                                    pooled(layer.in.width, window[1], window[3], 2 * pad_x),
                                    layer.in.channels};
            if (layer.out.height == 0 || layer.out.width == 0) continue;
            if ((num_taps + 1) * layer.in.channels > 256) continue; /* too many parameters */
            check_layer(&layer, (double)num_taps);
        }
}

/* ---- Dropout --------------------------------------------------------------------------------- */

static void test_dropout_equals_the_naive_one(void) {
    static const double rates[] = {0, 0.1, 0.25, 0.5, 0.9, 1 - 0x1p-16};
    for (size_t s = 0; s < LENGTH(SHAPES); s++)
        for (size_t r = 0; r < LENGTH(rates); r++)
            /* At the largest rate a kept value is 65536 times as large, and exact. */
            check_layer(&(fed_layer){.kind = KIND_DROPOUT,
                                     .activation = r < 5 ? (int32_t)((s + r) % 4) : FED_LINEAR,
                                     .in = SHAPES[s],
                                     .out = SHAPES[s],
                                     .rate = rates[r]},
                        8);
}

/* For 12,544 values the dropped share has a standard deviation of 0.004 around 0.3. The mean has
 * a standard deviation of 0.006. */
static void test_dropout_drops_its_share_and_keeps_the_mean(void) {
    const fed_shape shape = {14, 14, 64};
    enum { SIZE = 14 * 14 * 64 };
    const fed_layer layer = {.kind = KIND_DROPOUT, .in = shape, .out = shape, .rate = 0.3};
    double *ones = naive_doubles(SIZE), sum = 0, num_dropped = 0;
    const double params[256] = {0};
    for (size_t i = 0; i < SIZE; i++) ones[i] = 1;
    layer_under_test b = new_layer_under_test(&layer, params, ones, ones);
    fed_rng rng;
    fed_rng_init(&rng, &DROPOUT_KEY);
    const fed_pass pass = pass_of(&b, &rng);
    fed_dropout.forward(&pass);
    for (size_t i = 0; i < SIZE; i++) {
        const double value = (double)b.out[position(&b.stage.out, &shape, i)];
        sum += value;
        num_dropped += value == 0;
    }
    CHECK_CLOSE(num_dropped / SIZE, 0.3, 0.02);
    CHECK_CLOSE(sum / SIZE, 1, 0.03);
    free_layer_under_test(&b);
    free(ones);
}

static const test_case TESTS[] = {
    TEST(test_activations_equal_the_naive_ones),
    TEST(test_tanh_and_sigmoid_are_right_to_a_few_roundings),
    TEST(test_activations_at_the_ends),
    TEST(test_smooth_activations_are_right_to_a_few_roundings),
    TEST(test_smooth_activations_at_the_ends),
    TEST(test_pools_equal_the_naive_ones),
    TEST(test_global_pools_equal_the_naive_ones),
    TEST(test_the_first_maximum_of_a_window_takes_the_gradient),
    TEST(test_a_nan_anywhere_in_a_window_comes_out),
    TEST(test_depthwise_convolutions_equal_the_naive_ones),
    TEST(test_group_norm_equals_the_naive_one),
    TEST(test_group_norm_of_a_distant_mean_keeps_its_digits),
    TEST(test_layer_norm_equals_the_naive_one),
    TEST(test_zero_padding_equals_the_naive_one),
    TEST(test_dropout_equals_the_naive_one),
    TEST(test_dropout_drops_its_share_and_keeps_the_mean),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
