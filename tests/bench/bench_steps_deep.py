"""Times whole training steps of small networks of one layer shape, beside PyTorch.

    python tests/bench/bench_steps_deep.py [--only 1x1] [--repeats 7]

A network has a 3x3 convolution of the image, layers of one shape, a global average pool and a dense
layer. A step is the forward and the backward pass of a batch of 20 images and plain SGD, in fedcli
with all that a round adds to it. Both programs run in this process on one thread and take turns;
PyTorch, which must be installed, runs in both of its memory layouts. Processor time is measured,
because a busy machine disturbs it less. Each turn counts the smaller of two times. The table has
the median of the turns, in microseconds per image, and fedcli's time divided by that of PyTorch's
faster layout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch

from fedcli.benchmarks import numpy_peer, tasks, torch_peer
from fedcli.core.native import CancelFlag
from fedcli.learning import optimizers
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layers import (
    Activation,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalAveragePool2D,
    GroupNorm,
    Spec,
)
from fedcli.models.model import Model, sequential

Job = Callable[[], object]

NUM_BATCHES, BATCH_SIZE, SIDE, LEARNING_RATE = 4, 20, 32, 0.02
LAYOUTS = {"nchw": torch.contiguous_format, "last": torch.channels_last}


def conv(channels: int, window: int, stride: int = 1) -> Spec:
    """Returns a convolution with relu that keeps the size of the image if the stride is 1."""
    return Conv2D(channels, window, strides=stride, padding="same", activation="relu")


def stem(side: int, channels: int) -> list[Spec]:
    """Returns layers from the image to `channels` channels of side x side pixels."""
    pools = [AveragePool2D(SIDE // side)] if side < SIDE else []
    return [*pools, conv(channels, 3)]


def convs(window: int, channels: tuple[int, ...], side: int) -> list[Spec]:
    """Returns convolutions one after the other; the stem has the first number of channels."""
    return [*stem(side, channels[0]), *(conv(each, window) for each in channels[1:])]


def strided(window: int, num_inputs: int, num_outputs: int, side: int) -> list[Spec]:
    """Returns one convolution with stride 2."""
    return [*stem(side, num_inputs), conv(num_outputs, window, 2)]


def normed(norm: Spec, channels: int, side: int) -> list[Spec]:
    """Returns 3x3 convolutions with a norm behind each."""
    block = [Conv2D(channels, 3, padding="same"), norm, Activation("relu")]
    return [*stem(side, channels), *block * 4]


def depthwise(channels: int, side: int) -> list[Spec]:
    """Returns depthwise convolutions."""
    layer = DepthwiseConv2D(3, padding="same", activation="relu")
    return [*stem(side, 16), conv(channels, 1), *[layer] * 4]


def inverted(channels: int, num_expanded: int, side: int) -> list[Spec]:
    """Returns the layers of two of MobileNetV2's blocks, with batch norm, without their sums."""
    block = [
        *(Conv2D(num_expanded, 1), BatchNorm(), Activation("relu6")),
        *(DepthwiseConv2D(3, padding="same"), BatchNorm(), Activation("relu6")),
        *(Conv2D(channels, 1), BatchNorm()),
    ]
    return [*stem(side, channels), *block * 2]


