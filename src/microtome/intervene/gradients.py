"""What a model's answer owes to each number at a site, to first order: gradients at sites, and what is made of one backward pass.

Attribution along a path belongs in `integrated`; exact effects, which take a run each, in `effects`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.intervene.answers import Question, answers
from microtome.model import Model
from microtome.model.edit import edit_hooks
from microtome.model.hooks import attached

__all__ = ["Watched", "attribution_patching", "gradient_times_activation", "gradients_at", "watched"]


@dataclass(frozen=True, eq=False)
class Watched:
    """What passed at sites in the last pass: `values`, and `offsets`, zeros that were added there and whose gradients are those of the site."""

    values: dict[Site, Tensor] = field(default_factory=dict)
    offsets: dict[Site, Tensor] = field(default_factory=dict)


@contextmanager
def watched(model: Model, batch: Batch, sites: Iterable[Site]) -> Iterator[Watched]:
    """Have gradients of what happens at `sites` in every pass of `batch` inside the `with` block that keeps gradients.

    Adding 0 changes no number, and the gradient of an answer in that 0 is the whole derivative at the site, what later sites pass on of it
    included. Inside `edited`, sites hold what the edits have made.
    Errors: `Refusal` for sites that cannot be changed, see `model.edit_hooks`.
    """
    seen = Watched()

    def through(site: Site) -> Callable[[Tensor], Tensor]:
        def add(value: Tensor) -> Tensor:
            seen.values[site] = value.detach()
            seen.offsets[site] = torch.zeros_like(value, requires_grad=True)
            return value + seen.offsets[site]

        return add

    with attached(edit_hooks(model, batch, {site: through(site) for site in dict.fromkeys(sites)})):
        yield seen


def gradients_at(
    model: Model, batch: Batch, question: Question, sites: Sequence[Site]
) -> tuple[dict[Site, Float[Tensor, "window token *any"]], dict[Site, Float[Tensor, "window token *any"]]]:
    """Values and gradients of each window's answer at `sites`, from one forward and one backward pass.

    Cost: about three forward passes. Memory: the activations of one pass, kept.
    """
    with watched(model, batch, sites) as seen:
        answers(model, batch, question, gradients="kept").sum().backward()
    gradients = {site: torch.zeros_like(v) if (g := v.grad) is None else g for site, v in seen.offsets.items()}
    return seen.values, gradients


def gradient_times_activation(
    model: Model, batch: Batch, question: Question, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "window token *any"]]:
    """What h dA/dh is at every token and unit of `sites`: to first order, what the answer A loses where h is set to 0.

    Exact where A is linear between h and 0: in an activation that only the last layer's logits read, say. Unchanged where a unit is scaled
    or reversed against what it writes.
    """
    values, gradients = gradients_at(model, batch, question, sites)
    return {site: values[site].float() * gradients[site].float() for site in sites}


def attribution_patching(
    model: Model,
    batch: Batch,
    other: Mapping[Site, Float[Tensor, "window token *any"]],
    question: Question,
) -> dict[Site, Float[Tensor, "window token *any"]]:
    """(h' - h) dA/dh at every token and unit: to first order, what the answer gains where h is replaced by `other`'s h' there alone.

    `other` is what another run of as many tokens had at the sites, from `model.capture`; where it is the clean run and `batch` the corrupted
    one, this is what restoring each number would bring.
    Source: Nanda 2023, Attribution patching (no arXiv entry); Syed et al. 2023, arXiv:2310.10348, section 3.
    Errors: `Refusal` for values of another size.
    """
    sites = list(other)
    values, gradients = gradients_at(model, batch, question, sites)
    return {site: (_alike(site, other[site], values[site]) - values[site].float()) * gradients[site].float() for site in sites}


def _alike(site: Site, given: Tensor, there: Tensor) -> Tensor:
    if given.shape != there.shape:
        why = f"the other run has {tuple(given.shape)}, and this one {tuple(there.shape)}"
        raise Refusal(f"patching at {site}", why=why, instead="give prompts of as many tokens each")
    return given.to(there.device, torch.float32)
