"""Read-only files from ``https://`` servers.

``SECVEC_HTTPS_HOSTS``, a list of host names with commas between them, confines reading to these servers; a
name that begins with a dot stands for all below it. Without it any server that is named may be read. Whatever
it says, a redirect never leads to a private address, and nothing leads to a link-local one, where clouds keep
the credentials of a machine. The address is looked at where the connection is made, so that a name that
resolves twice, to two addresses, gains nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from secvec.components.shared.errors import SecvecError

HOSTS_VARIABLE = "SECVEC_HTTPS_HOSTS"
_CHUNK = 1 << 20


def read_chunks(uri: str) -> Iterator[bytes]:
    """Read a file in pieces.

    Raises:
        SecvecError: The server may not be read, cannot be reached or trusted, answers with an error, sends
            the reader to another scheme or a private address, or ends before it sent all it announced.
    """
    where = public_form(uri)
    check_host(uri)
    guards = (_StayOnHttps, _LookAtAddress(where, urlsplit(uri).hostname))
    with _explained(where), build_opener(*guards).open(Request(uri), timeout=60) as answer:
        announced = answer.headers.get("Content-Length")
        received = 0
        while piece := answer.read(_CHUNK):
            received += len(piece)
            yield piece
        # A reader with a size limit gets a short answer without an error.
        if announced is not None and received != int(announced):
            raise SecvecError(f"ended after {received} bytes", where=where, accepted=f"{announced} bytes")


def public_form(uri: str) -> str:
    """Drop what may hold a secret from a URI that is going to be shown: user, query and fragment."""
    scheme, _, rest = re.split("[?#]", uri)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def check_host(uri: str) -> None:
    """Check that a server may be read.

    Raises:
        SecvecError: It is not among those that ``SECVEC_HTTPS_HOSTS`` names.
    """
    allowed = [one.strip().lower() for one in os.environ.get(HOSTS_VARIABLE, "").split(",") if one.strip()]
    try:
        host = (urlsplit(uri).hostname or "").lower()
    except ValueError as error:
        raise SecvecError(f"cannot be read: {error}", where=public_form(uri)) from error
    if allowed and not any(host == one or (one[0] == "." and host.endswith(one)) for one in allowed):
        raise SecvecError(
            f"server {host!r} may not be read",
            where=public_form(uri),
            accepted=f"those that {HOSTS_VARIABLE} names: {', '.join(allowed)}",
        )


class _StayOnHttps(HTTPRedirectHandler):
    def redirect_request(  # noqa: PLR0917 (urllib's signature)
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            raise SecvecError(
                f"redirects to {public_form(newurl)}", where=public_form(req.full_url), accepted="https only"
            )
        check_host(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _LookAtAddress(HTTPSHandler):
    """Connects only to addresses that a server may have, and looks before it asks for anything.

    Args:
        where: What errors call the file.
        named: The host that the user named, which alone may have a private address.
    """

    def __init__(self, where: str, named: str | None) -> None:
        super().__init__()
        self._where = where
        self._named = named

    def https_open(self, req: Request) -> Any:
        return self.do_open(self._connect, req, context=self._context)  # type: ignore[attr-defined]

    def _connect(self, host: str, **settings: Any) -> HTTPSConnection:
        connection = HTTPSConnection(host, **settings)
        open_socket = connection._create_connection  # type: ignore[attr-defined]

        def open_checked(*place: Any) -> Any:
            found = open_socket(*place)
            # A proxy, where there is one, looks after this itself.
            if not getattr(connection, "_tunnel_host", None):
                try:
                    self.check_address(found.getpeername()[0], connection.host)
                except SecvecError:
                    found.close()
                    raise
            return found

        connection._create_connection = open_checked  # type: ignore[attr-defined]
        return connection

    def check_address(self, address: str, host: str) -> None:
        """Refuse a link-local address, and a private one of a server that the user did not name."""
        found = ipaddress.ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        if found.is_link_local or (not found.is_global and host != self._named):
            raise SecvecError(
                f"leads to {host!r} at the private address {found}",
                where=self._where,
                accepted="a public server, or a private one that is named itself and is not link-local",
            )


@contextmanager
def _explained(where: str) -> Iterator[None]:
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError

    try:
        yield
    except HTTPError as error:
        raise SecvecError(f"the server answered {error.code} {error.reason}", where=where) from error
    except URLError as error:
        raise SecvecError(f"cannot be reached: {error.reason}", where=where) from error
    except (HTTPException, OSError, ValueError) as error:
        raise SecvecError(f"cannot be read: {type(error).__name__}: {error}", where=where) from error
