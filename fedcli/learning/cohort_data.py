"""Makes the datasets that an engine takes from the `client_data` that a caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedcli.datasets import batches
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.errors import DataError


def cohort_data(client_data: Iterable[Any], num_passes: int = 1) -> Iterable[BatchedDataset]:
    """Returns the datasets of a cohort, which can be iterated `num_passes` times.

    Sequences are converted immediately, other iterables lazily. An iterator can be read only one
    time, so for several passes it is read into a list.

    Raises:
        DataError: `client_data` or one of its elements is of another type.
    """
    if isinstance(client_data, Mapping | str) or not isinstance(client_data, Iterable):
        kind = type(client_data).__name__
        raise DataError(f"client_data is of type {kind}; give a list, one element per client")
    if isinstance(client_data, BatchedDataset):
        raise DataError("client_data is the dataset of one client; put it into a list: [dataset]")
    if isinstance(client_data, tuple) and all(type(each) is BatchedDataset for each in client_data):
        return client_data  # the same object: the engine recognises a tuple from an earlier round
    if isinstance(client_data, ClientBatches):
        return client_data  # the same object: an engine may let other machines read the clients
    if isinstance(client_data, Sequence) or (num_passes > 1 and isinstance(client_data, Iterator)):
        return [_one_client(element, index) for index, element in enumerate(client_data)]
    return _LazyCohort(client_data)


class _LazyCohort:
    """The clients of an iterable, converted one by one on each pass over it."""

    def __init__(self, client_data: Iterable[Any]) -> None:
        """Takes an iterable, which is not read yet."""
        self._client_data = client_data
        self._is_read = False

    def __iter__(self) -> Iterator[BatchedDataset]:
        """Starts a pass. Raises DataError if the clients of an iterator are read again."""
        if self._is_read and isinstance(self._client_data, Iterator):
            raise DataError(
                "client_data is an iterator, whose clients this algorithm reads more than once; "
                "give a list, or set num_passes = 2 (or more) in the class of the algorithm"
            )
        self._is_read = True
        return (_one_client(element, index) for index, element in enumerate(self._client_data))


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
