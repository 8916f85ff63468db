"""The pipeline: one object, compiled to YAML for a cluster and run as it is on one machine.

Nothing here decides about promotion: `gate_promotion` promotes or refuses inside its own body, so that no
branch of the pipeline can be taken wrongly around it. A branch that is not taken leaves no verdict, and a run
without one is an error for whoever follows it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from kfp import dsl

from secvec.components.compare_champion.component import compare_champion
from secvec.components.evaluate_harm.component import evaluate_harm
from secvec.components.fine_tune_guarded.component import fine_tune_guarded
from secvec.components.gate_promotion.component import gate_promotion
from secvec.components.ingest_data.component import ingest_data
from secvec.components.read_share.component import read_share
from secvec.components.record_outcome.component import record_outcome
from secvec.components.remove_security_vector.component import remove_security_vector
from secvec.components.train_security_vector.component import train_security_vector
from secvec.pipelines.guarded_fine_tuning.placement import Placement

DEFAULT_IMAGE = "secvec-cpu:0.1.0"
_DAY = 24 * 3600


@dataclass(frozen=True)
class _Flow:
    """What the steps behind the vector have in common; all values are KFP channels.

    Attributes:
        placement: Where steps run.
        shared: Arguments of each of them.
        choices: Arguments of the gate that it signs, so that a later run can tell if they changed.
        gate: Further arguments of the gate.
    """

    placement: Placement
    shared: dict[str, Any]
    choices: dict[str, Any]
    gate: dict[str, Any]

    def train(self, arm: str, *, guard: Any) -> Any:
        """Add the two tasks that make one arm's clean model."""
        given = {"arm": arm, "overrides": self.choices["overrides"], **self.shared}
        tuned = _add(
            fine_tune_guarded,
            self.placement,
            arm=arm,
            guard=guard,
            task=self.choices["task"],
            **_but(given, "arm"),
        )
        clean = _add(
            remove_security_vector,
            self.placement,
            task_result=tuned.outputs["task_result"],
            arm=arm,
            **_but(given, "arm", "dataset", "seed"),
        )
        return clean.outputs["model"]

    def judge(self, **models: Any) -> None:
        """Add evaluation and gate."""
        overrides = self.choices["overrides"]
        evaluated = _add(
            evaluate_harm,
            self.placement,
            model_name=self.gate["model_name"],
            overrides=overrides,
            **models,
            **self.shared,
        )
        gated = _add(
            gate_promotion,
            self.placement,
            model=models["model"],
            evaluation=evaluated.outputs["evaluation"],
            run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            **self.choices,
            **self.gate,
            **_but(self.shared, "seed"),
        )
        gated.set_caching_options(False)


def _add(component: Any, placement: Placement, *, arm: str = "", **arguments: Any) -> dsl.PipelineTask:
    task: dsl.PipelineTask = component(**arguments, **({"arm": arm} if arm else {}))
    placement.place(task)
    task.set_display_name(f"{component.name} ({arm})" if arm else component.name)
    return task


