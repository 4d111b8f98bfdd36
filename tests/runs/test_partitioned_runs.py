"""Partitions from the command line to the run's files, and against a store of the same clients."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import datasets, settings
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.partitions import partitioning
from fedcli.datasets.partitions.partitioned_split import PartitionedSplit
from fedcli.datasets.preparation.prepare_options import PrepareOptions
from fedcli.datasets.preparation.preparing import prepare
from fedcli.datasets.sources import store, store_writer
from fedcli.errors import ConfigError, DataError
from fedcli.runs import evaluating, starting
from fedcli.runs.files import folder
from fedcli.settings.run_config import RunConfig
from tests.kit.training import SMALL, figures, resume_to_end, train, train_rounds

MIXED = "dirichlet-client+label-noise+feature-noise"
DEALT: dict[str, Any] = {
    "threads": None,
    "partition": MIXED,
    "partition_options": {"clients": 6, "alpha": 0.3, "rate": 0.2, "seed": 3},
    "rounds": 4,
    "eval_every": 2,
}


def make_config(**values: Any) -> RunConfig:
    return settings.from_options({**SMALL, **DEALT, **values})


def assert_equal_splits(one: datasets.ClientData, other: datasets.ClientData) -> None:
    assert list(one.client_ids) == list(other.client_ids)
    for client_id in one.client_ids:
        mine, theirs = one.client(client_id), other.client(client_id)
        assert np.array_equal(mine.labels, theirs.labels)
        assert np.array_equal(one.labels(client_id), mine.labels)
        assert mine.images().tobytes() == theirs.images().tobytes()
        assert one.num_examples(client_id) == len(mine)


@pytest.fixture
def tff_file(tmp_path: Path) -> Path:
    """Thirty examples of each of five clients, in TFF's layout."""
    rng = np.random.default_rng(5)
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        for index in range(5):
            group = file.create_group(f"examples/f{index:04}_00")
            group["pixels"] = rng.integers(0, 256, (30, 28, 28)).astype(np.float32) / 255
            group["label"] = rng.integers(0, 10, 30, np.int32)
    return path


def test_equal_bytes_for_any_number_of_threads_and_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path / "one", make_config(threads=1))
    whole = figures(tmp_path / "one")
    for threads in (2, 7):
        train(tmp_path / f"many{threads}", make_config(threads=threads))
        assert figures(tmp_path / f"many{threads}") == whole
    train_rounds(tmp_path / "cut", make_config(threads=2), 3)
    assert folder.read_metrics(tmp_path / "cut")[-1]["round"] < 4
    resume_to_end(tmp_path / "cut", threads=7)
    assert figures(tmp_path / "cut") == whole


def test_the_run_s_config_repeats_it_and_names_the_partition(tmp_path: Path) -> None:
    train(tmp_path / "one", make_config())
    text = (tmp_path / "one" / "config.toml").read_text()
    again = settings.from_options(settings.from_toml(text, "config.toml"))
    assert again.partition == MIXED
    assert again.partition_options == {
        "clients": 6,
        "alpha": 0.3,
        "seed": 3,
        "rate": 0.2,
        "kind": "symmetric",
        "std": 0.1,
    }
    train(tmp_path / "two", again)
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    told = settings.read_provenance(text, "config.toml")["data"]
    base, _, described = told.partition("; partition ")
    assert base == datasets.fingerprint(
        datasets.DataSource("synthetic-digits", data_options=again.data_options)
    )
    assert described == (
        "dirichlet-client+label-noise+feature-noise clients=6 alpha=0.3 seed=3 rate=0.2 "
        "kind=symmetric std=0.1"
    )


def test_the_run_s_seed_does_not_change_the_partition(tmp_path: Path) -> None:
    splits = []
    for seed in (1, 2):
        with starting.start(make_config(seed=seed), tmp_path / str(seed)) as training:
            splits.append(training.train)
    assert_equal_splits(*splits)
    other = datasets.open_splits(
        datasets.DataSource(
            "synthetic-digits",
            data_options={"clients": 12},
            partition="iid",
            partition_options={"clients": 6, "seed": 4},
        )
    )["train"]
    same = datasets.open_splits(
        datasets.DataSource(
            "synthetic-digits",
            data_options={"clients": 12},
            partition="iid",
            partition_options={"clients": 6, "seed": 5},
        )
    )["train"]
    assert not np.array_equal(other.labels("p0000"), same.labels("p0000"))


