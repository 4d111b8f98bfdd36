from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import settings
from fedcli.core import native
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import CheckpointError, ConfigError, DataError, FedcliError, RunError
from fedcli.federation import cohorts
from fedcli.runs import evaluating as evaluation
from fedcli.runs import starting
from fedcli.runs.files import checkpoint, folder
from fedcli.runs.opening import open_federation
from fedcli.runs.trained import export_run
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import SAMPLINGS
from tests.kit.training import (
    MOMENTUM,
    SMALL,
    VARIANTS,
    make_config,
    results,
    resume_rounds,
    resume_to_end,
    snapshot,
    train,
    train_and_vanish,
    train_rounds,
)
from tests.kit.waiting import ENDLESS, PATIENCE_SECONDS, wait_until

NAMES = ["sparse_categorical_accuracy", "loss", "num_examples", "num_batches"]


def write_tff(path: Path, clients: dict[str, int], *, num_labels: int = 10, side: int = 28) -> Path:
    """Writes a small file in TFF's layout with random examples for each client."""
    rng = np.random.default_rng(5)
    with h5py.File(path, "w") as file:
        for name, num_examples in clients.items():
            group = file.create_group(f"examples/{name}")
            group["pixels"] = rng.random((num_examples, side, side), np.float32)
            group["label"] = rng.integers(0, num_labels, num_examples, np.int32)
    return path


def test_a_run_has_every_file_and_one_line_a_round(tmp_path: Path) -> None:
    out = tmp_path / "run"
    closing = train(out, make_config(eval_every=3))
    names = sorted(each.name for each in out.iterdir())
    assert names == [
        "checkpoints",
        "config.toml",
        "evaluation.json",
        "lock",
        "metrics.jsonl",
        "timings.jsonl",
    ]
    lines = folder.read_metrics(out)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["round"] for line in lines if "evaluation" in line] == [0, 3, 6]
    assert "client_work" not in lines[0]
    assert list(lines[1]) == ["round", "distributor", "client_work", "aggregator", "finalizer"]
    assert list(lines[1]["client_work"]["train"]) == [*NAMES, "num_non_finite_clients"]
    # The cohort is the first 4 of 12 writers, with at most 60 examples each.
    assert lines[1]["client_work"]["train"]["num_examples"] == 240
    assert lines[0]["evaluation"]["train"]["loss"] == pytest.approx(math.log(10))
    assert list(closing) == ["train", "test"]
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored == closing
    for split in ("train", "test"):
        values = stored[split]["client_work"]["eval"]
        assert values["current_round_metrics"] == values["total_rounds_metrics"]
        assert values["current_round_metrics"] == lines[-1]["evaluation"][split]
        assert list(values["current_round_metrics"]) == NAMES
        told = evaluation.evaluate_run(out, split=split)
        assert told.metrics == stored[split]
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    assert [each["round"] for each in timings] == [0, 1, 2, 3, 4, 5, 6]
    assert {"data", "train", "aggregate", "evaluate", "save"} <= timings[-1].keys()


@pytest.mark.numeric
def test_training_learns(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(rounds=20, pixels="ink", client_lr=0.1))
    lines = folder.read_metrics(tmp_path / "run")
    losses = [line["client_work"]["train"]["loss"] for line in lines]
    assert losses[-1] < 0.5 * losses[0]


@dataclass(frozen=True)
class Straight:
    """The options of a run, and its `results` if nothing interrupts it."""

    values: dict[str, Any]
    results: dict[str, bytes]


