"""Configuration of the security vector's training and of its certificate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from secvec.components.shared.settings import Settings


class VectorConfig(Settings):
    """How a security vector is trained and what it must prove.

    The paper (Zhou et al., arXiv 2311.02105, section 4) trains on 100 samples for 10 epochs with a KL term
    on benign text; here training ends by itself once held-out seeds are fit.
    """

    rank: int = Field(16, ge=1, le=256, description="LoRA rank, 1 to 256")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="peak learning rate, above 0 and below 1")
    max_epochs: int = Field(20, ge=1, le=1000, description="most passes over the seeds, 1 to 1000")
    patience: int = Field(
        2,
        ge=1,
        description="passes in a row without a gain on held-out rows (a twentieth of the loss, or a "
        "hundredth of its fall so far), after which training ends, 1 or more",
    )
    batch_size: int = Field(16, ge=1, description="seeds (and as many anchors) per step, 1 or more")
    kl_weight: float = Field(
        1.0, ge=0, description="weight of KL(base || base + vector) on benign anchors, 0 or more"
    )
    max_length: int | None = Field(
        None, ge=2, description="longest sequence in tokens, 2 or more; the model's window when not given"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto (as the base is stored), float32 or bfloat16"
    )
    valid_days: int = Field(
        180, ge=1, le=3650, description="days until the vector is refused and trained anew, 1 to 3650"
    )
    min_explained: float = Field(
        0.9,
        gt=0,
        le=1,
        description="least share of held-out seeds that the vector explains, above 0 to 1: their answers "
        "are more than 99 times likelier with it than without",
    )
    min_coverage_over_random: float = Field(
        5.0,
        ge=1,
        description="least ratio of that fall to the one of a random vector of the same norm, 1 or more",
    )
    max_anchor_kl: float = Field(
        0.1, gt=0, description="most KL(base || base + vector) on held-out anchors, nats per token"
    )
