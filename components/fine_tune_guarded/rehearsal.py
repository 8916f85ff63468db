"""The base's own answers to the seeds' prompts, to be rehearsed among the rows.

Fine-tuning makes a model forget its refusals even where no row is harmful (Qi et al., arXiv 2310.03693);
no guard that only looks at harmful rows can prevent that. What a model goes on repeating it keeps
(rehearsal; Robins 1995, Connection Science 7(2)), and the seeds say which prompts matter. The answers are
the base's own, whatever they are, so that nothing is taught that it did not do already.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch

from secvec.components.shared.likelihood import IGNORED, EncodedRecord, encode_prompt
from secvec.components.shared.progress import Progress
from secvec.components.shared.records import ChatRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def answer_as_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[ChatRecord],
    *,
    window: int,
    most_tokens: int,
    batch_size: int,
) -> list[EncodedRecord]:
    """The prompts of records with the answers that the base gives, greedily decoded.

    Args:
        model: The pristine base.
        tokenizer: Its tokenizer, with a pad token.
        records: Whose prompts are asked; one that fills the window is left out.
        window: Longest sequence in tokens.
        most_tokens: Longest answer in tokens; of a longer one the beginning is rehearsed.
        batch_size: Prompts per forward pass.

    Returns:
        Token ids of prompt and answer, labels on the answer alone.
    """
    model.eval()
    prompts = [(record.id, encode_prompt(record, tokenizer)) for record in records]
    prompts = [(name, ids) for name, ids in prompts if len(ids) < window]
    progress = Progress("answer as the base", len(prompts))
    found = []
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        answers = _generate(model, tokenizer, [ids for _, ids in chosen], most_tokens=most_tokens)
        for (name, prompt), answer in zip(chosen, answers, strict=True):
            ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
            found.append(EncodedRecord(f"rehearsed {name}", ids[:window], labels[:window]))
        progress.move_to(start + len(chosen))
    return found


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], *, most_tokens: int
) -> list[list[int]]:
    """Token ids of each answer, the end token included where one was written."""
    from transformers import GenerationConfig

    longest, pad = max(map(len, prompts)), int(tokenizer.pad_token_id)
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {int(ends)}
    written = model.generate(
        input_ids=torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device
        ),
        generation_config=GenerationConfig(
            max_new_tokens=most_tokens, do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends)
        ),
    )
    return [_cut_behind_end(ids, ends) for ids in written[:, longest:].tolist()]


def _cut_behind_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]


def choose_rehearsed(answered: Sequence[EncodedRecord], *, rows: int, share: float) -> list[EncodedRecord]:
    """Each answered prompt at least once, and again until they make up a share of the rows.

    Args:
        answered: What `answer_as_base` gave.
        rows: Training rows beside them.
        share: Rehearsed rows per training row; 0 for none.
    """
    count = max(len(answered), round(share * rows)) if share else 0
    return list(islice(cycle(answered), count))
