"""Verifies a run: trains it again in a temporary folder and compares the results.

A run's config, seed and data determine its metrics, evaluation and weights to the byte on one
instruction set, for any number of threads. So equal bytes prove that the figures belong to the
config; otherwise the first difference is reported. On another instruction set, or with another
version of fedcli, sums are rounded differently, so numbers are compared within `TOLERANCE`.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcli import datasets, settings
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.digest import blake2b
from fedcli.errors import RunError
from fedcli.files import read_bounded
from fedcli.models.metrics import flatten
from fedcli.runs import starting
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.saved_states import parts_to_run
from fedcli.runs.loop import RoundResult, Training
from fedcli.runs.provenance import check_streams
from fedcli.settings.data_source import IN_MEMORY
from fedcli.settings.run_config import CODE_FIELDS, RunConfig
from fedcli.settings.tables.engines import THREADS
from fedcli.version import __version__

# The relative difference that is allowed between numbers of different instruction sets or versions,
# and the absolute difference for numbers near 0. For a weight, the difference is relative to the
# largest weight of its tensor.
TOLERANCE = 1e-3

# A bundle has this file, because it may lack the weights of the last round.
WEIGHTS_DIGEST = Path(run_dir.CHECKPOINTS, "weights.blake2b")
_MAX_DIGEST_BYTES = 4096

OnRound = Callable[[RoundResult], object]


class Difference(NamedTuple):
    """The first difference between a run and its repetition.

    Attributes:
        file: The file that differs, or `weights`.
        round_num: The round; None if the file does not belong to one round.
        field: The name of the value, such as `client_work/train/loss`.
        recorded: The value in the run.
        recomputed: The value in the repetition.
    """

    file: str
    round_num: int | None
    field: str
    recorded: Any
    recomputed: Any

    def __str__(self) -> str:
        """Returns the difference as part of a sentence."""
        at = "" if self.round_num is None else f", round {self.round_num:,}"
        return f"{self.file}{at}: {self.field} is {self.recorded}, recomputed {self.recomputed}"


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        path: The run's folder.
        num_rounds: The number of rounds that were trained again.
        compared: The compared parts: `metrics.jsonl`, `evaluation.json`, `weights`.
        unlike: Why numbers are compared within the tolerance only; empty if bytes are compared.
        difference: The first difference; None if there is none.
    """

    path: Path
    num_rounds: int
    compared: tuple[str, ...]
    unlike: str = ""
    difference: Difference | None = None

    @property
    def is_verified(self) -> bool:
        """Whether nothing differs."""
        return self.difference is None


def verify_run(
    path: Path,
    *,
    threads: int | None = None,
    data: str | None = None,
    test_data: str | None = None,
    code: Mapping[str, str] | None = None,
    from_checkpoint: bool = False,
    on_round: OnRound | None = None,
    cancel: CancelFlag | None = None,
) -> Verification:
    """Trains a run again by threads and compares the results. The run itself is not changed.

    Args:
        path: The run's folder, or its folder in a bundle, which may have no checkpoint. A run that
            stopped early is verified up to its last completed round.
        threads: Number of threads, which changes no result; None for that of the config.
        data: The new path of the run's data; None if they were not moved.
        test_data: The new path of its test data; None if they were not moved.
        code: FILE.py for each part of the run that is a user's code, by field.
        from_checkpoint: Train only the rounds after the oldest checkpoint that is kept.
        on_round: Called with the result of each round, for progress.
        cancel: A flag that any thread may set to stop the training within a local step.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: The config is invalid, or code is not named.
        DataError: The data are missing or bad.
        OwnCodeError: The user's own code fails.
        RunError: A file is missing or damaged, or the data are not those of the run.
    """
    run_dir.check_is_run(path)
    config = _config_of(path, threads, data, test_data, code or {}, from_checkpoint)
    origin = run_dir.read_origin(path)
    check_streams(config, origin, path)
    last = _last_round(path)
    with tempfile.TemporaryDirectory(prefix="fedcli-verify-") as scratch:
        again = Path(scratch) / "run"
        first = 0
        if from_checkpoint:
            first = _copy_beginning(path, again)
            named: Any = dict(code or {})
            opened = starting.resume(
                again,
                threads=threads,
                engine=THREADS,
                data=data,
                test_data=test_data,
                cancel=cancel,
                **named,
            )
        else:
            opened = starting.start(config, again, cancel=cancel)
        with opened as training:
            _check_data(config, path, origin)
            _train_to(training, last, on_round, is_evaluated=_closing(path, last) is not None)
        return replace(_compared(path, again, last, _unlike(origin)), num_rounds=last - first)


