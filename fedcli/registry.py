"""Everything a user can choose by name, with its options: validates configs, feeds `fedcli info`.

Imports no NumPy, so that a wrong option is refused before anything heavy is loaded. The code behind
each name stands in one dict of its own module (`optimizers`, `models`, `algorithms`,
`aggregators`, `datasets`), under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from fedcli.errors import ConfigError
from fedcli.options import Entry, Option, Value, check_number, did_you_mean

EntryType = TypeVar("EntryType", bound=Entry)

# The core computes in float32: no rate above its largest number, nothing positive that it takes
# for 0.
_MAX_FLOAT = 3e38
LEARNING_RATE_RANGE = (0.0, _MAX_FLOAT)
LEAST_POSITIVE = 1.2e-38

# The schedule that is used unless another is named.
CONSTANT = "constant"
# As decay_rounds of a schedule: as many as the run has.
RUN_S_ROUNDS = 0


def check_learning_rate(value: object, label: str = "learning rate") -> float:
    """Returns a learning rate of any optimizer as a float.

    Raises:
        ConfigError: It is negative, NaN, infinite or not a number; the message starts with `label`.
    """
    return check_number(label, value, *LEARNING_RATE_RANGE)


def check_clip_norm(value: object, label: str = "clip norm") -> float:
    """Returns the norm that gradients are clipped to as a float.

    Raises:
        ConfigError: It is not positive, NaN, infinite or not a number; the message starts with
            `label`.
    """
    return check_number(label, value, LEAST_POSITIVE, _MAX_FLOAT)


def check_ema_decay(value: object, label: str = "server EMA decay") -> float:
    """Returns the share of the server's running mean of weights that a round keeps, as a float.

    Raises:
        ConfigError: It is not between 0 and 1; the message starts with `label`.
    """
    decay = check_number(label, value, 0.0, 1.0)
    if not 0.0 < decay < 1.0:
        raise ConfigError(f"{label} {decay}: choose a number between 0 and 1, for example 0.99")
    return decay


def check_weighting(entry: AlgorithmEntry, weighting: str, label: str = "client weighting") -> None:
    """Refuses a client weighting that an algorithm has no sense for.

    Raises:
        ConfigError: It is none of the algorithm's; the message starts with `label`.
    """
    if weighting not in entry.weightings:
        raise ConfigError(
            f"{label} {weighting} with {entry.name}: choose {' or '.join(entry.weightings)}"
        )


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """A row of `OPTIMIZERS`.

    Attributes:
        is_elementwise: Whether it moves each weight by what it keeps of that weight alone.
    """

    is_elementwise: bool = True


@dataclass(frozen=True)
class AlgorithmEntry(Entry):
    """A row of `ALGORITHMS`.

    Attributes:
        has_local_steps: Whether clients have an optimizer of their own.
        server_lr: Learning rate of the server optimizer unless another is given.
        server_optimizer: The server optimizer that makes the algorithm; None: any.
        server_options: Its options unless others are given.
        weightings: How clients may be weighted, the default first.
        has_own_weights: Whether it evaluates other weights than the global model's.
        pools_clients: Whether a cohort's examples are trained on as one client's.
    """

    has_local_steps: bool = True
    pools_clients: bool = False
    server_lr: float = 1.0
    server_optimizer: str | None = None
    server_options: Mapping[str, Value] = field(default_factory=dict)
    weightings: tuple[str, ...] = ("num-examples", "uniform")
    has_own_weights: bool = False


def _table(*entries: EntryType) -> dict[str, EntryType]:
    return {entry.name: entry for entry in entries}


def _check_sgd(options: Mapping[str, Value]) -> str | None:
    momentum = options["momentum"]
    assert isinstance(momentum, float)
    if options["nesterov"] and momentum < LEAST_POSITIVE:
        return "nesterov = true needs a momentum above 0; set momentum, for example momentum=0.9"
    return None


def _check_dropout(options: Mapping[str, Value]) -> str | None:
    rates = options["dropout"]
    assert isinstance(rates, list)
    if len(rates) > 2 or max(rates) >= 1.0:
        return f"dropout = {rates}: give one or two rates from 0 to below 1"
    return None


def _check_step(options: Mapping[str, Value]) -> str | None:
    boundaries, factors = options["boundaries"], options["factors"]
    assert isinstance(boundaries, list)
    assert isinstance(factors, list)
    if any(each != int(each) for each in boundaries):
        return f"boundaries = {boundaries} are not whole numbers of rounds"
    if any(left >= right for left, right in pairwise(boundaries)):
        return f"boundaries = {boundaries} do not ascend; give each once, the first round first"
    if len(boundaries) != len(factors):
        return (
            f"boundaries = {boundaries} but factors = {factors}: give one factor for each "
            "boundary, the share from there on"
        )
    return None


_BETA_1 = Option(
    "beta_1", 0.9, "Share of the running mean of gradients that a step keeps.", 0.0, 1.0
)
_BETA_2 = Option(
    "beta_2", 0.999, "Share of the running mean of squared gradients that is kept.", 0.0, 1.0
)
_STYLE = Option(
    "style",
    "tff",
    "tff: TFF's form; reddi: Algorithm 2 of Reddi et al. 2021, arXiv 2003.00295, w moves by "
    "learning_rate * m / (sqrt(v) + epsilon) without bias correction.",
    choices=("tff", "reddi"),
)


def _epsilon(default: float) -> Option:
    doc = "Added to the root of the squared gradients; larger is closer to SGD."
    return Option("epsilon", default, doc, 0.0, _MAX_FLOAT)


def _initial_preconditioner(default: float) -> Option:
    doc = "What the sum or mean of squared gradients starts from."
    return Option("initial_preconditioner_value", default, doc, 0.0, _MAX_FLOAT)


MODELS = _table(
    Entry(
        "softmax-regression",
        "One dense layer from pixels to classes, from zeros; num_inputs x num_classes + "
        "num_classes parameters (7,850 for 28 x 28 pixels and 10 classes).",
        "TFF tutorial, Federated Learning for Image Classification",
    ),
    Entry(
        "mlp-2nn",
        "Two dense layers of 200 with ReLU, then the logits, Glorot uniform from the run's seed; "
        "199,210 parameters for 28 x 28 pixels and 10 classes.",
        "McMahan et al. 2017, arXiv 1602.05629, the 2NN",
    ),
    Entry(
        "cnn-mcmahan",
        "Two padded 5 x 5 convolutions of 32 and 64 channels, each with ReLU and a 2 x 2 max-pool, "
        "512 units with ReLU, then the logits; 1,663,370 parameters for 28 x 28 pixels and 10 "
        "classes.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF simulation/baselines/emnist, cnn",
    ),
    Entry(
        "cnn-reddi",
        "Two 3 x 3 convolutions of 32 and 64 channels with ReLU, a 2 x 2 max-pool, 128 units with "
        "ReLU, then the logits, with dropout before and after the 128; 1,199,882 parameters for 28 "
        "x 28 pixels and 10 classes.",
        "Reddi et al. 2021, arXiv 2003.00295; TFF simulation/baselines/emnist, cnn_dropout",
        (
            Option(
                "dropout",
                [0.25, 0.5],
                "Rates below 1, after the pool and after the 128 units; one sets both, 0: none.",
                0.0,
                1.0,
            ),
        ),
        _check_dropout,
    ),
    Entry(
        "lenet5",
        "A padded 5 x 5 convolution of 6 channels and one of 16 without padding, each with ReLU "
        "and a 2 x 2 max-pool, 120 and 84 units with ReLU, then the logits; 61,706 parameters for "
        "28 x 28 pixels and 10 classes.",
        "LeCun et al. 1998, Proc. IEEE 86(11), in its usual modern form",
    ),
    Entry(
        "leaf-femnist",
        "As cnn-mcmahan with 2048 units; 6,497,162 parameters for 28 x 28 pixels and 10 classes, "
        "6,603,710 for 62.",
        "Caldas et al. 2018 (LEAF), arXiv 1812.01097, models/femnist",
    ),
)


def is_model_file(text: str) -> bool:
    """Tells whether what stands after --model is a file; names hold neither dots nor slashes."""
    return any(each in text for each in "./\\:")


def split_model_file(text: str) -> tuple[str, str | None]:
    """Returns the path in FILE or FILE.py:FUNCTION, and the function's name if one is given."""
    file, colon, function = text.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (text, None)


