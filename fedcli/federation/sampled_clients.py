"""The clients of each round: a pure function of the config, the data and the round number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedcli.core.native import CancelFlag, Cancelled
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError
from fedcli.federation import cohorts as cohort
from fedcli.federation.cohorts import ClientSelection, Cohorts
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import SAMPLINGS

if TYPE_CHECKING:
    from fedcli.federation.participation import Participation, RoundReports

# The built-in ways of sampling whose cohorts always have the same size.
_FIXED_SIZE_SAMPLINGS = {*SAMPLINGS} - {"poisson"}


@dataclass(frozen=True, eq=False)
class SampledClients:
    """The clients that take part in each round of a run.

    Attributes:
        train: The clients' training data.
        cohorts: The cohort of each round.
        participation: Decides which clients of a cohort report, and when. None if all clients
            report and there is no clock.
        plan: How a client's examples become batches in training.
    """

    train: ClientData
    cohorts: Cohorts
    participation: Participation | None
    plan: BatchPlan

    def of_round(self, round_num: int) -> tuple[Sequence[str], RoundReports | None]:
        """Returns the cohort after `round_num` rounds, and its reports (None if all report)."""
        ids = self.cohorts.for_round(round_num)
        if self.participation is None:
            return ids, None
        return ids, self.participation.report(
            round_num, ids, self._num_visits, self.cohorts.num_wanted
        )

    def seen(self, num_rounds: int, cancel: CancelFlag | None = None) -> frozenset[str]:
        """Returns the clients whose reports were used in the first `num_rounds` rounds.

        Rounds that the aggregator skipped count, too. The cohorts are sampled again round by
        round, until every client has taken part.

        Raises:
            Cancelled: `cancel` was set.
        """
        is_same_each_round = self.cohorts.fixed is not None and self.participation is None
        most = len(self.train.client_ids if self.cohorts.fixed is None else self.cohorts.fixed)
        seen: set[str] = set()
        for round_num in range(min(num_rounds, 1) if is_same_each_round else num_rounds):
            if len(seen) == most:
                break
            if cancel is not None and cancel.is_set():
                raise Cancelled
            ids, round_reports = self.of_round(round_num)
            if round_reports is None:
                seen.update(ids)
            elif not round_reports.is_skipped:
                seen.update(ids[place] for place in round_reports.reports)
        return frozenset(seen)

    def _num_visits(self, client_id: str) -> int:
        return self.plan.num_visits(self.train.num_examples(client_id))


def open_sampled_clients(
    config: RunConfig,
    train: ClientData,
    plan: BatchPlan,
    notes: list[str],
    cancel: CancelFlag | None = None,
) -> tuple[RunConfig, SampledClients]:
    """Returns the sampled clients, and a config that reproduces them; adds notes for the user.

    Raises:
        Cancelled: `cancel` was set while the clients' examples were counted.
        ConfigError: The clients or the sampling do not fit the data.
        PartError: The user's own sampler fails, or breaks the contract.
    """
    config, selection = _resolve_clients(config, train, notes)

    def num_examples(client_id: str) -> int:
        if cancel is not None and cancel.is_set():
            raise Cancelled
        return train.num_examples(client_id)

    cohorts = cohort.plan_cohorts(
        selection,
        config.sampling,
        train.client_ids,
        train.source,
        config.seed,
        num_examples,
        config.over_selection,
        config.sampling_options,
    )
    _check_min_reports(config, cohorts)
    _check_secure_sum(config, cohorts)
    return config, SampledClients(train, cohorts, _plan_participation(config), plan)


def _check_secure_sum(config: RunConfig, cohorts: Cohorts) -> None:
    """Rejects --secure-sum if a cohort has only one client."""
    if not config.secure_sum or config.sampling not in _FIXED_SIZE_SAMPLINGS:
        return
    size = len(cohorts.fixed or ()) if cohorts.sampler is None else cohorts.sampler.size
    if size < 2:
        raise ConfigError(
            "--secure-sum with a cohort of 1 client would reveal this client's update; choose "
            "--clients 2 or more"
        )


def _resolve_clients(
    config: RunConfig, train: ClientData, notes: list[str]
) -> tuple[RunConfig, ClientSelection]:
    """Returns the selection of clients, and a config with ids in place of files of ids."""
    if config.eval_clients is not None:
        evaluated = cohort.parse_clients(config.eval_clients, "--eval-clients")
        config = replace(config, eval_clients=evaluated.ids or config.eval_clients)
    if config.clients is None:
        selection, note = cohort.default_selection(train.client_ids, train.source)
        notes.extend([note] if note else [])
        return replace(config, clients=str(selection.count)), selection
    selection = cohort.parse_clients(config.clients)
    if selection.ids is not None:
        config = replace(config, clients=selection.ids)
    return config, selection


def _plan_participation(config: RunConfig) -> Participation | None:
    """Returns the participation, or None if all clients report and there is no clock."""
    if not config.client_dropout and config.client_speeds is None and config.min_reports is None:
        return None
    from fedcli.federation.participation import Participation  # lazy: in most runs all report

    return Participation(
        seed=config.seed,
        dropout=config.client_dropout,
        speeds=config.client_speeds or (),
        communication_seconds=config.communication_seconds,
        deadline=config.deadline,
        min_reports=config.min_reports or 0,
    )


def cohort_size(config: RunConfig, cohorts: Cohorts) -> int | None:
    """Returns the number of reports for which the server waits in each round.

    It is None for `poisson` and for users' own samplers, whose cohorts may have any size.
    """
    if config.sampling not in _FIXED_SIZE_SAMPLINGS:
        return None
    if cohorts.num_wanted is not None:
        return cohorts.num_wanted
    return len(cohorts.fixed or ()) if cohorts.sampler is None else cohorts.sampler.size


def _check_min_reports(config: RunConfig, cohorts: Cohorts) -> None:
    """Rejects --min-reports above the number of clients in a cohort."""
    size = cohort_size(config, cohorts)
    if config.min_reports is not None and size is not None and config.min_reports > size:
        raise ConfigError(
            f"--min-reports {config.min_reports} exceeds the cohort of {size}: every round would "
            f"be skipped; choose 1 to {size}"
        )
