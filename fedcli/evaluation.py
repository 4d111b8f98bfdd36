"""Trained models put to use: evaluation of a checkpoint, its predictions, its weights as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import checkpoint, client_spread, cohort, engines, learning, predictions, run_dir
from fedcli import config as configs
from fedcli.algorithms.base import EVALUATED_WEIGHTS
from fedcli.backend import CancelFlag, Engine
from fedcli.batches import BatchPlan
from fedcli.checkpoint import Checkpoint
from fedcli.config import RunConfig
from fedcli.datasets import ClientData
from fedcli.datasets.client_data import CENTRAL
from fedcli.errors import ConfigError, DataError, RunError
from fedcli.federation import (
    Panel,
    build_process,
    check_fit,
    fingerprinting,
    held_out_split,
    make_panel,
    model_of,
    note_of_change,
    note_of_changed_model,
    open_data,
    to_state,
)
from fedcli.files import check_is_no_input
from fedcli.learning import ServerState
from fedcli.models import Model
from fedcli.options import Value
from fedcli.predictions import Predicted, WorstMistakes
from fedcli.registry import NATURAL


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One federated evaluation of one split.

    Attributes:
        source: The data's name or file.
        split: The split's name in it.
        round_num: Rounds the evaluated weights have been trained.
        num_clients: Clients evaluated.
        num_absent: Clients asked for that the split does not have.
        process_metrics: In TFF's structure.
        client_ids: Who was evaluated.
        client_stats: One row a client of those, as the engine returns them.
        data: The split.
        worst: Its worst mistakes; None: they were not asked for.
        notes: What a reader should know, a line each.
    """

    source: str
    split: str
    round_num: int
    num_clients: int
    num_absent: int
    process_metrics: dict[str, Any]
    client_ids: Sequence[str]
    client_stats: NDArray[Any]
    data: ClientData
    worst: WorstMistakes | None = None
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The four metrics by name."""
        values: dict[str, Any] = self.process_metrics["client_work"]["eval"][
            "current_round_metrics"
        ]
        return values

    @property
    def metrics(self) -> dict[str, Any]:
        """What `fedcli eval --json` prints: TFF's structure, the spread, and who was evaluated."""
        return {
            **self.process_metrics,
            "over_clients": client_spread.over_clients(self.client_stats),
            "split": self.split,
            "round": self.round_num,
            "num_clients": self.num_clients,
            "num_absent_clients": self.num_absent,
            **({} if self.worst is None else self.worst.to_json()),
        }


