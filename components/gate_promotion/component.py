"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def gate_promotion(
    *,
    base_model: str,
    dataset: dsl.Input[dsl.Dataset],
    vector: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
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
    verdict: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Judge the signed evaluation by the policy and promote the model in the MLflow registry, or refuse.

    Args:
        base_model: URI of the base model's Hugging Face folder.
        dataset: Reference to the ingested dataset.
        vector: Reference to the security vector.
        model: Reference to the clean model.
        evaluation: Reference to the signed evaluation.
        guard: Objective: ``mixture``, ``always`` or ``none``.
        task: What was trained: ``lora`` or ``full``.
        seed: Seed of every random choice.
        control_arm: Whether an unguarded control was trained as well.
        overrides: Settings by step name; signed with the rest, so that a later run can tell if they changed.
        policy: Bounds that the evaluation must meet.
        model_name: Name of the registered model in MLflow.
        store: URI of the folder or bucket prefix where artifacts are published.
        code_digest: Digest of the code that runs.
        run: Id of the pipeline run, under which whoever submitted it finds the verdict in the store.
        verdict: Reference to the verdict with its reasons.
        report: The evaluation's report with the verdict on it, for the pipeline's user interface.
    """
    from secvec.components.shared.progress import running_step

    with running_step("gate_promotion"):
        from secvec.components.evaluate_harm.verdict_banner import show_judged_evaluation
        from secvec.components.gate_promotion.policy import Policy
        from secvec.components.gate_promotion.step import gate_promotion as gate
        from secvec.components.shared.choices import digest_choices
        from secvec.components.shared.references import Reference
        from secvec.components.shared.run_records import record_verdict

        found = gate(
            base_model=base_model,
            dataset=Reference.read(dataset, "dataset"),
            vector=Reference.read(vector, "vector"),
            model=Reference.read(model, "model"),
            evaluation=Reference.read(evaluation, "evaluation"),
            policy=Policy.read(policy, where="policy"),
            model_name=model_name,
            store=store,
            choices=digest_choices(
                guard=guard, task=task, seed=seed, control_arm=control_arm, overrides=overrides
            ),
        )
        found.write(verdict)
        record_verdict(found, store=store, run=run)
        show_judged_evaluation(evaluation, found, report=report)
