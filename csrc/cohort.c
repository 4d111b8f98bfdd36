/* SPDX-License-Identifier: Apache-2.0
 * A cohort over threads: the only file that has any.
 *
 * Clients are the unit of scheduling. Blocks of 8 consecutive clients only fix the order of
 * addition. Within a window of open blocks (as many as there are threads, at least two) the
 * largest client that nobody has taken goes first. A client that is done waits, as its
 * parameters, for its predecessors in its block; whoever completes the chain adds it. So threads
 * decide who computes and when, never what is added to what, and memory is bounded by the
 * window, whatever the cohort. */
#include "core.h"
#include "denormals.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#else
typedef int omp_lock_t; /* one thread: nothing to lock */
static void omp_init_lock(omp_lock_t *lock) { (void)lock; }
static void omp_destroy_lock(omp_lock_t *lock) { (void)lock; }
static void omp_set_lock(omp_lock_t *lock) { (void)lock; }
static void omp_unset_lock(omp_lock_t *lock) { (void)lock; }
static int omp_get_thread_num(void) { return 0; }
#endif

/* Examples of one client that one thread scores at a time; fixed, so that sums do not depend on the
 * number of threads. */
enum { SCORE_BLOCK = 2048 };

/* ---- Team ------------------------------------------------------------------------------------ */

struct fed_team {
    int num_threads;
    fed_workspace *workspaces; /* [num_threads] */
    float **free_params;       /* packed parameter vectors that nobody holds, newest last */
    size_t num_free;
    size_t num_values;   /* floats in each of them */
    float *server;       /* packed server parameters of the call under way */
    float *zeros;        /* as many */
    float *frozen_slots; /* its frozen slots, packed one after the other; NULL: none */
    double **window;     /* [num_window]: the sums of the open blocks, zeros between calls */
    size_t num_window;
};

fed_team *fed_team_new(int num_threads) {
    if (num_threads < 1 || num_threads > FED_MAX_THREADS) return NULL;
    if (!fed_has_openmp()) num_threads = 1;
    fed_team *team = calloc(1, sizeof *team);
    if (team == NULL) return NULL;
    team->num_threads = num_threads;
    team->workspaces = calloc((size_t)num_threads, sizeof *team->workspaces);
    team->num_window = (size_t)(num_threads < 2 ? 2 : num_threads);
    team->window = calloc(team->num_window, sizeof *team->window);
    /* every client of every open block may hold one */
    team->free_params = calloc(team->num_window * FED_BLOCK_CLIENTS, sizeof *team->free_params);
    if (team->workspaces == NULL || team->window == NULL || team->free_params == NULL) {
        fed_team_free(team);
        return NULL;
    }
    return team;
}

