"""Token identity as a third factor: dense least squares, planted shares, no effect, and what cannot be told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.core import Batch, Refusal, Role, Site
from microtome.geometry.identity import Identity, TokenIdentity
from tests.unit.geometry.test_decomposition import batch_of, pad

SITE, WIDTH = Site("resid_post", 0), 12


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(lengths: list[int], vocabulary: int, seed: int = 0) -> Batch:
    """Windows of ids that are drawn evenly."""
    batch = batch_of(lengths)
    return replace(batch, ids=torch.randint(vocabulary, batch.ids.shape, generator=torch.Generator().manual_seed(seed)))


def factors(batch: Batch) -> list[np.ndarray]:
    """Window, place and id of every counted token."""
    rows = [batch.ids[row][counted].tolist() for row, counted in enumerate(batch.counted(frozenset({Role.CONTENT})))]
    listed = [(row, place, each) for row, ids in enumerate(rows) for place, each in enumerate(ids)]
    return [np.array(column) for column in zip(*listed, strict=True)]


def made(batch: Batch, flat: torch.Tensor) -> torch.Tensor:
    """Counted tokens in a row as the tensor of a batch."""
    lengths = batch.counted(frozenset({Role.CONTENT})).sum(1).tolist()
    return pad(list(flat.split(lengths)))


def measured(batch: Batch, flat: torch.Tensor, **options) -> Identity:
    fold = TokenIdentity(SITE, torch.full((WIDTH,), 0.3), batch.ids.shape[1], **options)
    state = fold.init()
    fold.update(state, {SITE: made(batch, flat)}, batch)
    return fold.result(state)


def explained(h: np.ndarray, *columns: np.ndarray) -> tuple[float, int]:
    """Sum of squares about 0, and rank, of the dense design."""
    design = np.concatenate([np.eye(each.max() + 1)[each] for each in columns], axis=1)
    return float((design @ np.linalg.lstsq(design, h, rcond=None)[0]).__pow__(2).sum()), int(np.linalg.matrix_rank(design))


def by_hand(h: np.ndarray, window: np.ndarray, place: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    squares, (two, rank_two), (three, rank) = (h**2).sum(), explained(h, window, place), explained(h, window, place, ids)
    total, error = squares - len(h) * (h.mean(0) ** 2).sum(), (squares - three) / (len(h) - rank)
    fair = three - two - (rank - rank_two) * error
    return {
        "share": (three - two) / total,
        "omega2": fair / (total + error),
        "of_residual": fair / (squares - two + error),
    }


def test_shares_are_those_of_dense_least_squares_with_ragged_windows_and_ids_that_occur_once() -> None:
    batch = stream([9, 14, 3, 14, 11, 1, 8], vocabulary=25)
    window, place, ids = factors(batch)
    assert min(np.bincount(ids)[np.bincount(ids) > 0]) == 1
    h = drawn(len(ids), WIDTH).numpy() + drawn(25, WIDTH, seed=1).numpy()[ids] + drawn(14, WIDTH, seed=2).numpy()[place]
    found = measured(batch, torch.from_numpy(h))
    for name, value in by_hand(h, window, place, ids).items():
        assert getattr(found, name).value == pytest.approx(value, abs=1e-10), name
    assert (found.tokens, found.types) == (60, len(set(ids.tolist())))


def test_the_control_is_the_same_analysis_of_ids_that_moved_around_their_windows() -> None:
    batch = stream([10, 10], vocabulary=4)
    window, place, ids = factors(batch)
    h = drawn(20, WIDTH).numpy()
    found = measured(batch, torch.from_numpy(h))
    shifts = [
        by_hand(h, window, place, np.concatenate([np.roll(ids[:10], one), np.roll(ids[10:], two)]))["share"]
        for one in range(1, 10)
        for two in range(1, 10)
    ]
    assert min(abs(found.share.control - each) for each in shifts) < 1e-10
    assert abs(found.share.control - found.share.value) > 1e-6


def test_a_planted_share_is_found_and_position_and_window_are_not_credited_to_it() -> None:
    batch = stream([40] * 60, vocabulary=300)
    window, place, ids = factors(batch)
    tok, ctx, pos = drawn(300, WIDTH, seed=1), 3 * drawn(60, WIDTH, seed=2), 2 * drawn(40, WIDTH, seed=3)
    found = measured(batch, tok[ids] + ctx[window] + pos[place] + drawn(2400, WIDTH))
    assert found.omega2.value == pytest.approx(1 / (1 + 9 + 4 + 1), abs=0.01)
    assert found.of_residual.value == pytest.approx(1 / 2, abs=0.03)
    assert found.of_residual.control == pytest.approx(0, abs=0.02)
    assert found.omega2.control == pytest.approx(0, abs=0.003)


def test_without_an_effect_corrected_shares_are_0_and_the_plain_one_is_not() -> None:
    batch = stream([40] * 60, vocabulary=1000)
    found = measured(batch, drawn(2400, WIDTH))
    assert found.share.value == pytest.approx(found.types / 2400, abs=0.03)
    assert found.share.value > 0.3
    assert found.of_residual.value == pytest.approx(0, abs=0.01)
    assert found.omega2.value == pytest.approx(0, abs=0.01)
    assert found.omega2.control == pytest.approx(0, abs=0.01)


def test_a_sketch_finds_the_share() -> None:
    batch = stream([40] * 60, vocabulary=300)
    _, _, ids = factors(batch)
    h = drawn(300, WIDTH, seed=1)[ids] + drawn(2400, WIDTH)
    assert measured(batch, h, sketch=6).omega2.value == pytest.approx(measured(batch, h).omega2.value, abs=0.04)


def test_ids_beyond_16_bits_are_told_apart() -> None:
    batch = stream([30] * 20, vocabulary=2)
    _, _, ids = factors(batch)
    batch = replace(batch, ids=250_000 - 65_536 * batch.ids)
    found = measured(batch, torch.tensor([-1.0, 1.0])[ids][:, None] * torch.ones(WIDTH) + 0.1 * drawn(600, WIDTH))
    assert found.types == 2
    assert found.of_residual.value > 0.95


def test_states_that_are_their_tokens_vectors_are_explained_whole() -> None:
    batch = stream([30] * 20, vocabulary=40)
    _, _, ids = factors(batch)
    found = measured(batch, drawn(40, WIDTH, seed=1)[ids])
    assert found.of_residual.value == pytest.approx(1, abs=1e-9)


def test_what_cannot_be_told_says_why() -> None:
    assert measured(batch_of([6, 6]), drawn(12, WIDTH)).share.undefined == (
        "ids of tokens tell no more than position and window do, as with patches of images"
    )
    apart = measured(replace(batch_of([6, 6]), ids=torch.arange(14).reshape(2, 7)), drawn(12, WIDTH))
    assert apart.omega2.undefined == "nothing is left over to compare with: there are 12 tokens"
    still = measured(stream([6, 6], vocabulary=3), torch.zeros(12, WIDTH, dtype=torch.float64) + 7)
    assert still.omega2.undefined == "hidden states do not vary"
    fold = TokenIdentity(SITE, torch.zeros(WIDTH), 6)
    with pytest.raises(Refusal, match="no token was counted"):
        fold.result(fold.init())
    with pytest.raises(Refusal, match="NaN or infinite"):
        measured(stream([6, 6], vocabulary=3), drawn(12, WIDTH) * torch.nan)
