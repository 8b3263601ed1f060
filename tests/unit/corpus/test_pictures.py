"""What is kept of pictures: what the model sees, whatever its processor does to the numbers."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, ViTImageProcessorPil

from microtome.corpus import Corpus, Grid, prepare_images
from microtome.corpus.pictures import LONGEST, Colours, processed, unprocessed
from microtome.store import stream_table, table_path

RED, GREEN, BLUE, WHITE = (220, 30, 30), (20, 180, 60), (30, 40, 210), (250, 250, 250)
LOSS = 6
"""How far a colour is changed by JPEG inside a patch of one colour, at most."""


class Bare:
    """A processor without any attribute: `height` x `width` pixels, each colour scaled and shifted in its own way."""

    def __init__(
        self, height: int, width: int, scale: tuple[float, ...] = (1, 1, 1), shift: tuple[float, ...] = (0, 0, 0)
    ) -> None:
        self.size, self.scale, self.shift = (width, height), np.array(scale), np.array(shift)

    def __call__(self, images: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
        arrays = [np.asarray(each.resize(self.size, Image.Resampling.NEAREST), np.float32) / 255 for each in images]
        return {"pixel_values": torch.tensor(np.stack(arrays) * self.scale + self.shift).permute(0, 3, 1, 2)}


class EachByItself(Bare):
    """A processor that takes from every picture its own mean, so that black and white are the same."""

    def __call__(self, images: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = super().__call__(images, return_tensors)["pixel_values"]
        return {"pixel_values": pixels - pixels.mean((1, 2, 3), keepdim=True)}


PROCESSORS: dict[str, Any] = {
    "squeezed and normalised": ViTImageProcessorPil(size={"height": 64, "width": 64}, resample=Image.Resampling.NEAREST),
    "its own mean and spread": ViTImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=0
    ),
    "not normalised": ViTImageProcessorPil(size={"height": 64, "width": 64}, do_normalize=False, resample=0),
    "bare": Bare(64, 64),
    "bare, inside out": Bare(64, 64, (-2.0, 3.0, 0.5), (1.0, -7.0, 0.25)),
}


def _quadrants(height: int, width: int) -> Image.Image:
    values = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    values[:top, :left], values[:top, left:], values[top:, :left], values[top:, left:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(values)


def _folder(folder: Path, **pictures: Image.Image) -> Path:
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return folder


def _prepared(folder: Path, processor: Any, atlas: Path, grid: Grid, run: str = "main") -> tuple[Corpus, list[dict[str, Any]]]:
    corpus = prepare_images(
        folder, processor, lambda table, batches: stream_table(atlas, table, f"corpus.{run}", batches), run, grid=grid
    )
    return corpus, pq.read_table(table_path(atlas, "pictures", f"corpus.{run}")).to_pylist()


def _decoded(row: dict[str, Any]) -> np.ndarray:
    values = np.asarray(Image.open(io.BytesIO(row["jpeg"])), np.int64)
    assert values.shape == (row["height"], row["width"], 3)
    return values


def _middles(row: dict[str, Any]) -> np.ndarray:
    """The colour in the middle of every patch."""
    values = _decoded(row)
    rows, columns = row["rows"], row["columns"]
    at = [
        [(2 * n + 1) * size // (2 * count) for n in range(count)]
        for size, count in ((row["height"], rows), (row["width"], columns))
    ]
    return values[np.ix_(*at)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_of_coloured_quadrants_is_kept_as_it_was_seen(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", one=_quadrants(128, 128))
    _, (row,) = _prepared(folder, PROCESSORS[name], tmp_path / "atlas", Grid(2, 2))
    assert {key: row[key] for key in ("run", "document", "rows", "columns", "width", "height")} == {
        "run": "main", "document": 0, "rows": 2, "columns": 2, "width": 64, "height": 64,
    }  # fmt: skip
    assert np.abs(_middles(row) - [[RED, GREEN], [BLUE, WHITE]]).max() <= LOSS


def test_the_processors_own_way_to_leave_numbers_alone_says_the_same() -> None:
    """Where a processor can be told not to scale and not to normalise, that is what undoing both finds, to a level of 255."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8))
    for processor in (
        ViTImageProcessorPil(size={"height": 56, "width": 56}),
        BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
    ):
        found = np.asarray(unprocessed(processed(processor, picture), Colours.of(processor)), np.int64)
        told = processor(images=[picture], return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
        assert np.abs(found - told.transpose(1, 2, 0)).max() <= 1


def test_patches_are_where_they_are_after_a_crop_of_the_middle(tmp_path: Path) -> None:
    """Of a picture twice as wide as high, its outer quarters in black, the middle is seen."""
    wide = Image.new("RGB", (240, 120))
    wide.paste(_quadrants(120, 120), (60, 0))
    crop = BitImageProcessorPil(size={"shortest_edge": 120}, crop_size={"height": 120, "width": 120}, resample=0)
    _, (row,) = _prepared(_folder(tmp_path / "pictures", wide=wide), crop, tmp_path / "atlas", Grid(4, 4))
    corners = [[RED, RED, GREEN, GREEN]] * 2 + [[BLUE, BLUE, WHITE, WHITE]] * 2
    assert np.abs(_middles(row) - corners).max() <= LOSS


def test_pictures_that_are_not_square_and_large_ones_keep_their_shape(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", one=_quadrants(300, 900))
    _, (row,) = _prepared(folder, Bare(448, 896), tmp_path / "atlas", Grid(2, 4))
    assert (row["width"], row["height"]) == (LONGEST, LONGEST // 2)
    assert np.abs(_middles(row) - [[RED, RED, GREEN, GREEN], [BLUE, BLUE, WHITE, WHITE]]).max() <= LOSS


def test_a_processor_that_normalises_each_picture_by_itself_is_undone_by_its_ends(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", grey=Image.new("RGB", (64, 64), (90, 90, 90)), two=_quadrants(64, 64))
    _, rows = _prepared(folder, EachByItself(64, 64), tmp_path / "atlas", Grid(2, 2))
    low, high = 20, 250  # the smallest and the largest number of the quadrants
    expected = (np.array([[RED, GREEN], [BLUE, WHITE]]) - low) * 255 / (high - low)
    assert np.abs(_middles(rows[1]) - expected).max() <= LOSS
    assert _middles(rows[0]).max() == 0, "a picture of one colour has no ends"


def test_every_used_document_has_a_picture_and_a_skipped_one_none(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", a=_quadrants(64, 64), c=_quadrants(64, 64), d=Image.new("RGB", (9, 9), BLUE))
    (folder / "b.png").write_bytes(b"nothing")
    corpus, rows = _prepared(folder, Bare(64, 64), tmp_path / "atlas", Grid(2, 2))
    assert (corpus.documents, corpus.copies, corpus.skipped.count) == (3, 1, 1)
    assert [row["document"] for row in rows] == [0, 2, 3], "a copy has its picture, too"
    assert rows[0]["jpeg"] == rows[1]["jpeg"]
    assert np.abs(_middles(rows[2]) - BLUE).max() <= LOSS


def test_a_picture_that_the_processor_does_not_take_is_named_and_skipped(tmp_path: Path) -> None:
    class Squeamish(Bare):
        def __call__(self, images: list[Any], return_tensors: str) -> dict[str, torch.Tensor]:
            if min(images[0].size) < 2:
                raise ValueError("too small")
            return super().__call__(images, return_tensors)

    folder = _folder(tmp_path / "pictures", a=_quadrants(64, 64), b=Image.new("RGB", (1, 1)))
    corpus, rows = _prepared(folder, Squeamish(64, 64), tmp_path / "atlas", Grid(2, 2))
    assert corpus.skipped.first == (("b.png", "the image processor does not take it (ValueError)"),)
    assert [row["document"] for row in rows] == [0]


def test_runs_keep_their_own_pictures_in_small_groups_of_rows_and_the_same_bytes(tmp_path: Path) -> None:
    many = {f"{n:03}": Image.new("RGB", (8, 8), (n, 2 * n % 256, 0)) for n in range(130)}
    folder, other = _folder(tmp_path / "many", **many), _folder(tmp_path / "other", one=_quadrants(8, 8))
    atlas = tmp_path / "atlas"
    corpus, rows = _prepared(folder, Bare(8, 8), atlas, Grid(2, 2), "many")
    before = table_path(atlas, "pictures", "corpus.many").read_bytes()
    _, (alone,) = _prepared(other, Bare(8, 8), atlas, Grid(2, 2), "other")
    assert {row["run"] for row in rows} == {"many"}
    assert (alone["run"], alone["document"]) == ("other", 0)
    assert [row["document"] for row in rows] == list(range(130))
    assert np.abs(_decoded(rows[77])[4, 4] - (77, 154, 0)).max() <= LOSS
    footer = pq.read_metadata(table_path(atlas, "pictures", "corpus.many"))
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [64, 64, 2]
    again, _ = _prepared(folder, Bare(8, 8), atlas, Grid(2, 2), "many")
    assert table_path(atlas, "pictures", "corpus.many").read_bytes() == before
    assert again.fingerprint == corpus.fingerprint
