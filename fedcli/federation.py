"""What a config stands for, opened: data, model, learning process, cohorts, evaluated clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli import (
    __version__,
    aggregators,
    algorithms,
    checkpoint,
    cohort,
    datasets,
    engines,
    learning,
    model_sources,
    models,
    optimizers,
    registry,
    schedules,
)
from fedcli.backend import CancelFlag, Cancelled, Engine
from fedcli.batches import BatchedDataset, BatchPlan, buffer_size
from fedcli.checkpoint import Checkpoint
from fedcli.client_states import ClientStates
from fedcli.cohort import ClientSelection, Cohorts
from fedcli.config import RunConfig
from fedcli.datasets import ClientData
from fedcli.datasets.client_data import CENTRAL
from fedcli.errors import CheckpointError, ConfigError, DataError
from fedcli.learning import LearningProcess, ServerState
from fedcli.models import Model
from fedcli.optimizers import Optimizer
from fedcli.participation import Attendance, Participation

# Clients evaluated in one call, so that not all their data are in memory at once. Sums of losses
# are formed block by block, so this number is part of the result's last digit.
EVAL_BLOCK = 256

# What a model is judged by beside train: the first of these that the data have.
_HELD_OUT = ("test", CENTRAL)


class PanelScores(NamedTuple):
    """The metrics of a panel in TFF's structure, and one row of stats a client, in its order."""

    metrics: dict[str, Any]
    client_stats: NDArray[Any]


