/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of aggregate/: each function against a simple reference in double, at sizes just below and
 * above a block of lanes, a slice and a part; the same bytes on any number of threads; arguments
 * that are refused.
 */
#include "fixtures.h"

enum { MOST_ROWS = 600 };
static const int THREADS[] = {1, 2, 7};
/* Numbers of rows and of values. A part has 4,096 values or more, a slice at most 1,024. */
static const size_t SHAPES[][2] = {
    {1, 1},   {2, 31},    {3, 32},  {4, 33},    {5, 1023}, {6, 1025}, {7, 17},   {9, 4097},
    {16, 70}, {33, 2500}, {64, 40}, {70, 1000}, {100, 99}, {129, 64}, {257, 33}, {MOST_ROWS, 33}};

typedef struct matrix {
    float *values; /* in exactly the memory that is needed */
    const float *starts[MOST_ROWS];
    fed_rows rows;
} matrix;

static void matrix_init(matrix *m, size_t num_rows, size_t num_values) {
    m->values = test_alloc(num_rows * num_values * sizeof *m->values);
    fill_floats(num_rows * 1000 + num_values, 1.0, m->values, num_rows * num_values);
    for (size_t r = 0; r < num_rows; r++) m->starts[r] = m->values + r * num_values;
    m->rows = (fed_rows){m->starts, num_rows, num_values};
}

static double *doubles(size_t count) { return test_alloc(count * sizeof(double)); }

/* ---- The reference --------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Writes the values of a coordinate in ascending order. */
static void sort_column(const matrix *m, size_t c, double *sorted) {
    for (size_t r = 0; r < m->rows.num_rows; r++) sorted[r] = (double)m->starts[r][c];
    qsort(sorted, m->rows.num_rows, sizeof *sorted, ascending);
}

static double reference_trimmed(const double *sorted, size_t num_rows, size_t trim) {
    double sum = 0;
    for (size_t r = trim; r < num_rows - trim; r++) sum += sorted[r];
    return sum / (double)(num_rows - 2 * trim);
}

/* The mean of the values nearest to the median. They are chosen one after the other; of equally
 * near values, the one in the first row is chosen. */
static double reference_near(const matrix *m, size_t c, const double *sorted, size_t num_nearest) {
    const size_t n = m->rows.num_rows;
    const double median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
    int is_taken[MOST_ROWS] = {0};
    double sum = 0;
    for (size_t k = 0; k < num_nearest; k++) {
        size_t best = n;
        for (size_t r = 0; r < n; r++)
            if (!is_taken[r] && (best == n || fabs((double)m->starts[r][c] - median) <
                                                  fabs((double)m->starts[best][c] - median)))
                best = r;
        is_taken[best] = 1;
        sum += (double)m->starts[best][c];
    }
    return sum / (double)num_nearest;
}

static double reference_square_distance(const matrix *m, size_t r, const double *origin) {
    double sum = 0;
    for (size_t c = 0; c < m->rows.num_values; c++) {
        const double difference = (double)m->starts[r][c] - origin[c];
        sum += difference * difference;
    }
    return sum;
}

static const fed_mean NO_MEAN = {NULL, NULL};

/* ---- Each coordinate ------------------------------------------------------------------------- */

static void check_trimmed(const matrix *m, size_t trim) {
    const size_t n = m->rows.num_rows, p = m->rows.num_values;
    double *mean = doubles(p), sorted[MOST_ROWS], squares[MOST_ROWS];
    float *rounded = malloc((p + 1) * sizeof *rounded);
    CHECK_EQUAL(fed_trimmed_mean(2, &m->rows, trim, (fed_mean){mean, rounded}, squares), FED_OK);
    for (size_t c = 0; c < p; c++) {
        sort_column(m, c, sorted);
        CHECK_CLOSE(mean[c], reference_trimmed(sorted, n, trim), 1e-15);
        CHECK(rounded[c] == (float)mean[c]);
    }
    for (size_t r = 0; r < n; r++) {
        const double expected = reference_square_distance(m, r, mean);
        CHECK_CLOSE(squares[r], expected, 1e-13 * expected);
    }
    free(mean);
    free(rounded);
}

