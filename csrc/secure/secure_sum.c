/* SPDX-License-Identifier: Apache-2.0
 * The arithmetic of a secure aggregation (Bonawitz et al., "Practical Secure Aggregation for
 * Privacy-Preserving Machine Learning", CCS 2017), simulated: clients quantise, each pair of them
 * agrees on masks that cancel in the sum, and the masks of clients that drop out are recovered.
 * Integers are summed modulo a power of two, so that every order gives the same result. Coordinates
 * are independent, and threads take slices of them. The file is built with -ffp-contract=off, so
 * that all machines quantise alike. */
#include "denormals.h"
#include "fed.h"
#include "memory.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_MASK_BITS = 62,
    LARGEST_SLICE = 4096, /* coordinates */
    SLICE_WORDS = 1 << 18 /* of all clients together: 2 MiB */
};

typedef struct sum_job {
    const fed_secure_terms *terms;
    double scale; /* levels per unit of value */
    uint64_t modulus_mask;
    size_t slice;      /* coordinates */
    uint64_t *scratch; /* [num_workers, num_clients + 1, slice] */
    uint64_t *total, *sent;
    uint64_t *num_clipped; /* [num_workers] */
} sum_job;

static int reports(const fed_secure_terms *terms, size_t client) {
    return terms->weights[client] > 0;
}

/* Levels for each unit of value. */
static double scale_of(const fed_secure_terms *terms) {
    return (double)terms->top_level / (terms->high - terms->low);
}

int fed_secure_check(const fed_secure_terms *terms) {
    if (terms->num_params == 0 || terms->top_level == 0) return 0;
    if (terms->top_level > UINT64_C(1) << FED_MAX_LEVEL_BITS) return 0;
    if (terms->mask_bits == 0 || terms->mask_bits > MAX_MASK_BITS) return 0;
    const uint64_t largest_sum = (UINT64_C(1) << terms->mask_bits) - 1;
    if (terms->num_clients > largest_sum / terms->top_level) return 0;
    if (!isfinite(terms->low) || !isfinite(terms->high) || !(terms->clip > 0)) return 0;
    if (!(scale_of(terms) > 0) || !isfinite(scale_of(terms))) return 0;
    uint64_t left = largest_sum; /* what further weights may add */
    for (size_t i = 0; i < terms->num_clients; i++) {
        if (terms->weights[i] > left) return 0;
        left -= terms->weights[i];
        if (!isfinite(terms->factors[i]) || terms->factors[i] < 0) return 0;
    }
    return 1;
}

static double within(double x, double low, double high) {
    return x > high ? high : x < low ? low : x;
}

/* Quantises coordinates of a client: see `fed_secure_terms`. Rounds to nearest, halves to even.
 * With `rounding_keys` it rounds at random: up with a probability equal to the fraction. Returns
 * the number of coordinates that were clipped. */
static uint64_t quantise(const sum_job *job, size_t client, size_t first, size_t count,
                         uint64_t *values) {
    const fed_secure_terms *terms = job->terms;
    const float *row = terms->rows[client] + first;
    const double *center = terms->center == NULL ? NULL : terms->center + first;
    const double factor = terms->factors[client], clip = terms->clip, scale = job->scale;
    const double low = terms->low, high = terms->high, most = (double)terms->top_level;
    uint64_t num_clipped = 0;
    if (terms->rounding_keys != NULL)
        fed_rng_fill_from(&terms->rounding_keys[client], first, values, count);
    for (size_t i = 0; i < count; i++) {
        const double given = center == NULL ? (double)row[i] : (double)row[i] - center[i];
        const double x = terms->takes_signs ? (double)((given > 0) - (given < 0)) : given;
        const double clipped = within(x, -clip, clip), product = factor * clipped;
        const double value = within(product, low, high), exact = (value - low) * scale;
        const double level = exact < most ? exact : most; /* `exact` may be slightly above `most` */
        num_clipped += clipped != x || value != product;
        if (terms->rounding_keys == NULL) {
            const double even = 0x1p52; /* adding it rounds to whole numbers, halves to even */
            values[i] = (uint64_t)((level + even) - even);
        } else {
            const double below = floor(level), uniform = (double)(values[i] >> 11) * 0x1p-53;
            values[i] = (uint64_t)below + (uniform < level - below);
        }
    }
    return num_clipped;
}

/* Writes the mask of a pair, which client i adds and client j, i < j, subtracts. */
static void draw_mask(const sum_job *job, size_t i, size_t j, size_t first, size_t count,
                      uint64_t *mask) {
    fed_key key = job->terms->masks;
    key.client += i;
    key.occurrence += j;
    fed_rng_fill_from(&key, first, mask, count);
}

static void add(uint64_t *values, const uint64_t *others, size_t count) {
    for (size_t v = 0; v < count; v++) values[v] += others[v];
}

