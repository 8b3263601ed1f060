"""Ways to pair a direction of the stream with token vectors: by their transpose, its pseudo-inverse, cosines, and more.

A projection into the vocabulary is inverted exactly by many right inverses E' of the token vectors E, but people look at the few
largest entries only, and there they differ. Each way is a `Reader` for what reads the stream and one for what writes to it, made
of the same columns. Which is best is measured in `vocabulary.truncation`, not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.readout.reader import Reader, measured

__all__ = [
    "BASES",
    "Pairing",
    "Population",
    "centred",
    "cosine",
    "paired",
    "population_of",
    "pseudo_inverse",
    "ridge",
    "standardised",
    "whitened",
]

_SHARE: Final = 0.1
"""Of the mean eigenvalue of E E^T: what `ridge` adds where nothing else is asked."""
_TINY: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Pairing:
    """How reading and writing directions meet token vectors."""

    read: Reader
    write: Reader


@dataclass(frozen=True, eq=False)
class Population:
    """Moments of many directions: what a token scores by being the token it is, whatever the direction."""

    count: int
    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]


def paired(reader: Reader, basis: str) -> Pairing:
    """The pairing of this name, of a reader without `through`: see the functions of this module. Errors: `Refusal` for an unknown name."""
    made = BASES.get(basis)
    if made is None:
        raise Refusal(f"basis {basis}", why="there is none of that name", instead=f"use one of {', '.join(BASES)}")
    return made(reader)


def centred(reader: Reader) -> Reader:
    """Token vectors less their mean. Cost: a copy of the matrix, unless it is centred already."""
    if reader.mean is None:
        return reader
    return replace(reader, matrix=reader.matrix - reader.mean.to(reader.matrix)[:, None], mean=None)


def cosine(reader: Reader) -> Reader:
    """Token vectors at length 1: a token's norm, which many directions have to thank for their first token, is gone. Cost: a copy."""
    return _scaled(reader, reader.matrix.norm(dim=0))


def ridge(reader: Reader, share: float = _SHARE) -> Reader:
    """Directions through (E E^T + lambda 1)^-1 with lambda = `share` of the mean eigenvalue of E E^T, E being d_model x vocab.

    With `share` 0 it is the pseudo-inverse E^+ = E^T (E E^T)^-1. Cost: a Cholesky decomposition of d_model x d_model; never one of E.
    Errors: `Refusal` where E E^T has no inverse: fewer tokens than d_model, say.
    """
    second = _second(reader)
    lifted = second + share * second.diagonal().mean() * torch.eye(len(second)).to(second)
    factor, failed = torch.linalg.cholesky_ex(lifted)
    too_few = share == 0 and len(reader.tokens) < len(second)
    if int(failed) or too_few:
        raise Refusal(
            "the pseudo-inverse of the token vectors",
            why=f"{len(reader.tokens)} tokens do not span all {len(second)} directions",
            instead="use the basis ridge, or more tokens",
        )
    return replace(reader, through=torch.cholesky_inverse(factor))


def pseudo_inverse(reader: Reader) -> Reader:
    """`ridge` without a ridge: p E^+ is the shortest vector over tokens that E takes back to p."""
    return ridge(reader, 0.0)


def whitened(reader: Reader) -> Reader:
    """Directions through (E E^T)^-1/2: the same way for reading and for writing, whose product is E^+ E again.

    Cost: an eigenvalue problem of size d_model. Eigenvalues below 1e-10 of the largest count as zero.
    """
    values, vectors = torch.linalg.eigh(_second(reader))
    kept = values > 1e-10 * values[-1]
    roots = torch.where(kept, values.clamp(min=_TINY).rsqrt(), 0)
    return replace(reader, through=(vectors * roots) @ vectors.T)


def population_of(directions: Float[Tensor, "unit d_model"]) -> Population:
    """Mean and covariance of directions, in float64."""
    rows = directions.double()
    mean = rows.mean(0)
    return Population(len(rows), mean, (rows - mean).T @ (rows - mean) / len(rows))


def standardised(reader: Reader, population: Population) -> Reader:
    """Scores as z-scores over a population of directions: token j's are divided by sqrt(e_j covariance e_j), in closed form.

    Read directions less `population.mean`. Tokens that score high for any direction (hubs) are no longer first everywhere.
    Cost: a copy of the matrix and 2 vocab d_model^2 FLOP.
    """
    covariance = population.covariance.to(reader.matrix)
    if reader.through is not None:
        through = reader.through.to(covariance)
        covariance = through.T @ covariance @ through
    columns = torch.cat([((covariance @ block) * block).sum(0) for block in reader.matrix.split(1 << 14, dim=1)])
    return _scaled(reader, columns.clamp(min=0).sqrt())


def _scaled(reader: Reader, lengths: Float[Tensor, " vocab"]) -> Reader:
    """Columns divided by `lengths`; those that have none stay zero."""
    matrix = (reader.matrix / lengths.clamp(min=_TINY)).masked_fill(lengths <= 0, 0)
    mean = matrix.mean(1, dtype=torch.float64)
    return replace(measured(matrix, reader.tokens, reader.source, mean), through=reader.through)


def _second(reader: Reader) -> Float[Tensor, "d_model d_model"]:
    """E E^T over the reader's tokens, in float64."""
    mean = torch.zeros(len(reader.matrix)) if reader.mean is None else reader.mean
    mean = mean.to(reader.covariance)
    return len(reader.tokens) * (reader.covariance + torch.outer(mean, mean))


def _both(reader: Reader) -> Pairing:
    return Pairing(reader, reader)


BASES: Final[Mapping[str, Callable[[Reader], Pairing]]] = {
    "transpose": lambda reader: _both(reader),
    "centred": lambda reader: Pairing(centred(reader), reader),
    "pseudo-inverse": lambda reader: Pairing(pseudo_inverse(reader), reader),
    "ridge": lambda reader: Pairing(ridge(reader), reader),
    "cosine": lambda reader: _both(cosine(reader)),
    "whitened": lambda reader: _both(whitened(reader)),
}
"""Every pairing by name. Source: Dar et al. 2022, arXiv:2209.02535, appendix A, for transpose and pseudo-inverse."""
