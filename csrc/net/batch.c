/* SPDX-License-Identifier: Apache-2.0
 * The forward and backward pass of a batch through the stages of a net. The stages before the first
 * dense one ("example stages") process one example at a time, all stages in turn, so that its
 * values stay in the cache. Dense stages process the whole batch at once. In the backward pass of
 * example stages, each fixed block of examples has its own sum of gradients; these sums are then
 * added in order. Threads can therefore share a batch without changing a bit of the result. */
#include "net.h"
#include "threads.h"

#include <string.h>

/* ---- Memory ---------------------------------------------------------------------------------- */

static size_t num_blocks(size_t num_rows) { return (num_rows + FED_LANES - 1) / FED_LANES; }

static int takes_batch(const fed_stage *stage) { return stage->ops->forward_batch != NULL; }

/* The buffer between stage s - 1 and stage s: the output of one and the input of the other. */
static const fed_buffer *buffer_before(const fed_net *net, size_t s) {
    return s == 0 ? &net->stages[0].in : &net->stages[s - 1].out;
}

static int images_are_rows(const fed_net *net) { return net->stages[0].ops->takes_raw; }

static int last_takes_batch(const fed_net *net) {
    return takes_batch(&net->stages[net->num_stages - 1]);
}

/* 1 if there is memory for values s: images that are rows, and logits in lanes, need none. */
static int has_values(const fed_net *net, size_t s) {
    if (s == 0) return !images_are_rows(net);
    return s < net->num_stages || !last_takes_batch(net);
}

/* Floats from one example's values to the next's; 0 if all examples use the same memory in turn. */
static size_t value_stride(const fed_batch *batch, size_t s) {
    const int in_turn = !batch->is_training && s < batch->net->num_example_stages;
    return in_turn ? 0 : buffer_before(batch->net, s)->num_values;
}

/* The gradient by values s of example b. In an example stage there is one per block, which the
 * block's examples use in turn. */
static float *gradient_at(const fed_batch *batch, size_t s, size_t b, size_t block) {
    const size_t place = s < batch->net->num_example_stages ? block : b;
    return batch->gradients[s] + place * buffer_before(batch->net, s)->num_values;
}

static size_t copies(const fed_batch *batch, size_t stride) {
    return stride > 0 ? batch->batch_size : 1;
}

/* Few blocks, so that their gradients fit into the cache; small ones, so that threads can share a
 * usual batch of 10 or 20. */
enum { BLOCK_ROWS = 5, MAX_BLOCKS = 8 };

static size_t num_example_blocks(size_t num_rows) {
    const size_t num_wanted = (num_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    return num_wanted < MAX_BLOCKS ? num_wanted : MAX_BLOCKS;
}

static void carve_values(fed_batch *batch, fed_carver *c, size_t s) {
    if (!has_values(batch->net, s)) return;
    const size_t num_values = buffer_before(batch->net, s)->num_values;
    batch->values[s] =
        fed_carve(c, copies(batch, value_stride(batch, s)) * num_values, sizeof(float));
    if (!batch->is_training || s == 0) return;
    const int is_example_stage = s < batch->net->num_example_stages;
    const size_t num_copies =
        is_example_stage ? num_example_blocks(batch->batch_size) : batch->batch_size;
    batch->gradients[s] = fed_carve(c, num_copies * num_values, sizeof(float));
}

void fed_batch_carve(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    size_t scratch_bytes = 0, piece_size = 0;
    for (size_t s = 0; s <= net->num_stages; s++) carve_values(batch, c, s);
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const int is_end = stage->is_first || stage->is_last;
        if (s == 0 || takes_batch(stage))
            batch->rows[s] = fed_carve(c, batch->batch_size, sizeof *batch->rows[s]);
        if ((is_end && takes_batch(stage)) || stage->is_last)
            batch->lanes[s] =
                fed_carve(c, num_blocks(batch->batch_size) * stage->shape.channels * FED_LANES,
                          sizeof(float));
        batch->derived[s] = fed_carve(c, stage->derived_size, sizeof(float));
        scratch_bytes = fed_larger(scratch_bytes, stage->scratch_bytes);
        if (!batch->is_training) continue;
        batch->saved[s] = fed_carve(c, batch->batch_size * stage->saved_bytes, 1);
        if (!takes_batch(stage))
            batch->by_params[s] = fed_carve(
                c, num_example_blocks(batch->batch_size) * stage->packed_size, sizeof(float));
        piece_size = fed_larger(piece_size, stage->piece_size);
    }
    if (batch->is_training && net->has_dropout)
        batch->dropout = fed_carve(c, batch->batch_size, sizeof *batch->dropout);
    const size_t num_workers = (size_t)batch->num_workers;
    batch->scratch_bytes = scratch_bytes;
    batch->scratch = fed_carve(c, num_workers * scratch_bytes, 1);
    batch->piece_size = piece_size;
    batch->pieces = fed_carve(c, num_workers * piece_size, sizeof(float));
}

