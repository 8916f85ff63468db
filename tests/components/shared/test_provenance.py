import base64
import json
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.artifacts import publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.finished import recall, remember
from secvec.components.shared.provenance import attest, find_provenance, read_inputs, read_parameters
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key

DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
KEY = "f" * 64


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(ensure_signing_key(tmp_path / "builder")))
    for name in ("SECVEC_TRUSTED_BUILDERS", "SECVEC_TRUSTED_KEYS", "SECVEC_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "store"


@pytest.fixture
def artifact(store: Path, tmp_path: Path) -> Reference:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("content")
    return publish(tmp_path / "made", kind="model", store=str(store))


def make(artifact: Reference, **inputs: str) -> None:
    attest(artifact, step="a_step", inputs=inputs, parameters={"seed": 1, "share": 0.5})


def statements(store: Path, artifact: Reference) -> list[Path]:
    return sorted((store / "provenance" / artifact.digest.removeprefix("sha256:")).iterdir())


def test_what_was_attested_is_found(artifact: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_IMAGE", f"secvec-cpu@{DIGEST}")
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    make(artifact, base=OTHER)
    found = find_provenance(artifact, step="a_step", inputs={"base": OTHER})
    assert found
    assert read_inputs(found) == {"base": OTHER, "code": code_digest()}
    assert read_parameters(found) == {"seed": 1, "share": 0.5}
    dependencies = found["buildDefinition"]["resolvedDependencies"]
    assert dependencies[-1] == {
        "name": "image",
        "uri": f"secvec-cpu@{DIGEST}",
        "digest": {"sha256": "1" * 64},
    }
    assert found["runDetails"]["metadata"]["invocationId"] == "run-1"


def test_once_is_enough(store: Path, artifact: Reference) -> None:
    make(artifact, base=OTHER)
    make(artifact, base=OTHER)
    assert len(statements(store, artifact)) == 1
    make(artifact, base=DIGEST)
    assert len(statements(store, artifact)) == 2


@pytest.mark.parametrize(
    ("step", "inputs"),
    [("b_step", None), ("a_step", {"base": DIGEST}), ("a_step", {}), ("a_step", {"base": OTHER, "x": OTHER})],
)
def test_what_says_something_else_is_not_found(artifact: Reference, step: str, inputs: Any) -> None:
    make(artifact, base=OTHER)
    assert find_provenance(artifact, step=step, inputs=inputs) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"payload": "", "signatures": []}'])
def test_junk_beside_it_changes_nothing(store: Path, artifact: Reference, content: str) -> None:
    make(artifact, base=OTHER)
    (statements(store, artifact)[0].parent / "0.json").write_text(content)
    assert find_provenance(artifact, step="a_step")


def test_an_edited_statement_is_not_believed(store: Path, artifact: Reference) -> None:
    make(artifact, base=OTHER)
    path = statements(store, artifact)[0]
    envelope = json.loads(path.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b"2222", b"1111")
    path.write_text(json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}))
    assert find_provenance(artifact, step="a_step") is None


def test_a_statement_of_another_artifact_is_not_believed(
    store: Path, artifact: Reference, tmp_path: Path
) -> None:
    make(artifact, base=OTHER)
    (tmp_path / "made" / "file").write_text("other")
    other = publish(tmp_path / "made", kind="model", store=str(store))
    folder = store / "provenance" / other.digest.removeprefix("sha256:")
    folder.mkdir()
    (folder / "x.json").write_bytes(statements(store, artifact)[0].read_bytes())
    assert find_provenance(other, step="a_step") is None


def test_a_stranger_is_not_believed(
    artifact: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_TRUSTED_BUILDERS", f"{tmp_path / 'builder'}.pub")
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(ensure_signing_key(tmp_path / "stranger")))
    make(artifact, base=OTHER)
    assert find_provenance(artifact, step="a_step") is None


def test_without_a_key_nothing_is_written(
    store: Path, artifact: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECVEC_PROVENANCE_KEY")
    make(artifact, base=OTHER)
    assert not (store / "provenance").exists()


def test_a_key_may_be_held_by_the_variable_itself(
    artifact: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", (tmp_path / "builder").read_text())
    make(artifact, base=OTHER)
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(tmp_path / "builder"))
    assert find_provenance(artifact, step="a_step", inputs={"base": OTHER})
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----")
    with pytest.raises(SecvecError, match="SECVEC_PROVENANCE_KEY: does not hold a signing key"):
        make(artifact, base=DIGEST)


def test_a_finished_result_counts_only_with_its_provenance(store: Path, artifact: Reference) -> None:
    inputs = {"base": OTHER}
    remember(str(store), "a_step", KEY, artifact, inputs=inputs)
    assert recall(str(store), "a_step", KEY, inputs=inputs) is None
    make(artifact, base=DIGEST)
    assert recall(str(store), "a_step", KEY, inputs=inputs) is None
    make(artifact, base=OTHER)
    assert recall(str(store), "a_step", KEY, inputs=inputs) == artifact


def test_without_a_key_a_finished_result_counts(
    store: Path, artifact: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECVEC_PROVENANCE_KEY")
    remember(str(store), "a_step", KEY, artifact, inputs={"base": OTHER})
    assert recall(str(store), "a_step", KEY, inputs={"base": OTHER}) == artifact
