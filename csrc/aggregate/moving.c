/* SPDX-License-Identifier: Apache-2.0
 * Weighted sums of rows. For iterative rules, the same pass over the rows also gives the distances
 * of all rows to the result. */
#include "memory.h"
#include "slices.h"

#include <string.h>

typedef struct moving {
    double kept;
    const double *factors;
    double *vector;
} moving;

static void move_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const moving *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    double *vector = job->vector + first;
    (void)scratch;
    if (job->kept == 0) {
        memset(vector, 0, count * sizeof *vector); /* its old values may be anything, also NaN */
    } else {
        for (size_t c = 0; c < count; c++) vector[c] *= job->kept;
    }
    slicing->kernels->add_vectors(vector, rows->rows, job->factors, rows->num_rows, first, count);
    for (size_t r = 0; r < slicing->num_sums; r++)
        sums[r] += slicing->kernels->square_distance(rows->rows[r] + first, vector, count);
}

int fed_move_by_rows(int num_threads, const fed_rows *rows, double kept, const double *factors,
                     double *vector, double *squares) {
    if (!fed_rows_valid(num_threads, rows)) return FED_ERR_ARGUMENT;
    const moving job = {kept, factors, vector};
    return fed_run_slices(num_threads,
                          (fed_slicing){.rows = rows,
                                        .run = move_slice,
                                        .job = &job,
                                        .num_sums = squares != NULL ? rows->num_rows : 0},
                          squares);
}

typedef struct mixing {
    const double *factors, *offsets, *offset; /* offset may be NULL */
    size_t num_out;
    float *out;
} mixing;

static void mix_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                      double *sums) {
    const mixing *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    double *sum = scratch;
    (void)sums;
    for (size_t o = 0; o < job->num_out; o++) {
        memset(sum, 0, count * sizeof *sum);
        slicing->kernels->add_vectors(sum, rows->rows, job->factors + o * rows->num_rows,
                                      rows->num_rows, first, count);
        if (job->offset != NULL)
            for (size_t c = 0; c < count; c++) sum[c] += job->offsets[o] * job->offset[first + c];
        slicing->kernels->to_floats(sum, count, job->out + o * rows->num_values + first);
    }
}

int fed_mix_rows(int num_threads, const fed_rows *rows, const double *factors,
                 const double *offsets, const double *offset, size_t num_out, float *out) {
    if (!fed_rows_valid(num_threads, rows)) return FED_ERR_ARGUMENT;
    const mixing job = {factors, offsets, offset, num_out, out};
    return fed_run_slices(
        num_threads,
        (fed_slicing){.rows = rows,
                      .run = mix_slice,
                      .job = &job,
                      .scratch_bytes = fed_slice_width(rows->num_rows) * sizeof(double)},
        NULL);
}
