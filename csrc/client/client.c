/* SPDX-License-Identifier: Apache-2.0
 * One client: its examples in the order that its plan draws, its local steps, its statistics. The
 * step loop does not depend on layers or optimizers: batch.c runs the model's stages, step.c the
 * step table. The loop allocates nothing. */
#include "client.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* If a client has at most this many pixels in all, they are decoded once and not at each visit. */
static const size_t max_decoded_floats = (size_t)2 << 20;
/* Examples scored at a time. */
enum { SCORE_BATCH = 2 * FED_LANES };

/* How the rows of a batch are made from a client's pixels. */
enum { IN_PLACE, DECODED_BEFORE, DECODED_PER_BATCH };

/* Everything that a thread needs for one client, carved out of its workspace. */
typedef struct local {
    fed_batch batch; /* of the first worker; its net is the narrow net, if there is one */
    const fed_client *client;
    const fed_narrow *narrow;     /* or NULL */
    size_t batch_size, part_size; /* see fed_net_part_size */
    size_t num_part_workers;      /* threads that process parts, each in memory of its own */
    int pixels_mode;
    size_t num_pixels, width;             /* of an image; of a row, padded */
    float *decoded;                       /* [N, width], read-only if it was prepared; or [workers,
                                             part + most_extra_rows, width] */
    uint32_t *order_buffer;               /* [capacity] */
    uint32_t *indices;                    /* [B] */
    int32_t *labels;                      /* [workers, part] */
    uint32_t *drawn_partners;             /* [B], places in the batch: see fed_mixup_draw; NULL: the
                                             model does not mix examples */
    uint32_t *partners;                   /* [workers, part]: see fed_mixing */
    int32_t *other_labels;                /* [workers, part], of the partners */
    char *worker_memory;                  /* memory of the other workers' batches */
    size_t worker_bytes;                  /* of each */
    float *gradient;                      /* packed; for a step that needs the whole gradient */
    float *part_gradients;                /* packed, of all parts of a wave except part 0; zeros
                                             between waves */
    fed_score *part_scores;               /* [parts] */
    float *slots;                         /* [slots, packed] */
    float *flat_params, *flat_server;     /* [P] each, only for a step that needs tensors */
    float *flat_gradient;                 /* [P], likewise */
    double *flat_scratch;                 /* [packed + P] */
    float *linear;                        /* packed, or NULL */
    fed_affine_step *affine;              /* see affine_step.c; or NULL */
    float *affine_vector, *wide_vector;   /* packed, or NULL; wide_vector only for a narrow net */
    void *narrow_memory;                  /* for fed_narrow_init; NULL when scoring */
    float *narrow_server, *narrow_params; /* [packed] */
} local;

/* ---- Workspace ------------------------------------------------------------------------------- */

/* The optional parts of a workspace; scoring needs only the order buffer. */
typedef struct needs {
    int is_training, may_narrow, whole_gradient, on_tensors, has_linear, has_shift, num_workers;
    size_t order_capacity, num_slots;
} needs;

static void carve_flat(local *m, fed_carver *c) {
    const size_t num_params = m->batch.net->model->num_params;
    m->flat_params = fed_carve(c, num_params, sizeof *m->flat_params);
    m->flat_server = fed_carve(c, num_params, sizeof *m->flat_server);
    m->flat_gradient = fed_carve(c, num_params, sizeof *m->flat_gradient);
    m->flat_scratch = fed_carve(c, m->batch.net->size + num_params, sizeof *m->flat_scratch);
}

static size_t num_parts(const local *m, size_t num_rows) {
    return fed_pieces(num_rows, m->part_size);
}

/* Memory for a batch: the indices and labels of its examples, the workers' memory, and the scores
 * and gradients of its parts. */
static void carve_batch(local *m, fed_carver *c) {
    m->indices = fed_carve(c, m->batch_size, sizeof *m->indices);
    m->labels = fed_carve(c, m->num_part_workers * m->part_size, sizeof *m->labels);
    if (m->batch.is_training && m->batch.net->mixup != NULL) {
        m->drawn_partners = fed_carve(c, m->batch_size, sizeof *m->drawn_partners);
        m->partners = fed_carve(c, m->num_part_workers * m->part_size, sizeof *m->partners);
        m->other_labels = fed_carve(c, m->num_part_workers * m->part_size, sizeof *m->other_labels);
    }
    const size_t used = c->used;
    fed_batch_carve(&m->batch, c);
    m->worker_bytes = c->used - used;
    m->part_scores = fed_carve(c, num_parts(m, m->batch_size), sizeof *m->part_scores);
    m->worker_memory = fed_carve(c, m->num_part_workers - 1, m->worker_bytes);
    m->part_gradients =
        fed_carve(c, (m->num_part_workers - 1) * m->batch.net->size, sizeof *m->part_gradients);
}

