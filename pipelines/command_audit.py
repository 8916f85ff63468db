"""``secvec audit``: who opened a vector or promoted a model, and whether the log can be believed."""

from __future__ import annotations

import collections
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from secvec.components.shared.errors import SecvecError

FOUND_ANOMALIES = 3
_WIDEST = 100

audit = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "The audit log: show, verify, export, and look for anomalies.\n\n"
        "The log is the one that `SECVEC_AUDIT_LOG` names, or the one of a local run's `--output` folder."
    ),
)
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="A local run's output folder.")
]


@audit.command(epilog="Example: `secvec audit show --output demo-output --last 20`")
def show(
    output: Output = None,
    last: Annotated[int, typer.Option(min=0, help="Newest lines only; 0 for all.")] = 0,
    event: Annotated[list[str] | None, typer.Option(help="Only such events; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON lines.")] = False,
) -> None:
    """Show what happened, one line an event. This checks nothing: `verify` does."""
    from secvec.components.shared.audit import read_entries

    _adopt(output)
    entries = (entry for entry in read_entries() if not event or entry["event"] in event)
    for entry in collections.deque(entries, maxlen=last or None):
        print(json.dumps(entry) if as_json else _describe(entry))


@audit.command(epilog="Example: `secvec audit verify --output demo-output`")
def verify(output: Output = None) -> None:
    """Check every line, the chain, and every checkpoint beside the log, in MLflow and in the second place."""
    from secvec.components.shared.audit_checkpoints import verify_log

    _adopt(output)
    found = verify_log()
    print(f"whole       {found.state.size} lines, head {found.state.head}")
    print(f"checkpoints {found.checkpoints} agree; lines up to {found.covered} cannot be cut off unseen")


@audit.command(epilog="Example: `secvec audit export --to audit-2026.jsonl --output demo-output`")
def export(
    to: Annotated[Path, typer.Option(metavar="FILE", help="New file for the lines, as they are in the log.")],
    output: Output = None,
) -> None:
    """Copy the verified log, byte for byte, for an auditor. The export itself is in the log first."""
    from secvec.components.shared import audit as log
    from secvec.components.shared.audit_checkpoints import verify_log
    from secvec.components.shared.private_files import create_private

    _adopt(output)
    found = verify_log()
    log.append("log_exported", lines=found.state.size, head=found.state.head, to=to.name)
    # A line that a crash cut short is part of the chain, so it is copied too.
    lines = [line for line, _ in zip(log.open_log().read_lines(), range(found.state.size), strict=False)]
    if not create_private(to, b"".join(line + b"\n" for line in lines)):
        raise SecvecError("is there already", where=str(to), accepted="the name of a new file")
    print(f"exported    {len(lines)} lines to {to}")


@audit.command(epilog="Example: `secvec audit anomalies --output demo-output --access-log s3-access.log`")
def anomalies(
    output: Output = None,
    access_log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="S3 server access log or CloudTrail file; may be repeated."),
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with thresholds that differ from the shipped.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print alerts as JSON lines.")] = False,
) -> None:
    """Verify the log and look for misuse: exit status 3 if something looks wrong.

    Alerts also go to the webhook that `SECVEC_WEBHOOK_URL` names, signed with `SECVEC_WEBHOOK_KEY`.
    """
    from secvec.components.shared.audit import open_log
    from secvec.pipelines.anomalies.webhook import send_alerts

    _adopt(output)
    found = _look(access_log or [], thresholds)
    for alert in found:
        text = f"line {alert.line}" if alert.line else "not in the log"
        print(json.dumps(vars(alert)) if as_json else _escape(f"{alert.rule} ({text}): {alert.what}"))
    if found:
        if send_alerts(found, log=str(open_log())):
            Console(stderr=True).print(f"{len(found)} alerts sent", highlight=False)
        sys.stdout.flush()
        raise typer.Exit(FOUND_ANOMALIES)


def _look(access_log: list[Path], thresholds: Path | None) -> list[Any]:
    """All alerts; a log that does not verify is the first of them."""
    from secvec.components.shared.audit import read_entries
    from secvec.components.shared.audit_checkpoints import verify_log
    from secvec.pipelines.anomalies.access_records import read_access_records
    from secvec.pipelines.anomalies.rules import Alert, Evidence, find_anomalies
    from secvec.pipelines.anomalies.thresholds import read_thresholds

    limits, accesses, entries = (
        read_thresholds(thresholds),
        read_access_records(access_log),
        list(read_entries()),
    )
    broken = []
    try:
        verify_log()
    except SecvecError as error:
        broken = [Alert("a log that is not whole", 0, str(error))]
    seen = Evidence(entries=entries, accesses=accesses, now=datetime.now(UTC))
    return [*broken, *find_anomalies(seen, limits)]


def _adopt(output: Path | None) -> None:
    from secvec.pipelines.output_folder import adopt_output

    if output:
        adopt_output(output)


def _describe(entry: dict[str, Any]) -> str:
    from secvec.pipelines.anomalies.rules import principal

    facts = " ".join(f"{name}={_brief(value)}" for name, value in sorted(entry["fields"].items()))
    return _escape(f"{entry['sequence']:>6} {entry['time'][:19]} {principal(entry)} {entry['event']} {facts}")


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1", text)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
