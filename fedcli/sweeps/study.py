"""`Study`: the checked content of a study.toml, of the options of `fedcli sweep`, or of a program.

seeds = "0..4"                      # or 5, or [0, 1, 2]
redraw_partition = true             # each seed is also the seed of the partition

[run]                               # options of fedcli train that all runs share
rounds = 100

[grid]                              # every combination of these values
client_lr = [0.01, 0.1]
server_options.momentum = [0.0, 0.9]

[[case]]                            # a named combination; each is crossed with the grid
name = "FedProx"
algorithm = "fedprox"
grid = {client_lr = [0.1, 0.3]}     # in place of the grid's values

[range]                             # with random = N or search = N in place of a grid
client_lr = "log:1e-3..1"

[select]                            # how the best is chosen
metric = "accuracy"
on = "validation"

[halving]                           # after 10, 30, ... rounds only the best third continues
min_rounds = 10
eta = 3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, shown
from fedcli.settings.options import did_you_mean
from fedcli.settings.run_config import OPTIONS, RunConfig
from fedcli.settings.tables.metrics import SELECTION_METRICS
from fedcli.settings.toml_values import parse_toml
from fedcli.settings.values import MAX_SEED, check_whole
from fedcli.settings.vocabulary import ACCURACY, HELD_OUT, VALIDATION
from fedcli.sweeps.study_values import (
    Range,
    as_list,
    checked,
    field_name,
    nested,
    read_range,
    read_seeds,
)

MAX_POINTS = 100_000
SELECTED_ON = (VALIDATION, *HELD_OUT, "train")

Options = Mapping[str, Any]  # by dotted name
Grid = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A named combination of options, such as an algorithm with its options.

    Attributes:
        name: The name in tables.
        options: Its options by dotted name.
        grid: Values by dotted name of an option; they replace the values in the study's grid.
    """

    name: str
    options: Options
    grid: Grid = field(default_factory=dict)


@dataclass(frozen=True)
class Select:
    """How points are ranked.

    Attributes:
        metric: A key of SELECTION_METRICS.
        on: The split whose results decide; validation unless the user requests another.
    """

    metric: str = ACCURACY
    on: str = VALIDATION


@dataclass(frozen=True)
class Halving:
    """Successive halving: only the best 1 / `eta` of points continue after each rung.

    Rung k ends after `min_rounds` * `eta`^k rounds.

    Jamieson and Talwalkar 2016, arXiv 1502.07943. All points of a rung end before any continues.

    Attributes:
        min_rounds: Number of rounds of the first rung.
        eta: The factor between rungs, at least 2.
    """

    min_rounds: int
    eta: int = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: its runs, and how the best are chosen.

    Attributes:
        run: Fields of `RunConfig` that all runs share.
        grid: Values by dotted name of an option.
        cases: Named combinations; empty if there are none.
        ranges: Ranges by dotted name of an option, for `random` or `search`.
        random: Number of points drawn at random; None for no random search.
        search: Number of points of a search by TPE; None for no search.
        generation: Number of points that a search draws before it reads their results.
        search_seed: Seed of the draws of `random` and `search`.
        seeds: Seeds of each point. They do not influence which options are drawn.
        redraw_partition: Whether each seed is also the seed of the partition.
        select: How points are ranked.
        halving: The settings of successive halving; None if each run has all its rounds.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    random: int | None = None
    search: int | None = None
    generation: int = 8
    search_seed: int = 0
    seeds: tuple[int, ...] = (0,)
    redraw_partition: bool = False
    select: Select = field(default_factory=Select)
    halving: Halving | None = None

    @property
    def must_choose(self) -> bool:
        """Whether the next runs of the study depend on results."""
        return self.halving is not None or self.search is not None


def read_file(path: Path) -> Study:
    """Reads a study.toml.

    Raises:
        ConfigError: It cannot be read, or something in it is not allowed.
    """
    from fedcli.runs.files.folder import read_text

    return read(parse_toml(read_text(path), str(path)), str(path))


def read(document: Mapping[str, Any], source: str) -> Study:
    """Returns the study that a parsed TOML document, or an equal Python mapping, describes.

    Args:
        document: The document.
        source: Its name in messages.

    Raises:
        ConfigError: A key or value is not allowed.
    """
    for key in document:
        if key not in _READERS:
            raise ConfigError(
                f"{source}: unknown key '{shown(key)}'; choose one of {', '.join(_READERS)}"
                f"{did_you_mean(str(key), _READERS)}"
            )
    read_keys = {
        _FIELDS.get(key, key): _READERS[key](value, f"{source}: {key}")
        for key, value in document.items()
    }
    return check(Study(**read_keys), source)


