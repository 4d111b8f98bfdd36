"""Any mixture of algorithm, aggregator, attack, privacy, compression, secure sum and sampler.

Each mixture is refused in one line before there is a run, or it trains to finite numbers and has
the same bytes for any number of threads and after a resume.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.runs import starting
from fedcli.runs.files import checkpoint, folder
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import SAMPLINGS

pytestmark = pytest.mark.numeric

NUM_EXAMPLES = int(os.environ.get("FEDCLI_TEST_MIXTURES", "20"))
ROUNDS = 3
TINY: dict[str, Any] = {
    "data_options": {"clients": 16},
    "rounds": ROUNDS,
    "epochs": 1,
    "max_examples": 12,
    "eval_clients": "2",
    "client_lr": 0.05,
}
SIZES = {"by-size": "0.75", "poisson": "10", "cyclic": "8"}  # 8 divides the population


def options_of(table: Any, rarely: int = 1) -> st.SearchStrategy[str | None]:
    """Draws the name of a row of a table, or None. None is `rarely` times as probable as a row."""
    return st.sampled_from([*[None] * rarely, *table])


MIXTURES = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(list(tables.ALGORITHMS)),
        "sampling": st.sampled_from(list(SAMPLINGS)),
        "aggregator": st.sampled_from([*["mean"] * 6, *tables.AGGREGATORS]),
        "pre_aggregator": options_of(tables.PRE_AGGREGATORS, 6),
        "attack": options_of(tables.ATTACKS, 8),
        "compress": options_of(tables.COMPRESSORS, 8),
        "secure_sum": st.sampled_from([False, False, True]),
        "dp": options_of(tables.PRIVACY, 8),
        "client_dropout": st.sampled_from([None, None, 0.3]),
        "server_optimizer": st.sampled_from([None, None, "adam"]),
        "seed": st.integers(0, 3),
    }
)

# Mixtures of parts that are compatible with --secure-sum or --dp. Of mixtures of arbitrary parts
# with one of these two options, nearly all are refused.
SUMMED = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(["fedavg", "fedprox", "fedsgd", "fedadam"]),
        "sampling": st.sampled_from(list(SAMPLINGS)),
        "aggregator": st.sampled_from(
            [
                *["mean"] * 4,
                *("norm-bound", "tff-robust", "geometric-median", "centered-clipping"),
                *("sign-majority", "median"),
            ]
        ),
        "pre_aggregator": st.sampled_from([None, None, None, "bucketing"]),
        "attack": options_of(tables.ATTACKS, 8),
        "compress": st.sampled_from(
            [None, None, None, "fixed-step", "random-k", "powersgd", "sketch", "uniform"]
        ),
        "secure_sum": st.sampled_from([True, True, False]),
        "dp": options_of(tables.PRIVACY, 3),
        "client_dropout": st.sampled_from([None, None, 0.3]),
        "server_optimizer": st.sampled_from([None, None, "adam"]),
        "seed": st.integers(0, 3),
    }
)


def config_of(drawn: dict[str, Any]) -> RunConfig:
    """Returns the config of a mixture. Raises ConfigError if it is refused."""
    given = {name: value for name, value in drawn.items() if value not in (None, False)}
    given["clients"] = SIZES.get(drawn["sampling"], "10")
    if "attack" in given:
        given["attackers"] = "3"
    if given.get("attack") in ("backdoor", "edge-case") and drawn["seed"] % 2:
        given["attack_options"] = {"radius": 0.1}  # each epoch's parameters are projected, too
    if "dp" in given:
        given["dp_options"] = {"noise_multiplier": 0.8, "delta": 1e-3}
    if given.get("secure_sum"):
        if given["aggregator"] == "geometric-median" and "pre_aggregator" not in given:
            # Of the starts of the geometric median, only the mean needs no individual updates.
            given["aggregator_options"] = {"start": "mean"}
        if "dp" in given:
            given["secure_sum_options"] = {"threshold": 0.0}  # so that clients may drop out
    return settings.from_options({**TINY, **given})


def outcome(path: Path) -> dict[str, bytes]:
    """Returns what a run computed: its metrics, closing evaluation, and weights."""
    parts = checkpoint.load(folder.latest_checkpoint(path)).components["global_model_weights"]
    weights = b"".join(np.asarray(parts[name]).tobytes() for name in sorted(parts))
    names = (folder.METRICS, folder.EVALUATION)
    return {**{name: (path / name).read_bytes() for name in names}, "weights": weights}


def train(config: RunConfig, path: Path, *, stops_after: int | None = None) -> None:
    with starting.start(config, path) as training:
        for result in training.run():
            if result.round_num == stops_after:
                return
        training.finish()


def assert_is_finite(path: Path) -> None:
    parts = checkpoint.load(folder.latest_checkpoint(path)).components["global_model_weights"]
    assert all(np.isfinite(np.asarray(each)).all() for each in parts.values())
    assert len(folder.read_metrics(path)) == ROUNDS


def refused(config_or_mixture: Any, path: Path) -> ConfigError | None:
    """Returns the error that refuses a mixture, in its check or when the run starts; else None."""
    try:
        train(config_of(config_or_mixture), path)
    except ConfigError as err:
        return err
    return None


def mixture(**given: Any) -> dict[str, Any]:
    """Returns a mixture of plain parts, some of which are replaced by the given ones."""
    none = dict.fromkeys(
        ("pre_aggregator", "attack", "compress", "dp", "client_dropout", "server_optimizer")
    )
    plain = {"algorithm": "fedavg", "sampling": "uniform", "aggregator": "mean"}
    return {**plain, **none, "secure_sum": False, "seed": 0, **given}


@hypothesis_settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(MIXTURES | SUMMED)
@example(mixture(algorithm="scaffold", compress="top-k", attack="alie", aggregator="median"))
@example(mixture(algorithm="feddyn", attack="sign-flip", aggregator="geometric-median"))
@example(mixture(algorithm="fednova", aggregator="krum", attack="ipm", compress="uniform"))
@example(mixture(algorithm="mime", aggregator="foolsgold", compress="eden", client_dropout=0.3))
@example(mixture(algorithm="scaffold", secure_sum=True, sampling="poisson"))
@example(mixture(algorithm="scaffold", attack="backdoor", aggregator="krum", seed=1))
@example(mixture(dp="gaussian", sampling="poisson", compress="sign", attack="sign-flip"))
@example(mixture(dp="gaussian-adaptive", sampling="tff", algorithm="fedsgd", client_dropout=0.3))
@example(mixture(compress="powersgd", attack="nan", aggregator="fltrust", sampling="cyclic"))
@example(mixture(algorithm="fedprox", aggregator="centered-clipping", pre_aggregator="nnm"))
@example(mixture(secure_sum=True, aggregator="geometric-median", attack="ipm", client_dropout=0.3))
@example(mixture(secure_sum=True, aggregator="centered-clipping", sampling="poisson"))
@example(mixture(secure_sum=True, pre_aggregator="bucketing", aggregator="krum", attack="nan"))
@example(mixture(secure_sum=True, compress="powersgd", client_dropout=0.3, sampling="by-size"))
@example(mixture(secure_sum=True, compress="random-k", dp="gaussian", sampling="poisson"))
@example(mixture(secure_sum=True, compress="fixed-step", aggregator="tff-robust"))
@example(mixture(secure_sum=True, dp="tree", sampling="cyclic", client_dropout=0.3))
def test_any_mixture_is_exact_or_is_refused_in_one_line(drawn: dict[str, Any]) -> None:
    with TemporaryDirectory() as scratch:
        base = Path(scratch)
        whole = base / "whole"
        refusal = refused({**drawn}, whole)
        if refusal is not None:
            assert "\n" not in str(refusal)
            assert not whole.exists()
            return
        assert_is_finite(whole)
        expected = outcome(whole)
        config = config_of(drawn)
        for threads in (2, 7):
            train(replace(config, threads=threads), base / f"of-{threads}")
            assert outcome(base / f"of-{threads}") == expected
        train(config, base / "resumed", stops_after=2)
        with starting.resume(base / "resumed") as training:
            training.complete()
        assert outcome(base / "resumed") == expected


def test_most_mixtures_are_not_refused() -> None:
    """Otherwise the test above could pass by refusals alone."""
    kept = 0
    for number in range(60):
        drawn = mixture(
            algorithm=list(tables.ALGORITHMS)[number % len(tables.ALGORITHMS)],
            sampling=SAMPLINGS[number % len(SAMPLINGS)],
            compress=[None, *tables.COMPRESSORS][number % (1 + len(tables.COMPRESSORS))],
        )
        try:
            config_of(drawn)
        except ConfigError:
            continue
        kept += 1
    assert kept >= 30
