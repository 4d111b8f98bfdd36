"""LiRA: membership inference of clients by a likelihood ratio over shadow runs.

Shadow runs are trained like the audited one, but each audited client has no examples in a random
half of them. A client's score in a run is the mean confidence ln(p / (1 - p)) of its train
examples. One normal density is fitted to the client's scores in the shadow runs with it, another to
those in the runs without it. The result for the client is the log ratio of these densities at the
client's score x in the audited run. With the option `offline`, the result is instead P(score in a
run without the client < x), for which only the runs without it are used.

(Carlini, Chien, Nasr, Song, Terzis and Tramèr, "Membership Inference Attacks From First
Principles", IEEE S&P 2022, https://arxiv.org/abs/2112.03570. The paper tests examples, not clients.
If clients share a variance, the authors' code uses the variance of the scores with the client for
both densities; here each density has its own.)
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.audits.audited_run import AuditedRun
from fedcli.audits.bounds import Privacy
from fedcli.audits.separation import Separation, mean_scores, separation
from fedcli.audits.shadows import Shadow, halves, some_of, train_shadow, without_examples
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.progress import ProgressCallback

_LEAST_STD = 1e-30  # as in the authors' code
_LEAST_RUNS = 2  # of runs with a client, and of runs without it: a variance needs two scores


@dataclass(frozen=True)
class LikelihoodRatio:
    """How well LiRA distinguishes the clients that took part from others.

    Attributes:
        separation: How well members are distinguished, over all thresholds of the scores.
        num_shadows: Number of shadow runs.
        scores: The score of each client by id, higher for members.
        members: The clients that took part.
        privacy: The epsilon that the run reports; None if it reports none.
        notes: Notes for the user, one line each.
    """

    separation: Separation
    num_shadows: int
    scores: dict[str, float]
    members: frozenset[str]
    privacy: Privacy | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        clients = [
            {"client_id": client_id, "took_part": client_id in self.members, "score": score}
            for client_id, score in self.scores.items()
        ]
        return {**self.separation.to_json(), "num_shadows": self.num_shadows, "clients": clients}


def audit(
    run: AuditedRun,
    on_progress: ProgressCallback,
    *,
    shadows: int,
    clients: int,
    offline: bool,
    shared_variance: bool,
) -> LikelihoodRatio:
    """Trains shadow runs and scores clients.

    Args:
        run: The run.
        on_progress: Called with the number of shadow runs trained so far, for progress.
        shadows: Number of shadow runs.
        clients: The largest number of clients to score among those that took part, and among those
            that did not.
        offline: Whether a client is scored only by the shadow runs that it is not in.
        shared_variance: Whether clients share variances; see `likelihood_ratios`.

    Raises:
        ConfigError: Clients send no updates; all or none of them took part; or all that took part,
            or all others, were in too few or too many shadow runs.
    """
    run.check_is_shared()
    members, others = _both_kinds(run, clients)
    ids = sorted((*members, *others))
    done = _train_shadows(run, ids, shadows, on_progress)
    has_client = np.array([[each in shadow.seen for each in ids] for shadow in done])
    scores = np.array([_scores(run, shadow.weights, ids) for shadow in done])
    observed = _scores(run, run.trained.state.evaluated_weights, ids)
    enough = np.minimum(has_client.sum(axis=0), (~has_client).sum(axis=0)) >= _LEAST_RUNS
    kept = [client_id for client_id, is_kept in zip(ids, enough, strict=True) if is_kept]
    is_member = np.array([each in members for each in kept], np.bool_)
    if is_member.all() or not is_member.any():
        raise ConfigError(
            f"--option shadows={shadows}: all clients that took part, or all others, were in too "
            "few or too many of the shadow runs; choose more shadows"
        )
    ratios = likelihood_ratios(
        observed[enough],
        scores[:, enough],
        has_client[:, enough],
        is_offline=offline,
        shares_variance=shared_variance,
    )
    num_left = len(ids) - len(kept)
    left_out = f"clients in too few or too many shadow runs, and therefore not scored: {num_left}"
    return LikelihoodRatio(
        separation=separation(ratios[is_member], ratios[~is_member]),
        num_shadows=shadows,
        scores=dict(zip(kept, ratios.tolist(), strict=True)),
        members=frozenset(members),
        privacy=run.privacy,
        notes=(left_out,) if num_left else (),
    )


def likelihood_ratios(
    observed: NDArray[np.float64],
    scores: NDArray[np.float64],
    has_client: NDArray[np.bool_],
    *,
    is_offline: bool,
    shares_variance: bool,
) -> NDArray[np.float64]:
    """Returns the log ratio, or with `is_offline` the probability, of each client: [num_clients].

    Args:
        observed: The scores in the audited run, [num_clients].
        scores: The scores in the shadow runs, [num_shadows, num_clients].
        has_client: Whether each shadow run had each client, [num_shadows, num_clients]; each client
            is in some runs and not in others.
        is_offline: Whether a client is scored only by the runs that it is not in.
        shares_variance: Whether all clients share one variance of their scores in runs with the
            client, and another variance of their scores in runs without it.
    """
    mean_out, std_out = _normal(scores, ~has_client, shares_variance)
    if is_offline:
        standard = (observed - mean_out) / std_out
        return np.array([NormalDist().cdf(each) for each in standard.tolist()])
    mean_in, std_in = _normal(scores, has_client, shares_variance)
    return _log_density(observed, mean_in, std_in) - _log_density(observed, mean_out, std_out)


def _normal(
    scores: NDArray[np.float64], chosen: NDArray[np.bool_], shares_variance: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (of the scores themselves, ddof 0) by client."""
    counts = chosen.sum(axis=0)
    means = np.where(chosen, scores, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, np.square(scores - means), 0.0).sum(axis=0)
    variances = squares / counts
    if shares_variance:
        variances = np.full_like(variances, squares.sum() / counts.sum())
    return means, np.sqrt(variances) + _LEAST_STD


