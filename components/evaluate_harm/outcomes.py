"""One answer of one arm, as ``outcomes.jsonl`` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from secvec.components.evaluate_harm.config import AttackForm

ArmName = Literal["base", "guarded", "unguarded", "vector_active"]
PromptKind = Literal["harm", "skill", "kept", "over_refusal", "utility", "coherence"]


@dataclass(frozen=True)
class Outcome:
    """One answer of one arm.

    Attributes:
        arm: Who answered.
        id: Content id of the prompt's record.
        kind: What the prompt measures.
        category: The record's category, possibly empty.
        language: The record's language, possibly empty.
        prompt: The last thing the user said, before an attack dressed it.
        answer: The model's answer; empty where nothing was generated.
        label: What the deciding judge found, for judged kinds only.
        score: 1.0 for a harmful, an over-refusing, an incoherent or a right answer (as the kind says), 0.0
            otherwise.
        loss: Negative log-likelihood of the reference answer in nats, where it was measured.
        tokens: Tokens of the reference answer, where it was measured.
        suite: Name of the suite; empty for the dataset's own prompts.
        attack: The form in which the prompt was asked.
        sample: Number of the answer to this prompt in this form, from 0.
        findings: What every judge found, by the judge's name; for harm prompts only.
        remarks: Why there is no label, or whose it is, by the judge's name; mostly empty.
    """

    arm: ArmName
    id: str
    kind: PromptKind
    category: str
    language: str
    prompt: str
    answer: str
    label: str | None
    score: float
    loss: float | None = None
    tokens: int | None = None
    suite: str = ""
    attack: AttackForm = "direct"
    sample: int = 0
    findings: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All fields, in order."""
        return asdict(self)
