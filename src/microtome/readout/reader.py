"""What directions are read with: the model's token vectors, with the norms on the way folded in.

A reader is a value made once from the weights. Other ways to pair a direction with token vectors (pseudo-inverse, cosine, ...) belong
in `bases`; which directions are worth reading is the business of the lenses.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Norm, Weights
from microtome.numerics import Columns

__all__ = ["Folding", "Reader", "fold_norm", "input_reader", "measured", "output_reader", "written"]

Folding = Literal["folded", "raw"]
"""Whether weights are taken as the stream meets them, with gains and centrings of the norms in between, or as they are stored."""

_BLOCK = 4096
"""Tokens folded at a time."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Token vectors as columns: score of token j for direction p is p . through . matrix[:, j].

    `tokens` are the token ids of the columns (the excluded ones are left out), `source` the weight they come from: W_U, or the
    input embedding W_E where the checkpoint has no head. `mean` and `covariance` are those of the columns over tokens, so that the
    mean and standard deviation of a direction's scores over the vocabulary are p mean and sqrt(p covariance p), in closed form.
    `through` is what directions are multiplied by before they meet the columns (see `bases`); None is the identity.
    """

    matrix: Float[Tensor, "d_model vocab"]
    tokens: Int[Tensor, " vocab"]
    source: Literal["W_U", "W_E"]
    covariance: Float[Tensor, "d_model d_model"]
    mean: Float[Tensor, " d_model"] | None = None
    through: Float[Tensor, "d_model d_model"] | None = None

    @cached_property
    def columns(self) -> Columns:
        """The token vectors for `numerics.matmul_topk`, rounded once for all that is read. Memory: half a copy of them, once rounded."""
        return Columns(self.matrix.T.to(torch.float32).contiguous())

    def entering(self, directions: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
        """Directions as they meet the columns, in the matrix's dtype and on its device."""
        rows = directions.to(self.matrix.device)
        return (rows if self.through is None else rows.to(self.through) @ self.through).to(self.matrix)

    def average(self, directions: Float[Tensor, "unit d_model"]) -> Float[Tensor, " unit"]:
        """Mean of each direction's scores over the vocabulary, in float64; 0 where token vectors are centred."""
        rows = self.entering(directions).to(self.covariance)
        return torch.zeros(len(rows)).to(rows) if self.mean is None else rows @ self.mean.to(rows)

    def spread(self, directions: Float[Tensor, "unit d_model"]) -> Float[Tensor, " unit"]:
        """Standard deviation of each direction's scores over the vocabulary, in float64."""
        rows = self.entering(directions).to(self.covariance)
        return ((rows @ self.covariance) * rows).sum(1).clamp(min=0).sqrt()


def output_reader(
    weights: Weights, exclude: Collection[int] = (), *, folding: Folding = "folded", device: torch.device | None = None
) -> Reader:
    """The reader of a model's output: W_U (W_E without a head), gain of the final norm folded in, centred over tokens.

    Gain-only: the norm's division by the stream's length is left out, which keeps the reading linear and changes no ranking;
    a layer norm's centring is linear and is folded in. Centring over tokens changes no softmax. `folding` "raw" leaves out gain and
    centrings, as the paper does. `exclude` are token ids that nobody wants to see: special and unused ones. It is kept on `device`, by
    default that of the weights.
    Cost: memory for one float32 copy of the matrix, 2 vocab d_model^2 FLOP.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    source: Literal["W_U", "W_E"] = "W_U" if weights.has("W_U") else "W_E"
    rows = weights.get("W_U").T if source == "W_U" else weights.get("W_E")
    norm = weights.norm("final_norm") if folding == "folded" and weights.has("final_norm") else None
    return _reader(rows, norm, source, exclude, folding, device)


def input_reader(
    weights: Weights, exclude: Collection[int] = (), *, folding: Folding = "folded", device: torch.device | None = None
) -> Reader:
    """The reader of a model's input: W_E, through a norm behind the embedding where there is one, centred over tokens.

    A token is what it is when it enters the stream, so this reads what layers look for in tokens; in a model whose embeddings are tied
    it differs from `output_reader` by the final norm alone. Options, cost: as there.
    Errors: `Refusal` where the model embeds no tokens.
    """
    norm = weights.norm("embed_norm") if folding == "folded" and weights.has("embed_norm") else None
    return _reader(weights.get("W_E"), norm, "W_E", exclude, folding, device)


def _reader(
    rows: Float[Tensor, "vocab d_model"],
    norm: Norm | None,
    source: Literal["W_U", "W_E"],
    exclude: Collection[int],
    folding: Folding,
    device: torch.device | None,
) -> Reader:
    """Rows that are not excluded, folded, as columns in float32."""
    device = device or rows.device
    tokens = torch.arange(len(rows))
    if exclude:
        tokens = tokens[~torch.isin(tokens, torch.tensor(sorted(exclude)))]
        if not len(tokens):
            raise Refusal("token vectors", why="every token is excluded", instead="exclude fewer")
    folded = torch.empty((len(tokens), rows.shape[1]), dtype=torch.float32, device=device)
    mean = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    for block, mine in zip(folded.split(_BLOCK), tokens.split(_BLOCK), strict=True):
        vectors = rows[mine.to(rows.device)].to(folded)
        block.copy_(vectors if norm is None else fold_norm(norm, vectors))
        mean += block.sum(0, dtype=torch.float64) / len(tokens)
    if folding == "raw":
        return measured(folded.T, tokens.to(device), source, mean)
    for block in folded.split(_BLOCK):
        block -= mean.float()
    return measured(folded.T, tokens.to(device), source, None)


def measured(
    matrix: Float[Tensor, "d_model vocab"],
    tokens: Int[Tensor, " vocab"],
    source: Literal["W_U", "W_E"],
    mean: Float[Tensor, " d_model"] | None,
) -> Reader:
    """A reader of these columns, whose mean over tokens is `mean` (None: zero). Cost: 2 vocab d_model^2 FLOP."""
    width = len(matrix)
    second = torch.zeros((width, width), dtype=torch.float64, device=matrix.device)
    for block in matrix.T.split(_BLOCK):
        about = block if mean is None else block - mean.float()
        second += (about.T @ about).double() / matrix.shape[1]
    return Reader(matrix, tokens, source, second, mean)


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
