/* SPDX-License-Identifier: Apache-2.0
 * How a gradient moves parameters: the client step, a piece of the parameters at a time. */
#ifndef FED_STEP_H
#define FED_STEP_H

#include "fed.h"
#include "kernels/kernels.h"

/* ---- The client-step table (step.c) ---------------------------------------------------------- */

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

/* ---- Where a gradient goes (step.c) ---------------------------------------------------------- */

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
    const fed_step *step;
    const fed_local_step *at;
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

/* ---- Adafactor (adafactor.c) ----------------------------------------------------------------- */

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

#endif
