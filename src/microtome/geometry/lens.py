"""The geometry lens: which passes it wants, and its rows of the atlas.

What is measured of a site is gathered in `sites`, of heads and between sites in `layers`; rows are made in `rows`, sentences in
`findings`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from microtome.capture.execution import tokens_per_batch
from microtome.capture.folds import SiteGram
from microtome.capture.lens import MAIN, PILOT, Results, Rows, Run, Stage, sampled_windows
from microtome.core import Fold, Site
from microtome.geometry.anova import PARTS
from microtome.geometry.attention import HeadSplit, QKSplit, readings
from microtome.geometry.decomposition import Centre, Decomposition, Parts
from microtome.geometry.filtering import WINDOWS, FilterEffect, PositionFilter, filter_stats, spaced
from microtome.geometry.findings import CONTROLS, findings, interval
from microtome.geometry.handling import handlings
from microtome.geometry.heads import fitting_block, head_behaviours
from microtome.geometry.identity import TokenIdentity
from microtome.geometry.layers import alignment_rows, attention_rows, behaviour_rows, form_rows, split_rows
from microtome.geometry.rows import (
    Row,
    cosine_rows,
    frequency_rows,
    known,
    position_rows,
    spectrum_rows,
    stat_table,
    stats_of,
    table,
    window_rows,
)
from microtome.geometry.sample import WindowSample
from microtome.geometry.sites import DRAWS, SiteGeometry, measure_site
from microtome.geometry.weights import PositionalForm, positional_basis, positional_form, qk_factors
from microtome.model import Model, Shape, patch_grid, vector_width
from microtome.model.allocator import give_back_freed_memory
from microtome.model.model import why_absent

__all__ = ["DEEPER", "FILTERED", "GeometryLens", "effects_of", "shares_table", "splits_of", "stream"]

DEEPER = Stage(3, "deeper", sample=64)
"""The pass that needs what the main pass found: scores of attention taken apart, sites with massive activations decomposed under
each handling of them, and what token ids explain of every site. Several times as dear as the others, hence a sample."""
FILTERED = Stage(4, "filtered", sample=WINDOWS, unit=1)
"""The passes in which position is filtered inside the running model, dozens for each window: done one by one."""

_SPLIT = "geometry.split."
_FILTER = "geometry.filter"
_DIRECTIONS = 128
"""Random directions that sums by token id are taken in: whole vectors of thousands of ids would need gigabytes for all sites."""

_OTHERS = "the stream at resid_pre.0 and after every layer was split; others: microtome geometry MODEL TEXT -o ATLAS --run NAME --sites SITE"
_DEEPER = "it takes a pass of its own: microtome geometry MODEL TEXT -o ATLAS"


@dataclass(frozen=True)
class GeometryLens:
    """Hidden states, of the residual stream or of the sites of a run, split into mu, pos, ctx and resid, and the geometry of each part.

    Shares of variance and norms are of all counted tokens; second moments of about `rows_per_dimension` tokens for each dimension of
    the stream; what needs single windows or tokens of `windows` windows.
    Source: Song & Zhong 2023, arXiv:2310.04861, all sections.
    """

    windows: int = 256
    rows_per_dimension: int = 32

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "geometry"

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """A pilot for the origin, then everything; beyond the quick depth one or two more; none without a text."""
        if run.corpus is None:
            return ()
        if run.depth == "quick":
            return PILOT, MAIN
        return (PILOT, MAIN, DEEPER) if _why_not_filtered(run) else (PILOT, MAIN, DEEPER, FILTERED)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """The centre of every site in the pilot, its moments and samples in the main pass, scores and handlings after it."""
        assert run.corpus is not None, "a stage has a corpus"
        widths, corpus = _widths(run), run.corpus
        if stage == PILOT:
            return {_centre(site): Centre(site, width) for site, width in widths.items()}
        if stage == FILTERED:
            assert isinstance(run.model, Model), "position is filtered in a model that was built"
            filterable = spaced([site for site in widths if _in_stream(site)])
            parts = tuple(earlier.of(MAIN, _parts(site)) for site in filterable)
            return {_FILTER: PositionFilter(run.model, parts, seed=run.seed)}
        cluster = "window" if corpus.shared_halves else "document"
        if stage == DEEPER:
            found: dict[str, Fold] = {}
            for site in widths:
                parts = earlier.of(MAIN, _parts(site))
                if parts.undefined:
                    continue
                whole = Decomposition(site, parts.mu.float(), corpus.window, cluster, seed=run.seed)
                if handled := handlings(parts, earlier.of(MAIN, _windows(site)), whole):
                    found[_handled(site)] = handled
                found[_identity(site)] = TokenIdentity(site, whole.origin, corpus.window, sketch=_DIRECTIONS, seed=run.seed)
            return found if _why_no_split(run) else found | self._splits(run, earlier)
        picks = 1 if run.depth == "quick" else 4
        folds: dict[str, Fold] = {}
        for site, width in widths.items():
            rate = min(1.0, self.rows_per_dimension * width / max(corpus.tokens, 1))
            origin = earlier.of(PILOT, _centre(site))
            folds[_parts(site)] = Decomposition(site, origin, corpus.window, cluster, seed=run.seed)
            folds[_gram(site)] = SiteGram(site, origin, rate, run.seed)
            folds[_windows(site)] = WindowSample(site, width, self.windows, picks, run.seed)
        return folds

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """The tables `geometry_*`, rows of `unit_stats` for heads, and findings; nothing without a corpus."""
        if run.corpus is None:
            return {}
        return self.rows(run, self.measured(run, results), splits_of(results), effects_of(results))

    def rows(
        self, run: Run, sites: Sequence[SiteGeometry], splits: Sequence[HeadSplit], effects: Sequence[FilterEffect]
    ) -> Mapping[str, Rows]:
        """What was measured as tables."""
        assert run.corpus is not None, "sites are measured over a corpus"
        labels, name = run.corpus.labels, run.name
        stats = [*(stat for site in sites for stat in stats_of(site)), *filter_stats(effects)]
        tables: dict[str, Rows] = {
            "geometry_shares": shares_table([site.parts for site in sites], name),
            "geometry_stats": stat_table(stats, name),
            "geometry_positions": _pieces("geometry_positions", sites, lambda site: position_rows(site, name)),
            "geometry_spectra": _pieces("geometry_spectra", sites, lambda site: spectrum_rows(site, name)),
            "geometry_frequencies": _pieces("geometry_frequencies", sites, lambda site: frequency_rows(site, name)),
            "geometry_windows": _pieces("geometry_windows", sites, lambda site: window_rows(site, name, labels)),
            "geometry_cosines": _pieces("geometry_cosines", sites, lambda site: cosine_rows(site, name)),
            "geometry_alignment": table("geometry_alignment", alignment_rows(sites, name, seed=run.seed)),
            "findings": findings(sites, splits, name, effects),
        }
        if run.depth != "quick" and not _why_no_split(run):
            assert isinstance(run.model, Model), "a split needs a model that was built"
            tables["geometry_attention"] = table("geometry_attention", attention_rows(splits, name))
            rows = [*split_rows(splits, name), *form_rows(_forms(run, run.model, sites), name)]
            if block := fitting_block(run.model):
                rows += behaviour_rows(head_behaviours(run.model, block=block, draws=DRAWS, seed=run.seed), name)
            tables["unit_stats"] = table("unit_stats", rows)
        return tables

    def measured(self, run: Run, results: Results) -> list[SiteGeometry]:
        """The measures of every site of the stream, in order."""
        found, grid = [], _grid(run)
        for site in _widths(run):
            give_back_freed_memory()
            names = (_parts(site), _gram(site), _windows(site))
            parts, gram, windows = (results.of(MAIN, name) for name in names)
            measured = measure_site(parts, gram, windows, depth=run.depth, grid=grid, seed=run.seed)
            there = set(results.names(DEEPER))
            handled = results.of(DEEPER, _handled(site)) if _handled(site) in there else {}
            identity = results.of(DEEPER, _identity(site)) if _identity(site) in there else None
            found.append(replace(measured, handled=handled, identity=identity))
        return found

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text, where there is none, what this depth leaves out, and which sites are left out."""
        if run.corpus is None:
            return {"geometry": "it splits hidden states, and without a text there are none; build with a text"}
        missing = {} if run.sites else {"geometry of resid_mid and of branches": _OTHERS}
        why = _why_no_split(run)
        if not_filtered := _why_not_filtered(run):
            missing["use of position"] = not_filtered
        if run.depth == "quick":
            missing["clusters, dimensions and probes of hidden states"] = (
                "not part of depth quick: microtome geometry MODEL TEXT -o ATLAS"
            )
            missing["geometry_attention"] = why or f"not part of depth quick: {_DEEPER}"
        elif why:
            missing["geometry_attention"] = why
        elif isinstance(run.model, Model) and not fitting_block(run.model):
            missing["behaviours of heads"] = "they are observed on repeated words, which take a model that reads text"
        return missing

    def _splits(self, run: Run, earlier: Results) -> dict[str, Fold]:
        """The scores of every layer, by the parts of what enters it."""
        model, corpus = run.model, run.corpus
        assert isinstance(model, Model)
        assert corpus is not None
        found = {layer: earlier.of(MAIN, _parts(site)) for layer, site in _entering(run, _widths(run)).items()}
        parts = {layer: each for layer, each in found.items() if not each.undefined}
        if not parts:
            return {}
        windows = sampled_windows(corpus, DEEPER, run.seed)
        batch = next(iter(corpus.batches(windows, tokens_per_batch(model), model.device)))
        read = readings(model, batch, list(parts))
        return {
            f"{_SPLIT}{layer:04}": QKSplit(layer, reading, parts[layer].mu, parts[layer].pos, seed=run.seed)
            for layer, reading in read.items()
        }


