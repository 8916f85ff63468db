"""`secvec submit` against a server that validates every request by Kubeflow's own description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from submitting import WRITES_OF_A_FIRST_SUBMIT, Command, the_line

from secvec.pipelines.cluster import connect
from secvec.pipelines.pipeline_versions import ensure_version


def test_a_store_that_cannot_be_read_is_said_before_the_run_starts(
    secvec: Command, kfp_api: Any, remote_config: Path
) -> None:
    values = yaml.safe_load(remote_config.read_text()) | {"store": "s3://no-such-bucket/store"}
    remote_config.write_text(yaml.safe_dump(values))
    assert "no-such-bucket" in the_line(
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config))
    )
    assert kfp_api.writes == []
    # Whoever does not wait for the verdict need not read it.
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait").status == 0


def test_the_same_pipeline_is_uploaded_once(
    secvec: Command, kfp_api: Any, remote_config: Path, compiled: Any
) -> None:
    for _ in range(2):
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait")
    assert kfp_api.writes == [*WRITES_OF_A_FIRST_SUBMIT, "RunService_CreateRun"]
    (version,) = kfp_api.items["pipeline_versions"]
    assert version["name"] == compiled.version


def test_a_version_is_found_behind_many_pages(kfp_api: Any, compiled: Any) -> None:
    cluster = connect(kfp_api.url)
    first = ensure_version(cluster, compiled)
    # A server that knows nothing of filters gives everything, two a page.
    kfp_api._predicates = lambda text: []
    for number in range(5):
        decoy = {"name": f"v{number}", "display_name": f"v{number}", "pipeline_id": first.pipeline_id}
        kfp_api.items["pipeline_versions"].insert(0, decoy | {"pipeline_version_id": str(number)})
    assert ensure_version(cluster, compiled) == first
    assert kfp_api.writes.count("UploadPipelineVersion") == 1


def test_the_race_for_a_name_is_lost_quietly(kfp_api: Any, compiled: Any, pauses: list[float]) -> None:
    """Another one uploads the same version between our look and our upload: 409, and it is taken."""
    from kfp_api_server import Fault

    cluster = connect(kfp_api.url)
    kfp_api.faults = [
        Fault("PipelineService_CreatePipeline", 409, done=True),
        Fault("UploadPipelineVersion", 409, done=True),
    ]
    found = ensure_version(cluster, compiled)
    assert found.version_id == kfp_api.items["pipeline_versions"][0]["pipeline_version_id"]
    assert pauses == []


def test_everything_lies_in_the_users_namespace(secvec: Command, kfp_api: Any, remote_config: Path) -> None:
    kfp_api.namespaces = ("team-a",)
    options = ["--namespace", "team-a", "--experiment", "nightly tests", "--no-wait"]
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    (experiment,) = kfp_api.items["experiments"]
    assert (experiment["namespace"], experiment["display_name"]) == ("team-a", "nightly tests")
    assert [one["namespace"] for one in kfp_api.items["pipelines"]] == ["team-a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training_data": ["rows.jsonl"]}, "training_data[0] = "),
        ({"harm_prompts": "prompts.jsonl"}, "harm_prompts = "),
        ({"base_model": "./base"}, "base_model = "),
        ({"store": ""}, "store = '' cannot be written by pods; accepted: s3://..."),
        ({"store": "https://example.com/store"}, "cannot be written by pods"),
        ({"image": "No Image"}, "image = 'No Image' is no image's name"),
    ],
)
def test_what_no_pod_could_use_is_refused_before_any_request(
    secvec: Command, kfp_api: Any, remote_config: Path, change: dict[str, Any], said: str
) -> None:
    remote_config.write_text(yaml.safe_dump(yaml.safe_load(remote_config.read_text()) | change))
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)), status=2)
    assert said in line
    assert str(remote_config) in line
    assert kfp_api.calls == []


@pytest.mark.parametrize("options", [(), ("--config", "x", "--attach", "y"), ("--timeout", "soon")])
def test_options_that_do_not_fit(secvec: Command, kfp_api: Any, options: tuple[str, ...]) -> None:
    the_line(secvec("submit", "--host", kfp_api.url, *options), status=2)
    assert kfp_api.calls == []


def test_the_same_code_compiles_to_the_same_bytes(compiled: Any, tmp_path: Path) -> None:
    """In another process, with other hashes: the digest names a version, so it must not depend on either."""
    import os
    import subprocess
    import sys

    code = (
        "from secvec.pipelines.pipeline_versions import compile_pipeline; print(compile_pipeline().version)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == compiled.version
