"""Groups of clients that a run evaluates repeatedly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.errors import ConfigError, plural
from fedcli.federation import cohorts as cohort
from fedcli.federation.cohorts import ClientSelection, Cohorts
from fedcli.federation.evaluated_splits import due_splits, evaluated_splits
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.settings.declaration import option_name
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import SELECTION_SPLITS, VALIDATION

# Number of clients that one call evaluates. Only their data are in memory at a time. Losses are
# summed block by block, so this number affects the last digits of the results.
EVAL_BLOCK = 256

# Options that compare the rounds of a run by their evaluations.
_SELECTION_OPTIONS = ("stop_at", "patience", "keep_best")


class GroupScores(NamedTuple):
    """Metrics of a group in TFF's structure, and statistics with one row per client."""

    metrics: dict[str, Any]
    client_stats: NDArray[Any]


class EvaluationGroup:
    """The clients of one split that a run evaluates repeatedly.

    Attributes:
        split: Name of the split.
        data: The split.
        client_ids: The evaluated clients.
        num_absent: The number of requested clients that the split does not have.
        plan: How a client's examples become batches.
        notes: Notes for the user about absent clients, one line each.
    """

    def __init__(
        self,
        split: str,
        data: ClientData,
        client_ids: Sequence[str],
        plan: BatchPlan,
        *,
        num_absent: int = 0,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Makes a group.

        Small groups are read immediately, so that invalid data fail before any work.

        Raises:
            DataError: A client's data are invalid.
        """
        self.split = split
        self.data = data
        self.client_ids = client_ids
        self.num_absent = num_absent
        self.notes = notes
        self.plan = plan
        is_small = len(client_ids) <= EVAL_BLOCK
        self._held = tuple(ClientBatches(data, client_ids, plan)) if is_small else None

    def evaluate(
        self, evaluator: LearningProcess, trained: ServerState, cancel: CancelFlag | None
    ) -> GroupScores:
        """Evaluates a trained state on all clients of the group.

        The evaluation process runs one round per block of clients, from a new state. Its totals
        over all rounds are therefore the metrics of this evaluation.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's data are invalid.
            ModelError: A user's model fails.
            RunError: The clients' own models cannot be read.
        """
        state = evaluator.initialize()
        if trained.has_own_models:
            weights, own = trained.global_model_weights, trained.evaluated
        else:
            weights, own = trained.evaluated_weights, None
        state = replace(state, global_model_weights=weights, evaluated=own)
        stats = []
        for block in self._blocks():
            output = evaluator.next(state, block, cancel=cancel)
            state = output.state
            stats.append(output.client_stats)
        metrics = output.metrics
        totals = metrics["client_work"]["eval"]["total_rounds_metrics"]
        metrics["client_work"]["eval"]["current_round_metrics"] = dict(totals)
        return GroupScores(metrics, stats[0] if len(stats) == 1 else np.concatenate(stats))

    def _blocks(self) -> Iterator[Iterable[BatchedDataset]]:
        if self._held is not None:
            yield self._held
            return
        for first in range(0, len(self.client_ids), EVAL_BLOCK):
            last = min(first + EVAL_BLOCK, len(self.client_ids))
            ids = [self.client_ids[index] for index in range(first, last)]
            yield ClientBatches(self.data, ids, self.plan)


def make_group(
    data: ClientData, wanted: Sequence[str], plan: BatchPlan, seed: int
) -> EvaluationGroup:
    """Returns a group of the requested clients that are in a split.

    If the split has none of them, the group consists of the split's own clients: of all, or of a
    sample if they are too many.

    Args:
        data: The split.
        wanted: The requested ids, at least one.
        plan: How a client's examples become batches.
        seed: Seed of the sample that is drawn if the split has too many clients to evaluate all.
    """
    present = _find_present(data, wanted)
    num_absent = len(wanted) - len(present)
    if not num_absent:
        return EvaluationGroup(data.split, data, present, plan)
    where = f"in the {data.split} split of {data.source}"
    if present:
        verb = "is" if num_absent == 1 else "are"
        note = f"{num_absent} of the {len(wanted)} clients {verb} not {where} and {verb} skipped"
    else:
        present, _ = cohort.choose_eval_clients(data.client_ids, data.source, seed)
        num_clients = len(data.client_ids)
        is_drawn = len(present) < num_clients
        share = f"{len(present):,}" if is_drawn else "all"
        is_one = len(wanted) == 1
        missing = "the client is not" if is_one else f"none of the {len(wanted):,} clients is"
        note = f"{missing} {where}: evaluating on {share} of its "
        note += plural(num_clients, "client") + ", drawn from the seed" * is_drawn
    return EvaluationGroup(data.split, data, present, plan, num_absent=num_absent, notes=(note,))


def make_groups(
    config: RunConfig, cohorts: Cohorts, splits: dict[str, ClientData], notes: list[str]
) -> Iterator[EvaluationGroup]:
    """Yields the group of each evaluated split, in order, and adds notes for the user.

    Raises:
        ConfigError: A client that the config names is in no split, or the split that rounds are
            compared by is not evaluated.
    """
    plan = BatchPlan(batch_size=config.batch_size)
    evaluated = evaluated_splits(config, splits)
    _check_eval_split(config, evaluated)
    for split in evaluated:
        wanted = _wanted_for_evaluation(config, cohorts, splits, splits[split], notes)
        group = make_group(splits[split], wanted, plan, config.seed)
        notes.extend(group.notes)
        yield group


def _check_eval_split(config: RunConfig, evaluated: Sequence[str]) -> None:
    """Rejects an --eval-split that does not exist, or lacks the split used to compare rounds."""
    if config.eval_split == VALIDATION and VALIDATION not in evaluated:
        raise ConfigError(
            f"--eval-split {VALIDATION}: {config.data} has no such split; make one with fedcli "
            "preprocess --hold-out validation=within, or choose train or held-out"
        )
    split = next(each for each in SELECTION_SPLITS if each in evaluated)
    options = [name for name in _SELECTION_OPTIONS if getattr(config, name) is not None]
    if options and split not in due_splits(config.eval_split, evaluated):
        other = VALIDATION if split == VALIDATION else "held-out"
        option = option_name(options[0])
        raise ConfigError(
            f"{option} needs evaluations on {split}, which --eval-split {config.eval_split} leaves "
            f"out; choose --eval-split {other}"
        )


def _wanted_for_evaluation(
    config: RunConfig,
    cohorts: Cohorts,
    splits: dict[str, ClientData],
    data: ClientData,
    notes: list[str],
) -> Sequence[str]:
    """Returns the ids to evaluate on one split. Some of them may not be in it."""
    if config.eval_clients is not None:
        selection = cohort.parse_clients(config.eval_clients, "--eval-clients")
        return _select_for_evaluation(selection, splits, data)
    if cohorts.fixed is not None and not _is_pool(data):  # a pool has none of these clients
        return cohorts.fixed
    chosen, note = cohort.choose_eval_clients(data.client_ids, data.source, config.seed)
    notes.extend([note] if note else [])
    return chosen


def _is_pool(data: ClientData) -> bool:
    """Returns whether a split pools examples, so that its clients are not in the federation."""
    return data.split == CENTRAL or list(data.client_ids[:2]) == [VALIDATION]


def _select_for_evaluation(
    selection: ClientSelection, splits: dict[str, ClientData], data: ClientData
) -> Sequence[str]:
    train = splits["train"]
    if selection.ids is None:
        population = data.client_ids if selection.count is None else train.client_ids
        return cohort.resolve_ids(selection, population, train.source, "--eval-clients")
    for client_id in selection.ids:
        if not any(cohort.contains(each.client_ids, client_id) for each in splits.values()):
            lone = ClientSelection(ids=(client_id,))
            cohort.resolve_ids(lone, train.client_ids, train.source, "--eval-clients")
    return selection.ids


def _find_present(data: ClientData, client_ids: Sequence[str]) -> Sequence[str]:
    """Returns the ids that a split has."""
    if client_ids is data.client_ids:
        return client_ids
    return [each for each in client_ids if cohort.contains(data.client_ids, each)]
