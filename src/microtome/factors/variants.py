"""The sparse autoencoders that there are, as values: what of an encoder's product is a code, which loss makes codes sparse, and how each is trained.

What a variant is, is said in `variant`. Parameters, reconstruction and the loss as a whole belong in `autoencoder`, steps in `training`. Penalties
are for states whose mean square length is d_model. Additional axes: `entry` as in `sparse_ops`; an annotation `*at` is `row unit` or `entry`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Largest
from microtome.factors.selection import nth_largest
from microtome.factors.sparse_ops import Active, above, largest, largest_of_all
from microtome.factors.variant import DENSE, Parts, Recipe, Variant, require_positive

__all__ = [
    "NESTED", "BatchTopK", "Gated", "JumpRelu", "Matching", "Relu", "Steps", "Tanh", "Target", "TopK",
]  # fmt: skip

NESTED: Final = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
"""Matryoshka prefixes whose parts are 1/32, 1/16, 1/8, 1/4 and 17/32 of the units.

Source: Bussmann et al. 2025, arXiv:2503.17547, section 4.
"""


@dataclass(frozen=True)
class Relu(Variant):
    """f = max(0, z); loss |x - x^|^2 + penalty sum_c f_c, or penalty sum_c f_c |Phi_c| where directions are free.

    `unit`: directions of length 1, and units that stopped firing are resampled (2023); `decoder`: free directions and no resampling (April
    2024). In a crosscoder |Phi_c| is the sum over targets.
    Source: Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features, appendix on training; Conerly et al. 2024,
    transformer-circuits.pub/2024/april-update, on training; Lindsey et al. 2024, transformer-circuits.pub/2024/crosscoders, on the loss.
    Errors: `Refusal` for a penalty that is not above 0; so do the other variants for their numbers.
    """

    penalty: float = 5.0
    weighting: Literal["unit", "decoder"] = "decoder"

    def __post_init__(self) -> None:
        require_positive(self, penalty=self.penalty)

    def recipe(self, units: int) -> Recipe:
        """Learning rates 1e-4 and 5e-5."""
        del units
        if self.weighting == "unit":
            return Recipe(rate=1e-4, error="sum", revived="resampling")
        return Recipe(rate=5e-5, warm=0.05, directions="free", length=0.1, error="sum")

    def cost(self, z: Float[Tensor, "*at"], codes: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, ""]:
        """The weighted sum of codes."""
        weighted = codes if self.weighting == "unit" else codes * parts.of(parts.lengths)
        return self.penalty * parts.total(weighted) / parts.rows


@dataclass(frozen=True)
class Gated(Variant):
    """f = 1[z > 0] max(0, e^r z + s): whether a unit fires is decided apart from how much.

    Loss |x - x^|^2 + penalty sum_c max(0, z_c) + |x - max(0, z) Phi - b|^2, the last with Phi and b held fixed. s is added to z with its bias.
    Source: Rajamanoharan et al. 2024, arXiv:2404.16014, section 3.2.
    """

    penalty: float = 5.0

    def __post_init__(self) -> None:
        require_positive(self, penalty=self.penalty)

    def recipe(self, units: int) -> Recipe:
        """Adam without momentum."""
        del units
        return Recipe(rate=3e-4, betas=(0.0, 0.999), warm=0.05, error="sum")

    def added(self, units: int) -> dict[str, Float[Tensor, " unit"]]:
        """R and s."""
        return {"gate_scale": torch.zeros(units), "magnitude_shift": torch.zeros(units)}

    def codes(self, z: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, "*at"]:
        """Magnitudes where the gate is open."""
        scale, shift = self.scale(parts.added)
        return torch.where(z > 0, (parts.of(scale) * z + parts.of(shift)).relu(), 0)

    def cost(self, z: Float[Tensor, "*at"], codes: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, ""]:
        """The weighted sum of what opens gates."""
        return self.penalty * parts.total(z.relu()) / parts.rows

    def scale(self, added: Mapping[str, Float[Tensor, " unit"]]) -> tuple[Tensor, Tensor]:
        """The scale e^r, and s."""
        return added["gate_scale"].exp(), added["magnitude_shift"]

    def floor(self, kept: Float[Tensor, ""], added: Mapping[str, Float[Tensor, " unit"]]) -> Float[Tensor, "*unit"]:
        """Where the gate opens: e^r z + s > s."""
        return added["magnitude_shift"].clamp(min=0)


@dataclass(frozen=True)
class _Counted(Variant):
    """Variants with a number of codes, k; loss |x - x^|^2 relative to the states' variance.

    `prefixes`: the mean of losses of reconstructions by the first so many units each (Matryoshka).
    """

    k: int
    prefixes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)
        ascending = all(a < b for a, b in zip((0.0, *self.prefixes), self.prefixes, strict=False))
        if not (ascending and self.prefixes[-1:] == (1,)):
            raise Refusal(f"{self}", why="prefixes do not ascend from above 0 to 1", instead="name shares of the units")

    @property
    def nested(self) -> tuple[float, ...]:
        """The prefixes."""
        return self.prefixes

    def recipe(self, units: int) -> Recipe:
        """Learning rate 2e-4 / sqrt(units / 2^14)."""
        return Recipe(rate=2e-4 / math.sqrt(units / 2**14), eps=6.25e-10, revived="auxiliary")


@dataclass(frozen=True)
class TopK(_Counted):
    """The k largest pre-activations of a row are its code, if they are above 0. `prefixes`: shares of the units, for Matryoshka losses.

    Source: Gao et al. 2024, arXiv:2406.04093, section 2.3 and appendix A; Bussmann et al. 2025, arXiv:2503.17547, section 3.
    """

    def rule(self, floor: Float[Tensor, " unit"]) -> Largest:
        """That of training."""
        del floor
        return Largest(self.k)

    def active(self, z: Float[Tensor, "row unit"], parts: Parts) -> Active | None:
        """The k largest of each row."""
        return largest(z, self.k, parts.mesh)


@dataclass(frozen=True)
class BatchTopK(_Counted):
    """The k B largest pre-activations of a batch of B rows are codes, if they are above 0; at inference those above a threshold are.

    The threshold is the running mean of the smallest code of a batch. `prefixes` as in `TopK`.
    Source: Bussmann et al. 2024, arXiv:2412.06410, section 3.
    """

    def active(self, z: Float[Tensor, "row unit"], parts: Parts) -> Active | None:
        """The largest of all rows."""
        return largest_of_all(z, self.k * parts.rows, parts.mesh)

    def floor(self, kept: Float[Tensor, ""], added: Mapping[str, Float[Tensor, " unit"]]) -> Float[Tensor, "*unit"]:
        """The running mean of the smallest."""
        del added
        return kept.clamp(min=0)


@dataclass(frozen=True)
class Steps:
    """weight times the number of codes, whose gradient by thresholds is estimated.

    Source: Rajamanoharan et al. 2024, arXiv:2407.14435, section 3.
    """

    weight: float = 1e-3


@dataclass(frozen=True)
class Target:
    """weight (number of codes / count - 1)^2, so that rows have `count` codes on average."""

    count: float
    weight: float = 1.0


@dataclass(frozen=True)
class Tanh:
    """weight sum_c tanh(steep f_c |Phi_c|), and `lifting` sum_c max(0, theta_c - z_c) |Phi_c| over units that stopped firing.

    Source: Conerly et al. 2025, transformer-circuits.pub/2025/january-update, on dictionary learning.
    """

    weight: float = 10.0
    steep: float = 4.0
    lifting: float = 3e-6


@dataclass(frozen=True)
class JumpRelu(Variant):
    """f = z 1[z > theta] with a threshold of each unit, whose gradient is estimated from what lies within `bandwidth` around it.

    df / dtheta = -theta K / bandwidth and d1[z > theta] / dtheta = -K / bandwidth, K = 1[|z - theta| < bandwidth / 2]; theta = e^t is learnt by t.
    Source: Rajamanoharan et al. 2024, arXiv:2407.14435, section 3.
    """

    sparsity: Steps | Target | Tanh
    bandwidth: float = 0.1
    threshold: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, bandwidth=self.bandwidth, threshold=self.threshold, weight=self.sparsity.weight)

    def recipe(self, units: int) -> Recipe:
        """Adam without momentum and a tenth of the run to warm up; with `Tanh` free directions and the whole run."""
        del units
        if isinstance(self.sparsity, Tanh):
            return Recipe(rate=2e-4, warm=1.0, directions="free", length=0.1, error="sum", revived="threshold")
        return Recipe(rate=7e-5, betas=(0.0, 0.999), warm=0.1)

    def added(self, units: int) -> dict[str, Float[Tensor, " unit"]]:
        """T = log theta."""
        return {"log_threshold": torch.full((units,), math.log(self.threshold))}

    def begun(self, z: Float[Tensor, "row unit"], parts: Parts) -> dict[str, Float[Tensor, " unit"]]:
        """With a `Target`, one threshold for all that gives the first batch as many codes as it aims at: short runs do not get there otherwise."""
        if not isinstance(self.sparsity, Target):
            return {}
        many = min(parts.mesh.count(z.numel(), "all"), max(1, round(self.sparsity.count * parts.rows)))
        least = nth_largest(parts.mesh, z.flatten(), many)
        return {"log_threshold": least.clamp(min=1e-6).log().expand(z.shape[1])}

    def active(self, z: Float[Tensor, "row unit"], parts: Parts) -> Active | None:
        """What is above its threshold, or so near below it that it counts in its gradient."""
        return above(z, parts.added["log_threshold"].exp() - self.bandwidth / 2, int(DENSE * z.numel()))

    def codes(self, z: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, "*at"]:
        """What is above its threshold."""
        return cast(Tensor, _Jump.apply(z, parts.of(parts.added["log_threshold"].exp()).expand_as(z), self.bandwidth))

    def cost(self, z: Float[Tensor, "*at"], codes: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, ""]:
        """By the number of codes, or what stands for it."""
        sparsity = self.sparsity
        if isinstance(sparsity, Tanh):
            return sparsity.weight * parts.total((sparsity.steep * codes * parts.of(parts.lengths)).tanh()) / parts.rows
        theta = parts.of(parts.added["log_threshold"].exp()).expand_as(z)
        count = parts.total(cast(Tensor, _Step.apply(z, theta, self.bandwidth))) / parts.rows
        return sparsity.weight * (count if isinstance(sparsity, Steps) else (count / sparsity.count - 1).square())

    def lift(self, z: Float[Tensor, "row dead"], parts: Parts) -> Float[Tensor, ""]:
        """With `Tanh`, how far units are below their thresholds."""
        if not isinstance(self.sparsity, Tanh):
            return z.new_zeros(())
        below = (parts.added["log_threshold"].exp() - z).relu()
        return self.sparsity.lifting * parts.total(below * parts.lengths) / parts.rows

    def floor(self, kept: Float[Tensor, ""], added: Mapping[str, Float[Tensor, " unit"]]) -> Float[Tensor, "*unit"]:
        """The thresholds."""
        del kept
        return added["log_threshold"].exp()


@dataclass(frozen=True)
class Matching(Variant):
    """k steps of matching pursuit, each of which takes the factor to which the rest points most, by as much as it does; there is no encoder.

    Gradients go through all steps. At inference coefficients are refitted (`Greedy`).
    Source: Costa et al. 2025, arXiv:2506.03093, section 3; Mallat and Zhang 1993, doi:10.1109/78.258082, on matching pursuit.
    """

    k: int

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)

    def recipe(self, units: int) -> Recipe:
        """That of `TopK`."""
        return TopK(self.k).recipe(units)

    def rule(self, floor: Float[Tensor, " unit"]) -> Greedy:
        """Orthogonal matching pursuit with as many factors."""
        del floor
        return Greedy(self.k)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return torch.where(z > theta, z, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        near = (z - theta).abs() < ctx.bandwidth / 2
        return grads[0] * (z > theta), torch.where(near, -grads[0] * theta / ctx.bandwidth, 0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        near = (z - theta).abs() < ctx.bandwidth / 2
        return None, torch.where(near, -grads[0] / ctx.bandwidth, 0), None
