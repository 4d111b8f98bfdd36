/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of both implementations of dense layers: against a reference in double that reads the flat
 * parameters, for sizes around those of vectors, tiles and groups of rows. Arrays have exactly the
 * promised size and start one float off their alignment, so that a sanitizer finds any access
 * outside them.
 *
 * Bounds are those of test_kernels.c: a sum of n rounded products has an error of at most (n + 1) *
 * UNIT_ROUNDOFF * (sum of the products' magnitudes). relu makes no error larger.
 */
#include "fixtures.h"

extern const fed_stage_ops fed_dense_ends, fed_dense_hidden;

enum { OFFSET = 3, BORDER = 16 };

/* ---- A stage and its values ------------------------------------------------------------------ */

typedef struct dense {
    fed_layer layer;
    fed_stage stage;
    size_t num_inputs, num_outputs, num_rows, num_flat;
    float *flat;         /* [OFFSET + num_flat] */
    float *params;       /* [start + packed_size], like all packed arrays */
    float *images;       /* [num_rows, num_inputs]: the values of the rows, without padding */
    float *inputs;       /* [num_rows, stage.in.num_values] */
    const float **rows;  /* in memory their order is reversed */
    float *outputs;      /* [num_rows, stage.out.num_values] */
    float *out_gradient; /* the same */
    float *in_gradient;  /* [num_rows, stage.in.num_values] */
    float *lanes;        /* [blocks, O, FED_LANES] */
} dense;

static float *floats_new(size_t num_values) {
    float *base = test_alloc((num_values + 1) * sizeof(*base));
    return base + 1;
}

static void floats_free(const float *values) { free((void *)(uintptr_t)(values - 1)); }

static float *zeros_new(size_t num_values) {
    float *values = floats_new(num_values);
    for (size_t i = 0; i < num_values; i++) values[i] = 0;
    return values;
}

static float *random_new(size_t num_values, uint64_t seed) {
    float *values = floats_new(num_values);
    fill_floats(seed, 1, values, num_values);
    return values;
}

/* The layer of a case and its place in the net. The last stage, and the first one if it reads raw
 * rows, are computed by dense_ends.c. */
typedef struct setting {
    const fed_stage_ops *ops;
    fed_shape in;
    size_t num_outputs, num_rows;
    int activation, has_bias, is_first, is_last;
} setting;

static size_t num_lane_values(const dense *d) {
    return (d->num_rows + FED_LANES - 1) / FED_LANES * FED_LANES * d->num_outputs;
}

static size_t packed_total(const dense *d) { return d->stage.start + d->stage.packed_size; }

/* Where input i of the flat kernel is in a row. */
static size_t input_at(const dense *d, size_t i) {
    const fed_shape *in = &d->layer.in;
    const size_t pixel = i / in->channels;
    return pixel / in->width * d->stage.in.row_stride +
           pixel % in->width * d->stage.in.pixel_stride + i % in->channels;
}

/* The next stage's inputs have a border; another layer's parameters come before this layer's. */
static void lay_out_dense(dense *d, const setting *s) {
    d->layer = (fed_layer){.kind = KIND_DENSE,
                           .activation = s->activation,
                           .in = s->in,
                           .out = {1, 1, s->num_outputs},
                           .offset = OFFSET,
                           .has_bias = s->has_bias};
    d->stage = (fed_stage){.ops = s->ops,
                           .layer = &d->layer,
                           .is_first = s->is_first,
                           .is_last = s->is_last,
                           .shape = d->layer.out,
                           .start = FED_PAD};
    d->stage.in = own_input(&d->stage);
    s->ops->lay_out(&d->stage);
    const size_t width = fed_padded(s->num_outputs);
    d->stage.out = (fed_buffer){.origin = BORDER,
                                .pixel_stride = width,
                                .row_stride = width,
                                .num_values = BORDER + width + FED_PAD};
}

static void dense_new(dense *d, const setting *s) {
    lay_out_dense(d, s);
    d->num_inputs = fed_shape_size(&s->in);
    d->num_outputs = s->num_outputs;
    d->num_rows = s->num_rows;
    d->num_flat = (d->num_inputs + (s->has_bias ? 1 : 0)) * d->num_outputs;
    d->flat = random_new(OFFSET + d->num_flat, 1);
    d->params = zeros_new(packed_total(d));
    s->ops->pack(&d->stage, d->flat, d->params + d->stage.start);
    const size_t in_size = d->stage.in.num_values, out_size = d->stage.out.num_values;
    d->images = random_new(d->num_rows * d->num_inputs, 2);
    d->inputs = zeros_new(d->num_rows * in_size);
    d->rows = test_alloc(d->num_rows * sizeof(*d->rows));
    for (size_t b = 0; b < d->num_rows; b++) {
        float *row = d->inputs + (d->num_rows - 1 - b) * in_size;
        for (size_t i = 0; i < d->num_inputs; i++)
            row[input_at(d, i)] = d->images[b * d->num_inputs + i];
        d->rows[b] = row;
    }
    d->outputs = zeros_new(d->num_rows * out_size);
    d->out_gradient = random_new(d->num_rows * out_size, 3);
    d->in_gradient = random_new(d->num_rows * in_size, 4);
    d->lanes = random_new(num_lane_values(d), 5);
}

static void dense_free(dense *d) {
    floats_free(d->flat);
    floats_free(d->params);
    floats_free(d->images);
    floats_free(d->inputs);
    free(d->rows);
    floats_free(d->outputs);
    floats_free(d->out_gradient);
    floats_free(d->in_gradient);
    floats_free(d->lanes);
}

static fed_batch_pass pass_of(dense *d) {
    return (fed_batch_pass){.kernels = fed_active_kernels(),
                            .stage = &d->stage,
                            .params = d->params + d->stage.start,
                            .num_rows = d->num_rows,
                            .rows = d->rows,
                            .lanes = d->lanes,
                            .outputs = d->outputs,
                            .out_gradient = d->out_gradient,
                            .in_gradient = d->stage.is_first ? NULL : d->in_gradient};
}

static void run_forward(dense *d) {
    const fed_batch_pass pass = pass_of(d);
    d->stage.ops->forward_batch(&pass);
}

/* The gradient is given in rows, or in lanes for the last stage. */
static void run_backward(dense *d, const fed_update *update) {
    const fed_batch_pass pass = pass_of(d);
    d->stage.ops->backward_batch(&pass, update);
}

static size_t lane_at(const dense *d, size_t b, size_t o) {
    return b / FED_LANES * FED_LANES * d->num_outputs + o * FED_LANES + b % FED_LANES;
}

static float output(const dense *d, size_t b, size_t o) {
    return d->stage.is_last ? d->lanes[lane_at(d, b, o)]
                            : d->outputs[b * d->stage.out.num_values + BORDER + o];
}

static float weight(const dense *d, size_t i, size_t o) {
    return d->flat[OFFSET + i * d->num_outputs + o];
}

/* ---- The cases ------------------------------------------------------------------------------- */

/* Checks a layer in each possible place: between other layers, first, and last. */
static void for_each_place(void (*check)(dense *), const setting *base) {
    const setting settings[] = {
        {&fed_dense_hidden, base->in, base->num_outputs, base->num_rows, FED_RELU, 1, 0, 0},
        {&fed_dense_hidden, base->in, base->num_outputs, base->num_rows, FED_LINEAR, 0, 0, 0},
        {&fed_dense_ends, base->in, base->num_outputs, base->num_rows, FED_RELU, 1, 1, 0},
        {&fed_dense_ends, base->in, base->num_outputs, base->num_rows, FED_LINEAR, 0, 1, 1},
        {&fed_dense_ends, base->in, base->num_outputs, base->num_rows, FED_LINEAR, 1, 0, 1}};
    for (size_t s = 0; s < LENGTH(settings); s++) {
        dense d;
        dense_new(&d, &settings[s]);
        check(&d);
        dense_free(&d);
    }
}

static void for_each_dense(void (*check)(dense *)) {
    static const size_t sizes[] = {1, 15, 16, 17, 31, 32, 33};
    static const size_t batches[] = {1, 2, 5, 9, 10, 11, 32, 33, 65};
    for (size_t i = 0; i < LENGTH(sizes); i++)
        for (size_t o = 0; o < LENGTH(sizes); o++)
            for (size_t b = 0; b < LENGTH(batches); b++)
                for_each_place(check, &(setting){.in = {1, 1, sizes[i]},
                                                 .num_outputs = sizes[o],
                                                 .num_rows = batches[b]});
    static const setting others[] = {
        {.in = {3, 2, 5}, .num_outputs = 7, .num_rows = 3},     /* images with padded channels */
        {.in = {2, 2, 16}, .num_outputs = 40, .num_rows = 20},  /* images without padding */
        {.in = {1, 1, 40}, .num_outputs = 530, .num_rows = 11}, /* more outputs than are computed at
                                                                   a time */
        {.in = {1, 1, 530}, .num_outputs = 24, .num_rows = 19}};
    for (size_t s = 0; s < LENGTH(others); s++) for_each_place(check, &others[s]);
}

/* ---- Packing --------------------------------------------------------------------------------- */

/* The flat values before the layer's own must not change. */
static void check_packing(dense *d) {
    const size_t num_flat = OFFSET + d->num_flat;
    double *packed = test_alloc(d->stage.packed_size * sizeof(*packed));
    double *flat = test_alloc(num_flat * sizeof(*flat));
    for (size_t p = 0; p < d->stage.packed_size; p++)
        packed[p] = (double)d->params[d->stage.start + p];
    for (size_t p = 0; p < num_flat; p++) flat[p] = (double)d->flat[p] + (p < OFFSET ? 0 : 9);
    d->stage.ops->unpack(&d->stage, packed, flat);
    for (size_t p = 0; p < num_flat; p++) CHECK(flat[p] == (double)d->flat[p]);
    size_t num_used = 0;
    for (size_t p = 0; p < d->stage.packed_size; p++) num_used += packed[p] != 0;
    CHECK_EQUAL(num_used, d->num_flat);
    float *before = random_new(d->stage.packed_size, 11), *delta = floats_new(num_flat);
    const float *after = d->params + d->stage.start;
    for (size_t p = 0; p < d->stage.packed_size; p++) packed[p] = (double)(after[p] - before[p]);
    d->stage.ops->unpack(&d->stage, packed, flat);
    d->stage.ops->unpack_delta(&d->stage, after, before, delta);
    for (size_t p = OFFSET; p < num_flat; p++) CHECK((double)delta[p] == flat[p]);
    floats_free(before);
    floats_free(delta);
    free(packed);
    free(flat);
}

static void test_unpacked_is_what_was_packed_and_padding_is_0(void) {
    for_each_dense(check_packing);
}

/* ---- Forward --------------------------------------------------------------------------------- */

static void check_forward(dense *d) {
    run_forward(d);
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t o = 0; o < d->num_outputs; o++) {
            double sum = d->layer.has_bias ? weight(d, d->num_inputs, o) : 0;
            double magnitude = fabs(sum);
            for (size_t i = 0; i < d->num_inputs; i++) {
                const double term = (double)weight(d, i, o) * d->images[b * d->num_inputs + i];
                sum += term;
                magnitude += fabs(term);
            }
            if (d->layer.activation == FED_RELU && sum < 0) sum = 0;
            CHECK_CLOSE(output(d, b, o), sum,
                        (double)(d->num_inputs + 2) * UNIT_ROUNDOFF * magnitude);
        }
}

