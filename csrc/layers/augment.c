/* SPDX-License-Identifier: Apache-2.0
 * Input layers, which change an image before the first layer with parameters. They are at the start
 * of a model, have no parameters, and no gradient passes through them. Some change a training
 * example at random at each visit (augmentation). Their random numbers come from the visit's
 * dropout stream, one 64-bit draw each. In scoring there is no stream: a crop takes the middle, and
 * the other random layers change nothing. The last input layer may mix the examples of a training
 * batch. */
#include "layer.h"

#include <math.h>

/* A loop over the pixels of the output. */
#define EACH_PIXEL(pass, y, x)                                                                     \
    for (size_t y = 0; y < (pass)->stage->shape.height; y++)                                       \
        for (size_t x = 0; x < (pass)->stage->shape.width; x++)

static const float *pixel_in(const fed_pass *pass, size_t y, size_t x) {
    return pass->in + fed_pixel(&pass->stage->in, y, x);
}

static float *pixel_out(const fed_pass *pass, size_t y, size_t x) {
    return pass->out + fed_pixel(&pass->stage->out, y, x);
}

static size_t num_channels(const fed_pass *pass) { return pass->stage->shape.channels; }

static void copy_pixel(const fed_pass *pass, const float *from, float *to) {
    memcpy(to, from, num_channels(pass) * sizeof *to);
}

static void copy(const fed_pass *pass) {
    EACH_PIXEL(pass, y, x)
    copy_pixel(pass, pixel_in(pass, y, x), pixel_out(pass, y, x));
}

/* Uniform in [low, high). */
static double draw_between(fed_rng *rng, double low, double high) {
    return low + (high - low) * fed_rng_uniform(rng);
}

/* No gradient passes through an input layer. */
static void no_backward(const fed_pass *pass) { (void)pass; }

/* ---- Normalisation: constants are the channels' means, then their factors -------------------- */

static void normalize(const fed_pass *pass) {
    const double *means = pass->stage->layer->constants, *factors = means + FED_MAX_NORMALIZED;
    EACH_PIXEL(pass, y, x)
    for (size_t c = 0; c < num_channels(pass); c++)
        pixel_out(pass, y, x)[c] = (pixel_in(pass, y, x)[c] - (float)means[c]) * (float)factors[c];
}

/* Shifts and scales each image to mean 0 and deviation 1 over all of its values. The divisor is at
 * least 1 / sqrt(size), as in TensorFlow's per_image_standardization. */
static void standardize(const fed_pass *pass) {
    const double size = (double)fed_shape_size(&pass->stage->shape);
    double sum = 0, squares = 0;
    EACH_PIXEL(pass, y, x)
    for (size_t c = 0; c < num_channels(pass); c++) sum += (double)pixel_in(pass, y, x)[c];
    const double mean = sum / size;
    EACH_PIXEL(pass, y, x)
    for (size_t c = 0; c < num_channels(pass); c++) {
        const double away = (double)pixel_in(pass, y, x)[c] - mean;
        squares += away * away;
    }
    const double factor = 1 / fmax(sqrt(squares / size), 1 / sqrt(size));
    EACH_PIXEL(pass, y, x)
    for (size_t c = 0; c < num_channels(pass); c++)
        pixel_out(pass, y, x)[c] = (float)(((double)pixel_in(pass, y, x)[c] - mean) * factor);
}

/* ---- Geometry -------------------------------------------------------------------------------- */

/* Mirrors the image left to right in half of the visits. */
static void flip(const fed_pass *pass) {
    const size_t last = pass->stage->shape.width - 1;
    if (pass->dropout == NULL || fed_rng_uniform(pass->dropout) < 0.5) {
        copy(pass);
        return;
    }
    EACH_PIXEL(pass, y, x)
    copy_pixel(pass, pixel_in(pass, y, last - x), pixel_out(pass, y, x));
}

/* Cuts out the part of the image that begins at a pixel, after adding pad_top rows and pad_left
 * columns of zeros on each side. */
static void cut(const fed_pass *pass, size_t top, size_t left) {
    const fed_layer *layer = pass->stage->layer;
    EACH_PIXEL(pass, y, x) {
        const size_t from_y = top + y - layer->pad_top, from_x = left + x - layer->pad_left;
        /* Above or left of the image, the unsigned difference wraps around to a large number. */
        if (from_y < layer->in.height && from_x < layer->in.width)
            copy_pixel(pass, pixel_in(pass, from_y, from_x), pixel_out(pass, y, x));
        else
            memset(pixel_out(pass, y, x), 0, num_channels(pass) * sizeof *pass->out);
    }
}

/* The numbers of rows and columns by which the part can be moved. */
static size_t room_y(const fed_layer *layer) {
    return layer->in.height + 2 * layer->pad_top - layer->out.height;
}

static size_t room_x(const fed_layer *layer) {
    return layer->in.width + 2 * layer->pad_left - layer->out.width;
}

static void crop_middle(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    cut(pass, room_y(layer) / 2, room_x(layer) / 2);
}

static void crop(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    if (pass->dropout == NULL) {
        crop_middle(pass);
        return;
    }
    const size_t top = (size_t)draw_between(pass->dropout, 0, (double)room_y(layer) + 1);
    const size_t left = (size_t)draw_between(pass->dropout, 0, (double)room_x(layer) + 1);
    cut(pass, top, left);
}

