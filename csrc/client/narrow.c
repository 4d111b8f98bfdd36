/* SPDX-License-Identifier: Apache-2.0
 * Replaces a client's fixed pixels by one input. In a writer's hundred digits the paper around the
 * ink has the same value in every image, and a dense layer spends a third of its work on it. Let c
 * be the vector of the fixed pixels, w the weights by which an output multiplies them, and u = c /
 * |c|. The layer depends on w only through c . w = |c| (u . w), and the gradient by w is always a
 * multiple of c. Training by gradients therefore moves w along u only. One input of value |c| with
 * weight u . w gives the same result up to rounding. The weights are projected before training;
 * afterwards the change of u . w is mapped back to w. */
#include "client.h"

#include <math.h>
#include <string.h>

static size_t pixel_bytes(const fed_client *client) {
    return client->pixel_type == FED_PIXELS_UINT8 ? sizeof(uint8_t) : sizeof(float);
}

/* Carves the arrays, with room for images of floats, and the memory of the narrow net. Returns the
 * memory of the narrow net. */
static void *carve_arrays(fed_narrow *narrow, const fed_model *model, fed_carver *c) {
    const size_t num_groups = model->num_inputs / FED_GROUP;
    narrow->layers = fed_carve(c, model->num_layers, sizeof *narrow->layers);
    narrow->direction = fed_carve(c, fed_padded(model->num_inputs), sizeof *narrow->direction);
    narrow->kept_groups = fed_carve(c, num_groups, sizeof *narrow->kept_groups);
    narrow->fixed_groups = fed_carve(c, num_groups, sizeof *narrow->fixed_groups);
    narrow->scratch = fed_carve(c, model->num_inputs, sizeof(float));
    return fed_carve(c, fed_net_num_bytes(model->num_layers), 1);
}

size_t fed_narrow_num_bytes(const fed_net *net) {
    fed_narrow narrow;
    fed_carver measure = {NULL, 0};
    carve_arrays(&narrow, net->model, &measure);
    return measure.used;
}

/* Classifies each group of pixels: kept if any image differs there from the first, else fixed. */
static void split_groups(fed_narrow *narrow, const fed_kernels *kernels) {
    const fed_client *client = narrow->client;
    const size_t image_bytes = narrow->num_pixels * pixel_bytes(client);
    const size_t group_bytes = FED_GROUP * pixel_bytes(client);
    const uint8_t *images = client->pixels;
    uint8_t *differs = narrow->scratch;
    memset(differs, 0, image_bytes);
    for (size_t e = 1; e < client->num_examples; e++)
        kernels->mark_differences(images, images + e * image_bytes, image_bytes, differs);

    static const uint8_t alike[FED_GROUP * sizeof(float)];
    narrow->num_kept = narrow->num_fixed = 0;
    for (size_t g = 0; g < narrow->num_pixels / FED_GROUP; g++) {
        if (memcmp(differs + g * group_bytes, alike, group_bytes) != 0)
            narrow->kept_groups[narrow->num_kept++] = (uint32_t)g;
        else
            narrow->fixed_groups[narrow->num_fixed++] = (uint32_t)g;
    }
}

/* The decoded value of one pixel of the first image. */
static float first_image_pixel(const fed_client *client, size_t pixel) {
    const float stored = client->pixel_type == FED_PIXELS_UINT8
                             ? (float)((const uint8_t *)client->pixels)[pixel]
                             : ((const float *)client->pixels)[pixel];
    return client->scale * stored + client->offset;
}

static void set_direction(fed_narrow *narrow) {
    double sum_of_squares = 0;
    memset(narrow->direction, 0, fed_padded(narrow->num_pixels) * sizeof *narrow->direction);
    for (size_t f = 0; f < narrow->num_fixed; f++)
        for (size_t p = 0; p < FED_GROUP; p++) {
            const size_t pixel = narrow->fixed_groups[f] * FED_GROUP + p;
            const float value = first_image_pixel(narrow->client, pixel);
            narrow->direction[pixel] = value;
            sum_of_squares += (double)value * (double)value;
        }
    const double length = sqrt(sum_of_squares);
    narrow->length = (float)length;
    for (size_t i = 0; length > 0 && i < narrow->num_pixels; i++)
        narrow->direction[i] = (float)((double)narrow->direction[i] / length);
}