@pytest.fixture(scope="module", params=VARIANTS)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A run of each variant; tests that use it run variant by variant."""
    values = {**SMALL, **VARIANTS[request.param], "checkpoint_every": 2}
    path = tmp_path_factory.mktemp("straight") / "run"
    train(path, settings.from_options(values))
    return Straight(values, results(path))


@pytest.mark.numeric
def test_a_stopped_and_resumed_run_equals_the_straight_run(
    tmp_path: Path, straight: Straight
) -> None:
    out = tmp_path / "stopped"
    train_rounds(out, settings.from_options(straight.values), 1)
    resume_rounds(out, 4 - folder.read_metrics(out)[-1]["round"], threads=1)
    resume_to_end(out, threads=3)
    assert results(out) == straight.results


def test_a_killed_and_resumed_run_equals_the_straight_run(
    tmp_path: Path, straight: Straight
) -> None:
    out = tmp_path / "killed"
    # The process ends after round 5. `run` yields one result more if round 0 is evaluated.
    train_and_vanish(out, straight.values, 6 if "eval_every" in straight.values else 5)
    num_lines = len(folder.read_metrics(out))
    with starting.resume(out) as training:
        # Every second round is saved; later rounds are trained again.
        assert training.round_num == 4
        assert len(folder.read_metrics(out)) < num_lines
        list(training.run())
        training.finish()
    assert results(out) == straight.results


def test_one_split_is_evaluated_between_rounds_and_all_at_the_end(tmp_path: Path) -> None:
    both = train(tmp_path / "both", make_config(eval_every=2))
    one = train(tmp_path / "one", make_config(eval_every=2, eval_split="held-out"))
    assert one == both
    assert list(one) == ["train", "test"]
    for every, alone in zip(
        *(folder.read_metrics(tmp_path / name) for name in ("both", "one")), strict=True
    ):
        if "evaluation" in every:
            assert list(every["evaluation"]) == ["train", "test"]
            del every["evaluation"]["train"]
        assert alone == every


def test_train_is_left_out_of_every_evaluation(tmp_path: Path) -> None:
    both = train(tmp_path / "both", make_config(eval_every=2))
    del both["train"]
    for name, every in (("at-the-end", None), ("between", 2)):
        values = {"eval_every": every, "eval_split": "without-train"}
        assert train(tmp_path / name, make_config(**values)) == both
        lines = folder.read_metrics(tmp_path / name)
        evaluated = [list(line["evaluation"]) for line in lines if "evaluation" in line]
        assert evaluated == [["test"]] * (0 if every is None else len(evaluated))
        assert bool(evaluated) == (every is not None)
    scored = evaluation.evaluate_run(tmp_path / "between", split="train")
    assert scored.split == "train"


def test_without_train_another_split_is_needed(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {"a": 30, "b": 20})
    values = {"data": str(data), "data_options": {}, "clients": "2"}
    with pytest.raises(ConfigError, match="no other split to evaluate; leave it out"):
        train(tmp_path / "run", make_config(**values, eval_split="without-train"))


def test_without_data_held_out_train_is_evaluated(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {"a": 30, "b": 20})
    values = {"data": str(data), "data_options": {}, "clients": "2", "rounds": 1, "eval_every": 1}
    for split in ("train", "held-out"):
        train(tmp_path / split, make_config(**values, eval_split=split))
    both = [folder.read_metrics(tmp_path / split) for split in ("train", "held-out")]
    assert both[0] == both[1]
    assert [list(line["evaluation"]) for line in both[0]] == [["train"], ["train"]]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"eval_split": "held-out"}, "--eval-split held-out needs evaluations"),
        ({"eval_every": 1, "eval_split": "dev"}, "--eval-split dev: choose one of train, held-out"),
        (
            {"eval_every": 1, "eval_split": "train", "patience": 1},
            "--patience needs evaluations on test, which --eval-split train leaves out",
        ),
        (
            {"eval_every": 1, "eval_split": "train", "stop_at": "accuracy=0.5"},
            "--stop-at needs evaluations on test, which --eval-split train leaves out",
        ),
        (
            {"eval_every": 1, "eval_split": "train", "keep_best": "loss"},
            "--keep-best needs evaluations on test, which --eval-split train leaves out",
        ),
    ],
)
def test_a_split_that_decides_or_is_unknown_is_refused(
    tmp_path: Path, values: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        starting.start(make_config(**values), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "options"),
    [
        ("scaffold", "sgd", {"momentum": 0.9}),
        ("fednova", "adam", {}),
        ("mime", "adafactor", {}),
    ],
)
def test_what_an_algorithm_cannot_train_with_is_refused_before_data_are_read(
    tmp_path: Path, algorithm: str, optimizer: str, options: dict[str, Any]
) -> None:
    config = make_config(
        data=str(tmp_path / "missing.h5"),
        data_options={},
        algorithm=algorithm,
        client_optimizer=optimizer,
        client_options=options,
    )
    with pytest.raises(ConfigError, match=f"^{algorithm} with client optimizer {optimizer}"):
        starting.start(config, tmp_path / "run")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    evaluation = train(out, make_config(eval_every=2))
    before = snapshot(out)
    for total in (None, 6):
        with starting.resume(out, rounds=total) as training:
            assert training.is_finished
            assert list(training.run()) == []
            assert training.finish() == evaluation
    assert snapshot(out) == before


@pytest.mark.numeric
def test_more_rounds_equal_a_longer_straight_run(tmp_path: Path) -> None:
    train(tmp_path / "long", make_config(**VARIANTS["uniform"]))
    out = tmp_path / "short"
    train(out, make_config(**{**VARIANTS["uniform"], "rounds": 4}))
    with starting.resume(out, rounds=6) as training:  # closed before it trains
        assert not training.is_finished
    resume_to_end(out)
    assert results(out) == results(tmp_path / "long")


def test_validation_is_a_split_of_its_own_that_chooses(tmp_path: Path) -> None:
    own = {"a": 4, "b": 5}
    data = write_store(tmp_path / "a.h5", train=own, validation=own, test=own)
    config = make_config(data=data, data_options={}, rounds=2, clients="a,", eval_every=1)
    train(tmp_path / "all", config)
    for line in folder.read_metrics(tmp_path / "all"):
        assert list(line["evaluation"]) == ["train", "validation", "test"]
    assert evaluation.evaluate_run(tmp_path / "all").split == "test"
    assert evaluation.evaluate_run(tmp_path / "all", split="validation").split == "validation"
    judged = replace(config, eval_split="validation", keep_best="accuracy", patience=9)
    train(tmp_path / "one", judged)
    for line in folder.read_metrics(tmp_path / "one"):
        assert list(line["evaluation"]) == ["validation"]
    for split in ("train", "held-out"):
        with pytest.raises(
            ConfigError, match=f"needs evaluations on validation, which --eval-split {split}"
        ):
            train(tmp_path / split, replace(judged, eval_split=split))
    without = write_store(tmp_path / "b.h5", train=own, test=own)
    with pytest.raises(ConfigError, match="has no such split; make one with fedcli preprocess"):
        train(tmp_path / "none", replace(judged, data=without))


def test_validation_alone_is_what_is_held_out(tmp_path: Path) -> None:
    data = write_store(tmp_path / "a.h5", train={"a": 4}, validation={"validation": 7})
    config = make_config(data=data, data_options={}, rounds=1, clients="a,")
    with starting.start(config, tmp_path / "run") as training:
        assert training.notes == [
            f"{data} has no test data: evaluating on train and validation only"
        ]
        list(training.run())
        assert list(training.finish()) == ["train", "validation"]
    told = evaluation.evaluate_run(tmp_path / "run")
    assert (told.split, told.values["num_examples"]) == ("validation", 7)


def test_fewer_rounds_than_completed_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config())
    with pytest.raises(ConfigError, match=r"--rounds 5: .* has completed 6 rounds"):
        starting.resume(tmp_path / "run", rounds=5)
    resume_to_end(tmp_path / "run")  # the refused command has released the lock


@pytest.mark.numeric
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_run_follows_its_schedule(tmp_path: Path, side: str) -> None:
    """Losses equal those without a schedule up to round 2. Then the rate is 0 and they stay."""
    stops = {"boundaries": 2, "factors": 0.0}
    values = {f"{side}_schedule": "step", f"{side}_schedule_options": stops, "rounds": 4}
    evaluations = []
    for name, given in (("steady", {"rounds": 4}), ("stopped", values)):
        train(tmp_path / name, make_config(eval_every=1, **given))
        lines = folder.read_metrics(tmp_path / name)
        evaluations.append([line["evaluation"]["train"]["loss"] for line in lines])
    steady, stopped = evaluations
    assert steady[:3] == stopped[:3]
    assert len(set(steady)) == 5
    assert len(set(stopped[2:])) == 1


@pytest.mark.numeric
def test_a_decay_over_the_run_s_rounds_follows_a_new_total(tmp_path: Path) -> None:
    values = {"client_schedule": "cosine", "rounds": 3}
    train(tmp_path / "run", make_config(**values))
    with starting.resume(tmp_path / "run") as training:
        assert not any("--client-schedule" in note for note in training.notes)
    with starting.resume(tmp_path / "run", rounds=6) as training:
        assert training.notes[-1].startswith("--client-schedule ended after 3 rounds and ")
        training.complete()
    # The decay now takes 6 rounds, so in round 4 the rate is half of the first one. If the decay
    # had ended with round 3, no weight would change.
    lines = folder.read_metrics(tmp_path / "run")
    losses = [line["client_work"]["train"]["loss"] for line in lines]
    assert losses[5] < losses[4] < losses[3]
    assert folder.read_config(tmp_path / "run/config.toml")["client_schedule_options"] == {
        "decay_rounds": 0,
        "final_factor": 0.0,
        "warmup_rounds": 0,
    }


@pytest.mark.numeric
def test_a_run_clips_gradients(tmp_path: Path) -> None:
    """Each batch changes the model by at most the rate times the clipping norm."""
    values = {"clients": "1", "rounds": 1, "client_lr": 0.1, "client_clip_norm": 0.01}
    train(tmp_path / "run", make_config(**values))
    export_run(tmp_path / "run", tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as weights:
        length = math.sqrt(sum(float(np.square(each).sum()) for each in weights.values()))
    (line,) = folder.read_metrics(tmp_path / "run")
    num_steps = line["client_work"]["train"]["num_batches"]
    assert 0.25 * num_steps * 0.001 < length <= 1.0001 * num_steps * 0.001


def test_config_toml_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tff(tmp_path / "some.h5", {"a": 12, "b": 3, "c": 30})
    (tmp_path / "ids").write_text("c\na\n")
    monkeypatch.chdir(tmp_path)
    values = {"data": "some.h5", "data_options": {}, "clients": "@ids", "eval_clients": "@ids"}
    train(tmp_path / "first", make_config(**values, **VARIANTS["momentum"]))
    (tmp_path / "ids").unlink()
    monkeypatch.chdir("/")
    again = settings.from_options(folder.read_config(tmp_path / "first" / "config.toml"))
    assert again.clients == again.eval_clients == ("a", "c")
    train(tmp_path / "second", again)
    assert results(tmp_path / "second") == results(tmp_path / "first")


@pytest.mark.numeric
def test_every_client_as_a_cohort_does_not_depend_on_sampling(tmp_path: Path) -> None:
    """Drawing 12 of 12 clients takes all of them, in the same order."""
    train(tmp_path / "all", make_config(clients="all"))
    train(tmp_path / "drawn", make_config(clients="12", sampling="uniform"))
    assert (tmp_path / "all/metrics.jsonl").read_bytes() == (
        tmp_path / "drawn/metrics.jsonl"
    ).read_bytes()


@pytest.mark.numeric
def test_results_do_not_depend_on_threads_or_blocks_of_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "one", make_config(threads=1, clients="all", eval_every=3))
    monkeypatch.setattr("fedcli.federation.evaluation_groups.EVAL_BLOCK", 5)
    evaluation = train(tmp_path / "seven", make_config(threads=7, clients="all"))
    one = folder.read_metrics(tmp_path / "one")
    seven = folder.read_metrics(tmp_path / "seven")
    assert [line["client_work"] for line in one[1:]] == [line["client_work"] for line in seven]
    for split, values in one[-1]["evaluation"].items():
        blocks = evaluation[split]["client_work"]["eval"]["current_round_metrics"]
        # Only the order in which losses are added differs.
        assert blocks.pop("loss") == pytest.approx(values.pop("loss"), rel=1e-12)
        assert blocks == values


@pytest.mark.numeric
@pytest.mark.parametrize("sampling", [name for name in SAMPLINGS if name != "fixed"])
def test_drawn_cohorts_do_not_depend_on_threads(tmp_path: Path, sampling: str) -> None:
    for threads in (1, 2, 7):
        train(tmp_path / f"{threads}", make_config(sampling=sampling, threads=threads))
    one, two, seven = (
        [(tmp_path / name / file).read_bytes() for file in ("metrics.jsonl", "evaluation.json")]
        for name in ("1", "2", "7")
    )
    assert one == two == seven


def test_counting_examples_of_everyone_can_be_stopped() -> None:
    config = make_config(sampling="by-size", data_options={"clients": 10_000_000})
    cancel = native.CancelFlag()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(native.Cancelled):
        open_federation(config, cancel)


@pytest.mark.numeric
def test_an_empty_cohort_is_a_round_that_changes_nothing(tmp_path: Path) -> None:
    config = make_config(sampling="poisson", clients="1", seed=3, rounds=12, **MOMENTUM)
    num_empty = 0
    with starting.start(config, tmp_path / "run") as training:
        before = training.state
        for result in training.run():
            is_empty = result.num_clients == 0
            assert result.metrics["finalizer"] == {"update_non_finite": int(is_empty)}
            after = training.state
            assert after.round_num == result.round_num == before.round_num + 1
            if is_empty:
                num_empty += 1
                assert result.num_examples == 0
                assert np.array_equal(after.global_model_weights, before.global_model_weights)
                assert np.array_equal(
                    after.finalizer["accumulator"], before.finalizer["accumulator"]
                )
            before = after
    assert 0 < num_empty < 12
    lines = folder.read_metrics(tmp_path / "run")
    assert [line["round"] for line in lines] == list(range(1, 13))


@pytest.mark.numeric
def test_a_client_that_comes_twice_is_trained_twice(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {"a": 10, "b": 7})
    values = {"data": str(data), "data_options": {}, "clients": "2", "epochs": 1}
    config = make_config(**values, sampling="with-replacement", rounds=20)
    with starting.start(config, tmp_path / "run") as training:
        results = list(training.run())
    assert {result.num_clients for result in results} == {2}
    assert {result.num_examples for result in results} == {20, 17, 14}


def test_the_seed_shuffles_a_fixed_cohort(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / f"{seed}", make_config(seed=seed, rounds=1))
    shuffled = [folder.read_metrics(tmp_path / f"{seed}")[0]["client_work"] for seed in (0, 1)]
    assert shuffled[0]["train"]["loss"] != shuffled[1]["train"]["loss"]


def test_a_large_file_is_not_read_through_after_a_stop_or_an_error(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "train.h5", {"a": 3})
    with data.open("r+b") as file:
        file.truncate(1 << 40)  # an empty region that takes minutes to hash; HDF5 ignores it
    config = make_config(data=str(data), data_options={}, clients="1")
    cancel = native.CancelFlag()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(native.Cancelled):
        starting.start(config, tmp_path / "run", cancel=cancel)
    with pytest.raises(ConfigError, match="exceeds the 1 client "):
        starting.start(make_config(data=str(data), data_options={}, clients="2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for thread in threading.enumerate():
        if thread.name.startswith("fedcli-fingerprint"):
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def test_a_raised_flag_saves_the_last_completed_round(tmp_path: Path) -> None:
    config = make_config(rounds=ENDLESS)
    cancel = native.CancelFlag()
    with starting.start(config, tmp_path / "run", cancel=cancel) as training:

        def stop_soon() -> None:
            wait_until(lambda: training.round_num > 2)
            cancel.set()

        stopping = threading.Thread(target=stop_soon)
        stopping.start()
        with pytest.raises(native.Cancelled):
            for _ in training.run():
                pass
        stopping.join()
        completed = training.round_num
    assert completed > 2
    assert folder.latest_checkpoint(tmp_path / "run").name == f"round-{completed:06d}.h5"
    assert folder.read_metrics(tmp_path / "run")[-1]["round"] == completed
    with starting.resume(tmp_path / "run") as training:
        assert training.round_num == completed


def test_a_kill_before_old_checkpoints_are_dropped_leaves_no_more_of_them(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, make_config(checkpoint_every=1))
    kept = folder.checkpoint_rounds(out)
    newest = folder.latest_checkpoint(out)
    (newest.parent / "round-000003.h5").write_bytes(newest.read_bytes())
    (out / "evaluation.json").unlink()
    resume_to_end(out)
    assert folder.checkpoint_rounds(out) == kept == [5, 6]


def test_leaving_before_the_last_round_saves_too(tmp_path: Path) -> None:
    with starting.start(make_config(), tmp_path / "run") as training:
        rounds_left = training.run()
        next(rounds_left)
    assert folder.latest_checkpoint(tmp_path / "run").name == "round-000001.h5"
    rounds_left.close()


def test_the_clock_saves_when_no_schedule_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, saved in ((0.0, [1, 2, 3, 4, 5, 6]), (1e9, [6])):
        monkeypatch.setattr("fedcli.runs.saving.CHECKPOINT_SECONDS", seconds)
        with starting.start(make_config(), tmp_path / f"{seconds}") as training:
            rounds_saved = [each.round_num for each in training.run() if "save" in each.timings]
        assert rounds_saved == saved


def test_an_interrupted_save_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = make_config(checkpoint_every=2)
    train(tmp_path / "straight", config)
    out = tmp_path / "run"

    def fill_the_disk_after_round_3(patch: pytest.MonkeyPatch) -> None:
        with starting.start(config, out) as training:
            for result in training.run():
                if result.round_num == 3:
                    patch.setattr("os.replace", refuse)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left"):
        fill_the_disk_after_round_3(patch)
    assert folder.latest_checkpoint(out).name == "round-000002.h5"
    resume_to_end(out)
    assert results(out) == results(tmp_path / "straight")


def test_a_damaged_checkpoint_is_reported_by_every_reader(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, make_config())
    file = folder.latest_checkpoint(out)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for attempt in (
        starting.resume,
        evaluation.evaluate_run,
        lambda p: export_run(p, "w.npz"),
    ):
        for path in (out, file) if attempt is not starting.resume else (out,):
            with pytest.raises(CheckpointError, match="is damaged"):
                attempt(path)
    file.unlink()  # the checkpoint before it still exists
    resume_to_end(out)


def test_initial_weights_start_the_run(tmp_path: Path) -> None:
    train(tmp_path / "first", make_config(rounds=3))
    export_run(tmp_path / "first", tmp_path / "w.npz")
    config = make_config(initial_weights=str(tmp_path / "w.npz"), eval_every=1, rounds=1)
    train(tmp_path / "second", config)
    stored = folder.read_evaluation(tmp_path / "first")
    assert stored is not None
    start = folder.read_metrics(tmp_path / "second")[0]["evaluation"]
    assert start["test"] == stored["test"]["client_work"]["eval"]["current_round_metrics"]


@pytest.mark.parametrize(
    ("values", "kind", "fault"),
    [
        ({"clients": "13"}, ConfigError, "exceeds the 12 clients"),
        ({"clients": "0.5"}, ConfigError, "--clients 0.5: a share of all"),
        ({"eval_clients": "0.5"}, ConfigError, "--eval-clients 0.5: a share of all"),
        ({"clients": "nobody,"}, ConfigError, "--clients nobody: no such client"),
        ({"eval_clients": "nobody,"}, ConfigError, "--eval-clients nobody: no such client"),
        (
            {"sampling": "uniform", "clients": "a,b"},
            ConfigError,
            "--sampling uniform draws the clients itself",
        ),
        ({"initial_weights": "none.npz"}, ConfigError, "cannot read the weights"),
        ({"data": "none.h5", "data_options": {}}, DataError, "none.h5"),
        ({"test_data": "none.h5"}, FedcliError, "none.h5"),
        ({"client_lr": math.nan}, ConfigError, "client_lr=nan"),
    ],
)
def test_a_wrong_input_fails_before_the_run_appears(
    tmp_path: Path, values: dict[str, Any], kind: type[FedcliError], fault: str
) -> None:
    with pytest.raises(kind, match=fault) as caught:
        starting.start(RunConfig(**{**SMALL, **values}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_default_cohort_of_a_small_population_is_everyone_with_a_note(tmp_path: Path) -> None:
    config = make_config(clients=None, data_options={"clients": 3}, rounds=1)
    with starting.start(config, tmp_path / "run") as training:
        assert training.notes == ["synthetic-digits has 3 clients; all of them form the cohort"]
        assert training.config.clients == "3"


def test_absent_clients_are_skipped_and_counted(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {"a": 30, "b": 20, "c": 10})
    test = write_tff(tmp_path / "b.h5", {"a": 5, "c": 7, "d": 9})
    config = make_config(data=str(data), data_options={}, test_data=str(test), clients="3")
    with starting.start(config, tmp_path / "run") as training:
        read, of_test, skipped = training.notes
        assert read.startswith(f"{data} is read as")
        assert of_test.startswith(f"{test} is read as")
        assert f"1 of the 3 clients is not in the test split of {test}" in skipped
        list(training.run())
        closing = training.finish()
    assert (closing["test"]["num_clients"], closing["test"]["num_absent_clients"]) == (2, 1)
    values = closing["test"]["client_work"]["eval"]["current_round_metrics"]
    assert values["num_examples"] == 12
    # The test file, given by its path, gives the same values for the same clients. Below, all
    # clients are evaluated, in batches that each have examples of only one client.
    assert evaluation.evaluate_run(tmp_path / "run", data=str(test)).values == values
    assert evaluation.evaluate_run(tmp_path / "run").notes == (
        f"1 of the 3 clients is not in the test split of {test} and is skipped",
    )
    everyone = evaluation.evaluate_run(
        tmp_path / "run", data=str(test), clients="all", batch_size=5
    )
    assert everyone.values["num_examples"] == 21
    assert everyone.values["num_batches"] == 1 + 2 + 2
    twice = evaluation.evaluate_run(tmp_path / "run", data=str(test), clients="d,", epochs=2)
    assert twice.values["num_examples"] == 18
    with pytest.raises(ConfigError, match="clients=b: no such client"):
        evaluation.evaluate_run(tmp_path / "run", data=str(test), clients="a,b")


def test_a_run_without_test_data_says_so(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {f"w{index}": 9 for index in range(10)})
    config = make_config(data=str(data), data_options={}, rounds=1)
    with starting.start(config, tmp_path / "run") as training:
        assert training.notes[0].startswith(f"{data} is read as format tff-h5; splits train; ")
        assert training.notes[1:] == [f"{data} has no test data: evaluating on train only"]
        list(training.run())
        assert list(training.finish()) == ["train"]
    assert evaluation.evaluate_run(tmp_path / "run").split == "train"
    with pytest.raises(ConfigError, match="split=test"):
        evaluation.evaluate_run(tmp_path / "run", split="test")


def write_store(path: Path, **splits: dict[str, int]) -> str:
    """Writes a small store, with the number of examples of each client by split."""
    info = StoreInfo(num_classes=10, pixel_convention="ink")

    def client(name: str, count: int) -> ClientDataset:
        labels = np.arange(count, dtype=np.int32) % 10
        return ClientDataset(name, np.zeros((count, 3, 3), np.uint8), labels, 1.0, 0.0, "drawn")

    clients = {split: [client(*each) for each in sizes.items()] for split, sizes in splits.items()}
    store_writer.create(path, clients, info)
    return str(path)


def test_central_is_evaluated_where_there_is_no_test(tmp_path: Path) -> None:
    data = write_store(tmp_path / "a.h5", train={"a": 4, "b": 5}, central={"a": 7, "pool": 2})
    config = make_config(data=data, data_options={}, rounds=2, clients="a,", eval_every=1)
    out = tmp_path / "run"
    with starting.start(config, out) as training:
        assert training.notes == []
        list(training.run())
        closing = training.finish()
    assert list(closing) == ["train", "central"]
    assert [list(line["evaluation"]) for line in folder.read_metrics(out)] == 3 * [
        ["train", "central"]
    ]
    assert (closing["central"]["num_clients"], closing["central"]["num_absent_clients"]) == (2, 0)
    for split in (None, "central"):
        told = evaluation.evaluate_run(out, split=split)
        assert (told.split, told.values["num_examples"], told.notes) == ("central", 9, ())
        assert told.metrics == closing["central"]
    assert evaluation.evaluate_run(out, split="train").values["num_examples"] == 4
    assert evaluation.evaluate_run(out, clients="a,").values["num_examples"] == 7


def test_a_test_split_goes_before_central(tmp_path: Path) -> None:
    data = write_store(tmp_path / "a.h5", train={"a": 4}, test={"a": 3}, central={"pool": 2})
    config = make_config(data=data, data_options={}, rounds=1, clients="all")
    assert list(train(tmp_path / "run", config)) == ["train", "test"]
    assert evaluation.evaluate_run(tmp_path / "run").split == "test"


@pytest.mark.parametrize("who", [{"clients": "a,b"}, {"clients": "all", "eval_clients": "a,b"}])
def test_a_split_without_any_of_the_cohort_is_evaluated_on_all(
    tmp_path: Path, who: dict[str, str]
) -> None:
    sizes = {"a": 4, "b": 5, "c": 6}
    data = write_store(tmp_path / "a.h5", train=sizes, test={"x": 7, "y": 2, "z": 1})
    note = (
        f"none of the 2 clients is in the test split of {data}: evaluating on all of its 3 clients"
    )
    with starting.start(
        make_config(data=data, data_options={}, **who), tmp_path / "run"
    ) as training:
        assert training.notes == [note]
        list(training.run())
        closing = training.finish()
    values = closing["test"]["client_work"]["eval"]["current_round_metrics"]
    assert values["num_examples"] == 10
    assert (closing["test"]["num_clients"], closing["test"]["num_absent_clients"]) == (3, 2)
    if "eval_clients" in who:
        return
    told = evaluation.evaluate_run(tmp_path / "run")
    assert (told.metrics, told.notes) == (closing["test"], (note,))
    other = write_store(tmp_path / "b.h5", train={"x": 7})
    assert evaluation.evaluate_run(tmp_path / "run", data=other).values["num_examples"] == 7
    with pytest.raises(ConfigError, match="clients=a: no such client"):
        evaluation.evaluate_run(tmp_path / "run", clients="a,b")


def test_a_large_population_is_evaluated_on_a_random_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohorts, "MAX_EVAL_POPULATION", 4)
    monkeypatch.setattr(cohorts, "NUM_EVAL_CLIENTS", 2)
    others = {f"x{index}": 2**index for index in range(5)}
    data = write_store(tmp_path / "a.h5", train={"a": 4}, test=others)
    counts = set()
    for seed in range(4):
        config = make_config(data=data, data_options={}, rounds=1, clients="all", seed=seed)
        closing = train(tmp_path / str(seed), config)
        assert closing["test"]["num_clients"] == 2
        told = evaluation.evaluate_run(tmp_path / str(seed))
        assert told.metrics == closing["test"]
        assert told.notes[-1].endswith(": evaluating on 2 of its 5 clients, drawn from the seed")
        counts.add(told.values["num_examples"])
    assert len(counts) > 1  # no two pairs of clients have equally many examples


def test_other_data_are_evaluated_without_the_test_data_of_the_run(tmp_path: Path) -> None:
    data, test, other = (
        str(write_tff(tmp_path / name, {"a": size}))
        for name, size in (("a.h5", 3), ("b.h5", 3), ("c.h5", 4))
    )
    train(tmp_path / "run", make_config(data=data, test_data=test, data_options={}, clients="all"))
    assert evaluation.evaluate_run(tmp_path / "run").source == test
    assert evaluation.evaluate_run(tmp_path / "run", data=other).source == other
    Path(data).unlink()
    with pytest.raises(DataError, match=r"cohort is not known \(.*a\.h5"):
        evaluation.evaluate_run(tmp_path / "run", data=other)
    assert evaluation.evaluate_run(tmp_path / "run", data=other, clients="all").source == other


def test_evaluation_and_export_need_no_training_data(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {f"w{index}": 9 for index in range(10)})
    train(tmp_path / "run", make_config(data=str(data), data_options={}, rounds=1))
    data.rename(tmp_path / "b.h5")
    moved = str(tmp_path / "b.h5")
    assert evaluation.evaluate_run(tmp_path / "run", data=moved, clients="all").num_clients == 10
    assert export_run(tmp_path / "run", tmp_path / "w.npz") == [
        ("dense/kernel", (784, 10)),
        ("dense/bias", (10,)),
    ]
    with pytest.raises(DataError, match=r"a\.h5"):
        evaluation.evaluate_run(tmp_path / "run")


def test_data_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(rounds=1))
    small = write_tff(tmp_path / "small.h5", {"a": 3}, side=14)
    with pytest.raises(DataError, match=r"shape \[14, 14\], but the model takes \[28, 28\]"):
        evaluation.evaluate_run(tmp_path / "run", data=str(small), clients="all")
    with pytest.raises(DataError, match="has 62 classes, but the model has 10"):
        evaluation.evaluate_run(tmp_path / "run", num_classes=62)


def test_changed_data_are_noted_on_resume(tmp_path: Path) -> None:
    data = write_tff(tmp_path / "a.h5", {f"w{index}": 9 for index in range(10)})
    train(tmp_path / "run", make_config(data=str(data), data_options={}, rounds=1))
    write_tff(data, {f"w{index}": 8 for index in range(10)})
    with starting.resume(tmp_path / "run", rounds=2) as training:
        assert any("has changed since the run began" in note for note in training.notes)


@pytest.mark.parametrize("kind", ["tff", "store"])
def test_changed_data_are_noted_in_an_evaluation(tmp_path: Path, kind: str) -> None:
    def write(count: int) -> str:
        clients = {"a": count, "b": count}
        if kind == "tff":
            return str(write_tff(tmp_path / "a.h5", clients))
        return write_store(tmp_path / "a.h5", train=clients)

    out = tmp_path / "run"
    config = make_config(data=write(9), data_options={}, rounds=1, clients="a,")
    train(out, config)
    assert evaluation.evaluate_run(out).notes == ()
    data = write(8)
    note = f"{data} has changed since the run began; this evaluates the data as they are now"
    assert evaluation.evaluate_run(out).notes == (note,)
    assert evaluation.evaluate_run(folder.latest_checkpoint(out)).notes == (note,)
    for found in (
        evaluation.evaluate_run(out, data=data, split="train"),
        evaluation.evaluate_run(out, partition="label-noise"),
    ):
        assert [note.startswith(f"{data} is read as format tff-h5; ") for note in found.notes] == (
            [True] if kind == "tff" else []
        )


@pytest.mark.parametrize(
    ("text", "other", "fault"),
    [
        ("[run.server_options]\nmomentum = 0.0", "[run.server_options]\nmomentum = 0.9", None),
        (
            "client_lr = 0.02",
            "client_lr = 0.1",
            r"client_lr is 0\.1, but the rounds .* with 0\.02;",
        ),
        ("seed = 0", "seed = 1", "seed is 1, but"),
        ('sampling = "fixed"', 'sampling = "uniform"', "sampling is 'uniform', but"),
    ],
)
def test_a_config_edited_to_another_run_is_refused(
    tmp_path: Path, text: str, other: str, fault: str | None
) -> None:
    train(tmp_path / "run", make_config(rounds=1))
    file = tmp_path / "run" / "config.toml"
    whole = file.read_text()
    assert text in whole
    file.write_text(whole.replace(text, other))
    before = snapshot(tmp_path / "run")
    with pytest.raises(ConfigError, match=fault or "server_options is .*; put .* back, or start"):
        starting.resume(tmp_path / "run", rounds=2)
    assert snapshot(tmp_path / "run") == before
    file.write_text(whole)
    resume_to_end(tmp_path / "run", rounds=2)


def test_a_config_may_change_options_without_effect_on_rounds(tmp_path: Path) -> None:
    train(tmp_path / "straight", make_config())
    train(tmp_path / "run", make_config(rounds=3))
    file = tmp_path / "run" / "config.toml"
    text = file.read_text().replace("threads = 2", "threads = 1", 1)
    file.write_text(text.replace("keep_checkpoints = 2", "keep_checkpoints = 9"))
    resume_to_end(tmp_path / "run", rounds=6)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert folder.checkpoint_rounds(tmp_path / "run") == [0, 3, 6]


def test_a_checkpoint_of_other_optimizers_does_not_fit(tmp_path: Path) -> None:
    train(tmp_path / "run", make_config(rounds=1))
    train(tmp_path / "other", make_config(rounds=1, **MOMENTUM))
    source = folder.latest_checkpoint(tmp_path / "other")
    content = replace(checkpoint.load(source), config=(tmp_path / "run/config.toml").read_text())
    folder.latest_checkpoint(tmp_path / "run").write_bytes(checkpoint.encode(content))
    with pytest.raises(CheckpointError, match=r"finalizer holds .*, but .* needs nothing"):
        starting.resume(tmp_path / "run", rounds=2)


def test_real_writers_under_random_sampling_are_all_evaluated(
    tmp_path: Path, shared_data: Path
) -> None:
    config = settings.from_options(
        {
            "data": str(shared_data / "mnist_writers_train.h5"),
            "test_data": str(shared_data / "mnist_writers_test.h5"),
            "sampling": "uniform",
            "rounds": 2,
            "epochs": 1,
            "pixels": "ink",
            "client_lr": 0.1,
        }
    )
    closing = train(tmp_path / "run", config)
    assert closing["test"]["client_work"]["eval"]["current_round_metrics"]["num_examples"] == 5997
    assert closing["train"]["num_clients"] == 539


def test_other_data_are_seen_as_the_model_was_trained(tmp_path: Path) -> None:
    background = write_tff(tmp_path / "background.h5", {"a": 30, "b": 20})
    train(tmp_path / "run", make_config(data=str(background), data_options={}, clients="2"))
    with h5py.File(background) as file, h5py.File(tmp_path / "ink.h5", "w") as other:
        for client in file["examples"]:
            pixels = file[f"examples/{client}/pixels"][()]
            group = other.create_group(f"examples/{client}")
            group["image"] = np.rint(255 * (1 - pixels)).astype(np.uint8)
            group["label"] = file[f"examples/{client}/label"][()]
    own = evaluation.evaluate_run(tmp_path / "run", clients="all").values
    same = evaluation.evaluate_run(tmp_path / "run", data=str(tmp_path / "ink.h5"), clients="all")
    assert same.values["loss"] == pytest.approx(own["loss"], abs=0.05)
    inverted = evaluation.evaluate_run(
        tmp_path / "run", data=str(tmp_path / "ink.h5"), clients="all", pixels="source"
    )
    assert abs(inverted.values["loss"] - own["loss"]) > 0.1


@pytest.mark.numeric
@pytest.mark.parametrize("values", [{"server_ema": 0.9}, {"algorithm": "feddyn"}])
def test_what_is_evaluated_is_what_is_exported(tmp_path: Path, values: dict[str, Any]) -> None:
    out = tmp_path / "run"
    with starting.start(make_config(**values), out) as training:
        list(training.run())
        closing = training.finish()
        state, layout = training.state, training.process.model.layout
    assert state.evaluated_weights.tobytes() != state.global_model_weights.tobytes()
    export_run(out, tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as file:
        exported = layout.join([file[name] for name in file.files])
    assert exported.tobytes() == state.evaluated_weights.tobytes()
    assert evaluation.evaluate_run(out, split="test").metrics == closing["test"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"algorithm": "fedavg"}, 12),
        ({"algorithm": "mime-lite"}, 24),  # two passes
        ({"algorithm": "centralized"}, 0),  # one client of all examples
    ],
)
def test_the_clients_of_a_round_are_counted_while_it_runs(
    tmp_path: Path, values: dict[str, Any], wanted: int
) -> None:
    cancel = native.CancelFlag()
    config = make_config(rounds=2, epochs=1, clients="12", threads=2, **values)
    with starting.start(config, tmp_path / "run", cancel=cancel) as training:
        for _ in training.run():
            assert training.num_trained_in_round == wanted
            assert cancel.num_trained == (wanted or 1)
