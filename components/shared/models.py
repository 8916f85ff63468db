"""Base models: where they come from, what may lie in their folder, and their digests."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rfc8785

from secvec.components.shared.errors import SecvecError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What a loader reads from a model folder. Everything else (READMEs, original checkpoints) is not the model.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    _INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_WHAT_A_MODEL_IS = "a Hugging Face folder with config.json and *.safetensors, without code and adapters"


@dataclass(frozen=True)
class BaseModelFolder:
    """A base model on this machine.

    Attributes:
        uri: Where it came from: a local folder, ``file://``, ``s3://`` or a hub id.
        path: The local folder.
        digest: ``sha256:<hex>`` over names and digests of its model files.
    """

    uri: str
    path: Path
    digest: str


def resolve_base(uri: str) -> BaseModelFolder:
    """Bring a base model to this machine and check its folder.

    Args:
        uri: Local folder, ``file:///folder``, ``s3://bucket/prefix`` or a hub id such as ``org/name``.

    Raises:
        SecvecError: It is not there, or its folder holds what must not be loaded (rule 9).
    """
    from secvec.components.shared.storage import download_folder, expand_user, local_path

    if uri.startswith("s3://"):
        path = Path(tempfile.mkdtemp(prefix="secvec-base-"))
        # what lies behind the URI may change, so that a copy serves one process and no other
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        download_folder(uri, path)
    elif uri.startswith("file://"):
        path = local_path(uri)
    elif Path(uri).exists() or uri.startswith(("/", ".", "~")):
        path = expand_user(uri)
    else:
        path = _download_from_hub(uri)
    check_model_folder(path, where=uri)
    return BaseModelFolder(uri=uri, path=path, digest=digest_model_folder(path))


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # the hub client raises a dozen types, all of which mean: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SecvecError(
            f"base model cannot be fetched from the hub ({reason})",
            where=name,
            accepted="an existing local folder, s3://bucket/prefix, or a reachable hub id",
        ) from error


def check_model_folder(path: Path, *, where: str = "") -> None:
    """Refuse a folder that is not exactly a plain safetensors model (rule 9).

    Args:
        path: The folder.
        where: Its name in errors; the path by default.

    Raises:
        SecvecError: Not a folder, no config, no safetensors, remote code, or an adapter lying about.
    """
    where = where or str(path)
    if not path.is_dir():
        raise SecvecError("is not a folder", where=where, accepted=_WHAT_A_MODEL_IS)
    if not (path / "config.json").is_file():
        raise SecvecError("has no config.json", where=where, accepted=_WHAT_A_MODEL_IS)
    for name in ("config.json", "tokenizer_config.json"):
        _refuse_remote_code(path / name, where=where)
    adapters = sorted(p.name for p in path.glob("adapter_*"))
    if adapters:
        # transformers switches an adapter on silently when it lies in a model folder
        raise SecvecError(f"holds an adapter ({adapters[0]})", where=where, accepted=_WHAT_A_MODEL_IS)
    weight_files(path, where=where)


def _refuse_remote_code(file: Path, *, where: str) -> None:
    if not file.is_file():
        return
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise SecvecError(f"{file.name} is not JSON", where=where, accepted=_WHAT_A_MODEL_IS) from error
    if not isinstance(values, dict):
        raise SecvecError(f"{file.name} is no JSON object", where=where, accepted=_WHAT_A_MODEL_IS)
    if key := _find_code(values):
        raise SecvecError(
            f"{file.name} asks for code or files from elsewhere ({key})",
            where=where,
            accepted=_WHAT_A_MODEL_IS,
        )


def _find_code(values: Any) -> str:
    """The first key, at any depth, that makes a loader run code or read other files than `weight_files`.

    ``transformers_weights`` may even name a pickle. An ``..._implementation`` with a slash is a kernel that
    is fetched from the hub and run, whatever ``trust_remote_code`` says.
    """
    if not isinstance(values, dict | list):
        return ""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in inner:
        is_kernel = str(key).endswith("_implementation") and "/" in json.dumps(value)
        if value and (key in ("auto_map", "transformers_weights") or is_kernel):
            return str(key)
        if found := _find_code(value):
            return found
    return ""


def weight_files(path: Path, *, where: str = "") -> list[Path]:
    """The safetensors files that a loader takes from a model folder, in order of name.

    Args:
        path: The folder.
        where: Its name in errors; the path by default.

    Raises:
        SecvecError: There are none, or the index is unreadable or names a shard that is not there.
    """
    where = where or str(path)
    if (path / _WEIGHTS).is_file():
        return [path / _WEIGHTS]
    if not (path / _INDEX).is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
        found = f"only pickled weights ({pickles[0]})" if pickles else "no weights"
        raise SecvecError(f"has {found}", where=where, accepted=_WHAT_A_MODEL_IS)
    try:
        shards = sorted(set(json.loads((path / _INDEX).read_text())["weight_map"].values()))
        missing = [shard for shard in shards if shard not in {p.name for p in path.glob("*.safetensors")}]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SecvecError(
            f"{_INDEX} is no index of weights", where=where, accepted=_WHAT_A_MODEL_IS
        ) from error
    if missing or not shards:
        raise SecvecError(
            f"lacks the shard {missing[0]}" if missing else "has no weights",
            where=where,
            accepted=_WHAT_A_MODEL_IS,
        )
    return [path / shard for shard in shards]


def digest_model_folder(path: Path) -> str:
    """Digest the model files of a folder: sha256 over the canonical JSON of ``{name: sha256}``."""
    files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return "sha256:" + hashlib.sha256(rfc8785.dumps(digests)).hexdigest()


def load_model(path: Path, *, dtype: str = "auto", device: str | None = None) -> PreTrainedModel:
    """Load a causal language model from a checked local folder, in evaluation mode.

    Args:
        path: A folder that `check_model_folder` accepts; checked again here.
        dtype: ``auto`` (as stored), ``float32`` or ``bfloat16``.
        device: Where it goes; the GPU by default, where there is one.

    Raises:
        SecvecError: The folder is refused, or its weights do not fit its config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_model_folder(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and huggingface_hub raise a dozen types here
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SecvecError(
            f"cannot be loaded ({reason})", where=str(path), accepted=_WHAT_A_MODEL_IS
        ) from error
    model, report = loaded
    _check_fit(report, where=str(path))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _check_fit(report: Mapping[str, Any], *, where: str) -> None:
    # transformers only warns of these, and makes up the weights that are missing.
    for problem in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{problem}_keys"])):
            raise SecvecError(
                f"the weights do not fit config.json ({problem}: {names[0]})",
                where=where,
                accepted=_WHAT_A_MODEL_IS,
            )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder; it must have a chat template and an end token.

    Raises:
        SecvecError: No tokenizer, no chat template, or no end-of-sequence token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_model_folder(path)
    wanted = "a fast tokenizer (tokenizer.json) with a chat template and an eos token"
    try:
        # AutoTokenizer takes a model type's own class where the folder names none in particular, and some
        # of those, Qwen2's for one, put their own way of splitting words in place of tokenizer.json's.
        loader: Any = PreTrainedTokenizerFast if _names_no_class(path) else AutoTokenizer
        tokenizer: Any = loader.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare ones
        raise SecvecError("has no usable tokenizer", where=str(path), accepted=wanted) from error
    if not tokenizer.is_fast or not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise SecvecError("has an incomplete tokenizer", where=str(path), accepted=wanted)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _names_no_class(path: Path) -> bool:
    config = path / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("tokenizer_class") if config.exists() else None
    return named in ("PreTrainedTokenizerFast", "TokenizersBackend")


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest named tensors: sha256 over names, dtypes, shapes and bytes, in order of name."""
    import torch

    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return "sha256:" + whole.hexdigest()
