"""Factors of heads against the attention scores and outputs of running models, dense matrices, planted heads, and changes of basis."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.model import Model, Norm, capture
from microtome.model.rotation import scorings_of
from microtome.model.scoring import Turn
from microtome.readout import output_reader
from microtome.readout.bases import paired
from microtome.vocabulary.circuits import (
    Biases,
    LayerHeads,
    Setting,
    attention_scores,
    attractiveness,
    circuit_of,
    circuits_of,
    layer_heads,
    normalised,
    planes,
    positional_profiles,
    stream_rows,
    token_rows,
    written_anyway,
)
from tests.unit.model.tiny import batch_for, opened

D_MODEL, D_HEAD, VOCAB = 12, 4, 30


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(positions: int = 16, width: int = D_HEAD) -> Turn:
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), torch.tensor([0.7, 0.1, 0.7, 0.1]))
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    return Turn(angle.cos(), angle.sin() * sign, torch.tensor([2, 3, 0, 1]))


def heads_of(query: int = 4, shared: int = 2, *, seed: int = 0, turn: Turn | None = None) -> LayerHeads:
    q, k, v, o = (draw(count, D_HEAD, D_MODEL, seed=seed + i) for i, count in enumerate((query, shared, shared, query)))
    counts = {"q": query, "k": shared, "v": shared}
    biases = {part: draw(count, D_HEAD, seed=seed + 9 + i) for i, (part, count) in enumerate(counts.items())}
    return LayerHeads(5, q, k, v, o, biases=biases, turn=turn)


def dense_turn(turn: Turn, offset: int) -> torch.Tensor:
    """x -> x @ matrix."""
    matrix = torch.diag(turn.cos[abs(offset)])
    for i, partner in enumerate(turn.partner.tolist()):
        matrix[partner, i] += turn.sin[abs(offset), i]
    return matrix if offset >= 0 else matrix.T


def stream(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """What layer 0's heads meet at each position: the raw embeddings, and learned positions where there are, through the real norm."""
    if not model.weights.has("W_pos"):
        return stream_rows(model.weights, 0, ids)
    rows = model.weights.get("W_E")[ids] + model.weights.get("W_pos")[: len(ids)]
    if model.weights.has("W_type"):
        rows = rows + model.weights.get("W_type")[0]
    if model.weights.has("embed_norm"):
        norm = model.weights.norm("embed_norm")
        assert norm.bias is not None
        return normalised(norm, rows) * norm.gain + norm.bias
    return normalised(model.weights.norm("attn_norm", 0), rows)


