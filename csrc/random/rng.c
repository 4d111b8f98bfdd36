/* SPDX-License-Identifier: Apache-2.0
 *
 * Random numbers: the counter-based generator Philox-4x64-10 and the distributions that the core
 * uses. A stream is a pure function of its key, so results do not depend on the order of draws. The
 * raw output equals that of numpy.random.Philox, which increments its counter before the first
 * block: our block b is NumPy's block for a counter that is lower by one. Built with
 * -ffp-contract=off, like synthetic.c, so that draws on two machines can only differ by the last
 * bit of their libm.
 */
#include "fed.h"
#include "kernels/kernels.h"
#include "kernels/philox.h"

#include <math.h>
#include <string.h>

enum { BLOCK_WORDS = 4, GROUP_WORDS = BLOCK_WORDS * FED_PHILOX_BLOCKS };
_Static_assert((size_t)GROUP_WORDS == (size_t)FED_RNG_WORDS, "a stream buffers a group of blocks");
#define TWO_PI 6.283185307179586476925

static inline void philox(const uint64_t counter[4], const uint64_t key[2], uint64_t block[4]) {
    uint64_t key0 = key[0], key1 = key[1];
    for (int w = 0; w < 4; w++) block[w] = counter[w];
    for (int i = 0; i < FED_PHILOX_ROUNDS; i++) {
        fed_philox_round(block, key0, key1);
        key0 += FED_PHILOX_WEYL0;
        key1 += FED_PHILOX_WEYL1;
    }
}

/* Makes the next words of a stream: one block at its beginning, because many streams are short, and
 * then whole groups. The blocks of a group are computed together, so that the processor need not
 * wait for the products of one block. */
static void next_words(fed_rng *rng) {
    const unsigned num_blocks = rng->counter[0] == 0 ? 1 : FED_PHILOX_BLOCKS;
    if (num_blocks == 1)
        philox(rng->counter, rng->key, rng->words);
    else
        fed_active_kernels()->philox_group(rng->counter, rng->key, rng->words);
    rng->counter[0] += num_blocks;
    rng->num_halves = 2 * BLOCK_WORDS * num_blocks;
    rng->next_half = 0;
}

void fed_rng_init(fed_rng *rng, const fed_key *key) {
    rng->key[0] = key->seed;
    rng->key[1] = key->client;
    rng->counter[0] = 0;
    rng->counter[1] = key->round;
    rng->counter[2] = key->purpose;
    rng->counter[3] = key->occurrence;
    rng->next_half = rng->num_halves = 0; /* the first draw makes the first block */
}

static inline uint32_t next_u32(fed_rng *rng) {
    if (rng->next_half >= rng->num_halves) {
        next_words(rng);
    }
    const unsigned half = rng->next_half++;
    return (uint32_t)(rng->words[half / 2] >> (32 * (half % 2)));
}

/* Skips the upper half of a word whose lower half has been read. */
static inline uint64_t next_u64(fed_rng *rng) {
    unsigned word = (rng->next_half + 1) / 2;
    if (2 * word >= rng->num_halves) {
        next_words(rng);
        word = 0;
    }
    rng->next_half = 2 * word + 2;
    return rng->words[word];
}

uint32_t fed_rng_u32(fed_rng *rng) { return next_u32(rng); }

uint64_t fed_rng_u64(fed_rng *rng) { return next_u64(rng); }

/* Lemire, "Fast random integer generation in an interval", 2019: the upper half of a product,
 * redrawn when its lower half is among the (2^32 mod bound) values that would favour some
 * results. */
uint32_t fed_rng_below(fed_rng *rng, uint32_t bound) {
    uint64_t product = (uint64_t)next_u32(rng) * bound;
    if ((uint32_t)product < bound) { /* rare, so the division is done only here */
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

/* The logarithm of a gamma variable. For a small shape the variable itself can be rounded to 0. */
static double log_of_gamma(fed_rng *rng, double shape) {
    if (shape >= 1.0) {
        return log(gamma_from_one(rng, shape));
    }
    const double larger = gamma_from_one(rng, shape + 1.0);
    return log(larger) + log(1.0 - fed_rng_uniform(rng)) / shape;
}

double fed_rng_beta(fed_rng *rng, double shape) {
    const double first = log_of_gamma(rng, shape);
    const double second = log_of_gamma(rng, shape);
    return 1.0 / (1.0 + exp(second - first));
}

/* Makes whole groups of blocks, beginning at the counter, and advances it. Returns the number of
 * words. */
static size_t fill_groups(uint64_t counter[4], const uint64_t key[2], uint64_t *words,
                          size_t num_words) {
    const fed_kernels *kernels = fed_active_kernels();
    size_t done = 0;
    for (; num_words - done >= GROUP_WORDS; done += GROUP_WORDS) {
        kernels->philox_group(counter, key, words + done);
        counter[0] += FED_PHILOX_BLOCKS;
    }
    return done;
}

void fed_rng_fill(const fed_key *key, uint64_t *values, size_t num_values) {
    fed_rng_fill_from(key, 0, values, num_values);
}

void fed_rng_fill_from(const fed_key *key, size_t first, uint64_t *values, size_t num_values) {
    const uint64_t halves[2] = {key->seed, key->client};
    uint64_t counter[4] = {first / BLOCK_WORDS, key->round, key->purpose, key->occurrence};
    size_t skipped = first % BLOCK_WORDS;
    size_t done = skipped == 0 ? fill_groups(counter, halves, values, num_values) : 0;
    for (; done < num_values; counter[0]++) {
        uint64_t block[BLOCK_WORDS];
        philox(counter, halves, block);
        for (; skipped < BLOCK_WORDS && done < num_values; skipped++) {
            values[done++] = block[skipped];
        }
        skipped = 0;
    }
}

void fed_rng_fill_u32(fed_rng *rng, uint32_t *values, size_t num_values) {
    size_t i = 0;
    while (i < num_values) {
        if (rng->next_half < rng->num_halves || num_values - i < 2 * GROUP_WORDS) {
            values[i++] = next_u32(rng);
            continue;
        }
        uint64_t words[GROUP_WORDS];
        fill_groups(rng->counter, rng->key, words, GROUP_WORDS);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        memcpy(values + i, words, sizeof words);
#else
        for (size_t w = 0; w < GROUP_WORDS; w++) {
            values[i + 2 * w] = (uint32_t)words[w];
            values[i + 2 * w + 1] = (uint32_t)(words[w] >> 32);
        }
#endif
        i += 2 * GROUP_WORDS;
    }
}

void fed_rng_add_normal(const fed_key *key, size_t first, double scale, double *values,
                        size_t num_values) {
    const fed_kernels *kernels = fed_active_kernels();
    uint64_t words[FED_NORMAL_GROUP];
    for (size_t done = 0; done < num_values; done += FED_NORMAL_GROUP) {
        fed_rng_fill_from(key, first + done, words, FED_NORMAL_GROUP);
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
