"""Epsilons that other programs gave: dp-accounting 0.4.3 (PLD, RDP) and 0.6.0 (PLD)."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A mechanism under the add-or-remove relation, and its epsilons to six digits."""

    rate: float
    noise_multiplier: float
    num_rounds: int
    delta: float
    rdp: float
    pld: float


POISSON = (
    Row(0.01, 1.1, 1000, 1e-5, 1.711770, 1.515370),
    Row(0.01, 0.6, 100, 1e-5, 4.830866, 3.815599),
    Row(0.02, 1.0, 100, 1e-5, 1.843472, 1.427340),
    Row(120 / 3383, 1.2, 100, 1e-5, 1.986111, 1.707471),
    Row(0.05, 0.8, 100, 1e-5, 6.656268, 5.741243),
    Row(0.05, 2.0, 500, 1e-6, 3.101868, 2.872629),
    Row(0.1, 1.0, 50, 1e-4, 4.982783, 4.264742),
    Row(0.1, 4.0, 1000, 1e-5, 3.736242, 3.444345),
    Row(10 / 539, 1.0, 100, 1e-3, 0.998600, 0.709581),
    # Other programs print 5.609431, because they round the spectrum before they raise it to
    # the power of 2,000; sums in long double give 5.6094298.
    Row(0.001, 0.5, 2000, 1e-7, 6.744028, 5.609430),
    Row(1.0, 5.0, 10, 1e-5, 2.813653, 2.594383),
    Row(1.0, 10.0, 100, 1e-5, 4.728507, 4.377178),
    Row(0.2, 0.3, 20, 1e-4, 69.530918, 60.528009),
    Row(1.0, 1.0, 1, 1e-5, 4.728507, 4.377178),
)
# Epsilons of POISSON[3], by number of rounds, and by delta.
BY_ROUND = {
    1: 0.447511,
    2: 0.524563,
    5: 0.648361,
    10: 0.771460,
    20: 0.940482,
    50: 1.288691,
    100: 1.707471,
}
BY_DELTA = {1e-3: 1.031388, 1e-7: 2.322478, 1e-9: 2.919488}


class FixedSizeRow(NamedTuple):
    """Cohorts of a fixed size without replacement; `epsilon` is for z / 2, `unhalved` for z."""

    population: int
    cohort_size: int
    noise_multiplier: float
    num_rounds: int
    delta: float
    epsilon: float
    unhalved: float


FIXED_SIZE = (
    FixedSizeRow(3383, 120, 1.2, 100, 1e-5, 14.094143, 3.555521),
    FixedSizeRow(1000, 50, 1.0, 100, 1e-5, 34.263536, 6.466585),
    FixedSizeRow(539, 10, 2.0, 100, 1e-3, 1.538218, 0.557235),
    FixedSizeRow(200, 10, 4.0, 100, 1e-3, 1.767239, 0.727722),
)
