"""GPT-2 medium gives the published numbers and lists of Dar et al., where it is on this machine; from weights alone."""

import os

import pytest

from microtome.model import load
from microtome.vocabulary.subject import subject_of
from recipes.dar2023_measures import kept_scores, similarities
from recipes.dar2023_paper import acceptance, is_gpt2_medium, report

_MODEL = os.environ.get("MICROTOME_GPT2_MEDIUM")


@pytest.mark.weights
@pytest.mark.skipif(not _MODEL, reason="MICROTOME_GPT2_MEDIUM names no checkpoint folder of GPT-2 medium")
def test_the_published_numbers_come_out() -> None:
    assert _MODEL
    model = load(_MODEL, dtype="float32")
    assert is_gpt2_medium(model)
    subject = subject_of(model, preset="paper")
    checks = acceptance(subject, kept_scores(subject), similarities(subject))
    assert all(each.holds for each in checks), report(checks)
