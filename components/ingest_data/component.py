"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def ingest_data(
    *,
    training_data: list[str],
    harmful_seeds: str,
    benign_anchors: str,
    harm_prompts: str,
    skill_prompts: str,
    kept_prompts: str,
    store: str,
    overrides: dict,
    code_digest: str,
    shares: list = [],  # noqa: B006 - KFP reads the default, nothing writes it
    dataset: dsl.Output[dsl.Dataset],
) -> None:
    """Read every source into canonical chat records, split them and refuse what would spoil the evaluation.

    Args:
        training_data: URIs (file, s3, https) of the rows to fine-tune on.
        harmful_seeds: URI of the harmful samples that the security vector is trained on.
        benign_anchors: URI of benign samples that the vector must not change.
        harm_prompts: URI of held-out harmful prompts that the evaluation asks.
        skill_prompts: URI of held-out prompts of the new task, with reference answers.
        kept_prompts: URI of prompts whose behaviour must be kept, with reference answers.
        store: URI of the folder or bucket prefix where artifacts are published.
        overrides: Settings by step name; this step reads ``ingest_data``.
        code_digest: Digest of the code that runs, part of the cache key.
        shares: References, as JSON, to shares of the training rows that were read elsewhere; none by default.
        dataset: Reference to the published dataset.
    """
    from secvec.components.shared.progress import running_step

    with running_step("ingest_data"):
        from secvec.components.ingest_data.config import IngestConfig, Sources
        from secvec.components.ingest_data.step import ingest_data as ingest
        from secvec.components.shared.overrides import read_step_settings
        from secvec.components.shared.references import Reference

        sources = Sources(
            training_data=tuple(training_data),
            harmful_seeds=harmful_seeds,
            benign_anchors=benign_anchors,
            harm_prompts=harm_prompts,
            skill_prompts=skill_prompts,
            kept_prompts=kept_prompts,
        )
        config = read_step_settings(overrides, "ingest_data", IngestConfig)
        read = [Reference.model_validate_json(share) for share in shares]
        ingest(sources=sources, store=store, config=config, shares=read).write(dataset)
