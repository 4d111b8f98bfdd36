/* SPDX-License-Identifier: Apache-2.0
 * The loops of compression that take most of its time, compiled for each instruction set. They use
 * no fused multiply-add and a fixed order of addition, so all instruction sets give the same
 * bytes. */
#ifndef FED_LOOPS_H
#define FED_LOOPS_H

#include <stddef.h>
#include <stdint.h>

enum { FED_CODEC_PIECE = 2048 }; /* values that a loop processes at a time */

typedef struct fed_codec_loops {
    /* The sum of squares, which is not finite if a value is not. */
    double (*sum_of_squares)(const float *values, size_t num_values);
    /* values = row + decay * residual (NULL: zeros). Returns the sum of squares. */
    double (*take_input)(const float *row, const float *residual, double decay, size_t num_values,
                         float *restrict values);
    /* values -= decoded. Returns the sum of squares. */
    double (*subtract)(float *restrict values, const float *decoded, size_t num_values);
    /* values = decoded. Returns the sum of squares of the old values - decoded. */
    double (*replace)(float *restrict values, const float *decoded, size_t num_values);
    /* The least and the largest of num_values >= 1 finite values. */
    void (*find_range)(const float *values, size_t num_values, float *least, float *most);
    /* levels = (values - least) * scale, which are 0..last, rounded up or down at random: up if
     * the fraction is above the word as a number in [0, 1). */
    void (*round_levels)(const float *values, const uint32_t *words, size_t num_values,
                         double least, double scale, int32_t last, int32_t *restrict levels);
    /* bytes = the lowest byte of each level. */
    void (*pack_bytes)(const int32_t *levels, size_t num_values, uint8_t *restrict bytes);
    /* values = least + levels * step; errors = the old values - the new ones. */
    void (*replace_levels)(const int32_t *levels, size_t num_values, double least, double step,
                           float *restrict values /* in-out */, float *restrict errors);
    /* values = least + bytes * step. */
    void (*expand_bytes)(const uint8_t *bytes, size_t num_values, double least, double step,
                         float *restrict values);
    /* Writes the places of the values whose magnitude, as bits, is at least `least`, in order.
     * Returns their number; if it is above `most`, not all places are written. */
    size_t (*find_large)(const float *values, size_t num_values, uint32_t least, size_t most,
                         uint32_t *restrict places /* out [most + FED_CODEC_PIECE] */);
    /* The sum of the magnitudes. */
    double (*sum_of_magnitudes)(const float *values, size_t num_values);
    /* Writes a bit for each of 8 * num_bytes values, from the lowest bit of a byte: 1 if the value
     * is below 0. */
    void (*pack_signs)(const float *values, size_t num_bytes, uint8_t *restrict bytes);
    /* values = -magnitude where the bit is 1, else magnitude. */
    void (*expand_signs)(const uint8_t *bytes, size_t num_bytes, float magnitude,
                         float *restrict values /* out [8 * num_bytes] */);
} fed_codec_loops;

extern const fed_codec_loops fed_codec_loops_generic;
#ifdef FED_HAVE_AVX2
extern const fed_codec_loops fed_codec_loops_avx2;
#endif
#ifdef FED_HAVE_AVX512
extern const fed_codec_loops fed_codec_loops_avx512;
#endif

/* The loops of the instruction set that fed_select_isa chose. */
const fed_codec_loops *fed_active_loops(void);

/* Magnitudes of floats compare as these bits do. */
static inline uint32_t fed_magnitude_bits(const float *value) {
    union {
        float number;
        uint32_t bits;
    } both = {*value};
    return both.bits & 0x7fffffffu;
}

#endif
