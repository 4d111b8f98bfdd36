/* SPDX-License-Identifier: Apache-2.0
 * A depthwise convolution: each channel has its own window (Keras's DepthwiseConv2D with one output
 * per channel). Packed: kernel [window height, window width, padded channels], bias [padded
 * channels]. Scratch, for the gradient by the inputs: the weights of a phase, and the outputs'
 * gradient inside a border of zeros (phases.h). */
#include "conv.h"
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

/* The outputs' gradient with its border. */
static fed_buffer bordered_of(const fed_stage *stage) {
    const fed_axis y = rows_axis(stage->layer), x = columns_axis(stage->layer);
    return fed_phases_buffer(&y, &x, num_channels(stage));
}

static void widen_border(const fed_stage *stage, fed_border *border) {
    fed_conv_widen_border(stage->layer, border);
}

static void lay_out(fed_stage *stage) {
    stage->packed_size = kernel_size(stage) + num_channels(stage);
    stage->scratch_bytes = (kernel_size(stage) + bordered_of(stage).num_values) * sizeof(float);
}

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

/* The parts of scratch. */
static float *turned_of(const fed_pass *pass) { return pass->scratch; }
static float *copy_of(const fed_pass *pass) { return turned_of(pass) + kernel_size(pass->stage); }

/* The kernel's arguments for the outputs. */
static fed_depthwise outputs_of(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    return (fed_depthwise){
        .window_rows = layer->window_height,
        .window_columns = layer->window_width,
        .tap_row = stage->in.row_stride,
        .tap_column = stage->in.pixel_stride,
        .num_channels = num_channels(stage),
        .weights = pass->params,
        .bias = pass->params + kernel_size(stage),
        .least = layer->activation == FED_RELU ? 0.0f : -HUGE_VALF,
        .num_rows = layer->out.height,
        .num_pixels = layer->out.width,
        .in_row = layer->stride_y * stage->in.row_stride,
        .in_step = layer->stride_x * stage->in.pixel_stride,
        .out_row = stage->out.row_stride,
        .out_step = stage->out.pixel_stride,
    };
}

/* The first window. */
static const float *windows_of(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    const fed_buffer *in = &pass->stage->in;
    return pass->in + in->origin - layer->pad_top * in->row_stride -
           layer->pad_left * in->pixel_stride;
}

static void forward(const fed_pass *pass) {
    const fed_depthwise outputs = outputs_of(pass);
    pass->kernels->depthwise_outputs(&outputs, windows_of(pass),
                                     pass->out + pass->stage->out.origin);
    if (pass->stage->layer->activation != FED_RELU) fed_activate_out(pass);
}

static void add_param_gradient(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_depthwise outputs = outputs_of(pass);
    pass->kernels->depthwise_gradient(
        &outputs, windows_of(pass), pass->out_gradient + stage->out.origin, pass->gradient,
        stage->layer->has_bias ? pass->gradient + kernel_size(stage) : NULL);
}

/* Copies the weights of a phase's taps in reversed order. */
static void turn(const fed_pass *pass, const fed_stride_phase *y, const fed_stride_phase *x) {
    const fed_layer *layer = pass->stage->layer;
    const size_t channels = num_channels(pass->stage);
    float *to = turned_of(pass);
    for (size_t i = y->num_taps * x->num_taps; i-- > 0; to += channels) {
        const size_t tap_y = y->tap + i / x->num_taps * layer->stride_y;
        const size_t tap_x = x->tap + i % x->num_taps * layer->stride_x;
        memcpy(to, pass->params + (tap_y * layer->window_width + tap_x) * channels,
               channels * sizeof *to);
    }
}

/* Writes the gradient by the inputs of one phase. */
static void run_phase(const fed_pass *pass, const fed_buffer *bordered, const fed_stride_phase *y,
                      const fed_stride_phase *x) {
    const fed_stage *stage = pass->stage;
    const fed_layer *layer = stage->layer;
    if (y->num == 0 || x->num == 0) return;
    turn(pass, y, x);
    const fed_depthwise inputs = {
        .window_rows = y->num_taps,
        .window_columns = x->num_taps,
        .tap_row = bordered->row_stride,
        .tap_column = bordered->pixel_stride,
        .num_channels = num_channels(stage),
        .weights = turned_of(pass),
        .least = -HUGE_VALF,
        .num_rows = y->num,
        .num_pixels = x->num,
        .in_row = bordered->row_stride,
        .in_step = bordered->pixel_stride,
        .out_row = layer->stride_y * stage->in.row_stride,
        .out_step = layer->stride_x * stage->in.pixel_stride,
    };
    pass->kernels->depthwise_outputs(&inputs,
                                     copy_of(pass) + y->window * bordered->row_stride +
                                         x->window * bordered->pixel_stride,
                                     pass->in_gradient + fed_pixel(&stage->in, y->first, x->first));
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const fed_axis y = rows_axis(stage->layer), x = columns_axis(stage->layer);
    const fed_buffer bordered = bordered_of(stage);
    fed_undo_out(pass);
    add_param_gradient(pass);
    if (pass->in_gradient == NULL) return;
    fed_copy_bordered(&stage->shape, &stage->out, pass->out_gradient, &bordered, copy_of(pass));
    for (size_t phase_y = 0; phase_y < y.stride; phase_y++)
        for (size_t phase_x = 0; phase_x < x.stride; phase_x++) {
            const fed_stride_phase rows = fed_phase_of(&y, phase_y);
            const fed_stride_phase columns = fed_phase_of(&x, phase_x);
            run_phase(pass, &bordered, &rows, &columns);
        }
}

const fed_stage_ops fed_depthwise_conv = {
    .widen_border = widen_border,
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .forward = forward,
    .backward = backward,
};
