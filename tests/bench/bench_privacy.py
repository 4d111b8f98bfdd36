"""Measures the time that differential privacy adds to a round of federated averaging.

    python tests/bench/bench_privacy.py [--model mlp-2nn] [--clients 10] [--population 200]

Each round is one call of a learning process on a fixed cohort: training, clipping, noise, epsilon.
The mechanisms, the plain mean and the mean of clipped updates take turns, round by round. Prints
the medians of seconds and of the processor seconds of all threads, which other programs on the
machine disturb less. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

from fedcli import datasets, learning
from fedcli.core import native
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.aggregators import private
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.aggregators.private import PrivacyPlan
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.process import LearningProcess
from fedcli.models import zoo
from fedcli.privacy.accountant import Accountant
from fedcli.privacy.schemes import scheme_of, tree_scheme

PLAIN = "mean"
CLIP = 0.5


def aggregator_of(name: str, clients: int, population: int) -> Aggregator:
    """Returns an aggregator of `NAMES`."""
    if name == PLAIN:
        return aggregators.build("mean")
    if name == "clipped mean":
        return aggregators.build("norm-bound", {"max_norm": CLIP})
    scheme = scheme_of("poisson", population, clients)
    if name == "tree":
        scheme = tree_scheme(population, clients, population // clients)
    plan = PrivacyPlan(clients, clients / population, Accountant(scheme, 0.8, 1e-5))
    if name == "gaussian":
        return private.gaussian(1, plan, clip=CLIP)
    if name == "tree":
        restart = population // clients
        return private.tree(1, plan, clip=CLIP, restart_every=restart, efficient=True)
    return private.gaussian_adaptive(
        1, plan, clip=CLIP, target_quantile=0.5, clip_lr=0.2, count_stddev=2.0
    )


NAMES = (PLAIN, "clipped mean", "gaussian", "gaussian-adaptive", "tree")


def process_of(aggregator: Aggregator, model: str) -> LearningProcess:
    """Returns federated averaging with an aggregator."""
    algorithm = algorithms.build(
        "fedavg",
        optimizers.sgd(0.05),
        optimizers.sgd(1.0),
        weighting="uniform",
        aggregator=aggregator,
    )
    return learning.build_process(
        algorithm,
        zoo.build(model, input_shape=(28, 28), num_classes=10),
        engine=ThreadEngine(native.resolve_threads()),
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp-2nn")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--population", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    train, _ = datasets.load(data_options={"clients": options.clients})
    cohort = tuple(
        train.client(each).preprocess(epochs=options.epochs, batch_size=20, shuffle_buffer=100)
        for each in train.client_ids
    )
    processes = {
        name: process_of(aggregator_of(name, options.clients, options.population), options.model)
        for name in NAMES
    }
    states = {name: process.initialize() for name, process in processes.items()}
    seconds, spent = defaultdict(list), defaultdict(list)
    for _ in range(options.rounds):
        for name, process in processes.items():
            began, used = time.perf_counter(), time.process_time()
            states[name] = process.next(states[name], cohort).state
            seconds[name].append(time.perf_counter() - began)
            spent[name].append(time.process_time() - used)
    print(f"{options.model}, {options.clients} clients, {options.epochs} epochs")
    print(f"{'aggregator':20}{'ms':>8}{'':>8}{'processor ms':>14}")
    for name in NAMES:
        lines = []
        for times in (seconds, spent):
            half = statistics.median(times[name])
            share = half / statistics.median(times[PLAIN]) - 1
            lines.append(f"{1000 * half:10.1f} {100 * share:+6.1f} %")
        print(f"{name:18}{''.join(lines)}")


if __name__ == "__main__":
    main()
