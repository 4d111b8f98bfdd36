"""Layers that change the shape of their input but not its values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcli.dataclass import dataclass
from fedcli.models.layers.contract import Incoming, KerasShape, Read, Spec

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Flatten"]


@dataclass(frozen=True)
class Flatten(Spec):
    """An image becomes a vector, row by row, channels fastest."""

    kind = "flatten"
    keras_class = "Flatten"
    gives_vector = True

    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> None:
        """See `Spec.size`; the values already lie as the vector has them."""

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        options.only("data_format", ("channels_last", None))
        options.finish()
        yield cls(name), (math.prod(shape),)
