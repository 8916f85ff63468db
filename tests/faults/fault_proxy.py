"""A proxy on loopback between an S3 client and a server, which spoils what it passes on in one chosen way."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Kind = str
_UP, _DOWN = "up", "down"


@dataclass
class Message:
    """A request or an answer: its first line, its other header lines, its body as it goes over the wire."""

    first: bytes
    headers: list[bytes]
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        """A header's value; empty where it is absent."""
        prefix = name.lower() + b":"
        return next((h[len(prefix) :].strip() for h in self.headers if h.lower().startswith(prefix)), b"")

    def replace(self, name: bytes, value: bytes) -> None:
        """Set a header that is there."""
        prefix = name.lower() + b":"
        self.headers = [name + b": " + value if h.lower().startswith(prefix) else h for h in self.headers]

    def head(self) -> bytes:
        """The bytes before the body."""
        return b"\r\n".join([self.first, *self.headers, b"", b""])

    @property
    def what(self) -> str:
        """The S3 operation that a request asks for."""
        method, target, _ = self.first.decode().split(" ", 2)
        query = target.partition("?")[2]
        if "uploadId=" in query:
            return {"PUT": "UploadPart", "POST": "Complete", "DELETE": "Abort"}.get(method, method)
        if query.startswith("uploads"):
            return "CreateUpload" if method == "POST" else "ListUploads"
        return f"List{method}" if "list-type" in query else method


@dataclass
class Fault:
    """What is done to which exchanges.

    Attributes:
        kind: Which of `FAULTS`.
        operations: Operations that it befalls; empty for all.
        times: How often; None for always.
        draw: Where in a message, and which bit.
    """

    kind: Kind
    operations: tuple[str, ...]
    times: int | None
    draw: random.Random
    skip: int = 0
    hits: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def strikes(self, operation: str) -> bool:
        """Whether this exchange is to be spoilt; counts it."""
        with self.lock:
            if self.operations and operation not in self.operations:
                return False
            if self.skip:
                self.skip -= 1
                return False
            if self.times is not None and self.hits >= self.times:
                return False
            self.hits += 1
            return True


class Gone(Exception):
    """The connection is to be dropped."""


