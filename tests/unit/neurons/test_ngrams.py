"""N-gram detectors: a planted bigram among other uses of its last token, a token detector beside it, and counts by hand."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from microtome.capture import fold_batch
from microtome.core import Batch, Half, Refusal, Role, Site
from microtome.examples import Contexts, UnitSurvey
from microtome.model import capture
from microtome.neurons import Neurons
from microtome.neurons.ngrams import gram_counts, grams_at, ngram_detectors
from tests.unit.neurons.planted import contexts_at
from tests.unit.neurons.planted_models import KINDS, Kind, bigram_model

VOCAB, K = 12, 6
SELF = torch.arange(VOCAB)


def batch_of(ids: Tensor, half: Tensor) -> Batch:
    index = torch.arange(len(ids))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    return Batch(ids, roles, index, index, index * 0, half.to(torch.uint8), index * 0, {})


def text() -> Batch:
    """40 windows: at place 4 token 9, after 7 in every second window; 3 and then 5 at places 8 and 9, always together."""
    ids = torch.randint(0, 3, (40, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 4] = 9
    ids[:, 3] = torch.where(torch.arange(40) // 2 % 2 == 0, 7, 8)
    ids[:, 2] = 6
    ids[:, 8], ids[:, 9] = 3, 5
    return batch_of(ids, torch.arange(40) % 2)


def at_windows(windows: list[list[list[int]]], positions: list[int]) -> Contexts:
    """Contexts at the top end in these windows, by half and unit, each unit at one place."""
    planted = contexts_at([[[1] * K for _ in unit] for unit in windows], signed=False)
    place = torch.tensor(positions, dtype=torch.int32)[None, :, None].expand(2, -1, K)
    return replace(planted, window=torch.tensor(windows), position=place)


def cases() -> Contexts:
    """Unit 0: after 7 only. Unit 1: token 9 however it comes. Unit 2: token 5, which always comes after 3."""
    both = [[half + 4 * n for n in range(K)] for half in (0, 1)]
    mixed = [[half + 2 * n for n in range(K)] for half in (0, 1)]
    return at_windows([[both[half], mixed[half], mixed[half]] for half in (0, 1)], [4, 4, 9])


def once() -> Iterable[Batch]:
    whole = text()
    yield whole.take(torch.arange(15))
    yield whole.take(torch.arange(15, 40))


def test_only_the_planted_bigram_is_more_than_its_token() -> None:
    (found,) = ngram_detectors([cases()], once, SELF)
    assert found.gram[0].tolist() == [[7, 9], [7, 9], [3, 5]]
    assert found.hits[0].tolist() == [6, 3, 6]
    assert found.alike[0].tolist() == [6, 6, 6]
    assert found.expected[0].tolist() == [0.5, 0.5, 1.0]
    assert found.p[0, 0] == pytest.approx(0.5**6)
    assert found.p[0, 1] == pytest.approx(scipy.stats.binom.sf(2, 6, 0.5))
    assert found.p[0, 2] == 1


def test_a_bigram_is_no_trigram() -> None:
    (found,) = ngram_detectors([cases()], once, SELF, order=3)
    assert found.gram[0, 0].tolist() == [6, 7, 9]
    assert found.p[0, 0] == 1


def test_runs_are_the_tokens_before() -> None:
    (grams,) = grams_at([cases()], once(), SELF, 3)
    ids = text().ids
    for half, unit, place in ((0, 0, 4), (1, 2, 9)):
        window = int(cases().window[half, unit, 5])
        assert grams[half, unit, 5].tolist() == ids[window, place - 2 : place + 1].tolist()


def test_counts_are_those_of_the_confirm_half() -> None:
    grams = torch.tensor([[7, 9], [3, 5], [5, 3], [-1, 9]])
    whole, rest = gram_counts(once(), grams, SELF)
    assert whole.tolist() == [10, 20, 0, 0]
    assert rest.tolist()[:2] == [20, 20]
    assert rest[3] == 0
    confirm = text().ids[text().half == int(Half.CONFIRM)]
    assert rest[2] == (confirm[:, 1:] == 3).sum()


def test_spellings_are_one_token() -> None:
    spelling = SELF.clone()
    spelling[8] = 7
    (found,) = ngram_detectors([cases()], once, spelling)
    assert found.expected[0, 0] == 1
    assert found.hits[0, 1] == 6


def test_what_has_nothing_before_it_is_not_tried() -> None:
    early = replace(cases(), position=torch.zeros(2, 3, K, dtype=torch.int32))
    (found,) = ngram_detectors([early], once, SELF)
    assert (found.gram == -1).all()
    assert (found.tried == 0).all()
    assert np.isnan(found.p).all()


def test_several_bases_are_tested_as_each_alone() -> None:
    early = replace(cases(), position=torch.full((2, 3, K), 2, dtype=torch.int32))
    together = ngram_detectors([cases(), early], once, SELF)
    for found, alone in zip(together, (cases(), early), strict=True):
        (own,) = ngram_detectors([alone], once, SELF)
        assert torch.equal(found.gram, own.gram)
        assert torch.equal(found.expected.nan_to_num(-1), own.expected.nan_to_num(-1))
        assert torch.equal(found.hits, own.hits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_s_unit_of_two_words_is_a_bigram_and_those_of_one_are_not(kind: Kind, dtype: torch.dtype) -> None:
    """Unit 0 fires at w5 after w4, unit 1 at w5, unit 2 after w4; each is surveyed as in a run."""
    model = bigram_model(kind, dtype=dtype)
    ids = torch.randint(2, 10, (80, 24), generator=torch.Generator().manual_seed(0))
    batch = batch_of(ids, torch.arange(80) % 2)
    fold = UnitSurvey(Neurons(0, model.shape.d_mlp), k=K)
    states = {"survey": fold.init()}
    fold_batch(model, batch, {"survey": fold}, states)
    contexts = fold.result(states["survey"]).contexts
    (active,) = capture(model, batch, [Site("mlp_act", 0)]).values()
    assert torch.equal(active[:, 1:, 0] > 4, (ids[:, 1:] == 5) & (ids[:, :-1] == 4))
    for order, bigrams in ((2, [0]), (3, [])):
        (found,) = ngram_detectors([contexts], lambda: [batch], torch.arange(10), order=order)
        top = found.ends.index("top")
        assert np.flatnonzero(found.p[top] < 0.05).tolist() == bigrams
        assert found.gram[top, 0, -2:].tolist() == [4, 5]
        assert found.gram[top, 1, -1] == 5
        assert found.gram[top, 2, -2] == 4
        assert (found.tried[top, :3] > K - 2).all()
        assert (found.tried[top, 3:] == 0).all()  # dead
        if order == 2:
            assert found.hits[top, 0] == found.alike[top, 0] == K
            assert found.p[top, 0] < 1e-4
            assert found.expected[top, 0] == pytest.approx(1 / 8, abs=0.05)


def test_refusals() -> None:
    with pytest.raises(Refusal, match="runs of 1 tokens"):
        ngram_detectors([cases()], once, SELF, order=1)
    with pytest.raises(Refusal, match="ask for runs of 2 or 3"):
        ngram_detectors([cases()], once, SELF, order=20)
