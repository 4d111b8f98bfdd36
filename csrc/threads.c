/* SPDX-License-Identifier: Apache-2.0
 * Shares work among threads: the work on one client, if a cohort has fewer clients than there are
 * threads, and work on whole vectors, such as the deltas of a cohort. The results do not depend on
 * the number of threads. */
#include "threads.h"
#include "denormals.h"

void fed_share(int num_workers, size_t num_parts, fed_part *run, void *context) {
    if (num_workers <= 1 || num_parts <= 1) {
        for (size_t part = 0; part < num_parts; part++) run(context, part, 0);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(num_workers)
#endif
    {
        const fp_mode before = denormals_off();
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
        for (size_t part = 0; part < num_parts; part++) run(context, part, omp_get_thread_num());
        fp_restore(before);
    }
}
