"""Refuses a list of values for an option that takes one, and suggests a sweep over them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import click

from fedcli.cli import options as opt


class OneValueCommand(opt.SectionCommand):
    """A command that refuses a list of values for an option that takes one, and suggests a sweep.

    Attributes:
        sweep: The command that is suggested, before --grid; empty in `fedcli sweep` itself.
        named: Options whose value never has a comma in this command, besides choices and numbers.
    """

    sweep = ""
    named: Collection[str] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments, after a check for lists of values."""
        names = {name: each for each in self.params for name in each.opts}
        for word, value in _words_and_values(args):
            option = names.get(word)
            if "," in value and isinstance(option, opt.SectionOption) and self._takes_one(option):
                key = f"--seeds {value}" if word == "--seed" else f"--grid {option.name}={value}"
                raise click.UsageError(
                    f"{word} takes one value; {self.sweep}{key} runs each of them", ctx
                )
        return super().parse_args(ctx, args)

    def _takes_one(self, option: opt.SectionOption) -> bool:
        """Whether it is an option of a run whose value never has a comma."""
        from fedcli.settings.run_config import RunConfig  # lazy: only mistakes need it

        if option.name not in RunConfig.__dataclass_fields__:
            return False
        is_choice = option.names is not None or isinstance(option.type, click.Choice)
        return is_choice or option.type in (click.INT, click.FLOAT) or option.name in self.named


def _words_and_values(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word with the one after it, and the halves of each word with an equals sign."""
    yield from pairwise(args)
    for each in args:
        word, has_value, value = each.partition("=")
        if has_value:
            yield word, value
