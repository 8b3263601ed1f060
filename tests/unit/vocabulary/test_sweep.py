"""What one sweep of the weights gives is what each method gives by itself."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from microtome.store.tables import write_table
from microtome.vocabulary.coherence import unit_lists
from microtome.vocabulary.overlap import overlaps
from microtome.vocabulary.parameters import GROUPS, block_of, groups_of, layers_of
from microtome.vocabulary.projection import project
from microtome.vocabulary.subject import subject_of
from microtome.vocabulary.sweep import Lengths, parameter_rows, sweep
from microtome.vocabulary.values import read_values
from tests.unit.model.tiny import opened

LENGTHS = Lengths(unit=4, vector=6, listed=5, partner=9)


def same_parts(one: object, other: object) -> bool:
    """Whether all fields are equal, NaN equal to itself."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else (a == b or (a != a and b != b)) for a, b in pairs)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "bert", "gemma2"])
def test_a_sweep_gives_what_each_method_gives_by_itself(name: str) -> None:
    model = opened(name)
    subject = subject_of(model)
    found = sweep(subject, LENGTHS, 300)
    values = list(read_values(subject.weights, subject.shape, subject.write, 4, 300, seed=0))
    assert [(each.layer, each.expert) for each in found.values] == [(each.layer, each.expert) for each in values]
    for mine, alone in zip(found.values, values, strict=True):
        assert same_parts(mine.top, alone.top)
        assert same_parts(mine.random, alone.random)
    groups = [group for group in groups_of(model.weights) if group.name != "W_out"]
    projected = {(each.block.group.name, each.block.layer): each for each in project(subject, groups, 6)}
    assert len(found.vectors) == len(found.standing) == len(projected)
    for (addresses, top), standing in zip(found.vectors, found.standing, strict=True):
        alone = projected[standing.group, standing.layer]
        assert addresses == [str(address) for address in alone.block.addresses]
        assert torch.equal(top.tokens.long(), alone.top.tokens)
        assert torch.equal(top.scores, alone.top.scores)
        assert torch.equal(top.control, alone.top.control)
        assert torch.equal(standing.null, alone.random.strength)
    partners = list(overlaps(subject, k=9))
    assert len(found.overlaps) == len(partners) > 0
    assert all(same_parts(mine, alone) for mine, alone in zip(found.overlaps, partners, strict=True))
    lists = unit_lists(project(subject, [GROUPS["W_out"]], 5), subject)
    assert all(same_parts(mine, alone) for mine, alone in zip(found.lists, lists, strict=True))


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_pieces_are_a_table_in_the_order_of_its_key(name: str, tmp_path: Path) -> None:
    model = opened(name)
    found = sweep(subject_of(model), LENGTHS, 300)
    written = pq.read_table(write_table(tmp_path, "tokens", "vocabulary", parameter_rows(found.vectors)))
    groups = [group for group in groups_of(model.weights) if group.name != "W_out"]
    vectors = sum(
        len(block_of(model.weights, group, layer).rows) for group in groups for layer in layers_of(model.weights, group)
    )
    assert written.num_rows == vectors * 2 * 6
