/* SPDX-License-Identifier: Apache-2.0
 * The kernels: one table of function pointers per instruction set. All come from impl.inc, which
 * generic.c, avx2.c and avx512.c compile with different vector widths. Memory layouts do not depend
 * on the width; only rounding differs.
 *
 * Rows and lanes. The inputs of a batch are rows, passed as pointers so that no image is copied.
 * Outputs of the first and the last dense layer are in lanes: blocks of FED_LANES examples,
 * [O, FED_LANES] each, with example b of a block in lane b. Softmax then needs no operation across
 * lanes, and the constant stride simplifies the addresses in inner loops. Rows are padded with
 * zeros to a multiple of FED_PAD floats.
 */
#ifndef FED_KERNELS_H
#define FED_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { FED_LANES = 32, FED_PAD = 16 };

static inline size_t fed_padded(size_t num_floats) {
    return (num_floats + FED_PAD - 1) / FED_PAD * FED_PAD;
}

/* Channels in a panel of a convolution's weights; the last panel may have FED_PAD. */
enum { FED_PANEL = 32 };

/* The training loss of an example: cross-entropy with smoothed labels, times the weight of its
 * label.
 */
typedef struct fed_loss {
    const float *class_weights; /* [K], finite, >= 0; NULL: all are 1 */
    float smoothing;            /* share of each label that is spread over all classes, in [0, 1) */
} fed_loss;

/* The labels of some examples. The loss of a mixed example is share * loss by its label + (1 -
 * share) * loss by its other label. */
typedef struct fed_targets {
    const int32_t *labels;       /* 0..K-1 */
    const int32_t *other_labels; /* 0..K-1; NULL: examples are not mixed */
    float share;                 /* in [0, 1] */
} fed_targets;

/* Number of blocks of the random generator that are computed together. */
enum { FED_PHILOX_BLOCKS = 16 };

/* The sums from which metrics are computed. */
typedef struct fed_score {
    double loss_sum;
    int64_t num_correct;
} fed_score;

/* The settings of one step of Adam, AdamW or Yogi. */
typedef struct fed_moments {
    float share_1, share_2; /* 1 - beta_1, 1 - beta_2 */
    float epsilon;
    float rate; /* learning rate times bias correction; for AdamW the correction alone */
    float learning_rate, weight_decay; /* AdamW only */
} fed_moments;

/* The window of a pool, clipped at the image's borders. Strides are in floats. */
typedef struct fed_window {
    size_t num_rows, num_columns; /* each >= 1 */
    size_t row_stride, pixel_stride;
} fed_window;

/* A dense layer's backward pass over some of its inputs; sizes are multiples of FED_PAD.
 *   inputs_gradient[b][i] = sum_o weights[i][o] * gradient[b][o]
 *   target[i][o] += sum_b rows[b][i] * gradient[b][o]     ("=" with is_fresh)
 * target may be the weights, because each weight is read before it is changed. weights, target and
 * inputs_gradient point to the first of these inputs; each row begins at the layer's first
 * input. */
typedef struct fed_tiles_backward {
    const float *weights; /* [I, O] */
    float *target;        /* in-out [I, O] */
    int is_fresh;         /* 1: target is overwritten, not added to */
    size_t num_inputs, num_outputs, num_rows;
    const float *const *rows; /* [num_rows][first_input + I] */
    size_t first_input;
    const float *gradient; /* [num_rows][O], gradient_stride apart */
    size_t gradient_stride;
    float *inputs_gradient; /* out [num_rows][I], inputs_stride apart; NULL: not needed */
    size_t inputs_stride;
    int ignores_zeros; /* 1: the gradient by an input of 0 is not needed, and may be 0. Products
                          for such an input are left out, also with infinity and NaN */
} fed_tiles_backward;

/* How a convolution's window moves over its input. Sizes other than `height` are in floats. `run`
 * and `step` are multiples of FED_PAD, except in the first stage. */
typedef struct fed_sweep {
    size_t height;     /* rows of a window */
    size_t run;        /* contiguous floats in each row: width * channels */
    size_t row_stride; /* from one row of a window to the next */
    size_t step;       /* from one window to the next in a row */
} fed_sweep;

/* Offsets of windows in their input: of the first window, and from a window to the next. */
typedef struct fed_offsets {
    int32_t first, step_x, step_y;
} fed_offsets;

/* A gradient that is not 0, and the offset of its window. */
typedef struct fed_entry {
    int32_t offset;
    float gradient;
} fed_entry;

/* One list for each channel. */
typedef struct fed_lists {
    size_t capacity;    /* of each list: one more than its largest number of entries */
    fed_entry *entries; /* [channels, capacity] */
    uint32_t *counts;   /* [channels] */
    float *sums;        /* [channels]: sums of the gradients */
} fed_lists;

/* A window of a convolution, and the output channels whose gradients by the window's outputs are
 * not 0, of a group of FED_WINDOW_CHANNELS channels. */
