/* SPDX-License-Identifier: Apache-2.0
 * A cohort: threads and their memory, scheduling of clients, the ordered sum. */
#ifndef FED_COHORT_H
#define FED_COHORT_H

#include "client/client.h"

/* Clients in a block; their deltas are added left to right. */
enum { FED_BLOCK_CLIENTS = 8 };

/* ---- team.c ---- */

struct fed_team {
    int num_threads;
    fed_workspace *workspaces; /* [num_threads] */
    float **free_params;       /* packed parameter vectors that are not in use, newest last */
    size_t num_free;
    size_t num_values;   /* floats in each packed vector */
    float *server;       /* packed server parameters of the current call */
    float *zeros;        /* [num_values]; NULL until they are needed */
    float *frozen_slots; /* packed frozen slots of the call, one after another; NULL: none */
    double **window;     /* [num_window]: sums of open blocks; between calls NULL or spare memory */
    size_t num_window;
};

/* Packs the parameters from which every client starts. */
int fed_team_set_params(fed_team *team, const fed_net *net, const float *params);
/* Makes the vector of zeros from which clients start for FED_STEP_GRADIENT. */
int fed_team_reserve_zeros(fed_team *team);
/* Packs one client's start parameters into a thread's workspace. */
int fed_team_pack_start(const fed_team *team, const fed_net *net, const float *start,
                        fed_workspace *workspace);
/* Packs the frozen slots, if there are any. */
int fed_team_set_slots(fed_team *team, const fed_net *net, size_t num_slots,
                       const fed_terms *terms);
/* Checks sizes, options and labels of clients. They come from files, so an invalid value must never
 * make the core read outside an array. */
int fed_check_clients(const fed_model *model, const fed_client *clients, size_t num_clients,
                      fed_fault *fault);

/* ---- sum.c ---- */

/* Appends a finished block, *values [net.size], and keeps its memory; *values becomes other memory
 * of that size, with undefined values, or NULL. closed: 1 if the block has fewer than
 * FED_BLOCK_CLIENTS clients, so that no block may follow. */
void fed_sum_push(fed_sum *sum, double **values /* in-out */, double weight, int closed);
/* Returns memory for a block that the sum does not need now, with undefined values, or NULL. */
double *fed_sum_take_unused(fed_sum *sum);
/* 1 if blocks of this net's deltas may be appended. */
int fed_sum_takes(const fed_sum *sum, const fed_net *net);

#endif
