"""What tokens mean: whitened embeddings by another way, tokens that have none, and what eight bits a number cost."""

import numpy as np
import torch

from microtome.readout.meanings import rarity, rounded, token_meanings


def _embeddings(vocab: int = 400, width: int = 12) -> torch.Tensor:
    """Words of one topic are near each other, and all have a large part in common that says how frequent they are."""
    random = torch.Generator().manual_seed(0)
    topics = torch.randn(4, width, generator=random)
    frequent = torch.randn(width, generator=random)
    rows = topics[torch.arange(vocab) % 4] + 0.3 * torch.randn(vocab, width, generator=random)
    return rows + 20 * torch.rand(vocab, 1, generator=random) * frequent


def test_meanings_are_whitened_directions_of_centred_embeddings() -> None:
    embeddings = _embeddings()
    found = token_meanings(embeddings, 5)
    away = (embeddings - embeddings.mean(0)).double().numpy()
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    away -= away.mean(0)
    left, _, _ = np.linalg.svd(away, full_matrices=False)
    expected = left[:, :5] / np.linalg.norm(left[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose((found @ found.T).numpy(), expected @ expected.T, atol=1e-4)


def test_a_topic_is_found_that_frequency_hides() -> None:
    embeddings, topic = _embeddings(), torch.arange(400) % 4

    def right(vectors: torch.Tensor) -> float:
        cosine = torch.nn.functional.normalize(vectors, dim=1)
        near = (cosine @ cosine.T).fill_diagonal_(-2).argmax(1)
        return float((topic[near] == topic).float().mean())

    found = token_meanings(embeddings, 8)
    plain = embeddings - embeddings.mean(0)
    whole = torch.nn.functional.normalize(plain, dim=1) @ torch.nn.functional.normalize(plain, dim=1).T

    def apart(cosine: torch.Tensor) -> float:
        same = topic[:, None] == topic
        return float(cosine[same].mean() - cosine[~same].mean())

    assert right(found) == 1.0
    assert apart(found @ found.T) > 2.5 * apart(whole) > 0


def test_a_token_without_a_direction_has_no_meaning_and_missing_directions_are_nothing() -> None:
    embeddings = _embeddings(width=6)
    embeddings[7] = embeddings[torch.arange(400) != 7].mean(0)
    embeddings[7] = embeddings.mean(0)
    found = token_meanings(embeddings, 9)
    assert found.shape == (400, 9)
    assert found[:, 6:].abs().max() == 0
    lengths = found.norm(dim=1)
    assert lengths.isfinite().all()
    torch.testing.assert_close(lengths[:7], torch.ones(7))
    same = token_meanings(torch.ones(10, 4), 3)
    assert same.abs().max() == 0, "where all are alike none means anything"


def test_frequent_tokens_hardly_count() -> None:
    weight = rarity(torch.tensor([500, 499, 1, 0]))
    torch.testing.assert_close(weight, torch.tensor([0.001 / 0.501, 0.001 / 0.500, 0.5, 1.0]))


def test_eight_bits_keep_cosines() -> None:
    vectors = torch.randn(200, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 200)[:, None]
    normal = torch.nn.functional.normalize
    found = rounded(torch.cat([vectors, torch.zeros(1, 96)]))
    assert found.dtype == torch.int8
    assert found[-1].abs().max() == 0
    away = normal(found[:-1].float(), dim=1) @ normal(vectors, dim=1).T - normal(vectors, dim=1) @ normal(vectors, dim=1).T
    assert away.abs().max() < 0.005
