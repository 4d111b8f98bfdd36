/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of the kernels of each instruction set: against hand-worked values, against naive
 * references in double, and against the generic variant. Every array starts one float off its
 * alignment and has guards at both ends.
 *
 * Bounds. A sum of n products rounded to float in any order, with or without fused multiply-adds,
 * has an error of at most n * UNIT_ROUNDOFF * (sum of the products' magnitudes), to first order;
 * one unit more is allowed for the second order. A forgotten term is about 1/n of that sum, which
 * is far above the bound for every n here.
 */
#include "fixtures.h"

#include <float.h>

enum { GUARDS = 16, MAX_CLASSES = 62 };
static const float GUARD = -12345.0f;
static const size_t SIZES[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 784};

/* ---- Guarded arrays -------------------------------------------------------------------------- */

typedef struct guarded {
    float *base, *values; /* values: one float off base's alignment of 64 bytes */
    size_t num_values;
} guarded;

static guarded guarded_new(size_t num_values, uint64_t seed, double scale) {
    guarded g = {.num_values = num_values};
    g.base = fed_allocate((2 * GUARDS + 1 + num_values) * sizeof(*g.base));
    CHECK(g.base != NULL);
    g.values = g.base + GUARDS + 1;
    for (size_t i = 0; i < 2 * GUARDS + 1 + num_values; i++) g.base[i] = GUARD;
    fill_floats(seed, scale, g.values, num_values);
    return g;
}

static void guarded_free(guarded *g) {
    for (size_t i = 0; i < GUARDS; i++) {
        CHECK(g->values[-1 - (ptrdiff_t)i] == GUARD);
        CHECK(g->values[g->num_values + i] == GUARD);
    }
    free(g->base);
}

/* ---- Dense ----------------------------------------------------------------------------------- */

/* Weights, inputs and a gradient of random numbers. The order of the rows in memory is reversed. */
typedef struct dense {
    size_t width, num_outputs, num_rows;
    guarded weights, bias, inputs, gradient;
    const float *rows[FED_LANES];
} dense;

static dense dense_new(size_t width, size_t num_outputs, size_t num_rows) {
    dense d = {.width = width, .num_outputs = num_outputs, .num_rows = num_rows};
    d.weights = guarded_new(num_outputs * width, 1, 1);
    d.bias = guarded_new(num_outputs, 2, 1);
    d.inputs = guarded_new(num_rows * width, 3, 1);
    d.gradient = guarded_new(num_outputs * FED_LANES, 4, 1);
    for (size_t b = 0; b < num_rows; b++) d.rows[b] = d.inputs.values + (num_rows - 1 - b) * width;
    return d;
}

static void dense_free(dense *d) {
    guarded_free(&d->weights);
    guarded_free(&d->bias);
    guarded_free(&d->inputs);
    guarded_free(&d->gradient);
}

static void for_each_dense(void (*check)(dense *)) {
    static const size_t widths[] = {16, 32, 48, 784};
    static const size_t outputs[] = {1, 2, 3, 4, 5, 6, 9, 10, 11, 62};
    static const size_t rows[] = {0, 1, 2, 3, 4, 5, 9, 20, 31, 32};
    for (size_t w = 0; w < LENGTH(widths); w++)
        for (size_t o = 0; o < LENGTH(outputs); o++)
            for (size_t r = 0; r < LENGTH(rows); r++) {
                dense d = dense_new(widths[w], outputs[o], rows[r]);
                check(&d);
                dense_free(&d);
            }
}

static void check_forward(dense *d) {
    guarded out = guarded_new(d->num_outputs * FED_LANES, 5, 1);
    fed_active_kernels()->dense_forward(d->weights.values, d->bias.values, d->width, d->num_outputs,
                                        d->rows, d->num_rows, out.values);
    for (size_t o = 0; o < d->num_outputs; o++)
        for (size_t b = 0; b < d->num_rows; b++) {
            double sum = d->bias.values[o], magnitude = fabs(sum);
            for (size_t i = 0; i < d->width; i++) {
                const double term = (double)d->weights.values[o * d->width + i] * d->rows[b][i];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(out.values[o * FED_LANES + b], sum,
                        (double)(d->width + 2) * UNIT_ROUNDOFF * magnitude);
        }
    guarded_free(&out);
}

static void test_dense_forward_equals_reference(void) { for_each_dense(check_forward); }

static void check_accumulate(dense *d) {
    const dense before = dense_new(d->width, d->num_outputs, d->num_rows);
    fed_active_kernels()->dense_accumulate(d->weights.values, d->bias.values, d->width,
                                           d->num_outputs, d->rows, d->num_rows,
                                           d->gradient.values);
    const double bound = (double)(d->num_rows + 2) * UNIT_ROUNDOFF;
    for (size_t o = 0; o < d->num_outputs; o++) {
        const float *gradient = d->gradient.values + o * FED_LANES;
        for (size_t i = 0; i <= d->width; i++) { /* the last i is the bias, whose input is 1 */
            const int is_bias = i == d->width;
            const size_t w = o * d->width + i;
            double sum = is_bias ? before.bias.values[o] : before.weights.values[w];
            double magnitude = fabs(sum);
            for (size_t b = 0; b < d->num_rows; b++) {
                const double term = (double)gradient[b] * (is_bias ? 1 : d->rows[b][i]);
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(is_bias ? d->bias.values[o] : d->weights.values[w], sum, bound * magnitude);
        }
    }
    dense_free(&(dense){.weights = before.weights,
                        .bias = before.bias,
                        .inputs = before.inputs,
                        .gradient = before.gradient});
}

static void test_dense_accumulate_equals_reference(void) { for_each_dense(check_accumulate); }

/* Makes about two of three values 0, and all values of each fourth row. */
static void make_zeros(float *values, size_t num_rows, size_t width) {
    uint64_t state = 9;
    for (size_t i = 0; i < num_rows * width; i++)
        if (next_bits(&state) % 3 != 0 || i / width % 4 == 3) values[i] = 0;
}

static void check_accumulate_with_zeros(dense *d) {
    make_zeros(d->gradient.values, d->num_outputs, FED_LANES);
    check_accumulate(d);
}

static void test_dense_accumulate_leaves_out_zeros(void) {
    for_each_dense(check_accumulate_with_zeros);
}

/* The stride of the rows' gradients is larger than their length; the memory between them must not
 * change. */
static void check_backward_inputs(dense *d) {
    const size_t stride = d->width + d->num_rows % FED_PAD, num_values = d->num_rows * stride;
    guarded out = guarded_new(num_values, 5, 1), before = guarded_new(num_values, 5, 1);
    fed_active_kernels()->dense_backward_inputs(d->weights.values, d->width, d->num_outputs,
                                                d->gradient.values, d->num_rows, out.values,
                                                stride);
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t i = 0; i < stride; i++) {
            const size_t at = b * stride + i;
            double sum = 0, magnitude = 0;
            for (size_t o = 0; o < d->num_outputs && i < d->width; o++) {
                const double term = (double)d->weights.values[o * d->width + i] *
                                    d->gradient.values[o * FED_LANES + b];
                sum += term;
                magnitude += fabs(term);
            }
            if (i < d->width)
                CHECK_CLOSE(out.values[at], sum,
                            (double)(d->num_outputs + 1) * UNIT_ROUNDOFF * magnitude);
            else
                CHECK(out.values[at] == before.values[at]);
        }
    guarded_free(&out);
    guarded_free(&before);
}

/* Zeros are left out only where they are many among the outputs or rows of a call. The bytes of
 * outputs and of rows must not depend on that. */
static void test_zeros_left_out_change_no_byte(void) {
    enum { WIDTH = 784, FEW = 4, ALL = 16, ROWS = 9 };
    dense few = dense_new(WIDTH, FEW, ROWS), all = dense_new(WIDTH, ALL, ROWS);
    const size_t num_few = FEW * WIDTH;
    make_zeros(few.gradient.values, FEW, FED_LANES);
    for (size_t i = 0; i < FEW * FED_LANES; i++) all.gradient.values[i] = few.gradient.values[i];
    for (size_t i = 0; i < num_few; i++) all.weights.values[i] = few.weights.values[i];
    const fed_kernels *kernels = fed_active_kernels();
    kernels->dense_accumulate(few.weights.values, few.bias.values, WIDTH, FEW, few.rows, ROWS,
                              few.gradient.values);
    kernels->dense_accumulate(all.weights.values, all.bias.values, WIDTH, ALL, all.rows, ROWS,
                              all.gradient.values);
    CHECK_BYTES(all.weights.values, few.weights.values, num_few * sizeof(float));
    dense_free(&few);
    dense_free(&all);
}

static void test_a_row_does_not_depend_on_the_zeros_of_other_rows(void) {
    enum { INPUTS = 208, OUTPUTS = 176, FEW = 3, ALL = 16 };
    guarded weights = guarded_new(INPUTS * OUTPUTS, 1, 1), bias = guarded_new(OUTPUTS, 2, 1);
    guarded inputs = guarded_new(ALL * INPUTS, 3, 1);
    guarded few = guarded_new(FEW * OUTPUTS, 4, 1), all = guarded_new(ALL * OUTPUTS, 5, 1);
    const float *rows[ALL];
    make_zeros(inputs.values, FEW, INPUTS);
    for (size_t b = 0; b < ALL; b++) rows[b] = inputs.values + b * INPUTS;
    const fed_kernels *kernels = fed_active_kernels();
    kernels->tiles_forward(weights.values, OUTPUTS, bias.values, INPUTS, OUTPUTS, rows, FEW,
                           few.values, OUTPUTS);
    kernels->tiles_forward(weights.values, OUTPUTS, bias.values, INPUTS, OUTPUTS, rows, ALL,
                           all.values, OUTPUTS);
    CHECK_BYTES(all.values, few.values, FEW * OUTPUTS * sizeof(float));
    guarded_free(&weights);
    guarded_free(&bias);
    guarded_free(&inputs);
    guarded_free(&few);
    guarded_free(&all);
}

/* A gradient or an input of NaN is not a zero: it spoils its sums. */
static void test_nan_among_zeros_is_not_left_out(void) {
    dense d = dense_new(16, 3, 5);
    for (size_t i = 0; i < 3 * FED_LANES; i++) d.gradient.values[i] = 0;
    d.gradient.values[FED_LANES + 4] = NAN;
    const fed_kernels *kernels = fed_active_kernels();
    kernels->dense_accumulate(d.weights.values, d.bias.values, 16, 3, d.rows, 5, d.gradient.values);
    for (size_t i = 0; i < 3 * 16; i++) CHECK_EQUAL(isnan(d.weights.values[i]) != 0, i / 16 == 1);
    float inputs[2 * 16] = {0}, weights[16 * 16] = {0}, bias[16] = {0}, outputs[2 * 16];
    const float *const rows[] = {inputs, inputs + 16};
    inputs[16 + 7] = NAN;
    kernels->tiles_forward(weights, 16, bias, 16, 16, rows, 2, outputs, 16);
    for (size_t i = 0; i < 2 * 16; i++) CHECK_EQUAL(isnan(outputs[i]) != 0, i / 16 == 1);
    dense_free(&d);
}

static void test_dense_backward_inputs_equals_reference(void) {
    for_each_dense(check_backward_inputs);
}

static void test_dense_without_rows_changes_nothing(void) {
    dense d = dense_new(32, 10, 0), before = dense_new(32, 10, 0);
    guarded out = guarded_new(10 * FED_LANES, 5, 1), out_before = guarded_new(10 * FED_LANES, 5, 1);
    const fed_kernels *kernels = fed_active_kernels();
    kernels->dense_forward(d.weights.values, d.bias.values, 32, 10, d.rows, 0, out.values);
    kernels->dense_accumulate(d.weights.values, d.bias.values, 32, 10, d.rows, 0,
                              d.gradient.values);
    CHECK_BYTES(out.values, out_before.values, 10 * FED_LANES * sizeof(float));
    CHECK_BYTES(d.weights.values, before.weights.values, 32 * 10 * sizeof(float));
    CHECK_BYTES(d.bias.values, before.bias.values, 10 * sizeof(float));
    guarded_free(&out);
    guarded_free(&out_before);
    dense_free(&d);
    dense_free(&before);
}

static void check_dense_agrees(dense *d) {
    const size_t num_values = d->num_outputs * FED_LANES;
    guarded out = guarded_new(num_values, 5, 0), expected = guarded_new(num_values, 5, 0);
    fed_active_kernels()->dense_forward(d->weights.values, d->bias.values, d->width, d->num_outputs,
                                        d->rows, d->num_rows, out.values);
    fed_kernels_generic.dense_forward(d->weights.values, d->bias.values, d->width, d->num_outputs,
                                      d->rows, d->num_rows, expected.values);
    /* Each value has at most width + 2 rounding errors, of magnitudes below width + 1. */
    const double bound = 2.0 * (double)((d->width + 2) * (d->width + 1)) * UNIT_ROUNDOFF;
    for (size_t i = 0; i < num_values; i++) CHECK_CLOSE(out.values[i], expected.values[i], bound);
    guarded_free(&out);
    guarded_free(&expected);
}

static void test_dense_forward_agrees_with_generic(void) { for_each_dense(check_dense_agrees); }

/* A lane without an example may have any value. */
static void check_unused_lanes(int has_zeros) {
    dense d = dense_new(48, 10, 9), expected = dense_new(48, 10, 9);
    if (has_zeros) {
        make_zeros(d.gradient.values, 10, FED_LANES);
        make_zeros(expected.gradient.values, 10, FED_LANES);
    }
    for (size_t o = 0; o < 10; o++)
        for (size_t b = 9; b < FED_LANES; b++) d.gradient.values[o * FED_LANES + b] = NAN;
    const fed_kernels *kernels = fed_active_kernels();
    kernels->dense_accumulate(d.weights.values, d.bias.values, 48, 10, d.rows, 9,
                              d.gradient.values);
    kernels->dense_accumulate(expected.weights.values, expected.bias.values, 48, 10, expected.rows,
                              9, expected.gradient.values);
    CHECK_BYTES(d.weights.values, expected.weights.values, 48 * 10 * sizeof(float));
    CHECK_BYTES(d.bias.values, expected.bias.values, 10 * sizeof(float));
    dense_free(&d);
    dense_free(&expected);
}

static void test_dense_accumulate_ignores_lanes_without_rows(void) {
    check_unused_lanes(0);
    check_unused_lanes(1);
}

/* Weights [I, O] with values between their rows, which must not be used. */
static void check_tiles_forward(size_t num_inputs, size_t num_outputs, size_t num_rows) {
    const size_t weights_stride = num_outputs + FED_PAD, stride = num_outputs + 1;
    guarded weights = guarded_new(num_inputs * weights_stride, 1, 1);
    guarded bias = guarded_new(num_outputs, 2, 1),
            inputs = guarded_new(num_rows * num_inputs, 3, 1);
    guarded out = guarded_new(num_rows * stride, 4, 1),
            before = guarded_new(num_rows * stride, 4, 1);
    const float **rows = test_alloc(num_rows * sizeof *rows);
    make_zeros(inputs.values, num_rows, num_inputs);
    for (size_t b = 0; b < num_rows; b++) rows[b] = inputs.values + (num_rows - 1 - b) * num_inputs;
    fed_active_kernels()->tiles_forward(weights.values, weights_stride, bias.values, num_inputs,
                                        num_outputs, rows, num_rows, out.values, stride);
    for (size_t b = 0; b < num_rows; b++)
        for (size_t o = 0; o < stride; o++) {
            const size_t at = b * stride + o;
            if (o == num_outputs) {
                CHECK(out.values[at] == before.values[at]);
                continue;
            }
            double sum = bias.values[o], magnitude = fabs(sum);
            for (size_t i = 0; i < num_inputs; i++) {
                const double term = (double)weights.values[i * weights_stride + o] * rows[b][i];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(out.values[at], sum, (double)(num_inputs + 2) * UNIT_ROUNDOFF * magnitude);
        }
    free(rows);
    guarded_free(&weights);
    guarded_free(&bias);
    guarded_free(&inputs);
    guarded_free(&out);
    guarded_free(&before);
}

static void test_tiles_forward_leaves_out_zeros(void) {
    static const size_t inputs[] = {16, 32, 48, 208};
    static const size_t outputs[] = {16, 32, 48, 160, 176, 208};
    static const size_t rows[] = {0, 1, 2, 9, 10, 16, 17, 31, 32, 33};
    for (size_t i = 0; i < LENGTH(inputs); i++)
        for (size_t o = 0; o < LENGTH(outputs); o++)
            for (size_t r = 0; r < LENGTH(rows); r++)
                check_tiles_forward(inputs[i], outputs[o], rows[r]);
}

/* The tensors of a dense layer's backward pass, whose rows begin FIRST_INPUT values before its
 * inputs. */
enum { FIRST_INPUT = 16 };

typedef struct tiles {
    size_t num_inputs, num_outputs, num_rows;
    guarded weights, target, inputs, gradient, inputs_gradient;
    const float **rows;
} tiles;

static tiles tiles_new(size_t num_inputs, size_t num_outputs, size_t num_rows) {
    const size_t width = FIRST_INPUT + num_inputs;
    tiles t = {num_inputs,
               num_outputs,
               num_rows,
               guarded_new(num_inputs * num_outputs, 1, 1),
               guarded_new(num_inputs * num_outputs, 2, 1),
               guarded_new(num_rows * width, 3, 1),
               guarded_new(num_rows * (num_outputs + 1), 4, 1),
               guarded_new(num_rows * (num_inputs + 1), 5, 1),
               test_alloc(num_rows * sizeof(float *))};
    make_zeros(t.inputs.values, num_rows, width);
    for (size_t b = 0; b < num_rows; b++) t.rows[b] = t.inputs.values + (num_rows - 1 - b) * width;
    return t;
}

static void tiles_free(tiles *t) {
    free(t->rows);
    guarded_free(&t->weights);
    guarded_free(&t->target);
    guarded_free(&t->inputs);
    guarded_free(&t->gradient);
    guarded_free(&t->inputs_gradient);
}

static void check_weights_gradient(const tiles *t, const float *before, const float *after) {
    for (size_t i = 0; i < t->num_inputs; i++)
        for (size_t o = 0; o < t->num_outputs; o++) {
            const size_t at = i * t->num_outputs + o;
            double sum = before == NULL ? 0 : before[at], magnitude = fabs(sum);
            for (size_t b = 0; b < t->num_rows; b++) {
                const double term = (double)t->rows[b][FIRST_INPUT + i] *
                                    t->gradient.values[b * (t->num_outputs + 1) + o];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(after[at], sum, (double)(t->num_rows + 2) * UNIT_ROUNDOFF * magnitude);
        }
}

/* Where an input is 0, its gradient may be 0. */
static void check_inputs_gradient(const tiles *t, const float *weights) {
    for (size_t b = 0; b < t->num_rows; b++)
        for (size_t i = 0; i < t->num_inputs; i++) {
            const float got = t->inputs_gradient.values[b * (t->num_inputs + 1) + i];
            if (t->rows[b][FIRST_INPUT + i] == 0 && got == 0) continue;
            double sum = 0, magnitude = 0;
            for (size_t o = 0; o < t->num_outputs; o++) {
                const double term = (double)weights[i * t->num_outputs + o] *
                                    t->gradient.values[b * (t->num_outputs + 1) + o];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(got, sum, (double)(t->num_outputs + 2) * UNIT_ROUNDOFF * magnitude);
        }
}

static void run_tiles_backward(const tiles *t, float *target, int is_fresh) {
    const fed_tiles_backward backward = {.weights = t->weights.values,
                                         .target = target,
                                         .is_fresh = is_fresh,
                                         .num_inputs = t->num_inputs,
                                         .num_outputs = t->num_outputs,
                                         .num_rows = t->num_rows,
                                         .rows = t->rows,
                                         .first_input = FIRST_INPUT,
                                         .gradient = t->gradient.values,
                                         .gradient_stride = t->num_outputs + 1,
                                         .inputs_gradient = t->inputs_gradient.values,
                                         .inputs_stride = t->num_inputs + 1,
                                         .ignores_zeros = 1};
    fed_active_kernels()->tiles_backward(&backward);
}

/* The gradient by the weights is added to the weights themselves or to other values, or replaces
 * these. */
static void check_tiles_backward(size_t num_inputs, size_t num_outputs, size_t num_rows) {
    enum { IN_PLACE, BESIDE, FRESH, NUM_TARGETS };
    for (int kind = 0; kind < NUM_TARGETS; kind++) {
        tiles t = tiles_new(num_inputs, num_outputs, num_rows);
        tiles before = tiles_new(num_inputs, num_outputs, num_rows);
        const guarded *target = kind == IN_PLACE ? &t.weights : &t.target;
        const guarded *old = kind == IN_PLACE ? &before.weights : &before.target;
        run_tiles_backward(&t, target->values, kind == FRESH);
        check_weights_gradient(&t, kind == FRESH ? NULL : old->values, target->values);
        check_inputs_gradient(&t, before.weights.values);
        for (size_t b = 0; b < num_rows; b++) {
            const size_t beside = b * (num_inputs + 1) + num_inputs;
            CHECK(t.inputs_gradient.values[beside] == before.inputs_gradient.values[beside]);
        }
        tiles_free(&t);
        tiles_free(&before);
    }
}

static void test_tiles_backward_leaves_out_zeros(void) {
    static const size_t inputs[] = {16, 32, 48};
    static const size_t outputs[] = {16, 48, 208, 528};
    static const size_t rows[] = {0, 1, 2, 10, 24, 32, 33};
    for (size_t i = 0; i < LENGTH(inputs); i++)
        for (size_t o = 0; o < LENGTH(outputs); o++)
            for (size_t r = 0; r < LENGTH(rows); r++)
                check_tiles_backward(inputs[i], outputs[o], rows[r]);
}

/* An input that is not 0 in more rows than a tile has, while all other inputs are 0. */
static void test_tiles_backward_with_an_input_in_all_rows(void) {
    enum { INPUTS = 32, OUTPUTS = 48, ROWS = 32 };
    tiles t = tiles_new(INPUTS, OUTPUTS, ROWS), before = tiles_new(INPUTS, OUTPUTS, ROWS);
    for (size_t b = 0; b < ROWS; b++)
        for (size_t i = 0; i < INPUTS; i++)
            t.inputs.values[b * (FIRST_INPUT + INPUTS) + FIRST_INPUT + i] =
                i == 5 ? 1 + (float)b : 0;
    run_tiles_backward(&t, t.weights.values, 0);
    check_weights_gradient(&t, before.weights.values, t.weights.values);
    check_inputs_gradient(&t, before.weights.values);
    tiles_free(&t);
    tiles_free(&before);
}

/* ---- Softmax cross-entropy ------------------------------------------------------------------- */

/* One block: the logits, and the kernel's results. */
typedef struct block {
    size_t num_classes, num_rows;
    int32_t labels[FED_LANES];
    bool is_mixed; /* with other_labels, which are not read otherwise */
    int32_t other_labels[FED_LANES];
    float share;
    float logits[FED_LANES][MAX_CLASSES];
    float gradient[FED_LANES][MAX_CLASSES];
    fed_score score;
} block;

/* Lanes without a row are filled with NaN, which must not affect the result. Weights end at a guard
 * page. */
static void run_loss(const fed_kernels *kernels, block *blk, float scale,
                     const float *class_weights /* [K] or NULL */, float smoothing) {
    guarded lanes = guarded_new(blk->num_classes * FED_LANES, 0, 0);
    for (size_t k = 0; k < blk->num_classes; k++)
        for (size_t b = 0; b < FED_LANES; b++)
            lanes.values[k * FED_LANES + b] = b < blk->num_rows ? blk->logits[b][k] : NAN;
    blk->score = (fed_score){0, 0};
    guarded weights = guarded_new(blk->num_classes, 0, 0);
    if (class_weights != NULL)
        memcpy(weights.values, class_weights, blk->num_classes * sizeof *class_weights);
    const fed_loss loss = {class_weights != NULL ? weights.values : NULL, smoothing};
    const fed_targets targets = {
        .labels = blk->labels,
        .other_labels = blk->is_mixed ? blk->other_labels : NULL,
        .share = blk->share,
    };
    kernels->softmax_xent(lanes.values, blk->num_classes, &targets, blk->num_rows, scale, &loss,
                          &blk->score);
    guarded_free(&weights);
    for (size_t k = 0; k < blk->num_classes; k++)
        for (size_t b = 0; b < blk->num_rows; b++)
            blk->gradient[b][k] = lanes.values[k * FED_LANES + b];
    guarded_free(&lanes);
}

static void run_weighted(const fed_kernels *kernels, block *blk, float scale,
                         const float *class_weights) {
    run_loss(kernels, blk, scale, class_weights, 0);
}

static void run_softmax(const fed_kernels *kernels, block *blk, float scale) {
    run_weighted(kernels, blk, scale, NULL);
}

static block random_block(size_t num_classes, size_t num_rows, double scale, uint64_t seed) {
    block blk = {.num_classes = num_classes, .num_rows = num_rows};
    for (size_t b = 0; b < num_rows; b++) fill_floats(seed + b, scale, blk.logits[b], num_classes);
    fill_labels(seed, num_classes, blk.labels, num_rows);
    return blk;
}

/* A block of one row of three classes. */
static block row_of_three(float a, float b, float c, int32_t label) {
    block blk = {.num_classes = 3, .num_rows = 1, .labels = {label}, .logits = {{a, b, c}}};
    run_softmax(fed_active_kernels(), &blk, 1);
    return blk;
}

/* One row's logits as doubles. */
static void widen_row(const block *blk, size_t b, double *logits /* out [MAX_CLASSES] */) {
    for (size_t k = 0; k < MAX_CLASSES; k++) logits[k] = blk->logits[b][k];
}

static void test_equal_logits_give_log_of_classes_and_class_0(void) {
    for (size_t num_rows = 1; num_rows <= FED_LANES; num_rows++) {
        block blk = random_block(10, num_rows, 0, num_rows);
        run_softmax(fed_active_kernels(), &blk, 0.5f);
        int64_t num_zero = 0;
        for (size_t b = 0; b < num_rows; b++) {
            num_zero += blk.labels[b] == 0;
            for (int32_t k = 0; k < 10; k++)
                CHECK_CLOSE(blk.gradient[b][k], 0.5 * (0.1 - (k == blk.labels[b])), 1e-7);
        }
        CHECK_EQUAL(blk.score.num_correct, num_zero);
        CHECK_CLOSE(blk.score.loss_sum, (double)num_rows * log(10), 1e-12 * (double)num_rows);
    }
}

static void test_softmax_equals_hand_worked_quarters(void) {
    block blk = {.num_classes = 2, .num_rows = 2, .labels = {0, 1}};
    for (size_t b = 0; b < 2; b++) blk.logits[b][1] = (float)log(3);
    run_softmax(fed_active_kernels(), &blk, 1);
    CHECK_CLOSE(blk.score.loss_sum, log(4) + log(4.0 / 3), 1e-6);
    CHECK_EQUAL(blk.score.num_correct, 1);
    const double expected[2][2] = {{-0.75, 0.75}, {0.25, -0.25}};
    for (size_t b = 0; b < 2; b++)
        for (size_t k = 0; k < 2; k++) CHECK_CLOSE(blk.gradient[b][k], expected[b][k], 1e-7);
}

static void test_ties_go_to_the_first_class(void) {
    CHECK_EQUAL(row_of_three(1, 3, 3, 1).score.num_correct, 1);
    CHECK_EQUAL(row_of_three(1, 3, 3, 2).score.num_correct, 0);
    CHECK_EQUAL(row_of_three(3, 1, 3, 0).score.num_correct, 1);
    CHECK_EQUAL(row_of_three(-2, -2, -2, 0).score.num_correct, 1);
    CHECK_EQUAL(row_of_three(-0.0f, 0.0f, -1, 0).score.num_correct, 1);
}

static void test_single_class_has_no_loss(void) {
    block blk = {.num_classes = 1, .num_rows = 2, .logits = {{5}, {-3}}};
    run_softmax(fed_active_kernels(), &blk, 1);
    CHECK(blk.score.loss_sum == 0 && blk.gradient[0][0] == 0 && blk.gradient[1][0] == 0);
    CHECK_EQUAL(blk.score.num_correct, 2);
}

static void test_score_is_added_to(void) {
    float lanes[2 * FED_LANES] = {0};
    fed_score score = {100, 7};
    const fed_targets targets = {.labels = (const int32_t[]){0}};
    fed_active_kernels()->softmax_xent(lanes, 2, &targets, 1, 1, NULL, &score);
    CHECK_CLOSE(score.loss_sum, 100 + log(2), 1e-12);
    CHECK_EQUAL(score.num_correct, 8);
}

/* Row `bad` has a logit that is not finite; the other rows must be scored as without it. */
static void check_poisoned(float poison, size_t bad, size_t k, int32_t label) {
    block blk = random_block(10, 20, 1, 7), clean = random_block(10, 20, 1, 7);
    blk.logits[bad][k] = poison;
    blk.labels[bad] = label;
    run_softmax(fed_active_kernels(), &blk, 1);
    run_softmax(fed_active_kernels(), &clean, 1);
    CHECK(isnan(blk.score.loss_sum));
    int64_t num_correct = 0;
    for (size_t b = 0; b < 20; b++) {
        double logits[MAX_CLASSES];
        widen_row(&clean, b, logits);
        for (size_t j = 0; j < 10; j++)
            CHECK(b == bad ? isnan(blk.gradient[b][j])
                           : blk.gradient[b][j] == clean.gradient[b][j]);
        num_correct += b != bad && reference_argmax(logits, 10) == (size_t)clean.labels[b];
    }
    CHECK_EQUAL(blk.score.num_correct, num_correct);
}

static void test_nan_logit_is_wrong_and_spoils_its_row_only(void) {
    static const size_t rows[] = {0, 3, 16, 19}, classes[] = {0, 4, 9};
    for (size_t r = 0; r < LENGTH(rows); r++)
        for (size_t k = 0; k < LENGTH(classes); k++)
            for (int32_t label = 0; label < 10; label++)
                check_poisoned(NAN, rows[r], classes[k], label);
}

static void test_positive_infinite_logit_is_wrong_and_spoils_its_row_only(void) {
    for (size_t k = 0; k < 10; k += 3)
        for (int32_t label = 0; label < 10; label++) check_poisoned(INFINITY, 5, k, label);
}

static void test_all_logits_minus_infinity_lose_nan(void) {
    const block blk = row_of_three(-INFINITY, -INFINITY, -INFINITY, 0);
    CHECK(isnan(blk.score.loss_sum) && isnan(blk.gradient[0][0]));
    CHECK_EQUAL(blk.score.num_correct, 0);
}

static void test_minus_infinity_elsewhere_is_probability_0(void) {
    const block blk = row_of_three(-INFINITY, 0, 0, 1);
    CHECK_CLOSE(blk.score.loss_sum, log(2), 1e-7);
    CHECK_EQUAL(blk.score.num_correct, 1);
    CHECK_CLOSE(blk.gradient[0][0], 0, 1e-37);
    CHECK_CLOSE(blk.gradient[0][1], -0.5, 1e-7);
}

static void test_largest_floats_do_not_overflow(void) {
    const block blk = row_of_three(FLT_MAX, -FLT_MAX, 0, 1);
    CHECK_CLOSE(blk.score.loss_sum, 2.0 * FLT_MAX, 1e30);
    CHECK_CLOSE(blk.gradient[0][0], 1, 1e-7);
    CHECK_CLOSE(blk.gradient[0][1], -1, 1e-7);
}

/* A loss has an error of at most u (K + 4 + ln s + 2 |loss|): K sums and exponentials, each right
 * to an ulp. */
static void check_losses(size_t num_classes, double scale, uint64_t seed) {
    block blk = random_block(num_classes, 1, scale, seed);
    const int32_t label = blk.labels[0];
    double logits[MAX_CLASSES];
    widen_row(&blk, 0, logits);
    const double max = logits[reference_argmax(logits, num_classes)];
    const double exp_sum = reference_exp_sum(logits, num_classes);
    const double loss = reference_loss(logits, num_classes, label);
    run_softmax(fed_active_kernels(), &blk, 1);
    CHECK_CLOSE(blk.score.loss_sum, loss,
                UNIT_ROUNDOFF * ((double)num_classes + 4 + log(exp_sum) + 2 * loss));
    for (size_t k = 0; k < num_classes; k++)
        CHECK_CLOSE(blk.gradient[0][k],
                    exp(logits[k] - max) / exp_sum - (k == (size_t)label ? 1 : 0), 1e-6);
}

static void test_losses_are_within_their_bound_at_every_scale(void) {
    static const double scales[] = {0.1, 1, 5, 20, 60, 1000};
    static const size_t classes[] = {1, 2, 3, 10, 62};
    for (size_t s = 0; s < LENGTH(scales); s++)
        for (size_t k = 0; k < LENGTH(classes); k++)
            for (uint64_t seed = 0; seed < 100; seed++) check_losses(classes[k], scales[s], seed);
}

static void test_block_of_rows_scores_as_its_rows(void) {
    for (size_t num_rows = 1; num_rows <= FED_LANES; num_rows++) {
        block blk = random_block(62, num_rows, 10, num_rows);
        run_softmax(fed_active_kernels(), &blk, 1);
        double loss = 0, bound = 0;
        int64_t num_correct = 0;
        for (size_t b = 0; b < num_rows; b++) {
            block row = {.num_classes = 62, .num_rows = 1, .labels = {blk.labels[b]}};
            memcpy(row.logits[0], blk.logits[b], sizeof(row.logits[0]));
            run_softmax(fed_active_kernels(), &row, 1);
            CHECK_BYTES(blk.gradient[b], row.gradient[0], sizeof(row.gradient[0]));
            loss += row.score.loss_sum;
            bound += 1e-14 * (fabs(row.score.loss_sum) + 10);
            num_correct += row.score.num_correct;
        }
        CHECK_CLOSE(blk.score.loss_sum, loss, bound);
        CHECK_EQUAL(blk.score.num_correct, num_correct);
    }
}

/* A row's gradients add up to 0, except for a few rounding errors of each. */
static void test_gradient_rows_sum_to_zero(void) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        block blk = random_block(62, FED_LANES, 5, seed);
        run_softmax(fed_active_kernels(), &blk, 1);
        for (size_t b = 0; b < FED_LANES; b++) {
            double sum = 0;
            for (size_t k = 0; k < 62; k++) sum += blk.gradient[b][k];
            CHECK_CLOSE(sum, 0, 2 * (62 + 4) * UNIT_ROUNDOFF);
        }
    }
}

static void test_gradient_equals_central_differences(void) {
    const double h = 1e-5, scale = -0.25;
    block blk = random_block(10, FED_LANES, 3, 11);
    run_softmax(fed_active_kernels(), &blk, (float)scale);
    for (size_t b = 0; b < FED_LANES; b++)
        for (size_t k = 0; k < 10; k++) {
            double up[MAX_CLASSES], down[MAX_CLASSES];
            widen_row(&blk, b, up);
            widen_row(&blk, b, down);
            up[k] += h;
            down[k] -= h;
            const double slope =
                (reference_loss(up, 10, blk.labels[b]) - reference_loss(down, 10, blk.labels[b])) /
                (2 * h);
            CHECK_CLOSE(blk.gradient[b][k], scale * slope, 1e-6);
        }
}

/* The published example with a share of 0.3 and two rows that are each other's partners. */
static void test_a_mixed_loss_equals_hand_worked_values(void) {
    block blk = {.num_classes = 3,
                 .num_rows = 2,
                 .labels = {0, 1},
                 .is_mixed = true,
                 .other_labels = {1, 0},
                 .share = 0.3f,
                 .logits = {{2, -1, 0.5f}, {0.3f, 1.2f, -0.7f}}};
    run_softmax(fed_active_kernels(), &blk, 0.5f);
    static const double expected[2][3] = {{0.242799, -0.330444, 0.087645},
                                          {-0.219366, 0.171308, 0.048058}};
    CHECK_CLOSE(blk.score.loss_sum / 2, 1.706759, 1e-6);
    CHECK_EQUAL(blk.score.num_correct, 2);
    for (size_t b = 0; b < 2; b++)
        for (size_t k = 0; k < 3; k++) CHECK_CLOSE(blk.gradient[b][k], expected[b][k], 1e-6);
}

static block mixed_block(size_t num_rows, float share, uint64_t seed) {
    block blk = random_block(10, num_rows, 3, seed);
    blk.is_mixed = true;
    blk.share = share;
    fill_labels(seed + 1, 10, blk.other_labels, num_rows);
    return blk;
}

/* The loss of a row by both labels, smoothed and weighted, in double. */
static double reference_mixed_loss(const double *logits, const block *blk, size_t b,
                                   const float *class_weights, double smoothing) {
    const int32_t labels[2] = {blk->labels[b], blk->other_labels[b]};
    const double shares[2] = {(double)blk->share, 1 - (double)blk->share};
    double mean = 0, loss = 0;
    for (int32_t k = 0; k < 10; k++) mean += reference_loss(logits, 10, k) / 10;
    for (size_t i = 0; i < 2; i++)
        loss += shares[i] * (class_weights == NULL ? 1 : (double)class_weights[labels[i]]) *
                ((1 - smoothing) * reference_loss(logits, 10, labels[i]) + smoothing * mean);
    return loss;
}

static void check_mixed(size_t num_rows, float share, const float *class_weights, float smoothing) {
    const double h = 1e-5, scale = 0.25;
    block blk = mixed_block(num_rows, share, num_rows);
    block plain = random_block(10, num_rows, 3, num_rows);
    run_loss(fed_active_kernels(), &blk, (float)scale, class_weights, smoothing);
    run_loss(fed_active_kernels(), &plain, (float)scale, class_weights, smoothing);
    CHECK_EQUAL(blk.score.num_correct, plain.score.num_correct); /* of its own labels */
    double loss = 0;
    for (size_t b = 0; b < num_rows; b++) {
        double up[MAX_CLASSES], down[MAX_CLASSES];
        widen_row(&blk, b, up);
        loss += reference_mixed_loss(up, &blk, b, class_weights, (double)smoothing);
        for (size_t k = 0; k < 10; k++) {
            widen_row(&blk, b, up);
            widen_row(&blk, b, down);
            up[k] += h;
            down[k] -= h;
            const double slope =
                (reference_mixed_loss(up, &blk, b, class_weights, (double)smoothing) -
                 reference_mixed_loss(down, &blk, b, class_weights, (double)smoothing)) /
                (2 * h);
            CHECK_CLOSE(blk.gradient[b][k], scale * slope, 1e-6);
        }
    }
    CHECK_CLOSE(blk.score.loss_sum, loss, 1e-5 * (double)num_rows);
}

static void test_mixed_gradients_equal_central_differences(void) {
    static const size_t num_rows[] = {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32};
    static const float shares[] = {0, 0.3f, 1};
    float class_weights[10];
    for (size_t k = 0; k < 10; k++) class_weights[k] = (float)k / 4; /* one is 0 */
    for (size_t i = 0; i < LENGTH(num_rows); i++)
        for (size_t j = 0; j < LENGTH(shares); j++) {
            check_mixed(num_rows[i], shares[j], NULL, 0);
            check_mixed(num_rows[i], shares[j], NULL, 0.2f);
            check_mixed(num_rows[i], shares[j], class_weights, 0);
            check_mixed(num_rows[i], shares[j], class_weights, 0.2f);
        }
}

/* 5000 classes and 32 rows: the product of the rows' sums must not overflow. */
static void test_many_classes_do_not_overflow_the_loss(void) {
    enum { MANY = 5000 };
    guarded lanes = guarded_new((size_t)MANY * FED_LANES, 0, 0);
    int32_t labels[FED_LANES];
    for (size_t b = 0; b < FED_LANES; b++) labels[b] = (int32_t)(MANY - 1 - b);
    fed_score score = {0, 0};
    const fed_targets targets = {.labels = labels};
    fed_active_kernels()->softmax_xent(lanes.values, MANY, &targets, FED_LANES, 1, NULL, &score);
    CHECK_CLOSE(score.loss_sum, FED_LANES * log(MANY), FED_LANES * (MANY + 4) * UNIT_ROUNDOFF);
    CHECK_EQUAL(score.num_correct, 0);
    guarded_free(&lanes);
}

static void test_softmax_agrees_with_generic(void) {
    for (uint64_t seed = 0; seed < 50; seed++) {
        block blk = random_block(62, 31, 8, seed), expected = random_block(62, 31, 8, seed);
        run_softmax(fed_active_kernels(), &blk, 1);
        run_softmax(&fed_kernels_generic, &expected, 1);
        CHECK_CLOSE(blk.score.loss_sum, expected.score.loss_sum, 31 * 2 * 100 * UNIT_ROUNDOFF);
        CHECK_EQUAL(blk.score.num_correct, expected.score.num_correct);
        for (size_t b = 0; b < 31; b++)
            for (size_t k = 0; k < 62; k++)
                CHECK_CLOSE(blk.gradient[b][k], expected.gradient[b][k], 1e-6);
    }
}

/* With weights, each row's loss and gradient are multiplied by the weight of its label, up to a
 * rounding; whether the row is correct does not change. */
static void check_weighted(size_t num_classes, size_t num_rows, const float *class_weights) {
    block blk = random_block(num_classes, num_rows, 3, num_rows), plain = blk;
    run_weighted(fed_active_kernels(), &blk, 0.5f, class_weights);
    run_softmax(fed_active_kernels(), &plain, 0.5f);
    double loss = 0, bound = 0;
    for (size_t b = 0; b < num_rows; b++) {
        double logits[MAX_CLASSES];
        widen_row(&blk, b, logits);
        const double weight = (double)class_weights[blk.labels[b]];
        const double of_row = reference_loss(logits, num_classes, blk.labels[b]);
        loss += weight * of_row;
        bound += weight * UNIT_ROUNDOFF * ((double)num_classes + 8 + 2 * of_row);
        for (size_t k = 0; k < num_classes; k++)
            CHECK_CLOSE(blk.gradient[b][k], weight * (double)plain.gradient[b][k], 1e-6 * weight);
    }
    CHECK_CLOSE(blk.score.loss_sum, loss, bound);
    CHECK_EQUAL(blk.score.num_correct, plain.score.num_correct);
}

static void test_class_weights_multiply_losses_and_gradients(void) {
    static const size_t classes[] = {1, 2, 3, 10, 62};
    float weights[MAX_CLASSES];
    for (size_t k = 0; k < MAX_CLASSES; k++) weights[k] = 0.25f * (float)(k % 7); /* some are 0 */
    for (size_t c = 0; c < LENGTH(classes); c++)
        for (size_t num_rows = 0; num_rows <= FED_LANES; num_rows++)
            check_weighted(classes[c], num_rows, weights);
}

static void test_equal_class_weights_scale_the_gradient(void) {
    float ones[MAX_CLASSES];
    for (size_t k = 0; k < MAX_CLASSES; k++) ones[k] = 1;
    for (size_t num_rows = 1; num_rows <= FED_LANES; num_rows++) {
        block blk = random_block(10, num_rows, 3, num_rows), plain = blk;
        run_weighted(fed_active_kernels(), &blk, 0.5f, ones);
        run_softmax(fed_active_kernels(), &plain, 0.5f);
        CHECK_BYTES(blk.gradient, plain.gradient, sizeof blk.gradient);
        CHECK_CLOSE(blk.score.loss_sum, plain.score.loss_sum, 1e-12 * (1 + plain.score.loss_sum));
        CHECK_EQUAL(blk.score.num_correct, plain.score.num_correct);
    }
}

/* A smoothed label is a distribution: the loss is the mean of the losses under each label, and so
 * is the gradient. */
static void check_smoothed(size_t num_classes, size_t num_rows, float smoothing,
                           const float *class_weights) {
    block blk = random_block(num_classes, num_rows, 3, num_rows), plain = blk;
    run_loss(fed_active_kernels(), &blk, 0.5f, class_weights, smoothing);
    run_softmax(fed_active_kernels(), &plain, 0.5f);
    double loss = 0, bound = 0;
    for (size_t b = 0; b < num_rows; b++) {
        double logits[MAX_CLASSES], of_row = 0;
        widen_row(&blk, b, logits);
        const double weight = class_weights == NULL ? 1 : (double)class_weights[blk.labels[b]];
        const double share = (double)smoothing / (double)num_classes;
        for (size_t k = 0; k < num_classes; k++) {
            const int is_label = k == (size_t)blk.labels[b];
            const double part = share + (is_label ? 1 - (double)smoothing : 0);
            of_row += part * reference_loss(logits, num_classes, (int32_t)k);
            const double change = (is_label ? 1 : 0) - part;
            CHECK_CLOSE(blk.gradient[b][k], weight * ((double)plain.gradient[b][k] + 0.5 * change),
                        1e-6 * (1 + weight));
        }
        loss += weight * of_row;
        bound += weight * UNIT_ROUNDOFF * (4 * (double)num_classes + 32 + 4 * of_row);
    }
    CHECK_CLOSE(blk.score.loss_sum, loss, bound);
    CHECK_EQUAL(blk.score.num_correct, plain.score.num_correct);
}

static void test_smoothed_labels_mix_losses_and_gradients(void) {
    static const size_t classes[] = {1, 2, 3, 10, 62};
    float weights[MAX_CLASSES];
    for (size_t k = 0; k < MAX_CLASSES; k++) weights[k] = 0.25f * (float)(k % 7);
    for (size_t c = 0; c < LENGTH(classes); c++)
        for (size_t num_rows = 0; num_rows <= FED_LANES; num_rows++) {
            check_smoothed(classes[c], num_rows, 0.1f, NULL);
            check_smoothed(classes[c], num_rows, 0.9f, weights);
        }
}

static void test_nan_logit_of_a_class_without_weight_still_spoils_its_row(void) {
    static const float weights[3] = {0, 1, 1};
    block blk = {.num_classes = 3, .num_rows = 2, .labels = {0, 1}};
    blk.logits[0][2] = NAN;
    run_weighted(fed_active_kernels(), &blk, 1, weights);
    CHECK(isnan(blk.score.loss_sum) && isnan(blk.gradient[0][0]));
    CHECK_CLOSE(blk.gradient[1][0], 1.0 / 3, 1e-7);
    CHECK_EQUAL(blk.score.num_correct, 0);
}

/* ---- Elementwise ----------------------------------------------------------------------------- */

/* scale * pixel + offset, rounded once or twice. */
static void check_decoded(float actual, double pixel, double scale, double offset) {
    CHECK_CLOSE(actual, scale * pixel + offset,
                2 * UNIT_ROUNDOFF * (fabs(scale * pixel) + fabs(offset)));
}

static void check_decode(size_t num_pixels, float scale, float offset) {
    guarded bytes_as_floats = guarded_new(num_pixels, 1, 0), out = guarded_new(num_pixels, 2, 1);
    guarded floats = guarded_new(num_pixels, 3, 10);
    uint8_t *bytes = test_alloc(num_pixels + 1);
    for (size_t i = 0; i < num_pixels; i++) bytes[i + 1] = (uint8_t)(i * 7 + num_pixels);
    fed_active_kernels()->decode_uint8(bytes + 1, num_pixels, scale, offset, out.values);
    for (size_t i = 0; i < num_pixels; i++)
        check_decoded(out.values[i], bytes[i + 1], scale, offset);
    fed_active_kernels()->decode_float32(floats.values, num_pixels, scale, offset, out.values);
    for (size_t i = 0; i < num_pixels; i++)
        check_decoded(out.values[i], floats.values[i], scale, offset);
    free(bytes);
    guarded_free(&bytes_as_floats);
    guarded_free(&floats);
    guarded_free(&out);
}

static void test_decode_scales_and_offsets(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) {
        check_decode(SIZES[s], 1, 0);
        check_decode(SIZES[s], 1.0f / 255, 0);
        check_decode(SIZES[s], -1.0f / 255, 1);
    }
}

static void test_decode_by_one_is_exact(void) {
    uint8_t bytes[256];
    float out[256];
    for (size_t i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    fed_active_kernels()->decode_uint8(bytes, 256, 1, 0, out);
    for (size_t i = 0; i < 256; i++) CHECK(out[i] == (float)i);
}

static void test_sgd_equals_reference(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) {
        const size_t num = SIZES[s];
        guarded params = guarded_new(num, 1, 1), before = guarded_new(num, 1, 1);
        guarded gradient = guarded_new(num, 2, 1);
        fed_active_kernels()->sgd(params.values, gradient.values, num, 0.3f);
        for (size_t p = 0; p < num; p++) {
            const double step = (double)0.3f * gradient.values[p];
            CHECK_CLOSE(params.values[p], before.values[p] - step,
                        2 * UNIT_ROUNDOFF * (fabs((double)before.values[p]) + fabs(step)));
        }
        guarded_free(&params);
        guarded_free(&before);
        guarded_free(&gradient);
    }
}

static void check_momentum(size_t num, int nesterov) {
    const float rate = 0.3f, momentum = 0.9f;
    guarded params = guarded_new(num, 1, 1), before = guarded_new(num, 1, 1);
    guarded slot = guarded_new(num, 2, 1), slot_before = guarded_new(num, 2, 1);
    guarded gradient = guarded_new(num, 3, 1);
    fed_active_kernels()->sgd_momentum(params.values, slot.values, gradient.values, num, rate,
                                       momentum, nesterov);
    for (size_t p = 0; p < num; p++) {
        const double g = gradient.values[p];
        const double a = (double)momentum * slot_before.values[p] + g;
        const double step = (double)rate * (nesterov ? g + (double)momentum * a : a);
        /* magnitudes are below 3, and a value has at most 5 rounding errors */
        CHECK_CLOSE(slot.values[p], a, 2 * 2 * UNIT_ROUNDOFF);
        CHECK_CLOSE(params.values[p], before.values[p] - step, 5 * 3 * UNIT_ROUNDOFF);
    }
    guarded_free(&params);
    guarded_free(&before);
    guarded_free(&slot);
    guarded_free(&slot_before);
    guarded_free(&gradient);
}

static void test_sgd_momentum_equals_reference(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) check_momentum(SIZES[s], 0);
}

static void test_sgd_nesterov_equals_reference(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) check_momentum(SIZES[s], 1);
}

