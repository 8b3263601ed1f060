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

How it is done: a stream of named coordinates, each with a mirror of the other sign (so that LayerNorm has no mean to take away), and a
ballast of 20 at every token, beside which the rest hardly moves the norm; norms have the gain that undoes them. There is one head, as wide
as the stream.
"""

import functools
from collections.abc import Mapping, Sequence
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
KINDS: Final[tuple[Kind, ...]] = ("relu", "gelu", "silu", "geglu")
GATED: Final[tuple[Kind, ...]] = ("silu", "geglu")
DTYPES: Final = (torch.float32, torch.bfloat16)

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
    movers: Sequence[Mover | None],
    *,
    units: int,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """The model of this kind with these cells and heads by layer; logits read the coordinates `out:WORD`, embeddings write `is:WORD`."""
    module = _module(kind, stream.d_model, len(words), len(cells), units)
    with torch.no_grad():
        weights = wrap(module).weights
        for parameter in module.parameters():
            parameter.zero_()
        for token, word in enumerate(words):
            weights.get("W_E")[token] = stream.written({"ballast": _BALLAST, **_flags(stream, word)})
            if f"out:{word}" in stream.names:
                weights.get("W_U")[:, token] = stream.read({f"out:{word}": 1.0})
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


def _plant_mover(weights: Any, layer: int, mover: Mover, stream: Stream) -> None:
    """Scores are 40 where the flag is, at a coordinate that rotary positions do not turn; values are the coordinates to be moved."""
    d = stream.d_model
    weights.get("W_Q", layer)[0, :, d // 2 - 1] = stream.read({}, 1.0)
    weights.get("W_K", layer)[0, :, d // 2 - 1] = stream.read({mover.flag: _SCORE * d**0.5})
    for place, (here, there) in enumerate(mover.moves.items()):
        weights.get("W_V", layer)[0, :, place] = stream.read({here: 1.0})
        weights.get("W_O", layer)[0, place] = stream.written({there: 1.0})


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
            return tf.GPT2LMHeadModel(tf.GPT2Config(**ends, n_embd=d, n_inner=units, n_layer=layers, n_head=1, n_positions=64))
        sizes: dict[str, Any] = {**ends, "hidden_size": d, "num_hidden_layers": layers, "max_position_embeddings": 64}
        sizes |= {"num_attention_heads": 1, "pad_token_id": None}
        if kind == "relu":
            return tf.OPTForCausalLM(tf.OPTConfig(**sizes, word_embed_proj_dim=d, ffn_dim=units))
        sizes |= {"num_key_value_heads": 1, "hidden_act": "silu" if kind == "silu" else "gelu_pytorch_tanh"}
        rotary = {"rope_type": "default", "rope_theta": 1e12}
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, intermediate_size=units, rope_parameters=rotary))