def _copy_beginning(path: Path, again: Path) -> int:
    """Copies a run as it was at its oldest checkpoint, and returns the round of this checkpoint.

    Raises:
        RunError: There is only one checkpoint.
    """
    rounds = run_dir.checkpoint_rounds(path)
    if len(rounds) < 2:
        raise RunError(
            f"{path} keeps no earlier checkpoint to start from; verify it from its first round, "
            "or train with --keep-checkpoints 2 or more"
        )
    later = {run_dir.checkpoint_name(each) for each in rounds[1:]}
    left_out = shutil.ignore_patterns(*later, run_dir.EVALUATION, run_dir.LOCK)
    shutil.copytree(path, again, ignore=left_out)
    return rounds[0]


def _config_of(
    path: Path,
    threads: int | None,
    data: str | None,
    test_data: str | None,
    code: Mapping[str, str],
    from_checkpoint: bool,
) -> RunConfig:
    """The config of the repetition; only places of files, threads and the engine may differ."""
    config = settings.from_options(run_dir.read_config(path))
    for name in ("data", "model"):
        if str(getattr(config, name)).startswith(IN_MEMORY):
            raise RunError(
                f"{path}: its {name}, {getattr(config, name)}, was an object in a Python program, "
                "so the run cannot be repeated from its folder; repeat it in that program"
            )
    if any(".py" in str(getattr(config, name)) for name in CODE_FIELDS):
        from fedcli.settings.own import permission  # lazy: few runs have code

        fields = CODE_FIELDS
        if from_checkpoint:  # it may hold the whole model
            fields = parts_to_run(checkpoint.load(run_dir.latest_checkpoint(path)), config)
        config = permission.with_code(config, code, fields)
    return replace(
        config.computed_by_threads(config.threads if threads is None else threads),
        data=config.data if data is None else data,
        test_data=config.test_data if test_data is None else test_data,
    )


def _last_round(path: Path) -> int:
    """The last round whose results can be compared."""
    lines = run_dir.read_metrics(path)
    if not lines or not lines[-1]["round"]:
        raise RunError(f"{path} has no completed round; there is nothing to verify")
    checkpoints = run_dir.checkpoint_rounds(path)
    return checkpoints[-1] if checkpoints else int(lines[-1]["round"])


def _check_data(config: RunConfig, path: Path, origin: Mapping[str, Any]) -> None:
    """Rejects other data than those of the run."""
    now = datasets.fingerprint(config.data_source)
    if origin.get("data") not in (None, now):
        raise RunError(
            f"{path} was trained on other data: their fingerprint is {origin['data']}, but the "
            f"fingerprint of {config.data} is {now}; give the run's data with --data"
        )


def _train_to(
    training: Training, last: int, on_round: OnRound | None, *, is_evaluated: bool
) -> None:
    """Trains up to a round; makes the closing evaluation if the verified run has one."""
    with closing(training.run()) as results:
        for result in results:
            if on_round is not None:
                on_round(result)
            if result.round_num >= last:
                break
    if is_evaluated:
        training.finish()


def _closing(path: Path, last: int) -> dict[str, Any] | None:
    """Returns the content of evaluation.json if it is of this round; else None."""
    stored = run_dir.read_evaluation(path)
    if not stored or any(each.get("round") != last for each in stored.values()):
        return None
    return stored


def _unlike(origin: Mapping[str, Any]) -> str:
    """Returns why a run's bytes cannot be reproduced here; empty if they can."""
    reasons = [
        f"it was trained with {what} {before}, now it is {now}"
        for what, before, now in (
            ("instruction set", origin.get("isa"), native.isa_name()),
            ("fedcli", origin.get("fedcli"), __version__),
        )
        if before != now
    ]
    return " and ".join(reasons)


