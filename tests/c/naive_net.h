/* SPDX-License-Identifier: Apache-2.0
 *
 * The forward and backward pass of any model table in double, written simply, not to be fast. The
 * values of an image are in height, width, channel order without padding; parameters are flat and
 * in Keras layout; examples are computed one at a time. test_net.c compares its gradients with
 * central differences, and then the core with this network.
 */
#ifndef FED_NAIVE_NET_H
#define FED_NAIVE_NET_H

#include "fixtures.h"

/* ---- Layers ---------------------------------------------------------------------------------- */

/* The smallest distance to a point at which float32 could decide differently from double: from an
 * activation's input to a kink, and between the two largest values in a max-pool's window. */
typedef struct naive_margin {
    double smallest;
} naive_margin;

static inline void naive_note(naive_margin *margin, double distance) {
    if (distance > 0 && distance < margin->smallest) margin->smallest = distance;
}

/* Notes the distance to a kink of the loss, a point where the slopes on both sides differ. */
static inline void naive_note_kinks(int activation, double z, naive_margin *margin) {
    if (activation == FED_RELU || activation == FED_RELU6 || activation == FED_LEAKY_RELU ||
        activation == FED_ELU)
        naive_note(margin, fabs(z));
    if (activation == FED_RELU6) naive_note(margin, fabs(z - 6));
    if (activation == FED_HARD_SILU) naive_note(margin, fabs(fabs(z) - 3));
}

static inline double naive_normal_cdf(double z) { return erfc(-z / sqrt(2)) / 2; }

/* Gelu's approximation by tanh equals z * sigmoid(naive_gelu_exponent(z)). */
static inline double naive_gelu_exponent(double z) {
    return 2 * sqrt(2 / M_PI) * (z + 0.044715 * z * z * z);
}

static inline double naive_sigmoid(double z) { return 1 / (1 + exp(-z)); }

static inline double naive_activation(const fed_layer *layer, double z, naive_margin *margin) {
    naive_note_kinks(layer->activation, z, margin);
    switch (layer->activation) {
    case FED_RELU:
        return z < 0 ? 0 : z;
    case FED_TANH:
        return tanh(z);
    case FED_SIGMOID:
        return naive_sigmoid(z);
    case FED_RELU6:
        return z < 0 ? 0 : z > 6 ? 6 : z;
    case FED_LEAKY_RELU:
        return z < 0 ? layer->constants[0] * z : z;
    case FED_ELU:
        return z < 0 ? layer->constants[0] * expm1(z) : z;
    case FED_SILU:
        return z * naive_sigmoid(z);
    case FED_GELU:
        return z * naive_normal_cdf(z);
    case FED_GELU_TANH:
        return z * naive_sigmoid(naive_gelu_exponent(z));
    case FED_HARD_SILU:
        return z * fmin(fmax(z + 3, 0), 6) / 6;
    default:
        return z;
    }
}

/* The slope of x * sigmoid(z), where the slope of z is z_slope. */
static inline double naive_gated_slope(double x, double z, double z_slope) {
    const double s = naive_sigmoid(z);
    return s + x * s * (1 - s) * z_slope;
}

/* The slope of the activation at input z, given its output. */
static inline double naive_slope(const fed_layer *layer, double z, double output) {
    switch (layer->activation) {
    case FED_RELU:
        return output > 0 ? 1 : 0;
    case FED_TANH:
        return 1 - output * output;
    case FED_SIGMOID:
        return output * (1 - output);
    case FED_RELU6:
        return output > 0 && output < 6 ? 1 : 0;
    case FED_LEAKY_RELU:
        return output > 0 ? 1 : layer->constants[0];
    case FED_ELU:
        return output > 0 ? 1 : layer->constants[0] + output;
    case FED_SILU:
        return naive_gated_slope(z, z, 1);
    case FED_GELU:
        return naive_normal_cdf(z) + z * exp(-z * z / 2) / sqrt(2 * M_PI);
    case FED_GELU_TANH:
        return naive_gated_slope(z, naive_gelu_exponent(z),
                                 2 * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * z * z));
    case FED_HARD_SILU:
        return z < -3 ? 0 : z > 3 ? 1 : (2 * z + 3) / 6;
    default:
        return 1;
    }
}

