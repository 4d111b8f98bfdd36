/* SPDX-License-Identifier: Apache-2.0
 * Detects the machine's instruction sets and chooses the kernels of the process. */
#include "compress/loops.h"
#include "fed.h"
#include "kernels/kernels.h"

#include <string.h>

/* Written once, at import, before there are threads; read-only afterwards. */
static const fed_kernels *active = &fed_kernels_generic;

/* The features that -march=x86-64-v3 uses, as far as __builtin_cpu_supports has names for them.
 * AVX-512 code uses them, too. */
#if defined(FED_HAVE_AVX2) || defined(FED_HAVE_AVX512)
static int machine_has_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
#endif

static int machine_has(const fed_kernels *kernels) {
#ifdef FED_HAVE_AVX2
    if (kernels == &fed_kernels_avx2) return machine_has_v3();
#endif
#ifdef FED_HAVE_AVX512
    if (kernels == &fed_kernels_avx512)
        return machine_has_v3() && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return kernels == &fed_kernels_generic;
}

/* Narrowest first. */
static const fed_kernels *const built[] = {
    &fed_kernels_generic,
#ifdef FED_HAVE_AVX2
    &fed_kernels_avx2,
#endif
#ifdef FED_HAVE_AVX512
    &fed_kernels_avx512,
#endif
};
enum { NUM_BUILT = sizeof built / sizeof built[0] };

int fed_select_isa(const char *name) {
    const fed_kernels *chosen = NULL;
    for (int v = 0; v < NUM_BUILT; v++)
        if (machine_has(built[v]) && (name == NULL || strcmp(name, built[v]->name) == 0))
            chosen = built[v];
    if (chosen == NULL) return FED_ERR_ISA;
    active = chosen;
    return FED_OK;
}

const char *fed_isa_name(void) { return active->name; }

int fed_isa_runs(const char *name) {
    for (int v = 0; v < NUM_BUILT; v++)
        if (strcmp(name, built[v]->name) == 0) return machine_has(built[v]);
    return 0;
}

int fed_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

const fed_kernels *fed_active_kernels(void) { return active; }

const fed_codec_loops *fed_active_loops(void) {
#ifdef FED_HAVE_AVX2
    if (active == &fed_kernels_avx2) return &fed_codec_loops_avx2;
#endif
#ifdef FED_HAVE_AVX512
    if (active == &fed_kernels_avx512) return &fed_codec_loops_avx512;
#endif
    return &fed_codec_loops_generic;
}

double fed_fma_chain(size_t num_steps) { return active->fma_chain(num_steps); }
