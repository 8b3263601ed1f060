"""A model of random weights whose token vectors are drawn anew, a few of them alike: what methods that look for topics must find."""

import torch
from torch import Tensor

from microtome.model import Model, wrap
from microtome.readout import output_reader
from microtome.vocabulary.subject import Subject
from tests.unit.vocabulary.test_values import gated

VOCAB, WIDTH, UNITS = 300, 64, 40
TOPIC = tuple(range(3, 300, 25))
"""Tokens that are alike, frequent and rare."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_topic(seed: int, tokens: tuple[int, ...] = TOPIC) -> Model:
    """Tied token vectors of length about 1, those of the topic with a common direction; values normal."""
    model = wrap(gated())
    vectors = normal(VOCAB, WIDTH, seed=seed) / WIDTH**0.5
    vectors[list(tokens)] += 0.65 * normal(WIDTH, seed=seed + 1) / WIDTH**0.5
    with torch.no_grad():
        model.weights.get("W_E").copy_(vectors)
        model.weights.get("W_U").copy_(vectors.T)
        for layer in range(model.shape.layers):
            model.weights.get("W_out", layer).copy_(normal(UNITS, WIDTH, seed=seed + 2 + layer))
    return model


def subject_with(model: Model, texts: list[str] | None = None) -> Subject:
    """The model's, with these texts of tokens, and none left out."""
    reader = output_reader(model.weights)
    texts = texts or [f" t{token}" for token in range(model.shape.vocab)]
    return Subject("toy", model.weights, model.shape, "folded", reader, reader, texts)


def centre(model: Model, tokens: tuple[int, ...] = TOPIC) -> Tensor:
    """Mean of the tokens' vectors less the mean of all."""
    vectors = model.weights.get("W_E")
    return vectors[list(tokens)].mean(0) - vectors.mean(0)
