"""Everything about one unit but its contexts' words: statistics, tokens at both ends, links, findings.

Tables are sorted by unit, so a question about one unit reads a few row groups. The list of units is in `browse`, contexts in
`contexts`.
"""

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from microtome.core import NotFound, Refusal
from microtome.web.contexts import contexts
from microtome.web.depth import by_depth
from microtome.web.index import indexed, measured_words, spelt_token, vocabulary
from microtome.web.reader import View, problem_of
from microtome.web.records import Finding, Histogram, Link, Problem, Stat, Token, UnitLabel, UnitPage
from microtome.web.words import column

__all__ = ["TIES", "Address", "findings", "page", "pages", "stats_of", "tied"]


class Address(BaseModel):
    """A unit by its address."""

    address: Annotated[str, Field(max_length=200)]


_WANTED: Final = "WITH wanted AS (SELECT unnest(?::VARCHAR[]) AS unit)"
TIES: Final = {
    "links": ", own AS (SELECT l.unit::VARCHAR AS unit, other::VARCHAR AS other, kind::VARCHAR AS kind, score, control "
    "FROM links l JOIN wanted w ON l.unit = w.unit), "
    "back AS (SELECT w.unit, s.unit AS other, k.kind, b.score, b.control FROM wanted w JOIN mt_rows r ON r.unit = w.unit "
    "JOIN mt_back b ON b.place = r.place JOIN mt_rows s ON s.place = b.source JOIN mt_link_kinds k ON k.code = b.kind) "
    "SELECT * FROM own UNION ALL SELECT unit, other, kind || ', seen from there', score, control FROM back "
    "ANTI JOIN own USING (unit, other, kind)",
    "coactivations": "SELECT c.unit::VARCHAR, other::VARCHAR, 'fires alike', score, control FROM coactivations c JOIN wanted w ON c.unit = w.unit",
    "cofirings": "SELECT c.unit::VARCHAR, other::VARCHAR, 'active together', score, control FROM cofirings c JOIN wanted w ON c.unit = w.unit",
}
"""Tables that tie a unit to others, and how: those that a unit has and those that lead to it, which say so; of units that are
linked both ways in one kind, once."""


def page(view: View, unit: str) -> UnitPage:
    """Everything about `unit`; a table that cannot be read is named and left out.

    Errors: `Refusal` where this atlas has no such unit.
    """
    indexed(view)
    rows = view.sql("SELECT place FROM mt_rows WHERE unit = ?", unit)
    if not rows:
        raise NotFound(
            f"unit {unit[:80]}", why="this atlas has no unit of that address", instead="look for it in the unit browser"
        )
    found = pages(view, rows[0][0], 1)[0]
    try:
        return found.model_copy(update={"contexts": contexts(view, unit)})
    except Refusal as refusal:
        what = refusal.what if refusal.what.startswith("table ") else "table contexts"
        return found.model_copy(update={"problems": [*found.problems, problem_of(refusal).model_copy(update={"what": what})]})


def pages(view: View, first: int, count: int) -> list[UnitPage]:
    """The pages of `count` units from place `first` in address order, without contexts."""
    indexed(view)
    rows = view.sql(
        'SELECT place, unit, basis, name, layer, expert, "index" FROM mt_rows WHERE place BETWEEN ? AND ? ORDER BY place',
        first - 1, first + count,
    )  # fmt: skip
    total = view.once("units", lambda v: v.sql("SELECT count(*) FROM mt_rows")[0][0])
    addresses = {row[0]: row[1] for row in rows}
    inner = [row for row in rows if first <= row[0] < first + count]
    units = [row[1] for row in inner]
    problems: list[Problem] = []
    stats = stats_of(view, first, count)
    tokens, labels, histograms = {}, {}, {}
    links: dict[str, list[Link]] = {}
    for table, found, read in (
        ("tokens", tokens, _tokens),
        ("unit_labels", labels, _labels),
        ("histograms", histograms, _histograms),
    ):
        try:
            found.update(read(view, units))
        except Refusal as refusal:
            problems.append(problem_of(refusal).model_copy(update={"what": f"table {table}"}))
    for table in TIES:
        try:
            for unit, own in tied(view, table, units).items():
                links.setdefault(unit, []).extend(own)
        except Refusal as refusal:
            problems.append(problem_of(refusal).model_copy(update={"what": f"table {table}"}))
    concerning = view.once("concerning", _concerning)
    return [
        UnitPage(
            run=view.run, unit=unit, basis=basis, name=name, layer=layer, expert=expert, index=index, place=place, of=total,
            previous=addresses.get(place - 1), next=addresses.get(place + 1),
            stats=stats.get(place, []), histograms=histograms.get(unit, []),
            promotes=[token for end, token in tokens.get(unit, []) if end == "+"],
            suppresses=[token for end, token in tokens.get(unit, []) if end == "-"],
            contexts=[], links=sorted(links.get(unit, []), key=_by_size), labels=labels.get(unit, []), findings=concerning.get(unit, []), problems=problems,
        )
        for place, unit, basis, name, layer, expert, index in inner
    ]  # fmt: skip