static void carve_local(local *m, fed_carver *c, size_t num_decoded, const needs *need) {
    const size_t size = m->batch.net->size;
    m->decoded = fed_carve(c, num_decoded * m->width, sizeof *m->decoded);
    m->order_buffer = fed_carve(c, need->order_capacity, sizeof *m->order_buffer);
    carve_batch(m, c);
    if (need->whole_gradient) m->gradient = fed_carve(c, size, sizeof *m->gradient);
    if (need->on_tensors) carve_flat(m, c);
    if (need->num_slots > 0) m->slots = fed_carve(c, need->num_slots * size, sizeof *m->slots);
    if (need->has_linear) m->linear = fed_carve(c, size, sizeof *m->linear);
    if (need->has_shift) m->affine_vector = fed_carve(c, size, sizeof *m->affine_vector);
    if (need->has_shift && need->may_narrow)
        m->wide_vector = fed_carve(c, size, sizeof *m->wide_vector);
    if (need->may_narrow) {
        m->narrow_memory = fed_carve(c, fed_narrow_num_bytes(m->batch.net), 1);
        m->narrow_server = fed_carve(c, size, sizeof *m->narrow_server);
        m->narrow_params = fed_carve(c, size, sizeof *m->narrow_params);
    }
}

static int workspace_reserve(fed_workspace *workspace, size_t num_bytes) {
    if (num_bytes <= workspace->num_bytes) return FED_OK;
    free(workspace->base);
    workspace->num_bytes = 0;
    workspace->base = fed_allocate(num_bytes);
    if (workspace->base == NULL) return FED_ERR_NO_MEMORY;
    /* Kernels also compute with the unused lanes of a short batch. These values do not reach any
     * result, but they must be initialised. */
    memset(workspace->base, 0, num_bytes);
    workspace->num_bytes = num_bytes;
    return FED_OK;
}

/* The batch of a worker after the first, in the worker's own memory. */
static fed_batch batch_at(const local *m, size_t worker) {
    fed_batch batch = m->batch;
    fed_carver c = {m->worker_memory + (worker - 1) * m->worker_bytes, 0};
    fed_batch_carve(&batch, &c);
    return batch;
}

static int can_stay_in_place(const fed_client *client, size_t num_pixels) {
    return client->pixel_type == FED_PIXELS_FLOAT32 && client->scale == 1 && client->offset == 0 &&
           fed_padded(num_pixels) == num_pixels;
}

static int choose_decoding(const fed_client *client, size_t width, size_t num_visits) {
    return num_visits > client->num_examples && client->num_examples <= max_decoded_floats / width
               ? DECODED_BEFORE
               : DECODED_PER_BATCH;
}

/* Divides a batch into parts, and the parts among workers. */
static void choose_parts(local *m, const fed_net *net, size_t batch_size, int is_training,
                         int num_workers) {
    m->batch_size = batch_size;
    m->part_size = fed_net_part_size(net, batch_size, is_training);
    const size_t parts = num_parts(m, batch_size);
    m->num_part_workers = fed_smaller(parts, (size_t)num_workers);
    m->batch.net = net;
    m->batch.batch_size = m->part_size;
    m->batch.most_extra_rows = is_training && net->mixup != NULL && parts > 1 ? m->part_size : 0;
    m->batch.is_training = is_training;
    m->batch.num_workers = parts > 1 ? 1 : num_workers;
}

/* Reserves memory for the full net; a narrow net does not need more. */
static int local_init(local *m, const fed_net *net, const fed_client *client, size_t batch_size,
                      size_t num_visits, const needs *need, fed_workspace *workspace) {
    memset(m, 0, sizeof *m);
    m->client = client;
    choose_parts(m, net, fed_smaller(batch_size, num_visits), need->is_training, need->num_workers);
    m->num_pixels = net->model->num_inputs;
    m->width = fed_padded(m->num_pixels);
    m->pixels_mode = choose_decoding(client, m->width, num_visits);
    size_t num_decoded = m->pixels_mode == DECODED_BEFORE
                             ? client->num_examples
                             : m->num_part_workers * (m->part_size + m->batch.most_extra_rows);
    if (can_stay_in_place(client, m->num_pixels)) {
        m->pixels_mode = IN_PLACE;
        if (!need->may_narrow) num_decoded = 0;
    }
    fed_carver measure = {NULL, 0};
    carve_local(m, &measure, num_decoded, need);
    const int status = workspace_reserve(workspace, measure.used);
    if (status != FED_OK) return status;
    fed_carver hand_out = {workspace->base, 0};
    carve_local(m, &hand_out, num_decoded, need);
    memset(m->part_gradients, 0, (m->num_part_workers - 1) * net->size * sizeof *m->part_gradients);
    fed_batch_clear(&m->batch);
    for (size_t worker = 1; worker < m->num_part_workers; worker++) {
        const fed_batch batch = batch_at(m, worker);
        fed_batch_clear(&batch);
    }
    return FED_OK;
}

