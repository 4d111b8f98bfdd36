"""The tasks in a plain PyTorch loop, with batches that are tensors on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcli.benchmarks import numpy_peer, tasks
from fedcli.benchmarks.tasks import Task
from fedcli.errors import ConfigError
from fedcli.models import torch_files
from fedcli.models.layers.contract import Layer
from fedcli.models.model import Model

Params = NDArray[np.float32]
_LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Each function takes the constant of a layer's activation, `Layer.activation_constant`.
_ACTIVATIONS: dict[str, Callable[[float], Any]] = {
    "relu": lambda _: torch.nn.ReLU(),
    "tanh": lambda _: torch.nn.Tanh(),
    "sigmoid": lambda _: torch.nn.Sigmoid(),
    "relu6": lambda _: torch.nn.ReLU6(),
    "leaky_relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "silu": lambda _: torch.nn.SiLU(),
    "gelu": lambda _: torch.nn.GELU(),
    "gelu_tanh": lambda _: torch.nn.GELU("tanh"),
    "hard_silu": lambda _: torch.nn.Hardswish(),
}


def prepare(task: Task, num_threads: int) -> Callable[[], Params]:
    """Returns a function that does the task once and returns its result as a flat array.

    Images in colour are stored in whichever of PyTorch's two memory layouts makes the job faster on
    this machine.

    Args:
        task: The task.
        num_threads: Threads of PyTorch's operators.
    """
    torch.set_num_threads(num_threads)
    model = tasks.build_model(task)
    if task.kind == tasks.AVERAGE:
        return _averaging(model, len(task.sizes))
    jobs = [_job(task, model, layout) for layout in _LAYOUTS]
    return min(jobs, key=_seconds_of) if task.data == tasks.SHAPES else jobs[0]


def _seconds_of(job: Callable[[], Params]) -> float:
    """Returns the seconds of the faster of two calls, after an untimed call for PyTorch's setup."""
    job()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _job(task: Task, model: Model, layout: Any) -> Callable[[], Params]:
    """The job with images and kernels in a memory layout."""
    net = build(model).to(memory_format=layout)
    start = [each.detach().clone() for each in _tensors(net)]
    batches = [
        [(x.to(memory_format=layout), labels) for x, labels in client]
        for client in _batches(task, model)
    ]
    loss_of = torch.nn.CrossEntropyLoss()

    def train() -> Params:
        net.train()
        total = [torch.zeros_like(each) for each in start]
        for client, size in zip(batches, task.sizes, strict=True):
            with torch.no_grad():
                for mine, theirs in zip(_tensors(net), start, strict=True):
                    mine.copy_(theirs)
            optimizer = torch.optim.SGD(net.parameters(), lr=task.client_lr)
            for x, labels in client:
                optimizer.zero_grad()
                loss_of(net(x), labels).backward()
                optimizer.step()
            with torch.no_grad():
                for part, mine, theirs in zip(total, _tensors(net), start, strict=True):
                    part.add_(mine - theirs, alpha=float(size))
        scale = 1 / sum(task.sizes)
        return gather(model, [s + t * scale for s, t in zip(start, total, strict=True)])

    def evaluate() -> Params:
        net.eval()
        loss, num_correct, num_examples = 0.0, 0, 0
        with torch.inference_mode():
            for client in batches:
                for x, labels in client:
                    logits = net(x)
                    loss += float(loss_of(logits, labels)) * len(labels)
                    num_correct += int((logits.argmax(dim=1) == labels).sum())
                    num_examples += len(labels)
        return np.array([loss / num_examples, num_correct / num_examples], np.float32)

    return train if task.kind == tasks.TRAIN else evaluate


def build(model: Model) -> Any:
    """Returns a torch.nn.Module with the model's layers and initial parameters.

    Raises:
        ConfigError: The kind of a layer is not supported here.
    """
    net = _Graph(model)
    state = torch_files.state(model.layout, model.layout.split(model.initial_params))
    net.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in state.items()})
    return net


