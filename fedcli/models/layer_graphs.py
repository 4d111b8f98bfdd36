"""Models as graphs: as in Keras, layers are called on the outputs of other layers.

`fedcli help models` has an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedcli.errors import ConfigError, speaks_python
from fedcli.models.layers.contract import IMAGE, Node, Spec
from fedcli.models.layout import name_layers
from fedcli.models.model import Model, sequential, shape_of_input


@speaks_python()
def functional(
    logits: Node,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    name: str = "functional",
) -> Model:
    """Returns the model that computes `logits` from `layers.Input()`, with Keras's initial weights.

    Args:
        logits: The output of the last layer.
        input_shape: Shape of one example, [H, W] or [H, W, C]; None if `layers.Input` was given it.
        num_classes: Number of logits that the last layer must have; None: any number.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        name: Name of the model in messages.

    Raises:
        ConfigError: `logits` is not a node, or the layers do not fit each other, the image or the
            number of classes.
    """
    specs = specs_of(logits)
    images = [node for node in _ordered(logits) if node.spec is None]
    return sequential(specs, shape_of_input(images, input_shape), num_classes, seed, name)


def specs_of(logits: Node) -> list[Spec]:
    """Returns the layers that compute a node. Each layer comes after the layers that it reads.

    A layer names its inputs in `inputs`, in the order in which it reads them. `inputs` is empty if
    it reads only the layer before it in the list.

    Raises:
        ConfigError: `logits` is not the output of a layer, more than one `layers.Input()` is read,
            or a layer has a value that is not allowed.
    """
    if not isinstance(logits, Node) or logits.spec is None:
        raise ConfigError(
            "logits is not the output of a layer; give only the output of the last one, such as "
            "Dense(10)(x), from which the input is found"
        )
    nodes = _ordered(logits)
    images = [node for node in nodes if node.spec is None]
    if len(images) > 1:
        raise ConfigError(f"the graph reads {len(images)} inputs; call Input() once")
    applied = [(node, node.spec) for node in nodes if node.spec is not None]
    _refuse_shared(spec for _, spec in applied)
    named = name_layers([spec for _, spec in applied])
    names = dict.fromkeys(images, IMAGE)
    specs = []
    before = IMAGE
    for (node, _), spec in zip(applied, named, strict=True):
        inputs = tuple(names[each] for each in node.inputs)
        names[node] = spec.name
        specs.append(spec.changed(inputs=() if inputs == (before,) else inputs))
        before = spec.name
    return specs


def _refuse_shared(specs: Iterable[Spec]) -> None:
    """Refuses a layer with weights that is applied twice: Keras would share them."""
    seen: set[int] = set()
    for spec in specs:
        if id(spec) in seen and spec.tensors:
            raise ConfigError(
                f"a layer of kind {spec.kind} is applied twice, but weights cannot be shared; make "
                "one layer for each place"
            )
        seen.add(id(spec))


def _ordered(last: Node) -> list[Node]:
    """Returns `last` and the nodes that it depends on, each after its inputs.

    There is no recursion, so the graph may be deeper than Python's limit.
    """
    ordered: dict[Node, None] = {}
    stack = [(last, iter(last.inputs))]
    while stack:
        node, inputs = stack[-1]
        following = next((each for each in inputs if each not in ordered), None)
        if following is None:
            ordered[node] = None
            stack.pop()
        else:
            stack.append((following, iter(following.inputs)))
    return list(ordered)
