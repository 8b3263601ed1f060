"""Learning against planted dictionaries, the paper's algorithm written plainly, learning that was interrupted, and bad states."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.aims import Aimed, Fixed, paper_codes, penalty_for
from microtome.factors.coding import Lasso, coded
from microtome.factors.learning import PAPER, Learner, Learning, Replacement, judged, learn, paper_sites
from microtome.factors.scaling import identity
from microtome.factors.updates import Mairal, Newton, Update
from tests.unit.factors.planted_dictionaries import planted_dictionary, planted_states, recovered

SMALL = Learning(24, Lasso(0.3, 1e-3), Mairal(15.0), minibatch=50)


@pytest.fixture(scope="module")
def states() -> Tensor:
    return planted_states(1200, units=24, d=16, k=3).x


@pytest.mark.parametrize("mean", [0.0, 0.8])
@pytest.mark.parametrize(("update", "start"), [(Mairal(15.0), "states"), (Newton(), "normal")])
def test_planted_directions_are_recovered_with_and_without_a_shared_mean(mean: float, update: Update, start: str) -> None:
    """128 directions of 64 numbers, 5 in a state, in proportion to rank^-1/2, minibatches of 100.

    In proportion to 1 / rank the commonest is in two states of three, and the lasso itself prefers sums of common directions to what was planted.
    """
    planted = planted_states(50_000, mean=mean)
    settings = Learning(128, Lasso(0.3, 1e-3), update, minibatch=100, start=start)  # type: ignore[arg-type]
    learnt = learn([(planted.x, None)], settings)
    assert recovered(learnt.directions, planted.directions) >= 0.95
    assert recovered(planted_dictionary(seed=5, mean=mean), planted.directions) < 0.05
    assert 4.5 < learnt.record[-1].l0 < 8
    assert learnt.record[-1].explained > 0.9
    assert float((learnt.directions.norm(dim=1) - 1).abs().max()) < 1e-5


def plainly(x: np.ndarray, phi: np.ndarray, weight: np.ndarray, penalty: float, batch: int) -> np.ndarray:
    """The source work's training, line by line as its specification has it, with columns as factors."""
    phi, h = phi.T.copy(), np.zeros(len(phi))
    for begin in range(0, len(x) - len(x) % batch, batch):
        part, w = x[begin : begin + batch], weight[begin : begin + batch]
        eta = 1 / np.linalg.eigvalsh(phi @ phi.T)[-1]
        a, y, t = np.zeros((phi.shape[1], batch)), np.zeros((phi.shape[1], batch)), 1.0
        for _ in range(500):
            t_new = (1 + np.sqrt(1 + 4 * t**2)) / 2
            a_new = np.maximum(0, y + eta * phi.T @ (part.T - phi @ y) - eta * penalty)
            y = a_new + ((t - 1) / t_new) * (a_new - a)
            a, t = a_new, t_new
        rest = part.T - phi @ a
        h = (1 - 1 / 300) * h + (1 / 300) * (a**2).mean(1)
        phi = phi + 0.001 * ((w * rest) @ a.T / batch) / (h + 0.005)
        phi = phi / np.linalg.norm(phi, axis=0)
    return phi.T


