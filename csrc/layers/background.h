/* SPDX-License-Identifier: Apache-2.0
 * The background of an image: the pixels that equal its first pixel, such as the paper around a
 * digit. Where a window of the first convolution has only background, its outputs are the same
 * everywhere. The next convolution computes with such outputs once: see conv_pooled.c. */
#ifndef FED_LAYERS_BACKGROUND_H
#define FED_LAYERS_BACKGROUND_H

#include "buffer.h"

/* An image with background has at most this many rows, and as many pixels in a row, together with
 * the border that windows need on the left. */
enum { FED_MOST_MARKS = 64 };

/* Marked pixels, or windows: bit x of row y. */
typedef struct fed_marks {
    uint64_t rows[FED_MOST_MARKS];
} fed_marks;

/* The windows of a convolution, or squares of such windows. They may reach beyond the image. */
typedef struct fed_windows {
    size_t height, width, step_y, step_x, pad_top, pad_left;
    size_t num_rows, num_columns; /* of windows */
} fed_windows;

/* Marks the background of an image. */
void fed_mark_background(const fed_buffer *buffer, const fed_shape *shape, const float *image,
                         fed_marks *marks /* out */);
/* Marks the windows whose pixels all lie in the image and are all marked. */
void fed_mark_windows(const fed_marks *pixels, const fed_shape *shape, const fed_windows *windows,
                      fed_marks *marks /* out */);
/* Removes the first mark; returns 1 and its place if there is one. */
int fed_take_first_mark(fed_marks *marks /* in-out */, size_t num_rows, size_t *y, size_t *x);

/* The next pixels of a row, from pixel *first on, that are not marked: sets *first to the first of
 * them and returns their number, 0 if there are none. */
static inline size_t fed_next_run(uint64_t marks, size_t num_pixels, size_t *first /* in-out */) {
    while (*first < num_pixels && (marks >> *first & 1)) ++*first;
    size_t end = *first;
    while (end < num_pixels && !(marks >> end & 1)) end++;
    return end - *first;
}

#endif
