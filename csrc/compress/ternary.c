/* SPDX-License-Identifier: Apache-2.0
 * Codecs that send little more than signs: terngrad, and sign (below).
 *
 * TernGrad: a scale s for each tensor, and for each value x the number -1, 0 or 1. It is not 0 with
 * probability |x| / s (Wen et al. 2017, arXiv 1705.07878). Values are first clipped to `clip`
 * standard deviations of their tensor (0: no clipping); s is the largest magnitude after that.
 *
 * Payload, for each tensor: s as a float; then a code for each value: 0 for 0, 1 for +1, 2 for -1.
 * A code takes two bits or, with is_short, a byte has five codes as digits of base 3, the first
 * code as the lowest digit. */
#include "compress/bits.h"
#include "compress/codec.h"
#include "compress/loops.h"

#include <math.h>

enum { DIGITS = 5, LARGEST_CODE_BYTE = 242 /* 3^5 - 1 */ };

static int ternary_is_valid(const fed_codec *codec) {
    return codec->clip >= 0 && isfinite(codec->clip);
}

static size_t codes_bytes(const fed_codec *codec, size_t size) {
    return codec->is_short ? (size + DIGITS - 1) / DIGITS : fed_bytes_of_bits(2 * size);
}

static size_t ternary_capacity(const fed_codec *codec) {
    size_t num_bytes = 0;
    for (size_t t = 0; t < codec->tensors.num; t++)
        num_bytes += sizeof(float) + codes_bytes(codec, fed_tensor_size(&codec->tensors.each[t]));
    return num_bytes;
}

/* The largest magnitude of a tensor after clipping. */
static float find_scale(const float *values, size_t size, double clip) {
    double sum = 0, squares = 0, most = 0;
    for (size_t v = 0; v < size; v++) {
        const double magnitude = fabs((double)values[v]);
        sum += values[v];
        most = magnitude > most ? magnitude : most;
    }
    const double mean = sum / (double)size;
    for (size_t v = 0; v < size; v++) squares += (values[v] - mean) * (values[v] - mean);
    const double bound = clip * sqrt(squares / (double)size);
    return (float)(clip > 0 && bound < most ? bound : most);
}

static void put_codes(fed_bit_writer *writer, const uint32_t *codes, size_t num, int is_short) {
    if (!is_short) {
        for (size_t v = 0; v < num; v++) fed_put_bits(writer, codes[v], 2);
        return;
    }
    for (size_t first = 0; first < num; first += DIGITS) {
        uint32_t byte = 0;
        for (size_t v = fed_smaller(num, first + DIGITS); v > first; v--)
            byte = 3 * byte + codes[v - 1];
        fed_put_bits(writer, byte, 8);
    }
}

static int ternary_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes) {
    enum { CHUNK = FED_CODEC_CHUNK / DIGITS * DIGITS }; /* a byte never crosses two chunks */
    fed_bit_writer writer = {.at = payload};
    uint32_t words[CHUNK], codes[CHUNK];
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const float scale = find_scale(values, size, codec->clip);
        fed_put_float(&writer, scale);
        for (size_t first = 0; first < size; first += CHUNK) {
            const size_t num = fed_smaller(size - first, CHUNK);
            fed_draw(draws, words, num);
            for (size_t v = 0; v < num; v++) {
                const double value = values[first + v];
                const int is_one = fed_unit_uniform(words[v]) * scale < fabs(value);
                codes[v] = is_one ? (value < 0 ? 2 : 1) : 0;
            }
            put_codes(&writer, codes, num, codec->is_short);
        }
        fed_end_byte(&writer);
        values += size;
    }
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

/* Reads the codes of at most DIGITS values. */
static void get_codes(fed_bit_reader *reader, uint32_t *codes, size_t num, int is_short) {
    if (!is_short) {
        for (size_t v = 0; v < num; v++) codes[v] = fed_get_bits(reader, 2);
        return;
    }
    uint32_t byte = fed_get_bits(reader, 8);
    if (byte > LARGEST_CODE_BYTE) reader->has_failed = 1;
    for (size_t v = 0; v < num; v++) {
        codes[v] = byte % 3;
        byte /= 3;
    }
    if (byte != 0) reader->has_failed = 1;
}

static int ternary_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                          size_t num_bytes, float *values) {
    (void)draws;
    if (num_bytes != ternary_capacity(codec)) return FED_ERR_PAYLOAD;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const float scale = fed_get_float(&reader);
        if (!fed_is_scale(scale)) return FED_ERR_PAYLOAD;
        const float decoded[] = {0, scale, -scale};
        for (size_t first = 0; first < size; first += DIGITS) {
            const size_t num = fed_smaller(size - first, DIGITS);
            uint32_t codes[DIGITS];
            get_codes(&reader, codes, num, codec->is_short);
            for (size_t v = 0; v < num; v++) {
                if (codes[v] > 2) return FED_ERR_PAYLOAD;
                values[first + v] = decoded[codes[v]];
            }
        }
        fed_skip_to_byte(&reader);
        values += size;
    }
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_ternary_codec = {ternary_is_valid, ternary_capacity, ternary_encode,
                                         ternary_decode, NULL};

/* ---- Sign ------------------------------------------------------------------------------------ */

/* The mean magnitude of each tensor and the sign of each value; the sign of 0 is +. Biased, made
 * for error feedback (Karimireddy et al. 2019, arXiv 1901.09847).
 *
 * Payload, for each tensor: the mean magnitude as a float, then a bit per value, 1 for negative. */

static int sign_is_valid(const fed_codec *codec) {
    (void)codec;
    return 1;
}

static size_t sign_capacity(const fed_codec *codec) {
    size_t num_bytes = 0;
    for (size_t t = 0; t < codec->tensors.num; t++)
        num_bytes += sizeof(float) + fed_bytes_of_bits(fed_tensor_size(&codec->tensors.each[t]));
    return num_bytes;
}

static int sign_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                       uint8_t *payload, size_t *num_bytes) {
    (void)draws;
    const fed_codec_loops *loops = fed_active_loops();
    fed_bit_writer writer = {.at = payload};
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const double sum = loops->sum_of_magnitudes(values, size);
        fed_put_float(&writer, (float)(sum / (double)size));
        loops->pack_signs(values, size / 8, writer.at);
        writer.at += size / 8;
        for (size_t v = size / 8 * 8; v < size; v++) fed_put_bits(&writer, values[v] < 0, 1);
        fed_end_byte(&writer);
        values += size;
    }
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

static int sign_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                       size_t num_bytes, float *values) {
    (void)draws;
    if (num_bytes != sign_capacity(codec)) return FED_ERR_PAYLOAD;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const float scale = fed_get_float(&reader);
        if (!fed_is_scale(scale)) return FED_ERR_PAYLOAD;
        fed_active_loops()->expand_signs(reader.at, size / 8, scale, values);
        reader.at += size / 8;
        for (size_t v = size / 8 * 8; v < size; v++)
            values[v] = fed_get_bits(&reader, 1) ? -scale : scale;
        fed_skip_to_byte(&reader);
        values += size;
    }
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_sign_codec = {sign_is_valid, sign_capacity, sign_encode, sign_decode, NULL};
