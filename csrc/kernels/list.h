/* SPDX-License-Identifier: Apache-2.0
 * The list of all kernels: KERNEL(result, name, parameters). kernels.h includes it for the members
 * of fed_kernels, impl.inc for the entries of a table. To add a kernel, add a row here and its body
 * in an .inc file. */

/* out[o][b] = bias[o] + sum_i weights[o][i] * rows[b][i], for one block of num_rows <=
 * FED_LANES. */
KERNEL(void, dense_forward, const float *weights, /* [O, width], width a multiple of FED_PAD */
       const float *bias,                         /* [O] */
       size_t width, size_t num_outputs, const float *const *rows, /* [num_rows][width] */
       size_t num_rows, float *out /* out [O, FED_LANES] */)

/* weights[o][i] += sum_b gradient[o][b] * rows[b][i] and bias[o] += sum_b gradient[o][b]. Products
 * with a gradient of 0 may be left out, also those with infinity and NaN. */
KERNEL(void, dense_accumulate, float *weights, /* in-out [O, width] */
       float *bias,                            /* in-out [O] */
       size_t width, size_t num_outputs, const float *const *rows, size_t num_rows,
       const float *gradient /* [O, FED_LANES] */)

/* inputs_gradient[b][i] = sum_o weights[o][i] * gradient[o][b], as rows `stride` apart. */
KERNEL(void, dense_backward_inputs, const float *weights, size_t width, size_t num_outputs,
       const float *gradient,                   /* [O, FED_LANES] */
       size_t num_rows, float *inputs_gradient, /* out [num_rows][width] */
       size_t stride)

/* outputs[b][o] = bias[o] + sum_i weights[i][o] * rows[b][i], all sizes multiples of FED_PAD.
 * Any number of rows; O may be a part of a layer's outputs. Products with an input of 0 may be left
 * out, also those with infinity and NaN. */
KERNEL(void, tiles_forward, const float *weights, /* [I][O], weights_stride apart */
       size_t weights_stride, const float *bias,  /* [O] */
       size_t num_inputs, size_t num_outputs, const float *const *rows, /* [num_rows][I] */
       size_t num_rows, float *outputs, /* out [num_rows][O], stride apart */
       size_t stride)
/* Both gradients of a layer that tiles_forward computes, for some of its inputs: see
 * fed_tiles_backward. */
KERNEL(void, tiles_backward, const fed_tiles_backward *backward)

/* Activations (enum fed_activation); NaN stays NaN. num_values is a multiple of FED_PAD. Relative
 * errors are at most 2e-6; below -87 sigmoid is constant, exp(-87). */
KERNEL(void, activate, int activation, float constant, const float *values, size_t num_values,
       float *out /* out; may be values */)
/* Turns the gradient by an activation's outputs into the gradient by its inputs. `seen` are the
 * outputs or, for activations with fed_activation_sees_inputs, the inputs. For relu the gradient is
 * 0 where the output is 0. */
KERNEL(void, undo_activation, int activation, float constant, const float *seen, size_t num_values,
       float *gradient /* in-out */)
/* out[i] = bits[i] >= threshold ? scale * values[i] : 0. */
KERNEL(void, drop, const float *values, const uint16_t *bits, size_t num_values, uint32_t threshold,
       float scale, float *out)

/* Pools of one window, for each of num_channels channels (a multiple of FED_PAD). argmax receives
 * the index of the largest value, counted row by row: the first of equal values, the last of NaNs.
 * argmax may be NULL. Backward kernels add to in_gradient. */
KERNEL(void, max_window, const float *in, const fed_window *window, size_t num_channels,
       float *out, /* out [num_channels] */
       int32_t *argmax /* out [num_channels] */)
KERNEL(void, max_window_backward, const float *gradient, const int32_t *argmax,
       const fed_window *window, size_t num_channels, float *in_gradient /* in-out */)
KERNEL(void, mean_window, const float *in, const fed_window *window, size_t num_channels,
       float *out /* out [num_channels] */)
KERNEL(void, mean_window_backward, const float *gradient, const fed_window *window,
       size_t num_channels, float *in_gradient /* in-out */)

/* Normalisation by channel; coefficients and sums are [num_channels].
 * sums += d and squares += d^2 for d = values - shifts, over all pixels. */
KERNEL(void, norm_deviations, const fed_norm_rows *rows, const float *values, const float *shifts,
       double *sums /* in-out */, double *squares /* in-out */)
/* sums += g and products += g * (values - means), where g is the gradient by the outputs or, where
 * the map clips them, 0. */
