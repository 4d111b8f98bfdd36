/* SPDX-License-Identifier: Apache-2.0
 * Trains a cohort on several threads.
 *
 * Threads take single clients. Blocks of 8 consecutive clients fix the order of addition. A window
 * of blocks is open at a time: as many as there are threads, at least two. A thread takes the
 * largest client in the window that no other thread has taken. The parameters of a trained client
 * wait until all earlier clients of the block are trained; the thread that trains the last missing
 * client then adds all of them in order. Threads therefore decide who trains a client and when, but
 * not the order of addition. Memory is bounded by the window, for a cohort of any size. */
#include "cohort.h"
#include "denormals.h"
#include "threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int terms_are_valid(const fed_terms *terms) {
    const fed_bounds *bounds = terms->bounds;
    if (terms->weighting != FED_WEIGHT_NUM_EXAMPLES && terms->weighting != FED_WEIGHT_UNIFORM)
        return 0;
    if (bounds != NULL && !(bounds->max_abs >= 0 && bounds->norm >= 0)) return 0; /* also NaN */
    return terms->frozen_slots == NULL || terms->frozen_step_num >= 1;
}

/* 1 if there are no rate factors, or one for each local step of each client. */
static int has_rate_factors(const fed_terms *terms, const fed_client *clients, size_t num_clients) {
    if (terms->rate_factors == NULL) return 1;
    for (size_t i = 0; i < terms->num_rate_factors; i++)
        if (!(terms->rate_factors[i] >= 0 && terms->rate_factors[i] <= 1)) return 0;
    for (size_t c = 0; c < num_clients; c++)
        if (fed_plan_batches(&clients[c].plan, clients[c].num_examples) > terms->num_rate_factors)
            return 0;
    return 1;
}

/* 1 if the step needs no tensors, or has them and no frozen slots. */
static int has_tensors(const fed_terms *terms, const fed_step *step, const fed_model *model) {
    return fed_step_takes_tensors(step, terms->tensors, fed_num_trained(model)) &&
           (terms->frozen_slots == NULL || !fed_step_needs_tensors(step));
}

/* 1 if the label smoothing is allowed, and class weights are absent or valid. */
static int has_loss(const fed_terms *terms, const fed_model *model) {
    const float *weights = terms->class_weights;
    if (!(terms->label_smoothing >= 0 && terms->label_smoothing < 1)) return 0;
    for (size_t k = 0; weights != NULL && k < model->num_classes; k++)
        if (!(weights[k] >= 0 && isfinite(weights[k]))) return 0;
    return 1;
}

/* ---- Training -------------------------------------------------------------------------------- */

typedef struct block {
    size_t first, num_clients;         /* of the cohort */
    unsigned taken;                    /* bit p: client first + p has been taken */
    float *waiting[FED_BLOCK_CLIENTS]; /* parameters of clients trained but not yet added */
    size_t num_added;
    int being_added;        /* one thread at a time adds to values */
    double *values, weight; /* values belong to the team */
} block;

typedef struct cohort {
    fed_team *team;
    const fed_net *net;
    const fed_training *training;
    const fed_client *clients;
    size_t num_clients;
    const fed_terms *terms;
    fed_sum *sum; /* NULL: no delta is added */
    fed_client_stats *stats;

    omp_lock_t lock; /* guards everything below, and the team's free list */
    size_t num_blocks, num_opened, num_merged, num_window;
    block *window; /* block b is window[b % num_window] */
    int being_merged;
    int status; /* a failure stops all threads */
} cohort;

static block *cohort_block(const cohort *co, size_t b) { return &co->window[b % co->num_window]; }

/* Opens the blocks that fit into the window. Their sums are zeros. */
static void open_blocks(cohort *co) {
    while (co->num_opened < co->num_blocks && co->num_opened < co->num_merged + co->num_window) {
        block *blk = cohort_block(co, co->num_opened);
        *blk = (block){.first = co->num_opened * FED_BLOCK_CLIENTS,
                       .values = co->team->window[co->num_opened % co->num_window]};
        const size_t left = co->num_clients - blk->first;
        blk->num_clients = left < FED_BLOCK_CLIENTS ? left : FED_BLOCK_CLIENTS;
        co->num_opened++;
    }
}

