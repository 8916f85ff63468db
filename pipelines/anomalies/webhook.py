"""Alerts to a webhook, signed so that the receiver knows who sends them and that they are new.

``X-Secvec-Signature: t=<seconds>,v1=<hex>`` is the HMAC-SHA256 of ``<seconds>.<body>`` under the key in the
file that ``SECVEC_WEBHOOK_KEY`` names.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.https import public_form
from secvec.components.shared.private_files import read_private
from secvec.pipelines.anomalies.rules import Alert

URL_VARIABLE = "SECVEC_WEBHOOK_URL"
KEY_VARIABLE = "SECVEC_WEBHOOK_KEY"
HEADER = "X-Secvec-Signature"
_LEAST_KEY = 16


def send_alerts(alerts: Sequence[Alert], *, log: str) -> bool:
    """Send alerts to the webhook that ``SECVEC_WEBHOOK_URL`` names; tell whether there is one.

    Raises:
        SecvecError: No fit key, or the webhook does not take them.
    """
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        return False
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise SecvecError("is no webhook", where=URL_VARIABLE, accepted="https://host/path")
    body = json.dumps({"schema": 1, "log": log, "alerts": [asdict(alert) for alert in alerts]}).encode()
    headers = {"Content-Type": "application/json", HEADER: sign(body, at=int(time.time()))}
    try:
        with build_opener(_NoRedirects).open(Request(url, data=body, headers=headers), timeout=20):
            return True
    except HTTPError as error:
        reason = f"answered {error.code}"
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = f"cannot be reached ({type(error).__name__})"
    raise SecvecError(f"the webhook {reason}", where=public_form(url), accepted="an answer of 2xx")


def sign(body: bytes, *, at: int) -> str:
    """Give the signature header of a body.

    Raises:
        SecvecError: The key is missing, too short or open to other users.
    """
    name = os.environ.get(KEY_VARIABLE, "")
    accepted = f"{KEY_VARIABLE} names a file (mode 600) with {_LEAST_KEY} bytes or more"
    if not name:
        raise SecvecError("no key signs the webhook's alerts", where=KEY_VARIABLE, accepted=accepted)
    key = read_private(Path(name), what="the webhook's key").strip()
    if len(key) < _LEAST_KEY:
        raise SecvecError("is too short for a key", where=name, accepted=accepted)
    return f"t={at},v1={hmac.new(key, b'%d.' % at + body, hashlib.sha256).hexdigest()}"


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
