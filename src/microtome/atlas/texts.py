"""Where an atlas keeps what was read: prepared beside the tables, and adopted once the run is known to be the same.

What a model reads of a source belongs in `capture.material`, what happens when in `build`.
"""

import shutil
from pathlib import Path
from typing import Any

from microtome.capture import Material, writing_to
from microtome.corpus import Corpus
from microtome.store import table_path

__all__ = ["adopt", "corpus_card", "stage"]


def stage(material: Material, folder: Path, run: str) -> Corpus:
    """Prepare the corpus in `folder`, beside the tables: those of a run that is there stay until this one proves the same."""
    shutil.rmtree(folder, ignore_errors=True)
    return material.prepare(writing_to(folder, _writer(run)), run)


def adopt(material: Material, staged: Corpus, atlas: Path) -> tuple[Corpus, list[Path]]:
    """Move the tables of a staged corpus to where the atlas keeps them, and open it there."""
    moved: dict[str, Path] = {}
    for source in sorted(staged.paths[0].parents[1].glob("*/*.parquet")):
        table = source.parent.name
        moved[table] = table_path(atlas, table, _writer(staged.run))
        moved[table].parent.mkdir(parents=True, exist_ok=True)
        source.replace(moved[table])
    return material.reopen(moved["documents"], moved["windows"], staged), list(moved.values())


def corpus_card(corpus: Corpus) -> dict[str, Any]:
    """What the manifest says of a corpus: sizes, identity, what is there twice, what was skipped and why."""
    return {
        "name": corpus.name,
        "documents": corpus.documents,
        "copies": corpus.copies or None,
        "windows": corpus.windows,
        "tokens": corpus.tokens,
        "window": corpus.window,
        "labels": list(corpus.labels),
        "fingerprint": corpus.fingerprint,
        "skipped": corpus.skipped.count,
        "skipped_first": [{"name": name, "reason": reason} for name, reason in corpus.skipped.first],
    }


def _writer(run: str) -> str:
    return f"corpus.{run}"
