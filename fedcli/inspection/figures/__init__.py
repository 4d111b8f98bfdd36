"""Figures of clients: examples, label counts, mean images, labels by client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.inspection.figures.writing import FORMATS as FORMATS
    from fedcli.inspection.figures.writing import require as require
    from fedcli.inspection.figures.writing import write_figures as write_figures
    from fedcli.inspection.figures.writing import write_pairs as write_pairs
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "FORMATS": "fedcli.inspection.figures.writing",
            "require": "fedcli.inspection.figures.writing",
            "write_figures": "fedcli.inspection.figures.writing",
            "write_pairs": "fedcli.inspection.figures.writing",
        },
    )
