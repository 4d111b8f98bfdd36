"""Which clients of a cohort report in a round, and when: drop-out, stragglers, a virtual clock.

Nothing here is measured. A client that processes v examples in a round (epochs counted) reports

    v / speed + communication_seconds

virtual seconds after the round began; its speed is that of its tier, which the seed gives it for
the whole run. A client drops out of a round by chance, with all its copies in the cohort, and then
sends nothing; the server knows of it at once unless a deadline makes it wait. The server takes the
first reports that arrive within the deadline, as many as it wants, ties by place in the cohort. The
round ends with the last report that is taken; if the server got fewer than it wanted and there is a
deadline, it has waited until that.

(Over-selection and deadlines: Bonawitz et al. 2019, "Towards Federated Learning at Scale",
https://arxiv.org/abs/1902.01046. Late reports are dropped whole; they are no partial work.)

A line of metrics.jsonl tells it under `participation`: num_selected = num_dropped_out + num_late +
num_surplus + num_reports (clients, copies counted); is_skipped, 1 if the reports were too few to
change the model; and with a clock round_seconds, and virtual_seconds since the run began.

Who drops out depends on (seed, round, client), a tier on (seed, client): streams of their own, so
that neither changes what else is drawn, and a resumed run meets the same clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedcli.core import native
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass

# What became of a client that was chosen.
REPORTED, DROPPED_OUT, LATE, SURPLUS = "reported", "dropped-out", "late", "surplus"


@dataclass(frozen=True)
class RoundReports:
    """Who reported in one round.

    Attributes:
        outcomes: What became of each client of the cohort: REPORTED, its report was taken;
            DROPPED_OUT, it sent nothing; LATE, it reported after the deadline; SURPLUS, in time
            when enough had.
        seconds: Virtual seconds after the start of the round at which each reported, None where it
            did not; None as a whole without a clock.
        is_skipped: Whether there are too few reports to change the model.
        round_seconds: Virtual seconds of the round; None without a clock.
    """

    outcomes: tuple[str, ...]
    seconds: tuple[float | None, ...] | None
    is_skipped: bool
    round_seconds: float | None

    @property
    def reports(self) -> tuple[int, ...]:
        """Places in the cohort of those whose reports are taken, ascending."""
        return tuple(place for place, each in enumerate(self.outcomes) if each == REPORTED)

    def metrics(self, seconds_before: float) -> dict[str, Any]:
        """Returns what metrics.jsonl tells; with a clock also its time after the round.

        Args:
            seconds_before: Virtual seconds of all rounds before.
        """
        told: dict[str, Any] = {
            "num_selected": len(self.outcomes),
            "num_dropped_out": self.outcomes.count(DROPPED_OUT),
            "num_late": self.outcomes.count(LATE),
            "num_surplus": self.outcomes.count(SURPLUS),
            "num_reports": self.outcomes.count(REPORTED),
            "is_skipped": int(self.is_skipped),
        }
        if self.round_seconds is not None:
            told["round_seconds"] = self.round_seconds
            told["virtual_seconds"] = seconds_before + self.round_seconds
        return told


@dataclass(frozen=True)
class Participation:
    """Decides who reports.

    Attributes:
        seed: The run's seed.
        dropout: Chance of a client to send nothing, 0 to 1.
        speeds: Examples a virtual second of each tier; empty: no clock.
        communication_seconds: Virtual seconds of a client's transport in a round.
        deadline: Virtual seconds a round may take; None: all are waited for.
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
        """Returns who of a cohort reports.

        Args:
            round_num: Rounds completed before this one.
            client_ids: The cohort; a client may stand in it more than once.
            num_visits: Tells how many examples a client processes in a round; asked with a clock.
            num_wanted: Reports the server takes at most; None: all.
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
        """Until the last report that is taken; to the deadline, where the server waits for more."""
        if not self.speeds:
            return None
        if lacks_reports and self.deadline is not None:
            return self.deadline
        pairs = zip(outcomes, seconds, strict=True)
        return max((at for each, at in pairs if each == REPORTED and at is not None), default=0.0)

    def report_seconds(self, client_id: str, num_visits: int) -> float:
        """Returns when a client reports that processes so many examples, in virtual seconds."""
        return num_visits / self.speed(client_id) + self.communication_seconds

    def speed(self, client_id: str) -> float:
        """Returns the examples a virtual second of a client's tier."""
        draw = self._draw(Purpose.CLIENT_SPEED, client_id, 0)
        return self.speeds[draw * len(self.speeds) >> 64]

    def _present(self, round_num: int, client_ids: Sequence[str]) -> list[int]:
        """Places of those who do not drop out."""
        bound = round(self.dropout * 2**64)
        if not bound:
            return list(range(len(client_ids)))
        return [
            place
            for place, client_id in enumerate(client_ids)
            if self._draw(Purpose.CLIENT_DROPOUT, client_id, round_num) >= bound
        ]

    def _draw(self, purpose: Purpose, client_id: str, round_num: int) -> int:
        """A whole number below 2**64."""
        key = stream_key(self.seed, purpose, round_num=round_num, client=client_key(client_id))
        return int(native.random_u64(key, 1)[0])
