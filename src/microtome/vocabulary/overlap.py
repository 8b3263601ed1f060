"""Do vectors that work together speak of the same tokens: a unit's key and its value, what a head takes and what it writes?

Two vectors are alike if their k tokens of largest absolute score overlap. The control pairs the same vectors at random within the layer:
tokens that any vector scores high on overlap there too. Only token ids are kept of a vector. Interactions of whole heads belong in `pairs`.

The vectors inside a head are its own only up to an invertible matrix between its two halves: what is said of W_V and W_O, or W_Q and
W_K, is true of how the weights are written down, not of what the head does. So it is measured in a random basis of each head as well.

Axes of this module: `vector` counts a layer's vectors on either side, `pair` those pairs that are listed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import WeightAddress
from microtome.model import Shape
from microtome.numerics import benjamini_hochberg, hash_parts, matmul_topk, permutation_p
from microtome.readout import Reader, central_interval, quickest
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.parameters import Block, block_of, group_named, layers_of
from microtome.vocabulary.subject import Subject

__all__ = [
    "PARTNERS",
    "Chosen",
    "Overlap",
    "chosen_tokens",
    "expected_by_chance",
    "jaccard",
    "largest",
    "overlap_findings",
    "overlap_of",
    "overlap_rows",
    "overlaps",
    "overlaps_of_layer",
    "partner_rows",
]

Chosen = Literal["magnitude", "top"]
"""Which k tokens: those of largest absolute score, as in the paper, or those of largest score."""
PARTNERS: Final = (("W_in", "W_out"), ("W_gate", "W_out"), ("W_up", "W_out"), ("W_V", "W_O"), ("W_Q", "W_K"))
"""Groups whose vectors belong together one by one."""
LARGEST_SHARE: Final = 0.15
"""Of k tokens that two vectors have in common, from which on the pair is listed."""
SHUFFLED: Final = "the same vectors, paired at random within the layer"
UNIFORM: Final = "random sets of tokens"
_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class Overlap:
    """How alike the pairs of vectors of a layer are.

    `similarity` is the Jaccard index of each pair's token sets, `shuffled` its mean over partners drawn at random; `draws` are means over
    the layer, of shuffled pairs, and `share_draws` the shares of these that have 15 % of k tokens in common. `tokens` are the ids that
    listed pairs share, in the order of the left vector, -1 behind the last; `listed` are the pairs' numbers. `turned` is the mean in a
    random basis of each head, NaN where there are no heads.
    """

    left: str
    right: str
    layer: int
    k: int
    addresses: Sequence[tuple[WeightAddress, WeightAddress]]
    similarity: Float[Tensor, " vector"]
    shuffled: Float[Tensor, " vector"]
    draws: Float[Tensor, " draw"]
    share_draws: Float[Tensor, " draw"]
    listed: Int[Tensor, " pair"]
    tokens: Int[Tensor, "pair k"]
    turned: float
    uniform: float

    @property
    def mean(self) -> float:
        """Over the layer's pairs."""
        return float(self.similarity.mean())

    @property
    def share(self) -> float:
        """Of pairs that are listed."""
        return len(self.listed) / len(self.similarity)


def overlaps(
    subject: Subject,
    partners: Sequence[tuple[str, str]] = PARTNERS,
    *,
    k: int = 100,
    chosen: Chosen = "magnitude",
    draws: int = 1000,
    seed: int = 0,
) -> Iterator[Overlap]:
    """The overlap of each pair of groups that the model has, in each layer that has both. k is at most the number of tokens shown.

    Cost: 2 d_model vocab FLOP per vector, heads twice, and `draws` gathered numbers per vector; a read of each group, and of both groups
    of each pair; memory for the token ids of a layer, and for two groups of it.
    Source: Dar et al. 2022, arXiv:2209.02535, appendix B.1.
    """
    weights, k = subject.weights, min(k, len(subject.write.tokens))
    names = [name for name in dict.fromkeys(sum(partners, ())) if layers_of(weights, group_named(name))]
    for layer in range(subject.shape.layers):
        ids: dict[str, Tensor] = {}
        for name in names:
            if layer in layers_of(weights, group_named(name)):
                block = block_of(weights, group_named(name), layer, folding=subject.folding)
                ids[name] = chosen_tokens(block.rows, _reader(subject, block), k, chosen)
        yield from overlaps_of_layer(subject, layer, ids, partners, chosen=chosen, draws=draws, seed=seed)


