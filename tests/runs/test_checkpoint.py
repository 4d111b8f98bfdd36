from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedcli.errors import CheckpointError
from fedcli.runs.files import checkpoint
from fedcli.runs.files.checkpoint import Checkpoint


def make(weights: dict[str, checkpoint.Part], **parts: dict[str, checkpoint.Part]) -> Checkpoint:
    components = {name: parts.get(name, {}) for name in checkpoint.COMPONENTS}
    components["global_model_weights"] = weights
    return Checkpoint(7, components, "[run]\nseed = 1\n", (2, 2), 3, "ink", "0.0")


@pytest.fixture
def content() -> Checkpoint:
    kernel = np.arange(12, dtype=np.float32).reshape(4, 3)
    return make(
        {"dense/kernel": kernel, "dense/bias": np.zeros(3, np.float32)},
        finalizer={"accumulator": np.ones(15, np.float32), "step": 3, "decay": 0.5},
    )


@pytest.fixture
def file(tmp_path: Path, content: Checkpoint) -> Path:
    path = tmp_path / "round-000007.h5"
    path.write_bytes(checkpoint.encode(content))
    return path


@given(
    st.dictionaries(
        st.text("abcxyz_/é", min_size=1, max_size=9).filter(
            lambda name: "/" not in (name[0], name[-1]) and "//" not in name and "." not in name
        ),
        st.one_of(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=64),
            hnp.arrays(
                st.sampled_from([np.float32, np.float64, np.int64]),
                hnp.array_shapes(max_dims=3, max_side=4, min_side=0),
            ),
        ),
        max_size=1,
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "c.h5"
    before = make({"a": np.ones(3, np.float32)}, aggregator=parts)  # type: ignore[arg-type]
    path.write_bytes(checkpoint.encode(before))
    after = checkpoint.load(path)
    assert (after.round_num, after.config, after.input_shape, after.num_classes) == (
        before.round_num,
        before.config,
        before.input_shape,
        before.num_classes,
    )
    for name, part in parts.items():
        loaded = after.components["aggregator"][name]
        assert type(loaded) is type(part)
        np.testing.assert_array_equal(loaded, part)
        assert getattr(loaded, "dtype", None) == getattr(part, "dtype", None)
    checkpoint.check(after, before.components, path)


def test_images_may_have_more_pixels_than_the_file_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    small = replace(make({"kernel": np.ones((3, 3, 1, 2), np.float32)}), input_shape=(4096, 4096))
    path.write_bytes(checkpoint.encode(small))
    assert path.stat().st_size < 4096 * 4096 / 100
    assert checkpoint.load(path).input_shape == (4096, 4096)


def test_tensors_keep_their_order_where_no_layers_say_it(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    weights: dict[str, Any] = {name: np.ones(3, np.float32) for name in ("w10", "w2", "a")}
    content = replace(make(weights), tensor_names=("w10", "w2", "a"))
    path.write_bytes(checkpoint.encode(content))
    assert checkpoint.load(path).tensor_names == ("w10", "w2", "a")
    assert checkpoint.encode(content) == path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        '["a"]',
        '["a", "a"]',
        '["a", "../b"]',
        '["a", "b", "c"]',
        '["a", 1]',
        '{"a": 1}',
        "7",
        "[" * 9999,
    ],
)
def test_names_of_tensors_that_are_not_the_weights_are_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.h5"
    weights: dict[str, Any] = {name: np.ones(3, np.float32) for name in ("a", "b")}
    path.write_bytes(checkpoint.encode(replace(make(weights), tensor_names=("b", "a"))))
    named = np.frombuffer(text.encode(), np.uint8)
    rewrite(path, put("tensors", lambda file: file.__setitem__("tensors", named)))
    with pytest.raises(CheckpointError, match="tensors does not list the weights by name"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "digests",
    [{}, {"client_states": 0}, {"client_states": 2**63 - 1, "residuals": 7}],
)
def test_the_digests_of_what_clients_keep(
    content: Checkpoint, tmp_path: Path, digests: dict[str, int]
) -> None:
    file = tmp_path / "round.h5"
    file.write_bytes(checkpoint.encode(replace(content, client_states=digests)))
    assert checkpoint.load(file).client_states == digests


def test_equal_states_give_equal_bytes(content: Checkpoint) -> None:
    assert checkpoint.encode(content) == checkpoint.encode(content)


def test_hdf5_tools_read_it(file: Path) -> None:
    with h5py.File(file) as opened:
        assert opened.attrs["format"] == "fedcli-checkpoint"
        assert opened["global_model_weights/dense/kernel"].shape == (4, 3)
        assert opened["finalizer/step"][()] == 3