/* ---- Adaptive optimizers --------------------------------------------------------------------- */

enum { ADAM, ADAMW, YOGI, ADAGRAD, ADAGRAD_OUTSIDE, RMSPROP, NUM_ADAPTIVE };

static const fed_moments MOMENTS = {.share_1 = 0.1f,
                                    .share_2 = 0.2f,
                                    .epsilon = 1e-3f,
                                    .rate = 0.3f,
                                    .learning_rate = 0.7f,
                                    .weight_decay = 0.05f};

typedef struct adaptive {
    guarded params, accumulator, preconditioner, gradient;
} adaptive;

static adaptive adaptive_new(size_t num) {
    const adaptive a = {guarded_new(num, 1, 1), guarded_new(num, 2, 1), guarded_new(num, 3, 1),
                        guarded_new(num, 4, 1)};
    for (size_t p = 0; p < num; p++) a.preconditioner.values[p] = fabsf(a.preconditioner.values[p]);
    return a;
}

static void adaptive_free(adaptive *a) {
    guarded_free(&a->params);
    guarded_free(&a->accumulator);
    guarded_free(&a->preconditioner);
    guarded_free(&a->gradient);
}

static void run_adaptive(int which, const fed_moments *m, adaptive *a) {
    const fed_kernels *kernels = fed_active_kernels();
    const size_t num = a->params.num_values;
    float *params = a->params.values, *accumulator = a->accumulator.values;
    float *preconditioner = a->preconditioner.values, *gradient = a->gradient.values;
    switch (which) {
    case ADAM:
        kernels->adam(params, accumulator, preconditioner, gradient, num, m);
        break;
    case ADAMW:
        kernels->adamw(params, accumulator, preconditioner, gradient, num, m);
        break;
    case YOGI:
        kernels->yogi(params, accumulator, preconditioner, gradient, num, m);
        break;
    case RMSPROP:
        kernels->rmsprop(params, preconditioner, gradient, num, m->rate, m->share_2, m->epsilon);
        break;
    default:
        kernels->adagrad(params, preconditioner, gradient, num, m->rate, m->epsilon,
                         which == ADAGRAD_OUTSIDE);
    }
}

