"""What Dar et al. conclude of parameters holds in the last layers of SmolLM2, with its numbers; it takes less than a minute."""

from pathlib import Path

import pytest

from microtome.model import load
from microtome.vocabulary.subject import subject_of
from recipes.dar2023 import conclusions
from recipes.dar2023_measures import Experiments, active_overlaps, kept_scores, ranked_heads, sampled, similarities

pytestmark = pytest.mark.weights
_LAYER = 28


def test_the_conclusions_of_the_paper_hold_in_a_late_layer(smollm2: Path) -> None:
    model = load(smollm2, dtype="float32")
    subject = subject_of(model, preset="paper")
    found = Experiments(
        kept=kept_scores(subject, ks=(100, 1000, 30_000)),
        heads=ranked_heads(subject, "ov", common=1024, layers=[_LAYER]),
        similar=similarities(subject, [_LAYER], [("W_up", "W_out"), ("W_V", "W_O")], draws=200),
        active=active_overlaps(subject, sampled(model, "sample", windows=12, tokens=300), [_LAYER], ks=(100,)),
    )
    values = {(each.left, each.right): each.mean for each in found.similar}
    assert values["W_up", "W_out"] == pytest.approx(0.043, abs=0.004)
    assert values["W_V", "W_O"] == pytest.approx(0.067, abs=0.004)
    kept = {(each.kind, each.part, each.k, each.basis): each.score for each in found.kept}
    assert kept["normal", "all", 1000, "transpose"] == pytest.approx(0.60, abs=0.03)
    assert kept["normal", "all", 1000, "pseudo-inverse"] == pytest.approx(0.885, abs=0.03), "unlike in GPT-2, where it is 0.10"
    said = {each.says: each.holds for each in conclusions(found)}
    assert {says for says, holds in said.items() if not holds and "transpose" not in says and "W_V they" not in says} == set()
    assert len(said) == 4 + 1 + 2 + 4 + 1
