"""Counts the multiply-adds of a model exactly, layer by layer."""

from __future__ import annotations

from fedcli.dataclass import dataclass
from fedcli.models.layout import ParamLayout


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds of one layer for one example.

    Dense layers and convolutions are counted, padding included. Other layers, such as pools and
    activations, take a few operations for each value and are not counted.

    Attributes:
        name: Name of the layer.
        forward: Multiply-adds from its inputs to its outputs.
        backward: Multiply-adds of the gradient with respect to its kernel, and with respect to its
            inputs if these depend on parameters. Each gradient takes as many as `forward`.
    """

    name: str
    forward: int
    backward: int

    @property
    def training(self) -> int:
        """Multiply-adds of an example in a local step: forward and backward."""
        return self.forward + self.backward


def layer_costs(layout: ParamLayout) -> tuple[LayerCost, ...]:
    """Returns the cost of each layer of `layout.layers`."""
    costs = []
    has_params_below = [False]  # whether the image, then each layer, depends on parameters
    for layer, sources in zip(layout.layers, layout.sources, strict=True):
        is_needed = any(has_params_below[source] for source in sources)
        forward = layer.multiply_adds
        costs.append(LayerCost(layer.name, forward, forward * (1 + is_needed)))
        has_params_below.append(is_needed or bool(layer.tensors))
    return tuple(costs)
