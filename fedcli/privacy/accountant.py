"""Epsilon of a run round by round, and the noise that meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from fedcli.errors import ConfigError, plural
from fedcli.privacy import renyi
from fedcli.privacy.schemes import Epsilon, Scheme

# The range of noise multipliers that are tried for a target epsilon, and their step.
_LEAST_NOISE, _MOST_NOISE, _NOISE_STEP = 0.1, 1000.0, 0.001

PLD, RDP = "pld", "rdp"


class Spent(NamedTuple):
    """The privacy that a number of rounds has spent; infinite without noise.

    Attributes:
        epsilon: Epsilon by the run's accountant.
        epsilon_rdp: Epsilon by Renyi divergences.
    """

    epsilon: float
    epsilon_rdp: float


class Accountant:
    """Computes epsilon after each round of a scheme.

    Attributes:
        scheme: The way of choosing the clients of each round.
        noise_multiplier: z, standard deviation of the noise divided by the clipping norm.
        delta: The probability with which the guarantee may fail.
        method: The accountant that computes `Spent.epsilon`: `pld`, or `rdp` if it was requested or
            if no tighter accountant fits the scheme.
    """

    def __init__(
        self, scheme: Scheme, noise_multiplier: float, delta: float, method: str = PLD
    ) -> None:
        """Prepares the accountant; see the attributes. `method` is the requested method."""
        self.scheme = scheme
        self.noise_multiplier = noise_multiplier
        self.delta = delta
        has_noise = noise_multiplier > 0.0
        self._exact = scheme.exact(noise_multiplier) if has_noise and method == PLD else None
        self._renyi = scheme.renyi(noise_multiplier) if has_noise else None
        self.method = RDP if has_noise and self._exact is None else method

    def spent(self, num_rounds: int) -> Spent:
        """Returns epsilon after a number of rounds. It does not depend on earlier calls."""
        if num_rounds == 0:
            return Spent(0.0, 0.0)
        if self._renyi is None:
            return Spent(math.inf, math.inf)
        by_renyi = renyi.epsilon(self._renyi(num_rounds), self.delta)
        exact = by_renyi if self._exact is None else self._exact(num_rounds, self.delta)
        return Spent(exact, by_renyi)


@lru_cache(maxsize=16)
def noise_for(
    scheme: Scheme, target_epsilon: float, num_rounds: int, delta: float, method: str = PLD
) -> float:
    """Returns the smallest noise multiplier that spends at most `target_epsilon`.

    It is a multiple of 0.001, rounded up, from 0.1 to 1000.

    Raises:
        ConfigError: Even the largest noise multiplier spends more.
    """

    def by_renyi(steps: int) -> bool:
        spent = scheme.renyi(steps * _NOISE_STEP)(num_rounds)
        return renyi.epsilon(spent, delta) <= target_epsilon

    least, most = round(_LEAST_NOISE / _NOISE_STEP), round(_MOST_NOISE / _NOISE_STEP)
    if not by_renyi(most):
        raise ConfigError(
            f"--dp-option target_epsilon={target_epsilon:g}: {plural(num_rounds, 'round')} spend "
            f"more even with noise_multiplier={_MOST_NOISE:g}; choose a larger target_epsilon, "
            "fewer --rounds or fewer --clients"
        )
    enough = _first(by_renyi, least, most)
    exact = scheme.exact(enough * _NOISE_STEP) if method == PLD else None
    if exact is None:
        return round(enough * _NOISE_STEP, 3)

    def by_loss(steps: int) -> bool:
        epsilon: Epsilon | None = scheme.exact(steps * _NOISE_STEP)
        assert epsilon is not None
        return epsilon(num_rounds, delta) <= target_epsilon

    # Renyi divergences bound epsilon from above, so somewhat less noise suffices.
    low = enough
    while low > least and by_loss(low):
        enough, low = low, max(least, low * 9 // 10)
    return round(_first(by_loss, low, enough) * _NOISE_STEP, 3)


def _first(is_enough: Callable[[int], bool], low: int, high: int) -> int:
    """Returns the smallest n from `low` to `high` for which `is_enough(n)` holds.

    It must hold for `high`; and if it holds for a number, it must hold for all larger numbers.
    """
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return high