def overlaps_of_layer(
    subject: Subject,
    layer: int,
    ids: Mapping[str, Int[Tensor, "vector k"]],
    partners: Sequence[tuple[str, str]] = PARTNERS,
    *,
    chosen: Chosen = "magnitude",
    draws: int = 1000,
    seed: int = 0,
) -> Iterator[Overlap]:
    """The overlap of each pair of groups of which `ids` has what their vectors in a layer chose.

    Cost: 2 d_model vocab FLOP per vector of a head, `draws` gathered numbers per vector, and a read of both groups of each pair.
    """
    for pair in partners:
        if all(name in ids for name in pair):
            left, right = (block_of(subject.weights, group_named(name), layer, folding=subject.folding) for name in pair)
            own = ids[pair[0]], ids[pair[1]]
            yield overlap_of(subject, (left, right), own, k=own[0].shape[1], chosen=chosen, draws=draws, seed=seed)


def overlap_of(
    subject: Subject,
    sides: tuple[Block, Block],
    ids: tuple[Int[Tensor, "_ k"], Int[Tensor, "_ k"]],
    *,
    k: int,
    chosen: Chosen,
    draws: int,
    seed: int,
) -> Overlap:
    """The overlap of two blocks of a layer whose vectors chose these tokens."""
    layer = sides[0].layer
    assert layer is not None, "partners are in layers"
    of_heads = sides[0].group.branch == "attn"
    lead = (sides[0].lead or 1, sides[1].lead or 1)
    order = tuple(_expanded(len(each.rows), count, max(lead)) for each, count in zip(sides, lead, strict=True))
    left, right = ids[0][order[0]], ids[1][order[1]]
    number = int(hash_parts(seed, layer))
    turned = torch.nan
    if of_heads:
        rows = tuple(each.rows[mine].unflatten(0, (max(lead), -1)) for each, mine in zip(sides, order, strict=True))
        turn = rotations(1, max(lead), rows[0].shape[1], seed=number)[0]
        written = (
            chosen_tokens((turn @ r).flatten(0, 1), _reader(subject, b), k, chosen) for r, b in zip(rows, sides, strict=True)
        )
        turned = float(jaccard(*written).mean())
    strata = 1 if of_heads else max(lead)
    means, shares, shuffled = _shuffled(left, right, strata, draws, number)
    similarity = jaccard(left, right)
    listed = (_common(similarity, k) >= LARGEST_SHARE * k).nonzero()[:, 0]
    names = tuple(each.addresses for each in sides)
    addresses = [(names[0][a], names[1][b]) for a, b in zip(*(mine.tolist() for mine in order), strict=True)]
    tokens = _shared(left[listed], right[listed])
    return Overlap(
        sides[0].group.name, sides[1].group.name, layer, k, addresses, similarity, shuffled, means, shares, listed, tokens, turned,
        expected_by_chance(len(subject.write.tokens), k),
    )  # fmt: skip


def chosen_tokens(rows: Float[Tensor, "row d_model"], reader: Reader, k: int, chosen: Chosen) -> Int[Tensor, "row k"]:
    """The k tokens of each row, best first; ties to the lower id. Cost: 2 d_model vocab FLOP per row."""
    found = [torch.empty(0, k, dtype=torch.int64)]
    for block in rows.split(_ROWS):
        ends = matmul_topk(reader.entering(block), reader.columns, k, precision=quickest(reader.matrix.device))
        column = ends.top_index
        if chosen == "magnitude":
            index, value = torch.stack([ends.top_index, ends.bottom_index], 1), torch.stack([ends.top, ends.bottom], 1)
            column = largest(index, value)
        found.append(reader.tokens[column].cpu())
    return torch.cat(found)


