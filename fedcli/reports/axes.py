"""Axes of curves, whatever draws them: round numbers to mark, and when a scale is logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from fedcli.dataclass import dataclass

# A curve that reaches so many times what curves begin with would flatten the others, as losses
# begin near their maximum; so does one that reaches so many times the median of all points.
_TIMES_BEGINNING, _TIMES_MEDIAN = 5.0, 50.0


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Its least value.
        high: Its greatest.
        is_log: Whether equal lengths are equal factors.
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
        """Returns the axis of finite values, at least one; a logarithmic one if that is needed.

        Args:
            values: What is drawn.
            beginnings: The first value of each curve, if they are curves.
            is_log: True: logarithmic where all values are above 0. False: never. None: where one
                curve would flatten all others.
        """
        known, firsts = list(values), list(beginnings)
        low, high = min(known), max(known)
        if is_log is None:
            is_log = high > _TIMES_MEDIAN * median(known)
            is_log |= bool(firsts) and high > _TIMES_BEGINNING * median(firsts)
        return Axis(low, high, is_log and low > 0)

    def share(self, value: float) -> float:
        """Returns where a value lies, from 0 to 1; the middle if there is one value only."""
        if self.high <= self.low:
            return 0.5
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int, *, is_whole: bool = False) -> list[float]:
        """Returns round numbers on the axis, at most about so many, at least one.

        Args:
            most: How many there is room for, at least 2.
            is_whole: Whole numbers only.
        """
        if self.high <= self.low:
            return [self.low]
        found = _log_ticks(self.low, self.high, most) if self.is_log else []
        for many in range(most, 2 * most + 2):  # one tick is no scale
            if len(found) > 1:
                break
            found = _ticks(self.low, self.high, many, is_whole=is_whole)
        return found or [self.low]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Returns what ticks are called: of equally many decimals, as few as tell them apart."""
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
    """Powers of ten, every second or third of them if they are many; 1, 2, 5 if they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 2, 5)):
        found = [
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(found) >= 2:
            return found[:: -(-len(found) // most)]
    return []
