/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolutions with and without their pool, as stages, against a naive convolution in double; on
 * each instruction set.
 *
 * Bounds. A sum of n products rounded to float in any order is off by at most n * UNIT_ROUNDOFF *
 * (sum of the products' magnitudes), to first order; two units more are allowed for the bias and
 * for the second order. Winograd's transforms add some ten units; they are used from 32 channels of
 * 3x3 windows on, where n = 288 and errors stay far below the bound. If the largest value is within
 * the bound of another value, or of 0 for relu, rounding may decide either way; such outputs get no
 * gradient.
 */
#include "fixtures.h"

extern const fed_stage_ops fed_conv_first, fed_conv_pooled;

static const float GUARD = -12345.0f;

typedef struct conv_case {
    size_t height, width, in_channels, out_channels;
    size_t window_height, window_width, stride_y, stride_x;
    int is_same, is_pooled, activation, has_bias;
} conv_case;

/* All arrays of a stage and of its naive reference. */
typedef struct conv {
    const fed_stage_ops *ops;
    fed_layer layer, pool;
    fed_stage stage;
    size_t num_flat;
    float *flat, *packed, *derived, *in, *out, *out_gradient, *in_gradient, *gradient;
    void *saved, *scratch;
    /* naive, [out height, width, channels] before the pool */
    double *sums, *bounds;
    /* naive, for each output of the stage */
    double *outputs, *output_bounds;
    size_t *chosen; /* index into sums */
    /* naive gradients by the flat parameters and by the image */
    double *flat_gradient, *flat_bounds, *image_gradient, *image_bounds;
} conv;

static size_t same_pad(size_t size, size_t out, size_t window, size_t stride) {
    const size_t needed = (out - 1) * stride + window;
    return needed > size ? (needed - size) / 2 : 0;
}

static size_t num_windows(size_t size, size_t window, size_t stride, int is_same) {
    return is_same ? (size + stride - 1) / stride : (size - window) / stride + 1;
}

static void set_layers(conv *c, const conv_case *of) {
    c->layer = (fed_layer){
        .kind = KIND_CONV2D,
        .activation = of->activation,
        .in = {of->height, of->width, of->in_channels},
        .out = {num_windows(of->height, of->window_height, of->stride_y, of->is_same),
                num_windows(of->width, of->window_width, of->stride_x, of->is_same),
                of->out_channels},
        .offset = 3, /* other parameters come first */
        .has_bias = of->has_bias,
        .window_height = of->window_height,
        .window_width = of->window_width,
        .stride_y = of->stride_y,
        .stride_x = of->stride_x,
    };
    fed_layer *layer = &c->layer;
    if (of->is_same) {
        layer->pad_top = same_pad(of->height, layer->out.height, of->window_height, of->stride_y);
        layer->pad_left = same_pad(of->width, layer->out.width, of->window_width, of->stride_x);
    }
    c->pool = (fed_layer){.kind = KIND_MAX_POOL,
                          .in = layer->out,
                          .out = {layer->out.height / 2, layer->out.width / 2, of->out_channels},
                          .window_height = 2,
                          .window_width = 2,
                          .stride_y = 2,
                          .stride_x = 2};
    c->stage = (fed_stage){.ops = c->ops,
                           .layer = layer,
                           .pool = of->is_pooled ? &c->pool : NULL,
                           .is_first = c->ops->takes_raw,
                           .shape = of->is_pooled ? c->pool.out : layer->out};
}

static void *zeros(size_t num, size_t size) {
    void *memory = test_alloc(num * size);
    memset(memory, 0, num * size);
    return memory;
}

static float *guards(size_t num) {
    float *values = test_alloc(num * sizeof(*values));
    for (size_t i = 0; i < num; i++) values[i] = GUARD;
    return values;
}

static void *dirt(size_t num_bytes) {
    void *memory = test_alloc(num_bytes);
    memset(memory, 0x7f, num_bytes);
    return memory;
}

static size_t place(const fed_buffer *buffer, size_t y, size_t x, size_t channel) {
    return buffer->origin + y * buffer->row_stride + x * buffer->pixel_stride + channel;
}

/* A pixel of the outputs, and a pixel of the image in its window. out: the output pixel's first
 * channel; flat: the first of the flat weights between the two; y, x: the pixel of the image. */
typedef struct tap {
    size_t out, flat, y, x;
} tap;

/* Calls visit(c, tap) for each tap inside the image; outside, the inputs are 0. */
static void for_each_tap(conv *c, void (*visit)(conv *, const tap *)) {
    const fed_layer *l = &c->layer;
    const size_t num_taps = l->window_height * l->window_width;
    for (size_t pixel = 0; pixel < l->out.height * l->out.width; pixel++)
        for (size_t i = 0; i < num_taps; i++) {
            /* above and left of the image, y or x wraps around to a number larger than any size */
            const tap s = {
                .out = pixel * l->out.channels,
                .flat = l->offset + i * l->in.channels * l->out.channels,
                .y = pixel / l->out.width * l->stride_y + i / l->window_width - l->pad_top,
                .x = pixel % l->out.width * l->stride_x + i % l->window_width - l->pad_left,
            };
            if (s.y < l->in.height && s.x < l->in.width) visit(c, &s);
        }
}

static size_t num_weights(const fed_layer *l) {
    return l->window_height * l->window_width * l->in.channels * l->out.channels;
}

static void add_products(conv *c, const tap *s) {
    const fed_layer *l = &c->layer;
    for (size_t i = 0; i < l->in.channels; i++) {
        const double value = c->in[place(&c->stage.in, s->y, s->x, i)];
        for (size_t o = 0; o < l->out.channels; o++) {
            const double product = c->flat[s->flat + i * l->out.channels + o] * value;
            c->sums[s->out + o] += product;
            c->bounds[s->out + o] += fabs(product);
        }
    }
}

static double activate(int activation, double x) {
    return activation == FED_RELU      ? (x < 0 ? 0 : x)
           : activation == FED_TANH    ? tanh(x)
           : activation == FED_SIGMOID ? 1 / (1 + exp(-x))
                                       : x;
}

static double activation_slope(int activation, double y) {
    return activation == FED_RELU      ? y > 0
           : activation == FED_TANH    ? 1 - y * y
           : activation == FED_SIGMOID ? y * (1 - y)
                                       : 1;
}

/* Computes one output of the stage, and which value of the convolution it comes from. If rounding
 * may decide which value this is, the output gets a gradient of 0. */
static void choose(conv *c, size_t y, size_t x, size_t o) {
    const fed_shape *shape = &c->stage.shape, *full = &c->layer.out;
    const size_t scale = c->stage.pool != NULL ? 2 : 1;
    const size_t at = (y * shape->width + x) * shape->channels + o;
    const size_t first = (y * scale * full->width + x * scale) * full->channels + o;
    size_t best = first;
    double bound = c->bounds[first];
    for (size_t dy = 0; dy < scale; dy++)
        for (size_t dx = 0; dx < scale; dx++) {
            const size_t i = first + (dy * full->width + dx) * full->channels;
            if (c->sums[i] > c->sums[best]) best = i;
            bound = fmax(bound, c->bounds[i]);
        }
    int is_doubtful = c->layer.activation == FED_RELU && fabs(c->sums[best]) <= bound;
    for (size_t dy = 0; dy < scale; dy++)
        for (size_t dx = 0; dx < scale; dx++) {
            const size_t i = first + (dy * full->width + dx) * full->channels;
            is_doubtful |= i != best && c->sums[best] - c->sums[i] <= 2 * bound;
        }
    c->chosen[at] = best;
    c->outputs[at] = activate(c->layer.activation, c->sums[best]);
    /* Slopes are at most 1; the activations' own error is below 4 units of their value. */
    c->output_bounds[at] = bound + 4 * UNIT_ROUNDOFF;
    if (is_doubtful) c->out_gradient[place(&c->stage.out, y, x, o)] = 0;
}

static void naive_forward(conv *c) {
    const fed_layer *l = &c->layer;
    for_each_tap(c, add_products);
    const double num_terms = (double)(num_weights(l) / l->out.channels + 3);
    for (size_t i = 0; i < fed_shape_size(&l->out); i++) {
        const double bias =
            l->has_bias ? c->flat[l->offset + num_weights(l) + i % l->out.channels] : 0;
        c->sums[i] += bias;
        c->bounds[i] = num_terms * UNIT_ROUNDOFF * (c->bounds[i] + fabs(bias));
    }
    for (size_t y = 0; y < c->stage.shape.height; y++)
        for (size_t x = 0; x < c->stage.shape.width; x++)
            for (size_t o = 0; o < l->out.channels; o++) choose(c, y, x, o);
}

static double *sums_gradient; /* by c->sums; add_gradients reads it for each tap */

static void add_gradients(conv *c, const tap *s) {
    const fed_layer *l = &c->layer;
    for (size_t i = 0; i < l->in.channels; i++) {
        const double value = c->in[place(&c->stage.in, s->y, s->x, i)];
        double by_image = 0, bound = 0;
        for (size_t o = 0; o < l->out.channels; o++) {
            const size_t flat = s->flat + i * l->out.channels + o;
            const double g = sums_gradient[s->out + o];
            c->flat_gradient[flat] += g * value;
            c->flat_bounds[flat] += fabs(g * value);
            by_image += g * c->flat[flat];
            bound += fabs(g * c->flat[flat]);
        }
        const size_t image = (s->y * l->in.width + s->x) * l->in.channels + i;
        c->image_gradient[image] += by_image;
        c->image_bounds[image] += bound;
    }
}

static void naive_backward(conv *c) {
    const fed_layer *l = &c->layer;
    const size_t num_outputs = fed_shape_size(&c->stage.shape);
    sums_gradient = zeros(fed_shape_size(&l->out), sizeof(double));
    for (size_t i = 0; i < num_outputs; i++) {
        const size_t pixel = i / l->out.channels, o = i % l->out.channels;
        const size_t at =
            place(&c->stage.out, pixel / c->stage.shape.width, pixel % c->stage.shape.width, o);
        /* The slope is taken at the core's own output, so that the output's error does not count as
         * an error of the gradient. */
        const double g = c->out_gradient[at] * activation_slope(l->activation, (double)c->out[at]);
        sums_gradient[c->chosen[i]] += g;
        if (!l->has_bias) continue;
        c->flat_gradient[l->offset + num_weights(l) + o] += g;
        c->flat_bounds[l->offset + num_weights(l) + o] += fabs(g);
    }
    for_each_tap(c, add_gradients);
    free(sums_gradient);
}

static void fill_image(conv *c, uint64_t seed, double scale, float offset) {
    const fed_shape *in = &c->layer.in;
    for (size_t y = 0; y < in->height; y++)
        for (size_t x = 0; x < in->width; x++)
            for (size_t i = 0; i < in->channels; i++)
                c->in[place(&c->stage.in, y, x, i)] = next_float(&seed, scale) + offset;
}

static conv conv_new(const conv_case *of, const fed_stage_ops *ops) {
    conv c = {.ops = ops};
    set_layers(&c, of);
    fed_stage *stage = &c.stage;
    stage->layer = &c.layer;
    stage->in = own_input(stage);
    ops->lay_out(stage);
    const size_t channels = fed_padded(of->out_channels), margin = 2;
    stage->out.pixel_stride = channels;
    stage->out.row_stride = (stage->shape.width + 2 * margin) * channels;
    stage->out.origin = stage->out.row_stride + margin * channels;
    stage->out.num_values = (stage->shape.height + 2) * stage->out.row_stride;
    c.num_flat = c.layer.offset + num_weights(&c.layer) + (of->has_bias ? of->out_channels : 0);
    c.flat = test_alloc(c.num_flat * sizeof(float));
    fill_floats(1, 1, c.flat, c.num_flat);
    c.packed = guards(stage->packed_size);
    c.derived = guards(stage->derived_size);
    c.in = zeros(stage->in.num_values, sizeof(float));
    fill_image(&c, 2, 1, 0);
    uint64_t seed = 3;
    c.out = guards(stage->out.num_values);
    c.out_gradient = guards(stage->out.num_values);
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++)
            for (size_t o = 0; o < channels; o++)
                c.out_gradient[place(&stage->out, y, x, o)] =
                    o < of->out_channels ? next_float(&seed, 1) : 0;
    c.in_gradient = guards(stage->in.num_values);
    c.saved = dirt(stage->saved_bytes);
    c.scratch = dirt(stage->scratch_bytes);
    const size_t num_sums = fed_shape_size(&c.layer.out), num_out = fed_shape_size(&stage->shape);
    const size_t num_in = fed_shape_size(&c.layer.in);
    c.sums = zeros(num_sums, sizeof(double));
    c.bounds = zeros(num_sums, sizeof(double));
    c.outputs = zeros(num_out, sizeof(double));
    c.output_bounds = zeros(num_out, sizeof(double));
    c.chosen = zeros(num_out, sizeof(size_t));
    c.flat_gradient = zeros(c.num_flat, sizeof(double));
    c.flat_bounds = zeros(c.num_flat, sizeof(double));
    c.image_gradient = zeros(num_in, sizeof(double));
    c.image_bounds = zeros(num_in, sizeof(double));
    c.gradient = test_alloc(stage->packed_size * sizeof(float));
    return c;
}

