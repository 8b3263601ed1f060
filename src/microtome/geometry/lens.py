"""The geometry lens: which passes it wants, and its rows of the atlas.

What the parts are and how they are found belongs in `decomposition` and `anova`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from microtome.capture.lens import MAIN, PILOT, Results, Run, Stage
from microtome.core import Fold, Site
from microtome.geometry.anova import PARTS
from microtome.geometry.decomposition import Centre, Decomposition, Parts
from microtome.model import Shape
from microtome.store.tables import TABLES

__all__ = ["CONTROLS", "GeometryLens", "findings", "shares_table", "stream"]

CONTROLS = {
    "pos": "tokens reordered inside windows",
    "ctx": "tokens assigned to random windows",
    "resid": "tokens assigned to random windows and positions",
}
"""What each control is the exact expectation under; with windows of one length, reordering is as good as circular shifts."""

_DISTINCT = 2.0
"""A share below this many times its chance level is called close to chance; a test of it would need the spread of the null."""


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
        sites = stream(run.model.shape)
        if stage == PILOT:
            return {f"geometry.centre.{site}": Centre(site, run.model.shape.d_model) for site in sites}
        return {f"geometry.parts.{site}": Decomposition(site, earlier.of(PILOT, f"geometry.centre.{site}")) for site in sites}

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
    """Rows of the table `geometry_shares`. mu has a norm and no share; `lo` and `hi` are empty: no interval is computed."""
    rows = [
        {
            "run": run,
            "site": str(each.site),
            "layer": each.site.layer,
            "part": part,
            "share": each.share.get(part),
            "control": each.control.get(part),
            "control_kind": CONTROLS.get(part),
            "norm": each.norm[part],
            "windows": each.windows,
            "tokens": each.tokens,
        }
        for each in parts
        for part in ("mu", *PARTS)
    ]
    return pa.Table.from_pylist(rows, TABLES["geometry_shares"].schema)


def findings(parts: Sequence[Parts], run: str) -> pa.Table:
    """Rows of the table `findings`: where position and context weigh most, and where the mean outweighs all that varies."""
    found = [_peak(parts, "pos", "position"), _peak(parts, "ctx", "context"), *_offset(parts)]
    rows = [row | {"run": run, "rank": rank, "lens": "geometry"} for rank, row in enumerate(found)]
    return pa.Table.from_pylist(rows, TABLES["findings"].schema)


def _peak(parts: Sequence[Parts], part: str, name: str) -> dict[str, object]:
    """Where a part's share is largest; a share close to its chance level is said to be."""
    top = max(parts, key=lambda each: each.share[part])
    share, control = top.share[part], top.control[part]
    first, last = parts[0], parts[-1]
    if share < _DISTINCT * control:
        sentence = (
            f"the {name} of a token explains little more of the variance of hidden states than chance does, at any layer: "
            f"at most {_percent(share)} ({top.site}; chance {_percent(control)})"
        )
    else:
        sentence = (
            f"the {name} of a token explains most at {top.site}: {_percent(share)} of the variance of hidden states "
            f"(chance {_percent(control)}); {_percent(first.share[part])} at {first.site}, "
            f"{_percent(last.share[part])} at {last.site}"
        )
    return {
        "kind": f"{name} share",
        "subject": str(top.site),
        "sentence": sentence,
        "value": share,
        "control": control,
        "control_kind": CONTROLS[part],
    }


def _offset(parts: Sequence[Parts]) -> list[dict[str, object]]:
    """The site where the global mean is longest against the root mean square length of what varies around it, if it is longer."""
    ratios = [each.norm["mu"] / max(each.spread, 1e-300) for each in parts]
    place = max(range(len(parts)), key=ratios.__getitem__)
    if ratios[place] <= 1:
        return []
    sentence = (
        f"at {parts[place].site} hidden states share a mean {ratios[place]:.1f} times as long as what varies around it: "
        f"length {parts[place].norm['mu']:.4g} against {parts[place].spread:.4g}"
    )
    return [{"kind": "common offset", "subject": str(parts[place].site), "sentence": sentence, "value": ratios[place]}]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
