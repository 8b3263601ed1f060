"""Atlases in object storage: the bytes of a local build, whatever happens on the way, and one writer at a time."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from microtome.atlas import Atlas, Settings, build, diff
from microtome.atlas.differences import AtlasDifference
from microtome.capture import Silent
from microtome.core import Refusal
from microtome.model import Model
from microtome.store import Bucket, Unreachable, digest, faults, folder_of, leases
from tests import toys
from tests.storage import Line, ObjectStore, forget_connections, object_store
from tests.unit.atlas.remote_build import SETTINGS, TEXTS, UNIT

FULL = Settings(window=24)
_number = itertools.count()


class _Killed(BaseException):
    """Stands in for an interruption."""


class _At(Silent):
    """Does something at the n-th batch."""

    def __init__(self, batch: int, act: Callable[[], None]) -> None:
        self._left, self._act = batch, act

    def advance(self, windows: int, tokens: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


def _kill() -> None:
    raise _Killed


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.capture.lens.windows_per_unit", lambda *_: UNIT)
        patch.setattr(leases, "SETTLED", 0.05)
        yield


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        started.bucket("atlases")
        yield started


@pytest.fixture(scope="module")
def decoder() -> Model:
    return toys.toy_decoder()


@pytest.fixture(scope="module")
def local(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build(decoder, TEXTS, output=tmp_path_factory.mktemp("local") / "atlas", settings=SETTINGS)


@pytest.fixture(scope="module")
def all_lenses(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build(decoder, TEXTS, output=tmp_path_factory.mktemp("local") / "atlas", settings=FULL)


@pytest.fixture
def address(store: ObjectStore) -> str:
    return f"s3://atlases/{next(_number)}/atlas"


@pytest.fixture(scope="module")
def whole(store: ObjectStore, decoder: Model) -> str:
    """The address of an atlas with all lenses."""
    address = "s3://atlases/whole/atlas"
    build(decoder, TEXTS, output=address, settings=FULL)
    return address


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method was used in this test."""
    counted: Counter[str] = Counter()
    for name in ("fetch", "send", "read", "delete"):
        method = getattr(Bucket, name)

        def counting(self: Bucket, *arguments: object, _name: str = name, _method: Callable[..., object] = method) -> object:
            counted[_name] += 1
            return _method(self, *arguments)

        monkeypatch.setattr(Bucket, name, counting)
    return counted


def _copy(whole: str, address: str, store: ObjectStore) -> Atlas:
    """An atlas of one's own, to spoil."""
    store.files.copy(whole.removeprefix("s3://"), address.removeprefix("s3://"), recursive=True)
    return Atlas(address)


def _tables(folder: Path) -> dict[str, str]:
    files = [*(folder / "tables").rglob("*.parquet"), *(folder / "dictionaries").glob("*")]
    return {str(path.relative_to(folder)): digest(path) for path in sorted(files)}


def _at(address: str) -> list[str]:
    return sorted({name.split("/")[0] for name in Bucket(address).below()})


def test_a_build_at_an_address_has_the_bytes_of_a_local_one(whole: str, all_lenses: Atlas, another_machine: Path) -> None:
    atlas = Atlas(whole)
    assert atlas.path.is_relative_to(another_machine)
    assert _tables(atlas.path) == _tables(all_lenses.path)
    assert (atlas.path / "atlas.json").read_bytes() == (all_lenses.path / "atlas.json").read_bytes()
    assert _at(whole) == ["atlas.json", "tables"]
    query = "select count(*) as n from unit_stats"
    assert atlas.sql(query) == all_lenses.sql(query)
    found = diff(whole, str(all_lenses.path))
    assert isinstance(found, AtlasDifference)
    assert found.matched > 0


def test_storage_of_another_kind(decoder: Model, local: Atlas, another_machine: Path) -> None:
    address = f"memory://atlases/{next(_number)}"
    atlas = build(decoder, TEXTS, output=address, settings=SETTINGS)
    assert _tables(atlas.path) == _tables(local.path)
    assert _at(address) == ["atlas.json", "tables"]


def test_what_is_there_is_not_fetched_again(whole: str, another_machine: Path, requests: Counter[str]) -> None:
    files = len(Atlas(whole).manifest.digests())
    assert requests == {"read": 2, "fetch": files}
    Atlas(whole)
    assert requests == {"read": 3, "fetch": files}
    folder = folder_of(whole)
    victim = next((folder / "tables" / "contexts").glob("*.parquet"))
    right = victim.read_bytes()
    victim.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    (folder / "tables" / "contexts" / "stray.parquet").write_bytes(right)
    requests.clear()
    assert Atlas(whole).damaged() == []
    assert requests["fetch"] == 1
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]


def test_building_again_sends_nothing(whole: str, decoder: Model, requests: Counter[str]) -> None:
    build(decoder, TEXTS, output=whole, settings=FULL)
    assert requests["send"] == 1  # what shows that it may be written there


