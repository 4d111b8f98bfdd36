"""What the folder of a run says, read back as plain values, and questions that one run answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcli import settings
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, DataError, RunError, speaks_python
from fedcli.runs.files import folder as run_dir
from fedcli.runs.stopping import Best
from fedcli.settings import config_file
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.metrics import JUDGING, METRICS
from fedcli.settings.vocabulary import ACCURACY, JUDGES, MEASURES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.learning.state import ModelWeights
    from fedcli.models.model import Model
    from fedcli.runs.files.client_records import ClientRecords

ONLINE = "online"  # the series of what training itself measured, beside those of splits
ABOUT_ONLINE = "online: measured in training, on each batch before its step"
PARTS = ("data", "train", "aggregate", "evaluate", "save")

Series = list[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run, from its files, which are read when they are asked for and then kept.

    Everything here may raise RunError: no such file, or one that fedcli did not write so.

    Attributes:
        path: Its folder, as given.
        options: Every option by its dotted name, such as `server_options.momentum`, as config.toml
            says it; what is not set has no key.
        provenance: What config.toml says of versions, machine and data.
    """

    path: Path
    options: dict[str, Any]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        """Returns the folder, what was trained and, if they can be read, the last figures."""
        about = f"{self.options.get('algorithm')} on {self.options.get('data')}"
        try:
            told = "".join(
                f", {split} {accuracy:.4f}"
                for split in self.series_names
                if (accuracy := self.final(split, ACCURACY)) is not None
            )
            rounds = f"{self.round_num} of {self.options.get('rounds')} rounds; accuracy"
        except RunError:
            return f"<RunRecord {self.path}: {about}>"
        return f"<RunRecord {self.path}: {about}, {rounds}{told.removeprefix(',')}>"

    def _repr_html_(self) -> str:
        """Returns the last figures of each split as a table."""
        from fedcli.settings import notebooks  # late: notebooks alone need it

        rows = []
        for split in self.series_names:
            finals = (notebooks.number(self.final(split, each)) for each in MEASURES)
            rows.append((split, self.final_round(split), *finals))
        title = f"{self.path}: {self.options.get('algorithm')} on {self.options.get('data')}"
        note = f"{self.round_num} of {self.options.get('rounds')} rounds; {ABOUT_ONLINE}."
        return notebooks.table(title, ("split", "round", *MEASURES), rows, note)

    def to_pandas(self) -> Any:
        """Returns `columns` as a pandas DataFrame, a row for each line of metrics.jsonl.

        Raises:
            ConfigError: pandas is not installed.
        """
        from fedcli.settings.notebooks import data_frame  # late: notebooks alone need it

        return data_frame(self.columns).set_index("round")

    @cached_property
    def config(self) -> RunConfig:
        """What `fedcli.train` takes to repeat the run. Raises ConfigError where it is not valid."""
        return settings.from_options(run_dir.read_config(self.path))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one a round, with None for what is not finite."""
        return run_dir.read_metrics(self.path)

    @cached_property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """evaluation.json by split; empty before the last round is done."""
        return run_dir.read_evaluation(self.path) or {}

    @cached_property
    def timings(self) -> list[dict[str, float]]:
        """The lines of timings.jsonl: seconds by part of a round, and bytes of peak memory.

        Without `round`, seconds of the closing evaluation.
        """
        return run_dir.read_timings(self.path)

    @cached_property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Metrics by flat name, such as `client_work/train/loss`, float64 [lines of metrics].

        NaN stands where a round has no such number; `round` says which round each is of.
        """
        import numpy as np

        from fedcli.models.metrics import flatten

        lines = [flatten(line) for line in self.metrics]
        names = dict.fromkeys(name for line in lines for name in line)
        return {
            name: np.array([_as_float(line.get(name)) for line in lines], np.float64)
            for name in names
        }

    def weights(self) -> ModelWeights:
        """Returns the weights that are evaluated, of the newest checkpoint; runs no code."""
        from fedcli.learning.state import ModelWeights
        from fedcli.runs.trained import load_weights

        return ModelWeights(list(load_weights(self.path).values()))

    def model(self, code: str | None = None) -> Model:
        """Returns the trained model, whose initial weights are those of the newest checkpoint.

        Args:
            code: FILE.py or FILE.py:FUNCTION where the model is code, which runs only if named.

        Raises:
            ConfigError: The model is code and `code` does not name it, or the other way round.
        """
        from fedcli.runs.trained import load_trained

        trained = load_trained(self.path, threads=None, code=code)
        return replace(trained.model, initial_params=trained.state.evaluated_weights.copy())

    def client_records(self) -> ClientRecords:
        """Returns what each client did in each round, of a run with `record_clients`."""
        from fedcli.runs.files import client_records

        return client_records.load(self.path)

    @property
    def round_num(self) -> int:
        """Rounds completed, as far as metrics.jsonl tells; 0 before the first."""
        return int(self.metrics[-1]["round"]) if self.metrics else 0

    @property
    def best_round(self) -> int | None:
        """The round that `keep_best` keeps; None: it keeps none, or none has been evaluated."""
        measure = self.options.get("keep_best")
        return None if measure is None else Best(measure).after_all(self.metrics).round_num

    @property
    def series_names(self) -> list[str]:
        """`online`, and the splits that have been evaluated."""
        splits = dict.fromkeys(
            split for line in self.metrics for split in line.get("evaluation", ())
        )
        return [ONLINE, *dict.fromkeys([*splits, *self.evaluation])]

    @cached_property
    def measures(self) -> list[str]:
        """Keys of JUDGING: loss, accuracy, and what the newest evaluations have beside them."""
        found = {name for split in self.series_names[1:] for name in self._last_point(split)[1]}
        return [*MEASURES, *(name for name in METRICS if name in found)]

    @property
    def judged_by(self) -> str:
        """The series that ranks rounds: of split validation, else of one that is held out."""
        names = self.series_names
        return next((name for name in JUDGES if name in names), ONLINE)

    def series(self, name: str, measure: str) -> Series:
        """Returns (round, value) of `online` or a split; values that are not finite are left out.

        Args:
            name: One of `series_names`.
            measure: A key of JUDGING.
        """
        found = dict(self._points(name))
        key = JUDGING[measure]
        return [(at, group[key]) for at, group in sorted(found.items()) if _is_number(group, key)]

    def final(self, name: str, measure: str) -> float | None:
        """Returns the last value of a series, None if it has none or it is not finite."""
        last = self._last_point(name)[1]
        key = JUDGING[measure]
        return last[key] if _is_number(last, key) else None

    def final_round(self, name: str) -> int | None:
        """Returns the round that `final` is of; None if the series has no value."""
        return self._last_point(name)[0]

    @property
    def newest_evaluation(self) -> dict[str, dict[str, Any]]:
        """`evaluation`, but for the splits that a later round has been evaluated on.

        They differ while a run is continued: evaluation.json is rewritten at its end.
        """
        return {
            split: closing
            for split, closing in self.evaluation.items()
            if closing["round"] == self.final_round(split)
        }

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

    def _last_point(self, name: str) -> tuple[int | None, Mapping[str, Any]]:
        return max(self._points(name), key=lambda point: point[0], default=(None, {}))

    def _points(self, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for line in self.metrics:
            if name == ONLINE:
                group = line.get("client_work", {}).get("train")
            else:
                group = line.get("evaluation", {}).get(name)
            if group is not None:
                yield line["round"], group
        closing = self.evaluation.get(name)
        if closing is not None:
            yield closing["round"], closing["client_work"]["eval"]["current_round_metrics"]


@speaks_python()
def load_run(path: str | Path) -> RunRecord:
    """Returns the record of a run, also while it is being trained; reads its config.toml alone.

    Raises:
        ConfigError: Its config.toml is bad.
        RunError: There is no run.
    """
    folder = Path(path)
    run_dir.check_is_run(folder)
    text = run_dir.read_text(folder / run_dir.CONFIG)
    options, provenance = config_file.read(text, str(folder / run_dir.CONFIG))
    return RunRecord(folder, flat_options(options), provenance)


def curves_of(runs: Sequence[RunRecord], measure: str) -> dict[str, Series]:
    """Returns what is drawn of a measure: all series of one run, of several what judges each.

    Where that is one point, as without --eval-every, what training measured is drawn of all.
    Training measures loss and accuracy alone; what has no point of another metric is left out.
    """
    if len(runs) == 1:
        found = {name: runs[0].series(name, measure) for name in runs[0].series_names}
        return {name: each for name, each in found.items() if each or measure in MEASURES}
    if measure not in MEASURES:
        of_runs = {
            f"{run.path} ({run.judged_by})": run.series(run.judged_by, measure) for run in runs
        }
        return {name: each for name, each in of_runs.items() if each}
    are_curves = all(len(run.series(run.judged_by, measure)) > 1 for run in runs)
    names = [run.judged_by if are_curves else ONLINE for run in runs]
    return {
        f"{run.path} ({name})": run.series(name, measure)
        for run, name in zip(runs, names, strict=True)
    }


def measures_of(runs: Iterable[RunRecord]) -> list[str]:
    """Returns the measures that at least one of some runs has, in the order of JUDGING."""
    found = {name for run in runs for name in run.measures}
    return [name for name in JUDGING if name in found]


def curve_title(measure: str) -> str:
    """Returns the heading of the curves of a measure."""
    return f"{measure.capitalize() if measure in MEASURES else measure} by round"


def is_online(name: str) -> bool:
    """Returns whether a name of `curves_of` is that of what training measured."""
    return name == ONLINE or name.endswith(f" ({ONLINE})")


def notes_of_changed_data(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a line for each run whose data have changed since it began.

    Files are read through, each once (1 s for a GB; a store at once). Data that are gone, and runs
    of a config that is not valid, are passed over: the report does without.
    """
    from fedcli import datasets

    seen: dict[str, str] = {}
    notes: list[str] = []
    for run in runs:
        before = run.provenance.get("data")
        if before is None:
            continue
        try:
            source = run.config.data_source
            key = repr([getattr(source, name) for name in settings.DATA_FIELDS])
            if key not in seen:
                seen[key] = datasets.fingerprint(source)
        except (DataError, ConfigError):
            continue
        consequence = f"what {run.path} tells is of the data before"
        notes += datasets.note_of_change(source, before, seen[key], consequence)
    return notes


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options by dotted name: `{"server_options": {"momentum": 0.9}}` has one."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat.update((f"{name}.{key}", each) for key, each in value.items())
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _as_float(value: object) -> float:
    """A metric; NaN for what is not there, no number, or beyond all floats."""
    try:
        return float(value) if isinstance(value, int | float) else float("nan")
    except OverflowError:
        return float("nan")


def _is_number(group: Mapping[str, Any], key: str) -> bool:
    value = group.get(key)
    return value is not None and value - value == 0
