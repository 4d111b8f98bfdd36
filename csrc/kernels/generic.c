/* SPDX-License-Identifier: Apache-2.0
 * Any x86-64 or arm64 machine: 128-bit vectors (SSE2, NEON), and whatever the compiler makes of
 * them elsewhere. */
#define VW 4
#define KERNELS fed_kernels_generic
#define KERNELS_NAME "generic"
#include "impl.inc"
