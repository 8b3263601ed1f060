"""The recipe of Dar et al. on one model: what it measures is dense arithmetic, and its conclusions hold where planted and nowhere else."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from microtome.model import Model, wrap
from microtome.vocabulary.activated import Activated
from microtome.vocabulary.overlap import Overlap, overlaps
from microtome.vocabulary.subject import Subject, subject_of
from microtome.vocabulary.truncation import Kept
from microtome.vocabulary.words import spelling
from recipes.dar2023 import Conclusion, conclusions, describe
from recipes.dar2023_measures import (
    Experiments,
    Ranked,
    active_overlaps,
    experiments,
    kept_scores,
    pairs_of_head,
    pooled_states,
    ranked_heads,
    sampled,
    similarities,
    topic_search,
)
from recipes.dar2023_paper import (
    GOLDEN_HEADS,
    GoldenHead,
    golden_share,
    is_gpt2_medium,
    kept_checks,
    report,
    similar_checks,
)
from tests import toys

WRITTEN = 7
"""How far the planted head's written token is from the one attended to."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_model(seed: int) -> Model:
    """Weights that know nothing of each other."""
    module = toys.llama(2)
    with torch.no_grad():
        for number, weights in enumerate(module.parameters()):
            if weights.ndim == 2:
                weights.copy_(normal(*weights.shape, seed=100 * seed + number) / weights.shape[1] ** 0.5)
    return wrap(module, toys.decoder_tokenizer(), name="random")


def planted_model() -> Model:
    """Token vectors of few large directions; what belongs together is the vector of one token.

    Head 3 of layer 1, of the second key/value head, writes for token t the token t + `WRITTEN`.
    """
    model = random_model(1)
    module = model.module
    tokens = module.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        tokens.copy_(normal(*tokens.shape, seed=5) * 3 / (1.0 + torch.arange(tokens.shape[1])))
        for number, layer in enumerate(module.model.layers):  # pyright: ignore[reportArgumentType]
            mlp, attention = layer.mlp, layer.self_attn
            chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(number))
            units, heads = tokens[chosen[:40]], chosen[40:56]
            mlp.gate_proj.weight.copy_(units)
            mlp.up_proj.weight.copy_(units)
            mlp.down_proj.weight.copy_(units.T)
            attention.v_proj.weight.copy_(tokens[heads])
            attention.k_proj.weight.copy_(tokens[heads])
            shared = heads.view(2, 8).repeat_interleave(2, 0).flatten()
            attention.q_proj.weight.copy_(tokens[shared])
            written = tokens[shared].clone()
            if number == 1:
                written[24:] = tokens[(shared[24:] + WRITTEN) % len(tokens)]
            attention.o_proj.weight.copy_(written.T)
    return model


@pytest.fixture(scope="module")
def planted() -> tuple[Model, Subject]:
    model = planted_model()
    return model, subject_of(model, preset="paper")


@pytest.fixture(scope="module")
def whole(planted: tuple[Model, Subject]) -> Experiments:
    return experiments(*planted, toys.toy_texts(), heads=1, topic=["river", "stone", "garden"])


def verdicts(found: Experiments) -> dict[str, bool]:
    return {each.says: each.holds for each in conclusions(found)}


def test_everything_is_printed_with_what_the_paper_has(planted: tuple[Model, Subject], whole: Experiments) -> None:
    page = describe(whole, planted[1].texts)
    for part in (
        "0.83 / 0.1 at k = 1,000",
        f"ov layer {whole.heads[0].layer}, head {whole.heads[0].head} (",
        "W_gate-W_out",
        "paper, K-V: 0.007 in layer 0",
        "paper, V, R_50, other tokens'",
        "18: 0.090 / 0.021",
        "What the paper concludes:",
        "What differs from the paper:",
    ):
        assert part in page, part
    gate = next(each for each in whole.similar if (each.left, each.layer) == ("W_gate", 1))
    assert f"1: {gate.mean:.4f} / {float(gate.draws.mean()):.4f}" in page
    assert page.count("  yes  ") == sum(verdicts(whole).values())


def test_what_is_planted_is_concluded(whole: Experiments) -> None:
    found = verdicts(whole)
    for says in (
        "the transpose keeps more of the inner products of random directions than the pseudo-inverse, at k = 10",
        "W_gate and W_out that belong together speak of the same tokens",
        "W_up and W_out that belong together speak of the same tokens",
        "W_Q and W_K that belong together speak of the same tokens",
        "W_V and W_O that belong together speak of the same tokens",
    ):
        assert found[says], says
    assert found == verdicts(dataclasses.replace(whole)), "numbers decide, and nothing else"


