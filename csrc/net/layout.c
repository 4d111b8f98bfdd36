/* SPDX-License-Identifier: Apache-2.0
 * Lays a model out as stages and the values between them, and packs parameters as the stages want
 * them. The computations of the stages are in layers/. */
#include "net.h"

#include <stdlib.h>
#include <string.h>

/* ---- Stages ---------------------------------------------------------------------------------- */

/* More parameters than this, their gradient and the copies that are derived from them do not stay
 * in the L2 cache while one image after the other passes. */
static const size_t most_params_by_example = (size_t)1 << 16;

/* Number of layers before the first dense one. */
static size_t num_front_layers(const fed_model *model) {
    size_t l = 0;
    while (l < model->num_layers && fed_kind_of(&model->layers[l])->ops->forward_batch == NULL) l++;
    return l;
}

/* 1 if a layer behind the front reads a value from inside it. */
static int reads_inside(const fed_model *model, size_t num_front) {
    for (size_t l = num_front; l < model->num_layers; l++)
        for (size_t i = 0; i < fed_num_inputs(&model->layers[l]); i++)
            if (l - model->layers[l].skips[i] < num_front) return 1;
    return 0;
}

/* 1 if layer l alone reads the image, or the output of the input layers. */
static int is_first(const fed_model *model, size_t l) {
    const fed_layer *layer = &model->layers[l];
    const size_t value = l - layer->skips[0];
    return value <= fed_num_input_layers(model) && fed_num_inputs(layer) == 1 &&
           fed_num_readers(model, value) == 1;
}

/* 1 if one stage computes layer l and the pool that follows: nothing else may read the value
 * between them. Such a stage takes one image after the other. */
static int takes_next(const fed_model *model, size_t l) {
    const fed_layer *layer = &model->layers[l];
    const fed_layer_kind *kind = fed_kind_of(layer);
    return kind->takes_pool != NULL && l + 1 < model->num_layers &&
           model->layers[l + 1].skips[0] == 0 && fed_num_readers(model, l + 1) == 1 &&
           kind->takes_pool(&model->layers[l + 1]) &&
           (is_first(model, l) || kind->num_params(layer) <= most_params_by_example);
}

static const fed_stage_ops *choose_ops(const fed_stage *stage) {
    const fed_layer_kind *kind = fed_kind_of(stage->layer);
    if (stage->is_first && kind->first != NULL) return kind->first;
    if (stage->is_last && kind->last != NULL) return kind->last;
    return stage->pool != NULL ? kind->with_pool : kind->ops;
}

/* Makes the stage of layer l, or of layers l and l + 1 if one stage computes both; returns their
 * number. places[l] is the value that holds the output of layer l - 1, or the image for l = 0. */
static size_t set_stage(fed_stage *stage, const fed_model *model, size_t l, const size_t *places) {
    const fed_layer *layer = &model->layers[l];
    *stage = (fed_stage){.layer = layer, .is_first = is_first(model, l)};
    for (size_t i = 0; i < fed_num_inputs(layer); i++)
        stage->sources[i] = places[l - layer->skips[i]];
    const int merges = takes_next(model, l);
    if (merges) stage->pool = &model->layers[l + 1];
    stage->shape = merges ? stage->pool->out : layer->out;
    const size_t num_layers = merges ? 2 : 1;
    stage->is_last = l + num_layers == model->num_layers;
    stage->ops = choose_ops(stage);
    return num_layers;
}

/* The front runs by batch, stage after stage, if a stage takes all images at once or if there are
 * many parameters. Otherwise each image passes the whole front before the next one does. */
static int front_runs_by_batch(const fed_net *net, size_t num_front) {
    const fed_model *model = net->model;
    const size_t num_params =
        num_front < model->num_layers ? model->layers[num_front].offset : model->num_params;
    for (size_t s = 0; s < net->num_front_stages; s++)
        if (net->stages[s].ops->forward_images != NULL) return 1;
    return num_front > 0 && (num_params > most_params_by_example || reads_inside(model, num_front));
}

/* ---- Values ---------------------------------------------------------------------------------- */

/* 1 if value v, the image or the output of the input layers, has neither border nor padding. */
static int is_raw(const fed_net *net, size_t v) {
    return v <= net->num_input_stages && net->stages[v].is_first && net->stages[v].ops->takes_raw;
}

int fed_net_has_value(const fed_net *net, size_t value) {
    if (value == 0) return !is_raw(net, 0);
    if (net->values[value].is_mapped) return 0;
    return value < net->num_stages || net->stages[value - 1].ops->forward_batch == NULL;
}

