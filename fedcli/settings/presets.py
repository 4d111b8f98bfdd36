"""Presets: published experiments, each as the options that repeat it (`--preset NAME`).

Options given beside a preset override it. Published numbers are copied as they were printed. If a
paper does not report a setting, such as a tuned learning rate or the number of rounds, `remark`
says so. Imports no NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.settings.options import Entry


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        value: As printed.
        metric: `loss`, `accuracy` or `rounds_to_target`.
        split: Split of the closing evaluation; empty for the training metrics of a round.
        round_num: The round, for training metrics.
    """

    value: float
    metric: str
    split: str = ""
    round_num: int = 0


@dataclass(frozen=True)
class Preset(Entry):
    """One experiment; its source names the table of the paper.

    Attributes:
        values: Fields of `RunConfig`.
        stand_in: Fields of `RunConfig` for synthetic images of the same sizes, which replace data
            that are not downloaded; if empty, missing data are an error.
        figures: The published results of exactly these settings.
        remark: What a reader must know to compare the results; may be empty.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    stand_in: Mapping[str, Any] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    remark: str = ""


# Training loss and accuracy in rounds 1 to 10.
_TUTORIAL_ROUNDS = (
    (3.1193733, 0.12345679),
    (2.9851403, 0.14012346),
    (2.8617127, 0.1590535),
    (2.7401376, 0.17860082),
    (2.6186547, 0.20102881),
    (2.5006158, 0.22345679),
    (2.3858356, 0.24794239),
    (2.2757034, 0.27160493),
    (2.17098, 0.2958848),
    (2.072707, 0.3251029),
)

_TUTORIAL = Preset(
    "tff-tutorial",
    "Softmax regression on the first ten writers of EMNIST digits, ten rounds of five epochs.",
    "TFF tutorial, Federated Learning for Image Classification: training metrics by round, closing "
    "evaluation",
    values={
        "data": "emnist-digits",
        "clients": "10",
        "sampling": "fixed",
        "rounds": 10,
        "epochs": 5,
        "batch_size": 20,
        "shuffle_buffer": 100,
        "pipeline": "repeat-shuffle",
        "model": "softmax-regression",
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 0.02,
        "server_optimizer": "sgd",
        "server_lr": 1.0,
        "client_weighting": "num-examples",
    },
    figures=(
        *(
            Figure(value, metric, round_num=round_num)
            for round_num, row in enumerate(_TUTORIAL_ROUNDS, 1)
            for metric, value in zip(("loss", "accuracy"), row, strict=True)
        ),
        Figure(1.6654209, "loss", "train"),
        Figure(0.3621399, "accuracy", "train"),
        Figure(1.7750846, "loss", "test"),
        Figure(0.33620688, "accuracy", "test"),
    ),
    remark="With the same data and options, results differ from about the third digit on, because "
    "fedcli shuffles the examples in another order.",
)

_FLUTE = Preset(
    "flute-lr-mnist",
    "Logistic regression on MNIST with 1,000 clients, ten of them a round, 100 rounds.",
    "FLUTE (Garcia et al. 2022), arXiv 2203.13789, comparison with FedML, LR on MNIST",
    values={
        "data": "mnist",
        "partition": "classes-per-client",
        "partition_options": {"clients": 1000, "classes": 2},
        "pixels": "ink",
        "clients": "10",
        "sampling": "uniform",
        "rounds": 100,
        "epochs": 1,
        "batch_size": 10,
        "shuffle_buffer": "full",
        "pipeline": "per-epoch",
        "model": "softmax-regression",
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 0.03,
        "server_lr": 1.0,
        "eval_every": 20,
    },
    remark="Each client holds two digits, as in the files that FLUTE trained on. In those files "
    "client sizes also follow a power law; use them with --data FILE --partition natural.",
)


def _mcmahan(
    name: str, model: str, epochs: int, kind: str, lr: float, num_rounds: int, published: float
) -> Preset:
    """A row of the paper's tables: 10 of 100 clients a round, B = 10, target 97 % (CNN: 99 %)."""
    target = 0.97 if model == "mlp-2nn" else 0.99
    table = "table 1" if (model, epochs) in {("mlp-2nn", 1), ("cnn-mcmahan", 5)} else "table 2"
    is_iid = kind == "IID"
    options = {"clients": 100} if is_iid else {"clients": 100, "shards": 2}
    return Preset(
        name,
        f"{'2NN' if model == 'mlp-2nn' else 'CNN'} on MNIST, 100 clients ({kind}), ten a round, "
        f"E = {epochs}, B = 10, until {target:.0%} of the test images are right.",
        f"McMahan et al. 2017, arXiv 1602.05629, {table}: rounds to the target",
        values={
            "data": "mnist",
            "partition": "iid" if is_iid else "shards",
            "partition_options": options,
            "pixels": "ink",
            "clients": "10",
            "sampling": "uniform",
            "rounds": num_rounds,
            "epochs": epochs,
            "batch_size": 10,
            "shuffle_buffer": "full",
            "pipeline": "per-epoch",
            "model": model,
            "algorithm": "fedavg",
            "client_optimizer": "sgd",
            "client_lr": lr,
            "server_lr": 1.0,
            "client_weighting": "num-examples",
            "eval_every": 1,
            "eval_clients": "all",
            "eval_split": "held-out",
            "stop_at": f"accuracy={target}",
        },
        figures=(Figure(published, "rounds_to_target"),),
        remark="The paper tuned the learning rate for each cell without reporting it; "
        f"{lr:g} is fedcli's choice. The paper makes its curves monotone and interpolates them.",
    )


