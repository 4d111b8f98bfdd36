"""Measures what compression adds to a round of federated averaging, on synthetic writers.

    python tests/bench/bench_compression.py [--model mlp-2nn] [--clients 10] [NAME ...]

Each round is one call of a learning process, from state to state, on a fixed cohort: training,
encoding, decoding, the residuals of error feedback in their file, and aggregation. The compressors
and dense deltas take turns, round by round. Prints the medians of seconds and of the processor
seconds of all threads, which other programs on the machine disturb less. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

from fedcli import datasets, learning
from fedcli.core import native
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.process import LearningProcess
from fedcli.learning.updates import compression
from fedcli.models import zoo
from fedcli.settings import tables

DENSE = "dense"


def process_of(name: str, model: str, clients: int) -> LearningProcess:
    """Returns federated averaging with one compressor, or with dense deltas."""
    threads = native.resolve_threads()
    stages = [] if name == DENSE else [compression.build(name, {}, num_threads=threads)]
    algorithm = algorithms.build(
        "fedavg",
        optimizers.sgd(0.05),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )
    return learning.build_process(
        algorithm,
        zoo.build(model, input_shape=(28, 28), num_classes=10),
        engine=ThreadEngine(threads),
        num_clients=clients,
        stages=stages,
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*tables.COMPRESSORS], metavar="NAME")
    parser.add_argument("--model", default="mlp-2nn")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    train, _ = datasets.load(data_options={"clients": options.clients})
    cohort = tuple(
        train.client(each).preprocess(epochs=options.epochs, batch_size=20, shuffle_buffer=100)
        for each in train.client_ids
    )
    names = [DENSE, *options.names]
    processes = {each: process_of(each, options.model, options.clients) for each in names}
    states = {each: process.initialize() for each, process in processes.items()}
    seconds, spent = defaultdict(list), defaultdict(list)
    for _ in range(options.rounds + 2):
        for each, process in processes.items():
            started, began = time.perf_counter(), time.process_time()
            states[each] = process.next(states[each], cohort).state
            seconds[each].append(time.perf_counter() - started)
            spent[each].append(time.process_time() - began)
    print(f"{'':12}{'ms a round':>12}{'over dense':>12}{'processor ms':>14}{'over dense':>12}")
    for each in names:
        row = [statistics.median(found[each][2:]) for found in (seconds, spent)]
        base = [statistics.median(found[DENSE][2:]) for found in (seconds, spent)]
        print(
            f"{each:12}{1000 * row[0]:12.2f}{row[0] / base[0]:12.3f}"
            f"{1000 * row[1]:14.2f}{row[1] / base[1]:12.3f}"
        )


if __name__ == "__main__":
    main()
