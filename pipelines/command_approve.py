"""``secvec approve``: sign for a verdict that waits for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference

EPILOG = "Example: `secvec approve s3://artifacts/secvec/verdict/4f3c... --key me.pem`"
_ACCEPTED = "the URI of a published verdict, <store>/verdict/<64 hexadecimal digits>"


def approve(
    verdict: Annotated[str, typer.Argument(metavar="VERDICT", help="URI of the published verdict.")],
    *,
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="Your own private key, whose public half the policy names.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A local run's output folder.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Approve an INDETERMINATE verdict, as one of the people whom its policy names.

    Your signature covers the verdict's digest. It promotes nothing by itself: once enough people have signed,
    `secvec reconcile` does, with the gate's key. A FAIL cannot be approved, nor a model without a signature
    or an absence proof, nor your own run.
    """
    from secvec.components.gate_promotion import approvals
    from secvec.pipelines.output_folder import adopt_output

    if output:
        adopt_output(output)
    reference, store = _read_reference(verdict)
    found, policy = approvals.read_open_verdict(reference)
    print(f"model   {found.model_name} version {found.model_version}, {found.digests['model']}")
    for reason in found.reasons:
        if reason.outcome != "PASS":
            print(f"open    {reason.check}: {reason.figure}, wanted {reason.bound} ({reason.source})")
    if not yes:
        typer.confirm("Sign for it?", abort=True)
    name = approvals.approve(reference, key=key, store=store)
    print(f"signed  as {name}; {policy.required_approvals} of {len(policy.approvers)} people must approve")


def _read_reference(uri: str) -> tuple[Reference, str]:
    store, _, tail = uri.rstrip("/").rpartition("/verdict/")
    try:
        return Reference(kind="verdict", uri=uri.rstrip("/"), digest=f"sha256:{tail}"), store
    except ValidationError:
        raise SecvecError("is no verdict", where=uri, accepted=_ACCEPTED) from None
