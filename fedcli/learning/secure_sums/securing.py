"""Chooses how an aggregator gets secure sums instead of individual updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedcli.learning.aggregators.centers import CenteredClipping, GeometricMedian
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.aggregators.order_statistics import SignMajority
from fedcli.learning.aggregators.pre_aggregation import PreAggregated
from fedcli.learning.aggregators.private import PrivateMean
from fedcli.learning.masked_sums import SumOptions
from fedcli.learning.secure_sums.buckets import SecureBuckets
from fedcli.learning.secure_sums.one_sum import (
    AllCoordinates,
    Multiples,
    SecureSum,
    SomeCoordinates,
    SumCode,
)
from fedcli.learning.secure_sums.steps import SecureSteps
from fedcli.learning.updates.compression import RandomCoordinates, SharedSteps


def secured(inner: Aggregator, options: SumOptions, code: SumCode) -> Aggregator:
    """Returns an aggregator that computes the same rule from secure sums of the updates.

    Args:
        inner: The aggregator.
        options: The options of the sums.
        code: Which numbers clients send to an aggregator that needs only the sum.
    """
    if isinstance(inner, GeometricMedian | CenteredClipping | SignMajority):
        return SecureSteps(inner, options)
    if isinstance(inner, PreAggregated):
        return SecureBuckets(inner, options)
    is_private = isinstance(inner, PrivateMean)
    return SecureSum(inner, replace(options, sends_zeros=is_private), code)


def code_of(compress: str | None, options: Mapping[str, Any]) -> SumCode | None:
    """Returns which numbers clients send; None if the compression stage computes the sum.

    Args:
        compress: The name of the compression, or None.
        options: Its options.
    """
    if compress is None:
        return AllCoordinates()
    if compress == "random-k":
        return SomeCoordinates(RandomCoordinates(float(options["fraction"])))
    if compress == "fixed-step":
        return Multiples(SharedSteps(float(options["step"]), int(options["bits"])))
    return None
