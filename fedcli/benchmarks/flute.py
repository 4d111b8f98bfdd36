"""The jobs of FLUTE's public table, which compares it with Flower and FedML.

https://github.com/microsoft/msrflute, README, "Benchmarking". The work here is the same; the
machines and the data differ. "LR on MNIST": 1,000 clients, 10 per round, batches of 10, SGD with
learning rate 0.03, 1 local epoch, 100 rounds, a test every 20 rounds. "CNN on federated EMNIST":
3,400 clients, 10 per round, batches of 20, SGD with learning rate 0.1, 1 local epoch, 1,500 rounds
(here: the time of one round without tests).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fedcli import datasets, learning, models
from fedcli.benchmarks import tasks
from fedcli.core.native import CancelFlag
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.federation.samplers import Uniform
from fedcli.learning import optimizers
from fedcli.learning.engines.threads import ThreadEngine

_COHORT_SIZE = 10
_SEED = 0


@dataclass(frozen=True)
class Published:
    """One of the table's jobs.

    Attributes:
        model: The registry name of its model.
        num_classes: Number of classes.
        num_clients: Clients with training examples.
        num_train: Number of training examples of all clients.
        num_test: Number of test examples of all clients.
        batch_size: Number of examples in a batch, also in tests.
        client_lr: Learning rate of the clients' SGD.
        num_rounds: Number of rounds that are run here.
        test_every: Rounds from one test to the next; 0: no tests.
        dataset: The name of the real dataset in fedcli.
        partition: The partition of the real dataset here.
        seconds: Published seconds for this number of rounds, by program and hardware.
    """

    model: str
    num_classes: int
    num_clients: int
    num_train: int
    num_test: int
    batch_size: int
    client_lr: float
    num_rounds: int
    test_every: int
    dataset: str
    partition: str
    seconds: Mapping[str, float]


# Numbers of examples in FedML's data for these tasks, which FLUTE uses: MNIST in LEAF's
# form (69,035 in all, Li et al. 2020, arXiv 1812.06127), federated EMNIST with 62 classes.
LR = Published(
    model="softmax-regression",
    num_classes=10,
    num_clients=1000,
    num_train=61_664,
    num_test=7_371,
    batch_size=10,
    client_lr=0.03,
    num_rounds=100,
    test_every=20,
    dataset="mnist",
    partition="classes-per-client",
    seconds=MappingProxyType({"Flower 1.0.0, CPU": 1814.0, "FLUTE, CPU": 200.0}),
)
CNN = Published(
    model="cnn-reddi",
    num_classes=62,
    num_clients=3400,
    num_train=671_585,
    num_test=77_483,
    batch_size=20,
    client_lr=0.1,
    num_rounds=1,
    test_every=0,
    dataset="emnist-62",
    partition="natural",
    # 5:49:52 and 0:08:22 for 1,500 rounds
    seconds=MappingProxyType({"FedML 0.7.303, GPUs": 20_992 / 1500, "FLUTE, GPUs": 502 / 1500}),
)


@dataclass(frozen=True)
class Data:
    """The data of a job.

    Attributes:
        clients: The training examples of the clients in its cohorts, by index in the population.
        tested: The test examples of all clients, if the job has tests.
        population: Number of clients.
    """

    clients: Mapping[int, ClientDataset]
    tested: Sequence[ClientDataset]
    population: int


def synthetic_data(job: Published) -> Data:
    """Returns clients of synthetic-digits.

    All have the same size; in total there are as many examples as in the real dataset.
    """
    sizes = tasks.even_sizes(job.num_train, job.num_clients)
    wanted = _members(job, job.num_clients)
    drawn = tasks.cut_clients(tuple(sizes[index] for index in wanted))
    test_sizes = tasks.even_sizes(job.num_test, job.num_clients) if job.test_every else ()
    clients = dict(zip(wanted, drawn, strict=True))
    return Data(clients, tuple(tasks.cut_clients(test_sizes, "test")), job.num_clients)


def real_data(job: Published) -> Data:
    """Returns the clients of the real dataset.

    Raises:
        DataError: It has not been downloaded. The message says how to do so.
    """
    is_partitioned = job.partition != "natural"
    train, test = datasets.load(
        job.dataset,
        partition=job.partition,
        partition_options={"clients": job.num_clients} if is_partitioned else {},
        num_classes=job.num_classes,
    )
    ids = train.client_ids
    tested: Sequence[ClientDataset] = ()
    if job.test_every and test is not None:
        tested = tuple(test.client(each) for each in test.client_ids)
    clients = {index: train.client(ids[index]) for index in _members(job, len(ids))}
    return Data(clients, tested, len(ids))


def num_visits(job: Published, data: Data) -> int:
    """Returns the number of training examples that all rounds process."""
    rounds = range(job.num_rounds)
    sampler = _sampler(data.population)
    return sum(len(data.clients[index]) for r in rounds for index in sampler.indices(r))


def prepare(
    job: Published, data: Data, num_threads: int, cancel: CancelFlag
) -> Callable[[], float]:
    """Returns a function that trains from the start and returns the last test accuracy, or 0."""
    model = models.build(job.model, num_classes=job.num_classes)
    engine = ThreadEngine(num_threads)
    training = learning.build_weighted_fed_avg(model, optimizers.sgd(job.client_lr), engine=engine)
    evaluation = learning.build_fed_eval(model, engine=engine)
    sampler = _sampler(data.population)
    tested = tuple(each.preprocess(1, 1, job.batch_size) for each in data.tested)

    def run() -> float:
        state, accuracy = training.initialize(), 0.0
        for round_num in range(job.num_rounds):
            cohort = [
                data.clients[index].preprocess(1, "full", job.batch_size, _SEED)
                for index in sampler.indices(round_num)
            ]
            state = training.next(state, cohort, cancel=cancel).state
            if tested and (round_num + 1) % job.test_every == 0:
                weights = training.get_model_weights(state)
                eval_state = evaluation.set_model_weights(evaluation.initialize(), weights)
                metrics = evaluation.next(eval_state, tested, cancel=cancel).metrics
                current = metrics["client_work"]["eval"]["current_round_metrics"]
                accuracy = float(current["sparse_categorical_accuracy"])
        return accuracy

    return run


def _sampler(population: int) -> Uniform:
    return Uniform(population, min(_COHORT_SIZE, population), _SEED)


def _members(job: Published, population: int) -> list[int]:
    """The clients that are in at least one cohort."""
    sampler = _sampler(population)
    return sorted({each for r in range(job.num_rounds) for each in sampler.indices(r)})
