/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of synthetic.c and digits.c: a picture depends on its key alone; the sizes, labels and
 * pictures of synthetic-digits; and the canvas against a naive reference. The public functions are
 * those of the library; digits.c is also included under another name, to test its static functions.
 */
#include "fed.h"
#include "test.h"

#define fed_digits included_digits
#include "random/digits.c"
#undef fed_digits

enum { NUM_CLASSES = 10, MAX_EXAMPLES = 400 };
enum { NUM_PIXELS = DIGIT_SIDE * DIGIT_SIDE, NUM_WRITERS = 200 };

static const fed_synthetic NATURAL = {
    .seed = 1, .style_spread = 0.9, .label_noise = 0.01, .sizes = FED_SIZES_NATURAL};
static const fed_synthetic SKEWED = {
    .seed = 1, .style_spread = 0.9, .label_noise = 0.01, .sizes = FED_SIZES_SKEWED};

/* One client's split, drawn in one call, with bytes around it that must not change. */
typedef struct drawing {
    uint8_t pixels[(MAX_EXAMPLES + 1) * NUM_PIXELS];
    int32_t labels[MAX_EXAMPLES + 1];
    size_t num_examples;
} drawing;

static drawing drawn, other; /* too large for a stack frame */

/* Keys that look like client ids hashed to 64 bits. */
static uint64_t key_of(size_t client) { return (client + 1) * UINT64_C(0x9E3779B97F4A7C15); }

static void draw_all(drawing *out, const fed_synthetic *options, uint64_t client, int split) {
    out->num_examples = fed_synthetic_count(options, client, split);
    CHECK(out->num_examples >= 1 && out->num_examples <= MAX_EXAMPLES);
    memset(&out->pixels[out->num_examples * NUM_PIXELS], 77, NUM_PIXELS);
    out->labels[out->num_examples] = 77;
    CHECK_EQUAL(
        fed_synthetic_draw(options, client, split, 0, out->num_examples, out->pixels, out->labels),
        FED_OK);
    for (size_t i = 0; i < NUM_PIXELS; i++) {
        CHECK_EQUAL(out->pixels[out->num_examples * NUM_PIXELS + i], 77);
    }
    CHECK_EQUAL(out->labels[out->num_examples], 77);
}

static int is_equal(const drawing *a, const drawing *b) {
    return a->num_examples == b->num_examples &&
           memcmp(a->pixels, b->pixels, a->num_examples * NUM_PIXELS) == 0 &&
           memcmp(a->labels, b->labels, a->num_examples * sizeof(a->labels[0])) == 0;
}

/* Mean ink of the drawn pixels, 0..1. */
static double mean_ink(const drawing *images) {
    double sum = 0.0;
    for (size_t i = 0; i < images->num_examples * NUM_PIXELS; i++) {
        sum += images->pixels[i];
    }
    return sum / 255.0 / (double)(images->num_examples * NUM_PIXELS);
}

/* ---- Keys ------------------------------------------------------------------------------------ */

static void test_same_key_same_bytes(void) {
    for (int split = FED_SPLIT_TRAIN; split <= FED_SPLIT_CENTRAL; split++) {
        draw_all(&drawn, &NATURAL, key_of(0), split);
        draw_all(&other, &NATURAL, key_of(0), split);
        CHECK(is_equal(&drawn, &other));
    }
}

static void test_other_key_other_bytes(void) {
    draw_all(&drawn, &NATURAL, key_of(0), FED_SPLIT_CENTRAL);
    draw_all(&other, &NATURAL, key_of(1), FED_SPLIT_CENTRAL);
    CHECK(!is_equal(&drawn, &other));
    fed_synthetic options = NATURAL;
    options.seed = 2;
    draw_all(&other, &options, key_of(0), FED_SPLIT_CENTRAL);
    CHECK(!is_equal(&drawn, &other));
}

static void check_images_differ(uint64_t client) {
    draw_all(&drawn, &NATURAL, client, FED_SPLIT_TRAIN);
    draw_all(&other, &NATURAL, client, FED_SPLIT_TEST);
    for (size_t i = 0; i < drawn.num_examples; i++) {
        const uint8_t *image = &drawn.pixels[i * NUM_PIXELS];
        for (size_t k = i + 1; k < drawn.num_examples; k++) {
            CHECK(memcmp(image, &drawn.pixels[k * NUM_PIXELS], NUM_PIXELS) != 0);
        }
        for (size_t k = 0; k < other.num_examples; k++) {
            CHECK(memcmp(image, &other.pixels[k * NUM_PIXELS], NUM_PIXELS) != 0);
        }
    }
}

