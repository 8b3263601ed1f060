"""What directions are read with: the model's token vectors, with the norms on the way folded in.

A reader is a value made once from the weights. Which directions are worth reading is the business of the lenses.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Norm, Weights

__all__ = ["Reader", "fold_norm", "output_reader", "written"]

_BLOCK = 4096
"""Tokens folded at a time."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Token vectors as columns: score of token j for direction p is p . matrix[:, j], relative to the mean over tokens.

    `tokens` are the token ids of the columns (the excluded ones are left out), `source` the weight they come from: W_U, or the
    input embedding W_E where the checkpoint has no head. `covariance` is that of the columns over tokens, so that the mean and
    standard deviation of a direction's scores over the vocabulary are 0 and sqrt(p covariance p) in closed form.
    """

    matrix: Float[Tensor, "d_model vocab"]
    tokens: Int[Tensor, " vocab"]
    source: Literal["W_U", "W_E"]
    covariance: Float[Tensor, "d_model d_model"]

    def spread(self, directions: Float[Tensor, "unit d_model"]) -> Float[Tensor, " unit"]:
        """Standard deviation of each direction's scores over the vocabulary."""
        rows = directions.to(self.covariance)
        return ((rows @ self.covariance) * rows).sum(1).clamp(min=0).sqrt()


def output_reader(weights: Weights, exclude: Collection[int] = (), *, device: torch.device | None = None) -> Reader:
    """The reader of a model's output: W_U (W_E without a head), gain of the final norm folded in, centred over tokens.

    Gain-only: the norm's division by the stream's length is left out, which keeps the reading linear and changes no ranking;
    a layer norm's centring is linear and is folded in. Centring over tokens changes no softmax. `exclude` are token ids that
    nobody wants to see: special and unused ones. It is kept on `device`, by default that of the weights.
    Cost: memory for one float32 copy of the matrix, 2 vocab d_model^2 FLOP.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    source: Literal["W_U", "W_E"] = "W_U" if weights.has("W_U") else "W_E"
    rows = weights.get("W_U").T if source == "W_U" else weights.get("W_E")
    device = device or rows.device
    tokens = torch.arange(len(rows))
    if exclude:
        tokens = tokens[~torch.isin(tokens, torch.tensor(sorted(exclude)))]
        if not len(tokens):
            raise Refusal("token vectors", why="every token is excluded", instead="exclude fewer")
    norm = weights.norm("final_norm") if weights.has("final_norm") else None
    folded = torch.empty((len(tokens), rows.shape[1]), dtype=torch.float32, device=device)
    mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    for block, mine in zip(folded.split(_BLOCK), tokens.split(_BLOCK), strict=True):
        vectors = rows[mine.to(rows.device)].to(folded)
        block.copy_(vectors if norm is None else fold_norm(norm, vectors))
        mean += block.sum(0, dtype=torch.float64) / len(tokens)
    covariance = torch.zeros((rows.shape[1], rows.shape[1]), dtype=torch.float64, device=device)
    for block in folded.split(_BLOCK):
        block -= mean.float()
        covariance += (block.T @ block).double() / len(tokens)
    return Reader(folded.T, tokens.to(device), source, covariance)


def fold_norm(norm: Norm, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Vectors that take an inner product with a norm's output, as vectors that take it with the norm's input.

    x . (rows C Gamma), up to the positive factor that the norm divides by. Gamma is the gain; C removes the mean over d_model
    and is there for a layer norm only. The norm's bias is a constant and is left out.
    """
    scaled = rows * norm.gain.to(rows)
    return scaled - scaled.mean(1, keepdim=True) if norm.kind == "layer" else scaled


def written(
    weights: Weights, layer: int, rows: Float[Tensor, "unit d_model"], branch: Literal["attn", "mlp"]
) -> Float[Tensor, "unit d_model"]:
    """Vectors that a branch adds up, as they arrive in the stream: through the norm behind the branch, where there is one.

    Up to a positive factor per token, and without the norm's bias.
    """
    name = f"{branch}_norm_post"
    if not weights.has(name, layer):
        return rows
    norm = weights.norm(name, layer)
    centred = rows - rows.mean(1, keepdim=True) if norm.kind == "layer" else rows
    return centred * norm.gain.to(rows)
