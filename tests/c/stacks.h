/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the tests of whole networks: stacks of layers of every kind, as tables for the core,
 * and problems on which they are trained.
 */
#ifndef FED_STACKS_H
#define FED_STACKS_H

#include "naive_net.h"

/* ---- Stacks ---------------------------------------------------------------------------------- */

enum { MAX_SPECS = 12 };

/* A layer before its shapes are known; `size` is units, filters or groups. */
typedef struct spec {
    bool used;
    int32_t kind, activation;
    size_t size, height, width, stride_y, stride_x;
    bool same, plain; /* plain: no bias and no scale */
    double rate;
    size_t skip, skip_2; /* as fed_layer.skips */
} spec;

typedef struct stack {
    const char *name;
    fed_shape in;
    spec specs[MAX_SPECS];
} stack;

/* clang-format off */
#define FULL(units, act) {true, KIND_DENSE, (act), (units), 0, 0, 0, 0, false, false, 0, 0, 0}
#define FULL_PLAIN(units, act) {true, KIND_DENSE, (act), (units), 0, 0, 0, 0, false, true, 0, 0, 0}
#define FULL_OF(back, units, act) {true, KIND_DENSE, (act), (units), 0, 0, 0, 0, false, false, 0, (back), 0}
#define CONV(filters, h, w, sy, sx, same, act) {true, KIND_CONV2D, (act), (filters), h, w, sy, sx, same, false, 0, 0, 0}
#define CONV_PLAIN(filters, h, w, sy, sx, same, act) {true, KIND_CONV2D, (act), (filters), h, w, sy, sx, same, true, 0, 0, 0}
#define MAX(h, w, sy, sx, same) {true, KIND_MAX_POOL, FED_LINEAR, 0, h, w, sy, sx, same, false, 0, 0, 0}
#define MEAN(h, w, sy, sx, same) {true, KIND_AVERAGE_POOL, FED_LINEAR, 0, h, w, sy, sx, same, false, 0, 0, 0}
#define POOL2 MAX(2, 2, 2, 2, false)
#define NORM(groups, act) {true, KIND_GROUP_NORM, (act), (groups), 0, 0, 0, 0, false, false, 0, 0, 0}
#define NORM_PLAIN(groups, act) {true, KIND_GROUP_NORM, (act), (groups), 0, 0, 0, 0, false, true, 0, 0, 0}
#define PIXEL_NORM(act) {true, KIND_LAYER_NORM, (act), 0, 0, 0, 0, 0, false, false, 0, 0, 0}
#define PAD(top, left, act) {true, KIND_ZERO_PADDING, (act), 0, 0, 0, (top), (left), false, false, 0, 0, 0}
#define DROP(share) {true, KIND_DROPOUT, FED_LINEAR, 0, 0, 0, 0, 0, false, false, (share), 0, 0}
#define ACT(act) {true, KIND_ACTIVATION, (act), 0, 0, 0, 0, 0, false, false, 0, 0, 0}
#define ADD(first, second, act) {true, KIND_ADD, (act), 0, 0, 0, 0, 0, false, false, 0, (first), (second)}
#define JOIN(first, second, act) {true, KIND_CONCATENATE, (act), 0, 0, 0, 0, 0, false, false, 0, (first), (second)}
#define CONV_OF(back, filters, h, w, sy, sx, act) {true, KIND_CONV2D, (act), (filters), h, w, sy, sx, true, false, 0, (back), 0}
#define DEPTHWISE(h, w, sy, sx, same, act) {true, KIND_DEPTHWISE, (act), 0, h, w, sy, sx, same, false, 0, 0, 0}
/* clang-format on */

