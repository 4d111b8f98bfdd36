/* SPDX-License-Identifier: Apache-2.0
 * Shared by the first and the hidden convolutions: the convolution of an image with a border. */
#ifndef FED_LAYERS_CONV_H
#define FED_LAYERS_CONV_H

#include "background.h"
#include "layer.h"

#include <math.h>

/* The sizes of a convolution. */
typedef struct fed_conv {
    const fed_layer *layer;
    size_t in_channels, out_channels; /* floats of a pixel; out_channels is padded */
    size_t num_taps;                  /* floats of a window */
    fed_buffer in;                    /* the input, with a border where windows need one */
    size_t start;                     /* offset of the first window in `in` */
    fed_sweep sweep;                  /* over `in` */
    size_t step_y;                    /* floats from one row of windows to the next */
    size_t num_rows, num_cells;       /* rows of outputs and outputs in a row, after the pool */
    int is_pooled;                    /* by a 2x2 max-pool */
    float least;                      /* lower bound of the outputs: 0 for relu, else none */
} fed_conv;

/* The inputs and outputs of a convolution. */
typedef struct fed_conv_io {
    const float *in;     /* the first window in buffer conv->in */
    const float *kernel; /* [fed_conv_kernel_floats] */
    const float *bias;   /* [out_channels]; NULL: zeros */
    const fed_buffer *buffer;
    float *out;       /* with layout `buffer` */
    int32_t *offsets; /* out [num_rows, num_cells, out_channels]: the source of each pooled value;
                         or NULL */
    float *scratch;   /* [fed_conv_scratch_floats], or what the called method needs */
    const fed_marks *marks; /* the background of the input; NULL: not known */
} fed_conv_io;

void fed_conv_init(fed_conv *conv, const fed_stage *stage, const fed_buffer *in);
/* Marks the squares of side x side outputs, before the pool, whose windows see only background. */
void fed_conv_mark_squares(const fed_conv *conv, const fed_marks *background, size_t side,
                           fed_marks *marks /* out */);
/* Marks the outputs, after the pool, whose windows see only background. */
void fed_conv_mark_outputs(const fed_conv *conv, const fed_marks *background,
                           fed_marks *marks /* out */);
/* Widens a border so that the layer's windows lie within it. */
void fed_conv_widen_border(const fed_layer *layer, fed_border *border /* in-out */);
/* 1 if Winograd's tiles can compute the convolution and are faster. */
int fed_conv_is_winograd(const fed_conv *conv);
/* Floats of the kernel in the form that fed_conv_run needs: in panels (list.h), or transformed. */
size_t fed_conv_kernel_floats(const fed_conv *conv);
size_t fed_conv_scratch_floats(const fed_conv *conv);
void fed_conv_run(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io);

/* By rows of pixels, from panels (conv_rows.c). */
size_t fed_conv_rows_floats(const fed_conv *conv);
void fed_conv_run_rows(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io);
/* By Winograd's tiles, if fed_conv_is_winograd returns 1 (conv_tiles.c). */
size_t fed_conv_tiles_floats(const fed_conv *conv);
size_t fed_conv_tiles_kernel_floats(const fed_conv *conv);
void fed_conv_tiles_kernel(const fed_kernels *kernels, const fed_conv *conv, const float *panels,
                           float *kernel /* out */);
void fed_conv_run_tiles(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io);

static const float fed_conv_no_bias[FED_PANEL] = {0};

/* The bias of a panel. */
static inline const float *fed_conv_bias(const fed_conv_io *io, size_t channel) {
    return io->bias != NULL ? io->bias + channel : fed_conv_no_bias;
}

/* Applies the activation to the outputs, except relu, which the kernels have applied. */
void fed_conv_activate(const fed_pass *pass);
/* Backward through the activation, except relu, which is left to the caller. Returns the outputs
 * for relu, or NULL for other activations. */
const float *fed_conv_undo_activation(const fed_pass *pass);

#endif
