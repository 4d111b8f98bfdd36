"""Trained models put to use: evaluation of a checkpoint, its predictions, its weights as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedcli import learning, settings
from fedcli.core.native import CancelFlag
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_data import CENTRAL, ClientData
from fedcli.datasets.opening import note_of_change
from fedcli.errors import ConfigError, DataError
from fedcli.evaluation import client_file, personalization, predictions
from fedcli.evaluation.fine_tuning import FineTuningOptions
from fedcli.evaluation.personalization import FineTuning
from fedcli.evaluation.predictions import Predicted, WorstMistakes
from fedcli.evaluation.result import Evaluation, FineTuned, evaluate_panel, seen_in
from fedcli.evaluation.spread import GROUPS
from fedcli.federation import cohorts
from fedcli.federation.opened_data import (
    check_fit,
    fingerprinting,
    judged_split,
    note_of_own_models,
    open_data,
)
from fedcli.federation.panels import Panel, make_panel
from fedcli.federation.rosters import open_roster, plan_of
from fedcli.files import check_is_no_input
from fedcli.learning.algorithms.base import NO_COMMON_MODEL
from fedcli.runs.trained import (
    Trained,
    data_files,
    data_of_run,
    export_run,
    files_of_run,
    load_trained,
)
from fedcli.settings.options import Value
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.partitions import NATURAL

__all__ = [
    "Evaluation",
    "FineTuningOptions",
    "Trained",
    "data_of_run",
    "evaluate_run",
    "export_run",
    "files_of_run",
    "load_trained",
]


def evaluate_run(
    path: str | Path,
    *,
    data: str | None = None,
    data_options: Mapping[str, Value] | None = None,
    test_data: str | None = None,
    partition: str | None = None,
    partition_options: Mapping[str, Value] | None = None,
    num_classes: int | None = None,
    pixels: str | None = None,
    split: str | None = None,
    clients: str | None = None,
    epochs: int = 1,
    batch_size: int | None = None,
    threads: int | None = None,
    model: str | None = None,
    best: bool = False,
    fine_tuning: FineTuningOptions | None = None,
    predictions_file: Path | None = None,
    per_client_file: Path | None = None,
    num_errors: int | None = None,
    takers: Sequence[Callable[[Predicted], None]] = (),
    cancel: CancelFlag | None = None,
) -> Evaluation:
    """Returns the federated evaluation of a checkpoint: of a run's newest, or a file.

    Args:
        path: A run's folder, or a checkpoint.
        data: Name or file to evaluate on; None: the run's own data.
        data_options: As for training; None: the run's, for its own kind of data.
        test_data: As for training; None: the run's, with its own data.
        partition: As for training; None: the run's for its own data, natural for other data.
        partition_options: As for training; None: the run's for its own partition.
        num_classes: As for training; None: the run's.
        pixels: As for training; None: what the model was trained on, whatever the data mean.
        split: Which split; None: test if there is one, else central, else train.
        clients: Who, written as for training, or `seen`, those that took part in it, or `unseen`,
            those that never did; None: the run's fixed cohort, or everyone if there is none, if
            the split has none of it (of more than 10,000 a draw), or in central.
        epochs: How often each example is scored.
        batch_size: Examples of a batch; None: the run's.
        threads: Number of threads; None: what the machine gives.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here.
        best: Take the checkpoint of the run's best round, not the newest.
        fine_tuning: How each client fine-tunes the model on its train data before it is scored once
            more; clients without train data are skipped. None: it is scored as it is.
        predictions_file: Where to write what the model says of each example, `.npz` or `.csv`; see
            `predictions.writing`.
        per_client_file: Where to write what was found of each client, `.csv` or `.h5`; see
            `per_client.write`.
        num_errors: How many of the worst mistakes to look for; None: they are not sought.
        takers: Called with all predictions, in order.
        cancel: Once raised, from any thread, the evaluation stops.

    Raises:
        Cancelled: `cancel` was raised.
        ConfigError: An option is not allowed, or does not fit the data; or the model is code and
            `model` does not name it; or every client has a model of its own, and fine-tuning or
            predictions are asked for.
        DataError: The data are missing or bad, or do not fit the model.
        RunError: There is no such run or checkpoint, it is damaged, or a file cannot be written.
    """
    if predictions_file is not None:
        predictions.check_target(predictions_file)
    if per_client_file is not None:
        client_file.check_name(per_client_file)
    given = {
        "data": data,
        "data_options": data_options,
        "test_data": test_data,
        "partition": partition,
        "partition_options": partition_options,
        "num_classes": num_classes,
        "pixels": pixels,
        "batch_size": batch_size,
        "epochs": epochs,
    }
    asked = _Asked(
        split,
        clients,
        fine_tuning,
        predictions_file,
        per_client_file,
        num_errors,
        tuple(takers),
        cancel,
    )
    with load_trained(Path(path), threads, model, best=best) as trained:
        if asked.needs_common_model and trained.state.has_own_models:
            raise ConfigError(NO_COMMON_MODEL)
        return _evaluate(trained, given, asked)


@dataclass(frozen=True)
class _Asked:
    """What `evaluate_run` is to find out of the data; see there."""

    split: str | None
    clients: str | None
    fine_tuning: FineTuningOptions | None
    predictions_file: Path | None
    per_client_file: Path | None
    num_errors: int | None
    takers: tuple[Callable[[Predicted], None], ...]
    cancel: CancelFlag | None

    @property
    def needs_common_model(self) -> bool:
        """Whether this is to be found out of one model for all clients."""
        has_predictions = self.predictions_file is not None or self.num_errors is not None
        return self.fine_tuning is not None or has_predictions or bool(self.takers)


def _evaluate(trained: Trained, given: Mapping[str, Any], asked: _Asked) -> Evaluation:
    """The evaluation, with a line if the run's own data have changed."""
    if given["data"] is not None and given["pixels"] is None and trained.config.pixels == "source":
        # Other data may mean the opposite by 1.0.
        given = {**given, "pixels": trained.pixel_convention}
    config = _evaluation_config(trained.config, given)
    _check_outputs(asked, trained, config)
    if trained.fingerprint is None or any(given[name] for name in settings.DATA_FIELDS):
        return _evaluate_on(config, trained, given, asked, lambda: False)
    with fingerprinting(config, asked.cancel) as fingerprint:

        def has_changed() -> bool:
            return fingerprint.result() != trained.fingerprint

        evaluation = _evaluate_on(config, trained, given, asked, has_changed)
        found = fingerprint.result()
    consequence = "this evaluates what is there now"
    named = (config.data, config.test_data)
    changed = note_of_change(*named, trained.fingerprint, found, consequence)
    return replace(evaluation, notes=(*changed, *evaluation.notes))


