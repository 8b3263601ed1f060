"""Position filtered inside running models: models whose position is planted slow or fast, loops by hand, and what is not measured."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.geometry import filtering
from microtome.geometry.anova import Fit
from microtome.geometry.decomposition import Parts
from microtome.geometry.filtering import CONTROL, FilterEffect, PositionFilter, filter_stats, filtered, spaced
from microtome.geometry.findings import filter_findings
from microtome.geometry.measured import Measured
from microtome.geometry.rows import stat_table
from microtome.geometry.smoothness import cosines
from microtome.model import Model, capture, forward, wrap
from tests.unit.model.tiny import built, opened

LENGTH, WIDTH = 24, 16


def text(windows: int = 6, length: int = LENGTH, *, first: bool = True) -> Batch:
    """Random tokens; the first of a window is its sink, and the last window is shorter and padded."""
    ids = torch.randint(5, 50, (windows, length), generator=torch.Generator().manual_seed(2))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    if first:
        roles[:, 0] = int(Role.FIRST)
    roles[-1, length - 4 :] = int(Role.PAD)
    index = torch.arange(windows)
    return Batch(ids, roles, index, index, 0 * index, (index % 2).to(torch.uint8), 0 * index, {})


def parts_of(site: Site, pos: Tensor) -> Parts:
    """Parts of which only the site and the position matter here."""
    none = {"pos": math.nan, "ctx": math.nan, "resid": math.nan}
    pos = pos.double()
    counts = (1,) * len(pos)
    lengths = torch.ones(len(pos), dtype=torch.float64)
    wide = torch.zeros(pos.shape[1])
    return Parts(
        site,
        wide,
        pos,
        counts,
        6,
        6 * len(pos),
        none,
        none,
        {"mu": 0.0} | none,
        1.0,
        lengths=lengths,
        lowest=wide,
        highest=wide,
    )


def planted(modes: slice, *, size: float = 4.0) -> tuple[Model, Parts]:
    """A GPT-2 whose learned positions are these cosines over the counted places of a window (the first token has none)."""
    module = built("gpt2")
    phi = cosines(LENGTH - 1, LENGTH - 1).float()[:, modes]
    weights = torch.randn(phi.shape[1], WIDTH, generator=torch.Generator().manual_seed(7))
    pos = size * phi @ weights
    with torch.no_grad():
        module.transformer.wpe.weight.zero_()
        module.transformer.wpe.weight[1:LENGTH] = pos
    return wrap(module, name="planted"), parts_of(Site("resid_pre", 0), pos)


def filter_effects(model: Model, parts: list[Parts], batches: list[Batch], **options: Any) -> list[FilterEffect]:
    fold = PositionFilter(model, tuple(parts), **options)
    state = fold.init()
    for batch in batches:
        fold.update(state, {}, batch)
    return fold.result(state)


def by_keep(effects: list[FilterEffect]) -> dict[int, FilterEffect]:
    return {each.keep: each for each in effects}


def test_a_filter_is_a_projection_on_the_lowest_cosines() -> None:
    pos = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    place = torch.arange(9).double() + 0.5
    basis = torch.stack([torch.cos(math.pi * k * place / 9) for k in range(9)], 1)
    for keep in range(9):
        solution = torch.linalg.lstsq(basis[:, :keep], pos).solution if keep else torch.zeros(0, 4).double()
        torch.testing.assert_close(filtered(pos, keep), basis[:, :keep] @ solution)
        torch.testing.assert_close(filtered(filtered(pos, keep), keep), filtered(pos, keep))
    torch.testing.assert_close(filtered(pos, 1), pos.mean(0).expand(9, 4))
    assert filtered(pos, 9) is pos
    assert filtered(pos, 100) is pos
    assert not filtered(pos, 0).any()
    with pytest.raises(Refusal, match="at least 0"):
        filtered(pos, -1)


def test_slow_position_survives_when_its_frequencies_are_kept_and_not_otherwise() -> None:
    model, parts = planted(slice(1, 4))
    found = by_keep(filter_effects(model, [parts], [text()], keep=(0, 2, 4)))
    gone, some, all_there = (found[keep] for keep in (0, 2, 4))
    assert gone.change["kl"].value > 0.01
    assert gone.change["kl"].lo > 0
    assert abs(all_there.change["loss_change"].value) < 1e-5
    assert abs(all_there.change["kl"].value) < 1e-5
    assert 1e-4 < some.change["kl"].value < gone.change["kl"].value
    assert (gone.removed, all_there.removed) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert 0 < some.removed < 1
    # without positions at all the model is the one that has none
    bare, batch = built("gpt2"), text()
    with torch.no_grad():
        bare.transformer.wpe.weight.zero_()
        loss = [
            torch.nn.functional.cross_entropy(
                bare(batch.ids, attention_mask=(batch.roles != Role.PAD).long()).logits[row, 1 : end - 1], batch.ids[row, 2:end]
            ).item()
            for row, end in enumerate([LENGTH] * 5 + [LENGTH - 4])
        ]
    assert gone.clean + gone.change["loss_change"].value == pytest.approx(sum(loss) / 6, abs=1e-5)


def test_keeping_low_frequencies_of_a_fast_position_is_the_same_as_removing_it() -> None:
    model, parts = planted(slice(12, 15))
    found = by_keep(filter_effects(model, [parts], [text()], keep=(0, 4, 12)))
    for keep in (4, 12):
        for name in ("loss_change", "kl"):
            assert found[keep].change[name].value == pytest.approx(found[0].change[name].value, abs=1e-6)
        assert found[keep].removed == pytest.approx(1)
    assert found[0].change["kl"].value > 0.01


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_neox", "gemma2", "opt"])
def test_effects_are_means_over_windows_of_an_edit_by_hand(name: str) -> None:
    model, batch, site = opened(name), text(3), Site("resid_post", 0)
    pos = torch.randn(LENGTH - 6, WIDTH, generator=torch.Generator().manual_seed(1))  # later tokens have no position
    (found,) = filter_effects(model, [parts_of(site, pos)], [batch], keep=(5,))
    losses, divergences, base = [], [], []
    change = (filtered(pos, 5) - pos).to(torch.float32)
    for row, end in enumerate([LENGTH, LENGTH, LENGTH - 4]):
        one = torch.tensor([row])
        alone = Batch(batch.ids[one, :end], batch.roles[one, :end], one, one, one, batch.half[one], one, {})
        clean = forward(model, alone)["logits"][0].double().log_softmax(-1)

        def shifted(module: torch.nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            stream = (output if isinstance(output, Tensor) else output[0]).clone()
            stream[0, 1 : 1 + len(pos)] += change
            return stream if isinstance(output, Tensor) else (stream, *output[1:])

        handle = model.block(0).register_forward_hook(shifted)
        after = forward(model, alone)["logits"][0].double().log_softmax(-1)
        handle.remove()
        measured = slice(1, min(1 + len(pos), end - 1))
        targets = alone.ids[0, 2 : measured.stop + 1, None]
        base.append(-clean[measured].gather(1, targets).mean())
        losses.append(-after[measured].gather(1, targets).mean() - base[-1])
        divergences.append((clean.exp() * (clean - after)).sum(-1)[measured].mean())
    assert found.change["loss_change"].value == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    assert found.change["kl"].value == pytest.approx(float(torch.stack(divergences).mean()), abs=1e-5)
    assert found.clean == pytest.approx(float(torch.stack(base).mean()), abs=1e-5)
    error = float(torch.stack(losses).std()) / 3**0.5
    assert found.change["loss_change"].hi - found.change["loss_change"].value == pytest.approx(
        4.3027 * error, rel=1e-2, abs=1e-6
    )


@pytest.mark.parametrize("name", ["bert", "albert", "llama-headless", "llama-classifier"])
def test_models_without_a_causal_head_are_measured_by_their_final_states(name: str) -> None:
    model, batch = opened(name), text(3)
    pos = torch.randn(LENGTH - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    (found,) = filter_effects(model, [parts_of(Site("resid_pre", 1), pos)], [batch], keep=(0,))
    assert set(found.change) == {"state_change"}
    assert 0 < found.change["state_change"].value < 2
    assert math.isnan(found.clean)


def test_images_are_measured_by_their_final_states() -> None:
    model = opened("vit")
    tokens = model.shape.context or 0
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    roles = torch.full((4, tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.SPECIAL)
    index = torch.arange(4)
    batch = Batch(0 * roles.long(), roles, index, index, index, roles[:, 0] * 0, index, {"pixel_values": images})
    pos = torch.randn(tokens - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    (found,) = filter_effects(model, [parts_of(Site("resid_post", 0), pos)], [batch], keep=(0,))
    clean = capture(model, batch, [Site("final_norm")])[Site("final_norm")]
    assert found.change["state_change"].value > 1e-4
    assert found.windows == len(clean) == 4


def test_the_control_is_as_long_token_by_token_and_as_smooth() -> None:
    pos = torch.randn(LENGTH, 40, generator=torch.Generator().manual_seed(3))
    own, *turned = filtering._variants(pos, 4, 3, seed=5)
    torch.testing.assert_close(own, filtered(pos, 4) - pos, rtol=1e-5, atol=1e-5)
    for each in turned:
        torch.testing.assert_close(each @ each.T, own @ own.T, rtol=1e-4, atol=1e-4)
        assert abs(float(torch.cosine_similarity(each.flatten(), own.flatten(), dim=0))) < 0.3
    assert not torch.allclose(turned[0], turned[1], atol=0.1)
    assert torch.equal(filtering._variants(pos, 4, 3, seed=5)[1:], torch.stack(turned))


def test_a_change_without_meaning_to_the_model_is_at_its_control() -> None:
    """Position that is itself a random direction does what other random directions do."""
    model = opened("gpt2")
    pos = 0.5 * torch.randn(LENGTH - 1, WIDTH, generator=torch.Generator().manual_seed(4))
    (found,) = filter_effects(model, [parts_of(Site("resid_post", 1), pos)], [text(12)], keep=(0,), draws=12)
    change = found.change["kl"]
    assert change.value == pytest.approx(change.control, rel=0.4)


def test_a_window_has_the_position_part_of_the_other_half() -> None:
    model, parts = planted(slice(1, 4))
    zero = torch.zeros_like(parts.pos)
    none = {"pos": 0.0, "ctx": 0.0, "resid": 0.0}

    def half(pos: Tensor) -> Fit:
        return Fit(torch.zeros(WIDTH), pos, torch.ones(len(pos), dtype=torch.int64), 3, 3, 1.0, none, none, none)

    batch = text(4)
    split = replace(parts, halves=(half(parts.pos), half(zero)))
    discover, confirm = (replace(batch, half=torch.full((4,), side, dtype=torch.uint8)) for side in (0, 1))
    (silent,) = filter_effects(model, [split], [discover], keep=(0,))
    (loud,) = filter_effects(model, [split], [confirm], keep=(0,))
    assert abs(silent.change["kl"].value) < 1e-6
    assert loud.change["kl"].value > 0.01


def test_what_changes_nothing_or_has_no_token_is_undefined_and_says_why() -> None:
    model, parts = planted(slice(1, 4))
    all_kept, gone = filter_effects(model, [parts], [text()], keep=(LENGTH - 1, 0))
    assert all_kept.removed == 0
    assert all_kept.change["kl"].undefined == f"position has only {LENGTH - 1} frequencies, and all are kept"
    assert not gone.change["kl"].undefined
    still = replace(parts, pos=torch.zeros_like(parts.pos))
    (same,) = filter_effects(model, [still], [text()], keep=(0,))
    assert same.change["loss_change"].undefined == "all positions have the same mean"
    (named,) = filter_effects(model, [replace(parts, undefined="hidden states do not vary")], [text()], keep=(0,))
    assert named.change["loss_change"].undefined == "hidden states do not vary"
    nothing = replace(text(), roles=torch.full((6, LENGTH), int(Role.SPECIAL), dtype=torch.uint8))
    (empty,) = filter_effects(model, [parts], [nothing], keep=(0,))
    assert (empty.windows, empty.change["kl"].undefined) == (0, "no window has a token with a position")
    (alone,) = filter_effects(model, [parts], [text(1)], keep=(0,))
    assert alone.change["kl"].value > 0
    assert math.isnan(alone.change["kl"].lo)
    assert math.isnan(alone.change["kl"].p)
    with pytest.raises(Refusal, match="nothing to compare with"):
        filter_effects(model, [parts], [text()], draws=0)


def test_sites_are_evenly_spaced_and_rows_have_their_control() -> None:
    model = opened("gpt2")
    pos = torch.randn(LENGTH - 1, WIDTH, generator=torch.Generator().manual_seed(1))
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(3))]
    effects = filter_effects(model, [parts_of(site, pos) for site in spaced(sites, 2)], [text(3)], keep=(0, 30), draws=1)
    assert [(str(each.site), each.keep) for each in effects] == [
        ("resid_pre.0", 0),
        ("resid_pre.0", 30),
        ("resid_post.2", 0),
        ("resid_post.2", 30),
    ]
    rows = stat_table(filter_stats(effects), "main").to_pylist()
    names = {row["stat"] for row in rows}
    assert names == {"loss_change_keep_0", "kl_keep_0", "loss_change_keep_30", "kl_keep_30"}
    assert {row["subject"] for row in rows} == {"pos"}
    measured = [row for row in rows if row["stat"] == "kl_keep_0"]
    assert {row["control_kind"] for row in measured} == {CONTROL}
    assert all(row["lo"] < row["value"] < row["hi"] and row["q"] is not None for row in measured)
    assert all(row["undefined"] and row["value"] is None for row in rows if row["stat"] == "kl_keep_30")


def effect(keep: int, found: Measured, *, site: int = 3, name: str = "loss_change") -> FilterEffect:
    return FilterEffect(Site("resid_post", site), keep, 255, 0.5, {name: found}, 3.0, 8, 2)


def test_the_slow_part_is_said_to_be_used_where_it_is() -> None:
    gone = Measured(0.21, 0.15, 0.27, control=0.02, p=1e-5)
    effects = [
        effect(0, Measured(0.05, 0.04, 0.06, control=0.02, p=1e-4), site=1),
        effect(0, gone),
        effect(5, Measured(0.08, 0.06, 0.1, control=0.02, p=0.01)),
        effect(20, Measured(0.012, 0.005, 0.019, control=0.01, p=0.4)),
    ]
    (row,) = filter_findings(effects)
    assert row["sentence"] == (
        "without the position part at resid_post.3 the loss of the next token changes by +0.21 nats (a random change as large: 0.02)"
        "; its 20 lowest of 255 frequencies repair that (left: 0.012, a random change as large: 0.01): the slow part is what is used"
    )
    assert (row["kind"], row["subject"], row["value"], row["control"]) == ("use of position", "resid_post.3", 0.21, 0.02)
    assert row["q"] == pytest.approx(2e-5)
    (row,) = filter_findings(effects[:3])
    assert row["sentence"].endswith("; with its 5 lowest of 255 frequencies kept, 0.08 is left")
    turned = effect(0, gone, name="state_change")
    assert filter_findings([turned])[0]["sentence"].startswith(
        "without the position part at resid_post.3 final states turn by 0.21 (1 - cosine) (a random change as large"
    )


@pytest.mark.parametrize(
    "found",
    [
        Measured(0.21, 0.15, 0.27, control=0.4, p=1e-5),
        Measured(0.21, 0.15, 0.27, control=0.2, p=0.3),
        Measured(-0.02, -0.03, -0.01, control=-0.05, p=1e-5),
        Measured(math.nan, undefined="hidden states do not vary"),
    ],
)
def test_nothing_is_said_of_what_is_no_more_than_chance(found: Measured) -> None:
    assert filter_findings([effect(0, found)]) == []
    assert filter_findings([]) == []
