"""Relations of heads against sorted rows of dense matrices, planted heads, shuffles, and the shipped pairs."""

from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from microtome.numerics import hash_parts
from microtome.vocabulary import relations
from microtome.vocabulary.circuits import LayerHeads, token_rows
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.relations import (
    Relation,
    read_pairs_of_words,
    relation_findings,
    relation_q,
    relation_rows,
    relation_scores,
    relations_of,
    rows_of,
    salient_operations,
)
from microtome.vocabulary.subject import Subject, subject_of
from tests.unit.model.tiny import opened
from tests.unit.vocabulary.related import plain_gpt2

VOCAB = 60


def subject(width: int = 48) -> Subject:
    """Words w0 .. behind a space, embeddings orthogonal."""
    module = plain_gpt2(width, 2, 1, VOCAB)
    with torch.no_grad():
        rows = torch.randn(VOCAB, width, generator=torch.Generator().manual_seed(4))
        module.transformer.wte.weight.copy_(rows)
    made = subject_of(wrap(module, name="toy"))
    return Subject(**{**vars(made), "texts": [f" w{i}" for i in range(VOCAB)]})


def planted(of: Subject, pairs: list[tuple[int, int]], monkeypatch) -> None:
    """Head 0 of layer 1 sends each source to its target; head 1 does the opposite; 2 and 3 are random."""
    width = of.shape.d_model
    sources = rows_of(of, 1, torch.tensor([a for a, _ in pairs]), "embedding")
    targets = token_rows(of.write, torch.tensor([b for _, b in pairs]))
    matrix = torch.linalg.pinv(sources) @ targets
    left, values, right = torch.linalg.svd(matrix)
    v, o = (left * values).T, right
    noise = [torch.randn(width, width, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    heads = LayerHeads(
        1, torch.stack([v] * 4), torch.stack([v] * 4), torch.stack([v, v, *noise[:2]]), torch.stack([o, -o, *noise[2:]])
    )
    monkeypatch.setattr("microtome.vocabulary.relations.layer_heads", lambda weights, layer, **options: heads)


def relation(pairs: list[tuple[int, int]], k: int = 3) -> Relation:
    source, target = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return Relation("next", source, target, len(pairs), k)


def test_a_planted_relation_and_its_suppression_are_found_and_random_heads_are_not(monkeypatch) -> None:
    of, pairs = subject(), [(i, 59 - i) for i in range(25)]
    planted(of, pairs, monkeypatch)
    scores = list(relation_scores(of, [relation(pairs)], layers=[1], draws=500))
    q = relation_q(scores)
    writes, suppresses = scores
    assert (writes.end, suppresses.end) == ("+", "-")
    assert float(writes.share[0]) == float(suppresses.share[1]) == 1
    assert float(writes.share[1:].max()) < 0.3
    assert float(q[0][0]) < 0.01
    assert float(q[0][2:].min()) > 0.05
    assert float(writes.control[0]) < 0.15
    rows = relation_rows(scores, q, "run").to_pylist()
    assert rows[0]["unit"] == "heads.1/0"
    assert rows[0]["stat"] == "relation:next"
    assert 0.8 < rows[0]["lo"] < rows[0]["value"] == 1
    assert {row["stat"] for row in rows} == {"relation:next", "suppression:next"}
    sentences = [row["sentence"] for row in relation_findings(scores, q)]
    assert any(
        each.startswith("heads.1/0 follows the relation ‘next’: for 100 % of 25 pairs the target is among the first 3")
        for each in sentences
    )
    assert any(each.startswith("heads.1/1 writes against the relation ‘next’") for each in sentences)


def test_a_head_that_writes_all_targets_for_every_source_has_no_relation(monkeypatch) -> None:
    of, pairs = subject(), [(i, 30 + i % 5) for i in range(25)]
    shared = [(a, 30) for a, _ in pairs]
    planted(of, shared, monkeypatch)
    flat = relation([(a, 30 + index % 2) for index, (a, _) in enumerate(pairs)], k=10)
    (scores, _) = relation_scores(of, [flat], layers=[1], draws=300)
    assert float(scores.share[0]) >= 0.5
    assert float(scores.p[0]) > 0.05


@pytest.mark.parametrize("vectors", ["embedding", "effective"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert"])
def test_shares_are_those_of_sorted_rows_of_the_dense_matrix(name: str, vectors) -> None:
    model = opened(name)
    of = subject_of(model, tokens="all")
    asked = relation([(i, 49 - i) for i in range(20)], k=5)
    scores = list(relation_scores(of, [asked], vectors, layers=[1], draws=50))
    from microtome.vocabulary.heads import head_weights

    heads = head_weights(model.weights, 1)
    rows = rows_of(of, 1, asked.source, vectors)
    for head in range(model.shape.heads):
        dense = (rows @ heads.v[head] @ heads.o[head] @ of.write.matrix).double()
        first = dense.argsort(dim=1, descending=True)[:, :5]
        last = dense.argsort(dim=1)[:, :5]
        for found, places in zip(scores, (first, last), strict=True):
            hits = [[target in row for target in asked.target.tolist()] for row in places.tolist()]
            share = sum(hits[i][i] for i in range(20)) / 20
            assert float(found.share[head]) == pytest.approx(share)
            assert float(found.control[head]) == pytest.approx(sum(map(sum, hits)) / 400)


def test_only_the_first_target_counts_where_targets_are_their_sources(tmp_path: Path) -> None:
    of = subject()
    lines = (
        [f"same\tw{i}\tw{i}" for i in range(25)]
        + [f"next\tw{i}\tw{i + 1}" for i in range(25)]
        + ["few\tw1\tw2", "next\tw1\tunknown"]
    )
    path = tmp_path / "pairs.tsv"
    path.write_text("# a comment\n" + "\n".join(lines), "utf-8")
    same, following = relations_of(of, path)
    assert (same.name, same.k, len(same.source)) == ("same", 1, 25)
    assert (following.name, following.k, following.asked, len(following.source)) == ("next", 10, 26, 25)


def test_the_shipped_pairs_are_words_and_each_relation_has_enough() -> None:
    found = read_pairs_of_words()
    assert ("France", "Paris") in found["capital of country"]
    assert len(found) >= 15
    assert sum(len(pairs) >= 30 for pairs in found.values()) >= len(found) - 1
    assert all(
        len(set(pairs)) == len(pairs) and all(word.isalpha() for pair in pairs for word in pair) for pairs in found.values()
    )


def test_words_are_tokens_behind_a_space_as_they_are_written_or_else_any(tmp_path: Path) -> None:
    of, path = subject(), tmp_path / "pairs.tsv"
    path.write_text("next\tw1\tw2\nnext\tW1\tw2\nnext\tw3\tw4\n", "utf-8")
    texts = [f" w{i}" for i in range(VOCAB - 2)] + ["w1", "bare"]
    for shown, kept in ((texts, [1, 3]), ([text.strip() for text in texts[:-2]] + ["x", "y"], [1, 3])):
        (found,) = relations_of(Subject(**{**vars(of), "texts": shown}), path, least=2)
        assert found.source.tolist() == kept
    path.write_text("next\tw1\tw2\nnext\tbare\tw2\nnext\tw3\tw4\n", "utf-8")
    (found,) = relations_of(Subject(**{**vars(of), "texts": texts}), path, least=2)
    assert found.source.tolist() == [1, 3], "a token without a space is inside words, where others have one"


def test_salient_operations_are_the_tokens_a_head_writes_most_for(monkeypatch) -> None:
    of = subject()
    planted(of, [(7, 41)], monkeypatch)
    tokens = of.read.tokens[2:]
    first, *_ = salient_operations(of, 1, 0, tokens, k=3, targets=2)
    assert (first.token, first.targets[0]) == (7, 41)
    assert first.gain > 2
    assert first.control == pytest.approx(first.gain, rel=1e-3), "a rotation changes no length where all of W_O is as long"
    rows = rows_of(of, 1, tokens, "embedding")
    heads = relations.layer_heads(of.weights, 1)
    written = rows @ heads.v[2].T
    gains = [(written @ turn @ heads.o[2]).norm(dim=1) / rows.norm(dim=1) for turn in (torch.eye(48), *turns_of_head(1, 2))]
    tops = [gain.topk(4).values / gain.mean() for gain in gains]
    found = salient_operations(of, 1, 2, tokens, k=4)
    assert [each.token for each in found] == tokens[gains[0].topk(4).indices].tolist()
    assert [each.gain for each in found] == pytest.approx(tops[0].tolist(), rel=1e-3)
    assert [each.control for each in found] == pytest.approx(torch.stack(tops[1:]).mean(0).tolist(), rel=1e-3)


def turns_of_head(layer: int, head: int) -> torch.Tensor:
    return rotations(100, 1, 48, seed=int(hash_parts(0, layer, head)))[:, 0]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    of = subject()
    with pytest.raises(Refusal, match="there is no such file"):
        relations_of(of, tmp_path / "none.tsv")
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\n", "utf-8")
    with pytest.raises(Refusal, match="line 1 of .*bad.tsv: it is no relation, source and target"):
        relations_of(of, bad)
    bad.write_bytes(b"\xff\xfe\t\xff")
    with pytest.raises(Refusal, match="it is not UTF-8 text"):
        relations_of(of, bad)
    with pytest.raises(Refusal, match="none has 20 pairs of which both words are single tokens"):
        relations_of(of)