static inline size_t naive_at(const fed_shape *shape, size_t y, size_t x, size_t c) {
    return (y * shape->width + x) * shape->channels + c;
}

/* One multiplication or comparison of a window: output pixel, tap, input pixel. */
typedef struct naive_tap {
    size_t out_y, out_x, tap_y, tap_x, in_y, in_x;
} naive_tap;

/* Sets the input pixel; false if it is outside the image. */
static inline bool naive_reach(const fed_layer *layer, naive_tap *t) {
    /* In the padding before the image the unsigned difference wraps around to a large number. */
    t->in_y = t->out_y * layer->stride_y + t->tap_y - layer->pad_top;
    t->in_x = t->out_x * layer->stride_x + t->tap_x - layer->pad_left;
    return t->in_y < layer->in.height && t->in_x < layer->in.width;
}

/* Continues with the next tap that is inside the image; false after the last. Start from {0} with
 * tap_x = SIZE_MAX. */
static inline bool naive_next_tap(const fed_layer *layer, naive_tap *t) {
    for (;;) {
        if (++t->tap_x >= layer->window_width) {
            t->tap_x = 0;
            t->tap_y++;
        }
        if (t->tap_y >= layer->window_height) {
            t->tap_y = 0;
            t->out_x++;
        }
        if (t->out_x >= layer->out.width) {
            t->out_x = 0;
            t->out_y++;
        }
        if (t->out_y >= layer->out.height) return false;
        if (naive_reach(layer, t)) return true;
    }
}

static const naive_tap NAIVE_FIRST_TAP = {.tap_x = SIZE_MAX};

static inline size_t naive_weight(const fed_layer *layer, const naive_tap *t, size_t ci,
                                  size_t co) {
    const size_t tap = t->tap_y * layer->window_width + t->tap_x;
    return layer->offset + (tap * layer->in.channels + ci) * layer->out.channels + co;
}

static inline bool naive_is_norm(const fed_layer *layer) {
    return layer->kind == KIND_GROUP_NORM || layer->kind == KIND_LAYER_NORM;
}

static inline size_t naive_num_weights(const fed_layer *layer) {
    if (naive_is_norm(layer)) return layer->has_scale ? layer->out.channels : 0;
    if (layer->kind == KIND_DENSE) return fed_shape_size(&layer->in) * layer->out.channels;
    const size_t num_taps = layer->window_height * layer->window_width * layer->in.channels;
    return layer->kind == KIND_DEPTHWISE ? num_taps : num_taps * layer->out.channels;
}

static inline double naive_bias(const fed_layer *layer, const double *params, size_t c) {
    return layer->has_bias ? params[layer->offset + naive_num_weights(layer) + c] : 0;
}

static inline void naive_dense(const fed_layer *layer, const double *params, const double *in,
                               double *out) {
    const size_t num_outputs = layer->out.channels;
    for (size_t o = 0; o < num_outputs; o++) out[o] = naive_bias(layer, params, o);
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++)
        for (size_t o = 0; o < num_outputs; o++)
            out[o] += in[i] * params[layer->offset + i * num_outputs + o];
}

static inline void naive_conv(const fed_layer *layer, const double *params, const double *in,
                              double *out) {
    for (size_t o = 0; o < fed_shape_size(&layer->out); o++)
        out[o] = naive_bias(layer, params, o % layer->out.channels);
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t ci = 0; ci < layer->in.channels; ci++) {
            const double value = in[naive_at(&layer->in, t.in_y, t.in_x, ci)];
            const double *weights = params + naive_weight(layer, &t, ci, 0);
            double *sums = out + naive_at(&layer->out, t.out_y, t.out_x, 0);
            for (size_t co = 0; co < layer->out.channels; co++) sums[co] += value * weights[co];
        }
}

/* The weight of channel c in the kernel [window height, window width, channels]. */
static inline size_t naive_depth_weight(const fed_layer *layer, const naive_tap *t, size_t c) {
    return layer->offset + (t->tap_y * layer->window_width + t->tap_x) * layer->in.channels + c;
}

