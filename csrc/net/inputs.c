/* SPDX-License-Identifier: Apache-2.0
 * The outputs of a model's input layers, for callers that inspect them. */
#include "net.h"

#include <stdlib.h>

size_t fed_inputs_size(const fed_model *model) {
    const size_t num_layers = fed_num_input_layers(model);
    return num_layers > 0 ? fed_shape_size(&model->layers[num_layers - 1].out) : model->num_inputs;
}

int fed_run_inputs(const fed_model *model, const float *images, size_t num_images,
                   const fed_key *key, size_t first_visit, float *out) {
    fed_net net;
    int status = fed_net_init(&net, model);
    fed_batch batch = {.net = &net, .batch_size = 1, .is_training = key != NULL, .num_workers = 1};
    fed_carver measure = {NULL, 0};
    void *memory = NULL;
    if (status == FED_OK) {
        fed_batch_carve(&batch, &measure);
        memory = fed_allocate(measure.used);
        if (memory == NULL) status = FED_ERR_NO_MEMORY;
    }
    if (status == FED_OK) {
        fed_carver hand_out = {memory, 0};
        fed_batch_carve(&batch, &hand_out);
        fed_batch_clear(&batch);
    }
    for (size_t i = 0; status == FED_OK && i < num_images; i++) {
        if (key != NULL) fed_batch_open_dropout(&batch, key, first_visit + i);
        batch.images[0] = images + i * model->num_inputs;
        fed_batch_forward_inputs(&batch, out + i * fed_inputs_size(model));
    }
    free(memory);
    fed_net_free(&net);
    return status;
}
