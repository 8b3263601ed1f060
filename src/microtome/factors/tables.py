"""What a pass over a text says of a dictionary's factors, as rows of an atlas: statistics at every site, contexts, labels, tokens, links, findings.

A factor of a shared dictionary is one unit that is seen at several sites. It is tested once, where it is strongest in the discover half; what is
tested is in the confirm half. Computing over the stream belongs in `lens`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from microtome.capture.lens import Rows, Run
from microtome.core import Half, Site
from microtome.examples import Contexts, DecileRecord, UnitSurveyRecord, contexts_table, histograms_table, units_table
from microtome.examples.counts import Counts
from microtome.examples.detectors import CONTROL, Detectors, next_detectors, q_values, token_detectors, untested
from microtome.examples.findings import Finding, findings_table
from microtome.examples.labels import UnitLabel, labels_table
from microtome.examples.rows import stat_rows
from microtome.examples.said import Said, together
from microtome.factors.basis import Factors
from microtome.factors.deeper import deeper, why_not_deeper
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Harvested, Live
from microtome.factors.importance import Profile, profile
from microtome.factors.judgement import exact_shares, judged_by
from microtome.factors.rows import OTHER_HALF, anywhere, by_place, dictionary_row
from microtome.model import Model
from microtome.readout import output_reader
from microtome.readout.detected import Detected, detector_findings, token_labels
from microtome.readout.spellings import spellings
from microtome.readout.tokens import random_directions, tokens_table, top_tokens
from microtome.readout.words import texts_of
from microtome.store import rows_of

__all__ = ["Seen", "at_peak", "depth_of", "factor_tables", "profiles"]

_TOKENS: Final = 10
"""Tokens at each end of a factor's direction."""
_SIMILAR: Final = 5
_ALL_CODES: Final = "its share of all exact codes"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a pass found of a dictionary's factors at one site: statistics and extremes, each tenth of their codes, the largest codes of each half."""

    basis: Factors
    survey: UnitSurveyRecord
    deciles: DecileRecord
    top: Float32[Tensor, "half unit n"]


def depth_of(site: Site, layers: int) -> float:
    """How deep a site is, as a share of the blocks: 0 before the first, 1 behind the last."""
    layer = site.layer or 0
    return layer / layers if site.name == "resid_pre" else (layer + 1) / layers


def profiles(seen: Sequence[Seen], layers: int) -> tuple[Profile, Profile]:
    """Curves of importance over sites, one of each half of the documents."""
    depth = [depth_of(each.basis.site, layers) for each in seen]
    first, second = (profile(torch.stack([each.top[half].mean(1) for each in seen]), depth) for half in Half)
    return first, second


def at_peak(seen: Sequence[Seen], peak: Int[Tensor, " unit"]) -> Contexts:
    """The extremes of each factor at its own place."""
    place = peak.clamp(min=0)
    unit = torch.arange(len(place))
    fields = {}
    for field in dataclasses.fields(Contexts):
        if field.name != "ends":
            stacked = torch.stack([getattr(each.survey.contexts, field.name) for each in seen])
            fields[field.name] = stacked[place, :, unit].transpose(0, 1).contiguous()
    return Contexts(ends=seen[0].survey.contexts.ends, **fields)


