"""What a dictionary's factors are beyond the quick depth: what of language explains them, which are active together, how far they look.

The methods have modules of their own (`patterns`, `cofiring`, `reach`, `saliency`, `neighbours`, `neighbour_map`); here is which factors and which
part of the text each is asked of, and the rows and sentences of it. What a pass over all of the text says is in `tables`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.capture import tokens_per_batch
from microtome.capture.lens import Run
from microtome.core import CONTENT, ExpertRows, Half, Site, UnitAddress, token_keys
from microtome.corpus import Corpus
from microtome.examples import Contexts
from microtome.examples.findings import Finding
from microtome.examples.labels import UnitLabel
from microtome.examples.rows import address_column, word_column
from microtome.examples.said import Said, together
from microtome.factors.basis import Factors
from microtome.factors.cofiring import Cofired, Cofiring, Partners, partners
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat
from microtome.factors.evaluation import stat_rows as dictionary_rows
from microtome.factors.importance import Profile
from microtome.factors.looking import looked, tokens_looked_at
from microtome.factors.neighbour_map import neighbour_map
from microtome.factors.neighbours import stream_links, why_not_linked
from microtome.factors.patterns import LEAST, TURNED, Agreement, Occurrences, agreement, answers_by_text
from microtome.factors.rows import by_place, undefined_rows
from microtome.factors.stability import flat_directions
from microtome.model import Model, capture

__all__ = ["Deeper", "deeper", "tokens_read", "why_not_deeper"]

_WINDOWS: Final = 128
"""Windows, drawn by hash, in which patterns and pairs of factors are counted."""
_PAIRED: Final = 4096
"""Factors whose pairs are counted, at most: 16 (1 + draws) bytes for each pair."""
_PARTNERS: Final = 5
_NEIGHBOURS: Final = 10
_LEAST_MAPPED: Final = 64
_MAPPED: Final = 4096
"""Factors that are mapped, at most: distances and ranks of all pairs are held to say what the map keeps."""
_EXPLAINED: Final = 0.5
_LEVEL: Final = 0.05
_TOGETHER: Final = "the best of as many, of text turned round in its windows"
_SEED: Final = 0
"""Of what the weights alone decide, which is the same in every run."""


@dataclass(frozen=True, eq=False)
class Deeper:
    """What is said, and which factors are `high`: of the deep ones those that need much context."""

    said: Said
    high: Bool[Tensor, " unit"]


def why_not_deeper(run: Run) -> str:
    """Why all of it is left out; empty where it is not."""
    if run.depth == "quick":
        return "not part of depth quick: microtome factors train MODEL TEXT -o ATLAS"
    return "" if run.model.shape.vocab else "the tokens of an image are patches, which are in no language"


def tokens_read(window: int) -> int:
    """Tokens that are read again, at most, of a text with windows of this length."""
    return _WINDOWS * window + tokens_looked_at(window)


def deeper(
    dictionary: Dictionary,
    bases: Sequence[Factors],
    first: Profile,
    second: Profile,
    contexts: Contexts,
    run: Run,
    texts: Sequence[str],
) -> Deeper:
    """All of it, of a dictionary seen through `bases`, one for each place of the profiles; `contexts` are those at each factor's own place.

    Cost: a pass over 128 windows for patterns and pairs; for reach and saliency see `looking`.
    """
    model, corpus = run.model, run.corpus
    assert isinstance(model, Model), "a text is read by a model that was built"
    assert corpus is not None, "contexts are of a text"
    firing = _Firing.of(model, corpus, bases, first.peak, run.seed)
    looking = looked(model, corpus, bases, first, second, contexts, run.seed)
    parts = [
        _patterns(firing, bases, first.peak, texts, run),
        _pairs(firing, bases[0], run),
        looking.said(bases, first.peak, run.name),
        _map(dictionary, bases[0], run.name),
        _links(dictionary, bases[0], model, run.name),
    ]
    return Deeper(together(parts), looking.high(dictionary.units))


@dataclass(frozen=True, eq=False)
class _OwnPlaces:
    """A dictionary's factors as a basis, each at the place where it is strongest."""

    bases: Sequence[Factors]
    peak: Int[Tensor, " unit"]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(dict.fromkeys(site for basis in self.bases for site in basis.sites))

    @property
    def units(self) -> int:
        return self.bases[0].units

    @property
    def signed(self) -> bool:
        return False

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        own: Tensor | None = None
        for place, basis in enumerate(self.bases):
            codes = basis.encode(values)
            mine = (self.peak.clamp(min=0) == place).to(codes.device)
            own = codes * mine if own is None else torch.where(mine, codes, own)
        assert own is not None, "a dictionary has a place"
        return own

    def address(self, index: int) -> UnitAddress:
        return self.bases[0].address(index)


