/* SPDX-License-Identifier: Apache-2.0
 * Joins the channels of two images with the same height and width. */
#include "layer.h"

/* The channels that come from one input: those from `first` on in each pixel of the outputs. */
typedef struct piece {
    const fed_buffer *buffer; /* of the input */
    size_t first, num;
} piece;

static piece first_piece(const fed_stage *stage) {
    return (piece){&stage->in, 0, stage->layer->in.channels};
}

static piece second_piece(const fed_stage *stage) {
    const size_t first = stage->layer->in.channels;
    return (piece){&stage->in_2, first, stage->shape.channels - first};
}

static void put(const fed_pass *pass, const piece *from, const float *in) {
    const fed_stage *stage = pass->stage;
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++)
            memcpy(pass->out + fed_pixel(&stage->out, y, x) + from->first,
                   in + fed_pixel(from->buffer, y, x), from->num * sizeof *in);
}

static void forward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const piece pieces[2] = {first_piece(stage), second_piece(stage)};
    const size_t channels = stage->shape.channels;
    put(pass, &pieces[0], pass->in);
    put(pass, &pieces[1], pass->in_2);
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++)
            memset(pass->out + fed_pixel(&stage->out, y, x) + channels, 0,
                   (stage->out.pixel_stride - channels) * sizeof(float));
    fed_activate_out(pass);
}

/* Writes an input's part of the gradient, or adds it. */
static void take(const fed_pass *pass, const piece *to, int adds, float *in_gradient) {
    const fed_stage *stage = pass->stage;
    if (in_gradient == NULL) return;
    for (size_t y = 0; y < stage->shape.height; y++)
        for (size_t x = 0; x < stage->shape.width; x++) {
            const float *from = pass->out_gradient + fed_pixel(&stage->out, y, x) + to->first;
            float *pixel = in_gradient + fed_pixel(to->buffer, y, x);
            if (adds) {
                pass->kernels->add(pixel, from, to->num);
            } else {
                memcpy(pixel, from, to->num * sizeof *pixel);
                memset(pixel + to->num, 0, (to->buffer->pixel_stride - to->num) * sizeof *pixel);
            }
        }
}

static void backward(const fed_pass *pass) {
    const fed_stage *stage = pass->stage;
    const piece pieces[2] = {first_piece(stage), second_piece(stage)};
    fed_undo_out(pass);
    take(pass, &pieces[0], stage->adds[0], pass->in_gradient);
    take(pass, &pieces[1], stage->adds[1], pass->in_2_gradient);
}

const fed_stage_ops fed_concatenate = {
    .forward = forward,
    .backward = backward,
    .adds_gradients = 1,
};
