/* SPDX-License-Identifier: Apache-2.0
 *
 * The public interface of the C core: all that Cython and the C tests may call. The core trains and
 * evaluates federated image classifiers. It never prints, never opens a file, and does not depend
 * on Python.
 *
 * Folders; each uses only those below it:
 *
 *   aggregate/ robust rules, which combine the deltas of a cohort or replace each of them
 *   cohort/   training and scoring of a cohort on several threads; the sum of its deltas
 *   client/   one client: decoding and batching of examples, local steps, statistics
 *   net/      a model as stages that read earlier stages' values; the passes of a batch
 *   layers/   table.c has a row for each kind of layer; each implementation has its own file
 *   compress/ codecs, which encode a client's vector in few bytes and decode it
 *   secure/   the sum of masked integers of a secure aggregation
 *   step/     the step table: how a gradient updates the parameters
 *   random/   random numbers, the synthetic data set
 *   kernels/  the arithmetic, compiled once per instruction set
 *
 * Inside the core parameters are "packed": each layer stores its tensors in the layout that its
 * kernels need (a dense kernel as [O, width], rows padded with zeros). Training, deltas and sums
 * are elementwise, so they stay packed; fed_net_pack and fed_net_unpack convert once per call.
 *
 * Dimension letters: N examples, B batch, I inputs of a layer, O outputs of a layer, K classes, P
 * parameters. Sizes are size_t, data are float, sums that cross examples are double. Functions that
 * can fail return FED_OK or a negative fed_status.
 */
#ifndef FED_H
#define FED_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Status ---------------------------------------------------------------------------------- */

enum fed_status {
    FED_OK = 0,
    FED_ERR_NO_MEMORY = -1,
    FED_ERR_ARGUMENT = -2,  /* a size, kind or option outside what the function accepts */
    FED_ERR_LABEL = -3,     /* a label outside 0..K-1 */
    FED_ERR_CANCELLED = -4, /* the cancel flag was set */
    FED_ERR_ISA = -5,       /* an instruction set this build or this machine does not have */
    FED_ERR_CHANGED = -6,   /* another thread or process changed a label during the call */
    FED_ERR_PAYLOAD = -7,   /* bytes that no encoder of this codec writes */
};

/* A sentence for a status; never NULL. */
const char *fed_strerror(int status);

/* The place of an invalid label. */
typedef struct fed_fault {
    size_t client_index, example_index;
    int32_t label;
} fed_fault;

/* ---- Instruction sets (dispatch.c) ----------------------------------------------------------- */

/* Chooses the kernels for the process: "generic", "avx2", "avx512", or NULL for the widest that
 * this machine has. Call it once, before anything else. On FED_ERR_ISA the choice does not
 * change. */
int fed_select_isa(const char *name);
const char *fed_isa_name(void);
/* 1 if this build has the variant and this machine can run it, else 0. */
int fed_isa_runs(const char *name);
/* 1 when the core was built with OpenMP, else 0. */
int fed_has_openmp(void);
/* Runs num_steps groups of fused multiply-adds on one thread and returns the number of
 * floating-point operations. The operations of a group are independent; each group depends on the
 * one before. Benchmarks time it to measure the arithmetic peak. */
double fed_fma_chain(size_t num_steps);

/* ---- Random numbers (random/rng.c) ----------------------------------------------------------- */

/* The key of one stream: Philox-4x64-10 with key (seed, client) and counter (block, round, purpose,
 * occurrence). No two streams share a block, in whatever order they are drawn. */
typedef struct fed_key {
    uint64_t seed, client;               /* client: 64-bit hash of the client id, 0 for none */
    uint64_t round, purpose, occurrence; /* occurrence: which copy of the client in its cohort */
} fed_key;

enum { FED_RNG_WORDS = 64 };

typedef struct fed_rng {
    uint64_t key[2], counter[4];
    uint64_t words[FED_RNG_WORDS];  /* output that has been computed */
    unsigned next_half, num_halves; /* the next unread 32-bit half of words; how many there are */
} fed_rng;

void fed_rng_init(fed_rng *rng, const fed_key *key);
uint32_t fed_rng_u32(fed_rng *rng);
uint64_t fed_rng_u64(fed_rng *rng);
/* Uniform in 0..bound-1, exactly (rejection); bound >= 1. */
uint32_t fed_rng_below(fed_rng *rng, uint32_t bound);
double fed_rng_uniform(fed_rng *rng);             /* [0, 1), 53 bits */
double fed_rng_normal(fed_rng *rng);              /* N(0, 1), Box-Muller */
double fed_rng_gamma(fed_rng *rng, double shape); /* scale 1; shape > 0 */
double fed_rng_beta(fed_rng *rng, double shape);  /* Beta(shape, shape); shape > 0 */
/* Writes the first num_values 64-bit outputs of a stream. */
void fed_rng_fill(const fed_key *key, uint64_t *values /* out [num_values] */, size_t num_values);
/* Writes the next num_values results of fed_rng_u32. */
void fed_rng_fill_u32(fed_rng *rng, uint32_t *values /* out [num_values] */, size_t num_values);
/* As fed_rng_fill, but from output `first` of the stream on. */
void fed_rng_fill_from(const fed_key *key, size_t first, uint64_t *values /* out [num_values] */,
                       size_t num_values);
