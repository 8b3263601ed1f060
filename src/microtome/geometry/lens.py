"""The geometry lens: which passes it wants, and its rows of the atlas.

What the parts are and how they are found belongs in `decomposition` and `anova`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from microtome.capture.lens import MAIN, PILOT, Results, Run, Stage
from microtome.core import Fold, Site
from microtome.geometry.anova import PARTS
from microtome.geometry.decomposition import Centre, Decomposition, Parts
from microtome.model import Shape
from microtome.numerics import benjamini_hochberg
from microtome.store.tables import TABLES

__all__ = ["CONTROLS", "GeometryLens", "findings", "shares_table", "stream"]

CONTROLS = {
    "pos": "tokens reordered inside windows",
    "ctx": "tokens assigned to random windows",
    "resid": "tokens assigned to random windows and positions",
}
"""What each control is the exact expectation under; with windows of one length, reordering is as good as circular shifts."""

_LARGEST_Q = 0.01
_DISTINCT = 2.0
"""Where there are too few documents for a test, a share below this many times its chance level is called chance."""


@dataclass(frozen=True)
class GeometryLens:
    """Shares of variance and norms of mu, pos, ctx and resid for the whole residual stream, on all counted tokens.

    Source: Song & Zhong 2023, arXiv:2310.04861, section 2.
    """

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "geometry"

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """A pilot for the origin, then everything; neither where there is no text."""
        return () if run.corpus is None else (PILOT, MAIN)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """The centre of every site in the pilot, its decomposition after it."""
        assert run.corpus is not None, "a stage has a corpus"
        sites, corpus = stream(run.model.shape), run.corpus
        if stage == PILOT:
            return {f"geometry.centre.{site}": Centre(site, run.model.shape.d_model) for site in sites}
        cluster = "window" if corpus.shared_halves else "document"
        return {
            f"geometry.parts.{site}": Decomposition(
                site, earlier.of(PILOT, f"geometry.centre.{site}"), corpus.window, cluster, seed=run.seed
            )
            for site in sites
        }

    def tables(self, run: Run, results: Results) -> Mapping[str, pa.Table]:
        """geometry_shares and findings; nothing without a corpus."""
        if run.corpus is None:
            return {}
        parts = [results.of(MAIN, f"geometry.parts.{site}") for site in stream(run.model.shape)]
        return {"geometry_shares": shares_table(parts, run.name), "findings": findings(parts, run.name)}

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text, where there is none, and which sites are left out."""
        if run.corpus is None:
            return {"geometry_shares": "it splits hidden states, and without a text there are none; build with a text"}
        return {"geometry_shares of resid_mid and of branches": "this version splits resid_pre.0 and every resid_post"}


def stream(shape: Shape) -> tuple[Site, ...]:
    """The residual stream from the embeddings on: resid_pre.0, then every resid_post."""
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(shape.layers)))


def shares_table(parts: Sequence[Parts], run: str) -> pa.Table:
    """Rows of the table `geometry_shares`. mu has a norm and no share; an interval is empty where there are too few documents."""
    rows = [
        {
            "run": run,
            "site": str(each.site),
            "layer": each.site.layer,
            "part": part,
            "share": each.share.get(part),
            "control": each.control.get(part),
            "control_kind": CONTROLS.get(part),
            "lo": _interval(each, part)[0],
            "hi": _interval(each, part)[1],
            "norm": each.norm[part],
            "windows": each.windows,
            "tokens": each.tokens,
        }
        for each in parts
        for part in ("mu", *PARTS)
    ]
    return pa.Table.from_pylist(rows, TABLES["geometry_shares"].schema)


def _interval(parts: Parts, part: str) -> tuple[float | None, float | None]:
    """A 95 % interval of a share over documents; None where there is none."""
    error = parts.uncertainty.share.get(part, math.nan)
    if math.isnan(error) or part not in parts.share:
        return None, None
    reach = parts.uncertainty.reach * error
    return max(parts.share[part] - reach, 0.0), min(parts.share[part] + reach, 1.0)


def findings(parts: Sequence[Parts], run: str) -> pa.Table:
    """Rows of the table `findings`: where position and where context weigh most."""
    found = [_peak(parts, "pos", "position"), _peak(parts, "ctx", "context")]
    rows = [row | {"run": run, "rank": rank, "lens": "geometry"} for rank, row in enumerate(found)]
    return pa.Table.from_pylist(rows, TABLES["findings"].schema)


def _peak(parts: Sequence[Parts], part: str, name: str) -> dict[str, object]:
    """Where a part's share is largest, and whether it is there at all; q is corrected over the sites that compete."""
    place = max(range(len(parts)), key=lambda each: parts[each].share[part])
    top, first, last = parts[place], parts[0], parts[-1]
    share, control, q = top.share[part], top.control[part], _q(parts, part)[place]
    low, high = _interval(top, part)
    spread = "" if low is None or high is None else f", 95 % interval over documents {_percent(low)} to {_percent(high)}"
    doubtful = share < _DISTINCT * control if math.isnan(q) else q > _LARGEST_Q
    if doubtful:
        sentence = (
            f"the {name} of a token explains no more of the variance of hidden states than chance may, at any layer: "
            f"at most {_percent(share)} ({top.site}; chance {_percent(control)}{spread})"
        )
    else:
        sentence = (
            f"the {name} of a token explains most at {top.site}: {_percent(share)} of the variance of hidden states "
            f"(chance {_percent(control)}{spread}); {_percent(first.share[part])} at {first.site}, "
            f"{_percent(last.share[part])} at {last.site}"
        )
    return {
        "kind": f"{name} share",
        "subject": str(top.site),
        "sentence": sentence,
        "value": share,
        "control": control,
        "control_kind": CONTROLS[part],
        "q": None if math.isnan(q) else q,
    }


def _q(parts: Sequence[Parts], part: str) -> list[float]:
    """q-value of a part at every site, NaN where there are too few documents.

    Position is tested by what two halves of the documents agree on, which is 0 on average where it does nothing; context by how far its
    share is above that of random windows, in standard errors over documents.
    """
    if part == "pos":
        p = [each.uncertainty.p_positive(each.agreed) for each in parts]
    else:
        p = [each.uncertainty.p_above(part, each.share[part] - each.control[part]) for each in parts]
    return benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).tolist()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
