/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolutions of a group of images, by each method, against a naive convolution in double; on each
 * instruction set.
 *
 * Bounds are on the largest error divided by the largest value. Winograd's transforms multiply
 * rounding errors by about 10, and a little more for 5x5 windows.
 */
#include "fixtures.h"
#include "layers/image_conv.h"

static const float GUARD = -12345.0f;
enum { NUM_GUARDS = 64 };

typedef struct image_case {
    size_t num_images, height, width, in_channels, out_channels;
    size_t window_height, window_width, stride_y, stride_x;
    int is_same, is_relu, has_bias;
    size_t border; /* of the inputs, in addition to what windows cover; and of the outputs */
    int is_raw;    /* 1: inputs have no padded channels and get no gradient */
} image_case;

/* The arrays of a method and of its naive reference. */
typedef struct image_conv {
    fed_image_conv conv;
    size_t num_in, num_out, num_weights, num_bias, num_scratch; /* floats */
    float *in, *weights, *bias, *out, *out_gradient;
    float *in_gradient, *weights_gradient, *bias_gradient, *scratch;
    /* naive, with the same layouts */
    double *right_out, *right_in_gradient, *right_weights_gradient, *right_bias_gradient;
} image_conv;

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Floats aligned to 64 bytes, with guards after them. */
static float *guarded_floats(size_t num, float value) {
    float *values = aligned_alloc(64, fed_padded(num + NUM_GUARDS) * sizeof *values);
    CHECK(values != NULL);
    for (size_t i = 0; i < num; i++) values[i] = value;
    for (size_t i = 0; i < NUM_GUARDS; i++) values[num + i] = GUARD;
    return values;
}

static double *zero_doubles(size_t num) {
    double *values = test_alloc(num * sizeof *values);
    for (size_t i = 0; i < num; i++) values[i] = 0;
    return values;
}

static void check_guards(const float *values, size_t num) {
    for (size_t i = 0; i < NUM_GUARDS; i++) CHECK(values[num + i] == GUARD);
}

/* ---- The naive reference --------------------------------------------------------------------- */

static size_t num_windows(size_t size, size_t window, size_t stride, int is_same) {
    return is_same ? (size + stride - 1) / stride : (size - window) / stride + 1;
}

static size_t padding(size_t size, size_t out, size_t window, size_t stride, int is_same) {
    const size_t needed = (out - 1) * stride + window;
    return is_same && needed > size ? (needed - size) / 2 : 0;
}

/* A buffer with a border of `before` and `after` pixels on both axes. */
static fed_buffer bordered(const fed_shape *shape, size_t pixel_stride, size_t before,
                           size_t after) {
    fed_buffer buffer = {.pixel_stride = pixel_stride};
    buffer.row_stride = (shape->width + before + after) * buffer.pixel_stride;
    buffer.origin = before * (buffer.row_stride + buffer.pixel_stride);
    buffer.num_values = (shape->height + before + after) * buffer.row_stride;
    return buffer;
}

static size_t weight_at(const fed_image_conv *conv, size_t o, size_t y, size_t x, size_t i) {
    const size_t inputs = conv->in.pixel_stride;
    const size_t tap = y * conv->window_width + x;
    const size_t num_taps = conv->window_height * conv->window_width;
    return ((o / FED_IMAGE_PANEL * num_taps + tap) * inputs + i) * FED_IMAGE_PANEL +
           o % FED_IMAGE_PANEL;
}

/* One pixel of the outputs and one pixel of the inputs in its window: the offsets of their
 * channels, and the row and column in the window. */
typedef struct tap {
    size_t out, in, y, x;
} tap;

typedef void visit_tap(image_conv *t, const tap *s);

static void visit_window(image_conv *t, size_t image, size_t oy, size_t ox, visit_tap *visit) {
    const fed_image_conv *c = &t->conv;
    tap s = {.out = image * c->out.num_values + fed_pixel(&c->out, oy, ox)};
    for (s.y = 0; s.y < c->window_height; s.y++)
        for (s.x = 0; s.x < c->window_width; s.x++) {
            /* above and left of the image, iy or ix wraps around to a number beyond any size */
            const size_t iy = oy * c->stride_y + s.y - c->pad_top;
            const size_t ix = ox * c->stride_x + s.x - c->pad_left;
            if (iy >= c->in_shape.height || ix >= c->in_shape.width) continue;
            s.in = image * c->in.num_values + fed_pixel(&c->in, iy, ix);
            visit(t, &s);
        }
}

static void visit_taps(image_conv *t, visit_tap *visit) {
    const fed_image_conv *c = &t->conv;
    for (size_t n = 0; n < c->num_images; n++)
        for (size_t y = 0; y < c->out_shape.height; y++)
            for (size_t x = 0; x < c->out_shape.width; x++) visit_window(t, n, y, x, visit);
}

static void add_outputs(image_conv *t, const tap *s) {
    const fed_image_conv *c = &t->conv;
    for (size_t i = 0; i < c->in_shape.channels; i++) {
        const double value = (double)t->in[s->in + i];
        for (size_t o = 0; o < c->out_shape.channels; o++)
            t->right_out[s->out + o] += value * (double)t->weights[weight_at(c, o, s->y, s->x, i)];
    }
}

static void add_gradients(image_conv *t, const tap *s) {
    const fed_image_conv *c = &t->conv;
    for (size_t i = 0; i < c->in_shape.channels; i++) {
        const double value = (double)t->in[s->in + i];
        double in_gradient = 0;
        for (size_t o = 0; o < c->out_shape.channels; o++) {
            const size_t weight = weight_at(c, o, s->y, s->x, i);
            const double gradient = (double)t->out_gradient[s->out + o];
            in_gradient += gradient * (double)t->weights[weight];
            t->right_weights_gradient[weight] += gradient * value;
        }
        t->right_in_gradient[s->in + i] += in_gradient;
    }
}

/* Calls `visit` for each pixel of the outputs, with the offset of its channels. */
static void for_each_output(image_conv *t, void (*visit)(image_conv *t, size_t offset)) {
    const fed_image_conv *c = &t->conv;
    for (size_t n = 0; n < c->num_images; n++)
        for (size_t y = 0; y < c->out_shape.height; y++)
            for (size_t x = 0; x < c->out_shape.width; x++)
                visit(t, n * c->out.num_values + fed_pixel(&c->out, y, x));
}

static void finish_output(image_conv *t, size_t offset) {
    for (size_t o = 0; o < t->conv.out_shape.channels; o++) {
        double *out = &t->right_out[offset + o];
        *out += t->bias != NULL ? (double)t->bias[o] : 0;
        *out = fmax(*out, (double)t->conv.least);
        t->right_bias_gradient[o] += (double)t->out_gradient[offset + o];
    }
}

/* Computes the reference of the values that set_up has filled. */
static void set_right(image_conv *t) {
    t->right_out = zero_doubles(t->num_out);
    t->right_in_gradient = zero_doubles(t->num_in);
    t->right_weights_gradient = zero_doubles(t->num_weights);
    t->right_bias_gradient = zero_doubles(t->num_bias);
    t->right_weights_gradient[0] = t->right_bias_gradient[0] = 2;
    visit_taps(t, add_outputs);
    visit_taps(t, add_gradients);
    for_each_output(t, finish_output);
}

/* ---- Set-up ---------------------------------------------------------------------------------- */

static void set_conv(fed_image_conv *conv, const image_case *of) {
    *conv = (fed_image_conv){
        .num_images = of->num_images,
        .in_shape = {of->height, of->width, of->in_channels},
        .out_shape = {num_windows(of->height, of->window_height, of->stride_y, of->is_same),
                      num_windows(of->width, of->window_width, of->stride_x, of->is_same),
                      of->out_channels},
        .window_height = of->window_height,
        .window_width = of->window_width,
        .stride_y = of->stride_y,
        .stride_x = of->stride_x,
        .least = of->is_relu ? 0 : -HUGE_VALF,
    };
    const fed_shape *out = &conv->out_shape;
    conv->pad_top = padding(of->height, out->height, of->window_height, of->stride_y, of->is_same);
    conv->pad_left = padding(of->width, out->width, of->window_width, of->stride_x, of->is_same);
    const size_t most = of->window_height > of->window_width ? of->window_height : of->window_width;
    const size_t before = conv->pad_top > conv->pad_left ? conv->pad_top : conv->pad_left;
    const size_t in_stride = of->is_raw ? of->in_channels : fed_padded(of->in_channels);
    conv->in = bordered(&conv->in_shape, in_stride, before + of->border,
                        of->is_same ? most / 2 + of->stride_y + of->stride_x : 0);
    conv->out = bordered(&conv->out_shape, fed_padded(of->out_channels), of->border, of->border);
}

