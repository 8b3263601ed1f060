"""Handlings of massive activations: exactly the decomposition of the handled tensor, and a planted sink is undone."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Batch, Role, Site
from microtome.geometry import Decomposition
from microtome.geometry.handling import HANDLINGS, Handled, Handling, Treated, handlings, headlines
from microtome.geometry.sample import WindowSample
from tests.unit.geometry.test_decomposition import batch_of

SITE = Site("resid_post", 0)
WIDTH, TOKENS, WINDOWS = 24, 12, 60
MASSIVE = 7


def planted(sink: int = 3) -> tuple[Batch, torch.Tensor]:
    """White noise, and at one position coordinate 7 is 5,000; documents are in both halves."""
    x = torch.randn(WINDOWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    x[:, sink, MASSIVE] += 5000
    return halved(batch_of([TOKENS] * WINDOWS, lead=0)), x


def halved(batch: Batch) -> Batch:
    return replace(batch, half=(batch.window % 2).to(torch.uint8))


def run(fold, batch: Batch, x: torch.Tensor):
    state = fold.init()
    fold.update(state, {SITE: x}, batch)
    return fold.result(state)


def decomposition(window: int = TOKENS) -> Decomposition:
    return Decomposition(SITE, torch.full((WIDTH,), 0.25), window)


def found(batch: Batch, x: torch.Tensor) -> Handled | None:
    windows = run(WindowSample(SITE, WIDTH, rows=WINDOWS, picks=TOKENS), batch, x)
    return handlings(run(decomposition(), batch, x), windows, decomposition())


def treated(batch: Batch, x: torch.Tensor) -> dict[Handling, Treated]:
    fold = found(batch, x)
    assert fold is not None
    return dict(run(fold, batch, x))


def everything(batch: Batch, x: torch.Tensor) -> dict[Handling, Treated]:
    """With coordinate 7 masked and clamping where one in a hundred is beyond, whatever is massive."""
    low, high = (torch.quantile(x.flatten(0, 1), end, dim=0) for end in (0.005, 0.995))
    return dict(run(Handled(decomposition(), 1000.0, (MASSIVE,), low, high), batch, x))


def assert_same(ours: Treated, parts) -> None:
    torch.testing.assert_close(ours.pos, parts.pos, atol=1e-4, rtol=1e-5)
    assert ours.share == pytest.approx(parts.share, abs=1e-6)
    assert ours.agreed == pytest.approx(parts.agreed, abs=1e-6)
    assert tuple(ours.counts.tolist()) == parts.counts


def test_a_planted_sink_makes_position_and_masking_it_unmakes_it() -> None:
    found = treated(*planted())
    assert tuple(found) == HANDLINGS
    assert found["none"].share["pos"] > 0.99
    chance = 1 / WINDOWS
    without: tuple[Handling, ...] = ("first positions dropped", "flagged tokens dropped", "massive coordinates masked")
    for handling in without:
        assert found[handling].share["pos"] == pytest.approx(chance, abs=0.02), handling
    assert float(found["massive coordinates masked"].pos[:, MASSIVE].abs().max()) == 0
    assert found["flagged tokens dropped"].counts.tolist() == [WINDOWS * (place != 3) for place in range(TOKENS)]
    assert found["median of groups"].share["pos"] > 0.99, "a sink in every document is an effect of position"
    late = treated(*planted(sink=9))
    assert late["first positions dropped"].share["pos"] > 0.99, "there the sink is not among the first"
    assert late["flagged tokens dropped"].share["pos"] == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("lengths", [[TOKENS] * WINDOWS, [TOKENS] * 30 + [3, 5, 9] * 10])
def test_each_handling_is_the_decomposition_of_what_was_handled(lengths: list[int]) -> None:
    batch = halved(batch_of(lengths, lead=0))
    _, x = planted()
    ours = everything(batch, x)
    assert_same(ours["none"], run(decomposition(), batch, x))
    by_hand = x.clone()
    by_hand[:, :, MASSIVE] = 0.25
    assert_same(ours["massive coordinates masked"], run(decomposition(), batch, by_hand))
    low, high = (torch.quantile(x.flatten(0, 1), end, dim=0) for end in (0.005, 0.995))
    assert_same(ours["winsorised"], run(decomposition(), batch, x.clamp(low, high)))
    early = torch.arange(TOKENS) < 4
    late = replace(batch, roles=batch.roles.masked_fill(early, int(Role.SPECIAL)))
    after = run(decomposition(TOKENS - 4), late, x)
    assert ours["first positions dropped"].share == pytest.approx(after.share, abs=1e-6)
    torch.testing.assert_close(ours["first positions dropped"].pos[4:], after.pos, atol=1e-4, rtol=1e-5)


def test_dropping_flagged_tokens_keeps_the_positions_of_the_others() -> None:
    """Sinks at random places, at position effects that are planted: plain position is ruined, the unbalanced solver finds them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(WINDOWS, TOKENS, WIDTH, generator=generator)
    effect = 3 * torch.randn(TOKENS, WIDTH, generator=generator)
    x += effect
    flagged = torch.rand(WINDOWS, TOKENS, generator=generator) < 0.2
    x[flagged, MASSIVE] += 5000
    found = everything(halved(batch_of([TOKENS] * WINDOWS, lead=0)), x)
    assert found["flagged tokens dropped"].counts.tolist() == (~flagged).sum(0).tolist()
    truth = (effect - effect.mean(0)).double()
    assert float((found["flagged tokens dropped"].pos - truth).norm() / truth.norm()) < 0.1
    assert float((found["none"].pos - truth).norm() / truth.norm()) > 10
    assert found["flagged tokens dropped"].share["pos"] == pytest.approx(0.9, abs=0.05)
    assert found["flagged tokens dropped"].agreed == pytest.approx(0.9, abs=0.05)