OPTIMIZERS = _table(
    OptimizerEntry(
        "sgd",
        "Gradient descent, with heavy-ball or Nesterov momentum on request.",
        "TFF learning/optimizers/sgdm.py",
        (
            Option("momentum", 0.0, "Share of the last step that is kept; 0: none.", 0.0, 1.0),
            Option("nesterov", False, "Look ahead along the momentum; needs momentum above 0."),
        ),
        _check_sgd,
    ),
    OptimizerEntry(
        "adam",
        "Running means of gradients and of their squares, corrected for their start from 0.",
        "Kingma and Ba 2015, arXiv 1412.6980; TFF learning/optimizers/adam.py",
        (_BETA_1, _BETA_2, _epsilon(1e-7), _STYLE),
    ),
    OptimizerEntry(
        "adamw",
        "Adam that also shrinks the weights, in proportion to the learning rate.",
        "Loshchilov and Hutter 2019, arXiv 1711.05101; TFF learning/optimizers/adamw.py",
        (
            _BETA_1,
            _BETA_2,
            _epsilon(1e-7),
            Option("weight_decay", 0.004, "Strength of the shrinking; 0: Adam.", 0.0, _MAX_FLOAT),
        ),
    ),
    OptimizerEntry(
        "adagrad",
        "Gradients over the root of the sum of all squares; epsilon stands inside the root "
        "(style reddi: outside, arXiv 2003.00295).",
        "Duchi, Hazan and Singer 2011, JMLR 12; TFF learning/optimizers/adagrad.py",
        (_epsilon(1e-7), _initial_preconditioner(0.1), _STYLE),
    ),
    OptimizerEntry(
        "yogi",
        "Adam whose mean of squares moves by a step's own square, up or down.",
        "Zaheer et al. 2018, NeurIPS; TFF learning/optimizers/yogi.py",
        (_BETA_1, _BETA_2, _epsilon(1e-3), _initial_preconditioner(1e-6), _STYLE),
    ),
    OptimizerEntry(
        "rmsprop",
        "Gradients over the root of the running mean of their squares.",
        "Tieleman and Hinton 2012; TFF learning/optimizers/rmsprop.py",
        (
            Option("decay", 0.9, "Share of the running mean that a step keeps.", 0.0, 1.0),
            _epsilon(1e-7),
        ),
    ),
    OptimizerEntry(
        "adafactor",
        "Gradients over the root of their mean squares, kept as row and column means; steps in "
        "proportion to the weights.",
        "Shazeer and Stern 2018, arXiv 1804.04235; TFF learning/optimizers/adafactor.py",
        (
            Option(
                "beta_2_decay",
                -0.8,
                "Exponent of the step number: how fast squares are forgotten.",
                -10.0,
                -LEAST_POSITIVE,
            ),
            Option("epsilon_1", 1e-30, "Added to squared gradients.", LEAST_POSITIVE, _MAX_FLOAT),
            Option("epsilon_2", 1e-3, "Least size that weights are taken for.", 0.0, _MAX_FLOAT),
            Option(
                "clip_threshold",
                1.0,
                "Root mean square that a tensor's update is held to.",
                LEAST_POSITIVE,
                _MAX_FLOAT,
            ),
            Option("relative_step", True, "Hold the rate to 1 / sqrt(step)."),
        ),
        is_elementwise=False,
    ),
)