static void test_trimmed_means(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++) {
        matrix m;
        matrix_init(&m, SHAPES[s][0], SHAPES[s][1]);
        const size_t most = (m.rows.num_rows - 1) / 2;
        check_trimmed(&m, 0);
        check_trimmed(&m, most / 2);
        check_trimmed(&m, most);
        CHECK_EQUAL(fed_trimmed_mean(1, &m.rows, most + 1, NO_MEAN, NULL), FED_ERR_ARGUMENT);
        free(m.values);
    }
}

static void check_near(const matrix *m, size_t num_nearest) {
    double *mean = doubles(m->rows.num_values), sorted[MOST_ROWS];
    float *rounded = malloc((m->rows.num_values + 1) * sizeof *rounded);
    CHECK_EQUAL(fed_mean_near_median(2, &m->rows, num_nearest, (fed_mean){mean, rounded}), FED_OK);
    for (size_t c = 0; c < m->rows.num_values; c++) {
        sort_column(m, c, sorted);
        CHECK_CLOSE(mean[c], reference_near(m, c, sorted, num_nearest), 1e-15);
        CHECK(rounded[c] == (float)mean[c]);
    }
    free(mean);
    free(rounded);
}

static void test_means_near_the_median(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++) {
        matrix m;
        matrix_init(&m, SHAPES[s][0], SHAPES[s][1]);
        const size_t n = m.rows.num_rows;
        check_near(&m, 1);
        check_near(&m, (n + 1) / 2);
        check_near(&m, n);
        /* few different values, so that many are equally near */
        for (size_t i = 0; i < n * m.rows.num_values; i++) m.values[i] = roundf(4 * m.values[i]);
        check_near(&m, (n + 1) / 2);
        check_near(&m, n - n / 4);
        CHECK_EQUAL(fed_mean_near_median(1, &m.rows, 0, NO_MEAN), FED_ERR_ARGUMENT);
        CHECK_EQUAL(fed_mean_near_median(1, &m.rows, n + 1, NO_MEAN), FED_ERR_ARGUMENT);
        free(m.values);
    }
}

static void test_votes_of_signs(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++) {
        matrix m;
        matrix_init(&m, SHAPES[s][0], SHAPES[s][1]);
        const size_t n = m.rows.num_rows, p = m.rows.num_values;
        double *origin = doubles(p);
        int32_t *votes = test_alloc(p * sizeof *votes);
        for (size_t i = 0; i < n * p; i++) m.values[i] = roundf(m.values[i]); /* some are 0 */
        for (size_t c = 0; c < p; c++) origin[c] = 0;
        for (int has_origin = 0; has_origin < 2; has_origin++) {
            CHECK_EQUAL(fed_sign_votes(2, &m.rows, has_origin ? origin : NULL, votes), FED_OK);
            for (size_t c = 0; c < p; c++) {
                int32_t expected = 0;
                for (size_t r = 0; r < n; r++) {
                    const double value = (double)m.starts[r][c] - origin[c];
                    expected += (value > 0) - (value < 0);
                }
                CHECK_EQUAL(votes[c], expected);
            }
            for (size_t c = 0; c < p; c++) origin[c] = 0.25 * (double)(c % 3) - 0.25;
        }
        free(votes);
        free(origin);
        free(m.values);
    }
}

/* ---- Sums and distances ---------------------------------------------------------------------- */

