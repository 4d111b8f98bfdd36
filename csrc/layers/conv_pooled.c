/* SPDX-License-Identifier: Apache-2.0
 * A convolution of feature maps with the max-pool behind it. The backward pass uses the fact that
 * most of the gradient is 0: three quarters because of the pool, and much of the rest because of
 * relu. It lists the non-zero gradients of each output channel and computes only with these.
 *
 * Packed: kernel [O][window height][window width * padded I], bias [padded O]. Derived: the kernel
 * in the form that fed_conv_run needs. Saved: the source of each pooled value. Scratch: that of
 * fed_conv_run, or the lists of a strip of rows.
 */
#include "conv.h"

#include <string.h>

/* Lists are made and used for a strip of rows at a time. The strip's inputs are about this many
 * floats, so that they stay in an L1 cache of 48 KiB. */
enum { STRIP_FLOATS = 11 * 1024 };
enum { NUM_CORNERS = 4 }; /* windows of a cell */

static size_t kernel_size(const fed_stage *stage, const fed_conv *conv) {
    return stage->layer->out.channels * conv->num_taps;
}

/* Rows of cells in a strip: as many as fit, in strips of nearly equal size. */
static size_t strip_rows(const fed_conv *conv) {
    const size_t window = conv->sweep.height * conv->sweep.row_stride;
    const size_t most =
        STRIP_FLOATS > window ? 1 + (STRIP_FLOATS - window) / (2 * conv->step_y) : 1;
    return fed_pieces(conv->num_rows, fed_pieces(conv->num_rows, most));
}

/* Windows in a strip. */
static size_t strip_windows(const fed_conv *conv) {
    return strip_rows(conv) * conv->num_cells * NUM_CORNERS;
}

static size_t list_capacity(const fed_conv *conv) { return strip_rows(conv) * conv->num_cells + 1; }

static void init(fed_conv *conv, const fed_stage *stage) { fed_conv_init(conv, stage, &stage->in); }

static void widen_border(const fed_stage *stage, fed_border *border) {
    fed_conv_widen_border(stage->layer, border);
}

/* Scratch floats of `derive` for one kernel. */
static size_t derive_floats(const fed_conv *conv) {
    return fed_conv_is_winograd(conv) ? conv->out_channels * conv->num_taps : 0;
}

static void lay_out(fed_stage *stage) {
    fed_conv conv;
    init(&conv, stage);
    stage->packed_size = kernel_size(stage, &conv) + conv.out_channels;
    stage->derived_size = fed_conv_kernel_floats(&conv);
    stage->saved_bytes = conv.num_rows * conv.num_cells * conv.out_channels * sizeof(int32_t);
    stage->piece_size = 0;
    const size_t floats = fed_larger(fed_conv_scratch_floats(&conv), derive_floats(&conv));
    const size_t lists = conv.out_channels * (list_capacity(&conv) * sizeof(fed_entry) +
                                              sizeof(uint32_t) + sizeof(float));
    const size_t windows = 2 * strip_windows(&conv) * sizeof(fed_window_terms);
    stage->scratch_bytes = fed_larger(floats * sizeof(float), lists + windows);
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    fed_conv conv;
    init(&conv, stage);
    memset(packed, 0, stage->packed_size * sizeof(*packed));
    const float *from = flat + layer->offset;
    for (size_t y = 0; y < layer->window_height; y++)
        for (size_t x = 0; x < layer->window_width; x++)
            for (size_t i = 0; i < layer->in.channels; i++)
                for (size_t o = 0; o < layer->out.channels; o++)
                    packed[o * conv.num_taps + y * conv.sweep.run + x * conv.in_channels + i] =
                        *from++;
    if (layer->has_bias)
        memcpy(packed + kernel_size(stage, &conv), from, layer->out.channels * sizeof(*packed));
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    fed_conv conv;
    init(&conv, stage);
    double *to = flat + layer->offset;
    for (size_t y = 0; y < layer->window_height; y++)
        for (size_t x = 0; x < layer->window_width; x++)
            for (size_t i = 0; i < layer->in.channels; i++)
                for (size_t o = 0; o < layer->out.channels; o++)
                    *to++ =
                        packed[o * conv.num_taps + y * conv.sweep.run + x * conv.in_channels + i];
    if (layer->has_bias)
        memcpy(to, packed + kernel_size(stage, &conv), layer->out.channels * sizeof(*to));
}

