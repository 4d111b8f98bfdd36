"""Finds the order of the layers in the JSON of a Keras model. The JSON is not trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcli.errors import ConfigError
from fedcli.models.layers.keras_options import plain, shown


def chain_of(class_name: str, config: Any) -> list[Mapping[str, Any]]:
    """Returns the layers of a model in order, from input to output.

    Raises:
        ConfigError: There are no layers, or they do not form one chain.
    """
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, list) or not all(isinstance(each, Mapping) for each in layers):
        raise ConfigError("describes no Keras model: it has no list of layers")
    if class_name == "Sequential":
        return layers
    sources = {_name_of(each): _source_of(each) for each in layers}
    followers = {source: name for name, source in sources.items() if source is not None}
    starts = [name for name, source in sources.items() if source is None]
    if len(starts) != 1 or len(sources) != len(layers):
        raise ConfigError(f"has {len(starts)} inputs; fedcli supports models with one input")
    by_name = {_name_of(each): each for each in layers}
    order = [by_name[starts[0]]]
    while (follower := followers.get(_name_of(order[-1]))) in by_name:
        order.append(by_name[follower])
        if len(order) > len(layers):
            break
    outputs = [each[0] for each in _histories(config.get("output_layers"))]
    if len(order) != len(layers) or outputs != [_name_of(order[-1])]:
        raise ConfigError(
            "branches, or has more than one output; fedcli supports models whose layers form one "
            "chain"
        )
    return order


def _name_of(item: Mapping[str, Any]) -> str:
    config = item.get("config")
    name = item.get("name", config.get("name") if isinstance(config, Mapping) else None)
    if not isinstance(name, str):
        raise ConfigError("describes no Keras model: a layer of it has no name")
    return name


def _source_of(item: Mapping[str, Any]) -> str | None:
    """Returns the name of a layer's predecessor in a functional model; None for the first layer."""
    nodes = item.get("inbound_nodes")
    name = _name_of(item)
    if not nodes:
        return None
    if not isinstance(nodes, list) or len(nodes) != 1:
        raise ConfigError(
            f"layer {shown(name)} is used more than once; fedcli does not support shared layers"
        )
    node = nodes[0]
    if isinstance(node, Mapping):  # Keras 3
        calls: Any = node.get("kwargs") or {}
        if isinstance(calls, Mapping) and calls.get("training") is False:
            calls = {**calls, "training": None}  # False is what Keras writes for dropout by default
        args = node.get("args")
        histories = [_history(each) for each in args] if isinstance(args, list) else []
    else:
        histories = _histories(node)
        calls = {key: each for history in histories for key, each in _calls(history).items()}
    if len(histories) != 1 or not histories[0] or histories[0][2:3] != [0]:
        raise ConfigError(
            f"layer {shown(name)} takes {len(histories)} inputs; fedcli supports layers with one "
            "input"
        )
    if not isinstance(calls, Mapping) or any(each is not None for each in calls.values()):
        raise ConfigError(f"layer {shown(name)} is called with {shown(calls)}; call it on x alone")
    return str(histories[0][0])


def _history(tensor: object) -> list[Any]:
    """Returns [layer, node, output] of a symbolic tensor of Keras 3; empty for anything else."""
    config = tensor.get("config") if isinstance(tensor, Mapping) else None
    history = config.get("keras_history") if isinstance(config, Mapping) else None
    histories = _histories(plain(history))
    return histories[0] if len(histories) == 1 else []


def _histories(value: object) -> list[list[Any]]:
    """Returns a list of [layer, node, output, ...]; a single such entry becomes a list of one."""
    value = plain(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = [value]
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, list) and len(each) >= 3]


def _calls(history: list[Any]) -> Mapping[str, Any]:
    return history[3] if len(history) > 3 and isinstance(history[3], Mapping) else {}
