"""Converts a server state and its model to the content of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import models, settings
from fedcli.errors import CheckpointError, ConfigError
from fedcli.learning.algorithms.evaluated import NO_COMMON_MODEL, Evaluated
from fedcli.learning.client_states import ClientStates
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.models import sources
from fedcli.models.model import Model
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.checkpoint import Checkpoint
from fedcli.settings import tables
from fedcli.settings.data_source import IN_MEMORY
from fedcli.settings.options import Entry, is_code
from fedcli.settings.run_config import CODE_FIELDS, RunConfig

# Names of the weights that are evaluated in place of the global model's. The clients' own models
# or parts and an algorithm's own weights are in client_work. A running mean, with its number of
# updates, is in finalizer.
_OWN_MODELS, _OWN_PARTS = "own_models", "own_parts"
_EVALUATED_WEIGHTS = "evaluated_weights"
_NUM_UPDATES = "ema_updates"


def model_of(content: Checkpoint, config: RunConfig, path: Path, code: Any = None) -> Model:
    """Returns the model of a checkpoint. No file that its config names is opened or run.

    Args:
        content: The checkpoint.
        config: Config of its run.
        path: The checkpoint's file, for messages.
        code: The only code that may be run, as given with --model: FILE.py:FUNCTION, or FILE.py for
            the function that the run used. It is not run if the checkpoint holds the whole model.
            A Python program may give a model object instead.

    Raises:
        CheckpointError: Description, weights and shapes do not fit each other.
        ConfigError: The config's model does not fit, the model is code and `code` is not given, or
            `code` is not the code of the run.
        ModelError: The file of the code is missing or fails.
    """
    if code is not None and not isinstance(code, str):
        from fedcli.models import own  # lazy: few models are code

        return own.wrap(code, input_shape=content.input_shape, num_classes=content.num_classes)
    if needs_code(content, config):
        from fedcli.settings.own.permission import allowed_code  # lazy: few models are code

        return sources.open_model(
            allowed_code("model", config.model, code),
            input_shape=content.input_shape,
            num_classes=content.num_classes,
            options=config.model_options,
            seed=config.seed,
        )
    if code is not None:
        _check_is_same(code, config, path)
    has_input_layers = config.augment is not None or config.normalize is not None
    if not tables.is_model_file(config.model) and not has_input_layers:
        return _named_model(content, config, path)
    if content.description is None and config.model.startswith(IN_MEMORY):
        raise ConfigError(
            f"this run's model, {config.model}, was an object in a Python program; give it there "
            "again, with fedcli.resume(run, model=...) or fedcli.evaluate_run(run, model=...)"
        )
    if content.description is None:
        raise CheckpointError(
            f"{path} does not describe its model, {config.model}; it is not a checkpoint of fedcli"
        )
    try:
        weights = content.components["global_model_weights"]
        model = sources.from_text(content.description, config.model, weights)
    except ConfigError as err:
        raise CheckpointError(f"{path} is not a usable checkpoint: {err}") from err
    layout = model.layout
    if (layout.input_shape, layout.num_classes) != (content.input_shape, content.num_classes):
        raise CheckpointError(
            f"{path}: its model takes {list(layout.input_shape)} and has {layout.num_classes} "
            f"classes, but it claims {list(content.input_shape)} and {content.num_classes}; it is "
            "not a checkpoint of fedcli"
        )
    return model


def _check_is_same(code: str, config: RunConfig, path: Path) -> None:
    """Refuses code for a checkpoint that holds the whole model, unless it made the model."""
    from fedcli.settings.own.permission import is_same_code  # lazy: few models are code

    if not is_same_code("model", config.model, code):
        raise ConfigError(
            f"--model {code}: this option is for runs whose model is code, but {path} holds "
            f"the whole model, {config.model}; leave it out"
        )


def needs_code(content: Checkpoint, config: RunConfig) -> bool:
    """Returns whether the model is a user's code. A model of layers is stored in the checkpoint."""
    return content.description is None and is_code(config.model)


def parts_to_run(content: Checkpoint, config: RunConfig) -> tuple[str, ...]:
    """Returns the fields whose code is executed to resume a run from a checkpoint."""
    return tuple(name for name in CODE_FIELDS if name != "model" or needs_code(content, config))


