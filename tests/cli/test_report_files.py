"""The HTML page and the figures of `fedcli report`; the page is also opened in a browser."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fedcli.reports.plots import PlotOptions, Series, _Page
from tests.kit.command_line import Fedcli, assert_is_one_line
from tests.kit.runs import write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Outline(html.parser.HTMLParser):
    """Counts the tags of a page and keeps the addresses in it."""

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
    for text in ("Over clients", "Clients by their accuracy", "Confusion matrix", "--batch-size"):
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


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
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
        assert content.startswith(b"<?xml" if ending == "svg" else b"%PDF")


def test_plot_has_the_size_that_is_asked_for(fedcli: Fedcli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, [0.3, 0.7])
    done = fedcli("report", "a", "b", "--plot", "c.png", "--plot-size", "6.5x3")
    assert done.code == 0
    with Image.open("c.png") as image:
        assert image.size == (936, 432)  # at 144 dots an inch
    for size, words in (
        ("6.5", "such as 6.5x3"),
        ("0x3", "at most 100"),
        ("101x3", "at most 100"),
        ("1x1", "give at least"),
    ):
        done = fedcli("report", "a", "b", "--plot", "d.png", "--plot-size", size)
        assert_is_one_line(done, "--plot-size", words)
    assert fedcli("report", "a", "--plot-log", "y").code == 2
    assert not Path("d.png").exists()


def test_axes_of_a_plot_are_logarithmic_where_asked_or_needed() -> None:
    calm: Series = [(number, 1.0) for number in range(5)]
    wild: Series = [(0, 1.0), (4, 1e5)]

    def scales(panels: dict[str, Series], options: PlotOptions) -> list[tuple[str, str]]:
        figure = _Page("title", {"loss": panels, "accuracy": panels}, "", options).draw()
        return [(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes[:2]]

    usual = ("linear", "linear")
    assert scales({"a": calm}, PlotOptions()) == [usual, usual]
    assert scales({"a": calm, "b": wild}, PlotOptions()) == [("linear", "log"), usual]
    assert scales({"a": calm, "b": wild}, PlotOptions(log_y=False)) == [usual, usual]
    log_x = PlotOptions(log_x=True, log_y=True)
    assert scales({"a": calm}, log_x) == [("log", "log"), ("log", "linear")]


def test_a_short_logarithmic_axis_has_several_labels() -> None:
    losses: Series = [(1, 1.9), (10, 0.75)]
    figure = _Page("title", {"loss": {"a": losses}}, "", PlotOptions(log_y=True)).draw()
    axes = figure.axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["1.0", "1.5"]
    assert axes.get_yticks().tolist() == [1.0, 1.5]


def test_thirty_six_runs_have_as_many_names_and_looks(fedcli: Fedcli, tmp_path: Path) -> None:
    for number in range(36):
        write_run(tmp_path / f"sweep/fedavg-lr0.1-seed-{number}", [0.3, 0.7])
    runs = sorted(Path("sweep").iterdir())
    done = fedcli("report", *runs, "--html", "all.html", "--plot", "all.svg")
    assert "The first 26 of 36 runs; --plot draws all\n" in done.out
    page, picture = Path("all.html").read_text(), Path("all.svg").read_text()
    key = page.partition('<div class="key note">')[2].partition("</div>")[0]
    looks = re.findall(r"<line [^>]*?(style=[^/]*)/>", key)
    assert len(looks) == len(set(looks)) == 36
    for number in range(36):
        assert f"</svg>fedavg-lr0.1-seed-{number} (test)</span>" in key
        assert f"fedavg-lr0.1-seed-{number} (test)" in picture


def test_a_series_looks_alike_in_each_chart(fedcli: Fedcli) -> None:
    options = ("--rounds", 4, "--eval-every", 2, "--metrics", "macro_f1", "-q")
    assert fedcli("train", *options, "--out", "run").code == 0
    fedcli("report", "run", "--html", "run.html", "--plot", "run.png", "-q")
    page = Path("run.html").read_text()
    look = r"style=\"stroke:(var\(--c\d\))"
    key = page.partition('<div class="key note">')[2].partition("</div>")[0]
    looks = dict(re.findall(rf'title="(\w+)">.*?{look}', key))
    assert looks.keys() == {"online", "train", "test"}
    drawn = re.findall(rf"<polyline [^>]*{look}[^>]*><title>(\w+)</title>", page)
    assert len(drawn) == 3 + 3 + 2  # macro_f1 is not measured in training
    assert all(looks[name] == color for color, name in drawn)
    with Image.open("run.png") as image:
        assert image.width < 2400


def test_many_panels_stand_in_rows() -> None:
    panels: dict[str, dict[str, Series]] = {f"m{n}": {"a": [(0, 1.0), (1, 2.0)]} for n in range(8)}
    figure = _Page("title", panels, "", PlotOptions()).draw()
    places = [axes.get_position() for axes in figure.axes[:8]]
    assert len({round(place.x0, 6) for place in places}) == 3
    assert len({round(place.y0, 6) for place in places}) == 3
    assert len({(round(place.x0, 6), round(place.y0, 6)) for place in places}) == 8


def test_a_page_suits_narrow_screens_and_the_night(fedcli: Fedcli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.3, 0.7])
    assert fedcli("report", "a", "--html", "a.html", "-q").code == 0
    page = (tmp_path / "a.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert not re.search(r'<svg[^>]* width="\d', page)  # drawings are as wide as their container
    for title in ("round", "loss", "accuracy"):
        assert f'text-anchor="middle">{title}</text>' in page


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


def test_each_written_file_is_named_at_the_end(fedcli: Fedcli) -> None:
    for seed in (1, 2):
        fedcli("train", "--out", f"s{seed}", "--rounds", 1, "--seed", seed, "--record-clients")
    done = fedcli("report", "s1", "--csv", "a.csv", "--clients-csv", "b.csv", "--html", "c.html")
    assert sorted(done.out.splitlines()[-3:]) == ["Wrote a.csv", "Wrote b.csv", "Wrote c.html"]
    done = fedcli("report", "s1", "s2", "--by", "rounds", "--csv", "d.csv")
    assert done.out.splitlines()[-1] == "Wrote d.csv"
    done = fedcli("report", "s1", "--csv", "a.csv", "--json", "-v")
    assert "Wrote" not in done.out
    assert "fedcli: wrote a.csv\n" in done.err
