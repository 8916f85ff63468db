"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def read_share(
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
    share: int,
    shares: list,
) -> str:
    """Read a share of very many training rows, for ingest_data to put together with the others.

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
        share: Which share, from 0.
        shares: All shares; only how many there are counts.

    Returns:
        Reference to the published share, as JSON.
    """
    from secvec.components.shared.progress import running_step

    with running_step(f"read_share ({share + 1} of {len(shares)})"):
        from secvec.components.ingest_data.config import IngestConfig, Sources
        from secvec.components.ingest_data.reading import Share
        from secvec.components.ingest_data.step import read_share as read
        from secvec.components.shared.overrides import read_step_settings

        sources = Sources(
            training_data=tuple(training_data),
            harmful_seeds=harmful_seeds,
            benign_anchors=benign_anchors,
            harm_prompts=harm_prompts,
            skill_prompts=skill_prompts,
            kept_prompts=kept_prompts,
        )
        config = read_step_settings(overrides, "ingest_data", IngestConfig)
        found = read(sources=sources, store=store, config=config, share=Share(share, len(shares)))
        return found.model_dump_json()