def test_a_table_that_decays_is_named_and_made_anew(
    whole: str, address: str, store: ObjectStore, decoder: Model, all_lenses: Atlas, another_machine: Path
) -> None:
    _copy(whole, address, store)
    victim = next(name for name in Bucket(address).below() if name.startswith("tables/contexts/"))
    store.flip(f"{address}/{victim}")
    folder_of(address).joinpath(victim).unlink()
    atlas = Atlas(address)
    assert atlas.damaged() == [victim]
    with pytest.raises(Refusal, match="contexts/.* is missing, or damaged"):
        atlas.sql("select * from contexts")
    assert _tables(build(decoder, TEXTS, output=address, settings=FULL).path) == _tables(all_lenses.path)
    assert Bucket(address).read(victim) == (all_lenses.path / victim).read_bytes()


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_interrupted_and_continued_on_another_machine(
    address: str, decoder: Model, local: Atlas, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "one"))
    with pytest.raises(_Killed):
        build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(batch, _kill))
    assert "work" in _at(address)
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "another"))
    seen = _Found()
    atlas = build(decoder, TEXTS, output=address, settings=SETTINGS, progress=seen)
    assert seen.windows > 0
    assert _tables(atlas.path) == _tables(local.path)
    assert _at(address) == ["atlas.json", "tables"]


class _Found(Silent):
    """Counts windows of earlier runs."""

    windows = 0

    def found(self, windows: int) -> None:
        self.windows += windows


def test_a_state_that_decays_is_computed_again(
    address: str, store: ObjectStore, decoder: Model, local: Atlas, another_machine: Path
) -> None:
    with pytest.raises(_Killed):
        build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(8, _kill))
    states = [name for name in Bucket(address).below() if name.endswith(".safetensors") and name.startswith("work/")]
    assert states
    for name in states:
        store.flip(f"{address}/{name}")
    assert _tables(build(decoder, TEXTS, output=address, settings=SETTINGS).path) == _tables(local.path)


@contextlib.contextmanager
def _stopped(address: str, store: ObjectStore, cache: Path, word: str, times: int) -> Iterator[None]:
    """A build in a process of its own, that stands still; it is killed at the end."""
    command = [sys.executable, "-m", "tests.unit.atlas.remote_build", address, word, str(times)]
    environment = os.environ | store.environment | {"MICROTOME_CACHE": str(cache)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        assert "stopped\n" in iter(process.stdout.readline, "")
        yield
    finally:
        process.kill()
        process.communicate()


def test_killed_and_continued_elsewhere(
    address: str, store: ObjectStore, decoder: Model, local: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        _stopped(address, store, tmp_path / "there", "batch", 6),
        pytest.raises(Refusal, match=r"another build is writing there \(process \d+ on .*\); wait for that build"),
    ):
        build(decoder, TEXTS, output=address, settings=SETTINGS)
    assert "lease.json" in _at(address)
    monkeypatch.setattr(leases, "SILENT", 2.0)
    monkeypatch.setattr(leases, "RENEWED", 0.5)
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "here"))
    began, seen = time.monotonic(), _Found()
    atlas = build(decoder, TEXTS, output=address, settings=SETTINGS, progress=seen)
    assert time.monotonic() - began > 2.0  # for so long it might have lived
    assert seen.windows > 0
    assert _tables(atlas.path) == _tables(local.path)
    assert _at(address) == ["atlas.json", "tables"]


def test_killed_and_continued_at_once_where_it_was_killed(
    address: str, store: ObjectStore, decoder: Model, local: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _stopped(address, store, tmp_path, "writing tables of geometry", 1):
        pass
    assert "lease.json" in _at(address)
    monkeypatch.setattr(leases, "SILENT", 3600.0)
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path))
    assert _tables(build(decoder, TEXTS, output=address, settings=SETTINGS).path) == _tables(local.path)
    assert _at(address) == ["atlas.json", "tables"]


class _AtStage(Silent):
    """Ends the build when a stage begins."""

    def begin(self, stage: str, windows: int) -> None:
        if stage == "factors":
            raise _Killed


def test_what_was_dear_to_make_is_not_made_again(
    address: str, decoder: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, settings = toys.toy_texts(documents=24, words=200), Settings(window=24, lenses=("factors",))
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "one"))
    with pytest.raises(_Killed):
        build(decoder, text, output=address, settings=settings, progress=_AtStage())
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("microtome.factors.lens.trained", None)
    atlas = build(decoder, text, output=address, settings=settings)
    assert atlas.damaged() == []
    assert _at(address) == ["atlas.json", "dictionaries", "tables"]


