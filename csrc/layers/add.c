/* SPDX-License-Identifier: Apache-2.0
 * The sum of two images of the same shape, then an activation: the end of a residual block (He et
 * al. 2016). Both inputs get the gradient of the sum. */
#include "layer.h"

/* The shape of one row of pixels, for the activation of a row. */
static fed_shape row_of(const fed_stage *stage) {
    fed_shape row = stage->shape;
    row.height = 1;
    return row;
}

/* All steps are done for a row while it is in the cache. */
static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_shape row = row_of(stage);
    const size_t row_size = fed_row_size(&stage->out, &stage->shape);
    for (size_t y = 0; y < stage->shape.height; y++) {
        float *out = pass->out + fed_pixel(&stage->out, y, 0);
        memcpy(out, pass->in + fed_pixel(&stage->in, y, 0), row_size * sizeof *out);
        pass->kernels->add(out, pass->in_2 + fed_pixel(&stage->in_2, y, 0), row_size);
        fed_apply_activation(pass->kernels, stage->layer, &stage->out, &row,
                             pass->out + y * stage->out.row_stride);
    }
}

/* Writes a row of the sum's gradient to the gradient of an input, or adds it there. */
static void pass_on(const fed_pass *pass, const fed_buffer *in, int adds, size_t y,
                    float *in_gradient) {
    const fed_stage *stage = pass->stage;
    const size_t row_size = fed_row_size(&stage->out, &stage->shape);
    const float *from = pass->out_gradient + fed_pixel(&stage->out, y, 0);
    if (in_gradient == NULL) return;
    float *to = in_gradient + fed_pixel(in, y, 0);
    if (adds)
        pass->kernels->add(to, from, row_size);
    else
        memcpy(to, from, row_size * sizeof *to);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_shape row = row_of(stage);
    for (size_t y = 0; y < stage->shape.height; y++) {
        const size_t at = y * stage->out.row_stride;
        fed_undo_activation(pass->kernels, stage->layer, &stage->out, &row, pass->out + at,
                            pass->out_gradient + at);
        pass_on(pass, &stage->in, stage->adds[0], y, pass->in_gradient);
        pass_on(pass, &stage->in_2, stage->adds[1], y, pass->in_2_gradient);
    }
}

const fed_stage_ops fed_add = {
    .forward = forward,
    .backward = backward,
    .adds_gradients = 1,
};
