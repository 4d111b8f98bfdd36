"""Decides which Python files may be run.

A run's config may name Python files. Such a file is executed only if the user names it again in
this call: a run folder, which may come from another person, never executes code by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.declaration import option_name
from fedcli.settings.options import Value, did_you_mean, opened, resolve, split_code
from fedcli.settings.own import user_code
from fedcli.settings.own.parts import DEFAULT_NAME, options_for
from fedcli.settings.run_config import CODE_FIELDS, OPTION_OWNERS, OPTIONS, RunConfig
from fedcli.settings.values import check_selection_metrics, in_order

MODEL = "model"
PARTITION = "partition"
METRICS = "metrics"  # the one field that may name several files


_NOUNS = {"sampling": "sampler", METRICS: "metric"}


class CodeOptions(TypedDict, total=False):
    """The user's Python files by field of the config: FILE.py or FILE.py:NAME, or None."""

    algorithm: str | None
    aggregator: str | None
    server_optimizer: str | None
    sampling: str | None
    partition: str | None
    metrics: str | None


def code_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the FILE.py or FILE.py:NAME of each field whose value names code.

    Changes that are joined to a partition's code by + are left out.
    """
    codes = {}
    for name in CODE_FIELDS:
        text = values.get(name)
        code = None if text is None else _code_of(name, text)
        if code is not None:
            codes[name] = code
    return codes


def python_file(field: str, text: Any) -> Path | None:
    """Returns the first Python file that a field names; None if it names none."""
    files = _python_files(field, text)
    return files[0] if files else None


def with_code(
    config: RunConfig, named: Mapping[str, Any], fields: tuple[str, ...] = CODE_FIELDS
) -> RunConfig:
    """Returns a run's config in which all code is replaced by the code that the user named.

    Args:
        config: The run's config.
        named: The code that the user named, by field. FILE.py without a name selects the
            config's function.
        fields: The fields whose code will be executed.

    Raises:
        ConfigError: The user did not name some code, or named code where the run has none.
    """
    of_run = code_in({name: getattr(config, name) for name in fields})
    by_user = {
        name: OPTIONS[name].checked(option_name(name), text)
        for name, text in named.items()
        if text is not None and name in fields
    }
    missing = [name for name in of_run if name not in by_user]
    if missing:
        raise ConfigError(_missing(of_run, missing))
    allowed: dict[str, Any] = {}
    for name, text in by_user.items():
        if name not in of_run:
            of_this = getattr(config, name)
            has = "has none" if of_this is None else f"has {_written(of_this)}"
            raise ConfigError(
                f"{option_name(name)} {_written(text)}: this option is for runs whose "
                f"{_noun(name)} is code, but this run {has}; leave it out"
            )
        allowed[name] = allowed_code(name, getattr(config, name), text)
    return replace(config, **allowed) if allowed else config


def allowed_code(field: str, of_run: Any, by_user: str | None) -> Any:
    """Returns the value of one field in which the run's code is replaced by the user's.

    Args:
        field: The field of the config, such as "model".
        of_run: The value in the run's config, which names code.
        by_user: The user's value, or None. FILE.py without a name selects the config's function.

    Raises:
        ConfigError: The user gave nothing, or a value that is not code.
    """
    code = _code_of(field, of_run)
    assert code is not None
    if by_user is None:
        raise ConfigError(_missing({field: code}, [field]))
    named = _code_of(field, by_user)
    if named is None:
        raise ConfigError(
            f"{option_name(field)} {_written(by_user)}: this run's {_noun(field)} is code in "
            f"{python_file(field, of_run)}; give {option_name(field)} {code}, or the file's "
            "present path"
        )
    if field == METRICS:
        return _allowed_metrics(code, named, of_run)
    text = _with_name(named, code)
    before, now = ((split_code(each) or ("", None))[1] for each in (code, text))
    if before not in (None, now) and field != MODEL:
        raise ConfigError(
            f"{option_name(field)} {_written(by_user)}: this run's {_noun(field)} is {before} in "
            f"{python_file(field, of_run)}; leave out :{now}, or start another run with --config"
        )
    if field == PARTITION:
        text = "+".join([text, *tables.split_code_of_scheme(of_run)[1]])
    return text


def _with_name(named: str, code: str) -> str:
    """Returns `named` as FILE.py:NAME; a missing name is taken from `code`."""
    file, name = split_code(named) or ("", None)
    name = name or (split_code(code) or ("", None))[1]
    return f"{file}:{name}" if name else file


def _allowed_metrics(code: str, named: str, of_run: Any) -> tuple[str, ...]:
    """Returns the run's metrics in which each FILE.py:NAME has the file that the user named.

    A named file belongs to a metric if it is given with the metric's name, or without a name.
    """
    metrics = [each for each in _listed(of_run) if split_code(each) is None]
    for each in code.split(","):
        name = (split_code(each) or ("", None))[1]
        files = [
            item for item in named.split(",") if (split_code(item) or ("", ""))[1] in (name, None)
        ]
        if not files:
            raise ConfigError(_missing({METRICS: each}, [METRICS]))
        metrics.append(_with_name(files[0], each))
    return in_order(metrics)


def is_same_code(field: str, one: Any, other: Any) -> bool:
    """Tells whether two values of a field name the same Python file and the same function.

    A value without a function name equals every function of the file.
    """
    if field == METRICS:
        pairs = [(_code_of(field, one) or "").split(","), (_code_of(field, other) or "").split(",")]
        return len(pairs[0]) == len(pairs[1]) and all(
            any(is_same_code("metric", left, right) for right in pairs[1]) for left in pairs[0]
        )
    places = []
    for text in (one, other):
        code = _code_of(field, text)
        parts = None if code is None else split_code(code)
        if parts is None:
            return False
        name = parts[1] or (DEFAULT_NAME if field == MODEL else None)
        places.append((os.path.normpath(Path(parts[0]).absolute()), name))
    (file, name), (other_file, other_name) = places
    return file == other_file and (name == other_name or None in (name, other_name))


def with_partition(
    config: RunConfig, data_fields: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, Any]]:
    """Moves the user's permission to run a partition's code from `data_fields` into the config.

    Args:
        config: The config of the run whose data will be opened.
        data_fields: Fields of `DataSource` by name, from the user.

    Returns:
        The config, with the user's code if the run's partition is code; and the other fields.

    Raises:
        ConfigError: The partition is code, and the user did not name it.
    """
    others = dict(data_fields)
    if "data" in data_fields or _code_of(PARTITION, config.partition) is None:
        return config, others
    named = data_fields.get(PARTITION)
    if named is not None:
        named = OPTIONS[PARTITION].checked(option_name(PARTITION), named)
    if named is not None and not is_same_code(PARTITION, config.partition, named):
        return config, others  # another partition
    allowed = allowed_code(PARTITION, config.partition, named)
    others.pop(PARTITION)
    return replace(config, partition=allowed), others


def complete(config: RunConfig) -> RunConfig:
    """Returns a config that names the functions and all options of the user's own parts.

    The parts' files are executed.

    Raises:
        ConfigError: An option is unknown, or has a value that is not allowed.
        PartError: A file fails, or has no such part.
    """
    changed: dict[str, Any] = {}
    owned = {owner: name for name, owner in OPTION_OWNERS.items()}
    for field, code in code_in({name: getattr(config, name) for name in CODE_FIELDS}).items():
        if field == MODEL:
            continue  # the model's options are checked when its function is called
        if field == METRICS:
            changed[field] = complete_metrics(config.metrics or (), config.metric_options)
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
    completed = replace(config, **changed) if changed else config
    check_selection_metrics(vars(completed))  # only now the names of all metrics are known
    return completed


def complete_metrics(names: Sequence[str], options: Mapping[str, Value]) -> tuple[str, ...]:
    """Returns the metrics, in which each FILE.py has become FILE.py:NAME. Executes the files.

    Args:
        names: Names of metrics.
        options: Options of the user's own metrics. Each metric receives those it declares.

    Raises:
        ConfigError: No metric has such an option, or its value is not allowed.
        PartError: A file fails, or has no such metric.
    """
    completed, unused = [], dict(options)
    declared: list[str] = []
    for each in names:
        if each in tables.METRICS:
            completed.append(each)
            continue
        entry, code = opened(tables.METRICS[each]), split_code(each)
        completed.append(each if code is None else f"{code[0]}:{entry.code.rpartition(':')[2]}")
        declared += [option.name for option in entry.options]
        own_options = options_for(entry, options)
        try:
            resolve(entry, own_options)
        except ConfigError as err:
            raise ConfigError(f"--metric-option: {err}") from err
        for name in own_options:
            unused.pop(name, None)
    for name in unused:
        has = f"their options are {', '.join(dict.fromkeys(declared))}" if declared else "none has"
        raise ConfigError(
            f"--metric-option {name}: no metric of your own has it; {has}"
            f"{did_you_mean(name, declared)}"
        )
    return in_order(completed)


def fingerprints(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the hashes of the Python files that each field names, separated by spaces.

    Raises:
        OwnCodeError: A file cannot be read.
    """
    hashes = {}
    for field in code_in(values):
        files = dict.fromkeys(_python_files(field, values[field]))
        hashes[field] = " ".join(user_code.fingerprint(file, _noun(field)) for file in files)
    return hashes