static void derive(const fed_kernels *kernels, const fed_stage *stage, const float *packed,
                   float *derived, void *scratch) {
    const size_t num_channels = stage->layer->out.channels;
    fed_conv conv;
    init(&conv, stage);
    const int is_winograd = fed_conv_is_winograd(&conv);
    kernels->conv_panels(packed, num_channels, conv.num_taps, is_winograd ? scratch : derived);
    if (is_winograd) fed_conv_tiles_kernel(kernels, &conv, scratch, derived);
}

static void forward(const fed_pass *pass) {
    fed_conv conv;
    init(&conv, pass->stage);
    const fed_conv_io io = {.in = pass->in + conv.start,
                            .kernel = pass->derived,
                            .bias = pass->params + kernel_size(pass->stage, &conv),
                            .buffer = &pass->stage->out,
                            .out = pass->out,
                            .offsets = pass->saved,
                            .scratch = pass->scratch,
                            .marks = pass->marks};
    fed_conv_run(pass->kernels, &conv, &io);
    fed_conv_activate(pass);
}

/* Cells that see only background have the same inputs. Adds their gradients to that of the first
 * such cell, and marks the other ones, whose gradients are then 0. This gives the same gradients by
 * the parameters of this and of the previous layer. */
static void merge_background(const fed_pass *pass, const fed_conv *conv,
                             fed_marks *merged /* out */) {
    const fed_buffer *out = &pass->stage->out;
    size_t y, x;
    memset(merged, 0, sizeof *merged);
    if (pass->marks == NULL) return;
    fed_conv_mark_outputs(conv, pass->marks, merged);
    if (!fed_take_first_mark(merged, conv->num_rows, &y, &x)) return;
    float *sum = pass->out_gradient + fed_pixel(out, y, x);
    for (y = 0; y < conv->num_rows; y++)
        for (uint64_t left = merged->rows[y]; left != 0; left &= left - 1) {
            float *cell = pass->out_gradient + fed_pixel(out, y, (size_t)__builtin_ctzll(left));
            pass->kernels->add(sum, cell, conv->out_channels);
            memset(cell, 0, conv->out_channels * sizeof *cell);
        }
}

/* Lists the non-zero gradients of rows first..first+num-1. */
static void list_strip(const fed_pass *pass, const fed_conv *conv, const float *outputs,
                       const fed_marks *merged, size_t first, size_t num, const fed_lists *lists) {
    const fed_buffer *out = &pass->stage->out;
    const int32_t *offsets = pass->saved;
    memset(lists->counts, 0, conv->out_channels * sizeof(*lists->counts));
    for (size_t y = first; y < first + num; y++)
        for (size_t x = 0, run; (run = fed_next_run(merged->rows[y], conv->num_cells, &x)) > 0;
             x += run) {
            const size_t cell = fed_pixel(out, y, x);
            pass->kernels->conv_list_row(outputs == NULL ? NULL : outputs + cell,
                                         pass->out_gradient + cell,
                                         offsets + (y * conv->num_cells + x) * conv->out_channels,
                                         run, conv->out_channels, lists);
        }
}

static void add_kernel_gradient(const fed_pass *pass, const fed_conv *conv,
                                const fed_lists *lists) {
    for (size_t o = 0; o < pass->stage->layer->out.channels; o++)
        pass->kernels->conv_list_gradient(&conv->sweep, pass->in + conv->start,
                                          lists->entries + o * lists->capacity, lists->counts[o],
                                          pass->gradient + o * conv->num_taps);
}

/* ---- The gradient by the inputs -------------------------------------------------------------- */

/* The windows of a strip, for a group of output channels. */
typedef struct group {
    size_t first_channel, num_channels;
    fed_window_terms *terms, *ordered; /* [windows of a strip] */
} group;

