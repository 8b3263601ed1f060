"""The image processor beside a checkpoint, and the grid of patches that it makes."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import BitImageProcessorPil, ViTImageProcessorPil

from microtome.core import Refusal
from microtome.model import Patches, load, open_checkpoint, patch_grid
from tests.unit.model.tiny import TINY, opened


def _saved(folder: Path, name: str = "vit", side: int = 8) -> Path:
    TINY[name]().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def test_a_vision_checkpoint_opens_with_its_processor_and_without_a_tokenizer(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "vit")
    for subject in (open_checkpoint(folder), load(folder)):
        assert type(subject.processor) is ViTImageProcessorPil
        assert subject.tokenizer is None
        assert subject.shape.patches == Patches(4, 4, 2, 2, before=1, stretches=False)
    (folder / "preprocessor_config.json").unlink()
    assert load(folder).processor is None


def test_a_built_vision_model_finds_its_processor(tmp_path: Path) -> None:
    module = type(opened("vit").module).from_pretrained(_saved(tmp_path / "vit"))
    assert type(load(module).processor) is ViTImageProcessorPil


def test_models_of_text_have_no_patches() -> None:
    assert opened("bert").shape.patches is None


def test_a_processor_that_does_not_open_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchProcessor"}))
    with pytest.raises(Refusal, match=r"image processor in .*vit: it does not open: .*; copy preprocessor_config.json of this"):
        open_checkpoint(folder)


def test_the_processor_decides_how_many_patches_there_are() -> None:
    wide = ViTImageProcessorPil(size={"height": 8, "width": 20})
    assert patch_grid(opened("dinov2").shape, wide) == (2, 5)
    assert patch_grid(opened("vit").shape, ViTImageProcessorPil(size={"height": 8, "width": 8})) == (2, 2)


def test_pictures_that_do_not_fit_the_model_are_refused() -> None:
    vit, dino = opened("vit").shape, opened("dinov2").shape
    with pytest.raises(Refusal, match="it makes pictures of 8 x 20, and the model has positions for 8 x 8"):
        patch_grid(vit, ViTImageProcessorPil(size={"height": 8, "width": 20}))
    with pytest.raises(Refusal, match="it makes pictures of 8 x 9, which patches of 4 x 4 do not tile"):
        patch_grid(dino, ViTImageProcessorPil(size={"height": 8, "width": 9}))
    with pytest.raises(Refusal, match="it makes pictures of different sizes, 12 x 20 and 20 x 12"):
        patch_grid(dino, BitImageProcessorPil(size={"shortest_edge": 12}, do_center_crop=False))
    assert patch_grid(dataclasses.replace(dino), ViTImageProcessorPil(size={"height": 12, "width": 12})) == (3, 3)
