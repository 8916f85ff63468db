"""Run: ``python -m tests.benchmarks.signing [--gigabytes 2] [FOLDER]``.

What signing a model folder and verifying it before serving cost per gigabyte (10^9 bytes): each hashes every
byte once. The weights are zeros in a sparse file, so that no disk is measured.

Prints one JSON object; exit status 1 when both together take over 1.5 s of CPU time a gigabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Verdict
from secvec.components.gate_promotion.verification_summary import shipped_files, summarise_verdict
from secvec.components.shared.attestation import sign_statement
from secvec.components.shared.manifest import digest_file, read_manifest, write_manifest
from secvec.components.shared.model_signature import sign_model
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.verification import verify_model

WANTED_SECONDS = 1.5
NONE = "sha256:" + "0" * 64


def write_model(folder: Path, size: int) -> Path:
    """A model folder with weights of so many bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    return folder


def sign(artifact: Path, verdict: Path) -> None:
    """What publishing and the gate do: hash every file, sign the folder, sign the verdict on it."""
    digest = write_manifest(artifact, kind="model")
    shipped = read_manifest(artifact, digest=digest)
    signed = sign_model(shipped_files(shipped), name="model")
    assert signed
    policy = Policy(version=1)
    said = Verdict(
        schema=1,
        outcome="PASS",
        reasons=(),
        digests={"evaluation": NONE},
        policy_digest=policy.digest(),
        model_name="model",
        model_version="1",
        aliases=(),
        mlflow={},
    )
    statement = summarise_verdict(
        said,
        verdict_file=NONE,
        policy=policy,
        model=Reference(kind="model", uri=f"file://{artifact}", digest=digest),
        shipped=shipped,
        now=datetime.now(UTC),
        signing_key=signed[1].decode(),
    )
    verdict.mkdir()
    (verdict / "model.sig").write_bytes(signed[0])
    (verdict / "statement.json").write_text(json.dumps(sign_statement(statement)))


def measure(gigabytes: float, folder: Path) -> dict[str, Any]:
    """Seconds per gigabyte, by the clock and of CPU time."""
    os.environ["SECVEC_SIGNING_KEY"] = str(ensure_signing_key(folder / "signing"))
    os.environ.pop("SECVEC_TRUSTED_KEYS", None)
    artifact, verdict = folder / "artifact", folder / "verdict"
    model = write_model(artifact / "model", int(gigabytes * 1e9))
    found = {
        "hashing alone": timed(lambda: digest_file(model / "model.safetensors"), gigabytes),
        "signing": timed(lambda: sign(artifact, verdict), gigabytes),
        "verifying": timed(lambda: verify_model(model, verdict=verdict), gigabytes),
    }
    both = found["signing"]["cpu"] + found["verifying"]["cpu"]
    return {
        "gigabytes": gigabytes,
        "seconds_per_gigabyte": found,
        "signing_and_verifying_cpu": round(both, 3),
        "passed": both <= WANTED_SECONDS,
    }


def timed(work: Callable[[], object], gigabytes: float) -> dict[str, float]:
    """Run something once."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "clock": round((time.perf_counter() - started) / gigabytes, 3),
        "cpu": round((time.process_time() - cpu) / gigabytes, 3),
    }


def main() -> int:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("folder", nargs="?")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        result = measure(chosen.gigabytes, Path(scratch))
    print(json.dumps(result, indent=2))
    return int(not result["passed"])


if __name__ == "__main__":
    sys.exit(main())