/* Gives back what has the size of a model. */
static void drop_vectors(fed_team *team) {
    while (team->num_free > 0) free(team->free_params[--team->num_free]);
    free(team->server);
    free(team->zeros);
    free(team->frozen_slots);
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

/* Packs the parameters every client starts from. */
static int team_set_params(fed_team *team, const fed_net *net, const float *params) {
    const size_t num_values = fed_net_size(net);
    if (team->num_values != num_values) {
        drop_vectors(team);
        team->server = fed_allocate(num_values * sizeof *team->server);
        team->zeros = fed_allocate(num_values * sizeof *team->zeros);
        if (team->server == NULL || team->zeros == NULL) return FED_ERR_NO_MEMORY;
        memset(team->zeros, 0, num_values * sizeof *team->zeros);
        team->num_values = num_values;
    }
    fed_net_pack(net, params, team->server);
    return FED_OK;
}

/* Packs the slots that every local step starts from, if there are such. */
static int team_set_slots(fed_team *team, const fed_net *net, size_t num_slots,
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

/* A workspace holds a whole batch: a larger one would overflow its size. */
static const size_t max_batch_size = (size_t)1 << 24;

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
    if (plan->pipeline < FED_REPEAT_SHUFFLE || plan->pipeline > FED_PER_EPOCH) return 0;
    if (plan->epochs < 1 || plan->batch_size < 1) return 0;
    return plan->batch_size <= max_batch_size ||
           fed_plan_visits(plan, client->num_examples) <= max_batch_size;
}

static int terms_are_valid(const fed_terms *terms) {
    const fed_bounds *bounds = terms->bounds;
    if (terms->weighting != FED_WEIGHT_NUM_EXAMPLES && terms->weighting != FED_WEIGHT_UNIFORM)
        return 0;
    if (bounds != NULL && !(bounds->max_abs >= 0 && bounds->norm >= 0)) return 0; /* NaN, too */
    return terms->frozen_slots == NULL || terms->frozen_step_num >= 1;
}

/* 1 if there is a share of the learning rate for each local step of each client, or for none. */
static int has_rate_factors(const fed_terms *terms, const fed_client *clients, size_t num_clients) {
    if (terms->rate_factors == NULL) return 1;
    for (size_t i = 0; i < terms->num_rate_factors; i++)
        if (!(terms->rate_factors[i] >= 0 && terms->rate_factors[i] <= 1)) return 0;
    for (size_t c = 0; c < num_clients; c++)
        if (fed_plan_batches(&clients[c].plan, clients[c].num_examples) > terms->num_rate_factors)
            return 0;
    return 1;
}

/* Labels come from files: an index they form must never leave its array. */
static int check_clients(const fed_model *model, const fed_client *clients, size_t num_clients,
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

/* ---- Training -------------------------------------------------------------------------------- */

typedef struct block {
    size_t first, num_clients;         /* of the cohort */
    unsigned taken;                    /* bit p: client first + p has been taken */
    float *waiting[FED_BLOCK_CLIENTS]; /* trained, not yet added */
    size_t num_added;
    int being_added;         /* one thread at a time adds to values */
    double **values, weight; /* *values is the team's */
} block;

typedef struct cohort {
    fed_team *team;
    const fed_net *net;
    const fed_step *step;
    const fed_client *clients;
    size_t num_clients;
    const fed_terms *terms;
    const float *origin; /* packed: what a delta is relative to */
    const atomic_int *cancel;
    fed_sum *sum;
    fed_client_stats *stats;

    omp_lock_t lock; /* guards all below, and the team's free list */
    size_t num_blocks, num_opened, num_merged, num_window;
    block *window; /* block b is window[b % num_window] */
    int being_merged;
    int status; /* the first failure stops everybody */
} cohort;

static block *cohort_block(const cohort *co, size_t b) { return &co->window[b % co->num_window]; }

static void open_blocks(cohort *co) {
    while (co->num_opened < co->num_blocks && co->num_opened < co->num_merged + co->num_window) {
        block *blk = cohort_block(co, co->num_opened);
        *blk = (block){.first = co->num_opened * FED_BLOCK_CLIENTS,
                       .values = &co->team->window[co->num_opened % co->num_window]};
        const size_t left = co->num_clients - blk->first;
        blk->num_clients = left < FED_BLOCK_CLIENTS ? left : FED_BLOCK_CLIENTS;
        co->num_opened++;
    }
}

enum { NONE_NOW = -1, NONE_LEFT = -2 };

/* Takes the largest client of the window that nobody has; the lowest index among equals. */
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

/* Writes how large a client's delta is. */
static void measure(const cohort *co, const float *params, fed_client_stats *stats) {
    const double sum_of_squares =
        co->net->kernels->delta_size(params, co->origin, co->team->num_values, &stats->max_abs);
    stats->norm = stats->max_abs > co->terms->bounds->max_abs ? 0 : sqrt(sum_of_squares);
}

/* The factor that keeps a measured delta within bounds. */
static double bounding_factor(const cohort *co, const fed_client_stats *stats) {
    if (co->terms->bounds == NULL) return 1;
    if (stats->max_abs > co->terms->bounds->max_abs) return 0;
    return stats->norm > co->terms->bounds->norm ? co->terms->bounds->norm / stats->norm : 1;
}

/* Adds, in order, every client of the block that waits for nobody. Called and left with the
 * lock. */
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
        if (factor > 0)
            co->net->kernels->add_delta(*blk->values, params, co->origin, co->team->num_values,
                                        factor);
        blk->weight += stats->weight;
        omp_set_lock(&co->lock);
        blk->num_added++;
        return_params(co->team, params);
    }
    blk->being_added = 0;
}

