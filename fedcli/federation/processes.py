"""The learning process that a config describes."""

from __future__ import annotations

from dataclasses import replace

from fedcli import aggregators, algorithms, learning, optimizers, schedules
from fedcli.config import RunConfig
from fedcli.engine import Engine
from fedcli.learning import LearningProcess
from fedcli.models import Model
from fedcli.optimizers import Optimizer


def build_process(
    config: RunConfig, model: Model, engine: Engine, num_clients: int | None = None
) -> LearningProcess:
    """Returns the learning process of a valid config.

    Args:
        config: The config.
        model: Its model.
        engine: What computes clients.
        num_clients: How many may take part; None, where nobody is going to be trained.
    """
    assert config.client_weighting is not None
    algorithm = algorithms.build(
        config.algorithm,
        _build_client_optimizer(config),
        _build_server_optimizer(config),
        weighting=config.client_weighting,
        aggregator=aggregators.build(config.aggregator, config.aggregator_options),
        options=config.algorithm_options,
    )
    algorithm = replace(algorithm, ema_decay=config.server_ema)
    return learning.build_process(
        algorithm,
        model,
        engine=engine,
        num_clients=num_clients,
        measures_deltas=config.record_clients,
    )


def _build_client_optimizer(config: RunConfig) -> Optimizer | None:
    """The optimizer of the local steps, None for an algorithm without such."""
    if config.client_optimizer is None or config.client_lr is None:
        return None
    optimizer = optimizers.build(config.client_optimizer, config.client_lr, config.client_options)
    assert config.client_schedule is not None
    assert config.client_schedule_by is not None
    is_by_round = config.client_schedule_by == schedules.BY_ROUND
    schedule = schedules.build(
        config.client_schedule,
        config.client_schedule_options,
        num_rounds=config.rounds if is_by_round else None,
    )
    return replace(
        optimizer,
        schedule=schedule,
        schedule_by=config.client_schedule_by,
        clip_norm=config.client_clip_norm,
    )


def _build_server_optimizer(config: RunConfig) -> Optimizer:
    assert config.server_lr is not None
    assert config.server_optimizer is not None
    optimizer = optimizers.build(config.server_optimizer, config.server_lr, config.server_options)
    schedule = schedules.build(
        config.server_schedule, config.server_schedule_options, num_rounds=config.rounds
    )
    return replace(optimizer, schedule=schedule)
