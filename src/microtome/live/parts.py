"""The state of one token as a sum of what was written into it: the embedding, each layer's attention and feed-forward block, and what is inside one.

The sum is exact. With the divisions of all norms on the way held at what they are, a norm is linear, so each part also has its share in what the head
reads: its direct contribution to a token's logit. What a part does by way of later layers is not in it; edits say that (`edited`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.live.branches import Branch, Held, held, norm_behind
from microtome.live.clock import Clock
from microtome.live.model_of_atlas import Loaded
from microtome.live.passes import Watcher, watch
from microtome.live.reading import predicts
from microtome.model import final_norm, unembed
from microtome.neurons import neurons_of

__all__ = ["Decomposition", "Kind", "Part", "decompose"]

Kind = Literal["embedding", "attention", "feed-forward", "head", "neuron", "rest", "norms", "rounding", "output"]
"""rest: of an opened branch, other units and its bias; norms: biases of norms in the stream; output: biases of the last norm and the head."""
SHOWN: Final = 20
"""Neurons of an opened layer that are told apart."""
_CLOSE: Final = 1e-3
_NAMES: Final[dict[Branch, Kind]] = {"attn": "attention", "mlp": "feed-forward"}


@dataclass(frozen=True)
class Part:
    """What is written into a state: its length, and its share of the state's length, which sum to 1.

    `logit` is what it adds to the logit of the token, and `mean` to the mean logit of all tokens; None where no logit is linear in the state. `unit` is
    an address where the part is one's.
    """

    kind: Kind
    layer: int | None
    unit: str | None
    length: float
    share: float
    logit: float | None
    mean: float | None


@dataclass(frozen=True)
class Decomposition:
    """The parts of the state at `site` of token `place`.

    `logit` is that of `token` as the model's head gives it, and `sum` that of the parts: they differ where a soft cap comes last. Without a linear head
    there is no token, and `why` says so.
    """

    site: str
    place: int
    token: int | None
    logit: float | None
    sum: float | None
    length: float
    parts: tuple[Part, ...]
    why: str = ""


@dataclass(eq=False)
class _Rows:
    """Parts as they come: their names, and their vectors, all of which pass through the norms of the stream."""

    names: list[tuple[Kind, int | None, str | None]]
    vectors: Float[Tensor, "part d_model"]

    def add(self, names: list[tuple[Kind, int | None, str | None]], vectors: Float[Tensor, "part d_model"]) -> None:
        self.names += names
        self.vectors = torch.cat([self.vectors, vectors])


def decompose(
    loaded: Loaded,
    batch: Batch,
    place: int,
    *,
    layer: int | None = None,
    inside: int | None = None,
    token: int | None = None,
    clock: Clock | None = None,
) -> Decomposition:
    """The parts of a token's state behind `layer` (None: the last), those of layer `inside` by head and neuron.

    `token` is the id whose logit is explained, by default the one that this state makes most probable.
    Errors: `Refusal` for a place, a layer or a token that is not there.
    Cost: one pass; d_model units FLOP for an opened layer.
    """
    model = loaded.model
    top = model.shape.layers - 1 if layer is None else layer
    _require_there(loaded, batch, place, top, inside, token)
    seen = _seen(loaded, batch, place, top, inside, clock or Clock())
    rows = _Rows([("embedding", None, None)], seen[Site("resid_pre", 0)][None])
    for each in range(top + 1):
        for branch in ("attn", "mlp"):
            _add_branch(loaded, rows, seen, each, branch, each == inside)
    state = seen[Site("resid_post", top)]
    rows.add([("rounding", None, None)], (state - rows.vectors.sum(0))[None])
    return _told(loaded, rows, state, place, top, inside, token)


def _require_there(loaded: Loaded, batch: Batch, place: int, top: int, inside: int | None, token: int | None) -> None:
    tokens, shape = batch.ids.shape[1], loaded.model.shape
    wrong = ""
    if not 0 <= place < tokens:
        wrong = f"token {place} of the text: it has {tokens}"
    elif not 0 <= top < shape.layers or (inside is not None and not 0 <= inside <= top):
        wrong = f"layer {top if inside is None else inside}: there are {shape.layers}, and only those up to {top} write into the state"
    elif token is not None and not 0 <= token < shape.vocab:
        wrong = f"token {token} of the vocabulary: it has {shape.vocab}"
    if wrong:
        what, _, why = wrong.partition(": ")
        raise Refusal(f"the parts of a state by {what}", why=why, instead="name one that is there, counted from 0")


def _seen(
    loaded: Loaded, batch: Batch, place: int, top: int, inside: int | None, clock: Clock
) -> dict[Site, Float[Tensor, " _"]]:
    """What the parts are made of, at the token, in float64; of neurons a row over all, expert after expert."""
    model = loaded.model
    sites = [Site("resid_pre", 0), Site("resid_post", top)]
    sites += [Site(f"{branch}_out_post", each) for each in range(top + 1) for branch in ("attn", "mlp")]
    if inside is not None:
        sites += [Site(name, inside) for name in ("z", "attn_out", "mlp_out")]
    found: dict[Site, Tensor] = {}

    def receive(values: Mapping[Site, Any]) -> None:
        for site, value in values.items():
            found[site] = value[0, place].double().cpu()

    watchers = [Watcher((site,), receive) for site in dict.fromkeys(sites)]
    if inside is not None:
        opened = Site("mlp_act", inside)
        bases = [basis for basis in neurons_of(model.shape) if basis.layer == inside]

        def neurons(values: Mapping[Site, Any]) -> None:
            found[opened] = torch.cat([basis.encode(values)[0, place].double().cpu() for basis in bases])

        watchers.append(Watcher((opened,), neurons))
    watch(model, batch, watchers, clock)
    return found


def _add_branch(loaded: Loaded, rows: _Rows, seen: Mapping[Site, Tensor], layer: int, branch: Branch, opened: bool) -> None:  # noqa: FBT001
    """What a branch writes, whole or by unit; where a norm follows in the stream, all parts go through it."""
    model = loaded.model
    whole = seen[Site(f"{branch}_out_post", layer)]
    norm = norm_behind(model, layer, branch)
    if opened:
        alone = held(norm, seen[Site(f"{branch}_out", layer)]) if norm is not None and model.shape.norm != "post" else None
        names, vectors = _units(loaded, seen, layer, branch)
        vectors = vectors if alone is None else alone.parts(vectors)
        rows.add(names, vectors)
        rows.add([("rest", layer, None)], (whole - vectors.sum(0))[None])
    else:
        rows.add([(_NAMES[branch], layer, None)], whole[None])
    if norm is not None and model.shape.norm == "post":
        rows.vectors = held(norm, rows.vectors.sum(0)).parts(rows.vectors)
        if norm.bias is not None:
            bias = norm.bias.double().cpu()
            if ("norms", None, None) not in rows.names:
                rows.add([("norms", None, None)], torch.zeros_like(bias)[None])
            rows.vectors[rows.names.index(("norms", None, None))] += bias


def _units(
    loaded: Loaded, seen: Mapping[Site, Tensor], layer: int, branch: Branch
) -> tuple[list[tuple[Kind, int | None, str | None]], Float[Tensor, "unit d_model"]]:
    """What heads, or neurons, of a layer add up."""
    weights = loaded.model.weights
    if branch == "attn":
        z = seen[Site("z", layer)]
        vectors = torch.einsum("he,hed->hd", z, weights.get("W_O", layer).double().cpu())
        return [("head", layer, f"heads.{layer}/{head}") for head in range(len(z))], vectors
    activation = seen[Site("mlp_act", layer)]
    stored = weights.get("W_out", layer).flatten(0, -2)
    chosen = activation.nonzero()[:, 0]
    addresses = [(basis, basis.units) for basis in neurons_of(loaded.model.shape) if basis.layer == layer]
    width = addresses[0][1]
    names: list[tuple[Kind, int | None, str | None]] = [
        ("neuron", layer, str(addresses[unit // width][0].address(unit % width))) for unit in chosen.tolist()
    ]
    return names, activation[chosen, None] * stored[chosen.to(stored.device)].double().cpu()


@dataclass(frozen=True, eq=False)
class _Linear:
    """What the head reads a logit with, seen from the stream: directions of the token and of the mean token, and what is added to them."""

    token: int
    logit: float
    own: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]
    constant: float
    constant_mean: float


def _linear(loaded: Loaded, state: Float[Tensor, " d_model"], token: int | None) -> _Linear | str:
    """The head as it is at this state, its norm's division held; or why there is none."""
    model = loaded.model
    weights = model.weights
    if predicts(model) == "nothing" or not weights.has("W_U"):
        return f"{model.name} has no head that gives tokens logits"
    with torch.inference_mode():
        here = state.to(model.device, model.dtype)[None, None]
        logits = unembed(model, final_norm(model, here)).float()[0, 0]
    token = int(logits.argmax()) if token is None else token
    matrix = weights.get("W_U")
    own, mean = matrix[:, token].double().cpu(), loaded.mean_token.double().cpu()
    constant = constant_mean = 0.0
    if weights.has("b_U"):
        bias = weights.get("b_U").double().cpu()
        constant, constant_mean = float(bias[token]), float(bias.mean())
    if len(own) != len(state):
        return f"the head of {model.name} does not read the stream itself"
    if weights.has("final_norm"):
        norm = weights.norm("final_norm")
        if norm.bias is not None:
            bias = norm.bias.double().cpu()
            constant, constant_mean = constant + float(bias @ own), constant_mean + float(bias @ mean)
        own, mean = (_before(held(norm, state), each) for each in (own, mean))
    made, told = float(state @ own) + constant, float(logits[token])
    cap = getattr(model.config, "final_logit_softcapping", None)
    expected = made if not cap else cap * float(torch.tanh(torch.tensor(made / cap)))
    rough = _CLOSE if model.dtype == torch.float32 else 0.05
    if abs(expected - told) > rough * max(1.0, abs(told)):
        return f"the head of {model.name} transforms the state before it reads it, so that a logit is no sum of parts"
    return _Linear(token, told, own, mean, constant, constant_mean)


