"""`fedcli verify` and `fedcli bundle`: others can check that a run gives the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.core import native
from fedcli.runs import verifying
from fedcli.runs.files import checkpoint
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.training import move_to_a_lost_cluster, snapshot

SMALL = ("--rounds", 3, "--epochs", 1, "--clients", 3, "--threads", 1, "-q")


def train(fedcli: Fedcli, name: str, *options: object) -> Path:
    assert fedcli("train", *SMALL, *options, "--out", f"runs/{name}").code == 0
    return Path("runs") / name


def change(path: Path, place: tuple[str, ...], to: Any, line_num: int = 1) -> None:
    """Sets a value in a line of metrics.jsonl."""
    lines = path.read_text().splitlines()
    whole = json.loads(lines[line_num])
    part = whole
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = to
    lines[line_num] = json.dumps(whole)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--eval-every", 1, "--sampling", "uniform"),
        ("--algorithm", "scaffold", "--client-weighting", "uniform"),
        ("--aggregator", "median"),
    ],
    ids=["fixed", "uniform", "scaffold", "median"],
)
def test_a_run_is_verified_with_any_number_of_threads(
    fedcli: Fedcli, options: tuple[object, ...]
) -> None:
    run = train(fedcli, "a", *options)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    done = fedcli("verify", run, "--threads", 2, "--json")
    assert done.code == 0
    told = json.loads(done.out)["runs"][0]
    assert told["verified"]
    assert told["exact"]
    assert told["compared"] == ["metrics.jsonl", "evaluation.json", "weights"]
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_the_first_value_that_differs_is_told(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    change(run / "metrics.jsonl", ("client_work", "train", "loss"), 2.5)
    done = fedcli("verify", run)
    assert done.code == 1
    assert "metrics.jsonl, round 2: client_work/train/loss is 2.5, recomputed " in done.out
    assert "DIFFERS" in done.out
    quiet = fedcli("verify", run, "-q")
    assert (quiet.code, "DIFFERS" in quiet.out) == (1, True)


def test_a_changed_evaluation_is_told(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    file = run / "evaluation.json"
    content = json.loads(file.read_text())
    content["test"]["client_work"]["eval"]["current_round_metrics"]["accuracy"] = 0.99
    file.write_text(json.dumps(content))
    done = fedcli("verify", run, "--json")
    told = json.loads(done.out)["runs"][0]["difference"]
    assert done.code == 1
    assert told["file"] == "evaluation.json"
    assert told["field"].endswith("accuracy")
    assert told["recorded"] == 0.99


def test_changed_weights_are_told(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    file = max((run / "checkpoints").glob("*.h5"))
    content = checkpoint.load(file)
    kernel = content.components["global_model_weights"]["dense/kernel"]
    assert isinstance(kernel, np.ndarray)
    kernel[3, 2] += 1.0
    file.write_bytes(checkpoint.encode(content))
    done = fedcli("verify", run)
    assert done.code == 1
    assert "weights, round 3: dense/kernel[3, 2] is " in done.out


def test_an_unfinished_run_is_verified_as_far_as_it_goes(fedcli: Fedcli) -> None:
    run = train(fedcli, "a", "--checkpoint-every", 1, "--keep-checkpoints", 9)
    (run / "evaluation.json").unlink()
    (run / "checkpoints" / "round-000003.h5").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    told = json.loads(fedcli("verify", run, "--json").out)["runs"][0]
    assert (told["verified"], told["rounds"]) == (True, 2)
    assert told["compared"] == ["metrics.jsonl", "weights"]


def test_the_rounds_after_a_checkpoint_are_verified_alone(fedcli: Fedcli) -> None:
    options = ("--checkpoint-every", 1, "--keep-checkpoints", 2, "--algorithm", "scaffold")
    run = train(fedcli, "a", *options, "--client-weighting", "uniform")
    done = fedcli("verify", run, "--from-checkpoint", "--json")
    told = json.loads(done.out)["runs"][0]
    assert (told["verified"], told["rounds"]) == (True, 1)
    assert told["compared"] == ["metrics.jsonl", "evaluation.json", "weights"]
    change(run / "metrics.jsonl", ("client_work", "train", "loss"), 2.5, line_num=2)
    assert "metrics.jsonl, round 3" in fedcli("verify", run, "--from-checkpoint").out
    lone = train(fedcli, "b", "--keep-checkpoints", 1)
    assert_is_one_line(fedcli("verify", lone, "--from-checkpoint"), "--keep-checkpoints 2 or more")


def test_a_run_on_a_cluster_is_verified_by_threads(fedcli: Fedcli) -> None:
    run = train(fedcli, "a", "--checkpoint-every", 1)
    move_to_a_lost_cluster(run)
    before = snapshot(run)
    for option, num_rounds in (("-q", 3), ("--from-checkpoint", 1)):
        told = json.loads(fedcli("verify", run, option, "--json").out)["runs"][0]
        assert (told["verified"], told["exact"], told["rounds"]) == (True, True, num_rounds)
        assert told["compared"] == ["metrics.jsonl", "evaluation.json", "weights"]
    assert snapshot(run) == before


def test_another_instruction_set_is_compared_within_a_tolerance(
    fedcli: Fedcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this variable, `verify` would set it for this process, and so for all later tests.
    monkeypatch.setenv("FEDCLI_ISA", native.isa_name())
    run = train(fedcli, "a")
    other = "generic" if native.isa_name() != "generic" else "avx2"
    config = run / "config.toml"
    config.write_text(config.read_text().replace(f'"{native.isa_name()}"', f'"{other}"'))
    told = json.loads(fedcli("verify", run, "--json").out)["runs"][0]
    assert told["verified"]
    assert not told["exact"]
    assert other in told["unlike"]
    change(run / "metrics.jsonl", ("client_work", "train", "loss"), 2.5)
    assert fedcli("verify", run).code == 1


@pytest.mark.skipif(len(native.isa_names()) < 2, reason="one instruction set only")
def test_a_run_is_repeated_with_its_own_instruction_set(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "FEDCLI_ISA": "generic", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = ":".join(filter(None, sys.path))
    command = [sys.executable, "-m", "fedcli"]
    subprocess.run(
        [*command, "train", *map(str, SMALL), "--out", "b"],
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    del environment["FEDCLI_ISA"]
    done = subprocess.run(
        [*command, "verify", "b", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    told = json.loads(done.stdout)["runs"][0]
    assert told["verified"]
    assert told["exact"]


@pytest.mark.skipif(len(native.isa_names()) < 2, reason="one instruction set only")
def test_a_run_of_another_instruction_set_is_shown_with_a_command(fedcli: Fedcli) -> None:
    train(fedcli, "a")
    run = train(fedcli, "b")
    other = next(each for each in native.isa_names() if each != native.isa_name())
    config = run / "config.toml"
    config.write_text(config.read_text().replace(f'"{native.isa_name()}"', f'"{other}"'))
    done = fedcli("verify", "runs")
    assert "runs/a: " not in done.out
    assert done.out.endswith(
        f"runs/b: it was trained with instruction set {other}, now it is {native.isa_name()}, so "
        "differences up to 0.1 % are allowed.\n"
        f"To repeat it with its own instruction set: FEDCLI_ISA={other} fedcli verify runs/b\n"
    )
    config.write_text(config.read_text().replace(f'"{other}"', '"another"'))
    assert "FEDCLI_ISA" not in fedcli("verify", "runs").out


def test_other_data_are_refused(fedcli: Fedcli) -> None:
    run = train(fedcli, "a", "--data", "synthetic-digits", "--data-option", "clients=5")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("clients = 5", "clients = 6"))
    done = fedcli("verify", run)
    assert done.code == 1
    assert_is_one_line(done)
    assert "was trained on other data: their fingerprint is " in done.err


def test_code_is_run_only_if_it_is_named(fedcli: Fedcli) -> None:
    Path("halves.py").write_text(
        "import numpy as np\n"
        "from fedcli.aggregators import SUM\n\n\n"
        "class Half:\n"
        "    def init(self):\n        return {}\n\n"
        "    def request(self, state):\n        return SUM\n\n"
        "    def aggregate(self, state, deltas):\n"
        "        return deltas.weighted_mean() / 2, {}, {}\n"
    )
    run = train(fedcli, "a", "--aggregator", "halves.py")
    refused = fedcli("verify", run)
    assert refused.code == 1
    assert "--aggregator" in refused.err
    assert fedcli("verify", run, "--aggregator", "halves.py").code == 0


def test_some_runs_of_a_folder_are_verified(fedcli: Fedcli) -> None:
    for name in "abcd":
        train(fedcli, name)
    done = fedcli("verify", "runs", "--sample", 2, "--json")
    assert [each["run"] for each in json.loads(done.out)["runs"]] == ["runs/a", "runs/c"]


@pytest.mark.parametrize("path", ["nothing", "empty"])
def test_a_folder_without_runs_is_told(fedcli: Fedcli, path: str) -> None:
    Path("empty").mkdir()
    for command in (("verify", path), ("bundle", path, "b.zip")):
        done = fedcli(*command)
        assert done.code == 1
        assert_is_one_line(done)
    assert not Path("b.zip").exists()


def test_a_bundle_is_unpacked_before_it_is_verified(fedcli: Fedcli) -> None:
    train(fedcli, "a")
    assert fedcli("bundle", "runs/a", "b.zip").code == 0
    done = fedcli("verify", "b.zip")
    assert done.code == 1
    assert_is_one_line(done, "b.zip is a file", "unpack")


def test_a_bundle_has_text_alone_and_can_be_verified(fedcli: Fedcli) -> None:
    for name in "ab":
        train(fedcli, name)
    assert fedcli("bundle", "runs", "first.zip").code == 0
    assert fedcli("bundle", "runs", "second.zip").code == 0
    assert Path("first.zip").read_bytes() == Path("second.zip").read_bytes()
    with zipfile.ZipFile("first.zip") as archive:
        names = archive.namelist()
        digests = json.loads(archive.read("digests.json"))
        archive.extractall("unpacked")
    assert names == sorted(names)
    assert not [name for name in names if name.endswith(".h5")]
    assert set(digests) == set(names) - {"digests.json"}
    done = fedcli("verify", "unpacked", "--json")
    assert done.code == 0
    for run in json.loads(done.out)["runs"]:
        assert run["compared"] == ["metrics.jsonl", "evaluation.json", "weights"]
    digest = Path("unpacked/a/checkpoints/weights.blake2b")
    digest.write_text("0" * 64 + "\n")
    assert "weights, round 3: their BLAKE2b is 000" in fedcli("verify", "unpacked/a").out


def test_a_bundle_with_weights_can_be_evaluated(fedcli: Fedcli) -> None:
    run = train(fedcli, "a")
    done = fedcli("bundle", run, "a.zip", "--weights", "--json")
    assert "a/checkpoints/round-000003.h5" in json.loads(done.out)["members"]
    with zipfile.ZipFile("a.zip") as archive:
        archive.extractall("unpacked")
    assert fedcli("eval", "unpacked/a", "--json").out == fedcli("eval", run, "--json").out
    assert fedcli("verify", "unpacked/a").code == 0


def test_the_digest_tells_names_shapes_and_values_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    digests = {
        verifying.weights_digest(each)
        for each in (
            {"a": zeros},
            {"b": zeros},
            {"a": zeros.reshape(3, 2)},
            {"a": zeros + 1},
            {"a": zeros, "b": zeros},
        )
    }
    assert len(digests) == 5
