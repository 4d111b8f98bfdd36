"""The clients that take part in a round, and the clients that are evaluated."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedcli.core.seeds import Purpose
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural
from fedcli.files import read_bounded
from fedcli.settings.options import Value

if TYPE_CHECKING:
    from fedcli.federation.samplers import Sampler

DEFAULT_COHORT_SIZE = 10

# Up to this population all clients are evaluated; above it, a sample of 1,000 estimates the mean.
MAX_EVAL_POPULATION = 10_000
NUM_EVAL_CLIENTS = 1_000

MAX_LIST_BYTES = 256 << 20  # largest file of ids; it is read into memory

_ALL = "all"
_DECIMAL = re.compile(r"-?([0-9]*\.[0-9]+(e-[0-9]+)?|[0-9]+e-[0-9]+)")


@dataclass(frozen=True)
class ClientSelection:
    """Parsed --clients, --eval-clients or --attackers: all clients, a number, a share, or ids.

    At most one attribute is set; none means all clients.

    Attributes:
        count: Number of clients. If cohorts are not sampled, these are the first in sorted order.
        share: Share of the population, above 0 and below 1; not for fixed cohorts.
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
        fixed: The cohort of every round, sorted; None if cohorts are sampled.
        sampler: Samples the cohort of a round; None if it is fixed.
        num_wanted: With over-selection, the number of reports that the server uses per round. None:
            it uses the reports of all sampled clients.
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


def parse_clients(
    clients: str | Sequence[str], option: str = "--clients", *, least: int = 1
) -> ClientSelection:
    """Parses `all`, a count, a share, `id,id,...`, `@file` (one id per line), or a list of ids.

    Args:
        clients: The value.
        option: Its option, for messages.
        least: The smallest count that is allowed.

    Raises:
        ConfigError: The value has none of these forms, the file cannot be read, or an id is empty
            or occurs twice.
    """
    if not isinstance(clients, str):
        return _explicit(list(clients), option)
    text = clients.strip()
    if text == _ALL:
        return ClientSelection()
    if text.startswith("@"):
        return _explicit(_read_ids(Path(text[1:]), option), option)
    if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit():
        return ClientSelection(count=_parse_count(text, option, least))
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
        ConfigError: There are fewer clients than requested, an id does not exist, or the selection
            is a share, which needs sampling.
    """
    if selection.ids is not None:
        for client_id in selection.ids:
            if not contains(client_ids, client_id):
                raise ConfigError(_unknown(client_id, client_ids, source, option))
        return selection.ids
    if selection.share is not None:
        raise ConfigError(
            f"{option} {selection.share}: a share of all clients is only for train --clients with "
            "sampled cohorts, as with --sampling uniform; give a number, or, if this is a client's "
            "id, write a comma after it"
        )
    if selection.count is None:
        return client_ids
    return [client_ids[index] for index in range(_count(selection, client_ids, source, option))]


def default_selection(client_ids: Sequence[str], source: str) -> tuple[ClientSelection, str | None]:
    """Returns the selection if `--clients` is not given, and a note for the user or None.

    The selection is `DEFAULT_COHORT_SIZE` clients; if there are fewer, all of them, with a note.

    Raises:
        ConfigError: There are no clients.
    """
    _check_population(client_ids, source)
    if len(client_ids) >= DEFAULT_COHORT_SIZE:
        return ClientSelection(count=DEFAULT_COHORT_SIZE), None
    count = len(client_ids)
    has = "1 client, which forms" if count == 1 else f"{count} clients; all of them form"
    return ClientSelection(count=count), f"{source} has {has} the cohort"


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
        selection: The value of `--clients`.
        sampling: A key of `tables.SAMPLERS`, or the user's own sampler.
        client_ids: All client ids, sorted; may be generated on demand.
        source: The name of the data, for messages.
        seed: The run's seed.
        num_examples: Returns the number of a client's examples; called by `by-size` and by own
            samplers.
        over_selection: Additional clients to sample, as a share of the requested number, rounded
            up.
        options: The options of an own sampler.

    Raises:
        ConfigError: See `resolve_ids` and `samplers.build`. Also if cohorts are to be sampled and
            the population is empty or the selection names ids.
        PartError: The user's own sampler fails, or breaks the contract.
    """
    if sampling == "fixed":
        return Cohorts(client_ids, tuple(resolve_ids(selection, client_ids, source)), None)
    if selection.ids is not None:
        raise ConfigError(
            f"--clients names {plural(len(selection.ids), 'client')}, but --sampling {sampling} "
            "draws the clients itself; give a number or a share, or --sampling fixed"
        )
    _check_population(client_ids, source)
    num_wanted = _count(selection, client_ids, source, "--clients")
    from fedcli.settings.shares import rounded_up  # lazy: few runs select more than they need

    size = min(num_wanted + rounded_up(over_selection, num_wanted), len(client_ids))
    from fedcli.federation import samplers  # lazy: a fixed cohort does not need it

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
    """Returns the clients to evaluate if cohorts are sampled, and a note if they are a sample."""
    if len(client_ids) <= MAX_EVAL_POPULATION:
        return client_ids, None
    from fedcli.federation import samplers

    indices = samplers.sample_indices(
        len(client_ids), NUM_EVAL_CLIENTS, seed, Purpose.EVAL_CLIENTS, 0
    )
    note = (
        f"evaluating on {NUM_EVAL_CLIENTS:,} of the {len(client_ids):,} clients in {source}, drawn "
        "once from the seed; --eval-clients chooses others"
    )
    return [client_ids[index] for index in indices], note


