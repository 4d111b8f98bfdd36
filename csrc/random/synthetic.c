/* SPDX-License-Identifier: Apache-2.0
 *
 * The synthetic data sets: how many examples a client has, and their labels. Both are pure
 * functions of the options, the client and the split, and so are the pictures (drawing.h).
 * */
#include "drawing.h"

enum { NUM_CLASSES = 10, MAX_EXAMPLES = 400, NUM_CENTRAL_EXAMPLES = 100 };

/* By enum fed_synthetic_pictures. */
static const fed_pictures *const PICTURES[] = {&fed_digits, &fed_shapes};
enum { NUM_KINDS = sizeof PICTURES / sizeof PICTURES[0] };

/* Beyond this spread pictures cannot be recognised; far beyond it coordinates would overflow float.
 */
static const double MAX_STYLE_SPREAD = 10.0;

/* ---- Numbers of examples --------------------------------------------------------------------- */

static int is_valid(const fed_synthetic *options, int split) {
    /* A NaN fails these comparisons. */
    return options->pictures >= 0 && options->pictures < NUM_KINDS &&
           options->style_spread >= 0.0 && options->style_spread <= MAX_STYLE_SPREAD &&
           options->label_noise >= 0.0 && options->label_noise <= 1.0 &&
           (options->sizes == FED_SIZES_NATURAL || options->sizes == FED_SIZES_SKEWED) &&
           (split == FED_SPLIT_TRAIN || split == FED_SPLIT_TEST || split == FED_SPLIT_CENTRAL);
}

/* Natural sizes follow the digits of FEMNIST: mean 100, standard deviation 15, and a tail of small
 * clients. */
static size_t draw_num_examples(const fed_synthetic *options, uint64_t client) {
    const fed_key key = {.seed = options->seed, .client = client, .purpose = FED_SYNTHETIC_SIZE};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    if (options->sizes == FED_SIZES_NATURAL) {
        return (size_t)clip(rint(117.5 - 12.4 * fed_rng_gamma(&rng, 1.4)), 8.0, 131.0);
    }
    const double log_normal = 80.0 * exp(0.6 * fed_rng_normal(&rng));
    return (size_t)clip(rint(log_normal), 10.0, (double)MAX_EXAMPLES);
}

/* A tenth of a client's examples, rounded to the nearest, at least one. */
static size_t num_test_examples(size_t num_examples) {
    const size_t num_test = (size_t)rint(0.1 * (double)num_examples);
    return num_test > 1 ? num_test : 1;
}

size_t fed_synthetic_bytes(const fed_synthetic *options) {
    return is_valid(options, FED_SPLIT_TRAIN) ? PICTURES[options->pictures]->num_bytes : 0;
}

size_t fed_synthetic_count(const fed_synthetic *options, uint64_t client, int split) {
    if (!is_valid(options, split)) {
        return 0;
    }
    if (split == FED_SPLIT_CENTRAL) {
        return NUM_CENTRAL_EXAMPLES;
    }
    const size_t num_examples = draw_num_examples(options, client);
    const size_t num_test = num_test_examples(num_examples);
    return split == FED_SPLIT_TEST ? num_test : num_examples - num_test;
}

/* ---- Labels ---------------------------------------------------------------------------------- */

/* Draws labels 0-9 in equal numbers, shuffled. The first class is random, so that none is
 * favoured if the number of labels is not a multiple of ten. */
static void draw_balanced_labels(fed_rng *rng, uint8_t *labels /* out [num_labels] */,
                                 size_t num_labels) {
    const size_t first_class = fed_rng_below(rng, NUM_CLASSES);
    for (size_t i = 0; i < num_labels; i++) {
        labels[i] = (uint8_t)((first_class + i) % NUM_CLASSES);
    }
    for (size_t num_left = num_labels; num_left > 1; num_left--) {
        const size_t other = fed_rng_below(rng, (uint32_t)num_left);
        const uint8_t label = labels[other];
        labels[other] = labels[num_left - 1];
        labels[num_left - 1] = label;
    }
}

/* Draws labels from a client's own distribution, which is drawn from Dir(1), uniform over all
 * distributions. */
static void draw_skewed_labels(fed_rng *rng, uint8_t *labels /* out [num_labels] */,
                               size_t num_labels) {
    double weights[NUM_CLASSES];
    for (size_t k = 0; k < NUM_CLASSES; k++) {
        weights[k] = fed_rng_gamma(rng, 1.0);
    }
    for (size_t i = 0; i < num_labels; i++) {
        labels[i] = (uint8_t)fed_pick(rng, weights, NUM_CLASSES);
    }
}

/* Draws the labels of train and test together, train first. Returns the index at which the split
 * begins. */
static size_t draw_labels(const fed_synthetic *options, uint64_t client, int split,
                          uint8_t labels[MAX_EXAMPLES]) {
    const int is_central = split == FED_SPLIT_CENTRAL;
    const fed_key key = {.seed = options->seed,
                         .client = client,
                         .purpose = FED_SYNTHETIC_LABELS,
                         .occurrence = (uint64_t)is_central};
    fed_rng rng;
    fed_rng_init(&rng, &key);
    const size_t num_examples =
        is_central ? NUM_CENTRAL_EXAMPLES : draw_num_examples(options, client);
    if (is_central || options->sizes == FED_SIZES_NATURAL) {
        draw_balanced_labels(&rng, labels, num_examples);
    } else {
        draw_skewed_labels(&rng, labels, num_examples);
    }
    return split == FED_SPLIT_TEST ? num_examples - num_test_examples(num_examples) : 0;
}

/* ---- Examples -------------------------------------------------------------------------------- */

/* The label of a picture: what it shows or, with probability `noise`, a random one. It always draws
 * twice, so that the picture does not depend on the noise. */
static int32_t draw_label(fed_rng *rng, size_t shown, double noise) {
    const int is_noisy = fed_rng_uniform(rng) < noise;
    const uint32_t other = fed_rng_below(rng, NUM_CLASSES);
    return (int32_t)(is_noisy ? other : shown);
}

int fed_synthetic_draw(const fed_synthetic *options, uint64_t client, int split, size_t first,
                       size_t num, uint8_t *pixels, int32_t *labels) {
    const size_t count = fed_synthetic_count(options, client, split);
    if (!is_valid(options, split) || first > count || num > count - first) {
        return FED_ERR_ARGUMENT;
    }
    uint8_t shown[MAX_EXAMPLES];
    const size_t split_begin = draw_labels(options, client, split, shown);
    const double noise = split == FED_SPLIT_CENTRAL ? 0.0 : options->label_noise;
    const fed_pictures *pictures = PICTURES[options->pictures];
    double style[FED_STYLE_SIZE];
    pictures->draw_style(options, client, style);
    for (size_t i = 0; i < num; i++) {
        const fed_key key = {.seed = options->seed,
                             .client = client,
                             .round = (uint64_t)split,
                             .purpose = FED_SYNTHETIC_PICTURE,
                             .occurrence = first + i};
        const size_t label = shown[split_begin + first + i];
        fed_rng rng;
        fed_rng_init(&rng, &key);
        labels[i] = draw_label(&rng, label, noise);
        pictures->draw(style, label, &rng, &pixels[i * pictures->num_bytes]);
    }
    return FED_OK;
}
