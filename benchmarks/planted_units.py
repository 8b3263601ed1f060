"""An atlas of as many units as asked for, whose tables DuckDB writes: what `benchmarks.pages` asks about.

Tokens have the frequencies of a language (Zipf), so that a search meets words that a fifth of all units fire on.
"""

from pathlib import Path
from typing import Final

import duckdb

from microtome.store import Manifest, ModelCard, RunCard, write_manifest

__all__ = ["KINDS", "LAYERS", "STATS", "plant_units"]

LAYERS: Final = 32
VOCABULARY: Final = 50_000
WINDOWS: Final = 20_000
TOKENS: Final = 64
"""Tokens of a window."""
STATS: Final = ("density", "kurtosis", "max", "mean", "std", "token_share_top")
KINDS: Final = ("token", "role", "place")

_TABLES: Final = {
    "vocabulary": "SELECT n::INTEGER AS token, ' w' || n AS text FROM range($vocabulary) t(n)",
    "windows": 'SELECT \'main\' AS run, n AS "window", n // 50 AS document, 0::BIGINT AS start, '
    "[least(floor(exp(random() * ln($vocabulary))), $vocabulary - 1)::INTEGER FOR j IN range($tokens)] AS ids, "
    "[3::UTINYINT FOR j IN range($tokens)] AS roles, [(3 * (j + $tokens * (n % 50)))::INTEGER FOR j IN range($tokens)] AS char_start, "
    "[(3 * (j + $tokens * (n % 50)) + 3)::INTEGER FOR j IN range($tokens)] AS char_end FROM range($windows) t(n)",
    "documents": "SELECT 'main' AS run, n AS document, 'document ' || n AS name, NULL::VARCHAR AS label, 'discover' AS half, NULL::BIGINT AS same_as, "
    "3200::BIGINT AS tokens, 50::BIGINT AS windows, 'used' AS status, NULL::VARCHAR AS reason, "
    "list_aggregate([' ' || chr(97 + floor(random() * 26)::INTEGER) || chr(97 + floor(random() * 26)::INTEGER) FOR j IN range(50 * $tokens)], "
    "'string_agg', '') AS text FROM range($windows // 50) t(n)",
    "units": "SELECT unit, 'neurons' AS basis, NULL::VARCHAR AS name, layer, NULL::SMALLINT AS expert, \"index\" FROM u ORDER BY layer, \"index\"",
    "unit_stats": "SELECT unit, 'mlp_act.' || layer AS site, stat, random() AS value, CASE WHEN stat = 'token_share_top' THEN 0.03 END AS control, "
    "CASE WHEN stat = 'token_share_top' THEN 'draws' END AS control_kind, NULL::DOUBLE AS lo, NULL::DOUBLE AS hi, "
    "CASE WHEN stat = 'token_share_top' THEN random() ** 4 END AS q, 'main' AS run FROM (SELECT unnest($stats) AS stat), u ORDER BY stat, unit",
    "tokens": "SELECT unit, e.\"end\" AS \"end\", rank::SMALLINT AS rank, floor(random() * $vocabulary)::INTEGER AS token, (8 - rank)::FLOAT AS score, "
    "1::FLOAT AS control FROM u, (SELECT unnest(['+', '-']) AS \"end\") e, range(8) r(rank) ORDER BY 1, 2, 3",
    "contexts": "SELECT unit, 'mlp_act.' || layer AS site, 'top' AS \"end\", CASE WHEN rank % 2 = 0 THEN 'discover' ELSE 'confirm' END AS half, "
    "rank::SMALLINT AS rank, (9 - rank)::FLOAT AS value, floor(random() * $windows)::BIGINT AS \"window\", floor(random() * $tokens)::INTEGER AS position, "
    "0 AS first, 0.05::FLOAT AS scale, [(j % 5)::TINYINT FOR j IN range(33)]::TINYINT[33] AS activations, 'main' AS run FROM u, range(8) r(rank) ORDER BY 1, rank",
    "unit_labels": "SELECT unit, 'top' AS \"end\", kind, CASE WHEN kind = 'token' THEN '‘w' || floor(random() * 5000)::INTEGER || '’' "
    "ELSE kind || ' ' || floor(random() * 8)::INTEGER END AS text, random() AS value, 0.1::DOUBLE AS control, 'draws' AS control_kind, random() AS q, "
    "'main' AS run FROM u, (SELECT unnest($kinds) AS kind) WHERE random() < 0.4 ORDER BY 1, 3",
    "links": "SELECT unit, 'neurons.' || floor(random() * $layers)::INTEGER || '/' || floor(random() * $width)::INTEGER AS other, 'writes alike' AS kind, "
    "random()::FLOAT AS score, 0.1::FLOAT AS control FROM u, range(4) r(rank) ORDER BY 1, 2",
    "token_meanings": "SELECT n::INTEGER AS token, [floor(random() * 255 - 127)::TINYINT FOR j IN range(96)]::TINYINT[96] AS vector FROM range($vocabulary) t(n)",
    "unit_meanings": "SELECT 'main' AS run, unit, e.\"end\" AS \"end\", 0::SMALLINT AS draw, [floor(random() * 255 - 127)::TINYINT FOR j IN range(96)]::TINYINT[96] AS vector "
    "FROM u, (SELECT unnest(['top', '+']) AS \"end\") e UNION ALL SELECT 'main', '', e.\"end\", n::SMALLINT, [floor(random() * 255 - 127)::TINYINT FOR j IN range(96)]::TINYINT[96] "
    "FROM range(1, 257) t(n), (SELECT unnest(['top', '+']) AS \"end\") e",
    "unit_places": "SELECT unit, 'plane' AS layout, random()::FLOAT AS x, random()::FLOAT AS y FROM u ORDER BY 1",
}  # fmt: skip


def plant_units(atlas: Path, units: int) -> Path:
    """Write an atlas of about `units` feed-forward units in `LAYERS` layers. Cost: a million take a minute and a gigabyte."""
    width = units // LAYERS
    known = {
        "vocabulary": VOCABULARY, "windows": WINDOWS, "tokens": TOKENS, "layers": LAYERS, "width": width, "stats": list(STATS), "kinds": list(KINDS),
    }  # fmt: skip
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(
            "CREATE TABLE u AS SELECT 'neurons.' || l || '/' || i AS unit, l::SMALLINT AS layer, i::INTEGER AS \"index\" "
            f"FROM range({LAYERS}) a(l), range({width}) b(i)"
        )
        for table, query in _TABLES.items():
            folder = atlas / "tables" / table
            folder.mkdir(parents=True)
            used = {name: value for name, value in known.items() if f"${name}" in query}
            connection.execute(f"CREATE OR REPLACE TEMP TABLE written AS {query}", used)
            connection.execute(
                f"COPY written TO '{folder / 'planted.parquet'}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536)"
            )
    card = RunCard(
        status="complete", identity="9f" * 32, seed=0, window=TOKENS, depths={"neurons": "quick"}, execution={}, certificate={},
        corpus={"name": "made up"}, absent={},
    )  # fmt: skip
    model = ModelCard(
        name="planted", family="llama", architecture="", fingerprint="ab" * 20, shape={"layers": LAYERS, "d_mlp": width}
    )
    write_manifest(atlas, Manifest(written_by="microtome", model=model, runs={"main": card}))
    return atlas
