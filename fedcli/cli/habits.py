"""Options and commands as other tools name them: where a usage error points instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# What is said of an option, and the options of fedcli that it names. An entry is passed over where
# the command has none of these.
_CPU = "fedcli computes on the CPU; --threads says on how many of its cores"
_ADVICE: Mapping[str, tuple[str, ...]] = {
    "--client-lr sets the learning rate of clients, --server-lr that of the server": (
        *("lr", "learning-rate", "eta", "local-lr", "client-learning-rate", "lr-local"),
    ),
    "--server-lr sets it": ("server-learning-rate", "global-lr", "lr-server", "eta-g"),
    "--client-option momentum=X sets that of clients, --server-option momentum=X the server's": (
        *("momentum", "client-momentum", "server-momentum"),
    ),
    "--client-option weight_decay=X sets it": ("weight-decay", "wd", "decay"),
    "--client-schedule sets how it falls": ("lr-decay", "lr-schedule", "scheduler", "gamma"),
    _CPU: ("gpu", "gpus", "gpu-id", "num-gpus", "device", "cuda", "use-cuda", "accelerator"),
    "--threads sets how many": (
        *("num-workers", "workers", "n-jobs", "jobs", "num-threads", "cpus", "num-cpus"),
    ),
    "--epochs sets the local epochs of a round": (
        *("local-epochs", "local-epoch", "local-ep", "num-epochs", "local-steps", "epoch"),
        *("client-epochs", "inner-epochs"),
    ),
    "--rounds sets it": (
        *("num-rounds", "n-rounds", "comm-rounds", "comm-round", "communication-rounds"),
        *("global-rounds", "global-epochs", "round", "num-iterations", "iterations"),
    ),
    "--clients says how many take part in a round": (
        *("num-clients", "n-clients", "clients-per-round", "num-users", "users", "num-parties"),
        *("num-client", "client-num-per-round", "total-clients"),
    ),
    "--sampling poisson --clients 0.1 lets each client take part with that chance": (
        *("fraction", "frac", "fraction-fit", "sample-fraction", "participation", "join-ratio"),
    ),
    "--algorithm fedprox --algorithm-option proximal_strength=X sets it": (
        *("mu", "proximal-mu", "prox-mu", "proximal-strength"),
    ),
    "--partition dirichlet-class --partition-option alpha=X sets it": (
        *("alpha", "dirichlet-alpha", "dir-alpha", "beta", "non-iid-alpha"),
    ),
    "--partition says how examples are dealt to clients": (
        *("iid", "noniid", "non-iid", "niid", "partitioner", "split-method"),
    ),
    "--batch-size sets it": ("bs", "batchsize", "batch", "local-bs", "local-batch-size", "b"),
    "--data names it": ("dataset", "dataset-name", "data-path", "data-dir", "datadir", "root"),
    "--algorithm names it": ("strategy", "method", "algo", "alg", "fed-algorithm"),
    "--client-optimizer and --server-optimizer name them": ("optimizer", "optim", "opt"),
    "--aggregator names it": ("agg", "aggregation", "aggregate"),
    "--out names the folder of the run": (
        *("output", "output-dir", "out-dir", "save-dir", "save-path", "log-dir", "logdir"),
        *("results-dir", "run-dir"),
    ),
    "--resume RUN continues a run": ("checkpoint", "ckpt", "load", "resume-from", "restore"),
    "--seed sets it": (
        *("random-seed", "manual-seed", "rng-seed", "random-state", "seed-value", "seeds", "rng"),
        *("torch-seed", "np-seed", "numpy-seed", "global-seed"),
    ),
    "--model names it": ("arch", "net", "network", "model-name"),
    "--model-option dropout=X sets it, for a model that has one": ("dropout",),
    "--client-clip-norm X scales longer gradients": ("clip", "clip-norm", "max-norm", "grad-clip"),
    "--eval-every says how often": ("eval-interval", "test-every", "eval-freq", "eval-gap"),
    "--patience says after how many evaluations": ("early-stopping", "early-stop"),
    "--tensorboard writes event files": ("tb", "wandb", "use-wandb"),
    "-v says more": ("debug", "log-level"),
}

# What other tools call a command, and what people type for one.
COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("evaluate", "test", "score", "predict"), "eval"),
    **dict.fromkeys(("inspect", "clients", "show", "look"), "inspect-clients"),
    **dict.fromkeys(("resume", "continue"), "train --resume RUN"),
    **dict.fromkeys(("plot", "compare", "curves", "results"), "report"),
    **dict.fromkeys(("run", "fit", "start", "simulate"), "train"),
    **dict.fromkeys(("list", "ls", "history"), "runs"),
    **dict.fromkeys(("rm", "remove", "delete", "prune", "purge"), "clean"),
    **dict.fromkeys(("import", "convert", "prepare", "partition", "data"), "preprocess"),
    **dict.fromkeys(("fetch", "get", "datasets"), "download"),
    **dict.fromkeys(("save", "weights"), "export"),
    **dict.fromkeys(("benchmark", "speed"), "bench"),
    **dict.fromkeys(("models", "algorithms", "optimizers", "partitions"), "info"),
    **dict.fromkeys(("man", "manual", "docs", "doc"), "help"),
    "version": "--version",
}


def advice_on(option: str, known: Collection[str]) -> str:
    """Returns what to use for an option that a command does not have; "" where nobody knows.

    Args:
        option: As it was given, with or without dashes.
        known: The options of the command.
    """
    name = option.lstrip("-").replace("_", "-").lower()
    for advice, names in _ADVICE.items():
        if name in names:
            wanted = [word for word in advice.split() if word.startswith("--")]
            return advice if any(each in known for each in wanted) or not wanted else ""
    return ""
