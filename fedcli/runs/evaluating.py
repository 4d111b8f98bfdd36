"""Evaluates a checkpoint: `evaluate_run`, the library function behind `fedcli eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcli import datasets, learning, settings
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import note_of_change
from fedcli.errors import ConfigError, refuse_unknown, speaks_python, worded
from fedcli.evaluation import personalization
from fedcli.evaluation.fine_tuning import FineTuningOptions
from fedcli.evaluation.personalization import FineTuning
from fedcli.evaluation.predictions import Predicted
from fedcli.evaluation.result import Evaluation, FineTuned, evaluate_group, seen_in
from fedcli.federation.evaluated_splits import note_of_models
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.federation.opened_data import (
    fingerprinting,
    notes_of_sources,
    notes_on,
    open_data,
)
from fedcli.learning.process import LearningProcess
from fedcli.runs.evaluation_clients import (
    EvaluatedData,
    choose_clients,
    clients_of_training,
    with_train_data,
)
from fedcli.runs.evaluation_outputs import EvaluationOutputs
from fedcli.runs.files.folder import refuse_as_data
from fedcli.runs.moved_data import PLACES, check_places, found_elsewhere
from fedcli.runs.trained import Trained, files_of_run, load_trained
from fedcli.settings.data_source import (
    IN_MEMORY,
    DataOptions,
    DataSource,
    OpenedData,
    source_of,
)
from fedcli.settings.options import Value, is_code, path_text
from fedcli.settings.run_config import RunConfig, may_have_code
from fedcli.settings.values import METRIC_NAMES
from fedcli.settings.vocabulary import NATURAL

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Evaluation", "FineTuningOptions", "evaluate_run"]


@speaks_python(*DataOptions.__annotations__, finetune="fine_tuning")
def evaluate_run(
    path: str | Path,
    *,
    data: Any = None,
    split: str | None = None,
    clients: str | None = None,
    epochs: int = 1,
    batch_size: int | None = None,
    threads: int | None = None,
    model: Any = None,
    best: bool = False,
    fine_tuning: FineTuningOptions | None = None,
    predictions_file: str | Path | None = None,
    per_client_file: str | Path | None = None,
    num_errors: int | None = None,
    metrics: Sequence[str] | None = None,
    metric_options: Mapping[str, Value] | None = None,
    prediction_callbacks: Sequence[Callable[[Predicted], None]] = (),
    cancel: CancelFlag | None = None,
    **of_data: Unpack[DataOptions],
) -> Evaluation:
    """Evaluates a checkpoint, client by client, and returns the result.

    Args:
        path: A run's folder, or a checkpoint.
        data: Name or file to evaluate on, a `DataSource`, or data in memory as `fedcli.train` takes
            them; None for the run's own.
        split: The split; None for test if there is one, else central, else validation, else train.
        clients: Clients, in the syntax of training; or `seen`, those that took part in the
            training; or `unseen`, those that never did. None for the run's fixed cohort. If there
            is no fixed cohort, or if the split is central, None means all clients. If the split
            has no client of the cohort: all, or 1,000 drawn clients if there are more than 10,000.
        epochs: Number of times that each example is scored.
        batch_size: Number of examples in a batch; None for the run's.
        threads: Number of threads; None for as many as the machine has.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here. For a run whose model was an object in a program: that object.
        best: Take the checkpoint of the run's best round, not the newest.
        fine_tuning: How each client fine-tunes the model on its train data before it is scored
            again; clients without train data are skipped. None for no fine-tuning.
        predictions_file: Where to write the prediction for each example, `.npz` or `.csv`; see
            `predictions.writing`.
        per_client_file: Where to write the results of each client, `.csv` or `.h5`; see
            `client_file.write`.
        num_errors: Number of the worst mistakes to return; None for none.
        metrics: Names of metrics beside loss and accuracy (see `fedcli info`); None for those of
            the run, except your own.
        metric_options: Options of your own metrics in `metrics`; None for the run's.
        prediction_callbacks: Functions that are called with the predictions of one client after
            another.
        cancel: A flag that any thread may set to stop the evaluation.
        of_data: The other fields of a `DataSource` by name, as for training. For the run's own
            data, the defaults are the run's values. Other data have by default no test data, the
            natural partition, and the pixel convention of the training. A partition that is code
            runs only if `partition` names it here.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: An option is not allowed, or does not fit the data; or the model is code and
            `model` does not name it; or each client has its own model, and fine-tuning or
            predictions are requested.
        DataError: The data are missing or bad, or do not fit the model.
        OwnCodeError: Your own code fails.
        RunError: There is no such run or checkpoint, it is damaged, or a file cannot be written.
    """
    outputs = EvaluationOutputs(
        None if predictions_file is None else Path(predictions_file),
        None if per_client_file is None else Path(per_client_file),
        num_errors,
        tuple(prediction_callbacks),
    )
    outputs.check_names()
    data = path_text(data)
    memory = _in_memory(data)
    given = _data_fields(data if memory is None else str(memory), of_data)
    given.update(batch_size=batch_size, epochs=epochs)
    overrides = {name: value for name, value in given.items() if value is not None}
    if "data" in overrides:
        refuse_as_data(overrides["data"])
    with load_trained(Path(path), threads, model, best=best) as trained:
        trained, overrides = _with_data(trained, overrides, memory)
        if outputs.has_predictions or fine_tuning is not None:
            _ = trained.state.evaluated_weights  # raises if each client has its own model
        evaluated = _evaluated_data(trained, overrides, split, clients)
        if memory is not None:
            evaluated = replace(evaluated, source=replace(evaluated.source, data=memory))
        outputs.check_is_no_input([*files_of_run(trained.file), *evaluated.source.paths])
        options = trained.config.metric_options if metric_options is None else metric_options
        requested, notes = _requested_metrics(trained, metrics, metric_options or {})
        request = _Request(evaluated, fine_tuning, outputs, requested, options, cancel)
        evaluation = _evaluate(trained, request)
        return replace(evaluation, notes=(*notes, *evaluation.notes)) if notes else evaluation


def _in_memory(data: Any) -> OpenedData | None:
    """Returns the data that the caller has in memory; None if `data` names them."""
    if data is None or isinstance(data, str | DataSource):
        return None
    from fedcli.datasets.sources.given import as_given  # lazy: few data are in memory

    return as_given(data)


def _with_data(
    trained: Trained, overrides: dict[str, Any], memory: OpenedData | None
) -> tuple[Trained, dict[str, Any]]:
    """Moves the caller's fields that do not change the run's own data into the run's config.

    They are the permission to run a partition's code, and new places of data that were moved.

    Returns:
        The model with that config, and the fields that change the data.

    Raises:
        ConfigError: The partition is code, and the caller did not name it.
        DataError: The run's data are needed and missing.
    """
    if may_have_code(trained.config):
        from fedcli.settings.own.permission import with_partition  # lazy: few runs have code

        config, overrides = with_partition(trained.config, overrides)
        trained = replace(trained, config=config)
    if memory is not None and _is_of(trained, memory):
        del overrides["data"]
    moved = found_elsewhere(trained.config, overrides, trained.fingerprint)
    if moved is not None:
        changes = {name: value for name, value in overrides.items() if name not in PLACES}
        return replace(trained, config=moved), changes
    if "data" not in overrides:
        source = source_of(trained.config, memory)
        check_places(source, "(and --test-data, if the run has test data)")
    return trained, overrides


def _requested_metrics(
    trained: Trained, requested: Sequence[str] | None, options: Mapping[str, Value]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the metrics to compute; and a note if the run has metrics that are not computed."""
    if requested:
        names: tuple[str, ...] = METRIC_NAMES.check("--metrics", requested)
        if options or any(map(is_code, names)):
            from fedcli.settings.own.permission import complete_metrics  # lazy: rarely needed

            names = complete_metrics(names, options)
        return names, ()
    for name in options:
        raise ConfigError(
            f"--metric-option {name} is for a metric of your own; give it with --metrics FILE.py"
        )
    of_run = trained.config.metrics or ()
    own = [each for each in of_run if is_code(each)]
    names = tuple(each for each in of_run if each not in own)
    if not own:
        return names, ()
    words = f"--metrics {','.join(of_run)}"
    return names, (worded(f"your own metrics are not computed; pass {words} to run them"),)


