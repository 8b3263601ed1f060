"""Changes: what is planted is found and nothing else; what is measured is what the difference of dense matrices gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from microtome.core import Refusal
from microtome.model import open_checkpoint, wrap
from microtome.model.adapter import adapted
from microtome.readout import fold_norm
from microtome.store import write_table
from microtome.vocabulary.changed import block_rows, change_findings, change_rows, embedding_rows, significance
from microtome.vocabulary.changes import BlockChange, changes, embedding_changes, leading_directions, other_changes
from microtome.vocabulary.lists import WordList, word_list
from microtome.vocabulary.parameters import block_of, groups_of
from microtome.vocabulary.subject import Subject, subject_of
from tests import toys
from tests.unit.model.adapters import linear, save_adapter
from tests.unit.model.tiny import built

VALUES = "model.layers.1.self_attn.v_proj.weight"


def subject(module: PreTrainedModel, name: str = "toy") -> Subject:
    return subject_of(wrap(module, toys.decoder_tokenizer(), name=name))


def towards(of: Subject, token: int) -> Tensor:
    """A vector of W_V of layer 1 as it is stored that reads as the token and nothing before: the token's own, unfolded."""
    column = of.write.matrix[:, int(torch.searchsorted(of.write.tokens, token))]
    return column / of.weights.norm("attn_norm", 1).gain


def tuned_by(name: str, change: Tensor) -> PreTrainedModel:
    module = toys.llama()
    with torch.no_grad():
        module.get_parameter(name).add_(change)
    return module


@pytest.fixture(scope="module")
def base() -> Subject:
    return subject(toys.llama(), "before")


@pytest.fixture(scope="module")
def wonderful(base: Subject) -> int:
    """The token with the longest vector, which no other token's vector meets better."""
    return int(base.write.tokens[base.write.matrix.norm(dim=0).argmax()])


@pytest.fixture(scope="module")
def planted(base: Subject, wonderful: int) -> tuple[Subject, list[BlockChange], Tensor]:
    """W_V of layer 1 with the word added to each of its 16 vectors but one, with these factors."""
    factors = torch.linspace(-1.0, 1.4, 16).round(decimals=2)
    factors[5] = 0
    tuned = subject(tuned_by(VALUES, factors[:, None] * towards(base, wonderful)), "after")
    return tuned, list(changes(base, tuned)), factors


