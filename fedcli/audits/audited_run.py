"""`AuditedRun`: a run's model and data, the clients that took part, and the epsilon it reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.audits.bounds import Privacy
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import plan_of
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, DataError
from fedcli.evaluation.predictions import predict_client
from fedcli.federation.opened_data import check_fit, open_data
from fedcli.federation.sampled_clients import SampledClients, open_sampled_clients
from fedcli.learning.engines import choosing
from fedcli.models import sources
from fedcli.models.model import Model
from fedcli.runs.files import folder
from fedcli.runs.moved_data import missing_places
from fedcli.runs.trained import Trained, data_of_run, load_trained
from fedcli.settings.data_source import IN_MEMORY
from fedcli.settings.declaration import option_name
from fedcli.settings.options import is_code
from fedcli.settings.own.permission import allowed_code
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables import ALGORITHMS
from fedcli.settings.vocabulary import LOCAL_NORMS


@dataclass(eq=False)
class AuditedRun:
    """A run with all that an audit needs.

    Attributes:
        path: The run's folder, or a checkpoint.
        trained: Its model.
        splits: Its data by split.
        privacy: The epsilon that it reports after the audited round; None if it reports none.
        cancel: A flag that any thread may set to stop the audit.
        code: FILE.py or FILE.py:FUNCTION of the model, if the user named it.
    """

    path: Path
    trained: Trained
    splits: Mapping[str, ClientData]
    privacy: Privacy | None
    cancel: CancelFlag
    code: str | None = None

    @property
    def train(self) -> ClientData:
        """The train split."""
        return self.splits["train"]

    @cached_property
    def sampled_clients(self) -> SampledClients:
        """The clients of each round.

        Raises:
            ConfigError: A user's code draws the clients, and an audit does not run it.
        """
        config = self.trained.config
        if is_code(config.sampling):
            raise ConfigError(
                f"--sampling {config.sampling}: the clients of {self.path} are drawn by code of "
                "yours, which an audit does not run; audit a run with another --sampling"
            )
        _, sampled = open_sampled_clients(config, self.train, plan_of(config), [], self.cancel)
        return sampled

    @cached_property
    def seen(self) -> frozenset[str]:
        """The clients that took part."""
        return self.sampled_clients.seen(self.trained.state.round_num, self.cancel)

    @property
    def is_fixed(self) -> bool:
        """Whether the same clients take part in every round."""
        return self.sampled_clients.cohorts.fixed is not None

    @property
    def candidates(self) -> list[str]:
        """The clients that may take part: the fixed cohort, else all; sorted."""
        cohorts = self.sampled_clients.cohorts
        return list(cohorts.population if cohorts.fixed is None else cohorts.fixed)

    def candidate(self, client_id: str, option: str) -> str:
        """Returns a client that may take part: `client_id`, or the first if `client_id` is empty.

        `option` is the name of the audit's option that gave the id, for messages.

        Raises:
            ConfigError: This client may not take part, or no client may.
        """
        candidates = self.candidates
        if not candidates:
            raise ConfigError(f"{self.path}: no client takes part; audit another run")
        if client_id and client_id not in candidates:
            first = ", ".join(candidates[:3])
            raise ConfigError(
                f"--option {option}={client_id}: no such client may take part in {self.path}; its "
                f"clients are {first}{', ...' if len(candidates) > 3 else ''}"
            )
        return client_id or candidates[0]

    @cached_property
    def client_config(self) -> RunConfig:
        """The run's config, with which clients train as in the run; no code of the user runs.

        Raises:
            ConfigError: A part that is needed is a user's code.
        """
        config = self.trained.config
        for name in ("algorithm", "aggregator", "server_optimizer"):
            value = getattr(config, name) or ""
            if is_code(value):
                option = option_name(name)
                raise ConfigError(
                    f"{option} {value}: {self.path} was trained with this code of yours, which an "
                    f"audit does not run; audit a run with another {option}"
                )
        return config

    @cached_property
    def shadow_config(self) -> RunConfig:
        """The run's config, with the file of its model as the user named it.

        Raises:
            ConfigError: A part that is needed is a user's code; or the model is, and the user did
                not name it.
        """
        config = self.client_config
        if not is_code(config.model):
            return config
        return replace(config, model=allowed_code("model", config.model, self.code))

    @cached_property
    def initial_model(self) -> Model | None:
        """The model with its weights before round 1; None if Python computes its gradients.

        Raises:
            ConfigError: As for `shadow_config`.
        """
        config = self.shadow_config
        if config.model.startswith(IN_MEMORY) or choosing.is_python(self.trained.model):
            return None
        return sources.open_model(
            config.model,
            input_shape=self.train.pixel_shape,
            num_classes=self.train.num_classes,
            options=config.model_options,
            seed=config.seed,
            fresh_weights=config.fresh_weights,
        )

    def check_is_shared(self) -> None:
        """Refuses runs in which no client sends an update from the common model.

        Raises:
            ConfigError: The clients have models or batch norms of their own, or are pooled.
        """
        entry = ALGORITHMS[self.trained.config.algorithm]
        if entry.has_own_models or entry.pools_clients:
            raise ConfigError(
                f"{self.path} was trained with {entry.name}, whose clients send no updates; audit "
                "a run of another --algorithm"
            )
        batch_norm = self.trained.config.batch_norm
        if batch_norm in LOCAL_NORMS:
            raise ConfigError(
                f"{self.path} was trained with --batch-norm {batch_norm}, whose clients start from "
                "different parameters; audit a run with --batch-norm average"
            )

    def losses(
        self, data: ClientData, client_id: str, weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Returns the loss of each example that a client has in `data`, in nats: float64 [n]."""
        return self.losses_of(data.client(client_id), weights)

    def losses_of(self, client: ClientDataset, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the loss of each of some examples, in nats: float64 [n]."""
        engine, model = self.trained.engine, self.trained.model
        pieces = predict_client(client, model, engine, weights, self.cancel)
        return np.concatenate([np.empty(0), *(each.losses for each in pieces)])


@contextmanager
def open_audited_run(
    path: Path,
    *,
    threads: int | None,
    model: str | None,
    best: bool,
    cancel: CancelFlag,
) -> Iterator[AuditedRun]:
    """Opens a run with its own data.

    Args:
        path: The run's folder, or a checkpoint.
        threads: Number of threads; None for as many as the machine has.
        model: FILE.py or FILE.py:FUNCTION, for a run whose model is code.
        best: Take the checkpoint of the run's best round, not the newest.
        cancel: A flag that any thread may set to stop the audit.

    Raises:
        ConfigError: The run's model is code, and `model` is not given.
        DataError: The data are missing, or do not fit the model.
        RunError: There is no such run or checkpoint, or it is damaged.
    """
    with load_trained(path, threads, model, best=best) as trained:
        source = data_of_run(path, {})
        missing = missing_places(source)
        if missing:
            raise DataError(
                f"{missing[0]}, the data of {path}, does not exist; an audit needs the data that "
                "the run was trained on, so put the file back"
            )
        splits = open_data(source, cancel)
        check_fit(splits["train"], trained.model)
        privacy = _reported_privacy(trained)
        yield AuditedRun(path, trained, splits, privacy, cancel, model)


def _reported_privacy(trained: Trained) -> Privacy | None:
    """The epsilon in metrics.jsonl for the round of the checkpoint; None if there is none."""
    path = trained.file.absolute().parent.parent
    if not (path / folder.METRICS).is_file():
        return None
    for line in folder.read_metrics(path):
        if line.get("round") == trained.state.round_num:
            return _find_privacy(line)
    return None


def _find_privacy(values: Mapping[str, Any]) -> Privacy | None:
    """The first finite `epsilon` in nested metrics, with the `delta` beside it."""
    epsilon, delta = values.get("epsilon"), values.get("delta")
    if isinstance(epsilon, int | float) and isinstance(delta, int | float):
        return Privacy(float(epsilon), float(delta))
    for value in values.values():
        privacy = _find_privacy(value) if isinstance(value, Mapping) else None
        if privacy is not None:
            return privacy
    return None
