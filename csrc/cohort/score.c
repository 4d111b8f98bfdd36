/* SPDX-License-Identifier: Apache-2.0
 * Scores clients on several threads without training them. A thread takes a block of examples of
 * one client: at most 256, or all of its stream if that must be drawn (see split_client). Blocks
 * are fixed, so results do not depend on the number of threads. */
#include "cohort.h"
#include "denormals.h"
#include "threads.h"

#include <stdlib.h>
#include <string.h>

/* Examples in a block. */
enum { SCORE_BLOCK = 256 };

/* A block of one client's examples. */
typedef struct score_item {
    size_t client, first, num;
    int order;       /* 1: the examples in the plan's order; first and num are ignored */
    int64_t repeats; /* how often the scores count */
    fed_score score;
} score_item;

/* 1 if max_examples ends the stream within a shuffled unit: an epoch, or under repeat-shuffle the
 * whole stream. */
static int is_partial_shuffle(const fed_client *client) {
    const fed_plan *plan = &client->plan;
    if (plan->shuffle_buffer <= 1 || client->num_examples == 0) return 0;
    const size_t visits = fed_plan_visits(plan, client->num_examples);
    if (plan->pipeline != FED_REPEAT_SHUFFLE) return visits % client->num_examples != 0;
    fed_plan whole = *plan;
    whole.max_examples = SIZE_MAX;
    return visits < fed_plan_visits(&whole, client->num_examples);
}

/* Appends the blocks of examples 0..num-1 of a client; with items NULL it only counts them. */
static size_t split_examples(size_t client, size_t num, int64_t repeats, score_item *items) {
    size_t num_items = 0;
    for (size_t first = 0; first < num; first += SCORE_BLOCK, num_items++) {
        const size_t left = num - first;
        if (items != NULL)
            items[num_items] = (score_item){.client = client,
                                            .first = first,
                                            .repeats = repeats,
                                            .num = left < SCORE_BLOCK ? left : SCORE_BLOCK};
    }
    return num_items;
}

/* Without updates the order of examples has no effect: each example is scored once and counted as
 * often as it is visited. Only a shuffled stream that max_examples cuts short must be drawn. */
static size_t split_client(const fed_client *clients, size_t c, score_item *items) {
    const fed_client *client = &clients[c];
    if (client->num_examples == 0) return 0;
    if (is_partial_shuffle(client)) {
        if (items != NULL) *items = (score_item){.client = c, .order = 1, .repeats = 1};
        return 1;
    }
    const size_t visits = fed_plan_visits(&client->plan, client->num_examples);
    const size_t whole = visits / client->num_examples, rest = visits % client->num_examples;
    size_t num_items = 0;
    if (whole > 0) num_items = split_examples(c, client->num_examples, (int64_t)whole, items);
    if (rest > 0) num_items += split_examples(c, rest, 1, items != NULL ? items + num_items : NULL);
    return num_items;
}

static void gather_stats(const fed_client *clients, size_t num_clients, const score_item *items,
                         size_t num_items, fed_client_stats *stats) {
    memset(stats, 0, num_clients * sizeof *stats);
    for (size_t c = 0; c < num_clients; c++) {
        const fed_client *client = &clients[c];
        stats[c].num_examples = (int64_t)fed_plan_visits(&client->plan, client->num_examples);
        stats[c].num_batches = (int64_t)fed_plan_batches(&client->plan, client->num_examples);
        stats[c].is_finite = 1;
    }
    for (size_t i = 0; i < num_items; i++) {
        fed_client_stats *of_client = &stats[items[i].client];
        of_client->loss_sum += items[i].score.loss_sum * (double)items[i].repeats;
        of_client->num_correct += items[i].score.num_correct * items[i].repeats;
    }
}

enum { NO_CLIENT = -1 };

/* Finds the packed parameters for scoring a client: its own start, or else the team's. The
 * workspace holds the start of client *packed, so the client's next block need not pack it again.
 */
static int params_of(const fed_team *team, const fed_net *net, const fed_client *clients, size_t c,
                     fed_workspace *workspace, int64_t *packed, const float **params) {
    const fed_own *own = clients[c].own;
    *params = team->server;
    if (own == NULL || own->start == NULL) return FED_OK;
    if (*packed != (int64_t)c) {
        const int status = fed_team_pack_start(team, net, own->start, workspace);
        if (status != FED_OK) return status;
        *packed = (int64_t)c;
    }
    *params = workspace->start;
    return FED_OK;
}

