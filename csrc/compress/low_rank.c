/* SPDX-License-Identifier: Apache-2.0
 * PowerSGD: each matrix M [a, b] of a client is sent as factors of rank q (Vogels et al. 2019,
 * arXiv 1905.13727). A round has two exchanges. First each client sends M V [a, q] for the server's
 * V [b, q] (powersgd-left). The server takes the mean over the clients and orthonormalises its
 * columns to U, which it sends back. Then each client sends M^T U [b, q] (powersgd), and the
 * vectors as they are; the server decodes U (M^T U)^T.
 *
 * A tensor of more than two axes is a matrix over its last axis. q is the smallest of the codec's
 * rank, a and b. `factors` holds V of all matrices for powersgd-left, U for powersgd, one after the
 * other. All payloads are floats. */
#include "compress/bits.h"
#include "compress/codec.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_RANK = 64 };

/* A tensor as a matrix; rank 0 for a vector. */
typedef struct matrix {
    size_t num_rows, num_columns, rank;
} matrix;

static matrix matrix_of(const fed_codec *codec, size_t t) {
    const fed_tensor *tensor = &codec->tensors.each[t];
    if (tensor->num_rows == 0) return (matrix){1, tensor->num_columns, 0};
    const size_t a = tensor->num_matrices * tensor->num_rows, b = tensor->num_columns;
    return (matrix){a, b, fed_smaller(codec->rank, fed_smaller(a, b))};
}

static int low_rank_is_valid(const fed_codec *codec) {
    return codec->rank >= 1 && codec->rank <= MAX_RANK && codec->factors != NULL;
}

static size_t left_capacity(const fed_codec *codec) {
    size_t num_values = 0;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const matrix m = matrix_of(codec, t);
        num_values += m.num_rows * m.rank;
    }
    return num_values * sizeof(float);
}

static size_t low_rank_capacity(const fed_codec *codec) {
    size_t num_values = 0;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const matrix m = matrix_of(codec, t);
        num_values += m.num_columns * (m.rank > 0 ? m.rank : 1);
    }
    return num_values * sizeof(float);
}

static int left_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                       uint8_t *payload, size_t *num_bytes) {
    (void)draws;
    const float *right = codec->factors; /* [b, q] of the current matrix */
    fed_bit_writer writer = {.at = payload};
    int is_finite = 1;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const matrix m = matrix_of(codec, t);
        for (size_t i = 0; i < m.num_rows; i++, values += m.num_columns) {
            double sums[MAX_RANK] = {0};
            for (size_t j = 0; j < m.num_columns; j++)
                for (size_t c = 0; c < m.rank; c++)
                    sums[c] += (double)values[j] * (double)right[j * m.rank + c];
            for (size_t c = 0; c < m.rank; c++) {
                is_finite &= isfinite((float)sums[c]) != 0;
                fed_put_float(&writer, (float)sums[c]);
            }
        }
        right += m.num_columns * m.rank;
    }
    *num_bytes = (size_t)(writer.at - payload);
    return is_finite ? FED_OK : FED_ERR_ARGUMENT;
}

static int left_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                       size_t num_bytes, float *values) {
    (void)codec, (void)draws, (void)payload, (void)num_bytes, (void)values;
    return FED_ERR_ARGUMENT; /* half an exchange: there are no values to decode yet */
}

const fed_codec_ops fed_left_factor_codec = {low_rank_is_valid, left_capacity, left_encode,
                                             left_decode, NULL};

/* sums [b, q] = M^T U. */
static void multiply_transposed(const matrix *m, const float *values, const float *left,
                                double *sums) {
    for (size_t k = 0; k < m->num_columns * m->rank; k++) sums[k] = 0;
    for (size_t i = 0; i < m->num_rows; i++)
        for (size_t j = 0; j < m->num_columns; j++)
            for (size_t c = 0; c < m->rank; c++)
                sums[j * m->rank + c] +=
                    (double)values[i * m->num_columns + j] * (double)left[i * m->rank + c];
}

static int low_rank_encode(const fed_codec *codec, fed_draws *draws, const float *values,
                           uint8_t *payload, size_t *num_bytes) {
    (void)draws;
    const float *left = codec->factors; /* [a, q] of the current matrix */
    double *sums = malloc(low_rank_capacity(codec) / sizeof(float) * sizeof *sums);
    if (sums == NULL) return FED_ERR_NO_MEMORY;
    fed_bit_writer writer = {.at = payload};
    int is_finite = 1;
    for (size_t t = 0; t < codec->tensors.num; t++) {
        const matrix m = matrix_of(codec, t);
        multiply_transposed(&m, values, left, sums);
        for (size_t k = 0; k < m.num_columns * m.rank; k++) {
            is_finite &= isfinite((float)sums[k]) != 0;
            fed_put_float(&writer, (float)sums[k]);
        }
        if (m.rank == 0)
            for (size_t j = 0; j < m.num_columns; j++) fed_put_float(&writer, values[j]);
        values += m.num_rows * m.num_columns;
        left += m.num_rows * m.rank;
    }
    free(sums);
    *num_bytes = (size_t)(writer.at - payload);
    return is_finite ? FED_OK : FED_ERR_ARGUMENT;
}

static int low_rank_decode(const fed_codec *codec, fed_draws *draws, const uint8_t *payload,
                           size_t num_bytes, float *values) {
    (void)draws;
    if (num_bytes != low_rank_capacity(codec)) return FED_ERR_PAYLOAD;
    const float *left = codec->factors;
    float *sent = malloc(num_bytes);
    if (sent == NULL) return FED_ERR_NO_MEMORY;
    memcpy(sent, payload, num_bytes);
    int status =
        isfinite(fed_sum_of_squares(sent, num_bytes / sizeof *sent)) ? FED_OK : FED_ERR_PAYLOAD;
    const float *right = sent; /* [b, q] of the current matrix, or a vector */
    for (size_t t = 0; status == FED_OK && t < codec->tensors.num; t++) {
        const matrix m = matrix_of(codec, t);
        for (size_t i = 0; i < m.num_rows; i++)
            for (size_t j = 0; j < m.num_columns; j++) {
                double sum = m.rank > 0 ? 0 : (double)right[j];
                for (size_t c = 0; c < m.rank; c++)
                    sum += (double)left[i * m.rank + c] * (double)right[j * m.rank + c];
                *values++ = (float)sum;
            }
        right += m.num_columns * (m.rank > 0 ? m.rank : 1);
        left += m.num_rows * m.rank;
    }
    free(sent);
    return status;
}

const fed_codec_ops fed_low_rank_codec = {low_rank_is_valid, low_rank_capacity, low_rank_encode,
                                          low_rank_decode, NULL};
