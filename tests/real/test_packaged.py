"""The packaged models and texts are what they are said to be."""

from pathlib import Path

import pytest

from microtome.cli.packaged import PACKAGES

pytestmark = pytest.mark.weights


def test_what_is_fetched_is_there(packaged: tuple[str, Path]) -> None:
    name, path = packaged
    assert path.exists()
    package = PACKAGES[name]
    if package.member:
        assert (path if path.is_file() else path / package.member).stat().st_size > 1_000_000


def test_speeches_are_enough_for_the_demo(speeches: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in speeches.rglob("*.txt")]
    assert len(texts) == 249
    assert sum(len(text.split()) for text in texts) > 1_900_000


def test_articles_have_five_topics(articles: Path) -> None:
    topics = {folder.name: len(list(folder.glob("*.txt"))) for folder in articles.iterdir() if folder.is_dir()}
    assert topics == {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}
