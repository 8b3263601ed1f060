"""Folders of EleutherAI's sparsify, named for the module whose output they code: `layers.6.mlp/cfg.json` and `sae.safetensors`.

A transcoder is of the module's input and output.
"""

from pathlib import Path
from typing import Final

import torch

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Dictionary, Largest
from microtome.factors.formats.folded import Folded, unit_lengths
from microtome.factors.formats.layout import (
    Config,
    Format,
    Found,
    refuse_to_write,
    safetensors,
    write_json,
    write_safetensors,
)
from microtome.model.spellings import spell

__all__ = ["FORMAT"]

_SETTINGS: Final = "cfg.json"
_WEIGHTS: Final = "sae.safetensors"
_INPUT, _OUTPUT = ".input", ".output"
_DEFAULT_K: Final = 32
"""What a folder means whose settings do not name k."""


def _read(folder: Path) -> Found:
    config, stored = Config.of(folder / _SETTINGS), safetensors(folder / _WEIGHTS)
    what, instead = f"dictionary in {folder}", "use it in sparsify"
    if (activation := config.text("activation") or "topk") != "topk":
        raise Refusal(
            what, why=f"its activation {activation} keeps one code of each group, and topk is known here", instead=instead
        )
    if config.values.get("signed"):
        raise Refusal(what, why="its codes have signs", instead=instead)
    stored.require_only("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip")
    encoder = stored.take("encoder.weight", None, None)
    units, width = encoder.shape
    across, offset = bool(config.values.get("transcode")), stored.take("b_dec", width)
    skip = stored.take("W_skip", width, width).T.contiguous() if "W_skip" in stored.tensors else None
    if skip is not None and not across:
        raise Refusal(what, why="it has a linear part without being a transcoder", instead=instead)
    folded = Folded(
        weights=encoder.T.contiguous(),
        bias=stored.take("encoder.bias", units),
        rule=Largest(config.count("k") if "k" in config.values else _DEFAULT_K),
        directions=stored.take("W_dec", units, width),
        offset=offset,
        centre=torch.zeros_like(offset) if across else offset,
        skip=skip,
    )
    told = {"format": FORMAT.name, "architecture": "transcoder" if across else "topk"}
    hook = folder.absolute().name
    return Found(folded, hook + _INPUT if across else hook, hook + _OUTPUT if across else None, told)


def _place(dictionary: Dictionary, site: Site) -> str:
    """The module whose output a site is; of a transcoder, the one that makes what it writes of what it reads."""
    target = dictionary.writes[0] if dictionary.arrangement == "transcoder" else site
    if dictionary.arrangement != "transcoder" and site.name == "resid_pre" and site.layer:
        target = Site("resid_post", site.layer - 1)  # the same states
    hook = spell(target, "huggingface")
    if not hook.endswith(_OUTPUT):
        raise refuse_to_write(dictionary, "sparsify", f"{target} is not the output of a module")
    module = hook.removesuffix(_OUTPUT)
    if dictionary.arrangement == "transcoder" and spell(site, "huggingface") != module + _INPUT:
        raise refuse_to_write(dictionary, "sparsify", f"{site} is not the input of the module that makes {target}")
    return module


def _write(folded: Folded, dictionary: Dictionary, site: Site, folder: Path) -> None:
    del site
    across = dictionary.arrangement == "transcoder"
    rule = folded.rule
    if not isinstance(rule, Largest):
        raise refuse_to_write(dictionary, "sparsify", "it keeps codes above thresholds, and files there the k largest")
    if len(folded.centre) != len(folded.offset):
        raise refuse_to_write(dictionary, "sparsify", "what it writes has another width than what it reads")
    folded = folded.centred(torch.zeros_like(folded.centre) if across else folded.offset)
    tensors = {
        "encoder.weight": folded.weights.T,
        "encoder.bias": folded.bias,
        "W_dec": folded.directions,
        "b_dec": folded.offset,
    }
    if folded.skip is not None:
        tensors["W_skip"] = folded.skip.T
    _, size, done = unit_lengths(folded)
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.units // len(folded.centre)),
        "normalize_decoder": size == 1.0 and not done,
        "num_latents": dictionary.units,
        "k": min(rule.k, dictionary.units),
        "multi_topk": False,
        "skip_connection": folded.skip is not None,
        "transcode": across,
        "d_in": len(folded.centre),
    }
    write_safetensors(folder / _WEIGHTS, tensors)
    write_json(folder / _SETTINGS, settings)


FORMAT: Final = Format("sparsify", (_SETTINGS, _WEIGHTS), _read, _place, _write)
