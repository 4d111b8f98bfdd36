/* SPDX-License-Identifier: Apache-2.0
 * The layer table: for each kind of layer, how it is packed and how it computes. A new kind is a
 * new row of `layer_ops`; the loops of client.c do not change. */
#include "core.h"

#include <stdlib.h>
#include <string.h>

typedef struct layer_ops {
    size_t (*num_params)(const fed_layer *layer);
    size_t (*packed_size)(const fed_layer *layer);
    void (*pack)(const fed_layer *layer, const float *flat, float *packed);
    void (*unpack)(const fed_layer *layer, const double *packed, double *flat);
    void (*forward)(const fed_layer_pass *pass, const float *packed);
    void (*backward)(const fed_layer_pass *pass, const float *packed, float *target);
    int can_narrow; /* its kernel is packed as narrow.c expects: [O, padded I], before all else */
} layer_ops;

/* ---- Dense: flat kernel [I, O], bias [O]; packed kernel [O, padded I], bias [padded O] ------- */

static size_t dense_num_params(const fed_layer *layer) {
    return (layer->num_inputs + 1) * layer->num_outputs;
}

static size_t dense_bias_start(const fed_layer *layer) {
    return layer->num_outputs * fed_padded(layer->num_inputs);
}

static size_t dense_packed_size(const fed_layer *layer) {
    return dense_bias_start(layer) + fed_padded(layer->num_outputs);
}

static void dense_pack(const fed_layer *layer, const float *flat, float *packed) {
    const size_t num_outputs = layer->num_outputs, width = fed_padded(layer->num_inputs);
    memset(packed, 0, dense_packed_size(layer) * sizeof *packed);
    for (size_t i = 0; i < layer->num_inputs; i++)
        for (size_t o = 0; o < num_outputs; o++) packed[o * width + i] = flat[i * num_outputs + o];
    memcpy(packed + dense_bias_start(layer), flat + layer->num_inputs * num_outputs,
           num_outputs * sizeof *packed);
}

static void dense_unpack(const fed_layer *layer, const double *packed, double *flat) {
    const size_t num_outputs = layer->num_outputs, width = fed_padded(layer->num_inputs);
    for (size_t i = 0; i < layer->num_inputs; i++)
        for (size_t o = 0; o < num_outputs; o++) flat[i * num_outputs + o] = packed[o * width + i];
    memcpy(flat + layer->num_inputs * num_outputs, packed + dense_bias_start(layer),
           num_outputs * sizeof *flat);
}

static size_t num_lane_values(const fed_layer_pass *pass) {
    return (pass->num_rows + FED_LANES - 1) / FED_LANES * FED_LANES * pass->layer->num_outputs;
}

static size_t block_rows(size_t num_rows, size_t first) {
    return num_rows - first < FED_LANES ? num_rows - first : FED_LANES;
}

static void dense_forward(const fed_layer_pass *pass, const float *packed) {
    const fed_layer *layer = pass->layer;
    for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
        pass->kernels->dense_forward(packed, packed + dense_bias_start(layer),
                                     fed_padded(layer->num_inputs), layer->num_outputs,
                                     pass->rows + first, block_rows(pass->num_rows, first),
                                     pass->lanes + first * layer->num_outputs);
}

static void dense_backward(const fed_layer_pass *pass, const float *packed, float *target) {
    const fed_layer *layer = pass->layer;
    const size_t width = fed_padded(layer->num_inputs);
    /* All of it before the first accumulation: target may be the parameters themselves. */
    if (pass->inputs_gradient != NULL)
        for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
            pass->kernels->dense_backward_inputs(
                packed, width, layer->num_inputs, layer->num_outputs,
                pass->lanes + first * layer->num_outputs, block_rows(pass->num_rows, first),
                pass->inputs_gradient + first * layer->num_inputs);
    for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
        pass->kernels->dense_accumulate(
            target, target + dense_bias_start(layer), width, layer->num_outputs, pass->rows + first,
            block_rows(pass->num_rows, first), pass->lanes + first * layer->num_outputs);
}

