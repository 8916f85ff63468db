"""What reads input, each with the inputs for it and the errors that it may raise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from hypothesis import strategies as st

from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.gate_promotion.policy import load_policy
from secvec.components.ingest_data import hub
from secvec.components.ingest_data.config import Encoding, IngestConfig, Limits, Sources
from secvec.components.ingest_data.files import SourceFile, bring_file, find_files
from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.ingest_data.rows import open_rows
from secvec.components.ingest_data.shapes import detect_shape, read_messages, read_note
from secvec.components.ingest_data.unpacking import recode
from secvec.components.shared import https, s3
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import parse_manifest, read_manifest
from secvec.components.shared.model_traces import find_traces
from secvec.components.shared.models import check_model_folder
from secvec.components.shared.settings import Settings
from secvec.components.shared.storage import check_name, join_uri, local_path, scheme_of
from secvec.components.shared.strict_json import parse_strictly
from secvec.components.train_security_vector.config import VectorConfig
from secvec.pipelines.guarded_fine_tuning.config import RunConfig, read_run_config
from tests.fuzz import inputs

# Small, so that inputs of a few KiB reach them.
LIMITS = Limits(max_row_bytes=2048, max_json_depth=16, max_columns=30)
CONFIG = IngestConfig(limits=LIMITS)


@dataclass(frozen=True)
class Target:
    """Something that reads input.

    Attributes:
        name: What it is called.
        inputs: What it is fed.
        feed: Feeds one input; the folder is its own.
        errors: What it may raise; anything else is a defect.
        share: Its part of all inputs.
    """

    name: str
    inputs: Any
    feed: Callable[[Any, Path], object]
    errors: tuple[type[Exception], ...] = (SecvecError,)
    share: int = 1


def _read_file(name: str) -> Callable[[bytes, Path], None]:
    def feed(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        with bring_file(SourceFile(str(path), name), "training_data", config=CONFIG) as local:
            for row in open_rows(local.path, local.format, where=name, limits=LIMITS)[1]:
                row.show()
                if row.refused is None:
                    with contextlib.suppress(RowRefused):
                        _read_row(dict(row.values), folder)

    return feed


def _read_row(values: dict[Any, Any], _: Path) -> None:
    shape = detect_shape(values, mapping={}, needs_answer=True)
    for turn in read_messages(values, shape, needs_answer=True):
        turn.content.encode()
    read_note(values, "label").encode()


def _read_header(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)
    check_model_folder(folder)
    find_traces(folder)


def _read_model_config(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(inputs.SEEDS["model.safetensors"][0])
    check_model_folder(folder)
    find_traces(folder)


def _read_settings(kind: type[Settings]) -> Target:
    names = list(kind.model_fields)
    return Target(
        f"settings {kind.__name__}", inputs.settings_like(names), lambda found, _: kind.read(found, where="x")
    )


def _read_yaml(read: Callable[[Path], object]) -> Callable[[Any, Path], None]:
    def feed(found: Any, folder: Path) -> None:
        path = folder / "config.yaml"
        if isinstance(found, bytes):
            path.write_bytes(found)
        else:
            path.write_text(yaml.dump(found), encoding="utf-8", errors="surrogatepass")
        read(path)

    return feed


def _read_uri(uri: str, folder: Path) -> None:
    for read in (scheme_of, local_path, s3.split_uri, https.public_form, hub.name_in):
        with contextlib.suppress(SecvecError):
            read(uri)
    with contextlib.suppress(SecvecError):
        join_uri(uri, "a")
    if not uri.startswith(("hf:", "s3:", "https:", "~")):
        find_files("training_data", str(folder / "x") + uri, config=CONFIG)


def _read_manifest(data: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(data)
    read_manifest(folder)
    for name in parse_manifest(data, where="x").files:
        assert (folder / name).resolve().is_relative_to(folder.resolve())


def _name_file(name: str, folder: Path) -> None:
    check_name(name, where="x")
    assert (folder / name).resolve().is_relative_to(folder.resolve())


_DIGEST = b'{"digest":"sha256:' + b"0" * 64 + b'","size":1}'
inputs.SEEDS["manifest"] = [
    b'{"about":{},"files":{"a.txt":' + _DIGEST + b',"b/c":' + _DIGEST + b'},"kind":"dataset","schema":1}'
]
inputs.SEEDS["config.json"] = [b'{"model_type": "llama", "auto_map": {}, "rope": {"a": [1, 2]}}']
inputs.SEEDS["yaml"] = [
    b"version: 1\nmax_harm_rate: 0.1\nmin_utility: 0.5\n",
    b"a: &x [1, 2]\nb: *x\nc: !!str 1\n",
]

_RUN: dict[str, Any] = {name: "x" for name, field in RunConfig.model_fields.items() if field.is_required()}
_RUN |= {"training_data": ["x"], "policy": {"version": 1, "max_harm_rate": 0.1, "min_utility": 0.5}}

TARGETS = [
    *(
        Target(name, inputs.changed_files(name), _read_file(name), share=3)
        for name in inputs.SEEDS
        if name.startswith("rows.")
    ),
    Target("rows", inputs.ROWS, _read_row, errors=(RowRefused,), share=3),
    Target(
        "encodings",
        st.tuples(st.sampled_from(get_args(Encoding)), st.binary(max_size=200)),
        lambda found, folder: (
            (folder / "in").write_bytes(found[1]),
            recode(folder / "in", found[0], folder / "out", where="x"),
        ),
    ),
    Target("safetensors", inputs.changed_files("model.safetensors"), _read_header, share=3),
    Target("model config", inputs.changed_files("config.json"), _read_model_config),
    Target("manifests", inputs.changed_files("manifest"), _read_manifest, share=2),
    Target(
        "strict JSON", inputs.changed_files("rows.json"), lambda d, _: parse_strictly(d), errors=(ValueError,)
    ),
    Target("URIs", inputs.URIS, _read_uri, share=2),
    Target("names", inputs.URIS, _name_file),
    Target(
        "run config",
        st.one_of(
            inputs.settings_like(list(RunConfig.model_fields)),
            inputs.settings_like(list(RunConfig.model_fields)).map(lambda found: _RUN | found),
            st.tuples(st.sampled_from(list(_RUN)), inputs.URIS).map(lambda pair: _RUN | dict([pair])),
            inputs.changed_files("yaml"),
        ),
        _read_yaml(read_run_config),
        share=2,
    ),
    Target(
        "policy",
        st.one_of(inputs.settings_like(["version", "max_harm_rate", "suites"]), inputs.changed_files("yaml")),
        _read_yaml(load_policy),
    ),
    *(
        _read_settings(kind)
        for kind in (IngestConfig, Sources, VectorConfig, FineTuneConfig, EvaluationConfig)
    ),
]