def findings(view: View) -> list[Finding]:
    """All findings of the run, in order of lens and rank; `unit` is the address where the subject is a unit of this atlas."""
    return view.once("findings", _findings)


def _findings(view: View) -> list[Finding]:
    indexed(view)
    rows = view.sql(
        "SELECT f.lens::VARCHAR, f.rank, f.kind::VARCHAR, f.subject, r.unit, f.sentence, f.value, f.control, "
        "f.control_kind::VARCHAR, f.q FROM findings f LEFT JOIN mt_rows r "
        "ON r.unit = regexp_replace(regexp_replace(f.subject, '[+-]$', ''), '(/.*)@.*$', '\\1') ORDER BY 1, 2, 4"
    )
    return [Finding(**dict(zip(Finding.model_fields, row, strict=True))) for row in rows]


def _concerning(view: View) -> dict[str, list[Finding]]:
    """Findings by the unit they are about."""
    found: dict[str, list[Finding]] = {}
    for finding in findings(view):
        if finding.unit is not None:
            found.setdefault(finding.unit, []).append(finding)
    return found


def stats_of(view: View, first: int, count: int) -> dict[int, list[Stat]]:
    """Statistics by place, from the index."""
    stats, sites, kinds = (measured_words(view, word) for word in ("stat", "site", "control_kind"))
    labels = [column(stat) for stat in stats]
    found: dict[int, list[Stat]] = {}
    for place, stat, site, kind, value, control, lo, hi, q in view.sql(
        "SELECT * FROM mt_measured WHERE place BETWEEN ? AND ? ORDER BY 1, 2, 3", first, first + count - 1
    ):
        words = labels[stat - 1]
        found.setdefault(place, []).append(
            Stat(
                stat=words.name, label=words.label, meaning=words.meaning, site=sites[site - 1] if site else "", value=value,
                control=control, control_kind=kinds[kind - 1] if kind else None, lo=lo, hi=hi, q=q,
            )
        )  # fmt: skip
    for own in found.values():
        own.sort(key=lambda each: (each.stat, by_depth(each.site)))
    return found


def _tokens(view: View, units: Sequence[str]) -> dict[str, list[tuple[str, Token]]]:
    texts = vocabulary(view)
    rows = view.sql(
        'SELECT unit::VARCHAR, "end"::VARCHAR, token, score, control FROM tokens '
        "WHERE unit IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1, 2, rank",
        list(units),
    )
    found: dict[str, list[tuple[str, Token]]] = {}
    for unit, end, token, score, control in rows:
        text = spelt_token(texts, token)
        found.setdefault(unit, []).append((end, Token(token=token, text=text, score=score, control=control)))
    return found


def _histograms(view: View, units: Sequence[str]) -> dict[str, list[Histogram]]:
    found: dict[str, list[Histogram]] = {}
    for unit, *values in view.sql(
        "SELECT unit::VARCHAR, site::VARCHAR, low, high, counts FROM histograms WHERE unit IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1, 2",
        list(units),
    ):
        found.setdefault(unit, []).append(Histogram(**dict(zip(Histogram.model_fields, values, strict=True))))
    for own in found.values():
        own.sort(key=lambda each: by_depth(each.site))
    return found


def tied(view: View, table: str, units: Sequence[str]) -> dict[str, list[Link]]:
    """Units that a table of `TIES` ties to each of `units`, the largest first whatever their sign."""
    found: dict[str, list[Link]] = {}
    for unit, other, kind, score, control in view.sql(
        f"{_WANTED} {TIES[table]} ORDER BY 1, abs(score) DESC, 2, 3", list(units)
    ):
        found.setdefault(unit, []).append(Link(other=other, kind=kind, score=score, control=control))
    return found


def _by_size(link: Link) -> tuple[bool, float, str, str]:
    return link.score is None, -abs(link.score or 0.0), link.other, link.kind


def _labels(view: View, units: Sequence[str]) -> dict[str, list[UnitLabel]]:
    """Tests that were passed, and explanations, which are there for some units."""
    rows = view.sql(
        "WITH wanted AS (SELECT unnest(?::VARCHAR[]) AS unit), "
        'passed AS (SELECT unit, "end"::VARCHAR AS side, kind::VARCHAR AS kind, text, value, control, control_kind::VARCHAR AS beside, q '
        "FROM unit_labels SEMI JOIN wanted USING (unit)), "
        "said AS (SELECT unit, \"end\"::VARCHAR, 'explanation', text, pearson, control, 'explanations of other units', q "
        "FROM explanations SEMI JOIN wanted USING (unit)) "
        "SELECT * FROM passed UNION ALL SELECT * FROM said ORDER BY unit, side DESC, value DESC, kind, text",
        list(units),
    )
    found: dict[str, list[UnitLabel]] = {}
    for unit, *values in rows:
        found.setdefault(unit, []).append(UnitLabel(**dict(zip(UnitLabel.model_fields, values, strict=True))))
    return found
