"""The client cache: bounded in bytes; the least recently used clients are removed first."""

from __future__ import annotations

import numpy as np

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.cache import ClientCache

CLIENT_BYTES = 10 * (4 + 4)  # ten examples: a 2 x 2 grey image and an int32 label


def make_client(client_id: str, num_examples: int = 10) -> ClientDataset:
    pixels = np.zeros((num_examples, 2, 2), np.uint8)
    return ClientDataset(client_id, pixels, np.zeros(num_examples, np.int32), 1.0, 0.0, "test")


class Source:
    """Reads clients and records their ids."""

    def __init__(self, cache: ClientCache, split: str = "train") -> None:
        self.cache = cache
        self.split = split
        self.reads: list[str] = []

    def client(self, client_id: str, num_examples: int = 10) -> ClientDataset:
        def read() -> ClientDataset:
            self.reads.append(client_id)
            return make_client(client_id, num_examples)

        return self.cache.get(self.split, client_id, read)


def test_kept_client_is_not_read_again() -> None:
    source = Source(ClientCache(1000))
    assert source.client("a") is source.client("a")
    assert source.reads == ["a"]
    assert source.cache.hits == 1
    assert source.cache.bytes == CLIENT_BYTES


def test_bytes_stay_bounded_and_the_least_recently_used_is_removed_first() -> None:
    source = Source(ClientCache(2 * CLIENT_BYTES))
    for client_id in "abac":  # a was used after b, so c replaces b
        source.client(client_id)
    assert source.cache.bytes == 2 * CLIENT_BYTES
    source.client("a")
    source.client("b")
    assert source.reads == ["a", "b", "c", "b"]
    assert len(source.cache) == 2


def test_many_clients_of_many_sizes_stay_within_the_bound() -> None:
    source = Source(ClientCache(5 * CLIENT_BYTES))
    for number in range(200):
        source.client(f"c{number % 37}", number % 13)
        assert source.cache.bytes <= source.cache.max_bytes


def test_client_larger_than_the_bound_is_handed_out_but_not_kept() -> None:
    source = Source(ClientCache(CLIENT_BYTES))
    source.client("small")
    assert len(source.client("large", 11)) == 11
    source.client("small")
    assert source.reads == ["small", "large"]


def test_splits_do_not_share_clients_of_the_same_name() -> None:
    cache = ClientCache(1000)
    train, test = Source(cache, "train"), Source(cache, "test")
    assert train.client("a") is not test.client("a")
    assert cache.hits == 0
