/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of a group of images as products of windows and weights, for any window and stride.
 * Windows are not copied.
 *
 * The gradient by the inputs is computed by phases (phases.h), with the taps of a phase in reversed
 * order ("turned"). This avoids products with the zeros that a stride would insert into the
 * gradient, and each value is written once.
 *
 * The gradient by the weights adds up blocks of pixels in order. Every sum has the same order for
 * any number of threads, which share outputs or weights, never the terms of a sum.
 */
#include "image_conv.h"
#include "memory.h"
#include "phases.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum {
    /* Floats of inputs or outputs of a block of pixels, which stay in the L2 cache while the panels
     * of weights pass. */
    BLOCK_FLOATS = 40 * 1024,
    LEAST_BLOCK = 48, /* pixels; a multiple of every tile */
    MOST_BLOCK = 960,
    /* Pixels in a block of the gradient by the weights, and the channels that are packed at a
     * time: more of them if the weights are small, at most SMALL_WEIGHTS floats. */
    GRADIENT_PIXELS = 128,
    GRADIENT_CHANNELS = 128,
    SMALL_CHANNELS = 256,
    SMALL_WEIGHTS = 16 * 1024,
    /* Runs are cut so that a part of a panel stays in the cache, and so that threads can share the
     * gradient by the weights. */
    MOST_RUN = 768,
    LEAST_RUN = 96,
};

/* ---- Pixels ---------------------------------------------------------------------------------- */

/* Pixels at constant distances in the buffer of each image. */
typedef struct grid {
    size_t origin, step_y, step_x; /* floats */
    size_t image;                  /* floats from one image to the next */
} grid;

/* Offsets of the pixels first..first+num-1 of images with height * width pixels each. */
static void list_pixels(const grid *of, size_t height, size_t width, size_t first, size_t num,
                        size_t *offsets /* out [num] */) {
    size_t x = first % width, y = first / width % height, image = first / (height * width);
    for (size_t done = 0; done < num; x = 0) {
        const size_t end = done + fed_smaller(width - x, num - done);
        size_t at = of->origin + image * of->image + y * of->step_y + x * of->step_x;
        for (; done < end; done++, at += of->step_x) offsets[done] = at;
        if (++y < height) continue;
        y = 0;
        image++;
    }
}

/* Lists the runs of a window: num_rows rows of `length` values, row_stride apart, each cut into
 * pieces of at most `most` values. Returns the number of runs. */
