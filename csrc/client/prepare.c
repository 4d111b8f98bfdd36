/* SPDX-License-Identifier: Apache-2.0
 * Computes the values that are the same in all rounds of a client's training, for the caller to
 * keep. */
#include "client.h"
#include "denormals.h"

#include <stdint.h>
#include <stdlib.h>

/* Bytes of all decoded examples, SIZE_MAX if that would overflow. */
static size_t decoded_bytes(const fed_client *client, size_t width) {
    fed_carver measure = {0};
    fed_carve(&measure, client->num_examples, width * sizeof(float));
    return measure.used;
}

static int prepare(fed_prepared *prepared, const fed_net *net, const fed_client *client) {
    const fed_model *model = net->model;
    prepared->model = model;
    prepared->num_examples = client->num_examples;
    size_t width = fed_padded(model->num_inputs);
    if (decoded_bytes(client, width) == SIZE_MAX) return 0;
    if (fed_net_can_narrow(net)) {
        prepared->narrow_memory = fed_allocate(fed_narrow_num_bytes(net));
        if (prepared->narrow_memory == NULL) return 0;
        prepared->is_narrow =
            fed_narrow_init(&prepared->narrow, net, client, prepared->narrow_memory);
        if (prepared->is_narrow) width = fed_padded(prepared->narrow.model.num_inputs);
    }
    prepared->decoded = fed_allocate(decoded_bytes(client, width));
    if (prepared->decoded == NULL) return 0;
    for (size_t e = 0; e < client->num_examples; e++) {
        float *row = prepared->decoded + e * width;
        if (prepared->is_narrow)
            fed_narrow_decode(&prepared->narrow, e, row);
        else
            fed_decode(net->kernels, client, model->num_inputs, e, row);
    }
    return 1;
}

fed_prepared *fed_prepare(const fed_model *model, const fed_client *client) {
    fed_prepared *prepared = calloc(1, sizeof *prepared);
    if (prepared == NULL) return NULL;
    const fp_mode before = denormals_off();
    fed_net net;
    const int is_done = fed_net_init(&net, model) == FED_OK && prepare(prepared, &net, client);
    fed_net_free(&net);
    fp_restore(before);
    if (is_done) return prepared;
    fed_prepared_free(prepared);
    return NULL;
}

void fed_prepared_free(fed_prepared *prepared) {
    if (prepared == NULL) return;
    free(prepared->narrow_memory);
    free(prepared->decoded);
    free(prepared);
}
