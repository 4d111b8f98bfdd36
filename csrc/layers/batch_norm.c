/* SPDX-License-Identifier: Apache-2.0
 * Batch normalisation: shifts and scales each channel to mean 0 and variance 1, then applies gamma
 * and beta per channel. In training, mean and variance are those over all pixels of the batch; in
 * scoring, and if the layer is frozen, they are the moving mean and variance. As in Keras 3,
 * variances are always the biased ones, and epsilon is inside the root.
 *
 * Threads share blocks of images. The number of blocks, and so the order in which their sums are
 * added, depends on the number of images alone. */
#include "norm.h"
#include "threads.h"

#include <math.h>

enum { MAX_BLOCKS = 8 };

/* [padded channels] each; the inverse deviation of a padding channel is 0. Saved for backward. */
typedef struct statistics {
    float *means, *inverses, *variances;
} statistics;

/* A pass, and its scratch. */
typedef struct work {
    const fed_images_pass *pass;
    size_t channels; /* padded */
    double *sums;    /* [blocks, 2, channels] */
    float *rows;     /* [FED_NORM_NUM_ROWS, channels] */
    fed_norm_map map;
    statistics found;
} work;

static void lay_out(fed_stage *stage) {
    stage->packed_size = fed_norm_packed_size(stage);
    /* The first example's part of the saved memory has room for the statistics of the whole
     * batch. */
    stage->saved_bytes = 3 * fed_norm_channels(stage) * sizeof(float);
}

static size_t images_scratch(const fed_stage *stage, size_t num_images, int num_workers) {
    (void)num_images, (void)num_workers;
    const size_t sums = MAX_BLOCKS * 2 * sizeof(double) / sizeof(float);
    return (sums + FED_NORM_NUM_ROWS + 3) * fed_norm_channels(stage);
}

static work work_of(const fed_images_pass *pass) {
    const size_t channels = fed_norm_channels(pass->stage);
    work w = {.pass = pass, .channels = channels, .sums = (double *)pass->scratch};
    w.rows = (float *)(w.sums + MAX_BLOCKS * 2 * channels);
    float *found = pass->saved != NULL ? pass->saved : w.rows + FED_NORM_NUM_ROWS * channels;
    w.found = (statistics){found, found + channels, found + 2 * channels};
    return w;
}

static float *row_of(const work *w, size_t row) { return w->rows + row * w->channels; }

static int uses_moving(const fed_images_pass *pass) {
    return pass->saved == NULL || pass->stage->layer->is_frozen;
}

static double num_pixels(const fed_images_pass *pass) {
    const fed_shape *shape = &pass->stage->shape;
    return (double)(pass->num_images * shape->height * shape->width);
}

/* ---- Sums over the batch --------------------------------------------------------------------- */

static size_t num_blocks(const fed_images_pass *pass) {
    return fed_smaller(pass->num_images, MAX_BLOCKS);
}

static size_t first_of_block(const fed_images_pass *pass, size_t block) {
    return block * pass->num_images / num_blocks(pass);
}

static double *cleared_sums(const work *w, size_t block) {
    double *sums = w->sums + block * 2 * w->channels;
    memset(sums, 0, 2 * w->channels * sizeof *sums);
    return sums;
}

/* Adds the sums of the other blocks to the sums of the first. */
static void add_blocks(const work *w) {
    const size_t size = 2 * w->channels;
    for (size_t block = 1; block < num_blocks(w->pass); block++)
        for (size_t i = 0; i < size; i++) w->sums[i] += w->sums[block * size + i];
}

/* ---- Statistics ------------------------------------------------------------------------------ */

static void sum_deviations(void *context, size_t block, int worker) {
    const work *w = context;
    const fed_images_pass *pass = w->pass;
    const fed_buffer *in = &pass->stage->in;
    const fed_norm_rows rows = fed_norm_rows_of(pass->stage);
    double *sums = cleared_sums(w, block);
    (void)worker;
    for (size_t b = first_of_block(pass, block); b < first_of_block(pass, block + 1); b++)
        pass->kernels->norm_deviations(&rows, pass->in + b * in->num_values + fed_pixel(in, 0, 0),
                                       row_of(w, FED_NORM_SCALES), sums, sums + w->channels);
}

/* The mean over all images of the pixel in the middle. Deviations from it are small, so `measure`
 * loses little precision when it subtracts the squared mean from the mean square. */
