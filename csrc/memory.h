/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory, and the division of one block into many arrays. */
#ifndef FED_MEMORY_H
#define FED_MEMORY_H

#include <stddef.h>

enum { FED_ALIGNMENT = 64 };

static inline size_t fed_larger(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t fed_smaller(size_t a, size_t b) { return a < b ? a : b; }
/* The number of pieces of at most `size`. */
static inline size_t fed_pieces(size_t n, size_t size) { return (n + size - 1) / size; }

/* Returns memory aligned to FED_ALIGNMENT, to be released with free(), or NULL. */
void *fed_allocate(size_t num_bytes);

/* A position in a block of memory. The same code runs twice. In the first run base is NULL, and
 * `used` becomes the size to allocate. In the second run base is the allocated block, and fed_carve
 * returns the arrays. */
typedef struct fed_carver {
    char *base;
    size_t used;
} fed_carver;

/* Returns memory for `count` items of `size` bytes, size at least 1; NULL while measuring. If the
 * sum would overflow, `used` becomes SIZE_MAX and stays there. */
void *fed_carve(fed_carver *carver, size_t count, size_t size);

#endif
