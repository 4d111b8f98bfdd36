"""Reads the connections between layers from the untrusted JSON of a Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedcli.errors import ConfigError, plural, shown
from fedcli.models.layers.keras_options import plain

MAX_DEPTH = 8  # models within models


class Applied(NamedTuple):
    """A layer of a model, which is applied exactly once.

    Attributes:
        item: The layer in JSON.
        name: Its name.
        sources: Names of the layers that it reads; empty for the input.
    """

    item: Mapping[str, Any]
    name: str
    sources: tuple[str, ...]


def in_order(class_name: str, config: Any) -> list[Applied]:
    """Returns the layers of a model.

    Each layer comes after the layers that it reads, and the output comes last.

    Raises:
        ConfigError: There are no layers, or the model does not have exactly one input and one
            output.
    """
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, list) or not all(isinstance(each, Mapping) for each in layers):
        raise ConfigError(
            "does not describe a Keras model: it has no list of layers; give a file that Keras "
            "wrote"
        )
    if class_name == "Sequential":
        return _chain(layers)
    applied = [Applied(each, _name_of(each), _sources_of(each)) for each in layers]
    names = {each.name for each in applied}
    starts = [each.name for each in applied if not each.sources]
    if len(starts) != 1 or len(names) != len(layers):
        raise ConfigError(f"has {len(starts)} inputs; fedcli supports models with one input")
    ordered = _sorted(applied)
    outputs = [each[0] for each in _histories(config.get("output_layers"))]
    read = {source for each in applied for source in each.sources}
    unread = [each.name for each in applied if each.name not in read]
    if len(outputs) != 1 or unread != outputs:
        raise ConfigError(
            f"has {plural(len(outputs), 'output')} and {plural(len(unread), 'layer')} that no "
            "layer reads; fedcli supports models with a single output that depends on every layer"
        )
    return ordered


def _chain(layers: list[Mapping[str, Any]]) -> list[Applied]:
    """Connects each layer to the one before it.

    Positions are used as names, because layers may lack names.
    """
    return [
        Applied(each, str(place), (str(place - 1),) if place else ())
        for place, each in enumerate(layers)
    ]


def _sorted(applied: list[Applied]) -> list[Applied]:
    """Sorts the layers so that each follows its inputs; an order that already fits is kept."""
    ordered: list[Applied] = []
    done: set[str] = set()
    waiting = applied
    while waiting:
        ready = [each for each in waiting if done.issuperset(each.sources)]
        if not ready:
            raise ConfigError(
                f"layer {shown(waiting[0].name)} is not connected to the model's input; save the "
                "model again"
            )
        first = ready[0]
        ordered.append(first)
        done.add(first.name)
        waiting = [each for each in waiting if each is not first]
    return ordered


def _name_of(item: Mapping[str, Any]) -> str:
    config = item.get("config")
    name = item.get("name", config.get("name") if isinstance(config, Mapping) else None)
    if not isinstance(name, str):
        raise ConfigError(
            "does not describe a Keras model: a layer has no name; give a file that Keras wrote"
        )
    return name


def _sources_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the layers that a layer of a functional model reads."""
    nodes = item.get("inbound_nodes")
    name = _name_of(item)
    if not nodes:
        return ()
    if not isinstance(nodes, list) or len(nodes) != 1:
        raise ConfigError(
            f"layer {shown(name)} is used more than once; fedcli does not support shared layers"
        )
    node = nodes[0]
    if isinstance(node, Mapping):  # Keras 3
        calls: Any = node.get("kwargs") or {}
        is_inference = isinstance(calls, Mapping) and calls.get("training") is False
        if is_inference and not _has_batch_norm(item):
            calls = {**calls, "training": None}  # Keras writes False for dropout
        args = node.get("args")
        given = args if isinstance(args, list) else []
        if len(given) == 1 and isinstance(given[0], list):  # a layer of several inputs
            given = given[0]
        histories = [_history(each) for each in given]
    else:
        histories = _histories(node)
        calls = {key: each for history in histories for key, each in _calls(history).items()}
    if not histories or not all(each and each[2:3] == [0] for each in histories):
        raise ConfigError(
            f"layer {shown(name)} takes {len(histories)} inputs, and not each of them is the only "
            "output of a layer; fedcli supports only layers with one output"
        )
    if not isinstance(calls, Mapping) or any(each is not None for each in calls.values()):
        raise ConfigError(
            f"layer {shown(name)} is called with {shown(calls)}; call it with its inputs only"
        )
    return tuple(str(each[0]) for each in histories)


def _has_batch_norm(item: object, depth: int = MAX_DEPTH) -> bool:
    """Whether a layer is a batch norm, or a model that contains one, at most `depth` deep.

    Keras itself never writes training=False for such a layer. If it is there, the user wants the
    moving statistics.
    """
    if not isinstance(item, Mapping):
        return False
    config = item.get("config")
    layers = config.get("layers") if isinstance(config, Mapping) else config
    inner = layers if isinstance(layers, list) and depth else []
    return item.get("class_name") == "BatchNormalization" or any(
        _has_batch_norm(each, depth - 1) for each in inner
    )


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
