"""Objects in S3 and S3-compatible stores, on boto3's default credential chain.

A reader needs ``s3:GetObject`` and ``s3:ListBucket`` (without the latter S3 answers 403 for what is absent),
a publisher also ``s3:PutObject`` and ``s3:AbortMultipartUpload``, and to clean up after others
``s3:ListBucketMultipartUploads``. Nothing is ever deleted.
"""

from __future__ import annotations

import functools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.s3_errors import ABSENT, code_of, persist, split_uri

READ_SECONDS = 60  # without a byte from the server, before a request counts as lost


def read_object(uri: str) -> bytes:
    """Read one object whole."""
    bucket, key = split_uri(uri)

    def read() -> bytes:
        data: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    return persist(read, uri)


def write_object(uri: str, data: bytes, *, create_only: bool) -> bool:
    """Write one small object; return False if `create_only` and the object was there already."""
    from botocore.exceptions import ClientError

    bucket, key = split_uri(uri)
    condition = {"IfNoneMatch": "*"} if create_only else {}

    def write() -> bool:
        try:
            _client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            # The second: another create-only write of this key is under way.
            if code_of(error) not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
            return False
        return True

    return persist(write, uri)


def describe_object(uri: str) -> dict[str, Any] | None:
    """Give an object's ``size`` in bytes and its own ``metadata``; None if there is no such object."""
    from botocore.exceptions import ClientError

    bucket, key = split_uri(uri)

    def describe() -> dict[str, Any] | None:
        try:
            head = _client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if code_of(error) not in ABSENT:
                raise
            # A HEAD answers 404 without a body: only the bucket itself tells which of the two is absent.
            _client().head_bucket(Bucket=bucket)
            return None
        return {"size": head["ContentLength"], "metadata": head["Metadata"]}

    return persist(describe, uri)


def list_objects(uri: str) -> list[str]:
    """List the URIs of all objects under a folder, sorted."""
    bucket, prefix = split_uri(uri)

    def read_pages() -> list[str]:
        pages = _client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        return [f"s3://{bucket}/{entry['Key']}" for page in found for entry in page.get("Contents", [])]

    found = persist(read_pages, uri)
    # Keys that end in a slash are the folder marks that consoles leave.
    return sorted(name for name in found if not name.endswith("/"))


def download_object(uri: str, path: Path) -> None:
    """Download one object of any size to a path (ranged requests in parallel)."""
    bucket, key = split_uri(uri)
    if describe_object(uri) is None:
        raise SecvecError("no such object", where=uri, accepted="the URI of an object")

    def download() -> None:
        with path.open("wb") as stream:
            _client().download_fileobj(bucket, key, stream, Config=_transfers())

    persist(download, uri)


def upload_object(path: Path, uri: str, *, metadata: dict[str, str] | None = None) -> None:
    """Upload one file of any size (in parts, in parallel)."""
    bucket, key = split_uri(uri)
    extra = {"Metadata": metadata or {}}

    def upload() -> None:
        with path.open("rb") as stream:
            _client().upload_fileobj(stream, bucket, key, ExtraArgs=extra, Config=_transfers())

    persist(upload, uri)


def abort_uploads(uri: str, *, older_than: timedelta = timedelta()) -> int:
    """Abort the multipart uploads under a folder that nobody has finished; give how many there were.

    Their parts are paid for and never seen. It needs ``s3:ListBucketMultipartUploads``.

    Args:
        uri: The folder.
        older_than: Leave younger ones: somebody may be at work on them.
    """
    bucket, prefix = split_uri(uri)
    until = datetime.now(UTC) - older_than

    def find() -> list[dict[str, Any]]:
        pages = _client().get_paginator("list_multipart_uploads")
        found = pages.paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        return [one for page in found for one in page.get("Uploads", []) if one["Initiated"] <= until]

    found = persist(find, uri)
    for one in found:
        _abort(bucket, one["Key"], one["UploadId"])
    return len(found)


def _abort(bucket: str, key: str, upload: str) -> None:
    from botocore.exceptions import ClientError

    def abort() -> None:
        try:
            _client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    persist(abort, f"s3://{bucket}/{key}")


def _client() -> Any:
    # Clients are thread-safe and slow to make; the variables that shape one are its key.
    return _make_client(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _make_client(environment: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in dict(environment):
        # Some seconds in all: hours of work should outlive a server's restart, a wrong address fail soon.
        retries["total_max_attempts"] = 8
    config = Config(retries=retries, connect_timeout=10, read_timeout=READ_SECONDS)
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise SecvecError(
            str(error),
            where="AWS_* variables",
            accepted="AWS_ENDPOINT_URL=https://host:port, and AWS's own values",
        ) from error


def _transfers() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