def _but(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def _define(  # noqa: PLR0917 - KFP calls a pipeline's function with positional arguments
    base_model: str,
    training_data: list[str],
    harmful_seeds: str,
    benign_anchors: str,
    harm_prompts: str,
    skill_prompts: str,
    kept_prompts: str,
    store: str,
    policy: dict[str, Any],
    model_name: str,
    code_digest: str,
    guard: str = "mixture",
    task: str = "lora",
    seed: int = 0,
    control_arm: bool = True,
    skip_unchanged: bool = False,
    overrides: dict[str, Any] = {},  # noqa: B006 - KFP reads the default, nothing writes it
    image: str = DEFAULT_IMAGE,
    training_image: str = DEFAULT_IMAGE,
    accelerator_type: str = "nvidia.com/gpu",
    accelerator_count: str = "0",
    training_cpu: str = "2",
    training_memory: str = "8Gi",
    node_selector: dict[str, str] = {},  # noqa: B006
    tolerations: list[dict[str, Any]] = [],  # noqa: B006
    custody_secret: str = "secvec-custody",
    signing_secret: str = "secvec-signing",
    storage_secret: str = "secvec-s3",
    image_pull_secret: str = "secvec-registry",
    environment: str = "secvec-environment",
    workspace_claim: str = "secvec-workspace",
    shares: list[int] = [],  # noqa: B006
) -> None:
    """Train a vector, fine-tune under its guard, remove it, evaluate every arm and gate the promotion.

    Args:
        base_model: URI of the base model's Hugging Face folder, or a hub id.
        training_data: URIs of the rows to fine-tune on.
        harmful_seeds: URI of the harmful samples that the security vector is trained on.
        benign_anchors: URI of benign samples that the vector must not change.
        harm_prompts: URI of held-out harmful prompts.
        skill_prompts: URI of held-out prompts of the new task, with reference answers.
        kept_prompts: URI of prompts whose behaviour must be kept; empty for none.
        store: URI of the folder or bucket prefix where artifacts are published.
        policy: Bounds that the evaluation must meet.
        model_name: Name of the registered model in MLflow.
        code_digest: Digest of the code that runs: a changed one takes nothing from the cache.
        guard: Objective of fine-tuning: mixture, always or none.
        task: What is trained: lora or full.
        seed: Seed of every random choice.
        control_arm: Whether an unguarded control is trained beside the guarded model.
        skip_unchanged: Whether a run whose inputs and code are the champion's stops after ingestion.
        overrides: Settings by step name.
        image: Container image of the steps that hold no model.
        training_image: Container image of the steps that train, rebuild or evaluate a model.
        accelerator_type: Resource name of the devices that training and evaluation get.
        accelerator_count: How many of them, as a string; 0 for none.
        training_cpu: CPUs that each step with a model asks for.
        training_memory: Memory that each step with a model gets.
        node_selector: Labels of the nodes for steps with a model.
        tolerations: Kubernetes tolerations of steps with a model.
        custody_secret: Secret whose key seals and opens vectors; need not be there where a KMS does.
        signing_secret: Secret with the key that signs evaluations and verdicts, and its public half.
        storage_secret: Secret with S3 credentials; need not be there where pods have a role.
        image_pull_secret: Secret for the image registry; need not be there.
        environment: Config map with the addresses of MLflow and S3, the audit log and the like.
        workspace_claim: Volume claim on which steps with a model keep their caches and checkpoints.
        shares: Numbers from 0, one for each pod that reads a share of the training rows.
    """
    placement = Placement(
        image=image,
        training_image=training_image,
        accelerator_type=accelerator_type,
        accelerator_count=accelerator_count,
        training_cpu=training_cpu,
        training_memory=training_memory,
        node_selector=node_selector,
        tolerations=tolerations,
        custody_secret=custody_secret,
        signing_secret=signing_secret,
        storage_secret=storage_secret,
        image_pull_secret=image_pull_secret,
        environment=environment,
        # Empty only where it is no parameter: see choose_pipeline.
        workspace_claim=workspace_claim or None,
    )
    common: dict[str, Any] = {"store": store, "code_digest": code_digest}
    sources: dict[str, Any] = {
        "training_data": training_data,
        "harmful_seeds": harmful_seeds,
        "benign_anchors": benign_anchors,
        "harm_prompts": harm_prompts,
        "skill_prompts": skill_prompts,
        "kept_prompts": kept_prompts,
        "overrides": overrides,
    }
    choices: dict[str, Any] = {
        "guard": guard,
        "task": task,
        "seed": seed,
        "control_arm": control_arm,
        "overrides": overrides,
    }
    gate: dict[str, Any] = {"policy": policy, "model_name": model_name}
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    recorded = _add(record_outcome, placement, store=store, run=run)
    with dsl.ExitHandler(recorded, name="run"):
        read = {} if shares is None else _read_shares(placement, shares=shares, **sources, **common)
        ingested = _add(ingest_data, placement, **sources, **common, **read)
        # What lies behind a URI can change while the URI does not; so can the champion.
        ingested.set_caching_options(False)
        known = common | {"base_model": base_model, "dataset": ingested.outputs["dataset"]}
        compared = _add(
            compare_champion, placement, skip_unchanged=skip_unchanged, run=run, **choices, **gate, **known
        )
        compared.set_caching_options(False)
        with dsl.If(compared.outputs["Output"] == False, name="changed"):  # noqa: E712 - a condition on an output
            trained = _add(train_security_vector, placement, overrides=overrides, seed=seed, **known)
            shared = known | {"seed": seed, "vector": trained.outputs["vector"]}
            flow = _Flow(placement=placement, shared=shared, choices=choices, gate=gate)
            # Both branches hold the whole rest of the flow: a branch's output cannot leave it in a local run,
            # and this way the control trains side by side with the guarded arm on a cluster.
            with dsl.If(control_arm == True, name="with-control"):  # noqa: E712 - a condition on a parameter
                guarded = flow.train("guarded", guard=guard)
                flow.judge(model=guarded, control=flow.train("unguarded", guard="none"))
            with dsl.Else(name="without-control"):
                flow.judge(model=flow.train("guarded", guard=guard))


def _read_shares(placement: Placement, *, shares: Any, **arguments: Any) -> dict[str, Any]:
    """Have the training rows read by several tasks; gives what tells the next step of it."""
    with dsl.ParallelFor(shares, name="share") as share:
        read = _add(read_share, placement, share=share, shares=shares, **arguments)
        read.set_caching_options(False)
    return {"shares": dsl.Collected(read.output)}


def _fix(define: Callable[..., None], **values: Any) -> Callable[..., None]:
    """Take parameters from the pipeline's function and give them a value once for all."""
    signature = inspect.signature(define)
    kept = [one for name, one in signature.parameters.items() if name not in values]

    @wraps(define)
    def fixed(*arguments: Any) -> None:
        given = zip((one.name for one in kept), arguments, strict=True)
        define(**dict(given), **values)

    fixed.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return fixed


def _make_pipeline(define: Callable[..., None]) -> Any:
    make = dsl.pipeline(
        name="guarded-fine-tuning",
        description="Fine-tune on unvetted data and ship a model that did not learn the harm in it.",
        # What a finished run leaves on the cluster is only its record; all results lie in the store.
        pipeline_config=dsl.PipelineConfig(
            ttl_seconds_after_finished=7 * _DAY, active_deadline_seconds=21 * _DAY
        ),
    )
    return make(define)


def choose_pipeline(*, workspace: bool = False, sharded: bool = False) -> Any:
    """Give the pipeline with a volume claim for caches, with training rows read in shares, or with neither.

    They are pipelines of their own because KFP can leave a secret away that is not there, but no claim, and
    because an ordinary run need not wait for another pod.
    """
    if not workspace and not sharded:
        return guarded_fine_tuning
    unused = ({} if workspace else {"workspace_claim": ""}) | ({} if sharded else {"shares": None})
    return _make_pipeline(_fix(_define, **unused))


guarded_fine_tuning = _make_pipeline(_fix(_define, workspace_claim="", shares=None))