/* Adds scale times standard normal numbers of a stream to values. The first of them is the stream's
 * number `first`, a multiple of FED_NORMAL_GROUP. Each group of that many numbers is computed from
 * as many words of the stream: the first half of the words gives radii, the second half gives
 * angles (Box-Muller). A radius and its angle give two numbers, one for each half of the group. */
enum { FED_NORMAL_GROUP = 256 };
void fed_rng_add_normal(const fed_key *key, size_t first, double scale,
                        double *values /* in-out [num_values] */, size_t num_values);

/* ---- Noise of private means (random/noise.c) ------------------------------------------------- */

/* The noise that one round adds to a sum.
 *
 * Without groups (independent noise) it is factors[0] times the normal numbers of keys[0].
 *
 * With groups it is the noise of a binary tree over the rounds. This round completes groups of 1,
 * 2, 4, ... rounds, one for each key. A group has two halves: the second is the next smaller group
 * that this round completes; the first is an earlier group, whose value is stored. The value of a
 * group is the normal numbers of its key, plus, with takes_halves, half the sum of the values of
 * its two halves. The largest group takes the place of the stored groups, so the noise is its value
 * times its factor, minus the stored values times their factors. */
typedef struct fed_noise {
    size_t num_keys;       /* >= 1 */
    const fed_key *keys;   /* [num_keys] */
    const double *factors; /* [num_keys] */
    double *groups; /* [num_keys, num_values]: the stored values, from the smallest group; out: in
                       the last row, the value of the largest group. NULL: no tree */
    int takes_halves;
} fed_noise;

/* mean = (sum + noise) / divisor. The number of threads changes no value. */
int fed_noised_mean(int num_threads, const fed_noise *noise, const double *sum /* [num_values] */,
                    double divisor, float *mean /* out [num_values] */, size_t num_values);

/* ---- Order of examples (client/order.c) ------------------------------------------------------ */

enum fed_pipeline { FED_REPEAT_SHUFFLE = 0, FED_SHUFFLE_REPEAT = 1, FED_PER_EPOCH = 2 };

/* How a client's examples become batches. */
typedef struct fed_plan {
    int32_t pipeline;      /* enum fed_pipeline */
    size_t epochs;         /* >= 1 */
    size_t batch_size;     /* >= 1 */
    size_t shuffle_buffer; /* <= 1: no shuffle; SIZE_MAX: full */
    size_t max_examples;   /* the most visits; SIZE_MAX: all */
} fed_plan;

/* The number of examples that a client with num_examples examples processes, and the number of its
 * batches. */
size_t fed_plan_visits(const fed_plan *plan, size_t num_examples);
size_t fed_plan_batches(const fed_plan *plan, size_t num_examples);

/* Draws the order of one client's examples a batch at a time. order.c describes the units of the
 * stream and the buffer. */
typedef struct fed_order {
    const fed_plan *plan;
    size_t num_examples;
    size_t visits_left;  /* in the whole stream */
    size_t next_index;   /* the input's next index, 0..N-1 */
    size_t untaken;      /* indices of the current unit that have not entered the buffer yet */
    uint32_t *buffer;    /* [fed_order_capacity], borrowed */
    size_t num_buffered; /* 0: the next visit starts a unit */
    fed_rng rng;
} fed_order;

/* Number of indices in the buffer that fed_order_init needs. */
size_t fed_order_capacity(const fed_plan *plan, size_t num_examples);
void fed_order_init(fed_order *order, const fed_plan *plan, size_t num_examples, const fed_key *key,
                    uint32_t *buffer /* [fed_order_capacity] */);
/* Writes the next batch's example indices, each 0..N-1, and returns their number; 0 at the end. */
size_t fed_order_next(fed_order *order, uint32_t *indices /* out [batch_size] */);

/* ---- MixUp (client/mixup.c) ------------------------------------------------------------------ */

/* Draws how the examples of a training batch are mixed (Zhang, Cisse, Dauphin and Lopez-Paz 2018,
 * arXiv 1710.09412). Example b of the batch becomes share * example b + (1 - share) * example
 * partners[b]. The share is Beta(alpha, alpha), one for the batch; partners are a permutation of
 * the batch. Alpha is from 1e-6 to 1e6: below 1e-306 the share could be NaN. Returns the share. */
float fed_mixup_draw(double alpha, const fed_key *key,
                     size_t first_visit, /* of the batch, in the client's round */
                     size_t num_rows, uint32_t *partners /* out [num_rows] */);

/* ---- Models (net/model.c) -------------------------------------------------------------------- */

enum { FED_MAX_LAYERS = 512 };

/* The index of a kind of layer in layers/table.c by its name; -1 if there is none. */
int fed_layer_kind_named(const char *name);

/* The derivatives of FED_SILU and of the activations after it cannot be computed from the outputs.
 * Only a layer of the kind "activation", which keeps its inputs, may have one of these. */
