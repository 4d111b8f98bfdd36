/* SPDX-License-Identifier: Apache-2.0
 * The ordered, weighted sum of model deltas or other vectors, in float64. Within a block of
 * FED_BLOCK_CLIENTS vectors are added left to right. Blocks are combined by a fixed binary tree
 * over their index. The tree is stored as a binary counter: level l has a value if bit l of the
 * number of blocks is set, and is the sum of 2^l consecutive blocks. Memory therefore grows with
 * the logarithm of the cohort. Coordinates are independent, so ranges of them can be added in any
 * order. */
#include "cohort.h"
#include "denormals.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 48 };

struct fed_sum {
    int is_packed; /* 1: the vectors are packed parameters of `net` */
    fed_net net;
    size_t num_values;
    size_t num_blocks;
    int closed; /* the last block was short: no block may follow */
    double weight;
    double *levels[MAX_LEVELS]; /* level l has a value if bit l of num_blocks is set */
    double *partial; /* the unfinished block of fed_sum_add; if packed, scratch of fed_sum_total
                        for one part: see largest_part */
    double partial_weight;
    size_t num_partial;
};

static double *new_zeros(size_t num_values) {
    if (num_values > PTRDIFF_MAX / sizeof(double)) return NULL;
    double *values = fed_allocate(num_values * sizeof *values);
    if (values != NULL) memset(values, 0, num_values * sizeof *values);
    return values;
}

/* The most values that fed_sum_total unpacks at a time: those of a stage, or all moving
 * statistics. */
static size_t largest_part(const fed_net *net) {
    size_t most = 0;
    for (size_t s = 0; s < net->num_stages; s++)
        most = fed_larger(most, net->stages[s].packed_size);
    return fed_larger(most, net->size - net->num_trained);
}

static fed_sum *sum_of(fed_sum sum) {
    fed_sum *made = malloc(sizeof *made);
    if (made == NULL) return NULL;
    *made = sum;
    made->partial = new_zeros(sum.is_packed ? largest_part(&sum.net) : sum.num_values);
    if (made->partial != NULL) return made;
    free(made);
    return NULL;
}

fed_sum *fed_sum_new(size_t num_values) { return sum_of((fed_sum){.num_values = num_values}); }

fed_sum *fed_sum_new_of(const fed_model *model) {
    fed_sum sum = {.is_packed = 1};
    fed_sum *made = NULL;
    if (fed_net_init(&sum.net, model) == FED_OK) {
        sum.num_values = sum.net.size;
        made = sum_of(sum);
    }
    if (made == NULL) fed_net_free(&sum.net);
    return made;
}

void fed_sum_free(fed_sum *sum) {
    if (sum == NULL) return;
    for (int l = 0; l < MAX_LEVELS; l++) free(sum->levels[l]);
    free(sum->partial);
    fed_net_free(&sum->net);
    free(sum);
}

