/* SPDX-License-Identifier: Apache-2.0
 * Group normalisation: shifts and scales each group of neighbouring channels of an example to mean
 * 0 and variance 1 over height, width and the group's channels, then applies gamma and beta per
 * channel. The variance is the biased one, and epsilon is inside the root. Saved for backward: the
 * mean and 1 / deviation of each channel's group. If another stage applies the norm, the map of the
 * channels is saved, too, and the outputs are not written. */
#include "norm.h"

#include <math.h>

/* Means and inverse deviations of one example, [padded channels] each; the inverse of a padding
 * channel is 0. */
typedef struct statistics {
    float *means, *inverses;
} statistics;

/* Scratch holds two rows of sums and the rows of coefficients. Without a backward pass the last two
 * of these hold the statistics. */
static void lay_out(fed_stage *stage) {
    const size_t channels = fed_norm_channels(stage);
    stage->packed_size = fed_norm_packed_size(stage);
    const size_t num_saved = stage->is_mapped ? FED_NORM_SAVED_ROWS : FED_NORM_SAVED_SCALES;
    stage->saved_bytes = num_saved * channels * sizeof(float);
    stage->scratch_bytes =
        2 * channels * sizeof(double) + FED_NORM_NUM_ROWS * channels * sizeof(float);
}

void fed_norm_pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t channels = layer->in.channels;
    const float *from = flat + layer->offset;
    memset(packed, 0, stage->packed_size * sizeof *packed);
    for (size_t at = 0; at < stage->packed_size; at += fed_norm_channels(stage), from += channels)
        memcpy(packed + at, from, channels * sizeof *packed);
}

void fed_norm_unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t channels = layer->in.channels;
    double *to = flat + layer->offset;
    for (size_t at = 0; at < stage->packed_size; at += fed_norm_channels(stage), to += channels)
        memcpy(to, packed + at, channels * sizeof *to);
}

static double *sums_of(const fed_pass *pass) { return pass->scratch; }

static float *row_of(const fed_pass *pass, size_t row) {
    float *rows = (float *)(sums_of(pass) + 2 * fed_norm_channels(pass->stage));
    return rows + row * fed_norm_channels(pass->stage);
}

static statistics statistics_of(const fed_pass *pass) {
    float *means = pass->saved != NULL ? pass->saved : row_of(pass, FED_NORM_BY_VALUE);
    return (statistics){means, means + fed_norm_channels(pass->stage)};
}

static double *cleared_sums(const fed_pass *pass) {
    memset(sums_of(pass), 0, 2 * fed_norm_channels(pass->stage) * sizeof(double));
    return sums_of(pass);
}

/* Adds up the values in four partial sums, in a fixed order, so that an addition need not wait for
 * the one before it. */
