/* SPDX-License-Identifier: Apache-2.0
 * The internal declarations of compress/: random words, and the table row of a kind of codec. The
 * public ones are in fed.h.
 *
 * Every codec draws 32-bit words in a fixed order, so that a reference implementation can draw the
 * same words. The folder is compiled without contraction into FMA, so payloads do not depend on the
 * instruction set. */
#ifndef FED_CODEC_H
#define FED_CODEC_H

#include "fed.h"
#include "memory.h"

#include <math.h>

enum { FED_CODEC_CHUNK = 256 }; /* values between two calls of the generator */

/* A source of random words: a keyed stream, or words that a test gives. */
typedef struct fed_draws {
    fed_rng rng;
    const uint32_t *given; /* NULL: draw from rng */
    size_t num_given;      /* words left; further ones are 0 */
} fed_draws;

/* Writes the next random words. */
void fed_draw(fed_draws *draws, uint32_t *words /* out [num_words] */, size_t num_words);

/* A word as a number in [0, 1), which is below p with probability p. */
static inline double fed_unit_uniform(uint32_t word) { return (double)word * 0x1p-32; }

/* A kind of codec. Encoders get finite values and a payload of fed_codec_capacity bytes. Decoders
 * get any bytes; they return FED_ERR_PAYLOAD for those that no encoder writes. Both may return
 * FED_ERR_NO_MEMORY. `replace` encodes values and replaces them by what is decoded, piece by piece.
 * If it is NULL, all values are encoded before they are decoded. */
typedef struct fed_codec_ops {
    int (*is_valid)(const fed_codec *codec);
    size_t (*capacity)(const fed_codec *codec);
    int (*encode)(const fed_codec *codec, fed_draws *draws, const float *values, uint8_t *payload,
                  size_t *num_bytes);
    int (*decode)(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                  size_t num_bytes, float *values);
    int (*replace)(const fed_codec *codec, fed_draws *draws, float *values, uint8_t *payload,
                   size_t *num_bytes, double *squared_error);
} fed_codec_ops;

extern const fed_codec_ops fed_uniform_codec, fed_fixed_step_codec, fed_qsgd_codec,
    fed_ternary_codec, fed_sign_codec, fed_top_k_codec, fed_random_k_codec, fed_left_factor_codec,
    fed_low_rank_codec, fed_sketch_codec, fed_drive_codec, fed_eden_codec;

/* fed_codec_encode and fed_codec_decode with a source of words in place of a key. */
int fed_codec_encode_with(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes);
int fed_codec_decode_with(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                          size_t num_bytes, float *values);

/* fed_codec_encode of values that are known to be finite, in the caller's floating-point mode. */
int fed_codec_encode_finite(const fed_codec *codec, const fed_key *key, const float *values,
                            uint8_t *payload, size_t *num_bytes);
/* 1 if fed_codec_replace_finite needs no scratch. */
int fed_codec_replaces(const fed_codec *codec);
/* Encodes as fed_codec_encode_finite does, then replaces the values by the decoded values.
 * `scratch` [P] is overwritten; NULL if it is not needed. *squared_error is not finite if the
 * decoded values are not. */
int fed_codec_replace_finite(const fed_codec *codec, const fed_key *key, float *values,
                             float *scratch, uint8_t *payload, size_t *num_bytes,
                             double *squared_error);

/* The sum of squares of values [num_values], in float64; not finite if a value is not. */
double fed_sum_of_squares(const float *values, size_t num_values);

/* 1 if an encoder may write this number as a scale: it is finite, and its sign bit is 0, so that -0
 * is refused, too. */
static inline int fed_is_scale(float number) { return isfinite(number) && !signbit(number); }

static inline size_t fed_bytes_of_bits(size_t num_bits) { return (num_bits + 7) / 8; }

#endif
