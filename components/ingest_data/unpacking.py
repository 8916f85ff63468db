"""Packed and encoded files made plain, within limits: a bomb is refused long before it has unpacked."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from secvec.components.ingest_data.config import Limits
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import local_errors

_BLOCK = 1 << 20
# Below this size any ratio goes: a short file of equal rows packs to very little.
_SMALL = 64 << 20
_ZSTD_BLOCK = 4096  # packed bytes at once: four of them can stand for 128 KiB
_WINDOW = 1 << 27  # bytes that zstd may ask for to unpack


def unpack(path: Path, packing: str, target: Path, *, where: str, limits: Limits) -> Path:
    """Unpack a gzip or zstd file into `target`.

    Raises:
        SecvecError: It is damaged, or unpacks to more than the limits.
    """
    most = min(limits.max_unpacked_bytes, max(_SMALL, int(path.stat().st_size * limits.max_ratio)))
    size = 0
    with path.open("rb") as packed, local_errors(target), target.open("xb") as out:
        for block in _unpacked(packed, packing, where=where):
            size += len(block)
            if size > most:
                raise SecvecError(
                    f"unpacks to more than {most} bytes from {path.stat().st_size}",
                    where=where,
                    accepted=f"at most limits.max_ratio = {limits.max_ratio:g} and "
                    f"limits.max_unpacked_bytes = {limits.max_unpacked_bytes}",
                )
            out.write(block)
    return target


def _unpacked(packed: BinaryIO, packing: str, *, where: str) -> Iterator[bytes]:
    import zstandard

    try:
        if packing == "gzip":
            with gzip.GzipFile(fileobj=packed) as plain:
                while block := plain.read(_BLOCK):
                    yield block
            return
        yield from _unpacked_zstd(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise SecvecError(f"cannot be unpacked: {error}", where=where, accepted=f"whole {packing}") from None


def _unpacked_zstd(packed: BinaryIO) -> Iterator[bytes]:
    """Unpack frame by frame; unlike the library's own reader, this notices a last frame that was cut."""
    import zstandard

    decompressor = None
    while block := packed.read(_ZSTD_BLOCK):
        while block:
            if decompressor is None:
                decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
            yield decompressor.decompress(block)
            block = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor = None
    if decompressor is not None:
        raise EOFError("it ends within a frame")


def recode(path: Path, encoding: str, target: Path, *, where: str) -> Path:
    """Write a text file in UTF-8.

    Raises:
        SecvecError: A byte of it is not of the encoding.
    """
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    at = 0
    with path.open("rb") as source, local_errors(target), target.open("xb") as out:
        while True:
            block = source.read(_BLOCK)
            try:
                out.write(decoder.decode(block, final=not block).encode())
            except UnicodeError as error:
                raise SecvecError(
                    f"is not {encoding} near byte {at}: {error}", where=where, accepted="the encoding it has"
                ) from None
            if not block:
                return target
            at += len(block)