/* One coordinate in double. */
typedef struct coordinate {
    double w, a, s, g;
} coordinate;

static double reference_preconditioner(int which, coordinate c) {
    const double share = (double)MOMENTS.share_2, square = c.g * c.g;
    if (which == ADAGRAD || which == ADAGRAD_OUTSIDE) return c.s + square;
    if (which == YOGI) return c.s + share * (square > c.s ? square : -square);
    return c.s + (square - c.s) * share;
}

/* Takes one step. Rounding errors are relative to *size. */
static coordinate reference_adaptive(int which, coordinate c, double *size) {
    const int has_accumulator = which == ADAM || which == ADAMW || which == YOGI;
    const double rate = (double)MOMENTS.rate, epsilon = (double)MOMENTS.epsilon;
    const double before = c.w;
    c.s = reference_preconditioner(which, c);
    if (has_accumulator) c.a += (c.g - c.a) * (double)MOMENTS.share_1;
    const double divisor = which == ADAGRAD ? sqrt(c.s + epsilon) : sqrt(c.s) + epsilon;
    const double step = rate * (has_accumulator ? c.a : c.g) / divisor;
    *size = fabs(before) + rate / divisor; /* gradients and accumulators are at most 1 */
    if (which == ADAMW)
        c.w -= (double)MOMENTS.learning_rate * (step + (double)MOMENTS.weight_decay * c.w);
    else
        c.w -= step;
    return c;
}

