"""Rows that are kept are the model's own states, however the stream is cut; what keeping changes is measured and bounded."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microtome.capture import MAIN, Results, Run, Silent, run_stages
from microtome.capture.lens import Rows as Tables
from microtome.capture.lens import Stage
from microtome.core import CONTENT, Half, Refusal, RowFold, Site
from microtome.corpus import Corpus, Cutting, prepare
from microtome.factors.harvest import Form, Harvest, Harvested, Live, Rows, of_half, scaling_of, usual
from microtome.model import Model, inputs_of
from microtome.store import stream_table
from tests import toys

SITES = (Site("resid_pre", 2), Site("resid_pre", 0))


class _Lens:
    """Keeps rows, and nothing else."""

    name = "rows"

    def __init__(self, harvest: Harvest) -> None:
        self.harvest = harvest

    def stages(self, run: Run) -> tuple[Stage, ...]:
        return (Stage(MAIN.order, MAIN.name, unit=3),)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> dict[str, RowFold]:
        return {"rows": self.harvest}

    def tables(self, run: Run, results: Results) -> dict[str, Tables]:
        return {}

    def absent(self, run: Run) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def decoder() -> Model:
    return toys.toy_decoder()


def corpus_of(model: Model, folder: Path) -> Corpus:
    sink = lambda table, batches: stream_table(folder, table, "corpus", batches)  # noqa: E731
    cutting = Cutting(window=24, shortest=8)
    return prepare(toys.toy_texts(), model.tokenizer, sink, "main", cutting=cutting, vocab=model.shape.vocab)


def harvested(model: Model, corpus: Corpus, harvest: Harvest, folder: Path) -> Harvested:
    lens = _Lens(harvest)
    run = Run("main", model, corpus, seed=0, depth="quick")
    found = run_stages(run, [lens], folder, Silent()).of(lens.stages(run)[0], "rows")
    assert isinstance(found, Harvested)
    return found


def whole(source: Iterable[Rows]) -> Rows:
    """All rows, by window and position: a batch may bring its windows in any order."""
    rows = list(source)
    joined = Rows(*(torch.cat([getattr(each, name) for each in rows]) for name in vars(rows[0])))
    return joined.take((joined.window * 1000 + joined.position).argsort())


def expected(model: Model, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Hugging Face's own hidden states of all content tokens, and the tokens."""
    (batch,) = corpus.batches(range(corpus.windows), 1 << 20)
    with torch.inference_mode():
        states = model.module(**inputs_of(model, batch), output_hidden_states=True).hidden_states
    order = batch.window.argsort()
    counted = batch.counted(CONTENT)[order]
    return torch.stack([states[2][order][counted], states[0][order][counted]], 1), batch.ids[order][counted]


def test_rows_are_the_states_of_all_content_tokens(decoder: Model, tmp_path: Path) -> None:
    corpus = corpus_of(decoder, tmp_path)
    found = harvested(decoder, corpus, Harvest(SITES), tmp_path / "work")
    assert len(found.parts) > 3
    rows, (states, ids) = whole(found.rows(0)), expected(decoder, corpus)
    assert torch.equal(rows.id, ids)
    assert found.count() == len(ids)
    assert rows.states.dtype == torch.bfloat16
    torch.testing.assert_close(rows.states.float(), states, rtol=1 / 256, atol=1e-4)
    assert int(rows.half.min()) == Half.DISCOVER
    assert int(rows.half.max()) == Half.CONFIRM


@pytest.mark.parametrize(("form", "bound"), [("bfloat16", 1 / 256), ("int8", 1 / 254)])
def test_what_keeping_changes_is_bounded_and_measured(decoder: Model, tmp_path: Path, form: Form, bound: float) -> None:
    corpus = corpus_of(decoder, tmp_path)
    found = harvested(decoder, corpus, Harvest(SITES, form=form), tmp_path / "work")
    states, _ = expected(decoder, corpus)
    off = whole(found.rows(0)).states.float() - states
    assert bool((off.abs() <= bound * 1.001 * states.abs().amax(-1, keepdim=True) + 1e-5).all())
    share = float(off.square().sum() / states.square().sum())
    assert found.noise() == pytest.approx(share, rel=0.05)
    assert 1e-7 < share < 1e-3


def test_a_sample_is_the_same_tokens_in_any_cut(decoder: Model, tmp_path: Path) -> None:
    corpus = corpus_of(decoder, tmp_path)
    harvest = Harvest(SITES, rate=0.3, seed=5)
    kept = whole(harvested(decoder, corpus, harvest, tmp_path / "work").rows(0))
    streamed = whole(Live(harvest, decoder, corpus).rows(1))
    assert torch.equal(streamed.id, kept.id)
    torch.testing.assert_close(streamed.states.float(), kept.states.float(), rtol=0.01, atol=0.01)
    assert 0.2 < len(kept.id) / corpus.tokens < 0.4


