"""Everything about one unit: statistics, tokens at both ends, contexts with their text, links; and documents around a place.

Tables are sorted by unit, so a question about one unit reads a few row groups. The list of units is in `browse`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from microtome.core import Refusal
from microtome.web.browse import indexed, vocabulary
from microtome.web.reader import View, problem_of
from microtome.web.records import Context, Document, Finding, Link, Piece, Stat, Token, UnitPage
from microtome.web.words import column

__all__ = ["document", "findings", "page", "place_of", "unit_at"]

NO_TOKEN: Final = -128
STRETCH: Final = 3000
_BROKEN: Final = "\ufffd"


def place_of(view: View, unit: str) -> int:
    """The place of a unit in address order.

    Errors: `Refusal` where this atlas has no such unit.
    """
    indexed(view)
    rows = view.sql("SELECT place FROM mt_rows WHERE unit = ?", unit)
    if not rows:
        raise Refusal(f"unit {unit[:80]}", why="this atlas has no unit of that address", instead="look for it in the unit browser")
    return rows[0][0]


def unit_at(view: View, place: int) -> str | None:
    """The unit at a place in address order, or None past the ends."""
    rows = view.sql("SELECT unit FROM mt_rows WHERE place = ?", place)
    return rows[0][0] if rows else None


def page(view: View, unit: str) -> UnitPage:
    """Everything about `unit`; a table that cannot be read is named and left out.

    Errors: `Refusal` where this atlas has no such unit.
    """
    place = place_of(view, unit)
    basis, name, layer, expert, index = view.sql(
        'SELECT basis, name, layer, expert, "index" FROM mt_rows WHERE place = ?', place
    )[0]
    problems, parts = [], {}
    for part, read in {"stats": _stats, "tokens": _tokens, "contexts": _contexts, "links": _links}.items():
        try:
            parts[part] = read(view, unit)
        except Refusal as refusal:
            parts[part] = []
            problems.append(problem_of(refusal))
    return UnitPage(
        unit=unit, basis=basis, name=name, layer=layer, expert=expert, index=index, place=place,
        of=view.once("units", lambda v: v.sql("SELECT count(*) FROM mt_rows")[0][0]),
        previous=unit_at(view, place - 1), next=unit_at(view, place + 1),
        stats=parts["stats"],
        promotes=[token for end, token in parts["tokens"] if end == "+"],
        suppresses=[token for end, token in parts["tokens"] if end == "-"],
        contexts=parts["contexts"], links=parts["links"],
        findings=[finding for finding in findings(view) if finding.unit == unit],
        problems=problems,
    )  # fmt: skip


def findings(view: View) -> list[Finding]:
    """All findings, in order of lens and rank; `unit` is the address where the subject is a unit of this atlas."""
    return view.once("findings", _findings)


def _findings(view: View) -> list[Finding]:
    indexed(view)
    rows = view.sql(
        "SELECT f.lens::VARCHAR, f.rank, f.kind::VARCHAR, f.subject, r.unit, f.sentence, f.value, f.control, "
        "f.control_kind::VARCHAR, f.q FROM findings f LEFT JOIN mt_rows r "
        "ON r.unit = regexp_replace(regexp_replace(f.subject, '[+-]$', ''), '(/.*)@.*$', '\\1') ORDER BY 1, 2, 4"
    )
    names = list(Finding.model_fields)
    return [Finding(**dict(zip(("lens", "rank", "kind", "subject", "unit", "sentence", "value", "control", "control_kind", "q"), row, strict=True))) for row in rows if names]


def _stats(view: View, unit: str) -> list[Stat]:
    rows = view.sql(
        "SELECT stat::VARCHAR, site::VARCHAR, run::VARCHAR, value, control, control_kind::VARCHAR, lo, hi, q FROM unit_stats "
        "WHERE unit = ? ORDER BY 1, 2, 3",
        unit,
    )
    return [
        Stat(
            stat=stat, label=column(stat).label, meaning=column(stat).meaning, site=site, run=run, value=value, control=control,
            control_kind=kind, lo=lo, hi=hi, q=q,
        )
        for stat, site, run, value, control, kind, lo, hi, q in rows
    ]  # fmt: skip


def _tokens(view: View, unit: str) -> list[tuple[str, Token]]:
    texts = vocabulary(view)
    rows = view.sql('SELECT "end"::VARCHAR, token, score, control FROM tokens WHERE unit = ? ORDER BY 1, rank', unit)
    return [
        (end, Token(token=token, text=texts[token] if token < len(texts) else f"[{token}]", score=score, control=control))
        for end, token, score, control in rows
    ]


def _links(view: View, unit: str) -> list[Link]:
    rows = view.sql(
        "SELECT other::VARCHAR, kind::VARCHAR, score, control FROM links WHERE unit = ? "
        "UNION SELECT unit::VARCHAR, kind::VARCHAR, score, control FROM links WHERE other = ? ORDER BY 3 DESC, 1 LIMIT 40",
        unit, unit,
    )  # fmt: skip
    return [Link(other=other, kind=kind, score=score, control=control) for other, kind, score, control in rows]


def _contexts(view: View, unit: str) -> list[Context]:
    """Contexts with the tokens around them spelt out; order: end, run, rank."""
    rows = view.sql(
        'SELECT "end"::VARCHAR, half::VARCHAR, rank, run::VARCHAR, site::VARCHAR, value, scale, "window", position, first, '
        'activations FROM contexts WHERE unit = ? ORDER BY 1, 4, 3, 2',
        unit,
    )  # fmt: skip
    windows = _windows(view, {(row[3], row[7]) for row in rows})
    texts = vocabulary(view)
    spelt = _Spelling(view, texts)
    contexts = []
    for end, half, rank, run, site, value, scale, window, position, first, activations in rows:
        there = windows.get((run, window))
        codes = [(first + j, code) for j, code in enumerate(activations) if code != NO_TOKEN]
        if there is not None:
            codes = [(place, code) for place, code in codes if place < len(there.ids)]
        covered = [place for place, _ in codes]
        contexts.append(
            Context(
                end=end, half=half, rank=rank, run=run, site=site, value=value, scale=scale, window=window, position=position,
                centre=covered.index(position) if position in covered else 0,
                pieces=spelt(there, run, covered) if there else ["?"] * len(codes),
                codes=[code for _, code in codes],
                document=there.document if there else None, name=there.name if there else None,
                label=there.label if there else None,
                begin=there.begin(covered) if there else None, finish=there.finish(covered) if there else None,
            )
        )  # fmt: skip
    return contexts


class _Window:
    """A window's tokens and where they are in the document."""

    def __init__(self, row: Sequence[Any]) -> None:
        self.document, self.ids, self.starts, self.ends, self.name, self.label = row

    def begin(self, places: Iterable[int]) -> int | None:
        """The first character that the tokens at `places` cover."""
        return min((self.starts[place] for place in places if self.starts[place] >= 0), default=None)

    def finish(self, places: Iterable[int]) -> int | None:
        """One past the last character that the tokens at `places` cover."""
        return max((self.ends[place] for place in places if self.ends[place] >= 0), default=None)


