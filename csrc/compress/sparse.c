/* SPDX-License-Identifier: Apache-2.0
 * Codecs that send only some of the values: top-k, those of largest magnitude (Aji and Heafield
 * 2017, arXiv 1704.05021; of equal magnitudes, those with lower indices), and random-k, a random
 * subset that the receiver draws again from the same key (Konecny et al. 2016, arXiv 1610.05492).
 *
 * Payload of top-k: the k values as floats in order of their index, then either the indices in
 * ceil(log2 P) bits each, or one bit for each of the P values, whichever is shorter (indices if
 * equal). Payload of random-k: the k values; with is_unbiased they are multiplied by P / k when
 * decoded. */
#include "compress/bits.h"
#include "compress/codec.h"
#include "compress/loops.h"

#include <math.h>
#include <stdlib.h>

static int sparse_is_valid(const fed_codec *codec) {
    return codec->count >= 1 && codec->count <= codec->num_params;
}

/* ---- Top-k ----------------------------------------------------------------------------------- */

static unsigned index_bits(size_t num_params) {
    unsigned bits = 0;
    while (((size_t)1 << bits) < num_params) bits++;
    return bits;
}

static int has_indices(const fed_codec *codec) {
    return codec->count * index_bits(codec->num_params) <= codec->num_params;
}

static size_t top_k_capacity(const fed_codec *codec) {
    const size_t places =
        has_indices(codec) ? codec->count * index_bits(codec->num_params) : codec->num_params;
    return fed_bytes_of_bits(32 * codec->count + places);
}

/* Finds the k-th largest of some magnitudes, digit by digit from the highest. *num_equal becomes
 * the number of magnitudes that are equal to it and among the k largest. The magnitudes are
 * overwritten. */
static uint32_t find_threshold(uint32_t *magnitudes, size_t num, size_t k, size_t *num_equal) {
    enum { DIGIT_BITS = 11, NUM_DIGITS = 3 };
    static const unsigned SHIFTS[NUM_DIGITS] = {20, 9, 0};
    static const unsigned WIDTHS[NUM_DIGITS] = {DIGIT_BITS, DIGIT_BITS, 9};
    uint32_t threshold = 0;
    for (int d = 0; d < NUM_DIGITS; d++) {
        uint32_t counts[1 << DIGIT_BITS] = {0};
        const uint32_t mask = (1u << WIDTHS[d]) - 1;
        for (size_t m = 0; m < num; m++) counts[magnitudes[m] >> SHIFTS[d] & mask]++;
        uint32_t digit = mask;
        for (; counts[digit] < k; digit--) k -= counts[digit];
        threshold |= digit << SHIFTS[d];
        size_t num_kept = 0; /* magnitudes that have this digit, too */
        for (size_t m = 0; m < num; m++) {
            magnitudes[num_kept] = magnitudes[m];
            num_kept += (magnitudes[m] >> SHIFTS[d] & mask) == digit;
        }
        num = num_kept;
    }
    *num_equal = k;
    return threshold;
}

/* Estimates, from a sample of the values, a magnitude that slightly more than k values reach.
 * Returns 0 if there are too few values, or if k is too large a part of them. */
static uint32_t guess_threshold(const float *values, size_t num_values, size_t k) {
    enum { NUM_SAMPLED = 4096 };
    const double expected = (double)NUM_SAMPLED * (double)k / (double)num_values;
    const size_t rank = (size_t)(expected + 3 * sqrt(expected)) + 8;
    const size_t stride = num_values / NUM_SAMPLED;
    if (stride < 4 || rank > NUM_SAMPLED / 2) return 0;
    uint32_t sample[NUM_SAMPLED];
    /* Takes one value from each `stride` values. Its place among them is the fractional part of a
     * multiple of the golden ratio, times stride. */
    for (uint32_t i = 0; i < NUM_SAMPLED; i++) {
        const uint64_t fraction = i * 2654435769u;
        sample[i] = fed_magnitude_bits(values + i * stride + (size_t)(fraction * stride >> 32));
    }
    size_t num_equal;
    return find_threshold(sample, NUM_SAMPLED, rank, &num_equal);
}

/* Describes the values that are sent: of the values at `places`, each one whose magnitude is above
 * the threshold, and the first num_equal ones whose magnitude equals the threshold. */
typedef struct largest {
    uint32_t *places; /* in order */
    size_t num_places;
    uint32_t threshold;
    size_t num_equal;
} largest;

/* Finds the k largest among the values of magnitude `least` or more. FED_ERR_ARGUMENT: there are
 * fewer than k such values, or more than most_places. */
static int find_among(const float *values, size_t num_values, size_t k, uint32_t least,
                      size_t most_places, largest *found) {
    found->places = fed_allocate((most_places + FED_CODEC_PIECE) * sizeof *found->places);
    if (found->places == NULL) return FED_ERR_NO_MEMORY;
    const size_t num =
        fed_active_loops()->find_large(values, num_values, least, most_places, found->places);
    if (num < k || num > most_places) return FED_ERR_ARGUMENT;
    uint32_t *magnitudes = fed_allocate(num * sizeof *magnitudes);
    if (magnitudes == NULL) return FED_ERR_NO_MEMORY;
    for (size_t i = 0; i < num; i++) magnitudes[i] = fed_magnitude_bits(values + found->places[i]);
    found->num_places = num;
    found->threshold = find_threshold(magnitudes, num, k, &found->num_equal);
    free(magnitudes);
    return FED_OK;
}

