/* SPDX-License-Identifier: Apache-2.0
 * Rules that treat each coordinate separately: trimmed mean and median, the mean of the values
 * nearest to the median, sign votes. Many coordinates are sorted side by side, in equal steps. */
#include "memory.h"
#include "slices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- The steps of a sort --------------------------------------------------------------------- */

/* Batcher's odd-even merge sort for any number of rows (K. E. Batcher, "Sorting networks and their
 * applications", 1968): the steps after each group of sixteen rows is sorted. */
typedef struct merging {
    size_t num_rows, num_steps;
    fed_merging_step *steps; /* NULL: they are only counted */
} merging;

static void add_step(merging *made, enum fed_merging_kind kind, size_t first, size_t stride) {
    if (made->steps != NULL)
        made->steps[made->num_steps] =
            (fed_merging_step){(uint32_t)kind, (uint32_t)first, (uint32_t)stride};
    made->num_steps++;
}

/* Merges the rows first, first + stride, ... below first + span, whose halves are sorted. */
static void add_merge(merging *made, size_t first, size_t span, size_t stride) {
    if (first + span / 2 >= made->num_rows) return; /* the second half does not exist */
    if (span / stride == FED_SORTED_ROWS) {
        add_step(made, FED_MERGE, first, stride);
        return;
    }
    add_merge(made, first, span, 2 * stride);
    add_merge(made, first + stride, span, 2 * stride);
    for (size_t i = first + stride; i + stride < first + span; i += 2 * stride)
        if (i + stride < made->num_rows) add_step(made, FED_COMPARE, i, stride);
}

static void add_merges(merging *made, size_t first, size_t span) {
    if (span == FED_SORTED_ROWS) return;
    add_merges(made, first, span / 2);
    if (first + span / 2 < made->num_rows) add_merges(made, first + span / 2, span / 2);
    add_merge(made, first, span, 1);
}

/* Drops steps that cannot change any of the rows first..first+count-1. */
static void prune(merging *made, size_t first, size_t count,
                  unsigned char *is_needed /* [num_rows], zeros */) {
    const size_t num = made->num_steps;
    size_t kept = num;
    memset(is_needed + first, 1, count);
    for (size_t k = num; k-- > 0;) {
        const fed_merging_step each = made->steps[k];
        const size_t num_each = each.kind == FED_COMPARE ? 2 : FED_SORTED_ROWS;
        const size_t left = (made->num_rows - each.first + each.stride - 1) / each.stride;
        const size_t last = each.first + (left < num_each ? left : num_each) * each.stride;
        unsigned char any = 0;
        for (size_t r = each.first; r < last; r += each.stride) any |= is_needed[r];
        if (!any) continue;
        for (size_t r = each.first; r < last; r += each.stride) is_needed[r] = 1;
        made->steps[--kept] = each;
    }
    made->num_steps = num - kept;
    memmove(made->steps, made->steps + kept, made->num_steps * sizeof *made->steps);
}

/* The steps that bring rows first..first+count-1 of the sorted order to their places. */
static int merging_init(merging *made, size_t num_rows, size_t first, size_t count) {
    size_t span = FED_SORTED_ROWS;
    *made = (merging){.num_rows = num_rows};
    if (num_rows > UINT32_MAX / 2) return FED_ERR_NO_MEMORY;
    while (span < num_rows) span *= 2;
    add_merges(made, 0, span);
    unsigned char *is_needed = calloc(num_rows, 1);
    made->steps = fed_allocate(made->num_steps * sizeof *made->steps);
    if (is_needed == NULL || made->steps == NULL) {
        free(is_needed);
        free(made->steps);
        return FED_ERR_NO_MEMORY;
    }
    made->num_steps = 0;
    add_merges(made, 0, span);
    prune(made, first, count, is_needed);
    free(is_needed);
    return FED_OK;
}

/* ---- Sorted slices --------------------------------------------------------------------------- */

typedef struct trimming {
    merging merging;
    size_t first,
        count; /* the sorted values whose mean is wanted; or those nearest to the median */
    double *mean;
} trimming;

/* A worker's scratch. */
typedef struct sorted {
    int32_t *values;  /* [num_rows][stride] */
    double *mean;     /* [width] */
    uint8_t *has_tie; /* [width] */
} sorted;

static size_t carve_sorted(sorted *s, size_t num_rows, char *base) {
    fed_carver carver = {base, 0};
    s->values = fed_carve(&carver, num_rows, fed_scratch_stride(num_rows) * sizeof *s->values);
    s->mean = fed_carve(&carver, fed_slice_width(num_rows), sizeof *s->mean);
    s->has_tie = fed_carve(&carver, fed_slice_width(num_rows), sizeof *s->has_tie);
    return carver.used;
}

/* Sorts a slice; returns its number of columns with the padding, which holds zeros. */
static size_t sort_slice(const fed_slicing *slicing, size_t first, size_t count, const merging *how,
                         const sorted *s) {
    const fed_rows *rows = slicing->rows;
    const size_t stride = fed_scratch_stride(rows->num_rows);
    const size_t num_columns = (count + FED_LANES - 1) / FED_LANES * FED_LANES;
    for (size_t r = 0; r < rows->num_rows; r += FED_SORTED_ROWS) {
        const size_t left = rows->num_rows - r;
        slicing->kernels->sort_sixteen(rows->rows + r,
                                       left < FED_SORTED_ROWS ? left : FED_SORTED_ROWS, first,
                                       count, s->values + r * stride, stride);
    }
    slicing->kernels->merge_rows(s->values, stride, rows->num_rows, num_columns, how->steps,
                                 how->num_steps);
    return num_columns;
}

