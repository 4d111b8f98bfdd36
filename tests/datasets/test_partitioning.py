from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.datasets.partitions import label_mixes, partitioning, schemes
from fedcli.datasets.partitions.assignment import Assignment
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError
from fedcli.settings import tables as registry

NAMES = list(schemes.SCHEMES)
LABELS = (np.arange(3000) * 7 % 10).astype(np.int32)


def table(labels: np.ndarray | list[int], owners: list[str] | None = None) -> ExampleTable:
    owner_ids = sorted(set(owners)) if owners else []
    return ExampleTable(
        source="a.npz",
        pixels=np.empty((0, 4, 4), np.uint8),
        labels=np.asarray(labels, np.int32),
        scale=1 / 255,
        offset=0.0,
        owner_ids=owner_ids,
        owners=np.array([owner_ids.index(each) for each in owners or []], np.int64),
    )


def assign(labels: np.ndarray, name: str, seed: int = 0, **options: Any) -> Assignment:
    return partitioning.apply({"train": table(labels)}, name, options, seed)["train"].assignment


def label_counts(labels: np.ndarray, assignment: Assignment, num_classes: int = 10) -> np.ndarray:
    cells = assignment.holders * num_classes + labels[assignment.order]
    counts = np.bincount(cells, minlength=len(assignment.client_ids) * num_classes)
    return counts.reshape(-1, num_classes)


def mean_tv(counts: np.ndarray) -> float:
    """Mean total variation distance between the labels of a client and of all clients."""
    mixes = counts / counts.sum(axis=1, keepdims=True)
    return float(0.5 * np.abs(mixes - counts.sum(axis=0) / counts.sum()).sum(axis=1).mean())


def effective_classes(counts: np.ndarray) -> float:
    mixes = counts / counts.sum(axis=1, keepdims=True)
    return float(np.exp(-(mixes * np.log(np.where(mixes > 0, mixes, 1.0))).sum(axis=1)).mean())


def assert_whole(assignment: Assignment, num_examples: int) -> None:
    assert np.array_equal(np.sort(assignment.order), np.arange(num_examples))
    assert assignment.offsets[0] == 0
    assert assignment.offsets[-1] == num_examples
    assert assignment.sizes.min() > 0
    assert list(assignment.client_ids) == sorted(set(assignment.client_ids))


# --- reference values ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist_labels(shared_data: Path) -> np.ndarray:
    file = shared_data / "mnist-idx" / "train-labels-idx1-ubyte.gz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    labels = np.frombuffer(gzip.decompress(file.read_bytes())[8:], np.uint8)
    return labels.astype(np.int32)


# The expected values come from independent programs, run with one seed and 100 clients. The total
# variation of one client has a standard deviation of 0.13 at alpha 0.5, and of 0.12 at alpha 0.1.
# So the mean of 100 clients has a standard deviation of 0.013, both in these programs and here.
# The tolerance 0.055 is three standard deviations of the difference of the two means. The number
# of effective classes of one client has a standard deviation of 1.9; its tolerance 0.8 is three
# standard deviations of the difference, too. Sizes that are not random must agree exactly.
@pytest.mark.parametrize(
    ("name", "options", "num_classes", "tv", "effective"),
    [
        ("iid", {}, (10, 0.0), (0.049, 0.003), (9.91, 0.02)),
        ("shards", {}, (1.95, 0.1), (0.807, 0.015), (1.90, 0.1)),
        ("dirichlet-class", {}, (9.4, 0.4), (0.44, 0.055), (5.7, 0.8)),
        ("dirichlet-class", {"balanced": True}, (8.1, 0.6), (0.51, 0.055), (4.8, 0.8)),
        ("dirichlet-class", {"alpha": 0.1}, (5.1, 0.6), (0.71, 0.055), (2.5, 0.5)),
        ("dirichlet-client", {}, (9.3, 0.4), (0.44, 0.055), (5.7, 0.8)),
        ("dirichlet-client", {"alpha": 0.1}, (6.0, 0.8), (0.66, 0.055), (3.0, 0.5)),
    ],
)
def test_mnist_is_partitioned_as_by_other_programs(
    mnist_labels: np.ndarray,
    seed: int,
    name: str,
    options: dict[str, Any],
    num_classes: tuple[float, float],
    tv: tuple[float, float],
    effective: tuple[float, float],
) -> None:
    assignment = assign(mnist_labels, name, seed, clients=100, **options)
    assert_whole(assignment, 60_000)
    counts = label_counts(mnist_labels, assignment)
    if name != "dirichlet-class":
        assert set(assignment.sizes.tolist()) == {600}
    assert (counts > 0).sum(axis=1).mean() == pytest.approx(num_classes[0], abs=num_classes[1])
    assert mean_tv(counts) == pytest.approx(tv[0], abs=tv[1])
    assert effective_classes(counts) == pytest.approx(effective[0], abs=effective[1])


