from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.command_line import Fedcli, WriteTff, assert_is_one_line
from tests.kit.waiting import PATIENCE_SECONDS


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_train_without_options_makes_a_run(fedcli: Fedcli, tmp_path: Path) -> None:
    done = fedcli("train")
    (run,) = (tmp_path / "runs").iterdir()
    begun = f"fedcli: run runs/{run.name}: 10 rounds, fedavg on synthetic-digits\n"
    assert (done.code, done.err) == (0, begun)
    assert run.name.endswith("-synthetic-digits-fedavg-s0")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 11))
    assert f"fedcli eval runs/{run.name} --clients all" in done.out
    assert "\x1b" not in done.out
    for line in lines:
        online = line["client_work"]["train"]
        row = f"{line['round']:>5}   {online['loss']:.4f}     "
        row += f"{online['sparse_categorical_accuracy']:.4f}      {online['num_examples']:,}"
        assert row in done.out


def test_closing_table_shows_the_evaluation_of_each_split(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path
) -> None:
    done = fedcli(
        *("train", "--data", write_tff(), "--test-data", write_tff("test.h5"), "--out", "run")
    )
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    table = done.out.partition("\nFederated evaluation of the model after round 10\n")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    for split, row in zip(("train", "test"), rows, strict=True):
        values = evaluation[split]["client_work"]["eval"]["current_round_metrics"]
        assert row.split() == [
            split,
            f"{values['loss']:.4f}",
            f"{values['sparse_categorical_accuracy']:.4f}",
            "18",
            str(values["num_batches"]),
            "3",
        ]


def test_json_is_one_object_of_what_the_run_holds(fedcli: Fedcli, tmp_path: Path) -> None:
    done = fedcli("train", "--rounds", 3, "--eval-every", 2, "--json", "--out", "run")
    result = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert result.keys() == {"run", "rounds", "evaluation"}
    assert result["run"] == "run"
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert result["rounds"] == [json.loads(line) for line in metrics]
    assert [line["round"] for line in result["rounds"]] == [0, 1, 2, 3]
    assert result["evaluation"] == json.loads((tmp_path / "run/evaluation.json").read_text())


def test_metrics_that_are_not_finite_are_null(fedcli: Fedcli, write_tff: WriteTff) -> None:
    flags = ("--data", write_tff(), "--client-lr", "1e38", "--batch-size", 1, "--rounds", 2)
    done = fedcli("train", *flags, "--out", "run", "--json")
    first = json.loads(done.out)["rounds"][0]["client_work"]["train"]
    assert first["num_non_finite_clients"] == 3
    assert first["loss"] is None
    table = fedcli("train", "--resume", "run").out
    assert table.splitlines()[1].endswith("dropped clients     update")
    assert table.splitlines()[3].split()[:4] == ["1", "-", "-", "0"]
    assert table.splitlines()[3].split()[-2:] == ["3", "rejected"]


def test_what_the_user_should_know_is_on_stderr(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    arguments = ("train", "--data", data, "--rounds", 1)
    assert set(fedcli(*arguments).err.splitlines()) == {
        f"fedcli: {data} is read as format tff-h5; splits train; owners 3 clients; classes 10; "
        "shape 6 x 4; channels 1; range 0 to 1; polarity 1.0 is background",
        f"fedcli: {data} has 3 clients; all of them form the cohort",
        f"fedcli: {data} has no test data: evaluating on train only",
        f"fedcli: run runs/{next(Path('runs').iterdir()).name}: 1 round, fedavg on {data}",
    }
    loud = fedcli(*arguments, "-v", "--out", "loud", "--threads", 1).err
    assert "fedcli: 1 thread\n" in loud
    assert re.search(r"^fedcli: memory for batches: 0\.\d MiB$", loud, re.MULTILINE)
    assert f"fedcli: run loud: 1 round, fedavg on {data}\n" in loud
    assert "fedcli: client cache: 3 clients, " in loud


@pytest.mark.parametrize(
    "flags", [("--validation", 0.25), ("--partition", "iid", "--partition-option", "clients=3")]
)
def test_how_files_are_read_is_told_also_if_their_examples_move(
    fedcli: Fedcli, write_tff: WriteTff, flags: tuple[Any, ...]
) -> None:
    data, test = write_tff(), write_tff("test.h5")
    command = ("train", "--data", data, "--test-data", test, "--rounds", 1)
    plain = [line for line in fedcli(*command).err.splitlines() if " is read as format " in line]
    assert [line.split()[1] for line in plain] == [str(data), str(test)]
    done = fedcli(*command, *flags)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if " is read as format " in line] == plain


