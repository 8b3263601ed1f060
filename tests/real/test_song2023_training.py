"""What Song & Zhong conclude from training on text and on noise holds for small decoders; it takes minutes."""

import math
from pathlib import Path

import pytest

from recipes.contrast import contrasts
from recipes.song2023_training import QUESTIONS, QUICK, describe, randomisation

pytestmark = pytest.mark.weights


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_conclusion_at_a_small_size(speeches: Path, tmp_path: Path) -> None:
    rows = list(randomisation(QUICK, speeches, tmp_path))
    assert [row.condition for row in rows[:3]] == ["untrained", "clean", "random"]
    by = {name: [row for row in rows if row.condition == name] for name in ("untrained", "clean", "half random", "random")}
    assert all(len(each) == 3 for each in by.values())
    assert max(row.clean_loss for row in by["clean"]) < min(row.clean_loss for row in by["random"]) - 2
    assert all(abs(row.own_loss - math.log(QUICK.vocabulary)) < 0.1 for row in by["random"]), "there is nothing to learn"
    assert max(row.embedded.roughness for row in by["clean"]) < 1
    assert min(row.embedded.roughness for row in by["random"]) > 1.5, "2 is white"
    found = {each.says: each.verdict for each in contrasts(QUESTIONS, rows)}
    assert found["position embeddings are smoother after clean than after random text"] == "yes"
    assert found["position embeddings are smoother after clean text than before training"] == "yes"
    assert found["position embeddings jump where half random text becomes random"] == "yes"
    assert "What differs from the paper:" in describe(rows)
