/* SPDX-License-Identifier: Apache-2.0
 * The kinds of layers, one row each. The rest of the core knows nothing else about a kind. To add a
 * kind, add a row here and a file beside this one. */
#include "layer.h"

#include <math.h>
#include <string.h>

/* The implementations. Those of input layers are in augment.c, the others in files of the same or
 * similar names. */
extern const fed_stage_ops fed_dense_ends, fed_dense_hidden;
extern const fed_stage_ops fed_conv_first, fed_conv_pooled, fed_conv_batch, fed_depthwise_conv;
extern const fed_stage_ops fed_max_pool, fed_average_pool;
extern const fed_stage_ops fed_normalize, fed_standardize, fed_flip, fed_crop, fed_crop_middle,
    fed_rotate, fed_cut_out, fed_jitter, fed_mix;
extern const fed_stage_ops fed_group_norm, fed_layer_norm, fed_batch_norm, fed_dropout,
    fed_activate, fed_add, fed_zero_padding, fed_concatenate;

/* ---- Checks of a model's rows ---------------------------------------------------------------- */

static int keeps_shape(const fed_layer *layer) {
    const fed_shape *in = &layer->in, *out = &layer->out;
    return in->height == out->height && in->width == out->width && in->channels == out->channels;
}

/* 1 if each window overlaps the image, so that a pool has at least one value. */
static int window_fits(size_t in, size_t out, size_t window, size_t stride, size_t pad) {
    return fed_is_size(window) && window <= FED_MAX_VALUES / 2 && fed_is_size(stride) &&
           pad < window && out - 1 <= (in - 1 + pad) / stride;
}

static int windows_fit(const fed_layer *layer) {
    return window_fits(layer->in.height, layer->out.height, layer->window_height, layer->stride_y,
                       layer->pad_top) &&
           window_fits(layer->in.width, layer->out.width, layer->window_width, layer->stride_x,
                       layer->pad_left);
}

/* Offsets inside a convolution, forward and backward, are int32_t. Each extent stays below 2^29, so
 * that sums of a few offsets cannot overflow. */
static int offsets_fit(const fed_layer *layer) {
    const size_t most = FED_MAX_VALUES / 4;
    const size_t height = fed_larger(layer->in.height + 2 * layer->window_height, layer->stride_y);
    const size_t width = fed_larger(layer->in.width + 2 * layer->window_width, layer->stride_x);
    const size_t channels = fed_padded(fed_larger(layer->in.channels, layer->out.channels));
    return height <= most && width <= most / height && channels <= most / (height * width);
}

static int dense_is_valid(const fed_layer *layer) {
    return layer->out.height == 1 && layer->out.width == 1 &&
           fed_padded(layer->out.channels) <=
               FED_MAX_VALUES / (fed_shape_size(&layer->in) + FED_PAD);
}

static int conv_is_valid(const fed_layer *layer) {
    return windows_fit(layer) && offsets_fit(layer) &&
           layer->window_height <= FED_MAX_VALUES / layer->window_width / layer->in.channels /
                                       fed_padded(layer->out.channels);
}

static int depthwise_is_valid(const fed_layer *layer) {
    return conv_is_valid(layer) && layer->out.channels == layer->in.channels;
}

static int pool_is_valid(const fed_layer *layer) {
    return windows_fit(layer) && layer->out.channels == layer->in.channels;
}

static int layer_norm_is_valid(const fed_layer *layer) {
    return keeps_shape(layer) && layer->epsilon >= 0 && layer->epsilon <= 1;
}

static int group_norm_is_valid(const fed_layer *layer) {
    return layer_norm_is_valid(layer) && fed_is_size(layer->num_groups) &&
           layer->in.channels % layer->num_groups == 0;
}

static int batch_norm_is_valid(const fed_layer *layer) {
    return layer_norm_is_valid(layer) && layer->momentum >= 0 && layer->momentum <= 1;
}

static int padding_is_valid(const fed_layer *layer) {
    const fed_shape *in = &layer->in, *out = &layer->out;
    return out->channels == in->channels && in->height <= out->height && in->width <= out->width &&
           layer->pad_top <= out->height - in->height && layer->pad_left <= out->width - in->width;
}