_GRF = "google-research/federated, utils/optimizers/optimizer_utils.py"
_MAX_ROUNDS = 2**31 - 1


def _warmup_rounds(default: int) -> Option:
    doc = "Rounds in which the rate first rises to its full value; 1 or 0: none."
    return Option("warmup_rounds", default, doc, 0, _MAX_ROUNDS)


def _decay_rounds(doc: str, minimum: int = 1, default: int = 100) -> Option:
    return Option("decay_rounds", default, doc, minimum, _MAX_ROUNDS)


# Shares of the learning rate by round, r = 0, 1, ...; a warm-up counts before r.
SCHEDULES = _table(
    Entry(
        CONSTANT,
        "The same learning rate in every round.",
        f"{_GRF}, constant",
    ),
    Entry(
        "step",
        "The learning rate times one factor from one boundary to the next.",
        "Keras PiecewiseConstantDecay; He et al. 2016, arXiv 1512.03385",
        (
            Option(
                "boundaries",
                [100.0],
                "Rounds, counted from 0, from which on the next factor holds.",
                1,
                _MAX_ROUNDS,
            ),
            Option(
                "factors",
                [0.1],
                "Share of the learning rate from each boundary on; before the first it is 1.",
                0.0,
                1.0,
            ),
            _warmup_rounds(0),
        ),
        _check_step,
    ),
    Entry(
        "exponential",
        "The learning rate times decay_factor^(r / decay_rounds).",
        f"{_GRF}, exp_decay",
        (
            _decay_rounds("Rounds in which the rate falls once by decay_factor."),
            Option("decay_factor", 0.1, "What it falls by.", LEAST_POSITIVE, 1.0),
            Option("staircase", False, "Fall only after each decay_rounds, not in between."),
            _warmup_rounds(0),
        ),
    ),
    Entry(
        "cosine",
        "Half a wave of the cosine from the learning rate to its final share, which then stays.",
        "Loshchilov and Hutter 2017 (SGDR), arXiv 1608.03983, without restarts",
        (
            _decay_rounds(
                "Rounds of the decay; 0: all of the run's after the warm-up.",
                RUN_S_ROUNDS,
                RUN_S_ROUNDS,
            ),
            Option("final_factor", 0.0, "Share of the learning rate at the end.", 0.0, 1.0),
            _warmup_rounds(0),
        ),
    ),
    Entry(
        "linear-warmup",
        "The learning rate times (r + 1) / warmup_rounds until that is 1.",
        "Goyal et al. 2017, arXiv 1706.02677; " + f"{_GRF}, warmup",
        (_warmup_rounds(10),),
    ),
    Entry(
        "inverse-sqrt",
        "The learning rate over the root of 1 + r / decay_rounds.",
        f"{_GRF}, inv_sqrt_decay",
        (
            _decay_rounds("Rounds after which the rate is 0.71 of its value."),
            _warmup_rounds(0),
        ),
    ),
)