/* Each value has at most 16 rounding errors. */
static void check_adaptive(int which, size_t num) {
    adaptive a = adaptive_new(num), before = adaptive_new(num);
    run_adaptive(which, &MOMENTS, &a);
    for (size_t p = 0; p < num; p++) {
        double size;
        const coordinate start = {before.params.values[p], before.accumulator.values[p],
                                  before.preconditioner.values[p], before.gradient.values[p]};
        const coordinate end = reference_adaptive(which, start, &size);
        CHECK_CLOSE(a.accumulator.values[p], end.a, 4 * UNIT_ROUNDOFF);
        CHECK_CLOSE(a.preconditioner.values[p], end.s, 8 * UNIT_ROUNDOFF);
        CHECK_CLOSE(a.params.values[p], end.w, 16 * UNIT_ROUNDOFF * size);
        CHECK(a.gradient.values[p] == before.gradient.values[p]);
    }
    adaptive_free(&a);
    adaptive_free(&before);
}

static void test_adaptive_optimizers_equal_their_references(void) {
    for (int which = 0; which < NUM_ADAPTIVE; which++)
        for (size_t s = 0; s < LENGTH(SIZES); s++) check_adaptive(which, SIZES[s]);
}

/* Coordinates of padding have no gradient. AdamW's decay is proportional to the value, so it does
 * not change a 0. */
