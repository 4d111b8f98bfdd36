"""Products of a share and a whole number, computed exactly in decimals.

A share such as 0.29 is not exact in binary: 0.29 * 100 is a little below 29. The shortest decimal
number of the float, which is what the user wrote, is multiplied exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction


def rounded_down(share: float, number: int) -> int:
    """Returns share * number, rounded down."""
    return math.floor(_product(share, number))


def rounded_up(share: float, number: int) -> int:
    """Returns share * number, rounded up."""
    return math.ceil(_product(share, number))


def _product(share: float, number: int) -> Fraction:
    return Fraction(repr(float(share))) * number
