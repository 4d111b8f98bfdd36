"""The table of engines, which compute the clients of a round."""

from __future__ import annotations

from fedcli.settings.options import Entry, Option, table
from fedcli.settings.vocabulary import MAX_THREADS

THREADS, RAY = "threads", "ray"

ENGINES = table(
    Entry(THREADS, "Threads of this process.", "fedcli", example="fedcli train --threads 4"),
    Entry(
        RAY,
        "Workers of a Ray cluster, with the same results as threads; for large models and cohorts.",
        "fedcli; Moritz et al. 2018, arXiv 1712.05889",
        (
            Option(
                "address",
                "local",
                "local: a cluster on this machine only; auto: the cluster to which this machine "
                "belongs; or HOST:PORT.",
            ),
            Option("workers", 0, "Number of workers; 0: one on each node.", 0, 4096),
            Option(
                "threads",
                0,
                "Threads of a worker; 0: as many as the smallest node has processors. With "
                "address=local the workers share the processors.",
                0,
                MAX_THREADS,
            ),
            Option("start_seconds", 60.0, "How long to wait for workers.", 1.0, 86400.0),
            Option(
                "data",
                "read",
                "read: each worker reads the data from the path that this machine uses; ship: the "
                "examples are sent to the workers.",
                choices=("read", "ship"),
            ),
        ),
        example="fedcli train --engine ray --engine-option workers=2",
    ),
)
