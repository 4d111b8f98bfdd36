/* SPDX-License-Identifier: Apache-2.0
 * What the core's own files share and nobody else sees.
 *
 *   cohort.c  which thread trains or scores which client; the only file with threads
 *   client.c  one client: batches in, local steps, statistics out
 *   decode.c  from stored pixels to a row of floats
 *   narrow.c  a client's own, smaller first layer: pixels that never change become one input
 *   model.c   the layer table: how a row of a model computes
 *   step.c    the client-step table: how a gradient moves the parameters
 *   sum.c     the ordered sum of model deltas
 *
 * Inside the core parameters are "packed": each layer lays its tensors out as its kernels want them
 * (a dense kernel as [O, width], rows padded with zeros). Training, deltas and sums are
 * elementwise, so they stay packed; fed_net_pack and fed_net_unpack convert once per call.
 */
#ifndef FED_CORE_H
#define FED_CORE_H

#include "fed.h"
#include "kernels/kernels.h"

enum { FED_MAX_LAYERS = 64, FED_BLOCK_CLIENTS = 8, FED_ALIGNMENT = 64 };

static inline size_t fed_padded(size_t num_floats) {
    return (num_floats + FED_PAD - 1) / FED_PAD * FED_PAD;
}

/* Aligned memory; NULL when short. Released with free(). */
void *fed_allocate(size_t num_bytes);

/* ---- model.c ---- */

/* A model laid out for the kernels. */
typedef struct fed_net {
    const fed_model *model;
    const fed_kernels *kernels;
    size_t starts[FED_MAX_LAYERS + 1]; /* packed, of each layer; the last is the size */
} fed_net;

/* One layer at work on one batch. */
typedef struct fed_layer_pass {
    const fed_kernels *kernels;
    const fed_layer *layer;
    const float *const *rows; /* [num_rows][padded I] */
    size_t num_rows;
    float *lanes;           /* [blocks, O, FED_LANES]: outputs, then the gradient by them */
    float *inputs_gradient; /* out [blocks, I, FED_LANES], or NULL: the first layer needs none */
} fed_layer_pass;

int fed_net_init(fed_net *net, const fed_model *model);
/* The same for a model that is known to be consistent. */
void fed_net_lay_out(fed_net *net, const fed_model *model);
static inline size_t fed_net_size(const fed_net *net) {
    return net->starts[net->model->num_layers];
}
void fed_net_pack(const fed_net *net, const float *flat /* [P] */, float *packed /* out */);
void fed_net_unpack(const fed_net *net, const double *packed, double *flat /* out [P] */);
/* 1 if a layer can be trained on fewer inputs (narrow.c). */
int fed_layer_can_narrow(const fed_layer *layer);
/* Fills pass->lanes from pass->rows, the activation applied. */
void fed_layer_forward(const fed_layer_pass *pass, const float *packed_layer);
/* Writes pass->inputs_gradient, then *adds* the layer's parameter gradient to target, which may
 * be the layer's own parameters: plain SGD is an accumulation with a scaled gradient. pass->lanes
 * hold the gradient by what the activation was applied to. */
void fed_layer_backward(const fed_layer_pass *pass, const float *packed_layer, float *target);
/* Turns a layer's outputs, in pass->lanes, into that gradient, given the one by the outputs. */
void fed_layer_undo_activation(const fed_layer_pass *pass,
                               const float *outputs_gradient /* [blocks, O, FED_LANES] */);

/* ---- decode.c ---- */

/* Decodes one image, scale * pixel + offset and then zeros to the padded width. */
void fed_decode(const fed_kernels *kernels, const fed_client *client, size_t num_pixels,
                size_t example, float *row /* out [padded num_pixels] */);

/* ---- narrow.c ---- */

/* Pixels are told apart in groups of this many. */
enum { FED_GROUP = 2 };

/* A net in which the pixels that are alike in all of a client's images are one input. */
typedef struct fed_narrow {
    fed_net net; /* the narrow one; the rest of the model is unchanged */
    fed_model model;
    fed_layer layers[FED_MAX_LAYERS];
    const fed_client *client;
    size_t num_pixels, num_tail; /* of an image; those after its last whole group, always kept */
    size_t num_kept, num_fixed;  /* groups */
    uint32_t *kept_groups;       /* [num_kept], ascending */
    uint32_t *fixed_groups;      /* [num_fixed], ascending */
    float *direction;            /* [num_fixed, FED_GROUP]: the fixed pixels, as a unit vector */
    float length;                /* theirs as they are: the value of the one input */
    uint8_t *scratch;            /* [an image's bytes] */
} fed_narrow;

