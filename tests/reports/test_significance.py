from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedcli.reports.significance import holm, sign_flip_p, smallest_p


def counted_p(differences: list[float]) -> float:
    """Returns the p-value by its definition, over all patterns of signs."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(each >= observed - 1e-9 for each in sums) / len(patterns)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
def test_the_exact_test_counts_all_patterns(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed + count)
    for _ in range(5):
        differences = rng.normal(0.5, 1, count).round(2).tolist()
        assert sign_flip_p(differences) == counted_p(differences)


def test_equal_sums_count_in_spite_of_rounding() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3]) == 2 / 8
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_the_smallest_p_is_that_of_differences_of_one_sign() -> None:
    for count in (2, 5, 6, 16):
        assert sign_flip_p([1.0] * count) == smallest_p(count) == 2 / 2**count


def test_of_many_pairs_patterns_are_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.4, 1, 17).tolist()
    drawn = sign_flip_p(differences)
    assert drawn == sign_flip_p(differences)
    # 100,000 draws: three standard errors of a share are at most 0.005.
    assert abs(drawn - counted_p(differences)) < 0.005
    assert sign_flip_p([1.0] * 40) == smallest_p(40)


def test_holm() -> None:
    # Worked by hand: 3 * 0.01, then 2 * 0.03, then the larger of 0.06 and 0.04.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
