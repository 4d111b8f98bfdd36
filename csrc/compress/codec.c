/* SPDX-License-Identifier: Apache-2.0
 * The kinds of codecs, one row each. To add a kind, add a row here and a file beside this one. */
#include "compress/codec.h"
#include "compress/loops.h"
#include "denormals.h"

#include <math.h>
#include <string.h>

static const struct kind {
    const char *name;
    const fed_codec_ops *ops;
} KINDS[] = {
    {"uniform", &fed_uniform_codec},
    {"fixed-step", &fed_fixed_step_codec},
    {"qsgd", &fed_qsgd_codec},
    {"terngrad", &fed_ternary_codec},
    {"sign", &fed_sign_codec},
    {"top-k", &fed_top_k_codec},
    {"random-k", &fed_random_k_codec},
    {"powersgd", &fed_low_rank_codec},
    {"powersgd-left", &fed_left_factor_codec},
    {"sketch", &fed_sketch_codec},
    {"drive", &fed_drive_codec},
    {"eden", &fed_eden_codec},
};
enum { NUM_KINDS = sizeof KINDS / sizeof KINDS[0] };

int fed_codec_kind_named(const char *name) {
    for (int k = 0; k < NUM_KINDS; k++)
        if (strcmp(KINDS[k].name, name) == 0) return k;
    return -1;
}

/* 1 if the tensors are not empty and have num_params values together. */
static int tensors_fit(const fed_codec *codec) {
    size_t left = codec->num_params;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const fed_tensor *tensor = &codec->tensors.each[t];
        const size_t rows = tensor->num_rows > 0 ? tensor->num_matrices : 1;
        const size_t columns = tensor->num_rows > 0 ? tensor->num_rows : 1;
        if (rows < 1 || tensor->num_columns < 1) return 0;
        if (rows > left || columns > left / rows || tensor->num_columns > left / (rows * columns))
            return 0;
        left -= fed_tensor_size(tensor);
    }
    return left == 0;
}

int fed_codec_check(const fed_codec *codec) {
    if (codec->kind < 0 || codec->kind >= NUM_KINDS) return FED_ERR_ARGUMENT;
    if (codec->num_params < 1 || codec->num_params > FED_MAX_CODED) return FED_ERR_ARGUMENT;
    if (!tensors_fit(codec)) return FED_ERR_ARGUMENT;
    return KINDS[codec->kind].ops->is_valid(codec) ? FED_OK : FED_ERR_ARGUMENT;
}

size_t fed_codec_capacity(const fed_codec *codec) {
    return KINDS[codec->kind].ops->capacity(codec);
}

void fed_draw(fed_draws *draws, uint32_t *words, size_t num_words) {
    if (draws->given == NULL) {
        fed_rng_fill_u32(&draws->rng, words, num_words);
        return;
    }
    for (size_t w = 0; w < num_words; w++) {
        words[w] = draws->num_given > 0 ? *draws->given++ : 0;
        if (draws->num_given > 0) draws->num_given--;
    }
}

double fed_sum_of_squares(const float *values, size_t num_values) {
    double sums[4] = {0}; /* independent chains, which the compiler may put into vectors */
    size_t v = 0;
    for (; v + 4 <= num_values; v += 4)
        for (size_t s = 0; s < 4; s++) sums[s] += (double)values[v + s] * (double)values[v + s];
    for (; v < num_values; v++) sums[0] += (double)values[v] * (double)values[v];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

int fed_codec_encode_with(const fed_codec *codec, fed_draws *draws, const float *values,
                          uint8_t *payload, size_t *num_bytes) {
    if (!isfinite(fed_sum_of_squares(values, codec->num_params))) return FED_ERR_ARGUMENT;
    const fp_mode before = denormals_off();
    const int status = KINDS[codec->kind].ops->encode(codec, draws, values, payload, num_bytes);
    fp_restore(before);
    return status;
}

int fed_codec_encode_finite(const fed_codec *codec, const fed_key *key, const float *values,
                            uint8_t *payload, size_t *num_bytes) {
    fed_draws draws = {0};
    fed_rng_init(&draws.rng, key);
    return KINDS[codec->kind].ops->encode(codec, &draws, values, payload, num_bytes);
}

int fed_codec_replaces(const fed_codec *codec) { return KINDS[codec->kind].ops->replace != NULL; }

int fed_codec_replace_finite(const fed_codec *codec, const fed_key *key, float *values,
                             float *scratch, uint8_t *payload, size_t *num_bytes,
                             double *squared_error) {
    const fed_codec_ops *ops = KINDS[codec->kind].ops;
    fed_draws draws = {0};
    fed_rng_init(&draws.rng, key);
    if (ops->replace != NULL)
        return ops->replace(codec, &draws, values, payload, num_bytes, squared_error);
    int status = ops->encode(codec, &draws, values, payload, num_bytes);
    if (status == FED_OK) status = fed_codec_decode(codec, key, payload, *num_bytes, scratch);
    if (status == FED_OK)
        *squared_error = fed_active_loops()->replace(values, scratch, codec->num_params);
    return status;
}

int fed_codec_decode_with(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                          size_t num_bytes, float *values) {
    const fp_mode before = denormals_off();
    const int status = KINDS[codec->kind].ops->decode(codec, draws, payload, num_bytes, values);
    fp_restore(before);
    return status;
}

int fed_codec_encode(const fed_codec *codec, const fed_key *key, const float *values,
                     uint8_t *payload, size_t *num_bytes) {
    fed_draws draws = {0};
    fed_rng_init(&draws.rng, key);
    return fed_codec_encode_with(codec, &draws, values, payload, num_bytes);
}

int fed_codec_decode(const fed_codec *codec, const fed_key *key, const uint8_t *payload,
                     size_t num_bytes, float *values) {
    fed_draws draws = {0};
    fed_rng_init(&draws.rng, key);
    return fed_codec_decode_with(codec, &draws, payload, num_bytes, values);
}
