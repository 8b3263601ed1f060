"""The unit browser: units of a basis by layer, by statistic, by token.

The first question builds an index in memory (a row per unit: place, statistics, the first tokens it writes and fires on; and
the statistics with their controls, by unit) and later ones read only that, so their time hardly depends on the size of the
atlas. Everything about one unit is in `unit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from microtome.core import Refusal
from microtome.web.reader import View, problem_of
from microtome.web.records import BasisCard, Match, Suggestion, Suggestions, UnitRow, Units
from microtome.web.words import basis_label, column

__all__ = ["Query", "bases", "find_tokens", "indexed", "measured_words", "stat_names", "units", "vocabulary"]

PREVIEW: Final = 3
SUGGESTED: Final = 24
KINDS: Final = ("promotes", "suppresses", "fires")
"""How a unit can have to do with a token; the number in `mt_told` is a rank, a rank, a count of top contexts."""
_GIVEN: Final = (
    "SELECT unnest(?::INTEGER[]) AS place, unnest(?::INTEGER[]) AS promoted, unnest(?::INTEGER[]) AS suppressed, "
    "unnest(?::INTEGER[]) AS times"
)

_WORDS: Final = ("stat", "site", "control_kind")
Where = Literal["any", "promotes", "suppresses", "fires"]
Order = Literal["down", "up"]


@dataclass(frozen=True)
class Query:
    """What the browser shows: `sort` is a statistic, `unit` (address order) or `match` (how well the token fits)."""

    basis: str | None = None
    layer: int | None = None
    sort: str = "unit"
    order: Order = "down"
    token: str = ""
    where: Where = "any"
    offset: int = 0
    limit: int = 50


def stat_names(view: View) -> list[str]:
    """The statistics of this run, by name."""
    return measured_words(view, "stat")


def measured_words(view: View, column: Literal["stat", "site", "control_kind"]) -> list[str]:
    """The different words in a column of this run's statistics; the index has their places here, from 1."""
    query = f"SELECT DISTINCT {column}::VARCHAR FROM unit_stats WHERE {column} IS NOT NULL ORDER BY 1"

    def read(view: View) -> list[str]:
        try:
            return [word for (word,) in view.sql(query)]
        except Refusal as refusal:
            _report(view, "unit_stats", refusal)
            return []

    return view.once(column, read)


def vocabulary(view: View) -> list[str]:
    """Texts of all tokens; a token without one is shown by its number."""
    return view.once("vocabulary", _vocabulary)


def _vocabulary(view: View) -> list[str]:
    rows = view.sql("SELECT token, text FROM vocabulary ORDER BY token")
    texts = [f"[{token}]" for token in range(rows[-1][0] + 1 if rows else 0)]
    for token, text in rows:
        texts[token] = text if text is not None else f"[{token}]"
    return texts


def _text(texts: Sequence[str], token: int) -> str:
    return texts[token] if 0 <= token < len(texts) else f"[{token}]"


def indexed(view: View) -> None:
    """Build the index of `view`, once."""
    view.once("index", _index)


