"""An atlas of a model that is spread over two devices: every byte of it is that of one device."""

from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.model import load
from tests import toys
from tests.pretend import pretending


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_two_devices_write_the_atlas_of_one(kind: str, tmp_path: Path) -> None:
    module, tokenizer = {
        "llama": (toys.llama, toys.decoder_tokenizer),
        "bert": (toys.bert, toys.encoder_tokenizer),
    }[kind]
    module().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(toys.toy_texts()))
    files = []
    with pretending():
        for device in ("pretend:0", "pretend:0,pretend:1"):
            model = load(tmp_path / "model", device=device, dtype="float32")
            folder = tmp_path / f"atlas{len(model.devices)}"
            build(model, str(text), output=str(folder), settings=Settings(window=32))
            assert len(model.devices) == len(device.split(","))
            files.append({str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()})
    one, two = files
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
