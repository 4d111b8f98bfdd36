"""PyTorch modules as models. This file uses PyTorch only if the user's code has imported it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ArraySpec
from fedcli.errors import ModelError, plural
from fedcli.models.metrics import are_probabilities
from fedcli.settings.own import user_code

# Final operations that are refused because the loss expects logits; keys are autograd's names.
_REFUSED_ENDINGS = {"Softmax": "a softmax", "Sigmoid": "a sigmoid"}
# Autograd's names of operations that keep the values and change at most the shape.
_SHAPING = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Clone", "Alias")


def is_module(model: object) -> bool:
    """Returns whether an object is a `torch.nn.Module`."""
    torch = _loaded()
    return torch is not None and isinstance(model, torch.nn.Module)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch's random numbers while the context is open; restores the generator after."""
    torch = _loaded()
    if torch is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def fix_shapes(module: Any, input_shape: tuple[int, ...], file: str) -> None:
    """Gives the lazy layers of a module (LazyLinear, ...) their shapes and their initial weights.

    For this the module is called once on an image of zeros, in evaluation mode. A module without
    lazy layers is not called.

    Args:
        module: A `torch.nn.Module`.
        input_shape: Shape of one image, [H, W], [H, W, C] or [I].
        file: File of the user's code, for messages.

    Raises:
        ModelError: The forward pass fails.
    """
    torch = _loaded()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, each in tensors if torch.nn.parameter.is_lazy(each)]
    if not lazy:
        return
    image = torch.from_numpy(_channels_first(np.zeros((1, *input_shape), np.float32)))
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(image)
    except Exception as err:
        where = user_code.where(err, file, file)
        raise ModelError(
            f"{where}: {lazy[0]} belongs to a lazy layer, which gets its shape in a forward pass "
            f"of an image of zeros, {list(image.shape)}, and this fails: {user_code.reason(err)}"
        ) from err
    finally:
        module.train(was_training)


