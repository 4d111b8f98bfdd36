/* SPDX-License-Identifier: Apache-2.0
 * Divides the coordinates of rows among threads. A thread takes a part of the coordinates, and
 * reads it in slices that fit a cache. */
#ifndef FED_SLICES_H
#define FED_SLICES_H

#include "fed.h"
#include "kernels/kernels.h"

/* Work on all coordinates of some rows. */
typedef struct fed_slicing fed_slicing;

/* Processes a slice, the coordinates first..first+count-1 with 1 <= count <= width, and adds to the
 * sums of the part that it belongs to. */
typedef void fed_slice(const fed_slicing *slicing, size_t first, size_t count, void *scratch,
                       double *sums);

struct fed_slicing {
    const fed_rows *rows;
    fed_slice *run;
    const void *job;      /* further arguments of `run` */
    size_t scratch_bytes; /* each worker's own memory */
    size_t num_sums;      /* sums over all coordinates */
    const fed_kernels *kernels;
    size_t width; /* largest number of coordinates of a slice, a multiple of FED_LANES */
    size_t part_size;
};

/* The width of slices. The slices of 64 to 2048 rows have about 256 KiB of floats, which fit the L2
 * cache of most machines. Slices are at least FED_LANES and at most 1024 wide. */
size_t fed_slice_width(size_t num_rows);
/* The distance between rows in scratch. It is not a multiple of 4 KiB: at such a distance the
 * values of a coordinate in all rows would share the same few lines of the L1 cache. */
size_t fed_scratch_stride(size_t num_rows);
/* Runs all slices; fills in `kernels`, `width` and `part_size`. Each part of the coordinates has
 * its own sums, and these are added in order. The number of parts depends only on the sizes, so the
 * number of threads changes no sum. */
int fed_run_slices(int num_threads, fed_slicing slicing, double *sums /* out [num_sums] */);

/* The coordinate after the part that `first` belongs to. */
size_t fed_part_end(const fed_slicing *slicing, size_t first);

/* 1 if there are rows and the number of threads is allowed. */
int fed_rows_valid(int num_threads, const fed_rows *rows);

#endif
