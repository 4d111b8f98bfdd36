/* SPDX-License-Identifier: Apache-2.0
 * Computes distances and products of all pairs of rows, and of each row with a vector. Also chooses
 * the rows that lie closest together. Distances are computed from differences of the rows. The
 * formula |a|^2 + |b|^2 - 2 a.b would lose all digits for deltas that differ only little. */
#include "memory.h"
#include "slices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- All pairs ------------------------------------------------------------------------------- */

static void pairs_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                        double *sums) {
    const int *is_product = slicing->job;
    const fed_rows *rows = slicing->rows;
    const size_t n = rows->num_rows, stride = fed_scratch_stride(n);
    const size_t num_columns = (count + FED_LANES - 1) / FED_LANES * FED_LANES;
    double *doubles = scratch; /* [n][stride] */
    for (size_t r = 0; r < n; r++) {
        slicing->kernels->to_doubles(rows->rows[r] + first, count, doubles + r * stride);
        memset(doubles + r * stride + count, 0, (num_columns - count) * sizeof *doubles);
    }
    if (*is_product)
        slicing->kernels->add_pair_products(doubles, stride, n, num_columns, sums);
    else
        slicing->kernels->add_pair_squares(doubles, stride, n, num_columns, sums);
}

int fed_row_pairs(int num_threads, const fed_rows *rows, int is_product, double *pairs) {
    const size_t n = rows->num_rows;
    if (!fed_rows_valid(num_threads, rows) || n > UINT32_MAX / 64) return FED_ERR_ARGUMENT;
    const fed_slicing slicing = {.rows = rows,
                                 .run = pairs_slice,
                                 .job = &is_product,
                                 .scratch_bytes = n * fed_scratch_stride(n) * sizeof(double),
                                 .num_sums = n * n};
    const int status = fed_run_slices(num_threads, slicing, pairs);
    if (status != FED_OK) return status;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) pairs[i * n + j] = pairs[j * n + i];
    return FED_OK;
}

/* ---- Each row with a vector ------------------------------------------------------------------ */

typedef struct measuring {
    const double *origin, *direction; /* or NULL */
} measuring;

static void measure_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                          double *sums) {
    const measuring *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    const size_t n = rows->num_rows;
    const double *origin = job->origin == NULL ? scratch : job->origin + first;
    if (job->origin == NULL) memset(scratch, 0, count * sizeof *origin);
    for (size_t r = 0; r < n; r++) {
        const float *row = rows->rows[r] + first;
        sums[r] += slicing->kernels->square_distance(row, origin, count);
        if (job->direction != NULL)
            sums[n + r] +=
                slicing->kernels->product_with(row, origin, job->direction + first, count);
    }
}

int fed_measure_rows(int num_threads, const fed_rows *rows, const double *origin,
                     const double *direction, double *squares, double *products) {
    const size_t n = rows->num_rows;
    if (!fed_rows_valid(num_threads, rows)) return FED_ERR_ARGUMENT;
    const measuring job = {origin, direction};
    double *sums = fed_allocate(2 * n * sizeof *sums);
    if (sums == NULL) return FED_ERR_NO_MEMORY;
    const fed_slicing slicing = {.rows = rows,
                                 .run = measure_slice,
                                 .job = &job,
                                 .scratch_bytes = fed_slice_width(n) * sizeof(double),
                                 .num_sums = 2 * n};
    const int status = fed_run_slices(num_threads, slicing, sums);
    if (status == FED_OK) memcpy(squares, sums, n * sizeof *squares);
    if (status == FED_OK && direction != NULL) memcpy(products, sums + n, n * sizeof *products);
    free(sums);
    return status;
}

/* ---- The closest rows ------------------------------------------------------------------------ */

/* Tries the subsets in lexicographic order. A partial subset is abandoned as soon as two of its
 * rows are at least as far apart as the farthest two of the best subset so far. */
int fed_least_diameter(const double *distances, size_t num_rows, size_t num_chosen,
                       size_t *chosen) {
    if (num_chosen < 1 || num_chosen > num_rows) return FED_ERR_ARGUMENT;
    size_t *trial = malloc(num_chosen * sizeof *trial);
    double *diameters = malloc((num_chosen + 1) * sizeof *diameters); /* [k]: of the first k rows of
                                                                         trial */
    const int status = trial != NULL && diameters != NULL ? FED_OK : FED_ERR_NO_MEMORY;
    double best = HUGE_VAL;
    size_t k = 0, next = 0; /* trial has k rows; `next` is the row that is tried next */
    if (status == FED_OK) diameters[0] = 0;
    for (size_t i = 0; i < num_chosen; i++) chosen[i] = i; /* in case all distances are infinite */
    while (status == FED_OK) {
        if (k == num_chosen || num_rows - next < num_chosen - k) {
            if (k == num_chosen) {
                best = diameters[k];
                memcpy(chosen, trial, num_chosen * sizeof *chosen);
            }
            if (k == 0) break;
            next = trial[--k] + 1;
            continue;
        }
        double diameter = diameters[k];
        for (size_t i = 0; i < k; i++) {
            const double distance = distances[trial[i] * num_rows + next];
            diameter = distance > diameter ? distance : diameter;
        }
        trial[k] = next++;
        if (diameter < best) diameters[++k] = diameter;
    }
    free(trial);
    free(diameters);
    return status;
}
