/* SPDX-License-Identifier: Apache-2.0
 * The threads that work on a cohort, their memory, packed parameters, and the checks of clients. */
#include "cohort.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Team ------------------------------------------------------------------------------------ */

fed_team *fed_team_new(int num_threads) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return NULL;
    if (!fed_has_openmp()) num_threads = 1;
    fed_team *team = calloc(1, sizeof *team);
    if (team == NULL) return NULL;
    team->num_threads = num_threads;
    team->workspaces = calloc((size_t)num_threads, sizeof *team->workspaces);
    team->num_window = (size_t)(num_threads < 2 ? 2 : num_threads);
    team->window = calloc(team->num_window, sizeof *team->window);
    /* each client of each open block may hold one vector */
    team->free_params = calloc(team->num_window * FED_BLOCK_CLIENTS, sizeof *team->free_params);
    if (team->workspaces == NULL || team->window == NULL || team->free_params == NULL) {
        fed_team_free(team);
        return NULL;
    }
    return team;
}

/* Frees all vectors of the model's size. */
static void drop_vectors(fed_team *team) {
    while (team->num_free > 0) free(team->free_params[--team->num_free]);
    free(team->server);
    free(team->zeros);
    free(team->frozen_slots);
    for (int t = 0; team->workspaces != NULL && t < team->num_threads; t++) {
        free(team->workspaces[t].start);
        team->workspaces[t].start = NULL;
    }
    team->server = team->zeros = team->frozen_slots = NULL;
    for (size_t w = 0; team->window != NULL && w < team->num_window; w++) {
        free(team->window[w]);
        team->window[w] = NULL;
    }
    team->num_values = 0;
}

void fed_team_free(fed_team *team) {
    if (team == NULL) return;
    drop_vectors(team);
    free(team->free_params);
    free(team->window);
    if (team->workspaces != NULL)
        for (int t = 0; t < team->num_threads; t++) free(team->workspaces[t].base);
    free(team->workspaces);
    free(team);
}

int fed_team_set_params(fed_team *team, const fed_net *net, const float *params) {
    const size_t num_values = net->size;
    if (team->num_values != num_values) {
        drop_vectors(team);
        team->server = fed_allocate(num_values * sizeof *team->server);
        if (team->server == NULL) return FED_ERR_NO_MEMORY;
        team->num_values = num_values;
    }
    fed_net_pack(net, params, team->server);
    return FED_OK;
}

int fed_team_reserve_zeros(fed_team *team) {
    const size_t num_bytes = team->num_values * sizeof *team->zeros;
    if (team->zeros != NULL) return FED_OK;
    team->zeros = fed_allocate(num_bytes);
    if (team->zeros == NULL) return FED_ERR_NO_MEMORY;
    memset(team->zeros, 0, num_bytes);
    return FED_OK;
}

int fed_team_pack_start(const fed_team *team, const fed_net *net, const float *start,
                        fed_workspace *workspace) {
    if (workspace->start == NULL)
        workspace->start = fed_allocate(team->num_values * sizeof *workspace->start);
    if (workspace->start == NULL) return FED_ERR_NO_MEMORY;
    fed_net_pack(net, start, workspace->start);
    return FED_OK;
}

int fed_team_set_slots(fed_team *team, const fed_net *net, size_t num_slots,
                       const fed_terms *terms) {
    free(team->frozen_slots);
    team->frozen_slots = NULL;
    if (terms->frozen_slots == NULL || num_slots == 0) return FED_OK;
    team->frozen_slots = fed_allocate(num_slots * team->num_values * sizeof(float));
    if (team->frozen_slots == NULL) return FED_ERR_NO_MEMORY;
    for (size_t s = 0; s < num_slots; s++)
        fed_net_pack(net, terms->frozen_slots + s * net->model->num_params,
                     team->frozen_slots + s * team->num_values);
    return FED_OK;
}

/* ---- Input checks ---------------------------------------------------------------------------- */

static int client_is_valid(const fed_model *model, const fed_client *client) {
    const fed_plan *plan = &client->plan;
    if (client->num_examples > UINT32_MAX) return 0;
    const fed_prepared *prepared = client->prepared;
    if (prepared != NULL &&
        (prepared->model != model || prepared->num_examples != client->num_examples))
        return 0;
    if (client->pixel_type != FED_PIXELS_UINT8 && client->pixel_type != FED_PIXELS_FLOAT32)
        return 0;
    const fed_own *own = client->own;
    if (own != NULL && !(own->delta_factor >= 0 && isfinite(own->delta_factor))) return 0;
    if (own != NULL && !(own->max_distance >= 0)) return 0;
    if (plan->pipeline < FED_REPEAT_SHUFFLE || plan->pipeline > FED_PER_EPOCH) return 0;
    if (plan->epochs < 1 || plan->batch_size < 1) return 0;
    return plan->batch_size <= FED_MAX_BATCH ||
           fed_plan_visits(plan, client->num_examples) <= FED_MAX_BATCH;
}

int fed_check_clients(const fed_model *model, const fed_client *clients, size_t num_clients,
                      fed_fault *fault) {
    for (size_t c = 0; c < num_clients; c++) {
        const fed_client *client = &clients[c];
        if (!client_is_valid(model, client)) return FED_ERR_ARGUMENT;
        for (size_t e = 0; e < client->num_examples; e++) {
            const int32_t label = client->labels[e];
            if (label < 0 || (size_t)label >= model->num_classes) {
                *fault = (fed_fault){c, e, label};
                return FED_ERR_LABEL;
            }
        }
    }
    return FED_OK;
}
