"""Membership inference by the loss: a model has a lower loss on examples that it was trained on.

(Yeom, Giacomelli, Fredrikson and Jha, "Privacy Risk in Machine Learning", CSF 2018,
https://arxiv.org/abs/1709.01604.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.audits.audited_run import AuditedRun
from fedcli.audits.bounds import Privacy
from fedcli.audits.separation import Separation, separation
from fedcli.dataclass import dataclass
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError
from fedcli.federation.cohorts import contains
from fedcli.progress import ProgressCallback


@dataclass(frozen=True)
class LossThreshold:
    """How well the loss distinguishes examples that were trained on from others.

    Attributes:
        separation: The rates and areas over all thresholds.
        others: A description of the other examples.
        threshold: The threshold of Yeom et al.: the mean loss of the members.
        rates: TPR and FPR of the rule "a member has at most this loss".
        privacy: The epsilon that the run reports; None if it reports none.
        notes: Notes for the user, one line each.
    """

    separation: Separation
    others: str
    threshold: float
    rates: tuple[float, float]
    privacy: Privacy | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        tpr, fpr = self.rates
        mean_loss = {"threshold": self.threshold, "tpr": tpr, "fpr": fpr, "advantage": tpr - fpr}
        return {**self.separation.to_json(), "mean_loss": mean_loss}


def audit(run: AuditedRun, on_progress: ProgressCallback, *, others: str) -> LossThreshold:
    """Compares the losses of two groups of examples: of clients that took part, and others.

    Args:
        run: The run.
        on_progress: Called with the number of clients read so far, for progress.
        others: "test" for the test examples of the same clients, "unseen" for the train examples of
            clients that did not take part.

    Raises:
        ConfigError: The data have no such other examples, or one of the two groups is empty.
    """
    members = sorted(run.seen)
    data, ids = _others(run, others)
    total = len(members) + len(ids)
    scores = []
    for done, (split, client_id) in enumerate(
        [*((run.train, each) for each in members), *((data, each) for each in ids)], 1
    ):
        scores.append(-run.losses(split, client_id, run.trained.state.weights_for(client_id)))
        on_progress(done, total)
    of_members = _joined(scores[: len(members)], "clients that took part", run)
    of_others = _joined(scores[len(members) :], f"the clients of others={others}", run)
    threshold = float(np.mean(of_members))
    return LossThreshold(
        separation=separation(of_members, of_others),
        others="test examples" if others == "test" else "train examples of unseen clients",
        threshold=-threshold,
        rates=(float(np.mean(of_members >= threshold)), float(np.mean(of_others >= threshold))),
        privacy=run.privacy,
    )


def _others(run: AuditedRun, others: str) -> tuple[ClientData, Sequence[str]]:
    """The split and the clients whose examples were not trained on."""
    if others == "unseen":
        ids = [each for each in run.train.client_ids if each not in run.seen]
        if not ids:
            raise ConfigError(
                f"--option others=unseen: every client of {run.path} took part in the training; "
                "choose others=test"
            )
        return run.train, ids
    data = run.splits.get("test")
    if data is None or not data.same_people:
        raise ConfigError(
            f"--option others=test: {run.train.source} has no test split of the same clients; "
            "choose others=unseen"
        )
    return data, [each for each in sorted(run.seen) if contains(data.client_ids, each)]


def _joined(
    scores: Sequence[NDArray[np.float64]], whose: str, run: AuditedRun
) -> NDArray[np.float64]:
    """Joins the scores of all clients; refuses an empty result."""
    joined = np.concatenate([np.empty(0), *scores])
    if not len(joined):
        raise ConfigError(f"{run.path}: {whose} have no examples; audit another run")
    return joined