@pytest.mark.parametrize(
    "name",
    [
        "llama", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi", "phi-normed", "phi3", "gptj",
        "gpt_neox", "gpt2", "gpt_neo", "opt", "bert", "modernbert", "mixtral",
    ],
)  # fmt: skip
def test_entries_are_the_models_own_scores_of_two_tokens(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (6,))
    ids = batch.ids[0]
    scores = capture(model, batch, [Site("attn_scores", 0)])[Site("attn_scores", 0)][0]
    scoring = scorings_of(model, [0], len(ids))[0]
    heads, rows = layer_heads(model.weights, 0, turn=scoring.turn), stream(model, ids)
    seen = 0
    for query in range(len(ids)):
        for key in range(len(ids)):
            if model.shape.causal and key > query:
                continue
            offsets = None if scoring.turn is None else (query - key,)
            found = circuits_of(heads, "qk", rows[query, None], rows[key, None], Setting("all", offsets))
            entries = torch.cat([(each.left @ each.right.T).flatten() for each in found])
            expected = scores[:, query, key]
            allowed = expected > -1e30  # beyond a sliding window
            seen += int(allowed.sum())
            torch.testing.assert_close(attention_scores(scoring, entries)[allowed], expected[allowed], rtol=2e-4, atol=2e-5)
    assert seen > 6 * model.shape.heads


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gpt_neox", "bert"])
def test_what_is_written_is_what_the_model_writes(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (5,))
    rows = stream(model, batch.ids[0])
    values = capture(model, batch, [Site("v", 0)])[Site("v", 0)][0]
    columns = draw(7, model.shape.d_model, seed=1)
    heads, plain = layer_heads(model.weights, 0), layer_heads(model.weights, 0, folding="raw")
    for head in range(model.shape.heads):
        out = values[:, head // heads.sharing] @ model.weights.get("W_O", 0)[head]
        found = circuit_of(replace(heads, o=plain.o), "ov", head, rows, columns, Setting("all"))
        torch.testing.assert_close(found.left @ found.right.T, out @ columns.T, rtol=1e-4, atol=1e-4)
        bare = circuit_of(replace(heads, o=plain.o), "ov", head, rows, columns)
        constant = columns @ written_anyway(replace(heads, o=plain.o), head)
        torch.testing.assert_close(bare.left @ bare.right.T + constant, out @ columns.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [None, 0, 3, -5])
def test_factors_are_those_of_the_dense_matrices(offset: int | None) -> None:
    turn = rotation()
    heads = heads_of(turn=turn)
    rows, columns = draw(VOCAB, D_MODEL, seed=20), draw(VOCAB + 3, D_MODEL, seed=21)
    between = torch.eye(D_HEAD) if offset is None else dense_turn(turn, offset)
    setting = Setting(offsets=None if offset is None else (offset,))
    for head, found in enumerate(circuits_of(heads, "qk", rows, columns, setting)):
        assert str(found.address) == f"heads.5/{head}"
        dense = rows @ heads.q[head].T @ between @ heads.k[head // 2] @ columns.T
        torch.testing.assert_close(found.left @ found.right.T, dense, rtol=1e-4, atol=1e-4)
        single = circuit_of(heads, "qk", head, rows, columns, setting)
        assert torch.equal(single.left, found.left)
        assert torch.equal(single.right, found.right)
    for head, found in enumerate(circuits_of(heads, "ov", rows, columns, setting)):
        dense = rows @ heads.v[head // 2].T @ heads.o[head] @ columns.T
        torch.testing.assert_close(found.left @ found.right.T, dense, rtol=1e-4, atol=1e-4)


def test_the_mean_over_offsets_is_that_of_the_entries_at_each() -> None:
    heads, rows = heads_of(turn=rotation()), draw(VOCAB, D_MODEL, seed=22)
    offsets = [0, 1, 2, 5, -3]
    each = [circuit_of(heads, "qk", 3, rows, rows, Setting(offsets=(offset,))) for offset in offsets]
    mean = circuit_of(heads, "qk", 3, rows, rows, Setting(offsets=offsets))
    expected = torch.stack([one.left @ one.right.T for one in each]).mean(0)
    torch.testing.assert_close(mean.left @ mean.right.T, expected, rtol=1e-4, atol=1e-4)


def test_biases_make_the_four_terms_of_a_score() -> None:
    heads, rows = heads_of(), draw(VOCAB, D_MODEL, seed=23)
    b_q, b_k = heads.biases["q"][1], heads.biases["k"][0]
    bare = rows @ heads.q[1].T @ heads.k[0] @ rows.T
    by_key = rows @ attractiveness(heads, 1)
    torch.testing.assert_close(by_key, rows @ heads.k[0].T @ b_q)
    expected: dict[Biases, torch.Tensor] = {
        "none": 0 * bare,
        "varying": by_key.expand_as(bare),
        "all": by_key + (rows @ heads.q[1].T @ b_k)[:, None] + b_q @ b_k,
    }
    for biases, extra in expected.items():
        found = circuit_of(heads, "qk", 1, rows, rows, Setting(biases))
        torch.testing.assert_close(found.left @ found.right.T, bare + extra, rtol=1e-4, atol=1e-4)
    varying = circuit_of(heads, "ov", 1, rows, rows, Setting("varying"))
    assert torch.equal(varying.left, circuit_of(heads, "ov", 1, rows, rows).left)
    assert torch.equal(attractiveness(replace(heads, biases={}), 1), torch.zeros(D_MODEL))
    assert torch.equal(written_anyway(replace(heads, biases={}), 1), torch.zeros(D_MODEL))


def test_the_basis_inside_a_head_does_not_matter() -> None:
    heads, rows = heads_of(), draw(VOCAB, D_MODEL, seed=24)
    basis = draw(D_HEAD, D_HEAD, seed=25) + 3 * torch.eye(D_HEAD)
    inverse = torch.linalg.inv(basis)
    same = replace(
        heads,
        v=torch.einsum("ij,hid->hjd", basis, heads.v),
        o=torch.einsum("ji,hid->hjd", inverse, heads.o),
        q=torch.einsum("ij,hid->hjd", basis, heads.q),
        k=torch.einsum("ji,hid->hjd", inverse, heads.k),
    )
    for kind in ("ov", "qk"):
        one, other = circuit_of(heads, kind, 2, rows, rows), circuit_of(same, kind, 2, rows, rows)
        torch.testing.assert_close(one.left @ one.right.T, other.left @ other.right.T, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(one.left, other.left)


def test_a_planted_head_has_its_pair_on_top() -> None:
    rows = torch.linalg.qr(draw(VOCAB, VOCAB, seed=26)).Q
    many, few = torch.zeros(4, D_HEAD, VOCAB), torch.zeros(2, D_HEAD, VOCAB)
    heads = LayerHeads(0, many, few, few.clone(), many.clone())
    heads.q[3, 2], heads.k[1, 2] = rows[7], rows[11]
    found = circuit_of(heads, "qk", 3, rows, rows)
    assert int((found.left @ found.right.T).argmax()) == 7 * VOCAB + 11


def test_a_qk_norm_divides_each_token_by_its_own_length() -> None:
    gain = draw(D_HEAD, seed=27).abs()
    heads = replace(heads_of(), norms={"q": Norm("rms", gain, None, 0.0), "k": Norm("rms", gain, None, 0.0)}, biases={})
    rows = draw(VOCAB, D_MODEL, seed=28)
    found = circuit_of(heads, "qk", 2, rows, 7 * rows)
    lengths = (found.right / gain).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, D_HEAD**0.5))
    with pytest.raises(Refusal, match="its queries are normed"):
        attractiveness(heads, 2)


def test_rows_are_the_readers_also_through_a_basis() -> None:
    model = opened("llama")
    plain = output_reader(model.weights, exclude=[0, 3])
    tokens = torch.tensor([9, 4, 44])
    torch.testing.assert_close(token_rows(plain, tokens), plain.matrix.T[tokens - torch.tensor([2, 2, 2])])
    ridge = paired(plain, "ridge").read
    directions = draw(5, model.shape.d_model, seed=29)
    expected = (ridge.entering(directions) @ ridge.matrix)[:, tokens - 2].T
    torch.testing.assert_close(token_rows(ridge, tokens) @ directions.T, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(Refusal, match="token 3: it is not among those shown"):
        token_rows(plain, torch.tensor([9, 3]))


def test_profiles_are_the_scores_of_a_token_with_itself_at_each_distance() -> None:
    heads, row = heads_of(turn=rotation()), draw(D_MODEL, seed=30)
    found = positional_profiles(heads, row, [0, 1, 4, -2])
    for place, offset in enumerate([0, 1, 4, -2]):
        for head, each in enumerate(circuits_of(heads, "qk", row[None], row[None], Setting("all", (offset,)))):
            torch.testing.assert_close(found[head, place], (each.left @ each.right.T)[0, 0], rtol=1e-4, atol=1e-4)


def test_planes_add_up_to_the_circuit() -> None:
    turn = rotation()
    still = Turn(
        torch.cat([turn.cos, torch.ones(16, 2)], 1),
        torch.cat([turn.sin, torch.zeros(16, 2)], 1),
        torch.tensor([2, 3, 0, 1, 0, 0]),
    )
    q, k, v, o = (draw(1, 6, D_MODEL, seed=31 + i) for i in range(4))
    wide = LayerHeads(0, q, k, v, o, turn=still)
    rows = draw(VOCAB, D_MODEL, seed=35)
    circuit = circuit_of(wide, "qk", 0, rows, rows)
    found = planes(circuit, still)
    assert found.first.tolist() == [0, 1]
    for place, members in enumerate(([0, 2], [1, 3])):
        dense = circuit.left[:, members] @ circuit.right[:, members].T
        assert float(found.norm[place]) == pytest.approx(float(dense.norm()), rel=1e-5)
    rest = circuit.left[:, 4:] @ circuit.right[:, 4:].T
    assert found.still == pytest.approx(float(rest.norm()), rel=1e-5)


def test_offsets_need_a_rotation_that_reaches_them() -> None:
    rows = draw(VOCAB, D_MODEL, seed=36)
    with pytest.raises(Refusal, match="do not rotate, or their rotation was not given"):
        circuit_of(heads_of(), "qk", 0, rows, rows, Setting(offsets=(1,)))
    with pytest.raises(Refusal, match="offsets up to 16: the rotation is known for distances 0 to 15"):
        circuit_of(heads_of(turn=rotation()), "qk", 0, rows, rows, Setting(offsets=range(17)))
    with pytest.raises(Refusal, match="offsets up to none"):
        circuit_of(heads_of(turn=rotation()), "qk", 0, rows, rows, Setting(offsets=()))
    with pytest.raises(Refusal, match="head 4 of layer 5: it has 4 heads"):
        circuit_of(heads_of(), "ov", 4, rows, rows)