static inline void naive_depthwise(const fed_layer *layer, const double *params, const double *in,
                                   double *out) {
    for (size_t o = 0; o < fed_shape_size(&layer->out); o++)
        out[o] = naive_bias(layer, params, o % layer->out.channels);
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t c = 0; c < layer->in.channels; c++)
            out[naive_at(&layer->out, t.out_y, t.out_x, c)] +=
                in[naive_at(&layer->in, t.in_y, t.in_x, c)] *
                params[naive_depth_weight(layer, &t, c)];
}

/* The index of the largest value in the window of output value (y, x, c), the first of equal
 * ones. */
static inline size_t naive_argmax(const fed_layer *layer, const double *in, size_t y, size_t x,
                                  size_t c, naive_margin *margin) {
    size_t best = SIZE_MAX;
    double second = -INFINITY;
    for (size_t tap = 0; tap < layer->window_height * layer->window_width; tap++) {
        naive_tap t = {y, x, tap / layer->window_width, tap % layer->window_width, 0, 0};
        if (!naive_reach(layer, &t)) continue;
        const size_t at = naive_at(&layer->in, t.in_y, t.in_x, c);
        if (best == SIZE_MAX || in[at] > in[best]) {
            if (best != SIZE_MAX) second = in[best];
            best = at;
        } else if (in[at] > second) {
            second = in[at];
        }
    }
    naive_note(margin, in[best] - second);
    return best;
}

static inline double naive_window_size(const fed_layer *layer, size_t y, size_t x) {
    double count = 0;
    for (size_t tap = 0; tap < layer->window_height * layer->window_width; tap++) {
        naive_tap t = {y, x, tap / layer->window_width, tap % layer->window_width, 0, 0};
        count += naive_reach(layer, &t);
    }
    return count;
}

static inline void naive_pool(const fed_layer *layer, const double *in, double *out,
                              naive_margin *margin) {
    const fed_shape *shape = &layer->out;
    for (size_t y = 0; y < shape->height; y++)
        for (size_t x = 0; x < shape->width; x++)
            for (size_t c = 0; c < shape->channels && layer->kind == KIND_MAX_POOL; c++)
                out[naive_at(shape, y, x, c)] = in[naive_argmax(layer, in, y, x, c, margin)];
    if (layer->kind == KIND_MAX_POOL) return;
    memset(out, 0, fed_shape_size(shape) * sizeof(*out));
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t c = 0; c < shape->channels; c++)
            out[naive_at(shape, t.out_y, t.out_x, c)] +=
                in[naive_at(&layer->in, t.in_y, t.in_x, c)] /
                naive_window_size(layer, t.out_y, t.out_x);
}

/* A layer norm has a group for each pixel. */
static inline size_t naive_num_groups(const fed_layer *layer) {
    return layer->kind == KIND_LAYER_NORM ? layer->in.height * layer->in.width : layer->num_groups;
}

static inline size_t naive_group(const fed_layer *layer, size_t i) {
    if (layer->kind == KIND_LAYER_NORM) return i / layer->in.channels;
    return i % layer->in.channels / (layer->in.channels / layer->num_groups);
}

/* The mean of a[i] * b[i] over a group; b NULL: the mean of a[i]. */
static inline double naive_group_mean(const fed_layer *layer, size_t group, const double *a,
                                      const double *b) {
    double sum = 0, count = 0;
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++) {
        if (naive_group(layer, i) != group) continue;
        sum += b != NULL ? a[i] * b[i] : a[i];
        count++;
    }
    return sum / count;
}

static inline double naive_scale(const fed_layer *layer, const double *params, size_t i) {
    return layer->has_scale ? params[layer->offset + i % layer->in.channels] : 1;
}

/* Normalises to mean 0 and variance 1, before gamma and beta. inverses receives each group's 1 /
 * deviation. */
static inline void naive_normalise(const fed_layer *layer, const double *in, double *normal,
                                   double *inverses /* out [groups] */) {
    const size_t size = fed_shape_size(&layer->in);
    for (size_t g = 0; g < naive_num_groups(layer); g++) {
        const double mean = naive_group_mean(layer, g, in, NULL);
        for (size_t i = 0; i < size; i++)
            if (naive_group(layer, i) == g) normal[i] = in[i] - mean;
        inverses[g] = 1 / sqrt(naive_group_mean(layer, g, normal, normal) + layer->epsilon);
        for (size_t i = 0; i < size; i++)
            if (naive_group(layer, i) == g) normal[i] *= inverses[g];
    }
}

