"""Logits taken apart: exact sums for every family, planted heads, single units against forward passes, controls."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Batch, Refusal, Role, Site
from microtome.model import Model, capture, unembed, wrap
from microtome.store.schemas import TABLES
from microtome.vocabulary.active import Active, active_units
from microtome.vocabulary.attribution import Attribution, Attributions, Part, attributed, why_no_attribution, wiring_of
from microtome.vocabulary.contributions import (
    ANY,
    CONTROL,
    contribution_findings,
    contribution_rows,
    contributions,
    dominant_rows,
    dominant_units,
    unit_contribution_rows,
)
from tests.unit.model.tiny import TINY, batch_for, built, opened

LINEAR = sorted(name for name in TINY if opened(name).family.inputs == "text" and why_no_attribution(opened(name)) is None)


def text(windows: int = 3, tokens: int = 9) -> Batch:
    ids = torch.randint(5, 50, (windows, tokens), generator=torch.Generator().manual_seed(3))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    index = torch.arange(windows)
    return Batch(ids, roles, index, index, index * 0, (index % 2).to(torch.uint8), index * 0, {})


def rows_of(model: Model, batch: Batch, wiring) -> dict[Site, torch.Tensor]:
    return {site: value.flatten(0, 1).float() for site, value in capture(model, batch, wiring.sites).items()}


def logits_of(model: Model, batch: Batch) -> torch.Tensor:
    """Before a soft cap, from the state that the head reads."""
    state = capture(model, batch, [Site("final_norm")])[Site("final_norm")].flatten(0, 1).double()
    logits = state @ model.weights.get("W_U").double()
    return logits + model.weights.get("b_U").double() if model.weights.has("b_U") else logits


def test_most_families_are_linear_behind_the_stream() -> None:
    assert {"gpt2", "gptj", "opt-postnorm", "opt-unnormed", "bloom", "phi", "llama", "olmo2", "gemma2", "mixtral"} <= set(
        LINEAR
    )


@pytest.mark.parametrize("name", LINEAR)
def test_parts_add_up_to_the_logit(name: str) -> None:
    model, batch = opened(name), text()
    wiring = wiring_of(model)
    targets = torch.randint(50, (27, 4), generator=torch.Generator().manual_seed(1))
    found = attributed(wiring, rows_of(model, batch, wiring), targets)
    logits = logits_of(model, batch)
    expected = logits.gather(1, targets) - logits.mean(1, keepdim=True)
    assert found.shape == (27, 4, len(wiring.parts))
    assert torch.allclose(found.double().sum(-1), expected, atol=1e-5 * float(logits.abs().max()))
    if getattr(model.config, "final_logit_softcapping", None) is None:
        own = unembed(model, capture(model, batch, [Site("final_norm")])[Site("final_norm")]).flatten(0, 1)
        assert torch.allclose(own.double(), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bert", "a layer with a nonlinearity"),
        ("modernbert", "a layer with a nonlinearity"),
        ("bert-decoder", "a layer with a nonlinearity"),
        ("llama-headless", "no language-model head"),
        ("llama-classifier", "no language-model head"),
    ],
)
def test_logits_that_are_no_sum_are_refused(name: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        wiring_of(opened(name))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi", "opt-postnorm"])
def test_a_heads_part_is_what_its_output_changes_with_scales_frozen(name: str) -> None:
    """Independently: the head's own vector carried forward through every norm behind it, each with the length it had."""
    model, batch = opened(name), text()
    wiring, layer, head = wiring_of(model), 1, 2
    rows = rows_of(model, batch, wiring)
    weights, shape = model.weights, model.shape
    vector = (rows[Site("z", layer)][:, head] @ weights.get("W_O", layer)[head]).double()

    def through(norm_name: str, place: int | None, entering: torch.Tensor, carried: torch.Tensor) -> torch.Tensor:
        norm = weights.norm(norm_name, place)
        x = entering.double()
        if norm.kind == "layer":
            x, carried = x - x.mean(1, keepdim=True), carried - carried.mean(1, keepdim=True)
        return carried / (x.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.gain.double()

    seen = {
        site: value.flatten(0, 1)
        for site, value in capture(
            model, batch, [Site(n, i) for i in range(3) for n in ("attn_out", "mlp_out", "resid_pre", "resid_post")]
        ).items()
    }
    if shape.norm == "sandwich":
        vector = through("attn_norm_post", layer, seen[Site("attn_out", layer)], vector)
    if shape.norm == "post":
        mids = {
            place: value.flatten(0, 1)
            for place, value in ((i, capture(model, batch, [Site("resid_mid", i)])[Site("resid_mid", i)]) for i in (1, 2))
        }
        for place in (1, 2):
            vector = through("attn_norm_post", place, seen[Site("resid_pre", place)] + seen[Site("attn_out", place)], vector)
            vector = through("mlp_norm_post", place, mids[place] + seen[Site("mlp_out", place)], vector)
    else:
        vector = through("final_norm", None, seen[Site("resid_post", 2)], vector)
    unembedding = weights.get("W_U").double()
    expected = vector @ (unembedding[:, [7]] - unembedding.mean(1, keepdim=True))
    found = attributed(wiring, rows, torch.full((27, 1), 7))[..., wiring.parts.index(Part("head", layer, head))]
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_units_are_their_share_of_the_feed_forward_layer() -> None:
    model, batch = opened("llama"), text()
    units = {1: tuple(range(model.shape.d_mlp))}
    wiring = wiring_of(model, units)
    found = attributed(wiring, rows_of(model, batch, wiring), torch.full((27, 2), 9))
    parts = wiring.parts
    each = found[..., [number for number, part in enumerate(parts) if part.kind == "unit"]].sum(-1)
    assert torch.allclose(each, found[..., parts.index(Part("feed-forward", 1))], atol=1e-5)


def test_units_that_are_not_there_and_units_of_experts_are_refused() -> None:
    with pytest.raises(Refusal, match="there are 24"):
        wiring_of(opened("llama"), {0: (24,)})
    with pytest.raises(Refusal, match="not there at every token"):
        wiring_of(opened("mixtral"), {0: (1,)})


def folded(model: Model, batch: Batch, fold: Attribution) -> Attributions:
    state = fold.init()
    fold.update(state, dict(capture(model, batch, fold.sites)), batch)
    return fold.result(state)


def test_controls_are_targets_of_other_places_of_the_window() -> None:
    model, batch = opened("gpt2"), text(windows=2, tokens=4)
    wiring = wiring_of(model)
    found = folded(model, batch, Attribution(wiring, "next", 1.0, seed=0, draws=400))
    assert found.own.shape == (6, len(wiring.parts))
    rows = rows_of(model, batch, wiring)
    nexts = batch.ids[:, 1:]
    every = attributed(wiring, rows, nexts.repeat_interleave(4, 0)).double().view(2, 4, 3, -1)[:, :3]
    assert torch.allclose(found.own.view(2, 3, -1), every[:, [0, 1, 2], [0, 1, 2]], atol=1e-5)
    others = (every.sum(2) - every[:, [0, 1, 2], [0, 1, 2]]) / 2
    spread = every.std() / (400 * 6) ** 0.5
    assert torch.allclose(found.drawn.mean(0), others.flatten(0, 1).mean(0), atol=float(6 * spread))


def test_padding_changes_nothing() -> None:
    model = opened("llama")
    batch = batch_for(model, (7, 4))
    wiring = wiring_of(model)
    both = folded(model, batch, Attribution(wiring, "next", 1.0, seed=0, draws=3))
    assert list(zip(both.window.tolist(), both.token.tolist(), strict=True)) == [(0, t) for t in range(6)] + [
        (1, t) for t in range(3)
    ]
    alone = Batch(**{**vars(batch), **{n: getattr(batch, n)[1:, :4] for n in ("ids", "roles")},
                     **{n: getattr(batch, n)[1:] for n in ("window", "document", "start", "half", "label")}})  # fmt: skip
    one = folded(model, alone, Attribution(wiring, "next", 1.0, seed=0, draws=3))
    assert torch.allclose(one.own, both.own[6:], atol=1e-5)


def planted() -> Attributions:
    """A copying head: what it writes is the next token's own vector; all other heads write nothing."""
    module = built("gpt2")
    with torch.no_grad():
        for block in module.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
    model = wrap(module, name="planted")
    batch = text(windows=12, tokens=12)
    wiring = wiring_of(model)
    out = torch.zeros(4, 4, 16)
    out[3] = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0][:4]
    layers = [replace(layer, out=out) if number == 1 else layer for number, layer in enumerate(wiring.layers)]
    fold = Attribution(replace(wiring, layers=tuple(layers)), "next", 1.0, seed=0)
    seen = dict(capture(model, batch, fold.sites))
    unembedding = model.weights.get("W_U").detach()
    following = batch.ids.roll(-1, 1)
    seen[Site("z", 1)] = seen[Site("z", 1)].clone()
    seen[Site("z", 1)][:, :, 3] = unembedding.T[following] @ out[3].T
    state = fold.init()
    fold.update(state, seen, batch)
    return fold.result(state)


