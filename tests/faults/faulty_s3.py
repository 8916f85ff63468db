"""Publishes and fetches artifacts through a proxy that spoils the traffic, on a real S3 server.

``python -m tests.faults.faulty_s3 --runs 20 --workers 4 --seed 0 --out FOLDER``

Each run takes one kind of fault, which befalls some exchanges (three of four runs) or all of them (the
fourth). It publishes an artifact of three parts and two small files, fetches it into an empty cache, and
looks at the store past the proxy. What must hold: a fault that passes is survived; one that stays is told in
one line; what has a manifest verifies to the last bit; what was fetched is what was published; and no
multipart upload is left after the sweep. ``SECVEC_S3_SERVER`` names a script that starts the server
(``start PORT``, ``wipe``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from secvec.components.shared import s3, s3_errors
from secvec.components.shared.artifacts import fetch, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import MANIFEST_NAME, digest_bytes, parse_manifest
from tests.faults.fault_proxy import FAULTS, Fault, FaultProxy

ROOT = Path(__file__).parents[2]
BUCKET = "faults"
PART = 5 << 20  # the least that S3 takes
# What a kind befalls, where it is not everything.
_OPERATIONS = {
    "clock_skew": ("nothing that passes by",),
    "flip_up": ("PUT", "UploadPart"),
    "flip_down": ("GET", "CreateUpload", "ListGET"),
    "truncate": ("GET", "CreateUpload", "Complete"),
    "reset_down": ("GET", "CreateUpload", "Complete", "PUT", "UploadPart"),
    "half_multipart": ("UploadPart", "Complete", "Abort"),
    "wrong_etag": ("PUT", "UploadPart"),
}


def run_once(server: str, *, kind: str, number: int, seed: int) -> dict[str, Any]:
    """Publish and fetch under one fault; give what happened and what was wrong."""
    draw = random.Random(f"{seed}/{kind}/{number}")
    always = number % 4 == 3 or kind == "clock_skew"  # a wrong clock does not right itself
    fault = Fault(
        kind,
        _OPERATIONS.get(kind, ()),
        times=None if always else draw.randint(1, 3),
        draw=draw,
        skip=0 if always else draw.randrange(3),
    )
    started = time.monotonic()
    store = f"s3://{BUCKET}/{kind}-{number}-{seed}"
    proxy = FaultProxy(urlsplit(server).port or 80, fault)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as patches:
        files = _make_files(Path(scratch) / "source", draw)
        _set_up(patches, cache=Path(scratch) / "cache", always=always)
        if kind == "clock_skew":
            _shift_clock(patches, hours=draw.choice((-3, 3)))
        with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": proxy.url}):
            outcome = _publish_and_fetch(Path(scratch) / "source", store)
    proxy.close()
    problems = _judge(outcome, files, always=always)
    if not fault.hits and kind != "clock_skew":
        problems.append("the fault befell nothing")
    try:
        problems += _look_past_the_proxy(store)
    except Exception as error:
        problems.append(f"what lies in the store cannot be looked at: {type(error).__name__}: {error}")
    return {
        "kind": kind,
        "number": number,
        "always": always,
        "hits": fault.hits,
        "error": outcome["error"],
        "problems": problems,
        "seconds": round(time.monotonic() - started, 1),
    }


def _set_up(patches: ExitStack, *, cache: Path, always: bool) -> None:
    settings = {"SECVEC_CACHE": str(cache), "SECVEC_EVENTS": "/dev/null"}
    if always:
        settings["AWS_MAX_ATTEMPTS"] = "3"
    patches.enter_context(mock.patch.dict(os.environ, settings))
    # Small parts, and seconds in place of a minute without a byte.
    from boto3.s3.transfer import TransferConfig

    transfers = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
    patches.enter_context(mock.patch.object(s3, "_transfers", lambda: transfers))
    patches.enter_context(mock.patch.object(s3, "READ_SECONDS", 2))


def _shift_clock(patches: ExitStack, *, hours: int) -> None:
    """Let the client live with a clock that is wrong."""
    from botocore import auth

    signing, right, shift = auth.get_current_datetime, s3_errors.now, timedelta(hours=hours)

    def wrong(*given: Any, **named: Any) -> Any:
        return signing(*given, **named) + shift

    patches.enter_context(mock.patch.object(auth, "get_current_datetime", wrong))
    patches.enter_context(mock.patch.object(s3_errors, "now", lambda: right() + shift))


def _make_files(folder: Path, draw: random.Random) -> dict[str, bytes]:
    files = {"weights.bin": draw.randbytes(2 * PART + 12345), "a.json": b"{}", "b.txt": draw.randbytes(1000)}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def _publish_and_fetch(source: Path, store: str) -> dict[str, Any]:
    outcome: dict[str, Any] = {"error": "", "crash": "", "fetched": None}
    try:
        reference = publish(source, kind="dataset", store=store)
        folder = fetch(reference)
        outcome["fetched"] = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST_NAME
        }
    except SecvecError as error:
        outcome["error"] = str(error)
    except Exception as error:
        outcome["crash"] = f"{type(error).__name__}: {error}"
    return outcome


def _judge(outcome: dict[str, Any], files: dict[str, bytes], *, always: bool) -> list[str]:
    if outcome["crash"]:
        return [f"it crashed: {outcome['crash']}"]
    if outcome["error"]:
        problems = [] if "\n" not in outcome["error"] else ["the error has more than one line"]
        if not always:
            problems.append(f"a fault that passed was not survived: {outcome['error']}")
        return problems
    return [] if outcome["fetched"] == files else ["SILENT CORRUPTION: other bytes were fetched"]


def _look_past_the_proxy(store: str) -> list[str]:
    """Verify what can be seen in the store, sweep, and look for what is left."""
    problems = []
    for uri in (found for found in s3.list_objects(store) if found.endswith(f"/{MANIFEST_NAME}")):
        folder = uri.removesuffix(f"/{MANIFEST_NAME}")
        digest = f"sha256:{folder.split('/')[-1]}"
        manifest = parse_manifest(s3.read_object(uri), where=uri, digest=digest)
        for name, entry in manifest.files.items():
            # Not by the listing, which a server may bring up to date a moment later.
            if digest_bytes(s3.read_object(f"{folder}/{name}")) != entry.digest:
                problems.append(f"SILENT CORRUPTION: {name} under a manifest is not what it says")
    s3.abort_uploads(store)
    left = (
        s3._client().list_multipart_uploads(Bucket=BUCKET, Prefix=store.split("/", 3)[3]).get("Uploads", [])
    )
    return problems + [f"an upload is left after the sweep: {one['Key']}" for one in left]


def main() -> int:
    """Do the runs that are not done yet and show the sum of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.faulty_s3")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind")
    parser.add_argument("--workers", type=int, default=4, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="seed of where and how often")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; goes on where it was")
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / f"runs-{options.seed}.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    known = {(one["kind"], one["number"]) for one in done}
    wanted = [(k, n) for n in range(options.runs) for k in options.kinds if (k, n) not in known]
    # A connection that is open at a fork would be shared: its answers go to whoever reads first.
    forget = s3._make_client.cache_clear
    with (
        S3Server() as server,
        ProcessPoolExecutor(options.workers, initializer=forget) as pool,
        journal.open("a") as stream,
    ):
        tasks = [pool.submit(run_once, server, kind=k, number=n, seed=options.seed) for k, n in wanted]
        for task in as_completed(tasks):
            done.append(task.result())
            stream.write(json.dumps(done[-1]) + "\n")
            stream.flush()
    return _sum_up(done, out=options.out)


