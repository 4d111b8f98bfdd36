"""How notebooks show objects: short reprs, tables of HTML, data frames."""

from __future__ import annotations

import html.parser
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fedcli
from fedcli import learning, models, optimizers
from fedcli.errors import ConfigError
from fedcli.runs.loop import RoundResult
from fedcli.runs.progress_line import ProgressLine
from fedcli.settings import notebooks
from fedcli.settings.run_config import RunConfig

MAX_REPR = 400
SMALL = RunConfig(
    data_options={"clients": 12},
    **{"clients": "4", "rounds": 3, "epochs": 1, "eval_every": 2, "threads": 1},  # type: ignore[arg-type]
    record_clients=True,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fedcli.train(SMALL, tmp_path_factory.mktemp("notebooks") / "run")


@pytest.fixture(scope="module")
def process() -> Any:
    return learning.build_weighted_fed_avg("softmax-regression", optimizers.sgd(0.02))


@pytest.fixture(scope="module")
def output(process: Any) -> Any:
    train, _ = fedcli.datasets.load(data_options={"clients": 3})
    cohort = [train.client(each).preprocess() for each in train.client_ids]
    return process.next(process.initialize(), cohort)


class Text(html.parser.HTMLParser):
    """Collects the text of HTML, and refuses unmatched tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text_of(shown: str) -> list[str]:
    parser = Text()
    parser.feed(shown)
    assert parser.open == []
    return parser.texts


def check(thing: Any, words: str, *cells: str) -> None:
    """Checks that the repr is one short line with `words`, and that the HTML table has `cells`."""
    line = repr(thing)
    assert words in line
    assert len(line) <= MAX_REPR
    assert "\n" not in line
    assert set(cells) <= set(text_of(thing._repr_html_()))


def test_a_run(run: Any) -> None:
    accuracy = run.final("test", "accuracy")
    words = "fedavg on synthetic-digits, 3 of 3 rounds; accuracy online "
    check(run, words, "split", "test", f"{accuracy:.4f}")
    assert f"test {accuracy:.4f}" in repr(run)


def test_a_config_shows_what_is_not_usual() -> None:
    check(RunConfig(rounds=3, client_lr=0.1), "RunConfig(client_lr=0.1, rounds=3)"[:9], "client_lr")
    assert eval(repr(SMALL), {"RunConfig": RunConfig}) == SMALL
    assert repr(RunConfig()) == "RunConfig()"


def test_a_model() -> None:
    model = models.cnn_mcmahan()
    check(model, "<Model cnn-mcmahan: [28, 28] to 10 classes, 1,663,370 parameters>", "1,663,370")


def test_a_process_its_state_and_its_output(process: Any, output: Any) -> None:
    check(process, "algorithm fedavg, client optimizer sgd(learning_rate=0.02", "weighting")
    check(learning.build_fed_eval("mlp-2nn"), "<EvaluationProcess: model <Model mlp-2nn", "model")
    check(
        output.state, "<ServerState after round 1; global_model_weights: 7,850 weights", "finalizer"
    )
    check(output, "<ProcessOutput of round 1: 3 clients, sparse_categorical_accuracy 0.", "loss")


def test_an_evaluation(run: Any) -> None:
    check(fedcli.evaluate_run(run.path), "Evaluation('synthetic-digits', split='test'", "loss")


def test_text_in_tables_is_escaped() -> None:
    shown = notebooks.table("<a>", ["<b>"], [["<c>"]], "<d>")
    assert text_of(shown) == ["<a>", "<b>", "<c>", "<d>"]


class Frame(dict[str, Any]):
    """The part of a DataFrame that fedcli uses."""

    def set_index(self, name: str) -> Frame:
        assert name in self
        return self


def test_data_frames(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = Frame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = run.to_pandas()
    assert frame["round"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(frame["client_work/train/loss"]).tolist() == [False, True, True, True]
    evaluation = fedcli.evaluate_run(run.path)
    assert evaluation.to_pandas()["num_examples"].sum() == evaluation.values["num_examples"]
    records = run.client_records()
    assert records.to_pandas()["client"][0] in records.client_ids
    assert repr(records) == "<ClientRecords: 12 rows of 4 clients>"


def test_without_pandas_the_extra_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedcli\[pandas\]'"):
        run.to_pandas()


def test_progress_is_a_line_at_first_and_last_where_it_cannot_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fedcli.train(SMALL, tmp_path / "run", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["round 1/3", "round 3/3"]
    assert "loss " in lines[1]
    assert "test " in lines[1]
    assert lines[1].endswith("@2")
    fedcli.resume(tmp_path / "run", num_rounds=4)
    assert capsys.readouterr().err == ""


def test_a_callback_is_called_and_nothing_else_of_it(tmp_path: Path) -> None:
    class Stopwatch:
        rounds: tuple[int, ...] = ()
        begin = end = None  # fedcli must not call these attributes

        def __call__(self, result: RoundResult) -> None:
            self.rounds += (result.round_num,)

    watch = Stopwatch()
    fedcli.train(SMALL, tmp_path / "run", callbacks=[watch], progress=True)
    assert watch.rounds == (0, 1, 2, 3)


def test_progress_in_a_terminal_is_one_line_that_changes(run: Any, tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with ProgressLine(3, terminal) as line:
        fedcli.train(SMALL, tmp_path / "run", callbacks=[line])
    assert terminal.getvalue().count("\r") == 3
    assert terminal.getvalue().endswith("\n")
