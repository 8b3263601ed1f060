"""The parity certificate: exact identities, checked on a small batch when a model is opened.

A model that fails one is refused, with the identity and the error: numbers measured on it would mean something else than they
say. The identities themselves are in `identities`, the record in `record`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.model.identities import Pair, layer_pairs, layer_sites
from microtome.model.model import Model
from microtome.model.observe import final_norm, forward, inputs_of, observe, unembed
from microtome.model.record import Certificate, DtypeRow, IdentityRow
from microtome.model.reference import fp32_states
from microtome.model.weights import Fetch

__all__ = ["certify", "probe_batch"]

_TOLERANCE: Final = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_SHARPNESS: Final = 4.0
"""Scores above this blur probabilities: a relative error of a score is an absolute error of its exponent."""


def certify(model: Model, stored: Fetch | None = None) -> Certificate:
    """Check every identity on a seeded random batch, and what a dtype below fp32 costs.

    The relative error of an identity is its largest absolute difference over the largest absolute value expected; 1e-5 is allowed
    in fp32, the rounding of one operation in a lower dtype. `stored` gives the checkpoint's own values: the weights of the first,
    the middle and the last layer must be the built model's, and the fp32 reference is made of them.

    Errors: `Refusal` for a model that fails an identity.
    Cost: a handful of forward passes over 2 windows of 16 tokens.
    """
    book = _Book(_TOLERANCE.get(model.dtype, 5e-2))
    batch = probe_batch(model)
    with torch.inference_mode():
        if stored is not None:
            _check_stored(model, stored, book)
        _check_layers(model, batch, book)
        _refuse_failures(model, book.rows())
        _check_attention(model, batch, book)
        if model.family.inputs == "text":
            _check_attention(model, _padded(batch), book)
        _refuse_failures(model, book.rows())
        dtypes = () if model.dtype in (torch.float32, torch.float64) else _dtype_rows(model, batch, stored)
    return Certificate(model.name, str(model.dtype).removeprefix("torch."), book.rows(), dtypes)


def _refuse_failures(model: Model, rows: tuple[IdentityRow, ...]) -> None:
    for row in rows:
        if not row.passed:
            where = "" if row.worst_layer is None else f" in layer {row.worst_layer}"
            if math.isnan(row.worst_error):
                raise Refusal(
                    f"model {model.name}",
                    why=f"its activations are NaN or infinite in {str(model.dtype).removeprefix('torch.')}, seen at {row.identity!r}{where}",
                    instead="open it as float32 (--dtype float32); if it is, check the weights for NaN and for numbers far too large",
                )
            raise Refusal(
                f"model {model.name}",
                why=f"{row.identity!r} fails{where}: relative error {row.worst_error:.1e}, allowed {row.tolerance:.0e}",
                instead=f"check the weights for NaN and the configuration, or report the model: its row {model.family.name} is wrong",
            )


class _Book:
    """The worst error of each identity so far."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.coarse = tolerance > _TOLERANCE[torch.float32]
        self._worst: dict[str, tuple[float, int | None, float]] = {}

    def add(self, pair: Pair, layer: int | None, tolerance: float | None = None) -> None:
        allowed = self.tolerance * (pair.slack if self.coarse else 1.0) if tolerance is None else tolerance
        error = _relative(pair.observed, pair.expected)
        before = self._worst.get(pair.identity)
        if before is None or math.isnan(error) or _margin(error, allowed) > _margin(before[0], before[2]):
            self._worst[pair.identity] = (error, layer, allowed)

    def rows(self) -> tuple[IdentityRow, ...]:
        return tuple(
            IdentityRow(identity, error, layer, allowed, error <= allowed)
            for identity, (error, layer, allowed) in self._worst.items()
        )


def _margin(error: float, allowed: float) -> float:
    return error / allowed if allowed else error


def _relative(observed: Tensor, expected: Tensor) -> float:
    expected = expected.to(observed.device)
    if observed.shape != expected.shape:
        return float("inf")
    difference = (observed.float() - expected.float()).abs().max()
    scale = expected.float().abs().max()
    return float(difference) if float(scale) == 0.0 else float(difference / scale)


