"""``secvec evaluate`` on real models and suites, and on a model behind a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner

from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.endpoint import EndpointModel
from secvec.components.evaluate_harm.questions import Decoding, Question
from secvec.components.evaluate_harm.standalone import EvaluationJob, evaluate_model
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import Message
from secvec.pipelines.command import app

CONFIG = EvaluationConfig(max_new_tokens=16, batch_size=4, attacks=("direct", "prefill"), language="ja")


def write_suite(folder: Path, rows: list[dict[str, Any]], **manifest: Any) -> str:
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "p.jsonl").write_text(text)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    known = {"name": folder.name, "version": "1", "licence": "CC0-1.0", "prompts": "p.jsonl"}
    (folder / "suite.yaml").write_text(yaml.safe_dump({**known, "digest": digest, **manifest}))
    return str(folder)


@pytest.fixture
def suites(tmp_path: Path, helpers: Any) -> list[str]:
    harm = [{"prompt": prompt, "c": "ab"[n % 2], "l": "en"} for n, prompt in enumerate(helpers.HARM)]
    skill = [{"prompt": p, "choices": [a, "wheel"], "answer": a} for p, a in helpers.SKILL.items()]
    kept = [{"prompt": p, "answer": a} for p, a in helpers.KEPT.items()]
    choice = {"prompt": "prompt", "choices": "choices", "answer": "answer"}
    return [
        write_suite(tmp_path / "breaking", harm, kind="harm", columns={"category": "c", "language": "l"}),
        write_suite(tmp_path / "kind-words", kept, kind="over_refusal"),
        write_suite(tmp_path / "sums", skill, kind="utility", scoring="multiple_choice", columns=choice),
        write_suite(tmp_path / "sense", [{"prompt": p["prompt"]} for p in kept], kind="coherence"),
    ]


def make_job(world: Any, suites: list[str], output: Path, **changes: Any) -> EvaluationJob:
    values = {
        "model": str(world.guarded),
        "against": str(world.base),
        "suites": suites,
        "output": str(output),
        "config": CONFIG.model_dump(),
    }
    return EvaluationJob.read({**values, **changes}, where="test")


def test_measures_every_kind_of_suite(world: Any, suites: list[str], tmp_path: Path) -> None:
    found = evaluate_model(make_job(world, suites, tmp_path))
    suite = found["suites"]
    assert suite["breaking/harm"]["arms"]["guarded"]["n"] == 6
    assert set(suite["breaking/harm"]["categories"]) == {"a", "b"}
    assert suite["kind-words/over_refusal"]["arms"]["guarded"]["rate"] == 0.0
    assert suite["sums/utility"]["arms"]["guarded"]["rate"] == 1.0
    assert suite["sense/coherence"]["arms"]["base"]["rate"] == 0.0
    assert found["attacks"]["direct"]["guarded"]["rate"] == 0.0
    assert set(found["attacks"]) == {"direct", "prefill"}
    assert list(found["languages"]) == ["en"]
    page = (tmp_path / "report.html").read_text()
    assert '<html lang="ja">' in page
    assert "攻撃形式別の有害率" in page
    assert not (tmp_path / "work").exists()
    assert json.loads((tmp_path / "statistics.json").read_text()) == found


def test_reports_over_refusal_alone(world: Any, suites: list[str], tmp_path: Path) -> None:
    found = evaluate_model(make_job(world, suites[1:2], tmp_path, against=""))
    assert found["arms"]["guarded"]["harm_rate"] is None
    assert found["limit"] is None
    assert "有害プロンプトはありませんでした" in (tmp_path / "report.html").read_text()


def test_a_bound_on_harm_that_nobody_measured_is_not_met(
    world: Any, suites: list[str], tmp_path: Path
) -> None:
    found = evaluate_model(make_job(world, suites[1:2], tmp_path, against="", max_harm=1.0))
    assert found["limit"]["outcome"] == "INDETERMINATE"


def test_the_command_shows_rates_and_holds_a_bound(
    world: Any, suites: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECVEC_EVENTS", raising=False)
    out = tmp_path / "out"
    arguments = ["evaluate", str(world.guarded), "--suite", suites[0], "--output", str(out)]
    arguments += ["--max-new-tokens", "16", "--max-harm", "0.01"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3, done.output
    assert "0.0% (39.3%)" in done.output
    assert "FAIL" in done.output
    page = (out / "report.html").read_text()
    assert '<div class="verdict fail">' in page[: page.index('<div class="cards">')]
    assert "Harm may be as high as 39.3%" in page
    wrong = CliRunner().invoke(app, [*arguments, "--samples", "2"])
    assert wrong.exit_code == 2
    assert "temperature 0" in " ".join(wrong.output.split())


class Handler(BaseHTTPRequestHandler):
    """Answers like an OpenAI-compatible server, after as many failures as the test asks for."""

    failures: ClassVar[list[int]] = []
    bodies: ClassVar[list[dict[str, Any]]] = []
    body = b""

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        self.bodies.append(asked)
        status = self.failures.pop() if self.failures else 200
        said = {"choices": [{"message": {"content": "re: " + asked["messages"][-1]["content"]}}]}
        data = self.body or json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointModel]:
    for name in ("failures", "bodies"):
        monkeypatch.setattr(Handler, name, [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield EndpointModel(url=url, model="tiny", timeout=5.0, tries=3, pause=0.01)
    server.shutdown()
    server.server_close()


QUESTIONS = [Question(id=str(n), messages=(Message(role="user", content=f"question {n}"),)) for n in range(5)]
GREEDY = Decoding(max_new_tokens=8, batch_size=2)


def test_an_endpoint_answers_in_order_and_goes_on(endpoint: EndpointModel, tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    first = endpoint.answer(QUESTIONS, GREEDY, task="t", journal=journal)
    assert first == [f"re: question {n}" for n in range(5)]
    assert endpoint.answer(QUESTIONS, GREEDY, task="t", journal=journal) == first
    assert len(Handler.bodies) == 5
    assert {body["model"] for body in Handler.bodies} == {"tiny"}


def test_a_busy_endpoint_is_asked_again(endpoint: EndpointModel) -> None:
    Handler.failures[:] = [503, 429]
    assert endpoint.answer(QUESTIONS[:1], GREEDY, task="t", journal=None) == ["re: question 0"]
    assert len(Handler.bodies) == 3


@pytest.mark.parametrize(
    ("failures", "body", "message"),
    [
        ([429] * 9, b"", r"answers 429; accepted: an OpenAI-compatible endpoint"),
        ([401] * 9, b"", "answers 401"),
        ([], b"<html>", "answers what is no chat completion"),
        ([], b'{"choices": []}', "answers what is no chat completion"),
    ],
)
def test_an_endpoint_that_fails_is_named(
    endpoint: EndpointModel,
    failures: list[int],
    body: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Handler.failures[:] = failures
    monkeypatch.setattr(Handler, "body", body)
    with pytest.raises(SecvecError, match=message):
        endpoint.answer(QUESTIONS[:1], GREEDY, task="t", journal=None)


def test_an_endpoint_that_is_not_there_is_named() -> None:
    gone = EndpointModel(url="http://127.0.0.1:9/v1", model="tiny", tries=2, pause=0.01)
    with pytest.raises(SecvecError, match=r"127.0.0.1:9/v1: cannot be reached"):
        gone.answer(QUESTIONS[:1], GREEDY, task="t", journal=None)


@pytest.mark.parametrize(
    ("failures", "body", "reason"),
    [([429] * 99, b"", "answers 429"), ([], b"<html>", "answers what is no chat completion")],
)
def test_a_served_model_that_fails_ends_indeterminate_with_the_reason(  # noqa: PLR0917
    failures: list[int],
    body: bytes,
    reason: str,
    endpoint: EndpointModel,
    suites: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Handler.failures[:] = failures
    monkeypatch.setattr(Handler, "body", body)
    monkeypatch.setattr(
        "secvec.components.evaluate_harm.standalone.EndpointModel", lambda **given: replace(endpoint, **given)
    )
    values = {"model": endpoint.url, "suites": suites[:1], "output": str(tmp_path)}
    found = evaluate_model(EvaluationJob.read({**values, "config": {}}, where="test"))
    assert found["limit"]["outcome"] == "INDETERMINATE"
    assert reason in found["limit"]["reason"]
    assert json.loads((tmp_path / "statistics.json").read_text()) == found
    assert reason in (tmp_path / "report.html").read_text()
    # when the server is well again, the same command ends as if it had always been
    Handler.failures.clear()
    monkeypatch.setattr(Handler, "body", b"")
    again = evaluate_model(EvaluationJob.read({**values, "config": {}}, where="test"))
    assert again["arms"]["guarded"]["n_harm"] == 6


def test_a_served_model_that_is_too_slow_ends_indeterminate(
    endpoint: EndpointModel, suites: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_POST", lambda self: time.sleep(0.3))
    monkeypatch.setattr(
        "secvec.components.evaluate_harm.standalone.EndpointModel",
        lambda **given: replace(endpoint, **given, timeout=0.05, tries=2),
    )
    values = {"model": endpoint.url, "suites": suites[:1], "output": str(tmp_path), "config": {}}
    found = evaluate_model(EvaluationJob.read(values, where="test"))
    assert found["limit"]["outcome"] == "INDETERMINATE"
    assert "cannot be reached" in found["limit"]["reason"]
