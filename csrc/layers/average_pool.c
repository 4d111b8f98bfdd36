/* SPDX-License-Identifier: Apache-2.0
 * Average-pool: the mean of the values of each window inside the image. */
#include "pools.h"

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++) {
            fed_window window;
            const float *in = pass->in + fed_pool_window(stage, y, x, &window);
            pass->kernels->mean_window(in, &window, stage->in.pixel_stride,
                                       pass->out + fed_pixel(&stage->out, y, x));
        }
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (pass->in_gradient == NULL) return;
    fed_undo_out(pass);
    memset(pass->in_gradient, 0, stage->in.num_values * sizeof *pass->in_gradient);
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++) {
            fed_window window;
            float *in_gradient = pass->in_gradient + fed_pool_window(stage, y, x, &window);
            pass->kernels->mean_window_backward(pass->out_gradient + fed_pixel(&stage->out, y, x),
                                                &window, stage->in.pixel_stride, in_gradient);
        }
}

const fed_stage_ops fed_average_pool = {
    .forward = forward,
    .backward = backward,
};