static void find_shifts(const work *w, float *shifts) {
    const fed_images_pass *pass = w->pass;
    const fed_stage *stage = pass->stage;
    const size_t at = fed_pixel(&stage->in, stage->shape.height / 2, stage->shape.width / 2);
    memset(shifts, 0, w->channels * sizeof *shifts);
    for (size_t b = 0; b < pass->num_images; b++)
        pass->kernels->add(shifts, pass->in + b * stage->in.num_values + at, w->channels);
    pass->kernels->multiply(shifts, w->channels, 1 / (float)pass->num_images);
}

static void set_inverses(const work *w) {
    const fed_layer *layer = w->pass->stage->layer;
    const statistics *found = &w->found;
    for (size_t c = 0; c < w->channels; c++) {
        const double root = sqrt((double)found->variances[c] + layer->epsilon);
        found->inverses[c] = c < layer->in.channels ? (float)(1 / root) : 0;
    }
}

/* The statistics of the batch. */
static void measure(work *w) {
    const double share = 1 / num_pixels(w->pass);
    float *shifts = row_of(w, FED_NORM_SCALES); /* scales are found later */
    const double *sums = w->sums, *squares = w->sums + w->channels;
    find_shifts(w, shifts);
    fed_share(w->pass->num_workers, num_blocks(w->pass), sum_deviations, w);
    add_blocks(w);
    for (size_t c = 0; c < w->channels; c++) {
        const double mean = sums[c] * share;
        const double variance = (squares[c] - sums[c] * mean) * share;
        w->found.means[c] = (float)((double)shifts[c] + mean);
        /* Rounding may give a value below 0; NaN must stay NaN. */
        w->found.variances[c] = (float)(variance < 0 ? 0 : variance);
    }
    set_inverses(w);
}

static void take_moving(const work *w) {
    memcpy(w->found.means, w->pass->moving, w->channels * sizeof(float));
    memcpy(w->found.variances, w->pass->moving + w->channels, w->channels * sizeof(float));
    set_inverses(w);
}

static void move(const fed_stage *stage, const void *saved, float *moving) {
    const size_t channels = fed_norm_channels(stage);
    const double kept = stage->layer->momentum;
    const float *means = saved, *variances = means + 2 * channels;
    if (stage->layer->is_frozen) return;
    for (size_t c = 0; c < channels; c++) {
        moving[c] = (float)(kept * (double)moving[c] + (1 - kept) * (double)means[c]);
        float *variance = &moving[channels + c];
        *variance = (float)(kept * (double)*variance + (1 - kept) * (double)variances[c]);
    }
}

/* ---- Forward --------------------------------------------------------------------------------- */

static const float *gamma_of(const fed_images_pass *pass) {
    return pass->stage->layer->has_scale ? pass->params : NULL;
}

static const float *beta_of(const fed_images_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    if (!layer->has_bias) return NULL;
    return pass->params + (layer->has_scale ? fed_norm_channels(pass->stage) : 0);
}

/* Makes the map of the channels from the statistics. */
static void make_map(work *w) {
    const float *gamma = gamma_of(w->pass), *beta = beta_of(w->pass);
    float *scales = row_of(w, FED_NORM_SCALES), *biases = row_of(w, FED_NORM_BIASES);
    for (size_t c = 0; c < w->channels; c++) {
        scales[c] = gamma != NULL ? gamma[c] * w->found.inverses[c] : w->found.inverses[c];
        biases[c] = beta != NULL ? beta[c] : 0;
    }
    w->map = (fed_norm_map){w->found.means, scales, biases, fed_norm_range(w->pass->stage->layer)};
}

static void apply(void *context, size_t b, int worker) {
    const work *w = context;
    const fed_images_pass *pass = w->pass;
    const fed_stage *stage = pass->stage;
    const float *in = pass->in + b * stage->in.num_values;
    float *out = pass->out + b * stage->out.num_values;
    (void)worker;
    for (size_t y = 0; y < stage->shape.height; y++)
        pass->kernels->norm_apply(&w->map, in + fed_pixel(&stage->in, y, 0), stage->shape.width,
                                  w->channels, out + fed_pixel(&stage->out, y, 0));
    if (!fed_norm_activates(stage->layer))
        fed_apply_activation(pass->kernels, stage->layer, &stage->out, &stage->shape, out);
}

static void forward(const fed_images_pass *pass) {
    work w = work_of(pass);
    if (uses_moving(pass))
        take_moving(&w);
    else
        measure(&w);
    make_map(&w);
    fed_share(pass->num_workers, pass->num_images, apply, &w);
}

