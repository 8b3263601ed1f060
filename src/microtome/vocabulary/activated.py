"""Hidden states against the parameters they activate: do both speak of the same tokens?

    R_k = |top_k(h^) & union over i <= m of top_k(x^_i)| / k

h^ is a token's hidden state through the last norm in the vocabulary, x^_i are the m parameters that this token activates most. The control
are the parameters that another token of the same layer activates: frequent tokens and hubs are in everybody's lists. Which parameters
are activated is folded over a text in `active`; what any of them says on its own belongs in `projection`.
The axis `most` counts the parameters a token activates most.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Site
from microtome.model import Shape, Weights
from microtome.model.norms import normed
from microtome.numerics import benjamini_hochberg, bootstrap_interval, hash_parts, permutation_p
from microtome.readout import Reader, Tokens, central_interval, output_reader
from microtome.store.schemas import TABLES
from microtome.vocabulary.active import GROUPS_AT, Active, Ranking, unsigned
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.overlap import chosen_tokens
from microtome.vocabulary.parameters import Group, block_of, group_named, layers_of
from microtome.vocabulary.subject import Subject

__all__ = ["CONTROL", "Activated", "activated", "activated_findings", "activated_rows", "state_reader", "state_tokens"]

Whose = Literal["own", "last"]
"""Whose state is read: the layer's own, or that of the last layer, which is the model's answer."""
CONTROL: Final = "the parameters that another token activates"
_DRAWS: Final = 200
_FEWEST: Final = 8
"""Documents of which a t test is made."""
_STATES: Final[tuple[Whose, ...]] = ("own", "last")


@dataclass(frozen=True, eq=False)
class Activated:
    """R_k of every sampled token with a group of a layer, and what it is with the parameters of other tokens.

    `others` is each token's mean over all other tokens, exact;
    `draws` are means over the tokens when these are permuted. `low` and `high` bound the mean at 95 %, whole documents drawn anew, and
    `excess` the mean of what it is above `others`; None where there is but one document. `p_excess` is that of a t test over documents of
    this mean, one-sided, NaN with fewer than 8: tokens of a document are alike, and permutations of tokens do not know that.
    """

    group: str
    layer: int
    k: int
    state: Whose
    ranking: Ranking
    overlap: Float[Tensor, " row"]
    others: Float[Tensor, " row"]
    draws: Float[Tensor, " draw"]
    interval: tuple[float, float] | None
    excess: tuple[float, float] | None
    p_excess: float

    @property
    def mean(self) -> float:
        """Over tokens."""
        return float(self.overlap.mean())

    @property
    def control(self) -> float:
        """Over all pairs of two tokens."""
        return float(self.others.mean())

    @property
    def p(self) -> float:
        """How often permuted tokens do as well: chance for these tokens, whatever other documents may hold (`p_excess`)."""
        return float(permutation_p(self.overlap.mean()[None], self.draws[:, None])[0])

    @property
    def stat(self) -> str:
        """The name of this measure."""
        return "activated" + ("_last" * (self.state == "last")) + ("_dominant" * (self.ranking == "dominant")) + f"_{self.k}"


def activated(
    subject: Subject,
    active: Sequence[Active],
    states: Sequence[Tokens],
    *,
    ks: Sequence[int] = (50, 100),
    draws: int = _DRAWS,
    seed: int = 0,
) -> Iterator[Activated]:
    """R_k for every site of `active` and each group whose coefficients are there, a group at a time.

    `states` are samples at resid_post, the last among them that of the last layer, of the same tokens as `active`. ks larger than the
    number of tokens shown are cut to it. Only parameters that some token activates are read.
    Cost: 2 d_model vocab FLOP per state and per activated parameter, `draws` k gathered bytes per token; memory for tokens x columns bytes.
    Source: Dar et al. 2022, arXiv:2209.02535, section 4.2 and appendix B.2 (k = 100); the authors' code has k = 50.
    """
    by_layer = {_layer(sample.site): sample for sample in states}
    last, reader = max(by_layer), state_reader(subject)
    ks = sorted({min(k, len(reader.tokens)) for k in ks})
    final = own = state_tokens(subject.weights, by_layer[last], reader, ks[-1])
    read = last
    for each in sorted((each for each in active if _layer(each.site) in by_layer), key=lambda each: _layer(each.site)):
        layer = _layer(each.site)
        sample = by_layer[layer]
        assert torch.equal(each.window, sample.window), "samples of the same tokens"
        assert torch.equal(each.token, sample.token), "samples of the same tokens"
        if read != layer:
            read, own = layer, final if layer == last else state_tokens(subject.weights, sample, reader, ks[-1])
        for name in GROUPS_AT[each.site.name]:
            if layer in layers_of(subject.weights, group_named(name)):
                lists = _lists(subject, group_named(name), each, ks[-1])
                for state in _STATES:
                    for k in ks:
                        tokens = (own if state == "own" else final)[:, :k]
                        compared = _compared(tokens, lists[:, :, :k], draws, int(hash_parts(seed, layer)))
                        yield _measured((name, layer, k, state), each, compared)


def state_reader(subject: Subject) -> Reader:
    """Token vectors for hidden states, which have been through the last norm: as stored, of the tokens that the subject shows."""
    hidden = frozenset(range(subject.shape.vocab)) - frozenset(subject.write.tokens.tolist())
    return output_reader(subject.weights, hidden, folding="raw", device=subject.write.matrix.device)


def state_tokens(weights: Weights, sample: Tokens, reader: Reader, k: int) -> Int[Tensor, "row k"]:
    """The k tokens of largest score of final_norm(h) E for each state, best first. A masked head's transform is left out.

    Cost: 2 d_model vocab FLOP per state.
    """
    values = sample.values.float()
    if weights.has("final_norm"):
        values = normed(weights.norm("final_norm"), values.to(weights.norm("final_norm").gain.device)).cpu()
    return chosen_tokens(values, reader, k, "top")


def activated_rows(found: Sequence[Activated], run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: `activated_K` (also `_last_`, `_dominant_`) beside other tokens' parameters, and `.._excess` over them.

    q of the former is by permutation of tokens, of the latter by a t test over documents, each over all that are `found`.
    """
    tests = ([each.p for each in found], [each.p_excess for each in found])
    q, q_excess = (benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).tolist() for p in tests)
    rows: list[dict[str, object]] = []
    for each, quality, surely in zip(found, q, q_excess, strict=True):
        place = {"run": run, "group": each.group, "layer": each.layer, "control_kind": CONTROL}
        low, high = central_interval(each.draws).tolist()
        beside = {"control": each.control, "control_lo": low, "control_hi": high}
        rows.append({**place, "stat": each.stat, "value": each.mean, **beside, **_ends(each.interval), "q": quality})
        excess = {"value": each.mean - each.control, "control": 0.0, "control_lo": low - each.control}
        above = {**excess, "control_hi": high - each.control, **_ends(each.excess)}
        rows.append({**place, "stat": f"{each.stat}_excess", **above, "q": None if surely != surely else surely})
    spec = TABLES["vocabulary_stats"]
    rows.sort(key=lambda row: tuple(row[name] for name in spec.key))
    return pa.Table.from_pylist(rows, spec.schema)