static void conv_free(conv *c) {
    void *all[] = {c->flat,        c->packed,         c->derived,     c->in,
                   c->out,         c->out_gradient,   c->in_gradient, c->gradient,
                   c->saved,       c->scratch,        c->sums,        c->bounds,
                   c->outputs,     c->output_bounds,  c->chosen,      c->flat_gradient,
                   c->flat_bounds, c->image_gradient, c->image_bounds};
    for (size_t i = 0; i < LENGTH(all); i++) free(all[i]);
}

static fed_pass pass_of(conv *c) {
    c->stage.layer = &c->layer;
    if (c->stage.pool != NULL) c->stage.pool = &c->pool;
    return (fed_pass){.kernels = fed_active_kernels(),
                      .stage = &c->stage,
                      .params = c->packed,
                      .derived = c->derived,
                      .in = c->in,
                      .out = c->out,
                      .saved = c->saved,
                      .scratch = c->scratch,
                      .out_gradient = c->out_gradient,
                      .in_gradient = c->ops->takes_raw ? NULL : c->in_gradient,
                      .gradient = c->gradient};
}

static void prepare(conv *c) {
    c->stage.layer = &c->layer;
    c->ops->pack(&c->stage, c->flat, c->packed);
    if (c->ops->derive != NULL)
        c->ops->derive(fed_active_kernels(), &c->stage, c->packed, c->derived, c->scratch);
}

