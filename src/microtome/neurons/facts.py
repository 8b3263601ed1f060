"""Facts and the prompts that ask for them: "The capital of {subject} is", which a model that knows it goes on with the answer.

A file has a fact a line, JSON with `relation`, `subject`, `answer` and `prompts`. Prompts for decoders end where the answer is to come,
those for encoders have a mask there, as `[MASK]` or `{mask}`. Which units know a fact is asked in `knowledge`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core import Batch, Refusal
from microtome.corpus import prompt_batch
from microtome.intervene import Question, asked
from microtome.intervene.answers import Scale, logits_at
from microtome.model import Model

__all__ = ["AskedFact", "Fact", "ask", "askable", "known", "read_facts", "subject_tokens"]

_SUBJECT: Final = "{subject}"
_MASKS: Final = ("{mask}", "[MASK]")
_FIELDS: Final = ("relation", "subject", "answer", "prompts")


@dataclass(frozen=True)
class Fact:
    """A subject, its relation to the answer, and prompts with one {subject} each, and with one mask if they are for encoders.

    Errors: `Refusal` for no prompt, and for one without a slot or with several.
    """

    relation: str
    subject: str
    answer: str
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise Refusal(f"the fact {self.title}", why="it has no prompt", instead="write one, with {subject} in it")
        for prompt in self.prompts:
            if prompt.count(_SUBJECT) != 1 or _masks(prompt) > 1:
                why = f"it has {prompt.count(_SUBJECT)} slots for the subject and {_masks(prompt)} masks"
                instead = "write {subject} once, and for encoders one {mask}"
                raise Refusal(f"the prompt {prompt!r} of {self.title}", why=why, instead=instead)

    @property
    def title(self) -> str:
        """How it is called in messages."""
        return f"{self.relation} of {self.subject}"

    def texts(self, mask: str | None) -> tuple[str, ...]:
        """The prompts with the subject in them: those with a mask, spelled so, or where `mask` is None those without."""
        wanted = [prompt for prompt in self.prompts if bool(_masks(prompt)) == (mask is not None)]
        if mask is not None:
            wanted = [prompt.replace(_MASKS[0], mask).replace(_MASKS[1], mask) for prompt in wanted]
        return tuple(prompt.replace(_SUBJECT, self.subject) for prompt in wanted)


@dataclass(frozen=True, eq=False)
class AskedFact:
    """A fact as a model is asked for it: texts, windows, and the question for the answer at the end or at the mask of each."""

    fact: Fact
    texts: tuple[str, ...]
    batch: Batch
    question: Question


def read_facts(path: str | Path | None = None) -> list[Fact]:
    """The facts of a file of JSON lines; by default of the one shipped: capitals, currencies and languages of countries.

    Errors: `Refusal` for a missing file, one that is no text, a line that is no fact, and a file without one.
    """
    place = resources.files("microtome.neurons") / "facts.jsonl" if path is None else Path(path)
    if not place.is_file():
        raise Refusal(f"facts {place}", why="there is no such file", instead="name a file of JSON lines")
    try:
        lines = place.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Refusal(f"facts {place}", why="it is not UTF-8 text", instead="name a text file") from error
    found = [_fact(f"line {number} of {place}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise Refusal(f"facts {place}", why="it has no line", instead="write a fact a line")
    return found


def ask(model: Model, fact: Fact, scale: Scale = "probability") -> AskedFact:
    """A fact's prompts for a model, and what is asked behind each, or at its mask.

    Errors: `Refusal` for an answer that is not one token of the model, and where no prompt suits it.
    """
    mask = None if model.shape.causal else getattr(model.tokenizer, "mask_token", None)
    if not model.shape.causal and mask is None:
        raise Refusal(
            f"facts of {model.name}", why="its tokenizer has no mask", instead="name a model with a tokenizer that has one"
        )
    texts = fact.texts(mask)
    if not texts:
        why, what = (f"{model.name} fills in masks", "with") if mask else (f"{model.name} writes what comes next", "without")
        raise Refusal(
            f"the fact {fact.title}", why=f"{why}, and no prompt is {what} a mask", instead=f"add prompts {what} {{mask}}"
        )
    batch = prompt_batch(model.tokenizer, texts, context=model.shape.context, device=model.device)
    return AskedFact(fact, texts, batch, asked(model, batch, fact.answer, scale=scale))


def askable(model: Model, facts: Iterable[Fact]) -> tuple[list[AskedFact], list[Refusal]]:
    """The facts that a model can be asked for, and why it cannot be for the others."""
    found, refused = [], []
    for fact in facts:
        try:
            found.append(ask(model, fact))
        except Refusal as why:
            refused.append(why)
    return found, refused


def known(model: Model, fact: AskedFact) -> Bool[Tensor, " window"]:
    """Whether the answer is the most probable token, for each prompt."""
    with torch.inference_mode():
        best = logits_at(model, fact.batch, fact.question.place).argmax(1)
    return (best == fact.question.token.to(best.device)).cpu()


def subject_tokens(model: Model, texts: Sequence[str], subject: str) -> Bool[Tensor, "window token"]:
    """True at the tokens that spell any part of the subject where it is last in each text.

    Errors: `Refusal` for a text without it.
    """
    rows = []
    for text in texts:
        begin = text.rfind(subject)
        if begin < 0:
            raise Refusal(
                f"the prompt {text!r}", why=f"{subject!r} is not in it", instead="write the subject as the fact has it"
            )
        spans = model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).offsets
        rows.append([low < begin + len(subject) and high > begin for low, high in spans])
    most = max(map(len, rows))
    return torch.tensor([row + [False] * (most - len(row)) for row in rows])


def _masks(prompt: str) -> int:
    return sum(map(prompt.count, _MASKS))


def _fact(where: str, line: str) -> Fact:
    try:
        given: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise Refusal(where, why=f"it is no JSON: {error}", instead="write a fact a line") from error
    texts = isinstance(given, dict) and all(isinstance(given.get(name), str) and given[name].strip() for name in _FIELDS[:3])
    prompts = given.get("prompts") if isinstance(given, dict) else None
    if not texts or not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        why = f"it is no object with texts {', '.join(_FIELDS[:3])} and a list of texts {_FIELDS[3]}"
        raise Refusal(where, why=why, instead='write {"relation": …, "subject": …, "answer": …, "prompts": […]}')
    return Fact(given["relation"], given["subject"], given["answer"], tuple(prompts))
