"""Part of one model and part of another run as one, with a matrix made of their token vectors in between: no training.

States of the first model are carried into the stream of the second by way of the tokens both know. The second is a classifier here,
whose answers say how much of the meaning arrived. Comparing parameters instead of running them is `alignment`; training the classifier
belongs to the caller.

Axes of this module: `d_left` and `d_right` are coordinates of the streams of the first and the second model, `keep` is how many blocks
of the first one run, `class` an answer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.intervene import Edit, Set, edited
from microtome.model import Model, capture, final_norm
from microtome.model.norms import normed
from microtome.vocabulary.shared import Kernels, kernels_of, shared_tokens
from microtome.vocabulary.subject import Subject

__all__ = [
    "KERNELS", "PAPER", "PLAIN", "Classifier", "Stitch", "accuracies", "answers", "leaving", "stitched", "stitching_kernel",
    "trained_kernels",
]  # fmt: skip

_RIDGE: Final = 0.1
"""Of the mean eigenvalue of E_B E_B^T."""
_LITTLE: Final = 1e-4
"""Of the mean eigenvalue of the states' second moments, where a stitch is trained."""
_FAINT: Final = 1e-10
"""Of the largest eigenvalue: below it a direction is rounding, of no token."""


@dataclass(frozen=True)
class Stitch:
    """What happens to a state on its way, besides the matrix.

    Leaving, it may go through the first model's last norm. Entering, the second model may take it for token embeddings, and add its
    positions again, with what else it does to embeddings.
    """

    leaving: Literal["normed", "as it is"] = "as it is"
    entering: Literal["embedded", "as it is"] = "as it is"


PLAIN: Final = Stitch()
PAPER: Final = Stitch("normed", "embedded")
"""What the published code does without saying so. Source: Dar et al. 2022, arXiv:2209.02535, section 5.2."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model with a linear layer behind the state at `site`, averaged over the tokens of a window that are no padding.

    `since` is the first block that is run on states of another model.
    """

    model: Model
    since: int
    site: Site
    weight: Float[Tensor, "d_right class"]
    bias: Float[Tensor, " class"]

    def __post_init__(self) -> None:
        if not 0 <= self.since < self.model.shape.layers:
            raise Refusal(
                f"block {self.since} of {self.model.name}",
                why=f"it has {self.model.shape.layers}, counted from 0",
                instead="stitch to one of them",
            )

    def answers(self, states: Float[Tensor, "window token d_right"], batch: Batch) -> Float[Tensor, "window class"]:
        """Logits of what is at `site`."""
        there = (batch.roles != Role.PAD).to(states)
        pooled = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return pooled.float() @ self.weight.to(pooled.device) + self.bias.to(pooled.device)


def stitching_kernel(
    left: Subject, right: Subject, name: str = "pseudo-inverse", *, seed: int = 0
) -> Float[Tensor, "d_left d_right"]:
    """The matrix of this name, of `KERNELS`, that takes states of one model to the other, made of both models' output token vectors.

    Source: Dar et al. 2022, arXiv:2209.02535, section 5.2.
    Errors: `Refusal` for an unknown name, unrelated vocabularies, and fewer shared tokens than the second model has directions.
    Cost: that of `kernels_of`, and one decomposition of d x d.
    """
    if name not in KERNELS:
        raise Refusal(f"kernel {name}", why="there is none of that name", instead=f"use one of {', '.join(KERNELS)}")
    kernels = kernels_of(left.write, right.write, shared_tokens(left, right))
    if kernels.tokens < max(len(kernels.left), len(kernels.right)):
        raise Refusal(
            f"{left.name} stitched to {right.name}",
            why=f"{kernels.tokens} shared tokens do not span {max(len(kernels.left), len(kernels.right))} directions",
            instead="take models with more tokens in common",
        )
    return KERNELS[name](kernels, seed).float()