def test_a_build_that_lost_its_lease_writes_no_more(address: str, decoder: Model, local: Atlas, another_machine: Path) -> None:
    bucket, there = Bucket(address), []

    def taken() -> None:
        with bucket.committing("lease.json") as temporary:
            temporary.write_text(json.dumps({"token": "of another", "by": "another", "beat": 1}))
        time.sleep(0.5)
        there.extend(_state(bucket))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "RENEWED", 0.1)
        with pytest.raises(Unreachable, match="another build has taken over .* run the same command again"):
            build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(3, taken))
    assert _state(bucket) == there
    bucket.delete("lease.json")
    assert _tables(build(decoder, TEXTS, output=address, settings=SETTINGS).path) == _tables(local.path)


def _state(bucket: Bucket) -> list[tuple[str, bytes | None]]:
    return [(name, bucket.read(name)) for name in bucket.below()]


def test_a_manifest_of_another_is_not_overwritten(address: str, decoder: Model, another_machine: Path) -> None:
    bucket = Bucket(address)

    def spoil() -> None:
        content = json.loads(bucket.read("atlas.json") or b"")
        with bucket.committing("atlas.json") as temporary:
            temporary.write_text(json.dumps(content))

    with pytest.raises(Unreachable, match="its manifest is not the one that this build has read"):
        build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(3, spoil))


def test_a_first_build_that_is_refused_leaves_nothing(address: str, decoder: Model, another_machine: Path) -> None:
    def refuse() -> None:
        raise Refusal("activations", why="they are NaN", instead="use float32")

    with pytest.raises(Refusal, match="activations: they are NaN"):
        build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(3, refuse))
    assert _at(address) == []


def test_another_text_is_refused_and_changes_nothing(whole: str, decoder: Model, another_machine: Path) -> None:
    before = _state(Bucket(whole))
    with pytest.raises(Refusal, match="run main: its text was another one; use --run NAME"):
        build(decoder, toys.toy_texts(documents=6), output=whole, settings=SETTINGS)
    with pytest.raises(Refusal, match=f"{whole}: it is the atlas of"):
        build(toys.toy_encoder(), TEXTS, output=whole, settings=SETTINGS)
    assert _state(Bucket(whole)) == before


def test_a_second_run_joins_the_first(
    whole: str, address: str, store: ObjectStore, decoder: Model, another_machine: Path
) -> None:
    _copy(whole, address, store)
    build(decoder, toys.toy_texts(documents=6), output=address, settings=Settings(run="half", window=24, lenses=("geometry",)))
    assert set(Atlas(address).manifest.runs) == {"main", "half"}
    assert Atlas(address).damaged() == []


def test_places_that_cannot_be_built_in(store: ObjectStore, decoder: Model, another_machine: Path) -> None:
    for address, message in {
        "s3://not-there/atlas": "there is no such bucket",
        "nosuch://somewhere": "Protocol not known",
    }.items():
        with pytest.raises(Refusal, match=message):
            build(decoder, TEXTS, output=address, settings=SETTINGS)
    store.files.pipe_file("atlases/theirs/tables/a.csv", b"a,b")
    with pytest.raises(Refusal, match=r"there are files but no atlas\.json"):
        build(decoder, TEXTS, output="s3://atlases/theirs", settings=SETTINGS)
    with pytest.raises(Refusal, match=r"s3://atlases/nothing: there is no atlas\.json in it"):
        Atlas("s3://atlases/nothing")


def test_a_manifest_cannot_name_files_elsewhere(whole: str, address: str, store: ObjectStore, another_machine: Path) -> None:
    content = json.loads(Bucket(whole).read("atlas.json") or b"")
    content["runs"]["main"]["files"]["tables/../../../outside"] = "0" * 64
    with Bucket(address).committing("atlas.json") as temporary:
        temporary.write_text(json.dumps(content))
    with pytest.raises(Refusal, match="which no atlas has"):
        Atlas(address)


def test_many_readers_at_once(whole: str, another_machine: Path, requests: Counter[str]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(Atlas(whole).path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert requests["fetch"] == len(Atlas(whole).manifest.digests())


def test_storage_that_goes_away_and_comes_back(
    address: str, store: ObjectStore, decoder: Model, local: Atlas, another_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.environment["AWS_ENDPOINT_URL"])
    forget_connections()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(faults, "PATIENCE", 0.4)
            with pytest.raises(Unreachable, match="cannot be reached: .* finished work is kept"):
                build(decoder, TEXTS, output=address, settings=SETTINGS, progress=_At(6, line.cut))
        line.mend()
        threading.Timer(0.3, line.cut).start()
        threading.Timer(0.9, line.mend).start()  # a second of it is waited for
        seen = _Found()
        assert _tables(build(decoder, TEXTS, output=address, settings=SETTINGS, progress=seen).path) == _tables(local.path)
        assert seen.windows > 0
    finally:
        time.sleep(0.8)
        line.cut()
        monkeypatch.undo()
        forget_connections()
