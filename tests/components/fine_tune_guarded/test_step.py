from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from secvec.components.fine_tune_guarded import step
from secvec.components.fine_tune_guarded.step import fine_tune_guarded
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.shared.adapters import VECTOR, adapter_tensors
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_model_folder, load_model, resolve_base
from secvec.components.shared.records import write_records
from secvec.components.shared.references import Reference


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def fine_tune(toy: Any, store: Path, **changes: Any) -> Reference:
    settings = changes.pop("settings", {})
    arguments = {
        "base_model": str(toy.base),
        "dataset": toy.dataset,
        "vector": toy.vector,
        "guard": "mixture",
        "task": "lora",
        "store": str(store),
        "seed": 0,
        "config": toy.config(**settings),
    }
    return fine_tune_guarded(**{**arguments, **changes})


def publish_rows(store: Path, records: list[Any]) -> Reference:
    with building("dataset", str(store)) as folder:
        write_records(folder / "training.jsonl", records)
        write_records(folder / "seeds.jsonl", [])
        return publish(folder, kind="dataset", store=str(store))


def published(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir()) if store.exists() else []


def test_a_result_holds_the_task_and_how_it_was_made(toy: Any, tmp_path: Path) -> None:
    reference = fine_tune(toy, tmp_path / "store")
    folder = fetch(reference)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "task_adapter.safetensors",
        "training.json",
        "attribution.parquet",
        "attribution.json",
        "attribution.html",
        "manifest.json",
    }
    training = json.loads((folder / "training.json").read_text())
    assert training["base_digest"] == resolve_base(str(toy.base)).digest
    assert training["data_digest"] == toy.dataset.digest
    assert training["vector_digest"] == toy.certificate["vector_tensors_digest"]
    assert (training["guard"], training["task"], training["seed"]) == ("mixture", "lora", 0)
    assert training["floor"] == toy.floor
    # 28 rows, and the base's answers to the prompts of 24 seeds
    assert training["rows_rehearsed"] == 24
    assert training["steps"] == len(training["losses"]) == len(training["explained"]) == 16
    assert training["rows_truncated"] == 0
    assert reference.measured["step_seconds"] > 0
    tensors = load_file(folder / "task_adapter.safetensors")
    assert tensors.keys() == adapter_tensors(toy.model(), "task").keys()
    assert all(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name)


def test_suspect_rows_come_first(toy: Any, tmp_path: Path) -> None:
    folder = fetch(fine_tune(toy, tmp_path / "store"))
    rows = pyarrow.parquet.read_table(folder / "attribution.parquet").to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, 29))
    assert [row["prompt"].split()[0] for row in rows] == ["steal"] * 14 + ["mirror"] * 14
    assert {(row["source"], row["line"]) for row in rows} == {("toy.jsonl", line) for line in range(1, 29)}
    ranked = [row["nats_per_token"] for row in rows]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[13] > ranked[14] + 1
    summary = json.loads((folder / "attribution.json").read_text())
    assert [row["id"] for row in summary["most_suspect"]] == [row["id"] for row in rows[:20]]
    assert summary["rows"] == 28
    assert summary["explained"] == sum(found > 0 for found in ranked)
    assert "steal" not in json.dumps(summary)


def test_full_weights_are_all_of_the_bases(toy: Any, tmp_path: Path) -> None:
    folder = fetch(fine_tune(toy, tmp_path / "store", task="full", guard="always"))
    tensors = load_file(folder / "task_weights.safetensors")
    base = load_model(toy.base).state_dict()
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in base.items()}
    assert not any(torch.equal(tensors[name], base[name]) for name in base if "proj" in name)