def stitched(
    classifier: Classifier,
    batch: Batch,
    states: Float[Tensor, "window token d_left"],
    kernel: Float[Tensor, "d_left d_right"],
    entering: Literal["embedded", "as it is"] = "as it is",
) -> Float[Tensor, "window class"]:
    """Answers of the classifier to states of another model, which `kernel` takes into its stream before block `since`.

    The blocks before run too, on nothing, and what they make is replaced.
    """
    model, site = classifier.model, Site("resid_pre", classifier.since)
    arrived = states.float() @ kernel.to(states.device)
    if entering == "embedded":
        arrived = _embedded(model, arrived)
    blank = replace(batch, ids=torch.zeros_like(batch.ids), extra={})
    with edited(model, blank, [Edit(site, Set(arrived))]):
        return classifier.answers(capture(model, blank, [classifier.site])[classifier.site], batch)


def answers(classifier: Classifier, batch: Batch) -> Float[Tensor, "window class"]:
    """Answers of the classifier to text it reads itself."""
    return classifier.answers(capture(classifier.model, batch, [classifier.site])[classifier.site], batch)


def leaving(
    model: Model, batch: Batch, how: Literal["normed", "as it is"] = "as it is"
) -> list[Float[Tensor, "window token d_left"]]:
    """States after 0, 1, ... all blocks of a model, as they leave it."""
    last = model.shape.layers - 1
    sites = [*(Site("resid_pre", layer) for layer in range(last + 1)), Site("resid_post", last)]
    found = capture(model, batch, sites)
    with torch.inference_mode():
        return [final_norm(model, found[site]) if how == "normed" else found[site] for site in sites]


def accuracies(
    left: Model,
    classifier: Classifier,
    batches: Iterable[Batch],
    kernels: Mapping[str, Sequence[Float[Tensor, "d_left d_right"]]],
    stitch: Stitch = PLAIN,
) -> dict[str, Float[Tensor, " keep"]]:
    """The share of windows that get their label (`Batch.label`), for each number of blocks of the first model that run before the stitch.

    `kernels` has one matrix for each such number, or a single one for all.
    Cost: one pass of the first model, and for each kernel and number of blocks one of the second.
    """
    right = {name: torch.zeros(left.shape.layers + 1, dtype=torch.float64) for name in kernels}
    windows = 0
    for batch in batches:
        windows += len(batch.label)
        for keep, states in enumerate(leaving(left, batch, stitch.leaving)):
            for name, each in kernels.items():
                kernel = each[keep] if len(each) > 1 else each[0]
                found = stitched(classifier, batch, states, kernel, stitch.entering).argmax(1)
                right[name][keep] += int((found.cpu() == batch.label.cpu()).sum())
    return {name: each / max(windows, 1) for name, each in right.items()}


def trained_kernels(
    left: Model, classifier: Classifier, batches: Iterable[Batch], how: Literal["normed", "as it is"] = "as it is"
) -> list[Float[Tensor, "d_left d_right"]]:
    """For each number of blocks the matrix that takes states of one model to those of the other best, in least squares over `batches`.

    What can be reached by a matrix that has seen both models at work; it is made for stitches that enter as they are.
    Cost: one pass of each model, and 2 row d_left (d_left + d_right) FLOP for each number of blocks.
    """
    site = Site("resid_pre", classifier.since)
    sums: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        counted = batch.roles != Role.PAD
        there = capture(classifier.model, batch, [site])[site][counted].double()
        for keep, states in enumerate(leaving(left, batch, how)):
            rows = states[counted].double()
            one, two = rows.T @ rows, rows.T @ there
            if keep == len(sums):
                sums.append((one, two))
            else:
                sums[keep] = (sums[keep][0] + one, sums[keep][1] + two)
    return [_solved(one, two, _LITTLE).float() for one, two in sums]


