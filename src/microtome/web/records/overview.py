"""What the page is told of the model as a stack of layers."""

from pydantic import BaseModel

from microtome.web.records.values import Problem

__all__ = ["LayerLabels", "LayerUnits", "ModelShape", "Overview", "SiteAt"]


class ModelShape(BaseModel):
    """Sizes of the model and how a block is put together; what the manifest does not say is null.

    `norm`: norms sit before each branch (pre), after each addition (post), after each branch (sandwich), or once for an attention
    and an MLP that read the same stream (parallel).
    """

    layers: int | None = None
    d_model: int | None = None
    heads: int | None = None
    heads_kv: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    vocab: int | None = None
    context: int | None = None
    experts: int | None = None
    gated: bool | None = None
    norm: str | None = None
    causal: bool | None = None
    head: str | None = None
    rotary: bool | None = None
    learned_positions: bool | None = None


class LayerUnits(BaseModel):
    """How many units a basis has in a layer (none: over all), and how many of them have a label."""

    layer: int | None
    basis: str
    label: str
    units: int
    labelled: int


class LayerLabels(BaseModel):
    """How many units of a layer have a label of a kind; with a text, that label."""

    layer: int | None
    basis: str
    kind: str
    text: str | None
    units: int


class SiteAt(BaseModel):
    """A site that this run has something about: tables of geometry, a loss, statistics of units, a dictionary."""

    site: str
    layer: int | None
    tables: list[str]


class Overview(BaseModel):
    """The stack of layers: its shape, what is known where, and its units by what they can be called."""

    name: str
    family: str
    architecture: str
    shape: ModelShape
    sites: list[SiteAt]
    units: list[LayerUnits]
    labels: list[LayerLabels]
    problems: list[Problem]
