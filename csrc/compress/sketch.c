/* SPDX-License-Identifier: Apache-2.0
 * Count sketch [R, W]: in each of R rows a value is added, with a random sign, to one of W cells
 * (Charikar et al. 2002; for federated learning Rothchild et al. 2020, FetchSGD, arXiv 2007.07682).
 * A value is estimated as the median of its R signed cells. Sketches add up: the sum of sketches is
 * the sketch of the sum.
 *
 * The word of value i and row r, number i R + r of the stream, gives the cell by its highest bits
 * and the sign by its lowest (1: negative). Payload: the cells as floats. */
#include "compress/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 15, VALUES = FED_CODEC_CHUNK / 16 };

static int sketch_is_valid(const fed_codec *codec) {
    return codec->depth >= 1 && codec->depth <= MAX_DEPTH && codec->width >= 1 &&
           codec->width <= FED_MAX_CODED / codec->depth;
}

static size_t sketch_capacity(const fed_codec *codec) {
    return codec->depth * codec->width * sizeof(float);
}

static inline size_t cell_of(const fed_codec *codec, size_t row, uint32_t word) {
    return row * codec->width + (size_t)(((uint64_t)word * codec->width) >> 32);
}

static inline double sign_of(uint32_t word) { return word & 1 ? -1 : 1; }

static int sketch_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                         uint8_t *payload, size_t *num_bytes) {
    const size_t depth = codec->depth, num_cells = depth * codec->width;
    double *cells = fed_allocate(num_cells * sizeof *cells);
    if (cells == NULL) return FED_ERR_NO_MEMORY;
    memset(cells, 0, num_cells * sizeof *cells);
    uint32_t words[VALUES * MAX_DEPTH];
    for (size_t first = 0; first < codec->num_params; first += VALUES) {
        const size_t num = fed_smaller(codec->num_params - first, VALUES);
        fed_draw(draws, words, num * depth);
        for (size_t v = 0; v < num; v++)
            for (size_t r = 0; r < depth; r++) {
                const uint32_t word = words[v * depth + r];
                cells[cell_of(codec, r, word)] += sign_of(word) * (double)values[first + v];
            }
    }
    int is_finite = 1;
    for (size_t k = 0; k < num_cells; k++) {
        const float cell = (float)cells[k];
        is_finite &= isfinite(cell) != 0;
        memcpy(payload + 4 * k, &cell, sizeof cell);
    }
    free(cells);
    *num_bytes = num_cells * sizeof(float);
    return is_finite ? FED_OK : FED_ERR_ARGUMENT;
}

/* Sorts 1..MAX_DEPTH numbers and returns their median: the mean of the middle two if there is an
 * even number of them. */
static double median(double *numbers, size_t num) {
    for (size_t i = 1; i < num; i++) {
        const double number = numbers[i];
        size_t k = i;
        for (; k > 0 && numbers[k - 1] > number; k--) numbers[k] = numbers[k - 1];
        numbers[k] = number;
    }
    return 0.5 * (numbers[(num - 1) / 2] + numbers[num / 2]);
}

static int sketch_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                         size_t num_bytes, float *values) {
    const size_t depth = codec->depth;
    if (num_bytes != sketch_capacity(codec)) return FED_ERR_PAYLOAD;
    float *cells = fed_allocate(num_bytes);
    if (cells == NULL) return FED_ERR_NO_MEMORY;
    memcpy(cells, payload, num_bytes);
    const int is_finite = isfinite(fed_sum_of_squares(cells, num_bytes / sizeof *cells));
    uint32_t words[VALUES * MAX_DEPTH];
    for (size_t first = 0; is_finite && first < codec->num_params; first += VALUES) {
        const size_t num = fed_smaller(codec->num_params - first, VALUES);
        fed_draw(draws, words, num * depth);
        for (size_t v = 0; v < num; v++) {
            double guesses[MAX_DEPTH];
            for (size_t r = 0; r < depth; r++) {
                const uint32_t word = words[v * depth + r];
                guesses[r] = sign_of(word) * (double)cells[cell_of(codec, r, word)];
            }
            values[first + v] = (float)median(guesses, depth);
        }
    }
    free(cells);
    return is_finite ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_sketch_codec = {sketch_is_valid, sketch_capacity, sketch_encode,
                                        sketch_decode, NULL};
