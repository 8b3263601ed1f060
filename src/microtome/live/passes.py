"""One pass over a text, watched by several who each need some sites: each is called as soon as all of its sites are there."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from microtome.core import Batch, Site
from microtome.live.clock import Clock
from microtome.model import Model, observe

__all__ = ["Watcher", "watch"]


@dataclass(frozen=True, eq=False)
class Watcher:
    """Which tensors are needed, and what is done with them."""

    sites: tuple[Site, ...]
    receive: Callable[[Mapping[Site, Any]], None]


def watch(model: Model, batch: Batch, watchers: Iterable[Watcher], clock: Clock) -> None:
    """Run the model once; tensors are held until the last of those who need them was called.

    Errors: `Refusal` for sites that the model does not have, `Overdue` where the clock has run out after a site.
    """
    waiting = [(watcher, set(watcher.sites)) for watcher in watchers if watcher.sites]
    held: dict[Site, Any] = {}

    def receive(site: Site, value: Any) -> None:
        clock.check()
        held[site] = value
        for each in [each for each in waiting if site in each[1]]:
            watcher, missing = each
            missing.discard(site)
            if not missing:
                waiting.remove(each)
                watcher.receive({own: held[own] for own in watcher.sites})
        needed = {own for watcher, _ in waiting for own in watcher.sites}
        for own in [own for own in held if own not in needed]:
            del held[own]

    observe(model, batch, sorted({site for watcher, _ in waiting for site in watcher.sites}), receive)