/* Writes random numbers to the pixels of images; other values do not change. */
static void fill_pixels(const fed_shape *shape, const fed_buffer *buffer, size_t num_images,
                        uint64_t *state, float *values) {
    for (size_t n = 0; n < num_images; n++)
        for (size_t y = 0; y < shape->height; y++)
            for (size_t x = 0; x < shape->width; x++)
                for (size_t c = 0; c < shape->channels; c++)
                    values[n * buffer->num_values + fed_pixel(buffer, y, x) + c] =
                        next_float(state, 1);
}

/* Makes padded channels of the gradient zeros, as in every layer. */
static void clear_padded_channels(image_conv *t, size_t offset) {
    for (size_t c = t->conv.out_shape.channels; c < t->conv.out.pixel_stride; c++)
        t->out_gradient[offset + c] = 0;
}

static void set_up(image_conv *t, const image_case *of, const fed_image_conv_method *method,
                   int num_workers) {
    *t = (image_conv){0};
    set_conv(&t->conv, of);
    const fed_image_conv *c = &t->conv;
    t->num_in = of->num_images * c->in.num_values, t->num_out = of->num_images * c->out.num_values;
    t->num_weights = fed_image_conv_weights(c), t->num_bias = fed_padded(of->out_channels);
    t->num_scratch = method->scratch_floats(c, num_workers);

    uint64_t state = 7;
    t->in = guarded_floats(t->num_in, 0);
    fill_pixels(&c->in_shape, &c->in, c->num_images, &state, t->in);
    t->weights = guarded_floats(t->num_weights, 0);
    const size_t fan_in = of->window_height * of->window_width * of->in_channels;
    for (size_t o = 0; o < of->out_channels; o++)
        for (size_t y = 0; y < of->window_height; y++)
            for (size_t x = 0; x < of->window_width; x++)
                for (size_t i = 0; i < of->in_channels; i++)
                    t->weights[weight_at(c, o, y, x, i)] =
                        next_float(&state, 1 / sqrt((double)fan_in));
    if (of->has_bias) {
        t->bias = guarded_floats(t->num_bias, 0);
        for (size_t o = 0; o < of->out_channels; o++) t->bias[o] = next_float(&state, 1);
    }
    t->out = guarded_floats(t->num_out, 0);
    /* The border of a gradient may hold anything. */
    t->out_gradient = guarded_floats(t->num_out, NAN);
    for_each_output(t, clear_padded_channels);
    fill_pixels(&c->out_shape, &c->out, c->num_images, &state, t->out_gradient);
    t->in_gradient = of->is_raw ? NULL : guarded_floats(t->num_in, NAN);
    t->weights_gradient = guarded_floats(t->num_weights, 0);
    t->bias_gradient = guarded_floats(t->num_bias, 0);
    t->weights_gradient[0] = t->bias_gradient[0] = 2; /* the gradient is added to these */
    t->scratch = guarded_floats(t->num_scratch, NAN);
}

static void tear_down(image_conv *t) {
    free(t->in), free(t->weights), free(t->bias), free(t->out), free(t->out_gradient);
    free(t->in_gradient), free(t->weights_gradient), free(t->bias_gradient), free(t->scratch);
    free(t->right_out), free(t->right_in_gradient);
    free(t->right_weights_gradient), free(t->right_bias_gradient);
}

