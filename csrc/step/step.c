/* SPDX-License-Identifier: Apache-2.0
 * The step table: how each kind of row changes the gradient or updates the parameters. To add an
 * optimizer, or a term that an algorithm adds to the gradient, add a row to `ops`. */
#include "step.h"
#include "denormals.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* A part of the parameters in a local step, and what rows need to update it. */
typedef struct piece {
    const fed_kernels *kernels;
    size_t step_num;
    size_t num_params;  /* in this piece */
    size_t slot_stride; /* distance from a slot to the same place in the next slot */
    float *params;      /* in-out; [num_params], like the vectors below */
    const float *server_params;
    float *gradient;     /* in, scratch */
    const float *linear; /* NULL: zeros */
    double rate_factor;  /* factor of the learning rate */
    const fed_tensors *tensors;
} piece;

typedef struct step_ops {
    int (*check)(const double *options); /* 1 if the options are valid */
    size_t (*num_slots)(const double *options);
    float (*initial)(const double *options, size_t slot); /* NULL: slots start at 0 */
    void (*run)(const double *options, const piece *at, float *slots);
    int keeps_span;  /* see fed_step_keeps_span */
    int needs_whole; /* 1 if it is not elementwise: see fed_step_is_elementwise */
    int needs_tensors;
} step_ops;

static size_t no_slots(const double *options) { return (void)options, 0; }
static size_t one_slot(const double *options) { return (void)options, 1; }
static size_t two_slots(const double *options) { return (void)options, 2; }

/* 0 for NaN, and for values too large for float. */
static int is_amount(double value) { return value >= 0 && value <= (double)FLT_MAX; }
static int is_share(double value) { return value >= 0 && value <= 1; }
static int is_flag(double value) { return value == 0 || value == 1; }

/* Every optimizer's first option. */
enum { LEARNING_RATE };

static float rate_of(const double *options, const piece *at) {
    return (float)(options[LEARNING_RATE] * at->rate_factor);
}

/* ---- SGD: learning rate, momentum, nesterov -------------------------------------------------- */

enum { MOMENTUM = 1, NESTEROV };

static int sgd_check(const double *options) {
    return is_amount(options[LEARNING_RATE]) && is_share(options[MOMENTUM]) &&
           is_flag(options[NESTEROV]) && (options[NESTEROV] == 0 || options[MOMENTUM] > 0);
}

static size_t sgd_num_slots(const double *options) { return options[MOMENTUM] > 0; }

static void sgd_run(const double *options, const piece *at, float *slots) {
    const float learning_rate = rate_of(options, at), momentum = (float)options[MOMENTUM];
    if (options[MOMENTUM] > 0)
        at->kernels->sgd_momentum(at->params, slots, at->gradient, at->num_params, learning_rate,
                                  momentum, options[NESTEROV] != 0);
    else
        at->kernels->sgd(at->params, at->gradient, at->num_params, learning_rate);
}

/* ---- A proximal term: strength --------------------------------------------------------------- */

enum { STRENGTH };

static int proximal_check(const double *options) { return is_amount(options[STRENGTH]); }

static void proximal_run(const double *options, const piece *at, float *slots) {
    (void)slots;
    at->kernels->add_proximal(at->gradient, at->params, at->server_params, at->num_params,
                              (float)options[STRENGTH]);
}

/* ---- Weight decay: strength ------------------------------------------------------------------ */

static void decay_run(const double *options, const piece *at, float *slots) {
    (void)slots;
    at->kernels->sgd(at->gradient, at->params, at->num_params, -(float)options[STRENGTH]);
}

/* ---- Clipping: norm -------------------------------------------------------------------------- */

enum { NORM };

static int clip_check(const double *options) {
    return is_amount(options[NORM]) && options[NORM] > 0;
}

/* With a NaN the comparison is false and the NaN stays; an infinity becomes infinity * 0, a NaN. */
static void clip_run(const double *options, const piece *at, float *slots) {
    (void)slots;
    const double norm = sqrt(at->kernels->sum_of_squares(at->gradient, at->num_params));
    if (norm > options[NORM])
        at->kernels->multiply(at->gradient, at->num_params, (float)(options[NORM] / norm));
}

/* ---- Adam, AdamW, Yogi: learning rate, beta_1, beta_2, epsilon, reddi, and one more ---------- */

enum { BETA_1 = 1, BETA_2, EPSILON, REDDI, WEIGHT_DECAY, INITIAL_PRECONDITIONER = WEIGHT_DECAY };

static int moments_check(const double *options) {
    return is_amount(options[LEARNING_RATE]) && is_share(options[BETA_1]) &&
           is_share(options[BETA_2]) && is_amount(options[EPSILON]) && is_flag(options[REDDI]) &&
           is_amount(options[WEIGHT_DECAY]);
}

