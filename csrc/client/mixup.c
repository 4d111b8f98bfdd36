/* SPDX-License-Identifier: Apache-2.0
 * The random numbers of MixUp. */
#include "fed.h"

/* Each visit has 2^VISIT_BITS blocks of the stream, so batches share none of them. */
enum { VISIT_BITS = 20 };

float fed_mixup_draw(double alpha, const fed_key *key, size_t first_visit, size_t num_rows,
                     uint32_t *partners) {
    fed_rng rng;
    fed_rng_init(&rng, key);
    rng.counter[0] = (uint64_t)first_visit << VISIT_BITS;
    const float share = (float)fed_rng_beta(&rng, alpha);
    for (size_t b = 0; b < num_rows; b++) partners[b] = (uint32_t)b;
    for (size_t left = num_rows; left > 1; left--) { /* Fisher and Yates */
        const size_t chosen = fed_rng_below(&rng, (uint32_t)left);
        const uint32_t last = partners[left - 1];
        partners[left - 1] = partners[chosen];
        partners[chosen] = last;
    }
    return share;
}
