/* SPDX-License-Identifier: Apache-2.0
 * What layers share that need no border around their inputs: where values lie, and going over them
 * row by row. Inside an image a row of pixels is contiguous, padding channels included. */
#ifndef FED_PLAIN_H
#define FED_PLAIN_H

#include "core.h"

#include <string.h>

static inline size_t fed_pixel(const fed_buffer *buffer, size_t y, size_t x) {
    return buffer->origin + y * buffer->row_stride + x * buffer->pixel_stride;
}

/* Values of a row of pixels, in floats, padding channels included. */
static inline size_t fed_row_size(const fed_buffer *buffer, const fed_shape *shape) {
    return shape->width * buffer->pixel_stride;
}

static inline void fed_copy_interior(const fed_shape *shape, const fed_buffer *from_buffer,
                                     const float *from, const fed_buffer *to_buffer, float *to) {
    for (size_t y = 0; y < shape->height; y++)
        memcpy(to + fed_pixel(to_buffer, y, 0), from + fed_pixel(from_buffer, y, 0),
               fed_row_size(to_buffer, shape) * sizeof *to);
}

#endif