static size_t list_runs(size_t num_rows, size_t length, size_t row_stride, size_t most,
                        fed_run *runs /* out */) {
    size_t num = 0;
    if (length == 0) return 0;
    const size_t piece = fed_pieces(length, fed_pieces(length, most));
    for (size_t y = 0; y < num_rows; y++)
        for (size_t t = 0; t < length; t += piece)
            runs[num++] = (fed_run){y * row_stride + t, fed_smaller(piece, length - t)};
    return num;
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

/* The sizes of a convolution's passes. Channels are floats of a pixel. */
typedef struct plan {
    size_t in_channels, out_channels;
    size_t num_places; /* of the window */
    size_t panel_size; /* of the weights */
    size_t num_pixels; /* of all outputs */
    size_t block;      /* pixels of a forward block */
    fed_axis y, x;     /* of the gradient by the inputs */
    fed_buffer bordered;
    int is_copied;       /* 1 if the outputs' gradient must be copied to get a border of zeros */
    size_t group;        /* images of a part of the gradient by the inputs */
    size_t turned_panel; /* floats of a panel of the turned weights */
    size_t num_runs;     /* an upper bound */
    int is_small;        /* 1 if there are few weights */
    size_t packed;       /* channels that are packed at a time for the gradient by the weights */
    size_t num_normed;   /* pixels behind a norm at a time */
} plan;

static size_t block_of(const fed_image_conv *conv, const plan *p) {
    const size_t in = conv->stride_y * conv->stride_x * p->in_channels;
    const size_t fitting = BLOCK_FLOATS / fed_larger(in, p->out_channels);
    const size_t most = fed_smaller(MOST_BLOCK, fed_larger(LEAST_BLOCK, fitting));
    /* Equal blocks, of whole tiles. */
    const size_t equal = fed_pieces(p->num_pixels, fed_pieces(p->num_pixels, most));
    return fed_pieces(equal, LEAST_BLOCK) * LEAST_BLOCK;
}

static size_t group_of(const fed_image_conv *conv, const plan *p) {
    const size_t phases = conv->stride_y * conv->stride_x;
    const size_t pixels = fed_pieces(conv->in_shape.height * conv->in_shape.width, phases);
    const size_t fitting = BLOCK_FLOATS / p->bordered.num_values;
    return fed_smaller(conv->num_images, fed_larger(fitting, fed_pieces(LEAST_BLOCK, pixels)));
}

static plan plan_of(const fed_image_conv *conv) {
    const fed_shape *in = &conv->in_shape, *out = &conv->out_shape;
    plan p = {
        .in_channels = conv->in.pixel_stride,
        .out_channels = conv->out.pixel_stride,
        .num_places = conv->window_height * conv->window_width,
        .num_pixels = conv->num_images * out->height * out->width,
        .y = fed_axis_of(in->height, out->height, conv->window_height, conv->stride_y,
                         conv->pad_top),
        .x = fed_axis_of(in->width, out->width, conv->window_width, conv->stride_x, conv->pad_left),
    };
    p.panel_size = p.num_places * p.in_channels * FED_PAD;
    p.turned_panel = p.num_places * p.out_channels * FED_PAD;
    p.block = block_of(conv, &p);
    p.is_copied = p.y.total > out->height || p.x.total > out->width;
    p.bordered = p.is_copied ? fed_phases_buffer(&p.y, &p.x, p.out_channels) : conv->out;
    p.group = group_of(conv, &p);
    const size_t channels = fed_larger(p.in_channels, p.out_channels);
    p.num_runs = conv->window_height * (conv->window_width * channels / LEAST_RUN + 1);
    p.is_small = fed_image_conv_weights(conv) <= SMALL_WEIGHTS;
    p.packed = p.is_small ? SMALL_CHANNELS : GRADIENT_CHANNELS;
    if (conv->norm != NULL) p.num_normed = fed_larger(p.block, GRADIENT_PIXELS);
    return p;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* One worker's memory. */
typedef struct workspace {
    size_t *from, *to;   /* [MOST_BLOCK] */
    fed_run *runs;       /* [num_runs] */
    float *bordered;     /* [group] buffer plan->bordered, if it is copied */
    float *panels;       /* [plan->packed, GRADIENT_PIXELS] */
    float *normed;       /* [plan->num_normed, in_channels]: pixels behind the norm */
    size_t *normed_from; /* [plan->num_normed]: their offsets */
} workspace;

static workspace carve(const plan *p, fed_carver *c) {
    return (workspace){
        .from = fed_carve(c, MOST_BLOCK, sizeof(size_t)),
        .to = fed_carve(c, MOST_BLOCK, sizeof(size_t)),
        .runs = fed_carve(c, p->num_runs, sizeof(fed_run)),
        .bordered =
            fed_carve(c, p->is_copied ? p->group * p->bordered.num_values : 0, sizeof(float)),
        .panels = fed_carve(c, p->packed * GRADIENT_PIXELS, sizeof(float)),
        .normed = fed_carve(c, p->num_normed * p->in_channels, sizeof(float)),
        .normed_from = fed_carve(c, p->num_normed, sizeof(size_t)),
    };
}

static size_t workspace_floats(const plan *p) {
    fed_carver carver = {0};
    carve(p, &carver);
    return fed_padded(carver.used / sizeof(float));
}

/* Floats of the turned weights, which precede the workspaces. */
static size_t turned_floats(const plan *p) {
    return fed_pieces(p->in_channels, FED_PAD) * p->turned_panel;
}

static workspace workspace_of(const plan *p, const fed_image_conv_io *io, int worker) {
    float *base = io->scratch + turned_floats(p) + (size_t)worker * workspace_floats(p);
    fed_carver carver = {.base = (char *)base};
    return carve(p, &carver);
}

static int fits(const fed_image_conv *conv) { return (void)conv, 1; }

static size_t scratch_floats(const fed_image_conv *conv, int num_workers) {
    const plan p = plan_of(conv);
    return turned_floats(&p) + (size_t)num_workers * workspace_floats(&p);
}

/* A pass: the context that fed_share passes to each part. */
typedef struct pass {
    const fed_kernels *kernels;
    const fed_image_conv *conv;
    const fed_image_conv_io *io;
    plan plan;
    size_t num_blocks; /* of pixels or images */
    size_t num_pieces; /* of channels or taps, per block */
    size_t piece;      /* size of a piece */
} pass;

/* Floats of a row of a window, or of a phase's taps. Padding channels are zeros; they are left out
 * if the window is a single pixel, whose weights are contiguous without them, too. */
static size_t row_floats(size_t num_rows, size_t num_columns, size_t padded, size_t channels) {
    return num_rows == 1 && num_columns == 1 ? channels : num_columns * padded;
}

static size_t window_row(const fed_image_conv *conv) {
    return row_floats(conv->window_height, conv->window_width, conv->in.pixel_stride,
                      conv->in_shape.channels);
}

static grid windows_of(const fed_image_conv *conv) {
    const fed_buffer *in = &conv->in;
    return (grid){.origin = in->origin - conv->pad_top * in->row_stride -
                            conv->pad_left * in->pixel_stride,
                  .step_y = conv->stride_y * in->row_stride,
                  .step_x = conv->stride_x * in->pixel_stride,
                  .image = in->num_values};
}

static grid pixels_of(const fed_buffer *buffer) {
    return (grid){buffer->origin, buffer->row_stride, buffer->pixel_stride, buffer->num_values};
}

/* The values that windows read, and the offset of each window in them. */
typedef struct window_list {
    const float *in;
    const size_t *from;
} window_list;

/* Applies the norm to the pixels that windows of one pixel read, `first` being the first of these
 * windows. Pixels of an image that follow each other pass together. */
static window_list apply_norm(const pass *c, const workspace *w, size_t first, size_t num) {
    const fed_stage *norm = c->conv->norm;
    const fed_shape *shape = &c->conv->out_shape;
    const size_t image_pixels = shape->height * shape->width, channels = c->plan.in_channels;
    for (size_t p = 0; p < num;) {
        const size_t image = (first + p) / image_pixels, start = p, from = w->from[p];
        const size_t end = fed_smaller((image + 1) * image_pixels - first, num);
        const fed_norm_map map = fed_norm_saved_map(norm, c->io->norm + image * norm->saved_bytes);
        for (; p < end && w->from[p] == from + (p - start) * channels; p++)
            w->normed_from[p] = p * channels;
        c->kernels->norm_apply(&map, c->io->in + from, p - start, channels,
                               w->normed + start * channels);
    }
    return (window_list){w->normed, w->normed_from};
}

/* Lists the windows of some pixels of the outputs. */
static window_list list_windows(const pass *c, const workspace *w, size_t first, size_t num) {
    const grid at = windows_of(c->conv);
    list_pixels(&at, c->conv->out_shape.height, c->conv->out_shape.width, first, num, w->from);
    return c->conv->norm != NULL ? apply_norm(c, w, first, num) : (window_list){c->io->in, w->from};
}

/* ---- Forward --------------------------------------------------------------------------------- */

static void forward_part(void *context, size_t part, int worker) {
    const pass *c = context;
    const fed_image_conv *conv = c->conv;
    const fed_image_conv_io *io = c->io;
    const plan *p = &c->plan;
    const workspace w = workspace_of(p, io, worker);
    const size_t first = part / c->num_pieces * p->block;
    const size_t channel = part % c->num_pieces * c->piece;
    const size_t num = fed_smaller(p->block, p->num_pixels - first);
    const grid outputs = pixels_of(&conv->out);
    const window_list from = list_windows(c, &w, first, num);
    list_pixels(&outputs, conv->out_shape.height, conv->out_shape.width, first, num, w.to);
    const fed_gemm gemm = {
        .in = from.in,
        .from = from.from,
        .to = w.to,
        .num_pixels = num,
        .runs = w.runs,
        .num_runs =
            list_runs(conv->window_height, window_row(conv), conv->in.row_stride, MOST_RUN, w.runs),
        .weights = io->weights + channel / FED_PAD * p->panel_size,
        .panel_size = p->panel_size,
        .num_channels = fed_smaller(c->piece, conv->out_shape.channels - channel),
        .bias = io->bias != NULL ? io->bias + channel : NULL,
        .least = conv->least,
        .out = io->out + channel,
    };
    c->kernels->gemm_outputs(&gemm);
}

/* Splits channels only if there are too few blocks for the workers. */
static void split_channels(pass *c, size_t num_channels) {
    const size_t wanted = c->io->num_workers > 1 ? 2 * (size_t)c->io->num_workers : 1;
    const size_t pairs = fed_pieces(num_channels, 2 * FED_PAD);
    const size_t pieces = fed_smaller(pairs, fed_pieces(wanted, c->num_blocks));
    c->piece = fed_pieces(pairs, pieces) * 2 * FED_PAD;
    c->num_pieces = fed_pieces(num_channels, c->piece);
}

static void forward(const fed_kernels *kernels, const fed_image_conv *conv,
                    const fed_image_conv_io *io) {
    pass c = {.kernels = kernels, .conv = conv, .io = io, .plan = plan_of(conv)};
    c.num_blocks = fed_pieces(c.plan.num_pixels, c.plan.block);
    split_channels(&c, c.plan.out_channels);
    fed_share(io->num_workers, c.num_blocks * c.num_pieces, forward_part, &c);
}

/* ---- The gradient by the inputs -------------------------------------------------------------- */

/* Prefetches the weights from 16 input channels to 16 output channels. */
static void fetch_square(const float *weights) {
    for (size_t i = 0; i < FED_PAD * FED_PAD; i += FED_PAD) __builtin_prefetch(weights + i);
}

/* Turned weights of 16 input channels: [taps, phase by phase][O][16]. */
static void turn_panel(void *context, size_t panel, int worker) {
    const pass *c = context;
    const plan *p = &c->plan;
    float *to = c->io->scratch + panel * p->turned_panel;
    (void)worker;
    for (size_t phase_y = 0; phase_y < p->y.stride; phase_y++)
        for (size_t phase_x = 0; phase_x < p->x.stride; phase_x++) {
            const fed_stride_phase y = fed_phase_of(&p->y, phase_y),
                                   x = fed_phase_of(&p->x, phase_x);
            for (size_t i = y.num_taps * x.num_taps; i-- > 0; to += p->out_channels * FED_PAD) {
                const size_t tap_y = y.tap + i / x.num_taps * p->y.stride;
                const size_t tap_x = x.tap + i % x.num_taps * p->x.stride;
                const size_t place = tap_y * p->x.window + tap_x;
                const float *from =
                    c->io->weights + (place * p->in_channels + panel * FED_PAD) * FED_PAD;
                for (size_t o = 0; o < p->out_channels; o += FED_PAD, from += p->panel_size) {
                    fetch_square(from + p->panel_size);
                    c->kernels->transpose(from, NULL, FED_PAD, FED_PAD, FED_PAD, to + o * FED_PAD,
                                          FED_PAD);
                }
            }
        }
}

/* One phase's pixels of some images. */
typedef struct fed_phase_pixels {
    fed_stride_phase y, x;
    const float *gradient;
    float *in_gradient;
    const float *turned; /* the phase's taps */
    size_t num_images;
} phase_pixels;

static void run_phase(const pass *c, const phase_pixels *of, const workspace *w) {
    const fed_image_conv *conv = c->conv;
    const plan *p = &c->plan;
    const fed_stride_phase *y = &of->y, *x = &of->x;
    const fed_buffer *bordered = &p->bordered;
    const size_t corner = p->is_copied ? 0 : bordered->origin;
    const grid windows = {corner + y->window * bordered->row_stride +
                              x->window * bordered->pixel_stride,
                          bordered->row_stride, bordered->pixel_stride, bordered->num_values};
    const grid inputs = {fed_pixel(&conv->in, y->first, x->first),
                         p->y.stride * conv->in.row_stride, p->x.stride * conv->in.pixel_stride,
                         conv->in.num_values};
    fed_gemm gemm = {
        .in = of->gradient,
        .from = w->from,
        .to = w->to,
        .runs = w->runs,
        .num_runs = list_runs(
            y->num_taps,
            row_floats(y->num_taps, x->num_taps, p->out_channels, conv->out_shape.channels),
            bordered->row_stride, MOST_RUN, w->runs),
        .weights = of->turned,
        .panel_size = p->turned_panel,
        .num_channels = conv->in_shape.channels,
        .least = -HUGE_VALF,
        .out = of->in_gradient,
    };
    const size_t num_pixels = of->num_images * y->num * x->num;
    for (size_t first = 0; first < num_pixels; first += gemm.num_pixels) {
        gemm.num_pixels = fed_smaller(num_pixels - first, MOST_BLOCK);
        list_pixels(&windows, y->num, x->num, first, gemm.num_pixels, w->from);
        list_pixels(&inputs, y->num, x->num, first, gemm.num_pixels, w->to);
        c->kernels->gemm_outputs(&gemm);
    }
}

static void inputs_part(void *context, size_t part, int worker) {
    const pass *c = context;
    const plan *p = &c->plan;
    const workspace w = workspace_of(p, c->io, worker);
    const size_t first = part * p->group;
    const float *gradient = c->io->out_gradient + first * c->conv->out.num_values;
    phase_pixels of = {.gradient = p->is_copied ? w.bordered : gradient,
                       .in_gradient = c->io->in_gradient + first * c->conv->in.num_values,
                       .turned = c->io->scratch,
                       .num_images = fed_smaller(p->group, c->conv->num_images - first)};
    if (p->is_copied)
        for (size_t b = 0; b < of.num_images; b++)
            fed_copy_bordered(&c->conv->out_shape, &c->conv->out,
                              gradient + b * c->conv->out.num_values, &p->bordered,
                              w.bordered + b * p->bordered.num_values);
    /* Phases that no tap reaches come after all others. Their pixels are zeros. */
    const size_t end_y = fed_smaller(p->y.stride, p->y.window);
    const size_t end_x = fed_smaller(p->x.stride, p->x.window);
    if (end_y < p->y.stride || end_x < p->x.stride)
        memset(of.in_gradient, 0, of.num_images * c->conv->in.num_values * sizeof(float));
    for (size_t phase_y = 0; phase_y < end_y; phase_y++)
        for (size_t phase_x = 0; phase_x < end_x; phase_x++) {
            of.y = fed_phase_of(&p->y, phase_y);
            of.x = fed_phase_of(&p->x, phase_x);
            run_phase(c, &of, &w);
            of.turned += of.y.num_taps * of.x.num_taps * p->out_channels * FED_PAD;
        }
}

/* ---- The gradient by the weights ------------------------------------------------------------- */

/* The values that the next block of pixels reads lie behind those of this block. They are fetched
 * meanwhile if this part reads all of them, and if they do not replace weights in the cache. */
static void list_next(const pass *c, const workspace *w, size_t num_pixels,
                      fed_lines *ahead /* out [2] */) {
    const size_t from = w->from[num_pixels - 1], to = w->to[num_pixels - 1];
    const float *gradient = c->io->out_gradient + to, *in = c->io->in + from;
    const int is_read = c->num_blocks == 1 && c->conv->stride_y * c->conv->stride_x == 1;
    const int is_fetched = is_read && c->plan.is_small;
    ahead[0] = (fed_lines){gradient, gradient + (is_fetched ? to - w->to[0] : 0)};
    ahead[1] = (fed_lines){in, in + (is_fetched ? from - w->from[0] : 0)};
}

/* A part: the gradient by the weights between some panels of outputs and some runs. */
static void weights_part(void *context, size_t part, int worker) {
    const pass *c = context;
    const fed_image_conv *conv = c->conv;
    const fed_image_conv_io *io = c->io;
    const plan *p = &c->plan;
    const workspace w = workspace_of(p, io, worker);
    const size_t channel = part / c->num_pieces * p->packed;
    const size_t num_runs =
        list_runs(conv->window_height, window_row(conv), conv->in.row_stride, c->piece, w.runs);
    const size_t piece = part % c->num_pieces;
    const size_t first_run = piece * num_runs / c->num_pieces;
    const size_t end_run = (piece + 1) * num_runs / c->num_pieces;
    const grid outputs = pixels_of(&conv->out);
    fed_gemm_gradient gemm = {
        .gradient = w.panels,
        .num_channels = fed_smaller(p->packed, conv->out_shape.channels - channel),
        .panel_size = p->panel_size,
    };
    float *sums = piece == 0 && io->bias_gradient != NULL ? io->bias_gradient + channel : NULL;
    fed_lines ahead[2];
    float *first_target = io->weights_gradient + channel / FED_PAD * p->panel_size;
    for (size_t r = 0; r < first_run; r++) first_target += w.runs[r].length * FED_PAD;
    for (size_t m = 0; m < p->num_pixels; m += gemm.num_pixels) {
        gemm.num_pixels = fed_smaller(p->num_pixels - m, GRADIENT_PIXELS);
        gemm.gradient_panel = gemm.num_pixels * FED_PAD;
        const window_list from = list_windows(c, &w, m, gemm.num_pixels);
        gemm.in = from.in;
        gemm.from = from.from;
        list_pixels(&outputs, conv->out_shape.height, conv->out_shape.width, m, gemm.num_pixels,
                    w.to);
        c->kernels->gemm_pack(io->out_gradient + channel, w.to, gemm.num_pixels,
                              fed_padded(gemm.num_channels), w.panels, gemm.gradient_panel, sums);
        gemm.target = first_target;
        list_next(c, &w, gemm.num_pixels, ahead);
        for (size_t r = first_run; r < end_run; r++) {
            gemm.run = w.runs[r];
            c->kernels->gemm_gradient(&gemm, ahead);
            gemm.target += gemm.run.length * FED_PAD;
        }
    }
}

static void add_weights_gradient(pass *c) {
    const plan *p = &c->plan;
    const int is_shared = c->io->num_workers > 1;
    const size_t row = window_row(c->conv);
    c->piece = is_shared ? LEAST_RUN : row;
    c->num_blocks = fed_pieces(p->out_channels, p->packed);
    const size_t num_runs = c->conv->window_height * fed_pieces(row, c->piece);
    const size_t wanted = is_shared ? 2 * (size_t)c->io->num_workers : 1;
    c->num_pieces = fed_smaller(num_runs, fed_pieces(wanted, c->num_blocks));
    fed_share(c->io->num_workers, c->num_blocks * c->num_pieces, weights_part, c);
}

static void backward(const fed_kernels *kernels, const fed_image_conv *conv,
                     const fed_image_conv_io *io) {
    pass c = {.kernels = kernels, .conv = conv, .io = io, .plan = plan_of(conv)};
    add_weights_gradient(&c);
    if (io->in_gradient == NULL) return;
    fed_share(io->num_workers, fed_pieces(c.plan.in_channels, FED_PAD), turn_panel, &c);
    fed_share(io->num_workers, fed_pieces(conv->num_images, c.plan.group), inputs_part, &c);
}

const fed_image_conv_method fed_image_gemm = {
    .fits = fits,
    .scratch_floats = scratch_floats,
    .forward = forward,
    .backward = backward,
};
