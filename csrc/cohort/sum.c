/* SPDX-License-Identifier: Apache-2.0
 * The ordered, weighted sum of model deltas or other vectors, in float64. Within a block of
 * FED_BLOCK_CLIENTS vectors are added left to right. Blocks are combined by a fixed binary tree
 * over their index. The tree is stored as a binary counter: level l has a value if bit l of the
 * number of blocks is set, and is the sum of 2^l consecutive blocks. Memory therefore grows with
 * the logarithm of the cohort. Coordinates are independent, so ranges of them can be added in any
 * order. */
#include "cohort.h"
#include "denormals.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 48 };

struct fed_sum {
    int is_packed; /* 1: of packed parameters of `net` */
    fed_net net;
    size_t num_values;
    size_t num_blocks;
    int closed; /* the last block was short: no other may follow */
    double weight;
    double *levels[MAX_LEVELS]; /* level l has a value if bit l of num_blocks is set */
    double *partial; /* the unfinished block of fed_sum_add; if packed, fed_sum_total's scratch */
    double partial_weight;
    size_t num_partial;
};

static double *new_zeros(size_t num_values) {
    if (num_values > PTRDIFF_MAX / sizeof(double)) return NULL;
    double *values = fed_allocate(num_values * sizeof *values);
    if (values != NULL) memset(values, 0, num_values * sizeof *values);
    return values;
}

static fed_sum *sum_of(fed_sum sum) {
    fed_sum *made = malloc(sizeof *made);
    if (made == NULL) return NULL;
    *made = sum;
    made->partial = new_zeros(sum.num_values);
    if (made->partial != NULL) return made;
    fed_sum_free(made);
    return NULL;
}

fed_sum *fed_sum_new(size_t num_values) { return sum_of((fed_sum){.num_values = num_values}); }

fed_sum *fed_sum_new_of(const fed_model *model) {
    fed_sum sum = {.is_packed = 1};
    if (fed_net_init(&sum.net, model) != FED_OK) return NULL;
    sum.num_values = sum.net.size;
    return sum_of(sum);
}

void fed_sum_free(fed_sum *sum) {
    if (sum == NULL) return;
    for (int l = 0; l < MAX_LEVELS; l++) free(sum->levels[l]);
    free(sum->partial);
    free(sum);
}

void fed_sum_reset(fed_sum *sum) {
    sum->num_blocks = 0;
    sum->closed = 0;
    sum->weight = 0;
    memset(sum->partial, 0, sum->num_values * sizeof *sum->partial);
    sum->partial_weight = 0;
    sum->num_partial = 0;
}

int fed_sum_takes(const fed_sum *sum, const fed_net *net) {
    return sum->is_packed && sum->num_values == net->size && !sum->closed;
}

/* Allocates the levels that num_blocks blocks need. */
static int reserve_levels(fed_sum *sum, size_t num_blocks) {
    for (size_t l = 0; num_blocks >> l != 0; l++) {
        if (sum->levels[l] == NULL) sum->levels[l] = new_zeros(sum->num_values);
        if (sum->levels[l] == NULL) return FED_ERR_NO_MEMORY;
    }
    return FED_OK;
}

/* Adds a range of a finished block, which follows num_blocks others, to the tree, and sets the
 * values to zero. */
static void push_range(const fed_sum *sum, size_t num_blocks, double *values, size_t first,
                       size_t count) {
    size_t level = 0;
    for (; num_blocks >> level & 1; level++) {
        const double *older = sum->levels[level] + first;
        for (size_t v = 0; v < count; v++) values[v] = older[v] + values[v];
    }
    memcpy(sum->levels[level] + first, values, count * sizeof *values);
    memset(values, 0, count * sizeof *values);
}

int fed_sum_push(fed_sum *sum, double *values, double weight, int closed) {
    const int status = reserve_levels(sum, sum->num_blocks + 1);
    if (status != FED_OK) return status;
    push_range(sum, sum->num_blocks, values, 0, sum->num_values);
    sum->num_blocks++;
    sum->weight += weight;
    sum->closed = closed;
    return FED_OK;
}

/* Adds a range of each vector. The range of all levels stays in the cache. */
static void add_range(const fed_sum *sum, const float *const *vectors, const double *weights,
                      size_t num_vectors, size_t first, size_t count) {
    const fed_kernels *kernels = fed_active_kernels();
    double *partial = sum->partial + first;
    size_t num_blocks = sum->num_blocks, num_partial = sum->num_partial;
    for (size_t i = 0; i < num_vectors;) {
        const size_t left = num_vectors - i, room = FED_BLOCK_CLIENTS - num_partial;
        const size_t num = left < room ? left : room;
        kernels->add_vectors(partial, vectors + i, weights + i, num, first, count);
        i += num;
        num_partial += num;
        if (num_partial < FED_BLOCK_CLIENTS) break;
        push_range(sum, num_blocks++, partial, first, count);
        num_partial = 0;
    }
}

int fed_sum_add(fed_sum *sum, const float *const *vectors, const double *weights,
                size_t num_vectors) {
    enum { RANGE = 4096 }; /* 32 KB of each level: fastest of 512 to 16384 */
    if (sum->is_packed) return FED_ERR_ARGUMENT;
    for (size_t i = 0; i < num_vectors; i++)
        if (!isfinite(weights[i]) || weights[i] < 0) return FED_ERR_ARGUMENT;
    const size_t num_whole = (sum->num_partial + num_vectors) / FED_BLOCK_CLIENTS;
    const int status = reserve_levels(sum, sum->num_blocks + num_whole);
    if (status != FED_OK) return status;
    const fp_mode before = denormals_off();
    for (size_t first = 0; first < sum->num_values; first += RANGE) {
        const size_t left = sum->num_values - first;
        add_range(sum, vectors, weights, num_vectors, first, left < RANGE ? left : RANGE);
    }
    fp_restore(before);
    for (size_t i = 0; i < num_vectors; i++) sum->partial_weight += weights[i];
    sum->num_blocks += num_whole;
    sum->num_partial = (sum->num_partial + num_vectors) % FED_BLOCK_CLIENTS;
    return FED_OK;
}

void fed_sum_total(fed_sum *sum, double *total, double *weight) {
    *weight = sum->weight + sum->partial_weight;
    if (sum->num_values == 0) return; /* total may be NULL */
    const fp_mode before = denormals_off();
    double *folded = sum->is_packed ? sum->partial : total;
    if (sum->is_packed) {
        memset(folded, 0, sum->num_values * sizeof *folded);
    } else {
        memcpy(folded, sum->partial, sum->num_values * sizeof *folded);
    }
    for (size_t l = 0; sum->num_blocks >> l != 0; l++)
        if (sum->num_blocks >> l & 1)
            for (size_t v = 0; v < sum->num_values; v++) folded[v] += sum->levels[l][v];
    if (sum->is_packed) fed_net_unpack(&sum->net, folded, total);
    fp_restore(before);
}

int fed_next_client_vector(size_t num_params, double scale, const float *sent, float *delta) {
    const fp_mode before = denormals_off();
    const int is_finite =
        fed_active_kernels()->next_client_vector(delta, sent, num_params, (float)scale);
    fp_restore(before);
    return is_finite;
}

void fed_add_change(size_t num_params, const float *before, const float *after, double *change) {
    const fp_mode mode = denormals_off();
    fed_active_kernels()->add_change(change, after, before, num_params);
    fp_restore(mode);
}
