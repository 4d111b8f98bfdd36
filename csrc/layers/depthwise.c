/* SPDX-License-Identifier: Apache-2.0
 * A depthwise convolution: each channel has its own window (Keras's DepthwiseConv2D with one output
 * per channel). Packed: kernel [window height, window width, padded channels], bias [padded
 * channels].
 *
 * Some rows of outputs pass at a time, so that what they need stays in the cache: rows of a norm's
 * outputs, if the stage applies one, and rows of the outputs' gradient inside a border of zeros
 * (phases.h). Both are in scratch memory. */
#include "conv.h"
#include "norm.h"
#include "phases.h"

static size_t num_taps(const fed_layer *layer) {
    return layer->window_height * layer->window_width;
}

static size_t num_channels(const fed_stage *stage) { return fed_padded(stage->layer->in.channels); }

static size_t kernel_size(const fed_stage *stage) {
    return num_taps(stage->layer) * num_channels(stage);
}

static fed_axis rows_axis(const fed_layer *l) {
    return fed_axis_of(l->in.height, l->out.height, l->window_height, l->stride_y, l->pad_top);
}

static fed_axis columns_axis(const fed_layer *l) {
    return fed_axis_of(l->in.width, l->out.width, l->window_width, l->stride_x, l->pad_left);
}

/* ---- Rows inside a border of zeros ----------------------------------------------------------- */

/* The rows of an image inside a border of zeros. Row 0 is `above` rows above the image. */
typedef struct framed {
    size_t above, left;       /* rows and columns of zeros before the image */
    size_t row_stride;        /* floats */
    const fed_buffer *buffer; /* of the image */
    fed_shape shape;
} framed;

/* The inputs inside the border that windows cover. */
static framed framed_inputs(const fed_stage *stage) {
    const fed_layer *l = stage->layer;
    const size_t covered = (l->out.width - 1) * l->stride_x + l->window_width;
    return (framed){.above = l->pad_top,
                    .left = l->pad_left,
                    .row_stride =
                        fed_larger(covered, l->pad_left + l->in.width) * num_channels(stage),
                    .buffer = &stage->in,
                    .shape = l->in};
}

/* The outputs' gradient inside the border that phases cover. */
static framed framed_gradient(const fed_stage *stage) {
    const fed_axis y = rows_axis(stage->layer), x = columns_axis(stage->layer);
    return (framed){.above = y.before,
                    .left = x.before,
                    .row_stride = x.total * num_channels(stage),
                    .buffer = &stage->out,
                    .shape = stage->shape};
}

