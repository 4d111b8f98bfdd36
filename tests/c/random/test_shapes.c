/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of shapes.c: a picture depends on its key alone; the outlines; the coverage of pixels
 * against a naive reference; and what synthetic-shapes looks like. The public functions are those
 * of the library; shapes.c is also included under another name, to test its static functions.
 */
#include "fed.h"
#include "test.h"

#define fed_shapes included_shapes
#include "random/shapes.c"
#undef fed_shapes

enum { NUM_CLASSES = 10, MAX_EXAMPLES = 400, NUM_VALUES = SIDE * SIDE * NUM_CHANNELS };

static const fed_synthetic OPTIONS = {.pictures = FED_PICTURES_SHAPES,
                                      .seed = 1,
                                      .style_spread = 0.9,
                                      .label_noise = 0.01,
                                      .sizes = FED_SIZES_NATURAL};

/* One client's split, with bytes after it that must not change. */
typedef struct drawing {
    uint8_t pixels[(MAX_EXAMPLES + 1) * NUM_VALUES];
    int32_t labels[MAX_EXAMPLES + 1];
    size_t num_examples;
} drawing;

static drawing drawn, other; /* too large for a stack frame */

static void draw_all(drawing *out, const fed_synthetic *options, uint64_t client, int split) {
    out->num_examples = fed_synthetic_count(options, client, split);
    CHECK(out->num_examples >= 1 && out->num_examples <= MAX_EXAMPLES);
    memset(&out->pixels[out->num_examples * NUM_VALUES], 77, NUM_VALUES);
    CHECK_EQUAL(
        fed_synthetic_draw(options, client, split, 0, out->num_examples, out->pixels, out->labels),
        FED_OK);
    for (size_t i = 0; i < NUM_VALUES; i++) {
        CHECK_EQUAL(out->pixels[out->num_examples * NUM_VALUES + i], 77);
    }
}

static void test_pictures_depend_on_their_key_alone(void) {
    CHECK_EQUAL(fed_synthetic_bytes(&OPTIONS), NUM_VALUES);
    draw_all(&drawn, &OPTIONS, 42, FED_SPLIT_TRAIN);
    for (size_t i = drawn.num_examples; i-- > 0;) {
        uint8_t pixels[NUM_VALUES];
        int32_t label;
        CHECK_EQUAL(fed_synthetic_draw(&OPTIONS, 42, FED_SPLIT_TRAIN, i, 1, pixels, &label),
                    FED_OK);
        CHECK_EQUAL(label, drawn.labels[i]);
        CHECK_BYTES(pixels, &drawn.pixels[i * NUM_VALUES], NUM_VALUES);
    }
    fed_synthetic reseeded = OPTIONS;
    reseeded.seed = 2;
    draw_all(&other, &reseeded, 42, FED_SPLIT_TRAIN);
    CHECK(memcmp(drawn.pixels, other.pixels, NUM_VALUES) != 0);
    draw_all(&other, &OPTIONS, 43, FED_SPLIT_TRAIN);
    CHECK(memcmp(drawn.pixels, other.pixels, NUM_VALUES) != 0);
}

/* The sums of a client's first pictures, as version 1 draws them. Another libm may change a value
 * by one level. If the data set changes, it needs another version name. */
static void test_version_1(void) {
    static const int32_t sums[] = {141578, 190775, 123543, 83398, 153761, 96811, 123051, 137704};
    static const int32_t labels[] = {2, 9, 2, 1, 5, 1, 7, 9};
    draw_all(&drawn, &OPTIONS, 42, FED_SPLIT_TRAIN);
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) {
        int32_t sum = 0;
        for (size_t p = 0; p < NUM_VALUES; p++) sum += drawn.pixels[i * NUM_VALUES + p];
        CHECK_CLOSE(sum, sums[i], 20);
        CHECK_EQUAL(drawn.labels[i], labels[i]);
    }
}

/* At the largest spread shapes extend beyond the picture; nothing may be written outside it. */
static void test_extreme_spreads(void) {
    fed_synthetic options = OPTIONS;
    for (int i = 0; i < 2; i++) {
        options.style_spread = i == 0 ? 10.0 : 0.0;
        for (uint64_t client = 0; client < 10; client++)
            draw_all(&drawn, &options, client, FED_SPLIT_TRAIN);
    }
}

/* ---- Outlines -------------------------------------------------------------------------------- */

static void test_outlines_have_room(void) {
    for (size_t label = 0; label < NUM_CLASSES; label++) {
        outline line = {0};
        add_shape(&line, label);
        CHECK(line.num_corners >= 3 && line.num_corners <= MAX_CORNERS);
        CHECK(line.num_rings >= 1 && line.num_rings <= 2);
        CHECK_EQUAL(line.ends[line.num_rings - 1], line.num_corners);
        for (size_t i = 0; i < line.num_corners; i++)
            CHECK(hypot(line.corners[i].x, line.corners[i].y) <= 1.06);
    }
}

