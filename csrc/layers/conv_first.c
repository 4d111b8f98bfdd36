/* SPDX-License-Identifier: Apache-2.0
 * The convolution of a decoded image. The image has few channels, so a window has few values. The
 * gradients by a window's weights, for some output channels, fit into registers. There is no
 * gradient by the image.
 *
 * Packed: kernel in panels of FED_PANEL output channels (list.h), bias [padded O]. Saved, or
 * scratch in scoring: the image with its border, if it needs one. Saved: the source of each pooled
 * value. Scratch: rows of pixels; bias sums.
 */
#include "conv.h"

#include <string.h>

static void init(fed_conv *conv, const fed_stage *stage) {
    const fed_shape *in = &stage->layer->in;
    fed_border border = {0};
    fed_conv_widen_border(stage->layer, &border);
    const fed_buffer bordered = fed_bordered_buffer(in, &border, in->channels);
    fed_conv_init(conv, stage, &bordered);
}

/* 1 if windows reach beyond the image. */
static int has_border(const fed_stage *stage, const fed_conv *conv) {
    return conv->in.origin > 0 || conv->in.row_stride != stage->in.row_stride ||
           conv->in.num_values != stage->in.num_values;
}

static size_t border_floats(const fed_stage *stage, const fed_conv *conv) {
    return has_border(stage, conv) ? conv->in.num_values : 0;
}

static void lay_out(fed_stage *stage) {
    fed_conv conv;
    init(&conv, stage);
    stage->packed_size = conv.out_channels * (conv.num_taps + 1);
    const size_t border = border_floats(stage, &conv) * sizeof(float);
    stage->saved_bytes = border;
    if (conv.is_pooled)
        stage->saved_bytes += conv.num_rows * conv.num_cells * conv.out_channels * sizeof(int32_t);
    const size_t rows = fed_conv_rows_floats(&conv) + conv.out_channels;
    stage->scratch_bytes = border + rows * sizeof(float);
    stage->derived_size = 0;
    stage->piece_size = 0;
}

/* The packed index of the weight of a tap and an output channel. */
static size_t packed_index(const fed_conv *conv, size_t tap, size_t channel) {
    const size_t start = channel / FED_PANEL * FED_PANEL, left = conv->out_channels - start;
    return start * conv->num_taps + tap * (left < FED_PANEL ? left : FED_PANEL) + channel - start;
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t num_channels = layer->out.channels;
    fed_conv conv;
    init(&conv, stage);
    memset(packed, 0, stage->packed_size * sizeof(*packed));
    const float *kernel = flat + layer->offset;
    for (size_t t = 0; t < conv.num_taps; t++)
        for (size_t o = 0; o < num_channels; o++)
            packed[packed_index(&conv, t, o)] = kernel[t * num_channels + o];
    if (layer->has_bias)
        memcpy(packed + conv.out_channels * conv.num_taps, kernel + conv.num_taps * num_channels,
               num_channels * sizeof(*packed));
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t num_channels = layer->out.channels;
    fed_conv conv;
    init(&conv, stage);
    double *kernel = flat + layer->offset;
    for (size_t t = 0; t < conv.num_taps; t++)
        for (size_t o = 0; o < num_channels; o++)
            kernel[t * num_channels + o] = packed[packed_index(&conv, t, o)];
    if (layer->has_bias)
        memcpy(kernel + conv.num_taps * num_channels, packed + conv.out_channels * conv.num_taps,
               num_channels * sizeof(*kernel));
}

static void copy_image(const fed_stage *stage, const fed_conv *conv, const float *image,
                       float *bordered) {
    const size_t row = stage->in.row_stride;
    memset(bordered, 0, conv->in.num_values * sizeof(*bordered));
    for (size_t y = 0; y < stage->layer->in.height; y++)
        memcpy(bordered + conv->in.origin + y * conv->in.row_stride, image + y * row,
               row * sizeof(*bordered));
}

static void forward(const fed_pass *pass) {
    fed_conv conv;
    init(&conv, pass->stage);
    const size_t border = border_floats(pass->stage, &conv);
    float *scratch = pass->scratch, *bordered = pass->saved != NULL ? pass->saved : scratch;
    if (border > 0) copy_image(pass->stage, &conv, pass->in, bordered);
    int32_t *offsets =
        pass->saved != NULL && conv.is_pooled ? (int32_t *)pass->saved + border : NULL;
    const fed_conv_io io = {.in = border > 0 ? bordered : pass->in,
                            .kernel = pass->params,
                            .bias = pass->params + conv.out_channels * conv.num_taps,
                            .buffer = &pass->stage->out,
                            .out = pass->out,
                            .offsets = offsets,
                            .scratch = scratch + border};
    fed_conv_run_rows(pass->kernels, &conv, &io);
    fed_conv_activate(pass);
    if (pass->marks == NULL) return;
    fed_marks pixels;
    fed_mark_background(&pass->stage->in, &pass->stage->layer->in, pass->in, &pixels);
    fed_conv_mark_outputs(&conv, &pixels, pass->marks);
}

static void backward(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    const fed_buffer *out = &pass->stage->out;
    fed_conv conv;
    init(&conv, pass->stage);
    const size_t border = border_floats(pass->stage, &conv);
    float *sums = pass->scratch;
    memset(sums, 0, conv.out_channels * sizeof(*sums));
    const float *outputs = fed_conv_undo_activation(pass);
    for (size_t y = 0; y < conv.num_rows; y++) {
        const size_t row = out->origin + y * out->row_stride;
        pass->kernels->conv_mask_row(outputs == NULL ? NULL : outputs + row,
                                     pass->out_gradient + row, conv.num_cells, conv.out_channels,
                                     sums);
    }
    const fed_taps taps = {
        .sweep = conv.sweep,
        .at = {.step_x = (int32_t)conv.sweep.step, .step_y = (int32_t)conv.step_y},
        .in = border > 0 ? pass->saved : pass->in,
        .gradient = pass->out_gradient + out->origin,
        .gradient_stride = out->row_stride,
        .offsets = conv.is_pooled ? (const int32_t *)pass->saved + border : NULL,
        .num_rows = conv.num_rows,
        .num_cells = conv.num_cells,
        .num_channels = conv.out_channels,
    };
    pass->kernels->conv_taps_gradient(&taps, pass->gradient);
    float *bias = pass->gradient + conv.out_channels * conv.num_taps;
    if (layer->has_bias)
        for (size_t o = 0; o < layer->out.channels; o++) bias[o] += sums[o];
}

const fed_stage_ops fed_conv_first = {
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .forward = forward,
    .backward = backward,
    .takes_raw = 1,
    .marks_background = 1,
};
