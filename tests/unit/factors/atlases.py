"""The text of an atlas that a test has built, as its windows."""

from microtome.atlas import Atlas
from microtome.corpus import Corpus, open_corpus


def corpus_of(atlas: Atlas, *, window: int) -> Corpus:
    """The corpus that the atlas keeps."""
    documents, windows = (next((atlas.path / "tables" / table).glob("*.parquet")) for table in ("documents", "windows"))
    return open_corpus(documents, windows, name="toy", window=window)
