"""The one place where hooks are put on modules: attached on entering a context, gone on leaving it.

A hook that returns something replaces what passes (that is how edits work); one that returns None only looks. Which modules to
hook, and what to do there, is the caller's business.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Hook", "attached"]


@dataclass(frozen=True, eq=False)
class Hook:
    """What to do where a module is called.

    Going in, `act(module, args, kwargs)` may return new (args, kwargs); coming out, `act(module, args, output)` may return a new
    output; None leaves everything as it is.
    """

    module: nn.Module
    side: Literal["in", "out"]
    act: Callable[[nn.Module, Any, Any], Any]


def _attach(hook: Hook) -> RemovableHandle:
    if hook.side == "in":
        return hook.module.register_forward_pre_hook(hook.act, with_kwargs=True)
    return hook.module.register_forward_hook(hook.act)


@contextmanager
def attached(hooks: Sequence[Hook]) -> Iterator[None]:
    """Keep `hooks` on their modules for the length of a `with` block, whatever happens in it."""
    handles = [_attach(hook) for hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
