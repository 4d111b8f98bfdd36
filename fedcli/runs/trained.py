"""Loads a checkpoint with its model (`load_trained`), and exports its weights (`export_run`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import learning, settings
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData, decoding
from fedcli.errors import ConfigError, RunError
from fedcli.files import check_is_no_input
from fedcli.learning import client_states
from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.learning.state import ServerState
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.runs.building import build_algorithm
from fedcli.runs.files import checkpoint, client_records
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.checkpoint import Checkpoint
from fedcli.runs.files.saved_states import (
    client_states_of,
    evaluated_weights_in,
    model_of,
    needs_code,
    open_client_states,
    to_state,
    without_code,
)
from fedcli.settings.data_source import DataSource
from fedcli.settings.run_config import RunConfig, may_have_code

# The names of the files and folders that training writes in a run's folder.
_OWN_NAMES = (
    *(run_dir.CONFIG, run_dir.METRICS, run_dir.METRICS_CSV, run_dir.TIMINGS, run_dir.EVALUATION),
    *(run_dir.CHECKPOINTS, run_dir.LOCK, client_records.FILE, client_records.JOURNAL),
    *(*client_states.FILES, run_dir.EVENT_FILES),
)


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint with its model. As a context manager it closes the files of client states.

    Attributes:
        file: The checkpoint.
        config: Config of the run.
        model: The model.
        pixel_convention: The meaning of the pixel value 1.0 in training: "ink" or "background".
        engine: The engine that evaluates clients.
        state: The server state, with the weights.
        fingerprint: Fingerprint of the data of the run; None if it is not known.
        notes: Notes for the user, one line each.
    """

    file: Path
    config: RunConfig
    model: Model
    pixel_convention: str
    engine: Engine
    state: ServerState
    fingerprint: str | None
    notes: tuple[str, ...] = ()

    def __enter__(self) -> Trained:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the files of client states."""
        for states in client_states_of(self.state):
            states.close()

    def as_trained(self, data: ClientData, client_id: str) -> ClientDataset:
        """Returns a client's examples; the pixel value 1.0 means the same as in training.

        Raises:
            DataError: The client cannot be read.
        """
        client = data.client(client_id)
        scale, offset, _ = decoding(
            client.scale, client.offset, data.pixel_convention, self.pixel_convention
        )
        return replace(client, scale=scale, offset=offset)


def load_trained(
    path: Path,
    threads: int | None,
    code: Any = None,
    *,
    best: bool = False,
    has_client_states: bool = True,
) -> Trained:
    """Loads a checkpoint with its model, but without data.

    Args:
        path: The run or checkpoint.
        threads: Number of threads; None for as many as the machine has.
        code: FILE.py or FILE.py:FUNCTION, as the user named it with --model; in a program also the
            object that is the run's model.
        best: Take the checkpoint of the run's best round, not the newest.
        has_client_states: Whether to open the client states with which clients are evaluated. If
            not, only the weights of the common model can be used.

    Raises:
        ConfigError: The model is code and `code` does not name it, or `code` is not the model's.
        ModelError: The model's code fails.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    file = checkpoint_file(path, best=best)
    content = checkpoint.load(file)
    return _trained(content, file, threads, code, has_client_states=has_client_states)


def _trained(
    content: Checkpoint,
    file: Path,
    threads: int | None,
    code: Any = None,
    *,
    has_client_states: bool = True,
) -> Trained:
    config = _config_of(content, file)
    model = model_of(content, config, file, code)
    engine = choosing.make_engine(model, threads)
    bare, ordinary = without_code(content, config)
    process = learning.build_process(build_algorithm(ordinary), model, engine=engine)
    bare = replace(
        bare, components={**bare.components, "updates": {}}
    )  # evaluation needs no state of stages
    state = to_state(bare, process, file)
    if state.has_own_models and has_client_states:
        state = open_client_states(state, file.parent.parent, content.client_states)
    origin = settings.read_provenance(content.config, str(file))
    notes: tuple[str, ...] = ()
    if isinstance(code, str) and needs_code(content, config):
        from fedcli.settings.own.permission import notes_of_changes  # lazy: few runs have code

        notes = notes_of_changes({"model": code}, origin)
    convention = content.pixel_convention
    return Trained(file, config, model, convention, engine, state, origin.get("data"), notes)


def data_of_run(path: Path, overrides: Mapping[str, Any]) -> DataSource:
    """Returns the data source of a trained model, with some fields replaced.

    Args:
        path: A run's folder, or a checkpoint.
        overrides: Some fields of `DataSource` by name, but not `data`.

    Raises:
        ConfigError: The config that was stored is not valid, or its partition is code that is not
            named.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    config = config_of_run(path)
    if may_have_code(config):
        from fedcli.settings.own.permission import with_partition  # lazy: few runs have code

        config, overrides = with_partition(config, overrides)
    return DataSource(**settings.merge(vars(config.data_source), overrides))


def config_of_run(path: Path) -> RunConfig:
    """Returns the config that is stored in a run's newest checkpoint, or in a checkpoint.

    Raises:
        ConfigError: The config that was stored is not valid.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    file = checkpoint_file(path)
    return _config_of(checkpoint.load(file), file)


