"""`BatchPlan`: how a client's examples become batches (epochs, sizes, shuffling)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedcli.core.native import MAX_BATCH, Plan
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.settings.vocabulary import PIPELINES

if TYPE_CHECKING:
    from fedcli.settings.run_config import RunConfig

FULL = -1  # a shuffle buffer as large as the stream
MAX_COUNT = 2**31 - 1  # so that the product of two counts fits in 64 bits
MAX_BUFFERED = 2**32 - 1  # the core draws positions in the buffer as 32-bit numbers


@dataclass(frozen=True)
class BatchPlan:
    """How a client's examples become batches.

    Attributes:
        epochs: Number of local epochs, at least 1.
        batch_size: Examples per batch, at least 1; the last batch may be shorter.
        shuffle_buffer: Number of examples from which the shuffle draws the next one. 0 and 1 mean
            no shuffle; `FULL` means all examples.
        pipeline: `repeat-shuffle` (TFF's tutorial: batches cross epochs and epochs mix),
            `shuffle-repeat` (TFF's tasks: reshuffled each epoch, batches cross epochs) or
            `per-epoch` (McMahan et al. 2017: reshuffled each epoch, batches end with it).
        max_examples: Number of examples after which the repeated stream ends (TFF's max_elements);
            None: it does not end early.

    Raises:
        ConfigError: A count is below its least value or above 2,147,483,647, or the pipeline is
            unknown.
    """

    epochs: int = 1
    batch_size: int = 20
    shuffle_buffer: int = 1
    pipeline: str = "repeat-shuffle"
    max_examples: int | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        _check_count("epochs", self.epochs, 1)
        _check_count("batch size", self.batch_size, 1)
        _check_count("shuffle buffer", self.shuffle_buffer, FULL)
        if self.max_examples is not None:
            _check_count("max examples", self.max_examples, 1)
        if self.pipeline not in PIPELINES:
            raise ConfigError(
                f"unknown pipeline '{self.pipeline}'; choose one of {', '.join(PIPELINES)}"
            )

    def for_core(self) -> Plan:
        """Returns the plan in the form that the core takes."""
        return Plan(
            PIPELINES.index(self.pipeline),
            self.epochs,
            self.batch_size,
            self.shuffle_buffer,
            -1 if self.max_examples is None else self.max_examples,
        )

    def num_visits(self, num_examples: int) -> int:
        """Returns how many examples a client of `num_examples` processes, counting repetitions."""
        visits = self.epochs * num_examples
        return visits if self.max_examples is None else min(visits, self.max_examples)

    def largest_batch(self, num_examples: float, owner: str) -> int:
        """Returns the number of examples that the largest batch may have, at least 1.

        Args:
            num_examples: Number of examples of the client, or its mean over clients.
            owner: The client, for the message.

        Raises:
            ConfigError: The batch would have more than `MAX_BATCH` examples.
        """
        epochs = 1 if self.pipeline == "per-epoch" else self.epochs  # a batch ends with its epoch
        visits = epochs * num_examples
        if self.max_examples is not None:
            visits = min(visits, self.max_examples)
        size = max(1, math.ceil(min(visits, self.batch_size)))
        if size > MAX_BATCH:
            raise ConfigError(
                f"--batch-size {self.batch_size}: a batch of {owner} would have {size:,} examples; "
                f"choose at most {MAX_BATCH:,}"
            )
        return size

    def num_buffered(self, num_examples: int) -> int:
        """Returns the number of indices in the shuffle buffer of a client of `num_examples`."""
        once = self.epochs if self.pipeline == "repeat-shuffle" else 1
        wanted = math.inf if self.shuffle_buffer == FULL else max(1, self.shuffle_buffer)
        return int(min(wanted, once * num_examples, MAX_BUFFERED))

    def of_steps(self, num_steps: int, num_examples: int) -> BatchPlan:
        """Returns this plan with `epochs` and `max_examples` set for `num_steps` batches.

        The new plan is valid only for a client with `num_examples` examples. A client without
        examples has no batch.
        """
        if not num_examples:
            return self
        num_visits = num_steps * self.batch_size
        if self.pipeline == "per-epoch":
            num_epochs, rest = divmod(num_steps, -(-num_examples // self.batch_size))
            num_visits = num_epochs * num_examples + rest * self.batch_size
        num_epochs = -(-num_visits // num_examples)
        return replace(self, epochs=num_epochs, max_examples=num_visits)

    def num_batches(self, num_examples: int) -> int:
        """Returns the number of batches of a client of `num_examples`."""
        visits = self.num_visits(num_examples)
        if self.pipeline != "per-epoch" or not visits:
            return -(-visits // self.batch_size)
        num_epochs, rest = divmod(visits, num_examples)
        return num_epochs * -(-num_examples // self.batch_size) + -(-rest // self.batch_size)

    def batch_sizes(self, num_examples: int) -> Iterator[int]:
        """Yields the size of each batch in turn."""
        visits_left = self.num_visits(num_examples)
        stretch = num_examples if self.pipeline == "per-epoch" else visits_left
        while visits_left:
            stretch_left = min(stretch, visits_left)
            visits_left -= stretch_left
            while stretch_left:
                size = min(self.batch_size, stretch_left)
                stretch_left -= size
                yield size


def buffer_size(shuffle_buffer: int | Literal["full"]) -> int:
    """Returns a shuffle buffer as `BatchPlan` takes it: "full" becomes `FULL`."""
    return FULL if shuffle_buffer == "full" else shuffle_buffer


def plan_of(config: RunConfig) -> BatchPlan:
    """Returns the plan by which a run turns a client's examples into training batches."""
    return BatchPlan(
        epochs=config.epochs,
        batch_size=config.batch_size,
        shuffle_buffer=buffer_size(config.shuffle_buffer),  # type: ignore[arg-type]
        pipeline=config.pipeline,
        max_examples=config.max_examples,
    )


def _check_count(what: str, value: int, least: int) -> None:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not least <= value <= MAX_COUNT:
        raise ConfigError(f"{what} {value!r}: choose a whole number from {least} to {MAX_COUNT}")
