"""The index of a run's units: what questions about many units read instead of the tables.

It is built by the first question, and later ones hardly depend on the size of the atlas. Its tables, by the place of a unit in
address order: `mt_rows` (a unit's statistics, the largest over sites, with their controls and whether they survive these, first tokens), `mt_measured` (statistics with
their controls), `mt_tops` (units by the place in the text at which they are largest), `mt_told` (units by token), `mt_labels` with `mt_label_texts` (units by label), `mt_back` with `mt_link_kinds` (links
by the unit that they lead to), `mt_texts` (texts of tokens).
Questions belong in `browse`, `unit`, `maps`, `related`.
"""

from collections.abc import Sequence
from typing import Final, Literal

from microtome.core import Refusal
from microtome.web.pictures import patch_grid
from microtome.web.reader import View, problem_of

__all__ = ["CLEAR", "KINDS", "indexed", "measured_words", "spelt_token", "stat_names", "vocabulary"]

PREVIEW: Final = 3
KINDS: Final = ("promotes", "suppresses", "fires")
"""How a unit can have to do with a token; the number in `mt_told` is a rank, a rank, a count of top contexts."""
CLEAR: Final = 0.05
"""A statistic whose q is at most this survives its control."""
_WORDS: Final = ("stat", "site", "control_kind")


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
    try:
        rows = view.sql("SELECT token, text FROM vocabulary ORDER BY token")
    except Refusal as refusal:
        _report(view, "vocabulary", refusal)
        rows = []
    texts = [f"[{token}]" for token in range(rows[-1][0] + 1 if rows else 0)]
    for token, text in rows:
        texts[token] = text if text is not None else f"[{token}]"
    return texts


def spelt_token(texts: Sequence[str], token: int) -> str:
    """The text of a token, its number where it has none."""
    return texts[token] if 0 <= token < len(texts) else f"[{token}]"


def indexed(view: View) -> None:
    """Build the index of `view`, once."""
    view.once("index", _index)


def _index(view: View) -> bool:
    with view.indexing():
        _index_units(view)
        _index_tokens(view)
        _index_labels(view)
        _index_links(view)
        for spent in ("mt_units", "mt_stats", "mt_fires", "mt_shown", "mt_promotes", "mt_written", "mt_passed", "mt_said"):
            view.sql(f"DROP TABLE {spent}")
    return True


def _index_units(view: View) -> None:
    stats = stat_names(view)
    _part(
        view, "units", "mt_units",
        'SELECT (row_number() OVER (ORDER BY basis, name NULLS FIRST, layer NULLS FIRST, expert NULLS FIRST, "index")) - 1 AS place, '
        'unit, basis::VARCHAR AS basis, name::VARCHAR AS name, layer, expert, "index" FROM (SELECT DISTINCT * FROM units)',
    )  # fmt: skip
    chosen = "".join(
        f", max(value) FILTER (stat = ${n + 1} AND isfinite(value)) AS s{n}, bool_or(q <= {CLEAR}) FILTER (stat = ${n + 1}) AS c{n}, "
        f"arg_max_null(control, value) FILTER (stat = ${n + 1} AND isfinite(value)) AS k{n}"
        for n in range(len(stats))
    )
    _part(
        view, "unit_stats", "mt_stats",
        f"SELECT u.place, bool_or(q <= {CLEAR}) AS clear{chosen} FROM unit_stats s JOIN mt_units u ON u.unit = s.unit::VARCHAR GROUP BY 1", *stats,
    )  # fmt: skip
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


