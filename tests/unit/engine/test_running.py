"""The engine in this process: any interruption, the same states; damage is found; other work is refused."""

import json
from pathlib import Path

import pytest
import torch

from microtome.core import Interrupted, Refusal
from microtome.engine import Node, Parts, root, run
from microtome.store import Bucket, Folder, Shelf, Unreachable, fingerprint
from microtome.store.leases import Held, Lease
from tests.unit.engine.toy_work import Concatenation, Killed, content


@pytest.mark.parametrize("units", [1, 2, 3, 5, 8, 13])
def test_any_interruption_gives_the_undisturbed_bytes(tmp_path: Path, units: int) -> None:
    undisturbed = run(Concatenation(units), Folder(tmp_path / "whole"))
    assert undisturbed["fold"]["order"].tolist() == list(range(units))
    for moment in range(units):
        folder = tmp_path / f"cut{moment}"
        with pytest.raises(Killed):
            run(Concatenation(units, die_before=moment), Folder(folder))
        again = Concatenation(units)
        states = run(again, Folder(folder))
        assert again.ran == list(range(moment, units))
        assert content(states) == content(undisturbed)
    for moment in range(1, units):
        folder = tmp_path / f"merge{moment}"
        with pytest.raises(Killed):
            run(Concatenation(units, die_in_merge=moment), Folder(folder))
        assert content(run(Concatenation(units), Folder(folder))) == content(undisturbed)


def test_a_finished_run_computes_nothing_and_reports_every_unit(tmp_path: Path) -> None:
    first = run(Concatenation(5), Folder(tmp_path))
    again, seen = Concatenation(5), []
    assert content(run(again, Folder(tmp_path), found=seen.append)) == content(first)
    assert again.ran == []
    assert sorted(seen) == list(range(5))


@pytest.mark.parametrize("units", [1, 3, 8])
def test_appended_rows_are_those_of_every_unit_in_order_after_any_interruption(tmp_path: Path, units: int) -> None:
    rows = frozenset({"rows"})
    for moment in range(units):
        folder = tmp_path / f"cut{moment}"
        with pytest.raises(Killed):
            run(Concatenation(units, die_before=moment, appended=rows), Folder(folder))
        again = Concatenation(units, appended=rows)
        states = run(again, Folder(folder))
        assert again.ran == list(range(moment, units))
        assert "rows" not in states
        parts = Parts(Shelf(Folder(folder), fingerprint({"name": "a"})), "rows", units)
        assert [part["row"].tolist() for part in parts] == [[unit] * (unit + 1) for unit in range(units)]
        assert len(parts[1:]) == units - 1


def test_a_unit_whose_rows_are_damaged_or_gone_is_computed_again_with_all_that_was_merged_with_it(tmp_path: Path) -> None:
    rows = frozenset({"rows"})
    undisturbed = run(Concatenation(5, appended=rows), Folder(tmp_path))
    damaged, gone = tmp_path / "rows-00000001.safetensors", tmp_path / "rows-00000004.json"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    gone.unlink()
    again = Concatenation(5, appended=rows)
    assert content(run(again, Folder(tmp_path))) == content(undisturbed)
    assert again.ran == list(range(5))
    assert [len(part["row"]) for part in Parts(Shelf(Folder(tmp_path), fingerprint({"name": "a"})), "rows", 5)] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_one_file_per_finished_subtree_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(Concatenation(8, die_before=7), Folder(tmp_path))
    assert sorted(file.stem for file in tmp_path.glob("*.safetensors")) == ["00-00000006", "01-00000002", "02-00000000"]


@pytest.mark.parametrize("victim", ["00-00000006", "01-00000002", "02-00000000"])
def test_a_flipped_bit_is_named_and_its_units_are_rebuilt(
    tmp_path: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        run(Concatenation(8, die_before=7), Folder(tmp_path))
    data = bytearray((tmp_path / f"{victim}.safetensors").read_bytes())
    data[-1] ^= 4
    (tmp_path / f"{victim}.safetensors").write_bytes(data)
    again = Concatenation(8)
    states = run(again, Folder(tmp_path))
    assert f"{victim} is damaged" in caplog.text
    assert again.ran == [*Node.parse(victim).units(8), 7]
    assert content(states) == content(run(Concatenation(8), Folder(tmp_path.parent / "fresh")))


def test_children_left_behind_by_a_crash_after_their_parent_was_committed_are_removed(tmp_path: Path) -> None:
    whole = run(Concatenation(2), Folder(tmp_path))
    run(Concatenation(1), Folder(tmp_path.parent / "leaf"))
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"00-00000000{suffix}").write_bytes((tmp_path.parent / "leaf" / f"00-00000000{suffix}").read_bytes())
    again = Concatenation(2)
    assert content(run(again, Folder(tmp_path))) == content(whole)
    assert again.ran == []
    assert not (tmp_path / "00-00000000.json").exists()


