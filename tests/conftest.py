"""What all tests share: the seed, data that may stand beside the checkout, hypothesis profiles."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["tests.kit.command_line", "tests.kit.misbehaving_server"]

SEED = int(os.environ.get("FEDCLI_TEST_SEED", "42"))
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# A slow or busy machine is not a failure, hence no deadline.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_report_header() -> str:
    return f"fedcli: FEDCLI_TEST_SEED={SEED}, FEDCLI_ISA={os.environ.get('FEDCLI_ISA', 'widest')}"


@pytest.fixture
def seed() -> int:
    """The seed of whatever a test draws; FEDCLI_TEST_SEED sets another."""
    return SEED


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; a test that asks for it skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA
