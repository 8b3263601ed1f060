"""Heads that map a word to a related one, a country to its capital say: read from W_VO alone, for lists of pairs of words.

Row s of W_E' W_VO W_U says what a head writes where it attends to s. A head has a relation if the target is among the first of the row
for more pairs than with targets shuffled among them: that all capitals score high for any country is not enough. Pairs that a head
itself puts first belong in `pairs`.

Axes of this module: `pair` is a pair of a relation, `source` a token that is the source of one, `inner` a coordinate of d_head.

Source: Elhelo and Geva 2024, arXiv:2412.11965, section 3.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.model.allocator import give_back_freed_memory
from microtome.model.first_block import first_mlp
from microtome.numerics import benjamini_hochberg, hash_parts, matmul_topk, permutation_p
from microtome.readout import quickest
from microtome.vocabulary.circuits import Circuit, circuit_of, circuits_of, layer_heads, normalised, stream_rows, token_rows
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.tables import stat_table
from microtome.vocabulary.words import tokens_of_words

__all__ = [
    "Operation",
    "Relation",
    "RelationScores",
    "Vectors",
    "read_pairs_of_words",
    "relation_findings",
    "relation_q",
    "relation_rows",
    "relation_scores",
    "relations_of",
    "rows_of",
    "salient_operations",
]

Vectors = Literal["embedding", "effective"]
"""What stands for a token: its embedding, or from layer 1 on what the first feed-forward block makes of it."""

SHUFFLED_TARGETS: Final = "targets shuffled among the pairs"
FIRST: Final = 10
"""Targets count among the first ten; where every target is its source, only the first does."""
LEAST: Final = 20
"""Pairs of single tokens below which a relation is left out. The paper has 30."""
_END: Final = {"+": "relation", "-": "suppression"}
_LARGE: Final = 0.2
_TURNS: Final = 100
_TINY: Final = 1e-30


@dataclass(frozen=True, eq=False)
class Relation:
    """Pairs of tokens, of `asked` pairs of words: those of which both are single tokens behind a space. A target counts among the first `k`."""

    name: str
    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    asked: int
    k: int


@dataclass(frozen=True, eq=False)
class RelationScores:
    """The share of a relation's pairs whose target is among the first k of its source's row, of every head of a layer.

    At end - the row is that of -W_VO: the head suppresses the target. `control` is the mean share over all shuffles of targets among the
    pairs, `p` how often a shuffle has as large a share.
    """

    relation: Relation
    layer: int
    end: Literal["+", "-"]
    share: Float[Tensor, " head"]
    control: Float[Tensor, " head"]
    p: Float[Tensor, " head"]


@dataclass(frozen=True)
class Operation:
    """A token that a head writes much for, for its length: how many times its mean gain over tokens, and the first targets.

    `control` is the gain at this rank of the head turned inside, over the mean of that.
    """

    token: int
    gain: float
    control: float
    targets: tuple[int, ...]


def relations_of(subject: Subject, path: str | Path | None = None, least: int = LEAST) -> list[Relation]:
    """The relations of a file of word pairs (by default the one shipped) of which a vocabulary has at least `least` pairs.

    Errors: `Refusal` for a file that cannot be read so, and where no relation is left.
    """
    of = _single_tokens(subject)
    found = []
    for name, pairs in read_pairs_of_words(path).items():
        kept = dict.fromkeys((of[a], of[b]) for a, b in pairs if a in of and b in of)
        if len(kept) < max(least, 2):
            continue
        source, target = (torch.tensor(side) for side in zip(*kept, strict=True))
        found.append(Relation(name, source, target, len(pairs), 1 if bool((source == target).all()) else FIRST))
    if not found:
        raise Refusal(
            f"relations in the vocabulary of {subject.name}",
            why=f"none has {least} pairs of which both words are single tokens behind a space",
            instead="name a file with other pairs",
        )
    return found


def _single_tokens(subject: Subject) -> dict[str, int]:
    """Words that a token with a space before it spells, as they are written, of the tokens that are shown; else tokens without one."""
    of = tokens_of_words(subject.texts, subject.write.tokens.tolist(), str.strip)
    first = {word: tokens[0] for word, tokens in of.items()}
    return {word: token for word, token in first.items() if subject.texts[token] == f" {word}"} or first


def read_pairs_of_words(path: str | Path | None = None) -> dict[str, list[tuple[str, str]]]:
    """Pairs by relation from lines relation<TAB>source<TAB>target; lines that begin with # are left out.

    Errors: `Refusal` for a missing file, one that is no text, and a line of another form.
    """
    place = resources.files("microtome.vocabulary") / "relations.tsv" if path is None else Path(path)
    if not place.is_file():
        raise Refusal(
            f"relations {place}", why="there is no such file", instead="name a file of lines RELATION<TAB>SOURCE<TAB>TARGET"
        )
    try:
        lines = place.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Refusal(f"relations {place}", why="it is not UTF-8 text", instead="name a text file") from error
    found: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 3 or not all(parts):
            raise Refusal(
                f"line {number} of {place}", why="it is no relation, source and target", instead="separate the three by tabs"
            )
        found.setdefault(parts[0], []).append((parts[1], parts[2]))
    return found


def relation_scores(
    subject: Subject,
    relations: Sequence[Relation],
    vectors: Vectors = "embedding",
    layers: Iterable[int] | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Iterator[RelationScores]:
    """Relation and suppression scores of every head, a layer at a time.

    Shuffles are drawn only for heads whose share is above the mean over all of them; for others p is 1.
    Errors: `Refusal` for effective embeddings of a model whose first block is no function of a token.
    Cost: 2 source vocab d_head FLOP per head for all relations together.
    """
    sources = torch.cat([each.source for each in relations]).unique()
    columns = token_rows(subject.write, subject.write.tokens).cpu()
    shuffles = [_shuffles(len(each.source), draws, int(hash_parts(seed, place))) for place, each in enumerate(relations)]
    for layer in range(subject.shape.layers) if layers is None else layers:
        give_back_freed_memory()
        heads = layer_heads(subject.weights, layer, folding=subject.folding)
        hits = [
            _hits(subject, each, sources, relations)
            for each in circuits_of(heads, "ov", rows_of(subject, layer, sources, vectors), columns)
        ]
        for place, relation in enumerate(relations):
            for end, sign in enumerate("+-"):
                found = torch.stack([head[place][end] for head in hits])
                share, control, p = _against_shuffles(found, shuffles[place])
                yield RelationScores(relation, layer, "+" if sign == "+" else "-", share, control, p)


def rows_of(subject: Subject, layer: int, tokens: Int[Tensor, " source"], vectors: Vectors) -> Float[Tensor, "source d_model"]:
    """What heads of a layer meet where the stream is a token: folded ones its normed rows, raw ones the rows themselves."""
    weights = subject.weights
    if vectors == "embedding" or layer == 0:
        return (
            weights.get("W_E")[tokens].to("cpu", torch.float32)
            if subject.folding == "raw"
            else stream_rows(weights, layer, tokens)
        )
    made = first_mlp(weights, stream_rows(weights, 0, tokens))
    folded = subject.folding == "folded" and weights.has("attn_norm", layer)
    return normalised(weights.norm("attn_norm", layer), made) if folded else made


def relation_q(scores: Sequence[RelationScores]) -> list[Float[Tensor, " head"]]:
    """q-values over all heads, relations and ends given."""
    q = benjamini_hochberg(torch.cat([each.p for each in scores])) if scores else torch.empty(0)
    return list(q.split([len(each.p) for each in scores]))


def relation_rows(scores: Sequence[RelationScores], q: Sequence[Float[Tensor, " head"]], run: str) -> pa.Table:
    """Rows of `unit_stats`: relation:NAME and suppression:NAME of every head, with the 95 % Wilson interval of the share."""
    tables = []
    for each, quality in zip(scores, q, strict=True):
        units = [str(UnitAddress("heads", head, layer=each.layer)) for head in range(len(each.share))]
        stat = f"{_END[each.end]}:{each.relation.name}"
        interval = _wilson(each.share, len(each.relation.source))
        tables.append(stat_table(units, stat, each.share, (each.control, SHUFFLED_TARGETS), run, quality, interval))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def relation_findings(scores: Sequence[RelationScores], q: Sequence[Float[Tensor, " head"]]) -> list[Row]:
    """Of each relation and end the head with the largest share: q at most 0.01, and 0.2 or more above the control."""
    best: dict[tuple[str, str], Row] = {}
    for each, quality in zip(scores, q, strict=True):
        above = torch.where(quality <= LARGEST_Q, each.share - each.control, -1)
        head = int(above.argmax())
        value, control = float(each.share[head]), float(each.control[head])
        key = (each.end, each.relation.name)
        if float(above[head]) < _LARGE or (key in best and best[key]["value"] >= value):
            continue
        low, high = (float(end[head]) for end in _wilson(each.share, len(each.relation.source)))
        verb = "follows" if each.end == "+" else "writes against"
        among = "first" if each.relation.k == 1 else f"among the first {each.relation.k}"
        sentence = (
            f"heads.{each.layer}/{head} {verb} the relation ‘{each.relation.name}’: for {100 * value:.0f} % of {len(each.relation.source)} pairs the "
            f"target is {among} of all tokens (95 % interval {100 * low:.0f} to {100 * high:.0f}; {SHUFFLED_TARGETS}: {100 * control:.0f} %)"
        )
        best[key] = {
            "kind": _END[each.end], "subject": f"heads.{each.layer}/{head}", "sentence": sentence, "value": value, "control": control,
            "control_kind": SHUFFLED_TARGETS, "q": float(quality[head]),
        }  # fmt: skip
    return sorted(best.values(), key=lambda row: (row["control"] - row["value"], row["sentence"]))


def salient_operations(
    subject: Subject,
    layer: int,
    head: int,
    among: Int[Tensor, " source"],
    *,
    k: int = 10,
    targets: int = 5,
    seed: int = 0,
) -> list[Operation]:
    """The `k` tokens `among` some that a head writes most for, ||e W_VO|| / ||e||, with the targets it writes: a description of it.

    Cost: 2 vocab d_model d_head FLOP, and 100 turns of 4 source d_head^2.
    """
    rows, columns = rows_of(subject, layer, among, "embedding"), token_rows(subject.write, subject.write.tokens).cpu()
    heads = layer_heads(subject.weights, layer, folding=subject.folding)
    circuit, out = circuit_of(heads, "ov", head, rows, columns), heads.o[head] @ heads.o[head].T
    lengths = rows.norm(dim=1).clamp(min=_TINY)

    def gains(left: Float[Tensor, "source inner"]) -> Float[Tensor, " source"]:
        gain = ((left @ out) * left).sum(1).clamp(min=0).sqrt() / lengths
        return gain / gain.mean().clamp(min=_TINY)

    gain, k = gains(circuit.left), min(k, len(rows))
    turns = rotations(_TURNS, 1, len(out), seed=int(hash_parts(seed, layer, head)))[:, 0]
    control = torch.stack([gains(circuit.left @ turn).topk(k).values for turn in turns]).mean(0).tolist()
    best = gain.sort(descending=True, stable=True).indices[:k]
    ends = matmul_topk(circuit.left[best], circuit.right.T, min(targets, len(circuit.right)))
    written = subject.write.tokens.cpu()[ends.top_index].tolist()
    return [
        Operation(int(among[token]), float(gain[token]), control[rank], tuple(written[rank]))
        for rank, token in enumerate(best.tolist())
    ]


def _hits(
    subject: Subject, circuit: Circuit, sources: Int[Tensor, " source"], relations: Sequence[Relation]
) -> list[tuple[Bool[Tensor, "pair pair"], Bool[Tensor, "pair pair"]]]:
    """Of each relation whether target j is among the first (and the last) of the row of source i: entries i, i are its pairs."""
    shown = subject.write.tokens.cpu()
    most = min(max(each.k for each in relations), len(circuit.right))
    ends = matmul_topk(circuit.left, circuit.right.T, most, precision=quickest(circuit.left.device))
    found = []
    for each in relations:
        row, column = torch.searchsorted(sources, each.source), torch.searchsorted(shown, each.target)
        products = (circuit.left[row].double() @ circuit.right[column].double().T).float()
        k = min(each.k, most) - 1
        found.append((products >= ends.top[row, k, None], products <= ends.bottom[row, k, None]))
    return found


def _shuffles(pairs: int, draws: int, seed: int) -> Int[Tensor, "draw pair"]:
    return torch.rand(draws, pairs, generator=torch.Generator().manual_seed(seed)).argsort(1)


def _against_shuffles(
    hits: Bool[Tensor, "head pair pair"], shuffles: Int[Tensor, "draw pair"]
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Shares, their mean over all shuffles, and p-values."""
    share, control = hits.diagonal(dim1=1, dim2=2).double().mean(1), hits.double().mean((1, 2))
    p = torch.ones_like(share)
    pairs = torch.arange(shuffles.shape[1])
    for head in (share > control).nonzero()[:, 0].tolist():
        drawn = hits[head][pairs, shuffles].double().mean(1)
        p[head] = permutation_p(share[head, None], drawn[:, None])[0]
    return share, control, p


def _wilson(share: Float[Tensor, " head"], pairs: int) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    square = 1.96**2 / pairs
    middle = (share + square / 2) / (1 + square)
    half = (share * (1 - share) * square + square**2 / 4).sqrt() / (1 + square)
    return middle - half, middle + half