def _index_tokens(view: View) -> None:
    _part(
        view, "contexts", "mt_tops",
        'SELECT u.place::INTEGER AS place, c."window", c.position FROM contexts c JOIN mt_units u ON u.unit = c.unit::VARCHAR '
        """WHERE c."end" = 'top' ORDER BY 2, 3""",
    )  # fmt: skip
    _part(
        view, "windows", "mt_fires",
        "SELECT t.place, w.ids[t.position + 1] AS token, count(*)::SMALLINT AS times FROM mt_tops t "
        f"""JOIN windows w USING ("window"){" WHERE false" if patch_grid(view) else ""} GROUP BY 1, 2""",  # a patch is no token of a vocabulary
    )  # fmt: skip
    _part(
        view,
        "tokens",
        "mt_written",
        "SELECT t.token, u.place::INTEGER AS place, CASE WHEN t.\"end\" = '+' THEN 0 ELSE 1 END::TINYINT AS kind, "
        "t.rank::SMALLINT AS number FROM tokens t JOIN mt_units u ON u.unit = t.unit::VARCHAR",
    )
    view.sql(
        f"CREATE OR REPLACE TABLE mt_promotes AS SELECT place, min_by(token, number, {PREVIEW}) AS promotes FROM mt_written WHERE kind = 0 GROUP BY 1"
    )
    view.sql(
        f"CREATE OR REPLACE TABLE mt_shown AS SELECT place, max_by(token, times * 1000000 - token, {PREVIEW}) AS fires, "
        "sum(times)::SMALLINT AS total FROM mt_fires GROUP BY 1"
    )
    view.sql(
        "CREATE OR REPLACE TABLE mt_rows AS SELECT u.*, p.promotes, f.fires, f.total, s.* EXCLUDE (place) FROM mt_units u "
        "LEFT JOIN (SELECT *, NULL AS s_ FROM mt_stats) s USING (place) LEFT JOIN mt_promotes p USING (place) "
        "LEFT JOIN mt_shown f USING (place) ORDER BY place"
    )
    view.sql(
        "CREATE OR REPLACE TABLE mt_told AS SELECT kind, token, place, number FROM mt_written UNION ALL "
        "SELECT 2::TINYINT, token, place, times FROM mt_fires ORDER BY 1, 2, 3, 4"
    )
    view.sql("CREATE UNIQUE INDEX mt_place ON mt_rows (place)")
    view.sql("CREATE INDEX mt_unit ON mt_rows (unit)")
    _part(view, "vocabulary", "mt_texts", "SELECT token, text FROM vocabulary WHERE text IS NOT NULL ORDER BY token")


def _index_labels(view: View) -> None:
    """Labels by their kind and text, explanations among them; of a unit the same at both ends once."""
    _part(view, "unit_labels", "mt_passed", "SELECT unit, kind::VARCHAR AS kind, text, q, value FROM unit_labels")
    _part(view, "explanations", "mt_said", "SELECT unit, 'explanation' AS kind, text, q, pearson AS value FROM explanations")
    view.sql(
        "CREATE OR REPLACE TABLE mt_label_texts AS SELECT (row_number() OVER (ORDER BY kind, text) - 1)::INTEGER AS code, kind, text "
        "FROM (SELECT kind, text FROM mt_passed UNION SELECT kind, text FROM mt_said)"
    )
    view.sql(
        "CREATE OR REPLACE TABLE mt_labels AS SELECT t.code, u.place::INTEGER AS place, min(n.q) AS q, max(n.value) AS value "
        "FROM (SELECT * FROM mt_passed UNION ALL SELECT * FROM mt_said) n JOIN mt_label_texts t USING (kind, text) "
        "JOIN mt_units u USING (unit) GROUP BY ALL ORDER BY 1, 2"
    )


def _index_links(view: View) -> None:
    """Links by the unit that they lead to: the table itself is in order of those that they come from."""
    _part(view, "links", "mt_link_kinds", "SELECT DISTINCT kind::VARCHAR AS kind FROM links ORDER BY 1")
    kinds = [kind for (kind,) in view.sql("SELECT kind FROM mt_link_kinds ORDER BY 1")]
    _part(
        view, "links", "mt_back",
        "SELECT o.place::INTEGER AS place, u.place::INTEGER AS source, (list_position($1::VARCHAR[], l.kind::VARCHAR) - 1)::SMALLINT AS kind, "
        "l.score, l.control FROM links l JOIN mt_units u ON u.unit = l.unit::VARCHAR JOIN mt_units o ON o.unit = l.other::VARCHAR ORDER BY 1",
        kinds,
    )  # fmt: skip
    view.sql(
        "CREATE OR REPLACE TABLE mt_link_kinds AS SELECT unnest(?::VARCHAR[]) AS kind, unnest(range(?))::SMALLINT AS code",
        kinds,
        len(kinds),
    )


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
