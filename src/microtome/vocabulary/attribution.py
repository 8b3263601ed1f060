"""Direct logit attribution: what each part of a model adds to the logit of the token that comes next, with the norms' scales frozen.

    logit_t - mean over t' of logit_t' = sum over parts c of c . g,    g = (e_t - mean e) pulled back through the norms behind c

Once the lengths that the norms divide by are held fixed, the last stream is a sum (embedding, each head, each feed-forward layer, biases)
and so is every logit; the sum is exact. Attribution is of what is written directly: what a head does for later layers is not in it.
The control of a token's target is that of another place of the same window. What a vector says whatever the text belongs in `projection`.

Axes of this module: `part` counts what is added to the stream, `target` the tokens whose logits are asked for: the own one, then the
controls.

Source: Elhage et al. 2021, transformer-circuits.pub, "A mathematical framework" (no arXiv entry); Geva et al. 2022, arXiv:2203.14680,
section 3, for single feed-forward units.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State, token_keys
from microtome.model import Model, Norm
from microtome.model.shape import NormLayout
from microtome.numerics import hash_parts, uniform
from microtome.readout.sample import Target, target_ids

__all__ = ["Attribution", "Attributions", "Layer", "Part", "Wiring", "attributed", "why_no_attribution", "wiring_of"]

Kind = Literal[
    "embedding", "positions", "head", "attention bias", "feed-forward", "feed-forward bias", "norm bias", "unit", "output bias"
]
_SALT: Final = 0xA77B
_NUMBERS: Final = 1 << 22
"""Of pulled back directions held at a time."""


@dataclass(frozen=True)
class Part:
    """Something that is added to the stream: `index` counts heads, or units. Units are part of their feed-forward layer: not in the sum."""

    kind: Kind
    layer: int | None = None
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer's parts go through: W_O, biases, norms behind its branches (None: it has none), and units looked at one by one."""

    out: Float[Tensor, "head d_head d_model"]
    attn_bias: Float[Tensor, " d_model"] | None
    mlp_bias: Float[Tensor, " d_model"] | None
    attn_norm: Norm | None
    mlp_norm: Norm | None
    units: tuple[int, ...] = ()
    values: Float[Tensor, "unit d_model"] | None = None


@dataclass(frozen=True, eq=False)
class Wiring:
    """All of a model that logits are attributed through; `positions` where learned positions are added to the stream."""

    layout: NormLayout
    layers: tuple[Layer, ...]
    final: Norm | None
    unembedding: Float[Tensor, "d_model vocab"]
    centre: Float[Tensor, " d_model"]
    bias: Float[Tensor, " vocab"] | None
    positions: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part, in the order of the stream; parts that the sum has not (units) last."""
        found = [Part("embedding"), *([Part("positions")] if self.positions else [])]
        units = []
        for number, layer in enumerate(self.layers):
            found += [Part("head", number, head) for head in range(len(layer.out))]
            found += [Part("attention bias", number)] if layer.attn_bias is not None else []
            found.append(Part("feed-forward", number))
            found += [Part("feed-forward bias", number)] if layer.mlp_bias is not None else []
            if _biased(layer.attn_norm) or _biased(layer.mlp_norm):
                found.append(Part("norm bias", number))
            units += [Part("unit", number, unit) for unit in layer.units]
        found += [Part("norm bias")] if _biased(self.final) else []
        found += [Part("output bias")] if self.bias is not None else []
        return (*found, *units)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What must be seen of a forward pass."""
        found = [Site("resid_pre", 0), *([Site("pos_embed")] if self.positions else [])]
        for number, layer in enumerate(self.layers):
            found += [Site("z", number), Site("mlp_out", number)]
            found += [Site("attn_out", number)] if layer.attn_norm is not None else []
            found += [Site("mlp_act", number)] if layer.units else []
            found += [Site("resid_pre", number)] if self.layout == "post" and number else []
            found += [Site("resid_mid", number)] if self.layout == "post" else []
        return (*found, *([Site("resid_post", len(self.layers) - 1)] if self.final is not None else []))