/* Finds the k largest values: among those that reach a guessed threshold, or among all if the guess
 * was wrong. The caller frees the places. */
static int find_largest(const float *values, size_t num_values, size_t k, largest *found) {
    const uint32_t guess = guess_threshold(values, num_values, k);
    *found = (largest){0};
    int status = FED_ERR_ARGUMENT;
    if (guess > 0) {
        const size_t most_places = fed_smaller(num_values, 2 * k + 1024);
        status = find_among(values, num_values, k, guess, most_places, found);
    }
    if (status != FED_ERR_ARGUMENT) return status;
    free(found->places);
    return find_among(values, num_values, k, 0, num_values, found);
}

static void put_zeros(fed_bit_writer *writer, size_t num_bits) {
    for (; num_bits > 32; num_bits -= 32) fed_put_bits(writer, 0, 32);
    fed_put_bits(writer, 0, (unsigned)num_bits);
}

static int top_k_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                        uint8_t *payload, size_t *num_bytes) {
    (void)draws;
    const unsigned bits = index_bits(codec->num_params);
    const int by_index = has_indices(codec);
    largest found;
    const int status = find_largest(values, codec->num_params, codec->count, &found);
    if (status != FED_OK) {
        free(found.places);
        return status;
    }
    fed_bit_writer chosen = {.at = payload}, places = {.at = payload + 4 * codec->count};
    size_t next = 0; /* the first place that has no bit yet */
    for (size_t i = 0; i < found.num_places; i++) {
        const uint32_t v = found.places[i], magnitude = fed_magnitude_bits(values + v);
        const int is_equal = magnitude == found.threshold;
        if (magnitude < found.threshold || (is_equal && found.num_equal == 0)) continue;
        found.num_equal -= (size_t)is_equal;
        fed_put_float(&chosen, values[v]);
        if (by_index) {
            fed_put_bits(&places, v, bits);
        } else {
            put_zeros(&places, v - next);
            fed_put_bits(&places, 1, 1);
            next = v + 1;
        }
    }
    free(found.places);
    if (!by_index) put_zeros(&places, codec->num_params - next);
    fed_end_byte(&places);
    *num_bytes = (size_t)(places.at - payload);
    return FED_OK;
}

static int top_k_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                        size_t num_bytes, float *values) {
    (void)draws;
    if (num_bytes != top_k_capacity(codec)) return FED_ERR_PAYLOAD;
    const unsigned bits = index_bits(codec->num_params);
    const int by_index = has_indices(codec);
    fed_bit_reader chosen = {.at = payload, .end = payload + 4 * codec->count};
    fed_bit_reader places = {.at = chosen.end, .end = payload + num_bytes};
    memset(values, 0, codec->num_params * sizeof *values);
    size_t num_found = 0, next = 0; /* the lowest index that may follow */
    for (size_t i = 0; i < (by_index ? codec->count : codec->num_params); i++) {
        const size_t place = by_index ? fed_get_bits(&places, bits) : i;
        if (!by_index && !fed_get_bits(&places, 1)) continue;
        if (place < next || place >= codec->num_params) return FED_ERR_PAYLOAD;
        if (++num_found > codec->count) return FED_ERR_PAYLOAD;
        values[place] = fed_get_float(&chosen);
        if (!isfinite(values[place])) return FED_ERR_PAYLOAD;
        next = place + 1;
    }
    return num_found == codec->count && fed_is_read(&places) ? FED_OK : FED_ERR_PAYLOAD;
}

const fed_codec_ops fed_top_k_codec = {sparse_is_valid, top_k_capacity, top_k_encode, top_k_decode,
                                       NULL};

/* ---- Random-k -------------------------------------------------------------------------------- */

static size_t random_k_capacity(const fed_codec *codec) { return 4 * codec->count; }

/* Whether the next value belongs to the subset: `wanted` of the `left` remaining values must still
 * be chosen (selection sampling; Knuth, volume 2, algorithm S). */
static int is_drawn(fed_draws *draws, size_t wanted, size_t left) {
    return wanted > 0 && fed_rng_below(&draws->rng, (uint32_t)left) < wanted;
}

static int random_k_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                           uint8_t *payload, size_t *num_bytes) {
    fed_bit_writer writer = {.at = payload};
    size_t wanted = codec->count;
    for (size_t v = 0; v < codec->num_params; v++) {
        if (!is_drawn(draws, wanted, codec->num_params - v)) continue;
        fed_put_float(&writer, values[v]);
        wanted--;
    }
    *num_bytes = (size_t)(writer.at - payload);
    return FED_OK;
}

static int random_k_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                           size_t num_bytes, float *values) {
    if (num_bytes != random_k_capacity(codec)) return FED_ERR_PAYLOAD;
    const double factor = codec->is_unbiased ? (double)codec->num_params / (double)codec->count : 1;
    fed_bit_reader reader = {.at = payload, .end = payload + num_bytes};
    size_t wanted = codec->count;
    for (size_t v = 0; v < codec->num_params; v++) {
        values[v] = 0;
        if (!is_drawn(draws, wanted, codec->num_params - v)) continue;
        const float sent = fed_get_float(&reader);
        if (!isfinite(sent)) return FED_ERR_PAYLOAD;
        values[v] = (float)(factor * sent);
        wanted--;
    }
    return FED_OK;
}

const fed_codec_ops fed_random_k_codec = {sparse_is_valid, random_k_capacity, random_k_encode,
                                          random_k_decode, NULL};