enum { FED_WINDOW_CHANNELS = 64 };
typedef struct fed_window_terms {
    uint64_t channels; /* a bit for each channel */
    int32_t offset;    /* of the window in the input */
    uint32_t gradient; /* the index of the first channel's gradient */
} fed_window_terms;

/* A convolution's outputs and their gradient, as conv_taps_gradient needs them. */
typedef struct fed_taps {
    fed_sweep sweep;
    fed_offsets at;
    const float *in;        /* the first window */
    const float *gradient;  /* of cell (0, 0) */
    size_t gradient_stride; /* from one row of cells to the next */
    const int32_t *offsets; /* [num_rows, num_cells, num_channels] from conv_pool; NULL: no pool */
    size_t num_rows, num_cells, num_channels;
} fed_taps;

/* A row of Winograd's tiles, each with 6x6 inputs and 36 transformed values ("points"); with stride
 * 2, 9x9 inputs and 81 points. */
typedef struct fed_tile_row {
    size_t side;         /* outputs of a tile in each direction: 4 for 3x3 windows, 2 for 5x5 */
    size_t num_tiles;    /* adjacent */
    size_t point_stride; /* floats from one of the points to the next */
    ptrdiff_t next; /* floats from the pixels of this row to those of the row that is used next, and
                       is fetched meanwhile; 0 if there is none */
} fed_tile_row;

/* The memory for the outputs, or pooled outputs, of a row of tiles. */
typedef struct fed_cells {
    int is_pooled;
    float *out;
    size_t step, row_stride; /* floats from one output to the next, in a row and in a column */
    const fed_offsets *at;   /* from the first tile's first window */
    int32_t *offsets;        /* as conv_pool writes them, `step` apart; or NULL */
    size_t offsets_stride;   /* from one row of cells to the next */
} fed_cells;

/* Products of rows with panels of weights. Inputs and outputs are in panels of FED_PAD values.
 * Members that end in `panel` are the floats from a panel to the next. Those that end in `point`
 * are the floats to the operands of the next products, which are prefetched. */
typedef struct fed_products {
    size_t num_rows;                /* even */
    size_t num_inputs, num_outputs; /* panels */
    int is_added;                   /* 1: results are added to out */
    const float *rows;              /* [inputs][num_rows, FED_PAD] */
    size_t rows_panel, rows_point;
    const float *weights; /* [outputs][inputs][FED_PAD, FED_PAD] */
    size_t weights_panel, weights_point;
    float *out; /* out [outputs][num_rows, FED_PAD] */
    size_t out_panel;
} fed_products;

/* The operands of the gradient by the weights. Members mean the same as in fed_products; out is
 * fetched, too. */
typedef struct fed_products_gradient {
    size_t num_rows;
    size_t num_inputs, num_outputs; /* panels */
    int is_added;                   /* 1: results are added to out */
    const float *rows;              /* [inputs][num_rows, FED_PAD] */
    size_t rows_panel, rows_point;
    const float *gradient; /* [outputs][num_rows, FED_PAD] */
    size_t gradient_panel, gradient_point;
    float *out; /* out [outputs][inputs][FED_PAD, FED_PAD] */
    size_t out_panel;
} fed_products_gradient;

/* The outputs of an activation that only limits them, such as relu. */
typedef struct fed_range {
    float least, most;
} fed_range;

/* Rows of pixels of an image that is normalised. */
typedef struct fed_norm_rows {
    size_t num_rows, num_pixels; /* pixels of a row follow each other */
    size_t num_channels;         /* a multiple of FED_PAD */
    size_t stride, out_stride;   /* floats from one row to the next: of values; of gradients */
} fed_norm_rows;

/* What a normalisation does to each channel:
 *   (value - mean) * scale + bias, clipped to the range
 * The range of a normalisation without clipping is everything, from -HUGE_VALF on; one with
 * clipping has a finite least value. */
typedef struct fed_norm_map {
    const float *means, *scales, *biases; /* [num_channels] */
    fed_range range;
} fed_norm_map;

/* The gradient by the inputs of a normalisation, over pixels that follow each other:
 *   in_gradient = g * scales + (values - means) * by_value + fixed
 * where g is the gradient by the outputs or, where the map clips them, 0. The outputs are computed
 * again, which takes less time than reading them. */
typedef struct fed_norm_gradient {
    const float *gradient, *values; /* [num_pixels, num_channels] */
    const fed_norm_map *map;
    const float *by_value, *fixed;   /* [num_channels] */
    size_t num_pixels, num_channels; /* num_channels a multiple of FED_PAD */
    float *in_gradient;              /* out [num_pixels, num_channels] */
} fed_norm_gradient;

/* The normalisation of each pixel over its channels. Rows of channels are 0 in padding channels. */
typedef struct fed_pixel_norm {
    size_t num_pixels, num_channels;     /* num_channels a multiple of FED_PAD */
    const float *values;                 /* [num_pixels, num_channels] */
    const float *is_real, *gamma, *beta; /* [num_channels]; is_real: 1, or 0 for padding */
    float share;                         /* 1 / the number of channels without padding */
    float epsilon;
    float *means, *inverses; /* [num_pixels]: forward writes them; NULL: nobody needs them */
} fed_pixel_norm;