def test_a_head_that_writes_the_next_token_is_found() -> None:
    found = contributions(planted())
    number = found.parts.index(Part("head", 1, 3))
    assert float(found.q[number]) < 0.01
    assert float(found.low[number]) > float(found.control[number])
    heads = [n for n, part in enumerate(found.parts) if part.kind == "head"]
    assert max(heads, key=lambda n: float(found.mean[n] - found.control[n])) == number
    assert all(float(found.mean[n]) == 0 for n in heads if n != number)
    finding = contribution_findings(found)[0]
    assert finding["subject"] == "heads.1/3"
    assert "adds to the logit" in finding["sentence"]


def test_groups_are_sums_of_their_parts_and_all_is_the_logit() -> None:
    model, batch = opened("gpt2"), text(windows=6)
    raw = folded(model, batch, Attribution(wiring_of(model, {0: (3,)}), "next", 1.0, seed=0, draws=20))
    found = contributions(raw)
    at = {group: float(found.mean[len(found.parts) + n]) for n, group in enumerate(found.groups)}
    named = {part: float(raw.own[:, n].mean()) for n, part in enumerate(raw.parts)}
    heads = sum(value for part, value in named.items() if part.kind == "head" and part.layer == 2)
    assert at["attention", 2] == pytest.approx(heads + named[Part("attention bias", 2)])
    logits = logits_of(model, batch).view(6, 9, 50)[:, :-1]
    right = logits.gather(2, batch.ids[:, 1:, None])[..., 0] - logits.mean(2)
    assert at["all", None] == pytest.approx(float(right.mean()), abs=1e-5)
    table = contribution_rows(found, "text")
    assert table.schema == TABLES["vocabulary_stats"].schema
    rows = {(row["group"], row["layer"]): row for row in table.to_pylist()}
    assert rows["all", None]["value"] == pytest.approx(at["all", None])
    assert rows["feed-forward", 1]["control_kind"] == CONTROL
    assert rows["feed-forward", 1]["lo"] <= rows["feed-forward", 1]["value"] <= rows["feed-forward", 1]["hi"]
    units = unit_contribution_rows(found, "text").to_pylist()
    assert [row["unit"] for row in units][-1] == "neurons.0/3"
    assert len(units) == 13


