/* SPDX-License-Identifier: Apache-2.0
 *
 * The pictures of synthetic-shapes/v1: one of ten flat shapes in colour, 32 x 32 x 3 pixels. A
 * client has its own palette, ground textures, sizes and camera; position, rotation, size and
 * proportions vary from picture to picture, and lines and dots lie behind the shape and across it.
 * No single pixel shows which shape it is, so a linear model learns little.
 *
 * A shape is one or two closed outlines. A pixel is inside the shape if a ray to its left crosses
 * the outlines an odd number of times. Near an outline the shape fades over a distance, which is
 * the softness of the camera.
 */
#include "drawing.h"

#include <string.h>

enum { SIDE = FED_CANVAS_SIDE, NUM_CHANNELS = 3, MAX_CORNERS = 64 };

typedef struct colour {
    float part[NUM_CHANNELS]; /* red, green and blue, 0..1 */
} colour;

/* ---- Styles ---------------------------------------------------------------------------------- */

enum texture { PLAIN = 0, STRIPES, CHECKS, CLOUDS, NUM_TEXTURES };

/* How one client's pictures look. Lengths are in pixels. */
typedef struct style {
    double shape_hue, ground_hue; /* turns around the colour wheel */
    double hue_deviation, saturation;
    double shape_brightness, ground_brightness;
    double textures[NUM_TEXTURES]; /* relative weights */
    double period, contrast;       /* of the ground's texture */
    double radius;
    double tilt, tilt_deviation;         /* turns */
    double clutter;                      /* expected lines and dots */
    float softness, noise, gain, warmth; /* of the camera */
} style;

static void style_of_shapes(const fed_synthetic *options, uint64_t client, double *out) {
    _Static_assert(sizeof(style) <= FED_STYLE_SIZE * sizeof(double), "a style has room");
    const fed_key key = {.seed = options->seed, .client = client, .purpose = FED_SYNTHETIC_STYLE};
    const double spread = options->style_spread;
    style *own = (style *)out;
    fed_rng rng;
    fed_rng_init(&rng, &key);
    own->ground_hue = fed_rng_uniform(&rng);
    own->shape_hue = own->ground_hue + uniform(&rng, 0.25, 0.75);
    own->hue_deviation = 0.16;
    own->saturation = clip(normal(&rng, 0.5, 0.2 * spread), 0.1, 0.9);
    const double light = uniform(&rng, 0.7, 0.95), dark = uniform(&rng, 0.2, 0.4);
    const int is_inverse = fed_rng_uniform(&rng) < 0.25 * spread;
    own->shape_brightness = is_inverse ? dark : light;
    own->ground_brightness = is_inverse ? light : dark;
    for (size_t i = 0; i < NUM_TEXTURES; i++) {
        own->textures[i] = 0.1 + fed_rng_gamma(&rng, 0.6); /* unscaled, near Dir(0.6) */
    }
    own->period = clip(7.0 * exp(normal(&rng, 0.0, 0.4 * spread)), 3.0, 24.0);
    own->contrast = clip(normal(&rng, 0.15, 0.1 * spread), 0.0, 0.5);
    own->radius = clip(10.0 * exp(normal(&rng, 0.0, 0.12 * spread)), 6.0, 13.0);
    own->tilt = normal(&rng, 0.0, 0.06 * spread);
    own->tilt_deviation = uniform(&rng, 0.01, 0.06);
    own->clutter = uniform(&rng, 0.0, 2.0);
    own->softness = (float)uniform(&rng, 0.8, 2.0);
    own->noise = (float)clip(0.03 * exp(normal(&rng, 0.0, 0.5 * spread)), 0.0, 0.12);
    own->gain = (float)clip(normal(&rng, 1.0, 0.1 * spread), 0.6, 1.4);
    own->warmth = (float)clip(normal(&rng, 0.0, 0.06 * spread), -0.2, 0.2);
}

/* The colour of a hue in turns, as in the HSV model. */
static colour of_hue(double hue, double saturation, double brightness) {
    colour made;
    for (int c = 0; c < NUM_CHANNELS; c++) {
        const double turned = hue - c / 3.0;
        const double away = fabs(turned - rint(turned)); /* turns from the channel's own hue */
        const double share = clip(2.0 - 6.0 * away, 0.0, 1.0);
        made.part[c] = (float)(brightness * (1.0 - saturation * (1.0 - share)));
    }
    return made;
}