/* The interior has the reference's values, padding channels are 0, the border is unchanged. */
static void check_outputs(const conv *c) {
    const fed_shape *shape = &c->stage.shape;
    const fed_buffer *out = &c->stage.out;
    char *is_seen = zeros(out->num_values, 1);
    for (size_t y = 0; y < shape->height; y++)
        for (size_t x = 0; x < shape->width; x++)
            for (size_t o = 0; o < out->pixel_stride; o++) {
                const size_t at = (y * shape->width + x) * shape->channels + o;
                const float value = c->out[place(out, y, x, o)];
                is_seen[place(out, y, x, o)] = 1;
                if (o < shape->channels)
                    CHECK_CLOSE(value, c->outputs[at], c->output_bounds[at]);
                else
                    CHECK(value == 0);
            }
    for (size_t i = 0; i < out->num_values; i++) CHECK(is_seen[i] || c->out[i] == GUARD);
    free(is_seen);
}

static void check_gradients(const conv *c, const float *before) {
    const fed_layer *l = &c->layer;
    const size_t num_outputs = fed_shape_size(&c->stage.shape);
    double *packed = test_alloc(c->stage.packed_size * sizeof(double));
    double *flat = zeros(c->num_flat, sizeof(double));
    float *unpacked = test_alloc(c->num_flat * sizeof(float));
    float *again = guards(c->stage.packed_size);
    for (size_t i = 0; i < c->stage.packed_size; i++) packed[i] = c->gradient[i];
    c->ops->unpack(&c->stage, packed, flat);
    /* Slopes of tanh and sigmoid have rounding errors, too: four units of a product. */
    const double share = (double)(num_outputs / l->out.channels + 8) * UNIT_ROUNDOFF;
    for (size_t i = l->offset; i < c->num_flat; i++)
        CHECK_CLOSE(flat[i], before[i] + c->flat_gradient[i],
                    share * (c->flat_bounds[i] + fabs((double)before[i])));
    for (size_t i = 0; i < c->num_flat; i++) unpacked[i] = (float)flat[i];
    c->ops->pack(&c->stage, unpacked, again);
    CHECK_BYTES(again, c->gradient, c->stage.packed_size * sizeof(float)); /* padding gets no
                                                                              gradient */
    free(packed);
    free(flat);
    free(unpacked);
    free(again);
    if (c->ops->takes_raw) return;
    const double most = (double)(num_weights(l) / l->in.channels + 8) * UNIT_ROUNDOFF;
    for (size_t i = 0; i < fed_shape_size(&l->in); i++) {
        const size_t pixel = i / l->in.channels;
        const float value = c->in_gradient[place(&c->stage.in, pixel / l->in.width,
                                                 pixel % l->in.width, i % l->in.channels)];
        CHECK_CLOSE(value, c->image_gradient[i], most * c->image_bounds[i] + 1e-30);
    }
}