/* Several clients are compared: if train and test shared streams, only images of the same digit
 * would repeat. */
static void test_images_do_not_repeat(void) {
    for (size_t client = 0; client < 10; client++) {
        check_images_differ(key_of(client));
    }
}

static void test_range_equals_one_by_one(void) {
    draw_all(&drawn, &NATURAL, key_of(3), FED_SPLIT_TRAIN);
    for (size_t i = 0; i < drawn.num_examples; i++) {
        uint8_t image[NUM_PIXELS];
        int32_t label;
        CHECK_EQUAL(fed_synthetic_draw(&NATURAL, key_of(3), FED_SPLIT_TRAIN, i, 1, image, &label),
                    FED_OK);
        CHECK_EQUAL(label, drawn.labels[i]);
        CHECK_BYTES(image, &drawn.pixels[i * NUM_PIXELS], NUM_PIXELS);
    }
}

/* The sum of the ink of each of a client's first images, as version 1 draws them. Another libm may
 * change a pixel by one level. If the data set changes, it needs another version name. */
static void test_version_1(void) {
    static const int32_t inks[] = {19037, 20195, 22737, 11709, 17423,
                                   14286, 16488, 25374, 21061, 25612};
    static const int32_t labels[] = {2, 9, 2, 1, 5, 1, 7, 9, 7, 0};
    draw_all(&drawn, &NATURAL, 42, FED_SPLIT_TRAIN);
    CHECK_EQUAL(drawn.num_examples, 104);
    for (size_t i = 0; i < sizeof(inks) / sizeof(inks[0]); i++) {
        int32_t ink = 0;
        for (size_t p = 0; p < NUM_PIXELS; p++) {
            ink += drawn.pixels[i * NUM_PIXELS + p];
        }
        CHECK_CLOSE(ink, inks[i], 2);
        CHECK_EQUAL(drawn.labels[i], labels[i]);
    }
}

/* ---- Arguments ------------------------------------------------------------------------------- */

static void check_refused(const fed_synthetic *options, int split, size_t first, size_t num) {
    uint8_t pixels[NUM_PIXELS] = {77};
    int32_t label = 77;
    CHECK_EQUAL(fed_synthetic_draw(options, 1, split, first, num, pixels, &label),
                FED_ERR_ARGUMENT);
    CHECK_EQUAL(pixels[0], 77);
    CHECK_EQUAL(label, 77);
}

static void test_ranges(void) {
    const size_t count = fed_synthetic_count(&NATURAL, 1, FED_SPLIT_TRAIN);
    check_refused(&NATURAL, FED_SPLIT_TRAIN, count, 1);
    check_refused(&NATURAL, FED_SPLIT_TRAIN, 0, count + 1);
    check_refused(&NATURAL, FED_SPLIT_TRAIN, count + 1, 0);
    check_refused(&NATURAL, FED_SPLIT_TRAIN, 1, SIZE_MAX);
    CHECK_EQUAL(fed_synthetic_draw(&NATURAL, 1, FED_SPLIT_TRAIN, count, 0, NULL, NULL), FED_OK);
}

static void check_options_refused(const fed_synthetic *options, int split) {
    CHECK_EQUAL(fed_synthetic_count(options, 1, split), 0);
    check_refused(options, split, 0, 0);
}

static void test_options(void) {
    check_options_refused(&NATURAL, -1);
    check_options_refused(&NATURAL, FED_SPLIT_CENTRAL + 1);
    fed_synthetic bad[] = {NATURAL, NATURAL, NATURAL, NATURAL, NATURAL, NATURAL, NATURAL, NATURAL};
    bad[0].style_spread = -0.1;
    bad[1].style_spread = NAN;
    bad[2].style_spread = 10.1;
    bad[3].label_noise = 1.1;
    bad[4].label_noise = NAN;
    bad[5].sizes = 2;
    bad[6].pictures = -1;
    bad[7].pictures = FED_PICTURES_SHAPES + 1;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_EQUAL(fed_synthetic_bytes(&bad[i]), 0);
        check_options_refused(&bad[i], FED_SPLIT_TRAIN);
    }
}

