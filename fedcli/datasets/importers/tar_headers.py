"""Headers of tar files with a bounded size, for untrusted archives."""

from __future__ import annotations

import tarfile
from typing import Any

# Size of a long name or similar header, which tarfile reads into memory.
_MAX_HEADER_BYTES = 1 << 20
_NO_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
)


class BoundedHeader(tarfile.TarInfo):
    """A header whose long names are bounded, so that tarfile cannot read gigabytes of them."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> BoundedHeader:
        """Reads one header."""
        info = super().frombuf(buf, encoding, errors)
        is_data = info.type in (*tarfile.REGULAR_TYPES, *_NO_DATA)
        if not is_data and info.size > _MAX_HEADER_BYTES:
            # tarfile would treat an error of its own class as the end of the archive.
            raise ValueError(f"a header of {info.size:,} bytes")
        return info
