/* SPDX-License-Identifier: Apache-2.0
 * Checks a model table. */
#include "net.h"

/* ---- Checks ---------------------------------------------------------------------------------- */

static int shape_is_valid(const fed_shape *shape) {
    if (!fed_is_size(shape->height) || !fed_is_size(shape->width) || !fed_is_size(shape->channels))
        return 0;
    /* With padded channels, or with a border, the size must not overflow either. */
    return shape->height <= FED_MAX_VALUES / shape->width &&
           fed_padded(shape->channels) <= FED_MAX_VALUES / (shape->height * shape->width);
}

static int shapes_equal(const fed_shape *a, const fed_shape *b) {
    return a->height == b->height && a->width == b->width && a->channels == b->channels;
}

static int is_flag(int32_t value) { return value == 0 || value == 1; }

static int activation_is_valid(const fed_layer *layer, const fed_layer_kind *kind) {
    const int activation = layer->activation;
    if (activation < 0 || activation >= FED_NUM_ACTIVATIONS) return 0;
    if (activation == FED_LEAKY_RELU || activation == FED_ELU)
        return layer->constants[0] >= 0 && layer->constants[0] <= 100;
    return !fed_activation_sees_inputs(activation) || kind->keeps_inputs;
}

static int layer_is_valid(const fed_layer *layer) {
    const fed_layer_kind *kind = fed_kind_of(layer);
    return kind != NULL && activation_is_valid(layer, kind) && is_flag(layer->has_scale) &&
           is_flag(layer->has_bias) && is_flag(layer->is_frozen) && shape_is_valid(&layer->in) &&
           shape_is_valid(&layer->out) && kind->is_valid(layer);
}

static fed_shape input_shape(const fed_layer *layer, size_t i) {
    const fed_layer_kind *kind = fed_kind_of(layer);
    return i > 0 && kind->second_input != NULL ? kind->second_input(layer) : layer->in;
}

/* 1 if the inputs of layer l are before it and have the shapes that it expects. */
static int inputs_fit(const fed_model *model, size_t l) {
    const fed_layer *layer = &model->layers[l];
    const size_t num_inputs = fed_num_inputs(layer);
    if (num_inputs == 1 && layer->skips[1] != 0) return 0;
    for (size_t i = 0; i < num_inputs; i++) {
        if (layer->skips[i] > l) return 0;
        const size_t value = l - layer->skips[i];
        const fed_shape *shape = value > 0 ? &model->layers[value - 1].out : &model->layers[0].in;
        const fed_shape expected = input_shape(layer, i);
        if (!shapes_equal(&expected, shape)) return 0;
    }
    return 1;
}

size_t fed_num_trained(const fed_model *model) {
    size_t num_params = model->num_params;
    for (size_t l = 0; l < model->num_layers; l++) num_params -= fed_num_moving(&model->layers[l]);
    return num_params;
}

size_t fed_num_input_layers(const fed_model *model) {
    size_t l = 0;
    while (l < model->num_layers && fed_kind_of(&model->layers[l])->is_input) l++;
    return l;
}

/* 1 if all input layers are at the start, each is read by the next layer alone, and only the last
 * of them mixes examples. */
static int inputs_are_first(const fed_model *model) {
    const size_t num_first = fed_num_input_layers(model);
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        if (l >= num_first && fed_kind_of(layer)->is_input) return 0;
        if (l < num_first && (layer->activation != FED_LINEAR || fed_num_readers(model, l) != 1))
            return 0;
        if (l + 1 < num_first && fed_kind_of(layer)->mixes) return 0;
    }
    return 1;
}

size_t fed_num_readers(const fed_model *model, size_t value) {
    size_t num_readers = 0;
    for (size_t l = value; l < model->num_layers; l++)
        for (size_t i = 0; i < fed_num_inputs(&model->layers[l]); i++)
            num_readers += l - model->layers[l].skips[i] == value;
    return num_readers;
}

/* 1 if the moving statistics of all layers, in order, follow the `offset` trained parameters, and
 * nothing else does. */
static int moving_follows(const fed_model *model, size_t offset) {
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const size_t num = fed_num_moving(layer);
        if (num > 0 && layer->moving_offset != offset) return 0;
        offset += num;
        if (offset > FED_MAX_VALUES) return 0;
    }
    return offset == model->num_params;
}

int fed_model_check(const fed_model *model) {
    if (model->num_layers < 1 || model->num_layers > FED_MAX_LAYERS) return FED_ERR_ARGUMENT;
    size_t offset = 0;
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        if (!layer_is_valid(layer) || layer->offset != offset) return FED_ERR_ARGUMENT;
        if (!inputs_fit(model, l)) return FED_ERR_ARGUMENT;
        offset += fed_kind_of(layer)->num_params(layer);
        if (offset > FED_MAX_VALUES) return FED_ERR_ARGUMENT;
    }
    if (offset == 0) return FED_ERR_ARGUMENT; /* nothing to train */
    for (size_t value = 0; value < model->num_layers; value++)
        if (fed_num_readers(model, value) == 0) return FED_ERR_ARGUMENT;
    if (!inputs_are_first(model) || !moving_follows(model, offset)) return FED_ERR_ARGUMENT;
    const fed_layer *last = &model->layers[model->num_layers - 1];
    if (fed_shape_size(&model->layers[0].in) != model->num_inputs || last->out.height != 1 ||
        last->out.width != 1 || last->out.channels != model->num_classes ||
        last->activation != FED_LINEAR)
        return FED_ERR_ARGUMENT;
    return FED_OK;
}
