/* SPDX-License-Identifier: Apache-2.0
 * The parameters of all normalisations. Packed, they are gamma, then beta, [padded channels] each,
 * if the layer has them. */
#ifndef FED_LAYERS_NORM_H
#define FED_LAYERS_NORM_H

#include "layer.h"

#include <math.h>

/* Rows of coefficients in scratch memory, [padded channels] each: those of the map, then those of
 * x - mean and the constant terms in the gradient of x. */
enum { FED_NORM_SCALES, FED_NORM_BIASES, FED_NORM_BY_VALUE, FED_NORM_FIXED, FED_NORM_NUM_ROWS };

static inline size_t fed_norm_channels(const fed_stage *stage) { return stage->in.pixel_stride; }

static inline size_t fed_norm_packed_size(const fed_stage *stage) {
    const fed_layer *layer = stage->layer;
    return fed_norm_channels(stage) * (size_t)((layer->has_scale != 0) + (layer->has_bias != 0));
}

static inline fed_norm_rows fed_norm_rows_of(const fed_stage *stage) {
    return (fed_norm_rows){.num_rows = stage->shape.height,
                           .num_pixels = stage->shape.width,
                           .num_channels = fed_norm_channels(stage),
                           .stride = stage->in.row_stride,
                           .out_stride = stage->out.row_stride};
}

/* 1 if the kernels compute the layer's activation, too. */
static inline int fed_norm_activates(const fed_layer *layer) {
    return layer->activation == FED_RELU || layer->activation == FED_RELU6;
}

/* The range of the activation that the kernels compute; everything if they compute none. */
static inline fed_range fed_norm_range(const fed_layer *layer) {
    if (!fed_norm_activates(layer)) return (fed_range){-HUGE_VALF, HUGE_VALF};
    return (fed_range){0, layer->activation == FED_RELU6 ? 6 : HUGE_VALF};
}

/* Rows of what a norm saves for the backward pass, and for the stage that applies it, [padded
 * channels] each. The last two are there only if another stage applies it. */
enum {
    FED_NORM_SAVED_MEANS,
    FED_NORM_SAVED_INVERSES,
    FED_NORM_SAVED_SCALES,
    FED_NORM_SAVED_BIASES,
    FED_NORM_SAVED_ROWS,
};

/* The map of a norm that another stage applies. */
static inline fed_norm_map fed_norm_saved_map(const fed_stage *norm, const void *saved) {
    const float *rows = saved;
    const size_t channels = fed_norm_channels(norm);
    return (fed_norm_map){rows + FED_NORM_SAVED_MEANS * channels,
                          rows + FED_NORM_SAVED_SCALES * channels,
                          rows + FED_NORM_SAVED_BIASES * channels, fed_norm_range(norm->layer)};
}

void fed_norm_pack(const fed_stage *stage, const float *flat, float *packed /* out */);
void fed_norm_unpack(const fed_stage *stage, const double *packed, double *flat /* out */);

/* NULL if the layer has none. */
static inline const float *fed_norm_gamma(const fed_pass *pass) {
    return pass->stage->layer->has_scale ? pass->params : NULL;
}

static inline const float *fed_norm_beta(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    if (!layer->has_bias) return NULL;
    return pass->params + (layer->has_scale ? fed_norm_channels(pass->stage) : 0);
}

#endif