/* Slots are the accumulator and then the preconditioner. */
static float yogi_initial(const double *options, size_t slot) {
    return slot == 1 ? (float)options[INITIAL_PRECONDITIONER] : 0;
}

static double bias_correction(const double *options, size_t step_num) {
    if (options[REDDI] != 0) return 1;
    const double steps = (double)step_num;
    return sqrt(1 - pow(options[BETA_2], steps)) / (1 - pow(options[BETA_1], steps));
}

static fed_moments moments_of(const double *options, const piece *at, double rate) {
    return (fed_moments){.share_1 = (float)(1 - options[BETA_1]),
                         .share_2 = (float)(1 - options[BETA_2]),
                         .epsilon = (float)options[EPSILON],
                         .rate = (float)rate,
                         .learning_rate = rate_of(options, at),
                         .weight_decay = (float)options[WEIGHT_DECAY]};
}

static void adam_run(const double *options, const piece *at, float *slots) {
    const double rate = options[LEARNING_RATE] * at->rate_factor;
    const fed_moments moments =
        moments_of(options, at, rate * bias_correction(options, at->step_num));
    at->kernels->adam(at->params, slots, slots + at->slot_stride, at->gradient, at->num_params,
                      &moments);
}

static void adamw_run(const double *options, const piece *at, float *slots) {
    const fed_moments moments = moments_of(options, at, bias_correction(options, at->step_num));
    at->kernels->adamw(at->params, slots, slots + at->slot_stride, at->gradient, at->num_params,
                       &moments);
}

static void yogi_run(const double *options, const piece *at, float *slots) {
    const double rate = options[LEARNING_RATE] * at->rate_factor;
    const fed_moments moments =
        moments_of(options, at, rate * bias_correction(options, at->step_num));
    at->kernels->yogi(at->params, slots, slots + at->slot_stride, at->gradient, at->num_params,
                      &moments);
}

/* ---- Adagrad: learning rate, epsilon, reddi, the preconditioner's initial value -------------- */

enum { ADAGRAD_EPSILON = 1, ADAGRAD_REDDI, ADAGRAD_INITIAL };

static int adagrad_check(const double *options) {
    return is_amount(options[LEARNING_RATE]) && is_amount(options[ADAGRAD_EPSILON]) &&
           is_flag(options[ADAGRAD_REDDI]) && is_amount(options[ADAGRAD_INITIAL]);
}

static float adagrad_initial(const double *options, size_t slot) {
    (void)slot;
    return (float)options[ADAGRAD_INITIAL];
}

static void adagrad_run(const double *options, const piece *at, float *slots) {
    at->kernels->adagrad(at->params, slots, at->gradient, at->num_params, rate_of(options, at),
                         (float)options[ADAGRAD_EPSILON], options[ADAGRAD_REDDI] != 0);
}

/* ---- RMSprop: learning rate, decay, epsilon -------------------------------------------------- */

enum { RMSPROP_DECAY = 1, RMSPROP_EPSILON };

static int rmsprop_check(const double *options) {
    return is_amount(options[LEARNING_RATE]) && is_share(options[RMSPROP_DECAY]) &&
           is_amount(options[RMSPROP_EPSILON]);
}

static void rmsprop_run(const double *options, const piece *at, float *slots) {
    at->kernels->rmsprop(at->params, slots, at->gradient, at->num_params, rate_of(options, at),
                         (float)(1 - options[RMSPROP_DECAY]), (float)options[RMSPROP_EPSILON]);
}

/* ---- Adafactor: learning rate, beta_2_decay, epsilons, clip threshold, relative step --------- */

enum { BETA_2_DECAY = 1, EPSILON_1, EPSILON_2, CLIP_THRESHOLD, RELATIVE_STEP };

static int adafactor_check(const double *options) {
    return is_amount(options[LEARNING_RATE]) && is_amount(-options[BETA_2_DECAY]) &&
           options[BETA_2_DECAY] < 0 && is_amount(options[EPSILON_1]) && options[EPSILON_1] > 0 &&
           is_amount(options[EPSILON_2]) && is_amount(options[CLIP_THRESHOLD]) &&
           options[CLIP_THRESHOLD] > 0 && is_flag(options[RELATIVE_STEP]);
}

/* The first slot holds the means of rows, and the second those of columns; the means of a tensor
 * begin at the index of its first parameter. */