enum { NONE_NOW = -1, NONE_LEFT = -2 };

/* Takes the largest client of the window that no thread has taken; of equally large ones, the
 * first. */
static int64_t take_client(cohort *co) {
    int64_t largest = co->num_opened < co->num_blocks ? NONE_NOW : NONE_LEFT;
    size_t most_visits = 0;
    for (size_t b = co->num_merged; b < co->num_opened; b++) {
        const block *blk = cohort_block(co, b);
        for (size_t p = 0; p < blk->num_clients; p++) {
            if (blk->taken >> p & 1) continue;
            const fed_client *client = &co->clients[blk->first + p];
            const size_t visits = fed_plan_visits(&client->plan, client->num_examples);
            if (largest >= 0 && visits <= most_visits) continue;
            largest = (int64_t)(blk->first + p);
            most_visits = visits;
        }
    }
    if (largest >= 0)
        cohort_block(co, (size_t)largest / FED_BLOCK_CLIENTS)->taken |=
            1u << ((size_t)largest % FED_BLOCK_CLIENTS);
    return largest;
}

static float *take_params(fed_team *team) {
    if (team->num_free > 0) return team->free_params[--team->num_free];
    return fed_allocate(team->num_values * sizeof(float));
}

static void return_params(fed_team *team, float *params) {
    team->free_params[team->num_free++] = params;
}

static double client_weight(const cohort *co, const fed_client_stats *stats) {
    if (!stats->is_finite || stats->num_examples == 0) return 0;
    return co->terms->weighting == FED_WEIGHT_UNIFORM ? 1 : (double)stats->num_examples;
}

/* The factor that brings a measured delta within the bounds. */
static double bounding_factor(const cohort *co, const fed_client_stats *stats) {
    if (co->terms->bounds == NULL) return 1;
    if (stats->max_abs > co->terms->bounds->max_abs) return 0;
    return stats->norm > co->terms->bounds->norm ? co->terms->bounds->norm / stats->norm : 1;
}

/* Adds the trained clients of the block in order, up to the first client that is not trained yet.
 * The caller holds the lock before and after. */
static void add_waiting(cohort *co, block *blk) {
    if (blk->being_added) return;
    blk->being_added = 1;
    while (blk->num_added < blk->num_clients && blk->waiting[blk->num_added] != NULL) {
        float *params = blk->waiting[blk->num_added];
        fed_client_stats *stats = &co->stats[blk->first + blk->num_added];
        omp_unset_lock(&co->lock);
        stats->weight = client_weight(co, stats);
        const fed_own *own = co->clients[blk->first + blk->num_added].own;
        const double factor =
            stats->weight * bounding_factor(co, stats) * (own != NULL ? own->delta_factor : 1);
        if (factor > 0 && co->sum != NULL)
            co->net->kernels->add_delta(blk->values, params, co->training->origin,
                                        co->team->num_values, factor);
        blk->weight += stats->weight;
        omp_set_lock(&co->lock);
        blk->num_added++;
        return_params(co->team, params);
    }
    blk->being_added = 0;
}

/* Makes a block's values zeros, if there is a sum. Memory that the sum does not need is used
 * first. */
static int clear_values(cohort *co, double **values /* in-out */) {
    if (co->sum == NULL) return FED_OK;
    const size_t num_bytes = co->team->num_values * sizeof **values;
    if (*values == NULL) *values = fed_sum_take_unused(co->sum);
    if (*values == NULL) *values = fed_allocate(num_bytes);
    if (*values == NULL) return FED_ERR_NO_MEMORY;
    memset(*values, 0, num_bytes);
    return FED_OK;
}

/* Adds finished blocks to the tree, in order. After a failure it adds none: if clear_values has
 * failed, block num_merged is already in the tree. The caller holds the lock before and after. */
