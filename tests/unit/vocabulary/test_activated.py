"""Activated parameters and states: against Python sets for every group, a planted agreement, heads, experts and the encoder."""

from typing import Any

import pytest
import torch
from scipy import stats

from microtome.core import Batch, ExpertRows, Role, Site
from microtome.model import Model, capture, wrap
from microtome.readout import Tokens, TokenSample, output_reader
from microtome.store.schemas import TABLES
from microtome.vocabulary.activated import (
    CONTROL,
    Activated,
    activated,
    activated_findings,
    activated_rows,
    state_reader,
    state_tokens,
)
from microtome.vocabulary.active import Active, ActiveUnits, active_units
from microtome.vocabulary.parameters import block_of, group_named
from microtome.vocabulary.subject import Subject
from tests.toys import bert, llama
from tests.unit.vocabulary.test_values import gated, mixture, plain, randomised


def text(vocab: int, windows: int = 4, tokens: int = 8) -> Batch:
    ids = torch.randint(5, vocab, (windows, tokens), generator=torch.Generator().manual_seed(3))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    index = torch.arange(windows)
    return Batch(ids, roles, index, index // 2, index * 0, (index % 2).to(torch.uint8), index * 0, {})


def subject_of(model: Model) -> Subject:
    """Weights as they are stored, all tokens."""
    reader = output_reader(model.weights, folding="raw")
    return Subject("toy", model.weights, model.shape, "raw", reader, reader, [])


def sampled(model: Model, batch: Batch, folds: dict[Site, Any], rate: float = 1.0) -> tuple[list[Active], list[Tokens]]:
    def result(fold: Any) -> Any:
        state = fold.init()
        fold.update(state, dict(capture(model, batch, fold.sites)), batch)
        return fold.result(state)

    sites = [Site("resid_post", layer) for layer in range(model.shape.layers)]
    return [result(fold) for fold in folds.values()], [
        result(TokenSample(site, model.shape.d_model, "next", rate, seed=0)) for site in sites
    ]


def top(scores: torch.Tensor, k: int) -> list[set[int]]:
    return [set(row) for row in scores.double().sort(dim=1, descending=True, stable=True).indices[:, :k].tolist()]


def dense(
    model: Model, batch: Batch, group: str, layer: int, k: int, last: bool = False, dominant: bool = False
) -> list[float]:
    """R_k of every token that has a next one, from forward passes and sets."""
    site, most = {"W_in": "mlp_pre", "W_gate": "mlp_pre", "W_up": "mlp_pre_linear", "W_out": "mlp_act"}.get(group, "z"), 5
    end = model.shape.layers - 1
    state = Site("resid_post", end if last else layer)
    seen = capture(model, batch, [Site(site, layer), state])
    h = seen[state][:, :-1].flatten(0, 1)
    norm = getattr(model.trunk, "norm", getattr(model.trunk, "ln_f", None))
    h = h if norm is None else norm(h)
    embedding = model.weights.get("W_U")
    coefficients = seen[Site(site, layer)].flatten(2)[:, :-1].flatten(0, 1)
    vectors = block_of(model.weights, group_named(group), layer, folding="raw").rows
    keys = coefficients.abs() * vectors.norm(dim=1) if dominant else coefficients
    units = keys.sort(dim=1, descending=True, stable=True).indices[:, :most]
    if group == "W_V":
        share = model.shape.heads // model.shape.heads_kv
        units = units // model.shape.d_head // share * model.shape.d_head + units % model.shape.d_head
        assert int(units.max()) < len(vectors)
    scores, found = vectors @ embedding, []
    for row, (own, mine) in enumerate(zip(top(h @ embedding, k), units.tolist(), strict=True)):
        union = set()
        for unit in mine:
            turned = dominant and float(coefficients[row, unit]) < 0
            union |= top((-scores if turned else scores)[[unit]], k)[0]
        found.append(len(own & union) / k)
    return found


MODELS = {
    "gated": lambda: wrap(gated()),
    "plain": lambda: wrap(plain()),
    "llama": lambda: wrap(llama()),
    "bert": lambda: wrap(bert()),
}


@pytest.mark.parametrize("name", MODELS)
def test_overlaps_are_those_of_sets(name: str) -> None:
    model = MODELS[name]()
    batch = text(model.shape.vocab)
    active, states = sampled(model, batch, active_units(model, "next", 1.0, 0))
    found = list(activated(subject_of(model), active, states, ks=(7, 20), draws=20))
    groups = {"W_gate", "W_up", "W_out", "W_V", "W_O"} if model.shape.gated else {"W_in", "W_out", "W_V", "W_O"}
    assert {each.group for each in found} == groups
    assert len(found) == len(groups) * model.shape.layers * 4
    for each in found:
        expected = dense(model, batch, each.group, each.layer, each.k, last=each.state == "last")
        assert each.overlap.tolist() == pytest.approx(expected), (each.group, each.layer, each.k, each.state)


def test_dominant_sub_updates_count_with_their_sign() -> None:
    model = wrap(gated())
    batch = text(model.shape.vocab)
    active, states = sampled(model, batch, active_units(model, "next", 1.0, 0, ranking="dominant"))
    assert any(bool((each.units < 0).any()) for each in active)
    for each in activated(subject_of(model), active, states, ks=(20,), draws=20):
        expected = dense(model, batch, "W_out", each.layer, 20, last=each.state == "last", dominant=True)
        assert each.overlap.tolist() == pytest.approx(expected)
        assert each.stat == ("activated_last_dominant_20" if each.state == "last" else "activated_dominant_20")


def test_others_are_all_other_tokens_and_draws_lie_about_them() -> None:
    model = wrap(gated())
    batch = text(model.shape.vocab)
    subject = subject_of(model)
    active, states = sampled(model, batch, active_units(model, "next", 1.0, 0))
    each = next(e for e in activated(subject, active, states, ks=(20,), draws=500) if (e.group, e.layer) == ("W_out", 1))
    of = next(a for a in active if a.site == Site("mlp_act", 1))
    own = [set(row) for row in state_tokens(subject.weights, states[1], state_reader(subject), 20).tolist()]
    lists = top(block_of(model.weights, group_named("W_out"), 1, folding="raw").rows @ model.weights.get("W_U"), 20)
    unions = [set().union(*(lists[unit] for unit in row)) for row in of.units.tolist()]
    count = len(own)
    expected = [sum(len(own[i] & unions[j]) for j in range(count) if j != i) / 20 / (count - 1) for i in range(count)]
    assert each.others.tolist() == pytest.approx(expected)
    assert float(each.draws.mean()) == pytest.approx((each.control * (count - 1) + each.mean) / count, abs=0.003)


def test_states_are_read_through_the_last_norm() -> None:
    """Its bias counts, too: it is the model's own order of tokens."""
    model = randomised(wrap(plain()), seed=3)
    batch = text(model.shape.vocab)
    _, states = sampled(model, batch, {})
    subject = subject_of(model)
    with torch.no_grad():
        model.trunk.ln_f.bias.copy_(torch.randn(len(model.trunk.ln_f.bias), generator=torch.Generator().manual_seed(1)))
    fresh = sampled(model, batch, {})[1][-1]
    logits = model.module(input_ids=batch.ids).logits[:, :-1].flatten(0, 1)
    assert [set(row) for row in state_tokens(subject.weights, fresh, state_reader(subject), 9).tolist()] == top(logits, 9)


def agreeing(noise: float) -> Activated:
    """Each token activates the value that is the vector of what its state says, or another one."""
    model = wrap(gated())
    with torch.no_grad():
        model.weights.get("W_out", 0).copy_(torch.nn.functional.normalize(model.weights.get("W_U").T[20:60], dim=1))
    count, generator = 400, torch.Generator().manual_seed(0)
    token = torch.randint(40, (count,), generator=generator)
    wrong = torch.randint(40, (count,), generator=generator)
    units = torch.where(torch.rand(count, generator=generator) < noise, wrong, token)[:, None]
    index = torch.arange(count)
    none = torch.zeros(count, dtype=torch.int64)
    active = Active(Site("mlp_act", 0), "largest", index, none, index // 20, none, units, units.float())
    values = model.weights.get("W_U").T[20 + token].detach()
    states = [Tokens(Site("resid_post", layer), index, none, index // 20, none, index, values) for layer in range(2)]
    (found,) = [e for e in activated(subject_of(model), [active], states, ks=(10,)) if e.state == "own"]
    return found


def test_planted_agreement_is_found_and_chance_is_not() -> None:
    close, far = agreeing(0.5), agreeing(1.0)
    assert close.p == pytest.approx(1 / 201)
    assert close.excess is not None
    assert close.excess[0] > 0.1
    assert far.p > 0.01
    assert far.excess is not None
    assert far.excess[0] < 0 < far.excess[1] or abs(far.mean - far.control) < 0.03
    table = activated_rows([close], "text")
    assert table.schema == TABLES["vocabulary_stats"].schema
    value, excess = table.to_pylist()
    assert (value["stat"], excess["stat"]) == ("activated_10", "activated_10_excess")
    assert value["control_kind"] == CONTROL
    assert value["lo"] < value["value"] < value["hi"]
    assert (value["q"], excess["q"]) == (pytest.approx(1 / 201), pytest.approx(close.p_excess))
    difference = close.overlap - close.others
    documents = difference.view(20, 20).mean(1)
    t = float(documents.mean() / (documents.std() / 20**0.5))
    assert close.p_excess == pytest.approx(float(stats.t.sf(t, 19)))
    assert excess["value"] == pytest.approx(value["value"] - value["control"])
    (finding,) = activated_findings([close], wrap(gated()).shape)
    assert finding["subject"] == "W_out.0"
    assert "feed-forward values it activates most" in finding["sentence"]
    assert activated_findings([far], wrap(gated()).shape) == []


def test_one_document_has_no_interval() -> None:
    model = wrap(gated())
    batch = text(model.shape.vocab)
    batch = Batch(**{**vars(batch), "document": batch.document * 0})
    active, states = sampled(model, batch, active_units(model, "next", 1.0, 0))
    found = list(activated(subject_of(model), active[:1], states, ks=(5,), draws=20))
    assert activated_rows(found, "text").column("lo").null_count == 2 * len(found)


def test_samples_of_other_tokens_are_not_compared() -> None:
    model = wrap(gated())
    batch = text(model.shape.vocab)
    active, _ = sampled(model, batch, active_units(model, "next", 0.5, 0))
    _, states = sampled(model, batch, {})
    with pytest.raises(AssertionError, match="same tokens"):
        list(activated(subject_of(model), active, states, ks=(5,), draws=2))


def test_experts_are_ranked_together() -> None:
    """Three tokens of one window, experts of four units; the first token goes to two of them."""
    values = torch.tensor([[9.0, 0, 1, 2], [0, 8, 0, 0], [5, 6, 7, 8], [1, 2, 3, 4]])
    rows = ExpertRows(values, torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 2, 0]), torch.tensor([0.25, 0.75, 1, 1]), 1, 3)
    batch = text(50, windows=1, tokens=3)
    found = {}
    for name in ("mlp_act", "mlp_pre"):
        fold = ActiveUnits(Site(name, 0), 4, 2, "next", 1.0, 0)
        state = fold.init()
        fold.update(state, {Site(name, 0): rows}, batch)
        found[name] = fold.result(state)
    assert found["mlp_act"].units.tolist() == [[1, 4], [11, 10]]
    assert found["mlp_act"].coefficients.tolist() == [[6.0, 2.25], [8.0, 7.0]]
    assert found["mlp_pre"].units.tolist() == [[4, 1], [11, 10]]
    lengths = torch.ones(12)
    lengths[4] = 10.0
    fold = ActiveUnits(Site("mlp_act", 0), 4, 2, "next", 1.0, 0, lengths)
    state = fold.init()
    fold.update(state, {Site("mlp_act", 0): ExpertRows(-values, rows.token, rows.expert, rows.weight, 1, 3)}, batch)
    assert fold.result(state).units.tolist() == [[~4, ~1], [~11, ~10]]


def test_a_mixture_of_experts_has_all_groups() -> None:
    model = wrap(mixture())
    batch = text(model.shape.vocab)
    active, states = sampled(model, batch, active_units(model, "next", 1.0, 0))
    found = list(activated(subject_of(model), active, states, ks=(5,), draws=5))
    assert {each.group for each in found} == {"W_gate", "W_up", "W_out", "W_V", "W_O"}
    assert all(0 <= each.mean <= 1 for each in found)