/* Stacks of few parameters: the loss is differentiated by each of them. */
static const stack SMALL[] = {
    {"dense", {1, 1, 5}, {FULL(4, FED_LINEAR)}},
    {"dense of an image", {2, 3, 2}, {FULL(5, FED_TANH), FULL_PLAIN(3, FED_LINEAR)}},
    {"two dense layers of one image, which is padded for a value",
     {2, 3, 2},
     {FULL(3, FED_TANH), FULL_OF(1, 3, FED_LINEAR), ADD(0, 1, FED_LINEAR), FULL(2, FED_LINEAR)}},
    {"two dense layers of one vector",
     {1, 1, 5},
     {FULL(3, FED_TANH), FULL_OF(1, 4, FED_LINEAR), JOIN(0, 1, FED_TANH), FULL(2, FED_LINEAR)}},
    {"all activations",
     {1, 1, 4},
     {FULL(5, FED_RELU), FULL(5, FED_TANH), FULL(5, FED_SIGMOID), ACT(FED_RELU), ACT(FED_TANH),
      ACT(FED_SIGMOID), FULL(3, FED_LINEAR)}},
    {"all activations with kinks, as parts of layers and by themselves",
     {2, 3, 2},
     {CONV(3, 2, 2, 1, 1, true, FED_LEAKY_RELU), NORM(3, FED_ELU), PAD(1, 2, FED_RELU6),
      FULL(5, FED_RELU6), FULL(5, FED_LEAKY_RELU), FULL(5, FED_ELU), ACT(FED_LEAKY_RELU),
      ACT(FED_ELU), FULL(3, FED_LINEAR)}},
    {"all activations that need their inputs",
     {3, 3, 1},
     {ACT(FED_SILU), CONV(4, 2, 2, 1, 1, true, FED_LINEAR), ACT(FED_GELU), MEAN(2, 2, 1, 1, false),
      ACT(FED_GELU_TANH), FULL(5, FED_LINEAR), ACT(FED_SILU), ACT(FED_HARD_SILU),
      FULL(4, FED_LINEAR)}},
    {"layer norms",
     {3, 2, 3},
     {PIXEL_NORM(FED_TANH), CONV(5, 2, 2, 1, 1, true, FED_LINEAR), PIXEL_NORM(FED_RELU),
      FULL(6, FED_LINEAR), PIXEL_NORM(FED_LINEAR), FULL(3, FED_LINEAR)}},
    {"zero padding, first and between",
     {3, 4, 2},
     {PAD(2, 1, FED_LINEAR), CONV(3, 3, 3, 2, 2, false, FED_TANH), PAD(1, 1, FED_SIGMOID),
      MAX(2, 2, 1, 1, false), FULL(3, FED_LINEAR)}},
    {"conv", {5, 4, 2}, {CONV(3, 3, 2, 1, 1, false, FED_RELU), FULL(3, FED_LINEAR)}},
    {"conv, same", {5, 4, 1}, {CONV(2, 3, 3, 1, 1, true, FED_TANH), FULL(3, FED_LINEAR)}},
    {"conv, strides",
     {7, 6, 1},
     {CONV_PLAIN(2, 3, 2, 2, 3, true, FED_SIGMOID), FULL(2, FED_LINEAR)}},
    {"two convs",
     {6, 5, 1},
     {CONV(2, 3, 3, 1, 1, true, FED_RELU), CONV(3, 2, 3, 2, 1, true, FED_TANH),
      FULL(3, FED_LINEAR)}},
    {"conv and pool",
     {6, 6, 1},
     {CONV(2, 3, 3, 1, 1, true, FED_RELU), POOL2, CONV(3, 2, 2, 1, 1, false, FED_RELU), POOL2,
      FULL(3, FED_LINEAR)}},
    {"max-pool, overlapping, same",
     {5, 6, 1},
     {CONV(2, 2, 2, 1, 1, true, FED_TANH), MAX(3, 2, 2, 1, true), FULL(3, FED_LINEAR)}},
    {"mean-pool",
     {6, 5, 1},
     {CONV(2, 2, 2, 1, 1, true, FED_TANH), MEAN(2, 2, 2, 2, false), FULL(3, FED_LINEAR)}},
    {"mean-pool, same, to one pixel",
     {5, 5, 1},
     {CONV(3, 2, 2, 1, 1, true, FED_RELU), MEAN(3, 2, 2, 2, true), MEAN(3, 3, 1, 1, false),
      FULL(3, FED_LINEAR)}},
    {"pool first", {4, 6, 2}, {MAX(2, 3, 2, 3, false), FULL(3, FED_LINEAR)}},
    {"group norm",
     {3, 4, 2},
     {CONV(4, 2, 2, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU), FULL(3, FED_LINEAR)}},
    {"group norm without parameters, first",
     {3, 3, 4},
     {NORM_PLAIN(4, FED_TANH), FULL(3, FED_LINEAR)}},
    {"group norm after dense",
     {1, 1, 4},
     {FULL(6, FED_LINEAR), NORM(3, FED_SIGMOID), FULL(3, FED_LINEAR)}},
    {"depthwise convs that apply norms, first and between",
     {7, 6, 3},
     {NORM(3, FED_RELU), DEPTHWISE(3, 3, 1, 1, true, FED_LINEAR), NORM_PLAIN(1, FED_RELU6),
      DEPTHWISE(3, 2, 2, 1, true, FED_TANH), NORM(3, FED_TANH),
      DEPTHWISE(2, 3, 1, 2, false, FED_RELU), NORM(1, FED_LINEAR), ADD(0, 0, FED_LINEAR),
      FULL(3, FED_LINEAR)}},
    {"depthwise convs whose windows leave gaps, or whose norm others read, too",
     {7, 7, 2},
     {CONV(2, 1, 1, 1, 1, true, FED_LINEAR), NORM(2, FED_LINEAR),
      DEPTHWISE(1, 2, 3, 3, false, FED_LINEAR), NORM(1, FED_RELU),
      DEPTHWISE(3, 3, 1, 1, true, FED_LINEAR), ADD(1, 0, FED_LINEAR), FULL(3, FED_LINEAR)}},
    {"dropout",
     {4, 4, 1},
     {DROP(0.25), CONV(3, 2, 2, 1, 1, false, FED_RELU), DROP(0.5), FULL(7, FED_TANH), DROP(0.3),
      FULL(3, FED_LINEAR)}},
    {"conv to logits",
     {3, 3, 1},
     {CONV(4, 2, 2, 1, 1, false, FED_TANH), CONV(3, 2, 2, 1, 1, false, FED_LINEAR)}},
    {"mean-pool to logits",
     {4, 4, 1},
     {CONV(3, 2, 2, 1, 1, true, FED_RELU), MEAN(4, 4, 1, 1, false)}},
    {"group norm to logits",
     {1, 1, 3},
     {FULL(4, FED_RELU), FULL(4, FED_LINEAR), NORM(1, FED_LINEAR)}},
    {"dropout to logits", {1, 1, 3}, {FULL(4, FED_LINEAR), DROP(0.5)}},
    {"residual block",
     {5, 4, 2},
     {CONV(4, 3, 3, 1, 1, true, FED_LINEAR), NORM(2, FED_TANH),
      CONV(4, 3, 3, 1, 1, true, FED_LINEAR), ADD(0, 1, FED_RELU), MEAN(5, 4, 1, 1, false),
      FULL(3, FED_LINEAR)}},
    {"shortcut with a stride, and borders of two sizes",
     {6, 5, 1},
     {CONV(3, 2, 2, 1, 1, true, FED_RELU), CONV(4, 5, 3, 2, 2, true, FED_TANH),
      CONV(4, 3, 3, 1, 1, true, FED_LINEAR), CONV_OF(2, 4, 1, 1, 2, 2, FED_LINEAR),
      ADD(1, 0, FED_TANH), FULL(3, FED_LINEAR)}},
    {"sums of one value, of the image, and a pool that another reads before",
     {4, 4, 2},
     {ADD(0, 0, FED_LINEAR), CONV_OF(1, 2, 3, 3, 1, 1, FED_SIGMOID), ADD(1, 0, FED_TANH),
      CONV(3, 3, 3, 1, 1, true, FED_TANH), POOL2, MAX(3, 3, 1, 1, true),
      CONV_OF(2, 3, 2, 2, 2, 2, FED_LINEAR), ADD(1, 0, FED_LINEAR), FULL(3, FED_LINEAR)}},
    {"dense block",
     {1, 1, 5},
     {FULL(4, FED_TANH), FULL(4, FED_RELU), ADD(1, 0, FED_LINEAR), FULL(4, FED_SIGMOID),
      ADD(3, 0, FED_LINEAR), FULL(3, FED_LINEAR)}},
    {"concatenations of the image, of a value with itself, and of units",
     {4, 3, 2},
     {CONV(3, 3, 3, 1, 1, true, FED_TANH), JOIN(1, 0, FED_SIGMOID),
      CONV(4, 2, 2, 1, 1, true, FED_TANH), JOIN(0, 0, FED_LINEAR), JOIN(0, 2, FED_TANH),
      FULL(4, FED_TANH), FULL(3, FED_LINEAR), JOIN(0, 1, FED_RELU), FULL(3, FED_LINEAR)}},
    {"sum to logits", {1, 1, 4}, {FULL(3, FED_TANH), FULL(3, FED_LINEAR), ADD(1, 0, FED_LINEAR)}},
};

