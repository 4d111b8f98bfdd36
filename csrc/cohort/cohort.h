/* SPDX-License-Identifier: Apache-2.0
 * A cohort: threads and their memory, which thread works on which client, the ordered sum. */
#ifndef FED_COHORT_H
#define FED_COHORT_H

#include "client/client.h"

/* Clients in a block, within which deltas are added left to right. */
enum { FED_BLOCK_CLIENTS = 8 };

/* ---- team.c ---- */

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

/* Packs the parameters every client starts from. */
int fed_team_set_params(fed_team *team, const fed_net *net, const float *params);
/* Packs the parameters that one client starts from into a workspace of the team. */
int fed_team_pack_start(const fed_team *team, const fed_net *net, const float *start,
                        fed_workspace *workspace);
/* Packs the slots that every local step starts from, if there are such. */
int fed_team_set_slots(fed_team *team, const fed_net *net, size_t num_slots,
                       const fed_terms *terms);
/* Clients come from files: what the core reads of them must never leave its array. */
int fed_check_clients(const fed_model *model, const fed_client *clients, size_t num_clients,
                      fed_fault *fault);

/* ---- sum.c ---- */

/* Appends a finished block, values [net.size], and leaves zeros there. closed says that the block
 * held fewer than FED_BLOCK_CLIENTS, so none may follow. */
int fed_sum_push(fed_sum *sum, double *values, double weight, int closed);
/* 1 if blocks of this network's deltas may be appended. */
int fed_sum_takes(const fed_sum *sum, const fed_net *net);

#endif