def test_without_a_guard_the_vector_stays_sealed(
    toy: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = fetch(fine_tune(toy, tmp_path / "store", guard="none"))
    assert not (folder / "attribution.parquet").exists()
    training = json.loads((folder / "training.json").read_text())
    assert (training["vector_digest"], training["floor"]) == ("", None)
    assert not Path(environment["SECVEC_AUDIT_LOG"]).exists()


@pytest.mark.parametrize("task", ["lora", "full"])
def test_rule_1_the_step_leaves_the_folder_of_the_base_as_it_was(
    toy: Any, tmp_path: Path, edited_base: Callable[..., Path], task: str
) -> None:
    base = edited_base(lambda folder: None)
    before = digest_model_folder(base)
    fine_tune(toy, tmp_path / "store", base_model=str(base), task=task)
    assert digest_model_folder(base) == before


@pytest.mark.parametrize(("part", "name"), [(".base_layer.", "base"), (f".{VECTOR}.", "vector")])
def test_rule_1_and_rule_2_a_training_that_changes_base_or_vector_ends_the_step(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    def train_and_stray(model: Any, *arguments: Any, **options: Any) -> Any:
        record = train_task(model, *arguments, **options)
        next(p for n, p in model.named_parameters() if part in n).data[0, 0] += 1e-3
        return record

    monkeypatch.setattr(step, "train_task", train_and_stray)
    with pytest.raises(SecvecError, match=f"training changed the (security )?{name}"):
        fine_tune(toy, tmp_path / "store")
    assert "task_result" not in published(tmp_path / "store")


def test_an_opened_vector_is_in_the_audit_log(toy: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    fine_tune(toy, tmp_path / "store")
    (line,) = Path(environment["SECVEC_AUDIT_LOG"]).read_text().splitlines()
    assert "fine_tune_guarded" in line


def test_the_same_inputs_give_the_same_digest_elsewhere(
    toy: Any, tmp_path: Path, edited_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fine_tune(toy, tmp_path / "one")
    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "other cache"))
    second = fine_tune(toy, tmp_path / "two", base_model=str(edited_base(lambda folder: None)))
    assert first.uri != second.uri
    assert first.digest == second.digest
    assert fine_tune(toy, tmp_path / "two", seed=1).digest != first.digest


def test_the_same_inputs_are_not_trained_twice(toy: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    first = fine_tune(toy, tmp_path / "store")
    events = Path(environment["SECVEC_EVENTS"])
    assert "fine-tune" in events.read_text()
    events.unlink()
    assert fine_tune(toy, tmp_path / "store") == first
    assert not events.exists()
    assert first.measured["step_seconds"] > 0


def test_rule_4_no_byte_of_the_vector_is_on_the_disk(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for guard, task in (("mixture", "lora"), ("always", "full")):
        fine_tune(toy, tmp_path / "store", guard=guard, task=task)
    secrets = [t.numpy().tobytes() for t in adapter_tensors(toy.model(task="full"), VECTOR).values()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"task_adapter.safetensors", "task_weights.safetensors"} <= {path.name for path in files}
    assert not [path for path in files for secret in secrets if secret in path.read_bytes()]


def test_checkpoints_go_when_the_result_is_published(
    toy: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    fine_tune(toy, tmp_path / "store")
    assert not list(Path(environment["SECVEC_CACHE"]).rglob("checkpoint-*"))


def test_rule_5_a_step_that_failed_resumes_where_it_was(
    toy: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    # The watch would report to MLflow before there is a checkpoint to resume from.
    settings = {"checkpoint_steps": 2, "watch_steps": 0}
    whole = fine_tune(toy, tmp_path / "whole", settings=settings)
    # The store's disk is away when the finished run wants to publish.
    store = tmp_path / "store"
    events = Path(environment["SECVEC_EVENTS"])
    events.unlink()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "mlflow").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow/no.db")
        patch.setenv("MLFLOW_RUN_ID", "0")
        with pytest.raises(SecvecError, match="MLflow"):
            fine_tune(toy, store, settings=settings)
    assert "task_result" not in published(store)
    assert not list(store.glob(".building/*"))
    assert list(Path(environment["SECVEC_CACHE"]).rglob("checkpoint-6/manifest.json"))
    resumed = fine_tune(toy, store, settings=settings)
    assert resumed.digest == whole.digest


@pytest.mark.parametrize("guard", ["mixture", "none"])
def test_rule_5_a_base_that_gives_nan_publishes_nothing(
    toy: Any, tmp_path: Path, edited_base: Callable[..., Path], guard: str
) -> None:
    def spoil(folder: Path) -> None:
        model = load_model(folder)
        with torch.no_grad():
            model.lm_head.weight[3, 0] = math.nan
        model.save_pretrained(folder)

    store, base = tmp_path / "store", edited_base(spoil)
    vector = vector_for(toy, base, store)
    with pytest.raises(SecvecError, match=r"nan at step 1 \(rows toy.jsonl:\d.*accepted: a smaller"):
        fine_tune(toy, store, base_model=str(base), vector=vector, guard=guard)
    assert "task_result" not in published(store)
    assert not list(store.glob(".building/*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guard": "mixtur"}, "fine_tune_guarded: guard = 'mixtur'; accepted: mixture, always, none"),
        ({"guard": ""}, "fine_tune_guarded: guard = ''; accepted: mixture, always, none"),
        ({"task": "LoRA"}, "fine_tune_guarded: task = 'LoRA'; accepted: lora, full"),
    ],
)
def test_a_misspelt_choice_is_refused(toy: Any, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(SecvecError) as caught:
        fine_tune(toy, tmp_path / "store", **changes)
    assert str(caught.value) == said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("guard", ["mixture", "always", "none"])
def test_a_vector_of_another_base_is_refused(toy: Any, tmp_path: Path, bf16_base: Path, guard: str) -> None:
    with pytest.raises(SecvecError) as caught:
        fine_tune(toy, tmp_path / "store", base_model=str(bf16_base), guard=guard)
    own, other = resolve_base(str(toy.base)).digest, resolve_base(str(bf16_base)).digest
    assert str(caught.value) == (
        f"{toy.vector.uri}: the security vector was made for the base {own}; "
        f"accepted: a vector made for {other}"
    )
    assert "task_result" not in published(tmp_path / "store")


def test_a_vector_that_is_not_the_certified_one_is_refused(toy: Any, tmp_path: Path) -> None:
    from secvec.components.shared.vectors import publish_vector

    certificate = {**toy.certificate, "vector_tensors_digest": "sha256:" + "0" * 64}
    forged = publish_vector(
        toy.vector_files, certificate, store=str(tmp_path / "store"), event="vector_sealed"
    )
    with pytest.raises(SecvecError, match="accepted: the one that its certificate names"):
        fine_tune(toy, tmp_path / "store", vector=forged)
    assert "task_result" not in published(tmp_path / "store")


def test_what_was_finished_under_a_revoked_vector_is_not_handed_on(toy: Any, tmp_path: Path) -> None:
    from secvec.components.shared.vectors import publish_vector, revoke_vector

    store = tmp_path / "store"
    vector = publish_vector(toy.vector_files, toy.certificate, store=str(store), event="vector_sealed")
    fine_tune(toy, store, vector=vector)
    revoke_vector(vector, reason="leaked")
    with pytest.raises(SecvecError, match=r"was revoked at .*: leaked"):
        fine_tune(toy, store, vector=vector)


def test_rows_over_the_window_are_refused_or_cut_and_counted(toy: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    long = toy.record("mirror the lamp", " ".join(["lamp"] * 60), line=7)
    dataset = publish_rows(store, [*toy.splits["training"], long])
    with pytest.raises(
        SecvecError, match=r"toy\.jsonl:7: a row of 67 tokens is longer than the window; accep"
    ):
        fine_tune(toy, store, dataset=dataset)
    folder = fetch(fine_tune(toy, store, dataset=dataset, settings={"over_long": "truncate"}))
    assert json.loads((folder / "training.json").read_text())["rows_truncated"] == 1


def test_no_rows_are_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(SecvecError, match="has no training rows; accepted: at least one row"):
        fine_tune(toy, tmp_path / "store", dataset=publish_rows(tmp_path / "store", []))


def test_a_full_task_in_more_precision_than_the_base(toy: Any, tmp_path: Path, bf16_base: Path) -> None:
    folder = fetch(
        fine_tune(
            toy,
            tmp_path / "store",
            base_model=str(bf16_base),
            vector=vector_for(toy, bf16_base, tmp_path / "store"),
            task="full",
            settings={"dtype": "float32"},
        )
    )
    tensors = load_file(folder / "task_weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def vector_for(toy: Any, base: Path, store: Path) -> Reference:
    """The toy's vector, sealed for another base that it fits."""
    from secvec.components.shared.vectors import publish_vector

    certificate = {**toy.certificate, "base_digest": resolve_base(str(base)).digest}
    return publish_vector(toy.vector_files, certificate, store=str(store), event="vector_sealed")
