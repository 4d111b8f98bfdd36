/* SPDX-License-Identifier: Apache-2.0
 * What a layer is to the rest of the core. */
#ifndef FED_LAYER_H
#define FED_LAYER_H

#include "buffer.h"
#include "fed.h"
#include "memory.h"
#include "step/step.h"

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

/* ---- Kinds of layers (table.c) --------------------------------------------------------------- */

/* A row of the table. */
typedef struct fed_layer_kind {
    const char *name; /* what Python calls it, and Keras */
    /* 1 if the row of a model is what the kind may be. Shapes and flags are known to be valid. */
    int (*is_valid)(const fed_layer *layer);
    size_t (*num_params)(const fed_layer *layer);
    const fed_stage_ops *ops;
    const fed_stage_ops *first, *last; /* at the ends of a model; NULL: ops */
    /* 1 if one stage can compute the layer and the `next` one, a pool; NULL: never. */
    int (*takes_pool)(const fed_layer *next);
    /* 64-bit draws that an example's visit takes from fed_pass.dropout; NULL: none. */
    size_t (*num_draws)(const fed_layer *layer);
} fed_layer_kind;

/* Of one visit, four values to a draw (dropout.c). */
size_t fed_dropout_draws(const fed_layer *layer);

/* NULL if there is no such kind. */
const fed_layer_kind *fed_kind_of(const fed_layer *layer);

/* Sizes beyond this would overflow somewhere; no image classifier comes near. */
static const size_t FED_MAX_VALUES = (size_t)1 << 31;

static inline int fed_is_size(size_t size) { return size >= 1 && size <= FED_MAX_VALUES; }

/* ---- Activations (activation.c) -------------------------------------------------------------- */

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

#endif
