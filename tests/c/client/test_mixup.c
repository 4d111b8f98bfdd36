/* SPDX-License-Identifier: Apache-2.0
 *
 * How MixUp mixes a batch: partners are a permutation, and each batch has its own draws. The
 * numbers are compared with a slow reference in Python (tests/models/test_mixup.py).
 */
#include "fixtures.h"

static const fed_key KEY = {.seed = 1, .client = 2, .round = 3, .purpose = 33, .occurrence = 4};

/* A sanitizer watches the ends of the array. */
static void test_partners_are_a_permutation_at_any_size(void) {
    static const size_t sizes[] = {0, 1, 2, 15, 16, 17, 31, 32, 33, 1000};
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        uint32_t *partners = malloc(sizes[i] * sizeof *partners + (sizes[i] == 0));
        char *is_seen = calloc(sizes[i] + 1, 1);
        const float share = fed_mixup_draw(0.5, &KEY, 7, sizes[i], partners);
        CHECK(share >= 0 && share <= 1);
        for (size_t b = 0; b < sizes[i]; b++) {
            CHECK(partners[b] < sizes[i] && !is_seen[partners[b]]);
            is_seen[partners[b]] = 1;
        }
        free(is_seen);
        free(partners);
    }
}

static void test_each_batch_has_its_own_draws(void) {
    enum { SIZE = 40 };
    uint32_t first[SIZE], again[SIZE], next[SIZE];
    const float share = fed_mixup_draw(1, &KEY, 0, SIZE, first);
    CHECK(fed_mixup_draw(1, &KEY, 0, SIZE, again) == share);
    CHECK_BYTES(first, again, sizeof first);
    CHECK(fed_mixup_draw(1, &KEY, SIZE, SIZE, next) != share);
    CHECK(memcmp(first, next, sizeof first) != 0);
}

static const test_case TESTS[] = {
    TEST(test_partners_are_a_permutation_at_any_size),
    TEST(test_each_batch_has_its_own_draws),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
