"""Folders of SAELens: `cfg.json` and `sae_weights.safetensors`, as versions before and after 6.0 lay them out.

Of what is done to states beforehand only a multiplication is a dictionary's scaling; what depends on each state is refused by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary, Largest
from microtome.factors.formats.folded import Folded
from microtome.factors.formats.layout import (
    Config,
    Format,
    Found,
    Stored,
    refuse_to_write,
    safetensors,
    write_json,
    write_safetensors,
)
from microtome.model.spellings import spell

__all__ = ["FORMAT"]

_SETTINGS: Final = "cfg.json"
_WEIGHTS: Final = "sae_weights.safetensors"
_SCALER: Final = "activation_scaler.json"
_VERSION: Final = "6.0.0"
"""The layout that is written; readers take a folder without a version for one before it."""

_RENAMED: Final = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_STATES: Final = {
    "constant_norm_rescale": "each state is divided by its own length",
    "layer_norm": "each state is normed by its own mean and spread",
    "covariance_whitening": "states are multiplied by a matrix, which belongs into the weights",
}
"""Why a dictionary's scaling, which is the same for all states of a site, cannot say it."""
_PROCESSED: Final = ("center_writing_weights", "fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")

Encoding = tuple[Tensor, Tensor, Above | Largest]


def _relu(stored: Stored, config: Config, weights: Tensor) -> Encoding:
    del config
    units = weights.shape[1]
    return weights, stored.take("b_enc", units), Above(weights.new_zeros(units))


def _gated(stored: Stored, config: Config, weights: Tensor) -> Encoding:
    """The gate opens above -b_gate, which is a threshold of the magnitude e^r z + b_mag."""
    del config
    units = weights.shape[1]
    scale, bias = stored.take("r_mag", units).exp(), stored.take("b_mag", units)
    return weights * scale, bias, Above((bias - scale * stored.take("b_gate", units)).clamp(min=0))


def _jump(stored: Stored, config: Config, weights: Tensor) -> Encoding:
    del config
    units = weights.shape[1]
    bias = stored.take("b_enc", units)
    learning = "threshold" not in stored.tensors and "log_threshold" in stored.tensors
    floor = stored.take("log_threshold", units).exp() if learning else stored.take("threshold", units)
    return weights, bias, Above(floor.clamp(min=0))


def _largest(stored: Stored, config: Config, weights: Tensor) -> Encoding:
    return weights, stored.take("b_enc", weights.shape[1]), Largest(config.count("k"))


def _batch(stored: Stored, config: Config, weights: Tensor) -> Encoding:
    """While it is trained there is one threshold for all units."""
    if "topk_threshold" not in stored.tensors:
        return _jump(stored, config, weights)
    bias = stored.take("b_enc", weights.shape[1])
    return weights, bias, Above(stored.take("topk_threshold").to(bias).expand_as(bias).clamp(min=0).contiguous())


_FLOORS: Final = ("b_enc", "threshold", "log_threshold", "topk_threshold")
_ENCODINGS: Final[Mapping[str, tuple[Callable[[Stored, Config, Tensor], Encoding], tuple[str, ...]]]] = {
    "standard": (_relu, ("b_enc",)),
    "gated": (_gated, ("b_gate", "b_mag", "r_mag")),
    "jumprelu": (_jump, _FLOORS[:3]),
    "topk": (_largest, ("b_enc",)),
    "batchtopk": (_batch, _FLOORS),
    "matryoshka_batchtopk": (_batch, _FLOORS),
    "transcoder": (_relu, ("b_enc",)),
    "skip_transcoder": (_relu, ("b_enc", "W_skip")),
    "jumprelu_transcoder": (_jump, _FLOORS[:3]),
    "jumprelu_skip_transcoder": (_jump, (*_FLOORS[:3], "W_skip")),
}
"""How codes are made in an architecture, and of which tensors beside those that all have."""
_COMMON: Final = ("W_enc", "W_dec", "b_dec", "scaling_factor", "finetuning_scaling_factor")


def _flat(config: Config) -> Config:
    """Old and new layouts as one: what the new one keeps under `metadata` beside the rest."""
    values = {_RENAMED.get(name, name): value for name, value in {**config.values, **config.inner("metadata").values}.items()}
    k = config.inner("activation_fn_kwargs").values.get("k")
    if values.get("activation_fn") == "topk":
        values["architecture"] = "topk"
    if values.get("architecture") == "topk" and k is not None:
        values["k"] = k
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = "expected_average_only_in" if values["normalize_activations"] else "none"
    return Config(config.path, {"architecture": "standard", **values})


def _require_told(config: Config) -> None:
    """Refuse what a dictionary cannot say, by its name."""
    what, instead = f"dictionary in {config.path.parent}", "use it in SAELens, or choose another dictionary"
    architecture, activation = config.text("architecture"), config.text("activation_fn")
    if architecture not in _ENCODINGS:
        why = f"its architecture {architecture} is none of {', '.join(_ENCODINGS)}"
        raise Refusal(what, why=why, instead=instead)
    if activation not in ("", "relu", "topk"):
        raise Refusal(what, why=f"its activation function {activation} is neither relu nor topk", instead=instead)
    states = config.text("normalize_activations")
    if states not in ("", "none", "expected_average_only_in"):
        why = f"normalize_activations is {states}: {_STATES.get(states, 'nothing is known of it here')}"
        raise Refusal(what, why=why, instead=instead)
    if architecture.endswith("transcoder") and states == "expected_average_only_in":
        why = "states that it reads were multiplied by one number, and nothing says whether those that it writes were"
        raise Refusal(what, why=why, instead=instead)
    if config.text("hook_head_index"):
        raise Refusal(what, why=f"it is of head {config.text('hook_head_index')} alone", instead=instead)
    processed = config.inner("model_from_pretrained_kwargs").values
    if changed := [name for name in _PROCESSED if processed.get(name)]:
        why = f"it was trained on states of a model whose weights TransformerLens had changed ({changed[0]})"
        raise Refusal(what, why=why, instead=instead)


