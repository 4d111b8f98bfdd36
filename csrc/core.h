/* SPDX-License-Identifier: Apache-2.0
 * What the core's own files share and nobody else sees.
 *
 *   cohort.c  which thread trains which client, and the order of addition
 *   score.c   which thread scores which examples
 *   share.c   a batch over threads, where they outnumber the clients; after these three no file
 *             has threads
 *   exercise.c  one stage over and over, for benchmarks
 *   team.c    the threads' memory, and what they are given
 *   client.c  one client: batches in, local steps, statistics out
 *   batch.c   one batch through the stages of a net and back
 *   decode.c  from stored pixels to a row of floats
 *   narrow.c  a client's own, smaller first layer: pixels that never change become one input
 *   prepare.c  what no round of a client's training changes, kept by the caller
 *   model.c   the model table: checked, and laid out as stages for the kernels
 *   layers/   how each kind of layer is packed and computes; a new kind is a new file
 *   step.c    the client-step table: how a gradient moves the parameters
 *   adafactor.c  the one step that looks at a tensor's rows and columns
 *   drift.c   steps whose gradients go right into the parameters, and what else moves these
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

static inline size_t fed_larger(size_t a, size_t b) { return a > b ? a : b; }

/* Aligned memory; NULL when short. Released with free(). */
void *fed_allocate(size_t num_bytes);

/* ---- model.c ---- */

/* Where the values of one example lie between two stages: pixels of `channels` padded with zeros to
 * a multiple of FED_PAD floats, inside a border of zeros. All in floats. A vector is one pixel. */
typedef struct fed_buffer {
    size_t origin;       /* of value (0, 0, 0) */
    size_t pixel_stride; /* from one pixel to the next: the padded channels */
    size_t row_stride;   /* from one row of pixels to the next */
    size_t num_values;   /* in all, a multiple of FED_PAD */
} fed_buffer;

typedef struct fed_stage_ops fed_stage_ops;

/* A layer laid out for the kernels, or a convolution with the pool that follows it. */
typedef struct fed_stage {
    const fed_stage_ops *ops;
    const fed_layer *layer;
    const fed_layer *pool; /* a 2x2 max-pool with stride 2 done with its convolution, or NULL */
    int is_first, is_last;
    fed_shape shape;           /* of what comes out, the pool's if there is one */
    fed_buffer in;             /* the first stage's may be raw: see takes_raw */
    fed_buffer out;            /* the next stage's in */
    size_t start, packed_size; /* of its packed parameters */
    size_t saved_bytes;        /* what forward leaves for backward, an example */
    size_t scratch_bytes;      /* for the length of a call */
    size_t derived_size;       /* floats: its weights once more, as forward wants them */
    size_t piece_size;         /* floats: the largest piece its backward hands to fed_update_take */
} fed_stage;

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
} fed_net;

/* What one example meets in one stage. */
typedef struct fed_pass {
    const fed_kernels *kernels;
    const fed_stage *stage;
    const float *params;  /* packed, the stage's own */
    const float *derived; /* [derived_size] */
    const float *in;      /* buffer stage->in */
    float *out;       /* buffer stage->out, the activation applied; borders are zeros and stay */
    void *saved;      /* [saved_bytes]; NULL when scoring */
    void *scratch;    /* [scratch_bytes] */
    fed_rng *dropout; /* NULL when scoring */
    /* backward only */
    float *out_gradient; /* buffer stage->out, by out; may be spoiled; borders hold anything */
    float *in_gradient;  /* out, buffer stage->in, borders may get anything; NULL for the first */
    float *gradient;     /* packed, the stage's own: its parameters' gradient is *added* */
} fed_pass;

/* How parameters move beside following their gradient: params = kept * params - rate * vector. */
typedef struct fed_shift {
    const float *vector; /* packed */
    float kept, rate;
} fed_shift;

/* Who takes a parameter gradient: a sum of it, which may be the parameters themselves (plain SGD is
 * an accumulation with a scaled gradient), or the client step, a piece at a time. */
typedef struct fed_update {
    float *sum;             /* packed, the whole net's; NULL: the step takes it */
    const fed_shift *shift; /* what is done to the sum once a gradient is in it; NULL: nothing */
    const struct fed_step *step;
    const struct fed_local_step *at;
    float *piece;      /* [piece_size] for each worker */
    size_t piece_size; /* the net's largest */
} fed_update;

/* Where the gradient by packed parameters from start on is put: added to what the sum holds, or
 * into a piece. */
static inline float *fed_update_target(const fed_update *update, size_t start) {
    return update->sum != NULL ? update->sum + start : update->piece;
}
/* Parameters start..start+num have got all of it; while it is still in the cache. */
void fed_update_take(const fed_update *update, size_t start, size_t num);