/* Sizes that the kernels must handle: near the width of vectors and panels, 1, primes, and sizes of
 * real models. */
static const stack LARGE[] = {
    {"one of everything",
     {1, 1, 1},
     {CONV(1, 1, 1, 1, 1, false, FED_RELU), POOL2, FULL(1, FED_LINEAR)}},
    {"softmax regression", {28, 28, 1}, {FULL(62, FED_LINEAR)}},
    {"dense, vectors less and more one",
     {1, 1, 15},
     {FULL(17, FED_RELU), FULL(31, FED_TANH), FULL(33, FED_SIGMOID), FULL(47, FED_RELU),
      FULL(11, FED_LINEAR)}},
    {"2NN", {28, 28, 1}, {FULL(200, FED_RELU), FULL(200, FED_RELU), FULL(10, FED_LINEAR)}},
    {"one hidden unit", {3, 5, 7}, {FULL(1, FED_LINEAR), FULL(1, FED_TANH), FULL(62, FED_LINEAR)}},
    {"dense of raw colours", {7, 5, 3}, {FULL(33, FED_RELU), FULL_PLAIN(7, FED_LINEAR)}},
    {"McMahan's CNN, thinner",
     {28, 28, 1},
     {CONV(8, 5, 5, 1, 1, true, FED_RELU), POOL2, CONV(16, 5, 5, 1, 1, true, FED_RELU), POOL2,
      FULL(48, FED_RELU), FULL(62, FED_LINEAR)}},
    {"Reddi's CNN, thinner",
     {28, 28, 1},
     {CONV(16, 3, 3, 1, 1, false, FED_RELU), CONV(17, 3, 3, 1, 1, false, FED_RELU), POOL2,
      DROP(0.25), FULL(33, FED_RELU), DROP(0.5), FULL(62, FED_LINEAR)}},
    {"colours",
     {32, 32, 3},
     {CONV(7, 3, 3, 2, 2, true, FED_LINEAR), NORM(7, FED_RELU),
      CONV(32, 3, 3, 2, 2, true, FED_RELU), CONV(13, 3, 3, 2, 2, true, FED_SIGMOID),
      MEAN(4, 4, 1, 1, false), FULL(10, FED_LINEAR)}},
    {"two panels and a half of filters",
     {9, 11, 2},
     {CONV(33, 3, 3, 1, 1, true, FED_RELU), CONV(65, 3, 3, 1, 1, true, FED_RELU), POOL2,
      CONV(31, 5, 5, 1, 1, true, FED_TANH), POOL2, FULL(5, FED_LINEAR)}},
    {"pools with a remainder",
     {13, 11, 1},
     {CONV(17, 4, 3, 1, 1, false, FED_RELU), POOL2, CONV(5, 2, 4, 1, 1, true, FED_RELU), POOL2,
      FULL(7, FED_LINEAR)}},
    {"fused pool, all activations",
     {12, 10, 1},
     {CONV(16, 3, 3, 1, 1, true, FED_TANH), POOL2, CONV(19, 3, 3, 1, 1, true, FED_SIGMOID), POOL2,
      CONV(9, 2, 2, 1, 1, false, FED_LINEAR), POOL2, FULL(4, FED_LINEAR)}},
    {"pools that do not fuse",
     {11, 10, 3},
     {CONV(18, 3, 3, 1, 1, true, FED_RELU), MAX(2, 2, 2, 2, true),
      CONV(16, 3, 3, 1, 1, false, FED_RELU), MAX(3, 3, 1, 1, true), MEAN(2, 2, 2, 2, true),
      FULL(4, FED_LINEAR)}},
    {"pool first", {14, 14, 3}, {POOL2, CONV(17, 3, 3, 1, 1, true, FED_RELU), FULL(6, FED_LINEAR)}},
    {"mean-pool first",
     {14, 14, 3},
     {MEAN(3, 3, 2, 2, true), FULL(40, FED_RELU), FULL(6, FED_LINEAR)}},
    {"dropout and group norm first",
     {6, 7, 5},
     {DROP(0.2), NORM(5, FED_LINEAR), CONV(8, 3, 3, 1, 1, true, FED_RELU), FULL(6, FED_LINEAR)}},
    {"group norm after dense",
     {1, 1, 37},
     {FULL(34, FED_LINEAR), NORM(17, FED_RELU), DROP(0.5), FULL(64, FED_TANH), NORM(1, FED_LINEAR),
      FULL(10, FED_LINEAR)}},
    {"strides beyond the window",
     {17, 16, 1},
     {CONV(6, 2, 2, 3, 3, false, FED_RELU), CONV(7, 1, 1, 2, 2, true, FED_RELU),
      FULL(3, FED_LINEAR)}},
    {"1x1 convs",
     {5, 6, 17},
     {CONV(16, 1, 1, 1, 1, false, FED_RELU), CONV_PLAIN(35, 1, 1, 1, 1, true, FED_RELU),
      FULL(3, FED_LINEAR)}},
    {"many channels first",
     {5, 5, 33},
     {CONV(18, 3, 3, 1, 1, true, FED_RELU), POOL2, FULL(3, FED_LINEAR)}},
    {"long windows",
     {3, 19, 1},
     {CONV(5, 1, 7, 1, 1, true, FED_RELU), CONV(20, 3, 1, 1, 2, true, FED_RELU),
      FULL(9, FED_LINEAR)}},
    {"windows wider than the image",
     {2, 2, 4},
     {CONV(6, 5, 5, 1, 1, true, FED_RELU), CONV(18, 5, 3, 1, 1, true, FED_RELU),
      FULL(3, FED_LINEAR)}},
    {"conv to logits",
     {8, 8, 1},
     {CONV(20, 3, 3, 2, 2, true, FED_RELU), CONV(62, 4, 4, 1, 1, false, FED_LINEAR)}},
    {"conv and pool to logits",
     {4, 4, 1},
     {CONV(16, 3, 3, 1, 1, false, FED_RELU), CONV(11, 1, 1, 1, 1, false, FED_LINEAR), POOL2}},
    {"one conv to logits", {6, 6, 2}, {CONV(10, 6, 6, 1, 1, false, FED_LINEAR)}},
    {"mean-pool to logits",
     {8, 8, 3},
     {CONV(17, 3, 3, 1, 1, true, FED_RELU), MEAN(8, 8, 1, 1, false)}},
    {"dense, then conv to logits",
     {1, 1, 9},
     {FULL(20, FED_RELU), CONV(18, 1, 1, 1, 1, false, FED_RELU), FULL(16, FED_TANH),
      CONV(4, 1, 1, 1, 1, false, FED_LINEAR)}},
    {"dropout to logits", {1, 1, 20}, {FULL(33, FED_RELU), FULL(17, FED_LINEAR), DROP(0.1)}},
    {"two residual blocks",
     {9, 7, 3},
     {CONV(17, 3, 3, 1, 1, true, FED_LINEAR), NORM(17, FED_RELU),
      CONV(17, 3, 3, 1, 1, true, FED_LINEAR), ADD(1, 0, FED_RELU),
      CONV(33, 3, 3, 2, 2, true, FED_RELU), CONV(33, 3, 3, 1, 1, true, FED_LINEAR),
      CONV_OF(2, 33, 1, 1, 2, 2, FED_LINEAR), ADD(1, 0, FED_RELU), MEAN(5, 4, 1, 1, false),
      FULL(10, FED_LINEAR)}},
    /* More than 65,536 parameters before the first dense layer, so these layers run by batch. */
    {"wide residual blocks",
     {8, 6, 3},
     {CONV(48, 3, 3, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU),
      CONV(48, 3, 3, 1, 1, true, FED_LINEAR), ADD(1, 0, FED_RELU), DROP(0.2),
      CONV(65, 3, 3, 2, 2, true, FED_LINEAR), NORM_PLAIN(5, FED_TANH),
      CONV(65, 3, 3, 1, 1, true, FED_TANH), CONV_OF(3, 65, 1, 1, 2, 2, FED_LINEAR),
      ADD(1, 0, FED_RELU), MEAN(4, 3, 1, 1, false), FULL(10, FED_LINEAR)}},
    {"wide, with padding and activations that need their inputs",
     {9, 7, 3},
     {PAD(1, 2, FED_LINEAR), CONV(48, 3, 3, 2, 2, false, FED_LEAKY_RELU), PIXEL_NORM(FED_LINEAR),
      ACT(FED_SILU), CONV(160, 3, 3, 1, 1, true, FED_LINEAR), NORM(4, FED_RELU6),
      PAD(3, 0, FED_ELU), CONV(33, 1, 1, 1, 1, true, FED_LINEAR), ACT(FED_GELU),
      ADD(0, 0, FED_LINEAR), FULL(10, FED_LINEAR)}},
    /* Their leading layers have large images and few parameters, so these run by example. */
    {"wide, behind large images with norms",
     {40, 41, 3},
     {CONV(16, 1, 1, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU6),
      CONV_PLAIN(16, 3, 3, 1, 1, true, FED_LINEAR), NORM_PLAIN(4, FED_TANH), ADD(0, 2, FED_RELU),
      MEAN(8, 8, 8, 8, false), CONV(480, 3, 3, 2, 2, true, FED_LINEAR), NORM(4, FED_RELU6),
      MEAN(3, 3, 1, 1, false), FULL(10, FED_LINEAR)}},
    {"wide, behind large images with a norm behind a norm",
     {40, 41, 3},
     {CONV(16, 3, 3, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU), NORM_PLAIN(4, FED_TANH),
      CONV(16, 3, 3, 1, 1, true, FED_LINEAR), MEAN(8, 8, 8, 8, false),
      CONV(480, 3, 3, 2, 2, true, FED_LINEAR), MEAN(3, 3, 1, 1, false), FULL(10, FED_LINEAR)}},
    {"wide, with inverted residuals, also of large images",
     {40, 41, 3},
     {CONV(24, 1, 1, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU6),
      DEPTHWISE(3, 3, 2, 2, true, FED_LINEAR), NORM_PLAIN(4, FED_RELU6),
      CONV(17, 1, 1, 1, 1, true, FED_LINEAR), MEAN(4, 4, 4, 4, false),
      CONV(480, 3, 3, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU6),
      DEPTHWISE(3, 3, 1, 1, true, FED_LINEAR), NORM(4, FED_LINEAR),
      CONV(20, 1, 1, 1, 1, true, FED_LINEAR), FULL(10, FED_LINEAR)}},
    {"wide, behind large images that are read again later",
     {40, 41, 3},
     {CONV(16, 3, 3, 1, 1, true, FED_LINEAR), NORM(2, FED_RELU), NORM_PLAIN(4, FED_TANH),
      CONV(32, 9, 9, 8, 8, true, FED_LINEAR), CONV_OF(2, 32, 1, 1, 8, 8, FED_LINEAR),
      ADD(1, 0, FED_TANH), CONV(97, 3, 3, 2, 2, true, FED_RELU), FULL(10, FED_LINEAR)}},
    {"wide, with concatenations",
     {7, 6, 5},
     {CONV(17, 3, 3, 1, 1, true, FED_LINEAR), JOIN(0, 1, FED_RELU),
      CONV(90, 3, 3, 1, 1, true, FED_TANH), JOIN(1, 0, FED_LINEAR),
      CONV(96, 3, 3, 2, 2, true, FED_RELU), JOIN(0, 0, FED_LINEAR), MEAN(4, 3, 1, 1, false),
      FULL(10, FED_LINEAR)}},
    {"wide, with pools, to logits",
     {12, 9, 1},
     {CONV(40, 3, 3, 1, 1, true, FED_RELU), POOL2, CONV(72, 5, 5, 1, 1, true, FED_RELU),
      MAX(3, 3, 2, 2, true), CONV(7, 3, 2, 1, 1, false, FED_LINEAR)}},
    {"the image is read twice, and a wide dense layer's input, too",
     {6, 6, 2},
     {CONV(40, 3, 3, 1, 1, true, FED_RELU), CONV(2, 3, 3, 1, 1, true, FED_LINEAR),
      ADD(2, 0, FED_TANH), FULL(40, FED_RELU), FULL(40, FED_LINEAR), ADD(1, 0, FED_RELU),
      FULL(5, FED_LINEAR)}},
};

