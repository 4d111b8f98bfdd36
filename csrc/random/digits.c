/* SPDX-License-Identifier: Apache-2.0
 *
 * The pictures of synthetic-digits/v1: handwritten digits of invented writers. A digit consists of
 * a few curves through control points. The writer, and then each image, displaces these points. The
 * shape is bent and placed; the ink of a pixel depends on its distance to the nearest curve.
 */
#include "drawing.h"
#include "glyphs.h"

enum { DIGIT_SIDE = 28 };

/* ---- Writers --------------------------------------------------------------------------------- */

/* How one person writes. Lengths are in pixels unless said otherwise. */
typedef struct writer {
    double spread;         /* style_spread of the options, for the variation between images */
    double slant;          /* shift to the right per pixel of height */
    double rotation;       /* radians */
    double height, aspect; /* aspect: width over height */
    double stroke_width, edge_softness;
    double darkness;     /* of full ink, 0..1 */
    fed_point centre;    /* offset from the middle of the image */
    double unsteadiness; /* deviation of a control point from image to image, in glyph boxes */
    double preferences[NUM_GLYPHS]; /* relative weights among the allographs of a digit */
    fed_point offsets[NUM_GLYPHS][MAX_POINTS]; /* of the writer's control points, in glyph boxes */
} writer;

static size_t num_points(const glyph *shape) { return shape->stroke_ends[shape->num_strokes - 1]; }

static void draw_writer(writer *hand /* out */, const fed_synthetic *options, uint64_t client) {
    const fed_key key = {.seed = options->seed, .client = client, .purpose = FED_SYNTHETIC_STYLE};
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
    fed_point centre;
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
    const fed_point shift = normal_point(rng, 0.9 * spread);
    place.centre.x = 0.5 * (DIGIT_SIDE - 1) + hand->centre.x + shift.x;
    place.centre.y = 0.5 * (DIGIT_SIDE - 1) + hand->centre.y + shift.y;
    return place;
}

static fed_point to_pixels(const placement *place, fed_point p) {
    const double x = p.x - 0.5, y = p.y - 0.5;
    const double bent_x = x + place->wave[0] * sin(2.0 * PI * y + place->phase[0]) +
                          place->wave[1] * sin(3.0 * PI * y + place->phase[1]);
    const double bent_y = y + place->wave[2] * sin(2.0 * PI * x + place->phase[2]) +
                          place->wave[3] * sin(3.0 * PI * x + place->phase[3]);
    const double down = bent_y * place->height;
    const double right = bent_x * place->width - place->slant * down;
    return (fed_point){place->centre.x + place->cosine * right - place->sine * down,
                       place->centre.y + place->sine * right + place->cosine * down};
}

static double catmull_rom(double before, double from, double to, double after, double t) {
    const double slope = to - before;
    const double bend = 2.0 * before - 5.0 * from + 4.0 * to - after;
    const double twist = 3.0 * (from - to) + after - before;
    return from + 0.5 * t * (slope + t * (bend + t * twist));
}

/* ---- Ink ------------------------------------------------------------------------------------- */

/* Draws a Catmull-Rom curve through the points: five straight segments from a point to the next. */
static void stamp_stroke(fed_canvas *paper, const placement *place, const fed_point *points,
                         size_t num_stroke_points) {
    enum { NUM_STEPS = 5 };
    const size_t last = num_stroke_points - 1;
    fed_point pen = to_pixels(place, points[0]);
    for (size_t i = 0; i < last; i++) {
        const fed_point from = points[i], to = points[i + 1];
        /* Beyond an end of the stroke, the neighbouring point is reflected. */
        const fed_point before =
            i > 0 ? points[i - 1] : (fed_point){2.0 * from.x - to.x, 2.0 * from.y - to.y};
        const fed_point after =
            i + 1 < last ? points[i + 2] : (fed_point){2.0 * to.x - from.x, 2.0 * to.y - from.y};
        for (int step = 1; step <= NUM_STEPS; step++) {
            const double t = (double)step / NUM_STEPS;
            const fed_point next = {catmull_rom(before.x, from.x, to.x, after.x, t),
                                    catmull_rom(before.y, from.y, to.y, after.y, t)};
            const fed_point target = to_pixels(place, next);
            fed_stamp_segment(paper, pen, target);
            pen = target;
        }
    }
}

static void ink_pixels(const fed_canvas *paper, float softness, float darkness, fed_rng *rng,
                       uint8_t *pixels /* out [DIGIT_SIDE, DIGIT_SIDE] */) {
    const float squared_reach = paper->reach * paper->reach;
    for (size_t row = 0; row < DIGIT_SIDE; row++) {
        for (size_t column = 0; column < DIGIT_SIDE; column++) {
            const float squared = paper->squared_distance[row][column];
            uint8_t level = 0;
            if (squared < squared_reach) {
                const float edge = (paper->reach - sqrtf(squared)) / softness;
                float ink = (edge < 1.0f ? edge : 1.0f) * darkness + 0.02f * fed_pixel_noise(rng);
                ink = ink > 0.0f ? ink : 0.0f;
                ink = ink < 1.0f ? ink : 1.0f;
                level = (uint8_t)(255.0f * ink + 0.5f);
            }
            pixels[row * DIGIT_SIDE + column] = level;
        }
    }
}

/* ---- Images ---------------------------------------------------------------------------------- */

static void draw_image(const writer *hand, size_t digit, fed_rng *rng,
                       uint8_t *pixels /* out [DIGIT_SIDE, DIGIT_SIDE] */) {
    const size_t first_glyph = FIRST_GLYPH[digit];
    const size_t num_allographs = FIRST_GLYPH[digit + 1] - first_glyph;
    const size_t g = first_glyph + fed_pick(rng, &hand->preferences[first_glyph], num_allographs);
    const glyph *shape = &GLYPHS[g];

    fed_point points[MAX_POINTS];
    for (size_t i = 0; i < num_points(shape); i++) {
        const fed_point jitter = normal_point(rng, hand->unsteadiness);
        points[i].x = 0.01 * shape->points[i][0] + hand->offsets[g][i].x + jitter.x;
        points[i].y = 0.01 * shape->points[i][1] + hand->offsets[g][i].y + jitter.y;
    }
    const placement place = draw_placement(hand, digit, rng);
    const double stroke_width = fmax(0.9, hand->stroke_width * exp(normal(rng, 0.0, 0.08)));

    fed_canvas paper;
    fed_clear_canvas(&paper, DIGIT_SIDE, (float)(0.5 * (stroke_width + hand->edge_softness)));
    size_t first_point = 0;
    for (size_t s = 0; s < shape->num_strokes; s++) {
        const size_t end = shape->stroke_ends[s];
        stamp_stroke(&paper, &place, &points[first_point], end - first_point);
        first_point = end;
    }
    ink_pixels(&paper, (float)hand->edge_softness, (float)hand->darkness, rng, pixels);
}

static void style_of_digits(const fed_synthetic *options, uint64_t client, double *style) {
    _Static_assert(sizeof(writer) <= FED_STYLE_SIZE * sizeof(double), "a style has room");
    draw_writer((writer *)style, options, client);
}

static void draw_digit(const double *style, size_t label, fed_rng *rng, uint8_t *pixels) {
    draw_image((const writer *)style, label, rng, pixels);
}

const fed_pictures fed_digits = {
    .num_bytes = DIGIT_SIDE * DIGIT_SIDE, .draw_style = style_of_digits, .draw = draw_digit};
