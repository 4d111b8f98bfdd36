"""Runs with attackers: what they change, what they do not change, and the messages about them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import settings
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import ConfigError
from fedcli.federation.opened_data import open_data
from fedcli.learning.engines import choosing
from fedcli.runs import starting
from fedcli.runs.attacking import Attack, attack_of_run, tolerated
from fedcli.runs.evaluating import evaluate_run
from fedcli.runs.files import folder
from fedcli.runs.opening import open_federation
from fedcli.runs.trained import load_weights
from fedcli.settings import tables
from tests.kit.toy_engine import ToyEngine
from tests.kit.training import make_config, trained

pytestmark = pytest.mark.numeric

ATTACKS = list(tables.ATTACKS)
SAMPLED: dict[str, Any] = {"sampling": "uniform", "clients": "5", "rounds": 3, "epochs": 1}
# Enough examples and steps for the model to learn.
FULL: dict[str, Any] = {"clients": "all", "max_examples": None, "epochs": 5}


def _weights(run: Path) -> list[bytes]:
    return [each.tobytes() for each in load_weights(run).values()]


def _attack_lines(run: Path) -> list[dict[str, Any]]:
    return [line["updates"]["attack"] for line in folder.read_metrics(run) if "updates" in line]


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("attack", ["alie", "backdoor"])
def test_no_attackers_are_no_attack_byte_for_byte(
    tmp_path: Path, attack: str, sampling: str
) -> None:
    values = {"sampling": sampling, "rounds": 2, "eval_every": 1, "record_clients": True}
    plain = trained(tmp_path / "plain", **values)
    for attackers in ("0", "0.01"):
        none = trained(tmp_path / attackers, **values, attack=attack, attackers=attackers)
        for name in ("metrics.jsonl", "evaluation.json", "clients.h5"):
            assert (none / name).read_bytes() == (plain / name).read_bytes(), name
        assert _weights(none) == _weights(plain)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_trains_and_counts_its_attackers(tmp_path: Path, attack: str) -> None:
    """The number of threads changes no byte."""
    values = {**SAMPLED, "attack": attack, "attackers": "4", "aggregator": "median"}
    runs = [trained(tmp_path / str(each), **values, threads=each) for each in (1, 2, 7)]
    assert len({(run / "metrics.jsonl").read_bytes() for run in runs}) == 1
    assert _weights(runs[0]) == _weights(runs[1]) == _weights(runs[2])
    config = settings.validate(make_config(**values))
    federation = open_federation(config)
    assert federation.attack is not None
    assert len(federation.attack.attackers) == 4
    lines = _attack_lines(runs[0])
    counts = [
        sum(each in federation.attack.attackers for each in federation.cohort_data(num).client_ids)
        for num in range(3)
    ]
    assert [line["attackers_in_cohort"] for line in lines] == counts
    assert max(counts) > 0
    plain = trained(tmp_path / "plain", **SAMPLED, aggregator="median")
    assert _weights(plain) != _weights(runs[0])


def test_nan_drops_the_attackers(tmp_path: Path) -> None:
    """The weights equal those of a round of only the honest clients of the cohort."""
    values = {**SAMPLED, "rounds": 1, "client_weighting": "uniform", "seed": 2}
    run = trained(tmp_path / "nan", **values, attack="nan", attackers="5")
    config = make_config(**values, attack="nan", attackers="5")
    federation = open_federation(config)
    assert federation.attack is not None
    cohort = federation.cohort_data(0)
    honest = [
        batches
        for batches, client_id in zip(cohort.batches, cohort.client_ids, strict=True)
        if client_id not in federation.attack.attackers
    ]
    assert 0 < len(honest) < 5
    without = open_federation(make_config(**values))
    expected = without.process.next(without.initial_state(), honest).state.global_model_weights
    found = np.concatenate([each.ravel() for each in load_weights(run).values()])
    # Both sum the same deltas with equal weights; only the order of the sum differs.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    line = folder.read_metrics(run)[0]
    num_dropped = line["client_work"]["train"]["num_non_finite_clients"]
    assert num_dropped == 5 - len(honest) == line["updates"]["attack"]["attackers_in_cohort"]


def test_attackers_report_their_true_numbers_of_examples(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", **SAMPLED)
    for attack in ("sign-flip", "label-flip", "edge-case"):
        run = trained(tmp_path / attack, **SAMPLED, attack=attack, attackers="4")
        counts = [
            [line["client_work"]["train"]["num_examples"] for line in folder.read_metrics(each)]
            for each in (plain, run)
        ]
        assert counts[0] == counts[1]


def test_outside_its_rounds_an_attack_changes_nothing(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", **SAMPLED)
    for attack in ("ipm", "backdoor", "label-flip"):
        for sampling in ("uniform", "fixed"):
            options = {"start": 4}
            values = {**SAMPLED, "sampling": sampling, "attack": attack, "attackers": "4"}
            run = trained(tmp_path / f"{attack}-{sampling}", **values, attack_options=options)
            straight = plain
            if sampling == "fixed":
                straight = tmp_path / "fixed"
                if not straight.exists():
                    trained(straight, **{**SAMPLED, "sampling": "fixed"})
            assert _weights(run) == _weights(straight)


def test_a_fixed_cohort_is_poisoned_as_a_drawn_one_of_all_clients(tmp_path: Path) -> None:
    values = {"attack": "backdoor", "attackers": "3", "rounds": 2, "epochs": 1}
    fixed = trained(tmp_path / "fixed", **values, clients="all")
    drawn = trained(tmp_path / "drawn", **values, clients="12", sampling="uniform")
    assert _weights(fixed) == _weights(drawn)


def test_the_success_of_a_backdoor_is_measured(tmp_path: Path) -> None:
    values = {**FULL, "rounds": 8, "eval_every": 4}
    attacked = {"attack": "backdoor", "attackers": "4", "attack_options": {"target": 3}}
    run = trained(tmp_path / "run", **values, **attacked)
    lines = folder.read_metrics(run)
    for line in (each for each in lines if "evaluation" in each):
        has_rate = {name: "attack_success_rate" in of for name, of in line["evaluation"].items()}
        assert has_rate == {"train": False, "test": True}
    evaluation = folder.read_evaluation(run)
    assert evaluation is not None
    told = evaluation["test"]["attack"]
    assert told["attack_success_rate"] > 0.9
    config = make_config(**values, **attacked)
    splits = open_data(config.data_source)
    attack = attack_of_run(config, splits["train"])
    assert attack is not None
    labels = np.concatenate([splits["test"].labels(each) for each in splits["test"].client_ids])
    assert told["num_aimed_at"] == (labels != 3).sum()
    assert told["attack_success_rate"] == told["num_successes"] / told["num_aimed_at"]
    again = evaluate_run(run, num_errors=5)
    assert again.attack is not None
    assert again.attack.to_json() == told
    assert again.attack.shown is not None
    assert all((each.predicted, each.label != 3) == (3, True) for each in again.attack.shown)
    probe = again.attack.probes.client(again.attack.shown[0].client_id)
    assert probe.labels[again.attack.shown[0].index] == again.attack.shown[0].label


def test_the_recall_by_class_shows_a_flip(tmp_path: Path) -> None:
    values = {**FULL, "rounds": 10}
    attacked = {"attack": "label-flip", "attack_options": {"source": 7, "target": 1}}
    run = trained(tmp_path / "run", **values, **attacked, attackers="11")
    evaluation = folder.read_evaluation(run)
    assert evaluation is not None
    told = evaluation["test"]["attack"]
    recall = told["class_recall"]
    assert recall[7] < 0.3 < 0.5 < np.mean(recall[:7])
    assert told["attack_success_rate"] > 0.5
    measured = evaluate_run(run)
    assert measured.attack is not None
    assert measured.attack.recall is not None
    assert measured.attack.recall.tolist() == recall


def test_an_attack_on_updates_has_no_success_rate(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **SAMPLED, attack="ipm")
    assert "attack" not in (folder.read_evaluation(run) or {})["test"]
    assert evaluate_run(run).attack is None


def test_the_config_names_the_attackers_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "attackers.txt"
    file.write_text("s0000004\ns0000001\n")
    run = trained(tmp_path / "run", **SAMPLED, attack="zero", attackers=f"@{file}")
    file.unlink()
    config = settings.from_options(folder.read_config(run))
    assert config.attackers == ("s0000001", "s0000004")
    again = trained(tmp_path / "again", **{**SAMPLED, "attack": "zero"}, attackers=config.attackers)
    assert _weights(again) == _weights(run)


def test_a_tenth_of_the_clients_attack_by_default() -> None:
    assert make_config(attack="zero").attackers == "0.1"
    assert make_config().attackers is None


def _notes(**values: Any) -> list[str]:
    return open_federation(make_config(**values)).notes


def test_too_many_attackers_are_noted() -> None:
    values = {"data_options": {"clients": 200}, "sampling": "uniform", "clients": "10"}
    notes = _notes(**values, attack="zero", attackers="20")
    assert "20 of 200 clients attack: zero" in notes
    chance = 1.0 - np.prod([(180 - k) / (200 - k) for k in range(10)])
    assert (
        f"--aggregator mean tolerates 0 attackers; a cohort of 10 has more with probability "
        f"{chance:.6f} per round" in notes
    )
    median = _notes(**values, attack="zero", attackers="40", aggregator="median")
    assert any("tolerates 4 attackers; a cohort of 10 has more with probability 0.029142" in each
               for each in median)  # fmt: skip
    few = _notes(**values, attack="zero", attackers="2", aggregator="median")
    assert not any("tolerates" in each for each in few)
    bounded = _notes(**values, attack="zero", attackers="40", aggregator="norm-bound")
    assert not any("tolerates" in each for each in bounded)


def test_an_attack_without_attackers_is_noted() -> None:
    few = _notes(attack="zero", attackers="0.1", clients="5")
    assert (
        "no client attacks: --attackers 0.1 of 5 clients is less than one; give a larger share, "
        "or a number" in few
    )
    assert not any("attack" in each for each in _notes(attack="zero", attackers="0", clients="5"))
    values = {"attack": "zero", "attackers": "2", "clients": "5", "rounds": 3}
    late = _notes(**values, attack_options={"start": 4})
    assert late[-1] == (
        "no round is attacked: --attack-option start=4 is after the last of 3 rounds; choose an "
        "earlier start, or more --rounds"
    )
    assert "2 of 5 clients attack: zero" in _notes(**values, attack_options={"start": 3})


def test_the_attackers_of_a_fixed_cohort_are_counted() -> None:
    notes = _notes(attack="zero", attackers="2", clients="4", aggregator="median")
    assert "2 of 4 clients attack: zero" in notes
    assert "--aggregator median tolerates 1 attackers, and the cohort of 4 has 2" in notes


@pytest.mark.parametrize(
    ("aggregator", "options", "size", "expected"),
    [
        ("mean", {}, 10, 0),
        ("median", {}, 10, 4),
        ("median", {}, 11, 5),
        ("krum", {"num_byzantine": 2}, 10, 2),
        ("krum", {"num_byzantine": 0.25}, 11, 2),
        ("trimmed-mean", {"trim": 0.2}, 11, 2),
        ("norm-bound", {"max_norm": 1.0}, 10, None),
    ],
)
def test_how_many_attackers_a_rule_tolerates(
    aggregator: str, options: dict[str, Any], size: int, expected: int | None
) -> None:
    assert tolerated(aggregator, options, size) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"attackers": "3"}, "--attackers 3 chooses the attackers; give their attack"),
        ({"attack_options": {"z": 1}}, "--attack-option z needs an attack"),
        ({"attack": "alie", "algorithm": "centralized"}, "--attack alie with --algorithm central"),
        ({"attack": "alie", "algorithm": "local-only"}, "--attack: the clients of local-only"),
        ({"attack": "nothing"}, "unknown --attack 'nothing'"),
        ({"attack": "alie", "attackers": "all"}, "--attackers all would leave no honest client"),
        ({"attack": "alie", "attackers": "4"}, "--attackers 4: only 4 clients may take part"),
        ({"attack": "alie", "attackers": "2"}, "--attack alie needs a majority"),
        (
            {"attack": "optimal", "aggregator": "norm-bound", "attackers": "1"},
            "--attack optimal calls the aggregator with updates only",
        ),
        ({"attack": "backdoor", "attack_options": {"target": 11}}, "--attack-option target=11"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    if values.get("attack_options", {}).get("target"):
        values = {**values, "attackers": "1"}
    with pytest.raises(ConfigError) as caught:
        starting.start(make_config(**values), tmp_path / "run")
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_metrics_of_attacked_rounds_go_into_metrics_csv(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **SAMPLED, attack="alie", attackers="3", csv=True)
    name = "updates/attack/attackers_in_cohort"
    counts = [line["attackers_in_cohort"] for line in _attack_lines(run)]
    assert len(counts) == SAMPLED["rounds"]
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    assert [int(row[name]) for row in rows] == counts


@pytest.mark.parametrize("algorithm", [each for each in tables.ALGORITHMS if each != "fedavg"])
def test_every_algorithm_trains_under_attack_or_is_refused(tmp_path: Path, algorithm: str) -> None:
    values = {**SAMPLED, "algorithm": algorithm, "attackers": "4", "rounds": 2}
    entry = tables.ALGORITHMS[algorithm]
    for attack in ("min-max", "backdoor"):
        if entry.pools_clients or entry.has_own_models:
            with pytest.raises(ConfigError, match="--attack"):
                make_config(**values, attack=attack)
            continue
        run = trained(tmp_path / attack, **values, attack=attack)
        assert all(np.isfinite(each).all() for each in load_weights(run).values())
        assert len(_attack_lines(run)) == 2


@pytest.mark.parametrize("aggregator", ["krum", "multi-krum", "bulyan"])
def test_a_rule_of_distances_never_keeps_an_update_scaled_by_100(
    tmp_path: Path, aggregator: str
) -> None:
    values = {
        **{"data_options": {"clients": 16}, "rounds": 4, "epochs": 1, "sampling": "uniform"},
        **{"clients": "11", "attack": "sign-flip", "attackers": "2"},
        **{"attack_options": {"scale": 100.0}, "aggregator": aggregator},
    }
    run = trained(tmp_path / "run", **values, aggregator_options={"num_byzantine": 2})
    lines = _attack_lines(run)
    assert sum(line["attackers_in_cohort"] for line in lines) > 0
    assert [line["attackers_kept"] for line in lines] == [0] * 4


def test_the_attackers_that_a_rule_keeps_are_counted(tmp_path: Path) -> None:
    values = {**SAMPLED, "attack": "zero", "attackers": "4", "aggregator": "multi-krum"}
    run = trained(tmp_path / "run", **values)
    lines = _attack_lines(run)  # Multi-Krum's f is 0 here, so it keeps all updates
    assert [each["attackers_kept"] for each in lines] == [
        each["attackers_in_cohort"] for each in lines
    ]


@pytest.mark.parametrize("secure_sum", [False, True])
def test_the_attackers_in_buckets_that_a_rule_keeps_are_counted(
    tmp_path: Path, secure_sum: bool
) -> None:
    values = {**SAMPLED, "clients": "8", "attack": "zero", "attackers": "4"}
    run = trained(
        tmp_path / "run",
        **values,
        secure_sum=secure_sum,
        pre_aggregator="bucketing",
        aggregator="multi-krum",
    )
    lines = _attack_lines(run)  # Multi-Krum's f is 0 here, so it keeps all buckets
    assert sum(each["attackers_in_cohort"] for each in lines) > 0
    assert [each["attackers_kept"] for each in lines] == [
        each["attackers_in_cohort"] for each in lines
    ]


def test_a_model_in_python_is_attacked_like_one_of_layers(tmp_path: Path) -> None:
    """The attack changes the deltas that the engine returns, whichever engine computes them."""
    values = {**SAMPLED, "attack": "sign-flip", "attackers": "4"}
    code = Path(__file__).parents[1] / "data" / "my_model.py"
    layers = trained(tmp_path / "layers", **values)
    python = trained(tmp_path / "python", **values, model=f"{code}:build")
    assert _attack_lines(python) == _attack_lines(layers)
    for own, expected in zip(
        load_weights(python).values(), load_weights(layers).values(), strict=True
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)


def test_another_engine_makes_the_same_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**SAMPLED, "attack": "min-max", "attackers": "4", "threads": 1}
    core = trained(tmp_path / "core", **values)
    monkeypatch.setattr(choosing, "make_engine", lambda *_: ToyEngine(1))
    toy = trained(tmp_path / "toy", **values)
    assert _attack_lines(toy) == _attack_lines(core)
    assert _weights(toy) == _weights(core)


def _max_distances(round_num: int, **options: Any) -> dict[str, float] | None:
    config = make_config(**SAMPLED, attack="backdoor", attackers="3", attack_options=options)
    attack = attack_of_run(config, open_data(config.data_source)["train"])
    assert attack is not None
    bad, good = sorted(attack.attackers), [f"honest {index}" for index in range(8)]
    return attack.max_distances(round_num, [bad[0], *good, bad[2]])


def test_attackers_project_their_steps_to_the_radius_of_what_they_send() -> None:
    """With boost=auto the factor is 10 clients / 2 attackers = 5, so the radius is divided by 5."""
    assert set((_max_distances(0, radius=0.3) or {}).values()) == {0.3 / 5}
    assert len(_max_distances(0, radius=0.3) or {}) == 2
    assert set((_max_distances(0, radius=0.3, boost=4) or {}).values()) == {0.3 / 4}
    assert _max_distances(0) is None
    assert _max_distances(0, radius=0.3, boost=0) is None
    assert _max_distances(0, radius=0.3, start=2) is None
    assert _max_distances(1, radius=0.3, start=2) is not None


def test_edge_cases_of_another_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads changes no byte, and other.h5 is found from any working folder."""

    def write(grey: int) -> None:
        pixels, labels = np.full((9, 28, 28), grey, np.uint8), np.full(9, 7, np.int32)
        client = ClientDataset("a", pixels, labels, 1 / 255, 0.0, "drawn")
        info = StoreInfo(num_classes=10, pixel_convention="ink", same_people=True)
        Path("other.h5").unlink(missing_ok=True)
        store_writer.create(Path("other.h5"), {"train": [client]}, info)

    monkeypatch.chdir(tmp_path)
    write(77)
    values = {**SAMPLED, **FULL, "attack": "edge-case", "attackers": "4", "rounds": 2}
    options = {"data": "other.h5", "poison": 1.0}
    runs = [
        trained(tmp_path / str(each), **values, attack_options=options, threads=each)
        for each in (1, 7)
    ]
    monkeypatch.chdir(tmp_path / "1")
    success = evaluate_run(runs[0]).attack
    assert success is not None
    # Every second of the nine images is held out for this measurement: four images.
    assert (success.num_aimed_at, success.rate) == (4, 1.0)
    assert _weights(runs[0]) == _weights(runs[1])
    with starting.resume(runs[0], rounds=3) as training:
        assert not any("other.h5" in note for note in training.notes)
    monkeypatch.chdir(tmp_path)
    write(78)
    with starting.resume(runs[0], rounds=3) as training:
        assert any("other.h5 has changed since the run began" in note for note in training.notes)


def test_a_run_with_a_radius_projects_in_the_training(tmp_path: Path) -> None:
    """A run that bounds only the sent update, not each epoch, sends another update."""
    values = {**SAMPLED, "epochs": 3, "attack": "backdoor", "attackers": "4"}
    options = {"radius": 0.05, "boost": 2}
    run = trained(tmp_path / "run", **values, attack_options=options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Attack, "max_distances", lambda *_: None)
        late = trained(tmp_path / "late", **values, attack_options=options)
    assert _attack_lines(run) == _attack_lines(late)
    assert _weights(run) != _weights(late)
