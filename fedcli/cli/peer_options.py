"""Maps names of options and commands in other tools to those of fedcli, for usage errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

# For each hint, the option names of other tools to which it applies. A hint that names options of
# fedcli is skipped if the command lacks one of them.
_CPU = "fedcli computes on the CPU; --threads sets the number of cores"
_ADVICE: Mapping[str, tuple[str, ...]] = {
    "the loss is the cross-entropy of the logits; leave the option out": (
        *("loss", "loss-fn", "loss-function", "criterion", "objective"),
    ),
    "--tensorboard writes event files to the folder of the run, which --out names": (
        *("logdir", "log-dir", "tensorboard-dir", "tb-dir", "tb-logdir"),
    ),
    "--client-lr sets the learning rate of clients, --server-lr that of the server": (
        *("lr", "learning-rate", "eta", "local-lr", "client-learning-rate", "lr-local", "init-lr"),
        *("base-lr", "step-size"),
    ),
    "--server-lr sets it": ("server-learning-rate", "global-lr", "lr-server", "eta-g"),
    "--client-option momentum=X is for the clients, --server-option momentum=X for the server": (
        *("momentum", "client-momentum", "server-momentum", "nesterov"),
    ),
    "--client-weight-decay sets it": ("weight-decay", "wd", "decay", "l2"),
    "--client-schedule changes the learning rate over rounds": (
        *("lr-decay", "lr-schedule", "scheduler", "gamma"),
    ),
    _CPU: (
        *("gpu", "gpus", "gpu-id", "gpu-ids", "num-gpus", "n-gpus", "ngpu", "use-gpu", "no-gpu"),
        *("device", "devices", "cuda", "use-cuda", "no-cuda", "cuda-device", "cuda-id", "mps"),
        *("cpu", "accelerator", "fp16", "amp", "mixed-precision"),
    ),
    "--threads sets the number of threads": (
        *("num-workers", "workers", "n-jobs", "jobs", "num-threads", "cpus", "num-cpus", "nproc"),
        *("n-threads", "threads-num", "num-processes", "processes", "parallel"),
    ),
    "--epochs sets the local epochs of a round": (
        *("local-epochs", "local-epoch", "local-ep", "num-epochs", "local-steps", "epoch", "ep"),
        *("client-epochs", "inner-epochs", "n-epochs", "epochs-per-round", "train-epochs", "e"),
        *("client-epochs-per-round", "client-epochs-per-iteration"),
        *("epochs-local", "num-local-epochs", "max-epochs", "local-iters", "local-iterations"),
    ),
    "--rounds sets the number of rounds": (
        *("num-rounds", "n-rounds", "comm-rounds", "comm-round", "communication-rounds", "t"),
        *("global-rounds", "global-epochs", "round", "num-iterations", "iterations", "n-iter"),
        *("total-rounds", "max-rounds", "server-rounds", "fl-rounds", "num-global-rounds"),
    ),
    "--clients says how many take part in each of the --rounds": (
        *("num-clients", "n-clients", "clients-per-round", "num-users", "users", "num-parties"),
        *("num-client", "client-num-per-round", "total-clients", "clients-num", "n-parties", "k"),
        *("num-participants", "num-devices", "num-selected", "client-num-in-total", "n-users"),
    ),
    "--partition iid --partition-option clients=N divides the examples among N clients": (
        *("num-clients", "n-clients", "num-users", "users", "num-parties", "num-client", "clients"),
        *("total-clients", "clients-num", "n-parties", "num-devices", "num-partitions", "n-users"),
    ),
    "--sampling poisson --clients 0.1 lets each client take part with probability 0.1": (
        *("fraction", "frac", "fraction-fit", "sample-fraction", "participation", "join-ratio"),
        *("client-fraction", "sample-ratio", "sample-rate", "sampling-rate", "client-ratio", "c"),
        *("participation-rate", "frac-clients"),
    ),
    "--algorithm fedprox --algorithm-option proximal_strength=X sets it": (
        *("mu", "proximal-mu", "prox-mu", "proximal-strength"),
    ),
    "--partition dirichlet-class --partition-option alpha=X sets it": (
        *("alpha", "dirichlet-alpha", "dir-alpha", "beta", "non-iid-alpha", "dirichlet"),
    ),
    "--partition says how examples are divided among clients": (
        *("iid", "noniid", "non-iid", "niid", "partitioner", "split-method", "shards", "dist"),
        *("num-shards", "classes-per-client", "shard-per-user", "heterogeneity"),
    ),
    "--batch-size sets it": (
        *("bs", "batchsize", "batch", "local-bs", "local-batch-size", "b", "client-batch-size"),
        *("train-batch-size", "mini-batch-size", "minibatch", "batch-sz", "per-device-batch-size"),
    ),
    "--data names the data": (
        *("dataset", "dataset-name", "data-path", "data-dir", "datadir", "root", "data-name"),
        *("input", "data-file", "data-folder", "dataset-path", "train-data", "train-file", "train"),
    ),
    "--test-data names it": ("test", "test-file", "test-set", "test-path", "test-dir"),
    "--validation 0.1 holds out a share of each client's train examples": (
        *("val-split", "validation-split", "val-size", "val-ratio", "val-fraction"),
    ),
    "--hold-out within:0.1 holds out a tenth of each client's examples": (
        *("val-split", "test-split", "validation-split", "val-size", "test-size", "val-ratio"),
        *("test-ratio", "train-ratio", "split-ratio", "ratio", "train-size", "train-fraction"),
    ),
    "--algorithm names it": (
        *("strategy", "method", "algo", "alg", "fed-algorithm", "fl-algorithm", "algorithm-name"),
    ),
    "--client-optimizer and --server-optimizer name them": ("optimizer", "optim", "opt"),
    "--aggregator names it": ("agg", "aggregation", "aggregate"),
    "--out names the folder of the run": (
        *("output", "output-dir", "out-dir", "save-dir", "save-path", "save"),
        *("results-dir", "run-dir", "save-model", "output-path", "exp-name", "run-name", "name"),
        *("experiment", "exp"),
    ),
    "--resume RUN continues a run": ("checkpoint", "ckpt", "load", "resume-from", "restore"),
    "--initial-weights gives the initial weights": ("pretrained", "weights", "init-weights"),
    "fedcli sweep trains with several seeds or settings": (
        *("seeds", "grid", "multirun", "sweep", "grid-search"),
    ),
    "--seed sets it": (
        *("random-seed", "manual-seed", "rng-seed", "random-state", "seed-value", "rng"),
        *("torch-seed", "np-seed", "numpy-seed", "global-seed", "seed-all", "seed-everything"),
    ),
    "--model names it": ("arch", "net", "network", "model-name"),
    "--model-option dropout=X sets it, if the model has this option": ("dropout",),
    "--client-clip-norm X scales gradients down to the norm X if they are longer": (
        *("clip", "clip-norm", "max-norm", "grad-clip"),
    ),
    "--eval-every says after how many rounds to evaluate": (
        *("eval-interval", "test-every", "eval-freq", "eval-gap", "test-interval", "log-interval"),
    ),
    "--patience says after how many evaluations without gain to stop": (
        *("early-stopping", "early-stop"),
    ),
    "--stop-at METRIC=VALUE ends the run at a target": ("target", "target-accuracy", "goal"),
    "--tensorboard writes event files": ("tb", "wandb", "use-wandb"),
    "--label-column names it": (
        *("label", "labels", "label-col", "label-key", "target", "target-column", "class-column"),
    ),
    "--id-column names it": (
        *("id", "client-id", "client-column", "user-column", "owner-column", "group", "id-col"),
        *("writer-column", "group-column", "user-id", "client-key"),
    ),
    "--file-column names it": ("image-column", "filename-column", "path-column", "file-col"),
    "--splits train=NAME,test=NAME names the splits": ("split", "train-folder", "split-column"),
    "--folders says what folders mean": ("layout", "folder-structure", "structure"),
    "--size resizes all images": ("resize", "img-size", "image-size", "im-size", "imsize"),
    "--image-shape gives the shape of images in flat rows": (
        "shape",
        "input-shape",
        "img-shape",
        "image-dims",
    ),
    "--color grey or --color rgb converts all images": (
        *("gray", "grey", "grayscale", "greyscale", "rgb", "channels", "num-channels", "mode"),
    ),
    "--pixel-range gives the range of the pixels": (
        *("normalize", "normalise", "normalization", "scale", "rescale", "max-pixel"),
    ),
    "--invert does it": ("inverse", "invert-colors", "negate"),
    "fedcli preprocess SOURCE makes a store of any data and has options for that": (
        *("label", "label-col", "label-column", "id-column", "img-size", "image-size"),
        *("resize", "size", "image-shape", "grayscale", "color", "normalize", "normalise"),
        *("val-split", "test-split", "validation-split", "val-size", "test-size", "folders"),
    ),
    "fedcli reads ahead by itself; leave the option out": (
        *("prefetch", "num-prefetch", "prefetch-buffer", "num-parallel-calls"),
    ),
    "--max-examples sets it": (*("take", "max-elements", "max-elements-per-client"),),
    "-v prints more": ("debug", "log-level"),
}

# For each name that other tools or users give to a command, the command in fedcli.
COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("evaluate", "evaluation", "test", "score", "validate", "metrics"), "eval RUN"),
    **dict.fromkeys(("predict", "predictions", "infer"), "eval RUN --predictions FILE.csv"),
    **dict.fromkeys(("finetune", "fine-tune", "personalize"), "eval RUN --finetune K"),
    **dict.fromkeys(("inspect", "clients", "show", "look", "stats"), "inspect-clients"),
    **dict.fromkeys(("tutorial", "quickstart", "examples", "example", "demo"), "help tutorial"),
    **dict.fromkeys(("tensorboard", "tb"), "train --tensorboard"),
    **dict.fromkeys(("resume", "continue"), "train --resume RUN"),
    **dict.fromkeys(("plot", "compare", "curves", "results", "summary", "visualize"), "report"),
    **dict.fromkeys(("multirun", "grid", "study", "search", "tune", "hpo"), "sweep"),
    **dict.fromkeys(("run", "fit", "start", "simulate"), "train"),
    **dict.fromkeys(("list", "ls", "history"), "runs"),
    **dict.fromkeys(("rm", "remove", "delete", "prune", "purge"), "clean"),
    **dict.fromkeys(("import", "convert", "prepare", "partition", "data"), "preprocess"),
    **dict.fromkeys(("fetch", "get", "datasets"), "download"),
    **dict.fromkeys(("attack", "attacks", "privacy"), "audit"),
    **dict.fromkeys(("save", "weights"), "export"),
    **dict.fromkeys(("benchmark", "speed"), "bench"),
    **dict.fromkeys(("models", "algorithms", "optimizers", "partitions"), "info"),
    **dict.fromkeys(("man", "manual", "docs", "doc"), "help"),
    "version": "--version",
}


def advice_on(option: str, known: Collection[str]) -> str:
    """Returns a hint for an option that a command does not have; "" if there is no hint.

    Args:
        option: The option as the user gave it, with or without dashes.
        known: The options of the command.
    """
    name = option.lstrip("-").replace("_", "-").lower()
    for advice, names in _ADVICE.items():
        options = [word for word in advice.split() if word.startswith("--")]
        if name in names and all(each in known for each in options):
            return advice
    return ""


def advice_on_argument(
    word: str, before: str | None, flags: Collection[str], known: Collection[str]
) -> str:
    """Returns a hint for an argument that a command does not take; "" if there is no hint.

    Args:
        word: The argument.
        before: The word before it on the command line; None if it is the first.
        flags: The options of the command that take no value.
        known: All options of the command.
    """
    if before in flags:
        return f"{before} takes no value"
    if "--config" in known and word.endswith(".toml"):
        return f"write --config {word}"
    try:
        return _advice_on_path(word, known)
    except OSError:  # the name is too long, or a folder may not be entered
        return ""


def _advice_on_path(word: str, known: Collection[str]) -> str:
    """See `advice_on_argument`; the argument may be a run or data."""
    from fedcli.runs.files.folder import looks_like_run
    from fedcli.settings import tables

    if looks_like_run(Path(word)):
        options = {"--resume": "to continue the run", "--run": "for the run"}
        return next((f"{why}, write {o} {word}" for o, why in options.items() if o in known), "")
    is_data = word in tables.DATASETS or Path(word).exists()
    return f"write --data {word}" if "--data" in known and is_data else ""