/* Stacks for images with background, see draw_background. */
static const stack ON_BACKGROUND[] = {
    {"Reddi's CNN, smaller",
     {28, 24, 1},
     {CONV(32, 3, 3, 1, 1, false, FED_RELU), CONV(33, 3, 3, 1, 1, false, FED_RELU), POOL2,
      DROP(0.25), FULL(16, FED_RELU), DROP(0.5), FULL(5, FED_LINEAR)}},
    {"McMahan's CNN, thinner",
     {28, 28, 1},
     {CONV(4, 5, 5, 1, 1, true, FED_RELU), POOL2, CONV(6, 5, 5, 1, 1, true, FED_RELU), POOL2,
      FULL(10, FED_LINEAR)}},
    {"a window of even size, in colours",
     {21, 24, 3},
     {CONV(32, 3, 3, 1, 1, false, FED_TANH), CONV(34, 4, 4, 1, 1, true, FED_RELU), POOL2,
      FULL(5, FED_LINEAR)}},
    {"tiles of large windows",
     {18, 22, 1},
     {CONV(32, 3, 3, 1, 1, true, FED_SIGMOID), CONV(32, 5, 5, 1, 1, false, FED_TANH), POOL2,
      FULL(5, FED_LINEAR)}},
    {"strides",
     {31, 25, 1},
     {CONV(5, 3, 3, 2, 1, true, FED_RELU), CONV(6, 3, 2, 1, 2, true, FED_RELU), POOL2,
      FULL(5, FED_LINEAR)}},
};

