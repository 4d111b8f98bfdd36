/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of images of at most 2x2 pixels. Most of a window is in the border: of the 36 pairs
 * of an output and a tap of a 3x3 window, only 16 read a pixel. Only these 16 are computed. Each is
 * a product of the values of one pixel in all images with the weights of one tap. */
#include "image_conv.h"
#include "threads.h"

#include <math.h>

enum { MOST_PIXELS = 4, MOST_RUNS = MOST_PIXELS * MOST_PIXELS };
enum { PANEL = FED_IMAGE_PANEL, PANEL_SQUARE = PANEL * PANEL, PAIR = 2 };
/* Panels of outputs whose weights are turned at a time, for the gradient by the inputs. */
enum { TURNED_PANELS = 4 };

/* A tap, and adjacent pixels of the outputs and of the inputs that it connects. */
typedef struct run {
    size_t tap, in, out, num;
} run;

/* Sizes, and where things lie in the scratch memory. Values are in panels:
 * [panels][pixels][num_rows, 16], one row per image. */
typedef struct pass {
    const fed_kernels *kernels;
    const fed_image_conv *conv;
    const fed_image_conv_io *io;
    size_t num_taps, in_panels, out_panels, in_pixels, out_pixels;
    size_t num_rows;            /* images, rounded up to an even number; the last may be zeros */
    size_t in_panel, out_panel; /* floats from one panel to the next */
    size_t tap_floats;          /* of a panel of weights: from one tap to the next */
    size_t num_runs;
    run runs[MOST_RUNS];
    float *in, *gradient; /* values in panels */
    float *shared;        /* scratch of the workers */
    size_t worker_floats; /* of each: a pair of panels of products, and turned weights */
} pass;

static size_t num_pixels(const fed_shape *shape) { return shape->height * shape->width; }

/* Adds a pair of pixels to the last run, or starts one. */
static void add_pixel(pass *p, size_t tap, size_t in, size_t out) {
    run *last = &p->runs[p->num_runs > 0 ? p->num_runs - 1 : 0];
    if (p->num_runs > 0 && last->tap == tap && last->in + last->num == in &&
        last->out + last->num == out)
        last->num++;
    else
        p->runs[p->num_runs++] = (run){.tap = tap, .in = in, .out = out, .num = 1};
}

static void find_runs(pass *p) {
    const fed_image_conv *c = p->conv;
    for (size_t tap = 0; tap < p->num_taps; tap++)
        for (size_t out = 0; out < p->out_pixels; out++) {
            /* above or left of the image, y or x wraps around to a number larger than any size */
            const size_t y =
                out / c->out_shape.width * c->stride_y + tap / c->window_width - c->pad_top;
            const size_t x =
                out % c->out_shape.width * c->stride_x + tap % c->window_width - c->pad_left;
            if (y < c->in_shape.height && x < c->in_shape.width)
                add_pixel(p, tap, y * c->in_shape.width + x, out);
        }
}

static pass pass_of(const fed_image_conv *conv) {
    pass p = {.conv = conv, .num_taps = conv->window_height * conv->window_width};
    p.in_panels = fed_padded(conv->in_shape.channels) / PANEL;
    p.out_panels = fed_padded(conv->out_shape.channels) / PANEL;
    p.in_pixels = num_pixels(&conv->in_shape), p.out_pixels = num_pixels(&conv->out_shape);
    p.num_rows = conv->num_images + conv->num_images % 2;
    /* The padding avoids a power of two, with which panels would share a set of the cache. */
    p.in_panel = p.in_pixels * p.num_rows * PANEL + FED_PAD;
    p.out_panel = p.out_pixels * p.num_rows * PANEL + FED_PAD;
    p.tap_floats = p.in_panels * PANEL_SQUARE;
    const size_t larger = p.in_panel > p.out_panel ? p.in_panel : p.out_panel;
    p.worker_floats = PAIR * (larger + TURNED_PANELS * PANEL_SQUARE);
    find_runs(&p);
    return p;
}

static size_t scratch_floats(const fed_image_conv *conv, int num_workers) {
    const pass p = pass_of(conv);
    return p.in_panels * p.in_panel + p.out_panels * p.out_panel +
           (size_t)num_workers * p.worker_floats;
}

static pass pass_with(const fed_kernels *kernels, const fed_image_conv *conv,
                      const fed_image_conv_io *io) {
    pass p = pass_of(conv);
    p.kernels = kernels, p.io = io;
    p.in = io->scratch;
    p.gradient = p.in + p.in_panels * p.in_panel;
    p.shared = p.gradient + p.out_panels * p.out_panel;
    return p;
}

