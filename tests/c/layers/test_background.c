/* SPDX-License-Identifier: Apache-2.0
 *
 * Marks of the background and of windows, against a search of each window's pixels. Sizes go up to
 * the largest that marks have room for. Images have exactly the promised size, so that a sanitizer
 * finds any access outside them.
 */
#include "layers/background.h"
#include "test.h"

enum { NUM_CASES = 3000 };

static uint32_t state = 1;

/* A number from `low` to `high`. */
static size_t draw(size_t low, size_t high) {
    state = state * 1664525 + 1013904223;
    return low + (state >> 8) % (high - low + 1);
}

typedef struct problem {
    fed_shape shape;
    fed_buffer buffer;
    fed_windows windows;
    float *image; /* buffer */
} problem;

/* The number of windows of which each overlaps the image. */
static size_t num_windows(size_t size, size_t step, size_t pad) {
    return draw(1, 1 + (size - 1 + pad) / step);
}

/* Most pixels are background; few windows would have only background otherwise. */
static void draw_image(problem *p) {
    const size_t most = draw(0, 4);
    p->image = test_alloc(p->buffer.num_values * sizeof *p->image);
    memset(p->image, 0, p->buffer.num_values * sizeof *p->image);
    for (size_t y = 0; y < p->shape.height; y++)
        for (size_t x = 0; x < p->shape.width; x++)
            for (size_t c = 0; c < p->shape.channels; c++)
                p->image[fed_pixel(&p->buffer, y, x) + c] = 0.5f * (float)c;
    for (size_t i = 0; i < most; i++) {
        const size_t y = draw(0, p->shape.height - 1), x = draw(0, p->shape.width - 1);
        p->image[fed_pixel(&p->buffer, y, x) + draw(0, p->shape.channels - 1)] = i < 3 ? 7 : NAN;
    }
}

static problem new_problem(void) {
    const size_t height = draw(1, 6), width = draw(1, 6);
    problem p = {
        .shape = {draw(1, FED_MOST_MARKS - height), draw(1, FED_MOST_MARKS - width), draw(1, 3)},
        .windows = {.height = height,
                    .width = width,
                    .step_y = draw(1, 5),
                    .step_x = draw(1, 5),
                    .pad_top = draw(0, height - 1),
                    .pad_left = draw(0, width - 1)}};
    fed_windows *windows = &p.windows;
    windows->num_rows = num_windows(p.shape.height, windows->step_y, windows->pad_top);
    windows->num_columns = num_windows(p.shape.width, windows->step_x, windows->pad_left);
    const fed_border border = {draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2)};
    p.buffer = draw(0, 1) ? fed_image_buffer(&p.shape)
                          : fed_bordered_buffer(&p.shape, &border, fed_padded(p.shape.channels));
    draw_image(&p);
    return p;
}

/* 1 if pixel (y, x) is in the image and equals the first one. Numbers before the image are huge. */
static bool is_background(const problem *p, size_t y, size_t x) {
    if (y >= p->shape.height || x >= p->shape.width) return false;
    for (size_t c = 0; c < p->shape.channels; c++)
        if (!(p->image[fed_pixel(&p->buffer, y, x) + c] == p->image[p->buffer.origin + c]))
            return false;
    return true;
}

static bool sees_only_background(const problem *p, size_t y, size_t x) {
    const fed_windows *windows = &p->windows;
    for (size_t r = 0; r < windows->height; r++)
        for (size_t c = 0; c < windows->width; c++)
            if (!is_background(p, y * windows->step_y + r - windows->pad_top,
                               x * windows->step_x + c - windows->pad_left))
                return false;
    return true;
}

static void test_marks_equal_those_of_a_search(void) {
    size_t num_marked = 0;
    for (size_t i = 0; i < NUM_CASES; i++) {
        problem p = new_problem();
        fed_marks pixels, marks;
        fed_mark_background(&p.buffer, &p.shape, p.image, &pixels);
        fed_mark_windows(&pixels, &p.shape, &p.windows, &marks);
        for (size_t y = 0; y < p.windows.num_rows; y++)
            for (size_t x = 0; x < FED_MOST_MARKS; x++) {
                const bool expected = x < p.windows.num_columns && sees_only_background(&p, y, x);
                CHECK_EQUAL(marks.rows[y] >> x & 1, expected);
                num_marked += expected;
            }
        free(p.image);
    }
    CHECK(num_marked > NUM_CASES);
}

static void test_marks_are_taken_in_order(void) {
    fed_marks marks = {.rows = {0, (uint64_t)1 << 63 | 5, 0, 1}};
    const size_t expected[][2] = {{1, 0}, {1, 2}, {1, 63}, {3, 0}};
    size_t y, x;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        CHECK(fed_take_first_mark(&marks, 4, &y, &x));
        CHECK_EQUAL(y, expected[i][0]);
        CHECK_EQUAL(x, expected[i][1]);
    }
    CHECK(!fed_take_first_mark(&marks, 4, &y, &x));
}

static void test_runs_are_the_gaps_between_marks(void) {
    const uint64_t marks = (uint64_t)1 << 63 | 0x13;
    size_t first = 0;
    CHECK_EQUAL(fed_next_run(marks, 64, &first), 2);
    CHECK_EQUAL(first, 2);
    first += 2;
    CHECK_EQUAL(fed_next_run(marks, 64, &first), 58);
    CHECK_EQUAL(first, 5);
    first += 58;
    CHECK_EQUAL(fed_next_run(marks, 64, &first), 0);
    first = 0;
    CHECK_EQUAL(fed_next_run(0, 64, &first), 64);
    CHECK_EQUAL(fed_next_run(3, 2, &first), 0);
}

static const test_case TESTS[] = {
    TEST(test_marks_equal_those_of_a_search),
    TEST(test_marks_are_taken_in_order),
    TEST(test_runs_are_the_gaps_between_marks),
};

int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