static size_t num_kept_pixels(const fed_narrow *narrow) {
    return narrow->num_kept * FED_GROUP + narrow->num_tail;
}

/* Makes the model with a narrow first layer. Offsets into flat parameters are not used. */
static void set_net(fed_narrow *narrow, const fed_net *net, void *memory) {
    narrow->model = *net->model;
    memcpy(narrow->layers, net->model->layers, net->model->num_layers * sizeof *narrow->layers);
    narrow->layers[0].in = (fed_shape){1, 1, num_kept_pixels(narrow) + 1};
    narrow->model.layers = narrow->layers;
    narrow->model.num_inputs = num_kept_pixels(narrow) + 1;
    fed_net_lay_out(&narrow->net, &narrow->model, memory);
}

int fed_narrow_init(fed_narrow *narrow, const fed_net *net, const fed_client *client,
                    void *memory) {
    if (client->num_examples == 0) return 0;
    narrow->client = client;
    narrow->num_pixels = net->model->num_inputs;
    narrow->num_tail = narrow->num_pixels % FED_GROUP;
    fed_carver hand_out = {memory, 0};
    void *net_memory = carve_arrays(narrow, net->model, &hand_out);
    split_groups(narrow, net->kernels);
    /* Gathering pixels also takes time, so the narrow net must save at least an eighth of the work.
     * */
    if (fed_padded(num_kept_pixels(narrow) + 1) > fed_padded(narrow->num_pixels) / 8 * 7) return 0;
    set_direction(narrow);
    if (!isfinite(narrow->length)) return 0; /* the full net spreads the NaN or infinity */
    set_net(narrow, net, net_memory);
    return 1;
}

/* Copies the values of the kept pixels to contiguous memory. Callers pass value_bytes as a
 * constant, so that the copy of a group compiles to one move. */
static inline void gather_kept(const fed_narrow *narrow, const void *values, size_t value_bytes,
                               void *gathered) {
    const size_t group_bytes = FED_GROUP * value_bytes, num_kept = narrow->num_kept;
    const uint32_t *kept = narrow->kept_groups;
    const uint8_t *from = values;
    uint8_t *to = gathered;
    for (size_t k = 0; k < num_kept; k++, to += group_bytes)
        memcpy(to, from + kept[k] * group_bytes, group_bytes);
    memcpy(to, from + (narrow->num_pixels - narrow->num_tail) * value_bytes,
           narrow->num_tail * value_bytes);
}

void fed_narrow_decode(const fed_narrow *narrow, size_t example, float *row) {
    const size_t num_kept = num_kept_pixels(narrow);
    fed_client kept = *narrow->client; /* a client with the kept pixels of one image */
    const uint8_t *image =
        (const uint8_t *)kept.pixels + example * narrow->num_pixels * pixel_bytes(&kept);
    if (kept.pixel_type == FED_PIXELS_UINT8)
        gather_kept(narrow, image, sizeof(uint8_t), narrow->scratch);
    else
        gather_kept(narrow, image, sizeof(float), narrow->scratch);
    kept.pixels = narrow->scratch;
    fed_decode(narrow->net.kernels, &kept, num_kept, 0, row);
    row[num_kept] = narrow->length;
    for (size_t i = num_kept + 1; i < fed_padded(num_kept + 1); i++) row[i] = 0;
}

/* ---- Parameters: row o of the first layer's packed kernel, then everything after it ---------- */

static size_t first_kernel_size(const fed_net *net) {
    return net->model->layers[0].out.channels * fed_padded(net->model->num_inputs);
}

/* Outputs whose products are computed at a time, because one alone would wait for its own sum. */
enum { OUTPUTS_AT_ONCE = 10 };

