"""Outputs: files that are replaced, pipes and devices, and the files of killed processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedcli import outputs
from fedcli.errors import RunError
from fedcli.outputs import (
    check_output,
    link_note,
    output_file,
    replacing,
    write_atomic,
    write_output,
)

LEFT = re.compile(r"\..*\.tmp")


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_regular_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in (b"first", b"second", b""):
        write_output(tmp_path / "out.csv", content)
        assert (tmp_path / "out.csv").read_bytes() == content
    assert names(tmp_path) == ["out.csv"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), output_file(path) as file:  # noqa: PT012
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.csv"]


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "target.csv"
    target.write_bytes(b"old")
    link = tmp_path / "link.csv"
    link.symlink_to("there/target.csv")
    check_output(link)
    write_output(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["target.csv"]
    assert link_note(link) == f"{link} is a link; wrote {target.resolve()}, where it leads"
    assert link_note(target) is None


def test_a_link_to_nothing_makes_what_it_names(tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to("made.csv")
    write_output(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "made.csv").read_bytes() == b"new"


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("kind", ["folder", "socket", "ring of links"])
def test_other_kinds_are_refused_and_stay(tmp_path: Path, kind: str, through_link: bool) -> None:
    path = tmp_path / "out.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(tmp_path)
            bound.bind("out.csv")
    else:
        path.symlink_to("out.csv")
    before = path.lstat()
    given = path
    if through_link:
        given = tmp_path / "link.csv"
        given.symlink_to("out.csv")
    for write in (check_output, lambda each: write_output(each, b"new")):
        with pytest.raises(RunError, match=r"not a regular file|symbolic links"):
            write(given)
    assert os.path.samestat(path.lstat(), before)
    assert not list(filter(LEFT.fullmatch, names(tmp_path)))


def test_a_device_is_written_through_to_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "null.csv"
    link.symlink_to(os.devnull)
    before = Path(os.devnull).stat()
    for path in (link, Path(os.devnull)):
        write_output(path, b"x" * 100_000)
    assert link.is_symlink()
    assert os.path.samestat(Path(os.devnull).stat(), before)


def test_a_named_pipe_gets_the_content(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"x" * 300_000)  # more than a pipe holds
    reader.join(30)
    assert read == [b"x" * 300_000]
    assert names(tmp_path) == ["pipe.csv"]


def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "READER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(RunError, match="no program has read the pipe"):
        write_output(tmp_path / "pipe.csv", b"content")


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("to_pipe", [False, True])
def test_stdout_by_name_is_stdout_behind_what_was_printed(
    tmp_path: Path, name: str, to_pipe: bool
) -> None:
    if not os.path.lexists("/dev/stdout"):
        pytest.skip("no /dev/stdout here")
    (tmp_path / "link").symlink_to("/proc/self/fd/1" if Path("/proc/self/fd").is_dir() else name)
    code = (
        "import sys; from pathlib import Path; from fedcli.outputs import write_output\n"
        f"print('before'); write_output(Path({name!r}), b'content\\n'); print('after')"
    )
    with (tmp_path / "shown").open("wb") as shown:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE if to_pipe else shown,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(outputs.__file__).parent.parent)},
            check=True,
        )
    text = done.stdout if to_pipe else (tmp_path / "shown").read_bytes()
    assert text == b"before\ncontent\nafter\n"
    assert names(tmp_path) == ["link", "shown"]


def test_in_a_folder_of_ours_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    for name in ("write", "append"):
        (tmp_path / name).symlink_to(outside)
    with pytest.raises(RunError, match="not a regular file"):
        write_atomic(tmp_path / "write", b"new")
    with pytest.raises(RunError, match="not a regular file"):
        outputs.open_to_append(tmp_path / "append")
    assert outside.read_bytes() == b"precious"


# ---- Files of killed processes -----------------------------------------------------------------


KILLED = """
import os, signal
from pathlib import Path
from fedcli.outputs import replacing, scratch_folder
with {call} as made:
    (made / "file" if made.is_dir() else made).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_inside(call: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(call=call)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(outputs.__file__).parent.parent)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    others = [".out.h5.tmp", ".out.h5.0123.tmp", ".other.h5.0123456789ab.tmp", "out.h5.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody else's")
    kill_inside("replacing(Path('out.h5'))", tmp_path)
    assert len(names(tmp_path)) == len(others) + 1
    with replacing(tmp_path / "out.h5") as living:
        living.write_bytes(b"first")
        write_atomic(tmp_path / "out.h5", b"second")  # while the first is open
        assert living.exists()
    assert names(tmp_path) == sorted([*others, "out.h5"])
    assert (tmp_path / "out.h5").read_bytes() == b"first"


def test_the_next_scratch_folder_removes_what_killed_ones_left(tmp_path: Path) -> None:
    (tmp_path / ".fedcli-x-mine").mkdir()
    kill_inside("scratch_folder(Path(), '.fedcli-x-')", tmp_path)
    assert len(names(tmp_path)) == 2
    with outputs.scratch_folder(tmp_path, ".fedcli-x-") as living:
        (living / "file").write_bytes(b"")
        with outputs.scratch_folder(tmp_path, ".fedcli-x-"):
            assert (living / "file").exists()
            assert len(names(tmp_path)) == 3
    assert names(tmp_path) == [".fedcli-x-mine"]
