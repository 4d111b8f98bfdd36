/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of narrow.c: a client whose images have fixed pixels gets the results of a reference in
 * double without narrow layers; when a layer is narrow; and extreme pixels and sizes.
 */
#include "fixtures.h"

enum { MAX_INPUTS = 785, MAX_CLASSES = 62, MAX_PARAMS = (MAX_INPUTS + 1) * MAX_CLASSES };
enum { NUM_HIDDEN = 9, MAX_CLIENTS = 3 };

static const size_t SIZES[] = {7, 30, 32, 49, 96, MAX_INPUTS};

/* Learning rates for an image of one pixel. They are divided by the number of pixels, because the
 * squared norm of an image grows with it. */
static const fed_step_row PLAIN = {FED_STEP_SGD, {0.5f}};
static const fed_step_row MOMENTUM = {FED_STEP_SGD, {0.1f, 0.9f}};
static const fed_step_row NESTEROV = {FED_STEP_SGD, {0.1f, 0.9f, 1}};
static const fed_step_row *const STEPS[] = {&PLAIN, &MOMENTUM, &NESTEROV};

static atomic_int cancel;
static fed_fault fault;

/* ---- Clients --------------------------------------------------------------------------------- */

/* How a client's pixels are stored, and what they stand for. */
typedef struct pixel_kind {
    int32_t type;
    float scale, offset;
    int is_blank; /* 1: fixed pixels are stored as 0; 0: each has a different value */
} pixel_kind;

static const pixel_kind BACKGROUND = {FED_PIXELS_UINT8, -1.0f / 255, 1, 1}; /* fixed: 1.0 */
static const pixel_kind INK = {FED_PIXELS_UINT8, 1.0f / 255, 0, 1};         /* fixed: 0.0 */
static const pixel_kind GREY = {FED_PIXELS_UINT8, 1.0f / 255, 0.25f, 0};
static const pixel_kind FLOATS = {FED_PIXELS_FLOAT32, 1, 0, 0}; /* used in place, if the width
                                                                   allows it */
static const pixel_kind SCALED_FLOATS = {FED_PIXELS_FLOAT32, -0.5f, 1, 0};
static const pixel_kind *const KINDS[] = {&BACKGROUND, &INK, &GREY, &FLOATS, &SCALED_FLOATS};

/* The model and the client of a test. */
typedef struct spec {
    size_t num_inputs, num_hidden /* 0: one layer */, num_classes;
    size_t num_examples, num_kept; /* num_kept: groups of FED_GROUP pixels, not the tail */
    const pixel_kind *kind;
    const fed_step_row *row;
    double clip_norm; /* of gradients; 0: they are not clipped */
    fed_plan plan;
} spec;

static const spec USUAL = {.num_inputs = 96,
                           .num_classes = 10,
                           .num_examples = 50,
                           .num_kept = 7,
                           .kind = &BACKGROUND,
                           .row = &PLAIN,
                           .plan = {.pipeline = FED_REPEAT_SHUFFLE,
                                    .epochs = 2,
                                    .batch_size = 20,
                                    .shuffle_buffer = 10,
                                    .max_examples = SIZE_MAX}};

typedef struct problem {
    spec asked;
    fed_layer layers[2];
    fed_model model;
    fed_step_row rows[2]; /* clipping, if there is any, and the optimizer */
    fed_step step;
    fed_client client;
    float server[MAX_PARAMS];
} problem;

static void set_model(problem *p) {
    const size_t num_inputs = p->asked.num_inputs, num_classes = p->asked.num_classes;
    const size_t num_hidden = p->asked.num_hidden;
    p->layers[0] =
        (fed_layer)DENSE(num_inputs, num_hidden > 0 ? num_hidden : num_classes, 0, FED_LINEAR);
    size_t num_params = (num_inputs + 1) * p->layers[0].out.channels;
    if (num_hidden > 0) {
        p->layers[1] = (fed_layer)DENSE(num_hidden, num_classes, num_params, FED_LINEAR);
        num_params += (num_hidden + 1) * num_classes;
    }
    p->model = (fed_model){p->layers, num_hidden > 0 ? 2 : 1, num_inputs, num_classes, num_params};
    CHECK(num_params <= MAX_PARAMS);
    fill_floats(5, 0.1, p->server, num_params);
}

