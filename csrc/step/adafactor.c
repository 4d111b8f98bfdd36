/* SPDX-License-Identifier: Apache-2.0
 * Adafactor (Shazeer and Stern 2018, arXiv 1804.04235; TFF learning/optimizers/adafactor.py) stores
 * the mean squares of a gradient g as means of its rows and columns. In step t, with
 * d = 1 - t^decay, each tensor x is updated separately:
 *
 *     q = g^2 + epsilon_1;  r <- d r + (1 - d) mean of q over columns;  c likewise over rows
 *     u = g / sqrt(r * c / mean(r));      u <- u / max(1, rms(u) / clip threshold)
 *     x <- x - max(epsilon_2, rms(x)) * rate * u
 *
 * For a vector the mean of q itself is stored. Sums are double, stored means are float. */
#include "step.h"

#include <math.h>

static double square(const fed_adafactor *how, float gradient) {
    return (double)gradient * (double)gradient + how->epsilon_1;
}

static void update_mean(const fed_adafactor *how, double mean, float *kept) {
    *kept = (float)(how->kept * (double)*kept + (1 - how->kept) * mean);
}

static void update_row_means(const fed_adafactor *how, const float *gradient,
                             const fed_tensor *matrix, float *rows) {
    for (size_t r = 0; r < matrix->num_rows; r++, gradient += matrix->num_columns) {
        double sum = 0;
        for (size_t c = 0; c < matrix->num_columns; c++) sum += square(how, gradient[c]);
        update_mean(how, sum / (double)matrix->num_columns, &rows[r]);
    }
}

/* Updates the mean squares of the columns, some columns at a time, so that their sums fit into a
 * local array. */
static void update_column_means(const fed_adafactor *how, const float *gradient,
                                const fed_tensor *matrix, float *columns) {
    for (size_t first = 0; first < matrix->num_columns; first += FED_PAD) {
        const size_t left = matrix->num_columns - first, num = left < FED_PAD ? left : FED_PAD;
        double sums[FED_PAD] = {0};
        for (size_t r = 0; r < matrix->num_rows; r++)
            for (size_t c = 0; c < num; c++)
                sums[c] += square(how, gradient[r * matrix->num_columns + first + c]);
        for (size_t c = 0; c < num; c++)
            update_mean(how, sums[c] / (double)matrix->num_rows, &columns[first + c]);
    }
}

/* Divides the gradient by the root of the mean squares that rows and columns represent. */
static void divide_matrix(const fed_tensor *matrix, const float *rows, const float *columns,
                          float *gradient) {
    double sum = 0;
    for (size_t r = 0; r < matrix->num_rows; r++) sum += (double)rows[r];
    for (size_t r = 0; r < matrix->num_rows; r++, gradient += matrix->num_columns) {
        const double share = (double)rows[r] / (sum / (double)matrix->num_rows);
        for (size_t c = 0; c < matrix->num_columns; c++)
            gradient[c] = (float)((double)gradient[c] / sqrt(share * (double)columns[c]));
    }
}

static void divide_vector(const fed_adafactor *how, size_t num_values, float *squares,
                          float *gradient) {
    for (size_t i = 0; i < num_values; i++) {
        update_mean(how, square(how, gradient[i]), &squares[i]);
        gradient[i] = (float)((double)gradient[i] / sqrt((double)squares[i]));
    }
}

static double root_mean_square(const fed_kernels *kernels, const float *values, size_t num_values) {
    return sqrt(kernels->sum_of_squares(values, num_values) / (double)num_values);
}

void fed_adafactor_move(const fed_adafactor *how, const fed_kernels *kernels,
                        const fed_tensor *tensor, float *params, float *gradient, float *rows,
                        float *columns) {
    const size_t matrix_size = tensor->num_rows * tensor->num_columns;
    const size_t num_values = fed_tensor_size(tensor);
    if (num_values == 0) return;
    if (tensor->num_rows == 0) divide_vector(how, num_values, rows, gradient);
    for (size_t m = 0; m < num_values && matrix_size > 0; m += matrix_size) {
        update_row_means(how, gradient + m, tensor, rows + m);
        update_column_means(how, gradient + m, tensor, columns + m);
        divide_matrix(tensor, rows + m, columns + m, gradient + m);
    }
    const double excess = root_mean_square(kernels, gradient, num_values) / how->clip_threshold;
    const double size = root_mean_square(kernels, params, num_values);
    const double step = (size > how->epsilon_2 ? size : how->epsilon_2) * how->rate;
    kernels->sgd(params, gradient, num_values, (float)(excess > 1 ? step / excess : step));
}