/* What a batch meets in a dense stage. Rows are one example's values each. */
typedef struct fed_batch_pass {
    const fed_kernels *kernels;
    const fed_stage *stage;
    const float *params; /* packed, the stage's own */
    int num_workers;     /* threads that share it */
    size_t num_rows;
    const float *const *rows; /* [num_rows][stage->in.num_values] */
    /* [blocks, O, FED_LANES]; last stage: logits, then their gradient; first: scratch */
    float *lanes;
    float *outputs; /* [num_rows, stage->out.num_values], the activation applied; not the last */
    float *out_gradient; /* as outputs, by outputs; may be spoiled */
    float *in_gradient;  /* out [num_rows, stage->in.num_values]; NULL for the first stage */
} fed_batch_pass;

/* One way for a layer to compute; a kind of layer may have several. */
struct fed_stage_ops {
    /* Fills in, packed_size, saved_bytes, scratch_bytes, derived_size, piece_size. The rest of the
     * stage is known, but for out. */
    void (*lay_out)(fed_stage *stage);
    /* NULL both where there are no parameters. flat is the whole model's: see layer->offset. */
    void (*pack)(const fed_stage *stage, const float *flat, float *packed /* its own */);
    void (*unpack)(const fed_stage *stage, const double *packed /* its own */, double *flat);
    /* The same of a client's delta, after - before; NULL: by way of doubles. */
    void (*unpack_delta)(const fed_stage *stage, const float *after, const float *before,
                         float *flat);
    /* Writes derived from the parameters; NULL: there is nothing to derive. */
    void (*derive)(const fed_kernels *kernels, const fed_stage *stage, const float *packed,
                   float *derived, void *scratch);
    /* Of one example; NULL for a dense stage. */
    void (*forward)(const fed_pass *pass);
    void (*backward)(const fed_pass *pass);
    /* Of a batch; NULL for all but dense stages. */
    void (*forward_batch)(const fed_batch_pass *pass);
    void (*backward_batch)(const fed_batch_pass *pass, const fed_update *update);
    /* As the first stage it reads an image as decoded: no padded channels or border. */
    int takes_raw;
    int can_narrow; /* its kernel is packed as narrow.c expects: [O, padded I], before all else */
};

/* layers/, and which of them a layer computes by is model.c's choice. */
extern const fed_stage_ops fed_dense_ends; /* dense: on pixels, or to logits */
extern const fed_stage_ops fed_dense_hidden;   /* dense: all others */
extern const fed_stage_ops fed_conv_first;  /* convolution on an image's few channels: the first */
extern const fed_stage_ops fed_conv_hidden; /* convolution: all others */
extern const fed_stage_ops fed_max_pool;
extern const fed_stage_ops fed_average_pool;
extern const fed_stage_ops fed_group_norm;
extern const fed_stage_ops fed_dropout;
extern const fed_stage_ops fed_activate;

/* A buffer without border; one as images are decoded, without padded channels either. */
fed_buffer fed_plain_buffer(const fed_shape *shape);
fed_buffer fed_raw_buffer(const fed_shape *shape);

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

/* ---- layers/activation.c ---- */

/* Values of an example, its buffer's interior, become activation(values). Padding stays 0. */
void fed_apply_activation(const fed_kernels *kernels, int activation, const fed_buffer *buffer,
                          const fed_shape *shape, float *values /* in-out */);
/* The gradient by the activation's outputs becomes the one by its inputs. */
void fed_undo_activation(const fed_kernels *kernels, int activation, const fed_buffer *buffer,
                         const fed_shape *shape, const float *outputs,
                         float *gradient /* in-out */);
