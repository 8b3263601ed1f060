"""The laws of `core.folds.Fold`, on every fold class of microtome."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import ExpertRows, Role
from microtome.store import Damaged, Folder, Shelf, fingerprint
from tests.contract.fold_cases import CASES, FoldCase, Stream, relative
from tests.tree import modules

State = dict[str, Tensor]
EXACT = 1e-9

every_fold = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_same(case: FoldCase, one: State, other: State, rounding: float = EXACT) -> None:
    """Equal when settled, but for rounding in sums, which are float64."""
    fold = Stream(case).fold
    found, expected = (fold.merge(copy.deepcopy(state), fold.init()) for state in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        if tensor.dtype == torch.float64:
            assert relative(tensor, expected[name]) <= rounding, name
        else:
            assert torch.equal(tensor, expected[name]), name


def cut(windows: list[int], ends: list[int]) -> list[list[int]]:
    places = sorted({0, len(windows), *(end % len(windows) for end in ends)})
    return [windows[a:b] for a, b in zip(places, places[1:], strict=False)]


@every_fold
@settings(max_examples=12, deadline=None)
@given(ends=st.lists(st.integers(1, 29), min_size=1, max_size=6), split=st.integers(0, 6))
def test_merged_parts_are_one_pass_over_the_whole(case: FoldCase, ends: list[int], split: int) -> None:
    stream = Stream(case)
    batches = cut(list(range(case.windows)), ends)
    whole = stream.state(batches)
    parts = stream.fold.merge(stream.state(batches[:split]), stream.state(batches[split:]))
    assert_same(case, parts, whole)


@every_fold
def test_merging_is_associative(case: FoldCase) -> None:
    stream = Stream(case)
    a, b, c = (stream.state([list(range(begin, begin + 8))]) for begin in (0, 8, 16))
    left = stream.fold.merge(stream.fold.merge(copy.deepcopy(a), copy.deepcopy(b)), copy.deepcopy(c))
    right = stream.fold.merge(copy.deepcopy(a), stream.fold.merge(copy.deepcopy(b), copy.deepcopy(c)))
    assert_same(case, left, right)


@every_fold
def test_nothing_seen_is_neutral(case: FoldCase) -> None:
    stream = Stream(case)
    state = stream.state([list(range(9))])
    assert_same(case, stream.fold.merge(copy.deepcopy(state), stream.fold.init()), state)
    assert_same(case, stream.fold.merge(stream.fold.init(), copy.deepcopy(state)), state)


@every_fold
def test_padding_and_batch_size_change_nothing(case: FoldCase) -> None:
    stream = Stream(case)
    windows = list(range(min(12, case.windows)))
    alone = stream.state([[window] for window in windows])
    assert_same(case, stream.state([windows]), alone, case.rounding)
    padded = stream.fold.init()
    for window in windows:
        stream.feed(padded, [window], longest=20)
    assert_same(case, padded, alone, case.rounding)


@every_fold
def test_update_neither_changes_nor_keeps_what_it_is_given(case: FoldCase) -> None:
    stream = Stream(case)
    batch = stream.batch(range(9))
    values = stream.values(range(9), batch.ids.shape[1])
    tensors = [value.values if isinstance(value, ExpertRows) else value for value in values.values()] + [batch.ids, batch.roles]
    before = copy.deepcopy(tensors)
    state = stream.fold.init()
    stream.fold.update(state, values, batch)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    kept = copy.deepcopy(state)
    for tensor in tensors:
        tensor.fill_(1)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@every_fold
def test_uncounted_tokens_leave_the_result_alone(case: FoldCase) -> None:
    stream = Stream(case)
    state = stream.state([list(range(9))])
    expected = copy.deepcopy(state)
    batch = stream.batch(range(9, 14))
    batch.roles[batch.roles == int(Role.CONTENT)] = int(Role.SPECIAL)
    if batch.targets is not None:
        batch.targets.fill_(-100)
    stream.fold.update(state, stream.values(range(9, 14), batch.ids.shape[1]), batch)
    assert_same(case, state, expected)


@every_fold
def test_states_survive_the_disk(case: FoldCase, tmp_path: Path) -> None:
    stream = Stream(case)
    state = stream.state([list(range(9))])
    shelf = Shelf(Folder(tmp_path))
    shelf.write("state", {"a.fold": state})
    read = shelf.read("state")
    assert not isinstance(read, Damaged)
    again = read["a.fold"]
    assert_same(case, again, state, 0.0)
    stream.feed(state, range(9, 12))
    stream.feed(again, range(9, 12))
    assert_same(case, again, state, 0.0)


@every_fold
def test_states_are_exact_kinds_of_numbers(case: FoldCase) -> None:
    state = Stream(case).state([list(range(9))])
    assert not {tensor.dtype for tensor in state.values()} & {torch.float16, torch.complex64}
    assert all(tensor.device.type == "cpu" for tensor in state.values())


@every_fold
def test_results_come_from_the_state_alone(case: FoldCase) -> None:
    stream = Stream(case)
    state = stream.state([list(range(case.windows // 2)), list(range(case.windows // 2, case.windows))])
    before = copy.deepcopy(state)
    once, again = stream.fold.result(state), Stream(case).fold.result(copy.deepcopy(state))
    assert type(once) is type(again)
    assert_same(case, state, before, 0.0)


@every_fold
def test_parameters_are_values(case: FoldCase) -> None:
    assert fingerprint(case.make()) == fingerprint(case.make())
    fold = case.make()
    assert type(fold).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(fold.version, int)


def test_kinds_are_one_to_a_class() -> None:
    kinds = {type(case.make()): case.make().kind for case in CASES}
    assert len(set(kinds.values())) == len(kinds)


def fold_classes() -> Iterator[str]:
    """Names, with their modules, of the package's classes that have what a fold has; the protocol itself aside."""
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and module != "core/folds.py":
                fields = {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                if {"kind", "version"} <= fields and {"init", "update", "merge", "result"} <= methods:
                    yield f"microtome.{module.removesuffix('.py').replace('/', '.')}.{node.name}"


def test_every_fold_class_has_a_case() -> None:
    tested = {f"{type(fold).__module__}.{type(fold).__name__}" for fold in (case.make() for case in CASES)}
    found = set(fold_classes())
    assert found - tested == set(), "add a FoldCase to tests/contract/fold_cases.py"
    assert tested - found == set(), "these are no folds"
