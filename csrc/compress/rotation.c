/* SPDX-License-Identifier: Apache-2.0
 * Quantisation after a random rotation: DRIVE (Vargaftik et al. 2021, arXiv 2105.08339), one bit
 * per value, and EDEN (Vargaftik et al. 2022, arXiv 2108.08842), 1 to 4 bits.
 *
 * A block x of d values, padded with zeros, is rotated to z = H S x / sqrt(d): S changes signs at
 * random, H is the Hadamard matrix. Each value of z is replaced by the nearest of a few numbers c
 * (for DRIVE its sign), times a scale. The scale of EDEN, and of DRIVE with is_unbiased, makes the
 * inner product of the decoded block and x exactly |x|^2. DRIVE's other scale is |z|_1 / d, which
 * minimises the squared error. The numbers c are optimal for normal values, which rotated values
 * approximate, so the result is only approximately unbiased.
 *
 * Payload, for each block: the scale as a float, then b bits per value of the padded block: the
 * index of |c|, and above it a bit that is 1 for negative values. A block of zeros has scale 0. */
#include "compress/bits.h"
#include "compress/codec.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_ROTATED_BITS = 4 };

/* Lloyd and Max's centroids of the standard normal distribution, the positive half, for 1 to 4
 * bits. */
static const double CENTROIDS[MAX_ROTATED_BITS][1 << (MAX_ROTATED_BITS - 1)] = {
    {.7978845608},
    {.4527800399, 1.5104176087},
    {.2450941631, .7560052490, 1.3439092614, 2.1519456699},
    {.1283950167, .3880482345, .6567589958, .9423402689, 1.2562309480, 1.6180460517, 2.0690167303,
     2.7325888041},
};

static int drive_is_valid(const fed_codec *codec) {
    return codec->block >= 1 && codec->block <= FED_MAX_CODED &&
           (codec->block & (codec->block - 1)) == 0;
}

static int eden_is_valid(const fed_codec *codec) {
    return drive_is_valid(codec) && codec->bits >= 1 && codec->bits <= MAX_ROTATED_BITS;
}

static size_t rotated_bytes(const fed_codec *codec, unsigned bits) {
    const size_t num_blocks = (codec->num_params + codec->block - 1) / codec->block;
    return num_blocks * (sizeof(float) + fed_bytes_of_bits(bits * codec->block));
}

static size_t drive_capacity(const fed_codec *codec) { return rotated_bytes(codec, 1); }
static size_t eden_capacity(const fed_codec *codec) { return rotated_bytes(codec, codec->bits); }

/* ---- The rotation ---------------------------------------------------------------------------- */

/* Changes the sign of each value whose bit in the next words is 1. */
static void change_signs(fed_draws *draws, float *values, size_t num_values) {
    for (size_t first = 0; first < num_values; first += 32) {
        uint32_t word;
        fed_draw(draws, &word, 1);
        for (size_t v = 0; v < fed_smaller(32, num_values - first); v++)
            if (word >> v & 1) values[first + v] = -values[first + v];
    }
}