def checkpoint_file(path: Path, *, best: bool = False) -> Path:
    """Returns the newest or the best checkpoint of a run's folder, or the checkpoint itself.

    Raises:
        ConfigError: `best` is set and `path` is a single checkpoint.
        RunError: There is no such run or checkpoint.
    """
    if not path.exists():
        raise RunError(
            f"there is no run or checkpoint {path}; give a folder that fedcli train wrote"
        )
    if best:
        if not path.is_dir():
            raise ConfigError(f"--best: {path} is a single checkpoint; give the folder of a run")
        return run_dir.best_checkpoint(path)
    return run_dir.latest_checkpoint(path) if path.is_dir() else path


def _config_of(content: Checkpoint, file: Path) -> RunConfig:
    return settings.from_options(settings.from_toml(content.config, f"{file}: config"))


def files_of_run(path: Path) -> list[Path]:
    """Returns the files that training wrote for a run, given by its folder or a checkpoint in it.

    Other commands must not overwrite them. Other files in the folder belong to the user.
    """
    folder = path if path.is_dir() else path.absolute().parent.parent
    files = [path]  # a checkpoint may be outside a run's folder
    if (folder / run_dir.CONFIG).is_file():
        for name in _OWN_NAMES:
            files += [folder / name, *(folder / name).rglob("*")]
    return [each for each in files if each.is_file()]


def load_weights(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Returns the evaluated weights by name, of a run's newest checkpoint or of a checkpoint file.

    They have Keras's shapes and order. No user's code runs: the weights of a model that is code
    have the shapes and order in the checkpoint.

    Raises:
        ConfigError: Each client has its own model.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    return load_weights_and_layout(path)[0]


def load_weights_and_layout(
    path: str | Path,
) -> tuple[dict[str, NDArray[np.float32]], ParamLayout | None]:
    """Returns the result of `load_weights`, and its layout, which is None if the model is code."""
    file = checkpoint_file(Path(path))
    return _weights_of(checkpoint.load(file), file)


def export_run(
    path: str | Path,
    file: str | Path,
    *,
    best: bool = False,
    file_format: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Writes the weights of a checkpoint to a file.

    Args:
        path: A run's folder, whose newest checkpoint is taken, or a checkpoint file.
        file: The file to write: `.npz`, `.weights.h5`, `.pt` or, for the whole model, `.keras`.
        best: Take the checkpoint of the run's best round, not the newest.
        file_format: A key of `vocabulary.WEIGHTS_FORMATS`; None to choose it by the suffix of
            `file`.
        note: Called with a line about the layers that the file does not hold.

    Returns:
        Name and shape of each tensor written, in order.

    Raises:
        ConfigError: Training wrote or read `file`; it has another suffix; the format is Keras's or
            PyTorch's and the model is code; or each client has its own model.
        RunError: There is no such run or checkpoint, it is damaged, or `file` cannot be written.
    """
    from fedcli.models import weights_files
    from fedcli.models.augmentation import acting_in_evaluation

    chosen = weights_files.format_of(Path(file), file_format)
    source = checkpoint_file(Path(path), best=best)
    content = checkpoint.load(source)
    inputs = [*files_of_run(source), *_config_of(content, source).data_source.paths]
    check_is_no_input(Path(file), inputs, str(file))
    weights, layout = _weights_of(content, source)
    if layout is not None:
        written = weights_files.save(Path(file), weights, layout, chosen)
        left_out = [] if chosen == "keras" else acting_in_evaluation(layout)
        if left_out:
            note(
                f"{file} holds only weights; transform each image first, as the model does: "
                f"{', then '.join(map(repr, left_out))}"
            )
        return list(written.items())
    if chosen != "npz":
        raise ConfigError(f"{file}: this run's model is code, not fedcli's layers; write an .npz")
    weights_files.save_npz(Path(file), weights)
    return [(name, array.shape) for name, array in weights.items()]


def _weights_of(
    content: Checkpoint, file: Path
) -> tuple[dict[str, NDArray[np.float32]], ParamLayout | None]:
    """The evaluated weights by name, and their layout, which is None if the model is code."""
    if content.tensor_names is not None:
        return _evaluated_tensors(content, content.tensor_names), None
    trained = _trained(content, file, threads=1, has_client_states=False)
    layout = trained.model.layout
    tensors = layout.split(trained.state.evaluated_weights)
    names = (each.name for each in layout.tensors)
    return dict(zip(names, tensors, strict=True)), layout


def _evaluated_tensors(content: Checkpoint, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The evaluated weights of a model that is code, read without running the code."""
    own = evaluated_weights_in(content)
    named = content.components["global_model_weights"]
    arrays = {name: np.asarray(named[name]) for name in names}
    if own is None:
        return arrays
    ends = np.cumsum([array.size for array in arrays.values()])[:-1]
    rows = zip(arrays.items(), np.split(own, ends), strict=True)
    return {name: piece.reshape(array.shape) for (name, array), piece in rows}
