"""Heads that put a token beside itself: where a token stands in its own row of a head's circuits.

Less sensitive to few large eigenvalues than the scores of `heads`, and dearer.
"""

from collections.abc import Iterable
from functools import partial
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.numerics import diagonal_places
from microtome.vocabulary.circuits import Circuit, Kind, circuits_of, layer_heads, stream_rows, token_rows
from microtome.vocabulary.heads import HeadScores, one_by_one
from microtome.vocabulary.subject import Subject

__all__ = ["self_rank_scores"]

_SELF: Final[dict[Kind, str]] = {"qk": "duplicate_token_score", "ov": "copying_rank"}


def self_rank_scores(
    subject: Subject,
    layer: int,
    kind: Kind,
    tokens: Int[Tensor, " row"],
    turns: Iterable[Float[Tensor, "draw head d_head d_head"]],
) -> HeadScores:
    """Where a token stands among `tokens` in its own row of a circuit, on average: 1 always first, 0.5 anywhere, 0 always last.

    Of qk it says whether a token looks for the same token, of ov whether it writes itself (near 0: suppresses itself). Less sensitive to
    few large eigenvalues than `heads.score_heads`. Token vectors are input embeddings where a head reads; rows and columns are centred
    over `tokens`. Draws are the head rotated inside.
    Cost: 2 row^2 d_head FLOP per head and draw.
    """
    heads = layer_heads(subject.weights, layer, folding=subject.folding)
    rows = _centred(_entering(subject, layer, tokens))
    columns = _centred(token_rows(subject.write, tokens).cpu()) if kind == "ov" else rows
    found = list(circuits_of(heads, kind, rows, columns))

    def places(turn: Float[Tensor, "draw head d_head d_head"]) -> Float[Tensor, "draw head"]:
        return torch.stack([one_by_one(partial(_self_rank, each), turn[:, each.head]) for each in found], 1)

    values = places(torch.eye(heads.q.shape[1]).expand(1, len(found), -1, -1))[0]
    return HeadScores(_SELF[kind], layer, values, torch.cat([places(turn) for turn in turns]))


def _self_rank(circuit: Circuit, turns: Float[Tensor, "draw inner inner"]) -> Float[Tensor, " draw"]:
    return torch.stack([diagonal_places(circuit.left @ turn, circuit.right).double().mean() for turn in turns]).float()


def _entering(subject: Subject, layer: int, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """Tokens as heads of a layer meet them."""
    if subject.folding == "raw":
        return subject.weights.get("W_E")[tokens].to("cpu", torch.float32)
    return stream_rows(subject.weights, layer, tokens)


def _centred(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return rows - rows.mean(0)