def _multiplied(folder: Path, config: Config) -> float:
    """By what states were multiplied before they were coded."""
    if config.text("normalize_activations") != "expected_average_only_in":
        return 1.0
    if not (folder / _SCALER).is_file():
        why = "states were multiplied by one number (expected_average_only_in), and it is not in the folder"
        instead = f'write {{"scaling_factor": that number}} into {_SCALER} beside the weights'
        raise Refusal(f"dictionary in {folder}", why=why, instead=instead)
    factor = Config.of(folder / _SCALER).values.get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise Refusal(
            f"scaling_factor in {folder / _SCALER}", why=f"it is {factor}, and no number above 0", instead="write it again"
        )
    return float(factor)


def _finetuned(stored: Stored, config: Config, directions: Tensor) -> Tensor:
    """Directions times what an old fine-tuning learnt for each unit."""
    names = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in stored.tensors]
    if not names:
        return directions
    factor = stored.take(names[0], len(directions))
    if not config.values.get("finetuning_scaling_factor") and not torch.allclose(factor, torch.ones_like(factor)):
        why = "it is there, and the settings say that it is not used"
        raise Refusal(f"tensor {names[0]} in {stored.path}", why=why, instead="set finetuning_scaling_factor, or take it out")
    return directions * factor[:, None]


def _read(folder: Path) -> Found:
    config, stored = _flat(Config.of(folder / _SETTINGS)), safetensors(folder / _WEIGHTS)
    _require_told(config)
    architecture = config.text("architecture")
    encoding, named = _ENCODINGS[architecture]
    stored.require_only(*_COMMON, *named)
    across = architecture.endswith("transcoder")
    weights = stored.take("W_enc", None, None)
    d_read, units = weights.shape
    directions = _finetuned(stored, config, stored.take("W_dec", units, None if across else d_read))
    offset = stored.take("b_dec", directions.shape[1])
    skip = stored.take("W_skip", len(offset), d_read).T.contiguous() if "W_skip" in named else None
    subtracted = not across and config.values.get("apply_b_dec_to_input", True)
    codes, bias, rule = encoding(stored, config, weights)
    folded = Folded(codes, bias, rule, directions, offset, offset if subtracted else weights.new_zeros(d_read), skip)
    if config.values.get("rescale_acts_by_decoder_norm"):
        folded = replace(folded.stretched(folded.lengths), rule=rule)  # thresholds are of codes that are stretched already
    factor = _multiplied(folder, config)
    if factor != 1.0:
        # States were multiplied before they were coded, and divided after: both go into the weights.
        folded = replace(
            folded,
            weights=folded.weights * factor,
            directions=folded.directions / factor,
            offset=offset / factor,
            centre=folded.centre / factor,
        )
    told = {"format": FORMAT.name, "architecture": architecture, "model_name": config.text("model_name")}
    writes = config.text("hook_name_out", "hf_hook_name_out") if across else None
    return Found(folded, config.text("hook_name", "hf_hook_name"), writes, told)


def _hook(site: Site) -> str:
    """What TransformerLens calls a site: 2 where it has a name, and 3 where not."""
    try:
        return spell(site, "transformer_lens")
    except Refusal:
        return spell(site, "transformer_lens_3")


def _place(dictionary: Dictionary, site: Site) -> str:
    del dictionary
    return _hook(site)


def _write(folded: Folded, dictionary: Dictionary, site: Site, folder: Path) -> None:
    across = dictionary.arrangement == "transcoder"
    rule = folded.rule
    if across and isinstance(rule, Largest):
        raise refuse_to_write(dictionary, "SAELens", "it has no transcoder that keeps the largest codes")
    if not across:
        folded = folded.centred(folded.offset)
    elif bool(folded.centre.any()):
        folded = folded.centred(torch.zeros_like(folded.centre))
    tensors = {"W_enc": folded.weights, "b_enc": folded.bias, "W_dec": folded.directions, "b_dec": folded.offset}
    kind = "topk" if isinstance(rule, Largest) else "standard"
    if isinstance(rule, Above) and bool((rule.threshold > 0).any()):
        kind, tensors["threshold"] = "jumprelu", rule.threshold
    if across:
        kind = "_".join(([kind] if kind == "jumprelu" else []) + (["skip"] if folded.skip is not None else []) + ["transcoder"])
    if folded.skip is not None:
        tensors["W_skip"] = folded.skip.T
    hook = _hook(site)
    metadata = {
        "sae_lens_version": _VERSION,
        "model_name": str(dictionary.learnt.get("model_name", "")),
        "hook_name": hook,
    } | ({"hook_name_out": _hook(dictionary.writes[0])} if across else {})
    settings = {
        "architecture": kind,
        "d_in": len(folded.weights),
        "d_sae": dictionary.units,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not across,
        "normalize_activations": "none",
        "reshape_activations": hook.rsplit(".", 1)[-1] if site.name == "z" else "none",
        **({"k": min(rule.k, dictionary.units), "rescale_acts_by_decoder_norm": False} if isinstance(rule, Largest) else {}),
        **({"d_out": len(folded.offset)} if across else {}),
        "metadata": metadata,
    }
    write_safetensors(folder / _WEIGHTS, tensors)
    write_json(folder / _SETTINGS, settings)


FORMAT: Final = Format("saelens", (_SETTINGS, _WEIGHTS), _read, _place, _write)
