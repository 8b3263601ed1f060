"""What Song & Zhong conclude from training on text and on noise holds for small decoders; it takes a minute."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.song2023_training import QUICK, describe, randomisation

pytestmark = pytest.mark.weights


@pytest.mark.slow
def test_the_conclusion_at_a_small_size(speeches: Path, tmp_path: Path) -> None:
    short = replace(QUICK, schedule=replace(QUICK.schedule, steps=1500))
    rows = list(itertools.islice(randomisation(short, speeches, tmp_path), 3))
    untrained, clean, random = rows
    assert [row.condition for row in rows] == ["untrained", "clean", "random"]
    assert clean.clean_loss < random.clean_loss - 2
    assert abs(random.own_loss - math.log(QUICK.vocabulary)) < 0.1, "there is nothing to learn"
    assert clean.embedded.roughness < 1
    assert min(random.embedded.roughness, untrained.embedded.roughness) > 1.5, "2 is white"
    assert "What differs from the paper:" in describe(rows)
