"""The tuned lens of an atlas: learned by a build, read back whole, and refused where it is not this model's, or not whole."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.core import Batch, Refusal, Role, Site
from microtome.model import Model, capture, load, wrap
from microtome.store.schemas import TABLES
from microtome.vocabulary.translators import Translator
from microtome.vocabulary.tuned import TunedLens, translator_rows, tuned_lens
from tests import toys
from tests.unit.vocabulary.test_values import plain


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_are_the_map_and_behind_it_the_shift() -> None:
    into, onto, shift = drawn(6, 2, seed=0), drawn(2, 6, seed=1), drawn(6, seed=2)
    whole = Translator(Site("resid_post", 10), drawn(6, 6, seed=3), None, shift)
    table = translator_rows([Translator(Site("resid_post", 2), into, onto, shift), whole], "main")
    assert table.schema == TABLES["translators"].schema
    rows = table.to_pylist()
    assert [(row["site"], row["layer"], row["row"]) for row in rows[5:9]] == [
        ("resid_post.10", 10, 5), ("resid_post.10", 10, 6), ("resid_post.2", 2, 0), ("resid_post.2", 2, 1),
    ]  # fmt: skip
    assert rows[0]["values"] == whole.into[0].tolist()
    torch.testing.assert_close(torch.tensor([row["values"] for row in rows[7:13]]), into @ onto)
    assert rows[13]["values"] == rows[6]["values"] == shift.tolist()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("tuned")
    texts = folder / "texts"
    texts.mkdir()
    for number, text in enumerate(toys.toy_texts()):
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    model = load(toys.save_checkpoint(folder / "model"), dtype="float32")
    build(model, texts, output=folder / "atlas", settings=Settings(depth="standard", window=32, lenses=("vocabulary",)))
    return model, folder / "atlas"


def states_of(model: Model) -> tuple[Batch, dict[Site, torch.Tensor]]:
    ids = torch.randint(5, model.shape.vocab, (4, 12), generator=torch.Generator().manual_seed(0))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    index = torch.arange(4)
    batch = Batch(ids, roles, index, index, index * 0, (index % 2).to(torch.uint8), index * 0, {})
    return batch, capture(model, batch, [Site("resid_post", layer) for layer in range(model.shape.layers)])


def test_a_build_keeps_the_lens_whose_losses_it_tells(built: tuple[Model, Path]) -> None:
    """Read back, it says what the table's numbers say, by torch alone: h + h A + b through the model's own norm and head."""
    model, folder = built
    lens = tuned_lens(folder, model)
    assert isinstance(lens, TunedLens)
    assert sorted(lens.translators) == [0, 1]
    rows = Atlas(folder).sql("select values from translators where site = 'resid_post.1' order by row")["values"].to_pylist()
    *into, shift = (torch.tensor(row) for row in rows)
    batch, states = states_of(model)
    h = states[Site("resid_post", 1)]
    module = model.module
    expected = module.lm_head(module.model.norm(h + h @ torch.stack(into) + shift)).detach()
    torch.testing.assert_close(lens.logits(h, 1), expected, rtol=1e-5, atol=1e-5)
    last = Site("resid_post", 2)
    torch.testing.assert_close(lens.logits(states[last], 2), module(batch.ids).logits.detach(), rtol=1e-4, atol=1e-4)
    losses = Atlas(folder).sql("select objective, site, loss from layer_loss where objective like 'kl_model%'").to_pylist()
    told = {(row["objective"], row["site"]): row["loss"] for row in losses}
    assert told["kl_model_tuned", "resid_post.0"] < told["kl_model", "resid_post.0"]
    torch.testing.assert_close(lens.logits(h[0, 0], 1), expected[0, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(Refusal, match="has layers 0 to 2"):
        lens.logits(h, 3)


@pytest.mark.parametrize(
    ("states", "layer", "says"),
    [
        (torch.ones(2, 5), 1, r"states in torch.float32 of shape \(2, 5\): .* has states of width 24; give a tensor of floats"),
        (torch.ones(2, 24, dtype=torch.int64), 1, r"states in torch.int64 of shape \(2, 24\)"),
        (torch.tensor(1.0), 1, r"states in torch.float32 of shape \(\)"),
        (np.ones((2, 24), np.float32), 1, "states in ndarray: .* has states of width 24"),
        (torch.ones(2, 24), "1", "the tuned lens at layer 1: .* has layers 0 to 2"),
        (torch.ones(2, 24), 0.5, "the tuned lens at layer 0.5: .* has layers 0 to 2"),
    ],
)
def test_what_are_no_states_of_a_layer_is_refused(built: tuple[Model, Path], states: Any, layer: Any, says: str) -> None:
    model, folder = built
    with pytest.raises(Refusal, match=says):
        inspect.unwrap(TunedLens.logits)(tuned_lens(folder, model), states, layer)  # as where no type checker runs


def test_what_is_not_this_models_or_not_whole_is_refused(built: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = built
    with pytest.raises(Refusal, match="whose weights are not those of other"):
        tuned_lens(folder, wrap(plain(), name="other"))
    with pytest.raises(Refusal, match="there is no run late; name one of main"):
        tuned_lens(folder, model, "late")
    bare = build(model, output=tmp_path / "bare", settings=Settings(lenses=("vocabulary",))).path
    with pytest.raises(Refusal, match="run main has learned none"):
        tuned_lens(bare, model)
    path = folder / "tables" / "translators" / "vocabulary.main.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(Refusal, match="missing or damaged"):
        tuned_lens(folder, model)
    path.write_bytes(whole)
