"""`start` makes a new run from a config; `resume` continues a run from its newest checkpoint.

The random numbers of a round depend on its number, so stopping and resuming changes no byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcli import settings
from fedcli.core.native import CancelFlag
from fedcli.datasets.opening import fingerprint, note_of_change
from fedcli.errors import ConfigError, RunError, plural
from fedcli.federation.opened_data import fingerprinting
from fedcli.runs.files import checkpoint, folder, logs
from fedcli.runs.files.checkpoint import Checkpoint
from fedcli.runs.files.folder import RunDirectory
from fedcli.runs.files.saved_states import (
    model_of,
    open_client_states,
    parts_to_run,
    to_state,
)
from fedcli.runs.loop import Callback, RoundResult, Training
from fedcli.runs.opening import Federation, open_federation
from fedcli.runs.provenance import attack_data_of, check_streams, provenance_of
from fedcli.settings import tables
from fedcli.settings.data_source import OpenedData, source_of
from fedcli.settings.declaration import option_name
from fedcli.settings.options import Value
from fedcli.settings.run_config import KEPT_FIELDS, RunConfig, may_have_code

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fedcli.settings.own.permission import CodeOptions

__all__ = ["Callback", "RoundResult", "Training", "resume", "start"]

_NO_CODE: Mapping[str, Any] = MappingProxyType({})


def start(
    config: RunConfig,
    out: str | Path,
    *,
    force: bool = False,
    is_numbered: bool = False,
    expected_data: str | None = None,
    expected_code: Mapping[str, Any] = _NO_CODE,
    data: OpenedData | None = None,
    model: Any = None,
    cancel: CancelFlag | None = None,
) -> Training:
    """Opens the data and model of a config, runs the user's code, and makes the run's folder.

    Args:
        config: The options; they are validated here.
        out: The run's folder.
        force: Replace an existing run.
        is_numbered: Append the first free number to `out` if it exists.
        expected_data: The fingerprint of the data that the config was used with; None for any.
        expected_code: The fingerprints of the files of a user's code, by field. A file without a
            fingerprint is not compared.
        data: Opened data in place of those that the config names.
        model: An object that is a model or makes one, in place of what the config names.
        cancel: A flag that any thread may set to stop the training within a local step.

    Raises:
        ConfigError: An option is not allowed, or does not fit the data.
        DataError: The data are missing or bad.
        OwnCodeError: The user's own code cannot be read, or fails.
        RunError: The folder exists or cannot be made.
    """
    path = Path(out)
    config = _absolute(settings.validate(config))
    has_code = may_have_code(config)
    if has_code:
        from fedcli.settings.own import permission  # lazy: few runs have code

        config = permission.complete(config)
    if is_numbered:
        path = folder.free_path(path)
    folder.check_target(path, force=force)
    logs.require(config)
    source = source_of(config, data)
    with fingerprinting(source, cancel) as pending_fingerprint:
        federation = open_federation(config, cancel, source=source, given_model=model, folder=path)
        state = federation.initial_state()
        now = pending_fingerprint.result()
    consequence = "this run does not repeat the one that wrote the config"
    changed = note_of_change(source, expected_data, now, consequence)
    federation.notes.extend(changed)
    if has_code:
        federation.notes.extend(permission.notes_of_changes(vars(config), expected_code))
    provenance = provenance_of(
        federation.engine,
        now,
        federation.config,
        federation.process.algorithm.entry,
        federation.process.model.layout.num_params,
        federation.class_weights,
    )
    config_text = settings.to_toml(federation.config, provenance)
    content = federation.encode(state, config_text)
    run = RunDirectory.create(path, config_text, content, force=force, is_numbered=is_numbered)
    state = open_client_states(state, run.path)
    return Training(federation, state, run, config_text, cancel, is_new=True)


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    threads: int | None = None,
    engine: str | None = None,
    engine_options: Mapping[str, Value] | None = None,
    data: str | OpenedData | None = None,
    test_data: str | None = None,
    model: Any = None,
    cancel: CancelFlag | None = None,
    **code: Unpack[CodeOptions],
) -> Training:
    """Opens a run at its newest checkpoint.

    Args:
        path: The run's folder.
        rounds: A new total number of rounds; None for that of the config.
        threads: Number of threads; None for that of the config.
        engine: The engine that computes the clients; None for that of the config.
        engine_options: Options of the engine.
        data: The new path of the run's data; None if they were not moved. For a run whose data were
            in memory: those data.
        test_data: The new path of its test data; None if they were not moved.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code. For a run whose model was
            an object in a program: that object.
        cancel: See `start`.
        code: FILE.py or FILE.py:NAME for each part of the run that is code (`algorithm`, ...): no
            code runs unless it is named here.

    Raises:
        ConfigError: config.toml is bad, the data are not those of the run, `rounds` is below the
            number of completed rounds, or a part is code that is not named.
        DataError: The data are missing or bad.
        OwnCodeError: The user's own code cannot be read, or fails.
        RunError: There is no run, it is in use, or its files do not fit together.
    """
    run = RunDirectory.open(Path(path))
    try:
        memory = None if data is None or isinstance(data, str) else data
        places = {"data": data if memory is None else None, "test_data": test_data}
        new_places = {name: str(value) for name, value in places.items() if value is not None}
        objects = _Objects(memory, model if not isinstance(model, str) else None)
        named = {**code, "model": model if isinstance(model, str) else None}
        engine_choice = _EngineChoice(threads, engine, engine_options)
        return _resume(run, rounds, engine_choice, named, new_places, objects, cancel)
    except BaseException:
        run.close()
        raise


class _EngineChoice(NamedTuple):
    """The threads and engine for the rest of a run; None for those of its config."""

    threads: int | None
    engine: str | None
    engine_options: Mapping[str, Value] | None

    def in_config(self, config: RunConfig) -> RunConfig:
        """Returns the config with the values that are not None. Raises ConfigError."""
        overrides = {name: value for name, value in self._asdict().items() if value is not None}
        if not overrides:
            return config
        return settings.from_options(settings.merge(vars(config), overrides))


class _Objects(NamedTuple):
    """Objects that a program gives in place of names in the config."""

    data: OpenedData | None = None
    model: Any = None


def _absolute(config: RunConfig) -> RunConfig:
    """The config with absolute paths. Raises ConfigError if config.toml cannot hold one of them."""
    absolute = settings.absolute_paths(config, str(Path.cwd()))
    for field in fields(RunConfig):
        before, now = getattr(config, field.name), getattr(absolute, field.name)
        if now == before:
            continue
        for old, new in zip(_paths_of(before), _paths_of(now), strict=True):
            if not new.isprintable():
                raise ConfigError(
                    f"{option_name(field.name)} {old}: config.toml must record its absolute path, "
                    f"but cannot hold {new!r}, which is not UTF-8 or has control characters; move "
                    "the file to a folder with another name"
                )
    return absolute


def _paths_of(value: Any) -> list[Any]:
    """The texts in a field that holds one path, a tuple of paths, or options with a path."""
    if isinstance(value, Mapping):
        return [each for each in value.values() if isinstance(each, str)]
    return list(value) if isinstance(value, tuple) else [value]


def _resume(
    run: RunDirectory,
    rounds: int | None,
    engine_choice: _EngineChoice,
    code: Mapping[str, Any],
    places: Mapping[str, str],
    objects: _Objects,
    cancel: CancelFlag | None,
) -> Training:
    file = folder.latest_checkpoint(run.path)
    content = checkpoint.load(file)
    from fedcli.runs.moved_data import check_places  # lazy: a new run does not need it

    config, config_text = _continued_config(run, content, rounds, places)
    source = source_of(config, objects.data)
    check_places(source, "together with --resume")
    config = engine_choice.in_config(config)
    logs.require(config)
    origin = settings.read_provenance(config_text, str(run.path))
    if content.round_num:
        check_streams(config, origin, run.path)
    config, named = _with_code(config, content, code)
    source = source_of(config, objects.data)  # again, because a partition may be code
    model = None
    if objects.model is None:
        model = model_of(content, config, file, named.get("model"))
    with fingerprinting(source, cancel) as pending_fingerprint:
        federation = open_federation(
            config, cancel, model, source=source, given_model=objects.model, folder=run.path
        )
        state = to_state(content, federation.process, file)
        now = pending_fingerprint.result()
    federation.process.check_resumed(state)  # before a file of the run is changed
    consequence = "the rounds so far were trained on the earlier data"
    changed = note_of_change(source, origin.get("data"), now, consequence)
    federation.notes.extend(changed)
    if named:
        from fedcli.settings.own import permission  # lazy: few runs have code

        ran = {name: text for name, text in named.items() if name in parts_to_run(content, config)}
        federation.notes.extend(permission.notes_of_changes(ran, origin))
    federation.notes.extend(_note_of_changed_attack(config, origin.get("attack_data")))
    federation.notes.extend(_note_of_moved_end(config, content))
    federation.notes.extend(_note_of_changed_weights(federation, origin.get("class_weights")))
    training = Training(
        federation,
        open_client_states(state, run.path, content.client_states),
        run,
        config_text,
        cancel,
        have_data_changed=bool(changed),
    )
    if not training.is_finished:
        run.cut_back(state.round_num)
        training.drop_checkpoints()  # an earlier process may have been killed before this step
        run.write_config(config_text)
    return training


def _with_code(
    config: RunConfig, content: Checkpoint, user_code: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, str]]:
    """Returns a config with the code that the user named, and that code by field.

    Raises:
        ConfigError: The user did not name code that the run needs, or named code where it has none.
    """
    named = {name: text for name, text in user_code.items() if text is not None}
    if not named and not may_have_code(config):
        return config, {}
    from fedcli.settings.own import permission  # lazy: few runs have code

    parts = parts_to_run(content, config)
    allowed = permission.with_code(config, named, parts)
    ran = {name: getattr(allowed, name) for name in named if name in parts}
    # The config keeps the place of the model's file.
    return replace(allowed, model=config.model), {**named, **ran}


def _continued_config(
    run: RunDirectory, content: Checkpoint, rounds: int | None, places: Mapping[str, str]
) -> tuple[RunConfig, str]:
    """The config of a resumed run with its new number of rounds, and the text of config.toml."""
    config_file = run.path / folder.CONFIG
    text = folder.read_text(config_file)
    values = settings.from_toml(text, str(config_file))
    try:
        config = settings.from_options(values)
    except ConfigError as err:  # its message names an option but no file
        raise ConfigError(f"{config_file}: {err}") from err
    origin = settings.read_provenance(text, str(config_file))
    _check_is_same(config, content, config_file, origin.get("data"))
    if places:
        from fedcli.runs.moved_data import with_new_places  # lazy, as above

        config = settings.validate(with_new_places(config, places, origin.get("data")))
        text = settings.to_toml(config, origin)
    if rounds is not None and rounds < content.round_num:
        raise ConfigError(
            f"--rounds {rounds}: {run.path} has completed {plural(content.round_num, 'round')}; "
            "give that many or more"
        )
    if config.rounds < content.round_num and rounds is None:
        raise RunError(
            f"{config_file} has rounds = {config.rounds}, but {content.round_num} are completed; "
            f"give --rounds {content.round_num} or more"
        )
    if rounds in (None, config.rounds):
        return config, text
    config = settings.validate(replace(config, rounds=rounds))
    return config, settings.to_toml(config, settings.read_provenance(text, str(config_file)))


def _note_of_moved_end(config: RunConfig, content: Checkpoint) -> tuple[str, ...]:
    """Returns a note if a schedule depends on the number of rounds and that number has changed."""
    before = _config_of(content).rounds
    schedules = [
        option_name(f"{side}_schedule")
        for side in ("client", "server")
        for options in [getattr(config, f"{side}_schedule_options")]
        if (options or {}).get("decay_rounds") == tables.ROUNDS_OF_RUN
    ]
    if not content.round_num or not schedules or config.rounds == before:
        return ()
    end = "end" if len(schedules) > 1 else "ends"
    return (
        f"{' and '.join(schedules)} ended after {plural(before, 'round')} and now {end} after "
        f"{config.rounds}; the rates differ from those of a run that began with "
        f"{plural(config.rounds, 'round')}",
    )


def _note_of_changed_attack(config: RunConfig, before: object) -> tuple[str, ...]:
    """Returns a note if the attackers' dataset has changed since the run began."""
    source = attack_data_of(config)
    if source is None:
        return ()
    consequence = "the attackers continue with the new images"
    return note_of_change(source, before, fingerprint(source), consequence)


