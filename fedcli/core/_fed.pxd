# SPDX-License-Identifier: Apache-2.0
"""The declarations of csrc/fed.h that _core.pyx uses."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "fed.h" nogil:
    ctypedef struct atomic_int:
        pass
    int atomic_load(atomic_int *)
    void atomic_store(atomic_int *, int)

    enum:
        FED_OK, FED_ERR_NO_MEMORY, FED_ERR_ARGUMENT, FED_ERR_LABEL, FED_ERR_CANCELLED, FED_ERR_ISA
        FED_ERR_CHANGED, FED_ERR_PAYLOAD
    const char *fed_strerror(int)
    ctypedef struct fed_fault:
        size_t client_index, example_index
        int32_t label

    int fed_select_isa(const char *)
    const char *fed_isa_name()
    int fed_isa_runs(const char *)
    int fed_has_openmp()
    double fed_fma_chain(size_t)

    ctypedef struct fed_key:
        uint64_t seed, client, round, purpose, occurrence
    void fed_rng_fill(const fed_key *, uint64_t *, size_t)
    float fed_mixup_draw(double, const fed_key *, size_t, size_t, uint32_t *)
    ctypedef struct fed_noise:
        size_t num_keys
        const fed_key *keys
        const double *factors
        double *groups
        int takes_halves
    int fed_noised_mean(int, const fed_noise *, const double *, double, float *, size_t) nogil

    ctypedef struct fed_secure_terms:
        size_t num_clients, num_params
        const float *const *rows
        const uint64_t *weights
        const double *factors
        const double *center
        int32_t takes_signs
        double clip, low, high
        uint64_t top_level
        uint32_t mask_bits
        const fed_key *rounding_keys
        fed_key masks
    int fed_secure_sum(int, const fed_secure_terms *, uint64_t *, uint64_t *, uint64_t *)

    ctypedef struct fed_plan:
        int32_t pipeline
        size_t epochs, batch_size, shuffle_buffer, max_examples
    size_t fed_plan_visits(const fed_plan *, size_t)
    size_t fed_plan_batches(const fed_plan *, size_t)
    ctypedef struct fed_order:
        pass
    size_t fed_order_capacity(const fed_plan *, size_t)
    void fed_order_init(fed_order *, const fed_plan *, size_t, const fed_key *, uint32_t *)
    size_t fed_order_next(fed_order *, uint32_t *)

    enum:
        FED_MAX_LAYERS
    int fed_layer_kind_named(const char *)
    ctypedef struct fed_shape:
        size_t height, width, channels
    ctypedef struct fed_layer:
        int32_t kind, activation
        fed_shape in_ "in", out
        size_t offset
        size_t skips[2]
        int32_t has_scale, has_bias
        size_t window_height, window_width, stride_y, stride_x, pad_top, pad_left
        size_t num_groups
        double epsilon, rate, momentum
        int32_t is_frozen
        size_t moving_offset
        double constants[8]
    ctypedef struct fed_model:
        const fed_layer *layers
        size_t num_layers, num_inputs, num_classes, num_params
    int fed_model_check(const fed_model *)
    enum:
        FED_MAX_NORMALIZED
    size_t fed_inputs_size(const fed_model *)
    int fed_run_inputs(const fed_model *, const float *, size_t, const fed_key *, size_t, float *)
    size_t fed_batch_bytes(const fed_model *, size_t, size_t, int)
    enum:
        FED_MAX_BATCH

    ctypedef struct fed_step_row:
        int32_t kind
        double options[8]
    ctypedef struct fed_step:
        const fed_step_row *rows
        size_t num_rows
    ctypedef struct fed_tensor:
        size_t num_matrices, num_rows, num_columns
    ctypedef struct fed_tensors:
        const fed_tensor *each
        size_t num
    int fed_step_check(const fed_step *)
    size_t fed_step_slots(const fed_step *)
    void fed_step_init_slots(const fed_step *, size_t, float *)
    int fed_step_apply(const fed_step *, const fed_tensors *, size_t, size_t, float *,
                       const float *, const float *, float *, float *)

    enum:
        FED_REPEAT_SHUFFLE, FED_PER_EPOCH
    enum:
        FED_PIXELS_UINT8, FED_PIXELS_FLOAT32
    ctypedef struct fed_prepared:
        pass
    ctypedef struct fed_own:
        const float *linear
        float *delta
        double delta_factor
        const float *start
        double max_distance
    ctypedef struct fed_client:
        const void *pixels
        int32_t pixel_type
        float scale, offset
        const int32_t *labels
        size_t num_examples
        fed_plan plan
        fed_key shuffle_key, dropout_key, mixup_key
        const fed_prepared *prepared
        const fed_own *own
    fed_prepared *fed_prepare(const fed_model *, const fed_client *)
    void fed_prepared_free(fed_prepared *)
    ctypedef struct fed_client_stats:
        double loss_sum, weight, max_abs, norm
        int64_t num_correct, num_examples, num_batches
        int32_t is_finite

    ctypedef struct fed_sum:
        pass
    fed_sum *fed_sum_new(size_t)
    fed_sum *fed_sum_new_of(const fed_model *)
    void fed_sum_free(fed_sum *)
    int fed_sum_add(fed_sum *, const float *const *, const double *, size_t)
    int fed_sum_vectors(int, const float *const *, const double *, size_t, size_t, double *)
    void fed_sum_reset(fed_sum *)
    int fed_next_client_vector(size_t, double, const float *, float *)
    void fed_add_change(size_t, const float *, const float *, double *)
    void fed_divide(size_t, const double *, double, float *)
    void fed_sum_total(fed_sum *, double *, double *)

    enum:
        FED_MAX_THREADS
    ctypedef struct fed_team:
        pass
    fed_team *fed_team_new(int)
    void fed_team_free(fed_team *)
    ctypedef struct fed_bounds:
        double max_abs, norm
    ctypedef struct fed_terms:
        int weighting
        const fed_bounds *bounds
        const float *frozen_slots
        size_t frozen_step_num
        const double *rate_factors
        size_t num_rate_factors
        const fed_tensors *tensors
        const float *class_weights
        float label_smoothing
        atomic_int *num_trained
    int fed_train_cohort(fed_team *, const fed_model *, const fed_step *, const float *,
                         const fed_client *, size_t, const fed_terms *, const atomic_int *,
                         fed_sum *, fed_client_stats *, fed_fault *)
    int fed_evaluate(fed_team *, const fed_model *, const float *, const fed_client *, size_t,
                     const atomic_int *, fed_client_stats *, fed_fault *)
    int fed_predict(fed_team *, const fed_model *, const float *, const fed_client *, size_t,
                    const atomic_int *, float *, fed_fault *)

    ctypedef struct fed_measured:
        double max_abs, norm
        int64_t is_finite
    int fed_bound_rows(int, float *const *, size_t, size_t, const fed_bounds *, fed_measured *)
    ctypedef struct fed_rows:
        const float *const *rows
        size_t num_rows, num_values
    ctypedef struct fed_mean:
        double *exact
        float *rounded
    int fed_trimmed_mean(int, const fed_rows *, size_t, fed_mean, double *)
    int fed_mean_near_median(int, const fed_rows *, size_t, fed_mean)
    int fed_sign_votes(int, const fed_rows *, const double *, int32_t *)
    int fed_move_by_rows(int, const fed_rows *, double, const double *, double *, double *)
    int fed_mix_rows(int, const fed_rows *, const double *, const double *, const double *, size_t,
                     float *)
    int fed_measure_rows(int, const fed_rows *, const double *, const double *, double *, double *)
    int fed_row_pairs(int, const fed_rows *, int, double *)
    int fed_least_diameter(const double *, size_t, size_t, size_t *)

    size_t fed_stages(const fed_model *, size_t *)
    int fed_exercise(const fed_model *, const float *, size_t, size_t, int, size_t)

    ctypedef struct fed_synthetic:
        int32_t pictures
        uint64_t seed
        double style_spread, label_noise
        int32_t sizes
    size_t fed_synthetic_bytes(const fed_synthetic *)
    size_t fed_synthetic_count(const fed_synthetic *, uint64_t, int)
    int fed_synthetic_draw(const fed_synthetic *, uint64_t, int, size_t, size_t, uint8_t *,
                           int32_t *)

    ctypedef struct fed_codec:
        int32_t kind, is_short, is_unbiased
        uint32_t bits, levels
        size_t num_params, count, block, rank, depth, width
        double step, clip
        fed_tensors tensors
        const float *factors
    ctypedef struct fed_sent:
        double squared_norm, squared_error
        int64_t num_bytes, is_sent
    int fed_codec_kind_named(const char *)
    int fed_codec_check(const fed_codec *)
    size_t fed_codec_capacity(const fed_codec *)
    int fed_codec_encode(const fed_codec *, const fed_key *, const float *, uint8_t *, size_t *)
    int fed_codec_decode(const fed_codec *, const fed_key *, const uint8_t *, size_t, float *)
    int fed_codec_compress_rows(const fed_codec *, int, const fed_key *, float **, size_t,
                                const float **, float **, double, fed_sent *)
    int fed_codec_encode_rows(const fed_codec *, int, const fed_key *, float **, size_t,
                              const float **, double, uint8_t *, fed_sent *)
