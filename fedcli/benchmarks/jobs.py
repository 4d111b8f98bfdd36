"""The standard jobs by name: what each does, and how much work it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path

from fedcli import datasets
from fedcli.benchmarks import flute, own, tasks
from fedcli.benchmarks.peers import PEERS
from fedcli.benchmarks.tasks import AVERAGE, EVALUATE, TRAIN, Task
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets import data_folder
from fedcli.datasets.sources import store, store_writer
from fedcli.errors import ConfigError
from fedcli.settings import tables

# Models of the local-training jobs, and the number of local epochs in each.
_TRAINED = {"mlp-2nn": 20, "cnn-mcmahan": 2, "cnn-reddi": 2}
# Deep models of images in colour, whose layers the NumPy program lacks.
_DEEP = ("resnet20", "vgg11", "resnet18-gn", "mobilenet-v2")
_DIGIT = (28, 28)  # the shape of the examples of all evaluation jobs
_LEAST_CLIENTS = 4
_CLIENT_EXAMPLES = 100
_DEEP_EXAMPLES = 20
_EVALUATED_EXAMPLES = 200  # examples of each client
_STORE_CLIENTS = 3383  # as many as in federated EMNIST's digits
_WRITERS = 100  # generated clients, whose examples the clients of the store share


@dataclass(frozen=True)
class Setting:
    """The conditions for which a job is prepared.

    Attributes:
        max_threads: Largest number of threads.
        is_quick: Whether to do as little work as possible.
        folder: A folder for files, which the caller removes.
        cancel: A flag. Once it is set, a call stops within a local step.
    """

    max_threads: int
    is_quick: bool
    folder: Path
    cancel: CancelFlag


@dataclass(frozen=True)
class Work:
    """A prepared job.

    Attributes:
        own: For a number of threads, returns the function that does the job once with fedcli.
        num_units: Number of units that one call processes.
        operations: Textbook number of floating-point operations of one call; 0: not meaningful.
        task: The same job for other programs; None: they cannot do it.
        has_threads: Whether the number of threads matters.
    """

    own: Callable[[int], Callable[[], object]]
    num_units: int
    operations: float = 0.0
    task: Task | None = None
    has_threads: bool = True


@dataclass(frozen=True)
class Job:
    """One line of the benchmark.

    Attributes:
        name: Its name for --jobs.
        title: A short description.
        unit: The unit that is counted: examples, models or clients.
        make: Prepares the job.
        published: Published seconds, by program, on other machines and, unless the job uses a real
            dataset, on other data.
        peers: Names of the other programs that can do the job, if it is a task.
    """

    name: str
    title: str
    unit: str
    make: Callable[[Setting], Work]
    published: Mapping[str, float] = field(default_factory=dict)
    peers: tuple[str, ...] = tuple(PEERS)


def catalogue() -> dict[str, Job]:
    """Returns every job by name, in the order in which they run."""
    jobs = [
        Job(
            "tutorial-round",
            "round of the TFF tutorial: 10 clients, 5 epochs, batches of 20",
            "examples",
            _tutorial,
        ),
        *(_training(name, size) for name in _TRAINED for size in (10, 20)),
        *map(_deep_training, _DEEP),
        *(_evaluation(name) for name, row in tables.MODELS.items() if row.example_shape == _DIGIT),
        Job("average", "weighted average of 100 2NN models, in float64", "models", _averaging),
        Job("synthetic", f"synthetic-digits: {_WRITERS} clients drawn", "examples", _drawing),
        Job("store", f"store of {_STORE_CLIENTS:,} clients opened", "clients", _opening),
        *_published("flute-lr", flute.LR, "LR job of FLUTE's table, 100 rounds and 5 tests"),
        *_published("flute-cnn", flute.CNN, "FEMNIST CNN job of FLUTE's table, one round"),
    ]
    return {job.name: job for job in jobs}


def is_here(job: Job) -> bool:
    """Returns whether a job's data are there without a download."""
    return job.name not in _REAL or _store_of(_REAL[job.name].dataset).is_file()


def choose(names: str | None) -> list[Job]:
    """Returns the jobs of a list of names, or all that need no download.

    Args:
        names: Names separated by commas. The beginning of a name, up to a dash, selects all names
            with this beginning. None: all jobs that need no download.

    Raises:
        ConfigError: No job has such a name.
    """
    known = catalogue()
    if names is None:
        return [job for job in known.values() if is_here(job)]
    chosen: dict[str, Job] = {}
    for name in (each.strip() for each in names.split(",")):
        found = {key: job for key, job in known.items() if f"{key}-".startswith(f"{name}-")}
        if not found:
            raise ConfigError(f"--jobs '{name}': no such job; choose from {', '.join(known)}")
        exact = {name: known[name]} if name in known else found
        chosen.update(exact if name in known else _here_or_all(found.values()))
    return list(chosen.values())


