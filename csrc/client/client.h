/* SPDX-License-Identifier: Apache-2.0
 * One client: its examples decoded, ordered and batched, its local steps, its statistics. */
#ifndef FED_CLIENT_H
#define FED_CLIENT_H

#include "net/net.h"

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
    float *direction;            /* [padded num_pixels]: the fixed ones as a unit vector, else 0 */
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
/* Takes `distance` times what the narrow form of a wide vector leaves out of it off a wide one. */
void fed_narrow_subtract_residual(const fed_narrow *narrow, const float *vector, double distance,
                                  float *wide /* in-out */);
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

/* One thread's memory: one block that only grows. */
typedef struct fed_workspace {
    void *base;
    size_t num_bytes;
    float *start; /* packed: where a client starts that has a start of its own; NULL before that */
} fed_workspace;

/* ---- client.c ---- */

/* What every local step starts from: see fed_terms. */
typedef struct fed_frozen {
    const float *slots; /* [slots, packed], NULL where the step needs none */
    size_t step_num;
} fed_frozen;

/* ---- drift.c ---- */

/* A step as drift.c takes it, and how far it has got. */
typedef struct fed_drift {
    double learning_rate, of_gradient;
    double strength;     /* of the pull to the server's parameters */
    const float *linear; /* flat, or NULL */
    const float *slot;   /* packed for the full net, or NULL */
    double of_linear, of_slot;
    double distance; /* that parameters have gone along the vector */
} fed_drift;

/* 1 if the step is one of these. `linear` is the client's own, or NULL. */
int fed_drift_init(fed_drift *drift, const fed_step *step, const fed_frozen *frozen,
                   const float *linear);
int fed_drift_has_vector(const fed_drift *drift);
/* Its vector, packed for the full net. */
void fed_drift_vector(const fed_drift *drift, const fed_net *net, float *vector /* out */);
/* The vector becomes what fed_drift_shift wants; both it and server are packed for `net`. */
void fed_drift_pull(const fed_drift *drift, const fed_net *net, const float *server,
                    float *vector /* in-out */);
/* What gradients are multiplied with as they are taken off the parameters. */
float fed_drift_gradient_rate(const fed_drift *drift, double rate_factor);
/* What else a local step does, once that is done: is counted as a step. */
fed_shift fed_drift_shift(fed_drift *drift, const float *vector /* borrowed */, double rate_factor);

/* What the clients of a call share. */
typedef struct fed_training {
    const fed_net *net;
    const fed_step *step;
    const fed_frozen *frozen;   /* or NULL */
    const double *rate_factors; /* see fed_terms; or NULL */
    const fed_tensors *tensors; /* the same */
    const float *class_weights; /* the same */
    const float *server;        /* packed */
    const float *origin;        /* packed: where parameters start, the server's or, where gradients
                                   are taken, zeros */
    const atomic_int *cancel;
    int num_workers; /* threads that share one client */
} fed_training;

/* Trains one client: params (packed) leave as the origin and arrive as the client's. */
int fed_train_client(const fed_training *training, const fed_client *client,
                     fed_workspace *workspace, float *params /* out, packed */,
                     fed_client_stats *stats /* out */);

/* Writes a client's model delta in flat order. */
int fed_send_delta(const fed_net *net, const float *params, const float *origin /* packed */,
                   fed_workspace *workspace, float *delta /* out [P] */);

/* Scores examples first..first+num-1 of a client, or, where `order` is set, the examples its plan
 * draws (first and num are then ignored). */
int fed_score_client(const fed_net *net, const float *params, const fed_client *client, int order,
                     size_t first, size_t num, const atomic_int *cancel, fed_workspace *workspace,
                     fed_score *score /* out */, float *logits /* out [num, K] or NULL */);

#endif
