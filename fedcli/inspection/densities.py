"""The density of images under each label, estimated from running sums in pure NumPy.

Images are vectors of features, projected on their first principal components. In this space each
label has a multivariate Student t density with the label's mean and covariance. The covariance is
mixed with the pooled covariance of all labels; the fewer examples a label has, the larger is the
pooled share. This is regularized discriminant analysis (Friedman, "Regularized Discriminant
Analysis", JASA 1989) with the tails of Lange, Little and Taylor ("Robust Statistical Modeling Using
the t Distribution", JASA 1989). Unlike these papers, we tune and iterate nothing: components,
mixing and degrees of freedom are constants, and means and covariances are the ordinary ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass

MAX_COMPONENTS = 50
EXAMPLES_PER_COMPONENT = 10  # number of examples for each component that is used
MIXED_PER_COMPONENT = 5.0  # weight of the pooled covariance, in examples per component
RIDGE = 1e-3  # share of the mean variance of the components that is added to every variance
TAIL = 10.0  # degrees of freedom
MIN_RIVAL_EXAMPLES = 5  # a label with fewer examples is not proposed for examples of other labels

_LEAST_VARIANCE = 1e-6  # share of the total variance; a smaller component is rounding error
_LEAST_REST = 1e-6  # lower bound of a distance's denominator, against rounding errors
_ROUNDING = 1e-18  # share of the squared features; a smaller variance counts as 0

Matrix = NDArray[np.float64]


class Moments:
    """Counts, sums and sums of products of each label's features."""

    def __init__(self, num_labels: int, num_features: int) -> None:
        """Starts without examples."""
        self.counts = np.zeros(num_labels, np.int64)
        self.sums = np.zeros((num_labels, num_features))
        self.products = np.zeros((num_labels, num_features, num_features))
        self.origin = np.zeros(num_features)  # subtracted from features, against cancellation

    def add(self, features: Matrix, labels: NDArray[np.int64]) -> None:
        """Adds features [n, num_features] of examples with labels [n]."""
        if not len(labels):
            return
        if not self.counts.any():
            self.origin = features[0].copy()
        for label in np.unique(labels):
            chosen = features[labels == label] - self.origin
            self.counts[label] += len(chosen)
            self.sums[label] += chosen.sum(axis=0)
            self.products[label] += chosen.T @ chosen


@dataclass(frozen=True, eq=False)
class LabelScores:
    """The results of the densities for some examples.

    Attributes:
        scores: Log density under the best other label minus that under the own label, in nats: [n].
        likelier: The best other label, int64 [n]; the own label if there is none.
        distances: Mean squared distance from the nearest label in standard deviations, about 1
            for an ordinary example: [n].
    """

    scores: Matrix
    likelier: NDArray[np.int64]
    distances: Matrix


@dataclass(frozen=True, eq=False)
class Densities:
    """One density for each label; see `fit`. Arrays are float64 unless stated otherwise.

    Attributes:
        counts: Number of examples of each label, int64 [num_labels].
        centre: Mean of all features, [num_features].
        basis: The q principal components, [num_features, q].
        rest: Mean variance of the features outside the components.
        means: Projected means, [num_labels, q].
        whiteners: Whitening matrices, [num_labels, q, q]; a projected row times its
            label's matrix has unit covariance.
        log_dets: Logarithms of the determinants of the covariances, [num_labels].
    """

    counts: NDArray[np.int64]
    centre: Matrix
    basis: Matrix
    rest: float
    means: Matrix
    whiteners: Matrix
    log_dets: Matrix

    def score(
        self, features: Matrix, labels: NDArray[np.int64], is_member: NDArray[np.bool_]
    ) -> LabelScores:
        """Compares the density of examples under their labels with that under other labels.

        The mean and covariance of an example's own label are estimated without the example itself.
        The score is 0 if no other example has its label, or no other label has
        `MIN_RIVAL_EXAMPLES`.

        Args:
            features: [n, num_features].
            labels: [n].
            is_member: Whether the densities were estimated with each example, [n].
        """
        rows = np.arange(len(labels))
        centred = features - self.centre
        projected = centred @ self.basis
        squared = self._squared_distances(projected)
        others = self.counts[labels] - is_member
        num_components = projected.shape[1]
        squared[rows, labels] = _without_itself(
            squared[rows, labels], self.counts[labels], is_member, num_components
        )
        logs = -0.5 * ((TAIL + num_components) * np.log1p(squared / TAIL) + self.log_dets)
        own = logs[rows, labels]
        logs[:, self.counts < MIN_RIVAL_EXAMPLES] = -np.inf
        logs[rows, labels] = -np.inf
        likelier = logs.argmax(axis=1)
        best = logs[rows, likelier]
        is_judged = np.isfinite(best) & (others > 0)
        return LabelScores(
            np.where(is_judged, np.where(is_judged, best, 0.0) - own, 0.0),
            np.where(is_judged, likelier, labels),
            self._mean_distances(centred, projected, squared),
        )

    def _squared_distances(self, projected: Matrix) -> Matrix:
        """Squared Mahalanobis distance from each label, [n, num_labels]."""
        squared = np.zeros((len(projected), len(self.counts)))
        for label in np.flatnonzero(self.counts):
            whitened = (projected - self.means[label]) @ self.whiteners[label]
            squared[:, label] = np.einsum("ij,ij->i", whitened, whitened)
        return squared

    def _mean_distances(self, centred: Matrix, projected: Matrix, squared: Matrix) -> Matrix:
        """Squared distance to the nearest label plus that to the components' space, per feature."""
        nearest = squared[:, self.counts > 0].min(axis=1)
        if self.rest > 0.0:
            left = np.einsum("ij,ij->i", centred, centred)
            left -= np.einsum("ij,ij->i", projected, projected)
            nearest = nearest + np.maximum(left, 0.0) / self.rest
        distances: Matrix = nearest / centred.shape[1]
        return distances


