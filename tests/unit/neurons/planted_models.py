"""Language models whose every weight is planted, so that what a method must find in them is known.

They are tiny transformers of the real classes, wrapped by `microtome.model.wrap`, with a tokenizer of whole words: a feed-forward
layer that is plain with ReLU ("relu", OPT), plain with GELU ("gelu", GPT-2), gated with SiLU ("silu", Llama), or gated with GELU
("geglu", Llama with Gemma's nonlinearity). These are made here:

`dictionary_model(kind)`: unit i of its one layer fires at word i, and only there, and writes the word after it in a circle; some units are
dead. `following` says which word follows which.

`fact_model(kind)`: "the capital of norland" is answered by "aro", and so is "the capital of norland is". Layer 0's head brings the
relation to the tokens behind it; at the subject a unit of layer 1 fires if both are there, and writes the answer; layer 2's head takes
it to the end of the prompt. So the place of a fact is (layer 1, its unit, last subject token). Options split what a unit knows among
several (`parts`), and add units in layer 2 that fire at a subject where the answer is missing (`reserve`). Layers 0 and 1 have
distractors that fire at a subject, whatever the relation, and write what nothing reads.

`bigram_model(kind)`: a head brings the word before, and a unit fires at one word after another; beside it are units of each of the two.

`range_model(kind, within)`, of a plain kind: learned positions flag some places, and a unit fires there whatever the word.

How it is done: a stream of named coordinates, each with a mirror of the other sign (so that LayerNorm has no mean to take away), and a
ballast of 20 at every token, beside which the rest hardly moves the norm; norms have the gain that undoes them. There is one head, as wide
as the stream.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import transformers as tf
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from microtome.core import UnitAddress
from microtome.model import Model, wrap
from microtome.neurons.facts import Fact

Kind = Literal["relu", "gelu", "silu", "geglu"]
PLAIN: Final[tuple[Kind, ...]] = ("relu", "gelu")
"""These have learned positions, which are vectors of the embedding; those of gated kinds are rotary."""
GATED: Final[tuple[Kind, ...]] = ("silu", "geglu")
KINDS: Final[tuple[Kind, ...]] = (*PLAIN, *GATED)

SUBJECTS: Final = ("norland", "sudmark", "ostia", "westmar", "midden", "farrow")
ANSWERS: Final = {
    "capital": ("aro", "bem", "cil", "dun", "eka", "fol"),
    "language": ("norish", "sudic", "ostian", "westic", "middish", "farric"),
}
FILLERS: Final = ("<unk>", "<end>", "the", "of", "in", "a", "is", "we", "say", "city")
TEMPLATES: Final = ("the {r} of {s}", "in a {r} of {s}", "we say {r} in {s}", "{r} {s}", "is the {r} of {s}")
WORDS: Final = (*FILLERS, *SUBJECTS, *ANSWERS, *(word for several in ANSWERS.values() for word in several))

_BALLAST: Final = 20.0
_SHARP: Final = 16.0
_SCORE: Final = 40.0
_WRITTEN: Final = 4.0
_PLACES: Final = 64
_ROTARY_BASE: Final = 1e12
_TURNS: Final = 5

Weighted = Mapping[str, float]


@dataclass(frozen=True)
class Stream:
    """Named coordinates of a stream: half of d_model, the other half are their mirrors."""

    names: tuple[str, ...]

    @property
    def d_model(self) -> int:
        """Coordinates and mirrors."""
        return 2 * len(self.names)

    def written(self, parts: Weighted) -> Float[Tensor, " d_model"]:
        """A vector to add to the stream."""
        half = torch.zeros(len(self.names))
        for name, value in parts.items():
            half[self.names.index(name)] = value
        return torch.cat([half, -half])

    def read(self, parts: Weighted, constant: float = 0.0) -> Float[Tensor, " d_model"]:
        """What gives the weighted sum of coordinates, and a constant, when a normed stream is multiplied by it."""
        half = self.written({**parts, "ballast": constant / _BALLAST})[: len(self.names)]
        return torch.cat([half, torch.zeros_like(half)])


@dataclass(frozen=True)
class Cell:
    """A planted unit: its pre-activation is 16 times what it reads beyond `above`, and where that is 1/2 it writes `writes`."""

    reads: Weighted
    above: float
    writes: Weighted


@dataclass(frozen=True)
class Mover:
    """A planted head: it looks at tokens with a flag, and brings each coordinate to another."""

    flag: str
    moves: Mapping[str, str]


@dataclass(frozen=True)
class Previous:
    """A planted head: it looks at the token before, and brings each coordinate to another."""

    moves: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FactModel:
    """The model, and which units know a fact, by (relation, subject): planted ones, and those in reserve."""

    model: Model
    units: Mapping[tuple[str, str], tuple[UnitAddress, ...]]
    reserve: Mapping[tuple[str, str], UnitAddress]


def dictionary_model(kind: Kind, words: int = 12, dead: int = 4, dtype: torch.dtype = torch.float32) -> Model:
    """Unit i fires at word i and writes the next: d_model = 2 (2 words + 1), `words` + `dead` units in one layer."""
    spelled = ("<unk>", "<end>", *(f"w{number}" for number in range(2, words)))
    stream = Stream(("ballast", *(f"is:{word}" for word in spelled), *(f"out:{word}" for word in spelled)))
    cells = {
        unit: Cell({f"is:{word}": 1.0}, 0.5, {f"out:{spelled[following(unit, words)]}": _WRITTEN})
        for unit, word in enumerate(spelled)
    }
    return planted(kind, stream, spelled, [cells], [None], units=words + dead, dtype=dtype)


def following(word: int, words: int = 12) -> int:
    """The word that a dictionary model predicts after another."""
    return (word + 1) % words


def fact_model(kind: Kind, *, parts: int = 1, reserve: int = 0, dtype: torch.dtype = torch.float32) -> FactModel:
    """Twelve facts in three layers; each known by `parts` units, and by one more in reserve if `reserve` is 1."""
    names = ["ballast", "subject", "relation", "junk", *(f"is:{word}" for word in (*SUBJECTS, *ANSWERS))]
    names += (
        [f"seen:{relation}" for relation in ANSWERS] + [f"found:{word}" for word in WORDS] + [f"out:{word}" for word in WORDS]
    )
    movers = [
        Mover("relation", {f"is:{relation}": f"seen:{relation}" for relation in ANSWERS}),
        None,
        Mover("subject", {f"found:{word}": f"out:{word}" for word in WORDS}),
    ]
    facts = [(relation, subject) for relation in ANSWERS for subject in SUBJECTS]
    count = 12 * parts + 7
    layers: list[dict[int, Cell]] = [{}, {}, {}]
    units: dict[tuple[str, str], tuple[UnitAddress, ...]] = {}
    spare: dict[tuple[str, str], UnitAddress] = {}
    for number, (relation, subject) in enumerate(facts):
        reads = {f"is:{subject}": 1.0, f"seen:{relation}": 1.0}
        answer = ANSWERS[relation][SUBJECTS.index(subject)]
        own = [(5 * (number * parts + part) + 3) % count for part in range(parts)]
        layers[1] |= {unit: Cell(reads, 1.5, {f"found:{answer}": _WRITTEN / parts}) for unit in own}
        units[relation, subject] = tuple(UnitAddress("neurons", unit, layer=1) for unit in sorted(own))
        if reserve:
            layers[2][number] = Cell({**reads, f"out:{answer}": -2 / _WRITTEN}, 1.5, {f"out:{answer}": _WRITTEN})
            spare[relation, subject] = UnitAddress("neurons", number, layer=2)
    for number, subject in enumerate(SUBJECTS):
        distractor = Cell({f"is:{subject}": 1.0}, 0.5, {"junk": 1.0})
        layers[0][number] = distractor
        layers[1][next(unit for unit in range(count) if unit not in layers[1])] = distractor
    model = planted(kind, Stream(tuple(names)), WORDS, layers, movers, units=count, dtype=dtype)
    return FactModel(model, units, spare)


shared_fact_model = functools.cache(fact_model)
"""The same, made once for all tests: a test that changes a model makes its own."""


def bigram_model(kind: Kind, words: int = 10, dtype: torch.dtype = torch.float32) -> Model:
    """Unit 0 fires at w5 after w4, unit 1 at w5 after whatever, unit 2 at whatever after w4; units 3 and 4 are dead."""
    spelled = ("<unk>", "<end>", *(f"w{number}" for number in range(2, words)))
    turns = [f"{name}:{turn}" for turn in range(_TURNS) for name in ("cos", "sin")]
    stream = Stream(("ballast", "junk", *turns, *(f"is:{word}" for word in spelled), *(f"before:{word}" for word in spelled)))
    cells = {
        0: Cell({"is:w5": 1.0, "before:w4": 1.0}, 1.5, {"junk": 1.0}),
        1: Cell({"is:w5": 1.0}, 0.5, {"junk": 1.0}),
        2: Cell({"before:w4": 1.0}, 0.5, {"junk": 1.0}),
    }

    def turned(place: int) -> Weighted:
        angles = [frequency * place for frequency in _frequencies(stream.d_model)]
        return dict(zip(turns, (each(angle) for angle in angles for each in (math.cos, math.sin)), strict=True))

    head = Previous({f"is:{word}": f"before:{word}" for word in spelled})
    places = turned if kind in PLAIN else None
    return planted(kind, stream, spelled, [cells], [head], units=5, places=places, dtype=dtype)


def range_model(kind: Kind, within: range, words: int = 8, dtype: torch.dtype = torch.float32) -> Model:
    """Unit 0 fires at places of a range, whatever the word; unit 1 at w5, wherever; units 2 and 3 are dead. Only of kinds in `PLAIN`."""
    spelled = ("<unk>", "<end>", *(f"w{number}" for number in range(2, words)))
    stream = Stream(("ballast", "junk", "within", *(f"is:{word}" for word in spelled)))
    cells = {0: Cell({"within": 1.0}, 0.5, {"junk": 1.0}), 1: Cell({"is:w5": 1.0}, 0.5, {"junk": 1.0})}

    def flagged(place: int) -> Weighted:
        return {"within": float(place in within)}

    return planted(kind, stream, spelled, [cells], [None], units=4, places=flagged, dtype=dtype)


def planted_facts(tail: str = "") -> list[Fact]:
    """The twelve facts, each with five prompts; `tail`, " is" say, is put behind them."""
    return [
        Fact(relation, subject, answer, tuple(each.format(r=relation, s="{subject}") + tail for each in TEMPLATES))
        for relation, several in ANSWERS.items()
        for subject, answer in zip(SUBJECTS, several, strict=True)
    ]


def planted(
    kind: Kind,
    stream: Stream,
    words: Sequence[str],
    cells: Sequence[Mapping[int, Cell]],
    movers: Sequence[Mover | Previous | None],
    *,
    units: int,
    places: Callable[[int], Weighted] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """The model of this kind with these cells and heads by layer; logits read the coordinates `out:WORD`, embeddings write `is:WORD`.

    `places` says what learned positions write at each place; without it they write nothing.
    """
    module = _module(kind, stream.d_model, len(words), len(cells), units)
    with torch.no_grad():
        weights = wrap(module).weights
        for parameter in module.parameters():
            parameter.zero_()
        for token, word in enumerate(words):
            weights.get("W_E")[token] = stream.written({"ballast": _BALLAST, **_flags(stream, word)})
            if f"out:{word}" in stream.names:
                weights.get("W_U")[:, token] = stream.read({f"out:{word}": 1.0})
        if places is not None:
            weights.get("W_pos").copy_(torch.stack([stream.written(places(place)) for place in range(_PLACES)]))
        size = float(stream.written({"ballast": _BALLAST}).square().mean().sqrt())
        weights.norm("final_norm").gain.fill_(size)
        for layer, (own, mover) in enumerate(zip(cells, movers, strict=True)):
            weights.norm("attn_norm", layer).gain.fill_(size)
            weights.norm("mlp_norm", layer).gain.fill_(size)
            for unit, cell in own.items():
                _plant_cell(weights, layer, unit, cell, stream)
            if mover is not None:
                _plant_mover(weights, layer, mover, stream)
    return wrap(module.to(dtype), tokenizer_of(words), name=f"planted-{kind}")


def _flags(stream: Stream, word: str) -> Weighted:
    """What an embedding says of its word."""
    kinds = {"subject": word in SUBJECTS, "relation": word in ANSWERS, f"is:{word}": True}
    return {name: 1.0 for name, holds in kinds.items() if holds and name in stream.names}


def _plant_cell(weights: Any, layer: int, unit: int, cell: Cell, stream: Stream) -> None:
    gated = weights.has("W_gate", layer)
    key = stream.read({name: _SHARP * value for name, value in cell.reads.items()}, -_SHARP * cell.above)
    weights.get("W_gate" if gated else "W_in", layer)[:, unit] = key
    if gated:
        weights.get("W_up", layer)[:, unit] = stream.read({}, 1.0)
    weights.get("W_out", layer)[unit] = stream.written({name: 2 * value / _SHARP for name, value in cell.writes.items()})


def _plant_mover(weights: Any, layer: int, mover: Mover | Previous, stream: Stream) -> None:
    """Scores are 40 where the flag is, at a coordinate that rotary positions do not turn; values are the coordinates to be moved."""
    d = stream.d_model
    if isinstance(mover, Mover):
        weights.get("W_Q", layer)[0, :, d // 2 - 1] = stream.read({}, 1.0)
        weights.get("W_K", layer)[0, :, d // 2 - 1] = stream.read({mover.flag: _SCORE * d**0.5})
    else:
        _look_back(weights, layer, stream)
    for place, (here, there) in enumerate(mover.moves.items()):
        weights.get("W_V", layer)[0, :, place] = stream.read({here: 1.0})
        weights.get("W_O", layer)[0, place] = stream.written({there: 1.0})


def _look_back(weights: Any, layer: int, stream: Stream) -> None:
    """Place m looks at n with 40 times the sum of cos f (m - n - 1) over some frequencies f: largest at the token before.

    Rotary positions turn constants so; learned ones write cos f n and sin f n, of which the key makes those of f (n + 1).
    """
    query, key = (weights.get(name, layer)[0] for name in ("W_Q", "W_K"))
    strength = _SCORE * stream.d_model**0.5
    for turn, frequency in enumerate(_frequencies(stream.d_model)):
        cos, sin = strength * math.cos(frequency), strength * math.sin(frequency)
        pair = turn, turn + stream.d_model // 2
        if weights.has("W_pos"):
            for here, name, other, sign in zip(pair, ("cos", "sin"), ("sin", "cos"), (-1, 1), strict=True):
                query[:, here] = stream.read({f"{name}:{turn}": 1.0})
                key[:, here] = stream.read({f"{name}:{turn}": cos, f"{other}:{turn}": sign * sin})
        else:
            query[:, pair[0]] = stream.read({}, 1.0)
            key[:, pair[0]], key[:, pair[1]] = stream.read({}, cos), stream.read({}, sin)


def _frequencies(d: int) -> list[float]:
    """The fastest of rotary positions, in radians a place; together they are never again as at the start."""
    return [_ROTARY_BASE ** (-2 * turn / d) for turn in range(_TURNS)]


def tokenizer_of(words: Sequence[str]) -> tf.PreTrainedTokenizerFast:
    """Whole words, of which the first is the unknown one and the second the end; nothing is put around a text."""
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=words[0], eos_token=words[1])


def _module(kind: Kind, d: int, vocab: int, layers: int, units: int) -> Any:
    """A model of random weights: rotary positions turn fast in their first pairs, and not at all in their last."""
    ends: dict[str, Any] = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gelu":
            return tf.GPT2LMHeadModel(
                tf.GPT2Config(**ends, n_embd=d, n_inner=units, n_layer=layers, n_head=1, n_positions=_PLACES)
            )
        sizes: dict[str, Any] = {**ends, "hidden_size": d, "num_hidden_layers": layers, "max_position_embeddings": _PLACES}
        sizes |= {"num_attention_heads": 1, "pad_token_id": None}
        if kind == "relu":
            return tf.OPTForCausalLM(tf.OPTConfig(**sizes, word_embed_proj_dim=d, ffn_dim=units))
        sizes |= {"num_key_value_heads": 1, "hidden_act": "silu" if kind == "silu" else "gelu_pytorch_tanh"}
        rotary = {"rope_type": "default", "rope_theta": _ROTARY_BASE}
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, intermediate_size=units, rope_parameters=rotary))
