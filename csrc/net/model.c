/* SPDX-License-Identifier: Apache-2.0
 * The model table: checked, and laid out as stages. How a stage computes is in layers/. */
#include "core.h"

#include <string.h>

/* Sizes beyond this would overflow somewhere; no image classifier comes near. */
static const size_t max_values = (size_t)1 << 31;

/* ---- Checks ---------------------------------------------------------------------------------- */

static int is_size(size_t size) { return size >= 1 && size <= max_values; }

static int shape_is_valid(const fed_shape *shape) {
    if (!is_size(shape->height) || !is_size(shape->width) || !is_size(shape->channels)) return 0;
    /* Twice the padding of a border and of the channels must not overflow either. */
    return shape->height <= max_values / shape->width &&
           fed_padded(shape->channels) <= max_values / (shape->height * shape->width);
}

static int shapes_equal(const fed_shape *a, const fed_shape *b) {
    return a->height == b->height && a->width == b->width && a->channels == b->channels;
}

/* Each window must touch the image, or a pool would have nothing to choose from. */
static int window_fits(size_t in, size_t out, size_t window, size_t stride, size_t pad) {
    return is_size(window) && window <= max_values / 2 && is_size(stride) && pad < window &&
           out - 1 <= (in - 1 + pad) / stride;
}

static int windows_fit(const fed_layer *layer) {
    return window_fits(layer->in.height, layer->out.height, layer->window_height, layer->stride_y,
                       layer->pad_top) &&
           window_fits(layer->in.width, layer->out.width, layer->window_width, layer->stride_x,
                       layer->pad_left);
}

/* What a convolution's windows reach, its steps, and the same of its outputs on the way back, count
 * in int32_t, and so do sums of a few of them. */
static int reach_fits(const fed_layer *layer) {
    const size_t most = max_values / 4;
    const size_t height = fed_larger(layer->in.height + 2 * layer->window_height, layer->stride_y);
    const size_t width = fed_larger(layer->in.width + 2 * layer->window_width, layer->stride_x);
    const size_t channels = fed_padded(fed_larger(layer->in.channels, layer->out.channels));
    return height <= most && width <= most / height && channels <= most / (height * width);
}

static int is_flag(int32_t value) { return value == 0 || value == 1; }

/* What is particular to its kind. */
static int kind_is_valid(const fed_layer *layer) {
    const int keeps_channels = layer->out.channels == layer->in.channels;
    switch (layer->kind) {
    case FED_DENSE:
        return layer->out.height == 1 && layer->out.width == 1 &&
               fed_padded(layer->out.channels) <=
                   max_values / (fed_shape_size(&layer->in) + FED_PAD);
    case FED_CONV2D:
        return windows_fit(layer) && reach_fits(layer) &&
               layer->window_height <= max_values / layer->window_width / layer->in.channels /
                                           fed_padded(layer->out.channels);
    case FED_MAX_POOL:
    case FED_AVERAGE_POOL:
        return windows_fit(layer) && keeps_channels;
    case FED_GROUP_NORM:
        return shapes_equal(&layer->in, &layer->out) && is_size(layer->num_groups) &&
               layer->in.channels % layer->num_groups == 0 && layer->epsilon >= 0 &&
               layer->epsilon <= 1;
    case FED_DROPOUT:
        return shapes_equal(&layer->in, &layer->out) && layer->rate >= 0 && layer->rate < 1;
    default:
        return shapes_equal(&layer->in, &layer->out);
    }
}

static int layer_is_valid(const fed_layer *layer) {
    return layer->kind >= 0 && layer->kind < FED_NUM_LAYER_KINDS && layer->activation >= 0 &&
           layer->activation < FED_NUM_ACTIVATIONS && is_flag(layer->has_scale) &&
           is_flag(layer->has_bias) && shape_is_valid(&layer->in) && shape_is_valid(&layer->out) &&
           kind_is_valid(layer);
}

static size_t num_params(const fed_layer *layer) {
    const size_t num_biases = layer->has_bias ? layer->out.channels : 0;
    switch (layer->kind) {
    case FED_DENSE:
        return fed_shape_size(&layer->in) * layer->out.channels + num_biases;
    case FED_CONV2D:
        return layer->window_height * layer->window_width * layer->in.channels *
                   layer->out.channels +
               num_biases;
    case FED_GROUP_NORM:
        return (layer->has_scale ? layer->out.channels : 0) + num_biases;
    default:
        return 0;
    }
}

int fed_model_check(const fed_model *model) {
    if (model->num_layers < 1 || model->num_layers > FED_MAX_LAYERS) return FED_ERR_ARGUMENT;
    size_t offset = 0;
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        if (!layer_is_valid(layer) || layer->offset != offset) return FED_ERR_ARGUMENT;
        if (l > 0 && !shapes_equal(&layer->in, &model->layers[l - 1].out)) return FED_ERR_ARGUMENT;
        offset += num_params(layer);
        if (offset > max_values) return FED_ERR_ARGUMENT;
    }
    if (offset == 0) return FED_ERR_ARGUMENT; /* nothing to train */
    const fed_layer *last = &model->layers[model->num_layers - 1];
    if (fed_shape_size(&model->layers[0].in) != model->num_inputs || offset != model->num_params ||
        last->out.height != 1 || last->out.width != 1 || last->out.channels != model->num_classes ||
        last->activation != FED_LINEAR)
        return FED_ERR_ARGUMENT;
    return FED_OK;
}