/* Hands finished blocks to the tree, in order. Called and left with the lock. */
static void merge_blocks(cohort *co) {
    if (co->being_merged) return;
    co->being_merged = 1;
    while (co->num_merged < co->num_opened) {
        block *blk = cohort_block(co, co->num_merged);
        if (blk->num_added < blk->num_clients || blk->being_added) break;
        omp_unset_lock(&co->lock);
        const int status =
            fed_sum_push(co->sum, blk->values, blk->weight, blk->num_clients < FED_BLOCK_CLIENTS);
        omp_set_lock(&co->lock);
        if (status != FED_OK) co->status = status;
        co->num_merged++;
        open_blocks(co);
    }
    co->being_merged = 0;
}

/* Gives way while another thread holds what this one waits for. */
static void wait_a_little(void) {
    static const struct timespec pause = {0, 20000};
    nanosleep(&pause, NULL);
}

/* Trains one taken client; called and left with the lock. */
static void work_on(cohort *co, size_t c, fed_workspace *workspace) {
    float *params = take_params(co->team);
    if (params == NULL) {
        co->status = FED_ERR_NO_MEMORY;
        return;
    }
    omp_unset_lock(&co->lock);
    const fed_frozen frozen = {co->team->frozen_slots, co->terms->frozen_step_num};
    const fed_own *own = co->clients[c].own;
    int status =
        fed_train_client(co->net, co->step, co->terms->frozen_slots != NULL ? &frozen : NULL,
                         co->terms->rate_factors, co->team->server, co->origin, &co->clients[c],
                         co->cancel, workspace, params, &co->stats[c]);
    if (status == FED_OK && own != NULL && own->delta != NULL && co->stats[c].is_finite)
        status = fed_send_delta(co->net, params, co->origin, workspace, own->delta);
    if (status == FED_OK && co->terms->bounds != NULL && co->stats[c].is_finite)
        measure(co, params, &co->stats[c]);
    omp_set_lock(&co->lock);
    if (status != FED_OK) {
        co->status = status;
        return_params(co->team, params);
        return;
    }
    block *blk = cohort_block(co, c / FED_BLOCK_CLIENTS);
    blk->waiting[c % FED_BLOCK_CLIENTS] = params;
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
    const size_t num_bytes = fed_sum_size(co->sum) * sizeof(double);
    for (size_t w = 0; w < co->num_window; w++) {
        double **values = &co->team->window[w];
        if (*values != NULL) continue;
        *values = fed_allocate(num_bytes);
        if (*values == NULL) return FED_ERR_NO_MEMORY;
        memset(*values, 0, num_bytes);
    }
    open_blocks(co);
    return FED_OK;
}

/* After a failure, sums that were not handed on are not zeros, and clients still hold
 * parameters. */
static void close_window(cohort *co) {
    if (co->status != FED_OK) {
        return_waiting(co);
        for (size_t w = 0; w < co->num_window; w++)
            if (co->team->window[w] != NULL)
                memset(co->team->window[w], 0, fed_sum_size(co->sum) * sizeof(double));
    }
    free(co->window);
}