static void run(image_conv *t, const fed_image_conv_method *method, int num_workers) {
    const fed_image_conv_io io = {.in = t->in,
                                  .weights = t->weights,
                                  .bias = t->bias,
                                  .out = t->out,
                                  .out_gradient = t->out_gradient,
                                  .in_gradient = t->in_gradient,
                                  .weights_gradient = t->weights_gradient,
                                  .bias_gradient = t->bias_gradient,
                                  .scratch = t->scratch,
                                  .num_workers = num_workers};
    method->forward(fed_active_kernels(), &t->conv, &io);
    check_guards(t->scratch, t->num_scratch);
    /* The backward pass must not depend on what the scratch holds. */
    for (size_t i = 0; i < t->num_scratch; i++) t->scratch[i] = NAN;
    method->backward(fed_active_kernels(), &t->conv, &io);
    check_guards(t->scratch, t->num_scratch);
    check_guards(t->out, t->num_out);
    if (t->in_gradient != NULL) check_guards(t->in_gradient, t->num_in);
    check_guards(t->weights_gradient, t->num_weights);
    check_guards(t->bias_gradient, t->num_bias);
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static void check_values(const float *actual, const double *expected, size_t num, double bound) {
    double largest = 0;
    for (size_t i = 0; i < num; i++) largest = fmax(largest, fabs(expected[i]));
    for (size_t i = 0; i < num; i++) CHECK_CLOSE(actual[i], expected[i], bound * largest);
}

/* The border of the gradient by the inputs is undefined, so it is cleared. */
static void clear_input_border(image_conv *t) {
    const fed_image_conv *c = &t->conv;
    float *clean = guarded_floats(t->num_in, 0);
    for (size_t n = 0; n < c->num_images; n++)
        fed_copy_interior(&c->in_shape, &c->in, t->in_gradient + n * c->in.num_values, &c->in,
                          clean + n * c->in.num_values);
    free(t->in_gradient);
    t->in_gradient = clean;
}

static void check_right(const image_conv *t, const image_conv *right, double bound) {
    check_values(t->out, right->right_out, t->num_out, bound);
    if (t->in_gradient != NULL)
        check_values(t->in_gradient, right->right_in_gradient, t->num_in, bound);
    check_values(t->weights_gradient, right->right_weights_gradient, t->num_weights, bound);
    check_values(t->bias_gradient, right->right_bias_gradient, t->num_bias, bound);
}

static void check_same(const image_conv *t, const image_conv *other) {
    CHECK_BYTES(t->out, other->out, t->num_out * sizeof *t->out);
    if (t->in_gradient != NULL)
        CHECK_BYTES(t->in_gradient, other->in_gradient, t->num_in * sizeof *t->in_gradient);
    CHECK_BYTES(t->weights_gradient, other->weights_gradient,
                t->num_weights * sizeof *t->weights_gradient);
    CHECK_BYTES(t->bias_gradient, other->bias_gradient, t->num_bias * sizeof *t->bias_gradient);
}

static void set_up_and_run(image_conv *t, const image_case *of, const fed_image_conv_method *method,
                           int num_workers) {
    set_up(t, of, method, num_workers);
    run(t, method, num_workers);
    if (!of->is_raw) clear_input_border(t);
}

static void check_case(const image_case *of, const fed_image_conv_method *method, double bound) {
    static const int workers[] = {2, 7};
    image_conv right, t, shared;
    set_up(&right, of, method, 1);
    CHECK(method->fits(&right.conv));
    set_right(&right);
    for (size_t isa = 0; next_isa(&isa);) {
        set_up_and_run(&t, of, method, 1);
        check_right(&t, &right, bound);
        for (size_t w = 0; w < LENGTH(workers); w++) {
            set_up_and_run(&shared, of, method, workers[w]);
            check_same(&shared, &t);
            tear_down(&shared);
        }
        tear_down(&t);
    }
    tear_down(&right);
}

static const image_case THREE_BY_THREE[] = {
    /* images, height, width, channels in, out; window; strides; same, relu, bias; border, raw */
    {1, 4, 4, 16, 16, 3, 3, 1, 1, 1, 0, 0, 0, 0},    {2, 8, 8, 16, 32, 3, 3, 1, 1, 1, 1, 1, 0, 0},
    {3, 12, 8, 3, 17, 3, 3, 1, 1, 1, 1, 1, 1, 0},    {1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 0, 1, 0, 0},
    {5, 2, 2, 33, 15, 3, 3, 1, 1, 1, 0, 1, 2, 0},    {3, 3, 5, 2, 33, 3, 3, 1, 1, 1, 1, 0, 1, 0},
    {2, 7, 6, 16, 48, 3, 3, 1, 1, 1, 0, 1, 0, 0},    {2, 5, 9, 20, 16, 3, 3, 1, 1, 0, 1, 1, 1, 0},
    {1, 6, 6, 16, 16, 3, 3, 1, 1, 0, 0, 0, 0, 0},    {1, 3, 3, 1, 16, 3, 3, 1, 1, 0, 0, 0, 0, 0},
    {20, 4, 4, 80, 96, 3, 3, 1, 1, 1, 1, 1, 0, 0},   /* few tiles */
    {97, 4, 3, 17, 20, 3, 3, 1, 1, 1, 1, 1, 0, 0},   /* many tiles, one per image */
    {3, 30, 26, 33, 40, 3, 3, 1, 1, 1, 1, 1, 1, 0},  /* many tiles, cut at the border */
    {4, 32, 32, 16, 96, 3, 3, 1, 1, 1, 1, 1, 1, 0},  /* several blocks backward */
    {1, 36, 100, 16, 96, 3, 3, 1, 1, 1, 0, 1, 0, 0}, /* an image in several blocks */
};

static const image_case FIVE_BY_FIVE[] = {
    {1, 4, 4, 16, 16, 5, 5, 1, 1, 1, 0, 0, 0, 0},   {2, 8, 8, 16, 32, 5, 5, 1, 1, 1, 1, 1, 0, 0},
    {3, 7, 5, 33, 17, 5, 5, 1, 1, 1, 0, 1, 1, 0},   {2, 9, 12, 3, 15, 5, 5, 1, 1, 0, 0, 1, 0, 0},
    {1, 1, 3, 16, 16, 5, 5, 1, 1, 1, 0, 1, 0, 0},   {1, 5, 5, 2, 1, 5, 5, 1, 1, 0, 0, 0, 0, 0},
    {20, 4, 4, 33, 80, 5, 5, 1, 1, 1, 1, 1, 0, 0},  /* few tiles */
    {2, 15, 28, 16, 96, 5, 5, 1, 1, 1, 1, 1, 1, 0}, /* several blocks backward */
    {1, 20, 40, 16, 96, 5, 5, 1, 1, 1, 0, 1, 0, 0}, /* an image in several blocks */
};

static const image_case STRIDED[] = {
    {1, 8, 8, 16, 16, 3, 3, 2, 2, 1, 0, 0, 0, 0},    {3, 7, 8, 3, 17, 3, 3, 2, 2, 1, 1, 1, 1, 0},
    {2, 9, 17, 33, 15, 3, 3, 2, 2, 0, 0, 1, 0, 0},   {3, 9, 9, 1, 1, 3, 3, 2, 2, 0, 0, 0, 2, 0},
    {2, 14, 16, 20, 33, 3, 3, 2, 2, 1, 0, 1, 1, 0},  {2, 30, 29, 16, 48, 3, 3, 2, 2, 1, 1, 1, 0, 0},
    {20, 8, 8, 80, 96, 3, 3, 2, 2, 1, 1, 1, 0, 0},   /* few tiles */
    {97, 8, 8, 17, 20, 3, 3, 2, 2, 1, 1, 1, 1, 0},   /* many tiles, one per image */
    {9, 32, 32, 16, 96, 3, 3, 2, 2, 1, 1, 1, 1, 0},  /* several blocks backward */
    {1, 64, 104, 16, 96, 3, 3, 2, 2, 1, 0, 1, 0, 0}, /* an image in several blocks */
};

static void test_winograd(void) {
    for (size_t i = 0; i < LENGTH(THREE_BY_THREE); i++)
        check_case(&THREE_BY_THREE[i], &fed_image_winograd, 2e-5);
    for (size_t i = 0; i < LENGTH(FIVE_BY_FIVE); i++)
        check_case(&FIVE_BY_FIVE[i], &fed_image_winograd, 4e-5);
    for (size_t i = 0; i < LENGTH(STRIDED); i++) check_case(&STRIDED[i], &fed_image_winograd, 1e-5);
}

static const image_case SMALL[] = {
    {20, 2, 2, 48, 80, 3, 3, 1, 1, 1, 1, 1, 1, 0}, {3, 2, 2, 17, 16, 3, 3, 1, 1, 1, 0, 1, 0, 0},
    {1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 0, 0, 0, 0},    {7, 1, 1, 33, 130, 1, 1, 1, 1, 0, 1, 1, 2, 0},
    {4, 2, 2, 16, 16, 5, 5, 1, 1, 1, 0, 1, 1, 0},  {5, 2, 2, 3, 2, 3, 3, 2, 2, 1, 0, 1, 0, 0},
    {2, 1, 4, 15, 33, 1, 3, 1, 1, 1, 1, 1, 0, 0},  {3, 2, 2, 64, 48, 2, 2, 1, 1, 0, 0, 1, 1, 0},
    {6, 2, 2, 16, 31, 1, 1, 1, 1, 1, 1, 1, 0, 0},
};

static void test_small(void) {
    for (size_t i = 0; i < LENGTH(SMALL); i++) check_case(&SMALL[i], &fed_image_small, 3e-6);
}

static const image_case ANY_WINDOW[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0},
    {3, 7, 6, 17, 33, 1, 1, 1, 1, 0, 1, 1, 1, 0},
    {2, 6, 6, 16, 15, 1, 1, 2, 2, 0, 0, 1, 0, 0},
    {2, 7, 5, 3, 16, 3, 3, 2, 2, 1, 1, 1, 0, 0},
    {2, 8, 8, 16, 48, 3, 3, 2, 2, 1, 0, 0, 1, 0},
    {1, 9, 7, 33, 17, 5, 5, 1, 1, 1, 1, 1, 0, 0},
    {2, 9, 8, 2, 3, 7, 7, 2, 2, 1, 0, 1, 0, 0},
    {1, 6, 9, 15, 16, 2, 5, 1, 3, 1, 0, 1, 1, 0},
    {2, 11, 9, 20, 16, 4, 1, 3, 2, 0, 1, 1, 2, 0},
    {1, 5, 4, 16, 16, 5, 4, 1, 1, 0, 0, 1, 0, 0},
    {1, 5, 5, 1, 2, 3, 3, 4, 5, 1, 0, 1, 0, 0},
    {5, 4, 4, 16, 16, 3, 3, 1, 1, 1, 0, 0, 0, 0},
    {2, 9, 8, 3, 17, 5, 5, 1, 1, 1, 1, 1, 0, 1},
    {3, 7, 7, 1, 40, 3, 3, 2, 2, 1, 0, 0, 1, 1},
    {19, 4, 4, 96, 160, 3, 3, 2, 2, 1, 1, 1, 1, 0}, /* several panels of the gradient */
    {1, 3, 4, 850, 16, 1, 1, 1, 1, 0, 0, 1, 0, 0},  /* runs that are cut */
    {2, 3, 3, 300, 48, 3, 3, 1, 1, 1, 0, 1, 0, 0},
    {3, 30, 26, 33, 40, 3, 3, 2, 2, 1, 1, 1, 1, 0},
    {2, 34, 33, 16, 16, 1, 1, 1, 1, 0, 0, 1, 1, 0}, /* several blocks of pixels */
    /* the last panel is half full, or has one channel more or less */
    {3, 9, 8, 24, 24, 1, 1, 1, 1, 0, 1, 1, 1, 0},
    {2, 9, 8, 23, 25, 1, 1, 1, 1, 0, 0, 1, 0, 0},
    {1, 5, 7, 8, 9, 2, 2, 1, 1, 1, 0, 1, 0, 0},
    {1, 4, 5, 56, 136, 1, 1, 1, 1, 0, 0, 1, 0, 0},
};

