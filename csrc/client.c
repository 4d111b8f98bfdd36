/* SPDX-License-Identifier: Apache-2.0
 * One client: its examples in the order its plan draws, its local steps, its statistics. The
 * step loop knows neither layers nor optimizers: it walks the model table and the client-step
 * table. Nothing is allocated inside it. */
#include "core.h"

#include <stdlib.h>
#include <string.h>

/* Clients whose decoded pixels fit in here are decoded once, not once a visit. */
static const size_t max_decoded_floats = (size_t)2 << 20;
/* Examples scored at a time. */
enum { SCORE_BATCH = 2 * FED_LANES };

/* How a batch's rows come out of a client's pixels. */
enum { IN_PLACE, DECODED_BEFORE, DECODED_PER_BATCH };

/* Everything a thread needs for one client, carved out of its workspace. */
typedef struct local {
    const fed_net *net; /* the narrow one where there is one */
    const fed_client *client;
    const fed_narrow *narrow; /* or NULL */
    size_t batch_size;
    int pixels_mode;
    size_t num_pixels, width;             /* of an image, of a row; width is padded */
    float *decoded;                       /* [N or B, width]; read only if it was prepared */
    uint32_t *order_buffer;               /* [capacity] */
    uint32_t *indices;                    /* [B] */
    int32_t *labels;                      /* [B] */
    const float **rows[FED_MAX_LAYERS];   /* [B] each: a layer's inputs */
    float *inputs[FED_MAX_LAYERS];        /* [B, padded I] for layers after the first */
    float *lanes[FED_MAX_LAYERS];         /* [blocks, O, FED_LANES] */
    float *outputs_gradient;              /* [blocks, largest O but the last, FED_LANES] */
    float *gradient;                      /* packed; empty when the step is plain SGD */
    float *slots;                         /* [slots, packed] */
    float *linear;                        /* packed, or NULL */
    void *narrow_memory;                  /* for fed_narrow_init; NULL when scoring */
    float *narrow_server, *narrow_params; /* [packed] */
} local;

/* ---- Workspace ------------------------------------------------------------------------------- */

/* A cursor that first measures (base NULL) and then hands out. */
typedef struct carver {
    char *base;
    size_t used;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    void *piece = c->base != NULL ? c->base + c->used : NULL;
    const size_t unit = FED_ALIGNMENT;
    c->used += (count * size + unit - 1) / unit * unit;
    return piece;
}

static size_t num_blocks(size_t num_rows) { return (num_rows + FED_LANES - 1) / FED_LANES; }

static void carve_model(local *m, carver *c) {
    const fed_model *model = m->net->model;
    size_t most_hidden = 0;
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        m->rows[l] = carve(c, m->batch_size, sizeof *m->rows[l]);
        if (l > 0)
            m->inputs[l] = carve(c, m->batch_size * fed_padded(layer->num_inputs), sizeof(float));
        m->lanes[l] =
            carve(c, num_blocks(m->batch_size) * layer->num_outputs * FED_LANES, sizeof(float));
        if (l > 0 && layer->num_inputs > most_hidden) most_hidden = layer->num_inputs;
    }
    m->outputs_gradient =
        carve(c, num_blocks(m->batch_size) * most_hidden * FED_LANES, sizeof(float));
}

/* What a client needs beside the data's own sizes: scoring needs none of it. */
typedef struct needs {
    size_t order_capacity;
    size_t num_vectors; /* parameter-sized, beside the parameters themselves */
    int may_narrow, has_linear;
} needs;

static void carve_local(local *m, carver *c, size_t num_decoded, const needs *need) {
    m->decoded = carve(c, num_decoded * m->width, sizeof *m->decoded);
    m->order_buffer = carve(c, need->order_capacity, sizeof *m->order_buffer);
    m->indices = carve(c, m->batch_size, sizeof *m->indices);
    m->labels = carve(c, m->batch_size, sizeof *m->labels);
    carve_model(m, c);
    const size_t size = fed_net_size(m->net);
    m->gradient = carve(c, need->num_vectors * size, sizeof *m->gradient);
    m->slots = need->num_vectors > 1 && m->gradient != NULL ? m->gradient + size : NULL;
    if (need->has_linear) m->linear = carve(c, size, sizeof *m->linear);
    if (need->may_narrow) {
        m->narrow_memory = carve(c, fed_narrow_num_bytes(m->net), 1);
        m->narrow_server = carve(c, size, sizeof *m->narrow_server);
        m->narrow_params = carve(c, size, sizeof *m->narrow_params);
    }
}

