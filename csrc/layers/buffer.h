/* SPDX-License-Identifier: Apache-2.0
 * The layout of one example's values between two stages. */
#ifndef FED_BUFFER_H
#define FED_BUFFER_H

#include "fed.h"
#include "kernels/kernels.h"

#include <string.h>

/* The layout of one example's values between two stages: pixels, whose channels are padded with
 * zeros to a multiple of FED_PAD floats, inside a border of zeros. Sizes are in floats. A vector is
 * one pixel. */
typedef struct fed_buffer {
    size_t origin;       /* offset of value (0, 0, 0) */
    size_t pixel_stride; /* from one pixel to the next: the padded channels */
    size_t row_stride;   /* from one row of pixels to the next */
    size_t num_values;   /* total, a multiple of FED_PAD */
} fed_buffer;

/* Rows and columns of zeros around an image. */
typedef struct fed_border {
    size_t top, left, bottom, right;
} fed_border;

static inline fed_buffer fed_bordered_buffer(const fed_shape *shape, const fed_border *border,
                                             size_t pixel_stride) {
    const size_t row_stride = (border->left + shape->width + border->right) * pixel_stride;
    const size_t num_rows = border->top + shape->height + border->bottom;
    return (fed_buffer){.origin = border->top * row_stride + border->left * pixel_stride,
                        .pixel_stride = pixel_stride,
                        .row_stride = row_stride,
                        .num_values = fed_padded(num_rows * row_stride)};
}

/* A buffer without a border. */
static inline fed_buffer fed_plain_buffer(const fed_shape *shape) {
    return fed_bordered_buffer(shape, &(fed_border){0}, fed_padded(shape->channels));
}

/* A decoded image: no border and no padded channels; only the end is padded. */
static inline fed_buffer fed_image_buffer(const fed_shape *shape) {
    return (fed_buffer){.pixel_stride = shape->channels,
                        .row_stride = shape->width * shape->channels,
                        .num_values = fed_padded(fed_shape_size(shape))};
}

/* The offset of pixel (y, x). */
static inline size_t fed_pixel(const fed_buffer *buffer, size_t y, size_t x) {
    return buffer->origin + y * buffer->row_stride + x * buffer->pixel_stride;
}

/* 1 if the pixels of an image follow each other without a border. */
static inline int fed_is_plain(const fed_buffer *buffer, const fed_shape *shape) {
    return buffer->origin == 0 && buffer->row_stride == shape->width * buffer->pixel_stride;
}

/* Floats of a row of pixels, with padding channels; they are contiguous. */
static inline size_t fed_row_size(const fed_buffer *buffer, const fed_shape *shape) {
    return shape->width * buffer->pixel_stride;
}

/* Copies an image from one buffer to another; borders are not written. */
static inline void fed_copy_interior(const fed_shape *shape, const fed_buffer *from_buffer,
                                     const float *from, const fed_buffer *to_buffer, float *to) {
    for (size_t y = 0; y < shape->height; y++)
        memcpy(to + fed_pixel(to_buffer, y, 0), from + fed_pixel(from_buffer, y, 0),
               fed_row_size(to_buffer, shape) * sizeof *to);
}

#endif