def _centre(site: Site) -> str:
    return f"geometry.centre.{site}"


def _parts(site: Site) -> str:
    return f"geometry.parts.{site}"


def _gram(site: Site) -> str:
    return f"geometry.gram.{site}"


def _windows(site: Site) -> str:
    return f"geometry.windows.{site}"


def _handled(site: Site) -> str:
    return f"geometry.handled.{site}"


def _identity(site: Site) -> str:
    return f"geometry.identity.{site}"


def _widths(run: Run) -> dict[Site, int]:
    """The hidden states to split, in order, and how wide they are."""
    if not run.sites or not isinstance(run.model, Model):
        return dict.fromkeys(stream(run.model.shape), run.model.shape.d_model)
    return {site: vector_width(run.model, site) for site in run.sites}


def _entering(run: Run, sites: Iterable[Site]) -> dict[int, Site]:
    """By layer the site among these that enters it, for layers that one does."""
    found = {}
    for site in sites:
        if site.layer is not None and _in_stream(site):
            found[site.layer + (site.name == "resid_post")] = site
    return {layer: site for layer, site in found.items() if layer < run.model.shape.layers}


def stream(shape: Shape) -> tuple[Site, ...]:
    """The residual stream from the embeddings on: resid_pre.0, then every resid_post."""
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(shape.layers)))


