"""A step over a mesh of ranks is the step of one process, whatever the variant and the layout; a run that was stopped goes on with others."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from microtome.core import Interrupted, Refusal
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.checkpoints import checkpoints_in, read_checkpoint, write_checkpoint
from microtome.factors.mesh import ALONE, Mesh
from microtome.factors.selection import nth_largest
from microtome.factors.training import Trainer
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, Gated, JumpRelu, Matching, Relu, Steps, Tanh, Target, TopK
from tests.unit.factors.planted_states import recovered
from tests.unit.factors.ranks import (
    HALF,
    IDENTITY,
    PLANTED,
    SETTINGS,
    STEPS,
    UNITS,
    Case,
    as_four,
    as_two,
    require_near,
    together,
)

EVERY: list[Variant] = [
    TopK(3), BatchTopK(3), BatchTopK(4, (0.25, 0.6, 1.0)), Relu(0.3, "unit"), Relu(0.3), Gated(0.3),
    JumpRelu(Steps()), JumpRelu(Target(3.0)), JumpRelu(Tanh()), Matching(3),
]  # fmt: skip
SHARDED = [each for each in EVERY if not isinstance(each, Matching)]
PAIRS = (
    [Case(variant) for variant in EVERY]
    + [Case(variant, shards=2) for variant in SHARDED]
    + [Case(TopK(3, (0.25, 1.0)), "crosscoder", shards) for shards in (1, 2)]
    + [Case(variant, "transcoder", shards) for variant, shards in ((BatchTopK(3), 1), (TopK(3), 2), (Relu(0.3, "unit"), 2))]
    + [Case(Relu(0.3), "crosscoder", 2)]
)
FOURS = [Case(BatchTopK(4, (0.25, 1.0)), shards=2), Case(Relu(0.3, "unit"), shards=2), Case(JumpRelu(Target(3.0)), shards=4)]
RESUMED = [Case(BatchTopK(3), shards=2), Case(Relu(0.3, "unit"))]
"""By two ranks to the middle, on from there by one and by four."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have learnt, and where they stopped half way."""
    folder = tmp_path_factory.mktemp("pairs")
    together(2, folder, as_two, PAIRS, RESUMED, folder)
    return folder