def check(study: Study, source: str) -> Study:
    """Returns the study if its parts are compatible. Raises ConfigError if not."""
    methods = [name for name in ("grid", "random", "search") if getattr(study, name)]
    methods += ["grid"] * (not study.grid and any(case.grid for case in study.cases))
    if len(methods) > 1:
        raise ConfigError(f"{source}: {' and '.join(methods)} each define the points; choose one")
    drawn = study.random or study.search
    if bool(study.ranges) != bool(drawn):
        missing = "ranges; add [range]" if drawn else "a method; add random = 20 or search = 20"
        raise ConfigError(
            f"{source}: a study with {methods[0] if drawn else 'range'} lacks {missing}"
        )
    if study.search and study.halving:
        raise ConfigError(f"{source}: search and halving cannot be combined; choose one")
    names = [case.name for case in study.cases]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: two cases have the name {name!r}; choose another")
    _check_given_once(study, source)
    if study.halving is not None:
        _check_halving(study, study.halving, source)
    return study


def to_document(study: Study) -> dict[str, Any]:
    """Returns the document that `read` turns into this study."""
    plain = {
        "random": study.random,
        "search": study.search,
        "generation": study.generation if study.search else None,
        "search_seed": study.search_seed if study.random or study.search else None,
        "seeds": list(study.seeds),
        "redraw_partition": study.redraw_partition or None,
        "run": _plain_options(study.run),
        "grid": _plain_grid(study.grid) or None,
        "range": {name: each.text() for name, each in study.ranges.items()} or None,
        "select": {"metric": study.select.metric, "on": study.select.on},
        "halving": None if study.halving is None else vars(study.halving).copy(),
        "case": [_plain_case(case) for case in study.cases] or None,
    }
    return {key: value for key, value in plain.items() if value is not None}


def to_toml(study: Study) -> str:
    """Returns the text of study.toml."""
    import tomli_w  # lazy, as in `settings.config_file`

    return tomli_w.dumps(to_document(study))


def with_absolute_paths(study: Study, folder: Path) -> Study:
    """Returns the study with absolute paths of files; relative ones are relative to `folder`."""

    def absolute(options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _absolute(name, value, folder) for name, value in options.items()}

    def absolute_grid(grid: Grid) -> Grid:
        return {
            name: tuple(_absolute(name, each, folder) for each in values)
            for name, values in grid.items()
        }

    cases = tuple(
        replace(case, options=absolute(case.options), grid=absolute_grid(case.grid))
        for case in study.cases
    )
    return replace(study, run=absolute(study.run), grid=absolute_grid(study.grid), cases=cases)


def _absolute(name: str, value: Any, folder: Path) -> Any:
    from fedcli.settings.run_config import absolute_paths

    if "." in name:
        return value
    config = RunConfig.unchecked({name: value})
    return getattr(absolute_paths(config, str(folder)), name)


def _check_given_once(study: Study, source: str) -> None:
    """Refuses an option that two parts of a study set."""
    varied = {*study.grid, *study.ranges}
    if study.halving is not None and "rounds" in {*varied, *_names_of_cases(study)}:
        raise ConfigError(
            f"{source}: halving sets the rounds; leave rounds out of grid, range and cases"
        )
    for case in study.cases:
        both = varied & case.options.keys()
        if both:
            raise ConfigError(
                f"{source}: {sorted(both)[0]} is in case {case.name!r} and in the grid or range; "
                "leave it out of the case, or out of the grid or range (a case may have a grid of "
                "its own)"
            )
    named = {*varied, *_names_of_cases(study)}
    if study.redraw_partition and "partition_options.seed" in named:
        raise ConfigError(
            f"{source}: redraw_partition sets the partition's seed; leave partition_options.seed "
            "out"
        )


def _names_of_cases(study: Study) -> set[str]:
    return {name for case in study.cases for name in (*case.options, *case.grid)}


def _check_halving(study: Study, halving: Halving, source: str) -> None:
    most = study.run.get("rounds", RunConfig.rounds)
    if halving.min_rounds >= most:
        raise ConfigError(
            f"{source}: halving: min_rounds {halving.min_rounds} is not below the {most} rounds of "
            "the runs; choose a smaller number, or more rounds"
        )


def _read_run(value: Any, label: str) -> dict[str, Any]:
    table = value._given() if isinstance(value, RunConfig) else value
    options = _read_options(table, label, may_vary=False)
    return nested(options)