/* Computes direction . weights of each output, as a dense layer without bias does on one image. Its
 * float sum has an error of at most (width / lanes + 6) 2^-24 |weights|, since |direction| = 1.
 * Times `length`, this is the error of the full layer's own sum over these pixels. The change that
 * local steps make is computed as after - before, in which the error cancels. In
 * fed_narrow_subtract_residual the error remains, times `distance`. If all fixed pixels are 0,
 * there is no direction, and the products are 0. */
static void along_direction(const fed_narrow *narrow, const float *weights, size_t num_outputs,
                            float *along /* out [num_outputs], stride apart */, size_t stride) {
    static const float no_bias[OUTPUTS_AT_ONCE];
    const float *const image[] = {narrow->direction};
    const size_t width = fed_padded(narrow->num_pixels);
    float lanes[OUTPUTS_AT_ONCE * FED_LANES];
    for (size_t o = 0, num; o < num_outputs; o += num) {
        num = fed_smaller(num_outputs - o, OUTPUTS_AT_ONCE);
        narrow->net.kernels->dense_forward(weights + o * width, no_bias, width, num, image, 1,
                                           lanes);
        for (size_t i = 0; i < num; i++)
            along[(o + i) * stride] = narrow->length == 0 ? 0 : lanes[i * FED_LANES];
    }
}

void fed_narrow_params(const fed_narrow *narrow, const fed_net *net, const float *wide,
                       float *packed) {
    const size_t wide_width = fed_padded(narrow->num_pixels);
    const size_t num_kept = num_kept_pixels(narrow), width = fed_padded(num_kept + 1);
    const size_t num_outputs = narrow->layers[0].out.channels;
    for (size_t o = 0; o < num_outputs; o++) {
        float *row = packed + o * width;
        gather_kept(narrow, wide + o * wide_width, sizeof *row, row);
        for (size_t i = num_kept + 1; i < width; i++) row[i] = 0;
    }
    along_direction(narrow, wide, num_outputs, packed + num_kept, width);
    const size_t start = first_kernel_size(&narrow->net), wide_start = first_kernel_size(net);
    memcpy(packed + start, wide + wide_start, (net->size - wide_start) * sizeof *packed);
}

void fed_narrow_widen(const fed_narrow *narrow, const fed_net *net, const float *before,
                      const float *after, const float *server, float *wide) {
    const size_t wide_width = fed_padded(narrow->num_pixels);
    const size_t num_kept = num_kept_pixels(narrow), width = fed_padded(num_kept + 1);
    const size_t wide_start = first_kernel_size(net), num_groups = narrow->num_kept;
    const uint32_t *kept = narrow->kept_groups;
    for (size_t o = 0; o < narrow->layers[0].out.channels; o++) {
        float *weights = wide + o * wide_width;
        const float *row = after + o * width;
        const float move = row[num_kept] - before[o * width + num_kept];
        memcpy(weights, server + o * wide_width, wide_width * sizeof *weights);
        if (narrow->length != 0) net->kernels->sgd(weights, narrow->direction, wide_width, -move);
        for (size_t k = 0; k < num_groups; k++)
            memcpy(weights + kept[k] * FED_GROUP, row + k * FED_GROUP, FED_GROUP * sizeof *row);
        memcpy(weights + narrow->num_pixels - narrow->num_tail, row + num_groups * FED_GROUP,
               narrow->num_tail * sizeof *row);
    }
    memcpy(wide + wide_start, after + first_kernel_size(&narrow->net),
           (net->size - wide_start) * sizeof *wide);
}

void fed_narrow_subtract_residual(const fed_narrow *narrow, const float *vector, double distance,
                                  float *wide) {
    const size_t width = fed_padded(narrow->num_pixels);
    const float far = (float)distance;
    for (size_t o = 0; o < narrow->layers[0].out.channels; o++) {
        const float *from = vector + o * width;
        float *weights = wide + o * width;
        float along;
        along_direction(narrow, from, 1, &along, 1);
        for (size_t f = 0; f < narrow->num_fixed; f++)
            for (size_t p = 0; p < FED_GROUP; p++) {
                const size_t pixel = narrow->fixed_groups[f] * FED_GROUP + p;
                weights[pixel] -= far * (from[pixel] - along * narrow->direction[pixel]);
            }
    }
}