/* Kept groups are spread among the fixed groups. Not all pixels of a kept group vary. */
static int is_varying(const spec *asked, size_t pixel) {
    const size_t group = pixel / FED_GROUP, num_groups = asked->num_inputs / FED_GROUP;
    if (group == num_groups) return 1; /* the tail */
    return (group + 1) * asked->num_kept / num_groups > group * asked->num_kept / num_groups &&
           pixel % FED_GROUP != FED_GROUP / 2;
}

static uint8_t stored_byte(const spec *asked, size_t example, size_t pixel) {
    uint64_t of_pixel = 1000 + pixel, of_both = example * MAX_INPUTS + pixel;
    if (is_varying(asked, pixel))
        return example != 1 ? (uint8_t)next_bits(&of_both)
                            : (uint8_t)~stored_byte(asked, 0, pixel); /* always different from image
                                                                         0 */
    return asked->kind->is_blank ? 0 : (uint8_t)next_bits(&of_pixel);
}

static void *new_pixels(const spec *asked) {
    const int is_float = asked->kind->type == FED_PIXELS_FLOAT32;
    const size_t num_pixels = asked->num_examples * asked->num_inputs;
    uint8_t *bytes = test_alloc(num_pixels * (is_float ? sizeof(float) : 1));
    for (size_t i = 0; i < num_pixels; i++) {
        const uint8_t byte = stored_byte(asked, i / asked->num_inputs, i % asked->num_inputs);
        if (is_float)
            ((float *)(void *)bytes)[i] = (float)byte / 255;
        else
            bytes[i] = byte;
    }
    return bytes;
}

static problem *new_problem(spec asked) {
    problem *p = test_alloc(sizeof(*p));
    memset(p, 0, sizeof(*p));
    p->asked = asked;
    set_model(p);
    p->rows[1] = *asked.row;
    p->rows[1].options[0] /= (float)asked.num_inputs;
    p->rows[0] = (fed_step_row){FED_STEP_CLIP, {asked.clip_norm}};
    p->step = asked.clip_norm > 0 ? (fed_step){p->rows, 2} : (fed_step){&p->rows[1], 1};
    int32_t *labels = test_alloc(asked.num_examples * sizeof(*labels));
    fill_labels(3, asked.num_classes, labels, asked.num_examples);
    p->client = (fed_client){.pixels = new_pixels(&asked),
                             .pixel_type = asked.kind->type,
                             .scale = asked.kind->scale,
                             .offset = asked.kind->offset,
                             .labels = labels,
                             .num_examples = asked.num_examples,
                             .plan = asked.plan,
                             .shuffle_key = {.seed = 4}};
    return p;
}

static void free_problem(problem *p) {
    free((void *)(uintptr_t)p->client.pixels);
    free((void *)(uintptr_t)p->client.labels);
    free(p);
}

/* The core must not write pixels; the test owns them and may. */
static float *floats_of(problem *p) { return (float *)(uintptr_t)p->client.pixels; }

/* ---- Runs ------------------------------------------------------------------------------------ */

typedef struct outcome {
    double total[MAX_PARAMS], weight;
    fed_client_stats stats[MAX_CLIENTS];
} outcome;

static outcome outcomes[2]; /* too large for a stack frame */

static void train_clients(const problem *p, const fed_client *clients, size_t num_clients,
                          outcome *out) {
    memset(out, 0, sizeof(*out));
    fed_team *team = fed_team_new(2);
    fed_sum *sum = fed_sum_new_of(&p->model);
    CHECK_EQUAL(fed_train_cohort(team, &p->model, &p->step, p->server, clients, num_clients,
                                 &(fed_terms){.weighting = FED_WEIGHT_UNIFORM}, &cancel, sum,
                                 out->stats, &fault),
                FED_OK);
    fed_sum_total(sum, out->total, &out->weight);
    fed_sum_free(sum);
    fed_team_free(team);
}

static void train(const problem *p, outcome *out) { train_clients(p, &p->client, 1, out); }

/* Returns whether the client's first layer is narrow, and checks that it then has the right
 * groups. */
