"""Tokens with themselves in a head, as its dense matrices have them."""

import pytest
import torch

from microtome.numerics import hash_parts
from microtome.vocabulary.circuits import Kind, circuits_of, layer_heads, token_rows
from microtome.vocabulary.diagonal import diagonal
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.pairs import Question
from microtome.vocabulary.subject import subject_of
from tests.toys import toy_decoder


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_the_diagonal_is_that_of_the_matrices(kind: Kind) -> None:
    subject = subject_of(toy_decoder())
    tokens, heads = subject.read.tokens[5:40], layer_heads(subject.weights, 2)
    rows, columns = token_rows(subject.read, tokens), token_rows(subject.write, tokens)
    for head, side in enumerate(circuits_of(heads, kind, rows, columns)):
        found = diagonal(subject, heads, kind, head, Question(tokens, tokens[:0], seed=3), draws=4)
        number = int(hash_parts(3, 2, head, ("ov", "qk").index(kind)))
        turns = rotations(4, 1, 8, seed=number)[:, 0]
        for values, left in ((found.z, side.left), *((found.rotated[i], side.left @ turns[i]) for i in range(4))):
            dense = left @ side.right.T
            expected = (dense.diagonal() - dense.mean()) / dense.std(correction=0)
            torch.testing.assert_close(values, expected if values.ndim else expected.mean(), rtol=1e-3, atol=1e-3)
