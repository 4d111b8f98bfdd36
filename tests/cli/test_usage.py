from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
import h5py
import pytest

from fedcli.cli import main as cli
from fedcli.cli import options, peer_options
from fedcli.cli.screen.output import one_line
from fedcli.errors import ConfigError
from tests.kit.command_line import Fedcli, assert_is_one_line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["foo"], "fedcli: No such command 'foo'; see 'fedcli -h'"),
        (
            ["trian"],
            "fedcli: No such command 'trian'; did you mean fedcli train?; see 'fedcli -h'",
        ),
        (
            ["evaluate", "runs/a"],
            "fedcli: No such command 'evaluate'; did you mean fedcli eval RUN?; see 'fedcli -h'",
        ),
        (["eval"], "fedcli eval: Missing argument 'RUN'; see 'fedcli eval -h'"),
        (
            ["train", "--rounds", "x"],
            "fedcli train: Invalid value for '--rounds': 'x' is not a valid integer; "
            "see 'fedcli train -h'",
        ),
        (
            ["train", "--rounds"],
            "fedcli train: Option '--rounds' requires an argument; see 'fedcli train -h'",
        ),
        (
            ["train", "--csv", "--keep-best", "--out", "run"],
            "fedcli train: Option '--keep-best' requires an argument, but '--out' follows; "
            "if that is the value, write --keep-best=--out; see 'fedcli train -h'",
        ),
        (
            ["train", "--shuffle-buffer", "some"],
            "fedcli train: Invalid value for '--shuffle-buffer': 'some' is neither a whole number "
            "nor 'full'; see 'fedcli train -h'",
        ),
        (
            ["info", "-q", "-v"],
            "fedcli info: -q and -v contradict each other; see 'fedcli info -h'",
        ),
        (
            ["train", "--resume", "run", "--epochs", "2", "--force", "--threads", "1"],
            "fedcli train: --resume takes all options except --rounds, --threads, --engine, "
            "--engine-option from the run; "
            "leave out --epochs, --force; see 'fedcli train -h'",
        ),
    ],
)
def test_usage_error_is_one_line_and_exit_2(
    fedcli: Fedcli, arguments: list[str], line: str
) -> None:
    done = fedcli(*arguments)
    assert (done.code, done.out, done.err) == (2, "", line + "\n")


