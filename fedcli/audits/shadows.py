"""Shadow runs: runs like the audited one, in which some clients are left out or replaced.

They start from the audited run's initial weights, which its server knows, and have other seeds.

A client that is left out can still be drawn, but it has no examples and contributes nothing.
Therefore neither the cohort sizes nor the probabilities of being drawn change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.audits.audited_run import AuditedRun
from fedcli.core import native
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import plan_of
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.sources.given import GivenData
from fedcli.federation.poisoning import ChangedClients
from fedcli.federation.sampled_clients import open_sampled_clients
from fedcli.runs import starting
from fedcli.settings.data_source import IN_MEMORY, DataSource
from fedcli.settings.run_config import RunConfig

_SEED_BITS = 31  # so that TFF's sampler accepts every seed
_NAME = "shadow"


@dataclass(frozen=True, eq=False)
class Shadow:
    """A finished shadow run.

    Attributes:
        weights: Its weights, float32 [num_params].
        seen: The clients that took part with examples.
    """

    weights: NDArray[np.float32]
    seen: frozenset[str]


def halves(num_shadows: int, num_clients: int, seed: int) -> NDArray[np.bool_]:
    """Returns which clients each shadow run trains on: bool [num_shadows, num_clients].

    Each client is in half of the runs (rounded down). These are drawn separately per client.
    """
    stream = Stream(stream_key(seed, Purpose.AUDIT))
    chosen = np.zeros((num_shadows, num_clients), np.bool_)
    for column in chosen.T:
        column[stream.permutation(num_shadows)[: num_shadows // 2]] = True
    return chosen


def shadow_seed(seed: int, index: int) -> int:
    """Returns the seed of the shadow with an index, from the seed of the audited run."""
    word = native.random_u64(stream_key(seed, Purpose.AUDIT, round_num=index + 1), 1)[0]
    return int(word) >> (64 - _SEED_BITS)


def train_shadow(
    run: AuditedRun, index: int, clients: Sequence[str] | None, changed: Mapping[str, ClientDataset]
) -> Shadow:
    """Trains a shadow run for as many rounds as the audited one.

    Args:
        run: The audited run.
        index: The number of the shadow, which determines its seed.
        clients: The fixed cohort of the shadow run; None to draw cohorts as the audited run does.
        changed: The clients whose examples are replaced, with their new examples.

    Raises:
        ConfigError: The shadow cannot be trained as the run was.
    """
    data = ChangedClients(run.train, lambda client: changed[client.client_id], changed)
    config = _config_of_shadow(run, index, clients)
    empty = [client_id for client_id, each in changed.items() if not len(each)]
    with TemporaryDirectory(prefix="fedcli-") as folder:
        training = starting.start(
            config,
            Path(folder) / _NAME,
            data=GivenData({"train": data}, _NAME),
            model=run.initial_model,
            cancel=run.cancel,
        )
        with training:
            for _ in training.run():
                pass
            weights = training.state.evaluated_weights
    _, sampled = open_sampled_clients(config, data, plan_of(config), [], run.cancel)
    return Shadow(weights, sampled.seen(config.rounds, run.cancel) - set(empty))


def _config_of_shadow(run: AuditedRun, index: int, clients: Sequence[str] | None) -> RunConfig:
    """The audited run's config, but without its data, evaluations and logs."""
    config = run.shadow_config
    of_data: dict[str, Any] = {name: getattr(RunConfig, name, {}) for name in vars(DataSource())}
    silent: dict[str, Any] = {
        name: getattr(RunConfig, name, {})
        for name in (
            *("preset", "eval_every", "eval_clients", "eval_split", "metrics", "stop_at"),
            *("patience", "monitor", "keep_best", "csv", "tensorboard", "histograms"),
            *("record_clients", "metric_options"),
        )
    }
    return replace(
        config.computed_by_threads(run.trained.engine.num_threads),
        **{
            **of_data,
            **silent,
            "data": f"{IN_MEMORY}{_NAME}",
            "clients": config.clients if clients is None else tuple(clients),
            "seed": shadow_seed(config.seed, index),
            "rounds": run.trained.state.round_num,
        },
    )


def without_examples(client: ClientDataset) -> ClientDataset:
    """Returns a client that has no examples."""
    return replace(client, pixels=client.pixels[:0], labels=client.labels[:0])


def some_of(client_ids: Collection[str], limit: int, seed: int) -> list[str]:
    """Returns all clients, or a random choice of `limit` clients if there are more; sorted."""
    ordered = sorted(client_ids)
    order = Stream(stream_key(seed, Purpose.AUDIT, occurrence=1)).permutation(len(ordered))
    return sorted(ordered[place] for place in order[:limit].tolist())
