"""Two models in one: the recipe's measures where the answer is known, and that it goes on where it was interrupted."""

import bz2
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.corpus import Document
from microtome.model import wrap
from recipes import dar2023_models
from recipes.classifiers import Labelled, Tuning, accuracy, fine_tuned, labelled
from recipes.dar2023_models import (
    PAPERS,
    PAPERS_RANDOM,
    QUICK,
    Aligned,
    Stitched,
    decoders,
    describe,
    film_reviews,
    stitched_rows,
)
from recipes.training import Schedule, Size, decoder
from tests.toys import encoder_tokenizer, toy_texts

SIZE = Size(layers=3, width=32, heads=2, window=16, vocabulary=60, positions=1.0)
TUNING = Tuning(blocks=2, steps=60, batch=16, rate=3e-3, head_rate=3e-2)
BUDGET = dataclasses.replace(QUICK, tuning=TUNING, read=400, asked=100, seeds=2, draws=5)


def module() -> Any:
    return decoder(SIZE, 0).transformer.eval()


def marked(windows: int, seed: int) -> Labelled:
    """Windows of three labels; each has a token of its label in a third of its places, and its own length."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(windows) % 3
    ids = torch.randint(10, 60, (windows, 16), generator=generator)
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.33, labels[:, None], ids)
    rows = zip(ids.tolist(), labels.tolist(), torch.randint(8, 17, (windows,), generator=generator).tolist(), strict=True)
    return labelled([(row[:length], label) for row, label, length in rows], 16)


def test_a_classifier_learns_by_matrices_of_its_last_blocks_alone(tmp_path: Path) -> None:
    base, data = module(), marked(600, 0)
    before = {name: value.clone() for name, value in base.named_parameters()}
    made = fine_tuned(base, data, TUNING, 0, tmp_path)
    assert made.since == 1
    assert accuracy(made, marked(300, 1)) > 0.9
    assert float((made.weight - fine_tuned(base, data, TUNING, 1, tmp_path / "other").weight).abs().max()) > 0.01
    for name, value in made.model.module.named_parameters():
        changed = name.startswith(("h.1.", "h.2.")) and name.endswith("weight")
        assert torch.equal(value, before[name]) != changed, name
        assert torch.equal(dict(base.named_parameters())[name], before[name])


def test_a_classifier_is_read_where_it_was_made_and_made_anew_for_other_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = module(), marked(100, 0)
    short = dataclasses.replace(TUNING, steps=2)
    made = fine_tuned(base, data, short, 0, tmp_path)
    tuned = []
    monkeypatch.setattr("recipes.classifiers._tune", lambda *arguments: tuned.append(arguments))
    again = fine_tuned(base, data, short, 0, tmp_path)
    assert torch.equal(made.weight, again.weight)
    assert made.model.fingerprint == again.model.fingerprint
    assert tuned == []
    fine_tuned(base, marked(100, 1), short, 0, tmp_path)
    assert len(tuned) == 1


def test_windows_are_drawn_evenly_and_padding_is_marked() -> None:
    data = labelled([([5, 6, 7], 0), ([5], 1), ([8, 9, 8, 9, 8], 1), ([1, 2], 0), ([3], 1)], 4)
    assert data.lengths.tolist() == [3, 1, 4, 2, 1]
    batch = data.batch(torch.tensor([0, 1]))
    assert batch.ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert (batch.roles > 0).tolist() == [[True, True, True], [True, False, False]]
    assert data.some(4, 0).labels.bincount().tolist() == [2, 2]
    assert sum(len(each.label) for each in data.batches(2)) == 5


def test_a_model_stitched_to_itself_answers_as_it_does_alone(tmp_path: Path) -> None:
    base, data = module(), (marked(600, 0), marked(300, 1))
    rows = list(stitched_rows("itself", wrap(base), wrap(base), data, BUDGET, tmp_path))
    assert len(rows) == BUDGET.seeds * 10
    for row in rows:
        if row.condition in ("pseudo-inverse", "tokens", "procrustes", "trained"):
            assert row.by_keep[1] == pytest.approx(row.own, abs=0.011)
        if row.condition == "random":
            assert max(row.by_keep) < row.own - 0.2
    assert {row.own > 0.85 for row in rows} == {True}
    assert all(row.chance == pytest.approx(1 / 3, abs=0.01) for row in rows)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert list(stitched_rows("itself", wrap(base), wrap(base), data, BUDGET, tmp_path)) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    said = describe(rows)
    assert "yes                  states as they are, it does better than through a random kernel" in said
    assert "paper, pseudo-inverse: best accuracy less chance, of all seeds:" in said


def test_films_are_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["category,text,movie_name,has_plot_and_reviews"]
    lines += [f'{("fresh", "rotten", "plot")[n % 3]},"{toy_texts()[n % 12]}",film {n // 6},False' for n in range(120)]
    path = tmp_path / "reviews.csv.bz2"
    path.write_bytes(bz2.compress("\n".join(lines).encode()))
    monkeypatch.setattr(dar2023_models, "_CLASSIFIED", 20)
    read, asked = film_reviews(path, encoder_tokenizer())
    assert len(read) + len(asked) == 80, "plots are no reviews"
    assert len(asked) % 4 == 0, "four reviews of each film"
    assert 0 < len(asked) < len(read)
    assert (len(read.labels.bincount()), float(read.labels.double().mean())) == (2, 0.5)
    assert read.ids.shape[1] == int(read.lengths.max()) == 20


def test_decoders_from_start_to_end_and_again(tmp_path: Path) -> None:
    texts = toy_texts(40, 400)
    documents = [Document(f"{number}", text, str(number % 2)) for number, text in enumerate(texts)]
    small = dataclasses.replace(
        BUDGET, layers=3, widths=(16, 24), heads=2, window=32, vocabulary=290, read=64, asked=8, seeds=2,
        schedule=Schedule(steps=6, batch=4, rate=3e-3, warmup=1, every=3), tuning=dataclasses.replace(TUNING, blocks=1, steps=3),
    )  # fmt: skip
    rows = list(decoders(small, documents, tmp_path))
    aligned = [row for row in rows if isinstance(row, Aligned)]
    assert [row.pair for row in aligned] == ["narrow, twin"] * 6 + ["narrow, wide"] * 6
    assert all((row.by_coordinate is None) == (row.pair == "narrow, wide") for row in aligned)
    stitched = [row for row in rows if isinstance(row, Stitched)]
    assert {len(row.by_keep) for row in stitched} == {1, 4}
    assert {PAPERS, PAPERS_RANDOM, "itself", "trained"} < {row.condition for row in stitched}
    assert list(decoders(small, documents, tmp_path)) == rows
    said = describe(rows)
    assert "layers of narrow, twin are found at their depth by" in said
    assert "What differs from the paper:" in said
    assert all(len(str(row).splitlines()) == 1 for row in rows)


def test_the_era_of_a_speech_is_its_year() -> None:
    found = [dar2023_models.era_of(Document(f"{year}-Name-1.txt")) for year in (1790, 1899, 1900, 2026)]
    assert found == [0, 0, 1, 1]
    assert dar2023_models.era_of(Document("anything", label="1")) == 1