size_t fed_net_stored_value(const fed_net *net, size_t value) {
    return net->values[value].is_mapped ? net->stages[value - 1].sources[0] : value;
}

/* 1 if the stage that computes value v is a norm that the next stage, its only reader, can apply.
 */
static int can_be_mapped(const fed_net *net, size_t v) {
    const fed_stage *norm = &net->stages[v - 1], *reader = &net->stages[v];
    const size_t output = (size_t)(norm->layer - net->model->layers) + 1; /* as a value of layers */
    return norm->ops->can_map != NULL && norm->ops->can_map(norm->layer) &&
           reader->ops->applies_norms != NULL && reader->ops->applies_norms(reader->layer) &&
           reader->sources[0] == v && fed_num_readers(net->model, output) == 1;
}

/* A norm's outputs need not be written to memory and read again if the stage behind it applies the
 * norm to the values that it reads. */
static void choose_mapped(fed_net *net) {
    for (size_t v = net->num_input_stages + 1; v < net->num_stages; v++) {
        if (!can_be_mapped(net, v)) continue;
        net->values[v].is_mapped = net->stages[v - 1].is_mapped = 1;
        net->stages[v].norm = &net->stages[v - 1];
    }
}

/* Each value gets a border that is large enough for all of its readers. */
static void lay_out_values(fed_net *net) {
    fed_value *values = net->values;
    values[0] = (fed_value){.shape = net->model->layers[0].in};
    for (size_t s = 0; s < net->num_stages; s++)
        values[s + 1] = (fed_value){.shape = net->stages[s].shape};
    choose_mapped(net);
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        for (size_t i = 0; i < fed_num_inputs(stage->layer); i++) {
            fed_value *source = &values[stage->sources[i]];
            source->last_reader = s;
            values[fed_net_stored_value(net, stage->sources[i])].last_reader = s;
            if (stage->ops->widen_border != NULL) stage->ops->widen_border(stage, &source->border);
        }
    }
    for (size_t v = 0; v <= net->num_stages; v++) {
        fed_value *value = &values[v];
        value->buffer = is_raw(net, v) ? fed_image_buffer(&value->shape)
                                       : fed_bordered_buffer(&value->shape, &value->border,
                                                             fed_padded(value->shape.channels));
        if (value->is_mapped) value->buffer = values[fed_net_stored_value(net, v)].buffer;
    }
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

/* Floats of a stage's moving statistics in packed vectors. */
static size_t moving_size(const fed_stage *stage) {
    return fed_kind_of(stage->layer)->has_moving ? 2 * stage->in.pixel_stride : 0;
}

/* 1 if the backward pass ignores the gradient by value v where that value is 0. This is so if relu
 * computes the value, or a max-pool or a dropout behind a relu. */
static int ignores_zeros(const fed_net *net, size_t v) {
    if (v <= net->num_input_stages) return 0;
    const fed_stage *stage = &net->stages[v - 1];
    if (stage->layer->activation == FED_RELU) return 1;
    return stage->layer->activation == FED_LINEAR && fed_kind_of(stage->layer)->keeps_relu &&
           ignores_zeros(net, stage->sources[0]);
}

static void lay_out_stages(fed_net *net) {
    size_t num_draws = 0;
    net->size = 0;
    for (size_t s = 0; s < net->num_stages; s++) {
        fed_stage *stage = &net->stages[s];
        stage->in = net->values[stage->sources[0]].buffer;
        stage->in_2 = net->values[stage->sources[1]].buffer;
        stage->out = net->values[s + 1].buffer;
        stage->ignores_zeros = ignores_zeros(net, stage->sources[0]);
        if (stage->ops->lay_out != NULL) stage->ops->lay_out(stage);
        stage->start = net->size;
        net->size += stage->packed_size;
        const fed_layer_kind *kind = fed_kind_of(stage->layer);
        if (kind->num_draws != NULL) num_draws += kind->num_draws(stage->layer);
    }
    net->num_trained = net->size;
    for (size_t s = 0; s < net->num_stages; s++) {
        fed_stage *stage = &net->stages[s];
        stage->moving_start = net->size;
        net->size += moving_size(stage);
    }
    net->has_dropout = num_draws > 0;
    net->visit_bits = visit_bits(num_draws);
}

/* ---- Memory of values ------------------------------------------------------------------------ */

/* 1 if a value can use a place; with is_same, all values there must have the value's layout. */
static int fits(const fed_place *place, const fed_value *value, int is_inside, int is_same) {
    if (!place->is_free || place->is_inside != is_inside) return 0;
    return !is_same || (memcmp(&place->buffer, &value->buffer, sizeof place->buffer) == 0 &&
                        memcmp(&place->shape, &value->shape, sizeof place->shape) == 0);
}

