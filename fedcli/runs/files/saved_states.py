"""A server state and its model as a checkpoint holds them, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcli import models
from fedcli.errors import CheckpointError, ConfigError
from fedcli.learning.client_states import ClientStates
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.models import sources
from fedcli.models.model import Model
from fedcli.runs.files import checkpoint
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.checkpoint import Checkpoint
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig


def model_of(content: Checkpoint, config: RunConfig, path: Path, code: str | None = None) -> Model:
    """Returns the model of a checkpoint. No file that its config names is opened or run.

    Args:
        content: The checkpoint.
        config: Of its run.
        path: The checkpoint's file, for messages.
        code: What the user said after --model, the one thing that may be run: FILE.py, where the
            function is the run's, or FILE.py:FUNCTION.

    Raises:
        CheckpointError: Description, weights and the rest do not fit each other.
        ConfigError: The config names no model that fits; the model is code and `code` is not
            given, or the other way round.
        ModelError: That file is gone or fails.
    """
    if content.description is None and sources.python_file(config.model) is not None:
        return sources.open_model(
            sources.allowed_code(config.model, code),
            input_shape=content.input_shape,
            num_classes=content.num_classes,
            options=config.model_options,
            seed=config.seed,
        )
    if code is not None:
        raise ConfigError(
            f"--model {code}: it is for runs whose model is code, and {path} holds all of its "
            f"model, {config.model}; leave it out"
        )
    if not tables.is_model_file(config.model):
        return _named_model(content, config, path)
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


def _named_model(content: Checkpoint, config: RunConfig, path: Path) -> Model:
    """A model of the table, made only once it is known to be as large as its weights."""
    asked: dict[str, Any] = {
        "input_shape": content.input_shape,
        "num_classes": content.num_classes,
        "options": config.model_options,
    }
    needed = models.build_layout(config.model, **asked).num_params
    weights = content.components["global_model_weights"].values()
    found = sum(np.size(each) for each in weights)
    if found != needed:
        raise CheckpointError(
            f"{path} holds {found:,} weights, but {config.model} of its config, for examples of "
            f"{list(content.input_shape)} and {content.num_classes} classes, has {needed:,}; use "
            "the config it was written with"
        )
    return models.build(config.model, **asked, seed=config.seed)


def to_components(state: ServerState, model: Model) -> dict[str, dict[str, checkpoint.Part]]:
    """Returns the parts of a state by component, the weights tensor by tensor."""
    layout = model.layout
    tensors = layout.split(state.global_model_weights)
    names = [tensor.name for tensor in layout.tensors]
    return {
        "global_model_weights": dict(zip(names, tensors, strict=True)),
        "distributor": state.distributor,
        "client_work": {name: _to_part(part) for name, part in state.client_work.items()},
        "aggregator": state.aggregator,
        "finalizer": state.finalizer,
    }


def to_state(content: Checkpoint, process: LearningProcess, path: Path) -> ServerState:
    """Returns the server state in a checkpoint.

    Raises:
        CheckpointError: It is not a state of this process.
    """
    initial = process.initialize()
    checkpoint.check(content, to_components(initial, process.model), path)
    parts = content.components
    layout = process.model.layout
    weights = layout.join([parts["global_model_weights"][each.name] for each in layout.tensors])  # type: ignore[misc]
    return ServerState(
        round_num=content.round_num,
        global_model_weights=weights,
        distributor=dict(parts["distributor"]),
        client_work={
            name: _from_part(part, initial.client_work[name])
            for name, part in parts["client_work"].items()
        },
        aggregator=dict(parts["aggregator"]),
        finalizer=dict(parts["finalizer"]),
    )


def client_states_of(state: ServerState) -> list[ClientStates]:
    """Returns what the clients keep, of each kind that an algorithm has."""
    return [each for each in state.client_work.values() if isinstance(each, ClientStates)]


def open_client_states(state: ServerState, folder: Path) -> ServerState:
    """Returns the state with what its clients keep opened in a run's folder.

    Raises:
        RunError: The file is damaged, or missing.
    """
    kept = run_dir.checkpoint_rounds(folder)
    client_work = {
        name: each.open_in(folder, kept) if isinstance(each, ClientStates) else each
        for name, each in state.client_work.items()
    }
    return replace(state, client_work=client_work)


def _to_part(part: Any) -> checkpoint.Part:
    """What a checkpoint holds of a part of a state: of what clients keep, its version alone."""
    value: checkpoint.Part = part.version if isinstance(part, ClientStates) else part
    return value


def _from_part(part: checkpoint.Part, initial: Any) -> Any:
    """The part of a state that is `initial` before the first round."""
    if not isinstance(initial, ClientStates):
        return part
    assert isinstance(part, int)
    return replace(initial, version=part)