def largest(tokens: Int[Tensor, "row end k"], scores: Float[Tensor, "row end k"]) -> Int[Tensor, "row k"]:
    """Of the k tokens at both ends of each row the k of largest absolute score, best first; ties to the lower id."""
    both = tokens.flatten(1).sort(1)
    value = scores.abs().flatten(1).gather(1, both.indices)
    value[:, 1:][both.values[:, 1:] == both.values[:, :-1]] = -torch.inf  # both ends of a small vocabulary
    return both.values.gather(1, value.sort(dim=1, descending=True, stable=True).indices[:, : tokens.shape[2]])


def jaccard(left: Int[Tensor, "vector k"], right: Int[Tensor, "vector k"]) -> Float[Tensor, " vector"]:
    """Tokens that two sets of k have in common over those that either has."""
    both = torch.cat([left, right], 1).sort(1).values
    common = (both[:, 1:] == both[:, :-1]).sum(1).double()
    return common / (2 * left.shape[1] - common)


def expected_by_chance(vocab: int, k: int) -> float:
    """Mean Jaccard index of two sets of k tokens of `vocab`, each drawn from all alike: hypergeometric, exact."""
    from scipy.stats import hypergeom

    common = np.arange(max(0, 2 * k - vocab), k + 1)
    return float((hypergeom.pmf(common, vocab, k, k) * common / (2 * k - common)).sum())


def overlap_rows(found: Sequence[Overlap], run: str) -> pa.Table:
    """Rows of `vocabulary_stats` for each pair of groups and layer.

    `similarity`, beside shuffled pairs; `similar_share`, pairs with 15 % of their tokens in common, beside the same; `similarity_shuffled`,
    beside random sets: what hubs alone do; and for heads `similarity_turned`, in a random basis of each, beside shuffled pairs.
    """
    rows: list[dict[str, object]] = []
    quality = _q(found)
    for number, each in enumerate(found):
        means, shares = (
            torch.cat([draws.mean()[None], central_interval(draws)]).tolist() for draws in (each.draws, each.share_draws)
        )
        place = {"run": run, "group": f"{each.left}-{each.right}", "layer": each.layer}
        beside = {"control": means[0], "control_kind": SHUFFLED, "control_lo": means[1], "control_hi": means[2]}
        among = {"control": shares[0], "control_kind": SHUFFLED, "control_lo": shares[1], "control_hi": shares[2]}
        rows.append({**place, "stat": "similarity", "value": each.mean, **beside, "q": float(quality[number, 0])})
        rows.append({**place, "stat": "similar_share", "value": each.share, **among, "q": float(quality[number, 1])})
        hubs = {"value": means[0], "control": each.uniform, "control_kind": UNIFORM}
        rows.append({**place, "stat": "similarity_shuffled", **hubs})
        if each.turned == each.turned:
            rows.append({**place, "stat": "similarity_turned", "value": each.turned, **beside})
    spec = TABLES["vocabulary_stats"]
    rows.sort(key=lambda row: tuple(row[name] for name in spec.key))
    return pa.Table.from_pylist(rows, spec.schema)


def partner_rows(found: Sequence[Overlap]) -> pa.Table:
    """Rows of `links` for the listed pairs: their Jaccard index, beside that of the left vector with a partner drawn at random."""
    rows = [
        {
            "unit": str(each.addresses[pair][0]),
            "other": str(each.addresses[pair][1]),
            "kind": "same tokens",
            "score": float(each.similarity[pair]),
            "control": float(each.shuffled[pair]),
        }
        for each in found
        for pair in each.listed.tolist()
    ]
    spec = TABLES["links"]
    rows.sort(key=lambda row: tuple(row[name] for name in spec.key))
    return pa.Table.from_pylist(rows, spec.schema)


def overlap_findings(found: Sequence[Overlap], shape: Shape) -> list[Row]:
    """For each pair of groups, the layer where aligned pairs have most more in common than shuffled ones, if q is at most 0.01."""
    q = _q(found)[:, 0].tolist()
    rows: list[Row] = []
    for names in dict.fromkeys((each.left, each.right) for each in found):
        mine = [(each, quality) for each, quality in zip(found, q, strict=True) if (each.left, each.right) == names]
        sure = [(each, quality) for each, quality in mine if quality <= LARGEST_Q]
        if not sure:
            continue
        each, quality = max(sure, key=lambda entry: entry[0].mean - float(entry[0].draws.mean()))
        control, (low, high) = float(each.draws.mean()), central_interval(each.draws).tolist()
        sentence = (
            f"{each.left} and {each.right} speak of the same tokens most in layer {each.layer}: a pair's {each.k} tokens of largest score by size have a "
            f"Jaccard index of {each.mean:.4f} (shuffled within the layer: {control:.4f}, 95 % of {len(each.draws)} draws within "
            f"{low:.4f} to {high:.4f}); more than shuffled in {len(sure)} of {len(mine)} layers of {shape.layers}"
        )
        rows.append(
            {"kind": "overlap", "subject": f"layer {each.layer}", "sentence": sentence, "value": each.mean, "control": control,
             "control_kind": SHUFFLED, "q": quality}
        )  # fmt: skip
    return rows


