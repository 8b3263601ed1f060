"""Windows that recipes read: halves, the first few, layers evenly, and values that share a reader."""

from pathlib import Path

import pytest
import torch

from microtome.core import Half
from microtome.examples import TokenCounts
from microtome.neurons.promotion import values_of
from recipes.windows import Windows, asked, folded, some_layers, surveyed, text_of, values_of_layers, windows_of
from tests import toys
from tests.unit.model.tiny import opened


@pytest.fixture(scope="module")
def windows() -> Windows:
    return windows_of(toys.toy_decoder(), toys.toy_texts(24, 90), 30, 32)


def test_windows_are_of_both_halves_and_of_the_length_asked(windows: Windows) -> None:
    assert sum(len(batch.window) for batch in windows.batches) == 30
    assert max(batch.ids.shape[1] for batch in windows.batches) == 32
    halves = [sum(len(batch.window) for batch in windows.of(half)) for half in Half]
    assert sum(halves) == 30
    assert min(halves) > 0
    assert all((batch.half == int(Half.CONFIRM)).all() for batch in windows.of(Half.CONFIRM))
    assert 12 < windows.documents <= 24
    assert windows.tokens == sum(int((batch.roles > 0).sum()) for batch in windows.batches)


def test_the_first_are_in_order(windows: Windows) -> None:
    kept = torch.cat([batch.window for batch in windows.first(7).batches])
    assert torch.equal(kept, torch.cat([batch.window for batch in windows.batches])[:7])
    assert windows.first(1000).tokens == windows.tokens


def test_folds_see_every_window_once(windows: Windows) -> None:
    model = toys.toy_decoder()
    counts = folded(model, windows, {"counts": TokenCounts(model.shape.vocab)})["counts"]
    assert int(counts.here.sum()) == sum(int(batch.counted(TokenCounts(1).roles).sum()) for batch in windows.batches)
    found = surveyed(model, windows, [0, 2], 3)
    assert list(found) == [0, 2]
    assert found[2].contexts.value.shape == (4, 40, 3)


@pytest.mark.parametrize(("count", "layers"), [(None, [0, 1, 2]), (2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_layers_are_from_the_first_to_the_last(count: int | None, layers: list[int]) -> None:
    assert some_layers(toys.toy_decoder(), count) == layers


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_values_are_those_of_single_layers(name: str) -> None:
    model = opened(name)
    for found, layer in zip(values_of_layers(model, [0, 2]), (0, 2), strict=True):
        alone = values_of(model, layer)
        assert found.layer == layer
        assert torch.equal(found.rows, alone.rows)
        assert torch.equal(found.length, alone.length)
        assert torch.equal(found.reader.matrix, alone.reader.matrix)


def test_a_text_that_is_no_package_is_itself() -> None:
    assert text_of("some/folder") == "some/folder"


def test_the_command_line_says_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(toys.save_checkpoint(tmp_path))
    told = asked("What it is.", [folder, "some/folder", "--layers", "0,2", "--seed", "4"])
    assert (told.model.shape.layers, told.text, told.quick, told.layers, told.seed) == (3, "some/folder", False, [0, 2], 4)
    assert asked("What it is.", [folder, "--quick"]).quick
    with pytest.raises(SystemExit):
        asked("What it is.", [folder, "--layers", "0,3"])
    assert "layers are 0 to 2" in capsys.readouterr().err