static void test_coordinate_without_gradient_stays_though_epsilon_is_0(void) {
    fed_moments moments = MOMENTS;
    moments.epsilon = 0;
    moments.rate = INFINITY; /* as with the bias correction for beta_1 = 1 */
    for (int which = 0; which < NUM_ADAPTIVE; which++) {
        adaptive a = adaptive_new(35);
        for (size_t p = 0; p < 35; p++) {
            a.accumulator.values[p] = a.preconditioner.values[p] = a.gradient.values[p] = 0;
            if (which == ADAMW) a.params.values[p] = 0;
        }
        adaptive before = adaptive_new(35);
        run_adaptive(which, &moments, &a);
        for (size_t p = 0; p < 35; p++)
            CHECK(a.params.values[p] == (which == ADAMW ? 0 : before.params.values[p]));
        adaptive_free(&a);
        adaptive_free(&before);
    }
}

static void test_nan_gradient_spoils_its_coordinate_only(void) {
    for (int which = 0; which < NUM_ADAPTIVE; which++)
        for (size_t bad = 0; bad < 35; bad++) {
            adaptive a = adaptive_new(35);
            a.gradient.values[bad] = NAN;
            run_adaptive(which, &MOMENTS, &a);
            for (size_t p = 0; p < 35; p++) CHECK(isnan(a.params.values[p]) == (p == bad));
            CHECK(isnan(a.preconditioner.values[bad]));
            adaptive_free(&a);
        }
}

