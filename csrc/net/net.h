/* SPDX-License-Identifier: Apache-2.0
 * A model laid out as stages for the kernels, and the passes of a batch through them. */
#ifndef FED_NET_H
#define FED_NET_H

#include "layers/layer.h"
#include "memory.h"

/* ---- Models (model.c) ------------------------------------------------------------------------ */

/* The number of layer inputs that read the output of layer `value` - 1, or the image if value is
 * 0. */
size_t fed_num_readers(const fed_model *model, size_t value);

/* Number of the flat parameters that are trained; the moving statistics of all layers follow. */
size_t fed_num_trained(const fed_model *model);

/* Number of input layers, which stand at the start. */
size_t fed_num_input_layers(const fed_model *model);

/* ---- The net (layout.c) ---------------------------------------------------------------------- */

/* What a stage reads or writes for one example. */
typedef struct fed_value {
    fed_shape shape;
    fed_border border; /* large enough for all of its readers */
    fed_buffer buffer;
    size_t last_reader;    /* the last stage that reads it */
    size_t gradient_place; /* place of its gradient */
    int is_kept;           /* 1 if training keeps it from the forward to the backward pass */
    int is_mapped;         /* 1 if it is not stored: a norm computes it, and its only reader applies
                              that norm to the values that the norm reads */
    size_t place;          /* place of the value itself, where it is not kept */
} fed_value;

/* Memory that values use in turn, for each example of a batch. */
typedef struct fed_place {
    size_t size;       /* floats, the largest of its values */
    fed_shape shape;   /* of its first value */
    fed_buffer buffer; /* the same */
    int is_inside;     /* 1 if its values are read by example stages alone */
    int is_free;       /* while places are assigned */
} fed_place;

/* A model laid out for the kernels. A stage comes after the stages that it reads. Value 0 is the
 * image, value s + 1 the output of stage s. The stages before the first dense one are the front.
 * Leading stages of the front are example stages: each example passes through all of them before
 * the next example does, so that the example's values stay in the cache. The other stages run by
 * batch: each stage takes all examples before the next stage does, so that the stage's weights stay
 * in the cache. The whole front runs by example if it has few parameters. Otherwise only stages
 * with large images and few parameters do. */
typedef struct fed_net {
    const fed_model *model;
    const fed_kernels *kernels;
    fed_stage *stages; /* [num_stages] */
    fed_value *values; /* [num_stages + 1] */
    size_t num_stages, num_front_stages;
    size_t num_input_stages;   /* no gradient passes through them */
    size_t num_example_stages; /* the leading stages that run by example */
    size_t background_value;   /* value whose background is marked: see background.h; or 0 */
    int repeats; /* 1 if example stages compute values again for the backward pass: see is_kept */
    fed_place *gradient_places, *value_places;
    size_t num_gradient_places, num_value_places;
    size_t num_trained;     /* size of the packed parameters that are trained */
    size_t size;            /* with the moving statistics, which follow */
    const fed_layer *mixup; /* the input layer that mixes examples; NULL: there is none */
    int has_dropout;
    unsigned visit_bits; /* a visit's dropout masks come from 2^visit_bits Philox blocks */
    void *memory;        /* of fed_net_init */
} fed_net;

/* Checks a model and lays it out, in new memory. Call fed_net_free afterwards, also after an
 * error. */
int fed_net_init(fed_net *net, const fed_model *model);
void fed_net_free(fed_net *net);
/* Lays out a model that was checked before, in borrowed memory. */
size_t fed_net_num_bytes(size_t num_layers);
void fed_net_lay_out(fed_net *net, const fed_model *model, void *memory /* [fed_net_num_bytes] */);
/* 1 if there is memory for a value: images that are rows, logits in lanes and mapped values need
 * none. */
int fed_net_has_value(const fed_net *net, size_t value);
/* The value that a stage reads to get `value`: another one only if it is mapped. */
size_t fed_net_stored_value(const fed_net *net, size_t value);
void fed_net_pack(const fed_net *net, const float *flat /* [P] */, float *packed /* out */);
/* Packs the trained parameters alone. */
void fed_net_pack_trained(const fed_net *net, const float *flat, float *packed /* out */);
void fed_net_unpack(const fed_net *net, const double *packed, double *flat /* out [P] */);
/* Unpacks the moving statistics alone. */
void fed_net_unpack_moving(const fed_net *net, const double *moving /* [size - num_trained] */,
                           double *flat /* out [P] */);
/* As fed_net_unpack, from floats. */
void fed_net_flatten(const fed_net *net, const float *packed,
                     double *scratch /* [packed size + P] */, float *flat /* out [P] */);
/* Writes after - before in flat layout. */
void fed_net_unpack_delta(const fed_net *net, const float *after, const float *before,
                          double *scratch /* [packed size + P] */, float *flat /* out [P] */);
/* The number of threads that share one client: all, if there are fewer clients than threads and the
 * net has stages before the first dense one, else 1. */
int fed_net_num_workers(const fed_net *net, size_t num_clients, int num_threads);
/* 1 if the first layer can be trained on fewer inputs (narrow.c). */
int fed_net_can_narrow(const fed_net *net);
/* 1 if a layer has moving statistics. */
int fed_net_has_moving(const fed_net *net);
/* The number of examples that pass through the net at a time: a whole batch or, if this keeps more
 * values in the caches or the batch is large, a part of it. Gradients of parts must be added up. */
