"""``secvec vector``: what each command shows, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from secvec.components.shared.custody import ensure_custody_key
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import make_validity, open_vector, publish_vector
from secvec.pipelines.command_vector import vector as app

BASE = "sha256:" + "a" * 64
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"tensors of a vector"}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a local run leaves, as far as vectors go."""
    for name in ("SECVEC_SIGNING_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(ensure_custody_key(tmp_path / "keys" / "custody.key")))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    return tmp_path


@pytest.fixture
def published(output: Path) -> Reference:
    certificate = {
        "passed": True,
        "base_digest": BASE,
        "vector_tensors_digest": "sha256:" + "e" * 64,
        "checks": [
            {"name": "works", "figure": 0.98, "bound": 0.9, "comparison": ">=", "passed": True},
        ],
        **make_validity(30),
    }
    return publish_vector(FILES, certificate, store=str(output / "store"), event="vector_sealed")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def events(output: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (output / "audit.jsonl").read_text().splitlines()]


def short(vector: Reference) -> str:
    return vector.digest.removeprefix("sha256:")[:10]


def test_list_and_show_open_nothing(published: Reference, output: Path) -> None:
    (one,) = json.loads(call("list", "--output", output, "--json").stdout)
    assert (one["digest"], one["standing"]) == (published.digest, "in force")
    shown = call("show", short(published), "--output", output).stdout
    assert "in force" in shown
    assert "works: 0.98 (>= 0.9)" in shown
    assert "vector_sealed" in shown
    assert events(output) == ["vector_sealed"]
    assert "in force" in call("list", "--store", output / "store").stdout


def test_a_folder_uri_names_a_vector_without_a_store(published: Reference) -> None:
    assert published.digest in call("show", published.uri).stdout


@pytest.mark.parametrize("name", ["abc", "../x", "zzzzzzzzzz", "0123456789", "s3://bucket/model/0123456789"])
def test_what_names_no_vector_is_refused(published: Reference, output: Path, name: str) -> None:
    done = call("show", name, "--output", output)
    assert done.exit_code == 1
    assert isinstance(done.exception, SecvecError)
    assert "accepted" in str(done.exception)


def test_without_a_store_it_is_a_usage_error(output: Path) -> None:
    assert call("list").exit_code == 2


def test_revoke_shows_and_refuses(published: Reference, output: Path) -> None:
    reason = "a copy left\nthe cluster"
    assert call("revoke", short(published), "--reason", reason, "--output", output).exit_code == 0
    shown = call("show", short(published), "--output", output).stdout
    assert "the security vector was revoked at" in shown
    with pytest.raises(SecvecError, match="a copy left"):
        open_vector(published, base_digest=BASE, opened_by="fine_tune_guarded")
    assert call("review", short(published), "--reason", "x", "--output", output).exit_code == 1


def test_rotate_makes_the_key_and_the_vector_opens_under_it(
    published: Reference, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = output / "keys" / "new.key"
    done = call("rotate", short(published), "--new-key", key, "--output", output)
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(key))
    assert open_vector(published, base_digest=BASE, opened_by="fine_tune_guarded") == FILES
    assert ", rotated" in call("list", "--output", output).stdout
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_review_is_in_the_log(published: Reference, output: Path) -> None:
    call("review", short(published), "--reason", "seeds read", "--output", output)
    assert events(output) == ["vector_sealed", "vector_reviewed"]


@pytest.mark.parametrize("command", ["list", "show", "import", "review", "revoke", "rotate"])
def test_help_teaches(command: str) -> None:
    assert "Example" in call(command, "--help").stdout