@dataclass(frozen=True)
class _Request:
    """The arguments of an evaluation: data, fine-tuning, output files and metrics."""

    data: EvaluatedData
    fine_tuning: FineTuningOptions | None
    outputs: EvaluationOutputs
    metrics: Sequence[str]
    metric_options: Mapping[str, Value]
    cancel: CancelFlag | None


def _is_of(trained: Trained, memory: OpenedData) -> bool:
    """Returns whether data in memory are those that a run was trained on."""
    if trained.fingerprint is None or not trained.config.data.startswith(IN_MEMORY):
        return False
    return datasets.fingerprint(source_of(trained.config, memory)) == trained.fingerprint


def _data_fields(data: str | DataSource | None, of_data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `DataSource` that the caller gave, by name."""
    refuse_unknown("evaluate_run", of_data, DataOptions.__annotations__)
    named = data.given if isinstance(data, DataSource) else {"data": data}
    return {**named, **of_data}


def _evaluated_data(
    trained: Trained, overrides: Mapping[str, Any], split: str | None, clients: str | None
) -> EvaluatedData:
    """Returns the data of an evaluation: the run's, with the caller's fields in `overrides`."""
    if "data" in overrides and "pixels" not in overrides and trained.config.pixels == "source":
        # The pixel value 1.0 may have the opposite meaning in other data.
        overrides = {**overrides, "pixels": trained.pixel_convention}
    config = trained.config
    base = {**vars(config.data_source), "batch_size": config.batch_size}
    if "data" in overrides:  # the test data and the partition are not those of the run
        base.update(test_data=None, partition=NATURAL, partition_options={})
    valid = settings.from_options(settings.merge(base, overrides))
    plan = BatchPlan(epochs=valid.epochs, batch_size=valid.batch_size)
    names = frozenset(name for name, value in overrides.items() if value)
    return EvaluatedData(valid.data_source, names, split, clients, plan)


def _evaluate(trained: Trained, request: _Request) -> Evaluation:
    """Evaluates, and adds a note if the run's own data have changed since its training."""
    if trained.fingerprint is None or not request.data.is_of_run:
        return _evaluate_on(trained, request, lambda: False)
    with fingerprinting(request.data.source, request.cancel) as fingerprint:

        def has_changed() -> bool:
            return fingerprint.result() != trained.fingerprint

        evaluation = _evaluate_on(trained, request, has_changed)
        now = fingerprint.result()
    consequence = "this evaluates the data as they are now"
    changed = note_of_change(request.data.source, trained.fingerprint, now, consequence)
    return replace(evaluation, notes=(*changed, *evaluation.notes))


def _evaluate_on(
    trained: Trained, request: _Request, has_changed: Callable[[], bool]
) -> Evaluation:
    """Evaluates; `has_changed` tells, perhaps after a wait, whether the run's data have changed."""
    cancel = request.cancel
    options = request.fine_tuning
    strategy = None if options is None else options.resolve(trained.config)
    splits = open_data(request.data.source, cancel)
    train = splits["train"]

    @cache
    def seen() -> frozenset[str] | None:
        return None if has_changed() else clients_of_training(trained, request.data, train, cancel)

    group = choose_clients(trained, request.data, splits, seen)
    if strategy is not None:
        group = with_train_data(group, train)
    evaluator = learning.build_fed_eval(trained.model, engine=trained.engine)
    evaluation = evaluate_group(group, evaluator, trained.state, cancel)
    if (known := seen()) is not None:
        evaluation = replace(evaluation, is_seen=seen_in(group.data, group.client_ids, known))
    evaluation = _measured(trained, request, evaluator, group, evaluation)
    if strategy is not None:
        tuned = _fine_tune(trained, request, strategy, train, group, evaluation.is_seen)
        evaluation = replace(evaluation, fine_tuned=tuned)
    if trained.config.attack is not None and request.data.has_train_clients_of_run:
        evaluation = _with_attack(trained, request, train, evaluator, group, evaluation)
    worst = request.outputs.predict(trained, group, cancel)
    request.outputs.write_clients(evaluation)
    is_of_run = request.data.is_of_run  # training has shown the notes on its own data
    sources = () if is_of_run else notes_of_sources({group.split: group.data})
    replaced = notes_on({group.split: group.data})
    own_models = note_of_models(trained.config)
    assumed = _note_of_split(request.data, group.split)
    notes = (*trained.notes, *sources, *assumed, *replaced, *own_models, *evaluation.notes)
    return replace(evaluation, worst=worst, notes=tuple(map(worded, notes)))


def _note_of_split(data: EvaluatedData, split: str) -> list[str]:
    """A line for the user if, of other data, the train split is evaluated by default."""
    if "data" not in data.overridden or data.split is not None or split != "train":
        return []
    return [
        f"the row train is about {data.source.data}, which has no split named test; if it holds "
        "test data, give it as --test-data"
    ]


def _measured(
    trained: Trained,
    request: _Request,
    evaluator: LearningProcess,
    group: EvaluationGroup,
    evaluation: Evaluation,
) -> Evaluation:
    """Adds the requested metrics besides loss and accuracy to an evaluation."""
    if not request.metrics:
        return evaluation
    from fedcli.evaluation.measuring import measure  # lazy: few runs have further metrics

    measured = measure(
        group,
        evaluator,
        trained.state,
        request.metrics,
        options=request.metric_options,
        by_client=True,
        is_seen=evaluation.is_seen,
        cancel=request.cancel,
    )
    return replace(evaluation, measured=measured)


def _with_attack(
    trained: Trained,
    request: _Request,
    train: ClientData,
    evaluator: LearningProcess,
    group: EvaluationGroup,
    evaluation: Evaluation,
) -> Evaluation:
    """Adds the success of the run's attack to an evaluation, if it was an attack on examples."""
    from fedcli.evaluation.attack_success import measure_success  # lazy: few runs are attacked
    from fedcli.runs.attacking import attack_of_run

    attack = attack_of_run(trained.config, train)
    if attack is None or attack.poisoning is None:
        return evaluation
    success = measure_success(
        group,
        attack.poisoning,
        evaluator,
        trained.state,
        has_recall=True,
        num_shown=request.outputs.num_errors,
        cancel=request.cancel,
    )
    return replace(evaluation, attack=success)


def _fine_tune(
    trained: Trained,
    request: _Request,
    strategy: FineTuning,
    train: ClientData,
    group: EvaluationGroup,
    is_seen: NDArray[np.bool_] | None,
) -> FineTuned:
    """Scores the clients of a group with models that they fine-tune."""
    measuring = None
    with ExitStack() as stack:
        if request.metrics:
            from fedcli.evaluation.measuring import Measuring  # lazy, as above

            num_clients = len(group.client_ids)
            measuring = stack.enter_context(
                Measuring(
                    *(trained.model, request.metrics, num_clients),
                    options=request.metric_options,
                    by_client=True,
                    is_seen=is_seen,
                )
            )
        stats = personalization.fine_tuned_stats(
            trained.model,
            trained.state.evaluated_weights,
            strategy,
            train,
            group.data,
            group.client_ids,
            group.plan,
            seed=trained.config.seed,
            round_num=trained.state.round_num,
            engine=trained.engine,
            class_weights=_class_weights(trained.config, train, request.cancel),
            label_smoothing=trained.config.label_smoothing,
            measuring=measuring,
            starts=trained.state.starts,
            cancel=request.cancel,
        )
        return FineTuned(strategy, stats, None if measuring is None else measuring.result())


def _class_weights(
    config: RunConfig, train: ClientData, cancel: CancelFlag | None
) -> NDArray[np.float32] | None:
    """Returns the run's class weights of the training loss, float32 [num_classes], or None."""
    if config.class_weights is None:
        return None
    from fedcli.learning.class_weights import load_class_weights  # lazy: few runs have them

    return load_class_weights(config.class_weights, train, cancel)