static void subtract(uint64_t *values, const uint64_t *others, size_t count) {
    for (size_t v = 0; v < count; v++) values[v] -= others[v];
}

/* Sums one slice as clients and server do. Words wrap modulo 2^64, a multiple of the modulus, and
 * are reduced at the end. */
static void sum_slice(void *context, size_t part, int worker) {
    const sum_job *job = context;
    const fed_secure_terms *terms = job->terms;
    const size_t num_clients = terms->num_clients, num_values = terms->num_params + 1;
    const size_t first = part * job->slice;
    const size_t left = num_values - first, count = left < job->slice ? left : job->slice;
    const size_t num_coordinates = first + count == num_values ? count - 1 : count;
    uint64_t *rows = job->scratch + (size_t)worker * (num_clients + 1) * job->slice;
    uint64_t *mask = rows + num_clients * job->slice, *total = job->total + first;
    for (size_t i = 0; i < num_clients; i++) {
        uint64_t *row = rows + i * job->slice;
        if (!reports(terms, i)) continue;
        job->num_clipped[worker] += quantise(job, i, first, num_coordinates, row);
        if (num_coordinates < count) row[count - 1] = terms->weights[i];
    }
    for (size_t i = 0; i < num_clients; i++) {
        for (size_t j = i + 1; j < num_clients; j++) {
            if (!reports(terms, i) && !reports(terms, j)) continue;
            draw_mask(job, i, j, first, count, mask);
            if (reports(terms, i)) add(rows + i * job->slice, mask, count);
            if (reports(terms, j)) subtract(rows + j * job->slice, mask, count);
        }
    }
    /* From here on the server computes, with the masked rows of the clients that report. */
    memset(total, 0, count * sizeof *total);
    for (size_t i = 0; i < num_clients; i++) {
        uint64_t *row = rows + i * job->slice;
        if (!reports(terms, i)) continue;
        for (size_t v = 0; v < count; v++) row[v] &= job->modulus_mask;
        if (job->sent != NULL) memcpy(job->sent + i * num_values + first, row, count * sizeof *row);
        add(total, row, count);
    }
    /* The keys of clients that dropped out are recovered from the shares of the other clients. */
    for (size_t i = 0; i < num_clients; i++) {
        for (size_t j = i + 1; j < num_clients; j++) {
            if (reports(terms, i) == reports(terms, j)) continue;
            draw_mask(job, i, j, first, count, mask);
            if (reports(terms, i))
                subtract(total, mask, count);
            else
                add(total, mask, count);
        }
    }
    for (size_t v = 0; v < count; v++) total[v] &= job->modulus_mask;
}

int fed_secure_sum(int num_threads, const fed_secure_terms *terms, uint64_t *total, uint64_t *sent,
                   uint64_t *num_clipped) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS || !fed_secure_check(terms))
        return FED_ERR_ARGUMENT;
    const size_t rows = terms->num_clients + 1, num_values = terms->num_params + 1;
    size_t slice = SLICE_WORDS / rows / 4 * 4; /* words of the generator come in blocks of 4 */
    slice = slice < 64 ? 64 : slice > LARGEST_SLICE ? LARGEST_SLICE : slice;
    const size_t num_parts = (num_values + slice - 1) / slice;
    const size_t num_workers = num_parts < (size_t)num_threads ? num_parts : (size_t)num_threads;
    fed_carver carver = {0};
    uint64_t *scratch = NULL, *clipped = NULL;
    for (int pass = 0; pass < 2; pass++) {
        scratch = fed_carve(&carver, num_workers * rows, slice * sizeof *scratch);
        clipped = fed_carve(&carver, num_workers, sizeof *clipped);
        if (pass == 0) {
            carver.base = carver.used == SIZE_MAX ? NULL : fed_allocate(carver.used);
            if (carver.base == NULL) return FED_ERR_NO_MEMORY;
            carver.used = 0;
        }
    }
    memset(clipped, 0, num_workers * sizeof *clipped);
    if (sent != NULL) memset(sent, 0, terms->num_clients * num_values * sizeof *sent);
    sum_job job = {
        .terms = terms,
        .scale = scale_of(terms),
        .modulus_mask = (UINT64_C(1) << terms->mask_bits) - 1,
        .slice = slice,
        .scratch = scratch,
        .total = total,
        .sent = sent,
        .num_clipped = clipped,
    };
    const fp_mode before = denormals_off(); /* as in the threads of fed_share */
    fed_share((int)num_workers, num_parts, sum_slice, &job);
    fp_restore(before);
    *num_clipped = 0;
    for (size_t w = 0; w < num_workers; w++) *num_clipped += clipped[w];
    free(carver.base);
    return FED_OK;
}
