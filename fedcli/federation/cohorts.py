"""Which clients take part in a round, and who is evaluated."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedcli.core.seeds import Purpose
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.files import read_bounded
from fedcli.settings.options import Value

if TYPE_CHECKING:
    from fedcli.federation.samplers import Sampler

DEFAULT_COHORT_SIZE = 10

# Evaluating everyone is quick up to here; above it a draw of 1,000 tells the mean well enough.
MAX_EVAL_POPULATION = 10_000
NUM_EVAL_CLIENTS = 1_000

MAX_LIST_BYTES = 256 << 20  # of a file of ids, which is read whole

_ALL = "all"
_DECIMAL = re.compile(r"-?([0-9]*\.[0-9]+(e-[0-9]+)?|[0-9]+e-[0-9]+)")


@dataclass(frozen=True)
class ClientSelection:
    """What `--clients` says: everyone, a number of clients, a share of all, or `ids`.

    One of the attributes is set, or none for everyone.

    Attributes:
        count: Number of clients; the first in sorted order where they are not drawn.
        share: Part of the population, above 0 and below 1; only for cohorts that are drawn.
        ids: Chosen ids in sorted order.
    """

    count: int | None = None
    share: float | None = None
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cohorts:
    """The cohort of every round.

    Attributes:
        population: All client ids, sorted; may be generated on demand.
        fixed: The one cohort of all rounds, sorted; None if each round draws its own.
        sampler: Draws the cohort of a round; None if it is fixed.
        num_wanted: Clients whose reports a round is to have, where more are drawn; None: all.
    """

    population: Sequence[str]
    fixed: tuple[str, ...] | None
    sampler: Sampler | None
    num_wanted: int | None = None

    def for_round(self, round_num: int) -> Sequence[str]:
        """Returns the ids of the cohort that trains after `round_num` rounds."""
        if self.sampler is None:
            return self.fixed or ()
        return [self.population[index] for index in self.sampler.indices(round_num)]


def parse_clients(clients: str | Sequence[str], option: str = "--clients") -> ClientSelection:
    """Returns what `all`, a count, a share, `id,id,...`, `@file` (an id a line) or ids select.

    Raises:
        ConfigError: It is none of these, a file cannot be read, or an id is empty or stands twice.
    """
    if not isinstance(clients, str):
        return _explicit(list(clients), option)
    text = clients.strip()
    if text == _ALL:
        return ClientSelection()
    if text.startswith("@"):
        return _explicit(_read_ids(Path(text[1:]), option), option)
    if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit():
        return ClientSelection(count=_parse_count(text, option))
    if _DECIMAL.fullmatch(text):
        return ClientSelection(share=_parse_share(text, option))
    ids = [each.strip() for each in text.split(",")]
    if len(ids) > 1 and not ids[-1]:  # the trailing comma that marks a numeric id
        ids.pop()
    return _explicit(ids, option)


def resolve_ids(
    selection: ClientSelection,
    client_ids: Sequence[str],
    source: str,
    option: str = "--clients",
) -> Sequence[str]:
    """Returns the selected ids of the population `client_ids`, in its order.

    Raises:
        ConfigError: There are fewer clients than asked for, an id is not among them, or a share is
            asked for, which has no order.
    """
    if selection.ids is not None:
        for client_id in selection.ids:
            if not contains(client_ids, client_id):
                raise ConfigError(_unknown(client_id, client_ids, source, option))
        return selection.ids
    if selection.share is not None:
        raise ConfigError(
            f"{option} {selection.share}: a share of all clients goes with cohorts that are drawn, "
            "as by train --sampling uniform; give a number; a numeric id takes a comma behind it"
        )
    if selection.count is None:
        return client_ids
    return [client_ids[index] for index in range(_count(selection, client_ids, source, option))]


def default_selection(client_ids: Sequence[str], source: str) -> tuple[ClientSelection, str | None]:
    """Returns the selection when `--clients` is not given, with a note if it is not the usual ten.

    Raises:
        ConfigError: There is no client at all.
    """
    _check_population(client_ids, source)
    if len(client_ids) >= DEFAULT_COHORT_SIZE:
        return ClientSelection(count=DEFAULT_COHORT_SIZE), None
    note = f"{source} has {len(client_ids)} clients; all of them form the cohort"
    return ClientSelection(count=len(client_ids)), note


def plan_cohorts(
    selection: ClientSelection,
    sampling: str,
    client_ids: Sequence[str],
    source: str,
    seed: int,
    num_examples: Callable[[str], int],
    over_selection: float = 0.0,
    options: Mapping[str, Value] = MappingProxyType({}),
) -> Cohorts:
    """Returns the cohorts of a run.

    Args:
        selection: What `--clients` says.
        sampling: A key of `tables.SAMPLERS`, or a sampler of the user's.
        client_ids: All client ids, sorted; may be generated on demand.
        source: Where they come from, for messages.
        seed: The run's seed.
        num_examples: Tells how many examples a client holds; only `by-size` asks.
        over_selection: Clients drawn besides those wanted, as a share of them, rounded up; at most
            everyone.
        options: Of a sampler of the user's.

    Raises:
        ConfigError: See `resolve_ids` and `samplers.build`; or cohorts are to be drawn from nobody,
            or from ids that are given.
    """
    if sampling == "fixed":
        return Cohorts(client_ids, tuple(resolve_ids(selection, client_ids, source)), None)
    if selection.ids is not None:
        raise ConfigError(
            f"--clients names {len(selection.ids)} clients but --sampling {sampling} draws them; "
            "give a number or a share, or --sampling fixed"
        )
    _check_population(client_ids, source)
    num_wanted = _count(selection, client_ids, source, "--clients")
    # A share such as 0.3 is a little more or less than itself: 1e-9 keeps 10 + 30 % at 13.
    size = min(num_wanted + math.ceil(num_wanted * over_selection - 1e-9), len(client_ids))
    from fedcli.federation import samplers  # late: a fixed cohort is not drawn

    sampler = samplers.build(
        sampling,
        len(client_ids),
        size,
        seed,
        lambda index: num_examples(client_ids[index]),
        client_ids,
        options,
    )
    return Cohorts(client_ids, None, sampler, num_wanted if over_selection else None)


def choose_eval_clients(
    client_ids: Sequence[str], source: str, seed: int
) -> tuple[Sequence[str], str | None]:
    """Returns who is evaluated under random sampling, with a note if that is not everyone."""
    if len(client_ids) <= MAX_EVAL_POPULATION:
        return client_ids, None
    from fedcli.federation import samplers

    indices = samplers.sample_indices(
        len(client_ids), NUM_EVAL_CLIENTS, seed, Purpose.EVAL_CLIENTS, 0
    )
    note = (
        f"evaluating on {NUM_EVAL_CLIENTS:,} of the {len(client_ids):,} clients in {source}, drawn "
        "once by the seed; --eval-clients chooses others"
    )
    return [client_ids[index] for index in indices], note


def contains(client_ids: Sequence[str], client_id: str) -> bool:
    """Whether a sorted sequence, perhaps generated on demand, holds an id."""
    index = bisect_left(client_ids, client_id)
    return index < len(client_ids) and client_ids[index] == client_id


def _check_population(client_ids: Sequence[str], source: str) -> None:
    if not client_ids:
        raise ConfigError(f"{source} has no clients; choose other --data")


def _count(selection: ClientSelection, client_ids: Sequence[str], source: str, option: str) -> int:
    """How many clients a selection without ids stands for."""
    if selection.share is not None:
        return max(1, round(selection.share * len(client_ids)))
    if selection.count is None:
        return len(client_ids)
    if selection.count > len(client_ids):
        raise ConfigError(
            f"{option} {selection.count} exceeds the {len(client_ids)} clients in {source}; "
            f"choose 1 to {len(client_ids)}, or all"
        )
    return selection.count


def _parse_count(text: str, option: str) -> int:
    # More than 18 digits exceed any population, and int() refuses thousands of them.
    count = int(text) if len(text) <= 18 else -1
    if count < 1:
        raise ConfigError(
            f"{option} {text[:30]}: choose at least 1 client; a numeric id takes a comma behind it"
        )
    return count


def _parse_share(text: str, option: str) -> float:
    share = float(text)
    if not 0.0 < share < 1.0:
        raise ConfigError(
            f"{option} {text[:30]}: choose a share above 0 and below 1, a number of clients, or "
            "all; a numeric id takes a comma behind it"
        )
    return share


def _read_ids(path: Path, option: str) -> list[str]:
    try:
        text = read_bounded(path, MAX_LIST_BYTES).decode()
    except OSError as err:
        raise ConfigError(f"{option} @{path}: cannot read the file: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(
            f"{option} @{path}: not UTF-8 text; give a file of one id a line"
        ) from err
    return [line.strip() for line in text.splitlines() if line.strip()]


def _explicit(ids: list[str], option: str) -> ClientSelection:
    if not ids or not all(ids):
        raise ConfigError(f"{option} holds an empty id; give all, a number, id,id,... or @file")
    ordered = sorted(ids)
    for before, after in pairwise(ordered):
        if before == after:
            raise ConfigError(f"{option} names client {before} twice; give each id once")
    return ClientSelection(ids=tuple(ordered))


def _unknown(client_id: str, client_ids: Sequence[str], source: str, option: str) -> str:
    """The message for an id that is not there, with its neighbours in sorted order."""
    index = bisect_left(client_ids, client_id)
    around = range(max(0, index - 2), min(len(client_ids), index + 2))
    near = ", ".join(client_ids[each] for each in around)
    return (
        f"{option} {client_id}: no such client among the {len(client_ids)} in {source}; "
        f"near it in order are {near or 'none'}"
    )