size_t fed_batch_bytes(const fed_model *model, size_t batch_size, size_t num_clients,
                       int num_threads) {
    if (batch_size < 1 || batch_size > FED_MAX_BATCH) return 0;
    if (num_clients < 1 || num_threads < 1 || num_threads > FED_MAX_THREADS) return 0;
    fed_net net;
    fed_carver of_client = {NULL, 0}, of_all = {NULL, 0};
    if (fed_net_init(&net, model) == FED_OK) {
        local m = {0};
        const int num_workers = fed_net_num_workers(&net, num_clients, num_threads);
        choose_parts(&m, &net, batch_size, 1, num_workers);
        carve_batch(&m, &of_client);
        if (m.part_size < batch_size) fed_carve(&of_client, net.size, sizeof *m.gradient);
        const size_t num_at_once = fed_smaller(num_clients, (size_t)(num_threads / num_workers));
        fed_carve(&of_all, num_at_once, of_client.used);
    }
    fed_net_free(&net);
    return of_all.used;
}

/* ---- Decoding -------------------------------------------------------------------------------- */

static void decode_example(const local *m, size_t example, float *row) {
    if (m->narrow != NULL)
        fed_narrow_decode(m->narrow, example, row);
    else
        fed_decode(m->batch.net->kernels, m->client, m->num_pixels, example, row);
}

/* Switches to the narrow net. Whether pixels are decoded in advance still depends on the full
 * width, because memory was reserved for that width. */
static void local_narrow(local *m, const fed_narrow *narrow, size_t num_visits) {
    if (m->pixels_mode == IN_PLACE)
        m->pixels_mode = choose_decoding(m->client, m->width, num_visits);
    m->narrow = narrow;
    m->batch.net = &narrow->net;
    m->width = fed_padded(narrow->model.num_inputs);
}

/* Uses the prepared images if there are any; else decodes all images if the mode is
 * DECODED_BEFORE. */
static void local_decode(local *m, const fed_prepared *prepared) {
    if (prepared != NULL) {
        m->pixels_mode = DECODED_BEFORE;
        m->decoded = prepared->decoded;
    } else if (m->pixels_mode == DECODED_BEFORE) {
        for (size_t e = 0; e < m->client->num_examples; e++)
            decode_example(m, e, m->decoded + e * m->width);
    }
}

/* ---- Batches --------------------------------------------------------------------------------- */

static int32_t *labels_at(const local *m, size_t worker) {
    return m->labels + worker * m->part_size;
}

/* Copies the label of an example. Labels were checked at the start of the call, but other code may
 * have written to borrowed or mapped memory since. Each label is therefore read once and checked
 * again. */
static int copy_label(const local *m, size_t example, int32_t *out) {
    const int32_t label = ((const volatile int32_t *)m->client->labels)[example];
    *out = label;
    return (uint32_t)label < m->batch.net->model->num_classes ? FED_OK : FED_ERR_CHANGED;
}

/* Points image b of the batch to an example. */
static void place_example(const local *m, const fed_batch *batch, size_t worker, size_t b,
                          size_t example) {
    const float **row = &batch->images[b];
    float *decoded;
    switch (m->pixels_mode) {
    case IN_PLACE:
        *row = (const float *)m->client->pixels + example * m->num_pixels;
        break;
    case DECODED_BEFORE:
        *row = m->decoded + example * m->width;
        break;
    default:
        decoded = m->decoded + (worker * (m->part_size + batch->most_extra_rows) + b) * m->width;
        decode_example(m, example, decoded);
        *row = decoded;
    }
}

/* Points the batch's images to some of its examples and copies their labels. */
static int gather(const local *m, const fed_batch *batch, size_t worker, size_t first,
                  size_t num_rows) {
    for (size_t b = 0; b < num_rows; b++) {
        const size_t example = m->indices[first + b];
        const int status = copy_label(m, example, &labels_at(m, worker)[b]);
        if (status != FED_OK) return status;
        place_example(m, batch, worker, b, example);
    }
    return FED_OK;
}

/* ---- Training -------------------------------------------------------------------------------- */

static const float *own_linear(const fed_client *client) {
    return client->own != NULL ? client->own->linear : NULL;
}

static double max_distance(const fed_client *client) {
    return client->own != NULL ? client->own->max_distance : 0;
}

/* How a client's local steps update its parameters. */
typedef struct step_settings {
    const fed_step *step;
    int only_gradient;       /* gradients at the server's parameters: see FED_STEP_GRADIENT */
    fed_affine_step *affine; /* gradients are accumulated into the parameters; or NULL */
    int has_anchor;          /* see FED_STEP_ANCHOR */
    size_t num_visits;       /* examples processed in the round */
    const fed_loss *loss;
    double max_distance; /* see fed_own */
} step_settings;

