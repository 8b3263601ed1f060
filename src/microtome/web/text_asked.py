"""What may be asked of the model, and how much of it: the bodies of the page's requests."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from microtome.live import MOST_TOKENS
from microtome.live.edited import MOST_EDITS, MOST_WRITTEN

__all__ = ["MOST_CHARACTERS", "AttentionAsked", "EditAsked", "EditedAsked", "PartsAsked", "TextAsked", "WritingAsked"]

MOST_CHARACTERS: Final = 20_000
_LAYERS: Final = 10_000
_IDS: Final = 1 << 31

Layer = Annotated[int, Field(ge=0, le=_LAYERS)]
Place = Annotated[int, Field(ge=0, lt=MOST_TOKENS)]


class TextAsked(BaseModel):
    """A text to read."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    text: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class AttentionAsked(TextAsked):
    """A layer whose attention is shown."""

    layer: Layer


class PartsAsked(TextAsked):
    """A token whose state is taken apart: behind `layer` or at the end, the blocks of layer `inside` by unit, for the logit of `token`."""

    place: Place
    layer: Layer | None = None
    inside: Layer | None = None
    token: Annotated[int, Field(ge=0, lt=_IDS)] | None = None


class EditAsked(BaseModel):
    """What is done to a unit, at all tokens or at one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    unit: Annotated[str, Field(max_length=200)]
    change: Literal["off", "scale", "set", "add"]
    value: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    place: Place | None = None


class WritingAsked(BaseModel):
    """How much is written, and how tokens are drawn: at temperature 0 the most probable."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    tokens: Annotated[int, Field(ge=1, le=MOST_WRITTEN)] = 40
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=_IDS)] = 0


class EditedAsked(TextAsked):
    """Units to edit, and perhaps how the text is to go on."""

    edits: Annotated[list[EditAsked], Field(max_length=MOST_EDITS)]
    write: WritingAsked | None = None