KERNEL(void, norm_products, const fed_norm_rows *rows, const fed_norm_map *map,
       const float *gradient, const float *values, double *sums /* in-out */,
       double *products /* in-out */)
/* out = the map of the values, for pixels that follow each other; NaN stays NaN. */
KERNEL(void, norm_apply, const fed_norm_map *map, const float *values, size_t num_pixels,
       size_t num_channels, float *out /* out */)
KERNEL(void, norm_gradient, const fed_norm_gradient *at)
/* out = (values - mean) / deviation * gamma + beta, with mean and deviation of each pixel. */
KERNEL(void, norm_pixels, const fed_pixel_norm *of, float *out /* out [num_pixels, num_channels] */)
KERNEL(void, norm_pixels_gradient, const fed_pixel_norm *of, const fed_pixel_norm_gradient *at)

/* Convolutions. Channels are padded to multiples of FED_PAD. A panel is [taps][panel_width],
 * where taps are the window's values in order and panel_width is FED_PANEL or FED_PAD.
 *
 * out[p][c] = max(least, bias[c] + sum_t panel[t][c] * window_p[t]) for a row of pixels; NaN stays
 * NaN. */
KERNEL(void, conv_row, const fed_sweep *sweep, const float *in /* the first window */,
       const float *panel, size_t panel_width, const float *bias, size_t num_pixels, float least,
       float *out /* out [num_pixels][out_step] */, size_t out_step)
/* The largest of 2x2 pixels (the first of equal values; a NaN if there is one), and the offset of
 * its window. */
KERNEL(void, conv_pool, const float *rows /* 2 * [2 * num_cells or more][panel_width] */,
       size_t row_size, size_t panel_width, size_t num_cells, float least,
       float *out /* out [num_cells][out_step] */, size_t out_step, const fed_offsets *at,
       int32_t *offsets /* out, laid out as `out`; or NULL */)
/* Copies the weights of each channel to panels; channels that do not exist become zeros. */
KERNEL(void, conv_panels, const float *weights /* [num_channels, num_taps] */, size_t num_channels,
       size_t num_taps, float *panels /* out */)
/* Adds a row of cells to the lists. If outputs are given, cells with an output of 0 or less are
 * left out. offsets come from conv_pool. */
KERNEL(void, conv_list_row, const float *outputs /* or NULL */, const float *gradient,
       const int32_t *offsets, size_t num_cells, size_t num_channels, const fed_lists *lists)
/* gradient += the sum over the list of each gradient times its window. */
KERNEL(void, conv_list_gradient, const fed_sweep *sweep, const float *in, const fed_entry *entries,
       size_t num_entries, float *gradient /* in-out [height, run] */)
/* Finds the terms of the windows of a row of cells, for num_channels <= FED_WINDOW_CHANNELS
 * channels, a multiple of FED_PAD. Four windows are pooled to a cell. `at` has the first window of
 * the row. Cells are left out as in conv_list_row. */
KERNEL(void, conv_find_terms, const float *outputs /* or NULL */, const float *gradient,
       const int32_t *offsets, const fed_offsets *at, size_t num_cells, size_t cell_step,
       size_t num_channels, fed_window_terms *terms /* out: channels and offset */)
/* Orders the windows by their number of channels, because the end of a short loop of varying length
 * is often predicted wrongly. Returns the number of windows with at least one channel. */
KERNEL(size_t, conv_order_terms, const fed_window_terms *terms, size_t num_windows,
       fed_window_terms *ordered /* out [num_windows] */)
/* Adds to each window the sum over its channels of the gradient times the channel's weights. */
KERNEL(void, conv_window_inputs, const fed_sweep *sweep,
       const float *weights /* [FED_WINDOW_CHANNELS][height, run] */, const fed_window_terms *terms,
       size_t num_windows, const float *gradient, float *in_gradient /* in-out */)
/* Zeroes each gradient whose output is not above 0; then sums += the row's gradients. */
KERNEL(void, conv_mask_row, const float *outputs /* or NULL */, float *gradient /* in-out */,
       size_t num_cells, size_t num_channels, float *sums /* in-out */)
/* gradient += the gradient by the weights, in panels; for any run and number of taps. */
KERNEL(void, conv_taps_gradient, const fed_taps *taps, float *gradient /* in-out */)

/* Winograd's convolution. The transformed inputs of a row of tiles: [36][num_tiles, num_channels],
 * the 36 points point_stride apart. */
KERNEL(void, winograd_inputs, const fed_tile_row *row, const float *in, size_t row_stride,
       size_t pixel_stride, size_t num_channels, float *points /* out */)
