/* SPDX-License-Identifier: Apache-2.0
 * Decodes stored pixels to a row of floats. */
#include "client.h"

void fed_decode(const fed_kernels *kernels, const fed_client *client, size_t num_pixels,
                size_t example, float *row) {
    const size_t start = example * num_pixels;
    if (client->pixel_type == FED_PIXELS_UINT8)
        kernels->decode_uint8((const uint8_t *)client->pixels + start, num_pixels, client->scale,
                              client->offset, row);
    else
        kernels->decode_float32((const float *)client->pixels + start, num_pixels, client->scale,
                                client->offset, row);
    for (size_t i = num_pixels; i < fed_padded(num_pixels); i++) row[i] = 0;
}