static inline void naive_norm(const fed_layer *layer, const double *params, const double *in,
                              double *out) {
    double *inverses = test_alloc(naive_num_groups(layer) * sizeof(*inverses));
    naive_normalise(layer, in, out, inverses);
    for (size_t i = 0; i < fed_shape_size(&layer->out); i++)
        out[i] = out[i] * naive_scale(layer, params, i) +
                 naive_bias(layer, params, i % layer->out.channels);
    free(inverses);
}

/* The index of the output of a zero padding that equals input i. */
static inline size_t naive_padded_at(const fed_layer *layer, size_t i) {
    const size_t pixel = i / layer->in.channels;
    return naive_at(&layer->out, pixel / layer->in.width + layer->pad_top,
                    pixel % layer->in.width + layer->pad_left, i % layer->in.channels);
}

static inline void naive_layer_forward(const fed_layer *layer, const double *params,
                                       const double *in, const double *in_2 /* of an addition */,
                                       const double *mask /* of a dropout */, double *out,
                                       naive_margin *margin) {
    const size_t size = fed_shape_size(&layer->out);
    switch (layer->kind) {
    case KIND_DENSE:
        naive_dense(layer, params, in, out);
        break;
    case KIND_CONV2D:
        naive_conv(layer, params, in, out);
        break;
    case KIND_DEPTHWISE:
        naive_depthwise(layer, params, in, out);
        break;
    case KIND_MAX_POOL:
    case KIND_AVERAGE_POOL:
        naive_pool(layer, in, out, margin);
        break;
    case KIND_GROUP_NORM:
    case KIND_LAYER_NORM:
        naive_norm(layer, params, in, out);
        break;
    case KIND_CONCATENATE:
        for (size_t i = 0; i < size; i++) {
            const size_t channels = layer->out.channels, first = layer->in.channels;
            const size_t pixel = i / channels, c = i % channels;
            out[i] =
                c < first ? in[pixel * first + c] : in_2[pixel * (channels - first) + c - first];
        }
        break;
    case KIND_ZERO_PADDING:
        memset(out, 0, size * sizeof(*out));
        for (size_t i = 0; i < fed_shape_size(&layer->in); i++)
            out[naive_padded_at(layer, i)] = in[i];
        break;
    default:
        for (size_t i = 0; i < size; i++)
            out[i] = in[i] * (mask != NULL ? mask[i] : 1) + (in_2 != NULL ? in_2[i] : 0);
    }
    for (size_t i = 0; i < size; i++) out[i] = naive_activation(layer, out[i], margin);
}

/* ---- Layers, backward: g is the gradient by the input of the activation ---------------------- */

static inline void naive_bias_back(const fed_layer *layer, const double *g, double *gradient) {
    if (!layer->has_bias) return;
    for (size_t o = 0; o < fed_shape_size(&layer->out); o++)
        gradient[layer->offset + naive_num_weights(layer) + o % layer->out.channels] += g[o];
}

static inline void naive_dense_back(const fed_layer *layer, const double *params, const double *in,
                                    const double *g, double *in_gradient, double *gradient) {
    for (size_t i = 0; i < fed_shape_size(&layer->in); i++) {
        const size_t first = layer->offset + i * layer->out.channels;
        double by_in = 0;
        for (size_t o = 0; o < layer->out.channels; o++) {
            gradient[first + o] += in[i] * g[o];
            by_in += params[first + o] * g[o];
        }
        in_gradient[i] += by_in;
    }
}

static inline void naive_conv_back(const fed_layer *layer, const double *params, const double *in,
                                   const double *g, double *in_gradient, double *gradient) {
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t ci = 0; ci < layer->in.channels; ci++) {
            const size_t at = naive_at(&layer->in, t.in_y, t.in_x, ci);
            const size_t first = naive_weight(layer, &t, ci, 0);
            const double *by_out = g + naive_at(&layer->out, t.out_y, t.out_x, 0);
            double by_in = 0;
            for (size_t co = 0; co < layer->out.channels; co++) {
                gradient[first + co] += in[at] * by_out[co];
                by_in += params[first + co] * by_out[co];
            }
            in_gradient[at] += by_in;
        }
}

