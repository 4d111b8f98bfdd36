/* SPDX-License-Identifier: Apache-2.0
 * Convolutions of a group of images by Winograd's tiles. With 3x3 or 5x5 windows and stride 1,
 * F(4x4, 3x3) and F(2x2, 5x5), 36 products replace 144 or 100. With 3x3 windows and stride 2
 * (kernels/winograd_strided.inc), 81 products replace 144. The tiles of all images share the
 * transformed weights. The backward pass applies the transposed matrices of the forward pass in
 * reverse order, so that the gradient needs no border.
 *
 * Values that are transformed lie in blocks: [panels][points][tiles][16 channels]. With many
 * tiles, blocks are processed one after the other, each in the L2 cache, and the transformed
 * weights, which are four times as large as the weights of 3x3 windows, are kept. With few tiles
 * and many channels, weights are transformed when they are needed, a few channels at a time, and
 * then used by all tiles. */
#include "image_conv.h"
#include "threads.h"

#include <math.h>

/* Inputs of a tile in each direction, by stride, and the largest number of outputs and of taps. */
enum { READ = 6, STRIDED_READ = 9, MOST_SIDE = 4, MOST_TAPS = 25 };
/* A window has NUM_POINTS transformed weights. A tile has NUM_POINTS transformed values with
 * stride 1, and STRIDED_POINTS with stride 2. */
enum { NUM_POINTS = 36, STRIDED_POINTS = 81 };
enum { PANEL = FED_IMAGE_PANEL, PANEL_SQUARE = PANEL * PANEL, PAIR = 2 };

/* Sizes of blocks, in floats, tiles or panels. Blocks of the forward pass take up to 768 KiB,
 * so that they fit an L2 cache of 1 MiB; if PRODUCT_TILES tiles need more, blocks take more. The
 * backward pass needs two blocks of many tiles at once, which fit a part of an L3 cache. */
enum {
    FORWARD_FLOATS = 192 * 1024,
    BACKWARD_FLOATS = 768 * 1024,
    FEW_TILES = 96,
    PRODUCT_TILES = 42, /* a multiple of the rows of every kernel's tiles */
    WEIGHT_PANELS = 4,
};

/* Transformed values of consecutive tiles. */
typedef struct block {
    float *values;       /* [panels][points][num_rows, 16] */
    size_t first, num;   /* tiles */
    size_t num_rows;     /* even, as kernels need it; the last row is zeros if num is odd */
    size_t point, panel; /* floats from one to the next */
} block;

/* The padding avoids a power of two, with which all points would share a set of the L1 cache. */
static size_t point_floats(size_t num_values) { return num_values + FED_PAD; }

/* How the work is cut. */
typedef struct work_plan {
    size_t side, window, num_taps;  /* outputs of a tile in each direction; 3 or 5; window
                                       squared */
    size_t stride, read;            /* inputs of a tile in each direction */
    size_t num_points;              /* transformed values of a tile */
    size_t sum_point;               /* the point whose value is the sum of a tile's gradient */
    size_t down, across, num_tiles; /* tiles in an image; in all images */
    size_t in_panels, out_panels;
    int is_few;                           /* 1: weights are transformed when they are needed */
    size_t forward_tiles, backward_tiles; /* of a block */
} work_plan;

/* The point of the weights that point k of the values is multiplied by. With stride 2 these are the
 * 25, 5, 5 and 1 points of the groups in winograd_strided.inc. */
static size_t weights_point_of(const work_plan *plan, size_t k) {
    if (plan->stride == 1 || k < 25) return k;
    return k < 65 ? 25 + (k - 25) / 4 : 35;
}

static block block_of(const work_plan *plan, float *values, size_t first, size_t num) {
    block b = {.values = values, .first = first, .num = num, .num_rows = num + num % 2};
    b.point = point_floats(b.num_rows * PANEL);
    b.panel = plan->num_points * b.point;
    return b;
}

static size_t block_floats(const work_plan *plan, size_t num_tiles, size_t num_panels) {
    return num_panels * block_of(plan, NULL, 0, num_tiles).panel;
}

/* The number of tiles in a backward block: those of whole images, or of some rows of tiles of one
 * image. */
static size_t backward_tiles(const work_plan *p) {
    const size_t image = p->down * p->across;
    const size_t tile = p->num_points * PANEL * (p->in_panels + p->out_panels);
    const size_t most = BACKWARD_FLOATS / tile;
    if (p->num_tiles <= most || p->is_few) return p->num_tiles;
    if (image > most) {
        const size_t rows = most / p->across > 0 ? most / p->across : 1;
        return fed_pieces(p->down, fed_pieces(p->down, rows)) * p->across;
    }
    const size_t num_images = p->num_tiles / image, at_once = most / image;
    return fed_pieces(num_images, fed_pieces(num_images, at_once)) * image;
}

