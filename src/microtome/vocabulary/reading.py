"""What a person asks of a model's weights by name: vectors, heads, units, or directions of the stream. Call `read`.

What each answer says is in `vector_reading`, `singular_reading`, `head_reading` and `unit_reading`; topics are looked for in `topics`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from microtome.core import Refusal, UnitAddress, WeightAddress
from microtome.model import Checkpoint, Model, open_checkpoint
from microtome.model.rotation import scorings_of
from microtome.vocabulary.head_reading import HeadReading, read_head
from microtome.vocabulary.parameters import GROUPS, groups_of
from microtome.vocabulary.singular_reading import read_singular
from microtome.vocabulary.subject import Preset, Subject, subject_of
from microtome.vocabulary.unit_reading import UnitReading, read_unit
from microtome.vocabulary.vector_reading import Reading, backwards, directions_of, read_directions, read_vector

__all__ = ["counted", "read"]

_VECTOR, _WHOLE = 20, 10
"""Tokens at each end of a vector, and pairs or tokens of a head or unit, where nothing else is asked."""
_BASES: Final = ("heads", "neurons")


def read(
    model: Model | Checkpoint | str | Path,
    what: str | Sequence[Any] | np.ndarray | Tensor,
    *,
    k: int | None = None,
    preset: Preset = "folded",
    basis: str = "transpose",
    tokens: str | None = None,
) -> list[Reading | HeadReading | UnitReading]:
    """Read weight vectors, heads and their singular directions, feed-forward units, or directions of the stream, in the vocabulary.

        for answer in mt.vocabulary.read("HuggingFaceTB/SmolLM2-135M", ["W_out.24/343", "heads.25/3", "neurons.24/343"]):
            print(answer)

    The model is not built. Addresses are as they are printed: with the end sign - a vector (W_out.24/343-) or a singular direction of a
    head (heads.25/3.svd0 is written, heads.25/3.svdin0 read) is reversed. Directions are floats of any precision, as tensor, array or
    lists. `preset`, `basis` and `tokens` are those of `subject_of`. A weight vector is compared with random mixtures of the vectors of
    its group and layer, a direction with directions drawn from all alike, a head with itself, turned inside. `k` counts tokens (20; of a
    unit 10) at each end, and pairs of a head (10).
    Errors: `Refusal` for an unknown address, a k that is no number from 1 to the vocabulary, directions of another width or kind.
    Cost: one pass over the token vectors for each; see `head_reading.read_head` for heads.
    Source: Dar et al. 2022, arXiv:2209.02535, section 3.
    """
    opened = model if isinstance(model, Model | Checkpoint) else open_checkpoint(model)
    named = [what] if isinstance(what, str) else what if isinstance(what, Sequence) else []
    by_name = any(isinstance(each, str) for each in named)
    if by_name and not all(isinstance(each, str) for each in named):
        raise Refusal(
            "addresses and numbers together", why="they are read in different ways", instead="ask for one kind at a time"
        )
    asked = [_address(opened, str(text)) for text in named] if by_name else directions_of(what)
    subject = subject_of(opened, preset=preset, basis=basis, tokens=tokens)
    if isinstance(asked, Tensor):
        return [*read_directions(subject, asked, counted(k, _VECTOR, subject))]
    return [_answer(opened, subject, address, end, k) for address, end in asked]


def counted(k: Any, usual: int, subject: Subject) -> int:
    """How many tokens to read: `k`, or where it is None the usual number, or all there are. Errors: `Refusal` for what is none."""
    shown = len(subject.write.tokens)
    if k is None:
        return min(usual, shown)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= shown:
        raise Refusal(f"k = {k}", why=f"{shown} tokens are shown", instead=f"ask for a whole number from 1 to {shown}")
    return int(k)


def _answer(
    opened: Model | Checkpoint, subject: Subject, address: UnitAddress | WeightAddress, end: str, k: int | None
) -> Reading | HeadReading | UnitReading:
    if isinstance(address, WeightAddress):
        return _from(end, read_vector(subject, address, counted(k, _VECTOR, subject)))
    if address.part is not None:
        return _from(end, read_singular(subject, address, counted(k, _VECTOR, subject)))
    if address.basis == "neurons":
        return read_unit(subject, address, counted(k, _WHOLE, subject))
    assert address.layer is not None, "it is one of the model's"
    scoring = scorings_of(opened, [address.layer], 1)[address.layer]
    return read_head(subject, address, counted(k, _WHOLE, subject), scoring)


def _from(end: str, found: Reading) -> Reading:
    return backwards(found) if end == "-" else found


def _address(opened: Model | Checkpoint, text: str) -> tuple[UnitAddress | WeightAddress, str]:
    """What a text names, and the end sign behind a direction (else ""). Errors: `Refusal` that says what there is."""
    name = text.partition("/")[0].partition(".")[0]
    end = text[-1:] if text.endswith(("+", "-")) else ""
    if name in GROUPS:
        return WeightAddress.parse(text.removesuffix(end)), end
    if name not in _BASES:
        groups = ", ".join(group.name for group in groups_of(opened.weights))
        raise Refusal(
            f"{text!r} of {opened.name}",
            why=f"what can be read is heads (heads.5/1), units (neurons.5/1), and vectors of {groups}",
            instead="write for example heads.0/0 or W_out.0/0",
        )
    address, shape = UnitAddress.parse(text), opened.shape
    of = {"heads": shape.heads, "neurons": shape.d_mlp}[name]
    experts = shape.experts if name == "neurons" else 0
    first = UnitAddress(name, 0, layer=0, expert=0 if experts else None)
    last = UnitAddress(name, of - 1, layer=shape.layers - 1, expert=experts - 1 if experts else None)
    whole = UnitAddress(name, address.index, layer=address.layer, expert=address.expert)
    if name == "heads" and address.part is not None:
        whole = replace(whole, part=address.part, sign=address.sign)
    if address != whole:
        why = "a unit or head is read whole: only vectors and singular directions have an end"
        raise Refusal(f"{text!r} of {opened.name}", why=why, instead=f"write {whole}")
    there = address.layer in range(shape.layers) and address.expert in (range(experts) if experts else (None,))
    if not there or address.index >= of:
        raise Refusal(f"{text!r} of {opened.name}", why=f"{name} are {first} to {last}", instead="name one of them")
    return replace(address, sign=None), end
