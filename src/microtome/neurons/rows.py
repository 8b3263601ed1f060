"""Activations of some tokens, kept whole: what methods that look at all tokens together are given.

For samples of a page or two; what is counted over a whole corpus is a fold. What is done with the rows belongs in the methods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Refusal, Role, Site
from microtome.model import Model, observe

__all__ = ["TokenRows", "token_rows"]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens in the order in which they were read: their ids, windows, places, documents, halves, and their rows at some sites."""

    id: Int[Tensor, " row"]
    window: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    half: Int[Tensor, " row"]
    values: Mapping[Site, Float[Tensor, "row _"]]

    def of(self, half: Half) -> "TokenRows":
        """The tokens of one half of the documents."""
        mine = self.half == int(half)
        values = {site: value[mine] for site, value in self.values.items()}
        return TokenRows(self.id[mine], self.window[mine], self.place[mine], self.document[mine], self.half[mine], values)


def token_rows(model: Model, batches: Iterable[Batch], sites: Sequence[Site], *, roles: frozenset[Role] = CONTENT) -> TokenRows:
    """Rows in float32 of the tokens of `roles`: by default not the first of a window, whose activations are of another size.

    Errors: `Refusal` for a mixture of experts, and where no token is counted.
    Cost: a forward pass up to the last site. Memory: 4 bytes for each token, site and unit.
    """
    columns: list[tuple[Tensor, ...]] = []
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for batch in batches:
        row, place = batch.counted(roles).cpu().nonzero(as_tuple=True)

        def receive(site: Site, value: Tensor | ExpertRows, row: Tensor = row, place: Tensor = place) -> None:
            if isinstance(value, ExpertRows):
                why = "most of its units see no token at all, by the router's choice"
                raise Refusal(f"activations at {site}", why=why, instead="use a model with dense feed-forward blocks")
            kept[site].append(value[row.to(value.device), place.to(value.device)].float().cpu())

        with torch.inference_mode():
            observe(model, batch, sites, receive)
        ids, window, document, half = (each.cpu().long() for each in (batch.ids, batch.window, batch.document, batch.half))
        columns.append((ids[row, place], window[row], place, document[row], half[row]))
    if not sum(len(each[0]) for each in columns):
        raise Refusal("activations of no token", why="none of the tokens is counted", instead="give texts of two words or more")
    token, window, place, document, half = (torch.cat(each) for each in zip(*columns, strict=True))
    return TokenRows(token, window, place, document, half, {site: torch.cat(each) for site, each in kept.items()})
