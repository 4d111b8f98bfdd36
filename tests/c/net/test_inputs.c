/* SPDX-License-Identifier: Apache-2.0
 *
 * Input layers at unusual sizes: where they write, and that a model that begins with them can be
 * trained. tests/models/test_input_layers.py compares their results with slow references in Python.
 */
#include "fixtures.h"

enum { MOST_LAYERS = 11, NUM_EXAMPLES = 7, NUM_CLASSES = 3 };

static const fed_key KEY = {.seed = 1, .client = 2, .round = 3, .purpose = 9};

typedef struct table {
    fed_layer layers[MOST_LAYERS];
    fed_model model;
    size_t batch_size;
} table;

static void add_layer(table *t, fed_layer layer) {
    const size_t l = t->model.num_layers++;
    if (l > 0) layer.in = t->layers[l - 1].out;
    if (layer.out.height == 0) layer.out = layer.in;
    layer.offset = t->model.num_params;
    t->layers[l] = layer;
    t->model.num_params += fed_kind_of(&layer)->num_params(&layer);
}

/* A convolution of 3x3 windows that keeps height and width. */
static fed_layer convolution(const fed_shape *shape, size_t num_channels) {
    return (fed_layer){.kind = KIND_CONV2D,
                       .activation = FED_RELU,
                       .out = {shape->height, shape->width, num_channels},
                       .has_bias = 1,
                       .window_height = 3,
                       .window_width = 3,
                       .stride_y = 1,
                       .stride_x = 1,
                       .pad_top = 1,
                       .pad_left = 1};
}

/* A convolution of 1x1 windows, which is fast. */
static fed_layer per_pixel(const fed_shape *shape, size_t num_channels) {
    fed_layer layer = convolution(shape, num_channels);
    layer.window_height = layer.window_width = 1;
    layer.pad_top = layer.pad_left = 0;
    return layer;
}

/* All input layers, with or without MixUp, followed by a convolution and a dense layer, or by a
 * dense layer alone. */
static void build(table *t, const fed_shape *shape, const fed_shape *part, bool is_dense,
                  bool is_mixed) {
    *t = (table){.batch_size = 5};
    t->model.layers = t->layers;
    t->model.num_inputs = fed_shape_size(shape);
    t->model.num_classes = NUM_CLASSES;
    add_layer(
        t, (fed_layer){
               .kind = KIND_RANDOM_CROP, .in = *shape, .out = *part, .pad_top = 1, .pad_left = 1});
    add_layer(t, (fed_layer){.kind = KIND_CENTER_CROP, .in = *part, .out = *part});
    add_layer(t, (fed_layer){.kind = KIND_RANDOM_FLIP});
    add_layer(t, (fed_layer){.kind = KIND_RANDOM_ROTATION, .constants = {1}});
    add_layer(t, (fed_layer){.kind = KIND_CUTOUT, .window_height = 2, .window_width = 2});
    add_layer(t, (fed_layer){.kind = KIND_COLOR_JITTER, .constants = {0.2, 0.3, 0.4}});
    add_layer(t, (fed_layer){.kind = KIND_IMAGE_STANDARDIZATION});
    add_layer(
        t, (fed_layer){.kind = KIND_NORMALIZATION, .constants = {0.1, 0.2, 0.3, 0.4, 1, 2, 3, 4}});
    if (is_mixed) add_layer(t, (fed_layer){.kind = KIND_MIX_UP, .constants = {0.5}});
    if (!is_dense) add_layer(t, convolution(part, 5));
    add_layer(t, (fed_layer){.kind = KIND_DENSE, .out = {1, 1, NUM_CLASSES}, .has_bias = 1});
    CHECK_EQUAL(fed_model_check(&t->model), FED_OK);
}

