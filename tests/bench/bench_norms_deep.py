"""Times normalizations and depthwise convolutions beside PyTorch, at the sizes of MobileNetV2.

    python tests/bench/bench_norms_deep.py [--repeats 10]

One thread, 20 images. The core repeats one stage of a small model; PyTorch (which must be
installed) repeats the module, in both of its memory layouts. ReLU6 follows each normalization, in
PyTorch as a module of its own. Processor time is measured, because a busy machine disturbs it less.
The smallest time is printed, in microseconds per image. `ratio` is the core's time for forward and
backward, divided by the time of PyTorch's faster layout.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fedcli.core import native
from fedcli.core.native import Phase
from fedcli.models.layers import (
    Activation,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalAveragePool2D,
    GroupNorm,
    Spec,
)
from fedcli.models.layout import lay_out
from fedcli.models.model import Model, glorot_uniform

NUM_IMAGES, NUM_CALLS = 20, 100
LAYOUTS = {"nchw": torch.contiguous_format, "last": torch.channels_last}
GROUPS = 2  # of a group normalization


class Case(NamedTuple):
    """A layer: its kind, the channels and the side of its images, and its stride."""

    kind: str
    channels: int
    side: int
    stride: int = 1

    def __str__(self) -> str:
        """Returns the name of the layer in the printed table."""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{self.kind} {self.channels} @{self.side}{stride}"


CASES = (
    Case("batch norm", 96, 32),
    Case("batch norm", 384, 8),
    Case("group norm", 96, 32),
    Case("group norm", 384, 8),
    Case("depthwise", 96, 32),
    Case("depthwise", 144, 32, 2),
    Case("depthwise", 192, 16),
    Case("depthwise", 384, 8),
    Case("depthwise", 576, 8, 2),
    Case("depthwise", 960, 4),
)


def layers_of(case: Case) -> list[Spec]:
    """Returns the layer, with the activation that the core computes together with it."""
    if case.kind == "batch norm":
        return [BatchNorm(), Activation("relu6")]
    if case.kind == "group norm":
        return [GroupNorm(GROUPS), Activation("relu6")]
    return [DepthwiseConv2D(3, case.stride, "same", use_bias=False)]


def model_of(case: Case) -> Model:
    """Returns a model whose second stage is the layer."""
    specs = [Conv2D(case.channels, 1, use_bias=False), *layers_of(case)]
    layout = lay_out([*specs, GlobalAveragePool2D(), Dense(10)], (case.side, case.side, 3))
    return Model(case.kind, layout, glorot_uniform(layout, 1))


def core_times(case: Case, repeats: int) -> list[float]:
    """Returns the core's time of the forward and of the backward pass."""
    model = model_of(case)
    rows = model.layout.core_rows()

    def seconds(phase: Phase, num_calls: int) -> float:
        start = time.process_time()
        native.exercise(rows, model.initial_params, NUM_IMAGES, 1, phase, num_calls)
        return time.process_time() - start

    times = []
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        overhead = min(seconds(phase, 0) for _ in range(repeats))
        least = min(seconds(phase, NUM_CALLS) for _ in range(repeats))
        times.append((least - overhead) / NUM_CALLS / NUM_IMAGES * 1e6)
    return times


def peer_module(case: Case) -> Any:
    """Returns the same layer in PyTorch."""
    channels = case.channels
    if case.kind == "batch norm":
        return torch.nn.Sequential(torch.nn.BatchNorm2d(channels), torch.nn.ReLU6())
    if case.kind == "group norm":
        return torch.nn.Sequential(torch.nn.GroupNorm(GROUPS, channels), torch.nn.ReLU6())
    return torch.nn.Conv2d(channels, channels, 3, case.stride, 1, groups=channels, bias=False)


def peer_pass(case: Case, layout: torch.memory_format) -> Callable[[], None]:
    """Returns a function that runs PyTorch's forward and backward pass."""
    module = peer_module(case).to(memory_format=layout)
    size = (NUM_IMAGES, case.channels, case.side, case.side)
    x = torch.randn(size).to(memory_format=layout).requires_grad_()
    gradient = torch.randn_like(module(x))

    def run() -> None:
        module(x).backward(gradient)
        x.grad = None
        module.zero_grad()

    return run


def peer_time(case: Case, layout: torch.memory_format, repeats: int) -> float:
    """Returns PyTorch's time of a forward and backward pass."""
    run, least = peer_pass(case, layout), float("inf")
    for _ in range(1 + 2 * repeats):
        start = time.thread_time()
        run()
        least = min(least, time.thread_time() - start)
    return least / NUM_IMAGES * 1e6


def main() -> None:
    """Prints a row for each layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{'forward / backward':22}{'core':>12}{'nchw':>8}{'last':>8}{'ratio':>8}")
    for case in CASES:
        core = core_times(case, repeats)
        peers = [peer_time(case, layout, repeats) for layout in LAYOUTS.values()]
        cells = "".join(f"{each:8.0f}" for each in peers)
        ratio = sum(core) / min(peers)
        print(f"{case!s:22}{core[0]:5.0f} / {core[1]:4.0f}{cells}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
