"""The privacy loss distribution of a Gaussian sum over a Poisson-sampled cohort.

One round adds N(0, z^2) to a sum to which one client, present with probability q, contributes at
most 1. The output's density is P with this client and Q without it; the privacy loss is ln(P / Q).
The losses of rounds add up, so their distributions are convolved, by a Fourier transform.

Meiser and Mohammadi, "Tight on Budget? Tight Bounds for r-Fold Approximate Differential Privacy",
CCS 2018, https://eprint.iacr.org/2017/1034; Koskela, Jaelkoe and Honkela, AISTATS 2020,
https://arxiv.org/abs/1906.03049. Losses are rounded to a grid by "connecting the dots" (Doroshenko,
Ghazi, Kamath, Kumar and Manurangsi, PoPETs 2022, https://arxiv.org/abs/2207.04380), so epsilon is
never too small. Google's dp-accounting uses the same grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP = 1e-4  # between two losses of the grid, as in dp-accounting
_LOG_TAIL = math.log(1e20)  # the largest outputs, of mass below 1e-20, count as infinite losses
_WINDOW_TAIL = 1e-15  # mass of a sum of losses beyond the window
_LAMBDAS = np.geomspace(0.05, 400.0, 60)  # exponents of the Chernoff bounds of the window
_BLOCK = 512  # losses that are summed at a time in the search for epsilon
_LEAST_CAPACITY = 16  # number of rounds that the first window covers
# Epsilon of adding a client is computed ahead, for up to this multiple of the current rounds.
_FARTHEST = 1.5
_LOG_LEAST = math.log(1e-20)  # frequencies with smaller coefficients are left out
_FEW = 16  # `_solve` is used if at most 1 / _FEW of the frequencies matter, else `_search`
_NEWTON_STEPS = 20  # largest number of Newton's steps; bisection follows

Floats = NDArray[np.float64]


class ComposedLoss:
    """The loss of one direction (add or remove a client) after up to `max_rounds` rounds.

    It stores the spectrum of one round. The distribution of a sum of many losses is smooth, so only
    its lowest frequencies matter, and epsilon is computed from these. If too many frequencies
    matter, for example after few rounds, epsilon is found by a search over the masses.
    """

    def __init__(
        self,
        masses: Floats,
        first: int,
        infinite: float,
        max_rounds: int,
        moments: Moments | None = None,
    ) -> None:
        """Prepares sums of up to `max_rounds` losses.

        Args:
            masses: Probability of each loss (first + i) * STEP, [num_losses].
            first: The smallest loss, in steps.
            infinite: Probability of an infinite loss.
            max_rounds: The largest number of rounds that `epsilon` accepts.
            moments: The moments of the losses; None to compute them.
        """
        self._infinite = infinite
        self._moments = moments or moments_of(masses, first)
        low, high = _window(self._moments, max_rounds)
        self._size = _size_of_at_least(max(high - low + 1, 4 * _BLOCK), 4)
        self._last = low + self._size - 1  # the largest loss in the window
        places = np.zeros(self._size)
        np.add.at(places, np.arange(first, first + len(masses)) % self._size, masses)
        self._spectrum = np.fft.rfft(places)
        # Make the finite masses sum to exactly 1, because the power would multiply a small error.
        self._spectrum /= self._spectrum[0].real
        with np.errstate(divide="ignore"):
            sizes = np.log(np.abs(self._spectrum))
        # For each frequency, minus the largest logarithm among this and all higher frequencies. The
        # values ascend, because the maximum is over fewer and fewer frequencies.
        self._decay = -np.maximum.accumulate(sizes[::-1])[::-1]
        self._sums = _GeometricSums(self._size, self._last)

    def epsilon(self, num_rounds: int, delta: float) -> float:
        """Returns the smallest epsilon for which the composed rounds are (epsilon, delta)-private.

        Args:
            num_rounds: At least 1.
            delta: Above 0.
        """
        infinite = -math.expm1(num_rounds * math.log1p(-self._infinite)) + _WINDOW_TAIL
        if infinite > delta:
            return math.inf
        num_kept = int(np.searchsorted(self._decay, -_LOG_LEAST / num_rounds))
        power = _power(self._spectrum[:num_kept], num_rounds)
        if num_kept > self._size // _FEW:
            return self._search(power, delta - infinite)
        return self._solve(power, delta - infinite, num_rounds)

    def _solve(self, power: NDArray[np.complex128], delta: float, num_rounds: int) -> float:
        """Finds epsilon as `_search` does, with sums over the losses in closed form."""
        sums_above = self._sums.of(power)
        bounds = (num_rounds * self._moments.up - math.log(delta)) / _LAMBDAS  # Chernoff
        place = int(bounds.min() / STEP)
        low, high = -1, self._last  # delta is exceeded at `low`, and not at `high`
        total = shrunk = 1.0
        for tries in itertools.count():
            if high - low <= 1:
                break
            place = min(max(place, low + 1), high - 1)
            total_here, shrunk_here = sums_above(place)
            excess = total_here - shrunk_here
            if excess > delta:
                low, total, shrunk = place, total_here, shrunk_here
            else:
                high = place
            if excess <= 0.0 or tries > _NEWTON_STEPS:
                place = (low + high) // 2
                continue
            # Newton's method for the logarithm, whose derivative is -shrunk / excess.
            step = math.log(excess / delta) * excess / (shrunk_here * STEP)
            place += math.ceil(step) if excess > delta else math.floor(step)
        if low < 0:
            return 0.0
        return max(0.0, low * STEP + math.log((total - delta) / shrunk))

    def _search(self, power: NDArray[np.complex128], delta: float) -> float:
        """Finds the first loss l with sum over j > l of (1 - e^(l - j)) * masses[j] <= delta."""
        # A loss of i steps has index i; only losses above 0 are read.
        num_read = min(max(1, -(-self._last // _BLOCK)) * _BLOCK, self._size)
        masses = np.fft.irfft(power, self._size)[:num_read]
        np.maximum(masses, 0.0, out=masses)
        masses[self._last + 1 :] = 0.0  # losses below 0
        blocks = masses.reshape(-1, _BLOCK)
        # Shrunk sums are relative to the first loss of their block.
        shrink, after = np.exp(-STEP * np.arange(_BLOCK)), math.exp(-STEP * _BLOCK)
        above = _suffix_sums(blocks.sum(axis=1))
        shrunk_above = _decayed_sums(np.einsum("bi,i->b", blocks, shrink), after)
        # The last block at whose first loss the sum still exceeds delta.
        exceeded = np.flatnonzero(above[:-1] - shrunk_above[:-1] > delta)
        if not len(exceeded):
            return 0.0
        block = int(exceeded[-1])
        rest = _suffix_sums(blocks[block]) + above[block + 1]
        shrunk_rest = _suffix_sums(blocks[block] * shrink) + after * shrunk_above[block + 1]
        losses = np.flatnonzero(rest[:-1] - shrunk_rest[:-1] / shrink > delta)
        # From this loss to the next, the sum has the same terms, so `sum = delta` is solved for l.
        place = int(losses[-1]) + 1
        epsilon = block * _BLOCK * STEP + math.log((rest[place] - delta) / shrunk_rest[place])
        return max(0.0, epsilon)


class _GeometricSums:
    """Sums over the losses j of `place` + 1 to `last` steps, from the lowest frequencies.

    The mass of j is the mean over the frequencies k of power[k] * w^(j k), for a root of unity w.
    So for each frequency both sums, of the masses and of the masses times e^(`place` - j), are
    geometric.
    """

    def __init__(self, size: int, last: int) -> None:
        """Prepares sums of losses that repeat after `size` steps."""
        self._size, self._last = size, last
        self._frequencies = np.arange(1, max(2, size // _FEW))
        angles = 2j * math.pi / size * self._frequencies
        # 1 - e^x is written with expm1, because it is small. The factor 2 counts the term of a
        # frequency and the equal term of its negative.
        of_masses = -2.0 / size / np.expm1(angles)
        of_shrunk = 2.0 / size * np.exp(-angles) / np.expm1(STEP - angles)
        self._factors = np.stack([of_masses, of_shrunk])
        self._after = self._root_powers(last, len(self._frequencies))

    def _root_powers(self, place: int, num: int) -> NDArray[np.complex128]:
        """Returns w^((place + 1) k) for each frequency k from 1 to `num`."""
        multiples = self._frequencies[:num] * (place + 1) % self._size
        powers: NDArray[np.complex128] = np.exp(2j * math.pi / self._size * multiples)
        return powers

    def of(self, power: NDArray[np.complex128]) -> Callable[[int], tuple[float, float]]:
        """Returns a function of `place`, which returns both sums."""
        num = len(power) - 1
        mean = power[0].real / self._size
        shrunk_mean = mean / math.expm1(STEP)
        parts = self._factors[:, :num] * power[1:]
        rest, shrunk_rest = (parts * self._after[:num]).sum(axis=1).real.tolist()

        def at(place: int) -> tuple[float, float]:
            own, shrunk_own = (parts * self._root_powers(place, num)).sum(axis=1).real.tolist()
            num_above = self._last - place
            decayed = math.exp(-STEP * num_above)
            total = num_above * mean + own - rest
            shrunk = (1.0 - decayed) * shrunk_mean + shrunk_own - decayed * shrunk_rest
            return total, shrunk

        return at


class SampledGaussianLoss:
    """The loss of rounds of a Gaussian sum over a Poisson-sampled cohort, in both directions."""

    def __init__(self, rate: float, noise_multiplier: float) -> None:
        """Prepares one round.

        Args:
            rate: Probability q that a client takes part, above 0 and below 1.
            noise_multiplier: z, standard deviation of the noise divided by the clipping norm; above
                0.
        """
        self._losses = removed_and_added(rate, noise_multiplier)
        # The window for any number of rounds is computed from these moments.
        self._moments = [moments_of(each.masses, each.first) for each in self._losses]
        self._capacity = 0
        self._bound = (0, math.inf)  # a number of rounds, and epsilon of adding a client after them
        self._reach = _FARTHEST  # the multiple of the current rounds for which `_bound` is computed

    def epsilon(self, num_rounds: int, delta: float) -> float:
        """Returns epsilon after `num_rounds` rounds, the larger one of both directions.

        Removing a client usually has the larger epsilon. Epsilon of adding a client is computed for
        a later round. It is an upper bound in all earlier rounds, because epsilon grows with the
        rounds. It is computed again only if this bound exceeds epsilon of removing a client.
        """
        capacity = _size_of_at_least(max(num_rounds, _LEAST_CAPACITY), 2)
        if capacity != self._capacity:  # capacity depends only on num_rounds, and so does epsilon
            self._removed, self._added = (
                ComposedLoss(*losses, capacity, moments)
                for losses, moments in zip(self._losses, self._moments, strict=True)
            )
            self._capacity, self._bound = capacity, (0, math.inf)
        removed = self._removed.epsilon(num_rounds, delta)
        if num_rounds <= self._bound[0] and self._bound[1] <= removed:
            return removed
        ahead = min(int(num_rounds * self._reach), capacity)
        bound = self._added.epsilon(ahead, delta)
        self._bound = ahead, bound
        if bound <= removed:
            return removed
        added = self._added.epsilon(num_rounds, delta)
        # Epsilon grows at most about as fast as the number of rounds.
        self._reach = min(max(removed / max(added, 1e-9), 1.0), _FARTHEST)
        return max(removed, added)


class GridLosses(NamedTuple):
    """The losses of one round on the grid; see `ComposedLoss`."""

    masses: Floats
    first: int
    infinite: float


def removed_and_added(rate: float, noise_multiplier: float) -> tuple[GridLosses, GridLosses]:
    """Returns the losses of removing the client, and those of adding it.

    Args:
        rate: See `SampledGaussianLoss`.
        noise_multiplier: See `SampledGaussianLoss`.
    """
    z = noise_multiplier
    reach = z * math.sqrt(2.0 * _LOG_TAIL)

    def loss(x: float) -> float:
        present = math.log(rate) + (2.0 * x - 1.0) / (2.0 * z * z)
        return float(np.logaddexp(math.log1p(-rate), present))

    first, last = math.floor(loss(-reach) / STEP), math.ceil(loss(1.0 + reach) / STEP)
    ends = np.arange(first, last + 1)
    outputs = _output_of(ends * np.float64(STEP), rate, z)
    outputs[outputs < -reach] = -math.inf
    outputs[-1] = max(outputs[-1], 1.0 + reach)
    absent = _masses_between(outputs / z)
    present = _masses_between((outputs - 1.0) / z)
    mixed = (1.0 - rate) * absent + rate * present
    beyond_absent = _above(outputs[-1] / z)
    beyond = (1.0 - rate) * beyond_absent + rate * _above((outputs[-1] - 1.0) / z)
    removed = GridLosses(_on_grid(mixed, absent, ends), first, beyond)
    # Losses of the other direction have the other sign; the largest, at -reach, is finite.
    masses = _on_grid(absent[::-1], mixed[::-1], -ends[::-1])
    masses[0] += beyond_absent
    return removed, GridLosses(masses, -last, 0.0)


def _output_of(losses: Floats, rate: float, z: float) -> Floats:
    """Returns the output x at which ln(1 - q + q e^((2x - 1) / (2 z^2))) has each value."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # (e^l - (1 - q)) / q, written so that no digits are lost near l = 0
        excess = 1.0 + np.expm1(losses) / rate
        outputs: Floats = 0.5 + z * z * np.log(np.maximum(excess, 0.0))
    return outputs