void fed_batch_clear(const fed_batch *batch) {
    const fed_net *net = batch->net;
    for (size_t s = 0; s <= net->num_stages; s++)
        if (has_values(net, s))
            memset(batch->values[s], 0,
                   copies(batch, value_stride(batch, s)) * buffer_before(net, s)->num_values *
                       sizeof(float));
    for (size_t s = 1; s < net->num_stages; s++)
        if (takes_batch(&net->stages[s]))
            for (size_t b = 0; b < batch->batch_size; b++)
                batch->rows[s][b] = batch->values[s] + b * value_stride(batch, s);
}

void fed_batch_derive_stage(const fed_batch *batch, const float *params, size_t s) {
    const fed_stage *stage = &batch->net->stages[s];
    if (stage->ops->derive != NULL)
        stage->ops->derive(batch->net->kernels, stage, params + stage->start, batch->derived[s],
                           batch->scratch);
}

void fed_batch_derive(const fed_batch *batch, const float *params) {
    for (size_t s = 0; s < batch->net->num_stages; s++) fed_batch_derive_stage(batch, params, s);
}

/* Each visit of an example has its own part of the client's stream, so that masks do not depend on
 * which thread draws them and when. */
void fed_batch_open_dropout(const fed_batch *batch, const fed_key *key, size_t first_visit) {
    if (batch->dropout == NULL) return;
    for (size_t b = 0; b < batch->batch_size; b++) {
        fed_rng_init(&batch->dropout[b], key);
        batch->dropout[b].counter[0] = (uint64_t)(first_visit + b) << batch->net->visit_bits;
    }
}

/* ---- Rows and lanes -------------------------------------------------------------------------- */

void fed_rows_to_lanes(const float *rows, size_t stride, size_t num_rows, size_t num_values,
                       float *lanes) {
    for (size_t b = 0; b < num_rows; b++) {
        float *block = lanes + b / FED_LANES * FED_LANES * num_values + b % FED_LANES;
        for (size_t i = 0; i < num_values; i++) block[i * FED_LANES] = rows[b * stride + i];
    }
}

void fed_lanes_to_rows(const float *lanes, size_t num_values, size_t num_rows, float *rows,
                       size_t stride) {
    for (size_t b = 0; b < num_rows; b++) {
        const float *block = lanes + b / FED_LANES * FED_LANES * num_values + b % FED_LANES;
        for (size_t i = 0; i < num_values; i++) rows[b * stride + i] = block[i * FED_LANES];
        for (size_t i = num_values; i < stride; i++) rows[b * stride + i] = 0;
    }
}

/* ---- Stages ---------------------------------------------------------------------------------- */

