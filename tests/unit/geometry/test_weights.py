"""Query-key weights in the positional basis: planted form found, random weights read as nothing, factors against scores."""

import math

import pytest
import torch
from scipy.stats import hypergeom

from microtome.core import Refusal, Site
from microtome.geometry.weights import Factors, positional_basis, positional_form, qk_factors, rotated
from microtome.model import Norm, capture
from microtome.model.scoring import scorings
from tests.unit.model.tiny import batch_for, opened

WIDTH, RANK = 96, 6


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(seed: int = 0) -> torch.Tensor:
    """A position part of rank `RANK` with a little noise, and fewer rows than columns."""
    return drawn(40, RANK, seed=seed) @ drawn(RANK, WIDTH, seed=seed + 1) + 1e-3 * drawn(40, WIDTH, seed=seed + 2)


def test_the_basis_is_orthonormal_and_leads_with_the_positions() -> None:
    pos = positions()
    basis = positional_basis(pos)
    torch.testing.assert_close(basis.T @ basis, torch.eye(WIDTH, dtype=torch.float64))
    energy = (pos @ basis).square().sum(0)
    assert float(energy[:RANK].sum() / energy.sum()) > 0.9999
    assert torch.equal(energy[:RANK], energy[:RANK].sort(descending=True).values)


def test_one_head_is_rotated_as_the_full_matrix_would_be() -> None:
    query, key, basis = drawn(WIDTH, 4, seed=1), drawn(WIDTH, 4, seed=2), positional_basis(positions())
    whole = query @ key.T
    diagonal, entries = rotated(query, key, basis)
    torch.testing.assert_close(diagonal, whole.diagonal())
    torch.testing.assert_close(entries, basis.T @ (whole - torch.diag(whole.diagonal())) @ basis)
    torch.testing.assert_close(rotated(query, key, basis[:, :7])[1], entries[:7, :7])


def test_a_planted_low_rank_form_is_found() -> None:
    """W = V L V^T + D + noise, as factors of full width; the second head has the noise alone."""
    basis = positional_basis(positions())
    corner = 3 * torch.diag(torch.linspace(2, 1, RANK, dtype=torch.float64)) + drawn(RANK, RANK, seed=4)
    noise, diagonal = 0.02 * drawn(2, WIDTH, WIDTH, seed=5), 5 * drawn(WIDTH, seed=6)
    first = basis[:, :RANK] @ corner @ basis[:, :RANK].T + torch.diag(diagonal) + noise[0]
    whole = torch.stack([first, noise[1] + torch.diag(diagonal)])
    form = positional_form(Factors(whole, torch.eye(WIDTH, dtype=torch.float64).expand(2, -1, -1)), basis, RANK)
    assert float(form.inside[0]) > 0.6 * RANK**2
    assert float(form.fraction[0]) > 0.8
    assert float(form.survival_p[0]) < 1e-30
    assert float(form.energy[0]) > 0.8
    assert float(form.inside_p[0]) == float(form.energy_p[0]) == pytest.approx(1 / 101)
    assert form.chance == pytest.approx((RANK / WIDTH) ** 2)
    assert float(form.inside_control[0]) < 0.2
    assert float(form.energy_control[0]) == pytest.approx(form.chance, rel=0.3)
    assert float(form.inside[1]) <= 1
    assert float(form.energy[1]) < 2 * form.chance
    assert float(form.diagonal[1]) > 0.95


def test_random_weights_read_as_nothing() -> None:
    heads = 40
    factors = Factors(drawn(heads, WIDTH, 8, seed=11), drawn(heads, WIDTH, 8, seed=12))
    form = positional_form(factors, positional_basis(positions()), RANK, draws=200)
    assert float(form.energy.mean()) == pytest.approx(form.chance, rel=0.15)
    assert float(form.energy.mean() / form.energy_control.mean()) == pytest.approx(1, rel=0.15)
    assert float(form.inside.sum()) <= 3
    # p-values of a null are spread evenly: about 5 % are below 0.05, half below one half
    assert int((form.energy_p < 0.05).sum()) <= 6
    assert 10 <= int((form.energy_p < 0.5).sum()) <= 30
    assert int((form.inside_p < 0.05).sum()) <= 3


def test_numbers_of_the_entries_are_those_of_the_paper() -> None:
    factors = Factors(drawn(1, WIDTH, 3, seed=21), drawn(1, WIDTH, 3, seed=22))
    basis = positional_basis(positions())
    _, entries = rotated(factors.query[0], factors.key[0], basis)
    form = positional_form(factors, basis, RANK)
    assert float(form.deviation) == pytest.approx(float(entries.std(correction=0)))
    assert (float(form.largest), float(form.smallest)) == (float(entries.max()), float(entries.min()))
    kept = entries.abs() > entries.std(correction=0) * math.sqrt(2 * math.log(WIDTH**2))
    assert float(form.surviving) == float(kept.sum()) > 0
    inside = int(kept[:RANK, :RANK].sum())
    tail = sum(hypergeom.pmf(n, WIDTH**2, RANK**2, int(kept.sum())) for n in range(inside, RANK**2 + 1))
    assert float(form.survival_p) == pytest.approx(tail)


def test_the_universal_threshold_of_768_dimensions() -> None:
    factors = Factors(drawn(1, 768, 1, seed=1), drawn(1, 768, 1, seed=2))
    form = positional_form(factors, torch.eye(768, dtype=torch.float64), 10, draws=1)
    assert float(form.threshold / form.deviation) == pytest.approx(5.155, abs=5e-4)


