/* SPDX-License-Identifier: Apache-2.0
 * A convolution of feature maps that takes the images of a batch at once: see image_conv.h. Packed:
 * the kernel in panels (image_conv.h), bias [padded O]. */
#include "conv.h"
#include "image_conv.h"
#include "threads.h"

#include <string.h>

/* Images of a larger batch are computed in groups, so that scratch is bounded. */
enum { MOST_IMAGES = 1024 };

static void widen_border(const fed_stage *stage, fed_border *border) {
    fed_conv_widen_border(stage->layer, border);
}

static fed_image_conv conv_of(const fed_stage *stage, size_t num_images) {
    const fed_layer *layer = stage->layer;
    return (fed_image_conv){.num_images = num_images,
                            .in_shape = layer->in,
                            .out_shape = layer->out,
                            .in = stage->in,
                            .out = stage->out,
                            .window_height = layer->window_height,
                            .window_width = layer->window_width,
                            .stride_y = layer->stride_y,
                            .stride_x = layer->stride_x,
                            .pad_top = layer->pad_top,
                            .pad_left = layer->pad_left,
                            .least = layer->activation == FED_RELU ? 0.0f : -HUGE_VALF,
                            .norm = stage->norm};
}

/* ---- Parameters ------------------------------------------------------------------------------ */

static size_t num_weights(const fed_stage *stage) {
    const fed_image_conv conv = conv_of(stage, 1);
    return fed_image_conv_weights(&conv);
}

static void lay_out(fed_stage *stage) {
    stage->packed_size = num_weights(stage) + fed_padded(stage->layer->out.channels);
}

/* The packed index of the weight that connects an input channel, at a place of the window, with the
 * first output channel of a panel. */
static size_t packed_index(const fed_layer *layer, size_t panel, size_t place, size_t channel) {
    const size_t num_places = layer->window_height * layer->window_width;
    return ((panel * num_places + place) * fed_padded(layer->in.channels) + channel) *
           FED_IMAGE_PANEL;
}

/* Number of channels in a panel. */
static size_t panel_width(const fed_layer *layer, size_t panel) {
    const size_t left = layer->out.channels - panel * FED_IMAGE_PANEL;
    return left < FED_IMAGE_PANEL ? left : FED_IMAGE_PANEL;
}

static size_t num_panels(const fed_layer *layer) {
    return fed_padded(layer->out.channels) / FED_IMAGE_PANEL;
}

/* Flat: [window height, window width, in channels, out channels]. */
static size_t flat_index(const fed_layer *layer, size_t panel, size_t place, size_t channel) {
    return layer->offset + (place * layer->in.channels + channel) * layer->out.channels +
           panel * FED_IMAGE_PANEL;
}

static void pack(const fed_stage *stage, const float *flat, float *packed) {
    const fed_layer *layer = stage->layer;
    const size_t num_places = layer->window_height * layer->window_width;
    memset(packed, 0, stage->packed_size * sizeof *packed);
    for (size_t panel = 0; panel < num_panels(layer); panel++)
        for (size_t place = 0; place < num_places; place++)
            for (size_t i = 0; i < layer->in.channels; i++)
                memcpy(packed + packed_index(layer, panel, place, i),
                       flat + flat_index(layer, panel, place, i),
                       panel_width(layer, panel) * sizeof *packed);
    if (layer->has_bias)
        memcpy(packed + num_weights(stage), flat + flat_index(layer, 0, num_places, 0),
               layer->out.channels * sizeof *packed);
}

static void unpack(const fed_stage *stage, const double *packed, double *flat) {
    const fed_layer *layer = stage->layer;
    const size_t num_places = layer->window_height * layer->window_width;
    for (size_t panel = 0; panel < num_panels(layer); panel++)
        for (size_t place = 0; place < num_places; place++)
            for (size_t i = 0; i < layer->in.channels; i++)
                memcpy(flat + flat_index(layer, panel, place, i),
                       packed + packed_index(layer, panel, place, i),
                       panel_width(layer, panel) * sizeof *flat);
    if (layer->has_bias)
        memcpy(flat + flat_index(layer, 0, num_places, 0), packed + num_weights(stage),
               layer->out.channels * sizeof *flat);
}

