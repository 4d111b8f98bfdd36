"""Compares a round of each algorithm with a round of federated averaging (mlp-2nn, real writers).

    python tests/bench/bench_algorithms.py TRAIN.h5 [--clients 10] [--epochs 5] [--batch-size 20]

Each round is one call of a learning process, from server state to server state, on a fixed cohort,
as with `fedcli train --clients A,B,...`. An algorithm and federated averaging take turns, round by
round, with the same clients and the same client optimizer. Medians are printed. Nothing is
asserted, because machines are shared and noisy.

`state` is the time for the vectors that clients keep from round to round: they are read from their
file and sent before the clients' work, and updated and written after it. `x` is the time of a
round without `state`, divided by the time of a round of federated averaging. `gradients` is the
number of gradients that an algorithm computes where federated averaging computes one. Mime
computes two gradients per step, and makes one more pass over the data for the mean gradient; Mime
Lite adds only this pass. `beyond` is the time of a round without `state`, divided by the time that
federated averaging would take with `gradients` times as many gradients. For this time, only the
part of a round that is spent in the core is multiplied by `gradients`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fedcli import datasets, learning
from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.algorithms import local_only
from fedcli.learning.algorithms.own_vectors import OwnVectors
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.models.model import Model
from fedcli.models.zoo import mlp_2nn
from fedcli.settings import tables

RATE = 0.05
# The classes that read and write the state of clients, for algorithms without `OwnVectors`.
KEEPERS: dict[str, Any] = {"local-only": local_only.OwnModels}
Taken = dict[str, list[float]]


class Timer:
    """Sums the seconds that the watched methods have taken since the last call of `take`."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Times a method of a class from now on."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self._spent[name] += time.perf_counter() - started

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Returns the sums and sets them to 0."""
        spent = dict(self._spent)
        self._spent.clear()
        return spent


def process_of(
    name: str, momentum: float, model: Model, engine: ThreadEngine, num_clients: int
) -> LearningProcess:
    """Returns the algorithm with its default options, and SGD on clients."""
    entry = tables.ALGORITHMS[name]
    options: dict[str, Any] = {"momentum": momentum} if momentum else {}
    algorithm = algorithms.build(
        name,
        optimizers.build("sgd", RATE, options) if entry.has_local_steps else None,
        optimizers.build(entry.server_optimizer or "sgd", entry.server_lr, entry.server_options),
        weighting=entry.weightings[0],
        aggregator=aggregators.build("mean"),
    )
    return learning.build_process(algorithm, model, engine=engine, num_clients=num_clients)


class Rounds:
    """An algorithm's training, a round at a time."""

    def __init__(
        self, process: LearningProcess, clients: tuple[BatchedDataset, ...], timer: Timer
    ) -> None:
        self._process, self._clients, self._timer = process, clients, timer
        self._state: ServerState = process.initialize()
        self.taken: Taken = defaultdict(list)

    def go(self, *, counts: bool) -> None:
        """Runs one round; its times are kept if `counts`."""
        self._timer.take()
        started = time.perf_counter()
        self._state = self._process.next(self._state, self._clients).state
        seconds = time.perf_counter() - started
        if counts:
            spent = self._timer.take()
            state = spent.get("send", 0.0) + spent.get("receive", 0.0)
            for name, value in ("round", seconds), ("core", spent["core"]), ("state", state):
                self.taken[name].append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.taken[name])


def num_gradients(name: str, epochs: int) -> float:
    """Returns how many gradients an algorithm computes where federated averaging computes one."""
    return {"mime": 2 + 1 / epochs, "mime-lite": 1 + 1 / epochs}.get(name, 1.0)


def compare(
    name: str, momentum: float, options: argparse.Namespace, clients: tuple[BatchedDataset, ...]
) -> str:
    """Trains alternately by federated averaging and an algorithm; returns a line of the table."""
    timer = Timer()

    class Team:
        """The engine's team, whose calls are timed."""

        def __init__(self, team: Any) -> None:
            self._team = team

        def train_cohort(self, *args: Any) -> Any:
            return self._team.train_cohort(*args)

    timer.watch(Team, "train_cohort", "core")
    keeper = KEEPERS.get(name, OwnVectors)
    watched = keeper.send, keeper.receive
    timer.watch(keeper, "send", "send")
    timer.watch(keeper, "receive", "receive")
    model = mlp_2nn((28, 28), 10, seed=1)
    runs = []
    for each in "fedavg", name:
        engine = ThreadEngine(options.threads)
        engine._team = Team(engine._team)  # type: ignore[assignment]
        process = process_of(each, momentum, model, engine, options.population)
        runs.append(Rounds(process, clients, timer))
    for r in range(options.warm_up + options.rounds):
        for run in runs:
            run.go(counts=r >= options.warm_up)
    keeper.send, keeper.receive = watched
    base, other = runs
    gradients = num_gradients(name, options.epochs)
    apart = other.median("round") - other.median("state")
    allowed = base.median("round") + (gradients - 1) * base.median("core")
    title = f"{name}, momentum {momentum:g}" if momentum else name
    return (
        f"{title:24} {1e3 * base.median('round'):8.2f} {1e3 * other.median('round'):8.2f} "
        f"{1e3 * other.median('state'):8.2f} {apart / base.median('round'):7.2f} "
        f"{gradients:10.2f} {apart / allowed:7.2f}"
    )


def cohort(options: argparse.Namespace) -> tuple[BatchedDataset, ...]:
    """The first writers of the file."""
    data, _ = datasets.load(options.data, pixels="ink")
    ids: Sequence[str] = data.client_ids[: options.clients]
    options.population = len(data.client_ids)
    return tuple(
        data.client(each).preprocess(
            epochs=options.epochs, batch_size=options.batch_size, shuffle_buffer=100
        )
        for each in ids
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="TRAIN.h5")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before them, not timed")
    parser.add_argument("--threads", type=int, default=native.resolve_threads(None))
    options = parser.parse_args()
    clients = cohort(options)
    num_examples = sum(len(each.client) for each in clients)
    print(
        f"mlp-2nn, {len(clients)} writers, {num_examples} examples, {options.epochs} epochs of "
        f"batches of {options.batch_size}, {options.threads} threads; ms a round"
    )
    print(
        f"{'':24} {'fedavg':>8} {'round':>8} {'state':>8} {'x':>7} {'gradients':>10} {'beyond':>7}"
    )
    for name in tables.ALGORITHMS:
        if name == "fedavg":
            continue
        for momentum in (0.0, 0.9) if name.startswith("mime") else (0.0,):
            print(compare(name, momentum, options, clients), flush=True)


if __name__ == "__main__":
    main()
