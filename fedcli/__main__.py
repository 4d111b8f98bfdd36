"""Lets `python -m fedcli` do what `fedcli` does."""

from __future__ import annotations

from fedcli.cli.main import main

if __name__ == "__main__":
    main()
