/* SPDX-License-Identifier: Apache-2.0
 * The vectors of many clients, encoded and decoded on several threads. The unit of work is one
 * vector, so the results do not depend on the number of threads. */
#include "compress/codec.h"
#include "compress/loops.h"
#include "denormals.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The memory of one thread. */
typedef struct scratch {
    float *values;    /* [P]; NULL: not needed */
    uint8_t *payload; /* [capacity]; NULL: not needed */
} scratch;

typedef struct job {
    const fed_codec *codec;
    const fed_key *keys;
    float *const *rows;         /* [num_rows], each [P] */
    const float *const *before; /* residuals [num_rows]; NULL, or NULL for a row: zeros */
    float *const *after;        /* [num_rows], each [P]; or NULL */
    double decay;
    uint8_t *payloads; /* [num_rows, capacity]; NULL: rows are replaced by what is decoded */
    fed_sent *sent;    /* [num_rows] */
    scratch *each;     /* [num_threads] */
    int *statuses;     /* [num_rows] */
} job;

static const float *residual_of(const job *all, size_t r) {
    return all->before != NULL ? all->before[r] : NULL;
}

/* values = row + decay * residual. Returns the sum of squares. */
static double take_input(const job *all, size_t r, float *values) {
    return fed_active_loops()->take_input(all->rows[r], residual_of(all, r), all->decay,
                                          all->codec->num_params, values);
}

/* Records the result for a row. FED_ERR_ARGUMENT means that values are too large for the payload's
 * floats; then the row is not sent, which is no failure. */
static int note(fed_sent *sent, int status, size_t num_bytes, double squared_error) {
    if (status != FED_OK) return status == FED_ERR_ARGUMENT ? FED_OK : status;
    sent->squared_error = squared_error;
    if (!isfinite(squared_error)) return FED_OK;
    sent->num_bytes = (int64_t)num_bytes;
    sent->is_sent = 1;
    return FED_OK;
}

/* Encodes and decodes a row plus its residual. `values` becomes the input minus the decoded
 * values. */
static int compress_with_residual(const job *all, size_t r, float *values, uint8_t *payload) {
    const fed_codec *codec = all->codec;
    fed_sent *sent = &all->sent[r];
    sent->squared_norm = take_input(all, r, values);
    if (!isfinite(sent->squared_norm)) return FED_OK;
    size_t num_bytes = 0;
    double error = 0;
    int status = fed_codec_encode_finite(codec, &all->keys[r], values, payload, &num_bytes);
    if (status == FED_OK)
        status = fed_codec_decode(codec, &all->keys[r], payload, num_bytes, all->rows[r]);
    if (status == FED_OK)
        error = fed_active_loops()->subtract(values, all->rows[r], codec->num_params);
    return note(sent, status, num_bytes, error);
}

/* Encodes and decodes a row that has no residual and whose next residual is not needed. */
static int compress_in_place(const job *all, size_t r, float *values, uint8_t *payload) {
    const fed_codec *codec = all->codec;
    fed_sent *sent = &all->sent[r];
    sent->squared_norm = fed_active_loops()->sum_of_squares(all->rows[r], codec->num_params);
    if (!isfinite(sent->squared_norm)) return FED_OK;
    size_t num_bytes = 0;
    double error = 0;
    const int status = fed_codec_replace_finite(codec, &all->keys[r], all->rows[r], values, payload,
                                                &num_bytes, &error);
    return note(sent, status, num_bytes, error);
}

/* Encodes, decodes and replaces one row. A row that cannot be sent does not change, unless its
 * decoded values are not finite: then they replace it. In both cases its next residual is
 * undefined. */
static int compress_row(const job *all, size_t r, const scratch *own) {
    all->sent[r] = (fed_sent){0};
    if (all->after != NULL) return compress_with_residual(all, r, all->after[r], own->payload);
    if (residual_of(all, r) != NULL)
        return compress_with_residual(all, r, own->values, own->payload);
    return compress_in_place(all, r, own->values, own->payload);
}

/* Encodes one row and keeps the payload. */
static int encode_row(const job *all, size_t r, const scratch *own) {
    fed_sent *sent = &all->sent[r];
    *sent = (fed_sent){0};
    sent->squared_norm = take_input(all, r, own->values);
    if (!isfinite(sent->squared_norm)) return FED_OK;
    size_t num_bytes = 0;
    uint8_t *payload = all->payloads + r * fed_codec_capacity(all->codec);
    const int status =
        fed_codec_encode_finite(all->codec, &all->keys[r], own->values, payload, &num_bytes);
    if (status == FED_ERR_ARGUMENT) return FED_OK;
    sent->num_bytes = (int64_t)num_bytes;
    sent->is_sent = 1;
    return status;
}

static void run_row(void *context, size_t r, int worker) {
    const job *all = context;
    const fp_mode before = denormals_off();
    all->statuses[r] =
        (all->payloads != NULL ? encode_row : compress_row)(all, r, &all->each[worker]);
    fp_restore(before);
}

/* Allocates what a thread needs. Payloads that are kept, and next residuals, are in memory of the
 * caller. */
static int reserve(const job *all, scratch *own) {
    const int replaces = all->payloads == NULL && all->before == NULL;
    if (all->after == NULL && !(replaces && fed_codec_replaces(all->codec))) {
        own->values = fed_allocate(all->codec->num_params * sizeof *own->values);
        if (own->values == NULL) return FED_ERR_NO_MEMORY;
    }
    if (all->payloads == NULL) {
        own->payload = fed_allocate(fed_codec_capacity(all->codec));
        if (own->payload == NULL) return FED_ERR_NO_MEMORY;
    }
    return FED_OK;
}

static int run_all(job *all, int num_threads, size_t num_rows) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return FED_ERR_ARGUMENT;
    if (num_rows == 0) return FED_OK;
    if (!fed_has_openmp()) num_threads = 1;
    int status = FED_OK;
    all->statuses = calloc(num_rows, sizeof *all->statuses);
    all->each = calloc((size_t)num_threads, sizeof *all->each);
    if (all->statuses == NULL || all->each == NULL) status = FED_ERR_NO_MEMORY;
    for (int t = 0; status == FED_OK && t < num_threads; t++) status = reserve(all, &all->each[t]);
    if (status == FED_OK) fed_share(num_threads, num_rows, run_row, all);
    for (size_t r = 0; status == FED_OK && r < num_rows; r++) status = all->statuses[r];
    for (int t = 0; all->each != NULL && t < num_threads; t++) {
        free(all->each[t].values);
        free(all->each[t].payload);
    }
    free(all->each);
    free(all->statuses);
    return status;
}

int fed_codec_compress_rows(const fed_codec *codec, int num_threads, const fed_key *keys,
                            float *const *rows, size_t num_rows, const float *const *before,
                            float *const *after, double decay, fed_sent *sent) {
    job all = {.codec = codec,
               .keys = keys,
               .rows = rows,
               .before = before,
               .after = after,
               .decay = decay,
               .sent = sent};
    return run_all(&all, num_threads, num_rows);
}

int fed_codec_encode_rows(const fed_codec *codec, int num_threads, const fed_key *keys,
                          float *const *rows, size_t num_rows, const float *const *before,
                          double decay, uint8_t *payloads, fed_sent *sent) {
    job all = {.codec = codec,
               .keys = keys,
               .rows = rows,
               .before = before,
               .decay = decay,
               .payloads = payloads,
               .sent = sent};
    return run_all(&all, num_threads, num_rows);
}
