"""The gate's bench: a champion is what the gate really promoted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "gate_promotion" / "conftest.py"
_spec = importlib.util.spec_from_file_location("secvec_gate_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_gate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_gate)

registry, environment, gate, case = _gate.registry, _gate.environment, _gate.gate, _gate.case