/* Finds a place that the value fits. Returns the smallest place that is large enough; if all are
 * smaller, the largest; if none fits, SIZE_MAX. */
static size_t find_free(const fed_place *places, size_t num_places, const fed_value *value,
                        int is_inside, int is_same) {
    const size_t size = value->buffer.num_values;
    size_t best = SIZE_MAX;
    for (size_t p = 0; p < num_places; p++) {
        const fed_place *place = &places[p];
        if (!fits(place, value, is_inside, is_same)) continue;
        if (best == SIZE_MAX) {
            best = p;
            continue;
        }
        const int is_enough = place->size >= size, best_is_enough = places[best].size >= size;
        if (is_enough != best_is_enough
                ? is_enough
                : (is_enough ? place->size < places[best].size : place->size > places[best].size))
            best = p;
    }
    return best;
}

/* Gives value v memory that no other value needs meanwhile; returns its place. */
static size_t take_place(const fed_net *net, fed_place *places, size_t *num_places, size_t v,
                         int is_same) {
    const fed_value *value = &net->values[v];
    const int is_inside = v < net->num_example_stages;
    size_t p = find_free(places, *num_places, value, is_inside, is_same);
    if (p == SIZE_MAX) {
        p = (*num_places)++;
        places[p] =
            (fed_place){.buffer = value->buffer, .shape = value->shape, .is_inside = is_inside};
    }
    places[p].is_free = 0;
    places[p].size = fed_larger(places[p].size, value->buffer.num_values);
    return p;
}

enum { NO_PLACE = FED_MAX_LAYERS + 1 };

static size_t take_gradient_place(fed_net *net, size_t v) {
    return take_place(net, net->gradient_places, &net->num_gradient_places, v, 0);
}

/* Assigns places to the gradients by the values. In backward order a gradient is alive from the
 * first stage that writes it until the stage that computes its value. */
static void place_gradients(fed_net *net) {
    fed_value *values = net->values;
    for (size_t v = 0; v <= net->num_stages; v++) values[v].gradient_place = NO_PLACE;
    net->num_gradient_places = 0;
    if (fed_net_has_value(net, net->num_stages))
        values[net->num_stages].gradient_place = take_gradient_place(net, net->num_stages);
    for (size_t s = net->num_stages; s-- > 0;) {
        fed_stage *stage = &net->stages[s];
        for (size_t i = 0; i < fed_num_inputs(stage->layer); i++) {
            fed_value *source = &values[stage->sources[i]];
            stage->adds[i] = source->gradient_place != NO_PLACE;
            if (stage->adds[i] || stage->sources[i] <= net->num_input_stages) continue;
            source->gradient_place = take_gradient_place(net, stage->sources[i]);
        }
        if (values[s + 1].gradient_place != NO_PLACE)
            net->gradient_places[values[s + 1].gradient_place].is_free = 1;
    }
}

/* Assigns places to the values. Scoring uses them for all values, because it keeps nothing for a
 * backward pass; training uses them for the values that it does not keep. A value is alive from the
 * stage that computes it to its last reader, in the backward pass as well. The borders of a place
 * stay zeros, so its values must have the same layout. */
static void place_values(fed_net *net) {
    net->num_value_places = 0;
    for (size_t v = 0; v <= net->num_stages; v++) {
        if (fed_net_has_value(net, v))
            net->values[v].place = take_place(net, net->value_places, &net->num_value_places, v, 1);
        if (v == 0) continue;
        const fed_stage *stage = &net->stages[v - 1];
        for (size_t i = 0; i < fed_num_inputs(stage->layer); i++) {
            const size_t source = fed_net_stored_value(net, stage->sources[i]);
            if (fed_net_has_value(net, source) && net->values[source].last_reader == v - 1)
                net->value_places[net->values[source].place].is_free = 1;
        }
    }
}

/* ---- Example stages -------------------------------------------------------------------------- */

/* A part of a batch has at most PART_FLOATS floats in the inputs and outputs of a stage, which stay
 * in an L2 cache of 512 KiB or more. If that is fewer than LEAST_PART images, a part does not stay
 * in the cache anyway. It then has LARGE_PART images, so that fewer parts read all weights.
 * MOST_IMAGES bounds the memory for large batches of nets that have many weights. */
enum { PART_FLOATS = 96 * 1024, LEAST_PART = 2, LARGE_PART = 5, MOST_IMAGES = 64 };

