/* SPDX-License-Identifier: Apache-2.0
 * Max-pool: the largest value of each window, or the first of several equal values; a NaN counts as
 * largest. Saved for backward: the index of each output value in its window. */
#include "pools.h"

static void lay_out(fed_stage *stage) {
    stage->saved_bytes = fed_plain_buffer(&stage->layer->out).num_values * sizeof(int32_t);
}

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t channels = stage->in.pixel_stride;
    int32_t *argmax = pass->saved;
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++) {
            fed_window window;
            const float *in = pass->in + fed_pool_window(stage, y, x, &window);
            pass->kernels->max_window(in, &window, channels,
                                      pass->out + fed_pixel(&stage->out, y, x), argmax);
            if (argmax != NULL) argmax += channels;
        }
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t channels = stage->in.pixel_stride;
    const int32_t *argmax = pass->saved;
    if (pass->in_gradient == NULL) return;
    fed_undo_out(pass);
    memset(pass->in_gradient, 0, stage->in.num_values * sizeof *pass->in_gradient);
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++, argmax += channels) {
            fed_window window;
            float *in_gradient = pass->in_gradient + fed_pool_window(stage, y, x, &window);
            pass->kernels->max_window_backward(pass->out_gradient + fed_pixel(&stage->out, y, x),
                                               argmax, &window, channels, in_gradient);
        }
}

const fed_stage_ops fed_max_pool = {
    .lay_out = lay_out,
    .forward = forward,
    .backward = backward,
};