static int concatenation_is_valid(const fed_layer *layer) {
    const fed_shape *in = &layer->in, *out = &layer->out;
    return in->height == out->height && in->width == out->width && in->channels < out->channels;
}

static int dropout_is_valid(const fed_layer *layer) {
    return keeps_shape(layer) && layer->rate >= 0 && layer->rate < 1;
}

static int normalization_is_valid(const fed_layer *layer) {
    if (!keeps_shape(layer) || layer->in.channels > FED_MAX_NORMALIZED) return 0;
    for (size_t i = 0; i < 2 * FED_MAX_NORMALIZED; i++)
        if (!(fabs(layer->constants[i]) <= 1e6)) return 0;
    return 1;
}

/* 1 if the part that is cut out is inside the image with its border. */
static int crop_is_valid(const fed_layer *layer) {
    const fed_shape *in = &layer->in, *out = &layer->out;
    return layer->pad_top <= in->height && layer->pad_left <= in->width &&
           out->height <= in->height + 2 * layer->pad_top &&
           out->width <= in->width + 2 * layer->pad_left && out->channels == in->channels;
}

static int rotation_is_valid(const fed_layer *layer) {
    return keeps_shape(layer) && layer->constants[0] >= 0 && layer->constants[0] <= 4;
}

static int cutout_is_valid(const fed_layer *layer) {
    return keeps_shape(layer) && fed_is_size(layer->window_height);
}

static int jitter_is_valid(const fed_layer *layer) {
    for (size_t i = 0; i < 3; i++)
        if (!(layer->constants[i] >= 0 && layer->constants[i] <= 1)) return 0;
    return keeps_shape(layer);
}

static int mixup_is_valid(const fed_layer *layer) {
    return keeps_shape(layer) && layer->constants[0] >= 1e-6 && layer->constants[0] <= 1e6;
}

/* ---- Flat parameters ------------------------------------------------------------------------- */

static size_t num_biases(const fed_layer *layer) {
    return layer->has_bias ? layer->out.channels : 0;
}

/* Kernel [I, O], bias [O]; the inputs are flattened to one vector. */
static size_t dense_num_params(const fed_layer *layer) {
    return fed_shape_size(&layer->in) * layer->out.channels + num_biases(layer);
}

/* Kernel [window height, window width, in channels, out channels], bias [out channels]. */
static size_t conv_num_params(const fed_layer *layer) {
    return layer->window_height * layer->window_width * layer->in.channels * layer->out.channels +
           num_biases(layer);
}

/* Kernel [window height, window width, channels], bias [channels]. */
static size_t depthwise_num_params(const fed_layer *layer) {
    return layer->window_height * layer->window_width * layer->in.channels + num_biases(layer);
}

/* Gamma [channels], beta [channels]. */
static size_t norm_num_params(const fed_layer *layer) {
    return (layer->has_scale ? layer->out.channels : 0) + num_biases(layer);
}

static size_t no_params(const fed_layer *layer) { return (void)layer, (size_t)0; }

/* ---- Inputs ---------------------------------------------------------------------------------- */

/* The shape of the second input: the channels of the outputs that do not come from the first. */
static fed_shape other_channels(const fed_layer *layer) {
    const fed_shape *in = &layer->in;
    return (fed_shape){in->height, in->width, layer->out.channels - in->channels};
}

/* ---- Stages of two layers -------------------------------------------------------------------- */

/* A convolution can also compute the most common pool: 2x2 with stride 2, whose windows are all
 * whole. */
static int conv_takes_pool(const fed_layer *next) {
    return fed_kind_of(next)->ops == &fed_max_pool && next->activation == FED_LINEAR &&
           next->window_height == 2 && next->window_width == 2 && next->stride_y == 2 &&
           next->stride_x == 2 && next->pad_top == 0 && next->pad_left == 0 &&
           next->out.height == next->in.height / 2 && next->out.width == next->in.width / 2;
}

/* ---- The table ------------------------------------------------------------------------------- */

#define INPUT(kind, check, its_ops, draws)                                                         \
    {.name = kind,                                                                                 \
     .is_valid = check,                                                                            \
     .num_params = no_params,                                                                      \
     .ops = &its_ops,                                                                              \
     .num_draws = draws,                                                                           \
     .is_input = 1}

