"""A run at a glance: the model card, its certificate, what is absent, and everything that is plotted by layer."""

from collections.abc import Mapping
from typing import Any, Final

from microtome.core import Refusal
from microtome.store import TABLES, Manifest, RunCard
from microtome.web.browse import bases
from microtome.web.index import indexed, stat_names
from microtome.web.pictures import patch_grid
from microtome.web.reader import View
from microtome.web.records import (
    Absent,
    Certificate,
    Check,
    Fact,
    Layers,
    LayerStat,
    Loss,
    RunChoice,
    Section,
    Share,
    Summary,
)

__all__ = ["layers", "summary"]

_SHAPE: Final = {
    "layers": "Layers", "d_model": "Width of the stream", "heads": "Heads", "heads_kv": "Key and value heads", "d_head": "Width of a head",
    "d_mlp": "Width of the MLP", "vocab": "Vocabulary", "context": "Positions", "experts": "Experts", "gated": "Gated MLP",
    "norm": "Norm", "causal": "Causal", "head": "Output head", "rotary": "Rotary positions", "learned_positions": "Learned positions",
}  # fmt: skip
"""Fields of a model's shape, in the order in which they are shown."""


def summary(view: View) -> Summary:
    """The model card, the runs there are, and the state of this one."""
    return view.once("summary", _summary)


def _summary(view: View) -> Summary:
    manifest, card = view.manifest, view.card
    found = bases(view)
    return Summary(
        signature=view.signature,
        name=manifest.model.name if manifest else "",
        run=view.run,
        runs=[_choice(name, run) for name, run in manifest.runs.items()] if manifest else [],
        damaged=len(view.changed),
        complete=card is not None and card.status == "complete",
        sections=_sections(view, manifest) if manifest else [],
        certificate=_certificate(card.certificate) if card and card.certificate else None,
        skipped=_skipped(view),
        bases=found,
        tables=_rows(view),
        absent=[Absent(what=what, why=why) for what, why in card.absent.items()] if card else [],
        problems=view.problems,
        grid=patch_grid(view),
    )


def _choice(name: str, run: RunCard) -> RunChoice:
    text = None if run.corpus is None else str(run.corpus.get("name", ""))
    return RunChoice(name=name, text=text, complete=run.status == "complete")


def _rows(view: View) -> dict[str, int]:
    """How many rows each table has for this run, those that hold for any run included; tables without any are left out."""
    found = {}
    for table in TABLES:
        try:
            found[table] = view.sql(f'SELECT count(*) FROM "{table}"')[0][0]
        except Refusal:
            continue  # that it is damaged is among the problems, where a page needs it
    return {table: rows for table, rows in found.items() if rows}


def _sections(view: View, manifest: Manifest) -> list[Section]:
    model = manifest.model
    facts = [
        Fact(name="Name", value=model.name),
        Fact(name="Family", value=model.family),
        Fact(name="Architecture", value=model.architecture, mono=True),
        Fact(name="Atlas written by", value=manifest.written_by),
        Fact(name="Fingerprint", value=model.fingerprint, mono=True),
    ]
    sections = [Section(title="Model", facts=facts), Section(title="Shape", facts=_shape(model.shape))]
    run = view.card
    if run is None:
        return sections
    ran = Section(
        title=f"Run {view.run}",
        note="The numbers of a run can be repeated bit by bit under the same execution.",
        facts=[
            Fact(name="Status", value=run.status),
            Fact(name="Depth", value=_depth(run)),
            Fact(name="Seed", value=str(run.seed)),
            Fact(name="Identity", value=run.identity, mono=True),
            *_facts(run.execution),
        ],
    )
    return [*sections, _corpus(view, run), ran]


def _depth(run: RunCard) -> str:
    """One word where all lenses went equally deep."""
    depths = run.depths | run.pending
    return next(iter(depths.values())) if len(set(depths.values())) == 1 else ", ".join(f"{k} {v}" for k, v in depths.items())


def _shape(shape: Mapping[str, Any]) -> list[Fact]:
    named = {_SHAPE[key]: shape[key] for key in _SHAPE if key in shape}
    return _facts(named | {key: value for key, value in shape.items() if key not in _SHAPE})