static void check_case(const conv_case *of, const fed_stage_ops *ops) {
    conv c = conv_new(of, ops);
    prepare(&c);
    fed_pass pass = pass_of(&c);
    naive_forward(&c);
    ops->forward(&pass);
    check_outputs(&c);
    float *trained = test_alloc(c.stage.out.num_values * sizeof(float));
    memcpy(trained, c.out, c.stage.out.num_values * sizeof(float));
    pass.saved = NULL;
    ops->forward(&pass);
    CHECK_BYTES(c.out, trained, c.stage.out.num_values * sizeof(float));
    free(trained);
    pass.saved = c.saved;
    naive_backward(&c);
    float *before = test_alloc(c.num_flat * sizeof(float));
    fill_floats(5, 1, before, c.num_flat);
    ops->pack(&c.stage, before, c.gradient);
    ops->backward(&pass);
    check_gradients(&c, before);
    free(before);
    conv_free(&c);
}

/* height, width, in, out channels; window; strides; same, pooled, activation, bias */
static const conv_case CASES[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, FED_LINEAR, 1},
    {1, 1, 3, 7, 3, 3, 1, 1, 1, 0, FED_RELU, 1},
    {2, 2, 5, 17, 2, 2, 1, 1, 1, 1, FED_SIGMOID, 1},
    {5, 13, 3, 11, 3, 3, 1, 1, 1, 1, FED_RELU, 1},
    {6, 14, 1, 16, 5, 5, 1, 1, 1, 1, FED_TANH, 1},
    {7, 15, 2, 33, 3, 3, 1, 1, 1, 0, FED_RELU, 0},
    {5, 27, 1, 32, 3, 3, 1, 1, 1, 1, FED_LINEAR, 1},
    {6, 28, 3, 48, 5, 5, 1, 1, 1, 1, FED_RELU, 1},
    {4, 29, 17, 13, 3, 1, 1, 1, 1, 0, FED_SIGMOID, 1},
    {9, 9, 31, 62, 3, 3, 2, 2, 1, 0, FED_RELU, 1},
    {11, 10, 4, 6, 7, 7, 2, 3, 1, 1, FED_RELU, 1},
    {23, 23, 3, 64, 11, 11, 4, 4, 0, 0, FED_RELU, 1},
    {12, 12, 6, 16, 5, 5, 1, 1, 0, 1, FED_TANH, 1},
    {8, 8, 64, 20, 1, 1, 1, 1, 0, 0, FED_RELU, 1},
    {8, 8, 40, 32, 1, 1, 2, 2, 0, 0, FED_LINEAR, 1},
    {10, 10, 16, 24, 4, 6, 1, 1, 1, 1, FED_RELU, 1},
    {12, 12, 96, 32, 5, 5, 1, 1, 0, 1, FED_RELU, 1},
    {14, 14, 32, 64, 5, 5, 1, 1, 1, 1, FED_RELU, 1},
    {26, 26, 32, 64, 3, 3, 1, 1, 0, 1, FED_RELU, 1},
    {28, 28, 1, 32, 5, 5, 1, 1, 1, 1, FED_RELU, 1},
    {28, 28, 1, 32, 3, 3, 1, 1, 0, 0, FED_RELU, 1},
    {8, 12, 33, 65, 3, 3, 1, 1, 1, 0, FED_RELU, 1},
    {8, 6, 17, 80, 3, 3, 1, 1, 1, 1, FED_RELU, 1},
    {7, 9, 16, 129, 3, 3, 2, 2, 1, 0, FED_LINEAR, 1},
    {16, 8, 48, 32, 3, 3, 1, 1, 1, 1, FED_LINEAR, 0},
    {6, 10, 32, 37, 5, 5, 1, 1, 1, 0, FED_TANH, 1},
    {24, 24, 1, 2, 9, 9, 1, 1, 1, 1, FED_RELU, 1},
    {3, 40, 300, 5, 3, 3, 1, 1, 1, 0, FED_RELU, 1},
    {16, 24, 300, 32, 3, 3, 1, 1, 1, 1, FED_RELU, 1},
    {1, 2, 16, 16, 1, 2, 1, 1, 0, 0, FED_RELU, 1},
    {13, 3, 13, 19, 2, 3, 3, 1, 1, 1, FED_RELU, 1},
};