static void test_moves_and_mixtures(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++) {
        matrix m;
        matrix_init(&m, SHAPES[s][0], SHAPES[s][1]);
        const size_t n = m.rows.num_rows, p = m.rows.num_values;
        double *vector = doubles(p), *factors = doubles(2 * n), squares[MOST_ROWS];
        const double offsets[2] = {0.5, -2};
        float *mixed = test_alloc(2 * p * sizeof *mixed);
        for (size_t i = 0; i < 2 * n; i++) factors[i] = (double)(i % 5);
        for (size_t c = 0; c < p; c++) vector[c] = (double)(c % 7);
        CHECK_EQUAL(fed_mix_rows(2, &m.rows, factors, offsets, vector, 2, mixed), FED_OK);
        for (size_t o = 0; o < 2; o++)
            for (size_t c = 0; c < p; c++) {
                double sum = offsets[o] * vector[c];
                for (size_t r = 0; r < n; r++) sum += factors[o * n + r] * (double)m.starts[r][c];
                CHECK_CLOSE(mixed[o * p + c], sum, 1e-7 * (fabs(sum) + 1e-6 * (double)n));
            }
        CHECK_EQUAL(fed_move_by_rows(2, &m.rows, 0.25, factors, vector, squares), FED_OK);
        for (size_t c = 0; c < p; c++) {
            double sum = 0.25 * (double)(c % 7);
            for (size_t r = 0; r < n; r++) sum += factors[r] * (double)m.starts[r][c];
            CHECK_CLOSE(vector[c], sum, 1e-13 * (double)n);
        }
        for (size_t r = 0; r < n; r++) {
            const double expected = reference_square_distance(&m, r, vector);
            CHECK_CLOSE(squares[r], expected, 1e-13 * expected);
        }
        for (size_t c = 0; c < p; c++) vector[c] = NAN; /* its old values must not matter */
        CHECK_EQUAL(fed_move_by_rows(2, &m.rows, 0, factors, vector, NULL), FED_OK);
        for (size_t c = 0; c < p; c++) CHECK(isfinite(vector[c]));
        free(mixed);
        free(factors);
        free(vector);
        free(m.values);
    }
}

static void test_distances_and_products(void) {
    for (size_t s = 0; s < LENGTH(SHAPES); s++) {
        matrix m;
        matrix_init(&m, SHAPES[s][0], SHAPES[s][1]);
        const size_t n = m.rows.num_rows, p = m.rows.num_values;
        double *origin = doubles(p), *direction = doubles(p), *pairs = doubles(n * n);
        double squares[MOST_ROWS], products[MOST_ROWS];
        for (size_t c = 0; c < p; c++) {
            origin[c] = 0.01 * (double)(c % 11);
            direction[c] = 0.5 - (double)(c % 2);
        }
        CHECK_EQUAL(fed_measure_rows(2, &m.rows, origin, direction, squares, products), FED_OK);
        for (size_t r = 0; r < n; r++) {
            double product = 0;
            for (size_t c = 0; c < p; c++)
                product += ((double)m.starts[r][c] - origin[c]) * direction[c];
            CHECK_CLOSE(squares[r], reference_square_distance(&m, r, origin), 1e-13 * (double)p);
            CHECK_CLOSE(products[r], product, 1e-13 * (double)p);
        }
        for (size_t c = 0; c < p; c++) origin[c] = 0;
        CHECK_EQUAL(fed_measure_rows(2, &m.rows, NULL, NULL, squares, NULL), FED_OK);
        for (size_t r = 0; r < n; r++)
            CHECK_CLOSE(squares[r], reference_square_distance(&m, r, origin), 1e-13 * (double)p);
        for (int is_product = 0; is_product < 2; is_product++) {
            CHECK_EQUAL(fed_row_pairs(2, &m.rows, is_product, pairs), FED_OK);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++) {
                    double sum = 0;
                    for (size_t c = 0; c < p; c++) {
                        const double a = (double)m.starts[i][c], b = (double)m.starts[j][c];
                        sum += is_product ? a * b : (a - b) * (a - b);
                    }
                    CHECK_CLOSE(pairs[i * n + j], sum, 1e-13 * (double)p);
                    CHECK(pairs[i * n + j] == pairs[j * n + i]);
                }
        }
        free(pairs);
        free(direction);
        free(origin);
        free(m.values);
    }
}

/* ---- The closest rows ------------------------------------------------------------------------ */

