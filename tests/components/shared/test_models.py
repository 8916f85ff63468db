from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import (
    check_model_folder,
    digest_model_folder,
    digest_tensors,
    load_model,
    load_tokenizer,
    resolve_base,
    weight_files,
)

Edit = Callable[[Path], object]


class _Bomb:
    """Unpickled, it leaves a mark beside itself."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def plant_bomb(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(_Bomb(folder / "exploded")))


def edit_json(name: str, **values: Any) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **values}))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def only_pickle(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        plant_bomb(folder, name)

    return edit


def shard(folder: Path) -> None:
    load_model(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()


def index_of_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    plant_bomb(folder, "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_named_by_config(folder: Path) -> None:
    plant_bomb(folder, "adapter_model.bin")
    edit_json("config.json", transformers_weights="adapter_model.bin")(folder)


def remote_code(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib; pathlib.Path('exploded').mkdir()\n")
    edit_json("config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})(folder)


def missing_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def outside_shard(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSED: dict[str, tuple[Edit, str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "only .bin": (only_pickle("pytorch_model.bin"), "only pickled weights (pytorch_model.bin)"),
    "only .pt": (only_pickle("consolidated.pt"), "only pickled weights (consolidated.pt)"),
    "only .pth": (only_pickle("consolidated.00.pth"), "only pickled weights"),
    "an index of pickles": (index_of_pickles, "lacks the shard pytorch_model.bin"),
    "a pickle named by the config": (pickle_named_by_config, "transformers_weights"),
    "safetensors of another name": (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        "has no weights",
    ),
    "other weights named by the config": (
        edit_json("config.json", transformers_weights="other.safetensors"),
        "config.json asks for code or files from elsewhere (transformers_weights)",
    ),
    "auto_map in config.json": (remote_code, "config.json asks for code or files from elsewhere (auto_map)"),
    "auto_map in a sub-config": (
        edit_json("config.json", text_config={"auto_map": {"AutoConfig": "evil.Evil"}}),
        "auto_map",
    ),
    "auto_map in tokenizer_config.json": (
        edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        "tokenizer_config.json asks for code or files from elsewhere (auto_map)",
    ),
    "a kernel from the hub": (
        edit_json("config.json", attn_implementation="kernels-community/flash-attn2"),
        "attn_implementation",
    ),
    "a kernel from the hub for one part": (
        edit_json("config.json", _attn_implementation={"": "sdpa", "text_config": "paged|evil/attention"}),
        "_attn_implementation",
    ),
    "a stray adapter config": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "holds an adapter (adapter_config.json)",
    ),
    "stray adapter weights": (
        lambda f: shutil.copy(f / "model.safetensors", f / "adapter_model.safetensors"),
        "holds an adapter (adapter_model.safetensors)",
    ),
    "a missing shard": (missing_shard, "lacks the shard model-00001-of-"),
    "a shard outside": (outside_shard, "lacks the shard ../outside.safetensors"),
    "an index that is no JSON": (
        lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("{nope")),
        "model.safetensors.index.json is no index of weights",
    ),
    "an index without a map": (
        lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("[]")),
        "model.safetensors.index.json is no index of weights",
    ),
    "a config that is no JSON": (
        lambda f: (f / "config.json").write_text("{nope"),
        "config.json is not JSON",
    ),
    "a config that is no text": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json is not JSON",
    ),
    "a config that is no object": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json is no JSON object",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rule_9_a_folder_with_code_or_pickles_is_refused_unread(
    case: str, edited_base: Callable[..., Path], tmp_path: Path
) -> None:
    edit, said = REFUSED[case]
    folder = edited_base(edit)
    for refuse in (check_model_folder, load_model, load_tokenizer, lambda f: resolve_base(str(f))):
        with pytest.raises(SecvecError) as caught:
            refuse(folder)
        assert said in str(caught.value)
        assert str(folder) in str(caught.value)
        assert "accepted: a Hugging Face folder with config.json and *.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("exploded"))


def test_rule_9_a_pickle_beside_safetensors_is_not_opened(edited_base: Callable[..., Path]) -> None:
    folder = edited_base(lambda f: plant_bomb(f, "pytorch_model.bin"))
    load_model(folder)
    assert not (folder / "exploded").exists()


def test_rule_9_the_loader_is_told_to_take_neither_pickles_nor_code(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the look at the folder comes first: this is the second lock, for what may come to lie there after it
    told: dict[str, Any] = {}

    def load(path: Path, **options: Any) -> Any:
        told.update(options)
        return untouched(path, **options)

    untouched = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    load_model(toy.base)
    assert (told["use_safetensors"], told["trust_remote_code"]) == (True, False)


def test_the_bomb_goes_off_when_it_is_unpickled(tmp_path: Path) -> None:
    plant_bomb(tmp_path, "pytorch_model.bin")
    with (tmp_path / "pytorch_model.bin").open("rb") as stream:
        pickle.load(stream)
    assert (tmp_path / "exploded").is_dir()


def truncate(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


UNLOADABLE: dict[str, tuple[Edit, str]] = {
    "a lost weight": (
        edit_weights(lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight")),
        "missing: model.layers.0.mlp.up_proj.weight",
    ),
    "a weight too many": (
        edit_weights(lambda tensors: tensors.update({"model.layers.0.lora_A.vector.weight": torch.ones(1)})),
        "unexpected: model.layers.0.lora_A.vector.weight",
    ),
    "a weight of another shape": (
        edit_weights(lambda tensors: tensors.update({"lm_head.weight": torch.ones(3, 2)})),
        "cannot be loaded",
    ),
    "a cut file": (truncate, "cannot be loaded"),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "an unknown architecture": (edit_json("config.json", model_type="nope"), "cannot be loaded"),
    "another architecture": (edit_json("config.json", model_type="bert"), "do not fit config.json"),
    "a setting of another type": (edit_json("config.json", hidden_size="wide"), "cannot be loaded"),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_weights_that_do_not_fit_are_refused(case: str, edited_base: Callable[..., Path]) -> None:
    edit, said = UNLOADABLE[case]
    folder = edited_base(edit)
    with pytest.raises(SecvecError, match=f"{folder}.*{said}.*accepted: a Hugging Face folder"):
        load_model(folder)


BAD_TOKENIZERS: dict[str, Edit] = {
    "none": lambda f: (f / "tokenizer.json").unlink(),
    "no JSON": lambda f: (f / "tokenizer.json").write_text("{nope"),
    "no template": lambda f: (f / "chat_template.jinja").unlink(),
    "no end token": edit_json("tokenizer_config.json", eos_token=None),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_an_unusable_tokenizer_is_refused(case: str, edited_base: Callable[..., Path]) -> None:
    folder = edited_base(BAD_TOKENIZERS[case])
    with pytest.raises(SecvecError, match="tokenizer; accepted: a fast tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_is_the_folders_own_whatever_the_model_type(
    toy: Any, edited_base: Callable[..., Path]
) -> None:
    folder = edited_base(edit_json("config.json", model_type="qwen2"))
    words = toy.splits["seeds"][0].messages[0].content
    assert load_tokenizer(folder).tokenize(words) == words.split()


def test_a_sharded_model_loads_as_the_whole_one(toy: Any, edited_base: Callable[..., Path]) -> None:
    folder = edited_base(shard)
    assert len(weight_files(folder)) > 1
    whole, sharded = load_model(toy.base).state_dict(), load_model(folder).state_dict()
    assert digest_tensors(sharded) == digest_tensors(whole)


def test_a_base_is_the_same_by_path_and_by_uri(toy: Any, edited_base: Callable[..., Path]) -> None:
    folder = edited_base(lambda f: None, name="a base #1")
    found = resolve_base(folder.as_uri())
    assert found.path == folder
    assert found.digest == resolve_base(str(folder)).digest == resolve_base(str(toy.base)).digest


def test_a_base_comes_from_s3(toy: Any, s3_bucket: str) -> None:
    from secvec.components.shared.storage import join_uri, upload_folder

    uri = join_uri(s3_bucket, "bases", "toy")
    upload_folder(toy.base, uri)
    found = resolve_base(uri)
    assert found.uri == uri
    assert found.digest == digest_model_folder(toy.base)


def test_the_digest_sees_every_file_that_a_loader_reads(toy: Any, edited_base: Callable[..., Path]) -> None:
    before = digest_model_folder(toy.base)
    read = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    for file in (*read, "tokenizer_config.json", "chat_template.jinja"):

        def change(folder: Path, file: str = file) -> None:
            (folder / file).write_bytes((folder / file).read_bytes() + b" ")

        assert digest_model_folder(edited_base(change, name=file)) != before
    beside = edited_base(lambda f: (f / "README.md").write_text("a model"), name="readme")
    assert digest_model_folder(beside) == before


def test_a_missing_base_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SecvecError, match="is not a folder; accepted: a Hugging Face folder"):
        resolve_base(str(tmp_path / "nowhere"))


def test_a_hub_that_does_not_answer_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    # The hub's client reads its endpoint when it is imported.
    code = (
        "from secvec.components.shared.models import resolve_base\n"
        "from secvec.components.shared.errors import SecvecError\n"
        "try: resolve_base('some-org/some-model')\n"
        "except SecvecError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith("some-org/some-model: base model cannot be fetched from the hub")
    assert "accepted: an existing local folder, s3://bucket/prefix, or a reachable hub id" in line


def test_digests_of_tensors_see_name_dtype_shape_and_every_bit() -> None:
    tensor = torch.arange(6.0)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.reshape(2, 3)},
        {"a": tensor.to(torch.bfloat16)},
        {"a": torch.nextafter(tensor, torch.tensor(9.0))},
        {"a": tensor, "b": torch.empty(0)},
    ]
    assert len({digest_tensors(variant) for variant in variants}) == len(variants)
    transposed = torch.arange(6.0).reshape(3, 2).T
    assert digest_tensors({"a": transposed}) == digest_tensors({"a": transposed.contiguous()})
