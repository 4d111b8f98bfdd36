"""Which clients of a cohort report in a round, and when: drop-out, stragglers, a virtual clock.

Times are simulated, not measured. A client that processes v examples in a round (over all epochs)
reports

    v / speed + communication_seconds

virtual seconds after the start of the round. Its speed is that of its tier. The tier depends on the
seed and stays the same for the whole run. A client drops out of a round at random, with all its
copies in the cohort, and then sends nothing. The server accepts the first reports that arrive
within the deadline, up to the number it needs; ties are broken by position in the cohort. The round
ends with the last accepted report. If there are fewer reports than needed and there is a deadline,
the round ends at the deadline; without a deadline the server does not wait for dropped-out clients.

(Over-selection and deadlines: Bonawitz et al. 2019, "Towards Federated Learning at Scale",
https://arxiv.org/abs/1902.01046. Late reports are discarded; partial work is not used.)

A line of metrics.jsonl records this under `participation`. num_selected is the sum of
num_dropped_out, num_late, num_surplus and num_reports; copies of a client count separately.
is_skipped is 1 if there were too few reports to change the model. With a clock there are also
round_seconds, and virtual_seconds since the start of the run.

Drop-out depends on (seed, round, client) and a client's tier on (seed, client). Both use separate
random streams, so they change no other draw, and a resumed run repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedcli.core import native
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass

# The outcome of a round for a selected client.
REPORTED, DROPPED_OUT, LATE, SURPLUS = "reported", "dropped-out", "late", "surplus"


@dataclass(frozen=True)
class RoundReports:
    """The reports of one round.

    Attributes:
        outcomes: The outcome of each client of the cohort. REPORTED: its report was accepted.
            DROPPED_OUT: it sent nothing. LATE: it reported after the deadline. SURPLUS: it reported
            in time, but after enough others.
        seconds: Virtual seconds from the start of the round to each client's report. The entry of a
            client that dropped out is None. Without a clock, `seconds` itself is None.
        is_skipped: Whether there are too few reports to change the model.
        round_seconds: Virtual duration of the round; None without a clock.
    """

    outcomes: tuple[str, ...]
    seconds: tuple[float | None, ...] | None
    is_skipped: bool
    round_seconds: float | None

    @property
    def reports(self) -> tuple[int, ...]:
        """Positions in the cohort of the clients whose reports were accepted, ascending."""
        return tuple(place for place, each in enumerate(self.outcomes) if each == REPORTED)

    @property
    def used(self) -> tuple[int, ...]:
        """Positions of the clients whose reports change the model, ascending."""
        return () if self.is_skipped else self.reports

    @property
    def unused(self) -> tuple[int, ...]:
        """Positions of the clients whose reports were sent and not used, ascending."""
        used = set(self.used)
        return tuple(
            place
            for place, each in enumerate(self.outcomes)
            if each != DROPPED_OUT and place not in used
        )

    def metrics(self, seconds_before: float) -> dict[str, Any]:
        """Returns the `participation` entry of metrics.jsonl.

        Args:
            seconds_before: Virtual seconds of all earlier rounds.
        """
        metrics: dict[str, Any] = {
            "num_selected": len(self.outcomes),
            "num_dropped_out": self.outcomes.count(DROPPED_OUT),
            "num_late": self.outcomes.count(LATE),
            "num_surplus": self.outcomes.count(SURPLUS),
            "num_reports": self.outcomes.count(REPORTED),
            "is_skipped": int(self.is_skipped),
        }
        if self.round_seconds is not None:
            metrics["round_seconds"] = self.round_seconds
            metrics["virtual_seconds"] = seconds_before + self.round_seconds
        return metrics


@dataclass(frozen=True)
class Participation:
    """Decides which clients report in a round.

    Attributes:
        seed: The run's seed.
        dropout: Probability that a client sends nothing in a round, 0 to 1.
        speeds: Examples per virtual second of each tier; empty without a clock.
        communication_seconds: Virtual seconds that a client's communication takes per round.
        deadline: Virtual seconds that the server waits in a round; None for no limit.
        min_reports: A round with fewer reports is skipped.
    """

    seed: int
    dropout: float = 0.0
    speeds: tuple[float, ...] = ()
    communication_seconds: float = 0.0
    deadline: float | None = None
    min_reports: int = 0

    def report(
        self,
        round_num: int,
        client_ids: Sequence[str],
        num_visits: Callable[[str], int],
        num_wanted: int | None = None,
    ) -> RoundReports:
        """Returns the reports of a cohort.

        Args:
            round_num: Rounds completed before this one.
            client_ids: The cohort; a client may occur in it more than once.
            num_visits: Returns the number of examples that a client processes in a round; only
                called with a clock.
            num_wanted: The largest number of reports that the server accepts; None: all.
        """
        wanted = len(client_ids) if num_wanted is None else num_wanted
        outcomes = [DROPPED_OUT] * len(client_ids)
        seconds: list[float | None] = [None] * len(client_ids)
        arrivals = self._present(round_num, client_ids)
        if self.speeds:
            times = {
                place: self.report_seconds(client_ids[place], num_visits(client_ids[place]))
                for place in arrivals
            }
            arrivals.sort(key=lambda place: (times[place], place))
            seconds = [times.get(place) for place in range(len(client_ids))]
        num_taken = 0
        for place in arrivals:
            at = seconds[place]
            if at is not None and self.deadline is not None and at > self.deadline:
                outcomes[place] = LATE
            elif at is not None and num_taken == wanted:
                outcomes[place] = SURPLUS
            else:
                outcomes[place] = REPORTED
                num_taken += 1
        return RoundReports(
            outcomes=tuple(outcomes),
            seconds=tuple(seconds) if self.speeds else None,
            is_skipped=num_taken < self.min_reports,
            round_seconds=self._round_seconds(outcomes, seconds, num_taken < wanted),
        )

    def _round_seconds(
        self, outcomes: Sequence[str], seconds: Sequence[float | None], lacks_reports: bool
    ) -> float | None:
        """Returns the time of the last accepted report, or the deadline if reports are lacking."""
        if not self.speeds:
            return None
        if lacks_reports and self.deadline is not None:
            return self.deadline
        pairs = zip(outcomes, seconds, strict=True)
        return max((at for each, at in pairs if each == REPORTED and at is not None), default=0.0)

    def report_seconds(self, client_id: str, num_visits: int) -> float:
        """Returns the virtual seconds after which a client with `num_visits` examples reports."""
        return num_visits / self.speed(client_id) + self.communication_seconds

    def speed(self, client_id: str) -> float:
        """Returns the speed of a client's tier in examples per virtual second."""
        draw = self._draw(Purpose.CLIENT_SPEED, client_id, 0)
        return self.speeds[draw * len(self.speeds) >> 64]

    def _present(self, round_num: int, client_ids: Sequence[str]) -> list[int]:
        """Returns the positions of the clients that do not drop out."""
        bound = round(self.dropout * 2**64)
        if not bound:
            return list(range(len(client_ids)))
        return [
            place
            for place, client_id in enumerate(client_ids)
            if self._draw(Purpose.CLIENT_DROPOUT, client_id, round_num) >= bound
        ]

    def _draw(self, purpose: Purpose, client_id: str, round_num: int) -> int:
        """Returns a random integer from 0 to 2**64 - 1."""
        key = stream_key(self.seed, purpose, round_num=round_num, client=client_key(client_id))
        return int(native.random_u64(key, 1)[0])