def test_one_token_of_one_document_ruins_position_and_not_the_median_of_groups() -> None:
    generator = torch.Generator().manual_seed(2)
    effect = torch.randn(TOKENS, WIDTH, generator=generator)
    x = (
        effect
        + torch.randn(WINDOWS, TOKENS, WIDTH, generator=generator)
        + 3 * torch.randn(WINDOWS, 1, WIDTH, generator=generator)
    )
    batch = halved(batch_of([TOKENS] * WINDOWS, lead=0))
    truth = (effect - effect.mean(0)).double()
    before = everything(batch, x)
    x[17, 6, 2] += 1e4
    after = everything(batch, x)

    def error(parts: Treated) -> float:
        return float((parts.pos - truth).norm() / truth.norm())

    assert error(before["none"]) < error(before["median of groups"]) < 0.25
    assert before["median of groups"].share["pos"] == pytest.approx(before["none"].share["pos"], abs=0.02)
    assert error(after["none"]) > 5
    assert error(after["median of groups"]) < 0.3
    assert float((after["median of groups"].pos - before["median of groups"].pos).abs().max()) < 1
    assert headlines(after["none"])["pos", "largest share of one position"].value > 0.9
    assert headlines(after["median of groups"])["pos", "largest share of one position"].value < 0.3


def test_few_documents_have_no_median() -> None:
    batch, x = planted()
    batch = replace(batch, document=batch.window % 2)
    found = everything(batch, x)["median of groups"]
    assert found.undefined == "the documents fall into 2 groups, and a median needs 3"
    assert all(each.undefined == found.undefined for each in headlines(found).values())


def test_windows_without_late_tokens_leave_nothing() -> None:
    batch, x = halved(batch_of([3] * WINDOWS, lead=0)), planted(sink=1)[1][:, :3]
    found = everything(batch, x)
    assert found["first positions dropped"].undefined == "no token is left"
    assert found["none"].share["pos"] > 0.99


def test_what_is_left_may_not_vary() -> None:
    batch, x = planted()
    x[x < 1000] = 0.25
    assert everything(batch, x)["massive coordinates masked"].undefined == "hidden states do not vary"


def test_without_massive_activations_there_is_nothing_to_handle() -> None:
    batch, x = planted()
    x[:, :, MASSIVE] = 1.0
    assert found(batch, x) is None
    assert bool((batch.roles == int(Role.CONTENT)).all()), "the batch is left alone"
