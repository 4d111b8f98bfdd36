/* SPDX-License-Identifier: Apache-2.0
 * The interface between layers and the rest of the core. */
#ifndef FED_LAYER_H
#define FED_LAYER_H

#include "background.h"
#include "buffer.h"
#include "fed.h"
#include "memory.h"
#include "step/step.h"

typedef struct fed_stage_ops fed_stage_ops;
typedef struct fed_stage fed_stage;

/* One layer laid out for the kernels, or a convolution with the pool that follows it. */
struct fed_stage {
    const fed_stage_ops *ops;
    const fed_layer *layer;
    const fed_layer
        *pool;    /* a 2x2 max-pool with stride 2, computed with its convolution; or NULL */
    int is_first; /* 1 if only this stage reads the image, or the output of the input layers */
    int is_last;
    const fed_stage *norm; /* the norm that it applies to what it reads; NULL: it applies none */
    int is_mapped;         /* a norm: 1 if the stage that reads its output applies it */
    size_t sources[2];     /* the values that it reads: see fed_net */
    int adds[2];           /* 1: another stage has written the gradient by that source; add to it */
    fed_shape shape;       /* of the outputs, after the pool if there is one */
    fed_buffer in;   /* of its first source, or of the inputs of the norm that it applies; the image
                        may be raw: see takes_raw */
    fed_buffer in_2; /* of its second source, if it has one */
    fed_buffer out;
    int ignores_zeros; /* 1: the gradient by its first source has no effect where that source is 0,
                          because relu computed the source; the gradient may be 0 there */
    size_t start, packed_size; /* of the packed parameters that are trained */
    size_t moving_start;       /* of the moving statistics: see fed_layer_kind.has_moving */
    size_t saved_bytes;        /* per example, written by forward and read by backward, or by the
                                  stage that applies a norm */
    size_t scratch_bytes;      /* used during one call */
    size_t derived_size;       /* floats of a transformed copy of the weights: see derive */
    size_t piece_size; /* floats: the largest piece that backward passes to fed_update_take */
};

/* The arguments of one stage for one example. */
typedef struct fed_pass {
    const fed_kernels *kernels;
    const fed_stage *stage;
    const float *params;  /* packed, the stage's own */
    const float *derived; /* [derived_size] */
    const float *in;      /* buffer stage->in */
    const float *in_2;    /* buffer stage->in_2; NULL: there is no second source */
    float *out;           /* buffer stage->out, after the activation; borders stay zeros */
    void *saved;          /* [saved_bytes]; NULL when scoring, except for a norm with is_mapped */
    const void *norm;     /* what stage->norm saved */
    void *scratch;        /* [scratch_bytes] */
    fed_rng *dropout;     /* NULL when scoring */
    const float *partner; /* buffer stage->in: the example to mix in; NULL: there is none */
    float share;          /* of `in` if there is a partner */
    fed_marks *marks;     /* the background of `out` if the stage marks it, else of `in`; or NULL */
    /* backward only */
    float *out_gradient;  /* buffer stage->out, by out; may be overwritten; borders are undefined */
    float *in_gradient;   /* out, buffer stage->in; borders are undefined; NULL: `in` is an image */
    float *in_2_gradient; /* the same for in_2 */
    float *gradient;      /* packed, the stage's own; the parameters' gradient is *added* to it */
} fed_pass;

/* The arguments of a stage that takes the images of a batch at once. Images are num_values of their
 * buffer apart. */
