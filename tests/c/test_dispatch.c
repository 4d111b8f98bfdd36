/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of dispatch.c: which kernels may be chosen, and which then run.
 */
#include "fixtures.h"

static void test_generic_always_runs(void) {
    CHECK_EQUAL(fed_isa_runs("generic"), 1);
    CHECK_EQUAL(fed_select_isa("generic"), FED_OK);
    CHECK(fed_active_kernels() == &fed_kernels_generic);
}

static void test_a_variant_can_be_chosen_exactly_if_it_runs(void) {
    for (size_t i = 0; i < LENGTH(ISA_NAMES); i++) {
        const char *name = ISA_NAMES[i];
        CHECK_EQUAL(fed_select_isa("generic"), FED_OK);
        const int runs = fed_isa_runs(name);
        if (!runs) printf("skip %s: not built, or not on this machine\n", name);
        CHECK_EQUAL(fed_select_isa(name), runs ? FED_OK : FED_ERR_ISA);
        CHECK(strcmp(fed_isa_name(), runs ? name : "generic") == 0);
        CHECK(strcmp(fed_active_kernels()->name, fed_isa_name()) == 0);
    }
}

static void test_null_chooses_the_widest_that_runs(void) {
    const char *widest = NULL;
    for (size_t i = 0; i < LENGTH(ISA_NAMES); i++)
        if (fed_isa_runs(ISA_NAMES[i])) widest = ISA_NAMES[i];
    CHECK_EQUAL(fed_select_isa("generic"), FED_OK);
    CHECK_EQUAL(fed_select_isa(NULL), FED_OK);
    CHECK(strcmp(fed_isa_name(), widest) == 0);
}

static void test_unknown_names_leave_the_choice(void) {
    static const char *const names[] = {"", "sse9", "GENERIC", "avx", "avx5122"};
    CHECK_EQUAL(fed_select_isa(NULL), FED_OK);
    const fed_kernels *before = fed_active_kernels();
    for (size_t i = 0; i < LENGTH(names); i++) {
        CHECK_EQUAL(fed_isa_runs(names[i]), 0);
        CHECK_EQUAL(fed_select_isa(names[i]), FED_ERR_ISA);
        CHECK(fed_active_kernels() == before);
    }
}

static void test_openmp_is_told_as_built(void) {
#ifdef _OPENMP
    CHECK_EQUAL(fed_has_openmp(), 1);
#else
    CHECK_EQUAL(fed_has_openmp(), 0);
#endif
}

static void test_fma_chain_counts_its_operations(void) {
    for (size_t i = 0; i < LENGTH(ISA_NAMES); i++) {
        if (fed_select_isa(ISA_NAMES[i]) != FED_OK) continue;
        CHECK(fed_fma_chain(0) == 0);
        CHECK(fed_fma_chain(1) >= 2);
        CHECK(fed_fma_chain(1000) == 1000 * fed_fma_chain(1));
    }
}

static const test_case TESTS[] = {
    TEST(test_generic_always_runs),
    TEST(test_a_variant_can_be_chosen_exactly_if_it_runs),
    TEST(test_null_chooses_the_widest_that_runs),
    TEST(test_unknown_names_leave_the_choice),
    TEST(test_openmp_is_told_as_built),
    TEST(test_fma_chain_counts_its_operations),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
