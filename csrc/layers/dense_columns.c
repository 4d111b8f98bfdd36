/* SPDX-License-Identifier: Apache-2.0
 * Dense layers on pixels, whose rows are the images as they lie, or to logits, which softmax wants
 * examples in lanes. Flat kernel [I, O], bias [O]; packed kernel [O, width], bias [padded O]. */
#include "../core.h"

#include <string.h>

/* Outputs whose gradient is one piece: what their weights take stays in the cache. */
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
    const fed_shape *in = &stage->layer->in;
    stage->in = stage->is_first ? fed_raw_buffer(in) : fed_plain_buffer(in);
    stage->packed_size = bias_start(stage) + fed_padded(num_outputs_of(stage));
    stage->piece_size =
        piece_outputs(stage) * stage->in.num_values + fed_padded(num_outputs_of(stage));
}

/* Where inputs of row y, pixel x begin in a packed row of weights. */
static size_t pixel_start(const fed_stage *stage, size_t y, size_t x) {
    return y * stage->in.row_stride + x * stage->in.pixel_stride;
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_shape *in = &stage->layer->in;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    memset(packed, 0, stage->packed_size * sizeof *packed);
    flat += stage->layer->offset;
    for (size_t y = 0; y < in->height; y++)
        for (size_t x = 0; x < in->width; x++)
            for (size_t c = 0; c < in->channels; c++, flat += num_outputs)
                for (size_t o = 0; o < num_outputs; o++)
                    packed[o * width + pixel_start(stage, y, x) + c] = flat[o];
    if (stage->layer->has_bias)
        memcpy(packed + bias_start(stage), flat, num_outputs * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_shape *in = &stage->layer->in;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    flat += stage->layer->offset;
    for (size_t y = 0; y < in->height; y++)
        for (size_t x = 0; x < in->width; x++)
            for (size_t c = 0; c < in->channels; c++, flat += num_outputs)
                for (size_t o = 0; o < num_outputs; o++)
                    flat[o] = packed[o * width + pixel_start(stage, y, x) + c];
    if (stage->layer->has_bias)
        memcpy(flat, packed + bias_start(stage), num_outputs * sizeof *flat);
}

/* ---- Rows and lanes -------------------------------------------------------------------------- */

static size_t block_rows(size_t num_rows, size_t first) {
    return num_rows - first < FED_LANES ? num_rows - first : FED_LANES;
}

static float *block_lanes(const fed_batch_pass *pass, size_t first) {
    return pass->lanes + first * num_outputs_of(pass->stage);
}

/* From lanes to rows of outputs, activation applied. */
static void finish_outputs(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage);
    for (size_t b = 0; b < pass->num_rows; b++) {
        const float *lane = block_lanes(pass, b / FED_LANES * FED_LANES) + b % FED_LANES;
        float *row = pass->outputs + b * stage->out.num_values;
        float *values = row + stage->out.origin;
        for (size_t o = 0; o < num_outputs; o++) values[o] = lane[o * FED_LANES];
        for (size_t o = num_outputs; o < fed_padded(num_outputs); o++) values[o] = 0;
        fed_apply_activation(pass->kernels, stage->layer->activation, &stage->out, &stage->shape,
                             row);
    }
}

/* From the gradient by rows of outputs to lanes of the one by what the activation was applied to.
 */
static void begin_gradient(const fed_batch_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage);
    for (size_t b = 0; b < pass->num_rows; b++) {
        float *lane = block_lanes(pass, b / FED_LANES * FED_LANES) + b % FED_LANES;
        float *row = pass->out_gradient + b * stage->out.num_values;
        fed_undo_activation(pass->kernels, stage->layer->activation, &stage->out, &stage->shape,
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

/* Adds the gradient of outputs o.. to their weights and biases. */
static void accumulate(const fed_batch_pass *pass, size_t o, size_t num_outputs, float *weights,
                       float *bias) {
    for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
        pass->kernels->dense_accumulate(weights, bias, pass->stage->in.num_values, num_outputs,
                                        pass->rows + first, block_rows(pass->num_rows, first),
                                        block_lanes(pass, first) + o * FED_LANES);
}

static void hand_over_pieces(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    const size_t num_biases = fed_padded(num_outputs);
    float *weights = update->piece, *bias = weights + piece_outputs(stage) * width;
    memset(bias, 0, num_biases * sizeof *bias);
    for (size_t o = 0; o < num_outputs; o += PIECE_OUTPUTS) {
        const size_t num = num_outputs - o < PIECE_OUTPUTS ? num_outputs - o : PIECE_OUTPUTS;
        memset(weights, 0, num * width * sizeof *weights);
        accumulate(pass, o, num, weights, bias + o);
        fed_update_piece(update, stage->start + o * width, num * width);
    }
    memmove(update->piece, bias, num_biases * sizeof *bias);
    if (!stage->layer->has_bias) memset(update->piece, 0, num_biases * sizeof *bias);
    fed_update_piece(update, stage->start + bias_start(stage), num_biases);
}

static void backward_batch(const fed_batch_pass *pass, const fed_update *update) {
    const fed_stage *stage = pass->stage;
    const size_t num_outputs = num_outputs_of(stage), width = stage->in.num_values;
    if (!stage->is_last) begin_gradient(pass);
    /* All of it before the first accumulation: the sum may be the parameters themselves. */
    if (pass->in_gradient != NULL)
        for (size_t first = 0; first < pass->num_rows; first += FED_LANES)
            pass->kernels->dense_backward_inputs(
                pass->params, width, num_outputs, block_lanes(pass, first),
                block_rows(pass->num_rows, first), pass->in_gradient + first * width, width);
    if (update->sum != NULL) {
        float *sum = update->sum + stage->start;
        accumulate(pass, 0, num_outputs, sum, sum + bias_start(stage));
        if (!stage->layer->has_bias) memset(sum + bias_start(stage), 0, num_outputs * sizeof *sum);
    } else {
        hand_over_pieces(pass, update);
    }
}

const fed_stage_ops fed_dense_columns = {
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .forward_batch = forward_batch,
    .backward_batch = backward_batch,
    .takes_raw = 1,
    .can_narrow = 1,
};
