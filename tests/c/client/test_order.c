/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of order.c: the streams and batches of the three pipelines, against counts worked out by
 * hand, and against a naive reference that makes each shuffled unit as a list.
 */
#include "fed.h"
#include "test.h"

enum { MAX_VISITS = 4096, MAX_BATCHES = 4096, NUM_PIPELINES = 3 };

static const fed_key KEY = {.seed = 1, .client = 2, .round = 3, .purpose = 1, .occurrence = 0};

/* A drawn stream: all its indices, and the sizes of its batches. */
typedef struct stream {
    uint32_t indices[MAX_VISITS];
    size_t batch_sizes[MAX_BATCHES];
    size_t num_visits, num_batches;
} stream;

static stream drawn, reference; /* too large for a stack frame */

static fed_plan plan_of(int pipeline, size_t epochs, size_t batch_size, size_t shuffle_buffer) {
    return (fed_plan){pipeline, epochs, batch_size, shuffle_buffer, SIZE_MAX};
}

static void draw(const fed_plan *plan, size_t num_examples, const fed_key *key) {
    const uint32_t guard = 0xABCDABCD;
    const size_t capacity = fed_order_capacity(plan, num_examples);
    uint32_t *buffer = test_alloc((capacity + 1) * sizeof(*buffer));
    buffer[capacity] = guard;
    fed_order order;
    fed_order_init(&order, plan, num_examples, key, buffer);
    drawn.num_visits = drawn.num_batches = 0;
    size_t batch_size;
    do {
        uint32_t *batch = &drawn.indices[drawn.num_visits];
        batch[plan->batch_size] = guard;
        batch_size = fed_order_next(&order, batch);
        CHECK_EQUAL(batch[plan->batch_size], guard);
        drawn.batch_sizes[drawn.num_batches] = batch_size;
        drawn.num_batches += batch_size > 0;
        drawn.num_visits += batch_size;
    } while (batch_size > 0);
    CHECK_EQUAL(fed_order_next(&order, drawn.indices + drawn.num_visits), 0);
    CHECK_EQUAL(buffer[capacity], guard);
    CHECK_EQUAL(drawn.num_visits, fed_plan_visits(plan, num_examples));
    CHECK_EQUAL(drawn.num_batches, fed_plan_batches(plan, num_examples));
    free(buffer);
}

/* The definition, applied to a list: a random slot of the buffer is emitted and replaced by the
 * next input, or by the last slot when the input is used up. A buffer of one index needs no
 * draw. */
static void shuffle_naively(fed_rng *rng, const uint32_t *input, size_t length,
                            size_t buffer_length, uint32_t *output) {
    uint32_t buffer[MAX_VISITS];
    size_t num_buffered = 0, next = 0;
    while (num_buffered < buffer_length && next < length) {
        buffer[num_buffered++] = input[next++];
    }
    for (size_t i = 0; i < length; i++) {
        const size_t slot = num_buffered > 1 ? fed_rng_below(rng, (uint32_t)num_buffered) : 0;
        output[i] = buffer[slot];
        buffer[slot] = next < length ? input[next++] : buffer[--num_buffered];
    }
}

static void draw_naively(const fed_plan *plan, size_t num_examples, const fed_key *key) {
    uint32_t input[MAX_VISITS];
    const size_t num_visits = plan->epochs * num_examples;
    for (size_t i = 0; i < num_visits; i++) {
        input[i] = (uint32_t)(i % num_examples);
    }
    const size_t unit = plan->pipeline == FED_REPEAT_SHUFFLE ? num_visits : num_examples;
    const size_t buffer_length = plan->shuffle_buffer > 1 ? plan->shuffle_buffer : 1;
    fed_rng rng;
    fed_rng_init(&rng, key);
    for (size_t i = 0; i < num_visits; i += unit) {
        shuffle_naively(&rng, input + i, unit, buffer_length, reference.indices + i);
    }
    const size_t border = plan->pipeline == FED_PER_EPOCH ? num_examples : SIZE_MAX;
    reference.num_visits = num_visits < plan->max_examples ? num_visits : plan->max_examples;
    reference.num_batches = 0;
    size_t batch_size = 0;
    for (size_t i = 0; i < reference.num_visits; i++) {
        batch_size++;
        const int is_full = batch_size == plan->batch_size || (i + 1) % border == 0;
        if (is_full || i + 1 == reference.num_visits) {
            reference.batch_sizes[reference.num_batches++] = batch_size;
            batch_size = 0;
        }
    }
}

