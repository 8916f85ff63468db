"""Runs one step of a local run in one container, and believes nothing but its exit status.

KFP's own DockerRunner lets the engine remove a container when it ends, and counts one that is gone as a
success, whatever it exited with. Here a container is created, started, followed, waited for, inspected and
only then removed.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import report
from secvec.components.shared.provenance import IMAGE_VARIABLE
from secvec.pipelines.container_keys import grant_keys

# What `docker run` itself exits with when there was no container to run.
NOT_STARTED = 125
_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['pipelinechannel--([\w-]+)'\]\}\}")
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class ContainerEnd:
    """How a container ended.

    Attributes:
        status: Exit status, 128 + the signal's number if one ended it.
        out_of_memory: Whether the kernel ended it for reaching its memory limit.
        memory_limit: That limit in bytes, 0 for none.
    """

    status: int
    out_of_memory: bool
    memory_limit: int

    def describe(self) -> str:
        """Say it in words."""
        limit = f"limit {self.memory_limit / 2**20:.0f} MiB" if self.memory_limit else "the machine's"
        if self.out_of_memory:
            return f"its container ran out of memory ({limit})"
        if self.status == _KILLED:
            # Not every engine says so when it was memory.
            return f"its container was killed (SIGKILL), by someone or out of memory ({limit})"
        if self.status > 128:
            with contextlib.suppress(ValueError):
                return f"its container was ended by {signal.Signals(self.status - 128).name}"
        return f"its container ended with exit status {self.status}"


def install_runner(parameters: Mapping[str, Any]) -> None:
    """Make `kfp.local.DockerRunner` run its containers through `run_step`.

    KFP looks runners up by their exact type, which leaves this function of its handler as the one place to
    replace.

    Args:
        parameters: The pipeline's parameters: `kfp.local` leaves an image that is one of them unresolved.
    """
    from kfp.local import docker_task_handler

    def run(client: Any, image: str, command: Sequence[str], volumes: dict[str, Any], **options: Any) -> int:
        return run_step(client, resolve_image(image, parameters), command, volumes, **options)

    docker_task_handler.run_docker_container = run


def resolve_image(image: str, parameters: Mapping[str, Any]) -> str:
    """Give the image that KFP's placeholder for a pipeline parameter stands for, or the image as it is."""
    match = _PLACEHOLDER.fullmatch(image)
    return str(parameters.get(match[1], image)) if match else image


def run_step(client: Any, image: str, command: Sequence[str], volumes: dict[str, Any], **options: Any) -> int:
    """Run a step in a container; one that fails is reported with the step's name and the reason.

    Args:
        client: A ``docker.DockerClient``.
        image: The image.
        command: What KFP runs in it.
        volumes: Folders that KFP mounts.
        **options: Other arguments of docker-py's ``containers.create``.

    Returns:
        The container's exit status; 125 if none could be started.
    """
    import docker
    import requests

    step = name_step(command)
    try:
        granted = grant_keys(_name_image(client, image, options), step)
        ended = run_container(client, image=image, command=list(command), volumes=volumes, **granted)
    except SecvecError as error:
        reason, status = str(error), NOT_STARTED
    except docker.errors.DockerException as error:
        reason, status = f"its container could not be run: {_explain(error)}", NOT_STARTED
    except requests.RequestException as error:
        reason, status = f"the container engine stopped answering ({type(error).__name__})", NOT_STARTED
    else:
        reason, status = ended.describe(), ended.status
    if status:
        report("step_failed", step=step, error=f"{step}: {reason}")
        print(f"secvec {step}: error: {reason}", flush=True)
    return status


def _name_image(client: Any, image: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Tell a step which image it runs in, for the provenance of what it makes."""
    find_image(client, image)
    named = f"{image.partition('@')[0]}@{client.images.get(image).id}"
    return {**options, "environment": {**(options.get("environment") or {}), IMAGE_VARIABLE: named}}


def run_container(client: Any, *, image: str, **options: Any) -> ContainerEnd:
    """Create a container, print what it prints, wait for its end and remove it, also when interrupted.

    Raises:
        SecvecError: The image is neither here nor can it be pulled.
        docker.errors.DockerException: The engine refused.
    """
    find_image(client, image)
    container = client.containers.create(image, **options)
    try:
        container.start()
        for text in _decode(_follow(container)):
            print(text, end="", flush=True)
        status = int(container.wait()["StatusCode"])
        container.reload()
        return ContainerEnd(
            status=status,
            out_of_memory=bool(container.attrs["State"].get("OOMKilled")),
            memory_limit=int(container.attrs["HostConfig"].get("Memory") or 0),
        )
    finally:
        import docker

        with contextlib.suppress(docker.errors.NotFound):
            container.remove(force=True)


def _follow(container: Any) -> Iterator[bytes]:
    """What a container prints until its end.

    An engine may answer nothing at all while a container is quiet, and miss the end of one that was quick
    (podman): what is asked then is how the container is, not how long the engine was silent.
    """
    import requests

    while True:
        try:
            return iter(container.logs(stream=True, follow=True))
        except requests.ReadTimeout:  # nothing was printed yet
            container.reload()
            if container.status != "running":
                return iter([container.logs()])


def find_image(client: Any, image: str) -> None:
    """Make sure that an image is there, pulling it if need be.

    Raises:
        SecvecError: It is not here and no registry gives it.
    """
    import docker

    try:
        client.images.get(image)
        return
    except docker.errors.ImageNotFound:
        print(f"pulling {image}", flush=True)
    try:
        client.images.pull(image)
    except docker.errors.DockerException as error:
        raise SecvecError(
            f"image is not on this machine and cannot be pulled ({_explain(error)})",
            where=image,
            accepted="an image that was built here (images/cpu/Containerfile) or that a registry serves",
        ) from error


def name_step(command: Sequence[str]) -> str:
    """Give the name under which the step of a KFP command reports: its function and its arm, if any."""
    values = dict(pairwise(command))
    step = values.get("--function_to_execute", "container")
    try:
        arm = json.loads(values["--executor_input"])["inputs"]["parameterValues"]["arm"]
    except (KeyError, TypeError, ValueError):
        return step
    return f"{step} ({arm})"


def _decode(chunks: Iterator[bytes]) -> Iterator[str]:
    # A chunk may end inside a character.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _explain(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return " ".join(text.split())[:300]
