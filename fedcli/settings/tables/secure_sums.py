"""The table of secure sums. It has one row, which `--secure-sum` turns on."""

from __future__ import annotations

from fedcli.settings.options import LEAST_POSITIVE, Entry, Option, table

AUTO_BOUND = "auto"
NEAREST, STOCHASTIC = "nearest", "stochastic"

SECURE_SUMS = table(
    Entry(
        "pairwise-masks",
        "Simulates the arithmetic of a secure aggregation: updates are quantised, each pair of "
        "clients adds masks that cancel in the sum, and the masks of clients that drop out are "
        "recovered from the others. There is no cryptography: it shows the cost of the sum, and "
        "protects no client.",
        "Bonawitz et al. 2017 (CCS); TFF aggregators/primitives.py",
        (
            Option("bits", 24, "Bits of a quantised coordinate.", 2, 32),
            Option(
                "bound",
                AUTO_BOUND,
                "Coordinates of updates are clipped to -bound and bound; auto: to the norm that "
                "the aggregator clips to, else the smallest power of two that clips nothing, "
                "on which the clients would have to agree first.",
                LEAST_POSITIVE,
                1e30,
                choices=(AUTO_BOUND,),
                or_number=True,
            ),
            Option(
                "threshold",
                0.5,
                "Share of the selected clients that must report; at least 2 clients must. With "
                "fewer reports the masks cannot be recovered and the round is skipped.",
                0.0,
                1.0,
            ),
            Option(
                "rounding",
                NEAREST,
                "nearest: to the nearest level, ties to even; stochastic: to one of the two "
                "adjacent levels at random, which is unbiased.",
                choices=(NEAREST, STOCHASTIC),
            ),
        ),
        example="fedcli train --secure-sum --secure-sum-option bits=16",
        requirement="2 clients a round, and parts that need only sums",
        cost=(
            "P random words for each pair of clients; 112 bytes up and 144 down for each "
            "other client"
        ),
        code="fedcli.learning.masked_sums:sum_options",
    ),
)