/* The value at a place between pixels, by bilinear interpolation; zero outside the image. */
static float value_between(const fed_pass *pass, double y, double x, size_t channel) {
    const fed_shape *in = &pass->stage->layer->in;
    const double top = floor(y), left = floor(x);
    double sum = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            const double row = top + i, column = left + j;
            if (row < 0 || column < 0 || row >= (double)in->height || column >= (double)in->width)
                continue;
            const double share = (1 - fabs(y - row)) * (1 - fabs(x - column));
            sum += share * (double)pixel_in(pass, (size_t)row, (size_t)column)[channel];
        }
    return (float)sum;
}

/* Rotates the image about its middle by at most constants[0] radians in either direction. */
static void rotate(const fed_pass *pass) {
    const fed_shape *shape = &pass->stage->shape;
    if (pass->dropout == NULL) {
        copy(pass);
        return;
    }
    const double most = pass->stage->layer->constants[0];
    const double angle = draw_between(pass->dropout, -most, most);
    const double cosine = cos(angle), sine = sin(angle);
    const double middle_y = 0.5 * (double)(shape->height - 1);
    const double middle_x = 0.5 * (double)(shape->width - 1);
    EACH_PIXEL(pass, y, x) {
        const double down = (double)y - middle_y, right = (double)x - middle_x;
        const double from_y = middle_y + cosine * down - sine * right;
        const double from_x = middle_x + sine * down + cosine * right;
        for (size_t c = 0; c < num_channels(pass); c++)
            pixel_out(pass, y, x)[c] = value_between(pass, from_y, from_x, c);
    }
}

/* Sets to zero a square with window_height pixels per side. Its middle is anywhere in the image
 * (DeVries and Taylor 2017, arXiv 1708.04552). */
static void cut_out(const fed_pass *pass) {
    const fed_layer *layer = pass->stage->layer;
    copy(pass);
    if (pass->dropout == NULL) return;
    const size_t side = layer->window_height, above = side / 2;
    const size_t middle_y = (size_t)draw_between(pass->dropout, 0, (double)layer->in.height);
    const size_t middle_x = (size_t)draw_between(pass->dropout, 0, (double)layer->in.width);
    EACH_PIXEL(pass, y, x)
    if (y + above - middle_y < side && x + above - middle_x < side)
        memset(pixel_out(pass, y, x), 0, num_channels(pass) * sizeof *pass->out);
}

/* ---- Colours --------------------------------------------------------------------------------- */

/* The grey level of a colour (ITU-R BT.601). */
static double grey_of(const float *pixel, size_t num_parts) {
    if (num_parts < 3) return (double)pixel[0];
    return 0.299 * (double)pixel[0] + 0.587 * (double)pixel[1] + 0.114 * (double)pixel[2];
}

/* Multiplies brightness, contrast and saturation, each by a factor in 1 +- constants[i]: the image
 * is mixed with black, with its mean grey, and with each pixel's grey. */
static void jitter(const fed_pass *pass) {
    const double *constants = pass->stage->layer->constants;
    if (pass->dropout == NULL) {
        copy(pass);
        return;
    }
    double factors[3], mean = 0;
    for (size_t i = 0; i < 3; i++)
        factors[i] = draw_between(pass->dropout, 1 - constants[i], 1 + constants[i]);
    EACH_PIXEL(pass, y, x)
    mean += factors[0] * grey_of(pixel_in(pass, y, x), num_channels(pass));
    mean /= (double)(pass->stage->shape.height * pass->stage->shape.width);
    EACH_PIXEL(pass, y, x) {
        const float *from = pixel_in(pass, y, x);
        const double grey =
            mean + factors[1] * (factors[0] * grey_of(from, num_channels(pass)) - mean);
        for (size_t c = 0; c < num_channels(pass); c++) {
            const double value = mean + factors[1] * (factors[0] * (double)from[c] - mean);
            pixel_out(pass, y, x)[c] = (float)(grey + factors[2] * (value - grey));
        }
    }
}

/* ---- Mixing ---------------------------------------------------------------------------------- */

/* Mixes the image with its partner (MixUp); fed_batch_mix_inputs chooses the partner. */
static void mix(const fed_pass *pass) {
    const float share = pass->share, rest = 1 - share;
    if (pass->partner == NULL) {
        copy(pass);
        return;
    }
    EACH_PIXEL(pass, y, x) {
        const float *own = pixel_in(pass, y, x);
        const float *other = pass->partner + (own - pass->in);
        float *out = pixel_out(pass, y, x);
        for (size_t c = 0; c < num_channels(pass); c++) out[c] = share * own[c] + rest * other[c];
    }
}

/* ---- The kinds ------------------------------------------------------------------------------- */

#define INPUT_LAYER(name, function)                                                                \
    const fed_stage_ops name = {.forward = function, .backward = no_backward, .takes_raw = 1}

INPUT_LAYER(fed_normalize, normalize);
INPUT_LAYER(fed_standardize, standardize);
INPUT_LAYER(fed_flip, flip);
INPUT_LAYER(fed_crop, crop);
INPUT_LAYER(fed_crop_middle, crop_middle);
INPUT_LAYER(fed_rotate, rotate);
INPUT_LAYER(fed_cut_out, cut_out);
INPUT_LAYER(fed_jitter, jitter);
INPUT_LAYER(fed_mix, mix);

size_t fed_one_draw(const fed_layer *layer) { return (void)layer, (size_t)1; }
size_t fed_two_draws(const fed_layer *layer) { return (void)layer, (size_t)2; }
size_t fed_three_draws(const fed_layer *layer) { return (void)layer, (size_t)3; }
