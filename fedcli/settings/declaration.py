"""How an option of `fedcli train` is declared: once, as a field of `RunConfig`.

    client_dropout: float = option(0.0, number(0, 1, "P"), help="...", section=COHORT)

The command line, its help and completion, the check of the value, config.toml, what a resumed run
may change and what a comparison of runs leaves out all follow from that line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any, NamedTuple, TypeVar

from fedcli.errors import ConfigError
from fedcli.settings.options import Value
from fedcli.settings.values import PAIRS, Kind, is_plain, shown

T = TypeVar("T")

# What another value of an option changes: the examples or who holds them, what the run finds, or
# nothing of either.
EXAMPLES, RESULTS, NOTHING = "examples", "results", "nothing"

# What a resumed run may do with an option: keep the value its rounds so far were trained with, have
# another one written in config.toml, or also be given another one beside --resume.
KEEP, EDIT, GIVE = "keep", "edit", "give"

# What an option acts on that some algorithms do not have.
LOCAL_STEPS, GLOBAL_MODEL = "local steps", "global model"


class Needs(NamedTuple):
    """Another option without which this one has no sense.

    Attributes:
        option: The field of the other one.
        why: Follows the option and its value in the message of a run without the other.
    """

    option: str
    why: str


class RunOption(NamedTuple):
    """What `RunConfig` declares of one option; see `option`."""

    default: Any
    kind: Kind
    help: str
    section: str
    usual: Any
    changes: str
    on_resume: str
    acts_on: str
    needs: Needs | None
    owner: str

    def checked(self, label: str, value: Any) -> Any:
        """Returns a value in its own type; None is allowed only where the default is None.

        Raises:
            ConfigError: The value is not allowed; the message starts with `label`.
        """
        if value is None and self.default is None:
            return None
        if isinstance(value, str) and not is_plain(value):
            raise ConfigError(
                f"{label} {shown(value)}: holds a zero byte or half a character; leave it out"
            )
        return self.kind.check(label, value)

    @property
    def help_with_default(self) -> str:
        """The help text, with the option that is needed and the default where it is one value."""
        needs = f" Needs {option_name(self.needs.option)}." if self.needs else ""
        default = self.usual if self.default is None else self.default
        is_shown = default is not None and not isinstance(default, bool | Mapping)
        return self.help + needs + (f"  [default: {default}]" if is_shown else "")


def option(
    default: T,
    kind: Kind,
    *,
    help: str,
    section: str,
    usual: str | float | None = None,
    changes: str = RESULTS,
    on_resume: str | None = None,
    acts_on: str = "",
    needs: Needs | None = None,
) -> T:
    """Returns a field of `RunConfig` that declares an option of `fedcli train`.

    Args:
        default: What holds where nothing is given; None: not set.
        kind: What values it takes, in Python, in files and on the command line.
        help: What it is, for --help and Python's help. The default and the option that is needed
            are added to it.
        section: The heading of --help it stands under, one of `SECTIONS`.
        usual: What None stands for unless something else decides, such as the algorithm.
        changes: EXAMPLES, RESULTS or NOTHING.
        on_resume: KEEP, EDIT or GIVE; by default EDIT if the option changes nothing, else KEEP.
        acts_on: LOCAL_STEPS or GLOBAL_MODEL, if an algorithm without them refuses the option.
        needs: The option that must be given, too.
    """
    if on_resume is None:
        on_resume = EDIT if changes == NOTHING else KEEP
    declared = RunOption(
        default, kind, help, section, usual, changes, on_resume, acts_on, needs, owner=""
    )
    return field(default=default, metadata={"option": declared})


def options_of(
    owner: str, *, help: str, section: str, changes: str = RESULTS, acts_on: str = ""
) -> Mapping[str, Value]:
    """Returns a field for the `k=v` options of what another field names.

    Args:
        owner: That field; its kind has the table in which the names and their options stand.
        help: As for `option`.
        section: As for `option`.
        changes: As for `option`.
        acts_on: As for `option`.
    """
    declared = RunOption({}, PAIRS, help, section, None, changes, KEEP, acts_on, None, owner)
    mapping: Mapping[str, Value] = field(default_factory=dict, metadata={"option": declared})
    return mapping


def declared_option(declared_field: Field[Any]) -> RunOption:
    """Returns what a field of `RunConfig` declares."""
    declared: RunOption = declared_field.metadata["option"]
    return declared


def option_name(field_name: str) -> str:
    """Returns the command-line option of a field: `client_options` is `--client-option`."""
    if field_name.endswith("_options"):
        field_name = field_name.removesuffix("s")
    return "--" + field_name.replace("_", "-")
