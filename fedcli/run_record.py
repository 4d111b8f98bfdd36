"""What the folder of a run says, read back as plain values, and questions that one run answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcli import config as configs
from fedcli import run_dir

ONLINE = "online"  # the series of what training itself measured, beside those of splits
HELD_OUT = ("test", "central")
MEASURES = {"loss": "loss", "accuracy": "sparse_categorical_accuracy"}
PARTS = ("data", "train", "aggregate", "evaluate", "save")

Series = list[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run, from its files.

    Attributes:
        path: Its folder, as given.
        config: Every option by its dotted name, such as `server_options.momentum`, as the config
            says it; what is not set has no key.
        provenance: What the config says of versions, machine and data.
        lines: metrics.jsonl.
        timings: timings.jsonl.
        evaluation: evaluation.json by split; empty before the last round is done.
    """

    path: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    lines: list[dict[str, Any]]
    timings: list[dict[str, float]]
    evaluation: dict[str, dict[str, Any]]

    @property
    def round_num(self) -> int:
        """Rounds completed, as far as metrics.jsonl tells; 0 before the first."""
        return int(self.lines[-1]["round"]) if self.lines else 0

    @property
    def series_names(self) -> list[str]:
        """`online`, and the splits that have been evaluated."""
        splits = dict.fromkeys(split for line in self.lines for split in line.get("evaluation", ()))
        return [ONLINE, *dict.fromkeys([*splits, *self.evaluation])]

    @property
    def judged_by(self) -> str:
        """The series that tells best how good the model is: a held-out split, if there is one."""
        names = self.series_names
        return next((name for name in (*HELD_OUT, "train") if name in names), ONLINE)

    def series(self, name: str, measure: str) -> Series:
        """Returns (round, value) of `online` or a split; values that are not finite are left out.

        Args:
            name: One of `series_names`.
            measure: A key of MEASURES.
        """
        found = dict(self._points(name))
        key = MEASURES[measure]
        return [(at, group[key]) for at, group in sorted(found.items()) if _is_number(group, key)]

    def final(self, name: str, measure: str) -> float | None:
        """Returns the last value of a series, None if it has none or it is not finite."""
        points = list(self._points(name))
        last = max(points, key=lambda point: point[0], default=(0, {}))[1]
        return last[MEASURES[measure]] if _is_number(last, MEASURES[measure]) else None

    def rounds_to(self, target: float) -> int | None:
        """Returns the first round at which accuracy was at least `target`; None: never seen.

        It is read from `judged_by`, so that it is as fine as the run was evaluated.
        """
        accuracies = self.series(self.judged_by, "accuracy")
        return next((at for at, value in accuracies if value >= target), None)

    def seconds(self) -> dict[str, float]:
        """Returns seconds by part, in the order of PARTS; those that took none are left out."""
        sums = {part: sum(line.get(part, 0.0) for line in self.timings) for part in PARTS}
        return {part: seconds for part, seconds in sums.items() if seconds > 0}

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that a process of this run had resident; None: not recorded."""
        peaks = [line["peak_memory_bytes"] for line in self.timings if "peak_memory_bytes" in line]
        return int(max(peaks)) if peaks else None

    def _points(self, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for line in self.lines:
            if name == ONLINE:
                group = line.get("client_work", {}).get("train")
            else:
                group = line.get("evaluation", {}).get(name)
            if isinstance(group, dict):
                yield line["round"], group
        closing = self.evaluation.get(name)
        if closing is not None:
            yield closing["round"], closing["client_work"]["eval"]["current_round_metrics"]


def load_run(path: str | Path) -> RunRecord:
    """Returns what the folder of a run says, also while it is being trained.

    Raises:
        ConfigError: Its config.toml is bad.
        RunError: There is no run, or a file of it is damaged.
    """
    folder = Path(path)
    run_dir.check_is_run(folder)
    text = run_dir.read_text(folder / run_dir.CONFIG)
    options = configs.from_toml(text, str(folder / run_dir.CONFIG))
    return RunRecord(
        folder,
        flat_config(options),
        configs.read_provenance(text, str(folder)),
        run_dir.read_metrics(folder),
        run_dir.read_timings(folder),
        run_dir.read_evaluation(folder) or {},
    )


def curves_of(runs: Sequence[RunRecord], measure: str) -> dict[str, Series]:
    """Returns what is drawn of a measure: all series of one run, of several what judges each."""
    if len(runs) == 1:
        return {name: runs[0].series(name, measure) for name in runs[0].series_names}
    return {f"{run.path} ({run.judged_by})": run.series(run.judged_by, measure) for run in runs}


def flat_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options by dotted name: `{"server_options": {"momentum": 0.9}}` has one."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat.update((f"{name}.{key}", each) for key, each in value.items())
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_number(group: Mapping[str, Any], key: str) -> bool:
    value = group.get(key)
    return value is not None and value - value == 0