static void check_proximal(size_t num) {
    const float strength = 0.3f;
    guarded gradient = guarded_new(num, 1, 1), before = guarded_new(num, 1, 1);
    guarded params = guarded_new(num, 2, 1), server = guarded_new(num, 3, 1);
    fed_active_kernels()->add_proximal(gradient.values, params.values, server.values, num,
                                       strength);
    for (size_t p = 0; p < num; p++) {
        const double apart = (double)params.values[p] - (double)server.values[p];
        CHECK_CLOSE(gradient.values[p], before.values[p] + (double)strength * apart,
                    3 * 2 * UNIT_ROUNDOFF);
    }
    guarded_free(&gradient);
    guarded_free(&before);
    guarded_free(&params);
    guarded_free(&server);
}

static void test_proximal_term_equals_reference(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) check_proximal(SIZES[s]);
}

/* ---- Deltas ---------------------------------------------------------------------------------- */

static void check_finiteness(size_t num) {
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const fed_kernels *kernels = fed_active_kernels();
    guarded params = guarded_new(num, 1, 1), server = guarded_new(num, 2, 1);
    CHECK_EQUAL(kernels->delta_is_finite(params.values, server.values, num), 1);
    for (size_t p = 0; p < num; p++)
        for (size_t i = 0; i < LENGTH(bad); i++) {
            const float before = params.values[p];
            params.values[p] = bad[i];
            CHECK_EQUAL(kernels->delta_is_finite(params.values, server.values, num), 0);
            CHECK_EQUAL(kernels->delta_is_finite(server.values, params.values, num), 0);
            params.values[p] = before;
        }
    guarded_free(&params);
    guarded_free(&server);
}