class _Graph(torch.nn.Module):  # type: ignore[misc]  # PyTorch need not be installed
    """The layers of a model, each applied to the outputs of its source layers.

    A layer's module with its weights has the layer's name, as in the files of `torch_files`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.sources = model.layout.sources
        self.merges = [
            _concatenated if layer.kind == "concatenate" else torch.add
            for layer in model.layout.layers
        ]
        self.steps: list[list[Any]] = []  # the modules of each layer, in their order
        is_flat = [len(model.layout.input_shape) == 1]
        for layer, sources in zip(model.layout.layers, self.sources, strict=True):
            parts: list[Any] = []
            if layer.kind == "dense" and not is_flat[sources[0]]:
                parts.append(torch.nn.Flatten())
            parts += _modules(layer)
            if layer.activation != "linear":
                parts.append(_ACTIVATIONS[layer.activation](layer.activation_constant))
            for place, part in enumerate(parts):
                has_weights = any(True for _ in part.parameters())
                name = torch_files.module_name(layer) if has_weights else f"{layer.name} {place}"
                self._add(name, part)
            self.steps.append(parts)
            is_flat.append(layer.kind == "dense" or is_flat[sources[0]])
        self.ends_in_image = not is_flat[-1]

    def forward(self, x: Any) -> Any:
        """Returns the logits [n, classes] of images [n, C, H, W]."""
        values = [x]
        for parts, sources, merge in zip(self.steps, self.sources, self.merges, strict=True):
            value = values[sources[0]]
            for source in sources[1:]:
                value = merge(value, values[source])
            for part in parts:
                value = part(value)
            values.append(value)
        return values[-1].flatten(1) if self.ends_in_image else values[-1]

    def _add(self, name: str, part: Any) -> None:
        """Adds a module; a name `a.b` makes it the part b of a module a."""
        owner: Any = self
        *outer, last = name.split(".")
        for each in outer:
            if not hasattr(owner, each):
                owner.add_module(each, torch.nn.Module())
            owner = getattr(owner, each)
        owner.add_module(last, part)


def _concatenated(first: Any, second: Any) -> Any:
    return torch.cat((first, second), dim=1)


def _tensors(net: Any) -> list[Any]:
    """The tensors of a network in the order of `ParamLayout.tensors`: moving statistics are last.

    PyTorch's number of batches, an integer, is left out.
    """
    return [*net.parameters(), *(each for each in net.buffers() if each.is_floating_point())]


def gather(model: Model, tensors: list[Any]) -> Params:
    """Returns PyTorch's tensors as fedcli's flat parameters."""
    arrays = [each.detach().numpy() for each in tensors]
    return model.layout.join(torch_files.reordered(model.layout, arrays, is_back=True))


def _modules(layer: Layer) -> list[Any]:
    pads = _padding(layer)
    is_symmetric = pads[0] == pads[1] and pads[2] == pads[3]
    if layer.kind == "dense":
        return [torch.nn.Linear(layer.num_inputs, layer.num_outputs, bias=layer.has_bias)]
    if layer.kind in ("conv2d", "depthwise_conv2d"):
        own_pads = (pads[2], pads[0]) if is_symmetric else (0, 0)
        conv = torch.nn.Conv2d(
            layer.in_shape[2],
            layer.out_shape[2],
            layer.window,
            layer.strides,
            own_pads,
            groups=1 if layer.kind == "conv2d" else layer.in_shape[2],
            bias=layer.has_bias,
        )
        return [conv] if is_symmetric else [torch.nn.ZeroPad2d(pads), conv]
    if layer.kind == "max_pooling2d":
        pool = torch.nn.MaxPool2d(layer.window, layer.strides)
        return [torch.nn.ConstantPad2d(pads, -math.inf), pool] if any(pads) else [pool]
    if layer.kind == "average_pooling2d" and not any(pads):
        return [torch.nn.AvgPool2d(layer.window, layer.strides)]
    if layer.kind == "group_normalization" and layer.has_scale and layer.has_bias:
        return [torch.nn.GroupNorm(layer.num_groups, layer.in_shape[2], layer.epsilon)]
    is_plain = layer.has_scale and layer.has_bias and not layer.is_frozen
    if layer.kind == "batch_normalization" and is_plain and layer.in_shape[:2] != (1, 1):
        # PyTorch's momentum is the weight of the new batch; ours is that weight subtracted from 1.
        return [torch.nn.BatchNorm2d(layer.in_shape[2], layer.epsilon, 1 - layer.momentum)]
    if layer.kind == "dropout":
        return [torch.nn.Dropout(layer.rate)]
    if layer.kind in ("activation", "add", "concatenate"):  # `_Graph` has merged two inputs
        return []
    raise ConfigError(
        f"layer {layer.name}: the PyTorch program has no {layer.kind} of this form; leave torch "
        "out of --compare for this job"
    )


def _padding(layer: Layer) -> tuple[int, int, int, int]:
    """The zero padding that windows need: left, right, top, bottom."""
    pads = []
    for out, stride, window, pad, size in zip(
        layer.out_shape, layer.strides, layer.window, layer.pads, layer.in_shape, strict=False
    ):
        pads.append((pad, max(0, (out - 1) * stride + window - pad - size)))
    if not pads or layer.window == (0, 0):
        return 0, 0, 0, 0
    (top, bottom), (left, right) = pads
    return left, right, top, bottom


def _batches(task: Task, model: Model) -> list[list[tuple[Any, Any]]]:
    """Batches of each client: float32 [n, C, H, W], int64 [n]."""
    return [
        [
            (
                torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))),
                torch.from_numpy(labels.astype(np.int64)),
            )
            for x, labels in numpy_peer.batches_of(client, model.layout.input_shape)
        ]
        for client in tasks.make_cohort(task)
    ]


def _averaging(model: Model, num_models: int) -> Callable[[], Params]:
    arrays, weights = numpy_peer.models_to_average(model.initial_params, num_models)
    clients = [torch.from_numpy(each) for each in arrays]

    def average() -> Params:
        total = torch.zeros_like(clients[0])
        for client, weight in zip(clients, weights, strict=True):
            total.add_(client, alpha=weight)
        mean: Params = total.div_(sum(weights)).numpy()
        return mean

    return average