def _embedded(model: Model, values: Float[Tensor, "window token d_right"]) -> Float[Tensor, "window token d_right"]:
    """What the model makes of token embeddings before its first block: learned positions, the first type of token, a norm."""
    weights = model.weights
    if weights.has("W_pos"):
        values = values + weights.get("W_pos")[: values.shape[1]].to(values)
    if weights.has("W_type"):
        values = values + weights.get("W_type")[0].to(values)
    return normed(weights.norm("embed_norm"), values) if weights.has("embed_norm") else values


def _solved(second: Float[Tensor, "d d"], product: Float[Tensor, "d other"], share: float = 0.0) -> Float[Tensor, "d other"]:
    """(second + lambda 1)^+ product, with lambda `share` of the mean eigenvalue of `second`.

    Directions that no token has (a folded layer norm takes one) are left out: their eigenvalues are rounding.
    """
    values, vectors = torch.linalg.eigh(second + share * second.diagonal().mean() * torch.eye(len(second)).to(second))
    kept = values > _FAINT * values[-1]
    inverse = torch.where(kept, 1 / values.clamp(min=_FAINT * values[-1]), 0)
    return (vectors * inverse) @ (vectors.T @ product)


def _inverted(kernels: Kernels, share: float = 0.0) -> Float[Tensor, "d_left d_right"]:
    return _solved(kernels.right, kernels.across.T, share).T


def _root(second: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """second^-1/2; eigenvalues below 1e-10 of the largest count as zero."""
    values, vectors = torch.linalg.eigh(second)
    kept = values > 1e-10 * values[-1]
    return (vectors * torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0)) @ vectors.T


def _rotation(matrix: Float[Tensor, "d_left d_right"]) -> Float[Tensor, "d_left d_right"]:
    """The nearest matrix with orthonormal rows or columns, whichever are fewer."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def _procrustes(kernels: Kernels) -> Float[Tensor, "d_left d_right"]:
    turned = _rotation(kernels.across)
    return turned * ((turned * kernels.across).sum() / ((turned.T @ kernels.left @ turned).trace()))


def _random(kernels: Kernels, seed: int) -> Float[Tensor, "d_left d_right"]:
    drawn = torch.randn(kernels.across.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned = _rotation(drawn)
    return turned * (_inverted(kernels.uncentred(), _RIDGE).norm() / math.sqrt(min(drawn.shape)))


def _transposed(kernels: Kernels) -> Float[Tensor, "d_left d_right"]:
    return kernels.across / kernels.right.diagonal().mean()


KERNELS: Final[Mapping[str, Callable[[Kernels, int], Float[Tensor, "d_left d_right"]]]] = {
    "pseudo-inverse": lambda kernels, seed: _inverted(kernels.uncentred()),
    "ridge": lambda kernels, seed: _inverted(kernels.uncentred(), _RIDGE),
    "centred": lambda kernels, seed: _inverted(kernels),
    "transpose": lambda kernels, seed: _transposed(kernels.uncentred()),
    "whitened": lambda kernels, seed: (
        _root(kernels.uncentred().left) @ kernels.uncentred().across @ _root(kernels.uncentred().right)
    ),
    "procrustes": lambda kernels, seed: _procrustes(kernels.uncentred()),
    "tokens": lambda kernels, seed: _solved(kernels.uncentred().left, kernels.uncentred().across),
    "random": lambda kernels, seed: _random(kernels, seed),
}
"""Ways to go from one stream to another, E_A and E_B being token vectors, d x tokens.

`pseudo-inverse` E_A E_B^+ is the paper's: a state's scores of all tokens, and the shortest state of the other model with scores nearest to
them. `ridge` has 0.1 of the mean eigenvalue of E_B E_B^T added before it is inverted; `centred` takes the mean token off first; `transpose` is
E_A E_B^T, scaled as the inverse is on average; `whitened` is (E_A E_A^T)^-1/2 E_A E_B^T (E_B E_B^T)^-1/2. `procrustes` is the rotation (and
scale) that takes tokens of one model nearest to those of the other, `tokens` the matrix that does. `random` is a control: a random rotation
as large as the ridge's matrix.
"""
