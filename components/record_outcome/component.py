"""The step as Kubeflow Pipelines sees it."""

from kfp import dsl


@dsl.component(base_image="secvec-cpu:0.1.0", install_kfp_package=False)
def record_outcome(*, store: str, run: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Record in MLflow how the run ended, also when a step failed.

    Args:
        store: URI of the folder or bucket prefix where artifacts are published.
        run: Id of the pipeline run.
        status: How the other steps ended; filled in by Kubeflow Pipelines.
    """
    from secvec.components.shared.progress import running_step

    with running_step("record_outcome"):
        from secvec.components.record_outcome.step import record_outcome as record

        record(state=status.state, error=status.error_message or "", store=store, run=run)