/* At the largest spread shapes extend beyond the image; nothing may be written outside it. */
static void test_extreme_spreads(void) {
    fed_synthetic options = NATURAL;
    options.style_spread = 10.0;
    for (size_t client = 0; client < 20; client++) {
        draw_all(&drawn, &options, key_of(client), FED_SPLIT_TRAIN);
    }
    options.style_spread = 0.0;
    draw_all(&drawn, &options, key_of(0), FED_SPLIT_TRAIN);
    CHECK(mean_ink(&drawn) > 0.03);
}

/* ---- Sizes and labels ------------------------------------------------------------------------ */

static void check_sizes(const fed_synthetic *options, size_t least, size_t most, double mean,
                        double deviation) {
    enum { NUM_CLIENTS = 5000 };
    double sum = 0.0, sum_of_squares = 0.0;
    for (size_t client = 0; client < NUM_CLIENTS; client++) {
        const size_t num_train = fed_synthetic_count(options, key_of(client), FED_SPLIT_TRAIN);
        const size_t num_test = fed_synthetic_count(options, key_of(client), FED_SPLIT_TEST);
        const size_t num_examples = num_train + num_test;
        CHECK(num_examples >= least && num_examples <= most);
        CHECK(num_test >= 1);
        CHECK_CLOSE(num_test, 0.1 * (double)num_examples, 0.5);
        sum += (double)num_examples;
        sum_of_squares += (double)num_examples * (double)num_examples;
    }
    const double actual_mean = sum / NUM_CLIENTS;
    CHECK_CLOSE(actual_mean, mean, 0.08 * deviation);
    CHECK_CLOSE(sqrt(sum_of_squares / NUM_CLIENTS - actual_mean * actual_mean), deviation,
                0.05 * deviation);
}

static void test_sizes(void) {
    check_sizes(&NATURAL, 8, 117, 100.1, 14.7);
    check_sizes(&SKEWED, 10, 400, 95.0, 60.0); /* mean and deviation of a log-normal
                                                  distribution after clipping */
    CHECK_EQUAL(fed_synthetic_count(&SKEWED, 1, FED_SPLIT_CENTRAL), 100);
}

/* Adds a split's labels to counts and returns how many there are. */
static size_t count_labels(const fed_synthetic *options, uint64_t client, int split,
                           size_t counts[NUM_CLASSES]) {
    draw_all(&drawn, options, client, split);
    for (size_t i = 0; i < drawn.num_examples; i++) {
        CHECK(drawn.labels[i] >= 0 && drawn.labels[i] < NUM_CLASSES);
        counts[drawn.labels[i]]++;
    }
    return drawn.num_examples;
}

static void test_natural_labels_are_even(void) {
    fed_synthetic options = NATURAL;
    options.label_noise = 0.0;
    size_t first_labels[NUM_CLASSES] = {0};
    for (size_t client = 0; client < 50; client++) {
        size_t counts[NUM_CLASSES] = {0};
        size_t num = count_labels(&options, key_of(client), FED_SPLIT_TRAIN, counts);
        first_labels[drawn.labels[0]]++;
        num += count_labels(&options, key_of(client), FED_SPLIT_TEST, counts);
        for (size_t k = 0; k < NUM_CLASSES; k++) {
            CHECK(counts[k] == num / 10 || counts[k] == num / 10 + 1);
        }
    }
    for (size_t k = 0; k < NUM_CLASSES; k++) {
        CHECK(first_labels[k] < 20); /* shuffled: no label always comes first */
    }
}

static void test_skewed_labels_differ_by_client(void) {
    size_t num_rare = 0, all[NUM_CLASSES] = {0}, num_all = 0;
    for (size_t client = 0; client < NUM_WRITERS; client++) {
        size_t counts[NUM_CLASSES] = {0};
        const size_t num = count_labels(&SKEWED, key_of(client), FED_SPLIT_TRAIN, counts);
        for (size_t k = 0; k < NUM_CLASSES; k++) {
            num_rare += (double)counts[k] < 0.02 * (double)num;
            all[k] += counts[k];
        }
        num_all += num;
    }
    /* Under Dir(1) a share is below 2 % with probability 1 - 0.98^9 = 0.17. */
    CHECK_CLOSE((double)num_rare / (NUM_WRITERS * NUM_CLASSES), 0.17, 0.05);
    for (size_t k = 0; k < NUM_CLASSES; k++) {
        CHECK_CLOSE((double)all[k] / (double)num_all, 0.1, 0.03);
    }
}

