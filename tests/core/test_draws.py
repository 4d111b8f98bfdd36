from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.core import draws, native
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, StreamKey, stream_key

pytestmark = pytest.mark.numeric

KEY = stream_key(1, Purpose.PARTITION)
N = 20_000
# If two samples of N draws are from one distribution, their `ks_distance` exceeds this limit in one
# of 10^6 cases.
KS_LIMIT = math.sqrt(-math.log(1e-6 / 2) / N)


def ks_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference of two empirical distribution functions."""
    points = np.sort(np.concatenate([one, other]))
    shares = [
        np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def test_the_stream_is_the_core_s_whatever_the_calls() -> None:
    stream = Stream(KEY)
    words = np.concatenate([stream.words(n) for n in (3, 0, 1, 1, 50, 2, 1000)])
    assert np.array_equal(words, native.random_u64(KEY, len(words)))


def test_a_long_stream_goes_on_under_another_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "_BLOCK_WORDS", 100)
    stream = Stream(KEY)
    words = np.concatenate([stream.words(n) for n in (70, 30, 1, 250, 49)])
    keys = [KEY._replace(purpose=KEY.purpose + (block << 32)) for block in range(4)]
    assert np.array_equal(words, np.concatenate([native.random_u64(key, 100) for key in keys]))


def test_the_memory_of_a_stream_does_not_grow_with_what_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def count(key: StreamKey, num: int) -> np.ndarray:
        asked.append(num)
        return np.zeros(num, np.uint64)

    monkeypatch.setattr(native, "random_u64", count)
    stream = Stream(KEY)
    for _ in range(5):
        stream.words(1_000_000)
    assert max(asked) <= 2**20


def test_known_answers() -> None:
    """If these values changed, all existing partitions would change."""
    stream = Stream(KEY)
    assert stream.words(2).tolist() == [4014481089557602655, 16332048300685272199]
    assert stream.permutation(10).tolist() == [2, 0, 6, 4, 5, 8, 3, 1, 9, 7]
    assert stream.integers(1000, 5).tolist() == [863, 124, 557, 649, 802]
    assert stream.normal(2) == pytest.approx(
        [-0.16157607547466535, -0.49920674686619326], rel=1e-14
    )
    assert stream.gamma(0.5, 2) == pytest.approx(
        [0.07555832975322384, 2.4221161513087734], rel=1e-13
    )


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(n: int, seed: int) -> None:
    order = Stream(stream_key(seed, Purpose.PARTITION)).permutation(n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_every_permutation_of_four_is_as_likely() -> None:
    stream = Stream(KEY)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4800):
        order = tuple(stream.permutation(4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 70  # with 23 degrees of freedom, one of 10^6 cases exceeds 70


@given(st.integers(1, 2**53), st.integers(0, 2**32))
def test_integers_stay_below_their_bound(bound: int, seed: int) -> None:
    drawn = Stream(stream_key(seed, Purpose.PARTITION)).integers(bound, 50)
    assert drawn.min() >= 0
    assert drawn.max() < bound


def test_the_largest_word_still_stays_below_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    full = np.full(9, 2**64 - 1, np.uint64)
    monkeypatch.setattr(native, "random_u64", lambda key, count: full[:count])
    bounds = np.array([1, 2, 3, 10, 62, 341_873, 2**31 - 1, 2**53 - 1, 2**53])
    assert Stream(KEY).integers(bounds, 9).tolist() == (bounds - 1).tolist()


def test_integers_take_a_bound_each() -> None:
    drawn = Stream(KEY).integers(np.tile(np.array([1, 5]), 5000), 10_000)
    assert not drawn[::2].any()
    assert np.bincount(drawn[1::2]) == pytest.approx(np.full(5, 1000), abs=150)


@pytest.mark.parametrize("shape", [0.01, 0.1, 0.5, 0.99, 1.0, 1.5, 7.0, 1000.0])
def test_gamma_is_numpy_s(shape: float, seed: int) -> None:
    ours = Stream(stream_key(seed, Purpose.PARTITION)).gamma(shape, N)
    theirs = np.random.default_rng(seed).gamma(shape, size=N)
    assert ks_distance(ours, theirs) < KS_LIMIT
    five_errors = 5.0 * math.sqrt(shape / N)
    assert ours.mean() == pytest.approx(shape, abs=five_errors)
    assert ours.var() == pytest.approx(shape, abs=5.0 * shape * math.sqrt((2 + 6 / shape) / N))


def test_uniform_and_normal_are_numpy_s(seed: int) -> None:
    stream = Stream(stream_key(seed, Purpose.PARTITION))
    theirs = np.random.default_rng(seed)
    uniform, normal = stream.uniform(N), stream.normal(N)
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0
    assert ks_distance(uniform, theirs.random(N)) < KS_LIMIT
    assert ks_distance(normal, theirs.normal(size=N)) < KS_LIMIT
    assert normal.mean() == pytest.approx(0.0, abs=5 / math.sqrt(N))
    assert normal.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / N))
    halves = normal.reshape(2, -1)  # made by cosine and by sine from the same uniform pairs
    assert abs(np.mean(halves[0] * halves[1])) < 5 / math.sqrt(N / 2)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_are_drawn_as_asked(n: int) -> None:
    stream = Stream(KEY)
    assert stream.normal(n).shape == (n,)
    assert stream.gamma(0.5, n).shape == (n,)
    assert stream.uniform(n).shape == (n,)


def test_gamma_takes_a_shape_each() -> None:
    drawn = Stream(KEY).gamma(np.tile([0.0, 2.0, 200.0], 1000)).reshape(1000, 3)
    assert drawn.mean(axis=0) == pytest.approx([0.0, 2.0, 200.0], rel=0.2)
    assert not drawn[:, 0].any()


@given(
    st.lists(st.sampled_from([0.0, 5e-324, 1e-300, 1e-9, 1e-3, 0.5, 1.0, 30.0, 1e9]), min_size=1),
    st.integers(0, 2**32),
)
def test_dirichlet_rows_sum_to_one(alphas: list[float], seed: int) -> None:
    alpha = np.array([*alphas, 1e-3])
    shares = Stream(stream_key(seed, Purpose.PARTITION)).dirichlet(alpha, rows=3)
    assert shares.shape == (3, len(alpha))
    assert (shares >= 0).all()
    assert shares.sum(axis=1) == pytest.approx(np.ones(3))
    assert not shares[:, alpha == 0.0].any()


@pytest.mark.parametrize("alpha", [1e-6, 1e-3])
def test_tiny_alphas_give_one_class_each_time_another(alpha: float) -> None:
    shares = Stream(KEY).dirichlet(np.full(4, alpha), rows=4000)
    assert np.quantile(shares.max(axis=1), 0.05) > 0.9
    # In 4000 draws, the count of a class with probability 1/4 has a standard deviation of 27.4;
    # 137 is five standard deviations.
    assert np.bincount(shares.argmax(axis=1), minlength=4) == pytest.approx(1000, abs=137)


def test_alpha_0_gets_no_share_even_beside_the_tiniest_alpha() -> None:
    for seed in range(20):
        shares = Stream(stream_key(seed, Purpose.PARTITION)).dirichlet(np.array([0.0, 1e-300]))
        assert shares.tolist() == [[0.0, 1.0]]


def test_dirichlet_moments(seed: int) -> None:
    alpha = np.array([0.2, 1.0, 3.0])
    shares = Stream(stream_key(seed, Purpose.PARTITION)).dirichlet(alpha, rows=N)
    total = alpha.sum()
    variance = alpha * (total - alpha) / (total**2 * (total + 1))
    assert shares.mean(axis=0) == pytest.approx(alpha / total, abs=5 * math.sqrt(0.05 / N))
    assert shares.var(axis=0) == pytest.approx(variance, rel=0.1)


def test_gamma_ends_even_if_everything_were_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "normal", lambda self, n: np.full(n, -1e9))
    assert np.isfinite(Stream(KEY).gamma(2.0, 3)).all()


def test_other_keys_draw_other_numbers() -> None:
    keys = [KEY, stream_key(2, Purpose.PARTITION), stream_key(1, Purpose.HOLD_OUT)]
    assert len({Stream(key).permutation(50).tobytes() for key in keys}) == 3
