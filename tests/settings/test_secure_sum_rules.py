"""Which options work with `--secure-sum`, as the design lists them, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from fedcli import settings
from fedcli.errors import ConfigError
from fedcli.settings import tables

SECURE: dict[str, Any] = {"secure_sum": True}
MEDIAN = {"aggregator": "geometric-median", "aggregator_options": {"start": "mean"}}
PRIVATE = {"dp": "gaussian", "dp_options": {"noise_multiplier": 1.0}, "sampling": "poisson"}


@pytest.mark.parametrize(
    "values",
    [
        {"aggregator": "norm-bound"},
        {"aggregator": "tff-robust"},
        {"aggregator": "centered-clipping"},
        {"aggregator": "sign-majority"},
        MEDIAN,
        *({"pre_aggregator": "bucketing", "aggregator": rule} for rule in ("krum", "median")),
        *({"compress": each} for each in ("fixed-step", "random-k", "powersgd", "sketch")),
        {"compress": "random-k", "aggregator": "norm-bound"},
        PRIVATE,
        {**PRIVATE, "compress": "random-k"},
        {**PRIVATE, "client_dropout": 0.2, "secure_sum_options": {"threshold": 0.0}},
    ],
)
def test_what_needs_only_sums_is_accepted(values: dict[str, Any]) -> None:
    assert settings.from_options({**SECURE, **values}).secure_sum


SINGLE = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan", "mda", "meamed", "dnc")


@pytest.mark.parametrize("aggregator", [*SINGLE, "foolsgold", "fltrust"])
def test_rules_of_single_updates_are_refused(aggregator: str) -> None:
    with pytest.raises(ConfigError, match="needs the individual updates"):
        settings.from_options({**SECURE, "aggregator": aggregator})


@pytest.mark.parametrize("compress", ["top-k", "qsgd", "drive", "eden", "uniform", "sign"])
def test_codes_that_cannot_be_added_are_refused(compress: str) -> None:
    assert compress in tables.COMPRESSORS
    with pytest.raises(ConfigError, match="cannot be added; choose one of fixed-step"):
        settings.from_options({**SECURE, "compress": compress})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"pre_aggregator": "nnm"},
            "pre-aggregator nnm with --secure-sum: it needs the individual",
        ),
        ({"pre_aggregator": "arc"}, "choose bucketing"),
        (
            {"pre_aggregator": "bucketing", "pre_aggregator_options": {"size": 1}},
            "one client is its update",
        ),
        ({"aggregator": "geometric-median"}, "give --aggregator-option start=mean"),
        ({**MEDIAN, "secure_sum_options": {"bound": 1.0}}, "which sets its own bound"),
        ({"compress": "powersgd", "aggregator": "norm-bound"}, "choose --aggregator mean"),
        ({"compress": "random-k", **MEDIAN}, "decodes only the sum of the updates"),
        ({"compress": "sketch", "pre_aggregator": "bucketing"}, "--pre-aggregator bucketing"),
        ({**PRIVATE, "client_dropout": 0.2}, "and then no client counts"),
        ({**PRIVATE, "deadline": 3.0}, "give --secure-sum-option threshold=0"),
        ({**PRIVATE, "compress": "powersgd"}, "decoded together with"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings.from_options({**SECURE, **values})


@pytest.mark.parametrize("options", [{"bits": 33}, {"bit": 3}, {"rounding": "up"}])
def test_errors_name_only_what_a_user_types(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.from_options({**SECURE, "secure_sum_options": options})
    assert str(caught.value).startswith("--secure-sum-option: --secure-sum ")
    assert "pairwise-masks" not in str(caught.value)
