"""Sparse autoencoders, as one class: what differs between them is a `Variant`, and how places are read and written an `Arrangement`.

    z = x W' + b,   f = what the variant makes of z,   x^ = f Phi + offset

In a shared dictionary the offset is taken away before states are read, by way of the bias. States are scaled before they come here. Parameters of a
unit are a row, for all places: this is what sparse products gather. Of a `Mesh` of several ranks each has the parameters of its own units, of which
`unit` counts then those, and all have offset and linear part. How they begin is said in `beginning`, steps belong in `training`, the form in which an
autoencoder is used and kept in `dictionary`. Additional axes: `place` and `target` as there; `width` is the numbers that a unit reads or writes at
all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microtome.core import Refusal, Site
from microtome.factors.beginning import drawn_directions, geometric_median
from microtome.factors.coding import Greedy, greedily
from microtome.factors.dictionary import Arrangement, Dictionary, Encoder
from microtome.factors.mesh import ALONE, Mesh
from microtome.factors.scaling import Scaling
from microtome.factors.selection import nth_of_rows
from microtome.factors.sparse_ops import Active, decode, dense, read
from microtome.factors.variant import Parts, Variant
from microtome.factors.variants import Gated, Matching

__all__ = ["REPLICATED", "Autoencoder", "Loss", "require_shards"]

Products = Literal["sparse", "dense"]
"""sparse: of active entries alone, where they are few; dense: of all, the reference that the other is compared with."""

REPLICATED: Final = ("offset", "skip", "kept")
"""Names of the parameters that all ranks have; of the others each has those of its own units."""
_AT_ONCE: Final = 8192
"""Rows that are coded together at inference."""


@dataclass(frozen=True, eq=False)
class Loss:
    """A batch's loss, and what it is made of. `error` is the sum of squared errors of all rows, and `variance` that of their targets.

    All is of the whole batch, but `rest`, which is of this rank's rows, and `fired`, of its units.
    """

    total: Float[Tensor, ""]
    error: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    count: Float[Tensor, ""]
    fired: Bool[Tensor, " unit"]
    smallest: Float[Tensor, ""]
    rest: Float[Tensor, "row width"]
    rows: int

    @property
    def explained(self) -> float:
        """1 - error / variance, 0 where states do not vary."""
        return float(1 - self.error / self.variance) if self.variance > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _Codes:
    """Codes of a batch, and the pre-activations they are of: of all entries, or of active ones."""

    z: Tensor
    values: Tensor
    active: Active | None


class Autoencoder(nn.Module):
    """Parameters and loss of one sparse autoencoder, whatever its variant and arrangement.

    Directions are drawn with a seed, the encoder begins as their transpose. `skip`, for a transcoder, adds a linear map that needs no code.
    Errors: `Refusal` for an arrangement with places it cannot have, for matching pursuit of more than one place or over shards, and for shards
    that do not divide the units.
    Memory: of each rank 4 (2 places + 1) d_model bytes for every unit of its own, and four times that while it is trained.
    """

    kept: Tensor
    encoder: nn.Parameter
    bias: nn.Parameter
    directions: nn.Parameter
    offset: nn.Parameter
    skip: nn.Parameter | None
    products: Products = "sparse"

    def __init__(
        self,
        variant: Variant,
        units: int,
        d_model: int,
        *,
        arrangement: Arrangement = "shared",
        places: int = 1,
        skip: Literal["none", "linear"] = "none",
        seed: int = 0,
        mesh: Mesh = ALONE,
    ) -> None:
        super().__init__()
        _require_fit(variant, arrangement, places, skip)
        require_shards(variant, mesh)
        self.variant, self.mesh, self.own = variant, mesh, mesh.shard(units)
        self.arrangement: Arrangement = arrangement
        self.recipe = variant.recipe(units)
        targets = places if arrangement == "crosscoder" else 1
        drawn = drawn_directions((units, targets, d_model), seed, self.own)
        drawn *= self.recipe.length / drawn.flatten(1).norm(dim=1)[:, None, None]
        self.directions = nn.Parameter(drawn)
        self.encoder = nn.Parameter(drawn.clone())
        self.bias = nn.Parameter(torch.zeros(len(drawn)))
        self.offset = nn.Parameter(torch.zeros(targets, d_model))
        self.added = nn.ParameterDict(variant.added(len(drawn)))
        self.skip = nn.Parameter(torch.zeros(d_model, d_model)) if skip == "linear" else None
        self.register_buffer("kept", torch.tensor(-1.0))
        if isinstance(variant, Matching):
            self.encoder.requires_grad_(False)  # noqa: FBT003
            self.bias.requires_grad_(False)  # noqa: FBT003

    @property
    def units(self) -> int:
        """How many factors there are, on all ranks."""
        return len(self.directions) * self.mesh.shards

    @torch.no_grad()
    def begin(self, first: Float[Tensor, "row place d_model"]) -> None:
        """The offset becomes the geometric median of the first batch, of each target; then the variant begins with what is before its rule."""
        wanted = first[:, -1:] if self.arrangement == "transcoder" else first
        medians = [geometric_median(wanted[:, place], mesh=self.mesh) for place in range(wanted.shape[1])]
        self.offset.copy_(torch.stack(medians))
        z = torch.addmm(self._bias(), self._split(first)[0], self.encoder.flatten(1).T)
        for name, value in self.variant.begun(z, self._parts(self.mesh.count(len(first), "rows"))).items():
            self.added[name].copy_(value)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States that are read and those that are to be made, places side by side."""
        _require_places(self, x)
        if self.arrangement == "transcoder":
            return x[:, 0], x[:, 1]
        flat = x.flatten(1)
        return flat, flat

    def _bias(self) -> Float[Tensor, " unit"]:
        """With what the offset does to pre-activations."""
        if self.arrangement != "shared":
            return self.bias
        return self.bias - self.encoder.flatten(1) @ self.mesh.shared(self.offset).flatten()

    def _parts(self, rows: int, active: Active | None = None, units: Tensor | None = None) -> Parts:
        directions, added = self.directions, dict(self.added.items())
        if units is not None:
            directions, added = directions[units], {name: value[units] for name, value in added.items()}
        return Parts(added, directions, rows, active, self.mesh)

    def _coded(self, x: Float[Tensor, "row width"], rows: int) -> _Codes:
        """Codes with a graph that leads to parameters only."""
        weights, bias = self.encoder.flatten(1), self._bias()
        with torch.no_grad():
            z = torch.addmm(bias, x, weights.T)
            active = self.variant.active(z, self._parts(rows))
        if active is not None and self.products == "sparse":
            entries = read(z, x, weights, bias, active)
            return _Codes(entries, self.variant.codes(entries, self._parts(rows, active)), active)
        z = torch.addmm(bias, x, weights.T)
        codes = self.variant.codes(z, self._parts(rows))
        if active is not None:
            inside = dense(torch.ones_like(z[active.row, active.unit]), active)
            codes = codes * inside
        return _Codes(z, codes, None)

    def _made(self, codes: _Codes, directions: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """What the codes of some units of all ranks make, without the offset."""
        own, most = self.own.start, len(directions)
        first = min(max(0, first - own), most)
        last = most if last is None else min(max(first, last - own), most)
        if codes.active is None:
            made = codes.values[:, first:last] @ directions[first:last]
        elif last - first == most:
            made = decode(codes.values, codes.active, directions)
        else:
            some, active = codes.active.between(first, last)
            made = decode(codes.values[some], active, directions)
        return self.mesh.sum(made, "units")

    def loss(
        self,
        x: Float[Tensor, "row place d_model"],
        *,
        warmth: float = 1.0,
        dead: Bool[Tensor, " unit"] | None = None,
        auxiliary: float = 1 / 32,
    ) -> Loss:
        """The variant's loss of a batch. `warmth` scales what makes codes sparse; units that are `dead` are led back with weight `auxiliary`.

        The auxiliary loss: what of the rest the best d_model / 2 dead units of each row explain, relative to the rest's variance (AuxK).
        Source: Gao et al. 2024, arXiv:2406.04093, appendix A.2.
        Cost: one product 2 row width unit FLOP with few active entries, and with many six of them.
        """
        seen, wanted = self._split(x)
        rows = self.mesh.count(len(x), "rows")
        codes = _pursued(self, seen, self.variant.k) if isinstance(self.variant, Matching) else self._coded(seen, rows)
        parts = self._parts(rows, codes.active)
        variance, scale = _squares(self.mesh, wanted - self.mesh.mean(wanted, "rows")), 1 / rows
        if self.recipe.error == "relative":
            scale = 1 / torch.maximum(variance, 1e-6 * _squares(self.mesh, wanted)).clamp(min=1e-12)
        rests = self._rests(seen, wanted, codes)
        squares = [_squares(self.mesh, each) for each in rests]
        total = scale * sum(squares, wanted.new_zeros(())) / len(rests)
        rest = rests[-1].detach()
        if isinstance(self.variant, Gated):
            held = _Codes(codes.z, codes.z.relu(), codes.active)
            gated = wanted - self._made(held, self.directions.flatten(1).detach()) - self.offset.flatten().detach()
            total = total + scale * _squares(self.mesh, gated)
        total = total + warmth * self.variant.cost(codes.z, codes.values, parts)
        extra = self._revival(seen, rest, rows, dead, auxiliary)
        made = _of_codes(self, codes, rows)
        return Loss(total + extra, squares[-1].detach(), variance, extra.detach(), *made, rest, rows)

    def _rests(self, seen: Tensor, wanted: Tensor, codes: _Codes) -> list[Tensor]:
        """What reconstructions by each prefix of units leave over, the whole last."""
        left, phi, first, rests = wanted - self.offset.flatten(), self.directions.flatten(1), 0, []
        if self.skip is not None:
            left = left - seen @ self.skip
        for share in self.variant.nested:
            last = max(first + 1, round(share * self.units))
            left = left - self._made(codes, phi, first, min(last, self.units))
            rests.append(left)
            first = last
        return rests

    def _revival(self, seen: Tensor, rest: Tensor, rows: int, dead: Tensor | None, weight: float) -> Tensor:
        """The loss by which dead units come back."""
        if dead is None or self.recipe.revived not in ("auxiliary", "threshold"):
            return rest.new_zeros(())
        units = dead.nonzero()[:, 0]
        there = self.mesh.count(len(units), "units")
        if not there:
            return rest.new_zeros(())
        phi = self.directions[units].flatten(1)
        if isinstance(self.variant, Matching):
            z = rest @ phi.T
        else:
            z = torch.addmm(self._bias()[units], seen, self.encoder[units].flatten(1).T)
        if self.recipe.revived == "threshold":
            return self.variant.lift(z, self._parts(rows, None, units))
        many = min(there, self.offset.shape[1] // 2)
        codes = z.relu()
        if many < there:
            codes = torch.where(z >= nth_of_rows(self.mesh, z.detach(), many), codes, 0)
        spread = _squares(self.mesh, rest - self.mesh.mean(rest, "rows")).clamp(min=1e-12)
        return weight * _squares(self.mesh, rest - self.mesh.sum(codes @ phi, "units")) / spread

    @torch.no_grad()
    def remember(self, smallest: Float[Tensor, ""], memory: float) -> None:
        """Keep the running mean of a batch's smallest code, which is the threshold of `BatchTopK` at inference."""
        if bool(torch.isfinite(smallest)):
            self.kept.copy_(torch.where(self.kept < 0, smallest, memory * self.kept + (1 - memory) * smallest))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row place d_model"]) -> Float[Tensor, "row unit"]:
        """Codes at inference, of directions of length 1 (all targets together): those of `dictionary`, found by the variant's own formulas."""
        return torch.cat([_encoded(self, part) for part in x.split(_AT_ONCE)]) if len(x) else x.new_zeros(0, self.units)

    def _floor(self) -> Float[Tensor, " unit"]:
        return self.variant.floor(self.kept, dict(self.added.items())).expand(self.units)

    @torch.no_grad()
    def dictionary(
        self,
        name: str,
        reads: Sequence[Site],
        writes: Sequence[Site],
        scaling: Scaling,
        *,
        target_scaling: Scaling | None = None,
        model: str = "",
        learnt: dict[str, str | int | float] | None = None,
    ) -> Dictionary:
        """The trained autoencoder in the form that is used and kept: directions of length 1, a bias that holds the offset, one rule.

        A gate's scale and the lengths of free directions go into weights, bias and thresholds.
        Errors: `Refusal` where sites do not fit, see `Dictionary`.
        """
        flat = self.directions.flatten(1)
        lengths = flat.norm(dim=1)
        directions = (flat / lengths[:, None]).unflatten(1, self.directions.shape[1:])
        rule = self.variant.rule(self._floor() * lengths)
        coder: Greedy | Encoder
        if isinstance(rule, Greedy):
            coder = rule
        else:
            weights, bias = self.encoder.detach(), self._bias()
            if (changed := self.variant.scale(dict(self.added.items()))) is not None:
                weights, bias = weights * changed[0][:, None, None], bias * changed[0] + changed[1]
            weights = (weights * lengths[:, None, None]).permute(1, 2, 0).contiguous()
            coder = Encoder(weights, bias * lengths, rule)
        return Dictionary(
            name,
            self.arrangement,
            tuple(reads),
            tuple(writes),
            coder,
            scaling,
            directions.transpose(0, 1).contiguous(),
            self.offset.detach().clone(),
            target_scaling,
            None if self.skip is None else self.skip.detach().clone(),
            model,
            learnt or {},
        )


def _require_places(autoencoder: Autoencoder, x: Tensor) -> None:
    wanted = 2 if autoencoder.arrangement == "transcoder" else autoencoder.offset.shape[0]
    if x.shape[1:] != (wanted, autoencoder.offset.shape[1]):
        why = f"they are of {x.shape[1]} places and {x.shape[2]} numbers"
        instead = f"give {wanted} place{'s' * (wanted > 1)} of {autoencoder.offset.shape[1]} numbers"
        raise Refusal("states of an autoencoder", why=why, instead=instead)


def _pursued(autoencoder: Autoencoder, x: Float[Tensor, "row width"], k: int) -> _Codes:
    """Matching pursuit. What factors see of the rest is kept up by their products with each other."""
    phi, rest = autoencoder.directions.flatten(1), x - autoencoder.offset.flatten()
    with torch.no_grad():
        pull, gram = rest @ phi.T, phi @ phi.T
    units, values = [], []
    for _ in range(k):
        unit = pull.argmax(1)
        chosen = phi[unit]
        value = (rest * chosen).sum(1).relu()
        rest = rest - value[:, None] * chosen
        pull.sub_(value.detach()[:, None] * gram[unit])
        units.append(unit)
        values.append(value)
    starts = torch.arange(0, len(x) * k + 1, k, device=x.device)
    entries = torch.stack(values, 1).flatten()
    return _Codes(entries, entries, Active(starts, torch.stack(units, 1).flatten(), autoencoder.units))


def _squares(mesh: Mesh, x: Float[Tensor, "row width"]) -> Float[Tensor, ""]:
    """The sum of squares of all ranks' rows."""
    return mesh.sum(x.square().sum(), "rows")


def _of_codes(autoencoder: Autoencoder, codes: _Codes, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """How many codes a row has, which units fired, and the smallest code."""
    mesh, values = autoencoder.mesh, codes.values.detach()
    positive = values > 0
    if codes.active is None:
        fired = positive.any(0)
    else:
        fired = torch.zeros(len(autoencoder.directions), dtype=torch.bool, device=values.device)
        fired[codes.active.unit[positive]] = True
    smallest = values.masked_fill(~positive, torch.inf).min() if values.numel() else values.new_tensor(torch.inf)
    fired, smallest = mesh.reduced(fired.byte(), "rows", "max").bool(), mesh.reduced(smallest, "all", "min")
    return mesh.sum(positive.sum(), "all") / rows, fired, smallest


def _encoded(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    if autoencoder.arrangement == "transcoder" and x.shape[1] == 1:
        x = x.expand(-1, 2, -1)
    seen, _ = autoencoder._split(x)
    lengths = autoencoder.directions.flatten(1).norm(dim=1)
    rule = autoencoder.variant.rule(autoencoder._floor())
    if isinstance(rule, Greedy):
        return greedily(autoencoder.directions.flatten(1) / lengths[:, None], seen - autoencoder.offset.flatten(), rule)
    codes = autoencoder.variant.codes(
        torch.addmm(autoencoder._bias(), seen, autoencoder.encoder.flatten(1).T), autoencoder._parts(len(x))
    )
    return rule.keep(codes) * lengths


def require_shards(variant: Variant, mesh: Mesh) -> None:
    """Refuse a variant whose codes no rank can find from its own units."""
    if isinstance(variant, Matching) and mesh.shards > 1:
        why = "each of its steps looks at all units, one after another"
        raise Refusal(f"matching pursuit over {mesh.shards} shards", why=why, instead="name 1 shard: rows can be spread")


def _require_fit(variant: Variant, arrangement: str, places: int, skip: str) -> None:
    wrong = {
        "more than one place is read by a crosscoder only": arrangement != "crosscoder" and places != 1,
        "matching pursuit codes states of one place": isinstance(variant, Matching) and arrangement != "shared",
        "only a transcoder has a linear part": arrangement != "transcoder" and skip == "linear",
    }
    for why, holds in wrong.items():
        if holds:
            raise Refusal(
                f"{arrangement} autoencoder of {places} places", why=why, instead="choose another arrangement or variant"
            )