class FaultProxy:
    """Passes on connections to a server on loopback until it is closed."""

    def __init__(self, port: int, fault: Fault) -> None:
        self.server, self.fault = port, fault
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.fault.kind == "refuse" and self.fault.strikes("connect"):
            _reset(client)
            return
        stream = client.makefile("rb")
        with socket.create_connection(("127.0.0.1", self.server)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = server.makefile("rb")
            try:
                while self._exchange(client, stream, server, answers):
                    pass
            except Gone:
                _reset(client)
            except OSError:
                pass
            finally:
                client.close()

    def _exchange(self, client: socket.socket, stream: Any, server: socket.socket, answers: Any) -> bool:
        request = _read_head(stream)
        if request is None:
            return False
        if request.header(b"expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.headers = [h for h in request.headers if not h.lower().startswith(b"expect:")]
        request.body = stream.read(int(request.header(b"content-length") or 0))
        act = FAULTS[self.fault.kind] if self.fault.strikes(request.what) else _pass_on
        return act(Exchange(client, server, answers, request, self.fault.draw))


@dataclass
class Exchange:
    """One request and its answer."""

    client: socket.socket
    server: socket.socket
    answers: Any
    request: Message
    draw: random.Random

    def ask(self) -> Message:
        """Send the request to the server and read its answer whole."""
        self.server.sendall(self.request.head() + self.request.body)
        answer = _read_head(self.answers)
        if answer is None:
            raise Gone
        answer.body = _read_body(self.answers, answer, of=self.request)
        return answer

    def answer(self, message: Message) -> bool:
        """Send an answer to the client; give whether the connection goes on."""
        self.client.sendall(message.head() + message.body)
        return message.header(b"connection").lower() != b"close"

    def make_up(self, status: bytes, code: str) -> bool:
        """Answer in the server's place."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
        if self.request.first.startswith(b"HEAD"):
            body = b""
        headers = [b"Content-Type: application/xml", b"Content-Length: " + str(len(body)).encode()]
        return self.answer(Message(b"HTTP/1.1 " + status, headers, body))

    def part(self, data: bytes) -> int:
        """A place within data."""
        return self.draw.randrange(len(data)) if data else 0


def _pass_on(exchange: Exchange) -> bool:
    return exchange.answer(exchange.ask())


def _reset_up(exchange: Exchange) -> bool:
    sent = exchange.request.head() + exchange.request.body
    exchange.server.sendall(sent[: exchange.part(sent)])
    raise Gone


def _reset_down(exchange: Exchange) -> bool:
    answer = exchange.ask()
    sent = answer.head() + answer.body
    exchange.client.sendall(sent[: exchange.part(sent)])
    raise Gone


def _lose_answer(exchange: Exchange) -> bool:
    exchange.ask()
    raise Gone


def _truncate(exchange: Exchange) -> bool:
    answer = exchange.ask()
    exchange.client.sendall(answer.head() + answer.body[: exchange.part(answer.body)])
    exchange.client.shutdown(socket.SHUT_RDWR)
    return False


def _hang(exchange: Exchange) -> bool:
    exchange.client.settimeout(60)
    exchange.client.recv(1)  # until the client has had enough
    return False


def _slow(exchange: Exchange) -> bool:
    answer = exchange.ask()
    sent = answer.head() + answer.body
    step = max(len(sent) // 10, 1)
    for place in range(0, len(sent), step):
        exchange.client.sendall(sent[place : place + step])
        time.sleep(0.02)
    return True


def _flip(data: bytes, exchange: Exchange) -> bytes:
    place = exchange.part(data)
    return data[:place] + bytes([data[place] ^ 1 << exchange.draw.randrange(8)]) + data[place + 1 :]


def _flip_up(exchange: Exchange) -> bool:
    if exchange.request.body:
        exchange.request.body = _flip(exchange.request.body, exchange)
    return _pass_on(exchange)


def _flip_down(exchange: Exchange) -> bool:
    answer = exchange.ask()
    if answer.body and not answer.header(b"transfer-encoding"):
        answer.body = _flip(answer.body, exchange)
    return exchange.answer(answer)


def _wrong_etag(exchange: Exchange) -> bool:
    answer = exchange.ask()
    answer.replace(b"ETag", b'"%032x"' % exchange.draw.getrandbits(128))
    return exchange.answer(answer)


FAULTS: dict[Kind, Callable[[Exchange], bool]] = {
    "refuse": _pass_on,
    "reset_up": _reset_up,
    "reset_down": _reset_down,
    "hang": _hang,
    "truncate": _truncate,
    "slow": _slow,
    "500": lambda exchange: exchange.make_up(b"500 Internal Server Error", "InternalError"),
    "503": lambda exchange: exchange.make_up(b"503 Slow Down", "SlowDown"),
    "flip_up": _flip_up,
    "flip_down": _flip_down,
    "half_multipart": _reset_up,
    "lost_answer": _lose_answer,
    "wrong_etag": _wrong_etag,
    "clock_skew": _pass_on,
}


def _reset(client: socket.socket) -> None:
    """Close so that the other side sees a reset."""
    try:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return
    finally:
        client.close()


def _read_head(stream: Any) -> Message | None:
    lines: list[bytes] = []
    while line := stream.readline():
        if line in (b"\r\n", b"\n"):
            if lines:
                return Message(lines[0], lines[1:])
            continue
        lines.append(line.rstrip(b"\r\n"))
    return None


def _read_body(stream: Any, answer: Message, *, of: Message) -> bytes:
    if of.first.startswith(b"HEAD") or answer.first.split()[1] in (b"204", b"304"):
        return b""
    if answer.header(b"transfer-encoding").lower() != b"chunked":
        return bytes(stream.read(int(answer.header(b"content-length") or 0)))
    body = b""
    while True:
        size = stream.readline()
        chunk = stream.read(int(size.split(b";")[0], 16) + 2)
        body += size + chunk
        if len(chunk) == 2:
            return body