def _note_of_changed_weights(federation: Federation, before: object) -> tuple[str, ...]:
    """Returns a note if the class weights have changed since the run began."""
    weights = federation.class_weights
    if before is None or weights is None:
        return ()
    from fedcli.learning.class_weights import digest_of  # lazy: few runs have them

    if digest_of(weights) == before:
        return ()
    option = f"--class-weights {federation.config.class_weights}"
    return (f"{option}: the weights have changed since the run began; the new ones are used",)


def _config_of(content: Checkpoint) -> RunConfig:
    """The config with which the rounds so far were trained."""
    return settings.from_options(settings.from_toml(content.config, "the checkpoint's config"))


def _check_is_same(
    config: RunConfig, content: Checkpoint, config_file: Path, fingerprint: str | None
) -> None:
    """Refuses a config.toml with a change of an option that must not change after round 1."""
    before = _config_of(content)
    for name in KEPT_FIELDS:
        now, then = getattr(config, name), getattr(before, name)
        if now != then and content.round_num:
            from fedcli.runs.moved_data import PLACES, is_only_moved  # lazy, as above

            if name in PLACES and is_only_moved(config, before, fingerprint):
                continue
            raise ConfigError(
                f"{config_file}: {name} is {now!r}, but the rounds so far were trained "
                f"with {then!r}; put {then!r} back, or start another run with --config"
            )
