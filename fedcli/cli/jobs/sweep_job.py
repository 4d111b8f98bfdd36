"""Implements `fedcli sweep`: makes or continues a study, and shows its progress and results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcli.cli.jobs.bars import REFRESH_SECONDS, clock
from fedcli.cli.screen.output import Remarks, Verbosity, one_line
from fedcli.errors import ConfigError, RunError, plural
from fedcli.settings.run_config import CODE_FIELDS, OPTIONS
from fedcli.sweeps import study as study_file
from fedcli.sweeps import study_tables
from fedcli.sweeps.code import check_code, resume_command
from fedcli.sweeps.study import Study
from fedcli.sweeps.study_folder import StudyFolder, default_folder
from fedcli.sweeps.study_progress import StudyProgress
from fedcli.sweeps.study_values import field_name, options_text, split_values
from fedcli.sweeps.sweeping import SweepOptions, failures, run_study

if TYPE_CHECKING:
    from fedcli.cli.jobs.worker import Worker

_MOST_RUNNING = 16  # largest number of running runs that are shown
_COMMAND_LINE = "the options"


def new_study(
    file: Path | None,
    given: Mapping[str, Any],
    code: Sequence[Path],
    note: Callable[[str], None],
) -> Study:
    """Returns the study of a study.toml, overridden by the given options.

    If the data of its preset are not downloaded, synthetic images replace them, and `note` is
    called with a line about it. The options of these images become part of the study, so
    that it keeps the images when it is resumed.

    Raises:
        ConfigError: Something is not allowed, or the study runs code that was not named.
    """
    study = Study() if file is None else study_file.read_file(file)
    document = study_file.to_document(study)
    run = {name: value for name, value in given.items() if name in OPTIONS}
    document["run"] = {**document["run"], **run}
    for name in ("seeds", "random", "search", "redraw_partition"):
        if name in given:
            document[name] = given[name]
    grid = {
        key: split_values(text, field_name(key, "--grid"))
        for key, text in _pairs(given, "grid").items()
    }
    ranges = _pairs(given, "ranges")
    for name, added in (("grid", grid), ("range", ranges)):
        if added:
            document[name] = {**document.get(name, {}), **_with_underscores(added)}
    select = {"metric": given.get("metric"), "on": given.get("split")}
    document["select"].update({key: value for key, value in select.items() if value is not None})
    if "halving" in given:
        document["halving"] = _halving(given["halving"])
    study = study_file.read(document, str(file or _COMMAND_LINE))
    study = _with_stand_in(study_file.with_absolute_paths(study, Path.cwd()), note)
    named = [str(run[name]).rpartition(":")[0] or run[name] for name in CODE_FIELDS if name in run]
    named += [run[name] for name in CODE_FIELDS if name in run and isinstance(run[name], str)]
    check_code(study, [*code, *named])
    return study


def _with_stand_in(study: Study, note: Callable[[str], None]) -> Study:
    name = study.run.get("preset")
    if name is None:
        return study
    from fedcli.datasets.stand_ins import note_of_stand_in, stand_in_of

    of_cases = [key for case in study.cases for key in (*case.options, *case.grid)]
    stand_in = stand_in_of(name, [*study.run, *study.grid, *study.ranges, *of_cases])
    if not stand_in:
        return study
    note(note_of_stand_in(name))
    return replace(study, run={**stand_in, **study.run})


def begun(study: Study, out: Path | None, file: Path | None) -> StudyFolder:
    """Returns the folder of a new study, after all its points have been checked."""
    from datetime import datetime

    from fedcli.sweeps.planning import plan_of

    next(plan_of(study))
    now = datetime.now().astimezone()
    name = "sweep" if file is None else file.stem
    return StudyFolder.create(out or default_folder(now, name), study)


def continued(path: Path, code: Sequence[Path]) -> StudyFolder:
    """Returns the folder of a study to continue."""
    folder = StudyFolder.open(path)
    try:
        check_code(folder.study, code)
    except BaseException:
        folder.close()
        raise
    return folder


def list_runs(study: Study) -> None:
    """Prints the points of a study and the number of runs."""
    from fedcli.cli.screen.text_screen import open_text_screen
    from fedcli.sweeps.halving import rungs
    from fedcli.sweeps.plans import first_points

    screen = open_text_screen()
    seeds = ", ".join(map(str, study.seeds))
    if study.search is not None:
        ranges = options_text({name: each.text() for name, each in study.ranges.items()})
        screen.line(f"{study.search} points by TPE from {ranges}; seeds {seeds}")
        return
    points = first_points(study)
    screen.table(["point", "options"], [(str(each.number), each.text) for each in points], 2)
    count = f"{_counted(len(points), 'point')} with {_counted(len(study.seeds), 'seed')} ({seeds})"
    screen.line("")
    screen.line(f"{count}: {_counted(len(points) * len(study.seeds), 'run')}")
    if study.halving is not None:
        left, parts = len(points), []
        for rounds in rungs(study.halving, points[0].configs[0].rounds):
            parts.append(f"{_counted(left, 'point')} to round {rounds}")
            left = max(1, left // study.halving.eta)
        screen.line("halving: " + ", ".join(parts))


def carry_out(folder: StudyFolder, options: SweepOptions, remarks: Remarks) -> list[dict[str, Any]]:
    """Runs the study in one worker thread. At a signal all runs save and the study ends."""
    from fedcli.cli.jobs.worker import run_stoppable
    from fedcli.core.native import CancelFlag

    cancel = CancelFlag()
    study_progress = StudyProgress()
    remarks.note(f"study {folder.path}")

    def job() -> list[dict[str, Any]]:
        with folder:
            return run_study(folder, options, cancel=cancel, study_progress=study_progress)

    def attend(worker: Worker[list[dict[str, Any]]]) -> None:
        _attend(worker, study_progress, remarks)

    def describe_stop() -> str:
        return (
            f"stopped and saved after {study_progress.finished} of "
            f"{plural(study_progress.total, 'run')}; {resume_command(folder.path, folder.study)} "
            "continues"
        )

    lines = run_stoppable(job, cancel=cancel, describe_stop=describe_stop, attend=attend)
    remarks.note(_summary(study_progress))
    return lines


def show(
    path: Path,
    study: Study,
    lines: Sequence[Mapping[str, Any]],
    spread: str,
    remarks: Remarks,
    *,
    as_json: bool,
) -> None:
    """Prints the tables of a study, or everything as JSON, or with -q only the folder."""
    members = study_tables.members_of(lines, path)
    tables = study_tables.groups_of(study, members)
    if as_json:
        from fedcli.cli.screen.output import print_json
        from fedcli.reports.group_tables import to_rows

        print_json({"study": str(path), "trials": list(lines), "points": to_rows(tables[-1])})
        return
    if remarks.verbosity == Verbosity.QUIET:
        print(one_line(str(path)))
        return
    from fedcli.cli.screen.group_screen import show_groups
    from fedcli.cli.screen.text_screen import open_text_screen

    screen = open_text_screen()
    note = study_tables.note_of_selection(study, members)
    show_groups(screen, tables, spread, [note] if note else [])
    screen.line("")
    screen.prose([("Study", str(path)), ("More", f"fedcli report {path}")])


def check_failures(
    folder: StudyFolder, lines: Sequence[Mapping[str, Any]], remarks: Remarks
) -> None:
    """If runs have failed, writes a line for each of them and raises RunError."""
    failed = failures(lines)
    for text in failed:
        remarks.note(text)
    if failed:
        raise RunError(
            f"{len(failed)} of {plural(len(lines), 'run')} failed; "
            f"{resume_command(folder.path, folder.study)} tries them again"
        )


def _counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural if it is not 1."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def _summary(study_progress: StudyProgress) -> str:
    parts = [_counted(study_progress.finished, "run")]
    for count, what in (
        (study_progress.earlier, "were there already"),
        (study_progress.reused, "reused from other folders"),
        (study_progress.diverged, "diverged"),
        (study_progress.failed, "failed"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return ", ".join(parts)


def _attend(worker: Worker[Any], study_progress: StudyProgress, remarks: Remarks) -> None:
    from fedcli.cli.jobs.live_line import can_redraw

    if remarks.verbosity == Verbosity.QUIET:
        worker.wait()
    elif can_redraw(sys.stderr):
        _draw(worker, study_progress, remarks)
    else:
        while not worker.wait(REFRESH_SECONDS):
            _log(study_progress, remarks)
        _log(study_progress, remarks)


def _log(study_progress: StudyProgress, remarks: Remarks) -> None:
    for line in study_progress.take_lines():
        progress = f" [{study_progress.finished}/{study_progress.total}]" if line.is_usual else ""
        remarks.note(f"{line.text}{progress}")


def _draw(worker: Worker[Any], study_progress: StudyProgress, remarks: Remarks) -> None:
    """Draws a bar for the study and a line for each run that trains."""
    from fedcli.cli.jobs.live_line import LiveLine, Part

    began, first = time.monotonic(), None
    with LiveLine(sys.stderr, remarks) as live:
        while not worker.wait(REFRESH_SECONDS):
            for line in study_progress.take_lines():
                if not line.is_usual or remarks.verbosity == Verbosity.VERBOSE:
                    live.above(f"fedcli: {one_line(line.text)}")
            position, total = study_progress.position, study_progress.total
            if first is None and study_progress.running:
                began, first = time.monotonic(), position
            parts = [
                Part(f"{count} {what}", 3)
                for count, what in (
                    (study_progress.earlier + study_progress.reused, "reused"),
                    (study_progress.diverged, "diverged"),
                    (study_progress.failed, "failed"),
                )
                if count
            ]
            if first is not None and position > first:
                left = (time.monotonic() - began) * (total - position) / (position - first)
                parts.append(Part(f"{clock(left)} left", 5))
            below = [
                _running_text(each)
                for each in list(study_progress.running.values())[:_MOST_RUNNING]
            ]
            title = f"run {study_progress.finished}/{total}" if total else "preparing the study"
            live.show(title, parts, position / total if total else None, below)


def _running_text(running: Any) -> str:
    loss = "" if running.loss is None else f"  loss {running.loss:.4f}"
    return one_line(
        f"  {running.number}: {running.text}  round {running.round_num}/{running.rounds}{loss}"
    )


def _pairs(given: Mapping[str, Any], name: str) -> dict[str, str]:
    """The texts after `K=` of a repeated option, by K. Raises ConfigError for another form."""
    option = {"grid": "--grid", "ranges": "--range"}[name]
    found: dict[str, str] = {}
    for text in given.get(name, ()):
        key, equals, value = (each.strip() for each in text.partition("="))
        if not equals or not key or not value:
            raise ConfigError(f"{option} {text!r} is not of the form option=values")
        if key in found:
            raise ConfigError(f"{option} {key} is given twice; give it once")
        found[key] = value
    return found


def _with_underscores(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with underscores in the names of options, as a study.toml has them."""
    return {key.removeprefix("--").replace("-", "_"): value for key, value in table.items()}


def _halving(text: str) -> dict[str, Any]:
    first, _, eta = text.partition(",")
    if not first.strip().isdecimal() or (eta and not eta.strip().isdecimal()):
        raise ConfigError(
            f"--halving {text}: give a number of rounds N, or N,ETA, as in 10 or 10,3"
        )
    return {"min_rounds": int(first), **({"eta": int(eta)} if eta else {})}
