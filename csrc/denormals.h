/* SPDX-License-Identifier: Apache-2.0
 * Floating-point mode: inside the core denormals are treated as zero, on every thread. */
#ifndef FED_DENORMALS_H
#define FED_DENORMALS_H

#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned fp_mode;
static inline fp_mode denormals_off(void) {
    const fp_mode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
}
static inline void fp_restore(fp_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
#include <stdint.h>
typedef uint64_t fp_mode;
static inline fp_mode denormals_off(void) {
    fp_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    return before;
}
static inline void fp_restore(fp_mode before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
typedef int fp_mode;
static inline fp_mode denormals_off(void) { return 0; }
static inline void fp_restore(fp_mode before) { (void)before; }
#endif

#endif
