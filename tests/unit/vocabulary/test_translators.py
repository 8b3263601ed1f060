"""The tuned lens: known maps recovered, the start kept where nothing helps, files refused, divergences by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from microtome.core import Batch, Refusal, Role, Site
from microtome.model import Model, capture, wrap
from microtome.readout import Tokens, TokenSample
from microtome.store.schemas import TABLES
from microtome.vocabulary.translators import (
    REGRESSED,
    Training,
    Translator,
    compare_lenses,
    divergence,
    head_of,
    lens_findings,
    lens_rows,
    train_translator,
    train_translators,
)
from tests.unit.vocabulary.test_values import plain

WIDTH, VOCAB = 8, 40
LAST = Site("resid_post", 1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


READ = normal(WIDTH, VOCAB, seed=5)


def logits(states: torch.Tensor) -> torch.Tensor:
    return states @ READ


def tokens(site: Site, values: torch.Tensor, last: torch.Tensor, per_document: int = 30) -> Tokens:
    """What a token is to predict is what the last layer says."""
    index = torch.arange(len(values))
    hashes = index * 7919 % 100_003
    return Tokens(site, index, index * 0, index // per_document, (last @ READ).argmax(1), hashes, values)


def related(map_: torch.Tensor, shift: torch.Tensor, rows: int = 900) -> tuple[list[Tokens], torch.Tensor]:
    """Two layers whose states differ by h + h map + shift, and which rows train."""
    early = normal(rows, WIDTH, seed=0) * torch.linspace(0.3, 3, WIDTH) + 1
    last = early + early @ map_ + shift
    samples = [tokens(Site("resid_post", 0), early, last), tokens(LAST, last, last)]
    return samples, samples[0].document % 2 == 0


LONG = Training(steps=400, batch=128, rate=0.3)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_known_affine_map_is_recovered(rank: int | None) -> None:
    map_ = normal(WIDTH, 2, seed=1) @ normal(2, WIDTH, seed=2) / 6
    samples, discover = related(map_, normal(WIDTH, seed=3) / 2)
    how = Training(steps=LONG.steps, batch=LONG.batch, rate=LONG.rate, rank=rank)
    (translator,) = train_translators(samples, discover, logits, how)
    (found,) = compare_lenses(samples, ~discover, logits, [translator])
    assert found.kl.mean > 0.3
    assert found.tuned_kl.mean < 0.01
    assert found.gain.low is not None
    assert found.gain.low > 0.2
    assert found.tuned_kl.other > 10 * found.tuned_kl.mean
    assert found.tuned_loss.loss < found.loss.loss
    assert torch.allclose(translator(samples[0].values), samples[1].values, atol=0.4)


def test_a_shift_alone_cannot_turn() -> None:
    """Rank 0 recovers a shift and not a map."""
    none = torch.zeros(WIDTH, WIDTH)
    how = Training(steps=300, batch=128, rate=0.3, rank=0)
    for map_, reaches in ((none, True), (normal(WIDTH, WIDTH, seed=1) / 4, False)):
        samples, discover = related(map_, normal(WIDTH, seed=3))
        translator = train_translator(samples[0], samples[1], discover, logits, how)
        assert not bool(translator.into.any())
        (found,) = compare_lenses(samples, ~discover, logits, [translator])
        assert (found.tuned_kl.mean < 0.01) is reaches


def test_training_starts_at_the_logit_lens_and_keeps_it_where_nothing_helps() -> None:
    samples, discover = related(normal(WIDTH, WIDTH, seed=1) / 4, normal(WIDTH, seed=3))
    for rank in (None, 3):
        same = train_translator(samples[0], samples[1], discover, logits, Training(steps=0, rank=rank))
        assert torch.equal(same(samples[0].values), samples[0].values)
    equal, discover = related(torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH))
    kept = train_translator(equal[0], equal[1], discover, logits, Training(steps=40))
    assert torch.equal(kept(equal[0].values), equal[0].values)


@pytest.mark.parametrize("rank", [None, 2])
def test_regression_finds_a_map_that_squares_can_see_without_a_step(rank: int | None) -> None:
    map_ = normal(WIDTH, 2, seed=1) @ normal(2, WIDTH, seed=2) / 6
    samples, discover = related(map_, normal(WIDTH, seed=3) / 2)
    how = replace(REGRESSED, steps=0, rank=rank)
    (found,) = compare_lenses(samples, ~discover, logits, list(train_translators(samples, discover, logits, how)))
    assert found.tuned_kl.mean < 0.01 < found.kl.mean
    equal, discover = related(torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH))
    kept = train_translator(equal[0], equal[1], discover, logits, how)
    assert torch.equal(kept(equal[0].values), equal[0].values)


def test_training_depends_on_the_seed_and_on_nothing_else() -> None:
    samples, discover = related(normal(WIDTH, WIDTH, seed=1) / 4, normal(WIDTH, seed=3))
    torch.manual_seed(1)
    one = train_translator(samples[0], samples[1], discover, logits, Training(steps=20))
    torch.manual_seed(2)
    two, three = (train_translator(samples[0], samples[1], discover, logits, Training(steps=20, seed=seed)) for seed in (0, 1))
    assert torch.equal(one.into, two.into)
    assert not torch.equal(one.into, three.into)


def test_tokens_that_confirm_do_not_train() -> None:
    samples, discover = related(normal(WIDTH, WIDTH, seed=1) / 4, normal(WIDTH, seed=3))
    one = train_translator(samples[0], samples[1], discover, logits, Training(steps=20))
    changed = [Tokens(**{**vars(each), "values": torch.where(discover[:, None], each.values, 100.0)}) for each in samples]
    assert torch.equal(one.into, train_translator(changed[0], changed[1], discover, logits, Training(steps=20)).into)


def test_too_few_tokens_are_refused() -> None:
    samples, discover = related(torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH), rows=20)
    with pytest.raises(Refusal, match="cannot be parted"):
        train_translator(samples[0], samples[1], torch.arange(20) == 3, logits, Training(steps=1))
    with pytest.raises(Refusal, match="confirm half"):
        compare_lenses(samples, discover & ~discover, logits, [])


def test_divergences_by_hand() -> None:
    """Two tokens over two words: p = (1/2, 1/2) and (3/4, 1/4), read as (1/4, 3/4) and (3/4, 1/4)."""
    says = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    knows = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    index = torch.arange(2)
    site = Site("resid_post", 0)
    early, last = (Tokens(site, index, index, index, index, index, values) for values in (says, knows))
    found, own = divergence(early, last, lambda states: states)
    p, q = knows.exp().double(), says.exp().double()
    kl = (p[:, None] * (p[:, None] / q[None]).log()).sum(2)
    assert own.tolist() == pytest.approx(kl.diagonal().tolist(), abs=1e-6)
    # the mean over pairs of a token's state and another token's distribution
    assert found.other == pytest.approx(float(kl[0, 1] + kl[1, 0]) / 2, abs=1e-6)
    assert found.low is not None


def batch_of(model: Model) -> Batch:
    ids = torch.randint(5, model.shape.vocab, (8, 12), generator=torch.Generator().manual_seed(0))
    index = torch.arange(8)
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    return Batch(ids, roles, index, index, index * 0, (index % 2).to(torch.uint8), index * 0, {})


def samples_of(model: Model) -> tuple[list[Tokens], torch.Tensor]:
    batch, found = batch_of(model), []
    for layer in range(model.shape.layers):
        fold = TokenSample(Site("resid_post", layer), model.shape.d_model, "next", 1.0, seed=0)
        state = fold.init()
        fold.update(state, dict(capture(model, batch, fold.sites)), batch)
        found.append(fold.result(state))
    return found, found[0].document % 2 == 0


def test_a_model_whose_last_block_is_a_known_map() -> None:
    """All that the last block writes is its output bias: the translator is that shift."""
    module: Any = plain()
    block = module.transformer.h[-1]
    with torch.no_grad():
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        block.mlp.c_proj.bias.copy_(normal(len(block.mlp.c_proj.bias), seed=4))
    model = wrap(module)
    samples, discover = samples_of(model)
    before = samples[-2:]
    (translator,) = train_translators(before, discover, head_of(model), Training(steps=200, batch=64, rate=0.3, rank=0))
    (found,) = compare_lenses(before, ~discover, head_of(model), [translator])
    assert found.tuned_kl.mean < 0.1 * found.kl.mean


def test_rows_and_findings() -> None:
    samples, discover = related(normal(WIDTH, WIDTH, seed=1) / 4, normal(WIDTH, seed=3))
    found = compare_lenses(samples, ~discover, logits, list(train_translators(samples, discover, logits, LONG)))
    table = lens_rows(found, "next_token", "text")
    assert table.schema == TABLES["layer_loss"].schema
    rows = {row["objective"]: row for row in table.to_pylist()}
    assert list(rows) == ["kl_gain", "kl_model", "kl_model_tuned", "next_token_confirm", "next_token_tuned"]
    assert rows["kl_gain"]["loss"] == pytest.approx(rows["kl_model"]["loss"] - rows["kl_model_tuned"]["loss"])
    assert all(row["lo"] <= row["loss"] <= row["hi"] and row["control"] is not None for row in rows.values())
    (finding,) = lens_findings(found)
    assert finding["subject"] == "resid_post.0"
    assert "helps in 1 of 1 layers" in finding["sentence"]
    same = Translator(Site("resid_post", 0), torch.zeros(WIDTH, WIDTH), None, torch.zeros(WIDTH))
    assert lens_findings(compare_lenses(samples, ~discover, logits, [same])) == []
