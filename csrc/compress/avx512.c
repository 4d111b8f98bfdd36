/* SPDX-License-Identifier: Apache-2.0 */
#define LOOPS fed_codec_loops_avx512
#include "compress/loops.inc"