def _reddi(
    name: str,
    title: str,
    client_lr: float,
    server: Mapping[str, Any],
    published: float,
) -> Preset:
    """One optimizer in the paper's EMNIST character recognition, with its best learning rates."""
    return Preset(
        f"reddi-2021-{name}",
        f"{title} on EMNIST characters, 62 classes: ten clients a round, 1,500 rounds.",
        "Reddi et al. 2021, arXiv 2003.00295, EMNIST CR; rates: google-research/federated, "
        "optimization/docs/hyperparameters.md",
        values={
            "data": "emnist-62",
            "clients": "10",
            "sampling": "tff",
            "seed": 1,
            "rounds": 1500,
            "epochs": 1,
            "batch_size": 20,
            "shuffle_buffer": "full",
            "pipeline": "shuffle-repeat",
            "model": "cnn-reddi",
            "algorithm": "fedavg",
            "client_optimizer": "sgd",
            "client_lr": client_lr,
            "client_weighting": "num-examples",
            **server,
        },
        figures=(Figure(published, "accuracy", "test"),),
        remark="The published accuracy is the mean over the last 100 rounds; this run's is that of "
        "the last round. The published figure is cited from memory.",
    )


def _adaptive(optimizer: str, lr: float, epsilon: float, **options: float) -> dict[str, Any]:
    server = {"style": "reddi", "epsilon": epsilon, **options}
    return {"server_optimizer": optimizer, "server_lr": lr, "server_options": server}


_BETAS = {"beta_1": 0.9, "beta_2": 0.99}

# 555 synthetic clients have about 50,000 images of 32 x 32 x 3 pixels for training, like CIFAR-10.
_DRAWN_CIFAR10 = {"data": "synthetic-shapes", "data_options": {"clients": 555}}
_BY_EPOCH = {"shuffle_buffer": "full", "pipeline": "per-epoch", "server_lr": 1.0}

_CIFAR100 = Preset(
    "reddi-2021-cifar100",
    "FedYogi on CIFAR-100, 500 clients by topic: ten a round, 4,000 rounds, crops of 24 x 24.",
    "Reddi et al. 2021, arXiv 2003.00295, table 1, CIFAR-100; rates: google-research/federated, "
    "optimization/docs/hyperparameters.md",
    values={
        "data": "cifar100",
        "clients": "10",
        "sampling": "tff",
        "seed": 1,
        "rounds": 4000,
        "epochs": 1,
        "batch_size": 20,
        "shuffle_buffer": "full",
        "pipeline": "shuffle-repeat",
        "model": "resnet18-gn",
        "augment": "crop+flip",
        "augment_options": {"size": 24, "padding": 0},
        "normalize": "image",
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 10**-1.5,
        "client_weighting": "num-examples",
        **_adaptive("yogi", 1.0, 0.1, **_BETAS, initial_preconditioner_value=0.0),
    },
    stand_in={
        "data": "synthetic-shapes",
        "data_options": {"clients": 500},
        "num_classes": 100,
    },
    figures=(Figure(0.524, "accuracy", "test"),),
    remark="The published accuracy is the mean over the last 100 rounds; this run's is that of the "
    "last round. The published figure is cited from memory.",
)

