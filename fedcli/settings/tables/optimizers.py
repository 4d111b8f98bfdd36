"""The table of optimizers for clients and server, and the checks of their rates."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.dataclass import dataclass
from fedcli.settings.options import (
    LEAST_POSITIVE,
    MAX_FLOAT,
    Entry,
    Option,
    Value,
    check_number,
    table,
)

LEARNING_RATE_RANGE = (0.0, MAX_FLOAT)


def check_learning_rate(value: object, label: str = "learning rate") -> float:
    """Returns a learning rate of any optimizer as a float.

    Raises:
        ConfigError: It is negative, NaN, infinite or not a number; the message starts with `label`.
    """
    return check_number(label, value, *LEARNING_RATE_RANGE)


def check_clip_norm(value: object, label: str = "clip norm") -> float:
    """Returns the norm to which gradients are clipped, as a float.

    Raises:
        ConfigError: It is 0, negative, NaN, infinite or not a number; the message starts with
            `label`.
    """
    return check_number(label, value, LEAST_POSITIVE, MAX_FLOAT)


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """A row of `OPTIMIZERS`; its `code` is a `learning.optimizers.rules.Rule`.

    Attributes:
        is_elementwise: Whether the update of a weight depends on that weight's gradients alone.
    """

    is_elementwise: bool = True


def _check_sgd(options: Mapping[str, Value]) -> str | None:
    momentum = options["momentum"]
    assert isinstance(momentum, float)
    if options["nesterov"] and momentum < LEAST_POSITIVE:
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
    "tff: TFF's form; reddi: Algorithm 2 of Reddi et al. 2021, arXiv 2003.00295, in which w moves "
    "by learning_rate * m / (sqrt(v) + epsilon) without bias correction.",
    choices=("tff", "reddi"),
)


def _epsilon(default: float) -> Option:
    doc = "Added to the root of the mean squared gradients; a larger value is closer to SGD."
    return Option("epsilon", default, doc, 0.0, MAX_FLOAT)


def _initial_preconditioner(default: float) -> Option:
    doc = "Initial value of the sum or mean of squared gradients."
    return Option("initial_preconditioner_value", default, doc, 0.0, MAX_FLOAT)


OPTIMIZERS = table(
    OptimizerEntry(
        "sgd",
        "Gradient descent, optionally with heavy-ball or Nesterov momentum.",
        "TFF learning/optimizers/sgdm.py",
        (
            Option("momentum", 0.0, "Share of the last step that is kept; 0: none.", 0.0, 1.0),
            Option("nesterov", False, "Look ahead along the momentum; needs momentum above 0."),
        ),
        _check_sgd,
        rates=(
            "client 0.02 (softmax regression) to 0.2 (networks), a tenth with momentum=0.9; "
            "server 1"
        ),
        example="fedcli train --client-optimizer sgd --client-lr 0.05 --client-option momentum=0.9",
        code="fedcli.learning.optimizers.rules:SGD",
    ),
    OptimizerEntry(
        "adam",
        "Divides the running mean of gradients by the root of the running mean of their "
        "squares. Both are corrected for their start at 0.",
        "Kingma and Ba 2015, arXiv 1412.6980; TFF learning/optimizers/adam.py",
        (_BETA_1, _BETA_2, _epsilon(1e-7), _STYLE),
        rates="client 0.0003 to 0.003; server 0.003 to 0.1 with epsilon=0.001",
        example="fedcli train --client-optimizer adam --client-lr 0.001",
        code="fedcli.learning.optimizers.rules:ADAM",
    ),
    OptimizerEntry(
        "adamw",
        "Adam with weight decay in proportion to the learning rate.",
        "Loshchilov and Hutter 2019, arXiv 1711.05101; TFF learning/optimizers/adamw.py",
        (
            _BETA_1,
            _BETA_2,
            _epsilon(1e-7),
            Option("weight_decay", 0.004, "Strength of the weight decay; 0: Adam.", 0.0, MAX_FLOAT),
        ),
        rates="client 0.0003 to 0.003",
        example=(
            "fedcli train --client-optimizer adamw --client-lr 0.001 --client-option "
            "weight_decay=0.01"
        ),
        code="fedcli.learning.optimizers.rules:ADAMW",
    ),
    OptimizerEntry(
        "adagrad",
        "Divides gradients by the root of the sum of all their squares. Epsilon is inside the "
        "root; with style=reddi it is outside (arXiv 2003.00295).",
        "Duchi, Hazan and Singer 2011, JMLR 12; TFF learning/optimizers/adagrad.py",
        (
            Option(
                "epsilon",
                1e-7,
                "Added to the sum of squared gradients, or with style=reddi to the root of this "
                "sum; a larger value is closer to SGD.",
                0.0,
                MAX_FLOAT,
            ),
            _initial_preconditioner(0.1),
            _STYLE,
        ),
        rates="client 0.01 to 0.1; server 0.03 to 0.1",
        example="fedcli train --server-optimizer adagrad --server-lr 0.1",
        code="fedcli.learning.optimizers.rules:ADAGRAD",
    ),
    OptimizerEntry(
        "yogi",
        "Adam whose mean of squares moves by (1 - beta_2) times the new square, up or down.",
        "Zaheer et al. 2018, NeurIPS; TFF learning/optimizers/yogi.py",
        (_BETA_1, _BETA_2, _epsilon(1e-3), _initial_preconditioner(1e-6), _STYLE),
        rates="client 0.001 to 0.01; server 0.003 to 0.1",
        example="fedcli train --server-optimizer yogi --server-lr 0.03",
        code="fedcli.learning.optimizers.rules:YOGI",
    ),
    OptimizerEntry(
        "rmsprop",
        "Divides gradients by the root of the running mean of their squares.",
        "Tieleman and Hinton 2012; TFF learning/optimizers/rmsprop.py",
        (
            Option("decay", 0.9, "Share of the running mean that a step keeps.", 0.0, 1.0),
            _epsilon(1e-7),
        ),
        rates="client 0.0003 to 0.003",
        example="fedcli train --client-optimizer rmsprop --client-lr 0.001",
        code="fedcli.learning.optimizers.rules:RMSPROP",
    ),
    OptimizerEntry(
        "adafactor",
        "Divides gradients by the root of their mean squares, which are stored as means of rows "
        "and columns. Steps are proportional to the size of the weights.",
        "Shazeer and Stern 2018, arXiv 1804.04235; TFF learning/optimizers/adafactor.py",
        (
            Option(
                "beta_2_decay",
                -0.8,
                "Exponent of the step number: how fast squares are forgotten.",
                -10.0,
                -LEAST_POSITIVE,
            ),
            Option("epsilon_1", 1e-30, "Added to squared gradients.", LEAST_POSITIVE, MAX_FLOAT),
            Option(
                "epsilon_2",
                1e-3,
                "Lower bound of the size of weights, which scales the step.",
                0.0,
                MAX_FLOAT,
            ),
            Option(
                "clip_threshold",
                1.0,
                "Largest root mean square of a tensor's update.",
                LEAST_POSITIVE,
                MAX_FLOAT,
            ),
            Option("relative_step", True, "Limit the rate to 1 / sqrt(step)."),
        ),
        is_elementwise=False,
        rates="0.01 to 0.1: a share of the size of the weights",
        example="fedcli train --client-optimizer adafactor --client-lr 0.03",
        code="fedcli.learning.optimizers.rules:ADAFACTOR",
    ),
    family="server optimizer",
)
