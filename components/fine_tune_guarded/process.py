"""One of several processes of a training; `launch` starts it with the job as its argument."""

from __future__ import annotations

import json
import sys
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.processes import join_processes
from secvec.components.fine_tune_guarded.step import fine_tune_guarded
from secvec.components.shared.references import Reference


@record
def main() -> None:
    """Train together with the others; the first process publishes the result."""
    job = json.loads(sys.argv[1])
    read: dict[str, Any] = {name: Reference.model_validate(job[name]) for name in ("dataset", "vector")}
    read["config"] = FineTuneConfig.model_validate(job["config"])
    join_processes()
    fine_tune_guarded(**{**job, **read})


if __name__ == "__main__":
    main()
