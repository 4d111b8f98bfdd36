"""inspect-clients --augmented draws the images with which training computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcli import datasets
from fedcli.inspection.training_images import has_input_layers, training_images
from fedcli.runs.trained import data_of_run, load_trained
from tests.kit.training import trained

pytestmark = pytest.mark.numeric

NUM_VISITS, RATE, NUM_CLASSES = 12, 0.5, 10
ONE_STEP = {
    "data": "synthetic-shapes",
    "clients": "1",
    "model": "softmax-regression",
    "client_lr": RATE,
    "rounds": 1,
    "batch_size": NUM_VISITS,
    "max_examples": NUM_VISITS,
}


@pytest.mark.parametrize(
    ("augment", "options", "normalize"),
    [
        ("crop+flip", {"size": 24}, "train"),
        ("rotation+cutout", {}, None),
        (None, {}, "image"),
        ("mixup", {}, None),
        ("crop+flip+mixup", {"alpha": 0.5}, "image"),
    ],
)
def test_the_images_are_those_of_the_first_step(
    augment: str | None, options: dict[str, int], normalize: str | None, tmp_path: Path
) -> None:
    """From zero weights, the first step is rate x mean of image x (one-hot label - 1 / classes)."""
    run = trained(
        tmp_path / "run", augment=augment, augment_options=options, normalize=normalize, **ONE_STEP
    )
    data = datasets.open_splits(data_of_run(run, {}))["train"]
    with load_trained(run, 1) as loaded:
        (client_id,) = data.client_ids[:1]
        images = training_images(data, client_id, loaded, NUM_VISITS)
        kernel = loaded.model.layout.split(loaded.state.evaluated_weights)[0]
    assert len(images.labels) == NUM_VISITS
    assert not np.array_equal(images.before, images.after)
    factors = np.eye(NUM_CLASSES)[images.labels] - 1 / NUM_CLASSES
    if augment is not None and "mixup" in augment:
        shares = images.shares.astype(np.float64)[:, np.newaxis]
        assert ((shares > 0) & (shares < 1)).all()
        assert images.other_labels is not None
        others = np.eye(NUM_CLASSES)[images.other_labels] - 1 / NUM_CLASSES
        factors = shares * factors + (1 - shares) * others
    else:
        assert images.other_labels is None
        assert (images.shares == 1).all()
    flat = images.after.reshape(NUM_VISITS, -1).astype(np.float64)
    np.testing.assert_allclose(kernel, RATE * flat.T @ factors / NUM_VISITS, rtol=0, atol=1e-6)


def test_fewer_images_than_a_batch_have_the_same_partners(tmp_path: Path) -> None:
    """Batches have 5 images, so the first 7 images end within the second batch."""
    options = {"augment": "flip+mixup", "normalize": "train", **ONE_STEP, "batch_size": 5}
    run = trained(tmp_path / "run", **options)
    data = datasets.open_splits(data_of_run(run, {}))["train"]
    with load_trained(run, 1) as loaded:
        whole, few = (
            training_images(data, data.client_ids[0], loaded, num_images)
            for num_images in (NUM_VISITS, 7)
        )
    assert len(few.labels) == 7
    assert len(set(whole.shares.tolist())) == 3
    for name in ("labels", "other_labels", "shares", "before", "after"):
        np.testing.assert_array_equal(getattr(few, name), getattr(whole, name)[:7])


def test_a_model_without_input_layers_has_none(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **ONE_STEP)
    with load_trained(run, 1) as loaded:
        assert not has_input_layers(loaded.model.layout)
