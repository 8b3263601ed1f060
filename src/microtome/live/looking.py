"""All that one pass over a text tells: the logit lens at every layer, and the active units of every lens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microtome.core import Batch, Site
from microtome.factors.dictionary import Dictionary
from microtome.live.active import PER_TOKEN, Active, Largest, Strongest, factor_watchers, head_watchers, neuron_watchers
from microtome.live.clock import Clock
from microtome.live.model_of_atlas import Loaded
from microtome.live.passes import Watcher, watch
from microtome.live.reading import LogitLens, lens_rows, lens_sites, targets

__all__ = ["Look", "look"]


@dataclass(frozen=True, eq=False)
class Look:
    """What a text's tokens look like from inside; the lens is None where the model has no head that predicts tokens.

    `near` has neurons by how near they are to their largest activation in the atlas, which is what `size` says of them.
    """

    lens: LogitLens | None
    neurons: Active
    near: Active
    heads: Active
    factors: Active


def look(
    loaded: Loaded,
    batch: Batch,
    dictionaries: Sequence[Dictionary] = (),
    *,
    largest: Largest | None = None,
    clock: Clock | None = None,
) -> Look:
    """Read a window of one text; `largest` are activations of neurons that the atlas has seen.

    Errors: `Refusal` for a dictionary of another model, `Overdue` where it takes too long.
    Cost: one pass, the head at every layer and token (2 layers d_model vocab FLOP a token), and codes of all states at the dictionaries' sites.
    """
    model, tokens = loaded.model, batch.ids.shape[1]
    for dictionary in dictionaries:
        dictionary.require_for(model.fingerprint, model.name)
    sites = lens_sites(model)
    wanted = targets(model, batch)
    found: dict[Site, tuple[torch.Tensor, ...]] = {}

    def lens_at(site: Site) -> Watcher:
        def receive(seen: Mapping[Site, Any]) -> None:
            found[site] = lens_rows(model, seen[site][0], wanted)

        return Watcher((site,), receive)

    neurons, near, heads = (Strongest(PER_TOKEN) for _ in range(3))
    watchers = [lens_at(site) for site in sites]
    watchers += [*neuron_watchers(loaded, neurons, near, largest or {}), *head_watchers(loaded, heads)]
    factors = Strongest(1 << 20)
    for dictionary in dictionaries:
        watchers += factor_watchers(dictionary, factors)
    watch(model, batch, watchers, clock or Clock())
    lens = (
        LogitLens(sites, *(torch.stack(each) for each in zip(*(found[site] for site in sites), strict=True))) if sites else None
    )
    return Look(lens, neurons.result(tokens), near.result(tokens), heads.result(tokens), factors.result(tokens))
