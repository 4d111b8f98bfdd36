/* SPDX-License-Identifier: Apache-2.0
 * Steps that move parameters by a multiple of their gradient, a pull back to the server's, and a
 * vector that stays the same all round: SGD with a proximal term, a linear term of the client's
 * own, or momentum that every step starts from anew. With gradient g, vector v and strength s
 *
 *     w <- w - rate * (c * g + v + s * (w - server)) = a * (w - rate * c / a * g) - rate * (v - s *
 * server) where a = 1 - rate * s
 *
 * so g can be accumulated right into the parameters, as in plain SGD, and the rest is done to a
 * piece of them as soon as its gradient is in.
 *
 * In a narrow layer the fixed pixels' weights move along their direction by gradients, but v moves
 * them elsewhere, too. What it does there depends on no image: all of these weights go the same
 * distance d along v, d <- a * d + rate, and get it once the last step is done. */
#include "client.h"

#include <string.h>

/* SGD's options; a proximal term's. */
enum { LEARNING_RATE, MOMENTUM, NESTEROV };
enum { STRENGTH };

/* Beyond it, gradients would be accumulated too large and made small again. */
static const double most_pull = 0.5;

int fed_drift_init(fed_drift *drift, const fed_step *step, const fed_frozen *frozen,
                   const float *linear) {
    const fed_step_row *last = &step->rows[step->num_rows - 1];
    const double momentum = last->options[MOMENTUM];
    const int is_frozen = frozen != NULL && frozen->slots != NULL;
    *drift = (fed_drift){.learning_rate = last->options[LEARNING_RATE], .of_gradient = 1};
    if (last->kind != FED_STEP_SGD || (momentum > 0 && !is_frozen)) return 0;
    const int is_nesterov = last->options[NESTEROV] != 0;
    if (is_nesterov) drift->of_gradient = 1 + momentum;
    if (momentum > 0) {
        drift->slot = frozen->slots;
        drift->of_slot = is_nesterov ? momentum * momentum : momentum;
    }
    for (size_t r = 0; r + 1 < step->num_rows; r++) {
        const fed_step_row *row = &step->rows[r];
        if (row->kind == FED_STEP_PROXIMAL)
            drift->strength += drift->of_gradient * row->options[STRENGTH];
        else if (row->kind == FED_STEP_LINEAR && linear != NULL)
            drift->of_linear += drift->of_gradient;
        else if (row->kind != FED_STEP_LINEAR && row->kind != FED_STEP_ANCHOR)
            return 0;
    }
    if (drift->of_linear > 0) drift->linear = linear;
    return drift->learning_rate * drift->strength <= most_pull;
}

int fed_drift_has_vector(const fed_drift *drift) {
    return drift->linear != NULL || drift->slot != NULL;
}

void fed_drift_vector(const fed_drift *drift, const fed_net *net, float *vector) {
    if (drift->linear != NULL) {
        fed_net_pack(net, drift->linear, vector);
        if (drift->of_linear != 1)
            net->kernels->multiply(vector, net->size, (float)drift->of_linear);
    } else {
        memset(vector, 0, net->size * sizeof *vector);
    }
    if (drift->slot != NULL)
        net->kernels->sgd(vector, drift->slot, net->size, -(float)drift->of_slot);
}

void fed_drift_pull(const fed_drift *drift, const fed_net *net, const float *server,
                    float *vector) {
    if (drift->strength > 0) net->kernels->sgd(vector, server, net->size, (float)drift->strength);
}

static double share_kept(const fed_drift *drift, double rate_factor) {
    return 1 - drift->learning_rate * rate_factor * drift->strength;
}

float fed_drift_gradient_rate(const fed_drift *drift, double rate_factor) {
    const double rate = drift->learning_rate * rate_factor;
    return (float)(rate * drift->of_gradient / share_kept(drift, rate_factor));
}

fed_shift fed_drift_shift(fed_drift *drift, const float *vector, double rate_factor) {
    const double rate = drift->learning_rate * rate_factor, kept = share_kept(drift, rate_factor);
    drift->distance = kept * drift->distance + rate;
    return (fed_shift){.vector = vector, .kept = (float)kept, .rate = (float)rate};
}
