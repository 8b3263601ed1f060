"""What is measured between sites and of heads, and its rows: alignment of parts across layers, splits of scores, behaviour of heads.

What these numbers are is said in `alignment`, `attention`, `heads` and `weights`; measures of single sites belong in `sites`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from microtome.core import UnitAddress
from microtome.geometry.alignment import gram_alignment, linear_alignment, overlap, span
from microtome.geometry.attention import HeadSplit
from microtome.geometry.halves import centred, cross_gram
from microtome.geometry.heads import HeadBehaviour
from microtome.geometry.measured import Measured, undefined
from microtome.geometry.rows import Row, known, numbers, q_values
from microtome.geometry.sites import DRAWS, SiteGeometry, halves_of
from microtome.geometry.terms import PIECES, TERMS
from microtome.geometry.weights import PositionalForm
from microtome.readout import pooled_chance

__all__ = ["alignment_rows", "attention_rows", "behaviour_rows", "form_rows", "split_rows"]

_ORDERED = "rows of one side in random order"
_SPANS = "random directions"
_TURNED = "queries turned at random inside the head"
_EARLIER = "random earlier tokens"
_NOISE_ALONE = "rows of a side differ by no more than noise would make them"


def alignment_rows(sites: Sequence[SiteGeometry], run: str, *, seed: int = 0) -> Iterator[Row]:
    """Rows of `geometry_alignment`: kernel alignment of position and of context between all sites, and principal angles between neighbours."""
    found: list[tuple[str, str, SiteGeometry, SiteGeometry, Measured, str]] = []
    grams = [_position_gram(site) for site in sites]
    for place, one in enumerate(sites):
        for further in range(place + 1, len(sites)):
            other = sites[further]
            pos = gram_alignment(grams[place], grams[further])
            ctx = linear_alignment(one.contexts.ctx, other.contexts.ctx)
            found.append(("pos", "cka", one, other, pos.plain, _ORDERED))
            found.append(("ctx", "cka", one, other, ctx.plain, _ORDERED))
            why = ctx.plain.undefined or (_NOISE_ALONE if math.isnan(ctx.debiased) else "")
            debiased = Measured(ctx.debiased, control=0.0, undefined=why)
            found.append(("ctx", "cka_debiased", one, other, debiased, "independent rows"))
        if place + 1 < len(sites):
            for subject, each in _angles(one, sites[place + 1], seed).items():
                found.append((subject, "mean_square_cosine_of_angles", one, sites[place + 1], each, _SPANS))
    q = q_values([((subject, stat), measured.p) for subject, stat, _, _, measured, _ in found])
    for (subject, stat, one, other, measured, kind), value in zip(found, q, strict=True):
        about = {"run": run, "subject": subject, "stat": stat, "site": str(one.site), "other": str(other.site)}
        yield about | numbers(measured, kind, value)


def _position_gram(site: SiteGeometry) -> Float[Tensor, "token token"]:
    """Without noise where there are two halves."""
    halves = halves_of(site.parts)
    if halves is not None:
        return cross_gram(halves)
    here = centred(site.parts.pos)
    return here @ here.T


def _angles(one: SiteGeometry, other: SiteGeometry, seed: int) -> dict[str, Measured]:
    """Overlap of the leading directions of position, and of context, as many as both sites have."""
    ranks = {
        "pos": min(one.incoherence.ranks[0], other.incoherence.ranks[0]),
        "ctx": min(one.incoherence.ranks[1], other.incoherence.ranks[1]),
    }
    rows = {"pos": (one.parts.pos, other.parts.pos), "ctx": (one.contexts.ctx, other.contexts.ctx)}
    return {
        subject: overlap(*(span(each, rank) for each in rows[subject]), draws=DRAWS, seed=seed).mean_square
        if rank and one.parts.mu.shape == other.parts.mu.shape
        else undefined("a part has no leading directions" if not rank else "the sites are not equally wide")
        for subject, rank in ranks.items()
    }


def attention_rows(splits: Sequence[HeadSplit], run: str) -> Iterator[Row]:
    """Rows of `geometry_attention`: every term of every head's scores."""
    for split in splits:
        for head in range(len(split.energy)):
            for term, (query, key) in enumerate(TERMS):
                yield {
                    "run": run,
                    "layer": split.layer,
                    "head": head,
                    "query_part": query,
                    "key_part": key,
                    "energy": known(float(split.energy[head, term])),
                    "energy_control": known(float(split.energy_control[head, term])),
                    "share": known(float(split.share[head, term])),
                    "share_control": known(float(split.share_control[head, term])),
                    "control_kind": _TURNED if math.isfinite(float(split.energy_control[head, term])) else None,
                }


