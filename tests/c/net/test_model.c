/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of model.c: which tables are refused; packing and unpacking; and the gradient of a stack,
 * computed from one local step of one client, against central differences of a loss in double.
 */
#include "fixtures.h"

enum { MAX_PARAMS = 400, MAX_EXAMPLES = 97, MAX_INPUTS = 24 };

/* ---- Tables ---------------------------------------------------------------------------------- */

static fed_layer good_layers[2] = {DENSE(9, 6, 0, FED_LINEAR), DENSE(6, 4, 60, FED_LINEAR)};
static const fed_model GOOD = {good_layers, 2, 9, 4, 88};

static fed_layer with_kind(int32_t kind) {
    fed_layer layer = DENSE(9, 6, 0, FED_LINEAR);
    layer.kind = kind;
    return layer;
}

static int check_changed(size_t l, fed_layer changed) {
    fed_layer layers[2] = {good_layers[0], good_layers[1]};
    layers[l] = changed;
    fed_model model = GOOD;
    model.layers = layers;
    return fed_model_check(&model);
}

static int check_one_layer(size_t num_inputs, size_t num_outputs) {
    const fed_layer layer = DENSE(num_inputs, num_outputs, 0, FED_LINEAR);
    const fed_model model = {&layer, 1, num_inputs, num_outputs, (num_inputs + 1) * num_outputs};
    return fed_model_check(&model);
}

static void test_consistent_tables_are_accepted(void) {
    CHECK_EQUAL(fed_model_check(&GOOD), FED_OK);
    CHECK_EQUAL(check_one_layer(1, 1), FED_OK);
    CHECK_EQUAL(check_one_layer(784, 62), FED_OK);
}

static void test_kinds_are_found_by_name(void) {
    static const char *const names[] = {
        [KIND_DENSE] = "dense",
        [KIND_CONV2D] = "conv2d",
        [KIND_MAX_POOL] = "max_pooling2d",
        [KIND_AVERAGE_POOL] = "average_pooling2d",
        [KIND_GROUP_NORM] = "group_normalization",
        [KIND_LAYER_NORM] = "layer_normalization",
        [KIND_BATCH_NORM] = "batch_normalization",
        [KIND_ZERO_PADDING] = "zero_padding2d",
        [KIND_DROPOUT] = "dropout",
        [KIND_ACTIVATION] = "activation",
        [KIND_ADD] = "add",
        [KIND_CONCATENATE] = "concatenate",
        [KIND_DEPTHWISE] = "depthwise_conv2d",
        [KIND_NORMALIZATION] = "normalization",
        [KIND_IMAGE_STANDARDIZATION] = "image_standardization",
        [KIND_RANDOM_FLIP] = "random_flip",
        [KIND_RANDOM_CROP] = "random_crop",
        [KIND_CENTER_CROP] = "center_crop",
        [KIND_RANDOM_ROTATION] = "random_rotation",
        [KIND_CUTOUT] = "cutout",
        [KIND_COLOR_JITTER] = "color_jitter",
        [KIND_MIX_UP] = "mix_up",
    };
    CHECK_EQUAL(LENGTH(names), NUM_KINDS);
    for (int kind = 0; kind < NUM_KINDS; kind++) {
        const fed_layer layer = {.kind = kind}, next = {.kind = NUM_KINDS};
        CHECK_EQUAL(fed_layer_kind_named(names[kind]), kind);
        CHECK(strcmp(fed_kind_of(&layer)->name, names[kind]) == 0);
        CHECK(fed_kind_of(&next) == NULL);
    }
    CHECK_EQUAL(fed_layer_kind_named("flatten"), -1);
    CHECK_EQUAL(fed_layer_kind_named(""), -1);
}

static void test_unknown_kinds_are_refused(void) {
    const int32_t bad[] = {-1, NUM_KINDS, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(check_changed(0, with_kind(bad[i])), FED_ERR_ARGUMENT);
}

static void test_unknown_activations_are_refused(void) {
    const int32_t bad[] = {-1, FED_NUM_ACTIVATIONS, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(check_changed(0, (fed_layer)DENSE(9, 6, 0, bad[i])), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(0, (fed_layer)DENSE(9, 6, 0, FED_RELU)), FED_OK);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(6, 4, 60, FED_RELU)), FED_ERR_ARGUMENT);
}

