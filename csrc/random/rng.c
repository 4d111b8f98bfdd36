/* SPDX-License-Identifier: Apache-2.0
 *
 * Random numbers: the counter-based generator Philox-4x64-10 (Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3", 2011) and the distributions that the core uses. A stream is a pure
 * function of its key, so results do not depend on the order of draws. The raw output equals that
 * of numpy.random.Philox, which increments its counter before the first block: our block b is
 * NumPy's with a counter one lower. Built with -ffp-contract=off, like synthetic.c, so that draws
 * are the same on all machines.
 */
#include "fed.h"

#include <math.h>

#define NUM_HALVES 8 /* 32-bit halves in a block */
#define TWO_PI 6.283185307179586476925

__extension__ typedef unsigned __int128 uint128;

static inline void philox(const uint64_t counter[4], const uint64_t key[2], uint64_t block[4]) {
    const uint64_t multiplier0 = UINT64_C(0xD2E7470EE14C6C93);
    const uint64_t multiplier1 = UINT64_C(0xCA5A826395121157);
    const uint64_t weyl0 = UINT64_C(0x9E3779B97F4A7C15), weyl1 = UINT64_C(0xBB67AE8584CAA73B);
    uint64_t word0 = counter[0], word1 = counter[1], word2 = counter[2], word3 = counter[3];
    uint64_t key0 = key[0], key1 = key[1];
    for (int i = 0; i < 10; i++) {
        const uint128 product0 = (uint128)multiplier0 * word0;
        const uint128 product1 = (uint128)multiplier1 * word2;
        word0 = (uint64_t)(product1 >> 64) ^ word1 ^ key0;
        word1 = (uint64_t)product1;
        word2 = (uint64_t)(product0 >> 64) ^ word3 ^ key1;
        word3 = (uint64_t)product0;
        key0 += weyl0;
        key1 += weyl1;
    }
    block[0] = word0;
    block[1] = word1;
    block[2] = word2;
    block[3] = word3;
}

static void next_block(fed_rng *rng) {
    philox(rng->counter, rng->key, rng->block);
    rng->counter[0]++;
    rng->next_half = 0;
}

void fed_rng_init(fed_rng *rng, const fed_key *key) {
    *rng = (fed_rng){
        .key = {key->seed, key->client},
        .counter = {0, key->round, key->purpose, key->occurrence},
        .next_half = NUM_HALVES, /* the first draw makes the first block */
    };
}

static inline uint32_t next_u32(fed_rng *rng) {
    if (rng->next_half >= NUM_HALVES) {
        next_block(rng);
    }
    const unsigned half = rng->next_half++;
    return (uint32_t)(rng->block[half / 2] >> (32 * (half % 2)));
}

/* Skips the upper half of a word whose lower half has been read. */
static inline uint64_t next_u64(fed_rng *rng) {
    const unsigned word = (rng->next_half + 1) / 2;
    if (word < NUM_HALVES / 2) {
        rng->next_half = 2 * word + 2;
        return rng->block[word];
    }
    next_block(rng);
    rng->next_half = 2;
    return rng->block[0];
}

uint32_t fed_rng_u32(fed_rng *rng) { return next_u32(rng); }

uint64_t fed_rng_u64(fed_rng *rng) { return next_u64(rng); }

/* Lemire, "Fast random integer generation in an interval", 2019: the upper half of a product,
 * redrawn when its lower half is among the (2^32 mod bound) values that would favour some
 * results. */
uint32_t fed_rng_below(fed_rng *rng, uint32_t bound) {
    uint64_t product = (uint64_t)next_u32(rng) * bound;
    if ((uint32_t)product < bound) { /* rare: only now is the division worth it */
        const uint32_t num_biased = (uint32_t)(0u - bound) % bound;
        while ((uint32_t)product < num_biased) {
            product = (uint64_t)next_u32(rng) * bound;
        }
    }
    return (uint32_t)(product >> 32);
}

double fed_rng_uniform(fed_rng *rng) { return (double)(next_u64(rng) >> 11) * 0x1p-53; }

double fed_rng_normal(fed_rng *rng) {
    const double above_zero = 1.0 - fed_rng_uniform(rng); /* (0, 1]: its logarithm is finite */
    const double angle = TWO_PI * fed_rng_uniform(rng);
    return sqrt(-2.0 * log(above_zero)) * cos(angle);
}

/* Marsaglia and Tsang, "A simple method for generating gamma variables", 2000. */
static double gamma_from_one(fed_rng *rng, double shape) {
    const double d = shape - 1.0 / 3.0;
    const double c = 1.0 / sqrt(9.0 * d);
    for (;;) {
        const double normal = fed_rng_normal(rng);
        const double above_zero = 1.0 - fed_rng_uniform(rng);
        const double root = 1.0 + c * normal;
        const double v = root * root * root;
        if (v > 0.0 && log(above_zero) < 0.5 * normal * normal + d - d * v + d * log(v)) {
            return d * v;
        }
    }
}

double fed_rng_gamma(fed_rng *rng, double shape) {
    if (shape >= 1.0) {
        return gamma_from_one(rng, shape);
    }
    /* Gamma(a) is Gamma(a + 1) U^(1/a). */
    const double larger = gamma_from_one(rng, shape + 1.0);
    return larger * pow(1.0 - fed_rng_uniform(rng), 1.0 / shape);
}

void fed_rng_fill(const fed_key *key, uint64_t *values, size_t num_values) {
    fed_rng_fill_from(key, 0, values, num_values);
}

void fed_rng_fill_from(const fed_key *key, size_t first, uint64_t *values, size_t num_values) {
    const size_t block_words = NUM_HALVES / 2;
    fed_rng rng;
    fed_rng_init(&rng, key);
    rng.counter[0] = first / block_words;
    for (size_t i = 0; i < first % block_words; i++) {
        next_u64(&rng);
    }
    for (size_t i = 0; i < num_values; i++) {
        values[i] = next_u64(&rng);
    }
}

void fed_rng_fill_u32(fed_rng *rng, uint32_t *values, size_t num_values) {
    for (size_t i = 0; i < num_values; i++) {
        values[i] = next_u32(rng);
    }
}