def notes_of_changes(values: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a line for each Python file that has changed since the run began.

    Args:
        values: The code that is executed now, by field.
        origin: The run's provenance, with the hashes at the start. A field without a hash is not
            compared.

    Raises:
        OwnCodeError: A file cannot be read.
    """
    return tuple(
        f"{python_file(field, values[field])} has changed since the run began; the current "
        "version is used"
        for field, now in fingerprints(values).items()
        if origin.get(field) not in (None, now)
    )


def named_again(config: RunConfig) -> dict[str, str]:
    """Returns the options, with values, that the user must repeat to continue a run: its code."""
    values = {name: getattr(config, name) for name in CODE_FIELDS}
    code = code_in(values)
    return {option_name(name): code[name] if name == METRICS else values[name] for name in code}


def _python_files(field: str, text: Any) -> list[Path]:
    """Returns the Python files that a field names."""
    codes = (
        (_code_of(field, text) or "").split(",") if field == METRICS else [_code_of(field, text)]
    )
    parts = [split_code(code) for code in codes if code]
    return [Path(each[0]) for each in parts if each is not None]


def _written(value: Any) -> str:
    """Returns the value of a field as the command line takes it."""
    return value if isinstance(value, str) else ",".join(map(str, value))


def _listed(text: Any) -> list[str]:
    """Returns the metrics of a list, or of a text that separates them by commas."""
    return text.split(",") if isinstance(text, str) else list(text)


def _code_of(field: str, text: Any) -> str | None:
    """Returns the FILE.py or FILE.py:NAME in a field's value; None if the value is not code."""
    if field == METRICS:
        return ",".join(each for each in _listed(text) if split_code(each) is not None) or None
    if field == PARTITION:
        return tables.split_code_of_scheme(text)[0]
    return None if split_code(text) is None else text


def _noun(field: str) -> str:
    return _NOUNS.get(field, field.replace("_", " "))


def _missing(of_run: Mapping[str, str], missing: list[str]) -> str:
    """Returns the error message for code of a run that the user did not name."""
    words = " ".join(f"{option_name(name)} {of_run[name]}" for name in missing)
    nouns = list(map(_noun, missing))
    if len(nouns) > 1:
        listed = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        return f"this run's {listed} are code; pass {words} to run it"
    file = python_file(missing[0], of_run[missing[0]])
    return f"this run's {nouns[0]} is code in {file}; pass {words} to run it"
