/* SPDX-License-Identifier: Apache-2.0
 *
 * The order in which a client's examples are visited, drawn one batch at a time. A stream consists
 * of shuffled units: the whole repeated data (repeat-shuffle), or one epoch each (the other
 * pipelines). A unit passes through a shuffle buffer, as in tf.data: the index in a random slot is
 * emitted. The slot is then refilled from the input or, when the input is used up, from the last
 * slot. Only the buffer needs memory, however long the stream is.
 */
#include "fed.h"

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

static size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

/* Number of visits in all epochs, SIZE_MAX if it would overflow. */
static size_t stream_length(const fed_plan *plan, size_t num_examples) {
    if (num_examples > 0 && plan->epochs > SIZE_MAX / num_examples) {
        return SIZE_MAX;
    }
    return plan->epochs * num_examples;
}

static size_t unit_length(const fed_plan *plan, size_t num_examples) {
    const int is_one_unit = plan->pipeline == FED_REPEAT_SHUFFLE;
    return is_one_unit ? stream_length(plan, num_examples) : num_examples;
}

size_t fed_plan_visits(const fed_plan *plan, size_t num_examples) {
    return min_size(stream_length(plan, num_examples), plan->max_examples);
}

size_t fed_plan_batches(const fed_plan *plan, size_t num_examples) {
    const size_t num_visits = fed_plan_visits(plan, num_examples);
    if (plan->pipeline != FED_PER_EPOCH || num_visits == 0) {
        return ceil_div(num_visits, plan->batch_size);
    }
    const size_t num_whole_epochs = num_visits / num_examples;
    return num_whole_epochs * ceil_div(num_examples, plan->batch_size) +
           ceil_div(num_visits % num_examples, plan->batch_size);
}

size_t fed_order_capacity(const fed_plan *plan, size_t num_examples) {
    const size_t at_least_one = plan->shuffle_buffer > 0 ? plan->shuffle_buffer : 1;
    const size_t capacity = min_size(at_least_one, unit_length(plan, num_examples));
    return min_size(capacity, UINT32_MAX); /* slots are drawn as 32-bit numbers */
}

void fed_order_init(fed_order *order, const fed_plan *plan, size_t num_examples, const fed_key *key,
                    uint32_t *buffer) {
    *order = (fed_order){
        .plan = plan,
        .num_examples = num_examples,
        .visits_left = fed_plan_visits(plan, num_examples),
        .buffer = buffer,
    };
    fed_rng_init(&order->rng, key);
}

/* The next index of the unit's input, which repeats 0..N-1. */
static inline uint32_t take_index(fed_order *order) {
    const size_t index = order->next_index;
    order->next_index = index + 1 < order->num_examples ? index + 1 : 0;
    order->untaken--;
    return (uint32_t)index;
}

static void open_unit(fed_order *order) {
    const size_t capacity = fed_order_capacity(order->plan, order->num_examples);
    order->untaken = unit_length(order->plan, order->num_examples);
    while (order->num_buffered < capacity) {
        order->buffer[order->num_buffered++] = take_index(order);
    }
}

static inline uint32_t emit_index(fed_order *order) {
    uint32_t *buffer = order->buffer;
    /* A single index needs no draw, so the unshuffled order costs no random numbers. */
    const uint32_t slot =
        order->num_buffered > 1 ? fed_rng_below(&order->rng, (uint32_t)order->num_buffered) : 0;
    const uint32_t index = buffer[slot];
    buffer[slot] = order->untaken > 0 ? take_index(order) : buffer[--order->num_buffered];
    return index;
}

size_t fed_order_next(fed_order *order, uint32_t *indices) {
    size_t num_indices = min_size(order->plan->batch_size, order->visits_left);
    if (num_indices > 0 && order->num_buffered == 0) {
        open_unit(order);
    }
    if (order->plan->pipeline == FED_PER_EPOCH) {
        num_indices = min_size(num_indices, order->num_buffered + order->untaken);
    }
    for (size_t i = 0; i < num_indices; i++) {
        if (order->num_buffered == 0) {
            open_unit(order);
        }
        indices[i] = emit_index(order);
    }
    order->visits_left -= num_indices;
    return num_indices;
}
