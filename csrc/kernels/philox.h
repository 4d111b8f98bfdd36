/* SPDX-License-Identifier: Apache-2.0
 * A round of the counter-based generator Philox-4x64-10 (Salmon et al., "Parallel random numbers:
 * as easy as 1, 2, 3", 2011). */
#ifndef FED_PHILOX_H
#define FED_PHILOX_H

#include <stdint.h>

enum { FED_PHILOX_ROUNDS = 10 };

#define FED_PHILOX_FACTOR0 UINT64_C(0xD2E7470EE14C6C93)
#define FED_PHILOX_FACTOR1 UINT64_C(0xCA5A826395121157)
/* Added to the key after each round. */
#define FED_PHILOX_WEYL0 UINT64_C(0x9E3779B97F4A7C15)
#define FED_PHILOX_WEYL1 UINT64_C(0xBB67AE8584CAA73B)

__extension__ typedef unsigned __int128 fed_uint128;

static inline void fed_philox_round(uint64_t words[4], uint64_t key0, uint64_t key1) {
    const fed_uint128 product0 = (fed_uint128)FED_PHILOX_FACTOR0 * words[0];
    const fed_uint128 product1 = (fed_uint128)FED_PHILOX_FACTOR1 * words[2];
    words[0] = (uint64_t)(product1 >> 64) ^ words[1] ^ key0;
    words[1] = (uint64_t)product1;
    words[2] = (uint64_t)(product0 >> 64) ^ words[3] ^ key1;
    words[3] = (uint64_t)product0;
}

#endif