def _index(view: View) -> bool:
    stats = stat_names(view)
    _part(
        view, "units", "mt_units",
        'SELECT (row_number() OVER (ORDER BY basis, name NULLS FIRST, layer NULLS FIRST, expert NULLS FIRST, "index")) - 1 AS place, '
        'unit, basis::VARCHAR AS basis, name::VARCHAR AS name, layer, expert, "index" FROM (SELECT DISTINCT * FROM units)',
    )  # fmt: skip
    chosen = "".join(f", max(value) FILTER (stat = ${n + 1} AND isfinite(value)) AS s{n}" for n in range(len(stats)))
    _part(view, "unit_stats", "mt_stats", f"SELECT unit::VARCHAR AS unit{chosen} FROM unit_stats GROUP BY 1", *stats)
    coded = ", ".join(
        f"list_position(${n}::VARCHAR[], s.{word}::VARCHAR)::SMALLINT AS {word}" for n, word in enumerate(_WORDS, start=1)
    )
    _part(
        view,
        "unit_stats",
        "mt_measured",
        f"SELECT u.place::INTEGER AS place, {coded}, s.value, s.control, s.lo, s.hi, s.q "
        "FROM unit_stats s JOIN mt_units u ON u.unit = s.unit::VARCHAR ORDER BY 1, 2, 3",
        *(measured_words(view, word) for word in _WORDS),
    )
    _part(
        view, "contexts", "mt_fires",
        "SELECT c.unit::VARCHAR AS unit, w.ids[c.position + 1] AS token, count(*)::SMALLINT AS times "
        'FROM contexts c JOIN windows w ON w."window" = c."window" '
        """WHERE c."end" = 'top' GROUP BY 1, 2""",
    )  # fmt: skip
    _part(
        view, "tokens", "mt_promotes",
        f"SELECT unit::VARCHAR AS unit, min_by(token, rank, {PREVIEW}) AS promotes FROM tokens WHERE \"end\" = '+' GROUP BY 1",
    )  # fmt: skip
    view.sql(
        "CREATE OR REPLACE TABLE mt_rows AS SELECT u.*, p.promotes, f.fires, f.total::SMALLINT AS total, s.* EXCLUDE (unit) "
        "FROM mt_units u LEFT JOIN (SELECT *, NULL AS s_ FROM mt_stats) s USING (unit) LEFT JOIN mt_promotes p USING (unit) "
        f"LEFT JOIN (SELECT unit, max_by(token, times * 1000000 - token, {PREVIEW}) AS fires, sum(times) AS total FROM mt_fires "
        "GROUP BY 1) f USING (unit) ORDER BY place"
    )
    _part(
        view,
        "tokens",
        "mt_written",
        "SELECT t.token, r.place::INTEGER AS place, CASE WHEN t.\"end\" = '+' THEN 0 ELSE 1 END::TINYINT AS kind, "
        "t.rank::SMALLINT AS number FROM tokens t JOIN mt_units r ON r.unit = t.unit::VARCHAR",
    )
    view.sql(
        "CREATE OR REPLACE TABLE mt_told AS SELECT * FROM mt_written UNION ALL SELECT f.token, u.place::INTEGER, 2::TINYINT, f.times "
        "FROM mt_fires f JOIN mt_units u USING (unit) ORDER BY 1, 2, 3, 4"
    )
    view.sql("CREATE UNIQUE INDEX mt_place ON mt_rows (place)")
    view.sql("CREATE INDEX mt_unit ON mt_rows (unit)")
    for spent in ("mt_units", "mt_stats", "mt_fires", "mt_promotes", "mt_written"):
        view.sql(f"DROP TABLE {spent}")
    return True


def _part(view: View, table: str, name: str, query: str, *parameters: object) -> None:
    """Make a part of the index; where its table turns out to be damaged, say so and make an empty one."""
    try:
        view.sql(f"CREATE OR REPLACE TABLE {name} AS {query}", *parameters)
    except Refusal as refusal:
        _report(view, table, refusal)
        described = view.sql(f"DESCRIBE {query}", *parameters)
        view.sql(f"CREATE OR REPLACE TABLE {name} ({', '.join(f'{column} {kind}' for column, kind, *_ in described)})")


def _report(view: View, table: str, refusal: Refusal) -> None:
    if all(problem.what != f"table {table}" for problem in view.problems):
        view.problems.append(problem_of(refusal).model_copy(update={"what": f"table {table}"}))


def bases(view: View) -> list[BasisCard]:
    """The bases of this atlas, with their layers and the statistics that this run has of them."""
    return view.once("bases", _bases)


def _bases(view: View) -> list[BasisCard]:
    indexed(view)
    stats = stat_names(view)
    counted = "".join(f", count(s{n})" for n in range(len(stats)))
    rows = view.sql(
        f"SELECT basis, count(*), list_sort(list(DISTINCT layer) FILTER (layer IS NOT NULL)){counted} FROM mt_rows GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return [
        BasisCard(
            basis=basis,
            label=basis_label(basis),
            units=count,
            layers=layers or [],
            columns=[column(stat) for stat, has in zip(stats, having, strict=True) if has],
        )
        for basis, count, layers, *having in rows
    ]


