"""The result of a federated evaluation of one split: metrics over all clients and by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.errors import plural
from fedcli.evaluation import spread
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.learning.engines import choosing
from fedcli.learning.state import ServerState
from fedcli.models import metrics
from fedcli.models.model import Model
from fedcli.settings.tables.metrics import more_is_better

if TYPE_CHECKING:
    from fedcli.evaluation.attack_success import AttackSuccess
    from fedcli.evaluation.measuring import Measured
    from fedcli.evaluation.personalization import FineTuning
    from fedcli.evaluation.predictions import WorstMistakes


@dataclass(frozen=True, eq=False)
class FineTuned:
    """The results of the same clients after each has fine-tuned the model on its train data.

    Attributes:
        strategy: How clients fine-tune.
        client_stats: One row per client, as the engine returns them.
        measured: The metrics that the engine does not compute; None: not requested.
    """

    strategy: FineTuning
    client_stats: NDArray[Any]
    measured: Measured | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """One federated evaluation of one split.

    Attributes:
        source: The data's name or file.
        split: The name of the split.
        round_num: Number of rounds for which the evaluated weights were trained.
        num_clients: Number of evaluated clients.
        num_absent: Number of selected clients that the split does not have.
        process_metrics: The metrics in TFF's structure.
        client_ids: The evaluated clients.
        client_stats: One row per client, as the engine returns them.
        measure: Computes metrics by name from some rows of `client_stats`.
        data: The split.
        is_seen: Which of the evaluated clients took part in the training, bool [num_clients]; None:
            not known.
        fine_tuned: The results after fine-tuning; None: not requested.
        worst: The worst mistakes; None: not requested.
        measured: Further metrics; None: not requested.
        attack: The success of the run's attack on examples; None: there is none, or it was not
            measured on this split.
        notes: Notes for the user, one line each.
    """

    source: str
    split: str
    round_num: int
    num_clients: int
    num_absent: int
    process_metrics: dict[str, Any]
    client_ids: Sequence[str]
    client_stats: NDArray[Any]
    measure: Callable[[metrics.ClientStats], dict[str, Any]]
    data: ClientData
    is_seen: NDArray[np.bool_] | None = None
    fine_tuned: FineTuned | None = None
    worst: WorstMistakes | None = None
    measured: Measured | None = None
    attack: AttackSuccess | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Returns the source, the split and the metrics on one line."""
        fields = {"split": self.split, "round_num": self.round_num, "num_clients": self.num_clients}
        fields.update(self.values)
        figures = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        return f"{type(self).__name__}({self.source!r}, {figures})"

    def _repr_html_(self) -> str:
        """Returns the metrics as a table."""
        from fedcli.settings import notebooks  # lazy: notebooks alone need it

        title = f"{self.source}, split {self.split}, after round {self.round_num}"
        rows = [(name, notebooks.number(value)) for name, value in self.values.items()]
        return notebooks.table(title, (), rows, plural(self.num_clients, "client"))

    def to_pandas(self) -> Any:
        """Returns a pandas DataFrame with a row for each client: examples, accuracy and loss.

        Raises:
            ConfigError: pandas is not installed.
        """
        from fedcli.settings.notebooks import data_frame  # lazy: notebooks alone need it

        accuracies, losses = spread.client_means(self.client_stats)
        columns: dict[str, Any] = {
            "client_id": list(self.client_ids),
            "num_examples": self.client_stats["num_examples"],
            "sparse_categorical_accuracy": accuracies,
            "loss": losses,
        }
        if self.is_seen is not None:
            columns["is_seen"] = self.is_seen
        if self.measured is not None:
            columns.update(self.measured.by_client)
        return data_frame(columns).set_index("client_id")

    @property
    def values(self) -> dict[str, Any]:
        """The metrics by name: the four built-in ones, and the requested further ones."""
        values: dict[str, Any] = self.process_metrics["client_work"]["eval"][
            "current_round_metrics"
        ]
        return {**values, **self._further_values}

    @property
    def _further_values(self) -> dict[str, float]:
        """The metrics over all examples, without the four built-in metrics."""
        measured = {} if self.measured is None else self.measured.values
        return {**measured, **({} if self.attack is None else self.attack.values)}

    @property
    def metrics(self) -> dict[str, Any]:
        """The values that `fedcli eval --json` prints: metrics, their spread, and the clients."""
        everyone = np.ones(len(self.client_stats), np.bool_)
        return {
            **self._process_metrics(),
            "over_clients": {
                **spread.over_clients(self.client_stats),
                **_spread(self.measured, everyone),
            },
            "split": self.split,
            "round": self.round_num,
            "num_clients": self.num_clients,
            "num_absent_clients": self.num_absent,
            **self._seen_and_unseen(),
            **({} if self.fine_tuned is None else {"fine_tuned": self._fine_tuned()}),
            **({} if self.attack is None else {"attack": self.attack.to_json()}),
            **({} if self.worst is None else self.worst.to_json()),
        }

    def _process_metrics(self) -> dict[str, Any]:
        """The metrics in TFF's structure, with the further metrics."""
        further = self._further_values
        if not further:
            return self.process_metrics
        work = self.process_metrics["client_work"]["eval"]
        more = {name: {**values, **further} for name, values in work.items()}
        return {**self.process_metrics, "client_work": {"eval": more}}

    def _seen_and_unseen(self) -> dict[str, Any]:
        if self.is_seen is None:
            return {}
        groups = {
            name: self._values_of(self.client_stats, self.measured, rows, name)
            for name, rows in self._groups()
        }
        return {"num_seen_clients": int(self.is_seen.sum()), **groups}

    def _groups(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yields the masks of seen and of unseen clients, if there are both."""
        if self.is_seen is not None and 0 < self.is_seen.sum() < len(self.is_seen):
            yield from zip(spread.GROUPS, (self.is_seen, ~self.is_seen), strict=True)

    def _values_of(
        self,
        stats: NDArray[Any],
        measured: Measured | None,
        rows: NDArray[np.bool_],
        group: str | None = None,
    ) -> dict[str, Any]:
        """The values of the clients in some rows: all clients, or a group of them."""
        more: Mapping[str, float] = {}
        if measured is not None:
            more = measured.values if group is None else measured.by_group[group]
        return {
            "num_clients": int(rows.sum()),
            "metrics": {**self.measure(stats[rows]), **more},
            "over_clients": {**spread.over_clients(stats[rows]), **_spread(measured, rows)},
        }

    def _fine_tuned(self) -> dict[str, Any]:
        from fedcli.evaluation.fine_tuning import to_json  # lazy: training does not need it

        assert self.fine_tuned is not None
        before, after = self.client_stats, self.fine_tuned.client_stats
        measured, everyone = self.fine_tuned.measured, np.ones(len(after), np.bool_)
        groups = {
            name: {
                **self._values_of(after, measured, rows, name),
                "gain_over_clients": spread.gain_over_clients(before[rows], after[rows]),
            }
            for name, rows in self._groups()
        }
        return {
            **to_json(self.fine_tuned.strategy),
            **self._values_of(after, measured, everyone),
            "gain_over_clients": spread.gain_over_clients(before, after),
            **groups,
        }


def _spread(measured: Measured | None, rows: NDArray[np.bool_]) -> dict[str, Any]:
    """The spread of the requested metrics over some clients, if they were measured by client."""
    by_client = {} if measured is None else measured.by_client
    return {
        name: spread.metric_over_clients(values[rows], more_is_better=more_is_better(name))
        for name, values in by_client.items()
    }


def seen_in(data: ClientData, client_ids: Sequence[str], seen: frozenset[str]) -> NDArray[np.bool_]:
    """Returns which clients of a split took part in the training, bool [num_clients].

    `seen` has the ids of the clients that took part. If the split's clients are not the same people
    as those of train, none of them took part, even if ids are equal.
    """
    if data.split != "train" and not data.same_people:
        return np.zeros(len(client_ids), np.bool_)
    return np.array([each in seen for each in client_ids], np.bool_)


def evaluate_group(
    group: EvaluationGroup,
    evaluator: learning.LearningProcess,
    state: ServerState,
    cancel: CancelFlag | None,
) -> Evaluation:
    """Evaluates a state on the clients of one split. Raises as `EvaluationGroup.evaluate` does."""
    scores = group.evaluate(evaluator, state, cancel)
    return Evaluation(
        source=group.data.source,
        split=group.split,
        round_num=state.round_num,
        num_clients=len(group.client_ids),
        num_absent=group.num_absent,
        process_metrics=scores.metrics,
        client_ids=group.client_ids,
        client_stats=scores.client_stats,
        measure=_measure_of(evaluator.model),
        data=group.data,
        notes=group.notes,
    )


def _measure_of(model: Model) -> Callable[[metrics.ClientStats], dict[str, Any]]:
    """The function that computes the four metrics and the model's own metrics from stats."""
    own = choosing.own_metrics(model)

    def measure(stats: metrics.ClientStats) -> dict[str, Any]:
        return {**metrics.sum_then_finalize(stats), **own.finalize(metrics.sum_stats(stats))}

    return measure
