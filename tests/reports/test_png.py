"""PNG files, read by Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fedcli.reports.png import encode_png


def test_png_reads_back(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert np.array_equal(np.asarray(image), picture)
