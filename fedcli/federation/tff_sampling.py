"""The cohorts of TFF and FedJAX: their seeded generator, number for number.

TFF simulation/sampling_utils.py, build_uniform_sampling_fn; FedJAX core/client_samplers.py,
UniformGetClientSampler. With Q = 2^31 - 1, round t draws

    s_0 = RandomState(seed).randint(1, Q - 1)
    cohort = RandomState((16807^t mod Q) * s_0 mod Q).choice(N, size, replace=False)

NumPy's RandomState is frozen, so these are the cohorts that published runs had, given the same ids
in the same order. TFF's training loop calls its first round 1, FedJAX's sampler 0.
"""

from __future__ import annotations

import numpy as np

_MODULUS = 2**31 - 1
_MULTIPLIER = 16807


def choose(population: int, size: int, seed: int, t: int) -> list[int]:
    """Returns `size` distinct indices below `population`, in the order TFF draws them.

    RandomState orders the whole population to take its first few: 8 bytes a client, for as long as
    the call takes.

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
