"""Unpacks LZMA with bounded memory; the standard library's LZMAFile has no limit."""

from __future__ import annotations

import contextlib
import lzma
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fedcli.files import open_regular

MAX_DECODER_BYTES = 256 << 20  # largest memory of the decoder; the highest preset needs 65 MiB
_BLOCK_BYTES = 1 << 20


class XzReader:
    """The bytes in an .xz or .lzma file, from front to back."""

    def __init__(self, source: Path | BinaryIO) -> None:
        """Takes a path, or an open file, which the reader never closes. Raises OSError."""
        self._resources = contextlib.ExitStack()
        self._file: BinaryIO
        if isinstance(source, Path):
            self._file = self._resources.enter_context(open_regular(source))
        else:
            self._file = source
        self._decoder = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)

    def read(self, num_bytes: int) -> bytes:
        """Returns the next bytes, fewer or none at the end.

        Raises:
            lzma.LZMAError: The file is damaged, or needs more than `MAX_DECODER_BYTES` to unpack.
            EOFError: The file ends too early.
        """
        pieces = []
        while num_bytes and (piece := self._next(num_bytes)):
            pieces.append(piece)
            num_bytes -= len(piece)
        return b"".join(pieces)

    def __enter__(self) -> XzReader:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes what was opened."""
        self._resources.close()

    def _next(self, most: int) -> bytes:
        """Returns at most `most` bytes, and no bytes at the end."""
        while True:
            if self._decoder.eof:  # another stream may follow
                rest = self._decoder.unused_data or self._file.read(_BLOCK_BYTES)
                if not rest.strip(b"\0"):
                    return b""
                self._decoder = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
                piece = self._decoder.decompress(rest, most)
            else:
                block = self._file.read(_BLOCK_BYTES) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not block:
                    raise EOFError("it ends too early")
                piece = self._decoder.decompress(block, most)
            if piece:
                return piece