static const fed_layer_kind kinds[] = {
    {.name = "dense",
     .is_valid = dense_is_valid,
     .num_params = dense_num_params,
     .ops = &fed_dense_hidden,
     .first = &fed_dense_ends,
     .last = &fed_dense_ends},
    {.name = "conv2d",
     .is_valid = conv_is_valid,
     .num_params = conv_num_params,
     .ops = &fed_conv_batch,
     .first = &fed_conv_first,
     .with_pool = &fed_conv_pooled,
     .takes_pool = conv_takes_pool},
    {.name = "max_pooling2d",
     .is_valid = pool_is_valid,
     .num_params = no_params,
     .ops = &fed_max_pool,
     .keeps_relu = 1},
    {.name = "average_pooling2d",
     .is_valid = pool_is_valid,
     .num_params = no_params,
     .ops = &fed_average_pool},
    {.name = "group_normalization",
     .is_valid = group_norm_is_valid,
     .num_params = norm_num_params,
     .ops = &fed_group_norm},
    {.name = "layer_normalization",
     .is_valid = layer_norm_is_valid,
     .num_params = norm_num_params,
     .ops = &fed_layer_norm},
    {.name = "batch_normalization",
     .is_valid = batch_norm_is_valid,
     .num_params = norm_num_params,
     .ops = &fed_batch_norm,
     .has_moving = 1},
    {.name = "zero_padding2d",
     .is_valid = padding_is_valid,
     .num_params = no_params,
     .ops = &fed_zero_padding},
    {.name = "dropout",
     .is_valid = dropout_is_valid,
     .num_params = no_params,
     .ops = &fed_dropout,
     .num_draws = fed_dropout_draws,
     .keeps_relu = 1},
    {.name = "activation",
     .is_valid = keeps_shape,
     .num_params = no_params,
     .ops = &fed_activate,
     .keeps_inputs = 1},
    {.name = "add",
     .is_valid = keeps_shape,
     .num_params = no_params,
     .ops = &fed_add,
     .num_inputs = 2},
    {.name = "concatenate",
     .is_valid = concatenation_is_valid,
     .num_params = no_params,
     .ops = &fed_concatenate,
     .num_inputs = 2,
     .second_input = other_channels},
    {.name = "depthwise_conv2d",
     .is_valid = depthwise_is_valid,
     .num_params = depthwise_num_params,
     .ops = &fed_depthwise_conv},
    INPUT("normalization", normalization_is_valid, fed_normalize, NULL),
    INPUT("image_standardization", keeps_shape, fed_standardize, NULL),
    INPUT("random_flip", keeps_shape, fed_flip, fed_one_draw),
    INPUT("random_crop", crop_is_valid, fed_crop, fed_two_draws),
    INPUT("center_crop", crop_is_valid, fed_crop_middle, NULL),
    INPUT("random_rotation", rotation_is_valid, fed_rotate, fed_one_draw),
    INPUT("cutout", cutout_is_valid, fed_cut_out, fed_two_draws),
    INPUT("color_jitter", jitter_is_valid, fed_jitter, fed_three_draws),
    {.name = "mix_up",
     .is_valid = mixup_is_valid,
     .num_params = no_params,
     .ops = &fed_mix,
     .is_input = 1,
     .mixes = 1},
};
enum { NUM_KINDS = sizeof kinds / sizeof kinds[0] };

int fed_layer_kind_named(const char *name) {
    for (int k = 0; k < NUM_KINDS; k++)
        if (strcmp(kinds[k].name, name) == 0) return k;
    return -1;
}

size_t fed_num_moving(const fed_layer *layer) {
    return fed_kind_of(layer)->has_moving ? 2 * layer->out.channels : 0;
}

size_t fed_num_inputs(const fed_layer *layer) {
    const size_t num_inputs = fed_kind_of(layer)->num_inputs;
    return num_inputs > 0 ? num_inputs : 1;
}

const fed_layer_kind *fed_kind_of(const fed_layer *layer) {
    return layer->kind >= 0 && layer->kind < NUM_KINDS ? &kinds[layer->kind] : NULL;
}
