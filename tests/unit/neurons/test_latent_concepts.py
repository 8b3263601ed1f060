"""Latent concepts: planted clusters come back, are aligned with the labels that made them, and a word's label is no concept."""

import dataclasses

import pytest
import torch
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.neurons.latent_concepts import Ward, alignment, concept_vectors, frequent, latent_concepts, spelled
from microtome.probes import LabelledText, LabelledWords, aligned, word_vectors
from tests.toys import toy_decoder

CLASSES, WORDS, TIMES = 4, 6, 10


def words_of(kind: Tensor, y: Tensor, spellings: tuple[str, ...] = ()) -> LabelledWords:
    rows = torch.arange(len(kind))
    spellings = spellings or tuple(f"w{each}" for each in kind.tolist())
    classes = tuple(f"c{each}" for each in range(int(y.max()) + 1))
    return LabelledWords(rows, rows, rows, y, rows % 8, rows % 8 % 2, kind, classes, spellings, 0, 0, {})


def planted(seed: int = 0, spread: float = 0.05) -> tuple[Tensor, LabelledWords]:
    """Each token's vector is the centre of its own class, whatever its word: every word is of every class."""
    generator = torch.Generator().manual_seed(seed)
    rows = CLASSES * WORDS * TIMES
    kind = torch.arange(rows) % WORDS
    y = torch.randint(CLASSES, (rows,), generator=generator)
    centres = torch.randn(CLASSES, 12, generator=generator)
    return centres[y] + spread * torch.randn(rows, 12, generator=generator), words_of(kind, y)


def test_planted_clusters_come_back_and_are_aligned() -> None:
    x, words = planted()
    found = latent_concepts(x, words, Ward(CLASSES, most=1000))
    pairs = {(int(a), int(b)) for a, b in zip(found.cluster, words.y[found.row], strict=True)}
    assert len(pairs) == CLASSES
    assert found.words.tolist() == [WORDS] * CLASSES
    judged = alignment(found, words)
    assert (judged.aligned, judged.several, judged.held) == (1.0, 1.0, 1.0)
    assert sorted(judged.label.tolist()) == list(range(CLASSES))
    assert judged.labels.tolist() == [1] * CLASSES
    assert (judged.tokens[:, 0] == 0).all()
    assert float(judged.p[0]) == pytest.approx(1 / 21)


def test_clusters_of_single_words_are_no_concepts() -> None:
    """Vectors are words, and labels are the words': all is aligned, but so it is when words have other words' labels."""
    kind = torch.arange(240) % 24
    words = words_of(kind, kind % CLASSES)
    x = torch.eye(24)[kind] + 0.01 * torch.randn(240, 24, generator=torch.Generator().manual_seed(1))
    judged = alignment(latent_concepts(x, words, Ward(24, fewest=1)), words)
    assert judged.aligned == 1.0
    assert torch.isnan(torch.tensor(judged.several))
    assert (judged.tokens[:, 0] < 0.2).all()
    assert (judged.words[:, 0] == 1).all()
    assert float(judged.p[0]) == 1.0


def test_labels_with_no_part_in_the_vectors_are_not_found() -> None:
    x, words = planted()
    y = torch.randint(CLASSES, (len(x),), generator=torch.Generator().manual_seed(9))
    judged = alignment(latent_concepts(x, words, Ward(CLASSES, most=1000)), words, (y, words.classes))
    assert judged.aligned == 0.0
    assert (judged.label == -1).all()
    assert (judged.purity < 0.6).all()


def test_the_threshold_is_of_a_clusters_tokens_and_halves_are_kept_apart() -> None:
    kind = torch.arange(80)
    cluster = (kind >= 40).long()
    y = cluster.clone()
    y[:4] = 1  # 36 of 40 in cluster 0
    x = torch.stack([cluster * 10.0, torch.zeros(80)], 1)
    words = words_of(kind, y)
    found = latent_concepts(x, words, Ward(2, fewest=1))
    for threshold, share in ((0.95, 0.5), (0.9, 1.0)):
        judged = alignment(found, words, threshold=threshold, draws=1)
        assert judged.aligned == share
        assert judged.purity.sort().values.tolist() == [0.9, 1.0]
    # by the discover half (even rows: 2 of the 4) 18 of 20 have it, and of the confirm half as many
    assert alignment(found, words, threshold=0.9, draws=1).held == pytest.approx(38 / 40)
    assert alignment(found, words, draws=1).held == 1.0
    nothing = alignment(found, dataclasses.replace(words, half=words.half * 0 + int(Half.CONFIRM)), draws=1)
    assert torch.isnan(torch.tensor(nothing.held))


def test_words_are_filtered_by_how_often_they_come() -> None:
    kind = torch.tensor([0] * 3 + [1] * 10 + [2] * 5)
    rows = frequent(kind, Ward(fewest=4, most=6))
    assert kind[rows].bincount().tolist() == [0, 6, 5]
    assert torch.equal(rows, rows.sort().values)
    assert len(rows.unique()) == len(rows)
    assert not torch.equal(rows, frequent(kind, Ward(fewest=4, most=6, seed=1)))
    few = frequent(kind, Ward(fewest=4, most=6, rows=6))
    assert kind[few].bincount(minlength=3).tolist() in ([0, 6, 0], [0, 0, 5])


def test_spellings_are_labels_of_words() -> None:
    names = ("Going", "going", "NASA", "iPod")
    words = words_of(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]), names)
    y, classes = spelled(words, "casing")
    assert [classes[each] for each in y.tolist()] == ["title", "lower", "upper", "mixed"]
    y, classes = spelled(words, "last three letters")
    assert [classes[each] for each in y.tolist()] == ["ing", "ing", "asa", "pod"]


def test_vectors_of_units_are_what_they_write() -> None:
    model = toy_decoder()
    text = LabelledText("a", "the river holds a stone", ("river", "stone"), ("N", "M"), ((4, 9), (18, 23)))
    other = dataclasses.replace(text, document="b")
    words = aligned(model.tokenizer, [text, other])
    site = Site("mlp_act", 1)
    raw, found = word_vectors(model, [text, other], words, [site])[site], concept_vectors(model, [text, other], words, site)
    torch.testing.assert_close(found, raw * model.weights.get("W_out", 1).norm(dim=1).float())
    stream = Site("resid_post", 1)
    torch.testing.assert_close(
        concept_vectors(model, [text, other], words, stream), word_vectors(model, [text, other], words, [stream])[stream]
    )


def test_reversing_units_changes_no_cluster() -> None:
    x, words = planted(spread=0.5)
    signs = torch.where(torch.arange(12) % 2 == 0, -1.0, 1.0)
    one, other = (latent_concepts(each, words, Ward(7)) for each in (x, x * signs))
    assert torch.equal(one.cluster, other.cluster)


def test_bad_input_is_refused() -> None:
    x, words = planted()
    with pytest.raises(Refusal, match="500 clusters"):
        latent_concepts(x, words, Ward(500))
    with pytest.raises(Refusal, match="not finite"):
        latent_concepts(x / 0, words, Ward(3))
