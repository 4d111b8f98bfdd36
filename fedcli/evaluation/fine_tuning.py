"""The options of `fedcli eval --finetune`. Their defaults are those of the run's local training.

By default clients fine-tune as they train in the run: with the client optimizer, options, clipping,
batches and shuffle of the run. The learning rate is that of the run without its schedule, because
schedules often end at 0. A limit on the examples in a round (--max-examples) does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import MAX_COUNT, plan_of
from fedcli.errors import ConfigError
from fedcli.evaluation.personalization import FineTuning
from fedcli.learning import optimizers
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings import tables
from fedcli.settings.options import Value, choose
from fedcli.settings.run_config import OPTIONS, RunConfig


@dataclass(frozen=True)
class FineTuningOptions:
    """How clients fine-tune. None stands for the run's own setting.

    Exactly one of `num_steps` and `num_epochs` is given.

    Attributes:
        num_steps: Number of local steps.
        num_epochs: Number of local epochs.
        optimizer: Name of the optimizer.
        learning_rate: Its learning rate.
        options: Options of the optimizer. With the run's optimizer, missing ones are the run's.
        batch_size: Number of examples in a batch.
    """

    num_steps: int | None = None
    num_epochs: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    batch_size: int | None = None

    def resolve(self, config: RunConfig) -> FineTuning:
        """Returns the strategy for a model of this run.

        Raises:
            ConfigError: An option is not allowed, or the learning rate is not known.
        """
        batch_size = config.batch_size if self.batch_size is None else self.batch_size
        _check_length(self.num_steps, self.num_epochs, batch_size)
        plan = replace(
            plan_of(config),
            epochs=self.num_epochs or 1,
            batch_size=batch_size,
            max_examples=None,
        )
        return FineTuning(self._optimizer(config), plan, self.num_steps)

    def _optimizer(self, config: RunConfig) -> Optimizer:
        name = self.optimizer or config.client_optimizer or OPTIONS["client_optimizer"].usual
        choose(tables.OPTIMIZERS, name, "--finetune-optimizer")
        is_own = name == config.client_optimizer
        rate = config.client_lr if is_own and self.learning_rate is None else self.learning_rate
        if rate is None:
            raise ConfigError(
                f"--finetune with {name}: the run's clients do not use this optimizer, so there is "
                "no default learning rate; give --finetune-lr"
            )
        tables.check_learning_rate(rate, "--finetune-lr")
        options = {**(config.client_options if is_own else {}), **self.options}
        try:
            optimizer = optimizers.build(name, rate, options)
        except ConfigError as err:
            raise ConfigError(f"--finetune-option: {err}") from err
        return replace(
            optimizer,
            clip_norm=config.client_clip_norm,
            weight_decay=config.client_weight_decay or 0.0,
        )


def to_json(strategy: FineTuning) -> dict[str, Any]:
    """Returns the strategy as plain values for `fedcli eval --json`."""
    length = (
        {"num_epochs": strategy.plan.epochs}
        if strategy.num_steps is None
        else {"num_steps": strategy.num_steps}
    )
    return {
        **length,
        "batch_size": strategy.plan.batch_size,
        "optimizer": strategy.optimizer.name,
        "learning_rate": strategy.optimizer.learning_rate,
        "options": dict(strategy.optimizer.options),
    }


def describe(strategy: FineTuning) -> str:
    """Returns the strategy in words."""
    number, what = strategy.num_steps, "local step"
    if number is None:
        number, what = strategy.plan.epochs, "local epoch"
    optimizer = strategy.optimizer
    return (
        f"{number:,} {what}{'s' * (number != 1)} of {optimizer.name}, rate "
        f"{optimizer.learning_rate:g}, batches of {strategy.plan.batch_size}"
    )


def _check_length(num_steps: int | None, num_epochs: int | None, batch_size: int) -> None:
    if (num_steps is None) == (num_epochs is None):
        raise ConfigError("fine-tuning needs either --finetune STEPS or --finetune-epochs N")
    most = MAX_COUNT // batch_size if batch_size > 0 else MAX_COUNT
    for option, value, maximum in (
        ("--finetune-batch-size", batch_size, MAX_COUNT),
        ("--finetune", num_steps, most),
        ("--finetune-epochs", num_epochs, MAX_COUNT),
    ):
        if value is not None and not 1 <= value <= maximum:
            raise ConfigError(f"{option} {value}: choose a whole number from 1 to {maximum}")
