"""Files of the step's sources, found by URI and brought to this machine as plain bytes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from secvec.components.ingest_data import hub, unpacking
from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.rows import FORMATS, PACKINGS, bare_name, check_format
from secvec.components.shared import https
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.storage import (
    check_name,
    download_file,
    list_uris,
    local_errors,
    local_path,
    scheme_of,
)

_WILD = re.compile(r"[*?\[]")
# What `datasets` and the hub keep beside the rows.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Attributes:
        uri: Where it lies.
        name: What records call it: its path below the folder, pattern or hub data set that was named, its
            last part for a file that was named itself.
        ignored: Files beside it that are not read, for the profile; on the first file of a folder.
    """

    uri: str
    name: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, without packing and in UTF-8 if it is text.

    Attributes:
        path: Where it lies.
        digest: ``sha256:<hex>`` of the file as it was found, packed or not; empty if not known yet.
        format: What is in it.
        packed: How it was packed and encoded, for people.
        owned: Whether it is a private copy, which nobody else can change.
    """

    path: Path
    digest: str
    format: str
    packed: str
    owned: bool


def find_files(name: SourceName, uri: str, *, config: IngestConfig) -> list[SourceFile]:
    """Find the files that a URI names: a file, a folder, a pattern, or a data set of the hub.

    The order does not depend on how a file system or bucket lists them.

    Raises:
        SecvecError: A name without a known format, a folder or pattern without any or with too many, or a
            path that leaves its folder.
    """
    where = place_of(name, uri)
    if hub.is_hub_uri(uri):
        return _pick([(one, hub.name_in(one)) for one in hub.list_files(uri)], where=where, config=config)
    scheme = scheme_of(uri)
    if scheme != "https" and _WILD.search(unquote(uri) if uri.startswith("file://") else uri):
        return _pick(_match(uri, config.limits.max_files), where=where, config=config)
    if _is_folder(uri, scheme):
        found = [(one, _relative(one, uri)) for one in _list(uri, config.limits.max_files)]
        return _pick(found, where=where, config=config)
    check_format(file_name(uri), where=where)
    return [SourceFile(uri, file_name(uri))]


def place_of(name: SourceName, *uris: str) -> str:
    """Name a source and its URIs in an error, without what in them may be secret."""
    return f"{name} {', '.join(https.public_form(u) if u.startswith('https:') else u for u in uris)}"


def file_name(uri: str) -> str:
    """Return the last part of a path or URI, the same wherever the file lies."""
    scheme = scheme_of(uri)
    if scheme == "https":
        return Path(unquote(urlsplit(uri).path)).name
    return local_path(uri).name if scheme == "file" else Path(uri).name


@contextmanager
def bring_file(file: SourceFile, name: SourceName, *, config: IngestConfig) -> Iterator[LocalFile]:
    """Bring a file to this machine, unpack it and check its encoding.

    A plain local file is read where it lies; anything else becomes a private copy that is gone afterwards.

    Raises:
        SecvecError: It cannot be read, or unpacks to more than the limits.
    """
    where = place_of(name, file.uri)
    file_format = check_format(file.name, where=where)
    packing = PACKINGS.get(Path(file.name).suffix.lower(), "")
    encoding = config.encodings.get(name, "utf-8")
    text = file_format not in ("Parquet", "Arrow")
    packed = " ".join([packing] * bool(packing) + [encoding] * (text and encoding != "utf-8"))
    with TemporaryDirectory(prefix="secvec-ingest-") as scratch:
        if not hub.is_hub_uri(file.uri) and scheme_of(file.uri) == "file":
            path, owned = local_path(file.uri), False
            with local_errors(path):
                if not path.stat() or not path.is_file():
                    raise SecvecError(
                        "is no file", where=where, accepted="a regular file, or a folder of them"
                    )
        else:
            path, owned = Path(scratch) / "found", True
            hub.download(file.uri, path) if hub.is_hub_uri(file.uri) else download_file(file.uri, path)
        digest = digest_file(path) if packed or not text or owned else ""
        if packing:
            path = unpacking.unpack(path, packing, Path(scratch) / "plain", where=where, limits=config.limits)
        if text and encoding != "utf-8":
            path = unpacking.recode(path, encoding, Path(scratch) / "utf8", where=where)
        yield LocalFile(path, digest, file_format, packed, owned or bool(packed))


def _pick(found: list[tuple[str, str]], *, where: str, config: IngestConfig) -> list[SourceFile]:
    """Choose the files with rows among those of a folder, in the order of their names."""
    for _, name in found:
        check_name(name, where=where)
    rows = sorted((name, uri) for uri, name in found if _has_rows(name))
    ignored = tuple(sorted(name for _, name in found if not _has_rows(name)))
    if not rows:
        raise SecvecError(
            f"has no file with rows among its {len(found)}",
            where=where,
            accepted=f"names ending in {', '.join(FORMATS)}, also with {', '.join(PACKINGS)}",
        )
    if len(rows) > config.limits.max_files:
        raise SecvecError(
            f"has {len(rows)} files",
            where=where,
            accepted=f"at most limits.max_files = {config.limits.max_files}",
        )
    first, *others = [SourceFile(uri, name) for name, uri in rows]
    return [SourceFile(first.uri, first.name, ignored), *others]


def _has_rows(name: str) -> bool:
    last = Path(name).name
    return (
        Path(bare_name(last)).suffix.lower() in FORMATS
        and last not in _DESCRIPTIONS
        and not any(part.startswith((".", "_")) for part in Path(name).parts)
    )


def _is_folder(uri: str, scheme: str) -> bool:
    if scheme == "file":
        return local_path(uri).is_dir()
    # In a bucket only the name tells: a folder's has no ending, or a slash behind it.
    return scheme == "s3" and (uri.endswith("/") or not Path(uri).suffix)


def _list(folder: str, most: int) -> list[str]:
    found = list_uris(folder)
    if len(found) > 100 * most:
        raise SecvecError(f"has {len(found)} files", where=folder, accepted=f"at most {100 * most}")
    return found


def _relative(uri: str, folder: str) -> str:
    name = uri.removeprefix(folder.rstrip("/") + "/")
    return unquote(name) if folder.startswith("file://") else name


def _match(pattern: str, most: int) -> list[tuple[str, str]]:
    """List the files that match a pattern, with their paths below the last folder without a wildcard."""
    whole = str(local_path(pattern)) if scheme_of(pattern) == "file" else pattern
    before = whole[: _WILD.search(whole).start()]  # type: ignore[union-attr]
    folder = before.rpartition("/")[0] or "/"
    if scheme_of(pattern) == "file":
        with local_errors(Path(folder)):
            if not Path(folder).is_dir():
                raise SecvecError(
                    "no such folder", where=pattern, accepted="a pattern below a folder that exists"
                )
    wanted = re.compile(_translate(whole[len(folder.rstrip("/")) + 1 :]))
    names = [(one, _relative(one, folder)) for one in _list(folder, most)]
    return [(uri, name) for uri, name in names if wanted.fullmatch(name)]


def _translate(pattern: str) -> str:
    """Give the regular expression of a pattern in which only ``**`` goes through folders."""
    parts = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]*\])", pattern):
        match part:
            case "**/":
                parts.append("(?:.*/)?")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case _:
                one = part.startswith("[") and part.endswith("]") and len(part) > 2
                parts.append(fnmatch.translate(part)[4:-3] if one else re.escape(part))
    return "".join(parts)
