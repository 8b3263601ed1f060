"""What a model reads of a source, and what is said where that is less than was asked for."""

import logging
from pathlib import Path

import pytest

from microtome.capture import material_of, writing_to
from microtome.corpus import Joined, Reading
from tests import toys


@pytest.mark.parametrize(
    ("window", "warnings"),
    [
        (10_000, ["windows are of 64 tokens, not 10000: toy-llama reads no more"]),
        (Joined(contexts=4), ["windows are of 64 tokens, not 512: toy-llama reads no more"]),
        (64, []),
        (Joined(window=32, contexts=4), []),
    ],
)
def test_windows_that_the_model_cannot_read_are_cut_with_a_warning(
    window: int | Joined, warnings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    material = material_of(toys.toy_decoder(), toys.toy_texts(), Reading(), window=window, seed=0)
    with caplog.at_level(logging.WARNING):
        corpus = material.prepare(writing_to(tmp_path, "main"), "main")
    assert caplog.messages == warnings
    assert corpus.window == min(64, window.window if isinstance(window, Joined) else window)
