/* SPDX-License-Identifier: Apache-2.0
 * Bounds the rows of a cohort. Nothing changes them afterwards. Rows that are not finite are
 * marked; the others are measured and brought within the bounds. The unit of work is one row, so
 * the number of threads changes no result. */
#include "denormals.h"
#include "fed.h"
#include "kernels/kernels.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum { PIECE = 4096 }; /* values per call of a kernel, which stay in the L1 cache */

static const float zeros[PIECE]; /* subtracted from rows, because the kernels measure differences */

typedef struct bounding {
    float *const *rows;
    size_t num_values;
    const fed_bounds *bounds;
    fed_measured *sizes;
} bounding;

static size_t piece_at(const bounding *all, size_t first) {
    return all->num_values - first < PIECE ? all->num_values - first : PIECE;
}

static int row_is_finite(const bounding *all, const float *row) {
    const fed_kernels *kernels = fed_active_kernels();
    for (size_t first = 0; first < all->num_values; first += PIECE)
        if (!kernels->delta_is_finite(row + first, zeros, piece_at(all, first))) return 0;
    return 1;
}

/* Returns the sum of squares, which is finite if all values are. */
static double measure(const bounding *all, const float *row, double *max_abs) {
    const fed_kernels *kernels = fed_active_kernels();
    double sum_of_squares = 0;
    *max_abs = 0;
    for (size_t first = 0; first < all->num_values; first += PIECE) {
        double largest;
        sum_of_squares += kernels->delta_size(row + first, zeros, piece_at(all, first), &largest);
        *max_abs = largest > *max_abs ? largest : *max_abs;
    }
    return sum_of_squares;
}

static void bound_row(void *context, size_t r, int worker) {
    const bounding *all = context;
    float *row = all->rows[r];
    fed_measured *size = &all->sizes[r];
    (void)worker;
    *size = (fed_measured){0};
    if (all->bounds == NULL) {
        size->is_finite = row_is_finite(all, row);
        return;
    }
    const double sum_of_squares = measure(all, row, &size->max_abs);
    size->is_finite = isfinite(sum_of_squares) != 0;
    if (!size->is_finite) return;
    if (size->max_abs > all->bounds->max_abs) {
        memset(row, 0, all->num_values * sizeof *row);
        return;
    }
    size->norm = sqrt(sum_of_squares);
    if (!(size->norm > all->bounds->norm)) return;
    const double factor = all->bounds->norm / size->norm; /* multiplied in double, rounded once */
    for (size_t v = 0; v < all->num_values; v++) row[v] = (float)(row[v] * factor);
}

int fed_bound_rows(int num_threads, float *const *rows, size_t num_rows, size_t num_values,
                   const fed_bounds *bounds, fed_measured *sizes) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return FED_ERR_ARGUMENT;
    if (bounds != NULL && !(bounds->max_abs >= 0 && bounds->norm >= 0)) return FED_ERR_ARGUMENT;
    bounding all = {rows, num_values, bounds, sizes};
    const fp_mode before = denormals_off();
    fed_share(num_threads, num_rows, bound_row, &all);
    fp_restore(before);
    return FED_OK;
}