def why_no_attribution(model: Model) -> str | None:
    """Why a model's logits are no sum over its parts, or None where they are."""
    if model.head is None or model.head.kind not in ("causal", "masked"):
        return "the checkpoint has no language-model head, so there are no logits to attribute"
    if model.head.transform:
        return "between the stream and the output vectors the head has a layer with a nonlinearity: logits are no sum over the stream's parts"
    if not model.weights.has("W_U"):
        return model.family.absent.get("W_U", "the model has no output vectors")
    return None


def wiring_of(model: Model, units: Mapping[int, tuple[int, ...]] | None = None) -> Wiring:
    """The wiring of a model, with `units` of its feed-forward layers (by layer) to be looked at one by one.

    A soft cap of the logits is left out: attributed is what it caps. Weights are in float32, where the model is.
    Errors: `Refusal` where logits are no sum, and for units of experts. Cost: a float32 copy of W_O, of norms and of the chosen units;
    of W_U one pass.
    """
    why = why_no_attribution(model)
    if why is not None:
        raise Refusal(
            f"attribution of the logits of {model.name}", why=why, instead="open a model whose head is a linear layer"
        )
    chosen, weights, shape = units or {}, model.weights, model.shape
    if chosen and shape.experts:
        why = "a unit of an expert is not there at every token"
        raise Refusal("attribution to single units", why=why, instead="leave units out")
    layers = []
    for layer in range(shape.layers):
        mine = chosen.get(layer, ())
        if mine and not 0 <= min(mine) <= max(mine) < shape.d_mlp:
            raise Refusal(f"units of layer {layer}", why=f"there are {shape.d_mlp}, from 0", instead="name some of them")
        layers.append(
            Layer(
                weights.get("W_O", layer).float(),
                weights.get("b_O", layer).float() if weights.has("b_O", layer) else None,
                weights.get("b_out", layer).float() if weights.has("b_out", layer) else None,
                weights.norm("attn_norm_post", layer) if weights.has("attn_norm_post", layer) else None,
                weights.norm("mlp_norm_post", layer) if weights.has("mlp_norm_post", layer) else None,
                mine,
                weights.get("W_out", layer)[list(mine)].float() if mine else None,
            )
        )
    unembedding = weights.get("W_U")
    return Wiring(
        shape.norm,
        tuple(layers),
        weights.norm("final_norm") if weights.has("final_norm") else None,
        unembedding,
        unembedding.mean(1, dtype=torch.float64).float(),
        weights.get("b_U") if weights.has("b_U") else None,
        "pos_embed" not in model.family.absent and not weights.has("embed_norm"),
    )


@dataclass(frozen=True, eq=False)
class Attributions:
    """What each part adds to the logit of each sampled token's target, above its mean addition over the vocabulary.

    `drawn` are means over tokens of the same for another target of the window, a draw at a time.
    """

    parts: tuple[Part, ...]
    window: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    own: Float[Tensor, "row part"]
    drawn: Float[Tensor, "draw part"]


