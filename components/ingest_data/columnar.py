"""Rows of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
from pyarrow import compute, ipc, parquet

from secvec.components.ingest_data.config import Limits
from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.ingest_data.rows import Row, check_header, too_long
from secvec.components.shared.errors import SecvecError

_BATCH_ROWS = 1024
_FOOTER_BYTES = 64 << 20
_GROUP_BYTES = 1 << 30
_AT_ONCE = 64 << 20
_SAFELY: dict[str, Any] = {
    "thrift_string_size_limit": _FOOTER_BYTES,
    "thrift_container_size_limit": 1_000_000,
    "arrow_extensions_enabled": False,
}
_BROKEN = (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError)


def open_table(path: Path, file_format: str, *, where: str, limits: Limits) -> tuple[int, Iterator[Row]]:
    """Open a Parquet or Arrow file for reading row by row.

    Returns:
        The number of rows, 0 where only reading tells it, and the rows.

    Raises:
        SecvecError: The file cannot be read as its format, or asks for more than the limits; some of it only
            while iterating.
    """
    opened = _open_parquet if file_format == "Parquet" else _open_arrow
    try:
        schema, total, batches = opened(path, where=where, limits=limits)
        check_header(schema.names, where=where, limits=limits)
    except _BROKEN as error:
        raise _unreadable(file_format, str(error), where=where) from None
    # Below 256 MiB any ratio goes: a short table of equal rows packs to very little.
    most = min(limits.max_unpacked_bytes, max(256 << 20, path.stat().st_size * limits.max_ratio))
    return total, _read_batches(batches, file_format, most=most, where=where, limits=limits)


def _open_parquet(path: Path, *, where: str, limits: Limits) -> tuple[Any, int, Callable[[], Iterator[Any]]]:
    _check_footer(path, where=where)
    file = parquet.ParquetFile(path, **_SAFELY)
    metadata = file.metadata
    packed = max(1, path.stat().st_size)
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        if not 0 <= size <= _GROUP_BYTES or size > max(packed * limits.max_ratio, 1 << 24):
            raise SecvecError(
                f"row group {number + 1} unpacks to {size} bytes from a file of {packed}",
                where=where,
                accepted=f"at most {_GROUP_BYTES} bytes and limits.max_ratio = {limits.max_ratio:g}",
            )
    columns = [metadata.schema.column(index) for index in range(len(metadata.schema.names))]
    flat = [one.path for one in columns if one.physical_type == "BYTE_ARRAY" and "." not in one.path]
    file.close()
    # A dictionary says a long text once for many rows: read as one, a batch is no longer than what is stored.
    file = parquet.ParquetFile(path, read_dictionary=flat, pre_buffer=False, buffer_size=1 << 20, **_SAFELY)
    rows = min((_batch_rows(metadata.row_group(i)) for i in range(metadata.num_row_groups)), default=1)
    return (
        file.schema_arrow,
        metadata.num_rows,
        lambda: file.iter_batches(batch_size=rows, use_threads=False),
    )


def _batch_rows(group: Any) -> int:
    """Give how many rows to read at once: few where a nested dictionary could repeat something long."""
    rows = _BATCH_ROWS
    for index in range(group.num_columns):
        chunk = group.column(index)
        if "." not in chunk.path_in_schema or not chunk.has_dictionary_page:
            continue
        packed = max(0, chunk.data_page_offset - (chunk.dictionary_page_offset or 0))
        longest = min(
            chunk.total_uncompressed_size, packed if chunk.compression == "UNCOMPRESSED" else 16 * packed
        )
        rows = min(rows, max(16, (256 << 20) // max(1, longest)) if longest <= 32 << 20 else 1)
    return rows


def _check_footer(path: Path, *, where: str) -> None:
    with path.open("rb") as stream:
        size = path.stat().st_size
        stream.seek(max(0, size - 8))
        length = int.from_bytes(stream.read(4), "little")
    if length > min(size, _FOOTER_BYTES):
        raise SecvecError(
            f"cannot be read as Parquet: it announces a footer of {length} bytes",
            where=where,
            accepted=f"Parquet with a footer of at most {_FOOTER_BYTES} bytes",
        )


def _open_arrow(path: Path, *, where: str, limits: Limits) -> tuple[Any, int, Callable[[], Iterator[Any]]]:
    """Open the file form (Feather) or the stream form, which `datasets` writes."""
    source = pyarrow.memory_map(str(path))
    if source.size() >= 6 and source.read_at(6, 0) == b"ARROW1":
        file = ipc.open_file(source)
        return file.schema, 0, lambda: (file.get_batch(index) for index in range(file.num_record_batches))
    stream = ipc.open_stream(source)
    return stream.schema, 0, lambda: iter(stream)


def _read_batches(
    batches: Callable[[], Iterator[Any]], file_format: str, *, most: float, where: str, limits: Limits
) -> Iterator[Row]:
    number, unpacked = 0, 0
    try:
        for batch in batches():
            # Arrow is memory as it was written: offsets that lead astray would end the process.
            batch.validate(full=file_format == "Arrow")
            sizes = _measure_rows(batch, limits)
            unpacked += int(sizes.sum())
            if unpacked > most:
                raise SecvecError(
                    f"unpacks to more than {most:.0f} bytes by row {number + batch.num_rows}",
                    where=where,
                    accepted=f"at most limits.max_ratio = {limits.max_ratio:g} and "
                    f"limits.max_unpacked_bytes = {limits.max_unpacked_bytes}",
                )
            for row in _take_apart(batch, sizes, limits):
                number += 1
                yield row._replace(line=number)
    except _BROKEN as error:
        raise _unreadable(file_format, str(error), where=where, after=number) from None


def _take_apart(batch: Any, sizes: Any, limits: Limits) -> Iterator[Row]:
    """Yield a batch's rows: at once where that takes little memory, else one by one."""
    if sizes.sum() <= _AT_ONCE and sizes.max(initial=0) <= limits.max_row_bytes:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            pass
        else:
            yield from (Row(0, values) for values in rows)
            return
    for index, size in enumerate(sizes.tolist()):
        yield _read_row(batch.slice(index, 1), size, limits)


def _read_row(batch: Any, size: int, limits: Limits) -> Row:
    if size > limits.max_row_bytes:
        return Row(0, {}, f"columns {', '.join(batch.schema.names)}"[:4096], too_long(size, limits))
    try:
        return Row(0, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        raw = error.object.decode(errors="backslashreplace")
        return Row(0, {}, raw, RowRefused("not_utf8", f"byte {error.start + 1}: {error.reason}"))


def _measure_rows(batch: Any, limits: Limits) -> Any:
    """Give the bytes of each row's texts once it is taken apart, as an array."""
    sizes = numpy.zeros(batch.num_rows, numpy.int64)
    for column in batch.columns:
        kind = column.type
        if pyarrow.types.is_dictionary(kind) and _is_text(kind.value_type):
            lengths = compute.binary_length(column.dictionary).take(column.indices)
        elif _is_text(kind):
            lengths = compute.binary_length(column)
        elif column.nbytes > limits.max_row_bytes:
            sizes += [column.slice(index, 1).nbytes for index in range(batch.num_rows)]
            continue
        else:
            continue
        sizes += lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(numpy.int64)
    return sizes


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _unreadable(file_format: str, problem: str, *, where: str, after: int | None = None) -> SecvecError:
    place = f" after row {after}" if after is not None else ""
    return SecvecError(
        f"cannot be read as {file_format}{place}: {problem}", where=where, accepted=file_format
    )