static void test_forward_equals_reference(void) { for_each_dense(check_forward); }

/* Padding is 0 even if the activation of 0 is not, and the border is not written to. */
static void test_padding_and_border_of_outputs_are_0(void) {
    for (int activation = 0; activation < FED_NUM_ACTIVATIONS; activation++)
        for (int is_first = 0; is_first <= 1; is_first++) {
            dense d;
            dense_new(&d, &(setting){.ops = is_first ? &fed_dense_ends : &fed_dense_hidden,
                                     .in = {1, 1, 20},
                                     .num_outputs = 37,
                                     .num_rows = 6,
                                     .activation = activation,
                                     .has_bias = 1,
                                     .is_first = is_first});
            run_forward(&d);
            const size_t size = d.stage.out.num_values;
            for (size_t p = 0; p < d.num_rows * size; p++)
                CHECK((p % size >= BORDER && p % size < BORDER + 37) || d.outputs[p] == 0);
            dense_free(&d);
        }
}

/* Rows are computed in groups. A NaN in a row must stay in this row, whatever its group. */
static void check_nan_row(dense *d) {
    const size_t bad = d->num_rows / 2;
    run_forward(d);
    float *clean = test_alloc(d->num_rows * d->num_outputs * sizeof(*clean));
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t o = 0; o < d->num_outputs; o++) clean[b * d->num_outputs + o] = output(d, b, o);
    d->inputs[(d->num_rows - 1 - bad) * d->stage.in.num_values + input_at(d, d->num_inputs - 1)] =
        NAN;
    run_forward(d);
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t o = 0; o < d->num_outputs; o++)
            CHECK(b == bad ? isnan(output(d, b, o))
                           : output(d, b, o) == clean[b * d->num_outputs + o]);
    free(clean);
}

