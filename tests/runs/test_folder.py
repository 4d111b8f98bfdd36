from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fedcli.errors import ConfigError, RunError
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.folder import RunDirectory
from tests.kit.runs import scores
from tests.kit.training import snapshot

HOLD = """
import sys
from pathlib import Path
from fedcli.runs.files.folder import RunDirectory
with RunDirectory.open(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def create(path: Path, *, force: bool = False, config: str = "[run]\n") -> None:
    RunDirectory.create(path, config, b"state 0", force=force).close()


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    create(path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_appears_complete(path: Path) -> None:
    create(path)
    assert (path / "config.toml").read_text() == "[run]\n"
    assert run_dir.latest_checkpoint(path).read_bytes() == b"state 0"
    assert [each.name for each in path.parent.iterdir()] == ["one"]


def test_a_failure_during_creation_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"cannot make the run .*No space left on device"):
        create(path)
    assert list(path.parent.iterdir()) == []


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for size in (240, 300):  # with 240 characters, only the temporary name is too long
        with pytest.raises(RunError, match=r"cannot make the run .*; choose a shorter name$"):
            create(tmp_path / ("a" * size))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_place_needs_force(path: Path) -> None:
    create(path)
    with pytest.raises(RunError, match=r"exists; choose another --out, or --force to replace it"):
        create(path)
    create(path, force=True, config="[run]\nseed = 2\n")
    assert (path / "config.toml").read_text() == "[run]\nseed = 2\n"
    assert [each.name for each in path.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_replaces_nothing_but_a_run(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter").write_text("1")
    elif kind == "file":
        path.write_text("1")
    else:
        create(tmp_path / "run")
        path.symlink_to(tmp_path / "run")
    with pytest.raises(RunError, match="is not a run, so --force does not replace it"):
        create(path, force=True)
    assert path.exists()


def test_a_failed_replacement_keeps_the_old_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path, config="[run]\nseed = 1\n")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if target == path and not (self / "config.toml").read_text().endswith("1\n"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(RunError, match="Input/output error"):
        create(path, force=True)
    assert (path / "config.toml").read_text() == "[run]\nseed = 1\n"
    assert [each.name for each in path.parent.iterdir()] == ["one"]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is not a folder"):
        create(tmp_path / "file" / "run")
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(RunError, match="is not writable"):
            create(tmp_path / "run")


def test_a_second_process_is_refused(holder: subprocess.Popen[str], path: Path) -> None:
    for attempt in (lambda: RunDirectory.open(path), lambda: create(path, force=True)):
        with pytest.raises(RunError, match="is in use by another process"):
            attempt()


def test_the_lock_dies_with_its_process(holder: subprocess.Popen[str], path: Path) -> None:
    with pytest.raises(RunError, match="in use by another process"):
        RunDirectory.open(path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunDirectory.open(path) as run:
        assert run.path == path


def test_lines_are_written_at_once_and_non_finite_numbers_are_null(path: Path) -> None:
    create(path)
    with RunDirectory.open(path) as run:
        run.append_metrics({"round": 1, "loss": math.nan, "more": [math.inf, {"x": -math.inf}]})
        run.append_metrics({"round": 2, "loss": 0.1})
        assert run_dir.read_metrics(path) == [
            {"round": 1, "loss": None, "more": [None, {"x": None}]},
            {"round": 2, "loss": 0.1},
        ]


@pytest.mark.parametrize("rest", ["", '{"round": 4', '{"round": 4}\n{"rou', "junk\n", "[]\n"])
def test_cut_back_drops_later_and_broken_lines(path: Path, rest: str) -> None:
    create(path)
    lines = '{"round": 0}\n{"round": 1}\n{"round": 2}\n'
    (path / "metrics.jsonl").write_text(lines + '{"round": 3}\n' + rest)
    (path / "timings.jsonl").write_text('{"round": 1}\n{"round": 3}\n')
    with RunDirectory.open(path) as run:
        run.cut_back(2)
        run.append_metrics({"round": 3, "again": True})
    assert (path / "metrics.jsonl").read_text() == lines + '{"round": 3, "again": true}\n'
    assert (path / "timings.jsonl").read_text() == '{"round": 1}\n'


APPEND_UNTIL_FULL = """
import resource, signal, sys
from pathlib import Path
from fedcli.errors import RunError
from fedcli.runs.files.folder import RunDirectory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a limit of a file's size stands for a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with RunDirectory.open(Path(sys.argv[1])) as run:
    try:
        for number in range(1, 100):
            run.append_metrics({"round": number, "text": "x" * int(sys.argv[2])})
    except RunError as err:
        print(err)
