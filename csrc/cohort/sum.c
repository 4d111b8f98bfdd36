/* SPDX-License-Identifier: Apache-2.0
 * The ordered, weighted sum of model deltas or other vectors, in float64. A block has
 * FED_BLOCK_CLIENTS vectors, which are added left to right. Blocks are combined by a fixed binary
 * tree over their index. The tree is stored as a binary counter: level l has a value if bit l of
 * the number of blocks is set, and is the sum of 2^l consecutive blocks. Memory therefore grows
 * with the logarithm of the cohort's size. Coordinates are independent, so ranges of them can be
 * added in any order. */
#include "cohort.h"
#include "denormals.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 48 };
/* Values of each vector that are added at a time. The caches hold the 512 KiB that each of the
 * lowest levels takes; in shorter ranges, finding the vectors' next pages takes longer. */
enum { RANGE = 65536 };

struct fed_sum {
    int is_packed; /* 1: the vectors are packed parameters of `net` */
    fed_net net;
    size_t num_values;
    size_t num_blocks;
    int closed; /* the last block was short: no block may follow */
    double weight;
    double *levels[MAX_LEVELS];  /* level l has a value if bit l of num_blocks is set */
    double *between[MAX_LEVELS]; /* [RANGE or num_values] each, or NULL: see level_range */
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
    for (int l = 0; l < MAX_LEVELS; l++) {
        free(sum->levels[l]);
        free(sum->between[l]);
    }
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

static int reserve(double **values /* in-out */, size_t num_values) {
    if (*values == NULL && num_values <= PTRDIFF_MAX / sizeof **values)
        *values = fed_allocate(num_values * sizeof **values);
    return *values != NULL ? FED_OK : FED_ERR_NO_MEMORY;
}

/* Allocates the levels that have a value after num_blocks blocks, and one range in `between` for
 * each level up to the highest. */
static int reserve_levels(fed_sum *sum, size_t num_blocks) {
    int status = FED_OK;
    for (size_t l = 0; status == FED_OK && num_blocks >> l != 0; l++) {
        status = reserve(&sum->between[l], fed_smaller(RANGE, sum->num_values));
        if (status == FED_OK && num_blocks >> l & 1)
            status = reserve(&sum->levels[l], sum->num_values);
    }
    return status;
}

static void add_older(const double *older, size_t num_values, double *values /* in-out */) {
    for (size_t v = 0; v < num_values; v++) values[v] = older[v] + values[v];
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

/* 1 if no weight is 0: a vector with weight 0 must not be read, because it may hold NaN. */
static int weights_are_positive(const double *weights, size_t num_vectors) {
    for (size_t i = 0; i < num_vectors; i++)
        if (!(weights[i] > 0)) return 0;
    return 1;
}

/* Vectors that one call adds to a sum. */
typedef struct adding {
    const fed_sum *sum;
    const float *const *vectors;
    const double *weights;
    size_t num_vectors;
    size_t num_blocks; /* of the sum after the call */
} adding;

/* Where a range of a level's value is when num_blocks blocks are in the tree. A value that is in
 * the tree before or after the call is stored whole, in `levels`. A value that exists only during
 * the call needs room for one range at a time: `between`. If `between` is NULL, as in
 * fed_sum_vectors, `levels` has room for one range only. */
static double *level_range(const adding *call, size_t level, size_t num_blocks, size_t first) {
    const size_t value = num_blocks >> level;
    const int is_stored = call->sum->between[level] == NULL ||
                          value == call->sum->num_blocks >> level ||
                          value == call->num_blocks >> level;
    return is_stored ? call->sum->levels[level] + first : call->sum->between[level];
}

/* Finds the ranges of older values to which block number num_blocks, from 0, is added. Returns
 * their number, which is also the level of the result. */
static size_t older_ranges(const adding *call, size_t num_blocks, size_t first,
                           const double **older /* out [MAX_LEVELS] */) {
    size_t level = 0;
    for (; num_blocks >> level & 1; level++)
        older[level] = level_range(call, level, num_blocks, first);
    return level;
}

/* Adds a range of the finished block `values` to the tree, and sets the values to zero. */
static void push_range(const adding *call, size_t num_blocks, double *values, size_t first,
                       size_t count) {
    const double *older[MAX_LEVELS];
    const size_t level = older_ranges(call, num_blocks, first, older);
    for (size_t l = 0; l < level; l++) add_older(older[l], count, values);
    memcpy(level_range(call, level, num_blocks + 1, first), values, count * sizeof *values);
    memset(values, 0, count * sizeof *values);
}

/* Adds a range of a whole block, the vectors i..i+7, to the tree. In each vector the range begins
 * at `from`. */
static void add_block(const adding *call, size_t num_blocks, size_t i, size_t from, size_t first,
                      size_t count) {
    const double *older[MAX_LEVELS];
    const size_t level = older_ranges(call, num_blocks, first, older);
    _Static_assert(FED_BLOCK_CLIENTS == 8, "sum_eight sums a block");
    fed_active_kernels()->sum_eight(call->vectors + i, call->weights + i, from, count, older, level,
                                    level_range(call, level, num_blocks + 1, first));
}

/* Adds a range of each vector, which begins at `from`, to the range of the sum that begins at
 * `first`. The range of all levels stays in the cache. */
static void add_range(const adding *call, size_t from, size_t first, size_t count) {
    const fed_kernels *kernels = fed_active_kernels();
    double *partial = call->sum->partial + first;
    size_t num_blocks = call->sum->num_blocks, num_partial = call->sum->num_partial;
    for (size_t i = 0; i < call->num_vectors;) {
        const double *weights = call->weights + i;
        const size_t num =
            fed_smaller(call->num_vectors - i, (size_t)FED_BLOCK_CLIENTS - num_partial);
        if (num == FED_BLOCK_CLIENTS && weights_are_positive(weights, num)) {
            add_block(call, num_blocks++, i, from, first, count);
            i += num;
            continue;
        }
        kernels->add_vectors(partial, call->vectors + i, weights, num, from, count);
        i += num;
        num_partial += num;
        if (num_partial < FED_BLOCK_CLIENTS) break;
        push_range(call, num_blocks++, partial, first, count);
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
    const adding call = {sum, vectors, weights, num_vectors, sum->num_blocks + num_whole};
    const int status = reserve_levels(sum, call.num_blocks);
    if (status != FED_OK) return status;
    const fp_mode before = denormals_off();
    for (size_t first = 0; first < sum->num_values; first += RANGE)
        add_range(&call, first, first, fed_smaller(sum->num_values - first, RANGE));
    fp_restore(before);
    for (size_t i = 0; i < num_vectors; i++) sum->partial_weight += weights[i];
    sum->num_blocks = call.num_blocks;
    sum->num_partial = (sum->num_partial + num_vectors) % FED_BLOCK_CLIENTS;
    return FED_OK;
}

/* Writes values first..first+num-1 of the finished blocks, added to `start`; NULL: zeros. */
static void add_levels(const fed_sum *sum, const double *start, size_t first, size_t num,
                       double *total /* out [num] */) {
    enum { COUNT = 512 }; /* few enough for an L1 cache */
    for (size_t at = 0; at < num; at += COUNT) {
        const size_t count = fed_smaller(num - at, COUNT);
        double values[COUNT] = {0};
        if (start != NULL) memcpy(values, start + at, count * sizeof *values);
        for (size_t l = 0; sum->num_blocks >> l != 0; l++)
            if (sum->num_blocks >> l & 1) add_older(sum->levels[l] + first + at, count, values);
        memcpy(total + at, values, count * sizeof *values);
    }
}

/* Unpacks one stage at a time, so that no second vector of the whole net is needed. */
static void unpack_total(const fed_sum *sum, double *total) {
    for (size_t s = 0; s < sum->net.num_stages; s++) {
        const fed_stage *stage = &sum->net.stages[s];
        if (stage->packed_size == 0) continue;
        add_levels(sum, NULL, stage->start, stage->packed_size, sum->partial);
        stage->ops->unpack(stage, sum->partial, total);
    }
    const size_t first = sum->net.num_trained, num = sum->net.size - first;
    if (num == 0) return;
    add_levels(sum, NULL, first, num, sum->partial);
    fed_net_unpack_moving(&sum->net, sum->partial, total);
}

void fed_sum_total(fed_sum *sum, double *total, double *weight) {
    *weight = sum->weight + sum->partial_weight;
    if (sum->num_values == 0) return; /* total may be NULL */
    const fp_mode before = denormals_off();
    if (sum->is_packed) {
        unpack_total(sum, total);
    } else {
        add_levels(sum, sum->partial, 0, sum->num_values, total);
    }
    fp_restore(before);
}

/* ---- A sum of vectors that are all given at once --------------------------------------------- */

typedef struct summing {
    const float *const *vectors;
    const double *weights;
    size_t num_vectors, num_values;
    size_t range_size;
    double *total;
    size_t num_levels;
    double *memory; /* [num_threads][num_levels][range_size] */
} summing;

/* Ranges are distributed among the threads, a few for each. All ranges but the last consist of
 * whole vectors of a kernel, so each value is computed alike for any number of threads. */
static size_t choose_range_size(int num_threads, size_t num_values) {
    enum { LEAST = 4096, FOR_EACH = 4 };
    enum { VECTORS = 64 }; /* a multiple of the values that a kernel adds at once */
    if (num_threads == 1) return fed_smaller(RANGE, num_values);
    const size_t each = fed_pieces(num_values, FOR_EACH * (size_t)num_threads);
    const size_t shared = fed_pieces(each, VECTORS) * VECTORS;
    return fed_larger(LEAST, fed_smaller(RANGE, shared));
}

static void sum_range(void *context, size_t range, int worker) {
    const summing *all = context;
    const size_t size = all->range_size, first = range * size;
    const size_t count = fed_smaller(all->num_values - first, size);
    fed_sum sum = {.num_values = size, .partial = all->total + first};
    for (size_t l = 0; l < all->num_levels; l++)
        sum.levels[l] = all->memory + ((size_t)worker * all->num_levels + l) * size;
    const adding call = {&sum, all->vectors, all->weights, all->num_vectors,
                         all->num_vectors / FED_BLOCK_CLIENTS};
    memset(sum.partial, 0, count * sizeof *sum.partial);
    add_range(&call, first, 0, count);
    sum.num_blocks = call.num_blocks;
    add_levels(&sum, sum.partial, 0, count, sum.partial);
}

int fed_sum_vectors(int num_threads, const float *const *vectors, const double *weights,
                    size_t num_vectors, size_t num_values, double *total) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return FED_ERR_ARGUMENT;
    if (!weights_are_valid(weights, num_vectors)) return FED_ERR_ARGUMENT;
    if (num_values == 0) return FED_OK;
    summing all = {.vectors = vectors,
                   .weights = weights,
                   .num_vectors = num_vectors,
                   .num_values = num_values,
                   .range_size = choose_range_size(num_threads, num_values),
                   .total = total};
    while (num_vectors / FED_BLOCK_CLIENTS >> all.num_levels != 0) all.num_levels++;
    all.memory =
        fed_allocate((size_t)num_threads * all.num_levels * all.range_size * sizeof *all.memory);
    if (all.memory == NULL) return FED_ERR_NO_MEMORY;
    const fp_mode before = denormals_off();
    fed_share(num_threads, fed_pieces(num_values, all.range_size), sum_range, &all);
    fp_restore(before);
    free(all.memory);
    return FED_OK;
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

void fed_divide(size_t num_values, const double *sum, double divisor, float *quotient) {
    fed_active_kernels()->divide(sum, divisor, num_values, quotient);
}
