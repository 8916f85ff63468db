"""Rows that are nearly the same: MinHash signatures, and the search for like ones in bands.

The signature is rensa's; 16 bands of 4 values find nearly all pairs that share four fifths of their runs of
three tokens. What is found does not depend on how the rows are cut into shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from secvec.components.ingest_data.ngrams import split_tokens
from secvec.components.ingest_data.overlap import Spoken, fold_text

SIGNATURES = "signatures.bin"
_VALUES, _BAND = 64, 4
_SHINGLE = 3
_SEED = 20231104
_AT_ONCE = 1 << 16


class NearPairs(NamedTuple):
    """Rows like an earlier one, numbered over all shards: the later, the earlier, and how like they are."""

    later: Any
    earlier: Any
    similarity: Any


def sign_text(turns: Sequence[Spoken]) -> bytes:
    """Give the signature of a conversation: 64 numbers of 32 bits."""
    from rensa import RMinHash

    tokens = split_tokens(fold_text(" ".join(turn.content for turn in turns)))
    runs = max(1, len(tokens) - _SHINGLE + 1)
    minhash = RMinHash(num_perm=_VALUES, seed=_SEED)
    minhash.update([" ".join(tokens[at : at + _SHINGLE]) for at in range(runs)])
    return numpy.array(minhash.digest(), "<u4").tobytes()


def find_near(folders: Sequence[Path], *, again: Any, threshold: float) -> NearPairs:
    """Find rows that are like an earlier one.

    Takes 80 bytes of memory a row. A row is compared with the first of each band that it shares, and with the
    one before it there.

    Args:
        folders: The shards' folders, in the order of their rows.
        again: For each row whether it equals an earlier one; such rows are left out.
        threshold: Least estimated share of common runs of tokens.
    """
    parts = [numpy.memmap(path, "<u4", "r").reshape(-1, _VALUES) for path in _not_empty(folders)]
    starts = numpy.cumsum([0, *(len(part) for part in parts)])
    rows = numpy.flatnonzero(~again)
    best: dict[int, tuple[int, float]] = {}
    for band in range(_VALUES // _BAND):
        columns = slice(band * _BAND, (band + 1) * _BAND)
        keys = numpy.concatenate([_mix(part[:, columns]) for part in parts] or [numpy.zeros(0, numpy.uint64)])
        for later, earlier in _pair(keys[rows], rows):
            similar = (_take(parts, starts, later) == _take(parts, starts, earlier)).mean(axis=1)
            found = similar >= threshold
            for one, other, share in zip(
                later[found].tolist(), earlier[found].tolist(), similar[found].tolist(), strict=True
            ):
                best[one] = min(best.get(one, (other, share)), (other, share))
    order = sorted(best)
    return NearPairs(
        numpy.array(order, numpy.int64),
        numpy.array([best[one][0] for one in order], numpy.int64),
        numpy.array([best[one][1] for one in order], numpy.float64),
    )


def _not_empty(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders if (path := folder / SIGNATURES).stat().st_size]


def _mix(values: Any) -> Any:
    found = numpy.zeros(len(values), numpy.uint64)
    for column in range(_BAND):
        found = (found ^ values[:, column].astype(numpy.uint64)) * numpy.uint64(0x9E3779B97F4A7C15)
        found ^= found >> numpy.uint64(29)
    return found


def _pair(keys: Any, rows: Any) -> Any:
    """Yield pairs of rows with the same key, the later and the earlier, a block at a time."""
    order = numpy.argsort(keys, kind="stable")
    ordered = keys[order]
    same = numpy.zeros(len(keys), bool)
    same[1:] = ordered[1:] == ordered[:-1]
    first = numpy.maximum.accumulate(numpy.where(same, 0, numpy.arange(len(keys)))) if len(keys) else same
    at = numpy.flatnonzero(same)
    for start in range(0, len(at), _AT_ONCE):
        block = at[start : start + _AT_ONCE]
        yield rows[order[block]], rows[order[first[block]]]
        yield rows[order[block]], rows[order[block - 1]]


def _take(parts: list[Any], starts: Any, rows: Any) -> Any:
    found = numpy.empty((len(rows), _VALUES), numpy.uint32)
    shards = numpy.searchsorted(starts, rows, side="right") - 1
    for shard in numpy.unique(shards):
        here = shards == shard
        found[here] = parts[int(shard)][rows[here] - starts[shard]]
    return found