def _log_density(
    values: NDArray[np.float64], means: NDArray[np.float64], stds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The logarithm of normal densities, without the constant that cancels in a ratio."""
    return -np.square((values - means) / stds) / 2.0 - np.log(stds)


def _both_kinds(run: AuditedRun, limit: int) -> tuple[list[str], list[str]]:
    """Returns clients with examples that took part, and clients with examples that did not."""
    seed = run.trained.config.seed
    has_examples = [each for each in run.train.client_ids if run.train.num_examples(each)]
    members = [each for each in has_examples if each in run.seen]
    others = [each for each in has_examples if each not in run.seen]
    if not others or not members:
        who = "every client" if members else "no client"
        raise ConfigError(
            f"{run.path}: {who} took part, but the audit compares clients that took part with "
            "clients that did not; audit a run that trained on only some of the clients, as with "
            "--clients 20"
        )
    most = min(limit, len(members), len(others)) if run.is_fixed else limit
    return some_of(members, most, seed), some_of(others, most, seed)


def _train_shadows(
    run: AuditedRun, ids: list[str], num_shadows: int, on_progress: ProgressCallback
) -> list[Shadow]:
    """Trains the shadow runs; each of the given clients is left out of a random half of them."""
    chosen = halves(num_shadows, len(ids), run.trained.config.seed)
    shadows = []
    on_progress(0, num_shadows)
    for index, row in enumerate(chosen):
        left_out = [each for each, is_in in zip(ids, row, strict=True) if not is_in]
        changed = {each: without_examples(run.train.client(each)) for each in left_out}
        shadows.append(train_shadow(run, index, ids if run.is_fixed else None, changed))
        on_progress(index + 1, num_shadows)
    return shadows


def _scores(run: AuditedRun, weights: NDArray[np.float32], ids: list[str]) -> NDArray[np.float64]:
    """The score of each client under some weights."""
    return mean_scores(run.losses(run.train, each, weights) for each in ids)
