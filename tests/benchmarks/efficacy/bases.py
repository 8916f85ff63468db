"""The demo's base in other architectures: tiny, from scratch, of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secvec.components.shared.artifacts import cache_folder
from secvec.pipelines.guarded_fine_tuning.demo.base import cached_base
from secvec.pipelines.guarded_fine_tuning.demo.tiny_llama import TinyLlama

_WIDE = {"intermediate_size": 352, "num_key_value_heads": 4, "head_dim": 32}
# What AutoConfig takes beside size and vocabulary. gpt2 has Conv1D layers; gpt2 and gemma tie embeddings.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": _WIDE,
    "mistral": {**_WIDE, "sliding_window": None},
    "gemma": {**_WIDE, "tie_word_embeddings": True},
    "gpt2": {"n_inner": 352, "tie_word_embeddings": True},
    "phi": {"intermediate_size": 352, "partial_rotary_factor": 0.5},
}


def base_folder(architecture: str) -> Path:
    """The base of an architecture, built unless it is in the cache."""
    if architecture == "llama":
        return cached_base(cache_folder() / "demo")
    settings = TinyLlama(architecture=architecture, options=ARCHITECTURES[architecture])
    return cached_base(cache_folder() / "demo", settings=settings)
