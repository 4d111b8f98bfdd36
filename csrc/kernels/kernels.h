/* SPDX-License-Identifier: Apache-2.0
 * The kernels: one table of function pointers per instruction set. impl.inc is the one source of
 * them all; generic.c, avx2.c and avx512.c compile it at their own vector width. Nothing here
 * depends on the width: memory layouts are the same for all, only rounding differs.
 *
 * Rows and lanes. A batch's inputs are rows, reached through pointers so that no image is copied.
 * What a layer puts out lies "examples in lanes": blocks of FED_LANES examples, [O, FED_LANES]
 * each, example b of a block in lane b. Softmax then needs no step across lanes, and a constant
 * stride keeps addressing out of the inner loops. Rows are padded with zeros to a multiple of
 * FED_PAD floats.
 */
#ifndef FED_KERNELS_H
#define FED_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { FED_LANES = 32, FED_PAD = 16 };

/* The unfinalised metrics of one block. */
typedef struct fed_score {
    double loss_sum;
    int64_t num_correct;
} fed_score;

/* The numbers of one step of Adam, AdamW or Yogi. */
typedef struct fed_moments {
    float share_1, share_2; /* 1 - beta_1, 1 - beta_2 */
    float epsilon;
    float rate; /* with the bias correction in it; AdamW's is the correction alone */
    float learning_rate, weight_decay; /* AdamW only */
} fed_moments;

typedef struct fed_kernels {
    const char *name;

    /* out[o][b] = bias[o] + sum_i weights[o][i] * rows[b][i], for one block of num_rows <=
     * FED_LANES. */
    void (*dense_forward)(const float *weights, /* [O, width], width a multiple of FED_PAD */
                          const float *bias,    /* [O] */
                          size_t width, size_t num_outputs,
                          const float *const *rows, /* [num_rows][width] */
                          size_t num_rows, float *out /* out [O, FED_LANES] */);

    /* weights[o][i] += sum_b gradient[o][b] * rows[b][i] and bias[o] += sum_b gradient[o][b]. */
    void (*dense_accumulate)(float *weights, /* in-out [O, width] */
                             float *bias,    /* in-out [O] */
                             size_t width, size_t num_outputs, const float *const *rows,
                             size_t num_rows, const float *gradient /* [O, FED_LANES] */);

    /* inputs_gradient[i][b] = sum_o weights[o][i] * gradient[o][b] for b < num_rows; lanes from
     * num_rows on get nothing of use. */
    void (*dense_backward_inputs)(const float *weights, size_t width, size_t num_inputs,
                                  size_t num_outputs, const float *gradient, /* [O, FED_LANES] */
                                  size_t num_rows, float *inputs_gradient /* out [I, FED_LANES] */);

    /* values[i] = max(values[i], 0); NaN stays. */
    void (*relu)(float *values /* in-out */, size_t num_values);
    /* outputs[i] = outputs[i] > 0 ? gradient[i] : 0: the gradient by what relu was applied to. */
    void (*relu_backward)(float *outputs /* in: of relu, out: gradient */, const float *gradient,
                          size_t num_values);

    /* Fused softmax cross-entropy of one block: adds loss and hits to score, and turns logits into
     * scale times the gradient of the loss summed over the block's examples. A row with a NaN logit
     * counts as wrong and has a NaN loss. Lanes from num_rows on hold nothing of use. */
    void (*softmax_xent)(float *logits, /* in: logits, out: gradient [K, FED_LANES] */
                         size_t num_classes, const int32_t *labels, /* [num_rows], 0..K-1 */
                         size_t num_rows, float scale, fed_score *score /* in-out */);

    /* out[i] = scale * pixels[i] + offset. */
    void (*decode_uint8)(const uint8_t *pixels, size_t num_pixels, float scale, float offset,
                         float *out);
    void (*decode_float32)(const float *pixels, size_t num_pixels, float scale, float offset,
                           float *out);

    /* differs[i] gets bits set wherever a[i] and b[i] differ. */
    void (*mark_differences)(const uint8_t *a, const uint8_t *b, size_t num_bytes,
                             uint8_t *differs /* in-out */);

    /* SGD with momentum as TFF's build_sgdm: slot = momentum * slot + gradient, then
     * params -= learning_rate * (nesterov ? gradient + momentum * slot : slot). */
    void (*sgd_momentum)(float *params, float *slot, const float *gradient, size_t num_params,
                         float learning_rate, float momentum, int nesterov);
    void (*sgd)(float *params, const float *gradient, size_t num_params, float learning_rate);

    /* The adaptive optimizers as TFF has them. A coordinate whose accumulator (or gradient, where
     * there is none) is 0 stays where it is, also where the divisor is 0: padding never moves.
     *
     * accumulator += (gradient - accumulator) * share_1, and
     *   adam:  preconditioner += (gradient^2 - preconditioner) * share_2
     *   yogi:  preconditioner += share_2 * sign(gradient^2 - preconditioner) * gradient^2
     * then params -= rate * accumulator / (sqrt(preconditioner) + epsilon). adamw is adam with
     *   params -= learning_rate * (rate * accumulator / (...) + weight_decay * params). */
    void (*adam)(float *params, float *accumulator, float *preconditioner, const float *gradient,
                 size_t num_params, const fed_moments *moments);
    void (*adamw)(float *params, float *accumulator, float *preconditioner, const float *gradient,
                  size_t num_params, const fed_moments *moments);
    void (*yogi)(float *params, float *accumulator, float *preconditioner, const float *gradient,
                 size_t num_params, const fed_moments *moments);
    /* preconditioner += gradient^2, then params -= learning_rate * gradient / divisor, which is
     * sqrt(preconditioner + epsilon), or with epsilon_outside sqrt(preconditioner) + epsilon. */
    void (*adagrad)(float *params, float *preconditioner, const float *gradient, size_t num_params,
                    float learning_rate, float epsilon, int epsilon_outside);
    /* preconditioner += (gradient^2 - preconditioner) * share, then
     * params -= learning_rate * gradient / (sqrt(preconditioner) + epsilon). */
    void (*rmsprop)(float *params, float *preconditioner, const float *gradient, size_t num_params,
                    float learning_rate, float share, float epsilon);
    /* gradient += strength * (params - server). */
    void (*add_proximal)(float *gradient, const float *params, const float *server,
                         size_t num_params, float strength);

    /* The sum of squares in float64; NaN or infinity if a value is. */
    double (*sum_of_squares)(const float *values, size_t num_values);
    /* values *= factor. */
    void (*multiply)(float *values, size_t num_values, float factor);

    /* 1 if every params[i] - server[i] is finite, else 0. */
    int (*delta_is_finite)(const float *params, const float *server, size_t num_params);
    /* Returns the sum of squares of params[i] - server[i], in float64; all are finite. */
    double (*delta_size)(const float *params, const float *server, size_t num_params,
                         double *max_abs /* out */);
    /* sum[i] += weight * (params[i] - server[i]): the delta is float32, the sum float64. */
    void (*add_delta)(double *sum, const float *params, const float *server, size_t num_params,
                      double weight);

    /* num_steps rounds of independent fused multiply-adds; returns the operations done. */
    double (*fma_chain)(size_t num_steps);
} fed_kernels;

extern const fed_kernels fed_kernels_generic;
#ifdef FED_HAVE_AVX2
extern const fed_kernels fed_kernels_avx2;
#endif
#ifdef FED_HAVE_AVX512
extern const fed_kernels fed_kernels_avx512;
#endif

/* The table fed_select_isa chose. */
const fed_kernels *fed_active_kernels(void);

#endif