@dataclass(frozen=True, eq=False)
class _Firing:
    """Tokens of some windows, the (row, factor) at which each factor is active, and how often two are active together, each at its own place."""

    tokens: Occurrences
    active: tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]
    cofired: Cofired | None

    @staticmethod
    def of(model: Model, corpus: Corpus, bases: Sequence[Factors], peak: Int[Tensor, " unit"], seed: int) -> "_Firing":
        basis = _OwnPlaces(bases, peak)
        fold = Cofiring(basis, seed=seed) if basis.units <= _PAIRED else None
        state = fold.init() if fold is not None else {}
        tokens: list[tuple[Tensor, ...]] = []
        rows, units, seen = [], [], 0
        for batch in corpus.batches(corpus.sample(_WINDOWS, seed), tokens_per_batch(model), model.device):
            values = capture(model, batch, basis.sites)
            if fold is not None:
                fold.update(state, values, batch)
            row, place = batch.counted(CONTENT).nonzero(as_tuple=True)
            entry, unit = (basis.encode(values)[row, place] > 0).nonzero(as_tuple=True)
            rows.append(entry.cpu() + seen)
            units.append(unit.cpu())
            seen += len(row)
            tokens.append(
                tuple(each.cpu().long() for each in (batch.ids[row, place], batch.window[row], place, batch.half[row]))
            )
        id_, window, position, half = (torch.cat(each) for each in zip(*tokens, strict=True))
        order = token_keys(window, position).argsort()
        number = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        found = Occurrences(id_[order], window[order], position[order], half[order])
        return _Firing(found, (number[torch.cat(rows)], torch.cat(units)), None if fold is None else fold.result(state))


def _patterns(firing: _Firing, bases: Sequence[Factors], peak: Int[Tensor, " unit"], texts: Sequence[str], run: Run) -> Said:
    """The question about a token that goes best with each factor, and how many no question explains."""
    if any(not bool((firing.tokens.half == half).any()) for half in Half):
        return _without("patterns", "all tokens are in one half of the documents", bases[0], run.name)
    answers = answers_by_text(firing.tokens, texts)
    found = agreement(firing.active, bases[0].units, firing.tokens, answers, seed=run.seed)
    columns = {"control": found.control.numpy(), "q": found.q.numpy()}
    rows = by_place(bases, peak, "pattern_mcc", found.mcc.numpy(), run.name, columns, TURNED)
    beside = {"control": found.shifted_f1.mean(0).numpy()}
    rows += by_place(bases, peak, "pattern_f1", found.f1.numpy(), run.name, beside, TURNED)
    explained = found.explained(_EXPLAINED, _LEVEL)
    labels = [
        UnitLabel(
            str(bases[0].address(unit)),
            "",
            "pattern",
            ": ".join(found.questions[int(found.question[unit])]),
            float(found.mcc[unit]),
            float(found.control[unit]),
            TURNED,
            float(found.q[unit]),
        )
        for unit in explained.nonzero()[:, 0].tolist()
    ]
    return Said(rows, labels, _pattern_findings(found, bases[0], explained), {})


def _pattern_findings(found: Agreement, basis: Factors, explained: Bool[Tensor, " unit"]) -> list[Finding]:
    tested = int((found.question >= 0).sum())
    if not tested:
        return []
    by_kind: dict[str, int] = {}
    for unit in explained.nonzero()[:, 0].tolist():
        kind = found.questions[int(found.question[unit])][0]
        by_kind[kind] = by_kind.get(kind, 0) + 1
    most = sorted(by_kind.items(), key=lambda each: (-each[1], each[0]))
    told = ", ".join(f"{kind} {count / tested:.0%}" for kind, count in most) or "none"
    share = found.unexplained(_EXPLAINED, _LEVEL)
    name = basis.dictionary.name
    sentence = (
        f"of {tested:,} factors of {name} that are active at {LEAST} tokens of each half or more no word, spelling, place or run of words explains {share:.0%} "
        f"(F1 below {_EXPLAINED:g} on held-out documents; with answers turned round in their windows {found.unexplained_by_chance(_EXPLAINED):.0%}); the others: {told}"
    )
    return [Finding("patterns of factors", f"factors@{name}", sentence, share, found.unexplained_by_chance(_EXPLAINED), TURNED)]


