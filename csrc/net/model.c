/* SPDX-License-Identifier: Apache-2.0
 * Checks a model table and lays it out as stages. Their computations are in layers/. */
#include "net.h"

#include <string.h>

/* ---- Checks ---------------------------------------------------------------------------------- */

static int shape_is_valid(const fed_shape *shape) {
    if (!fed_is_size(shape->height) || !fed_is_size(shape->width) || !fed_is_size(shape->channels))
        return 0;
    /* The size must not overflow with padded channels, and with a border, either. */
    return shape->height <= FED_MAX_VALUES / shape->width &&
           fed_padded(shape->channels) <= FED_MAX_VALUES / (shape->height * shape->width);
}

static int shapes_equal(const fed_shape *a, const fed_shape *b) {
    return a->height == b->height && a->width == b->width && a->channels == b->channels;
}

static int is_flag(int32_t value) { return value == 0 || value == 1; }

static int layer_is_valid(const fed_layer *layer) {
    const fed_layer_kind *kind = fed_kind_of(layer);
    return kind != NULL && layer->activation >= 0 && layer->activation < FED_NUM_ACTIVATIONS &&
           is_flag(layer->has_scale) && is_flag(layer->has_bias) && shape_is_valid(&layer->in) &&
           shape_is_valid(&layer->out) && kind->is_valid(layer);
}

static size_t num_params(const fed_layer *layer) { return fed_kind_of(layer)->num_params(layer); }

int fed_model_check(const fed_model *model) {
    if (model->num_layers < 1 || model->num_layers > FED_MAX_LAYERS) return FED_ERR_ARGUMENT;
    size_t offset = 0;
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        if (!layer_is_valid(layer) || layer->offset != offset) return FED_ERR_ARGUMENT;
        if (l > 0 && !shapes_equal(&layer->in, &model->layers[l - 1].out)) return FED_ERR_ARGUMENT;
        offset += num_params(layer);
        if (offset > FED_MAX_VALUES) return FED_ERR_ARGUMENT;
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
    const fed_layer_kind *kind = fed_kind_of(stage->layer);
    if (stage->is_first && kind->first != NULL) return kind->first;
    if (stage->is_last && kind->last != NULL) return kind->last;
    return kind->ops;
}

/* Makes the stage of layer l, or of layers l and l + 1 if one stage computes both; returns their
 * number. */
static size_t set_stage(fed_stage *stage, const fed_model *model, size_t l) {
    *stage = (fed_stage){.layer = &model->layers[l], .is_first = l == 0};
    const fed_layer_kind *kind = fed_kind_of(stage->layer);
    const int merges = kind->takes_pool != NULL && l + 1 < model->num_layers &&
                       kind->takes_pool(&model->layers[l + 1]);
    if (merges) stage->pool = &model->layers[l + 1];
    stage->shape = merges ? stage->pool->out : stage->layer->out;
    const size_t num_layers = merges ? 2 : 1;
    stage->is_last = l + num_layers == model->num_layers;
    stage->ops = choose_ops(stage);
    stage->ops->lay_out(stage);
    return num_layers;
}

/* The logarithm of the number of blocks of the dropout stream for each visit. 2^20 blocks hold the
 * masks of 2^24 values, enough for every usual model, so masks do not depend on the model's size.
 * A model that draws more gets more blocks, since visits must not share masks. */
static unsigned visit_bits(size_t num_draws) {
    enum { USUAL_BITS = 20, BLOCK_DRAWS = 4 };
    unsigned bits = USUAL_BITS;
    while (num_draws > (size_t)BLOCK_DRAWS << bits) bits++;
    return bits;
}

void fed_net_lay_out(fed_net *net, const fed_model *model) {
    net->model = model;
    net->kernels = fed_active_kernels();
    net->num_stages = net->size = 0;
    size_t num_draws = 0;
    for (size_t l = 0; l < model->num_layers;) {
        fed_stage *stage = &net->stages[net->num_stages++];
        l += set_stage(stage, model, l);
        const fed_layer_kind *kind = fed_kind_of(stage->layer);
        if (kind->num_draws != NULL) num_draws += kind->num_draws(stage->layer);
        stage->start = net->size;
        net->size += stage->packed_size;
    }
    net->has_dropout = num_draws > 0;
    net->visit_bits = visit_bits(num_draws);
    net->num_example_stages = 0;
    while (net->num_example_stages < net->num_stages &&
           net->stages[net->num_example_stages].ops->forward_batch == NULL)
        net->num_example_stages++;
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

int fed_net_can_share(const fed_net *net) { return net->num_example_stages > 0; }

int fed_net_can_narrow(const fed_net *net) { return net->stages[0].ops->can_narrow; }
