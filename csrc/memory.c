/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory, and the division of one block into many arrays. */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>

/* More than any machine has, and small enough that sums of a few such sizes cannot overflow. */
static const size_t most_bytes = SIZE_MAX / 4;

void *fed_allocate(size_t num_bytes) {
    void *memory = NULL;
    if (num_bytes > PTRDIFF_MAX) return NULL;
    return posix_memalign(&memory, FED_ALIGNMENT, num_bytes > 0 ? num_bytes : 1) == 0 ? memory
                                                                                      : NULL;
}

void *fed_carve(fed_carver *carver, size_t count, size_t size) {
    void *piece = carver->base != NULL ? carver->base + carver->used : NULL;
    const size_t unit = FED_ALIGNMENT;
    if (carver->used > most_bytes || count > most_bytes / size)
        carver->used = SIZE_MAX;
    else
        carver->used += (count * size + unit - 1) / unit * unit;
    return piece;
}