static const layer_ops ops[FED_NUM_LAYER_KINDS] = {
    [FED_DENSE] = {dense_num_params, dense_packed_size, dense_pack, dense_unpack, dense_forward,
                   dense_backward, .can_narrow = 1},
};

/* ---- The table at work ----------------------------------------------------------------------- */

/* Sizes beyond this would overflow somewhere; no image classifier comes near. */
static const size_t max_values = (size_t)1 << 31;

static int layer_check(const fed_layer *layer, size_t num_inputs, size_t offset) {
    if (layer->kind < 0 || layer->kind >= FED_NUM_LAYER_KINDS) return FED_ERR_ARGUMENT;
    if (layer->activation < 0 || layer->activation >= FED_NUM_ACTIVATIONS) return FED_ERR_ARGUMENT;
    if (layer->num_inputs != num_inputs || layer->offset != offset) return FED_ERR_ARGUMENT;
    if (layer->num_outputs < 1 || layer->num_outputs > max_values / (num_inputs + FED_PAD))
        return FED_ERR_ARGUMENT;
    return FED_OK;
}

int fed_model_check(const fed_model *model) {
    if (model->num_layers < 1 || model->num_layers > FED_MAX_LAYERS) return FED_ERR_ARGUMENT;
    size_t num_inputs = model->num_inputs, offset = 0;
    if (num_inputs < 1 || num_inputs > max_values) return FED_ERR_ARGUMENT;
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const int status = layer_check(layer, num_inputs, offset);
        if (status != FED_OK) return status;
        num_inputs = layer->num_outputs;
        offset += ops[layer->kind].num_params(layer);
    }
    if (num_inputs != model->num_classes || offset != model->num_params) return FED_ERR_ARGUMENT;
    const fed_layer *last = &model->layers[model->num_layers - 1];
    return last->activation == FED_LINEAR ? FED_OK : FED_ERR_ARGUMENT;
}

void fed_net_lay_out(fed_net *net, const fed_model *model) {
    net->model = model;
    net->kernels = fed_active_kernels();
    net->starts[0] = 0;
    for (size_t l = 0; l < model->num_layers; l++)
        net->starts[l + 1] =
            net->starts[l] + ops[model->layers[l].kind].packed_size(&model->layers[l]);
}

int fed_net_init(fed_net *net, const fed_model *model) {
    const int status = fed_model_check(model);
    if (status == FED_OK) fed_net_lay_out(net, model);
    return status;
}

void fed_net_pack(const fed_net *net, const float *flat, float *packed) {
    for (size_t l = 0; l < net->model->num_layers; l++) {
        const fed_layer *layer = &net->model->layers[l];
        ops[layer->kind].pack(layer, flat + layer->offset, packed + net->starts[l]);
    }
}

void fed_net_unpack(const fed_net *net, const double *packed, double *flat) {
    for (size_t l = 0; l < net->model->num_layers; l++) {
        const fed_layer *layer = &net->model->layers[l];
        ops[layer->kind].unpack(layer, packed + net->starts[l], flat + layer->offset);
    }
}

void fed_layer_forward(const fed_layer_pass *pass, const float *packed_layer) {
    ops[pass->layer->kind].forward(pass, packed_layer);
    if (pass->layer->activation == FED_RELU)
        pass->kernels->relu(pass->lanes, num_lane_values(pass));
}

void fed_layer_undo_activation(const fed_layer_pass *pass, const float *outputs_gradient) {
    const size_t num_values = num_lane_values(pass);
    if (pass->layer->activation == FED_RELU)
        pass->kernels->relu_backward(pass->lanes, outputs_gradient, num_values);
    else
        memcpy(pass->lanes, outputs_gradient, num_values * sizeof *pass->lanes);
}

void fed_layer_backward(const fed_layer_pass *pass, const float *packed_layer, float *target) {
    ops[pass->layer->kind].backward(pass, packed_layer, target);
}

int fed_layer_can_narrow(const fed_layer *layer) { return ops[layer->kind].can_narrow; }