def fit(moments: Moments) -> Densities:
    """Returns the densities for the moments of at least one example. It is deterministic."""
    counts, num_examples = moments.counts, int(moments.counts.sum())
    centre = moments.sums.sum(axis=0) / num_examples
    covariance = moments.products.sum(axis=0) / num_examples - np.outer(centre, centre)
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    num_components = _num_components(variances, num_examples, moments.origin + centre)
    basis = vectors[:, :num_components]
    left = variances[num_components:]
    held = np.maximum(counts, 1)[:, None]
    means = (moments.sums / held - centre) @ basis
    covariances = basis.T @ (moments.products / held[..., None]) @ basis
    offsets = means + centre @ basis
    covariances -= offsets[:, :, None] * offsets[:, None, :]
    ridge = RIDGE * float(variances[:num_components].mean()) if num_components else 0.0
    covariances += ridge * np.eye(num_components)
    pooled = np.tensordot(counts / num_examples, covariances, axes=1)
    mixed = MIXED_PER_COMPONENT * num_components
    shares = (counts / np.maximum(counts + mixed, 1.0))[:, None, None]
    factors = np.linalg.cholesky(shares * covariances + (1.0 - shares) * pooled)
    return Densities(
        counts=counts,
        centre=moments.origin + centre,
        basis=basis,
        rest=max(0.0, float(left.mean())) if len(left) else 0.0,
        means=means,
        whiteners=np.linalg.inv(factors).transpose(0, 2, 1),
        log_dets=2.0 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1),
    )


def _without_itself(
    squared: Matrix, counts: NDArray[np.int64], is_member: NDArray[np.bool_], num_components: int
) -> Matrix:
    """Squared distances [n] from the own label, estimated without the example itself.

    The difference from the mean grows by the factor n / (n - 1), and the covariance loses one
    product (Sherman and Morrison 1950); the pooled covariance is not corrected. Without this
    correction a single outlier would determine the covariance of its label.
    """
    factors = np.where(is_member & (counts > 1), counts / np.maximum(counts - 1, 1), 1.0)
    weights = np.maximum(counts + MIXED_PER_COMPONENT * num_components, 1.0)
    shares = np.where(is_member, factors / weights, 0.0)
    distances: Matrix = factors**2 * squared / np.maximum(1.0 - shares * squared, _LEAST_REST)
    return distances


def _num_components(variances: Matrix, num_examples: int, centre: Matrix) -> int:
    """The number of components to use, given variances [d], greatest first."""
    total = float(variances.sum())
    if total <= _ROUNDING * (1.0 + float(centre @ centre)):
        return 0
    num_real = int(np.count_nonzero(variances > _LEAST_VARIANCE * total))
    return min(num_real, MAX_COMPONENTS, max(1, num_examples // EXAMPLES_PER_COMPONENT))
