"""One forward pass, watched: tensors are handed over as they appear, at the sites asked for and nowhere else.

The pass is the model's own, kernels included, and ends as soon as the last site wanted is there. Nothing is copied or kept;
folding and storing what is seen belongs in `capture`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Batch, ExpertRows, Refusal, Role, Site
from microtome.model.experts import Branch, Paired, experts_observed
from microtome.model.families import Facts, Recipe, Tap
from microtome.model.hooks import Hook, attached
from microtome.model.model import Model, recipe_of
from microtome.model.placement import device_of

__all__ = ["capture", "final_norm", "forward", "inputs_of", "observe", "unembed", "whereabouts"]

Receive = Callable[[Site, Any], None]


class _Seen(Exception):
    """Everything wanted has been received: leave the forward pass."""


class _Wanted:
    """A site being waited for: its recipe's tapped tensors as they arrive, until it can be computed and handed over."""

    __slots__ = ("compute", "device", "facts", "missing", "site", "taps", "values")

    def __init__(self, site: Site, recipe: Recipe, facts: Facts) -> None:
        self.site = site
        self.device = None if site.layer is None else device_of(facts.block)
        self.taps = recipe.taps
        self.compute = recipe.compute
        self.facts = facts
        self.values: dict[Tap, Any] = {}
        self.missing = len(set(recipe.taps))


class _Watch:
    """Who waits for what at which call of which module; hands tensors over and ends the pass after the last."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.pending = 0
        self.calls: dict[tuple[nn.Module, str], dict[int, list[tuple[Tap, _Wanted]]]] = {}
        self.fused: dict[nn.Module, list[tuple[Tap, _Wanted]]] = {}

    def expect(self, site: Site, recipe: Recipe, facts: Facts, find: Callable[[str], tuple[nn.Module, int]]) -> None:
        """Wait for the taps of `recipe`; `find` gives the module of a tap and which call of it counts."""
        wanted = _Wanted(site, recipe, facts)
        self.pending += 1
        for tap in dict.fromkeys(recipe.taps):
            module, call = find(tap.module)
            if tap.side == "expert":
                self.fused.setdefault(module, []).append((tap, wanted))
            else:
                self.calls.setdefault((module, tap.side), defaultdict(list))[call].append((tap, wanted))

    def hooks(self) -> list[Hook]:
        return [
            Hook(module, "in" if side == "in" else "out", self._look(side, calls))
            for (module, side), calls in self.calls.items()
        ]

    def experts(self) -> dict[nn.Module, tuple[frozenset[Branch], Paired]]:
        """What to look for in each module of fused experts."""
        return {module: (_branches(waiting), self._rows(waiting)) for module, waiting in self.fused.items()}

    def _rows(self, waiting: list[tuple[Tap, _Wanted]]) -> Paired:
        def paired(rows: dict[Branch, Tensor], token: Tensor, expert: Tensor, weight: Tensor) -> None:
            for tap, wanted in waiting:
                facts = wanted.facts
                self._arrived(wanted, tap, ExpertRows(rows[_branch(tap)], token, expert, weight, facts.windows, facts.tokens))

        return paired

    def _look(self, side: str, calls: Mapping[int, list[tuple[Tap, _Wanted]]]) -> Callable[[nn.Module, Any, Any], None]:
        count = 0

        def look(module: nn.Module, args: Any, other: Any) -> None:
            nonlocal count
            waiting = calls.get(count)
            count += 1
            if waiting is not None:
                for tap, wanted in waiting:
                    self._arrived(wanted, tap, _entering(tap, args, other) if side == "in" else _leaving(tap, other))

        return look

    def _arrived(self, wanted: _Wanted, tap: Tap, value: Any) -> None:
        if isinstance(value, Tensor):  # a hook sees what goes into a block before it is moved to the block's device
            value = value.to(wanted.device)
        wanted.values[tap] = value
        wanted.missing -= 1
        if wanted.missing == 0:
            values = [wanted.values[each] for each in wanted.taps]
            wanted.values.clear()
            self.receive(wanted.site, wanted.compute(wanted.facts, *values))
            self.pending -= 1
            if self.pending == 0:
                raise _Seen


def _branch(tap: Tap) -> Branch:
    branches: dict[int | str, Branch] = {"gate": "gate", "up": "up", "act": "act"}
    return branches[tap.select]


def _branches(waiting: list[tuple[Tap, _Wanted]]) -> frozenset[Branch]:
    return frozenset(_branch(tap) for tap, _ in waiting)


def _entering(tap: Tap, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(tap.select, str):
        return kwargs.get(tap.select)
    return args[tap.select] if tap.select < len(args) else kwargs["hidden_states"]


def _leaving(tap: Tap, output: Any) -> Any:
    if isinstance(tap.select, str):
        return output[tap.select]
    if isinstance(output, Tensor):
        return output
    return output[tap.select]


def inputs_of(model: Model, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids, a mask where there is padding, and the batch's further inputs.

    Errors: `Refusal` for a batch that is not where the model begins.
    """
    if batch.ids.device != model.device:
        why = f"{model.name} is on {model.device}"
        raise Refusal(f"a batch on {batch.ids.device}", why=why, instead="move it there: batch.to(model.device)")
    if model.family.inputs == "image":
        return dict(batch.extra)
    given: dict[str, Any] = {"input_ids": batch.ids, **batch.extra}
    attended = batch.roles != Role.PAD
    if not bool(attended.all()):
        given["attention_mask"] = attended.long()
    if model.shape.causal:
        given["use_cache"] = False
    return given


