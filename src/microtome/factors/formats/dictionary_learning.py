"""Files of dictionary_learning: `ae.pt`, a state dict, and `config.json`, which says of which class it is.

Nothing but tensors is read from `ae.pt`: a pickle could run anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary, Largest
from microtome.factors.formats.folded import Folded, unit_lengths
from microtome.factors.formats.layout import Config, Format, Found, Stored, pickled, plain, refuse_to_write, write_json, written

__all__ = ["FORMAT"]

_TENSORS: Final = "ae.pt"
_SETTINGS: Final = "config.json"


def _linear(stored: Stored, bias: str, *, subtracted: bool) -> Folded:
    """The two linear layers that most classes have, with a threshold of 0; `bias` is added to what is made of codes."""
    encoder = stored.take("encoder.weight", None, None)
    units, width = encoder.shape
    offset = stored.take(bias, width)
    inner = stored.take("encoder.bias", units) if bias != "decoder_bias" else encoder.new_zeros(units)
    return Folded(
        weights=encoder.T.contiguous(),
        bias=inner,
        rule=Above(encoder.new_zeros(units)),
        directions=stored.take("decoder.weight", width, units).T.contiguous(),
        offset=offset,
        centre=offset if subtracted else torch.zeros_like(offset),
    )


def _matrices(stored: Stored, *, subtracted: bool) -> Folded:
    """The four parameters of classes that have no layers."""
    weights = stored.take("W_enc", None, None)
    width, units = weights.shape
    offset = stored.take("b_dec", width)
    return Folded(
        weights=weights,
        bias=stored.take("b_enc", units),
        rule=Above(weights.new_zeros(units)),
        directions=stored.take("W_dec", units, width),
        offset=offset,
        centre=offset if subtracted else torch.zeros_like(offset),
    )


def _standard(stored: Stored, config: Config) -> Folded:
    del config
    return _linear(stored, "bias", subtracted=True)


def _new(stored: Stored, config: Config) -> Folded:
    del config
    return _linear(stored, "decoder.bias", subtracted=False)


def _gated(stored: Stored, config: Config) -> Folded:
    """The gate opens above -gate_bias, which is a threshold of the magnitude e^r z + mag_bias."""
    del config
    made = _linear(stored, "decoder_bias", subtracted=True)
    units = len(made.bias)
    scale, bias = stored.take("r_mag", units).exp(), stored.take("mag_bias", units)
    floor = (bias - scale * stored.take("gate_bias", units)).clamp(min=0)
    return replace(made, weights=made.weights * scale, bias=bias, rule=Above(floor))


def _above(made: Folded, threshold: torch.Tensor) -> Folded:
    floor = threshold.to(made.bias).expand_as(made.bias).clamp(min=0).contiguous()
    return replace(made, rule=Above(floor))


def _jump(stored: Stored, config: Config) -> Folded:
    del config
    made = _matrices(stored, subtracted=False)
    return _above(made, stored.take("threshold", len(made.bias)))


def _largest(stored: Stored, config: Config) -> Folded:
    made = _linear(stored, "b_dec", subtracted=True)
    k = Config(stored.path, {"k": float(stored.take("k"))}).count("k") if "k" in stored.tensors else config.count("k")
    return replace(made, rule=Largest(k))


def _batch(stored: Stored, config: Config) -> Folded:
    """Trained with the largest of a batch, and used with one threshold."""
    del config
    return _above(_linear(stored, "b_dec", subtracted=True), stored.take("threshold"))


def _nested(stored: Stored, config: Config) -> Folded:
    del config
    return _above(_matrices(stored, subtracted=True), stored.take("threshold"))


_CLASSES: Final[Mapping[str, Callable[[Stored, Config], Folded]]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump,
    "AutoEncoderTopK": _largest,
    "BatchTopKSAE": _batch,
    "MatryoshkaBatchTopKSAE": _nested,
}
_SIGNS: Final = {
    "r_mag": "GatedAutoEncoder",
    "group_sizes": "MatryoshkaBatchTopKSAE",
    "W_enc": "JumpReluAutoEncoder",
    "decoder.bias": "AutoEncoderNew",
    "bias": "AutoEncoder",
}
"""Tensors that tell a class where the settings are lost; a TopK and a BatchTopK have the same."""
_KNOWN: Final = (
    "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "bias", "b_dec", "decoder_bias", "r_mag", "mag_bias", "gate_bias",
    "W_enc", "b_enc", "W_dec", "threshold", "k", "group_sizes",
)  # fmt: skip


def _class_of(stored: Stored, trainer: Config) -> str:
    told = trainer.text("dict_class") or next((kind for name, kind in _SIGNS.items() if name in stored.tensors), "")
    if told in _CLASSES:
        return told
    why = f"its class {told} is none of {', '.join(_CLASSES)}" if told else f"{_SETTINGS} beside it does not say of which class"
    instead = "use it in dictionary_learning" if told else 'write {"trainer": {"dict_class": its class}} there'
    raise Refusal(str(stored.path), why=why, instead=instead)


def _read(folder: Path) -> Found:
    settings = folder / _SETTINGS
    config = Config.of(settings) if settings.exists() else Config(settings, {})
    trainer, stored = config.inner("trainer"), pickled(folder / _TENSORS)
    stored.require_only(*_KNOWN)
    kind = _class_of(stored, trainer)
    folded = _CLASSES[kind](stored, trainer)
    inside = config.inner("buffer").text("io") not in ("", "out")
    told = {"format": FORMAT.name, "architecture": kind, "model_name": trainer.text("lm_name")}
    return Found(folded, "" if inside else trainer.text("submodule_name"), None, told)


def _place(dictionary: Dictionary, site: Site) -> str:
    if dictionary.arrangement != "shared":
        raise refuse_to_write(dictionary, "dictionary_learning", "it has no class for transcoders")
    return f"{site.name}_layer_{site.layer}" if site.name in ("resid_post", "attn_out", "mlp_out") else str(site)


def _write(folded: Folded, dictionary: Dictionary, site: Site, folder: Path) -> None:
    """Directions that are not of length 1 are written as JumpReLU: the tool makes others of length 1 itself, with other codes."""
    rule = folded.rule
    learnt = isinstance(rule, Above) and bool((rule.threshold > 0).any())
    straight = unit_lengths(folded)
    if isinstance(rule, Largest) or (not learnt and straight[1] == 1.0 and not straight[2]):
        folded = folded.centred(folded.offset)
        tensors = {
            "encoder.weight": folded.weights.T,
            "encoder.bias": folded.bias,
            "decoder.weight": folded.directions.T,
            "b_dec" if isinstance(rule, Largest) else "bias": folded.offset,
        }
        kind = "AutoEncoderTopK" if isinstance(rule, Largest) else "AutoEncoder"
    else:
        folded, kind = folded.centred(torch.zeros_like(folded.centre)), "JumpReluAutoEncoder"
        tensors = {"W_enc": folded.weights, "b_enc": folded.bias, "W_dec": folded.directions, "b_dec": folded.offset}
    saved = {name: plain(tensor) for name, tensor in tensors.items()}
    trainer: dict[str, str | int | None] = {
        "dict_class": kind,
        "activation_dim": len(folded.weights),
        "dict_size": dictionary.units,
        "layer": site.layer,
        "lm_name": str(dictionary.learnt.get("model_name", "")),
        "submodule_name": _place(dictionary, site),
    }
    if isinstance(rule, Largest):
        trainer["k"] = min(rule.k, dictionary.units)
        saved |= {"k": torch.tensor(trainer["k"], dtype=torch.int), "threshold": torch.tensor(-1.0)}
    if isinstance(rule, Above) and kind == "JumpReluAutoEncoder":
        saved["threshold"] = plain(rule.threshold)
    with written(folder / _TENSORS) as file:
        torch.save(saved, file)
    buffer = {"d_submodule": len(folded.weights), "io": "out", "ctx_len": None}
    write_json(folder / _SETTINGS, {"trainer": trainer, "buffer": buffer})


FORMAT: Final = Format("dictionary_learning", (_TENSORS,), _read, _place, _write)