/* Floats of the inputs and outputs of a stage for one example. */
static size_t num_seen(const fed_stage *stage) {
    return stage->in.num_values + stage->out.num_values;
}

/* 1 if the stages from number `end` on read only the last one of the values before them, which are
 * the image and the outputs of the earlier stages. */
static int is_closed(const fed_net *net, size_t end) {
    for (size_t v = 0; v < end; v++)
        if (net->values[v].last_reader >= end) return 0;
    return 1;
}

/* The number of leading stages that run by example, though the front as a whole runs by batch. They
 * have few parameters and large images: two images do not stay in the cache, while one does from
 * stage to stage. A batch norm needs whole batches. */
static size_t num_leading_stages(const fed_net *net) {
    size_t num = 0, most = 0;
    if (fed_net_has_moving(net)) return 0;
    for (size_t s = 0; s < net->num_front_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        if (2 * stage->packed_size > num_seen(stage)) break;
        most = fed_larger(most, num_seen(stage));
        if (is_closed(net, s + 1)) num = s + 1;
    }
    return most > PART_FLOATS / LEAST_PART ? num : 0;
}

static int can_mark(const fed_layer *layer) {
    return layer->in.height + layer->window_height <= FED_MOST_MARKS &&
           layer->in.width + layer->window_width <= FED_MOST_MARKS;
}

/* The output of the first stage that reads images, if the next stage alone reads it and can use its
 * background; else 0. */
static size_t background_value(const fed_net *net) {
    const size_t v = net->num_input_stages + 1;
    if (v >= net->num_example_stages) return 0;
    const fed_stage *first = &net->stages[v - 1], *next = &net->stages[v];
    const int is_marked = first->ops->marks_background && next->ops->uses_background &&
                          next->sources[0] == v && net->values[v].last_reader == v;
    return is_marked && can_mark(first->layer) && can_mark(next->layer) ? v : 0;
}

/* 1 if value v can be computed again: its stage can, and the value that the stage reads is kept. */
static int can_repeat(const fed_net *net, size_t v) {
    const fed_stage *stage = v > 0 ? &net->stages[v - 1] : NULL;
    return stage != NULL && fed_net_has_value(net, v) && stage->ops->repeat != NULL &&
           net->values[fed_net_stored_value(net, stage->sources[0])].is_kept;
}

/* Leading stages compute some values again for the backward pass. This takes less time than to read
 * them from memory outside the caches. */
static void choose_kept(fed_net *net) {
    for (size_t v = 0; v <= net->num_stages; v++)
        net->values[v].is_kept =
            !(net->repeats && v < net->num_example_stages && can_repeat(net, v));
}

/* ---- The net --------------------------------------------------------------------------------- */

/* Carves the net's arrays; returns the bytes. */
static size_t carve(fed_net *net, size_t num_layers, void *memory, size_t **places) {
    fed_carver c = {memory, 0};
    net->stages = fed_carve(&c, num_layers, sizeof *net->stages);
    net->values = fed_carve(&c, num_layers + 1, sizeof *net->values);
    net->gradient_places = fed_carve(&c, num_layers + 1, sizeof *net->gradient_places);
    net->value_places = fed_carve(&c, num_layers + 1, sizeof *net->value_places);
    *places = fed_carve(&c, num_layers + 1, sizeof **places);
    return c.used;
}

size_t fed_net_num_bytes(size_t num_layers) {
    fed_net net;
    size_t *places;
    return carve(&net, num_layers, NULL, &places);
}

void fed_net_lay_out(fed_net *net, const fed_model *model, void *memory) {
    size_t *places;
    *net = (fed_net){.model = model, .kernels = fed_active_kernels()};
    carve(net, model->num_layers, memory, &places);
    const size_t num_front = num_front_layers(model);
    places[0] = 0;
    for (size_t l = 0; l < model->num_layers;) {
        fed_stage *stage = &net->stages[net->num_stages++];
        const size_t first = l;
        l += set_stage(stage, model, l, places);
        for (size_t each = first; each < l; each++) places[each + 1] = net->num_stages;
        if (l <= num_front) net->num_front_stages = net->num_stages;
    }
    net->num_input_stages = fed_num_input_layers(model);
    if (net->num_input_stages > 0) {
        const fed_layer *last = &model->layers[net->num_input_stages - 1];
        net->mixup = fed_kind_of(last)->mixes ? last : NULL;
    }
    lay_out_values(net);
    lay_out_stages(net);
    const int is_by_batch = front_runs_by_batch(net, num_front);
    net->num_example_stages = is_by_batch ? num_leading_stages(net) : net->num_front_stages;
    net->repeats = is_by_batch && net->num_example_stages > 0;
    choose_kept(net);
    place_gradients(net);
    net->background_value = background_value(net);
    place_values(net);
}

