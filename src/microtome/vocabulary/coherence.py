"""How much the tokens of a list have to do with one another: which units and heads have a subject, found and not hand-picked.

A list is measured by the cosines of its tokens' vectors, two spellings of a word aside, and beside two controls that it must both pass.
Random tokens that are as frequent: frequent tokens are alike, and so are rare ones. And lists of directions that mean nothing: the first
tokens of any direction are alike, because they are the first of one direction. Lists are made in `projection` and `pairs`.

Axes of this module: `bin` are tokens of similar frequency, `edge` where they begin and end; `side` is an end of a
direction, or a side of a head's pairs; `list` counts lists.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import UnitAddress, WeightAddress
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import input_reader, pooled_chance, quoted, top_tokens
from microtome.readout.bases import centred
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import HEADS, LARGEST_Q, Row
from microtome.vocabulary.pairs import SIGNS, LayerPairs
from microtome.vocabulary.parameters import Block
from microtome.vocabulary.projection import Projected, Readable, Standing, meaningless, readable, readable_rows
from microtome.vocabulary.subject import Subject

__all__ = [
    "Coherence",
    "Lists",
    "TokenVectors",
    "coherence_findings",
    "coherence_q",
    "coherence_rows",
    "coherences",
    "coherent_shares",
    "expected",
    "head_lists",
    "matched",
    "mean_cosines",
    "share_rows",
    "token_vectors",
    "unit_lists",
]

BINS: Final = 20
FREQUENT: Final = "random tokens as frequent"
TURNED: Final = "pairs of the heads, each rotated inside"
_SAMPLED: Final = 128
"""Tokens of a bin of whose cosines the variance is taken."""
_DRAWN: Final = 4096
"""Lists of tokens as frequent that are drawn for a block: all blocks' make one tail."""
_GATHERED: Final = 1 << 24
"""Numbers of token vectors gathered at a time."""
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """Directions of the tokens that are shown, of length 1, with the word that each spells and the bin of its frequency.

    `order` has the rows by bin, bin b's from `edges[b]` to `edges[b + 1]`. `cosine` is the mean cosine of a token of one bin and another
    token of one, exact; `variance` that of these cosines, of a sample of tokens.
    """

    tokens: Int[Tensor, " vocab"]
    rows: Float[Tensor, "vocab d_model"]
    word: Int[Tensor, " vocab"]
    bin: Int[Tensor, " vocab"]
    order: Int[Tensor, " vocab"]
    edges: Int[Tensor, " edge"]
    cosine: Float[Tensor, "bin bin"]
    variance: Float[Tensor, "bin bin"]


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of token ids of the units of a block at each side, and of directions that mean nothing; -1 where there is no token."""

    group: str
    layer: int | None
    addresses: Sequence[str]
    sides: Sequence[str]
    tokens: Int[Tensor, "unit side k"]
    null: Int[Tensor, "draw side k"]
    null_kind: str


@dataclass(frozen=True, eq=False)
class Coherence:
    """Mean cosines within the lists of a block's units, what is expected of tokens as frequent, and what the null lists have.

    `distance` is that from what is expected, over the width of such lists; `drawn` those of lists drawn as frequent. NaN for lists that
    have no two words.
    """

    lists: Lists
    values: Float[Tensor, "unit side"]
    expected: Float[Tensor, "unit side"]
    distance: Float[Tensor, "unit side"]
    drawn: Float[Tensor, " list"]
    null: Float[Tensor, "draw side"]

    @property
    def control(self) -> Float[Tensor, "unit side"]:
        """The larger of what tokens as frequent and what the null lists have on average: a coherent list has more than both."""
        return torch.maximum(self.expected, self.null.mean(0).expand_as(self.expected))


def token_vectors(
    subject: Subject, counts: Int[Tensor, " token"] | None = None, *, bins: int = BINS, leading: int | None = None
) -> TokenVectors:
    """Input embeddings of the tokens shown, less their mean, at length 1: what words are, whichever vectors wrote the lists.

    `leading` principal directions are taken off, a hundredth of d_model where it is None: they tell frequent tokens from rare ones, and so
    make lists of either, those of mixtures too, look like a subject.
    Source: Mu et al. 2017, arXiv:1702.01417, section 2.

    Bins are quantiles of `counts` (of each token id in a text), or else of token ids, which tokenizers number from frequent to rare.
    Cost: a copy of the embeddings in float32, 2 vocab d_model^2 FLOP.
    """
    shown = subject.write.tokens.cpu()
    hidden = frozenset(range(subject.shape.vocab)) - frozenset(shown.tolist())
    reader = centred(input_reader(subject.weights, hidden, folding="raw", device=subject.write.matrix.device))
    rows = reader.matrix.T.contiguous()
    leading = len(reader.matrix) // 100 if leading is None else leading
    if leading:
        axes = torch.linalg.eigh(reader.covariance).eigenvectors[:, -leading:].to(rows)
        rows -= (rows @ axes) @ axes.T
    rows /= rows.norm(dim=1, keepdim=True).clamp(min=_TINY)
    rank = shown if counts is None else -counts[shown]
    order = rank.argsort(stable=True)
    bins = max(1, min(bins, len(shown) // 4))
    edges = (torch.arange(bins + 1) * len(shown)) // bins
    number = torch.empty_like(order)
    number[order] = torch.repeat_interleave(torch.arange(bins), edges.diff())
    sums = torch.stack([rows[mine.to(rows.device)].sum(0, dtype=torch.float64) for mine in order.tensor_split(edges[1:-1])])
    sizes = edges.diff().double()
    cosine = (sums @ sums.T).cpu()
    cosine = (cosine - cosine.new_ones(bins).mul(sizes).diag()) / (sizes[:, None] * sizes - sizes.diag()).clamp(min=1)
    word = subject.classes[shown]
    return TokenVectors(shown, rows, word, number, order, edges, cosine, _variance(rows, order, edges))


def mean_cosines(lists: Int[Tensor, "*list k"], vectors: TokenVectors) -> Float[Tensor, "*list"]:
    """Mean cosine over pairs of a list whose words differ; NaN where there are none. Cost: 2 k^2 d_model FLOP per list."""
    flat = lists.reshape(-1, lists.shape[-1])
    found = [torch.empty(0, dtype=torch.float64)]
    for block in flat.split(max(1, _GATHERED // (flat.shape[1] * vectors.rows.shape[1]))):
        place, counted = _places(block, vectors)
        rows = vectors.rows[place.to(vectors.rows.device)]
        found.append(_mean((rows @ rows.mT).cpu(), counted))
    return torch.cat(found).reshape(lists.shape[:-1])


def expected(lists: Int[Tensor, "*list k"], vectors: TokenVectors) -> tuple[Float[Tensor, "*list"], Float[Tensor, "*list"]]:
    """What lists of random tokens as frequent as each of a list's have, on average, in closed form; and their width.

    The width is that of as many independent cosines: a scale for distances, whose tail is drawn (`coherences`).
    """
    flat = lists.reshape(-1, lists.shape[-1])
    mean, width = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    for block in flat.split(1 << 14):
        place, counted = _places(block, vectors)
        bins = vectors.bin[place]
        pairs = bins[:, :, None], bins[:, None, :]
        mean.append(_mean(vectors.cosine[pairs], counted))
        variance = _mean(vectors.variance[pairs], counted)
        width.append((2 * variance / counted.sum((1, 2))).clamp(min=_TINY).sqrt())
    return torch.cat(mean).reshape(lists.shape[:-1]), torch.cat(width).reshape(lists.shape[:-1])


def matched(lists: Int[Tensor, "*list k"], vectors: TokenVectors, *, seed: int) -> Int[Tensor, "*list k"]:
    """Random tokens in place of a list's, each of the same bin."""
    bins = vectors.bin[_looked_up(lists, vectors)]
    drawn = torch.rand(lists.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place = vectors.edges[bins] + (drawn * vectors.edges.diff()[bins]).long()
    return torch.where(lists < 0, -1, vectors.tokens[vectors.order[place]])


def unit_lists(projected: Iterable[Projected], subject: Subject, *, draws: int = 512, seed: int = 0) -> Iterator[Lists]:
    """Lists of vectors that `projection.project` read, hubs kept, and those of `draws` mixtures of each block.

    Units of W_out are neurons. A block of fewer than eight vectors is compared with directions drawn from all alike.
    Cost: 2 draws d_model vocab FLOP per block.
    """
    for each in projected:
        block = each.block
        reader = subject.read if block.group.end == "read" else subject.write
        number = int(hash_parts(seed, block.layer or 0, draws))
        rows, kind = meaningless(block.rows, draws, number)
        null = top_tokens(rows, reader, each.random)
        names = [_unit(block, address) for address in block.addresses]
        yield Lists(block.group.name, block.layer, names, ("top", "bottom"), each.top.tokens, null.tokens, f"tokens of {kind}")


def head_lists(found: Sequence[LayerPairs]) -> list[Lists]:
    """The best pairs of all heads as lists, one for each side of the pairs; null are those of the heads rotated inside."""
    lists = []
    for kind, end in dict.fromkeys((each.kind, each.end) for each in found):
        mine = [each for each in found if (each.kind, each.end) == (kind, end)]
        names = [str(UnitAddress("heads", head, layer=each.layer)) for each in mine for head in range(len(each.token))]
        tokens = torch.cat([torch.stack([each.token, each.other], 1) for each in mine]).cpu()
        sides = [f"{kind}_{side}_{end}" for side in ("token", "other")]
        null = torch.cat([each.turned for each in mine]).cpu()
        lists.append(Lists(f"heads {kind}{SIGNS[mine[0].end]}", None, names, sides, tokens, null, TURNED))
    return lists


def coherences(lists: Iterable[Lists], vectors: TokenVectors, *, seed: int = 0) -> list[Coherence]:
    """The coherence of every list, a block at a time. Cost: see `mean_cosines`; null lists and 4,096 drawn ones a block besides."""
    found = []
    for each in lists:
        values, (mean, width) = mean_cosines(each.tokens, vectors), expected(each.tokens, vectors)
        number = int(hash_parts(seed, each.layer or 0))
        generator = torch.Generator().manual_seed(number)
        flat = each.tokens.flatten(0, 1)
        drawn = matched(flat[torch.randint(len(flat), (_DRAWN,), generator=generator)], vectors, seed=number)
        their_mean, their_width = expected(drawn, vectors)
        distance = (mean_cosines(drawn, vectors) - their_mean) / their_width
        null = mean_cosines(each.null, vectors)
        null = torch.where(null.isnan(), null.nanmean(0), null)
        found.append(Coherence(each, values, mean, (values - mean) / width, distance[~distance.isnan()], null))
    return found


def coherence_q(found: Sequence[Coherence]) -> list[Float[Tensor, "unit side"]]:
    """q-values of every list over all blocks given together. A list's p is the larger of those beside both controls."""
    drawn = torch.cat([each.drawn for each in found]).sort().values
    by_null = pooled_chance([each.values for each in found], [each.null for each in found], "greater")
    tests = []
    for each, beside in zip(found, by_null, strict=True):
        above = len(drawn) - torch.searchsorted(drawn, each.distance.contiguous())
        p = torch.maximum((1 + above).double() / (1 + len(drawn)), beside)
        tests.append(torch.where(each.values.isnan(), torch.nan, p))
    q = benjamini_hochberg(torch.cat([p.flatten() for p in tests])).split([p.numel() for p in tests])
    return [mine.view_as(p) for mine, p in zip(q, tests, strict=True)]


def coherence_rows(found: Sequence[Coherence], q: Sequence[Float[Tensor, "unit side"]], run: str) -> pa.Table:
    """Rows of `unit_stats`, `coherence_` and the side; `control_kind` says which control is the larger. Lists without two words have none."""
    tables = [TABLES["unit_stats"].schema.empty_table()]
    for each, quality in zip(found, q, strict=True):
        control = each.control
        for number, side in enumerate(each.lists.sides):
            values = each.values[:, number]
            kept = (~values.isnan()).nonzero()[:, 0]
            kinds = np.where((each.expected[:, number] >= control[:, number])[kept].numpy(), FREQUENT, each.lists.null_kind)
            empty = pa.nulls(len(kept), pa.float64())
            columns = {
                "unit": pa.array([each.lists.addresses[int(unit)] for unit in kept], pa.string()),
                "site": pa.nulls(len(kept), pa.string()),
                "stat": pa.array([f"coherence_{side}"] * len(kept), pa.string()),
                "value": values[kept].numpy(),
                "control": control[kept, number].numpy(),
                "control_kind": pa.array(kinds.tolist(), pa.string()),
                "lo": empty,
                "hi": empty,
                "q": quality[kept, number].numpy(),
                "run": pa.array([run] * len(kept), pa.string()),
            }
            tables.append(pa.table(columns).cast(TABLES["unit_stats"].schema))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def coherent_shares(found: Sequence[Coherence], *, seed: int) -> list[Readable]:
    """How many units of each block have a list more coherent than 99 % of the null's, see `projection.readable`."""
    return readable(
        [Standing(each.lists.group, each.lists.layer, each.values, each.null, each.lists.null_kind) for each in found],
        seed=seed,
    )


def share_rows(found: Sequence[Readable], run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: the share of coherent units of each block."""
    table = readable_rows(found, run)
    names = table.schema.field("stat").type
    return table.set_column(table.schema.get_field_index("stat"), "stat", pa.array(["coherent_share"] * len(table)).cast(names))


def coherence_findings(found: Sequence[Coherence], q: Sequence[Float[Tensor, "unit side"]], texts: Sequence[str]) -> list[Row]:
    """The most coherent lists (q at most 0.01), farthest above their control first; of lists that share a word of three, the first."""
    entries = []
    for each, quality in zip(found, q, strict=True):
        effect = each.values - each.control
        for unit, side in ((quality <= LARGEST_Q) & (effect > 0)).nonzero().tolist():
            entries.append(
                (-float(effect[unit, side]), each.lists.addresses[unit], side, unit, each, float(quality[unit, side]))
            )
    rows: list[Row] = []
    said: set[str] = set()
    for _, address, side, unit, each, quality in sorted(entries, key=lambda entry: entry[:3]):
        words = quoted([texts[int(token)] for token in each.lists.tokens[unit, side] if token >= 0])
        mine = {word.casefold() for word in words.split(", ")}
        if mine & said or len(rows) == HEADS:
            continue
        said |= mine
        value, control = float(each.values[unit, side]), float(each.control[unit, side])
        frequent = float(each.expected[unit, side]) >= control
        kind = FREQUENT if frequent else each.lists.null_kind
        place = each.lists.sides[side].replace("_", " ")
        sentence = f"{address} is about one thing at {place}: {words}, whose token vectors have a mean cosine of {value:.2f} ({kind}: {control:.2f})"
        rows.append(
            {"kind": "coherent list", "subject": address, "sentence": sentence, "value": value, "control": control,
             "control_kind": kind, "q": quality}
        )  # fmt: skip
    return rows


def _places(lists: Int[Tensor, "list k"], vectors: TokenVectors) -> tuple[Int[Tensor, "list k"], Bool[Tensor, "list k k"]]:
    """Rows of the tokens of lists, and which pairs count: two tokens, of different words."""
    place = _looked_up(lists, vectors)
    word, there = vectors.word[place], lists >= 0
    return place, (word[:, :, None] != word[:, None, :]) & there[:, :, None] & there[:, None, :]


def _looked_up(lists: Int[Tensor, "*list k"], vectors: TokenVectors) -> Int[Tensor, "*list k"]:
    return torch.searchsorted(vectors.tokens, lists.cpu().clamp(min=0).contiguous()).clamp(max=len(vectors.tokens) - 1)


def _mean(pairs: Float[Tensor, "list k k"], counted: Bool[Tensor, "list k k"]) -> Float[Tensor, " list"]:
    return (pairs.double() * counted).sum((1, 2)) / counted.sum((1, 2))


def _variance(
    rows: Float[Tensor, "vocab d_model"], order: Int[Tensor, " vocab"], edges: Int[Tensor, " edge"]
) -> Float[Tensor, "bin bin"]:
    """Variance of the cosines of tokens of two bins, over evenly spaced tokens of each."""
    parts = order.tensor_split(edges[1:-1])
    each = min(_SAMPLED, min(len(part) for part in parts))
    chosen = torch.stack([part[(torch.arange(each) * len(part)) // each] for part in parts])
    sample = rows[chosen.flatten().to(rows.device)]
    cosines = (sample @ sample.T).cpu().double().fill_diagonal_(torch.nan).view(len(parts), each, len(parts), each)
    mean = cosines.nanmean((1, 3), keepdim=True)
    return (cosines - mean).square().nanmean((1, 3)).nan_to_num()


def _unit(block: Block, address: WeightAddress) -> str:
    """The unit that a vector is of, or the vector."""
    if block.group.name == "W_out":
        return str(UnitAddress("neurons", address.index, layer=address.layer, expert=address.expert))
    return str(address)
