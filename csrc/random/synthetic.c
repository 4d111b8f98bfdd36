/* SPDX-License-Identifier: Apache-2.0
 *
 * The dataset synthetic-digits/v1: handwritten digits of invented writers. A writer is a pure
 * function of (seed, client) and an image of (seed, client, split, index), so images can be drawn
 * in any order and by any number of threads. A digit consists of a few curves through control
 * points. The writer, and then each image, displaces these points. The shape is bent and placed;
 * the ink of a pixel depends on its distance to the nearest curve.
 *
 * There are no fused multiply-adds (it is built with -ffp-contract=off), so machines can only
 * differ by the last bit of their libm.
 */
#include "fed.h"
#include "glyphs.h"

#include <math.h>

#define PI 3.14159265358979323846

enum { SIDE = FED_SYNTHETIC_SIDE, MAX_EXAMPLES = 400, NUM_CENTRAL_EXAMPLES = 100 };

/* Beyond this spread digits are unreadable; far beyond it coordinates would overflow float. */
static const double MAX_STYLE_SPREAD = 10.0;

/* Purposes of streams; those of seeds.Purpose in Python are below 16. */
enum purpose { PURPOSE_WRITER = 16, PURPOSE_IMAGE = 17, PURPOSE_SIZE = 18, PURPOSE_LABELS = 19 };

typedef struct point {
    double x, y;
} point;

/* ---- Numbers of examples --------------------------------------------------------------------- */

static int is_valid(const fed_synthetic *options, int split) {
    /* A NaN fails these comparisons. */
    return options->style_spread >= 0.0 && options->style_spread <= MAX_STYLE_SPREAD &&
           options->label_noise >= 0.0 && options->label_noise <= 1.0 &&
           (options->sizes == FED_SIZES_NATURAL || options->sizes == FED_SIZES_SKEWED) &&
           (split == FED_SPLIT_TRAIN || split == FED_SPLIT_TEST || split == FED_SPLIT_CENTRAL);
}

