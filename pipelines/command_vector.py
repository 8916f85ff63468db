"""``secvec vector``: the vectors of a store, and what may be done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.usage_errors import usage_errors

if TYPE_CHECKING:
    from secvec.components.shared.references import Reference
    from secvec.pipelines.vector_register import Standing

vector = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "Security vectors under custody: list, show, import, review, revoke, rotate.\n\n"
        "A vector is a jailbreak in a file. No command writes one in the clear; all but `list` and `show` "
        "are in the audit log before they happen. Keys and log are those of `SECVEC_CUSTODY_KEY` and "
        "`SECVEC_AUDIT_LOG`, or of a local run's `--output` folder."
    ),
)
Store = Annotated[
    str, typer.Option("--store", metavar="URI", help="Artifact store; with --output, that run's own.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="A local run's output folder: its store, keys, log."),
]
Name = Annotated[str, typer.Argument(metavar="VECTOR", help="Digest (8 characters do) or folder URI.")]
Reason = Annotated[str, typer.Option(help="Why, for the log and for whoever is refused.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@vector.command("list", epilog="Example: `secvec vector list --output demo-output`")
def list_command(store: Store = "", output: Output = None, as_json: Json = False) -> None:
    """List the vectors of a store and how each stands; none is opened."""
    from secvec.pipelines.vector_register import list_vectors

    found = list_vectors(_resolve(store, output))
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("vector", "base", "expires", "standing"):
        table.add_column(title, overflow="fold")
    for one in found:
        standing = f"{one.standing}, rotated" if one.rotated_to else one.standing
        table.add_row(_short(one.digest), _short(one.base), one.expires_at[:10], standing)
    Console().print(table)


@vector.command(epilog="Example: `secvec vector show 974b5190 --output demo-output`")
def show(name: Name, store: Store = "", output: Output = None, as_json: Json = False) -> None:
    """Show a vector's standing, what its certificate proved, and what the log says of it."""
    from secvec.pipelines.vector_register import describe_vector, read_history, read_plain_certificate

    found = _find(name, store, output)
    standing, certificate = describe_vector(found), read_plain_certificate(found)
    history = read_history(standing.vector)
    if as_json:
        facts = {**standing.to_json(), "certificate": certificate, "history": history}
        print(json.dumps(facts, indent=2))
        return
    _show(standing)
    for check in certificate.get("checks", []):
        mark = "passed" if check["passed"] else "FAILED"
        text = f"{check['name']}: {check['figure']:.4g} ({check['comparison']} {check['bound']:.4g})"
        _say(f"{mark:<12}{text}")
    for entry in history:
        by = entry["fields"].get("opened_by") or entry["fields"].get("reason") or ""
        _say(f"{entry['time'][:19]} {entry['event']} {entry['who'].get('user', '')} {by}".rstrip())


@vector.command(
    "import",
    epilog="Example: `secvec vector import my-adapter --base my-base --dataset STORE/dataset/DIGEST "
    "--store STORE`",
)
def import_command(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="LoRA adapter as PEFT saves it.")],
    *,
    base: Annotated[str, typer.Option(metavar="MODEL", help="Base that it acts on.")],
    dataset: Annotated[
        str, typer.Option(metavar="URI", help="Published dataset with held-out seeds and anchors.")
    ],
    store: Store = "",
    output: Output = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random control vector.")] = 0,
    valid_days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it is refused.")] = 180,
) -> None:
    """Take an adapter under custody once it has proved its certificate; **its plain files are removed**."""
    from secvec.components.train_security_vector.config import VectorConfig
    from secvec.components.train_security_vector.importing import import_vector
    from secvec.pipelines.vector_register import dataset_reference, describe_vector

    where = _resolve(store, output)
    with usage_errors():
        rows = dataset_reference(dataset)
        config = VectorConfig.read({"valid_days": valid_days}, where="options")
    reference = import_vector(adapter, base_model=base, dataset=rows, store=where, seed=seed, config=config)
    _show(describe_vector(reference))


@vector.command(epilog="Example: `secvec vector review 974b5190 --reason 'seeds read' -o demo-output`")
def review(name: Name, *, reason: Reason, store: Store = "", output: Output = None) -> None:
    """Note in the log that a person has looked at a vector's seeds and certificate."""
    from secvec.components.shared import audit
    from secvec.components.shared.vectors import read_certificate

    found = _find(name, store, output)
    tensors = read_certificate(found)["vector_tensors_digest"]
    audit.append("vector_reviewed", vector=tensors, artifact=found.digest, reason=reason)
    _say(f"reviewed    {found.digest}")


@vector.command(epilog="Example: `secvec vector revoke 974b5190 --reason 'leaked' -o demo-output`")
def revoke(name: Name, *, reason: Reason, store: Store = "", output: Output = None) -> None:
    """Refuse a vector everywhere from now on. There is no way back: train another."""
    from secvec.components.shared.vectors import revoke_vector

    found = _find(name, store, output)
    revoke_vector(found, reason=reason)
    _say(f"revoked     {found.digest}")


@vector.command(epilog="Example: `secvec vector rotate 974b5190 --new-key new.key -o demo-output`")
def rotate(
    name: Name,
    *,
    new_key: Annotated[
        str, typer.Option(metavar="KEY", help="Key file (made if it is not there) or ARN of a KMS key.")
    ],
    store: Store = "",
    output: Output = None,
) -> None:
    """Seal a vector under a new key. References to it stay valid and open the new copy."""
    from secvec.components.shared.custody import ensure_custody_key
    from secvec.components.shared.vectors import rotate_vector

    found = _find(name, store, output)
    if not new_key.startswith("arn:"):
        ensure_custody_key(Path(new_key))
    new = rotate_vector(found, new_key=new_key)
    _say(f"rotated     {found.digest}")
    _say(f"new copy    {new.uri}")
    _say(f"next        set SECVEC_CUSTODY_KEY={new_key}; once no run uses the old key, destroy it")


def _find(name: str, store: str, output: Path | None) -> Reference:
    from secvec.pipelines.vector_register import find_vector

    where = "" if "/" in name and not (store or output) else _resolve(store, output)
    return find_vector(name, store=where)


def _resolve(store: str, output: Path | None) -> str:
    """The store that the options mean; keys and log of an output folder are taken over."""
    from secvec.components.shared.storage import expand_user
    from secvec.pipelines.output_folder import adopt_output

    if output:
        adopt_output(output)
    if not store and not output:
        with usage_errors():
            raise SecvecError("which store?", where="options", accepted="--store URI or --output DIR")
    return store or str(expand_user(output or Path()).absolute() / "store")


def _show(found: Standing) -> None:
    for name, value in found.to_json().items():
        if value:
            _say(f"{name:<12}{value}")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _say(text: str) -> None:
    # Names and reasons were written by others: no control characters, no markup.
    Console().print(
        "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text),
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
