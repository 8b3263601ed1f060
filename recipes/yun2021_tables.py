"""Yun et al. 2021, arXiv:2103.15949: tables by place, word, pattern and level. What is concluded from them is said in `yun2021`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Site
from microtome.factors.polysemy import Method
from recipes.claims import layers_table
from recipes.yun2021_measures import AUTOENCODER, RANDOM, REFITTED, SHUFFLED, THEIRS, Found
from recipes.yun2021_patterns import Matched

__all__ = ["area_at", "by_level", "by_pattern", "by_place", "by_word", "share_at"]


def area_at(found: Found, method: Method, sites: Sequence[Site]) -> Float[Tensor, "word place"]:
    """AUROC of a method, [word, place]."""
    return torch.tensor([[each.sense.sites[site, method].scores.auroc for site in sites] for each in found.senses])


def share_at(several: Sequence[Matched], place: int) -> float:
    """The share of top contexts at a place, in the mean of patterns."""
    return sum(each.share[place].value for each in several) / len(several)


def by_place(found: Found) -> str:
    """For each place how much is explained, by how many factors, and what tells senses and patterns there."""
    sites = found.dictionaries[THEIRS].reads
    heads = (
        "explained (factors)",
        "refitted",
        AUTOENCODER,
        "principal, random",
        "senses: AUROC",
        "(random, state)",
        "patterns",
        "(random, shuffled)",
    )
    rows = []
    for place, site in enumerate(sites):
        stat = {name: {key: one.value for key, one in each[site].stats.items()} for name, each in found.judged.items()}
        explained = {name: each["explained_variance"] for name, each in stat.items()}
        cheap = max(value for name, value in explained.items() if name.startswith("pca"))
        factor, random, state = (
            float(area_at(found, method, [site]).mean()) for method in ("factor", "random direction", "state")
        )
        rows.append(
            (
                site.layer or 0,
                (
                    f"{explained[THEIRS]:.2f} ({stat[THEIRS]['l0']:.0f})",
                    f"{explained[REFITTED]:.2f}",
                    f"{explained[AUTOENCODER]:.2f} ({stat[AUTOENCODER]['l0']:.0f})",
                    f"{cheap:.2f}, {explained[RANDOM]:.2f}",
                    f"{factor:.2f}",
                    f"({random:.2f}, {state:.2f})",
                    f"{share_at(found.patterns[THEIRS], place):.2f}",
                    f"({share_at(found.patterns[RANDOM], place):.2f}, {share_at(found.patterns[SHUFFLED], place):.2f})",
                ),
            )
        )
    return (
        "by place (the layer before which it is; senses and patterns as means, patterns as shares of top contexts):\n"
        + layers_table(heads, rows)
    )


def by_word(found: Found) -> str:
    """Of each word how well each method tells verbs, with the factor that was chosen most often and where it is largest."""
    lines = [
        "words: F1 (AUROC) of what was chosen among all places, judged on documents that chose nothing; and the factor's largest occurrences"
    ]
    for each in found.senses:
        sense, (site, unit) = each.sense, each.best
        cells = [f"{method} {one.scores.f1:.2f} ({one.scores.auroc:.2f})" for method, one in sense.anywhere.items()]
        cells += [f"factor of {name} {one.scores.f1:.2f} ({one.scores.auroc:.2f})" for name, one in each.others.items()]
        searched = sense.anywhere["factor"].in_sample
        lines.append(
            f"  {each.word}, {sense.positives} of {sense.rows} are {sense.name}: {'; '.join(cells)}; in-sample AUROC of the factor {searched:.2f}"
        )
        lines += [f"      factor {unit} before layer {site.layer}: {shown}" for shown in each.shown]
    return "\n".join(lines)


def by_pattern(found: Found) -> str:
    """Of each pattern the shares of top contexts at each place, and what its factor is at its best place."""
    lines = [
        "patterns: % of top contexts at each place, each with its own factor; then the best factor, as it is at all places, and its top contexts"
    ]
    for each in found.patterns[THEIRS]:
        unit, own = each.units[each.best], each.share[each.best]
        lines.append(f"  {each.pattern.name} ({each.base:.1%} of tokens; the paper's: {each.pattern.paper})")
        for name, several in found.patterns.items():
            same = next(one for one in several if one.pattern.name == each.pattern.name)
            lines.append(
                f"      {name:>17}: {' '.join(f'{100 * one.value:4.0f}' for one in same.share)}; best {same.share[same.best].percent}"
            )
        layer = found.dictionaries[THEIRS].reads[each.best].layer
        lines.append(
            f"      factor {unit}, chosen before layer {layer}, {own.percent}; along the places {' '.join(f'{100 * one:.0f}' for one in each.along)}"
        )
        lines.append(
            f"      active at {each.precision.percent} tokens of the pattern, in {each.recall.percent} of its places; by tenths of its codes "
            + " ".join(f"{100 * float(one):.0f}" for one in each.tenths)
        )
        lines += [f"      {shown}" for shown in found.contexts[each.pattern.name][:3]]
    if found.left_out:
        lines.append(f"  too few in this text: {', '.join(found.left_out)}")
    return "\n".join(lines)


def by_level(found: Found) -> str:
    """How much of a code is there with so much context, level by level, and contexts of factors that look far."""
    lines = [
        "levels: share of the code with so many tokens on each side, and shuffled; factors by reach in tokens (inf: the whole window only)"
    ]
    for each in found.looked:
        share = ", ".join(
            f"{width} {float(value):.2f}" for width, value in zip(each.reach.widths, each.reach.share.nanmean(0), strict=False)
        )
        widths = [str(one) for one in sorted(each.reach.width.tolist())]
        lines.append(
            f"  {each.level:>6}: {share}, all 1; shuffled {float(each.shuffled.nanmean()):.2f}; reach {' '.join(widths)}"
        )
    lines += [f"  factor {one.unit} before layer {one.layer}: {one.shown}" for one in found.coloured]
    return "\n".join(lines)
