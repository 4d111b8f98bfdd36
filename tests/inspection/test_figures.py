"""Figures: the tests check their content and that they are drawn, not their looks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from fedcli.core.native import Cancelled
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError, DataError, RunError
from fedcli.inspection import figures
from fedcli.inspection.figures import drawings, page, tiles
from fedcli.inspection.statistics import SplitCounts, count_labels

NAMES = ["examples", "label_counts", "mean_images", "labels_by_client", "sizes_and_skew"]
PNG = b"\x89PNG\r\n\x1a\n"


class Made(ClientData):
    """Clients in memory."""

    def __init__(
        self,
        clients: dict[str, ClientDataset],
        num_classes: int,
        convention: str = "ink",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.source, self.split = "made", "train"
        self.client_ids = sorted(clients)
        self.num_classes, self.class_names = num_classes, class_names
        self.pixel_shape = next(iter(clients.values())).pixels.shape[1:]
        self.pixel_convention = convention
        self._clients = clients

    def num_examples(self, client_id: str) -> int:
        return len(self._clients[client_id])

    def client(self, client_id: str) -> ClientDataset:
        if client_id not in self._clients:
            raise DataError(f"no client {client_id}")
        return self._clients[client_id]


def client_of(name: str, pixels: NDArray, labels: Sequence[int]) -> ClientDataset:
    return ClientDataset(name, pixels, np.array(labels, np.int32), 1 / 255, 0.0, "made")


def make(
    seed: int,
    num_clients: int = 3,
    num_classes: int = 4,
    shape: tuple[int, ...] = (6, 4),
    ids: Sequence[str] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Made:
    rng = np.random.default_rng(seed)
    clients = {}
    for index in range(num_clients):
        size = int(rng.integers(1, 50))
        labels = rng.integers(0, num_classes, size).tolist()
        name = ids[index] if ids else f"c{index:04d}"
        clients[name] = client_of(name, rng.integers(0, 256, (size, *shape), np.uint8), labels)
    return Made(clients, num_classes, class_names=class_names)


def counts_of(data: ClientData) -> SplitCounts:
    labels = (data.labels(name) for name in data.client_ids)
    return count_labels(data.split, data.client_ids, labels, data.num_classes)


def draw(folder: Path, data: ClientData, file_format: str = "png") -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures.write_figures(
            folder, data, data.client_ids, counts_of(data), file_format=file_format
        )


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_same_input_gives_same_bytes_that_name_no_program_or_date(
    tmp_path: Path, seed: int, file_format: str
) -> None:
    first = draw(tmp_path / "a" / "deep", make(seed), file_format)
    second = draw(tmp_path / "b", make(seed), file_format)
    assert [path.name for path in first] == [f"{name}.{file_format}" for name in NAMES]
    for one, other in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes()
        assert content.startswith(PNG if file_format == "png" else b"<?xml")
        assert b"atplotlib v" not in content
        assert b"atplotlib.org" not in content
        assert b"dc:date" not in content
    assert {path.parent for path in first} == {tmp_path / "a" / "deep"}
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in second
    )


def test_the_users_settings_change_nothing_and_are_left_alone(tmp_path: Path, seed: int) -> None:
    import matplotlib as mpl

    plain = [path.read_bytes() for path in draw(tmp_path / "a", make(seed))]
    settings: dict[Any, Any] = {"font.size": 30.0, "axes.facecolor": "red", "savefig.dpi": 30.0}
    with mpl.rc_context(settings):
        styled = [path.read_bytes() for path in draw(tmp_path / "b", make(seed))]
        assert {name: mpl.rcParams[name] for name in settings} == settings
    assert styled == plain


@pytest.mark.parametrize(
    "data",
    [
        make(0, num_clients=1),
        make(0, num_classes=1),
        make(0, num_clients=1, num_classes=1, shape=(1, 1)),
        make(0, shape=(8, 8, 3), class_names=("airplane", "cat", "dog", "x" * 200)),
        make(0, shape=(5, 7, 2)),
        make(0, shape=(300, 90)),
        make(0, num_classes=62, num_clients=20),
        make(0, num_classes=150, num_clients=5),
        make(0, ids=["$\\frac$ {b}_^", "line\nbreak\t\x1b[2J", "日本" * 100]),
        Made({"a": client_of("a", np.zeros((0, 2, 2), np.uint8), [])}, 3),
        Made({"a": client_of("a", np.full((2, 2, 2), 9e9, np.float32), [0, 1])}, 3),
    ],
    ids=[
        *("one-client", "one-class", "one-pixel", "rgb", "two-channels", "large", "62-classes"),
        *("150-classes", "odd-names", "empty-client", "huge-values"),
    ],
)
def test_draws_whatever_there_is_without_a_warning(tmp_path: Path, data: Made) -> None:
    for path in draw(tmp_path, data):
        height, width = imread(path).shape[:2]
        assert 60 < height < 4000
        assert 60 < width < 4000


def test_examples_are_the_clients_first_in_ink_on_paper() -> None:
    pixels = np.zeros((50, 4, 4), np.uint8)
    pixels[:, 0, 0] = 255
    for convention, ink_dot in (("ink", (0, 0)), ("background", (1, 1))):
        data = Made(
            {"a": client_of("a", pixels, [index % 3 for index in range(50)])}, 3, convention
        )
        figure = drawings.examples(data, "a")
        assert title_of(figure) == "First 40 of 50 examples of a (train)"
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.texts] == [str(k % 3) for k in range(40)]
        picture = np.asarray(axes.images[0].get_array())
        zoom = tiles.TILE // 4
        dark = picture[ink_dot[0] * zoom, ink_dot[1] * zoom]
        light = picture[(1 - ink_dot[0]) * zoom, (1 - ink_dot[1]) * zoom]
        assert dark.tolist() == [0, 0, 0]
        assert light.tolist() == [255, 255, 255]


def test_rgb_keeps_its_colours() -> None:
    red = np.zeros((1, 2, 2, 3), np.float32)
    red[..., 0] = 1
    assert tiles.on_paper(red, "ink")[0, 0, 0].tolist() == [1, 0, 0]
    assert tiles.on_paper(1 - red, "background")[0, 0, 0].tolist() == [1, 0, 0]


def test_the_largest_float32_is_squeezed_in_silence() -> None:
    most = np.finfo(np.float32).max
    assert tiles.on_paper(np.array([[[-most, 0, most]]]), "ink")[0, 0, :, 0].tolist() == [1, 0.5, 0]


def test_values_beyond_one_squeeze_all_others() -> None:
    wide = np.array([[[-1.0, 0.0, 3.0]]], np.float32)
    assert tiles.on_paper(wide, "ink")[0, 0, :, 0].tolist() == [1, 0.75, 0]
    missing = np.array([[[np.nan]]])
    assert tiles.on_paper(missing, "ink")[0, 0, 0].tolist() == [0.94] * 3


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (200, 100), (90, 5, 3), (6, 4, 2)])
def test_mean_tiles_are_means_of_shrunk_images(seed: int, shape: tuple[int, ...]) -> None:
    data = make(seed, num_clients=4, num_classes=6, shape=shape)
    labels = np.array([0, 2, 5])
    means = tiles.mean_tiles(map(data.client, data.client_ids), labels, shape)
    images = np.concatenate([data.client(name).images() for name in data.client_ids])
    held = np.concatenate([data.labels(name) for name in data.client_ids])
    for mean, label in zip(means, labels.tolist(), strict=True):
        wanted = images[held == label].mean(axis=0, dtype=np.float64)
        if shape[2:] == (2,):
            wanted = wanted.mean(axis=2)
        down, across = wanted.shape[0] // mean.shape[0], wanted.shape[1] // mean.shape[1]
        assert down == -(-max(shape[:2]) // 84)
        cut = wanted[: mean.shape[0] * down, : mean.shape[1] * across]
        naive = np.array([
            [
                cut[y * down : (y + 1) * down, x * across : (x + 1) * across].mean(axis=(0, 1))
                for x in range(mean.shape[1])
            ]
            for y in range(mean.shape[0])
        ])  # fmt: skip
        np.testing.assert_allclose(mean, naive, atol=1e-6)  # float32


def test_mean_images_stand_beside_the_populations_with_gaps_where_nothing_is() -> None:
    black, white = np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 255, np.uint8)
    data = Made({"a": client_of("a", black, [0]), "b": client_of("b", white, [0])}, 2)
    shown = drawings.DrawnLabels.of(data, counts_of(data))
    means = tiles.mean_tiles(map(data.client, "ab"), shown.labels, (2, 2))
    figure = drawings.mean_images(data, ["a", "b"], counts_of(data), means, shown)
    assert title_of(figure) == "Mean image by label; grey: no example"
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["0", "1"]
    assert texts[2::2] == ["2 clients", "a", "b"]
    assert texts[3::2] == ["2 examples", "1 example", "1 example"]
    picture = np.asarray(axes.images[0].get_array())[::90, ::90, 0]  # one dot of each tile
    assert picture.tolist() == [[128, 240], [255, 240], [0, 240]]


def test_label_counts_are_marked_with_the_mix_of_the_population() -> None:
    pixels = np.zeros((8, 2, 2), np.uint8)
    data = Made(
        {"a": client_of("a", pixels, [0] * 8), "b": client_of("b", pixels, [0] * 4 + [1] * 4)}, 2
    )
    figure = drawings.label_counts(
        data, ["a", "b"], counts_of(data), drawings.DrawnLabels.of(data, counts_of(data))
    )
    axes_pair: Any = figure.axes
    first, second = axes_pair
    assert [bar.get_height() for bar in first.patches] == [8, 0]
    assert [bar.get_height() for bar in second.patches] == [4, 4]
    for axes in (first, second):
        marks = [segment[0][1] for segment in axes.collections[0].get_segments()]
        assert marks == [6, 2]
    assert first.get_ylim() == second.get_ylim()
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == (
        "a: 8 examples",
        "b: 8 examples",
    )


def test_heat_map_holds_shares_sorted_by_main_label_and_then_by_share() -> None:
    rows = np.array([[0, 4, 0], [1, 3, 0], [3, 1, 0], [0, 0, 0], [0, 0, 2], [2, 0, 0]])
    counts = SplitCounts("train", list("abcdef"), rows)
    shown = drawings.DrawnLabels(np.arange(3), ["x", "y", "z"], "")
    figure = drawings.labels_by_client(counts, shown)
    heat = np.asarray(figure.axes[0].images[0].get_array())
    ids = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ids == ["f", "c", "a", "b", "e", "d"]
    expected = {"f": [1, 0, 0], "c": [0.75, 0.25, 0], "a": [0, 1, 0], "b": [0.25, 0.75, 0]}
    assert heat.T[:4].tolist() == [expected[name] for name in ids[:4]]
    assert heat.T[5].tolist() == [0, 0, 0]


def test_of_thousands_of_clients_columns_are_picked_evenly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(50, [0.1] * 10, size=2500)
    counts = SplitCounts("train", [f"{k:05d}" for k in range(2500)], rows)
    shown = drawings.DrawnLabels(np.arange(10), list("0123456789"), "")
    figure = drawings.labels_by_client(counts, shown)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (10, drawings.MAX_COLUMNS)
    assert title_of(figure).startswith(
        "Share of each label in 1,000 evenly picked of 2,500 clients"
    )


def test_too_many_labels_are_the_commonest_ones() -> None:
    data = make(0, num_classes=150)
    row = np.arange(150)[None] + 1
    row[0, 7] = 1000
    shown = drawings.DrawnLabels.of(data, SplitCounts("train", ["a"], row))
    assert shown.labels.tolist() == [7, *range(51, 150)]
    assert shown.remark == " (the 100 commonest of 150 labels)"


def test_names_are_cut_and_their_characters_known_to_the_font() -> None:
    assert page.shortened("a\n\tb") == "a b"
    assert page.shortened("日本$x$") == "??$x$"
    assert page.shortened("x" * 30) == "x" * 11 + "…" + "x" * 11
    assert page.text_width(page.fitting("automobile", 40)) <= 40
    assert page.fitting("cat", 400) == "cat"


def test_tells_every_client_and_may_be_cancelled_before_anything_is_written(
    tmp_path: Path, seed: int
) -> None:
    data = make(seed, num_clients=4)
    told = []
    figures.write_figures(
        tmp_path / "a", data, ["c0001"], counts_of(data), on_progress=lambda *now: told.append(now)
    )
    assert told[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def cancel(done: int, total: int | None) -> None:
        if len(list(calls)) == 8:
            raise Cancelled
        calls.append(done)

    calls: list[int] = []
    with pytest.raises(Cancelled):
        figures.write_figures(tmp_path / "b", data, ["c0001"], counts_of(data), on_progress=cancel)
    assert list((tmp_path / "b").iterdir()) == []


def test_refuses_before_any_client_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    data = make(seed)
    counts = counts_of(data)
    monkeypatch.setattr(data, "client", lambda _: pytest.fail("a client was read"))
    with pytest.raises(ConfigError, match=r"^figure format 'gif': choose one of png, svg, pdf$"):
        figures.write_figures(tmp_path, data, ["c0000"], counts, file_format="gif")
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"^cannot make the folder .*file: File exists; choose another name$"
    ):
        figures.write_figures(tmp_path / "file", data, ["c0000"], counts)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match=r"^figures need matplotlib .* 'fedcli\[plot\]'$"):
        figures.require()
    with pytest.raises(ConfigError, match=r"pip install 'fedcli\[plot\]'"):
        figures.write_figures(tmp_path, data, ["c0000"], counts)


def test_a_name_that_is_taken_by_a_folder_is_one_line(tmp_path: Path, seed: int) -> None:
    (tmp_path / "sizes_and_skew.png").mkdir()
    with pytest.raises(RunError, match=r"sizes_and_skew.png is not a regular file"):
        draw(tmp_path, make(seed))


def title_of(figure: Figure) -> str:
    return figure.texts[0].get_text()
