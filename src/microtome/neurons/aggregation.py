"""How a layer's units add up at a token: who is active, whether the sum says what any of them says, and when the answer is there.

Looked at is one random token of each window, so that windows weigh alike. What single values say is read in `memories`; events at which a
layer changes the top token, and who drives them, belong in `promotion`.

Axes of this module: `quadrant`, the signs of gate and up branch (++, +-, -+, --; of a plain unit those of its pre-activation and +);
`stage`, the stream before the layer's feed-forward block, what that adds, and the stream behind it; `kind`, the units and the shuffled ones.

Source: Geva et al. 2021, arXiv:2012.14913, section 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State
from microtome.model import Model, final_norm, observe, unembed
from microtome.numerics import bootstrap_interval, hash_parts
from microtome.readout import Reader

__all__ = [
    "QUADRANTS",
    "SHUFFLED",
    "Aggregated",
    "Aggregation",
    "Share",
    "activity",
    "before_feed_forward",
    "random_place",
    "rows_at",
    "top_token",
    "why_no_aggregation",
]

QUADRANTS: Final = ("++", "+-", "-+", "--")
SHUFFLED: Final = "the values of other units of the layer"
_BEFORE, _ADDED, _BEHIND = range(3)
_NEVER: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Share:
    """A share of the windows for which it is defined (`windows`), its 95 % interval by documents (NaN for one), and its control's."""

    value: float
    low: float
    high: float
    control: float
    windows: int


@dataclass(frozen=True, eq=False)
class Aggregated:
    """One token of each window, by layer.

    `active` is the share of units whose gate (or pre-activation) is above 0, by quadrant of all units. `top` are the first tokens of the
    stages, `final` that of the model's output. `alone` says whether no active unit's own first token is that of the sum, and the same with
    the values of other units. `rank` and `probability` are those of the final token in the stream before the block, read by the model's own
    last norm and head; rank 0 is the first.
    """

    window: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    active: Float[Tensor, "row layer quadrant"]
    top: Int[Tensor, "row layer stage"]
    final: Int[Tensor, " row"]
    alone: Bool[Tensor, "row layer kind"]
    rank: Int[Tensor, "row layer"]
    probability: Float[Tensor, "row layer"]
    seed: int

    def zero_agreement(self, layer: int) -> Share:
        """The sum's first token is none of those of the active units. Control: values of other units."""
        own, shuffled = self.alone[:, layer].unbind(1)
        return self._share(own, torch.ones_like(own), float(shuffled.double().mean()))

    def decided(self, layer: int) -> Share:
        """The stream before the block has the final token first. Control: final tokens of other windows."""
        before = self.top[:, layer, _BEFORE]
        return self._share(before == self.final, torch.ones_like(before, dtype=torch.bool), _exchanged(before, self.final))

    def changed(self, layer: int) -> Share:
        """The block changes the first token. Control: first tokens of other windows, before and behind."""
        before, _, behind = self.top[:, layer].unbind(1)
        return self._share(before != behind, torch.ones_like(before, dtype=torch.bool), 1 - _exchanged(before, behind))

    def composed(self, layer: int) -> Share:
        """Of the windows where the block changes the first token: the new one is not that of what is added. Control: of other windows."""
        before, added, behind = self.top[:, layer].unbind(1)
        new = before != behind
        return self._share(added != behind, new, 1 - _exchanged(added[new], behind[new]))

    def _share(self, true: Bool[Tensor, " row"], counted: Bool[Tensor, " row"], control: float) -> Share:
        """Over the rows counted."""
        kept, document = true[counted].double(), self.document[counted]
        if not len(kept):
            return Share(torch.nan, torch.nan, torch.nan, torch.nan, 0)
        groups, group = document.unique(return_inverse=True)
        ends = (torch.nan, torch.nan)
        if len(groups) > 1:
            sums = torch.zeros(len(groups), dtype=torch.float64).index_add_(0, group, kept)
            low, high = bootstrap_interval(sums, group.bincount().double(), seed=self.seed)
            ends = (float(low), float(high))
        return Share(float(kept.mean()), *ends, control, len(kept))


