"""The engine: any interruption, the same states; damage is found; other work is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from microtome.core import Refusal, State
from microtome.engine import Node, Parts, States, root, run


class _Killed(BaseException):
    """Stands in for SIGKILL at a chosen moment."""


@dataclass
class _Concatenation:
    """Work whose merge is not associative in floating point and keeps order: any other tree or order would show."""

    units: int
    die_before: int | None = None
    die_in_merge: int | None = None
    name: str = "a"
    ran: list[int] = field(default_factory=list)
    merges: int = 0
    appended: frozenset[str] = frozenset()

    @property
    def identity(self) -> Mapping[str, str]:
        return {"name": self.name}

    def run(self, unit: int) -> dict[str, State]:
        if unit == self.die_before:
            raise _Killed
        self.ran.append(unit)
        value = torch.sin(torch.tensor([float(unit)])) * 10 ** (unit % 7)
        rows = {name: {"row": torch.full((unit + 1,), unit)} for name in self.appended}
        return {"fold": {"sum": value.float(), "order": torch.tensor([unit])}, **rows}

    def merge(self, fold: str, state: State, later: State) -> State:
        assert fold == "fold"
        self.merges += 1
        if self.merges == self.die_in_merge:
            raise _Killed
        return {"sum": state["sum"] + later["sum"], "order": torch.cat([state["order"], later["order"]])}


def _bytes(states: States) -> list[bytes]:
    return [tensor.numpy().tobytes() for _, tensor in sorted(states["fold"].items())]


@pytest.mark.parametrize("units", [1, 2, 3, 5, 8, 13])
def test_any_interruption_gives_the_undisturbed_bytes(tmp_path: Path, units: int) -> None:
    undisturbed = run(_Concatenation(units), tmp_path / "whole", lambda _: None)
    assert undisturbed["fold"]["order"].tolist() == list(range(units))
    for moment in range(units):
        folder = tmp_path / f"cut{moment}"
        with pytest.raises(_Killed):
            run(_Concatenation(units, die_before=moment), folder, lambda _: None)
        again = _Concatenation(units)
        states = run(again, folder, lambda _: None)
        assert again.ran == list(range(moment, units))
        assert _bytes(states) == _bytes(undisturbed)
    for moment in range(1, units):
        folder = tmp_path / f"merge{moment}"
        with pytest.raises(_Killed):
            run(_Concatenation(units, die_in_merge=moment), folder, lambda _: None)
        assert _bytes(run(_Concatenation(units), folder, lambda _: None)) == _bytes(undisturbed)


def test_a_finished_run_computes_nothing_and_reports_every_unit(tmp_path: Path) -> None:
    first = run(_Concatenation(5), tmp_path, lambda _: None)
    again, seen = _Concatenation(5), []
    assert _bytes(run(again, tmp_path, seen.append)) == _bytes(first)
    assert again.ran == []
    assert sorted(seen) == list(range(5))


@pytest.mark.parametrize("units", [1, 3, 8])
def test_appended_rows_are_those_of_every_unit_in_order_after_any_interruption(tmp_path: Path, units: int) -> None:
    rows = frozenset({"rows"})
    for moment in range(units):
        folder = tmp_path / f"cut{moment}"
        with pytest.raises(_Killed):
            run(_Concatenation(units, die_before=moment, appended=rows), folder, lambda _: None)
        again = _Concatenation(units, appended=rows)
        states = run(again, folder, lambda _: None)
        assert again.ran == list(range(moment, units))
        assert "rows" not in states
        parts = Parts(folder, "rows", units)
        assert [part["row"].tolist() for part in parts] == [[unit] * (unit + 1) for unit in range(units)]
        assert len(parts[1:]) == units - 1


def test_a_unit_whose_rows_are_damaged_or_gone_is_computed_again_with_all_that_was_merged_with_it(tmp_path: Path) -> None:
    rows = frozenset({"rows"})
    undisturbed = run(_Concatenation(5, appended=rows), tmp_path, lambda _: None)
    damaged, gone = tmp_path / "rows-00000001.safetensors", tmp_path / "rows-00000004.json"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    gone.unlink()
    again = _Concatenation(5, appended=rows)
    assert _bytes(run(again, tmp_path, lambda _: None)) == _bytes(undisturbed)
    assert again.ran == list(range(5))
    assert [len(part["row"]) for part in Parts(tmp_path, "rows", 5)] == [1, 2, 3, 4, 5]


def test_one_file_per_finished_subtree_is_kept(tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        run(_Concatenation(8, die_before=7), tmp_path, lambda _: None)
    assert sorted(file.stem for file in tmp_path.glob("*.safetensors")) == ["00-00000006", "01-00000002", "02-00000000"]


@pytest.mark.parametrize("victim", ["00-00000006", "01-00000002", "02-00000000"])
def test_a_flipped_bit_is_named_and_its_units_are_rebuilt(
    tmp_path: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(_Killed):
        run(_Concatenation(8, die_before=7), tmp_path, lambda _: None)
    data = bytearray((tmp_path / f"{victim}.safetensors").read_bytes())
    data[-1] ^= 4
    (tmp_path / f"{victim}.safetensors").write_bytes(data)
    again = _Concatenation(8)
    states = run(again, tmp_path, lambda _: None)
    assert f"{victim} is damaged" in caplog.text
    assert again.ran == [*Node.parse(victim).units(8), 7]
    assert _bytes(states) == _bytes(run(_Concatenation(8), tmp_path.parent / "fresh", lambda _: None))


def test_children_left_behind_by_a_crash_after_their_parent_was_committed_are_removed(tmp_path: Path) -> None:
    whole = run(_Concatenation(2), tmp_path, lambda _: None)
    run(_Concatenation(1), tmp_path.parent / "leaf", lambda _: None)
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"00-00000000{suffix}").write_bytes((tmp_path.parent / "leaf" / f"00-00000000{suffix}").read_bytes())
    again = _Concatenation(2)
    assert _bytes(run(again, tmp_path, lambda _: None)) == _bytes(whole)
    assert again.ran == []
    assert not (tmp_path / "00-00000000.json").exists()


def test_work_of_another_identity_is_refused(tmp_path: Path) -> None:
    run(_Concatenation(2), tmp_path, lambda _: None)
    with pytest.raises(Refusal, match="name was a and is now b; go back to what it was, or delete"):
        run(_Concatenation(2, name="b"), tmp_path, lambda _: None)
    assert json.loads((tmp_path / "work.json").read_text()) == {"name": "a"}


def test_tree_covers_every_unit_once() -> None:
    for total in range(1, 40):
        top = root(total)
        assert top.units(total) == range(total)
        for level in range(top.level):
            nodes = [Node(level, i) for i in range(1 << (top.level - level))]
            assert [u for node in nodes for u in node.units(total)] == list(range(total))
            assert all(node.parent == node.sibling.parent for node in nodes)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
def test_a_damaged_marker_is_named_and_its_units_are_rebuilt(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(_Killed):
        run(_Concatenation(8, die_before=7), tmp_path / "a", lambda _: None)
    (tmp_path / "a" / "02-00000000.json").write_bytes(damage)
    states = run(_Concatenation(8), tmp_path / "a", lambda _: None)
    assert "02-00000000 is damaged" in caplog.text
    assert _bytes(states) == _bytes(run(_Concatenation(8), tmp_path / "b", lambda _: None))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_identity_begins_the_stage_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(_Killed):
        run(_Concatenation(8, die_before=7), tmp_path, lambda _: None)
    (tmp_path / "work.json").write_bytes(damage)
    again = _Concatenation(8)
    run(again, tmp_path, lambda _: None)
    assert "work.json is damaged" in caplog.text
    assert again.ran == list(range(8))
