"""Pairs of heads against sorted dense products, planted heads among random ones, and the table and sentences made of them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal
from microtome.model import Model, wrap
from microtome.model.rotation import turns
from microtome.numerics import hash_parts
from microtome.store.schemas import TABLES
from microtome.vocabulary.circuits import Circuit, Kind, LayerHeads, Setting, circuits_of, layer_heads, stream_rows, token_rows
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.pairs import (
    LayerPairs,
    Question,
    common_tokens,
    pair_findings,
    pair_q,
    pair_rows,
    pairs_of_head,
    pairs_of_layer,
    read_pairs,
)
from microtome.vocabulary.subject import Subject, subject_of
from microtome.vocabulary.words import word_classes
from tests.toys import decoder_tokenizer, llama, toy_decoder
from tests.unit.model.tiny import opened
from tests.unit.vocabulary.dense import sorted_pairs

ENDS = ("top", "bottom", "magnitude")


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(toy_decoder())


def circuit(rows: int = 20, columns: int = 15, seed: int = 0) -> Circuit:
    return Circuit("ov", 3, 1, draw(rows, 4, seed=seed), draw(columns, 4, seed=seed + 1))


@pytest.mark.parametrize("kind", ["ov", "qk"])
@pytest.mark.parametrize("pairs", ["all", "different"])
def test_pairs_are_the_ends_of_the_dense_matrix(subject: Subject, kind: str, pairs: str) -> None:
    rows, columns = subject.read.tokens[10:60], subject.read.tokens[30:100]
    question = Question(rows, columns, k=12, ends=ENDS, pairs=pairs, seed=4)  # pyright: ignore[reportArgumentType]
    heads = layer_heads(subject.weights, 1)
    found = pairs_of_layer(subject, heads, kind, question)  # pyright: ignore[reportArgumentType]
    classes = word_classes(subject.texts)
    allowed = classes[rows][:, None] != classes[columns] if pairs == "different" else None
    right = token_rows(subject.write if kind == "ov" else subject.read, columns)
    turned = rotations(1, 4, 8, seed=int(hash_parts(4, 1, ("ov", "qk").index(kind))))[0]
    for each, end in zip(found, ENDS, strict=True):
        assert (each.kind, each.layer, each.end) == (kind, 1, end)
        sides = circuits_of(heads, kind, token_rows(subject.read, rows), right)  # pyright: ignore[reportArgumentType]
        for head, side in enumerate(sides):
            dense = (side.left.double() @ side.right.double().T).float()
            expected = sorted_pairs(dense, 12, end, allowed)
            assert [(int(i), int(j)) for i, j in zip(each.token[head], each.other[head], strict=True)] == [
                (int(rows[i]), int(columns[j])) for i, j in expected
            ]
            values = torch.stack([dense[i, j] for i, j in expected])
            torch.testing.assert_close(each.score[head], values)
            torch.testing.assert_close(each.z[head], (values - dense.mean()) / dense.std(correction=0), rtol=1e-4, atol=1e-4)
            spun = side.left @ turned[head] @ side.right.T
            best = torch.stack([spun[i, j] for i, j in sorted_pairs(spun, 12, end, allowed)])
            expected_z = (best - spun.mean()) / spun.std(correction=0)
            torch.testing.assert_close(each.rotated[head], expected_z, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(each.control, each.rotated.mean(0))


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_one_head_is_read_as_in_its_layer_beside_itself_turned_many_times(subject: Subject, kind: Kind) -> None:
    tokens, heads = subject.read.tokens[10:60], layer_heads(subject.weights, 1)
    question = Question(tokens, tokens, k=12, ends=ENDS, pairs="different", seed=4)
    rows = token_rows(subject.read, tokens)
    right = token_rows(subject.write, tokens) if kind == "ov" else rows
    side = list(circuits_of(heads, kind, rows, right))[3]
    classes = word_classes(subject.texts)[tokens]
    allowed = classes[:, None] != classes
    turned = rotations(5, 1, 8, seed=int(hash_parts(4, 1, 3, ("ov", "qk").index(kind))))[:, 0]
    found = pairs_of_head(subject, heads, kind, 3, question, draws=5)
    for each, whole in zip(found, pairs_of_layer(subject, heads, kind, question), strict=True):
        assert each.end == whole.end
        for name in ("token", "other", "score", "z", "p"):
            assert torch.equal(getattr(each, name), getattr(whole, name)[3])
        assert each.rotated.shape == (5, 12)
        for draw, turn in enumerate(turned):
            spun = side.left @ turn @ side.right.T
            best = torch.stack([spun[i, j] for i, j in sorted_pairs(spun, 12, each.end, allowed)])
            torch.testing.assert_close(each.rotated[draw], (best - spun.mean()) / spun.std(correction=0), rtol=1e-3, atol=1e-3)
        sign = {"top": 1, "bottom": -1, "magnitude": 0}[each.end]
        outwards = sign * each.rotated if sign else each.rotated.abs()
        torch.testing.assert_close(each.strength[1:], outwards[:, :10].mean(1))
        torch.testing.assert_close(each.control, each.rotated.mean(0))
    assert pairs_of_head(subject, heads, kind, 0, question)[0].rotated.shape == (39, 12), "p may be as low as 1 / 40"


def test_fewer_pairs_than_asked_for_leave_empty_places(subject: Subject) -> None:
    few = subject.read.tokens[40:42]
    (found,) = pairs_of_layer(subject, layer_heads(subject.weights, 0), "qk", Question(few, few, k=6, ends=("top",)))
    assert (found.token >= 0).sum(1).tolist() == [4] * 4
    assert bool(found.score[:, 4:].isnan().all())
    assert bool(found.z[:, :4].isfinite().all())
    assert len(pair_rows([found])) == 16


def test_rows_of_the_table_are_in_its_order(subject: Subject) -> None:
    tokens = subject.read.tokens[:40]
    question = Question(tokens, tokens, k=3)
    found = [each for kind in ("qk", "ov") for each in read_pairs(subject, kind, question)]
    table = pair_rows(found)
    assert table.schema == TABLES["pairs"].schema
    assert len(table) == 2 * 2 * 3 * 4 * 3
    keys = [tuple(row[name] for name in TABLES["pairs"].key) for row in table.to_pylist()]
    assert keys == sorted(set(keys))
    first = table.to_pylist()[0]
    (mine,) = (each for each in found if (each.kind, each.layer, each.end) == ("ov", 0, "top"))
    assert (first["circuit"], first["head"], first["end"], first["rank"]) == ("ov", "heads.0/0", "+", 0)
    assert first["token"] == int(mine.token[0, 0])
    assert first["control"] == pytest.approx(float(mine.rotated[:, 0].mean()))


def test_common_tokens_are_the_first_readable_ones_or_the_most_counted(subject: Subject) -> None:
    found = common_tokens(subject, 30)
    assert found.tolist() == sorted(found.tolist())
    assert all(subject.texts[int(token)].strip() for token in found)
    words = common_tokens(subject, 10_000, which="words")
    assert all(subject.texts[int(token)][0] == " " for token in words)
    assert len(words) < len(common_tokens(subject, 10_000))
    counts = torch.zeros(subject.shape.vocab, dtype=torch.int64)
    counts[found[7]], counts[found[2]] = 5, 9
    assert common_tokens(subject, 3, counts).tolist() == [int(found[2]), int(found[7]), int(found[0])]


def planted(heads: int = 4) -> Model:
    """Head 2 of layer 1 writes token j + 40 for token j of 40 to 59; all else is random."""
    module = llama()
    attention = module.model.layers[1].self_attn
    with torch.no_grad():
        rows = module.model.embed_tokens.weight
        basis = torch.linalg.qr(draw(24, 24, seed=6)).Q
        rows[40:48], rows[80:88] = 3 * basis[:8], 3 * basis[8:16]
        attention.v_proj.weight[8:16] = basis[:8]  # key/value head 1 is that of heads 2 and 3
        attention.o_proj.weight[:, 16:24] = basis[8:16].T
    return wrap(module, decoder_tokenizer(), name="planted")


@pytest.fixture(scope="module")
def found() -> tuple[Subject, list[LayerPairs]]:
    subject = subject_of(planted())
    tokens = common_tokens(subject, 400)
    return subject, list(read_pairs(subject, "ov", Question(tokens, tokens, k=8, ends=("top",))))


def test_a_planted_head_is_read_off_its_pairs(found: tuple[Subject, list[LayerPairs]]) -> None:
    _, layers = found
    pairs = {(int(i), int(j)) for i, j in zip(layers[1].token[2], layers[1].other[2], strict=True)}
    assert pairs == {(token, token + 40) for token in range(40, 48)}


def spread_out(strength: Sequence[float], layers: int = 30, heads: int = 9) -> list[LayerPairs]:
    """Layers of heads whose pairs are as far out as those of rotated ones, but for the first ones of layer 0, at `strength`."""
    made = []
    for layer in range(layers):
        z = draw(heads, 4, seed=layer) + 20
        if layer == 0:
            z[: len(strength)] = torch.tensor(strength)[:, None].expand(-1, 4)
        token = torch.arange(4).expand(heads, 4) + 10 * torch.arange(heads)[:, None]
        p = torch.where(z.mean(1) > 40, 1e-9, 0.5).double()
        rotated, turned = draw(heads, 4, seed=100 + layer) + 20, torch.stack([token, token], 1)
        made.append(LayerPairs("ov", layer, "top", token, token + 100, z, z, rotated, p, turned))
    return made


def test_sentences_are_about_heads_beyond_their_control() -> None:
    layers = spread_out([60.0, 80.0])
    q = pair_q(layers)
    assert [each.shape for each in q] == [(9,)] * 30
    texts = [f" word{token}" for token in range(300)]
    rows = pair_findings(layers, q, texts)
    assert [row["subject"] for row in rows] == ["heads.0/1", "heads.0/0"]
    assert rows[0]["sentence"].startswith(
        "heads.0/1 writes, for what it attends to, ‘word10’→‘word110’, ‘word11’→‘word111’ and ‘word12’→‘word112’: its 4 best pairs are "
        f"80.0 standard deviations out on average (the heads of its layer, each rotated inside: {layers[0].rotated.mean():.1f}, "
    )
    assert rows[0]["kind"] == "ov pairs"
    assert rows[0]["control_kind"] == "the head rotated inside"
    assert float(rows[0]["q"]) == pytest.approx(1e-9 * 270 / 2)


def test_improbable_scores_that_are_no_further_out_have_no_sentence() -> None:
    layers = [replace(each, p=torch.full((9,), 1e-9, dtype=torch.float64)) for each in spread_out([60.0, 20.0])]
    layers[0].z[1:] -= 3
    assert [row["subject"] for row in pair_findings(layers[:1], pair_q(layers[:1]), [f" word{t}" for t in range(300)])] == [
        "heads.0/0"
    ]


def test_heads_like_rotated_ones_have_no_sentence() -> None:
    layers = spread_out([])
    assert pair_findings(layers, pair_q(layers), [f" word{token}" for token in range(300)]) == []


@pytest.mark.parametrize("end", ENDS)
def test_only_heads_whose_halves_fit_are_beyond_chance(end: str) -> None:
    subject = subject_of(planted())
    tokens = common_tokens(subject, 400)
    question = Question(tokens, tokens, k=8, ends=(end,))  # pyright: ignore[reportArgumentType]
    q = pair_q(list(read_pairs(subject, "ov", question)))
    assert (float(q[1][2]) < 0.01) == (end != "bottom")
    others = torch.cat([torch.cat([each[:2], each[3:]]) if layer == 1 else each for layer, each in enumerate(q)])
    assert float(others.min()) > 0.1


def test_strength_is_measured_outwards() -> None:
    (each,) = spread_out([60.0], layers=1)
    for end, sign in (("top", 1), ("bottom", -1), ("magnitude", -1)):
        other = replace(each, end=end, z=sign * each.z, rotated=sign * each.rotated)
        torch.testing.assert_close(other.strength, torch.stack([each.z.mean(1), each.rotated.mean(1)]))


def test_no_pairs_have_no_chance_and_no_sentence(subject: Subject) -> None:
    one = subject.read.tokens[40:41]
    question = Question(one, one, k=2, ends=("top",), pairs="different")
    found = list(read_pairs(subject, "ov", question))
    assert all(bool(each.p.isnan().all()) for each in found)
    assert pair_findings(found, pair_q(found), subject.texts) == []
    assert len(pair_rows(found)) == 0


def test_what_is_asked_in_other_units_is_refused(subject: Subject) -> None:
    tokens = subject.read.tokens[:20]
    heads = layer_heads(subject.weights, 0)
    with pytest.raises(Refusal, match="they are in units of a normed stream"):
        pairs_of_layer(subject, heads, "qk", Question(tokens, tokens, setting=Setting("all")))
    raw = subject_of(toy_decoder(), preset="paper")
    with pytest.raises(Refusal, match="the weights are raw; use the preset folded"):
        pairs_of_layer(raw, heads, "qk", Question(tokens, tokens, vectors="stream"))


def test_tokens_of_the_stream_rotate_and_have_biases() -> None:
    model = opened("llama-tied")
    subject = subject_of(model)
    turn = turns(model, [0], 8)[0]
    tokens = torch.arange(5, 40)
    question = Question(tokens, tokens, k=1, ends=("top",), vectors="stream", setting=Setting("all", offsets=(3,)))
    (found,) = read_pairs(subject, "qk", question, [0], {0: turn})
    heads: LayerHeads = layer_heads(model.weights, 0, turn=turn)
    rows = stream_rows(model.weights, 0, tokens)
    for head, each in enumerate(circuits_of(heads, "qk", rows, rows, question.setting)):
        place = int((each.left @ each.right.T).argmax())
        assert (int(found.token[head, 0]), int(found.other[head, 0])) == (int(tokens[place // 35]), int(tokens[place % 35]))
