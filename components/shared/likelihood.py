"""Chat records as token batches, and the log-likelihood of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import ChatRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class EncodedRecord:
    """One record as tokens.

    Attributes:
        record_id: The record's content id.
        input_ids: Token ids of the whole conversation, length T.
        labels: The same with `IGNORED` at every token that no assistant wrote, length T.
        truncated: Whether the end was cut to fit the window.
        source: Name of the file the row was read from.
        line: Its line or row there, from 1.
    """

    record_id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    source: str = ""
    line: int = 0


def encode_record(
    record: ChatRecord, tokenizer: PreTrainedTokenizerBase, *, window: int, truncate: bool = False
) -> EncodedRecord:
    """Render a conversation with the model's chat template and label what the assistant wrote.

    The text is tokenised once and the labels come from character spans, so that a merge across a turn's
    border cannot shift them. The end-of-turn text after an answer is part of what is learned.

    Args:
        record: A conversation with at least one assistant turn.
        tokenizer: Fast tokenizer with a chat template.
        window: The longest sequence allowed, in tokens.
        truncate: Cut a longer one at its end instead of refusing it.

    Raises:
        SecvecError: No assistant turn, a template that rewrites earlier turns, or a sequence over the window.
    """
    messages = [message.model_dump() for message in record.messages]
    text, spans = _answer_spans(messages, tokenizer, record)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if any(start <= begin < end for start, end in spans) else IGNORED
        for token, (begin, _) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if len(ids) > window and not truncate:
        raise SecvecError(
            f"a row of {len(ids)} tokens is longer than the window",
            where=f"{record.source}:{record.line}",
            accepted=f"at most {window} tokens, or over_long: truncate",
        )
    cut = labels[:window]
    if all(label == IGNORED for label in cut[1:]):
        raise SecvecError(
            "a row has no answer within the window",
            where=f"{record.source}:{record.line}",
            accepted=f"an assistant turn within {window} tokens",
        )
    return EncodedRecord(
        record.id,
        ids[:window],
        cut,
        truncated=len(ids) > window,
        source=record.source,
        line=record.line,
    )


def _answer_spans(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, record: ChatRecord
) -> tuple[str, list[tuple[int, int]]]:
    spans = []
    text = _render(messages, tokenizer, record)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:turn], tokenizer, record, add_generation_prompt=True)
        after = _render(messages[: turn + 1], tokenizer, record)
        if not (text.startswith(after) and after.startswith(before)):
            raise SecvecError(
                "the chat template rewrites earlier turns",
                where=f"{record.source}:{record.line}",
                accepted="a template under which a conversation's beginning stays as it is",
            )
        spans.append((len(before), len(after)))
    if not spans:
        raise SecvecError(
            "a row has no assistant turn", where=f"{record.source}:{record.line}", accepted="an answer"
        )
    return text, spans


def _render(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    record: ChatRecord,
    *,
    add_generation_prompt: bool = False,
) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        # Many templates refuse a system turn, or turns that do not alternate.
        raise SecvecError(
            f"the model's chat template refuses a row ({error})",
            where=f"{record.source}:{record.line}",
            accepted="turns that the base's chat template knows",
        ) from error


def encode_prompt(record: ChatRecord, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a record's prompt, up to where the assistant begins to write.

    Raises:
        SecvecError: The chat template refuses the prompt.
    """
    messages = [message.model_dump() for message in record.prompt]
    text = _render(messages, tokenizer, record, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def model_window(model: PreTrainedModel, wanted: int | None = None) -> int:
    """The longest sequence in tokens: the model's own limit, or a smaller one that was asked for.

    Raises:
        SecvecError: More was asked for than the model can read.
    """
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    if wanted and limit and wanted > limit:
        raise SecvecError(f"max_length {wanted} is over the model's window", accepted=f"at most {limit}")
    return wanted or limit or 2048


def collate(rows: Sequence[EncodedRecord], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows to one batch.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each of shape [rows, longest].
    """
    longest = max(len(row.input_ids) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), longest), pad_id, dtype=torch.long),
        "attention_mask": torch.zeros((len(rows), longest), dtype=torch.long),
        "labels": torch.full((len(rows), longest), IGNORED, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        batch["input_ids"][index, :length] = torch.tensor(row.input_ids)
        batch["attention_mask"][index, :length] = 1
        batch["labels"][index, :length] = torch.tensor(row.labels)
    return batch


def answer_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each row's answer, log p(y|x), in nats.

    Args:
        model: A causal language model.
        batch: Tensors of `collate`, shape [rows, length].

    Returns:
        Sum over answer tokens, float32 whatever the model computes in, shape [rows].
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(dim=1)


def answer_lengths(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Number of answer tokens that are predicted in each row, shape [rows]."""
    return (batch["labels"][:, 1:] != IGNORED).sum(dim=1)


def batches(
    rows: Sequence[EncodedRecord], *, size: int, pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Batches of rows of like length, longest first, with the positions they came from."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = collate([rows[index] for index in chosen], pad_id=pad_id)
        yield chosen, {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def score_answers(
    model: Any, rows: Sequence[EncodedRecord], *, size: int, pad_id: int
) -> tuple[list[float], list[int]]:
    """Log-probability in nats and length in tokens of every row's answer, in the rows' order."""
    scores = [0.0] * len(rows)
    lengths = [0] * len(rows)
    device = next(model.parameters()).device
    for chosen, batch in batches(rows, size=size, pad_id=pad_id, device=device):
        found = answer_log_probs(model, batch).tolist()
        counted = answer_lengths(batch).tolist()
        for index, score, length in zip(chosen, found, counted, strict=True):
            scores[index], lengths[index] = score, length
    return scores, lengths


def explained_from(without: float, length: int, *, loss: float) -> float:
    """The log-probability of an answer from which on a vector may explain it, nats.

    Of what is improbable with and without a vector, the ratio of the two says nothing about harm. So a vector
    explains an answer only if its loss there is below the one that stands between held-out harm with and
    without it, or takes half of the answer's own loss away: how hard harm is differs from row to row.

    Args:
        without: log p_θ(y|x) of the base, nats.
        length: Tokens of the answer.
        loss: τ, nats per token.
    """
    return min(-loss * length, 0.5 * without)


def mean_loss(scores: Iterable[float], lengths: Iterable[int]) -> float:
    """Mean negative log-likelihood per answer token, in nats."""
    return -sum(scores) / max(sum(lengths), 1)