_FEDOPT = "Reddi et al. 2021, arXiv 2003.00295"
# The paper's tau, which it advises to start from.
_FEDOPT_OPTIONS: Mapping[str, Value] = {"epsilon": 1e-3, "style": "reddi"}

ALGORITHMS = _table(
    AlgorithmEntry(
        "centralized",
        "A baseline: one client with all examples of the cohort trains as long as its members "
        "would; --clients all pools everyone's, --shuffle-buffer full mixes them.",
        "the usual training by minibatch SGD",
        pools_clients=True,
    ),
    AlgorithmEntry(
        "fedavg",
        "Federated averaging: local training, then the weighted mean of the model deltas.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF learning/algorithms/fed_avg.py",
    ),
    AlgorithmEntry(
        "fedprox",
        "Federated averaging with local steps drawn back towards the global model.",
        "Li et al. 2020, arXiv 1812.06127; default strength: pfl-research's benchmarks",
        (
            Option(
                "proximal_strength",
                0.01,
                "mu, the weight of half the squared distance; 0: fedavg.",
                0.0,
                _MAX_FLOAT,
            ),
        ),
    ),
    AlgorithmEntry(
        "fedsgd",
        "Federated SGD: clients send the gradient of their data at the global model; server rate "
        "0.1 unless given.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF learning/algorithms/fed_sgd.py",
        has_local_steps=False,
        server_lr=0.1,
    ),
    AlgorithmEntry(
        "mime-lite",
        "Local steps with the server's optimizer state, which full gradients move; the client "
        "optimizer is the base optimizer.",
        "Karimireddy et al. 2021, arXiv 2008.03606; TFF learning/algorithms/mime.py",
    ),
    AlgorithmEntry(
        "mime",
        "Mime Lite with each local gradient corrected to the cohort's mean gradient: two passes, "
        "two gradients a step.",
        "Karimireddy et al. 2021, arXiv 2008.03606; FedJAX algorithms/mime.py",
    ),
    AlgorithmEntry(
        "scaffold",
        "Local steps corrected by control variates, kept for every client that took part; plain "
        "SGD only, clients count alike.",
        "Karimireddy et al. 2020, arXiv 1910.06378, option II",
        weightings=("uniform",),
    ),
    AlgorithmEntry(
        "fednova",
        "Federated averaging in which each delta is divided by the local steps behind it; SGD "
        "only, momentum allowed.",
        "Wang et al. 2020, arXiv 2007.07481",
    ),
    AlgorithmEntry(
        "feddyn",
        "Local losses bent by what each client did before; the mean of the clients' models is "
        "evaluated, clients count alike.",
        "Acar et al. 2021, arXiv 2111.04263; default alpha: the authors' code",
        (
            Option(
                "alpha",
                0.01,
                "Strength of the proximal term; above 0.",
                1e-9,
                _MAX_FLOAT,
            ),
        ),
        weightings=("uniform",),
        has_own_weights=True,
    ),
    AlgorithmEntry(
        "fedavgm",
        "Federated averaging with server SGD and momentum 0.9.",
        "Hsu et al. 2019, arXiv 1909.06335",
        server_optimizer="sgd",
        server_options={"momentum": 0.9},
    ),
    AlgorithmEntry(
        "fedadagrad",
        "Federated averaging with server Adagrad, style reddi; server rate 0.1, epsilon 0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.1,
        server_optimizer="adagrad",
        server_options={"initial_preconditioner_value": 0.0, **_FEDOPT_OPTIONS},
    ),
    AlgorithmEntry(
        "fedadam",
        "Federated averaging with server Adam, style reddi; server rate 0.1, beta_2 0.99, epsilon "
        "0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.1,
        server_optimizer="adam",
        server_options={"beta_2": 0.99, **_FEDOPT_OPTIONS},
    ),
    AlgorithmEntry(
        "fedyogi",
        "Federated averaging with server Yogi, style reddi; server rate 0.01, beta_2 0.99, epsilon "
        "0.001.",
        f"{_FEDOPT}; server rate: Flower",
        server_lr=0.01,
        server_optimizer="yogi",
        server_options={"beta_2": 0.99, "initial_preconditioner_value": 0.0, **_FEDOPT_OPTIONS},
    ),
)

