"""PyTorch modules as models. PyTorch is never imported here unless the user's code has done so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ArraySpec
from fedcli.errors import ModelError
from fedcli.settings.own import user_code

_SUM_TOLERANCE = 1e-4  # of the float32 probabilities of a row


def is_module(model: object) -> bool:
    """Tells whether something is a `torch.nn.Module`."""
    torch = _loaded()
    return torch is not None and isinstance(model, torch.nn.Module)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes what PyTorch draws a function of `seed`, and leaves its generator as it was."""
    torch = _loaded()
    if torch is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class TorchNetwork:
    """A module under the contract of `fedcli.own_models.OwnModel`.

    Images come as float32 [b, C, H, W], or [b, I] if they are flat; the module returns logits
    [b, K], and the loss is their mean cross-entropy. Its parameters are trained in place, on one
    thread. What it draws (dropout) is a function of the run's seed, the client and the round.
    """

    def __init__(self, module: Any, input_shape: tuple[int, ...], file: str) -> None:
        """Takes a module for images of `input_shape`, [H, W], [H, W, C] or [I].

        Raises:
            ModelError: It is not on the CPU, not float32, or keeps statistics between batches.
        """
        torch = _loaded()
        assert torch is not None
        self._torch, self._module, self._file = torch, module, file
        # That of a module that torch has itself would be a line of torch's.
        is_own = user_code.source_file(type(module)) == file
        self._where = user_code.place(type(module)) if is_own or not file else file
        self._input_shape = input_shape
        self._buffers = [(name, each, each.clone()) for name, each in module.named_buffers()]
        self._refuse_statistics()
        named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        for name, each in named:
            if each.device.type != "cpu" or each.dtype != torch.float32:
                raise ModelError(
                    f"{self._where}: parameter {name} is {each.dtype} on {each.device}; use "
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
        self._are_logits_seen = False

    def set_random_seed(self, seed: int) -> None:
        """Sets what dropout draws from."""
        generator = self._torch.Generator()
        generator.manual_seed(seed)
        self._random_state = generator.get_state()

    def forward_pass(self, batch: Mapping[str, NDArray[Any]], training: bool = True) -> Any:
        """Returns loss, logits and, in training, the gradients of a batch."""
        torch = self._torch
        images = torch.from_numpy(self._as_torch_has_it(batch["x"]))
        labels = torch.from_numpy(batch["y"].astype(np.int64))
        with self._one_thread(), torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(self._random_state)
            self._module.train(training)
            with torch.set_grad_enabled(training):
                logits = self._module(images)
                self._check_logits(logits, len(labels))
                loss = self._loss(logits, labels, batch.get("sample_weight"))
                gradients = self._gradients(loss) if training else None
            self._random_state = torch.random.get_rng_state()
        self._refuse_changed_buffers()
        return SimpleNamespace(
            loss=loss.item(), predictions=logits.detach().numpy(), gradients=gradients
        )

    def report_local_unfinalized_metrics(self) -> dict[str, Sequence[Any]]:
        """Returns none: a module has no metrics of its own."""
        return {}

    def metric_finalizers(self) -> dict[str, Callable[[list[Any]], Any]]:
        """Returns none."""
        return {}

    def reset_metrics(self) -> None:
        """Does nothing."""

    def _as_torch_has_it(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images [b, H, W] or [b, H, W, C] as [b, C, H, W]."""
        if images.ndim == 3:
            return images[:, np.newaxis]
        if images.ndim == 4:
            return np.ascontiguousarray(np.moveaxis(images, 3, 1))
        return images

    def _loss(self, logits: Any, labels: Any, weights: NDArray[np.float32] | None) -> Any:
        """The mean cross-entropy, each example's times its weight."""
        cross_entropy = self._torch.nn.functional.cross_entropy
        if weights is None:
            return cross_entropy(logits, labels)
        losses = cross_entropy(logits, labels, reduction="none")
        return (losses * self._torch.from_numpy(weights)).mean()

    def _gradients(self, loss: Any) -> list[NDArray[np.float32]]:
        found = self._torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return [
            np.zeros_like(variable) if each is None else each.numpy()
            for each, variable in zip(found, self.trainable_variables, strict=True)
        ]

    def _check_logits(self, logits: Any, size: int) -> None:
        is_right = self._torch.is_tensor(logits) and logits.ndim == 2 and len(logits) == size
        if not is_right or logits.dtype != self._torch.float32:
            shape = list(logits.shape) if hasattr(logits, "shape") else ""
            raise ModelError(
                f"{self._where}: for {size} images the module returned "
                f"{getattr(logits, 'dtype', type(logits).__name__)} {shape}; return float32 logits "
                f"[{size}, classes], without softmax"
            )
        if not self._are_logits_seen:
            self._refuse_probabilities(logits)
            self._are_logits_seen = True

    def _refuse_probabilities(self, logits: Any) -> None:
        """Refuses outputs of which each row is at least 0 and sums to 1: softmax made them."""
        with self._torch.no_grad():
            are_shares = bool((logits >= 0).all()) and logits.shape[1] > 1
            sums = logits.sum(dim=1)
            if not are_shares or bool(((sums - 1).abs() > _SUM_TOLERANCE).any()):
                return
        raise ModelError(
            f"{self._where}: the module returns probabilities (each row is at least 0 and sums to "
            "1), so it ends in softmax, and the loss applies another one: it would hardly learn; "
            "return the logits, without the softmax"
        )

    def _refuse_statistics(self) -> None:
        for name, _, _ in self._buffers:
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                raise ModelError(
                    f"{self._where}: {name.rpartition('.')[0] or 'the module'} keeps running "
                    "statistics, which clients cannot average as weights; use GroupNorm, or "
                    "track_running_stats=False"
                )

    def _refuse_changed_buffers(self) -> None:
        for name, now, before in self._buffers:
            if not self._torch.equal(now, before):
                raise ModelError(
                    f"{self._where}: the forward pass changed the buffer {name}, which is no "
                    "weight and would be lost between clients; make it a constant"
                )

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)


def _loaded() -> Any:
    return sys.modules.get("torch")
