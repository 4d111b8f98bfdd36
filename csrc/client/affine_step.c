/* SPDX-License-Identifier: Apache-2.0
 * SGD steps that also add a proximal term and a vector that is constant during the round: a
 * client's linear term, or frozen momentum. With gradient g, constant vector v and proximal
 * strength s the step is
 *
 *     w <- w - rate * (c * g + v + s * (w - server))
 *        = a * (w - rate * c / a * g) - rate * (v - s * server),   where a = 1 - rate * s
 *
 * As in plain SGD, g is therefore accumulated directly into the parameters. The rest of the step is
 * applied to each piece of the parameters as soon as its gradient is complete.
 *
 * In a narrow layer (narrow.c) gradients move the weights of fixed pixels along `direction` only,
 * but v also has a part that the narrow layer cannot represent. The effect of that part does not
 * depend on images. Each step moves these weights against it, and the total distance d becomes
 * a * d + rate. After the last step, d times that part is subtracted once. */
#include "client.h"

#include <string.h>

/* The options of SGD, and those of a proximal term. */
enum { LEARNING_RATE, MOMENTUM, NESTEROV };
enum { STRENGTH };

/* The largest rate * s. Above it, gradients would be scaled up by a large 1 / a and down again,
 * which loses digits. */
static const double max_rate_strength = 0.5;

int fed_affine_init(fed_affine_step *affine, const fed_step *step, const fed_frozen *frozen,
                    const float *linear) {
    const fed_step_row *last = &step->rows[step->num_rows - 1];
    const double momentum = last->options[MOMENTUM];
    const int is_frozen = frozen != NULL && frozen->slots != NULL;
    *affine =
        (fed_affine_step){.learning_rate = last->options[LEARNING_RATE], .gradient_factor = 1};
    if (last->kind != FED_STEP_SGD || (momentum > 0 && !is_frozen)) return 0;
    const int is_nesterov = last->options[NESTEROV] != 0;
    if (is_nesterov) affine->gradient_factor = 1 + momentum;
    if (momentum > 0) {
        affine->slot = frozen->slots;
        affine->slot_factor = is_nesterov ? momentum * momentum : momentum;
    }
    for (size_t r = 0; r + 1 < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        if (row->kind == FED_STEP_PROXIMAL)
            affine->strength += affine->gradient_factor * row->options[STRENGTH];
        else if (row->kind == FED_STEP_LINEAR && linear != NULL)
            affine->linear_factor += affine->gradient_factor;
        else if (row->kind != FED_STEP_LINEAR && row->kind != FED_STEP_ANCHOR)
            return 0;
    }
    if (affine->linear_factor > 0) affine->linear = linear;
    return affine->learning_rate * affine->strength <= max_rate_strength;
}

int fed_affine_has_vector(const fed_affine_step *affine) {
    return affine->linear != NULL || affine->slot != NULL;
}

void fed_affine_vector(const fed_affine_step *affine, const fed_net *net, float *vector) {
    if (affine->linear != NULL) {
        fed_net_pack(net, affine->linear, vector);
        if (affine->linear_factor != 1)
            net->kernels->multiply(vector, net->size, (float)affine->linear_factor);
    } else {
        memset(vector, 0, net->size * sizeof *vector);
    }
    if (affine->slot != NULL)
        net->kernels->sgd(vector, affine->slot, net->size, -(float)affine->slot_factor);
}

void fed_affine_add_proximal(const fed_affine_step *affine, const fed_net *net, const float *server,
                             float *vector) {
    if (affine->strength > 0) net->kernels->sgd(vector, server, net->size, (float)affine->strength);
}

static double share_kept(const fed_affine_step *affine, double rate_factor) {
    return 1 - affine->learning_rate * rate_factor * affine->strength;
}

float fed_affine_gradient_rate(const fed_affine_step *affine, double rate_factor) {
    const double rate = affine->learning_rate * rate_factor;
    return (float)(rate * affine->gradient_factor / share_kept(affine, rate_factor));
}

fed_shift fed_affine_shift(fed_affine_step *affine, const float *vector, double rate_factor) {
    const double rate = affine->learning_rate * rate_factor, kept = share_kept(affine, rate_factor);
    affine->distance = kept * affine->distance + rate;
    return (fed_shift){.vector = vector, .kept = (float)kept, .rate = (float)rate};
}
