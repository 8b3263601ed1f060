import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from microtome.core import Refusal, Role
from microtome.corpus import Grid, is_image_source, open_images, prepare_images


class Shrink:
    """An image processor: 8 x 8 pixels, from 0 to 1."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __call__(self, images, return_tensors):
        assert return_tensors == "pt"
        arrays = [np.asarray(image.resize((self.size, self.size)), np.float32) / 255 for image in images]
        return {"pixel_values": torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "pictures" / ("dark" if number < 3 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if number % 2 else "RGB", (20, 10), 40 * number if number % 2 else (40 * number,) * 3).save(path)
    return tmp_path / "pictures"


def test_an_image_is_a_document_and_a_window(folder, sink, atlas):
    corpus = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 4))
    assert (corpus.documents, corpus.windows, corpus.tokens, corpus.window) == (6, 6, 48, 9)
    assert corpus.labels == ("dark", "light")
    with pq.ParquetFile(corpus.paths[0]) as file:
        rows = file.read().to_pylist()
    assert [row["name"] for row in rows] == [
        "dark/0.png",
        "dark/1.png",
        "dark/2.png",
        "light/3.png",
        "light/4.png",
        "light/5.png",
    ]
    assert {row["text"] for row in rows} == {None}
    assert sorted(row["half"] for row in rows) == ["confirm"] * 3 + ["discover"] * 3


def test_tokens_are_row_and_column_behind_the_special_ones(folder, sink):
    corpus = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 4, before=2))
    (batch,) = corpus.batches([4], 1000)
    assert batch.ids.tolist() == [[-1, -1, *range(8)]]
    assert batch.roles.tolist() == [[Role.SPECIAL] * 2 + [Role.CONTENT] * 8]


def test_batches_carry_the_pixels_of_their_images(folder, sink):
    corpus = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2))
    (batch,) = corpus.batches([5, 0, 2], 1000)
    pixels = batch.extra["pixel_values"]
    assert pixels.shape == (3, 3, 8, 8)
    for row, document in enumerate(batch.document.tolist()):
        assert torch.allclose(pixels[row], torch.full((3, 8, 8), 40 * document / 255))


def test_one_bad_image_is_skipped_and_the_others_keep_their_pixels(folder, sink):
    (folder / "dark" / "1.png").write_bytes(b"nothing")
    corpus = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2))
    assert corpus.skipped.first == (("dark/1.png", "not an image (UnidentifiedImageError)"),)
    for batch in corpus.batches(range(5), 1000):
        expected = batch.document[:, None, None, None] * 40 / 255
        assert torch.allclose(batch.extra["pixel_values"], expected.float().expand(-1, 3, 8, 8))


def test_truncated_images_are_found_before_the_forward_pass(folder, sink):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "dark" / "1.png")
    whole = (folder / "dark" / "1.png").read_bytes()
    (folder / "dark" / "1.png").write_bytes(whole[: len(whole) // 2])
    assert prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2)).skipped.count == 1


def test_the_fingerprint_follows_the_pixels_and_the_processor(folder, sink):
    first = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2))
    again = open_images(*first.paths, name="x", folder=folder, processor=Shrink())
    assert again.fingerprint == first.fingerprint
    other = open_images(*first.paths, name="x", folder=folder, processor=Shrink(16))
    Image.new("RGB", (20, 10), (1, 2, 3)).save(folder / "dark" / "0.png")
    changed = open_images(*first.paths, name="x", folder=folder, processor=Shrink())
    assert len({first.fingerprint, other.fingerprint, changed.fingerprint}) == 3


def test_a_single_image_and_what_counts_as_a_source_of_images(folder, sink, tmp_path):
    path = folder / "light" / "5.png"
    assert prepare_images(path, Shrink(), sink, "main", grid=Grid(2, 2)).documents == 1
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    assert [is_image_source(source) for source in (folder, str(path), tmp_path / "texts", "sample", ["x"])] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_file_whose_name_is_no_text_is_named_and_skipped(folder, sink):
    """The table of documents keeps the name, by which the picture is found again."""
    (folder / "dark" / "0.png").rename(folder / "dark" / os.fsdecode(b"\xe9.png"))
    corpus = prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2))
    assert corpus.skipped.first == (("dark/?.png", "the name of the file is not valid Unicode"),)
    assert sum(len(batch.extra["pixel_values"]) for batch in corpus.batches(range(corpus.windows), 1000)) == 5


def test_a_folder_is_of_images_where_most_of_its_files_are(folder):
    (folder / "0 readme.txt").write_text("what these pictures are")
    assert is_image_source(folder)
    for number in range(5):
        (folder / f"{number}.txt").write_text("a text")
    assert not is_image_source(folder)


def test_what_cannot_be_an_image_corpus_is_refused_and_nothing_is_written(folder, sink, atlas, tmp_path):
    with pytest.raises(Refusal, match=r"^0\.png: the image processor makes pictures of 8 x 8, which 3 x 2 patches do not tile"):
        prepare_images(folder, Shrink(), sink, "main", grid=Grid(3, 2))
    with pytest.raises(Refusal, match="there is no such file or folder; name an image or a folder of images"):
        prepare_images(tmp_path / "none", Shrink(), sink, "main", grid=Grid(2, 2))
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(Refusal, match="none of its documents is usable: .*; name images, or a folder of them"):
        prepare_images(folder, Shrink(), sink, "main", grid=Grid(2, 2))
    assert not list(atlas.rglob("*.parquet*"))
