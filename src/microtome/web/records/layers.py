"""What the page is told by layer: shares of variance, losses, quartiles of statistics."""

from pydantic import BaseModel

from microtome.web.records.values import Number

__all__ = ["LayerStat", "Layers", "Loss", "Share"]


class Share(BaseModel):
    """The share of a part of hidden states at a site."""

    site: str
    layer: int | None
    part: str
    share: Number
    control: Number
    control_kind: str | None
    lo: Number
    hi: Number
    norm: Number


class Loss(BaseModel):
    """Loss read at a site through the model's own head."""

    objective: str
    site: str | None
    layer: int | None
    loss: Number
    control: Number
    control_kind: str | None
    lo: Number
    hi: Number
    tokens: int | None


class LayerStat(BaseModel):
    """Quartiles of a statistic over the units of a layer."""

    basis: str
    stat: str
    layer: int | None
    low: Number
    middle: Number
    high: Number
    units: int


class Layers(BaseModel):
    """All that the page plots by layer."""

    shares: list[Share]
    losses: list[Loss]
    stats: list[LayerStat]
