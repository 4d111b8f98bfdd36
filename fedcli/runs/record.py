"""`RunRecord`: the results of a run, read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcli import settings
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, DataError, RunError, plural, speaks_python
from fedcli.runs.files import folder as run_dir
from fedcli.runs.stopping import Best
from fedcli.settings import config_file
from fedcli.settings.data_source import shown_data
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.metrics import METRICS, SELECTION_METRICS, key_of, own_names
from fedcli.settings.vocabulary import ACCURACY, MEASURES, SELECTION_SPLITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.learning.state import ModelWeights
    from fedcli.models.model import Model
    from fedcli.runs.files.client_records import ClientRecords
    from fedcli.settings.data_source import DataSource

ONLINE = "online"  # the name of the series of training metrics, beside those of the splits
ABOUT_ONLINE = "online: measured in training, on each batch before its step"
PARTS = ("data", "train", "aggregate", "evaluate", "save")

Series = list[tuple[int, float]]  # (round, value)
Points = Sequence[tuple[float, float]]  # (x, value)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run, read from its files. A file is read on first use and then cached.

    All members may raise RunError if a file is missing or damaged.

    Attributes:
        path: Its folder, as given.
        options: The options of config.toml by dotted name, such as `server_options.momentum`.
            Options that are not set have no key.
        provenance: The versions, machine and data that config.toml records.
    """

    path: Path
    options: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def _about(self) -> str:
        """The algorithm and the data."""
        return f"{self.options.get('algorithm')} on {shown_data(str(self.options.get('data')))}"

    @property
    def _rounds(self) -> str:
        """How many rounds are completed."""
        wanted = self.options.get("rounds", self.round_num)
        return f"{self.round_num} of {plural(wanted, 'round')}"

    def __repr__(self) -> str:
        """Returns the folder, what was trained and, if they can be read, the last figures."""
        about = self._about
        try:
            accuracies = "".join(
                f", {split} {accuracy:.4f}"
                for split in self.series_names
                if (accuracy := self.final(split, ACCURACY)) is not None
            )
            rounds = f"{self._rounds}; accuracy"
        except RunError:
            return f"<RunRecord {self.path}: {about}>"
        return f"<RunRecord {self.path}: {about}, {rounds}{accuracies.removeprefix(',')}>"

    def _repr_html_(self) -> str:
        """Returns the last figures of each split as a table."""
        from fedcli.settings import notebooks  # lazy: notebooks alone need it

        rows = []
        for split in self.series_names:
            finals = (notebooks.number(self.final(split, each)) for each in MEASURES)
            rows.append((split, self.final_round(split), *finals))
        title = f"{self.path}: {self._about}"
        note = f"{self._rounds}; {ABOUT_ONLINE}."
        return notebooks.table(title, ("split", "round", *MEASURES), rows, note)

    def to_pandas(self) -> Any:
        """Returns `columns` as a pandas DataFrame, a row for each line of metrics.jsonl.

        Raises:
            ConfigError: pandas is not installed.
        """
        from fedcli.settings.notebooks import data_frame  # lazy: notebooks alone need it

        return data_frame(self.columns).set_index("round")

    @cached_property
    def config(self) -> RunConfig:
        """The config, with which `fedcli.train` repeats the run. Raises ConfigError if invalid."""
        return settings.from_options(run_dir.read_config(self.path))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each round; None stands for non-finite numbers."""
        return run_dir.read_metrics(self.path)

    @cached_property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """evaluation.json by split; empty before the last round is done."""
        return run_dir.read_evaluation(self.path) or {}

    @cached_property
    def timings(self) -> list[dict[str, float]]:
        """The lines of timings.jsonl: seconds by part, number of clients, and peak memory.

        A line without `round` has the seconds of the closing evaluation.
        """
        return run_dir.read_timings(self.path)

    @cached_property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Metrics by flat name, such as `client_work/train/loss`, float64 [lines of metrics].

        NaN stands for a number that a round does not have. `round` has the round of each line.
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
        """Returns the weights of the newest checkpoint that are evaluated. Runs no user's code."""
        from fedcli.learning.state import ModelWeights
        from fedcli.runs.trained import load_weights_and_layout

        tensors, layout = load_weights_and_layout(self.path)
        arrays = list(tensors.values())
        num_trained = len(arrays) if layout is None else len(layout.trained_shapes)
        return ModelWeights(arrays[:num_trained], arrays[num_trained:])

    def model(self, code: str | None = None) -> Model:
        """Returns the trained model, with the weights of the newest checkpoint as initial weights.

        Args:
            code: FILE.py or FILE.py:FUNCTION if the model is code, which runs only if named here.

        Raises:
            ConfigError: The model is code and `code` does not name it, or `code` is not the
                model's.
            ModelError: The model's code fails.
        """
        from fedcli.runs.trained import load_trained

        trained = load_trained(self.path, threads=None, code=code, has_client_states=False)
        return replace(trained.model, initial_params=trained.state.evaluated_weights.copy())

    def client_records(self) -> ClientRecords:
        """Returns what each client did in each round, of a run with `record_clients`."""
        from fedcli.runs.files import client_records

        return client_records.load(self.path)

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes, from the newest checkpoint; None if there is no readable one."""
        from fedcli.runs.files import checkpoint  # lazy: it loads h5py, and few reports need it

        try:
            return checkpoint.load(run_dir.latest_checkpoint(self.path)).num_classes
        except RunError:
            return None

    @property
    def round_num(self) -> int:
        """The last round in metrics.jsonl; 0 before the first."""
        return int(self.metrics[-1]["round"]) if self.metrics else 0

    @property
    def best_round(self) -> int | None:
        """The round that `keep_best` keeps; None if it is not set or no round was evaluated."""
        measure = self.options.get("keep_best")
        return None if measure is None else Best(measure).after_all(self.metrics).round_num

    @cached_property
    def series_names(self) -> list[str]:
        """The names of the series: `online`, and the splits that have been evaluated."""
        splits = dict.fromkeys(
            split for line in self.metrics for split in line.get("evaluation", ())
        )
        return [ONLINE, *dict.fromkeys([*splits, *self.evaluation])]

    @cached_property
    def measures(self) -> list[str]:
        """Loss, accuracy, and the further metrics of the newest evaluations, a user's own last."""
        names = {name for split in self.series_names[1:] for name in self._last_point(split)[1]}
        known = (*METRICS, *own_names(self.options.get("metrics")))
        return [*MEASURES, *(name for name in known if name in names)]

    @cached_property
    def judged_by(self) -> str:
        """The series that ranks rounds: the first existing of SELECTION_SPLITS, else `online`."""
        names = self.series_names
        return next((name for name in SELECTION_SPLITS if name in names), ONLINE)

    def series(self, name: str, measure: str) -> Series:
        """Returns (round, value) of `online` or a split; values that are not finite are left out.

        Args:
            name: One of `series_names`.
            measure: One of `measures`.
        """
        key = key_of(measure)
        points = self._groups.get(name, {}).items()
        return [(at, group[key]) for at, group in points if _is_number(group, key)]

    def final(self, name: str, measure: str) -> float | None:
        """Returns the last value of a series; None if there is none or it is not finite."""
        last = self._last_point(name)[1]
        key = key_of(measure)
        return last[key] if _is_number(last, key) else None

    def finals(self, name: str) -> dict[str, float | None]:
        """Returns `final` of all metrics that a series has, by the keys of SELECTION_METRICS."""
        last = self._last_point(name)[1]
        return {
            measure: last[key] if _is_number(last, key) else None
            for measure, key in SELECTION_METRICS.items()
            if key in last
        }

    def final_round(self, name: str) -> int | None:
        """Returns the round of the value of `final`; None if the series has no value."""
        return self._last_point(name)[0]

    @property
    def newest_evaluation(self) -> dict[str, dict[str, Any]]:
        """`evaluation`, without the splits on which a later round has been evaluated.

        There are such splits while a run is continued: evaluation.json is rewritten at its end.
        """
        return {
            split: closing
            for split, closing in self.evaluation.items()
            if closing["round"] == self.final_round(split)
        }

    def rounds_to(self, target: float) -> int | None:
        """Returns the first round with an accuracy of at least `target`; None if there is none.

        The accuracy is that of the series `judged_by`, in the rounds in which it was evaluated.
        """
        accuracies = self.series(self.judged_by, "accuracy")
        return next((at for at, value in accuracies if value >= target), None)

    def seconds(self) -> dict[str, float]:
        """Returns seconds by part, in the order of PARTS, without parts that took no time."""
        sums = {part: sum(line.get(part, 0.0) for line in self.timings) for part in PARTS}
        return {part: seconds for part, seconds in sums.items() if seconds > 0}

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak resident memory of the processes of this run; None if it was not recorded."""
        peaks = [line["peak_memory_bytes"] for line in self.timings if "peak_memory_bytes" in line]
        return int(max(peaks)) if peaks else None

    def _last_point(self, name: str) -> tuple[int | None, Mapping[str, Any]]:
        points = self._groups.get(name)
        return next(reversed(points.items())) if points else (None, {})

    @cached_property
    def _groups(self) -> dict[str, dict[int, Mapping[str, Any]]]:
        """The metrics of each series by round, in order, with those of the closing evaluation."""
        groups_by_series: dict[str, dict[int, Mapping[str, Any]]] = {}
        for line in self.metrics:
            groups = dict(line.get("evaluation", ()))
            online = line.get("client_work", {}).get("train")
            if online is not None:
                groups[ONLINE] = online
            for name, group in groups.items():
                groups_by_series.setdefault(name, {})[line["round"]] = group
        for name, closing in self.evaluation.items():
            group = closing["client_work"]["eval"]["current_round_metrics"]
            groups_by_series.setdefault(name, {})[closing["round"]] = group
        return {name: dict(sorted(points.items())) for name, points in groups_by_series.items()}


@speaks_python()
def load_run(path: str | Path) -> RunRecord:
    """Returns the record of a run, also during its training. Reads config.toml only.

    Raises:
        ConfigError: Its config.toml is bad.
        RunError: There is no run.
    """
    folder = Path(path)
    run_dir.check_is_run(folder)
    text = run_dir.read_text(folder / run_dir.CONFIG)
    options, provenance = config_file.read(text, str(folder / run_dir.CONFIG))
    return RunRecord(folder, flat_options(options), provenance)


def _by_round(_: RunRecord, series: Series) -> Points:
    return series


def curves_of(
    runs: Sequence[RunRecord],
    measure: str,
    along: Callable[[RunRecord, Series], Points] = _by_round,
) -> dict[str, Points]:
    """Returns the curves of a metric: all series of one run, or one series of each of several runs.

    `along` maps the points of a run's series, (round, value), to another x axis.

    For several runs the series is `judged_by`. If it has a single point in any run, for
    example without --eval-every, the training metrics of all runs are drawn. Training computes only
    loss and accuracy; for other metrics, series without points are left out.
    """
    if len(runs) == 1:
        run = runs[0]
        series = {name: along(run, run.series(name, measure)) for name in run.series_names}
        return {name: each for name, each in series.items() if each or measure in MEASURES}
    if measure not in MEASURES:
        of_runs = {
            f"{run.path} ({run.judged_by})": along(run, run.series(run.judged_by, measure))
            for run in runs
        }
        return {name: each for name, each in of_runs.items() if each}
    are_curves = all(len(run.series(run.judged_by, measure)) > 1 for run in runs)
    names = [run.judged_by if are_curves else ONLINE for run in runs]
    return {
        f"{run.path} ({name})": along(run, run.series(name, measure))
        for run, name in zip(runs, names, strict=True)
    }


def measures_of(runs: Iterable[RunRecord]) -> list[str]:
    """Returns the metrics that at least one of the runs has.

    They are in the order of SELECTION_METRICS; users' own metrics come last.
    """
    names = dict.fromkeys(name for run in runs for name in run.measures)
    own = [name for name in names if name not in SELECTION_METRICS]
    return [*(name for name in SELECTION_METRICS if name in names), *own]


def curve_title(measure: str, across: str = "round") -> str:
    """Returns the heading of the curves of a metric; `across` is the label of the x axis."""
    return f"{measure.capitalize() if measure in MEASURES else measure} by {across}"


def is_online(name: str) -> bool:
    """Returns whether a name of `curves_of` is that of training metrics."""
    return name == ONLINE or name.endswith(f" ({ONLINE})")


def notes_of_changed_data(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a line for each run whose data have changed since it began.

    Each file is read once (1 s for a GB; a store takes no time). Data that no longer exist and runs
    with an invalid config give no note.
    """
    from fedcli import datasets

    seen: dict[str, tuple[DataSource, str]] = {}
    notes: list[str] = []
    for run in runs:
        before = run.provenance.get("data")
        if before is None:
            continue
        of_data = {name: value for name, value in run.options.items() if is_of_data(name)}
        key = repr(sorted(of_data.items()))
        try:
            if key not in seen:
                source = run.config.data_source
                seen[key] = source, datasets.fingerprint(source)
        except (DataError, ConfigError):
            continue
        source, now = seen[key]
        consequence = f"the results of {run.path} are those of the earlier data"
        notes += datasets.note_of_change(source, before, now, consequence)
    return notes


def is_of_data(name: str) -> bool:
    """Returns whether an option, by its dotted name, says which data a run has."""
    return name.partition(".")[0] in settings.DATA_FIELDS


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options by dotted name: `server_options.momentum` for a `k=v` option."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat.update((f"{name}.{key}", each) for key, each in value.items())
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _as_float(value: object) -> float:
    """A metric as a float; NaN if it is missing, no number, or too large for a float."""
    try:
        return float(value) if isinstance(value, int | float) else float("nan")
    except OverflowError:
        return float("nan")


def _is_number(group: Mapping[str, Any], key: str) -> bool:
    value = group.get(key)
    return value is not None and value - value == 0
