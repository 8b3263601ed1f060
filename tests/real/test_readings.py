"""Readings of real weights that are known: value vectors of SmolLM2, previous-token heads of MiniLM."""

from pathlib import Path

import pytest
import torch

from microtome.model import load, open_checkpoint
from microtome.readout import chance, output_reader, random_directions, texts_of, top_tokens, written
from microtome.vocabulary import head_weights, unreadable_tokens
from microtome.vocabulary.heads import previous_token_scores, rotations

pytestmark = pytest.mark.weights


def test_known_value_vectors_of_smollm2(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    texts = texts_of(checkpoint.tokenizer, checkpoint.shape.vocab)
    reader = output_reader(checkpoint.weights, unreadable_tokens(checkpoint.tokenizer, texts))
    random = random_directions(reader, draws=1000, seed=0)
    rows = written(checkpoint.weights, 24, checkpoint.weights.get("W_out", 24)[[163, 343, 1065]], "mlp")
    top = top_tokens(rows, reader, random)
    words = [{texts[token].strip() for token in unit.tolist()} for unit in top.tokens[:, 0]]
    assert {"up", "Up", "ups"} <= words[0]
    assert {"his", "himself", "he"} <= words[1]
    assert {"called", "known", "termed"} <= words[2]
    assert float(top.strength[:, 0].min()) > 2 * float(random.strength.max())
    assert float(chance(top.strength[:, 0], random).max()) < 0.001


def test_a_head_of_smollm2_that_writes_what_it_reads(smollm2: Path) -> None:
    """heads.29/2 has copying score 1.00, heads.12/5 has -1.00: their own tokens are at the ends of what they write."""
    checkpoint = open_checkpoint(smollm2)
    reader = output_reader(checkpoint.weights)
    tokens = torch.randperm(len(reader.tokens), generator=torch.Generator().manual_seed(0))[:200]
    read = checkpoint.weights.get("W_E").float()[tokens]
    for layer, head, copies in ((29, 2, True), (12, 5, False)):
        heads = head_weights(checkpoint.weights, layer)
        scores = read @ heads.v[head] @ heads.o[head] @ reader.matrix
        rank = (scores > scores.gather(1, tokens[:, None])).double().mean(1).median()
        assert float(rank) < 0.01 if copies else float(rank) > 0.99


def test_previous_token_heads_of_minilm_look_at_the_token_before(minilm: Path, speeches: Path) -> None:
    model = load(minilm, dtype=torch.float32)
    text = sorted(speeches.rglob("*.txt"))[100].read_text(encoding="utf-8")[:4000]
    ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=200)
    model.module.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        seen = model.module(**ids, output_attentions=True).attentions
    turns = rotations(1, model.shape.heads, model.shape.d_head, seed=0)
    for layer in range(3):
        found = previous_token_scores(model.weights, layer, model.shape, [turns]).values
        attention = seen[layer][0].diagonal(-1, 1, 2).mean(-1)
        assert int(found.argmax()) == int(attention.argmax())
        assert torch.corrcoef(torch.stack([found, attention]))[0, 1] > 0.9