/* Scores all blocks. logits[c] points to the rows of client c; NULL: logits are not needed. */
static int score_items(fed_team *team, const fed_net *net, const fed_client *clients,
                       score_item *items, size_t num_items, const atomic_int *cancel,
                       float *const *logits /* [num_clients] or NULL */) {
    atomic_size_t next = 0;
    atomic_int failure = FED_OK;
#ifdef _OPENMP
#pragma omp parallel num_threads(team->num_threads)
#endif
    {
        const fp_mode before = denormals_off();
        fed_workspace *workspace = &team->workspaces[omp_get_thread_num()];
        int64_t packed = NO_CLIENT;
        for (size_t i; (i = atomic_fetch_add(&next, 1)) < num_items && failure == FED_OK;) {
            score_item *item = &items[i];
            float *rows = logits != NULL
                              ? logits[item->client] + item->first * net->model->num_classes
                              : NULL;
            const float *params;
            int status = params_of(team, net, clients, item->client, workspace, &packed, &params);
            if (status == FED_OK)
                status =
                    fed_score_client(net, params, &clients[item->client], item->order, item->first,
                                     item->num, cancel, workspace, &item->score, rows);
            if (status != FED_OK) failure = status;
        }
        fp_restore(before);
    }
    return failure;
}

/* Checks the arguments, lays out the net, which the caller frees, and packs the parameters. On an
 * error there is nothing to free. */
static int prepare_scoring(fed_team *team, const fed_model *model, const float *params,
                           const fed_client *clients, size_t num_clients, fed_net *net,
                           fed_fault *fault) {
    int status = fed_net_init(net, model);
    if (status == FED_OK) status = fed_check_clients(model, clients, num_clients, fault);
    if (status == FED_OK) status = fed_team_set_params(team, net, params);
    if (status != FED_OK) fed_net_free(net);
    return status;
}

int fed_evaluate(fed_team *team, const fed_model *model, const float *params,
                 const fed_client *clients, size_t num_clients, const atomic_int *cancel,
                 fed_client_stats *stats, fed_fault *fault) {
    fed_net net;
    int status = prepare_scoring(team, model, params, clients, num_clients, &net, fault);
    if (status != FED_OK) return status;

    size_t num_items = 0;
    for (size_t c = 0; c < num_clients; c++) num_items += split_client(clients, c, NULL);
    score_item *items = calloc(num_items > 0 ? num_items : 1, sizeof *items);
    if (items == NULL) status = FED_ERR_NO_MEMORY;
    size_t filled = 0;
    for (size_t c = 0; c < num_clients && status == FED_OK; c++)
        filled += split_client(clients, c, items + filled);
    if (status == FED_OK) status = score_items(team, &net, clients, items, num_items, cancel, NULL);
    if (status == FED_OK) gather_stats(clients, num_clients, items, num_items, stats);
    free(items);
    fed_net_free(&net);
    return status;
}

int fed_predict(fed_team *team, const fed_model *model, const float *params,
                const fed_client *clients, size_t num_clients, const atomic_int *cancel,
                float *logits, fed_fault *fault) {
    fed_net net;
    int status = prepare_scoring(team, model, params, clients, num_clients, &net, fault);
    if (status != FED_OK) return status;

    size_t num_items = 0, filled = 0, num_before = 0;
    for (size_t c = 0; c < num_clients; c++)
        num_items += split_examples(c, clients[c].num_examples, 1, NULL);
    score_item *items = calloc(num_items > 0 ? num_items : 1, sizeof *items);
    float **rows = calloc(num_clients > 0 ? num_clients : 1, sizeof *rows);
    if (items == NULL || rows == NULL) status = FED_ERR_NO_MEMORY;
    for (size_t c = 0; c < num_clients && status == FED_OK; c++) {
        filled += split_examples(c, clients[c].num_examples, 1, items + filled);
        rows[c] = logits + num_before * model->num_classes;
        num_before += clients[c].num_examples;
    }
    if (status == FED_OK) status = score_items(team, &net, clients, items, num_items, cancel, rows);
    free(items);
    free(rows);
    fed_net_free(&net);
    return status;
}
