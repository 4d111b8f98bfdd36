from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedcli
from fedcli import datasets
from fedcli.datasets.sources.given import as_given
from fedcli.datasets.validation import num_held_out
from fedcli.errors import ConfigError, DataError
from fedcli.settings.data_source import DataSource

DIGITS = {"clients": 12}


def opened(**options: object) -> dict[str, datasets.ClientData]:
    return datasets.open_splits(DataSource(data_options=DIGITS, **options))  # type: ignore[arg-type]


def test_each_client_s_examples_are_in_one_of_the_two() -> None:
    whole, splits = opened()["train"], opened(validation=0.2)
    train, validation = splits["train"], splits["validation"]
    assert validation.split == "validation"
    assert list(validation.client_ids) == list(train.client_ids) == list(whole.client_ids)
    for client_id in whole.client_ids:
        parts = [train.client(client_id), validation.client(client_id)]
        count = whole.num_examples(client_id)
        assert len(parts[1]) == validation.num_examples(client_id) == round(0.2 * count)
        assert len(parts[0]) == train.num_examples(client_id) == count - round(0.2 * count)
        pixels = np.concatenate([part.pixels for part in parts]).reshape(count, -1)
        wanted = whole.client(client_id).pixels.reshape(count, -1)
        assert sorted(map(bytes, pixels)) == sorted(map(bytes, wanted))
        assert np.array_equal(train.labels(client_id), parts[0].labels)
    assert train.total_examples() + validation.total_examples() == whole.total_examples()


def test_the_draws_depend_on_the_client_alone() -> None:
    one, other = opened(validation=0.2), opened(validation=0.2, pixels="ink")
    client_id = one["train"].client_ids[3]
    labels = [each["validation"].labels(client_id).tolist() for each in (one, other)]
    assert labels[0] == labels[1]


def test_a_client_of_one_example_keeps_it() -> None:
    sizes = range(6)
    assert [num_held_out(size, 0.1) for size in sizes] == [0, 0, 1, 1, 1, 1]
    assert [num_held_out(size, 0.9) for size in sizes] == [0, 0, 1, 2, 3, 4]
    images = np.zeros((3, 4, 4), np.uint8)
    given = {"a": (images[:1], np.zeros(1, int)), "b": (images, np.arange(3))}
    splits = datasets.open_splits(DataSource(as_given(given), validation=0.4))
    assert splits["validation"].client_ids == ["b"]
    assert splits["train"].num_examples("a") == 1
    with pytest.raises(DataError, match="no client 'a'"):
        splits["validation"].client("a")


def test_examples_are_held_out_after_a_partition() -> None:
    splits = opened(partition="iid", partition_options={"clients": 5}, validation=0.5)
    sizes = [splits[name].num_examples("p0000") for name in ("train", "validation")]
    assert abs(sizes[0] - sizes[1]) <= 1


@pytest.mark.parametrize("share", [0, 0.0005, 0.95, 1, float("nan")])
def test_a_share_that_the_option_refuses_is_refused_in_python(share: float) -> None:
    with pytest.raises(ConfigError, match=r"--validation .*: choose .*0\.001 to 0\.9"):
        opened(validation=share)


def test_the_fingerprint_contains_the_hold_out() -> None:
    text = datasets.fingerprint(DataSource(data_options=DIGITS, validation=0.2))
    assert text == datasets.fingerprint(DataSource(data_options=DIGITS)) + "; validation 0.2"


def test_given_validation_data_are_not_held_out_again() -> None:
    images, labels = np.zeros((4, 4, 4), np.uint8), np.arange(4)
    pair = {"a": (images, labels)}
    given = as_given(datasets.from_arrays(pair, validation=pair))
    with pytest.raises(ConfigError, match="already has a validation split"):
        datasets.open_splits(DataSource(given, validation=0.5))
    alone = as_given({"a": (images[:1], labels[:1])})
    with pytest.raises(DataError, match=r"no client of .* has two examples"):
        datasets.open_splits(DataSource(alone, validation=0.5))


def test_a_run_trains_on_the_others_and_resumes(tmp_path: Path) -> None:
    config = fedcli.RunConfig(rounds=4, validation=0.2, data_options=DIGITS, eval_every=1)
    run = fedcli.train(config, tmp_path / "straight")
    trained = run.metrics[1]["client_work"]["train"]["num_examples"]
    clients = opened(validation=0.2)["train"].client_ids[:10]
    train = opened(validation=0.2)["train"]
    assert trained == 5 * sum(map(train.num_examples, clients))
    assert run.judged_by == "validation"
    fedcli.train(fedcli.RunConfig(**{**vars(config), "rounds": 2}), tmp_path / "first")
    again = fedcli.resume(tmp_path / "first", num_rounds=4)
    assert again.metrics == run.metrics
    assert fedcli.evaluate_run(run.path, split="validation").split == "validation"
