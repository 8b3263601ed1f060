"""The one-pass decomposition against dense least squares, planted parts, and its merge laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Batch, Refusal, Role, Site
from microtome.geometry import Centre, Decomposition
from microtome.geometry.sites import variance_of

SITE = Site("resid_post", 0)


def batch_of(lengths: list[int], first: int = 0, lead: int = 1, padded: int | None = None) -> Batch:
    """A batch of windows with `lead` uncounted tokens before `lengths[i]` counted ones."""
    tokens = padded or lead + max(lengths)
    roles = torch.zeros(len(lengths), tokens, dtype=torch.uint8)
    for row, length in enumerate(lengths):
        roles[row, :lead] = int(Role.FIRST)
        roles[row, lead : lead + length] = int(Role.CONTENT)
    window = torch.arange(first, first + len(lengths))
    zero = torch.zeros(len(lengths), dtype=torch.int64)
    return Batch(
        ids=torch.zeros(len(lengths), tokens, dtype=torch.int64),
        roles=roles,
        window=window,
        document=window,
        start=zero,
        half=zero.to(torch.uint8),
        label=zero,
        extra={},
    )


def pad(windows: list[torch.Tensor], lead: int = 1, junk: float = 1e6) -> torch.Tensor:
    """Windows of hidden states as one tensor, with junk wherever no counted token is."""
    longest = max(len(w) for w in windows)
    out = torch.full((len(windows), lead + longest, windows[0].shape[1]), junk, dtype=windows[0].dtype)
    for row, window in enumerate(windows):
        out[row, lead : lead + len(window)] = window
    return out


def decompose(windows, origin=None, parts=None):
    origin = torch.zeros(windows[0].shape[1]) if origin is None else origin
    fold = Decomposition(SITE, origin, max(len(w) for w in windows))
    state = fold.init()
    for part in parts or [windows]:
        fold.update(state, {SITE: pad(part)}, batch_of([len(w) for w in part]))
    return fold.result(state)


def dense(windows):
    """The same model by least squares on an explicit design matrix, float64."""
    h = np.concatenate([w.double().numpy() for w in windows])
    context = np.concatenate([np.full(len(w), c) for c, w in enumerate(windows)])
    place = np.concatenate([np.arange(len(w)) for w in windows])
    ones = np.ones((len(h), 1))
    by_context = np.eye(len(windows))[context]
    by_place = np.eye(max(len(w) for w in windows))[place]

    def residual(*blocks):
        design = np.concatenate(blocks, 1)
        return h - design @ np.linalg.lstsq(design, h, rcond=None)[0]

    ss = [float((residual(*blocks) ** 2).sum()) for blocks in ((ones,), (ones, by_context), (ones, by_context, by_place))]
    solution = np.linalg.lstsq(np.concatenate([by_context, by_place], 1), h, rcond=None)[0]
    pos = solution[len(windows) :]
    pos = pos - np.average(pos, axis=0, weights=by_place.sum(0))
    ctx = np.stack([w.double().numpy().mean(0) - h.mean(0) - pos[: len(w)].mean(0) for w in windows])
    return {
        "mu": h.mean(0),
        "pos": pos,
        "share": {"ctx": (ss[0] - ss[1]) / ss[0], "pos": (ss[1] - ss[2]) / ss[0], "resid": ss[2] / ss[0]},
        "norm": {
            "mu": np.linalg.norm(h.mean(0)),
            "pos": np.sqrt((pos[place] ** 2).sum() / len(h)),
            "ctx": np.sqrt((ctx[context] ** 2).sum() / len(h)),
            "resid": np.sqrt(ss[2] / len(h)),
        },
    }


def draw(lengths, width=5, seed=0, offset=3.0):
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(max(lengths), width, generator=generator)
    return [
        offset + position[:n] + torch.randn(1, width, generator=generator) + torch.randn(n, width, generator=generator)
        for n in lengths
    ]


@pytest.mark.parametrize("lengths", [[6, 6, 6, 6], [7, 7, 3, 5, 1, 2, 7], [9, 2]])
def test_equals_dense_least_squares(lengths):
    windows = draw(lengths)
    ours, reference = decompose(windows), dense(windows)
    np.testing.assert_allclose(ours.mu.numpy(), reference["mu"], atol=1e-6)
    np.testing.assert_allclose(ours.pos.numpy(), reference["pos"], atol=1e-5)
    for part, value in reference["share"].items():
        assert ours.share[part] == pytest.approx(value, abs=1e-6), part
    for part, value in reference["norm"].items():
        assert ours.norm[part] == pytest.approx(value, abs=1e-3 if value < 1e-5 else 1e-5), part
    assert ours.windows == len(lengths)
    assert ours.tokens == sum(lengths)
    assert ours.counts == tuple(sum(n > t for n in lengths) for t in range(max(lengths)))


@pytest.mark.parametrize(
    ("lengths", "why"),
    [
        ([4], "there is one window, which cannot tell position from residual"),
        ([1, 1, 1], "there is one position, which cannot tell context from residual"),
        ([5, 1, 1], "windows and positions are as many as tokens, and explain them all"),
    ],
)
def test_where_nothing_is_left_over_no_part_has_a_number(lengths, why):
    ours = decompose(draw(lengths))
    assert ours.undefined == why
    assert all(math.isnan(ours.share[part]) and math.isnan(ours.norm[part]) for part in ("pos", "ctx", "resid"))
    assert not ours.pos.any()
    assert ours.norm["mu"] == pytest.approx(dense(draw(lengths))["norm"]["mu"], rel=1e-5)


@pytest.mark.parametrize(
    ("documents", "halves", "cluster", "why"),
    [
        ([5, 5, 5, 5], [0, 1, 0, 1], "window", "all windows are of one document"),
        ([5, 5, 5, 5], [0, 0, 0, 0], "document", "all windows are of one document"),
        (
            [5, 5, 6, 6],
            [0, 1, 0, 1],
            "window",
            "the documents are too few for two halves: at least four different ones are needed",
        ),
        ([5, 6, 7, 8], [1, 1, 1, 1], "document", "a half of the documents is empty"),
        ([5, 6, 7, 8], [0, 1, 0, 1], "document", ""),
    ],
)
def test_halves_are_of_documents_or_there_are_none(documents, halves, cluster, why):
    windows = draw([6] * 4)
    fold = Decomposition(SITE, torch.zeros(5), 6, cluster)
    batch = replace(batch_of([6] * 4), document=torch.tensor(documents), half=torch.tensor(halves, dtype=torch.uint8))
    states = [fold.init(), fold.init()]
    fold.update(states[0], {SITE: pad(windows)}, batch)
    found = fold.result(fold.merge(states[1], states[0]))
    assert found.unhalved == why
    assert (found.halves is None) == math.isnan(found.agreed) == bool(why)
    agreed = variance_of(found).agreed
    assert agreed.undefined == why
    assert math.isnan(agreed.value) == bool(why)


def test_shares_are_clipped_to_what_a_share_can_be():
    generator = torch.Generator().manual_seed(0)
    same = 30 * torch.randn(1, 7, 5, generator=generator)
    windows = list(same.repeat(12, 1, 1) + 1e-7 * torch.randn(12, 7, 5, generator=generator))
    for offset in (0.0, 1e3):
        share = decompose([window + offset for window in windows]).share
        assert all(0 <= value <= 1 for value in share.values())
        assert share["pos"] == pytest.approx(1)


def test_balanced_windows_give_the_plain_identities():
    windows = draw([6] * 9)
    h = torch.stack(windows).double()
    mu = h.mean((0, 1))
    pos, ctx = h.mean(0) - mu, h.mean(1) - mu
    total = (h - mu).square().sum()
    ours = decompose(windows)
    torch.testing.assert_close(ours.pos, pos, atol=1e-6, rtol=0)
    assert ours.share["pos"] == pytest.approx(float(9 * pos.square().sum() / total), rel=1e-6)
    assert ours.share["ctx"] == pytest.approx(float(6 * ctx.square().sum() / total), rel=1e-6)
    assert sum(ours.share.values()) == pytest.approx(1)
    assert float(ours.pos.sum(0).abs().max()) < 1e-9


def test_planted_shares_are_found():
    generator = torch.Generator().manual_seed(1)
    windows, places, width = 400, 20, 16
    parts = {
        "pos": 2.0 * torch.randn(1, places, width, generator=generator),
        "ctx": 1.0 * torch.randn(windows, 1, width, generator=generator),
        "resid": 0.5 * torch.randn(windows, places, width, generator=generator),
    }
    ours = decompose(list(7 + parts["pos"] + parts["ctx"] + parts["resid"]))
    assert ours.norm["mu"] == pytest.approx(7 * width**0.5, rel=0.05)
    for part, size in {"pos": 4.0, "ctx": 1.0, "resid": 0.25}.items():
        assert ours.share[part] == pytest.approx(size / 5.25, abs=0.05), part
        assert ours.norm[part] == pytest.approx((size * width) ** 0.5, rel=0.1), part
    assert ours.share["pos"] > 100 * ours.control["pos"]


@pytest.mark.parametrize("lengths", [[12] * 40, [12] * 20 + [5] * 10 + [9] * 6 + [2, 1, 7, 11]])
@pytest.mark.parametrize("order", ["permutation", "circular shift"])
def test_position_control_is_the_mean_over_reordered_windows(lengths, order):
    """Autocorrelated tokens with no position effect: control = mean of draws, and the share is at its control."""
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(n + 3, 8, generator=generator) for n in lengths]
    windows = [
        (w[3:] + w[2:-1] + w[1:-2] + w[:-3])[:n] + torch.randn(1, 8, generator=generator)
        for w, n in zip(noise, lengths, strict=True)
    ]
    ours = decompose(windows)

    def reordered(window):
        if order == "permutation":
            return window[torch.randperm(len(window), generator=generator)]
        return window.roll(int(torch.randint(len(window), (1,), generator=generator)), 0)

    draws = torch.tensor([decompose([reordered(w) for w in windows]).share["pos"] for _ in range(200)])
    error = float(draws.std()) / 200**0.5
    assert ours.control["pos"] == pytest.approx(float(draws.mean()), abs=4 * error)
    assert abs(ours.share["pos"] - ours.control["pos"]) < 4 * float(draws.std())
    if len(set(lengths)) == 1:
        assert ours.control["pos"] == pytest.approx((ours.share["pos"] + ours.share["resid"]) / len(lengths), rel=1e-6)


def test_context_and_residual_controls_are_the_mean_over_shuffled_tokens():
    generator = torch.Generator().manual_seed(3)
    lengths = [10] * 12 + [4] * 8 + [1, 2]
    windows = draw(lengths)
    tokens = torch.cat(windows)
    ours = decompose(windows)
    draws = [decompose(list(tokens[torch.randperm(len(tokens), generator=generator)].split(lengths))).share for _ in range(200)]
    for part in ("ctx", "resid"):
        values = torch.tensor([draw[part] for draw in draws])
        assert ours.control[part] == pytest.approx(float(values.mean()), abs=4 * float(values.std()) / 200**0.5), part


def test_the_origin_does_not_matter_and_massive_dimensions_cost_nothing():
    windows = draw([8, 8, 8, 5])
    massive = [w.clone() for w in windows]
    for w in massive:
        w[:, 2] += 4096.0  # a power of two: the data themselves keep all but 12 bits
    plain = decompose(massive, origin=torch.tensor([0, 0, 4096.0, 0, 0]))
    reference = dense(massive)
    for part, value in reference["share"].items():
        assert plain.share[part] == pytest.approx(value, abs=1e-6), part
    far = decompose(windows, origin=torch.full((5,), -2.0))
    near = decompose(windows)
    assert far.share == pytest.approx(near.share, abs=1e-5)
    torch.testing.assert_close(far.mu, near.mu, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=8), data=st.data())
def test_any_split_merged_is_one_pass(lengths, data):
    windows = draw(lengths)
    cut = data.draw(st.integers(0, len(lengths)))
    fold = Decomposition(SITE, torch.full((5,), 3.0), 9)
    states = []
    for first, part in ((0, windows[:cut]), (cut, windows[cut:]), (0, windows)):
        state = fold.init()
        if part:
            fold.update(state, {SITE: pad(part)}, batch_of([len(w) for w in part], first))
        states.append(state)
    merged = fold.merge(states[0], states[1])
    for name, tensor in states[2].items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-12, atol=1e-9)


def test_scattered_roles_and_half_precision():
    windows = draw([6, 6, 6])
    batch = batch_of([6, 6, 6])
    batch.roles[1, 3] = 1
    fold = Decomposition(SITE, torch.full((5,), 3.0), 9)
    state = fold.init()
    fold.update(state, {SITE: pad(windows).bfloat16()}, batch)
    left = windows[1].clone()[[0, 1, 3, 4, 5]]
    reference = dense([w.bfloat16() for w in (windows[0], left, windows[2])])
    ours = fold.result(state)
    for part, value in reference["share"].items():
        assert ours.share[part] == pytest.approx(value, abs=1e-6), part


def test_update_leaves_its_input_alone():
    windows = draw([4, 3])
    x = pad(windows)
    before = x.clone()
    fold = Decomposition(SITE, torch.zeros(5), 4)
    fold.update(fold.init(), {SITE: x}, batch_of([4, 3]))
    assert torch.equal(x, before)


def test_nothing_counted_and_bad_numbers_are_refused():
    fold = Decomposition(SITE, torch.zeros(5), 4)
    with pytest.raises(Refusal, match=r"geometry of resid_post\.0: no token was counted; give it text"):
        fold.result(fold.init())
    windows = draw([4, 4])
    windows[1][2, 3] = float("nan")
    with pytest.raises(Refusal, match="contain NaN or infinite numbers"):
        decompose(windows)


def test_constant_states_have_no_shares():
    ours = decompose([torch.full((4, 3), 2.0)] * 3, origin=torch.full((3,), 2.0))
    assert all(math.isnan(share) for share in ours.share.values())
    assert ours.undefined == "hidden states do not vary"
    assert ours.norm["mu"] == pytest.approx(12**0.5)


def test_centre_is_the_mean_of_counted_tokens_and_merges():
    windows = draw([4, 2, 5])
    fold = Centre(SITE, 5)
    whole, left, right = fold.init(), fold.init(), fold.init()
    fold.update(whole, {SITE: pad(windows)}, batch_of([4, 2, 5]))
    fold.update(left, {SITE: pad(windows[:1])}, batch_of([4]))
    fold.update(right, {SITE: pad(windows[1:])}, batch_of([2, 5]))
    torch.testing.assert_close(fold.result(whole), torch.cat(windows).mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(fold.result(fold.merge(left, right)), fold.result(whole), atol=1e-7, rtol=0)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_parts():
    windows = draw([8, 8, 8, 5])
    ours = decompose(windows)
    fold = Decomposition(SITE, torch.full((5,), 3.0), 9)
    state = fold.init()
    fold.update(state, {SITE: pad(windows).cuda()}, batch_of([8, 8, 8, 5]))
    theirs = fold.result(state)
    assert theirs.share == pytest.approx(ours.share, abs=1e-5)
    torch.testing.assert_close(theirs.pos, ours.pos, atol=1e-4, rtol=0)


@pytest.mark.parametrize("away", [0.0, 100.0, 1000.0])
def test_a_pilot_of_other_texts_costs_no_digits(away):
    """Standard deviations of 1 and an origin 1,000 of them away: sums of squares from there alone would keep two digits."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(*shape, 16, generator=generator) for shape in ((1, 40), (60, 1), (60, 40))]
    windows = 5 + parts[0] + parts[1] + parts[2]
    h = windows.double()
    mu = h.mean((0, 1))
    pos, total = h.mean(0) - mu, (h - mu).square().sum()
    share = {
        "pos": float(60 * pos.square().sum() / total),
        "ctx": float(40 * (h.mean(1) - mu).square().sum() / total),
    }
    ours = decompose(list(windows), torch.full((16,), 5 + away), list(map(list, windows.split(6))))
    assert ours.share["pos"] == pytest.approx(share["pos"], rel=5e-8)
    assert ours.share["ctx"] == pytest.approx(share["ctx"], rel=5e-8)
    assert ours.share["resid"] == pytest.approx(1 - sum(share.values()), rel=5e-8)
    assert ours.spread == pytest.approx(float((total / 2400).sqrt()), rel=5e-8)
    torch.testing.assert_close(ours.pos, pos, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours.lengths, h.square().sum(2).mean(0).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.highest, h.amax((0, 1)), rtol=1e-6, atol=0)
    even, odd = (h[:, :32].reshape(60, 2, 16, 16)[:, side].mean(1) for side in range(2))
    covariance = ((even - even.mean(0)) * (odd - odd.mean(0))).sum() / 59
    assert ours.agreed_ctx == pytest.approx(float(covariance / (total / 2400)), rel=1e-6)
