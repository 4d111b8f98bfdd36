/* SPDX-License-Identifier: Apache-2.0
 * Rules for each coordinate on its own: trimmed mean and median, the mean of the values nearest to
 * the median, votes of signs. Many coordinates are sorted side by side, by a network whose
 * comparators are the same for all. */
#include "memory.h"
#include "slices.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Sorting networks ------------------------------------------------------------------------ */

typedef struct network {
    size_t num_comparators;
    fed_comparator *comparators;
} network;

/* Batcher's merge exchange: D. E. Knuth, The Art of Computer Programming, volume 3, algorithm
 * 5.2.2M. It sorts any number of values. comparators NULL: only counts them. */
static size_t write_merge_exchange(size_t num_rows, fed_comparator *comparators) {
    size_t num = 0, top = 1;
    while (2 * top < num_rows) top *= 2;
    if (num_rows < 2) return 0;
    for (size_t p = top; p > 0; p /= 2) {
        size_t q = top, r = 0, d = p;
        for (;;) {
            for (size_t i = 0; i + d < num_rows; i++) {
                if ((i & p) != r) continue;
                if (comparators != NULL)
                    comparators[num] = (fed_comparator){(uint32_t)i, (uint32_t)(i + d)};
                num++;
            }
            if (q == p) break;
            d = q - p;
            q /= 2;
            r = p;
        }
    }
    return num;
}

/* Drops comparators that cannot change any of the values first..first+count-1. */
static size_t prune(fed_comparator *comparators, size_t num, size_t first, size_t count,
                    unsigned char *is_needed /* [num_rows], zeros */) {
    size_t kept = num;
    memset(is_needed + first, 1, count);
    for (size_t k = num; k-- > 0;) {
        const fed_comparator each = comparators[k];
        if (!is_needed[each.low] && !is_needed[each.high]) continue;
        is_needed[each.low] = is_needed[each.high] = 1;
        comparators[--kept] = each;
    }
    memmove(comparators, comparators + kept, (num - kept) * sizeof *comparators);
    return num - kept;
}

/* A network after which values first..first+count-1 are in their places. */
static int network_init(network *made, size_t num_rows, size_t first, size_t count) {
    const size_t num = num_rows <= UINT32_MAX ? write_merge_exchange(num_rows, NULL) : SIZE_MAX;
    *made = (network){0};
    if (num > PTRDIFF_MAX / sizeof *made->comparators) return FED_ERR_NO_MEMORY;
    unsigned char *is_needed = calloc(num_rows, 1);
    made->comparators = fed_allocate(num * sizeof *made->comparators);
    if (is_needed == NULL || made->comparators == NULL) {
        free(is_needed);
        free(made->comparators);
        return FED_ERR_NO_MEMORY;
    }
    write_merge_exchange(num_rows, made->comparators);
    made->num_comparators = prune(made->comparators, num, first, count, is_needed);
    free(is_needed);
    return FED_OK;
}

/* ---- Sorted slices --------------------------------------------------------------------------- */

typedef struct trimming {
    network network;
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
static size_t sort_slice(const fed_slicing *slicing, size_t first, size_t count, const network *net,
                         const sorted *s) {
    const fed_rows *rows = slicing->rows;
    const size_t stride = fed_scratch_stride(rows->num_rows);
    const size_t num_columns = (count + FED_LANES - 1) / FED_LANES * FED_LANES;
    for (size_t r = 0; r < rows->num_rows; r++) {
        int32_t *to = s->values + r * stride;
        slicing->kernels->to_ordered(rows->rows[r] + first, count, to);
        memset(to + count, 0, (num_columns - count) * sizeof *to);
    }
    slicing->kernels->compare_rows(s->values, stride, num_columns, net->comparators,
                                   net->num_comparators);
    return num_columns;
}

static void trim_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums) {
    const trimming *job = slicing->job;
    const fed_rows *rows = slicing->rows;
    const size_t stride = fed_scratch_stride(rows->num_rows);
    sorted s;
    carve_sorted(&s, rows->num_rows, scratch);
    const size_t num_columns = sort_slice(slicing, first, count, &job->network, &s);
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
    int status = network_init(&job.network, rows->num_rows, job.first, job.count);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = trim_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL),
                                 .num_sums = squares != NULL ? rows->num_rows : 0};
    status = fed_run_slices(num_threads, slicing, squares);
    free(job.network.comparators);
    return status;
}

/* ---- The values nearest to the median -------------------------------------------------------- */

static double value_of(int32_t ordered) {
    const int32_t bits = ordered ^ (ordered >> 31 & INT32_MAX);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* The mean for a coordinate at which two different values are equally near: of those as far as the
 * farthest that is taken, the first rows' are. */
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
    const size_t num_columns = sort_slice(slicing, first, count, &job->network, &s);
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
    int status = network_init(&job.network, rows->num_rows, 0, rows->num_rows);
    if (status != FED_OK) return status;
    sorted s;
    const fed_slicing slicing = {.rows = rows,
                                 .run = near_slice,
                                 .job = &job,
                                 .scratch_bytes = carve_sorted(&s, rows->num_rows, NULL)};
    status = fed_run_slices(num_threads, slicing, NULL);
    free(job.network.comparators);
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
    double *zeros = scratch;
    (void)sums;
    if (job->origin == NULL) memset(zeros, 0, count * sizeof *zeros);
    memset(job->votes + first, 0, count * sizeof *job->votes);
    for (size_t r = 0; r < rows->num_rows; r++)
        slicing->kernels->add_signs(job->votes + first, rows->rows[r] + first,
                                    job->origin == NULL ? zeros : job->origin + first, count);
}

int fed_sign_votes(int num_threads, const fed_rows *rows, const double *origin, int32_t *votes) {
    if (!fed_rows_valid(num_threads, rows) || rows->num_rows > INT32_MAX) return FED_ERR_ARGUMENT;
    const voting job = {origin, votes};
    return fed_run_slices(
        num_threads,
        (fed_slicing){.rows = rows,
                      .run = vote_slice,
                      .job = &job,
                      .scratch_bytes = fed_slice_width(rows->num_rows) * sizeof(double)},
        NULL);
}