def evaluate_panel(
    panel: Panel,
    evaluator: learning.LearningProcess,
    state: ServerState,
    cancel: CancelFlag | None,
) -> Evaluation:
    """Returns the evaluation of a state's weights on the clients of one split."""
    scores = panel.evaluate(evaluator, state.evaluated_weights, cancel)
    return Evaluation(
        source=panel.data.source,
        split=panel.split,
        round_num=state.round_num,
        num_clients=len(panel.client_ids),
        num_absent=panel.num_absent,
        process_metrics=scores.metrics,
        client_ids=panel.client_ids,
        client_stats=scores.client_stats,
        data=panel.data,
        notes=panel.notes,
    )


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
    predictions_file: Path | None = None,
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
        clients: Who, written as for training; None: the run's fixed cohort, or everyone if there
            is none, if the split has none of it (of more than 10,000 a draw), or in central.
        epochs: How often each example is scored.
        batch_size: Examples of a batch; None: the run's.
        threads: Number of threads; None: what the machine gives.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code: no code runs unless it
            is named here.
        best: Take the checkpoint of the run's best round, not the newest.
        predictions_file: Where to write what the model says of each example, `.npz` or `.csv`; see
            `predictions.writing`.
        num_errors: How many of the worst mistakes to look for; None: they are not sought.
        takers: Called with all predictions, in order.
        cancel: Once raised, from any thread, the evaluation stops.

    Raises:
        Cancelled: `cancel` was raised.
        ConfigError: An option is not allowed, or does not fit the data; or the model is code and
            `model` does not name it.
        DataError: The data are missing or bad, or do not fit the model.
        RunError: There is no such run or checkpoint, it is damaged, or the file of predictions
            cannot be written.
    """
    if predictions_file is not None:
        predictions.check_target(predictions_file)
    file = _checkpoint_file(Path(path), best=best)
    trained = _trained(checkpoint.load(file), file, threads, model)
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
    if data is not None and pixels is None and trained.config.pixels == "source":
        given["pixels"] = trained.pixel_convention  # other data may mean the opposite by 1.0
    config = _evaluation_config(trained.config, given)
    if predictions_file is not None:
        inputs = [file, Path(config.data), Path(config.test_data or "")]
        check_is_no_input(predictions_file, inputs, f"--predictions {predictions_file}")

    def evaluate() -> Evaluation:
        panel = _panel(trained, config, given, split, clients, cancel)
        evaluator = learning.build_fed_eval(trained.model, engine=trained.engine)
        evaluation = evaluate_panel(panel, evaluator, trained.state, cancel)
        worst = _predict(trained, panel, predictions_file, num_errors, takers, cancel)
        return replace(evaluation, worst=worst, notes=(*trained.notes, *evaluation.notes))

    if trained.fingerprint is None or any(given[name] for name in configs.DATA_FIELDS):
        return evaluate()
    with fingerprinting(config, cancel) as fingerprint:
        evaluation = evaluate()
        found = fingerprint.result()
    consequence = "this evaluates what is there now"
    changed = note_of_change(config, trained.fingerprint, found, consequence)
    return replace(evaluation, notes=(*changed, *evaluation.notes))


def _panel(
    trained: Trained,
    config: RunConfig,
    given: Mapping[str, Any],
    split: str | None,
    clients: str | None,
    cancel: CancelFlag | None,
) -> Panel:
    """Whose examples are scored, of the data of `config`: the run's but for what is given."""
    splits = open_data(config, cancel)
    name = split or held_out_split(splits) or "train"
    if name not in splits:
        raise ConfigError(f"--split {name}: {config.data} has {', '.join(sorted(splits))}")
    check_fit(splits[name], trained.model)
    is_own = not any(given[each] for each in ("data", "partition", "partition_options"))
    own = splits if is_own else None
    wanted = _wanted_clients(trained.config, splits[name], clients, own)
    plan = BatchPlan(epochs=config.epochs, batch_size=config.batch_size)
    return make_panel(splits[name], wanted, plan, config.seed)


def _predict(
    trained: Trained,
    panel: Panel,
    file: Path | None,
    num_errors: int | None,
    asked: Sequence[Callable[[Predicted], None]],
    cancel: CancelFlag | None,
) -> WorstMistakes | None:
    """Hands out predictions, writes them to a file and finds the worst mistakes, where asked to."""
    worst = None if num_errors is None else WorstMistakes(num_errors)
    if file is None and worst is None and not asked:
        return None
    with ExitStack() as stack:
        takers = [*asked, *([] if worst is None else [worst.add])]
        if file is not None:
            num_classes = trained.model.layout.num_classes
            takers.append(stack.enter_context(predictions.writing(file, num_classes)))
        weights = trained.state.evaluated_weights
        for predicted in predictions.predict(panel, trained.model, trained.engine, weights, cancel):
            for take in takers:
                take(predicted)
    return worst


