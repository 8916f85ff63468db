"""``secvec verify``: may this model be served?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from secvec.components.shared.signing_keys import TRUSTED_VARIABLE

EPILOG = (
    "Example: `secvec verify /models/chat --verdict /models/chat.verdict --trusted-key gate.pub`\n\n"
    "In Python: `secvec.components.shared.verification.verify_model(folder, verdict=...)`."
)


def verify(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model folder, or the model artifact around it.")
    ],
    *,
    verdict: Annotated[
        Path, typer.Option(metavar="PATH", help="The verdict's folder, or its `statement.json`.")
    ],
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Public key of the gate; by default `SECVEC_TRUSTED_KEYS`."),
    ] = None,
    signer: Annotated[
        list[str] | None, typer.Option(metavar="KEYID", help="Only this key counts; may be repeated.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The verdict must have been reached by this policy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check, offline, that a model may be served: exit status 0, or 1 and the reason in one line.

    The verdict must be signed by a trusted key, be PASS, be in force, and speak of exactly these files; and
    the folder must hold no trace of a vector, of any other adapter or of code. Weights are read once.
    """
    from secvec.components.gate_promotion.policy import load_policy
    from secvec.components.shared.verification import verify_model

    if trusted_key:
        os.environ[TRUSTED_VARIABLE] = ":".join(str(path) for path in trusted_key)
    found = verify_model(
        model,
        verdict=verdict,
        allowed_signers=signer or (),
        policy_digest=load_policy(policy).digest() if policy else "",
    )
    facts = {
        "folder": str(found.folder),
        "model": f"{found.model_name} version {found.model_version}",
        "digest": found.model_digest,
        "policy": found.policy_digest,
        "signers": ", ".join(found.signers),
        "expires": found.expires_at.isoformat(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:9}{value}")