def test_random_weights_come_to_nothing() -> None:
    model = random_model(3)
    subject = subject_of(model, preset="paper")
    found = Experiments(
        kept=kept_scores(subject, vectors=100),
        heads=[head for kind in ("ov", "qk") for head in ranked_heads(subject, kind)],
        similar=similarities(subject, draws=300),
    )
    wrong = [each for each in conclusions(found) if each.holds and "the other way round" not in each.says]
    assert wrong == []


def test_similarities_are_those_of_the_method_and_of_the_layers_asked_for(planted: tuple[Model, Subject]) -> None:
    subject = planted[1]
    mine, theirs = similarities(subject, draws=20), list(overlaps(subject, draws=20))
    assert [(each.left, each.layer, each.mean) for each in mine] == [(each.left, each.layer, each.mean) for each in theirs]
    assert {each.layer for each in similarities(subject, [1], draws=20)} == {1}


@pytest.mark.parametrize("kind", ["ov", "qk"])
@pytest.mark.parametrize("head", [1, 3])
def test_pairs_of_a_head_are_those_of_the_dense_matrix(planted: tuple[Model, Subject], kind: str, head: int) -> None:
    model, subject = planted
    found = pairs_of_head(subject, kind, 1, head, pairs="all", k=20)  # pyright: ignore[reportArgumentType]
    weights, shared = model.weights, head // 2
    tokens = weights.get("W_E").double()
    one, other = ("W_V", "W_O") if kind == "ov" else ("W_Q", "W_K")
    if kind == "ov":
        middle = weights.get(one, 1)[shared].double() @ weights.get(other, 1)[head].double()
    else:
        middle = weights.get(one, 1)[head].double() @ weights.get(other, 1)[shared].double().T
    dense = tokens @ middle @ tokens.T
    best = dense.flatten().sort(descending=True)
    assert found.score[0].double().tolist() == pytest.approx(best.values[:20].tolist(), rel=1e-4)
    own = [float(dense[token, to]) for token, to in zip(found.token[0].tolist(), found.other[0].tolist(), strict=True)]
    assert own == pytest.approx(best.values[:20].tolist(), rel=1e-4)


def test_heads_are_ranked_by_what_stands_out(planted: tuple[Model, Subject]) -> None:
    ranked = ranked_heads(planted[1], "ov")
    assert len(ranked) == 8
    excess = [head.strength - head.control for head in ranked]
    assert excess == sorted(excess, reverse=True)
    assert {head.layer for head in ranked_heads(planted[1], "qk", layers=[1])} == {1}


def test_states_are_pooled_and_read_beside_what_they_activate(planted: tuple[Model, Subject]) -> None:
    model, subject = planted
    found = sampled(model, toys.toy_texts(), windows=8, tokens=100)
    assert 50 < len(found.states[0].values) < 200
    assert found.documents > 2
    pooled = pooled_states(found, 30)
    stack = torch.cat([each.values for each in found.states])
    assert pooled.shape == (30, subject.shape.d_model)
    assert all(bool((row == stack).all(1).any()) for row in pooled)
    active = active_overlaps(subject, found, [0], ks=(10,))
    assert {(each.layer, each.k) for each in active} == {(0, 10)}
    assert {each.group for each in active} == {"W_gate", "W_up", "W_out", "W_V", "W_O"}
    value = next(each for each in active if (each.group, each.state) == ("W_out", "own"))
    assert value.mean > value.control


def test_a_topic_is_searched_among_keys_and_values(planted: tuple[Model, Subject]) -> None:
    searched = topic_search(planted[1], ["river", "stone", "garden"])
    assert {each.group for each in searched.found} <= {"W_gate", "W_up", "W_out"}
    assert searched.searched == 2 * 3 * 40


def activated(group: str, mean: float, control: float, p_draws: float) -> Activated:
    ones = torch.ones(20, dtype=torch.float64)
    fields = {field.name for field in dataclasses.fields(Activated)}
    values = {
        "group": group,
        "layer": 0,
        "k": 100,
        "state": "own",
        "ranking": "largest",
        "overlap": mean * ones,
        "others": control * ones,
        "draws": p_draws * torch.ones(200, dtype=torch.float64),
        "interval": (mean, mean),
        "excess": (mean - control, mean - control),
        "p_excess": 0.001,
    }
    return Activated(**{name: each for name, each in values.items() if name in fields})


def kept(basis: str, k: int, score: float, part: str, kind: str) -> Kept:
    return Kept(basis, kind, part, k, 300, score, score - 0.02, score + 0.02, torch.zeros(200, dtype=torch.float64))