static void test_gemm(void) {
    for (size_t i = 0; i < LENGTH(ANY_WINDOW); i++)
        check_case(&ANY_WINDOW[i], &fed_image_gemm, 3e-6);
}

/* A NaN in a corner of an image makes every output that sees it NaN, also behind relu. */
static void check_nan(const image_case *of, const fed_image_conv_method *method) {
    for (size_t isa = 0; next_isa(&isa);) {
        image_conv t;
        set_up(&t, of, method, 1);
        t.in[fed_pixel(&t.conv.in, 0, 0)] = NAN;
        t.right_out = zero_doubles(t.num_out);
        visit_taps(&t, add_outputs);
        run(&t, method, 1);
        size_t num_nan = 0;
        for (size_t i = 0; i < t.num_out; i++) {
            CHECK(!isnan(t.right_out[i]) || isnan(t.out[i]));
            num_nan += isnan(t.right_out[i]) ? 1 : 0;
        }
        CHECK(num_nan >= of->out_channels);
        tear_down(&t);
    }
}

static void test_nan_reaches_every_output_that_sees_it(void) {
    static const image_case three = {2, 8, 8, 40, 40, 3, 3, 1, 1, 1, 1, 1, 0, 0};
    static const image_case five = {2, 8, 8, 40, 40, 5, 5, 1, 1, 1, 1, 1, 0, 0};
    static const image_case strided = {2, 8, 8, 40, 40, 3, 3, 2, 2, 1, 1, 1, 0, 0};
    static const image_case small = {2, 2, 2, 40, 40, 3, 3, 1, 1, 1, 1, 1, 0, 0};
    check_nan(&three, &fed_image_winograd);
    check_nan(&five, &fed_image_winograd);
    check_nan(&strided, &fed_image_winograd);
    check_nan(&small, &fed_image_small);
    check_nan(&three, &fed_image_gemm);
}