static work_plan plan_of(const fed_image_conv *conv) {
    const size_t window = conv->window_height, is_strided = conv->stride_y > 1;
    const size_t read = is_strided ? STRIDED_READ : READ;
    const size_t side = (read - window) / conv->stride_y + 1;
    work_plan p = {.side = side,
                   .window = window,
                   .num_taps = window * window,
                   .stride = conv->stride_y,
                   .read = read,
                   .num_points = is_strided ? STRIDED_POINTS : NUM_POINTS,
                   .sum_point = is_strided ? 6 : 7,
                   .down = fed_pieces(conv->out_shape.height, side),
                   .across = fed_pieces(conv->out_shape.width, side),
                   .in_panels = fed_padded(conv->in_shape.channels) / PANEL,
                   .out_panels = fed_padded(conv->out_shape.channels) / PANEL};
    p.num_tiles = conv->num_images * p.down * p.across;
    p.is_few = p.num_tiles <= FEW_TILES;
    const size_t tile = p.num_points * PANEL * (p.in_panels + fed_smaller(p.out_panels, PAIR));
    const size_t most = FORWARD_FLOATS / tile / PRODUCT_TILES * PRODUCT_TILES;
    p.forward_tiles =
        p.is_few ? p.num_tiles : fed_smaller(p.num_tiles, most > 0 ? most : (size_t)PRODUCT_TILES);
    p.backward_tiles = backward_tiles(&p);
    return p;
}

/* One direction of products: forward from inputs to outputs, backward the other way. */
typedef struct pass {
    const fed_kernels *kernels;
    const fed_image_conv *conv;
    const fed_image_conv_io *io;
    work_plan plan;
    int is_backward;
    size_t num_inputs, num_outputs; /* panels of the products */
    size_t weights_point, weights_panel;
    float *weights;          /* all transformed weights, or NULL with few tiles */
    block inputs, gradients; /* transformed; gradients only in the backward pass */
    float *weights_points;   /* gradient of `weights`, if there are several blocks */
    int is_first, is_last;   /* 1: it is the first block; the last block */
    float *shared;           /* scratch of the workers, worker_floats each */
    size_t worker_floats;
} pass;

/* ---- Tiles ----------------------------------------------------------------------------------- */

/* Adjacent tiles of one row: whole tiles, or a single tile that the image's border cuts. */
typedef struct strip {
    size_t first, num;         /* counted from the first tile of the group */
    size_t image, row, column; /* of the first tile */
    size_t height, width;      /* of the outputs of a tile */
    int is_cut;
} strip;

static strip strip_at(const pass *p, size_t tile, size_t end) {
    const work_plan *plan = &p->plan;
    const size_t image = plan->down * plan->across, rest = tile % image;
    strip s = {.first = tile,
               .image = tile / image,
               .row = rest / plan->across,
               .column = rest % plan->across};
    const fed_shape *shape = &p->conv->out_shape;
    const size_t side = plan->side;
    s.height = fed_smaller(side, shape->height - s.row * side);
    s.num = fed_smaller(plan->across - s.column, end - tile);
    s.width = fed_smaller(side, shape->width - s.column * side);
    s.is_cut = s.height < side || s.width < side;
    if (s.is_cut) s.num = 1;
    /* The last tile of a row may be cut at the right: it is a strip of its own. */
    if (!s.is_cut) s.num = fed_smaller(s.num, shape->width / side - s.column);
    return s;
}

/* The offset of a strip's first input, or output. */
static size_t input_offset(const pass *p, const strip *s) {
    const fed_buffer *in = &p->conv->in;
    const size_t step = p->plan.side * p->plan.stride;
    return s->image * in->num_values + in->origin + s->row * step * in->row_stride +
           s->column * step * in->pixel_stride - p->conv->pad_top * in->row_stride -
           p->conv->pad_left * in->pixel_stride;
}

static size_t output_offset(const pass *p, const strip *s) {
    return s->image * p->conv->out.num_values +
           fed_pixel(&p->conv->out, s->row * p->plan.side, s->column * p->plan.side);
}

/* Describes a strip of a block to the kernels. offset_of is input_offset or output_offset: the
 * pixels of the strip that follows are fetched; after the last strip the first one follows, in the
 * next panel. Cut tiles are copied and fetch nothing. */