static void test_central_is_clean_and_even(void) {
    fed_synthetic options = SKEWED;
    options.label_noise = 1.0;
    size_t counts[NUM_CLASSES] = {0};
    CHECK_EQUAL(count_labels(&options, key_of(0), FED_SPLIT_CENTRAL, counts), 100);
    for (size_t k = 0; k < NUM_CLASSES; k++) {
        CHECK_EQUAL(counts[k], 10);
    }
}

static void test_label_noise_changes_labels_only(void) {
    fed_synthetic clean = NATURAL, noisy = NATURAL;
    clean.label_noise = 0.0;
    noisy.label_noise = 0.5;
    size_t num_changed = 0, num_examples = 0;
    for (size_t client = 0; client < 50; client++) {
        draw_all(&drawn, &clean, key_of(client), FED_SPLIT_TRAIN);
        draw_all(&other, &noisy, key_of(client), FED_SPLIT_TRAIN);
        CHECK_BYTES(drawn.pixels, other.pixels, drawn.num_examples * NUM_PIXELS);
        for (size_t i = 0; i < drawn.num_examples; i++) {
            num_changed += drawn.labels[i] != other.labels[i];
        }
        num_examples += drawn.num_examples;
    }
    /* One random label in ten equals the true label. */
    CHECK_CLOSE((double)num_changed / (double)num_examples, 0.45, 0.04);
}

/* ---- Looks ----------------------------------------------------------------------------------- */

static void test_ink(void) {
    double sum = 0.0, least = 1.0, most = 0.0;
    for (size_t client = 0; client < NUM_WRITERS; client++) {
        draw_all(&drawn, &NATURAL, key_of(client), FED_SPLIT_TEST);
        const double ink = mean_ink(&drawn);
        sum += ink;
        least = ink < least ? ink : least;
        most = ink > most ? ink : most;
    }
    CHECK_CLOSE(sum / NUM_WRITERS, 0.10, 0.02);
    CHECK(least > 0.02 && most > 0.14 && most < 0.3); /* thin and thick pens */
}

/* Each allograph is the preferred one of at least a sixth of the writers. */
static void test_allographs(void) {
    size_t num_preferring[NUM_GLYPHS] = {0};
    for (size_t client = 0; client < NUM_WRITERS; client++) {
        writer hand;
        draw_writer(&hand, &NATURAL, key_of(client));
        for (size_t k = 0; k < NUM_DIGITS; k++) {
            size_t best = FIRST_GLYPH[k];
            for (size_t g = FIRST_GLYPH[k]; g < FIRST_GLYPH[k + 1]; g++) {
                best = hand.preferences[g] > hand.preferences[best] ? g : best;
            }
            num_preferring[best]++;
        }
    }
    for (size_t g = 0; g < NUM_GLYPHS; g++) {
        CHECK(num_preferring[g] >= NUM_WRITERS / 6);
    }
}

static void test_pick_follows_weights(void) {
    static const double weights[] = {1.0, 0.0, 3.0};
    const fed_key key = {.seed = 1};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    size_t counts[3] = {0};
    for (int i = 0; i < 10000; i++) {
        counts[fed_pick(&rng, weights, 3)]++;
    }
    CHECK_EQUAL(counts[1], 0);
    CHECK_CLOSE(counts[0], 2500.0, 220.0);
}

static void test_glyphs(void) {
    for (size_t g = 0; g < NUM_GLYPHS; g++) {
        size_t first = 0;
        CHECK(GLYPHS[g].num_strokes >= 1 && GLYPHS[g].num_strokes <= MAX_STROKES);
        for (size_t s = 0; s < GLYPHS[g].num_strokes; s++) {
            CHECK(GLYPHS[g].stroke_ends[s] >= first + 2); /* a stroke has two points or more */
            first = GLYPHS[g].stroke_ends[s];
        }
        CHECK(first <= MAX_POINTS);
    }
    CHECK_EQUAL(FIRST_GLYPH[NUM_DIGITS], NUM_GLYPHS);
}