def probe_batch(model: Model, windows: int = 2, tokens: int = 16) -> Batch:
    """A seeded random batch that the model can read: token ids without its padding token, or pixels."""
    seed = torch.Generator().manual_seed(0)
    extra: dict[str, Tensor] = {}
    context = model.shape.context or tokens
    if model.family.inputs == "image":
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.randn(windows, model.config.num_channels, height, width, generator=seed)
        extra["pixel_values"] = pixels.to(model.device, model.dtype)
        ids = torch.zeros(windows, context, dtype=torch.long)
    else:
        ids = torch.randint(0, model.shape.vocab, (windows, min(tokens, context)), generator=seed)
        padding = getattr(model.config, "pad_token_id", None)
        if padding is not None:
            ids[ids == padding] = (padding + 1) % model.shape.vocab
    roles = torch.full(ids.shape, Role.CONTENT, dtype=torch.uint8)
    none = torch.zeros(windows, dtype=torch.long)
    batch = Batch(ids, roles, torch.arange(windows), none, none, none.to(torch.uint8), none, extra)
    return _moved(batch, model.device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    names = ("ids", "roles", "window", "document", "start", "half", "label")
    return Batch(**{name: getattr(batch, name).to(device) for name in names}, extra=batch.extra)


def _padded(batch: Batch) -> Batch:
    """The batch with the second half of its last window declared to be padding."""
    roles = batch.roles.clone()
    roles[-1, roles.shape[1] // 2 :] = Role.PAD
    return Batch(batch.ids, roles, batch.window, batch.document, batch.start, batch.half, batch.label, batch.extra)


def _check_stored(model: Model, stored: Fetch, book: _Book) -> None:
    """Weights by memory map against those of the built model; what a file does not have is refused when it is asked for."""
    disk = replace(model.weights, fetch=stored)
    for layer in dict.fromkeys((None, 0, model.shape.layers // 2, model.shape.layers - 1)):
        for name in model.weights.names(layer):
            if disk.has(name, layer):
                built = model.weights.get(name, layer)
                book.add(
                    Pair("weights by memory map = weights of the built model", built, disk.get(name, layer).to(built)), layer
                )


def _check_layers(model: Model, batch: Batch, book: _Book) -> None:
    """All identities of all layers, of the embeddings and of the head, from one observed pass; and that pass against a bare one."""
    names = layer_sites(model)
    last = model.shape.layers - 1
    wanted = [Site(name, layer) for layer in range(last + 1) for name in names]
    ends = [Site(name) for name in ("embed", "pos_embed", "final_norm") if name not in model.family.absent]
    heads = [Site("logits")] if model.head else []
    seen: dict[int | None, dict[str, Any]] = {None: {}}
    stream: list[Tensor] = []

    def receive(site: Site, value: Any) -> None:
        found = seen.setdefault(site.layer, {})
        found[site.name] = value
        if site.name == "resid_pre":
            stream.append(value)
        if site.name == "resid_post" and site.layer is not None:
            for pair in layer_pairs(model, site.layer, found):
                book.add(pair, site.layer)
            if site.layer < last:
                del seen[site.layer]

    observe(model, batch, [*wanted, *ends, *heads], receive, where="layer")
    for pair in _end_pairs(model, batch, seen[last]["resid_post"], seen[None]):
        book.add(pair, None)
    bare = model.module(**inputs_of(model, batch), output_hidden_states=True)
    for layer, state in enumerate(stream):
        book.add(Pair("resid_pre = hidden_states of Hugging Face, bitwise", state, bare.hidden_states[layer]), layer, 0.0)
    if model.head:
        logits = forward(model, batch)[model.head.output]
        book.add(Pair("logits with hooks = logits without, bitwise", seen[None]["logits"], logits), None, 0.0)


def _end_pairs(model: Model, batch: Batch, stream: Tensor, seen: dict[str, Tensor]) -> Iterator[Pair]:
    weights = model.weights
    if "embed" in seen and weights.has("W_E"):
        yield Pair("embed = W_E at the token", seen["embed"], weights.get("W_E")[batch.ids])
    if "pos_embed" in seen and weights.has("W_pos"):
        rows = weights.get("W_pos")[: batch.ids.shape[1]]
        yield Pair("pos_embed = W_pos at the position", seen["pos_embed"], rows.expand_as(seen["pos_embed"]))
    yield Pair("final_norm = final norm of the last resid_post", seen["final_norm"], final_norm(model, stream))
    if model.head is None or model.head.kind not in ("causal", "masked"):
        return
    yield Pair("logits = unembedded final_norm", seen["logits"], unembed(model, final_norm(model, stream)))
    if not model.head.transform:
        W_U = weights.get("W_U").float()
        product = seen["final_norm"].float().to(W_U.device) @ W_U
        limit = getattr(model.config, "final_logit_softcapping", None)
        biased = product + weights.get("b_U").float() if weights.has("b_U") else product
        capped = biased if limit is None else torch.tanh(biased / limit) * limit
        yield Pair("logits = final_norm W_U + b_U", seen["logits"], capped)


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.module.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.module.set_attn_implementation(before)


def _check_attention(model: Model, batch: Batch, book: _Book) -> None:
    """Recomputed attention against the model's own eager attention, at the tokens that are not padding."""
    with _eager(model):
        eager = model.module(**inputs_of(model, batch), output_attentions=True).attentions
    real = (batch.roles != Role.PAD)[:, None, :, None]
    largest: dict[int, float] = {}

    def receive(site: Site, value: Tensor) -> None:
        layer = site.layer or 0
        if site.name == "attn_scores":
            largest[layer] = float(value.float().where(value > torch.finfo(value.dtype).min / 2, 0.0).abs().max())
            return
        allowed = book.tolerance * max(1.0, largest[layer] / _SHARPNESS)
        here = real.to(value.device)
        book.add(Pair("attn_probs = eager attention", value * here, eager[layer].to(here.device) * here), layer, allowed)

    layers = range(model.shape.layers)
    observe(model, batch, [Site(name, layer) for layer in layers for name in ("attn_scores", "attn_probs")], receive)


def _dtype_rows(model: Model, batch: Batch, stored: Fetch | None) -> tuple[DtypeRow, ...]:
    """The observed stream against the same pass in fp32, layer by layer."""
    states = iter(fp32_states(model, batch, stored))
    rows: list[DtypeRow] = []

    def receive(site: Site, value: Tensor) -> None:
        exact = next(states)
        error = float((value.float() - exact).norm() / exact.norm())
        cosine = float(torch.nn.functional.cosine_similarity(value.float(), exact, dim=-1).min())
        rows.append(DtypeRow(site.layer or 0, error, cosine))

    observe(model, batch, [Site("resid_post", layer) for layer in range(model.shape.layers)], receive)
    return tuple(rows)