static fed_tile_row row_of(const pass *p, const block *b, const strip *s,
                           size_t (*offset_of)(const pass *, const strip *)) {
    fed_tile_row row = {.side = p->plan.side, .num_tiles = s->num, .point_stride = b->point};
    if (s->is_cut) return row;
    const size_t after = s->first + s->num, end = b->first + b->num;
    const strip next = strip_at(p, after < end ? after : b->first, end);
    row.next = (ptrdiff_t)offset_of(p, &next) - (ptrdiff_t)offset_of(p, s);
    if (after == end) row.next += PANEL;
    return row;
}

/* Copies a cut tile's pixels of one panel; the rest of the tile becomes zeros. */
static void copy_pixels(const fed_buffer *buffer, const float *from, size_t height, size_t width,
                        size_t side, float *to /* out [side][side][16] */) {
    memset(to, 0, side * side * PANEL * sizeof *to);
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++)
            memcpy(to + (y * side + x) * PANEL,
                   from + y * buffer->row_stride + x * buffer->pixel_stride, PANEL * sizeof *to);
}

/* Clears the row after an odd number of tiles. */
static void clear_padding(const pass *p, const block *b, size_t panel) {
    for (size_t k = 0; b->num < b->num_rows && k < p->plan.num_points; k++)
        memset(b->values + panel * b->panel + k * b->point + b->num * PANEL, 0,
               PANEL * sizeof *b->values);
}

/* The number of inputs, in one direction, of adjacent outputs. */
static size_t inputs_of(const work_plan *plan, size_t num_outputs) {
    return (num_outputs - 1) * plan->stride + plan->window;
}

static void transform_inputs(const pass *p, const block *b, size_t panel) {
    const fed_buffer *in = &p->conv->in;
    strip s;
    for (size_t t = b->first; t < b->first + b->num; t += s.num) {
        s = strip_at(p, t, b->first + b->num);
        const fed_tile_row row = row_of(p, b, &s, input_offset);
        const float *from = p->io->in + input_offset(p, &s) + panel * PANEL;
        float *to = b->values + panel * b->panel + (t - b->first) * PANEL;
        size_t row_stride = in->row_stride, pixel_stride = in->pixel_stride;
        float tile[STRIDED_READ * STRIDED_READ * PANEL];
        if (s.is_cut) {
            copy_pixels(in, from, inputs_of(&p->plan, s.height), inputs_of(&p->plan, s.width),
                        p->plan.read, tile);
            from = tile, row_stride = p->plan.read * PANEL, pixel_stride = PANEL;
        }
        if (p->plan.stride == 1)
            p->kernels->winograd_inputs(&row, from, row_stride, pixel_stride, PANEL, to);
        else
            p->kernels->strided_inputs(&row, from, row_stride, pixel_stride, to);
    }
    clear_padding(p, b, panel);
}

static void transform_gradients(const pass *p, const block *b, size_t panel) {
    const fed_buffer *out = &p->conv->out;
    strip s;
    for (size_t t = b->first; t < b->first + b->num; t += s.num) {
        s = strip_at(p, t, b->first + b->num);
        const fed_tile_row row = row_of(p, b, &s, output_offset);
        const float *from = p->io->out_gradient + output_offset(p, &s) + panel * PANEL;
        float *to = b->values + panel * b->panel + (t - b->first) * PANEL;
        size_t row_stride = out->row_stride, pixel_stride = out->pixel_stride;
        float tile[MOST_SIDE * MOST_SIDE * PANEL];
        if (s.is_cut) {
            copy_pixels(out, from, s.height, s.width, p->plan.side, tile);
            from = tile, row_stride = p->plan.side * PANEL, pixel_stride = PANEL;
        }
        if (p->plan.stride == 1)
            p->kernels->winograd_outputs_gradient(&row, from, row_stride, pixel_stride, to);
        else
            p->kernels->strided_outputs_gradient(&row, from, row_stride, pixel_stride, to);
    }
    clear_padding(p, b, panel);
}

/* Transforms the products of a panel, [points][rows, 16], back to the outputs of the block's tiles.
 */
