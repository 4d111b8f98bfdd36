"""The ways of choosing the clients of a round, by the names of `--sampling`."""

from __future__ import annotations

from fedcli.settings.options import Entry, table

SAMPLERS = table(
    Entry(
        "fixed",
        "The same clients in every round: all, the first N, or those listed.",
        "TFF tutorial, Federated Learning for Image Classification",
    ),
    Entry(
        "uniform",
        "N clients without replacement, every set of N equally likely.",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    Entry(
        "tff",
        "N clients without replacement, drawn by TFF's and FedJAX's seeded generator: the same "
        "cohorts for the same seed.",
        "TFF simulation/sampling_utils.py; FedJAX core/client_samplers.py",
    ),
    Entry(
        "with-replacement",
        "N clients, each drawn from all: a client may take part twice in a round.",
        "this program; TFF simulation/sampling_utils.py with replace=True",
    ),
    Entry(
        "poisson",
        "Each client with probability N / all by itself, so that the number varies.",
        "McMahan et al. 2018, arXiv 1710.06963",
    ),
    Entry(
        "cyclic",
        "All clients in turn, N a round, in a new order each time.",
        "FedJAX core/client_samplers.py, UniformShuffledClientSampler",
    ),
    Entry(
        "by-size",
        "N clients with replacement, in proportion to their numbers of examples; clients then "
        "count alike.",
        "Li et al. 2020, arXiv 1907.02189, scheme I",
    ),
    family="sampler",
)
