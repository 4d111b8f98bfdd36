"""Studies from Python: `sweep` runs a study and returns its record; `load_study` reads one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural, speaks_python
from fedcli.reports import group_tables
from fedcli.reports.groups import Groups, group, parse_column, remedy_without
from fedcli.runs.record import RunRecord, load_run
from fedcli.sweeps import study as study_file
from fedcli.sweeps import study_tables, trials
from fedcli.sweeps.code import check_code, files_of_code
from fedcli.sweeps.study import Study
from fedcli.sweeps.study_folder import STUDY, StudyFolder, check_is_new, check_is_study
from fedcli.sweeps.study_progress import StudyProgress
from fedcli.sweeps.sweeping import SweepOptions, failures, run_study

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StudyRecord:
    """A study, read from its folder. A file is read on first use and then cached.

    Attributes:
        path: Its folder.
        study: The content of study.toml.
    """

    path: Path
    study: Study

    def __repr__(self) -> str:
        """Returns the folder and the number of trials."""
        return f"<StudyRecord {self.path}: {plural(len(self.trials), 'trial')}>"

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """The lines of trials.jsonl."""
        return trials.read_trials(self.path)

    def runs(self) -> list[RunRecord]:
        """Returns the record of the run of each trial that has not failed."""
        return [
            load_run(self.path / line["run"])
            for line in self.trials
            if line["state"] != trials.FAILED
        ]

    @property
    def best(self) -> dict[str, Any]:
        """The options of the best point, with its case, if there is one, as `case`.

        Raises:
            ConfigError: The runs do not have the split on which the study chooses.
        """
        members = study_tables.members_of(self.trials, self.path)
        if study_tables.selection(self.study, members) is None:
            raise ConfigError(
                f"{self.path}: there is no best point, because the runs have no "
                f"{self.study.select.on} data; {remedy_without(self.study.select.on)}"
            )
        return dict(study_tables.groups_of(self.study, members)[-1].rows[0].by)

    def table(
        self,
        by: Sequence[str] | None = None,
        best: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Returns the rows of a table, the best first: means, deviations and p-values by name.

        Args:
            by: The options whose values define a row; None for all that the study varies, except
                those in `best`.
            best: Options for which each row has the best values, chosen as study.toml says.
            columns: Names such as `test.accuracy` and `rounds@0.9`; empty for the study's metric,
                accuracy and loss, on the test split or else on another split that all runs have.

        Raises:
            ConfigError: A name is unknown, or runs of a row differ in further options.
        """
        return group_tables.to_rows(self.groups(by, best, columns))

    def groups(
        self,
        by: Sequence[str] | None = None,
        best: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> Groups:
        """Returns the table with its runs; the arguments are those of `table`."""
        members = study_tables.members_of(self.trials, self.path)
        chosen = [parse_column(each) for each in columns]
        return group(
            members,
            by=by,
            best=best,
            columns=chosen or study_tables.columns_of(self.study, members),
            select=study_tables.selection(self.study, members),
        )

    def to_pandas(self) -> Any:
        """Returns the trials as a pandas DataFrame, with a column for each option and metric.

        Raises:
            ConfigError: pandas is not installed.
        """
        from fedcli.settings.notebooks import data_frame  # lazy: notebooks alone need it

        rows = [study_tables.flat_line(line) for line in self.trials]
        names = dict.fromkeys(name for row in rows for name in row)
        return data_frame({name: [row.get(name) for row in rows] for name in names})


class _ProgressOnStderr(StudyProgress):
    """The progress of a study, whose lines are written to stderr when they are added."""

    def note_line(self, line: Mapping[str, Any], result_text: str, *, is_new: bool) -> None:
        """Writes a line about a finished trial."""
        super().note_line(line, result_text, is_new=is_new)
        self._write(f" [{self.finished}/{self.total}]")

    def note(self, text: str) -> None:
        """Writes a line for the user."""
        super().note(text)
        self._write("")

    def _write(self, ending: str) -> None:
        for line in self.take_lines():
            sys.stderr.write(f"{line.text}{ending}\n")


@speaks_python()
def sweep(
    study: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    reuse: Iterable[str | Path] = (),
    fail_fast: bool = False,
    cluster: str | None = None,
    code: Iterable[str | Path] = (),
    progress: bool = False,
) -> StudyRecord:
    """Runs a study to its end in worker processes, and returns its record.

    An interrupt saves all runs; the text of the KeyboardInterrupt says how to continue.

    Args:
        study: The path of a study.toml, or its content: `{"run": {"rounds": 20}, "grid":
            {"client_lr": [0.01, 0.1]}, "seeds": 5}`. `run` may be a `RunConfig`.
        out: The study's folder.
        jobs: Number of processes; None for one per processor.
        resume: Continue the study at `out` if there is one. It must be the same study.
        reuse: Folders from which finished runs with equal keys are copied.
        fail_fast: Stop at the first run that fails. Otherwise failures are logged as warnings.
        cluster: The address of a Ray cluster that trains the runs: "local", "auto" or "HOST:PORT".
            None for processes of this machine.
        code: The Python files that a study.toml may run.
        progress: Write a line to stderr for each run that ends.

    Raises:
        ConfigError: A key or value of the study is not allowed.
        DataError: The data are missing or invalid.
        OwnCodeError: A Python file that the study names cannot be read.
        RunError: The folder exists or cannot be written, or another process works on it.
    """
    is_file = isinstance(study, str | Path)
    source = str(study) if is_file else "the study"
    loaded = study_file.read_file(Path(study)) if is_file else study_file.read(study, source)  # type: ignore[arg-type]
    loaded = study_file.with_absolute_paths(loaded, Path.cwd())
    if is_file:
        check_code(loaded, code)
    options = SweepOptions(jobs, tuple(map(Path, reuse)), fail_fast, cluster)
    with _opened(Path(out), loaded, resume=resume) as folder:
        study_progress = _ProgressOnStderr() if progress else StudyProgress()
        try:
            lines = run_study(folder, options, cancel=CancelFlag(), study_progress=study_progress)
        except KeyboardInterrupt as interrupt:
            files = files_of_code(loaded) if is_file else []
            interrupt.args = interrupt.args or (_stop_text(Path(out), files, study_progress),)
            raise
    for failure in failures(lines):
        _LOGGER.warning(failure)
    return load_study(out)


@speaks_python()
def load_study(path: str | Path) -> StudyRecord:
    """Returns the record of a study, also while it runs.

    Raises:
        ConfigError: Its study.toml is invalid.
        RunError: There is no study.
    """
    check_is_study(Path(path))
    return StudyRecord(Path(path), study_file.read_file(Path(path) / STUDY))


def _stop_text(path: Path, code: list[Path], done: StudyProgress) -> str:
    """One line that says what an interrupted study has saved, and how to continue it.

    Args:
        path: The study's folder.
        code: The Python files that must be named again.
        done: The runs that have ended.
    """
    more = f", code={[str(file) for file in code]!r}" if code else ""
    return (
        f"stopped and saved after {done.finished} of {plural(done.total, 'run')}; "
        f"fedcli.sweep(study, {str(path)!r}, resume=True{more}) continues"
    )


def _opened(path: Path, study: Study, *, resume: bool) -> StudyFolder:
    if not resume or not path.exists():
        check_is_new(path)
        return StudyFolder.create(path, study)
    folder = StudyFolder.open(path)
    if study_file.to_document(folder.study) != study_file.to_document(study):
        folder.close()
        raise ConfigError(f"{path} holds another study; choose another folder")
    return folder
