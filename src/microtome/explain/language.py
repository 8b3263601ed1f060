"""Explanations by language models: prompts, and answers read however badly they are given. No model is called here.

What answers is a callable that the user plugs in: a prompt goes in, text comes out, with the log probabilities of its tokens if there are any.
Nothing reaches the network from this package.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from microtome.explain.examples import NOTHING, SCALE, Examples
from microtome.explain.protocols import Explanation, Names

__all__ = ["Answer", "Complete", "LanguageExplainer", "LanguageSimulator", "explaining_prompt", "simulating_prompt"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a language model wrote; `pieces` are the tokens of the text in order, each with the log probabilities of what it might have been."""

    text: str
    pieces: Sequence[tuple[str, Mapping[str, float]]] = ()


Complete = Callable[[str], "Answer | str"]
"""Answers a prompt."""

_EXPLAIN: Final = """\
A unit of a neural network reads text. Below are excerpts that activate it, one token a line, with the activation behind a tab, from 0 (silent)
to {scale} (as active as it gets). Then come the tokens at which it is active, by themselves.

{excerpts}
Active at: {tokens}

Say in one short sentence what the unit looks for. Do not list examples. Begin with "Explanation:".
"""

_SIMULATE: Final = """\
A unit of a neural network reads text. What it looks for: {explanation}

Predict how active the unit is at each token of the excerpt below, from 0 (silent) to {scale} (as active as it gets). Most tokens are 0. Answer
with one line for each token: its number, a tab, the activation as a whole number, and nothing else.

{tokens}
"""

_LINE: Final = re.compile(r"^[^\S\n]*(\d+)\b[^\n]*?(?<![\w.-])(-?\d+(?:\.\d+)?)(?:[^\S\n]*/[^\S\n]*10)?[^\S\n]*$", re.MULTILINE)
_LABEL: Final = re.compile(r"^\W*(explanation|answer|the unit looks for)\W*:\s*", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class LanguageExplainer:
    """Shows a language model up to `most` active training excerpts in whole numbers and takes its sentence.

    An answer without a word is an explanation without text; a simulator that reads it predicts nothing.
    """

    complete: Complete
    names: Names
    most: int = 5

    def explain(self, examples: Examples) -> Explanation:
        """One call."""
        return Explanation(_sentence(_text(self.complete(explaining_prompt(examples, self.names, self.most)))))


def explaining_prompt(examples: Examples, names: Names, most: int = 5) -> str:
    """The question for an explanation."""
    part = examples.train.take(examples.train.active)
    part = part.take(part.peak[0].argsort(descending=True, stable=True)[:most])
    levels = examples.levels(part).masked_fill(~part.counted, 0)
    texts, active = [], []
    for ids, level in zip(part.ids.tolist(), levels.tolist(), strict=True):
        pairs = [(_shown(names, token), value) for token, value in zip(ids, level, strict=True) if token != NOTHING]
        texts.append("".join(f"{name}\t{value}\n" for name, value in pairs))
        active += [f"{name} ({value})" for name, value in pairs if value]
    return _EXPLAIN.format(scale=SCALE, excerpts="\n".join(texts), tokens=", ".join(dict.fromkeys(active)))


@dataclass(frozen=True, eq=False)
class LanguageSimulator:
    """Lets a language model predict, one excerpt a call.

    With log probabilities the prediction of a token is the mean over whole numbers from 0 to 10 that could have stood where its number does, by
    their probability; without, the number. Numbers beyond the scale are brought to its ends; tokens without a line of their own have no
    answer (NaN); of several lines for one token the first counts. Nothing is asked of an explanation without text: it predicts 0.
    """

    complete: Complete
    names: Names

    def simulate(self, explanation: Explanation, ids: Int[Tensor, "excerpt token"]) -> Float64[Tensor, "excerpt token"]:
        """One call for each excerpt.

        Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry).
        """
        found = torch.zeros(ids.shape, dtype=torch.float64)
        if not explanation.text.strip():
            return found
        for row, tokens in enumerate(ids.tolist()):
            there = [place for place, token in enumerate(tokens) if token != NOTHING]
            answer = self.complete(simulating_prompt(explanation, [tokens[place] for place in there], self.names))
            said = predictions(answer, len(there))
            found[row, there] = torch.tensor(said, dtype=torch.float64)
        return found


def simulating_prompt(explanation: Explanation, tokens: Iterable[int], names: Names) -> str:
    """The question for predictions; tokens are numbered from 1."""
    lines = "\n".join(f"{number}\t{_shown(names, token)}" for number, token in enumerate(tokens, 1))
    return _SIMULATE.format(explanation=explanation.text, scale=SCALE, tokens=lines)


def predictions(answer: Answer | str, tokens: int) -> list[float]:
    """The prediction for each token that an answer gives, NaN where it gives none."""
    text, pieces = _text(answer), () if isinstance(answer, str) else answer.pieces
    starts = _starts(text, pieces)
    found = [math.nan] * tokens
    for line in _LINE.finditer(text):
        number = int(line[1])
        if not 1 <= number <= tokens or not math.isnan(found[number - 1]):
            continue
        value = min(max(float(line[2]), 0.0), float(SCALE))
        place = starts.get(line.start(2))
        given = place is not None and pieces[place][0].strip() == line[2]
        found[number - 1] = _expected(pieces[place][1], value) if place is not None and given else value
    return found


def _expected(alternatives: Mapping[str, float], value: float) -> float:
    """The mean of the whole numbers on the scale among alternatives, by probability; the value that was given where there are none."""
    chances = {}
    for piece, log in alternatives.items():
        if piece.strip().isdecimal() and 0 <= int(piece) <= SCALE and log == log:
            chances[int(piece)] = chances.get(int(piece), 0.0) + math.exp(min(log, 0.0))
    total = sum(chances.values())
    return sum(level * chance for level, chance in chances.items()) / total if total > 0 else value


def _starts(text: str, pieces: Sequence[tuple[str, Mapping[str, float]]]) -> dict[int, int]:
    """Which piece begins at which character, white space in front of it aside; none if pieces are not those of the text."""
    if "".join(piece for piece, _ in pieces) != text:
        return {}
    starts, place = {}, 0
    for number, (piece, _) in enumerate(pieces):
        starts[place + len(piece) - len(piece.lstrip())] = number
        place += len(piece)
    return starts


def _sentence(text: str) -> str:
    """The first line with a word that is no mere label, without label and quotation marks."""
    for line in text.splitlines():
        said = _LABEL.sub("", line).strip("\"'*`: \t")
        if re.search(r"\w", said) and said.lower() not in ("explanation", "answer"):
            return said
    return ""


def _shown(names: Names, token: int) -> str:
    """A token's name on one line, without a tab."""
    return names(token).translate(str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"}))


def _text(answer: Answer | str) -> str:
    return answer if isinstance(answer, str) else answer.text