def test_the_paper_preset_is_the_source_work_to_the_letter(states: Tensor) -> None:
    x, ids = states[:430].double(), torch.arange(430) % 7
    counts = torch.tensor([1, 4, 9, 100, 400, 0, 25])
    settings = replace(PAPER, units=24)
    first = Learner(replace(settings, minibatch=431), counts)
    first.feed(torch.cat((x, x[:1])), torch.cat((ids, ids[:1])))
    drawn = torch.randn(24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.nn.functional.normalize(drawn, dim=1).numpy()
    weight = 1 / np.sqrt(np.maximum(counts.numpy(), 1))
    expected = plainly(np.tile(x.numpy(), (2, 1)), start, weight[np.tile(ids.numpy(), 2)], 0.23, 100)
    learnt = learn([(x[:100], ids[:100]), (x[100:], ids[100:])], settings, counts)
    assert float(np.abs(learnt.directions.numpy() - expected).max()) < 1e-6
    assert float(np.abs(start - expected).max()) > 1e-3
    assert learnt.penalty == 0.23


def test_the_paper_preset_has_the_published_numbers() -> None:
    assert (PAPER.units, PAPER.minibatch, PAPER.passes, PAPER.weighting) == (2000, 100, 2, "paper")
    assert PAPER.codes == Fixed(0.23, 500)
    assert PAPER.update == Newton(0.001, 300.0, 0.005, float("inf"), "none")
    assert (PAPER.replacement, PAPER.leftover, PAPER.start) == (None, "dropped", "normal")
    assert [str(site) for site in paper_sites(12)] == [f"resid_pre.{layer}" for layer in (0, 2, 4, 6, 8, 10)]
    assert paper_sites(24)[-1] == Site("resid_pre", 22)


def test_many_of_the_papers_steps_come_to_the_exact_codes() -> None:
    planted = planted_states(50)
    found = paper_codes(planted.directions.double(), planted.x.double(), Fixed(0.3, 2000))
    exact = coded(planted.directions.double(), planted.x.double(), Lasso(0.3, 1e-12, 20000)).values
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


def test_how_states_come_does_not_matter(states: Tensor) -> None:
    whole = learn([(states, None)], SMALL)
    pieces = learn([(part, None) for part in states.split(37)], SMALL)
    assert torch.equal(whole.directions, pieces.directions)
    assert whole.record == pieces.record


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        replace(SMALL, update=Newton(), replacement=Replacement(100), codes=Lasso(2.0)),
        replace(SMALL, codes=Aimed(3.0), weighting="consistent"),
        replace(SMALL, codes=Fixed(0.3, 50), update=Newton(), weighting="paper", leftover="dropped"),
    ],
)
def test_learning_that_was_saved_goes_on_bit_for_bit(settings: Learning, states: Tensor, tmp_path: Path) -> None:
    ids, counts = torch.arange(len(states)) % 5, torch.tensor([3, 1, 4, 1, 5])
    expected = learn([(states, ids)], settings, counts)
    for stop in (30, 555):
        before = Learner(settings, counts)
        before.feed(states[:stop], ids[:stop])
        save_file(before.state(), tmp_path / "state.safetensors")
        before.feed(states[stop:], ids[stop:])  # what is saved is a copy
        after = Learner(settings, counts)
        after.restore(load_file(tmp_path / "state.safetensors"))
        assert after.rows == stop
        after.feed(states[after.rows :], ids[stop:])
        found = after.finish()
        assert torch.equal(found.directions, expected.directions)
        assert (found.record, found.penalty, found.unused) == (expected.record, expected.penalty, expected.unused)


def test_seeds_decide(states: Tensor) -> None:
    same, again, other = (learn([(states, None)], replace(SMALL, seed=seed)).directions for seed in (3, 3, 4))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_passes_read_everything_again(states: Tensor) -> None:
    twice = learn([(states, None)], replace(SMALL, passes=2))
    assert torch.equal(twice.directions, learn([(states, None), (states, None)], SMALL).directions)

    def once() -> Iterator[tuple[Tensor, None]]:
        yield states, None

    with pytest.raises(Refusal, match="can be read once"):
        learn(once(), replace(SMALL, passes=2))


def test_a_direction_that_nothing_uses_is_replaced_by_what_is_left_over() -> None:
    """All states at first are of half of the directions; what begins far from any state is lost without a replacement."""
    phi = torch.eye(16)
    place = torch.arange(4000) % 8
    x = phi[place] * 2 + phi[place + 8]
    settings = Learning(40, Lasso(0.5), Newton(), minibatch=50, start="normal")
    lost, found = (learn([(x, None)], replace(settings, replacement=rule)) for rule in (None, Replacement(200)))
    assert lost.unused > 0
    assert lost.record[-1].replaced == 0
    assert found.record[-1].replaced > 0
    assert found.unused <= lost.unused


def test_the_penalty_found_gives_the_number_of_factors_aimed_at(states: Tensor) -> None:
    learnt = learn([(states, None)] * 3, replace(SMALL, codes=Aimed(4.0)))
    others = planted_states(2000, units=24, d=16, k=3).x[1200:]
    codes = coded(learnt.directions, others, Lasso(learnt.penalty)).values
    assert float((codes > 0).sum(1).double().mean()) == pytest.approx(4, rel=0.1)
    assert penalty_for(learnt.directions, states, Aimed(2.0)) > penalty_for(learnt.directions, states, Aimed(6.0))


