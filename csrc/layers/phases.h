/* SPDX-License-Identifier: Apache-2.0
 * The phases of a strided window, for the gradient by its inputs. With stride s, input rows y with
 * the same (y + pad_top) mod s are reached by the same rows of the window, and likewise columns.
 * For the pixels of one phase the gradient is a convolution of the outputs' gradient, surrounded by
 * zeros, with stride 1 and the taps of that phase in reversed order. This avoids products with the
 * zeros that a stride would otherwise insert into the gradient. */
#ifndef FED_LAYERS_PHASES_H
#define FED_LAYERS_PHASES_H

#include "buffer.h"
#include "memory.h"

/* The input coordinates of a phase along one axis, and the taps that reach them. */
typedef struct fed_stride_phase {
    size_t first, num; /* coordinates first, first + stride, ... */
    size_t tap;        /* the first of the taps tap, tap + stride, ... */
    size_t num_taps;
    size_t window; /* where the first coordinate's window begins in the gradient with its border */
} fed_stride_phase;

/* The sizes along one axis. The outputs' gradient has `before` zeros before it; with the zeros on
 * both sides it has `total` values. */
typedef struct fed_axis {
    size_t size, out_size, window, stride, pad;
    size_t before, total;
} fed_axis;

static inline fed_stride_phase fed_phase_of(const fed_axis *a, size_t p) {
    const size_t first = (p + a->stride - a->pad % a->stride) % a->stride;
    const size_t num_taps = p < a->window ? fed_pieces(a->window - p, a->stride) : 0;
    return (fed_stride_phase){
        .first = first,
        .num = first < a->size ? fed_pieces(a->size - first, a->stride) : 0,
        .tap = p,
        .num_taps = num_taps,
        .window = num_taps > 0 ? a->before + (first + a->pad - p) / a->stride + 1 - num_taps : 0,
    };
}

static inline fed_axis fed_axis_of(size_t size, size_t out_size, size_t window, size_t stride,
                                   size_t pad) {
    fed_axis a = {size, out_size, window, stride, pad, .before = fed_pieces(window, stride) - 1};
    a.total = a.before + out_size;
    for (size_t p = 0; p < stride; p++) {
        const fed_stride_phase f = fed_phase_of(&a, p);
        if (f.num > 0 && f.num_taps > 0)
            a.total = fed_larger(a.total, f.window + f.num - 1 + f.num_taps);
    }
    return a;
}

/* The layout of the outputs' gradient with its border. */
static inline fed_buffer fed_phases_buffer(const fed_axis *y, const fed_axis *x, size_t channels) {
    const size_t row_stride = x->total * channels;
    return (fed_buffer){.origin = y->before * row_stride + x->before * channels,
                        .pixel_stride = channels,
                        .row_stride = row_stride,
                        .num_values = y->total * row_stride};
}

/* Copies an image from a buffer to another one, whose border becomes zeros. */
static inline void fed_copy_bordered(const fed_shape *shape, const fed_buffer *from_buffer,
                                     const float *from, const fed_buffer *to_buffer,
                                     float *to /* out */) {
    const size_t row = fed_row_size(to_buffer, shape), stride = to_buffer->row_stride;
    const size_t before = to_buffer->origin % stride, above = to_buffer->origin - before;
    const size_t end = before + row, below = above + shape->height * stride;
    memset(to, 0, above * sizeof *to);
    for (size_t y = 0; y < shape->height; y++) {
        float *line = to + above + y * stride;
        memset(line, 0, before * sizeof *to);
        memcpy(line + before, from + fed_pixel(from_buffer, y, 0), row * sizeof *to);
        memset(line + end, 0, (stride - end) * sizeof *to);
    }
    memset(to + below, 0, (to_buffer->num_values - below) * sizeof *to);
}

#endif
