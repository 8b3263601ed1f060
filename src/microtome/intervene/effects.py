"""What an edit does to the model's answers: clean against edited, for several edits of the same tokens at once.

Plain functions of final states. Which edits are compared, over which windows and beside which control, is the caller's business. The
axis `variant` counts the edits that are compared with one clean run.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.model import Model, capture, unembed

__all__ = ["Predictions", "final_states", "predictions", "state_change"]

_HELD: Final = 1 << 24
"""Logits of one tile of rows."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Next-token predictions, clean against edited, in nats: losses, and KL(clean || edited) of the whole distributions."""

    clean: Float[Tensor, " row"]
    loss: Float[Tensor, "variant row"]
    kl: Float[Tensor, "variant row"]


def final_states(model: Model, batch: Batch) -> Float[Tensor, "window token d_model"]:
    """What the head reads, from one pass without the head; run inside `edited`, of the edited model."""
    site = Site("final_norm")
    return capture(model, batch, [site])[site]


def predictions(
    model: Model,
    clean: Float[Tensor, "row d_model"],
    edited: Float[Tensor, "variant row d_model"],
    targets: Int[Tensor, " row"],
) -> Predictions:
    """Losses of `targets` and divergences, by the model's own head, in tiles of rows: about 64 MiB of logits at a time, three of which are held.

    Cost: 2 d_model vocab FLOP per row and variant, and once for the clean run.
    Errors: `Refusal` where the model has no language-model head, for no variant, for sizes that do not fit each other, and for targets
    that are no ids.
    """
    _require_fitting(model, clean, edited, targets)
    size = max(1, _HELD // max(model.shape.vocab, 1))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for rows in torch.arange(len(clean), device=clean.device).split(size):
            target = targets[rows][:, None]
            before = _log_probabilities(model, clean[rows])
            found = []
            for variant in edited:
                after = _log_probabilities(model, variant[rows])
                divergence = (before.exp() * (before - after)).sum(1)
                found.append((-after.gather(1, target)[:, 0], divergence))
            loss, kl = (torch.stack(each).cpu().double() for each in zip(*found, strict=True))
            parts.append((-before.gather(1, target)[:, 0].cpu().double(), loss, kl))
    clean_loss, loss, kl = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return Predictions(clean_loss, loss, kl)


def _require_fitting(model: Model, clean: Tensor, edited: Tensor, targets: Tensor) -> None:
    sizes = f"{tuple(clean.shape)} clean, {tuple(edited.shape)} edited and {len(targets)} targets"
    if clean.ndim != 2 or edited.ndim != 3 or edited.shape[1:] != clean.shape or targets.shape != clean.shape[:1]:
        why = f"final states and targets do not fit: there are {sizes}"
        raise Refusal(
            "predictions", why=why, instead="give (row, d_model), (variant, row, d_model) and one target for each row"
        )
    if not len(edited) or not len(clean):
        raise Refusal(
            "predictions", why=f"there is nothing to predict: {sizes}", instead="give one row and one variant at least"
        )
    if bool(((targets < 0) | (targets >= model.shape.vocab)).any()):
        why = f"targets go from {int(targets.min())} to {int(targets.max())}, and ids from 0 to {model.shape.vocab - 1}"
        raise Refusal("predictions", why=why, instead="leave out the rows that have no target (-100)")


def _log_probabilities(model: Model, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    return unembed(model, states).float().log_softmax(1)


def state_change(
    clean: Float[Tensor, "row d_model"], edited: Float[Tensor, "variant row d_model"]
) -> Float[Tensor, "variant row"]:
    """1 - cosine between the clean and the edited state of each token: 0 for no turn, 1 for a right angle, whatever the length.

    Errors: `Refusal` for sizes that do not fit.
    """
    if edited.ndim != 3 or edited.shape[1:] != clean.shape:
        why = f"there are {tuple(clean.shape)} clean and {tuple(edited.shape)} edited"
        raise Refusal("a change of states", why=why, instead="give (row, d_model) and (variant, row, d_model)")
    return 1 - torch.cosine_similarity(clean.cpu().double(), edited.cpu().double(), dim=-1)
