/* SPDX-License-Identifier: Apache-2.0
 * One client: decoding, order and batches of its examples, its local steps, its statistics. */
#ifndef FED_CLIENT_H
#define FED_CLIENT_H

#include "net/net.h"

/* ---- decode.c ---- */

/* Decodes one image: scale * pixel + offset, then zeros up to the padded width. */
void fed_decode(const fed_kernels *kernels, const fed_client *client, size_t num_pixels,
                size_t example, float *row /* out [padded num_pixels] */);

/* ---- narrow.c ---- */

/* Pixels are classified as varying or fixed in groups of this many. */
enum { FED_GROUP = 2 };

/* A net in which a single input replaces the fixed pixels, which are the same in all of a client's
 * images. */
typedef struct fed_narrow {
    fed_net net; /* with a narrow first layer; the other layers are unchanged */
    fed_model model;
    fed_layer *layers;
    const fed_client *client;
    size_t num_pixels, num_tail; /* pixels; those after the last whole group, always kept */
    size_t num_kept, num_fixed;  /* groups */
    uint32_t *kept_groups;       /* [num_kept], ascending */
    uint32_t *fixed_groups;      /* [num_fixed], ascending */
    float *direction;            /* [padded num_pixels]: fixed pixels as a unit vector, else 0 */
    float length;                /* the norm of the fixed pixels, the value of the one input */
    uint8_t *scratch;            /* [an image's bytes] */
} fed_narrow;

size_t fed_narrow_num_bytes(const fed_net *net);
/* Compares all images. Returns 1 if the narrow net saves enough work, else 0. */
int fed_narrow_init(fed_narrow *narrow, const fed_net *net, const fed_client *client,
                    void *memory /* [fed_narrow_num_bytes], borrowed */);
/* Projects packed parameters of the full ("wide") net onto the narrow net. */
void fed_narrow_params(const fed_narrow *narrow, const fed_net *net, const float *wide,
                       float *packed /* out */);
/* Maps narrow parameters back after training: wide = server, moved by after - before. */
void fed_narrow_widen(const fed_narrow *narrow, const fed_net *net, const float *before,
                      const float *after, const float *server, float *wide /* out */);
/* Subtracts distance * r from `wide`, where r is the part of `vector` that the narrow layer cannot
 * represent: its fixed pixels minus their projection on `direction`. */
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

/* One thread's memory: a block that only grows. */
typedef struct fed_workspace {
    void *base;
    size_t num_bytes;
    float *start; /* packed: a client's own start (fed_own); NULL until one is needed */
} fed_workspace;

/* ---- client.c ---- */

/* The state from which every local step starts: see fed_terms. */
typedef struct fed_frozen {
    const float *slots; /* [slots, packed], NULL where the step needs none */
    size_t step_num;
} fed_frozen;

/* ---- affine_step.c ---- */

/* A step of the form that affine_step.c describes, and its progress. */
typedef struct fed_affine_step {
    double learning_rate, gradient_factor;
    double strength;     /* of the proximal term */
    const float *linear; /* flat, or NULL */
    const float *slot;   /* packed for the full net, or NULL */
    double linear_factor, slot_factor;
    double distance; /* how far the parameters have moved along the vector so far */
} fed_affine_step;

/* 1 if the step has the form that affine_step.c describes. `linear` is the client's own linear
 * term, or NULL. */
int fed_affine_init(fed_affine_step *affine, const fed_step *step, const fed_frozen *frozen,
                    const float *linear);
int fed_affine_has_vector(const fed_affine_step *affine);
/* Writes the constant vector v, packed for the full net. */
void fed_affine_vector(const fed_affine_step *affine, const fed_net *net, float *vector /* out */);
/* Turns the vector v into v - strength * server, as fed_affine_shift needs it. Both vectors are
 * packed for `net`. */
void fed_affine_add_proximal(const fed_affine_step *affine, const fed_net *net, const float *server,
                             float *vector /* in-out */);
/* The factor with which gradients are subtracted from the parameters. */
float fed_affine_gradient_rate(const fed_affine_step *affine, double rate_factor);
/* The rest of a local step, after the gradients are subtracted. Each call advances `distance` by
 * one step. */
fed_shift fed_affine_shift(fed_affine_step *affine, const float *vector /* borrowed */,
                           double rate_factor);

/* The settings and data that all clients of a call share. */
typedef struct fed_training {
    const fed_net *net;
    const fed_step *step;
    const fed_frozen *frozen;   /* or NULL */
    const double *rate_factors; /* see fed_terms; or NULL */
    const fed_tensors *tensors; /* see fed_terms; or NULL */
    fed_loss loss;              /* see fed_terms */
    const float *server;        /* packed */
    const float *origin;        /* packed start of params: the server's, or zeros for
                                   FED_STEP_GRADIENT */
    const atomic_int *cancel;
    int num_workers;          /* threads that share one client */
    const fed_bounds *bounds; /* NULL: deltas are not measured */
} fed_training;

/* Trains one client from the origin, writes its packed parameters, and measures its delta. */
int fed_train_client(const fed_training *training, const fed_client *client,
                     fed_workspace *workspace, float *params /* out, packed */,
                     fed_client_stats *stats /* out */);

/* Writes a client's model delta in flat layout. */
int fed_send_delta(const fed_net *net, const float *params, const float *origin /* packed */,
                   fed_workspace *workspace, float *delta /* out [P] */);

/* Scores examples first..first+num-1 of a client. If `order` is 1, it scores the examples that the
 * client's plan draws, and ignores first and num. */
int fed_score_client(const fed_net *net, const float *params, const fed_client *client, int order,
                     size_t first, size_t num, const atomic_int *cancel, fed_workspace *workspace,
                     fed_score *score /* out */, float *logits /* out [num, K] or NULL */);

#endif
