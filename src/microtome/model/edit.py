"""Changing what passes: at which sites a tensor can be replaced on its way, and the hooks that do it.

A site is named by formula, and a module reads it or gives it out. Replacing it is honest only where everything that depends on it then
sees the new tensor; elsewhere the edit is refused. What to put there is the business of `intervene`; who may register hooks, of `hooks`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from microtome.core import Batch, Refusal, Site
from microtome.model.families import Facts, Recipe, Tap
from microtome.model.hooks import Hook
from microtome.model.model import Model, recipe_of
from microtome.model.observe import whereabouts

__all__ = ["Change", "edit_hooks"]

Change = Callable[[Tensor], Tensor]
"""Given the tensor of a site, what is to be there instead: of the same shape and dtype, and a new tensor."""

_READ_ONCE: Final = frozenset({"resid_pre", "mlp_act", "z"})
"""Sites on their way into a module that no other module reads."""
_STREAM: Final = "edit resid_pre or resid_post, or what a branch adds: attn_out_post, mlp_out_post"
_FIXED: Final = {
    "logits": ("they are the model's answer, and nothing in it reads them", "edit final_norm"),
    "pos_embed": ("one row of positions serves all windows", "edit resid_pre.0"),
    "router_logits": ("the router passes on which experts it chose, not its logits", "edit resid_pre"),
}


@dataclass
class _Calls:
    """Calls of a module since the forward pass began; `wanted` is the one that counts."""

    wanted: int
    seen: int = 0

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pass begins."""
        self.seen = 0

    def now(self) -> bool:
        """Whether the call that is being made is the wanted one."""
        self.seen += 1
        return self.seen - 1 == self.wanted


def edit_hooks(model: Model, batch: Batch, changes: Mapping[Site, Change]) -> list[Hook]:
    """Hooks that replace the tensors of `changes` in every forward pass of `batch` while they are attached.

    The tensor is changed where it passes whole, if only in another shape; a head's `z` is one, the queries inside a joint projection are
    not. Attached before an observation, the observation sees what was changed.

    Errors: `Refusal` for a site that the model does not have, that is computed of several tensors, or that other modules read too, before
    anything runs; for one that turns out to be a piece of what passes, and for a change of shape or dtype, in the first pass.
    """
    hooks = []
    for site in sorted(changes):
        recipe = recipe_of(model, site) if site.name != "logits" else Recipe((Tap("/", "out"),))
        _refuse_fixed(model, site, recipe)
        (tap,) = recipe.taps
        facts, find = whereabouts(model, site, batch)
        module, call = find(tap.module)
        calls = _Calls(call)
        put = _putting(model, site, recipe, facts, changes[site])
        hooks += [Hook(model.trunk, "in", calls.begin), _replacing(module, tap, calls, put)]
    return hooks


def _refuse_fixed(model: Model, site: Site, recipe: Recipe) -> None:
    why, instead = "", _STREAM
    tap, *others = recipe.taps
    if site.name in _FIXED:
        why, instead = _FIXED[site.name]
    elif others:
        why = "it is computed from several tensors, and the model does not pass it on as such"
    elif tap.side == "expert":
        why = "it is inside fused experts, where no module passes it on"
    elif tap.side == "in" and site.name not in _READ_ONCE:
        why = "other modules read the same tensor, and would still see the old one"
    if why:
        raise Refusal(f"an edit at {site} of {model.name}", why=why, instead=instead)


def _putting(model: Model, site: Site, recipe: Recipe, facts: Facts, change: Change) -> Change:
    """The change as it applies to what the module passes."""

    def put(value: Tensor) -> Tensor:
        seen = recipe.compute(facts, value)
        if not _same_memory(seen, value):
            raise Refusal(
                f"an edit at {site} of {model.name}",
                why="it is computed from what a module passes, or a piece of it",
                instead=_STREAM,
            )
        new = change(seen)
        if new.shape != seen.shape or new.dtype != seen.dtype:
            raise Refusal(
                f"an edit at {site} of {model.name}",
                why=f"it makes {new.dtype} of shape {tuple(new.shape)} where {seen.dtype} of shape {tuple(seen.shape)} passes",
                instead="keep shape and dtype",
            )
        return new.reshape(value.shape)

    return put


def _same_memory(seen: Tensor, value: Tensor) -> bool:
    """Whether `seen` is `value`, reshaped at most."""
    if seen.numel() != value.numel():
        return False
    back = seen.reshape(value.shape)
    return back.data_ptr() == value.data_ptr() and back.stride() == value.stride()


def _replacing(module: nn.Module, tap: Tap, calls: _Calls, put: Change) -> Hook:
    """The hook that replaces the tapped tensor at its call."""

    def going_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not calls.now():
            return None
        if isinstance(tap.select, int) and tap.select < len(args):
            return (*args[: tap.select], put(args[tap.select]), *args[tap.select + 1 :]), kwargs
        name = tap.select if isinstance(tap.select, str) else "hidden_states"
        return args, {**kwargs, name: put(kwargs[name])}

    def coming_out(module: nn.Module, args: Any, output: Any) -> Any:
        if not calls.now():
            return None
        if isinstance(output, Tensor):
            return put(output)
        assert isinstance(tap.select, int)
        return (*output[: tap.select], put(output[tap.select]), *output[tap.select + 1 :])

    return Hook(module, "in", going_in) if tap.side == "in" else Hook(module, "out", coming_out)
