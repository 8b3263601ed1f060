"""What other tools call the sites: their names are understood and written here, and appear nowhere else.

Names of TransformerLens (2 and 3), interp-engine, dictionary_learning, Gemma Scope, and module paths as nnsight, sparsify and
Hugging Face write them. A name is understood by its role, under the weights as they are in the checkpoint: TransformerLens'
default folding of norms and centring changes the numbers of what has the same name there. A name that means different tensors
in different tools or architectures is refused unless the model decides which.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from microtome.core import SITES, Refusal, Site
from microtome.model.model import Model

__all__ = ["TOOLS", "Tool", "parse_site", "spell"]

Tool = Literal["microtome", "transformer_lens", "transformer_lens_3", "interp_engine", "huggingface"]
TOOLS: Final[tuple[Tool, ...]] = ("microtome", "transformer_lens", "transformer_lens_3", "interp_engine", "huggingface")


@dataclass(frozen=True)
class Vocabulary:
    """The names of one tool: how it writes a site of a layer and of the model, what it is read from, what it cannot name.

    `write` maps sites to names; reading knows these and `also`. `refused` are names with no site of their own, with why and
    what to ask for instead.
    """

    form: str
    write: Mapping[str, str]
    also: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def read(self) -> dict[str, str]:
        """Sites by name."""
        return {**{name: site for site, name in self.write.items()}, **self.also}


_TL_ATTENTION: Final = {
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "q_rot": "attn.hook_rot_q",
    "k_rot": "attn.hook_rot_k",
    "attn_scores": "attn.hook_attn_scores",
    "attn_probs": "attn.hook_pattern",
    "z": "attn.hook_z",
}
_TL_STREAM: Final = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out_post": "hook_attn_out",
    "mlp_out_post": "hook_mlp_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_pre_linear": "mlp.hook_pre_linear",
    "mlp_act": "mlp.hook_post",
}
_TWO_SIDES: Final = "it is the norm's input in TransformerLens 2 and its output in 3"
_TL_REFUSED: Final = {
    "hook_attn_in": (_TWO_SIDES, "ask for resid_pre (before the norm) or attn_in (after it)"),
    "hook_mlp_in": (_TWO_SIDES, "ask for resid_mid (before the norm) or mlp_in (after it)"),
    "attn.hook_result": ("outputs of single heads are not kept", "ask for z and multiply by W_O of the head"),
    "mlp.hook_expert_weights": ("it is taken after the softmax", "ask for router_logits"),
}

_TRANSFORMER_LENS: Final = Vocabulary(
    form="blocks.{layer}.{name}",
    write={
        **_TL_STREAM,
        **_TL_ATTENTION,
        "attn_in": "ln1.hook_normalized",
        "mlp_in": "ln2.hook_normalized",
        "embed": "hook_embed",
        "pos_embed": "hook_pos_embed",
        "final_norm": "ln_final.hook_normalized",
    },
    also={"hook_normalized_resid_post": "resid_post"},
    refused=_TL_REFUSED,
)
_TRANSFORMER_LENS_3: Final = Vocabulary(
    form="blocks.{layer}.{name}",
    write={
        **_TL_ATTENTION,
        "resid_pre": "hook_in",
        "resid_mid": "ln2.hook_in",
        "resid_post": "hook_out",
        "attn_in": "attn.hook_in",
        "attn_out": "attn.hook_out",
        "attn_out_post": "hook_attn_out",
        "mlp_in": "mlp.hook_in",
        "mlp_pre": "mlp.hook_pre",
        "mlp_pre_linear": "mlp.hook_pre_linear",
        "mlp_act": "mlp.hook_post",
        "mlp_out": "mlp.hook_out",
        "mlp_out_post": "hook_mlp_out",
        "embed": "embed.hook_out",
        "pos_embed": "pos_embed.hook_out",
        "final_norm": "unembed.hook_in",
        "logits": "unembed.hook_out",
    },
    also={
        "ln1.hook_in": "resid_pre",
        "ln1.hook_out": "attn_in",
        "ln2.hook_out": "mlp_in",
        "ln1_post.hook_out": "attn_out_post",
        "ln2_post.hook_out": "mlp_out_post",
        "attn.q.hook_out": "q",
        "attn.k.hook_out": "k",
        "attn.v.hook_out": "v",
        "attn.o.hook_in": "z",
        "attn.o.hook_out": "attn_out",
        "mlp.gate.hook_out": "mlp_pre",
        "mlp.out.hook_in": "mlp_act",
        "mlp.out.hook_out": "mlp_out",
        "ln_final.hook_out": "final_norm",
    },
    refused={
        "mlp.in.hook_out": ("in a gated MLP it is the branch without nonlinearity", "ask for mlp_pre or mlp_pre_linear"),
        "ln_final.hook_in": ("it is the last layer's output", "ask for resid_post of the last layer"),
    },
)
_INTERP_ENGINE: Final = Vocabulary(
    form="{name}.{layer}",
    write={
        **{name: name for name in SITES if name not in ("pos_embed", "q", "k", "q_rot", "k_rot")},
        "embed": "embeddings",
        "v": "value",
        "logits": "lm_head",
    },
    refused={
        "q_norm_in": ("it exists only where queries are normed", "ask for q"),
        "k_norm_in": ("it exists only where keys are normed", "ask for k"),
        "q_norm_out": ("it lies between the norm and the rotation", "ask for q or q_rot"),
        "k_norm_out": ("it lies between the norm and the rotation", "ask for k or k_rot"),
        "attn_gate": ("no family here gates its attention's output", "ask for z or attn_out"),
        "expert_weights": ("choices of the router are not a site", "ask for router_logits"),
        "expert_indices": ("choices of the router are not a site", "ask for router_logits"),
        "resid_streams": ("no family here has several residual streams", "ask for resid_post"),
    },
)
_HUGGINGFACE: Final = Vocabulary(
    form="layers.{layer}.{name}",
    write={
        "resid_pre": "input",
        "resid_post": "output",
        "attn_in": "self_attn.input",
        "attn_out": "self_attn.output",
        "mlp_in": "mlp.input",
        "mlp_out": "mlp.output",
        "mlp_act": "mlp.down_proj.input",
        "logits": "lm_head.output",
        "final_norm": "lm_head.input",
    },
    also={
        "attn.input": "attn_in",
        "attn.output": "attn_out",
        "mlp.act.output": "mlp_act",
        "mlp.down_proj.output": "mlp_out",
        "mlp.gate_proj.output": "mlp_pre",
        "mlp.up_proj.output": "mlp_pre_linear",
        "mlp.gate_proj.input": "mlp_in",
        "mlp.up_proj.input": "mlp_in",
        "mlp.c_fc.input": "mlp_in",
        "mlp.c_fc.output": "mlp_pre",
        "mlp.c_proj.input": "mlp_act",
        "mlp.c_proj.output": "mlp_out",
        "self_attn.q_proj.output": "q",
        "self_attn.k_proj.output": "k",
        "self_attn.v_proj.output": "v",
        "self_attn.o_proj.input": "z",
        "self_attn.o_proj.output": "attn_out",
    },
)
_VOCABULARIES: Final[dict[str, Vocabulary]] = {
    "transformer_lens": _TRANSFORMER_LENS,
    "transformer_lens_3": _TRANSFORMER_LENS_3,
    "interp_engine": _INTERP_ENGINE,
    "huggingface": _HUGGINGFACE,
}

_BLOCK: Final = re.compile(r"blocks\.(\d+)\.(.+)")
_POINT: Final = re.compile(r"([a-z_]+)(?:\.(\d+))?")
_MODULE: Final = re.compile(r"(?:[a-z_]+\.)*?(?:layers|layer|h)\.(\d+)(?:\.(.+?))??(?:\.(input|output))?(?:\[0\])?")
_INDEXED: Final = re.compile(r"\b(layers|layer|h|blocks)\[(\d+)\]")
_HIDDEN: Final = re.compile(r"hidden_states\[(-?\d+)\]")
_TRAINED: Final = re.compile(r"(?:(resid_post|attn_out|mlp_out)_)?layer_(\d+)")


def parse_site(text: str, model: Model | None = None) -> Site:
    """The site that `text` names, in microtome's spelling or another tool's.

    With `model`, module paths are looked up in its architecture, `hidden_states` counts its layers, and names that depend on the
    architecture are decided; without it those are refused.

    >>> parse_site("blocks.5.mlp.hook_post"), parse_site("model.layers.3.output"), parse_site("hidden_states[5]")
    (Site('mlp_act', 5), Site('resid_post', 3), Site('resid_pre', 5))
    """
    plain = _INDEXED.sub(r"\1.\2", text.strip())
    for read in (_own, _block, _hidden, _module, _trained, _point):
        found = read(plain, model)
        if found is not None:
            return found
    raise Refusal(
        f"site {text!r}",
        why="no tool known here writes it so",
        instead="write name.layer as in resid_post.6; the names are " + ", ".join(SITES),
    )


def spell(site: Site, tool: Tool, model: Model | None = None) -> str:
    """The site's name in `tool`; in `huggingface` with `model`, the module path in its architecture.

    >>> spell(Site("mlp_act", 5), "transformer_lens")
    'blocks.5.mlp.hook_post'

    Errors: `Refusal` where the tool has no name for it.
    """
    if tool == "microtome":
        return str(site)
    if tool == "huggingface" and model is not None:
        path = _path_of(site, model)
        if path is not None:
            return path
    vocabulary = _VOCABULARIES[tool]
    name = vocabulary.write.get(site.name)
    if name is None:
        raise Refusal(
            f"site {site} in {tool}",
            why="the tool has no name for it, or its name depends on the architecture",
            instead=f"write it as {site}",
        )
    return name if site.layer is None else vocabulary.form.format(layer=site.layer, name=name)


def _own(text: str, model: Model | None) -> Site | None:
    match = _POINT.fullmatch(text)
    return Site.parse(text) if match and match[1] in SITES else None


def _block(text: str, model: Model | None) -> Site | None:
    """Names of TransformerLens."""
    match = _BLOCK.fullmatch(text)
    name, layer = (match[2], int(match[1])) if match else (text, None)
    decided = _DECIDED.get(name)
    if decided is not None and model is not None:
        name = decided(model) or name
        if name in SITES:
            return Site(name, model.shape.layers - 1 if layer is None else layer)
    for vocabulary in (_TRANSFORMER_LENS, _TRANSFORMER_LENS_3):
        found = _of(vocabulary, name, layer, text)
        if found is not None:
            return found
    return None


def _of(vocabulary: Vocabulary, name: str, layer: int | None, text: str) -> Site | None:
    """The site called `name`, where the name is one of a layer exactly if the site is."""
    if name in vocabulary.refused:
        why, instead = vocabulary.refused[name]
        raise Refusal(f"site {text!r}", why=why, instead=instead)
    site = vocabulary.read.get(name)
    if site is None or (SITES[site].scope == "layer") != (layer is not None):
        return None
    return Site(site, layer)


def _post_norm(site: str) -> Callable[[Model], str | None]:
    """In post-norm models TransformerLens 2 takes these before the norm, where no site is."""

    def decide(model: Model) -> str | None:
        if model.shape.norm != "post":
            return None
        raise Refusal(
            f"the {site} of TransformerLens in {model.name}",
            why="in post-norm models it is taken before the norm, and no site lies there",
            instead=f"ask for {site}, which is after the norm",
        )

    return decide


_DECIDED: Final[dict[str, Callable[[Model], str | None]]] = {
    "hook_resid_mid": _post_norm("resid_mid"),
    "hook_resid_post": _post_norm("resid_post"),
    "mlp.in.hook_out": lambda model: "mlp_pre_linear" if model.shape.gated else "mlp_pre",
    "ln_final.hook_in": lambda model: "resid_post",
}
"""Names whose tensor depends on the architecture: what they are in a model, None where the tables are right."""


def _hidden(text: str, model: Model | None) -> Site | None:
    """`hidden_states[i]` of Hugging Face: the stream before block i, and after all blocks and the final norm at the end."""
    match = _HIDDEN.fullmatch(text)
    if match is None:
        return None
    index = int(match[1])
    if model is None:
        if index < 0:
            raise Refusal(
                f"site {text!r}", why="how many layers there are is not known", instead="count from 0, or name the model"
            )
        return Site("resid_pre", index)
    layers = model.shape.layers
    index = index + layers + 1 if index < 0 else index
    if not 0 <= index <= layers:
        raise Refusal(
            f"site {text!r}", why=f"{model.name} has hidden states 0 to {layers}", instead=f"use hidden_states[{layers}]"
        )
    if index < layers:
        return Site("resid_pre", index)
    return Site("resid_post", layers - 1) if model.shape.norm == "post" else Site("final_norm")


def _module(text: str, model: Model | None) -> Site | None:
    """Module paths: `layers.10`, `model.layers.10.mlp.output`, `h.3.mlp.act`; the output where no side is named."""
    match = _MODULE.fullmatch(text)
    if match is None:
        return _of(_HUGGINGFACE, text, None, text)
    layer, module, side = int(match[1]), match[2] or "", match[3] or "output"
    if module == "mlp.act" and model is not None and model.shape.gated:
        module = "mlp.act_fn"
    found = None if model is None else _tapped(module, side, layer, model, text)
    return found or _of(_HUGGINGFACE, f"{module}.{side}" if module else side, layer, text)


def _tapped(module: str, side: str, layer: int, model: Model, text: str) -> Site | None:
    """The site that the model's architecture takes from this side of this module."""
    whole = _WHOLE.get(module) if side == "output" else None
    if whole and model.family.name not in _ADDS:
        return Site(whole, layer)
    if whole:
        raise Refusal(
            f"site {text!r}", why=f"in {model.family.name} this module adds the stream", instead=f"ask for {whole}.{layer}"
        )
    here = [name for name, where in _places(model).items() if where == (module, side) and SITES[name].scope == "layer"]
    names = [name for name in here if _SAME.get(name) not in here]
    if len(names) > 1:
        raise Refusal(
            f"site {text!r}", why=f"it holds {' and '.join(names)} side by side", instead=f"ask for {names[0]}.{layer}"
        )
    return Site(names[0], layer) if names else None


