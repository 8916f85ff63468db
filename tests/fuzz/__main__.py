"""``make fuzz``: 50,000 inputs or as many as are asked for, over all targets; status 1 if any goes wrong."""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys

from tests.fuzz.feeding import feed_target
from tests.fuzz.targets import TARGETS

_MOST_BYTES = 1 << 30
_HANG_SECONDS = 900  # of one whole target, on a busy machine: then the place where it hangs is shown


def main() -> int:
    """Feed all targets and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--start", type=int, default=0, help="seed of the first inputs")
    given = parser.parse_args()
    whole = sum(target.share for target in TARGETS)
    fed = refused = bad = 0
    for target in TARGETS:
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        outcome = feed_target(target, -(-given.inputs * target.share // whole), start=given.start)
        fed, refused, bad = fed + outcome.fed, refused + outcome.refused, bad + len(outcome.defects)
        print(
            f"{target.name}: {outcome.fed} fed, {outcome.refused} refused, slowest {outcome.slowest:.2f} s",
            flush=True,
        )
        for defect in outcome.defects[:3]:
            print(defect[-3000:], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{fed} inputs, {refused} refused with a typed error, {bad} defects, peak {peak >> 20} MiB")
    return int(bool(bad) or peak > _MOST_BYTES or fed < given.inputs)


if __name__ == "__main__":
    sys.exit(main())
