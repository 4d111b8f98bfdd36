/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the tests of kernels, models and cohorts: a main that runs every test on each
 * instruction set, random numbers, and a simple reference of dense models in double.
 */
#ifndef FED_FIXTURES_H
#define FED_FIXTURES_H

#include "cohort/cohort.h"
#include "test.h"

/* The kinds of layers as layers/table.c numbers them: see test_kinds_are_found_by_name. */
enum {
    KIND_DENSE,
    KIND_CONV2D,
    KIND_MAX_POOL,
    KIND_AVERAGE_POOL,
    KIND_GROUP_NORM,
    KIND_LAYER_NORM,
    KIND_BATCH_NORM,
    KIND_ZERO_PADDING,
    KIND_DROPOUT,
    KIND_ACTIVATION,
    KIND_ADD,
    KIND_CONCATENATE,
    KIND_DEPTHWISE,
    KIND_NORMALIZATION,
    KIND_IMAGE_STANDARDIZATION,
    KIND_RANDOM_FLIP,
    KIND_RANDOM_CROP,
    KIND_CENTER_CROP,
    KIND_RANDOM_ROTATION,
    KIND_CUTOUT,
    KIND_COLOR_JITTER,
    KIND_MIX_UP,
    NUM_KINDS
};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define RUN_ON_EACH_ISA(tests, argc, argv) run_on_each_isa((tests), LENGTH(tests), argc, argv)

/* Half the distance from 1 to the next float: the relative error of one rounding. */
static const double UNIT_ROUNDOFF = 0x1p-24;

static const char *const ISA_NAMES[] = {"generic", "avx2", "avx512"};

/* Runs the tests once for each instruction set. A set that cannot run here is reported as
 * skipped. */
static inline int run_on_each_isa(const test_case *tests, size_t num_tests, int argc, char **argv) {
    int worst = 0;
    for (size_t i = 0; i < LENGTH(ISA_NAMES); i++) {
        if (fed_select_isa(ISA_NAMES[i]) != FED_OK) {
            printf("skip all of %s: not built, or not on this machine\n", ISA_NAMES[i]);
            continue;
        }
        printf("---- %s\n", fed_isa_name());
        const int result = test_run(tests, num_tests, argc, argv);
        if (result > worst) worst = result;
    }
    return worst;
}

/* Selects the next instruction set, for tests that compute their naive reference once:
 *
 *     for (size_t isa = 0; next_isa(&isa);) ...
 *
 * Sets that cannot run here are skipped. A failed check names the selected set. */
static inline bool next_isa(size_t *isa) {
    while (*isa < LENGTH(ISA_NAMES)) {
        test_subject = ISA_NAMES[(*isa)++];
        if (fed_select_isa(test_subject) == FED_OK) return true;
    }
    test_subject = NULL;
    return false;
}

/* ---- Random numbers -------------------------------------------------------------------------- */

/* SplitMix64. */
static inline uint64_t next_bits(uint64_t *state) {
    uint64_t bits = *state += 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return bits ^ (bits >> 31);
}

/* Uniform in -scale..scale. */
static inline float next_float(uint64_t *state, double scale) {
    return (float)(scale * (2.0 * (double)(next_bits(state) >> 11) * 0x1p-53 - 1.0));
}

static inline void fill_floats(uint64_t seed, double scale, float *values, size_t num_values) {
    for (size_t i = 0; i < num_values; i++) values[i] = next_float(&seed, scale);
}

static inline void fill_labels(uint64_t seed, size_t num_classes, int32_t *labels, size_t num) {
    for (size_t i = 0; i < num; i++) labels[i] = (int32_t)(next_bits(&seed) % num_classes);
}

/* ---- Models of dense layers ------------------------------------------------------------------ */

/* A row of a model table: a dense layer from num_inputs to num_outputs, with a bias. */
#define DENSE(num_inputs, num_outputs, first_param, activates)                                     \
    {                                                                                              \
        .kind = KIND_DENSE,                                                                        \
        .activation = (activates),                                                                 \
        .in = {1, 1, (num_inputs)},                                                                \
        .out = {1, 1, (num_outputs)},                                                              \
        .offset = (first_param),                                                                   \
        .has_bias = 1,                                                                             \
    }

/* ---- The reference: a stack of dense layers in double, parameters flat ----------------------- */

enum { REFERENCE_MAX_OUTPUTS = 1024 };

/* The logits of one example. */
static inline void reference_logits(const fed_model *model, const double *params,
                                    const double *pixels, double *logits /* out [K] */) {
    double inputs[REFERENCE_MAX_OUTPUTS], outputs[REFERENCE_MAX_OUTPUTS];
    for (size_t i = 0; i < model->num_inputs; i++) inputs[i] = pixels[i];
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const double *kernel = params + layer->offset;
        const size_t num_inputs = layer->in.channels, num_outputs = layer->out.channels;
        const double *bias = kernel + num_inputs * num_outputs;
        for (size_t o = 0; o < num_outputs; o++) {
            outputs[o] = bias[o];
            for (size_t i = 0; i < num_inputs; i++)
                outputs[o] += inputs[i] * kernel[i * num_outputs + o];
            if (layer->activation == FED_RELU && outputs[o] < 0) outputs[o] = 0;
        }
        memcpy(inputs, outputs, num_outputs * sizeof(*inputs));
    }
    memcpy(logits, inputs, model->num_classes * sizeof(*logits));
}

static inline size_t reference_argmax(const double *logits, size_t num_classes) {
    size_t best = 0;
    for (size_t k = 1; k < num_classes; k++)
        if (logits[k] > logits[best]) best = k;
    return best;
}

/* The sum of exp(logit - largest logit), the s of the error bounds. */
static inline double reference_exp_sum(const double *logits, size_t num_classes) {
    const double max = logits[reference_argmax(logits, num_classes)];
    double sum = 0;
    for (size_t k = 0; k < num_classes; k++) sum += exp(logits[k] - max);
    return sum;
}

static inline double reference_loss(const double *logits, size_t num_classes, int32_t label) {
    const double max = logits[reference_argmax(logits, num_classes)];
    return log(reference_exp_sum(logits, num_classes)) - (logits[label] - max);
}

/* The layout of a stage's inputs where it is their only reader. */
static inline fed_buffer own_input(const fed_stage *stage) {
    const fed_shape *in = &stage->layer->in;
    fed_border border = {0};
    if (stage->is_first && stage->ops->takes_raw) return fed_image_buffer(in);
    if (stage->ops->widen_border != NULL) stage->ops->widen_border(stage, &border);
    return fed_bordered_buffer(in, &border, fed_padded(in->channels));
}

#endif
