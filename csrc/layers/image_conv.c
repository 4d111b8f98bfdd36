/* SPDX-License-Identifier: Apache-2.0
 * Chooses how to compute a convolution of a group of images. */
#include "image_conv.h"

const fed_image_conv_method *fed_image_conv_choose(const fed_image_conv *conv) {
    if (conv->norm != NULL) return &fed_image_gemm; /* the only one that applies norms */
    /* The method that saves the most work is tried first. */
    if (fed_image_small.fits(conv)) return &fed_image_small;
    if (fed_image_winograd.fits(conv)) return &fed_image_winograd;
    return &fed_image_gemm;
}
