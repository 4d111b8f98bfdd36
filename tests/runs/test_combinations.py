"""Any two of algorithm, aggregator, sampler, optimizer and engine train, or one line refuses them.

The combinations also have each of the compressors, or none, in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.model import Model
from fedcli.runs import starting
from fedcli.runs.files import checkpoint, folder
from fedcli.settings import tables
from fedcli.settings.declaration import option_name
from fedcli.settings.vocabulary import SAMPLINGS
from tests.kit.toy_engine import ToyEngine

pytestmark = pytest.mark.numeric

ALGORITHMS, AGGREGATORS = list(tables.ALGORITHMS), list(tables.AGGREGATORS)
OPTIMIZERS = list(tables.OPTIMIZERS)
COMPRESSORS = [None, *tables.COMPRESSORS]
ENGINES = (ThreadEngine, ToyEngine)
TINY: dict[str, Any] = {
    "data_options": {"clients": 6},
    "rounds": 2,
    "epochs": 1,
    "max_examples": 15,
    "eval_clients": "2",
}
CLIENTS = {"by-size": "0.5", "poisson": "3"}


def combinations(algorithm: str) -> list[tuple[dict[str, Any], type[Engine]]]:
    """A config of the algorithm with each aggregator. Over all algorithms, all pairs occur."""
    place = ALGORITHMS.index(algorithm)
    made: list[tuple[dict[str, Any], type[Engine]]] = []
    for number in range(len(AGGREGATORS)):
        sampling = SAMPLINGS[number % len(SAMPLINGS)]
        values = {
            "algorithm": algorithm,
            "sampling": sampling,
            "clients": CLIENTS.get(sampling, "3"),
            "aggregator": AGGREGATORS[(number + place) % len(AGGREGATORS)],
            "client_optimizer": OPTIMIZERS[(2 * number + place) % len(OPTIMIZERS)],
            "server_optimizer": OPTIMIZERS[(3 * number + place) % len(OPTIMIZERS)],
        }
        compress = COMPRESSORS[(5 * number + place) % len(COMPRESSORS)]
        if compress is not None:
            values["compress"] = compress
        made.append((values, ENGINES[(number + place // 2) % 2]))
    return made


def try_out(path: Path, values: dict[str, Any]) -> str | None:
    """Trains and returns None; or returns the error, if the config is refused before the run."""
    try:
        training = starting.start(settings.from_options({**TINY, **values}), path)
    except ConfigError as err:
        assert not path.exists()
        return str(err)
    with training:
        training.complete()
    return None


def assert_is_finite(path: Path) -> None:
    for line in folder.read_metrics(path):
        online = line["client_work"]["train"]
        assert online["num_non_finite_clients"] == 0
        assert online["loss"] is None or np.isfinite(online["loss"])
        assert (online["loss"] is None) == (online["num_examples"] == 0)
    weights = checkpoint.load(folder.latest_checkpoint(path)).components["global_model_weights"]
    assert all(np.isfinite(np.asarray(tensor)).all() for tensor in weights.values())
    for split in (folder.read_evaluation(path) or {}).values():
        assert np.isfinite(split["client_work"]["eval"]["current_round_metrics"]["loss"])


def without_what_is_refused(values: dict[str, Any], refusal: str) -> dict[str, Any]:
    """Leaves out the option whose name or value is in the error message."""
    assert "\n" not in refusal
    for option in ("server_optimizer", "client_optimizer", "aggregator", "compress"):
        words = option.replace("_", " "), option_name(option)
        if option in values and any(word in refusal for word in words):
            return {name: value for name, value in values.items() if name != option}
    raise AssertionError(f"{values} is refused without the option at fault: {refusal}")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_combination_trains_or_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """A refused combination trains once the options that its message names are left out."""
    for number, (given, engine) in enumerate(combinations(algorithm)):

        def make(model: Model, num_threads: int | None = None, engine: Any = engine) -> Engine:
            made: Engine = engine(1)
            return made

        monkeypatch.setattr(choosing, "make_engine", make)
        path, values = tmp_path / str(number), given
        while refusal := try_out(path, values):
            values = without_what_is_refused(values, refusal)
        assert values["sampling"] == given["sampling"]
        assert_is_finite(path)


def test_each_value_meets_each_of_another_kind() -> None:
    """All pairs of values occur: of algorithm, sampler, aggregator, engine and client optimizer."""
    met = set()
    for algorithm in ALGORITHMS:
        for values, engine in combinations(algorithm):
            kinds = {**values, "engine": engine}
            met |= {(one, kinds[one], other, kinds[other]) for one in kinds for other in kinds}
    kinds = {
        "algorithm": ALGORITHMS,
        "sampling": SAMPLINGS,
        "aggregator": AGGREGATORS,
        "client_optimizer": OPTIMIZERS,
        "engine": ENGINES,
    }
    missing = [
        (a, b)
        for one, values in kinds.items()
        for other, others in kinds.items()
        if one < other
        for a in values
        for b in others
        if (one, a, other, b) not in met
    ]
    assert missing == []