/* Writes num rows from row `first` on; map: a norm that is applied to the image, or NULL. */
static void write_rows(const fed_pass *pass, const framed *of, const float *image,
                       const fed_norm_map *map, size_t first, size_t num, float *to /* out */) {
    const size_t channels = num_channels(pass->stage), before = of->left * channels;
    const size_t size = of->shape.width * channels, end = before + size;
    for (size_t row = first; row < first + num; row++, to += of->row_stride) {
        if (row < of->above || row - of->above >= of->shape.height) {
            memset(to, 0, of->row_stride * sizeof *to);
            continue;
        }
        const float *from = image + fed_pixel(of->buffer, row - of->above, 0);
        memset(to, 0, before * sizeof *to);
        if (map != NULL)
            pass->kernels->norm_apply(map, from, of->shape.width, channels, to + before);
        else
            memcpy(to + before, from, size * sizeof *to);
        memset(to + end, 0, (of->row_stride - end) * sizeof *to);
    }
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

/* Floats of the rows that pass at a time. They stay in an L2 cache of 512 KiB, with what is read
 * and written meanwhile. */
enum { BLOCK_FLOATS = 40 * 1024 };

/* The rows of a framed gradient that a phase needs beyond the number of its rows. */
static size_t gradient_overlap(const fed_axis *y) {
    size_t most = 0;
    for (size_t phase = 0; phase < y->stride; phase++) {
        const fed_stride_phase rows = fed_phase_of(y, phase);
        most = fed_larger(most, rows.window + rows.num_taps);
    }
    return most > 0 ? most - 1 : 0;
}

/* Rows of the framed inputs for `num` rows of outputs. */
static size_t num_input_rows(const fed_layer *layer, size_t num) {
    return (num - 1) * layer->stride_y + layer->window_height;
}

/* Rows of outputs that pass at a time; also rows of a phase. */
static size_t block_rows(const fed_stage *stage) {
    const fed_layer *layer = stage->layer;
    const size_t row = layer->stride_y * framed_inputs(stage).row_stride;
    const size_t fitting = BLOCK_FLOATS / row, overlap = layer->window_height / layer->stride_y;
    const size_t most = fitting > overlap + 1 ? fitting - overlap : 1;
    return fed_pieces(layer->out.height, fed_pieces(layer->out.height, most));
}

/* The parts of scratch. */
typedef struct workspace {
    float *turned;   /* [kernel_size]: the weights of all phases */
    float *inputs;   /* rows of framed inputs, if a norm is applied */
    float *gradient; /* rows of the framed gradient */
} workspace;

static workspace carve(const fed_stage *stage, fed_carver *c) {
    const fed_axis y = rows_axis(stage->layer);
    const size_t num = block_rows(stage), num_inputs = num_input_rows(stage->layer, num);
    const size_t num_gradients = num + gradient_overlap(&y);
    return (workspace){
        .turned = fed_carve(c, kernel_size(stage), sizeof(float)),
        .inputs =
            fed_carve(c, stage->norm != NULL ? num_inputs * framed_inputs(stage).row_stride : 0,
                      sizeof(float)),
        .gradient = fed_carve(c, num_gradients * framed_gradient(stage).row_stride, sizeof(float)),
    };
}

static workspace workspace_of(const fed_pass *pass) {
    fed_carver carver = {.base = pass->scratch};
    return carve(pass->stage, &carver);
}

static void widen_border(const fed_stage *stage, fed_border *border) {
    fed_conv_widen_border(stage->layer, border);
}

static void lay_out(fed_stage *stage) {
    fed_carver measure = {0};
    carve(stage, &measure);
    stage->packed_size = kernel_size(stage) + num_channels(stage);
    stage->scratch_bytes = measure.used;
}

/* ---- Parameters ------------------------------------------------------------------------------ */

/* Packs rows of channels: one for each tap, then the bias. */
static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t channels = layer->in.channels;
    const size_t num_rows = num_taps(layer) + (layer->has_bias ? 1 : 0);
    memset(packed, 0, stage->packed_size * sizeof *packed);
    for (size_t row = 0; row < num_rows; row++)
        memcpy(packed + row * num_channels(stage), flat + layer->offset + row * channels,
               channels * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t channels = layer->in.channels;
    const size_t num_rows = num_taps(layer) + (layer->has_bias ? 1 : 0);
    for (size_t row = 0; row < num_rows; row++)
        memcpy(flat + layer->offset + row * channels, packed + row * num_channels(stage),
               channels * sizeof *flat);
}

/* ---- Outputs --------------------------------------------------------------------------------- */

/* What the windows of some rows of outputs read. */
typedef struct windows {
    const float *first;
    size_t row_stride;
} windows;

/* The windows of the rows from `first` on. If the stage applies a norm, they are in scratch. */
static windows windows_of(const fed_pass *pass, size_t first, size_t num) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const fed_buffer *in = &stage->in;
    const size_t row = first * layer->stride_y;
    if (stage->norm == NULL)
        return (windows){pass->in + in->origin + row * in->row_stride -
                             layer->pad_top * in->row_stride - layer->pad_left * in->pixel_stride,
                         in->row_stride};
    const fed_norm_map map = fed_norm_saved_map(stage->norm, pass->norm);
    const framed inputs = framed_inputs(stage);
    float *rows = workspace_of(pass).inputs;
    write_rows(pass, &inputs, pass->in, &map, row, num_input_rows(layer, num), rows);
    return (windows){rows, inputs.row_stride};
}