static int workspace_reserve(fed_workspace *workspace, size_t num_bytes) {
    if (num_bytes <= workspace->num_bytes) return FED_OK;
    free(workspace->base);
    workspace->num_bytes = 0;
    workspace->base = fed_allocate(num_bytes);
    if (workspace->base == NULL) return FED_ERR_NO_MEMORY;
    /* Kernels compute with all lanes, also those beyond a ragged batch. What these hold reaches no
     * result, but it must have been written. */
    memset(workspace->base, 0, num_bytes);
    workspace->num_bytes = num_bytes;
    return FED_OK;
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

/* Reserves for the full net; a narrow one needs no more. */
static int local_init(local *m, const fed_net *net, const fed_client *client, size_t batch_size,
                      size_t num_visits, const needs *need, fed_workspace *workspace) {
    memset(m, 0, sizeof *m);
    m->net = net;
    m->client = client;
    m->batch_size = batch_size < num_visits ? batch_size : num_visits;
    m->num_pixels = net->model->num_inputs;
    m->width = fed_padded(m->num_pixels);
    m->pixels_mode = choose_decoding(client, m->width, num_visits);
    size_t num_decoded = m->pixels_mode == DECODED_BEFORE ? client->num_examples : m->batch_size;
    if (can_stay_in_place(client, m->num_pixels)) {
        m->pixels_mode = IN_PLACE;
        if (!need->may_narrow) num_decoded = 0;
    }
    carver measure = {NULL, 0};
    carve_local(m, &measure, num_decoded, need);
    const int status = workspace_reserve(workspace, measure.used);
    if (status != FED_OK) return status;
    carver hand_out = {workspace->base, 0};
    carve_local(m, &hand_out, num_decoded, need);
    return FED_OK;
}

/* ---- Decoding -------------------------------------------------------------------------------- */

static void decode_example(const local *m, size_t example, float *row) {
    if (m->narrow != NULL)
        fed_narrow_decode(m->narrow, example, row);
    else
        fed_decode(m->net->kernels, m->client, m->num_pixels, example, row);
}

/* Goes over to the narrow net. What is decoded before the first step is decided by the full width,
 * as the memory was. */
static void local_narrow(local *m, const fed_narrow *narrow, size_t num_visits) {
    if (m->pixels_mode == IN_PLACE)
        m->pixels_mode = choose_decoding(m->client, m->width, num_visits);
    m->narrow = narrow;
    m->net = &narrow->net;
    m->width = fed_padded(narrow->model.num_inputs);
}

/* Decodes what is to be decoded before the first step, unless a caller has done it for good. */
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

/* Points the first layer's rows at the batch's examples and copies their labels. */
static void gather(const local *m, size_t num_rows) {
    for (size_t b = 0; b < num_rows; b++) {
        const size_t example = m->indices[b];
        m->labels[b] = m->client->labels[example];
        switch (m->pixels_mode) {
        case IN_PLACE:
            m->rows[0][b] = (const float *)m->client->pixels + example * m->num_pixels;
            break;
        case DECODED_BEFORE:
            m->rows[0][b] = m->decoded + example * m->width;
            break;
        default:
            decode_example(m, example, m->decoded + b * m->width);
            m->rows[0][b] = m->decoded + b * m->width;
        }
    }
}

/* ---- One batch through the model ------------------------------------------------------------- */

/* A layer's outputs, examples in lanes, become the next layer's rows. */
static void lanes_to_rows(const float *lanes, size_t num_outputs, size_t num_rows, float *inputs,
                          const float **rows) {
    const size_t width = fed_padded(num_outputs);
    for (size_t b = 0; b < num_rows; b++) {
        const float *block = lanes + b / FED_LANES * FED_LANES * num_outputs;
        float *row = inputs + b * width;
        for (size_t o = 0; o < num_outputs; o++) row[o] = block[o * FED_LANES + b % FED_LANES];
        for (size_t o = num_outputs; o < width; o++) row[o] = 0;
        rows[b] = row;
    }
}

static fed_layer_pass layer_pass(const local *m, size_t l, size_t num_rows) {
    return (fed_layer_pass){
        .kernels = m->net->kernels,
        .layer = &m->net->model->layers[l],
        .rows = m->rows[l],
        .num_rows = num_rows,
        .lanes = m->lanes[l],
        .inputs_gradient = l > 0 ? m->outputs_gradient : NULL,
    };
}

/* Logits of the gathered batch, then loss, hits and scale times the logits' gradient. */
static void forward(const local *m, const float *params, size_t num_rows, float scale,
                    fed_score *score) {
    const size_t num_layers = m->net->model->num_layers, num_classes = m->net->model->num_classes;
    for (size_t l = 0; l < num_layers; l++) {
        const fed_layer_pass pass = layer_pass(m, l, num_rows);
        fed_layer_forward(&pass, params + m->net->starts[l]);
        if (l + 1 < num_layers)
            lanes_to_rows(m->lanes[l], pass.layer->num_outputs, num_rows, m->inputs[l + 1],
                          m->rows[l + 1]);
    }
    for (size_t first = 0; first < num_rows; first += FED_LANES) {
        const size_t rows_left = num_rows - first;
        m->net->kernels->softmax_xent(m->lanes[num_layers - 1] + first * num_classes, num_classes,
                                      m->labels + first,
                                      rows_left < FED_LANES ? rows_left : FED_LANES, scale, score);
    }
}

/* Adds the gradient that `forward` left at the logits, carried back to the parameters, to
 * target. */
static void backward(const local *m, const float *params, size_t num_rows, float *target) {
    for (size_t l = m->net->model->num_layers; l-- > 0;) {
        const fed_layer_pass pass = layer_pass(m, l, num_rows);
        if (l + 1 < m->net->model->num_layers)
            fed_layer_undo_activation(&pass, m->outputs_gradient);
        fed_layer_backward(&pass, params + m->net->starts[l], target + m->net->starts[l]);
    }
}

/* ---- Training -------------------------------------------------------------------------------- */

/* One local step. Plain SGD needs no gradient: the parameters are the target, -rate / B the
 * scale. */
static void local_step(const local *m, const fed_step *step, const fed_frozen *frozen,
                       const fed_local_step *at, size_t num_rows, fed_score *score) {
    float *params = at->params;
    float learning_rate;
    if (fed_step_is_plain_sgd(step, &learning_rate)) {
        learning_rate = (float)((double)learning_rate * at->rate_factor);
        forward(m, params, num_rows, -learning_rate / (float)num_rows, score);
        backward(m, params, num_rows, params);
        return;
    }
    if (fed_step_is_gradient(step)) {
        forward(m, at->server_params, num_rows, -1.0f / (float)at->num_visits, score);
        backward(m, at->server_params, num_rows, params);
        return;
    }
    memset(m->gradient, 0, at->num_params * sizeof *m->gradient);
    forward(m, params, num_rows, 1.0f / (float)num_rows, score);
    backward(m, params, num_rows, m->gradient);
    if (fed_step_has(step, FED_STEP_ANCHOR)) {
        fed_score of_server = {0, 0};
        forward(m, at->server_params, num_rows, -1.0f / (float)num_rows, &of_server);
        backward(m, at->server_params, num_rows, m->gradient);
    }
    if (frozen != NULL && frozen->slots != NULL)
        memcpy(m->slots, frozen->slots, fed_step_slots(step) * at->num_params * sizeof *m->slots);
    fed_step_run(step, at, m->slots);
}

/* All local steps of a client; server and origin (in) and params (out) as m->net packs them. */
static int run_steps(const local *m, const fed_step *step, const fed_frozen *frozen,
                     const double *rate_factors, const float *server, const float *origin,
                     float *params, const atomic_int *cancel, fed_client_stats *stats) {
    const fed_client *client = m->client;
    const size_t size = fed_net_size(m->net);
    memcpy(params, origin, size * sizeof *params);
    if (m->slots != NULL) fed_step_init_slots(step, size, m->slots);
    fed_local_step at = {.kernels = m->net->kernels,
                         .num_visits = fed_plan_visits(&client->plan, client->num_examples),
                         .num_params = size,
                         .params = params,
                         .server_params = server,
                         .gradient = m->gradient,
                         .linear = m->linear,
                         .rate_factor = 1};

    fed_order order;
    fed_order_init(&order, &client->plan, client->num_examples, &client->shuffle_key,
                   m->order_buffer);
    fed_score score = {0, 0};
    for (size_t num_rows; (num_rows = fed_order_next(&order, m->indices)) > 0;) {
        if (atomic_load_explicit(cancel, memory_order_relaxed)) return FED_ERR_CANCELLED;
        gather(m, num_rows);
        at.step_num = frozen != NULL ? frozen->step_num : at.step_num + 1;
        if (rate_factors != NULL) at.rate_factor = rate_factors[stats->num_batches];
        local_step(m, step, frozen, &at, num_rows, &score);
        stats->num_batches++;
        stats->num_examples += (int64_t)num_rows;
    }
    stats->loss_sum = score.loss_sum;
    stats->num_correct = score.num_correct;
    return FED_OK;
}

int fed_train_client(const fed_net *net, const fed_step *step, const fed_frozen *frozen,
                     const double *rate_factors, const float *server, const float *origin,
                     const fed_client *client, const atomic_int *cancel, fed_workspace *workspace,
                     float *params, fed_client_stats *stats) {
    memset(stats, 0, sizeof *stats);
    stats->is_finite = 1;
    const size_t size = fed_net_size(net);
    const size_t num_visits = fed_plan_visits(&client->plan, client->num_examples);
    if (num_visits == 0) {
        memcpy(params, origin, size * sizeof *params);
        return FED_OK;
    }

    float learning_rate;
    const int needs_gradient =
        !fed_step_is_plain_sgd(step, &learning_rate) && !fed_step_is_gradient(step);
    const needs need = {
        .order_capacity = fed_order_capacity(&client->plan, client->num_examples),
        .num_vectors = needs_gradient ? 1 + fed_step_slots(step) : 0,
        /* Frozen slots come from other clients' images, too. */
        .may_narrow = fed_layer_can_narrow(&net->model->layers[0]) && fed_step_keeps_span(step) &&
                      (frozen == NULL || frozen->slots == NULL),
        .has_linear = fed_step_has(step, FED_STEP_LINEAR) && client->own != NULL &&
                      client->own->linear != NULL,
    };
    local m;
    int status = local_init(&m, net, client, client->plan.batch_size, num_visits, &need, workspace);
    if (status != FED_OK) return status;
    if (need.has_linear) fed_net_pack(net, client->own->linear, m.linear);

    /* What was prepared is narrow if it can be, so it is of no use to steps that leave the span. */
    const fed_prepared *prepared = need.may_narrow ? client->prepared : NULL;
    fed_narrow found;
    if (prepared != NULL && prepared->is_narrow)
        local_narrow(&m, &prepared->narrow, num_visits);
    else if (prepared == NULL && need.may_narrow &&
             fed_narrow_init(&found, net, client, m.narrow_memory))
        local_narrow(&m, &found, num_visits);
    local_decode(&m, prepared);

    if (m.narrow != NULL) {
        fed_narrow_params(m.narrow, net, server, m.narrow_server);
        /* Zeros are zeros in any packing. */
        const float *narrow_origin = origin == server ? m.narrow_server : origin;
        status = run_steps(&m, step, frozen, rate_factors, m.narrow_server, narrow_origin,
                           m.narrow_params, cancel, stats);
        fed_narrow_widen(m.narrow, net, narrow_origin, m.narrow_params, origin, params);
    } else {
        status = run_steps(&m, step, frozen, rate_factors, server, origin, params, cancel, stats);
    }
    if (status != FED_OK) return status;
    if (!net->kernels->delta_is_finite(params, origin, size)) memset(stats, 0, sizeof *stats);
    return FED_OK;
}

int fed_send_delta(const fed_net *net, const float *params, const float *origin,
                   fed_workspace *workspace, float *delta) {
    const size_t size = fed_net_size(net), num_params = net->model->num_params;
    const int status = workspace_reserve(workspace, (size + num_params) * sizeof(double));
    if (status != FED_OK) return status;
    double *packed = workspace->base, *flat = packed + size;
    for (size_t p = 0; p < size; p++) packed[p] = params[p] - origin[p];
    fed_net_unpack(net, packed, flat);
    for (size_t p = 0; p < num_params; p++) delta[p] = (float)flat[p];
    return FED_OK;
}

/* ---- Scoring --------------------------------------------------------------------------------- */

int fed_score_client(const fed_net *net, const float *params, const fed_client *client, int order,
                     size_t first, size_t num, const atomic_int *cancel, fed_workspace *workspace,
                     fed_score *score) {
    *score = (fed_score){0, 0};
    const size_t num_visits = order ? fed_plan_visits(&client->plan, client->num_examples) : num;
    if (num_visits == 0) return FED_OK;
    const size_t batch_size = order ? client->plan.batch_size : SCORE_BATCH;
    const needs need = {
        .order_capacity = order ? fed_order_capacity(&client->plan, client->num_examples) : 0,
    };
    local m;
    const int status = local_init(&m, net, client, batch_size, num_visits, &need, workspace);
    if (status != FED_OK) return status;
    local_decode(&m, NULL);

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
        gather(&m, num_rows);
        forward(&m, params, num_rows, 1.0f, score);
        done += num_rows;
    }
    return FED_OK;
}
