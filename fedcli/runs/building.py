"""Builds the model of a config, and its algorithm with optimizers, aggregator and schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedcli import models
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.datasets.client_data import ClientData
from fedcli.lazy import load
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.optimizers import schedules
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models import sources
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.settings import tables
from fedcli.settings.run_config import RunConfig
from fedcli.settings.vocabulary import BY_ROUND, LOCAL_NORMS

if TYPE_CHECKING:
    from fedcli.learning.masked_sums import SumOptions
    from fedcli.learning.updates.contract import UpdateStage
    from fedcli.models.layers import Spec
    from fedcli.runs.attacking import Attack


def build_algorithm(config: RunConfig) -> Algorithm:
    """Returns the algorithm of a valid config. Reads no data.

    Raises:
        ConfigError: The algorithm does not support the client optimizer.
        PartError: The user's own code for a part fails.
    """
    assert config.client_weighting is not None
    algorithm = algorithms.build(
        config.algorithm,
        _build_client_optimizer(config),
        _build_server_optimizer(config),
        weighting=config.client_weighting,
        aggregator=_build_aggregator(config),
        options=config.algorithm_options,
    )
    local_norms = config.batch_norm if config.batch_norm in LOCAL_NORMS else None
    return replace(algorithm, ema_decay=config.server_ema, local_norms=local_norms)


def build_stages(
    config: RunConfig, algorithm: Algorithm, attack: Attack | None
) -> tuple[UpdateStage, ...]:
    """Returns the stages of a valid config, which change individual updates before aggregation.

    Raises:
        ConfigError: The attack cannot be made on the aggregator.
    """
    stages: list[UpdateStage | None] = []
    if attack is not None:
        stages.append(attack.stage(algorithm.aggregator))
    if config.compress is not None:
        from fedcli.learning.updates import compression  # lazy: few runs compress

        threads = native.resolve_threads(config.threads)
        stages.append(
            compression.build(
                config.compress,
                config.compress_options,
                num_threads=threads,
                sums=_sum_options(config),
            )
        )
    return tuple(stage for stage in stages if stage is not None)


def with_secure_sum(algorithm: Algorithm, config: RunConfig) -> Algorithm:
    """Returns the algorithm; its aggregator uses secure sums if the config has `secure_sum`."""
    options = _sum_options(config)
    if options is None:
        return algorithm
    from fedcli.learning.secure_sums import securing  # lazy: few runs have them

    code = securing.code_of(config.compress, config.compress_options)
    if code is None:
        return algorithm
    return replace(algorithm, aggregator=securing.secured(algorithm.aggregator, options, code))


def build_model(
    config: RunConfig,
    train: ClientData,
    stored: Model | None,
    given: Any,
    check_needs: Callable[[ParamLayout], object],
    notes: list[str],
    cancel: CancelFlag | None,
) -> Model:
    """Returns the model of a run, with its input layers and its kind of batch normalization.

    Args:
        config: A valid config.
        train: The train data, which give the shape of the images and the number of classes.
        stored: The model of a checkpoint, which has its input layers; None for a new model.
        given: An object that is a model or makes one, in place of what the config names; None for
            none. See `models.own.wrap`.
        check_needs: It is called with the model's layout before weights are drawn, and raises an
            error if the model is too large.
        notes: Notes for the user are added to it.
        cancel: A flag that any thread may set to stop the counting of pixel values.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: An option does not fit the model or the data, or `check_needs` refused.
        DataError: The train data are bad.
        OwnCodeError: The user's own model fails.
    """
    inputs = _input_layers(config, train, notes, cancel) if stored is None else []
    shape = _shape_after(inputs, train.pixel_shape)
    if given is not None:
        from fedcli.models import own  # lazy: few models are objects

        model = own.wrap(given, input_shape=shape, num_classes=train.num_classes)
    else:
        model = stored or _new_model(config, train, shape, check_needs)
    if inputs:
        from fedcli.models.augmentation import with_input_layers

        model = with_input_layers(inputs, model, train.pixel_shape)
    return sources.with_batch_norms(model, config.batch_norm)


def _sum_options(config: RunConfig) -> SumOptions | None:
    """Returns the options of secure sums; None without `secure_sum`."""
    if not config.secure_sum:
        return None
    (entry,) = tables.SECURE_SUMS.values()
    options: SumOptions = load(entry.code)(**config.secure_sum_options)
    return options


def _build_aggregator(config: RunConfig) -> Aggregator:
    """Returns the aggregator; for a private run, one without its privacy plan."""
    if config.dp is not None:
        from fedcli.runs.privacy_plan import unplanned_mean  # lazy: few runs are private

        return unplanned_mean(config)
    name, options = config.aggregator, config.aggregator_options
    if config.pre_aggregator is None:
        return aggregators.build(name, options)
    return aggregators.build_after(
        config.pre_aggregator, name, options, config.pre_aggregator_options
    )


def _build_client_optimizer(config: RunConfig) -> Optimizer | None:
    """The optimizer of the local steps; None for an algorithm without local steps."""
    if config.client_optimizer is None or config.client_lr is None:
        return None
    optimizer = optimizers.build(config.client_optimizer, config.client_lr, config.client_options)
    assert config.client_schedule is not None
    assert config.client_schedule_by is not None
    is_by_round = config.client_schedule_by == BY_ROUND
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
        weight_decay=config.client_weight_decay or 0.0,
    )


def _build_server_optimizer(config: RunConfig) -> Optimizer:
    assert config.server_lr is not None
    assert config.server_optimizer is not None
    optimizer = optimizers.build(config.server_optimizer, config.server_lr, config.server_options)
    schedule = schedules.build(
        config.server_schedule, config.server_schedule_options, num_rounds=config.rounds
    )
    return replace(optimizer, schedule=schedule)


def _new_model(
    config: RunConfig,
    train: ClientData,
    shape: tuple[int, ...],
    check_needs: Callable[[ParamLayout], object],
) -> Model:
    """Returns the model that the config names, for images of a shape."""
    if not tables.is_model_file(config.model):  # check before drawing weights
        layout = models.build_layout(
            config.model,
            input_shape=shape,
            num_classes=train.num_classes,
            options=config.model_options,
        )
        check_needs(layout)
    return sources.open_model(
        config.model,
        input_shape=shape,
        num_classes=train.num_classes,
        options=config.model_options,
        seed=config.seed,
        fresh_weights=config.fresh_weights,
    )


def _input_layers(
    config: RunConfig, train: ClientData, notes: list[str], cancel: CancelFlag | None
) -> list[Spec]:
    """The layers that augment and normalise images, before those of the model."""
    if config.augment is None and config.normalize is None:
        return []
    from fedcli.runs.input_layers import input_layers  # lazy: few runs have them

    return input_layers(config, train, notes, cancel)


def _shape_after(inputs: list[Spec], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an image after the input layers."""
    if not inputs:
        return shape
    from fedcli.models.augmentation import shape_after

    return shape_after(inputs, shape)