def factor_tables(
    dictionary: Dictionary,
    seen: Sequence[Seen],
    counts: Counts,
    harvested: Harvested | Live,
    run: Run,
    lens: str,
) -> dict[str, Rows]:
    """All rows of a dictionary."""
    model, corpus = run.model, run.corpus
    assert isinstance(model, Model), "a text is read by a model that was built"
    assert corpus is not None, "states are of a text"
    texts = texts_of(model.tokenizer, model.shape.vocab)
    bases = [each.basis for each in seen]
    first, second = profiles(seen, model.shape.layers)
    contexts = at_peak(seen, first.peak)
    more = None if why_not_deeper(run) else deeper(dictionary, bases, first, second, contexts, run, texts)
    high = torch.zeros(dictionary.units, dtype=torch.bool) if more is None else more.high
    judged = judged_by(dictionary, harvested, corpus.documents_of_windows(), run.name, run.seed)
    stats = [*_site_stats(dictionary, seen, run.name), *_profile_rows(bases[0], first, run.name)]
    if judged.exact is not None:
        share, control = exact_shares(judged.exact, contexts, first.peak, harvested)
        stats += by_place(
            bases, first.peak, "exact_share_top", share.numpy(), run.name, {"control": control.numpy()}, _ALL_CODES
        )
    labels = _level_labels(bases[0], first, second, high)
    whole_finding = [] if judged.finding is None else [judged.finding]
    findings = [*whole_finding, *_level_findings(dictionary, seen, first, second)]
    said = Said(stats, labels, findings, {"dictionary_stats": judged.rows})
    deep = [] if more is None else [more.said]
    whole = together([said, *deep, _detectors(bases, first.peak, contexts, counts, texts, run)])
    found: dict[str, Rows] = {
        "dictionaries": rows_of(
            "dictionaries", [dictionary_row(dictionary, run.name, f"dictionaries/{lens}.{run.name}.safetensors")]
        ),
        f"units.{dictionary.name}": units_table(bases[:1]),
        "unit_stats": pa.concat_tables(whole.stats),
        "unit_labels": labels_table(whole.labels, run.name),
        "contexts": pa.concat_tables(
            [contexts_table(each.basis, [each.survey.contexts, each.deciles.contexts], run.name) for each in seen]
        ),
        "histograms": pa.concat_tables([histograms_table(each.basis, each.deciles, run.name) for each in seen]),
        f"links.{dictionary.name}": _similar(dictionary, bases[0]),
        "findings": findings_table(whole.findings, run.name, lens),
        **whole.tables,
    }
    if texts:
        found[f"tokens.{dictionary.name}"] = _token_rows(dictionary, bases[0], model, run.seed)
    return found


def _detectors(
    bases: Sequence[Factors],
    peak: Int[Tensor, " unit"],
    contexts: Contexts,
    counts: Counts,
    texts: Sequence[str],
    run: Run,
) -> Said:
    """Which factors fire at one token, or before one."""
    spelling = spellings(texts, counts.here)
    tokens = token_detectors(contexts, counts.here, spelling, run.seed)
    following = untested(bases[0].units)
    if run.model.shape.causal:
        following = next_detectors(contexts, counts.following, spelling, run.seed)
    (token_q,), (following_q,) = q_values([tokens.p]), q_values([following.p])
    detected = [
        Detected(basis, _only(tokens, peak == place), _only(following, peak == place), token_q, following_q)
        for place, basis in enumerate(bases)
    ]
    tested = (("token", tokens, token_q), ("next", following, following_q))
    rows = [_tested_rows(bases, peak, name, tests, q, run.name) for name, tests, q in tested if tests.ends]
    return Said(rows, list(token_labels(detected, texts)), detector_findings(detected, texts), {})


def _only(tests: Detectors, units: Bool[Tensor, " unit"]) -> Detectors:
    """The tests of some units; the others have no hits. So findings come in turns, as many of one site as of another."""
    return dataclasses.replace(tests, hits=torch.where(units, tests.hits, 0))


def _site_stats(dictionary: Dictionary, seen: Sequence[Seen], run: str) -> list[pa.Table]:
    """density, mean, max, importance and importance_raw of every factor at every site; importance beside that in the other half.

    density is the share of tokens at which the factor is active; importance the mean of its n largest codes in the discover half, in units of
    scaled states, raw in the model's own.
    """
    rows = []
    for each in seen:
        place = dictionary.place(each.basis.site)
        size = float(dictionary.scaling.size[place])
        moments, (first, second) = each.survey.moments, each.top.mean(-1)
        plain = {"density": moments.density, "mean": moments.mean, "max": moments.maximum}
        rows += [stat_rows(each.basis, stat, values.numpy(), run, {}, "") for stat, values in plain.items()]
        for stat, by in (("importance", 1.0), ("importance_raw", size)):
            columns = {"control": (second * by).double().numpy()}
            rows.append(stat_rows(each.basis, stat, (first * by).numpy(), run, columns, OTHER_HALF))
    return rows


def _profile_rows(basis: Factors, found: Profile, run: str) -> list[pa.Table]:
    """profile_centre, profile_width and profile_early of every factor, over all sites."""
    if len(found.depth) < 2:
        return []
    stats = {"profile_centre": found.centre, "profile_width": found.width, "profile_early": found.early}
    return [anywhere(stat_rows(basis, stat, values.numpy(), run, {}, "")) for stat, values in stats.items()]


