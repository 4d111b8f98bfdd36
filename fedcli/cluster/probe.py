"""A short fixed computation whose digest shows whether two machines compute the same bytes.

Equal versions do not suffice: compilers differ in which multiplications and additions they fuse,
and C libraries in how they round logarithms.
"""

from __future__ import annotations

import numpy as np

from fedcli import datasets, models
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.digest import blake2b
from fedcli.learning import optimizers
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine

_MODELS = ("softmax-regression", "cnn-reddi")


def digest() -> str:
    """Returns the BLAKE2b digest of the results of one round of two models on generated digits."""
    train = datasets.load("synthetic-digits", data_options={"clients": 2})[0]
    plan = BatchPlan(batch_size=8, max_examples=16)
    clients = tuple(BatchedDataset(train.client(each), plan) for each in train.client_ids)
    engine = ThreadEngine(1)
    result = blake2b(digest_size=16)
    for name in _MODELS:
        model = models.build(name)
        rows = tuple(optimizers.sgd(0.1).client_rows())
        task = ClientTask(rows, model.initial_params, 0, "num-examples")
        deltas = engine.train(model.layout, task, clients)
        result.update(deltas.delta_sum.tobytes())
        result.update(np.ascontiguousarray(deltas.stats["loss_sum"]).tobytes())
    return result.hexdigest()
