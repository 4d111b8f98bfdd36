"""The key of a run: equal keys mean equal results, to the byte.

A key is a digest of the options that change results or the recorded metrics, the content of all
files, the version of fedcli and the instruction set. It does not depend on where files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedcli import datasets
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.digest import blake2b
from fedcli.federation.cohorts import parse_clients
from fedcli.files import json_text
from fedcli.runs.provenance import attack_data_of, file_digest, files_of, recorded_digest
from fedcli.settings.data_source import DataSource
from fedcli.settings.run_config import (
    DATA_FIELDS,
    OPTIONS,
    WITHOUT_EFFECT,
    RunConfig,
    may_have_code,
)
from fedcli.version import __version__

_DIGEST_BYTES = 10
_ATTACK_DATA = "attack_data"  # the name of the attack data's fingerprint, as in provenance
# These options do not change the weights, but they change metrics.jsonl and evaluation.json.
_RECORDED = ("eval_split", "metrics")
_LEFT_OUT = {*DATA_FIELDS, *WITHOUT_EFFECT} - {*_RECORDED}


class Keys:
    """Computes keys of runs; reads each file and dataset once."""

    def __init__(self, cancel: CancelFlag | None = None) -> None:
        """Reads nothing yet. When `cancel` is set, reading data raises `Cancelled`."""
        self._cancel = cancel
        self._data: dict[str, str] = {}
        self._files: dict[str, str] = {}

    def of(self, config: RunConfig) -> str:
        """Returns the key of a valid config, 20 hexadecimal digits.

        Raises:
            Cancelled: `cancel` was set.
            ConfigError: A file cannot be read.
            DataError: The data are missing or cannot be read.
            OwnCodeError: A file of the user's code cannot be read.
        """
        return _digest(
            config,
            self._fingerprint(config.data_source),
            self._contents(config),
            {"fedcli": __version__, "isa": native.isa_name()},
        )

    def of_record(self, config: RunConfig, provenance: Mapping[str, Any]) -> str | None:
        """Returns the key of an existing run, from its config and provenance.

        Returns:
            None if the key is not known, because the version that made the run did not record
            digests of the run's files (initial weights, class weights, a model) or of its
            attackers' dataset.
        """
        origin = {name: str(provenance.get(name)) for name in ("fedcli", "isa")}
        fingerprint = provenance.get("data")
        files = {name: recorded_digest(provenance, name) for name, _ in files_of(config)}
        if attack_data_of(config) is not None:
            files[_ATTACK_DATA] = provenance.get(_ATTACK_DATA)
        if not isinstance(fingerprint, str) or None in files.values():
            return None
        contents = {**files, **_code_of_record(config, provenance)}
        return _digest(config, fingerprint, contents, origin)

    def _fingerprint(self, source: DataSource) -> str:
        name = repr([getattr(source, each) for each in DATA_FIELDS])
        if name not in self._data:
            cancel = self._cancel
            is_cancelled = (lambda: False) if cancel is None else cancel.is_set
            self._data[name] = datasets.fingerprint(source, is_cancelled=is_cancelled)
        return self._data[name]

    def _contents(self, config: RunConfig) -> dict[str, str]:
        """Returns the fingerprints of the files that options name, by option."""
        contents = {name: self._file(value, name) for name, value in files_of(config)}
        if (attack_data := attack_data_of(config)) is not None:
            contents[_ATTACK_DATA] = self._fingerprint(attack_data)
        if may_have_code(config):
            from fedcli.settings.own import permission  # lazy: few runs have code

            contents.update(_named_fingerprints(config, permission.fingerprints(vars(config))))
        return contents

    def _file(self, name: str, option: str) -> str:
        if name not in self._files:
            self._files[name] = file_digest(name, option)
        return self._files[name]


def _code_of_record(config: RunConfig, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of a run's code at the start of the run."""
    if not may_have_code(config):
        return {}
    from fedcli.settings.own import permission  # lazy, as above

    code = permission.code_in(vars(config))
    return _named_fingerprints(config, {name: str(provenance.get(name)) for name in code})


def _named_fingerprints(config: RunConfig, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of files of code, with the names of files and functions but no folders."""
    named = {}
    for field, fingerprint in fingerprints.items():
        value = getattr(config, field)
        texts = [value] if isinstance(value, str) else list(value)
        named[field] = " ".join([fingerprint, *(text.rpartition("/")[2] for text in texts)])
    return named


def _digest(
    config: RunConfig,
    data: str,
    contents: Mapping[str, str | None],
    origin: Mapping[str, str],
) -> str:
    """The key: a digest of everything that determines the results."""
    config = replace(
        config, clients=_chosen(config.clients), eval_clients=_chosen(config.eval_clients)
    )
    if config.clients is None:
        config = replace(config, clients=str(OPTIONS["clients"].usual))
    options = {
        name: value
        for name, value in vars(config).items()
        if name not in _LEFT_OUT and name not in contents
    }
    if _ATTACK_DATA in contents:  # the fingerprint in `contents` replaces the dataset's name
        options["attack_options"] = {**config.attack_options, "data": None}
    facts = {"options": options, "data": data, "files": dict(contents), **origin}
    text = json_text(_sorted(facts))
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _chosen(clients: Any) -> Any:
    """Returns a selection of clients; if it names a file, the ids that the file lists."""
    if clients is None:
        return None
    return parse_clients(clients).ids or clients


def _sorted(value: Any) -> Any:
    """Sorts tables by their keys, so that equal options have equal text."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list | tuple) else value
