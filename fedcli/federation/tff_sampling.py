"""Reproduces the cohorts that TFF and FedJAX draw from a seed.

TFF simulation/sampling_utils.py, build_uniform_sampling_fn; FedJAX core/client_samplers.py,
UniformGetClientSampler. With Q = 2^31 - 1, round t draws

    s_0 = RandomState(seed).randint(1, Q - 1)
    cohort = RandomState((16807^t mod Q) * s_0 mod Q).choice(N, size, replace=False)

NumPy guarantees that RandomState never changes, so these are the cohorts of published runs, given
the same ids in the same order. TFF's training loop starts at round 1, FedJAX's sampler at round 0.
"""

from __future__ import annotations

import numpy as np

_MODULUS = 2**31 - 1
_MULTIPLIER = 16807


def choose(population: int, size: int, seed: int, t: int) -> list[int]:
    """Returns `size` distinct indices below `population`, in TFF's order.

    RandomState permutes the whole population, which takes 8 bytes per client during the call.

    Args:
        population: Number of clients, at least `size`.
        size: Clients in the cohort.
        seed: The sampling seed, 0 to 2^32 - 1.
        t: Number of the round, from 0.
    """
    start = int(np.random.RandomState(seed).randint(1, _MODULUS - 1))
    round_seed = pow(_MULTIPLIER, t, _MODULUS) * start % _MODULUS
    chosen: list[int] = (
        np.random.RandomState(round_seed).choice(population, size, replace=False).tolist()
    )
    return chosen