/* A stack's table. */
typedef struct table {
    fed_layer layers[MAX_SPECS];
    fed_model model;
} table;

/* "same" padding as in TensorFlow: the larger half of the padding is at the end. */
static inline size_t out_size(size_t in, size_t window, size_t stride, bool same, size_t *pad) {
    *pad = 0;
    if (!same) return in < window ? 0 : (in - window) / stride + 1;
    const size_t out = (in + stride - 1) / stride, reach = (out - 1) * stride + window;
    *pad = reach > in ? (reach - in) / 2 : 0;
    return out;
}

static inline fed_layer new_layer(const spec *s, const fed_shape *in, size_t offset) {
    fed_layer layer = {.kind = s->kind,
                       .activation = s->activation,
                       .in = *in,
                       .out = *in,
                       .offset = offset,
                       .rate = s->rate,
                       .constants = {0.25},
                       .skips = {s->skip, s->skip_2},
                       .window_height = s->height,
                       .window_width = s->width,
                       .stride_y = s->stride_y,
                       .stride_x = s->stride_x};
    const bool has_units = s->kind == KIND_DENSE || s->kind == KIND_CONV2D;
    const bool has_weights = has_units || s->kind == KIND_DEPTHWISE;
    layer.has_bias = (has_weights || naive_is_norm(&layer)) && !s->plain;
    if (naive_is_norm(&layer)) {
        layer.has_scale = !s->plain;
        layer.num_groups = s->size;
        layer.epsilon = 1e-3;
    }
    /* There is one padding row less below the image than above it, and there are as many padding
     * columns on the right as on the left. */
    if (s->kind == KIND_ZERO_PADDING) {
        layer.pad_top = s->stride_y;
        layer.pad_left = s->stride_x;
        layer.out.height += 2 * s->stride_y - 1;
        layer.out.width += 2 * s->stride_x;
    }
    if (s->height > 0) {
        layer.out.height = out_size(in->height, s->height, s->stride_y, s->same, &layer.pad_top);
        layer.out.width = out_size(in->width, s->width, s->stride_x, s->same, &layer.pad_left);
    }
    if (s->kind == KIND_DENSE) layer.out.height = layer.out.width = 1;
    if (has_units) layer.out.channels = s->size;
    return layer;
}

