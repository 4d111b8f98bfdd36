"""A canary: a client that is added or left out to get a lower bound on the epsilon of a run.

The canary is a client whose labels are all raised by one, so a model learns these labels only from
it. The model's confidence on the canary's examples distinguishes runs with it from runs without it.
A quarter of the runs is used to choose a threshold on the confidence. In the other runs the right
and wrong decisions by the threshold are counted, and the counts give a lower bound on epsilon
(`bounds.least_epsilon`). The bound is wrong with probability at most 5 %.

(Jagielski, Ullman and Oprea, "Auditing Differentially Private Machine Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.07709.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.audits.audited_run import AuditedRun
from fedcli.audits.bounds import Privacy, least_epsilon
from fedcli.audits.separation import Separation, mean_scores, separation
from fedcli.audits.shadows import train_shadow, without_examples
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.errors import ConfigError, plural
from fedcli.progress import ProgressCallback

_PILOT = 4  # one run in 4 is used to choose the threshold
_TRIED = 64  # largest number of thresholds that are tried


@dataclass(frozen=True)
class Canary:
    """A lower bound on epsilon.

    Attributes:
        client_id: The client.
        num_pilots: Number of runs of each kind that were used to choose the threshold.
        with_canary: Of the remaining runs with the canary, the number of recognised runs and the
            number of all runs.
        without: Of the remaining runs without it, the number of runs that were mistaken for runs
            with it, and the number of all runs.
        epsilon: The lower bound on epsilon, at 95 % confidence.
        largest: The bound that these runs would give if the threshold decided all of them
            correctly.
        separation: How well all runs are distinguished, over all thresholds.
        privacy: The epsilon that the run reports; None if it reports none.
        notes: Notes for the user, one line each.
    """

    client_id: str
    num_pilots: int
    with_canary: tuple[int, int]
    without: tuple[int, int]
    epsilon: float
    largest: float
    separation: Separation
    privacy: Privacy | None
    notes: tuple[str, ...] = ()

    @property
    def proves_fault(self) -> bool:
        """Whether the bound is above the epsilon that the run reports."""
        return self.privacy is not None and self.epsilon > self.privacy.epsilon

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values; the reported values are null without privacy."""
        epsilon, delta = (None, None) if self.privacy is None else self.privacy
        return {
            "client_id": self.client_id,
            "num_recognised": self.with_canary[0],
            "num_with_canary": self.with_canary[1],
            "num_mistaken": self.without[0],
            "num_without": self.without[1],
            "epsilon_lower_bound": self.epsilon,
            "largest_bound": self.largest,
            "reported_epsilon": epsilon,
            "reported_delta": delta,
            "proves_fault": self.proves_fault,
            "auc": self.separation.auc,
        }


def audit(run: AuditedRun, on_progress: ProgressCallback, *, canary: str, shadows: int) -> Canary:
    """Trains runs with and without the canary and bounds epsilon.

    Args:
        run: The run.
        on_progress: Called with the number of runs trained so far, for progress.
        canary: The client; empty: the first that may take part.
        shadows: Number of runs with the canary; as many runs are trained without it.

    Raises:
        ConfigError: There is no such client, it has no examples, the data have a single class, or
            clients send no updates.
    """
    run.check_is_shared()
    client_id = run.candidate(canary, "canary")
    own = run.train.client(client_id)
    if not len(own) or run.train.num_classes < 2:
        raise ConfigError(
            f"--option canary={client_id}: this client has {plural(len(own), 'example')}, and the "
            f"data have {plural(run.train.num_classes, 'class')}; a canary needs at least one "
            "example and two classes"
        )
    mislabelled = replace(own, labels=(own.labels + 1) % np.int32(run.train.num_classes))
    scores = np.empty((2, shadows))
    on_progress(0, 2 * shadows)
    for index in range(2 * shadows):
        kind, place = index % 2, index // 2
        client = without_examples(own) if kind else mislabelled
        shadow = train_shadow(run, index, None, {client_id: client})
        scores[kind, place] = _score(run, mislabelled, shadow.weights)
        on_progress(index + 1, 2 * shadows)
    return bound(client_id, scores[0], scores[1], run.privacy)


def bound(
    client_id: str,
    with_canary: NDArray[np.float64],
    without: NDArray[np.float64],
    privacy: Privacy | None,
) -> Canary:
    """Returns the bound on epsilon that the scores of the runs give.

    Args:
        client_id: The canary.
        with_canary: Scores of runs with it, at least four; higher if the model remembers it.
        without: Scores of as many runs without it.
        privacy: The privacy that the run reports, or None.
    """
    delta = 0.0 if privacy is None else privacy.delta
    num_pilots = len(with_canary) // _PILOT
    threshold = _threshold(with_canary[:num_pilots], without[:num_pilots])
    num_tested = len(with_canary) - num_pilots
    recognised = int(np.count_nonzero(with_canary[num_pilots:] >= threshold)), num_tested
    mistaken = int(np.count_nonzero(without[num_pilots:] >= threshold)), num_tested
    return Canary(
        client_id=client_id,
        num_pilots=num_pilots,
        with_canary=recognised,
        without=mistaken,
        epsilon=least_epsilon(recognised, mistaken, delta),
        largest=least_epsilon((num_tested, num_tested), (0, num_tested), delta),
        separation=separation(with_canary, without),
        privacy=privacy,
    )


def _threshold(with_canary: NDArray[np.float64], without: NDArray[np.float64]) -> float:
    """Returns the threshold with the largest value in the pilot runs.

    The value is the bound on epsilon plus the difference of the two rates. Among thresholds with
    equal values, the one in the widest gap between two scores is returned.
    """
    ordered = np.unique(np.concatenate([with_canary, without]))
    if len(ordered) == 1:
        return float(ordered[0])
    # More thresholds are tried among high scores, which few runs without the canary reach.
    tried = len(ordered) - np.unique(np.geomspace(1, len(ordered) - 1, _TRIED).astype(np.int64))
    best = -1.0, 0.0
    chosen = 0.0
    for place in tried.tolist():
        low, high = float(ordered[place - 1]), float(ordered[place])
        middle = (low + high) / 2.0
        recognised = int(np.count_nonzero(with_canary >= middle)), len(with_canary)
        mistaken = int(np.count_nonzero(without >= middle)), len(without)
        # If there are too few runs for any bound above 0, the difference alone decides.
        difference = (recognised[0] - mistaken[0]) / len(without)
        value = least_epsilon(recognised, mistaken, 0.0) + difference
        if (value, high - low) > best:
            best, chosen = (value, high - low), middle
    return chosen


def _score(run: AuditedRun, client: ClientDataset, weights: NDArray[np.float32]) -> float:
    """The confidence of a model on the canary's examples."""
    return float(mean_scores([run.losses_of(client, weights)])[0])