enum fed_activation {
    FED_LINEAR = 0,
    FED_RELU,
    FED_TANH,
    FED_SIGMOID,
    FED_RELU6,
    FED_LEAKY_RELU, /* below 0: constants[0] times the input */
    FED_ELU,        /* below 0: constants[0] times exp(input) - 1 */
    FED_SILU,
    FED_GELU,
    FED_GELU_TANH, /* the approximation of gelu by tanh */
    FED_HARD_SILU,
    FED_NUM_ACTIVATIONS
};

static inline int fed_activation_sees_inputs(int activation) { return activation >= FED_SILU; }

/* The shape of an image, or of a vector if height and width are 1. Values are [height, width,
 * channels]. */
typedef struct fed_shape {
    size_t height, width, channels;
} fed_shape;

static inline size_t fed_shape_size(const fed_shape *shape) {
    return shape->height * shape->width * shape->channels;
}

/* The largest number of channels of an image that a layer normalises separately. */
enum { FED_MAX_NORMALIZED = 4 };

/* One row of a model table. Its trained tensors begin at `offset` in the flat parameter vector, in
 * Keras layout (layers/table.c). The moving statistics of batch norms come after the trained
 * tensors of all layers. Where the window of a convolution reaches beyond the image, it reads
 * zeros. A pool ignores these places: an average is over the values inside the image. */
typedef struct fed_layer {
    int32_t kind;       /* by fed_layer_kind_named */
    int32_t activation; /* enum fed_activation of the outputs; linear in the last layer */
    fed_shape in, out;
    size_t offset;
    /* Input i is the output of the layer 1 + skips[i] rows before this one (0: the row before), or
     * the image if the table has no such row. Additions and concatenations have a second input. */
    size_t skips[2];
    int32_t has_scale, has_bias; /* gamma (norms); bias or beta */
    /* Convolutions and pools: */
    size_t window_height, window_width, stride_y, stride_x;
    size_t pad_top, pad_left; /* padding before the image; smaller than the window */
    /* Group norm: num_groups divides the channels; epsilon is inside the root */
    size_t num_groups;
    double epsilon;
    /* Dropout: share of values set to 0 in training, in [0, 1), rounded to 65536ths */
    double rate;
    /* Batch norm: after each local step, moving = momentum * moving + (1 - momentum) * the
     * statistic of the batch. If the layer is frozen, training also normalises by the moving
     * statistics, and they do not change. The moving mean [channels], then the moving variance, are
     * at moving_offset. */
    double momentum; /* in [0, 1] */
    int32_t is_frozen;
    size_t moving_offset;
    /* Input layers: see layers/augment.c. For the last one, "mix_up", constants[0] is alpha, 1e-6
     * to 1e6. Other layers: constants[0] is the constant of the activation. */
    double constants[2 * FED_MAX_NORMALIZED];
} fed_layer;

/* A model: layers in an order in which each layer comes after the layers that it reads. The last
 * layer's outputs are logits; the loss is softmax cross-entropy. */
typedef struct fed_model {
    const fed_layer *layers; /* [num_layers] */
    size_t num_layers, num_inputs, num_classes;
    size_t num_params; /* with the moving statistics, which are last */
} fed_model;

/* FED_OK if the table is consistent: kinds and activations are known, each layer's inputs exist and
 * have its input shape, windows fit the shapes, every output but the last is read, offsets and then
 * moving offsets cover 0..P-1 in order, there is a trained parameter, and the logits have no
 * activation. */
int fed_model_check(const fed_model *model);

/* The number of values of one image after a model's input layers. */
size_t fed_inputs_size(const fed_model *model);
/* Writes the outputs of a model's input layers for some images. If key is NULL, they are computed
 * as in scoring, else as in training, where image i is visit first_visit + i of the dropout stream
 * `key`. A model without input layers leaves images as they are. Images are not mixed: see
 * fed_mixup_draw. */
int fed_run_inputs(const fed_model *model, const float *images /* [num_images, I] */,
                   size_t num_images, const fed_key *key, size_t first_visit,
                   float *out /* out [num_images, fed_inputs_size] */);

/* The largest number of examples of a batch; with more, the number of bytes could overflow. */
enum { FED_MAX_BATCH = 1 << 24 };

/* Bytes of memory for the batches that num_threads threads process at a time when they train
 * num_clients clients, not counting parameters, optimizer state and decoded images; 0 if an
 * argument is refused, SIZE_MAX if no machine has so much memory. */
size_t fed_batch_bytes(const fed_model *model, size_t batch_size, size_t num_clients,
                       int num_threads);

/* ---- The client step (step/step.c) ----------------------------------------------------------- */

enum fed_step_kind {
    FED_STEP_SGD = 0,
    FED_STEP_PROXIMAL,
    FED_STEP_ADAM,
    FED_STEP_ADAMW,
    FED_STEP_YOGI,
    FED_STEP_ADAGRAD,
    FED_STEP_RMSPROP,
    FED_STEP_GRADIENT,
    FED_STEP_CLIP,
    FED_STEP_LINEAR,
    FED_STEP_ANCHOR,
    FED_STEP_ADAFACTOR,
    FED_STEP_DECAY,
    FED_NUM_STEP_KINDS
};