@dataclass(frozen=True, eq=False)
class Aggregation:
    """`Aggregated` of the counted token of each window whose hash of (seed, window, token) is lowest; windows without one are left out.

    `values` are the first tokens of +v and -v of all units of all layers (`memories.value_tokens`), read with `reader`, as is what the
    blocks add: an active unit says the token of sign(h) v. The stream is read by the model's own last norm and head.
    The fold needs no tensor of the pass that it is part of: it makes one of its own, of which it keeps one row a window.
    Cost: a forward pass, and 6 layers d_model vocab FLOP a window for the readings.
    """

    kind: ClassVar[str] = "neurons.aggregation"
    version: ClassVar[int] = 1

    model: Model
    values: Int[Tensor, "layer unit end"]
    reader: Reader
    seed: int
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: what is looked at in all layers would be too much to hold for a whole batch."""
        return ()

    def init(self) -> State:
        """No window."""
        layers = self.model.shape.layers
        whole = {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "document", "final")}
        whole |= {"top": torch.zeros(0, layers, 3, dtype=torch.int64), "rank": torch.zeros(0, layers, dtype=torch.int64)}
        whole |= {"alone": torch.zeros(0, layers, 2, dtype=torch.int64)}
        real = {"active": torch.zeros(0, layers, 4, dtype=torch.float64)}
        return {**whole, **real, "probability": torch.zeros(0, layers, dtype=torch.float64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the batch's windows that have a counted token."""
        row, place = random_place(batch, self.seed, self.roles)
        if not len(row):
            return
        layers = range(self.model.shape.layers)
        held = rows_at(self.model, batch, _sites(self.model), row, place)
        last = final_norm(self.model, held[Site("resid_post", layers[-1])])
        logits = unembed(self.model, last)
        final = logits.argmax(1)
        found = [self._of_layer(held, layer, final) for layer in layers]
        columns = {name: torch.stack([each[name] for each in found], 1) for name in found[0]}
        columns |= {"window": batch.window[row], "document": batch.document[row], "final": final}
        for name, tensor in columns.items():
            state[name] = torch.cat([state[name], tensor.cpu().to(state[name].dtype)])

    def merge(self, state: State, later: State) -> State:
        """Windows follow each other."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> Aggregated:
        """The windows in order."""
        order = state["window"].argsort()
        rows = {name: tensor[order] for name, tensor in state.items()}
        return Aggregated(**{**rows, "alone": rows["alone"].bool()}, seed=self.seed)

    def _of_layer(self, held: Mapping[Site, Tensor], layer: int, final: Int[Tensor, " row"]) -> dict[str, Tensor]:
        act, added = held[Site("mlp_act", layer)], held[Site("mlp_out_post", layer)]
        active, quadrant = activity(self.model, held, layer)
        said = top_token(self.reader, added)
        before, logits = self._read(held[before_feed_forward(self.model, layer)])
        behind, _ = self._read(held[Site("resid_post", layer)])
        wanted = logits.gather(1, final[:, None])
        return {
            "active": torch.nn.functional.one_hot(quadrant, 4).double().mean(1),
            "top": torch.stack([before, said, behind], 1),
            "alone": self._alone(layer, act, active, said),
            "rank": (logits > wanted).sum(1),
            "probability": (wanted[:, 0] - logits.logsumexp(1)).exp(),
        }

    def _alone(
        self, layer: int, act: Float[Tensor, "row unit"], active: Bool[Tensor, "row unit"], said: Int[Tensor, " row"]
    ) -> Int[Tensor, "row kind"]:
        """Whether no active unit says what the sum says, and whether none would if units had each other's values."""
        values, found = self.values[layer].to(act.device), []
        generator = torch.Generator().manual_seed(self.seed + layer)
        others = torch.randperm(len(values), generator=generator).to(act.device)
        for own in (values, values[others]):
            token = torch.where(act < 0, own[:, 1], own[:, 0])
            found.append(~((token == said[:, None]) & active).any(1))
        return torch.stack(found, 1).long()

    def _read(self, stream: Float[Tensor, "row d_model"]) -> tuple[Int[Tensor, " row"], Float[Tensor, "row vocab"]]:
        logits = unembed(self.model, final_norm(self.model, stream)).double()
        return logits.argmax(1), logits