static inline void naive_depthwise_back(const fed_layer *layer, const double *params,
                                        const double *in, const double *g, double *in_gradient,
                                        double *gradient) {
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t c = 0; c < layer->in.channels; c++) {
            const size_t at = naive_at(&layer->in, t.in_y, t.in_x, c);
            const size_t weight = naive_depth_weight(layer, &t, c);
            const double by_out = g[naive_at(&layer->out, t.out_y, t.out_x, c)];
            gradient[weight] += in[at] * by_out;
            in_gradient[at] += params[weight] * by_out;
        }
}

static inline void naive_pool_back(const fed_layer *layer, const double *in, const double *g,
                                   double *in_gradient) {
    const fed_shape *shape = &layer->out;
    naive_margin ignored = {INFINITY};
    for (size_t y = 0; y < shape->height; y++)
        for (size_t x = 0; x < shape->width; x++)
            for (size_t c = 0; c < shape->channels && layer->kind == KIND_MAX_POOL; c++)
                in_gradient[naive_argmax(layer, in, y, x, c, &ignored)] +=
                    g[naive_at(shape, y, x, c)];
    if (layer->kind == KIND_MAX_POOL) return;
    for (naive_tap t = NAIVE_FIRST_TAP; naive_next_tap(layer, &t);)
        for (size_t c = 0; c < shape->channels; c++)
            in_gradient[naive_at(&layer->in, t.in_y, t.in_x, c)] +=
                g[naive_at(shape, t.out_y, t.out_x, c)] /
                naive_window_size(layer, t.out_y, t.out_x);
}

static inline void naive_norm_back(const fed_layer *layer, const double *params, const double *in,
                                   const double *g, double *in_gradient, double *gradient) {
    const size_t size = fed_shape_size(&layer->in);
    double *normal = test_alloc(size * sizeof(*normal));
    double *by_normal = test_alloc(size * sizeof(*by_normal));
    double *inverses = test_alloc(naive_num_groups(layer) * sizeof(*inverses));
    naive_normalise(layer, in, normal, inverses);
    for (size_t i = 0; i < size; i++) {
        if (layer->has_scale) gradient[layer->offset + i % layer->in.channels] += g[i] * normal[i];
        by_normal[i] = g[i] * naive_scale(layer, params, i);
    }
    for (size_t k = 0; k < naive_num_groups(layer); k++) {
        const double mean = naive_group_mean(layer, k, by_normal, NULL);
        const double tilt = naive_group_mean(layer, k, by_normal, normal);
        for (size_t i = 0; i < size; i++)
            if (naive_group(layer, i) == k)
                in_gradient[i] = inverses[k] * (by_normal[i] - mean - normal[i] * tilt);
    }
    free(normal);
    free(by_normal);
    free(inverses);
}

/* Adds the layer's part to the model's flat gradient; writes in_gradient; overwrites
 * out_gradient. */
static inline void naive_layer_backward(const fed_layer *layer, const double *params,
                                        const double *in, const double *out, const double *mask,
                                        double *out_gradient, double *in_gradient,
                                        double *gradient) {
    const size_t size = fed_shape_size(&layer->out);
    /* Only in a separate activation layer may the slope depend on the activation's inputs. */
    for (size_t o = 0; o < size; o++)
        out_gradient[o] *= naive_slope(layer, layer->kind == KIND_ACTIVATION ? in[o] : NAN, out[o]);
    if (layer->kind == KIND_CONCATENATE) { /* the whole gradient is passed on: see naive_pass_on */
        memcpy(in_gradient, out_gradient, size * sizeof(*in_gradient));
        return;
    }
    memset(in_gradient, 0, fed_shape_size(&layer->in) * sizeof(*in_gradient));
    switch (layer->kind) {
    case KIND_DENSE:
        naive_bias_back(layer, out_gradient, gradient);
        naive_dense_back(layer, params, in, out_gradient, in_gradient, gradient);
        break;
    case KIND_CONV2D:
        naive_bias_back(layer, out_gradient, gradient);
        naive_conv_back(layer, params, in, out_gradient, in_gradient, gradient);
        break;
    case KIND_DEPTHWISE:
        naive_bias_back(layer, out_gradient, gradient);
        naive_depthwise_back(layer, params, in, out_gradient, in_gradient, gradient);
        break;
    case KIND_MAX_POOL:
    case KIND_AVERAGE_POOL:
        naive_pool_back(layer, in, out_gradient, in_gradient);
        break;
    case KIND_ZERO_PADDING:
        for (size_t i = 0; i < fed_shape_size(&layer->in); i++)
            in_gradient[i] = out_gradient[naive_padded_at(layer, i)];
        break;
    case KIND_GROUP_NORM:
    case KIND_LAYER_NORM:
        naive_bias_back(layer, out_gradient, gradient);
        naive_norm_back(layer, params, in, out_gradient, in_gradient, gradient);
        break;
    default:
        for (size_t i = 0; i < size; i++)
            in_gradient[i] = out_gradient[i] * (mask != NULL ? mask[i] : 1);
    }
}

