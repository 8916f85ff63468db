"""What `ingest_data` reads and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.settings import Settings

SourceName = Literal[
    "training_data", "harmful_seeds", "benign_anchors", "harm_prompts", "skill_prompts", "kept_prompts"
]
Column = Literal["messages", "prompt", "context", "completion", "category", "language", "label"]

Encoding = Literal["utf-8", "utf-16", "cp932", "euc_jp", "iso2022_jp", "cp1252", "latin-1"]

EVALUATION: tuple[SourceName, ...] = ("harm_prompts", "skill_prompts", "kept_prompts")
SOURCE_NAMES: tuple[SourceName, ...] = get_args(SourceName)
COLUMNS: tuple[Column, ...] = get_args(Column)


class Sources(Settings):
    """Where each set of rows lies: a path, or a ``file://``, ``s3://`` or ``https://`` URI."""

    training_data: tuple[str, ...] = Field(
        description="one or more URIs of the rows to fine-tune on, vetted or not"
    )
    harmful_seeds: str = Field(description="URI of about 100 harmful rows that the security vector learns")
    benign_anchors: str = Field(description="URI of benign rows on which the vector must change nothing")
    harm_prompts: str = Field(description="URI of held-out harmful prompts; answers are optional")
    skill_prompts: str = Field(description="URI of held-out prompts of the new skill, with reference answers")
    kept_prompts: str = Field(
        default="",
        description="URI of prompts whose answers must be kept, with reference answers; empty for none",
    )

    def uris(self, name: SourceName) -> tuple[str, ...]:
        """Return the URIs of one source; only ``kept_prompts`` may have none.

        Raises:
            SecvecError: A URI is missing.
        """
        found = getattr(self, name)
        uris = (found,) if isinstance(found, str) else found
        if name == "kept_prompts" and uris == ("",):
            return ()
        if not uris or "" in uris:
            raise SecvecError("no URI is given", where=name, accepted=self._describe(name))
        return uris


class Limits(Settings):
    """What one file may ask of the machine that reads it; a file or row beyond is refused, never read."""

    max_row_bytes: int = Field(
        default=16 << 20, ge=1024, le=256 << 20, description="longest row, in bytes, from 1024 to 268435456"
    )
    max_json_depth: int = Field(
        default=64, ge=4, le=512, description="deepest nesting of lists and objects in a row, from 4 to 512"
    )
    max_columns: int = Field(
        default=1000, ge=1, le=100_000, description="most columns of a file, from 1 to 100000"
    )
    # Chat logs as JSONL pack to a tenth or a twentieth; gzip ends at about 1,000, zstd and Parquet do not.
    max_ratio: float = Field(
        default=200, ge=10, description="largest ratio of unpacked to packed bytes, at least 10"
    )
    max_unpacked_bytes: int = Field(
        default=256 << 30, ge=1 << 20, description="largest file once unpacked, in bytes, at least 1048576"
    )
    max_files: int = Field(default=10_000, ge=1, description="most files of a folder or pattern, at least 1")
    max_compared_rows: int = Field(
        default=1_000_000,
        ge=1,
        description="most rows of seeds, anchors and prompts: each training row is compared with all of them",
    )


class IngestConfig(Settings):
    """How rows are read, split and refused."""

    columns: dict[SourceName, dict[Column, Annotated[str, Field(min_length=1)]]] = Field(
        default_factory=dict,
        description=(
            "per source (" + ", ".join(SOURCE_NAMES) + ") a mapping from field (" + ", ".join(COLUMNS) + ") "
            "to column name; what is not mapped is detected"
        ),
    )
    # Lets a stray bad line of a small set pass; a cut file, a wrong mapping or encoding spoils far more.
    max_bad_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="largest share of a source's rows that may be quarantined, from 0 to below 1",
    )
    seeds_heldout_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the seeds held out for the certificate, between 0 and 1",
    )
    anchors_heldout_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the anchors held out for the certificate, between 0 and 1",
    )

    training_heldout_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of training rows set apart in training_heldout.jsonl, from 0 (none) to below 1",
    )
    encodings: dict[SourceName, Encoding] = Field(
        default_factory=dict,
        description=f"per source its text encoding: {', '.join(get_args(Encoding))}; UTF-8 if not named",
    )
    normalise: Literal["none", "NFC", "NFKC"] = Field(
        default="none",
        description="Unicode normal form that all text is brought to: none (as it is), NFC or NFKC",
    )
    tool_turns: Literal["text", "quarantine"] = Field(
        default="text",
        description="calls of tools and what they gave: text (written into the turns) or quarantine",
    )
    # Rows repeated on purpose weigh more in training, so that dropping them is for the user to ask for.
    duplicates: Literal["keep", "drop"] = Field(
        default="keep",
        description="training rows with the same messages as an earlier one: keep, or drop into a list",
    )
    near_duplicates: Literal["off", "count", "drop"] = Field(
        default="count",
        description="training rows nearly like an earlier one (MinHash): off, count, or drop into a list",
    )
    near_threshold: float = Field(
        default=0.85,
        ge=0.5,
        le=1,
        description="least estimated share of common runs of three tokens of near duplicates, from 0.5 to 1",
    )
    ngram_tokens: int = Field(
        default=13,
        ge=0,
        le=64,
        description="length in tokens of the runs by which sources are compared, 0 for none, at most 64",
    )
    tokenizer: str = Field(
        default="", description="URI of the folder of the model's tokenizer.json, to count tokens; or nothing"
    )
    max_tokens: int = Field(
        default=0, ge=0, description="rows of more tokens are over-long; 0 for no bound; needs tokenizer"
    )
    over_long: Literal["count", "quarantine"] = Field(
        default="count", description="what becomes of over-long rows: count (and use) or quarantine"
    )
    limits: Limits = Field(default_factory=Limits, description="what one file may ask of the machine")
    workers: int = Field(
        default=0, ge=0, le=256, description="processes that read at once; 0 for one per processor"
    )

    def content(self) -> dict[str, Any]:
        """Give the settings that the dataset depends on: all but the number of workers."""
        return self.model_dump(mode="json", exclude={"workers"})

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.max_tokens and not self.tokenizer:
            raise ValueError("max_tokens is given without tokenizer")
        return self

    @field_validator("columns")
    @classmethod
    def _check_columns(
        cls, columns: dict[SourceName, dict[Column, str]]
    ) -> dict[SourceName, dict[Column, str]]:
        for source, mapping in columns.items():
            parts = mapping.keys() & {"prompt", "context", "completion"}
            if "messages" in mapping and parts:
                raise ValueError(f"{source} maps messages and also {', '.join(sorted(parts))}")
            if parts and "prompt" not in parts:
                raise ValueError(f"{source} maps {', '.join(sorted(parts))} without prompt")
            if parts and "completion" not in parts and source != "harm_prompts":
                raise ValueError(f"{source} maps prompt without completion")
        return columns
