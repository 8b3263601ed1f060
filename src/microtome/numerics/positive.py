"""Systems of linear equations whose matrix is symmetric and positive: many small ones at a time, as least squares and Newton's steps give them.

Solved by Cholesky, and never by `torch.linalg.solve`: of several systems larger than about 150 that one calls a threaded LU from
several threads at once, which with MKL can stop for ever (pytorch/pytorch#142815, #181570).
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["solve_positive"]


def solve_positive(
    system: Float[Tensor, "row n n"], right: Float[Tensor, "row n"], dependent: float = 1e-12
) -> Float[Tensor, "row n"]:
    """The solution x of `system` x = `right`, row by row. Where a pivot is not above `dependent` times its diagonal there are many: a small ridge chooses one.

    Cost: n^3 / 3 FLOP a row.
    """
    own = system.diagonal(dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(system)
    pivot = factor.diagonal(dim1=1, dim2=2).square()
    bad = (failed > 0) | ~(pivot > dependent * own).all(1)
    if bool(bad.any()):
        ridge = (dependent * own[bad].amax(1, keepdim=True)).expand(-1, system.shape[1])
        factor[bad] = torch.linalg.cholesky_ex(system[bad] + torch.diag_embed(ridge)).L
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
