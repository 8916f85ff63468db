"""The run config: one YAML file that fills the pipeline's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.settings import Settings
from secvec.components.shared.storage import expand_user

Guard = Literal["mixture", "always", "none"]
Task = Literal["lora", "full"]
_SECRET_KEYS = re.compile(r"(?i)(sig|token|key|secret|passw|credential|auth)[^=&]*=")
SOURCE_FIELDS = ("harmful_seeds", "benign_anchors", "harm_prompts", "skill_prompts", "kept_prompts")


class RunConfig(Settings):
    """What one run of the pipeline takes; paths may be relative to the file they are written in."""

    base_model: str = Field(min_length=1, description="local folder, s3://bucket/prefix, or hub id")
    training_data: list[str] = Field(min_length=1, description="a list of one or more URIs of rows")
    harmful_seeds: str = Field(min_length=1, description="URI of harmful samples")
    benign_anchors: str = Field(min_length=1, description="URI of benign samples")
    harm_prompts: str = Field(min_length=1, description="URI of held-out harmful prompts")
    skill_prompts: str = Field(min_length=1, description="URI of held-out prompts of the new task")
    kept_prompts: str = Field(
        default="", description="URI of prompts whose behaviour must be kept, or nothing"
    )
    guard: Guard = Field(default="mixture", description="mixture, always or none")
    task: Task = Field(default="lora", description="lora or full")
    seed: int = Field(default=0, ge=0, lt=2**31, description="an integer from 0 to 2147483647")
    control_arm: bool = Field(default=True, description="true or false: train an unguarded control as well")
    store: str = Field(default="", description="URI of a folder or bucket prefix; by default <output>/store")
    policy: dict[str, Any] | str = Field(
        description="a mapping of bounds with `version: 1`, or the path of a YAML file that holds one"
    )
    model_name: str = Field(default="secvec-model", min_length=1, description="name in the MLflow registry")
    skip_unchanged: bool | None = Field(
        default=None,
        description="true or false: stop after ingestion if nothing has changed since the champion; "
        "by default, scheduled runs do and others do not",
    )
    ingest_shares: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="pods that read a share of the training rows each, 1 to 1000; for rows too many for one",
    )
    image: str = Field(default="secvec-cpu:0.1.0", min_length=1, description="container image of every step")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="a mapping of step names to mappings of settings"
    )

    def to_parameters(self, *, store: str, code_digest: str) -> dict[str, Any]:
        """Give the pipeline's parameters."""
        sharded = {"shares": list(range(self.ingest_shares))} if self.sharded else {}
        return self.model_dump(exclude={"ingest_shares"}) | {
            "store": store,
            "code_digest": code_digest,
            "skip_unchanged": bool(self.skip_unchanged),
            "training_image": self.image,
            "overrides": self._complete_overrides(),
            **sharded,
        }

    def _complete_overrides(self) -> dict[str, dict[str, Any]]:
        """The settings by step, with those that follow from the guard."""
        if self.guard != "always":
            return self.overrides
        from secvec.components.train_security_vector.config import FOR_ALWAYS

        vector = FOR_ALWAYS | self.overrides.get("train_security_vector", {})
        return self.overrides | {"train_security_vector": vector}

    @property
    def sharded(self) -> bool:
        """Whether training rows are read in shares, which is another pipeline."""
        return self.ingest_shares > 1


def read_run_config(path: Path) -> RunConfig:
    """Read a run config and check all of it, policy and the settings of every step included.

    Raises:
        SecvecError: No such file, no YAML mapping, an unknown key or a value that is not accepted.
    """
    config = RunConfig.read(_read_mapping(path), where=str(path))
    _check_overrides(config.overrides, where=f"{path}: overrides")
    _refuse_secrets(config, where=str(path))
    return config.model_copy(update=_anchor_paths(config, path.resolve().parent, where=str(path)))


def _refuse_secrets(config: RunConfig, *, where: str) -> None:
    """Parameters end in compiled YAML and in KFP's and MLflow's records: none may hold a secret (rule 8)."""
    for name, value in config.model_dump().items():
        for uri in _strings(value):
            try:
                parts = urlsplit(uri)
            except ValueError as error:  # brackets that hold no address
                accepted = "a path or a URI"
                raise SecvecError(f"{name} holds {uri!r}", where=where, accepted=accepted) from error
            if "://" in uri and ("@" in parts.netloc or _SECRET_KEYS.search(parts.query)):
                shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
                raise SecvecError(
                    f"{name} holds credentials: {shown}",
                    where=where,
                    accepted="a URI without user, password or signature, or s3:// with the AWS chain",
                )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], *, where: str) -> None:
    known = _step_settings()
    for step, section in overrides.items():
        if step not in known:
            raise SecvecError(f"unknown step {step!r}", where=where, accepted=", ".join(known))
        known[step].read(section, where=f"{where}.{step}")


def _step_settings() -> dict[str, type[Settings]]:
    from secvec.components.evaluate_harm.config import EvaluationConfig
    from secvec.components.fine_tune_guarded.config import FineTuneConfig
    from secvec.components.ingest_data.config import IngestConfig
    from secvec.components.remove_security_vector.config import RemovalConfig
    from secvec.components.train_security_vector.config import VectorConfig

    return {
        "ingest_data": IngestConfig,
        "train_security_vector": VectorConfig,
        "fine_tune_guarded": FineTuneConfig,
        "remove_security_vector": RemovalConfig,
        "evaluate_harm": EvaluationConfig,
    }


def _read_mapping(path: Path) -> Mapping[str, Any]:
    import yaml

    keys = ", ".join(RunConfig.model_fields)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SecvecError(
            f"cannot be read ({error.strerror})", where=str(path), accepted="a YAML file"
        ) from error
    # Numbers of thousands of digits and deep nesting are no YAMLError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        unreadable = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)[:200]
        problem = getattr(error, "problem", None) or unreadable
        raise SecvecError(f"is no YAML: {problem}", where=where, accepted=f"keys: {keys}") from error
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise SecvecError("is no mapping of keys to values", where=str(path), accepted=f"keys: {keys}")
    return values


def _anchor_paths(config: RunConfig, folder: Path, *, where: str) -> dict[str, Any]:
    from secvec.components.gate_promotion.policy import Policy, load_policy

    def anchor(uri: str) -> str:
        return uri if not uri or "://" in uri else str(folder / expand_user(uri))

    anchored: dict[str, Any] = {name: anchor(getattr(config, name)) for name in SOURCE_FIELDS}
    anchored["training_data"] = [anchor(uri) for uri in config.training_data]
    anchored["store"] = anchor(config.store)
    if isinstance(config.policy, str):
        policy = load_policy(Path(anchor(config.policy)))
    else:
        policy = Policy.read(config.policy, where=f"{where}: policy")
    anchored["policy"] = policy.model_dump(mode="json")
    # A hub id looks like a relative path: only a folder that is there is taken for one.
    if (folder / expand_user(config.base_model)).exists() or config.base_model.startswith((".", "~")):
        anchored["base_model"] = anchor(config.base_model)
    return anchored