size_t fed_narrow_num_bytes(const fed_net *net);
/* Looks at all images. 1 if the narrow net is worth using, else 0. */
int fed_narrow_init(fed_narrow *narrow, const fed_net *net, const fed_client *client,
                    void *memory /* [fed_narrow_num_bytes], borrowed */);
void fed_narrow_params(const fed_narrow *narrow, const fed_net *net, const float *wide,
                       float *packed /* out */);
/* Undoes fed_narrow_params after training: `before` and `after` are narrow, `wide` gets the
 * result. */
void fed_narrow_widen(const fed_narrow *narrow, const fed_net *net, const float *before,
                      const float *after, const float *server, float *wide /* out */);
/* Decodes one image into a row of the narrow net. */
void fed_narrow_decode(const fed_narrow *narrow, size_t example, float *row /* out */);

struct fed_prepared {
    const fed_model *model;
    size_t num_examples;
    int is_narrow;
    fed_narrow narrow;
    void *narrow_memory;
    float *decoded; /* [N, width of the narrow or the full net] */
};

/* ---- step.c ---- */

/* 1 if the rows are plain SGD, which needs no gradient of its own; writes its learning rate. */
int fed_step_is_plain_sgd(const fed_step *step, float *learning_rate);
/* 1 if nothing moves until the last batch: see FED_STEP_GRADIENT. */
int fed_step_is_gradient(const fed_step *step);
/* 1 if parameters move only by combinations of their gradients, whatever the basis: then a layer
 * may be trained narrow. */
int fed_step_keeps_span(const fed_step *step);
/* 1 if a row of that kind is in the table. */
int fed_step_has(const fed_step *step, int kind);

/* A local step as its rows see it. */
typedef struct fed_local_step {
    const fed_kernels *kernels;
    size_t step_num;   /* of the client in this round, from 1 */
    size_t num_visits; /* examples the client processes in the round */
    size_t num_params;
    float *params;              /* in-out [P] */
    const float *server_params; /* [P] */
    float *gradient;            /* in, scratch [P] */
    const float *linear;        /* [P], or NULL */
    double rate_factor;         /* share of the learning rate */
} fed_local_step;

void fed_step_run(const fed_step *step, const fed_local_step *at, float *slots);

/* ---- client.c ---- */

/* One thread's memory: one block that only grows. */
typedef struct fed_workspace {
    void *base;
    size_t num_bytes;
} fed_workspace;

/* What every local step starts from: see fed_terms. */
typedef struct fed_frozen {
    const float *slots; /* [slots, packed], NULL where the step needs none */
    size_t step_num;
} fed_frozen;

/* Trains one client: params (packed) leave as the origin, the server's or where gradients are taken
 * zeros, and arrive as the client's. */
int fed_train_client(const fed_net *net, const fed_step *step,
                     const fed_frozen *frozen,   /* or NULL */
                     const double *rate_factors, /* see fed_terms; or NULL */
                     const float *server,        /* packed */
                     const float *origin,        /* packed */
                     const fed_client *client, const atomic_int *cancel, fed_workspace *workspace,
                     float *params /* out, packed */, fed_client_stats *stats /* out */);

/* Writes a client's model delta in flat order. */
int fed_send_delta(const fed_net *net, const float *params, const float *origin /* packed */,
                   fed_workspace *workspace, float *delta /* out [P] */);

/* Scores examples first..first+num-1 of a client, or, where `order` is set, the examples its plan
 * draws (first and num are then ignored). */
int fed_score_client(const fed_net *net, const float *params, const fed_client *client, int order,
                     size_t first, size_t num, const atomic_int *cancel, fed_workspace *workspace,
                     fed_score *score /* out */);

/* ---- sum.c ---- */

/* Appends a finished block; *values is exchanged for a buffer of zeros of the same size. closed
 * says that the block held fewer than FED_BLOCK_CLIENTS, so none may follow. */
int fed_sum_push(fed_sum *sum, double **values, double weight, int closed);
int fed_sum_is_open(const fed_sum *sum);
size_t fed_sum_size(const fed_sum *sum);

#endif
