"""Writes the text of config.toml, and reads the fields that it sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.settings.run_config import OPTION_OWNERS, OPTIONS, RunConfig
from fedcli.settings.toml_values import parse_toml


def to_toml(config: RunConfig, provenance: Mapping[str, Any]) -> str:
    """Returns the text of config.toml: `[run]` has the options, `[provenance]` the run's origin."""
    import tomli_w  # lazy: it takes a millisecond, and only a new run needs it

    values = {name: getattr(config, name) for name in OPTIONS}
    plain = {name: value for name, value in values.items() if name not in OPTION_OWNERS}
    run: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in plain.items()
        if value is not None
    }
    run.update((name, dict(values[name])) for name in OPTION_OWNERS if values[name])
    return tomli_w.dumps({"run": run, "provenance": dict(provenance)})


def from_toml(text: str, source: str) -> dict[str, Any]:
    """Returns the fields that a config.toml sets; `source` names the file in errors.

    Raises:
        ConfigError: The text is not TOML, a key is no option, or a value is not allowed.
    """
    return read(text, source)[0]


def read(text: str, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields that a config.toml sets, and its table `[provenance]`.

    Raises:
        ConfigError: The text is not TOML, a key is no option, or a value is not allowed.
    """
    document = parse_toml(text, source)
    run = document.get("run")
    if not isinstance(run, dict) or not document.keys() <= {"run", "provenance"}:
        have = ", ".join(document) or "nothing"
        raise ConfigError(f"{source} holds {have}; it needs one table [run] of train options")
    for key in run:
        if key not in OPTIONS:
            raise ConfigError(
                f"{source}: [run] has no key '{key}'; keys are the options of fedcli train, "
                "with underscores"
            )
    values = {key: OPTIONS[key].checked(f"{source}: {key}", value) for key, value in run.items()}
    return values, _provenance_of(document)


def read_provenance(text: str, source: str) -> dict[str, Any]:
    """Returns the table `[provenance]` of a config.toml; empty if there is none.

    Raises:
        ConfigError: The text is not TOML.
    """
    return _provenance_of(parse_toml(text, source))


def _provenance_of(document: Mapping[str, Any]) -> dict[str, Any]:
    provenance = document.get("provenance")
    return provenance if isinstance(provenance, dict) else {}
