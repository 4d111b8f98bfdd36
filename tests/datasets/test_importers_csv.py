"""CSV: columns are recognised, the whole file decides the range of pixels, errors name the line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedcli.datasets.importers import csv_files, recognising
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError, FedcliError

GREY = np.array([[0, 50, 100, 255], [3, 2, 1, 0], [9, 8, 7, 6]], np.uint8)
HEADER = "client_id,label,p0,p1,p2,p3"
ROWS = ["b,7,0,50,100,255", "a,0,3,2,1,0", "b,9,9,8,7,6"]


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def read(path: Path, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(format="csv", **options))


def table_of(path: Path, **options: Any) -> ExampleTable:
    return read(path, **options).tables["train"]


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(FedcliError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# ---- What is read --------------------------------------------------------------------------------


def check(table: ExampleTable) -> None:
    assert table.pixels.dtype == np.uint8
    np.testing.assert_array_equal(table.pixels, GREY.reshape(3, 2, 2))
    assert table.labels.tolist() == [7, 0, 9]
    assert list(table.owner_ids) == ["a", "b"]
    assert table.owners.tolist() == [1, 0, 1]
    assert (table.scale, table.offset) == (1 / 255, 0.0)


def test_columns_labels_and_owners(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", HEADER, *ROWS)
    assert recognising.recognise([path]) == "csv"
    imported = read(path)
    check(imported.tables["train"])
    assert (imported.num_classes, imported.class_names) == (10, ())
    assert imported.pixel_convention == "ink"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_bytes_around_the_rows(tmp_path: Path, end: str, delimiter: str) -> None:
    lines = [line.replace(",", delimiter) for line in ("\ufeff" + HEADER, *ROWS)]
    check(table_of(write(tmp_path / "a.csv", *lines, end=end)))
    quoted = [delimiter.join(f'"{each}"' for each in line.split(delimiter)) for line in lines[1:]]
    check(table_of(write(tmp_path / "b.csv", lines[0], "", *quoted, "  ", end=end)))
    packed = tmp_path / "c.csv"
    packed.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    assert recognising.recognise([packed]) == "csv"
    check(table_of(packed))
    (tmp_path / "d.csv").write_bytes((tmp_path / "a.csv").read_bytes().rstrip())
    check(table_of(tmp_path / "d.csv"))


@pytest.mark.parametrize("header", ["p0,label,p1,owner,p2,p3", "p0,p1,p2,p3,User,Target"])
def test_columns_in_any_place(tmp_path: Path, header: str) -> None:
    columns = header.lower().split(",")
    lines = [header]
    for row in ROWS:
        owner, label, *pixels = row.split(",")
        values = iter(pixels)
        special = {"owner": owner, "user": owner, "label": label, "target": label}
        lines.append(",".join(special.get(name) or next(values) for name in columns))
    check(table_of(write(tmp_path / "a.csv", *lines)))


def test_named_columns_and_no_owner(tmp_path: Path) -> None:
    header = HEADER.replace("client_id", "who").replace("label", "what")
    path = write(tmp_path / "a.csv", header, *ROWS)
    check(table_of(path, id_column="who", label_column="what"))
    rows = [row.partition(",")[2] for row in ROWS]
    table = table_of(write(tmp_path / "b.csv", HEADER.partition(",")[2], *rows))
    assert list(table.owner_ids) == []
    assert len(table.owners) == 0


def test_texts_are_class_names_in_their_order(tmp_path: Path) -> None:
    lines = ["cat,1,2,3,4", '"a, b",1,2,3,4', "dog,1,2,3,4", "cat,1,2,3,4"]
    imported = read(write(tmp_path / "a.csv", "label,p0,p1,p2,p3", *lines))
    assert imported.class_names == ("a, b", "cat", "dog")
    assert imported.num_classes == 3
    assert imported.tables["train"].labels.tolist() == [1, 0, 2, 1]


def test_the_whole_file_decides_the_range_of_pixels(tmp_path: Path) -> None:
    block = ["0,0,1,0,1"] * 600  # more rows than are read at a time
    header = "y,p0,p1,p2,p3"
    table = table_of(write(tmp_path / "a.csv", header, *block))
    assert (table.pixels.dtype.str[1:], table.pixels.max(), table.scale) == ("u1", 255, 1 / 255)
    table = table_of(write(tmp_path / "b.csv", header, *block, "0,0,0,0,2"), pixel_range="0-255")
    assert (table.pixels.dtype.str[1:], table.pixels[0].max(), table.scale) == ("u1", 1, 1 / 255)
    exact = [f"0,{50 / 255!r},0,1,1"]
    table = table_of(write(tmp_path / "c.csv", header, *block, *exact))
    assert table.pixels.dtype == np.uint8
    assert table.pixels[600].reshape(-1).tolist() == [50, 0, 255, 255]
    table = table_of(write(tmp_path / "d.csv", header, *block, "0,0.123,0,1,1"))
    assert (table.pixels.dtype.str[1:], table.scale) == ("f4", 1.0)
    assert table.pixels[600, 0, 0] == np.float32(0.123)
    table = table_of(write(tmp_path / "e.csv", header, *["0,0.5,0,1,99"] * 600))
    assert (table.pixels.dtype.str[1:], table.scale) == ("f4", 1 / 255)
    assert table.pixels[0].max() == 99
    message = message_of(write(tmp_path / "f.csv", header, *block, "0,0.5,0,1,99"))
    assert "example 600: the largest pixel is 99 but only 1 pixels lie beyond 1" in message


def test_image_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, *ROWS)
    assert table_of(path, image_shape=(1, 4)).pixels.shape == (3, 1, 4)
    path = write(tmp_path / "b.csv", HEADER + ",p4,p5", *(row + ",1,1" for row in ROWS))
    assert "6 pixels do not make a square image; pass --image-shape" in message_of(path)
    assert table_of(path, image_shape=(1, 2, 3)).pixels.shape == (3, 1, 2, 3)
    assert "6 pixels do not make 2 x 2" in message_of(path, image_shape=(2, 2))


def test_light_borders_are_background(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "y,p0,p1,p2,p3", "0,255,255,200,0")
    assert read(path).pixel_convention == "background"


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(9))),
    names=st.lists(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=4),
        min_size=9,
        max_size=9,
    ),
    place=st.integers(0, 9),
)
def test_round_trip(
    pixels: np.ndarray, names: list[str], place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    header = [f"p{index}" for index in range(9)]
    header.insert(place, "user")
    writer.writerow(["y", *header])
    for name, row in zip(names, pixels.tolist(), strict=False):
        row.insert(place, name)
        writer.writerow([5, *row])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text.getvalue())
    table = table_of(path)
    scale = 255 if pixels.max() <= 1 else 1
    np.testing.assert_array_equal(table.pixels.reshape(len(pixels), 9), pixels * scale)
    owners = [table.owner_ids[owner] for owner in table.owners]
    assert owners == names[: len(pixels)]


@pytest.mark.parametrize(
    "content",
    [b"", b"label,a\n", b"Dear all, hello\nhow are you, there\n", b"1 2 3\n4 5 6\n", b"\x89PNG\r\n",
     b'{"a": 1,\n"b": 2}\n', b"\x1f\x8b broken", b"a,b\n\xff\xff,1\n", b"label,a,b\n1,2\n"],
)  # fmt: skip
def test_other_files_are_not_taken_for_csv(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert not csv_files.recognises(path)


def test_wide_rows_are_recognised_and_read(tmp_path: Path) -> None:
    num_pixels = 200 * 200 * 3
    header = ",".join(["label", *(f"pixel{index}" for index in range(num_pixels))])
    path = write(tmp_path / "a.csv", header, *(["1" + ",100" * num_pixels] * 3))
    assert len(header) > 1 << 20
    path_ok = write(
        tmp_path / "b.csv", header.replace("pixel", ""), *(["1" + ",9" * num_pixels] * 3)
    )
    assert csv_files.recognises(path_ok)
    assert table_of(path, image_shape=(200, 200, 3)).pixels.shape == (3, 200, 200, 3)


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a,1,2,3,4", "line 3: 5 fields but the header has 6"),
        ("a,1,2,3,4,5,6", "line 3: 7 fields but the header has 6"),
        ("a,1,2,x,4,5", "line 3: column 'p1': 'x' is not a pixel"),
        ("a,1,2,,4,5", "line 3: column 'p1': '' is not a pixel"),
        ("a,1,2,nan,4,5", "line 3: column 'p1': 'nan' is not a pixel"),
        ("a,1,2,inf,4,5", "line 3: column 'p1': 'inf' is not a pixel"),
        (
            "a,1,2,1e999,4,5",
            "line 3: column 'p1': '1e999' is out of range; the largest allowed pixel is 65535",
        ),
        ("a,1,2,-1e39,4,5", "line 3: column 'p1': '-1e39' is out of range"),
        (f"a,1,2,{'1' * 100},4,5", f"line 3: column 'p1': '{'1' * 20}' is out of range"),
        (f"a,1,2,{'1' * 5000},4,5", f"line 3: column 'p1': '{'1' * 20}' is out of range"),
        ("a,1,2,-100,4,5", "example 1: pixels go from -100 to 255, which is not a known range"),
        (
            "a,1,2,70000000,4,5",
            "example 1: the largest pixel is 7e+07, but at most 65535 is allowed",
        ),
        ("a,,2,3,4,5", "line 3: has no label"),
        ("a,-1,2,3,4,5", "line 3: label -1 cannot be a class"),
        ("a,99999999999,2,3,4,5", "line 3: label 99999999999 cannot be a class"),
        (f"a,{'L' * 256},2,3,4,5", f"line 3: class '{'L' * 40}': a name must have 1 to 255 bytes"),
        ("a,x\0,2,3,4,5", "line 3: class 'x\\x00': a name must have 1 to 255 bytes"),
        (",1,2,3,4,5", "line 3: client id '': an id must have 1 to 255 bytes"),
        (f"{'x' * 300},1,2,3,4,5", "line 3: client id "),
        ('"a,1,2,3,4,5', "line 3: its quotes do not match"),
        ('"a"b,1,2,3,4,5', "line 3: its quotes do not match"),
        ('"a",1,2,"3,4",5', "line 3: 5 fields but the header has 6"),
        ('"a",1,2,"3,0",4,5', "line 3: column 'p1': '3 0' is not a pixel"),
        ("a,1,2,3\0,4,5", "line 3: column 'p1'"),
    ],
)
def test_bad_row(tmp_path: Path, line: str, fault: str) -> None:
    assert fault in message_of(write(tmp_path / "a.csv", HEADER, ROWS[0], line, ROWS[1]))


def test_a_header_of_very_many_columns_is_read_in_linear_time(tmp_path: Path) -> None:
    columns = ",".join(f"p{index}" for index in range(100_000))
    found = message_of(write(tmp_path / "a.csv", f"label,{columns}", "0" + ",1" * 100_000))
    assert "100000 pixels do not make a square image" in found


def test_empty_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "", HEADER, "", ROWS[0], "", "a,1,2,x,4,5")
    assert "line 6: column 'p1'" in message_of(path)


def test_fault_far_down_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, *(ROWS * 500), "a,1,2,3,4,x")
    assert "line 1502: column 'p3': 'x' is not a pixel" in message_of(path)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ((), "is empty; give a line of names"),
        ((HEADER,), "holds no rows below its header"),
        (("a", "1"), "line 1: has 1 columns"),
        (("id,p0,p1,p2,p3", "1,2,3,4,5"), "no column of labels (label, y, class, target, digit"),
        (("label,label,p0", "1,2,3"), "column 'label' occurs 2 times"),
        (("label,client_id", "1,2"), "0 pixels do not make a square image"),
        (('label,"p0', "1,2"), "the header cannot be read"),
        (("label,p0,p1", "1,2,3"), "2 pixels do not make a square image"),
    ],
)
def test_bad_header(tmp_path: Path, lines: tuple[str, ...], fault: str) -> None:
    assert fault in message_of(write(tmp_path / "a.csv", *lines))


@pytest.mark.parametrize("options", [{}, {"label_column": "5"}])
@pytest.mark.parametrize("first", ["5,0,0,12,255", "5,7,7,7,7", "cat,0,0,0,0"])
def test_a_first_line_of_numbers_is_no_header(
    tmp_path: Path, first: str, options: dict[str, Any]
) -> None:
    message = message_of(write(tmp_path / "a.csv", first, "7,0,1,2,3"), **options)
    listed = first.replace(",", ", ")
    assert f"line 1 looks like data, not like a header: {listed}; put a line of names" in message


def test_a_header_may_count_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,1,2,3,4", "7,0,1,2,3")
    assert table_of(path, label_column="0").labels.tolist() == [7]
    path = write(tmp_path / "b.csv", "label,0,1,2,3", "7,0,1,2,3")
    assert table_of(path).labels.tolist() == [7]


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, *ROWS)
    for option in ("label_column", "id_column"):
        with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} x: no such column"):
            read(path, **{option: "x"})
    with pytest.raises(ConfigError, match="--label-column and --id-column are both label"):
        read(path, id_column="label")


def test_label_beyond_the_classes_names_client_and_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, *ROWS)
    message = message_of(path, num_classes=9)
    assert "client 'b': example 1: label 9 is outside 0 to 8; pass --num-classes 10" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe,1,2,3,4,5\n")
    assert "not UTF-8 text" in message_of(path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_or_garbled_gzip(tmp_path: Path, share: float) -> None:
    content = gzip.compress("\n".join([HEADER, *ROWS * 100]).encode())
    path = tmp_path / "a.csv"
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged gzip data" in message_of(path)
    middle = int(len(content) * share)
    path.write_bytes(content[:middle] + bytes(9) + content[middle + 9 :])
    assert message_of(path)


def test_line_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "MAX_LINE", 100)
    path = write(tmp_path / "a.csv", HEADER, ROWS[0], "1," * 200)
    assert "line 3: has over 100 characters" in message_of(path)


def test_several_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER, *ROWS)
    with pytest.raises(DataError, match="a CSV file is a single file"):
        recognising.read([path, path], ImportOptions(format="csv"))


def test_progress_counts_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = write(tmp_path / "a.csv", HEADER, *ROWS)
    recognising.read([path], ImportOptions(), None, lambda *each: told.append(each))
    assert told == [(3, None), (3, 3)]


def test_very_many_empty_lines_are_reported_and_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "c.csv.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"label,a,b,c,d\n1,0,0,0,0\n")
        file.write(b"\n" * (csv_files.MAX_EMPTY_LINES + 1))
        file.write(b"0,9,9,9,9\n")
    assert "line 3: 1,000,000 consecutive empty lines" in message_of(path)

    class StopError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        raise StopError

    with pytest.raises(StopError):
        recognising.read([path], on_progress=stop)


def test_long_rows_are_read_a_few_at_a_time() -> None:
    lines = iter((number, "x" * (1 << 20)) for number in range(500))
    assert len(csv_files._block(lines, 512)) == 33
    assert len(csv_files._block(iter([(1, "x")] * 5), 3)) == 3
