from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedcli.models.keras import formats
from tests.kit.command_line import Fedcli, WriteTff
from tests.kit.keras_samples import archive, counted, image_input, layer, put, sequential

# For images of 6 x 4, as `write_tff` draws them.
MODEL = sequential(
    image_input(6, 4, 1),
    layer("Conv2D", "first", filters=2, kernel_size=[3, 3], strides=[1, 1], activation="relu"),
    layer("Flatten", "flat"),
    layer("Dense", "last", units=10, activation="softmax"),
)
SHAPES = [(3, 3, 1, 2), (2,), (16, 10), (10,)]


def some_weights() -> list:
    return [
        np.linspace(-0.5, 0.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        for shape in SHAPES
    ]


def keras_file(name: str = "m.keras") -> Path:
    weights = some_weights()
    image = counted({"conv2d": weights[:2], "dense": weights[2:]})
    return put(Path(name), archive(MODEL, image))


@pytest.mark.parametrize("suffix", ["npz", "keras", "weights.h5"])
def test_a_model_of_keras_goes_through_training_and_back(
    fedcli: Fedcli, write_tff: WriteTff, suffix: str
) -> None:
    data = write_tff()
    given = ("train", "--data", data, "--rounds", 1, "--json", "--out")
    first = fedcli(*given, "run", "--model", keras_file())
    assert first.code == 0
    exported = Path(f"out.{suffix}")
    done = fedcli("export", "run", exported, "--json")
    assert [each["name"] for each in json.loads(done.out)["tensors"]] == [
        *("first/kernel", "first/bias", "last/kernel", "last/bias"),
    ]
    # The evaluation equals that of a run that starts from the exported weights with rate 0.
    stay = ("--client-lr", 0, "--model", "m.keras", "--initial-weights", exported)
    again = fedcli(*given, "again", *stay)
    assert again.code == 0, again.err
    closing = [json.loads(each.out)["evaluation"] for each in (first, again)]
    assert closing[0] == closing[1]
    if suffix == "keras":
        model = formats.read_model(exported)
        assert [spec.name for spec in model.specs] == ["first", "flat", "last"]
        assert any((a != b).any() for a, b in zip(model.weights or [], some_weights(), strict=True))


def test_training_starts_from_the_weights_of_the_file(fedcli: Fedcli, write_tff: WriteTff) -> None:
    data = write_tff()
    stay = ("train", "--data", data, "--rounds", 1, "--client-lr", 0, "--model", keras_file())
    assert fedcli(*stay, "--out", "kept").code == 0
    assert fedcli(*stay, "--out", "fresh", "--fresh-weights").code == 0
    for name in ("kept", "fresh"):
        fedcli("export", name, f"{name}.npz")
    with np.load("kept.npz") as kept, np.load("fresh.npz") as fresh:
        for array, wanted in zip(kept.values(), some_weights(), strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert (fresh["first/kernel"] != some_weights()[0]).all()
        assert not fresh["first/bias"].any()


def test_a_layer_that_is_not_computed_is_told_before_any_work(
    fedcli: Fedcli, write_tff: WriteTff, tmp_path: Path
) -> None:
    put(Path("m.json"), sequential(image_input(6, 4), layer("LSTM", "memory", units=3)))
    done = fedcli("train", "--data", write_tff(), "--model", "m.json", "--out", "run")
    assert (done.code, done.out) == (1, "")
    assert "m.json: layer memory is a LSTM, which fedcli does not support; it supports" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