/* Multiplies by the Hadamard matrix / sqrt(d), which is its own inverse; d a power of two. */
static void hadamard(float *values, size_t d) {
    for (size_t half = 1; half < d; half *= 2)
        for (size_t first = 0; first < d; first += 2 * half) {
            float *low = values + first, *high = low + half;
            for (size_t v = 0; v < half; v++) {
                const float sum = low[v] + high[v];
                high[v] = low[v] - high[v];
                low[v] = sum;
            }
        }
    const float factor = (float)(1 / sqrt((double)d));
    for (size_t v = 0; v < d; v++) values[v] *= factor;
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

/* Writes a rotated block z of squared norm `squares` for DRIVE. Returns the scale, which is not
 * finite if z is not. */
static double put_drive(const fed_codec *codec, fed_bit_writer *writer, const float *z,
                        double squares) {
    double sum = 0;
    for (size_t v = 0; v < codec->block; v++) {
        sum += fabs((double)z[v]);
        fed_put_bits(writer, z[v] < 0, 1);
    }
    if (sum == 0) return 0;
    if (!isfinite(sum)) return NAN;
    return codec->is_unbiased ? squares / sum : sum / (double)codec->block;
}

/* Writes a rotated block for EDEN, as put_drive does for DRIVE. */
static double put_eden(const fed_codec *codec, fed_bit_writer *writer, const float *z,
                       double squares) {
    const double *centroids = CENTROIDS[codec->bits - 1];
    const uint32_t num = 1u << (codec->bits - 1); /* centroids of the positive half */
    const double factor = squares > 0 ? sqrt((double)codec->block / squares) : 0;
    double product = 0;
    for (size_t v = 0; v < codec->block; v++) {
        const double magnitude = fabs((double)z[v]);
        uint32_t c = 0;
        while (c + 1 < num && 2 * magnitude * factor > centroids[c] + centroids[c + 1]) c++;
        product += centroids[c] * magnitude;
        fed_put_bits(writer, c | (z[v] < 0 ? num : 0), codec->bits);
    }
    if (!isfinite(product)) return NAN;
    return product > 0 ? squares / product : 0;
}

typedef double put_block(const fed_codec *codec, fed_bit_writer *writer, const float *z,
                         double squares);

static int rotated_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes, put_block *put) {
    float *z = fed_allocate(codec->block * sizeof *z);
    if (z == NULL) return FED_ERR_NO_MEMORY;
    fed_bit_writer writer = {.at = payload};
    int status = FED_OK;
    for (size_t first = 0; first < codec->num_params; first += codec->block) {
        const size_t num = fed_smaller(codec->block, codec->num_params - first);
        memset(z, 0, codec->block * sizeof *z);
        memcpy(z, values + first, num * sizeof *z);
        const double squares = fed_sum_of_squares(z, num);
        change_signs(draws, z, codec->block);
        hadamard(z, codec->block);
        fed_bit_writer scale_writer = writer; /* the scale comes first, but is known last */
        writer.at += sizeof(float);
        const float scale = (float)put(codec, &writer, z, squares);
        fed_put_float(&scale_writer, scale);
        fed_end_byte(&writer);
        if (!isfinite(scale)) status = FED_ERR_ARGUMENT;
    }
    free(z);
    *num_bytes = (size_t)(writer.at - payload);
    return status;
}

/* `centroids` are those of the positive half. */
static int rotated_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                          size_t num_bytes, float *values, unsigned bits, const double *centroids) {
    if (num_bytes != rotated_bytes(codec, bits)) return FED_ERR_PAYLOAD;
    float *z = fed_allocate(codec->block * sizeof *z);
    float *signs = fed_allocate(codec->block * sizeof *signs);
    int status = z != NULL && signs != NULL ? FED_OK : FED_ERR_NO_MEMORY;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    const uint32_t half = 1u << (bits - 1);
    for (size_t first = 0; status == FED_OK && first < codec->num_params; first += codec->block) {
        const size_t num = fed_smaller(codec->block, codec->num_params - first);
        const float scale = fed_get_float(&reader);
        if (!fed_is_scale(scale)) status = FED_ERR_PAYLOAD;
        for (size_t v = 0; v < codec->block; v++) {
            const uint32_t code = fed_get_bits(&reader, bits);
            const double centroid = scale * centroids[code % half];
            z[v] = (float)(code >= half ? -centroid : centroid);
            signs[v] = 1;
        }
        fed_skip_to_byte(&reader);
        change_signs(draws, signs, codec->block);
        hadamard(z, codec->block);
        for (size_t v = 0; v < num; v++) values[first + v] = z[v] * signs[v];
    }
    free(z);
    free(signs);
    if (status != FED_OK) return status;
    return fed_is_read(&reader) ? FED_OK : FED_ERR_PAYLOAD;
}

static int drive_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                        uint8_t *payload, size_t *num_bytes) {
    return rotated_encode(codec, draws, values, payload, num_bytes, put_drive);
}

static int drive_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                        size_t num_bytes, float *values) {
    static const double ONE = 1;
    return rotated_decode(codec, draws, payload, num_bytes, values, 1, &ONE);
}

const fed_codec_ops fed_drive_codec = {drive_is_valid, drive_capacity, drive_encode, drive_decode,
                                       NULL};

static int eden_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                       uint8_t *payload, size_t *num_bytes) {
    return rotated_encode(codec, draws, values, payload, num_bytes, put_eden);
}

static int eden_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                       size_t num_bytes, float *values) {
    return rotated_decode(codec, draws, payload, num_bytes, values, codec->bits,
                          CENTROIDS[codec->bits - 1]);
}

const fed_codec_ops fed_eden_codec = {eden_is_valid, eden_capacity, eden_encode, eden_decode, NULL};
