/* SPDX-License-Identifier: Apache-2.0
 * Rules that treat each coordinate separately: trimmed mean and median, the mean of the values
 * nearest to the median, sign votes. Many coordinates are sorted side by side, in equal steps. */
#include "memory.h"
#include "slices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- The steps of a sort --------------------------------------------------------------------- */

/* A merge sort by a fixed network, for any number of rows: K. E. Batcher, "Sorting networks and
 * their applications", 1968. Two sorted halves are merged in layers. The first layer compares each
 * row with its mirror image in the other half; the next ones compare, row by row, the two halves of
 * each half, then of each quarter, and so on. One step computes several of the layers that compare
 * distant rows. It takes a few rows at a time: rows that these layers compare with each other. The
 * last four layers are computed together for a tile of sixteen rows. */
typedef struct sorting {
    size_t num_rows, num_padded, num_steps;
    size_t first, count;  /* rows of the result that are needed */
    fed_sort_step *steps; /* NULL: they are only counted */
} sorting;

enum { LARGEST_GROUP = 16 };

static void add_step(sorting *made, fed_sort_step step) {
    if (made->steps != NULL) made->steps[made->num_steps] = step;
    made->num_steps++;
}

/* Adds the last layers of a merge of the rows from `first` on, for the tiles that are needed. */
static void add_cleaning(sorting *made, size_t first, size_t span, int is_last) {
    const size_t low = is_last ? made->first : 0;
    const size_t high = is_last ? made->first + made->count : made->num_rows;
    for (size_t at = first; at < first + span && at < high; at += FED_TILE_ROWS)
        if (at + FED_TILE_ROWS > low)
            add_step(made, (fed_sort_step){.kind = FED_CLEAN, .first = (uint32_t)at});
}

/* Adds the first layers of a merge, or of a half of a larger merge. */
static void add_crossing(sorting *made, enum fed_sort_kind kind, size_t first, size_t span,
                         int is_last) {
    const size_t tile = made->first / FED_TILE_ROWS;
    fed_sort_step step = {(uint32_t)kind, (uint32_t)first, (uint32_t)(span / FED_TILE_ROWS),
                          FED_TILE_ROWS,  (uint32_t)tile,  0};
    if (first >= made->num_padded || span == FED_TILE_ROWS) return;
    if (kind == FED_HALVE || step.group > LARGEST_GROUP) {
        step.group = 2;
        step.unit = (uint32_t)(span / 2);
    } else if (kind == FED_CROSS && is_last && tile < step.group / 2 &&
               (made->first + made->count - 1) / FED_TILE_ROWS == tile) {
        step.kind = FED_CROSS_TILE;
    }
    add_step(made, step);
    if (step.unit == FED_TILE_ROWS) return;
    add_crossing(made, FED_HALVE, first, span / 2, is_last);
    add_crossing(made, FED_HALVE, first + span / 2, span / 2, is_last);
}

static void add_sort(sorting *made, size_t first, size_t span, int is_last) {
    if (first >= made->num_rows) return;
    if (span == FED_TILE_ROWS) {
        add_step(made, (fed_sort_step){.kind = FED_SORT, .first = (uint32_t)first});
        return;
    }
    add_sort(made, first, span / 2, 0);
    if (first + span / 2 >= made->num_rows) return; /* the second half does not exist */
    add_sort(made, first + span / 2, span / 2, 0);
    add_crossing(made, FED_CROSS, first, span, is_last);
    add_cleaning(made, first, span, is_last);
}

/* The number of rows that a step reads. */
static size_t rows_of(fed_sort_step step) {
    const size_t num_rows = (size_t)step.group * step.unit;
    return num_rows > 0 ? num_rows : FED_TILE_ROWS;
}

/* Each step also prefetches some cache lines of the values that are read next. Divides the lines of
 * a block among the steps, in proportion to the rows that they read. */
static void share_lines(const sorting *made) {
    const size_t num_lines = made->num_rows * (FED_LANES / FED_PAD);
    size_t total = 0, done = 0;
    for (size_t k = 0; k < made->num_steps; k++) total += rows_of(made->steps[k]);
    for (size_t k = 0; k < made->num_steps; k++) {
        const size_t before = done * num_lines / total;
        done += rows_of(made->steps[k]);
        made->steps[k].num_lines = (uint32_t)(done * num_lines / total - before);
    }
}

/* The steps that bring rows first..first+count-1 of the sorted order to their places. */
static int sorting_init(sorting *made, size_t num_rows, size_t first, size_t count) {
    size_t span = FED_TILE_ROWS;
    *made = (sorting){.num_rows = num_rows, .first = first, .count = count};
    if (num_rows > UINT32_MAX / 4) return FED_ERR_NO_MEMORY;
    made->num_padded = (num_rows + 3) / 4 * 4;
    while (span < num_rows) span *= 2;
    add_sort(made, 0, span, 1);
    made->steps = fed_allocate(made->num_steps * sizeof *made->steps);
    if (made->steps == NULL) return FED_ERR_NO_MEMORY;
    made->num_steps = 0;
    add_sort(made, 0, span, 1);
    share_lines(made);
    return FED_OK;
}

/* ---- Sorted slices --------------------------------------------------------------------------- */

typedef struct trimming {
    sorting sorting;
    size_t first, count; /* `count` values are averaged: the sorted ones from `first` on, or those
                            nearest to the median */
    fed_mean mean;
} trimming;

