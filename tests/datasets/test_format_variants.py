"""Formats as people write them: several variants with the same data, and one that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcli.cli.help import MANUAL
from fedcli.datasets.batches import decode
from fedcli.datasets.importers import recognising
from fedcli.errors import FedcliError
from fedcli.settings.tables import formats
from tests.kit.format_variants import FORMATS, GREY, LABELS
from tests.kit.own_data import LAYOUTS

VARIANTS = [
    pytest.param(name, variant, id=f"{name}: {variant}")
    for name, each in FORMATS.items()
    for variant in each.right
]
# Formats that are folders: their variants are in LAYOUTS of `own_data`, under these names.
OF_FOLDERS = {"images": "class folders", "clients": "one file a client"}


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_variants_have_the_same_data(tmp_path: Path, name: str, variant: str) -> None:
    each = FORMATS[name]
    if each.module:
        pytest.importorskip(each.module)
    found = recognising.read([each.right[variant](tmp_path)])
    table = found.tables["train"]
    images = GREY if each.images is None else each.images
    decoded = decode(table.pixels[:], table.scale, table.offset)
    np.testing.assert_allclose(decoded, images / 255, atol=1e-6)
    np.testing.assert_array_equal(table.labels, LABELS)
    assert found.description.format.value in name or name in ("tf-examples", "npy")


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_variant_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    each = FORMATS[name]
    if each.module:
        pytest.importorskip(each.module)
    source = each.wrong(tmp_path)
    with pytest.raises(FedcliError) as caught:
        recognising.read([source])
    assert each.words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_format_has_five_variants_and_a_row_in_the_manual() -> None:
    page = (MANUAL / "formats.md").read_text()
    for name in formats.FORMATS:
        assert f"`{name}`" in page
        if name in OF_FOLDERS:
            layout = LAYOUTS[OF_FOLDERS[name]]
            assert len(layout.right) >= 4
            assert layout.wrong
        elif name != "store":
            assert len(FORMATS[name].right) >= 4
