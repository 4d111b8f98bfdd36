"""The mean of clipped deltas with Gaussian noise: differential privacy of clients.

McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language Models", ICLR
2018, https://arxiv.org/abs/1710.06963 (TFF aggregators/differential_privacy.py):

    D_k <- D_k * min(1, C / |D_k|);   mean = (sum over k of D_k + N(0, (z C)^2)) / m

m is the expected number of clients, which is public; the actual number in a round is private.
Clients have weight 1. Every round releases noise, even a round without clients.

With an adaptive norm (Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with
Adaptive Clipping", NeurIPS 2021, https://arxiv.org/abs/1905.03871) C follows a quantile:

    b = clamp((sum over k of (1[|D_k| <= C] - 1/2) + N(0, s^2)) / m + 1/2, 0, 1)
    C <- C * exp(-rate * (b - target)),   from the next round on

The noise on the sum of deltas has standard deviation z_v C, where
1 / z_v^2 = 1 / z^2 - 1 / (2 s)^2. The noised sum and b together then spend as much privacy as one
release with noise multiplier z.

A secure sum rounds the clipped delta of each client, which can make the norm of the delta larger
than C. The largest possible increase is known beforehand, and the noise is then in proportion to C
plus this increase.

This is a simulation: whoever knows the seed can subtract the noise, and Gaussian noise in floating
point can leak what it hides (Mironov, CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.noise import FreshNoise, NoiseSource, TreeNoise
from fedcli.learning.engines.deltas import NO_BOUNDS, DeltaRequest, Deltas
from fedcli.privacy.accountant import Accountant

_SHARE_OF_COUNT = 0.05  # default count_stddev per expected client, as in TFF


class PrivacyPlan(NamedTuple):
    """The values that follow from the population and the sampling of a run.

    Attributes:
        cohort_size: m, the expected number of clients of a round.
        sampling_rate: m divided by the number of clients that may take part.
        accountant: Computes epsilon, with the noise multiplier z of the run.
    """

    cohort_size: int
    sampling_rate: float
    accountant: Accountant


class AdaptiveClip(NamedTuple):
    """How the clipping norm follows a quantile of the norms of deltas.

    Attributes:
        quantile: Share of deltas that are to stay unclipped.
        rate: Step size of the logarithm of the norm.
        count_stddev: Standard deviation s of the noise on the number of unclipped deltas.
    """

    quantile: float
    rate: float
    count_stddev: float

    def noise_on_deltas(self, noise_multiplier: float) -> float:
        """Returns z_v, the noise multiplier of the sum of deltas."""
        if noise_multiplier == 0.0:
            return 0.0
        return 1.0 / math.sqrt(noise_multiplier**-2 - (2.0 * self.count_stddev) ** -2)

    def after(self, clip: float, num_below: float, num_above: float, expected: int) -> float:
        """Returns the norm of the next round; the numbers of deltas include their noise."""
        share = min(1.0, max(0.0, 0.5 * (num_below - num_above) / expected + 0.5))
        return clip * math.exp(-self.rate * (share - self.quantile))


@dataclass(frozen=True, eq=False)
class PrivateMean:
    """The noised mean of clipped deltas, and epsilon after each round.

    Attributes:
        clip: The clipping norm of the first round.
        seed: The run's seed.
        noise: The noise of each round, with standard deviation 1.
        plan: The values of the run; None where a stored run is evaluated and not trained.
        adaptive: How the norm changes; None if it stays the same.
    """

    selected_by: ClassVar[str] = "--dp"

    clip: float
    seed: int
    noise: NoiseSource
    plan: PrivacyPlan | None
    adaptive: AdaptiveClip | None = None

    def init(self) -> dict[str, Any]:
        """Returns the norm, and what determines epsilon: number of rounds, z and sampling rate."""
        plan = self.plan
        return {
            "clip": self.clip,
            "num_rounds": 0,
            "noise_multiplier": 0.0 if plan is None else plan.accountant.noise_multiplier,
            "sampling_rate": 0.0 if plan is None else plan.sampling_rate,
        }

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the sum of the deltas, each scaled down to the clipping norm if it is larger.

        Raises:
            ConfigError: The rounds so far had other noise or another sampling rate.
        """
        if self.plan is not None:
            _check_same(state, self.plan)
        return DeltaRequest(NO_BOUNDS._replace(norm=state["clip"]))

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the noised mean, the next state, and metrics with epsilon after this round.

        Raises:
            ConfigError: A client weighs more than 1, or the algorithm scales or shifts its deltas.
        """
        plan = self.plan
        assert plan is not None
        weights = deltas.stats["weight"]
        if (weights > 1.0).any() or deltas.scale != 1.0 or deltas.shift is not None:
            raise ConfigError(
                "a private mean must bound the contribution of each client; give "
                "weighting='uniform' and an algorithm that does not rescale its deltas, such as "
                "fedavg"
            )
        clip, round_num = state["clip"], state["num_rounds"]
        z = plan.accountant.noise_multiplier
        on_deltas = z if self.adaptive is None else self.adaptive.noise_on_deltas(z)
        sensitivity = clip + deltas.rounding_norm  # the largest norm that a client can add
        mean_delta = deltas.start(
            lambda num_threads: self.noise.mean(
                *(round_num, on_deltas * sensitivity, deltas.delta_sum, plan.cohort_size),
                num_threads,
            )
        )
        norms = deltas.stats["norm"][weights > 0.0]
        spent = plan.accountant.spent(round_num + 1)
        metrics = {
            "mean_value": {},
            "mean_weight": {},
            "epsilon": spent.epsilon,
            "epsilon_rdp": spent.epsilon_rdp,
            "delta": plan.accountant.delta,
            "private": math.isfinite(spent.epsilon),
            "noise_multiplier": z,
            "clip_norm": clip,
            **({"sensitivity": sensitivity} if deltas.rounding_norm else {}),
            "clipped_count": int(np.count_nonzero(norms > clip)),
        }
        after = {**state, "clip": self._next_clip(state, norms), "num_rounds": round_num + 1}
        return mean_delta(), after, metrics

    def _next_clip(self, state: Mapping[str, Any], norms: NDArray[np.float64]) -> float:
        """Returns the clipping norm of the next round."""
        clip: float = state["clip"]
        if self.adaptive is None:
            return clip
        assert self.plan is not None
        num_below = float(np.count_nonzero(norms <= clip))
        noise = 0.0
        if self.plan.accountant.noise_multiplier > 0.0:
            key = stream_key(self.seed, Purpose.DP_COUNT_NOISE, round_num=state["num_rounds"])
            noise = self.adaptive.count_stddev * float(Stream(key).normal(1)[0])
        # The noise is on (below - above) / 2.
        num_above = len(norms) - num_below
        return self.adaptive.after(
            clip, num_below + noise, num_above - noise, self.plan.cohort_size
        )


def gaussian(seed: int, plan: PrivacyPlan | None, *, clip: float) -> PrivateMean:
    """Returns the private mean with a fixed norm."""
    return PrivateMean(clip, seed, FreshNoise(seed), plan)


def gaussian_adaptive(
    seed: int,
    plan: PrivacyPlan | None,
    *,
    clip: float,
    target_quantile: float,
    clip_lr: float,
    count_stddev: float | None = None,
) -> PrivateMean:
    """Returns the private mean with a norm that follows a quantile.

    Raises:
        ConfigError: The noise on counts alone spends the whole budget of the noise multiplier.
    """
    expected = 0 if plan is None else plan.cohort_size
    stddev = _SHARE_OF_COUNT * expected if count_stddev is None else count_stddev
    if plan is not None and plan.accountant.noise_multiplier >= 2.0 * stddev:
        z = plan.accountant.noise_multiplier
        enough = math.ceil(z / (2.0 * _SHARE_OF_COUNT))
        clients = f"more than {enough} --clients, or " if count_stddev is None else ""
        raise ConfigError(
            f"--dp gaussian-adaptive: counts with count_stddev={stddev:g} spend as much privacy as "
            f"noise_multiplier={2.0 * stddev:g}, but counts and deltas together may spend no more "
            f"than noise_multiplier={z:g}; choose {clients}a count_stddev above {z / 2.0:g}"
        )
    return PrivateMean(
        clip, seed, FreshNoise(seed), plan, AdaptiveClip(target_quantile, clip_lr, stddev)
    )


def tree(
    seed: int,
    plan: PrivacyPlan | None,
    *,
    clip: float,
    restart_every: int,
    efficient: bool,
) -> PrivateMean:
    """Returns the private mean with tree noise.

    `restart_every`, the number of rounds of a tree, must be the number that the plan's accountant
    uses.
    """
    return PrivateMean(clip, seed, TreeNoise(seed, restart_every, efficient), plan)


def _check_same(state: Mapping[str, Any], plan: PrivacyPlan) -> None:
    """Refuses further rounds if their noise or sampling rate differs from the earlier rounds'."""
    now = {
        "noise_multiplier": plan.accountant.noise_multiplier,
        "sampling_rate": plan.sampling_rate,
    }
    for name, value in now.items():
        if state["num_rounds"] and state[name] != value:
            raise ConfigError(
                f"--dp: the first {state['num_rounds']:,} rounds had {name.replace('_', ' ')} "
                f"{state[name]:g}, but further rounds would have {value:g}, because the number of "
                "rounds or of clients has changed; start another run"
            )
