/* SPDX-License-Identifier: Apache-2.0
 * The ordered sum of model deltas, in float64. Within a block of FED_BLOCK_CLIENTS clients
 * deltas are added left to right; blocks are combined by a fixed binary tree over their index.
 * The tree is held as a binary counter: level l has a value when bit l of the number of blocks
 * is set, and stands for 2^l consecutive blocks, so memory grows with the logarithm of the
 * cohort. */
#include "core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEVELS = 48 };

struct fed_sum {
    fed_net net;
    size_t num_values; /* packed */
    size_t num_blocks;
    int closed; /* the last block was short: no other may follow */
    double weight;
    double *levels[MAX_LEVELS]; /* a buffer once used; holds a value where num_blocks has the bit */
    double *folded;             /* fed_sum_total's scratch */
    double *partial;            /* fed_sum_add's block under way */
    double partial_weight;
    size_t num_partial;
    float *packed; /* [2]: fed_sum_add's delta, and the zeros it is relative to */
};

void *fed_allocate(size_t num_bytes) {
    void *memory = NULL;
    if (num_bytes > PTRDIFF_MAX) return NULL;
    return posix_memalign(&memory, FED_ALIGNMENT, num_bytes > 0 ? num_bytes : 1) == 0 ? memory
                                                                                      : NULL;
}

static double *new_zeros(size_t num_values) {
    double *values = fed_allocate(num_values * sizeof *values);
    if (values != NULL) memset(values, 0, num_values * sizeof *values);
    return values;
}

fed_sum *fed_sum_new(const fed_model *model) {
    fed_sum *sum = calloc(1, sizeof *sum);
    if (sum == NULL || fed_net_init(&sum->net, model) != FED_OK) goto fail;
    sum->num_values = sum->net.size;
    sum->folded = new_zeros(sum->num_values);
    sum->partial = new_zeros(sum->num_values);
    sum->packed = fed_allocate(2 * sum->num_values * sizeof *sum->packed);
    if (sum->folded == NULL || sum->partial == NULL || sum->packed == NULL) goto fail;
    memset(sum->packed, 0, 2 * sum->num_values * sizeof *sum->packed);
    return sum;
fail:
    fed_sum_free(sum);
    return NULL;
}

void fed_sum_free(fed_sum *sum) {
    if (sum == NULL) return;
    for (int l = 0; l < MAX_LEVELS; l++) free(sum->levels[l]);
    free(sum->folded);
    free(sum->partial);
    free(sum->packed);
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

size_t fed_sum_size(const fed_sum *sum) { return sum->num_values; }

int fed_sum_is_open(const fed_sum *sum) { return !sum->closed && sum->num_partial == 0; }

int fed_sum_push(fed_sum *sum, double **values, double weight, int closed) {
    size_t level = 0;
    while (sum->num_blocks >> level & 1) level++;
    if (sum->levels[level] == NULL) {
        sum->levels[level] = new_zeros(sum->num_values);
        if (sum->levels[level] == NULL) return FED_ERR_NO_MEMORY;
    }
    double *carry = *values;
    for (size_t l = 0; l < level; l++) {
        double *older = sum->levels[l];
        for (size_t v = 0; v < sum->num_values; v++) older[v] += carry[v];
        sum->levels[l] = carry;
        carry = older;
    }
    *values = sum->levels[level];
    sum->levels[level] = carry;
    memset(*values, 0, sum->num_values * sizeof **values);
    sum->num_blocks++;
    sum->weight += weight;
    sum->closed = closed;
    return FED_OK;
}

int fed_sum_add(fed_sum *sum, const float *delta, double weight) {
    if (sum->closed || !isfinite(weight) || weight < 0) return FED_ERR_ARGUMENT;
    const float *zeros = sum->packed + sum->num_values;
    fed_net_pack(&sum->net, delta, sum->packed);
    if (weight > 0)
        sum->net.kernels->add_delta(sum->partial, sum->packed, zeros, sum->num_values, weight);
    sum->partial_weight += weight;
    if (++sum->num_partial < FED_BLOCK_CLIENTS) return FED_OK;
    const int status = fed_sum_push(sum, &sum->partial, sum->partial_weight, 0);
    sum->num_partial = 0;
    sum->partial_weight = 0;
    return status;
}

void fed_sum_total(fed_sum *sum, double *total, double *weight) {
    memcpy(sum->folded, sum->partial, sum->num_values * sizeof *sum->folded);
    for (size_t l = 0; sum->num_blocks >> l != 0; l++)
        if (sum->num_blocks >> l & 1)
            for (size_t v = 0; v < sum->num_values; v++) sum->folded[v] += sum->levels[l][v];
    fed_net_unpack(&sum->net, sum->folded, total);
    *weight = sum->weight + sum->partial_weight;
}
