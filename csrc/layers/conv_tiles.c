/* SPDX-License-Identifier: Apache-2.0
 * Computes convolutions and their pool by Winograd's tiles: transforms the inputs, computes 36
 * products, transforms back, and pools. It processes a strip of rows of tiles at a time. The data
 * of a strip take about 1 MiB at most, or as much as one row needs, so that they can stay in the L2
 * cache.
 *
 * Tiles that see only background have the same outputs. The first of them is computed, the others
 * are copies of it. */
#include "conv.h"

#include <string.h>

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
    size_t num_tiles;   /* those that are computed */
    float *inputs;      /* [36][num_tiles, in_channels] */
    float *products;    /* [36][num_tiles, panel width] */
    int has_copies;
    fed_marks copies;        /* tiles of all strips that are copied */
    size_t model_y, model_x; /* the tile that they are copied from */
} strip;

/* Tiles of a row that are computed. */
typedef struct run {
    size_t y, x;  /* of the first one */
    size_t num;   /* 0: there are no more */
    size_t place; /* of the first one, among the tiles of the strip */
} run;

static uint64_t copies_in_row(const strip *s, size_t y) {
    return s->has_copies ? s->copies.rows[y] : 0;
}

static run next_run(const strip *s, run r) {
    r.place += r.num;
    for (r.x += r.num; r.y < s->first + s->num; r.y++, r.x = 0) {
        r.num = fed_next_run(copies_in_row(s, r.y), s->width, &r.x);
        if (r.num > 0) return r;
    }
    r.num = 0;
    return r;
}

static run first_run(const strip *s) { return next_run(s, (run){.y = s->first}); }

static size_t num_computed(const strip *s) {
    run last = {0};
    for (run r = first_run(s); r.num > 0; r = next_run(s, r)) last = r;
    return last.place + last.num;
}

static void transform_inputs(const fed_kernels *kernels, const fed_conv *conv,
                             const fed_conv_io *io, const strip *s) {
    fed_tile_row row = {.side = s->side,
                        .point_stride = point_stride(s->num_tiles * conv->in_channels)};
    for (run r = first_run(s); r.num > 0; r = next_run(s, r)) {
        row.num_tiles = r.num;
        kernels->winograd_inputs(
            &row, io->in + s->side * (r.y * conv->in.row_stride + r.x * conv->in_channels),
            conv->in.row_stride, conv->in_channels, conv->in_channels,
            s->inputs + r.place * conv->in_channels);
    }
}

static void multiply(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                     const strip *s, size_t channel, size_t panel_width) {
    const size_t num_inputs = conv->in_channels, num_tiles = s->num_tiles;
    const fed_sweep sweep = {.height = 1, .run = num_inputs, .step = num_inputs};
    for (size_t k = 0; k < NUM_POINTS; k++)
        kernels->conv_row(&sweep, s->inputs + k * point_stride(num_tiles * num_inputs),
                          io->kernel + k * point_stride(num_inputs * conv->out_channels) +
                              channel * num_inputs,
                          panel_width, fed_conv_no_bias, num_tiles, -HUGE_VALF,
                          s->products + k * point_stride(num_tiles * panel_width), panel_width);
}

static float *cell_at(const fed_conv *conv, const fed_conv_io *io, size_t y, size_t x) {
    return io->out + io->buffer->origin + y * io->buffer->row_stride + x * conv->out_channels;
}

static void put_out(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                    const strip *s, size_t channel, size_t panel_width) {
    fed_tile_row row = {.side = s->side, .point_stride = point_stride(s->num_tiles * panel_width)};
    for (run r = first_run(s); r.num > 0; r = next_run(s, r)) {
        const size_t y = r.y * (s->side / 2), x = r.x * (s->side / 2); /* of its cell */
        const fed_offsets at = {
            .first = (int32_t)(s->side * (r.y * conv->step_y + r.x * conv->sweep.step)),
            .step_x = (int32_t)conv->sweep.step,
            .step_y = (int32_t)conv->step_y};
        fed_cells cells = {.is_pooled = 1,
                           .out = cell_at(conv, io, y, x) + channel,
                           .step = conv->out_channels,
                           .row_stride = io->buffer->row_stride,
                           .at = &at,
                           .offsets_stride = conv->num_cells * conv->out_channels};
        if (io->offsets != NULL)
            cells.offsets =
                io->offsets + y * cells.offsets_stride + x * conv->out_channels + channel;
        row.num_tiles = r.num;
        kernels->winograd_outputs(&row, s->products + r.place * panel_width, panel_width,
                                  fed_conv_bias(io, channel), conv->least, &cells);
    }
}

/* Copies the outputs of the model tile to the strip's other tiles that see only background. Their
 * offsets are not needed: see merge_background in conv_pooled.c. */
static void copy_tiles(const fed_conv *conv, const fed_conv_io *io, const strip *s) {
    const size_t side = s->side / 2; /* of a tile, in cells */
    const float *from = cell_at(conv, io, s->model_y * side, s->model_x * side);
    for (size_t y = s->first; y < s->first + s->num; y++)
        for (uint64_t left = copies_in_row(s, y); left != 0; left &= left - 1) {
            float *to = cell_at(conv, io, y * side, (size_t)__builtin_ctzll(left) * side);
            for (size_t r = 0; r < side; r++)
                memcpy(to + r * io->buffer->row_stride, from + r * io->buffer->row_stride,
                       side * conv->out_channels * sizeof *to);
        }
}

void fed_conv_run_tiles(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io) {
    strip s = {.side = tile_side(conv), .width = tiles_across(conv), .inputs = io->scratch};
    const size_t num_rows = tiles_down(conv), most = strip_rows(conv);
    if (io->marks != NULL) {
        fed_conv_mark_squares(conv, io->marks, s.side, &s.copies);
        s.has_copies = fed_take_first_mark(&s.copies, num_rows, &s.model_y, &s.model_x);
    }
    for (s.first = 0; s.first < num_rows; s.first += s.num) {
        s.num = num_rows - s.first < most ? num_rows - s.first : most;
        s.num_tiles = num_computed(&s);
        s.products = s.inputs + NUM_POINTS * point_stride(s.num_tiles * conv->in_channels);
        transform_inputs(kernels, conv, io, &s);
        for (size_t c = 0; c < conv->out_channels; c += FED_PANEL) {
            const size_t left = conv->out_channels - c, width = left < FED_PANEL ? left : FED_PANEL;
            multiply(kernels, conv, io, &s, c, width);
            put_out(kernels, conv, io, &s, c, width);
        }
        copy_tiles(conv, io, &s);
    }
}