/* The arguments of stage s for example b. */
static fed_pass example_pass(const fed_batch *batch, const float *params, size_t s, size_t b,
                             size_t block, int worker) {
    const fed_stage *stage = &batch->net->stages[s];
    const int reads_row = s == 0 && images_are_rows(batch->net);
    fed_pass pass = {
        .kernels = batch->net->kernels,
        .stage = stage,
        .params = params + stage->start,
        .derived = batch->derived[s],
        .in = reads_row ? batch->rows[0][b] : batch->values[s] + b * value_stride(batch, s),
        .out = batch->values[s + 1] + b * value_stride(batch, s + 1),
        .scratch = batch->scratch + (size_t)worker * batch->scratch_bytes,
    };
    if (batch->is_training) {
        pass.saved = batch->saved[s] + b * stage->saved_bytes;
        pass.out_gradient = gradient_at(batch, s + 1, b, block);
        pass.in_gradient = s > 0 ? gradient_at(batch, s, b, block) : NULL;
        pass.gradient = batch->by_params[s] + block * stage->packed_size;
        if (batch->dropout != NULL) pass.dropout = &batch->dropout[b];
    }
    return pass;
}

static fed_batch_pass batch_pass(const fed_batch *batch, const float *params, size_t s,
                                 size_t num_rows) {
    const fed_stage *stage = &batch->net->stages[s];
    return (fed_batch_pass){
        .kernels = batch->net->kernels,
        .stage = stage,
        .params = params + stage->start,
        .num_workers = batch->num_workers,
        .num_rows = num_rows,
        .rows = batch->rows[s],
        .lanes = batch->lanes[s],
        .outputs = batch->values[s + 1],
        .out_gradient = batch->gradients[s + 1],
        .in_gradient = s > 0 ? batch->gradients[s] : NULL,
    };
}

/* Copies a decoded image to a buffer with padded channels. */
static void expand(const fed_stage *stage, const float *image, float *values) {
    const size_t channels = stage->layer->in.channels;
    const size_t num_pixels = stage->layer->in.height * stage->layer->in.width;
    for (size_t p = 0; p < num_pixels; p++)
        memcpy(values + p * stage->in.pixel_stride, image + p * channels, channels * sizeof *image);
}

/* A pass through the example stages: the context of each part in fed_share. */
typedef struct example_stages_call {
    const fed_batch *batch;
    const float *params;
    size_t num_rows, num_blocks;
} example_stages_call;

static void forward_example(void *context, size_t b, int worker) {
    const example_stages_call *call = context;
    const fed_batch *batch = call->batch;
    const fed_net *net = batch->net;
    if (!images_are_rows(net))
        expand(&net->stages[0], batch->rows[0][b], batch->values[0] + b * value_stride(batch, 0));
    for (size_t s = 0; s < net->num_example_stages; s++) {
        const fed_pass pass = example_pass(batch, call->params, s, b, 0, worker);
        net->stages[s].ops->forward(&pass);
    }
}

static void forward_example_stages(const fed_batch *batch, const float *params, size_t num_rows) {
    if (batch->net->num_example_stages == 0) return;
    example_stages_call call = {.batch = batch, .params = params, .num_rows = num_rows};
    fed_share(batch->num_workers, num_rows, forward_example, &call);
}

void fed_batch_forward_stage(const fed_batch *batch, const float *params, size_t s,
                             size_t num_rows) {
    const fed_stage_ops *ops = batch->net->stages[s].ops;
    if (ops->forward_batch != NULL) {
        const fed_batch_pass pass = batch_pass(batch, params, s, num_rows);
        ops->forward_batch(&pass);
        return;
    }
    for (size_t b = 0; b < num_rows; b++) {
        const fed_pass pass = example_pass(batch, params, s, b, 0, 0);
        ops->forward(&pass);
    }
}

