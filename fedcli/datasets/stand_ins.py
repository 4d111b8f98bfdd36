"""Synthetic images that replace the data of a preset until these are downloaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fedcli.datasets import data_folder
from fedcli.settings.presets import PRESETS


def stand_in_of(preset: object, given: Collection[str]) -> Mapping[str, Any]:
    """Returns the options of a preset that change because its data are not downloaded.

    Args:
        preset: The value of --preset. An unknown name has no replacement.
        given: Names of the options that the user gave. If `data` is among them, nothing changes.

    Returns:
        Fields of `RunConfig`; empty if the preset's own data are used.
    """
    chosen = PRESETS.get(preset) if isinstance(preset, str) else None
    if chosen is None or not chosen.stand_in or "data" in given:
        return {}
    data = chosen.values["data"]
    is_here = data_folder.store_path(data_folder.find_data_folder(), data).is_file()
    return {} if is_here else chosen.stand_in


def note_of_stand_in(preset: str) -> str:
    """Returns the note for users of a preset whose data are replaced by synthetic images."""
    data = PRESETS[preset].values["data"]
    return (
        f"{data} is not downloaded, so synthetic images of the same size (synthetic-shapes) are "
        f"used instead; the results are not those of the paper. To fetch it: fedcli download {data}"
    )