@pytest.mark.parametrize(("alpha", "median", "largest"), [(0.5, 566, 1388), (0.1, 429, 2246)])
def test_sizes_of_dirichlet_class(
    mnist_labels: np.ndarray, seed: int, alpha: float, median: int, largest: int
) -> None:
    """Compares the median and the largest size with the results of other programs.

    The distribution of all sizes is compared with draws by NumPy. The other programs were run
    with one seed. Their smallest sizes (209 and 15) are not compared, because the smallest size
    varies most.
    """
    class_sizes = np.bincount(mnist_labels)
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for each in range(seed, seed + 10):
        ours.append(assign(mnist_labels, "dirichlet-class", each, alpha=alpha).sizes)
        sizes = np.zeros(100)
        while sizes.min() < 10:
            sizes = class_sizes @ rng.dirichlet(np.full(100, alpha), size=10)
        theirs.append(sizes)
    assert np.mean([np.median(sizes) for sizes in ours]) == pytest.approx(median, rel=0.1)
    assert np.mean([sizes.max() for sizes in ours]) == pytest.approx(largest, rel=0.3)
    one, other = np.sort(np.concatenate(ours)), np.sort(np.concatenate(theirs))
    points = np.concatenate([one, other])
    shares = [np.searchsorted(each, points, side="right") / 1000 for each in (one, other)]
    # The distribution functions of two samples of 1,000 draws from one distribution differ by
    # more than 0.12 in one of 10^6 cases.
    assert np.abs(shares[0] - shares[1]).max() < 0.12


