"""The packaged models say what they are known to say: opening them, GGUF conversion included, changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.cli.packaged import fetch
from microtome.model import Model, load, open_checkpoint

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def decoder(smollm2: Path) -> Model:
    """SmolLM2 in the dtype that its numbers are known in."""
    return load(smollm2, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Model:
    return load(minilm, device="cpu")


def test_smollm2_continues_as_it_is_known_to(decoder: Model) -> None:
    """Known from the file read by transformers alone, in float32, greedily."""
    module: Any = decoder.module
    for prompt, continuation in (
        ("The capital of France is", " Paris.\n\nThe answer is: 2018-01-22 12:12:53.<|im_end|>"),
        ("The Eiffel Tower is located in the city of", " Paris, France.<|im_end|>"),
    ):
        ids = decoder.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            made = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert decoder.tokenizer.decode(made[0, ids.shape[1] :]).startswith(continuation)


def test_smollm2_predicts_english(decoder: Model, speeches: Path) -> None:
    """Far better than chance (log of the vocabulary, 10.8 nats) on real text, and not on the same tokens shuffled."""
    text = next(speeches.glob("1961-Kennedy-*.txt")).read_text(encoding="utf-8")
    ids = decoder.tokenizer(text, return_tensors="pt").input_ids[:, :512]
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert loss(decoder, ids) < 4
    assert loss(decoder, shuffled) > 6.5


def loss(model: Model, ids: torch.Tensor) -> float:
    """Nats per token."""
    module: Any = model.module
    with torch.inference_mode():
        return float(module(ids, labels=ids).loss)


def test_smollm2_runs_low_by_itself_only_where_that_is_fast(smollm2: Path) -> None:
    from microtome.model.precision import fast_bfloat16

    checkpoint = open_checkpoint(smollm2)
    assert checkpoint.stored == "quantised"
    model = load(smollm2, device="cpu")
    assert model.dtype == (torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32)
    assert model.fingerprint == checkpoint.fingerprint
    shape = model.shape
    assert (shape.layers, shape.d_model, shape.heads, shape.heads_kv, shape.d_mlp) == (30, 576, 9, 3, 1536)


def similarity(model: Model, one: str, other: str) -> float:
    """Cosine of the mean-pooled sentences, as sentence-transformers has it."""
    module: Any = model.module
    tokens = model.tokenizer([one, other], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = module(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    pooled = (states * mask).sum(1) / mask.sum(1)
    return float(torch.cosine_similarity(pooled[0], pooled[1], dim=0))


@pytest.mark.parametrize("name", ["minilm", "paraphrase-minilm"])
def test_encoders_know_paraphrases(name: str) -> None:
    model = load(fetch(name), device="cpu")
    assert model.dtype == torch.float32
    assert model.certificate.passed
    alike = similarity(model, "A man is playing a guitar.", "Someone plays the guitar.")
    unlike = similarity(model, "A man is playing a guitar.", "The stock market fell sharply today.")
    assert alike > 0.6
    assert unlike < 0.2


def test_both_encoders_read_the_same_vocabulary(encoder: Model) -> None:
    other = load(fetch("paraphrase-minilm"), device="cpu")
    assert other.tokenizer.get_vocab() == encoder.tokenizer.get_vocab()
    cosine = torch.cosine_similarity(encoder.weights.get("W_E"), other.weights.get("W_E"), dim=1)
    assert 0.85 < float(cosine.mean()) < 0.91


def test_weights_on_disk_are_those_of_the_model(decoder: Model, smollm2: Path) -> None:
    disk = open_checkpoint(smollm2).weights
    for layer in (0, 29):
        for name in disk.names(layer):
            assert torch.equal(disk.get(name, layer), decoder.weights.get(name, layer)), name
    assert torch.equal(disk.get("W_U"), decoder.weights.get("W_U"))