class TorchNetwork:
    """Adapts a module to the contract of `fedcli.own_models.OwnModel`.

    The module receives images as float32 [b, C, H, W], or [b, I] if they are flat, and returns
    logits [b, K]. The loss is their mean cross-entropy. The module's parameters are trained in
    place, on one thread. Its random numbers (dropout) depend only on the run's seed, the client and
    the round.
    """

    def __init__(self, module: Any, input_shape: tuple[int, ...], file: str) -> None:
        """Checks and wraps a module for images of `input_shape`: [H, W], [H, W, C] or [I].

        Raises:
            ModelError: The module has no parameters that can be trained, a parameter is not float32
                on the CPU, or a layer keeps statistics between batches.
        """
        torch = _loaded()
        assert torch is not None
        self._torch, self._module, self._file = torch, module, file
        # For a class of torch itself, such as Sequential, `place` would name a line in torch.
        is_own = user_code.source_file(type(module)) == file
        self.place = user_code.place(type(module)) if is_own or not file else file
        fix_shapes(module, input_shape, file or self.place)
        self._buffers = [(name, each, each.clone()) for name, each in module.named_buffers()]
        self._refuse_statistics()
        named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        if not named:
            raise ModelError(
                f"{self.place}: {type(module).__name__} has no parameter that can be trained; give "
                "a module with layers, such as torch.nn.Linear"
            )
        for name, each in named:
            if isinstance(each, torch.nn.parameter.UninitializedParameter):
                raise ModelError(
                    f"{self.place}: {self._layer_of(name)} is lazy and {name} has no shape, "
                    "because the forward pass does not use the layer; use the layer, or leave it "
                    "out"
                )
            if each.device.type != "cpu" or each.dtype != torch.float32:
                raise ModelError(
                    f"{self.place}: parameter {name} is {each.dtype} on {each.device}; use "
                    "module.float().cpu()"
                )
        self.variable_names = [name for name, _ in named]
        self._parameters = [each for _, each in named]
        self.trainable_variables = [each.detach().numpy() for each in self._parameters]
        self.input_spec = {
            "x": ArraySpec((None, *input_shape), "float32"),
            "y": ArraySpec((None,), "int32"),
            "sample_weight": ArraySpec((None,), "float32"),
        }
        self._random_state = torch.random.get_rng_state()
        self._modes_seen: set[bool] = set()  # values of `training` with which outputs were checked

    def set_random_seed(self, seed: int) -> None:
        """Sets the state of the random generator from which dropout draws."""
        generator = self._torch.Generator()
        generator.manual_seed(seed)
        self._random_state = generator.get_state()

    def forward_pass(self, batch: Mapping[str, NDArray[Any]], training: bool = True) -> Any:
        """Returns loss, logits and, in training, the gradients of a batch."""
        torch = self._torch
        images = torch.from_numpy(_channels_first(batch["x"]))
        labels = torch.from_numpy(batch["y"].astype(np.int64))
        with self._one_thread(), torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(self._random_state)
            self._module.train(training)
            with torch.set_grad_enabled(training):
                logits = self._outputs(images)
                self._check_logits(logits, len(labels), training=training)
                loss = self._loss(logits, labels, batch.get("sample_weight"))
                gradients = self._gradients(loss) if training else None
            self._random_state = torch.random.get_rng_state()
        self._refuse_changed_buffers()
        return SimpleNamespace(
            loss=loss.item(), predictions=logits.detach().numpy(), gradients=gradients
        )

    def report_local_unfinalized_metrics(self) -> dict[str, Sequence[Any]]:
        """Returns an empty dict: a module has no metrics of its own."""
        return {}

    def metric_finalizers(self) -> dict[str, Callable[[list[Any]], Any]]:
        """Returns an empty dict: a module has no metrics of its own."""
        return {}

    def reset_metrics(self) -> None:
        """Does nothing."""

    def _loss(self, logits: Any, labels: Any, weights: NDArray[np.float32] | None) -> Any:
        """Returns the mean of the examples' cross-entropies, each multiplied by its weight."""
        cross_entropy = self._torch.nn.functional.cross_entropy
        if weights is None:
            return cross_entropy(logits, labels)
        losses = cross_entropy(logits, labels, reduction="none")
        return (losses * self._torch.from_numpy(weights)).mean()

    def _outputs(self, images: Any) -> Any:
        """Calls the module on images. The error of a failing module names line and layer."""
        try:
            return self._module(images)
        except Exception as err:
            where = user_code.where(err, self._file, self.place)
            layer = self._failing_layer(images)
            inside = f", in {layer}" if layer else ""
            raise ModelError(
                f"{where}: forward_pass: {user_code.reason(err)}{inside}; correct the code of the "
                "model"
            ) from err

    def _failing_layer(self, images: Any) -> str:
        """Returns the innermost layer that fails on images; empty if it is the module itself.

        The forward pass is repeated with hooks that record the layers that are running.
        """
        running: list[str] = []

        def begin(name: str) -> Callable[..., None]:
            return lambda *_: running.append(name)

        def end(*_: Any) -> None:
            running.pop()

        hooks = []
        for name, layer in self._module.named_modules():
            hooks += [
                layer.register_forward_pre_hook(begin(name)),
                layer.register_forward_hook(end),
            ]
        try:
            self._module(images)
        except Exception:
            return self._layer(running[-1]) if running and running[-1] else ""
        finally:
            for hook in hooks:
                hook.remove()
        return ""

    def _layer(self, name: str) -> str:
        """Describes a layer for messages: its class and its name in the module."""
        return f"the {type(self._module.get_submodule(name)).__name__} layer {name}"

    def _layer_of(self, tensor: str) -> str:
        """Describes the layer that has a parameter or buffer of this name."""
        name = tensor.rpartition(".")[0]
        return self._layer(name) if name else "the module"

    def _gradients(self, loss: Any) -> list[NDArray[np.float32]]:
        try:
            gradients = self._torch.autograd.grad(loss, self._parameters, allow_unused=True)
        except RuntimeError as err:
            raise ModelError(
                f"{self.place}: forward_pass: gradients: {user_code.reason(err)}; correct the "
                "code of the model"
            ) from err
        return [
            np.zeros_like(variable) if each is None else each.numpy()
            for each, variable in zip(gradients, self.trainable_variables, strict=True)
        ]

    def _check_logits(self, logits: Any, size: int, *, training: bool) -> None:
        is_right = self._torch.is_tensor(logits) and logits.ndim == 2 and len(logits) == size
        if not is_right or logits.dtype != self._torch.float32:
            shape = list(logits.shape) if hasattr(logits, "shape") else ""
            raise ModelError(
                f"{self.place}: for {plural(size, 'image')} the module returned "
                f"{getattr(logits, 'dtype', type(logits).__name__)} {shape}; return float32 logits "
                f"[{size}, classes], without softmax"
            )
        if training and not logits.requires_grad:
            raise ModelError(
                f"{self.place}: the outputs do not depend on the parameters, so there are no "
                "gradients; leave out detach, torch.no_grad and the like"
            )
        if training not in self._modes_seen:
            self._refuse_probabilities(logits, training=training)
            self._modes_seen.add(training)

    def _refuse_probabilities(self, logits: Any, *, training: bool) -> None:
        """Refuses rows of probabilities (each at least 0, sum 1) and outputs of a final sigmoid.

        In evaluation only the values are checked, because the outputs then have no autograd graph.
        """
        values: NDArray[np.float32] = logits.detach().numpy()
        are_shares = np.isfinite(values).all() and values.shape[1] > 1 and are_probabilities(values)
        ending = self._ending(logits)
        if are_shares:
            when = "" if training else "in evaluation (module.eval()) "
            raise ModelError(
                f"{self.place}: {when}the module returns probabilities (each row is at least 0 and "
                "sums to 1), but the loss applies a softmax, so "
                f"{'it would hardly learn' if training else 'the loss would be wrong'}; return the "
                "logits, without the softmax"
            )
        if ending is not None:
            raise ModelError(
                f"{self.place}: the module ends in {ending}, but the loss applies a softmax to its "
                "outputs, so it would hardly learn; return the logits instead"
            )

    def _ending(self, logits: Any) -> str | None:
        """Returns the description of the outputs' last operation if it is a refused one."""
        function = logits.grad_fn
        while function is not None:
            name = type(function).__name__.partition("Backward")[0]
            if name not in _SHAPING:
                return _REFUSED_ENDINGS.get(name)
            function = function.next_functions[0][0]
        return None

    def _refuse_statistics(self) -> None:
        for name, _, _ in self._buffers:
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                raise ModelError(
                    f"{self.place}: {self._layer_of(name)} keeps running "
                    "statistics, which are no weights of a module; use GroupNorm or "
                    "track_running_stats=False, or describe the model by fedcli's layers, which "
                    "have batch normalization (fedcli help models)"
                )

    def _refuse_changed_buffers(self) -> None:
        for name, now, before in self._buffers:
            if not self._torch.equal(now, before):
                raise ModelError(
                    f"{self.place}: the forward pass changed the buffer {name}, which is not a "
                    "weight and would not be kept between clients; make it a constant"
                )

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)


def _channels_first(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Converts [b, H, W] or [b, H, W, C] to [b, C, H, W]; flat images stay as they are."""
    if images.ndim == 3:
        return images[:, np.newaxis]
    if images.ndim == 4:
        return np.ascontiguousarray(np.moveaxis(images, 3, 1))
    return images


def _loaded() -> Any:
    return sys.modules.get("torch")