def _before(norm: Held, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """A direction behind a norm as one before it: the norm's transpose, its division held."""
    scaled = direction * norm.norm.gain.to(direction) * norm.scale.to(direction)
    return scaled - scaled.mean() if norm.norm.kind == "layer" else scaled


def _told(
    loaded: Loaded, rows: _Rows, state: Tensor, place: int, top: int, inside: int | None, token: int | None
) -> Decomposition:
    head = _linear(loaded, state, token)
    whole = float(state @ state) or 1.0
    values = torch.stack([rows.vectors.norm(dim=1), rows.vectors @ state / whole], 1)
    if isinstance(head, _Linear):
        values = torch.cat([values, rows.vectors @ torch.stack([head.own, head.mean], 1)], 1)
    names, values, lengths = _shown(rows, values)
    parts = [
        Part(*name, length, row[1], row[2] if len(row) > 2 else None, row[3] if len(row) > 2 else None)
        for name, row, length in zip(names, values.tolist(), lengths, strict=True)
    ]
    site, length = str(Site("resid_post", top)), float(state.norm())
    if isinstance(head, str):
        return Decomposition(site, place, None, None, None, length, tuple(parts), head)
    parts.append(Part("output", None, None, 0.0, 0.0, head.constant, head.constant_mean))
    total = sum(part.logit or 0.0 for part in parts)
    return Decomposition(site, place, head.token, head.logit, total, length, tuple(parts))


def _shown(
    rows: _Rows, values: Float[Tensor, "part number"]
) -> tuple[list[tuple[Kind, int | None, str | None]], Float[Tensor, "shown number"], list[float]]:
    """Parts with all but the `SHOWN` neurons that matter most put into the rest of their block, which follows them."""
    neurons = [row for row, name in enumerate(rows.names) if name[0] == "neuron"]
    if len(neurons) <= SHOWN:
        return rows.names, values, values[:, 0].tolist()
    weight = values[neurons, 2 if values.shape[1] > 2 else 1].abs()
    kept = {neurons[row] for row in weight.topk(SHOWN).indices.tolist()}
    merged = [row for row in neurons if row not in kept]
    rest = neurons[-1] + 1
    assert rows.names[rest][0] == "rest", "the rest of a block follows its units"
    values = values.clone()
    values[rest] += values[merged].sum(0)
    lengths = values[:, 0].clone()
    lengths[rest] = (rows.vectors[rest] + rows.vectors[merged].sum(0)).norm()
    left = [row for row in range(len(rows.names)) if row not in set(merged)]
    return [rows.names[row] for row in left], values[left], lengths[left].tolist()