def _here_or_all(jobs: Iterable[Job]) -> dict[str, Job]:
    """The jobs whose data are there; all jobs if none are, so that the error names the data."""
    listed = list(jobs)
    here = [job for job in listed if is_here(job)]
    return {job.name: job for job in here or listed}


# ---- Jobs that other programs can do, too ----


def _of_task(task: Task, setting: Setting) -> Work:
    model = tasks.build_model(task)
    is_average = task.kind == AVERAGE
    return Work(
        lambda threads: own.prepare(task, threads, setting.cancel),
        len(task.sizes) if is_average else task.num_visits,
        0.0 if is_average else tasks.operations(task, model),
        task,
        has_threads=not is_average,
    )


def _tutorial(setting: Setting) -> Work:
    task = Task(TRAIN, "softmax-regression", tasks.natural_sizes(10), epochs=5)
    work = _of_task(task, setting)
    return replace(work, own=lambda threads: own.prepare_round(task, threads, setting.cancel))


def _training(model: str, batch_size: int) -> Job:
    def make(setting: Setting) -> Work:
        sizes = _cohort(setting, _CLIENT_EXAMPLES)
        epochs = 1 if setting.is_quick else _TRAINED[model]
        return _of_task(Task(TRAIN, model, sizes, batch_size, epochs), setting)

    title = f"local training of {model}, batches of {batch_size}"
    return Job(f"{model}-{batch_size}", title, "examples", make)


def _deep_training(model: str) -> Job:
    def make(setting: Setting) -> Work:
        sizes = (4,) * 2 if setting.is_quick else _cohort(setting, _DEEP_EXAMPLES)
        return _of_task(Task(TRAIN, model, sizes, data=tasks.SHAPES), setting)

    title = f"local training of {model} on 32 x 32 x 3 pixels, batches of 20"
    return Job(f"{model}-20", title, "examples", make, peers=("torch",))


def _evaluation(model: str) -> Job:
    def make(setting: Setting) -> Work:
        sizes = _cohort(setting, _EVALUATED_EXAMPLES)
        return _of_task(Task(EVALUATE, model, sizes, batch_size=100), setting)

    return Job(f"eval-{model}", f"evaluation of {model}", "examples", make)


def _cohort(setting: Setting, num_examples: int) -> tuple[int, ...]:
    """Clients of equal size, as many as keep all threads busy."""
    num_clients = max(2 if setting.is_quick else _LEAST_CLIENTS, 2 * setting.max_threads)
    return (20 if setting.is_quick else num_examples,) * num_clients


def _averaging(setting: Setting) -> Work:
    return _of_task(Task(AVERAGE, "mlp-2nn", (1,) * (10 if setting.is_quick else 100)), setting)


# ---- Jobs that draw or open data ----


def _drawing(setting: Setting) -> Work:
    num_clients = 5 if setting.is_quick else _WRITERS

    def draw() -> None:
        train, _ = datasets.load(cache_bytes=0)
        for client_id in train.client_ids[:num_clients]:
            train.client(client_id)

    num_examples = sum(tasks.natural_sizes(num_clients))
    return Work(lambda _: draw, num_examples, has_threads=False)


def _opening(setting: Setting) -> Work:
    num_clients = 50 if setting.is_quick else _STORE_CLIENTS
    train, _ = datasets.load(cache_bytes=0)
    writers = [train.client(each) for each in train.client_ids[: 5 if setting.is_quick else 100]]
    path = setting.folder / "store.h5"
    clients = (
        replace(writers[index % len(writers)], client_id=f"s{index:07d}")
        for index in range(num_clients)
    )
    info = store.StoreInfo(num_classes=10, pixel_convention=train.pixel_convention)
    store_writer.create(path, {"train": clients}, info)
    return Work(lambda _: lambda: datasets.load(str(path)), num_clients, has_threads=False)


# ---- Jobs of FLUTE's public table ----

_REAL = {"flute-lr-mnist": flute.LR, "flute-cnn-emnist-62": flute.CNN}


def _published(name: str, job: flute.Published, title: str) -> list[Job]:
    def make_from(read: Callable[[flute.Published], flute.Data]) -> Callable[[Setting], Work]:
        def make(setting: Setting) -> Work:
            smaller = replace(job, num_rounds=1, num_test=1000) if setting.is_quick else job
            data = read(smaller)
            return Work(
                lambda threads: flute.prepare(smaller, data, threads, setting.cancel),
                flute.num_visits(smaller, data),
            )

        return make

    on_synthetic = f"{title}; on synthetic-digits of the same sizes and steps"
    on_real = f"{title}; on {job.dataset}"
    return [
        Job(name, on_synthetic, "examples", make_from(flute.synthetic_data), job.seconds),
        Job(f"{name}-{job.dataset}", on_real, "examples", make_from(flute.real_data), job.seconds),
    ]


def _store_of(name: str) -> Path:
    return data_folder.store_path(data_folder.find_data_folder(), name)