/* A random colour near a hue and a brightness. */
static colour near_colour(const style *own, double hue, double brightness, fed_rng *rng) {
    const double shifted = normal(rng, hue, own->hue_deviation);
    const double saturation = clip(normal(rng, own->saturation, 0.15), 0.0, 1.0);
    return of_hue(shifted, saturation, clip(normal(rng, brightness, 0.08), 0.1, 1.0));
}

static colour shape_colour(const style *own, fed_rng *rng) {
    return near_colour(own, own->shape_hue, own->shape_brightness, rng);
}

static colour ground_colour(const style *own, fed_rng *rng) {
    return near_colour(own, own->ground_hue, own->ground_brightness, rng);
}

static colour mixed(colour from, colour to, float share) {
    for (int c = 0; c < NUM_CHANNELS; c++) {
        from.part[c] += share * (to.part[c] - from.part[c]);
    }
    return from;
}

/* ---- Ground ---------------------------------------------------------------------------------- */

typedef struct picture {
    colour pixels[SIDE][SIDE];
} picture;

/* A triangle wave along a direction: from 0 to 1 and back in one period. */
typedef struct wave {
    float along_x, along_y, start;
} wave;

static wave draw_wave(double period, fed_rng *rng) {
    const double angle = uniform(rng, 0.0, 2.0 * PI);
    const double rate = 1.0 / period;
    return (wave){(float)(rate * cos(angle)), (float)(rate * sin(angle)),
                  (float)uniform(rng, 64.0, 65.0)}; /* positive everywhere */
}

static float wave_at(const wave *made, size_t x, size_t y) {
    const float turns = made->start + made->along_x * (float)x + made->along_y * (float)y;
    const float part = turns - (float)(int)turns;
    return part < 0.5f ? 2.0f * part : 2.0f - 2.0f * part;
}

/* A wave with sharper edges: 0 or 1, with short ramps between them. */
static float band_at(const wave *made, size_t x, size_t y) {
    const float ramp = 2.0f * wave_at(made, x, y) - 0.5f;
    return ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
}

static float texture_at(size_t texture, const wave waves[2], size_t x, size_t y) {
    switch (texture) {
    case STRIPES:
        return band_at(&waves[0], x, y);
    case CHECKS: {
        const float a = band_at(&waves[0], x, y), b = band_at(&waves[1], x, y);
        return a + b - 2.0f * a * b;
    }
    case CLOUDS:
        return 0.5f * (wave_at(&waves[0], x, y) + wave_at(&waves[1], x, y));
    default:
        return wave_at(&waves[0], x, y);
    }
}

static void draw_ground(const style *own, fed_rng *rng, picture *out) {
    const size_t texture = fed_pick(rng, own->textures, NUM_TEXTURES);
    const double period = texture == PLAIN ? 4.0 * SIDE : own->period * uniform(rng, 0.7, 1.4);
    wave waves[2]; /* one draw after the other: C orders neither initialisers nor arguments */
    waves[0] = draw_wave(period, rng);
    waves[1] = draw_wave(1.3 * period, rng);
    const colour from = ground_colour(own, rng);
    const colour other = ground_colour(own, rng);
    const colour to = mixed(from, other, (float)own->contrast + 0.3f);
    for (size_t y = 0; y < SIDE; y++) {
        for (size_t x = 0; x < SIDE; x++) {
            out->pixels[y][x] = mixed(from, to, texture_at(texture, waves, x, y));
        }
    }
}

/* ---- Outlines -------------------------------------------------------------------------------- */

/* Closed polygons in a circle of radius 1, y down. */
typedef struct outline {
    size_t num_corners, num_rings; /* ring r ends before corner ends[r] */
    size_t ends[2];
    fed_point corners[MAX_CORNERS];
} outline;

static void add_corner(outline *line, double radius, double turns) {
    line->corners[line->num_corners++] =
        (fed_point){radius * sin(2.0 * PI * turns), -radius * cos(2.0 * PI * turns)};
}

static void close_ring(outline *line) { line->ends[line->num_rings++] = line->num_corners; }

/* A regular polygon, or one with every second corner on an inner circle. */
static void add_polygon(outline *line, size_t num_corners, double radius, double inner) {
    for (size_t i = 0; i < num_corners; i++) {
        add_corner(line, i % 2 ? inner : radius, (double)i / (double)num_corners);
    }
    close_ring(line);
}

static void add_circle(outline *line, double radius) { add_polygon(line, 24, radius, radius); }

