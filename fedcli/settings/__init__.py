"""The settings of a run: the options of `fedcli train`, their checks, and config.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.settings.config_file import from_toml as from_toml
    from fedcli.settings.config_file import read_provenance as read_provenance
    from fedcli.settings.config_file import to_toml as to_toml
    from fedcli.settings.data_source import DataSource as DataSource
    from fedcli.settings.declaration import option_name as option_name
    from fedcli.settings.merging import merge as merge
    from fedcli.settings.rules import from_options as from_options
    from fedcli.settings.rules import validate as validate
    from fedcli.settings.run_config import DATA_FIELDS as DATA_FIELDS
    from fedcli.settings.run_config import OPTIONS as OPTIONS
    from fedcli.settings.run_config import WITHOUT_EFFECT as WITHOUT_EFFECT
    from fedcli.settings.run_config import RunConfig as RunConfig
    from fedcli.settings.run_config import absolute_paths as absolute_paths
    from fedcli.settings.toml_values import parse_options as parse_options
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "DATA_FIELDS": "fedcli.settings.run_config",
            "DataSource": "fedcli.settings.data_source",
            "OPTIONS": "fedcli.settings.run_config",
            "RunConfig": "fedcli.settings.run_config",
            "WITHOUT_EFFECT": "fedcli.settings.run_config",
            "absolute_paths": "fedcli.settings.run_config",
            "from_options": "fedcli.settings.rules",
            "from_toml": "fedcli.settings.config_file",
            "merge": "fedcli.settings.merging",
            "option_name": "fedcli.settings.declaration",
            "parse_options": "fedcli.settings.toml_values",
            "read_provenance": "fedcli.settings.config_file",
            "to_toml": "fedcli.settings.config_file",
            "validate": "fedcli.settings.rules",
        },
    )
