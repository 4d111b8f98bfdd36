/* SPDX-License-Identifier: Apache-2.0
 * x86-64-v4: 512-bit vectors, 32 registers. */
#define VW 16
#define KERNELS fed_kernels_avx512
#define KERNELS_NAME "avx512"
#include "impl.inc"