def test_a_planted_change_of_one_matrix_is_found_first_and_all_others_are_zero(
    planted: tuple[Subject, list[BlockChange], Tensor], base: Subject, wonderful: int
) -> None:
    tuned, found, factors = planted
    assert sum(each.total for each in found) == sum(len(block_of(base.weights, g, 0 if g.name != "final_norm" else None).rows)
                                                    * (1 if g.name == "final_norm" else 3) for g in groups_of(base.weights))  # fmt: skip
    differing = [each for each in found if each.addresses]
    assert [(each.group, each.layer) for each in differing] == [("W_V", 1)]
    assert all(each.whole == 0 for each in found if not each.addresses)
    (each,) = differing
    assert [str(address) for address in each.addresses] == [f"W_V.1.{i // 8}/{i % 8}" for i in range(16) if i != 5]
    before = block_of(base.weights, groups_of(base.weights, ["W_V"])[0], 1).rows
    kept = factors != 0
    added = factors[kept, None] * towards(base, wonderful) * base.weights.norm("attn_norm", 1).gain
    torch.testing.assert_close(each.moved, added.norm(dim=1) / before[kept].norm(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(each.cosine, torch.cosine_similarity(before[kept], before[kept] + added), rtol=1e-4, atol=1e-5)
    assert each.whole == pytest.approx(float(added.norm() / before.norm()), rel=1e-4)
    assert each.reading is not None
    assert each.directions is not None
    ends = (factors[kept][each.reading.vectors] < 0).long()
    assert each.reading.top.tokens[torch.arange(15), ends, 0].tolist() == [wonderful] * 15
    assert int(each.directions.top.tokens[0, 0, 0]) == wonderful
    assert float(each.directions.share[0]) == pytest.approx(1, abs=1e-4)
    assert float(each.directions.values[0]) == pytest.approx(float(added.norm()), rel=1e-4)
    (finding, *_) = change_findings(found, significance(found), base.name, tuned.texts)
    assert finding["subject"] == "W_V of layer 1"
    assert "15 of 448 vectors differ" in finding["sentence"] or finding["value"] == pytest.approx(each.whole)


def test_only_the_vectors_that_moved_farthest_are_read(
    base: Subject, planted: tuple[Subject, list[BlockChange], Tensor]
) -> None:
    tuned, whole, _ = planted
    (each,) = (block for block in changes(base, tuned, ["W_V"], most=3, k=5) if block.addresses)
    assert each.reading is not None
    assert each.reading.vectors.tolist() == each.moved.argsort(descending=True)[:3].tolist()
    assert each.reading.top.tokens.shape == (3, 2, 5)
    assert len(each.moved) == 15
    (all_read,) = (block for block in changes(base, tuned, ["W_V"], most=None) if block.addresses)
    assert all_read.reading is not None
    assert len(all_read.reading.vectors) == 15
    assert [block.addresses for block in whole if block.group == "W_V"] == [[], list(each.addresses), []]


def test_equal_models_have_no_change(base: Subject) -> None:
    found = list(changes(base, subject(toys.llama(), "again")))
    assert not any(each.addresses for each in found)
    assert embedding_changes(base, subject(toys.llama())) == other_changes(base, subject(toys.llama())) == []
    stats = block_rows(found, significance(found), "r").to_pylist()
    assert {row["value"] for row in stats} == {0.0}
    assert change_findings(found, significance(found), "before", base.texts) == []


NOUNS = ["river", "stone", "garden", "letter", "engine", "winter", "market", "harbour", "teacher", "mirror"]
VERBS = ["holds", "finds", "leaves", "carries", "breaks", "keeps", "meets", "turns"]


def listed_words(of: Subject) -> WordList:
    return word_list("nouns", NOUNS, VERBS, of)


def clustered(base: Subject, words: WordList) -> PreTrainedModel:
    """The toy with listed words lying together, as words of a kind do: any direction tells them from the others rather well."""
    module = toys.llama()
    away = 0.4 * torch.tensor([1.0, -1.0]).repeat(12)
    with torch.no_grad():
        module.get_parameter("model.embed_tokens.weight")[words.tokens[words.listed]] += away
    return module


def test_changes_towards_the_words_of_a_list_are_told_from_chance_and_noise_is_not(base: Subject) -> None:
    """One change goes along what tells the words apart, with either sign; the other is noise, which shuffled lists alone would pass."""
    words = listed_words(base)
    before = subject(clustered(base, words))
    vectors = before.write.matrix.T[torch.searchsorted(before.write.tokens, words.tokens)]
    direction = vectors[words.listed].mean(0) - vectors[~words.listed].mean(0)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(16, 24, generator=generator) * direction.norm() / 24**0.5
    signs = torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    blocks = []
    for change in (signs * direction + noise, noise):
        module = clustered(base, words)
        with torch.no_grad():
            module.get_parameter(VALUES).add_(change)
        blocks += [b for b in changes(before, subject(module), ["W_V"], words=words) if b.addresses]
    found, control = blocks
    assert found.words is not None
    assert control.words is not None
    scores = noise @ vectors.T
    for vector in range(16):
        pairs = (scores[vector, words.listed][:, None] > scores[vector, ~words.listed]).double()
        assert float(control.words.areas[vector]) == pytest.approx(float(pairs.mean()), abs=1e-3)
    assert found.words.pooled == pytest.approx(float((2 * found.words.areas - 1).abs().mean()))
    tests = significance(blocks)
    assert tests.block is not None
    assert tests.word is not None
    assert tests.block[0] < 0.02 < 0.1 < tests.block[1]
    assert float((control.words.pooled_shuffled >= control.words.pooled).double().mean()) < 0.05
    assert float(control.words.pooled_turned.mean()) == pytest.approx(control.words.pooled, abs=0.15)
    assert float(found.words.shuffled.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found.words.turned.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(tests.word[1].min()) > 0.05


def test_an_adapter_changes_what_its_merged_model_does_and_its_directions_are_those_of_the_product(tmp_path: Path) -> None:
    folder = toys.save_checkpoint(tmp_path / "base")
    path = "model.layers.1.self_attn.q_proj"
    tensors = {**linear(path, 24, 32, rank=2), **linear("model.layers.2.mlp.down_proj", 40, 24, rank=2, seed=4)}
    products = {
        p: 3.0 * tensors[f"{p}.lora_B.weight"] @ tensors[f"{p}.lora_A.weight"] for p in (path, "model.layers.2.mlp.down_proj")
    }
    module = toys.llama()
    with torch.no_grad():
        for name, product in products.items():
            module.get_parameter(f"{name}.weight").add_(product)
    base = open_checkpoint(folder)
    tuned = subject_of(adapted(base, save_adapter(tmp_path / "a", tensors)))
    pairs = [list(changes(subject_of(base), other)) for other in (tuned, subject(module))]
    for one, other in zip(*pairs, strict=True):
        assert list(one.addresses) == list(other.addresses)
        torch.testing.assert_close(one.moved, other.moved, rtol=1e-4, atol=1e-5)
    found = {(each.group, each.layer): each for each in pairs[0] if each.addresses}
    assert list(found) == [("W_out", 2), ("W_Q", 1)]
    gain = base.weights.norm("attn_norm", 1).gain
    expected = {("W_Q", 1): products[path] * gain, ("W_out", 2): products["model.layers.2.mlp.down_proj"].T}
    for place, dense in expected.items():
        directions = found[place].directions
        assert directions is not None
        _, values, vectors = torch.linalg.svd(dense.double())
        assert len(directions.values) == 2
        torch.testing.assert_close(directions.values.double(), values[:2], rtol=1e-3, atol=1e-3)
        assert float(directions.share.sum()) == pytest.approx(1, abs=1e-3)
        cosines = (directions.vectors.double() * vectors[:2]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(2).double(), rtol=1e-3, atol=1e-3)


def test_leading_directions_are_those_of_the_whole_decomposition() -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(size, 60, generator=generator)).Q for size in (300, 120))
    rows = left * 0.8 ** torch.arange(60) @ right.T
    vectors, values = leading_directions(rows, 5)
    torch.testing.assert_close(values, 0.8 ** torch.arange(5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((vectors * right.T[:5]).sum(1).abs(), torch.ones(5), rtol=1e-4, atol=1e-4)
    few, sizes = leading_directions(rows[:3], 8)
    assert len(few) == len(sizes) == 3


def gpt2(seed: int) -> PreTrainedModel:
    torch.manual_seed(5)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=8, initializer_range=0.3))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("name", ["gpt2", "bert", "mixtral", "gemma2"])
def test_differences_are_those_of_vectors_as_the_stream_meets_them_in_every_architecture(name: str) -> None:
    before, after = (gpt2(1), gpt2(2)) if name == "gpt2" else (built(name), built(name))
    if name != "gpt2":
        with torch.no_grad():
            for parameter in after.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    one, other = (subject_of(wrap(module, name=name)) for module in (before, after))
    pair = (one, other)
    found = list(changes(one, other, k=3))
    assert {each.group for each in found} == {group.name for group in groups_of(pair[0].weights)}
    for each in found:
        (group,) = groups_of(pair[0].weights, [each.group])
        rows = [block_of(each_of.weights, group, each.layer).rows for each_of in pair]
        assert len(each.addresses) == each.total == len(rows[0])
        torch.testing.assert_close(
            each.moved, (rows[1] - rows[0]).norm(dim=1) / rows[0].norm(dim=1), rtol=1e-4, atol=1e-5, equal_nan=True
        )
        assert each.reading is not None
        reader = pair[1].read if group.end == "read" else pair[1].write
        vector = int(each.reading.vectors[0])
        scores = (rows[1] - rows[0])[vector] @ reader.matrix
        assert each.reading.top.tokens[0, 0].tolist() == reader.tokens[scores.argsort(descending=True)[:3]].tolist()
        assert each.reading.top.tokens[0, 1].tolist() == reader.tokens[scores.argsort()[:3]].tolist()
    names = [each.name for each in embedding_changes(one, other)]
    assert names == (["W_E", "W_U"] if name == "mixtral" else ["W_E"])


def test_folding_of_another_gain_is_part_of_the_change(base: Subject) -> None:
    name = "model.layers.1.input_layernorm.weight"
    found = {(b.group, b.layer): b for b in changes(base, subject(tuned_by(name, torch.linspace(0, 1, 24)))) if b.addresses}
    assert list(found) == [("W_Q", 1), ("W_K", 1), ("W_V", 1), ("attn_norm", 1)]
    rows = block_of(base.weights, groups_of(base.weights, ["W_V"])[0], 1, folding="raw").rows
    expected = rows * torch.linspace(0, 1, 24)
    lengths = fold_norm(base.weights.norm("attn_norm", 1), rows).norm(dim=1)
    torch.testing.assert_close(found["W_V", 1].moved, expected.norm(dim=1) / lengths, rtol=1e-5, atol=1e-6)


def test_embeddings_that_changed_are_named_with_their_tokens(base: Subject) -> None:
    change = torch.zeros(base.shape.vocab, 24)
    change[[11, 40]] = torch.tensor([[0.1], [0.5]])
    tuned = subject(tuned_by("model.embed_tokens.weight", change))
    (found,) = embedding_changes(base, tuned)
    assert (found.name, found.changed, found.total, found.tokens) == ("W_E", 2, base.shape.vocab, (40, 11))
    lengths = base.weights.get("W_E")[[40, 11]].norm(dim=1)
    assert found.moved == pytest.approx((torch.tensor([0.5, 0.1]) * 24**0.5 / lengths).tolist(), rel=1e-4)
    assert [row["value"] for row in embedding_rows([found], "r").to_pylist()][1] == pytest.approx(2 / base.shape.vocab)


def test_weights_that_hold_no_vectors_of_the_stream_are_named_too() -> None:
    before, after = gpt2(1), gpt2(1)
    with torch.no_grad():
        after.get_parameter("transformer.h.1.mlp.c_fc.bias").add_(1)
        after.get_parameter("transformer.h.0.ln_1.bias").add_(1)
        after.get_parameter("transformer.h.0.attn.c_attn.bias")[24:48].add_(1)
    one, other = (subject_of(wrap(module, name="gpt2")) for module in (before, after))
    assert other_changes(one, other) == ["b_K.0", "bias of attn_norm.0", "b_in.1"]
    assert not any(each.addresses for each in changes(one, other))


def test_models_without_vectors_that_correspond_are_refused(base: Subject) -> None:
    with pytest.raises(Refusal, match=r"layers is 3 and 2; name a model and what it was fine-tuned to"):
        next(changes(base, subject(toys.llama(2), "short")))
    with pytest.raises(Refusal, match="one is of the architecture llama and the other of gpt2"):
        next(changes(base, subject_of(wrap(gpt2(1), name="other"))))
    texts = list(reversed(base.texts))
    with pytest.raises(Refusal, match=r"their tokenizers differ in \d+ of \d+ tokens"):
        next(changes(base, replace(base, texts=texts)))
    with pytest.raises(Refusal, match="one is read folded and the other raw"):
        next(changes(base, subject_of(wrap(toys.llama(), toys.decoder_tokenizer()), preset="paper")))
    for k in (0, 10_000):
        with pytest.raises(Refusal, match=f"the {k} first tokens"):
            next(changes(base, base, k=k))
    broken = tuned_by(VALUES, torch.full((16, 24), torch.nan))
    weights = replace(base.weights, fetch=lambda name: broken.state_dict().get(f"model.{name}"))
    with pytest.raises(Refusal, match=r"W_V of layer 1: it holds numbers that are NaN"):
        list(changes(base, replace(base, weights=weights)))


def test_rows_are_those_of_the_tables_and_have_their_controls(
    base: Subject, planted: tuple[Subject, list[BlockChange], Tensor], wonderful: int, tmp_path: Path
) -> None:
    tuned, found, factors = planted
    tests = significance(found)
    write_table(tmp_path, "changes", "x", change_rows(found, tests, "before", "r"))
    write_table(tmp_path, "vocabulary_stats", "x", block_rows(found, tests, "r"))
    (rows,) = ([row for table in change_rows(found, tests, "before", "r") for row in table.to_pylist()],)
    assert len(rows) == 15
    assert {(row["base"], row["group"], row["layer"]) for row in rows} == {("before", "W_V", 1)}
    first = {row["vector"]: row["demoted" if factors[i] < 0 else "promoted"][0] for i, row in zip([*range(5), *range(6, 16)], rows, strict=True)}  # fmt: skip
    assert set(first.values()) == {wonderful}
    assert all(row["score"] > row["control"] and row["q"] <= 1 and row["control_kind"] for row in rows)
    stats = {(row["group"], row["layer"], row["stat"]): row for row in block_rows(found, tests, "r").to_pylist()}
    assert stats["W_V", 1, "vectors_moved"]["value"] == 15 / 16
    assert stats["W_V", 1, "moved"]["control"] == 0
    assert stats["W_V", 0, "moved"]["control"] == pytest.approx(stats["W_V", 1, "moved"]["value"] / 2)
    words = listed_words(base)
    scored = list(changes(base, tuned, words=words))
    by_words = [row for table in change_rows(scored, significance(scored), "b", "r") for row in table.to_pylist()]
    assert {row["control_kind"] for row in by_words} == {"the changes turned at random"}
    assert all(0 <= row["score"] <= 1 and row["control"] == pytest.approx(0.5, abs=0.1) for row in by_words)
