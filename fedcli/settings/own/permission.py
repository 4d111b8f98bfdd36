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
from fedcli.settings.values import in_order

MODEL = "model"
PARTITION = "partition"
METRICS = "metrics"  # the one field that may name several files


_NOUNS = {"sampling": "sampler", METRICS: "metric"}


class CodeOptions(TypedDict, total=False):
    """A user's files, FILE.py or FILE.py:NAME, that a run's fields name; None: not given."""

    algorithm: str | None
    aggregator: str | None
    server_optimizer: str | None
    sampling: str | None
    partition: str | None
    metrics: str | None


def code_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns by field the FILE.py or FILE.py:NAME that some options name, without what follows."""
    found = {}
    for name in CODE_FIELDS:
        text = values.get(name)
        code = None if text is None else _code_of(name, text)
        if code is not None:
            found[name] = code
    return found


def python_file(field: str, text: Any) -> Path | None:
    """Returns the (first) file that a field names if that is a user's code; None: it is not."""
    files = _python_files(field, text)
    return files[0] if files else None


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


def allowed_code(field: str, of_run: Any, given: str | None) -> Any:
    """Returns the value of a field of a run, whose FILE.py:NAME is to be run.

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
    if field == METRICS:
        return _allowed_metrics(code, named, of_run)
    text = _with_name(named, code)
    if field == PARTITION:
        text = "+".join([text, *tables.split_code_of_deal(of_run)[1]])
    return text


def _with_name(named: str, code: str) -> str:
    """FILE.py:NAME of the file that was named, with the name in `code` if it had none."""
    file, name = split_code(named) or ("", None)
    name = name or (split_code(code) or ("", None))[1]
    return f"{file}:{name}" if name else file


def _allowed_metrics(code: str, named: str, of_run: Any) -> tuple[str, ...]:
    """The metrics of a run, its own code where it is named.

    A file is that of a metric if it is named with its name, or without one.
    """
    found = [each for each in _listed(of_run) if split_code(each) is None]
    for each in code.split(","):
        name = (split_code(each) or ("", None))[1]
        files = [
            item for item in named.split(",") if (split_code(item) or ("", ""))[1] in (name, None)
        ]
        if not files:
            raise ConfigError(_missing({METRICS: each}, [METRICS]))
        found.append(_with_name(files[0], each))
    return in_order(found)


def is_same_code(field: str, one: Any, other: Any) -> bool:
    """Tells whether two values of a field name the same file of code and the same function.

    A part without a name is that of the other.
    """
    if field == METRICS:
        pairs = [(_code_of(field, one) or "").split(","), (_code_of(field, other) or "").split(",")]
        return len(pairs[0]) == len(pairs[1]) and all(
            any(is_same_code("metric", left, right) for right in pairs[1]) for left in pairs[0]
        )
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
        if field == METRICS:
            changed[field] = complete_metrics(getattr(config, field))
            continue
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


def complete_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns metrics, those of a user's with their names. Runs their files.

    Raises:
        PartError: A file fails, or has no such metric.
    """
    found = []
    for each in names:
        code = split_code(each)
        if code is not None:
            each = f"{code[0]}:{opened(tables.METRICS[each]).code.rpartition(':')[2]}"
        found.append(each)
    return in_order(found)


def fingerprints(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns what names the content of the files of code that some options name, by field.

    Raises:
        OwnCodeError: One cannot be read.
    """
    found = {}
    for field in code_in(values):
        files = dict.fromkeys(_python_files(field, values[field]))
        found[field] = " ".join(user_code.fingerprint(file, _noun(field)) for file in files)
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
    code = code_in(values)
    return {option_name(name): code[name] if name == METRICS else values[name] for name in code}


def _python_files(field: str, text: Any) -> list[Path]:
    """The files of code that a field names."""
    codes = (
        (_code_of(field, text) or "").split(",") if field == METRICS else [_code_of(field, text)]
    )
    found = [split_code(code) for code in codes if code]
    return [Path(each[0]) for each in found if each is not None]


def _listed(text: Any) -> list[str]:
    """The metrics in a list, or in a text with commas."""
    return text.split(",") if isinstance(text, str) else list(text)


def _code_of(field: str, text: Any) -> str | None:
    """The FILE.py or FILE.py:NAME in a value of a field; None: it is no code."""
    if field == METRICS:
        return ",".join(each for each in _listed(text) if split_code(each) is not None) or None
    if field == PARTITION:
        return tables.split_code_of_deal(text)[0]
    return None if split_code(text) is None else text


def _noun(field: str) -> str:
    return _NOUNS.get(field, field.replace("_", " "))


def _missing(of_run: Mapping[str, str], missing: list[str]) -> str:
    """What to say where a run's code is not named."""
    words = " ".join(f"{option_name(name)} {of_run[name]}" for name in missing)
    nouns = list(map(_noun, missing))
    if len(nouns) > 1:
        listed = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        return f"this run's {listed} are code; pass {words} to run it"
    file = python_file(missing[0], of_run[missing[0]])
    return f"this run's {nouns[0]} is code in {file}; pass {words} to run it"
