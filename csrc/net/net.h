/* SPDX-License-Identifier: Apache-2.0
 * A model laid out as stages for the kernels, and a batch of examples going through them. */
#ifndef FED_NET_H
#define FED_NET_H

#include "layers/layer.h"
#include "memory.h"

/* ---- The net (model.c) ----------------------------------------------------------------------- */

/* A model laid out for the kernels. */
typedef struct fed_net {
    const fed_model *model;
    const fed_kernels *kernels;
    fed_stage stages[FED_MAX_LAYERS];
    size_t num_stages;
    size_t num_front; /* stages before the first dense one: an example goes through all of them
                         before the next example does */
    size_t size;      /* of the packed parameters */
    int has_dropout;
    unsigned visit_bits; /* a visit's dropout masks come from 2^visit_bits Philox blocks */
} fed_net;

int fed_net_init(fed_net *net, const fed_model *model);
/* The same for a model that is known to be consistent. */
void fed_net_lay_out(fed_net *net, const fed_model *model);
void fed_net_pack(const fed_net *net, const float *flat /* [P] */, float *packed /* out */);
void fed_net_unpack(const fed_net *net, const double *packed, double *flat /* out [P] */);
/* The same of floats. */
void fed_net_flatten(const fed_net *net, const float *packed,
                     double *scratch /* [packed size + P] */, float *flat /* out [P] */);
/* Writes after - before. */
void fed_net_unpack_delta(const fed_net *net, const float *after, const float *before,
                          double *scratch /* [packed size + P] */, float *flat /* out [P] */);
/* 1 if an example's way through the net is long enough for threads to share a batch. */
int fed_net_can_share(const fed_net *net);
/* 1 if the first layer can be trained on fewer inputs (narrow.c). */
int fed_net_can_narrow(const fed_net *net);

/* ---- A batch (batch.c) ----------------------------------------------------------------------- */

/* Examples of a batch: the size of more of them could overflow. */
enum { FED_MAX_BATCH = 1 << 24 };

/* What a net needs to take a batch forward and, for training, back. By stage; [B] is one for each
 * example of the batch, or a single one that all examples use in turn. */
typedef struct fed_batch {
    const fed_net *net;
    size_t batch_size;
    int is_training;
    int num_workers;                      /* threads that share it */
    const float **rows[FED_MAX_LAYERS];   /* [B] of dense stages: their inputs; those of stage 0 are
                                             the images, set by the caller */
    float *values[FED_MAX_LAYERS + 1];    /* [B] stage->in, then what the last stage puts out */
    float *gradients[FED_MAX_LAYERS + 1]; /* [B] by values, in the front one a block */
    char *saved[FED_MAX_LAYERS];          /* [B, saved_bytes] */
    float *derived[FED_MAX_LAYERS];
    float *by_params[FED_MAX_LAYERS]; /* [blocks, packed_size]: an example-wise stage's gradient */
    float *lanes[FED_MAX_LAYERS];     /* [blocks, O, FED_LANES] of the first and last stage */
    fed_rng *dropout; /* [B], where masks are drawn from; NULL: there is no dropout */
    float *pieces;    /* [num_workers, piece_size] */
    char *scratch;    /* [num_workers, scratch_bytes] */
    size_t piece_size, scratch_bytes; /* largest of all stages */
} fed_batch;

/* Batches of rows [num_rows, stride] and blocks of lanes [num_values, FED_LANES], either way; what
 * a row holds beyond num_values becomes zeros. */
void fed_rows_to_lanes(const float *rows, size_t stride, size_t num_rows, size_t num_values,
                       float *lanes /* out */);
void fed_lanes_to_rows(const float *lanes, size_t num_values, size_t num_rows,
                       float *rows /* out */, size_t stride);

void fed_batch_carve(fed_batch *batch, fed_carver *carver);
/* Before a client's first batch: whatever else used the memory, borders are zeros again. */
void fed_batch_clear(const fed_batch *batch);
/* Takes parameters that have moved to where `forward` reads them. */
void fed_batch_derive(const fed_batch *batch, const float *params);
/* Before a training batch, whose first example is the client's visit number first_visit, from 0: a
 * visit's masks are drawn, stage by stage, from its own 2^visit_bits blocks of the stream. */
void fed_batch_open_dropout(const fed_batch *batch, const fed_key *key, size_t first_visit);
/* From batch->rows[0] to logits, then loss, hits and scale times the logits' gradient, as
 * softmax_xent has it. `logits` takes a copy of them if it is not NULL. */
void fed_batch_forward(const fed_batch *batch, const float *params, size_t num_rows,
                       const int32_t *labels, float scale,
                       const float *class_weights /* [K] or NULL */, fed_score *score,
                       float *logits /* out [num_rows, K] or NULL */);
/* Parts of the three, one stage each; forward of what lies before, and backward of what lies
 * behind, must have been done. */
void fed_batch_derive_stage(const fed_batch *batch, const float *params, size_t s);
void fed_batch_forward_stage(const fed_batch *batch, const float *params, size_t s,
                             size_t num_rows);
void fed_batch_backward_stage(const fed_batch *batch, const float *params, size_t s,
                              size_t num_rows, const fed_update *update);
/* Carries the gradient that `forward` left at the logits back to the parameters. */
void fed_batch_backward(const fed_batch *batch, const float *params, size_t num_rows,
                        const fed_update *update);

#endif