def _tested_rows(
    bases: Sequence[Factors], peak: Int[Tensor, " unit"], name: str, tests: Detectors, q: np.ndarray, run: str
) -> pa.Table:
    """token_share_top and next_share_top of every factor, at the site where it is strongest."""
    low, high = tests.interval
    columns = {"control": np.full(bases[0].units, tests.chance), "lo": low[0], "hi": high[0], "q": q[0]}
    return pa.concat_tables(by_place(bases, peak, f"{name}_share_top", tests.share[0].numpy(), run, columns, CONTROL))


def _level_labels(basis: Factors, first: Profile, second: Profile, high: Bool[Tensor, " unit"]) -> list[UnitLabel]:
    """low, middle or mid, where both halves of the documents say so; of mid ones those that need much context are high."""
    found = []
    if len(first.depth) < 2:
        return []
    for unit, (level, again) in enumerate(zip(first.levels(), second.levels(), strict=True)):
        if level is None or level != again:
            continue
        place = int(first.peak[unit])
        value, beside = float(first.importance[place, unit]), float(second.importance[place, unit])
        level = "high" if high[unit] and level == "mid" else level
        text = f"{level}: strongest at {float(first.depth[place]):.0%} of the depth"
        found.append(UnitLabel(str(basis.address(unit)), "", "level", text, value, beside, OTHER_HALF, None))
    return found


def _level_findings(dictionary: Dictionary, seen: Sequence[Seen], first: Profile, second: Profile) -> list[Finding]:
    """How many factors peak where, and how often both halves of the documents agree on it."""
    if len(seen) < 2:
        return []
    active = (first.peak >= 0) & (second.peak >= 0)
    same = float((first.peak == second.peak)[active].double().mean()) if bool(active.any()) else 0.0
    share = [(first.peak == place).double().mean() for place in range(len(seen))]
    by_chance = float(
        sum(
            (first.peak[active] == place).double().mean() * (second.peak[active] == place).double().mean()
            for place in range(len(seen))
        )
    )
    told = ", ".join(f"{float(part):.0%} at {each.basis.site}" for part, each in zip(share, seen, strict=True))
    sentence = f"factors of {dictionary.name} are strongest: {told}; of {same:.0%} both halves of the documents say the same (by chance {by_chance:.0%})"
    return [
        Finding(
            "levels of factors", f"factors@{dictionary.name}", sentence, same, by_chance, "peaks of the other half drawn anew"
        )
    ]


def _token_rows(dictionary: Dictionary, basis: Factors, model: Model, seed: int) -> pa.Table:
    """What each factor's direction promotes and demotes when the model's own head reads it."""
    reader = output_reader(model.weights)
    directions = dictionary.directions[-1]
    top = top_tokens(directions, reader, random_directions(reader, _TOKENS, seed=seed))
    return tokens_table([str(basis.address(unit)) for unit in range(dictionary.units)], top)


def _similar(dictionary: Dictionary, basis: Factors) -> pa.Table:
    """The factors whose directions are most like each one's, beside what the likest of as many random directions would be on average."""
    flat = torch.nn.functional.normalize(dictionary.directions.transpose(0, 1).flatten(1), dim=1)
    k = min(_SIMILAR, len(flat) - 1)
    if k < 1:
        return rows_of("links", [])
    score, other = _likest(flat, k)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    control = _likest(torch.nn.functional.normalize(drawn, dim=1), k)[0].mean(0)
    return pa.table(
        {
            "unit": pa.array([str(basis.address(unit)) for unit in range(len(flat)) for _ in range(k)], pa.string()),
            "other": pa.array([str(basis.address(each)) for each in other.flatten().tolist()], pa.string()),
            "kind": pa.array(["similar direction"] * (len(flat) * k), pa.string()),
            "score": pa.array(score.flatten().numpy()),
            "control": pa.array(control.repeat(len(flat)).numpy()),
        }
    )


def _likest(flat: Float[Tensor, "unit width"], k: int) -> tuple[Float[Tensor, "unit k"], Int[Tensor, "unit k"]]:
    parts = []
    for begin in range(0, len(flat), 4096):
        cosine = flat[begin : begin + 4096] @ flat.T
        row = torch.arange(len(cosine))
        cosine[row, begin + row] = -torch.inf
        parts.append(cosine.topk(k, dim=1))
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