def _evaluated_tensors(content: Checkpoint, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The weights that are evaluated, without the code that says what they compute."""
    named = content.components["global_model_weights"]
    arrays = {name: np.asarray(named[name]) for name in names}
    for part in ("finalizer", "client_work"):
        own = content.components[part].get(EVALUATED_WEIGHTS)
        if own is not None:
            ends = np.cumsum([array.size for array in arrays.values()])[:-1]
            pieces = np.split(np.asarray(own), ends)
            rows = zip(arrays.items(), pieces, strict=True)
            return {name: piece.reshape(array.shape) for (name, array), piece in rows}
    return arrays


def export_run(
    path: str | Path, file: str | Path, *, best: bool = False
) -> list[tuple[str, tuple[int, ...]]]:
    """Writes the weights of a checkpoint: of a run's newest, or a file.

    Runs no code of a user's: such a model's weights are as they stand in the checkpoint.

    Args:
        path: The run or checkpoint.
        file: What to write: `.npz`, `.weights.h5` or, the whole model, `.keras`.
        best: Take the checkpoint of the run's best round, not the newest.

    Returns:
        Name and shape of each tensor written, in order.

    Raises:
        ConfigError: `file` is that checkpoint, has another suffix, or is to be Keras's and the
            model is not made of layers.
        RunError: There is no such run or checkpoint, it is damaged, or `file` cannot be written.
    """
    from fedcli import weights_files  # late: zipfile takes 7 ms that training does not need

    weights_files.check_format(Path(file))
    source = _checkpoint_file(Path(path), best=best)
    check_is_no_input(Path(file), [source], str(file))
    content = checkpoint.load(source)
    if content.tensor_names is not None:
        if Path(file).suffix != ".npz":
            raise ConfigError(
                f"{file}: this run's model is code, not Keras's layers; write an .npz"
            )
        arrays = _evaluated_tensors(content, content.tensor_names)
        weights_files.save_npz(Path(file), arrays)
    else:
        trained = _trained(content, source, threads=1)
        layout = trained.model.layout
        tensors = layout.split(trained.state.evaluated_weights)
        arrays = {each.name: tensor for each, tensor in zip(layout.tensors, tensors, strict=True)}
        weights_files.save(Path(file), arrays, layout)
    return [(name, array.shape) for name, array in arrays.items()]


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint with the model it is of.

    Attributes:
        config: Of the run.
        model: The model.
        pixel_convention: What 1.0 was in the images it was trained on.
        engine: What computes clients.
        state: The weights and all else.
        fingerprint: Of the data it was trained on; None: not known.
        notes: What a reader should know, a line each.
    """

    config: RunConfig
    model: Model
    pixel_convention: str
    engine: Engine
    state: ServerState
    fingerprint: str | None
    notes: tuple[str, ...] = ()


def load_trained(path: Path, threads: int | None, code: str | None = None) -> Trained:
    """Returns the newest checkpoint of a run's folder, or a checkpoint file, without its data.

    Args:
        path: The run or checkpoint.
        threads: Number of threads; None: what the machine gives.
        code: FILE.py or FILE.py:FUNCTION, if the user said so after --model.

    Raises:
        ConfigError: The model is code and `code` does not name it, or the other way round.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    file = _checkpoint_file(path)
    return _trained(checkpoint.load(file), file, threads, code)


def _trained(
    content: Checkpoint, file: Path, threads: int | None, code: str | None = None
) -> Trained:
    config = _config_of(content, file)
    model = model_of(content, config, file, code)
    engine = engines.make_engine(model, threads)
    state = to_state(content, build_process(config, model, engine), file)
    origin = configs.read_provenance(content.config, str(file))
    notes = note_of_changed_model(code, origin.get("model"))
    convention = content.pixel_convention
    return Trained(config, model, convention, engine, state, origin.get("data"), notes)


def data_of_run(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the data that a model was trained on, what is given laid over them.

    Args:
        path: A run's folder, or a checkpoint.
        given: Some of the arguments of `datasets.open_splits`, but not `data`.

    Raises:
        ConfigError: The config that was stored is not valid.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    file = _checkpoint_file(path)
    config = _config_of(checkpoint.load(file), file)
    names = (*configs.DATA_FIELDS, "num_classes", "pixels")
    return configs.merge({name: getattr(config, name) for name in names}, given)


def _checkpoint_file(path: Path, *, best: bool = False) -> Path:
    """The newest or the best checkpoint of a run's folder, or the file itself."""
    if not path.exists():
        raise RunError(f"there is no run or checkpoint {path}; give what fedcli train wrote")
    if best:
        if not path.is_dir():
            raise ConfigError(f"--best: {path} is one checkpoint; give the folder of a run")
        return run_dir.best_checkpoint(path)
    return run_dir.latest_checkpoint(path) if path.is_dir() else path


def _config_of(content: Checkpoint, file: Path) -> RunConfig:
    return configs.from_options(configs.from_toml(content.config, f"{file}: config"))


def _evaluation_config(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A run's config with the data options of an evaluation.

    Other data have no test data and are natural.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    base = {name: getattr(config, name) for name in given}
    if "data" in asked:
        base.update(test_data=None, partition=NATURAL, partition_options={})
    return configs.from_options(configs.merge(base, asked))


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
        return cohort.resolve_ids(cohort.parse_clients(clients), data.client_ids, data.source)
    if config.sampling != "fixed" or config.clients is None or data.split == CENTRAL:
        return data.client_ids
    selection = cohort.parse_clients(config.clients)
    if selection.ids is not None:
        return selection.ids
    try:
        train = (own or open_data(config))["train"]
    except DataError as err:
        raise DataError(f"the run's cohort is not known, say --clients: {err}") from err
    return cohort.resolve_ids(selection, train.client_ids, train.source)
