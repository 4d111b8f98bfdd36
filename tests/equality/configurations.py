"""The configurations of the equality check: small sets of command lines of fedcli.

A configuration runs in its own folder, whose folder `inputs/` has the files that `inputs.py` makes.
All files that the configuration leaves are compared, and so is what its commands with --json print.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

SMALL = "--data-option clients=6 --clients 3 --rounds 2 --epochs 1"
EXPORT = "export run weights.npz -q"
EVAL = "eval run --clients all --json"


@dataclass(frozen=True)
class Configuration:
    """Command lines without `fedcli`.

    Attributes:
        name: A unique name; the kind comes first, with `-` between words.
        steps: Command lines that each program runs.
        later: Command lines that both programs run on the files that BEFORE left, because AFTER
            must still be able to read them.
        environment: Environment variables for all command lines.
    """

    name: str
    steps: tuple[str, ...]
    later: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _trained(
    name: str,
    options: str = "",
    *more: str,
    small: str = SMALL,
    later: tuple[str, ...] = (),
    **environment: str,
) -> Configuration:
    """Trains a run with these options in the folder `run`, exports its weights, and runs `more`."""
    train = f"train {small} {options} --out run -q"
    return Configuration(name, (train, EXPORT, *more), later, environment)


def _continued(
    name: str, options: str, *later: str, small: str = SMALL, code: str = ""
) -> Configuration:
    """Trains two rounds. `later` evaluates the run, reports it, and resumes it to four rounds."""
    recorded = f"train {small} --checkpoint-every 1 --eval-every 1 {options} --out run -q"
    model = f"--model {code}" if code else ""
    exported = () if "local-only" in options else (EXPORT,)
    return Configuration(
        name,
        (f"{recorded} {model}",),
        (
            *(f"eval run --clients all --json {model}", "report run --json --csv rounds.csv"),
            *(f"train --resume run --rounds 4 -q {model}", *exported, *later),
        ),
    )


# ---- Algorithms ----------------------------------------------------------------------------------

_CLIENTS_CSV = "report run --clients-csv clients.csv -q"
ALGORITHMS = (
    _trained("algorithm-fedavg", "--algorithm fedavg --record-clients", _CLIENTS_CSV),
    _trained("algorithm-fedprox", "--algorithm fedprox --algorithm-option proximal_strength=0.5"),
    _trained(
        "algorithm-centralized", "--algorithm centralized --clients all --shuffle-buffer full"
    ),
    _trained("algorithm-fedsgd", "--algorithm fedsgd"),
    _trained("algorithm-mime-lite", "--algorithm mime-lite --client-option momentum=0.9"),
    _trained("algorithm-mime", "--algorithm mime --client-optimizer adam --client-lr 0.005"),
    _trained("algorithm-fednova", "--algorithm fednova --client-option momentum=0.5 --epochs 2"),
    _trained("algorithm-fedavgm", "--algorithm fedavgm --model lenet5 --max-examples 20"),
    _trained("algorithm-fedadagrad", "--algorithm fedadagrad"),
    _trained("algorithm-fedadam", "--algorithm fedadam --server-option beta_1=0.5"),
    _trained("algorithm-fedyogi", "--algorithm fedyogi --client-weighting uniform"),
    # Algorithms with client states, on a model of two layers.
    _continued(
        "algorithm-scaffold",
        "--algorithm scaffold --model mlp-2nn --sampling uniform --record-clients",
        _CLIENTS_CSV,
    ),
    _continued(
        "algorithm-feddyn",
        "--algorithm feddyn --algorithm-option alpha=0.1 --model mlp-2nn --sampling uniform",
    ),
    _continued("algorithm-local-only", "--algorithm local-only --model mlp-2nn --sampling cyclic"),
)

# ---- Optimizers, schedules, aggregators ----------------------------------------------------------


def _optimizers() -> Iterator[Configuration]:
    """Yields each optimizer, used on clients and on the server; an option is set on one side."""
    options = {
        "sgd": "--client-option momentum=0.9 --client-option nesterov=true",
        "adam": "--server-option style=reddi",
        "adamw": "--client-option weight_decay=0.1",
        "adagrad": "--server-option initial_preconditioner_value=0.5",
        "yogi": "--client-option beta_1=0.5",
        "rmsprop": "--server-option decay=0.5",
        "adafactor": "--client-option clip_threshold=0.5 --server-option relative_step=false",
    }
    for name, more in options.items():
        rates = f"--client-optimizer {name} --client-lr 0.01 --server-optimizer {name}"
        yield _continued(f"optimizer-{name}", f"{rates} --server-lr 0.1 {more} --model mlp-2nn")


_FOUR = f"{SMALL} --rounds 4"
SCHEDULES = (
    _trained("schedule-constant", "--client-schedule constant --server-schedule constant"),
    _trained(
        "schedule-step",
        "--client-schedule step --client-schedule-option boundaries=[1,2] "
        "--client-schedule-option factors=[0.5,0.25] --server-schedule step",
        small=_FOUR,
    ),
    _trained(
        "schedule-exponential",
        "--client-schedule exponential --client-schedule-option decay_rounds=2 "
        "--client-schedule-by local-step --server-schedule exponential "
        "--server-schedule-option staircase=true --server-schedule-option decay_rounds=2",
        small=_FOUR,
    ),
    _trained(
        "schedule-cosine",
        "--client-schedule cosine --client-schedule-by round "
        "--client-schedule-option warmup_rounds=1 "
        "--server-schedule cosine --server-schedule-option final_factor=0.2",
        small=_FOUR,
    ),
    _trained(
        "schedule-linear-warmup",
        "--client-schedule linear-warmup --client-schedule-option warmup_rounds=3 "
        "--server-schedule linear-warmup",
        small=_FOUR,
    ),
    _trained(
        "schedule-inverse-sqrt",
        "--client-schedule inverse-sqrt --client-schedule-by local-step --client-optimizer adam "
        "--client-schedule-option decay_rounds=1 --server-schedule inverse-sqrt",
        small=_FOUR,
    ),
)
AGGREGATORS = (
    _trained("aggregator-mean", "--aggregator mean --client-clip-norm 0.5 --record-clients"),
    _trained("aggregator-norm-bound", "--aggregator norm-bound --aggregator-option max_norm=0.05"),
    _continued("aggregator-tff-robust", "--aggregator tff-robust --record-clients", _CLIENTS_CSV),
)

# ---- Who takes part ------------------------------------------------------------------------------

_CLOCK = "--client-speeds 100,20,5 --record-clients"
PARTICIPATION = (
    *(
        _trained(f"sampling-{each}", f"--sampling {each} --record-clients", small=_FOUR)
        for each in ("fixed", "uniform", "with-replacement", "cyclic", "by-size")
    ),
    _trained("sampling-tff", "--sampling tff --seed 5", small=_FOUR),
    _trained("sampling-poisson", "--sampling poisson --clients 0.5 --record-clients", small=_FOUR),
    _trained(
        "participation-dropout", "--client-dropout 0.4 --record-clients", _CLIENTS_CSV, small=_FOUR
    ),
    _trained("participation-skipped-rounds", "--client-dropout 0.5 --min-reports 2", small=_FOUR),
    _trained(
        "participation-deadline",
        f"{_CLOCK} --communication-seconds 0.5 --deadline 8 --sampling uniform",
        _CLIENTS_CSV,
        small=_FOUR,
    ),
    _trained(
        "participation-over-selection",
        f"{_CLOCK} --over-selection 0.7 --sampling uniform",
        _CLIENTS_CSV,
        small=_FOUR,
    ),
    _trained(
        "participation-list", "--clients s0000001,s0000004 --eval-clients @inputs/clients.txt"
    ),
)

# ---- Models --------------------------------------------------------------------------------------

_FILES = "--data inputs/train.h5 --test-data inputs/test.h5 --clients 3 --rounds 2 --epochs 1"
MODELS = (
    _trained("model-softmax-regression", "--model softmax-regression --pixels background"),
    _trained("model-mlp-2nn", "--model mlp-2nn --epochs 2"),
    _trained("model-cnn-mcmahan", "--model cnn-mcmahan --max-examples 40 --eval-clients 1"),
    _trained("model-cnn-reddi", "--model cnn-reddi --max-examples 30 --eval-clients 1"),
    _trained(
        "model-option",
        "--model cnn-reddi --model-option dropout=[0.1,0.6] --server-ema 0.5",
        small=_FILES,
    ),
    _trained("model-lenet5", "--model lenet5 --batch-size 7"),
    _trained("model-leaf-femnist", "--model leaf-femnist --max-examples 10 --eval-clients 1"),
    Configuration(
        "model-colour",
        (
            "preprocess inputs/cifar --partition iid --partition-option clients=4 --out store.h5",
            "train --data store.h5 --model lenet5 --rounds 2 --clients 3 --out run -q",
            EXPORT,
        ),
    ),
    Configuration(
        "model-initial-weights",
        (f"train {SMALL} --initial-weights inputs/softmax.npz --out run -q", EXPORT),
    ),
    Configuration(
        "model-keras-3",
        (
            f"train {_FILES} --model cnn-reddi --out first -q",
            "export first model.keras -q",
            "export first model.weights.h5 -q",
            f"train {_FILES} --model model.keras --out run -q",
            EXPORT,
            f"train {_FILES} --model cnn-reddi --initial-weights model.weights.h5 --out third -q",
        ),
    ),
    _continued("model-keras-2", "--model inputs/model_keras2.h5", small=_FILES),
    _trained("model-keras-fresh", "--model inputs/model_keras2.h5 --fresh-weights", small=_FILES),
    _trained("model-keras-json", "--model inputs/model.json", small=_FILES),
    _continued("model-own-numpy", "", code="inputs/model_numpy.py"),
    _trained("model-own-documented", "--model inputs/model_documented.py:build"),
    _trained(
        "model-own-layers",
        "--model inputs/model_layers.py --model-option filters=6",
        EVAL,
    ),
)

# ---- Data: partitions, formats -------------------------------------------------------------------

_DEALT = {
    "natural": "",
    "iid": "clients=8 seed=3",
    "shards": "clients=8 shards=3",
    "dirichlet-class": "clients=6 alpha=0.3 min_examples=5",
    "dirichlet-client": "clients=7 alpha=0.3",
    "dirichlet-prior": "clients=7 alpha=1",
    "classes-per-client": "clients=8 classes=3",
    "quantity-dirichlet": "clients=6 alpha=0.7 min_examples=5",
    "quantity-lognormal": "clients=8 sigma=1",
    "quantity-linear": "clients=8",
    "quantity-exponential": "clients=5",
    "feature-rotation": "angles=[0,30,90]",
    "feature-noise": "std=0.4",
    "feature-inversion": "share=0.4",
    "label-noise": "rate=0.3 kind=pair",
    "iid+label-noise": "clients=6 rate=0.2",
    "dirichlet-class+feature-rotation+feature-noise": "clients=6 balanced=true seed=9",
}


def _partitions() -> Iterator[Configuration]:
    """Yields each partition, made by `train`, and by `preprocess` with a held-out test split."""
    for name, options in _DEALT.items():
        more = " ".join(f"--partition-option {each}" for each in options.split())
        yield _trained(
            f"partition-{name}",
            f"--partition {name} {more}",
            f"preprocess inputs/train.h5 --out store.h5 --partition {name} {more} --seed 4 "
            "--hold-out within --hold-out-fraction 0.3 -q",
        )


def _formats() -> Iterator[Configuration]:
    """Yields each format: a source is converted to a store, verified, trained on and inspected."""
    sources = {
        "tff-h5": "inputs/train.h5 --test-data inputs/test.h5",
        "tff-sqlite": "inputs/digits.sqlite --min-examples 42",
        "leaf": "inputs/leaf --digits-only --num-classes 12",
        "idx": "inputs/idx --partition shards --partition-option clients=5",
        "npz": "inputs/arrays.npz --label-column y --hold-out central --hold-out-fraction 0.2",
        "csv": "inputs/table.csv --label-column digit --id-column writer --image-shape 8x8 "
        "--hold-out clients --hold-out-fraction 0.3",
        "images": "inputs/by_both --folders client/class --color rgb --size 12x10",
        "cifar": "inputs/cifar --size 16 --partition iid --partition-option clients=4",
    }
    for name, options in sources.items():
        yield Configuration(
            f"format-{name}",
            (f"preprocess {options} --format {name} --out store.h5 -q",),
            (
                "preprocess --verify store.h5 --json",
                "preprocess store.h5 --format store --out dealt.h5 --partition iid "
                "--partition-option clients=4 -q",
                "inspect-clients --data store.h5 --json --csv clients.csv",
                "train --data store.h5 --clients 2 --rounds 2 --epochs 1 --out run -q",
                EXPORT,
            ),
        )


FORMATS = (
    *_formats(),
    Configuration(
        "format-images-by-class",
        (
            "preprocess inputs/by_class --folders class --color grey --invert --centre "
            "--out store.h5 --hold-out within -q",
        ),
    ),
    Configuration(
        "format-images-by-client",
        ("preprocess inputs/by_client --folders client --size 28 --out store.h5 --json",),
    ),
    _trained("format-tff-direct", "--num-classes 11 --pixels ink", small=_FILES),
    _trained("data-skewed", "--data-option sizes=skewed --data-option seed=3"),
)

# ---- Local training, evaluation, the run ---------------------------------------------------------

_EVERY = "--eval-every 1 --eval-clients all"
RUNS = (
    *(
        Configuration(
            f"resume-own-{name}",
            (
                f"train {SMALL} {options} --model mlp-2nn --sampling uniform --out run -q",
                "train --resume run --rounds 4 --threads 1 -q",
                EXPORT,
            ),
        )
        for name, options in {
            "fedadam": "--algorithm fedadam --server-ema 0.5 --client-schedule cosine",
            "scaffold": "--algorithm scaffold --record-clients --csv",
            "tff-robust": "--aggregator tff-robust --server-option momentum=0.9",
        }.items()
    ),
    _trained("local-repeat-shuffle", "--pipeline repeat-shuffle --epochs 3 --shuffle-buffer 30"),
    _trained("local-shuffle-repeat", "--pipeline shuffle-repeat --epochs 3 --shuffle-buffer 30"),
    _trained("local-per-epoch", "--pipeline per-epoch --epochs 3 --shuffle-buffer full"),
    _trained("local-clip-max-examples", "--client-clip-norm 0.3 --max-examples 55 --epochs 4"),
    _trained("server-ema", "--server-ema 0.9 --server-optimizer adam --server-lr 0.01"),
    _trained("weighting-examples", "--client-weighting num-examples --pixels source --csv"),
    _trained("eval-held-out", f"{_EVERY} --eval-split held-out --json"),
    _trained("eval-train", "--eval-every 2 --eval-split train --json"),
    _trained("stop-at", f"{_EVERY} --stop-at accuracy=0.3", small=f"{SMALL} --rounds 12"),
    _trained("patience", f"{_EVERY} --patience 2 --client-lr 0.5", small=f"{SMALL} --rounds 12"),
    _trained(
        "keep-best-accuracy",
        f"{_EVERY} --keep-best accuracy --client-lr 0.4",
        "export run best.npz --best -q",
        "eval run --best --json",
        small=_FOUR,
    ),
    _continued("keep-best-loss", f"{_EVERY} --keep-best loss --keep-checkpoints 1 --client-lr 0.4"),
    Configuration(
        "config-file",
        (
            f"train {SMALL} --server-option momentum=0.5 --out first -q",
            "train --config first/config.toml --seed 3 --out run -q",
            "train --config first/config.toml --out run --force -q",
            EXPORT,
            "report first --config-diff run --json",
        ),
    ),
    *(
        _trained(
            f"threads-{each}",
            f"--threads {each} --model lenet5 --clients 6",
            f"{EVAL} --threads {each}",
        )
        for each in (1, 2, 7)
    ),
    *(
        _trained(f"isa-{isa}-{model}", f"--model {model} --max-examples 30", EVAL, FEDCLI_ISA=isa)
        for isa in ("generic", "avx2", "avx512")
        for model in ("mlp-2nn", "lenet5", "cnn-reddi")
    ),
)

# ---- Presets -------------------------------------------------------------------------------------


def _presets() -> Iterator[Configuration]:
    """Yields each preset, for two rounds on a small file in place of its public data."""
    files = "--data inputs/train.h5 --test-data inputs/test.h5 --rounds 2"
    dealt = "--partition-option clients=12"
    options = {
        "tff-tutorial": "",
        "mcmahan-2017-2nn-iid": dealt,
        "mcmahan-2017-2nn-non-iid": dealt,
        "mcmahan-2017-cnn-iid": f"{dealt} --epochs 1",
        "mcmahan-2017-cnn-non-iid": dealt,
        "reddi-2021-fedadagrad": "--num-classes 62",
        "reddi-2021-fedadam": "--num-classes 62",
        "reddi-2021-fedyogi": "--num-classes 62",
        "reddi-2021-fedavgm": "--num-classes 62",
        "reddi-2021-fedavg": "--num-classes 62",
        "flute-lr-mnist": dealt,
    }
    for name, more in options.items():
        clients = "" if "clients=" in more else "--clients 3"
        yield _trained(f"preset-{name}", f"--preset {name} {clients} {more}", small=files)


# ---- What looks at runs and data -----------------------------------------------------------------

_TO_EVALUATE = f"train {SMALL} --model mlp-2nn --sampling uniform --seed 2 --out run -q"
_RENAMED = "--data inputs/train.h5 --test-data inputs/test.h5"
LOOKS = (
    Configuration(
        "evaluation-kinds",
        (_TO_EVALUATE,),
        (
            f"{EVAL} --by-class --top-k 2 --top-k 3",
            "eval run --clients seen --json",
            "eval run --clients unseen --split train --batch-size 7 --epochs 2 --json",
            "eval run --clients all --per-client clients.csv --json",
            "eval run --clients all --per-client clients.h5 --json",
            "eval run --clients all --predictions predictions.csv --json",
            "eval run --clients all --predictions predictions.npz --json",
            "eval run --data-option clients=4 --data-option seed=8 --data synthetic-digits "
            "--clients all --partition iid --partition-option clients=3 --pixels background --json",
            "eval run/checkpoints/round-000002.h5 --clients all --json",
        ),
    ),
    Configuration(
        "evaluation-fine-tuned",
        (_TO_EVALUATE,),
        (
            "eval run --clients all --finetune 5 --json",
            "eval run --clients all --finetune-epochs 2 --finetune-lr 0.1 "
            "--finetune-batch-size 8 --per-client clients.csv --json",
            "eval run --clients 3 --finetune 3 --finetune-optimizer adam "
            "--finetune-lr 0.01 --finetune-option beta_1=0.5 --threads 2 --json",
        ),
    ),
    Configuration(
        "evaluation-other-data",
        (f"train {_FILES} --out run -q",),
        (
            "eval run --data inputs/test.h5 --clients all --pixels ink --json",
            f"eval run {_RENAMED} --num-classes 10 --partition label-noise --clients all "
            "--pixels source --json",
        ),
    ),
    Configuration(
        "inspection",
        (
            "inspect-clients --data-option clients=6 --pixels source --json --csv clients.csv",
            f"inspect-clients {_RENAMED} --num-classes 10 --pixels background --json "
            "--split train --clients 4",
            "inspect-clients --data inputs/train.h5 --partition shards "
            "--partition-option clients=6 --pixels ink --quick --json",
        ),
    ),
    Configuration(
        "inspection-suspects",
        (
            f"train {_FILES} --model mlp-2nn --rounds 4 --out run -q",
            f"train {_FILES} --model inputs/model_numpy.py --out own -q",
        ),
        (
            "inspect-clients --data inputs/train.h5 --suspects 5 --json --csv images.csv",
            "inspect-clients --run run --suspects 7 --json --csv losses.csv",
            "inspect-clients --run own --model inputs/model_numpy.py --suspects 3 --json",
        ),
    ),
    Configuration(
        "reports",
        (
            f"train {SMALL} --eval-every 1 --record-clients --out a -q",
            f"train {SMALL} --eval-every 1 --record-clients --seed 1 --out b -q",
            f"train {SMALL} --client-lr 0.1 --csv --out c -q",
        ),
        (
            "report a b c --target 0.1 --target 0.3 --json --csv rounds.csv",
            "report a b --clients-csv clients.csv --json",
            "report a --config-diff c --json",
        ),
    ),
)

CONFIGURATIONS: tuple[Configuration, ...] = (
    *ALGORITHMS,
    *_optimizers(),
    *SCHEDULES,
    *AGGREGATORS,
    *PARTICIPATION,
    *MODELS,
    *_partitions(),
    *FORMATS,
    *RUNS,
    *_presets(),
    *LOOKS,
)
