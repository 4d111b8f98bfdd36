"""Compares the results of two fedcli executables byte by byte. Run it in the repository:

python -m tests.equality BEFORE AFTER [--only NAME] [--jobs 2] [--leave-out PATTERN]
python -m tests.equality FEDCLI --self-check
python -m tests.equality FEDCLI --list

BEFORE and AFTER are the `fedcli` of two installations on one machine, with the same NumPy and h5py.
The exit code is 0 if two things hold: everything that was compared is the same, and the
configurations use everything that AFTER offers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from tests.equality import coverage
from tests.equality.configurations import CONFIGURATIONS, Configuration
from tests.equality.inputs import write_inputs
from tests.equality.running import Comparison, Program, Result, StepError, run_command

MOST_SHOWN = 8

# The configurations of the self-check, and the outputs of each that must differ if `_changed` has
# changed its steps.
SELF_CHECK = {
    "model-mlp-2nn": ("run/metrics.jsonl", "run/evaluation.json", "weights.npz:*"),
    "algorithm-scaffold": ("run/clients.h5:*", "run/client_states.sqlite:*", "run/checkpoints/*"),
    "algorithm-fedavg": ("clients.csv",),
    "partition-feature-noise": ("run/metrics.jsonl", "store.h5:*"),
    "evaluation-kinds": ("predictions.csv *", "predictions.npz:* *", "printed by: eval *"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _parse(arguments)
    chosen = [each for each in CONFIGURATIONS if _is_chosen(each.name, options.only)]
    if not chosen:
        print(f"no configuration is called {' or '.join(options.only)}; --list shows them")
        return 2
    if options.list:
        print(*(f"{each.name}\n    " + "\n    ".join(_steps(each)) for each in chosen), sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="fedcli-equality-") as folder:
        return _run(options, chosen, Path(folder))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.equality",
        description="Run configurations with two fedcli executables and compare the results.",
    )
    parser.add_argument("before", type=Path, help="executable of the commit before")
    parser.add_argument("after", type=Path, nargs="?", help="executable of the commit after")
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="* for any")
    parser.add_argument("--jobs", type=int, default=2, help="configurations at once")
    parser.add_argument(
        "--leave-out",
        metavar="PATTERN",
        action="append",
        default=[],
        help="outputs that may differ, such as 'run/checkpoints/*'; they are still listed",
    )
    parser.add_argument("--list", action="store_true", help="show the configurations and end")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="compare BEFORE with itself with another seed, and require differences",
    )
    options = parser.parse_args(arguments)
    if options.after is None and not (options.list or options.self_check):
        parser.error("AFTER is missing: give two executables, or --list or --self-check")
    for name in ("before", "after"):
        path = getattr(options, name)
        if path is not None:
            setattr(options, name, path.absolute())
    if options.self_check:
        options.after, options.only = options.before, [*SELF_CHECK]
    return options


def _is_chosen(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _steps(configuration: Configuration) -> list[str]:
    return [*configuration.steps, *(f"(later) {step}" for step in configuration.later)]


def _run(options: argparse.Namespace, chosen: list[Configuration], scratch: Path) -> int:
    """Runs the chosen configurations and prints the differences; returns the exit code."""
    start = time.monotonic()
    inputs = scratch / "inputs"
    inputs.mkdir()
    write_inputs(inputs)
    after = Program(options.after, _changed if options.self_check else str)
    comparison = Comparison(Program(options.before), after, inputs, scratch / "runs")
    try:
        isas = _common_isas(options.before, options.after, scratch)
        not_used = _not_used(options.after, scratch)
    except StepError as err:
        print(err)
        return 2

    def compare(each: Configuration) -> Result:
        isa = each.environment.get("FEDCLI_ISA")
        if isa is not None and isa not in isas:
            return Result(each.name, skipped=f"this machine has no {isa}")
        return comparison.run(each)

    with ThreadPoolExecutor(options.jobs) as pool:
        results = []
        for result in pool.map(compare, chosen):
            results.append(_without(result, options.leave_out))
            _print(results[-1])
    seconds = time.monotonic() - start
    if options.self_check:
        return _judge_self_check(results)
    return _judge(results, not_used, seconds)


def _changed(step: str) -> str:
    """Returns a step with another seed or, for `eval`, with other clients."""
    command = step.split()[0]
    if command == "eval":
        return f"{step} --clients 2"
    is_drawn = command == "preprocess" or (command == "train" and "--resume" not in step)
    return f"{step} --seed 77" if is_drawn else step


def _common_isas(before: Path, after: Path, folder: Path) -> set[str]:
    """Returns the instruction sets that both programs can use on this machine."""
    told = [json.loads(run_command(each, ["info", "--json"], folder)) for each in (before, after)]
    for name in ("numpy", "h5py", "python"):
        if told[0][name] != told[1][name]:
            print(f"note: {name} is {told[0][name]} before and {told[1][name]} after")
    return set(told[0]["isas"]) & set(told[1]["isas"])


def _not_used(fedcli: Path, folder: Path) -> list[str]:
    def run(line: str) -> str:
        return run_command(fedcli, shlex.split(line), folder)

    return coverage.missing(run, CONFIGURATIONS)


def _without(result: Result, patterns: Sequence[str]) -> Result:
    """Returns the result without the differences that are allowed, and prints a note for each."""
    kept = {}
    for name, text in result.differences.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            print(f"left out   {result.name}: {name}: {text}")
        else:
            kept[name] = text
    return replace(result, differences=kept)


def _print(result: Result) -> None:
    if result.skipped is not None:
        print(f"skipped    {result.name}: {result.skipped}")
    elif result.failure is not None:
        print(f"FAILED     {result.name}: {result.failure}")
    elif result.differences:
        print(
            f"DIFFERENT  {result.name}: {len(result.differences)} of {result.num_compared} outputs"
        )
        shown = [*result.differences.items()]
        for name, text in shown[:MOST_SHOWN]:
            print(f"           {name}: {text}")
        if len(shown) > MOST_SHOWN:
            print(f"           and {len(shown) - MOST_SHOWN} more")
    else:
        print(f"equal      {result.name}: {result.num_compared} outputs, {result.seconds:.1f} s")
    sys.stdout.flush()


def _judge(results: Sequence[Result], not_used: Sequence[str], seconds: float) -> int:
    """Prints the totals; returns the exit code."""
    for each in not_used:
        print(f"not used   by any configuration: {each}")
    equal = sum(each.is_equal for each in results)
    skipped = sum(each.skipped is not None for each in results)
    compared = sum(each.num_compared for each in results)
    print(
        f"{equal} of {len(results)} configurations equal, {skipped} skipped, "
        f"{len(results) - equal - skipped} different or failed; {compared:,} outputs compared "
        f"in {seconds:.0f} s"
    )
    return int(equal + skipped < len(results) or bool(not_used))


def _judge_self_check(results: Sequence[Result]) -> int:
    """Checks that another seed has changed each output in SELF_CHECK; returns the exit code."""
    lacking = [
        f"{result.name}: {pattern}"
        for result in results
        for pattern in SELF_CHECK[result.name]
        if not any(fnmatchcase(name, pattern) for name in result.differences)
    ]
    for each in lacking:
        print(f"NOT FOUND  {each} should differ with another seed")
    if not lacking:
        print("self-check: with another seed, each of these outputs differs, as it must")
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
