"""The version of fedcli."""

__version__ = "0.1.0"