static fed_update choose_update(const local *m, const step_settings *settings,
                                const fed_local_step *at) {
    fed_update update = {.step = settings->step,
                         .at = at,
                         .piece = m->batch.pieces,
                         .piece_size = m->batch.piece_size};
    if (settings->affine != NULL || settings->only_gradient)
        update.sum = at->params;
    else
        update.sum = m->gradient; /* NULL: pieces go to the step */
    return update;
}

/* The factor of the gradient of the logits. */
static float choose_scale(const step_settings *settings, double rate_factor, size_t num_rows) {
    if (settings->affine != NULL)
        return -fed_affine_gradient_rate(settings->affine, rate_factor) / (float)num_rows;
    if (settings->only_gradient) return -1.0f / (float)settings->num_visits;
    return 1.0f / (float)num_rows;
}

/* A wave of a batch's parts: the context that fed_share passes to each part. */
typedef struct parts_call {
    const local *m;
    const step_settings *settings;
    const float *params;
    size_t num_rows, first_visit;
    size_t first_part, num_parts; /* of the wave, at most one for each worker */
    float scale, share;           /* share: see fed_mixup_draw */
    const fed_update *update;
    atomic_int status;
} parts_call;

/* The gradient of part 1, 2, ... of the wave. Part 0 adds its gradient directly to the sum. */
static float *part_gradient(const local *m, size_t part) {
    return m->part_gradients + (part - 1) * m->batch.net->size;
}

/* Mixes the examples of a part, which gather has placed, with their partners, and copies the
 * partners' labels. */
static int mix_part(const parts_call *call, const fed_batch *batch, size_t worker, size_t first,
                    size_t num_rows, fed_targets *targets /* in-out */) {
    const local *m = call->m;
    uint32_t *partners = m->partners + worker * m->part_size;
    int32_t *other_labels = m->other_labels + worker * m->part_size;
    fed_mixing mixing = {.partners = partners, .share = call->share};
    for (size_t b = 0; b < num_rows; b++) {
        const size_t place = m->drawn_partners[first + b], example = m->indices[place];
        const int status = copy_label(m, example, &other_labels[b]);
        if (status != FED_OK) return status;
        if (first <= place && place < first + num_rows) {
            partners[b] = (uint32_t)(place - first);
            continue;
        }
        const size_t extra = num_rows + mixing.num_extra_rows++;
        place_example(m, batch, worker, extra, example);
        fed_batch_open_visit(batch, &m->client->dropout_key, extra, call->first_visit + place);
        partners[b] = (uint32_t)extra;
    }
    fed_batch_mix_inputs(batch, num_rows, &mixing);
    targets->other_labels = other_labels;
    targets->share = call->share;
    return FED_OK;
}

static void run_part(void *context, size_t part, int thread) {
    parts_call *call = context;
    const local *m = call->m;
    const size_t worker = (size_t)thread, first = (call->first_part + part) * m->part_size;
    const size_t num = fed_smaller(m->part_size, call->num_rows - first);
    static const fed_step_row row = {.kind = FED_STEP_GRADIENT};
    static const fed_step subtraction = {.rows = &row, .num_rows = 1};
    /* Only workers after the first copy the batch: its pointers for each layer are so many that a
     * copy takes a tenth of a small step. */
    fed_batch other;
    const fed_batch *batch = &m->batch;
    if (worker > 0) {
        other = batch_at(m, worker);
        batch = &other;
    }
    fed_update update = *call->update;
    fed_local_step adding = *update.at;
    float scale = call->scale;
    fed_targets targets = {.labels = labels_at(m, worker)};
    fed_batch_open_dropout(batch, &m->client->dropout_key, call->first_visit + first);
    int status = gather(m, batch, worker, first, num);
    if (status == FED_OK && m->drawn_partners != NULL)
        status = mix_part(call, batch, worker, first, num, &targets);
    if (status != FED_OK) {
        call->status = status;
        return;
    }
    if (m->part_size < call->num_rows) {
        /* Each piece of a part's gradient is completed before it is added to the sum, so that the
         * order of addition does not depend on the number of workers. */
        adding.params = update.sum;
        if (part > 0) adding.params = part_gradient(m, part);
        update = (fed_update){.step = &subtraction,
                              .at = &adding,
                              .piece = batch->pieces,
                              .piece_size = batch->piece_size};
        scale = -scale;
    }
    fed_batch_derive(batch, call->params);
    fed_batch_forward(batch, call->params, num, &targets, scale, call->settings->loss,
                      &m->part_scores[call->first_part + part], NULL);
    fed_batch_backward(batch, call->params, num, &update);
}

