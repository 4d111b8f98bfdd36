"""The table of learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.options import LEAST_POSITIVE, Entry, Option, Value, choose, resolve, table
from fedcli.settings.vocabulary import CONSTANT

# The value of decay_rounds that stands for the number of rounds of the run.
ROUNDS_OF_RUN = 0

_GRF = "google-research/federated, utils/optimizers/optimizer_utils.py"
_MAX_ROUNDS = 2**31 - 1


def _warmup_rounds(default: int) -> Option:
    doc = "Rounds of warm-up, in which the rate rises to its full value; 1 or 0: none."
    return Option("warmup_rounds", default, doc, 0, _MAX_ROUNDS)


def _decay_rounds(doc: str, minimum: int = 1, default: int = 100) -> Option:
    return Option("decay_rounds", default, doc, minimum, _MAX_ROUNDS)


def _check_step(options: Mapping[str, Value]) -> str | None:
    boundaries, factors = options["boundaries"], options["factors"]
    assert isinstance(boundaries, list)
    assert isinstance(factors, list)
    if any(each != int(each) for each in boundaries):
        return f"boundaries = {boundaries} are not whole numbers of rounds"
    if any(left >= right for left, right in pairwise(boundaries)):
        return f"boundaries = {boundaries} do not ascend; give each once, the first round first"
    if len(boundaries) != len(factors):
        return (
            f"boundaries = {boundaries} but factors = {factors}: give one factor for each "
            "boundary, by which the learning rate is multiplied from this round on"
        )
    return None


# A schedule gives the share of the learning rate in round r = 0, 1, ... after the warm-up. The
# `code` of a row is a function (options, r) -> share.
SCHEDULES = table(
    Entry(
        CONSTANT,
        "The same learning rate in every round.",
        f"{_GRF}, constant",
        code="fedcli.learning.optimizers.schedules:constant",
    ),
    Entry(
        "step",
        "The learning rate times a factor that changes at given rounds.",
        "Keras PiecewiseConstantDecay; He et al. 2016, arXiv 1512.03385",
        (
            Option(
                "boundaries",
                [100.0],
                "Rounds, counted from 0, at which the next factor begins.",
                1,
                _MAX_ROUNDS,
            ),
            Option(
                "factors",
                [0.1],
                "Share of the learning rate from each boundary on; before the first boundary 1.",
                0.0,
                1.0,
            ),
            _warmup_rounds(0),
        ),
        _check_step,
        code="fedcli.learning.optimizers.schedules:step",
    ),
    Entry(
        "exponential",
        "In round r the learning rate times decay_factor^(r / decay_rounds).",
        f"{_GRF}, exp_decay",
        (
            _decay_rounds("Rounds in which the rate falls once by decay_factor."),
            Option("decay_factor", 0.1, "Factor of one decay.", LEAST_POSITIVE, 1.0),
            Option("staircase", False, "Decay once after each decay_rounds, not continuously."),
            _warmup_rounds(0),
        ),
        code="fedcli.learning.optimizers.schedules:exponential",
    ),
    Entry(
        "cosine",
        "Falls along half a cosine wave from the learning rate to a final share of it, and "
        "stays there.",
        "Loshchilov and Hutter 2017 (SGDR), arXiv 1608.03983, without restarts",
        (
            _decay_rounds(
                "Rounds of the decay; 0: all rounds of the run after the warm-up. If the run is "
                "resumed with other --rounds, the decay ends with the new last round.",
                ROUNDS_OF_RUN,
                ROUNDS_OF_RUN,
            ),
            Option("final_factor", 0.0, "Share of the learning rate at the end.", 0.0, 1.0),
            _warmup_rounds(0),
        ),
        code="fedcli.learning.optimizers.schedules:cosine",
    ),
    Entry(
        "linear-warmup",
        "In round r the learning rate times (r + 1) / warmup_rounds, but at most the learning "
        "rate.",
        "Goyal et al. 2017, arXiv 1706.02677; " + f"{_GRF}, warmup",
        (_warmup_rounds(10),),
        code="fedcli.learning.optimizers.schedules:constant",
    ),
    Entry(
        "inverse-sqrt",
        "In round r the learning rate divided by the root of 1 + r / decay_rounds.",
        f"{_GRF}, inv_sqrt_decay",
        (
            _decay_rounds("Rounds after which the rate is 0.71 of its full value."),
            _warmup_rounds(0),
        ),
        code="fedcli.learning.optimizers.schedules:inverse_sqrt",
    ),
)


def resolve_schedule(
    name: str, options: Mapping[str, Value], num_rounds: int | None
) -> dict[str, Any]:
    """Returns all options of a schedule; ROUNDS_OF_RUN is replaced by the rounds after the warm-up.

    Args:
        name: A key of `SCHEDULES`.
        options: Its options; those not given take their defaults.
        num_rounds: Rounds of the run; None if they are not known.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, or the warm-up takes
            all rounds.
    """
    resolved: dict[str, Any] = resolve(choose(SCHEDULES, name, "schedule"), options)
    if resolved.get("decay_rounds") == ROUNDS_OF_RUN:
        resolved["decay_rounds"] = _rounds_left(name, resolved, num_rounds)
    return resolved


def _rounds_left(name: str, options: Mapping[str, Any], num_rounds: int | None) -> int:
    """Returns the number of the run's rounds after the warm-up."""
    num_warmup_rounds: int = options["warmup_rounds"]
    if num_rounds is None:
        raise ConfigError(f"{name}: the number of rounds is not known here; give decay_rounds")
    if num_rounds <= num_warmup_rounds:
        raise ConfigError(
            f"{name}: warmup_rounds = {num_warmup_rounds} leaves none of the run's {num_rounds} "
            "rounds for the decay; choose fewer, or give decay_rounds"
        )
    return num_rounds - num_warmup_rounds