def find_tokens(view: View, word: str) -> Suggestions:
    """Tokens equal to `word` but for spaces, case and word-piece marks, and the shortest tokens that contain it."""
    wanted = _bare(word)
    if not wanted:
        return Suggestions(tokens=[], near=[])
    bare = view.once("bare", lambda v: [_bare(text) for text in vocabulary(v)])
    texts = vocabulary(view)
    exact = [n for n, text in enumerate(bare) if text == wanted]
    near = sorted((len(text), n) for n, text in enumerate(bare) if wanted in text and text != wanted)[:SUGGESTED]
    return Suggestions(
        tokens=[Suggestion(token=n, text=texts[n]) for n in exact],
        near=[Suggestion(token=n, text=texts[n]) for _, n in near],
    )


def _bare(text: str) -> str:
    return text.removeprefix("##").strip().casefold()


def units(view: View, query: Query) -> Units:
    """One page of units. An unknown statistic sorts by address; a token that is not there gives no rows and suggestions."""
    indexed(view)
    stats = stat_names(view)
    cards = [card for card in bases(view) if query.basis in (None, card.basis)]
    shown = {col.name for card in cards for col in card.columns}
    columns = [name for name in stats if name in shown]
    conditions, parameters = ["TRUE"], []
    for name, value in (("basis", query.basis), ("layer", query.layer)):
        if value is not None:
            conditions.append(f"r.{name} = ?")
            parameters.append(value)
    found = find_tokens(view, query.token) if query.token.strip() else None
    matched, join, first = "NULL AS promoted, NULL AS suppressed, NULL AS times", "", []
    if found is not None:
        matched, join, first = (
            "m.promoted, m.suppressed, m.times",
            f"JOIN ({_GIVEN}) m USING (place)",
            _matching(view, query.where, found),
        )
    values = "".join(f", r.s{stats.index(name)}" for name in columns)
    source = f"FROM mt_rows r {join} WHERE {' AND '.join(conditions)}"
    total = view.sql(f"SELECT count(*) {source}", *first, *parameters)[0][0]
    rows = view.sql(
        f"SELECT r.unit, r.layer, r.promotes, r.fires, r.total, {matched}{values} {source} "
        f"ORDER BY {_order(query, stats, found)} LIMIT ? OFFSET ?",
        *first,
        *parameters,
        query.limit,
        query.offset,
    )
    texts = vocabulary(view)
    return Units(
        total=total,
        offset=query.offset,
        columns=[column(name) for name in columns],
        search=found,
        rows=[
            UnitRow(
                unit=unit,
                layer=layer,
                promotes=[_text(texts, token) for token in promotes or ()],
                fires=[_text(texts, token) for token in fires or ()],
                values=list(numbers),
                match=None if found is None else Match(promotes=plus, suppresses=minus, fires=times, of=of),
            )
            for unit, layer, promotes, fires, of, plus, minus, times, *numbers in rows
        ],
    )


def _order(query: Query, stats: Sequence[str], found: Suggestions | None) -> str:
    direction = "DESC" if query.order == "down" else "ASC"
    if query.sort in stats:
        return f"r.s{stats.index(query.sort)} {direction} NULLS LAST, r.place"
    if query.sort == "match" and found is not None:
        return "greatest(1.0 / (1 + m.promoted), 1.0 / (1 + m.suppressed), m.times / r.total) DESC NULLS LAST, m.times DESC NULLS LAST, r.place"
    return f"r.place {'ASC' if query.order == 'down' else 'DESC'}"


def _matching(view: View, where: Where, found: Suggestions) -> list[list[int | None]]:
    """Columns of `_GIVEN`, of the units that have to do with the tokens found: place, best ranks, times."""
    ids = [token.token for token in found.tokens] or [-1]
    kinds = [n for n, name in enumerate(KINDS) if where in ("any", name)]
    rows = view.sql(
        "SELECT place, min(number) FILTER (kind = 0), min(number) FILTER (kind = 1), sum(number) FILTER (kind = 2)::INTEGER "
        f"FROM mt_told WHERE token IN ({', '.join('?' * len(ids))}) AND kind IN ({', '.join('?' * len(kinds))}) "
        "GROUP BY place ORDER BY place",
        *ids,
        *kinds,
    )
    return [[row[column] for row in rows] for column in range(4)]
