"""An atlas of a model that is spread over two devices: every byte of it is that of one device."""

from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.model import load
from tests import toys
from tests.pretend import apart, pretending


def build_on_both(place: str) -> None:
    """Build an atlas on one device, and on two, of a decoder and of an encoder."""
    text = Path(place) / "text.txt"
    text.write_text("\n\n".join(toys.toy_texts()))
    for module, tokenizer in ((toys.llama, toys.decoder_tokenizer), (toys.bert, toys.encoder_tokenizer)):
        folder = Path(place) / module.__name__
        module().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        files = []
        for device in ("pretend:0", "pretend:0,pretend:1"):
            model = load(folder, device=device, dtype="float32")
            assert len(model.devices) == len(device.split(","))
            output = folder.with_name(f"{folder.name}-{len(model.devices)}")
            build(model, str(text), output=str(output), settings=Settings(window=32))
            files.append({str(each.relative_to(output)): each.read_bytes() for each in output.rglob("*") if each.is_file()})
        one, two = files
        assert one.keys() == two.keys()
        assert [name for name in one if one[name] != two[name]] == []


def pretend_to_build(place: str) -> None:
    """The same with devices that are not there."""
    with pretending():
        build_on_both(place)


@pytest.mark.slow
def test_two_devices_write_the_atlas_of_one(tmp_path: Path) -> None:
    apart(pretend_to_build, tmp_path)