def contains(client_ids: Sequence[str], client_id: str) -> bool:
    """Returns whether a sorted sequence, perhaps generated on demand, contains an id."""
    index = bisect_left(client_ids, client_id)
    return index < len(client_ids) and client_ids[index] == client_id


def _check_population(client_ids: Sequence[str], source: str) -> None:
    if not client_ids:
        raise ConfigError(f"{source} has no clients; choose other --data")


def _count(selection: ClientSelection, client_ids: Sequence[str], source: str, option: str) -> int:
    """Returns the number of clients of a selection without ids."""
    if selection.share is not None:
        return max(1, round(selection.share * len(client_ids)))
    if selection.count is None:
        return len(client_ids)
    if selection.count > len(client_ids):
        raise ConfigError(
            f"{option} {selection.count} exceeds the {plural(len(client_ids), 'client')} in "
            f"{source}; choose 1 to {len(client_ids)}, or all"
        )
    return selection.count


def _parse_count(text: str, option: str, least: int) -> int:
    if len(text) > 18 and not text.startswith("-"):  # int() raises for thousands of digits
        raise ConfigError(
            f"{option} {text[:30]}: no data have as many clients; choose fewer, or all; if this is "
            "a client's id, write a comma after it"
        )
    count = int(text) if len(text) <= 18 else -1
    if count < least:
        raise ConfigError(
            f"{option} {text[:30]}: choose at least {plural(least, 'client')}; if this is a "
            "client's id, write a comma after it"
        )
    return count


def _parse_share(text: str, option: str) -> float:
    share = float(text)
    if not 0.0 < share < 1.0:
        raise ConfigError(
            f"{option} {text[:30]}: choose a share above 0 and below 1, a number of clients, or "
            "all; if this is a client's id, write a comma after it"
        )
    return share


def _read_ids(path: Path, option: str) -> list[str]:
    try:
        text = read_bounded(path, MAX_LIST_BYTES).decode()
    except OSError as err:
        raise ConfigError(f"{option} @{path}: cannot read the file: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(
            f"{option} @{path}: not UTF-8 text; give a file with one id per line"
        ) from err
    return [line.strip() for line in text.splitlines() if line.strip()]


def _explicit(ids: list[str], option: str) -> ClientSelection:
    if not ids or not all(ids):
        raise ConfigError(f"{option} contains an empty id; give all, a number, id,id,... or @file")
    ordered = sorted(ids)
    for before, after in pairwise(ordered):
        if before == after:
            raise ConfigError(f"{option} names client {before} twice; give each id once")
    return ClientSelection(ids=tuple(ordered))


def _unknown(client_id: str, client_ids: Sequence[str], source: str, option: str) -> str:
    """Returns the message for an unknown id, with its neighbours in sorted order."""
    index = bisect_left(client_ids, client_id)
    around = range(max(0, index - 2), min(len(client_ids), index + 2))
    near = ", ".join(client_ids[each] for each in around)
    is_list = option == "--show" and "," in client_id
    several = "; give --show once for each client" if is_list else ""
    return (
        f"{option} {client_id}: no such client among the {len(client_ids)} in {source}; "
        f"its neighbours in sorted order are {near or 'none'}{several}"
    )
