"""LEAF's JSON: streamed, checked, rounded to grey levels; errors name file, user and example."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli import datasets
from fedcli.datasets.importers import json_stream, leaf, recognising
from fedcli.datasets.importers.json_stream import JsonStream
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(3, 16) * 5


def user(levels: np.ndarray = GREY, labels: Any = (7, 0, 9), digits: int = 4) -> dict[str, Any]:
    """A user's data, with pixels rounded as in LEAF's own files."""
    return {"x": np.round(levels / 255, digits).tolist(), "y": list(labels)}


def shard(users: dict[str, Any]) -> dict[str, Any]:
    return {
        "users": list(users),
        "num_samples": [len(data.get("y", ())) for data in users.values()],
        "user_data": users,
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(path: Path, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(format="leaf", **options))


def message_of(tmp_path: Path, content: Any) -> str:
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# ---- What is read --------------------------------------------------------------------------------


def test_real_sample_equals_the_hdf5_file_after_rounding(shared_data: Path) -> None:
    path = shared_data / "leaf_femnist_sample"
    assert recognising.recognise([path]) == "leaf"
    imported = recognising.read([path])
    assert (imported.num_classes, imported.pixel_convention) == (10, "background")
    assert imported.same_people
    assert [len(table) for table in imported.tables.values()] == [160, 79]
    for split, table in imported.tables.items():
        original = datasets.load(str(shared_data / f"mnist_writers_{split}.h5"))[0]
        assert len(table.owner_ids) == 8
        for number, client_id in enumerate(table.owner_ids):
            client = original.client(client_id)
            is_owned = table.owners == number
            count = int(is_owned.sum())
            np.testing.assert_array_equal(table.pixels[is_owned], client.pixels[:count])
            np.testing.assert_array_equal(table.labels[is_owned], client.labels[:count])
            assert (table.scale, table.offset) == (client.scale, client.offset)


def test_one_file_is_recognised_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", shard({"f1": user()}))
    assert recognising.recognise([path]) == "leaf"
    table = read(path).tables["train"]
    np.testing.assert_array_equal(table.pixels.reshape(3, 16), GREY)
    assert table.labels.tolist() == [7, 0, 9]
    assert not leaf.recognises(write(tmp_path / "b.json", {"a": 1}))
    assert not leaf.recognises(write(tmp_path / "c.json", '["users"]'))
    assert not leaf.recognises(tmp_path / "absent")


def test_users_of_several_shards_are_merged(tmp_path: Path) -> None:
    write(tmp_path / "1.json", shard({"b": user(GREY[:1], [1]), "a": user(GREY[1:], [2, 3])}))
    write(tmp_path / "2.json", shard({"b": user(GREY[2:], [4])}))
    write(tmp_path / ".3.json", "hidden")
    table = read(tmp_path).tables["train"]
    assert list(table.owner_ids) == ["a", "b"]
    assert table.owners.tolist() == [1, 0, 0, 1]
    assert table.labels.tolist() == [1, 2, 3, 4]


def test_train_and_test_are_splits(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.json", shard({"f0000_14": user()}))
    write(tmp_path / "test" / "a.json", shard({"f0000_14": user(GREY[:1], [61])}))
    imported = read(tmp_path)
    assert {split: len(table) for split, table in imported.tables.items()} == {
        "train": 3,
        "test": 1,
    }
    assert imported.num_classes == 62
    assert imported.class_names[10] == "A"
    write(tmp_path / "test" / "a.json", shard({"other": user()}))
    assert not read(tmp_path).same_people


def test_any_order_of_keys_and_others_among_them(tmp_path: Path) -> None:
    parts = shard({"a": {"extra": [1, {"x": "]"}], "y": [7, 0, 9], "x": user()["x"]}})
    content = {
        "hierarchies": [["{", 1, None], {"k": [True, '\\"']}],
        "user_data": parts["user_data"],
        "n": -1.5,
        "num_samples": parts["num_samples"],
        "empty": {},
        "word": None,
        "users": parts["users"],
    }
    for indent in (None, 1):
        table = read(write(tmp_path / "a.json", json.dumps(content, indent=indent))).tables["train"]
        np.testing.assert_array_equal(table.pixels.reshape(3, 16), GREY)


def test_values_far_from_a_grey_level_stay_float32(tmp_path: Path) -> None:
    for digits, dtype in ((4, np.uint8), (2, np.float32)):
        table = read(write(tmp_path / "a.json", shard({"a": user(digits=digits)}))).tables["train"]
        assert table.pixels.dtype == dtype
    np.testing.assert_array_equal(
        table.pixels.reshape(3, 16), np.round(GREY / 255, 2).astype(np.float32)
    )
    just = user()
    just["x"][0][0] = 0.049 / 255
    assert read(write(tmp_path / "b.json", shard({"a": just}))).tables["train"].pixels.dtype == "u1"
    just["x"][0][0] = 0.051 / 255
    assert read(write(tmp_path / "b.json", shard({"a": just}))).tables["train"].pixels.dtype == "f4"


def test_image_shape_of_rows_that_are_no_square(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", shard({"a": user()}))
    assert read(path, image_shape=(2, 8)).tables["train"].pixels.shape == (3, 2, 8)


def test_user_without_examples_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", shard({"a": user(), "b": {"x": [], "y": []}}))
    assert list(read(path).tables["train"].owner_ids) == ["a"]


def test_memory_is_bounded_by_one_user(tmp_path: Path) -> None:
    pixels = np.round(np.arange(60 * 784).reshape(60, 784) % 256 / 255, 4)
    one = json.dumps({"x": pixels.tolist(), "y": [1] * 60})
    ids = [f"u{number:03}" for number in range(15)]
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write(json.dumps({"users": ids, "num_samples": [60] * 15})[:-1] + ', "user_data": {')
        file.write(", ".join(f'"{name}": {one}' for name in ids) + "}}")
    assert path.stat().st_size > 4 << 20
    tracemalloc.start()
    imported = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(imported.tables["train"]) == 900
    # The pixels of one user take 190 kB as float32, and a few times 190 kB while they are
    # rounded. A block of text takes 262 kB. json.load would take 23 MB for the whole file.
    assert peak < 4 << 20


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=10,
    ),
    st.integers(1, 9),
    st.sampled_from([None, 2]),
)
def test_skip_moves_past_any_value(value: Any, block: int, indent: int | None) -> None:
    text = json.dumps({"a": value, "b": [1, 2.5], "c": value, "é": value}, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK_CHARACTERS", block)
        stream = JsonStream(io.StringIO(text))
        seen = []
        for key in stream.keys():  # noqa: SIM118
            seen.append(key)
            if key == "b":
                assert stream.numbers() == [1, 2.5]
            else:
                stream.skip()
        stream.end()
    assert seen == ["a", "b", "c", "é"]


@given(st.text(alphabet='{}[]",:0e-. \\xyusernm_atl', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    stream = JsonStream(io.StringIO('{"users": ' + text))
    try:
        for _ in stream.keys():  # noqa: SIM118
            stream.skip()
        stream.end()
    except ValueError as err:
        assert str(err)  # noqa: PT017


# ---- Bad input -----------------------------------------------------------------------------------


def broken(**changes: Any) -> dict[str, Any]:
    return shard({"a": user()}) | changes


def with_x(*rows: Any) -> str:
    text = ", ".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    labels = json.dumps([1] * len(rows))
    return (
        f'{{"users": ["a"], "num_samples": [{len(rows)}], '
        f'"user_data": {{"a": {{"x": [{text}], "y": {labels}}}}}}}'
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "ends too early"),
        ("[]", "'[' where '{' is expected"),
        ("{", "ends too early"),
        ("{}", "has no 'users'; this is not a LEAF shard"),
        ("{} x", "where the end of the file is expected"),
        ({"users": [], "num_samples": []}, "has no 'user_data'"),
        ({"users": [], "user_data": {}}, "has no 'num_samples'"),
        (shard({}), "holds no examples"),
        (broken(users=["a", "a"], num_samples=[3, 3]), "user 'a': occurs twice in users"),
        (broken(users=["a", "b"], num_samples=[3, 3]), "user 'b': is in users but not in user"),
        (broken(users=[], num_samples=[]), "user 'a': is in user_data but not in users"),
        (broken(num_samples=[3, 1]), "1 user but 2 entries of num_samples"),
        (broken(num_samples=[4]), "user 'a': has 3 examples but num_samples says 4"),
        (broken(users=[1]), "user '1': is in users but not in user_data"),
        (broken(num_samples="x"), "where '[' is expected"),
        (broken(user_data=[]), "where '{' is expected"),
        (broken(user_data={"": user()}), "an id must have 1 to 255 bytes"),
        (broken(user_data={"a" * 300: user()}), "an id must have 1 to 255 bytes"),
        (
            '{"users": ["a"], "num_samples": [0], "user_data": {"a": {}, "a": {}}}',
            "user 'a': lacks x",
        ),
        (
            '{"users": ["a"], "num_samples": [0], "user_data": '
            '{"a": {"x": [], "y": []}, "a": {"x": [], "y": []}}}',
            "'a' occurs twice",
        ),
        (
            '{"users": ["a"], "num_samples": [0], "user_data": {"a": {"x": [], "x": []}}}',
            "user 'a': damaged JSON: 'x' occurs twice",
        ),
        (shard({"a": {"x": user()["x"]}}), "user 'a': lacks y"),
        (shard({"a": {"x": user()["x"], "y": [1, 2]}}), "user 'a': 3 images but 2 labels"),
        (shard({"a": user(labels=[1, 2.5, 3])}), "example 1: label 2.5 is not a whole number"),
        (shard({"a": user(labels=[1, -1, 3])}), "example 1: label -1 cannot be a class"),
        (shard({"a": user(labels=[1, 2**70, 3])}), f"example 1: label {2**70} cannot be a class"),
        (shard({"a": user(labels=[1, None, 3])}), "example 1: label 'null' is missing"),
        (shard({"a": user(labels=[1, float("nan"), 3])}), "example 1: label 'nan' is missing"),
        (shard({"a": user(labels=["1", "?", "3"])}), "example 1: label '?' is missing"),
        (shard({"a": user(labels=["1", "3.5", "3"])}), "example 1: label 3.5 is not a whole"),
        (
            shard({"a": user(labels=[[0, 1], [1, 1], [1, 0]])}),
            "example 1: labels have shape [n, 2]",
        ),
        (shard({"a": {"x": ["1.jpg"] * 3, "y": [1, 2, 3]}}), "'1.jpg' was not found near"),
        (with_x([0.5] * 4, [0.5] * 3), "user 'a': example 1: has 3 pixels but example 0 has 4"),
        (with_x([0.5] * 5), "user 'a': 5 pixels do not make a square image"),
        (with_x([]), "user 'a': 0 pixels do not make a square image"),
        (with_x([0.5] * 4, "[0.5, NaN, 1, 1]"), "example 1: a number is NaN or infinite"),
        (with_x("[0.5, Infinity, 1, 1]"), "example 0: a number is NaN or infinite"),
        (with_x("[0.5, 1e999, 1, 1]"), "example 0: a pixel is NaN or infinite"),
        (with_x("[0.5, 1e39, 1, 1]"), "example 0: a pixel is NaN or infinite"),
        (with_x(f"[0.5, 1{'0' * 400}, 1, 1]"), "example 0: int too large"),
        (with_x(f"[0.5, 1{'0' * 9000}, 1, 1]"), "example 0: "),
        (with_x('["0.5", 1, 1, 1]'), "user 'a': x holds text, not pixels ('0.5')"),
        (with_x('[1, "0.5", 1, 1]'), "example 0: a list of numbers contains "),
        (with_x("[null, 1, 1, 1]"), "example 0: a list of numbers contains 'null"),
        (with_x("[true, 1, 1, 1]"), "example 0: a list of numbers contains 'true"),
        (with_x("[1 1]"), "example 0: "),
        (with_x("[[[[1]]]]"), "example 0: a list of numbers contains '[1"),
        (with_x("3"), "example 0: character"),
        ('{"users": ' + "[" * 100_000, "ends too early"),
        ('{"other": ' + "[" * 100_000, "more than 64 levels deep"),
        ('{"users": ["' + "x" * 2_000_000 + '"]}', "a string does not end within"),
        ('{"other": }', "'}' where a value is expected"),
    ],
)
def test_bad_shard(tmp_path: Path, content: Any, fault: str) -> None:
    assert fault in message_of(tmp_path, content)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9, 0.999])
def test_truncated_shard(tmp_path: Path, share: float) -> None:
    text = json.dumps(shard({"a": user(), "b": user()}))
    assert "ends too early" in message_of(tmp_path, text[: int(len(text) * share)])


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"users": ["\xff\xfe"]}')
    with pytest.raises(DataError, match=r"a\.json: damaged JSON: 'utf-8' codec can't decode"):
        read(path)


def test_too_many_of_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(shard({"a": user(), "b": user()}))
    monkeypatch.setattr(leaf, "MAX_USERS", 1)
    assert "more than 1 users" in message_of(tmp_path, text)
    monkeypatch.undo()
    monkeypatch.setattr(leaf, "MAX_EXAMPLES", 2)
    assert "user 'a': has more than 2 examples" in message_of(tmp_path, text)
    monkeypatch.undo()
    monkeypatch.setattr(leaf, "MAX_CLIENT_BYTES", 64)
    assert "or 64 bytes of pixels; divide it" in message_of(tmp_path, text)
    monkeypatch.undo()
    monkeypatch.setattr(json_stream, "_MAX_LIST_CHARACTERS", 10)
    monkeypatch.setattr(json_stream, "_BLOCK_CHARACTERS", 8)
    assert "a list has more than 10 characters" in message_of(tmp_path, text)


def test_folders_without_a_train_split(tmp_path: Path) -> None:
    write(tmp_path / "test" / "a.json", shard({"a": user()}))
    with pytest.raises(DataError, match=r"holds no \*.json, and neither does its train/"):
        read(tmp_path)


def test_stopping_between_examples(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 2:
            raise StopError

    path = write(tmp_path / "a.json", shard({"a": user()}))
    with pytest.raises(StopError):
        recognising.read([path], ImportOptions(), None, stop)
