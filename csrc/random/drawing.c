/* SPDX-License-Identifier: Apache-2.0
 *
 * The tools with which the pictures of the synthetic data sets are drawn. */
#include "drawing.h"

enum { LANES = FED_CANVAS_LANES };

size_t fed_pick(fed_rng *rng, const double *weights, size_t num_weights) {
    double total = 0.0;
    for (size_t i = 0; i < num_weights; i++) {
        total += weights[i];
    }
    double left = fed_rng_uniform(rng) * total;
    size_t choice = 0;
    while (choice + 1 < num_weights && left >= weights[choice]) {
        left -= weights[choice++];
    }
    return choice;
}

float fed_pixel_noise(fed_rng *rng) {
    const uint64_t even_bytes = UINT64_C(0x00FF00FF00FF00FF), ones = UINT64_C(0x0001000100010001);
    const uint64_t bytes = fed_rng_u64(rng);
    const uint64_t pair_sums = (bytes & even_bytes) + ((bytes >> 8) & even_bytes);
    const int sum = (int)((pair_sums * ones) >> 48);
    return (float)(sum - 1020) * (1.0f / 209.02153f);
}

void fed_clear_canvas(fed_canvas *canvas, size_t side, float reach) {
    canvas->side = side;
    canvas->reach = reach;
    for (size_t row = 0; row < side; row++) {
        for (size_t column = 0; column < side + LANES; column++) {
            canvas->squared_distance[row][column] = 1e30f;
        }
    }
}

/* A range first..end-1 of pixels: those within reach of a..b along one axis, perhaps one more. */
typedef struct range {
    size_t first, end;
} range;

static range pixel_range(const fed_canvas *canvas, float a, float b) {
    const float low = (a < b ? a : b) - canvas->reach;
    const float high = (a < b ? b : a) + canvas->reach;
    const size_t most = canvas->side - 1;
    if (!(high >= 0.0f && low <= (float)most)) {
        return (range){0, 0};
    }
    const size_t first = low > 0.0f ? (size_t)low : 0;
    const size_t last = high < (float)most ? (size_t)high : most;
    return (range){first, last + 1};
}

void fed_stamp_segment(fed_canvas *canvas, fed_point from, fed_point to) {
    const float from_x = (float)from.x, from_y = (float)from.y;
    const float to_x = (float)to.x, to_y = (float)to.y;
    const range rows = pixel_range(canvas, from_y, to_y);
    const range columns = pixel_range(canvas, from_x, to_x);
    const float along_x = to_x - from_x, along_y = to_y - from_y;
    const float squared_length = along_x * along_x + along_y * along_y;
    const float scale = squared_length > 1e-12f ? 1.0f / squared_length : 0.0f;
    for (size_t row = rows.first; row < rows.end; row++) {
        const float y = (float)row - from_y;
        for (size_t column = columns.first; column < columns.end; column += LANES) {
            float *nearest = &canvas->squared_distance[row][column];
            const float first_x = (float)column - from_x;
/* If GCC unrolls this loop first, it does not vectorise it. */
#pragma GCC unroll 1
            for (int lane = 0; lane < LANES; lane++) {
                const float x = first_x + (float)lane;
                float share = (x * along_x + y * along_y) * scale; /* of the way to `to` */
                share = share > 0.0f ? share : 0.0f;
                share = share < 1.0f ? share : 1.0f;
                const float off_x = x - share * along_x, off_y = y - share * along_y;
                const float squared = off_x * off_x + off_y * off_y;
                nearest[lane] = squared < nearest[lane] ? squared : nearest[lane];
            }
        }
    }
}
