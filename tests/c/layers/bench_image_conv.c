/* SPDX-License-Identifier: Apache-2.0
 *
 * Times convolutions of a group of images, for tests/bench/bench_layers_deep.py. Reads commands,
 * one per line, and answers each with a line:
 *
 *     conv METHOD IMAGES HEIGHT WIDTH IN OUT WINDOW STRIDE   sets the layer up; "ok", or "no" if
 *                                                            METHOD cannot compute it
 *     forward | backward | weights                           runs this pass once; the thread's
 *                                                            seconds. `weights` is backward without
 *                                                            the gradient by the inputs
 */
#include "fed.h"
#include "kernels/kernels.h"
#include "layers/image_conv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct layer {
    const fed_image_conv_method *method;
    fed_image_conv conv;
    fed_image_conv_io io;
    float *in_gradient;
} layer;

static float *random_floats(size_t num, float scale) {
    float *values = aligned_alloc(64, fed_padded(num) * sizeof *values);
    if (values == NULL) exit(2);
    for (size_t i = 0; i < num; i++) values[i] = scale * ((float)rand() / (float)RAND_MAX - 0.5f);
    return values;
}

static fed_buffer bordered(const fed_shape *shape, size_t border) {
    fed_buffer buffer = {.pixel_stride = fed_padded(shape->channels)};
    buffer.row_stride = (shape->width + 2 * border) * buffer.pixel_stride;
    buffer.origin = border * (buffer.row_stride + buffer.pixel_stride);
    buffer.num_values = (shape->height + 2 * border) * buffer.row_stride;
    return buffer;
}

/* All values are random, also in borders and padding: the time does not depend on them. */
static int set_up(layer *l, const char *name, const size_t *sizes) {
    const size_t window = sizes[5], stride = sizes[6];
    l->method = strcmp(name, "winograd") == 0 ? &fed_image_winograd
                : strcmp(name, "small") == 0  ? &fed_image_small
                : strcmp(name, "gemm") == 0   ? &fed_image_gemm
                                              : NULL;
    if (l->method == NULL) return 0;
    l->conv = (fed_image_conv){
        .num_images = sizes[0],
        .in_shape = {sizes[1], sizes[2], sizes[3]},
        .out_shape = {(sizes[1] + stride - 1) / stride, (sizes[2] + stride - 1) / stride, sizes[4]},
        .window_height = window,
        .window_width = window,
        .stride_y = stride,
        .stride_x = stride,
        .least = -HUGE_VALF,
    };
    fed_image_conv *conv = &l->conv;
    const size_t covered = (conv->out_shape.height - 1) * stride + window;
    conv->pad_top = conv->pad_left = covered > sizes[1] ? (covered - sizes[1]) / 2 : 0;
    conv->in = bordered(&conv->in_shape, window / 2);
    conv->out = bordered(&conv->out_shape, 1);
    if (!l->method->fits(conv)) return 0;
    const size_t num_in = sizes[0] * conv->in.num_values, num_out = sizes[0] * conv->out.num_values;
    const size_t num_weights = fed_image_conv_weights(conv);
    const size_t num_scratch = l->method->scratch_floats(conv, 1);
    l->in_gradient = random_floats(num_in, 0);
    l->io = (fed_image_conv_io){
        .in = random_floats(num_in, 1),
        .weights = random_floats(num_weights, 0.1f),
        .bias = random_floats(fed_padded(sizes[4]), 1),
        .out = random_floats(num_out, 0),
        .out_gradient = random_floats(num_out, 1),
        .weights_gradient = random_floats(num_weights, 0),
        .bias_gradient = random_floats(fed_padded(sizes[4]), 0),
        .scratch = random_floats(num_scratch, 0),
        .num_workers = 1,
    };
    return 1;
}

static double thread_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double seconds_of(layer *l, const char *phase) {
    const fed_kernels *kernels = fed_active_kernels();
    l->io.in_gradient = strcmp(phase, "weights") == 0 ? NULL : l->in_gradient;
    const double start = thread_seconds();
    if (strcmp(phase, "forward") == 0)
        l->method->forward(kernels, &l->conv, &l->io);
    else
        l->method->backward(kernels, &l->conv, &l->io);
    return thread_seconds() - start;
}

int main(void) {
    if (fed_select_isa(getenv("FEDCLI_ISA")) != FED_OK) return 2;
    layer l = {0};
    char line[256], name[32];
    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t s[7];
        if (sscanf(line, "conv %31s %zu %zu %zu %zu %zu %zu %zu", name, s, s + 1, s + 2, s + 3,
                   s + 4, s + 5, s + 6) == 8) {
            printf("%s\n", set_up(&l, name, s) ? "ok" : "no");
        } else if (sscanf(line, "%31s", name) == 1 && l.method != NULL) {
            printf("%.9f\n", seconds_of(&l, name));
        }
        fflush(stdout);
    }
    return 0;
}