/* Finds the terms of rows first..first+num-1; returns their number. */
static size_t find_terms(const fed_pass *pass, const fed_conv *conv, const float *outputs,
                         const fed_marks *merged, size_t first, size_t num, const group *g) {
    const fed_buffer *out = &pass->stage->out;
    const size_t padded = fed_padded(g->num_channels);
    const uint64_t all = UINT64_MAX >> (FED_WINDOW_CHANNELS - g->num_channels);
    const int32_t *offsets = (const int32_t *)pass->saved + g->first_channel;
    fed_window_terms *terms = g->terms;
    for (size_t y = first; y < first + num; y++)
        for (size_t x = 0, run; (run = fed_next_run(merged->rows[y], conv->num_cells, &x)) > 0;
             x += run) {
            const size_t cell = fed_pixel(out, y, x) + g->first_channel;
            const fed_offsets at = {.first =
                                        (int32_t)(2 * (y * conv->step_y + x * conv->sweep.step)),
                                    .step_x = (int32_t)conv->sweep.step,
                                    .step_y = (int32_t)conv->step_y};
            pass->kernels->conv_find_terms(outputs == NULL ? NULL : outputs + cell,
                                           pass->out_gradient + cell,
                                           offsets + (y * conv->num_cells + x) * conv->out_channels,
                                           &at, run, conv->out_channels, padded, terms);
            for (size_t w = 0; w < run * NUM_CORNERS; w++, terms++) {
                terms->channels &= all;
                terms->gradient = (uint32_t)(cell + w / NUM_CORNERS * conv->out_channels);
            }
        }
    return (size_t)(terms - g->terms);
}

static void add_in_gradient(const fed_pass *pass, const fed_conv *conv, const float *outputs,
                            const fed_marks *merged, size_t first, size_t num, group g) {
    const size_t num_channels = pass->stage->layer->out.channels;
    for (g.first_channel = 0; g.first_channel < num_channels; g.first_channel += g.num_channels) {
        g.num_channels = fed_smaller(num_channels - g.first_channel, FED_WINDOW_CHANNELS);
        size_t num_windows = find_terms(pass, conv, outputs, merged, first, num, &g);
        num_windows = pass->kernels->conv_order_terms(g.terms, num_windows, g.ordered);
        pass->kernels->conv_window_inputs(
            &conv->sweep, pass->params + g.first_channel * conv->num_taps, g.ordered, num_windows,
            pass->out_gradient, pass->in_gradient + conv->start);
    }
}

static void backward(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    fed_conv conv;
    init(&conv, pass->stage);
    fed_lists lists = {.capacity = list_capacity(&conv), .entries = pass->scratch};
    lists.counts = (uint32_t *)(lists.entries + conv.out_channels * lists.capacity);
    lists.sums = (float *)(lists.counts + conv.out_channels);
    group windows = {.terms = (fed_window_terms *)(lists.sums + conv.out_channels)};
    windows.ordered = windows.terms + strip_windows(&conv);
    memset(lists.sums, 0, conv.out_channels * sizeof(*lists.sums));
    if (pass->in_gradient != NULL)
        memset(pass->in_gradient, 0, conv.in.num_values * sizeof(*pass->in_gradient));
    const float *outputs = fed_conv_undo_activation(pass);
    fed_marks merged;
    merge_background(pass, &conv, &merged);
    const size_t num_rows = strip_rows(&conv);
    for (size_t y = 0; y < conv.num_rows; y += num_rows) {
        const size_t num = fed_smaller(conv.num_rows - y, num_rows);
        list_strip(pass, &conv, outputs, &merged, y, num, &lists);
        add_kernel_gradient(pass, &conv, &lists);
        if (pass->in_gradient != NULL)
            add_in_gradient(pass, &conv, outputs, &merged, y, num, windows);
    }
    float *bias = pass->gradient + kernel_size(pass->stage, &conv);
    if (layer->has_bias)
        for (size_t o = 0; o < layer->out.channels; o++) bias[o] += lists.sums[o];
}

const fed_stage_ops fed_conv_pooled = {
    .widen_border = widen_border,
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .derive = derive,
    .forward = forward,
    .backward = backward,
    .uses_background = 1,
};