typedef struct fed_pixel_norm_gradient {
    const float *by_outputs;   /* [num_pixels, num_channels] */
    float *by_values;          /* out, the same; NULL: not needed */
    float *by_gamma, *by_beta; /* in-out [num_channels]: added to */
} fed_pixel_norm_gradient;

/* The pixels of a depthwise convolution of an image. Sizes are in floats. */
typedef struct fed_depthwise {
    size_t window_rows, window_columns;
    size_t tap_row, tap_column; /* from a window's pixel to the one below; to the next in its row */
    size_t num_channels;        /* a multiple of FED_PAD */
    const float *weights;       /* [window_rows, window_columns, num_channels] */
    const float *bias;          /* [num_channels] or NULL: zeros */
    float least;                /* lower bound of the outputs */
    size_t num_rows, num_pixels; /* of the outputs: rows, and pixels in a row */
    size_t in_row, in_step;      /* from one window to the one below; to the next in its row: a
                                    multiple of tap_column */
    size_t out_row, out_step;    /* the same for outputs */
} fed_depthwise;

/* Contiguous values of a window: their offset from its beginning and their number, in floats. */
typedef struct fed_run {
    size_t offset, length;
} fed_run;

/* The outputs of a convolution at some pixels, which may be of several images. Offsets and sizes
 * are in floats.
 *   out[to[p]][c] = max(least, bias[c] + sum_t weights[t][c] * in[from[p]][t])
 * with taps t in the order of the runs; NaN stays NaN. */
typedef struct fed_gemm {
    const float *in;
    const size_t *from, *to; /* [num_pixels]: each pixel's window in `in` and its place in out */
    size_t num_pixels;
    const fed_run *runs; /* of every window; none: sums are 0 */
    size_t num_runs;
    const float *weights; /* panels of [taps][FED_PAD], panel_size apart */
    size_t panel_size;
    size_t num_channels; /* of out; channels that pad a panel become 0; their weights must be 0 */
    const float *bias;   /* [num_channels], padded with zeros to whole panels; or NULL: zeros */
    float least;
    float *out;
} fed_gemm;

/* Values from `first` up to `end`, which are read later. A kernel that is given such lines
 * prefetches some of them and moves `first` behind these. */
typedef struct fed_lines {
    const float *first, *end;
} fed_lines;

/* The gradient by the weights of a run, from some pixels:
 *   target[t][c] += sum_p in[from[p]][run.offset + t] * gradient[p][c] */
typedef struct fed_gemm_gradient {
    const float *in;
    const size_t *from;
    size_t num_pixels;
    fed_run run;
    const float *gradient; /* panels of [num_pixels][FED_PAD], gradient_panel apart */
    size_t gradient_panel;
    size_t num_channels; /* gradients of channels that pad a panel must be 0 */
    float *target;       /* in-out: panels of [run.length][FED_PAD], panel_size apart */
    size_t panel_size;
} fed_gemm_gradient;

/* A block that is sorted: FED_LANES columns of some rows. */
typedef struct fed_sort_block {
    const float *const *rows;    /* [num_rows][first + num_values] */
    size_t num_rows, num_padded; /* num_padded: num_rows rounded up to a multiple of 4 */
    size_t first, num_values;    /* the columns, 1..FED_LANES */
    /* Integers in the order of the values, with -0 before 0. Rows up to num_padded that do not
     * exist hold the largest integer, columns that do not exist hold zeros. */
    int32_t *ordered; /* out [num_padded, FED_LANES] */
    int32_t *none;    /* out [FED_LANES]: stands for each row from num_padded on */
} fed_sort_block;

/* A step in sorting a block. Rows are sorted sixteen at a time and then merged. */
enum fed_sort_kind {
    FED_SORT,       /* sorts the tile of given rows that begins with `first` */
    FED_CROSS,      /* the first layers of a merge of two sorted halves: see group */
    FED_HALVE,      /* the next layer, in a half of such a merge: compares two units row by row */
    FED_CROSS_TILE, /* as FED_CROSS, but only for the rows of `tile`, which lies in the first half;
                       unit is FED_TILE_ROWS */
    FED_CLEAN,      /* the last layers of a merge, of the tile of rows that begins with `first` */
};
enum { FED_TILE_ROWS = 16 };
typedef struct fed_sort_step {
    uint32_t kind; /* enum fed_sort_kind */
    uint32_t first;
    uint32_t group, unit; /* a merge of `group` units of `unit` rows; group is 2, 4, 8 or 16 */
    uint32_t tile;
    uint32_t num_lines; /* cache lines to prefetch meanwhile */
} fed_sort_step;

/* Values that are read next, and must be prefetched: first..end-1 of each row. The next value to
 * prefetch is `at` of row `row`. */
typedef struct fed_ahead {
    const float *const *rows;
    size_t num_rows, first, end;
    size_t row, at;
} fed_ahead;

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

/* The table that fed_select_isa chose. */
const fed_kernels *fed_active_kernels(void);

#endif