static void test_lists_equal_naive_convolution(void) {
    for (size_t i = 0; i < LENGTH(CASES); i++)
        if (CASES[i].is_pooled) check_case(&CASES[i], &fed_conv_pooled);
}

static void test_taps_equal_naive_convolution(void) {
    for (size_t i = 0; i < LENGTH(CASES); i++) check_case(&CASES[i], &fed_conv_first);
}

/* On an image of one colour all four values of a cell are equal, and the first one must be chosen.
 * The gradient by the weights, computed with another image, shows which one was. */
static void check_ties(const fed_stage_ops *ops, size_t in_channels, size_t window) {
    const conv_case of = {12, 12, in_channels, 32, window, window, 1, 1, 0, 1, FED_LINEAR, 0};
    conv c = conv_new(&of, ops);
    fill_image(&c, 1, 0, 1);
    for (size_t i = 0; i < c.num_flat; i++) c.flat[i] = 1;
    prepare(&c);
    fed_pass pass = pass_of(&c);
    ops->forward(&pass);
    fill_image(&c, 7, 1, 0);
    const fed_shape *shape = &c.stage.shape, *full = &c.layer.out;
    for (size_t y = 0; y < shape->height; y++)
        for (size_t x = 0; x < shape->width; x++)
            for (size_t o = 0; o < shape->channels; o++) {
                const size_t at = (y * shape->width + x) * shape->channels + o;
                c.chosen[at] = (2 * y * full->width + 2 * x) * full->channels + o;
            }
    naive_backward(&c);
    float *before = zeros(c.num_flat, sizeof(float));
    memset(c.gradient, 0, c.stage.packed_size * sizeof(float));
    ops->backward(&pass);
    check_gradients(&c, before);
    free(before);
    conv_free(&c);
}