/* The transformed weights of num_values windows side by side, a multiple of FED_PAD. */
KERNEL(void, winograd_weights, const float *taps /* [window * window][num_values] */,
       size_t window /* 3 or 5 */, size_t tap_stride, size_t num_values,
       float *points /* out [36][num_values] */, size_t point_stride)
/* The outputs of conv_row and conv_pool, from the products [36][num_tiles, panel_width]. */
KERNEL(void, winograd_outputs, const fed_tile_row *row, const float *points, size_t panel_width,
       const float *bias, float least, const fed_cells *cells)

/* The backward passes of winograd_outputs and winograd_inputs, for FED_PAD channels, and of
 * winograd_weights, all without pools. The first one writes the gradient by the products. */
KERNEL(void, winograd_outputs_gradient, const fed_tile_row *row,
       const float *gradient /* by the outputs */, size_t row_stride, size_t pixel_stride,
       float *points /* out [36][num_tiles, FED_PAD] */)
/* The gradient by the 6x6 inputs of each tile. Neighbouring tiles share rows or columns of inputs.
 * With is_above, a tile above has already written the rows that it shares, and the gradient is
 * added to them. With is_left, a tile left of the first one has written the columns that it
 * shares. */
KERNEL(void, winograd_inputs_gradient, const fed_tile_row *row,
       const float *points /* [36][num_tiles, FED_PAD] */, int is_above, int is_left,
       float *gradient /* in-out */, size_t row_stride, size_t pixel_stride)
/* taps += the gradient by the weights. */
KERNEL(void, winograd_weights_gradient, const float *points /* [36][num_values] */,
       size_t point_stride, size_t window /* 3 or 5 */, size_t num_values,
       float *taps /* in-out [window * window][num_values] */, size_t tap_stride)

/* The same passes with 3x3 windows and stride 2, for FED_PAD channels: tiles have 9x9 inputs, 4x4
 * outputs, 81 points of values and 36 points of weights (winograd_strided.inc). Values are [81]
 * [num_tiles, FED_PAD], cells are not pooled, and the weights' taps and points are as above. */
KERNEL(void, strided_inputs, const fed_tile_row *row, const float *in, size_t row_stride,
       size_t pixel_stride, float *points /* out */)
KERNEL(void, strided_weights, const float *taps /* [9][num_values] */, size_t tap_stride,
       size_t num_values, float *points /* out [36][num_values] */, size_t point_stride)
KERNEL(void, strided_outputs, const fed_tile_row *row, const float *points, const float *bias,
       float least, const fed_cells *cells)
KERNEL(void, strided_outputs_gradient, const fed_tile_row *row, const float *gradient,
       size_t row_stride, size_t pixel_stride, float *points /* out */)
KERNEL(void, strided_inputs_gradient, const fed_tile_row *row, const float *points, int is_above,
       int is_left, float *gradient /* in-out */, size_t row_stride, size_t pixel_stride)
KERNEL(void, strided_weights_gradient, const float *points /* [36][num_values] */,
       size_t point_stride, size_t num_values, float *taps /* in-out [9][num_values] */,
       size_t tap_stride)

/* Matrix products.
 * out[panel][row][o] = sum_i rows[row][i] * weights[panel][i][o]. */
KERNEL(void, products, const fed_products *at)
/* out[panel][i][o] = sum_row rows[row][i] * gradient[panel][row][o]. */
KERNEL(void, products_gradient, const fed_products_gradient *at)

/* out[c] = max(least, bias[c] + sum_t weights[t][c] * window[t][c]) for each pixel, with taps t in
 * the order of the weights. */
KERNEL(void, depthwise_outputs, const fed_depthwise *of, const float *in /* the first window */,
       float *out /* out */, fed_lines *ahead /* in-out */)
/* target[t][c] += the sum over pixels of window[t][c] * gradient[c], and bias[c] += the sum over
 * pixels of gradient[c]. */
KERNEL(void, depthwise_gradient, const fed_depthwise *of, const float *in, const float *gradient,
       float *target /* in-out, as the weights */, float *bias /* in-out [num_channels]; or NULL */,
       fed_lines *ahead /* in-out */)

/* Convolutions of a group of images (layers/image_gemm.c). */
KERNEL(void, gemm_outputs, const fed_gemm *gemm)
KERNEL(void, gemm_gradient, const fed_gemm_gradient *gemm, fed_lines *ahead /* in-out [2] */)
/* Copies the gradients of pixels to panels of [num_pixels][FED_PAD], and adds them to sums. */
KERNEL(void, gemm_pack, const float *gradient, const size_t *at /* [num_pixels] */,
       size_t num_pixels, size_t num_channels /* a multiple of FED_PAD */,
       float *panels /* out, panel_size apart */, size_t panel_size,
       float *sums /* in-out [num_channels]; or NULL */)

