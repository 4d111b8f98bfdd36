"""The `fedcli` command: a group of lazily imported commands inside one error boundary.

Only this module converts errors to one line on stderr and an exit code. 0: success; 1: a
`FedcliError`, or an error of a file or of memory; 2: wrong usage; 130: Ctrl-C; 141: the reader of
the output has ended; 143: SIGTERM. A traceback means a bug in fedcli.
"""

from __future__ import annotations

import importlib
import io
import os
import platform
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fedcli.cli.jobs.collection import put_off_collection
from fedcli.cli.jobs.ending import end_process
from fedcli.cli.jobs.signals import Stopped, exit_code_of, stop_on_sigterm
from fedcli.cli.screen.output import one_line
from fedcli.errors import FedcliError, on_command_line
from fedcli.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Where each command is defined, and what it does, in a few words.
COMMANDS = {
    "train": ("fedcli.cli.train:train", "Train a model; results go to a run directory."),
    "sweep": ("fedcli.cli.sweep:sweep", "Run a study of many runs; print its table."),
    "eval": ("fedcli.cli.evaluate:evaluate", "Evaluate a run on any split or clients."),
    "inspect-clients": (
        "fedcli.cli.inspect_clients:inspect_clients",
        "Show who the clients are: sizes, labels, images.",
    ),
    "audit": ("fedcli.cli.audit:audit", "Attack a run's privacy, to see what it reveals."),
    "report": ("fedcli.cli.report:report", "Tables, curves and comparison of runs."),
    "runs": ("fedcli.cli.runs:runs", "List runs with state, last figures and size."),
    "clean": ("fedcli.cli.clean:clean", "Remove what finished runs no longer need."),
    "preprocess": (
        "fedcli.cli.preprocess:preprocess",
        "Make a fedcli store of data in any format.",
    ),
    "download": ("fedcli.cli.download:download", "Fetch a public dataset, for --data NAME."),
    "export": ("fedcli.cli.export:export", "Write a run's model for NumPy, Keras or PyTorch."),
    "verify": ("fedcli.cli.verify:verify", "Train runs again and compare the results."),
    "bundle": ("fedcli.cli.bundle:bundle", "Pack runs for others to verify."),
    "bench": ("fedcli.cli.bench:bench", "Measure this machine's speed, and its limits."),
    "info": ("fedcli.cli.info:info", "Show versions, and what can be chosen by name."),
    "help": ("fedcli.cli.help:show_help", "Show the manual: a page, or the list of pages."),
}


class LazyGroup(click.Group):
    """A group that imports the module of a command only if the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order in which a user needs them: train, evaluate, inspect."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns one command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that a command line names.

        The usage error for an unknown command suggests similar names.
        """
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        import difflib  # lazy: only mistakes need it

        from fedcli.cli import peer_options

        wanted = peer_options.COMMANDS.get(name.lower())
        near = [wanted] if wanted else difflib.get_close_matches(name.lower(), COMMANDS, n=2)
        hint = f"; did you mean fedcli {' or fedcli '.join(near)}?" if near else ""
        raise click.UsageError(f"No such command '{name}'{hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line for each command, without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Returns the commands and options that start with the typed word. Imports no command."""
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=short_help)
            for name, (_, short_help) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", message="fedcli %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Train, evaluate and inspect federated image classifiers, simulated on this machine's CPU.

    \b
    Examples:
      fedcli train                              ten rounds on the embedded digits
      fedcli preprocess photos --out photos.h5  your own data, in any format
      fedcli train --data photos.h5             the same rounds on these data
      fedcli inspect-clients                    who the clients are
      fedcli COMMAND -h                         options and examples of one command
      fedcli help                               the manual: tutorial, data, models, ...

    \b
    Tab completion (put the line for your shell in its startup file):
      bash  eval "$(_FEDCLI_COMPLETE=bash_source fedcli)"
      zsh   eval "$(_FEDCLI_COMPLETE=zsh_source fedcli)"
      fish  _FEDCLI_COMPLETE=fish_source fedcli | source
    """  # noqa: D301 - \b keeps click from wrapping
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process with its code."""
    put_off_collection()
    _hide_arithmetic_warnings()
    code = run(arguments)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is saved, so Ctrl-C may end Python
    end_process(code)


def _hide_arithmetic_warnings() -> None:
    """Hides NumPy's warnings about fedcli's own arithmetic, because users cannot act on them.

    Numbers that must be finite are checked. Warnings from users' code are shown.
    """
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"fedcli\.")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code. An error is one line on stderr."""
    try:
        with on_command_line():
            code = _run_unguarded(arguments)
        sys.stdout.flush()
    except click.UsageError as err:
        return _complain(_usage_line(err), 2, prefix="")
    except click.ClickException as err:
        return _complain(err.format_message(), err.exit_code)
    except FedcliError as err:
        return _complain(str(err), 1)
    except SystemExit as err:  # click and rich raise it when the reader of stdout has ended
        return 0 if err.code == 0 else _end_quietly()  # 0: shell completion is done
    except BrokenPipeError:
        return _end_quietly()
    except OSError as err:
        return _complain(_os_line(err), 1)
    except MemoryError as err:
        wanted = f" ({err})" if str(err) else ""
        return _complain(f"out of memory{wanted}; use fewer threads or a smaller model", 1)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", exit_code_of(signal.SIGINT), prefix="fedcli: ")
    except Stopped as err:
        return _complain(str(err), exit_code_of(err.signal_num), prefix="fedcli: ")
    return code


def _run_unguarded(arguments: Sequence[str] | None) -> int:
    # No command uses NumPy's BLAS. Its threads would compete with the core's while they start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # h5py reads platform.uname(). To find its last part, `processor`, Python would start a program.
    vars(platform.uname()).setdefault("processor", "")
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some names cannot be shown
    with stop_on_sigterm():
        code = group.main(arguments, prog_name="fedcli", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _open_missing_streams() -> None:
    """Opens /dev/null for closed standard streams, so that no file gets their descriptors."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end


def _complain(text: str, code: int, *, prefix: str = "fedcli: error: ") -> int:
    try:
        print(prefix + one_line(text), file=sys.stderr, flush=True)
    except OSError:
        _discard_output()
    return code


def _usage_line(err: click.UsageError) -> str:
    path = err.ctx.command_path if err.ctx else "fedcli"
    text = " ".join(err.format_message().split()).rstrip(".")
    return f"{path}: {text}; see '{path} -h'"


def _os_line(err: OSError) -> str:
    what = f"{os.fsdecode(err.filename)}: " if isinstance(err.filename, str | bytes) else ""
    return f"{what}{err.strerror or err}"


def _end_quietly() -> int:
    _discard_output()
    return exit_code_of(signal.SIGPIPE)


def _discard_output() -> None:
    r"""Redirects both streams to /dev/null, so that the last flush at exit cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
