"""A real container engine, or a skip that says why.

Where `engine.sh` has found an engine and built the image, nothing is skipped: what does not work then fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

# Any image with Python in it; `engine.sh` says which is there.
PYTHON_IMAGE = os.environ.get("SECVEC_TEST_PYTHON_IMAGE", "python:3.11-slim-bookworm")
IMAGE = os.environ.get("SECVEC_TEST_IMAGE", "secvec-cpu:0.1.0")
_give_up = pytest.fail if "SECVEC_TEST_IMAGE" in os.environ else pytest.skip


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        _give_up(f"no container engine answers ({error})")
    yield client
    client.close()


@pytest.fixture(scope="session")
def python_image(engine: Any) -> str:
    return require(engine, PYTHON_IMAGE)


@pytest.fixture(scope="session")
def image(engine: Any) -> str:
    return require(engine, IMAGE)


def require(engine: Any, name: str) -> str:
    import docker

    try:
        engine.images.get(name)
    except docker.errors.ImageNotFound:
        _give_up(f"the image {name} is not on this machine")
    return name
