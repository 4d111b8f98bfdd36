/* SPDX-License-Identifier: Apache-2.0
 * Dropout: in training a share of the values is set to 0 and the others are scaled up, so that the
 * expected value does not change. In scoring it does nothing. The share is the rate rounded to
 * 65536ths, and less than 1. Each value of the image, in height, width, channel order without
 * padding, takes 16 bits of the visit's dropout stream. A 64-bit draw serves four values, from its
 * lowest bits up, and each layer begins with a new draw. A value is dropped if its bits are below
 * the share. The bits are saved for backward. */
#include "layer.h"

#include <math.h>

enum { NUM_STEPS = 65536, DRAWN_VALUES = 4, DRAWN_HALVES = 2048 };

size_t fed_dropout_draws(const fed_layer *layer) {
    return (fed_shape_size(&layer->in) + DRAWN_VALUES - 1) / DRAWN_VALUES;
}

static void lay_out(fed_stage *stage) {
    const size_t num_bytes = fed_dropout_draws(stage->layer) * DRAWN_VALUES * sizeof(uint16_t);
    stage->saved_bytes = (num_bytes + FED_ALIGNMENT - 1) / FED_ALIGNMENT * FED_ALIGNMENT;
}

static uint32_t threshold_of(const fed_layer *layer) {
    const double threshold = floor(layer->rate * NUM_STEPS + 0.5);
    return threshold < NUM_STEPS ? (uint32_t)threshold : NUM_STEPS - 1;
}

static void put_bits(uint32_t drawn, uint16_t *bits) {
    bits[0] = (uint16_t)drawn;
    bits[1] = (uint16_t)(drawn >> 16);
}

/* Makes `count` draws. After the first one the stream is at the beginning of a draw, so the others
 * can be made many at a time, as halves of 32 bits. */
static void draw_bits(fed_rng *rng, size_t count, uint16_t *bits) {
    uint32_t halves[DRAWN_HALVES];
    const uint64_t first = fed_rng_u64(rng);
    put_bits((uint32_t)first, bits);
    put_bits((uint32_t)(first >> 32), bits + 2);
    bits += DRAWN_VALUES;
    for (size_t left = 2 * (count - 1), num; left > 0; left -= num, bits += 2 * num) {
        num = fed_smaller(left, DRAWN_HALVES);
        fed_rng_fill_u32(rng, halves, num);
        for (size_t h = 0; h < num; h++) put_bits(halves[h], bits + 2 * h);
    }
}

/* Applies the mask, in the forward pass to values and in the backward pass to gradients. Bits have
 * no padding, so buffers with padded channels are processed pixel by pixel. */
static void drop(const fed_pass *pass, const fed_buffer *from_buffer, const float *from,
                 const fed_buffer *to_buffer, float *to) {
    const fed_shape *shape = &pass->stage->shape;
    const uint16_t *bits = pass->saved;
    const uint32_t threshold = threshold_of(pass->stage->layer);
    const float scale = (float)NUM_STEPS / (float)(NUM_STEPS - threshold);
    const int is_dense = shape->channels == to_buffer->pixel_stride;
    const size_t run = is_dense ? shape->width * shape->channels : shape->channels;
    for (size_t y = 0; y < shape->height; y++)
        for (size_t x = 0; x < shape->width; x += is_dense ? shape->width : 1, bits += run) {
            const size_t from_at = fed_pixel(from_buffer, y, x), at = fed_pixel(to_buffer, y, x);
            pass->kernels->drop(from + from_at, bits, run, threshold, scale, to + at);
            memset(to + at + run, 0, is_dense ? 0 : (to_buffer->pixel_stride - run) * sizeof *to);
        }
}

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (pass->dropout == NULL) {
        fed_copy_interior(&stage->shape, &stage->in, pass->in, &stage->out, pass->out);
    } else {
        draw_bits(pass->dropout, fed_dropout_draws(stage->layer), pass->saved);
        drop(pass, &stage->in, pass->in, &stage->out, pass->out);
    }
    fed_activate_out(pass);
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    if (pass->in_gradient == NULL) return;
    fed_undo_out(pass);
    drop(pass, &stage->out, pass->out_gradient, &stage->in, pass->in_gradient);
}

const fed_stage_ops fed_dropout = {
    .lay_out = lay_out,
    .forward = forward,
    .backward = backward,
};
