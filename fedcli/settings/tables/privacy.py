"""The table of mechanisms of differential privacy, each with the samplers it can account for."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.dataclass import dataclass
from fedcli.settings.options import LEAST_POSITIVE, MAX_FLOAT, Entry, Option, Value, table


@dataclass(frozen=True)
class PrivacyEntry(Entry):
    """A row of `PRIVACY`.

    Its `code` makes the aggregator. It is called with the run's seed, a `PrivacyPlan`, and the
    options that are not part of the plan.

    Attributes:
        samplings: The values of --sampling for which an accountant is known.
    """

    samplings: tuple[str, ...] = ()


# With less, epsilon is in the thousands, and computing it takes gigabytes.
LEAST_NOISE = 0.05


def _check_noise(options: Mapping[str, Value]) -> str | None:
    names = [name for name in ("noise_multiplier", "target_epsilon") if name in options]
    noise = options.get("noise_multiplier", 0.0)
    if isinstance(noise, int | float) and 0.0 < noise < LEAST_NOISE:
        return (
            f"noise_multiplier {noise:g} is too small to compute epsilon; choose 0 (no noise, not "
            f"private) or at least {LEAST_NOISE:g}"
        )
    if len(names) == 1:
        return None
    wrong = "both are given" if names else "neither is given"
    return (
        "noise_multiplier says how much noise is added, target_epsilon how much privacy may be "
        f"spent; {wrong}: give one of them"
    )


_NOISE = (
    Option(
        "noise_multiplier",
        None,
        "z: standard deviation of the noise, divided by the clipping norm; at least 0.05, or 0: no "
        "noise, not private.",
        0.0,
        1e6,
    ),
    Option(
        "target_epsilon",
        None,
        "Epsilon that all rounds may spend; the noise multiplier is computed.",
        1e-3,
        1e6,
    ),
)
_DELTA = Option(
    "delta",
    1e-5,
    "Probability with which the guarantee may fail; below 1 / number of clients.",
    1e-10,  # a smaller delta is lost in the rounding errors of the Fourier transform
    0.5,
)
_ACCOUNTANT = Option(
    "accountant",
    "pld",
    "pld: privacy loss distribution, the tightest; rdp: Renyi divergences.",
    choices=("pld", "rdp"),
)


def _clip(doc: str) -> Option:
    return Option("clip", 0.1, doc, LEAST_POSITIVE, MAX_FLOAT)


_OF_INDEPENDENT_NOISE = ("poisson", "fixed", "uniform", "tff", "cyclic")

PRIVACY = table(
    PrivacyEntry(
        "gaussian",
        "Clips each update to a fixed norm, adds Gaussian noise to the sum and divides by the "
        "expected number of clients.",
        "McMahan et al. 2018, arXiv 1710.06963",
        (_clip("L2 norm of an update over all tensors."), *_NOISE, _DELTA, _ACCOUNTANT),
        _check_noise,
        samplings=_OF_INDEPENDENT_NOISE,
        example=(
            "fedcli train --dp gaussian --dp-option noise_multiplier=1 --dp-option clip=0.5 "
            "--dp-option delta=1e-3 --sampling poisson --clients 50 --rounds 50"
        ),
        requirement="--sampling poisson, fixed, uniform, tff or cyclic; --client-weighting uniform",
        cost="P normal numbers a round; epsilon is computed while clients train",
        code="fedcli.learning.aggregators.private:gaussian",
    ),
    PrivacyEntry(
        "gaussian-adaptive",
        "As gaussian, but the clipping norm follows a quantile of the updates' norms, which is "
        "estimated with noise from part of the privacy budget.",
        "Andrew et al. 2021, arXiv 1905.03871",
        (
            _clip("L2 norm of an update in the first round."),
            *_NOISE,
            _DELTA,
            _ACCOUNTANT,
            Option(
                "target_quantile",
                0.5,
                "Share of the updates that are to stay unclipped.",
                0.0,
                1.0,
            ),
            Option("clip_lr", 0.2, "Step size of the logarithm of the norm.", 0.0, 10.0),
            Option(
                "count_stddev",
                None,
                "Standard deviation of the noise on the number of unclipped updates; not set: "
                "0.05 of the expected number of clients.",
                LEAST_POSITIVE,
                1e6,
            ),
        ),
        _check_noise,
        samplings=_OF_INDEPENDENT_NOISE,
        example=(
            "fedcli train --dp gaussian-adaptive --dp-option target_epsilon=8 --dp-option "
            "delta=1e-3 --sampling poisson --clients 50 --rounds 50"
        ),
        requirement="as gaussian, and more than 10 * noise_multiplier clients a round",
        cost="P normal numbers a round; epsilon is computed while clients train",
        code="fedcli.learning.aggregators.private:gaussian_adaptive",
    ),
    PrivacyEntry(
        "tree",
        "Noise of several rounds partly cancels along a tree (DP-FTRL). Cohorts need not be "
        "random, because each client takes part once in each pass over all.",
        "Kairouz et al. 2021, arXiv 2103.00039; Honaker 2015",
        (
            _clip("L2 norm of an update over all tensors."),
            *_NOISE,
            _DELTA,
            _ACCOUNTANT,
            Option(
                "restart_every",
                0,
                "Rounds of a tree: a divisor or a multiple of the rounds of a pass; 0: one pass.",
                0,
                2**20,
            ),
            Option(
                "efficient",
                True,
                "Estimate each sum from all values of the tree below it (Honaker).",
            ),
        ),
        _check_noise,
        samplings=("cyclic",),
        example=(
            "fedcli train --dp tree --dp-option noise_multiplier=4 --dp-option delta=1e-3 "
            "--sampling cyclic --clients 49 --rounds 33"
        ),
        requirement="--sampling cyclic, with passes of whole rounds",
        cost=("2 P normal numbers a round on average; P floats kept for each level of the tree"),
        code="fedcli.learning.aggregators.private:tree",
    ),
)
