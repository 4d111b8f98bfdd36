"""The output of `fedcli audit`: the results as tables and pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedcli.audits.auditing import AuditResult
from fedcli.audits.bounds import Privacy, largest_advantage
from fedcli.audits.canary import Canary
from fedcli.audits.inversion import Inversion
from fedcli.audits.likelihood_ratio import LikelihoodRatio
from fedcli.audits.loss_threshold import LossThreshold
from fedcli.audits.separation import LOW_RATES, Separation
from fedcli.cli.screen.pictures import pictures_of
from fedcli.errors import plural

if TYPE_CHECKING:
    from fedcli.cli.screen.render import Screen

_CHANCE = "chance"


def show(screen: Screen, result: AuditResult) -> None:
    """Prints the result of an audit."""
    if isinstance(result, Inversion):
        _show_inversion(screen, result)
    elif isinstance(result, LossThreshold):
        _show_loss_threshold(screen, result)
    elif isinstance(result, LikelihoodRatio):
        _show_likelihood_ratio(screen, result)
    elif isinstance(result, Canary):
        _show_canary(screen, result)


def _show_inversion(screen: Screen, result: Inversion) -> None:
    steps = plural(result.num_steps, "local step")
    num = len(result.indices)
    which = f"example {result.indices[0]}" if num == 1 else plural(num, "example")
    screen.line(
        f"Gradient inversion of client {result.client_id}, {which}, {steps} after round "
        f"{result.round_num}",
        style="bold",
    )
    rows = [
        [str(index), result.data.class_name(int(label)), _decibels(psnr)]
        for index, label, psnr in zip(result.indices, result.labels, result.psnr, strict=True)
    ]
    screen.table(["example", "label", "PSNR dB"], rows, left=2)
    if result.label_read is None:
        screen.line("The label cannot be read from the update.")
    else:
        label = result.data.class_name(result.label_read)
        screen.line(f"The label that the update reveals: {label}")
    screen.title("Above: the example; below: the image reconstructed from the update")
    convention = result.data.pixel_convention
    images = np.nan_to_num(result.images).astype(np.float32)
    screen.pictures(
        pictures_of(result.originals, convention),
        captions(result),
        below=pictures_of(images, convention),
    )


def _show_loss_threshold(screen: Screen, result: LossThreshold) -> None:
    screen.line("Membership of examples by their loss", style="bold")
    _show_separation(screen, result.separation, "trained examples", result.others)
    tpr, fpr = result.rates
    screen.line("")
    screen.line(
        f"At the mean loss of the trained examples, {result.threshold:.4f}: TPR {tpr:.4f}, FPR "
        f"{fpr:.4f}, advantage {tpr - fpr:.4f}"
    )
    _show_privacy(screen, result.separation, result.privacy)


def _show_likelihood_ratio(screen: Screen, result: LikelihoodRatio) -> None:
    screen.line(
        f"Membership of clients by likelihood ratio (LiRA), {result.num_shadows} shadow runs",
        style="bold",
    )
    _show_separation(screen, result.separation, "clients that took part", "other clients")
    _show_privacy(screen, result.separation, result.privacy)


def _show_canary(screen: Screen, result: Canary) -> None:
    screen.line(f"Bound on epsilon by the canary {result.client_id}", style="bold")
    rows = [
        ["with the canary, and recognised", *map(str, result.with_canary)],
        ["without the canary, mistaken for a run with it", *map(str, result.without)],
    ]
    screen.table(["runs", "number", "of"], rows, left=1)
    screen.line("")
    screen.line(
        f"epsilon is at least {result.epsilon:.6f} at 95 % confidence; the largest bound that this "
        f"number of runs can give is {result.largest:.6f}"
    )
    if result.privacy is None:
        screen.line("The run reports no epsilon: it was trained without differential privacy.")
        return
    epsilon, delta = result.privacy
    verdict = "is less than the bound" if result.proves_fault else "agrees with the bound"
    screen.line(f"The run reports epsilon {epsilon:.6f} at delta {delta:g}, which {verdict}.")


def captions(result: Inversion) -> list[str]:
    """Returns a short text for each example of an inversion: its label and the PSNR."""
    return [
        f"{result.data.class_name(int(label))}  {_decibels(psnr)} dB"
        for label, psnr in zip(result.labels, result.psnr, strict=True)
    ]


def _show_separation(screen: Screen, found: Separation, members: str, others: str) -> None:
    """Prints the numbers, and beside them those of random guesses."""
    screen.line(f"{members}: {found.num_members:,}; {others}: {found.num_others:,}")
    rows = [
        ["AUC", f"{found.auc:.4f}", "0.5"],
        ["advantage", f"{found.advantage:.4f}", "0"],
        *(
            [f"TPR at FPR {100 * rate:g} %", f"{tpr:.4f}", f"{rate:g}"]
            for rate, tpr in zip(LOW_RATES, found.tpr, strict=True)
        ),
    ]
    screen.table(["measure", "found", _CHANCE], rows, left=1)
    least = 1.0 / found.num_others
    if least > LOW_RATES[0]:
        screen.line(
            f"With so few {others} the smallest FPR above 0 is {least:.4f}; for a lower FPR, the "
            "TPR at FPR 0 is shown",
            style="dim",
        )


def _show_privacy(screen: Screen, found: Separation, privacy: Privacy | None) -> None:
    """Prints the advantage that the epsilon of a run allows."""
    if privacy is None:
        return
    screen.line(
        f"The run reports epsilon {privacy.epsilon:.6f} at delta {privacy.delta:g}, which allows "
        f"an advantage of at most {largest_advantage(privacy):.4f}; {found.advantage:.4f} was found"
    )


def _decibels(psnr: float) -> str:
    return f"{psnr:.1f}" if math.isfinite(psnr) else "infinite"