def _compared(path: Path, again: Path, last: int, unlike: str) -> Verification:
    """Compares the files of two runs one by one, and stops at the first difference."""
    compared: list[str] = []
    difference = None
    for name, compare in (
        (run_dir.METRICS, _compare_metrics),
        (run_dir.EVALUATION, _compare_evaluations),
        ("weights", _compare_weights),
    ):
        differences = compare(path, again, last, bool(unlike))
        if differences is _ABSENT:
            continue
        compared.append(name)
        difference = next(differences, None)
        if difference is not None:
            break
    return Verification(path, last, tuple(compared), unlike, difference)


_ABSENT: Iterator[Difference] = iter(())  # the run has no such file


def _compare_metrics(path: Path, again: Path, last: int, is_unlike: bool) -> Iterator[Difference]:
    recorded, recomputed = (
        [line for line in run_dir.read_metrics(each) if line["round"] <= last]
        for each in (path, again)
    )
    if len(recorded) != len(recomputed):
        yield Difference(run_dir.METRICS, None, "lines", len(recorded), len(recomputed))
    for before, after in zip(recorded, recomputed, strict=False):
        yield from _differences(run_dir.METRICS, before["round"], before, after, is_unlike)


def _compare_evaluations(
    path: Path, again: Path, last: int, is_unlike: bool
) -> Iterator[Difference]:
    recorded = _closing(path, last)
    if recorded is None:
        return _ABSENT
    recomputed = run_dir.read_evaluation(again) or {}
    return _differences(run_dir.EVALUATION, last, recorded, recomputed, is_unlike)


def _differences(
    file: str,
    round_num: int,
    recorded: Mapping[str, Any],
    recomputed: Mapping[str, Any],
    is_unlike: bool,
) -> Iterator[Difference]:
    """Yields the values of nested maps that differ. Equal text means equal numbers, to the bit."""
    before, after = flatten(recorded), flatten(recomputed)
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "missing"), after.get(name, "missing")
        if json.dumps(old) != json.dumps(new) and not (is_unlike and _is_near(old, new)):
            yield Difference(file, round_num, name, old, new)


def _is_near(old: Any, new: Any) -> bool:
    """Whether two values are numbers within the tolerance."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_near, old, new))
    if isinstance(old, str | None) or isinstance(new, str | None):
        return False
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _compare_weights(path: Path, again: Path, last: int, is_unlike: bool) -> Iterator[Difference]:
    recomputed = _weights_at(again, last)
    if run_dir.checkpoint_rounds(path):
        return _differing_tensors(_weights_at(path, last), recomputed, last, is_unlike)
    digest = path / WEIGHTS_DIGEST
    if is_unlike or not digest.is_file():
        return _ABSENT
    before = read_bounded(digest, _MAX_DIGEST_BYTES).decode("ascii", "replace").strip()
    now = weights_digest(recomputed)
    different = Difference("weights", last, "their BLAKE2b", before, now)
    return iter([different] if before != now else [])


def _weights_at(path: Path, round_num: int) -> Mapping[str, Any]:
    """The global weights of a round's checkpoint, by tensor."""
    file = path / run_dir.CHECKPOINTS / run_dir.checkpoint_name(round_num)
    return checkpoint.load(file).components["global_model_weights"]


def _differing_tensors(
    recorded: Mapping[str, Any], recomputed: Mapping[str, Any], round_num: int, is_unlike: bool
) -> Iterator[Difference]:
    for name in dict.fromkeys([*recorded, *recomputed]):
        old, new = np.asarray(recorded.get(name, ())), np.asarray(recomputed.get(name, ()))
        if old.shape != new.shape:
            yield Difference("weights", round_num, f"shape of {name}", old.shape, new.shape)
        elif old.tobytes() != new.tobytes():
            apart = np.abs(old.astype(np.float64) - new)
            if is_unlike and apart.max() <= TOLERANCE * np.abs(old).max():
                continue
            worst = np.unravel_index(int(np.argmax(apart)), old.shape)
            where = f"{name}[{', '.join(map(str, worst))}]"
            yield Difference("weights", round_num, where, float(old[worst]), float(new[worst]))


def weights_digest(weights: Mapping[str, Any]) -> str:
    """Returns the BLAKE2b of the tensors in order of their names, as hexadecimal digits."""
    digest = blake2b(digest_size=32)
    for name, tensor in sorted(weights.items()):
        array = np.ascontiguousarray(tensor)
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