/* ---- The passes ------------------------------------------------------------------------------ */

/* The largest size for groups of up to num_images images: a method may need more for fewer
 * images. */
static size_t images_scratch(const fed_stage *stage, size_t num_images, int num_workers) {
    size_t most = 0;
    for (size_t num = 1; num <= fed_smaller(num_images, MOST_IMAGES); num++) {
        const fed_image_conv conv = conv_of(stage, num);
        most = fed_larger(most, fed_image_conv_choose(&conv)->scratch_floats(&conv, num_workers));
    }
    return most;
}

static size_t group_size(const fed_images_pass *pass, size_t first) {
    return fed_smaller(pass->num_images - first, MOST_IMAGES);
}

/* The inputs and outputs of the images from `first` on. */
static fed_image_conv_io io_of(const fed_images_pass *pass, size_t first) {
    const fed_stage *stage = pass->stage;
    const size_t in = first * stage->in.num_values, out = first * stage->out.num_values;
    fed_image_conv_io io = {.in = pass->in + in,
                            .weights = pass->params,
                            .bias = pass->params + num_weights(stage),
                            .out = pass->out + out,
                            .weights_gradient = pass->gradient,
                            .scratch = pass->scratch,
                            .num_workers = pass->num_workers};
    if (stage->norm != NULL) io.norm = (const char *)pass->norm + first * stage->norm->saved_bytes;
    if (pass->out_gradient != NULL) io.out_gradient = pass->out_gradient + out;
    if (pass->in_gradient != NULL) io.in_gradient = pass->in_gradient + in;
    if (pass->gradient != NULL && stage->layer->has_bias)
        io.bias_gradient = pass->gradient + num_weights(stage);
    return io;
}

static void activate_image(void *context, size_t b, int worker) {
    (void)worker;
    const fed_images_pass *pass = context;
    const fed_stage *stage = pass->stage;
    fed_apply_activation(pass->kernels, stage->layer, &stage->out, &stage->shape,
                         pass->out + b * stage->out.num_values);
}

static void undo_image(void *context, size_t b, int worker) {
    (void)worker;
    const fed_images_pass *pass = context;
    const fed_stage *stage = pass->stage;
    const size_t at = b * stage->out.num_values;
    fed_undo_activation(pass->kernels, stage->layer, &stage->out, &stage->shape, pass->out + at,
                        pass->out_gradient + at);
}

static void forward_images(const fed_images_pass *pass) {
    const int activation = pass->stage->layer->activation;
    for (size_t first = 0; first < pass->num_images; first += MOST_IMAGES) {
        const fed_image_conv conv = conv_of(pass->stage, group_size(pass, first));
        const fed_image_conv_io io = io_of(pass, first);
        fed_image_conv_choose(&conv)->forward(pass->kernels, &conv, &io);
    }
    fed_images_pass shared = *pass;
    if (activation != FED_RELU && activation != FED_LINEAR) /* the method has applied relu */
        fed_share(pass->num_workers, pass->num_images, activate_image, &shared);
}

static void backward_images(const fed_images_pass *pass) {
    fed_images_pass shared = *pass;
    if (pass->stage->layer->activation != FED_LINEAR)
        fed_share(pass->num_workers, pass->num_images, undo_image, &shared);
    for (size_t first = 0; first < pass->num_images; first += MOST_IMAGES) {
        const fed_image_conv conv = conv_of(pass->stage, group_size(pass, first));
        const fed_image_conv_io io = io_of(pass, first);
        fed_image_conv_choose(&conv)->backward(pass->kernels, &conv, &io);
    }
}

/* Windows of one pixel read each input once, so the norm is applied once. */
static int applies_norms(const fed_layer *layer) {
    return layer->window_height == 1 && layer->window_width == 1 && layer->pad_top == 0 &&
           layer->pad_left == 0;
}

const fed_stage_ops fed_conv_batch = {
    .widen_border = widen_border,
    .lay_out = lay_out,
    .pack = pack,
    .unpack = unpack,
    .images_scratch = images_scratch,
    .forward_images = forward_images,
    .backward_images = backward_images,
    .applies_norms = applies_norms,
};
