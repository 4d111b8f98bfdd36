"""Python started in a checkout imports the sources there, which may not be compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import fedcli


def test_sources_that_are_not_compiled_say_what_to_do(tmp_path: Path) -> None:
    package = Path(fedcli.__file__).parent
    shutil.copytree(
        package, tmp_path / "fedcli", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-m", "fedcli", "info"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"fedcli: error: {tmp_path / 'fedcli'} is a source folder in which fedcli was not "
        "compiled, and Python found it before an installed fedcli; start Python in another "
        "folder, or run pip install -e . here\n"
    )
