/* SPDX-License-Identifier: Apache-2.0
 * Layer normalisation over channels: shifts and scales the channels of each pixel to mean 0 and
 * variance 1, then applies gamma and beta per channel (Ba et al. 2016; axis -1 in Keras). The
 * variance is the biased one, and epsilon is inside the root. Saved for backward: each pixel's mean
 * and 1 / deviation. */
#include "norm.h"

static size_t num_pixels(const fed_stage *stage) {
    return stage->shape.height * stage->shape.width;
}

/* Rows of [padded channels] in scratch. */
enum { ROW_IS_REAL = 0, ROW_GAMMA, ROW_BETA, ROW_GAMMA_GRADIENT, ROW_BETA_GRADIENT, NUM_ROWS };

static void lay_out(fed_stage *stage) {
    stage->packed_size = fed_norm_packed_size(stage);
    stage->saved_bytes = 2 * num_pixels(stage) * sizeof(float);
    stage->scratch_bytes = NUM_ROWS * fed_norm_channels(stage) * sizeof(float);
}

static float *row_of(const fed_pass *pass, size_t row) {
    return (float *)pass->scratch + row * fed_norm_channels(pass->stage);
}

/* Writes a row of parameters, or of `value` if there are none; padding channels are 0. */
static float *fill_row(const fed_pass *pass, size_t row, const float *params, float value) {
    const size_t channels = fed_norm_channels(pass->stage), num = pass->stage->layer->in.channels;
    float *to = row_of(pass, row);
    for (size_t c = 0; c < num; c++) to[c] = params != NULL ? params[c] : value;
    for (size_t c = num; c < channels; c++) to[c] = 0;
    return to;
}

static fed_pixel_norm norm_of(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    return (fed_pixel_norm){
        .num_pixels = stage->shape.width,
        .num_channels = fed_norm_channels(stage),
        .is_real = fill_row(pass, ROW_IS_REAL, NULL, 1),
        .gamma = fill_row(pass, ROW_GAMMA, fed_norm_gamma(pass), 1),
        .beta = fill_row(pass, ROW_BETA, fed_norm_beta(pass), 0),
        .share = 1 / (float)stage->layer->in.channels,
        .epsilon = (float)stage->layer->epsilon,
    };
}

/* Sets where row y of pixels is read, and where its statistics are kept. */
static void go_to_row(const fed_pass *pass, size_t y, fed_pixel_norm *norm) {
    const fed_stage *stage = pass->stage;
    norm->values = pass->in + fed_pixel(&stage->in, y, 0);
    if (pass->saved == NULL) return;
    norm->means = (float *)pass->saved + y * stage->shape.width;
    norm->inverses = norm->means + num_pixels(stage);
}

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    fed_pixel_norm norm = norm_of(pass);
    for (size_t y = 0; y < stage->shape.height; y++) {
        go_to_row(pass, y, &norm);
        pass->kernels->norm_pixels(&norm, pass->out + fed_pixel(&stage->out, y, 0));
    }
    fed_activate_out(pass);
}

static void add_row(const fed_pass *pass, const float *row, float *gradient) {
    for (size_t c = 0; c < pass->stage->layer->in.channels; c++) gradient[c] += row[c];
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    fed_pixel_norm norm = norm_of(pass);
    fed_pixel_norm_gradient gradient = {
        .by_gamma = fill_row(pass, ROW_GAMMA_GRADIENT, NULL, 0),
        .by_beta = fill_row(pass, ROW_BETA_GRADIENT, NULL, 0),
    };
    fed_undo_out(pass);
    for (size_t y = 0; y < stage->shape.height; y++) {
        go_to_row(pass, y, &norm);
        gradient.by_outputs = pass->out_gradient + fed_pixel(&stage->out, y, 0);
        if (pass->in_gradient != NULL)
            gradient.by_values = pass->in_gradient + fed_pixel(&stage->in, y, 0);
        pass->kernels->norm_pixels_gradient(&norm, &gradient);
    }
    if (layer->has_scale) add_row(pass, gradient.by_gamma, pass->gradient);
    if (layer->has_bias)
        add_row(pass, gradient.by_beta,
                pass->gradient + (layer->has_scale ? fed_norm_channels(stage) : 0));
}

const fed_stage_ops fed_layer_norm = {
    .lay_out = lay_out,
    .pack = fed_norm_pack,
    .unpack = fed_norm_unpack,
    .forward = forward,
    .backward = backward,
};