def _read_options(value: Any, label: str, *, may_vary: bool = True) -> dict[str, Any]:
    """Reads a table of options, by dotted name. Tables such as server_options may be nested."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {shown(value)}: give a table of options")
    options: dict[str, Any] = {}
    for key, each in value.items():
        name = field_name(key, label, may_vary=may_vary)
        if isinstance(each, Mapping) and "." not in name:
            OPTIONS[name].checked(f"{label}: {name}", each)
            options.update((f"{name}.{part}", inner) for part, inner in each.items())
        else:
            options[name] = checked(name, each, label)
    return options


def _read_grid(value: Any, label: str) -> Grid:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {shown(value)}: give a table with a list for each option")
    grid: dict[str, tuple[Any, ...]] = {}
    for key, each in value.items():
        parts = each if isinstance(each, Mapping) else {"": each}
        for part, values in parts.items():
            name = field_name(f"{key}.{part}" if part else key, label)
            listed = as_list(values, f"{label}: {name}")
            grid[name] = tuple(checked(name, item, label) for item in listed)
            if any(grid[name].count(item) > 1 for item in grid[name]):
                raise ConfigError(f"{label}: {name} lists a value twice; give each once")
    return grid


def _read_ranges(value: Any, label: str) -> dict[str, Range]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {shown(value)}: give a table with a range for each option")
    ranges = {}
    for key, each in value.items():
        parts = each if isinstance(each, Mapping) else {"": each}
        for part, text in parts.items():
            name = field_name(f"{key}.{part}" if part else key, label)
            ranges[name] = read_range(name, text, label)
    return ranges


def _read_cases(value: Any, label: str) -> tuple[Case, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise ConfigError(f"{label} {shown(value)}: give [[case]] tables")
    cases = []
    for number, table in enumerate(value, 1):
        name = table.get("name")
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ConfigError(f'{label} {number}: it needs a name, as in name = "FedProx"')
        where = f"{label} {name!r}"
        grid = _read_grid(table.get("grid", {}), f"{where}: grid")
        rest = {key: each for key, each in table.items() if key not in ("name", "grid")}
        cases.append(Case(name, _read_options(rest, where), grid))
    return tuple(cases)


def _read_select(value: Any, label: str) -> Select:
    _check_table(value, label, ("metric", "on"))
    metric, split = value.get("metric", Select.metric), value.get("on", Select.on)
    _check_choice(f"{label}: metric", metric, tuple(SELECTION_METRICS))
    _check_choice(f"{label}: on", split, SELECTED_ON)
    return Select(metric, split)


def _read_halving(value: Any, label: str) -> Halving:
    _check_table(value, label, ("min_rounds", "eta"))
    if "min_rounds" not in value:
        raise ConfigError(f"{label}: it needs min_rounds, the rounds of the first rung")
    most = 100
    return Halving(
        check_whole(f"{label}: min_rounds", value["min_rounds"]),
        check_whole(f"{label}: eta", value.get("eta", Halving.eta), minimum=2, maximum=most),
    )


def _check_table(value: Any, label: str, keys: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label} {shown(value)}: give a table with {' and '.join(keys)}")
    for key in value:
        if key not in keys:
            raise ConfigError(
                f"{label}: unknown key '{shown(key)}'; choose one of {', '.join(keys)}"
            )


def _check_choice(label: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        hint = did_you_mean(str(value), words)
        raise ConfigError(f"{label} {shown(value)}: choose one of {', '.join(words)}{hint}")


def _read_switch(value: Any, label: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {shown(value)}: choose true or false")
    return value


def _read_points(value: Any, label: str) -> int:
    return check_whole(label, value, maximum=MAX_POINTS)


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in options.items() if value is not None}


def _plain_grid(grid: Grid) -> dict[str, Any]:
    return {name: [_plain(each) for each in values] for name, values in grid.items()}


def _plain_case(case: Case) -> dict[str, Any]:
    grid = {"grid": _plain_grid(case.grid)} if case.grid else {}
    return {"name": case.name, **_plain_options(case.options), **grid}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "run": _read_run,
    "grid": _read_grid,
    "case": _read_cases,
    "range": _read_ranges,
    "random": _read_points,
    "search": _read_points,
    "generation": lambda value, label: check_whole(label, value, maximum=1000),
    "search_seed": lambda value, label: check_whole(label, value, minimum=0, maximum=MAX_SEED),
    "seeds": read_seeds,
    "redraw_partition": _read_switch,
    "select": _read_select,
    "halving": _read_halving,
}
# Keys of study.toml whose fields have other names.
_FIELDS = {"case": "cases", "range": "ranges"}
assert {_FIELDS.get(key, key) for key in _READERS} == {each.name for each in fields(Study)}