static void adafactor_run(const double *options, const piece *at, float *slots) {
    const double steps = (double)at->step_num, most = 1 / sqrt(steps);
    fed_adafactor how = {.rate = options[LEARNING_RATE] * at->rate_factor,
                         .kept = 1 - pow(steps, options[BETA_2_DECAY]),
                         .epsilon_1 = options[EPSILON_1],
                         .epsilon_2 = options[EPSILON_2],
                         .clip_threshold = options[CLIP_THRESHOLD]};
    if (options[RELATIVE_STEP] != 0 && how.rate > most) how.rate = most;
    for (size_t t = 0, start = 0; t < at->tensors->num; t++) {
        const fed_tensor *tensor = &at->tensors->each[t];
        fed_adafactor_move(&how, at->kernels, tensor, at->params + start, at->gradient + start,
                           slots + start, slots + at->slot_stride + start);
        start += fed_tensor_size(tensor);
    }
}

/* ---- Terms of single clients ----------------------------------------------------------------- */

static int no_options_check(const double *options) { return (void)options, 1; }

static void linear_run(const double *options, const piece *at, float *slots) {
    (void)options, (void)slots;
    if (at->linear != NULL) at->kernels->sgd(at->gradient, at->linear, at->num_params, -1);
}

/* The step loop has already subtracted the gradient at the server's parameters. */
static void anchor_run(const double *options, const piece *at, float *slots) {
    (void)options, (void)at, (void)slots;
}

/* ---- The gradient alone ---------------------------------------------------------------------- */

/* For fed_step_apply, and for the parts of a batch (client.c). In local steps, gradients are added
 * to the parameters directly. */
static void gradient_run(const double *options, const piece *at, float *slots) {
    (void)options, (void)slots;
    at->kernels->sgd(at->params, at->gradient, at->num_params, 1);
}

/* ---- The table ------------------------------------------------------------------------------- */

static const step_ops ops[FED_NUM_STEP_KINDS] = {
    [FED_STEP_SGD] = {sgd_check, sgd_num_slots, NULL, sgd_run, .keeps_span = 1},
    [FED_STEP_PROXIMAL] = {proximal_check, no_slots, NULL, proximal_run, .keeps_span = 1},
    [FED_STEP_ADAM] = {moments_check, two_slots, NULL, adam_run, .keeps_span = 0},
    [FED_STEP_ADAMW] = {moments_check, two_slots, NULL, adamw_run, .keeps_span = 0},
    [FED_STEP_YOGI] = {moments_check, two_slots, yogi_initial, yogi_run, .keeps_span = 0},
    [FED_STEP_ADAGRAD] = {adagrad_check, one_slot, adagrad_initial, adagrad_run, .keeps_span = 0},
    [FED_STEP_RMSPROP] = {rmsprop_check, one_slot, NULL, rmsprop_run, .keeps_span = 0},
    [FED_STEP_GRADIENT] = {no_options_check, no_slots, NULL, gradient_run, .keeps_span = 1},
    /* In a narrow layer one gradient replaces the gradients of all fixed pixels; the norm is the
     * same. */
    [FED_STEP_CLIP] = {clip_check, no_slots, NULL, clip_run, .keeps_span = 1, .needs_whole = 1},
    [FED_STEP_LINEAR] = {no_options_check, no_slots, NULL, linear_run, .keeps_span = 0},
    /* The gradients of two passes are added before the update. */
    [FED_STEP_ANCHOR] = {no_options_check, no_slots, NULL, anchor_run, .keeps_span = 1,
                         .needs_whole = 1},
    /* Decay also shrinks the part of the weights that lies outside the span of the gradients. */
    [FED_STEP_DECAY] = {proximal_check, no_slots, NULL, decay_run, .keeps_span = 0},
    [FED_STEP_ADAFACTOR] = {adafactor_check, two_slots, NULL, adafactor_run, .keeps_span = 0,
                            .needs_whole = 1, .needs_tensors = 1},
};

int fed_step_check(const fed_step *step) {
    if (step->num_rows < 1) return FED_ERR_ARGUMENT;
    for (size_t r = 0; r < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        if (row->kind < 0 || row->kind >= FED_NUM_STEP_KINDS) return FED_ERR_ARGUMENT;
        if (!ops[row->kind].check(row->options)) return FED_ERR_ARGUMENT;
        if (row->kind == FED_STEP_GRADIENT && step->num_rows > 1) return FED_ERR_ARGUMENT;
    }
    return FED_OK;
}

static size_t row_slots(const fed_step_row *row) { return ops[row->kind].num_slots(row->options); }

size_t fed_step_slots(const fed_step *step) {
    size_t num_slots = 0;
    for (size_t r = 0; r < step->num_rows; r++) num_slots += row_slots(&step->rows[r]);
    return num_slots;
}

