/* SPDX-License-Identifier: Apache-2.0
 * QSGD: the vector's L2 norm, and for each value its sign and a level 0..s of |x| s / norm, rounded
 * stochastically (Alistarh et al. 2017, arXiv 1610.02132).
 *
 * Payload: the norm as a float; then level + s of each value in ceil(log2(2s+1)) bits. With
 * is_short the values are instead coded by Elias gamma: for each value that is not 0, gamma of the
 * number of zeros before it plus 1, a sign bit (1: negative), and gamma of the level. Gamma of v:
 * floor(log2 v) zeros, a one, and the bits of v below its highest. Zeros at the end are not
 * sent. */
#include "compress/bits.h"
#include "compress/codec.h"

#include <math.h>

enum { MAX_LEVELS = 32767 };

static int qsgd_is_valid(const fed_codec *codec) {
    return codec->levels >= 1 && codec->levels <= MAX_LEVELS;
}

/* floor(log2 number), number at least 1. */
static unsigned log2_floor(uint32_t number) {
    unsigned result = 0;
    while (number >>= 1) result++;
    return result;
}

/* Bits of a number 0..2s. */
static unsigned level_bits(const fed_codec *codec) { return log2_floor(2 * codec->levels) + 1; }

static size_t qsgd_capacity(const fed_codec *codec) {
    /* The longest code of a value: gamma(1), a sign and gamma(s). A run of zeros takes fewer bits
     * than a code for each of them. */
    const size_t most = 2 + 2 * (size_t)log2_floor(codec->levels) + 1;
    const size_t bits = codec->is_short ? most : level_bits(codec);
    return sizeof(float) + fed_bytes_of_bits(codec->num_params * bits);
}

static void put_gamma(fed_bit_writer *writer, uint32_t number) {
    const unsigned num_low = log2_floor(number);
    fed_put_bits(writer, 0, num_low);
    fed_put_bits(writer, 1, 1);
    fed_put_bits(writer, number & ((1u << num_low) - 1), num_low);
}

/* Levels of at most FED_CODEC_CHUNK values, -s..s. */
static void round_chunk(const float *values, const uint32_t *words, size_t num_values, double scale,
                        int32_t last, int32_t *levels) {
    for (size_t v = 0; v < num_values; v++) {
        const double place = fabs((double)values[v]) * scale;
        const int32_t below = (int32_t)place;
        const int32_t level = below + (fed_unit_uniform(words[v]) < place - (double)below);
        const int32_t inside = level < last ? level : last;
        levels[v] = values[v] < 0 ? -inside : inside;
    }
}

static int qsgd_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                       uint8_t *payload, size_t *num_bytes) {
    const int32_t last = (int32_t)codec->levels;
    const float norm = (float)sqrt(fed_sum_of_squares(values, codec->num_params));
    if (!isfinite(norm)) return FED_ERR_ARGUMENT;
    const double scale = norm > 0 ? last / (double)norm : 0;
    const unsigned bits = level_bits(codec);
    fed_bit_writer writer = {.at = payload};
    uint32_t words[FED_CODEC_CHUNK], num_zeros = 0;
    int32_t levels[FED_CODEC_CHUNK];
    fed_put_float(&writer, norm);
    for (size_t first = 0; first < codec->num_params; first += FED_CODEC_CHUNK) {
        const size_t num = fed_smaller(codec->num_params - first, FED_CODEC_CHUNK);
        fed_draw(draws, words, num);
        round_chunk(values + first, words, num, scale, last, levels);
        for (size_t v = 0; v < num; v++) {
            if (!codec->is_short) {
                fed_put_bits(&writer, (uint32_t)(levels[v] + last), bits);
            } else if (levels[v] == 0) {
                num_zeros++;
            } else {
                put_gamma(&writer, num_zeros + 1);
                fed_put_bits(&writer, levels[v] < 0, 1);
                put_gamma(&writer, (uint32_t)(levels[v] < 0 ? -levels[v] : levels[v]));
                num_zeros = 0;
            }
        }
    }
    fed_end_byte(&writer);
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

/* Reads a number. Returns 0 at the end, where fewer than 8 zero bits are left, and on failure. */
static uint32_t get_gamma(fed_bit_reader *reader) {
    unsigned num_low = 0;
    for (;;) {
        if (reader->at == reader->end && reader->num_bits == 0) {
            if (num_low >= 8) reader->has_failed = 1;
            return 0;
        }
        if (fed_get_bits(reader, 1) == 1) break;
        if (++num_low > 31) {
            reader->has_failed = 1;
            return 0;
        }
    }
    const uint32_t number = (1u << num_low) | fed_get_bits(reader, num_low);
    return reader->has_failed ? 0 : number;
}

static int decode_gamma(const fed_codec *codec, fed_bit_reader *reader, double step,
                        float *values) {
    memset(values, 0, codec->num_params * sizeof *values);
    size_t next = 0; /* index of the first value that is not decoded yet */
    for (;;) {
        const uint32_t distance = get_gamma(reader);
        if (distance == 0) break;
        if (distance > codec->num_params - next) return FED_ERR_PAYLOAD;
        next += distance;
        const uint32_t is_negative = fed_get_bits(reader, 1);
        const uint32_t level = get_gamma(reader);
        if (level == 0 || level > codec->levels) return FED_ERR_PAYLOAD;
        values[next - 1] = (float)(is_negative ? -(level * step) : level * step);
    }
    return fed_is_read(reader) ? FED_OK : FED_ERR_PAYLOAD;
}

static int qsgd_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                       size_t num_bytes, float *values) {
    (void)draws;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    const float norm = fed_get_float(&reader);
    if (reader.has_failed || !fed_is_scale(norm)) return FED_ERR_PAYLOAD;
    const double step = (double)norm / codec->levels;
    if (codec->is_short) return decode_gamma(codec, &reader, step, values);
    const unsigned bits = level_bits(codec);
    for (size_t v = 0; v < codec->num_params; v++) {
        const uint32_t code = fed_get_bits(&reader, bits);
        if (code > 2 * codec->levels) return FED_ERR_PAYLOAD;
        values[v] = (float)(((double)code - codec->levels) * step);
    }
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_qsgd_codec = {qsgd_is_valid, qsgd_capacity, qsgd_encode, qsgd_decode, NULL};
