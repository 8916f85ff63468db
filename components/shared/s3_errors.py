"""What can go wrong with an S3 server, as one line, and what is worth another try.

botocore itself tries again where no answer came or a server was busy (``standard`` mode: exponential back-off
with jitter). Left to this module is what it takes for final although the next try may well succeed: an answer
that broke off or does not agree with its checksum, and a request that the server received damaged.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, TypeVar

from secvec.components.shared.errors import SecvecError

_T = TypeVar("_T")
_REFUSED = {
    "401", "403", "AccessDenied", "ExpiredToken", "Forbidden", "InvalidAccessKeyId", "InvalidToken",
    "SignatureDoesNotMatch",
}  # fmt: skip
ABSENT = {"404", "NoSuchKey", "NotFound"}
_CREDENTIALS = "credentials of the default AWS chain that may use this bucket"


# What a server says of a request that was damaged on its way, or whose upload was ended by somebody else.
_DAMAGED = {
    "BadDigest", "IncompleteBody", "InvalidDigest", "InvalidPart", "InvalidPartOrder", "MalformedXML",
    "NoSuchUpload", "RequestTimeout", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_CLOCKS_MAY_DIFFER = timedelta(minutes=4)
_TRIES = 5
_SIGNATURE_TRIES = 2  # a wrong key looks like a damaged request


def split_uri(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket and key.

    Raises:
        SecvecError: The URI names no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise SecvecError("names no bucket", where=uri, accepted="s3://bucket/prefix")
    return bucket, key.rstrip("/")


def persist(work: Callable[[], _T], uri: str) -> _T:
    """Do something with an object, and again where that may help, after a random pause that grows.

    Args:
        work: What to do; it begins anew each time.
        uri: The object, for the error.

    Raises:
        SecvecError: What `explained` makes of the last failure.
    """
    tries = 1
    while True:
        try:
            with explained(uri):
                return work()
        except SecvecError as error:
            if tries >= _count_tries(error.__cause__):
                raise
        pause(tries)
        tries += 1


def pause(tries: int) -> None:
    """Wait before another try: at random up to a bound that doubles, so that many do not meet."""
    time.sleep(random.uniform(0, min(10.0, 0.25 * 2**tries)))


def _count_tries(error: BaseException | None) -> int:
    from botocore import exceptions as failures
    from botocore.parsers import ResponseParserError

    broken = (
        failures.FlexibleChecksumError,
        failures.IncompleteReadError,
        failures.ReadTimeoutError,
        failures.ResponseStreamingError,
        ResponseParserError,
    )
    if isinstance(error, broken):
        return _TRIES
    if isinstance(error, failures.ClientError):
        code = code_of(error)
        return _SIGNATURE_TRIES if code == "SignatureDoesNotMatch" else _TRIES if code in _DAMAGED else 1
    return 1


def code_of(error: Any) -> str:
    """The code of a server's answer."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one line.

    Raises:
        SecvecError: For an absent bucket or object, refused or missing credentials, an unreachable endpoint
            and every other answer of the server.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except ClientError as error:
        raise _explain_answer(error, uri) from error
    except (BotoCoreError, Boto3Error, ResponseParserError, RetriesExceededError) as error:
        raise _explain_failure(error, uri) from error


def _explain_answer(error: Any, uri: str) -> SecvecError:
    code = code_of(error)
    bucket = split_uri(uri)[0]
    if code == "NoSuchBucket" or (code in ABSENT and error.operation_name == "HeadBucket"):
        return SecvecError(f"bucket {bucket!r} does not exist", where=uri, accepted="an existing bucket")
    if code in ABSENT:
        return SecvecError("no such object", where=uri, accepted="the URI of an object")
    if code == "RequestTimeTooSkewed" or (code in _REFUSED and _clocks_differ(error)):
        said = error.response["ResponseMetadata"]["HTTPHeaders"].get("date", "something else")
        return SecvecError(
            f"the S3 server refused {error.operation_name} ({code}): this machine's clock says "
            f"{format_datetime(now(), usegmt=True)}, its own {said}",
            where=uri,
            accepted="clocks that agree to within some minutes",
        )
    if code in _REFUSED:
        return SecvecError(
            f"the S3 server refused {error.operation_name} ({code})", where=uri, accepted=_CREDENTIALS
        )
    said = error.response["Error"].get("Message")
    return SecvecError(f"the S3 server answered {code}{f': {said}' if said else ''}", where=uri)


def now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)


def _clocks_differ(error: Any) -> bool:
    # The answer to a HEAD has no body that would name the reason.
    said = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(parsedate_to_datetime(said) - now()) > _CLOCKS_MAY_DIFFER
    except (TypeError, ValueError):
        return False


def _explain_failure(error: Exception, uri: str) -> SecvecError:
    from botocore import exceptions as failures
    from s3transfer.exceptions import RetriesExceededError

    endpoint = _endpoint()
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, failures.NoCredentialsError | failures.PartialCredentialsError):
        return SecvecError("no AWS credentials found", where=uri, accepted=_CREDENTIALS)
    if isinstance(error, failures.CredentialRetrievalError | failures.TokenRetrievalError):
        return SecvecError(f"no AWS credentials: {error}", where=uri, accepted=_CREDENTIALS)
    if isinstance(error, failures.HTTPClientError | failures.ConnectionError):
        return SecvecError(
            f"the S3 endpoint {endpoint} cannot be reached ({type(error).__name__})",
            where=uri,
            accepted="a reachable server, named by AWS_ENDPOINT_URL if it is not AWS",
        )
    return SecvecError(f"{type(error).__name__}: {error}", where=uri)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "of AWS"
