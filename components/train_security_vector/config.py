"""Configuration of the security vector's training and of its certificate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from secvec.components.shared.settings import Settings

# What a vector needs for `always`, which learns all rows behind it. What it leaves of a harmful row's loss is
# learned, so it is fit to the end; and what it changes in a new skill is lost with it, which is less at a low
# rate and a heavy λ. That takes room: at rank 16 one came to rest with 28% of the loss left, at 32 with 10%
# at most (measured: docs/results/vectors.md).
FOR_ALWAYS: dict[str, float] = {
    "rank": 32,
    "learning_rate": 1e-3,
    "kl_weight": 16.0,
    "fit_share": 0.0,
    "patience": 4,
}


class VectorConfig(Settings):
    """How a security vector is trained and what it must prove.

    The paper (Zhou et al., arXiv 2311.02105, section 4) trains on 100 samples for 10 epochs with a KL term
    on benign text; here training ends by itself once held-out seeds are fit.
    """

    rank: int = Field(16, ge=1, le=256, description="LoRA rank, 1 to 256")
    learning_rate: float = Field(
        3e-3,
        gt=0,
        lt=1,
        description="learning rate at the start of each pass, from which it falls to 0; above 0 and below 1",
    )
    max_epochs: int = Field(20, ge=1, le=1000, description="most passes over the seeds, 1 to 1000")
    patience: int = Field(
        2,
        ge=1,
        description="passes in a row without a gain on held-out rows (a twentieth of the loss, or a "
        "hundredth of its fall so far), after which training ends, 1 or more",
    )
    # `mixture` asks only whether the vector explains a row: a tenth of the loss does not change that.
    fit_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the untrained loss on held-out seeds at which they are fit and training ends, "
        "with half of max_anchor_kl kept; 0 to go on until nothing more is gained, below 1",
    )
    batch_size: int = Field(8, ge=1, description="seeds (and half as many anchors) per step, 1 or more")
    kl_weight: float = Field(
        4.0, ge=0, description="weight of KL(base || base + vector) on benign anchors, 0 or more"
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
    trials: int = Field(
        4,
        ge=1,
        le=16,
        description="most vectors trained until one passes its certificate, each with the settings that the "
        "failure of the one before asks for, 1 to 16",
    )
    over_long: Literal["refuse", "truncate"] = Field(
        "refuse",
        description="seeds and anchors over the window: refuse (the run stops) or truncate (counted)",
    )
    sample_rows: int = Field(
        32, ge=0, description="training rows that the certificate looks at, 0 or more; 0 for none"
    )
    # At equal priors such a row's responsibility is 0.99: the guard keeps it behind the vector.
    min_explained: float = Field(
        0.9,
        gt=0,
        le=1,
        description="least share of held-out seeds that the vector explains, above 0 to 1: their answers "
        "are more than 99 times likelier with it than without",
    )
    # A category that is covered half the time or less is not covered: harm of it would be learned as usual.
    min_explained_group: float = Field(
        0.5,
        ge=0,
        le=1,
        description="least such share in every harm category and language with 3 held-out seeds or more, "
        "0 to 1",
    )
    # Over a long answer a hair per token makes 99 times; what is left of the loss, a harmful row teaches.
    min_fall: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="least share of the loss on held-out seeds that the vector takes away, 0 to 1",
    )
    # A perturbation of the same size by chance is the control that any adapter passes (arXiv 2606.30252).
    min_coverage_over_random: float = Field(
        5.0,
        ge=1,
        description="least ratio of that fall to the one of a random vector of the same norm, 1 or more",
    )
    # A tenth of a nat leaves a token's probability within about a third of what it was on average.
    max_anchor_kl: float = Field(
        0.1, gt=0, description="most KL(base || base + vector) on held-out anchors, nats per token"
    )
    # No anchor is like a new skill: vectors that hold were measured at up to 3 nats there. What is far beyond
    # answers everything in its own way.
    max_row_kl: float = Field(
        6.0,
        gt=0,
        description="most median KL(base || base + vector) on sampled training rows that the vector does not "
        "explain, nats per token",
    )
    # Where a source labels rows harmful, a vector that leaves half of them open protects no one.
    min_protected: float = Field(
        0.5,
        ge=0,
        le=1,
        description="least share that the vector explains of the sampled training rows that their source "
        "labels harmful, where these are 5 or more, 0 to 1",
    )
    # What the vector explains is learned behind it and goes with it: seeds benign by mistake show here.
    max_overreach: float = Field(
        0.1,
        ge=0,
        le=1,
        description="most share that the vector explains of the new skill's prompts, and of sampled training "
        "rows that their source labels anything but harmful, 0 to 1",
    )
