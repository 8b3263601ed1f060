"""Losses with some units kept: keeping all changes nothing, keeping none is an ablation, and controls are worse where units are sparse."""

import pytest
import torch
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.intervene import Chosen, Edit, Set, edited, final_states
from microtome.intervene.tokens import OfRole
from microtome.model import Model, capture, unembed
from microtome.neurons.basis import Neurons
from microtome.neurons.kept import WAYS, Drawn, Largest, kept_losses, largest_kept
from microtome.neurons.rows import token_rows
from microtome.neurons.sparsity import SparseActivity, Sparsity
from microtome.neurons.statistics import write_norms
from tests.toys import toy_decoder, toy_encoder
from tests.unit.model.tiny import opened

TEXTS = ["the river holds the stone", "the garden finds a letter by the engine", "a stone"]


def batch_of(model: Model) -> Batch:
    return prompt_batch(model.tokenizer, TEXTS)


def sparsity_of(model: Model, batch: Batch, layer: int) -> Sparsity:
    fold = SparseActivity(layer, write_norms(model.weights, Neurons(layer, model.shape.d_mlp)).float())
    state = fold.init()
    site = fold.sites[0]
    fold.update(state, {site: capture(model, batch, [site])[site].detach()}, batch)
    return fold.result(state)


def chosen(rows: Tensor, begin: int = 0) -> Chosen:
    place = torch.arange(begin, begin + len(rows))
    return Chosen(place * 0, place, place * 0, None, rows.shape[1], (1, begin + len(rows)))


def test_the_largest_by_what_they_write_are_kept_at_either_end() -> None:
    rows = torch.tensor([[1.0, -3, 2, 0.5], [2, 2, 2, 0]])
    lengths = torch.tensor([1.0, 1, 1, 10])
    assert Largest(2, lengths).of(rows, chosen(rows)).tolist() == [[0, -3, 0, 0.5], [2, 2, 0, 0]]
    assert torch.equal(Largest(4, lengths).of(rows, chosen(rows)), rows)
    assert not Largest(0, lengths).of(rows, chosen(rows)).any()


def test_drawn_units_are_of_the_token_whatever_the_batch() -> None:
    rows = torch.ones(200, 40)
    whole = Drawn(10).of(rows, chosen(rows))
    assert (whole.sum(1) == 10).all()
    assert torch.equal(Drawn(10).of(rows[50:], chosen(rows[50:], 50)), whole[50:])
    assert not torch.equal(Drawn(10, 1).of(rows, chosen(rows)), whole)
    assert (whole.mean(0) - 0.25).abs().max() < 0.12


def test_losses_are_those_of_the_edited_model() -> None:
    model = toy_decoder()
    batch = batch_of(model)
    tokens = OfRole(CONTENT)
    none, all_off = [], [Edit(Site("mlp_act", layer), Set(0.0), tokens=tokens) for layer in range(3)]
    found = kept_losses(model, [batch.take(torch.tensor([row])) for row in range(3)], lambda _: [none, all_off])
    counted = batch.counted(CONTENT)
    counted[:, :-1] &= counted[:, 1:]
    counted[:, -1] = False
    targets = batch.ids.roll(-1, 1)[counted]
    losses = []
    for edits in ([], all_off):
        with edited(model, batch, edits), torch.inference_mode():
            logits = unembed(model, final_states(model, batch)[counted])
        losses.append(float(torch.nn.functional.cross_entropy(logits.double(), targets)))
    assert found.clean == pytest.approx(losses[0], abs=1e-5)
    assert found.change.tolist() == pytest.approx([0, losses[1] - losses[0]], abs=1e-5)
    assert found.kl.tolist()[0] == pytest.approx(0, abs=1e-9)
    assert float(found.kl[1]) > 0.01
    assert (found.tokens, found.documents) == (int(counted.sum()), 2)  # "a stone" has no counted token before another
    assert float(found.low[1]) <= float(found.change[1]) <= float(found.high[1])


def test_a_model_without_a_head_turns_its_states() -> None:
    model = opened("bert-headless")
    batch = Batch(**_ids(), extra={})
    half = [Edit(Site("mlp_act", 0), Set(0.0))]
    found = kept_losses(model, [batch], lambda _: [[], half])
    assert torch.isnan(torch.tensor(found.clean))
    assert found.kl.isnan().all()
    assert float(found.change[0]) == pytest.approx(0, abs=1e-9)
    assert float(found.change[1]) > 1e-4


def _ids() -> dict[str, Tensor]:
    ids = torch.randint(4, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    one = torch.arange(2)
    roles = torch.full((2, 6), int(Role.CONTENT), dtype=torch.uint8)
    return {"ids": ids, "roles": roles, "window": one, "document": one, "start": one * 0, "half": roles[:, 0] * 0, "label": one}


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder])
def test_a_block_whose_tokens_use_few_units_keeps_its_loss(make) -> None:
    model = make()
    batch = batch_of(model)
    if model.head is not None and model.head.kind == "masked":
        hidden = torch.zeros_like(batch.ids, dtype=torch.bool)
        hidden[:, 1::2] = batch.counted(CONTENT)[:, 1::2]
        masked = batch.ids.masked_fill(hidden, int(model.tokenizer.mask_token_id))  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
        batch = type(batch)(**{**vars(batch), "ids": masked, "targets": batch.ids.masked_fill(~hidden, -100)})
    layers = [(layer, sparsity_of(model, batch, layer)) for layer in range(model.shape.layers)]
    target = "masked" if batch.targets is not None else "next"
    found = largest_kept(model, [batch], layers, (0, 10, 40), target=target)
    assert found.kept == (0, 10, 40)
    ends = torch.stack([found.of(way) for way in WAYS])
    torch.testing.assert_close(ends[:, 2], torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(ends[:, 0], ends[:1, 0].expand(3))  # none kept is none kept
    kl = found.losses.kl.reshape(3, 3)[:, 1]
    assert float(kl[0]) < float(kl[1]) < float(kl[2])


def test_rows_are_of_counted_tokens_and_experts_are_refused() -> None:
    model = toy_decoder()
    batch = batch_of(model)
    site = Site("mlp_in", 1)
    found = token_rows(model, [batch.take(torch.tensor([0])), batch.take(torch.tensor([1, 2]))], [site])
    counted = batch.counted(CONTENT)
    assert torch.equal(found.id, batch.ids[counted])
    assert torch.equal(found.window, batch.window[:, None].expand_as(batch.ids)[counted])
    torch.testing.assert_close(found.values[site], capture(model, batch, [site])[site][counted].detach(), atol=1e-5, rtol=1e-4)
    mixture = opened("mixtral")
    tokens = Batch(**_ids(), extra={})
    with pytest.raises(Refusal, match="the router's choice"):
        token_rows(mixture, [tokens], [Site("mlp_act", 0)])
    assert isinstance(capture(mixture, tokens, [Site("mlp_act", 0)])[Site("mlp_act", 0)], ExpertRows)
    with pytest.raises(Refusal, match="none of the tokens"):
        token_rows(model, [batch], [site], roles=frozenset({Role.SPECIAL}))


def test_no_token_with_a_target_is_refused() -> None:
    model = toy_decoder()
    with pytest.raises(Refusal, match="no token has a target"):
        kept_losses(model, [prompt_batch(model.tokenizer, ["a"])], lambda _: [[]])