static void train(const table *t, int num_threads, double *delta /* out [P] */) {
    const size_t num_params = t->model.num_params;
    float *pixels = calloc(NUM_EXAMPLES * t->model.num_inputs, sizeof *pixels);
    float *params = calloc(num_params, sizeof *params);
    fill_floats(1, 1, pixels, NUM_EXAMPLES * t->model.num_inputs);
    fill_floats(2, 0.5, params, num_params);
    int32_t labels[NUM_EXAMPLES];
    fill_labels(3, NUM_CLASSES, labels, NUM_EXAMPLES);
    const fed_client client = {.pixels = pixels,
                               .pixel_type = FED_PIXELS_FLOAT32,
                               .scale = 1,
                               .labels = labels,
                               .num_examples = NUM_EXAMPLES,
                               .plan = {.epochs = 2,
                                        .batch_size = t->batch_size,
                                        .shuffle_buffer = SIZE_MAX,
                                        .max_examples = SIZE_MAX},
                               .shuffle_key = KEY,
                               .dropout_key = KEY,
                               .mixup_key = KEY};
    const fed_step_row row = {FED_STEP_SGD, {0.1}};
    atomic_int cancel = 0;
    fed_client_stats stats;
    fed_fault fault;
    double weight;
    fed_team *team = fed_team_new(num_threads);
    fed_sum *sum = fed_sum_new_of(&t->model);
    CHECK_EQUAL(fed_train_cohort(team, &t->model, &(fed_step){&row, 1}, params, &client, 1,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 &stats, &fault),
                FED_OK);
    fed_sum_total(sum, delta, &weight);
    CHECK(stats.is_finite);
    fed_sum_free(sum);
    fed_team_free(team);
    free(params);
    free(pixels);
}

static void check_training(const table *t) {
    const size_t num_bytes = t->model.num_params * sizeof(double);
    double *alone = malloc(num_bytes), *shared = malloc(num_bytes);
    train(t, 1, alone);
    for (int num_threads = 2; num_threads <= 7; num_threads += 5) {
        train(t, num_threads, shared);
        CHECK_BYTES(alone, shared, num_bytes);
    }
    free(alone);
    free(shared);
}

static void test_models_behind_input_layers_train_at_any_size(void) {
    static const fed_shape shapes[][2] = {
        {{1, 1, 1}, {1, 1, 1}}, {{1, 1, 3}, {3, 3, 3}}, {{5, 4, 1}, {5, 4, 1}},
        {{4, 7, 3}, {6, 9, 3}}, {{9, 6, 4}, {1, 2, 4}}, {{3, 1, 2}, {2, 3, 2}},
    };
    for (size_t i = 0; i < LENGTH(shapes); i++)
        for (int is_dense = 0; is_dense < 2; is_dense++)
            for (int is_mixed = 0; is_mixed < 2; is_mixed++) {
                table t;
                build(&t, &shapes[i][0], &shapes[i][1], is_dense, is_mixed);
                check_training(&t);
            }
}

static void test_examples_are_mixed_without_other_input_layers(void) {
    for (int is_dense = 0; is_dense < 2; is_dense++) {
        const fed_shape shape = {5, 4, 3};
        table t = {.model = {.num_inputs = fed_shape_size(&shape), .num_classes = NUM_CLASSES}};
        t.model.layers = t.layers;
        t.batch_size = 5;
        add_layer(&t, (fed_layer){.kind = KIND_MIX_UP, .in = shape, .constants = {1}});
        if (!is_dense) add_layer(&t, convolution(&shape, 5));
        add_layer(&t, (fed_layer){.kind = KIND_DENSE, .out = {1, 1, NUM_CLASSES}, .has_bias = 1});
        check_training(&t);
    }
}

