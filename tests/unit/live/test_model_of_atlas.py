"""The model of an atlas is opened once, if it is that model; otherwise it is said what differs."""

from pathlib import Path
from typing import Any

import pytest

from microtome.core import Refusal
from microtome.live import ModelOfAtlas
from microtome.model import Model, load, wrap
from microtome.store import Manifest, ModelCard, write_manifest
from tests import toys
from tests.unit.model.tiny import opened


def atlas_of(folder: Path, model: Model, **other: Any) -> Path:
    """The manifest of an atlas of a model, with other facts of it than there are."""
    facts = {"name": model.name, "family": "llama", "architecture": "LlamaForCausalLM", "fingerprint": model.fingerprint}
    shape = {name: getattr(model.shape, name) for name in ("layers", "d_model", "heads", "vocab")}
    folder.mkdir()
    write_manifest(folder, Manifest(written_by="a test", model=ModelCard(**{**facts, "shape": shape, **other})))
    return folder


def test_a_checkpoint_is_opened_once_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = toys.save_checkpoint(tmp_path / "toy")
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", load(checkpoint)), checkpoint)
    assert (found.told().state, found.told().name) == ("closed", "toy")
    loaded = found.loaded()
    assert found.loaded() is loaded
    assert (found.told().state, found.told().dtype, found.told().device) == ("open", "float32", "cpu")
    monkeypatch.chdir(tmp_path)
    by_name = ModelOfAtlas(tmp_path / "atlas")
    assert by_name.loaded().model.fingerprint == loaded.model.fingerprint, "the atlas's name of it is a folder here"


def test_an_atlas_whose_model_is_not_named_says_how_to_name_it(tmp_path: Path) -> None:
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", toys.toy_decoder()))
    told = found.told()
    assert told.state == "absent"
    assert told.problem is not None
    assert "`microtome open ATLAS --model PATH`" in told.problem.instead
    with pytest.raises(Refusal, match="Text needs the model on this machine"):
        found.loaded()


def test_another_model_is_refused_and_it_is_said_what_differs(tmp_path: Path) -> None:
    small, own = wrap(toys.llama(layers=2), toys.decoder_tokenizer(), name="small"), toys.toy_decoder()
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", own), small)
    with pytest.raises(Refusal, match="here and there are layers 2 and 3"):
        found.loaded()
    assert found.told().state == "refused"
    with pytest.raises(Refusal, match="of the same shape with other weights"):
        ModelOfAtlas(atlas_of(tmp_path / "other", own, fingerprint="0" * 64), own).loaded()


def test_a_checkpoint_of_another_model_is_refused_before_it_is_built(tmp_path: Path) -> None:
    checkpoint = toys.save_checkpoint(tmp_path / "toy")
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", opened("gpt2")), checkpoint)
    with pytest.raises(Refusal, match="the atlas is of gpt2, another model"):
        found.loaded()


@pytest.mark.parametrize("damage", ["missing", "empty", "config", "weights"])
def test_what_cannot_be_opened_is_refused_and_stays_so(tmp_path: Path, damage: str) -> None:
    checkpoint = toys.save_checkpoint(tmp_path / "toy")
    if damage == "config":
        (checkpoint / "config.json").write_text("{")
    if damage == "weights":
        file = checkpoint / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    path = {"missing": tmp_path / "nowhere", "empty": tmp_path}.get(damage, checkpoint)
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", toys.toy_decoder()), path)
    for _ in range(2):
        with pytest.raises(Refusal):
            found.loaded()
    assert found.told().state == "refused"


def test_a_model_of_pictures_or_without_a_tokenizer_reads_no_text(tmp_path: Path) -> None:
    for name, why in (("vit", "it reads pictures"), ("llama", "it has no tokenizer")):
        with pytest.raises(Refusal, match=why):
            ModelOfAtlas(atlas_of(tmp_path / name, opened(name)), opened(name)).loaded()


def test_an_atlas_that_is_built_anew_of_another_model_is_no_longer_its_own(tmp_path: Path) -> None:
    own = toys.toy_decoder()
    found = ModelOfAtlas(atlas_of(tmp_path / "atlas", own), own)
    found.loaded()
    (tmp_path / "atlas" / "atlas.json").unlink()
    (tmp_path / "atlas").rmdir()
    atlas_of(tmp_path / "atlas", opened("gpt2"))
    with pytest.raises(Refusal, match="the atlas is of gpt2"):
        found.loaded()
