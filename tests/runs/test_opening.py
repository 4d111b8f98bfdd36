"""Reading the clients of a cohort before the first round."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fedcli import datasets, settings
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.errors import ConfigError, DataError
from fedcli.runs import opening
from fedcli.settings.data_source import DataSource


class FailingBatches(ClientBatches):
    """Batches of which the second cannot be read."""

    def __iter__(self) -> Iterator[BatchedDataset]:
        yield next(super().__iter__())
        raise DataError("the second client is damaged")


def generated_clients(kind: type[ClientBatches]) -> ClientBatches:
    source = DataSource(data="synthetic-digits", data_options={"clients": 5000})
    train = datasets.open_splits(source)["train"]
    assert train.is_generated
    return kind(train, train.client_ids, BatchPlan())


def num_helpers() -> int:
    return sum(thread.name == "fedcli-generate" for thread in threading.enumerate())


def test_a_failure_ends_the_thread_that_draws_clients() -> None:
    with pytest.raises(DataError, match="the second client is damaged"):
        opening._read_all(generated_clients(FailingBatches), None, 2)
    assert num_helpers() == 0


def test_a_cancellation_ends_the_thread_that_draws_clients() -> None:
    cancel = CancelFlag()
    cancel.set()
    with pytest.raises(Cancelled):
        opening._read_all(generated_clients(ClientBatches), cancel, 2)
    assert num_helpers() == 0


def test_a_model_that_the_algorithm_refuses_is_refused_before_clients_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_all(*_: object) -> None:
        pytest.fail("clients were read")

    monkeypatch.setattr(opening, "_read_all", read_all)
    config = settings.validate(
        settings.from_options(
            {"model": "resnet20-bn", "data": "synthetic-shapes", "algorithm": "scaffold"}
        )
    )
    with pytest.raises(ConfigError, match="has batch normalization"):
        opening.open_federation(config)