def why_no_aggregation(model: Model) -> str | None:
    """Why the units of a model cannot be aggregated, or None."""
    if model.head is None or model.head.kind not in ("causal", "masked"):
        return "the model was opened without a language-model head, so there is no final token"
    if model.shape.experts:
        return "the units of a mixture of experts are not there at every token"
    return None


def random_place(batch: Batch, seed: int, roles: frozenset[Role]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Of every window that has a counted token: its row, and the place of the one whose hash of (seed, window, token) is lowest."""
    counted = batch.counted(roles)
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    hashes = hash_parts(seed, batch.window.to(batch.ids.device)[:, None], place[None, :])
    row = counted.any(1).nonzero()[:, 0]
    return row, torch.where(counted, hashes, _NEVER).argmin(1)[row]


def rows_at(
    model: Model, batch: Batch, sites: tuple[Site, ...], row: Int[Tensor, " row"], place: Int[Tensor, " row"]
) -> dict[Site, Tensor]:
    """The sites at some tokens, from one pass of which nothing else is kept.

    Errors: `Refusal` for a model whose units cannot be aggregated (`why_no_aggregation`).
    """
    why = why_no_aggregation(model)
    if why is not None:
        raise Refusal(f"aggregation of units of {model.name}", why=why, instead="open a dense model with its head")
    held: dict[Site, Tensor] = {}

    def receive(site: Site, value: Tensor | ExpertRows) -> None:
        assert isinstance(value, Tensor)
        held[site] = value[row.to(value.device), place.to(value.device)]

    with torch.inference_mode():
        observe(model, batch, sites, receive)
    return held


def before_feed_forward(model: Model, layer: int) -> Site:
    """The stream that a feed-forward block adds to; of a parallel block, whose attention adds at the same time, that before both."""
    return Site("resid_pre" if model.shape.norm == "parallel" else "resid_mid", layer)


def activity(model: Model, held: Mapping[Site, Tensor], layer: int) -> tuple[Bool[Tensor, "row unit"], Int[Tensor, "row unit"]]:
    """Which units are active, gate or pre-activation above 0, and the quadrant of each."""
    active = held[Site("mlp_pre", layer)] > 0
    up = held[Site("mlp_pre_linear", layer)] > 0 if model.shape.gated else torch.ones_like(active)
    return active, 2 * (~active).long() + (~up).long()


def top_token(reader: Reader, rows: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    """The first token of each vector."""
    return reader.tokens[(reader.entering(rows) @ reader.matrix).argmax(1)]


def _sites(model: Model) -> tuple[Site, ...]:
    found: list[Site] = []
    for layer in range(model.shape.layers):
        names = ("mlp_act", "mlp_pre", *(["mlp_pre_linear"] if model.shape.gated else []), "mlp_out_post", "resid_post")
        found += [Site(name, layer) for name in names] + [before_feed_forward(model, layer)]
    return tuple(found)


def _exchanged(one: Int[Tensor, " row"], other: Int[Tensor, " row"]) -> float:
    """The share of pairs of different windows that have the same token in both lists; NaN for fewer than two windows."""
    count = len(one)
    if count < 2:
        return torch.nan
    size = 1 + int(torch.maximum(one, other).max())
    pairs = (one.bincount(minlength=size) * other.bincount(minlength=size)).sum() - (one == other).sum()
    return float(pairs) / (count * (count - 1))