NETS = {
    "3x3 16 @32": convs(3, (16,) * 5, 32),
    "3x3 32 @16": convs(3, (32,) * 5, 16),
    "3x3 64 @8": convs(3, (64,) * 5, 8),
    "3x3 64 @16": convs(3, (64,) * 5, 16),
    "3x3 64 @32": convs(3, (64,) * 3, 32),
    "3x3 128 @8": convs(3, (128,) * 3, 8),
    "3x3 128 @16": convs(3, (128,) * 3, 16),
    "3x3 256 @8": convs(3, (256,) * 3, 8),
    "3x3 512 @4": convs(3, (512,) * 3, 4),
    "3x3 s2 16-32 @32": strided(3, 16, 32, 32),
    "3x3 s2 64-128 @32": strided(3, 64, 128, 32),
    "3x3 s2 128-256 @16": strided(3, 128, 256, 16),
    "3x3 s2 256-512 @8": strided(3, 256, 512, 8),
    "1x1 256-64 @16": convs(1, (256, 64, 256, 64, 256), 16),
    "1x1 16-96 @32": convs(1, (16, 96, 16, 96, 16), 32),
    "1x1 24-96 @32": convs(1, (24, 96, 24, 96, 24), 32),
    "1x1 32-144 @16": convs(1, (32, 144, 32, 144, 32), 16),
    "1x1 64-192 @8": convs(1, (64, 192) * 4, 8),
    "1x1 64-384 @8": convs(1, (64, 384) * 4, 8),
    "1x1 s2 64-128 @32": strided(1, 64, 128, 32),
    "5x5 16 @32": convs(5, (16,) * 5, 32),
    "5x5 64 @16": convs(5, (64,) * 3, 16),
    "3x3 + group norm 16 @32": normed(GroupNorm(groups=2), 16, 32),
    "3x3 + group norm 64 @16": normed(GroupNorm(groups=2), 64, 16),
    "3x3 + batch norm 16 @32": normed(BatchNorm(), 16, 32),
    "3x3 + batch norm 64 @16": normed(BatchNorm(), 64, 16),
    "depthwise 96 @32": depthwise(96, 32),
    "depthwise 192 @16": depthwise(192, 16),
    "depthwise 384 @8": depthwise(384, 8),
    "MobileNetV2 24-144 @32": inverted(24, 144, 32),
    "MobileNetV2 64-384 @8": inverted(64, 384, 8),
}

TASK = tasks.Task(
    tasks.TRAIN, "", (BATCH_SIZE,) * NUM_BATCHES, BATCH_SIZE, 1, LEARNING_RATE, data=tasks.SHAPES
)


def own_job(model: Model) -> Job:
    """Returns a round of clients with one batch each."""
    engine, cancel = ThreadEngine(1), CancelFlag()
    cohort = tasks.make_cohort(TASK)
    task = ClientTask(
        rows=tuple(optimizers.sgd(LEARNING_RATE).client_rows()),
        params=model.initial_params,
        round_num=0,
        weighting="num-examples",
    )
    return lambda: engine.train(model.layout, task, cohort, cancel=cancel)


def torch_job(model: Model, layout: torch.memory_format) -> Job:
    """Returns PyTorch's steps on the same batches."""
    net = torch_peer.build(model).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    loss_of = torch.nn.CrossEntropyLoss()
    batches = [
        (
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(memory_format=layout),
            torch.from_numpy(labels.astype("int64")),
        )
        for client in tasks.make_cohort(TASK)
        for x, labels in numpy_peer.batches_of(client, model.layout.input_shape)
    ]

    def train() -> None:
        for x, labels in batches:
            optimizer.zero_grad()
            loss_of(net(x), labels).backward()
            optimizer.step()

    return train


def seconds_of(job: Job) -> float:
    """Returns the smaller processor time of two calls."""
    times = []
    for _ in range(2):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    return min(times)


def measure(jobs: Iterable[Job], repeats: int) -> list[float]:
    """Returns the median time of each job in microseconds per image."""
    jobs = list(jobs)
    for job in jobs:
        job()
    turns = [[seconds_of(job) for job in jobs] for _ in range(repeats)]
    num_images = NUM_BATCHES * BATCH_SIZE
    return [statistics.median(times) * 1e6 / num_images for times in zip(*turns, strict=True)]


def main() -> None:
    """Prints a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':24}{'fedcli':>9}{'nchw':>9}{'last':>9}{'ratio':>8}")
    for name, body in NETS.items():
        if options.only not in name:
            continue
        model = sequential(
            [*body, GlobalAveragePool2D(), Dense(10)], input_shape=(SIDE, SIDE, 3), seed=0
        )
        jobs = [own_job(model), *(torch_job(model, layout) for layout in LAYOUTS.values())]
        own, *others = measure(jobs, options.repeats)
        cells = "".join(f"{each:9.0f}" for each in (own, *others))
        print(f"{name:24}{cells}{own / min(others):8.2f}", flush=True)


if __name__ == "__main__":
    main()