static void test_nan_spoils_its_row_only(void) { for_each_dense(check_nan_row); }

/* ---- Backward -------------------------------------------------------------------------------- */

/* The gradient by the inputs of the activation, [num_rows, O]. Call it before backward. */
static float *inner_gradient(const dense *d) {
    float *gradient = test_alloc(d->num_rows * d->num_outputs * sizeof(*gradient));
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t o = 0; o < d->num_outputs; o++) {
            const size_t at = b * d->stage.out.num_values + BORDER + o;
            const float by_output =
                d->stage.is_last ? d->lanes[lane_at(d, b, o)] : d->out_gradient[at];
            const int passes = d->layer.activation == FED_LINEAR || d->outputs[at] > 0;
            gradient[b * d->num_outputs + o] = passes ? by_output : 0;
        }
    return gradient;
}

/* Runs forward to compute the outputs. For the last stage, the lanes then get a gradient. */
static float *prepare_backward(dense *d) {
    run_forward(d);
    if (d->stage.is_last) fill_floats(6, 1, d->lanes, num_lane_values(d));
    return inner_gradient(d);
}

static void check_in_gradient(const dense *d, const float *gradient) {
    for (size_t b = 0; b < d->num_rows; b++)
        for (size_t i = 0; i < d->num_inputs; i++) {
            double sum = 0, magnitude = 0;
            for (size_t o = 0; o < d->num_outputs; o++) {
                const double term = (double)weight(d, i, o) * gradient[b * d->num_outputs + o];
                sum += term;
                magnitude += fabs(term);
            }
            CHECK_CLOSE(d->in_gradient[b * d->stage.in.num_values + input_at(d, i)], sum,
                        (double)(d->num_outputs + 1) * UNIT_ROUNDOFF * magnitude);
        }
}

