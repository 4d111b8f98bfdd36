"""The start of `fedcli` and of `python -m fedcli`: imports the command line and runs it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line. Ctrl-C ends it with one line even while modules are imported."""
    try:
        from fedcli.cli.main import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:  # the parent may have closed it
            sys.stderr.write("fedcli: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
