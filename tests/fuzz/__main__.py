"""`python -m tests.fuzz [SECONDS] [--inputs N] [--target NAME] [--seed N] [--keep DIR]`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path


def main() -> int:
    """Fuzzes each target for its share of the time; returns 1 if there are findings."""
    # Children are forked, so this process must have no threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tests.fuzz.runner import fuzz, import_all
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "seconds", type=float, nargs="?", default=60.0, help="for all targets together; default: 60"
    )
    parser.add_argument("--inputs", type=int, help="inputs of each target, instead of SECONDS")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes; default: 0")
    parser.add_argument("--keep", type=Path, help="a folder for inputs with findings")
    options = parser.parse_args()
    import_all()
    names = options.target or list(TARGETS)
    reports = []
    for name in names:
        share = options.seconds / len(names) if options.inputs is None else math.inf
        most = options.inputs or sys.maxsize
        reports.append(fuzz(name, TARGETS[name], share, options.seed, options.keep, most))
        print(reports[-1].line(), flush=True)
    findings = [finding for report in reports for finding in report.findings]
    print(f"{sum(each.num_inputs for each in reports)} inputs, {len(findings)} findings")
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