def test_one_document_has_no_interval() -> None:
    batch = text()
    batch = Batch(**{**vars(batch), "document": batch.document * 0})
    model = opened("llama")
    found = contributions(folded(model, batch, Attribution(wiring_of(model), "next", 1.0, seed=0, draws=20)))
    assert contribution_rows(found, "text").column("lo").null_count == len(found.groups)
    assert unit_contribution_rows(found, "text").column("lo").null_count == 12


def test_dominant_units_are_those_with_the_longest_sub_updates() -> None:
    model, batch = opened("llama"), text(windows=5)
    folds = active_units(model, "next", 1.0, 0, most=3, ranking="dominant")
    assert set(folds) == {Site("mlp_act", layer) for layer in range(3)}
    active = []
    for site, fold in folds.items():
        state = fold.init()
        fold.update(state, dict(capture(model, batch, [site])), batch)
        active.append(fold.result(state))
    act = capture(model, batch, [Site("mlp_act", 1)])[Site("mlp_act", 1)][:, :-1].flatten(0, 1)
    lengths = (act.abs() * model.weights.get("W_out", 1).norm(dim=1)).topk(3, 1).indices
    mine = torch.where(active[1].units < 0, ~active[1].units, active[1].units)
    assert torch.equal(mine, lengths)
    assert torch.equal(active[1].units < 0, act.gather(1, lengths) < 0)
    often = torch.bincount(lengths.flatten(), minlength=24)
    chosen = dominant_units([active[1]], 1)
    assert int(often[chosen[1][0]]) == int(often.max())
    rows = dominant_rows(active, 4, 24, "text").to_pylist()
    assert len(rows) == 4
    assert (rows[0]["control"], rows[0]["control_kind"]) == (3 / 24, ANY)
    assert all(row["lo"] <= row["value"] <= row["hi"] for row in rows)


def test_dominant_shares_need_ranked_sub_updates() -> None:
    none = torch.zeros(2, dtype=torch.int64)
    largest = Active(Site("mlp_act", 0), "largest", none, none, none, none, none[:, None], none[:, None].float())
    with pytest.raises(AssertionError, match="length of sub-updates"):
        dominant_units([largest], 1)
