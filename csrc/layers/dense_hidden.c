/* SPDX-License-Identifier: Apache-2.0
 * Hidden dense layers, whose inputs and outputs are rows. Flat kernel [I, O], bias [O]; packed
 * kernel [I, O] and bias [O], both sizes padded; weights of padding and of borders are 0. */
#include "layer.h"
#include "threads.h"

#include <string.h>

/* Approximate floats of a piece of the gradient, which stays in the L1 cache. */
enum { PIECE_FLOATS = 4096 };

/* The padded number of outputs. */
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
    stage->packed_size = bias_start(stage) + num_outputs_of(stage);
    stage->piece_size = piece_inputs(stage) * num_outputs_of(stage);
}

/* The place of flat input i in a row of inputs. */
static size_t input_at(const fed_stage *stage, size_t i) {
    const fed_shape *in = &stage->layer->in;
    const size_t pixel = i / in->channels;
    return fed_pixel(&stage->in, pixel / in->width, pixel % in->width) + i % in->channels;
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t num_outputs = layer->out.channels, width = num_outputs_of(stage);
    memset(packed, 0, stage->packed_size * sizeof *packed);
    flat += layer->offset;
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++, flat += num_outputs)
        memcpy(packed + input_at(stage, i) * width, flat, num_outputs * sizeof *packed);
    if (layer->has_bias) memcpy(packed + bias_start(stage), flat, num_outputs * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t num_outputs = layer->out.channels, width = num_outputs_of(stage);
    flat += layer->offset;
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++, flat += num_outputs)
        memcpy(flat, packed + input_at(stage, i) * width, num_outputs * sizeof *flat);
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
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++, flat += num_outputs) {
        const size_t row = input_at(stage, i) * width;
        subtract(after + row, before + row, num_outputs, flat);
    }
    if (layer->has_bias)
        subtract(after + bias_start(stage), before + bias_start(stage), num_outputs, flat);
}

/* Outputs, and inputs, of a part when threads share the work. */
enum { SHARED_OUTPUTS = 64, SHARED_INPUTS = 256 };

static size_t num_parts(const fed_batch_pass *pass, size_t num_values, size_t values_each) {
    return pass->num_workers > 1 ? (num_values + values_each - 1) / values_each : 1;
}

/* Number of values in a part: all values if there is only one part. */
static size_t part_size(const fed_batch_pass *pass, size_t first, size_t num_values,
                        size_t values_each) {
    const size_t left = num_values - first;
    return pass->num_workers > 1 && left > values_each ? values_each : left;
}

static void forward_part(void *context, size_t part, int worker) {
    (void)worker;
    const fed_batch_pass *pass = context;
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage), first = part * SHARED_OUTPUTS;
    pass->kernels->tiles_forward(
        pass->params + first, num_outputs, pass->params + bias_start(stage) + first,
        stage->in.num_values, part_size(pass, first, num_outputs, SHARED_OUTPUTS), pass->rows,
        pass->num_rows, pass->outputs + stage->out.origin + first, stage->out.num_values);
}

static void forward_batch(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    fed_batch_pass shared = *pass;
    fed_share(pass->num_workers, num_parts(pass, num_outputs_of(stage), SHARED_OUTPUTS),
              forward_part, &shared);
    for (size_t b = 0; b < pass->num_rows; b++)
        fed_apply_activation(pass->kernels, stage->layer, &stage->out, &stage->shape,
                             pass->outputs + b * stage->out.num_values);
}

/* Backward through the activation: turns the gradient by its outputs into the gradient by its
 * inputs, with zeros in the padding. */
static void undo_activation(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t stride = stage->out.num_values, num_outputs = stage->layer->out.channels;
    for (size_t b = 0; b < pass->num_rows; b++) {
        float *row = pass->out_gradient + b * stride;
        fed_undo_activation(pass->kernels, stage->layer, &stage->out, &stage->shape,
                            pass->outputs + b * stride, row);
        memset(row + stage->out.origin + num_outputs, 0,
               (num_outputs_of(stage) - num_outputs) * sizeof *row);
    }
}

/* A backward pass: the context that fed_share passes to each part. */
typedef struct backward_call {
    const fed_batch_pass *pass;
    const fed_update *update;
} backward_call;

/* Computes the gradients by inputs first..first+num-1 and by their weights; the gradient by the
 * weights goes to target. */
static void backward_inputs(const fed_batch_pass *pass, size_t first, size_t num, float *target,
                            int is_fresh) {
    const fed_stage *stage = pass->stage;
    const fed_tiles_backward backward = {
        .weights = pass->params + first * num_outputs_of(stage),
        .target = target,
        .is_fresh = is_fresh,
        .num_inputs = num,
        .num_outputs = num_outputs_of(stage),
        .num_rows = pass->num_rows,
        .rows = pass->rows,
        .first_input = first,
        .gradient = pass->out_gradient + stage->out.origin,
        .gradient_stride = stage->out.num_values,
        .inputs_gradient = pass->in_gradient != NULL ? pass->in_gradient + first : NULL,
        .inputs_stride = stage->in.num_values,
        .ignores_zeros = stage->ignores_zeros};
    pass->kernels->tiles_backward(&backward);
}

/* Computes the gradients and passes them to the update, a piece at a time, while the weights are in
 * the cache. */
static void update_inputs(const fed_batch_pass *pass, size_t first, size_t num,
                          const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const int is_sum = update->sum != NULL, is_last = is_sum && update->shift == NULL;
    const size_t num_outputs = num_outputs_of(stage), most = is_last ? num : piece_inputs(stage);
    for (size_t i = first; i < first + num; i += most) {
        const size_t left = first + num - i, num_inputs = left < most ? left : most;
        const size_t start = stage->start + i * num_outputs;
        backward_inputs(pass, i, num_inputs, fed_update_target(update, start), !is_sum);
        fed_update_take(update, start, num_inputs * num_outputs);
    }
}

static void backward_part(void *context, size_t part, int worker) {
    const backward_call *call = context;
    const fed_batch_pass *pass = call->pass;
    const size_t num_inputs = pass->stage->in.num_values, first = part * SHARED_INPUTS;
    fed_update update = *call->update;
    if (update.piece != NULL) update.piece += (size_t)worker * update.piece_size;
    update_inputs(pass, first, part_size(pass, first, num_inputs, SHARED_INPUTS), &update);
}

static void add_biases(const fed_batch_pass *pass, float *bias) {
    const fed_stage *stage = pass->stage;
    if (!stage->layer->has_bias) return;
    for (size_t b = 0; b < pass->num_rows; b++)
        pass->kernels->add(bias, pass->out_gradient + stage->out.origin + b * stage->out.num_values,
                           num_outputs_of(stage));
}

static void backward_batch(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    undo_activation(pass);
    backward_call call = {pass, update};
    fed_share(pass->num_workers, num_parts(pass, stage->in.num_values, SHARED_INPUTS),
              backward_part, &call);
    const size_t biases = stage->start + bias_start(stage), num_biases = num_outputs_of(stage);
    float *bias = fed_update_target(update, biases);
    if (update->sum == NULL) memset(bias, 0, num_biases * sizeof *bias);
    add_biases(pass, bias);
    fed_update_take(update, biases, num_biases);
}

const fed_stage_ops fed_dense_hidden = {
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .unpack_delta = unpack_delta,
    .forward_batch = forward_batch,
    .backward_batch = backward_batch,
};
