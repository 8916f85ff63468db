"""``secvec reconcile``: finish what a crash left, and report aliases that somebody else moved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secvec.components.shared.errors import SecvecError

ALIASES_MOVED = 3
EPILOG = "Example: `secvec reconcile my-model --store s3://artifacts/secvec`"


def reconcile(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered model in MLflow.")],
    *,
    store: Annotated[
        str, typer.Option(metavar="URI", help="Store of its runs; by default that of `--output`.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A local run's output folder.")
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Move back aliases that somebody else moved.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long another gate's turn may stand still.")
    ] = 60.0,
) -> None:
    """Bring the aliases of a registered model into line with its receipts.

    A promotion that a crash cut off is finished, or given up if a later one has overtaken it. What enough
    people have approved is promoted. Aliases that somebody else moved are reported and written to the audit
    log: exit status 3, unless they were restored.
    """
    from secvec.components.gate_promotion.reconciliation import reconcile as settle
    from secvec.components.shared.storage import expand_user
    from secvec.pipelines.output_folder import adopt_output

    if output:
        adopt_output(output)
        store = store or str(expand_user(output).absolute() / "store")
    if not store:
        raise SecvecError("no store is given", where="--store", accepted="the URI of the runs' store")
    found = settle(name, store=store, restore=restore, seconds=patience)
    if found is None:
        raise SecvecError("is not registered", where=name, accepted="a registered model in MLflow")
    for key in found.finished:
        print(f"finished  intent {key[:16]}")
    for key in found.given_up:
        print(f"given up  intent {key[:16]}: a later promotion or its verdict's end has overtaken it")
    for key in found.settled:
        print(f"approved  intent {key[:16]}: enough people signed; it is champion")
    for alias in found.shown:
        print(f"shown     {alias} lagged behind its receipt")
    for alias, (shown, granted) in found.moved.items():
        end = ", moved back" if found.restored else ""
        print(f"moved     {alias} showed version {shown or 'none'}, granted was {granted or 'none'}{end}")
    if not any((found.finished, found.given_up, found.settled, found.shown, found.moved)):
        print("nothing to do: the aliases show what was granted")
    if found.moved and not found.restored:
        raise typer.Exit(ALIASES_MOVED)