static int is_narrow(const problem *p) {
    fed_net net;
    fed_narrow narrow;
    CHECK_EQUAL(fed_net_init(&net, &p->model), FED_OK);
    void *memory = test_alloc(fed_narrow_num_bytes(&net));
    const int answer = fed_narrow_init(&narrow, &net, &p->client, memory);
    free(memory);
    fed_net_free(&net);
    if (answer && p->asked.num_examples > 1) CHECK_EQUAL(narrow.num_kept, p->asked.num_kept);
    if (answer)
        CHECK_EQUAL(narrow.model.num_inputs,
                    narrow.num_kept * FED_GROUP + p->asked.num_inputs % FED_GROUP + 1);
    return answer;
}

/* ---- The reference: local SGD in double on whole images -------------------------------------- */

typedef struct reference {
    double params[MAX_PARAMS], slot[MAX_PARAMS], gradient[MAX_PARAMS];
    double loss_sum, largest; /* the largest magnitude of a parameter in any step */
    int64_t num_correct, num_steps, num_clipped;
} reference;

static reference t; /* too large for a stack frame */

static double reference_pixel(const fed_client *client, size_t at) {
    const double stored = client->pixel_type == FED_PIXELS_UINT8
                              ? (double)((const uint8_t *)client->pixels)[at]
                              : (double)((const float *)client->pixels)[at];
    return (double)client->scale * stored + (double)client->offset;
}

static void reference_forward(const fed_model *model, double values[][REFERENCE_MAX_OUTPUTS]) {
    for (size_t l = 0; l < model->num_layers; l++) {
        const fed_layer *layer = &model->layers[l];
        const double *kernel = t.params + layer->offset;
        memcpy(values[l + 1], kernel + layer->in.channels * layer->out.channels,
               layer->out.channels * sizeof(double));
        for (size_t i = 0; i < layer->in.channels; i++)
            for (size_t o = 0; o < layer->out.channels; o++)
                values[l + 1][o] += values[l][i] * kernel[i * layer->out.channels + o];
    }
}

/* Turns the gradient by a layer's outputs, by_outputs, into the gradient by its inputs. */
static void reference_backward(const fed_layer *layer, const double *inputs, double *by_outputs) {
    const size_t num_outputs = layer->out.channels;
    const double *kernel = t.params + layer->offset;
    double *gradient = t.gradient + layer->offset, by_inputs[REFERENCE_MAX_OUTPUTS] = {0};
    for (size_t i = 0; i < layer->in.channels; i++)
        for (size_t o = 0; o < num_outputs; o++) {
            gradient[i * num_outputs + o] += by_outputs[o] * inputs[i];
            by_inputs[i] += by_outputs[o] * kernel[i * num_outputs + o];
        }
    for (size_t o = 0; o < num_outputs; o++)
        gradient[layer->in.channels * num_outputs + o] += by_outputs[o];
    memcpy(by_outputs, by_inputs, sizeof(by_inputs));
}

/* Scores one example and adds factor times its gradient. */
static void reference_example(const problem *p, size_t example, double factor) {
    const size_t num_inputs = p->model.num_inputs, num_classes = p->model.num_classes;
    double values[3][REFERENCE_MAX_OUTPUTS], by_outputs[REFERENCE_MAX_OUTPUTS];
    for (size_t i = 0; i < num_inputs; i++)
        values[0][i] = reference_pixel(&p->client, example * num_inputs + i);
    reference_forward(&p->model, values);
    const double *logits = values[p->model.num_layers];
    const int32_t label = p->client.labels[example];
    t.loss_sum += reference_loss(logits, num_classes, label);
    t.num_correct += (int32_t)reference_argmax(logits, num_classes) == label;
    const double max = logits[reference_argmax(logits, num_classes)];
    const double exp_sum = reference_exp_sum(logits, num_classes);
    for (size_t k = 0; k < num_classes; k++)
        by_outputs[k] = factor * (exp(logits[k] - max) / exp_sum - ((int32_t)k == label));
    for (size_t l = p->model.num_layers; l-- > 0;)
        reference_backward(&p->model.layers[l], values[l], by_outputs);
}

/* Clips the gradient; returns 1 if it was too long. */
static int reference_clip(const problem *p) {
    double sum_of_squares = 0;
    for (size_t i = 0; i < p->model.num_params; i++)
        sum_of_squares += t.gradient[i] * t.gradient[i];
    const double factor = p->asked.clip_norm / sqrt(sum_of_squares);
    if (factor >= 1) return 0;
    for (size_t i = 0; i < p->model.num_params; i++) t.gradient[i] *= factor;
    return 1;
}