def _masses_between(places: Floats) -> Floats:
    """Returns the standard normal mass between neighbouring places, to full relative accuracy.

    Each is a difference of tails, on the side where the tails are small.

    Args:
        places: Increasing, [n + 1]; the result is [n].
    """
    tails = np.fromiter(
        (0.5 * math.erfc(abs(x)) for x in (places / math.sqrt(2.0)).tolist()), float
    )
    left, right = tails[:-1], tails[1:]
    on_one_side = np.where(places[:-1] >= 0.0, left - right, right - left)
    is_around_0 = (places[:-1] < 0.0) & (places[1:] > 0.0)
    masses: Floats = np.where(is_around_0, 1.0 - left - right, on_one_side)
    return masses


def _above(place: float) -> float:
    return 0.5 * math.erfc(place / math.sqrt(2.0))


def _on_grid(upper: Floats, lower: Floats, ends: NDArray[np.int64]) -> Floats:
    """Divides the mass of each bin between its two ends, so that both P and Q keep their masses.

    Args:
        upper: Mass under P of the bins between neighbouring ends, [num_bins].
        lower: Mass under Q.
        ends: Losses in steps, [num_bins + 1].
    """
    with np.errstate(over="ignore", invalid="ignore"):
        raised = lower * np.exp(ends[:-1] * STEP)
    at_right = np.clip((upper - np.nan_to_num(raised)) / -math.expm1(-STEP), 0.0, upper)
    masses = np.zeros(len(ends))
    masses[:-1] += upper - at_right
    masses[1:] += at_right
    return masses