/* One row of a step table. Rows act in order on the gradient of a local step; the last one, an
 * optimizer, updates the parameters. Options by kind:
 *   FED_STEP_SGD:      learning rate, momentum (0: none, no slot), nesterov (0 or 1)
 *   FED_STEP_PROXIMAL: strength; adds strength * (params - server params) to the gradient
 *   FED_STEP_ADAM:     learning rate, beta_1, beta_2, epsilon, reddi (0 or 1)
 *   FED_STEP_ADAMW:    as Adam, then weight decay
 *   FED_STEP_YOGI:     as Adam, then the preconditioner's initial value
 *   FED_STEP_ADAGRAD:  learning rate, epsilon, reddi, the preconditioner's initial value
 *   FED_STEP_RMSPROP:  learning rate, decay, epsilon
 *   FED_STEP_GRADIENT: none; the only row of its table. Gradients are taken at the server's
 *                      parameters, and the model delta is minus the mean gradient over all
 *                      examples; moving statistics move as in other steps
 *   FED_STEP_CLIP:     norm, above 0. A gradient with a larger L2 norm (over all parameters, summed
 *                      in float64) is scaled to this norm. If it has a NaN or infinity, it still
 *                      has a NaN afterwards
 *   FED_STEP_DECAY:    strength; adds strength * params to the gradient
 *   FED_STEP_LINEAR:   none; adds the client's linear term (fed_own) to the gradient
 *   FED_STEP_ANCHOR:   none; subtracts the gradient of the same batch at the server's parameters.
 *                      It is always done first, wherever the row is; not for models with moving
 *                      statistics
 *   FED_STEP_ADAFACTOR: learning rate, beta_2_decay (below 0), epsilon_1 (above 0), epsilon_2,
 *                      clip threshold (above 0), relative step (0 or 1); see adafactor.c. It treats
 *                      each of the model's tensors separately (fed_tensors)
 * reddi: as in Algorithm 2 of Reddi et al. 2021, without bias correction and with epsilon outside
 * the root. Options are double, so that 1 - beta_2 keeps its digits; parameters are float. */
typedef struct fed_step_row {
    int32_t kind; /* enum fed_step_kind */
    double options[8];
} fed_step_row;

typedef struct fed_step {
    const fed_step_row *rows; /* [num_rows] */
    size_t num_rows;
} fed_step;

/* A tensor of the flat parameters: matrices [num_rows, num_columns] one after another, or a vector
 * [num_columns] with num_rows 0. */
typedef struct fed_tensor {
    size_t num_matrices, num_rows, num_columns;
} fed_tensor;

static inline size_t fed_tensor_size(const fed_tensor *tensor) {
    return tensor->num_rows > 0 ? tensor->num_matrices * tensor->num_rows * tensor->num_columns
                                : tensor->num_columns;
}

/* All tensors of the parameters, in order. */
typedef struct fed_tensors {
    const fed_tensor *each; /* [num] */
    size_t num;
} fed_tensors;

int fed_step_check(const fed_step *step);
/* Number of slots: parameter-sized state vectors that the rows need. */
size_t fed_step_slots(const fed_step *step);
/* Writes the slots' values before a client's first local step. */
void fed_step_init_slots(const fed_step *step, size_t num_params,
                         float *slots /* out [slots, P] */);
/* Takes a client's local step number step_num, counted from 1: updates parameters and slots with
 * the gradient (the mean over the batch). The training loop uses the same code; the function is
 * public for models that compute gradients themselves, and so that tests can compare it with NumPy.
 * ANCHOR, which needs a second gradient, is rejected, and GRADIENT subtracts the gradient from the
 * parameters. */
int fed_step_apply(const fed_step *step, const fed_tensors *tensors /* NULL: see fed_terms */,
                   size_t step_num, size_t num_params, float *params /* in-out [P] */,
                   const float *server_params /* [P] */, const float *linear /* [P]; NULL: zeros */,
                   float *gradient /* in, scratch [P] */, float *slots /* in-out [slots, P] */);

/* ---- Vectors that clients keep (cohort/sum.c) ------------------------------------------------ */

/* Computes a client's new vector in place: delta = scale * delta - sent (SCAFFOLD's c_k, FedDyn's
 * h_k). Returns 1, or 0 if a value is not finite. */
int fed_next_client_vector(size_t num_params, double scale, const float *sent /* [P] */,
                           float *delta /* in-out [P] */);
/* Adds after - before to change. */
void fed_add_change(size_t num_params, const float *before /* [P] */, const float *after /* [P] */,
                    double *change /* in-out [P] */);

/* ---- The mean of a sum (cohort/sum.c) -------------------------------------------------------- */

/* quotient[i] = sum[i] / divisor, rounded to float once; denormals are kept. A divisor of 0 gives
 * infinities and NaN. */
void fed_divide(size_t num_values, const double *sum, double divisor, float *quotient /* out */);

/* ---- Clients and cohorts (client/client.c, cohort/) ------------------------------------------ */

typedef struct fed_prepared fed_prepared;