static void merge_blocks(cohort *co) {
    if (co->being_merged || co->status != FED_OK) return;
    co->being_merged = 1;
    while (co->num_merged < co->num_opened) {
        block *blk = cohort_block(co, co->num_merged);
        if (blk->num_added < blk->num_clients || blk->being_added) break;
        double **values = &co->team->window[co->num_merged % co->num_window];
        const int is_reused = co->num_opened < co->num_blocks;
        omp_unset_lock(&co->lock);
        if (co->sum != NULL)
            fed_sum_push(co->sum, values, blk->weight, blk->num_clients < FED_BLOCK_CLIENTS);
        const int status = is_reused ? clear_values(co, values) : FED_OK;
        omp_set_lock(&co->lock);
        if (status != FED_OK) {
            co->status = status;
            break;
        }
        co->num_merged++;
        open_blocks(co);
    }
    co->being_merged = 0;
}

/* Sleeps for a moment, because other threads are training all remaining clients of the window. */
static void wait_a_little(void) {
    static const struct timespec pause = {0, 20000};
    nanosleep(&pause, NULL);
}

/* Starts a client from its own parameters instead of the server's. Proximal terms and the delta are
 * then relative to its own parameters, too; the sum still adds the difference from the server's. */
static int start_alone(const cohort *co, const float *start, fed_workspace *workspace,
                       fed_training *training) {
    const int status = fed_team_pack_start(co->team, co->net, start, workspace);
    if (status != FED_OK) return status;
    if (training->origin == training->server) training->origin = workspace->start;
    training->server = workspace->start;
    return FED_OK;
}

/* Trains a client and writes its delta, if that is needed. */
static int train_one(const cohort *co, size_t c, fed_workspace *workspace, float *params) {
    const fed_own *own = co->clients[c].own;
    fed_client_stats *stats = &co->stats[c];
    fed_training training = *co->training;
    int status = FED_OK;
    if (own != NULL && own->start != NULL)
        status = start_alone(co, own->start, workspace, &training);
    if (status == FED_OK)
        status = fed_train_client(&training, &co->clients[c], workspace, params, stats);
    if (status != FED_OK || !stats->is_finite) return status;
    if (own != NULL && own->delta != NULL)
        status = fed_send_delta(co->net, params, training.origin, workspace, own->delta);
    return status;
}

/* Trains one client that this thread has taken. The caller holds the lock before and after. */
static void work_on(cohort *co, size_t c, fed_workspace *workspace) {
    float *params = take_params(co->team);
    if (params == NULL) {
        co->status = FED_ERR_NO_MEMORY;
        return;
    }
    omp_unset_lock(&co->lock);
    const int status = train_one(co, c, workspace, params);
    omp_set_lock(&co->lock);
    if (status != FED_OK) {
        co->status = status;
        return_params(co->team, params);
        return;
    }
    block *blk = cohort_block(co, c / FED_BLOCK_CLIENTS);
    blk->waiting[c % FED_BLOCK_CLIENTS] = params;
    if (co->terms->num_trained != NULL)
        atomic_fetch_add_explicit(co->terms->num_trained, 1, memory_order_relaxed);
    add_waiting(co, blk);
    merge_blocks(co);
}

static void work(cohort *co) {
    const fp_mode before = denormals_off();
    fed_workspace *workspace = &co->team->workspaces[omp_get_thread_num()];
    omp_set_lock(&co->lock);
    while (co->status == FED_OK) {
        const int64_t c = take_client(co);
        if (c == NONE_LEFT) break;
        if (c >= 0) {
            work_on(co, (size_t)c, workspace);
        } else {
            omp_unset_lock(&co->lock);
            wait_a_little();
            omp_set_lock(&co->lock);
        }
    }
    omp_unset_lock(&co->lock);
    fp_restore(before);
}