static void reference_step(const problem *p) {
    const double rate = (double)p->rows[1].options[0], momentum = (double)p->rows[1].options[1];
    for (size_t i = 0; i < p->model.num_params; i++) {
        const double g = t.gradient[i];
        t.slot[i] = momentum * t.slot[i] + g;
        t.params[i] -= rate * (p->rows[1].options[2] != 0 ? g + momentum * t.slot[i] : t.slot[i]);
        t.largest = fmax(t.largest, fabs(t.params[i]));
    }
    t.num_steps++;
}

static void reference_train(const problem *p) {
    memset(&t, 0, sizeof(t));
    for (size_t i = 0; i < p->model.num_params; i++) t.params[i] = (double)p->server[i];
    const fed_plan *plan = &p->client.plan;
    const size_t num_examples = p->client.num_examples;
    uint32_t *buffer = test_alloc(fed_order_capacity(plan, num_examples) * sizeof(*buffer));
    uint32_t *indices = test_alloc(plan->batch_size * sizeof(*indices));
    fed_order order;
    fed_order_init(&order, plan, num_examples, &p->client.shuffle_key, buffer);
    for (size_t num; (num = fed_order_next(&order, indices)) > 0;) {
        memset(t.gradient, 0, sizeof(t.gradient));
        for (size_t b = 0; b < num; b++) reference_example(p, indices[b], 1.0 / (double)num);
        if (p->asked.clip_norm > 0) t.num_clipped += reference_clip(p);
        reference_step(p);
    }
    free(buffer);
    free(indices);
}

/* ---- Trained as the full net ----------------------------------------------------------------- */

/* Each step rounds a weight once, by at most one unit roundoff of the largest parameter. The single
 * weight that stands for all fixed pixels may be larger than their weights, but its error is
 * divided among them. Errors of the logits are multiplied by a rate and a pixel before they reach a
 * weight, so they are smaller. Rates are so small that errors do not grow from step to step. */
static double tolerance(void) { return 8 * UNIT_ROUNDOFF * t.largest * (double)(t.num_steps + 4); }

/* Trains, and compares all results with the reference. */
static void check_against_reference(const problem *p) {
    train(p, &outcomes[0]);
    reference_train(p);
    const fed_client_stats *stats = &outcomes[0].stats[0];
    CHECK_EQUAL(stats->is_finite, 1);
    CHECK_EQUAL(stats->num_batches, t.num_steps);
    CHECK_EQUAL(stats->num_examples, fed_plan_visits(&p->client.plan, p->client.num_examples));
    CHECK_EQUAL(stats->num_correct, t.num_correct);
    CHECK_CLOSE(stats->loss_sum, t.loss_sum, 1e-5 * (t.loss_sum + 1));
    double farthest = 0;
    for (size_t i = 0; i < p->model.num_params; i++) {
        const double delta = t.params[i] - (double)p->server[i];
        CHECK_CLOSE(outcomes[0].total[i], delta, tolerance());
        farthest = fmax(farthest, fabs(delta));
    }
    CHECK(farthest > 100 * tolerance()); /* otherwise the comparison would prove nothing */
}

static void check_trained(const spec *asked, int expect_narrow) {
    problem *p = new_problem(*asked);
    CHECK_EQUAL(is_narrow(p), expect_narrow);
    check_against_reference(p);
    free_problem(p);
}

/* Checks every size and every step; an eighth of the groups are kept. With 7 inputs no work can be
 * saved: the shortest row has 16 floats. */
static void check_kind(const pixel_kind *kind) {
    for (size_t i = 0; i < LENGTH(SIZES); i++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            spec asked = USUAL;
            asked.num_inputs = SIZES[i];
            asked.num_kept = SIZES[i] / 16;
            asked.kind = kind;
            asked.row = STEPS[s];
            check_trained(&asked, SIZES[i] > 16);
        }
}

static void test_bytes_on_background_1_train_as_the_full_net(void) { check_kind(&BACKGROUND); }
static void test_bytes_on_background_0_train_as_the_full_net(void) { check_kind(&INK); }
static void test_bytes_of_many_fixed_values_train_as_the_full_net(void) { check_kind(&GREY); }
static void test_floats_in_place_train_as_the_full_net(void) { check_kind(&FLOATS); }
static void test_floats_with_scale_and_offset_train_as_the_full_net(void) {
    check_kind(&SCALED_FLOATS);
}

