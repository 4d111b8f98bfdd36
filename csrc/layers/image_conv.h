/* SPDX-License-Identifier: Apache-2.0
 * A convolution of a group of images at once, for layers that gain if their weights, or their
 * transformed weights, stay in the cache from image to image. The methods below give the same
 * results, up to rounding. They differ in speed, and in the sizes that they can compute. */
#ifndef FED_LAYERS_IMAGE_CONV_H
#define FED_LAYERS_IMAGE_CONV_H

#include "buffer.h"
#include "fed.h"
#include "memory.h"
#include "norm.h"

/* Output channels in a panel of the weights. */
enum { FED_IMAGE_PANEL = 16 };

/* The sizes of a convolution. */
typedef struct fed_image_conv {
    size_t num_images;             /* >= 1 */
    fed_shape in_shape, out_shape; /* without padded channels */
    /* Layouts of one image; images are num_values apart. The channels of a pixel are padded; `in`
     * has a border of zeros that covers every window. If no gradient by the inputs is needed,
     * pixels of `in` may have any stride. This stride is then the "padded I" of the weights below,
     * such as 3 for colours without padding. */
    fed_buffer in, out;
    size_t window_height, window_width;
    size_t stride_y, stride_x;
    size_t pad_top, pad_left; /* window (0, 0) begins at pixel (-pad_top, -pad_left) */
    float least;              /* lower bound of the outputs: 0 for relu, else -HUGE_VALF */
    const fed_stage *norm; /* it is applied to the inputs; NULL: none. Then windows are one pixel */
} fed_image_conv;

/* The inputs and outputs of a convolution. Weights and their gradient are in panels,
 * [padded O / 16][window_height][window_width][padded I][16]: one layout for every method, so that
 * an optimizer's step is a plain loop. Padding is zeros and stays zeros. Arrays are aligned to 64
 * bytes. */
typedef struct fed_image_conv_io {
    const float *in;      /* [num_images] buffer `in` */
    const char *norm;     /* [num_images, saved_bytes]: what the norm has saved */
    const float *weights; /* [fed_image_conv_weights] */
    const float *bias;    /* [padded O]; NULL: zeros */
    float *out;           /* [num_images] buffer `out`; the border is not written */
    /* backward only */
    const float *out_gradient; /* [num_images] buffer `out`, by the outputs before `least` bounds
                                  them; the border is undefined */
    float *in_gradient;        /* out [num_images] buffer `in`; the border is undefined afterwards;
                                  NULL: not needed */
    float *weights_gradient;   /* in-out [fed_image_conv_weights]: added to */
    float *bias_gradient;      /* in-out [padded O]: added to; NULL: not needed */
    float *scratch;            /* [scratch_floats] */
    int num_workers; /* threads that share the work; results do not depend on their number */
} fed_image_conv_io;

/* A way to compute convolutions. */
typedef struct fed_image_conv_method {
    /* 1 if it computes this convolution. */
    int (*fits)(const fed_image_conv *conv);
    /* Enough for forward and for backward, with any number of workers up to num_workers. */
    size_t (*scratch_floats)(const fed_image_conv *conv, int num_workers);
    void (*forward)(const fed_kernels *kernels, const fed_image_conv *conv,
                    const fed_image_conv_io *io);
    void (*backward)(const fed_kernels *kernels, const fed_image_conv *conv,
                     const fed_image_conv_io *io);
} fed_image_conv_method;

/* By Winograd's tiles (image_winograd.c): 3x3 or 5x5 windows with stride 1, and 3x3 windows with
 * stride 2 in images that whole tiles nearly cover. */
extern const fed_image_conv_method fed_image_winograd;
/* Any window and stride over images of at most 2x2 pixels. Most of each window is in the border
 * (image_small.c). */
extern const fed_image_conv_method fed_image_small;
/* Any window and stride, as a product with a table of offsets (image_gemm.c). */
extern const fed_image_conv_method fed_image_gemm;

/* The fastest of the methods that fit. The number of images does not matter. */
const fed_image_conv_method *fed_image_conv_choose(const fed_image_conv *conv);

/* Floats of the weights. */
static inline size_t fed_image_conv_weights(const fed_image_conv *conv) {
    return fed_padded(conv->out_shape.channels) * conv->window_height * conv->window_width *
           conv->in.pixel_stride;
}

#endif
