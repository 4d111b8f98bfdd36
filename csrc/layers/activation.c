/* SPDX-License-Identifier: Apache-2.0
 * Activations: at the end of another layer, and as a separate layer. */
#include "layer.h"

/* Padding channels must stay 0, but sigmoid(0) is not 0. */
static void clear_padding(const fed_buffer *buffer, const fed_shape *shape, float *row) {
    const size_t num_padding = buffer->pixel_stride - shape->channels;
    if (num_padding == 0) return;
    for (size_t x = 0; x < shape->width; x++)
        memset(row + x * buffer->pixel_stride + shape->channels, 0, num_padding * sizeof *row);
}

void fed_apply_activation(const fed_kernels *kernels, const fed_layer *layer,
                          const fed_buffer *buffer, const fed_shape *shape, float *values) {
    if (layer->activation == FED_LINEAR) return;
    const size_t row_size = fed_row_size(buffer, shape);
    for (size_t y = 0; y < shape->height; y++) {
        float *row = values + fed_pixel(buffer, y, 0);
        kernels->activate(layer->activation, (float)layer->constants[0], row, row_size, row);
        if (layer->activation == FED_SIGMOID) clear_padding(buffer, shape, row);
    }
}

void fed_undo_activation(const fed_kernels *kernels, const fed_layer *layer,
                         const fed_buffer *buffer, const fed_shape *shape, const float *outputs,
                         float *gradient) {
    if (layer->activation == FED_LINEAR) return;
    const size_t row_size = fed_row_size(buffer, shape);
    for (size_t y = 0; y < shape->height; y++) {
        const size_t at = fed_pixel(buffer, y, 0);
        kernels->undo_activation(layer->activation, (float)layer->constants[0], outputs + at,
                                 row_size, gradient + at);
    }
}

void fed_activate_out(const fed_pass *pass) {
    fed_apply_activation(pass->kernels, pass->stage->layer, &pass->stage->out, &pass->stage->shape,
                         pass->out);
}

void fed_undo_out(const fed_pass *pass) {
    fed_undo_activation(pass->kernels, pass->stage->layer, &pass->stage->out, &pass->stage->shape,
                        pass->out, pass->out_gradient);
}

/* ---- The layer ------------------------------------------------------------------------------- */

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    fed_copy_interior(&stage->shape, &stage->in, pass->in, &stage->out, pass->out);
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const int sees_inputs = fed_activation_sees_inputs(layer->activation);
    if (pass->in_gradient == NULL) return;
    for (size_t y = 0; y < stage->shape.height; y++) {
        const size_t in = fed_pixel(&stage->in, y, 0), out = fed_pixel(&stage->out, y, 0);
        const size_t row_size = fed_row_size(&stage->out, &stage->shape);
        float *gradient = pass->in_gradient + in;
        memcpy(gradient, pass->out_gradient + out, row_size * sizeof *gradient);
        pass->kernels->undo_activation(layer->activation, (float)layer->constants[0],
                                       sees_inputs ? pass->in + in : pass->out + out, row_size,
                                       gradient);
    }
}

const fed_stage_ops fed_activate = {
    .forward = forward,
    .backward = backward,
};
