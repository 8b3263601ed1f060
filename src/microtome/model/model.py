"""A model as microtome sees it: the built transformer with its family row, shape and weights; and the table of its sites.

How sites are observed belongs in `observe`, how a model comes to be in `wrapping` and `opening`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from microtome.core import SITES, Refusal, Site
from microtome.model.families import Family, Head, Recipe
from microtome.model.record import Certificate
from microtome.model.shape import Shape
from microtome.model.weights import Weights

__all__ = ["Model", "Opening", "SiteRow", "recipe_of", "site_table"]


@dataclass(frozen=True)
class Opening:
    """What a model was asked for, so that another process can open the same: as for `opening.load`, a folder with its whole path."""

    source: str
    dtype: str
    device: str
    remote_code: Literal["refuse", "allow"]


@dataclass(frozen=True, eq=False)
class Model:
    """A transformer that can be observed. `module` is the transformers model: in eval mode, its parameters need no gradient.

    `tokenizer` and `processor` (of images) are None where the model has none, or needs none. `fingerprint` changes whenever a
    parameter or the configuration does; `certificate` says which identities were checked. `opening` is None for a model that was given
    as a module, or made of another.
    """

    name: str
    module: Any
    family: Family
    head: Head | None
    shape: Shape
    tokenizer: Any
    processor: Any
    weights: Weights
    fingerprint: str
    certificate: Certificate
    opening: Opening | None = None

    @property
    def config(self) -> Any:
        """The configuration the module was built from."""
        return self.module.config

    @property
    def trunk(self) -> Any:
        """The module without its head."""
        return getattr(self.module, "base_model", self.module)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the first parameters are, and so what goes in."""
        return next(self.module.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where any parameters are: several for a model that is spread."""
        return tuple(dict.fromkeys(each.device for each in self.module.parameters()))

    def block(self, layer: int) -> nn.Module:
        """The module of a layer; layers that share one have the same."""
        return self.trunk.get_submodule(self.family.at(self.config, layer).block)


_INSTEAD = {
    "pos_embed": "use embed or resid_pre.0",
    "embed": "use resid_pre.0",
    "resid_mid": "use resid_pre or resid_post",
    "mlp_pre_linear": "use mlp_pre",
    "router_logits": "use mlp_act",
    "logits": "open a checkpoint that has a head, or read final_norm",
}

_HEADLESS = "the model was opened without a head that gives logits"


def why_absent(model: Model, name: str) -> str | None:
    """Why the model has no site of this name, or None where it has."""
    if name == "logits":
        return None if model.head else _HEADLESS
    return model.family.absent.get(name)


def recipe_of(model: Model, site: Site) -> Recipe:
    """How a site is had in this model; a site it does not have is refused with the reason."""
    why = why_absent(model, site.name)
    if why is not None:
        raise Refusal(f"{site} of {model.name}", why=why, instead=_INSTEAD.get(site.name, "see the table of sites"))
    if site.layer is not None and site.layer >= model.shape.layers:
        raise Refusal(
            f"{site} of {model.name}",
            why=f"the model has {model.shape.layers} layers, counted from 0",
            instead=f"use {site.name}.{model.shape.layers - 1}",
        )
    return model.family.sites[site.name]


@dataclass(frozen=True)
class SiteRow:
    """A line of the site table: axes and their sizes (a word where it depends on the batch), or why the site is absent."""

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int | str, ...]
    layers: int | None
    meaning: str
    absent: str | None


def site_table(model: Model) -> tuple[SiteRow, ...]:
    """Every site of `core.SITES` in this model: its shape, or the reason why it is absent."""
    shape = model.shape
    size: dict[str, int] = {
        "d_model": shape.d_model,
        "head": shape.heads,
        "head_kv": shape.heads_kv,
        "d_head": shape.d_head,
        "unit": shape.d_mlp,
        "expert": shape.experts,
        "vocab": shape.vocab,
    }
    rows = []
    for spec in SITES.values():
        layers = shape.layers if spec.scope == "layer" else None
        sizes = tuple(size.get(axis, axis) for axis in spec.axes)
        rows.append(SiteRow(spec.name, spec.axes, sizes, layers, spec.meaning, why_absent(model, spec.name)))
    return tuple(rows)