def test_eval_takes_the_run_s_partition_for_its_own_data(tmp_path: Path, tff_file: Path) -> None:
    closing = train(tmp_path / "run", make_config())
    assert evaluating.evaluate_run(tmp_path / "run").metrics == closing["test"]
    everyone = evaluating.evaluate_run(tmp_path / "run", split="train", clients="all")
    assert everyone.num_clients == 6
    natural = evaluating.evaluate_run(tmp_path / "run", partition="natural", clients="all")
    assert natural.num_clients == 12
    foreign = evaluating.evaluate_run(tmp_path / "run", data=str(tff_file), clients="all")
    assert foreign.num_clients == 5
    asked = evaluating.evaluate_run(
        tmp_path / "run",
        data=str(tff_file),
        clients="all",
        partition="shards",
        partition_options={"clients": 3},
    )
    assert asked.num_clients == 3
    other = evaluating.evaluate_run(
        tmp_path / "run", split="train", clients="all", partition_options={"clients": 4}
    )
    assert other.num_clients == 4


def test_another_partition_has_the_run_s_cohort_by_its_ids(tmp_path: Path) -> None:
    """The ids of the run's four clients are looked up in the other partition, which has three."""
    train(tmp_path / "run", make_config())
    found = evaluating.evaluate_run(
        tmp_path / "run", split="train", partition_options={"clients": 3}
    )
    assert (found.num_clients, found.num_absent) == (3, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {"clients": 4}),
        ("dirichlet-class+feature-rotation", {"clients": 3, "alpha": 5.0}),
        ("shards+feature-noise+label-noise", {"clients": 5, "rate": 0.5}),
        ("feature-inversion", {}),
        ("natural+label-noise", {"kind": "pair"}),
    ],
)
def test_a_store_of_a_partition_equals_the_one_on_the_fly(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """The store of preprocess has the same clients as a partition that is drawn during training."""
    source: dict[str, Any] = {"data_options": {"clients": 8}}
    natural = datasets.open_splits(datasets.DataSource("synthetic-digits", **source))
    on_the_fly = datasets.open_splits(
        datasets.DataSource(
            "synthetic-digits",
            **source,
            partition=name,
            partition_options={**options, "seed": 7} if "inversion" not in name else options,
        )
    )
    tables = {split: natural[split].to_table() for split in ("train", "test")}
    dealt = partitioning.apply(tables, name, options, seed=7)
    convention = natural["train"].pixel_convention
    splits = {
        split: PartitionedSplit(
            tables[split],
            each.assignment,
            split=split,
            num_classes=10,
            class_names=None,
            pixel_convention=convention,
            changes=each.changes,
        )
        for split, each in dealt.items()
    }
    info = store.StoreInfo(num_classes=10, pixel_convention=convention, source="x", partition=name)
    path = tmp_path / "a.h5"
    store_writer.create(
        path, {split: map(data.client, data.client_ids) for split, data in splits.items()}, info
    )
    stored = store.open_store(path)
    for split in ("train", "test"):
        assert_equal_splits(on_the_fly[split], stored[split])
    assert list(on_the_fly["central"].client_ids) == list(natural["central"].client_ids)


def test_every_example_is_dealt_once_from_a_file(tff_file: Path) -> None:
    natural = datasets.open_splits(datasets.DataSource(str(tff_file)))["train"]
    dealt = datasets.open_splits(
        datasets.DataSource(str(tff_file), partition="iid", partition_options={"clients": 7})
    )["train"]
    assert dealt.total_examples() == 150

    def all_images(data: datasets.ClientData) -> list[bytes]:
        return sorted(
            image.tobytes() for each in data.client_ids for image in data.client(each).images()
        )

    assert all_images(dealt) == all_images(natural)


def test_pixels_may_be_asked_for_the_other_way_round(tff_file: Path) -> None:
    both = [
        datasets.open_splits(
            datasets.DataSource(
                str(tff_file),
                partition="shards+feature-rotation",
                partition_options={"clients": 4},
                pixels=pixels,
            )
        )["train"]
        for pixels in ("background", "ink")
    ]
    assert both[1].pixel_convention == "ink"
    for client_id in both[0].client_ids:
        one, other = (each.client(client_id).images() for each in both)
        assert other == pytest.approx(1.0 - one, abs=1e-6)


def test_train_labels_alone_are_noisy() -> None:
    options = {"clients": 10, "label_noise": 0.0}
    plain = datasets.open_splits(datasets.DataSource("synthetic-digits", data_options=options))
    noisy = datasets.open_splits(
        datasets.DataSource(
            "synthetic-digits",
            data_options=options,
            partition="label-noise",
            partition_options={"rate": 0.3},
        )
    )
    assert list(noisy["train"].client_ids) == list(plain["train"].client_ids)
    pairs = [
        (plain["train"].labels(each), noisy["train"].labels(each))
        for each in plain["train"].client_ids
    ]
    changed = np.concatenate([one != other for one, other in pairs])
    assert changed.mean() == pytest.approx(0.3, abs=5 * (0.21 / len(changed)) ** 0.5)
    assert_equal_splits(plain["test"], noisy["test"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partition": "dirichlet"}, "unknown --partition 'dirichlet'; choose one of natural, "),
        (
            {"partition_options": {"clients": 3}},
            "--partition-option: natural has no option 'clients'; it takes none",
        ),
        (
            {"partition": "iid", "partition_options": {"alpha": 1}},
            "--partition-option: iid has no option 'alpha'; its options are clients, seed",
        ),
        (
            {"partition": "dirichlet-class", "partition_options": {"alpha": 0}},
            "--partition-option: dirichlet-class option alpha 0: choose a finite number from 1e-09 "
            "to 1e+09",
        ),
        (
            {"partition": "label-noise", "partition_options": {"kind": "odd"}},
            "--partition-option: label-noise option kind 'odd': choose symmetric or pair",
        ),
        (
            {"partition": "iid+shards"},
            "--partition iid+shards: shards divides examples among clients; a partition has only "
            "one such scheme, and it is the first",
        ),
        ({"partition": ""}, "--partition '': give a name or a path"),
    ],
)
def test_wrong_partitions_are_refused_before_any_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings.from_options(values)
    assert str(error.value).startswith(message)


def test_the_library_refuses_before_it_opens_anything() -> None:
    with pytest.raises(ConfigError, match="unknown --partition"):
        datasets.open_splits(datasets.DataSource("/nowhere.h5", partition="x"))
    with pytest.raises(ConfigError, match="iid has no option 'x'"):
        datasets.open_splits(
            datasets.DataSource("/nowhere.h5", partition="iid", partition_options={"x": 1})
        )


def test_another_partition_drops_the_options_of_the_first() -> None:
    base = {"partition": "dirichlet-class", "partition_options": {"alpha": 0.1}}
    merged = settings.merge(base, {"partition": "iid", "partition_options": {"clients": 3}})
    assert settings.from_options(merged).partition_options == {"clients": 3, "seed": 0}
    kept = settings.merge(base, {"partition_options": {"clients": 3}})
    assert settings.from_options(kept).partition_options["alpha"] == 0.1


def test_lists_survive_config_toml() -> None:
    values = {"partition": "iid+feature-rotation", "partition_options": {"angles": [0, 45]}}
    config = settings.from_options(values)
    assert config.partition_options["angles"] == [0.0, 45.0]
    text = settings.to_toml(config, {})
    assert settings.from_options(settings.from_toml(text, "config.toml")) == config


def test_partitioning_can_be_cancelled(tmp_path: Path) -> None:
    cancel: CancelFlag = CancelFlag()
    cancel.set()
    with pytest.raises(Cancelled):
        starting.start(make_config(), tmp_path / "run", cancel=cancel)
    assert not (tmp_path / "run").exists()


def test_a_store_is_dealt_as_the_file_it_was_made_of(tmp_path: Path, tff_file: Path) -> None:
    natural = datasets.open_splits(datasets.DataSource(str(tff_file)))
    info = store.StoreInfo(num_classes=10, pixel_convention="background", source="x")
    path = tmp_path / "a.h5"
    data = natural["train"]
    store_writer.create(path, {"train": (data.client(each) for each in data.client_ids)}, info)
    dealt = datasets.open_splits(
        datasets.DataSource(str(path), partition="iid", partition_options={"clients": 3})
    )
    from_file = datasets.open_splits(
        datasets.DataSource(str(tff_file), partition="iid", partition_options={"clients": 3})
    )
    assert_equal_splits(dealt["train"], from_file["train"])
    assert "partition iid clients=3 seed=0" in datasets.fingerprint(
        datasets.DataSource(str(path), partition="iid", partition_options={"clients": 3})
    )


def test_more_pixels_than_the_disk_takes_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(DataError) as caught:
        datasets.open_splits(
            datasets.DataSource(
                "synthetic-digits", data_options={"clients": 1_000_000_000}, partition="iid"
            )
        )
    message = str(caught.value)
    assert message.startswith("--partition iid: copies all pixels of synthetic-digits, about ")
    assert "choose fewer clients" in message


def test_a_store_needs_no_room_to_be_dealt(tmp_path: Path, tff_file: Path) -> None:
    prepare([tff_file], tmp_path / "out.h5", PrepareOptions())
    (stored,) = datasets.open_splits(datasets.DataSource(str(tmp_path / "out.h5"))).values()
    (packed,) = datasets.open_splits(datasets.DataSource(str(tff_file))).values()
    assert stored.table_bytes() == 0
    pixels = [packed.client(each).pixels.nbytes for each in packed.client_ids]
    assert packed.table_bytes() == sum(pixels)


def test_a_full_disk_is_told_in_one_line() -> None:
    """The run has its own process, because the limit on file sizes cannot be raised again."""
    program = """
import resource, signal
from fedcli import datasets
from fedcli.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    datasets.load("synthetic-digits", data_options={"clients": 3}, partition="iid")
except DataError as err:
    print(err)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert re.fullmatch(
        r"partition=iid: cannot write the pixels to .* \(File too large\); free some space, .*\n",
        done.stdout,
    ), done.stderr