static const fed_image_conv_method *choice(const image_case *of) {
    fed_image_conv conv;
    set_conv(&conv, of);
    return fed_image_conv_choose(&conv);
}

static void test_the_fastest_method_is_chosen(void) {
    const image_case small = {5, 2, 2, 16, 16, 3, 3, 1, 1, 1, 0, 0, 0, 0};
    const image_case square = {5, 3, 2, 16, 16, 3, 3, 1, 1, 1, 0, 0, 0, 0};
    const image_case wide = {5, 3, 2, 16, 16, 5, 5, 1, 1, 1, 0, 0, 0, 0};
    const image_case strided = {5, 8, 8, 16, 16, 3, 3, 2, 2, 1, 0, 0, 0, 0};
    const image_case uncovered = {5, 10, 10, 16, 16, 3, 3, 2, 2, 0, 0, 0, 0, 0};
    const image_case cut = {5, 12, 12, 16, 16, 3, 3, 2, 2, 1, 0, 0, 0, 0};
    const image_case uneven = {5, 8, 8, 16, 16, 3, 3, 2, 1, 1, 0, 0, 0, 0};
    const image_case colours = {5, 8, 8, 3, 16, 3, 3, 1, 1, 1, 0, 0, 0, 1};
    CHECK(choice(&small) == &fed_image_small);
    CHECK(choice(&square) == &fed_image_winograd);
    CHECK(choice(&wide) == &fed_image_winograd);
    CHECK(choice(&strided) == &fed_image_winograd);
    CHECK(choice(&uncovered) == &fed_image_gemm);
    CHECK(choice(&cut) == &fed_image_gemm);
    CHECK(choice(&uneven) == &fed_image_gemm);
    CHECK(choice(&colours) == &fed_image_gemm);
}

static const test_case TESTS[] = {TEST(test_winograd), TEST(test_small), TEST(test_gemm),
                                  TEST(test_nan_reaches_every_output_that_sees_it),
                                  TEST(test_the_fastest_method_is_chosen)};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