/* Floats of the gradient that a thread adds up at a time. */
enum { SUM_FLOATS = 1 << 14 };

/* Adds a piece of the gradients of parts 1, 2, ... of a wave, in order, and sets it to zero. */
static void add_parts(void *context, size_t piece, int worker) {
    const parts_call *call = context;
    const local *m = call->m;
    const size_t first = piece * SUM_FLOATS;
    const size_t num = fed_smaller(SUM_FLOATS, m->batch.net->size - first);
    (void)worker;
    for (size_t part = 1; part < call->num_parts; part++) {
        float *gradient = part_gradient(m, part) + first;
        m->batch.net->kernels->add(call->update->sum + first, gradient, num);
        memset(gradient, 0, num * sizeof *gradient);
    }
}

/* Runs the next parts of a batch, one at each worker, and adds up their gradients. */
static void run_wave(parts_call *call, size_t num_left) {
    const local *m = call->m;
    const int num_workers = (int)m->num_part_workers;
    call->num_parts = fed_smaller(num_left, m->num_part_workers);
    fed_share(num_workers, call->num_parts, run_part, call);
    if (call->num_parts > 1 && call->status == FED_OK)
        fed_share(num_workers, fed_pieces(m->batch.net->size, SUM_FLOATS), add_parts, call);
    call->first_part += call->num_parts;
}

/* A forward and a backward pass with given parameters; the gradient goes to `update`. Parts run in
 * waves of one part for each worker, so that only the gradients of one wave need memory.
 * Gradients are added up in the order of the parts, so the result has the same bytes for any number
 * of workers.
 */
static int go_over_batch(const local *m, const step_settings *settings, const float *params,
                         size_t num_rows, size_t first_visit, float scale, const fed_update *update,
                         fed_score *score) {
    parts_call call = {.m = m,
                       .settings = settings,
                       .params = params,
                       .num_rows = num_rows,
                       .first_visit = first_visit,
                       .scale = scale,
                       .update = update,
                       .status = FED_OK};
    if (m->drawn_partners != NULL)
        call.share = fed_mixup_draw(m->batch.net->mixup->constants[0], &m->client->mixup_key,
                                    first_visit, num_rows, m->drawn_partners);
    const size_t num = num_parts(m, num_rows);
    for (size_t part = 0; part < num; part++)
        m->part_scores[part] = part == 0 ? *score : (fed_score){0, 0};
    while (call.first_part < num && call.status == FED_OK) run_wave(&call, num - call.first_part);
    if (call.status != FED_OK) return call.status;
    *score = m->part_scores[0];
    for (size_t part = 1; part < num; part++) {
        score->loss_sum += m->part_scores[part].loss_sum;
        score->num_correct += m->part_scores[part].num_correct;
    }
    return FED_OK;
}

/* A step on flat tensors: unpacks the gradient, and packs the updated parameters again. */
static void step_on_tensors(const local *m, const step_settings *settings,
                            const fed_local_step *at) {
    const fed_net *net = m->batch.net;
    fed_local_step flat = *at;
    flat.num_params = fed_num_trained(net->model);
    flat.params = m->flat_params;
    flat.server_params = m->flat_server;
    flat.linear = own_linear(m->client);
    fed_net_flatten(net, m->gradient, m->flat_scratch, m->flat_gradient);
    fed_step_run(settings->step, &flat, 0, flat.num_params, m->flat_gradient);
    fed_net_pack_trained(net, m->flat_params, at->params);
}

static int local_step(const local *m, const step_settings *settings, const fed_local_step *at,
                      size_t num_rows, size_t first_visit, fed_score *score) {
    const float *params = settings->only_gradient ? at->server_params : at->params;
    fed_update update = choose_update(m, settings, at);
    if (m->gradient != NULL) memset(m->gradient, 0, at->num_params * sizeof *m->gradient);
    const float scale = choose_scale(settings, at->rate_factor, num_rows);
    fed_shift shift;
    const fed_shift *last = NULL;
    if (m->affine_vector != NULL) {
        shift = fed_affine_shift(settings->affine, m->affine_vector, at->rate_factor);
        last = &shift;
    }
    update.shift = settings->has_anchor ? NULL : last;
    int status = go_over_batch(m, settings, params, num_rows, first_visit, scale, &update, score);
    if (settings->has_anchor && status == FED_OK) {
        fed_score of_server = {0, 0};
        update.shift = last;
        status = go_over_batch(m, settings, at->server_params, num_rows, first_visit, -scale,
                               &update, &of_server);
    }
    if (status != FED_OK) return status;
    if (m->flat_params != NULL)
        step_on_tensors(m, settings, at);
    else if (m->gradient != NULL)
        fed_step_run(settings->step, at, 0, m->batch.net->num_trained, m->gradient);
    fed_batch_move_statistics(&m->batch, at->params);
    return FED_OK;
}