def scores(small: tuple[float, float], large: tuple[float, float]) -> list[Kept]:
    return [
        kept(basis, k, score, part, kind)
        for kind in ("normal", "values")
        for part in ("all", "offdiag")
        for k, pair in ((1000, small), (30_000, large))
        for basis, score in zip(("transpose", "pseudo-inverse"), pair, strict=True)
    ]


def test_conclusions_follow_the_numbers() -> None:
    heads = [Ranked("ov", 0, 0, 20.0, 5.0, 0.001), Ranked("qk", 0, 0, 20.0, 5.0, 0.001)]
    active = [activated("W_out", 0.3, 0.1, 0.1), activated("W_V", 0.11, 0.1, 0.1), activated("W_O", 0.3, 0.1, 0.1)]
    as_paper = conclusions(Experiments(kept=scores((0.83, 0.10), (0.16, 0.96)), heads=heads, active=active))
    assert [each.says for each in as_paper if not each.holds] == []
    assert len(as_paper) == 4 + 2 + 3
    near = scores((0.50, 0.48), (0.50, 0.48))
    chance = [Ranked("ov", 0, 0, 20.0, 5.0, 0.3), Ranked("qk", 0, 0, 4.0, 5.0, 0.001)]
    none = [activated("W_out", 0.1, 0.1, 0.1), activated("W_V", 0.11, 0.1, 0.1), activated("W_O", 0.2, 0.1, 0.3)]
    against = conclusions(Experiments(kept=near, heads=chance, active=none))
    assert [each.says for each in against if each.holds] == []
    assert conclusions(Experiments()) == []
    assert Conclusion(
        "", True, "0.830 (0.810 to 0.850) against 0.100 (0.080 to 0.120); the pseudo-inverse keeps more from k = 30000 on"
    ) == (dataclasses.replace(as_paper[0], says=""))


def overlap(left: str, right: str, layer: int, mean: float) -> Overlap:
    none = torch.zeros(0, dtype=torch.int64)
    draws = torch.full((200,), 0.003, dtype=torch.float64)
    similarity = torch.full((5,), mean, dtype=torch.float64)
    return Overlap(
        left, right, layer, 100, [], similarity, similarity * 0, draws, draws, none, none.view(0, 100), float("nan"), 0.001
    )


def test_published_numbers_are_asked_for() -> None:
    right = [*scores((0.82, 0.11), (0.1, 0.9))]
    assert [each.holds for each in kept_checks(right)] == [True, True]
    assert [each.holds for each in kept_checks(scores((0.66, 0.07), (0.1, 0.9)))] == [False, True]
    assert [each.holds for each in kept_checks([])] == [False, False]
    layers = {0: 0.007, 1: 0.081, 2: 0.063, 3: 0.030, 23: 0.037}
    checks = similar_checks([overlap("W_in", "W_out", layer, value) for layer, value in layers.items()])
    assert [each.holds for each in checks] == [True] * 5
    off = similar_checks([overlap("W_in", "W_out", layer, value + 0.03) for layer, value in layers.items()])
    assert [each.holds for each in off] == [False] * 5
    assert not similar_checks([overlap("W_Q", "W_K", 5, 0.05)])[0].holds
    assert report(off).count("FAILS") == 5


def test_listed_pairs_count_whatever_their_case(planted: tuple[Model, Subject]) -> None:
    subject = planted[1]
    found = pairs_of_head(subject, "ov", 1, 3, pairs="all", k=100)
    best = list(zip(found.token[0].tolist(), found.other[0].tolist(), strict=True))

    def share(pairs: Sequence[tuple[int, int]]) -> float:
        listed = tuple((subject.texts[int(token)].upper(), " " + subject.texts[int(other)]) for token, other in pairs)
        return golden_share(subject, GoldenHead("ov", 1, 3, "all", listed))

    assert share(best[:4]) == 1
    spelt = {(spelling(subject.texts[int(token)]), spelling(subject.texts[int(other)])) for token, other in best}
    ids = range(5, 40)
    missing = next((a, b) for a in ids for b in ids if (spelling(subject.texts[a]), spelling(subject.texts[b])) not in spelt)
    assert share([best[0], missing]) == 0.5
    assert share([missing]) == 0


def test_the_listed_pairs_are_the_papers(planted: tuple[Model, Subject]) -> None:
    assert not is_gpt2_medium(planted[0])
    first = GOLDEN_HEADS[0]
    assert (first.kind, first.layer, first.head, first.listed[0]) == ("ov", 18, 1, ("Anne", "woman"))
    assert len(GOLDEN_HEADS) == 7