def split_rows(splits: Sequence[HeadSplit], run: str) -> Iterator[Row]:
    """Rows of `unit_stats`: by head, each piece's share of the variance of scores, and the divergence when it is taken out.

    The q of a divergence is of a t test over windows that it differs from that without turned queries, its interval its own.
    """
    from scipy.stats import t

    for piece, name in enumerate(PIECES):
        if not any(bool((split.part_share[:, piece] != 0).any()) for split in splits):
            continue  # a model without a bias on its scores has none to take out
        tests = [
            (name, 2 * float(t.sf(abs(gap), split.windows - 1)) if math.isfinite(gap) else math.nan)
            for split in splits
            for gap in ((split.kl - split.kl_control) / split.gap_error)[:, piece].tolist()
        ]
        q = iter(q_values(tests))
        for split in splits:
            for head in range(len(split.kl)):
                kl, quality = float(split.kl[head, piece]), next(q)
                share = float(split.part_share[head, piece])
                if math.isnan(share) or math.isnan(kl):
                    continue
                control = float(split.part_share_control[head, piece])
                yield _unit(run, split.layer, head, f"score_share_of_{name}", share, control, _TURNED)
                control, reach = float(split.kl_control[head, piece]), float(t.ppf(0.975, max(split.windows - 1, 1)))
                reach *= float(split.kl_error[head, piece])
                ends = {"lo": known(max(kl - reach, 0.0)), "hi": known(kl + reach), "q": known(quality)}
                yield _unit(run, split.layer, head, f"kl_without_{name}", kl, control, _TURNED) | ends


def behaviour_rows(found: Sequence[HeadBehaviour], run: str) -> Iterator[Row]:
    """Rows of `unit_stats`: attention of every head to what a behaviour says, over repeated random tokens."""
    chances = pooled_chance([each.values for each in found], [each.draws for each in found], "greater") if found else []
    tests = [(each.behaviour, p) for each, chance in zip(found, chances, strict=True) for p in chance.tolist()]
    q = iter(q_values(tests))
    for each in found:
        for head in range(len(each.values)):
            value, control = float(each.values[head]), float(each.control[head])
            row = _unit(run, each.layer, head, f"{each.behaviour}_attention", value, control, _EARLIER)
            yield row | {"q": known(next(q))}


def form_rows(forms: Mapping[int, PositionalForm], run: str) -> Iterator[Row]:
    """Rows of `unit_stats`: how far W_QK of every head is a diagonal and a few large entries among leading positions.

    None of a head whose weights are 0.
    """
    for stat, value, control, p in (
        ("qk_position_survivors", "inside", "inside_control", "inside_p"),
        ("qk_position_energy", "energy", "energy_control", "energy_p"),
    ):
        q = iter(q_values([(stat, each) for form in forms.values() for each in getattr(form, p).tolist()]))
        for layer, form in forms.items():
            for head, found in enumerate(getattr(form, value).tolist()):
                row = _unit(run, layer, head, stat, found, float(getattr(form, control)[head]), "a random basis")
                row["q"] = known(next(q))
                if math.isfinite(found):
                    yield row
    for layer, form in forms.items():
        for head in range(len(form.deviation)):
            fraction = float(form.fraction[head])
            if not math.isnan(fraction):
                yield _unit(run, layer, head, "qk_survivors_at_leading_positions", fraction, form.chance, "survivors anywhere")
            if math.isfinite(float(form.diagonal[head])):
                yield _unit(run, layer, head, "qk_diagonal_share", float(form.diagonal[head]), math.nan, "")


def _unit(run: str, layer: int, head: int, stat: str, value: float, control: float, kind: str) -> Row:
    return {
        "unit": str(UnitAddress("heads", head, layer=layer)),
        "site": f"attn_scores.{layer}",
        "stat": stat,
        "value": known(value),
        "control": known(control),
        "control_kind": kind if not math.isnan(control) else None,
        "lo": None,
        "hi": None,
        "q": None,
        "run": run,
    }