def without_code(content: Checkpoint, config: RunConfig) -> tuple[Checkpoint, RunConfig]:
    """Returns a checkpoint and its config without the parts that are a user's own code.

    The state of these parts is left out; the weights and everything that is evaluated stay. So a
    run can be evaluated without the code of its algorithm, aggregator and server optimizer.
    """
    components = dict(content.components)
    changed: dict[str, Any] = {}
    if _is_own(tables.ALGORITHMS, config.algorithm):
        components["client_work"] = {}
        changed.update(algorithm="fedavg", algorithm_options={})
    if _is_own(tables.AGGREGATORS, config.aggregator):
        components["aggregator"] = {}
        changed.update(aggregator="mean", aggregator_options={})
    if _is_own(tables.OPTIMIZERS, config.server_optimizer or ""):
        kept = components["finalizer"]
        names = (_EVALUATED_WEIGHTS, _NUM_UPDATES)
        components["finalizer"] = {name: kept[name] for name in names if name in kept}
        changed.update(server_optimizer="sgd", server_options={})
    if not changed:
        return content, config
    bare = settings.validate(replace(config, **changed))
    return replace(content, components=components), bare


def _is_own(table: Mapping[str, Entry], name: str) -> bool:
    """Whether a name is that of a part from a file or an installed package of the user."""
    return bool(name) and name not in table


def _named_model(content: Checkpoint, config: RunConfig, path: Path) -> Model:
    """Builds a model of the table, after checking that the checkpoint's weights have its size."""
    arguments: dict[str, Any] = {
        "input_shape": content.input_shape,
        "num_classes": content.num_classes,
        "options": config.model_options,
    }
    needed = models.build_layout(config.model, **arguments).num_params
    weights = content.components["global_model_weights"].values()
    num_weights = sum(np.size(each) for each in weights)
    if num_weights != needed:
        raise CheckpointError(
            f"{path} holds {num_weights:,} weights, but {config.model} of its config, for examples "
            f"of {list(content.input_shape)} and {content.num_classes} classes, has {needed:,}; "
            "use the config it was written with"
        )
    model = models.build(config.model, **arguments, seed=config.seed)
    return sources.with_batch_norms(model, config.batch_norm)


def to_components(state: ServerState, model: Model) -> dict[str, dict[str, checkpoint.Part]]:
    """Returns the parts of a state by component, with one part for each tensor of the weights."""
    layout = model.layout
    tensors = layout.split(state.global_model_weights)
    names = [tensor.name for tensor in layout.tensors]
    client_work, finalizer = _evaluated_parts(state.evaluated)
    return {
        "global_model_weights": dict(zip(names, tensors, strict=True)),
        "distributor": state.distributor,
        "client_work": {
            **{name: _to_part(part) for name, part in state.client_work.items()},
            **client_work,
        },
        "aggregator": {name: _to_part(part) for name, part in state.aggregator.items()},
        "finalizer": {**state.finalizer, **finalizer},
        "updates": {name: _to_part(part) for name, part in state.updates.items()},
    }


def _evaluated_parts(
    evaluated: Evaluated | None,
) -> tuple[dict[str, checkpoint.Part], dict[str, checkpoint.Part]]:
    """The parts of `evaluated` in the components client_work and finalizer."""
    if evaluated is None:
        return {}, {}
    if evaluated.own_models is not None:
        return {_own_name(evaluated): _to_part(evaluated.own_models)}, {}
    assert evaluated.weights is not None
    weights: dict[str, checkpoint.Part] = {_EVALUATED_WEIGHTS: evaluated.weights}
    if evaluated.num_updates is None:
        return weights, {}
    return {}, {**weights, _NUM_UPDATES: evaluated.num_updates}


def _own_name(evaluated: Evaluated) -> str:
    return _OWN_MODELS if evaluated.own_indices is None else _OWN_PARTS


def _take_evaluated(
    initial: Evaluated | None, client_work: dict[str, Any], finalizer: dict[str, Any]
) -> Evaluated | None:
    """Makes an `Evaluated` of its parts in the two components, and removes them there.

    `initial` has the same parts, from the initial state.
    """
    if initial is None:
        return None
    if initial.own_models is not None:
        version = client_work.pop(_own_name(initial))
        return replace(initial, own_models=_from_part(version, initial.own_models))
    if initial.num_updates is None:
        return Evaluated(client_work.pop(_EVALUATED_WEIGHTS))
    return Evaluated(finalizer.pop(_EVALUATED_WEIGHTS), finalizer.pop(_NUM_UPDATES))


