/* SPDX-License-Identifier: Apache-2.0
 * Marks the background of an image, and windows that have only background. */
#include "background.h"

static uint64_t equal_pixels(const float *row, const float *first, size_t num_pixels,
                             size_t num_channels) {
    uint64_t marks = 0;
    for (size_t x = 0; x < num_pixels; x++, row += num_channels) {
        int is_equal = 1;
        for (size_t c = 0; c < num_channels; c++) is_equal &= row[c] == first[c];
        marks |= (uint64_t)is_equal << x;
    }
    return marks;
}

void fed_mark_background(const fed_buffer *buffer, const fed_shape *shape, const float *image,
                         fed_marks *marks) {
    const float *first = image + fed_pixel(buffer, 0, 0);
    for (size_t y = 0; y < shape->height; y++)
        marks->rows[y] = equal_pixels(image + fed_pixel(buffer, y, 0), first, shape->width,
                                      buffer->pixel_stride);
}

/* The pixels x for which pixels x, x + 1, ..., x + width - 1 of all rows of a window are marked; in
 * coordinates that begin at the border. */
static uint64_t marked_runs(const fed_marks *pixels, const fed_shape *shape,
                            const fed_windows *windows, size_t y) {
    uint64_t runs = UINT64_MAX;
    for (size_t r = 0; r < windows->height; r++) {
        const size_t row = y * windows->step_y + r - windows->pad_top; /* huge above the image */
        runs &= row < shape->height ? pixels->rows[row] << windows->pad_left : 0;
    }
    for (size_t w = 1; w < windows->width; w++) runs &= runs >> 1;
    return runs;
}

void fed_mark_windows(const fed_marks *pixels, const fed_shape *shape, const fed_windows *windows,
                      fed_marks *marks) {
    for (size_t y = 0; y < windows->num_rows; y++) {
        const uint64_t runs = marked_runs(pixels, shape, windows, y);
        marks->rows[y] = 0;
        for (size_t x = 0; x < windows->num_columns; x++)
            marks->rows[y] |= (runs >> x * windows->step_x & 1) << x;
    }
}

int fed_take_first_mark(fed_marks *marks, size_t num_rows, size_t *y, size_t *x) {
    for (*y = 0; *y < num_rows; ++*y) {
        uint64_t *row = &marks->rows[*y];
        if (*row == 0) continue;
        *x = (size_t)__builtin_ctzll(*row);
        *row &= *row - 1;
        return 1;
    }
    return 0;
}