/* A pass's forward and backward end and begin with the layer's activation. */
void fed_activate_out(const fed_pass *pass);
void fed_undo_out(const fed_pass *pass);

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
void fed_narrow_take_rest(const fed_narrow *narrow, const float *vector, double distance,
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

/* ---- step.c ---- */

/* 1 if nothing moves until the last batch: see FED_STEP_GRADIENT. */
int fed_step_is_gradient(const fed_step *step);
/* 1 if parameters move only by combinations of their gradients, whatever the basis: then a layer
 * may be trained narrow. */
int fed_step_keeps_span(const fed_step *step);
/* 1 if a row of that kind is in the table. */
int fed_step_has(const fed_step *step, int kind);

/* 1 if every row acts on each parameter by itself, so that a step can be done in pieces. */
int fed_step_is_elementwise(const fed_step *step);

/* 1 if a row looks at each of the model's tensors: then all vectors of its local steps are flat. */
int fed_step_needs_tensors(const fed_step *step);
/* 1 if it does not, or these are tensors that add up to so many parameters. */
int fed_step_takes_tensors(const fed_step *step, const fed_tensors *tensors, size_t num_params);

/* A local step of a client. */
typedef struct fed_local_step {
    const fed_kernels *kernels;
    size_t step_num;            /* in this round, from 1 */
    size_t num_params;          /* packed, or flat: see fed_step_needs_tensors */
    float *params;              /* in-out [num_params] */
    const float *server_params; /* [num_params] */
    float *slots;               /* in-out [slots, num_params] */
    const float *frozen_slots;  /* what they are before this step; NULL: what the last one left */
    const float *linear;        /* [num_params], or NULL: zeros */
    double rate_factor;         /* share of the learning rate */
    const fed_tensors *tensors; /* NULL where the step does not look at them */
} fed_local_step;

/* Moves parameters start..start+num by their gradient; all of them in one call where the step is
 * not elementwise. */
void fed_step_run(const fed_step *step, const fed_local_step *at, size_t start, size_t num,
                  float *gradient /* in, scratch [num] */);

/* ---- adafactor.c ---- */

/* The numbers of one step. */
typedef struct fed_adafactor {
    double rate, kept; /* share of the mean squares that is kept */
    double epsilon_1, epsilon_2, clip_threshold;
} fed_adafactor;

/* Moves one tensor, and the mean squares of its rows and columns; a vector's are in `rows`. */
void fed_adafactor_move(const fed_adafactor *how, const fed_kernels *kernels,
                        const fed_tensor *tensor, float *params /* in-out */,
                        float *gradient /* in, scratch */, float *rows /* in-out, as all below */,
                        float *columns);

/* ---- batch.c ---- */

/* One thread's memory: one block that only grows. */
typedef struct fed_workspace {
    void *base;
    size_t num_bytes;
    float *start; /* packed: where a client starts that has a start of its own; NULL before that */
} fed_workspace;

/* A cursor over a workspace: it first measures (base NULL) and then hands out. */
typedef struct fed_carver {
    char *base;
    size_t used;
} fed_carver;

/* `count` pieces of `size`, at least 1; `used` stays at SIZE_MAX once it would overflow. */
void *fed_carve(fed_carver *carver, size_t count, size_t size);

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
 * visit's masks are drawn, stage by stage, from its own 2^20 blocks of the stream. */
enum { FED_DROPOUT_BLOCK_BITS = 20 };
void fed_batch_open_dropout(const fed_batch *batch, const fed_key *key, size_t first_visit);
/* From batch->rows[0] to logits, then loss, hits and scale times the logits' gradient. `logits`
 * takes a copy of them if it is not NULL. */
void fed_batch_forward(const fed_batch *batch, const float *params, size_t num_rows,
                       const int32_t *labels, float scale, fed_score *score,
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

/* ---- share.c ---- */

/* Does one part of some work on one of num_workers threads. */
typedef void fed_part(void *context, size_t part, int worker);
/* Runs parts 0..num_parts-1, in any order, and returns when all are done. */
void fed_share(int num_workers, size_t num_parts, fed_part *run, void *context);

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

/* ---- team.c ---- */

struct fed_team {
    int num_threads;
    fed_workspace *workspaces; /* [num_threads] */
    float **free_params;       /* packed parameter vectors that nobody holds, newest last */
    size_t num_free;
    size_t num_values;   /* floats in each of them */
    float *server;       /* packed server parameters of the call under way */
    float *zeros;        /* as many */
    float *frozen_slots; /* its frozen slots, packed one after the other; NULL: none */
    double **window;     /* [num_window]: the sums of the open blocks, zeros between calls */
    size_t num_window;
};

/* Packs the parameters every client starts from. */
int fed_team_set_params(fed_team *team, const fed_net *net, const float *params);
/* Packs the slots that every local step starts from, if there are such. */
int fed_team_set_slots(fed_team *team, const fed_net *net, size_t num_slots,
                       const fed_terms *terms);
/* Clients come from files: what the core reads of them must never leave its array. */
int fed_check_clients(const fed_model *model, const fed_client *clients, size_t num_clients,
                      fed_fault *fault);

/* ---- sum.c ---- */

/* Appends a finished block, values [net.size], and leaves zeros there. closed says that the block
 * held fewer than FED_BLOCK_CLIENTS, so none may follow. */
int fed_sum_push(fed_sum *sum, double *values, double weight, int closed);
/* 1 if blocks of this network's deltas may be appended. */
int fed_sum_takes(const fed_sum *sum, const fed_net *net);

#endif