/* Checks that `after` (packed) is `before` plus the gradient, and 0 in its padding. */
static void check_moved(const dense *d, const float *before, const float *after,
                        const float *gradient) {
    double *flat = test_alloc((OFFSET + d->num_flat) * sizeof(*flat));
    double *packed = test_alloc(d->stage.packed_size * sizeof(*packed));
    size_t num_used = 0;
    for (size_t p = 0; p < d->stage.packed_size; p++) {
        packed[p] = (double)after[d->stage.start + p];
        num_used += packed[p] != 0;
    }
    CHECK(num_used <= d->num_flat);
    d->stage.ops->unpack(&d->stage, packed, flat);
    for (size_t p = 0; p < d->num_flat; p++) {
        const size_t i = p / d->num_outputs, o = p % d->num_outputs;
        double sum = before == NULL ? 0 : before[OFFSET + p], magnitude = fabs(sum);
        for (size_t b = 0; b < d->num_rows; b++) {
            const double input = i == d->num_inputs ? 1 : d->images[b * d->num_inputs + i];
            const double term = input * gradient[b * d->num_outputs + o];
            sum += term;
            magnitude += fabs(term);
        }
        CHECK_CLOSE(flat[OFFSET + p], sum, (double)(d->num_rows + 2) * UNIT_ROUNDOFF * magnitude);
    }
    free(flat);
    free(packed);
}