/* Whether a point is inside the polygons of an outline, by the sum of angles, which is near 0
 * outside. */
static int naive_is_inside(const outline *line, double x, double y) {
    int is_inside = 0;
    for (size_t r = 0, first = 0; r < line->num_rings; first = line->ends[r++]) {
        double angle = 0.0;
        for (size_t i = first; i < line->ends[r]; i++) {
            const fed_point from = line->corners[i];
            const fed_point to = line->corners[i + 1 < line->ends[r] ? i + 1 : first];
            const double turn = atan2(to.y - y, to.x - x) - atan2(from.y - y, from.x - x);
            angle += turn - 2.0 * PI * rint(turn / (2.0 * PI));
        }
        is_inside ^= fabs(angle) > PI;
    }
    return is_inside;
}

static double naive_distance(const outline *line, double x, double y) {
    double nearest = 1e9;
    for (size_t r = 0, first = 0; r < line->num_rings; first = line->ends[r++])
        for (size_t i = first; i < line->ends[r]; i++) {
            const fed_point from = line->corners[i];
            const fed_point to = line->corners[i + 1 < line->ends[r] ? i + 1 : first];
            const double along_x = to.x - from.x, along_y = to.y - from.y;
            const double squared = along_x * along_x + along_y * along_y;
            const double share =
                clip(((x - from.x) * along_x + (y - from.y) * along_y) / squared, 0.0, 1.0);
            nearest =
                fmin(nearest, hypot(x - from.x - share * along_x, y - from.y - share * along_y));
        }
    return nearest;
}

static void test_coverage_equals_a_naive_one(void) {
    const fed_key key = {.seed = 5};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    for (size_t trial = 0; trial < 40; trial++) {
        style own = {.radius = 9.0, .tilt = 0.03, .tilt_deviation = 0.1};
        const double softness = uniform(&rng, 0.8, 2.0);
        outline line = {0};
        float shares[SIDE][SIDE];
        add_shape(&line, trial % NUM_CLASSES);
        place_outline(&own, &rng, &line);
        compute_coverage(&line, (float)softness, shares);
        for (size_t y = 0; y < SIDE; y++)
            for (size_t x = 0; x < SIDE; x++) {
                const double away = naive_distance(&line, (double)x, (double)y) / softness;
                const double side = naive_is_inside(&line, (double)x, (double)y) ? 0.5 : -0.5;
                CHECK_CLOSE(shares[y][x], 0.5 + side * fmin(away, 1.0), 2e-3);
            }
    }
}

/* ---- Colours --------------------------------------------------------------------------------- */

static void check_colour(double hue, double saturation, double brightness,
                         const float expected[3]) {
    const colour made = of_hue(hue, saturation, brightness);
    for (int c = 0; c < NUM_CHANNELS; c++) CHECK_CLOSE(made.part[c], expected[c], 1e-6);
}

static void test_hues(void) {
    check_colour(0.0, 1.0, 1.0, (const float[]){1, 0, 0});
    check_colour(1.0 / 6.0, 1.0, 0.5, (const float[]){0.5f, 0.5f, 0});
    check_colour(1.0 / 3.0, 1.0, 1.0, (const float[]){0, 1, 0});
    check_colour(2.0 / 3.0 + 5.0, 1.0, 1.0, (const float[]){0, 0, 1});
    check_colour(-1.0 / 6.0, 0.5, 1.0, (const float[]){1, 0.5f, 1});
    check_colour(0.4, 0.0, 0.3, (const float[]){0.3f, 0.3f, 0.3f});
}

/* The mean colours of clients' pictures differ by more than the spread of one client's pictures
 * would explain. */
static void test_clients_have_palettes(void) {
    enum { NUM_CLIENTS = 40 };
    double between = 0.0, means[NUM_CLIENTS], mean = 0.0;
    for (uint64_t client = 0; client < NUM_CLIENTS; client++) {
        draw_all(&drawn, &OPTIONS, client, FED_SPLIT_TEST);
        double difference = 0.0;
        const size_t num_pixels = drawn.num_examples * SIDE * SIDE;
        for (size_t p = 0; p < num_pixels; p++)
            difference += drawn.pixels[NUM_CHANNELS * p] - drawn.pixels[NUM_CHANNELS * p + 2];
        means[client] = difference / (double)num_pixels;
        mean += means[client] / NUM_CLIENTS;
    }
    for (size_t client = 0; client < NUM_CLIENTS; client++)
        between += (means[client] - mean) * (means[client] - mean) / NUM_CLIENTS;
    CHECK(sqrt(between) > 15.0);
}

static const test_case TESTS[] = {
    TEST(test_pictures_depend_on_their_key_alone),
    TEST(test_version_1),
    TEST(test_extreme_spreads),
    TEST(test_outlines_have_room),
    TEST(test_coverage_equals_a_naive_one),
    TEST(test_hues),
    TEST(test_clients_have_palettes),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