/* Fused softmax cross-entropy of one block: adds the loss and the number of correct predictions to
 * score, and turns logits into scale times the gradient of the loss summed over the block's
 * examples. A prediction is correct if it is the label, whatever the other label and the class
 * weights are. A row with a NaN logit counts as wrong and has a NaN loss. Lanes from num_rows on
 * have no meaning. */
KERNEL(void, softmax_xent, float *logits, /* in: logits, out: gradient [K, FED_LANES] */
       size_t num_classes, const fed_targets *targets /* of [num_rows] */, size_t num_rows,
       float scale, const fed_loss *loss, /* NULL: cross-entropy alone */
       fed_score *score /* in-out */)

/* out[i] = scale * pixels[i] + offset. */
KERNEL(void, decode_uint8, const uint8_t *pixels, size_t num_pixels, float scale, float offset,
       float *out)
KERNEL(void, decode_float32, const float *pixels, size_t num_pixels, float scale, float offset,
       float *out)

/* differs[i] gets bits set wherever a[i] and b[i] differ. */
KERNEL(void, mark_differences, const uint8_t *a, const uint8_t *b, size_t num_bytes,
       uint8_t *differs /* in-out */)

/* to[c][r] = from[r][c] - less[r][c]; less NULL: zeros. */
KERNEL(void, transpose, const float *from, const float *less /* or NULL */, size_t from_stride,
       size_t num_rows, size_t num_columns, float *to, size_t to_stride)

/* SGD with momentum, as in TFF's build_sgdm: slot = momentum * slot + gradient, then
 * params -= learning_rate * (nesterov ? gradient + momentum * slot : slot). */
KERNEL(void, sgd_momentum, float *params, float *slot, const float *gradient, size_t num_params,
       float learning_rate, float momentum, int nesterov)
KERNEL(void, sgd, float *params, const float *gradient, size_t num_params, float learning_rate)
/* params = kept * params - rate * vector. */
KERNEL(void, shrink_and_move, float *params, const float *vector, size_t num_params, float kept,
       float rate)

/* The adaptive optimizers, as in TFF. A coordinate whose accumulator (or gradient, if there is no
 * accumulator) is 0 does not change, even if the divisor is 0; so padding never changes.
 *
 * accumulator += (gradient - accumulator) * share_1, and
 *   adam:  preconditioner += (gradient^2 - preconditioner) * share_2
 *   yogi:  preconditioner += share_2 * sign(gradient^2 - preconditioner) * gradient^2
 * then params -= rate * accumulator / (sqrt(preconditioner) + epsilon). adamw is adam with
 *   params -= learning_rate * (rate * accumulator / (...) + weight_decay * params). */
KERNEL(void, adam, float *params, float *accumulator, float *preconditioner, const float *gradient,
       size_t num_params, const fed_moments *moments)
KERNEL(void, adamw, float *params, float *accumulator, float *preconditioner, const float *gradient,
       size_t num_params, const fed_moments *moments)
KERNEL(void, yogi, float *params, float *accumulator, float *preconditioner, const float *gradient,
       size_t num_params, const fed_moments *moments)
/* preconditioner += gradient^2, then params -= learning_rate * gradient / divisor, which is
 * sqrt(preconditioner + epsilon), or with epsilon_outside sqrt(preconditioner) + epsilon. */
KERNEL(void, adagrad, float *params, float *preconditioner, const float *gradient,
       size_t num_params, float learning_rate, float epsilon, int epsilon_outside)
/* preconditioner += (gradient^2 - preconditioner) * share, then
 * params -= learning_rate * gradient / (sqrt(preconditioner) + epsilon). */
KERNEL(void, rmsprop, float *params, float *preconditioner, const float *gradient,
       size_t num_params, float learning_rate, float share, float epsilon)
/* gradient += strength * (params - server). */
KERNEL(void, add_proximal, float *gradient, const float *params, const float *server,
       size_t num_params, float strength)

/* The sum of squares in float64; NaN or infinite if a value is. */
KERNEL(double, sum_of_squares, const float *values, size_t num_values)
/* values += addend. */
KERNEL(void, add, float *values, const float *addend, size_t num_values)
/* values *= factor. */
KERNEL(void, multiply, float *values, size_t num_values, float factor)