void fed_sum_reset(fed_sum *sum) {
    sum->num_blocks = 0;
    sum->closed = 0;
    sum->weight = 0;
    if (!sum->is_packed) memset(sum->partial, 0, sum->num_values * sizeof *sum->partial);
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

static void add_older(const double *older, size_t num_values, double *values /* in-out */) {
    for (size_t v = 0; v < num_values; v++) values[v] = older[v] + values[v];
}

/* Adds a range of a finished block to the tree, which has num_blocks blocks, and sets the values of
 * the range to zero. */
static void push_range(const fed_sum *sum, size_t num_blocks, double *values, size_t first,
                       size_t count) {
    size_t level = 0;
    for (; num_blocks >> level & 1; level++) add_older(sum->levels[level] + first, count, values);
    memcpy(sum->levels[level] + first, values, count * sizeof *values);
    memset(values, 0, count * sizeof *values);
}

void fed_sum_push(fed_sum *sum, double **values, double weight, int closed) {
    size_t level = 0;
    for (; sum->num_blocks >> level & 1; level++)
        add_older(sum->levels[level], sum->num_values, *values);
    double *unused = sum->levels[level];
    sum->levels[level] = *values;
    *values = unused;
    sum->num_blocks++;
    sum->weight += weight;
    sum->closed = closed;
}

double *fed_sum_take_unused(fed_sum *sum) {
    for (size_t l = 0; l < MAX_LEVELS; l++) {
        double *values = sum->levels[l];
        if (values == NULL || sum->num_blocks >> l & 1) continue;
        sum->levels[l] = NULL;
        return values;
    }
    return NULL;
}

/* Adds a range of a whole block, which follows num_blocks others, to the tree. */
static void add_block(const fed_sum *sum, size_t num_blocks, const float *const *vectors,
                      const double *weights, size_t from, size_t first, size_t count) {
    const double *older[MAX_LEVELS];
    size_t level = 0;
    for (; num_blocks >> level & 1; level++) older[level] = sum->levels[level] + first;
    fed_active_kernels()->sum_eight(vectors, weights, from, count, older, level,
                                    sum->levels[level] + first);
}

/* 1 if no weight is 0: a vector with weight 0 must not be read, because it may hold NaN. */
static int weights_are_positive(const double *weights, size_t num_vectors) {
    for (size_t i = 0; i < num_vectors; i++)
        if (!(weights[i] > 0)) return 0;
    return 1;
}

enum { RANGE = 4096 }; /* 32 KB of each level: fastest of 512 to 16384 */

/* Adds a range of each vector, which begins at `from`, to the range of the sum that begins at
 * `first`. The range of all levels stays in the cache. */
static void add_range(const fed_sum *sum, const float *const *vectors, const double *weights,
                      size_t num_vectors, size_t from, size_t first, size_t count) {
    const fed_kernels *kernels = fed_active_kernels();
    double *partial = sum->partial + first;
    size_t num_blocks = sum->num_blocks, num_partial = sum->num_partial;
    for (size_t i = 0; i < num_vectors;) {
        const size_t left = num_vectors - i, room = FED_BLOCK_CLIENTS - num_partial;
        const size_t num = left < room ? left : room;
        if (num == FED_BLOCK_CLIENTS && weights_are_positive(weights + i, num)) {
            add_block(sum, num_blocks++, vectors + i, weights + i, from, first, count);
            i += num;
            continue;
        }
        kernels->add_vectors(partial, vectors + i, weights + i, num, from, count);
        i += num;
        num_partial += num;
        if (num_partial < FED_BLOCK_CLIENTS) break;
        push_range(sum, num_blocks++, partial, first, count);
        num_partial = 0;
    }
}

static int weights_are_valid(const double *weights, size_t num_vectors) {
    for (size_t i = 0; i < num_vectors; i++)
        if (!isfinite(weights[i]) || weights[i] < 0) return 0;
    return 1;
}

int fed_sum_add(fed_sum *sum, const float *const *vectors, const double *weights,
                size_t num_vectors) {
    if (sum->is_packed || !weights_are_valid(weights, num_vectors)) return FED_ERR_ARGUMENT;
    const size_t num_whole = (sum->num_partial + num_vectors) / FED_BLOCK_CLIENTS;
    const int status = reserve_levels(sum, sum->num_blocks + num_whole);
    if (status != FED_OK) return status;
    const fp_mode before = denormals_off();
    for (size_t first = 0; first < sum->num_values; first += RANGE) {
        const size_t left = sum->num_values - first;
        add_range(sum, vectors, weights, num_vectors, first, first, left < RANGE ? left : RANGE);
    }
    fp_restore(before);
    for (size_t i = 0; i < num_vectors; i++) sum->partial_weight += weights[i];
    sum->num_blocks += num_whole;
    sum->num_partial = (sum->num_partial + num_vectors) % FED_BLOCK_CLIENTS;
    return FED_OK;
}

/* Adds values first..first+num-1 of the finished blocks to the same values of the unfinished
 * block. */
static void fold(const fed_sum *sum, size_t first, size_t num, double *folded /* in-out [num] */) {
    for (size_t l = 0; sum->num_blocks >> l != 0; l++)
        if (sum->num_blocks >> l & 1)
            for (size_t v = 0; v < num; v++) folded[v] += sum->levels[l][first + v];
}

/* Unpacks one stage at a time, so that no second vector of the whole net is needed. */
static void unpack_total(const fed_sum *sum, double *total) {
    for (size_t s = 0; s < sum->net.num_stages; s++) {
        const fed_stage *stage = &sum->net.stages[s];
        if (stage->packed_size == 0) continue;
        memset(sum->partial, 0, stage->packed_size * sizeof *sum->partial);
        fold(sum, stage->start, stage->packed_size, sum->partial);
        stage->ops->unpack(stage, sum->partial, total);
    }
    const size_t first = sum->net.num_trained, num = sum->net.size - first;
    if (num == 0) return;
    memset(sum->partial, 0, num * sizeof *sum->partial);
    fold(sum, first, num, sum->partial);
    fed_net_unpack_moving(&sum->net, sum->partial, total);
}

void fed_sum_total(fed_sum *sum, double *total, double *weight) {
    *weight = sum->weight + sum->partial_weight;
    if (sum->num_values == 0) return; /* total may be NULL */
    const fp_mode before = denormals_off();
    if (sum->is_packed) {
        unpack_total(sum, total);
    } else {
        memcpy(total, sum->partial, sum->num_values * sizeof *total);
        fold(sum, 0, sum->num_values, total);
    }
    fp_restore(before);
}

/* ---- A sum of vectors that are all given at once --------------------------------------------- */

typedef struct summing {
    const float *const *vectors;
    const double *weights;
    size_t num_vectors, num_values;
    double *total;
    fed_sum **sums; /* [num_threads], of RANGE values each */
} summing;

static void sum_range(void *context, size_t range, int worker) {
    const summing *all = context;
    fed_sum *sum = all->sums[worker];
    const size_t first = range * RANGE, left = all->num_values - first;
    const size_t count = left < RANGE ? left : RANGE;
    sum->num_blocks = 0;
    memset(sum->partial, 0, count * sizeof *sum->partial);
    add_range(sum, all->vectors, all->weights, all->num_vectors, first, 0, count);
    sum->num_blocks = all->num_vectors / FED_BLOCK_CLIENTS;
    memcpy(all->total + first, sum->partial, count * sizeof *all->total);
    fold(sum, 0, count, all->total + first);
}

int fed_sum_vectors(int num_threads, const float *const *vectors, const double *weights,
                    size_t num_vectors, size_t num_values, double *total) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return FED_ERR_ARGUMENT;
    if (!weights_are_valid(weights, num_vectors)) return FED_ERR_ARGUMENT;
    int status = FED_OK;
    fed_sum **sums = calloc((size_t)num_threads, sizeof *sums);
    if (sums == NULL) return FED_ERR_NO_MEMORY;
    for (int t = 0; status == FED_OK && t < num_threads; t++) {
        sums[t] = fed_sum_new(RANGE);
        status = sums[t] == NULL ? FED_ERR_NO_MEMORY
                                 : reserve_levels(sums[t], num_vectors / FED_BLOCK_CLIENTS);
    }
    summing all = {vectors, weights, num_vectors, num_values, total, sums};
    const fp_mode before = denormals_off();
    if (status == FED_OK) fed_share(num_threads, (num_values + RANGE - 1) / RANGE, sum_range, &all);
    fp_restore(before);
    for (int t = 0; t < num_threads; t++) fed_sum_free(sums[t]);
    free(sums);
    return status;
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
