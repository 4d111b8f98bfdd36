"""The formats of image data that `fedcli preprocess` reads, one row each with its module.

A module of `fedcli.datasets.importers` that reads a format has two functions:

    recognises(path) -> bool                             by content alone, never by the file name
    read(sources, options, folder, on_progress) -> Imported     see `importers.recognising.read`
"""

from __future__ import annotations

from fedcli.settings.options import Entry, table

# In the order in which a source is tried. CIFAR's files have no signature, so they are tried late.
FORMATS = table(
    Entry(
        "mat",
        "MATLAB's .mat files of images and labels, such as SVHN's.",
        "MathWorks, MAT-File Format, versions 5 and 7.3",
        code="fedcli.datasets.importers.matlab",
    ),
    Entry(
        "tff-h5",
        "TensorFlow Federated's HDF5.",
        "TFF simulation/datasets, EMNIST",
        code="fedcli.datasets.importers.from_tff_h5",
    ),
    Entry(
        "tff-sqlite",
        "TensorFlow Federated's SQLite, also as .lzma.",
        "TFF simulation/datasets, SqlClientData",
        code="fedcli.datasets.importers.tff_sqlite",
    ),
    Entry(
        "leaf",
        "LEAF's JSON: a folder, or its shards.",
        "Caldas et al. 2018 (LEAF), arXiv 1812.01097",
        code="fedcli.datasets.importers.leaf",
    ),
    Entry(
        "idx",
        "MNIST's files, gzipped or not.",
        "LeCun, Cortes and Burges, The MNIST database, file format IDX",
        code="fedcli.datasets.importers.idx",
    ),
    Entry(
        "npz",
        "Arrays of NumPy.",
        "NumPy, numpy.lib.format",
        code="fedcli.datasets.importers.npz",
    ),
    Entry(
        "parquet",
        "Parquet of pictures or pixels, as Hugging Face writes it.",
        "Apache Parquet; Hugging Face datasets, Image and ClassLabel",
        code="fedcli.datasets.importers.parquet",
    ),
    Entry(
        "npy",
        "A folder of NumPy's .npy files: images and labels.",
        "NumPy, numpy.lib.format",
        code="fedcli.datasets.importers.npy_files",
    ),
    Entry(
        "csv",
        "One row for each image, below a header.",
        "RFC 4180",
        code="fedcli.datasets.importers.csv_files",
    ),
    Entry(
        "images",
        "Image files, with one folder for each class or client or both, or with a table.",
        "Pillow, image file formats",
        code="fedcli.datasets.importers.images",
    ),
    Entry(
        "clients",
        "One file for each client: CSV, npz, parquet or .npy, with or without a folder for each.",
        "fedcli",
        code="fedcli.datasets.importers.client_files",
    ),
    Entry(
        "cifar-python",
        "The Python version of CIFAR-10 and CIFAR-100: pickles, parsed but never executed.",
        "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        code="fedcli.datasets.importers.cifar_python",
    ),
    Entry(
        "stl10",
        "The binary files of STL-10.",
        "Coates, Lee and Ng 2011, An Analysis of Single-Layer Networks, AISTATS",
        code="fedcli.datasets.importers.stl10",
    ),
    Entry(
        "cifar",
        "The binary files of CIFAR-10 and CIFAR-100.",
        "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        code="fedcli.datasets.importers.cifar",
    ),
    Entry(
        "store",
        "A fedcli store, to partition it again.",
        "fedcli",
        code="fedcli.datasets.importers.from_store",
    ),
)