/* Moves the trained parameters towards the server's until they are within max_distance. */
static void project(const local *m, const step_settings *settings, const fed_local_step *at) {
    const fed_net *net = m->batch.net;
    double max_abs;
    const double distance =
        sqrt(net->kernels->delta_size(at->params, at->server_params, net->num_trained, &max_abs));
    if (!(distance > settings->max_distance)) return;
    const double kept = settings->max_distance / distance;
    for (size_t p = 0; p < net->num_trained; p++) {
        const double server = (double)at->server_params[p];
        at->params[p] = (float)(server + kept * ((double)at->params[p] - server));
    }
    if (m->flat_params != NULL) fed_net_flatten(net, at->params, m->flat_scratch, m->flat_params);
}

/* 1 if a batch was the last one of an epoch, or of the whole stream. */
static int ends_epoch(const fed_order *order, size_t visits_before, size_t visits_after) {
    return order->visits_left == 0 ||
           visits_before / order->num_examples != visits_after / order->num_examples;
}

/* The number of epochs that a single pass over the data represents. It is more than 1 only for
 * FED_STEP_GRADIENT with whole epochs: each epoch gives the same gradient, unless dropout, mixed
 * examples or a batch norm make the gradient depend on the order. */
static size_t equal_epochs(const local *m, const step_settings *settings) {
    const fed_client *client = m->client;
    const int is_whole = settings->num_visits == client->plan.epochs * client->num_examples;
    const fed_net *net = m->batch.net;
    const int depends_on_order = net->has_dropout || net->mixup != NULL || fed_net_has_moving(net);
    return settings->only_gradient && is_whole && !depends_on_order ? client->plan.epochs : 1;
}

/* Makes moving statistics start from the server's, even for FED_STEP_GRADIENT, where all other
 * parameters start from zeros. For that step, subtract_moving afterwards reduces them to their
 * change. */
static void copy_moving(const fed_net *net, const float *server, float *params) {
    memcpy(params + net->num_trained, server + net->num_trained,
           (net->size - net->num_trained) * sizeof *params);
}

static void subtract_moving(const fed_net *net, const float *server, float *params) {
    for (size_t p = net->num_trained; p < net->size; p++) params[p] -= server[p];
}

/* Runs all local steps of a client; server, origin and params (out) are packed for the batch's
 * net. */
static int run_steps(const local *m, const fed_training *training, const float *server,
                     const float *origin, float *params, fed_client_stats *stats) {
    const fed_client *client = m->client;
    const fed_step *step = training->step;
    const fed_frozen *frozen = training->frozen;
    const size_t size = m->batch.net->size;
    memcpy(params, origin, size * sizeof *params);
    copy_moving(m->batch.net, server, params);
    if (m->slots != NULL) fed_step_init_slots(step, size, m->slots);
    step_settings settings = {.step = step,
                              .only_gradient = fed_step_is_gradient(step),
                              .affine = m->affine,
                              .has_anchor = fed_step_has(step, FED_STEP_ANCHOR),
                              .num_visits = fed_plan_visits(&client->plan, client->num_examples),
                              .loss = &training->loss};
    if (!settings.only_gradient) settings.max_distance = max_distance(client);
    fed_local_step at = {.kernels = m->batch.net->kernels,
                         .num_params = size,
                         .params = params,
                         .server_params = server,
                         .slots = m->slots,
                         .frozen_slots = frozen != NULL ? frozen->slots : NULL,
                         .linear = m->linear,
                         .rate_factor = 1,
                         .tensors = training->tensors};

    const size_t num_equal = equal_epochs(m, &settings);
    settings.num_visits /= num_equal;
    fed_plan plan = client->plan;
    plan.epochs /= num_equal;
    fed_order order;
    fed_order_init(&order, &plan, client->num_examples, &client->shuffle_key, m->order_buffer);
    fed_score score = {0, 0};
    for (size_t num_rows; (num_rows = fed_order_next(&order, m->indices)) > 0;) {
        if (atomic_load_explicit(training->cancel, memory_order_relaxed)) return FED_ERR_CANCELLED;
        at.step_num = frozen != NULL ? frozen->step_num : at.step_num + 1;
        if (training->rate_factors != NULL)
            at.rate_factor = training->rate_factors[stats->num_batches];
        const size_t num_visits = (size_t)stats->num_examples;
        const int status = local_step(m, &settings, &at, num_rows, num_visits, &score);
        if (status != FED_OK) return status;
        if (settings.max_distance > 0 && ends_epoch(&order, num_visits, num_visits + num_rows))
            project(m, &settings, &at);
        stats->num_batches++;
        stats->num_examples += (int64_t)num_rows;
    }
    if (settings.only_gradient) subtract_moving(m->batch.net, server, params);
    stats->loss_sum = score.loss_sum * (double)num_equal;
    stats->num_correct = score.num_correct * (int64_t)num_equal;
    stats->num_examples *= (int64_t)num_equal;
    stats->num_batches = (int64_t)fed_plan_batches(&client->plan, client->num_examples);
    return FED_OK;
}