_WHOLE: Final = {
    "mlp": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
    "self_attention": "attn_out",
}
_ADDS: Final = ("bloom", "bert", "roberta", "electra")
"""Families whose attention or MLP module returns its output already added to the stream."""


_SAME: Final = {"attn_out_post": "attn_out", "mlp_out_post": "mlp_out", "q_rot": "q", "k_rot": "k"}
"""Sites that, where an architecture takes both from one place, are one tensor."""


def _places(model: Model) -> dict[str, tuple[str, str]]:
    """(module, side) of the sites that are taken from one place of the architecture."""
    sides = {"in": "input", "out": "output"}
    return {
        name: (recipe.taps[0].module, sides[recipe.taps[0].side])
        for name, recipe in model.family.sites.items()
        if len(recipe.taps) == 1 and recipe.taps[0].select == 0
    }


def _path_of(site: Site, model: Model) -> str | None:
    """The module path and side from which the site is taken, None where it is computed or shares its place with another."""
    places = _places(model)
    where = places.get(site.name)
    if where is None or site.layer is None:
        return None
    sharing = {_SAME.get(name, name) for name, there in places.items() if there == where and SITES[name].scope == "layer"}
    if len(sharing) > 1:
        return None
    prefix = "" if model.trunk is model.module else model.family.prefix
    return ".".join(part for part in (prefix, model.family.at(model.config, site.layer).block, *where) if part)


def _trained(text: str, model: Model | None) -> Site | None:
    """Places where published dictionaries were trained: `resid_post_layer_8`, `layer_20`."""
    match = _TRAINED.fullmatch(text)
    return Site(match[1] or "resid_post", int(match[2])) if match else None


def _point(text: str, model: Model | None) -> Site | None:
    """Names of interp-engine."""
    match = _POINT.fullmatch(text)
    return None if match is None else _of(_INTERP_ENGINE, match[1], int(match[2]) if match[2] else None, text)
