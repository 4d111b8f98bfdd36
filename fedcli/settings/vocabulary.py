"""Words and limits that several options share.

Imports nothing, so that every package from the settings up can use the same names.
"""

from __future__ import annotations

PIXEL_CONVENTIONS = ("ink", "background")  # the meaning of the pixel value 1.0
PIXELS = ("source", *PIXEL_CONVENTIONS)
COLORS = ("grey", "rgb")  # to which pictures can be converted
STANDARDISED = "standardised"  # pixels minus their mean, divided by their deviation; kept unchanged
# Ranges of pixel values in a source of images.
PIXEL_RANGES = ("0-1", "0-15", "0-16", "0-255", "0-4095", "0-65535", STANDARDISED)
FROZEN = "frozen"
LOCAL_STATISTICS, LOCAL_LAYERS = "local-statistics", "local-layers"
LOCAL_NORMS = (LOCAL_STATISTICS, LOCAL_LAYERS)  # what each client keeps of batch norms
BATCH_NORMS = ("average", *LOCAL_NORMS, FROZEN)  # what happens to the moving statistics
PIPELINES = ("repeat-shuffle", "shuffle-repeat", "per-epoch")
SAMPLINGS = ("fixed", "uniform", "tff", "with-replacement", "poisson", "cyclic", "by-size")
HOLD_OUTS = ("within", "clients", "central")  # ways to hold out a split from train
VALIDATION = "validation"
SPLITS = ("train", "test", VALIDATION)  # splits whose examples belong to clients
WITHOUT_TRAIN = "without-train"  # each evaluated split except train, also at the end of a run
EVAL_SPLITS = ("train", "held-out", VALIDATION, WITHOUT_TRAIN)
WEIGHTINGS = ("num-examples", "uniform")
BALANCED = "balanced"  # class weights that follow from how often the classes occur
NONE = "none"  # in place of a name: the option is not set
NATURAL = "natural"  # the partition that leaves the examples with their own clients
MAX_CLASSES = 1 << 20
MIN_VALIDATION, MAX_VALIDATION = 0.001, 0.9  # share of each client's examples
MAX_SMOOTHING = 0.999  # of labels: the share that is divided among all classes
MAX_THREADS = 1024  # FED_MAX_THREADS of the core

# The formats of files of weights, each with the suffixes of its files' names.
WEIGHTS_FORMATS = {
    "npz": (".npz",),
    "keras": (".keras",),
    "weights.h5": (".weights.h5",),
    "torch": (".pt", ".pth"),
}

AUTO = "auto"  # a number that fedcli computes
OMNISCIENT, COLLUDERS = "omniscient", "colluders"  # what attackers know
BUCKET_JOINT = "+"  # between the ids of the clients of a bucket

CONSTANT = "constant"  # the default learning-rate schedule
# What the index of a learning-rate schedule counts.
BY_ROUND, BY_LOCAL_STEP = COUNTED = ("round", "local-step")

# The measures that rank rounds, with their names in metrics.jsonl.
ACCURACY = "accuracy"
MEASURES = {"loss": "loss", ACCURACY: "sparse_categorical_accuracy"}
# A model is tested on the first of these splits that exists.
HELD_OUT = ("test", "central")
# The rounds of a run are ranked by the first of these splits that exists. If there are validation
# data, test data decide nothing.
SELECTION_SPLITS = (VALIDATION, *HELD_OUT, "train")