/* ---- Dropout --------------------------------------------------------------------------------- */

/* Draws one example's mask of a dropout layer. Each 64-bit draw gives 16 bits for each of four
 * values, the lowest bits first. */
static inline void naive_draw_mask(const fed_layer *layer, fed_rng *rng, double *mask) {
    const uint64_t threshold = (uint64_t)floor(layer->rate * 65536 + 0.5);
    uint64_t bits = 0;
    for (size_t i = 0; i < fed_shape_size(&layer->out); i++) {
        bits = i % 4 == 0 ? fed_rng_u64(rng) : bits >> 16;
        mask[i] = (bits & 0xffff) < threshold ? 0 : 65536.0 / (double)(65536 - threshold);
    }
}

/* ---- The net --------------------------------------------------------------------------------- */

typedef struct naive_net {
    const fed_model *model;
    size_t num_examples;
    double *values[FED_MAX_LAYERS + 1]; /* of one example: the pixels, then each layer's outputs */
    double *gradients[FED_MAX_LAYERS + 1]; /* by values */
    double *part; /* the part of a value's gradient that comes from one of its readers */
    double *masks[FED_MAX_LAYERS]; /* [num_examples, outputs]; NULL: not a dropout, or not drawn */
    naive_margin margin;           /* over all examples that were scored */
} naive_net;

static inline double *naive_doubles(size_t num_values) {
    double *values = test_alloc(num_values * sizeof(*values));
    memset(values, 0, num_values * sizeof(*values));
    return values;
}

/* The size of value v: value 0 is the image, value v the output of layer v - 1. */
static inline size_t naive_value_size(const fed_model *model, size_t v) {
    return v > 0 ? fed_shape_size(&model->layers[v - 1].out) : model->num_inputs;
}

static inline naive_net naive_new(const fed_model *model, size_t num_examples) {
    naive_net net = {.model = model, .num_examples = num_examples, .margin = {INFINITY}};
    size_t largest = 0;
    for (size_t l = 0; l <= model->num_layers; l++) {
        const size_t size = naive_value_size(model, l);
        net.values[l] = naive_doubles(size);
        net.gradients[l] = naive_doubles(size);
        if (size > largest) largest = size;
    }
    net.part = naive_doubles(largest);
    return net;
}

static inline void naive_free(naive_net *net) {
    free(net->part);
    for (size_t l = 0; l <= net->model->num_layers; l++) {
        free(net->values[l]);
        free(net->gradients[l]);
        if (l < net->model->num_layers) free(net->masks[l]);
    }
}

static inline double *naive_mask(const naive_net *net, size_t l, size_t example) {
    if (net->masks[l] == NULL) return NULL;
    return net->masks[l] + example * fed_shape_size(&net->model->layers[l].out);
}

/* Draws the masks of a batch whose first example is the client's visit number first_visit: each
 * visit has 2^20 blocks of the stream, from which its dropout layers draw one after the other. */
static inline void naive_draw_masks(naive_net *net, const fed_key *key, size_t first_visit) {
    for (size_t e = 0; e < net->num_examples; e++) {
        fed_rng rng;
        fed_rng_init(&rng, key);
        rng.counter[0] = (uint64_t)(first_visit + e) << 20;
        for (size_t l = 0; l < net->model->num_layers; l++) {
            const fed_layer *layer = &net->model->layers[l];
            if (layer->kind != KIND_DROPOUT) continue;
            if (net->masks[l] == NULL)
                net->masks[l] = naive_doubles(net->num_examples * fed_shape_size(&layer->out));
            naive_draw_mask(layer, &rng, naive_mask(net, l, e));
        }
    }
}