/* The narrow gradient has the norm of the full gradient, so the same batches are clipped, by the
 * same factor. */
static void test_clipped_gradients_train_as_the_full_net(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            spec asked = USUAL;
            asked.kind = KINDS[k];
            asked.row = STEPS[s];
            asked.num_hidden = k % 2 == 0 ? 0 : NUM_HIDDEN;
            asked.clip_norm = 0.25;
            check_trained(&asked, 1);
            CHECK(t.num_clipped > 0);
        }
}

static void test_weights_of_fixed_zeros_do_not_move(void) {
    for (size_t s = 0; s < LENGTH(STEPS); s++) {
        spec asked = USUAL;
        asked.kind = &INK;
        asked.row = STEPS[s];
        problem *p = new_problem(asked);
        CHECK(is_narrow(p));
        train(p, &outcomes[0]);
        for (size_t i = 0; i < asked.num_inputs; i++)
            for (size_t k = 0; k < asked.num_classes; k++)
                CHECK((outcomes[0].total[i * asked.num_classes + k] != 0) == is_varying(&asked, i));
        free_problem(p);
    }
}

static void test_weights_of_fixed_ones_move(void) {
    problem *p = new_problem(USUAL);
    train(p, &outcomes[0]);
    for (size_t i = 0; i < USUAL.num_inputs * USUAL.num_classes; i++)
        CHECK(outcomes[0].total[i] != 0);
    free_problem(p);
}

static void test_a_client_of_one_example_is_all_fixed(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t i = 0; i < LENGTH(SIZES); i++) {
            spec asked = USUAL;
            asked.kind = KINDS[k];
            asked.num_inputs = SIZES[i];
            asked.num_examples = 1;
            asked.plan.epochs = 5;
            check_trained(&asked, SIZES[i] > 16);
        }
}

static void test_two_examples_differ_where_the_second_does(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        spec asked = USUAL;
        asked.kind = KINDS[k];
        asked.num_examples = 2;
        check_trained(&asked, 1);
    }
}

static void test_identical_examples_are_all_fixed(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        spec asked = USUAL;
        asked.kind = KINDS[k];
        asked.num_kept = 0;               /* no pixel varies: 96 inputs have no tail */
        if (asked.kind == &INK) continue; /* all pixels are 0, so only biases change */
        check_trained(&asked, 1);
    }
}

static void test_blank_images_move_biases_only(void) {
    spec asked = USUAL;
    asked.kind = &INK;
    asked.num_kept = 0;
    problem *p = new_problem(asked);
    CHECK(is_narrow(p));
    train(p, &outcomes[0]);
    const size_t bias = asked.num_inputs * asked.num_classes;
    for (size_t i = 0; i < p->model.num_params; i++)
        CHECK((outcomes[0].total[i] != 0) == (i >= bias));
    free_problem(p);
}

static void test_a_client_without_fixed_pixels_is_not_narrow(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        spec asked = USUAL;
        asked.kind = KINDS[k];
        asked.num_kept = asked.num_inputs / FED_GROUP;
        check_trained(&asked, 0);
    }
}

/* Narrow rows must save an eighth: rows of 128, 64 and 144 floats may become at most 112, 48 and
 * 112 long. */
static void test_narrow_from_an_eighth_of_the_row_on(void) {
    static const struct {
        size_t num_inputs, longest;
    } cases[] = {{128, 112}, {64, 48}, {130, 112}};
    for (size_t i = 0; i < LENGTH(cases); i++)
        for (size_t k = 0; k < LENGTH(KINDS); k++) {
            spec asked = USUAL;
            asked.kind = KINDS[k];
            asked.num_inputs = cases[i].num_inputs;
            const size_t tail_and_one = cases[i].num_inputs % FED_GROUP + 1;
            asked.num_kept = (cases[i].longest - tail_and_one) / FED_GROUP;
            check_trained(&asked, 1);
            asked.num_kept++;
            check_trained(&asked, 0);
        }
}

static void test_two_layers_are_narrow_in_the_first(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            spec asked = USUAL;
            asked.kind = KINDS[k];
            asked.row = STEPS[s];
            asked.num_hidden = NUM_HIDDEN;
            check_trained(&asked, 1);
        }
}

