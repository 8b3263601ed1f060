"""What a head does from a token to the same token: what it copies, and what it looks for again.

Entries on the diagonal of its circuits, beside the same head turned inside. Pairs of different tokens are those of `pairs`; the score of a
head over the whole vocabulary, from its eigenvalues, is in `heads`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.numerics.product_topk import product_diagonal
from microtome.vocabulary.background import background, mapped, side_moments
from microtome.vocabulary.circuits import Kind, LayerHeads
from microtome.vocabulary.pairs import Question, circuit_asked, turns_of_head
from microtome.vocabulary.subject import Subject

__all__ = ["Diagonal", "diagonal"]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The entry of each token with itself in a head as z of all entries; `rotated` are means over tokens, of the head turned inside."""

    token: Int[Tensor, " row"]
    z: Float[Tensor, " row"]
    rotated: Float[Tensor, " draw"]


def diagonal(subject: Subject, heads: LayerHeads, kind: Kind, head: int, question: Question, *, draws: int = 200) -> Diagonal:
    """Every token of `question.rows` with itself in one head: what ov copies, and what qk looks for again. Columns are the same tokens.

    Turned inside by R, entries are l_i R r_i: their mean over tokens is sum(R * M) with M the mean of l_i r_i^T, so draws cost no pass
    over tokens. Cost: that of the factors.
    """
    circuit = circuit_asked(subject, heads, kind, head, replace(question, columns=question.rows))
    left, right = side_moments(circuit.left), side_moments(circuit.right)
    met = circuit.left.double().T @ circuit.right.double() / len(circuit.left)
    turns = turns_of_head(circuit, draws, question.seed).to(met)
    rotated = [background(mapped(left, turn.T), right).z((turn * met).sum()) for turn in turns]
    z = background(left, right).z(product_diagonal(circuit.left, circuit.right).value)
    return Diagonal(question.rows, z.cpu(), torch.stack(rotated).cpu())
