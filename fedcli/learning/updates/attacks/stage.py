"""The stage that replaces the attackers' updates in the rounds of an attack.

The attackers train like all other clients, which gives their honest updates, and they report their
true number of examples. Only updates that count are replaced: an attacker without examples, or
whose own training diverged, sends its own update.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import SLICE_BYTES
from fedcli.learning.updates.contract import RoundUpdates
from fedcli.settings.vocabulary import COLLUDERS


@dataclass(frozen=True)
class AttackedRounds:
    """The rounds of an attack.

    Attributes:
        start: The number of the first round, at least 1.
        stop: The number of the last round; 0 if the attack does not end.
        every: The attack is made in every `every`-th round from the first.
    """

    start: int
    stop: int
    every: int

    def has(self, round_num: int) -> bool:
        """Returns whether the attack is made in the round after `round_num` rounds."""
        number = round_num + 1
        is_within = number >= self.start and (not self.stop or number <= self.stop)
        return is_within and (number - self.start) % self.every == 0


@dataclass(frozen=True, eq=False)
class AttackView:
    """One attacked round, as the attackers see it.

    Attributes:
        updates: The updates of the round.
        attackers: Cohort positions of the attackers whose updates count, at least one.
        known: Cohort positions of the updates that count and that the attackers know: all honest
            updates, or the attackers' own.
        num_counted: Number of updates of the cohort that count.
    """

    updates: RoundUpdates
    attackers: NDArray[np.int64]
    known: NDArray[np.int64]
    num_counted: int

    @property
    def num_attackers(self) -> int:
        """Number of attackers whose updates count."""
        return len(self.attackers)

    @property
    def num_params(self) -> int:
        """Number of coordinates of an update."""
        return int(self.updates.rows.shape[1])

    def slices(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yields slices of the coordinates and the known updates there, float64 [known, slice].

        About `SLICE_BYTES` are in memory at a time, however many updates there are.
        """
        width = max(1, SLICE_BYTES // (8 * max(1, len(self.known))))
        for first in range(0, self.num_params, width):
            chosen = slice(first, min(first + width, self.num_params))
            yield chosen, self.updates.rows[self.known, chosen].astype(np.float64)

    def send_alike(self, vector: NDArray[np.float64]) -> None:
        """Replaces the updates of all attackers by one vector [num_params]."""
        with np.errstate(over="ignore"):  # an infinite update is rejected, as from any client
            single = vector.astype(np.float32)
        for place in self.attackers:
            self.updates.rows[place] = single

    def noise_of(self, place: int | None = None) -> Stream:
        """Returns the random stream of an attacker in this round, or one stream for all of them.

        Args:
            place: The attacker's position in the cohort; None for the common stream.
        """
        context = self.updates.round
        client = 0 if place is None else client_key(context.client_ids[place])
        occurrence = 0 if place is None else context.occurrences[place]
        return Stream(
            stream_key(
                context.seed,
                Purpose.ATTACK_NOISE,
                round_num=context.round_num,
                client=client,
                occurrence=occurrence,
            )
        )


class UpdateAttack(Protocol):
    """Replaces the updates of the attackers. It holds settings only; see `UpdateStage`."""

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns the state before the first round."""
        ...

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Replaces the attackers' updates in place; returns the next state, and metrics."""
        ...


@dataclass(frozen=True)
class AttackStage:
    """The stage called `attack`.

    Attributes:
        attack: What the attackers send.
        attackers: Their client ids.
        rounds: When they attack.
        knowledge: Which updates they know, `omniscient` or `colluders`.
    """

    attack: UpdateAttack
    attackers: Collection[str]
    rounds: AttackedRounds
    knowledge: str

    @property
    def name(self) -> str:
        """The name of the stage."""
        return "attack"

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns the attack's state before the first round."""
        return self.attack.init(num_params)

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Replaces the attackers' updates in the rounds of the attack."""
        view = self._view(updates)
        if not self.rounds.has(updates.round.round_num) or not view.num_attackers:
            return dict(state), {}
        return self.attack.send(view, state)

    def _view(self, updates: RoundUpdates) -> AttackView:
        counts = updates.stats["weight"] > 0.0
        is_attacker = np.array([each in self.attackers for each in updates.round.client_ids], bool)
        known = is_attacker if self.knowledge == COLLUDERS else ~is_attacker
        return AttackView(
            updates,
            np.flatnonzero(counts & is_attacker),
            np.flatnonzero(counts & known),
            int(np.count_nonzero(counts)),
        )