static void test_curve_goes_through_its_points(void) {
    CHECK_CLOSE(catmull_rom(3.0, 1.0, 4.0, 1.5, 0.0), 1.0, 1e-15);
    CHECK_CLOSE(catmull_rom(3.0, 1.0, 4.0, 1.5, 1.0), 4.0, 1e-15);
    CHECK_CLOSE(catmull_rom(0.0, 1.0, 2.0, 3.0, 0.3), 1.3, 1e-15); /* points on a line stay on it */
    CHECK_CLOSE(catmull_rom(0.0, 0.0, 1.0, 1.0, 0.5), 0.5, 1e-15);
    CHECK_CLOSE(catmull_rom(1.0, 0.0, 0.0, 1.0, 0.5), -0.125, 1e-15);
}

/* ---- The canvas ------------------------------------------------------------------------------ */

static double naive_distance(double x, double y, fed_point from, fed_point to) {
    const double along_x = to.x - from.x, along_y = to.y - from.y;
    const double squared_length = along_x * along_x + along_y * along_y;
    double share = 0.0;
    if (squared_length > 0.0) {
        share = ((x - from.x) * along_x + (y - from.y) * along_y) / squared_length;
        share = fmin(fmax(share, 0.0), 1.0);
    }
    return hypot(x - from.x - share * along_x, y - from.y - share * along_y);
}

static void check_stamps(const fed_point *from, const fed_point *to, size_t num_segments,
                         double reach) {
    fed_canvas paper;
    fed_clear_canvas(&paper, DIGIT_SIDE, (float)reach);
    for (size_t i = 0; i < num_segments; i++) {
        fed_stamp_segment(&paper, from[i], to[i]);
    }
    for (size_t row = 0; row < DIGIT_SIDE; row++) {
        for (size_t column = 0; column < DIGIT_SIDE; column++) {
            double nearest = 1e9;
            for (size_t i = 0; i < num_segments; i++) {
                nearest =
                    fmin(nearest, naive_distance((double)column, (double)row, from[i], to[i]));
            }
            const double stamped = sqrt((double)paper.squared_distance[row][column]);
            CHECK_CLOSE(fmin(stamped, reach), fmin(nearest, reach), 2e-3);
        }
    }
}

static void test_stamps_equal_naive_distances(void) {
    const fed_key key = {.seed = 3};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    for (int trial = 0; trial < 100; trial++) {
        enum { NUM_SEGMENTS = 8 };
        fed_point from[NUM_SEGMENTS], to[NUM_SEGMENTS];
        for (size_t i = 0; i < NUM_SEGMENTS;
             i++) { /* some inside, some across an edge, some outside */
            from[i] = (fed_point){uniform(&rng, -8.0, 36.0), uniform(&rng, -8.0, 36.0)};
            const fed_point step = normal_point(&rng, trial % 2 ? 2.0 : 15.0);
            to[i] = (fed_point){from[i].x + step.x, from[i].y + step.y};
        }
        to[0] = from[0]; /* a dot */
        check_stamps(from, to, NUM_SEGMENTS, uniform(&rng, 0.5, 4.0));
    }
}

static void test_stamps_at_the_corners(void) {
    static const fed_point corners[] = {{0, 0}, {27, 0}, {0, 27}, {27, 27}, {-1, 13}, {28, 13}};
    check_stamps(corners, corners, 6, 1.5);
}

static const test_case TESTS[] = {
    TEST(test_same_key_same_bytes),
    TEST(test_other_key_other_bytes),
    TEST(test_images_do_not_repeat),
    TEST(test_range_equals_one_by_one),
    TEST(test_version_1),
    TEST(test_ranges),
    TEST(test_options),
    TEST(test_extreme_spreads),
    TEST(test_sizes),
    TEST(test_natural_labels_are_even),
    TEST(test_skewed_labels_differ_by_client),
    TEST(test_central_is_clean_and_even),
    TEST(test_label_noise_changes_labels_only),
    TEST(test_ink),
    TEST(test_allographs),
    TEST(test_pick_follows_weights),
    TEST(test_glyphs),
    TEST(test_curve_goes_through_its_points),
    TEST(test_stamps_equal_naive_distances),
    TEST(test_stamps_at_the_corners),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