@dataclass(frozen=True, eq=False)
class Attribution:
    """`Attributions` of the tokens whose hash of (seed, window, token) is below `rate`, as in a `readout.TokenSample`.

    Tokens that are alone in their window with a target have no control and are left out. Cost per sampled token: (1 + draws) times
    parts d_model. Memory: z and mlp_out of all layers for a batch are held until the last is there.
    """

    kind: ClassVar[str] = "vocabulary.attribution"
    version: ClassVar[int] = 1

    wiring: Wiring
    target: Target
    rate: float
    seed: int
    draws: int = 100
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the wiring needs."""
        return self.wiring.sites

    def init(self) -> State:
        """No row."""
        parts = len(self.wiring.parts)
        places = {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "token", "document")}
        own = torch.zeros(0, parts, dtype=torch.float64)
        return {**places, "own": own, "drawn": torch.zeros(self.draws, parts, dtype=torch.float64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the batch's sampled tokens."""
        targets, counted = target_ids(batch, self.target, self.roles)
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        hashes = hash_parts(self.seed, batch.window[:, None], place[None, :])
        chosen = counted & (uniform(hashes) < self.rate) & (counted.sum(1, keepdim=True) > 1)
        window, token = chosen.nonzero(as_tuple=True)
        size = max(1, _NUMBERS // ((1 + self.draws) * len(self.wiring.centre)))
        for mine, at in zip(window.split(size), token.split(size), strict=True):
            if not len(mine):
                return
            wanted = torch.cat([targets[mine, at][:, None], self._others(batch, targets, counted, mine, at)], 1)
            rows = {site: _rows_of(values[site], mine, at) for site in self.sites}
            found = attributed(self.wiring, rows, wanted).double().cpu()
            state["drawn"] += found[:, 1:].sum(0)
            places = {"window": batch.window[mine], "token": at, "document": batch.document[mine], "own": found[:, 0]}
            for name, tensor in places.items():
                state[name] = torch.cat([state[name], tensor.cpu()])

    def merge(self, state: State, later: State) -> State:
        """Rows of both; sums add up."""
        joined = {name: torch.cat([state[name], later[name]]) for name in state if name != "drawn"}
        return {**joined, "drawn": state["drawn"] + later["drawn"]}

    def result(self, state: State) -> Attributions:
        """The rows in the order of the corpus."""
        order = token_keys(state["window"], state["token"]).argsort()
        rows = {name: state[name][order] for name in ("window", "token", "document", "own")}
        return Attributions(self.wiring.parts, **rows, drawn=state["drawn"] / max(len(order), 1))

    def _others(
        self, batch: Batch, targets: Int[Tensor, "window token"], counted: Tensor, window: Tensor, token: Tensor
    ) -> Int[Tensor, "row draw"]:
        """Targets of other places of the same window, by hash: the same under any split."""
        draw = torch.arange(self.draws, device=batch.ids.device)
        chance = uniform(hash_parts(self.seed, _SALT, batch.window[window][:, None], token[:, None], draw))
        many = counted.sum(1)[window]
        rank = (counted.cumsum(1) - 1)[window, token]
        step = 1 + (chance * (many - 1)[:, None]).long()
        order = (~counted).int().argsort(dim=1, stable=True)
        return targets[window[:, None], order[window[:, None], (rank[:, None] + step) % many[:, None]]]


def attributed(
    wiring: Wiring, rows: Mapping[Site, Float[Tensor, "row ..."]], targets: Int[Tensor, "row target"]
) -> Float[Tensor, "row target part"]:
    """What each part of `wiring.parts` adds to the logits of `targets`, less its addition to the mean over the vocabulary.

    Summed over the parts that are no units it is the logit of the target less the mean logit, but for rounding. `rows` are the tensors at
    `wiring.sites`, a row a token. Cost: 2 targets parts d_model operations per row.
    """
    found: dict[Part, Tensor] = {}
    for part, contribution in _walked(wiring, rows, targets):
        found[part] = found[part] + contribution if part in found else contribution
    return torch.stack([found[part] for part in wiring.parts], -1)


def _walked(wiring: Wiring, rows: Mapping[Site, Tensor], targets: Int[Tensor, "row target"]) -> Iterator[tuple[Part, Tensor]]:
    """Parts from the last to the first, with g as it is where each is added. A part may come in pieces, biases of norms as zeros."""
    first = rows[Site("resid_pre", 0)]
    g = wiring.unembedding.T[targets.to(wiring.unembedding.device)].to(first) - wiring.centre.to(first)
    if wiring.bias is not None:
        bias = wiring.bias.to(first)
        yield Part("output bias"), bias[targets.to(bias.device)] - bias.mean()
    if wiring.final is not None:
        yield Part("norm bias"), _dot(wiring.final.bias, g)
        g = _pulled(wiring.final, rows[Site("resid_post", len(wiring.layers) - 1)], g)
    for number in reversed(range(len(wiring.layers))):
        behind = yield from _feed_forward(wiring, number, rows, g)
        g = behind if wiring.layout == "post" else g
        behind = yield from _attention(wiring, number, rows, g)
        g = behind if wiring.layout == "post" else g
    if wiring.positions:
        positions = rows[Site("pos_embed")]
        yield Part("positions"), _dot(positions, g)
        first = first - positions
    yield Part("embedding"), _dot(first, g)


def _feed_forward(
    wiring: Wiring, number: int, rows: Mapping[Site, Tensor], g: Float[Tensor, "row target d_model"]
) -> Generator[tuple[Part, Tensor], None, Tensor]:
    """Parts of a layer's feed-forward block; returns g as it is before the norm behind it."""
    layer, mlp = wiring.layers[number], rows[Site("mlp_out", number)]
    if layer.mlp_norm is not None:
        yield Part("norm bias", number), _dot(layer.mlp_norm.bias, g)
        g = _pulled(layer.mlp_norm, mlp + rows[Site("resid_mid", number)] if wiring.layout == "post" else mlp, g)
    if layer.mlp_bias is not None:
        mlp = mlp - layer.mlp_bias.to(mlp)
        yield Part("feed-forward bias", number), _dot(layer.mlp_bias, g)
    yield Part("feed-forward", number), _dot(mlp, g)
    if layer.values is not None:
        scores = g @ layer.values.to(g).T
        for slot, unit in enumerate(layer.units):
            coefficient = rows[Site("mlp_act", number)][:, unit]
            yield Part("unit", number, unit), coefficient[:, None] * scores[..., slot]
    return g


def _attention(
    wiring: Wiring, number: int, rows: Mapping[Site, Tensor], g: Float[Tensor, "row target d_model"]
) -> Generator[tuple[Part, Tensor], None, Tensor]:
    """Heads of a layer and their bias; returns g as it is before the norm behind them."""
    layer = wiring.layers[number]
    if layer.attn_norm is not None:
        attn = rows[Site("attn_out", number)]
        yield Part("norm bias", number), _dot(layer.attn_norm.bias, g)
        g = _pulled(layer.attn_norm, attn + rows[Site("resid_pre", number)] if wiring.layout == "post" else attn, g)
    z = rows[Site("z", number)]
    written = torch.einsum("rhi,hid->rhd", z, layer.out.to(z))
    for head in range(written.shape[1]):
        yield Part("head", number, head), _dot(written[:, head], g)
    if layer.attn_bias is not None:
        yield Part("attention bias", number), _dot(layer.attn_bias, g)
    return g


def _pulled(
    norm: Norm, entering: Float[Tensor, "row d_model"], g: Float[Tensor, "row target d_model"]
) -> Float[Tensor, "row target d_model"]:
    """What takes an inner product with the norm's input as g takes it with its output: through gain and centring, divided by the length that the norm divides `entering` by."""
    x = entering - entering.mean(1, keepdim=True) if norm.kind == "layer" else entering
    g = g * norm.gain.to(g)
    g = g - g.mean(2, keepdim=True) if norm.kind == "layer" else g
    return g * torch.rsqrt(x.square().mean(1) + norm.eps)[:, None, None]


def _dot(vector: Tensor | None, g: Float[Tensor, "row target d_model"]) -> Float[Tensor, "row target"]:
    """Of one vector for all rows, or of each row's own; none is zero."""
    if vector is None:
        return torch.zeros_like(g[..., 0])
    return g @ vector.to(g) if vector.ndim == 1 else (g @ vector[:, :, None].to(g))[..., 0]


def _biased(norm: Norm | None) -> bool:
    return norm is not None and norm.bias is not None


def _rows_of(value: Tensor | ExpertRows, window: Tensor, token: Tensor) -> Float[Tensor, "row ..."]:
    assert isinstance(value, Tensor), "attribution looks at no expert's inside"
    return value[window.to(value.device), token.to(value.device)].float()