static void test_batches_beyond_one_block_of_lanes(void) {
    static const size_t batch_sizes[] = {1, 31, 32, 33, 64, 65, 100};
    for (size_t i = 0; i < LENGTH(batch_sizes); i++)
        for (size_t num_hidden = 0; num_hidden <= NUM_HIDDEN; num_hidden += NUM_HIDDEN) {
            spec asked = USUAL;
            asked.num_hidden = num_hidden;
            asked.num_examples = 100;
            asked.plan.batch_size = batch_sizes[i];
            check_trained(&asked, 1);
        }
}

/* With several epochs, pixels are decoded once; with one epoch, a batch at a time. */
static void test_epochs_and_pipelines(void) {
    for (int32_t pipeline = FED_REPEAT_SHUFFLE; pipeline <= FED_PER_EPOCH; pipeline++)
        for (size_t epochs = 1; epochs <= 5; epochs += 2)
            for (size_t k = 0; k < LENGTH(KINDS); k++) {
                spec asked = USUAL;
                asked.kind = KINDS[k];
                asked.plan.pipeline = pipeline;
                asked.plan.epochs = epochs;
                check_trained(&asked, 1);
            }
}

static void test_any_number_of_classes(void) {
    static const size_t counts[] = {2, 10, MAX_CLASSES};
    for (size_t i = 0; i < LENGTH(counts); i++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            spec asked = USUAL;
            asked.num_classes = counts[i];
            asked.row = STEPS[s];
            check_trained(&asked, 1);
        }
}

/* Decoded images of the full width are too large to keep; those of the narrow width are not. Memory
 * is reserved for the full width, so the full width must decide whether they are kept. The stored
 * pixels are halves of the values and decoded at scale 2, which is exact. */
static void test_a_large_client_in_place_stays_within_its_memory(void) {
    for (size_t i = 0; i < 2; i++) {
        spec asked = USUAL;
        asked.num_inputs = 32;
        asked.num_classes = 2;
        asked.num_kept = 1;
        asked.num_examples = 70000;
        asked.kind = &FLOATS;
        problem *p = new_problem(asked);
        CHECK(is_narrow(p));
        if (i == 1) {
            p->client.scale = 2;
            for (size_t v = 0; v < asked.num_examples * asked.num_inputs; v++) floats_of(p)[v] /= 2;
        }
        train(p, &outcomes[i]);
        free_problem(p);
    }
    CHECK_BYTES(&outcomes[1], &outcomes[0], sizeof(outcomes[0]));
}

/* ---- Parameters, there and back -------------------------------------------------------------- */

static void check_there_and_back(const spec *asked) {
    problem *p = new_problem(*asked);
    fed_net net;
    fed_narrow narrow;
    CHECK_EQUAL(fed_net_init(&net, &p->model), FED_OK);
    const size_t num_bytes = net.size * sizeof(float);
    void *memory = test_alloc(fed_narrow_num_bytes(&net));
    float *server = test_alloc(num_bytes), *back = test_alloc(num_bytes);
    fed_net_pack(&net, p->server, server);
    CHECK(fed_narrow_init(&narrow, &net, &p->client, memory));
    float *packed = test_alloc(narrow.net.size * sizeof(*packed));
    fed_narrow_params(&narrow, &net, server, packed);
    fed_narrow_widen(&narrow, &net, packed, packed, server, back);
    CHECK_BYTES(back, server, num_bytes);
    free(packed);
    free(back);
    free(server);
    free(memory);
    fed_net_free(&net);
    free_problem(p);
}

static void test_untrained_parameters_come_back_bit_for_bit(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++)
        for (size_t i = 1; i < LENGTH(SIZES); i++)
            for (size_t num_hidden = 0; num_hidden <= NUM_HIDDEN; num_hidden += NUM_HIDDEN) {
                spec asked = USUAL;
                asked.kind = KINDS[k];
                asked.num_inputs = SIZES[i];
                asked.num_kept = SIZES[i] / 16;
                asked.num_hidden = num_hidden;
                check_there_and_back(&asked);
                asked.num_examples = 1;
                check_there_and_back(&asked);
            }
}

