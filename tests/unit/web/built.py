"""A real atlas of a toy model with three runs: two over texts that share no noun and no verb, one of the weights alone."""

from pathlib import Path
from typing import Any

import duckdb

from microtome.atlas import Settings, build
from tests import toys

WORDS = {
    "rivers": (("river", "stone", "garden", "bridge"), ("holds", "finds", "leaves")),
    "markets": (("market", "harbour", "teacher", "letter"), ("breaks", "keeps", "meets")),
}
"""Nouns and verbs of each run's text; all are tokens of the toy's vocabulary."""
WEIGHTS = "bare"
"""The run of the weights alone; its name comes before the others'."""


def build_runs(output: Path) -> Path:
    """Build all three runs into `output`."""
    model = toys.toy_decoder()
    for run, words in WORDS.items():
        build(model, _text(*words), output=output, settings=Settings(run=run, window=24))
    return build(model, output=output, settings=Settings(run=WEIGHTS, window=24)).path


def _text(nouns: tuple[str, ...], verbs: tuple[str, ...]) -> list[str]:
    """Thirty documents of twelve sentences; each document has its own order of words."""
    return [
        " ".join(
            f"The {nouns[(7 * d + 3 * s) % len(nouns)]} {verbs[(d + s) % len(verbs)]} the {nouns[d * s % len(nouns)]}."
            for s in range(12)
        )
        for d in range(30)
    ]


def ask(atlas: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """SQL over the atlas's files themselves: {contexts} in `query` is that table of all runs."""
    tables = {
        path.name: f"read_parquet('{path}/*.parquet', union_by_name = true)" for path in sorted((atlas / "tables").iterdir())
    }
    with duckdb.connect() as connection:
        return connection.execute(query.format(**tables), parameters).fetchall()