/* Tries all subsets. */
static void reference_closest(const double *distances, size_t n, size_t k, size_t *chosen) {
    double best = HUGE_VAL;
    for (uint32_t set = 0; set < 1u << n; set++) {
        size_t members[16], num = 0;
        double diameter = 0;
        for (size_t i = 0; i < n; i++) /* row 0 is the highest bit, so larger numbers come first in
                                          lexicographic order */
            if (~set >> (n - 1 - i) & 1) members[num++] = i;
        if (num != k) continue;
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < i; j++)
                diameter = fmax(diameter, distances[members[i] * n + members[j]]);
        if (diameter >= best) continue;
        best = diameter;
        memcpy(chosen, members, k * sizeof *chosen);
    }
}

static void test_the_closest_rows(void) {
    for (size_t n = 1; n <= 9; n++)
        for (size_t k = 1; k <= n; k++)
            for (uint64_t seed = 1; seed < 4; seed++) {
                double distances[81];
                size_t chosen[9], expected[9];
                uint64_t state = 100 * n + 10 * k + seed;
                for (size_t i = 0; i < n; i++)
                    for (size_t j = 0; j <= i; j++)
                        distances[i * n + j] = distances[j * n + i] =
                            i == j ? 0 : (double)(next_bits(&state) % (seed == 1 ? 4 : 1000));
                CHECK_EQUAL(fed_least_diameter(distances, n, k, chosen), FED_OK);
                reference_closest(distances, n, k, expected);
                CHECK_BYTES(chosen, expected, k * sizeof *chosen);
            }
    const double one = 0;
    size_t chosen;
    CHECK_EQUAL(fed_least_diameter(&one, 1, 0, &chosen), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_least_diameter(&one, 1, 2, &chosen), FED_ERR_ARGUMENT);
}

/* ---- Bounds ---------------------------------------------------------------------------------- */

static void test_rows_are_measured_and_bounded(void) {
    enum { NUM = 9000 }; /* more than two pieces */
    static float values[5][NUM];
    float *rows[5] = {values[0], values[1], values[2], values[3], values[4]};
    static const fed_bounds bounds = {10, 30};
    fed_measured sizes[5];
    for (int t = 1; t <= 7; t += 3) {
        for (size_t v = 0; v < NUM; v++) {
            values[0][v] = .01f;           /* short */
            values[1][v] = v % 2 ? 1 : -1; /* too long */
            values[2][v] = v == 5000 ? -11 : 0;
            values[3][v] = v == NUM - 1 ? INFINITY : 0;
            values[4][v] = v == 0 ? NAN : 0;
        }
        CHECK_EQUAL(fed_bound_rows(t, rows, 5, NUM, NULL, sizes), FED_OK);
        for (size_t r = 0; r < 5; r++) CHECK_EQUAL(sizes[r].is_finite, r < 3);
        CHECK(values[1][0] == -1 && values[2][5000] == -11);
        CHECK_EQUAL(fed_bound_rows(t, rows, 5, NUM, &bounds, sizes), FED_OK);
        for (size_t r = 0; r < 5; r++) CHECK_EQUAL(sizes[r].is_finite, r < 3);
        CHECK_CLOSE(sizes[0].norm, (double).01f * sqrt(NUM), 1e-12);
        CHECK(sizes[0].max_abs == (double).01f && values[0][NUM - 1] == .01f);
        CHECK_CLOSE(sizes[1].norm, sqrt(NUM), 1e-12);
        for (size_t v = 0; v < NUM; v++)
            CHECK(values[1][v] == (float)((v % 2 ? 30 : -30) / sizes[1].norm));
        CHECK(sizes[2].max_abs == 11 && sizes[2].norm == 0);
        for (size_t v = 0; v < NUM; v++) CHECK(values[2][v] == 0);
    }
    CHECK_EQUAL(fed_bound_rows(1, rows, 0, NUM, &bounds, sizes), FED_OK);
    CHECK_EQUAL(fed_bound_rows(1, rows, 5, 0, &bounds, sizes), FED_OK);
    CHECK(sizes[0].is_finite && sizes[0].norm == 0);
    CHECK_EQUAL(fed_bound_rows(0, rows, 5, NUM, NULL, sizes), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_bound_rows(1, rows, 5, NUM, &(fed_bounds){NAN, 1}, sizes), FED_ERR_ARGUMENT);
}

