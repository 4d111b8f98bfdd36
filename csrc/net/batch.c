/* SPDX-License-Identifier: Apache-2.0
 * The forward and backward pass of a batch through the stages of a net. Example stages process one
 * example at a time, all stages in turn. The other stages process the batch stage by stage: dense
 * stages, batch norms and convolutions of feature maps take all examples in one call, the rest take
 * one example after the other. Where stages of the front process single examples in the backward
 * pass, each fixed block of examples has its own sum of gradients by parameters; these sums are
 * then added in order. Threads can therefore share a batch without changing a bit of the result. */
#include "net.h"
#include "threads.h"

#include <string.h>

/* ---- Memory ---------------------------------------------------------------------------------- */

static size_t num_blocks(size_t num_rows) { return (num_rows + FED_LANES - 1) / FED_LANES; }

static int is_dense(const fed_stage *stage) { return stage->ops->forward_batch != NULL; }

static int images_are_rows(const fed_net *net) { return !fed_net_has_value(net, 0); }

/* 1 if stage s is dense and reads a value; 0 if it reads the images as the caller gives them. */
static int reads_rows(const fed_net *net, size_t s) {
    const fed_stage *stage = &net->stages[s];
    return is_dense(stage) && !(stage->sources[0] == 0 && images_are_rows(net));
}

static int takes_images(const fed_stage *stage) { return stage->ops->forward_images != NULL; }

/* 1 if stage s takes the images of the whole batch at once. */
static int takes_all_images(const fed_net *net, size_t s) {
    return s >= net->num_example_stages && takes_images(&net->stages[s]);
}

/* 1 if only example stages read value v. */
static int is_inside(const fed_net *net, size_t v) { return v < net->num_example_stages; }

/* 1 if each worker has memory for one example of value v, which its examples use in turn. */
static int is_of_worker(const fed_batch *batch, size_t v) {
    return is_inside(batch->net, v) && !(batch->is_training && batch->net->values[v].is_kept);
}

static size_t num_values(const fed_batch *batch, size_t v) {
    return batch->net->values[v].buffer.num_values;
}

/* Number of examples that value v has memory for. */
static size_t num_held(const fed_batch *batch, size_t v) {
    if (is_of_worker(batch, v)) return (size_t)batch->num_workers;
    return batch->batch_size + (v < batch->net->num_input_stages ? batch->most_extra_rows : 0);
}

/* Value v of example b, which the worker computes. */
static float *memory_at(const fed_batch *batch, size_t v, size_t b, int worker) {
    if (!fed_net_has_value(batch->net, v)) return NULL;
    const size_t place = is_of_worker(batch, v) ? (size_t)worker : b;
    return batch->values[v] + place * num_values(batch, v);
}

/* The address of an element; NULL if there is no array, because C allows no offset from NULL. */
static float *element(float *values, size_t offset) {
    return values == NULL ? NULL : values + offset;
}

/* The gradient by value v of example b. Inside the example stages each block has a place, which its
 * examples use in turn. The size of a place must not depend on the value, because threads run
 * different stages at the same time. */
static float *gradient_at(const fed_batch *batch, size_t v, size_t b, size_t block) {
    if (v <= batch->net->num_input_stages) return NULL;
    if (!is_inside(batch->net, v)) return element(batch->gradients[v], b * num_values(batch, v));
    const fed_place *place = &batch->net->gradient_places[batch->net->values[v].gradient_place];
    return element(batch->gradients[v], block * place->size);
}

/* There are few blocks, so that their gradients fit into the cache. Blocks are small, so that
 * threads can share a usual batch of 10 or 20 examples, or a part of it (fed_net_part_size). */
enum { BLOCK_ROWS = 5, PART_BLOCK_ROWS = 2, MAX_BLOCKS = 8 };

/* The number of blocks of stage s. A stage behind the front has one. */
static size_t num_blocks_of(const fed_net *net, size_t s, size_t num_rows) {
    const size_t block = s < net->num_example_stages ? BLOCK_ROWS : PART_BLOCK_ROWS;
    return s < net->num_front_stages ? fed_smaller(fed_pieces(num_rows, block), MAX_BLOCKS) : 1;
}

/* Carves places, with memory for num_inside examples in those inside the example stages, and for
 * num_others in the others. */
