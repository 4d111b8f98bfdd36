"""The words that several options share: their allowed values and limits.

Imports nothing, so that every room from the settings up can use the same names.
"""

from __future__ import annotations

PIXEL_CONVENTIONS = ("ink", "background")  # what 1.0 means
PIXELS = ("source", *PIXEL_CONVENTIONS)
STANDARDISED = "standardised"  # pixels less their mean, over their deviation: kept as they are
# From what to what pixels go in a source of images.
PIXEL_RANGES = ("0-1", "0-15", "0-16", "0-255", "0-4095", "0-65535", STANDARDISED)
PIPELINES = ("repeat-shuffle", "shuffle-repeat", "per-epoch")
SAMPLINGS = ("fixed", "uniform", "tff", "with-replacement", "poisson", "cyclic", "by-size")
HOLD_OUTS = ("within", "clients", "central")  # how a split is made of train
VALIDATION = "validation"
SPLITS = ("train", "test", VALIDATION)  # whose clients take part in the federation
EVAL_SPLITS = ("train", "held-out", VALIDATION)
WEIGHTINGS = ("num-examples", "uniform")
BALANCED = "balanced"  # class weights that follow from how often the classes occur
NATURAL = "natural"  # the partition that leaves the examples with their own clients
MAX_CLASSES = 1_000_000
MAX_THREADS = 1024  # as the core has it (FED_MAX_THREADS)

CONSTANT = "constant"  # the learning-rate schedule that is used unless another is named
# What the index of a learning-rate schedule counts.
BY_ROUND, BY_LOCAL_STEP = COUNTED = ("round", "local-step")

# The measures that rank rounds, with their names in metrics.jsonl.
ACCURACY = "accuracy"
MEASURES = {"loss": "loss", ACCURACY: "sparse_categorical_accuracy"}
# The splits that a model is tested on: the first of these that exists.
HELD_OUT = ("test", "central")
# The split that ranks the rounds of a run: the first of these that exists. Test data choose nothing
# where there are validation data.
JUDGES = (VALIDATION, *HELD_OUT, "train")