static void check_against_reference(const fed_plan *plan, size_t num_examples) {
    draw(plan, num_examples, &KEY);
    draw_naively(plan, num_examples, &KEY);
    CHECK_EQUAL(drawn.num_visits, reference.num_visits);
    CHECK_EQUAL(drawn.num_batches, reference.num_batches);
    CHECK_BYTES(drawn.indices, reference.indices,
                reference.num_visits * sizeof(reference.indices[0]));
    CHECK_BYTES(drawn.batch_sizes, reference.batch_sizes,
                reference.num_batches * sizeof(reference.batch_sizes[0]));
}

static void test_naive_reference(void) {
    static const size_t sizes[] = {0, 1, 2, 19, 20, 21, 94},
                        buffers[] = {0, 1, 2, 7, 100, SIZE_MAX}, batch_sizes[] = {1, 7, 20, 500},
                        caps[] = {1, 20, 33, SIZE_MAX};
    for (int pipeline = 0; pipeline < NUM_PIPELINES; pipeline++) {
        for (size_t i = 0; i < 7 * 6 * 4 * 4; i++) {
            fed_plan plan =
                plan_of(pipeline, 1 + i % 5, batch_sizes[i / 42 % 4], buffers[i / 7 % 6]);
            plan.max_examples = caps[i / 168];
            check_against_reference(&plan, sizes[i % 7]);
        }
    }
}

static void check_each_index_appears(const uint32_t *indices, size_t num_visits,
                                     size_t num_examples, size_t times) {
    size_t counts[MAX_VISITS] = {0};
    for (size_t i = 0; i < num_visits; i++) {
        CHECK(indices[i] < num_examples);
        counts[indices[i]]++;
    }
    for (size_t i = 0; i < num_examples; i++) {
        CHECK_EQUAL(counts[i], times);
    }
}

static void test_each_example_is_visited_once_an_epoch(void) {
    for (int pipeline = 0; pipeline < NUM_PIPELINES; pipeline++) {
        for (size_t buffer = 1; buffer < 600; buffer = buffer * 3 + 1) {
            const fed_plan plan = plan_of(pipeline, 5, 20, buffer);
            draw(&plan, 94, &KEY);
            check_each_index_appears(drawn.indices, drawn.num_visits, 94, 5);
        }
    }
}

static void test_epochs_do_not_mix_when_shuffled_first(void) {
    for (int pipeline = FED_SHUFFLE_REPEAT; pipeline <= FED_PER_EPOCH; pipeline++) {
        const fed_plan plan = plan_of(pipeline, 3, 20, SIZE_MAX);
        draw(&plan, 94, &KEY);
        for (size_t epoch = 0; epoch < 3; epoch++) {
            check_each_index_appears(drawn.indices + 94 * epoch, 94, 94, 1);
        }
        CHECK(memcmp(drawn.indices, drawn.indices + 94, 94 * sizeof(uint32_t)) != 0);
    }
}

static void test_epochs_mix_when_repeated_first(void) {
    const fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 3, 20, SIZE_MAX);
    draw(&plan, 94, &KEY);
    size_t counts[94] = {0}, num_repeated = 0;
    for (size_t i = 0; i < 94; i++) {
        num_repeated += counts[drawn.indices[i]]++ > 0;
    }
    CHECK(num_repeated > 10);
}

static void test_no_shuffle(void) {
    for (int pipeline = 0; pipeline < NUM_PIPELINES; pipeline++) {
        for (size_t buffer = 0; buffer <= 1; buffer++) {
            const fed_plan plan = plan_of(pipeline, 2, 4, buffer);
            draw(&plan, 5, &KEY);
            for (uint32_t i = 0; i < 10; i++) {
                CHECK_EQUAL(drawn.indices[i], i % 5);
            }
        }
    }
}

/* An index cannot leave a buffer of b indices more than b - 1 places before its own place. */
static void test_buffer_limits_how_far_ahead(void) {
    const fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 1, 20, 10);
    draw(&plan, 1000, &KEY);
    size_t most_ahead = 0;
    for (size_t i = 0; i < 1000; i++) {
        const size_t ahead = drawn.indices[i] > i ? drawn.indices[i] - i : 0;
        most_ahead = ahead > most_ahead ? ahead : most_ahead;
    }
    CHECK_EQUAL(most_ahead, 9);
}

static void test_full_buffer_is_a_uniform_permutation(void) {
    enum { NUM_DRAWS = 24000 };
    const fed_plan plan = plan_of(FED_SHUFFLE_REPEAT, 1, 4, SIZE_MAX);
    size_t counts[256] = {0}; /* indexed by the four indices as digits of base 4 */
    for (uint64_t round = 0; round < NUM_DRAWS; round++) {
        const fed_key key = {.seed = 9, .round = round, .purpose = 1};
        draw(&plan, 4, &key);
        check_each_index_appears(drawn.indices, 4, 4, 1);
        const uint32_t *digit = drawn.indices;
        counts[64 * digit[0] + 16 * digit[1] + 4 * digit[2] + digit[3]]++;
    }
    double chi_squared = 0.0;
    for (size_t i = 0; i < 256; i++) {
        const double off = (double)counts[i] - 1000.0;
        chi_squared += counts[i] > 0 ? off * off / 1000.0 : 0.0;
    }
    CHECK(chi_squared < 59.0); /* 23 degrees of freedom: exceeded with a probability below 1e-4 */
}