# The expected mean total variation (TV) of mixes from Dir(alpha), before examples are assigned.
# The mean TV of 4000 clients has a standard deviation of 0.002.
@pytest.mark.parametrize(
    ("name", "alpha", "tv"),
    [
        ("dirichlet-client", 100.0, 0.038),
        ("dirichlet-client", 10.0, 0.119),
        ("dirichlet-client", 1.0, 0.352),
        ("dirichlet-client", 0.5, 0.458),
        ("dirichlet-client", 0.1, 0.709),
        ("dirichlet-prior", 100.0, 0.119),
        ("dirichlet-prior", 10.0, 0.352),
        ("dirichlet-prior", 1.0, 0.710),
        ("dirichlet-prior", 0.5, 0.786),
        ("dirichlet-prior", 0.1, 0.871),
    ],
)
def test_alpha_has_the_documented_meaning_in_each_scheme(
    name: str, alpha: float, tv: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []

    def keep(mixes: np.ndarray, class_sizes: np.ndarray, *_: Any) -> np.ndarray:
        drawn.append(mixes)
        return np.repeat(np.arange(len(mixes)), 10)

    monkeypatch.setattr(label_mixes, "assign_by_mixes", keep)
    labels = np.repeat(np.arange(10), 4000).astype(np.int32)
    assign(labels, name, clients=4000, alpha=alpha)
    assert 0.5 * np.abs(drawn[0] - 0.1).sum(axis=1).mean() == pytest.approx(tv, abs=0.008)


@pytest.mark.parametrize(
    ("sigma", "gini"), [(0.15, 0.085), (0.3, 0.166), (0.5, 0.276), (1.0, 0.52)]
)
def test_lognormal_sizes_have_their_gini(sigma: float, gini: float) -> None:
    sizes = np.sort(
        assign(np.zeros(400_000), "quantity-lognormal", clients=4000, sigma=sigma).sizes
    )
    ranks = 2 * np.arange(1, 4001) - 4001
    assert (ranks * sizes).sum() / (4000 * sizes.sum()) == pytest.approx(gini, rel=0.06)


# --- each scheme ---------------------------------------------------------------------------------


def test_iid_and_label_mixes_have_even_sizes() -> None:
    for name in ("iid", "dirichlet-client", "dirichlet-prior"):
        assert sorted(set(assign(LABELS, name, clients=7).sizes.tolist())) == [428, 429]


def test_shards_hold_runs_of_labels() -> None:
    assignment = assign(LABELS, "shards", clients=10, shards=1)
    counts = label_counts(LABELS, assignment)
    assert sorted(counts.argmax(axis=1).tolist()) == list(range(10))
    assert counts.max(axis=1).tolist() == [300] * 10
    assert set(assign(LABELS, "shards", clients=7, shards=3).sizes.tolist()) <= {426, 427, 428, 429}


def test_classes_per_client_are_those_of_niid_bench() -> None:
    assignment = assign(LABELS, "classes-per-client", clients=25, classes=3)
    counts = label_counts(LABELS, assignment)
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert all(counts[client, client % 10] > 0 for client in range(25))
    for column in counts.T:  # a class is shared equally
        held = column[column > 0]
        assert held.max() - held.min() <= 1
    second = [tuple(np.flatnonzero(row)) for row in counts[::10]]
    assert len(set(second)) > 1, "the rest is random"


def test_few_clients_still_hold_every_class() -> None:
    counts = label_counts(LABELS, assign(LABELS, "classes-per-client", clients=4, classes=3))
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert (counts.sum(axis=0) == 300).all()


def test_balanced_clients_get_no_further_class_once_full() -> None:
    for seed in range(20):
        counts = label_counts(
            LABELS, assign(LABELS, "dirichlet-class", seed, clients=6, alpha=0.3, balanced=True)
        )
        before = np.cumsum(counts, axis=1) - counts
        assert not counts[before >= 500].any()


def test_a_class_whose_clients_are_all_full_goes_to_the_others() -> None:
    """At a tiny alpha each class goes to one client. This client is then full."""
    for seed in range(20):
        assignment = assign(
            LABELS, "dirichlet-class", seed, clients=3, alpha=1e-6, min_examples=1, balanced=True
        )
        assert_whole(assignment, 3000)


def test_sizes_of_the_quantity_schemes() -> None:
    linear = assign(LABELS, "quantity-linear", clients=10).sizes
    assert linear == pytest.approx(3000 * np.arange(1, 11) / 55, abs=2)
    steep = assign(LABELS, "quantity-exponential", clients=5).sizes
    assert steep[1:] / steep[:-1] == pytest.approx(np.full(4, np.e), rel=0.05)
    drawn = assign(LABELS, "quantity-dirichlet", clients=5, min_examples=50).sizes
    assert drawn.min() >= 50
    for sizes_of in ("quantity-linear", "quantity-lognormal"):
        counts = label_counts(LABELS, assign(LABELS, sizes_of, clients=5))
        assert mean_tv(counts) < 0.2, "contents are iid"


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_drawn_independently_of_their_order(name: str) -> None:
    options = {"classes": 1} if name == "classes-per-client" else {}
    assignment = assign(np.zeros(1000, np.int32), name, clients=2, **options)
    held = assignment.indices(int(assignment.sizes.argmin()))
    assert np.ptp(held) > len(held) + 20, "not one stretch of the file"


def test_a_client_s_classes_are_mixed() -> None:
    """Batches are drawn from a short buffer, so sorted examples would give batches of one class."""
    for name in NAMES:
        assignment = assign(LABELS, name, clients=5)
        labels = LABELS[assignment.indices(4)]
        if len(set(labels.tolist())) > 1:
            assert (np.diff(labels) < 0).any()
            assert (np.diff(labels) > 0).any()


# --- rules for all -------------------------------------------------------------------------------


def outcome(
    labels: np.ndarray, name: str, seed: int, options: Mapping[str, Any]
) -> Assignment | None:
    """The assignment, or None if it was refused in one line."""
    try:
        return assign(labels, name, seed, **options)
    except ConfigError as err:
        message = str(err)
    assert "\n" not in message
    assert message.startswith(f"--partition {name}: ")
    return None


@settings(max_examples=300)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 400),
    st.lists(st.integers(0, 61), min_size=1, max_size=12),
    st.integers(1, 40),
    st.sampled_from([1e-9, 1e-6, 1e-3, 0.1, 0.5, 10.0, 1e6, 1e9]),
    st.integers(0, 2**32),
)
def test_every_assignment_is_whole_or_refused(
    name: str, num: int, classes: list[int], clients: int, alpha: float, seed: int
) -> None:
    labels = np.array(classes, np.int32)[
        np.random.default_rng(seed).integers(len(classes), size=num)
    ]
    known = {option.name for option in registry.SCHEMES[name].options}
    given_options = {"clients": clients, "alpha": alpha, "min_examples": 1, "sigma": 5.0}
    options = {key: value for key, value in given_options.items() if key in known}
    assignment = outcome(labels, name, seed, options)
    if clients > num:
        assert assignment is None
    if name in ("iid", "dirichlet-client", "dirichlet-prior", "quantity-lognormal"):
        assert (assignment is None) == (clients > num)
    if assignment is not None:
        assert_whole(assignment, num)
        assert len(assignment.client_ids) == clients
        again = outcome(labels, name, seed, options)
        assert again is not None
        assert again.order.tobytes() == assignment.order.tobytes()
        assert again.offsets.tobytes() == assignment.offsets.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_another_assignment(name: str) -> None:
    orders = {assign(LABELS, name, seed, clients=5).order.tobytes() for seed in range(4)}
    assert len(orders) == 4
    in_options = partitioning.apply(
        {"train": table(LABELS)}, name, {"clients": 5, "seed": 2}, seed=0
    )
    assert in_options["train"].assignment.order.tobytes() in orders


