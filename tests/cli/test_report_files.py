"""The page and the pictures of `fedcli report`, the page also in a browser."""

from __future__ import annotations

import html.parser
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcli.reports import html as html_page
from tests.kit.command_line import Fedcli
from tests.kit.runs import write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Outline(html.parser.HTMLParser):
    """Counts tags and keeps what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.references: list[str] = []
        self.images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "srcset"}:
                (self.images if tag == "img" else self.references).append(value or "")


@pytest.fixture
def browse(tmp_path: Path) -> object:
    """Opens a page without a network and returns its DOM and a picture of it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium to open the page with")

    def run(page: Path) -> tuple[str, Image.Image]:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1050,2600"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND"]
        dom = subprocess.run(
            [*command, "--dump-dom", page.as_uri()],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        picture = tmp_path / "page.png"
        subprocess.run(
            [*command, f"--screenshot={picture}", page.as_uri()],
            check=True,
            capture_output=True,
            timeout=120,
        )
        with Image.open(picture) as image:
            return dom.stdout, image.convert("RGB")

    return run


def test_page_of_a_run_in_a_browser(fedcli: Fedcli, tmp_path: Path, browse: object) -> None:
    fedcli("train", "--rounds", 4, "--eval-every", 2, "--out", "run")
    done = fedcli("report", "run", "--html", "run.html")
    assert (done.code, done.err) == (0, "")
    dom, picture = browse(tmp_path / "run.html")  # type: ignore[operator]
    outline = Outline(dom)
    assert outline.counts["polyline"] == 6  # loss and accuracy of online, train and test
    assert outline.counts["img"] == 40
    assert "script" not in outline.counts
    assert outline.references == []
    assert all(each.startswith("data:image/png;base64,") for each in outline.images)
    for text in ("Over clients", "Clients by their accuracy", "Labels and what", "--batch-size"):
        assert text in dom
    colors = picture.getcolors(1 << 24)
    assert colors is not None
    told = {color: count for count, color in colors}
    assert told[(0x44, 0x77, 0xAA)] > 1000  # the bars and curves are drawn
    assert told[(255, 255, 255)] > picture.width * picture.height // 2


def test_names_in_a_page_are_text(fedcli: Fedcli, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    write_run(tmp_path / "a", [0.2, 0.5], config=f'model = "{name}"')
    done = fedcli("report", "a", "--html", "a.html")
    assert done.code == 0
    assert "without clients and examples" in done.err
    text = (tmp_path / "a.html").read_text()
    assert name not in text
    assert "&lt;script&gt;" in text
    assert "script" not in Outline(text).counts


def test_page_of_several_runs(fedcli: Fedcli, tmp_path: Path) -> None:
    for index in range(2):
        write_run(tmp_path / f"s{index}", [0.3, 0.7], config=f"seed = {index}")
    assert fedcli("report", "s0", "s1", "--html", "both.html").code == 0
    outline = Outline((tmp_path / "both.html").read_text())
    assert outline.counts["polyline"] == 4
    assert "img" not in outline.counts


def test_page_of_a_run_without_a_round(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [])
    assert fedcli("report", "a", "--html", "a.html", "-q").code == 0
    assert "polyline" not in Outline((tmp_path / "a.html").read_text()).counts


def test_png_reads_back(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(html_page.png(picture))) as image:
        assert np.array_equal(np.asarray(image), picture)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(fedcli: Fedcli, tmp_path: Path, ending: str) -> None:
    write_run(tmp_path / "a", [0.3, 0.7])
    file = tmp_path / f"a.{ending}"
    assert fedcli("report", "a", "--plot", file).code == 0
    content = file.read_bytes()
    assert fedcli("report", "a", "--plot", file).code == 0
    assert file.read_bytes() == content
    if ending == "png":
        with Image.open(file) as image:
            colors = image.convert("RGB").getcolors(1 << 24)
        assert colors is not None
        assert {(0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)} <= {color for _, color in colors}
    else:
        assert content.startswith(b"<?xml")


def test_plot_needs_a_known_ending_and_matplotlib(
    fedcli: Fedcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", [0.3])
    done = fedcli("report", "a", "--plot", "a.gif")
    assert (done.code, "ends in one of .png, .svg, .pdf" in done.err) == (1, True)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    done = fedcli("report", "a", "--plot", "a.png")
    assert (done.code, "pip install 'fedcli[plot]'" in done.err) == (1, True)
    assert not (tmp_path / "a.png").exists()
