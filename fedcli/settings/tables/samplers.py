"""The ways of choosing the clients of a round, by the names of `--sampling`."""

from __future__ import annotations

from fedcli.settings.options import Entry, table

SAMPLERS = table(
    Entry(
        "fixed",
        "The same clients in every round: all, the first N, or the listed ones.",
        "TFF tutorial, Federated Learning for Image Classification",
    ),
    Entry(
        "uniform",
        "N clients without replacement; every set of N is equally likely.",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    Entry(
        "tff",
        "N clients without replacement, drawn with the random generator of TFF and FedJAX. The "
        "same seed gives the same cohorts as in these programs.",
        "TFF simulation/sampling_utils.py; FedJAX core/client_samplers.py",
    ),
    Entry(
        "with-replacement",
        "N clients with replacement: a client may take part twice in a round.",
        "fedcli; TFF simulation/sampling_utils.py with replace=True",
    ),
    Entry(
        "poisson",
        "Each client takes part with probability N / all, independently of the others. So their "
        "number varies.",
        "McMahan et al. 2018, arXiv 1710.06963",
    ),
    Entry(
        "cyclic",
        "All clients in turn, N in each round, in a new order in each pass.",
        "FedJAX core/client_samplers.py, UniformShuffledClientSampler",
    ),
    Entry(
        "by-size",
        "N clients with replacement, in proportion to their numbers of examples. The drawn "
        "clients then have the same weight.",
        "Li et al. 2020, arXiv 1907.02189, scheme I",
    ),
    family="sampler",
)
