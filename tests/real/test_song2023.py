"""What Song & Zhong conclude holds for all-MiniLM-L6-v2 on news, beside its untrained twin; it takes half a minute."""

import shutil
from pathlib import Path

import pytest

from microtome.model import load
from recipes.song2023 import columns, conclusions

pytestmark = pytest.mark.weights
_PER_TOPIC = 24


def test_the_conclusions_of_the_paper_hold(minilm: Path, articles: Path, tmp_path: Path) -> None:
    for topic in sorted(path for path in articles.iterdir() if path.is_dir()):
        (tmp_path / topic.name).mkdir()
        for file in sorted(topic.glob("*.txt"))[:_PER_TOPIC]:
            shutil.copy(file, tmp_path / topic.name)
    trained, random = columns(load(minilm, dtype="float32"), tmp_path)
    assert all(conclusions(trained, random).values())
    assert trained.mean("rank")[0] == pytest.approx(12, abs=3), "the paper has 12.5 for BERT"
    assert trained.mean("within")[0] == pytest.approx(0.23, abs=0.05)
    assert trained.mean("between")[0] == pytest.approx(0.13, abs=0.04)
    assert random.mean("roughness")[0] == pytest.approx(2, abs=0.05), "random position embeddings are white"