static void carve_places(const fed_place *from, size_t num_places, size_t num_inside,
                         size_t num_others, fed_carver *c, float **places /* out */) {
    for (size_t p = 0; p < num_places; p++) {
        const size_t num = from[p].is_inside ? num_inside : num_others;
        places[p] = fed_carve(c, num * from[p].size, sizeof(float));
    }
}

/* Values that are not kept share memory, one after the other. */
static void carve_values(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    const size_t size = batch->is_training ? 0 : batch->batch_size;
    float *places[FED_MAX_LAYERS + 1] = {NULL};
    if (!batch->is_training || net->repeats)
        carve_places(net->value_places, net->num_value_places, (size_t)batch->num_workers, size, c,
                     places);
    for (size_t v = 0; v <= net->num_stages; v++) {
        if (!fed_net_has_value(net, v)) continue;
        batch->values[v] =
            batch->is_training && net->values[v].is_kept
                ? fed_carve(c, num_held(batch, v) * num_values(batch, v), sizeof(float))
                : places[net->values[v].place];
    }
}

static void carve_gradients(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    float *places[FED_MAX_LAYERS + 1];
    const size_t num_blocks = num_blocks_of(net, 0, batch->batch_size);
    carve_places(net->gradient_places, net->num_gradient_places, num_blocks, batch->batch_size, c,
                 places);
    for (size_t v = net->num_input_stages + 1; v <= net->num_stages; v++)
        if (fed_net_has_value(net, v) || net->values[v].is_mapped)
            batch->gradients[v] = places[net->values[v].gradient_place];
}

/* Memory for a further part of the gradient by a value that several stages read. It is not needed
 * if these stages can add their parts themselves. */
static void carve_added_gradient(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        for (size_t i = 0; i < 2; i++)
            if (stage->adds[i] && !stage->ops->adds_gradients)
                batch->added_size =
                    fed_larger(batch->added_size, num_values(batch, stage->sources[i]));
    }
    batch->added_gradient = fed_carve(c, batch->batch_size * batch->added_size, sizeof(float));
}

/* The gradients by parameters of example stages are all needed at the same time, those of the other
 * stages one after the other. */
static void carve_by_params(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    size_t size = 0;
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const size_t num_copies =
            takes_all_images(net, s) ? 1 : num_blocks_of(net, s, batch->batch_size);
        if (is_dense(stage)) continue;
        if (s < net->num_example_stages)
            batch->by_params[s] = fed_carve(c, num_copies * stage->packed_size, sizeof(float));
        else
            size = fed_larger(size, num_copies * stage->packed_size);
    }
    float *shared = fed_carve(c, size, sizeof(float));
    for (size_t s = net->num_example_stages; s < net->num_stages; s++) batch->by_params[s] = shared;
}

static void carve_training(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    carve_gradients(batch, c);
    carve_added_gradient(batch, c);
    carve_by_params(batch, c);
    if (net->has_dropout)
        batch->dropout =
            fed_carve(c, batch->batch_size + batch->most_extra_rows, sizeof *batch->dropout);
}

/* Bytes of scratch of a stage that takes images. */
static size_t images_scratch(const fed_stage *stage, size_t num_images, int num_workers) {
    return stage->ops->images_scratch(stage, num_images, num_workers) * sizeof(float);
}

/* Scratch for one example of each worker, or for all images together. */
static void carve_scratch(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    size_t of_images = 0;
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        size_t of_example = stage->scratch_bytes;
        if (batch->is_training)
            batch->piece_size = fed_larger(batch->piece_size, stage->piece_size);
        if (takes_all_images(net, s))
            of_images =
                fed_larger(of_images, images_scratch(stage, batch->batch_size, batch->num_workers));
        else if (takes_images(stage))
            of_example = images_scratch(stage, 1, 1);
        batch->scratch_bytes = fed_larger(batch->scratch_bytes, of_example);
    }
    const size_t num_workers = (size_t)batch->num_workers;
    batch->scratch = fed_carve(c, fed_larger(num_workers * batch->scratch_bytes, of_images), 1);
    batch->pieces = fed_carve(c, num_workers * batch->piece_size, sizeof(float));
}

