"""What a caller gives as a cohort's data, as the engine takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.datasets import batches
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import DataError


def cohort_data(client_data: Iterable[Any], num_passes: int = 1) -> Iterable[BatchedDataset]:
    """Returns a cohort's data as the engine takes it, so many times.

    What is no sequence is read as it is used; a generator that is used twice is read once, whole.
    """
    if isinstance(client_data, Mapping | str) or not isinstance(client_data, Iterable):
        kind = type(client_data).__name__
        raise DataError(f"client_data is of type {kind}; give a list, one element a client")
    if isinstance(client_data, tuple) and all(type(each) is BatchedDataset for each in client_data):
        return client_data  # as it is: the engine knows a tuple again
    if isinstance(client_data, Sequence) or (num_passes > 1 and isinstance(client_data, Iterator)):
        return [_one_client(element, index) for index, element in enumerate(client_data)]
    return _ReadAsUsed(client_data)


@dataclass(frozen=True, eq=False)
class _ReadAsUsed:
    """The clients of an iterable, checked one by one, as often as it can be gone through."""

    client_data: Iterable[Any]

    def __iter__(self) -> Iterator[BatchedDataset]:
        return (_one_client(element, index) for index, element in enumerate(self.client_data))


def _one_client(element: Any, index: int) -> BatchedDataset:
    if isinstance(element, BatchedDataset):
        return element
    if isinstance(element, tuple | list) and len(element) == 2:
        pixels, labels = element
        return batches.from_arrays(pixels, labels, client_id=str(index), source="client_data")
    raise DataError(
        f"client_data[{index}] is of type {type(element).__name__}; give "
        "data.client(id).preprocess(...) or a pair (pixels, labels) of arrays"
    )
