/* SPDX-License-Identifier: Apache-2.0
 * Stochastic rounding to a grid: uniform (2^b levels between the least and the largest value of
 * each tensor; Konecny et al. 2016, arXiv 1611.00429) and fixed-step (multiples of one step, which
 * server and clients share; TFF's stochastic discretization).
 *
 * Payload of uniform, for each tensor: smallest and largest value as floats, then b bits per value.
 * Payload of fixed-step: b bits per value, the multiple plus 2^(b-1); multiples outside the range
 * are moved to its ends.
 */
#include "compress/bits.h"
#include "compress/codec.h"
#include "compress/loops.h"

#include <math.h>

enum { MAX_BITS = 16 };

static int has_bits(const fed_codec *codec) { return codec->bits >= 1 && codec->bits <= MAX_BITS; }

/* ---- Uniform --------------------------------------------------------------------------------- */

static size_t uniform_capacity(const fed_codec *codec) {
    size_t num_bytes = 0;
    for (size_t t = 0; t < codec->tensors.num; t++)
        num_bytes += 2 * sizeof(float) +
                     fed_bytes_of_bits(codec->bits * fed_tensor_size(&codec->tensors.each[t]));
    return num_bytes;
}

static void put_levels(fed_bit_writer *writer, const int32_t *levels, size_t num_values,
                       unsigned bits) {
    if (bits == 8) { /* the usual case, and always at the beginning of a byte */
        for (size_t v = 0; v < num_values; v++) writer->at[v] = (uint8_t)levels[v];
        writer->at += num_values;
        return;
    }
    for (size_t v = 0; v < num_values; v++) fed_put_bits(writer, (uint32_t)levels[v], bits);
}

static int uniform_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes) {
    const fed_codec_loops *loops = fed_active_loops();
    const int32_t last = (int32_t)((1u << codec->bits) - 1);
    fed_bit_writer writer = {.at = payload};
    uint32_t words[FED_CODEC_CHUNK];
    int32_t levels[FED_CODEC_CHUNK];
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        float least, most;
        loops->find_range(values, size, &least, &most);
        const double range = (double)most - (double)least;
        const double scale = range > 0 ? last / range : 0;
        fed_put_float(&writer, least);
        fed_put_float(&writer, most);
        for (size_t first = 0; first < size; first += FED_CODEC_CHUNK) {
            const size_t num = fed_lesser(size - first, FED_CODEC_CHUNK);
            fed_draw(draws, words, num);
            loops->round_levels(values + first, words, num, least, scale, last, levels);
            put_levels(&writer, levels, num, codec->bits);
        }
        fed_end_byte(&writer);
        values += size;
    }
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

static int uniform_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                          size_t num_bytes, float *values) {
    (void)draws;
    const double last = (double)((1u << codec->bits) - 1);
    if (num_bytes != uniform_capacity(codec)) return FED_ERR_PAYLOAD;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const float least = fed_get_float(&reader), most = fed_get_float(&reader);
        if (!isfinite(least) || !isfinite(most) || least > most) return FED_ERR_PAYLOAD;
        const double step = ((double)most - (double)least) / last;
        if (codec->bits == 8) {
            fed_active_loops()->expand_bytes(reader.at, size, least, step, values);
            reader.at += size;
        } else {
            for (size_t v = 0; v < size; v++)
                values[v] = (float)(least + fed_get_bits(&reader, codec->bits) * step);
        }
        fed_skip_to_byte(&reader);
        values += size;
    }
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_uniform_codec = {has_bits, uniform_capacity, uniform_encode,
                                         uniform_decode};

/* ---- Fixed step ------------------------------------------------------------------------------ */

static int fixed_step_is_valid(const fed_codec *codec) {
    return has_bits(codec) && codec->step > 0 && isfinite(codec->step);
}

static size_t fixed_step_capacity(const fed_codec *codec) {
    return fed_bytes_of_bits(codec->bits * codec->num_params);
}

static int fixed_step_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                             uint8_t *payload, size_t *num_bytes) {
    const double middle = (double)(1u << (codec->bits - 1)), most = 2 * middle - 1;
    fed_bit_writer writer = {.at = payload};
    uint32_t words[FED_CODEC_CHUNK];
    for (size_t first = 0; first < codec->num_params; first += FED_CODEC_CHUNK) {
        const size_t num = fed_lesser(codec->num_params - first, FED_CODEC_CHUNK);
        fed_draw(draws, words, num);
        for (size_t v = 0; v < num; v++) {
            const double place = (double)values[first + v] / codec->step + middle;
            const double inside = place > 0 ? (place < most ? place : most) : 0;
            const uint32_t below = (uint32_t)inside;
            fed_put_bits(&writer, below + (fed_coin(words[v]) < inside - below), codec->bits);
        }
    }
    fed_end_byte(&writer);
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

static int fixed_step_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                             size_t num_bytes, float *values) {
    (void)draws;
    const double middle = (double)(1u << (codec->bits - 1));
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    for (size_t v = 0; v < codec->num_params; v++)
        values[v] = (float)((fed_get_bits(&reader, codec->bits) - middle) * codec->step);
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_fixed_step_codec = {fixed_step_is_valid, fixed_step_capacity,
                                            fixed_step_encode, fixed_step_decode};