def test_explained_variance_is_that_of_all_states_together(states: Tensor) -> None:
    learnt = learn([(states + 3, None)], SMALL)
    held = planted_states(300, units=24, d=16, k=3).x + 3
    found = judged(learnt.directions, held.split(70), Lasso(0.3, 1e-6))
    codes = coded(learnt.directions, held, Lasso(0.3, 1e-6)).values
    rest = (held - codes @ learnt.directions).square().sum()
    assert found.explained == pytest.approx(float(1 - rest / (held - held.mean(0)).square().sum()), abs=1e-4)
    assert found.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()))
    assert (found.rows, found.explained_refitted > found.explained) == (300, True)
    last = learn([(states + 3, None)], replace(SMALL, minibatch=1200)).record
    assert len(last) == 1
    assert last[0].signal_to_noise == pytest.approx(
        float((states + 3).square().sum() / ((1 - last[0].explained) * (states - states.mean(0)).square().sum())), rel=1e-4
    )


def test_frequent_words_have_less_say_where_weights_are_by_frequency() -> None:
    """One direction for two words, of which one is nine times as frequent: it lies nearer to it, and less so with weights."""
    ids = torch.tensor(([0] * 9 + [1] + [2] * 10) * 20)
    x = torch.tensor([[1.3, 0.3, 0.0], [0.3, 1.3, 0.0], [0.0, 0.0, 1.0]])[ids]
    x = x[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    ids = torch.where(x[:, 2] == 1, 2, (x[:, 1] > 1).long())
    settings = Learning(2, Lasso(0.1), minibatch=100, replacement=None)
    plain, even = (
        learn([(x, ids)], replace(settings, weighting=weighting), torch.bincount(ids)).directions
        for weighting in ("none", "consistent")
    )
    leaning = [float((each[:, 0] / each[:, 1])[each[:, 0].argmax()]) for each in (plain, even)]
    assert leaning[0] > 1.2 * leaning[1]
    assert leaning[1] > 1


def test_what_was_learnt_is_a_dictionary_that_codes_alike(states: Tensor) -> None:
    learnt = learn([(states, None)], SMALL)
    sites = (Site("resid_pre", 0), Site("resid_pre", 2))
    found = learnt.dictionary("small", sites, identity(2, 16), model="model")
    assert found.arrangement == "shared"
    assert found.learnt["rows"] == 1200
    torch.testing.assert_close(found.encode({sites[1]: states[:50]}), coded(learnt.directions, states[:50], Lasso(0.3)).values)


def test_bad_states_are_refused(states: Tensor) -> None:
    with pytest.raises(Refusal, match="24 directions: there are 20 states"):
        learn([(states[:20], None)], SMALL)
    with pytest.raises(Refusal, match="some are not finite"):
        learn([(torch.where(states > 1, torch.nan, states), None)], SMALL)
    with pytest.raises(Refusal, match="the first ones are all the same"):
        learn([(torch.ones(100, 16), None)], SMALL)
    with pytest.raises(Refusal, match="no state has a code: none lies along a direction by more than"):
        learn([(states, None)], replace(SMALL, codes=Lasso(1000.0)))
    with pytest.raises(Refusal, match="of 16 that it can need at most"):
        learn([(states, None)], replace(SMALL, units=200, codes=Lasso(1e-5, 1e-6), start="normal"))
    with pytest.raises(Refusal, match="aim at fewer, or learn more directions"):
        learn([(states, None)], replace(SMALL, codes=Aimed(24.0)))
    with pytest.raises(Refusal, match="the tokens of the states are not given"):
        learn([(states, None)], replace(SMALL, weighting="consistent"), torch.ones(3, dtype=torch.int64))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(Refusal, match="weigh consistently"):
        replace(SMALL, weighting="paper")
    with pytest.raises(Refusal, match="aim at one or more"):
        Aimed(0.0)
    with pytest.raises(Refusal, match="not all above 0"):
        replace(SMALL, minibatch=0)
    with pytest.raises(Refusal, match="not all above 0"):
        Fixed(0.0)


def test_states_that_are_all_zero_among_others_have_no_say(states: Tensor) -> None:
    mixed = torch.cat((torch.zeros(40, 16), states))
    assert bool(torch.isfinite(learn([(mixed, None)], SMALL).directions).all())
