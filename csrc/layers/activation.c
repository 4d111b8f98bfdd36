/* SPDX-License-Identifier: Apache-2.0
 * Activations, of the values of a buffer and as a separate layer. */
#include "layer.h"

/* Padding channels must stay 0, but sigmoid(0) is not 0. */
static void clear_padding(const fed_buffer *buffer, const fed_shape *shape, float *row) {
    const size_t num_padding = buffer->pixel_stride - shape->channels;
    if (num_padding == 0) return;
    for (size_t x = 0; x < shape->width; x++)
        memset(row + x * buffer->pixel_stride + shape->channels, 0, num_padding * sizeof *row);
}

void fed_apply_activation(const fed_kernels *kernels, int activation, const fed_buffer *buffer,
                          const fed_shape *shape, float *values) {
    if (activation == FED_LINEAR) return;
    const size_t row_size = fed_row_size(buffer, shape);
    for (size_t y = 0; y < shape->height; y++) {
        float *row = values + fed_pixel(buffer, y, 0);
        switch (activation) {
        case FED_RELU:
            kernels->apply_relu(row, row_size);
            break;
        case FED_TANH:
            kernels->apply_tanh(row, row_size);
            break;
        default:
            kernels->apply_sigmoid(row, row_size);
            clear_padding(buffer, shape, row);
        }
    }
}

void fed_undo_activation(const fed_kernels *kernels, int activation, const fed_buffer *buffer,
                         const fed_shape *shape, const float *outputs, float *gradient) {
    if (activation == FED_LINEAR) return;
    const size_t row_size = fed_row_size(buffer, shape);
    for (size_t y = 0; y < shape->height; y++) {
        const size_t at = fed_pixel(buffer, y, 0);
        switch (activation) {
        case FED_RELU:
            kernels->relu_backward(outputs + at, gradient + at, row_size);
            break;
        case FED_TANH:
            kernels->tanh_backward(outputs + at, gradient + at, row_size);
            break;
        default:
            kernels->sigmoid_backward(outputs + at, gradient + at, row_size);
        }
    }
}

void fed_activate_out(const fed_pass *pass) {
    fed_apply_activation(pass->kernels, pass->stage->layer->activation, &pass->stage->out,
                         &pass->stage->shape, pass->out);
}

void fed_undo_out(const fed_pass *pass) {
    fed_undo_activation(pass->kernels, pass->stage->layer->activation, &pass->stage->out,
                        &pass->stage->shape, pass->out, pass->out_gradient);
}

/* ---- The layer ------------------------------------------------------------------------------- */

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    fed_copy_interior(&stage->shape, &stage->in, pass->in, &stage->out, pass->out);
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (pass->in_gradient == NULL) return;
    fed_undo_out(pass);
    fed_copy_interior(&stage->shape, &stage->out, pass->out_gradient, &stage->in,
                      pass->in_gradient);
}

const fed_stage_ops fed_activate = {
    .forward = forward,
    .backward = backward,
};