AGGREGATORS = _table(
    Entry(
        "mean",
        "Weighted mean of the model deltas, summed in float64 in a fixed order.",
        "TFF aggregators/mean.py",
    ),
    Entry(
        "tff-robust",
        "Zeroes deltas with an entry above one bound, clips their norm to another, then the mean; "
        "both bounds follow quantiles of what clients send.",
        "TFF learning/model_update_aggregator.py, robust_aggregator; arXiv 1905.03871",
    ),
    Entry(
        "norm-bound",
        "Scales deltas that are longer than a fixed norm down to it, then the mean.",
        "Sun et al. 2019, arXiv 1911.07963; TFF aggregators/robust.py, clipping_factory",
        (Option("max_norm", 1.0, "L2 norm over all tensors.", LEAST_POSITIVE, _MAX_FLOAT),),
    ),
)

EMBEDDED_DATASETS = _table(
    Entry(
        "synthetic-digits",
        "Handwritten digits of invented writers, 28 x 28 grey pixels, 10 classes; made on demand.",
        "drawn by fedcli itself; nothing to download",
        (
            Option("clients", 200, "Number of writers.", 1, 1_000_000_000),
            Option(
                "seed", 1, "Seed of the data; the run's own seed never changes it.", 0, 2**63 - 1
            ),
            # Above 10 nothing of a digit is left.
            Option("spread", 0.9, "How far writers' hands differ.", 0.0, 10.0),
            Option("label_noise", 0.01, "Share of train and test labels drawn afresh.", 0.0, 1.0),
            Option(
                "sizes",
                "natural",
                "How examples and labels fall to writers: evenly as in EMNIST, or unevenly.",
                choices=("natural", "skewed"),
            ),
        ),
    ),
)

# What `fedcli download` fetches; `datasets.public` knows from where. No options: --partition
# re-deals them.
PUBLIC_DATASETS = _table(
    Entry(
        "emnist-digits",
        "Handwritten digits of 3,383 people, 28 x 28 grey pixels: the TFF tutorial's data.",
        "TFF simulation/datasets, federated EMNIST digits",
        licence="public domain (NIST)",
    ),
    Entry(
        "emnist-62",
        "Handwritten digits and letters of 3,400 people, 28 x 28 grey pixels, 62 classes.",
        "TFF simulation/datasets, federated EMNIST",
        licence="public domain (NIST)",
    ),
    Entry(
        "cifar100",
        "Photographs in 100 classes, 32 x 32 RGB pixels, dealt to 500 clients by topic.",
        "TFF simulation/datasets, federated CIFAR-100; Reddi et al. 2021, arXiv 2003.00295",
        licence="none stated",
    ),
    Entry(
        "mnist-writers",
        "MNIST by the 539 people who wrote it; its test images, by others, are split central.",
        "MNIST (LeCun, Cortes, Burges); writers: facebookresearch/qmnist",
        licence="public domain (NIST); writer table BSD-style",
    ),
    Entry(
        "mnist",
        "Handwritten digits, 28 x 28 grey pixels, dealt evenly to 100 clients.",
        "MNIST (LeCun, Cortes, Burges)",
        licence="public domain (NIST)",
    ),
    Entry(
        "fashion-mnist",
        "Pictures of clothes, 28 x 28 grey pixels, 10 classes, dealt evenly to 100 clients.",
        "Fashion-MNIST, zalandoresearch/fashion-mnist",
        licence="MIT",
    ),
    Entry(
        "kmnist",
        "Handwritten Japanese characters, 28 x 28 grey pixels, 10 classes, dealt evenly to 100 "
        "clients.",
        "KMNIST, codh.rois.ac.jp/kmnist",
        licence="CC BY-SA 4.0",
    ),
    Entry(
        "cifar10",
        "Photographs in 10 classes, 32 x 32 RGB pixels, dealt evenly to 100 clients.",
        "CIFAR-10, www.cs.toronto.edu/~kriz",
        licence="none stated",
    ),
)

