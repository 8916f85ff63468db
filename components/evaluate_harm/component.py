"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def evaluate_harm(
    *,
    base_model: str,
    dataset: dsl.Input[dsl.Dataset],
    vector: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    store: str,
    seed: int,
    overrides: dict,
    code_digest: str,
    model_name: str,
    evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
    control: dsl.Input[dsl.Model] = None,
) -> None:
    """Measure harm and utility of every arm on held-out prompts and sign the result.

    Args:
        base_model: URI of the base model's Hugging Face folder.
        dataset: Reference to the ingested dataset.
        vector: Reference to the security vector, for the vector-active arm.
        model: Reference to the clean model.
        store: URI of the folder or bucket prefix where artifacts are published.
        seed: Seed of every random choice.
        overrides: Settings by step name; this step reads ``evaluate_harm``.
        code_digest: Digest of the code that runs, part of the cache key.
        model_name: Registered model in MLflow, whose champion the model is compared with.
        evaluation: Reference to outcomes, statistics, report and signed statement.
        report: The report, for the pipeline's user interface.
        metrics: Figures of every arm, likewise.
        classification: The deciding judge against people's labels, likewise.
        control: Reference to the unguarded control's clean model, where one was trained.
    """
    from secvec.components.shared.progress import running_step

    with running_step("evaluate_harm"):
        from secvec.components.evaluate_harm.config import EvaluationConfig
        from secvec.components.evaluate_harm.kfp_outputs import show_evaluation
        from secvec.components.evaluate_harm.step import evaluate_harm as evaluate
        from secvec.components.shared.artifacts import fetch
        from secvec.components.shared.overrides import read_step_settings
        from secvec.components.shared.references import Reference

        result = evaluate(
            base_model=base_model,
            dataset=Reference.read(dataset, "dataset"),
            vector=Reference.read(vector, "vector"),
            model=Reference.read(model, "model"),
            control=Reference.read(control, "model") if control else None,
            store=store,
            seed=seed,
            config=read_step_settings(overrides, "evaluate_harm", EvaluationConfig),
            model_name=model_name,
        )
        show_evaluation(fetch(result), report=report, metrics=metrics, classification=classification)
        result.write(evaluation)