static double clip(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

/* Natural sizes follow the digits of FEMNIST: mean 100, standard deviation 15, a tail of small
 * ones. */
static size_t draw_num_examples(const fed_synthetic *options, uint64_t client) {
    const fed_key key = {.seed = options->seed, .client = client, .purpose = PURPOSE_SIZE};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    if (options->sizes == FED_SIZES_NATURAL) {
        return (size_t)clip(rint(117.5 - 12.4 * fed_rng_gamma(&rng, 1.4)), 8.0, 131.0);
    }
    const double log_normal = 80.0 * exp(0.6 * fed_rng_normal(&rng));
    return (size_t)clip(rint(log_normal), 10.0, (double)MAX_EXAMPLES);
}

/* A tenth of a client's examples, rounded to the nearest, at least one. */
static size_t num_test_examples(size_t num_examples) {
    const size_t num_test = (size_t)rint(0.1 * (double)num_examples);
    return num_test > 1 ? num_test : 1;
}

size_t fed_synthetic_count(const fed_synthetic *options, uint64_t client, int split) {
    if (!is_valid(options, split)) {
        return 0;
    }
    if (split == FED_SPLIT_CENTRAL) {
        return NUM_CENTRAL_EXAMPLES;
    }
    const size_t num_examples = draw_num_examples(options, client);
    const size_t num_test = num_test_examples(num_examples);
    return split == FED_SPLIT_TEST ? num_test : num_examples - num_test;
}

/* ---- Labels ---------------------------------------------------------------------------------- */

static uint8_t pick(fed_rng *rng, const double *weights /* [num_weights] */, size_t num_weights) {
    double total = 0.0;
    for (size_t i = 0; i < num_weights; i++) {
        total += weights[i];
    }
    double left = fed_rng_uniform(rng) * total;
    size_t choice = 0;
    while (choice + 1 < num_weights && left >= weights[choice]) {
        left -= weights[choice++];
    }
    return (uint8_t)choice;
}

/* Draws labels 0-9 in equal numbers, shuffled. The first digit is random, so that no digit is
 * favoured if the number of labels is not a multiple of ten. */
static void deal_even_labels(fed_rng *rng, uint8_t *labels /* out [num_labels] */,
                             size_t num_labels) {
    const size_t first_digit = fed_rng_below(rng, NUM_DIGITS);
    for (size_t i = 0; i < num_labels; i++) {
        labels[i] = (uint8_t)((first_digit + i) % NUM_DIGITS);
    }
    for (size_t num_left = num_labels; num_left > 1; num_left--) {
        const size_t other = fed_rng_below(rng, (uint32_t)num_left);
        const uint8_t label = labels[other];
        labels[other] = labels[num_left - 1];
        labels[num_left - 1] = label;
    }
}

/* Draws labels from a client's own distribution, which is drawn from Dir(1), uniform over all
 * distributions. */
static void deal_skewed_labels(fed_rng *rng, uint8_t *labels /* out [num_labels] */,
                               size_t num_labels) {
    double weights[NUM_DIGITS];
    for (size_t k = 0; k < NUM_DIGITS; k++) {
        weights[k] = fed_rng_gamma(rng, 1.0);
    }
    for (size_t i = 0; i < num_labels; i++) {
        labels[i] = pick(rng, weights, NUM_DIGITS);
    }
}

/* Draws the labels of train and test together, train first. Returns the index at which the split
 * begins. */
static size_t deal_labels(const fed_synthetic *options, uint64_t client, int split,
                          uint8_t labels[MAX_EXAMPLES]) {
    const int is_central = split == FED_SPLIT_CENTRAL;
    const fed_key key = {.seed = options->seed,
                         .client = client,
                         .purpose = PURPOSE_LABELS,
                         .occurrence = (uint64_t)is_central};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    const size_t num_examples =
        is_central ? NUM_CENTRAL_EXAMPLES : draw_num_examples(options, client);
    if (is_central || options->sizes == FED_SIZES_NATURAL) {
        deal_even_labels(&rng, labels, num_examples);
    } else {
        deal_skewed_labels(&rng, labels, num_examples);
    }
    return split == FED_SPLIT_TEST ? num_examples - num_test_examples(num_examples) : 0;
}

/* ---- Writers --------------------------------------------------------------------------------- */

/* How one person writes. Lengths are in pixels unless said otherwise. */
typedef struct writer {
    double spread;         /* style_spread of the options, for the variation between images */
    double slant;          /* shift to the right per pixel of height */
    double rotation;       /* radians */
    double height, aspect; /* aspect: width over height */
    double stroke_width, edge_softness;
    double darkness;     /* of full ink, 0..1 */
    point centre;        /* off the middle of the image */
    double unsteadiness; /* deviation of a control point from image to image, in glyph boxes */
    double preferences[NUM_GLYPHS];        /* relative weights among the allographs of a digit */
    point offsets[NUM_GLYPHS][MAX_POINTS]; /* of the writer's control points, in glyph boxes */
} writer;

static double normal(fed_rng *rng, double mean, double deviation) {
    return mean + deviation * fed_rng_normal(rng);
}

static double uniform(fed_rng *rng, double low, double high) {
    return low + (high - low) * fed_rng_uniform(rng);
}

static point normal_point(fed_rng *rng, double deviation) {
    const double x = normal(rng, 0.0, deviation);
    const double y = normal(rng, 0.0, deviation);
    return (point){x, y};
}

static size_t num_points(const glyph *shape) { return shape->stroke_ends[shape->num_strokes - 1]; }

static void draw_writer(writer *hand /* out */, const fed_synthetic *options, uint64_t client) {
    const fed_key key = {.seed = options->seed, .client = client, .purpose = PURPOSE_WRITER};
    const double spread = options->style_spread;
    fed_rng rng;
    fed_rng_init(&rng, &key);
    hand->spread = spread;
    hand->slant = clip(normal(&rng, 0.12, 0.18 * spread), -0.5, 0.6);
    hand->rotation = normal(&rng, 0.0, 4.0 * spread) * PI / 180.0;
    hand->height = uniform(&rng, 15.0, 21.0);
    hand->aspect = 0.68 * exp(normal(&rng, 0.0, 0.16 * spread));
    hand->stroke_width = 2.1 * exp(normal(&rng, 0.0, 0.25));
    hand->edge_softness = uniform(&rng, 1.0, 1.9);
    hand->darkness = uniform(&rng, 0.8, 1.0);
    hand->centre = normal_point(&rng, 0.8 * spread);
    hand->unsteadiness = uniform(&rng, 0.015, 0.035) * spread;
    for (size_t g = 0; g < NUM_GLYPHS; g++) {
        hand->preferences[g] = fed_rng_gamma(&rng, 0.35); /* unscaled Dir(0.35) */
        for (size_t i = 0; i < num_points(&GLYPHS[g]); i++) {
            hand->offsets[g][i] = normal_point(&rng, 0.035 * spread);
        }
    }
}

/* ---- Curves ---------------------------------------------------------------------------------- */

/* The map from the glyph box, centred on 0, to pixels: a wave bends the shape; then it is scaled,
 * slanted, rotated and moved. */
typedef struct placement {
    double wave[4], phase[4]; /* terms 0 and 1 move x, 2 and 3 move y */
    double width, height, slant, cosine, sine;
    point centre;
} placement;

static placement draw_placement(const writer *hand, size_t digit, fed_rng *rng) {
    placement place;
    const double spread = hand->spread;
    for (size_t i = 0; i < 4; i++) {
        place.wave[i] = normal(rng, 0.0, 0.035 * spread);
        place.phase[i] = uniform(rng, 0.0, 2.0 * PI);
    }
    const double narrowing = digit == 1 ? 0.75 : 1.0;
    place.height = hand->height * exp(normal(rng, 0.0, 0.06 * spread));
    place.width = place.height * hand->aspect * narrowing * exp(normal(rng, 0.0, 0.07 * spread));
    place.slant = hand->slant + normal(rng, 0.0, 0.06 * spread);
    const double rotation = hand->rotation + normal(rng, 0.0, 4.0 * spread) * PI / 180.0;
    place.cosine = cos(rotation);
    place.sine = sin(rotation);
    const point shift = normal_point(rng, 0.9 * spread);
    place.centre.x = 0.5 * (SIDE - 1) + hand->centre.x + shift.x;
    place.centre.y = 0.5 * (SIDE - 1) + hand->centre.y + shift.y;
    return place;
}

static point to_pixels(const placement *place, point p) {
    const double x = p.x - 0.5, y = p.y - 0.5;
    const double bent_x = x + place->wave[0] * sin(2.0 * PI * y + place->phase[0]) +
                          place->wave[1] * sin(3.0 * PI * y + place->phase[1]);
    const double bent_y = y + place->wave[2] * sin(2.0 * PI * x + place->phase[2]) +
                          place->wave[3] * sin(3.0 * PI * x + place->phase[3]);
    const double down = bent_y * place->height;
    const double right = bent_x * place->width - place->slant * down;
    return (point){place->centre.x + place->cosine * right - place->sine * down,
                   place->centre.y + place->sine * right + place->cosine * down};
}

static double catmull_rom(double before, double from, double to, double after, double t) {
    const double slope = to - before;
    const double bend = 2.0 * before - 5.0 * from + 4.0 * to - after;
    const double twist = 3.0 * (from - to) + after - before;
    return from + 0.5 * t * (slope + t * (bend + t * twist));
}

/* ---- Ink ------------------------------------------------------------------------------------- */

/* Segments are drawn LANES pixels at a time; the extra columns hold pixels beyond the edge. */
enum { LANES = 8, ROW = SIDE + LANES };

typedef struct canvas {
    float reach;                       /* ink ends at this distance from a curve */
    float squared_distance[SIDE][ROW]; /* to the nearest segment that reaches the pixel */
} canvas;

static void clear_canvas(canvas *paper, float reach) {
    paper->reach = reach;
    for (size_t row = 0; row < SIDE; row++) {
        for (size_t column = 0; column < ROW; column++) {
            paper->squared_distance[row][column] = 1e30f;
        }
    }
}

/* A range first..end-1 of 0..SIDE-1: pixels within reach of a..b along one axis, perhaps one more.
 */
typedef struct range {
    size_t first, end;
} range;

static range pixel_range(float a, float b, float reach) {
    const float low = (a < b ? a : b) - reach;
    const float high = (a < b ? b : a) + reach;
    if (!(high >= 0.0f && low <= (float)(SIDE - 1))) {
        return (range){0, 0};
    }
    const size_t first = low > 0.0f ? (size_t)low : 0;
    const size_t last = high < (float)(SIDE - 1) ? (size_t)high : SIDE - 1;
    return (range){first, last + 1};
}

static void stamp_segment(canvas *paper, point from, point to) {
    const float from_x = (float)from.x, from_y = (float)from.y;
    const float to_x = (float)to.x, to_y = (float)to.y;
    const range rows = pixel_range(from_y, to_y, paper->reach);
    const range columns = pixel_range(from_x, to_x, paper->reach);
    const float along_x = to_x - from_x, along_y = to_y - from_y;
    const float squared_length = along_x * along_x + along_y * along_y;
    const float scale = squared_length > 1e-12f ? 1.0f / squared_length : 0.0f;
    for (size_t row = rows.first; row < rows.end; row++) {
        const float y = (float)row - from_y;
        for (size_t column = columns.first; column < columns.end; column += LANES) {
            float *nearest = &paper->squared_distance[row][column];
            const float first_x = (float)column - from_x;
/* If GCC unrolls this loop first, it does not vectorise it. */
#pragma GCC unroll 1
            for (int lane = 0; lane < LANES; lane++) {
                const float x = first_x + (float)lane;
                float share = (x * along_x + y * along_y) * scale; /* of the way to `to` */
                share = share > 0.0f ? share : 0.0f;
                share = share < 1.0f ? share : 1.0f;
                const float off_x = x - share * along_x, off_y = y - share * along_y;
                const float squared = off_x * off_x + off_y * off_y;
                nearest[lane] = squared < nearest[lane] ? squared : nearest[lane];
            }
        }
    }
}

/* Draws a Catmull-Rom curve through the points, in five straight segments from each to the next. */
static void stamp_stroke(canvas *paper, const placement *place, const point *points,
                         size_t num_stroke_points) {
    enum { NUM_STEPS = 5 };
    const size_t last = num_stroke_points - 1;
    point pen = to_pixels(place, points[0]);
    for (size_t i = 0; i < last; i++) {
        const point from = points[i], to = points[i + 1];
        /* Beyond an end of the stroke, the neighbouring point is reflected. */
        const point before =
            i > 0 ? points[i - 1] : (point){2.0 * from.x - to.x, 2.0 * from.y - to.y};
        const point after =
            i + 1 < last ? points[i + 2] : (point){2.0 * to.x - from.x, 2.0 * to.y - from.y};
        for (int step = 1; step <= NUM_STEPS; step++) {
            const double t = (double)step / NUM_STEPS;
            const point next = {catmull_rom(before.x, from.x, to.x, after.x, t),
                                catmull_rom(before.y, from.y, to.y, after.y, t)};
            const point target = to_pixels(place, next);
            stamp_segment(paper, pen, target);
            pen = target;
        }
    }
}

/* Noise with deviation 1: the sum of eight uniform bytes, which is nearly normal and the same on
 * all machines. */
static float paper_grain(fed_rng *rng) {
    const uint64_t even_bytes = UINT64_C(0x00FF00FF00FF00FF), ones = UINT64_C(0x0001000100010001);
    const uint64_t bytes = fed_rng_u64(rng);
    const uint64_t pair_sums = (bytes & even_bytes) + ((bytes >> 8) & even_bytes);
    const int sum = (int)((pair_sums * ones) >> 48);
    return (float)(sum - 1020) * (1.0f / 209.02153f);
}

static void ink_pixels(const canvas *paper, float softness, float darkness, fed_rng *rng,
                       uint8_t *pixels /* out [SIDE, SIDE] */) {
    const float squared_reach = paper->reach * paper->reach;
    for (size_t row = 0; row < SIDE; row++) {
        for (size_t column = 0; column < SIDE; column++) {
            const float squared = paper->squared_distance[row][column];
            uint8_t level = 0;
            if (squared < squared_reach) {
                const float edge = (paper->reach - sqrtf(squared)) / softness;
                float ink = (edge < 1.0f ? edge : 1.0f) * darkness + 0.02f * paper_grain(rng);
                ink = ink > 0.0f ? ink : 0.0f;
                ink = ink < 1.0f ? ink : 1.0f;
                level = (uint8_t)(255.0f * ink + 0.5f);
            }
            pixels[row * SIDE + column] = level;
        }
    }
}

/* ---- Images ---------------------------------------------------------------------------------- */

static void draw_image(const writer *hand, size_t digit, fed_rng *rng,
                       uint8_t *pixels /* out [SIDE, SIDE] */) {
    const size_t first_glyph = FIRST_GLYPH[digit];
    const size_t num_allographs = FIRST_GLYPH[digit + 1] - first_glyph;
    const size_t g = first_glyph + pick(rng, &hand->preferences[first_glyph], num_allographs);
    const glyph *shape = &GLYPHS[g];

    point points[MAX_POINTS];
    for (size_t i = 0; i < num_points(shape); i++) {
        const point jitter = normal_point(rng, hand->unsteadiness);
        points[i].x = 0.01 * shape->points[i][0] + hand->offsets[g][i].x + jitter.x;
        points[i].y = 0.01 * shape->points[i][1] + hand->offsets[g][i].y + jitter.y;
    }
    const placement place = draw_placement(hand, digit, rng);
    const double stroke_width = fmax(0.9, hand->stroke_width * exp(normal(rng, 0.0, 0.08)));

    canvas paper;
    clear_canvas(&paper, (float)(0.5 * (stroke_width + hand->edge_softness)));
    size_t first_point = 0;
    for (size_t s = 0; s < shape->num_strokes; s++) {
        const size_t end = shape->stroke_ends[s];
        stamp_stroke(&paper, &place, &points[first_point], end - first_point);
        first_point = end;
    }
    ink_pixels(&paper, (float)hand->edge_softness, (float)hand->darkness, rng, pixels);
}

/* The label of an image: its digit or, with probability `noise`, a random one. It always draws
 * twice, so that the image does not depend on the noise. */
static int32_t draw_label(fed_rng *rng, size_t digit, double noise) {
    const int is_noisy = fed_rng_uniform(rng) < noise;
    const uint32_t other = fed_rng_below(rng, NUM_DIGITS);
    return (int32_t)(is_noisy ? other : digit);
}

int fed_synthetic_draw(const fed_synthetic *options, uint64_t client, int split, size_t first,
                       size_t num, uint8_t *pixels, int32_t *labels) {
    const size_t count = fed_synthetic_count(options, client, split);
    if (!is_valid(options, split) || first > count || num > count - first) {
        return FED_ERR_ARGUMENT;
    }
    uint8_t digits[MAX_EXAMPLES];
    const size_t split_begin = deal_labels(options, client, split, digits);
    const double noise = split == FED_SPLIT_CENTRAL ? 0.0 : options->label_noise;
    writer hand;
    draw_writer(&hand, options, client);
    for (size_t i = 0; i < num; i++) {
        const fed_key key = {.seed = options->seed,
                             .client = client,
                             .round = (uint64_t)split,
                             .purpose = PURPOSE_IMAGE,
                             .occurrence = first + i};
        const size_t digit = digits[split_begin + first + i];
        fed_rng rng;
        fed_rng_init(&rng, &key);
        labels[i] = draw_label(&rng, digit, noise);
        draw_image(&hand, digit, &rng, &pixels[i * SIDE * SIDE]);
    }
    return FED_OK;
}
