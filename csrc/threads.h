/* SPDX-License-Identifier: Apache-2.0
 * OpenMP, or substitutes for a build with one thread; and work that threads share. Only
 * cohort/cohort.c, cohort/score.c and threads.c start threads. */
#ifndef FED_THREADS_H
#define FED_THREADS_H

#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#else
typedef int omp_lock_t; /* one thread: nothing to lock */
static inline void omp_init_lock(omp_lock_t *lock) { (void)lock; }
static inline void omp_destroy_lock(omp_lock_t *lock) { (void)lock; }
static inline void omp_set_lock(omp_lock_t *lock) { (void)lock; }
static inline void omp_unset_lock(omp_lock_t *lock) { (void)lock; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

/* Does one part of shared work, on worker 0..num_workers-1. */
typedef void fed_part(void *context, size_t part, int worker);

/* Runs parts 0..num_parts-1, in any order, and returns when all are done. */
void fed_share(int num_workers, size_t num_parts, fed_part *run, void *context);

#endif