def _corpus(view: View, run: RunCard) -> Section:
    title = f"Corpus of run {view.run}"
    if run.corpus is None:
        return Section(title=title, note="Weights only: this run read no text, so it has no contexts or activations.", facts=[])
    rows = view.sql(
        "SELECT count(*), count(*) FILTER (windows > 0), sum(windows), sum(tokens), count(DISTINCT label) FROM documents"
    )
    documents, used, windows, tokens, labels = rows[0]
    counted = {}
    if documents:
        counted = {
            "documents": f"{documents:,}, of which {used:,} used",
            "windows": f"{int(windows or 0):,} of up to {run.window} tokens",
            "tokens": f"{int(tokens or 0):,}",
            "labels": f"{labels:,}",
        }
        grid = patch_grid(view)
        if grid is not None:
            counted["windows"] = f"{int(windows or 0):,} pictures of {grid.rows} x {grid.columns} patches"
    elsewhere = {*counted, "skipped_first"}  # which documents were skipped is a list of its own
    others = {key: value for key, value in run.corpus.items() if key not in elsewhere}
    return Section(title=title, facts=[*_facts(counted), *_facts(others)])


def _skipped(view: View) -> list[Fact]:
    rows = view.sql(
        "SELECT coalesce(name, 'document ' || document), reason FROM documents WHERE windows = 0 OR reason IS NOT NULL AND reason != '' "
        "ORDER BY document LIMIT 100"
    )
    return [Fact(name=name, value=reason or "no window") for name, reason in rows]


def _facts(values: Mapping[str, Any], before: str = "") -> list[Fact]:
    """Named values as facts; nested ones by their path, absent ones left out."""
    facts = []
    for key, value in values.items():
        name = before + key.replace("_", " ")
        if isinstance(value, Mapping):
            facts += _facts(value, f"{name}: ")
        elif value is not None and value != "" and value != []:
            facts.append(
                Fact(name=name, value=_shown(value), mono=isinstance(value, str) and len(value) >= 24 and " " not in value)
            )
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(_shown(each) for each in value) if isinstance(value, list | tuple) else str(value)


def _certificate(raw: Mapping[str, Any]) -> Certificate:
    """A certificate's identities as rows, what a dtype below fp32 costs as facts."""
    facts = _facts({key: value for key, value in raw.items() if key not in ("identities", "dtypes", "model")})
    dtypes = raw.get("dtypes") or []
    if dtypes:
        error = max(dtypes, key=lambda row: row["relative_error"])
        cosine = min(dtypes, key=lambda row: row["worst_cosine"])
        facts.append(
            Fact(name="Largest error of the dtype", value=f"{100 * error['relative_error']:.2g} % (layer {error['layer']})")
        )
        facts.append(Fact(name="Worst token's cosine", value=f"{cosine['worst_cosine']:.4f} (layer {cosine['layer']})"))
    return Certificate(checks=[_check(row) for row in raw.get("identities", [])], facts=facts)


def _check(row: Mapping[str, Any]) -> Check:
    layer = row.get("worst_layer")
    return Check(
        identity=str(row.get("identity", "")),
        place="" if layer is None else f"worst in layer {layer}",
        error=row.get("worst_error"),
        tolerance=row.get("tolerance"),
        passed=row.get("passed"),
    )


def layers(view: View) -> Layers:
    """Shares of variance, losses and quartiles of every statistic, by layer."""
    return view.once("layers", _layers)


def _layers(view: View) -> Layers:
    shares = view.sql(
        "SELECT site::VARCHAR, layer, part::VARCHAR, share, control, control_kind::VARCHAR, lo, hi, norm "
        "FROM geometry_shares ORDER BY layer NULLS FIRST, site, part"
    )
    losses = view.sql(
        "SELECT objective::VARCHAR, site::VARCHAR, layer, loss, control, control_kind::VARCHAR, lo, hi, tokens "
        "FROM layer_loss ORDER BY objective, layer NULLS LAST, site"
    )
    return Layers(
        shares=[Share(**dict(zip(Share.model_fields, row, strict=True))) for row in shares],
        losses=[Loss(**dict(zip(Loss.model_fields, row, strict=True))) for row in losses],
        stats=_quartiles(view),
    )


def _quartiles(view: View) -> list[LayerStat]:
    indexed(view)
    found = []
    for n, stat in enumerate(stat_names(view)):
        rows = view.sql(
            f"SELECT basis, layer, quantile_cont(s{n}, [0.25, 0.5, 0.75]), count(s{n}) FROM mt_rows WHERE s{n} IS NOT NULL "
            "GROUP BY 1, 2 ORDER BY 1, 2 NULLS FIRST"
        )
        found += [
            LayerStat(basis=basis, stat=stat, layer=layer, low=low, middle=middle, high=high, units=units)
            for basis, layer, (low, middle, high), units in rows
        ]
    return found