static void work_together(cohort *co, int num_threads) {
    if (num_threads == 1) {
        work(co);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(num_threads)
#endif
    work(co);
}

static void return_waiting(cohort *co) {
    for (size_t b = co->num_merged; b < co->num_opened; b++) {
        block *blk = cohort_block(co, b);
        for (size_t p = blk->num_added; p < blk->num_clients; p++)
            if (blk->waiting[p] != NULL) return_params(co->team, blk->waiting[p]);
    }
}

static int open_window(cohort *co) {
    co->num_window = co->team->num_window < co->num_blocks ? co->team->num_window : co->num_blocks;
    co->window = calloc(co->num_window, sizeof *co->window);
    if (co->window == NULL) return FED_ERR_NO_MEMORY;
    for (size_t w = 0; w < co->num_window; w++) {
        const int status = clear_values(co, &co->team->window[w]);
        if (status != FED_OK) return status;
    }
    open_blocks(co);
    return FED_OK;
}

/* Frees the window. After a failure it also returns the parameters of waiting clients. */
static void close_window(cohort *co) {
    if (co->status != FED_OK) return_waiting(co);
    free(co->window);
}

static int train_cohort(fed_team *team, const fed_net *net, const fed_step *step,
                        const float *server_params, const fed_client *clients, size_t num_clients,
                        const fed_terms *terms, const atomic_int *cancel, fed_sum *sum,
                        fed_client_stats *stats, fed_fault *fault) {
    const fed_model *model = net->model;
    int status = fed_step_check(step);
    if (status == FED_OK && !((sum == NULL || fed_sum_takes(sum, net)) && terms_are_valid(terms)))
        status = FED_ERR_ARGUMENT;
    if (status == FED_OK) status = fed_check_clients(model, clients, num_clients, fault);
    if (status == FED_OK) status = fed_team_set_params(team, net, server_params);
    if (status == FED_OK && fed_step_is_gradient(step)) status = fed_team_reserve_zeros(team);
    if (status == FED_OK) status = fed_team_set_slots(team, net, fed_step_slots(step), terms);
    if (status == FED_OK && !has_rate_factors(terms, clients, num_clients))
        status = FED_ERR_ARGUMENT;
    if (status == FED_OK && !(has_tensors(terms, step, model) && has_loss(terms, model)))
        status = FED_ERR_ARGUMENT;
    /* FED_STEP_ANCHOR also runs each batch at the server's parameters, but a batch norm keeps only
     * one set of statistics per batch. */
    if (status == FED_OK && fed_net_has_moving(net) && fed_step_has(step, FED_STEP_ANCHOR))
        status = FED_ERR_ARGUMENT;
    if (status != FED_OK || num_clients == 0) return status;

    const fed_frozen frozen = {team->frozen_slots, terms->frozen_step_num};
    const int num_workers = fed_net_num_workers(net, num_clients, team->num_threads);
    const fed_training training = {.net = net,
                                   .step = step,
                                   .frozen = terms->frozen_slots != NULL ? &frozen : NULL,
                                   .rate_factors = terms->rate_factors,
                                   .tensors = terms->tensors,
                                   .loss = {terms->class_weights, terms->label_smoothing},
                                   .server = team->server,
                                   .origin =
                                       fed_step_is_gradient(step) ? team->zeros : team->server,
                                   .cancel = cancel,
                                   .num_workers = num_workers,
                                   .bounds = terms->bounds};
    cohort co = {.team = team,
                 .net = net,
                 .training = &training,
                 .clients = clients,
                 .num_clients = num_clients,
                 .terms = terms,
                 .sum = sum,
                 .stats = stats};
    co.num_blocks = (num_clients + FED_BLOCK_CLIENTS - 1) / FED_BLOCK_CLIENTS;
    co.status = open_window(&co);
    omp_init_lock(&co.lock);
    if (co.status == FED_OK) work_together(&co, num_workers > 1 ? 1 : team->num_threads);
    omp_destroy_lock(&co.lock);
    close_window(&co);
    return co.status;
}

int fed_train_cohort(fed_team *team, const fed_model *model, const fed_step *step,
                     const float *server_params, const fed_client *clients, size_t num_clients,
                     const fed_terms *terms, const atomic_int *cancel, fed_sum *sum,
                     fed_client_stats *stats, fed_fault *fault) {
    fed_net net;
    int status = fed_net_init(&net, model);
    if (status == FED_OK)
        status = train_cohort(team, &net, step, server_params, clients, num_clients, terms, cancel,
                              sum, stats, fault);
    fed_net_free(&net);
    return status;
}