def _check_outputs(asked: _Asked, trained: Trained, config: RunConfig) -> None:
    """Refuses to write onto the run, the data, or one file onto the other."""
    outputs = {"--predictions": asked.predictions_file, "--per-client": asked.per_client_file}
    inputs = [*files_of_run(trained.file), *data_files(config)]
    taken: dict[Path, str] = {}
    for option, file in outputs.items():
        if file is None:
            continue
        check_is_no_input(file, inputs, f"{option} {file}")
        other = taken.setdefault(file.resolve(), option)
        if other != option:
            raise ConfigError(f"{other} and {option} name one file, {file}; choose another name")


def _evaluate_on(
    config: RunConfig,
    trained: Trained,
    given: Mapping[str, Any],
    asked: _Asked,
    has_changed: Callable[[], bool],
) -> Evaluation:
    """The evaluation on the data that a config names; `has_changed` waits until that is known."""
    cancel = asked.cancel
    strategy = None if asked.fine_tuning is None else asked.fine_tuning.resolve(trained.config)
    splits = open_data(config, cancel)
    train = splits["train"]
    seen = cache(lambda: None if has_changed() else _seen(trained, train, given, cancel))
    panel = _panel(trained, config, splits, given, asked.split, asked.clients, seen)
    if strategy is not None:
        panel = _with_train_data(panel, train)
    evaluator = learning.build_fed_eval(trained.model, engine=trained.engine)
    evaluation = evaluate_panel(panel, evaluator, trained.state, cancel)
    if strategy is not None:
        tuned = _fine_tune(trained, strategy, train, panel, cancel)
        evaluation = replace(evaluation, fine_tuned=tuned)
    if (known := seen()) is not None:
        evaluation = replace(evaluation, is_seen=seen_in(panel.data, panel.client_ids, known))
    worst = _predict(trained, panel, asked)
    if asked.per_client_file is not None:
        _write_clients(asked.per_client_file, evaluation)
    notes = (*trained.notes, *note_of_own_models(trained.config), *evaluation.notes)
    return replace(evaluation, worst=worst, notes=notes)


def _panel(
    trained: Trained,
    config: RunConfig,
    splits: Mapping[str, ClientData],
    given: Mapping[str, Any],
    split: str | None,
    clients: str | None,
    seen: Callable[[], frozenset[str] | None],
) -> Panel:
    """Whose examples are scored, of the data of `config`: the run's but for what is given."""
    name = split or judged_split(trained.config, splits) or "train"
    if name not in splits:
        raise ConfigError(f"--split {name}: {config.data} has {', '.join(sorted(splits))}")
    check_fit(splits[name], trained.model)
    if name == CENTRAL and trained.state.has_own_models:
        raise ConfigError(
            f"--split {name}: its clients are no part of the federation, and every client of this "
            "run has a model of its own; choose another --split"
        )
    is_own = not any(given[each] for each in ("data", "partition", "partition_options"))
    own = splits if is_own else None
    plan = BatchPlan(epochs=config.epochs, batch_size=config.batch_size)
    if clients in GROUPS:
        return _panel_of_group(splits[name], clients, plan, seen())
    wanted = _wanted_clients(trained.config, splits[name], clients, own)
    return make_panel(splits[name], wanted, plan, config.seed)