int fed_train_cohort(fed_team *team, const fed_model *model, const fed_step *step,
                     const float *server_params, const fed_client *clients, size_t num_clients,
                     const fed_terms *terms, const atomic_int *cancel, fed_sum *sum,
                     fed_client_stats *stats, fed_fault *fault) {
    fed_net net;
    int status = fed_net_init(&net, model);
    if (status == FED_OK) status = fed_step_check(step);
    if (status == FED_OK && (fed_net_size(&net) != fed_sum_size(sum) || !fed_sum_is_open(sum) ||
                             !terms_are_valid(terms)))
        status = FED_ERR_ARGUMENT;
    if (status == FED_OK) status = check_clients(model, clients, num_clients, fault);
    if (status == FED_OK) status = team_set_params(team, &net, server_params);
    if (status == FED_OK) status = team_set_slots(team, &net, fed_step_slots(step), terms);
    if (status == FED_OK && !has_rate_factors(terms, clients, num_clients))
        status = FED_ERR_ARGUMENT;
    if (status != FED_OK || num_clients == 0) return status;

    cohort co = {.team = team,
                 .net = &net,
                 .step = step,
                 .clients = clients,
                 .num_clients = num_clients,
                 .terms = terms,
                 .origin = fed_step_is_gradient(step) ? team->zeros : team->server,
                 .cancel = cancel,
                 .sum = sum,
                 .stats = stats};
    co.num_blocks = (num_clients + FED_BLOCK_CLIENTS - 1) / FED_BLOCK_CLIENTS;
    co.status = open_window(&co);
    omp_init_lock(&co.lock);
    if (co.status == FED_OK) {
#ifdef _OPENMP
#pragma omp parallel num_threads(team->num_threads)
#endif
        work(&co);
    }
    omp_destroy_lock(&co.lock);
    close_window(&co);
    return co.status;
}

/* ---- Evaluation ------------------------------------------------------------------------------ */

/* A piece of one client that one thread scores; counts `repeats` times. */
typedef struct score_item {
    size_t client, first, num;
    int order; /* 1: the examples the plan draws, whatever first and num say */
    int64_t repeats;
    fed_score score;
} score_item;

/* 1 if the stream ends within what is shuffled as one: an epoch, or under repeat-shuffle all of
 * them. */
static int is_partial_shuffle(const fed_client *client) {
    const fed_plan *plan = &client->plan;
    if (plan->shuffle_buffer <= 1 || client->num_examples == 0) return 0;
    const size_t visits = fed_plan_visits(plan, client->num_examples);
    if (plan->pipeline != FED_REPEAT_SHUFFLE) return visits % client->num_examples != 0;
    fed_plan whole = *plan;
    whole.max_examples = SIZE_MAX;
    return visits < fed_plan_visits(&whole, client->num_examples);
}

/* Appends the pieces of examples 0..num-1 of a client; items NULL only counts them. */
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

/* Without an update, order and epochs do not matter: each example is scored once and counted as
 * often as it is visited. Only a shuffled stream that max_examples cuts short must really be
 * drawn. */
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

static int score_items(fed_team *team, const fed_net *net, const fed_client *clients,
                       score_item *items, size_t num_items, const atomic_int *cancel) {
    atomic_size_t next = 0;
    atomic_int failure = FED_OK;
#ifdef _OPENMP
#pragma omp parallel num_threads(team->num_threads)
#endif
    {
        const fp_mode before = denormals_off();
        fed_workspace *workspace = &team->workspaces[omp_get_thread_num()];
        for (size_t i; (i = atomic_fetch_add(&next, 1)) < num_items && failure == FED_OK;) {
            const int status =
                fed_score_client(net, team->server, &clients[items[i].client], items[i].order,
                                 items[i].first, items[i].num, cancel, workspace, &items[i].score);
            if (status != FED_OK) failure = status;
        }
        fp_restore(before);
    }
    return failure;
}

int fed_evaluate(fed_team *team, const fed_model *model, const float *params,
                 const fed_client *clients, size_t num_clients, const atomic_int *cancel,
                 fed_client_stats *stats, fed_fault *fault) {
    fed_net net;
    int status = fed_net_init(&net, model);
    if (status == FED_OK) status = check_clients(model, clients, num_clients, fault);
    if (status == FED_OK) status = team_set_params(team, &net, params);
    if (status != FED_OK) return status;

    size_t num_items = 0;
    for (size_t c = 0; c < num_clients; c++) num_items += split_client(clients, c, NULL);
    score_item *items = calloc(num_items > 0 ? num_items : 1, sizeof *items);
    if (items == NULL) return FED_ERR_NO_MEMORY;
    size_t filled = 0;
    for (size_t c = 0; c < num_clients; c++) filled += split_client(clients, c, items + filled);
    status = score_items(team, &net, clients, items, num_items, cancel);
    if (status == FED_OK) gather_stats(clients, num_clients, items, num_items, stats);
    free(items);
    return status;
}