def test_every_flipped_byte_is_reported(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged|not a whole"):
            checkpoint.load(file)


@pytest.mark.parametrize("num_bytes", [0, 10, 48, 1000, -1])
def test_a_cut_file_is_reported(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match="not a whole fedcli checkpoint"):
        checkpoint.load(file)


def test_missing_and_foreign_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.zeros(1000)
    with pytest.raises(CheckpointError, match="not a whole fedcli checkpoint"):
        checkpoint.load(tmp_path / "other.h5")


def rewrite(file: Path, change: object) -> None:
    """Changes a checkpoint's HDF5 content and computes its digest again, as an attacker would."""
    from hashlib import blake2b

    trailer_bytes = len(b"\nfedcli-blake2b\n") + 32
    file.write_bytes(file.read_bytes()[:-trailer_bytes])
    with h5py.File(file, "r+") as opened:
        change(opened)  # type: ignore[operator]
    image = file.read_bytes()
    file.write_bytes(image + b"\nfedcli-blake2b\n" + blake2b(image, digest_size=32).digest())


def drop(name: str) -> object:
    def change(opened: h5py.File) -> None:
        del opened[name]

    return change


def put(name: str, make_it: object) -> object:
    def change(opened: h5py.File) -> None:
        if name in opened:
            del opened[name]
        make_it(opened)  # type: ignore[operator]

    return change


def set_attribute(name: str, value: object) -> object:
    def change(opened: h5py.File) -> None:
        opened.attrs[name] = value

    return change


BIAS = "global_model_weights/dense/bias"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_attribute("version", 2), "checkpoint version 2, written by fedcli 0.0"),
        (set_attribute("format", "x"), "not a fedcli checkpoint"),
        (set_attribute("round_num", -1), "claims round -1"),
        (set_attribute("round_num", "x"), "not a usable checkpoint"),
        (set_attribute("input_shape", [2**40]), "claims round 7"),
        (set_attribute("input_shape", 3), "not a usable checkpoint"),
        (set_attribute("input_shape", [2**14, 2**14]), "claims round 7"),
        (set_attribute("input_shape", [1] * 9), "claims round 7"),
        (set_attribute("num_classes", 0), "claims round 7"),
        (set_attribute("num_classes", 2**30), "claims round 7"),
        (set_attribute("pixel_convention", "chalk"), "has pixel convention 'chalk'"),
        (drop("finalizer"), "finalizer is missing"),
        (drop("config"), "config is missing"),
        (
            put(BIAS, lambda f: f.create_dataset(BIAS, (2**40,), np.float32)),
            "not a plain array",
        ),
        (
            put(BIAS, lambda f: f.create_dataset(BIAS, (64,), np.float32, chunks=(8,))),
            "not a plain array",
        ),
        (put(BIAS, lambda f: f.create_dataset(BIAS, data="text")), "not a plain array"),
        (
            put(BIAS, lambda f: f.__setitem__(BIAS, h5py.ExternalLink("/etc/x.h5", "/y"))),
            "missing or of another kind",
        ),
        (put("aggregator/ring", lambda f: f.__setitem__("aggregator/ring", f["/"])), "too deeply"),
    ],
)
def test_a_signed_file_is_still_not_trusted(file: Path, change: object, fault: str) -> None:
    rewrite(file, change)
    with pytest.raises(CheckpointError, match=fault) as caught:
        checkpoint.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("component", "parts"),
    [
        ("global_model_weights", {"dense/kernel": np.zeros((4, 3), np.float32)}),
        ("finalizer", {}),
        ("finalizer", {"accumulator": np.ones(15), "step": 3, "decay": 0.5}),
        ("finalizer", {"accumulator": np.ones(14, np.float32), "step": 3, "decay": 0.5}),
        ("finalizer", {"accumulator": np.ones(15, np.float32), "step": 3.0, "decay": 0.5}),
        ("aggregator", {"extra": 1}),
    ],
)
def test_a_state_that_does_not_fit_is_reported(
    file: Path, content: Checkpoint, component: str, parts: dict[str, checkpoint.Part]
) -> None:
    with pytest.raises(CheckpointError, match=f"{component} holds .* needs"):
        checkpoint.check(checkpoint.load(file), {**content.components, component: parts}, file)


@pytest.mark.parametrize("description", [None, '{"layers": "schön"}'])
def test_the_description_of_the_model_is_kept_as_text(
    content: Checkpoint, tmp_path: Path, description: str | None
) -> None:
    file = tmp_path / "round.h5"
    file.write_bytes(checkpoint.encode(replace(content, description=description)))
    assert checkpoint.load(file).description == description


def test_an_address_far_outside_the_file_is_reported(file: Path) -> None:
    image = bytearray(file.read_bytes()[:-48])
    image[51] = 31  # in the superblock: the address of a driver block, which was "none"
    digest = blake2b(image, digest_size=32).digest()
    file.write_bytes(bytes(image) + b"\nfedcli-blake2b\n" + digest)
    with pytest.raises(CheckpointError, match="it points outside itself"):
        checkpoint.load(file)