typedef struct fed_images_pass {
    const fed_kernels *kernels;
    const fed_stage *stage;
    const float *params; /* packed, the stage's own */
    const float *moving; /* its moving statistics, if it has some */
    size_t num_images;
    int num_workers;  /* threads that share the work */
    const float *in;  /* buffer stage->in */
    float *out;       /* buffer stage->out, after the activation; borders stay zeros */
    float *scratch;   /* [images_scratch] */
    void *saved;      /* [num_images, saved_bytes]; NULL when scoring */
    const void *norm; /* [num_images]: what stage->norm saved */
    /* backward only */
    float *out_gradient; /* buffer stage->out, by out; may be overwritten; borders are undefined */
    float *in_gradient;  /* out, buffer stage->in; borders are undefined; NULL: `in` is the image */
    float *gradient;     /* packed, the stage's own; the parameters' gradient is *added* to it */
} fed_images_pass;

/* The arguments of a dense stage for a batch. Each row is the values of one example. */
typedef struct fed_batch_pass {
    const fed_kernels *kernels;
    const fed_stage *stage;
    const float *params; /* packed, the stage's own */
    int num_workers;     /* threads that share the batch */
    size_t num_rows;
    const float *const *rows; /* [num_rows][stage->in.num_values] */
    /* [blocks, O, FED_LANES]; last stage: logits, then their gradient; first: scratch */
    float *lanes;
    float
        *outputs; /* [num_rows, stage->out.num_values], after the activation; not the last stage */
    float *out_gradient; /* by outputs, with their layout; may be overwritten */
    float *in_gradient;  /* out [num_rows, stage->in.num_values]; NULL for the first stage */
} fed_batch_pass;

/* An implementation of a kind of layer; a kind may have several. */
struct fed_stage_ops {
    /* Widens the border of the inputs so that the stage can read them; NULL: it needs no border.
     * The stage's buffers and sizes are not set yet. */
    void (*widen_border)(const fed_stage *stage, fed_border *border /* in-out */);
    /* Sets packed_size, saved_bytes, scratch_bytes, derived_size and piece_size, which are 0
     * before; NULL: they stay 0. Other members have been set, except adds, start and
     * moving_start. */
    void (*lay_out)(fed_stage *stage);
    /* Both are NULL if there are no parameters. flat has the parameters of the whole model: see
     * layer->offset. */
    void (*pack)(const fed_stage *stage, const float *flat, float *packed /* its own */);
    void (*unpack)(const fed_stage *stage, const double *packed /* its own */, double *flat);
    /* Unpacks after - before; NULL: the caller unpacks it as doubles. */
    void (*unpack_delta)(const fed_stage *stage, const float *after, const float *before,
                         float *flat);
    /* Writes a transformed copy of the weights, in the layout that forward and backward read; NULL
     * if they read the packed parameters alone. */
    void (*derive)(const fed_kernels *kernels, const fed_stage *stage, const float *packed,
                   float *derived, void *scratch);
    /* For one example; NULL if the stage takes a batch. */
    void (*forward)(const fed_pass *pass);
    void (*backward)(const fed_pass *pass);
    /* Writes the outputs again, from the inputs and what forward saved in training, in less time
     * than forward. NULL: it cannot. */
    void (*repeat)(const fed_pass *pass);
    /* 1 if, for a norm, another stage can apply it; NULL: never. It then sets `is_mapped`. */
    int (*can_map)(const fed_layer *layer);
    /* 1 if the stage can apply a norm to its first source; NULL: never. It then sets `norm`. */
    int (*applies_norms)(const fed_layer *layer);
    /* For a batch; NULL except for dense stages. */
    void (*forward_batch)(const fed_batch_pass *pass);
    void (*backward_batch)(const fed_batch_pass *pass, const fed_update *update);
    /* For the images of a batch; NULL except for batch norms, and for convolutions that take all
     * images at once. Scratch is counted in floats; fewer images or workers do not need more. */
    size_t (*images_scratch)(const fed_stage *stage, size_t num_images, int num_workers);
    void (*forward_images)(const fed_images_pass *pass);
    void (*backward_images)(const fed_images_pass *pass);
    /* Updates the moving statistics after a local step; NULL if there are none. */
    void (*move)(const fed_stage *stage, const void *saved, float *moving /* in-out */);
    int adds_gradients; /* 1 if backward itself obeys stage->adds */
    /* 1 if, as the first stage, it reads a decoded image without padded channels or border. */
    int takes_raw;
    int marks_background; /* 1 if forward can mark the outputs that see only background */
    int uses_background;  /* 1 if it computes faster with the background of its inputs. It may then
                             add the gradient by a pixel of the background to that by another. */
    int can_narrow; /* for narrow.c: 1 if packed parameters begin with the kernel [O, padded I] */
};