/* ---- Backward -------------------------------------------------------------------------------- */

/* Undoes the activation of a block's images, unless the map clips the outputs. Then, with g the
 * gradient and x the inputs, sums g and g * (x - mean) over the block. */
static void sum_gradient(void *context, size_t block, int worker) {
    const work *w = context;
    const fed_images_pass *pass = w->pass;
    const fed_stage *stage = pass->stage;
    const fed_norm_rows rows = fed_norm_rows_of(stage);
    double *sums = cleared_sums(w, block);
    (void)worker;
    for (size_t b = first_of_block(pass, block); b < first_of_block(pass, block + 1); b++) {
        const size_t in = b * stage->in.num_values, out = b * stage->out.num_values;
        if (!fed_norm_activates(stage->layer))
            fed_undo_activation(pass->kernels, stage->layer, &stage->out, &stage->shape,
                                pass->out + out, pass->out_gradient + out);
        pass->kernels->norm_products(
            &rows, &w->map, pass->out_gradient + out + fed_pixel(&stage->out, 0, 0),
            pass->in + in + fed_pixel(&stage->in, 0, 0), sums, sums + w->channels);
    }
}

static void add_param_gradient(const work *w, const double *sums, const double *products) {
    const fed_layer *layer = w->pass->stage->layer;
    float *gradient = w->pass->gradient;
    if (layer->has_scale) {
        for (size_t c = 0; c < layer->in.channels; c++) gradient[c] += (float)products[c];
        gradient += w->channels;
    }
    if (layer->has_bias)
        for (size_t c = 0; c < layer->in.channels; c++) gradient[c] += (float)sums[c];
}

/* With x' = (x - mean) / deviation: dx = gamma (g - mean(g) - x' mean(g x')) / deviation, with
 * means over the batch. Moving statistics do not depend on x: with them, dx = gamma g / deviation.
 * Writes rows of coefficients: of x - mean, and the constant terms. The coefficients of g are the
 * map's scales. */
static void find_coefficients(const work *w, const double *sums, const double *products) {
    const float *gamma = gamma_of(w->pass);
    const double share = uses_moving(w->pass) ? 0 : 1 / num_pixels(w->pass);
    float *by_value = row_of(w, FED_NORM_BY_VALUE), *fixed = row_of(w, FED_NORM_FIXED);
    for (size_t c = 0; c < w->channels; c++) {
        const double inverse = (double)w->found.inverses[c];
        const double scale = gamma != NULL ? (double)gamma[c] * inverse : inverse;
        by_value[c] = (float)(-scale * inverse * products[c] * share);
        fixed[c] = (float)(-scale * sums[c] * share);
    }
}

static void find_in_gradient(void *context, size_t b, int worker) {
    const work *w = context;
    const fed_images_pass *pass = w->pass;
    const fed_stage *stage = pass->stage;
    (void)worker;
    for (size_t y = 0; y < stage->shape.height; y++) {
        const size_t at = b * stage->in.num_values + fed_pixel(&stage->in, y, 0);
        const size_t out = b * stage->out.num_values + fed_pixel(&stage->out, y, 0);
        const fed_norm_gradient gradient = {
            .gradient = pass->out_gradient + out,
            .values = pass->in + at,
            .map = &w->map,
            .by_value = row_of(w, FED_NORM_BY_VALUE),
            .fixed = row_of(w, FED_NORM_FIXED),
            .num_pixels = stage->shape.width,
            .num_channels = w->channels,
            .in_gradient = pass->in_gradient + at,
        };
        pass->kernels->norm_gradient(&gradient);
    }
}

static void backward(const fed_images_pass *pass) {
    work w = work_of(pass);
    double *sums = w.sums, *products = w.sums + w.channels;
    make_map(&w);
    fed_share(pass->num_workers, num_blocks(pass), sum_gradient, &w);
    add_blocks(&w);
    for (size_t c = 0; c < w.channels; c++) products[c] *= (double)w.found.inverses[c];
    add_param_gradient(&w, sums, products);
    if (pass->in_gradient == NULL) return;
    find_coefficients(&w, sums, products);
    fed_share(pass->num_workers, pass->num_images, find_in_gradient, &w);
}

const fed_stage_ops fed_batch_norm = {
    .lay_out = lay_out,
    .pack = fed_norm_pack,
    .unpack = fed_norm_unpack,
    .images_scratch = images_scratch,
    .forward_images = forward,
    .backward_images = backward,
    .move = move,
};
