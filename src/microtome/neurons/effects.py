"""What the loss owes to every feed-forward unit: to first order for all of them in one backward pass a batch, and exactly for some.

Which units are ablated, and what is said of them, is the lens's business; answers to single prompts belong in `knowledge`. The axis
`part` is the loss's effect and its control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State
from microtome.intervene import Edit, Scale, edited
from microtome.intervene.gradients import watched
from microtome.model import Model, capture, unembed
from microtome.readout.sample import Target, target_ids

__all__ = ["SHIFTED", "Ablations", "Effects", "FirstOrderEffects", "UnitAblations", "why_no_effects"]

SHIFTED: Final = "the same activations half a window away"
_HALVES: Final = len(Half)
_ROWS: Final = 256
"""Tokens whose logits are held at once."""
_AT_ONCE: Final = 8
"""Windows that go through the model together, each with a unit of its own set to 0."""


@dataclass(frozen=True, eq=False)
class Effects:
    """What setting each unit to 0 everywhere adds to the loss of a window, in nats a token, to first order: mean over windows.

    `control` is the same with each unit's activations half a window away from where they were. `error` is the standard error over windows.
    All are by half of the documents; NaN where a half has no window.
    """

    value: Float[Tensor, "half layer unit"]
    control: Float[Tensor, "half layer unit"]
    error: Float[Tensor, "half layer unit"]
    windows: Int[Tensor, " half"]


@dataclass(frozen=True, eq=False)
class FirstOrderEffects:
    """-sum over tokens of h dL/dh for every unit of every layer, L the mean loss of a window's counted tokens; `Effects`.

    Unchanged where a unit is scaled or reversed against what it writes. Not: an ablation; a unit whose work another takes over, or whose
    effect bends, is worth less or more (`UnitAblations`).
    The fold needs no tensor of the pass that it is part of: it makes passes of its own.
    Cost: a forward and a backward pass, about 6 FLOP per parameter and token, and the activations of a window of all layers in memory.
    Source: Molchanov et al. 2016, arXiv:1611.06440, section 2.2.
    """

    kind: ClassVar[str] = "neurons.first_order_effects"
    version: ClassVar[int] = 1

    model: Model
    target: Target = "next"
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the passes that keep gradients are made apart."""
        return ()

    def init(self) -> State:
        """No window."""
        shape = (_HALVES, 2, self.model.shape.layers, self.model.shape.d_mlp)
        sums = {name: torch.zeros(shape, dtype=torch.float64) for name in ("sums", "squares")}
        return {"windows": torch.zeros(_HALVES, dtype=torch.int64), **sums}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the batch's windows, one after the other; those without a counted token are left out."""
        for row in range(len(batch.ids)):
            found = self._of_window(batch.alone(row))
            if found is not None:
                half = int(batch.half[row])
                state["windows"][half] += 1
                state["sums"][half] += found
                state["squares"][half] += found.square()

    def merge(self, state: State, later: State) -> State:
        """Sums add up."""
        return {name: tensor.add_(later[name]) for name, tensor in state.items()}

    def result(self, state: State) -> Effects:
        """Means and their standard errors."""
        count = state["windows"].double()[:, None, None, None]
        mean = state["sums"] / count
        spread = (state["squares"] / count - mean.square()).clamp(min=0) / (count - 1)
        return Effects(mean[:, 0], mean[:, 1], spread[:, 0].sqrt(), state["windows"])

    def _of_window(self, batch: Batch) -> Float[Tensor, "part layer unit"] | None:
        targets, counted = target_ids(batch, self.target, self.roles)
        if not bool(counted.any()):
            return None
        sites = [Site("mlp_act", layer) for layer in range(self.model.shape.layers)]
        with watched(self.model, batch, sites) as seen:
            states = capture(self.model, batch, [Site("final_norm")], gradients="kept")[Site("final_norm")]
            _mean_loss(self.model, states[counted], targets[counted]).backward()
        found = []
        for site in sites:
            value, gradient = (
                each.reshape(batch.ids.shape[1], -1).double() for each in (seen.values[site], _gradient(seen.offsets[site]))
            )
            shifted = value.roll(len(value) // 2, 0)
            found.append(torch.stack([-(each * gradient).sum(0) for each in (value, shifted)]))
        return torch.stack(found, 1).cpu()


@dataclass(frozen=True, eq=False)
class Ablations:
    """What setting a unit to 0 at every token adds to the loss of a window, in nats a token: exactly, by unit and window."""

    layer: Int[Tensor, " unit"]
    index: Int[Tensor, " unit"]
    change: Float[Tensor, "window unit"]
    half: Int[Tensor, " window"]


@dataclass(frozen=True, eq=False)
class UnitAblations:
    """The loss of each window with one unit at a time set to 0 at all tokens, less its loss as it is: `Ablations`.

    Of windows of one half of the documents, where `half` names it; those without a counted token are left out.

    Cost: a forward pass for each window and unit, 2 FLOP per parameter and token. Memory: the activations of `_AT_ONCE` windows.
    """

    kind: ClassVar[str] = "neurons.unit_ablations"
    version: ClassVar[int] = 1

    model: Model
    layer: tuple[int, ...]
    index: tuple[int, ...]
    target: Target = "next"
    half: Half | None = None
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the changed model is run apart."""
        return ()

    def init(self) -> State:
        """No window."""
        return {"half": torch.zeros(0, dtype=torch.int64), "change": torch.zeros(0, len(self.layer), dtype=torch.float64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Run the batch's windows with each unit ablated."""
        for row in range(len(batch.ids)):
            alone = batch.alone(row)
            if self.half not in (None, int(batch.half[row])):
                continue
            if bool(target_ids(alone, self.target, self.roles)[1].any()):
                state["half"] = torch.cat([state["half"], batch.half[row : row + 1].cpu().long()])
                state["change"] = torch.cat([state["change"], self._of_window(alone)[None]])

    def merge(self, state: State, later: State) -> State:
        """Windows follow each other."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> Ablations:
        """The record."""
        return Ablations(torch.tensor(self.layer), torch.tensor(self.index), state["change"], state["half"])

    def _of_window(self, batch: Batch) -> Float[Tensor, " unit"]:
        clean = self._losses(batch, ())[0]
        found = torch.zeros(len(self.layer), dtype=torch.float64)
        for layer in sorted(set(self.layer)):
            mine = torch.tensor([place for place, own in enumerate(self.layer) if own == layer])
            for some in mine.split(_AT_ONCE):
                rows, units = torch.arange(len(some)), torch.tensor(self.index)[some]
                factor = torch.ones(len(some), batch.ids.shape[1], self.model.shape.d_mlp, device=batch.ids.device)
                factor[rows, :, units] = 0
                copies = batch.take(torch.zeros(len(some), dtype=torch.int64))
                found[some] = self._losses(copies, [Edit(Site("mlp_act", layer), Scale(factor))]) - clean
        return found

    def _losses(self, batch: Batch, edits: Sequence[Edit]) -> Float[Tensor, " window"]:
        site = Site("final_norm")
        targets, counted = target_ids(batch, self.target, self.roles)
        with edited(self.model, batch, edits), torch.inference_mode():
            states = capture(self.model, batch, [site])[site]
            found = [
                _mean_loss(self.model, own[mine], wanted[mine])
                for own, mine, wanted in zip(states, counted, targets, strict=True)
            ]
        return torch.stack(found).double().cpu()


def why_no_effects(model: Model) -> str | None:
    """Why a model's units have no effect on a loss that could be had, or None."""
    if model.head is None or model.head.kind not in ("causal", "masked"):
        return "the model was opened without a language-model head, so there is no loss"
    if model.shape.experts:
        return "the units of a mixture of experts are inside fused experts, where none can be changed alone"
    return None


def _mean_loss(model: Model, states: Float[Tensor, "row d_model"], targets: Int[Tensor, " row"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the model's own head, in float32, some rows of logits at a time."""
    losses = [
        torch.nn.functional.cross_entropy(unembed(model, own).float(), wanted, reduction="sum")
        for own, wanted in zip(states.split(_ROWS), targets.split(_ROWS), strict=True)
    ]
    return torch.stack(losses).sum() / len(targets)


def _gradient(offset: Tensor) -> Tensor:
    return torch.zeros_like(offset) if offset.grad is None else offset.grad
