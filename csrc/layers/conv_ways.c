/* SPDX-License-Identifier: Apache-2.0
 * The sizes of a convolution, and the choice between two methods: rows of pixels (conv_rows.c) or
 * Winograd's tiles (conv_tiles.c). */
#include "conv.h"

/* Number of rows or columns that windows cover after the image. */
static size_t overhang(size_t pad, size_t size, size_t num_windows, size_t stride, size_t window) {
    const size_t needed = (num_windows - 1) * stride + window;
    return needed > pad + size ? needed - (pad + size) : 0;
}

void fed_conv_widen_border(const fed_layer *layer, fed_border *border) {
    const size_t bottom = overhang(layer->pad_top, layer->in.height, layer->out.height,
                                   layer->stride_y, layer->window_height);
    const size_t right = overhang(layer->pad_left, layer->in.width, layer->out.width,
                                  layer->stride_x, layer->window_width);
    border->top = fed_larger(border->top, layer->pad_top);
    border->left = fed_larger(border->left, layer->pad_left);
    border->bottom = fed_larger(border->bottom, bottom);
    border->right = fed_larger(border->right, right);
}

void fed_conv_init(fed_conv *conv, const fed_stage *stage, const fed_buffer *in) {
    const fed_layer *layer = stage->layer;
    const size_t pixel_size = in->pixel_stride;
    conv->layer = layer;
    conv->in_channels = pixel_size;
    conv->out_channels = fed_padded(layer->out.channels);
    conv->in = *in;
    conv->start = in->origin - layer->pad_top * in->row_stride - layer->pad_left * pixel_size;
    conv->sweep.height = layer->window_height;
    conv->sweep.run = layer->window_width * pixel_size;
    conv->sweep.row_stride = conv->in.row_stride;
    conv->sweep.step = layer->stride_x * pixel_size;
    conv->num_taps = conv->sweep.height * conv->sweep.run;
    conv->step_y = layer->stride_y * conv->in.row_stride;
    conv->num_rows = stage->shape.height;
    conv->num_cells = stage->shape.width;
    conv->is_pooled = stage->pool != NULL;
    conv->least = layer->activation == FED_RELU ? 0.0f : -HUGE_VALF;
}

void fed_conv_mark_squares(const fed_conv *conv, const fed_marks *background, size_t side,
                           fed_marks *marks) {
    const fed_layer *layer = conv->layer;
    const size_t scale = conv->is_pooled ? 2 : 1;
    const fed_windows squares = {.height = (side - 1) * layer->stride_y + layer->window_height,
                                 .width = (side - 1) * layer->stride_x + layer->window_width,
                                 .step_y = side * layer->stride_y,
                                 .step_x = side * layer->stride_x,
                                 .pad_top = layer->pad_top,
                                 .pad_left = layer->pad_left,
                                 .num_rows = conv->num_rows * scale / side,
                                 .num_columns = conv->num_cells * scale / side};
    fed_mark_windows(background, &layer->in, &squares, marks);
}

void fed_conv_mark_outputs(const fed_conv *conv, const fed_marks *background, fed_marks *marks) {
    fed_conv_mark_squares(conv, background, conv->is_pooled ? 2 : 1, marks);
}

size_t fed_conv_kernel_floats(const fed_conv *conv) {
    return fed_conv_is_winograd(conv) ? fed_conv_tiles_kernel_floats(conv)
                                      : conv->num_taps * conv->out_channels;
}

size_t fed_conv_scratch_floats(const fed_conv *conv) {
    return fed_conv_is_winograd(conv) ? fed_conv_tiles_floats(conv) : fed_conv_rows_floats(conv);
}

void fed_conv_run(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io) {
    if (fed_conv_is_winograd(conv))
        fed_conv_run_tiles(kernels, conv, io);
    else
        fed_conv_run_rows(kernels, conv, io);
}

void fed_conv_activate(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (stage->layer->activation != FED_RELU)
        fed_apply_activation(pass->kernels, stage->layer, &stage->out, &stage->shape, pass->out);
}

const float *fed_conv_undo_activation(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (stage->layer->activation == FED_RELU) return pass->out;
    fed_undo_activation(pass->kernels, stage->layer, &stage->out, &stage->shape, pass->out,
                        pass->out_gradient);
    return NULL;
}
