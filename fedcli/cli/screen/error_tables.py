"""The output of `eval --show-errors`: the worst mistakes of a model, with their images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedcli.cli.screen.suspect_tables import example_pictures
from fedcli.errors import plural
from fedcli.evaluation.predictions import NO_CLASS, Mistake, WorstMistakes

if TYPE_CHECKING:
    from fedcli.cli.screen.render import Screen
    from fedcli.datasets.client_data import ClientData
    from fedcli.evaluation.attack_success import AttackSuccess


def show(screen: Screen, data: ClientData, worst: WorstMistakes) -> None:
    """Prints the worst mistakes as a table and as pictures."""
    screen.title(f"Worst mistakes ({data.split}; highest loss first)")
    mistakes = worst.mistakes
    if not mistakes:
        screen.line("none", style="dim")
        return
    rows, captions = [], []
    for rank, each in enumerate(mistakes, 1):
        label, predicted = data.class_name(each.label), _class_name(data, each)
        row = [f"{rank:>{len(str(len(mistakes)))}}", each.client_id, str(each.index)]
        row += [label, predicted, _share(each.probability), _share(each.label_probability)]
        rows.append([*row, f"{each.loss:.2f}" if math.isfinite(each.loss) else "not finite"])
        captions.append(f"{rank}: {label}>{predicted}")
    headers = ["rank", "client", "example", "label", "predicted", "probability", "of label", "loss"]
    screen.table(headers, rows, left=2)
    screen.title("These examples, by rank: label > predicted")
    screen.pictures(example_pictures(data, mistakes), captions)
    screen.line("")
    verb = "is" if worst.num_mistakes == 1 else "are"
    screen.line(f"{plural(worst.num_mistakes, 'example')} {verb} misclassified", style="dim")


def show_attack(screen: Screen, attack: AttackSuccess) -> None:
    """Prints the success of an attack, and pictures of examples on which it succeeded."""
    data, shown = attack.probes, attack.shown or ()
    screen.title(f"Examples as the attack makes them ({data.split}): label > predicted")
    if shown:
        captions = [f"{data.class_name(e.label)}>{_class_name(data, e)}" for e in shown]
        screen.pictures(example_pictures(data, shown), captions)
        screen.line("")
    screen.line(
        f"{attack.num_successes:,} of {plural(attack.num_aimed_at, 'example')} are predicted as "
        "the attackers want",
        style="dim",
    )


def _class_name(data: ClientData, mistake: Mistake) -> str:
    return "none" if mistake.predicted == NO_CLASS else data.class_name(mistake.predicted)


def _share(probability: float) -> str:
    return f"{probability:.4f}" if math.isfinite(probability) else "not finite"
