"""Folders of runs with given metrics, so that tests know what a report must say about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def scores(accuracy: float | None, loss: float | None) -> dict[str, Any]:
    return {
        "sparse_categorical_accuracy": accuracy,
        "loss": loss,
        "num_examples": 40,
        "num_batches": 2,
    }


def write_run(
    path: Path,
    accuracies: list[float | None],
    *,
    config: str = "",
    eval_every: int = 1,
    closing: float | None = None,
) -> Path:
    """Writes a run with these online accuracies; each loss is 1 minus the accuracy.

    The accuracy on test is 0.1 higher; it is evaluated every `eval_every` rounds. `closing` is the
    accuracy of the closing evaluation; None: there is no such evaluation.
    """
    (path / "checkpoints").mkdir(parents=True)
    text = f'[run]\ndata = "made"\nrounds = {len(accuracies) or 1}\n{config}'
    (path / "config.toml").write_text(f'{text}\n[provenance]\nisa = "generic"\n')
    lines, timings = [], []
    for number, accuracy in enumerate(accuracies, 1):
        loss = None if accuracy is None else 1 - accuracy
        train = {**scores(accuracy, loss), "num_non_finite_clients": 0}
        line: dict[str, Any] = {
            "round": number,
            "distributor": {},
            "client_work": {"train": train},
            "finalizer": {"update_non_finite": 0},
        }
        if number % eval_every == 0 and accuracy is not None:
            line["evaluation"] = {"test": scores(accuracy + 0.1, 0.9 - accuracy)}
        lines.append(line)
        timings.append({"round": number, "train": 0.03, "save": 0.01, "peak_memory_bytes": 2**26})
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (path / "timings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in timings))
    if closing is not None:
        evaluation = {
            "client_work": {"eval": {"current_round_metrics": scores(closing, 1 - closing)}},
            "split": "test",
            "round": len(accuracies),
            "num_clients": 3,
            "num_absent_clients": 0,
        }
        (path / "evaluation.json").write_text(json.dumps({"test": evaluation}))
    return path