static void test_broken_chains_are_refused(void) {
    CHECK_EQUAL(check_changed(0, (fed_layer)DENSE(8, 6, 0, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(0, (fed_layer)DENSE(9, 5, 0, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(7, 4, 60, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(6, 5, 60, FED_LINEAR)), FED_ERR_ARGUMENT);
}

/* Three dense layers of 4 values, then a sum. `skips` are those of the second layer. */
static int check_graph(const size_t *skips, const size_t *skips_of_sum, size_t num_layers) {
    fed_layer layers[4] = {DENSE(4, 4, 0, FED_LINEAR), DENSE(4, 4, 20, FED_LINEAR),
                           DENSE(4, 4, 40, FED_LINEAR), DENSE(4, 4, 60, FED_LINEAR)};
    memcpy(layers[1].skips, skips, sizeof(layers[1].skips));
    layers[3] = (fed_layer){.kind = KIND_ADD, .in = {1, 1, 4}, .out = {1, 1, 4}, .offset = 60};
    memcpy(layers[3].skips, skips_of_sum, sizeof(layers[3].skips));
    return fed_model_check(&(fed_model){layers, num_layers, 4, 4, 60});
}

static void test_inputs_that_are_not_before_a_layer_are_refused(void) {
    static const size_t none[2] = {0, 0}, shortcut[2] = {0, 2}, of_image[2] = {0, 3};
    static const size_t beyond[2] = {0, 4}, far[2] = {SIZE_MAX, 0}, second[2] = {0, 1};
    static const size_t back[2] = {1, 0};
    CHECK_EQUAL(check_graph(none, shortcut, 4), FED_OK);
    CHECK_EQUAL(check_graph(none, of_image, 4), FED_OK);
    CHECK_EQUAL(check_graph(none, none, 4), FED_OK); /* the sum of a value and itself */
    CHECK_EQUAL(check_graph(none, beyond, 4), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_graph(none, far, 4), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_graph(far, shortcut, 4), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_graph(second, shortcut, 4), FED_ERR_ARGUMENT); /* a dense layer has one
                                                                        input */
    CHECK_EQUAL(check_graph(back, none, 4), FED_ERR_ARGUMENT);       /* no layer reads layer 0 */
    CHECK_EQUAL(check_graph(back, shortcut, 4), FED_OK);
    CHECK_EQUAL(check_graph(back, none, 3), FED_ERR_ARGUMENT);
}

static void test_sums_of_two_shapes_are_refused(void) {
    fed_layer layers[3] = {DENSE(5, 4, 0, FED_LINEAR),
                           DENSE(4, 4, 24, FED_LINEAR),
                           {.kind = KIND_ADD, .in = {1, 1, 4}, .out = {1, 1, 4}, .offset = 44}};
    const fed_model model = {layers, 3, 5, 4, 44};
    layers[2].skips[1] = 1;
    CHECK_EQUAL(fed_model_check(&model), FED_OK);
    layers[2].skips[1] = 2; /* the image, of 5 values */
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
    layers[2].skips[1] = 1;
    layers[2].out.channels = 5;
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
}

static void test_wrong_offsets_are_refused(void) {
    CHECK_EQUAL(check_changed(0, (fed_layer)DENSE(9, 6, 1, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(6, 4, 59, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(6, 4, 61, FED_LINEAR)), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_changed(1, (fed_layer)DENSE(6, 4, 0, FED_LINEAR)), FED_ERR_ARGUMENT);
}

static void test_wrong_counts_are_refused(void) {
    const size_t bad_params[] = {0, 87, 89, SIZE_MAX};
    for (size_t i = 0; i < LENGTH(bad_params); i++) {
        fed_model model = GOOD;
        model.num_params = bad_params[i];
        CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
    }
    fed_model model = GOOD;
    model.num_classes = 5;
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
    model = GOOD;
    model.num_inputs = 10;
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
}

static void test_no_layers_and_too_many_are_refused(void) {
    fed_layer layers[FED_MAX_LAYERS + 1];
    fed_model model = {layers, 0, 1, 1, 0};
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
    for (size_t l = 0; l <= FED_MAX_LAYERS; l++)
        layers[l] = (fed_layer)DENSE(1, 1, 2 * l, FED_LINEAR);
    model = (fed_model){layers, FED_MAX_LAYERS, 1, 1, 2 * (size_t)FED_MAX_LAYERS};
    CHECK_EQUAL(fed_model_check(&model), FED_OK);
    model = (fed_model){layers, FED_MAX_LAYERS + 1, 1, 1, 2 * (size_t)FED_MAX_LAYERS + 2};
    CHECK_EQUAL(fed_model_check(&model), FED_ERR_ARGUMENT);
}

static void test_empty_and_overflowing_sizes_are_refused(void) {
    const size_t bad[][2] = {{0, 1},
                             {1, 0},
                             {0, 0},
                             {SIZE_MAX, 1},
                             {1, SIZE_MAX},
                             {1ull << 40, 1},
                             {1, 1ull << 40},
                             {1ull << 32, 1ull << 32},
                             {1 << 16, 1 << 16}};
    for (size_t i = 0; i < LENGTH(bad); i++)
        CHECK_EQUAL(check_one_layer(bad[i][0], bad[i][1]), FED_ERR_ARGUMENT);
}

static void test_models_without_parameters_are_refused(void) {
    const fed_layer layer = {.kind = KIND_ACTIVATION, .in = {1, 1, 3}, .out = {1, 1, 3}};
    CHECK_EQUAL(fed_model_check(&(fed_model){&layer, 1, 3, 3, 0}), FED_ERR_ARGUMENT);
}

/* A convolution with one window, of which all but one pixel is beyond the image; its outputs are
 * logits. */
static int check_one_window(fed_shape in, size_t height, size_t width, size_t stride) {
    const fed_layer layer = {.kind = KIND_CONV2D,
                             .in = in,
                             .out = {1, 1, 2},
                             .window_height = height,
                             .window_width = width,
                             .stride_y = stride,
                             .stride_x = stride,
                             .pad_top = height - 1,
                             .pad_left = width - 1};
    const size_t num_params = height * width * in.channels * 2;
    return fed_model_check(&(fed_model){&layer, 1, fed_shape_size(&in), 2, num_params});
}

static void test_windows_and_strides_beyond_any_image_are_refused(void) {
    CHECK_EQUAL(check_one_window((fed_shape){1, 1, 1}, 1, 1, 1), FED_OK);
    CHECK_EQUAL(check_one_window((fed_shape){2, 3, 5}, 30, 40, 50), FED_OK);
    CHECK_EQUAL(check_one_window((fed_shape){1 << 26, 1, 1}, 1, 1 << 26, 1), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_one_window((fed_shape){1, 1 << 26, 1}, 1 << 26, 1, 1), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_one_window((fed_shape){1, 1, 1}, SIZE_MAX, 1, 1), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_one_window((fed_shape){1, 1, 1}, 1, SIZE_MAX / 2, 1), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_one_window((fed_shape){1, 1, 1}, 1, 1, SIZE_MAX), FED_ERR_ARGUMENT);
    CHECK_EQUAL(check_one_window((fed_shape){1, 1, 1}, 1, 1, 1 << 30), FED_ERR_ARGUMENT);
}

/* Each size is allowed. But the memory of so many layers for so large a batch has more bytes than a
 * size_t can hold. */
static void test_workspaces_beyond_any_memory_are_refused(void) {
    enum { SIDE = 1 << 13, CHANNELS = 32, LARGEST_BATCH = 1 << 24 };
    const fed_shape image = {SIDE, SIDE, CHANNELS};
    fed_layer layers[FED_MAX_LAYERS];
    for (size_t l = 0; l < FED_MAX_LAYERS; l++)
        layers[l] = (fed_layer){.kind = KIND_MAX_POOL,
                                .in = image,
                                .out = image,
                                .offset = CHANNELS,
                                .window_height = 1,
                                .window_width = 1,
                                .stride_y = 1,
                                .stride_x = 1};
    layers[0].kind = KIND_GROUP_NORM;
    layers[0].num_groups = 1;
    layers[0].has_bias = 1;
    layers[0].offset = 0;
    fed_layer *last = &layers[FED_MAX_LAYERS - 1];
    last->window_height = last->window_width = SIDE;
    last->out = (fed_shape){1, 1, CHANNELS};
    const fed_model model = {layers, FED_MAX_LAYERS, fed_shape_size(&image), CHANNELS, CHANNELS};
    const float params[CHANNELS] = {0};
    CHECK_EQUAL(fed_model_check(&model), FED_OK);
    CHECK_EQUAL(fed_exercise(&model, params, LARGEST_BATCH, 0, FED_FORWARD, 1), FED_ERR_NO_MEMORY);
    CHECK_EQUAL(fed_exercise(&model, params, SIZE_MAX, 0, FED_FORWARD, 1), FED_ERR_ARGUMENT);
}

/* ---- Packing --------------------------------------------------------------------------------- */

/* Packing and unpacking gives the same flat vector, and the rest of the packed vector is zeros. */
static void check_packing(const fed_model *model) {
    fed_net net;
    CHECK_EQUAL(fed_net_init(&net, model), FED_OK);
    const size_t size = net.size, num_params = model->num_params;
    float *flat = test_alloc(num_params * sizeof(*flat));
    float *packed = test_alloc(size * sizeof(*packed));
    double *wide = test_alloc(size * sizeof(*wide)), *back = test_alloc(num_params * sizeof(*back));
    for (size_t p = 0; p < num_params; p++) flat[p] = (float)(p + 1);
    memset(packed, 0xff, size * sizeof(*packed));
    fed_net_pack(&net, flat, packed);
    size_t num_zeros = 0;
    for (size_t v = 0; v < size; v++) {
        wide[v] = packed[v];
        num_zeros += packed[v] == 0;
    }
    CHECK_EQUAL(num_zeros, size - num_params);
    fed_net_unpack(&net, wide, back);
    for (size_t p = 0; p < num_params; p++) CHECK(back[p] == (double)flat[p]);
    free(flat);
    free(packed);
    free(wide);
    free(back);
    fed_net_free(&net);
}

static void test_packing_there_and_back_is_the_identity(void) {
    static const size_t sizes[][2] = {{1, 1},  {1, 17},  {7, 3},    {15, 16}, {16, 10},
                                      {17, 5}, {33, 31}, {784, 10}, {784, 62}};
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        const size_t num_params = (sizes[i][0] + 1) * sizes[i][1];
        const fed_layer layer = DENSE(sizes[i][0], sizes[i][1], 0, FED_LINEAR);
        check_packing(&(fed_model){&layer, 1, sizes[i][0], sizes[i][1], num_params});
    }
    check_packing(&GOOD);
}

/* ---- Gradients ------------------------------------------------------------------------------- */

/* One batch of random examples, and parameters to differentiate at. */
typedef struct problem {
    const fed_model *model;
    size_t num_examples;
    float pixels[MAX_EXAMPLES * MAX_INPUTS], params[MAX_PARAMS];
    int32_t labels[MAX_EXAMPLES];
} problem;

static problem new_problem(const fed_model *model, size_t num_examples) {
    problem p = {.model = model, .num_examples = num_examples};
    CHECK(num_examples <= MAX_EXAMPLES && model->num_inputs <= MAX_INPUTS);
    CHECK(model->num_params <= MAX_PARAMS);
    fill_floats(1, 1, p.pixels, num_examples * model->num_inputs);
    fill_floats(2, 0.5, p.params, model->num_params);
    fill_labels(3, model->num_classes, p.labels, num_examples);
    return p;
}

static double mean_loss(const problem *p, const double *params) {
    double loss = 0, logits[REFERENCE_MAX_OUTPUTS], pixels[MAX_INPUTS];
    for (size_t e = 0; e < p->num_examples; e++) {
        for (size_t i = 0; i < p->model->num_inputs; i++)
            pixels[i] = p->pixels[e * p->model->num_inputs + i];
        reference_logits(p->model, params, pixels, logits);
        loss += reference_loss(logits, p->model->num_classes, p->labels[e]);
    }
    return loss / (double)p->num_examples;
}

/* The delta of one local step at rate 1. The first step with momentum equals that of plain SGD
 * (momentum 0). */
static void one_step_delta(const problem *p, float momentum, double *delta) {
    const fed_step_row row = {FED_STEP_SGD, {1, momentum}};
    const fed_client client = {
        .pixels = p->pixels,
        .pixel_type = FED_PIXELS_FLOAT32,
        .scale = 1,
        .labels = p->labels,
        .num_examples = p->num_examples,
        .plan = {.epochs = 1, .batch_size = p->num_examples, .max_examples = SIZE_MAX},
    };
    atomic_int cancel = 0;
    fed_client_stats stats;
    fed_fault fault;
    double weight;
    fed_team *team = fed_team_new(1);
    fed_sum *sum = fed_sum_new_of(p->model);
    CHECK_EQUAL(fed_train_cohort(team, p->model, &(fed_step){&row, 1}, p->params, &client, 1,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 &stats, &fault),
                FED_OK);
    fed_sum_total(sum, delta, &weight);
    CHECK(weight == 1);
    CHECK_EQUAL(stats.num_batches, 1);
    fed_sum_free(sum);
    fed_team_free(team);
}

/* Central differences have errors of some 1e-10. Gradients in float32 have relative errors of up to
 * 1e-4, plus 1e-6. */
static void check_gradient(const fed_model *model, size_t num_examples) {
    const problem p = new_problem(model, num_examples);
    const double h = 1e-5;
    double plain[MAX_PARAMS], momentum[MAX_PARAMS], params[MAX_PARAMS];
    one_step_delta(&p, 0, plain);
    one_step_delta(&p, 0.9f, momentum);
    for (size_t i = 0; i < model->num_params; i++) params[i] = p.params[i];
    for (size_t i = 0; i < model->num_params; i++) {
        params[i] = p.params[i] + h;
        const double up = mean_loss(&p, params);
        params[i] = p.params[i] - h;
        const double slope = (up - mean_loss(&p, params)) / (2 * h);
        params[i] = p.params[i];
        CHECK_CLOSE(-plain[i], slope, 1e-4 * fabs(slope) + 1e-6);
        CHECK_CLOSE(-momentum[i], slope, 1e-4 * fabs(slope) + 1e-6);
    }
}

/* Up to three blocks of 32 examples, whole and incomplete. */
static void check_gradients(const fed_model *model) {
    static const size_t counts[] = {1, 5, 32, 33, 65};
    for (size_t i = 0; i < LENGTH(counts); i++) check_gradient(model, counts[i]);
}

static void test_one_layer_gradient_equals_central_differences(void) {
    static const size_t sizes[][2] = {{1, 2}, {7, 3}, {16, 10}, {17, 6}};
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        const fed_layer layer = DENSE(sizes[i][0], sizes[i][1], 0, FED_LINEAR);
        const size_t num_params = (sizes[i][0] + 1) * sizes[i][1];
        check_gradients(&(fed_model){&layer, 1, sizes[i][0], sizes[i][1], num_params});
    }
}

static void test_two_layer_gradient_equals_central_differences(void) { check_gradients(&GOOD); }

/* Widths of more than one vector, and a last layer wider than the one before. */
static void test_three_layer_gradient_equals_central_differences(void) {
    static const fed_layer layers[3] = {DENSE(5, 17, 0, FED_LINEAR), DENSE(17, 2, 102, FED_LINEAR),
                                        DENSE(2, 11, 138, FED_LINEAR)};
    check_gradients(&(fed_model){layers, 3, 5, 11, 171});
}

static void test_relu_gradient_equals_central_differences(void) {
    static const fed_layer layers[3] = {DENSE(5, 17, 0, FED_RELU), DENSE(17, 6, 102, FED_RELU),
                                        DENSE(6, 11, 210, FED_LINEAR)};
    check_gradients(&(fed_model){layers, 3, 5, 11, 287});
}

/* ---- Dropout streams ------------------------------------------------------------------------- */

/* The net of some dropouts of `size` values each before a dense layer: only its layout, no memory.
 */
static void lay_out_dropouts(fed_net *net, fed_layer *layers, size_t num_dropouts, size_t height,
                             size_t width) {
    const fed_shape in = {height, width, 1};
    for (size_t l = 0; l < num_dropouts; l++)
        layers[l] = (fed_layer){.kind = KIND_DROPOUT, .in = in, .out = in, .rate = 0.5};
    layers[num_dropouts] = (fed_layer)DENSE(height * width, 2, 0, FED_LINEAR);
    layers[num_dropouts].in = in;
    static fed_model model;
    model = (fed_model){layers, num_dropouts + 1, height * width, 2, 2 * (height * width + 1)};
    CHECK_EQUAL(fed_net_init(net, &model), FED_OK);
}

static void test_visits_share_no_masks(void) {
    enum { MOST = 3, BLOCK_VALUES = 16 };
    static const struct {
        size_t num_dropouts, height, width;
        unsigned bits;
    } CASES[] = {
        {1, 28, 28, 20},     {1, 4096, 4096, 20}, /* 2^24 values, as many as 2^20 blocks hold */
        {1, 4096, 4097, 21}, {2, 4096, 2048, 20}, {2, 4096, 2049, 21}, {3, 8192, 8192, 24},
    };
    fed_net net;
    fed_layer layers[MOST + 1];
    fed_rng rngs[2];
    const fed_key key = {.seed = 3};
    for (size_t i = 0; i < LENGTH(CASES); i++) {
        const size_t num_values = CASES[i].num_dropouts * CASES[i].height * CASES[i].width;
        lay_out_dropouts(&net, layers, CASES[i].num_dropouts, CASES[i].height, CASES[i].width);
        CHECK_EQUAL(net.visit_bits, CASES[i].bits);
        fed_batch batch = {.net = &net, .batch_size = 2, .dropout = rngs};
        fed_batch_open_dropout(&batch, &key, 5);
        CHECK_EQUAL(rngs[0].counter[0], (uint64_t)5 << CASES[i].bits);
        CHECK((rngs[1].counter[0] - rngs[0].counter[0]) * BLOCK_VALUES >= num_values);
        fed_net_free(&net);
    }
}

static const test_case TESTS[] = {
    TEST(test_consistent_tables_are_accepted),
    TEST(test_kinds_are_found_by_name),
    TEST(test_unknown_kinds_are_refused),
    TEST(test_unknown_activations_are_refused),
    TEST(test_broken_chains_are_refused),
    TEST(test_inputs_that_are_not_before_a_layer_are_refused),
    TEST(test_sums_of_two_shapes_are_refused),
    TEST(test_wrong_offsets_are_refused),
    TEST(test_wrong_counts_are_refused),
    TEST(test_no_layers_and_too_many_are_refused),
    TEST(test_empty_and_overflowing_sizes_are_refused),
    TEST(test_models_without_parameters_are_refused),
    TEST(test_windows_and_strides_beyond_any_image_are_refused),
    TEST(test_workspaces_beyond_any_memory_are_refused),
    TEST(test_packing_there_and_back_is_the_identity),
    TEST(test_one_layer_gradient_equals_central_differences),
    TEST(test_two_layer_gradient_equals_central_differences),
    TEST(test_three_layer_gradient_equals_central_differences),
    TEST(test_relu_gradient_equals_central_differences),
    TEST(test_visits_share_no_masks),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