/* Inputs and outputs of a single client in a round, apart from its data. All borrowed. */
typedef struct fed_own {
    const float *linear; /* [P] for FED_STEP_LINEAR; NULL: zeros */
    float *delta;        /* out [P]: the model delta, written if it is finite; NULL: not needed */
    double delta_factor; /* factor of the delta in the sum, after the bounds; finite, >= 0 */
    /* [P]: parameters that replace the server's in training and scoring; `delta` is then the
     * difference from them, but the sum adds the difference from the server's parameters
     * (FED_STEP_GRADIENT: `delta`). NULL: the server's are used. */
    const float *start;
    /* The largest L2 distance of the client's trained parameters from those it started from. After
     * each epoch, and at the end, parameters that are farther away are moved straight back to this
     * distance, except for FED_STEP_GRADIENT. At least 0; 0: no limit. */
    double max_distance;
} fed_own;

enum fed_pixel_type { FED_PIXELS_UINT8 = 0, FED_PIXELS_FLOAT32 = 1 };

/* One client's data and its batching. The model's inputs are scale * pixel + offset. All
 * borrowed. */
typedef struct fed_client {
    const void *pixels; /* [N, I] of pixel_type */
    int32_t pixel_type; /* enum fed_pixel_type */
    float scale, offset;
    const int32_t *labels; /* [N] */
    size_t num_examples;
    fed_plan plan;
    fed_key shuffle_key;
    fed_key dropout_key;          /* read only by a model with dropout or random input layers */
    fed_key mixup_key;            /* read only by a model with MixUp: see fed_mixup_draw */
    const fed_prepared *prepared; /* fed_prepare of these pixels and the call's model; or NULL */
    const fed_own *own;           /* NULL: no vectors, factor 1 */
} fed_client;

/* Computes the data of a client that are the same in all rounds: which of its pixels vary, and its
 * decoded images, which take four bytes per pixel. Without it each call computes the same values
 * again. Borrows the model; the client's pixels must not change. NULL if memory is short or the
 * model is not valid. */
fed_prepared *fed_prepare(const fed_model *model, const fed_client *client);
void fed_prepared_free(fed_prepared *prepared);

/* A client's statistics. Metrics are online: each batch is scored before its own step. */
typedef struct fed_client_stats {
    double loss_sum;     /* over the examples processed, as trained: mixed, smoothed, weighted */
    double weight;       /* the client weight of its delta in the sum */
    double max_abs;      /* largest magnitude in the delta; max_abs and norm are 0 without bounds */
    double norm;         /* the delta's L2 norm; 0 if the delta was replaced by zeros */
    int64_t num_correct; /* predictions equal to the example's own label, even if it was mixed */
    int64_t num_examples, num_batches;
    int32_t is_finite; /* 0: the delta had a NaN or infinity; it was dropped, the metrics reset */
} fed_client_stats;

/* Bounds on each client's delta (fed_own.delta); infinity for none. Moving statistics are not
 * measured, but they are scaled, or become zeros, together with the rest of the delta. */
typedef struct fed_bounds {
    double max_abs; /* a delta with an entry of larger magnitude becomes zeros; its weight stays */
    double norm;    /* a delta with a larger L2 norm (over all tensors) is scaled to this norm */
} fed_bounds;

enum fed_weighting { FED_WEIGHT_NUM_EXAMPLES = 0, FED_WEIGHT_UNIFORM = 1 };

/* Ordered, weighted sum of vectors in float64. The vectors of each block of 8 are added left to
 * right, and blocks by a fixed binary tree, so the result does not depend on the number of
 * threads. */
typedef struct fed_sum fed_sum;

/* Makes a sum of vectors for fed_sum_add; NULL if memory is short. */
fed_sum *fed_sum_new(size_t num_values);
/* Makes a sum of a model's deltas for fed_train_cohort; NULL if memory is short or the model is not
 * valid. Borrows the model. */
fed_sum *fed_sum_new_of(const fed_model *model);
void fed_sum_free(fed_sum *sum);
/* Sets the sum to zero and keeps its memory. Call it also after a call on the sum has failed. */
void fed_sum_reset(fed_sum *sum);
/* Adds vectors in order, as fed_train_cohort adds the deltas of its clients. A vector of weight 0
 * takes a place in its block and adds nothing, even if it is not finite. */
int fed_sum_add(fed_sum *sum, const float *const *vectors /* [num_vectors], [num_values] each */,
                const double *weights /* [num_vectors], >= 0 */, size_t num_vectors);
/* Writes the sum of weight * vector and the sum of the weights. Another cohort may be added
 * afterwards only if the number of clients so far is a multiple of 8. */
void fed_sum_total(fed_sum *sum, double *total /* out [num_values] or [P] */,
                   double *weight /* out */);

/* The total that fed_sum_add would compute for all vectors of a cohort. Threads share the
 * coordinates. */
int fed_sum_vectors(int num_threads, const float *const *vectors, const double *weights,
                    size_t num_vectors, size_t num_values, double *total /* out [num_values] */);

/* The threads that work on a cohort, and their memory. Memory is allocated on first use and kept
 * until fed_team_free. One call at a time may use a team. Without OpenMP it has one thread. */
