"""What the page is told of a text that is typed, and of the model that reads it. Tokens that are named are rows of `words`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from microtome.web.records.values import Number, Packed, Problem

__all__ = [
    "ActiveUnit",
    "ActiveUnits",
    "Edited",
    "ModelNow",
    "ShownPart",
    "TextAttention",
    "TextLens",
    "TextPage",
    "TextParts",
    "WrittenText",
]

Indices = Annotated[str, Field(description="whole numbers as base64 of little-endian int32; -1 for none")]


class ModelNow(BaseModel):
    """The model of the atlas: absent (and how to name it), closed (opened by the first text), opening, open, or refused; and what it is asked at most."""

    state: Literal["absent", "closed", "opening", "open", "refused"]
    name: str
    dtype: str
    device: str
    problem: Problem | None
    tokens: int
    characters: int
    edits: int
    written: int


class ActiveUnit(BaseModel):
    """A unit that is active somewhere in the text: its largest and smallest activation in the atlas, and what it is called and promotes there.

    `label_below` and `suppresses` are what is said of it where its activation is below 0.
    """

    unit: str
    site: str | None
    largest: Number
    smallest: Number
    label: str | None
    label_below: str | None
    promotes: list[str]
    suppresses: list[str]


class ActiveUnits(BaseModel):
    """The strongest units of each token, `per` of them, token by token: rows of `units`, activations, and by what they are ordered."""

    per: int
    units: list[ActiveUnit]
    index: Indices
    values: Packed
    sizes: Packed


class TextLens(BaseModel):
    """The logit lens, site by site and token by token; of each the `per` most probable tokens, as rows of the page's `words`.

    `target` is the probability of the token that is to be predicted, `rank` its place among all (0 is the most probable).
    """

    sites: list[str]
    per: int
    top: Indices
    probability: Packed
    entropy: Packed
    target: Packed
    rank: Indices


class TextPage(BaseModel):
    """A text as the model reads it. `predicts` says what its head tells of each token: the next one, its own, or nothing; then there is no lens."""

    run: str
    model: str
    dtype: str
    layers: int
    heads: int
    predicts: Literal["next", "own", "nothing"]
    ids: list[int]
    pieces: list[str]
    special: list[bool]
    words: list[str]
    word_ids: list[int]
    lens: TextLens | None
    neurons: ActiveUnits
    near: ActiveUnits
    heads_active: ActiveUnits
    factors: ActiveUnits
    problems: list[Problem]


class TextAttention(BaseModel):
    """Attention of a layer: head by head, query by query, each key's share in 65,535ths."""

    layer: int
    heads: int
    tokens: int
    shares: Annotated[str, Field(description="base64 of little-endian uint16")]


class ShownPart(BaseModel):
    """Something that was written into a state (`live.Part`)."""

    kind: Literal["embedding", "attention", "feed-forward", "head", "neuron", "rest", "norms", "rounding", "output"]
    layer: int | None
    unit: str | None
    length: Number
    share: Number
    logit: Number
    mean: Number


class TextParts(BaseModel):
    """The parts of a state, in the order in which they were written. Where no logit is a sum of parts, `why` says so."""

    site: str
    place: int
    token: int | None
    word: str | None
    logit: Number
    sum: Number
    length: Number
    parts: list[ShownPart]
    why: str


class WrittenText(BaseModel):
    """What the model went on to write: its tokens, and the log-probability of each when it was drawn."""

    text: str
    pieces: list[str]
    log_probability: list[Number]


class Edited(BaseModel):
    """Predictions at each token, clean beside edited: the `per` most probable tokens of each, as rows of `words`, with the probabilities by both.

    `kl` is KL(clean || edited) in nats, `control` the mean of it over `draws` draws of other units that are edited so, `loss` that of the next token.
    """

    tokens: int
    per: int
    words: list[str]
    word_ids: list[int]
    clean: Indices
    clean_by_clean: Packed
    clean_by_edited: Packed
    edited: Indices
    edited_by_clean: Packed
    edited_by_edited: Packed
    kl: Packed
    control: Packed
    draws: int
    loss_clean: Packed
    loss_edited: Packed
    written_clean: WrittenText | None
    written_edited: WrittenText | None
