/* SPDX-License-Identifier: Apache-2.0
 * An image inside a border of zeros, which may have a different width on each side. */
#include "layer.h"

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const size_t row = fed_row_size(&stage->in, &layer->in);
    const size_t left = layer->pad_left * stage->out.pixel_stride;
    const size_t right = fed_row_size(&stage->out, &stage->shape) - left - row;
    for (size_t y = 0; y < stage->shape.height; y++) {
        float *out = pass->out + fed_pixel(&stage->out, y, 0);
        const size_t in_y = y - layer->pad_top; /* wraps around above the image */
        if (in_y >= layer->in.height) {
            memset(out, 0, (left + row + right) * sizeof *out);
            continue;
        }
        memset(out, 0, left * sizeof *out);
        memcpy(out + left, pass->in + fed_pixel(&stage->in, in_y, 0), row * sizeof *out);
        memset(out + left + row, 0, right * sizeof *out);
    }
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    if (pass->in_gradient == NULL) return;
    fed_undo_out(pass);
    for (size_t y = 0; y < layer->in.height; y++) {
        const size_t from = fed_pixel(&stage->out, y + layer->pad_top, layer->pad_left);
        memcpy(pass->in_gradient + fed_pixel(&stage->in, y, 0), pass->out_gradient + from,
               fed_row_size(&stage->in, &layer->in) * sizeof(float));
    }
}

const fed_stage_ops fed_zero_padding = {
    .forward = forward,
    .backward = backward,
};
