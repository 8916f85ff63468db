"""The step: base, rows and sealed vector in, task result out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from transformers import set_seed

from secvec.components.fine_tune_guarded.attribution import (
    attribute_rows,
    write_attribution,
)
from secvec.components.fine_tune_guarded.checkpoint_places import local_place
from secvec.components.fine_tune_guarded.checkpoints import forget_all
from secvec.components.fine_tune_guarded.config import FineTuneConfig, Guard, Task
from secvec.components.fine_tune_guarded.launch import count_for_pod, launch_processes
from secvec.components.fine_tune_guarded.memory import record_passes, train_within_memory
from secvec.components.fine_tune_guarded.objectives import Mixture, OneBranch, make_objective
from secvec.components.fine_tune_guarded.processes import (
    from_first,
    gather,
    is_first,
    is_joined,
    shard,
)
from secvec.components.fine_tune_guarded.rehearsal import answer_as_base, choose_rehearsed
from secvec.components.fine_tune_guarded.result import check_untouched, digest_untouched, write_result
from secvec.components.fine_tune_guarded.tracking import TrackLoss
from secvec.components.fine_tune_guarded.train_job import run_train_job
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.fine_tune_guarded.watch import make_watch
from secvec.components.shared.adapters import (
    TASK,
    VECTOR,
    attach_adapter,
    attach_vector,
    fold_vector,
    make_lora_config,
    vector_digest,
)
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.finished import input_key, recall, remember
from secvec.components.shared.likelihood import EncodedRecord, encode_record, model_window
from secvec.components.shared.models import (
    BaseModelFolder,
    load_model,
    load_tokenizer,
    resolve_base,
)
from secvec.components.shared.provenance import attest
from secvec.components.shared.records import ChatRecord, read_records
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import open_vector, read_certificate

if TYPE_CHECKING:
    from peft import PeftModel

STEP = "fine_tune_guarded"


@dataclass(frozen=True)
class _Inputs:
    """What identifies one training; equal inputs give equal results on the same machine."""

    base: BaseModelFolder
    dataset: Reference
    vector: Reference
    vector_tensors: str
    floor: float
    guard: Guard
    task: Task
    seed: int
    config: FineTuneConfig

    def about(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "base_digest": self.base.digest,
            "data_digest": self.dataset.digest,
            "vector_digest": self.vector_tensors,
            "guard": self.guard,
            "floor": self.floor if self.guard == "mixture" else None,
            "task": self.task,
            "seed": self.seed,
            "config": self.config.model_dump(mode="json"),
            "code_digest": code_digest(),
        }

    def job(self, store: str, *, base: str) -> dict[str, Any]:
        """The same inputs for the process of a group, as JSON."""
        references = {"dataset": self.dataset, "vector": self.vector}
        return {
            "base_model": base,
            **{name: reference.model_dump(mode="json") for name, reference in references.items()},
            **{"guard": self.guard, "task": self.task, "seed": self.seed, "store": store},
            "config": self.config.model_dump(mode="json"),
        }

    def digests(self) -> dict[str, str]:
        return {"base": self.base.digest, "data": self.dataset.digest, "vector": self.vector.digest}

    def parameters(self) -> dict[str, Any]:
        names = ("guard", "task", "seed", "config")
        return {name: value for name, value in self.about().items() if name in names}


def fine_tune_guarded(
    *,
    base_model: str,
    dataset: Reference,
    vector: Reference,
    guard: str,
    task: str,
    store: str,
    seed: int,
    config: FineTuneConfig,
) -> Reference:
    """Fine-tune on unvetted rows under a guard and publish the task result.

    Args:
        base_model: URI of the base.
        dataset: Output of `ingest_data`.
        vector: Output of `train_security_vector`; not opened when ``guard`` is ``none``.
        guard: ``mixture``, ``always`` or ``none``.
        task: ``lora`` (a task adapter) or ``full`` (the base's own weights).
        store: URI of the artifact store.
        seed: Random seed.
        config: Training.

    Returns:
        Reference to the task's tensors, ``training.json`` and, under a guard, ``attribution.parquet``.

    Raises:
        SecvecError: A vector of another base, a non-finite loss, a run that did not reach its last step.
    """
    _check_choice("guard", guard, get_args(Guard))
    _check_choice("task", task, get_args(Task))
    base = resolve_base(base_model)
    certificate = read_certificate(vector, base_digest=base.digest)
    inputs = _Inputs(
        base=base,
        dataset=dataset,
        vector=vector,
        vector_tensors=certificate["vector_tensors_digest"] if guard != "none" else "",
        floor=_explained_loss(certificate),
        guard=cast(Guard, guard),
        task=cast(Task, task),
        seed=seed,
        # as a number: a result depends on it
        config=config.model_copy(update={"processes": count_for_pod(config.processes)}),
    )
    key = input_key(**inputs.about())
    if not is_joined() and (found := recall(store, STEP, key, inputs=inputs.digests())):
        forget_all(local_place(key))  # of a run that was killed when it had published
        return found
    if is_joined() or inputs.config.processes == inputs.config.nodes == 1:
        return _train_and_publish(inputs, store=store, key=key)
    return _start_others(inputs, store=store, key=key)


def _start_others(inputs: _Inputs, *, store: str, key: str) -> Reference:
    """Let processes of this pod or others train and publish; their result comes back through the store."""
    processes = inputs.config.processes or 1
    if inputs.config.nodes > 1:
        run_train_job(inputs.job(store, base=inputs.base.uri), nodes=inputs.config.nodes, processes=processes)
    else:
        launch_processes(inputs.job(store, base=str(inputs.base.path)), count=processes)
    found = recall(store, STEP, key)
    if found is None:
        raise SecvecError(
            "the training processes left no result",
            where=store,
            accepted="a store and a base that every one of them reaches, and the same code in each",
        )
    # Processes in other pods may lack the key: what they trained, this one states.
    attest(found, step=STEP, inputs=inputs.digests(), parameters=inputs.parameters())
    return found


def _train_and_publish(inputs: _Inputs, *, store: str, key: str) -> Reference:
    """Train and publish; of several processes the first publishes, and the others end before.

    Raises:
        SystemExit: This is another than the first: status 0, its work is done.
    """
    work = local_place(key)
    with building("task_result", store) as folder:
        measured = train_within_memory(
            lambda config: _train(inputs, config=config, folder=folder, work=work), inputs.config
        )
        if not is_first():
            raise SystemExit(0)
        reference = publish(folder, kind="task_result", store=store)
    reference = reference.model_copy(update={"measured": measured})
    attest(reference, step=STEP, inputs=inputs.digests(), parameters=inputs.parameters())
    remember(store, STEP, key, reference, inputs=inputs.digests())
    forget_all(work)
    return reference


def _explained_loss(certificate: dict[str, Any]) -> float:
    """τ of `explained_from`: halfway between held-out seeds with and without the vector."""
    losses = certificate["heldout_seed_loss"]
    return 0.5 * (float(losses["active"]) + float(losses["inactive"]))


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise SecvecError(f"{name} = {value!r}", where=STEP, accepted=", ".join(accepted))


def _train(inputs: _Inputs, *, config: FineTuneConfig, folder: Path, work: Path) -> dict[str, float]:
    guarded = inputs.guard != "none"
    records = _read_rows(inputs.dataset)
    tokenizer: Any = load_tokenizer(inputs.base.path)
    # All weights that learn, with their gradients and moments, may be more than one device holds.
    spread = inputs.task == "full" and is_joined()
    model: Any = load_model(inputs.base.path, dtype=config.dtype, device="cpu" if spread else None)
    window = model_window(model, config.max_length)
    rows = _encode(records, tokenizer, window=window, config=config)
    objective = make_objective(inputs.guard, prior=config.prior, floor=inputs.floor)
    rehearsed: list[EncodedRecord] = []
    if isinstance(objective, Mixture):
        rehearsed = _rehearse(model, tokenizer, inputs.dataset, rows=len(rows), window=window, config=config)
    set_seed(inputs.seed)
    if inputs.task == "lora":
        # The task adapter is attached first: the Trainer takes the first of two active adapters as its own.
        model = attach_adapter(model, TASK, make_lora_config(rank=config.rank))
    if guarded:
        model = attach_vector(model, from_first(lambda: _open(inputs)))
        _check_certified(model, inputs)
    if spread:
        shard(model, whole={p for name, p in model.named_parameters() if f".{VECTOR}." in name})
    if guarded:
        size = 4 * config.batch_size
        attributions = attribute_rows(model, rows, size=size, pad_id=tokenizer.pad_token_id)
        if is_first():
            write_attribution(folder, records, attributions)
        if isinstance(objective, Mixture):
            ids = [row.record_id for row in rows]
            objective.begin(dict(zip(ids, attributions, strict=True)))
    folded = inputs.guard == "always" and inputs.task == "lora" and model.dtype == torch.float32
    if folded:
        fold_vector(model)
        objective = OneBranch(with_vector=False, folded=True)
    before = digest_untouched(model, guarded=guarded, task=inputs.task)
    record = train_task(
        model,
        [*rows, *rehearsed],
        objective=objective,
        task=inputs.task,
        config=config,
        seed=inputs.seed,
        pad_id=tokenizer.pad_token_id,
        work=work,
        callbacks=[
            TrackLoss(arm="guarded" if guarded else "unguarded"),
            *make_watch(
                fetch(inputs.dataset),
                tokenizer,
                window=window,
                config=config,
                task=inputs.task,
                guarded=guarded,
                folded=folded,
            ),
        ],
    )
    after = digest_untouched(model, guarded=guarded, task=inputs.task)
    check_untouched(before, after)
    training = {
        **inputs.about(),
        **record_passes(inputs.config, used=config),
        "steps": record.steps,
        "rows_truncated": sum(row.truncated for row in rows),
        "rows_rehearsed": len(rehearsed),
        "losses": record.losses,
        "explained": record.explained,
        "untouched": gather([after]),  # in each process
    }
    write_result(model, task=inputs.task, training=training, folder=folder)
    return {"step_seconds": record.step_seconds}


def _open(inputs: _Inputs) -> dict[str, bytes]:
    return open_vector(inputs.vector, base_digest=inputs.base.digest, opened_by=STEP)


def _read_rows(dataset: Reference) -> list[ChatRecord]:
    records = read_records(fetch(dataset) / "training.jsonl")
    if not records:
        raise SecvecError("the dataset has no training rows", where=STEP, accepted="at least one row")
    return records


def _check_certified(model: PeftModel, inputs: _Inputs) -> None:
    found = vector_digest(model)
    if found != inputs.vector_tensors:
        raise SecvecError(
            f"holds a vector with tensors {found}",
            where=inputs.vector.uri,
            accepted=f"the one that its certificate names ({inputs.vector_tensors})",
        )


def _rehearse(
    model: Any, tokenizer: Any, dataset: Reference, *, rows: int, window: int, config: FineTuneConfig
) -> list[EncodedRecord]:
    """The rehearsed rows of all processes, answered by the first."""
    if not config.rehearsal_share:
        return []
    # Not those held out: the watch asks them.
    seeds = read_records(fetch(dataset) / "seeds.jsonl")
    answered = from_first(
        lambda: answer_as_base(
            model,
            tokenizer,
            seeds,
            window=window,
            most_tokens=config.rehearsal_tokens,
            batch_size=4 * config.batch_size,
        )
    )
    return choose_rehearsed(answered, rows=rows, share=config.rehearsal_share)


def _encode(
    records: list[ChatRecord], tokenizer: Any, *, window: int, config: FineTuneConfig
) -> list[EncodedRecord]:
    truncate = config.over_long == "truncate"
    return [encode_record(record, tokenizer, window=window, truncate=truncate) for record in records]