/* The kernel's arguments for `num` rows of outputs. */
static fed_depthwise outputs_of(const fed_pass *pass, const windows *from, size_t num) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    return (fed_depthwise){
        .window_rows = layer->window_height,
        .window_columns = layer->window_width,
        .tap_row = from->row_stride,
        .tap_column = stage->in.pixel_stride,
        .num_channels = num_channels(stage),
        .weights = pass->params,
        .bias = pass->params + kernel_size(stage),
        .least = layer->activation == FED_RELU ? 0.0f : -HUGE_VALF,
        .num_rows = num,
        .num_pixels = layer->out.width,
        .in_row = layer->stride_y * from->row_stride,
        .in_step = layer->stride_x * stage->in.pixel_stride,
        .out_row = stage->out.row_stride,
        .out_step = stage->out.pixel_stride,
    };
}

/* The rows of inputs that the next `num` rows of outputs read first, after those from `first` on. A
 * norm reads them all at once, so they are fetched meanwhile. Without one, tiles fetch their rows.
 */
static fed_lines next_inputs(const fed_pass *pass, size_t first, size_t num) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const size_t read = (first + num - 1) * layer->stride_y + layer->window_height;
    const size_t inside = read > layer->pad_top ? read - layer->pad_top : 0;
    const size_t start = fed_smaller(inside, layer->in.height);
    const size_t end = fed_smaller(start + num * layer->stride_y, layer->in.height);
    if (stage->norm == NULL) return (fed_lines){pass->in, pass->in};
    return (fed_lines){pass->in + fed_pixel(&stage->in, start, 0),
                       pass->in + fed_pixel(&stage->in, end, 0)};
}

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const size_t num_rows = stage->shape.height, most = block_rows(stage);
    for (size_t first = 0; first < num_rows; first += most) {
        const size_t num = fed_smaller(most, num_rows - first);
        const windows from = windows_of(pass, first, num);
        const fed_depthwise outputs = outputs_of(pass, &from, num);
        fed_lines ahead = next_inputs(pass, first, num);
        pass->kernels->depthwise_outputs(&outputs, from.first,
                                         pass->out + fed_pixel(&stage->out, first, 0), &ahead);
    }
    if (stage->layer->activation != FED_RELU) fed_activate_out(pass);
}

/* ---- Backward -------------------------------------------------------------------------------- */

static void add_param_gradient(const fed_pass *pass, size_t first, size_t num, fed_lines *ahead) {
    const fed_stage *stage = pass->stage;
    const windows from = windows_of(pass, first, num);
    const fed_depthwise outputs = outputs_of(pass, &from, num);
    pass->kernels->depthwise_gradient(
        &outputs, from.first, pass->out_gradient + fed_pixel(&stage->out, first, 0), pass->gradient,
        stage->layer->has_bias ? pass->gradient + kernel_size(stage) : NULL, ahead);
}

/* Copies the weights of a phase's taps in reversed order. */
static void turn(const fed_pass *pass, const fed_stride_phase *y, const fed_stride_phase *x,
                 float *to /* out */) {
    const fed_layer *layer = pass->stage->layer;
    const size_t channels = num_channels(pass->stage);
    for (size_t i = y->num_taps * x->num_taps; i-- > 0; to += channels) {
        const size_t tap_y = y->tap + i / x->num_taps * layer->stride_y;
        const size_t tap_x = x->tap + i % x->num_taps * layer->stride_x;
        memcpy(to, pass->params + (tap_y * layer->window_width + tap_x) * channels,
               channels * sizeof *to);
    }
}

/* Rows of one phase. */
typedef struct phase_rows {
    fed_stride_phase y, x;
    size_t first, num;   /* of the phase's rows */
    const float *turned; /* the phase's weights */
} phase_rows;

