"""What a model reads in a run: images end to end, and sources of the wrong kind."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from microtome.atlas import Atlas, build, estimate
from microtome.core import Refusal
from microtome.model import open_checkpoint
from microtome.store import digest
from tests import toys
from tests.contract.tiny_inputs import processor_for, word_tokenizer, write_pictures
from tests.unit.model.tiny import built, opened


def _saved(folder: Path, name: str) -> Path:
    built(name).save_pretrained(folder)
    processor_for(name).save_pretrained(folder)
    return folder


def _tables(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in sorted((folder / "tables").rglob("*.parquet"))}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def atlas(subject: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    folder = _saved(tmp_path_factory.mktemp("model") / subject, subject)
    return build(folder, pictures, output=tmp_path_factory.mktemp("build") / "atlas")


def test_patches_are_the_tokens_and_positions_of_an_image(atlas: Atlas) -> None:
    run = atlas.manifest.runs["main"]
    assert run.corpus is not None
    assert (run.corpus["documents"], run.corpus["tokens"], run.corpus["window"]) == (12, 48, 5)
    assert run.corpus["labels"] == ["noise", "ramp"]
    places = atlas.sql("select distinct position from contexts order by position").to_pylist()
    assert [row["position"] for row in places] == [1, 2, 3, 4], "patches; the class token is not counted"
    shares = atlas.sql("select distinct windows, tokens from geometry_shares").to_pylist()
    assert shares == [{"windows": 12, "tokens": 48}]


def test_what_needs_words_is_absent_and_says_why(atlas: Atlas) -> None:
    absent = atlas.manifest.runs["main"].absent
    assert absent["token detectors"] == "the tokens of an image are patches, which belong to no vocabulary"
    assert absent["vocabulary"] == "images have no vocabulary"
    assert absent["tokens"] == "images have no vocabulary: a patch is embedded by a convolution"
    assert absent["layer_loss"] == "the checkpoint has no language-model head"
    kinds = atlas.sql("select distinct kind from findings").to_pylist()
    assert "token detector" not in {row["kind"] for row in kinds}


def test_the_mean_over_patches_is_that_of_transformers_own_pass(subject: str, atlas: Atlas, pictures: Path) -> None:
    images = [Image.open(path).convert("RGB") for path in sorted(pictures.rglob("*.png"))]
    pixels = processor_for(subject)(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = built(subject)(pixels, output_hidden_states=True).hidden_states
    rows = atlas.sql("select site, norm from geometry_shares where part = 'mu'").to_pylist()
    norms = {row["site"]: row["norm"] for row in rows}
    for site, state in (("resid_pre.0", states[0]), ("resid_post.0", states[1]), ("resid_post.1", states[2])):
        expected = state[:, 1:].reshape(-1, state.shape[-1]).double().mean(0).norm()
        assert norms[site] == pytest.approx(float(expected), rel=1e-5)


def test_building_images_again_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    model = replace(opened("vit"), processor=processor_for("vit"))
    atlas = build(model, pictures, output=tmp_path / "atlas")
    before = _tables(atlas.path)
    build(model, pictures, output=tmp_path / "atlas")
    assert _tables(atlas.path) == before
    copy = shutil.copytree(pictures, tmp_path / "pictures")
    next(copy.rglob("*.png")).unlink()
    with pytest.raises(Refusal, match="run main: its images were others; use --run NAME"):
        build(model, copy, output=tmp_path / "atlas")


def test_an_estimate_of_images_counts_their_patches(pictures: Path) -> None:
    found = estimate(replace(opened("dinov2"), processor=processor_for("dinov2")), pictures)
    assert (found.documents, found.windows, found.tokens) == (12, 12, 48)
    assert found.seconds > 0
    said = found.describe().splitlines()
    assert said[0] == "images  12 images, 48 patches"
    assert "patches/s" in said[1]
    assert "token" not in found.describe()


def test_bad_pictures_are_named_and_the_others_are_used(pictures: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pictures, tmp_path / "pictures")
    (copy / "noise" / "01.png").write_bytes(b"no picture")
    model = replace(opened("vit"), processor=processor_for("vit"))
    run = build(model, copy, output=tmp_path / "atlas").manifest.runs["main"]
    assert run.corpus is not None
    assert run.corpus["documents"] == 11
    assert run.corpus["skipped_first"] == [{"name": "noise/01.png", "reason": "not an image (UnidentifiedImageError)"}]


def test_sources_of_the_wrong_kind_are_refused_and_nothing_is_written(pictures: Path, tmp_path: Path) -> None:
    vision, bert = replace(opened("vit"), processor=processor_for("vit")), toys.toy_encoder()
    (tmp_path / "story.txt").write_text("Once upon a time.")
    output = tmp_path / "atlas"
    for model, source, message in [
        (
            vision,
            tmp_path / "story.txt",
            r"story\.txt: it is no image and no folder of images, and vit reads images; name images",
        ),
        (vision, ["Once upon a time."], "texts: it is no image and no folder of images, and vit reads images; name images"),
        (vision, "sample", "sample: it is no image and no folder of images, and vit reads images"),
        (vision, "-", "stdin: it is no image and no folder of images, and vit reads images"),
        (vision, "hf:imdb", "imdb: it is no image and no folder of images, and vit reads images"),
        (vision, tmp_path / "none", "there is no such file or folder; name an image or a folder of images"),
        (opened("vit"), pictures, "images for vit: there is no image processor beside the model; put its preprocessor_config"),
        (bert, pictures, "pictures0: it is an image or a folder of images, and toy-bert reads text; name text, or a model"),
        (
            replace(bert, tokenizer=None),
            ["Once."],
            "text for toy-bert: there is no tokenizer beside the model; put the tokenizer",
        ),
    ]:
        with pytest.raises(Refusal, match=message):
            build(model, source, output=output)
    with pytest.raises(Refusal, match="text for toy: the model is open but not built; pass its folder, or load"):
        build(open_checkpoint(toys.save_checkpoint(tmp_path / "toy")), ["Once."], output=output)
    assert not output.exists()


def test_the_weights_of_a_vision_model_alone_make_an_atlas(tmp_path: Path) -> None:
    atlas = build(_saved(tmp_path / "vit", "vit"), output=tmp_path / "atlas")
    stats = atlas.sql("select distinct stat from unit_stats").to_pylist()
    assert stats == [{"stat": "write_norm"}]


def test_windows_end_where_the_positions_of_a_model_do(tmp_path: Path) -> None:
    """RoBERTa counts positions from padding_id + 1: of 64 rows it can use 62."""
    model = replace(opened("roberta"), tokenizer=word_tokenizer("[CLS] $A [SEP]"))
    run = build(model, toys.toy_texts(4, 300), output=tmp_path / "atlas").manifest.runs["main"]
    assert run.corpus is not None
    assert run.corpus["window"] == model.shape.context == 62
