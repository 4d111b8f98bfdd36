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
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

#define NUM_HALVES 8 /* 32-bit halves in a block */
#define TWO_PI 6.283185307179586476925

__extension__ typedef unsigned __int128 uint128;

#define PHILOX_WEYL0 UINT64_C(0x9E3779B97F4A7C15)
#define PHILOX_WEYL1 UINT64_C(0xBB67AE8584CAA73B)

static inline void philox_round(uint64_t words[4], uint64_t key0, uint64_t key1) {
    const uint128 product0 = (uint128)UINT64_C(0xD2E7470EE14C6C93) * words[0];
    const uint128 product1 = (uint128)UINT64_C(0xCA5A826395121157) * words[2];
    words[0] = (uint64_t)(product1 >> 64) ^ words[1] ^ key0;
    words[1] = (uint64_t)product1;
    words[2] = (uint64_t)(product0 >> 64) ^ words[3] ^ key1;
    words[3] = (uint64_t)product0;
}

static inline void philox(const uint64_t counter[4], const uint64_t key[2], uint64_t block[4]) {
    uint64_t key0 = key[0], key1 = key[1];
    for (int w = 0; w < 4; w++) block[w] = counter[w];
    for (int i = 0; i < 10; i++) {
        philox_round(block, key0, key1);
        key0 += PHILOX_WEYL0;
        key1 += PHILOX_WEYL1;
    }
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
    enum { BLOCK_WORDS = NUM_HALVES / 2 };
    const uint64_t halves[2] = {key->seed, key->client};
    uint64_t counter[4] = {first / BLOCK_WORDS, key->round, key->purpose, key->occurrence};
    size_t skipped = first % BLOCK_WORDS;
    for (size_t done = 0; done < num_values; counter[0]++) {
        if (skipped == 0 && num_values - done >= BLOCK_WORDS) {
            philox(counter, halves, values + done);
            done += BLOCK_WORDS;
            continue;
        }
        uint64_t block[BLOCK_WORDS];
        philox(counter, halves, block);
        for (; skipped < BLOCK_WORDS && done < num_values; skipped++) {
            values[done++] = block[skipped];
        }
        skipped = 0;
    }
}

void fed_rng_add_normal(const fed_key *key, double scale, double *values, size_t num_values) {
    const fed_kernels *kernels = fed_active_kernels();
    uint64_t words[FED_NORMAL_GROUP];
    for (size_t done = 0; done < num_values; done += FED_NORMAL_GROUP) {
        fed_rng_fill_from(key, done, words, FED_NORMAL_GROUP);
        if (num_values - done >= FED_NORMAL_GROUP) {
            kernels->add_normal(words, FED_NORMAL_GROUP / 2, scale, values + done);
            continue;
        }
        double group[FED_NORMAL_GROUP] = {0};
        memcpy(group, values + done, (num_values - done) * sizeof *group);
        kernels->add_normal(words, FED_NORMAL_GROUP / 2, scale, group);
        memcpy(values + done, group, (num_values - done) * sizeof *group);
    }
}

/* Writes the halves of two blocks in a row, computed together: a block alone mostly waits for its
 * own products. */
static inline void philox_pair(const uint64_t counter[4], const uint64_t key[2],
                               uint32_t halves[2 * NUM_HALVES]) {
    uint64_t first[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint64_t second[4] = {counter[0] + 1, counter[1], counter[2], counter[3]};
    uint64_t key0 = key[0], key1 = key[1];
    _Pragma("GCC unroll 10") for (int i = 0; i < 10; i++) {
        philox_round(first, key0, key1);
        philox_round(second, key0, key1);
        key0 += PHILOX_WEYL0;
        key1 += PHILOX_WEYL1;
    }
    for (size_t h = 0; h < NUM_HALVES; h++) {
        halves[h] = (uint32_t)(first[h / 2] >> (32 * (h % 2)));
        halves[NUM_HALVES + h] = (uint32_t)(second[h / 2] >> (32 * (h % 2)));
    }
}

void fed_rng_fill_u32(fed_rng *rng, uint32_t *values, size_t num_values) {
    size_t i = 0;
    while (i < num_values) {
        if (rng->next_half >= NUM_HALVES && num_values - i >= 2 * NUM_HALVES) {
            philox_pair(rng->counter, rng->key, values + i);
            rng->counter[0] += 2;
            i += 2 * NUM_HALVES;
        } else {
            values[i++] = next_u32(rng);
        }
    }
}
