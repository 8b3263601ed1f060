"""The model of an atlas: where it is, whether it is the one that the atlas is of, and why it cannot run where it cannot.

It is opened when it is first asked for, once, and kept. An atlas does not say where its model is, for it may have been built elsewhere: whoever
opens it names the model, unless its name is itself a folder or file here. Only a model that is named by its address on the hub is fetched.
"""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.live.reading import MOST_TOKENS
from microtome.model import Checkpoint, Model, load, open_checkpoint
from microtome.readout import texts_of, written
from microtome.store import ModelCard, read_manifest

__all__ = ["NEEDED", "Loaded", "ModelOfAtlas", "Told"]

NEEDED: Final = "`microtome open ATLAS --model PATH`, or in a notebook `mt.show(ATLAS, model=PATH)`"
_EXACT: Final = 6 << 30
"""Bytes of weights up to which a model runs in float32, in which sums of parts are exact; beyond, as `model.load` chooses."""

Source = str | Path | Model | None


@dataclass(frozen=True, eq=False)
class Loaded:
    """The model, and what is made of it once."""

    model: Model

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token."""
        return texts_of(self.model.tokenizer, self.model.shape.vocab)

    @cached_property
    def lengths(self) -> dict[tuple[int, int | None], Float[Tensor, " unit"]]:
        """Lengths of the vectors that neurons write, by layer and expert, as they reach the stream but for a factor per token."""
        found: dict[tuple[int, int | None], Tensor] = {}
        weights, shape = self.model.weights, self.model.shape
        for layer in range(shape.layers):
            stored = weights.get("W_out", layer)
            for expert in range(shape.experts) if shape.experts else (None,):
                rows = (stored if expert is None else stored[expert]).float()
                found[layer, expert] = written(weights, layer, rows, "mlp").norm(dim=1)
        return found

    @cached_property
    def mean_token(self) -> Float[Tensor, " d_model"]:
        """The mean over tokens of the vectors that the head reads with."""
        return self.model.weights.get("W_U").float().mean(1)


@dataclass(frozen=True)
class Told:
    """How it stands with the model: not there, there and not opened yet, being opened, open, or refused; with a problem where there is one.

    `tokens` is how many it is asked to read at most.
    """

    state: Literal["absent", "closed", "opening", "open", "refused"]
    name: str
    dtype: str = ""
    device: str = ""
    problem: Refusal | None = None
    tokens: int = MOST_TOKENS


class ModelOfAtlas:
    """The model of the atlas in folder `atlas`: `source` is a model, or where one is; None: where the atlas's own name of it says.

    Its methods may be called from several threads; `loaded` opens the model in the first of them, and the others wait.
    """

    def __init__(self, atlas: Path, source: Source = None) -> None:
        self._atlas = Path(atlas)
        self._source = source
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._refused: Refusal | None = None
        self._opening = False

    def told(self) -> Told:
        """How it stands, without opening anything."""
        try:
            card = read_manifest(self._atlas).model
        except Refusal as refusal:
            return Told("absent", "", problem=refusal)
        return replace(self._told(card), tokens=min(MOST_TOKENS, card.shape.get("context") or MOST_TOKENS))

    def _told(self, card: ModelCard) -> Told:
        if self._refused is not None:
            return Told("refused", card.name, problem=self._refused)
        if self._loaded is not None:
            model = self._loaded.model
            return Told("open", model.name, str(model.dtype).removeprefix("torch."), str(model.device))
        if self._opening:
            return Told("opening", card.name)
        try:
            self._where(card)
        except Refusal as refusal:
            return Told("absent", card.name, problem=refusal)
        return Told("closed", card.name)

    def loaded(self) -> Loaded:
        """The model, opened the first time.

        Errors: `Refusal` where nobody knows where it is, where it cannot be opened, where it reads no text, and where it is not the atlas's.
        Cost: the first time that of `model.load`, and one more read of the weights.
        """
        card = read_manifest(self._atlas).model
        with self._lock:
            if self._refused is not None:
                raise self._refused
            if self._loaded is None:
                where = self._where(card)
                self._opening = True
                try:
                    self._loaded = Loaded(_opened(where, card))
                except Refusal as refusal:
                    self._refused = refusal
                    raise
                finally:
                    self._opening = False
            _require_same(self._loaded.model, card)
            return self._loaded

    def _where(self, card: ModelCard) -> str | Path | Model:
        """What is to be opened."""
        if self._source is not None:
            return self._source
        own = Path(card.name).expanduser()
        if card.name and (own.is_dir() or own.is_file()):
            return own
        why = f"it runs {card.name or 'the model'}, and the atlas does not say where that is"
        raise Refusal("Text needs the model on this machine", why=why, instead=NEEDED)


def _opened(where: str | Path | Model, card: ModelCard) -> Model:
    if isinstance(where, Model):
        model = where
    else:
        try:
            checkpoint = open_checkpoint(where)
            _require_same(checkpoint, card)
            small = sum(file.stat().st_size for file in checkpoint.files.weights) <= _EXACT
            model = load(where, dtype="float32" if small else "auto")
        except Refusal:
            raise
        except (OSError, RuntimeError, MemoryError) as error:
            why = f"it cannot be opened ({' '.join(str(error).split())[:200] or type(error).__name__})"
            raise Refusal(f"model {where}", why=why, instead=f"name the model that the atlas is of: {NEEDED}") from error
    _require_same(model, card)
    if model.family.inputs != "text" or model.tokenizer is None:
        why = "it reads pictures" if model.family.inputs != "text" else "it has no tokenizer"
        raise Refusal(f"text for {model.name}", why=why, instead="open an atlas of a model that reads text")
    return model


def _require_same(found: Model | Checkpoint, card: ModelCard) -> None:
    """Refuse another model than the atlas's, and say what differs."""
    if found.fingerprint == card.fingerprint:
        return
    shape: Mapping[str, Any] = asdict(found.shape)
    differing = [
        f"{name} {shape[name]} and {card.shape[name]}"
        for name in card.shape
        if name in shape and shape[name] != card.shape[name]
    ]
    if differing:
        why = f"the atlas is of {card.name}, another model: here and there are {', '.join(differing[:4])}"
    else:
        why = f"the atlas is of {card.name}, of the same shape with other weights or another configuration"
        why += f" (fingerprint {found.fingerprint[:12]} here, {card.fingerprint[:12]} there)"
    raise Refusal(f"model {found.name}", why=why, instead=f"name the model that the atlas is of: {NEEDED}")
