"""Gate quadrants: lists and counts against a full sort, the symmetry of gated units, planted units of two meanings, refusals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, ExpertRows, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.examples import UnitSurvey
from microtome.model import Model, capture, wrap
from microtome.neurons import Neurons, quadrants
from microtome.neurons.quadrants import QUADRANTS, QuadrantContexts, QuadrantRecord, quadrant_contexts
from tests.unit.model.tiny import batch_for, built, opened
from tests.unit.neurons.planted_models import Kind, Mover, Stream, planted

WINDOWS, TOKENS, UNITS, K = 30, 11, 5, 4
JUNK: Final = 1e5
Values = Mapping[Site, Tensor | ExpertRows]


def batch_of(windows: int = WINDOWS, tokens: int = TOKENS) -> Batch:
    """Windows of several lengths, in both halves."""
    index = torch.arange(windows)
    roles = torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    roles[torch.arange(tokens) >= (tokens - index % 5)[:, None]] = int(Role.PAD)
    ids = torch.randint(0, 9, (windows, tokens), generator=torch.Generator().manual_seed(1))
    return Batch(ids, roles, index, index, index * 0, (index // 2 % 2).to(torch.uint8), index * 0, {})


def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Branches of few values, 0 among them, so that ties abound; junk wherever a token does not count."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randint(-2, 3, (WINDOWS, TOKENS, UNITS), generator=generator).float() for _ in range(2))
    act = torch.where(gate < 0, 0.5, 1.0) * gate * up
    for each in (gate, up, act):
        each[batch_of().roles != int(Role.CONTENT)] = JUNK
    return gate, up, act


def folded(fold: QuadrantContexts, tensors: Sequence[Tensor], sizes: Sequence[int] = (WINDOWS,)) -> QuadrantRecord:
    """Batches of these sizes, and what was merged of them one by one."""
    state, batch = fold.init(), batch_of()
    for rows in torch.arange(WINDOWS).split(list(sizes)):
        part = fold.init()
        fold.update(part, {site: each[rows] for site, each in zip(fold.sites, tensors, strict=True)}, batch.take(rows))
        state = fold.merge(state, part)
    return fold.result(state)


def test_lists_and_counts_are_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cut into batches."""
    gate, up, act = toy()
    batch = batch_of()
    fold = QuadrantContexts(0, UNITS, K, neighbours=2)
    whole = folded(fold, (gate, up, act))
    for group, (signs, half) in enumerate((signs, half) for signs in QUADRANTS for half in (0, 1)):
        for unit in range(UNITS):
            there = [
                (window, place)
                for window, place in (batch.roles == int(Role.CONTENT)).nonzero().tolist()
                if int(batch.half[window]) == half
                and all(each[window, place, unit] * (1 if sign == "+" else -1) > 0 for each, sign in zip((gate, up), signs, strict=True))
            ]  # fmt: skip
            assert int(whole.count[group // 2, half, unit]) == len(there)
            best: dict[int, tuple[float, int, int]] = {}
            for window, place in there:
                entry = (-abs(float(act[window, place, unit])), window, place)
                best[window] = min(entry, best.get(window, entry))
            expected = [(float(act[window, place, unit]), window, place) for _, window, place in sorted(best.values())[:K]]
            fields = (whole.contexts.value, whole.contexts.window, whole.contexts.position)
            found = zip(*(each[group, unit].tolist() for each in fields), strict=True)
            assert [entry for entry in found if entry[1] >= 0] == expected
            assert whole.contexts.ends[group] == signs
    monkeypatch.setattr(quadrants, "_ROWS", 17)
    assert_same(folded(fold, (gate, up, act), (7, 1, 22)), whole)


def assert_same(one: QuadrantRecord, other: QuadrantRecord, order: Sequence[int] = range(4), sign: float = 1.0) -> None:
    """The same lists and counts, quadrants in this order and values times the sign."""
    groups = [2 * quadrant + half for quadrant in order for half in (0, 1)]
    assert torch.equal(one.count, other.count[list(order)])
    assert torch.equal(one.contexts.value, sign * other.contexts.value[groups])
    for name in ("window", "position", "token", "following", "half"):
        assert torch.equal(getattr(one.contexts, name), getattr(other.contexts, name)[groups]), name
    around = other.contexts.activations[groups].int()
    around = torch.where(around == -128, around, int(sign) * around)
    assert torch.equal(one.contexts.activations.int(), around)


def test_entries_carry_their_tokens_and_zeros_are_nowhere() -> None:
    gate, up, act = toy()
    gate[..., 3] = -gate[..., 3].abs()
    act[..., 4] = 0.0
    found = folded(QuadrantContexts(0, UNITS, 9, neighbours=2), (gate, up, act))
    assert int(found.count[:2, :, 3].sum()) == 0
    assert found.count[2:, :, 3].sum() == (batch_of().roles == int(Role.CONTENT)).logical_and((gate * up)[..., 3] != 0).sum()
    assert bool((found.contexts.window[:, 4] == -1).all()), "what writes nothing is in no list"
    assert int(found.count[:, :, 4].sum()) > 0
    assert found.share.sum(0)[:, :3] == pytest.approx(1)
    group, unit, place = (found.contexts.window >= 0).nonzero(as_tuple=True)
    window, position = found.contexts.window[group, unit, place], found.contexts.position[group, unit, place]
    assert torch.equal(found.contexts.token[group, unit, place].long(), batch_of().ids[window, position])
    scale = found.contexts.scale[group, unit, place]
    middle = found.contexts.activations[group, unit, place, 2] * scale
    assert bool(((middle - act[window, position, unit]).abs() <= scale / 2 * 1.001).all())
    assert float(found.contexts.value[group, unit, place].abs().max()) < JUNK


def model_batches(model: Model) -> Iterator[Batch]:
    for seed in range(3):
        batch = batch_for(model, (9, 12, 7, 12, 5, 12))
        ids = torch.randint(5, 50, batch.ids.shape, generator=torch.Generator().manual_seed(seed))
        yield replace(batch, ids=ids, window=batch.window + 6 * seed, half=(batch.window % 2).to(torch.uint8))


def read(model: Model, layer: int, k: int = 5) -> QuadrantRecord:
    fold = quadrant_contexts(model, layer, k)
    state = fold.init()
    for batch in model_batches(model):
        fold.update(state, capture(model, batch, fold.sites), batch)
    return fold.result(state)


def test_reversing_a_unit_exchanges_the_signs_of_its_up_branch() -> None:
    """W_up and W_out of all units of a layer times -1: the same function; ++ becomes +-, and -+ becomes --."""
    plain, turned = opened("llama"), wrap(built("llama"), name="turned")
    with torch.no_grad():
        turned.weights.get("W_up", 1).neg_()
        turned.weights.get("W_out", 1).neg_()
    one, other = read(plain, 1), read(turned, 1)
    assert int(one.count.min()) > 0
    assert_same(other, one, order=(1, 0, 3, 2), sign=-1.0)


def two_meanings(kind: Kind, dtype: torch.dtype) -> Model:
    """Unit 0: its gate opens at norland; its up branch is + after "capital" and -, half as large, after "language".

    Unit 1 writes as much with both branches open, at sudmark, as with both reversed, at ostia, nearly: there the nonlinearity is at its
    least, -0.28 (SiLU) or -0.17 (GELU).
    """
    words = ("<unk>", "<end>", "the", "of", "norland", "sudmark", "ostia", "capital", "language")
    stream = Stream(("ballast", "relation", "seen:capital", "seen:language", *(f"is:{word}" for word in words)))
    mover = Mover("relation", {"is:capital": "seen:capital", "is:language": "seen:language"})
    model = planted(kind, stream, words, [{}], [mover], units=3, dtype=torch.float32)
    gate, up = model.weights.get("W_gate", 0), model.weights.get("W_up", 0)
    with torch.no_grad():
        gate[:, 0] = stream.read({"is:norland": 16.0}, -8.0)
        up[:, 0] = stream.read({"seen:capital": 1.0, "seen:language": -0.5})
        gate[:, 1] = stream.read({"is:sudmark": 5.0, "is:ostia": -1.0})
        up[:, 1] = stream.read({"is:sudmark": 1.0, "is:ostia": -40.0})
    model.module.to(dtype)
    return model


@pytest.mark.parametrize("kind", ["silu", "geglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quadrants_separate_what_one_list_hides(kind: Kind, dtype: torch.dtype) -> None:
    model = two_meanings(kind, dtype)
    texts = [f"{relation} of the norland the sudmark of ostia of" for relation in ("capital", "language")] * 8
    batch = prompt_batch(model.tokenizer, texts)
    batch = replace(batch, half=(torch.arange(16) // 2 % 2).to(torch.uint8))
    fold = quadrant_contexts(model, 0, 4)
    held = capture(model, batch, fold.sites)
    lists, survey = fold.init(), UnitSurvey(Neurons(0, 3), k=4)
    fold.update(lists, held, batch)
    found = fold.result(lists).contexts
    both = survey.init()
    survey.update(both, held, batch)
    ends = survey.result(both).contexts

    def said(windows: Tensor, tokens: Tensor) -> set[tuple[str, str]]:
        words = model.tokenizer.convert_ids_to_tokens  # pyright: ignore[reportOptionalMemberAccess]
        return {(texts[w].split()[0], words(t)) for w, t in zip(windows.tolist(), tokens.tolist(), strict=True) if w >= 0}

    def meaning(signs: str, unit: int) -> set[tuple[str, str]]:
        group = QUADRANTS.index(signs) * 2
        return said(found.window[group, unit], found.token[group, unit])

    assert said(ends.window[0, 0], ends.token[0, 0]) == {("capital", "norland")}, "the list of largest h misses one meaning"
    assert meaning("++", 0) == {("capital", "norland")}
    assert meaning("+-", 0) == {("language", "norland")}
    assert said(ends.window[0, 1], ends.token[0, 1]) == {(relation, "ostia") for relation in ("capital", "language")}
    assert "sudmark" not in {token for _, token in said(ends.window[2, 1], ends.token[2, 1])}, "nor is it at the other end"
    assert {token for _, token in meaning("++", 1)} == {"sudmark"}
    assert {token for _, token in meaning("--", 1)} == {"ostia"}


def test_what_has_no_quadrants_is_refused() -> None:
    with pytest.raises(Refusal, match="no gate: a unit has one pre-activation"):
        quadrant_contexts(opened("gpt2"), 0)
    with pytest.raises(Refusal, match="a token reaches some experts only"):
        quadrant_contexts(opened("mixtral"), 0)
    fold = QuadrantContexts(0, 24)
    model = opened("mixtral")
    with pytest.raises(Refusal, match="quadrants of layer 0"):
        fold.update(fold.init(), capture(model, batch_for(model), fold.sites), batch_for(model))