@pytest.mark.parametrize("alpha", [1e-9, 1e-6, 1e6, 1e9])
@pytest.mark.parametrize("name", ["dirichlet-client", "dirichlet-prior"])
def test_extreme_alphas_assign_everything(name: str, alpha: float) -> None:
    assignment = assign(LABELS, name, clients=30, alpha=alpha)
    assert_whole(assignment, 3000)
    tv = mean_tv(label_counts(LABELS, assignment))
    assert tv > 0.6 if alpha < 1 else tv < 0.15


def test_late_clients_do_not_get_the_leftovers() -> None:
    """Clients take turns, so the last 30 of 100 clients are as uneven as the first 30."""
    counts = label_counts(LABELS, assign(LABELS, "dirichlet-client", clients=100, alpha=0.2))
    firsts = [effective_classes(counts[:30]), effective_classes(counts[-30:])]
    assert firsts[0] == pytest.approx(firsts[1], rel=0.4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "iid",
            {"clients": 3001},
            "3,001 clients but 3,000 examples; choose clients=3000 or fewer",
        ),
        (
            "shards",
            {"clients": 2000},
            "2,000 clients with 2 shards each need more than 3,000 examples; choose fewer clients "
            "or shards",
        ),
        (
            "dirichlet-class",
            {"clients": 301},
            "clients=301 with min_examples=10 need more than 3,000 examples; choose fewer clients "
            "or a smaller min_examples",
        ),
        (
            "dirichlet-class",
            {"alpha": 1e-6},
            "clients=100 with min_examples=10 and alpha=1e-06: none of 100 draws gave each client "
            "so many examples; choose a larger alpha, fewer clients or a smaller min_examples",
        ),
        (
            "classes-per-client",
            {"classes": 11},
            "11 classes per client, but the data have 10; choose classes=10 or fewer",
        ),
        (
            "classes-per-client",
            {"clients": 4},
            "4 clients with 2 classes each leave some of the 10 classes without a client; choose "
            "more clients or more classes",
        ),
        (
            "classes-per-client",
            {"clients": 3, "classes": 1},
            "3 clients with 1 class each leave some of the 10 classes without a client; choose "
            "more clients or more classes",
        ),
        (
            "classes-per-client",
            {"clients": 3000, "classes": 1, "seed": 0},
            None,  # accepted: there is just one example for each client
        ),
        (
            "quantity-exponential",
            {"clients": 100},
            "100 clients, but each client has e times the examples of the client before, so 3000 "
            "examples suffice for 8 clients; choose clients=8 or fewer",
        ),
    ],
)
def test_impossible_partitions_are_refused(
    name: str, options: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert_whole(assign(LABELS, name, **options), 3000)
        return
    with pytest.raises(ConfigError) as error:
        assign(LABELS, name, **options)
    assert str(error.value) == f"--partition {name}: {message}"


def test_every_client_has_an_example() -> None:
    labels = np.array([0] * 20 + [1] * 2, np.int32)
    with pytest.raises(ConfigError, match=r"of 20 clients would have no example; choose fewer"):
        assign(labels, "classes-per-client", clients=20, classes=1)


def test_the_memory_of_a_partition_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_MAX_CELLS", 99)
    with pytest.raises(ConfigError, match=r"10 clients times 10 classes is more than 99"):
        assign(LABELS, "iid", clients=10)


def test_the_e_fold_limit_is_where_the_first_client_has_an_example() -> None:
    for num, most in [(2, 1), (5, 2), (60_000, 11)]:
        labels = np.zeros(num, np.int32)
        assert_whole(assign(labels, "quantity-exponential", clients=most), num)
        with pytest.raises(ConfigError, match=f"choose clients={most} or fewer|examples; choose"):
            assign(labels, "quantity-exponential", clients=most + 1)


def test_ids_grow_with_the_population() -> None:
    assert assign(LABELS, "iid", clients=3).client_ids == ["p0000", "p0001", "p0002"]
    many = assign(np.zeros(10_001), "iid", clients=10_001).client_ids
    assert (many[0], many[-1]) == ("p00000", "p10000")
    assert many == sorted(many)


# --- label mixes against drawing one by one ------------------------------------------------------


def assign_one_by_one(
    mixes: np.ndarray, class_sizes: np.ndarray, sizes: np.ndarray, stream: Stream, at_a_time: int
) -> list[int]:
    """Computes `label_mixes.assign_by_mixes` by a simple loop in float64."""
    num_clients, num_classes = mixes.shape
    ends = np.cumsum(class_sizes).tolist()
    left = class_sizes.tolist()
    spare = list(left)
    takers = [-1] * sum(left)
    step = max(1, at_a_time // num_clients)
    for first in range(0, int(sizes.max()), step):
        num = min(step, int(sizes.max()) - first)
        words = stream.words(num * num_clients).reshape(num, num_clients)
        turns = [
            client
            for number, row in enumerate(words, first)
            for client in sorted(range(num_clients), key=row.tolist().__getitem__)
            if sizes[client] > number
        ]
        for client, drawn in zip(turns, stream.uniform(len(turns)).tolist(), strict=True):
            weights = [mixes[client, c] if spare[c] else 0.0 for c in range(num_classes)]
            if sum(weights) < 1e-290:
                weights = [float(each) for each in spare]
            total = 0.0
            chances = [total := total + each for each in weights]
            chosen = next(c for c, chance in enumerate(chances) if chance > drawn * total)
            takers[ends[chosen] - left[chosen]] = client
            left[chosen] -= 1
            if not left[chosen]:
                spare = list(left)
    return takers


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.sampled_from([1e-9, 0.05, 0.5, 5.0]),
    st.sampled_from([1, 7, 64, 1 << 18]),
    st.integers(0, 2**32),
)
def test_label_mixes_are_those_of_drawing_one_by_one(
    class_sizes: list[int], clients: int, alpha: float, cells: int, seed: int
) -> None:
    counts = np.array(class_sizes, np.int64)
    clients = min(clients, int(counts.sum()))
    sizes = schemes.even_sizes(int(counts.sum()), clients)
    key = stream_key(seed, Purpose.PARTITION)
    mixes = Stream(key).dirichlet(np.full(len(counts), alpha), clients)
    at_a_time = max(1, cells // len(counts))
    naive = assign_one_by_one(mixes, counts, sizes, Stream(key), at_a_time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_mixes, "_CELLS", cells)
        ours = label_mixes.assign_by_mixes(mixes, counts, sizes, Stream(key))
    assert ours.tolist() == naive


def test_a_used_up_mix_draws_from_the_remaining_examples_in_proportion() -> None:
    """Client 0 wants only class 0. When this class is used up, it draws the other two at 2 : 1."""
    mixes = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    counts = np.array([100, 8000, 4000])
    takers = label_mixes.assign_by_mixes(
        mixes, counts, np.array([6050, 6050]), Stream(stream_key(1, Purpose.PARTITION))
    )
    assert (takers[:100] == 0).all()
    share = (takers[100:8100] == 0).sum() / 5950
    # 2 / 3 at first. It grows, because client 1 takes equal parts of classes 1 and 2, and class 2
    # is smaller.
    assert 0.6 < share < 0.85


# --- the test split ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_test_follows_train_class_by_class(name: str) -> None:
    test = (np.arange(700) * 3 % 10).astype(np.int32)
    tables = {"train": table(LABELS), "test": table(test)}
    partitioned = partitioning.apply(tables, name, {"clients": 5}, 3)
    train_counts = label_counts(LABELS, partitioned["train"].assignment)
    assignment_of_test = partitioned["test"].assignment
    assert np.array_equal(np.sort(assignment_of_test.order), np.arange(700))
    test_counts = np.zeros((5, 10))
    rows = [
        partitioned["train"].assignment.client_ids.index(each)
        for each in assignment_of_test.client_ids
    ]
    test_counts[rows] = label_counts(test, assignment_of_test)
    expected = train_counts / train_counts.sum(axis=0) * 70
    assert np.abs(test_counts - expected).max() <= 1.0
    assert not test_counts[train_counts == 0].any()
    alone = partitioning.apply({"train": table(LABELS)}, name, {"clients": 5}, 3)
    assert (
        alone["train"].assignment.order.tobytes() == partitioned["train"].assignment.order.tobytes()
    )


def test_test_is_shuffled_by_draws_of_its_own() -> None:
    same = table(np.zeros(100, np.int32))
    partitioned = partitioning.apply({"train": same, "test": same}, "iid", {"clients": 4}, 0)
    assert not np.array_equal(
        partitioned["train"].assignment.order, partitioned["test"].assignment.order
    )
    for split in ("train", "test"):
        assignment_of_split = partitioned[split].assignment
        assert np.ptp(assignment_of_split.indices(0)) > 40


def test_classes_that_train_lacks_go_by_size() -> None:
    train, test = np.zeros(100, np.int32), np.full(50, 4, np.int32)
    tables = {"train": table(train), "test": table(test)}
    partitioned = partitioning.apply(tables, "quantity-linear", {"clients": 4}, 0)
    sizes = partitioned["train"].assignment.sizes
    assert partitioned["test"].assignment.sizes == pytest.approx(sizes / 2, abs=1)


def test_clients_without_test_examples_are_not_in_test() -> None:
    tables = {"train": table(LABELS), "test": table(np.arange(10))}
    assignment = partitioning.apply(tables, "iid", {"clients": 50}, 0)["test"].assignment
    assert 0 < len(assignment.client_ids) <= 10
    assert assignment.sizes.min() > 0
    assert np.array_equal(np.sort(assignment.order), np.arange(10))


def test_test_alone_is_partitioned_and_other_splits_keep_their_owners() -> None:
    tables = {"test": table(LABELS), "central": table(LABELS), "more": table([1, 2], ["b", "a"])}
    partitioned = partitioning.apply(tables, "iid", {"clients": 5}, 0)
    assert len(partitioned["test"].assignment.client_ids) == 5
    assert partitioned["central"].assignment.client_ids == ["central"]
    assert partitioned["central"].assignment.order.tolist() == list(range(3000))
    assert partitioned["more"].assignment.client_ids == ["a", "b"]


def test_natural_gives_owners_their_examples() -> None:
    tables = {"train": table([3, 4, 5], ["b", "a", "b"])}
    assignment = partitioning.apply(tables, "natural", {}, 9)["train"]
    assert assignment.assignment.client_ids == ["a", "b"]
    assert assignment.assignment.order.tolist() == [1, 0, 2]
    assert assignment.changes == ()


@pytest.mark.parametrize("name", ["natural", "label-noise"])
def test_natural_needs_owners(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^a\.npz: its examples have no owners, .*--partition iid"
    ):
        partitioning.apply({"train": table(LABELS)}, name, {}, 0)


# --- names ---------------------------------------------------------------------------------------


def test_every_scheme_has_code_under_its_name() -> None:
    assert {registry.NATURAL, *schemes.SCHEMES} == registry.SCHEMES.keys()
    for name in schemes.SCHEMES:
        options = [option.name for option in registry.SCHEMES[name].options]
        assert {"clients", "seed"} <= set(options)


def test_joined_names_have_all_options() -> None:
    entry = registry.find_partition("dirichlet-class+label-noise+feature-noise")
    names = [option.name for option in entry.options]
    assert names == ["clients", "alpha", "min_examples", "balanced", "seed", "rate", "kind", "std"]
    assert entry.name == "dirichlet-class+label-noise+feature-noise"
    assert registry.split_partition("label-noise") == ("natural", ("label-noise",))
    assert registry.split_partition("natural+label-noise") == ("natural", ("label-noise",))
    line = registry.describe_partition("iid", {"clients": 3, "seed": 0})
    assert line == "iid clients=3 seed=0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dirichlet", "unknown --partition 'dirichlet'; choose one of natural, iid, "),
        ("iid+", "--partition 'iid+': a name is missing beside +; choose one of natural, iid, "),
        ("", "--partition '': a name is missing after --partition; choose one of "),
        (
            "iid+shards",
            "--partition iid+shards: shards divides examples among clients; a partition has only ",
        ),
        ("label-noise+iid", "--partition label-noise+iid: iid divides examples among clients; "),
        ("label-noise+label-noise", "--partition label-noise+label-noise: give each change once"),
    ],
)
def test_wrong_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.find_partition(name)
    assert str(error.value).startswith(message)


def test_the_docs_of_the_three_dirichlets_name_their_difference() -> None:
    told = {name: registry.SCHEMES[name].doc for name in registry.SCHEMES if "dirichlet" in name}
    assert "over the clients" in told["dirichlet-class"]
    assert "over the classes" in told["dirichlet-client"]
    assert "Dir(alpha * p)" in told["dirichlet-prior"]
    functions: list[Callable[..., Any]] = [schemes.SCHEMES[name] for name in schemes.SCHEMES]
    assert all(each.__doc__ for each in functions)
