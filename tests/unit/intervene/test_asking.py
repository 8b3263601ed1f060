"""Asking at the last token alone: the same answers and gradients as whole passes give, in every family of decoders."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import Path, Question, integrated_gradients
from microtome.intervene.asking import LastTokens, Whole, asking
from tests.unit.model.tiny import batch_for, opened

DECODERS = ["gpt2", "llama", "gpt_neox", "opt", "gemma2", "mistral", "bloom", "qwen3"]
LENGTHS = (7, 5, 7, 4)


def question_at_the_end(lengths: tuple[int, ...] = LENGTHS) -> Question:
    return Question(torch.tensor(lengths) - 1, torch.arange(len(lengths)) + 3)


@pytest.mark.parametrize("name", DECODERS)
def test_answers_and_gradients_are_those_of_whole_passes(name: str) -> None:
    model, question = opened(name), question_at_the_end()
    batch = batch_for(model, LENGTHS)
    whole, quick = (
        integrated_gradients(model, batch, question, path=Path("gauss", 3), passes=passes, at_once=5)
        for passes in ("whole", "quickest")
    )
    for part in ("values", "start", "end"):
        torch.testing.assert_close(getattr(quick, part), getattr(whole, part), atol=1e-7, rtol=1e-4)
    assert float(whole.values.abs().max()) > 1e-6


@pytest.mark.parametrize("name", DECODERS)
def test_rows_are_changed_each_in_its_own_way(name: str) -> None:
    """Three rows of each window: as it is, one unit off, all doubled; and what one changes does not reach another."""
    model, question = opened(name), question_at_the_end()
    batch = batch_for(model, LENGTHS)
    factor = torch.ones(3, model.shape.d_mlp)
    factor[1, 2], factor[2] = 0, 2
    rows = torch.cartesian_prod(torch.arange(len(LENGTHS)), torch.arange(3))
    found = []
    for subject in (Whole(model, batch, question), LastTokens(model, batch, question)):
        answer = torch.zeros(len(LENGTHS), 3)
        for some in subject.together(rows, 4):
            window, way = some.T
            change = {Site("mlp_act", 1): lambda value, way=way: value * factor[way].to(value)}
            answer[window, way] = subject.answers(window, change).float()
        found.append(answer)
    torch.testing.assert_close(found[1], found[0], atol=1e-7, rtol=1e-4)
    assert bool((found[0][:, 0] != found[0][:, 2]).all())


def test_the_quickest_way_is_the_one_that_there_is() -> None:
    decoder, encoder = opened("llama"), opened("bert")
    batch = batch_for(decoder, LENGTHS)
    assert isinstance(asking(decoder, batch, question_at_the_end()), LastTokens)
    early = Question(torch.tensor([2, 2, 2, 2]), torch.arange(4))
    assert isinstance(asking(decoder, batch, early), Whole)
    assert isinstance(asking(encoder, batch_for(encoder, LENGTHS), question_at_the_end()), Whole)
    with pytest.raises(Refusal, match="not asked behind two tokens"):
        LastTokens(decoder, batch, early)
    with pytest.raises(Refusal, match="the model is no decoder"):
        LastTokens(encoder, batch_for(encoder, LENGTHS), question_at_the_end())
