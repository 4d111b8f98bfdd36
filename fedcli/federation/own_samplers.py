"""Samplers that users bring, whose answers are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.errors import FedcliError, PartError
from fedcli.federation.samplers import Sampler
from fedcli.settings import tables
from fedcli.settings.options import Value, choose, opened, resolve
from fedcli.settings.own import user_code
from fedcli.settings.own.checks import kind
from fedcli.settings.own.parts import make

NOUN = "sampler"

_PASSING = (FedcliError,)


class OwnSampler(Protocol):
    """Draws the cohort of a round.

    It is made with those of these arguments that it has: `population`, the number of clients;
    `size`, the number that is wanted; `seed`, the run's; `client_ids`, sorted; and `num_examples`,
    a function that returns how many examples the client at an index has.
    """

    def indices(self, round_num: int) -> list[int]:
        """Returns the cohort that is drawn after `round_num` rounds: indices into the client ids.

        It depends on the seed and the round alone, so that a resumed run draws the same. A client
        may come twice, and there may be any number of them.
        """
        ...


@dataclass(frozen=True)
class CheckedSampler(Sampler):
    """A user's sampler behind checks: its failures are one line with file and line.

    Attributes:
        sampler: The user's.
        file: Where its code is.
    """

    sampler: OwnSampler
    file: str

    def indices(self, round_num: int) -> list[int]:
        """Returns the user's indices.

        Raises:
            PartError: It fails, or they are no indices.
        """
        with user_code.running("indices", self.file, NOUN, passing=_PASSING):
            drawn = self.sampler.indices(round_num)
        where = f"{user_code.place(type(self.sampler).indices)}: indices"
        array = np.asarray(drawn if isinstance(drawn, np.ndarray | list | tuple) else 0)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise PartError(f"{where} returned {kind(drawn)}; give a list of whole numbers")
        found: list[int] = array.tolist()
        for index in found:
            if not 0 <= index < self.population:
                raise PartError(
                    f"{where} returned {index}; the {self.population} clients are 0 to "
                    f"{self.population - 1}"
                )
        return found


def build(
    name: str,
    population: int,
    size: int,
    seed: int,
    offered: Mapping[str, Any],
    options: Mapping[str, Value],
) -> CheckedSampler:
    """Returns a sampler of the user's.

    Args:
        name: FILE.py, FILE.py:NAME, or the name of one in an installed package.
        population: Number of clients.
        size: Clients in a cohort.
        seed: The run's seed.
        offered: What else it may have as arguments.
        options: Its options; those not given take their defaults.

    Raises:
        ConfigError: There is no such sampler, or an option is not allowed.
        PartError: It fails, or does not draw the same twice.
    """
    entry = opened(choose(tables.SAMPLERS, name, "--sampling"))
    arguments = {"population": population, "size": size, "seed": seed, **offered}
    made = make(entry, NOUN, arguments, resolve(entry, options), _PASSING)
    if not callable(getattr(made, "indices", None)):
        raise PartError(
            f"{user_code.place(made)}: {type(made).__name__} has no indices; a sampler has "
            "indices(round_num)"
        )
    sampler = CheckedSampler(population, size, seed, made, entry.file)
    if sampler.indices(0) != sampler.indices(0):
        raise PartError(
            f"{user_code.place(type(made).indices)}: indices(0) drew other clients when it was "
            "asked again; make it a function of seed and round_num, such as "
            "np.random.default_rng([seed, round_num])"
        )
    return sampler