def activated_findings(found: Sequence[Activated], shape: Shape) -> list[Row]:
    """For each group the layer whose states share most with what they activate, if q is at most 0.01 and documents agree."""
    plain = [each for each in found if each.state == "own" and each.ranking == "largest"]
    plain = [each for each in plain if each.k == max(each.k for each in plain)]
    q = benjamini_hochberg(torch.tensor([each.p for each in plain], dtype=torch.float64)).tolist()
    rows: list[Row] = []
    for name in dict.fromkeys(each.group for each in plain):
        mine = [(each, quality) for each, quality in zip(plain, q, strict=True) if each.group == name]
        sure = [(each, q) for each, q in mine if q <= LARGEST_Q and each.excess is not None and each.excess[0] > 0]
        if not sure:
            continue
        each, quality = max(sure, key=lambda entry: entry[0].mean - entry[0].control)
        assert each.excess is not None
        sentence = (
            f"{100 * each.mean:.1f} % of the {each.k} tokens that a state of layer {each.layer} scores highest are also among those of the "
            f"{group_named(name).says} it activates most (of those that another token activates: {100 * each.control:.1f} %; 95 % interval of the "
            f"difference over documents {100 * each.excess[0]:+.1f} to {100 * each.excess[1]:+.1f} points); more than by chance in "
            f"{len(sure)} of {len(mine)} layers of {shape.layers}"
        )
        rows.append(
            {"kind": "activated parameters", "subject": f"{name}.{each.layer}", "sentence": sentence, "value": each.mean,
             "control": each.control, "control_kind": CONTROL, "q": quality}
        )  # fmt: skip
    return rows