def test_a_quiet_run_prints_its_folder_alone(fedcli: Fedcli) -> None:
    done = fedcli("train", "--rounds", 1, "--eval-every", 1, "-q", "--out", "quiet")
    assert (done.code, done.out, done.err) == (0, "quiet\n", "")
    exported = fedcli("export", "quiet", "weights.npz", "-q")
    assert (exported.code, exported.out, exported.err) == (0, "", "")


def test_without_a_terminal_each_evaluation_is_a_line(fedcli: Fedcli) -> None:
    arguments = ("train", "--rounds", 5, "--eval-every", 2, "--keep-best", "accuracy")
    done = fedcli(*arguments, "--out", "run")
    lines = done.err.splitlines()
    assert lines[0] == "fedcli: run run: 5 rounds, fedavg on synthetic-digits"
    assert [line.split()[2] for line in lines[1:]] == ["0/5", "2/5", "4/5"]
    evaluation = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[2])["evaluation"]
    shown = lines[2].removesuffix("  best").split("  ")[1:]
    assert shown == [
        f"{split} loss {each['loss']:.4f} acc. {each['sparse_categorical_accuracy']:.4f}"
        for split, each in evaluation.items()
    ]
    assert [line.split()[0] for line in done.out.splitlines()[3:6]] == ["0", "2", "4"]
    assert "... 3 evaluated rounds of 5; all are in run/metrics.jsonl" in done.out
    again = fedcli("train", "--resume", "run", "--rounds", 6).err.splitlines()
    assert again[0] == (
        "fedcli: run run: continues after round 5 of 6 rounds, fedavg on synthetic-digits"
    )
    assert again[1].startswith("fedcli: round 6/6  train loss ")


