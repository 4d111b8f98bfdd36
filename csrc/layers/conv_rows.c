/* SPDX-License-Identifier: Apache-2.0
 * Computes convolutions by rows of pixels, two rows at a time if they are pooled. */
#include "conv.h"

size_t fed_conv_rows_floats(const fed_conv *conv) {
    return conv->is_pooled ? 2 * 2 * conv->num_cells * FED_PANEL : 0;
}

/* Computes two rows of pixels and pools them to one row of cells. */
static void pooled_row(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                       size_t y, size_t channel, size_t width) {
    const size_t num_pixels = 2 * conv->num_cells, row_size = num_pixels * width;
    const float *in = io->in + 2 * y * conv->step_y;
    for (size_t r = 0; r < 2; r++)
        kernels->conv_row(&conv->sweep, in + r * conv->step_y,
                          io->kernel + channel * conv->num_taps, width, fed_conv_bias(io, channel),
                          num_pixels, -HUGE_VALF, io->scratch + r * row_size, width);
    const fed_offsets at = {.first = (int32_t)(2 * y * conv->step_y),
                            .step_x = (int32_t)conv->sweep.step,
                            .step_y = (int32_t)conv->step_y};
    float *out = io->out + io->buffer->origin + y * io->buffer->row_stride + channel;
    int32_t *offsets = NULL;
    if (io->offsets != NULL)
        offsets = io->offsets + y * conv->num_cells * conv->out_channels + channel;
    kernels->conv_pool(io->scratch, row_size, width, conv->num_cells, conv->least, out,
                       conv->out_channels, &at, offsets);
}

static void plain_row(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io,
                      size_t y, size_t channel, size_t width) {
    kernels->conv_row(
        &conv->sweep, io->in + y * conv->step_y, io->kernel + channel * conv->num_taps, width,
        fed_conv_bias(io, channel), conv->num_cells, conv->least,
        io->out + io->buffer->origin + y * io->buffer->row_stride + channel, conv->out_channels);
}

void fed_conv_run_rows(const fed_kernels *kernels, const fed_conv *conv, const fed_conv_io *io) {
    for (size_t c = 0; c < conv->out_channels; c += FED_PANEL) {
        const size_t left = conv->out_channels - c, width = left < FED_PANEL ? left : FED_PANEL;
        for (size_t y = 0; y < conv->num_rows; y++)
            if (conv->is_pooled)
                pooled_row(kernels, conv, io, y, c, width);
            else
                plain_row(kernels, conv, io, y, c, width);
    }
}