def test_work_of_another_identity_is_refused(tmp_path: Path) -> None:
    run(Concatenation(2), Folder(tmp_path))
    with pytest.raises(Refusal, match="name was a and is now b; go back to what it was, or delete"):
        run(Concatenation(2, name="b"), Folder(tmp_path))
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
    with pytest.raises(Killed):
        run(Concatenation(8, die_before=7), Folder(tmp_path / "a"))
    (tmp_path / "a" / "02-00000000.json").write_bytes(damage)
    states = run(Concatenation(8), Folder(tmp_path / "a"))
    assert "02-00000000 is damaged" in caplog.text
    assert content(states) == content(run(Concatenation(8), Folder(tmp_path / "b")))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_identity_begins_the_stage_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        run(Concatenation(8, die_before=7), Folder(tmp_path))
    (tmp_path / "work.json").write_bytes(damage)
    again = Concatenation(8)
    run(again, Folder(tmp_path))
    assert "work.json is damaged" in caplog.text
    assert again.ran == list(range(8))


def test_what_a_larger_stage_of_the_same_name_has_left_is_removed(tmp_path: Path) -> None:
    whole = run(Concatenation(3), Folder(tmp_path / "whole"))
    shelf = Shelf(Folder(tmp_path / "a"), fingerprint({"name": "a"}))
    with pytest.raises(Killed):
        run(Concatenation(3, die_before=2), shelf.place)
    shelf.write("07-00000000", {"fold": {"sum": torch.zeros(1), "order": torch.zeros(1, dtype=torch.int64)}})
    assert content(run(Concatenation(3), shelf.place)) == content(whole)
    assert "07-00000000.json" not in shelf.place.names()


def test_rows_that_change_after_they_were_written_are_not_read(tmp_path: Path) -> None:
    rows = frozenset({"rows"})
    run(Concatenation(3, appended=rows), Folder(tmp_path))
    parts = Parts(Shelf(Folder(tmp_path), fingerprint({"name": "a"})), "rows", 3)
    assert parts[0]["row"].tolist() == [0]
    damaged = tmp_path / "rows-00000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(Interrupted, match="its bytes changed after they had been written"):
        _ = parts[1]


def test_at_an_address_a_run_that_goes_on_fetches_states_only_and_rows_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = Bucket.fetch

    def noting(self: Bucket, name: str, path: Path) -> None:
        fetched.append(name.removesuffix(".safetensors"))
        fetch(self, name, path)

    monkeypatch.setattr(Bucket, "fetch", noting)
    place, rows = Bucket(f"memory://{tmp_path.name}/stage"), frozenset({"rows"})
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "one"))
    with pytest.raises(Killed):
        run(Concatenation(6, die_before=5, appended=rows), place)
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "another"))
    fetched.clear()
    run(Concatenation(6, appended=rows), place)
    assert sorted(fetched) == ["00-00000004", "02-00000000", "03-00000000"]
    parts = Parts(Shelf(place, fingerprint({"name": "a"})), "rows", 6)
    assert [part["row"].tolist() for part in parts] == [[unit] * (unit + 1) for unit in range(6)]
    assert fetched[3:] == [f"rows-{unit:08d}" for unit in range(6)]


def test_rows_that_decay_at_an_address_are_computed_again_once_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))
    place, rows = Bucket(f"memory://{tmp_path.name}/stage"), frozenset({"rows"})
    run(Concatenation(3, appended=rows), place)
    with place.committing("rows-00000001.safetensors") as temporary:
        temporary.write_bytes(b"what is this")
    parts = Parts(Shelf(place, fingerprint({"name": "a"})), "rows", 3)
    with pytest.raises(Interrupted, match=r"rows-00000001.safetensors: its bytes changed .* run again to rebuild it"):
        _ = parts[1]
    again = Concatenation(3, appended=rows)
    run(again, place)
    assert 1 in again.ran
    assert parts[1]["row"].tolist() == [1, 1]


class _Lease(Lease):
    """One that is lost when it is said so."""

    lost = False

    def require(self) -> None:
        if self.lost:
            raise Unreachable("here", why="another build has taken over", instead="wait for it")


def test_a_build_that_has_lost_its_address_removes_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, send = Bucket(f"memory://{tmp_path.name}/stage"), Bucket.send
    lease = _Lease(bucket, "mine")

    def losing(self: Bucket, source: Path, name: str) -> None:
        send(self, source, name)
        lease.lost |= name == "01-00000000.json"

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "send", losing)
        with pytest.raises(Unreachable, match="another build has taken over"):
            run(Concatenation(4), Held(bucket, lease))
    assert {"00-00000000.json", "01-00000000.json"} <= set(bucket.names())
    run(Concatenation(4), bucket)
    with bucket.committing("00-00000003.json") as temporary:
        temporary.write_text("of the build that goes on")
    with pytest.raises(Unreachable, match="another build has taken over"):
        run(Concatenation(4), Held(bucket, lease))
    assert "00-00000003.json" in bucket.names()