static void test_learning_rate_0_moves_nothing(void) {
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        static const fed_step_row still = {FED_STEP_SGD, {0, 0.9f}};
        spec asked = USUAL;
        asked.kind = KINDS[k];
        asked.row = &still;
        problem *p = new_problem(asked);
        train(p, &outcomes[0]);
        for (size_t i = 0; i < p->model.num_params; i++) CHECK(outcomes[0].total[i] == 0);
        free_problem(p);
    }
}

/* ---- Numbers that are not finite, or almost too large ---------------------------------------- */

/* The second of three clients has a bad pixel in all of its images. Only this client is dropped. */
static void check_is_dropped(const fed_step_row *row, float bad, size_t pixel) {
    spec asked = USUAL;
    asked.kind = &FLOATS;
    asked.row = row;
    problem *good = new_problem(asked), *p = new_problem(asked);
    CHECK(!is_varying(&asked, pixel));
    for (size_t e = 0; e < asked.num_examples; e++)
        floats_of(p)[e * asked.num_inputs + pixel] = bad;
    fed_client clients[] = {good->client, p->client, good->client};
    clients[2].shuffle_key.occurrence = 1;
    train_clients(p, clients, 3, &outcomes[0]);
    fed_client_stats *stats = outcomes[0].stats;
    static const fed_client_stats none;
    CHECK_BYTES(&stats[1], &none, sizeof(none));
    clients[1] = clients[2];
    train_clients(p, clients, 2, &outcomes[1]);
    stats[1] = stats[2];
    stats[2] = none;
    CHECK_BYTES(&outcomes[1], &outcomes[0], sizeof(outcomes[0]));
    free_problem(good);
    free_problem(p);
}

static void test_a_bad_fixed_pixel_drops_its_client_only(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const size_t in_kept_group = 13; /* its neighbour varies */
    CHECK(is_varying(&USUAL, in_kept_group - 1));
    for (size_t i = 0; i < LENGTH(bad); i++)
        for (size_t s = 0; s < LENGTH(STEPS); s++) {
            check_is_dropped(STEPS[s], bad[i], 0);
            check_is_dropped(STEPS[s], bad[i], in_kept_group);
        }
}

/* The fixed pixels fit into floats, but their norm does not. One small step from zero is still
 * finite. */
static void test_fixed_pixels_may_be_huge(void) {
    static const fed_step_row small = {FED_STEP_SGD, {1e-32f}};
    spec asked = USUAL;
    asked.kind = &FLOATS;
    asked.row = &small;
    asked.plan.epochs = 1;
    asked.plan.batch_size = asked.num_examples;
    problem *p = new_problem(asked);
    memset(p->server, 0, sizeof(p->server));
    for (size_t e = 0; e < asked.num_examples; e++)
        for (size_t i = 0; i < asked.num_inputs; i++)
            if (!is_varying(&asked, i)) floats_of(p)[e * asked.num_inputs + i] = 1e38f;
    check_against_reference(p);
    free_problem(p);
}

static const test_case TESTS[] = {
    TEST(test_bytes_on_background_1_train_as_the_full_net),
    TEST(test_bytes_on_background_0_train_as_the_full_net),
    TEST(test_bytes_of_many_fixed_values_train_as_the_full_net),
    TEST(test_floats_in_place_train_as_the_full_net),
    TEST(test_floats_with_scale_and_offset_train_as_the_full_net),
    TEST(test_clipped_gradients_train_as_the_full_net),
    TEST(test_weights_of_fixed_zeros_do_not_move),
    TEST(test_weights_of_fixed_ones_move),
    TEST(test_a_client_of_one_example_is_all_fixed),
    TEST(test_two_examples_differ_where_the_second_does),
    TEST(test_identical_examples_are_all_fixed),
    TEST(test_blank_images_move_biases_only),
    TEST(test_a_client_without_fixed_pixels_is_not_narrow),
    TEST(test_narrow_from_an_eighth_of_the_row_on),
    TEST(test_two_layers_are_narrow_in_the_first),
    TEST(test_batches_beyond_one_block_of_lanes),
    TEST(test_epochs_and_pipelines),
    TEST(test_any_number_of_classes),
    TEST(test_a_large_client_in_place_stays_within_its_memory),
    TEST(test_untrained_parameters_come_back_bit_for_bit),
    TEST(test_learning_rate_0_moves_nothing),
    TEST(test_a_bad_fixed_pixel_drops_its_client_only),
    TEST(test_fixed_pixels_may_be_huge),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
