/* SPDX-License-Identifier: Apache-2.0
 * The first and the last dense layer. The first reads images without copying them; the last writes
 * logits in the lane layout that the softmax kernel reads. Flat kernel [I, O], bias [O]; packed
 * kernel [O, width], bias [padded O]. */
#include "layer.h"

#include <string.h>

/* Outputs whose gradient is computed as one piece, which stays in the cache. */
enum { PIECE_OUTPUTS = 10 };

static size_t num_outputs_of(const fed_stage *stage) { return stage->layer->out.channels; }

static size_t bias_start(const fed_stage *stage) {
    return num_outputs_of(stage) * stage->in.num_values;
}

static size_t piece_outputs(const fed_stage *stage) {
    const size_t num_outputs = num_outputs_of(stage);
    return num_outputs < PIECE_OUTPUTS ? num_outputs : PIECE_OUTPUTS;
}

static void lay_out(fed_stage *stage) {
    stage->packed_size = bias_start(stage) + fed_padded(num_outputs_of(stage));
    stage->piece_size =
        piece_outputs(stage) * stage->in.num_values + fed_padded(num_outputs_of(stage));
}

/* Number of contiguous inputs from the first pixel on, without padding or border between them. */
static size_t run_size(const fed_stage *stage) {
    const fed_shape *in = &stage->layer->in;
    const int is_whole = stage->in.pixel_stride == in->channels && fed_is_plain(&stage->in, in);
    return is_whole ? fed_shape_size(in) : in->channels;
}

/* The offset of run r in a packed row of weights. */
static size_t run_start(const fed_stage *stage, size_t r) {
    const size_t width = stage->layer->in.width;
    return fed_pixel(&stage->in, r / width, r % width);
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const size_t num_inputs = fed_shape_size(&stage->layer->in), run = run_size(stage);
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    /* Zeros for the padding. */
    const size_t start = width == num_inputs ? bias_start(stage) : 0;
    memset(packed + start, 0, (stage->packed_size - start) * sizeof *packed);
    flat += stage->layer->offset;
    for (size_t r = 0; r < num_inputs / run; r++)
        fed_active_kernels()->transpose(flat + r * run * num_outputs, NULL, num_outputs, run,
                                        num_outputs, packed + run_start(stage, r), width);
    if (stage->layer->has_bias)
        memcpy(packed + bias_start(stage), flat + num_inputs * num_outputs,
               num_outputs * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_shape *in = &stage->layer->in;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    flat += stage->layer->offset;
    for (size_t y = 0; y < in->height; y++)
        for (size_t x = 0; x < in->width; x++)
            for (size_t c = 0; c < in->channels; c++, flat += num_outputs)
                for (size_t o = 0; o < num_outputs; o++)
                    flat[o] = packed[o * width + fed_pixel(&stage->in, y, x) + c];
    if (stage->layer->has_bias)
        memcpy(flat, packed + bias_start(stage), num_outputs * sizeof *flat);
}

/* Unpacks a few inputs at a time, so that the flat memory is written in order. */
static void unpack_delta(const fed_stage *stage, const float *after, const float *before,
                         float *flat) {
    const size_t num_inputs = fed_shape_size(&stage->layer->in), run = run_size(stage);
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    flat += stage->layer->offset;
    for (size_t i = 0, num; i < num_inputs; i += num) {
        const size_t left = run - i % run, first = run_start(stage, i / run) + i % run;
        num = left < FED_PAD ? left : FED_PAD;
        fed_active_kernels()->transpose(after + first, before + first, width, num_outputs, num,
                                        flat + i * num_outputs, num_outputs);
    }
    if (!stage->layer->has_bias) return;
    float *bias = flat + num_inputs * num_outputs;
    for (size_t o = 0; o < num_outputs; o++)
        bias[o] = after[bias_start(stage) + o] - before[bias_start(stage) + o];
}

/* ---- Rows and lanes -------------------------------------------------------------------------- */

static size_t block_rows(size_t num_rows, size_t first) {
    return num_rows - first < FED_LANES ? num_rows - first : FED_LANES;
}

static float *block_lanes(const fed_batch_pass *pass, size_t first) {
    return pass->lanes + first * num_outputs_of(pass->stage);
}

/* Converts lanes to rows of outputs and applies the activation. */
static void finish_outputs(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage);
    for (size_t b = 0; b < pass->num_rows; b++) {
        const float *lane = block_lanes(pass, b / FED_LANES * FED_LANES) + b % FED_LANES;
        float *row = pass->outputs + b * stage->out.num_values;
        float *values = row + stage->out.origin;
        for (size_t o = 0; o < num_outputs; o++) values[o] = lane[o * FED_LANES];
        for (size_t o = num_outputs; o < fed_padded(num_outputs); o++) values[o] = 0;
        fed_apply_activation(pass->kernels, stage->layer, &stage->out, &stage->shape, row);
    }
}