def _windows(view: View, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], _Window]:
    if not wanted:
        return {}
    rows = view.sql(
        'SELECT w.run::VARCHAR, w."window", w.document, w.ids, w.char_start, w.char_end, d.name, d.label '
        "FROM (SELECT * FROM windows WHERE \"window\" IN (SELECT unnest(?::BIGINT[])) AND run::VARCHAR IN (SELECT unnest(?::VARCHAR[]))) w "
        "LEFT JOIN documents d ON d.document = w.document AND d.run::VARCHAR = w.run::VARCHAR",
        sorted({window for _, window in wanted}), sorted({run for run, _ in wanted}),
    )  # fmt: skip
    return {(run, window): _Window(rest) for run, window, *rest in rows if (run, window) in wanted}


class _Spelling:
    """Texts of the tokens of windows: from the vocabulary, and from the document where bytes of one character are split."""

    def __init__(self, view: View, texts: Sequence[str]) -> None:
        self._view = view
        self._texts = texts

    def __call__(self, window: _Window, run: str, places: Sequence[int]) -> list[str]:
        pieces = []
        for place in places:
            token = window.ids[place]
            piece = self._texts[token] if token < len(self._texts) else f"[{token}]"
            gap = place > 0 and window.starts[place] > window.ends[place - 1] >= 0
            if piece.startswith("##") and len(piece) > 2:
                piece = piece[2:]
            elif gap and piece[:1].strip():
                piece = " " + piece
            pieces.append(piece)
        if any(_BROKEN in piece for piece in pieces):
            self._mend(window, run, places, pieces)
        return pieces

    def _mend(self, window: _Window, run: str, places: Sequence[int], pieces: list[str]) -> None:
        """Take broken pieces from the document: the first token of a split character shows it, the others show nothing."""
        begin, finish = window.begin(places), window.finish(places)
        if begin is None or finish is None:
            return
        rows = self._view.sql(
            "SELECT substring(text, ?, ?) FROM documents WHERE run::VARCHAR = ? AND document = ?",
            begin + 1, finish - begin, run, window.document,
        )  # fmt: skip
        text = rows[0][0] if rows else None
        if text is None:
            return
        shown = begin
        for j, place in enumerate(places):
            start, end = window.starts[place], window.ends[place]
            if start < 0:
                continue
            if _BROKEN in pieces[j]:
                pieces[j] = text[max(start, shown) - begin : max(end, shown) - begin]
            shown = max(shown, end)


def document(view: View, run: str, number: int, begin: int, finish: int) -> Document:
    """A document's text around the characters `begin` to `finish`.

    Errors: `Refusal` where the run has no such document or its text was not kept.
    """
    left, right = max(0, begin - STRETCH), max(begin, finish) + STRETCH
    rows = view.sql(
        "SELECT name, label, half::VARCHAR, tokens, length(text), substring(text, ?, ?) FROM documents "
        "WHERE run::VARCHAR = ? AND document = ?",
        left + 1, right - left, run, number,
    )  # fmt: skip
    if not rows or rows[0][5] is None:
        raise Refusal(
            f"document {number} of run {run[:40]}", why="its text is not in this atlas", instead="open another context, or build again"
        )
    name, label, half, tokens, length, text = rows[0]
    cuts = [0, min(max(begin - left, 0), len(text)), min(max(finish - left, 0), len(text)), len(text)]
    return Document(
        run=run, document=number, name=name, label=label, half=half, tokens=tokens, length=length, begin=left,
        finish=left + len(text),
        text=[Piece(text=text[a:b], hit=n == 1) for n, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if b > a],
    )  # fmt: skip