/* A worker's scratch. */
typedef struct sorted {
    int32_t *values; /* [num_padded + 1, FED_LANES] */
    double *mean;    /* [width] */
} sorted;

static size_t carve_sorted(sorted *s, size_t num_rows, char *base) {
    fed_carver carver = {base, 0};
    s->values = fed_carve(&carver, num_rows + 4, FED_LANES * sizeof *s->values);
    s->mean = fed_carve(&carver, fed_slice_width(num_rows), sizeof *s->mean);
    return carver.used;
}

/* The values of the next slice, which are prefetched; none after the last slice of a part. */
static fed_ahead after_slice(const fed_slicing *slicing, size_t first, size_t count) {
    const size_t next = first + count, end = fed_part_end(slicing, first);
    return (fed_ahead){.rows = slicing->rows->rows,
                       .num_rows = next < end ? slicing->rows->num_rows : 0,
                       .first = next,
                       .end = fed_smaller(next + slicing->width, end),
                       .at = next};
}

/* Writes the means of the coordinates from `first` on. */
static void write_means(const trimming *job, size_t first, const double *means, size_t count) {
    if (job->mean.exact != NULL) memcpy(job->mean.exact + first, means, count * sizeof *means);
    if (job->mean.rounded == NULL) return;
    for (size_t c = 0; c < count; c++) job->mean.rounded[first + c] = (float)means[c];
}

/* Sorts the columns first..first+count-1, at most FED_LANES. */
static void sort_block(const fed_slicing *slicing, size_t first, size_t count, const sorting *how,
                       const sorted *s, fed_ahead *ahead) {
    const fed_sort_block block = {.rows = slicing->rows->rows,
                                  .num_rows = slicing->rows->num_rows,
                                  .num_padded = how->num_padded,
                                  .first = first,
                                  .num_values = count,
                                  .ordered = s->values,
                                  .none = s->values + how->num_padded * FED_LANES};
    slicing->kernels->sort_rows(&block, how->steps, how->num_steps, ahead);
}

static void trim_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const trimming *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    fed_ahead ahead = after_slice(slicing, first, count);
    sorted s;
    carve_sorted(&s, rows->num_rows, scratch);
    for (size_t c = 0; c < count; c += FED_LANES) {
        sort_block(slicing, first + c, fed_smaller(count - c, FED_LANES), &job->sorting, &s,
                   &ahead);
        slicing->kernels->mean_of_ordered(s.values + job->first * FED_LANES, job->count,
                                          s.mean + c);
    }
    write_means(job, first, s.mean, count);
    for (size_t r = 0; r < slicing->num_sums; r++)
        sums[r] += slicing->kernels->square_distance(rows->rows[r] + first, s.mean, count);
}

int fed_trimmed_mean(int num_threads, const fed_rows *rows, size_t trim, fed_mean mean,
                     double *squares) {
    if (!fed_rows_valid(num_threads, rows) || trim > (rows->num_rows - 1) / 2)
        return FED_ERR_ARGUMENT;
    trimming job = {.first = trim, .count = rows->num_rows - 2 * trim, .mean = mean};
    int status = sorting_init(&job.sorting, rows->num_rows, job.first, job.count);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = trim_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL),
                                 .num_sums = squares != NULL ? rows->num_rows : 0};
    status = fed_run_slices(num_threads, slicing, squares);
    free(job.sorting.steps);
    return status;
}

/* ---- The values nearest to the median -------------------------------------------------------- */

static double value_of(int32_t ordered) {
    const int32_t bits = ordered ^ (ordered >> 31 & INT32_MAX);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* The mean for a coordinate where two different values are equally far from the median. It
 * includes all values that are nearer than the farthest chosen value. Of the values at the same
 * distance as the farthest chosen value, it includes those of the first rows. */
static double mean_breaking_ties(const fed_rows *rows, size_t coordinate, const int32_t *ordered,
                                 size_t num_nearest) {
    const size_t stride = FED_LANES;
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
    fed_ahead ahead = after_slice(slicing, first, count);
    uint8_t has_tie[FED_LANES];
    sorted s;
    (void)sums;
    carve_sorted(&s, rows->num_rows, scratch);
    for (size_t c = 0; c < count; c += FED_LANES) {
        const size_t num_columns = fed_smaller(count - c, FED_LANES);
        sort_block(slicing, first + c, num_columns, &job->sorting, &s, &ahead);
        slicing->kernels->mean_near_median(s.values, rows->num_rows, job->count, s.mean + c,
                                           has_tie);
        if (memchr(has_tie, 1, num_columns) == NULL) continue;
        for (size_t l = 0; l < num_columns; l++)
            if (has_tie[l])
                s.mean[c + l] = mean_breaking_ties(rows, first + c + l, s.values + l, job->count);
    }
    write_means(job, first, s.mean, count);
}

int fed_mean_near_median(int num_threads, const fed_rows *rows, size_t num_nearest, fed_mean mean) {
    if (!fed_rows_valid(num_threads, rows) || num_nearest < 1 || num_nearest > rows->num_rows)
        return FED_ERR_ARGUMENT;
    trimming job = {.count = num_nearest, .mean = mean};
    int status = sorting_init(&job.sorting, rows->num_rows, 0, rows->num_rows);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = near_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL)};
    status = fed_run_slices(num_threads, slicing, NULL);
    free(job.sorting.steps);
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
