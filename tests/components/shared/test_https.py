from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.https import _LookAtAddress
from secvec.components.shared.storage import download_file, read_bytes

CONTENT = bytes(range(256)) * 10_000


class _Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        if path in ("/file", "/truncated"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if path == "/file" else CONTENT[:-1])
            return
        places = {"/moved": "/file", "/to-http": "http://127.0.0.1:1/file", "/to-file": "file:///etc/passwd"}
        port = self.server.server_address[1]  # type: ignore[attr-defined]
        places["/to/localhost"] = f"https://localhost:{port}/file"
        self.send_response(302 if path in places else 404)
        if path in places:
            self.send_header("Location", places[path])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def site(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "*")
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_file_is_read_and_downloaded(site: str, tmp_path: Path) -> None:
    assert read_bytes(f"{site}/file?token=x") == CONTENT
    download_file(f"{site}/moved", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == CONTENT


def _refusal(uri: str, tmp_path: Path) -> str:
    with pytest.raises(SecvecError) as caught:
        download_file(uri, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def test_truncated_download_is_refused(site: str, tmp_path: Path) -> None:
    assert _refusal(f"{site}/truncated", tmp_path) == (
        f"{site}/truncated: ended after 2559999 bytes; accepted: 2560000 bytes"
    )


@pytest.mark.parametrize(("path", "scheme"), [("/to-http", "http"), ("/to-file", "file")])
def test_redirect_to_another_scheme_is_refused(site: str, tmp_path: Path, path: str, scheme: str) -> None:
    line = _refusal(site + path, tmp_path)
    assert line.startswith(f"{site}{path}: ")
    assert f"{scheme}://" in line


def test_errors_of_the_server_are_told_without_secrets(site: str, tmp_path: Path) -> None:
    line = _refusal(f"{site}/absent?signature=secret", tmp_path)
    assert line == f"{site}/absent: the server answered 404 Not Found"


def test_unknown_certificate_is_refused(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "CERTIFICATE_VERIFY_FAILED" in _refusal(f"{site}/file", tmp_path)


@pytest.mark.parametrize("uri", ["https://127.0.0.1:1/x", "https://", "https://[x", "https://host:port/x"])
def test_unreachable_server_is_named(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert _refusal(uri, tmp_path).startswith(f"{uri}: cannot be re")


def test_redirect_to_a_private_address_is_refused(site: str, tmp_path: Path) -> None:
    line = _refusal(f"{site}/to/localhost", tmp_path)
    assert line.startswith(f"{site}/to/localhost: leads to 'localhost' at the private address 127.0.0.1; ")


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fe80::1%eth0"])
def test_a_link_local_address_is_refused_whoever_names_it(address: str) -> None:
    for named in (address, "other"):
        with pytest.raises(SecvecError, match="private address"):
            _LookAtAddress("https://x/y", named).check_address(address, address)


@pytest.mark.parametrize(
    ("address", "host", "refused"),
    [
        ("10.1.2.3", "data.internal", False),
        ("10.1.2.3", "elsewhere", True),
        ("127.0.0.1", "elsewhere", True),
        ("::1", "elsewhere", True),
        ("100.64.0.1", "elsewhere", True),
        ("93.184.216.34", "elsewhere", False),
        ("2606:2800:220:1::1", "elsewhere", False),
    ],
)
def test_only_a_named_server_may_be_private(address: str, host: str, refused: bool) -> None:
    guard = _LookAtAddress("https://data.internal/x", "data.internal")
    if not refused:
        guard.check_address(address, host)
        return
    with pytest.raises(SecvecError, match="accepted: a public server"):
        guard.check_address(address, host)


def test_only_listed_servers_are_read(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_HTTPS_HOSTS", "data.example.org, .internal")
    line = _refusal(f"{site}/file", tmp_path)
    assert line == (
        f"{site}/file: server '127.0.0.1' may not be read; "
        "accepted: those that SECVEC_HTTPS_HOSTS names: data.example.org, .internal"
    )
    monkeypatch.setenv("SECVEC_HTTPS_HOSTS", "127.0.0.1")
    download_file(f"{site}/moved", tmp_path / "copy")
    assert "server 'localhost' may not be read" in _refusal_elsewhere(f"{site}/to/localhost", tmp_path / "x")


def _refusal_elsewhere(uri: str, path: Path) -> str:
    with pytest.raises(SecvecError) as caught:
        download_file(uri, path)
    return str(caught.value)
