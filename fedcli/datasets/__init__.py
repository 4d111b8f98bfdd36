"""Federated data, read one client at a time. `load` opens a dataset of any format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.datasets.batches import BatchedDataset as BatchedDataset
    from fedcli.datasets.batches import ClientDataset as ClientDataset
    from fedcli.datasets.client_data import ClientData as ClientData
    from fedcli.datasets.opening import fingerprint as fingerprint
    from fedcli.datasets.opening import load as load
    from fedcli.datasets.opening import note_of_change as note_of_change
    from fedcli.datasets.opening import open_splits as open_splits
    from fedcli.datasets.sources.given import from_arrays as from_arrays
    from fedcli.datasets.sources.given import from_examples as from_examples
    from fedcli.settings.data_source import DataSource as DataSource
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "BatchedDataset": "fedcli.datasets.batches",
            "ClientData": "fedcli.datasets.client_data",
            "ClientDataset": "fedcli.datasets.batches",
            "DataSource": "fedcli.settings.data_source",
            "fingerprint": "fedcli.datasets.opening",
            "from_arrays": "fedcli.datasets.sources.given",
            "from_examples": "fedcli.datasets.sources.given",
            "load": "fedcli.datasets.opening",
            "note_of_change": "fedcli.datasets.opening",
            "open_splits": "fedcli.datasets.opening",
        },
    )