void fed_batch_carve(fed_batch *batch, fed_carver *c) {
    const fed_net *net = batch->net;
    carve_values(batch, c);
    if (batch->is_training) carve_training(batch, c);
    for (size_t s = 0; s < net->num_stages; s++)
        if (batch->is_training || net->stages[s].is_mapped)
            batch->saved[s] = fed_carve(c, batch->batch_size * net->stages[s].saved_bytes, 1);
    if (net->background_value > 0)
        batch->marks = fed_carve(c, num_held(batch, net->background_value), sizeof *batch->marks);
    batch->images = fed_carve(c, batch->batch_size + batch->most_extra_rows, sizeof *batch->images);
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const int is_end = stage->is_first || stage->is_last;
        if (reads_rows(net, s))
            batch->rows[s] = fed_carve(c, batch->batch_size, sizeof *batch->rows[s]);
        if ((is_end && is_dense(stage)) || stage->is_last)
            batch->lanes[s] =
                fed_carve(c, num_blocks(batch->batch_size) * stage->shape.channels * FED_LANES,
                          sizeof(float));
        batch->derived[s] = fed_carve(c, stage->derived_size, sizeof(float));
    }
    carve_scratch(batch, c);
}

/* Clears the border of an image, whose pixels each forward pass writes. Pixels with padding
 * channels are cleared, too. */
static void clear_border(const fed_value *value, float *values) {
    const fed_buffer *buffer = &value->buffer;
    const int is_padded = buffer->pixel_stride > value->shape.channels;
    size_t from = 0;
    for (size_t y = 0; y < value->shape.height && !is_padded; y++) {
        const size_t row = fed_pixel(buffer, y, 0);
        memset(values + from, 0, (row - from) * sizeof *values);
        from = row + fed_row_size(buffer, &value->shape);
    }
    memset(values + from, 0, (buffer->num_values - from) * sizeof *values);
}

/* In scoring, several values share memory, so all of it is cleared. */
static void clear_value(const fed_batch *batch, size_t v) {
    const size_t num_examples = num_held(batch, v), size = num_values(batch, v);
    if (!batch->is_training) memset(batch->values[v], 0, num_examples * size * sizeof(float));
    for (size_t b = 0; b < num_examples && batch->is_training; b++)
        clear_border(&batch->net->values[v], batch->values[v] + b * size);
}

void fed_batch_clear(const fed_batch *batch) {
    const fed_net *net = batch->net;
    for (size_t v = 0; v <= net->num_stages; v++)
        if (fed_net_has_value(net, v)) clear_value(batch, v);
    for (size_t s = 0; s < net->num_stages; s++) {
        const size_t source = net->stages[s].sources[0];
        if (reads_rows(net, s))
            for (size_t b = 0; b < batch->batch_size; b++)
                batch->rows[s][b] = batch->values[source] + b * num_values(batch, source);
    }
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
    for (size_t b = 0; b < batch->batch_size; b++)
        fed_batch_open_visit(batch, key, b, first_visit + b);
}