size_t fed_net_part_size(const fed_net *net, size_t batch_size, int is_training);

/* ---- A batch (batch.c) ----------------------------------------------------------------------- */

/* The memory of a batch's forward pass and, in training, of its backward pass. Arrays are by stage
 * or by value. [B] means one for each example of the batch, or one that all examples use in turn.
 */
typedef struct fed_batch {
    const fed_net *net;
    size_t batch_size;
    size_t most_extra_rows; /* room for partners from other parts: see fed_mixing */
    int is_training;
    int num_workers;                      /* threads that share the batch */
    const float **images;                 /* [B + most_extra_rows], set by the caller */
    const float **rows[FED_MAX_LAYERS];   /* [B]: inputs of dense stages that read a value */
    float *values[FED_MAX_LAYERS + 1];    /* [B]; before the mixing [B + most_extra_rows] */
    float *gradients[FED_MAX_LAYERS + 1]; /* [B]: by values; in example stages one per block */
    float *added_gradient;                /* [B] or one per block: a further part of a gradient */
    char *saved[FED_MAX_LAYERS];          /* [B, saved_bytes] */
    float *derived[FED_MAX_LAYERS];
    float *by_params[FED_MAX_LAYERS]; /* [blocks, packed_size]: the gradient of a stage that is not
                                         dense; stages that run by batch use the same memory */
    float *lanes[FED_MAX_LAYERS];     /* [blocks, O, FED_LANES] of the first and last stage */
    fed_marks *marks;                 /* [B]: the background of background_value, if there is one */
    fed_rng *dropout; /* [B + most_extra_rows]: streams of the masks; NULL: there is no
                         dropout */
    float *pieces;    /* [num_workers, piece_size] */
    char *scratch;    /* [num_workers, scratch_bytes], or for all images at once */
    size_t piece_size, scratch_bytes; /* largest of all stages */
    size_t added_size;                /* floats of added_gradient for an example or a block */
} fed_batch;

/* Convert between rows [num_rows, stride] and blocks of lanes [num_values, FED_LANES]. In rows that
 * are written, values beyond num_values are zeros. */
void fed_rows_to_lanes(const float *rows, size_t stride, size_t num_rows, size_t num_values,
                       float *lanes /* out */);
void fed_lanes_to_rows(const float *lanes, size_t num_values, size_t num_rows,
                       float *rows /* out */, size_t stride);

void fed_batch_carve(fed_batch *batch, fed_carver *carver);
/* Sets borders and padding channels to zero, and points the rows of dense stages to their inputs.
 * Call it before a client's first batch, because the memory may hold older data. */
void fed_batch_clear(const fed_batch *batch);
/* Computes the transformed copies of the parameters that `forward` reads (fed_stage_ops.derive). */
void fed_batch_derive(const fed_batch *batch, const float *params);
/* Positions the dropout streams before a training batch. The batch's first example is the client's
 * visit number first_visit, from 0. The masks of a visit are drawn, stage by stage, from its own
 * 2^visit_bits blocks of the stream. */
void fed_batch_open_dropout(const fed_batch *batch, const fed_key *key, size_t first_visit);
/* The same for example b alone, which may be an extra row: see fed_mixing. */
void fed_batch_open_visit(const fed_batch *batch, const fed_key *key, size_t b, size_t visit);

/* How the examples of a batch, or of a part of one, are mixed. The partner of an example may be in
 * another part. It is then an extra row, which passes through the input layers here as well. */
typedef struct fed_mixing {
    const uint32_t *partners; /* [num_rows]: 0..num_rows + num_extra_rows - 1 */
    size_t num_extra_rows;    /* they follow the rows */
    float share;              /* of each example; the rest is its partner's */
} fed_mixing;

/* Runs the input layers of a training batch whose examples are mixed, up to and including
 * net->mixup. */
void fed_batch_mix_inputs(const fed_batch *batch, size_t num_rows, const fed_mixing *mixing);
/* The forward pass from batch->images to the logits, the loss and the number of correct
 * predictions. If the targets have other_labels, it starts from the images that
 * fed_batch_mix_inputs has mixed. In place of the logits it leaves their gradient times `scale`
 * (see softmax_xent). If `logits` is not NULL it gets a copy of the logits. */
void fed_batch_forward(const fed_batch *batch, const float *params, size_t num_rows,
                       const fed_targets *targets, float scale, const fed_loss *loss /* or NULL */,
                       fed_score *score, float *logits /* out [num_rows, K] or NULL */);
/* The input layers alone, for the first example: writes what the layer after them reads, [height,
 * width, channels]. */
void fed_batch_forward_inputs(const fed_batch *batch, float *image /* out */);
/* fed_batch_derive, and the forward and the backward pass, of one stage. The forward pass of
 * earlier stages, or the backward pass of later ones, must be done before. */
void fed_batch_derive_stage(const fed_batch *batch, const float *params, size_t s);
void fed_batch_forward_stage(const fed_batch *batch, const float *params, size_t s,
                             size_t num_rows);
void fed_batch_backward_stage(const fed_batch *batch, const float *params, size_t s,
                              size_t num_rows, const fed_update *update);
/* Moves the moving statistics towards the statistics of the batch that passed last. */
void fed_batch_move_statistics(const fed_batch *batch, float *params /* in-out */);
/* The backward pass from the gradient of the logits, which `forward` left, to the parameters. */
void fed_batch_backward(const fed_batch *batch, const float *params, size_t num_rows,
                        const fed_update *update);

#endif
