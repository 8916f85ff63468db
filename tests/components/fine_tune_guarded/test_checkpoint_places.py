"""Checkpoints on a volume and in S3: a training goes on in a place that has seen none of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded.checkpoint_places import local_place, remote_place
from secvec.components.shared import s3
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_tensors


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


class Interruption(Exception):
    """The machine is gone."""


class InterruptAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


def train(toy: Any, work: Path, *, seed: int = 0, until: int = 0) -> str:
    model = toy.model(seed=seed)
    toy.train(model, "mixture", "lora", work, callbacks=[InterruptAt(until)])
    return digest_tensors({name: p for name, p in model.named_parameters() if p.requires_grad})


def started_after(environment: dict[str, str]) -> int:
    lines = map(json.loads, Path(environment["SECVEC_EVENTS"]).read_text().splitlines())
    return [line["after_step"] for line in lines if line["event"] == "training_started"][-1]


def flip(uri: str) -> None:
    content = bytearray(s3.read_object(uri))
    content[-5] ^= 1
    s3.write_object(uri, bytes(content), create_only=False)


def remove(uri: str) -> None:
    bucket, key = s3.split_uri(uri)
    boto3.client("s3").delete_object(Bucket=bucket, Key=key)


DAMAGE = {
    "nothing": (lambda folder: None, 6),
    "a flipped bit": (lambda folder: flip(f"{folder}/trainable.safetensors"), 3),
    "no optimizer": (lambda folder: remove(f"{folder}/optimizer.pt"), 3),
    "no manifest": (lambda folder: remove(f"{folder}/manifest.json"), 3),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_rule_5_a_training_goes_on_from_the_newest_in_s3_that_verifies(
    toy: Any,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    environment: dict[str, str],
    case: str,
) -> None:
    monkeypatch.setattr("secvec.components.shared.artifacts.pause", lambda tries: None)
    whole = train(toy, tmp_path / "whole" / "key")
    monkeypatch.setenv("SECVEC_CHECKPOINTS", f"{s3_bucket}/checkpoints")
    with pytest.raises(Interruption):
        train(toy, tmp_path / "here" / "key", until=7)
    folders = {uri.rpartition("/")[0] for uri in s3.list_objects(f"{s3_bucket}/checkpoints/key")}
    assert sorted(folder.split("/")[-1][:13] for folder in folders) == ["checkpoint-3-", "checkpoint-6-"]
    damage, kept = DAMAGE[case]
    damage(next(folder for folder in folders if "checkpoint-6-" in folder))
    shutil.rmtree(tmp_path / "here")
    assert train(toy, tmp_path / "elsewhere" / "key", seed=9) == whole
    assert started_after(environment) == kept


def test_a_server_that_is_away_does_not_stop_a_training_that_has_begun(
    toy: Any, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("SECVEC_CHECKPOINTS", f"{s3_bucket}/checkpoints")

    def refuse(*_: Any, **__: Any) -> None:
        raise SecvecError("the S3 endpoint cannot be reached", where="s3://bucket")

    monkeypatch.setattr(s3, "upload_object", refuse)
    train(toy, tmp_path / "key")
    assert "checkpoint_not_kept" in Path(environment["SECVEC_EVENTS"]).read_text()


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    assert local_place("key") == Path(environment["SECVEC_CACHE"]) / "training" / "key"
    assert remote_place("key") == ""
    monkeypatch.setenv("SECVEC_CHECKPOINTS", str(tmp_path / "volume"))
    assert local_place("key") == tmp_path / "volume" / "key"
    assert remote_place("key") == ""
    monkeypatch.setenv("SECVEC_CHECKPOINTS", "s3://bucket/prefix")
    assert local_place("key") == Path(environment["SECVEC_CACHE"]) / "training" / "key"
    assert remote_place("key") == "s3://bucket/prefix/key"
    monkeypatch.setenv("SECVEC_CHECKPOINTS", "https://host/prefix")
    with pytest.raises(SecvecError, match="is no place for checkpoints; accepted: a folder, s3://bucket"):
        remote_place("key")