/* 1 if the client's batches are processed in parts, whose gradients must be added up before they
 * can move the parameters. */
static int runs_in_parts(const fed_training *training, const fed_client *client) {
    const size_t num_visits = fed_plan_visits(&client->plan, client->num_examples);
    const size_t batch_size = fed_smaller(client->plan.batch_size, num_visits);
    return fed_net_part_size(training->net, batch_size, 1) < batch_size;
}

static needs find_needs(const fed_training *training, const fed_client *client,
                        const fed_affine_step *affine /* or NULL */) {
    const fed_net *net = training->net;
    const fed_step *step = training->step;
    const int has_slots = training->frozen != NULL && training->frozen->slots != NULL;
    return (needs){
        .is_training = 1,
        .num_workers = training->num_workers,
        /* The narrow net cannot represent frozen slots: they also come from the images of other
         * clients, in which other pixels are fixed. Only affine steps correct for this. Nor can the
         * narrow net measure the whole distance from the server's parameters, which max_distance
         * bounds. */
        .may_narrow = fed_net_can_narrow(net) && max_distance(client) == 0 &&
                      (affine != NULL || (fed_step_keeps_span(step) && !has_slots)),
        .has_shift = affine != NULL && (affine->strength > 0 || fed_affine_has_vector(affine)),
        .whole_gradient = affine == NULL && !fed_step_is_gradient(step) &&
                          (!fed_step_is_elementwise(step) || runs_in_parts(training, client)),
        .on_tensors = fed_step_needs_tensors(step),
        .has_linear =
            affine == NULL && fed_step_has(step, FED_STEP_LINEAR) && own_linear(client) != NULL,
        .order_capacity = fed_order_capacity(&client->plan, client->num_examples),
        .num_slots = affine == NULL ? fed_step_slots(step) : 0,
    };
}

/* Switches to the narrow net if there is one, and decodes. */
static void local_open(local *m, const fed_training *training, const needs *need, size_t num_visits,
                       fed_narrow *found) {
    const fed_net *net = training->net;
    /* Prepared images may be narrow if the net allows it, so a step that needs the full net does
     * not use them. */
    const int can_use = need->may_narrow || !fed_net_can_narrow(net);
    const fed_prepared *prepared = can_use ? m->client->prepared : NULL;
    if (prepared != NULL && prepared->is_narrow)
        local_narrow(m, &prepared->narrow, num_visits);
    else if (prepared == NULL && need->may_narrow &&
             fed_narrow_init(found, net, m->client, m->narrow_memory))
        local_narrow(m, found, num_visits);
    local_decode(m, prepared);
    if (m->narrow != NULL) fed_narrow_params(m->narrow, net, training->server, m->narrow_server);
}

/* Makes the constant vector of the steps (see affine_step.c) for the net that is trained. */
static void local_affine_vector(const local *m, const fed_training *training) {
    const size_t size = m->batch.net->size;
    if (!fed_affine_has_vector(m->affine)) {
        memset(m->affine_vector, 0, size * sizeof *m->affine_vector);
    } else if (m->narrow == NULL) {
        fed_affine_vector(m->affine, training->net, m->affine_vector);
    } else {
        fed_affine_vector(m->affine, training->net, m->wide_vector);
        fed_narrow_params(m->narrow, training->net, m->wide_vector, m->affine_vector);
    }
    fed_affine_add_proximal(m->affine, m->batch.net,
                            m->narrow != NULL ? m->narrow_server : training->server,
                            m->affine_vector);
}

/* Runs the steps on the narrow net and maps the result back to all pixels. */
static int run_narrow_steps(const local *m, const fed_training *training, float *params,
                            fed_client_stats *stats) {
    const float *origin = training->origin;
    /* An origin of zeros is the same in every layout. */
    const float *narrow_origin = origin == training->server ? m->narrow_server : origin;
    const int status =
        run_steps(m, training, m->narrow_server, narrow_origin, m->narrow_params, stats);
    fed_narrow_widen(m->narrow, training->net, narrow_origin, m->narrow_params, origin, params);
    if (m->wide_vector != NULL && fed_affine_has_vector(m->affine))
        fed_narrow_subtract_residual(m->narrow, m->wide_vector, m->affine->distance, params);
    return status;
}

/* If there are bounds, writes the size of a client's delta without the moving statistics. Returns
 * whether the delta is finite. */