def _grid(run: Run) -> tuple[int, int] | None:
    """Rows and columns of patches; None for text."""
    if not isinstance(run.model, Model) or run.model.family.inputs != "image":
        return None
    return patch_grid(run.model.shape, run.model.processor)


def splits_of(results: Results) -> list[HeadSplit]:
    """The splits of scores, layer by layer; none where that pass was not made."""
    return [results.of(DEEPER, name) for name in results.names(DEEPER) if name.startswith(_SPLIT)]


def _why_no_split(run: Run) -> str:
    """Why scores cannot be taken apart; empty where they can."""
    if not isinstance(run.model, Model):
        return "the model was not built"
    if not _entering(run, _widths(run)):
        return "none of the sites that were named enters a layer"
    return next((why for site in ("q_rot", "attn_scores") if (why := why_absent(run.model, site))), "")


def _why_not_filtered(run: Run) -> str:
    """Why position is not filtered inside the running model; empty where it is."""
    if run.depth == "quick":
        return f"not part of depth quick: {_DEEPER}"
    if not isinstance(run.model, Model):
        return "the model was not built"
    if run.model.family.inputs != "text":
        return "position is filtered in models that read text"
    if not any(_in_stream(site) for site in _widths(run)):
        return "none of the sites that were named is the stream"
    return ""


def effects_of(results: Results) -> list[FilterEffect]:
    """What it does to a few windows of the text that position is filtered; none where those passes were not made."""
    return results.of(FILTERED, _FILTER) if _FILTER in results.names(FILTERED) else []


def _in_stream(site: Site) -> bool:
    return site.name in ("resid_pre", "resid_post")


def _forms(run: Run, model: Model, sites: Sequence[SiteGeometry]) -> dict[int, PositionalForm]:
    """W_QK of every layer in the positional basis of what enters it, where position has leading directions there."""
    found, measured = {}, {each.site: each for each in sites}
    for layer, name in _entering(run, measured).items():
        site = measured[name]
        rank = site.incoherence.ranks[0]
        if 0 < rank < model.shape.d_model:
            factors = qk_factors(model.weights, layer, model.shape)
            found[layer] = positional_form(factors, positional_basis(site.parts.pos), rank, draws=DRAWS, seed=run.seed)
    return found


def _pieces(name: str, sites: Sequence[SiteGeometry], rows: Callable[[SiteGeometry], Iterable[Row]]) -> Iterable[pa.Table]:
    """A table in pieces, one site after the other in the order of their names."""
    for site in sorted(sites, key=lambda each: str(each.site)):
        yield table(name, rows(site))


def shares_table(parts: Sequence[Parts], run: str) -> pa.Table:
    """Rows of the table `geometry_shares`. mu has a norm and no share; an interval is empty where there are too few documents.

    Where the parts are undefined (hidden states that do not vary, one window) there is nothing to share, nor anything to compare with.
    """
    rows: list[Row] = [
        {
            "run": run,
            "site": str(each.site),
            "layer": each.site.layer,
            "part": part,
            "share": known(each.share.get(part, math.nan)),
            "control": None if each.undefined else each.control.get(part),
            "control_kind": None if each.undefined else CONTROLS.get(part),
            "lo": interval(each, part)[0],
            "hi": interval(each, part)[1],
            "norm": known(each.norm[part]),
            "windows": each.windows,
            "tokens": each.tokens,
        }
        for each in parts
        for part in ("mu", *PARTS)
    ]
    return table("geometry_shares", rows)
