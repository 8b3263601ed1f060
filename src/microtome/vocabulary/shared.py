"""What two models have in common: tokens, and the token vectors of both as three small matrices.

Everything that compares directions of two models by their tokens needs the models' vocabularies in these matrices only: a correlation over
all tokens is a form in d_left x d_right. Layers and units are compared in `alignment` and `matching`, states carried over in `stitching`.

Axes of this module: `d_left` and `d_right` are coordinates of the streams of the first and the second model, `shared` is a token of both.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.readout import Reader, texts_of
from microtome.vocabulary.subject import Subject

__all__ = ["Kernels", "Shared", "kernels_of", "numbered", "shared_tokens", "shuffled_kernels", "standardised"]

FEWEST: Final = 100
LEAST_SHARE: Final = 0.05
_BLOCK: Final = 4096
"""Tokens whose vectors are held at a time."""
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Shared:
    """Tokens of two models with the same text: the id of each in the first model and in the second."""

    left: Int[Tensor, " shared"]
    right: Int[Tensor, " shared"]

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True, eq=False)
class Kernels:
    """Token vectors of two models, E_A (d_left x shared) and E_B: their means, and products of what remains when these are taken off.

    With E~ for a centred E: `across` is E~_A E~_B^T, `left` E~_A E~_A^T, `right` E~_B E~_B^T, all in float64. The correlation over tokens
    of directions p and q is p across q / sqrt(p left p  q right q).
    """

    tokens: int
    across: Float[Tensor, "d_left d_right"]
    left: Float[Tensor, "d_left d_left"]
    right: Float[Tensor, "d_right d_right"]
    left_mean: Float[Tensor, " d_left"]
    right_mean: Float[Tensor, " d_right"]

    def uncentred(self) -> "Kernels":
        """The same products of the token vectors as they are, and means of zero."""
        mine, other = self.left_mean, self.right_mean
        return Kernels(
            self.tokens,
            self.across + self.tokens * torch.outer(mine, other),
            self.left + self.tokens * torch.outer(mine, mine),
            self.right + self.tokens * torch.outer(other, other),
            torch.zeros_like(mine),
            torch.zeros_like(other),
        )


def shared_tokens(left: Subject, right: Subject) -> Shared:
    """Tokens that both models show and whose texts are equal, in the order of the first model's.

    Texts that several tokens of a model have are left out. Two models without a tokenizer are matched by token id.
    Errors: `Refusal` where one model has a tokenizer and the other has none, where fewer than 100 tokens are shared (all, in smaller
    vocabularies), or fewer than 5 % of the smaller vocabulary.
    """
    if numbered(left) != numbered(right):
        bare = left if numbered(left) else right
        raise Refusal(
            f"{left.name} beside {right.name}",
            why=f"{bare.name} comes without its tokenizer, so nobody can say which tokens the two share",
            instead=f"put the files of its tokenizer (tokenizer.json and what goes with it) beside the weights of {bare.name}",
        )
    mine, other = _by_text(left), _by_text(right)
    common = [text for text in mine if text in other]
    smaller = min(len(mine), len(other))
    if len(common) < max(min(FEWEST, smaller), LEAST_SHARE * smaller, 1):
        raise Refusal(
            f"{left.name} beside {right.name}",
            why=f"their vocabularies are unrelated: of {len(mine)} and {len(other)} tokens they share {len(common)}",
            instead="take two models whose tokenizers are the same, or much alike",
        )
    return Shared(torch.tensor([mine[text] for text in common]), torch.tensor([other[text] for text in common]))


def numbered(subject: Subject) -> bool:
    """Whether a model has no tokenizer, so that its tokens are numbers."""
    return list(subject.texts) == texts_of(None, len(subject.texts))


def kernels_of(left: Reader, right: Reader, shared: Shared) -> Kernels:
    """The matrices of two readers' token vectors. What directions go through before they meet them (`Reader.through`) is not in them.

    Cost: 2 shared (d_left^2 + d_left d_right + d_right^2) FLOP in float64, and memory for a block of tokens.
    """
    means = [_mean(reader, ids) for reader, ids in ((left, shared.left), (right, shared.right))]
    sums = [
        torch.zeros(len(a), len(b), dtype=torch.float64) for a, b in ((means[0], means[1]), (means[0],) * 2, (means[1],) * 2)
    ]
    for rows in zip(_blocks(left, shared.left), _blocks(right, shared.right), strict=True):
        a, b = (block.double() - mean for block, mean in zip(rows, means, strict=True))
        for total, (one, two) in zip(sums, ((a, b), (a, a), (b, b)), strict=True):
            total += one.T @ two
    return Kernels(len(shared), *sums, *means)


def shuffled_kernels(
    left: Reader, right: Reader, shared: Shared, draws: int, seed: int
) -> Iterator[Float[Tensor, "d_left d_right"]]:
    """E~_A P E~_B^T for random permutations P of the tokens, one after the other, in float32: what `Kernels.across` is by chance.

    Cost: 2 shared d_left d_right FLOP each.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = _mean(left, shared.left).float()
    for _ in range(draws):
        other = shared.right[torch.randperm(len(shared), generator=generator)]
        total = torch.zeros(left.matrix.shape[0], right.matrix.shape[0])
        for mine, theirs in zip(_blocks(left, shared.left), _blocks(right, other), strict=True):
            total += (mine - mean).T @ theirs
        yield total


def standardised(
    rows: Float[Tensor, "unit d_model"], reader: Reader, second: Float[Tensor, "d_model d_model"]
) -> Float[Tensor, "unit d_model"]:
    """Directions p as they meet the token vectors, over sqrt(p second p): over the root of the sum of squares of their centred scores.

    Those that score every token alike become 0, so that they correlate with nothing. In float64 inside, float32 outside.
    """
    met = reader.entering(rows).cpu().double()
    spread = ((met @ second) * met).sum(1, keepdim=True).clamp(min=0).sqrt()
    scale = _TINY * float(second.diagonal().mean().clamp(min=0).sqrt())
    nothing = spread <= scale * met.norm(dim=1, keepdim=True)
    return (met / spread.masked_fill(nothing, 1)).masked_fill(nothing, 0).float()


def _by_text(subject: Subject) -> dict[str, int]:
    """Ids of the tokens that are shown, by texts that are theirs alone."""
    shown: list[int] = subject.write.tokens.tolist()
    times = Counter(subject.texts[token] for token in shown)
    texts = {subject.texts[token]: token for token in shown}
    return {text: token for text, token in texts.items() if text and times[text] == 1}


def _blocks(reader: Reader, ids: Int[Tensor, " shared"]) -> Iterator[Float[Tensor, "shared d_model"]]:
    """Vectors of tokens, a block at a time, on the CPU."""
    columns = torch.searchsorted(reader.tokens.cpu(), ids)
    for some in columns.split(_BLOCK):
        yield reader.matrix.T[some.to(reader.matrix.device)].cpu()


def _mean(reader: Reader, ids: Int[Tensor, " shared"]) -> Float[Tensor, " d_model"]:
    return torch.stack([block.double().sum(0) for block in _blocks(reader, ids)]).sum(0) / len(ids)