def _sum_up(done: list[dict[str, Any]], *, out: Path) -> int:
    kinds = {}
    for kind in FAULTS:
        own = [one for one in done if one["kind"] == kind]
        kinds[kind] = {
            "runs": len(own),
            "struck": sum(one["hits"] > 0 for one in own),
            "survived": sum(not one["error"] for one in own),
            "refused": sum(bool(one["error"]) for one in own),
            "longest_seconds": max((one["seconds"] for one in own), default=0),
        }
    problems = [f"{one['kind']} {one['number']}: {text}" for one in done for text in one["problems"]]
    summary = {"runs": len(done), "kinds": kinds, "problems": problems}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return 1 if problems else 0


class S3Server:
    """The server that the script starts, or the one that the environment names."""

    def __init__(self) -> None:
        beside = ROOT.parent / "shared" / "tools" / "s3.sh"
        self.script = Path(os.environ.get("SECVEC_S3_SERVER") or beside)
        self.state = tempfile.TemporaryDirectory(prefix="secvec-s3-")
        self.started = not os.environ.get("AWS_ENDPOINT_URL")

    def __enter__(self) -> str:
        if self.started:
            if not self.script.is_file():
                raise SystemExit("SECVEC_S3_SERVER names no script that starts an S3 server")
            os.environ |= dict(re.findall(r"(AWS_\w+)=(\S+)", self._call("start", "9178")))
        buckets = [one["Name"] for one in s3._client().list_buckets()["Buckets"]]
        if BUCKET not in buckets:
            s3._client().create_bucket(Bucket=BUCKET)
        return os.environ["AWS_ENDPOINT_URL"]

    def __exit__(self, *_: object) -> None:
        if self.started:
            self._call("wipe")

    def _call(self, *arguments: str) -> str:
        environment = {**os.environ, "S3_STATE": self.state.name}
        command = [str(self.script), *arguments]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