static void put_outputs(const pass *p, const block *products, size_t panel) {
    static const float no_bias[PANEL];
    const fed_buffer *out = &p->conv->out;
    const float *bias = p->io->bias != NULL ? p->io->bias + panel * PANEL : no_bias;
    strip s;
    for (size_t t = products->first; t < products->first + products->num; t += s.num) {
        s = strip_at(p, t, products->first + products->num);
        const fed_tile_row row = row_of(p, products, &s, output_offset);
        float *to = p->io->out + output_offset(p, &s) + panel * PANEL;
        float tile[MOST_SIDE * MOST_SIDE * PANEL];
        fed_cells cells = {.out = to, .step = out->pixel_stride, .row_stride = out->row_stride};
        if (s.is_cut)
            cells = (fed_cells){.out = tile, .step = PANEL, .row_stride = p->plan.side * PANEL};
        const float *from = products->values + (t - products->first) * PANEL;
        if (p->plan.stride == 1)
            p->kernels->winograd_outputs(&row, from, PANEL, bias, p->conv->least, &cells);
        else
            p->kernels->strided_outputs(&row, from, bias, p->conv->least, &cells);
        for (size_t y = 0; s.is_cut && y < s.height; y++)
            for (size_t x = 0; x < s.width; x++)
                memcpy(to + y * out->row_stride + x * out->pixel_stride,
                       tile + (y * p->plan.side + x) * PANEL, PANEL * sizeof *to);
    }
}

/* Adds a cut tile's pixels to the pixels that tiles above and left of it have written. */
static void add_pixels(const pass *p, const strip *s, const float *from, float *to) {
    const fed_buffer *in = &p->conv->in;
    /* Rows or columns that neighbouring tiles share. */
    const size_t shared = p->plan.window - p->plan.stride;
    for (size_t y = 0; y < inputs_of(&p->plan, s->height); y++)
        for (size_t x = 0; x < inputs_of(&p->plan, s->width); x++) {
            float *pixel = to + y * in->row_stride + x * in->pixel_stride;
            const float *value = from + (y * p->plan.read + x) * PANEL;
            const int is_written = (s->row > 0 && y < shared) || (s->column > 0 && x < shared);
            for (size_t c = 0; c < PANEL; c++)
                pixel[c] = is_written ? pixel[c] + value[c] : value[c];
        }
}

static void put_inputs_gradient(const pass *p, const block *products, size_t panel) {
    const fed_buffer *in = &p->conv->in;
    void (*inputs_gradient)(const fed_tile_row *, const float *, int, int, float *, size_t,
                            size_t) = p->plan.stride == 1 ? p->kernels->winograd_inputs_gradient
                                                          : p->kernels->strided_inputs_gradient;
    strip s;
    for (size_t t = products->first; t < products->first + products->num; t += s.num) {
        s = strip_at(p, t, products->first + products->num);
        const fed_tile_row row = row_of(p, products, &s, input_offset);
        const float *from = products->values + (t - products->first) * PANEL;
        float *to = p->io->in_gradient + input_offset(p, &s) + panel * PANEL;
        float tile[STRIDED_READ * STRIDED_READ * PANEL];
        if (s.is_cut) {
            inputs_gradient(&row, from, 0, 0, tile, p->plan.read * PANEL, PANEL);
            add_pixels(p, &s, tile, to);
        } else {
            inputs_gradient(&row, from, s.row > 0, s.column > 0, to, in->row_stride,
                            in->pixel_stride);
        }
    }
}

/* ---- Products -------------------------------------------------------------------------------- */

/* A worker's scratch holds transformed weights of a pair of panels (points_floats; the gradient by
 * the weights uses the same memory), weights to transform (TAPS_FLOATS), and products. */
static size_t points_floats(void) {
    return PAIR * NUM_POINTS * point_floats(WEIGHT_PANELS * PANEL_SQUARE);
}
enum { TAPS_FLOATS = MOST_TAPS * WEIGHT_PANELS * PANEL_SQUARE };

/* The offset of the weights between one panel of inputs and one panel of outputs, for one tap. They
 * are contiguous. */
static size_t square_offset(const work_plan *plan, size_t output, size_t input, size_t tap) {
    return ((output * plan->num_taps + tap) * plan->in_panels + input) * PANEL_SQUARE;
}

/* Transforms the weights of one panel of outputs and some panels of inputs. */
static void transform_weights(const pass *p, size_t output, size_t first, size_t num, float *taps,
                              float *points, size_t point_stride) {
    const size_t num_values = num * PANEL_SQUARE;
    size_t tap_stride = num_values;
    const float *from = taps;
    if (!p->is_backward) {
        from = p->io->weights + square_offset(&p->plan, output, first, 0);
        tap_stride = p->plan.in_panels * PANEL_SQUARE;
    }
    for (size_t i = 0; p->is_backward && i < num; i++)
        for (size_t k = 0; k < p->plan.num_taps; k++)
            p->kernels->transpose(p->io->weights + square_offset(&p->plan, first + i, output, k),
                                  NULL, PANEL, PANEL, PANEL,
                                  taps + k * num_values + i * PANEL_SQUARE, PANEL);
    if (p->plan.stride == 1)
        p->kernels->winograd_weights(from, p->plan.window, tap_stride, num_values, points,
                                     point_stride);
    else
        p->kernels->strided_weights(from, tap_stride, num_values, points, point_stride);
}

