/* SPDX-License-Identifier: Apache-2.0
 * Rows divided among threads: parts of the coordinates, each read in slices that fit a cache. */
#ifndef FED_SLICES_H
#define FED_SLICES_H

#include "fed.h"
#include "kernels/kernels.h"

/* Work on all coordinates of some rows. */
typedef struct fed_slicing fed_slicing;

/* Does the coordinates first..first+count-1, 1 <= count <= width; adds to the sums of their part.
 */
typedef void fed_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums);

struct fed_slicing {
    const fed_rows *rows;
    fed_slice *run;
    const void *job;      /* further arguments of `run` */
    size_t scratch_bytes; /* each worker's own memory */
    size_t num_sums;      /* sums over all coordinates */
    const fed_kernels *kernels;
    size_t width; /* most coordinates of a slice, a multiple of FED_LANES */
};

/* The width of slices: about 256 KiB of floats, as the second cache of most machines can hold. */
size_t fed_slice_width(size_t num_rows);
/* The distance between rows in scratch. It is no multiple of 4 KiB; else all rows of a coordinate
 * would compete for the same few lines of the first cache. */
size_t fed_scratch_stride(size_t num_rows);
/* Runs all slices; fills in `kernels` and `width`. Parts of the coordinates have their own sums,
 * which are added in order. How many parts there are depends on sizes alone; so threads change no
 * sum. */
int fed_run_slices(int num_threads, fed_slicing slicing, double *sums /* out [num_sums] */);

/* 1 if there are rows, and as many threads as a team may have. */
int fed_rows_valid(int num_threads, const fed_rows *rows);

#endif
