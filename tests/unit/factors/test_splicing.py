"""Splices of what is known: of the states themselves all is recovered, of the mean nothing, and with the rest added again the model is the clean one."""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Role, Site
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder
from microtome.factors.evaluation import Candidate
from microtome.factors.scaling import Scaling, identity
from microtome.factors.splicing import MEAN, ZERO, remade, spliced
from microtome.intervene import Edit, OfRole, Set, edited
from microtome.model import Model, capture, forward
from tests import toys

WIDTH = 24
SITES = (Site("resid_pre", 1), Site("resid_post", 0), Site("mlp_out", 1))


def batches(model: Model, windows: int = 12, tokens: int = 20) -> list[Batch]:
    """Windows of what the model itself says is next, or hidden in a fifth of the places, so that changes do harm; the last is shorter."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, model.shape.vocab, (windows, tokens), generator=generator)
    for place in range(1, tokens if model.shape.causal else 0):
        with torch.inference_mode():
            says = model.module(input_ids=ids[:, :place]).logits[:, -1].softmax(-1)
        ids[:, place] = torch.multinomial(says, 1, generator=generator)[:, 0]
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST if model.shape.causal else Role.SPECIAL)
    roles[-1, 15:] = int(Role.PAD)
    window = torch.arange(windows)
    zeros = torch.zeros_like(window)
    hidden = (torch.rand(ids.shape, generator=generator) < 0.2) & (roles == int(Role.CONTENT))
    seen, targets = ids, None
    if not model.shape.causal:
        seen = ids.masked_fill(hidden, 4)
        with torch.inference_mode():
            says = model.module(input_ids=seen, attention_mask=(roles != int(Role.PAD)).long()).logits.softmax(-1)
        drawn = torch.multinomial(says.flatten(0, 1), 1, generator=generator).view(ids.shape)
        targets = drawn.masked_fill(~hidden, -100)
    whole = Batch(seen, roles, window, window, zeros, (window % 2).to(torch.uint8), zeros - 1, extra={}, targets=targets)
    return [whole.take(window[:8]), whole.take(window[8:])]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


def candidate(name: str, site: Site, directions: Tensor, coder: Coder, offset: Tensor | None = None) -> Candidate:
    made = torch.zeros(1, WIDTH) if offset is None else offset[None]
    return Candidate(name, Dictionary(name, "shared", (site,), (site,), coder, identity(1, WIDTH), directions[None], made))


def whole(site: Site) -> Candidate:
    """States are made of all coordinates, each with both signs."""
    signed = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return candidate("states", site, signed, Encoder(signed.T[None].clone(), torch.zeros(48), Above(torch.zeros(48))))


def constant(site: Site, name: str, value: Tensor) -> Candidate:
    """Nothing is ever active, so that all states are made the offset."""
    silent = Encoder(torch.zeros(1, WIDTH, 2), torch.zeros(2), Above(torch.zeros(2)))
    return candidate(name, site, torch.eye(WIDTH)[:2], silent, value)


def coarse(site: Site) -> Candidate:
    drawn = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(5))
    return candidate("coarse", site, torch.nn.functional.normalize(drawn, dim=1), Greedy(4))


def mean_of(model: Model, site: Site, half: Half) -> Tensor:
    found = [
        capture(model, each, [site])[site][each.counted(CONTENT) & (each.half == half)[:, None]] for each in batches(model)
    ]
    return torch.cat(found).mean(0)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_states_recover_all_and_the_mean_nothing(model: Model, site: Site) -> None:
    mean = mean_of(model, site, Half.DISCOVER)
    candidates = [whole(site), constant(site, "their mean", mean), constant(site, "nothing", torch.zeros(WIDTH)), coarse(site)]
    found = spliced(model, batches(model), site, candidates, mean, over="windows")
    assert found["states"]["loss_added"].value == pytest.approx(0, abs=1e-5)
    assert found["states"]["kl"].value == pytest.approx(0, abs=1e-5)
    for name, twin in (("their mean", MEAN), ("nothing", ZERO)):
        for stat in ("loss", "kl"):
            assert found[name][stat].value == pytest.approx(found[twin][stat].value, abs=1e-5), (name, stat)
    for short, ablated in (("zero", "nothing"), ("mean", "their mean")):
        kind = f"loss_recovered_{short}"
        assert found["states"][kind].value == pytest.approx(1, abs=1e-3)
        assert found[ablated][kind].value == pytest.approx(0, abs=1e-3)
    assert found["coarse"]["kl"].value > 10 * abs(found["states"]["kl"].value)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_with_the_rest_added_again_the_model_is_the_clean_one(model: Model, site: Site) -> None:
    for batch in batches(model):
        states = capture(model, batch, [site])
        made = remade(coarse(site), states, site, batch.counted(CONTENT), "kept")
        clean = forward(model, batch).logits
        with edited(model, batch, [Edit(site, Set(made), tokens=OfRole(CONTENT))]):
            assert torch.equal(forward(model, batch).logits, clean)
        made = remade(coarse(site), states, site, batch.counted(CONTENT))
        with edited(model, batch, [Edit(site, Set(made), tokens=OfRole(CONTENT))]):
            assert not torch.allclose(forward(model, batch).logits, clean, atol=1e-3)


def test_losses_are_those_of_the_models_own_logits(model: Model) -> None:
    """An independent computation: the edit by hand, cross-entropy by torch, tokens of the confirm half alone."""
    site, found = SITES[0], {"loss": 0.0, "clean": 0.0, "kl": 0.0, "rows": 0}
    for batch in batches(model):
        made = remade(coarse(site), capture(model, batch, [site]), site, batch.counted(CONTENT))
        clean = forward(model, batch).logits.double().log_softmax(-1)
        with edited(model, batch, [Edit(site, Set(made), tokens=OfRole(CONTENT))]):
            after = forward(model, batch).logits.double().log_softmax(-1)
        for row, place, target in predicted(model, batch):
            found["loss"] -= float(after[row, place, target])
            found["clean"] -= float(clean[row, place, target])
            found["kl"] += float((clean[row, place].exp() * (clean[row, place] - after[row, place])).sum())
            found["rows"] += 1
    stats = spliced(model, batches(model), site, [coarse(site)], torch.zeros(WIDTH))["coarse"]
    assert stats["loss"].value == pytest.approx(found["loss"] / found["rows"], abs=1e-5)
    assert stats["loss_clean"].value == pytest.approx(found["clean"] / found["rows"], abs=1e-5)
    assert stats["kl"].value == pytest.approx(found["kl"] / found["rows"], abs=1e-5)


def predicted(model: Model, batch: Batch) -> Iterator[tuple[int, int, int]]:
    for row in (batch.half == Half.CONFIRM).nonzero()[:, 0].tolist():
        for place in range(batch.ids.shape[1]):
            if batch.roles[row, place] != int(Role.CONTENT):
                continue
            if batch.targets is not None and batch.targets[row, place] != -100:
                yield row, place, int(batch.targets[row, place])
            inside = place + 1 < batch.ids.shape[1] and batch.roles[row, place + 1] == int(Role.CONTENT)
            if model.shape.causal and inside:
                yield row, place, int(batch.ids[row, place + 1])


def test_a_transcoder_is_spliced_where_it_writes() -> None:
    """One that makes of what goes into a block what the block makes of it: 0 by 0 of a block whose output is 0."""
    model = toys.toy_decoder()
    read, written = Site("mlp_in", 1), Site("mlp_out", 1)
    silent = Encoder(torch.zeros(1, WIDTH, 2), torch.zeros(2), Above(torch.zeros(2)))
    skip = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)) / WIDTH
    dictionary = Dictionary(
        "across", "transcoder", (read,), (written,), silent, Scaling(torch.zeros(1, WIDTH), torch.ones(1)),
        torch.eye(WIDTH)[None, :2], torch.zeros(1, WIDTH), skip=skip,
    )  # fmt: skip
    batch = batches(model)[0]
    states = capture(model, batch, [read, written])
    made = remade(Candidate("across", dictionary), states, written, batch.counted(CONTENT))
    assert torch.allclose(made[batch.counted(CONTENT)].float(), (states[read] @ skip)[batch.counted(CONTENT)], atol=1e-5)
    assert spliced(model, [batch], written, [Candidate("across", dictionary)], torch.zeros(WIDTH))["across"]["kl"].value > 0


def test_there_are_intervals_over_enough_groups() -> None:
    model = toys.toy_decoder()
    many = batches(model, windows=40)
    found = spliced(model, many, SITES[0], [coarse(SITES[0])], torch.zeros(WIDTH), over="windows")["coarse"]["kl"]
    assert found.low < found.value < found.high
    assert math.isnan(spliced(model, batches(model), SITES[0], [], torch.zeros(WIDTH))[ZERO]["kl"].low)


def test_nothing_is_recovered_of_an_ablation_without_harm() -> None:
    """What is hidden is what the ablated model says, and not the clean one."""
    model, site = toys.toy_encoder(), SITES[0]
    batch = batches(model)[0]
    with edited(model, batch, [Edit(site, Set(0.0), tokens=OfRole(CONTENT))]):
        most = forward(model, batch).logits.argmax(-1)
    assert batch.targets is not None
    told = dataclasses.replace(batch, targets=torch.where(batch.targets == -100, -100, most))
    found = spliced(model, [told], site, [coarse(site)], torch.zeros(WIDTH))
    assert found[ZERO]["loss_added"].value < 0
    assert math.isnan(found["coarse"]["loss_recovered_zero"].value)
    assert "no harm" in found["coarse"]["loss_recovered_zero"].undefined


def test_massive_tokens_are_left_alone() -> None:
    """Where all are massive, nothing is replaced, by no candidate and no ablation."""
    model, site = toys.toy_decoder(), SITES[0]
    wary = Scaling(torch.zeros(1, WIDTH), torch.ones(1), torch.zeros(1))
    timid = Candidate("timid", dataclasses.replace(coarse(site).dictionary, scaling=wary))
    found = spliced(model, batches(model), site, [coarse(site), timid], torch.zeros(WIDTH))
    assert [of["kl"].value for of in found.values()] == pytest.approx([0] * 4, abs=1e-7)


def test_what_cannot_be_spliced_is_refused(model: Model) -> None:
    mean, (first, _) = torch.zeros(WIDTH), batches(model)
    with pytest.raises(Refusal, match="same name"):
        spliced(model, [first], SITES[0], [coarse(SITES[0])] * 2, mean)
    with pytest.raises(Refusal, match="name one of these"):
        spliced(model, [first], SITES[0], [coarse(SITES[1])], mean)
    with pytest.raises(Refusal, match="confirm half"):
        spliced(model, [dataclasses.replace(first, half=torch.zeros_like(first.half))], SITES[0], [], mean)
    if not model.shape.causal:
        with pytest.raises(Refusal, match="hidden from it"):
            spliced(model, [dataclasses.replace(first, targets=None)], SITES[0], [], mean)
