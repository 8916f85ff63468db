"""The signed verdict: a verification summary (SLSA VSA v1) of exactly the files that ship."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Verdict
from secvec.components.shared.attestation import VERDICT_TYPE, make_statement
from secvec.components.shared.manifest import Manifest
from secvec.components.shared.references import Reference


def summarise_verdict(
    verdict: Verdict,
    *,
    verdict_file: str,
    policy: Policy,
    model: Reference,
    shipped: Manifest,
    now: datetime,
    signing_key: str = "",
) -> dict[str, Any]:
    """State the verdict on every file that ships, so that a server can check its copy without this store.

    Args:
        verdict: The verdict.
        verdict_file: ``sha256:<hex>`` of verdict.json, which holds the reasons.
        policy: The policy that was applied.
        model: The model artifact.
        shipped: Its manifest.
        now: When it was judged, with a time zone.
        signing_key: Public key in PEM of the model folder's own signature; empty without one.

    Returns:
        The in-toto statement, unsigned.
    """
    now = now.replace(microsecond=0)
    files = {f"model/{name}": digest for name, digest in shipped_files(shipped).items()}
    return make_statement(
        {"model artifact": model.digest, **files},
        VERDICT_TYPE,
        {
            "verifier": {"id": "urn:secvec:gate_promotion"},
            "timeVerified": now.isoformat(),
            "resourceUri": model.uri,
            "policy": {"uri": "urn:secvec:policy", "digest": _hexadecimal(verdict.policy_digest)},
            "inputAttestations": [
                {"uri": "urn:secvec:evaluation", "digest": _hexadecimal(verdict.digests["evaluation"])}
            ],
            "verificationResult": "PASSED" if verdict.outcome == "PASS" else "FAILED",
            "verifiedLevels": [f"SECVEC_{verdict.outcome}"],
            "verdict": {"name": "verdict.json", "digest": _hexadecimal(verdict_file)},
            "model": {"name": verdict.model_name, "version": verdict.model_version},
            **({"modelSigningKey": signing_key} if signing_key else {}),
            "expires_at": (now + timedelta(days=policy.valid_days)).isoformat(),
        },
    )


def shipped_files(manifest: Manifest) -> dict[str, str]:
    """Digests of what ships, by path within the model folder."""
    found = {name: entry.digest for name, entry in manifest.files.items() if name.startswith("model/")}
    return {name.removeprefix("model/"): digest for name, digest in found.items()}


def _hexadecimal(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
