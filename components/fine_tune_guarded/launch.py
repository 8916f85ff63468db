"""Starts the processes of one training, as ``torchrun`` does, and tells why one of them failed."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

from secvec.components.shared.errors import OutOfMemory, SecvecError, Terminated

MODULE = "secvec.components.fine_tune_guarded.process"


def count_for_pod(wanted: int | None) -> int:
    """How many processes train in this pod: as many as were asked for, or one for each of its GPUs.

    Raises:
        SecvecError: Another number was asked for than there are GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus and wanted not in (None, gpus):
        raise SecvecError(
            f"processes = {wanted} on a machine with {gpus} GPUs",
            where="fine_tune_guarded",
            accepted=f"{gpus}, or nothing",
        )
    return wanted or gpus or 1


def launch_processes(job: Mapping[str, Any], *, count: int) -> None:
    """Run a training in several processes of this machine; when one fails, all are ended.

    Args:
        job: Arguments of `step.fine_tune_guarded`, as JSON.
        count: Processes on this machine.

    Raises:
        SecvecError: A process failed: with its own reason, if it gave one.
        Terminated: This process was asked to end, and so were they.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    options = ["--standalone", f"--nproc-per-node={count}", "-m", MODULE, json.dumps(job)]
    try:
        run(parse_args(options))
    except SignalException as error:
        # Every process was told, and has written its part of the checkpoint before it ended.
        raise Terminated(
            f"was asked to end ({error.sigval.name}) with its {count} processes",
            where="fine_tune_guarded",
            accepted="to run again, which goes on from the newest checkpoint",
        ) from None
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
        line = _explain(failure)
        kind = OutOfMemory if "out of memory with batch_size" in line else SecvecError
        raise kind(line, where=f"process {rank} of {MODULE.split('.')[-2]}") from None


def _order(failure: Any) -> tuple[bool, bool, int]:
    # A process whose partner is gone fails as well, in the same moment: what came from outside or was refused
    # by a rule is the reason.
    said = json.dumps(failure.error_file_data)
    refused = any(kind.__name__ in said for kind in (SecvecError, OutOfMemory, Terminated))
    killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # which the others get from here
    return not killed, not refused, failure.timestamp


def _explain(failure: Any) -> str:
    if failure.exitcode < 0:
        return f"was ended by {failure.signal_name()}"
    data = failure.error_file_data.get("message", "")
    text = data.get("message", "") if isinstance(data, dict) else data
    return (
        str(text).removeprefix("SecvecError: ").removeprefix("OutOfMemory: ")
        or f"ended with exit status {failure.exitcode}"
    )
