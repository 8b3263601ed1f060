"""The sample of windows: which windows, which token of each, and parts that add up to the hidden state again."""

import torch

from microtome.core import Role, Site
from microtome.geometry import Decomposition
from microtome.geometry.sample import WindowSample
from tests.unit.geometry.test_decomposition import batch_of, draw, pad

SITE = Site("resid_post", 0)
LENGTHS = [7, 7, 3, 5, 2, 7, 7, 4, 6, 7]


def test_parts_of_sampled_windows_are_those_of_the_whole() -> None:
    windows = draw(LENGTHS)
    batch, x = batch_of(LENGTHS), pad(windows)
    fold, split = WindowSample(SITE, 5, rows=6, seed=1), Decomposition(SITE, torch.zeros(5), 7)
    state, parts = fold.init(), split.init()
    fold.update(state, {SITE: x}, batch)
    split.update(parts, {SITE: x}, batch)
    found, solved = fold.result(state), split.result(parts)
    assert len(found.window) == 6
    contexts = found.split(solved)
    for row, window in enumerate(found.window.tolist()):
        h = windows[window].double()
        assert int(found.length[row]) == LENGTHS[window]
        torch.testing.assert_close(found.mean[row].double(), h.mean(0), atol=1e-6, rtol=0)
        mine = (contexts.tokens.window == row).nonzero()[:, 0]
        places = contexts.tokens.place[mine]
        assert len(places) == min(LENGTHS[window], 4)
        assert len(places.unique()) == len(places)
        torch.testing.assert_close(contexts.tokens.state[mine], h[places], atol=1e-6, rtol=0)
        again = solved.mu + solved.pos[places] + contexts.ctx[row] + contexts.tokens.resid[mine]
        torch.testing.assert_close(again, h[places], atol=1e-6, rtol=0)


def test_which_windows_depends_on_the_seed_and_windows_without_counted_tokens_stay_out() -> None:
    windows = draw(LENGTHS)
    batch, x = batch_of(LENGTHS), pad(windows)
    batch.roles[4] = int(Role.SPECIAL)
    chosen = []
    for seed in range(4):
        fold = WindowSample(SITE, 5, rows=9, seed=seed)
        state = fold.init()
        fold.update(state, {SITE: x}, batch)
        assert fold.result(state).window.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        fold = WindowSample(SITE, 5, rows=3, seed=seed)
        state = fold.init()
        fold.update(state, {SITE: x}, batch)
        chosen.append(tuple(fold.result(state).window.tolist()))
    assert len(set(chosen)) > 1
    assert all(4 not in windows for windows in chosen)
