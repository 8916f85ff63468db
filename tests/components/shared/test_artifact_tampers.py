"""Random tampering with published artifacts and sealed vectors is always refused; clean ones always open."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from secvec.components.shared.artifacts import fetch, publish
from secvec.components.shared.custody import ensure_custody_key
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import local_path
from secvec.components.shared.vectors import make_validity, open_vector, publish_vector

BASE = "sha256:" + "a" * 64
COUNTS = [150, pytest.param(2000, marks=pytest.mark.slow)]
Tamper = Callable[[Path, random.Random], None]


def some_file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def flip_a_bit(folder: Path, draw: random.Random) -> None:
    path = some_file(folder, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(folder: Path, draw: random.Random) -> None:
    path = some_file(folder, draw)
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def extend(folder: Path, draw: random.Random) -> None:
    path = some_file(folder, draw)
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 20)))


def delete(folder: Path, draw: random.Random) -> None:
    some_file(folder, draw).unlink()


def add(folder: Path, draw: random.Random) -> None:
    (folder / f"extra-{draw.randrange(1000)}").write_bytes(draw.randbytes(draw.randint(0, 9)))


def swap(folder: Path, draw: random.Random) -> None:
    one, other = draw.sample(sorted(path for path in folder.rglob("*") if path.is_file()), 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def link(folder: Path, draw: random.Random) -> None:
    path = some_file(folder, draw)
    elsewhere = folder.parent / "elsewhere"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


def replay(folder: Path, draw: random.Random) -> None:
    """All of another artifact of the same kind, whole and consistent, in this one's place."""
    other = draw.choice(sorted(path for path in folder.parent.iterdir() if path != folder and path.is_dir()))
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


TAMPERS: list[Tamper] = [flip_a_bit, truncate, extend, delete, add, swap, link, replay]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(ensure_custody_key(tmp_path / "custody.key")))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of appends, and no power to fail
    return tmp_path


def make_dataset(folder: Path, number: int) -> Reference:
    source = folder / f"source-{number}"
    (source / "deep").mkdir(parents=True)
    for name in ("rows.jsonl", "profile.json", "deep/more.bin"):
        (source / name).write_bytes(random.Random(f"{name}{number}").randbytes(300))
    return publish(source, kind="dataset", store=str(folder / "store"))


def make_vector(folder: Path, number: int) -> Reference:
    certificate = {
        "passed": True,
        "base_digest": BASE,
        "vector_tensors_digest": f"sha256:{number:064x}",
        **make_validity(2),
    }
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": random.Random(number).randbytes(500)}
    return publish_vector(files, certificate, store=str(folder / "store"), event="vector_sealed")


def use(reference: Reference) -> object:
    if reference.kind == "vector":
        return open_vector(reference, base_digest=BASE, opened_by="fine_tune_guarded")
    return fetch(reference)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", [make_dataset, make_vector])
def test_no_random_tamper_of_an_artifact_is_used(
    environment: Path, make: Callable[[Path, int], Reference], count: int
) -> None:
    draw = random.Random(make.__name__)
    reference, _ = make(environment, 1), make(environment, 2)
    folder = local_path(reference.uri)
    kept = environment / "kept"
    shutil.copytree(folder, kept)
    use(reference)
    for number in range(count):
        tamper = TAMPERS[number % len(TAMPERS)]
        tamper(folder, draw)
        with pytest.raises(SecvecError):
            use(reference)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    use(reference)


@pytest.mark.parametrize("count", COUNTS)
def test_no_random_tamper_of_a_seal_opens_even_with_a_fitting_manifest(environment: Path, count: int) -> None:
    """Whoever writes to the store can write manifests too: then the seal alone must hold."""
    draw = random.Random(0)
    good, other = make_vector(environment, 1), make_vector(environment, 2)
    whole = (fetch(good) / "vector.sealed").read_bytes()
    foreign = (fetch(other) / "vector.sealed").read_bytes()
    for number in range(count):
        folder = environment / "forged"
        shutil.copytree(fetch(good), folder)
        (folder / "manifest.json").unlink()
        cut = draw.randrange(len(whole))
        if number % 4 == 0:
            changed = bytearray(whole)
            changed[cut] ^= 1 << draw.randrange(8)
        elif number % 4 == 1:
            changed = bytearray(whole[:cut])
        elif number % 4 == 2:
            changed = bytearray(foreign)
        else:
            changed = bytearray(whole[:cut] + foreign[cut:])
        if bytes(changed) != whole:
            (folder / "vector.sealed").write_bytes(changed)
            with pytest.raises(SecvecError):
                use(publish(folder, kind="vector", store=str(environment / "forgeries")))
        shutil.rmtree(folder)
        shutil.rmtree(environment / "forgeries", ignore_errors=True)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_clean_vectors_always_open(environment: Path, count: int) -> None:
    for number in range(count):
        assert use(make_vector(environment, number))