/* The batch is computed in parts. The partner of an example may be in another part. */
static void test_examples_of_parts_are_mixed(void) {
    const fed_shape shape = {24, 24, 1};
    table t = {.model = {.num_inputs = fed_shape_size(&shape), .num_classes = NUM_CLASSES}};
    t.model.layers = t.layers;
    t.batch_size = 11;
    add_layer(
        &t, (fed_layer){
                .kind = KIND_RANDOM_CROP, .in = shape, .out = shape, .pad_top = 2, .pad_left = 2});
    add_layer(&t, (fed_layer){.kind = KIND_RANDOM_FLIP});
    add_layer(&t, (fed_layer){.kind = KIND_MIX_UP, .constants = {1}});
    add_layer(&t, convolution(&shape, 16));
    add_layer(&t, per_pixel(&shape, 16));
    add_layer(&t, (fed_layer){.kind = KIND_AVERAGE_POOL,
                              .out = {1, 1, 16},
                              .window_height = 24,
                              .window_width = 24,
                              .stride_y = 24,
                              .stride_x = 24});
    /* With so many parameters, the convolutions run by batch. */
    add_layer(&t, per_pixel(&(fed_shape){1, 1, 16}, 256));
    add_layer(&t, per_pixel(&(fed_shape){1, 1, 256}, 256));
    add_layer(&t, (fed_layer){.kind = KIND_DENSE, .out = {1, 1, NUM_CLASSES}, .has_bias = 1});
    fed_net net;
    CHECK_EQUAL(fed_net_init(&net, &t.model), FED_OK);
    CHECK_EQUAL(fed_net_part_size(&net, t.batch_size, 1), 4);
    fed_net_free(&net);
    check_training(&t);
}

/* A sanitizer watches the ends of `images` and `out`. */
static void test_images_are_written_whole_and_no_further(void) {
    table t;
    build(&t, &(fed_shape){6, 5, 3}, &(fed_shape){5, 6, 3}, false, true);
    const size_t size = fed_inputs_size(&t.model);
    CHECK_EQUAL(size, 5 * 6 * 3);
    float *images = calloc(NUM_EXAMPLES * t.model.num_inputs, sizeof *images);
    float *out = malloc(NUM_EXAMPLES * size * sizeof *out);
    fill_floats(1, 1, images, NUM_EXAMPLES * t.model.num_inputs);
    for (int is_training = 0; is_training < 2; is_training++) {
        for (size_t i = 0; i < NUM_EXAMPLES * size; i++) out[i] = NAN;
        CHECK_EQUAL(
            fed_run_inputs(&t.model, images, NUM_EXAMPLES, is_training ? &KEY : NULL, 0, out),
            FED_OK);
        for (size_t i = 0; i < NUM_EXAMPLES * size; i++) CHECK(fabsf(out[i]) < 1e4f);
    }
    free(images);
    free(out);
}

static void test_input_layers_behind_others_are_refused(void) {
    table t;
    build(&t, &(fed_shape){4, 4, 1}, &(fed_shape){4, 4, 1}, false, false);
    fed_layer before = t.layers[7];
    t.layers[7] = t.layers[8], t.layers[7].in = before.in;
    t.layers[8] = before, t.layers[8].in = t.layers[8].out = t.layers[7].out;
    CHECK_EQUAL(fed_model_check(&t.model), FED_ERR_ARGUMENT);
}

static void test_examples_are_mixed_once_and_last(void) {
    static const double bad_alphas[] = {0, 1e-310, -1, 1e7, NAN, INFINITY};
    table t;
    build(&t, &(fed_shape){4, 4, 1}, &(fed_shape){4, 4, 1}, false, true);
    for (size_t i = 0; i < LENGTH(bad_alphas); i++) {
        t.layers[8].constants[0] = bad_alphas[i];
        CHECK_EQUAL(fed_model_check(&t.model), FED_ERR_ARGUMENT);
    }
    t.layers[8].constants[0] = 1;
    CHECK_EQUAL(fed_model_check(&t.model), FED_OK);
    t.layers[7] = t.layers[8]; /* twice */
    CHECK_EQUAL(fed_model_check(&t.model), FED_ERR_ARGUMENT);
    t.layers[8].kind = KIND_RANDOM_FLIP; /* MixUp before another layer */
    CHECK_EQUAL(fed_model_check(&t.model), FED_ERR_ARGUMENT);
}

static const test_case TESTS[] = {
    TEST(test_models_behind_input_layers_train_at_any_size),
    TEST(test_examples_are_mixed_without_other_input_layers),
    TEST(test_examples_of_parts_are_mixed),
    TEST(test_images_are_written_whole_and_no_further),
    TEST(test_input_layers_behind_others_are_refused),
    TEST(test_examples_are_mixed_once_and_last),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
