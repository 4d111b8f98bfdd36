"""Normalisation: values get a mean of 0 and a variance of 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers import fields
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec, TensorKind

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm"]


@dataclass(frozen=True)
class GroupNorm(Spec):
    """Values become (value - mean) / root(variance + epsilon), per example and group of channels.

    Attributes:
        groups: Number of groups, a divisor of the number of channels; -1: one group for each
            channel.
        epsilon: Added inside the root.
        center: Whether beta is added.
        scale: Whether the values are multiplied by gamma.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "group_normalization"
    keras_class = "GroupNormalization"
    tensors = (
        TensorKind("gamma", 1.0, field="scale"),
        TensorKind("beta", 0.0, field="center"),
    )
    checks: ClassVar = {
        "groups": fields.check_groups,
        "epsilon": fields.check_epsilon,
        "center": fields.check_flag,
        "scale": fields.check_flag,
    }
    needs_channels = True

    groups: int = 32
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        shape, channels = incoming.shape, incoming.shape[2]
        _refuse_flattened(self, incoming)
        num_groups = channels if self.groups == -1 else self.groups
        if channels % num_groups:
            raise ConfigError(
                f"layer {self.name}: {self.groups} groups do not divide the {channels} channels of "
                f"the input; choose a divisor of {channels}"
            )
        return Layer(
            self.kind,
            self.name,
            shape,
            shape,
            has_scale=self.scale,
            has_bias=self.center,
            num_groups=num_groups,
            epsilon=float(self.epsilon),
            tensors=self._sized({"gamma": (channels,), "beta": (channels,)}),
        )

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(
            options.take("groups", 32),
            options.number("epsilon", 1e-3),
            center=options.take("center", True),
            scale=options.take("scale", True),
            name=name,
        )
        options.only("axis", (-1, len(shape)))
        options.finish(free=cls.initializers())
        spec.check(options.label)
        _refuse_without_channels(options, shape)
        yield spec, shape


@dataclass(frozen=True)
class LayerNorm(Spec):
    """Values become (value - mean) / root(variance + epsilon), over the channels of each pixel.

    This is Keras's LayerNormalization with axis -1. For a vector, mean and variance are those of
    all its values.

    Attributes:
        epsilon: Added inside the root.
        center: Whether beta is added.
        scale: Whether the values are multiplied by gamma.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "layer_normalization"
    keras_class = "LayerNormalization"
    tensors = GroupNorm.tensors
    checks: ClassVar = {
        "epsilon": fields.check_epsilon,
        "center": fields.check_flag,
        "scale": fields.check_flag,
    }
    needs_channels = True

    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        shape, channels = incoming.shape, incoming.shape[2]
        _refuse_flattened(self, incoming)
        return Layer(
            self.kind,
            self.name,
            shape,
            shape,
            has_scale=self.scale,
            has_bias=self.center,
            epsilon=float(self.epsilon),
            tensors=self._sized({"gamma": (channels,), "beta": (channels,)}),
        )

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(
            options.number("epsilon", 1e-3),
            center=options.take("center", True),
            scale=options.take("scale", True),
            name=name,
        )
        options.only("axis", (-1, [-1], len(shape), [len(shape)]))
        options.finish(free=cls.initializers())
        spec.check(options.label)
        _refuse_without_channels(options, shape)
        yield spec, shape


@dataclass(frozen=True)
class BatchNorm(Spec):
    """Values become (value - mean) / root(variance + epsilon), per channel over a whole batch.

    In training, mean and variance are those of the batch. After each local step the moving mean and
    the moving variance become momentum * moving + (1 - momentum) * batch, where batch is the mean
    or the variance of that batch. Evaluation normalises by these moving statistics. As in Keras 3
    the variance is the biased one, divided by the number of values. `fedcli help models` says what
    the server does with the moving statistics of the clients.

    Attributes:
        momentum: Weight of the old moving statistics in each update, from 0 to 1. PyTorch's
            momentum is 1 minus this one.
        epsilon: Added inside the root.
        center: Whether beta is added.
        scale: Whether the values are multiplied by gamma.
        frozen: Whether training, too, normalises by the moving mean and variance, which then never
            change. Gamma and beta are trained in any case. Keras has no such option.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "batch_normalization"
    keras_class = "BatchNormalization"
    tensors = (
        *GroupNorm.tensors,
        TensorKind("moving_mean", 0.0, is_trained=False),
        TensorKind("moving_variance", 1.0, is_trained=False),
    )
    checks: ClassVar = {
        "momentum": fields.check_share,
        "epsilon": fields.check_epsilon,
        "center": fields.check_flag,
        "scale": fields.check_flag,
        "frozen": fields.check_flag,
    }
    needs_channels = True

    momentum: float = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    frozen: bool = False
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        shape, channels = incoming.shape, incoming.shape[2]
        _refuse_flattened(self, incoming)
        return Layer(
            self.kind,
            self.name,
            shape,
            shape,
            has_scale=self.scale,
            has_bias=self.center,
            epsilon=float(self.epsilon),
            momentum=float(self.momentum),
            is_frozen=self.frozen,
            tensors=self._sized(dict.fromkeys(self.starts(), (channels,))),
        )

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(
            options.number("momentum", 0.99),
            options.number("epsilon", 1e-3),
            center=options.take("center", True),
            scale=options.take("scale", True),
            name=name,
        )
        options.only("axis", (-1, [-1], len(shape), [len(shape)]))
        # Without renorm, whose value must be False, its momentum has no effect.
        options.finish(free=(*cls.initializers(), "renorm_momentum"))
        spec.check(options.label)
        _refuse_without_channels(options, shape)
        yield spec, shape

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        options = super().to_keras()
        del options["frozen"]
        return options


def _refuse_flattened(spec: Spec, incoming: Incoming) -> None:
    if not incoming.is_image and incoming.shape[:2] != (1, 1):
        raise ConfigError(
            f"layer {spec.name}: a {spec.kind} of a flattened image; put it before the flattening"
        )


def _refuse_without_channels(options: Options, shape: KerasShape) -> None:
    if len(shape) == 2:
        raise ConfigError(f"{options.label} takes {list(shape)}; give it an image with channels")
