"""A masked-language-model head for an encoder that comes without one: learnt on its frozen states, tied to its word embeddings.

The encoder and its embeddings stay as they are; a transform (dense, GELU, norm) and a bias are trained to name hidden tokens. So what the
model then knows is in the encoder, and the head reads it as far as it can: how far is measured on documents that were kept apart.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForMaskedLM, BertModel

from microtome.core import Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.model import Model, capture, wrap
from recipes.claims import Estimate, mean_of, share_of

__all__ = ["FULL", "QUICK", "HeadTraining", "TrainedHead", "sentences", "with_head"]

_APART: Final = 10
"""Every so many documents one is kept apart."""
_SHORTEST, _LONGEST = 6, 60
_AT_ONCE: Final = 16
_ROWS: Final = 512
_SMOOTHING: Final = 0.1


@dataclass(frozen=True)
class HeadTraining:
    """How many sentences are read, which share of their tokens is hidden, how often each is seen, how many at a time, and how fast."""

    sentences: int
    epochs: int
    hidden: float = 0.2
    batch: int = 128
    rate: float = 4e-3
    held_out: int = 500
    seed: int = 0


QUICK: Final = HeadTraining(sentences=1500, epochs=2, held_out=200)
FULL: Final = HeadTraining(sentences=8000, epochs=3)


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """The model with its head, and what the head is worth on hidden tokens of held-out documents: loss in nats, and the share that is right.

    Beside it the frequencies of words alone, and the words that hidden states are most like without a head (`untrained`).
    """

    model: Model
    tokens: int
    loss: Estimate
    right: Estimate
    frequencies_loss: Estimate
    frequencies_right: Estimate
    untrained_right: Estimate


def sentences(texts: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences of 6 to 60 words in a random order: of every tenth text, which is kept apart, and before them those of the others."""
    found: tuple[list[str], list[str]] = ([], [])
    for number, text in enumerate(texts):
        split = (each.strip() for each in re.split(r"(?<=[.?!])\s+", text))
        found[number % _APART == _APART - 1].extend(each for each in split if _SHORTEST <= len(each.split()) <= _LONGEST)
    generator = torch.Generator().manual_seed(seed)
    learnt, apart = ([side[place] for place in torch.randperm(len(side), generator=generator).tolist()] for side in found)
    return learnt, apart


def with_head(encoder: Model, texts: Sequence[str], training: HeadTraining = FULL) -> TrainedHead:
    """Train the head on hidden tokens of `texts`, and measure it on every tenth of them.

    Errors: `Refusal` for what is no BERT without a head, and for too little text.
    Cost: a pass of the encoder over each sentence; then 6 d_model vocab FLOP for each hidden token and epoch.
    """
    if not isinstance(encoder.module, BertModel):
        why = f"it is a {type(encoder.module).__name__}"
        raise Refusal(f"a head for {encoder.name}", why=why, instead="name an encoder of the BERT kind that has none")
    learnt, apart = sentences(texts, training.seed)
    if len(learnt) < _AT_ONCE or not apart:
        why = f"there are {len(learnt)} sentences to learn from and {len(apart)} to be judged on"
        raise Refusal("training a head", why=why, instead="give ten texts or more, of sentences")
    x, y = _hidden_states(encoder, learnt[: training.sentences], training)
    held, truth = _hidden_states(encoder, apart[: training.held_out], replace(training, seed=training.seed + 1))
    frequencies = torch.bincount(y, minlength=encoder.shape.vocab).float() + _SMOOTHING
    log_frequencies = (frequencies / frequencies.sum()).log()
    module = _headed(encoder, log_frequencies, training.seed)
    _train(module.cls, x, y, training)
    loss, right = _judged(module.cls, held, truth)
    words = encoder.weights.get("W_E").float()
    return TrainedHead(
        model=wrap(module, encoder.tokenizer, name=f"{encoder.name} with a head"),
        tokens=len(y),
        loss=mean_of(loss),
        right=share_of(right),
        frequencies_loss=mean_of(-log_frequencies[truth]),
        frequencies_right=share_of(truth == log_frequencies.argmax()),
        untrained_right=share_of((held @ words.T).argmax(1) == truth),
    )


def _hidden_states(
    encoder: Model, texts: Sequence[str], training: HeadTraining
) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, " row"]]:
    """Final states at hidden tokens, and the tokens."""
    generator = torch.Generator().manual_seed(training.seed)
    states, hidden = [], []
    site = Site("final_norm")
    for some in _batched(sorted(texts, key=len), _AT_ONCE):
        batch = prompt_batch(encoder.tokenizer, [" ".join(text.split()[:_LONGEST]) for text in some], device=encoder.device)
        drawn = torch.rand(batch.ids.shape, generator=generator).to(batch.ids.device)
        mask = (drawn < training.hidden) & (batch.roles == Role.CONTENT)
        hidden.append(batch.ids[mask])
        masked = replace(batch, ids=torch.where(mask, encoder.tokenizer.mask_token_id, batch.ids))
        with torch.no_grad():
            states.append(capture(encoder, masked, [site])[site][mask].float().clone())
    return torch.cat(states), torch.cat(hidden)


def _batched(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[begin : begin + size] for begin in range(0, len(texts), size))


def _headed(encoder: Model, bias: Float[Tensor, " vocab"], seed: int) -> BertForMaskedLM:
    """The encoder's class with a head: its own weights, a new transform, and a bias that begins at the frequencies of words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = BertForMaskedLM(encoder.config)
    module.bert.load_state_dict(encoder.module.state_dict(), strict=False)
    module.tie_weights()
    nn.Module.to(module.eval().requires_grad_(requires_grad=False), encoder.device)
    with torch.no_grad():
        module.cls.predictions.bias.copy_(bias)
    return module


def _train(head: Any, x: Float[Tensor, "row d_model"], y: Int[Tensor, " row"], training: HeadTraining) -> None:
    """AdamW, the rate brought up and down again; the tied embeddings stay."""
    learnt = [*head.predictions.transform.parameters(), head.predictions.bias]
    for parameter in learnt:
        parameter.requires_grad_(requires_grad=True)
    generator = torch.Generator().manual_seed(training.seed)
    steps = training.epochs * -(-len(x) // training.batch)
    descent = torch.optim.AdamW(learnt, lr=training.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, training.rate, total_steps=max(steps, 2))
    for _ in range(training.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(training.batch):
            loss = functional.cross_entropy(head(x[rows]), y[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
    head.requires_grad_(requires_grad=False)


def _judged(head: nn.Module, x: Float[Tensor, "row d_model"], y: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
    """The loss of each row, and whether it is right."""
    losses, right = [], []
    with torch.inference_mode():
        for states, truth in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            logits = head(states)
            losses.append(functional.cross_entropy(logits, truth, reduction="none"))
            right.append(logits.argmax(1) == truth)
    return torch.cat(losses), torch.cat(right)
