"""Files of Gemma Scope: `layer_20/width_16k/average_l0_71/params.npz`, five arrays and nothing that says more.

Of which site states are is in the name of the repository, which a copy of its folder does not have: `layer_20` alone is the residual stream.

Source: Lieberum et al. 2024, arXiv:2408.05147, section 3 and appendix on transcoders.
"""

import re
from pathlib import Path
from typing import Final

import numpy as np
import torch

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary
from microtome.factors.formats.folded import Folded
from microtome.factors.formats.layout import Format, Found, Stored, arrays, plain, refuse_to_write, written
from microtome.model.spellings import parse_site

__all__ = ["FORMAT"]

_ARRAYS: Final = "params.npz"
_REPOSITORY: Final = re.compile(r"(gemma-scope-(?:\w+-(?:pt|it))-(\w+))")
_SITES: Final = {"res": "resid_post", "mlp": "mlp_out_post", "att": "z"}
_LAYER: Final = re.compile(r"layer_(\d+)")
_DEPTH: Final = 4
"""Folders above the file whose names may say at which site it is."""


def _names_site(text: str) -> bool:
    try:
        parse_site(text)
    except Refusal:
        return False
    return True


def _reads(folder: Path) -> tuple[str, str]:
    """The name of the site ("" where no folder says it), and the repository's ("" where it is not in the path)."""
    near = folder.parts[-_DEPTH:]
    repositories = [match for part in folder.parts if (match := _REPOSITORY.search(part))]
    if not repositories:
        return next((part for part in reversed(near) if _names_site(part)), ""), ""
    repository, kind = repositories[-1].groups()
    if kind not in _SITES:
        why = "its inputs were normed without the norm's own weights, and no site lies there"
        if kind != "transcoders":
            why = f"{kind} is none of {', '.join(_SITES)}"
        raise Refusal(f"dictionary in {folder}", why=why, instead="choose one of the residual stream, the MLP or attention")
    layer = next((match[1] for part in reversed(near) if (match := _LAYER.fullmatch(part))), "")
    return (f"{_SITES[kind]}.{layer}" if layer else ""), repository


def _read(folder: Path) -> Found:
    folder = folder.absolute()
    if "embedding" in folder.parts[-_DEPTH:]:
        why = "it was trained on embeddings before the model scales them"
        raise Refusal(f"dictionary in {folder}", why=why, instead="choose one of a layer")
    reads, repository = _reads(folder)
    found = arrays(folder / _ARRAYS)
    stored = Stored(found.path, {re.sub("^w_", "W_", name): array for name, array in found.tensors.items()})
    stored.require_only("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    weights = stored.take("W_enc", None, None)
    width, units = weights.shape
    folded = Folded(
        weights=weights,
        bias=stored.take("b_enc", units),
        rule=Above(stored.take("threshold", units).clamp(min=0)),
        directions=stored.take("W_dec", units, width),
        offset=stored.take("b_dec", width),
        centre=torch.zeros(width),
    )
    told = {"format": FORMAT.name, "architecture": "jumprelu", "model_name": "", "folder": "/".join(folder.parts[-3:])}
    if repository:
        told["model_name"] = re.sub(r"gemma-scope-(\w+)-pt-\w+", r"gemma-2-\1", repository)
        told["model_name"] = re.sub(r"gemma-scope-(\w+-it)-\w+", r"gemma-2-\1", told["model_name"])
    return Found(folded, reads, None, told)


def _place(dictionary: Dictionary, site: Site) -> str:
    if dictionary.arrangement != "shared":
        raise refuse_to_write(dictionary, "Gemma Scope", "its arrays are of one site")
    return f"layer_{site.layer}" if site.name == "resid_post" else str(site)


def _write(folded: Folded, dictionary: Dictionary, site: Site, folder: Path) -> None:
    del site
    rule = folded.rule
    if not isinstance(rule, Above):
        raise refuse_to_write(dictionary, "Gemma Scope", "it keeps the k largest codes, and files there those above thresholds")
    folded = folded.centred(torch.zeros_like(folded.centre))
    tensors = {
        "W_enc": folded.weights,
        "W_dec": folded.directions,
        "b_enc": folded.bias,
        "b_dec": folded.offset,
        "threshold": rule.threshold,
    }
    with written(folder / _ARRAYS) as file:
        np.savez(file, allow_pickle=False, **{name: plain(tensor).numpy() for name, tensor in tensors.items()})


FORMAT: Final = Format("gemma_scope", (_ARRAYS,), _read, _place, _write)