static inline bool has_params(const fed_layer *layer) {
    return layer->kind == KIND_DENSE || layer->kind == KIND_CONV2D ||
           layer->kind == KIND_DEPTHWISE || naive_is_norm(layer);
}

static inline size_t num_layer_params(const fed_layer *layer) {
    if (!has_params(layer)) return 0;
    return naive_num_weights(layer) + (layer->has_bias ? layer->out.channels : 0);
}

/* Builds the table of a stack. A 2x2 pool of a 1x1 image has no output, so it is left out. */
static inline void build(const stack *s, table *t) {
    size_t offset = 0, num_layers = 0;
    fed_shape shape = s->in;
    for (size_t i = 0; i < MAX_SPECS && s->specs[i].used; i++) {
        const size_t source = num_layers - s->specs[i].skip;
        const fed_shape *in = source > 0 ? &t->layers[source - 1].out : &s->in;
        fed_layer layer = new_layer(&s->specs[i], in, offset);
        if (layer.kind == KIND_CONCATENATE) {
            const size_t second = num_layers - s->specs[i].skip_2;
            layer.out.channels += (second > 0 ? &t->layers[second - 1].out : &s->in)->channels;
        }
        if (fed_shape_size(&layer.out) == 0) continue;
        t->layers[num_layers++] = layer;
        offset += num_layer_params(&layer);
        shape = layer.out;
    }
    t->model = (fed_model){t->layers, num_layers, fed_shape_size(&s->in), shape.channels, offset};
    if (fed_model_check(&t->model) != FED_OK) fprintf(stderr, "not valid: %s\n", s->name);
    CHECK_EQUAL(fed_model_check(&t->model), FED_OK);
}

