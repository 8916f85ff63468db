"""Chat completions over HTTP, from any server that speaks OpenAI's protocol.

Retries are urllib3's: for lost connections, timeouts, 429 and 5xx, with backoff and jitter, for as long as
the server asks (but no longer than a minute). A reply that is no chat completion is asked for again, too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from secvec.components.shared.errors import SecvecError

if TYPE_CHECKING:
    import requests

_ACCEPTED = "an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1"
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MOST_BYTES = 4 << 20
_LONGEST_WAIT = 60


class EndpointError(SecvecError):
    """A server that did not do its part, after all tries: nothing is known about what it was asked."""


class ChatEndpoint:
    """A served model.

    Args:
        url: The endpoint up to and with ``/v1``.
        model: Name of the served model.
        key_variable: Environment variable with the API key; unset for servers without one.
        timeout: Seconds for one reply, all of it.
        tries: How often one request is sent.
        pause: Seconds before the third try, doubled before each further one; the second follows at once.

    Raises:
        SecvecError: The URL is none, or holds a user name or password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str,
        timeout: float = 120.0,
        tries: int = 4,
        pause: float = 1.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise SecvecError(
                "is no endpoint", where=url, accepted="http(s)://host/v1 without user name and password"
            )
        self.url = url.rstrip("/")
        self.model = model
        self._key_variable = key_variable
        self._timeout = timeout
        self._tries = tries
        self._pause = pause

    def complete(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, **settings: Any) -> str:
        """Ask for one completion.

        Args:
            messages: The conversation, as ``role`` and ``content``.
            max_tokens: Longest reply, in tokens.
            **settings: Further fields of the request, such as ``temperature``.

        Returns:
            The reply's text, possibly empty.

        Raises:
            EndpointError: Refused, unreachable, too slow, or no chat completion, after all tries.
        """
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, **settings}
        for _ in range(self._tries):
            try:
                content = json.loads(self._post(body))["choices"][0]["message"]["content"]
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
            # null is what a server says for an empty answer
            if content is None or isinstance(content, str):
                return content or ""
        raise self._fail("answers what is no chat completion")

    def _post(self, body: Mapping[str, Any]) -> bytes:
        import requests

        key = os.environ.get(self._key_variable)
        started = time.monotonic()
        try:
            with self._session.post(
                f"{self.url}/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.status_code != 200:
                    raise self._fail(f"answers {response.status_code}")
                return self._read(response)
        except requests.exceptions.RequestException as error:
            seconds = time.monotonic() - started
            raise self._fail(f"cannot be reached ({_find_reason(error)}; after {seconds:.0f} s)") from None

    def _read(self, response: requests.Response) -> bytes:
        """A reply's body; one that trickles in or never ends is cut off."""
        started, data = time.monotonic(), b""
        for chunk in response.iter_content(8192):
            data += chunk
            if len(data) > _MOST_BYTES or time.monotonic() - started > self._timeout:
                raise self._fail("answers too slowly or too much")
        return data

    @cached_property
    def _session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        retry = Retry(
            total=self._tries - 1,
            status_forcelist=_PASSING,
            allowed_methods=None,
            raise_on_status=False,
            backoff_factor=self._pause,
            backoff_max=_LONGEST_WAIT,
            backoff_jitter=self._pause / 4,
            retry_after_max=_LONGEST_WAIT,
        )
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=64))
        return session

    def _fail(self, problem: str) -> EndpointError:
        return EndpointError(problem, where=self.url, accepted=_ACCEPTED)


def _find_reason(error: BaseException) -> str:
    """The innermost reason of an error of requests, which wraps urllib3's."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args or (None,))[0], BaseException):
        error = inner
    return str(error).rsplit(">: ", maxsplit=1)[-1].split("): ")[-1]
