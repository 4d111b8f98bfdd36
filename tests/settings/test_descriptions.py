"""Descriptions in `fedcli info`: audits, and parts of robust, private and compressed rounds."""

from __future__ import annotations

import pytest

from fedcli.settings import tables
from fedcli.settings.options import Entry
from fedcli.settings.tables.audits import AUDITS
from fedcli.settings.tables.privacy import PRIVACY

TABLES = (
    *(tables.AGGREGATORS, tables.PRE_AGGREGATORS, tables.ATTACKS, tables.COMPRESSORS),
    *(tables.SECURE_SUMS, PRIVACY, AUDITS),
)


@pytest.mark.parametrize("entry", [each for table in TABLES for each in table.values()])
def test_each_entry_has_its_source_requirement_and_cost(entry: Entry) -> None:
    assert entry.source
    assert entry.requirement
    assert entry.cost