static void test_streams_differ_by_key(void) {
    const fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 1, 20, 100);
    draw(&plan, 94, &KEY);
    reference = drawn;
    draw(&plan, 94, &KEY);
    CHECK_BYTES(drawn.indices, reference.indices, 94 * sizeof(uint32_t));
    fed_key other = KEY;
    other.occurrence++;
    draw(&plan, 94, &other);
    CHECK(memcmp(drawn.indices, reference.indices, 94 * sizeof(uint32_t)) != 0);
}

static void check_batches(const fed_plan *plan, size_t num_examples, size_t num_expected,
                          const size_t *expected) {
    draw(plan, num_examples, &KEY);
    CHECK_EQUAL(drawn.num_batches, num_expected);
    CHECK_BYTES(drawn.batch_sizes, expected, num_expected * sizeof(*expected));
}

static void test_batch_sizes(void) {
    fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 2, 4, 100);
    check_batches(&plan, 5, 3, (const size_t[]){4, 4, 2});
    plan.pipeline = FED_SHUFFLE_REPEAT;
    check_batches(&plan, 5, 3, (const size_t[]){4, 4, 2});
    plan.pipeline = FED_PER_EPOCH;
    check_batches(&plan, 5, 4, (const size_t[]){4, 1, 4, 1});
    plan.max_examples = 7;
    check_batches(&plan, 5, 3, (const size_t[]){4, 1, 2});
    plan.pipeline = FED_SHUFFLE_REPEAT;
    check_batches(&plan, 5, 2, (const size_t[]){4, 3});
}

/* A client of 93 examples with the tutorial's plan: 5 epochs in batches of 20. */
static void test_counts(void) {
    fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 5, 20, 100);
    CHECK_EQUAL(fed_plan_visits(&plan, 93), 465);
    CHECK_EQUAL(fed_plan_batches(&plan, 93), 24);
    plan.pipeline = FED_PER_EPOCH;
    CHECK_EQUAL(fed_plan_batches(&plan, 93), 25);
    plan.max_examples = 100;
    CHECK_EQUAL(fed_plan_visits(&plan, 93), 100);
    CHECK_EQUAL(fed_plan_batches(&plan, 93), 6);
    CHECK_EQUAL(fed_plan_visits(&plan, 0), 0);
    CHECK_EQUAL(fed_plan_batches(&plan, 0), 0);
}

static void test_sizes_do_not_overflow(void) {
    const size_t half = SIZE_MAX / 2;
    for (int pipeline = 0; pipeline < NUM_PIPELINES; pipeline++) {
        fed_plan plan = plan_of(pipeline, half, 20, 100);
        CHECK_EQUAL(fed_plan_visits(&plan, 3), SIZE_MAX);
        CHECK(fed_plan_batches(&plan, 3) >= SIZE_MAX / 20);
        plan.max_examples = 50;
        CHECK_EQUAL(fed_plan_visits(&plan, 3), 50);
        draw(&plan, 3, &KEY);
    }
}

static void test_capacity(void) {
    fed_plan plan = plan_of(FED_REPEAT_SHUFFLE, 5, 20, 100);
    CHECK_EQUAL(fed_order_capacity(&plan, 94), 100);
    CHECK_EQUAL(fed_order_capacity(&plan, 3), 15);
    CHECK_EQUAL(fed_order_capacity(&plan, 0), 0);
    plan.pipeline = FED_SHUFFLE_REPEAT;
    CHECK_EQUAL(fed_order_capacity(&plan, 94), 94);
    plan.shuffle_buffer = 0;
    CHECK_EQUAL(fed_order_capacity(&plan, 94), 1);
    plan = plan_of(FED_REPEAT_SHUFFLE, SIZE_MAX, 20, SIZE_MAX);
    CHECK_EQUAL(fed_order_capacity(&plan, 94), UINT32_MAX);
}

static const test_case TESTS[] = {
    TEST(test_naive_reference),
    TEST(test_each_example_is_visited_once_an_epoch),
    TEST(test_epochs_do_not_mix_when_shuffled_first),
    TEST(test_epochs_mix_when_repeated_first),
    TEST(test_no_shuffle),
    TEST(test_buffer_limits_how_far_ahead),
    TEST(test_full_buffer_is_a_uniform_permutation),
    TEST(test_streams_differ_by_key),
    TEST(test_batch_sizes),
    TEST(test_counts),
    TEST(test_sizes_do_not_overflow),
    TEST(test_capacity),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
