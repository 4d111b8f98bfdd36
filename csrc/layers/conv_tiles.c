/* SPDX-License-Identifier: Apache-2.0
 * Computes convolutions and their pool by Winograd's tiles: transforms the inputs, computes 36
 * products, transforms back, and pools. It processes a strip of rows of tiles at a time. The data
 * of a strip take about 1 MiB at most, or as much as one row needs, so that they can stay in the L2
 * cache. */
#include "conv.h"

/* With fewer channels than LEAST_CHANNELS the transforms take longer than the smaller number of
 * products saves. */
enum { NUM_POINTS = 36, STRIP_FLOATS = 256 * 1024, LEAST_CHANNELS = 32 };

/* Floats from one of the 36 points to the next. The padding avoids a power of two, with which all
 * points would share one set of the L1 cache. */
static size_t point_stride(size_t num_values) { return num_values + FED_PAD; }

/* Outputs of a tile in each direction, before the pool. */
static size_t tile_side(const fed_conv *conv) { return conv->sweep.height == 5 ? 2 : 4; }

static size_t tiles_down(const fed_conv *conv) { return 2 * conv->num_rows / tile_side(conv); }

static size_t tiles_across(const fed_conv *conv) { return 2 * conv->num_cells / tile_side(conv); }

int fed_conv_is_winograd(const fed_conv *conv) {
    const size_t side = tile_side(conv);
    return conv->is_pooled && (conv->sweep.height == 5 || conv->sweep.height == 3) &&
           conv->sweep.run == conv->sweep.height * conv->in_channels &&
           conv->sweep.step == conv->in_channels && conv->step_y == conv->in.row_stride &&
           2 * conv->num_rows % side == 0 && 2 * conv->num_cells % side == 0 &&
           conv->in_channels >= LEAST_CHANNELS && conv->out_channels >= LEAST_CHANNELS;
}

/* Rows of tiles in a strip. */
static size_t strip_rows(const fed_conv *conv) {
    const size_t row = tiles_across(conv) * NUM_POINTS * (conv->in_channels + FED_PANEL);
    const size_t most = STRIP_FLOATS / row > 0 ? STRIP_FLOATS / row : 1;
    const size_t num_strips = (tiles_down(conv) + most - 1) / most;
    return (tiles_down(conv) + num_strips - 1) / num_strips;
}

size_t fed_conv_tiles_floats(const fed_conv *conv) {
    const size_t num_tiles = strip_rows(conv) * tiles_across(conv);
    return NUM_POINTS *
           (point_stride(num_tiles * conv->in_channels) + point_stride(num_tiles * FED_PANEL));
}

size_t fed_conv_tiles_kernel_floats(const fed_conv *conv) {
    return NUM_POINTS * point_stride(conv->in_channels * conv->out_channels);
}

void fed_conv_tiles_kernel(const fed_kernels *kernels, const fed_conv *conv, const float *panels,
                           float *kernel) {
    for (size_t c = 0; c < conv->out_channels; c += FED_PANEL) {
        const size_t left = conv->out_channels - c, width = left < FED_PANEL ? left : FED_PANEL;
        const size_t num_values = conv->in_channels * width;
        kernels->winograd_weights(panels + c * conv->num_taps, conv->sweep.height, num_values,
                                  num_values, kernel + c * conv->in_channels,
                                  point_stride(conv->in_channels * conv->out_channels));
    }
}

/* A strip: some rows of tiles. */
typedef struct strip {
    size_t first, num;  /* rows */
    size_t width, side; /* tiles in a row; see tile_side */
    float *inputs;      /* [36][num * width, in_channels] */
    float *products;    /* [36][num * width, panel width] */
} strip;

static void transform_inputs(const fed_kernels *kernels, const fed_conv *conv,
                             const fed_conv_io *io, const strip *s) {
    const fed_tile_row row = {.side = s->side,
                              .num_tiles = s->width,
                              .point_stride = point_stride(s->num * s->width * conv->in_channels)};
    for (size_t y = 0; y < s->num; y++)
        kernels->winograd_inputs(&row, io->in + (s->first + y) * s->side * conv->in.row_stride,
                                 conv->in.row_stride, conv->in_channels, conv->in_channels,
                                 s->inputs + y * s->width * conv->in_channels);
}

static void multiply(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                     const strip *s, size_t channel, size_t panel_width) {
    const size_t num_inputs = conv->in_channels, num_tiles = s->num * s->width;
    const fed_sweep sweep = {.height = 1, .run = num_inputs, .step = num_inputs};
    for (size_t k = 0; k < NUM_POINTS; k++)
        kernels->conv_row(&sweep, s->inputs + k * point_stride(num_tiles * num_inputs),
                          io->kernel + k * point_stride(num_inputs * conv->out_channels) +
                              channel * num_inputs,
                          panel_width, fed_conv_no_bias, num_tiles, -HUGE_VALF,
                          s->products + k * point_stride(num_tiles * panel_width), panel_width);
}

static void put_out(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                    const strip *s, size_t channel, size_t panel_width) {
    const size_t rows = s->side / 2; /* of cells in a row of tiles */
    const fed_tile_row row = {.side = s->side,
                              .num_tiles = s->width,
                              .point_stride = point_stride(s->num * s->width * panel_width)};
    for (size_t y = 0; y < s->num; y++) {
        const size_t cell = (s->first + y) * rows;
        const fed_offsets at = {.first = (int32_t)((s->first + y) * s->side * conv->step_y),
                                .step_x = (int32_t)conv->sweep.step,
                                .step_y = (int32_t)conv->step_y};
        fed_cells cells = {.is_pooled = 1,
                           .out = io->out + io->buffer->origin + cell * io->buffer->row_stride +
                                  channel,
                           .step = conv->out_channels,
                           .row_stride = io->buffer->row_stride,
                           .at = &at,
                           .offsets_stride = conv->num_cells * conv->out_channels};
        if (io->offsets != NULL)
            cells.offsets = io->offsets + cell * cells.offsets_stride + channel;
        kernels->winograd_outputs(&row, s->products + y * s->width * panel_width, panel_width,
                                  fed_conv_bias(io, channel), conv->least, &cells);
    }
}

void fed_conv_run_tiles(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io) {
    strip s = {.side = tile_side(conv), .width = tiles_across(conv), .inputs = io->scratch};
    const size_t num_rows = tiles_down(conv), most = strip_rows(conv);
    for (s.first = 0; s.first < num_rows; s.first += s.num) {
        s.num = num_rows - s.first < most ? num_rows - s.first : most;
        s.products = s.inputs + NUM_POINTS * point_stride(s.num * s.width * conv->in_channels);
        transform_inputs(kernels, conv, io, &s);
        for (size_t c = 0; c < conv->out_channels; c += FED_PANEL) {
            const size_t left = conv->out_channels - c, width = left < FED_PANEL ? left : FED_PANEL;
            multiply(kernels, conv, io, &s, c, width);
            put_out(kernels, conv, io, &s, c, width);
        }
    }
}
