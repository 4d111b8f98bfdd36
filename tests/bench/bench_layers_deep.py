"""Times the convolutions of deep networks, layer shape by layer shape, beside PyTorch.

    make -C tests/c build/bench_image_conv OPTIMIZE=-O3
    python tests/bench/bench_layers_deep.py [--only 3x3] [--repeats 20]

One thread, 20 images. PyTorch (which must be installed) runs in this process, in both of its memory
layouts; the core runs in a program of its own. PyTorch and the core take turns. In a turn each runs
a few times in a row, because the other one has replaced its data and code in the caches. Processor
time of the thread is measured, because a busy machine disturbs it less. The smallest time is
printed, in microseconds per image. `ratio` is the core's time for forward and backward, divided by
the time of PyTorch's faster layout.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

NUM_IMAGES, IN_A_ROW = 20, 4
PROGRAM = Path(__file__).parents[1] / "c" / "build" / "bench_image_conv"
LAYOUTS = {"nchw": torch.contiguous_format, "last": torch.channels_last}
PHASES = ("forward", "inputs", "weights", "backward")


class Shape(NamedTuple):
    """A convolution: the window and stride, channels in and out, and the side of its images."""

    window: int
    stride: int
    num_inputs: int
    num_outputs: int
    side: int

    def __str__(self) -> str:
        """Returns the name of the shape in the printed table."""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        window = f"{self.window}x{self.window}"
        return f"{window}{stride} {self.num_inputs}-{self.num_outputs} @{self.side}"


SHAPES = (
    Shape(3, 1, 16, 16, 32),
    Shape(3, 1, 32, 32, 16),
    Shape(3, 1, 64, 64, 8),
    Shape(3, 1, 64, 64, 16),
    Shape(3, 1, 64, 64, 32),
    Shape(3, 1, 128, 128, 8),
    Shape(3, 1, 128, 128, 16),
    Shape(3, 1, 256, 256, 8),
    Shape(3, 1, 512, 512, 4),
    Shape(3, 1, 512, 512, 2),
    Shape(3, 2, 16, 32, 32),
    Shape(3, 2, 64, 128, 32),
    Shape(3, 2, 128, 256, 16),
    Shape(3, 2, 256, 512, 8),
    Shape(1, 1, 256, 64, 16),
    Shape(1, 1, 64, 256, 16),
    Shape(1, 2, 64, 128, 32),
    Shape(1, 1, 16, 96, 32),
    Shape(1, 1, 96, 24, 32),
    Shape(1, 1, 144, 32, 16),
    Shape(1, 1, 192, 64, 8),
    Shape(1, 1, 64, 384, 8),
    Shape(5, 1, 64, 64, 16),
)


def torch_phases(shape: Shape, layout: torch.memory_format) -> dict[str, Callable[[], object]]:
    """Returns PyTorch's passes by name; `backward` computes the gradients of inputs and weights."""
    generator = torch.Generator().manual_seed(1)
    size = (NUM_IMAGES, shape.num_inputs, shape.side, shape.side)
    x = torch.randn(size, generator=generator).to(memory_format=layout)
    size = (shape.num_outputs, shape.num_inputs, shape.window, shape.window)
    w = torch.randn(size, generator=generator).to(memory_format=layout)
    bias = torch.zeros(shape.num_outputs)
    stride, padding = [shape.stride] * 2, [shape.window // 2] * 2

    def forward() -> torch.Tensor:
        return torch.conv2d(x, w, bias, stride, padding)

    gradient = torch.randn_like(forward())

    def backward(of_inputs: bool, of_weights: bool) -> object:
        return torch.ops.aten.convolution_backward(
            *(gradient, x, w, [shape.num_outputs], stride, padding, [1, 1], False, [0, 0], 1),
            [of_inputs, of_weights, of_weights],
        )

    return {
        "forward": forward,
        "inputs": lambda: backward(True, False),
        "weights": lambda: backward(False, True),
        "backward": lambda: backward(True, True),
    }


class Core:
    """The core's program, which runs one layer at a time."""

    def __init__(self, program: Path) -> None:
        """Starts the program."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program], stdin=pipe, stdout=pipe, text=True)

    def ask(self, command: str) -> str:
        """Sends a command; returns the answer."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(command + "\n")
        stdin.flush()
        return stdout.readline().strip()

    def set_up(self, shape: Shape, method: str) -> bool:
        """Prepares a layer; returns whether the method can compute it."""
        sizes = (NUM_IMAGES, shape.side, shape.side, shape.num_inputs, shape.num_outputs)
        command = " ".join(map(str, ("conv", method, *sizes, shape.window, shape.stride)))
        return self.ask(command) == "ok"


def least(times: dict[str, float], phase: str, seconds: float) -> None:
    """Keeps the smallest time of a phase in `times`, in microseconds per image."""
    times[phase] = min(times.get(phase, 1e9), seconds * 1e6 / NUM_IMAGES)


def measure(core: Core, shape: Shape, method: str, repeats: int) -> dict[str, dict[str, float]]:
    """Returns microseconds per image, by program and phase; empty if the method cannot be used."""
    if not core.set_up(shape, method):
        return {}
    runs = {name: torch_phases(shape, layout) for name, layout in LAYOUTS.items()}
    times: dict[str, dict[str, float]] = {"core": {}, **{name: {} for name in runs}}
    for _ in range(repeats):
        for phase in ("forward", "weights", "backward"):
            for _ in range(IN_A_ROW):
                least(times["core"], phase, float(core.ask(phase)))
        for name, phases in runs.items():
            for phase, run in phases.items():
                for _ in range(IN_A_ROW):
                    start = time.thread_time()
                    run()
                    least(times[name], phase, time.thread_time() - start)
    times["core"]["inputs"] = times["core"]["backward"] - times["core"]["weights"]
    return times


def row_of(shape: Shape, method: str, times: dict[str, dict[str, float]]) -> str:
    """Returns a line of the table."""
    totals = {name: each["forward"] + each["backward"] for name, each in times.items()}
    best = min(totals[name] for name in LAYOUTS)
    columns = [" / ".join(f"{each[phase]:.0f}" for phase in PHASES[:3]) for each in times.values()]
    cells = "".join(f"{column:>22}" for column in columns)
    return f"{shape!s:18} {method:9}{cells}{totals['core'] / best:8.2f}"


def main() -> None:
    """Prints a row for each layer and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--methods", nargs="+", default=["winograd", "small", "gemm"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    core = Core(options.program)
    names = "".join(f"{name:>22}" for name in ("core", *LAYOUTS))
    print(f"{'forward / inputs / weights':28}{names}{'ratio':>8}")
    for shape in SHAPES:
        for method in options.methods:
            if options.only in str(shape):
                times = measure(core, shape, method, options.repeats)
                if times:
                    print(row_of(shape, method, times), flush=True)


if __name__ == "__main__":
    main()
