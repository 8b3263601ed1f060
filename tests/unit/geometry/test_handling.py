"""Handlings of massive activations: exactly the decomposition of the handled tensor, and a planted sink is undone."""

import pytest
import torch

from microtome.core import Batch, Role, Site
from microtome.geometry import Decomposition
from microtome.geometry.handling import HANDLINGS, Handled, handlings
from microtome.geometry.sample import WindowSample
from tests.unit.geometry.test_decomposition import batch_of

SITE = Site("resid_post", 0)
WIDTH, TOKENS, WINDOWS = 24, 12, 60
MASSIVE = 7


def planted(sink: int = 3) -> tuple[Batch, torch.Tensor]:
    """White noise, and at one position coordinate 7 is 5,000."""
    x = torch.randn(WINDOWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    x[:, sink, MASSIVE] += 5000
    return batch_of([TOKENS] * WINDOWS, lead=0), x


def run(fold, batch: Batch, x: torch.Tensor):
    state = fold.init()
    fold.update(state, {SITE: x}, batch)
    return fold.result(state)


def found(batch: Batch, x: torch.Tensor) -> dict:
    fold = Decomposition(SITE, torch.zeros(WIDTH), TOKENS)
    return handlings(run(fold, batch, x), run(WindowSample(SITE, WIDTH, rows=WINDOWS, picks=TOKENS), batch, x), fold)


def test_a_planted_sink_makes_position_and_masking_it_unmakes_it() -> None:
    batch, x = planted()
    parts = {name: run(fold, batch, x) for name, fold in found(batch, x).items()}
    assert tuple(parts) == HANDLINGS
    assert parts["none"].share["pos"] > 0.99
    masked = parts["massive coordinates masked"]
    assert masked.share["pos"] == pytest.approx(masked.control["pos"], abs=0.02)
    assert float(masked.pos[:, MASSIVE].abs().max()) == 0
    assert parts["first positions dropped"].share["pos"] == pytest.approx(masked.share["pos"], abs=0.02), (
        "the sink is among the first"
    )
    late = {name: run(fold, *planted(sink=9)) for name, fold in found(*planted(sink=9)).items()}
    assert late["first positions dropped"].share["pos"] > 0.99, "and here it is not"


def test_each_handling_is_the_decomposition_of_what_was_handled() -> None:
    batch, x = planted()
    folds = found(batch, x)
    fold = Decomposition(SITE, torch.zeros(WIDTH), TOKENS)
    assert folds["massive coordinates masked"].masked == (MASSIVE,)
    by_hand = x.clone()
    by_hand[:, :, MASSIVE] = 0
    assert torch.equal(run(folds["massive coordinates masked"], batch, x).pos, run(fold, batch, by_hand).pos)
    assert torch.equal(
        run(folds["first positions dropped"], batch, x).pos, run(fold, batch_of([TOKENS - 4] * WINDOWS, lead=0), x[:, 4:]).pos
    )
    low, high = (torch.quantile(x.flatten(0, 1).double(), end, dim=0).float() for end in (0.005, 0.995))
    clamped = run(fold, batch, x.clamp(low, high))
    torch.testing.assert_close(run(folds["winsorised"], batch, x).pos, clamped.pos, atol=1e-4, rtol=1e-5)
    assert bool((batch.roles == int(Role.CONTENT)).all()), "the batch is left alone"


def test_without_massive_activations_there_is_nothing_to_handle() -> None:
    batch, x = planted()
    x[:, :, MASSIVE] = 1.0
    assert found(batch, x) == {}


def test_the_state_is_the_decompositions() -> None:
    batch, x = planted()
    fold = Decomposition(SITE, torch.zeros(WIDTH), TOKENS)
    plain, handled = run(fold, batch, x), run(Handled(fold), batch, x)
    assert torch.equal(plain.pos, handled.pos)
    assert plain.share == handled.share