void fed_batch_forward(const fed_batch *batch, const float *params, size_t num_rows,
                       const int32_t *labels, float scale, const fed_loss *loss, fed_score *score,
                       float *logits) {
    const fed_net *net = batch->net;
    const size_t num_classes = net->model->num_classes, last = net->num_stages;
    forward_example_stages(batch, params, num_rows);
    for (size_t s = net->num_example_stages; s < net->num_stages; s++)
        fed_batch_forward_stage(batch, params, s, num_rows);

    float *lanes = batch->lanes[last - 1];
    if (!last_takes_batch(net))
        fed_rows_to_lanes(batch->values[last], value_stride(batch, last), num_rows, num_classes,
                          lanes);
    if (logits != NULL) fed_lanes_to_rows(lanes, num_classes, num_rows, logits, num_classes);
    for (size_t first = 0; first < num_rows; first += FED_LANES) {
        const size_t rows_left = num_rows - first;
        net->kernels->softmax_xent(lanes + first * num_classes, num_classes, labels + first,
                                   rows_left < FED_LANES ? rows_left : FED_LANES, scale, loss,
                                   score);
    }
}

/* ---- Backward -------------------------------------------------------------------------------- */

/* Adds the blocks' gradients in order and passes the sum to the update. */
static void update_stage(const fed_batch *batch, size_t s, size_t num_blocks,
                         const fed_update *update) {
    const fed_stage *stage = &batch->net->stages[s];
    const size_t size = stage->packed_size;
    float *total = batch->by_params[s];
    if (size == 0) return;
    for (size_t block = 1; block < num_blocks; block++)
        batch->net->kernels->add(total, total + block * size, size);
    if (update->sum == NULL) {
        fed_step_run(update->step, update->at, stage->start, size, total);
    } else {
        batch->net->kernels->add(update->sum + stage->start, total, size);
        fed_update_take(update, stage->start, size);
    }
}

static void clear_by_params(const fed_batch *batch, size_t s, size_t block) {
    const size_t size = batch->net->stages[s].packed_size;
    if (size > 0) memset(batch->by_params[s] + block * size, 0, size * sizeof(float));
}

void fed_batch_backward_stage(const fed_batch *batch, const float *params, size_t s,
                              size_t num_rows, const fed_update *update) {
    const fed_stage_ops *ops = batch->net->stages[s].ops;
    if (ops->backward_batch != NULL) {
        const fed_batch_pass pass = batch_pass(batch, params, s, num_rows);
        ops->backward_batch(&pass, update);
        return;
    }
    clear_by_params(batch, s, 0);
    for (size_t b = 0; b < num_rows; b++) {
        const fed_pass pass = example_pass(batch, params, s, b, 0, 0);
        ops->backward(&pass);
    }
    update_stage(batch, s, 1, update);
}

static void backward_block(void *context, size_t block, int worker) {
    const example_stages_call *call = context;
    const fed_net *net = call->batch->net;
    const size_t first = block * call->num_rows / call->num_blocks;
    const size_t end = (block + 1) * call->num_rows / call->num_blocks;
    for (size_t s = 0; s < net->num_example_stages; s++) clear_by_params(call->batch, s, block);
    for (size_t b = first; b < end; b++)
        for (size_t s = net->num_example_stages; s-- > 0;) {
            const fed_pass pass = example_pass(call->batch, call->params, s, b, block, worker);
            net->stages[s].ops->backward(&pass);
        }
}

static void backward_example_stages(const fed_batch *batch, const float *params, size_t num_rows,
                                    const fed_update *update) {
    if (batch->net->num_example_stages == 0) return;
    example_stages_call call = {batch, params, num_rows, num_example_blocks(num_rows)};
    fed_share(batch->num_workers, call.num_blocks, backward_block, &call);
    for (size_t s = 0; s < batch->net->num_example_stages; s++)
        update_stage(batch, s, call.num_blocks, update);
}

void fed_batch_backward(const fed_batch *batch, const float *params, size_t num_rows,
                        const fed_update *update) {
    const fed_net *net = batch->net;
    const size_t last = net->num_stages;
    if (!last_takes_batch(net))
        fed_lanes_to_rows(batch->lanes[last - 1], net->model->num_classes, num_rows,
                          batch->gradients[last], net->stages[last - 1].out.num_values);
    for (size_t s = last; s-- > net->num_example_stages;)
        fed_batch_backward_stage(batch, params, s, num_rows, update);
    backward_example_stages(batch, params, num_rows, update);
}
