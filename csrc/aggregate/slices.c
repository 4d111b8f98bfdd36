/* SPDX-License-Identifier: Apache-2.0
 * Divides the coordinates of rows into parts and slices, and runs them on threads: see slices.h. */
#include "slices.h"
#include "denormals.h"
#include "memory.h"
#include "threads.h"

#include <stdlib.h>
#include <string.h>

enum { SLICE_FLOATS = 65536, WIDEST = 1024, LEAST_PART = 4096, FEWEST_PARTS = 4, MOST_PARTS = 64 };
enum { MOST_SUMS = 1 << 22 }; /* doubles of all parts (32 MiB); FEWEST_PARTS may need more */

static size_t round_up(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }

size_t fed_slice_width(size_t num_rows) {
    const size_t width = SLICE_FLOATS / num_rows / FED_LANES * FED_LANES;
    if (width < FED_LANES) return FED_LANES;
    return width < WIDEST ? width : WIDEST;
}

size_t fed_scratch_stride(size_t num_rows) { return fed_slice_width(num_rows) + FED_PAD; }

int fed_rows_valid(int num_threads, const fed_rows *rows) {
    return num_threads >= 1 && num_threads <= FED_MAX_THREADS && rows->num_rows >= 1;
}

size_t fed_part_end(const fed_slicing *slicing, size_t first) {
    const size_t begin = first - first % slicing->part_size;
    return begin + fed_smaller(slicing->part_size, slicing->rows->num_values - begin);
}

/* The memory and the parts of one call. */
typedef struct run {
    const fed_slicing *slicing;
    char *scratch;     /* [num_workers][scratch_bytes] */
    double *part_sums; /* [num_parts][num_sums] */
} run;

static void run_part(void *context, size_t part, int worker) {
    const run *r = context;
    const fed_slicing *s = r->slicing;
    const size_t begin = part * s->part_size, end = fed_part_end(s, begin);
    void *scratch = r->scratch + (size_t)worker * s->scratch_bytes;
    double *sums = r->part_sums + part * s->num_sums;
    for (size_t first = begin; first < end; first += s->width)
        s->run(s, first, end - first < s->width ? end - first : s->width, scratch, sums);
}

int fed_run_slices(int num_threads, fed_slicing slicing, double *sums) {
    const size_t num_values = slicing.rows->num_values, num_sums = slicing.num_sums;
    run r = {.slicing = &slicing};
    size_t most_parts = num_sums > 0 ? MOST_SUMS / num_sums : MOST_PARTS;
    if (most_parts > MOST_PARTS) most_parts = MOST_PARTS;
    slicing.part_size = round_up(num_values / fed_larger(most_parts, FEWEST_PARTS) + 1, FED_LANES);
    slicing.part_size = fed_larger(slicing.part_size, LEAST_PART);
    const size_t num_parts = fed_pieces(num_values, slicing.part_size);
    slicing.kernels = fed_active_kernels();
    slicing.width = fed_slice_width(slicing.rows->num_rows);
    slicing.scratch_bytes = round_up(slicing.scratch_bytes + 1, FED_ALIGNMENT);
    for (size_t i = 0; i < num_sums; i++) sums[i] = 0;
    if (num_parts == 0) return FED_OK;
    fed_carver memory = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        r.scratch = fed_carve(&memory, (size_t)num_threads, slicing.scratch_bytes);
        r.part_sums = fed_carve(&memory, num_parts * num_sums, sizeof *r.part_sums);
        if (pass == 0) memory = (fed_carver){fed_allocate(memory.used), 0};
        if (memory.base == NULL) return FED_ERR_NO_MEMORY;
    }
    char *base = r.scratch;
    memset(r.part_sums, 0, num_parts * num_sums * sizeof *r.part_sums);
    const fp_mode before = denormals_off();
    fed_share(num_threads, num_parts, run_part, &r);
    fp_restore(before);
    for (size_t part = 0; part < num_parts; part++)
        for (size_t i = 0; i < num_sums; i++) sums[i] += r.part_sums[part * num_sums + i];
    free(base);
    return FED_OK;
}