static void trim_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const trimming *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    const size_t stride = fed_scratch_stride(rows->num_rows);
    sorted s;
    carve_sorted(&s, rows->num_rows, scratch);
    const size_t num_columns = sort_slice(slicing, first, count, &job->merging, &s);
    slicing->kernels->mean_of_ordered(s.values + job->first * stride, stride, job->count,
                                      num_columns, s.mean);
    memcpy(job->mean + first, s.mean, count * sizeof *s.mean);
    for (size_t r = 0; r < slicing->num_sums; r++)
        sums[r] += slicing->kernels->square_distance(rows->rows[r] + first, s.mean, count);
}

int fed_trimmed_mean(int num_threads, const fed_rows *rows, size_t trim, double *mean,
                     double *squares) {
    if (!fed_rows_valid(num_threads, rows) || trim > (rows->num_rows - 1) / 2)
        return FED_ERR_ARGUMENT;
    trimming job = {.first = trim, .count = rows->num_rows - 2 * trim, .mean = mean};
    int status = merging_init(&job.merging, rows->num_rows, job.first, job.count);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = trim_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL),
                                 .num_sums = squares != NULL ? rows->num_rows : 0};
    status = fed_run_slices(num_threads, slicing, squares);
    free(job.merging.steps);
    return status;
}

/* ---- The values nearest to the median -------------------------------------------------------- */

static double value_of(int32_t ordered) {
    const int32_t bits = ordered ^ (ordered >> 31 & INT32_MAX);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* The mean for a coordinate where two different values are equally far from the median. All values
 * nearer than the farthest chosen one count; of those equally far, the values of the first rows
 * count. */
static double mean_of_first(const fed_rows *rows, size_t coordinate, const int32_t *ordered,
                            size_t stride, size_t num_nearest) {
    const size_t n = rows->num_rows;
    const double median =
        (value_of(ordered[(n - 1) / 2 * stride]) + value_of(ordered[n / 2 * stride])) / 2;
    size_t a = 0;
    while (a < n - num_nearest && median - value_of(ordered[a * stride]) >
                                      value_of(ordered[(a + num_nearest) * stride]) - median)
        a++;
    const double low = median - value_of(ordered[a * stride]);
    const double high = value_of(ordered[(a + num_nearest - 1) * stride]) - median;
    const double farthest = low > high ? low : high;
    size_t num_nearer = 0, num_left;
    double sum = 0;
    for (size_t r = 0; r < n; r++) {
        const double value = (double)rows->rows[r][coordinate];
        if (fabs(value - median) >= farthest) continue;
        sum += value;
        num_nearer++;
    }
    num_left = num_nearest - num_nearer;
    for (size_t r = 0; r < n && num_left > 0; r++) {
        const double value = (double)rows->rows[r][coordinate];
        if (fabs(value - median) != farthest) continue;
        sum += value;
        num_left--;
    }
    return sum / (double)num_nearest;
}

static void near_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const trimming *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    const size_t stride = fed_scratch_stride(rows->num_rows);
    sorted s;
    (void)sums;
    carve_sorted(&s, rows->num_rows, scratch);
    const size_t num_columns = sort_slice(slicing, first, count, &job->merging, &s);
    slicing->kernels->mean_near_median(s.values, stride, rows->num_rows, num_columns, job->count,
                                       s.mean, s.has_tie);
    memcpy(job->mean + first, s.mean, count * sizeof *s.mean);
    for (size_t c = 0; c < count; c++)
        if (s.has_tie[c])
            job->mean[first + c] = mean_of_first(rows, first + c, s.values + c, stride, job->count);
}

int fed_mean_near_median(int num_threads, const fed_rows *rows, size_t num_nearest, double *mean) {
    if (!fed_rows_valid(num_threads, rows) || num_nearest < 1 || num_nearest > rows->num_rows)
        return FED_ERR_ARGUMENT;
    trimming job = {.count = num_nearest, .mean = mean};
    int status = merging_init(&job.merging, rows->num_rows, 0, rows->num_rows);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = near_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL)};
    status = fed_run_slices(num_threads, slicing, NULL);
    free(job.merging.steps);
    return status;
}

/* ---- Votes ----------------------------------------------------------------------------------- */

typedef struct voting {
    const double *origin; /* or NULL */
    int32_t *votes;
} voting;

static void vote_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const voting *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    (void)scratch;
    (void)sums;
    memset(job->votes + first, 0, count * sizeof *job->votes);
    for (size_t r = 0; r < rows->num_rows; r++)
        slicing->kernels->add_signs(job->votes + first, rows->rows[r] + first,
                                    job->origin == NULL ? NULL : job->origin + first, count);
}

int fed_sign_votes(int num_threads, const fed_rows *rows, const double *origin, int32_t *votes) {
    if (!fed_rows_valid(num_threads, rows) || rows->num_rows > INT32_MAX) return FED_ERR_ARGUMENT;
    const voting job = {origin, votes};
    return fed_run_slices(num_threads, (fed_slicing){.rows = rows, .run = vote_slice, .job = &job},
                          NULL);
}