def _seen(
    trained: Trained,
    train: ClientData,
    given: Mapping[str, Any],
    cancel: CancelFlag | None,
) -> frozenset[str] | None:
    """Who took part in the training; None for data that may be other clients'."""
    if any(given[name] for name in ("data", "data_options", "partition", "partition_options")):
        return None
    try:
        _, roster = open_roster(trained.config, train, plan_of(trained.config), [], cancel)
    except ConfigError:  # its clients are not there: the data are not what they were
        return None
    return roster.seen(trained.state.round_num, cancel)


def _panel_of_group(
    data: ClientData, group: str, plan: BatchPlan, seen: frozenset[str] | None
) -> Panel:
    """The clients of a split that took part in the training, or those that never did."""
    if seen is None:
        raise ConfigError(
            f"--clients {group}: who took part is known of the run's own data alone, unchanged "
            "since it began; name clients, or say all; a client of this name takes a comma behind"
        )
    is_wanted = seen_in(data, data.client_ids, seen) == (group == GROUPS[0])
    ids = [data.client_ids[index] for index in np.flatnonzero(is_wanted).tolist()]
    if not ids:
        raise ConfigError(
            f"--clients {group}: the split {data.split} of {data.source} has no such client among "
            f"its {len(is_wanted):,}; choose others, or another --split"
        )
    return Panel(data.split, data, ids, plan)


def _with_train_data(panel: Panel, train: ClientData) -> Panel:
    """The clients of a panel that have train data to fine-tune on."""
    where = f"in the train split of {train.source}"
    if panel.split == train.split:
        raise ConfigError(
            f"--finetune with the split {panel.split}: clients would be scored on what they train "
            "on; give data with another split, such as --test-data"
        )
    ids = panel.client_ids if panel.data.same_people else []
    ids = [each for each in ids if cohorts.contains(train.client_ids, each)]
    num_without = len(panel.client_ids) - len(ids)
    if not ids:
        raise ConfigError(
            f"--finetune: none of the {num_without:,} clients of the split {panel.split} is "
            f"{where}, so none can train; choose another --split, or others with --clients"
        )
    if not num_without:
        return panel
    note = f"{num_without:,} clients are not {where}, cannot fine-tune and are skipped"
    notes = (*panel.notes, note)
    return Panel(panel.split, panel.data, ids, panel.plan, num_absent=panel.num_absent, notes=notes)


def _fine_tune(
    trained: Trained,
    strategy: FineTuning,
    train: ClientData,
    panel: Panel,
    cancel: CancelFlag | None,
) -> FineTuned:
    """How the clients of a panel score with models of their own."""
    stats = personalization.fine_tuned_stats(
        trained.model,
        trained.state.evaluated_weights,
        strategy,
        train,
        panel.data,
        panel.client_ids,
        panel.plan,
        seed=trained.config.seed,
        round_num=trained.state.round_num,
        engine=trained.engine,
        cancel=cancel,
    )
    return FineTuned(strategy, stats)


def _predict(trained: Trained, panel: Panel, asked: _Asked) -> WorstMistakes | None:
    """Hands out predictions, writes them to a file and finds the worst mistakes, where asked to."""
    file, num_errors = asked.predictions_file, asked.num_errors
    worst = None if num_errors is None else WorstMistakes(num_errors)
    if file is None and worst is None and not asked.takers:
        return None
    with ExitStack() as stack:
        takers = [*asked.takers, *([] if worst is None else [worst.add])]
        if file is not None:
            num_classes = trained.model.layout.num_classes
            takers.append(stack.enter_context(predictions.writing(file, num_classes)))
        weights = trained.state.evaluated_weights
        for predicted in predictions.predict(
            panel, trained.model, trained.engine, weights, asked.cancel
        ):
            for take in takers:
                take(predicted)
    return worst


def _write_clients(path: Path, evaluation: Evaluation) -> None:
    tuned = evaluation.fine_tuned
    client_file.write(
        path,
        evaluation.client_ids,
        evaluation.client_stats,
        is_seen=evaluation.is_seen,
        fine_tuned=None if tuned is None else tuned.client_stats,
    )


def _evaluation_config(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A run's config with the data options of an evaluation.

    Other data have no test data and are natural.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    base = {name: getattr(config, name) for name in given}
    if "data" in asked:
        base.update(test_data=None, partition=NATURAL, partition_options={})
    return settings.from_options(settings.merge(base, asked))


def _wanted_clients(
    config: RunConfig,
    data: ClientData,
    clients: str | None,
    own: Mapping[str, ClientData] | None,
) -> Sequence[str]:
    """Ids to evaluate on `data`: those asked for, else the fixed cohort of the run, else all.

    The cohort is not sought in central, whose clients are others.
    `own` is the data of the run, None if they have not been opened.
    """
    if clients is not None:
        return cohorts.resolve_ids(cohorts.parse_clients(clients), data.client_ids, data.source)
    if config.sampling != "fixed" or config.clients is None or data.split == CENTRAL:
        return data.client_ids
    selection = cohorts.parse_clients(config.clients)
    if selection.ids is not None:
        return selection.ids
    try:
        train = (own or open_data(config))["train"]
    except DataError as err:
        raise DataError(f"the run's cohort is not known, say --clients: {err}") from err
    return cohorts.resolve_ids(selection, train.client_ids, train.source)
