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
        fed_active_loops()->pack_bytes(levels, num_values, writer->at);
        writer->at += num_values;
        return;
    }
    for (size_t v = 0; v < num_values; v++) fed_put_bits(writer, (uint32_t)levels[v], bits);
}

/* The grid of a tensor: its lowest value, its range of values, and the number of its last level,
 * from 0. */
typedef struct grid {
    double least, range;
    int32_t last;
} grid;

/* Writes the range of a tensor and returns its grid. */
static grid put_range(fed_bit_writer *writer, const float *values, size_t size, unsigned bits) {
    float least, most;
    fed_active_loops()->find_range(values, size, &least, &most);
    fed_put_float(writer, least);
    fed_put_float(writer, most);
    return (grid){least, (double)most - (double)least, (int32_t)((1u << bits) - 1)};
}

/* The state of encoding a vector, one value after the other. */
typedef struct encoding {
    fed_draws *draws;
    fed_bit_writer writer;
    const float *values;
    float *replaced; /* `values`, if decoded values are to replace them; or NULL */
    size_t num_encoded;
    double squared_error;          /* of the pieces that are complete */
    float errors[FED_CODEC_PIECE]; /* of the current piece */
} encoding;

enum { CHUNK = 512 }; /* values that are rounded at a time; divides FED_CODEC_PIECE */

/* Replaces the last num encoded values, all of one piece, by their decoded values. */
static void replace_chunk(encoding *state, const grid *of, const int32_t *levels, size_t num) {
    const fed_codec_loops *loops = fed_active_loops();
    const size_t first = state->num_encoded - num;
    loops->replace_levels(levels, num, of->least, of->range / of->last, state->replaced + first,
                          state->errors + first % FED_CODEC_PIECE);
    if (state->num_encoded % FED_CODEC_PIECE == 0)
        state->squared_error += loops->sum_of_squares(state->errors, FED_CODEC_PIECE);
}

/* Encodes the next num values, all of one tensor: rounds them and writes their levels. */
static void encode_values(encoding *state, const grid *of, size_t num, unsigned bits) {
    const double scale = of->range > 0 ? of->last / of->range : 0;
    uint32_t words[CHUNK];
    int32_t levels[CHUNK];
    for (const size_t end = state->num_encoded + num; state->num_encoded < end;) {
        const size_t first = state->num_encoded;
        const size_t count = fed_smaller(end - first, CHUNK - first % CHUNK);
        fed_draw(state->draws, words, count);
        fed_active_loops()->round_levels(state->values + first, words, count, of->least, scale,
                                         of->last, levels);
        put_levels(&state->writer, levels, count, bits);
        state->num_encoded += count;
        if (state->replaced != NULL) replace_chunk(state, of, levels, count);
    }
}

/* Encodes all values. Returns the size of the payload. */
static size_t encode_tensors(encoding *state, const fed_codec *codec, uint8_t *payload) {
    state->writer = (fed_bit_writer){.at = payload};
    state->num_encoded = 0;
    state->squared_error = 0;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const size_t size = fed_tensor_size(&codec->tensors.each[t]);
        const grid of =
            put_range(&state->writer, state->values + state->num_encoded, size, codec->bits);
        encode_values(state, &of, size, codec->bits);
        fed_end_byte(&state->writer);
    }
    return (size_t)(state->writer.at - payload);
}

static int uniform_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes) {
    encoding state;
    state.draws = draws;
    state.values = values;
    state.replaced = NULL;
    *num_bytes = encode_tensors(&state, codec, payload);
    return FED_OK;
}

static int uniform_replace(const fed_codec *codec, fed_draws *draws, float *values,
                           uint8_t *payload, size_t *num_bytes, double *squared_error) {
    encoding state;
    state.draws = draws;
    state.values = state.replaced = values;
    *num_bytes = encode_tensors(&state, codec, payload);
    *squared_error = state.squared_error + fed_active_loops()->sum_of_squares(
                                               state.errors, state.num_encoded % FED_CODEC_PIECE);
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

const fed_codec_ops fed_uniform_codec = {has_bits, uniform_capacity, uniform_encode, uniform_decode,
                                         uniform_replace};

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
        const size_t num = fed_smaller(codec->num_params - first, FED_CODEC_CHUNK);
        fed_draw(draws, words, num);
        for (size_t v = 0; v < num; v++) {
            const double place = (double)values[first + v] / codec->step + middle;
            const double inside = place > 0 ? (place < most ? place : most) : 0;
            const uint32_t below = (uint32_t)inside;
            fed_put_bits(&writer, below + (fed_unit_uniform(words[v]) < inside - below),
                         codec->bits);
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
                                            fixed_step_encode, fixed_step_decode, NULL};
