"""What a run is: every option of `fedcli train` with its default, and the checks on it.

Imports no NumPy and touches no file, so that a wrong option is refused before any work starts.
"""

from __future__ import annotations

from fedcli.config.fields import (
    CLIENT_LR,
    CLIENT_OPTIMIZER,
    CLIENT_WEIGHTING,
    DATA_FIELDS,
    EVAL_SPLITS,
    HOLD_OUTS,
    MAX_CLASSES,
    MAX_THREADS,
    PIPELINES,
    PIXEL_CONVENTIONS,
    PIXELS,
    SAMPLINGS,
    SERVER_OPTIMIZER,
    WEIGHTINGS,
    WITHOUT_EFFECT,
    RunConfig,
    absolute_paths,
    option_name,
)
from fedcli.config.files import from_toml, read_provenance, to_toml
from fedcli.config.merging import merge
from fedcli.config.rules import from_options, validate
from fedcli.config.toml_values import parse_options

__all__ = [
    "CLIENT_LR",
    "CLIENT_OPTIMIZER",
    "CLIENT_WEIGHTING",
    "DATA_FIELDS",
    "EVAL_SPLITS",
    "HOLD_OUTS",
    "MAX_CLASSES",
    "MAX_THREADS",
    "PIPELINES",
    "PIXELS",
    "PIXEL_CONVENTIONS",
    "SAMPLINGS",
    "SERVER_OPTIMIZER",
    "WEIGHTINGS",
    "WITHOUT_EFFECT",
    "RunConfig",
    "absolute_paths",
    "from_options",
    "from_toml",
    "merge",
    "option_name",
    "parse_options",
    "read_provenance",
    "to_toml",
    "validate",
]
