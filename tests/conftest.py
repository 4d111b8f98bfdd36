"""Fixtures of all tests: the seed and data beside the checkout; and hypothesis profiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest_plugins = [
    *("tests.kit.command_line", "tests.kit.misbehaving_server", "tests.kit.special_files")
]

SEED = int(os.environ.get("FEDCLI_TEST_SEED", "42"))
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# There is no deadline, because a slow or busy machine is not a failure.
PATIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("ci", derandomize=True, **PATIENT)
hypothesis.settings.register_profile("local", **PATIENT)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_report_header() -> str:
    return f"fedcli: FEDCLI_TEST_SEED={SEED}, FEDCLI_ISA={os.environ.get('FEDCLI_ISA', 'widest')}"


@pytest.fixture
def seed() -> int:
    """The seed of all random numbers of a test; FEDCLI_TEST_SEED sets another."""
    return SEED


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that use it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA
