/* SPDX-License-Identifier: Apache-2.0
 * The noise of private means, added on all threads. The unit of work is a group of normal numbers,
 * so the number of threads changes no value. */
#include "denormals.h"
#include "fed.h"
#include "memory.h"
#include "threads.h"

#include <string.h>

enum { PART = 64 * FED_NORMAL_GROUP }; /* values that a thread takes at a time */

/* The arguments of a call; vectors are [num_values]. */
typedef struct noising {
    const fed_noise *noise;
    const double *sum;
    double divisor;
    float *mean;
    size_t num_values;
} noising;

/* Adds the noise of a tree to some values of the sum, those from `first` on. */
static void add_tree(const noising *all, size_t first, double *sum, size_t num_values) {
    const fed_noise *noise = all->noise;
    const size_t num_replaced = noise->num_keys - 1;
    double *value = noise->groups + num_replaced * all->num_values + first;
    memset(value, 0, num_values * sizeof *value);
    fed_rng_add_normal(&noise->keys[0], first, 1.0, value, num_values);
    for (size_t g = 0; g < num_replaced; g++) {
        const double *left = noise->groups + g * all->num_values + first;
        for (size_t v = 0; v < num_values; v++) {
            sum[v] -= noise->factors[g] * left[v];
            value[v] = noise->takes_halves ? 0.5 * (left[v] + value[v]) : 0.0;
        }
        fed_rng_add_normal(&noise->keys[g + 1], first, 1.0, value, num_values);
    }
    for (size_t v = 0; v < num_values; v++) sum[v] += noise->factors[num_replaced] * value[v];
}

static void noise_group(const noising *all, size_t first, size_t num_values) {
    const fed_noise *noise = all->noise;
    double sum[FED_NORMAL_GROUP];
    memcpy(sum, all->sum + first, num_values * sizeof *sum);
    if (noise->groups != NULL)
        add_tree(all, first, sum, num_values);
    else
        fed_rng_add_normal(noise->keys, first, noise->factors[0], sum, num_values);
    for (size_t v = 0; v < num_values; v++) all->mean[first + v] = (float)(sum[v] / all->divisor);
}

static void noise_part(void *context, size_t part, int worker) {
    const noising *all = context;
    const size_t left = all->num_values - part * PART;
    (void)worker;
    for (size_t done = 0; done < PART && done < left; done += FED_NORMAL_GROUP)
        noise_group(all, part * PART + done, fed_smaller(left - done, FED_NORMAL_GROUP));
}

int fed_noised_mean(int num_threads, const fed_noise *noise, const double *sum, double divisor,
                    float *mean, size_t num_values) {
    noising all = {noise, sum, divisor, mean, num_values};
    if (num_threads < 1 || num_threads > FED_MAX_THREADS || noise->num_keys < 1)
        return FED_ERR_ARGUMENT;
    const fp_mode before = denormals_off();
    fed_share(num_threads, fed_pieces(num_values, PART), noise_part, &all);
    fp_restore(before);
    return FED_OK;
}
