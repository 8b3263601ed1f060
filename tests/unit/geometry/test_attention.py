"""The exact split of query-key scores: sums against every family's own scores, parts against numpy, planted heads."""

import math

import numpy as np
import pytest
import torch

from microtome.capture.run import fold_batch
from microtome.core import Batch, Refusal, Role, Site
from microtome.geometry.attention import HeadSplit, QKSplit, Reading, Side, qk_split, queries_and_keys, readings, stream_parts
from microtome.geometry.decomposition import Parts
from microtome.geometry.terms import PARTS, PIECES, TERMS, score_terms
from microtome.model import Model, capture
from microtome.model.scoring import Scoring, allowed_keys
from tests.unit.model.tiny import TINY, batch_for, opened

ALIKE = ("-headless", "-classifier", "-pretraining", "-tied", "-unfactorised", "-inner", "-gated", "-unnormed", "-sequential")
FAMILIES = [name for name in TINY if not name.endswith(ALIKE)]
"""One model for each way of attending: what only changes heads, embeddings or MLPs is left out."""
DOUBLE = ["gpt2", "gptj", "gpt_neox", "phi-normed", "bloom", "opt-postnorm"]
"""Families that compute everything in the dtype of their weights."""


def planted_parts(h: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some mu and pos of the size of hidden states: the sum must not depend on which."""
    noise = torch.randn(h.shape[1:], generator=torch.Generator().manual_seed(layer), dtype=torch.float64).to(h) * h.std()
    return h[0].mean(0) + noise[0], noise + h[1] / 2


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [*((name, torch.float32, 1e-5) for name in FAMILIES), *((name, torch.float64, 1e-13) for name in DOUBLE)],
)
def test_the_terms_add_up_to_the_scores_of_the_model(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = opened(name, dtype)
    batch = batch_for(model)
    layers = range(model.shape.layers)
    sites = [Site(part, layer) for layer in layers for part in ("resid_pre", "attn_scores")]
    seen, places = capture(model, batch, sites), torch.arange(batch.ids.shape[1])
    for layer, reading in readings(model, batch, layers).items():
        h, scores = seen[Site("resid_pre", layer)], seen[Site("attn_scores", layer)]
        mu, pos = planted_parts(h, layer)
        for window in range(2):
            query, key = queries_and_keys(reading, stream_parts(h[window], mu, pos), places)
            group, cap = model.shape.heads // model.shape.heads_kv, reading.scoring.cap
            heads = query.transpose(1, 2).transpose(0, 1), key.transpose(1, 2).transpose(0, 1).repeat_interleave(group, 0)
            found = score_terms(reading.scoring.scale, *heads, reading.scoring.bias).sum(1)
            found = found if cap is None else cap * torch.tanh(found / cap)
            allowed = allowed_keys(scores[window])
            assert bool(allowed.diagonal(dim1=1, dim2=2).all())
            error = (found - scores[window])[allowed].abs().max() / scores[window][allowed].abs().max()
            assert float(error) < tolerance


def rotary(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotary embedding by complex numbers; coordinate j goes with j + d_head / 2."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


def weight(model: Model, name: str) -> np.ndarray:
    return model.weights.get(name, 1).double().numpy()


def found_parts(model: Model) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Parts of the stream of one window, and the queries and keys that `queries_and_keys` makes of them, by part."""
    batch = batch_for(model, (7, 7))
    h = capture(model, batch, [Site("resid_pre", 1)])[Site("resid_pre", 1)]
    mu, pos = planted_parts(h, 1)
    parts = stream_parts(h[0], mu, pos)
    query, key = queries_and_keys(readings(model, batch, [1])[1], parts, torch.arange(7))
    names: list[str] = list(PARTS)
    streams = dict(zip(names[1:], parts.double().numpy(), strict=True))
    sides = [dict(zip(names, side.double().numpy(), strict=True)) for side in (query, key)]
    return streams, sides[0], sides[1], h[0].double().numpy()


def test_gpt2_parts_by_hand() -> None:
    model = opened("gpt2")
    streams, query, key, h = found_parts(model)
    norm = model.weights.norm("attn_norm", 1)
    assert norm.bias is not None
    gain, bias = norm.gain.double().numpy(), norm.bias.double().numpy()
    size = np.sqrt(h.var(1) + norm.eps)
    for side, letter in ((query, "Q"), (key, "K")):
        matrix, offset = weight(model, f"W_{letter}"), weight(model, f"b_{letter}")
        const = np.einsum("d,hde->he", bias, matrix) + offset
        np.testing.assert_allclose(side["const"], np.broadcast_to(const, side["const"].shape), atol=1e-6)
        for part, x in streams.items():
            linear = gain * (x - x.mean(1, keepdims=True)) / size[:, None]
            np.testing.assert_allclose(side[part], np.einsum("td,hde->the", linear, matrix), atol=1e-6)


def test_qwen3_parts_by_hand() -> None:
    """RMS norm, a second frozen scale for the QK-norm, rotation of every part, keys shared by groups of heads."""
    model = opened("qwen3")
    streams, query, key, h = found_parts(model)
    norm = model.weights.norm("attn_norm", 1)
    size = np.sqrt((h**2).mean(1) + norm.eps)[:, None]
    gain = norm.gain.double().numpy()
    for side, letter in ((query, "Q"), (key, "K")):
        matrix, behind = weight(model, f"W_{letter}"), model.weights.norm(f"{letter.lower()}_norm", 1)
        whole = np.einsum("td,hde->hte", h / size * gain, matrix)
        scale = np.sqrt((whole**2).mean(-1, keepdims=True) + behind.eps)
        assert not side["const"].any()
        for part, x in streams.items():
            heads = np.einsum("td,hde->hte", x / size * gain, matrix) / scale * behind.gain.double().numpy()
            np.testing.assert_allclose(side[part], rotary(heads, np.arange(7)).swapaxes(0, 1), rtol=2e-6, atol=2e-6)


def test_an_encoder_without_a_norm_has_only_its_bias_for_a_constant() -> None:
    model = opened("bert")
    streams, query, _, _ = found_parts(model)
    bias = weight(model, "b_Q")
    np.testing.assert_allclose(query["const"], np.broadcast_to(bias, query["const"].shape), atol=1e-7)
    np.testing.assert_allclose(query["pos"], np.einsum("td,hde->the", streams["pos"], weight(model, "W_Q")), atol=1e-6)


def test_parts_of_a_window_add_up_and_the_residual_has_no_mean() -> None:
    h, mu, pos = torch.randn(6, 4), torch.randn(4), torch.randn(6, 4)
    parts = stream_parts(h, mu, pos)
    torch.testing.assert_close(parts.sum(0), h)
    torch.testing.assert_close(parts[3].mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts[2], (h - pos).mean(0).sub(mu).expand(6, 4))


WIDTH = 8


def batch_of(windows: int, tokens: int, lead: int = 1) -> Batch:
    roles = torch.full((windows, lead + tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, :lead] = int(Role.FIRST)
    zero, index = torch.zeros(windows, dtype=torch.int64), torch.arange(windows)
    return Batch(torch.zeros(roles.shape, dtype=torch.int64), roles, index, index, zero, zero.to(torch.uint8), zero, {})


def planted(size: float = 1.0) -> tuple[HeadSplit, int]:
    """Hidden states with position in coordinates 0-1, context in 2-3, the rest in 4-7; a head that reads each, and one for all."""
    windows, tokens = 6, 20
    generator = torch.Generator().manual_seed(0)
    h = torch.zeros(windows, tokens + 1, WIDTH)
    angle = torch.arange(tokens) / tokens * 2 * math.pi
    pos = torch.zeros(tokens, WIDTH)
    pos[:, 0], pos[:, 1] = angle.cos() - angle.cos().mean(), angle.sin() - angle.sin().mean()
    residual = torch.randn(windows, tokens, 4, generator=generator)
    h[:, 1:, 4:] = residual - residual.mean(1, keepdim=True)
    h[:, 1:] += pos
    h[:, 1:, 2:4] += torch.randn(windows, 1, 2, generator=generator)
    h[:, 0] = 1e3  # not counted
    reads = torch.zeros(3, WIDTH, 4)
    reads[0, 0, 0] = reads[0, 1, 1] = reads[1, [4, 5, 6, 7], [0, 1, 2, 3]] = size
    reads[2] = reads[0] + reads[1]
    side = Side(reads, None, None)
    fold = QKSplit(0, Reading(None, side, side, Scoring(1.0, None, None, None)), torch.zeros(WIDTH), pos)
    scores = torch.einsum("wid,hde,hfe,wjf->whij", h, reads, reads, h)
    seen = torch.ones(tokens + 1, tokens + 1, dtype=torch.bool).tril()
    state = fold.init()
    values = {Site("resid_pre", 0): h, Site("attn_scores", 0): scores.masked_fill(~seen, torch.finfo(torch.float32).min)}
    fold.update(state, values, batch_of(windows, tokens))
    return fold.result(state), windows


def test_planted_heads_are_found() -> None:
    split, windows = planted()
    both, content = TERMS.index(("pos", "pos")), TERMS.index(("resid", "resid"))
    for head, term, piece in ((0, both, "pos"), (1, content, "resid")):
        assert float(split.share[head, term]) == pytest.approx(1, abs=1e-4)
        assert float(split.energy[head, term]) == pytest.approx(1, abs=1e-4)
        assert float(split.part_share[head, PIECES.index(piece)]) == pytest.approx(1, abs=1e-4)
        others = [name for name in PIECES if name != piece]
        assert float(split.kl[head, PIECES.index(piece)]) > 0.05
        assert float(split.kl[head, [PIECES.index(name) for name in others]].abs().max()) < 1e-6
    assert 0.05 < float(split.share[2, both]) < 0.95
    assert float(split.share[2].sum()) == pytest.approx(1)
    assert split.error < 1e-5
    assert (split.windows, split.rows, split.undefined) == (windows, windows * 19, "")


def test_controls_are_of_heads_that_match_nothing() -> None:
    """A head with Q = K looks for likeness: what it says of content is far above what heads turned inside would say."""
    split, _ = planted()
    pos, resid = PIECES.index("pos"), PIECES.index("resid")
    assert float(split.kl[0, pos]) > float(split.kl_control[0, pos])
    assert 0 < float(split.gap_error[1, resid]) < float(split.kl_control[1, resid])
    assert bool(split.kl_control[:, -1].isnan().all() and split.gap_error[:, -1].isnan().all())
    assert float(split.energy_control[2].sum()) == pytest.approx(1)
    assert float(split.energy_control[0, TERMS.index(("pos", "pos"))]) == pytest.approx(1, abs=1e-4)


def test_fewer_queries_see_the_same_keys() -> None:
    model = opened("llama")
    batch = batch_for(model, (40, 40))
    h = capture(model, batch, [Site("resid_pre", 1)])[Site("resid_pre", 1)]
    mu, pos = planted_parts(h, 1)
    reading = readings(model, batch, [1])[1]
    found = {}
    for queries in (12, 1000):
        fold = QKSplit(1, reading, mu, pos, queries)
        state = fold.init()
        fold.update(state, capture(model, batch, fold.sites), batch)
        found[queries] = fold.result(state)
    assert found[1000].rows == 2 * 39
    assert 22 <= found[12].rows <= 24
    assert float((found[12].share - found[1000].share).abs().max()) < 0.2
    assert not torch.equal(found[12].share, found[1000].share)


def test_tokens_beyond_the_last_known_position_are_left_out() -> None:
    model = opened("bert")
    batch = batch_for(model, (7, 4))
    h = capture(model, batch, [Site("resid_pre", 0)])[Site("resid_pre", 0)]
    fold = QKSplit(0, readings(model, batch, [0])[0], h[0].mean(0), h[0, :3])
    state = fold.init()
    fold.update(state, capture(model, batch, fold.sites), batch)
    assert fold.result(state).rows == 6


def parts_at(site: Site, width: int) -> Parts:
    share: dict[str, float] = {"pos": 0.0, "ctx": 0.0, "resid": 0.0}
    return Parts(site, torch.zeros(width), torch.zeros(9, width), (1,) * 9, 1, 9, share, share, {"mu": 0.0, **share}, 1.0)


def test_a_whole_layer_at_once() -> None:
    model = opened("gpt2")
    split = qk_split(model, batch_for(model), 1, parts_at(Site("resid_post", 0), 16))
    assert split.kl.shape == (4, len(PIECES))
    assert split.error < 1e-5
    mu = [number for number, term in enumerate(TERMS) if set(term) & {"mu", "pos"}]
    assert float(split.energy[:, mu].abs().max()) == 0


def test_all_layers_in_one_pass_are_each_layer_alone() -> None:
    model = opened("llama")
    batch = batch_for(model, (7, 5))
    given = [parts_at(Site("resid_pre", layer), 16) for layer in range(3)]
    folds = {f"geometry.qk.{layer}": QKSplit(layer, reading, given[layer].mu, given[layer].pos)
             for layer, reading in readings(model, batch, range(3)).items()}  # fmt: skip
    states = {name: fold.init() for name, fold in folds.items()}
    fold_batch(model, batch, folds, states)
    for layer, (name, fold) in enumerate(folds.items()):
        together, alone = fold.result(states[name]), qk_split(model, batch, layer, given[layer])
        assert torch.equal(together.share, alone.share)
        assert torch.equal(together.kl, alone.kl)
        assert together.windows == 2


def test_parts_of_another_site_are_refused() -> None:
    model = opened("gpt2")
    with pytest.raises(Refusal, match=r"by parts of resid_post\.1: the layer reads resid_post\.0 or resid_pre\.1; pass"):
        qk_split(model, batch_for(model), 1, parts_at(Site("resid_post", 1), 16))


def test_windows_of_one_token_leave_everything_undefined() -> None:
    model = opened("gpt2")
    split = qk_split(model, batch_for(model, (1, 1)), 0, parts_at(Site("resid_pre", 0), 16))
    assert split.undefined == "no query sees two counted keys"
    assert bool(split.share.isnan().all() and split.kl.isnan().all())
    assert split.windows == 0