def _lists(subject: Subject, group: Group, active: Active, k: int) -> Int[Tensor, "row most k"]:
    """The tokens of what each sampled token activates, best first; of negative coefficients those of the vector turned round."""
    shape, units = subject.shape, unsigned(active.units)
    if group.lead == "head_kv":
        sharing = shape.heads // shape.heads_kv
        units = units // shape.d_head // sharing * shape.d_head + units % shape.d_head
    signed, where = torch.where(active.units < 0, ~units, units).unique(return_inverse=True)
    rows = block_of(subject.weights, group, active.site.layer, folding=subject.folding).rows[unsigned(signed)]
    rows = torch.where(signed[:, None] < 0, -rows, rows)
    return chosen_tokens(rows, subject.read if group.end == "read" else subject.write, k, "top")[where]


def _compared(
    states: Int[Tensor, "row k"], lists: Int[Tensor, "row most k"], draws: int, seed: int
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " draw"]]:
    """R_k of each row with its own lists, its mean with those of all other rows, and means over rows when lists are permuted."""
    count, k = states.shape
    columns, column = states.unique(return_inverse=True)
    at, ids = column.numpy(), lists.flatten(1)
    place = torch.searchsorted(columns, ids).clamp(max=len(columns) - 1)
    row, slot = (columns[place] == ids).nonzero(as_tuple=True)
    there = np.zeros((count, len(columns)), np.uint8)
    there[row.numpy(), place[row, slot].numpy()] = 1
    own = there[np.arange(count)[:, None], at].sum(1, dtype=np.int64)
    others = (there.sum(0, dtype=np.int64)[at].sum(1) - own) / max(count - 1, 1)
    generator = np.random.default_rng(seed % 2**32)
    shuffled = [there[generator.permutation(count)[:, None], at].mean() for _ in range(draws)]
    return torch.from_numpy(own / k), torch.from_numpy(others / k), torch.tensor(shuffled, dtype=torch.float64)


def _measured(place: tuple[str, int, int, Whose], active: Active, compared: tuple[Tensor, Tensor, Tensor]) -> Activated:
    """Of a (group, layer, k, state): R_k and its control (see `_compared`), with their intervals over documents."""
    (group, layer, k, state), (overlap, others, draws) = place, compared
    documents, owner = active.document.unique(return_inverse=True)
    interval, excess, p = None, None, math.nan
    if len(documents) > 1:
        both = torch.stack([overlap, overlap - others], 1)
        sums = torch.zeros(len(documents), 2, dtype=torch.float64).index_add_(0, owner, both)
        ends = torch.stack(bootstrap_interval(sums, owner.bincount().double())).tolist()
        interval, excess = zip(*ends, strict=True)
        p = _p_over_documents(sums[:, 1], owner.bincount().double())
    return Activated(group, layer, k, state, active.ranking, overlap, others, draws, interval, excess, p)


def _p_over_documents(sums: Float[Tensor, " document"], tokens: Float[Tensor, " document"]) -> float:
    """Of the mean over tokens being above 0: the ratio of sums, with its standard error over documents."""
    from scipy.stats import t

    count, mean = len(sums), sums.sum() / tokens.sum()
    error = ((sums - mean * tokens).square().sum() * count / (count - 1)).sqrt() / tokens.sum()
    return float(t.sf(float(mean / error), count - 1)) if count >= _FEWEST and float(error) > 0 else math.nan


def _layer(site: Site) -> int:
    assert site.layer is not None, "states and what they activate are in layers"
    return site.layer


def _ends(interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {"lo": interval[0], "hi": interval[1]}