/* ---- Threads and arguments ------------------------------------------------------------------- */

/* Writes all results with one number of threads to `out`, one after another. */
static size_t results(int num_threads, const matrix *m, double *out) {
    const size_t n = m->rows.num_rows, p = m->rows.num_values;
    double *at = out, factors[MOST_ROWS];
    for (size_t r = 0; r < n; r++) factors[r] = 1.0 / (double)(r + 1);
    CHECK_EQUAL(fed_trimmed_mean(num_threads, &m->rows, n / 4, (fed_mean){at, NULL}, at + p),
                FED_OK);
    at += p + n;
    CHECK_EQUAL(fed_mean_near_median(num_threads, &m->rows, n - n / 4, (fed_mean){at, NULL}),
                FED_OK);
    at += p;
    CHECK_EQUAL(fed_move_by_rows(num_threads, &m->rows, 0, factors, at, at + p), FED_OK);
    CHECK_EQUAL(fed_measure_rows(num_threads, &m->rows, out, at, at + p + n, at + p + 2 * n),
                FED_OK);
    at += p + 3 * n;
    CHECK_EQUAL(fed_row_pairs(num_threads, &m->rows, 0, at), FED_OK);
    return (size_t)(at - out) + n * n;
}

static void test_threads_change_no_byte_of_rows(void) {
    matrix m;
    matrix_init(&m, 11, 40013);
    const size_t most = 3 * m.rows.num_values + 200;
    double *first = doubles(most), *other = doubles(most);
    const size_t num = results(1, &m, first);
    for (size_t t = 0; t < LENGTH(THREADS); t++) {
        CHECK_EQUAL(results(THREADS[t], &m, other), num);
        CHECK_BYTES(other, first, num * sizeof *first);
    }
    free(first);
    free(other);
    free(m.values);
}

static void test_no_values_and_wrong_arguments(void) {
    const float *const nothing[2] = {NULL, NULL};
    const fed_rows empty = {nothing, 2, 0}, no_rows = {nothing, 0, 3};
    const double factors[2] = {1, 1};
    double squares[2] = {5, 5}, pairs[4] = {5, 5, 5, 5};
    CHECK_EQUAL(fed_trimmed_mean(2, &empty, 0, NO_MEAN, squares), FED_OK);
    CHECK(squares[0] == 0 && squares[1] == 0);
    CHECK_EQUAL(fed_move_by_rows(2, &empty, 0, factors, NULL, NULL), FED_OK);
    CHECK_EQUAL(fed_row_pairs(2, &empty, 0, pairs), FED_OK);
    CHECK(pairs[0] == 0 && pairs[3] == 0);
    CHECK_EQUAL(fed_mean_near_median(2, &empty, 1, NO_MEAN), FED_OK);
    CHECK_EQUAL(fed_sign_votes(2, &empty, NULL, NULL), FED_OK);
    CHECK_EQUAL(fed_trimmed_mean(2, &no_rows, 0, NO_MEAN, NULL), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_row_pairs(2, &no_rows, 0, pairs), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_move_by_rows(0, &empty, 0, factors, NULL, NULL), FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_measure_rows(FED_MAX_THREADS + 1, &empty, NULL, NULL, squares, NULL),
                FED_ERR_ARGUMENT);
    CHECK_EQUAL(fed_mix_rows(0, &empty, factors, NULL, NULL, 1, NULL), FED_ERR_ARGUMENT);
}

static const test_case TESTS[] = {
    TEST(test_trimmed_means),
    TEST(test_means_near_the_median),
    TEST(test_votes_of_signs),
    TEST(test_moves_and_mixtures),
    TEST(test_distances_and_products),
    TEST(test_the_closest_rows),
    TEST(test_rows_are_measured_and_bounded),
    TEST(test_threads_change_no_byte_of_rows),
    TEST(test_no_values_and_wrong_arguments),
};

int main(int argc, char **argv) { return RUN_ON_EACH_ISA(TESTS, argc, argv); }