/* ---- Problems -------------------------------------------------------------------------------- */

/* Examples and parameters that are scaled so that values are of order 1. */
typedef struct problem {
    const fed_model *model;
    size_t num_examples;
    float *pixels, *params;
    int32_t *labels;
    double *wide; /* params */
} problem;

static const fed_key DROPOUT_KEY = {.seed = 5, .client = 6, .round = 7, .purpose = 8};

static inline void fill_params(uint64_t seed, const fed_model *model, float *params) {
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const size_t num_params = num_layer_params(layer);
        if (num_params == 0) continue;
        const size_t num_weights = naive_num_weights(layer);
        const bool is_norm = naive_is_norm(layer);
        const double fan_in = (double)num_weights / (double)layer->out.channels;
        const double scale = is_norm ? 0.5 : sqrt(6 / (fan_in + 1));
        float *at = params + layer->offset;
        fill_floats(seed + l, scale, at, num_weights);
        fill_floats(seed + 100 + l, 0.3, at + num_weights, num_params - num_weights);
        for (size_t p = 0; p < num_weights && is_norm; p++) at[p] += 1;
    }
}

static inline problem new_problem(const fed_model *model, size_t num_examples, uint64_t seed) {
    problem p = {.model = model, .num_examples = num_examples};
    p.pixels = test_alloc(num_examples * model->num_inputs * sizeof(*p.pixels));
    p.params = test_alloc(model->num_params * sizeof(*p.params));
    p.labels = test_alloc(num_examples * sizeof(*p.labels));
    p.wide = naive_doubles(model->num_params);
    fill_floats(seed, 1, p.pixels, num_examples * model->num_inputs);
    fill_labels(seed + 1, model->num_classes, p.labels, num_examples);
    fill_params(seed + 2, model, p.params);
    for (size_t i = 0; i < model->num_params; i++) p.wide[i] = (double)p.params[i];
    return p;
}

