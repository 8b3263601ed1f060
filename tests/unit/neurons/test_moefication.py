"""Experts: planted blocks come back, kept groups are what the block would do with the others off, and reversing a unit changes nothing."""

import dataclasses

import pytest
import torch
from torch import Tensor

from microtome.core import CONTENT, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.intervene import Edit, Scale, edited
from microtome.intervene.tokens import OfRole
from microtome.model import capture
from microtome.neurons.kept import kept_losses
from microtome.neurons.moefication import at_random, by_centroid, by_network, by_truth, groups_kept, judged_groups
from microtome.neurons.rows import TokenRows, token_rows
from microtome.neurons.unit_groups import GROUPINGS, Block, Groups, block_of, grouped
from tests.toys import toy_decoder, toy_encoder
from tests.unit.model.tiny import opened

GROUPS, SIZE, WIDTH = 5, 8, 24


def planted(gated: bool, seed: int = 0) -> tuple[Block, Tensor]:
    """Units of a group read nearly the same direction (gated: the same two, the second with either sign), at any length; order is mixed."""
    generator = torch.Generator().manual_seed(seed + 100)  # not that of the random groups
    truth = torch.randperm(GROUPS * SIZE, generator=generator) % GROUPS
    parts = 2 if gated else 1
    directions = torch.linalg.qr(torch.randn(parts, WIDTH, WIDTH, generator=generator))[0][:, :GROUPS]
    reads = directions[:, truth] + 0.1 * torch.randn(parts, len(truth), WIDTH, generator=generator)
    reads = reads * (0.5 + torch.rand(parts, len(truth), 1, generator=generator))
    if gated:
        reads[1] *= 1 - 2 * (torch.rand(len(truth), 1, generator=generator) < 0.5).float()
    return Block(0, reads, torch.randn(len(truth), WIDTH, generator=generator)), truth


