/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory, and the division of one block into many arrays. */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

/* More than any machine has, and small enough that sums of a few such sizes cannot overflow. */
static const size_t most_bytes = SIZE_MAX / 4;

/* From this size on, memory is in huge pages where the system has them: a pass over it then waits
 * less often for the address of its next page. Smaller blocks would waste a large share of a page.
 */
static const size_t huge_page = (size_t)1 << 21, least_huge = (size_t)1 << 22;

static void prefer_huge_pages(void *memory, size_t num_bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(memory, num_bytes, MADV_HUGEPAGE); /* may fail: huge pages change only the speed */
#else
    (void)memory, (void)num_bytes;
#endif
}

void *fed_allocate(size_t num_bytes) {
    void *memory = NULL;
    const int is_large = num_bytes >= least_huge;
    if (num_bytes > PTRDIFF_MAX) return NULL;
    if (posix_memalign(&memory, is_large ? huge_page : (size_t)FED_ALIGNMENT,
                       num_bytes > 0 ? num_bytes : 1) != 0)
        return NULL;
    if (is_large) prefer_huge_pages(memory, num_bytes);
    return memory;
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
