"""Export and proof on other architectures than Llama: other names, layers, ties, types and shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from secvec.components.fine_tune_guarded.result import ADAPTER_FILE, WEIGHTS_FILE
from secvec.components.remove_security_vector.export import export_adapter, export_merged
from secvec.components.remove_security_vector.proof import examine
from secvec.components.shared.adapters import TASK, adapter_tensors, attach_adapter, make_lora_config
from secvec.components.shared.models import load_model, weight_files

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
BASES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], torch.dtype, str]] = {
    "llama": (LlamaConfig, SIZE, torch.float32, "5GB"),
    "llama, tied": (LlamaConfig, {**SIZE, "tie_word_embeddings": True}, torch.float32, "5GB"),
    "llama, tied, bf16, sharded": (
        LlamaConfig,
        {**SIZE, "tie_word_embeddings": True},
        torch.bfloat16,
        "10KB",
    ),
    "llama, bf16": (LlamaConfig, SIZE, torch.bfloat16, "5GB"),
    "gpt2 (Conv1D, tied)": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
        torch.float32,
        "5GB",
    ),
    "qwen2 (biases), sharded": (Qwen2Config, SIZE, torch.float32, "10KB"),
    "mistral, bf16": (MistralConfig, SIZE, torch.bfloat16, "5GB"),
    "gemma2 (tied)": (Gemma2Config, {**SIZE, "head_dim": 16}, torch.float32, "5GB"),
    "phi3 (joint projections)": (Phi3Config, SIZE, torch.float32, "5GB"),
}


@pytest.fixture
def make_base(toy: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Save an untrained base of an architecture with the toy's tokenizer."""

    def make(name: str) -> Path:
        config, settings, dtype, shard = BASES[name]
        special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(vocab_size=len(toy.tokenizer), **special, **settings))
        model.to(dtype).save_pretrained(tmp_path / "base", max_shard_size=shard)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(toy.base / file, tmp_path / "base" / file)
        return tmp_path / "base"

    return make


def make_result(base: Path, folder: Path, *, task: str) -> Any:
    """Write a task result as if learned, and give the model in memory that it belongs to."""
    folder.mkdir()
    model: Any = load_model(base)
    torch.manual_seed(1)
    if task == "lora":
        model = attach_adapter(model, TASK, make_lora_config(rank=4))
        learned = {n: torch.randn_like(t) * 0.1 for n, t in adapter_tensors(model, TASK).items()}
        set_peft_model_state_dict(model, learned, adapter_name=TASK)
        save_file(learned, folder / ADAPTER_FILE)
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        # float32 whatever the base is, as a run with dtype: float32 leaves it
        learned = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        save_file(learned, folder / WEIGHTS_FILE)
    return model.eval()


@pytest.mark.parametrize("task", ["lora", "full"])
@pytest.mark.parametrize("name", BASES)
def test_rule_3_every_architecture_ships_as_base_plus_task(
    make_base: Callable[[str], Path], tmp_path: Path, name: str, task: str
) -> None:
    base = make_base(name)
    assert (len(weight_files(base)) > 1) is ("sharded" in name)
    trained = make_result(base, tmp_path / "result", task=task)
    tokens = torch.arange(1, 21).unsqueeze(0)
    for export in ("merged", "adapter") if task == "lora" else ("merged",):
        target = tmp_path / export
        if export == "merged":
            export_merged(base, tmp_path / "result", target, task=task, rank=4)
        else:
            export_adapter(base, tmp_path / "result", target, rank=4)
        proof = examine(
            {
                "base": str(base),
                "task_result": str(tmp_path / "result"),
                "model": str(target),
                "task": task,
                "export": export,
                "rank": 4,
            }
        )
        assert [check for check in proof["checks"] if not check["passed"]] == []
    with torch.no_grad():
        shipped = load_model(tmp_path / "merged")(input_ids=tokens).logits.float()
        pristine = load_model(base)(input_ids=tokens).logits.float()
        expected = trained(input_ids=tokens).logits.float()
    # A merge in bf16 rounds every weight, a merge in float32 hardly.
    close = 0.05 if "bf16" in name and task == "lora" else 1e-4
    assert (shipped - expected).abs().max() < close
    assert (pristine - expected).abs().max() > 3 * close


def strip_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the first GPT-2 checkpoints were saved: without the prefix of the model under the head."""
    buffer = {"h.0.attn.bias": torch.ones(1, 1, 32, 32)}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | buffer


def save_tie_twice(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("task", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "rename"), [("gpt2 (Conv1D, tied)", strip_prefix), ("llama, tied", save_tie_twice)]
)
def test_rule_3_a_base_with_other_names_in_its_file_ships_too(
    make_base: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    task: str,
) -> None:
    base = make_base(name)
    file = base / "model.safetensors"
    save_file(rename(load_file(file)), file, metadata={"format": "pt"})
    make_result(base, tmp_path / "result", task=task)
    export_merged(base, tmp_path / "result", tmp_path / "model", task=task, rank=4)
    proof = examine(
        {
            "base": str(base),
            "task_result": str(tmp_path / "result"),
            "model": str(tmp_path / "model"),
            "task": task,
            "export": "merged",
            "rank": 4,
        }
    )
    assert [check for check in proof["checks"] if not check["passed"]] == []