def test_turns_have_orders_of_their_own_and_halves_can_be_told_apart(decoder: Model, tmp_path: Path) -> None:
    corpus = corpus_of(decoder, tmp_path)
    found = harvested(decoder, corpus, Harvest(SITES), tmp_path / "work")
    keys = [torch.cat([rows.window * 100 + rows.position for rows in found.rows(turn)]) for turn in (0, 1, 2)]
    assert not torch.equal(keys[1], keys[2])
    assert all(torch.equal(key.sort().values, keys[0].sort().values) for key in keys)
    discover = torch.cat([rows.half for rows in of_half(found.rows, Half.DISCOVER)(1)])
    confirm = torch.cat([rows.half for rows in of_half(found.rows, Half.CONFIRM)(1)])
    assert discover.unique().tolist() == [Half.DISCOVER]
    assert len(discover) + len(confirm) == found.count()
    assert len(confirm) > 0


@pytest.mark.parametrize("normalisation", ["none", "mean", "mean+rms"])
def test_scaled_states_have_no_mean_and_the_size_of_their_width(decoder: Model, tmp_path: Path, normalisation: str) -> None:
    found = harvested(decoder, corpus_of(decoder, tmp_path), Harvest(SITES), tmp_path / "work")
    scaling = scaling_of(found.rows, normalisation)  # type: ignore[arg-type]
    states = whole(found.rows(0)).states.float()
    for place in range(2):
        scaled = scaling.apply(states[:, place], place)
        torch.testing.assert_close(scaling.undo(scaled, place), states[:, place], rtol=1e-4, atol=1e-5)
        if normalisation == "none":
            assert torch.equal(scaled, states[:, place])
            continue
        assert float(scaled.mean(0).abs().max()) < 1e-4
        square = float(scaled.square().sum(1).mean())
        assert (square == pytest.approx(decoder.shape.d_model, rel=1e-4)) == (normalisation == "mean+rms")


def test_states_that_are_all_the_same_are_refused() -> None:
    one = torch.zeros(4, dtype=torch.int64)
    rows = Rows(torch.ones(4, 1, 3), one, one, one, one.to(torch.uint8))
    with pytest.raises(Refusal, match="all the same"):
        scaling_of(lambda _: iter([rows]), "mean+rms")
    with pytest.raises(Refusal, match="there are none"):
        scaling_of(lambda _: iter([]), "mean")
    with pytest.raises(Refusal, match="there are 1 of them"):
        scaling_of(lambda _: iter([rows.take(torch.tensor([0]))]), "mean")


def test_massive_states_decide_about_no_size_and_are_left_out() -> None:
    states = torch.randn(400, 2, 6, generator=torch.Generator().manual_seed(1)) + torch.arange(6)
    plain = scaling_of(lambda _: iter([rows_with(states)]), "mean+rms")
    states[7, 1] *= 1e4
    scaling = scaling_of(lambda _: iter([rows_with(states)]), "mean+rms")
    torch.testing.assert_close(scaling.size, plain.size, rtol=0.02, atol=0)
    torch.testing.assert_close(scaling.centre, plain.centre, rtol=0, atol=0.02)
    (left,) = usual(lambda _: iter([rows_with(states)]), scaling)(1)
    assert left.id.tolist() == [row for row in range(400) if row != 7]


def rows_with(states: Tensor) -> Rows:
    numbers = torch.arange(len(states))
    return Rows(states, numbers, numbers, numbers, torch.zeros(len(states), dtype=torch.uint8))


def test_shares_together_have_every_row_once(decoder: Model, tmp_path: Path) -> None:
    corpus = corpus_of(decoder, tmp_path)
    found = harvested(decoder, corpus, Harvest(SITES), tmp_path / "work")
    every = whole(found.rows(0))
    for source in (found, Live(found.harvest, decoder, corpus)):
        shares = [whole(source.share(number, 3).rows(1)) for number in range(3)]
        joined = whole(shares)
        assert min(len(share.id) for share in shares) > 0
        assert torch.equal(joined.id, every.id)
        assert torch.equal(joined.window, every.window)
        torch.testing.assert_close(joined.states.float(), every.states.float(), rtol=0.01, atol=0.01)
    assert len(found.share(1, 3).parts) == len(range(1, len(found.parts), 3))
    assert [*found.share(1, 3).parts[0:1]][0].keys() == found.parts[1].keys()
    with pytest.raises(Refusal, match=f"the text was read in {len(found.parts)} parts"):
        found.share(0, len(found.parts) + 1)
