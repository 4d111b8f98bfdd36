"""Which of a user's files may be run: those that they name, never those that only a run names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.declaration import option_name
from fedcli.settings.options import opened, resolve, split_code
from fedcli.settings.own import user_code
from fedcli.settings.own.parts import DEFAULT_NAME
from fedcli.settings.run_config import CODE_FIELDS, OPTION_OWNERS, OPTIONS, RunConfig

MODEL = "model"
PARTITION = "partition"


class CodeOptions(TypedDict, total=False):
    """A user's files, FILE.py or FILE.py:NAME, that a run's fields name; None: not given."""

    algorithm: str | None
    aggregator: str | None
    server_optimizer: str | None
    sampling: str | None
    partition: str | None


def code_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns by field the FILE.py or FILE.py:NAME that some options name, without what follows."""
    found = {}
    for name in CODE_FIELDS:
        text = values.get(name)
        code = None if text is None else _code_of(name, str(text))
        if code is not None:
            found[name] = code
    return found


def python_file(field: str, text: str) -> Path | None:
    """Returns the file that a field names if that is a user's code; None: it is not."""
    code = _code_of(field, text)
    found = None if code is None else split_code(code)
    return None if found is None else Path(found[0])


def with_code(
    config: RunConfig, given: Mapping[str, Any], fields: tuple[str, ...] = CODE_FIELDS
) -> RunConfig:
    """Returns a config whose code is what the user named, which alone may be run.

    Args:
        config: Of a run.
        given: By field what the user named; FILE.py alone means the config's function.
        fields: Those of which the code is needed.

    Raises:
        ConfigError: Code is needed that is not named, or named where the run has none.
    """
    of_run = code_in({name: getattr(config, name) for name in fields})
    wanted = {name: text for name, text in given.items() if text is not None and name in fields}
    missing = [name for name in of_run if name not in wanted]
    if missing:
        raise ConfigError(_missing(of_run, missing))
    allowed: dict[str, Any] = {}
    for name, text in wanted.items():
        if name not in of_run:
            raise ConfigError(
                f"{option_name(name)} {text}: it is for runs whose {_noun(name)} is code, and this "
                f"run's is {getattr(config, name)}; leave it out"
            )
        allowed[name] = allowed_code(name, getattr(config, name), text)
    return replace(config, **allowed) if allowed else config


def allowed_code(field: str, of_run: str, given: str | None) -> str:
    """Returns the FILE.py:NAME to run for a run whose field names code.

    Args:
        field: Such as "model".
        of_run: What the run's config has there.
        given: What the user gave; FILE.py alone means the config's function. None: nothing.

    Raises:
        ConfigError: Nothing was given, or no code.
    """
    code = _code_of(field, of_run)
    assert code is not None
    if given is None:
        raise ConfigError(_missing({field: code}, [field]))
    named = _code_of(field, given)
    if named is None:
        raise ConfigError(
            f"{option_name(field)} {given}: this run's {_noun(field)} is code in "
            f"{python_file(field, of_run)}; give {option_name(field)} {code}, or where that file "
            "is now"
        )
    file, name = split_code(named) or ("", None)
    name = name or (split_code(code) or ("", None))[1]
    text = f"{file}:{name}" if name else file
    if field == PARTITION:
        text = "+".join([text, *tables.split_code_of_deal(of_run)[1]])
    return text


def is_same_code(field: str, one: str, other: str) -> bool:
    """Tells whether two values of a field name the same file of code and the same function.

    A part without a name is that of the other.
    """
    places = []
    for text in (one, other):
        code = _code_of(field, text)
        found = None if code is None else split_code(code)
        if found is None:
            return False
        name = found[1] or (DEFAULT_NAME if field == MODEL else None)
        places.append((os.path.normpath(Path(found[0]).absolute()), name))
    (file, name), (other_file, other_name) = places
    return file == other_file and (name == other_name or None in (name, other_name))


def with_partition(config: RunConfig, given: Mapping[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """Returns the config of a run whose data are to be opened, and what else is given of data.

    Where the run's partition is code, that is named again among what is given.

    Args:
        config: Of the run.
        given: Fields of `DataSource` by name.

    Raises:
        ConfigError: The partition is code, and it is not named.
    """
    others = dict(given)
    if "data" in given or _code_of(PARTITION, config.partition) is None:
        return config, others
    named = given.get(PARTITION)
    if named is not None and not is_same_code(PARTITION, config.partition, named):
        return config, others  # another partition
    allowed = allowed_code(PARTITION, config.partition, named)
    others.pop(PARTITION)
    return replace(config, partition=allowed), others


def complete(config: RunConfig) -> RunConfig:
    """Returns a valid config with the names and all options of a user's parts. Runs their files.

    Raises:
        ConfigError: An option is unknown, or has a value that is not allowed.
        PartError: A file fails, or has no such part.
    """
    changed: dict[str, Any] = {}
    owned = {owner: name for name, owner in OPTION_OWNERS.items()}
    for field, code in code_in({name: getattr(config, name) for name in CODE_FIELDS}).items():
        if field == MODEL:
            continue  # its function checks them
        text, options_name = getattr(config, field), owned[field]
        if field == PARTITION:
            entry = tables.opened_partition(text)
        else:
            names = OPTIONS[field].kind.names
            assert names is not None
            entry = opened(names()[text])
        try:
            changed[options_name] = resolve(entry, getattr(config, options_name))
        except ConfigError as err:
            raise ConfigError(f"{option_name(options_name)}: {err}") from err
        file, _ = split_code(code) or ("", None)
        named = f"{file}:{entry.code.rpartition(':')[2]}"
        changed[field] = named + text.removeprefix(code)
    return replace(config, **changed) if changed else config


def fingerprints(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns what names the content of the files of code that some options name, by field.

    Raises:
        OwnCodeError: One cannot be read.
    """
    found = {}
    for field in code_in(values):
        file = python_file(field, values[field])
        assert file is not None
        found[field] = user_code.fingerprint(file, _noun(field))
    return found


def notes_of_changes(values: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a line for each file of code that has changed since the run began.

    Args:
        values: By field the code that is run.
        origin: The run's provenance, which says what it was; what it does not say is not known.

    Raises:
        OwnCodeError: A file cannot be read.
    """
    return tuple(
        f"{python_file(field, values[field])} has changed since the run began; the "
        f"{_noun(field)} is what it makes now"
        for field, now in fingerprints(values).items()
        if origin.get(field) not in (None, now)
    )


def named_again(config: RunConfig) -> dict[str, str]:
    """Returns what must be said again to continue a run: its code, by option."""
    values = {name: getattr(config, name) for name in CODE_FIELDS}
    return {option_name(name): values[name] for name in code_in(values)}


def _code_of(field: str, text: str) -> str | None:
    """The FILE.py or FILE.py:NAME in a value of a field; None: it is no code."""
    if field == PARTITION:
        return tables.split_code_of_deal(text)[0]
    return None if split_code(text) is None else text


def _noun(field: str) -> str:
    return "sampler" if field == "sampling" else field.replace("_", " ")


def _missing(of_run: Mapping[str, str], missing: list[str]) -> str:
    """What to say where a run's code is not named."""
    words = " ".join(f"{option_name(name)} {of_run[name]}" for name in missing)
    nouns = list(map(_noun, missing))
    if len(nouns) > 1:
        listed = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        return f"this run's {listed} are code; pass {words} to run it"
    file = python_file(missing[0], of_run[missing[0]])
    return f"this run's {nouns[0]} is code in {file}; pass {words} to run it"
