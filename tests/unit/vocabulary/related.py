"""Pairs of small models that are related in a known way."""

from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from microtome.model import Model, wrap

VOCABULARY = 300


def plain_gpt2(width: int, layers: int, seed: int, vocabulary: int = VOCABULARY) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_inner=40,
        n_positions=16,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T.float()


def planted(order: list[int], width: int = 24, noise: float = 0.3) -> tuple[Model, Model]:
    """A model, and a wider one whose tokens are the first's, turned, and whose layer i has the keys of the first's layer order[i]."""
    left, right = plain_gpt2(16, len(order), 0), plain_gpt2(width, len(order), 1)
    turn = orthonormal(16, width)
    with torch.no_grad():
        right.transformer.wte.weight.copy_(left.transformer.wte.weight @ turn)
        for layer, source in enumerate(order):
            keys = turn.T @ left.transformer.h[source].mlp.c_fc.weight
            right.transformer.h[layer].mlp.c_fc.weight.copy_(keys + noise * keys.std() * torch.randn_like(keys))
    return wrap(left, name="left"), wrap(right, name="right")


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)})))
