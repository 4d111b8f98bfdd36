/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface by which synthetic.c draws the pictures of the synthetic data sets, and the tools
 * for drawing them.
 *
 * There are no fused multiply-adds (these files are built with -ffp-contract=off), so machines can
 * only differ by the last bit of their libm.
 */
#ifndef FED_DRAWING_H
#define FED_DRAWING_H

#include "fed.h"

#include <math.h>

#define PI 3.14159265358979323846

/* Purposes of streams. The class Purpose in fedcli/core/seeds.py has all purposes, also these. */
enum fed_purpose {
    FED_SYNTHETIC_STYLE = 16,
    FED_SYNTHETIC_PICTURE = 17,
    FED_SYNTHETIC_SIZE = 18,
    FED_SYNTHETIC_LABELS = 19
};

/* Room for the style of a client, in doubles; each kind of pictures has its own struct for it. */
enum { FED_STYLE_SIZE = 800 };

/* A kind of pictures. A style is a pure function of (options, client), and a picture is a pure
 * function of its style, its label and the stream. So pictures can be drawn in any order and by any
 * number of threads. */
typedef struct fed_pictures {
    size_t num_bytes; /* of a picture */
    void (*draw_style)(const fed_synthetic *options, uint64_t client,
                       double *style /* out [FED_STYLE_SIZE] */);
    void (*draw)(const double *style, size_t label, fed_rng *rng,
                 uint8_t *pixels /* out [num_bytes] */);
} fed_pictures;

extern const fed_pictures fed_digits, fed_shapes;

typedef struct fed_point {
    double x, y;
} fed_point;

/* ---- Draws ----------------------------------------------------------------------------------- */

static inline double clip(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

static inline double normal(fed_rng *rng, double mean, double deviation) {
    return mean + deviation * fed_rng_normal(rng);
}

static inline double uniform(fed_rng *rng, double low, double high) {
    return low + (high - low) * fed_rng_uniform(rng);
}

static inline fed_point normal_point(fed_rng *rng, double deviation) {
    const double x = normal(rng, 0.0, deviation);
    const double y = normal(rng, 0.0, deviation);
    return (fed_point){x, y};
}

/* Draws an index below num_weights, with a probability proportional to its weight. */
size_t fed_pick(fed_rng *rng, const double *weights /* [num_weights] */, size_t num_weights);
/* Noise with deviation 1: the sum of eight uniform bytes, which is nearly normal and the same on
 * all machines. */
float fed_pixel_noise(fed_rng *rng);

/* ---- Canvas ---------------------------------------------------------------------------------- */

/* Segments are drawn FED_CANVAS_LANES pixels at a time; the extra columns hold pixels beyond the
 * edge. */
enum { FED_CANVAS_SIDE = 32, FED_CANVAS_LANES = 8 };

/* A square of pixels, each with its squared distance to the nearest of the segments that reach it.
 * If none does, the distance is very large. */
typedef struct fed_canvas {
    size_t side; /* in pixels, at most FED_CANVAS_SIDE */
    float reach; /* the distance to which segments reach */
    float squared_distance[FED_CANVAS_SIDE][FED_CANVAS_SIDE + FED_CANVAS_LANES];
} fed_canvas;

void fed_clear_canvas(fed_canvas *canvas /* out */, size_t side, float reach);
void fed_stamp_segment(fed_canvas *canvas, fed_point from, fed_point to);

#endif