def test_weights_of_zero_have_no_fractions() -> None:
    nothing = torch.zeros(1, WIDTH, 2, dtype=torch.float64)
    form = positional_form(Factors(nothing, nothing), positional_basis(positions()), RANK, draws=5)
    for values in (form.fraction, form.survival_p, form.energy, form.energy_p, form.diagonal):
        assert math.isnan(float(values))


def scale_of(norm: Norm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    return (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


@pytest.mark.parametrize("name", ["llama", "gemma", "phi3", "modernbert"])
def test_factors_at_an_offset_give_the_scores_of_the_model(name: str) -> None:
    """Families without biases, in layer 1: scores are x_i W(i - j) x_j^T with x the stream over its norm's size."""
    model = opened(name)
    batch, layer = batch_for(model), 1
    seen = capture(model, batch, [Site("resid_pre", layer), Site("attn_scores", layer)])
    h = seen[Site("resid_pre", layer)][0]
    norm = model.weights.norm("attn_norm", layer)
    assert norm.bias is None or not bool(norm.bias.any())
    x = h * scale_of(norm, h)
    scoring = scorings(model, batch, [layer])[layer]
    for offset in (0, 1, 3):
        factors = qk_factors(model.weights, layer, model.shape, scoring=scoring, offset=offset)
        for query in range(offset, 7):
            key = query - offset
            found = torch.einsum("d,hde,hfe,f->h", x[query], factors.query, factors.key, x[key])
            scores = seen[Site("attn_scores", layer)][0, :, query, key]
            if float(scores.max()) > -1e30:  # a window may hide it
                torch.testing.assert_close(found, scores, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_gains_of_qk_norms_are_in_the_factors(name: str) -> None:
    """Up to the sizes by which the norms divide: of a token's heads (Qwen3), or of all heads together (OLMo 2)."""
    model = opened(name)
    batch = batch_for(model)
    seen = capture(model, batch, [Site(part, 1) for part in ("resid_pre", "q", "k", "attn_scores")])
    x = seen[Site("resid_pre", 1)][0]
    if model.weights.has("attn_norm", 1):
        x = x * scale_of(model.weights.norm("attn_norm", 1), x)
    sizes = {}
    for part in "qk":
        heads, norm = seen[Site(part, 1)][0], model.weights.norm(f"{part}_norm", 1)
        sizes[part] = (
            scale_of(norm, heads)[..., 0] if name == "qwen3" else scale_of(norm, heads.flatten(1)).expand(-1, heads.shape[1])
        )
    factors = qk_factors(model.weights, 1, model.shape, scoring=scorings(model, batch, [1])[1], offset=2)
    found = torch.einsum("d,hde,hfe,f->h", x[5], factors.query, factors.key, x[3])
    group = model.shape.heads // model.shape.heads_kv
    found = found * sizes["q"][5] * sizes["k"][3].repeat_interleave(group)
    torch.testing.assert_close(found, seen[Site("attn_scores", 1)][0, :, 5, 3], rtol=2e-4, atol=1e-5)


def test_a_folded_layer_norm_centres_and_a_raw_one_is_left_out() -> None:
    model = opened("gpt2")
    query, key = (model.weights.get(f"W_{letter}", 1) for letter in "QK")
    raw = qk_factors(model.weights, 1, model.shape, gain="raw")
    torch.testing.assert_close(raw.query @ raw.key.mT, query @ key.mT / 2)  # sqrt(d_head) = 2
    gain = torch.diag(model.weights.norm("attn_norm", 1).gain)
    centre = torch.eye(16) - 1 / 16
    folded = qk_factors(model.weights, 1, model.shape)
    torch.testing.assert_close(folded.query @ folded.key.mT, centre @ gain @ query @ key.mT @ gain @ centre / 2)


def test_a_layer_norm_over_queries_is_centred_too() -> None:
    model = opened("phi-normed")
    raw = qk_factors(model.weights, 1, model.shape, gain="raw")
    gains = [torch.diag(model.weights.norm(f"{part}_norm", 1).gain) for part in "qk"]
    centre = torch.eye(4) - 1 / 4
    query = model.weights.get("W_Q", 1) @ centre @ gains[0]
    key = (model.weights.get("W_K", 1) @ centre @ gains[1]).repeat_interleave(2, 0)
    torch.testing.assert_close(raw.query @ raw.key.mT, query @ key.mT / 2)


def test_what_has_no_meaning_is_refused() -> None:
    model = opened("llama")
    with pytest.raises(Refusal, match="weights at offset 2: rotations are not known; pass the layer's `scoring`"):
        qk_factors(model.weights, 0, model.shape, offset=2)
    scoring = scorings(model, batch_for(model), [0])[0]
    with pytest.raises(Refusal, match="the rotation of position 7: the window it was learnt from has 7 tokens"):
        qk_factors(model.weights, 0, model.shape, scoring=scoring, offset=7)
    factors = Factors(drawn(1, WIDTH, 2, seed=0), drawn(1, WIDTH, 2, seed=1))
    for basis, rank in (
        (torch.eye(WIDTH)[:, :5].double(), 2),
        (torch.eye(WIDTH).double(), WIDTH),
        (torch.eye(WIDTH).double(), 0),
    ):
        with pytest.raises(Refusal, match="it needs a full basis and a rank between 1 and d_model - 1"):
            positional_form(factors, basis, rank)