typedef struct fed_team fed_team;
enum { FED_MAX_THREADS = 1024 };
/* NULL if memory is short or num_threads is not in 1..FED_MAX_THREADS. */
fed_team *fed_team_new(int num_threads);
void fed_team_free(fed_team *team);

/* The settings of a cohort's training, except the step table. */
typedef struct fed_terms {
    int weighting;            /* enum fed_weighting */
    const fed_bounds *bounds; /* of each delta; NULL: deltas are neither bounded nor measured */
    /* The slots from which every local step starts; the slots after the step are discarded. NULL: a
     * client's slots start at their initial values and change from step to step. */
    const float *frozen_slots; /* [slots, P] */
    size_t frozen_step_num;    /* the step number of each of these steps, from 1 */
    /* Factors of the learning rate, one for each local step; there must be enough for the client
     * with the most steps. NULL: all are 1. */
    const double *rate_factors; /* [num_rate_factors], 0 to 1 */
    size_t num_rate_factors;
    /* The model's tensors; NULL if the step table does not need them. A table that needs them
     * allows no frozen slots. */
    const fed_tensors *tensors;
    /* The factor of the loss of each example by its label. The loss of a batch is the sum of the
     * weighted losses over its number of examples. NULL: 1. */
    const float *class_weights; /* [K], finite, not negative */
    /* The share of each label that is spread equally over all classes, in [0, 1). The losses in the
     * statistics include it. */
    float label_smoothing;
    /* Incremented for each trained client, so that another thread can show the progress; it changes
     * no result. NULL: not needed. */
    atomic_int *num_trained;
} fed_terms;

/* Trains each client of a cohort from the same server parameters and adds its model delta to `sum`
 * (NULL: the sum is not needed). A large cohort may be trained in pieces, by several calls with the
 * same `sum`, if every piece but the last has a multiple of 8 clients. Results do not depend on the
 * number of threads. On FED_ERR_LABEL, fault describes the first client with an invalid label.
 * *cancel != 0 stops each thread before its next local step. */
int fed_train_cohort(fed_team *team, const fed_model *model, const fed_step *step,
                     const float *server_params, /* [P] */
                     const fed_client *clients, size_t num_clients, const fed_terms *terms,
                     const atomic_int *cancel, fed_sum *sum,
                     fed_client_stats *stats, /* out [num_clients] */
                     fed_fault *fault /* out */);

/* Scores params (or the client's own start) on each client's batches without an update. The order
 * of examples does not affect the result, unless max_examples cuts a shuffled stream short. */
int fed_evaluate(fed_team *team, const fed_model *model, const float *params /* [P] */,
                 const fed_client *clients, size_t num_clients, const atomic_int *cancel,
                 fed_client_stats *stats, /* out [num_clients] */
                 fed_fault *fault /* out */);

/* Writes the logits of every example of every client, in stored order; plans are ignored. */
int fed_predict(fed_team *team, const fed_model *model, const float *params /* [P] */,
                const fed_client *clients, size_t num_clients, const atomic_int *cancel,
                float *logits /* out [examples of all clients, K] */, fed_fault *fault);

/* ---- The single deltas of a cohort (aggregate/) ---------------------------------------------- */

/* The size of a row, as fed_train_cohort measures a delta without moving statistics. */
typedef struct fed_measured {
    double max_abs;
    double norm;       /* 0 for a row that is replaced by zeros */
    int64_t is_finite; /* 0: the row has a NaN or infinity; the other members have no meaning */
} fed_measured;

/* Measures each row. If there are bounds, brings the finite rows within them. */
int fed_bound_rows(int num_threads, float *const *rows /* in-out [num_rows][num_values] */,
                   size_t num_rows, size_t num_values, const fed_bounds *bounds /* or NULL */,
                   fed_measured *sizes /* out [num_rows] */);

/* Vectors of finite values. They may be rows of a mapped file: all functions read them in slices of
 * coordinates, on num_threads threads, and as few times as possible. Sums are in float64 and in an
 * order that depends on the sizes alone. */
typedef struct fed_rows {
    const float *const *rows; /* [num_rows][num_values] */
    size_t num_rows;          /* >= 1 */
    size_t num_values;
} fed_rows;

/* Where a mean by coordinate is written: one of two arrays [num_values], in float64 or rounded to
 * float32; the other is NULL. */
typedef struct fed_mean {
    double *exact;
    float *rounded;
} fed_mean;

/* mean = by coordinate, the mean without the `trim` smallest and the `trim` largest values, where
 * 2 * trim < num_rows; with trim = (num_rows - 1) / 2 it is the median. squares receives each row's
 * squared distance to the mean before rounding. */
int fed_trimmed_mean(int num_threads, const fed_rows *rows, size_t trim, fed_mean mean,
                     double *squares /* out [num_rows], or NULL */);
/* mean = by coordinate, the mean of the num_nearest values nearest to the median, where num_nearest
 * is 1..num_rows. Of equally near values, those of earlier rows are taken. */
int fed_mean_near_median(int num_threads, const fed_rows *rows, size_t num_nearest, fed_mean mean);
/* votes = by coordinate, the sum of the signs of values minus origin; num_rows <= INT32_MAX. */
int fed_sign_votes(int num_threads, const fed_rows *rows, const double *origin /* NULL: zeros */,
                   int32_t *votes /* out [num_values] */);