def _q(found: Sequence[Overlap]) -> Float[Tensor, "pair two"]:
    """q-values of the mean index and of the share of similar pairs, over both of all of them."""
    p = [[_p(each.mean, each.draws), _p(each.share, each.share_draws)] for each in found]
    return benjamini_hochberg(torch.tensor(p, dtype=torch.float64).flatten()).view(-1, 2)


def _p(value: float, draws: Float[Tensor, " draw"]) -> Float[Tensor, ""]:
    return permutation_p(torch.tensor([value], dtype=torch.float64), draws[:, None])[0]


def _reader(subject: Subject, block: Block) -> Reader:
    return subject.read if block.group.end == "read" else subject.write


def _expanded(rows: int, lead: int, most: int) -> Int[Tensor, " vector"]:
    """Rows of `lead` heads, each repeated for the heads that share it, `most` in all."""
    return torch.arange(rows).view(lead, -1).repeat_interleave(most // lead, 0).flatten()


def _common(similarity: Float[Tensor, "..."], k: int) -> Float[Tensor, "..."]:
    """How many of k tokens sets of this Jaccard index have in common."""
    return (2 * k * similarity / (1 + similarity)).round()


def _shuffled(
    left: Int[Tensor, "vector k"], right: Int[Tensor, "vector k"], strata: int, draws: int, seed: int
) -> tuple[Float[Tensor, " draw"], Float[Tensor, " draw"], Float[Tensor, " vector"]]:
    """Means and listed shares of shuffled pairs, and each left vector's mean over all partners.

    How many tokens any two vectors have in common is a product of sparse matrices, made for a block of vectors at a time.
    """
    generator, k = np.random.default_rng(seed % 2**32), left.shape[1]
    means, shares, own = np.zeros(draws), np.zeros(draws), []
    for mine, others in zip(left.chunk(strata), right.chunk(strata), strict=True):
        columns = max(int(mine.max()), int(others.max())) + 1
        partners = _incidence(others, columns).T.tocsr()
        order = np.stack([generator.permutation(len(mine)) for _ in range(draws)], 1)
        for start in range(0, len(mine), _ROWS):
            block = mine[start : start + _ROWS]
            common = (_incidence(block, columns) @ partners).toarray()
            similar = common / (2 * k - common)
            own.append(similar.mean(1))
            rows, place = np.arange(len(block))[:, None], order[start : start + len(block)]
            means += similar[rows, place].sum(0) / len(left)
            shares += (common[rows, place] >= LARGEST_SHARE * k).sum(0) / len(left)
    return torch.from_numpy(means), torch.from_numpy(shares), torch.from_numpy(np.concatenate(own))


def _incidence(ids: Int[Tensor, "vector k"], columns: int) -> Any:  # of scipy, which is imported where it is used
    from scipy.sparse import csr_array

    rows, k = ids.shape
    return csr_array((np.ones(rows * k, np.int32), ids.numpy().ravel(), np.arange(0, rows * k + 1, k)), shape=(rows, columns))


def _shared(left: Int[Tensor, "pair k"], right: Int[Tensor, "pair k"]) -> Int[Tensor, "pair k"]:
    """Tokens that both have, in the order of the left, -1 behind the last."""
    there = (
        torch.stack([torch.isin(a, b) for a, b in zip(left, right, strict=True)])
        if len(left)
        else torch.zeros_like(left, dtype=torch.bool)
    )
    order = (~there).int().argsort(dim=1, stable=True)
    return torch.where(there, left, -1).gather(1, order)
