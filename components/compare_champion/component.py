"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def compare_champion(
    *,
    skip_unchanged: bool,
    base_model: str,
    dataset: dsl.Input[dsl.Dataset],
    guard: str,
    task: str,
    seed: int,
    control_arm: bool,
    overrides: dict,
    policy: dict,
    model_name: str,
    store: str,
    code_digest: str,
    run: str,
    comparison: dsl.Output[dsl.Artifact],
) -> bool:
    """Tell whether the champion was made from exactly these inputs by exactly this code.

    Args:
        skip_unchanged: Whether a run on unchanged inputs is to stop here.
        base_model: URI of the base model's Hugging Face folder.
        dataset: Reference to the ingested dataset.
        guard: Objective: ``mixture``, ``always`` or ``none``.
        task: What is trained: ``lora`` or ``full``.
        seed: Seed of every random choice.
        control_arm: Whether an unguarded control is trained as well.
        overrides: Settings by step name.
        policy: Bounds that the evaluation must meet.
        model_name: Name of the registered model in MLflow.
        store: URI of the folder or bucket prefix where artifacts are published.
        code_digest: Digest of the code that runs.
        run: Id of the pipeline run, under which whoever submitted it finds the verdict in the store.
        comparison: What came of it and why, with a reference to the verdict UNCHANGED where there is one.

    Returns:
        Whether nothing has changed since the champion, as signed by the gate, and nothing is to be trained.
    """
    from secvec.components.shared.progress import running_step

    with running_step("compare_champion"):
        from pathlib import Path

        from secvec.components.compare_champion.step import compare_champion as compare
        from secvec.components.gate_promotion.policy import Policy
        from secvec.components.shared.choices import digest_choices
        from secvec.components.shared.references import Reference

        found = compare(
            skip_unchanged=skip_unchanged,
            base_model=base_model,
            dataset=Reference.read(dataset, "dataset"),
            choices=digest_choices(
                guard=guard, task=task, seed=seed, control_arm=control_arm, overrides=overrides
            ),
            policy=Policy.read(policy, where="policy"),
            model_name=model_name,
            store=store,
            run=run,
        )
        Path(comparison.path).write_text(found.model_dump_json(indent=2))
        return found.unchanged
