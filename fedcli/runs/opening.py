"""Opens the data, model, engine and learning process of a config, ready for the first round."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core.native import CancelFlag, Cancelled, resolve_threads
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan, plan_of
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import CACHE_BYTES
from fedcli.errors import ConfigError
from fedcli.federation.cohorts import Cohorts
from fedcli.federation.evaluated_splits import notes_of_evaluation
from fedcli.federation.evaluation_groups import EvaluationGroup, make_groups
from fedcli.federation.opened_data import (
    check_fit,
    notes_of_sources,
    notes_on,
    open_data,
)
from fedcli.federation.sampled_clients import SampledClients, cohort_size, open_sampled_clients
from fedcli.learning.aggregators.contract import problem_of
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.learning.process import LearningProcess
from fedcli.learning.state import ServerState
from fedcli.learning.training_process import TrainingProcess
from fedcli.models import sources
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.runs import needs
from fedcli.runs.building import build_algorithm, build_model, build_stages, with_secure_sum
from fedcli.runs.files import checkpoint
from fedcli.runs.files.checkpoint import Checkpoint
from fedcli.runs.files.folder import refuse_as_data
from fedcli.runs.files.saved_states import digests_of, to_components
from fedcli.settings.data_source import DataSource
from fedcli.settings.options import is_code
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.engines import RAY
from fedcli.version import __version__

if TYPE_CHECKING:
    from fedcli.cluster.ray_workers import RayWorkers
    from fedcli.federation.participation import RoundReports
    from fedcli.runs.attacking import Attack


class CohortData(NamedTuple):
    """A cohort, with the batches of the clients that train, in order.

    Attributes:
        batches: The batches of each client that trains.
        num_clients: Number of clients that train.
        client_ids: The cohort.
        round_reports: Which clients reported, dropped out or were late; None if all report always.
    """

    batches: Iterable[BatchedDataset]
    num_clients: int
    client_ids: Sequence[str]
    round_reports: RoundReports | None = None

    @property
    def training_ids(self) -> list[str]:
        """The clients that train, in order."""
        if self.round_reports is None:
            return list(self.client_ids)
        places = () if self.round_reports.is_skipped else self.round_reports.reports
        return [self.client_ids[place] for place in places]

    @property
    def num_absent(self) -> int:
        """Number of clients of the cohort that do not train."""
        return len(self.client_ids) - self.num_clients


@dataclass(frozen=True, eq=False)
class Federation:
    """A config with its data, model, engine and learning process, ready for the first round.

    Attributes:
        config: The options, all resolved.
        splits: The data by split; `train` is always there.
        engine: The engine that trains and evaluates clients.
        process: The learning process.
        evaluator: Federated evaluation of the same model.
        sampled_clients: The cohort of each round.
        groups: The clients to evaluate, one group for each split.
        plan: How a client's examples become batches in training.
        fixed_batches: The batches of a fixed cohort, in memory; None if each round reads its
            clients.
        class_weights: Weights of the training loss, float32 [num_classes]; None if there are none.
        attack: The attack; None if there is none.
        poisoned_batches: `fixed_batches` with the attackers' poisoned examples; None if there are
            none.
        notes: Notes for the user, one line each.
        batch_bytes: Bytes of the batches that all threads process at a time in training; 0 if the
            workers of a cluster or a model in Python compute them.
        workers: The workers of a cluster that `engine` uses; None if it computes in this process.
    """

    config: RunConfig
    splits: dict[str, ClientData]
    engine: Engine
    process: TrainingProcess
    evaluator: LearningProcess
    sampled_clients: SampledClients
    groups: tuple[EvaluationGroup, ...]
    plan: BatchPlan
    fixed_batches: tuple[BatchedDataset, ...] | None
    class_weights: NDArray[np.float32] | None
    attack: Attack | None
    poisoned_batches: tuple[BatchedDataset, ...] | None
    notes: list[str]
    batch_bytes: int
    workers: RayWorkers | None = None

    def cohort_data(self, round_num: int) -> CohortData:
        """Returns the cohort of the round after `round_num` rounds, with the batches to train on.

        Clients that do not report, and all clients of a skipped round, are not read.
        """
        ids, round_reports = self.sampled_clients.of_round(round_num)
        places: Sequence[int] = range(len(ids))
        if round_reports is not None:
            places = () if round_reports.is_skipped else round_reports.reports
        is_attacked = self.attack is not None and self.attack.rounds.has(round_num)
        batches = (
            self.poisoned_batches
            if is_attacked and self.poisoned_batches is not None
            else self.fixed_batches
        )
        if batches is not None:
            if len(places) != len(batches):  # the engine reuses decoded images for the same tuple
                batches = tuple(batches[place] for place in places)
            return CohortData(batches, len(batches), ids, round_reports)
        present = ids if round_reports is None else [ids[place] for place in places]
        train = self.splits["train"]
        if is_attacked and self.attack is not None:
            train = self.attack.poisoned(train)
        return CohortData(
            ClientBatches(train, present, self.plan, self.config.seed),
            len(present),
            ids,
            round_reports,
        )

    def initial_state(self) -> ServerState:
        """Returns the state before round 1, with the initial weights of the config.

        Raises:
            ConfigError: The weights file does not exist, or does not fit the model.
        """
        state = self.process.initialize()
        if self.config.initial_weights is None:
            return state
        from fedcli.models import weights_files

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
            sources.to_text(model.layout),
            None if model.layout.specs else tuple(each.name for each in model.layout.tensors),
            digests_of(state),
        )
        return checkpoint.encode(content)


def open_federation(
    config: RunConfig,
    cancel: CancelFlag | None = None,
    model: Model | None = None,
    *,
    source: DataSource | None = None,
    given_model: Any = None,
    folder: Path = Path(),
) -> Federation:
    """Opens the data and model of a valid config; reads the data of a fixed cohort.

    Args:
        config: A valid config.
        cancel: A flag that any thread may set to stop opening.
        model: The model; None for the one that the config names.
        source: The data; None for those that the config names.
        given_model: An object that is a model or makes one, in place of what the config names; see
            `models.own.wrap`.
        folder: The folder for the run's files; its disk must have room for them.

    Raises:
        Cancelled: `cancel` was set while data were assigned to clients or counted.
        ConfigError: An option does not fit another, or the data; or the run does not fit in memory
            or on the disk.
        DataError: The data are missing, bad, or do not fit each other.
        OwnCodeError: The user's own code fails.
    """
    algorithm = build_algorithm(config)  # first, because it may refuse the config
    refuse_as_data(config.data)
    splits = open_data(config.data_source if source is None else source, cancel)
    train = splits["train"]
    notes = [
        *notes_of_sources(splits),
        *notes_on(splits),
        *notes_of_evaluation(config, splits),
    ]
    weights = _class_weights(config, train, notes, cancel)
    plan = plan_of(config)
    config, sampled_clients = open_sampled_clients(config, train, plan, notes, cancel)
    cohorts = sampled_clients.cohorts
    if config.dp is not None:
        from fedcli.runs.privacy_plan import make_private  # lazy: few runs are private

        algorithm = make_private(algorithm, config, cohorts, notes)
    secure = with_secure_sum(algorithm, config)
    _check_cohort(secure, cohort_size(config, cohorts), config)
    config, attack = _open_attack(config, train, cohorts, notes)
    # Attacks are made against the rule itself, without secure sums.
    stages = build_stages(config, algorithm, attack)
    algorithm = secure
    num_threads = 1 if is_code(config.model) else resolve_threads(config.threads)
    load = needs.workload(
        train, len(cohorts.for_round(0)), _population_size(cohorts, train), num_threads
    )

    @cache  # most models have the layout that was checked before their weights were drawn
    def check_needs(layout: ParamLayout) -> needs.Needs:
        needed = needs.estimate(config, algorithm, stages, layout, plan, load)
        needed.check(folder)
        return needed

    model = build_model(config, train, model, given_model, check_needs, notes, cancel)
    check_fit(train, model)
    if config.metrics is not None:
        from fedcli.evaluation.measuring import check_metrics  # lazy: few runs have further metrics

        check_metrics(config.metrics, model, config.metric_options)
    needed = check_needs(model.layout)
    notes += needed.notes()
    engine, workers = _open_engine(config, model, splits, notes, cancel)
    process = learning.build_process(  # before clients are read, because it may refuse the config
        algorithm,
        model,
        engine=engine,
        num_clients=_population_size(cohorts, train),
        measures_deltas=config.record_clients,
        class_weights=weights,
        label_smoothing=config.label_smoothing,
        stages=stages,
        seed=config.seed,
        root_data=_root_data(config, algorithm, train, plan),
    )
    fixed_batches = poisoned_batches = None
    if workers is None and cohorts.fixed is not None:
        fixed_batches, poisoned_batches = _read_fixed(
            train, cohorts.fixed, attack, plan, config.seed, cancel=cancel, num_threads=num_threads
        )
    return Federation(
        config=config,
        splits=splits,
        engine=engine,
        process=process,
        evaluator=learning.build_fed_eval(model, engine=engine),
        sampled_clients=sampled_clients,
        groups=tuple(make_groups(config, cohorts, splits, notes)),
        plan=plan,
        fixed_batches=fixed_batches,
        class_weights=weights,
        attack=attack,
        poisoned_batches=poisoned_batches,
        notes=notes,
        batch_bytes=needed.memory["batches"] if workers is None else 0,
        workers=workers,
    )


def _open_attack(
    config: RunConfig, train: ClientData, cohorts: Cohorts, notes: list[str]
) -> tuple[RunConfig, Attack | None]:
    """The config with the attackers resolved, and the attack if there is one; adds to `notes`."""
    if config.attack is None:
        return config, None
    from fedcli.runs import attacking  # lazy: few runs are attacked

    config, attack = attacking.open_attack(config, train, cohorts)
    if attack is None:
        notes += attacking.notes_on_no_attackers(config, cohorts)
    else:
        notes += attacking.notes_of(attack, config, cohorts)
    return config, attack


def _open_engine(
    config: RunConfig,
    model: Model,
    splits: dict[str, ClientData],
    notes: list[str],
    cancel: CancelFlag | None,
) -> tuple[Engine, RayWorkers | None]:
    """The engine, and the workers of a cluster if it uses some; adds a line to `notes`."""
    engine = choosing.make_engine(model, config.threads)
    if config.engine == RAY:
        from fedcli.cluster.opening import open_workers  # lazy: few runs use a cluster

        return open_workers(config, model, engine, splits, cancel)
    if choosing.is_python(model) and (config.threads or 1) > 1:
        notes.append(f"{config.model} is computed in Python, on one thread, not {config.threads}")
    return engine, None


def _read_fixed(
    train: ClientData,
    client_ids: Sequence[str],
    attack: Attack | None,
    plan: BatchPlan,
    seed: int,
    *,
    cancel: CancelFlag | None,
    num_threads: int,
) -> tuple[tuple[BatchedDataset, ...] | None, tuple[BatchedDataset, ...] | None]:
    """The batches of a fixed cohort, and its poisoned ones under an attack on the data.

    Each is None if there is none. Both are None if the data do not fit in the client cache, so that
    every round must read them again.
    """
    if not _fit_in_cache(train, client_ids):
        return None, None
    clean = _read_all(ClientBatches(train, client_ids, plan, seed), cancel, num_threads)
    if attack is None or attack.poisoning is None:
        return clean, None
    poisoned = ClientBatches(attack.poisoned(train), client_ids, plan, seed)
    return clean, _read_all(poisoned, cancel, num_threads)


def _read_all(
    batches: ClientBatches, cancel: CancelFlag | None, num_threads: int
) -> tuple[BatchedDataset, ...]:
    """The batches of each client, all read. Raises Cancelled if `cancel` is set meanwhile."""
    read: list[BatchedDataset] = []
    is_over = threading.Event()  # all are read, or reading failed or was cancelled

    def generate_from_last() -> None:
        """Generates clients from the last one on, into the cache, until all are generated."""
        num_left = len(batches.client_ids)
        while len(read) < num_left and not is_over.is_set():
            num_left -= 1
            batches.data.client(batches.client_ids[num_left])

    helper = threading.Thread(target=generate_from_last, name="fedcli-generate", daemon=True)
    is_helped = batches.data.is_generated and num_threads > 1
    if is_helped:
        helper.start()
    try:
        for each in batches:
            if cancel is not None and cancel.is_set():
                raise Cancelled
            read.append(each)
    finally:
        is_over.set()
        if is_helped:
            helper.join()
    return tuple(read)


def _class_weights(
    config: RunConfig, train: ClientData, notes: list[str], cancel: CancelFlag | None
) -> NDArray[np.float32] | None:
    """Loads the weights of the training loss, [num_classes], and adds a line to `notes`."""
    if config.class_weights is None:
        return None
    from fedcli.learning import class_weights  # lazy: few runs have them

    weights = class_weights.load_class_weights(config.class_weights, train, cancel)
    notes.append(class_weights.describe(weights, train))
    return weights


def _check_cohort(algorithm: Algorithm, size: int | None, config: RunConfig) -> None:
    """Refuses cohorts that are too small for the aggregator. Cohorts of varying size pass."""
    num_deltas = 1 if algorithm.entry.pools_clients else size
    if num_deltas is None:
        return
    problem = problem_of(algorithm.aggregator, num_deltas)
    if problem is not None:
        before = f"--pre-aggregator {config.pre_aggregator} and " * bool(config.pre_aggregator)
        raise ConfigError(f"{before}--aggregator {config.aggregator}: {problem}")


def _root_data(
    config: RunConfig, algorithm: Algorithm, train: ClientData, plan: BatchPlan
) -> BatchedDataset | None:
    """The server's own examples, if the aggregator needs some."""
    aggregator = algorithm.aggregator
    num_examples = aggregator.request(aggregator.init()).root_examples
    if not num_examples:
        return None
    from fedcli.federation.root_data import draw_root_data  # lazy: few aggregators need it

    return draw_root_data(train, num_examples, plan, config.seed)


def _fit_in_cache(data: ClientData, client_ids: Sequence[str]) -> bool:
    """Whether the images of some clients, one byte for each pixel, fit in the client cache."""
    image_bytes = math.prod(data.pixel_shape)
    num_bytes = 0
    for client_id in client_ids:
        num_bytes += data.num_examples(client_id) * image_bytes
        if num_bytes > CACHE_BYTES:
            return False
    return True


def _population_size(cohorts: Cohorts, train: ClientData) -> int:
    """The number of clients that may take part: those of a fixed cohort, else all."""
    return len(train.client_ids if cohorts.fixed is None else set(cohorts.fixed))