static void add_list(outline *line, const double corners[][2], size_t num_corners) {
    for (size_t i = 0; i < num_corners; i++) {
        line->corners[line->num_corners++] = (fed_point){corners[i][0], corners[i][1]};
    }
    close_ring(line);
}

/* Half a circle, and back along half an ellipse with semi-axis `depth`: a crescent, or with depth 0
 * half a disc. */
static void add_crescent(outline *line, double depth) {
    enum { NUM_STEPS = 12 };
    for (int i = 0; i <= NUM_STEPS; i++) {
        add_corner(line, 1.0, 0.5 * i / NUM_STEPS);
    }
    for (int i = NUM_STEPS - 1; i > 0; i--) {
        add_corner(line, 1.0, 0.5 * i / NUM_STEPS);
        line->corners[line->num_corners - 1].x *= depth;
    }
    close_ring(line);
}

static const double PLUS[][2] = {{-.3, -.95}, {.3, -.95}, {.3, -.3},   {.95, -.3},
                                 {.95, .3},   {.3, .3},   {.3, .95},   {-.3, .95},
                                 {-.3, .3},   {-.95, .3}, {-.95, -.3}, {-.3, -.3}};
static const double ARROW[][2] = {{0, -1},     {.75, -.1},  {.27, -.1}, {.27, .95},
                                  {-.27, .95}, {-.27, -.1}, {-.75, -.1}};

static void add_shape(outline *line, size_t label) {
    switch (label) {
    case 0:
        add_circle(line, 0.9);
        break;
    case 1:
        add_circle(line, 0.95);
        add_circle(line, 0.5);
        break;
    case 2:
        add_crescent(line, 0.45);
        break;
    case 3:
        add_crescent(line, 0.0);
        break;
    case 4:
        add_polygon(line, 3, 1.0, 1.0);
        break;
    case 5:
        add_polygon(line, 4, 1.0, 1.0);
        break;
    case 6:
        add_polygon(line, 6, 0.95, 0.95);
        break;
    case 7:
        add_polygon(line, 10, 1.05, 0.45);
        break;
    case 8:
        add_list(line, PLUS, sizeof PLUS / sizeof PLUS[0]);
        break;
    default:
        add_list(line, ARROW, sizeof ARROW / sizeof ARROW[0]);
        break;
    }
}

/* Stretches, turns and moves an outline to its place in the picture. */
static void place_outline(const style *own, fed_rng *rng, outline *line) {
    const double radius = clip(own->radius * exp(normal(rng, 0.0, 0.15)), 5.0, 14.0);
    const double stretch = exp(normal(rng, 0.0, 0.12));
    const double turns = own->tilt + normal(rng, 0.0, own->tilt_deviation);
    const double cosine = cos(2.0 * PI * turns), sine = sin(2.0 * PI * turns);
    const fed_point shift = normal_point(rng, 2.2);
    const double middle_x = 0.5 * (SIDE - 1) + shift.x, middle_y = 0.5 * (SIDE - 1) + shift.y;
    for (size_t i = 0; i < line->num_corners; i++) {
        fed_point *corner = &line->corners[i];
        const double x = radius * stretch * corner->x, y = radius / stretch * corner->y;
        *corner = (fed_point){middle_x + cosine * x - sine * y, middle_y + sine * x + cosine * y};
    }
}

/* Toggles the pixels to the right of an edge, in the rows that it crosses. */
static void toggle_right(fed_point from, fed_point to, uint8_t inside[SIDE][SIDE]) {
    for (size_t row = 0; row < SIDE; row++) {
        const double y = (double)row;
        if ((from.y <= y) == (to.y <= y)) continue;
        const double x = from.x + (y - from.y) / (to.y - from.y) * (to.x - from.x);
        for (size_t column = 0; column < SIDE; column++) {
            inside[row][column] ^= (double)column > x;
        }
    }
}

/* The share of each pixel that a shape covers. */
static void compute_coverage(const outline *line, float softness,
                             float shares[SIDE][SIDE] /* out */) {
    fed_canvas canvas;
    uint8_t inside[SIDE][SIDE] = {{0}};
    fed_clear_canvas(&canvas, SIDE, softness);
    for (size_t r = 0, first = 0; r < line->num_rings; first = line->ends[r++]) {
        for (size_t i = first; i < line->ends[r]; i++) {
            const fed_point to = line->corners[i + 1 < line->ends[r] ? i + 1 : first];
            fed_stamp_segment(&canvas, line->corners[i], to);
            toggle_right(line->corners[i], to, inside);
        }
    }
    for (size_t y = 0; y < SIDE; y++) {
        for (size_t x = 0; x < SIDE; x++) {
            const float squared = canvas.squared_distance[y][x];
            const float away = squared < softness * softness ? sqrtf(squared) / softness : 1.0f;
            shares[y][x] = inside[y][x] ? 0.5f + 0.5f * away : 0.5f - 0.5f * away;
        }
    }
}