/* vector = kept * vector + the sum of factors[r] * row r, with factors >= 0. squares receives each
 * row's squared distance to the result. */
int fed_move_by_rows(int num_threads, const fed_rows *rows, double kept,
                     const double *factors /* [num_rows] */, double *vector /* in-out */,
                     double *squares /* out [num_rows], or NULL */);
/* out[o] = the sum over r of factors[o][r] * row r, plus offsets[o] * offset, with factors >= 0. */
int fed_mix_rows(int num_threads, const fed_rows *rows,
                 const double *factors, /* [num_out, num_rows] */
                 const double *offsets, /* [num_out] */
                 const double *offset,  /* [num_values]; NULL: zeros */
                 size_t num_out, float *out /* out [num_out, num_values] */);
/* Each row's squared distance to origin, and the inner product of row - origin with direction. */
int fed_measure_rows(int num_threads, const fed_rows *rows,
                     const double *origin,    /* [num_values]; NULL: zeros */
                     const double *direction, /* [num_values]; NULL: no products */
                     double *squares /* out [num_rows] */, double *products /* out, or NULL */);
/* The squared distances, or with is_product the inner products, of all pairs of rows. */
int fed_row_pairs(int num_threads, const fed_rows *rows, int is_product,
                  double *pairs /* out [num_rows, num_rows] */);
/* Chooses num_chosen of num_rows rows (1 <= num_chosen) so that their largest pairwise distance is
 * smallest; of equally good choices the first in lexicographic order. */
int fed_least_diameter(const double *distances /* [num_rows, num_rows] */, size_t num_rows,
                       size_t num_chosen, size_t *chosen /* out, ascending */);

/* ---- Compression (compress/) ----------------------------------------------------------------- */

enum { FED_MAX_CODED = 0x7fffffff }; /* the most values that a codec's vector may have */

/* How a vector of P values becomes bytes. Each kind reads the fields whose comments name it. Each
 * file of compress/ says what its payload looks like. */
typedef struct fed_codec {
    int32_t kind;         /* by fed_codec_kind_named */
    size_t num_params;    /* P, 1..FED_MAX_CODED */
    fed_tensors tensors;  /* the parts of the vector, none of them empty */
    uint32_t bits;        /* uniform, fixed-step (1..16), eden (1..4): per value */
    uint32_t levels;      /* qsgd: s, 1..32767 */
    int32_t is_short;     /* qsgd: Elias gamma; terngrad: base 3 */
    int32_t is_unbiased;  /* drive: the scale |x|^2 / |z|_1; random-k: times P / k */
    double step;          /* fixed-step: above 0 */
    double clip;          /* terngrad: in standard deviations, 0 for none */
    size_t count;         /* top-k, random-k: k, 1..P */
    size_t block;         /* drive, eden: values that are rotated together, a power of two */
    size_t rank;          /* powersgd, powersgd-left: 1..64 */
    size_t depth, width;  /* sketch: R (1..15) and W */
    const float *factors; /* powersgd: U, powersgd-left: V of all matrices */
} fed_codec;

/* The result of encoding one vector. */
typedef struct fed_sent {
    double squared_norm;  /* of the encoder's input */
    double squared_error; /* of input - decoded */
    int64_t num_bytes;    /* of the payload */
    int64_t is_sent;      /* 0: the input or the decoded vector is not finite, or is too large */
} fed_sent;

/* The index of a kind of codec in compress/codec.c by its name; -1 if there is none. */
int fed_codec_kind_named(const char *name);
/* FED_OK if the fields of the kind are valid and the tensors make up the vector. */
int fed_codec_check(const fed_codec *codec);
/* The largest number of bytes of a payload. Only a payload of qsgd with is_short can be shorter. */
size_t fed_codec_capacity(const fed_codec *codec);
/* Writes a payload. FED_ERR_ARGUMENT: a value is not finite, or too large for the payload. */
int fed_codec_encode(const fed_codec *codec, const fed_key *key, const float *values /* [P] */,
                     uint8_t *payload /* out [fed_codec_capacity] */, size_t *num_bytes);
/* Reads a payload that was encoded with the same key. FED_ERR_PAYLOAD: no encoder wrote it; then
 * the values are not defined. */
int fed_codec_decode(const fed_codec *codec, const fed_key *key, const uint8_t *payload,
                     size_t num_bytes, float *values /* out [P] */);
/* Encodes and decodes each row + decay * its residual, replaces the row by the decoded values, and
 * writes the rest as the next residual. If the input cannot be sent, the row does not change; if
 * the decoded values are not finite, they still replace the row. In both cases the next residual
 * has no meaning. Rows and residuals may lie anywhere, but no two may be the same memory. */
int fed_codec_compress_rows(const fed_codec *codec, int num_threads,
                            const fed_key *keys /* [num_rows] */,
                            float *const *rows /* [num_rows][P] */, size_t num_rows,
                            const float *const *before, /* [num_rows][P]; NULL, or NULL for a row:
                                                           the residuals are zeros */
                            float *const *after /* out [num_rows][P]; NULL: not needed */,
                            double decay, fed_sent *sent /* out [num_rows] */);