void fed_step_init_slots(const fed_step *step, size_t num_params, float *slots) {
    for (size_t r = 0; r < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        for (size_t s = 0; s < row_slots(row); s++, slots += num_params) {
            const float value =
                ops[row->kind].initial != NULL ? ops[row->kind].initial(row->options, s) : 0;
            for (size_t p = 0; p < num_params; p++) slots[p] = value;
        }
    }
}

int fed_step_is_gradient(const fed_step *step) { return step->rows[0].kind == FED_STEP_GRADIENT; }

int fed_step_has(const fed_step *step, int kind) {
    for (size_t r = 0; r < step->num_rows; r++)
        if (step->rows[r].kind == kind) return 1;
    return 0;
}

int fed_step_keeps_span(const fed_step *step) {
    for (size_t r = 0; r < step->num_rows; r++)
        if (!ops[step->rows[r].kind].keeps_span) return 0;
    return 1;
}

int fed_step_is_elementwise(const fed_step *step) {
    for (size_t r = 0; r < step->num_rows; r++)
        if (ops[step->rows[r].kind].needs_whole) return 0;
    return 1;
}

int fed_step_needs_tensors(const fed_step *step) {
    for (size_t r = 0; r < step->num_rows; r++)
        if (ops[step->rows[r].kind].needs_tensors) return 1;
    return 0;
}

/* 1 if a * b is at most num_left. */
static int fits(size_t a, size_t b, size_t num_left) { return b == 0 || a <= num_left / b; }

int fed_step_takes_tensors(const fed_step *step, const fed_tensors *tensors, size_t num_params) {
    if (!fed_step_needs_tensors(step)) return 1;
    if (tensors == NULL) return 0;
    size_t num_left = num_params;
    for (size_t t = 0; t < tensors->num; t++) {
        const fed_tensor *tensor = &tensors->each[t];
        if (!fits(tensor->num_rows, tensor->num_columns, num_left) ||
            !fits(tensor->num_matrices, tensor->num_rows * tensor->num_columns, num_left) ||
            fed_tensor_size(tensor) > num_left)
            return 0;
        num_left -= fed_tensor_size(tensor);
    }
    return num_left == 0;
}

static void copy_frozen_slots(const fed_step *step, const fed_local_step *at, size_t start,
                              size_t num) {
    for (size_t s = 0; s < fed_step_slots(step); s++) {
        const size_t first = s * at->num_params + start;
        memcpy(at->slots + first, at->frozen_slots + first, num * sizeof *at->slots);
    }
}

void fed_step_run(const fed_step *step, const fed_local_step *at, size_t start, size_t num,
                  float *gradient) {
    const piece moved = {.kernels = at->kernels,
                         .step_num = at->step_num,
                         .num_params = num,
                         .slot_stride = at->num_params,
                         .params = at->params + start,
                         .server_params = at->server_params + start,
                         .gradient = gradient,
                         .linear = at->linear != NULL ? at->linear + start : NULL,
                         .rate_factor = at->rate_factor,
                         .tensors = at->tensors};
    if (at->frozen_slots != NULL) copy_frozen_slots(step, at, start, num);
    size_t slot = 0;
    for (size_t r = 0; r < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        const size_t num_slots = row_slots(row);
        ops[row->kind].run(row->options, &moved,
                           num_slots > 0 ? at->slots + slot * at->num_params + start : NULL);
        slot += num_slots;
    }
}

int fed_step_apply(const fed_step *step, const fed_tensors *tensors, size_t step_num,
                   size_t num_params, float *params, const float *server_params,
                   const float *linear, float *gradient, float *slots) {
    const int status = step_num >= 1 ? fed_step_check(step) : FED_ERR_ARGUMENT;
    if (status != FED_OK) return status;
    if (fed_step_has(step, FED_STEP_ANCHOR) || !fed_step_takes_tensors(step, tensors, num_params))
        return FED_ERR_ARGUMENT;
    const fed_local_step at = {.kernels = fed_active_kernels(),
                               .step_num = step_num,
                               .num_params = num_params,
                               .params = params,
                               .server_params = server_params,
                               .linear = linear,
                               .slots = slots,
                               .rate_factor = 1,
                               .tensors = tensors};
    const fp_mode before = denormals_off();
    fed_step_run(step, &at, 0, num_params, gradient);
    fp_restore(before);
    return FED_OK;
}

void fed_update_take(const fed_update *update, size_t start, size_t num) {
    const fed_shift *shift = update->shift;
    if (update->sum == NULL)
        fed_step_run(update->step, update->at, start, num, update->piece);
    else if (shift != NULL)
        update->at->kernels->shrink_and_move(update->sum + start, shift->vector + start, num,
                                             shift->kept, shift->rate);
}