/* Writes the gradient by the inputs of some rows of a phase; `rows`: of the framed gradient, from
 * row of->first on. */
static void run_phase(const fed_pass *pass, const phase_rows *of, const float *rows,
                      fed_lines *ahead) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const size_t row_stride = framed_gradient(stage).row_stride;
    const size_t pixel_stride = stage->out.pixel_stride;
    const fed_depthwise inputs = {
        .window_rows = of->y.num_taps,
        .window_columns = of->x.num_taps,
        .tap_row = row_stride,
        .tap_column = pixel_stride,
        .num_channels = num_channels(stage),
        .weights = of->turned,
        .least = -HUGE_VALF,
        .num_rows = of->num,
        .num_pixels = of->x.num,
        .in_row = row_stride,
        .in_step = pixel_stride,
        .out_row = layer->stride_y * stage->in.row_stride,
        .out_step = layer->stride_x * stage->in.pixel_stride,
    };
    const size_t row = of->y.first + of->first * layer->stride_y;
    pass->kernels->depthwise_outputs(
        &inputs, rows + of->y.window * row_stride + of->x.window * pixel_stride,
        pass->in_gradient + fed_pixel(&stage->in, row, of->x.first), ahead);
}

/* Writes the gradient by the inputs of up to `most` rows of each phase. */
static void write_in_gradient(const fed_pass *pass, size_t first, size_t most, fed_lines *ahead) {
    const fed_stage *stage = pass->stage;
    const fed_axis y = rows_axis(stage->layer), x = columns_axis(stage->layer);
    const framed gradient = framed_gradient(stage);
    const workspace w = workspace_of(pass);
    phase_rows of = {.first = first, .turned = w.turned};
    write_rows(pass, &gradient, pass->out_gradient, NULL, first, most + gradient_overlap(&y),
               w.gradient);
    for (size_t phase_y = 0; phase_y < y.stride; phase_y++)
        for (size_t phase_x = 0; phase_x < x.stride; phase_x++) {
            of.y = fed_phase_of(&y, phase_y);
            of.x = fed_phase_of(&x, phase_x);
            of.num = of.y.num > first ? fed_smaller(most, of.y.num - first) : 0;
            if (of.num > 0 && of.x.num > 0) run_phase(pass, &of, w.gradient, ahead);
            of.turned += of.y.num_taps * of.x.num_taps * num_channels(stage);
        }
}

/* Turns the weights of all phases. */
static void turn_all(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_axis y = rows_axis(stage->layer), x = columns_axis(stage->layer);
    float *to = workspace_of(pass).turned;
    for (size_t phase_y = 0; phase_y < y.stride; phase_y++)
        for (size_t phase_x = 0; phase_x < x.stride; phase_x++) {
            const fed_stride_phase rows = fed_phase_of(&y, phase_y);
            const fed_stride_phase columns = fed_phase_of(&x, phase_x);
            turn(pass, &rows, &columns, to);
            to += rows.num_taps * columns.num_taps * num_channels(stage);
        }
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    const size_t num_rows = stage->shape.height, most = block_rows(stage);
    const size_t of_phase = fed_pieces(layer->in.height, layer->stride_y);
    const size_t end = pass->in_gradient == NULL ? num_rows : fed_larger(num_rows, of_phase);
    fed_undo_out(pass);
    if (pass->in_gradient != NULL) turn_all(pass);
    for (size_t first = 0; first < end; first += most) {
        fed_lines ahead = next_inputs(pass, first, most);
        if (first < num_rows)
            add_param_gradient(pass, first, fed_smaller(most, num_rows - first), &ahead);
        if (pass->in_gradient != NULL) write_in_gradient(pass, first, most, &ahead);
    }
}

static int applies_norms(const fed_layer *layer) { return (void)layer, 1; }

const fed_stage_ops fed_depthwise_conv = {
    .widen_border = widen_border,
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .forward = forward,
    .backward = backward,
    .applies_norms = applies_norms,
};