static void test_first_of_equal_values_gets_the_gradient(void) {
    check_ties(&fed_conv_first, 2, 3);
    check_ties(&fed_conv_pooled, 5, 3);
    check_ties(&fed_conv_pooled, 7, 4);
}

/* A NaN anywhere in the image makes every output that sees it NaN. */
static void check_nan(const conv_case *of, const fed_stage_ops *ops, size_t y, size_t x) {
    conv c = conv_new(of, ops);
    c.in[place(&c.stage.in, y, x, 0)] = NAN;
    prepare(&c);
    fed_pass pass = pass_of(&c);
    for_each_tap(&c, add_products);
    ops->forward(&pass);
    const fed_shape *shape = &c.stage.shape, *full = &c.layer.out;
    const size_t scale = of->is_pooled ? 2 : 1;
    for (size_t i = 0; i < shape->height; i++)
        for (size_t j = 0; j < shape->width; j++) {
            double sum = 0;
            for (size_t dy = 0; dy < scale; dy++)
                for (size_t dx = 0; dx < scale; dx++)
                    sum +=
                        c.sums[((scale * i + dy) * full->width + scale * j + dx) * full->channels];
            CHECK(!isnan(sum) || isnan(c.out[place(&c.stage.out, i, j, 0)]));
        }
    conv_free(&c);
}

static void test_nan_reaches_every_output_that_sees_it(void) {
    static const conv_case cases[] = {
        {8, 8, 3, 16, 1, 1, 1, 1, 0, 1, FED_RELU, 1},
        {8, 8, 40, 40, 3, 3, 1, 1, 1, 1, FED_RELU, 1},
        {8, 8, 40, 40, 5, 5, 1, 1, 1, 1, FED_RELU, 1},
        {8, 8, 40, 40, 2, 2, 1, 1, 1, 1, FED_RELU, 1},
    };
    for (size_t i = 0; i < LENGTH(cases); i++)
        for (size_t y = 2; y < 4; y++)
            for (size_t x = 2; x < 4; x++) {
                check_nan(&cases[i], &fed_conv_pooled, y, x);
                check_nan(&cases[i], &fed_conv_first, y, x);
            }
}

static const test_case TESTS[] = {
    TEST(test_lists_equal_naive_convolution),
    TEST(test_taps_equal_naive_convolution),
    TEST(test_first_of_equal_values_gets_the_gradient),
    TEST(test_nan_reaches_every_output_that_sees_it),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
