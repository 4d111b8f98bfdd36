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

static inline size_t fed_padded(size_t num_floats) {
    return (num_floats + FED_PAD - 1) / FED_PAD * FED_PAD;
}

/* Channels in a panel of a convolution's weights; the last may have FED_PAD. */
enum { FED_PANEL = 32 };

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

/* What a pool looks at: pixels of an image, clipped at its borders. Strides are in floats. */
typedef struct fed_window {
    size_t num_rows, num_columns; /* each >= 1 */
    size_t row_stride, pixel_stride;
} fed_window;

/* A dense layer's backward pass over some of its inputs; sizes are multiples of FED_PAD.
 *   inputs_gradient[b][i] = sum_o weights[i][o] * gradient[b][o]
 *   target[i][o] += sum_b rows[b][i] * gradient[b][o]     ("=" with is_fresh)
 * target may be the weights: each is read before it is changed. Pointers are those of the first of
 * these inputs, but for rows. */
typedef struct fed_tiles_backward {
    const float *weights; /* [I, O] */
    float *target;        /* in-out [I, O] */
    int is_fresh;         /* what target held before does not count */
    size_t num_inputs, num_outputs, num_rows;
    const float *const *rows; /* [num_rows][first_input + I] */
    size_t first_input;
    const float *gradient; /* [num_rows][O], gradient_stride apart */
    size_t gradient_stride;
    float *inputs_gradient; /* out [num_rows][I], inputs_stride apart; NULL: not wanted */
    size_t inputs_stride;
} fed_tiles_backward;

/* How a convolution's window moves over its input, in floats. `run` and so `step` are multiples of
 * FED_PAD but in the first stage. */
typedef struct fed_sweep {
    size_t height;     /* rows of a window */
    size_t run;        /* contiguous in each: width * channels */
    size_t row_stride; /* from one row of a window to the next */
    size_t step;       /* from one window to the next in a row */
} fed_sweep;

/* Where windows begin, as offsets into their input: the first, and from one to the next. */
typedef struct fed_offsets {
    int32_t first, step_x, step_y;
} fed_offsets;

/* A gradient that is not 0, and where the window it is of begins. */
typedef struct fed_entry {
    int32_t offset;
    float gradient;
} fed_entry;

/* One list for each channel. */
typedef struct fed_lists {
    size_t capacity;    /* of each: one more than it may hold */
    fed_entry *entries; /* [channels, capacity] */
    uint32_t *counts;   /* [channels] */
    float *sums;        /* [channels]: of the gradients */
} fed_lists;

/* A convolution's outputs and their gradient, as conv_taps_gradient needs them. */
typedef struct fed_taps {
    fed_sweep sweep;
    fed_offsets at;
    const float *in;        /* the first window */
    const float *gradient;  /* of cell (0, 0) */
    size_t gradient_stride; /* from one row of cells to the next */
    const int32_t *offsets; /* [num_rows, num_cells, num_channels] as by conv_pool; NULL: no pool */
    size_t num_rows, num_cells, num_channels;
} fed_taps;

/* A row of Winograd's tiles: 6x6 inputs each, and as many transformed values ("points"). */
typedef struct fed_tile_row {
    size_t side;         /* outputs of a tile each way: 4 for a window of 3x3, 2 for one of 5x5 */
    size_t num_tiles;    /* next to one another */
    size_t point_stride; /* floats from one of the 36 points to the next */
} fed_tile_row;

/* Where a row of tiles puts its outputs, or the pooled ones. */
typedef struct fed_cells {
    int is_pooled;
    float *out;
    size_t step, row_stride; /* floats from one to the next, in a row and in a column */
    const fed_offsets *at;   /* of the first tile's first window */
    int32_t *offsets;        /* as by conv_pool, `step` apart; or NULL */
    size_t offsets_stride;   /* from one row of cells to the next */
} fed_cells;

/* The kernels of one instruction set. */
typedef struct fed_kernels {
    const char *name;
#define KERNEL(result, name, ...) result (*name)(__VA_ARGS__);
#include "list.h"
#undef KERNEL
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