void fed_batch_open_visit(const fed_batch *batch, const fed_key *key, size_t b, size_t visit) {
    if (batch->dropout == NULL) return;
    fed_rng_init(&batch->dropout[b], key);
    batch->dropout[b].counter[0] = (uint64_t)visit << batch->net->visit_bits;
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

/* What a stage reads to get value v. */
static const float *value_at(const fed_batch *batch, size_t v, size_t b, int worker) {
    if (v == 0 && images_are_rows(batch->net)) return batch->images[b];
    return memory_at(batch, fed_net_stored_value(batch->net, v), b, worker);
}

/* What stage s has saved for example b. */
static char *saved_at(const fed_batch *batch, size_t s, size_t b) {
    return batch->saved[s] == NULL ? NULL : batch->saved[s] + b * batch->net->stages[s].saved_bytes;
}

/* What the norm that stage s applies has saved for example b. */
static const void *norm_at(const fed_batch *batch, size_t s, size_t b) {
    const fed_stage *stage = &batch->net->stages[s];
    return stage->norm == NULL ? NULL : saved_at(batch, stage->sources[0] - 1, b);
}

/* Where stage s writes its part of the gradient by source i: into that gradient, or into
 * added_gradient if the stage cannot add; NULL for the image. */
static float *target_at(const fed_batch *batch, size_t s, size_t i, size_t b, size_t block) {
    const fed_stage *stage = &batch->net->stages[s];
    const size_t v = stage->sources[i];
    if (v <= batch->net->num_input_stages) return NULL;
    if (!stage->adds[i] || stage->ops->adds_gradients) return gradient_at(batch, v, b, block);
    /* Threads run different example stages at the same time, each for its own block, so the place
     * of a block must not depend on the value. For other stages, the distance between two examples
     * is the value's size. */
    return element(batch->added_gradient,
                   is_inside(batch->net, v) ? block * batch->added_size : b * num_values(batch, v));
}

/* Adds to the gradient itself the part that stage s wrote to added_gradient. */
static void add_beside(const fed_batch *batch, size_t s, size_t b, size_t block) {
    const fed_stage *stage = &batch->net->stages[s];
    for (size_t i = 0; i < 2; i++)
        if (stage->adds[i] && !stage->ops->adds_gradients)
            batch->net->kernels->add(gradient_at(batch, stage->sources[i], b, block),
                                     target_at(batch, s, i, b, block),
                                     num_values(batch, stage->sources[i]));
}

/* The marks that stage s reads or writes. */
static fed_marks *marks_at(const fed_batch *batch, size_t s, size_t b, int worker) {
    const size_t v = batch->net->background_value;
    if (v == 0 || (s + 1 != v && batch->net->stages[s].sources[0] != v)) return NULL;
    return batch->marks + (is_of_worker(batch, v) ? (size_t)worker : b);
}

/* The arguments of stage s for example b. */
static fed_pass example_pass(const fed_batch *batch, const float *params, size_t s, size_t b,
                             size_t block, int worker) {
    const fed_stage *stage = &batch->net->stages[s];
    const int has_two = fed_num_inputs(stage->layer) > 1;
    fed_pass pass = {
        .kernels = batch->net->kernels,
        .stage = stage,
        .params = params == NULL ? NULL : params + stage->start,
        .derived = batch->derived[s],
        .in = value_at(batch, stage->sources[0], b, worker),
        .in_2 = has_two ? value_at(batch, stage->sources[1], b, worker) : NULL,
        .out = memory_at(batch, s + 1, b, worker),
        .saved = saved_at(batch, s, b),
        .norm = norm_at(batch, s, b),
        .scratch = batch->scratch + (size_t)worker * batch->scratch_bytes,
        .marks = marks_at(batch, s, b, worker),
    };
    if (batch->is_training) {
        pass.out_gradient = gradient_at(batch, s + 1, b, block);
        pass.in_gradient = target_at(batch, s, 0, b, block);
        pass.in_2_gradient = has_two ? target_at(batch, s, 1, b, block) : NULL;
        pass.gradient = element(batch->by_params[s], block * stage->packed_size);
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
        .rows = reads_rows(batch->net, s) ? batch->rows[s] : batch->images,
        .lanes = batch->lanes[s],
        .outputs = batch->values[s + 1],
        .out_gradient = batch->gradients[s + 1],
        .in_gradient = target_at(batch, s, 0, 0, 0),
    };
}

/* The arguments of stage s for all images of a batch. */
static fed_images_pass images_pass(const fed_batch *batch, const float *params, size_t s,
                                   size_t num_images) {
    const fed_stage *stage = &batch->net->stages[s];
    fed_images_pass pass = {
        .kernels = batch->net->kernels,
        .stage = stage,
        .params = params + stage->start,
        .moving = params + stage->moving_start,
        .num_images = num_images,
        .num_workers = batch->num_workers,
        .in = value_at(batch, stage->sources[0], 0, 0),
        .out = batch->values[s + 1],
        .norm = norm_at(batch, s, 0),
        .scratch = (float *)batch->scratch,
    };
    if (batch->is_training) {
        pass.saved = batch->saved[s];
        pass.out_gradient = batch->gradients[s + 1];
        pass.in_gradient = target_at(batch, s, 0, 0, 0);
        pass.gradient = batch->by_params[s];
    }
    return pass;
}

/* The arguments, for one image, of a stage that takes images. */
static fed_images_pass image_pass(const fed_pass *of) {
    return (fed_images_pass){
        .kernels = of->kernels,
        .stage = of->stage,
        .params = of->params,
        .num_images = 1,
        .num_workers = 1,
        .in = of->in,
        .out = of->out,
        .scratch = of->scratch,
        .saved = of->saved,
        .norm = of->norm,
        .out_gradient = of->out_gradient,
        .in_gradient = of->in_gradient,
        .gradient = of->gradient,
    };
}

/* Copies a decoded image to a buffer with padded channels. */
static void expand(const fed_batch *batch, size_t b, int worker) {
    const fed_value *image = &batch->net->values[0];
    const size_t channels = image->shape.channels;
    const float *from = batch->images[b];
    float *to = memory_at(batch, 0, b, worker);
    for (size_t y = 0; y < image->shape.height; y++)
        for (size_t x = 0; x < image->shape.width; x++, from += channels)
            memcpy(to + fed_pixel(&image->buffer, y, x), from, channels * sizeof *from);
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* The context that fed_share passes to each part: a pass through the example stages, or through
 * stage s. */
typedef struct stages_call {
    const fed_batch *batch;
    const float *params;
    size_t s, num_rows, num_blocks;
    const fed_update *update;
    const fed_mixing *mixing;
} stages_call;

static void forward_stage(const fed_pass *pass) {
    const fed_images_pass images = image_pass(pass);
    if (takes_images(pass->stage))
        pass->stage->ops->forward_images(&images);
    else
        pass->stage->ops->forward(pass);
}

/* Runs the example stages from call->s on for example b. */
static void forward_example(void *context, size_t b, int worker) {
    const stages_call *call = context;
    const fed_net *net = call->batch->net;
    if (!images_are_rows(net)) expand(call->batch, b, worker);
    for (size_t s = call->s; s < net->num_example_stages; s++) {
        const fed_pass pass = example_pass(call->batch, call->params, s, b, 0, worker);
        forward_stage(&pass);
    }
}

static void forward_one(void *context, size_t b, int worker) {
    const stages_call *call = context;
    const fed_pass pass = example_pass(call->batch, call->params, call->s, b, 0, worker);
    forward_stage(&pass);
}

/* Runs the input layers before net->mixup, which is stage call->s, for example b. */
static void forward_unmixed(void *context, size_t b, int worker) {
    const stages_call *call = context;
    for (size_t s = 0; s < call->s; s++) {
        const fed_pass pass = example_pass(call->batch, NULL, s, b, 0, worker);
        call->batch->net->stages[s].ops->forward(&pass);
    }
}

static void mix_one(void *context, size_t b, int worker) {
    const stages_call *call = context;
    const fed_stage *stage = &call->batch->net->stages[call->s];
    fed_pass pass = example_pass(call->batch, NULL, call->s, b, 0, worker);
    pass.partner = value_at(call->batch, stage->sources[0], call->mixing->partners[b], worker);
    pass.share = call->mixing->share;
    stage->ops->forward(&pass);
}

void fed_batch_mix_inputs(const fed_batch *batch, size_t num_rows, const fed_mixing *mixing) {
    stages_call call = {.batch = batch, .s = batch->net->num_input_stages - 1, .mixing = mixing};
    fed_share(batch->num_workers, num_rows + mixing->num_extra_rows, forward_unmixed, &call);
    fed_share(batch->num_workers, num_rows, mix_one, &call);
}

void fed_batch_forward_inputs(const fed_batch *batch, float *image) {
    const fed_net *net = batch->net;
    const size_t v = net->num_input_stages;
    const fed_value *value = &net->values[v];
    const size_t channels = value->shape.channels;
    stages_call call = {.batch = batch};
    if (!images_are_rows(net)) expand(batch, 0, 0);
    for (call.s = 0; call.s < v; call.s++) forward_one(&call, 0, 0);
    for (size_t y = 0; y < value->shape.height; y++)
        for (size_t x = 0; x < value->shape.width; x++, image += channels)
            memcpy(image, value_at(batch, v, 0, 0) + fed_pixel(&value->buffer, y, x),
                   channels * sizeof *image);
}

void fed_batch_forward_stage(const fed_batch *batch, const float *params, size_t s,
                             size_t num_rows) {
    const fed_net *net = batch->net;
    const fed_stage *stage = &net->stages[s];
    if (is_dense(stage)) {
        const fed_batch_pass pass = batch_pass(batch, params, s, num_rows);
        stage->ops->forward_batch(&pass);
    } else if (takes_all_images(net, s)) {
        const fed_images_pass pass = images_pass(batch, params, s, num_rows);
        stage->ops->forward_images(&pass);
    } else {
        stages_call call = {.batch = batch, .params = params, .s = s};
        fed_share(s < net->num_front_stages ? batch->num_workers : 1, num_rows, forward_one, &call);
    }
}

void fed_batch_forward(const fed_batch *batch, const float *params, size_t num_rows,
                       const fed_targets *targets, float scale, const fed_loss *loss,
                       fed_score *score, float *logits) {
    const fed_net *net = batch->net;
    const size_t num_classes = net->model->num_classes, last = net->num_stages;
    const size_t first_stage = targets->other_labels != NULL ? net->num_input_stages : 0;
    stages_call call = {.batch = batch, .params = params, .s = first_stage};
    if (net->num_example_stages > first_stage || !images_are_rows(net))
        fed_share(batch->num_workers, num_rows, forward_example, &call);
    for (size_t s = fed_larger(net->num_example_stages, first_stage); s < net->num_stages; s++)
        fed_batch_forward_stage(batch, params, s, num_rows);

    float *lanes = batch->lanes[last - 1];
    if (fed_net_has_value(net, last))
        fed_rows_to_lanes(batch->values[last], num_values(batch, last), num_rows, num_classes,
                          lanes);
    if (logits != NULL) fed_lanes_to_rows(lanes, num_classes, num_rows, logits, num_classes);
    for (size_t first = 0; first < num_rows; first += FED_LANES) {
        const size_t rows_left = num_rows - first;
        fed_targets block = *targets;
        block.labels += first;
        if (block.other_labels != NULL) block.other_labels += first;
        net->kernels->softmax_xent(lanes + first * num_classes, num_classes, &block,
                                   rows_left < FED_LANES ? rows_left : FED_LANES, scale, loss,
                                   score);
    }
}

void fed_batch_move_statistics(const fed_batch *batch, float *params) {
    for (size_t s = 0; s < batch->net->num_stages; s++) {
        const fed_stage *stage = &batch->net->stages[s];
        if (stage->ops->move != NULL)
            stage->ops->move(stage, batch->saved[s], params + stage->moving_start);
    }
}

/* ---- Backward -------------------------------------------------------------------------------- */

/* Floats of a stage's gradient that are added up and passed on at a time. */
enum { UPDATE_FLOATS = 1 << 16 };

/* Adds a piece of the blocks' gradients in order and passes the sum to the update. */
static void update_piece(void *context, size_t piece, int worker) {
    (void)worker;
    const stages_call *call = context;
    const fed_stage *stage = &call->batch->net->stages[call->s];
    const fed_kernels *kernels = call->batch->net->kernels;
    const fed_update *update = call->update;
    const size_t size = stage->packed_size, first = piece * UPDATE_FLOATS, left = size - first;
    const size_t num = left < UPDATE_FLOATS ? left : UPDATE_FLOATS, start = stage->start + first;
    float *total = call->batch->by_params[call->s] + first;
    for (size_t block = 1; block < call->num_blocks; block++)
        kernels->add(total, total + block * size, num);
    if (update->sum == NULL) {
        fed_step_run(update->step, update->at, start, num, total);
    } else {
        kernels->add(update->sum + start, total, num);
        fed_update_take(update, start, num);
    }
}

static void update_stage(const fed_batch *batch, size_t s, size_t num_blocks,
                         const fed_update *update) {
    const size_t size = batch->net->stages[s].packed_size;
    stages_call call = {.batch = batch, .s = s, .num_blocks = num_blocks, .update = update};
    fed_share(batch->num_workers, (size + UPDATE_FLOATS - 1) / UPDATE_FLOATS, update_piece, &call);
}

static void clear_by_params(const fed_batch *batch, size_t s, size_t block) {
    const size_t size = batch->net->stages[s].packed_size;
    if (size > 0) memset(batch->by_params[s] + block * size, 0, size * sizeof(float));
}

static size_t first_of_block(const stages_call *call, size_t block) {
    return block * call->num_rows / call->num_blocks;
}

/* Writes again the values that were not kept and of which stage s is the last reader. In the
 * backward pass it is the first stage that needs them. */
static void repeat_sources(const stages_call *call, size_t s, size_t b, int worker) {
    const fed_net *net = call->batch->net;
    for (size_t i = 0; i < fed_num_inputs(net->stages[s].layer); i++) {
        const size_t v = fed_net_stored_value(net, net->stages[s].sources[i]);
        if (net->values[v].is_kept || net->values[v].last_reader != s) continue;
        const fed_pass pass = example_pass(call->batch, call->params, v - 1, b, 0, worker);
        net->stages[v - 1].ops->repeat(&pass);
    }
}

static void backward_example(const stages_call *call, size_t s, size_t b, size_t block,
                             int worker) {
    const fed_pass pass = example_pass(call->batch, call->params, s, b, block, worker);
    const fed_images_pass images = image_pass(&pass);
    if (takes_images(pass.stage))
        pass.stage->ops->backward_images(&images);
    else
        pass.stage->ops->backward(&pass);
    add_beside(call->batch, s, b, block);
}

/* Runs the backward pass of stage call->s for the examples of a block. */
static void backward_stage_block(void *context, size_t block, int worker) {
    const stages_call *call = context;
    clear_by_params(call->batch, call->s, block);
    for (size_t b = first_of_block(call, block); b < first_of_block(call, block + 1); b++)
        backward_example(call, call->s, b, block, worker);
}

static void add_beside_one(void *context, size_t b, int worker) {
    (void)worker;
    const stages_call *call = context;
    add_beside(call->batch, call->s, b, 0);
}

void fed_batch_backward_stage(const fed_batch *batch, const float *params, size_t s,
                              size_t num_rows, const fed_update *update) {
    const fed_stage *stage = &batch->net->stages[s];
    stages_call call = {.batch = batch,
                        .params = params,
                        .s = s,
                        .num_rows = num_rows,
                        .num_blocks = num_blocks_of(batch->net, s, num_rows)};
    if (is_dense(stage)) {
        const fed_batch_pass pass = batch_pass(batch, params, s, num_rows);
        stage->ops->backward_batch(&pass, update);
    } else if (takes_all_images(batch->net, s)) {
        const fed_images_pass pass = images_pass(batch, params, s, num_rows);
        clear_by_params(batch, s, 0);
        stage->ops->backward_images(&pass);
        update_stage(batch, s, 1, update);
    } else {
        fed_share(batch->num_workers, call.num_blocks, backward_stage_block, &call);
        update_stage(batch, s, call.num_blocks, update);
        return;
    }
    if (stage->adds[0]) fed_share(batch->num_workers, num_rows, add_beside_one, &call);
}

/* Runs the backward pass of all example stages for the examples of a block. */
static void backward_block(void *context, size_t block, int worker) {
    const stages_call *call = context;
    const fed_net *net = call->batch->net;
    for (size_t s = 0; s < net->num_example_stages; s++) clear_by_params(call->batch, s, block);
    for (size_t b = first_of_block(call, block); b < first_of_block(call, block + 1); b++)
        for (size_t s = net->num_example_stages; s-- > net->num_input_stages;) {
            repeat_sources(call, s, b, worker);
            backward_example(call, s, b, block, worker);
        }
}

static void backward_example_stages(const fed_batch *batch, const float *params, size_t num_rows,
                                    const fed_update *update) {
    if (batch->net->num_example_stages <= batch->net->num_input_stages) return;
    stages_call call = {.batch = batch,
                        .params = params,
                        .num_rows = num_rows,
                        .num_blocks = num_blocks_of(batch->net, 0, num_rows)};
    fed_share(batch->num_workers, call.num_blocks, backward_block, &call);
    for (size_t s = 0; s < batch->net->num_example_stages; s++)
        update_stage(batch, s, call.num_blocks, update);
}

void fed_batch_backward(const fed_batch *batch, const float *params, size_t num_rows,
                        const fed_update *update) {
    const fed_net *net = batch->net;
    const size_t last = net->num_stages;
    if (fed_net_has_value(net, last))
        fed_lanes_to_rows(batch->lanes[last - 1], net->model->num_classes, num_rows,
                          batch->gradients[last], net->stages[last - 1].out.num_values);
    const size_t first = fed_larger(net->num_example_stages, net->num_input_stages);
    for (size_t s = last; s-- > first;)
        fed_batch_backward_stage(batch, params, s, num_rows, update);
    backward_example_stages(batch, params, num_rows, update);
}
