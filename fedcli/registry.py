"""Everything a user can choose by name, with its options: validates configs, feeds `fedcli info`.

Imports no NumPy, so that a wrong option is refused before anything heavy is loaded. The code behind
each name stands in one dict of its own module (`optimizers`, `models`, `algorithms`,
`aggregators`, `datasets`), under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.options import Entry, Option, Value, check_number

# The core computes in float32: no rate above its largest number, no momentum that it takes for 0.
_MAX_FLOAT = 3e38
LEARNING_RATE_RANGE = (0.0, _MAX_FLOAT)
_LEAST_MOMENTUM = 1.2e-38


def check_learning_rate(value: object, label: str = "learning rate") -> float:
    """Returns a learning rate of any optimizer as a float.

    Raises:
        ConfigError: It is negative, NaN, infinite or not a number; the message starts with `label`.
    """
    return check_number(label, value, *LEARNING_RATE_RANGE)


def _table(*entries: Entry) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def _check_sgd(options: Mapping[str, Value]) -> str | None:
    momentum = options["momentum"]
    assert isinstance(momentum, float)
    if options["nesterov"] and momentum < _LEAST_MOMENTUM:
        return "nesterov = true needs a momentum above 0; set momentum, for example momentum=0.9"
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
)

OPTIMIZERS = _table(
    Entry(
        "sgd",
        "Gradient descent, with heavy-ball or Nesterov momentum on request.",
        "TFF learning/optimizers/sgdm.py",
        (
            Option("momentum", 0.0, "Share of the last step that is kept; 0: none.", 0.0, 1.0),
            Option("nesterov", False, "Look ahead along the momentum; needs momentum above 0."),
        ),
        _check_sgd,
    ),
    Entry(
        "adam",
        "Running means of gradients and of their squares, corrected for their start from 0.",
        "Kingma and Ba 2015, arXiv 1412.6980; TFF learning/optimizers/adam.py",
        (_BETA_1, _BETA_2, _epsilon(1e-7), _STYLE),
    ),
    Entry(
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
    Entry(
        "adagrad",
        "Gradients over the root of the sum of all squares; epsilon stands inside the root "
        "(style reddi: outside, arXiv 2003.00295).",
        "Duchi, Hazan and Singer 2011, JMLR 12; TFF learning/optimizers/adagrad.py",
        (_epsilon(1e-7), _initial_preconditioner(0.1), _STYLE),
    ),
    Entry(
        "yogi",
        "Adam whose mean of squares moves by a step's own square, up or down.",
        "Zaheer et al. 2018, NeurIPS; TFF learning/optimizers/yogi.py",
        (_BETA_1, _BETA_2, _epsilon(1e-3), _initial_preconditioner(1e-6), _STYLE),
    ),
    Entry(
        "rmsprop",
        "Gradients over the root of the running mean of their squares.",
        "Tieleman and Hinton 2012; TFF learning/optimizers/rmsprop.py",
        (
            Option("decay", 0.9, "Share of the running mean that a step keeps.", 0.0, 1.0),
            _epsilon(1e-7),
        ),
    ),
)

ALGORITHMS = _table(
    Entry(
        "fedavg",
        "Federated averaging: local training, then the weighted mean of the model deltas.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF learning/algorithms/fed_avg.py",
    ),
    Entry(
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
)

AGGREGATORS = _table(
    Entry(
        "mean",
        "Weighted mean of the model deltas, summed in float64 in a fixed order.",
        "TFF aggregators/mean.py",
    ),
)

DATASETS = _table(
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