/* Fetches a 36th of some panels of weights, or of their gradient, into the L2 cache. */
static void fetch_weights(const work_plan *plan, const float *weights, size_t output,
                          size_t num_outputs, size_t input, size_t num_inputs, size_t point) {
    const size_t num_taps = plan->num_taps;
    for (size_t i = point; i < num_outputs * num_inputs * num_taps; i += NUM_POINTS) {
        const size_t o = output + i / num_taps / num_inputs, in = input + i / num_taps % num_inputs;
        const float *square = weights + square_offset(plan, o, in, i % num_taps);
        for (size_t v = 0; v < PANEL_SQUARE; v += FED_PAD) __builtin_prefetch(square + v, 0, 2);
    }
}

/* Fetches a 36th of the weights that transform_weights will read. */
static void fetch_next(const pass *p, size_t output, size_t input, size_t point) {
    if (output >= p->num_outputs) return;
    const size_t num_outputs = fed_smaller(PAIR, p->num_outputs - output);
    const size_t num_inputs = fed_smaller(WEIGHT_PANELS, p->num_inputs - input);
    if (p->is_backward)
        fetch_weights(&p->plan, p->io->weights, input, num_inputs, output, num_outputs, point);
    else
        fetch_weights(&p->plan, p->io->weights, output, num_outputs, input, num_inputs, point);
}

static float *scratch_of(const pass *p, int worker) {
    return p->shared + (size_t)worker * p->worker_floats;
}

/* A part: all transformed weights of one panel of outputs. */
static void transform_part(void *context, size_t part, int worker) {
    const pass *p = context;
    for (size_t i = 0; i < p->num_inputs; i += WEIGHT_PANELS)
        transform_weights(
            p, part, i, fed_smaller(WEIGHT_PANELS, p->num_inputs - i), scratch_of(p, worker),
            p->weights + part * p->weights_panel + i * PANEL_SQUARE, p->weights_point);
}

/* Computes the products at all points. */
static void multiply_points(const pass *p, const fed_products *at, size_t out_point) {
    fed_products one = *at;
    for (size_t k = 0; k < p->plan.num_points; k++) {
        one.weights = at->weights + weights_point_of(&p->plan, k) * at->weights_point;
        p->kernels->products(&one);
        one.rows += at->rows_point;
        one.out += out_point;
    }
}

/* Computes the products with some inputs at a time: transforms their weights, and then multiplies.
 * Meanwhile it fetches the weights of the next inputs. */
static void multiply_just_in_time(const pass *p, const fed_products *at, size_t out_point,
                                  size_t output, float *points, float *taps) {
    fed_products all = *at;
    for (size_t i = 0; i < p->num_inputs; i += WEIGHT_PANELS) {
        all.num_inputs = fed_smaller(WEIGHT_PANELS, p->num_inputs - i);
        all.weights_point = point_floats(all.num_inputs * PANEL_SQUARE);
        all.weights_panel = NUM_POINTS * all.weights_point;
        for (size_t o = 0; o < at->num_outputs; o++)
            transform_weights(p, output + o, i, all.num_inputs, taps,
                              points + o * all.weights_panel, all.weights_point);
        const int is_last = i + WEIGHT_PANELS >= p->num_inputs;
        const size_t next = is_last ? 0 : i + WEIGHT_PANELS;
        const size_t next_output = is_last ? output + PAIR : output;
        for (size_t k = 0; k < p->plan.num_points; k++) {
            if (k < NUM_POINTS) fetch_next(p, next_output, next, k);
            fed_products one = all;
            one.is_added = i > 0;
            one.rows += i * all.rows_panel + k * all.rows_point;
            one.weights = points + weights_point_of(&p->plan, k) * all.weights_point;
            one.out += k * out_point;
            p->kernels->products(&one);
        }
    }
}

/* Multiplies a block, or some of its tiles, by a pair of panels (the last panel may be alone), and
 * transforms the products back. */
