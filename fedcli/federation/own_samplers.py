"""Calls users' own samplers and checks their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.errors import FedcliError, PartError
from fedcli.federation import samplers
from fedcli.settings import tables
from fedcli.settings.options import Value, choose, opened, resolve
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import kind
from fedcli.settings.own.parts import make

NOUN = "sampler"

_PASSING = (FedcliError,)


class Sampler(Protocol):
    """Draws the cohort of a round.

    Its constructor may have any of these arguments: `population`, the number of clients; `size`,
    the requested size of a cohort; `seed`, the run's seed; `client_ids`, the sorted ids; and
    `num_examples`, a function from a client's index to its number of examples.
    """

    def indices(self, round_num: int) -> list[int]:
        """Returns the cohort after `round_num` rounds, as indices into the client ids.

        It must depend only on the seed and the round, so that a resumed run draws the same cohort.
        A cohort may have any size and may contain a client twice.
        """
        ...


@dataclass(frozen=True)
class CheckedSampler(samplers.Sampler):
    """Calls the user's sampler and checks its results; errors name file and line.

    Attributes:
        sampler: The user's sampler.
        file: The file of its code.
    """

    sampler: Sampler
    file: str

    def indices(self, round_num: int) -> list[int]:
        """Returns the user's indices.

        Raises:
            PartError: The user's code fails, or does not return indices of clients.
        """
        with user_code.running("indices", self.file, NOUN, passing=_PASSING):
            drawn = self.sampler.indices(round_num)
            array = np.asarray(drawn if isinstance(drawn, np.ndarray | list | tuple) else 0)
        where = user_code.method_place(self.sampler, "indices")
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise PartError(f"{where} returned {kind(drawn)}; give a list of whole numbers")
        cohort: list[int] = array.tolist()
        for index in cohort:
            if not 0 <= index < self.population:
                raise PartError(
                    f"{where} returned {index}; the {self.population} clients are 0 to "
                    f"{self.population - 1}"
                )
        return cohort


def build(
    name: str,
    population: int,
    size: int,
    seed: int,
    offered: Mapping[str, Any],
    options: Mapping[str, Value],
) -> CheckedSampler:
    """Returns the user's own sampler.

    Args:
        name: FILE.py, FILE.py:NAME, or the name of a sampler in an installed package.
        population: Number of clients.
        size: Number of clients in a cohort.
        seed: The run's seed.
        offered: Further arguments that the sampler's constructor may have.
        options: Its options; those left out have their defaults.

    Raises:
        ConfigError: There is no such sampler, or an option is not allowed.
        PartError: The user's code fails, or two draws of the same round differ.
    """
    entry = opened(choose(tables.SAMPLERS, name, "--sampling"))
    arguments = {"population": population, "size": size, "seed": seed, **offered}
    made = make(entry, NOUN, arguments, resolve(entry, options), _PASSING)
    if not callable(getattr(made, "indices", None)):
        raise PartError(
            f"{user_code.place(made)}: {type(made).__name__} has no method indices; define "
            "indices(round_num)"
        )
    sampler = CheckedSampler(population, size, seed, made, entry.file)
    if sampler.indices(0) != sampler.indices(0):
        raise PartError(
            f"{user_code.place(made.indices)}: two calls of indices(0) drew different "
            "clients; use random numbers that depend only on seed and round_num, such as "
            "np.random.default_rng([seed, round_num])"
        )
    return sampler