def forward(model: Model, batch: Batch) -> Any:
    """The bare forward pass, head included: the model's own output record."""
    with torch.inference_mode():
        return model.module(**inputs_of(model, batch))


def observe(
    model: Model,
    batch: Batch,
    sites: Iterable[Site],
    receive: Receive,
    *,
    gradients: Literal["none", "kept"] = "none",
    where: Literal["batch", "layer"] = "batch",
) -> None:
    """Run one forward pass and hand over the tensors of `sites` as they appear, each once, without copies.

    Where gradients are "kept" the pass runs with autograd: what is handed over remembers what it was made of, if that needs a gradient.
    Of a model that is spread over several devices tensors are handed over on that of the batch, or, where "layer" is asked for, left on that of their
    layer, as are its weights. They are the model's own, padding included: what is to outlive the call to `receive` must be copied there. The pass
    runs under `inference_mode`, without the head unless `logits` is asked for, and stops after the last site.

    Errors: `Refusal` for a site that the model does not have, before anything runs.
    """
    wanted = dict.fromkeys(sites)
    if not wanted:
        return
    watch = _Watch(receive if where == "layer" else lambda site, value: receive(site, _on(value, model.device)))
    for site in wanted:
        recipe, (facts, find) = _recipe(model, site), whereabouts(model, site, batch)
        watch.expect(site, recipe, facts, find)
    runner = model.module if Site("logits") in wanted else model.trunk
    mode = torch.inference_mode() if gradients == "none" else torch.enable_grad()
    with mode, attached(watch.hooks()), experts_observed(model.config, watch.experts()):
        try:
            runner(**inputs_of(model, batch))
        except _Seen:
            return
    raise AssertionError(f"{watch.pending} of {len(wanted)} sites never appeared")


def _on(value: Any, device: torch.device) -> Any:
    """A site's value on a device; what is neither a tensor nor rows of experts takes care of itself."""
    return value.to(device) if isinstance(value, Tensor | ExpertRows) else value


def whereabouts(model: Model, site: Site, batch: Batch) -> tuple[Facts, Callable[[str], tuple[nn.Module, int]]]:
    """The facts for computing a site, and where its taps are."""
    trunk, layers = model.trunk, model.shape.layers
    place = model.family.at(model.config, layers - 1 if site.layer is None else site.layer)
    block = trunk.get_submodule(place.block)
    base = trunk if site.layer is None else block
    windows, tokens = batch.ids.shape

    def find(path: str) -> tuple[nn.Module, int]:
        if path.startswith("/"):
            return model.module.get_submodule(path[1:]), 0
        if path == "{last}":
            return block, place.call
        return base.get_submodule(path), 0 if site.layer is None else place.call

    return Facts(model.shape, model.config, base, site.layer, windows, tokens), find


def _recipe(model: Model, site: Site) -> Recipe:
    if site.name == "logits" and model.head is not None:
        return Recipe((Tap("/", "out", model.head.output),))
    return recipe_of(model, site)


def capture(
    model: Model, batch: Batch, sites: Iterable[Site], *, gradients: Literal["none", "kept"] = "none"
) -> dict[Site, Any]:
    """The tensors of `sites` (in a mixture of experts also `ExpertRows`) from one forward pass, all of them held, on the batch's device.

    For looking at a few windows, not for a corpus.
    """
    held: dict[Site, Any] = {}
    observe(model, batch, sites, held.__setitem__, gradients=gradients)
    return held


def final_norm(model: Model, value: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """A state of the stream through the model's last norm, on the state's device: `resid_post` of the last layer becomes `final_norm`.

    The identity where the model has none (post-norm encoders).
    """
    device = value.device
    for path in model.family.final:
        value = model.trunk.get_submodule(path)(value)
    return value.to(device)


def unembed(model: Model, value: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
    """Logits of a state at `final_norm`, by the model's own head, on the state's device: bias, soft cap and a head's transform included."""
    if model.head is None or model.head.kind not in ("causal", "masked"):
        raise Refusal(
            f"logits of {model.name}",
            why="the model was opened without a language-model head",
            instead="open a checkpoint that has one, or name its class in the configuration",
        )
    return model.head.apply(model.module, value).to(value.device)