class Moments(NamedTuple):
    """ln E[e^(a L)] and ln E[e^(-a L)] for the loss L of one round and each a of _LAMBDAS."""

    up: Floats
    down: Floats


def moments_of(masses: Floats, first: int) -> Moments:
    """Returns the moments of a loss; see `ComposedLoss` for the arguments."""
    positive = np.flatnonzero(masses)
    losses = (first + positive) * STEP
    log_masses = np.log(masses[positive])
    up, down = (
        np.array([_log_sum(log_masses + sign * a * losses) for a in _LAMBDAS])
        for sign in (1.0, -1.0)
    )
    return Moments(up, down)


def _window(moments: Moments, max_rounds: int) -> tuple[int, int]:
    """Returns a range, in steps, outside which the sum of losses has a mass below _WINDOW_TAIL.

    Chernoff: P(S >= s) <= E[e^(a S)] e^(-a s), for several a.
    """
    log_tail = math.log(1.0 / _WINDOW_TAIL)
    rounds = np.unique(np.geomspace(1, max_rounds, 12).astype(np.int64))[:, np.newaxis]
    high = float(np.min((rounds * moments.up + log_tail) / _LAMBDAS, axis=1).max())
    low = float(np.max(-(rounds * moments.down + log_tail) / _LAMBDAS, axis=1).min())
    return math.floor(min(low, 0.0) / STEP), math.ceil(high / STEP) + 1


def _log_sum(logs: Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))


def _power(values: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """Returns the values to a whole power of at least 0, by repeated squaring."""
    result = np.ones_like(values)
    square = values
    while exponent:
        if exponent & 1:
            result = result * square
        exponent >>= 1
        if exponent:
            square = square * square
    return result


def _size_of_at_least(needed: int, steps: int) -> int:
    """Returns the smallest number >= `needed` of a certain form.

    The form is a power of 2 times a whole number from `steps` to 2 * `steps` - 1.
    """
    power = 1
    while (2 * steps - 1) * power < needed:
        power *= 2
    return power * max(steps, -(-needed // power))


def _suffix_sums(values: Floats) -> Floats:
    """Returns the sums of values[i:] for i from 0 to n: [n + 1], the last is 0."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _decayed_sums(values: Floats, decay: float) -> Floats:
    """Returns the sums of values[j] * decay^(j - i) over j >= i, for i from 0 to n: [n + 1]."""
    sums = itertools.accumulate(
        reversed(values.tolist()), lambda after, own: own + decay * after, initial=0.0
    )
    return np.array(list(sums)[::-1])
