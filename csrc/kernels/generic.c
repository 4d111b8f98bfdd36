/* SPDX-License-Identifier: Apache-2.0
 * Any machine: 128-bit vectors, which are SSE2 on x86-64 and NEON on arm64; the compiler emulates
 * them elsewhere. */
#define VW 4
#define KERNELS fed_kernels_generic
#define KERNELS_NAME "generic"
#include "impl.inc"