/* ---- Kinds of layers (table.c) --------------------------------------------------------------- */

/* A row of the table. */
typedef struct fed_layer_kind {
    const char *name; /* as in Python and Keras */
    /* 1 if a row of a model is valid for this kind. Shapes and flags were checked before. */
    int (*is_valid)(const fed_layer *layer);
    size_t (*num_params)(const fed_layer *layer);
    const fed_stage_ops *ops;
    const fed_stage_ops *first, *last; /* at the ends of a model; NULL: ops */
    const fed_stage_ops *with_pool;    /* together with the pool behind it: see takes_pool */
    size_t num_inputs;                 /* 0 stands for 1 */
    fed_shape (*second_input)(const fed_layer *layer); /* its shape; NULL: as the first */
    int keeps_inputs; /* 1 if the slope of its activation may need the inputs */
    int keeps_relu;   /* 1 if, for inputs >= 0, the gradient by an output of 0 reaches only inputs
                         of 0 */
    int is_input;     /* 1 if it is before all other layers, and no gradient passes through it */
    int mixes;        /* 1 if it mixes the examples of a training batch; the last input layer */
    /* 1 if it has a moving mean and a moving variance, [channels] each, which are not trained. In
     * training it needs whole batches. In packed vectors, channels are padded. */
    int has_moving;
    /* 1 if one stage can compute the layer and the layer `next`, a pool; NULL: never. */
    int (*takes_pool)(const fed_layer *next);
    /* Number of 64-bit draws from fed_pass.dropout for a visit of an example; NULL: none. */
    size_t (*num_draws)(const fed_layer *layer);
} fed_layer_kind;

/* Draws of input layers for one visit (augment.c). */
size_t fed_one_draw(const fed_layer *layer);
size_t fed_two_draws(const fed_layer *layer);
size_t fed_three_draws(const fed_layer *layer);
/* Number of draws for one visit, with four values per draw (dropout.c). */
size_t fed_dropout_draws(const fed_layer *layer);

/* NULL if there is no such kind. */
const fed_layer_kind *fed_kind_of(const fed_layer *layer);
/* The number of moving statistics in the flat parameters. */
size_t fed_num_moving(const fed_layer *layer);
/* 1 or 2, for a kind that exists. */
size_t fed_num_inputs(const fed_layer *layer);

/* Larger sizes could overflow; no image classifier needs so many values. */
static const size_t FED_MAX_VALUES = (size_t)1 << 31;

static inline int fed_is_size(size_t size) { return size >= 1 && size <= FED_MAX_VALUES; }

/* ---- Activations (activation.c) -------------------------------------------------------------- */

/* Applies an activation in place to the values of an example, inside the border. Padding stays 0.
 */
void fed_apply_activation(const fed_kernels *kernels, const fed_layer *layer,
                          const fed_buffer *buffer, const fed_shape *shape,
                          float *values /* in-out */);
/* Backward: turns the gradient by the activation's outputs into the gradient by its inputs, in
 * place. */
void fed_undo_activation(const fed_kernels *kernels, const fed_layer *layer,
                         const fed_buffer *buffer, const fed_shape *shape, const float *outputs,
                         float *gradient /* in-out */);
/* Call these two on the outputs of a pass: the first at the end of forward, the second at the
 * beginning of backward. */
void fed_activate_out(const fed_pass *pass);
void fed_undo_out(const fed_pass *pass);

#endif
