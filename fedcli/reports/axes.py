"""Axes of curves for all outputs: ticks at round numbers, linear or logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from fedcli.dataclass import dataclass

# The scale is logarithmic if the largest value is more than the first factor times the median of
# the curves' first values, or more than the second factor times the median of all values. Such a
# large value would flatten the other curves, because losses normally begin near their maximum.
_TIMES_BEGINNING, _TIMES_MEDIAN = 5.0, 50.0


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: The smallest value.
        high: The largest value.
        is_log: Whether the scale is logarithmic.
    """

    low: float
    high: float
    is_log: bool = False

    @staticmethod
    def of(
        values: Iterable[float],
        beginnings: Iterable[float] = (),
        *,
        is_log: bool | None = None,
    ) -> Axis:
        """Returns the axis for some values.

        Args:
            values: The drawn values, at least one, all finite.
            beginnings: The first value of each curve.
            is_log: Whether the scale is logarithmic; None to choose a logarithmic scale only if one
                curve would flatten all others. It is linear in any case if a value is 0 or less.
        """
        known, firsts = list(values), list(beginnings)
        low, high = min(known), max(known)
        if is_log is None:
            is_log = high > _TIMES_MEDIAN * median(known)
            is_log |= bool(firsts) and high > _TIMES_BEGINNING * median(firsts)
        return Axis(low, high, is_log and low > 0)

    def share(self, value: float) -> float:
        """Returns a value's position on the axis, from 0 to 1; 0.5 if `low` equals `high`."""
        if self.high <= self.low:
            return 0.5
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int, *, is_whole: bool = False) -> list[float]:
        """Returns round numbers on the axis: at least one, and about `most` or fewer.

        Args:
            most: Number of ticks for which there is room, at least 2.
            is_whole: Whether only whole numbers are allowed.
        """
        if self.high <= self.low:
            return [self.low]
        ticks = _log_ticks(self.low, self.high, most) if self.is_log else []
        for room in range(most, 2 * most + 2):  # a single tick does not show the scale
            if len(ticks) > 1:
                break
            ticks = _ticks(self.low, self.high, room, is_whole=is_whole)
        return ticks or [self.low]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Returns the labels of ticks, all with the same number of decimals and as few as possible."""
    if all(each == int(each) for each in ticks) and max(map(abs, ticks), default=0) < 1e6:
        return [f"{each:,.0f}" for each in ticks]
    for digits in range(1, 7):
        texts = [f"{each:.{digits}f}" for each in ticks]
        are_exact = all(
            math.isclose(float(text), each, rel_tol=1e-6, abs_tol=1e-12)
            for text, each in zip(texts, ticks, strict=True)
        )
        if are_exact and max(map(len, texts)) < 9:
            return texts
    return [f"{each:.3g}" for each in ticks]


def _ticks(low: float, high: float, most: int, *, is_whole: bool) -> list[float]:
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1, 2, 5, 10, 20) if is_whole else (1, 2, 2.5, 5, 10)
    step = next(power * factor for factor in factors if power * factor >= raw * (1 - 1e-9))
    if is_whole:
        step = max(1.0, float(round(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Returns powers of ten, and 2 and 5 times them if they are few; at most about `most`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 2, 5)):
        ticks = [
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(ticks) >= 2:
            return ticks[:: -(-len(ticks) // most)]
    return []