/* Offsets in a buffer are int32_t (layers/table.c). The border that two readers need together can
 * be larger than the border that each needs. */
static int borders_fit(const fed_net *net) {
    for (size_t v = 0; v <= net->num_stages; v++) {
        const fed_border *border = &net->values[v].border;
        const size_t sum = border->top + border->left + border->bottom + border->right;
        if (sum > 0 && net->values[v].buffer.num_values > FED_MAX_VALUES / 4) return 0;
    }
    return 1;
}

int fed_net_init(fed_net *net, const fed_model *model) {
    *net = (fed_net){0};
    const int status = fed_model_check(model);
    if (status != FED_OK) return status;
    void *memory = fed_allocate(fed_net_num_bytes(model->num_layers));
    if (memory == NULL) return FED_ERR_NO_MEMORY;
    fed_net_lay_out(net, model, memory);
    net->memory = memory;
    return borders_fit(net) ? FED_OK : FED_ERR_ARGUMENT;
}

void fed_net_free(fed_net *net) {
    free(net->memory);
    *net = (fed_net){0};
}

int fed_net_has_moving(const fed_net *net) { return net->size > net->num_trained; }

/* ---- Parameters ------------------------------------------------------------------------------ */

void fed_net_pack(const fed_net *net, const float *flat, float *packed) {
    fed_net_pack_trained(net, flat, packed);
    memset(packed + net->num_trained, 0, (net->size - net->num_trained) * sizeof *packed);
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const size_t channels = stage->layer->out.channels, padded = stage->in.pixel_stride;
        if (moving_size(stage) == 0) continue;
        for (size_t row = 0; row < 2; row++)
            memcpy(packed + stage->moving_start + row * padded,
                   flat + stage->layer->moving_offset + row * channels, channels * sizeof *packed);
    }
}

void fed_net_pack_trained(const fed_net *net, const float *flat, float *packed) {
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
    fed_net_unpack_moving(net, packed + net->num_trained, flat);
}

void fed_net_unpack_moving(const fed_net *net, const double *moving, double *flat) {
    for (size_t s = 0; s < net->num_stages; s++) {
        const fed_stage *stage = &net->stages[s];
        const size_t channels = stage->layer->out.channels, padded = stage->in.pixel_stride;
        if (moving_size(stage) == 0) continue;
        for (size_t row = 0; row < 2; row++)
            memcpy(flat + stage->layer->moving_offset + row * channels,
                   moving + (stage->moving_start - net->num_trained) + row * padded,
                   channels * sizeof *flat);
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
        net->kernels->to_floats(doubles + first,
                                fed_kind_of(stage->layer)->num_params(stage->layer), flat + first);
    }
    if (!fed_net_has_moving(net)) return;
    const size_t first = net->num_trained, first_flat = fed_num_trained(net->model);
    net->kernels->delta_to_doubles(after + first, before + first, net->size - first,
                                   packed + first);
    fed_net_unpack_moving(net, packed + first, doubles);
    net->kernels->to_floats(doubles + first_flat, net->model->num_params - first_flat,
                            flat + first_flat);
}

int fed_net_num_workers(const fed_net *net, size_t num_clients, int num_threads) {
    return num_clients < (size_t)num_threads && net->num_front_stages > 0 ? num_threads : 1;
}

size_t fed_net_part_size(const fed_net *net, size_t batch_size, int is_training) {
    size_t most = 1, all = 0;
    if (is_training && fed_net_has_moving(net)) return batch_size;
    if (net->num_front_stages == net->num_example_stages) return batch_size;
    for (size_t s = net->num_example_stages; s < net->num_front_stages; s++) {
        most = fed_larger(most, num_seen(&net->stages[s]));
        all += net->stages[s].out.num_values;
    }
    const size_t fitting = PART_FLOATS / most;
    size_t size = fitting >= LEAST_PART ? fitting : LARGE_PART;
    /* Each part reads all parameters and adds up their gradients. This saves time only if the
     * parameters are fewer than the part's values. */
    if (net->size > size * all) size = MOST_IMAGES;
    if (size >= batch_size) return batch_size;
    return fed_pieces(batch_size, fed_pieces(batch_size, size));
}

int fed_net_can_narrow(const fed_net *net) {
    return net->stages[0].is_first && net->stages[0].ops->can_narrow;
}
