"""Answers of a model on this machine: batched, resumable, and the same on every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from secvec.components.evaluate_harm.journal import open_journal
from secvec.components.evaluate_harm.questions import Decoding, Question
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import encode_record, model_window, score_answers
from secvec.components.shared.progress import Progress
from secvec.components.shared.records import ChatRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocalModel:
    """A model in this process.

    Attributes:
        model: A causal language model, in evaluation mode, however it was made.
        tokenizer: Its tokenizer, with a chat template.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    def answer(
        self, questions: Sequence[Question], decoding: Decoding, *, task: str, journal: Path | None
    ) -> list[str]:
        """Answer all questions; see `generate_answers`."""
        return generate_answers(
            self.model, self.tokenizer, questions, decoding=decoding, task=task, journal=journal
        )

    def score(self, records: Sequence[ChatRecord], *, batch_size: int) -> list[tuple[float, int]]:
        """Log-probability in nats and length in tokens of every record's answer."""
        window = model_window(self.model)
        rows = [encode_record(record, self.tokenizer, window=window) for record in records]
        if not rows:
            return []
        pad: Any = self.tokenizer.pad_token_id
        scores, lengths = score_answers(self.model, rows, size=batch_size, pad_id=int(pad))
        return list(zip(scores, lengths, strict=True))


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    decoding: Decoding,
    task: str = "",
    journal: Path | None = None,
) -> list[str]:
    """Answer every question.

    Questions are batched by length (longest first, so that a batch too large for the memory fails at once)
    and padded on the left. The batches follow from the questions alone, and each is seeded by itself: a run
    that goes on from a journal gives the very same answers as one that was never interrupted.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        questions: What to ask.
        decoding: How answers are drawn.
        task: What the progress bar says; none is shown without it.
        journal: File to keep answers in, and to go on from.

    Returns:
        One answer per question, in the questions' order, without its opening and special tokens.

    Raises:
        SecvecError: A question and its answer do not fit into the model's window.
    """
    prompts = [encode_question(question, tokenizer) for question in questions]
    window = model_window(model)
    for question, tokens in zip(questions, prompts, strict=True):
        _check_fits(question, len(tokens), window=window, longest=decoding.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    size = decoding.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    stops = stop_tokens(model, tokenizer)
    with (
        open_journal(journal) as kept,
        own_settings(model, decoding, stops=stops, pad=int(tokenizer.pad_token_id)) as settings,
    ):
        missing = {n: batch for n, batch in enumerate(batches) if not kept.answers.keys() >= set(batch)}
        progress = Progress(task, sum(map(len, missing.values()))) if task and missing else None
        for number, batch in missing.items():
            seed = _seed_of(decoding.seed, number)
            new = generate_batch(model, [prompts[i] for i in batch], settings, seed=seed)
            texts = (tokenizer.decode(cut_at_stop(tokens, stops), skip_special_tokens=True) for tokens in new)
            kept.add({index: str(text).strip() for index, text in zip(batch, texts, strict=True)})
            if progress:
                progress.advance(len(batch))
        return [kept.answers[index] for index in range(len(questions))]


def encode_question(question: Question, tokenizer: Any) -> list[int]:
    """Token ids of a question, up to where the model begins to write."""
    messages = [message.model_dump() for message in question.messages]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text + question.opening, add_special_tokens=False)["input_ids"])


def _check_fits(question: Question, length: int, *, window: int, longest: int) -> None:
    if length + longest > window:
        raise SecvecError(
            f"prompt {question.id} has {length} tokens, too long for the model's window of {window} tokens",
            where=question.where,
            accepted=f"at most {window - longest} tokens, to leave room for {longest} new ones",
        )


@contextmanager
def own_settings(model: Any, decoding: Decoding, *, stops: list[int], pad: int) -> Iterator[GenerationConfig]:
    """Replace the model's own generation settings, which fill in whatever a call leaves unset."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    drawn = decoding.temperature > 0
    inner.generation_config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=drawn,
        num_beams=1,
        eos_token_id=stops,
        pad_token_id=pad,
        # the whole distribution: cutting its tail would hide the rare harmful answer
        **({"temperature": decoding.temperature, "top_k": 0, "top_p": 1.0} if drawn else {}),
    )
    try:
        yield inner.generation_config
    finally:
        inner.generation_config = own


def generate_batch(
    model: Any, prompts: Sequence[list[int]], settings: GenerationConfig, *, seed: int
) -> list[list[int]]:
    """New tokens of each prompt; rows that stopped early are padded at their end."""
    longest = max(map(len, prompts))
    inputs = torch.full((len(prompts), longest), int(settings.pad_token_id), dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, tokens in enumerate(prompts):
        inputs[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=inputs.to(device), attention_mask=mask.to(device), generation_config=settings
        )
    return [list(map(int, row)) for row in output[:, longest:].tolist()]


def _seed_of(seed: int, batch: int) -> int:
    digest = hashlib.sha256(f"{seed} {batch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The end tokens of tokenizer and model: chat models end a turn with another token than a text."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    several = declared if isinstance(declared, list) else [declared]
    return sorted({int(token) for token in [*several, tokenizer.eos_token_id] if token is not None})


def cut_at_stop(tokens: list[int], stops: list[int]) -> list[int]:
    """Tokens up to the first that ends an answer."""
    for position, token in enumerate(tokens):
        if token in stops:
            return tokens[:position]
    return tokens
