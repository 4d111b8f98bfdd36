/* SPDX-License-Identifier: Apache-2.0
 * x86-64-v3: 256-bit vectors and fused multiply-add. */
#define VW 8
#define KERNELS fed_kernels_avx2
#define KERNELS_NAME "avx2"
#include "impl.inc"