"""


@pytest.mark.parametrize("length", [70, 71, 72, 73, 79, 170, 2000])
def test_a_full_disk_leaves_whole_lines_alone(path: Path, length: int) -> None:
    """The run has its own process, because the limit on file sizes cannot be raised again."""
    create(path)
    arguments = [sys.executable, "-c", APPEND_UNTIL_FULL, str(path), str(length)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert done.stdout == f"cannot write {path / 'metrics.jsonl'}: File too large\n"
    content = (path / "metrics.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    assert [json.loads(line)["round"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(line.endswith(b"\n") for line in lines)
    assert len(content) + (len(lines[-1]) if lines else length) > 1000 - 3  # the limit was reached


def test_a_line_without_its_end_is_not_taken_for_whole(path: Path) -> None:
    create(path)
    whole = json.dumps({"round": 1, "evaluation": {"test": scores(0.5, 0.5)}})
    (path / "metrics.jsonl").write_text(whole + "\n")
    assert len(run_dir.read_metrics(path)) == 1
    (path / "metrics.jsonl").write_text(whole)
    with pytest.raises(RunError, match=r"line 1 is cut short or damaged; .* --resume"):
        run_dir.read_metrics(path)


def test_cut_back_to_the_start_drops_round_0_too(path: Path) -> None:
    create(path)
    (path / "metrics.jsonl").write_text('{"round": 0}\n')
    with RunDirectory.open(path) as run:
        run.cut_back(0)
    assert (path / "metrics.jsonl").read_bytes() == b""


def test_cut_back_sweeps_what_a_killed_save_left(path: Path) -> None:
    create(path)
    (path / "metrics.jsonl").write_text('{"round": 0}\n')
    left = path / "checkpoints" / ".round-000001.h5.0123456789ab.tmp"
    left.write_bytes(b"half")
    before = set((path / "checkpoints").iterdir()) - {left}
    with RunDirectory.open(path) as run:
        run.cut_back(0)
    assert set((path / "checkpoints").iterdir()) == before


def test_lost_metrics_are_reported_and_nothing_is_cut(path: Path) -> None:
    create(path)
    (path / "metrics.jsonl").write_text('{"round": 1}\njunk\n')
    with RunDirectory.open(path) as run, pytest.raises(RunError, match="ends with round 1"):
        run.cut_back(2)
    assert (path / "metrics.jsonl").read_text() == '{"round": 1}\njunk\n'


def test_the_newest_checkpoints_are_kept(path: Path) -> None:
    create(path)
    with RunDirectory.open(path) as run:
        for round_num in (5, 999_999, 1_000_000):
            run.save_checkpoint(round_num, b"state %d" % round_num)
            run.drop_checkpoints(num_kept=2, best_round=None)
    names = [each.name for each in run_dir.find_checkpoints(path)]
    assert names == ["round-999999.h5", "round-1000000.h5"]
    assert run_dir.latest_checkpoint(path).read_bytes() == b"state 1000000"


@pytest.mark.parametrize("num_kept", [1, 3])
def test_the_best_is_kept_beside_the_newest(path: Path, num_kept: int) -> None:
    create(path)
    with RunDirectory.open(path) as run:
        for round_num in range(1, 8):
            best = 2 if round_num < 7 else 7
            run.save_checkpoint(round_num, b"state")
            run.drop_checkpoints(num_kept=num_kept, best_round=best)
            newest = [each for each in range(8) if each <= round_num][-num_kept:]
            kept = sorted({*newest, *([best] if best <= round_num else [])})
            assert run_dir.checkpoint_rounds(path) == kept


def test_an_interrupted_save_leaves_the_old_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    create(path)
    with RunDirectory.open(path) as run:
        run.save_checkpoint(5, b"state 5")
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(RunError, match=r"cannot write .*round-000006.h5: No space left"):
            run.save_checkpoint(6, b"state 6")
    names = sorted(each.name for each in (path / "checkpoints").iterdir())
    assert names == ["round-000000.h5", "round-000005.h5"]
    assert run_dir.latest_checkpoint(path).read_bytes() == b"state 5"


def test_opening_and_closing_changes_nothing(path: Path) -> None:
    create(path)
    before = snapshot(path)
    with RunDirectory.open(path):
        pass
    assert snapshot(path) == before


def test_a_run_replaced_while_it_is_being_locked_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path)
    lock = fcntl.flock

    def replace_and_lock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        create(path, force=True)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    with pytest.raises(RunError, match="just been replaced"):
        RunDirectory.open(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for attempt in (RunDirectory.open, run_dir.latest_checkpoint):
        with pytest.raises(RunError, match="there is no run"):
            attempt(tmp_path / "none")
        with pytest.raises(RunError, match="is not a run"):
            attempt(tmp_path)


def test_evaluation_is_written_whole_and_read(path: Path) -> None:
    create(path)
    assert run_dir.read_evaluation(path) is None
    told = {
        "client_work": {"eval": {"current_round_metrics": scores(0.5, math.nan)}},
        **{"split": "test", "round": 3, "num_clients": 2, "num_absent_clients": 0},
        "over_clients": {"num_clients": 2, "loss": {"mean": 0.1}},
        "attack": {"attack_success_rate": 0.7, "class_recall": [0.5, math.nan]},
    }
    with RunDirectory.open(path) as run:
        run.write_evaluation({"test": told})
    text = (path / "evaluation.json").read_text()
    wanted = json.loads(json.dumps(told).replace("NaN", "null"))
    assert run_dir.read_evaluation(path) == json.loads(text) == {"test": wanted}
    others = (
        *("{", "[]", "null", '{"test": 3}', "[" * 100_000),
        *(text.replace('"loss": null', each) for each in ('"loss": "0.1"', '"other": 0.1')),
        *(text.replace('"round": 3', each) for each in ('"round": null', '"rounds": 3')),
        *(text.replace('"mean": 0.1', f'"mean": {each}') for each in ("[0.1]", "NaN", "1e999")),
        text.replace('"round": 3', '"round": 1' + "0" * 400),
        *(
            text.replace('"class_recall": [', f'"class_recall": [{each}, ')
            for each in ('"x"', "[]")
        ),
        *(text.replace('"attack_success_rate": 0.7', each) for each in ('"a": 0', '"a": "x"')),
    )
    for other in others:
        assert other != text
        (path / "evaluation.json").write_text(other)
        with pytest.raises(RunError, match="delete it"):
            run_dir.read_evaluation(path)


TRAIN = json.dumps({"train": {**scores(0.1, 0.2), "num_non_finite_clients": 0}})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", "{}", '{"round": "1"}', '{"round": 1}\n3', '{"round": 2}', "[" * 100_000),
        *('{"round": 1}\n{"round": 3}', '{"round": 1}\n{"round": 1}', '{"round": 1}\n\n'),
        *('{"round": 1, "client_work": 3}', '{"round": 1, "client_work": {"train": {}}}'),
        *(TRAIN.replace("0.1", each) for each in ('"0.1"', "[0.1]", "NaN", "-1e999", "9" * 400)),
        '{"round": 1, "evaluation": {"test": {"loss": 0.1}}}',
        '{"round": 1, "participation": {"virtual_seconds": "3"}}',
        '{"round": 1, "participation": {"num_selected": 3}}',
        *('{"round": 1, "updates": []}', '{"round": 1, "updates": {"compress": {"num_sent": 1}}}'),
        '{"round": 1, "updates": {"compress": {"num_sent": 1, "payload_bytes": null}}}',
        '{"round": 1, "updates": {"attack": {"attackers_in_cohort": 1, "attackers_kept": "1"}}}',
        *('{"round": 1, "aggregator": 3}', '{"round": 1, "aggregator": {"secure_sum": {}}}'),
    ],
)
def test_metrics_of_another_kind_are_reported(path: Path, text: str) -> None:
    create(path)
    if text.startswith('{"train"'):
        text = f'{{"round": 1, "client_work": {text}}}'
    (path / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        run_dir.read_metrics(path)


def test_of_timings_what_is_a_finite_number_is_read(path: Path) -> None:
    create(path)
    line = '{"round": 1, "peak_memory_bytes": 1e999, "train": NaN, "save": 0.5, "eval": "x"}'
    (path / "timings.jsonl").write_text(f'{line}\n[1]\n{{"round": {"9" * 400}}}\n')
    assert run_dir.read_timings(path) == [{"round": 1, "save": 0.5}, {}]


def test_read_config_takes_a_file_or_a_run(path: Path, tmp_path: Path) -> None:
    create(path, config="[run]\nseed = 3\n")
    assert run_dir.read_config(path) == run_dir.read_config(path / "config.toml") == {"seed": 3}
    with pytest.raises(ConfigError, match="No such file"):
        run_dir.read_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        run_dir.read_config(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("synthetic-digits", "20260102-030405-synthetic-digits-scaffold-s7"),
        ("/data/my file.h5", "20260102-030405-my-file-scaffold-s7"),
        ("..", "20260102-030405-scaffold-s7"),
        ("x" * 200, f"20260102-030405-{'x' * 60}-scaffold-s7"),
    ],
)
def test_default_out_says_time_data_algorithm_and_seed(name: str, folder: str) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert run_dir.default_out(now, name, "scaffold", 7) == Path("runs") / folder


def test_a_default_name_that_is_taken_is_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 11, 22, 16, 15, 0, tzinfo=timezone.utc)
    first = run_dir.default_out(now, "digits", "fedavg", 0)
    first.mkdir(parents=True)
    second = run_dir.default_out(now, "digits", "fedavg", 0)
    second.mkdir()
    assert second.name == f"{first.name}-2"
    assert run_dir.default_out(now, "digits", "fedavg", 0).name == f"{first.name}-3"
