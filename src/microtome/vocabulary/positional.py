"""Where heads look for position's sake when positions rotate: what the mean token gives to the mean token, by distance.

The counterpart of `heads.previous_token_scores`, which reads learned positions. A head's profile itself is
`circuits.positional_profiles`; here it is a score with a control.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Weights
from microtome.model.scoring import Scoring
from microtome.vocabulary.circuits import attention_scores, before_heads, layer_heads, positional_sides, turned_by
from microtome.vocabulary.heads import POSITIONS, HeadScores, mean_embedding

__all__ = ["rotary_previous_token_scores"]


def rotary_previous_token_scores(
    weights: Weights,
    layer: int,
    scoring: Scoring,
    turns: Iterable[Float[Tensor, "draw head d_head d_head"]],
    positions: int = POSITIONS,
    *,
    mean: Float[Tensor, " d_model"] | None = None,
) -> HeadScores:
    """Mean attention to the token before in a window of the mean token alone: a stream of embeddings, exact in layer 0 only.

        mean over p >= 1 of exp(s_1) / sum over offsets o that p sees of exp(s_o)        s_o = scale q R_o k^T, soft-capped

    `scoring` is the layer's of `model.rotation.scorings_of` for `positions`. A draw turns the query inside its head before it rotates
    (see `heads.Rotations`). Sliding windows shorter than `positions` are not looked at. `mean` is the
    `heads.mean_embedding`, which is read where it is not given.
    Errors: `Refusal` for a layer that does not rotate.
    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (no arXiv entry), positional attention; Su et al. 2021,
    arXiv:2104.09864, section 3.4.
    """
    if scoring.turn is None:
        raise Refusal(
            f"what layer {layer} sees at a distance", why="its heads do not rotate", instead="use heads.previous_token_scores"
        )
    heads = layer_heads(weights, layer, turn=scoring.turn)
    row = before_heads(weights, layer, mean_embedding(weights) if mean is None else mean)
    queries, keys = positional_sides(heads, row)
    offsets = range(0 if weights.shape.causal else 1 - positions, positions)

    def looking_back(query: Float[Tensor, "*draw head d_head"]) -> Float[Tensor, "*draw head"]:
        found = attention_scores(scoring, turned_by(heads, query, keys, offsets))
        if weights.shape.causal:
            found = torch.cat([torch.full_like(found[..., 1:], -torch.inf), found], -1)
        seen = found.unfold(-1, positions, 1)[..., 1:, :].logsumexp(-1)  # of queries 1, 2, ...: offsets p - positions + 1 to p
        return (found[..., positions, None] - seen).exp().mean(-1)

    draws = [looking_back(torch.einsum("hi,dhij->dhj", queries, turn.to(queries))) for turn in turns]
    return HeadScores("previous_token_score", layer, looking_back(queries), torch.cat(draws))
