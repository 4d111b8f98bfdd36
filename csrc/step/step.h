/* SPDX-License-Identifier: Apache-2.0
 * The client step: how a gradient updates parameters, a piece of them at a time. */
#ifndef FED_STEP_H
#define FED_STEP_H

#include "fed.h"
#include "kernels/kernels.h"

/* ---- The step table (step.c) ----------------------------------------------------------------- */

/* 1 if the step only accumulates gradients: see FED_STEP_GRADIENT. */
int fed_step_is_gradient(const fed_step *step);
/* 1 if parameters move only within the span of their gradients, so that the first layer may be
 * trained on fewer inputs (narrow.c). */
int fed_step_keeps_span(const fed_step *step);
/* 1 if a row of that kind is in the table. */
int fed_step_has(const fed_step *step, int kind);

/* 1 if every row treats each parameter separately, so that a step can be done in pieces. */
int fed_step_is_elementwise(const fed_step *step);

/* 1 if a row treats each of the model's tensors separately; local steps then use flat vectors. */
int fed_step_needs_tensors(const fed_step *step);
/* 1 if the step needs no tensors, or if the tensors are valid and have num_params parameters
 * together. */
int fed_step_takes_tensors(const fed_step *step, const fed_tensors *tensors, size_t num_params);

/* A local step of a client. */
typedef struct fed_local_step {
    const fed_kernels *kernels;
    size_t step_num;            /* in this round, from 1 */
    size_t num_params;          /* packed, or flat: see fed_step_needs_tensors */
    float *params;              /* in-out [num_params] */
    const float *server_params; /* [num_params] */
    float *slots;               /* in-out [slots, num_params] */
    const float *frozen_slots;  /* copied to `slots` before this step; NULL: nothing is copied */
    const float *linear;        /* [num_params], or NULL: zeros */
    double rate_factor;         /* factor of the learning rate */
    const fed_tensors *tensors; /* NULL if the step does not need them */
} fed_local_step;

/* Updates parameters start..start+num-1 with their gradient. A step that is not elementwise must
 * get all of them in one call. */
void fed_step_run(const fed_step *step, const fed_local_step *at, size_t start, size_t num,
                  float *gradient /* in, scratch [num] */);

/* ---- Where a gradient goes (step.c) ---------------------------------------------------------- */

/* The part of a step that does not depend on gradients: params = kept * params - rate * vector. */
typedef struct fed_shift {
    const float *vector; /* packed */
    float kept, rate;
} fed_shift;

/* Where a parameter gradient goes. Either it is accumulated into `sum` (for plain SGD the
 * parameters themselves, with the learning rate folded into the gradient), or the client step
 * consumes it piece by piece. */
typedef struct fed_update {
    float *sum;             /* packed, of the whole net; NULL: pieces go to the step */
    const fed_shift *shift; /* applied to each part of the sum after its gradient; NULL: none */
    const fed_step *step;
    const fed_local_step *at;
    float *piece;      /* [piece_size] for each worker */
    size_t piece_size; /* the net's largest */
} fed_update;

/* The memory for the gradient by packed parameters from `start` on: the sum, to which it is added,
 * or a piece. */
static inline float *fed_update_target(const fed_update *update, size_t start) {
    return update->sum != NULL ? update->sum + start : update->piece;
}
/* Continues the update with the gradient of parameters start..start+num-1. Call it as soon as this
 * gradient is complete, while it is in the cache. */
void fed_update_take(const fed_update *update, size_t start, size_t num);

/* ---- Adafactor (adafactor.c) ----------------------------------------------------------------- */

/* The settings of one step. */
typedef struct fed_adafactor {
    double rate, kept; /* kept: decay of the mean squares */
    double epsilon_1, epsilon_2, clip_threshold;
} fed_adafactor;

/* Updates one tensor, and the mean squares of its rows and columns. For a vector the mean squares
 * are in `rows`. */
void fed_adafactor_move(const fed_adafactor *how, const fed_kernels *kernels,
                        const fed_tensor *tensor, float *params /* in-out */,
                        float *gradient /* in, scratch */, float *rows /* in-out, like columns */,
                        float *columns);

#endif
