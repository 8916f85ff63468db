"""Runs of words, or of characters in Japanese and Chinese, that a row shares with earlier sources.

A run of `n` tokens is a number of 64 bits; tokens are those of the text as it is compared (`fold_text`).
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from secvec.components.ingest_data.config import SourceName
from secvec.components.ingest_data.overlap import Spoken, fold_text

# Japanese and Chinese have no spaces between words: there each character counts.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]")
_TOKEN = re.compile(_UNSPACED.pattern + r"|[^\W_" + _UNSPACED.pattern[1:-1] + r"]+")
_WORD = re.compile(r"\w+", re.ASCII)
NGRAMS = "ngrams.bin"
_BASE = 0x9E3779B97F4A7C15
_codes: dict[str, int] = {}
_MOST_CODES = 1 << 19


def split_tokens(text: str) -> list[str]:
    """Split folded text into words, and characters of scripts that put no spaces between words."""
    return _WORD.findall(text) if text.isascii() else _TOKEN.findall(text)


def number_ngrams(turns: Iterable[Spoken], length: int) -> Any:
    """Give the number of each run of `length` tokens within a turn, as an array of uint64."""
    found = [_number(split_tokens(fold_text(turn.content)), length) for turn in turns]
    return numpy.concatenate(found) if found else numpy.zeros(0, numpy.uint64)


def _number(tokens: Sequence[str], length: int) -> Any:
    count = len(tokens) - length + 1
    if count <= 0:
        return numpy.zeros(0, numpy.uint64)
    codes = numpy.array([_codes.get(token) or _encode(token) for token in tokens], numpy.uint64)
    powers = [pow(_BASE, power, 1 << 64) for power in range(1, length + 1)]
    found = numpy.zeros(count, numpy.uint64)
    for at, power in enumerate(powers):
        found += codes[at : at + count] * numpy.uint64(power)
    return found


def _encode(token: str) -> int:
    if len(_codes) > _MOST_CODES:
        _codes.clear()
    found = _codes[token] = zlib.crc32(token.encode()) + 1
    return found


def write_ngrams(folder: Path, numbers: Sequence[Any]) -> None:
    """Write the runs of what a shard asks, each once."""
    found = numpy.unique(numpy.concatenate(numbers)) if numbers else numpy.zeros(0, numpy.uint64)
    (folder / NGRAMS).write_bytes(found.astype("<u8").tobytes())


def merge_ngrams(folders: Sequence[Path], path: Path) -> None:
    """Put the runs of several shards together."""
    found = numpy.concatenate([numpy.fromfile(folder / NGRAMS, "<u8") for folder in folders])
    path.write_bytes(numpy.unique(found).tobytes())


@functools.lru_cache(maxsize=2)
def load_ngrams(sources: tuple[tuple[SourceName, Path], ...]) -> KnownNgrams:
    """Load the runs of what earlier sources ask, once in each process."""
    return KnownNgrams([(name, path.with_suffix(".ngrams")) for name, path in sources])


class KnownNgrams:
    """The runs of tokens in what earlier sources ask."""

    def __init__(self, sources: Sequence[tuple[SourceName, Path]]) -> None:
        self._sources = [(name, numpy.fromfile(path, numpy.uint64)) for name, path in sources]
        arrays = [numbers for _, numbers in self._sources]
        self._all = numpy.unique(numpy.concatenate(arrays)) if arrays else numpy.zeros(0, numpy.uint64)

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(len(self._all))

    def find(self, numbers: Any) -> list[SourceName]:
        """Name the sources with which any of these runs is shared."""
        if not len(numbers) or not _among(numbers, self._all):
            return []
        return [name for name, known in self._sources if _among(numbers, known)]


def _among(numbers: Any, known: Any) -> bool:
    if not len(known):
        return False
    at = numpy.minimum(numpy.searchsorted(known, numbers), len(known) - 1)
    return bool((known[at] == numbers).any())
