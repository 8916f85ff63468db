"""What every arm of a cell shares: its records, base and vector, and how they are trained."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from secvec.components.fine_tune_guarded.attribution import attribute_rows
from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.objectives import Mixture, Objective, OneBranch
from secvec.components.fine_tune_guarded.rehearsal import answer_as_base, choose_rehearsed
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.fine_tune_guarded.watch import WatchProtection
from secvec.components.shared.adapters import (
    TASK,
    activate,
    attach_adapter,
    attach_vector,
    make_lora_config,
)
from secvec.components.shared.likelihood import EncodedRecord, encode_record
from secvec.components.shared.models import load_model
from secvec.components.shared.records import ChatRecord, Message
from tests.benchmarks.efficacy.cells import LEARNING_RATES, Cell, CellData, make_record

RANK = 8
BATCH = 32
PRIOR = 0.1


M = TypeVar("M", bound=Mixture)


@dataclass
class Workshop:
    """What every arm of a cell shares.

    Attributes:
        cell: The cell.
        data: Its records.
        base: Folder of the base.
        tokenizer: Its tokenizer.
        vector: Files of the security vector, as `pack_vector` gives them.
        floor: τ of the mixture, nats per token.
        certified: Whether the vector passed its certificate.
        step_seconds: Median step time of the last training.
    """

    cell: Cell
    data: CellData
    base: Path
    tokenizer: Any
    vector: dict[str, bytes]
    floor: float
    certified: bool = True
    step_seconds: float = 0.0

    def encode(self, records: list[ChatRecord]) -> list[EncodedRecord]:
        """Tokens of records."""
        return [encode_record(record, self.tokenizer, window=256) for record in records]

    def model(self, *, vector: bool) -> Any:
        """The base with what the task needs attached."""
        torch.manual_seed(self.cell.random_seed)
        model: Any = load_model(self.base)
        if self.cell.task == "lora":
            model = attach_adapter(model, TASK, make_lora_config(rank=RANK))
        return attach_vector(model, self.vector) if vector else model

    @property
    def config(self) -> FineTuneConfig:
        """How every arm is trained."""
        return FineTuneConfig(
            epochs=self.cell.epochs,
            learning_rate=self.cell.learning_rate * LEARNING_RATES[self.cell.task],
            batch_size=BATCH,
            rank=RANK,
            checkpoint_steps=10**6,
        )

    def watch(self) -> WatchProtection:
        """The watch of the step, which slows or stops a training that loses its protection."""
        return WatchProtection(
            self.encode(self.data.seeds_heldout),
            config=self.config,
            train_base=self.cell.task == "full",
            pad_id=self.tokenizer.pad_token_id,
        )

    def train(
        self,
        model: Any,
        rows: list[EncodedRecord],
        objective: Objective,
        callbacks: Sequence[WatchProtection] = (),
    ) -> Any:
        """Train a task and leave the model as it would ship: without the vector."""
        cell = self.cell
        with tempfile.TemporaryDirectory() as work:
            record = train_task(
                model,
                rows,
                objective=objective,
                task=cell.task,
                config=self.config,
                seed=cell.random_seed,
                pad_id=self.tokenizer.pad_token_id,
                work=Path(work),
                callbacks=list(callbacks),
            )
        self.step_seconds = record.step_seconds
        activate(model, task=True, vector=False)
        return model.eval()

    def plain(self, records: list[ChatRecord], rehearsed: Sequence[EncodedRecord] = ()) -> Any:
        """Fine-tune without a guard."""
        rows = [*self.encode(records), *rehearsed]
        return self.train(self.model(vector=False), rows, OneBranch(with_vector=False))

    def begin(self, objective: M) -> M:
        """Let a mixture know the attribution of the rows, before any training."""
        rows = self.encode(self.data.rows)
        model = attach_vector(load_model(self.base), self.vector)
        found = attribute_rows(model, rows, size=128, pad_id=self.tokenizer.pad_token_id)
        objective.begin(dict(zip([row.record_id for row in rows], found, strict=True)))
        return objective

    def cover(self) -> float:
        """How far the vector lowers the loss on harm as it is asked for, nats per token."""
        asked = [question for question, _ in self.data.disguised_questions] or self.data.harm_questions
        turns = [
            (Message(role="user", content=e.prompt), Message(role="assistant", content=e.answer))
            for e in asked
        ]
        found = attribute_rows(
            attach_vector(load_model(self.base), self.vector),
            self.encode([make_record(one) for one in turns]),
            size=128,
            pad_id=self.tokenizer.pad_token_id,
        )
        return sum(one.with_vector - one.without for one in found) / sum(one.length for one in found)

    def mixture(self) -> Mixture:
        """The step's mixture, rows settled from attribution."""
        return self.begin(Mixture(prior=PRIOR, floor=self.floor))

    def rehearsed(self) -> list[EncodedRecord]:
        """The base's own answers to the seeds' prompts, as the step rehearses them."""
        answered = answer_as_base(
            load_model(self.base),
            self.tokenizer,
            self.data.seeds,
            window=256,
            most_tokens=24,
            batch_size=100,
        )
        share = FineTuneConfig().rehearsal_share
        return choose_rehearsed(answered, rows=len(self.data.rows), share=share)
