"""Checks that the configurations use everything that fedcli says it offers.

`fedcli info --json` lists algorithms, optimizers and so on; the help texts list the options, and
the values of options with a choice. The command lines of the configurations show which of them are
used.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from fedcli.settings.vocabulary import WEIGHTS_FORMATS
from tests.equality.configurations import Configuration

COMMANDS = ("train", "eval", "export", "preprocess", "inspect-clients", "report")

# Lists of `fedcli info --json`, and for each list the options of train whose value is an entry of
# it. Each entry must be used with each of these options.
TABLES = {
    "algorithms": ("--algorithm",),
    "aggregators": ("--aggregator",),
    "optimizers": ("--client-optimizer", "--server-optimizer"),
    "schedules": ("--client-schedule", "--server-schedule"),
    "partitions": ("--partition",),
    "samplers": ("--sampling",),
    "models": ("--model",),
    "presets": ("--preset",),
}

# Options that are newer than the two programs that the configurations were written to compare.
_NEWER = (
    *("train --sampling-option", "train --secure-sum", "train --secure-sum-option"),
    *("train --eval-split validation", "preprocess --dry-run"),
    *("train --augment", "train --augment-option", "train --normalize"),
    *("train --label-smoothing", "train --client-weight-decay"),
    *("export --format", *(f"export --format {each}" for each in WEIGHTS_FORMATS)),
    *(f"train --preset {each}" for each in ("reddi-2021-cifar100", "fedml-cifar10-resnet56")),
    *(f"train --preset {each}" for each in ("niid-bench-cifar10", "blazefl-cifar10-cnn")),
    *(f"train --aggregator {each}" for each in ("median", "trimmed-mean", "meamed", "mda", "dnc")),
    *(f"train --aggregator {each}" for each in ("krum", "multi-krum", "bulyan", "fltrust")),
    *(f"train --aggregator {each}" for each in ("foolsgold", "geometric-median")),
    *(f"train --aggregator {each}" for each in ("centered-clipping", "sign-majority")),
    *(f"train --model {each}" for each in ("resnet18-gn", "resnet20", "resnet32", "resnet56")),
    *(
        f"train --model {each}"
        for each in ("vgg11", "vgg9", "mobilenet-v1", "mobilenet-v2", "cnn-cifar", "lenet5-cifar")
    ),
    *(f"train --model {each}-bn" for each in ("resnet20", "resnet32", "resnet56", "vgg11")),
    *("train --model mobilenet-v2-bn", "train --batch-norm", "train --batch-norm average"),
    *("train --batch-norm local-statistics", "train --batch-norm local-layers"),
    "train --batch-norm frozen",
    *("train --pre-aggregator", "train --pre-aggregator-option"),
    *("train --metrics", "train --monitor", "train --class-weights", "eval --metrics"),
    *("preprocess --file-column", "preprocess --splits", "preprocess --pixel-range"),
    *(f"preprocess --pixel-range {each}" for each in ("0-1", "0-15", "0-16", "0-255", "0-4095")),
    *(f"preprocess --pixel-range {each}" for each in ("0-65535", "standardised")),
    *("preprocess --polarity", "preprocess --polarity background", "preprocess --polarity ink"),
    *(f"preprocess --format {each}" for each in ("cifar-python", "clients", "mat", "npy")),
    *("preprocess --format parquet", "preprocess --format stl10", "preprocess --folders name"),
    *("report --plot-log", "report --plot-size"),
    *(f"report --plot-log {each}" for each in ("none", "x", "xy", "y")),
    *("train --compress", "train --compress-option", "report --x"),
    *("train --attack", "train --attackers", "train --attack-option"),
    *("train --dp", "train --dp-option", "train --engine", "train --engine-option"),
    *(f"{command} --validation" for command in ("train", "eval", "inspect-clients")),
    *("train --metric-option", "eval --metric-option", "train --eval-split without-train"),
    *(f"report --{each}" for each in ("best", "by", "columns", "heat-map", "select", "select-on")),
    *("report --spread", *(f"report --spread {each}" for each in ("interval", "none", "std"))),
    *(f"report --x {each}" for each in ("round", "megabytes", "megabytes-up")),
)
# Options that cannot be compared, or that give nothing to compare, each with the reason. All other
# options must be used.
NOT_COMPARED = {
    **{
        f"{command} {name}": "changes no result"
        for command in COMMANDS
        for name in ("--help", "--json", "--quiet", "--verbose")
    },
    "train --tensorboard": "event files hold the time of day",
    "train --histograms": "goes into TensorBoard's event files",
    "eval --show-errors": "draws on the terminal",
    "inspect-clients --show": "draws on the terminal",
    "inspect-clients --examples": "draws on the terminal",
    "inspect-clients --means": "draws on the terminal",
    "inspect-clients --augmented": "draws on the terminal",
    "inspect-clients --sort": "orders the table on the terminal",
    "inspect-clients --top": "cuts the table on the terminal",
    "inspect-clients --plot": "pictures, as matplotlib writes them",
    "inspect-clients --plot-format": "pictures, as matplotlib writes them",
    "report --format": "text for people, with times in it",
    "report --plot": "pictures, as matplotlib writes them",
    "report --html": "a page for people, with times in it",
    **dict.fromkeys(_NEWER, "is newer than the programs it would be compared with"),
}  # fmt: skip

_OPTION = re.compile(
    r"^  (?:-\w, )?(--[a-z][\w-]*)(?: \[([\w/.-]+(?:\|[\w/.-]+)+)\])?", re.MULTILINE
)


def offered(run: Callable[[str], str]) -> set[str]:
    """Returns all that must be used, as keys `command --option` or `command --option value`.

    Args:
        run: Runs a command line of fedcli and returns what it prints.
    """
    found = set()
    for command in COMMANDS:
        for name, choices in _OPTION.findall(run(f"{command} --help")):
            key = f"{command} {name}"
            if key not in NOT_COMPARED:
                found.add(key)
                found |= {f"{key} {each}" for each in choices.split("|") if each}
    info = json.loads(run("info --json"))
    for table, options in TABLES.items():
        names = [entry["name"] for entry in info[table]]
        found |= {f"train {option} {name}" for option in options for name in names}
    return found - NOT_COMPARED.keys()


def used(configurations: Iterable[Configuration]) -> dict[str, list[str]]:
    """Returns the names of the configurations that use each key; keys are as in `offered`."""
    found: dict[str, list[str]] = defaultdict(list)
    for each in configurations:
        for step in (*each.steps, *each.later):
            for key in _keys(step):
                if each.name not in found[key]:
                    found[key].append(each.name)
    return dict(found)


def _keys(step: str) -> Iterator[str]:
    command, *words = shlex.split(step)
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        yield f"{command} {word}"
        value = words[index + 1] if index + 1 < len(words) else "--"
        if not value.startswith("--"):
            yield f"{command} {word} {value}"
            yield from (f"{command} {word} {part}" for part in value.split("+"))


def missing(run: Callable[[str], str], configurations: Iterable[Configuration]) -> list[str]:
    """Returns the keys that no configuration uses, sorted."""
    return sorted(offered(run) - used(configurations).keys())
