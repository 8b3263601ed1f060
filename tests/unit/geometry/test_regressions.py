"""Faults of the code published with Song & Zhong 2023, one test each, on our way through the same numbers.

More are elsewhere: ids of tokens above 65,535 that wrapped (`corpus/test_joined.py`, `test_identity.py`), query-key parts that did not
add up to the score (`test_attention.py`), and an atlas of one model that is offered another (`atlas/`).
"""

import dataclasses
from pathlib import Path

import pytest
import torch

import microtome as mt
from microtome.capture import SiteGram, material_of, writing_to
from microtome.core import CONTENT, Site
from microtome.corpus import Reading
from microtome.geometry import Decomposition
from microtome.model import Model, capture, wrap
from tests import toys
from tests.unit.geometry.test_decomposition import batch_of, pad
from tests.unit.model.tiny import batch_for, opened

SITE = Site("resid_post", 1)


@pytest.mark.parametrize(("name", "sees_what_follows"), [("bert", True), ("gpt2", False)])
def test_bert_is_not_given_a_causal_mask(name: str, sees_what_follows: bool) -> None:
    model = opened(name)
    batch = batch_for(model)
    ids = batch.ids.clone()
    ids[:, -1] = 5 + (ids[:, -1] + 1) % 40
    before, after = (capture(model, each, [SITE])[SITE] for each in (batch, dataclasses.replace(batch, ids=ids)))
    earlier = (after - before)[:, :-1].abs().amax(2)
    assert bool((earlier > 1e-6).all()) == bool((earlier > 0).any()) == sees_what_follows


def test_no_window_is_taken_twice_even_one_at_a_time(tmp_path: Path) -> None:
    """Topics were windows at linspace(0, N, batch), which with batches of one is the first window again and again."""
    model = toys.toy_decoder()
    material = material_of(model, toys.toy_texts(documents=6), Reading(), window=24, seed=0)
    corpus = material.prepare(writing_to(tmp_path, "test"), "main")
    single = list(corpus.batches(range(corpus.windows), 1, model.device))
    assert [len(batch.ids) for batch in single] == [1] * corpus.windows
    places = {(int(batch.document), int(batch.start)) for batch in single}
    contents = {tuple(batch.ids[batch.counted(CONTENT)].tolist()) for batch in single}
    assert len(places) == len(contents) == corpus.windows > 6


def _decoder(seed: int) -> Model:
    """The same shape with other weights."""
    toy, generator = toys.toy_decoder(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in toy.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return wrap(toy.module, toy.tokenizer)


def test_mu_and_pos_of_another_model_are_never_reused(tmp_path: Path) -> None:
    """BERT's topics were measured about the mu and pos of GPT-2, since both are 768 wide."""
    texts, models = toys.toy_texts(documents=6), [_decoder(1), _decoder(2)]
    for model in models:
        found = mt.geometry.measure(model, texts, window=24, depth="quick", sites=[str(SITE)]).sites[SITE].parts
        material = material_of(model, texts, Reading(), window=24, seed=0)
        corpus = material.prepare(writing_to(tmp_path / model.fingerprint, "test"), "main")
        batches = corpus.batches(range(corpus.windows), 2048, model.device)
        states = torch.cat([capture(model, batch, [SITE])[SITE][batch.counted(CONTENT)] for batch in batches])
        torch.testing.assert_close(found.mu, states.double().mean(0), rtol=0, atol=1e-6)
    assert models[0].fingerprint != models[1].fingerprint


def test_half_precision_states_are_not_summed_in_half_precision() -> None:
    """Means over 800 windows of N(5, 1) were taken in fp16, which is off by 0.016 and more; sampling moves them by 0.035."""
    states = (5 + torch.randn(800, 6, 8, generator=torch.Generator().manual_seed(0))).half()
    exact = states.double()
    total = torch.zeros(6, 8, dtype=torch.float16)
    for window in states:
        total += window
    assert float((total.double() / 800 - exact.mean(0)).abs().mean()) > 0.01
    parts = Decomposition(SITE, torch.full((8,), 5.0), 6)
    gram = SiteGram(SITE, torch.full((8,), 5.0))
    kept = parts.init(), gram.init()
    for first in range(0, 800, 40):
        batch, values = batch_of([6] * 40, first), {SITE: pad(list(states[first : first + 40]), junk=100.0)}
        for fold, state in zip((parts, gram), kept, strict=True):
            fold.update(state, values, batch)
    found, second = parts.result(kept[0]), gram.result(kept[1])
    mu = exact.mean((0, 1))
    torch.testing.assert_close(found.mu, mu, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.pos, exact.mean(0) - mu, rtol=0, atol=1e-7)
    flat = exact.flatten(0, 1) - mu
    torch.testing.assert_close(second.covariance, flat.T @ flat / len(flat), rtol=0, atol=1e-6)
