"""The verdict as an artifact: ``verdict.json``, ``policy.json`` and the signed ``statement.json``.

With a PASS go ``model.sig`` and ``model.pub``, the model folder's signature for whoever has other tools.
"""

from __future__ import annotations

import json

from secvec.components.gate_promotion.intents import Intent
from secvec.components.gate_promotion.promotion import Registration
from secvec.components.gate_promotion.verdict import Verdict
from secvec.components.gate_promotion.verification_summary import shipped_files, summarise_verdict
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.attestation import sign_statement
from secvec.components.shared.manifest import digest_bytes, read_manifest
from secvec.components.shared.model_signature import PUBLIC_KEY_NAME, SIGNATURE_NAME, sign_model
from secvec.components.shared.references import Reference


def publish_verdict(intent: Intent, registration: Registration | None, *, store: str) -> Reference:
    """Publish what the gate said; the same intent and version give the same bytes.

    Args:
        intent: The judgement.
        registration: The version it is about, unless the evidence was not believed.
        store: URI of the store.

    Raises:
        SecvecError: There is no key to sign with, or the store cannot be written.
    """
    verdict = _make_verdict(intent, registration)
    text = (verdict.model_dump_json(by_alias=True, indent=2) + "\n").encode()
    shipped = read_manifest(fetch(intent.model), digest=intent.model.digest)
    signed = None
    if verdict.outcome == "PASS":
        signed = sign_model(shipped_files(shipped), name=verdict.model_name)
    statement = summarise_verdict(
        verdict,
        verdict_file=digest_bytes(text),
        policy=intent.policy,
        model=intent.model,
        shipped=shipped,
        now=intent.issued_at,
        signing_key=signed[1].decode() if signed else "",
    )
    with building("verdict", store) as scratch:
        (scratch / "verdict.json").write_bytes(text)
        (scratch / "policy.json").write_text(intent.policy.model_dump_json(indent=2) + "\n", encoding="utf-8")
        envelope = json.dumps(sign_statement(statement), indent=2, sort_keys=True)
        (scratch / "statement.json").write_text(envelope + "\n", encoding="utf-8")
        for name, content in zip((SIGNATURE_NAME, PUBLIC_KEY_NAME), signed or (), strict=False):
            (scratch / name).write_bytes(content)
        return publish(scratch, kind="verdict", store=store)


def _make_verdict(intent: Intent, found: Registration | None) -> Verdict:
    facts: dict[str, str] = {}
    if found:
        facts = {"tracking_uri": found.tracking_uri, "run_id": found.run_id, "source": found.source}
    return Verdict(
        outcome=intent.outcome,
        reasons=intent.reasons,
        digests=intent.digests,
        policy_digest=intent.policy.digest(),
        model_name=intent.model_name,
        model_version=found.version if found else "",
        aliases=intent.aliases,
        mlflow=facts,
        author=intent.author,
        settles=intent.settles,
    )
