"""Tiny models, Llamas unless told otherwise, trained on the spot and saved as Hugging Face folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from secvec.components.shared.progress import Progress
from secvec.components.shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "additional_special_tokens": ["<user>", "<assistant>"],
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('roles are user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
Conversation = tuple[str, str]


class TinyLlama(Settings):
    """Size of a tiny Llama and how it is trained."""

    hidden_size: int = Field(default=128, description="width of the residual stream, a multiple of 32")
    intermediate_size: int = Field(default=352, description="width of the feed-forward layers, at least 1")
    layers: int = Field(default=2, description="number of layers, at least 1")
    context: int = Field(default=256, description="longest sequence in tokens, at least 1")
    steps: int = Field(default=450, ge=1, description="optimizer steps, at least 1")
    batch_size: int = Field(default=64, ge=1, description="conversations a step, at least 1")
    learning_rate: float = Field(default=5e-3, gt=0, description="peak learning rate, above 0")
    architecture: str = Field(default="llama", description="model type that Transformers knows")
    options: dict[str, Any] = Field(default={}, description="what the architecture's config takes beside")


def train(
    draw_batch: Callable[[int], Sequence[Conversation]],
    *,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    settings: TinyLlama,
    seed: int,
    task: str,
) -> None:
    """Train a model from scratch on conversations and save model and tokenizer.

    Args:
        draw_batch: Gives that many (prompt, answer) pairs, fresh ones at each call.
        tokenizer: Tokenizer with chat template.
        folder: Hugging Face folder to write.
        settings: Size and training.
        seed: Seed of the initial weights.
        task: What the progress bar says.
    """
    with _seeded(seed):
        model = AutoModelForCausalLM.from_config(_configure(settings, tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _anneal(step, settings.steps))
    progress = Progress(task, settings.steps)
    model.train()
    for _ in range(settings.steps):
        batch = encode(draw_batch(settings.batch_size), tokenizer)
        loss = model(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.advance()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encode(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Encode conversations as a right-padded batch whose labels cover the answers only.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each of shape (batch, longest).
    """
    prompts = [render(prompt, None, tokenizer) for prompt, _ in conversations]
    texts = [render(prompt, answer, tokenizer) for prompt, answer in conversations]
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    batch = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    positions = torch.arange(batch["input_ids"].shape[1])
    answered = (positions >= torch.tensor(lengths)[:, None]) & batch["attention_mask"].bool()
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": batch["input_ids"].masked_fill(~answered, -100),
    }


def render(prompt: str, answer: str | None, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of a conversation by the chat template; without an answer, up to where it would begin."""
    messages = [{"role": "user", "content": prompt}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    assert isinstance(text, str)
    return text


def _configure(settings: TinyLlama, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    size = {
        "intermediate_size": settings.intermediate_size,
        "num_key_value_heads": settings.hidden_size // 32,
        "tie_word_embeddings": False,
        **settings.options,
    }
    return AutoConfig.for_model(
        settings.architecture,
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // 32,
        max_position_embeddings=settings.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )


def _anneal(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