class Panel:
    """The clients of one split that are evaluated, again and again.

    Attributes:
        split: Name of the split.
        data: The split.
        client_ids: Who is evaluated.
        num_absent: How many more were asked for whom the split does not have.
        plan: How a client's examples become batches.
        notes: What a reader should know, a line each: whether clients are absent.
    """

    def __init__(
        self,
        split: str,
        data: ClientData,
        client_ids: Sequence[str],
        plan: BatchPlan,
        *,
        num_absent: int = 0,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Reads the data of a small panel at once, so that bad data are found before any work."""
        self.split = split
        self.data = data
        self.client_ids = client_ids
        self.num_absent = num_absent
        self.notes = notes
        self.plan = plan
        is_small = len(client_ids) <= EVAL_BLOCK
        self._held = tuple(ClientBatches(data, client_ids, plan)) if is_small else None

    def evaluate(
        self, evaluator: LearningProcess, weights: Any, cancel: CancelFlag | None
    ) -> PanelScores:
        """Returns the metrics of float32 [num_params] weights on all these clients.

        The process is called once a block of clients and its state passed on; since that starts
        afresh here, the totals over all rounds are this evaluation's.
        """
        state = replace(evaluator.initialize(), global_model_weights=weights)
        stats = []
        for block in self._blocks():
            output = evaluator.next(state, block, cancel=cancel)
            state = output.state
            stats.append(output.client_stats)
        metrics = output.metrics
        totals = metrics["client_work"]["eval"]["total_rounds_metrics"]
        metrics["client_work"]["eval"]["current_round_metrics"] = dict(totals)
        return PanelScores(metrics, stats[0] if len(stats) == 1 else np.concatenate(stats))

    def _blocks(self) -> Iterator[tuple[BatchedDataset, ...]]:
        if self._held is not None:
            yield self._held
            return
        for first in range(0, len(self.client_ids), EVAL_BLOCK):
            last = min(first + EVAL_BLOCK, len(self.client_ids))
            ids = [self.client_ids[index] for index in range(first, last)]
            yield tuple(ClientBatches(self.data, ids, self.plan))


class CohortData(NamedTuple):
    """A cohort and the batches of those who report, in order.

    Attributes:
        batches: Of each client that trains.
        num_clients: How many do.
        client_ids: Who was chosen.
        attendance: What became of them; None where everyone always reports.
    """

    batches: Iterable[BatchedDataset]
    num_clients: int
    client_ids: Sequence[str]
    attendance: Attendance | None = None


@dataclass(frozen=True, eq=False)
class Federation:
    """A config with all that it names, ready for the first round.

    Attributes:
        config: Every option, resolved.
        splits: The data by split; `train` is there.
        engine: What computes clients.
        process: The learning process.
        evaluator: Federated evaluation of the same model.
        cohorts: Who takes part in each round.
        participation: Which of them report, and when; None: all, at once.
        panels: Who is evaluated, by split.
        plan: How a client's examples become batches in training.
        held: The data of a fixed cohort that the client cache could hold; None if each round
            reads its own.
        notes: What a reader should know, a line each.
    """

    config: RunConfig
    splits: dict[str, ClientData]
    engine: Engine
    process: LearningProcess
    evaluator: LearningProcess
    cohorts: Cohorts
    participation: Participation | None
    panels: tuple[Panel, ...]
    plan: BatchPlan
    held: tuple[BatchedDataset, ...] | None
    notes: list[str]

    def cohort_data(self, round_num: int) -> CohortData:
        """Returns the batches of those who report of the cohort drawn after `round_num` rounds.

        Of a round that is skipped nobody's are read.
        """
        train = self.splits["train"]
        ids = self.cohorts.for_round(round_num)
        attendance = None
        places: Sequence[int] = range(len(ids))
        if self.participation is not None:

            def num_visits(client_id: str) -> int:
                return self.plan.num_visits(train.num_examples(client_id))

            num_wanted = self.cohorts.num_wanted
            attendance = self.participation.attend(round_num, ids, num_visits, num_wanted)
            places = () if attendance.is_skipped else attendance.reports
        if self.held is not None:
            is_whole = len(places) == len(self.held)  # the engine knows a tuple again
            held = self.held if is_whole else tuple(self.held[place] for place in places)
            return CohortData(held, len(held), ids, attendance)
        present = ids if attendance is None else [ids[place] for place in places]
        batches = ClientBatches(train, present, self.plan, self.config.seed)
        return CohortData(batches, len(present), ids, attendance)

    def initial_state(self) -> ServerState:
        """Returns the state before round 1, with the initial weights of the config.

        Raises:
            ConfigError: The weights file is no such file or does not fit the model.
        """
        state = self.process.initialize()
        if self.config.initial_weights is None:
            return state
        from fedcli import weights_files  # late: zipfile takes 7 ms that few runs need

        layout = self.process.model.layout
        weights = weights_files.load(Path(self.config.initial_weights), layout)
        return self.process.set_model_weights(state, weights)

    def encode(self, state: ServerState, config_text: str) -> bytes:
        """Returns the content of a checkpoint of `state`."""
        model = self.process.model
        content = Checkpoint(
            state.round_num,
            to_components(state, model),
            config_text,
            model.layout.input_shape,
            model.layout.num_classes,
            self.splits["train"].pixel_convention,
            __version__,
            model_sources.to_text(model.layout),
            None if model.layout.specs else tuple(each.name for each in model.layout.tensors),
        )
        return checkpoint.encode(content)


def open_federation(
    config: RunConfig, cancel: CancelFlag | None = None, model: Model | None = None
) -> Federation:
    """Opens all that a valid config names; reads the data of fixed cohorts.

    Args:
        config: A valid config.
        cancel: Once raised, from any thread, opening stops.
        model: What is trained; None: what the config names.

    Raises:
        Cancelled: `cancel` was raised while data were dealt to clients or counted.
        ConfigError: An option does not fit the data.
        DataError: The data are missing, bad, or do not fit each other.
    """
    splits = open_data(config, cancel)
    train = splits["train"]
    notes: list[str] = []
    if held_out_split(splits) is None:
        notes.append(f"{train.source} has no test data: evaluating on train only")
    config, selection = _resolve_clients(config, train, notes)

    def num_examples(client_id: str) -> int:
        if cancel is not None and cancel.is_set():
            raise Cancelled
        return train.num_examples(client_id)

    cohorts = cohort.plan_cohorts(
        selection,
        config.sampling,
        train.client_ids,
        train.source,
        config.seed,
        num_examples,
        config.over_selection,
    )
    _check_min_reports(config, cohorts)
    if model is None:
        model = model_sources.open_model(
            config.model,
            input_shape=train.pixel_shape,
            num_classes=train.num_classes,
            options=config.model_options,
            seed=config.seed,
            fresh_weights=config.fresh_weights,
        )
    check_fit(train, model)
    engine = engines.make_engine(model, config.threads)
    if engines.is_python(model) and (config.threads or 1) > 1:
        notes.append(f"{config.model} is computed in Python, on one thread, not {config.threads}")
    plan = BatchPlan(
        epochs=config.epochs,
        batch_size=config.batch_size,
        shuffle_buffer=buffer_size(config.shuffle_buffer),  # type: ignore[arg-type]
        pipeline=config.pipeline,
        max_examples=config.max_examples,
    )
    held = None
    if cohorts.fixed is not None and _can_be_held(train, cohorts.fixed):
        held = tuple(ClientBatches(train, cohorts.fixed, plan, config.seed))
    return Federation(
        config=config,
        splits=splits,
        engine=engine,
        process=build_process(config, model, engine, _population_size(cohorts, train)),
        evaluator=learning.build_fed_eval(model, engine=engine),
        cohorts=cohorts,
        participation=_plan_participation(config),
        panels=tuple(_make_panels(config, cohorts, splits, notes)),
        plan=plan,
        held=held,
        notes=notes,
    )


def open_data(config: RunConfig, cancel: CancelFlag | None = None) -> dict[str, ClientData]:
    """Returns the splits of a config's data, one of them `train`.

    Raises:
        Cancelled: `cancel` was raised while data were dealt to clients.
        DataError: They are missing or bad, or the splits do not agree.
    """

    def tell(done: int, total: int | None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled

    splits = datasets.open_splits(
        config.data,
        data_options=config.data_options,
        test_data=config.test_data,
        partition=config.partition,
        partition_options=config.partition_options,
        num_classes=config.num_classes,
        pixels=config.pixels,
        tell=tell,
    )
    if "train" not in splits:
        raise DataError(
            f"{config.data} has no split train but {', '.join(sorted(splits))}; choose other --data"
        )
    return splits


def held_out_split(splits: Mapping[str, ClientData]) -> str | None:
    """Returns the split that is evaluated beside train: test, else central, None without both."""
    return next((name for name in _HELD_OUT if name in splits), None)


def make_panel(data: ClientData, wanted: Sequence[str], plan: BatchPlan, seed: int) -> Panel:
    """Returns a panel of the wanted clients that a split has, of all its clients if it has none.

    Args:
        data: The split.
        wanted: Ids, at least one.
        plan: How a client's examples become batches.
        seed: Draws from all clients where they are too many.
    """
    present = _find_present(data, wanted)
    num_absent = len(wanted) - len(present)
    if not num_absent:
        return Panel(data.split, data, present, plan)
    where = f"in the {data.split} split of {data.source}"
    if present:
        note = f"{num_absent} of the {len(wanted)} clients are not {where} and are skipped"
    else:
        present, _ = cohort.choose_eval_clients(data.client_ids, data.source, seed)
        num_clients = len(data.client_ids)
        share = "all" if len(present) == num_clients else f"{len(present):,}, drawn by the seed,"
        note = f"none of the {len(wanted)} clients is {where}: evaluating on {share} of its "
        note += f"{num_clients:,} clients"
    return Panel(data.split, data, present, plan, num_absent=num_absent, notes=(note,))


@contextmanager
def fingerprinting(config: RunConfig, cancel: CancelFlag | None) -> Iterator[Future[str]]:
    """Reads the data through while the block opens them; hashing leaves other threads running.

    A raised `cancel`, or an error in the block, ends the reading of even the largest file at once.
    """
    is_left = Event()

    def is_cancelled() -> bool:
        return is_left.is_set() or (cancel is not None and cancel.is_set())

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedcli-fingerprint")
    try:
        yield executor.submit(
            datasets.fingerprint,
            config.data,
            data_options=config.data_options,
            test_data=config.test_data,
            partition=config.partition,
            partition_options=config.partition_options,
            is_cancelled=is_cancelled,
        )
    finally:
        is_left.set()
        executor.shutdown(wait=False)


def note_of_change(
    config: RunConfig, before: object, now: str, consequence: str
) -> tuple[str, ...]:
    """Returns a line that the data have changed, or none if they have not or nobody knows.

    Args:
        config: Names the data.
        before: Their fingerprint when the run began; None: not known.
        now: Their fingerprint.
        consequence: Ends the line.
    """
    if before in (None, now):
        return ()
    named = config.data if config.test_data is None else f"{config.data} or {config.test_data}"
    return (f"{named} has changed since the run began; {consequence}",)


def note_of_changed_model(text: str | None, before: object) -> tuple[str, ...]:
    """Returns a line that the file of a model in Python has changed, or none.

    Args:
        text: What --model was, FILE.py or FILE.py:FUNCTION; any other: there is nothing to say.
        before: The file's fingerprint when the run began; None: not known.

    Raises:
        ModelError: The file cannot be read.
    """
    if before is None or text is None or model_sources.code_fingerprint(text) in (None, before):
        return ()
    file = model_sources.python_file(text)
    return (f"{file} has changed since the run began; the model is what it makes now",)


def _population_size(cohorts: Cohorts, train: ClientData) -> int:
    """How many clients may take part: those of a fixed cohort, else everyone."""
    return len(train.client_ids if cohorts.fixed is None else set(cohorts.fixed))


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


def check_fit(data: ClientData, model: Model) -> None:
    """Refuses data that a model was not made for.

    Raises:
        DataError: Images or classes differ.
    """
    layout = model.layout
    if tuple(data.pixel_shape) != layout.input_shape:
        raise DataError(
            f"{data.source} has images of shape {list(data.pixel_shape)}, the model takes "
            f"{list(layout.input_shape)}; choose data like those it was trained on"
        )
    if data.num_classes != layout.num_classes:
        raise DataError(
            f"{data.source} has {data.num_classes} classes, the model {layout.num_classes}; "
            f"pass --num-classes {layout.num_classes} if the labels are the same"
        )


@dataclass(frozen=True, eq=False)
class ClientBatches:
    """The batches of some clients, in order, each read whenever it is come to.

    Iterating raises DataError where a client cannot be read.
    """

    data: ClientData
    client_ids: Sequence[str]
    plan: BatchPlan
    seed: int = 0

    def __iter__(self) -> Iterator[BatchedDataset]:
        """Yields the batches of each client."""
        for client_id in self.client_ids:
            yield BatchedDataset(self.data.client(client_id), self.plan, self.seed)


def _can_be_held(data: ClientData, client_ids: Sequence[str]) -> bool:
    """Whether the images of some clients, a byte a pixel, would fit in the client cache."""
    image_bytes = math.prod(data.pixel_shape)
    num_bytes = 0
    for client_id in client_ids:
        num_bytes += data.num_examples(client_id) * image_bytes
        if num_bytes > datasets.CACHE_BYTES:
            return False
    return True


def _find_present(data: ClientData, client_ids: Sequence[str]) -> Sequence[str]:
    """Returns those ids that a split has."""
    if client_ids is data.client_ids:
        return client_ids
    return [each for each in client_ids if cohort.contains(data.client_ids, each)]


def model_of(content: Checkpoint, config: RunConfig, path: Path, code: str | None = None) -> Model:
    """Returns the model of a checkpoint. No file that its config names is opened or run.

    Args:
        content: The checkpoint.
        config: Of its run.
        path: The checkpoint's file, for messages.
        code: What the user said after --model, the one thing that may be run: FILE.py, where the
            function is the run's, or FILE.py:FUNCTION.

    Raises:
        CheckpointError: Description, weights and the rest do not fit each other.
        ConfigError: The config names no model that fits; the model is code and `code` is not
            given, or the other way round.
        ModelError: That file is gone or fails.
    """
    if content.description is None and model_sources.python_file(config.model) is not None:
        return model_sources.open_model(
            model_sources.allowed_code(config.model, code),
            input_shape=content.input_shape,
            num_classes=content.num_classes,
            options=config.model_options,
            seed=config.seed,
        )
    if code is not None:
        raise ConfigError(
            f"--model {code}: it is for runs whose model is code, and {path} holds all of its "
            f"model, {config.model}; leave it out"
        )
    if not registry.is_model_file(config.model):
        return _named_model(content, config, path)
    if content.description is None:
        raise CheckpointError(
            f"{path} does not describe its model, {config.model}; it is not a checkpoint of fedcli"
        )
    try:
        weights = content.components["global_model_weights"]
        model = model_sources.from_text(content.description, config.model, weights)
    except ConfigError as err:
        raise CheckpointError(f"{path} is not a usable checkpoint: {err}") from err
    layout = model.layout
    if (layout.input_shape, layout.num_classes) != (content.input_shape, content.num_classes):
        raise CheckpointError(
            f"{path}: its model takes {list(layout.input_shape)} and has {layout.num_classes} "
            f"classes, but it claims {list(content.input_shape)} and {content.num_classes}; it is "
            "not a checkpoint of fedcli"
        )
    return model


def _named_model(content: Checkpoint, config: RunConfig, path: Path) -> Model:
    """A model of the registry, made only once it is known to be as large as its weights."""
    asked: dict[str, Any] = {
        "input_shape": content.input_shape,
        "num_classes": content.num_classes,
        "options": config.model_options,
    }
    needed = models.build_layout(config.model, **asked).num_params
    weights = content.components["global_model_weights"].values()
    found = sum(np.size(each) for each in weights)
    if found != needed:
        raise CheckpointError(
            f"{path} holds {found:,} weights, but {config.model} of its config, for examples of "
            f"{list(content.input_shape)} and {content.num_classes} classes, has {needed:,}; use "
            "the config it was written with"
        )
    return models.build(config.model, **asked, seed=config.seed)


def to_components(state: ServerState, model: Model) -> dict[str, dict[str, checkpoint.Part]]:
    """Returns the parts of a state by component, the weights tensor by tensor."""
    layout = model.layout
    tensors = layout.split(state.global_model_weights)
    names = [tensor.name for tensor in layout.tensors]
    return {
        "global_model_weights": dict(zip(names, tensors, strict=True)),
        "distributor": state.distributor,
        "client_work": {name: _to_part(part) for name, part in state.client_work.items()},
        "aggregator": state.aggregator,
        "finalizer": state.finalizer,
    }


def to_state(content: Checkpoint, process: LearningProcess, path: Path) -> ServerState:
    """Returns the server state in a checkpoint.

    Raises:
        CheckpointError: It is not a state of this process.
    """
    initial = process.initialize()
    checkpoint.check(content, to_components(initial, process.model), path)
    parts = content.components
    layout = process.model.layout
    weights = layout.join([parts["global_model_weights"][each.name] for each in layout.tensors])  # type: ignore[misc]
    return ServerState(
        round_num=content.round_num,
        global_model_weights=weights,
        distributor=dict(parts["distributor"]),
        client_work={
            name: _from_part(part, initial.client_work[name])
            for name, part in parts["client_work"].items()
        },
        aggregator=dict(parts["aggregator"]),
        finalizer=dict(parts["finalizer"]),
    )


def _to_part(part: Any) -> checkpoint.Part:
    """What a checkpoint holds of a part of a state: of what clients keep, its version alone."""
    value: checkpoint.Part = part.version if isinstance(part, ClientStates) else part
    return value


def _from_part(part: checkpoint.Part, initial: Any) -> Any:
    """The part of a state that is `initial` before the first round."""
    if not isinstance(initial, ClientStates):
        return part
    assert isinstance(part, int)
    return replace(initial, version=part)


def _resolve_clients(
    config: RunConfig, train: ClientData, notes: list[str]
) -> tuple[RunConfig, ClientSelection]:
    """The selection of the cohort, and the config that repeats it when files of ids are gone."""
    if config.eval_clients is not None:
        evaluated = cohort.parse_clients(config.eval_clients, "--eval-clients")
        config = replace(config, eval_clients=evaluated.ids or config.eval_clients)
    if config.clients is None:
        selection, note = cohort.default_selection(train.client_ids, train.source)
        notes.extend([note] if note else [])
        return replace(config, clients=str(selection.count)), selection
    selection = cohort.parse_clients(config.clients)
    if selection.ids is not None:
        config = replace(config, clients=selection.ids)
    return config, selection


def _plan_participation(config: RunConfig) -> Participation | None:
    """Who reports and when; None if everyone does and no clock is asked for."""
    if not config.client_dropout and config.client_speeds is None and config.min_reports is None:
        return None
    return Participation(
        seed=config.seed,
        dropout=config.client_dropout,
        speeds=config.client_speeds or (),
        communication_seconds=config.communication_seconds,
        deadline=config.deadline,
        min_reports=config.min_reports or 0,
    )


def _check_min_reports(config: RunConfig, cohorts: Cohorts) -> None:
    """Refuses to wait for more reports than there are clients in a cohort."""
    if config.min_reports is None or config.sampling == "poisson":  # of which any number may come
        return
    size = len(cohorts.fixed or ()) if cohorts.sampler is None else cohorts.sampler.size
    size = size if cohorts.num_wanted is None else cohorts.num_wanted
    if config.min_reports > size:
        raise ConfigError(
            f"--min-reports {config.min_reports} exceeds the cohort of {size}: every round would "
            f"be skipped; choose 1 to {size}"
        )


def _make_panels(
    config: RunConfig, cohorts: Cohorts, splits: dict[str, ClientData], notes: list[str]
) -> Iterator[Panel]:
    plan = BatchPlan(batch_size=config.batch_size)
    held_out = held_out_split(splits)
    for split in ("train", held_out) if held_out else ("train",):
        wanted = _wanted_for_evaluation(config, cohorts, splits, splits[split], notes)
        panel = make_panel(splits[split], wanted, plan, config.seed)
        notes.extend(panel.notes)
        yield panel


def _wanted_for_evaluation(
    config: RunConfig,
    cohorts: Cohorts,
    splits: dict[str, ClientData],
    data: ClientData,
    notes: list[str],
) -> Sequence[str]:
    """Ids to evaluate on one split, whether it has them or not."""
    if config.eval_clients is not None:
        selection = cohort.parse_clients(config.eval_clients, "--eval-clients")
        return _select_for_evaluation(selection, splits, data)
    if cohorts.fixed is not None and data.split != CENTRAL:  # whose clients are others
        return cohorts.fixed
    chosen, note = cohort.choose_eval_clients(data.client_ids, data.source, config.seed)
    notes.extend([note] if note else [])
    return chosen


def _select_for_evaluation(
    selection: ClientSelection, splits: dict[str, ClientData], data: ClientData
) -> Sequence[str]:
    train = splits["train"]
    if selection.ids is None:
        population = data.client_ids if selection.count is None else train.client_ids
        return cohort.resolve_ids(selection, population, train.source, "--eval-clients")
    for client_id in selection.ids:
        if not any(cohort.contains(each.client_ids, client_id) for each in splits.values()):
            lone = ClientSelection(ids=(client_id,))
            cohort.resolve_ids(lone, train.client_ids, train.source, "--eval-clients")
    return selection.ids