def _pairs(firing: _Firing, basis: Factors, run: Run) -> Said:
    """The factors that are active with each one."""
    if basis.units < 2:
        return _without("cofirings", "there is one factor", basis, run.name)
    if firing.cofired is None:
        why = f"pairs of more than {_PAIRED:,} factors are too many to count"
        return _without("cofirings", why, basis, run.name)
    found = partners(firing.cofired, k=_PARTNERS)
    return Said(findings=_pair_findings(found, basis), tables={"cofirings": _pair_rows(found, basis, run.name)})


def _pair_rows(found: Partners, basis: Factors, run: str) -> pa.Table:
    unit, place = ((found.unit >= 0) & ~found.value.isnan()).nonzero(as_tuple=True)
    return pa.table(
        {
            "run": word_column([run], (unit * 0).numpy()),
            "unit": address_column(basis, unit.numpy()),
            "other": address_column(basis, found.unit[unit, place].numpy()),
            "score": pa.array(found.value[unit, place].numpy()),
            "shifted": pa.array(found.shifted[unit, place].numpy(), from_pandas=True),
            "expected": pa.array(found.expected[unit, place].numpy(), from_pandas=True),
            "control": pa.array(found.control[place].numpy(), from_pandas=True),
        }
    )


def _pair_findings(found: Partners, basis: Factors) -> list[Finding]:
    best = found.value[:, 0]
    told = (found.unit[:, 0] >= 0) & ~best.isnan()
    if not bool(told.any()):
        return []
    mean, shifted, control = float(best[told].mean()), float(found.shifted[told, 0].nanmean()), float(found.control[0])
    name = basis.dictionary.name
    sentence = (
        f"a factor of {name} and the one it is most often active with share {mean:.0%} of the tokens at which either is, on held-out documents "
        f"({shifted:.0%} with one of them turned round in its windows, {control:.0%} for the best of as many by chance)"
    )
    return [Finding("factors active together", f"factors@{name}", sentence, mean, control, _TOGETHER)]


def _map(dictionary: Dictionary, basis: Factors, run: str) -> Said:
    """Places of factors in the plane, and how far they can be believed."""
    there = flat_directions(dictionary).norm(dim=1) > 0
    flat = flat_directions(dictionary, there)
    if not _LEAST_MAPPED <= len(flat) <= _MAPPED or not bool(torch.isfinite(flat).all()):
        why = f"of {len(flat):,} directions that are not 0; a map takes {_LEAST_MAPPED} to {_MAPPED:,}, all of them finite"
        return _without("trustworthiness", why, basis, run)
    found = neighbour_map(flat, "t-SNE", neighbours=_NEIGHBOURS, seed=_SEED)
    table = pa.table(
        {
            "unit": address_column(basis, there.nonzero()[:, 0].numpy()),
            "layout": word_column([found.layout], torch.zeros(len(flat), dtype=torch.int64).numpy()),
            "x": pa.array(found.points[:, 0].float().numpy()),
            "y": pa.array(found.points[:, 1].float().numpy()),
        }
    )

    def kept(of: object) -> dict[str, Stat]:
        return {name: Stat(float(getattr(of, name))) for name in ("trustworthiness", "continuity")}

    beside = {"two principal components": kept(found.linear), "places dealt out anew": kept(found.random)}
    stats = dictionary_rows(run, dictionary.name, "", kept(found.kept), beside)
    sentence = (
        f"the map of {dictionary.name}'s factors keeps {found.kept.trustworthiness:.2f} of their neighbourhoods "
        f"(two principal components {found.linear.trustworthiness:.2f}, places dealt out anew {found.random.trustworthiness:.2f}; 1 is all)"
    )
    finding = Finding(
        "map of factors", f"factors@{dictionary.name}", sentence, found.kept.trustworthiness, found.random.trustworthiness,
        "places dealt out anew",
    )  # fmt: skip
    return Said([], [], [finding], {f"unit_places.{dictionary.name}": table, "dictionary_stats": stats})


def _links(dictionary: Dictionary, basis: Factors, model: Model, run: str) -> Said:
    """The neurons and heads that write along each factor, and that read it."""
    why = why_not_linked(dictionary, model.weights)
    if why:
        return _without("links to neurons and heads", why, basis, run)
    rows = stream_links(dictionary, basis, model.weights, _SEED)
    return Said(tables={f"links.{dictionary.name}.stream": rows} if len(rows) else {})


def _without(stat: str, why: str, basis: Factors, run: str) -> Said:
    return Said(tables={"dictionary_stats": undefined_rows(run, basis.dictionary.name, {stat: why})})