def tokens_of(block: Block, rows: int = 400, seed: int = 1) -> TokenRows:
    """Tokens near one of the directions that groups read, and the activations there: ReLU, or SiLU(gate) up."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randint(block.reads.shape[1], (rows,), generator=generator)
    x = 3 * torch.nn.functional.normalize(block.reads.sum(0)[unit], dim=1) + 0.2 * torch.randn(rows, WIDTH, generator=generator)
    first = x @ block.reads[0].T
    h = first.relu() if len(block.reads) == 1 else torch.nn.functional.silu(first) * (x @ block.reads[1].T)
    number = torch.arange(rows)
    return TokenRows(number, number, number, number, number % 2, {Site("mlp_in", 0): x, Site("mlp_act", 0): h})


def rows_of(tokens: TokenRows) -> tuple[Tensor, Tensor]:
    return tokens.values[Site("mlp_in", 0)], tokens.values[Site("mlp_act", 0)]


def same(one: Tensor, other: Tensor) -> bool:
    return len({(int(a), int(b)) for a, b in zip(one, other, strict=True)}) == len(one.unique()) == len(other.unique())


@pytest.mark.parametrize("gated", [False, True])
def test_planted_blocks_come_back_by_what_they_read(gated: bool) -> None:
    block, truth = planted(gated)
    for seed in range(3):
        assert same(grouped(block, "reads", SIZE, seed=seed).group, truth)


def test_planted_blocks_come_back_by_when_they_are_active() -> None:
    block, truth = planted(gated=False)
    generator = torch.Generator().manual_seed(2)
    on = torch.rand(600, GROUPS, generator=generator) < 0.3
    h = torch.rand(600, len(truth), generator=generator) * (
        on[:, truth] & (torch.rand(600, len(truth), generator=generator) < 0.8)
    )
    shuffled = dataclasses.replace(block, reads=torch.randn(block.reads.shape, generator=generator))
    found = grouped(shuffled, "co-activation", SIZE, h=h)
    assert same(found.group, truth)
    assert not same(grouped(shuffled, "reads", SIZE).group, truth)


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_are_of_one_size(by: str) -> None:
    generator = torch.Generator().manual_seed(3)
    block = Block(0, torch.randn(2, 60, 7, generator=generator), torch.randn(60, 7, generator=generator))
    h = torch.randn(50, 60, generator=generator)
    found = grouped(block, by, 12, h=h)  # pyright: ignore[reportArgumentType]
    assert found.count == 5
    assert found.group.bincount().tolist() == [12] * 5


@pytest.mark.parametrize("by", GROUPINGS)
def test_reversing_and_rescaling_units_changes_no_group_and_no_choice(by: str) -> None:
    block, _ = planted(gated=True, seed=4)
    block = dataclasses.replace(
        block, reads=block.reads + 0.5 * torch.randn(block.reads.shape, generator=torch.Generator().manual_seed(5))
    )
    tokens = tokens_of(block)
    x, h = rows_of(tokens)
    generator = torch.Generator().manual_seed(6)
    factor = (1 - 2 * (torch.rand(GROUPS * SIZE, generator=generator) < 0.5).float()) * 2.0 ** torch.randint(
        -2, 3, (GROUPS * SIZE,), generator=generator
    )
    reads = torch.stack([block.reads[0], block.reads[1] * factor[:, None]])
    turned, moved = Block(0, reads, block.values / factor[:, None]), h * factor
    one, other = (grouped(each, by, SIZE, h=rows) for each, rows in ((block, h), (turned, moved)))  # pyright: ignore[reportArgumentType]
    assert torch.equal(one.group, other.group)
    for choose in (by_truth, by_centroid):
        torch.testing.assert_close(choose(turned, other)(x, moved), choose(block, one)(x, h), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        by_network(turned, other, x, moved)(x, moved), by_network(block, one, x, h)(x, h), atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("gated", [False, True])
def test_choices_find_planted_experts_and_random_ones_do_not(gated: bool) -> None:
    block, _ = planted(gated)
    learnt, held = tokens_of(block), tokens_of(block, seed=7)
    right, wrong = grouped(block, "reads", SIZE), grouped(block, "random", SIZE)
    choosers = {
        "truth": by_truth(block, right),
        "centroid": by_centroid(block, right),
        "network": by_network(block, right, *rows_of(learnt)),
        "random": at_random(right),
    }
    found = judged_groups(block, right, choosers, held, (1, 3, GROUPS))
    error, recall = found.error.tolist(), found.recall.tolist()
    assert recall[0] == [1, 1, 1]
    assert [each[2] for each in error] == pytest.approx([0] * 4, abs=1e-6)
    assert [each[2] for each in recall] == [1] * 4
    for way in (1, 2):
        assert recall[way][0] > 0.9
        assert error[way][0] < error[0][0] + 0.2
    assert recall[3][0] == pytest.approx(1 / GROUPS, abs=0.07)
    assert error[3][0] > 0.8
    scattered = judged_groups(block, wrong, {"truth": by_truth(block, wrong)}, held, (1,))
    assert float(scattered.error[0, 0]) > float(found.error[0, 0]) + 0.3


def test_errors_and_recalls_by_hand() -> None:
    block = Block(0, torch.eye(4)[None], torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    groups = Groups(torch.tensor([0, 0, 1, 1]), "random", 0)
    h = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, -1], [-1, 0, 2, 0]])
    number = torch.arange(3)
    tokens = TokenRows(number, number, number, number, number, {Site("mlp_in", 0): h, Site("mlp_act", 0): h})
    assert by_truth(block, groups)(h, h).tolist() == [[4, 0], [0, 3], [3, 4]]
    first = judged_groups(block, groups, {"first": lambda x, h: torch.tensor([[1.0, 0]]).expand(len(x), 2)}, tokens, (1, 2))
    assert first.recall.tolist() == [[pytest.approx(1 / 3), 1]]
    assert first.error.tolist() == [[pytest.approx(((4 + 1 + 16) / (9 + 1 + 4 + 1 + 9 + 16)) ** 0.5), 0]]


def test_losses_are_those_of_masked_units() -> None:
    for model in (toy_decoder(), toy_encoder()):
        texts = ["the river holds the stone", "the garden finds a letter"]
        batch = prompt_batch(model.tokenizer, texts)
        site = Site("mlp_act", 1)
        block = block_of(model, 1)
        assert block.reads.shape == (2 if model.shape.gated else 1, 40, 24)
        groups = grouped(block, "reads", 8)
        found = groups_kept(model, [batch], block, groups, {"truth": by_truth(block, groups)}, (2, 5))
        h = capture(model, batch, [site])[site].detach()
        best = by_truth(block, groups)(h.flatten(0, 1), h.flatten(0, 1)).topk(2, dim=1).indices
        mask = (groups.group[None, :, None] == best[:, None]).any(2).float().unflatten(0, tuple(batch.ids.shape))
        expected = kept_losses(
            model, [batch], lambda _, mask=mask, site=site: [[Edit(site, Scale(mask), tokens=OfRole(CONTENT))]]
        )
        assert found.of("truth").tolist() == pytest.approx([float(expected.change[0]), 0], abs=1e-5)
        assert float(found.losses.kl[0]) > 1e-5
        rows = token_rows(model, [batch], [Site("mlp_in", 1), site])
        judged = judged_groups(block, groups, {"truth": by_truth(block, groups)}, rows, (2,))
        out = Site("mlp_out", 1)
        clean = capture(model, batch, [out])[out].detach()
        with edited(model, batch, [Edit(site, Scale(mask))]), torch.inference_mode():
            less = capture(model, batch, [out])[out]
        counted = batch.counted(CONTENT)
        whole = (rows.values[site] @ block.values).norm()
        assert float(judged.error[0, 0]) == pytest.approx(float((clean - less)[counted].norm() / whole), rel=1e-3)


def test_bad_input_is_refused() -> None:
    block, _ = planted(gated=False)
    with pytest.raises(Refusal, match="there are 40 units"):
        grouped(block, "reads", 7)
    with pytest.raises(Refusal, match="no activation is given"):
        grouped(block, "co-activation", SIZE)
    groups = grouped(block, "random", SIZE)
    with pytest.raises(Refusal, match="there are 5"):
        judged_groups(block, groups, {"truth": by_truth(block, groups)}, tokens_of(block), (6,))
    with pytest.raises(Refusal, match="in experts already"):
        block_of(opened("mixtral"), 0)