def test_commands_that_are_advised_exist() -> None:
    known = {*cli.COMMANDS, "--version"}
    assert {advice.split()[0] for advice in peer_options.COMMANDS.values()} <= known
    assert not peer_options.COMMANDS.keys() & known


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "mnsit"], "did you mean mnist"),
        (["--data", "MNIST"], "; did you mean mnist?"),
        (["--algorithm", "FedAvg"], "; did you mean fedavg?"),
        (["--algorithm", "weighted_fed_avg"], "in place of TFF's, write --algorithm fedavg\n"),
        (
            ["--algorithm", "build_unweighted_fed_prox"],
            "write --algorithm fedprox --client-weighting uniform\n",
        ),
        (["--algorithm", "FedTrimmedAvg"], "of Flower's, write --aggregator trimmed-mean\n"),
        (["--server-optimizer", "FedAdam"], "in place of Flower's, write --algorithm fedadam\n"),
        (["--algorithm", "centered_clipping"], "centered-clipping is a value of --aggregator\n"),
        (["--algorithm", "adam"], "is a value of --client-optimizer and --server-optimizer\n"),
        (["--metrics", "accuracy"], "; loss and accuracy are always measured, so leave it out\n"),
        (["--algorithm", "fedporx"], "did you mean fedprox?"),
        (["--algorithm", "fedprox", "--algorithm-option", "mu=1"], "mu is called proximal_stren"),
        (["--algorithm-option", "mu=1"], "mu is proximal_strength of --algorithm fedprox"),
        (["--client-option", "momentm=0.9"], "did you mean momentum?"),
        (["--client-option", "lr=0.1"], "learning rates are --client-lr and --server-lr"),
        (["--client-option", "weight_decay=0.1"], "; --client-weight-decay sets that of the cli"),
        (["--partition", "shards", "--partition-option", "num_clients=9"], "is called clients"),
    ],
)
def test_words_of_others_and_misspelt_ones_lead_to_ours(
    fedcli: Fedcli, arguments: list[str], words: str
) -> None:
    assert_is_one_line(fedcli("train", *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--loss", "mse"], "the loss is the cross-entropy of the logits"),
        (["train", "--logdir", "logs"], "--tensorboard writes event files"),
        (["train", "--seed-all", "1"], "--seed sets it"),
        (["train", "--num-clients", "3"], "--clients says how many take part in each of the"),
        (["inspect-clients", "--num-clients", "3"], "--partition iid --partition-option clients"),
        (["train", "--verbose", "2"], "(2); --verbose takes no value"),
        (["train", "--rounds", "2", "config.toml"], "(config.toml); write --config config.toml"),
        (["inspect-clients", "mnist"], "(mnist); write --data mnist"),
        (["inspect-clients", "train.h5"], "(train.h5); write --data train.h5"),
        (["train", "run"], "(run); to continue the run, write --resume run"),
        (["inspect-clients", "run"], "(run); for the run, write --run run"),
        (["inspect-clients", "nowhere.h5"], "argument (nowhere.h5); see"),
        (["info", "fedavg", "fedprox"], "argument (fedprox); see"),
        (["tutorial"], "did you mean fedcli help tutorial?"),
        (["export", "run", "--out", "w.npz"], "is an argument; write fedcli export RUN FILE"),
        (
            ["bundle", "run", "--out", "a.zip"],
            "; write fedcli bundle RUN|FOLDER FILE",
        ),
        (["tensorboard"], "did you mean fedcli train --tensorboard?"),
        (["evaluation"], "did you mean fedcli eval RUN?"),
    ],
)
def test_usage_errors_say_what_to_write_instead(
    fedcli: Fedcli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "train.h5").touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    done = fedcli(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err


def test_advice_is_skipped_if_the_command_lacks_an_option_of_it(fedcli: Fedcli) -> None:
    """`eval` has --clients, but no --sampling."""
    line = "fedcli eval: No such option '--fraction'; see 'fedcli eval -h'\n"
    assert fedcli("eval", "run", "--fraction", "0.1").err == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--out", "data"], "data exists; choose another --out\n"),
        (["train", "--out", "run"], "run exists; choose another --out, or --force to replace it\n"),
        (["train", "--config", "no.toml"], "No such file or directory; check the path\n"),
        (["train", "--initial-weights", "no.npz"], "No such file or directory; check the path\n"),
        (["sweep", "--grid", "foobarbaz=1"], "of fedcli train; fedcli train -h lists all\n"),
        (
            ["inspect-clients", "--data", "keras.h5"],
            "savez('data.npz', x=images, y=labels)\n",
        ),
        (
            ["runs"],
            "there is no folder runs; give one that holds runs, or make one with",
        ),
    ],
)
def test_messages_end_with_what_to_do_next(
    fedcli: Fedcli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        file["x_train"] = file["y_train"] = [0, 1]
    assert_is_one_line(fedcli(*arguments), words)


@pytest.mark.parametrize("more", [[], ["--out", "m.h5"], ["--dry-run"]])
def test_preprocess_refuses_datasets_that_are_used_by_name(fedcli: Fedcli, more: list[str]) -> None:
    fetched = fedcli("preprocess", "mnist", *more)
    assert_is_one_line(fetched, "run fedcli download mnist, then fedcli train --data mnist")
    embedded = fedcli("preprocess", "synthetic-digits", *more)
    assert_is_one_line(embedded, "; run fedcli train --data synthetic-digits ")


def test_unknown_option_is_usage(fedcli: Fedcli) -> None:
    done = fedcli("train", "--foo")
    assert done.code == 2
    assert done.err == "fedcli train: No such option '--foo'; see 'fedcli train -h'\n"
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch-size", "0"], "--batch-size 0: choose a whole number from 1 to 2147483647"),
        (["--client-option", "mu"], "--client-option 'mu' is not of the form key=value"),
        (
            ["--client-option", "momentum=0.9", "--client-option", "momentum=0.8"],
            "--client-option momentum is given twice; give it once",
        ),
        (
            ["--model", "mlp-2n"],
            "unknown --model 'mlp-2n'; choose one of cnn-cifar, cnn-mcmahan, cnn-reddi, "
            "leaf-femnist, lenet5, lenet5-cifar, mlp-2nn, mobilenet-v1, mobilenet-v2, "
            "mobilenet-v2-bn, resnet18-gn, resnet20, resnet20-bn, resnet32, resnet32-bn, resnet56, "
            "resnet56-bn, softmax-regression, vgg11, vgg11-bn, vgg9, or a file: ./mlp-2n; "
            "did you mean mlp-2nn?",
        ),
        (
            ["--fresh-weights"],
            "--fresh-weights is for models from files; softmax-regression always starts with fresh "
            "weights, so leave it out",
        ),
        (
            ["--model-option", "depth=2"],
            "--model-option: softmax-regression has no option 'depth'; it takes none",
        ),
    ],
)
def test_wrong_value_is_one_line_and_exit_1(
    fedcli: Fedcli, tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = fedcli("train", *arguments)
    assert (done.code, done.out, done.err) == (1, "", f"fedcli: error: {line}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", ["nan", "-0.1", "inf"])
@pytest.mark.parametrize("side", ["--client-lr", "--server-lr"])
def test_rates_that_are_none_are_refused(fedcli: Fedcli, side: str, rate: str) -> None:
    done = fedcli("train", side, rate)
    assert done.code == 1
    assert done.err.startswith(f"fedcli: error: {side} {rate}: choose ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("bad\nvalue \x1b[2J"), 1, "fedcli: error: bad value \\x1b[2J"),
        (PermissionError(13, "Permission denied", "/x"), 1, "fedcli: error: /x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "fedcli: error: No space left on device"),
        (
            MemoryError(),
            1,
            "fedcli: error: out of memory; use fewer threads or a smaller model",
        ),
        (KeyboardInterrupt(), 130, "fedcli: interrupted"),
        (click.Abort(), 130, "fedcli: interrupted"),
    ],
)
def test_boundary_turns_errors_into_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    fedcli: Fedcli,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.group, "main", fail)
    done = fedcli("info")
    assert (done.code, done.out, done.err) == (code, "", line + "\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, fedcli: Fedcli) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.group, "main", fail)
    with pytest.raises(ZeroDivisionError):
        fedcli("info")


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["inspect-clients"], ["-h"]])
def test_broken_pipe_is_silent(
    arguments: list[str], command: list[str], process_arguments: dict[str, Any]
) -> None:
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **process_arguments,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_closed_streams_are_no_failure(
    command: list[str], process_arguments: dict[str, Any], tmp_path: Path
) -> None:
    train = [*command, "train", "--rounds", "1", "-v", "--out"]
    for out, closed in (("no-stdout", ">&-"), ("no-stderr", "2>&-")):
        line = ["sh", "-c", f'exec "$@" {closed}', "sh", *train, str(tmp_path / out)]
        done = subprocess.run(line, capture_output=True, check=False, **process_arguments)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / out / "evaluation.json").is_file()


def test_unknown_instruction_set_is_one_line(
    command: list[str], process_arguments: dict[str, Any]
) -> None:
    process_arguments["env"]["FEDCLI_ISA"] = "mmx"
    done = subprocess.run([*command, "info"], capture_output=True, check=False, **process_arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fedcli: error: FEDCLI_ISA=mmx names no instruction set")
    assert done.stderr.count("\n") == 1


def test_options_not_given_override_nothing() -> None:
    values = {"rounds": None, "seed": 0, "client_options": {}, "data_options": {"clients": 3}}
    assert options.given(values) == {"seed": 0, "data_options": {"clients": 3}}


def test_one_line_escapes_what_cannot_be_printed() -> None:
    assert one_line("a\r\nb\tc") == "a b\\tc"
    assert one_line("straße …") == "straße …"
    assert one_line("\udc80") == "\\udc80"


def test_an_argument_that_is_too_long_for_a_path_is_a_usage_error(fedcli: Fedcli) -> None:
    done = fedcli("train", "x" * 300)
    assert done.code == 2
    assert "unexpected extra argument (xxx" in done.err
