"""The table of metrics that an evaluation computes on request, beside loss and accuracy."""

from __future__ import annotations

from collections.abc import Iterable

from fedcli.dataclass import dataclass
from fedcli.settings.options import Entry, split_code, table
from fedcli.settings.vocabulary import MEASURES


@dataclass(frozen=True)
class MetricEntry(Entry):
    """A metric.

    Attributes:
        more_is_better: Whether a larger value is better.
    """

    more_is_better: bool = True


_OF_CLASSES = "the classes that occur among labels or predictions"
_F1 = (
    "the harmonic mean of a class's precision and recall, 2 right / (predicted + labelled)",
    "van Rijsbergen 1979, Information Retrieval, chapter 7",
)
_PRECISION = "a class's precision, the share of correct ones among its predictions"
_RECALL = "a class's recall, the share of its examples that are predicted as this class"
_SOURCE = "Sokolova and Lapalme 2009, Information Processing and Management 45(4)"

METRICS = table(
    MetricEntry("macro_precision", f"Mean of {_PRECISION}, over {_OF_CLASSES}.", _SOURCE),
    MetricEntry("macro_recall", f"Mean of {_RECALL}, over {_OF_CLASSES}.", _SOURCE),
    MetricEntry("macro_f1", f"Mean of F1, {_F1[0]}, over {_OF_CLASSES}.", _F1[1]),
    MetricEntry(
        "weighted_precision",
        f"Mean of {_PRECISION}; classes are weighted by their numbers of examples.",
        _SOURCE,
    ),
    MetricEntry(
        "weighted_recall",
        f"Mean of {_RECALL}; classes are weighted by their examples, so it equals accuracy.",
        _SOURCE,
    ),
    MetricEntry(
        "weighted_f1",
        f"Mean of F1, {_F1[0]}; classes are weighted by their numbers of examples.",
        _F1[1],
    ),
    MetricEntry(
        "balanced_accuracy",
        f"Mean of {_RECALL}, over the classes that occur among labels.",
        "Brodersen et al. 2010, The Balanced Accuracy and Its Posterior Distribution, ICPR",
    ),
    MetricEntry(
        "auc",
        "Area under the ROC curve: how often an example of a class gets a higher probability of "
        "that class than an example of another class; ties count half. Mean over the classes, "
        "each against the rest. With two classes: the area of class 1.",
        "Hanley and McNeil 1982, Radiology 143(1); Provost and Domingos 2000, CeDER IS-00-04",
    ),
    MetricEntry(
        "ece",
        "Expected calibration error: examples are put into 15 equal bins by the probability of "
        "the predicted class. The mean distance between a bin's accuracy and its mean "
        "probability, weighted by the number of examples.",
        "Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, eq. 3",
        more_is_better=False,
    ),
    family="metric",
)

# The metrics by which rounds can be ranked, with their names in metrics.jsonl. A user's own metrics
# come after them; see `own_names`.
SELECTION_METRICS = {**MEASURES, **{name: name for name in METRICS}}


def key_of(measure: str) -> str:
    """Returns the name of a metric in metrics.jsonl; for a user's own metric its short name."""
    return SELECTION_METRICS.get(measure, measure)


def more_is_better(measure: str) -> bool:
    """Returns whether a larger value of a metric is better; true for every user's own metric."""
    return METRICS[measure].more_is_better if measure in METRICS else measure != "loss"


def short_name(name: str) -> str:
    """Returns a metric's name in results: NAME for FILE.py:NAME, else the name itself."""
    parts = split_code(name)
    return name if parts is None else parts[1] or name


def own_names(names: Iterable[str] | None) -> list[str]:
    """Returns the short names of those metrics that are a user's own, in order."""
    return [short_name(name) for name in names or () if name not in METRICS]