static void test_delta_is_finite_finds_each_bad_value(void) {
    for (size_t num = 0; num <= 33; num++) check_finiteness(num);
}

static void test_delta_is_finite_looks_at_the_difference(void) {
    const fed_kernels *kernels = fed_active_kernels();
    const float large[] = {FLT_MAX, 1}, opposite[] = {-FLT_MAX, 1}, tiny[] = {FLT_TRUE_MIN, 0};
    CHECK_EQUAL(kernels->delta_is_finite(large, opposite, 2), 0);
    CHECK_EQUAL(kernels->delta_is_finite(large, large, 2), 1);
    CHECK_EQUAL(kernels->delta_is_finite(large, tiny, 2), 1);
    CHECK_EQUAL(kernels->delta_is_finite(tiny, tiny, 2), 1);
}

/* A float times a whole number below 2^24 is exact in double, so every variant gives the same bits.
 */
static void test_add_delta_is_exact_on_every_variant(void) {
    for (size_t s = 0; s < LENGTH(SIZES); s++) {
        const size_t num = SIZES[s];
        guarded params = guarded_new(num, 1, 1), server = guarded_new(num, 2, 1);
        double *sum = test_alloc((num + 1) * sizeof(*sum));
        for (size_t p = 0; p <= num; p++) sum[p] = (double)p / 3;
        fed_active_kernels()->add_delta(sum, params.values, server.values, num, 12345);
        for (size_t p = 0; p < num; p++) {
            const float delta = params.values[p] - server.values[p];
            const double term = 12345.0 * (double)delta;
            CHECK(sum[p] == (double)p / 3 + term);
        }
        CHECK(sum[num] == (double)num / 3);
        free(sum);
        guarded_free(&params);
        guarded_free(&server);
    }
}

/* Again the products are exact; they are added in the order of the vectors. */
static void test_add_vectors_is_add_delta_in_turn_on_every_variant(void) {
    static const double weights[] = {3, 0, 1, 12345, 7, 0, 2, 5, 11, 13, 1, 1};
    enum { NUM_VECTORS = LENGTH(weights), FIRST = 1 };
    for (size_t s = 0; s < LENGTH(SIZES); s++) {
        const size_t num = SIZES[s];
        guarded vectors[NUM_VECTORS];
        const float *values[NUM_VECTORS];
        double *sum = test_alloc((num + 1) * sizeof(*sum)),
               *reference = test_alloc(num * sizeof(*reference));
        for (size_t k = 0; k < NUM_VECTORS; k++) {
            vectors[k] = guarded_new(num + FIRST, k, 1);
            values[k] = vectors[k].values;
        }
        for (size_t num_vectors = 0; num_vectors <= NUM_VECTORS; num_vectors++) {
            for (size_t p = 0; p < num; p++) sum[p] = reference[p] = (double)p / 3;
            sum[num] = 1;
            fed_active_kernels()->add_vectors(sum, values, weights, num_vectors, FIRST, num);
            for (size_t k = 0; k < num_vectors; k++)
                for (size_t p = 0; p < num; p++) {
                    const double term = weights[k] * (double)values[k][FIRST + p];
                    reference[p] += term;
                }
            CHECK_BYTES(sum, reference, num * sizeof(*sum));
            CHECK(sum[num] == 1);
        }
        for (size_t k = 0; k < NUM_VECTORS; k++) guarded_free(&vectors[k]);
        free(sum);
        free(reference);
    }
}

/* As above; then older sums are added, from the first to the last. */
static void test_sum_eight_is_add_vectors_and_the_older_sums_on_every_variant(void) {
    static const double weights[] = {3, 12345, 1, 7, 2, 5, 11, 13};
    enum { NUM_VECTORS = LENGTH(weights), FIRST = 1, MOST_OLDER = 3 };
    for (size_t s = 0; s < LENGTH(SIZES); s++) {
        const size_t num = SIZES[s];
        guarded vectors[NUM_VECTORS];
        const float *values[NUM_VECTORS];
        double *older = test_alloc((MOST_OLDER * num + 1) * sizeof(*older));
        const double *starts[] = {older, older + num, older + 2 * num};
        double *sum = test_alloc((num + 1) * sizeof(*sum)),
               *reference = test_alloc(num * sizeof(*reference));
        for (size_t k = 0; k < NUM_VECTORS; k++) {
            vectors[k] = guarded_new(num + FIRST, k, 1);
            values[k] = vectors[k].values;
        }
        for (size_t p = 0; p < MOST_OLDER * num; p++) older[p] = (double)(p * p) / 7;
        for (size_t num_older = 0; num_older <= MOST_OLDER; num_older++) {
            for (size_t p = 0; p < num; p++) sum[p] = 1e300, reference[p] = 0;
            sum[num] = 1;
            fed_active_kernels()->sum_eight(values, weights, FIRST, num, starts, num_older, sum);
            fed_active_kernels()->add_vectors(reference, values, weights, NUM_VECTORS, FIRST, num);
            for (size_t o = 0; o < num_older; o++)
                for (size_t p = 0; p < num; p++) reference[p] = starts[o][p] + reference[p];
            CHECK_BYTES(sum, reference, num * sizeof(*sum));
            CHECK(sum[num] == 1);
        }
        for (size_t k = 0; k < NUM_VECTORS; k++) guarded_free(&vectors[k]);
        free(older);
        free(sum);
        free(reference);
    }
}

/* Decoding and the steps differ from the generic variant only by fused multiply-adds. */
static void test_elementwise_agrees_with_generic(void) {
    enum { NUM = 77 };
    const fed_kernels *active = fed_active_kernels(), *generic = &fed_kernels_generic;
    guarded gradient = guarded_new(NUM, 3, 1);
    guarded params = guarded_new(NUM, 1, 1), params_generic = guarded_new(NUM, 1, 1);
    guarded slot = guarded_new(NUM, 2, 1), slot_generic = guarded_new(NUM, 2, 1);
    for (int nesterov = 0; nesterov <= 1; nesterov++) {
        active->sgd_momentum(params.values, slot.values, gradient.values, NUM, 0.1f, 0.9f,
                             nesterov);
        generic->sgd_momentum(params_generic.values, slot_generic.values, gradient.values, NUM,
                              0.1f, 0.9f, nesterov);
    }
    active->sgd(params.values, gradient.values, NUM, 0.1f);
    generic->sgd(params_generic.values, gradient.values, NUM, 0.1f);
    for (size_t p = 0; p < NUM; p++) {
        CHECK_CLOSE(slot.values[p], slot_generic.values[p], 16 * UNIT_ROUNDOFF);
        CHECK_CLOSE(params.values[p], params_generic.values[p], 16 * UNIT_ROUNDOFF);
    }
    active->decode_float32(gradient.values, NUM, 0.3f, 0.7f, params.values);
    generic->decode_float32(gradient.values, NUM, 0.3f, 0.7f, params_generic.values);
    for (size_t p = 0; p < NUM; p++)
        CHECK_CLOSE(params.values[p], params_generic.values[p], 2 * UNIT_ROUNDOFF);
    guarded_free(&gradient);
    guarded_free(&params);
    guarded_free(&params_generic);
    guarded_free(&slot);
    guarded_free(&slot_generic);
}

/* NaN stays NaN, and -0 may become 0. Where the output is 0, the gradient becomes 0. */
static void test_relu_keeps_what_is_positive_and_nan(void) {
    enum { NUM = 3 * FED_PAD };
    guarded values = guarded_new(NUM, 7, 1), before = guarded_new(NUM, 7, 1);
    guarded gradient = guarded_new(NUM, 8, 1);
    values.values[3] = before.values[3] = 0;
    values.values[20] = before.values[20] = NAN;
    fed_active_kernels()->activate(FED_RELU, 0, values.values, NUM, values.values);
    for (size_t i = 0; i < NUM; i++) {
        if (i == 20)
            CHECK(isnan(values.values[i]));
        else
            CHECK(values.values[i] == (before.values[i] > 0 ? before.values[i] : 0));
    }
    memcpy(before.values, gradient.values, NUM * sizeof(float));
    fed_active_kernels()->undo_activation(FED_RELU, 0, values.values, NUM, gradient.values);
    for (size_t i = 0; i < NUM; i++)
        CHECK(gradient.values[i] == (values.values[i] > 0 ? before.values[i] : 0));
    guarded_free(&values);
    guarded_free(&before);
    guarded_free(&gradient);
}

/* ---- Transposes ------------------------------------------------------------------------------ */

/* There are gaps of 3 floats between the rows that are read, and of 2 floats between the rows that
 * are written; the latter gaps must not change. */
static void check_transpose(size_t num_rows, size_t num_columns, int has_less) {
    const size_t from_stride = num_columns + 3, to_stride = num_rows + 2;
    guarded from = guarded_new(num_rows * from_stride, 1, 1);
    guarded less = guarded_new(num_rows * from_stride, 2, 1);
    guarded to = guarded_new(num_columns * to_stride, 3, 1);
    guarded before = guarded_new(num_columns * to_stride, 3, 1);
    fed_active_kernels()->transpose(from.values, has_less ? less.values : NULL, from_stride,
                                    num_rows, num_columns, to.values, to_stride);
    for (size_t c = 0; c < num_columns; c++)
        for (size_t r = 0; r < to_stride; r++) {
            const size_t at = r * from_stride + c;
            const float value = r >= num_rows ? before.values[c * to_stride + r]
                                : has_less    ? from.values[at] - less.values[at]
                                              : from.values[at];
            CHECK(to.values[c * to_stride + r] == value);
        }
    guarded_free(&from);
    guarded_free(&less);
    guarded_free(&to);
    guarded_free(&before);
}