static void multiply(const pass *p, const block *rows, size_t output, size_t first, size_t num,
                     int worker) {
    const size_t num_outputs = fed_smaller(PAIR, p->num_outputs - output);
    float *points = scratch_of(p, worker), *taps = points + points_floats();
    const block out = block_of(&p->plan, taps + TAPS_FLOATS, first, num);
    const fed_products at = {.num_rows = out.num_rows,
                             .num_inputs = p->num_inputs,
                             .num_outputs = num_outputs,
                             .rows = rows->values + (first - rows->first) * PANEL,
                             .rows_panel = rows->panel,
                             .rows_point = rows->point,
                             .weights =
                                 p->weights == NULL ? NULL : p->weights + output * p->weights_panel,
                             .weights_panel = p->weights_panel,
                             .weights_point = p->weights_point,
                             .out = out.values,
                             .out_panel = out.panel};
    if (p->weights != NULL) {
        multiply_points(p, &at, out.point);
    } else {
        multiply_just_in_time(p, &at, out.point, output, points, taps);
    }
    for (size_t o = 0; o < num_outputs; o++) {
        block panel = out;
        panel.values += o * out.panel;
        if (p->is_backward)
            put_inputs_gradient(p, &panel, output + o);
        else
            put_outputs(p, &panel, output + o);
    }
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* With few tiles there are two kinds of parts: the inputs of a panel, and a pair of panels of
 * outputs. */
static void inputs_part(void *context, size_t part, int worker) {
    (void)worker;
    const pass *p = context;
    transform_inputs(p, &p->inputs, part);
}

static void outputs_part(void *context, size_t part, int worker) {
    const pass *p = context;
    multiply(p, &p->inputs, part * PAIR, p->inputs.first, p->inputs.num, worker);
}

/* With many tiles, a part is a block of tiles. */
static void block_part(void *context, size_t part, int worker) {
    const pass *p = context;
    const size_t most = p->plan.forward_tiles, first = part * most;
    const size_t products = points_floats() + TAPS_FLOATS + block_floats(&p->plan, most, PAIR);
    const block inputs = block_of(&p->plan, scratch_of(p, worker) + products, first,
                                  fed_smaller(most, p->plan.num_tiles - first));
    for (size_t c = 0; c < p->num_inputs; c++) transform_inputs(p, &inputs, c);
    for (size_t o = 0; o < p->num_outputs; o += PAIR)
        multiply(p, &inputs, o, first, inputs.num, worker);
}

static pass forward_pass(const fed_image_conv *conv) {
    pass p = {.conv = conv, .plan = plan_of(conv)};
    p.num_inputs = p.plan.in_panels, p.num_outputs = p.plan.out_panels;
    p.weights_point = point_floats(p.num_inputs * PANEL_SQUARE);
    p.weights_panel = NUM_POINTS * p.weights_point;
    p.worker_floats =
        points_floats() + TAPS_FLOATS + block_floats(&p.plan, p.plan.forward_tiles, PAIR);
    if (!p.plan.is_few)
        p.worker_floats += block_floats(&p.plan, p.plan.forward_tiles, p.num_inputs);
    return p;
}

static void forward(const fed_kernels *kernels, const fed_image_conv *conv,
                    const fed_image_conv_io *io) {
    pass p = forward_pass(conv);
    p.kernels = kernels, p.io = io;
    float *rest = io->scratch + (size_t)io->num_workers * p.worker_floats;
    p.shared = io->scratch;
    if (p.plan.is_few) {
        p.inputs = block_of(&p.plan, rest, 0, p.plan.num_tiles);
        fed_share(io->num_workers, p.num_inputs, inputs_part, &p);
        fed_share(io->num_workers, fed_pieces(p.num_outputs, PAIR), outputs_part, &p);
    } else {
        p.weights = rest;
        fed_share(io->num_workers, p.num_outputs, transform_part, &p);
        fed_share(io->num_workers, fed_pieces(p.plan.num_tiles, p.plan.forward_tiles), block_part,
                  &p);
    }
}

static size_t forward_floats(const fed_image_conv *conv, int num_workers) {
    const pass p = forward_pass(conv);
    return (size_t)num_workers * p.worker_floats +
           (p.plan.is_few ? block_floats(&p.plan, p.plan.num_tiles, p.num_inputs)
                          : p.num_outputs * p.weights_panel);
}

/* ---- Backward -------------------------------------------------------------------------------- */

static void add_bias_gradient(const pass *p, size_t panel) {
    const block *b = &p->gradients;
    const float *rows = b->values + panel * b->panel + p->plan.sum_point * b->point;
    float sums[PANEL] = {0};
    for (size_t t = 0; t < b->num; t++)
        for (size_t c = 0; c < PANEL; c++) sums[c] += rows[t * PANEL + c];
    for (size_t c = 0; c < PANEL; c++) p->io->bias_gradient[panel * PANEL + c] += sums[c];
}

/* A part: a panel of the inputs, or of the gradient by the outputs. */
static void operands_part(void *context, size_t part, int worker) {
    (void)worker;
    const pass *p = context;
    if (part < p->plan.in_panels) {
        transform_inputs(p, &p->inputs, part);
        return;
    }
    const size_t panel = part - p->plan.in_panels;
    transform_gradients(p, &p->gradients, panel);
    if (p->io->bias_gradient != NULL) add_bias_gradient(p, panel);
}

static size_t weight_parts(const work_plan *plan) {
    return fed_pieces(plan->out_panels, PAIR) * fed_pieces(plan->in_panels, WEIGHT_PANELS);
}

/* 1 if an earlier point has the same point of the weights. */
static int is_repeated(const work_plan *plan, size_t k) {
    return k > 0 && weights_point_of(plan, k) == weights_point_of(plan, k - 1);
}

/* A part: the gradient by the weights between a pair of panels of outputs and some panels of
 * inputs. */
static void weights_part(const pass *p, size_t part, int worker) {
    const work_plan *plan = &p->plan;
    const size_t num_chunks = fed_pieces(plan->in_panels, WEIGHT_PANELS);
    const size_t output = part / num_chunks * PAIR, input = part % num_chunks * WEIGHT_PANELS;
    const size_t num_outputs = fed_smaller(PAIR, plan->out_panels - output);
    const size_t num_inputs = fed_smaller(WEIGHT_PANELS, plan->in_panels - input);
    fed_products_gradient at = {
        .num_rows = p->inputs.num,
        .num_inputs = num_inputs,
        .num_outputs = num_outputs,
        .rows = p->inputs.values + input * p->inputs.panel,
        .rows_panel = p->inputs.panel,
        .rows_point = p->inputs.point,
        .gradient = p->gradients.values + output * p->gradients.panel,
        .gradient_panel = p->gradients.panel,
        .gradient_point = p->gradients.point,
        .out = scratch_of(p, worker),
    };
    size_t out_point = point_floats(num_inputs * PANEL_SQUARE);
    if (p->weights_points != NULL) {
        out_point = point_floats(plan->in_panels * PANEL_SQUARE);
        at.out = p->weights_points + output * NUM_POINTS * out_point + input * PANEL_SQUARE;
    }
    at.out_panel = NUM_POINTS * out_point;
    fed_products_gradient one = at;
    for (size_t k = 0; k < plan->num_points; k++) {
        if (p->is_last && k < NUM_POINTS)
            fetch_weights(plan, p->io->weights_gradient, output, num_outputs, input, num_inputs, k);
        one.is_added = !p->is_first || is_repeated(plan, k);
        one.out = at.out + weights_point_of(plan, k) * out_point;
        p->kernels->products_gradient(&one);
        one.rows += p->inputs.point;
        one.gradient += p->gradients.point;
    }
    for (size_t o = 0; p->is_last && o < num_outputs; o++) {
        const float *points = at.out + o * at.out_panel;
        float *taps = p->io->weights_gradient + square_offset(plan, output + o, input, 0);
        const size_t num_values = num_inputs * PANEL_SQUARE;
        const size_t tap_stride = plan->in_panels * PANEL_SQUARE;
        if (plan->stride == 1)
            p->kernels->winograd_weights_gradient(points, out_point, plan->window, num_values, taps,
                                                  tap_stride);
        else
            p->kernels->strided_weights_gradient(points, out_point, num_values, taps, tap_stride);
    }
}

/* The number of images in a backward block; 1 if the block is a part of an image. Threads may take
 * different images at the same time, because their tiles do not overlap. */
static size_t images_in(const work_plan *plan, size_t num_tiles) {
    const size_t image = plan->down * plan->across;
    return num_tiles < image ? 1 : num_tiles / image;
}

/* A part: the gradient by the inputs for a pair of panels. It covers one image, or all images if
 * there are few tiles. */
static void inputs_gradient_part(const pass *p, size_t part, int worker) {
    const block *rows = &p->gradients;
    const size_t num_images = p->plan.is_few ? 1 : images_in(&p->plan, rows->num);
    const size_t output = part / num_images * PAIR, num = rows->num / num_images;
    const size_t first = rows->first + part % num_images * num;
    const size_t most = p->plan.is_few ? num : fed_pieces(num, fed_pieces(num, PRODUCT_TILES));
    for (size_t t = 0; t < num; t += most)
        multiply(p, rows, output, first + t, fed_smaller(most, num - t), worker);
}

static void backward_part(void *context, size_t part, int worker) {
    const pass *p = context;
    const size_t num = weight_parts(&p->plan);
    if (part < num)
        weights_part(p, part, worker);
    else
        inputs_gradient_part(p, part - num, worker);
}

static pass backward_pass(const fed_image_conv *conv) {
    pass p = {.conv = conv, .plan = plan_of(conv), .is_backward = 1};
    p.num_inputs = p.plan.out_panels, p.num_outputs = p.plan.in_panels;
    p.weights_point = point_floats(p.num_inputs * PANEL_SQUARE);
    p.weights_panel = NUM_POINTS * p.weights_point;
    const size_t tiles = p.plan.is_few ? p.plan.num_tiles : (size_t)PRODUCT_TILES;
    p.worker_floats = points_floats() + TAPS_FLOATS + block_floats(&p.plan, tiles, PAIR);
    return p;
}

static size_t backward_floats(const fed_image_conv *conv, int num_workers) {
    const pass p = backward_pass(conv);
    const work_plan *plan = &p.plan;
    size_t floats = (size_t)num_workers * p.worker_floats +
                    block_floats(plan, plan->backward_tiles, plan->in_panels + plan->out_panels);
    if (!plan->is_few) floats += p.num_outputs * p.weights_panel;
    if (plan->backward_tiles < plan->num_tiles)
        floats += plan->out_panels * NUM_POINTS * point_floats(plan->in_panels * PANEL_SQUARE);
    return floats;
}

static void backward(const fed_kernels *kernels, const fed_image_conv *conv,
                     const fed_image_conv_io *io) {
    pass p = backward_pass(conv);
    const work_plan *plan = &p.plan;
    p.kernels = kernels, p.io = io, p.shared = io->scratch;
    float *inputs = io->scratch + (size_t)io->num_workers * p.worker_floats;
    float *gradients = inputs + block_floats(plan, plan->backward_tiles, plan->in_panels);
    float *rest = gradients + block_floats(plan, plan->backward_tiles, plan->out_panels);
    if (!plan->is_few && io->in_gradient != NULL) {
        p.weights = rest;
        fed_share(io->num_workers, p.num_outputs, transform_part, &p);
    }
    if (!plan->is_few) rest += p.num_outputs * p.weights_panel;
    if (plan->backward_tiles < plan->num_tiles) p.weights_points = rest;
    for (size_t t = 0, num; t < plan->num_tiles; t += num) {
        /* A block that is a part of an image does not reach into the next image. */
        const size_t image = plan->down * plan->across;
        num = fed_smaller(plan->backward_tiles, plan->num_tiles - t);
        if (num < image) num = fed_smaller(num, image - t % image);
        p.inputs = block_of(plan, inputs, t, num);
        p.gradients = block_of(plan, gradients, t, num);
        p.is_first = t == 0, p.is_last = t + num == plan->num_tiles;
        fed_share(io->num_workers, plan->in_panels + plan->out_panels, operands_part, &p);
        size_t num_parts = weight_parts(plan);
        if (io->in_gradient != NULL)
            num_parts +=
                fed_pieces(p.num_outputs, PAIR) * (plan->is_few ? 1 : images_in(plan, num));
        fed_share(io->num_workers, num_parts, backward_part, &p);
    }
}

/* ---- The method ------------------------------------------------------------------------------ */

/* 1 if windows cover all rows or columns of the inputs. The others would get no gradient. */
static int covers(const fed_image_conv *conv, size_t size, size_t pad, size_t num_outputs) {
    return (num_outputs - 1) * conv->stride_y + conv->window_height >= pad + size;
}

/* With stride 2, many outputs of cut tiles would be computed in vain. */
static int fits_strided(const fed_image_conv *conv) {
    const fed_shape *in = &conv->in_shape, *out = &conv->out_shape;
    if (conv->window_height != 3 || conv->stride_y != 2 ||
        !covers(conv, in->height, conv->pad_top, out->height) ||
        !covers(conv, in->width, conv->pad_left, out->width))
        return 0;
    const work_plan p = plan_of(conv);
    const size_t num_products = p.down * p.across * STRIDED_POINTS;
    return 4 * num_products <= 3 * out->height * out->width * p.num_taps;
}

static int fits(const fed_image_conv *conv) {
    if (conv->window_width != conv->window_height || conv->stride_x != conv->stride_y ||
        conv->in.pixel_stride % PANEL != 0)
        return 0;
    if (conv->stride_y > 1) return fits_strided(conv);
    return conv->window_height == 3 || conv->window_height == 5;
}

static size_t scratch_floats(const fed_image_conv *conv, int num_workers) {
    const size_t a = forward_floats(conv, num_workers), b = backward_floats(conv, num_workers);
    return a > b ? a : b;
}

const fed_image_conv_method fed_image_winograd = {
    .fits = fits, .scratch_floats = scratch_floats, .forward = forward, .backward = backward};