KERNEL(void, delta_to_doubles, const float *params, const float *server, size_t num_params,
       double *delta /* out */)
KERNEL(void, to_floats, const double *from, size_t num_values, float *to /* out */)
/* delta = scale * delta - sent; returns 1 if all values are finite. */
KERNEL(int, next_client_vector, float *delta, const float *sent, size_t num_params, float scale)
/* change += after - before. */
KERNEL(void, add_change, double *change, const float *after, const float *before, size_t num_params)
/* quotient[i] = sum[i] / divisor, rounded to float once. */
KERNEL(void, divide, const double *sum, double divisor, size_t num_values,
       float *quotient /* out */)
/* 1 if every params[i] - server[i] is finite, else 0. */
KERNEL(int, delta_is_finite, const float *params, const float *server, size_t num_params)
/* Returns the sum of squares of params[i] - server[i], in float64; all values must be finite. */
KERNEL(double, delta_size, const float *params, const float *server, size_t num_params,
       double *max_abs /* out */)
/* sum[i] += weight * (params[i] - server[i]): the delta is float32, the sum float64. */
KERNEL(void, add_delta, double *sum, const float *params, const float *server, size_t num_params,
       double weight)
/* sum[i] += weights[k] * vectors[k][first + i], with k in order; weights of 0 are skipped. */
KERNEL(void, add_vectors, double *sum, const float *const *vectors, const double *weights,
       size_t num_vectors, size_t first, size_t num_values)
/* sum[i] = older[last][i] + (... + (older[0][i] + block)), where block is the sum from k = 0 to 7
 * of weights[k] * vectors[k][first + i], in order. */
KERNEL(void, sum_eight, const float *const *vectors, const double *weights, size_t first,
       size_t num_values, const double *const *older, size_t num_older, double *sum /* out */)

/* Sorts each column of a block of rows. Between the steps it prefetches what is read next. */
KERNEL(void, sort_rows, const fed_sort_block *block, const fed_sort_step *steps, size_t num_steps,
       fed_ahead *ahead /* in-out */)
/* The mean of each column; its values are added from the first row to the last. */
KERNEL(void, mean_of_ordered, const int32_t *rows /* [num_rows, FED_LANES] */, size_t num_rows,
       double *mean /* out [FED_LANES] */)
/* The mean of the num_nearest values (1 to num_rows) nearest to each column's median. has_tie is 1
 * where two different values are equally near; the mean then has the smaller one, and the caller
 * must choose between them. */
KERNEL(void, mean_near_median, const int32_t *sorted /* [num_rows, FED_LANES] */, size_t num_rows,
       size_t num_nearest, double *mean /* out [FED_LANES] */,
       uint8_t *has_tie /* out [FED_LANES] */)
/* votes += sign(values - origin); origin NULL: zeros. */
KERNEL(void, add_signs, int32_t *votes /* in-out */, const float *values, const double *origin,
       size_t num_values)
/* sums[i][j] += the squared distance, or the product, of rows i and j, for i <= j. Rows are
 * `stride` apart; num_columns is a multiple of FED_LANES. */
KERNEL(void, add_pair_squares, const double *rows, size_t stride, size_t num_rows,
       size_t num_columns, double *sums /* in-out [num_rows, num_rows] */)
KERNEL(void, add_pair_products, const double *rows, size_t stride, size_t num_rows,
       size_t num_columns, double *sums /* in-out [num_rows, num_rows] */)
KERNEL(void, to_doubles, const float *from, size_t num_values, double *to /* out */)
/* The sum of (values - origin)^2. */
KERNEL(double, square_distance, const float *values, const double *origin, size_t num_values)
/* The sum of (values - origin) * direction. */
KERNEL(double, product_with, const float *values, const double *origin, const double *direction,
       size_t num_values)

/* words = the FED_PHILOX_BLOCKS blocks, of 4 words each, that begin with this counter. */
KERNEL(void, philox_group, const uint64_t *counter /* [4] */, const uint64_t *key /* [2] */,
       uint64_t *words /* out [4 * FED_PHILOX_BLOCKS] */)
/* values[i], values[num_pairs + i] += scale * a pair of independent standard normal numbers, made
 * of words[i] and words[num_pairs + i]; see fed_rng_add_normal. */
KERNEL(void, add_normal, const uint64_t *words, /* [2 * num_pairs] */
       size_t num_pairs, double scale, double *values /* in-out [2 * num_pairs] */)

/* See fed_fma_chain. */
KERNEL(double, fma_chain, size_t num_steps)
