"""The harnesses are run as ``python -m tests.faults.<name>`` from the root: tests find them there too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
