"""Sites: names of tensors in a transformer, defined by formula and not by module.

`SITES` is the whole table. A `Site` is a row of it at a layer, and its text form (`resid_post.6`, `final_norm`) exists only
at the edges: command line, URLs, files. Where a site lives in a given architecture is a fact of that architecture and belongs
in `model.families`; spellings of other tools belong in `model.spellings`.
"""

import functools
import re
from dataclasses import dataclass
from typing import Final, Literal

from microtome.core.errors import Malformed, NotFound

__all__ = ["SITES", "Site", "SiteSpec"]

Scope = Literal["model", "layer"]


@dataclass(frozen=True)
class SiteSpec:
    """One row of the site table.

    `axes` are the axes after (window, token), or all axes where they begin otherwise. `meaning` holds for every norm layout;
    where layouts differ the formula names them.
    """

    name: str
    scope: Scope
    axes: tuple[str, ...]
    meaning: str


_WT = ("window", "token")

_ROWS: Final = (
    SiteSpec("embed", "model", (*_WT, "d_model"), "token embeddings as looked up, scaled where the model scales them"),
    SiteSpec("pos_embed", "model", (*_WT, "d_model"), "learned absolute position embeddings, as added to the stream"),
    SiteSpec("resid_pre", "layer", (*_WT, "d_model"), "the stream that enters block l; hidden_states[l] of Hugging Face"),
    SiteSpec(
        "attn_in", "layer", (*_WT, "d_model"), "what the query projection reads: norm(resid_pre), or resid_pre (post-norm)"
    ),
    SiteSpec("q", "layer", (*_WT, "head", "d_head"), "queries as they leave the linear layer"),
    SiteSpec("k", "layer", (*_WT, "head_kv", "d_head"), "keys as they leave the linear layer"),
    SiteSpec("v", "layer", (*_WT, "head_kv", "d_head"), "values as they leave the linear layer"),
    SiteSpec("q_rot", "layer", (*_WT, "head", "d_head"), "queries after QK-norm and rotary embedding"),
    SiteSpec("k_rot", "layer", (*_WT, "head_kv", "d_head"), "keys after QK-norm and rotary embedding"),
    SiteSpec("attn_scores", "layer", ("window", "head", "query", "key"), "masked, scaled q_rot . k_rot (+ ALiBi, soft cap)"),
    SiteSpec("attn_probs", "layer", ("window", "head", "query", "key"), "softmax of attn_scores over keys"),
    SiteSpec("z", "layer", (*_WT, "head", "d_head"), "attention-weighted values per head: the input of W_O"),
    SiteSpec("attn_out", "layer", (*_WT, "d_model"), "sum over heads of z W_O, plus b_O"),
    SiteSpec(
        "attn_out_post",
        "layer",
        (*_WT, "d_model"),
        "what attention adds to the stream: attn_out, after the sandwich norm if any",
    ),
    SiteSpec(
        "resid_mid",
        "layer",
        (*_WT, "d_model"),
        "resid_pre + attn_out_post; post-norm: norm(resid_pre + attn_out); parallel: absent",
    ),
    SiteSpec(
        "mlp_in", "layer", (*_WT, "d_model"), "what W_in (W_gate and W_up) reads: norm(resid_mid), or resid_mid (post-norm)"
    ),
    SiteSpec("mlp_pre", "layer", (*_WT, "unit"), "the input of the nonlinearity: W_in x + b_in, or the gate branch W_gate x"),
    SiteSpec("mlp_pre_linear", "layer", (*_WT, "unit"), "the up branch W_up x of a gated MLP"),
    SiteSpec("mlp_act", "layer", (*_WT, "unit"), "the input of the down projection: the activation space"),
    SiteSpec("mlp_out", "layer", (*_WT, "d_model"), "sum over units of mlp_act W_out, plus b_out"),
    SiteSpec(
        "mlp_out_post", "layer", (*_WT, "d_model"), "what the MLP adds to the stream: mlp_out, after the sandwich norm if any"
    ),
    SiteSpec("router_logits", "layer", (*_WT, "expert"), "scores from which a mixture-of-experts router chooses"),
    SiteSpec(
        "resid_post",
        "layer",
        (*_WT, "d_model"),
        "the stream that leaves block l: resid_mid + mlp_out_post; post-norm: its norm",
    ),
    SiteSpec("final_norm", "model", (*_WT, "d_model"), "the stream after the last norm: what the head reads"),
    SiteSpec("logits", "model", (*_WT, "vocab"), "scores over the vocabulary (or labels) from the model's own head"),
)

SITES: Final[dict[str, SiteSpec]] = {row.name: row for row in _ROWS}

_FORM = re.compile(r"(?P<name>[a-z_]+)(?:\.(?P<layer>\d+))?", re.ASCII)


@functools.total_ordering
@dataclass(frozen=True)
class Site:
    """A tensor of a model: a name from `SITES`, and a layer where the name has one per layer.

    >>> Site.parse("resid_post.6")
    Site('resid_post', 6)
    >>> str(Site("final_norm"))
    'final_norm'
    """

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        spec = SITES.get(self.name)
        if spec is None:
            raise NotFound(f"site {self.name!r}", why="no site has this name", instead=f"use one of {', '.join(SITES)}")
        if spec.scope == "layer" and self.layer is None:
            raise Malformed(
                f"site {self.name!r}", why="this site exists once per layer", instead=f"name one, as in {self.name}.0"
            )
        if spec.scope == "model" and self.layer is not None:
            raise Malformed(f"site {self}", why="this site exists once per model", instead=f"use {self.name}")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read the text form, `name` or `name.layer`; anything else is refused."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise Malformed(
                f"site {text!r}", why="not of the form name or name.layer", instead="write for example resid_post.6"
            )
        layer = match["layer"]
        return cls(match["name"], None if layer is None else int(layer))

    @property
    def spec(self) -> SiteSpec:
        """The row of `SITES` this site is an instance of."""
        return SITES[self.name]

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    def __repr__(self) -> str:
        return f"Site({self.name!r})" if self.layer is None else f"Site({self.name!r}, {self.layer})"

    def __lt__(self, other: "Site") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int]:
        """Order of computation in a forward pass: layers in sequence, names in the order of `SITES` inside a layer."""
        place = list(SITES).index(self.name)
        if self.layer is not None:
            return self.layer, place
        return (-1 if self.name in ("embed", "pos_embed") else 1 << 30), place