@pytest.fixture(scope="module")
def fours(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks have learnt, some of it begun by two."""
    folder = tmp_path_factory.mktemp("fours")
    together(4, folder, as_four, FOURS, RESUMED, pairs, folder)
    return folder


def require_equal(found: dict[str, Tensor], case: Case) -> None:
    """Parameters as one process learns them, see `require_near`; and learning has changed them."""
    alone = case.trained().autoencoder.state_dict()
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        require_near(found[name], value)
    begun = case.autoencoder().directions.detach()
    assert float((alone["directions"] - begun).norm()) > 0.02 * float(begun.norm())


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_two_ranks_learn_what_one_process_learns(case: Case, pairs: Path) -> None:
    require_equal(torch.load(pairs / f"{case}.pt")["state"], case)


@pytest.mark.parametrize("case", FOURS, ids=str)
def test_four_ranks_learn_what_one_process_learns(case: Case, fours: Path) -> None:
    require_equal(torch.load(fours / f"{case}.pt")["state"], case)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_curves_are_of_the_whole_batch(case: Case, pairs: Path) -> None:
    found = torch.load(pairs / f"{case}.pt")["curve"]
    alone = [[*vars(point).values()] for point in case.trained().curve]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=1e-3, atol=1e-3)


def test_dead_units_are_among_what_ranks_agree_on() -> None:
    """Or the cases above would say nothing of how units come back."""
    for variant in (BatchTopK(3), Relu(0.3, "unit"), JumpRelu(Tanh())):
        curve = Case(variant).trained().curve
        assert max(point.dead for point in curve) > 0.2
    assert max(point.auxiliary for point in Case(BatchTopK(3)).trained().curve) > 0
    dead = [point.dead for point in Case(Relu(0.3, "unit")).trained().curve]
    assert min(dead[-STEPS // 2 :]) < max(dead) - 0.2


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_a_rank_has_its_share_of_the_units(case: Case, pairs: Path) -> None:
    kept = torch.load(pairs / f"{case}.pt")["kept"]
    for name in ("encoder", "bias", "directions"):
        assert kept[name] == UNITS // case.shards


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_the_same_ranks_go_on_bit_for_bit(case: Case, pairs: Path) -> None:
    whole, resumed = (torch.load(pairs / f"{what} {case}.pt") for what in ("whole", "resumed"))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_other_numbers_of_ranks_go_on(case: Case, pairs: Path, fours: Path) -> None:
    trainer = Trainer([case.autoencoder()], SETTINGS, seed=3)
    read_checkpoint(pairs / str(case), trainer, IDENTITY)
    assert trainer.done == HALF
    for x in [*case.batches()][HALF:]:
        trainer.step(x)
    require_equal(trainer.finished()[0].autoencoder.state_dict(), case)
    require_equal(torch.load(fours / f"finished {case}.pt"), case)


def test_a_checkpoint_of_one_process_is_whole_or_absent(tmp_path: Path) -> None:
    case = Case(TopK(3))
    batches, trainer = [*case.batches()], Trainer([case.autoencoder()], SETTINGS, seed=3)
    for step, x in enumerate(batches[:HALF]):
        trainer.step(x)
        if step % 4 == 3:
            write_checkpoint(tmp_path, trainer, IDENTITY)
            assert checkpoints_in(tmp_path) == [step + 1]
    (tmp_path / f"step-{HALF + 5:08d}").mkdir()
    second = Trainer([case.autoencoder()], SETTINGS, seed=3)
    read_checkpoint(tmp_path, second, IDENTITY)
    for name, value in trainer.state().items():
        assert torch.equal(second.state()[name], value), name


@pytest.mark.parametrize("damage", ["a bit", "the end", "all", "the marker"])
def test_a_damaged_checkpoint_is_refused_and_what_it_was_learnt_from_stays(damage: str, tmp_path: Path) -> None:
    trainer = Trainer([Case(TopK(3)).autoencoder()], SETTINGS, seed=3)
    trainer.step(next(Case(TopK(3)).batches()))
    write_checkpoint(tmp_path, trainer, IDENTITY)
    (marker,) = tmp_path.glob("step-*.json")
    (part,) = tmp_path.glob("step-*/__0_*")
    content = part.read_bytes()
    match damage:
        case "a bit":
            part.write_bytes(content[:-300] + bytes([content[-300] ^ 4]) + content[-299:])
        case "the end":
            part.write_bytes(content[:-100])
        case "all":
            part.unlink()
        case _:
            marker.write_text("{")
    with pytest.raises(Interrupted, match=rf"its bytes are not those that were written; delete {tmp_path} and run again"):
        read_checkpoint(tmp_path, trainer, IDENTITY)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trainer = Trainer([Case(TopK(3)).autoencoder()], SETTINGS, seed=3)
    trainer.step(next(Case(TopK(3)).batches()))
    write_checkpoint(tmp_path, trainer, {"seed": "3", "streams": "4"})
    with pytest.raises(Refusal, match="streams was 4 and is now 8"):
        read_checkpoint(tmp_path, trainer, {"seed": "3", "streams": "8"})


def test_units_that_cannot_be_spread_are_refused() -> None:
    with pytest.raises(Refusal, match="100 units are not 3 equal parts"):
        Autoencoder(TopK(3), 100, 8, mesh=Mesh(shards=3))
    with pytest.raises(Refusal, match="matching pursuit over 2 shards"):
        Autoencoder(Matching(3), 100, 8, mesh=Mesh(shards=2))


@pytest.mark.parametrize("units", [100, 4096, 4097, 10_007])
def test_units_are_drawn_as_if_at_once(units: int) -> None:
    drawn = torch.randn(units, 1, 5, generator=torch.Generator().manual_seed(3))
    drawn *= 1 / drawn.flatten(1).norm(dim=1)[:, None, None]
    assert torch.equal(Autoencoder(TopK(3), units, 5, seed=3).directions.detach(), drawn)
    if units % 4 == 0:
        parts = [Autoencoder(TopK(3), units, 5, seed=3, mesh=Mesh(1, 4, 0, rank)).directions.detach() for rank in range(4)]
        assert torch.equal(torch.cat(parts), drawn)


def test_one_process_is_a_mesh_that_changes_nothing() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    for over in ("rows", "units", "all"):
        assert ALONE.sum(x, over) is x
        assert ALONE.counts(7, over) == [7]
        assert ALONE.before(7, over) == 0
    assert ALONE.shared(x) is x
    assert ALONE.first
    assert float(nth_largest(ALONE, x.detach().flatten(), 4)) == float(x.detach().flatten().sort().values[-4])


def test_a_planted_dictionary_is_recovered_by_two_ranks(pairs: Path) -> None:
    found = torch.load(pairs / "planted.pt")
    assert float(recovered(found[:, 0], PLANTED.factors).float().mean()) > 0.9
