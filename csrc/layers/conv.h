/* SPDX-License-Identifier: Apache-2.0
 * What the two ways to lay out a convolution share: computing one from a bordered image. */
#ifndef FED_LAYERS_CONV_H
#define FED_LAYERS_CONV_H

#include "layer.h"

#include <math.h>

/* A convolution's sizes. */
typedef struct fed_conv {
    size_t in_channels, out_channels; /* floats of a pixel; the latter padded */
    size_t num_taps;                  /* floats of a window */
    fed_buffer in;                    /* the input with the border its windows reach */
    fed_sweep sweep;                  /* over that */
    size_t step_y;                    /* floats from a row of windows to the next */
    size_t num_rows, num_cells;       /* of what is put out: pooled if it pools */
    int is_pooled;                    /* 2x2 */
    float least;                      /* the least value put out: relu, or no bound */
} fed_conv;

/* What it is computed from and to. */
typedef struct fed_conv_io {
    const float *in;     /* buffer conv->in */
    const float *kernel; /* [fed_conv_kernel_floats] */
    const float *bias;   /* [out_channels]; NULL: zeros */
    const fed_buffer *buffer;
    float *out;       /* that buffer */
    int32_t *offsets; /* out [num_rows, num_cells, out_channels], where each pooled value comes
                         from; or NULL */
    float *scratch;   /* [fed_conv_scratch_floats], or what the way taken needs */
} fed_conv_io;

/* pixel_size: floats of an input pixel. */
void fed_conv_init(fed_conv *conv, const fed_stage *stage, size_t pixel_size);
/* 1 if Winograd's tiles can do it and are the faster way. */
int fed_conv_is_winograd(const fed_conv *conv);
/* Floats of the kernel as fed_conv_run takes it: panels (kernels.h), or transformed. */
size_t fed_conv_kernel_floats(const fed_conv *conv);
size_t fed_conv_scratch_floats(const fed_conv *conv);
void fed_conv_run(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io);

/* By rows of pixels, from panels (conv_rows.c). */
size_t fed_conv_rows_floats(const fed_conv *conv);
void fed_conv_run_rows(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io);
/* By Winograd's tiles, where fed_conv_is_winograd (conv_tiles.c). */
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

/* Applies to the outputs what the kernels have not: any activation but relu. */
void fed_conv_activate(const fed_pass *pass);
/* The gradient by what relu was applied to is left to the caller; other activations are undone.
 * Returns the outputs that relu is to be undone with, or NULL. */
const float *fed_conv_undo_activation(const fed_pass *pass);

#endif