/* ---- Pictures -------------------------------------------------------------------------------- */

static void paint(float shares[SIDE][SIDE], colour from, colour to, picture *out) {
    for (size_t y = 0; y < SIDE; y++) {
        const colour paint = mixed(from, to, (float)y / (float)(SIDE - 1));
        for (size_t x = 0; x < SIDE; x++) {
            if (shares[y][x] > 0.0f) {
                out->pixels[y][x] = mixed(out->pixels[y][x], paint, shares[y][x]);
            }
        }
    }
}

/* A line or, if it is short, a dot. */
static void draw_stroke(const style *own, double length, fed_rng *rng, picture *out) {
    const double x = uniform(rng, 0.0, SIDE - 1.0), y = uniform(rng, 0.0, SIDE - 1.0);
    const fed_point from = {x, y};
    const double angle = uniform(rng, 0.0, 2.0 * PI);
    const fed_point to = {from.x + length * cos(angle), from.y + length * sin(angle)};
    const float reach = (float)uniform(rng, 0.8, 1.8);
    const double hue = fed_rng_uniform(rng), brightness = uniform(rng, 0.2, 0.9);
    const colour ink = near_colour(own, hue, brightness, rng);
    fed_canvas canvas;
    fed_clear_canvas(&canvas, SIDE, reach);
    fed_stamp_segment(&canvas, from, to);
    for (size_t row = 0; row < SIDE; row++) {
        for (size_t column = 0; column < SIDE; column++) {
            const float squared = canvas.squared_distance[row][column];
            if (squared < reach * reach) {
                const float share = reach - sqrtf(squared);
                colour *pixel = &out->pixels[row][column];
                *pixel = mixed(*pixel, ink, share < 1.0f ? share : 1.0f);
            }
        }
    }
}

static void draw_clutter(const style *own, double expected, fed_rng *rng, picture *out) {
    for (double left = uniform(rng, 0.0, 2.0 * expected); left > 0.5; left -= 1.0) {
        const double length =
            uniform(rng, 0.0, 1.0) < 0.5 ? uniform(rng, 0.0, 3.0) : uniform(rng, 6.0, 24.0);
        draw_stroke(own, length, rng, out);
    }
}

/* The effect of the camera: another brightness and warmth, and grain. */
static void apply_camera(const style *own, fed_rng *rng, const picture *scene, uint8_t *pixels) {
    const float gain = own->gain * (float)clip(normal(rng, 1.0, 0.08), 0.7, 1.3);
    const float gains[NUM_CHANNELS] = {gain * (1.0f + own->warmth), gain,
                                       gain * (1.0f - own->warmth)};
    for (size_t y = 0; y < SIDE; y++) {
        for (size_t x = 0; x < SIDE; x++) {
            for (int c = 0; c < NUM_CHANNELS; c++) {
                float level =
                    gains[c] * scene->pixels[y][x].part[c] + own->noise * fed_pixel_noise(rng);
                level = level > 0.0f ? level : 0.0f;
                level = level < 1.0f ? level : 1.0f;
                *pixels++ = (uint8_t)(255.0f * level + 0.5f);
            }
        }
    }
}

static void draw_shape(const double *given, size_t label, fed_rng *rng, uint8_t *pixels) {
    const style *own = (const style *)given;
    picture scene;
    outline line = {0};
    float shares[SIDE][SIDE];
    draw_ground(own, rng, &scene);
    draw_clutter(own, own->clutter, rng, &scene);
    add_shape(&line, label);
    place_outline(own, rng, &line);
    compute_coverage(&line, own->softness, shares);
    const colour from = shape_colour(own, rng);
    paint(shares, from, mixed(from, shape_colour(own, rng), 0.5f), &scene);
    draw_clutter(own, 0.25 * own->clutter, rng, &scene);
    apply_camera(own, rng, &scene, pixels);
}

const fed_pictures fed_shapes = {
    .num_bytes = SIDE * SIDE * NUM_CHANNELS, .draw_style = style_of_shapes, .draw = draw_shape};