static double sum_of(const double *values, size_t num) {
    double sums[4] = {0};
    size_t i = 0;
    for (; i + 4 <= num; i += 4)
        for (size_t k = 0; k < 4; k++) sums[k] += values[i + k];
    for (; i < num; i++) sums[0] += values[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Replaces each channel's sum by the mean over its group. */
static void average_groups(const fed_layer *layer, double *sums) {
    const size_t size = layer->in.channels / layer->num_groups;
    const double count = (double)(layer->in.height * layer->in.width * size);
    for (size_t first = 0; first < layer->in.channels; first += size) {
        const double mean = sum_of(sums + first, size) / count;
        for (size_t c = first; c < first + size; c++) sums[c] = mean;
    }
}

/* Turns channel sums of deviations from the first pixel, and of their squares, into channel means
 * and sums of squared deviations from these means. */
static void center(const float *shifts, double num_pixels, size_t channels, double *sums,
                   double *squares) {
    const double share = 1 / num_pixels;
    for (size_t c = 0; c < channels; c++) {
        const double mean = sums[c] * share;
        squares[c] -= sums[c] * mean;
        sums[c] = (double)shifts[c] + mean;
    }
}

/* One pass over the image sums the deviations from the first pixel. They are small, so little
 * precision is lost when the squared mean is subtracted from the mean square. Channels are then
 * combined into groups (Chan et al. 1979). */
static void measure(const fed_pass *pass, const statistics *found) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const size_t channels = fed_norm_channels(stage), size = layer->in.channels / layer->num_groups;
    const double num_pixels = (double)(layer->in.height * layer->in.width);
    const float *shifts = pass->in + fed_pixel(&stage->in, 0, 0);
    double *sums = cleared_sums(pass), *squares = sums + channels;
    const fed_norm_rows rows = fed_norm_rows_of(stage);
    pass->kernels->norm_deviations(&rows, shifts, shifts, sums, squares);
    center(shifts, num_pixels, channels, sums, squares);
    memset(found->means, 0, 2 * channels * sizeof *found->means);
    for (size_t first = 0; first < layer->in.channels; first += size) {
        const double mean = sum_of(sums + first, size) / (double)size;
        for (size_t c = first; c < first + size; c++)
            squares[c] += num_pixels * (sums[c] - mean) * (sums[c] - mean);
        const double variance = sum_of(squares + first, size) / (num_pixels * (double)size);
        /* Rounding may give a value below 0; NaN must stay NaN. */
        const float inverse = (float)(1 / sqrt((variance < 0 ? 0 : variance) + layer->epsilon));
        for (size_t c = first; c < first + size; c++) {
            found->means[c] = (float)mean;
            found->inverses[c] = inverse;
        }
    }
}

/* Makes the map of the channels from the statistics, which are followed by its rows if it is saved.
 */
static fed_norm_map map_of(const fed_pass *pass, const statistics *found) {
    const fed_stage *stage = pass->stage;
    const float *gamma = fed_norm_gamma(pass), *beta = fed_norm_beta(pass);
    const size_t channels = fed_norm_channels(stage);
    float *scales = stage->is_mapped ? found->inverses + channels : row_of(pass, FED_NORM_SCALES);
    float *biases = scales + channels;
    for (size_t c = 0; c < channels; c++) {
        scales[c] = gamma != NULL ? gamma[c] * found->inverses[c] : found->inverses[c];
        biases[c] = beta != NULL ? beta[c] : 0;
    }
    return (fed_norm_map){found->means, scales, biases, fed_norm_range(stage->layer)};
}

static void repeat(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const statistics found = statistics_of(pass);
    const fed_norm_map map = map_of(pass, &found);
    for (size_t y = 0; y < stage->shape.height; y++)
        pass->kernels->norm_apply(&map, pass->in + fed_pixel(&stage->in, y, 0), stage->shape.width,
                                  fed_norm_channels(stage),
                                  pass->out + fed_pixel(&stage->out, y, 0));
    if (!fed_norm_activates(stage->layer)) fed_activate_out(pass);
}

static void forward(const fed_pass *pass) {
    const statistics found = statistics_of(pass);
    measure(pass, &found);
    if (pass->stage->is_mapped)
        map_of(pass, &found);
    else
        repeat(pass);
}

/* The other stage can compute no activation but those of the kernels. */
static int can_map(const fed_layer *layer) {
    return layer->activation == FED_LINEAR || fed_norm_activates(layer);
}

/* With x' = (x - mean) / deviation: sums[c] = sum of g, products[c] = sum of g * x', the gradients
 * of beta and gamma. */
static void sum_gradient(const fed_pass *pass, const statistics *found, const fed_norm_map *map,
                         double *sums, double *products) {
    const fed_stage *stage = pass->stage;
    const size_t channels = fed_norm_channels(stage);
    const fed_norm_rows rows = fed_norm_rows_of(stage);
    pass->kernels->norm_products(&rows, map, pass->out_gradient + fed_pixel(&stage->out, 0, 0),
                                 pass->in + fed_pixel(&stage->in, 0, 0), sums, products);
    for (size_t c = 0; c < channels; c++) products[c] *= (double)found->inverses[c];
}

static void add_param_gradient(const fed_pass *pass, const double *sums, const double *products) {
    const fed_layer *layer = pass->stage->layer;
    float *gradient = pass->gradient;
    if (layer->has_scale) {
        for (size_t c = 0; c < layer->in.channels; c++) gradient[c] += (float)products[c];
        gradient += fed_norm_channels(pass->stage);
    }
    if (layer->has_bias)
        for (size_t c = 0; c < layer->in.channels; c++) gradient[c] += (float)sums[c];
}

/* dx = (gamma g - mean(gamma g) - x' mean(gamma g x')) / deviation, with means over the group.
 * Writes two rows of coefficients: of x - mean, and the constant terms. The coefficients of g are
 * the map's scales. */
static void find_coefficients(const fed_pass *pass, const statistics *found, double *sums,
                              double *products) {
    const size_t channels = fed_norm_channels(pass->stage);
    const float *gamma = fed_norm_gamma(pass);
    float *by_value = row_of(pass, FED_NORM_BY_VALUE), *fixed = row_of(pass, FED_NORM_FIXED);
    for (size_t c = 0; gamma != NULL && c < channels; c++) {
        sums[c] *= (double)gamma[c];
        products[c] *= (double)gamma[c];
    }
    average_groups(pass->stage->layer, sums);
    average_groups(pass->stage->layer, products);
    for (size_t c = 0; c < channels; c++) {
        const double inverse = (double)found->inverses[c];
        by_value[c] = (float)(-inverse * inverse * products[c]);
        fixed[c] = (float)(-inverse * sums[c]);
    }
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const statistics found = statistics_of(pass);
    double *sums = cleared_sums(pass), *products = sums + fed_norm_channels(stage);
    const fed_norm_map map = map_of(pass, &found);
    if (!fed_norm_activates(stage->layer)) fed_undo_out(pass);
    sum_gradient(pass, &found, &map, sums, products);
    add_param_gradient(pass, sums, products);
    if (pass->in_gradient == NULL) return;
    find_coefficients(pass, &found, sums, products);
    for (size_t y = 0; y < stage->shape.height; y++) {
        const size_t at = fed_pixel(&stage->in, y, 0);
        const fed_norm_gradient gradient = {
            .gradient = pass->out_gradient + fed_pixel(&stage->out, y, 0),
            .values = pass->in + at,
            .map = &map,
            .by_value = row_of(pass, FED_NORM_BY_VALUE),
            .fixed = row_of(pass, FED_NORM_FIXED),
            .num_pixels = stage->shape.width,
            .num_channels = fed_norm_channels(stage),
            .in_gradient = pass->in_gradient + at,
        };
        pass->kernels->norm_gradient(&gradient);
    }
}

const fed_stage_ops fed_group_norm = {
    .lay_out = lay_out,
    .pack = fed_norm_pack,
    .unpack = fed_norm_unpack,
    .forward = forward,
    .backward = backward,
    .repeat = repeat,
    .can_map = can_map,
};
