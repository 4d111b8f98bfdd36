/* SPDX-License-Identifier: Apache-2.0
 * Dense layers between others, whose inputs and outputs are rows. Flat kernel [I, O], bias [O];
 * packed kernel [I, O] and bias [O], both sizes padded. */
#include "../core.h"

#include <string.h>

/* Floats of a piece of gradient, about: what its weights take stays in the innermost cache. */
enum { PIECE_FLOATS = 4096 };

/* Padded. */
static size_t num_outputs_of(const fed_stage *stage) {
    return fed_padded(stage->layer->out.channels);
}

static size_t bias_start(const fed_stage *stage) {
    return stage->in.num_values * num_outputs_of(stage);
}

static size_t piece_inputs(const fed_stage *stage) {
    const size_t num_inputs = PIECE_FLOATS / num_outputs_of(stage) / FED_PAD * FED_PAD;
    return num_inputs > FED_PAD ? num_inputs : FED_PAD;
}

static void lay_out(fed_stage *stage) {
    stage->in = fed_plain_buffer(&stage->layer->in);
    stage->packed_size = bias_start(stage) + num_outputs_of(stage);
    stage->piece_size = piece_inputs(stage) * num_outputs_of(stage);
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t num_outputs = layer->out.channels, width = num_outputs_of(stage);
    memset(packed, 0, stage->packed_size * sizeof *packed);
    flat += layer->offset;
    for (size_t pixel = 0; pixel < layer->in.height * layer->in.width; pixel++)
        for (size_t c = 0; c < layer->in.channels; c++, flat += num_outputs)
            memcpy(packed + (pixel * stage->in.pixel_stride + c) * width, flat,
                   num_outputs * sizeof *packed);
    if (layer->has_bias) memcpy(packed + bias_start(stage), flat, num_outputs * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t num_outputs = layer->out.channels, width = num_outputs_of(stage);
    flat += layer->offset;
    for (size_t pixel = 0; pixel < layer->in.height * layer->in.width; pixel++)
        for (size_t c = 0; c < layer->in.channels; c++, flat += num_outputs)
            memcpy(flat, packed + (pixel * stage->in.pixel_stride + c) * width,
                   num_outputs * sizeof *flat);
    if (layer->has_bias) memcpy(flat, packed + bias_start(stage), num_outputs * sizeof *flat);
}

static void subtract(const float *after, const float *before, size_t num, float *delta) {
    for (size_t i = 0; i < num; i++) delta[i] = after[i] - before[i];
}

static void unpack_delta(const fed_stage *stage, const float *after, const float *before,
                         float *flat) {
    const fed_layer *layer = stage->layer;
    const size_t num_outputs = layer->out.channels, width = num_outputs_of(stage);
    flat += layer->offset;
    for (size_t pixel = 0; pixel < layer->in.height * layer->in.width; pixel++)
        for (size_t c = 0; c < layer->in.channels; c++, flat += num_outputs) {
            const size_t row = (pixel * stage->in.pixel_stride + c) * width;
            subtract(after + row, before + row, num_outputs, flat);
        }
    if (layer->has_bias)
        subtract(after + bias_start(stage), before + bias_start(stage), num_outputs, flat);
}

static void forward_batch(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t stride = stage->out.num_values;
    pass->kernels->tiles_forward(pass->params, pass->params + bias_start(stage),
                                 stage->in.num_values, num_outputs_of(stage), pass->rows,
                                 pass->num_rows, pass->outputs + stage->out.origin, stride);
    for (size_t b = 0; b < pass->num_rows; b++)
        fed_apply_activation(pass->kernels, stage->layer->activation, &stage->out, &stage->shape,
                             pass->outputs + b * stride);
}

/* From the gradient by outputs to the one by what the activation was applied to, 0 in padding. */
static void undo_activation(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t stride = stage->out.num_values, num_outputs = stage->layer->out.channels;
    for (size_t b = 0; b < pass->num_rows; b++) {
        float *row = pass->out_gradient + b * stride;
        fed_undo_activation(pass->kernels, stage->layer->activation, &stage->out, &stage->shape,
                            pass->outputs + b * stride, row);
        memset(row + stage->out.origin + num_outputs, 0,
               (num_outputs_of(stage) - num_outputs) * sizeof *row);
    }
}

/* All but the inputs it is about, and where they take their gradient. */
static fed_tiles_backward backward_of(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    return (fed_tiles_backward){.weights = pass->params,
                                .num_outputs = num_outputs_of(stage),
                                .num_rows = pass->num_rows,
                                .rows = pass->rows,
                                .gradient = pass->out_gradient + stage->out.origin,
                                .gradient_stride = stage->out.num_values,
                                .inputs_gradient = pass->in_gradient,
                                .inputs_stride = stage->in.num_values};
}

static void add_biases(const fed_tiles_backward *backward, float *bias) {
    for (size_t b = 0; b < backward->num_rows; b++) {
        const float *gradient = backward->gradient + b * backward->gradient_stride;
        for (size_t o = 0; o < backward->num_outputs; o++) bias[o] += gradient[o];
    }
}

static void hand_over_pieces(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const size_t num_inputs = stage->in.num_values, num_outputs = num_outputs_of(stage);
    fed_tiles_backward backward = backward_of(pass);
    backward.target = update->piece;
    backward.is_fresh = 1;
    for (size_t i = 0; i < num_inputs; i += backward.num_inputs) {
        const size_t most = piece_inputs(stage);
        backward.weights = pass->params + i * num_outputs;
        backward.num_inputs = num_inputs - i < most ? num_inputs - i : most;
        backward.first_input = i;
        if (pass->in_gradient != NULL) backward.inputs_gradient = pass->in_gradient + i;
        pass->kernels->tiles_backward(&backward);
        fed_update_piece(update, stage->start + i * num_outputs, backward.num_inputs * num_outputs);
    }
    memset(update->piece, 0, num_outputs * sizeof *update->piece);
    if (stage->layer->has_bias) add_biases(&backward, update->piece);
    fed_update_piece(update, stage->start + bias_start(stage), num_outputs);
}

static void backward_batch(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    undo_activation(pass);
    if (update->sum == NULL) {
        hand_over_pieces(pass, update);
        return;
    }
    fed_tiles_backward backward = backward_of(pass);
    backward.target = update->sum + stage->start;
    backward.num_inputs = stage->in.num_values;
    pass->kernels->tiles_backward(&backward);
    if (stage->layer->has_bias) add_biases(&backward, backward.target + bias_start(stage));
}

const fed_stage_ops fed_dense_tiles = {
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .unpack_delta = unpack_delta,
    .forward_batch = forward_batch,
    .backward_batch = backward_batch,
};
