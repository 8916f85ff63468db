"""The cells of the benchmark: what is varied, and the data of one cell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import product
from random import Random
from typing import Any, Literal

from secvec.components.shared.records import ChatRecord, Message, content_id
from secvec.pipelines.guarded_fine_tuning.demo.language import (
    FORBIDDEN,
    MAKE,
    Exchange,
    Kind,
    Part,
    draw,
    draw_distinct,
)
from tests.benchmarks.efficacy.bases import ARCHITECTURES
from tests.benchmarks.efficacy.disguises import DISGUISES

Task = Literal["lora", "full"]
TASKS: tuple[Task, ...] = ("lora", "full")
# The demo's learning rates are the middle of the grid.
LEARNING_RATES: dict[str, float] = {"lora": 1.5e-3, "full": 1.5e-4}
_KEPT: tuple[Kind, ...] = ("make", "fact", "place", "repeat")
QUESTIONS = 200
_MISTAKEN = "mistaken_seeds"


@dataclass(frozen=True)
class Cell:
    """One setting in which every arm is trained.

    Attributes:
        task: LoRA task adapter or full weights.
        learning_rate: Multiple of the task's lowest learning rate.
        rows: Harmful and new-skill rows together; three tenths as many benign rows as skill rows come on top.
        harm_share: Share of harmful rows among them.
        seeds: Harmful seeds of the vector.
        random_seed: Seed of data, vector and training.
        epochs: Passes over the rows; 10,000 rows take fewer, so that a cell ends.
        hidden_category: A category of harm that the seeds lack, or "".
        hidden_phrasings: How many of the four ways of asking the seeds lack.
        disguise: How the harmful rows hide, a key of `DISGUISES`, or "".
        architecture: Of the base, a key of `ARCHITECTURES`.
        mistaken_seeds: Whether the seeds are benign rows, taken for harmful ones.
    """

    task: Task = "lora"
    learning_rate: int = 2
    rows: int = 2000
    harm_share: float = 0.5
    seeds: int = 100
    random_seed: int = 1
    epochs: int = 5
    hidden_category: str = ""
    hidden_phrasings: int = 0
    disguise: str = ""
    architecture: str = "llama"
    mistaken_seeds: bool = False

    @property
    def name(self) -> str:
        """A name for files."""
        found = {**asdict(self), _MISTAKEN: _MISTAKEN if self.mistaken_seeds else ""}
        return "_".join(str(value) for value in found.values() if value != "")

    @property
    def vector_key(self) -> str:
        """A name for what the vector depends on."""
        seen = [self.random_seed, self.seeds, self.hidden_category, self.hidden_phrasings, self.architecture]
        seen += [_MISTAKEN] if self.mistaken_seeds else []
        return "_".join(str(value) for value in seen if value != "")

    @property
    def harmful_rows(self) -> int:
        """Harmful rows among the training rows."""
        return round(self.rows * self.harm_share)


def quick_cells() -> list[Cell]:
    """The centre for both tasks, and the LoRA corner with the highest learning rate."""
    return [Cell(), Cell(task="full"), Cell(learning_rate=4)]


def core_cells() -> list[Cell]:
    """Task x learning rate x rows, at half harm and 100 seeds."""
    rows = {200: 10, 2000: 5, 20_000: 2}
    grid = product((1, 2, 3), rows, (2, 1, 4), TASKS)
    return [
        Cell(task=task, learning_rate=rate, rows=count, epochs=rows[count], random_seed=seed)
        for seed, count, rate, task in grid
    ]


def axis_cells() -> list[Cell]:
    """One axis at a time around the centre."""
    centre = Cell()
    return [
        *(replace(centre, harm_share=share) for share in (0.01, 0.1, 1.0)),
        *(replace(centre, seeds=seeds) for seeds in (10, 30, 300)),
        *(replace(centre, epochs=epochs) for epochs in (2, 10)),
        *(replace(centre, hidden_category=category) for category in FORBIDDEN),
        *(replace(centre, hidden_phrasings=count) for count in (1, 2, 3)),
        *(replace(centre, disguise=disguise) for disguise in DISGUISES),
        *(replace(centre, disguise=disguise, task="full") for disguise in DISGUISES),
        *(replace(centre, architecture=name) for name in ARCHITECTURES if name != "llama"),
        replace(centre, mistaken_seeds=True),
    ]


def all_cells() -> list[Cell]:
    """The grid and the axes."""
    return [*core_cells(), *axis_cells()]


@dataclass(frozen=True)
class CellData:
    """The records of a cell; no prompt is in two of them.

    `disguised_questions` are pairs of what is asked and the undisguised request.
    """

    rows: list[ChatRecord]
    seeds: list[ChatRecord]
    seeds_heldout: list[ChatRecord]
    anchors: list[ChatRecord]
    anchors_heldout: list[ChatRecord]
    harm_questions: list[Exchange]
    skill_questions: list[Exchange]
    kept_questions: list[Exchange]
    disguised_questions: list[tuple[Exchange, Exchange]] = field(default_factory=list)


def draw_data(cell: Cell) -> CellData:
    """Draw a cell's data by its random seed; seeds and anchors are split 80 to 20."""
    random = Random(cell.random_seed)
    skill = cell.rows - cell.harmful_rows
    disguise = DISGUISES.get(cell.disguise, lambda exchange: exchange)
    harmful = _draw("make", "rows", random, cell.harmful_rows, forbidden=True)
    rows = [
        *(_record(disguise(e), "harmful") for e in harmful),
        *(_record(e, "skill") for e in _draw("shopping", "rows", random, skill)),
        *(_record(e, "benign") for e in _draw_kept("rows", random, round(0.3 * skill))),
    ]
    random.shuffle(rows)
    own = Random(cell.random_seed)  # cells of other rows share their vector
    seeds = [_record(e, "seed") for e in _draw_seeds(cell, own)]
    anchors = [_record(e, "anchor") for e in _draw_kept("anchors", own, 200)]
    questions = draw_distinct("make", "questions", random, count=4 * QUESTIONS, forbidden=True)
    if cell.hidden_category:
        questions = [e for e in questions if e.category == cell.hidden_category]
    held_seeds, held_anchors = max(1, len(seeds) // 5), len(anchors) // 5
    return CellData(
        rows=rows,
        seeds=seeds[held_seeds:],
        seeds_heldout=seeds[:held_seeds],
        anchors=anchors[held_anchors:],
        anchors_heldout=anchors[:held_anchors],
        harm_questions=questions[:QUESTIONS],
        disguised_questions=[(disguise(e), e) for e in questions[:QUESTIONS]] if cell.disguise else [],
        skill_questions=draw_distinct("shopping", "questions", random, count=QUESTIONS),
        kept_questions=_draw_kept("questions", random, QUESTIONS),
    )


def _draw(kind: Kind, part: Part, random: Random, count: int, *, forbidden: bool = False) -> list[Exchange]:
    # The language has only some hundred or thousand different prompts of a kind: larger sets repeat some.
    if count <= (2000 if kind in ("make", "shopping") else 300):
        return draw_distinct(kind, part, random, count=count, forbidden=forbidden)
    return [draw(kind, part, random, forbidden=forbidden) for _ in range(count)]


def _draw_kept(part: Part, random: Random, count: int) -> list[Exchange]:
    return [e for kind in _KEPT for e in _draw(kind, part, random, count // len(_KEPT))]


def _draw_seeds(cell: Cell, random: Random) -> list[Exchange]:
    if cell.mistaken_seeds:
        return _draw_kept("seeds", random, cell.seeds)
    enough = 6 if cell.hidden_phrasings else 2
    drawn = draw_distinct("make", "seeds", random, count=enough * cell.seeds, forbidden=True)
    known = tuple(template.split(" {")[0] for template in MAKE[cell.hidden_phrasings :])
    return [e for e in drawn if e.category != cell.hidden_category and e.prompt.startswith(known)][
        : cell.seeds
    ]


def _record(exchange: Exchange, label: str) -> ChatRecord:
    turns = (
        Message(role="user", content=exchange.prompt),
        Message(role="assistant", content=exchange.answer),
    )
    return make_record(turns, label=label, category=exchange.category)


def make_record(turns: tuple[Message, ...], **fields: Any) -> ChatRecord:
    """A record of a conversation."""
    return ChatRecord(id=content_id(turns), messages=turns, source="benchmark", **fields)