static int measure(const fed_training *training, const float *params, fed_client_stats *stats) {
    const fed_kernels *kernels = training->net->kernels;
    const size_t size = training->net->size, num_trained = training->net->num_trained;
    const float *origin = training->origin;
    if (training->bounds == NULL) return kernels->delta_is_finite(params, origin, size);
    const double squares = kernels->delta_size(params, origin, num_trained, &stats->max_abs);
    stats->norm = stats->max_abs > training->bounds->max_abs ? 0 : sqrt(squares);
    return isfinite(squares) &&
           kernels->delta_is_finite(params + num_trained, origin + num_trained, size - num_trained);
}

int fed_train_client(const fed_training *training, const fed_client *client,
                     fed_workspace *workspace, float *params, fed_client_stats *stats) {
    const fed_net *net = training->net;
    memset(stats, 0, sizeof *stats);
    stats->is_finite = 1;
    const size_t num_visits = fed_plan_visits(&client->plan, client->num_examples);
    if (num_visits == 0) {
        memcpy(params, training->origin, net->size * sizeof *params);
        return FED_OK;
    }

    fed_affine_step affine;
    const int is_affine =
        !runs_in_parts(training, client) &&
        fed_affine_init(&affine, training->step, training->frozen, own_linear(client));
    const needs need = find_needs(training, client, is_affine ? &affine : NULL);
    local m;
    int status = local_init(&m, net, client, client->plan.batch_size, num_visits, &need, workspace);
    if (status != FED_OK) return status;
    m.affine = is_affine ? &affine : NULL;
    fed_narrow found;
    local_open(&m, training, &need, num_visits, &found);
    if (need.has_shift) local_affine_vector(&m, training);
    if (need.has_linear) fed_net_pack(net, own_linear(client), m.linear);
    if (need.on_tensors) {
        fed_net_flatten(net, training->server, m.flat_scratch, m.flat_server);
        memcpy(m.flat_params, m.flat_server, net->model->num_params * sizeof *m.flat_params);
    }

    if (m.narrow != NULL)
        status = run_narrow_steps(&m, training, params, stats);
    else
        status = run_steps(&m, training, training->server, training->origin, params, stats);
    if (status != FED_OK) return status;
    if (!measure(training, params, stats)) memset(stats, 0, sizeof *stats);
    return FED_OK;
}

int fed_send_delta(const fed_net *net, const float *params, const float *origin,
                   fed_workspace *workspace, float *delta) {
    const size_t size = net->size, num_params = net->model->num_params;
    const int status = workspace_reserve(workspace, (size + num_params) * sizeof(double));
    if (status != FED_OK) return status;
    fed_net_unpack_delta(net, params, origin, workspace->base, delta);
    return FED_OK;
}

/* ---- Scoring --------------------------------------------------------------------------------- */

int fed_score_client(const fed_net *net, const float *params, const fed_client *client, int order,
                     size_t first, size_t num, const atomic_int *cancel, fed_workspace *workspace,
                     fed_score *score, float *logits) {
    *score = (fed_score){0, 0};
    const size_t num_visits = order ? fed_plan_visits(&client->plan, client->num_examples) : num;
    if (num_visits == 0) return FED_OK;
    const size_t batch_size = order ? client->plan.batch_size : SCORE_BATCH;
    const needs need = {
        .num_workers = 1,
        .order_capacity = order ? fed_order_capacity(&client->plan, client->num_examples) : 0,
    };
    local m;
    int status = local_init(&m, net, client, batch_size, num_visits, &need, workspace);
    if (status != FED_OK) return status;
    local_decode(&m, NULL);
    fed_batch_derive(&m.batch, params);

    fed_order drawn;
    if (order)
        fed_order_init(&drawn, &client->plan, client->num_examples, &client->shuffle_key,
                       m.order_buffer);
    for (size_t done = 0; done < num_visits;) {
        if (atomic_load_explicit(cancel, memory_order_relaxed)) return FED_ERR_CANCELLED;
        size_t num_rows = num_visits - done < m.batch_size ? num_visits - done : m.batch_size;
        if (order)
            num_rows = fed_order_next(&drawn, m.indices);
        else
            for (size_t b = 0; b < num_rows; b++) m.indices[b] = (uint32_t)(first + done + b);
        for (size_t at = 0, num_at_once; at < num_rows; at += num_at_once) {
            num_at_once = fed_smaller(m.part_size, num_rows - at);
            status = gather(&m, &m.batch, 0, at, num_at_once);
            if (status != FED_OK) return status;
            const fed_targets targets = {.labels = m.labels};
            fed_batch_forward(&m.batch, params, num_at_once, &targets, 1.0f, NULL, score,
                              logits != NULL ? logits + (done + at) * net->model->num_classes
                                             : NULL);
        }
        done += num_rows;
    }
    return FED_OK;
}