def test_a_resumed_run_without_rounds_left_says_how_to_train_more(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    done = fedcli("train", "--resume", "run")
    (line,) = done.err.splitlines()
    start, command = line.split(", raise the number: fedcli ")
    assert start == "fedcli: run run: nothing is left to train after round 1 of 1; to train more"
    assert fedcli(*command.split(), "-q").code == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    options = ("--stop-at", "accuracy=0.3", "--eval-every", 1, "--rounds", 20)
    fedcli("train", *options, "--out", "short")
    last = json.loads(Path("short/metrics.jsonl").read_text().splitlines()[-1])["round"]
    assert 0 < last < 20
    first, *_ = fedcli("train", "--resume", "short").err.splitlines()
    early = f"ended early after round {last} of 20; nothing is left to train"
    assert first == f"fedcli: run short: {early}"


def test_the_round_that_is_kept_is_told(fedcli: Fedcli) -> None:
    options = ("--rounds", 4, "--eval-every", 2, "--keep-best", "loss")
    done = fedcli("train", *options, "--out", "run")
    told = json.loads(fedcli("train", "--resume", "run", "--json").out)["kept"]
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {line["round"]: line["evaluation"]["test"]["loss"] for line in lines[::2]}
    best = min(losses, key=lambda number: losses[number])
    assert told == {"measure": "loss", "value": losses[best], "round": best}
    kept = f"Kept     round {best}, the best by loss ({losses[best]:.4f}): fedcli eval run --best\n"
    assert kept in done.out
    exported = fedcli("export", "run", "weights.npz", "--best").out
    assert exported.startswith(f"Wrote weights.npz: the model after round {best}, the best")


def test_a_run_is_followed_by_the_metric_that_judges_it(fedcli: Fedcli) -> None:
    options = ("--rounds", 4, "--eval-every", 2, "--keep-best", "macro_f1", "--metrics", "ece")
    done = fedcli("train", *options, "--out", "run")
    assert done.code == 0, done.err
    told = json.loads(fedcli("train", "--resume", "run", "--json").out)["kept"]
    assert [line.endswith("  best") for line in done.err.splitlines()[1:]][told["round"] // 2]
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for line, shown in zip(lines[::2], done.err.splitlines()[1:], strict=True):
        assert f" macro_f1 {line['evaluation']['test']['macro_f1']:.4f}" in shown
    assert f"Kept     round {told['round']}, the best by macro_f1 ({told['value']:.4f})" in done.out


def test_runs_that_begin_at_once_in_several_processes_do_not_collide(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    processes = [
        subprocess.Popen(
            [*command, "train", "--rounds", "1", "--threads", "1", "-q"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            **process_arguments,
        )
        for _ in range(3)
    ]
    runs = {process.communicate(timeout=PATIENCE_SECONDS)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(runs) == 3
    assert {f"runs/{path.name}\n" for path in (tmp_path / "runs").iterdir()} == runs


def test_command_line_overrides_config_and_leaves_the_rest(
    fedcli: Fedcli, write_tff: WriteTff
) -> None:
    data = write_tff()
    fedcli("train", "--data", data, "--rounds", 2, "--client-lr", 0.25, "--out", "first")
    done = fedcli(
        *("train", "--config", "first/config.toml", "--rounds", 3, "--out", "second", "--json")
    )
    assert len(json.loads(done.out)["rounds"]) == 3
    assert "client_lr = 0.25" in Path("second/config.toml").read_text()


def test_config_repeats_the_run_byte_for_byte(fedcli: Fedcli, write_tff: WriteTff) -> None:
    fedcli("train", "--data", write_tff(), "--seed", 7, "--epochs", 2, "--out", "first")
    fedcli("train", "--config", "first/config.toml", "--out", "second", "--threads", 1)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_a_config_of_changed_data_is_told(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    fedcli("train", "--data", data, "--rounds", 1, "--out", "run")
    again = ("train", "--config", "run/config.toml")
    assert "has changed" not in fedcli(*again, "--out", "same").err
    write_tff(num_clients=4)
    note = f"fedcli: {data} has changed since the run began; this run does not repeat "
    assert note + "the one that wrote the config\n" in fedcli(*again, "--out", "other").err
    assert "has changed" not in fedcli(*again, "--data", data, "--out", "asked").err


def test_resuming_a_finished_run_changes_nothing(fedcli: Fedcli, tmp_path: Path) -> None:
    first = fedcli("train", "--rounds", 2, "--out", "run")
    before = files_of(tmp_path / "run")
    again = fedcli("train", "--resume", "run")
    assert again.code == 0
    assert again.out == first.out
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("is_empty", [True, False])
def test_resuming_mends_an_evaluation_that_is_not_of_the_last_round(
    fedcli: Fedcli, is_empty: bool
) -> None:
    first = fedcli("train", "--rounds", 2, "--out", "run")
    file = Path("run/evaluation.json")
    whole = file.read_text()
    file.write_text("{}" if is_empty else whole.replace('"round": 2', '"round": 1'))
    assert fedcli("train", "--resume", "run").out == first.out
    assert file.read_text() == whole


@pytest.mark.parametrize("text", ['{"train": {}}', '{"train": {"round": 1}}', '{"train": {"ro'])
def test_a_damaged_evaluation_is_told(fedcli: Fedcli, text: str) -> None:
    fedcli("train", "--rounds", 2, "--out", "run")
    Path("run/evaluation.json").write_text(text)
    for command in (("train", "--resume", "run"), ("report", "run")):
        done = fedcli(*command)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "evaluation.json" in done.err
        assert "delete it, and resume the run to write it again" in done.err


def test_a_finished_run_without_its_metrics_is_told(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 2, "--out", "run")
    Path("run/metrics.jsonl").unlink()
    done = fedcli("train", "--resume", "run")
    assert (done.code, done.out) == (1, "")
    assert "metrics.jsonl holds no round" in done.err


def test_resume_may_raise_the_total(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 2, "--out", "run")
    fedcli("train", "--resume", "run", "--rounds", 4)
    fedcli("train", "--rounds", 4, "--out", "straight")
    for name in ("metrics.jsonl", "evaluation.json"):
        assert Path("run", name).read_bytes() == Path("straight", name).read_bytes()


def test_existing_run_needs_force(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    before = files_of(Path("run"))
    refused = fedcli("train", "--rounds", 2, "--out", "run")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "--force" in refused.err
    assert files_of(Path("run")) == before
    replaced = fedcli("train", "--rounds", 2, "--out", "run", "--force", "--json")
    assert len(json.loads(replaced.out)["rounds"]) == 2


@pytest.mark.parametrize("nesterov", ["true", "True"])
def test_booleans_as_toml_and_as_python(fedcli: Fedcli, nesterov: str) -> None:
    options = ("momentum=0.9", f"nesterov={nesterov}")
    flags = [word for option in options for word in ("--client-option", option)]
    assert fedcli("train", "--rounds", 1, *flags, "--out", "run").code == 0
    assert "nesterov = true" in Path("run/config.toml").read_text()


def test_long_run_shows_a_thinned_table(fedcli: Fedcli, write_tff: WriteTff) -> None:
    done = fedcli("train", "--data", write_tff(), "--rounds", 45, "--epochs", 1, "--out", "run")
    table = done.out.partition("-\n")[2].partition("\n...")[0]
    shown = [int(line.split()[0]) for line in table.splitlines()]
    assert shown == [1, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert "... 10 rounds of 45; all are in run/metrics.jsonl" in done.out


def test_eval_agrees_with_the_closing_evaluation(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    run = json.loads(
        fedcli(
            "train", "--data", data, "--test-data", write_tff("t.h5"), "--out", "run", "--json"
        ).out
    )
    for split in ("train", "test"):
        told = json.loads(fedcli("eval", "run", "--split", split, "--json").out)
        assert told == run["evaluation"][split]
    default = json.loads(fedcli("eval", "run", "--json").out)
    assert default["split"] == "test"
    other = json.loads(fedcli("eval", "run", "--data", data, "--clients", "a,c", "--json").out)
    values = other["client_work"]["eval"]["current_round_metrics"]
    assert values["num_examples"] == 5 + 7
    assert values.keys() == {
        *("sparse_categorical_accuracy", "loss", "num_examples", "num_batches")
    }


def test_eval_prints_a_table(fedcli: Fedcli, write_tff: WriteTff) -> None:
    fedcli("train", "--data", write_tff(), "--rounds", 1, "--out", "run")
    told = json.loads(fedcli("eval", "run", "--json").out)
    values = told["client_work"]["eval"]["current_round_metrics"]
    lines = fedcli("eval", "run").out.splitlines()
    assert lines[0].startswith("Federated evaluation after round 1, on ")
    assert lines[1].split() == ["split", "loss", "accuracy", "examples", "batches", "clients"]
    assert lines[3].split()[:3] == [
        "train",
        f"{values['loss']:.4f}",
        f"{values['sparse_categorical_accuracy']:.4f}",
    ]


def test_eval_of_a_checkpoint_file(fedcli: Fedcli, write_tff: WriteTff) -> None:
    fedcli("train", "--data", write_tff(), "--rounds", 1, "--out", "run")
    done = fedcli("eval", "run/checkpoints/round-000000.h5", "--json")
    values = json.loads(done.out)["client_work"]["eval"]["current_round_metrics"]
    assert values["loss"] == pytest.approx(np.log(10), rel=1e-6)  # the model starts at zeros


def test_export_writes_the_tensors_in_layer_order(fedcli: Fedcli, write_tff: WriteTff) -> None:
    fedcli("train", "--data", write_tff(), "--rounds", 1, "--out", "run")
    done = fedcli("export", "run", "weights.npz", "--json")
    assert json.loads(done.out) == {
        "file": "weights.npz",
        "tensors": [
            {"name": "dense/kernel", "shape": [24, 10]},
            {"name": "dense/bias", "shape": [10]},
        ],
    }
    with np.load("weights.npz", allow_pickle=False) as archive:
        assert [archive[name].shape for name in archive.files] == [(24, 10), (10,)]
        assert all(archive[name].any() for name in archive.files)
    assert "dense/kernel   24 x 10" in fedcli("export", "run", "weights.npz").out


def test_export_does_not_replace_the_checkpoint(fedcli: Fedcli, write_tff: WriteTff) -> None:
    fedcli("train", "--data", write_tff(), "--rounds", 1, "--out", "run")
    Path("run/checkpoints/round-000001.h5").rename("weights.npz")
    before = Path("weights.npz").read_bytes()
    done = fedcli("export", "weights.npz", "weights.npz")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "fedcli: error: weights.npz is also an input (weights.npz); choose another name\n"
    )
    assert Path("weights.npz").read_bytes() == before


def test_export_names_the_formats_there_are(fedcli: Fedcli, tmp_path: Path) -> None:
    done = fedcli("export", "run", "weights.txt")
    assert done.code == 1
    assert done.err == (
        "fedcli: error: weights.txt: files of weights end in .npz, .keras, .weights.h5, .pt, .pth; "
        "choose such a name, or give --format\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_table_tells_who_reported_and_when(fedcli: Fedcli) -> None:
    flags = ("--client-dropout", 0.5, "--client-speeds", "100,10", "--min-reports", 6)
    done = fedcli("train", "--rounds", 4, *flags, "--out", "run")
    assert done.code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    header, _, *rows = done.out.partition("\n\n")[0].splitlines()[1:]
    assert header.split()[-4:] == ["reports", "virtual", "s", "update"]
    assert len(lines) == 4
    for line, row in zip(lines, rows, strict=True):
        told = line["participation"]
        fate = "skipped" if told["num_reports"] < 6 else "applied"
        clock = f"{told['virtual_seconds']:,.1f}"
        assert row.split()[-3:] == [str(told["num_reports"]), clock, fate]


def test_the_summary_tells_rounds_to_target(fedcli: Fedcli) -> None:
    flags = ("train", "--rounds", 6, "--eval-every", 1)
    done = fedcli(*flags, "--pixels", "ink", "--stop-at", "accuracy=0.3", "--out", "run")
    told = json.loads(fedcli("train", "--resume", "run", "--json").out)["stopping"]
    reached = told["rounds_to_target"]
    assert 0 < reached < 6
    assert f"Target   test accuracy 0.3: after {reached} round" in done.out
    assert f"Ended    after round {reached}: test accuracy reached 0.3\n" in done.out
    assert told["ended_by"] == "test accuracy reached 0.3"
    assert told["best_accuracy"] >= 0.3
    missed = fedcli(*flags, "--client-lr", 0, "--stop-at", "accuracy=1", "--out", "missed")
    assert "Target   test accuracy 1: not in 6 rounds\n" in missed.out
    assert "Ended" not in missed.out


@pytest.mark.parametrize(
    "partition", [(), ("--partition", "iid", "--partition-option", "clients=3")]
)
def test_test_data_replace_a_test_split_of_the_data_and_say_so(
    fedcli: Fedcli, write_tff: WriteTff, partition: tuple[str, ...]
) -> None:
    other = write_tff("other.h5", num_clients=2)
    hold_out = ("--hold-out", "within", "--num-classes", 10)
    fedcli("preprocess", write_tff(), *hold_out, "--out", "both.h5")
    data = ("--data", "both.h5", "--test-data", other, *partition)
    line = "--test-data {} is the test split; the test split of --data {} is not used\n".format
    done = fedcli("train", *data, "--rounds", 1, "--json", "--out", "run")
    both = other.parent / "both.h5"
    assert done.err.count(line(other, both)) == 1
    assert json.loads(done.out)["evaluation"]["test"]["num_clients"] == (3 if partition else 2)
    assert line(other, both) in fedcli("eval", "run").err
    assert line(other, both) not in fedcli("eval", "run", "--split", "train").err
    assert line(other, "both.h5") in fedcli("inspect-clients", *data).err
    assert "is not used" not in fedcli("inspect-clients", "--data", "both.h5").err


def test_a_run_with_event_files_ends_with_the_command_that_shows_them(fedcli: Fedcli) -> None:
    pytest.importorskip("tensorboardX")
    line = "Curves   tensorboard --logdir run/tensorboard\n"
    assert line in fedcli("train", "--rounds", 1, "--tensorboard", "--out", "run").out
    assert "tensorboard" not in fedcli("train", "--rounds", 1, "--out", "plain").out


@pytest.mark.parametrize("is_copied", [False, True])
def test_test_data_with_the_examples_of_the_data_are_noted(
    fedcli: Fedcli, write_tff: WriteTff, is_copied: bool
) -> None:
    file = write_tff("train.h5", num_clients=3)
    other = write_tff("other.h5", num_clients=2)
    again = file.with_name("again.h5")
    if is_copied:
        again.write_bytes(file.read_bytes())
    else:
        again.hardlink_to(file)
    words = f"--test-data {again} has the same examples as --data"
    iid = ("--partition", "iid", "--partition-option", "clients=3")
    for more in ((), iid):
        data = ("--data", file, "--test-data", again, *more)
        done = fedcli("train", *data, "--rounds", 1, "--out", "run", "--force")
        assert done.err.count(words) == 1
        assert words in fedcli("eval", "run").err
        assert words in fedcli("inspect-clients", *data).err
    assert (
        "same examples" not in fedcli("inspect-clients", "--data", file, "--test-data", other).err
    )


def test_a_dataset_is_not_taken_for_the_run_of_its_name(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "synthetic-digits")
    assert fedcli("eval", "synthetic-digits", "--data", "synthetic-digits").code == 0


def test_a_run_in_place_of_data_is_refused(fedcli: Fedcli) -> None:
    fedcli("train", "--rounds", 1, "--out", "run")
    for arguments in (("eval", "run"), ("train", "--out", "new"), ("inspect-clients",)):
        done = fedcli(*arguments, "--data", "run")
        assert_is_one_line(done, "run is the folder of a run, not of data; give the file or the")