static void check_sum(dense *d) {
    float *gradient = prepare_backward(d), *sum = zeros_new(packed_total(d));
    run_backward(d, &(fed_update){.sum = sum});
    if (!d->stage.is_first) check_in_gradient(d, gradient);
    check_moved(d, NULL, sum, gradient);
    for (size_t p = 0; p < d->stage.start; p++) CHECK(sum[p] == 0);
    free(gradient);
    floats_free(sum);
}

static void test_sum_of_gradients_equals_reference(void) { for_each_dense(check_sum); }

/* The gradient by the inputs must be computed from the weights before the update. */
static void check_in_place(dense *d) {
    float *gradient = prepare_backward(d);
    run_backward(d, &(fed_update){.sum = d->params});
    if (!d->stage.is_first) check_in_gradient(d, gradient);
    check_moved(d, d->flat, d->params, gradient);
    free(gradient);
}

static void test_parameters_may_be_the_sum(void) { for_each_dense(check_in_place); }

/* After a step from slots of 0, the slots of momentum are the gradient itself. */
static void check_pieces(dense *d) {
    const size_t num_params = packed_total(d);
    float *gradient = prepare_backward(d);
    float *sum = zeros_new(num_params), *slots = zeros_new(num_params);
    float *params = random_new(num_params, 7), *server = zeros_new(num_params);
    float *piece = random_new(d->stage.piece_size, 8);
    float *moved = d->params; /* updated by the step in pieces, while the weights are read from a
                                 copy */
    const size_t out_size = d->num_rows * d->stage.out.num_values;
    float *out_gradient = floats_new(out_size);
    memcpy(out_gradient, d->out_gradient, out_size * sizeof(*out_gradient));
    memcpy(params, d->params, num_params * sizeof(*params));
    run_backward(d, &(fed_update){.sum = sum});
    memcpy(d->out_gradient, out_gradient, out_size * sizeof(*out_gradient));

    const fed_step step = {&(fed_step_row){FED_STEP_SGD, {1, 0.5, 0}}, 1};
    const fed_local_step at = {.kernels = fed_active_kernels(),
                               .step_num = 1,
                               .num_params = num_params,
                               .params = moved,
                               .server_params = server,
                               .slots = slots,
                               .rate_factor = 1};
    run_backward(d, &(fed_update){.step = &step, .at = &at, .piece = piece});
    if (!d->stage.is_first) check_in_gradient(d, gradient);
    for (size_t p = 0; p < num_params; p++) {
        CHECK(slots[p] == sum[p]);
        CHECK(moved[p] == params[p] - sum[p]);
    }
    free(gradient);
    floats_free(sum);
    floats_free(slots);
    floats_free(params);
    floats_free(server);
    floats_free(piece);
    floats_free(out_gradient);
}

static void test_pieces_are_the_sum_to_the_bit(void) { for_each_dense(check_pieces); }

static const test_case TESTS[] = {
    TEST(test_unpacked_is_what_was_packed_and_padding_is_0),
    TEST(test_forward_equals_reference),
    TEST(test_padding_and_border_of_outputs_are_0),
    TEST(test_nan_spoils_its_row_only),
    TEST(test_sum_of_gradients_equals_reference),
    TEST(test_parameters_may_be_the_sum),
    TEST(test_pieces_are_the_sum_to_the_bit),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