/* The number of inputs of a layer; the index of the value that is input i of layer l. */
static inline size_t naive_num_inputs(const fed_layer *layer) {
    return layer->kind == KIND_ADD || layer->kind == KIND_CONCATENATE ? 2 : 1;
}

static inline size_t naive_source(const fed_model *model, size_t l, size_t i) {
    return l - model->layers[l].skips[i];
}

/* Computes every layer's values and returns the logits. */
static inline const double *naive_logits(naive_net *net, const double *params, const float *pixels,
                                         size_t example) {
    const fed_model *model = net->model;
    for (size_t i = 0; i < model->num_inputs; i++)
        net->values[0][i] = (double)pixels[example * model->num_inputs + i];
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const double *in_2 =
            naive_num_inputs(layer) > 1 ? net->values[naive_source(model, l, 1)] : NULL;
        naive_layer_forward(layer, params, net->values[naive_source(model, l, 0)], in_2,
                            naive_mask(net, l, example), net->values[l + 1], &net->margin);
    }
    return net->values[model->num_layers];
}

/* The sum of the batch's losses. */
static inline double naive_loss(naive_net *net, const double *params, const float *pixels,
                                const int32_t *labels) {
    double loss = 0;
    for (size_t e = 0; e < net->num_examples; e++)
        loss += reference_loss(naive_logits(net, params, pixels, e), net->model->num_classes,
                               labels[e]);
    return loss;
}

/* Adds the part of the gradient `passed` that belongs to input i of a layer. For a concatenation
 * this is a part of the channels of its outputs. */
static inline void naive_pass_on(const fed_layer *layer, size_t i, const double *passed,
                                 double *gradient) {
    if (layer->kind != KIND_CONCATENATE) {
        for (size_t k = 0; k < fed_shape_size(&layer->in); k++) gradient[k] += passed[k];
        return;
    }
    const size_t channels = layer->out.channels, first = i == 0 ? 0 : layer->in.channels;
    const size_t num = i == 0 ? layer->in.channels : channels - first;
    for (size_t k = 0; k < layer->in.height * layer->in.width * num; k++)
        gradient[k] += passed[k / num * channels + first + k % num];
}

/* Computes an example's gradients by all values except the last, whose gradient is already set, and
 * adds the example's part of the gradient by parameters. */
static inline void naive_backward(naive_net *net, const double *params, size_t example,
                                  double *gradient /* in-out */) {
    const fed_model *model = net->model;
    for (size_t v = 0; v < model->num_layers; v++)
        memset(net->gradients[v], 0, naive_value_size(model, v) * sizeof(double));
    for (size_t l = model->num_layers; l-- > 0;) {
        const fed_layer *layer = &model->layers[l];
        naive_layer_backward(layer, params, net->values[naive_source(model, l, 0)],
                             net->values[l + 1], naive_mask(net, l, example), net->gradients[l + 1],
                             net->part, gradient);
        for (size_t i = 0; i < naive_num_inputs(layer); i++)
            naive_pass_on(layer, i, net->part, net->gradients[naive_source(model, l, i)]);
    }
}

/* The gradient of the batch's mean loss; returns the sum of its losses. */
static inline double naive_gradient(naive_net *net, const double *params, const float *pixels,
                                    const int32_t *labels, double *gradient /* out [P] */) {
    const fed_model *model = net->model;
    double loss = 0;
    memset(gradient, 0, model->num_params * sizeof(*gradient));
    for (size_t e = 0; e < net->num_examples; e++) {
        const double *logits = naive_logits(net, params, pixels, e);
        const double max = logits[reference_argmax(logits, model->num_classes)];
        const double sum = reference_exp_sum(logits, model->num_classes);
        loss += reference_loss(logits, model->num_classes, labels[e]);
        for (size_t k = 0; k < model->num_classes; k++)
            net->gradients[model->num_layers][k] =
                (exp(logits[k] - max) / sum - ((size_t)labels[e] == k)) / (double)net->num_examples;
        naive_backward(net, params, e, gradient);
    }
    return loss;
}

#endif
