"""``secvec audit``: show, verify, export and anomalies, with a webhook that checks signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from secvec.components.shared import audit
from secvec.components.shared.audit_checkpoints import write_checkpoint
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.pipelines.command_audit import audit as app

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("SECVEC_TRUSTED_KEYS", "MLFLOW_TRACKING_URI", "SECVEC_AUDIT_PIN", "SECVEC_WEBHOOK_URL")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("MLFLOW_RUN_ID", "run-1")
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing.pem")))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    audit.append("vector_opened", opened_by="fine_tune_guarded", context={"vector": "sha256:" + "e" * 64})
    audit.append("gate_judged", outcome="PASS", model_name="m\n\x1b[31mforged")
    write_checkpoint()
    return tmp_path / "audit.jsonl"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_show_is_one_line_an_event_whatever_it_holds(log: Path) -> None:
    lines = call("show").stdout.splitlines()
    assert len(lines) == 2
    assert "ada vector_opened" in lines[0]
    assert "\x1b" not in lines[1]
    assert len(call("show", "--last", 1).stdout.splitlines()) == 1
    entry = json.loads(call("show", "--event", "gate_judged", "--json").stdout)
    assert entry["sequence"] == 2


def test_verify_says_how_far_and_refuses_an_edit(log: Path) -> None:
    assert "2 lines" in call("verify").stdout
    log.write_bytes(log.read_bytes().replace(b"PASS", b"FAIL"))
    done = call("verify")
    assert done.exit_code == 1
    assert isinstance(done.exception, SecvecError)


def test_export_is_the_verified_log_and_is_itself_in_the_log(log: Path, tmp_path: Path) -> None:
    before = log.read_bytes()
    assert call("export", "--to", tmp_path / "copy.jsonl").exit_code == 0
    assert (tmp_path / "copy.jsonl").read_bytes() == before
    assert [entry["event"] for entry in audit.read_entries()][-1] == "log_exported"
    assert isinstance(call("export", "--to", tmp_path / "copy.jsonl").exception, SecvecError)


def test_nothing_is_wrong_with_an_ordinary_run(log: Path) -> None:
    done = call("anomalies")
    assert (done.exit_code, done.stdout) == (0, "")


def test_misuse_is_status_3(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID")
    audit.append("vector_opened", opened_by="python", context={})
    done = call("anomalies", "--json")
    assert done.exit_code == 3
    rules = [json.loads(line)["rule"] for line in done.stdout.splitlines()]
    assert rules == ["openings without a run", "unknown openers"]


def test_a_log_that_is_not_whole_is_an_alert(log: Path) -> None:
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    done = call("anomalies")
    assert done.exit_code == 3
    assert "was cut back from 2 lines to 1" in done.stdout


S3_LINE = (
    "owner bucket [01/Jan/2026:03:10:00 +0000] 10.0.0.1 {who} 3E57 REST.GET.OBJECT v/x/vector.sealed "
    '"GET /bucket/v HTTP/1.1" 200 - 1 1 1 1 "-" "-" -\n'
)


def test_a_read_that_the_log_lacks_is_found_in_an_s3_access_log(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(S3_LINE.format(who="arn:aws:sts::1:assumed-role/secvec-gate/pod"))
    assert call("anomalies", "--access-log", path).exit_code == 0
    path.write_text(S3_LINE.format(who="arn:aws:iam::1:user/mallory"))
    done = call("anomalies", "--access-log", path)
    assert done.exit_code == 3
    assert "mallory: GetObject of v/x/vector.sealed" in done.stdout


def test_a_decryption_that_the_log_lacks_is_found_in_cloudtrail(log: Path, tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "eventTime": "2026-01-01T03:10:00Z",
        "eventName": "Decrypt",
        "userIdentity": {"arn": "arn:aws:sts::1:assumed-role/secvec-fine-tuner/pod"},
        "requestParameters": {"encryptionContext": {"vector": "sha256:e"}},
    }
    path = tmp_path / "trail.json"
    path.write_text(json.dumps({"Records": [record, {**record, "errorCode": "AccessDenied"}]}))
    done = call("anomalies", "--access-log", path)
    assert done.exit_code == 3
    assert done.stdout.count("secvec-fine-tuner: Decrypt") == 1


@pytest.mark.parametrize("content", ["junk\n", "{}", '{"Records": [{}]}', "{"])
def test_other_files_are_no_access_records(log: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "x").write_text(content)
    done = call("anomalies", "--access-log", tmp_path / "x")
    assert isinstance(done.exception, SecvecError)
    assert "S3 server access log" in str(done.exception)


@pytest.mark.parametrize("content", ["no_such: 1", "history: 0", "- 1", "{"])
def test_bad_thresholds_are_refused(log: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "t.yaml").write_text(content)
    assert isinstance(call("anomalies", "--thresholds", tmp_path / "t.yaml").exception, SecvecError)


@pytest.fixture
def webhook(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.headers["X-Secvec-Signature"], body))
            self.send_response(200 if self.path == "/hook" else 302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "hook.key").write_bytes(KEY + b"\n")
    (tmp_path / "hook.key").chmod(0o600)
    monkeypatch.setenv("SECVEC_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/hook")
    monkeypatch.setenv("SECVEC_WEBHOOK_KEY", str(tmp_path / "hook.key"))
    audit.append("vector_opened", opened_by="python", context={})
    yield taken
    server.shutdown()


def test_alerts_are_sent_signed(webhook: list[tuple[str, bytes]]) -> None:
    assert call("anomalies").exit_code == 3
    ((header, body),) = webhook
    time, signature = (part.partition("=")[2] for part in header.split(","))
    expected = hmac.new(KEY, f"{time}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(signature, expected)
    assert [alert["rule"] for alert in json.loads(body)["alerts"]] == ["unknown openers"]


@pytest.mark.parametrize("fault", ["redirects", "no key", "short key", "open key", "plain http", "gone"])
def test_a_webhook_that_does_not_take_them_is_an_error(
    webhook: list[tuple[str, bytes]], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "hook.key"
    if fault == "redirects":
        url = os.environ["SECVEC_WEBHOOK_URL"]
        monkeypatch.setenv("SECVEC_WEBHOOK_URL", url.replace("/hook", "/moved"))
    elif fault == "no key":
        monkeypatch.delenv("SECVEC_WEBHOOK_KEY")
    elif fault == "short key":
        key.write_bytes(b"short")
    elif fault == "open key":
        key.chmod(0o644)
    elif fault == "plain http":
        monkeypatch.setenv("SECVEC_WEBHOOK_URL", "http://hooks.example.com/x")
    else:
        monkeypatch.setenv("SECVEC_WEBHOOK_URL", "http://127.0.0.1:9/hook")
    done = call("anomalies")
    assert isinstance(done.exception, SecvecError)
    assert "unknown openers" in done.stdout
    assert KEY.decode() not in str(done.exception)


@pytest.mark.parametrize("command", ["show", "verify", "export", "anomalies"])
def test_help_teaches(command: str) -> None:
    assert "Example" in call(command, "--help").stdout
