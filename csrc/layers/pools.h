/* SPDX-License-Identifier: Apache-2.0
 * The windows of both pools, clipped at the image's borders. */
#ifndef FED_POOLS_H
#define FED_POOLS_H

#include "layer.h"

/* The pixels of an axis that the window of output o covers: `length` from `first` on. */
typedef struct fed_span {
    size_t first, length;
} fed_span;

static inline fed_span fed_clipped_span(size_t o, size_t stride, size_t pad, size_t window,
                                        size_t size) {
    const size_t start = o * stride, end = start + window; /* counted from the start of the
                                                              padding */
    const size_t first = start > pad ? start - pad : 0;
    return (fed_span){first, (end - pad < size ? end - pad : size) - first};
}

/* Finds the window of output pixel (y, x); returns its offset in buffer stage->in. */
static inline size_t fed_pool_window(const fed_stage *stage, size_t y, size_t x,
                                     fed_window *window) {
    const fed_layer *layer = stage->layer;
    const fed_span rows = fed_clipped_span(y, layer->stride_y, layer->pad_top, layer->window_height,
                                           layer->in.height);
    const fed_span columns =
        fed_clipped_span(x, layer->stride_x, layer->pad_left, layer->window_width, layer->in.width);
    *window = (fed_window){.num_rows = rows.length,
                           .num_columns = columns.length,
                           .row_stride = stage->in.row_stride,
                           .pixel_stride = stage->in.pixel_stride};
    return fed_pixel(&stage->in, rows.first, columns.first);
}

#endif