/* Encodes each row + decay * its residual; nothing else changes. squared_error is 0. */
int fed_codec_encode_rows(const fed_codec *codec, int num_threads, const fed_key *keys,
                          float *const *rows, size_t num_rows, const float *const *before,
                          double decay, uint8_t *payloads /* out [num_rows, fed_codec_capacity] */,
                          fed_sent *sent);

/* ---- Secure sums (secure/secure_sum.c) ------------------------------------------------------- */

/* The vectors of a cohort, and how they are quantised, masked and summed. All borrowed. For a
 * coordinate x of a client, let d = x - center, clipped to [-clip, clip], and let y be the client's
 * factor times d, clipped to [low, high]. The coordinate becomes the level
 * round((y - low) * top_level / (high - low)). */
enum { FED_MAX_LEVEL_BITS = 51 }; /* the sum of a level and 2^52 is exact */
typedef struct fed_secure_terms {
    size_t num_clients, num_params; /* m; P, at least 1 */
    const float *const *rows;       /* [m], [P] each and finite; not read for clients of weight 0 */
    const uint64_t *weights;        /* [m], summed as one more coordinate; 0: client drops out */
    const double *factors;          /* [m], at least 0 */
    const double *center;           /* [P]; NULL: zeros */
    int32_t takes_signs;            /* 1: x - center is replaced by its sign, -1, 0 or 1 */
    double clip;                    /* above 0; infinity: none */
    double low, high;               /* low < high */
    uint64_t top_level;             /* 1..2^FED_MAX_LEVEL_BITS */
    uint32_t mask_bits;             /* up to 62: the modulus 2^mask_bits exceeds all sums */
    const fed_key *rounding_keys;   /* [m]: for random rounding; NULL: to nearest, halves to even */
    fed_key masks; /* of pair i < j: this key with i added to its client, j to its occurrence */
} fed_secure_terms;

/* 1 if the terms are valid and every sum stays below the modulus, else 0. */
int fed_secure_check(const fed_secure_terms *terms);
/* Sums, from masked rows, the levels of the clients that do not drop out; the last value of the
 * total is the sum of their weights. The result does not depend on the number of threads. */
int fed_secure_sum(
    int num_threads, const fed_secure_terms *terms, uint64_t *total /* out [P + 1] */,
    uint64_t *sent /* out [m, P + 1]: masked rows, 0 if not sent; NULL: not needed */,
    uint64_t *num_clipped /* out: coordinates that were clipped */);

/* ---- For benchmarks (exercise.c) ------------------------------------------------------------- */

/* The phases of a stage (a layer, or a convolution with its pool) in a local step: forward,
 * backward with the update by plain SGD, and derive, which computes transformed copies of the
 * updated weights for the next forward pass. */
enum fed_phase { FED_FORWARD = 0, FED_BACKWARD, FED_DERIVE, FED_NUM_PHASES };

/* Writes the index of the first layer of each stage; returns the number of stages, 0 if the model
 * is not valid. */
size_t fed_stages(const fed_model *model, size_t *first_layers /* out [num_layers] */);
/* Runs one phase of one stage `repeats` times on a synthetic batch, on this thread. */
int fed_exercise(const fed_model *model, const float *params /* [P] */, size_t batch_size,
                 size_t stage, int phase, size_t repeats);

/* ---- Synthetic data sets (random/synthetic.c) ------------------------------------------------ */

enum fed_synthetic_pictures { FED_PICTURES_DIGITS = 0, FED_PICTURES_SHAPES = 1 };
enum fed_synthetic_split { FED_SPLIT_TRAIN = 0, FED_SPLIT_TEST = 1, FED_SPLIT_CENTRAL = 2 };
enum fed_synthetic_sizes { FED_SIZES_NATURAL = 0, FED_SIZES_SKEWED = 1 };

/* Pictures of artificial clients, in ten classes: handwritten digits, 28 x 28 grey pixels with 255
 * = ink, or shapes in colour, 32 x 32 x 3. Their statistics imitate data sets of the field; no data
 * are copied. Each picture is a pure function of (options, client, split, index). */
typedef struct fed_synthetic {
    int32_t pictures; /* enum fed_synthetic_pictures */
    uint64_t seed;
    double style_spread; /* how much clients' styles differ, 0.9 by default */
    double label_noise;  /* share of train and test labels drawn at random; none in split central */
    int32_t sizes;       /* enum fed_synthetic_sizes */
} fed_synthetic;

/* Bytes of a picture; 0 for options that are not valid. */
size_t fed_synthetic_bytes(const fed_synthetic *options);
/* Number of examples of a client in a split; `client` is its 64-bit key. */
size_t fed_synthetic_count(const fed_synthetic *options, uint64_t client, int split);
/* Draws examples first..first+num-1 of a client's split; labels are 0..9. */
int fed_synthetic_draw(const fed_synthetic *options, uint64_t client, int split, size_t first,
                       size_t num, uint8_t *pixels /* out [num, bytes of a picture] */,
                       int32_t *labels /* out [num] */);

#endif
