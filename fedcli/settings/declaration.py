"""Declares the options of `fedcli train`, each once, as a field of `RunConfig`.

    client_dropout: float = option(0.0, number(0, 1, "P"), help="...", section=COHORT)

All of these follow from that line: the command line with its help and completion, the check of the
value, config.toml, whether a resumed run may change the option, and whether a comparison of runs
shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any, NamedTuple, TypeVar

from fedcli.errors import ConfigError, shown
from fedcli.settings.options import Value
from fedcli.settings.values import PAIRS, Kind, is_plain
from fedcli.settings.vocabulary import NONE

T = TypeVar("T")

# What an option changes: the examples or their owners, the results of the run, or neither.
EXAMPLES, RESULTS, NOTHING = "examples", "results", "nothing"

# Whether a resumed run may change an option. KEEP: no. EDIT: yes, in config.toml. GIVE: yes, in
# config.toml or beside --resume.
KEEP, EDIT, GIVE = "keep", "edit", "give"

# Parts of a run that some algorithms lack; these algorithms refuse an option that acts on the part.
LOCAL_STEPS, GLOBAL_MODEL = "local steps", "global model"


class Needs(NamedTuple):
    """Another option that must be given with this one.

    Attributes:
        option: The field of the other option.
        why: The rest of the error message, after the option and its value.
    """

    option: str
    why: str


class RunOption(NamedTuple):
    """The declaration of one option of a run; see `option`."""

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
        """Returns the value in the option's type; None is allowed only if the default is None.

        The text "none" also stands for None, if the option is a name.

        Raises:
            ConfigError: The value is not allowed; the message starts with `label`.
        """
        is_none = value is None or (value == NONE and self.kind.names is not None)
        if is_none and self.default is None:
            return None
        if isinstance(value, str) and not is_plain(value):
            raise ConfigError(
                f"{label} {shown(value)}: has a zero byte or an invalid character; leave it out"
            )
        return self.kind.check(label, value)

    @property
    def help_with_default(self) -> str:
        """The help text, then the needed option, if any, and the default if it is one value."""
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
        default: The value if the option is not given; None if it is then not set.
        kind: The values it takes, in Python, in files and on the command line.
        help: The text for --help and for Python's help. The default value and a needed option are
            added to it.
        section: The heading in --help, one of `SECTIONS`.
        usual: The value that None stands for, unless another option, such as the algorithm, sets
            it.
        changes: EXAMPLES, RESULTS or NOTHING.
        on_resume: KEEP, EDIT or GIVE; by default EDIT if the option changes nothing, else KEEP.
        acts_on: LOCAL_STEPS or GLOBAL_MODEL if algorithms without them refuse the option.
        needs: Another option that must be given, too.
    """
    if on_resume is None:
        on_resume = EDIT if changes == NOTHING else KEEP
    declared = RunOption(
        default, kind, help, section, usual, changes, on_resume, acts_on, needs, owner=""
    )
    return field(default=default, metadata={"option": declared})


def options_of(
    owner: str,
    *,
    help: str,
    section: str,
    changes: str = RESULTS,
    on_resume: str | None = None,
    acts_on: str = "",
) -> Mapping[str, Value]:
    """Returns a field for `k=v` options, such as those of the optimizer that another field names.

    Args:
        owner: The other field. The table of its kind lists the names with their options.
        help: As for `option`.
        section: As for `option`.
        changes: As for `option`.
        on_resume: As for `option`.
        acts_on: As for `option`.
    """
    if on_resume is None:
        on_resume = EDIT if changes == NOTHING else KEEP
    declared = RunOption({}, PAIRS, help, section, None, changes, on_resume, acts_on, None, owner)
    mapping: Mapping[str, Value] = field(default_factory=dict, metadata={"option": declared})
    return mapping


def declared_option(declared_field: Field[Any]) -> RunOption:
    """Returns the declaration of a field of `RunConfig`."""
    declared: RunOption = declared_field.metadata["option"]
    return declared


def option_name(field_name: str) -> str:
    """Returns the command-line option of a field: `client_options` is `--client-option`."""
    if field_name.endswith("_options"):
        field_name = field_name.removesuffix("s")
    return "--" + field_name.replace("_", "-")