/* ---- Layout ---------------------------------------------------------------------------------- */

static const fed_stage_ops *choose_ops(const fed_stage *stage) {
    switch (stage->layer->kind) {
    case FED_DENSE:
        return stage->is_first || stage->is_last ? &fed_dense_ends : &fed_dense_hidden;
    case FED_CONV2D:
        return stage->is_first ? &fed_conv_first : &fed_conv_hidden;
    case FED_MAX_POOL:
        return &fed_max_pool;
    case FED_AVERAGE_POOL:
        return &fed_average_pool;
    case FED_GROUP_NORM:
        return &fed_group_norm;
    case FED_DROPOUT:
        return &fed_dropout;
    default:
        return &fed_activate;
    }
}

/* 1 if a convolution can do this layer, too: the usual pool, of whole windows only. */
static int pool_can_merge(const fed_layer *layer) {
    return layer->kind == FED_MAX_POOL && layer->activation == FED_LINEAR &&
           layer->window_height == 2 && layer->window_width == 2 && layer->stride_y == 2 &&
           layer->stride_x == 2 && layer->pad_top == 0 && layer->pad_left == 0 &&
           layer->out.height == layer->in.height / 2 && layer->out.width == layer->in.width / 2;
}

/* Makes the stage of layer l, and of the next where they merge; returns their number. */
static size_t set_stage(fed_stage *stage, const fed_model *model, size_t l) {
    *stage = (fed_stage){.layer = &model->layers[l], .is_first = l == 0};
    const int merges = stage->layer->kind == FED_CONV2D && l + 1 < model->num_layers &&
                       pool_can_merge(&model->layers[l + 1]);
    if (merges) stage->pool = &model->layers[l + 1];
    stage->shape = merges ? stage->pool->out : stage->layer->out;
    const size_t num_layers = merges ? 2 : 1;
    stage->is_last = l + num_layers == model->num_layers;
    stage->ops = choose_ops(stage);
    stage->ops->lay_out(stage);
    return num_layers;
}

fed_buffer fed_plain_buffer(const fed_shape *shape) {
    const size_t channels = fed_padded(shape->channels);
    return (fed_buffer){.pixel_stride = channels,
                        .row_stride = shape->width * channels,
                        .num_values = shape->height * shape->width * channels};
}

fed_buffer fed_raw_buffer(const fed_shape *shape) {
    return (fed_buffer){.pixel_stride = shape->channels,
                        .row_stride = shape->width * shape->channels,
                        .num_values = fed_padded(fed_shape_size(shape))};
}

void fed_net_lay_out(fed_net *net, const fed_model *model) {
    net->model = model;
    net->kernels = fed_active_kernels();
    net->num_stages = net->size = 0;
    net->has_dropout = 0;
    for (size_t l = 0; l < model->num_layers;) {
        fed_stage *stage = &net->stages[net->num_stages++];
        l += set_stage(stage, model, l);
        net->has_dropout |= stage->layer->kind == FED_DROPOUT;
        stage->start = net->size;
        net->size += stage->packed_size;
    }
    net->num_front = 0;
    while (net->num_front < net->num_stages &&
           net->stages[net->num_front].ops->forward_batch == NULL)
        net->num_front++;
    for (size_t s = 0; s + 1 < net->num_stages; s++) net->stages[s].out = net->stages[s + 1].in;
    fed_stage *last = &net->stages[net->num_stages - 1];
    last->out = fed_plain_buffer(&last->shape);
}

int fed_net_init(fed_net *net, const fed_model *model) {
    const int status = fed_model_check(model);
    if (status == FED_OK) fed_net_lay_out(net, model);
    return status;
}

void fed_net_pack(const fed_net *net, const float *flat, float *packed) {
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        if (stage->packed_size > 0) stage->ops->pack(stage, flat, packed + stage->start);
    }
}

void fed_net_unpack(const fed_net *net, const double *packed, double *flat) {
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        if (stage->packed_size > 0) stage->ops->unpack(stage, packed + stage->start, flat);
    }
}

void fed_net_flatten(const fed_net *net, const float *packed, double *scratch, float *flat) {
    double *doubles = scratch + net->size;
    for (size_t i = 0; i < net->size; i++) scratch[i] = (double)packed[i];
    fed_net_unpack(net, scratch, doubles);
    net->kernels->to_floats(doubles, net->model->num_params, flat);
}

void fed_net_unpack_delta(const fed_net *net, const float *after, const float *before,
                          double *scratch, float *flat) {
    double *packed = scratch, *doubles = scratch + net->size;
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const size_t start = stage->start, first = stage->layer->offset;
        if (stage->packed_size == 0) continue;
        if (stage->ops->unpack_delta != NULL) {
            stage->ops->unpack_delta(stage, after + start, before + start, flat);
            continue;
        }
        net->kernels->delta_to_doubles(after + start, before + start, stage->packed_size,
                                       packed + start);
        stage->ops->unpack(stage, packed + start, doubles);
        net->kernels->to_floats(doubles + first, num_params(stage->layer), flat + first);
    }
}

int fed_net_can_share(const fed_net *net) { return net->num_front > 0; }

int fed_net_can_narrow(const fed_net *net) { return net->stages[0].ops->can_narrow; }
