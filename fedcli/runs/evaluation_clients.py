"""Chooses the split and the clients that `evaluate_run` evaluates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan, plan_of
from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.errors import ConfigError, DataError, plural
from fedcli.evaluation.result import seen_in
from fedcli.evaluation.spread import GROUPS
from fedcli.federation import cohorts
from fedcli.federation.evaluated_splits import check_split, default_split
from fedcli.federation.evaluation_groups import EvaluationGroup, make_group
from fedcli.federation.opened_data import check_fit, open_data
from fedcli.federation.sampled_clients import open_sampled_clients
from fedcli.runs.trained import Trained
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import is_code
from fedcli.settings.run_config import DATA_FIELDS, RunConfig


@dataclass(frozen=True)
class EvaluatedData:
    """The data of an evaluation.

    Attributes:
        source: The source of the data.
        overridden: Names of the fields of `source` that the caller gave; the others are the run's.
        split: The split; None for the default, see `default_split`.
        clients: The selection of its clients, as `evaluate_run` takes it.
        plan: How examples become batches.
    """

    source: DataSource
    overridden: frozenset[str]
    split: str | None
    clients: str | None
    plan: BatchPlan

    @property
    def is_of_run(self) -> bool:
        """Whether these are the examples and clients of the run, with no field overridden."""
        return self.overridden.isdisjoint(DATA_FIELDS)

    @property
    def has_train_clients_of_run(self) -> bool:
        """Whether the clients of the train split are those of the run; see `is_of_run`."""
        return self.overridden.isdisjoint(set(DATA_FIELDS) - {"test_data"})


def choose_clients(
    trained: Trained,
    request: EvaluatedData,
    splits: Mapping[str, ClientData],
    seen: Callable[[], frozenset[str] | None],
) -> EvaluationGroup:
    """Returns the clients to evaluate.

    Args:
        trained: The model.
        request: The split and the selection of its clients.
        splits: The opened data.
        seen: Returns the clients that took part in the training; None if they are not known.

    Raises:
        ConfigError: There is no such split or client, or no model for it.
        DataError: The split does not fit the model.
    """
    name = request.split or default_split(trained.config, splits)
    if name not in splits:
        raise ConfigError(
            f"--split {name}: {request.source.data} has no such split; choose one of "
            f"{', '.join(sorted(splits))}; evaluate one split at a time"
        )
    data = splits[name]
    check_fit(data, trained.model)
    check_split(trained.config, name)
    if request.clients in GROUPS:
        return _clients_of_group(data, request.clients, request.plan, seen())
    ids = _chosen_ids(trained.config, data, request, splits)
    return make_group(data, ids, request.plan, trained.config.seed)


def clients_of_training(
    trained: Trained, request: EvaluatedData, train: ClientData, cancel: CancelFlag | None
) -> frozenset[str] | None:
    """Returns the clients that took part in the training.

    None if that is not known: the data may have other clients than the run's, or the cohorts are
    drawn by a user's code, which is not run here.
    """
    if not request.has_train_clients_of_run or is_code(trained.config.sampling):
        return None
    try:
        _, sampled_clients = open_sampled_clients(
            trained.config, train, plan_of(trained.config), [], cancel
        )
    except ConfigError:  # clients of the run are missing, so the data have changed
        return None
    return sampled_clients.seen(trained.state.round_num, cancel)


def with_train_data(group: EvaluationGroup, train: ClientData) -> EvaluationGroup:
    """Returns the group without the clients that have no train data to fine-tune on.

    Raises:
        ConfigError: No client has train data, or the group is evaluated on the train split.
    """
    where = f"in the train split of {train.source}"
    if group.split == train.split:
        raise ConfigError(
            f"--finetune with the split {group.split}: clients would be scored on the data they "
            "train on; give data with another split, such as --test-data"
        )
    ids = group.client_ids if group.data.same_people else []
    ids = [each for each in ids if cohorts.contains(train.client_ids, each)]
    num_without = len(group.client_ids) - len(ids)
    if not ids:
        raise ConfigError(
            f"--finetune: no chosen client of the split {group.split} is {where}; choose "
            "another --split, or other --clients"
        )
    if not num_without:
        return group
    verb = "is" if num_without == 1 else "are"
    note = f"{plural(num_without, 'client')} {verb} not {where} and {verb} skipped in fine-tuning"
    notes = (*group.notes, note)
    return EvaluationGroup(
        group.split, group.data, ids, group.plan, num_absent=group.num_absent, notes=notes
    )


def _clients_of_group(
    data: ClientData, group: str, plan: BatchPlan, seen: frozenset[str] | None
) -> EvaluationGroup:
    """The clients of a split that took part in the training, or those that never did."""
    if seen is None:
        raise ConfigError(
            f"--clients {group}: the clients that took part are known only for the run's own data, "
            "unchanged since it began, and only if no code of yours draws the cohorts; name "
            "clients, or give all (to name a client {group}, write '{group},')"
        )
    is_in_group = seen_in(data, data.client_ids, seen) == (group == GROUPS[0])
    ids = [data.client_ids[index] for index in np.flatnonzero(is_in_group).tolist()]
    if not ids:
        raise ConfigError(
            f"--clients {group}: the split {data.split} of {data.source} has no such client among "
            f"its {plural(len(is_in_group), 'client')}; choose other --clients, or another --split"
        )
    return EvaluationGroup(data.split, data, ids, plan)


def _chosen_ids(
    config: RunConfig, data: ClientData, request: EvaluatedData, splits: Mapping[str, ClientData]
) -> Sequence[str]:
    """The ids to evaluate: the selected ones, else the run's fixed cohort, else all of `data`.

    The split central has other clients than the cohort, so all its clients are taken.
    """
    if request.clients is not None:
        return cohorts.resolve_ids(
            cohorts.parse_clients(request.clients), data.client_ids, data.source
        )
    if config.sampling != "fixed" or config.clients is None or data.split == CENTRAL:
        return data.client_ids
    selection = cohorts.parse_clients(config.clients)
    if selection.ids is not None:
        return selection.ids
    has_clients_of_run = request.overridden.isdisjoint(("data", "partition", "partition_options"))
    try:
        of_run = splits if has_clients_of_run else open_data(config.data_source)
    except DataError as err:
        raise DataError(f"the run's cohort is not known ({err}); give --clients") from err
    train = of_run["train"]
    return cohorts.resolve_ids(selection, train.client_ids, train.source)
