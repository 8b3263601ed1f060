"""Tasks of yes and no that a model answers by a word, and soft prompts for them: vectors in the place of embeddings, the model frozen.

A soft prompt stands before all that the model reads. Which units have a skill is asked in `skills`; written prompts need nothing from here.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.intervene import At, Edit, Set, answers, asked, edited
from microtome.model import Model, capture

__all__ = ["WANG", "SoftPrompt", "Task", "Trained", "Tuning", "accuracy", "prompted", "trained_prompt"]

_EMBED: Final = Site("embed")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Vectors that the model reads as the embeddings of its first tokens."""

    vectors: Float[Tensor, "token d_model"]


@dataclass(frozen=True, eq=False)
class Task:
    """Texts with labels, and the words by which the model says no and yes, each one token: behind a text, or at its mask.

    Errors: `Refusal` for another number of labels than of texts.
    """

    texts: tuple[str, ...]
    y: Bool[Tensor, " text"]
    words: tuple[str, str]
    prompt: SoftPrompt | None = None

    def __post_init__(self) -> None:
        if len(self.y) != len(self.texts) or not self.texts:
            why = f"there are {len(self.texts)} texts and {len(self.y)} labels"
            raise Refusal("a task", why=why, instead="give a label to each text, and one text or more")

    def take(self, rows: Int[Tensor, " text"]) -> "Task":
        """Some of the texts."""
        return replace(self, texts=tuple(self.texts[row] for row in rows.tolist()), y=self.y[rows])


@contextmanager
def prompted(model: Model, texts: Sequence[str], prompt: SoftPrompt | None) -> Iterator[Batch]:
    """The batch of texts as it is read with a prompt before it; passes of it inside the `with` block read the prompt's vectors.

    Where a decoder would read its first token, it reads the prompt's. Errors: `Refusal` for texts that are too long together with it.
    """
    count = 0 if prompt is None else len(prompt.vectors)
    context = None if model.shape.context is None else model.shape.context - count
    batch = prompt_batch(model.tokenizer, texts, context=context, device=model.device)
    if prompt is None:
        yield batch
        return
    roles = torch.full_like(batch.roles[:, :1], Role.SPECIAL).repeat(1, count)
    wide = replace(
        batch,
        ids=torch.cat([batch.ids[:, :1].repeat(1, count), batch.ids], 1),
        roles=torch.cat([roles, torch.where(batch.roles == Role.FIRST, int(Role.CONTENT), batch.roles).to(roles)], 1),
    )
    with edited(model, wide, [Edit(_EMBED, Set(prompt.vectors), tokens=At(tuple(range(count))))]):
        yield wide


def accuracy(model: Model, task: Task, edits: Iterable[Edit] = (), *, at_once: int = 16) -> float:
    """The share of texts at which the right word has the larger logit, with edits or as it is.

    Errors: `Refusal` for a model without a language-model head, and for words that are not one token.
    """
    edits = tuple(edits)
    right = 0
    for rows in _by_length(task.texts, at_once):
        part = task.take(rows)
        with prompted(model, part.texts, part.prompt) as batch, edited(model, batch, edits):
            says = _difference(model, batch, part.words) > 0
        right += int((says.cpu() == part.y).sum())
    return right / len(task.texts)


@dataclass(frozen=True)
class Tuning:
    """How a soft prompt is trained: `tokens` vectors, `steps` of Adam on batches of `batch` texts.

    `rate` is in root mean squares of the embeddings that it begins with: a prompt that leaves their size soon is read as nothing, and takes
    what units know of the text with it.
    """

    tokens: int = 16
    steps: int = 100
    rate: float = 0.1
    batch: int = 16
    seed: int = 0


WANG: Final = Tuning(tokens=127)
"""As many vectors as Wang et al. train; steps and rate are those of this module."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The prompt, and the loss of each step's batch, in nats, of the choice between the two words."""

    prompt: SoftPrompt
    losses: Float[Tensor, " step"]


def trained_prompt(model: Model, task: Task, tuning: Tuning = Tuning()) -> Trained:
    """Train a soft prompt on all texts of the task; it begins as embeddings of random tokens of them. The task's own prompt is not used.

    Source: Wang et al. 2022, arXiv:2211.07349, section 2.2; Lester et al. 2021, arXiv:2104.08691, section 2.
    Cost: `steps` forward passes and the passes back, about three times as much.
    """
    generator = torch.Generator().manual_seed(tuning.seed)
    with prompted(model, task.texts[: tuning.batch], None) as batch:
        found = capture(model, batch, [_EMBED])[_EMBED][batch.roles == Role.CONTENT]
    drawn = torch.randint(len(found), (tuning.tokens,), generator=generator)
    vectors = found[drawn.to(found.device)].float().clone().requires_grad_()
    size = float(vectors.detach().square().mean().sqrt())
    adam, losses = torch.optim.Adam([vectors], lr=tuning.rate * size), []
    for _ in range(tuning.steps):
        part = task.take(torch.randperm(len(task.texts), generator=generator)[: tuning.batch])
        with prompted(model, part.texts, SoftPrompt(vectors)) as batch:
            difference = _difference(model, batch, part.words, training=True)
        sign = torch.where(part.y, 1.0, -1.0).to(difference.device)
        loss = torch.nn.functional.softplus(-sign * difference).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return Trained(SoftPrompt(vectors.detach()), torch.tensor(losses, dtype=torch.float64))


def _difference(model: Model, batch: Batch, words: tuple[str, str], *, training: bool = False) -> Float[Tensor, " window"]:
    """The logit of yes less that of no."""
    no, yes = words
    question = asked(model, batch, yes, no, scale="logit")
    return answers(model, batch, question, gradients="kept" if training else "none")


def _by_length(texts: Sequence[str], at_once: int) -> Iterator[Int[Tensor, " text"]]:
    """Rows of texts, those of about one length together."""
    lengths = torch.tensor([len(text) for text in texts])
    return iter(lengths.argsort(stable=True).split(at_once))
