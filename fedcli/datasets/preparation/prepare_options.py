"""`PrepareOptions`: the options of `fedcli preprocess`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from fedcli.dataclass import dataclass
from fedcli.datasets.partitions.hold_out import DEFAULT_FRACTION
from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.options import Value, check_number, resolve
from fedcli.settings.values import MAX_SEED, check_whole
from fedcli.settings.vocabulary import HOLD_OUTS, VALIDATION


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options for `prepare`.

    Attributes:
        format: Format of the source, a key of `tables.FORMATS`; None: recognised by content.
        num_classes: Labels are 0 to num_classes - 1; None: stated by the source, or inferred from
            the labels.
        label_column: Name of the column of labels in a CSV file.
        id_column: Name of the column of owners in a CSV file.
        file_column: Name of the column of file names in a table of pictures.
        splits: The folder or file of each split; empty: there are no splits; None: recognised by
            their names.
        image_shape: Shape of the image in a row of a CSV file, (H, W) or (H, W, C).
        folders: The meaning of folders of images, a key of `folder_meaning.LAYOUTS`; None:
            inferred.
        color: Colour of the images, one of `vocabulary.COLORS`; None: unchanged.
        pixel_range: Range of the pixels in the source, one of `vocabulary.PIXEL_RANGES`; None:
            decided by the largest pixel.
        polarity: Meaning of 1.0 in the source, one of `vocabulary.PIXEL_CONVENTIONS`; None:
            decided by the format or the pixels.
        size: (H, W) to which images are resized; None: they must all have the same size.
        centre: Whether ink is moved to the middle of each image.
        digits_only: Keep only examples with labels 0 to 9.
        invert: Replace each pixel x by 1 - x.
        min_examples: Clients with fewer train examples are left out. Examples are counted before
            any are held out.
        test_data: A source whose test split, else train split, becomes the test split. If its
            examples have no owners and the partition is natural, it becomes the split central.
        hold_out: One of `vocabulary.HOLD_OUTS`; None: nothing is held out.
        hold_out_split: The split to make, "test" or "validation" (a pooled test is called central);
            None: test if the source has none, else validation.
        hold_out_fraction: The share to hold out.
        seed: Seed of all random choices, unless the partition's options have one.
        partition: A scheme, changes to examples, or both, joined by "+"; None: natural, or iid if
            the examples have no owners.
        partition_options: Options of the partition.
        source: The origin of the data, recorded in the store; None: as the source states it.
        licence: The licence of the data; None: as the source states it.
        class_names: A name for each class; empty: those of the source.
        same_people: Whether clients of train and test with equal ids are the same people; None: as
            in the source.
        central_data: Files of a source whose clients become the split central; empty: there is no
            such split.
    """

    format: str | None = None
    num_classes: int | None = None
    label_column: str | None = None
    id_column: str | None = None
    file_column: str | None = None
    splits: Mapping[str, str] | None = None
    image_shape: tuple[int, ...] | None = None
    folders: str | None = None
    color: str | None = None
    pixel_range: str | None = None
    polarity: str | None = None
    size: tuple[int, int] | None = None
    centre: bool = False
    digits_only: bool = False
    invert: bool = False
    min_examples: int = 0
    test_data: Path | None = None
    hold_out: str | None = None
    hold_out_split: str | None = None
    hold_out_fraction: float = DEFAULT_FRACTION
    seed: int = 0
    partition: str | None = None
    partition_options: Mapping[str, Value] = field(default_factory=dict)
    source: str | None = None
    licence: str | None = None
    class_names: tuple[str, ...] = ()
    same_people: bool | None = None
    central_data: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Checks the options that do not depend on the source.

        Raises:
            ConfigError: An option has a value that is not allowed, or two options contradict each
                other.
        """
        if self.hold_out not in (None, *HOLD_OUTS):
            raise ConfigError(f"--hold-out {self.hold_out}: choose one of {', '.join(HOLD_OUTS)}")
        fraction = check_number("--hold-out-fraction", self.hold_out_fraction, 0.0, 1.0)
        if not 0.0 < fraction < 1.0:
            raise ConfigError(
                f"--hold-out-fraction {fraction}: choose a number above 0 and below 1"
            )
        check_whole("--min-examples", self.min_examples, minimum=0)
        check_whole("--seed", self.seed, minimum=0, maximum=MAX_SEED)
        if self.hold_out_split not in (None, "test", VALIDATION):
            raise ConfigError(f"--hold-out {self.hold_out_split}=: choose test or {VALIDATION}")
        if self.hold_out_split == "test" and self.test_data is not None:
            raise ConfigError(
                "--hold-out test= and --test-data contradict each other; give one of them"
            )
        if self.partition is not None:
            entry = tables.find_partition(self.partition)
            try:
                resolve(entry, self.partition_options)
            except ConfigError as err:
                raise ConfigError(f"--partition-option: {err}") from err