_FEDML = Preset(
    "fedml-cifar10-resnet56",
    "ResNet-56 on CIFAR-10: ten clients (Dirichlet 0.5), 100 rounds of 20 epochs, all clients.",
    "FedML (He et al. 2020), arXiv 2007.13518, cross-silo benchmark, CIFAR10, ResNet-56, non-IID",
    values={
        "data": "cifar10",
        "partition": "dirichlet-class",
        "partition_options": {"clients": 10, "alpha": 0.5},
        "clients": "all",
        **_BY_EPOCH,
        "rounds": 100,
        "epochs": 20,
        "batch_size": 64,
        "model": "resnet56",
        "augment": "crop+flip+cutout",
        "augment_options": {"padding": 4, "side": 16},
        "normalize": "published",
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 0.001,
        "client_weight_decay": 0.001,
        "client_weighting": "num-examples",
    },
    stand_in={**_DRAWN_CIFAR10, "normalize": "train"},
    figures=(Figure(0.8712, "accuracy", "test"),),
    remark="FedML's network has batch normalization; resnet56 has group normalization here. The "
    "partition is drawn anew. With IID clients FedML reports 93.19 %.",
)

_NIID = Preset(
    "niid-bench-cifar10",
    "A simple CNN on CIFAR-10: ten clients (Dirichlet 0.5), 50 rounds with all clients.",
    "NIID-Bench (Li et al. 2022), arXiv 2102.02079, table 3, CIFAR-10, p_k ~ Dir(0.5), FedAvg",
    values={
        "data": "cifar10",
        "partition": "dirichlet-class",
        "partition_options": {"clients": 10, "alpha": 0.5, "min_examples": 10},
        "clients": "all",
        **_BY_EPOCH,
        "rounds": 50,
        "epochs": 10,
        "batch_size": 64,
        "model": "lenet5-cifar",
        "augment": "crop+flip",
        "augment_options": {"padding": 4},
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 0.01,
        "client_options": {"momentum": 0.9},
        "client_weight_decay": 1e-5,
        "client_weighting": "num-examples",
    },
    stand_in=_DRAWN_CIFAR10,
    figures=(Figure(0.682, "accuracy", "test"),),
    remark="The published figure is the mean of three trials, cited from memory. NIID-Bench pads "
    "crops by reflection, fedcli with zeros. The partition is drawn anew.",
)

_BLAZEFL = Preset(
    "blazefl-cifar10-cnn",
    "The PyTorch tutorial's CNN on CIFAR-10: 100 clients of two shards, 5 rounds, all clients.",
    "BlazeFL, repository blazefl/benchmarks, blazefl-case with its default config",
    values={
        "data": "cifar10",
        "partition": "shards",
        "partition_options": {"clients": 100, "shards": 2},
        "clients": "all",
        **_BY_EPOCH,
        "rounds": 5,
        "epochs": 5,
        "batch_size": 50,
        "model": "lenet5-cifar",
        "algorithm": "fedavg",
        "client_optimizer": "sgd",
        "client_lr": 0.1,
        "client_weighting": "num-examples",
    },
    stand_in=_DRAWN_CIFAR10,
    remark="BlazeFL publishes times of these rounds, not accuracies.",
)
_ALL = (
    _TUTORIAL,
    _mcmahan("mcmahan-2017-2nn-iid", "mlp-2nn", 1, "IID", 0.2, 300, 87),
    _mcmahan("mcmahan-2017-2nn-non-iid", "mlp-2nn", 1, "non-IID", 0.1, 1500, 664),
    _mcmahan("mcmahan-2017-cnn-iid", "cnn-mcmahan", 5, "IID", 0.2, 100, 18),
    _mcmahan("mcmahan-2017-cnn-non-iid", "cnn-mcmahan", 1, "non-IID", 0.15, 1000, 350),
    _reddi(
        "fedadagrad",
        "FedAdagrad",
        10**-1.5,
        _adaptive("adagrad", 0.1, 1e-2, initial_preconditioner_value=0.0),
        0.851,
    ),
    _reddi("fedadam", "FedAdam", 10**-1.5, _adaptive("adam", 10**-2.5, 1e-4, **_BETAS), 0.856),
    _reddi(
        "fedyogi",
        "FedYogi",
        10**-1.5,
        _adaptive("yogi", 10**-2.5, 1e-4, **_BETAS, initial_preconditioner_value=0.0),
        0.855,
    ),
    _reddi(
        "fedavgm",
        "FedAvgM",
        10**-1.5,
        {"server_optimizer": "sgd", "server_lr": 10**-0.5, "server_options": {"momentum": 0.9}},
        0.852,
    ),
    _reddi("fedavg", "FedAvg", 0.1, {"server_optimizer": "sgd", "server_lr": 1.0}, 0.849),
    _FLUTE,
    _CIFAR100,
    _FEDML,
    _NIID,
    _BLAZEFL,
)

PRESETS: Mapping[str, Preset] = {each.name: each for each in _ALL}
