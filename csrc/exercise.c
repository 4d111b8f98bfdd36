/* SPDX-License-Identifier: Apache-2.0
 * Runs one stage of a net repeatedly on a synthetic batch, for benchmarks. The caller measures the
 * time. */
#include "denormals.h"
#include "net/net.h"

#include <stdlib.h>
#include <string.h>

/* A rate so small that thousands of local steps do not change the model. */
static const float tiny_rate = 1e-9f;

typedef struct benchmark {
    fed_net net;
    fed_batch batch;
    void *memory;
    float *params; /* packed */
    float *images; /* [B, padded pixels] */
    int32_t *labels;
    fed_update update;
} benchmark;

static void carve_benchmark(benchmark *d, fed_carver *c) {
    const size_t width = fed_padded(d->net.model->num_inputs);
    d->params = fed_carve(c, d->net.size, sizeof *d->params);
    d->images = fed_carve(c, d->batch.batch_size * width, sizeof *d->images);
    d->labels = fed_carve(c, d->batch.batch_size, sizeof *d->labels);
    fed_batch_carve(&d->batch, c);
}

/* Draws images in which a fifth of the pixels are ink, as in a digit. */
static void draw_images(benchmark *d) {
    const size_t num_pixels = d->net.model->num_inputs, width = fed_padded(num_pixels);
    const fed_key key = {.seed = 1};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    for (size_t b = 0; b < d->batch.batch_size; b++) {
        float *image = d->images + b * width;
        for (size_t p = 0; p < num_pixels; p++)
            image[p] = fed_rng_below(&rng, 5) == 0 ? (float)fed_rng_uniform(&rng) : 0;
        d->batch.images[b] = image;
        d->labels[b] = (int32_t)fed_rng_below(&rng, (uint32_t)d->net.model->num_classes);
    }
}

static int benchmark_init(benchmark *d, const fed_model *model, const float *params,
                          size_t batch_size) {
    *d = (benchmark){
        .batch = {.net = &d->net, .batch_size = batch_size, .is_training = 1, .num_workers = 1}};
    const int status = fed_net_init(&d->net, model);
    if (status != FED_OK) return status;
    fed_carver measure = {NULL, 0};
    carve_benchmark(d, &measure);
    d->memory = fed_allocate(measure.used);
    if (d->memory == NULL) return FED_ERR_NO_MEMORY;
    memset(d->memory, 0, measure.used);
    fed_carver hand_out = {d->memory, 0};
    carve_benchmark(d, &hand_out);
    fed_batch_clear(&d->batch);
    fed_net_pack(&d->net, params, d->params);
    draw_images(d);
    const fed_key key = {.seed = 2};
    fed_batch_open_dropout(&d->batch, &key, 0);
    d->update =
        (fed_update){.sum = d->params, .piece = d->batch.pieces, .piece_size = d->batch.piece_size};
    return FED_OK;
}

static void run_phase(benchmark *d, size_t stage, int phase) {
    const size_t num_rows = d->batch.batch_size;
    if (phase == FED_FORWARD)
        fed_batch_forward_stage(&d->batch, d->params, stage, num_rows);
    else if (phase == FED_BACKWARD)
        fed_batch_backward_stage(&d->batch, d->params, stage, num_rows, &d->update);
    else
        fed_batch_derive_stage(&d->batch, d->params, stage);
}

int fed_exercise(const fed_model *model, const float *params, size_t batch_size, size_t stage,
                 int phase, size_t repeats) {
    if (batch_size < 1 || batch_size > FED_MAX_BATCH || phase < 0 || phase >= FED_NUM_PHASES)
        return FED_ERR_ARGUMENT;
    benchmark d;
    int status = benchmark_init(&d, model, params, batch_size);
    if (status == FED_OK && stage >= d.net.num_stages) status = FED_ERR_ARGUMENT;
    if (status == FED_OK) {
        const fp_mode before = denormals_off();
        fed_score score = {0, 0};
        fed_batch_derive(&d.batch, d.params);
        const fed_targets targets = {.labels = d.labels};
        fed_batch_forward(&d.batch, d.params, batch_size, &targets, -tiny_rate, NULL, &score, NULL);
        fed_batch_backward(&d.batch, d.params, batch_size, &d.update);
        for (size_t r = 0; r < repeats; r++) run_phase(&d, stage, phase);
        fp_restore(before);
    }
    free(d.memory);
    fed_net_free(&d.net);
    return status;
}

size_t fed_stages(const fed_model *model, size_t *first_layers) {
    fed_net net;
    size_t num_stages = 0;
    if (fed_net_init(&net, model) == FED_OK) num_stages = net.num_stages;
    for (size_t s = 0; s < num_stages; s++)
        first_layers[s] = (size_t)(net.stages[s].layer - model->layers);
    fed_net_free(&net);
    return num_stages;
}