DATASETS: Mapping[str, Entry] = {**EMBEDDED_DATASETS, **PUBLIC_DATASETS}

_CLIENTS = Option("clients", 100, "Number of clients.", 1, 10_000_000)
_FEW_CLIENTS = Option("clients", 10, _CLIENTS.doc, 1, 10_000_000)
_PARTITION_SEED = Option("seed", 0, "Seed of the partition alone.", 0, 2**63 - 1)
_MIN_EXAMPLES = Option(
    "min_examples", 10, "Least examples of a client; all is drawn again until each has them.", 1
)
# Below and above, one class or equal shares are all there is.
_LEAST_ALPHA, _MAX_ALPHA = 1e-9, 1e9


def _alpha(default: float, doc: str) -> Option:
    return Option("alpha", default, doc, _LEAST_ALPHA, _MAX_ALPHA)


def _deal(name: str, doc: str, source: str, *options: Option) -> Entry:
    return Entry(name, doc, source, (_CLIENTS, *options, _PARTITION_SEED))


# Who gets which example. One of these at most makes a partition, without one it is natural.
DEALS = _table(
    Entry(
        "natural",
        "As the source has it: to each owner what it owned.",
        "TFF simulation/datasets; Caldas et al. 2018 (LEAF), arXiv 1812.01097",
    ),
    _deal(
        "iid",
        "Equal shares of all examples in random order.",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    _deal(
        "shards",
        "Examples sorted by label, cut into equal shards; some shards for each client.",
        "McMahan et al. 2017, arXiv 1602.05629: 100 clients, 2 shards each",
        Option("shards", 2, "Shards a client.", 1, 1_000_000),
    ),
    _deal(
        "dirichlet-class",
        "Class by class: Dir(alpha) over the CLIENTS says who gets how much of a class; sizes "
        "differ. Not dirichlet-client.",
        "Yurochkin et al. 2019, arXiv 1905.12022; Li et al. 2022 (NIID-Bench), arXiv 2102.02079",
        _alpha(0.5, "Larger is more even; over clients, not over classes."),
        _MIN_EXAMPLES,
        Option("balanced", False, "A client that has its equal share gets no further class."),
    ),
    _deal(
        "dirichlet-client",
        "Client by client: Dir(alpha) over the CLASSES, alpha the same for each class, is the "
        "client's label mix; equal sizes. Not dirichlet-class.",
        "Acar et al. 2021 (FedDyn), arXiv 2111.04263",
        _alpha(0.5, "Larger is more even; the parameter of each class."),
    ),
    _deal(
        "dirichlet-prior",
        "As dirichlet-client, but Dir(alpha * p), p the classes' shares of all examples: with 10 "
        "equal classes alpha means a tenth of what it means there.",
        "Hsu et al. 2019, arXiv 1909.06335",
        _alpha(0.5, "Larger is more even; the sum of the parameters of all classes."),
    ),
    _deal(
        "classes-per-client",
        "Each client has a fixed number of classes; a class is shared equally by those who have "
        "it.",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, #C = k",
        Option("classes", 2, "Classes a client.", 1, 1_000_000),
    ),
    Entry(
        "quantity-dirichlet",
        "Only sizes differ: shares of Dir(alpha) over the clients.",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, quantity skew",
        (_FEW_CLIENTS, _alpha(0.5, "Larger is more even."), _MIN_EXAMPLES, _PARTITION_SEED),
    ),
    _deal(
        "quantity-lognormal",
        "Only sizes differ: in proportion to log-normal numbers.",
        "Zeng et al. 2023 (FedLab), JMLR 24",
        Option("sigma", 0.3, "Standard deviation of the logarithm; 0: equal sizes.", 0.0, 20.0),
    ),
    _deal(
        "quantity-linear",
        "Only sizes differ: client j in proportion to j + 1.",
        "Beutel et al. 2020 (Flower), arXiv 2007.14390, LinearPartitioner",
    ),
    Entry(
        "quantity-exponential",
        "Only sizes differ: client j in proportion to e^j; 60,000 examples reach 11 clients.",
        "Beutel et al. 2020 (Flower), arXiv 2007.14390, ExponentialPartitioner",
        (_FEW_CLIENTS, _PARTITION_SEED),
    ),
)

# What a client's examples go through; joined to a deal or to each other by "+".
CHANGES = _table(
    Entry(
        "feature-rotation",
        "Client j's images are turned by one of the angles, j mod their number.",
        "Ghosh et al. 2020 (IFCA), arXiv 2006.04088, rotated MNIST",
        (
            Option(
                "angles",
                [0.0, 90.0, 180.0, 270.0],
                "Degrees, anticlockwise; multiples of 90 are exact.",
                -360.0,
                360.0,
            ),
        ),
    ),
    Entry(
        "feature-noise",
        "Normal noise on client j's pixels, its deviation std * j / (clients - 1).",
        "Li et al. 2022 (NIID-Bench), arXiv 2102.02079, noise-based feature skew",
        (
            Option("std", 0.1, "Standard deviation at the last client.", 0.0, 1000.0),
            _PARTITION_SEED,
        ),
    ),
    Entry(
        "feature-inversion",
        "Some clients' pixels x become 1 - x: by default every second client's.",
        "this program; the pixels of TFF's EMNIST against those of MNIST",
        (Option("share", 0.5, "Share of the clients, spread evenly.", 0.0, 1.0),),
    ),
    Entry(
        "label-noise",
        "Some train labels become others; test labels stay as they are.",
        "Patrini et al. 2017, arXiv 1609.03683 (symmetric); Han et al. 2018, arXiv 1804.06872 "
        "(pair)",
        (
            Option("rate", 0.1, "Chance of each label to change.", 0.0, 1.0),
            Option(
                "kind",
                "symmetric",
                "symmetric: to any other class alike; pair: to the next class.",
                choices=("symmetric", "pair"),
            ),
            _PARTITION_SEED,
        ),
    ),
)

PARTITIONS: dict[str, Entry] = {**DEALS, **CHANGES}
NATURAL = "natural"


def find_partition(name: str) -> Entry:
    """Returns the row of a partition: one of `PARTITIONS`, or several of them joined by "+".

    Joined rows have all their options; the seed is one for all.

    Raises:
        ConfigError: A name is unknown or stands twice, or the order is not one deal, then changes.
    """
    deal, changes = split_partition(name)
    parts = [DEALS[deal], *(CHANGES[each] for each in changes)]
    options = {option.name: option for part in parts for option in part.options}
    return Entry(
        name,
        " Then: ".join(part.doc for part in parts),
        "; ".join(part.source for part in parts),
        tuple(options.values()),
    )


def split_partition(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the names of the deal and of the changes of a partition.

    Raises:
        ConfigError: See `find_partition`.
    """
    names = name.split("+")
    for each in names:
        if not each:
            where = "beside +" if "+" in name else "after --partition"
            raise ConfigError(
                f"--partition '{name}': a name is missing {where}; "
                f"choose one of {', '.join(PARTITIONS)}"
            )
        if each not in PARTITIONS:
            raise ConfigError(
                f"unknown --partition '{each}'; choose one of {', '.join(PARTITIONS)}; "
                "those that change examples go after another with +"
                f"{did_you_mean(each, PARTITIONS)}"
            )
    deal, changes = (names[0], names[1:]) if names[0] in DEALS else (NATURAL, names)
    for each in changes:
        if each in DEALS:
            raise ConfigError(
                f"--partition {name}: {each} deals examples to clients; only one such scheme, "
                "the first, goes with others"
            )
    if len(set(changes)) < len(changes):
        raise ConfigError(f"--partition {name}: give each change once")
    return deal, tuple(changes)


def describe_partition(name: str, options: Mapping[str, Value]) -> str:
    """Returns a partition with its options in one line, for provenance."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])