static float *scratch_of(const pass *p, int worker) {
    return p->shared + (size_t)worker * p->worker_floats;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* The channels of a panel of one pixel of one image. */
static size_t channels_at(const fed_buffer *buffer, size_t width, size_t image, size_t pixel,
                          size_t panel) {
    return image * buffer->num_values + fed_pixel(buffer, pixel / width, pixel % width) +
           panel * PANEL;
}

static void gather(const pass *p, const fed_shape *shape, const fed_buffer *buffer,
                   const float *images, size_t panel, float *rows) {
    memset(rows, 0, num_pixels(shape) * p->num_rows * PANEL * sizeof *rows);
    for (size_t pixel = 0; pixel < num_pixels(shape); pixel++)
        for (size_t n = 0; n < p->conv->num_images; n++)
            memcpy(rows + (pixel * p->num_rows + n) * PANEL,
                   images + channels_at(buffer, shape->width, n, pixel, panel),
                   PANEL * sizeof *rows);
}

static void scatter(const pass *p, const fed_shape *shape, const fed_buffer *buffer,
                    const float *rows, size_t panel, float least, float *images) {
    for (size_t pixel = 0; pixel < num_pixels(shape); pixel++)
        for (size_t n = 0; n < p->conv->num_images; n++) {
            const float *row = rows + (pixel * p->num_rows + n) * PANEL;
            float *to = images + channels_at(buffer, shape->width, n, pixel, panel);
            for (size_t c = 0; c < PANEL; c++) to[c] = row[c] < least ? least : row[c];
        }
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* There are two kinds of parts: the inputs of a panel, and a pair of panels of outputs. */
static void inputs_part(void *context, size_t part, int worker) {
    (void)worker;
    const pass *p = context;
    gather(p, &p->conv->in_shape, &p->conv->in, p->io->in, part, p->in + part * p->in_panel);
}

static void outputs_part(void *context, size_t part, int worker) {
    const pass *p = context;
    const size_t output = part * PAIR, num_outputs = fed_smaller(PAIR, p->out_panels - output);
    float *products = scratch_of(p, worker);
    for (size_t o = 0; o < num_outputs; o++)
        for (size_t r = 0; r < p->out_pixels * p->num_rows; r++)
            for (size_t c = 0; c < PANEL; c++)
                products[o * p->out_panel + r * PANEL + c] =
                    p->io->bias != NULL ? p->io->bias[(output + o) * PANEL + c] : 0;
    for (size_t i = 0; i < p->num_runs; i++) {
        const run *r = &p->runs[i];
        const fed_products at = {
            .num_rows = r->num * p->num_rows,
            .num_inputs = p->in_panels,
            .num_outputs = num_outputs,
            .is_added = 1,
            .rows = p->in + r->in * p->num_rows * PANEL,
            .rows_panel = p->in_panel,
            .weights = p->io->weights + (output * p->num_taps + r->tap) * p->tap_floats,
            .weights_panel = p->num_taps * p->tap_floats,
            .weights_point = p->tap_floats, /* prefetches the next tap */
            .out = products + r->out * p->num_rows * PANEL,
            .out_panel = p->out_panel,
        };
        p->kernels->products(&at);
    }
    for (size_t o = 0; o < num_outputs; o++)
        scatter(p, &p->conv->out_shape, &p->conv->out, products + o * p->out_panel, output + o,
                p->conv->least, p->io->out);
}

static void forward(const fed_kernels *kernels, const fed_image_conv *conv,
                    const fed_image_conv_io *io) {
    pass p = pass_with(kernels, conv, io);
    fed_share(io->num_workers, p.in_panels, inputs_part, &p);
    fed_share(io->num_workers, fed_pieces(p.out_panels, PAIR), outputs_part, &p);
}

/* ---- Backward -------------------------------------------------------------------------------- */

static void add_bias_gradient(const pass *p, size_t panel) {
    const float *rows = p->gradient + panel * p->out_panel;
    float sums[PANEL] = {0};
    for (size_t r = 0; r < p->out_pixels * p->num_rows; r++)
        for (size_t c = 0; c < PANEL; c++) sums[c] += rows[r * PANEL + c];
    for (size_t c = 0; c < PANEL; c++) p->io->bias_gradient[panel * PANEL + c] += sums[c];
}

/* A part: a panel of the inputs, or of the gradient by the outputs. */
static void operands_part(void *context, size_t part, int worker) {
    const pass *p = context;
    if (part < p->in_panels) {
        inputs_part(context, part, worker);
        return;
    }
    const size_t panel = part - p->in_panels;
    gather(p, &p->conv->out_shape, &p->conv->out, p->io->out_gradient, panel,
           p->gradient + panel * p->out_panel);
    if (p->io->bias_gradient != NULL) add_bias_gradient(p, panel);
}

/* A part: the gradient by the weights of a pair of panels of outputs. */
static void weights_part(const pass *p, size_t part) {
    const size_t output = part * PAIR;
    for (size_t i = 0; i < p->num_runs; i++) {
        const run *r = &p->runs[i];
        const fed_products_gradient at = {
            .num_rows = r->num * p->num_rows,
            .num_inputs = p->in_panels,
            .num_outputs = fed_smaller(PAIR, p->out_panels - output),
            .is_added = 1,
            .rows = p->in + r->in * p->num_rows * PANEL,
            .rows_panel = p->in_panel,
            .gradient = p->gradient + output * p->out_panel + r->out * p->num_rows * PANEL,
            .gradient_panel = p->out_panel,
            .out = p->io->weights_gradient + (output * p->num_taps + r->tap) * p->tap_floats,
            .out_panel = p->num_taps * p->tap_floats,
        };
        p->kernels->products_gradient(&at);
    }
}

/* Multiplies the gradient by some outputs with the weights of one tap, for a pair of panels of
 * inputs. runs[0..num_runs) are the runs of the tap. */
static void multiply_turned(const pass *p, const run *runs, size_t num_runs, size_t input,
                            size_t output, float *turned, float *products) {
    const size_t num_outputs = fed_smaller(TURNED_PANELS, p->out_panels - output);
    const size_t num_inputs = fed_smaller(PAIR, p->in_panels - input);
    for (size_t i = 0; i < num_inputs; i++)
        for (size_t o = 0; o < num_outputs; o++) {
            const float *weights = p->io->weights +
                                   ((output + o) * p->num_taps + runs->tap) * p->tap_floats +
                                   (input + i) * PANEL_SQUARE;
            p->kernels->transpose(weights, NULL, PANEL, PANEL, PANEL,
                                  turned + (i * TURNED_PANELS + o) * PANEL_SQUARE, PANEL);
            /* the panels that are turned next */
            const float *next = weights + TURNED_PANELS * p->num_taps * p->tap_floats;
            for (size_t v = 0; v < PANEL_SQUARE && output + o + TURNED_PANELS < p->out_panels;
                 v += FED_PAD)
                __builtin_prefetch(next + v, 0, 2);
        }
    for (size_t r = 0; r < num_runs; r++) {
        const fed_products at = {
            .num_rows = runs[r].num * p->num_rows,
            .num_inputs = num_outputs,
            .num_outputs = num_inputs,
            .is_added = 1,
            .rows = p->gradient + output * p->out_panel + runs[r].out * p->num_rows * PANEL,
            .rows_panel = p->out_panel,
            .weights = turned,
            .weights_panel = TURNED_PANELS * PANEL_SQUARE,
            .out = products + runs[r].in * p->num_rows * PANEL,
            .out_panel = p->in_panel,
        };
        p->kernels->products(&at);
    }
}

/* A part: the gradient by the inputs, for a pair of panels. */
static void inputs_gradient_part(const pass *p, size_t part, int worker) {
    float *products = scratch_of(p, worker);
    float *turned = products + p->worker_floats - PAIR * TURNED_PANELS * PANEL_SQUARE;
    const size_t input = part * PAIR;
    memset(products, 0, PAIR * p->in_panel * sizeof *products);
    for (size_t i = 0, num; i < p->num_runs; i += num) {
        for (num = 1; i + num < p->num_runs && p->runs[i + num].tap == p->runs[i].tap;) num++;
        for (size_t o = 0; o < p->out_panels; o += TURNED_PANELS)
            multiply_turned(p, p->runs + i, num, input, o, turned, products);
    }
    for (size_t i = 0; i < fed_smaller(PAIR, p->in_panels - input); i++)
        scatter(p, &p->conv->in_shape, &p->conv->in, products + i * p->in_panel, input + i,
                -HUGE_VALF, p->io->in_gradient);
}

static void backward_part(void *context, size_t part, int worker) {
    const pass *p = context;
    const size_t num = fed_pieces(p->out_panels, PAIR);
    if (part < num)
        weights_part(p, part);
    else
        inputs_gradient_part(p, part - num, worker);
}

static void backward(const fed_kernels *kernels, const fed_image_conv *conv,
                     const fed_image_conv_io *io) {
    pass p = pass_with(kernels, conv, io);
    fed_share(io->num_workers, p.in_panels + p.out_panels, operands_part, &p);
    fed_share(io->num_workers,
              fed_pieces(p.out_panels, PAIR) +
                  (io->in_gradient != NULL ? fed_pieces(p.in_panels, PAIR) : 0),
              backward_part, &p);
}

/* ---- The method ------------------------------------------------------------------------------ */

static int fits(const fed_image_conv *conv) {
    return num_pixels(&conv->in_shape) <= MOST_PIXELS &&
           num_pixels(&conv->out_shape) <= MOST_PIXELS && conv->in.pixel_stride % PANEL == 0;
}

const fed_image_conv_method fed_image_small = {
    .fits = fits, .scratch_floats = scratch_floats, .forward = forward, .backward = backward};