static void test_transpose_is_exact_for_every_shape(void) {
    for (size_t r = 0; r < LENGTH(SIZES); r++)
        for (size_t c = 0; c < LENGTH(SIZES); c++)
            for (int has_less = 0; has_less <= 1; has_less++)
                if (SIZES[r] < 784 || SIZES[c] < 63) check_transpose(SIZES[r], SIZES[c], has_less);
}

/* A norm clamps its outputs and masks their gradient as the activation itself does, also at the
 * bounds and for NaN. */
static void test_norms_clamp_as_relu_and_relu6_do(void) {
    enum { CHANNELS = FED_PAD };
    static const float edges[] = {-2, -0.0f, 0, 1e-30f, 3, 5.9999995f, 6, 6.0000005f, 1e30f, NAN};
    static const struct {
        int activation;
        fed_range range;
    } kinds[] = {{FED_RELU, {0, INFINITY}}, {FED_RELU6, {0, 6}}};
    float zeros[CHANNELS] = {0}, ones[CHANNELS], values[CHANNELS], gradient[CHANNELS];
    for (size_t c = 0; c < CHANNELS; c++) {
        ones[c] = 1;
        values[c] = edges[c % LENGTH(edges)];
        gradient[c] = (float)c - 7.5f;
    }
    for (size_t k = 0; k < LENGTH(kinds); k++) {
        const fed_kernels *kernels = fed_active_kernels();
        float out[CHANNELS], reference[CHANNELS], masked[CHANNELS], found[CHANNELS];
        const fed_norm_map map = {zeros, ones, zeros, kinds[k].range};
        kernels->norm_apply(&map, values, 1, CHANNELS, out);
        kernels->activate(kinds[k].activation, 0, values, CHANNELS, reference);
        memcpy(masked, gradient, sizeof masked);
        kernels->undo_activation(kinds[k].activation, 0, reference, CHANNELS, masked);
        const fed_norm_gradient at = {.gradient = gradient,
                                      .values = values,
                                      .map = &map,
                                      .by_value = zeros,
                                      .fixed = zeros,
                                      .num_pixels = 1,
                                      .num_channels = CHANNELS,
                                      .in_gradient = found};
        kernels->norm_gradient(&at);
        const fed_norm_rows rows = {1, 1, CHANNELS, CHANNELS, CHANNELS};
        double sums[CHANNELS] = {0}, products[CHANNELS] = {0};
        kernels->norm_products(&rows, &map, gradient, values, sums, products);
        for (size_t c = 0; c < CHANNELS; c++) {
            CHECK(out[c] == reference[c] || (isnan(out[c]) && isnan(reference[c])));
            CHECK(isnan(values[c]) ? isnan(found[c]) : found[c] == masked[c]);
            CHECK(sums[c] == (double)masked[c]);
        }
    }
}

/* The backward kernels compute the outputs again. The gradient must count exactly where the outputs
 * that norm_apply wrote are inside the range. */
static void check_norm_kernels(size_t num_pixels, size_t num_channels, fed_range range) {
    const size_t num = num_pixels * num_channels;
    const int has_range = range.least > -INFINITY;
    guarded values = guarded_new(num, 1, 1), gradient = guarded_new(num, 2, 1);
    guarded rows = guarded_new(5 * num_channels, 3, 1);
    guarded out = guarded_new(num, 4, 1), found = guarded_new(num, 5, 1);
    double *sums = calloc(2 * num_channels, sizeof *sums), *products = sums + num_channels;
    const float *means = rows.values, *scales = means + num_channels,
                *biases = scales + num_channels;
    const float *by_value = biases + num_channels, *fixed = by_value + num_channels;
    const fed_kernels *kernels = fed_active_kernels();
    const fed_norm_map map = {means, scales, biases, range};
    kernels->norm_apply(&map, values.values, num_pixels, num_channels, out.values);
    const fed_norm_rows all = {1, num_pixels, num_channels, num, num};
    kernels->norm_products(&all, &map, gradient.values, values.values, sums, products);
    const fed_norm_gradient at = {.gradient = gradient.values,
                                  .values = values.values,
                                  .map = &map,
                                  .by_value = by_value,
                                  .fixed = fixed,
                                  .num_pixels = num_pixels,
                                  .num_channels = num_channels,
                                  .in_gradient = found.values};
    kernels->norm_gradient(&at);
    for (size_t c = 0; c < num_channels; c++) {
        double sum = 0, product = 0;
        for (size_t p = 0; p < num_pixels; p++) {
            const size_t i = p * num_channels + c;
            const double deviation = (double)values.values[i] - (double)means[c];
            double y = deviation * (double)scales[c] + (double)biases[c];
            if (has_range) y = fmin(fmax(y, (double)range.least), (double)range.most);
            CHECK_CLOSE(out.values[i], y, 1e-6);
            const int counts =
                !has_range || (out.values[i] > range.least && out.values[i] < range.most);
            const double g = counts ? (double)gradient.values[i] : 0;
            CHECK_CLOSE(found.values[i],
                        g * (double)scales[c] + deviation * (double)by_value[c] + (double)fixed[c],
                        1e-6);
            sum += g;
            product += g * deviation;
        }
        CHECK_CLOSE(sums[c], sum, 1e-4);
        CHECK_CLOSE(products[c], product, 1e-4);
    }
    guarded_free(&values);
    guarded_free(&gradient);
    guarded_free(&rows);
    guarded_free(&out);
    guarded_free(&found);
    free(sums);
}

static void test_norms_equal_reference(void) {
    static const size_t pixels[] = {0, 1, 7, 8, 9, 300}, panels[] = {1, 2, 3, 4, 5, 9};
    static const fed_range ranges[] = {{-INFINITY, INFINITY}, {0, INFINITY}, {0, 0.25f}};
    for (size_t p = 0; p < LENGTH(pixels); p++)
        for (size_t n = 0; n < LENGTH(panels); n++)
            for (size_t r = 0; r < LENGTH(ranges); r++)
                check_norm_kernels(pixels[p], panels[n] * FED_PAD, ranges[r]);
}

static const test_case TESTS[] = {
    TEST(test_dense_forward_equals_reference),
    TEST(test_dense_accumulate_equals_reference),
    TEST(test_dense_accumulate_leaves_out_zeros),
    TEST(test_tiles_forward_leaves_out_zeros),
    TEST(test_tiles_backward_leaves_out_zeros),
    TEST(test_tiles_backward_with_an_input_in_all_rows),
    TEST(test_zeros_left_out_change_no_byte),
    TEST(test_a_row_does_not_depend_on_the_zeros_of_other_rows),
    TEST(test_nan_among_zeros_is_not_left_out),
    TEST(test_dense_backward_inputs_equals_reference),
    TEST(test_dense_without_rows_changes_nothing),
    TEST(test_relu_keeps_what_is_positive_and_nan),
    TEST(test_dense_forward_agrees_with_generic),
    TEST(test_dense_accumulate_ignores_lanes_without_rows),
    TEST(test_equal_logits_give_log_of_classes_and_class_0),
    TEST(test_softmax_equals_hand_worked_quarters),
    TEST(test_ties_go_to_the_first_class),
    TEST(test_single_class_has_no_loss),
    TEST(test_score_is_added_to),
    TEST(test_nan_logit_is_wrong_and_spoils_its_row_only),
    TEST(test_positive_infinite_logit_is_wrong_and_spoils_its_row_only),
    TEST(test_all_logits_minus_infinity_lose_nan),
    TEST(test_minus_infinity_elsewhere_is_probability_0),
    TEST(test_largest_floats_do_not_overflow),
    TEST(test_losses_are_within_their_bound_at_every_scale),
    TEST(test_block_of_rows_scores_as_its_rows),
    TEST(test_gradient_rows_sum_to_zero),
    TEST(test_gradient_equals_central_differences),
    TEST(test_a_mixed_loss_equals_hand_worked_values),
    TEST(test_mixed_gradients_equal_central_differences),
    TEST(test_many_classes_do_not_overflow_the_loss),
    TEST(test_softmax_agrees_with_generic),
    TEST(test_class_weights_multiply_losses_and_gradients),
    TEST(test_equal_class_weights_scale_the_gradient),
    TEST(test_smoothed_labels_mix_losses_and_gradients),
    TEST(test_nan_logit_of_a_class_without_weight_still_spoils_its_row),
    TEST(test_decode_scales_and_offsets),
    TEST(test_decode_by_one_is_exact),
    TEST(test_transpose_is_exact_for_every_shape),
    TEST(test_sgd_equals_reference),
    TEST(test_sgd_momentum_equals_reference),
    TEST(test_sgd_nesterov_equals_reference),
    TEST(test_adaptive_optimizers_equal_their_references),
    TEST(test_coordinate_without_gradient_stays_though_epsilon_is_0),
    TEST(test_nan_gradient_spoils_its_coordinate_only),
    TEST(test_proximal_term_equals_reference),
    TEST(test_delta_is_finite_finds_each_bad_value),
    TEST(test_delta_is_finite_looks_at_the_difference),
    TEST(test_add_delta_is_exact_on_every_variant),
    TEST(test_add_vectors_is_add_delta_in_turn_on_every_variant),
    TEST(test_sum_eight_is_add_vectors_and_the_older_sums_on_every_variant),
    TEST(test_norms_clamp_as_relu_and_relu6_do),
    TEST(test_norms_equal_reference),
    TEST(test_elementwise_agrees_with_generic),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
