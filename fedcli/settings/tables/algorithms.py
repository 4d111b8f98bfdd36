"""The tables of algorithms and aggregators, and the client weightings that each allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.settings.options import (
    LEAST_POSITIVE,
    MAX_FLOAT,
    Entry,
    Option,
    Value,
    check_number,
    table,
)


@dataclass(frozen=True)
class AlgorithmEntry(Entry):
    """A row of `ALGORITHMS`.

    Its `code` makes the `ClientWork`. It is called with the client optimizer, if the algorithm has
    local steps, and with the options by name.

    Attributes:
        has_local_steps: Whether clients take local steps with an optimizer.
        server_lr: Default learning rate of the server optimizer.
        server_optimizer: The server optimizer that the algorithm prescribes; None if any may be
            used.
        server_options: Default options of that optimizer.
        weightings: The allowed client weightings, the default first.
        has_own_weights: Whether it evaluates weights other than those of the global model.
        vectors_down: Vectors of the model's size that a client receives, the model included.
        vectors_up: Vectors of the model's size that a client sends, the model delta included.
        numbers_up: Single numbers that a client sends, its weight included.
        sends_optimizer_state: Whether the server also sends the state of the base optimizer.
        needs_exact_delta: Whether the server's own state is computed from uncompressed deltas,
            which are then sent in addition to the compressed ones.
        has_own_models: Whether each client keeps its own model and nothing is shared.
        pools_clients: Whether it trains on the examples of a cohort as if one client held them.
        sends_deltas_alone: Whether clients send nothing but deltas, and the server uses only their
            mean.
        builder: The function of `fedcli.learning` that makes its process.
    """

    has_local_steps: bool = True
    has_own_models: bool = False
    pools_clients: bool = False
    sends_deltas_alone: bool = False
    server_lr: float = 1.0
    server_optimizer: str | None = None
    server_options: Mapping[str, Value] = field(default_factory=dict)
    weightings: tuple[str, ...] = ("num-examples", "uniform")
    has_own_weights: bool = False
    vectors_down: int = field(default=1, kw_only=True)
    vectors_up: int = field(default=1, kw_only=True)
    numbers_up: int = field(default=1, kw_only=True)
    sends_optimizer_state: bool = field(default=False, kw_only=True)
    needs_exact_delta: bool = field(default=False, kw_only=True)
    builder: str = field(default="", kw_only=True)


def check_weighting(entry: AlgorithmEntry, weighting: str, label: str = "client weighting") -> None:
    """Refuses a client weighting that an algorithm does not allow.

    Raises:
        ConfigError: It is not one of `entry.weightings`; the message starts with `label`.
    """
    if weighting not in entry.weightings:
        raise ConfigError(
            f"{label} {weighting} with {entry.name}: choose {' or '.join(entry.weightings)}"
        )


def check_ema_decay(value: object, label: str = "server EMA decay") -> float:
    """Returns the decay of the server's running mean of weights as a float.

    Raises:
        ConfigError: It is not between 0 and 1; the message starts with `label`.
    """
    decay = check_number(label, value, 0.0, 1.0)
    if not 0.0 < decay < 1.0:
        raise ConfigError(f"{label} {decay}: choose a number between 0 and 1, for example 0.99")
    return decay


_FEDOPT = "Reddi et al. 2021, arXiv 2003.00295"
# epsilon is the paper's tau, at the value that the paper recommends to start from.
_FEDOPT_OPTIONS: Mapping[str, Value] = {"epsilon": 1e-3, "style": "reddi"}

ALGORITHMS = table(
    AlgorithmEntry(
        "centralized",
        "Baseline without federation: all examples of the cohort are pooled in one client, which "
        "trains for as many epochs as each client would. To pool all data, give --clients all "
        "and --shuffle-buffer full.",
        "the usual training by minibatch SGD",
        pools_clients=True,
        rates="as those of fedavg",
        example=(
            "fedcli train --algorithm centralized --clients all --shuffle-buffer full --rounds 20"
        ),
        builder="build_centralized",
        code="fedcli.learning.algorithms.centralized:PooledSteps",
    ),
    AlgorithmEntry(
        "fedavg",
        "Federated averaging: clients train locally, and the server adds the weighted mean of "
        "their model deltas.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF learning/algorithms/fed_avg.py",
        rates="client 0.02 (softmax regression, the TFF tutorial) to 0.2 (networks), server 1",
        example="fedcli train --algorithm fedavg --sampling uniform --clients 10 --client-lr 0.1",
        sends_deltas_alone=True,
        builder="build_weighted_fed_avg",
        code="fedcli.learning.algorithms.fedavg:LocalSteps",
    ),
    AlgorithmEntry(
        "fedprox",
        "Federated averaging with a proximal term in the clients' loss, which pulls local steps "
        "towards the global model.",
        "Li et al. 2020, arXiv 1812.06127; default strength: pfl-research's benchmarks",
        (
            Option(
                "proximal_strength",
                0.01,
                "mu, the weight of half the squared distance to the global model; 0: fedavg.",
                0.0,
                MAX_FLOAT,
            ),
        ),
        rates="as those of fedavg; the paper tries proximal_strength 0.001, 0.01, 0.1 and 1",
        example="fedcli train --algorithm fedprox --algorithm-option proximal_strength=0.1",
        sends_deltas_alone=True,
        builder="build_fed_prox",
        code="fedcli.learning.algorithms.fedprox:proximal_steps",
    ),
    AlgorithmEntry(
        "fedsgd",
        "Federated SGD: each client sends the gradient of its data at the global model. The "
        "server's learning rate is 0.1 by default.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF learning/algorithms/fed_sgd.py",
        has_local_steps=False,
        server_lr=0.1,
        rates="server 0.1 to 1; clients take no steps",
        example="fedcli train --algorithm fedsgd --server-lr 0.5 --rounds 50",
        sends_deltas_alone=True,
        builder="build_fed_sgd",
        code="fedcli.learning.algorithms.fedsgd:Gradients",
    ),
    AlgorithmEntry(
        "local-only",
        "Baseline without sharing: every client trains its own model, keeps it from round to "
        "round, and is evaluated with it.",
        "the usual baseline of personalization; Li et al. 2021 (Ditto), arXiv 2012.04221",
        has_own_models=True,
        server_optimizer="sgd",
        rates="as those of fedavg",
        example="fedcli train --algorithm local-only --clients all",
        builder="build_local_only",
        code="fedcli.learning.algorithms.local_only:OwnSteps",
    ),
    AlgorithmEntry(
        "mime-lite",
        "Local steps use the server's optimizer state, which the server updates with full "
        "gradients. The client optimizer is the base optimizer.",
        "Karimireddy et al. 2021, arXiv 2008.03606; TFF learning/algorithms/mime.py",
        rates="client 0.01 to 0.1, server 1; momentum is --client-option momentum=0.9",
        example="fedcli train --algorithm mime-lite --client-lr 0.05 --client-option momentum=0.9",
        builder="build_mime_lite_with_optimizer",
        vectors_up=2,
        sends_optimizer_state=True,
        code="fedcli.learning.algorithms.mime_lite:MimeLiteWork",
    ),
    AlgorithmEntry(
        "mime",
        "Mime Lite whose local gradients are corrected towards the cohort's mean gradient. It "
        "takes two passes over the data and two gradients for each step.",
        "Karimireddy et al. 2021, arXiv 2008.03606; FedJAX algorithms/mime.py",
        rates="client 0.01 to 0.1, server 1; momentum is --client-option momentum=0.9",
        example="fedcli train --algorithm mime --client-lr 0.05 --client-option momentum=0.9",
        builder="build_mime",
        vectors_down=2,
        vectors_up=2,
        sends_optimizer_state=True,
        code="fedcli.learning.algorithms.mime:MimeWork",
    ),
    AlgorithmEntry(
        "scaffold",
        "Local steps are corrected by control variates, which are kept for every client that "
        "took part. Plain SGD only; all clients have the same weight.",
        "Karimireddy et al. 2020, arXiv 1910.06378, option II",
        weightings=("uniform",),
        rates="client 0.01 to 0.1, server 1; it may diverge at client rates that suit fedavg",
        example=(
            "fedcli train --algorithm scaffold --client-weighting uniform --sampling "
            "uniform --clients 10 --client-lr 0.05"
        ),
        builder="build_scaffold",
        vectors_down=2,
        vectors_up=2,
        code="fedcli.learning.algorithms.scaffold:ScaffoldWork",
    ),
    AlgorithmEntry(
        "fednova",
        "Federated averaging that divides each delta by the number of local steps behind it. "
        "SGD only, with or without momentum.",
        "Wang et al. 2020, arXiv 2007.07481",
        rates="as those of fedavg",
        example="fedcli train --algorithm fednova --client-lr 0.05",
        builder="build_fed_nova",
        numbers_up=2,
        code="fedcli.learning.algorithms.fednova:FedNovaWork",
    ),
    AlgorithmEntry(
        "feddyn",
        "Each client's loss gets a proximal term and a linear term, which sums up its earlier "
        "updates. The mean of the clients' models is evaluated. All clients have the same "
        "weight.",
        "Acar et al. 2021, arXiv 2111.04263; default alpha: the authors' code",
        (
            Option(
                "alpha",
                0.01,
                "Strength of the proximal term; above 0.",
                1e-9,
                MAX_FLOAT,
            ),
        ),
        weightings=("uniform",),
        has_own_weights=True,
        rates="client 0.1 with alpha 0.1, 0.01 or 0.001, as the paper tries; server 1",
        example=(
            "fedcli train --algorithm feddyn --algorithm-option alpha=0.1 "
            "--client-weighting uniform --client-lr 0.1"
        ),
        builder="build_fed_dyn",
        needs_exact_delta=True,
        code="fedcli.learning.algorithms.feddyn:FedDynWork",
    ),
    AlgorithmEntry(
        "fedavgm",
        "Federated averaging with server SGD and momentum 0.9.",
        "Hsu et al. 2019, arXiv 1909.06335",
        server_optimizer="sgd",
        server_options={"momentum": 0.9},
        rates="client 0.03, server 0.3: Reddi et al. 2021 for the EMNIST CNN",
        example="fedcli train --algorithm fedavgm --server-lr 0.3 --client-lr 0.03",
        sends_deltas_alone=True,
        builder="build_fed_avg_m",
        code="fedcli.learning.algorithms.fedopt:LocalSteps",
    ),
    AlgorithmEntry(
        "fedadagrad",
        "Federated averaging with server Adagrad (style=reddi). Defaults: server learning rate "
        "0.1, epsilon 0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.1,
        server_optimizer="adagrad",
        server_options={"initial_preconditioner_value": 0.0, **_FEDOPT_OPTIONS},
        rates="client 0.03, server 0.1: Reddi et al. 2021 for the EMNIST CNN",
        example="fedcli train --algorithm fedadagrad --client-lr 0.03 --server-lr 0.1",
        sends_deltas_alone=True,
        builder="build_fed_adagrad",
        code="fedcli.learning.algorithms.fedopt:LocalSteps",
    ),
    AlgorithmEntry(
        "fedadam",
        "Federated averaging with server Adam (style=reddi). Defaults: server learning rate "
        "0.1, beta_2 0.99, epsilon 0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.1,
        server_optimizer="adam",
        server_options={"beta_2": 0.99, **_FEDOPT_OPTIONS},
        rates="client 0.03, server 0.003 (Reddi et al. 2021 for the EMNIST CNN) to 0.1",
        example=(
            "fedcli train --algorithm fedadam --client-lr 0.03 --server-lr 0.01 "
            "--server-option epsilon=0.001"
        ),
        sends_deltas_alone=True,
        builder="build_fed_adam",
        code="fedcli.learning.algorithms.fedopt:LocalSteps",
    ),
    AlgorithmEntry(
        "fedyogi",
        "Federated averaging with server Yogi (style=reddi). Defaults: server learning rate "
        "0.01, beta_2 0.99, epsilon 0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.01,
        server_optimizer="yogi",
        server_options={"beta_2": 0.99, "initial_preconditioner_value": 0.0, **_FEDOPT_OPTIONS},
        rates="client 0.03, server 0.003 (Reddi et al. 2021 for the EMNIST CNN) to 0.1",
        example=(
            "fedcli train --algorithm fedyogi --client-lr 0.03 --server-lr 0.01 "
            "--server-option epsilon=0.001"
        ),
        sends_deltas_alone=True,
        builder="build_fed_yogi",
        code="fedcli.learning.algorithms.fedopt:LocalSteps",
    ),
    family="algorithm",
)

_MOST_CLIENTS = 1e9

_NUM_BYZANTINE = Option(
    "num_byzantine",
    0.1,
    "Deltas that may be wrong (f): a whole number, or a share of the n deltas, below 0.5.",
    0.0,
    _MOST_CLIENTS,
)


def _check_counts(name: str) -> Callable[[Mapping[str, Value]], str | None]:
    """Returns the check that an option is a whole number or a share below 0.5."""

    def check(options: Mapping[str, Value]) -> str | None:
        value = options[name]
        assert isinstance(value, float)
        if value < 0.5 or value.is_integer():
            return None
        return f"{name} {value:g}: choose a share below 0.5 or a whole number"

    return check


def _robust(
    name: str,
    doc: str,
    source: str,
    options: tuple[Option, ...] = (),
    *,
    requirement: str,
    cost: str,
    code: str,
) -> Entry:
    """Returns the row of a rule with an option for the number of wrong deltas."""
    return Entry(
        name,
        doc,
        source,
        (_NUM_BYZANTINE, *options),
        _check_counts("num_byzantine"),
        requirement=requirement,
        cost=cost,
        example=f"fedcli train --aggregator {name} --aggregator-option num_byzantine=1",
        code=code,
    )


# The `code` of a row makes the aggregator. It is called with the options by name.
AGGREGATORS = table(
    Entry(
        "mean",
        "The weighted mean of the model deltas, summed in float64 in a fixed order.",
        "TFF aggregators/mean.py",
        example="fedcli train --aggregator mean",
        requirement="nothing; no wrong delta is tolerated",
        cost="hardly anything: the engine adds deltas as they come",
        code="fedcli.learning.aggregators.mean:Mean",
    ),
    Entry(
        "tff-robust",
        "Replaces a delta that has an entry above a bound by zeros, clips the norms of the "
        "others to another bound, and takes the mean. Both bounds follow quantiles of the "
        "clients' values.",
        "TFF learning/model_update_aggregator.py, robust_aggregator; arXiv 1905.03871",
        example="fedcli train --aggregator tff-robust --sampling uniform --clients 20",
        requirement="nothing",
        cost="one pass over each delta, which is measured and clipped as it comes",
        code="fedcli.learning.aggregators.bounded:AdaptiveRobust",
    ),
    Entry(
        "norm-bound",
        "Scales deltas that are longer than a fixed norm down to it, and takes the mean.",
        "Sun et al. 2019, arXiv 1911.07963; TFF aggregators/robust.py, clipping_factory",
        (Option("max_norm", 1.0, "L2 norm over all tensors.", LEAST_POSITIVE, MAX_FLOAT),),
        example="fedcli train --aggregator norm-bound --aggregator-option max_norm=0.5",
        requirement="a norm that fits the deltas",
        cost="one pass over each delta, which is measured and clipped as it comes",
        code="fedcli.learning.aggregators.bounded:NormBound",
    ),
    Entry(
        "median",
        "The median of all deltas, coordinate by coordinate. All clients with examples and a "
        "finite delta have the same weight.",
        "Yin et al. 2018, arXiv 1803.01498",
        requirement="fewer than half of the deltas wrong",
        cost="one pass over the deltas, n log n values sorted for each parameter",
        example="fedcli train --aggregator median --sampling uniform --clients 20",
        code="fedcli.learning.aggregators.order_statistics:Median",
    ),
    Entry(
        "trimmed-mean",
        "The mean of each coordinate without its smallest and largest values; all clients count "
        "the same.",
        "Yin et al. 2018, arXiv 1803.01498; default share: Flower",
        (
            Option(
                "trim",
                0.2,
                "Values dropped at each end: a whole number, or a share of the deltas, below 0.5.",
                0.0,
                _MOST_CLIENTS,
            ),
        ),
        _check_counts("trim"),
        requirement="more than 2 * trim deltas, at most trim of them wrong",
        cost="one pass over the deltas, n log n values sorted for each parameter",
        example="fedcli train --aggregator trimmed-mean --aggregator-option trim=0.1",
        code="fedcli.learning.aggregators.order_statistics:trimmed_mean",
    ),
    _robust(
        "krum",
        "The one delta that is closest to its n - f - 2 nearest others.",
        "Blanchard et al. 2017, arXiv 1703.02757",
        requirement="n >= 2 f + 3 deltas, f of them wrong",
        cost="n^2 distances from two passes over the deltas",
        code="fedcli.learning.aggregators.selections:Krum",
    ),
    _robust(
        "multi-krum",
        "The mean of the deltas with the lowest scores by krum's rule.",
        "Blanchard et al. 2017, arXiv 1703.02757",
        (
            Option(
                "select", 0, "Deltas to average, at most n - f; 0: n - f.", 0, int(_MOST_CLIENTS)
            ),
            Option("weighted", False, "Weigh the averaged deltas by --client-weighting."),
        ),
        requirement="n >= 2 f + 3 deltas, f of them wrong",
        cost="n^2 distances from two passes over the deltas",
        code="fedcli.learning.aggregators.selections:MultiKrum",
    ),
    _robust(
        "bulyan",
        "Repeated krum chooses n - 2 f deltas; in each coordinate, the n - 4 f values nearest to "
        "their median are averaged.",
        "El Mhamdi et al. 2018, arXiv 1802.07927",
        requirement="n >= 4 f + 3 deltas, f of them wrong",
        cost="n^2 distances, n^3 comparisons, two passes over the deltas",
        code="fedcli.learning.aggregators.selections:Bulyan",
    ),
    Entry(
        "geometric-median",
        "The point with the smallest sum of distances to the deltas, by smoothed Weiszfeld steps; "
        "also called RFA.",
        "Pillutla et al. 2022, arXiv 1912.13445; starts at the median, the paper at the mean",
        (
            Option("iterations", 4, "Steps.", 1, 10_000),
            Option(
                "smoothing",
                1e-6,
                "The lower bound of distances (nu); shorter distances are replaced by it.",
                LEAST_POSITIVE,
                MAX_FLOAT,
            ),
            Option("weighted", False, "Weigh the deltas by --client-weighting."),
            Option(
                "start",
                "median",
                "The first point. The mean is far from correct deltas if wrong ones are far away.",
                choices=("median", "mean"),
            ),
        ),
        requirement="fewer than half of the deltas wrong",
        cost="one pass over the deltas for each step, and one more",
        aliases=("rfa",),
        example="fedcli train --aggregator geometric-median --sampling uniform --clients 20",
        code="fedcli.learning.aggregators.centers:GeometricMedian",
    ),
    Entry(
        "centered-clipping",
        "Last round's result plus the mean of the differences from it, each clipped to a norm.",
        "Karimireddy et al. 2021, arXiv 2012.10333",
        (
            Option("radius", 10.0, "The norm (tau); the authors: 10.", LEAST_POSITIVE, MAX_FLOAT),
            Option("iterations", 1, "Steps in a round (L); the authors' code: 3.", 1, 10_000),
        ),
        requirement="fewer than half of the deltas wrong",
        cost="one pass over the deltas for each step, and one more; one vector is kept",
        example="fedcli train --aggregator centered-clipping --aggregator-option radius=1",
        code="fedcli.learning.aggregators.centers:CenteredClipping",
    ),
    _robust(
        "meamed",
        "The mean of the n - f values of each coordinate that are nearest to its median.",
        "Xie et al. 2018, arXiv 1802.10116",
        requirement="n > 2 f deltas, f of them wrong",
        cost="one pass over the deltas, n log n values sorted for each parameter",
        code="fedcli.learning.aggregators.order_statistics:MeanAroundMedian",
    ),
    _robust(
        "mda",
        "The mean of the n - f deltas with the smallest diameter (largest distance between two).",
        "Rousseeuw 1985; El Mhamdi et al. 2018, arXiv 1802.07927",
        requirement="n > 2 f deltas, f of them wrong, and at most 1,000,000 subsets of n - f",
        cost="n^2 distances from two passes over the deltas, and the subsets",
        code="fedcli.learning.aggregators.selections:MinimumDiameter",
    ),
    _robust(
        "dnc",
        "The mean without the f deltas that deviate most along the direction of largest variance.",
        "Shejwalkar and Houmansadr, NDSS 2021",
        (
            Option(
                "iterations",
                1,
                "Number of passes; a delta is dropped if any of them drops it.",
                1,
                1000,
            ),
            Option(
                "coordinates", 10_000, "Largest number of random coordinates of a pass.", 1, 10**7
            ),
        ),
        requirement="n > 2 f deltas, f of them wrong",
        cost="one pass over the deltas; n^2 products of the drawn coordinates",
        code="fedcli.learning.aggregators.dnc:DivideAndConquer",
    ),
    Entry(
        "sign-majority",
        "The sign of most deltas in each coordinate, 0 on a tie; --server-lr sets the step.",
        "Bernstein et al. 2019, arXiv 1810.05291",
        requirement="fewer than half of the deltas wrong",
        cost="one pass over the deltas",
        rates="server 0.0001 to 0.01",
        example="fedcli train --aggregator sign-majority --server-lr 0.001",
        code="fedcli.learning.aggregators.order_statistics:SignMajority",
    ),
    Entry(
        "fltrust",
        "The server also trains, on a root set. Each client's delta is scaled to the norm of the "
        "server's delta, and weighted by its cosine with the server's delta.",
        "Cao et al. 2021, arXiv 2012.13995",
        (
            Option(
                "root_examples",
                100,
                "Examples of the server's root set, drawn from the train split.",
                1,
                10**7,
            ),
        ),
        requirement="clean root examples; a round without a trusted delta is skipped",
        cost="two passes over the deltas, and the training of one more client",
        example="fedcli train --aggregator fltrust --aggregator-option root_examples=100",
        code="fedcli.learning.aggregators.fltrust:FLTrust",
    ),
    Entry(
        "foolsgold",
        "Clients whose sums of past deltas are alike get smaller weights. This includes honest "
        "clients with similar data.",
        "Fung et al. 2020, arXiv 1808.04866",
        requirement="n >= 2 deltas",
        cost="a vector kept for each client that ever took part; n^2 products",
        example="fedcli train --aggregator foolsgold --sampling uniform --clients 20",
        code="fedcli.learning.aggregators.foolsgold:FoolsGold",
    ),
    family="aggregator",
)

# The `code` of a row makes the pre-aggregator. It is called with the options by name.
PRE_AGGREGATORS = table(
    Entry(
        "bucketing",
        "Each group of a few deltas becomes its mean; the groups are drawn anew in each round.",
        "Karimireddy et al. 2022, arXiv 2006.09365",
        (Option("size", 2, "Deltas of a bucket.", 1, int(_MOST_CLIENTS)),),
        requirement="as for the aggregator with n / size deltas, of which up to f are wrong",
        cost="one pass over the deltas; a file of n / size deltas",
        example="fedcli train --pre-aggregator bucketing --aggregator median",
        code="fedcli.learning.aggregators.pre_aggregation:Bucketing",
    ),
    Entry(
        "nnm",
        "Each delta becomes the mean of the n - f deltas nearest to it (nearest-neighbour mixing).",
        "Allouah et al. 2023, arXiv 2302.01772",
        (_NUM_BYZANTINE,),
        _check_counts("num_byzantine"),
        requirement="n > 2 f deltas, f of them wrong",
        cost="n^2 distances and n^2 sums; a file of n deltas",
        example="fedcli train --pre-aggregator nnm --aggregator trimmed-mean",
        code="fedcli.learning.aggregators.pre_aggregation:NearestNeighbourMixing",
    ),
    Entry(
        "arc",
        "The largest floor(2 f (n - f) / n) deltas are clipped to the norm of the next largest "
        "delta (adaptive robust clipping).",
        "Allouah et al. 2025, arXiv 2405.14432",
        (_NUM_BYZANTINE,),
        _check_counts("num_byzantine"),
        requirement="n > 2 f deltas, f of them wrong",
        cost="two passes over the deltas; a file of n deltas",
        example="fedcli train --pre-aggregator arc --aggregator geometric-median",
        code="fedcli.learning.aggregators.pre_aggregation:AdaptiveClipping",
    ),
)
