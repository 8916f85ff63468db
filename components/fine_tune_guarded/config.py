"""Configuration of guarded fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from secvec.components.shared.settings import Settings

Guard = Literal["mixture", "always", "none"]
Task = Literal["lora", "full"]


class FineTuneConfig(Settings):
    """How the task is learned; the guard and the kind of task are parameters of the pipeline."""

    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the rows, above 0")
    learning_rate: float | None = Field(
        None, gt=0, lt=1, description="peak learning rate; 2e-4 for lora and 1e-5 for full when not given"
    )
    batch_size: int = Field(8, ge=1, description="rows per device and forward pass, 1 or more")
    accumulation: int = Field(1, ge=1, description="forward passes per optimizer step, 1 or more")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of steps with rising rate, 0 to 1")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="AdamW weight decay, 0 to 1")
    rank: int = Field(16, ge=1, le=256, description="LoRA rank of the task adapter, 1 to 256")
    prior: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="mixture: prior probability π that a row is what the vector explains, between 0 and 1",
    )
    rehearsal_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="mixture: the base's own answers to the seeds' prompts, per training row, 0 (none) to 1; "
        "each prompt is rehearsed at least once a pass",
    )
    rehearsal_tokens: int = Field(
        64, ge=1, description="mixture: longest rehearsed answer in tokens, 1 or more"
    )
    max_length: int | None = Field(
        None, ge=2, description="longest sequence in tokens, 2 or more; the model's window when not given"
    )
    over_long: Literal["refuse", "truncate"] = Field(
        "refuse", description="rows over the window: refuse (the run stops) or truncate (counted)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto (as the base is stored), float32 or bfloat16"
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="processes that train together in a pod, 1 to 64; when not given one per GPU, 1 without",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="1: in the step's own pod; more: on that many pods like it, by Kubeflow Trainer",
    )
    gradient_checkpointing: bool = Field(False, description="true or false: less memory, slower steps")
    checkpoint_steps: int = Field(200, ge=1, description="optimizer steps between checkpoints, 1 or more")
    # A look costs about one training step.
    watch_steps: int = Field(
        50, ge=0, description="optimizer steps between looks at held-out seeds under a guard; 0 for none"
    )
    # On the demo's language: at most 0.28 in a run after which no held-out harmful prompt was answered, 0.90
    # in one after which 88% were.
    slow_decay: float = Field(
        0.4,
        gt=0,
        description="share of the protection on held-out seeds that may be lost before the learning rate is "
        "halved, above 0; halved again while the loss grows",
    )
    stop_decay: float = Field(
        0.8, gt=0, description="share of it that may be lost before training stops, above 0"
    )