/* Sets all pixels to the same value except those of a box, which is not the same for all examples.
 */
static inline void draw_background(const stack *s, problem *p) {
    float *pixel = p->pixels;
    for (size_t e = 0; e < p->num_examples; e++)
        for (size_t y = 0; y < s->in.height; y++)
            for (size_t x = 0; x < s->in.width; x++) {
                const bool is_inside = y >= s->in.height / 2 + e % 3 && y < s->in.height - 6 &&
                                       x >= s->in.width / 3 && x < s->in.width / 2 + e % 2;
                for (size_t c = 0; c < s->in.channels; c++, pixel++)
                    if (!is_inside) *pixel = 0.5f + 0.25f * (float)c;
            }
}

static inline void free_problem(problem *p) {
    free(p->pixels);
    free(p->params);
    free(p->labels);
    free(p->wide);
}

static const fed_step_row GRADIENT_ROW = {FED_STEP_GRADIENT, {0}};
static const fed_step_row PLAIN_ROW = {FED_STEP_SGD, {0.5}};
static const fed_step_row MOMENTUM_ROW = {FED_STEP_SGD, {0.5, 0.9}};
static const fed_step GRADIENT = {&GRADIENT_ROW, 1};
static const fed_step PLAIN = {&PLAIN_ROW, 1}, MOMENTUM = {&MOMENTUM_ROW, 1};
static const double RATE = 0.5;

static inline fed_client client_of(const problem *p, size_t batch_size) {
    return (fed_client){
        .pixels = p->pixels,
        .pixel_type = FED_PIXELS_FLOAT32,
        .scale = 1,
        .labels = p->labels,
        .num_examples = p->num_examples,
        .plan = {.epochs = 1, .batch_size = batch_size, .max_examples = SIZE_MAX},
        .dropout_key = DROPOUT_KEY,
    };
}

#endif