/* Backward through the activation: turns the gradient by the outputs, in rows, into the gradient by
 * the activation's inputs, in lanes. */
static void begin_gradient(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage);
    for (size_t b = 0; b < pass->num_rows; b++) {
        float *lane = block_lanes(pass, b / FED_LANES * FED_LANES) + b % FED_LANES;
        float *row = pass->out_gradient + b * stage->out.num_values;
        fed_undo_activation(pass->kernels, stage->layer, &stage->out, &stage->shape,
                            pass->outputs + b * stage->out.num_values, row);
        const float *values = row + stage->out.origin;
        for (size_t o = 0; o < num_outputs; o++) lane[o * FED_LANES] = values[o];
    }
}

/* ---- The passes ------------------------------------------------------------------------------ */

static void forward_batch(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
        pass->kernels->dense_forward(pass->params, pass->params + bias_start(stage),
                                     stage->in.num_values, num_outputs_of(stage),
                                     pass->rows + first, block_rows(pass->num_rows, first),
                                     block_lanes(pass, first));
    if (!stage->is_last) finish_outputs(pass);
}

/* Adds the gradient by the weights and biases of num_outputs outputs from o on. */
static void accumulate(const fed_batch_pass *pass, size_t o, size_t num_outputs, float *weights,
                       float *bias) {
    for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
        pass->kernels->dense_accumulate(weights, bias, pass->stage->in.num_values, num_outputs,
                                        pass->rows + first, block_rows(pass->num_rows, first),
                                        block_lanes(pass, first) + o * FED_LANES);
}

/* Accumulates the gradient and passes it to the update, some outputs at a time, while their weights
 * are in the cache. */
static void update_params(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    const size_t num_biases = fed_padded(num_outputs), biases = stage->start + bias_start(stage);
    const int is_sum = update->sum != NULL;
    float *bias = is_sum ? update->sum + biases : update->piece + piece_outputs(stage) * width;
    if (!is_sum) memset(bias, 0, num_biases * sizeof *bias);
    for (size_t o = 0; o < num_outputs; o += PIECE_OUTPUTS) {
        const size_t num = num_outputs - o < PIECE_OUTPUTS ? num_outputs - o : PIECE_OUTPUTS;
        float *weights = fed_update_target(update, stage->start + o * width);
        if (!is_sum) memset(weights, 0, num * width * sizeof *weights);
        accumulate(pass, o, num, weights, bias + o);
        fed_update_take(update, stage->start + o * width, num * width);
    }
    if (!stage->layer->has_bias) memset(bias, 0, num_biases * sizeof *bias);
    if (!is_sum) memmove(update->piece, bias, num_biases * sizeof *bias);
    fed_update_take(update, biases, num_biases);
}

static void backward_batch(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    if (!stage->is_last) begin_gradient(pass);
    /* The gradient by the inputs must be complete before the first accumulation, because the
     * gradient may be accumulated into the weights themselves. */
    if (pass->in_gradient != NULL)
        for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
            pass->kernels->dense_backward_inputs(
                pass->params, width, num_outputs, block_lanes(pass, first),
                block_rows(pass->num_rows, first), pass->in_gradient + first * width, width);
    update_params(pass, update);
}

const fed_stage_ops fed_dense_ends = {
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .unpack_delta = unpack_delta,
    .forward_batch = forward_batch,
    .backward_batch = backward_batch,
    .takes_raw = 1,
    .can_narrow = 1,
};
