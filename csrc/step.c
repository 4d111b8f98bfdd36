/* SPDX-License-Identifier: Apache-2.0
 * The client-step table: for each kind of row, how it turns a gradient into moved parameters. A new
 * optimizer, or a term an algorithm adds to the gradient, is a new row of `step_ops`. */
#include "core.h"

#include <math.h>

typedef struct step_ops {
    int (*check)(const fed_step_row *row);
    size_t (*num_slots)(const fed_step_row *row);
    void (*run)(const fed_step_row *row, const fed_kernels *kernels, size_t num_params,
                float *params, const float *server_params, float *gradient, float *slots);
    int keeps_span; /* see fed_step_keeps_span */
} step_ops;

/* ---- SGD: options are learning rate, momentum, nesterov -------------------------------------- */

enum { LEARNING_RATE, MOMENTUM, NESTEROV };

static int sgd_check(const fed_step_row *row) {
    const float learning_rate = row->options[LEARNING_RATE], momentum = row->options[MOMENTUM];
    const float nesterov = row->options[NESTEROV];
    if (!(learning_rate >= 0) || isinf(learning_rate)) return FED_ERR_ARGUMENT;
    if (!(momentum >= 0 && momentum <= 1)) return FED_ERR_ARGUMENT;
    if (nesterov != 0 && (nesterov != 1 || momentum == 0)) return FED_ERR_ARGUMENT;
    return FED_OK;
}

static size_t sgd_num_slots(const fed_step_row *row) { return row->options[MOMENTUM] > 0; }

static void sgd_run(const fed_step_row *row, const fed_kernels *kernels, size_t num_params,
                    float *params, const float *server_params, float *gradient, float *slots) {
    (void)server_params;
    const float learning_rate = row->options[LEARNING_RATE], momentum = row->options[MOMENTUM];
    if (momentum > 0)
        kernels->sgd_momentum(params, slots, gradient, num_params, learning_rate, momentum,
                              row->options[NESTEROV] != 0);
    else
        kernels->sgd(params, gradient, num_params, learning_rate);
}

static const step_ops ops[FED_NUM_STEP_KINDS] = {
    [FED_STEP_SGD] = {sgd_check, sgd_num_slots, sgd_run, .keeps_span = 1},
};

/* ---- The table at work ----------------------------------------------------------------------- */

int fed_step_check(const fed_step *step) {
    if (step->num_rows < 1) return FED_ERR_ARGUMENT;
    for (size_t r = 0; r < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        if (row->kind < 0 || row->kind >= FED_NUM_STEP_KINDS) return FED_ERR_ARGUMENT;
        const int status = ops[row->kind].check(row);
        if (status != FED_OK) return status;
    }
    return FED_OK;
}

size_t fed_step_slots(const fed_step *step) {
    size_t num_slots = 0;
    for (size_t r = 0; r < step->num_rows; r++)
        num_slots += ops[step->rows[r].kind].num_slots(&step->rows[r]);
    return num_slots;
}

int fed_step_is_plain_sgd(const fed_step *step, float *learning_rate) {
    const fed_step_row *row = &step->rows[0];
    *learning_rate = row->options[LEARNING_RATE];
    return step->num_rows == 1 && row->kind == FED_STEP_SGD && row->options[MOMENTUM] == 0;
}

int fed_step_keeps_span(const fed_step *step) {
    for (size_t r = 0; r < step->num_rows; r++)
        if (!ops[step->rows[r].kind].keeps_span) return 0;
    return 1;
}

void fed_step_run(const fed_step *step, const fed_kernels *kernels, size_t num_params,
                  float *params, const float *server_params, float *gradient, float *slots) {
    for (size_t r = 0; r < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        ops[row->kind].run(row, kernels, num_params, params, server_params, gradient, slots);
        const size_t num_slots = ops[row->kind].num_slots(row);
        if (num_slots > 0)
            slots += num_slots * num_params; /* slots may be NULL where none are needed */
    }
}

int fed_step_apply(const fed_step *step, size_t num_params, float *params,
                   const float *server_params, float *gradient, float *slots) {
    const int status = fed_step_check(step);
    if (status != FED_OK) return status;
    fed_step_run(step, fed_active_kernels(), num_params, params, server_params, gradient, slots);
    return FED_OK;
}