def evaluated_weights_in(content: Checkpoint) -> NDArray[np.float32] | None:
    """Returns the weights that are evaluated in place of the global model's.

    Returns:
        float32 [num_params]; None if the weights of the global model are evaluated.

    Raises:
        ConfigError: Each client has its own model.
    """
    client_work, finalizer = content.components["client_work"], content.components["finalizer"]
    if _OWN_MODELS in client_work:
        raise ConfigError(NO_COMMON_MODEL)
    weights = finalizer.get(_EVALUATED_WEIGHTS, client_work.get(_EVALUATED_WEIGHTS))
    return None if weights is None else np.asarray(weights)


def to_state(content: Checkpoint, process: LearningProcess, path: Path) -> ServerState:
    """Returns the server state in a checkpoint.

    Raises:
        CheckpointError: It is not a state of this learning process.
    """
    initial = process.initialize()
    checkpoint.check(content, to_components(initial, process.model), path)
    parts = content.components
    layout = process.model.layout
    weights = layout.join([parts["global_model_weights"][each.name] for each in layout.tensors])  # type: ignore[misc]
    client_work, finalizer = dict(parts["client_work"]), dict(parts["finalizer"])
    evaluated = _take_evaluated(initial.evaluated, client_work, finalizer)
    return ServerState(
        round_num=content.round_num,
        global_model_weights=weights,
        distributor=dict(parts["distributor"]),
        client_work=_from_parts(client_work, initial.client_work),
        aggregator=_from_parts(parts["aggregator"], initial.aggregator),
        finalizer=finalizer,
        updates=_from_parts(parts["updates"], initial.updates),
        evaluated=evaluated,
    )


def client_states_of(state: ServerState) -> list[ClientStates]:
    """Returns the client states in a server state: clients' vectors, or clients' own models."""
    components = state.client_work, state.aggregator, state.updates
    parts = [part for component in components for part in component.values()]
    kept = [each for each in parts if isinstance(each, ClientStates)]
    if state.evaluated is not None and state.evaluated.own_models is not None:
        kept.append(state.evaluated.own_models)
    return kept


def digests_of(state: ServerState) -> dict[str, int]:
    """Returns the digests of the client states by the names of their files."""
    return {each.name: each.digest for each in client_states_of(state)}


def open_client_states(
    state: ServerState, folder: Path, digests: Mapping[str, int] | None = None
) -> ServerState:
    """Opens the client states of a server state in a run's folder.

    Args:
        state: The state of a checkpoint, or the initial state.
        folder: The run's folder.
        digests: The digests in the checkpoint, as `digests_of` returns them; None if it has none.

    Raises:
        RunError: A file is damaged, missing, or not that of the checkpoint.
    """
    kept = run_dir.checkpoint_rounds(folder)

    def opened(part: Any) -> Any:
        if not isinstance(part, ClientStates):
            return part
        return part.open_in(folder, kept, (digests or {}).get(part.name))

    def all_opened(component: Mapping[str, Any]) -> dict[str, Any]:
        return {name: opened(part) for name, part in component.items()}

    evaluated = state.evaluated
    if evaluated is not None and evaluated.own_models is not None:
        evaluated = replace(evaluated, own_models=opened(evaluated.own_models))
    return replace(
        state,
        client_work=all_opened(state.client_work),
        aggregator=all_opened(state.aggregator),
        updates=all_opened(state.updates),
        evaluated=evaluated,
    )


def _to_part(part: Any) -> checkpoint.Part:
    """Returns what a checkpoint stores for a part of a state; for client states, their version."""
    value: checkpoint.Part = part.version if isinstance(part, ClientStates) else part
    return value


def _from_parts(parts: Mapping[str, checkpoint.Part], initial: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a component from their values in a checkpoint."""
    return {name: _from_part(part, initial[name]) for name, part in parts.items()}


def _from_part(part: checkpoint.Part, initial: Any) -> Any:
    """The part of a state from its value in a checkpoint; `initial` is the initial part."""
    if not isinstance(initial, ClientStates):
        return part
    assert isinstance(part, int)
    return replace(initial, version=part)
