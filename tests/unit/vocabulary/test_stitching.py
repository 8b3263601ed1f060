"""Two models run as one: exact where one is the other in other coordinates, by hand elsewhere, at chance without a kernel."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from microtome.core import Batch, Refusal, Role, Site
from microtome.model import Model, capture, wrap
from microtome.vocabulary.stitching import (
    KERNELS,
    PAPER,
    Classifier,
    Stitch,
    accuracies,
    answers,
    leaving,
    stitched,
    stitching_kernel,
    trained_kernels,
)
from microtome.vocabulary.subject import Subject, subject_of
from tests.toys import bert, llama
from tests.unit.vocabulary.related import plain_gpt2, word_tokenizer
from tests.unit.vocabulary.test_alignment import turn_stream


def batch_of(ids: torch.Tensor, lengths: list[int] | None = None) -> Batch:
    count = torch.arange(len(ids))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    for row, length in enumerate(lengths or []):
        roles[row, length:] = int(Role.PAD)
    return Batch(ids, roles, count, count, count * 0, (count * 0).to(torch.uint8), count * 0, {})


def texts(vocabulary: int, windows: int = 64, tokens: int = 10) -> Batch:
    return batch_of(torch.randint(vocabulary, (windows, tokens), generator=torch.Generator().manual_seed(2)))


def head(width: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(width, classes, generator=generator), torch.zeros(classes)


@pytest.fixture(scope="module")
def turned() -> tuple[Model, Model, Subject, Subject]:
    """A model, and the same in other coordinates."""
    one, other = llama(), llama()
    turn_stream(other)
    left, right = wrap(one), wrap(other)
    return left, right, subject_of(left, preset="paper"), subject_of(right, preset="paper")


@pytest.mark.parametrize("keep", [0, 1, 2])
@pytest.mark.parametrize("name", ["pseudo-inverse", "centred", "whitened", "procrustes", "tokens"])
def test_other_coordinates_make_no_difference(turned: tuple[Model, Model, Subject, Subject], name: str, keep: int) -> None:
    left, right, mine, other = turned
    batch = texts(left.shape.vocab)
    classifier = Classifier(right, keep, Site("resid_post", 2), *head(24))
    expected = answers(classifier, batch)
    kernel = stitching_kernel(mine, other, name)
    found = stitched(classifier, batch, leaving(left, batch)[keep], kernel)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    without = stitched(classifier, batch, leaving(left, batch)[keep], torch.eye(24))
    assert float((without - expected).abs().max()) > 0.1 * float(expected.abs().max())


def test_labels_survive_the_stitch_and_fall_to_chance_without_its_kernel(turned: tuple[Model, Model, Subject, Subject]) -> None:
    left, right, mine, other = turned
    batch = texts(left.shape.vocab, windows=200)
    weight, _ = head(24)
    bare = answers(Classifier(right, 1, Site("final_norm"), weight, torch.zeros(4)), batch)
    classifier = Classifier(right, 1, Site("final_norm"), weight, -bare.mean(0))
    batch = replace(batch, label=answers(classifier, batch).argmax(1))
    kernels = {name: [stitching_kernel(mine, other, name)] for name in ("pseudo-inverse", "ridge", "random")}
    kernels |= {"none": [torch.eye(24)], "trained": trained_kernels(left, classifier, [batch])}
    found = accuracies(left, classifier, [batch], kernels)
    assert float(found["pseudo-inverse"][1]) == 1
    assert float(found["trained"][1]) == 1
    assert float(found["ridge"][1]) > 0.8
    for name in ("none", "random"):
        assert found[name].shape == (4,)
        assert float(found[name].max()) < 0.55, "four labels"


def test_the_kernel_is_numpys() -> None:
    left, right = (subject_of(wrap(plain_gpt2(width, 1, width)), preset="paper") for width in (16, 24))
    one, two = left.write.matrix.double().numpy(), right.write.matrix.double().numpy()
    np.testing.assert_allclose(stitching_kernel(left, right).numpy(), one @ np.linalg.pinv(two), atol=1e-6)
    fitted = np.linalg.lstsq(one.T, two.T, rcond=None)[0]
    np.testing.assert_allclose(stitching_kernel(left, right, "tokens").numpy(), fitted, atol=1e-6)
    centred = [tokens - tokens.mean(1, keepdims=True) for tokens in (one, two)]
    expected = centred[0] @ np.linalg.pinv(centred[1])
    np.testing.assert_allclose(stitching_kernel(left, right, "centred").numpy(), expected, atol=1e-6)
    turn = stitching_kernel(left, right, "procrustes").double()
    product = turn @ turn.T
    torch.testing.assert_close(product, product[0, 0] * torch.eye(16, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    for factor in (0.99, 1.01):
        assert np.square(one.T @ (factor * turn.numpy()) - two.T).sum() > np.square(one.T @ turn.numpy() - two.T).sum()
    random = [stitching_kernel(left, right, "random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(random[0], random[1])
    assert not torch.allclose(random[0], random[2])
    assert float(random[0].norm() / stitching_kernel(left, right, "ridge").norm()) == pytest.approx(1, rel=1e-4)


def test_a_direction_that_a_folded_norm_takes_from_the_tokens_is_left_out() -> None:
    left, right = (subject_of(wrap(plain_gpt2(width, 1, width)), preset="folded") for width in (16, 24))
    one, two = left.write.matrix.double().numpy(), right.write.matrix.double().numpy()
    assert np.linalg.matrix_rank(two, tol=1e-4) == 23, "the mean is taken out"
    expected = one @ np.linalg.pinv(two, rcond=1e-4)
    np.testing.assert_allclose(stitching_kernel(left, right).numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_only_shared_tokens_make_the_kernel() -> None:
    words = [f"w{number}" for number in range(150)]
    modules = [plain_gpt2(width, 1, width, 160) for width in (16, 24)]
    others = [f"x{number}" for number in range(10)], [f"y{number}" for number in range(10)]
    vocabularies = [*words, *others[0]], [*others[1], *reversed(words)]
    left, right = (
        subject_of(wrap(module, word_tokenizer(vocabulary)), preset="paper")
        for module, vocabulary in zip(modules, vocabularies, strict=True)
    )
    one = modules[0].transformer.wte.weight[:150].detach().T.double().numpy()
    two = modules[1].transformer.wte.weight[10:].flip(0).detach().T.double().numpy()
    np.testing.assert_allclose(stitching_kernel(left, right).numpy(), one @ np.linalg.pinv(two), atol=1e-6)


def test_the_papers_stitch_by_hand() -> None:
    one, two = plain_gpt2(16, 3, 0), plain_gpt2(24, 3, 1)
    with torch.no_grad():
        one.transformer.ln_f.weight.mul_(1.7)
    left, right = wrap(one), wrap(two)
    classifier = Classifier(right, 1, Site("resid_post", 2), *head(24))
    batch, kernel = texts(300), torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    found = stitched(classifier, batch, leaving(left, batch, PAPER.leaving)[2], kernel, PAPER.entering)
    with torch.no_grad():
        state = one.transformer(batch.ids, output_hidden_states=True).hidden_states[2]
        state = one.transformer.ln_f(state) @ kernel + two.transformer.wpe.weight[:10]
        for block in two.transformer.h[1:]:
            state = block(state)
            state = state if isinstance(state, torch.Tensor) else state[0]
        expected = state.mean(1) @ classifier.weight
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stitched(classifier, batch, leaving(left, batch)[2], kernel), expected, atol=0.1)


def test_an_encoder_embeds_what_enters_and_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    config: Any = bert().config
    module = BertModel(config).eval()
    with torch.no_grad():
        module.embeddings.LayerNorm.bias.normal_()
    right, left = wrap(module), wrap(bert())
    classifier = Classifier(right, 0, Site("resid_post", 1), *head(24))
    short = batch_of(texts(right.shape.vocab).ids[:, :6])
    padded = batch_of(torch.cat([short.ids, torch.full((len(short.ids), 3), 5)], 1), [6] * len(short.ids))
    kernel = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    found = [stitched(classifier, batch, leaving(left, batch)[1], kernel, "embedded") for batch in (short, padded)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    states = leaving(left, short)[1] @ kernel
    with torch.no_grad():
        expected = module(inputs_embeds=states).last_hidden_state.mean(1) @ classifier.weight
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_the_trained_kernel_is_least_squares_over_tokens_that_count() -> None:
    left, right = wrap(plain_gpt2(16, 2, 0)), wrap(plain_gpt2(24, 2, 1))
    classifier = Classifier(right, 1, Site("final_norm"), *head(24))
    batch = batch_of(texts(300).ids, [4 + row % 7 for row in range(64)])
    found = trained_kernels(left, classifier, [batch_of(batch.ids[:30], [4 + row % 7 for row in range(30)]), _rest(batch)])
    counted = batch.roles != Role.PAD
    one = capture(left, batch, [Site("resid_post", 1)])[Site("resid_post", 1)][counted]
    two = capture(right, batch, [Site("resid_pre", 1)])[Site("resid_pre", 1)][counted]
    expected = torch.linalg.lstsq(one.double(), two.double()).solution
    torch.testing.assert_close(found[2].double(), expected, rtol=0.02, atol=0.01)
    assert len(found) == 3


def _rest(batch: Batch) -> Batch:
    return batch_of(batch.ids[30:], [4 + row % 7 for row in range(30, 64)])


def test_what_cannot_be_stitched_is_refused() -> None:
    left, right = (subject_of(wrap(plain_gpt2(width, 1, width)), preset="paper") for width in (16, 24))
    with pytest.raises(Refusal, match=f"use one of {', '.join(KERNELS)}"):
        stitching_kernel(left, right, "inverse")
    few, other = (subject_of(wrap(plain_gpt2(width, 1, width, 20)), preset="paper") for width in (16, 24))
    with pytest.raises(Refusal, match="20 shared tokens do not span 24 directions"):
        stitching_kernel(few, other)
    with pytest.raises(Refusal, match="block 1 of .* it has 1, counted from 0"):
        Classifier(wrap(plain_gpt2(16, 1, 0)), 1, Site("final_norm"), *head(16))
    assert Stitch() == Stitch("as it is", "as it is")
