"""One writer at an address: who holds the lease, who is refused, and when it is another's."""

import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from microtome.core import Refusal
from microtome.store import Bucket, Unreachable, faults, leased, leases
from microtome.store.conditional import look
from microtome.store.connections import connected
from microtome.store.leases import Held
from tests.storage import ObjectStore, forget_connections, free_port, object_store

_number = itertools.count()


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        started.bucket("atlases")
        yield started


@pytest.fixture(params=["s3", "careless", "memory"])
def bucket(request: pytest.FixtureRequest, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new address: of a server that speaks S3, of one that does but ignores conditions, of another protocol."""
    monkeypatch.setattr(leases, "SETTLED", 0.05)
    careless = store.careless() if request.param == "careless" else contextlib.nullcontext()
    with careless:
        yield Bucket(f"{'memory' if request.param == 'memory' else 's3'}://atlases/leases/{next(_number)}")


def test_two_builds_on_one_machine(bucket: Bucket, tmp_path: Path) -> None:
    with (
        leased(bucket, tmp_path / "lease"),
        pytest.raises(Refusal, match="another build is writing there .a process of this machine."),
        leased(bucket, tmp_path / "lease"),
    ):
        pass
    assert bucket.below() == []


def test_a_lease_that_is_silent_is_taken_over_and_lost(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "RENEWED", 60.0)  # it sleeps
        patch.setattr(leases, "SILENT", 1.0)
        with leased(bucket, tmp_path / "one") as first:
            first.require()
            with leased(bucket, tmp_path / "two") as second:
                second.require()
                with pytest.raises(Unreachable, match="another build has taken over writing there"):
                    first.require()
            assert look(bucket, "lease.json") is None
    assert bucket.below() == []


def test_a_holder_that_lives_is_noticed_by_its_renewals(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.1)
    began = time.monotonic()
    with (
        leased(bucket, tmp_path / "one"),
        pytest.raises(Refusal, match=r"another build is writing there \(process \d+ on"),
        leased(bucket, tmp_path / "two"),
    ):
        pass
    assert time.monotonic() - began < leases.SILENT / 4


def test_a_lease_left_by_the_dead_of_this_machine_is_taken_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with bucket.committing("lease.json") as temporary:
        temporary.write_text('{"token": "the-dead", "beat": 7}')
    (tmp_path / "here").write_text("earlier\nthe-dead\n")
    began = time.monotonic()
    with leased(bucket, tmp_path / "here") as lease:
        lease.require()
    assert time.monotonic() - began < leases.SILENT / 4
    assert bucket.below() == []


def test_a_lease_that_cannot_be_renewed_is_not_relied_on(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(f"s3://atlases/leases/{next(_number)}")
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    monkeypatch.setattr(leases, "SILENT", 0.6)
    monkeypatch.setattr(faults, "PATIENCE", 0.2)
    with leased(bucket, tmp_path / "one") as lease:
        lease.require()
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
            forget_connections()
            time.sleep(0.5)
            with pytest.raises(Unreachable, match="another build has taken over|not heard of for too long"):
                lease.require()
        forget_connections()
        assert connected(bucket.address).conditional
        lease.require()  # nobody has taken it in the meantime


def test_a_renewal_whose_answer_is_lost_is_no_loss_of_the_lease(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.02)
    files, writes, renewed = connected(bucket.address).files, itertools.count(1), threading.Event()
    written = files.pipe_file

    def losing(*arguments: Any, **options: Any) -> object:
        told = written(*arguments, **options)
        if (write := next(writes)) == 2:
            raise ConnectionResetError
        if write == 4:
            renewed.set()
        return told

    with leased(bucket, tmp_path / "one") as lease:
        with monkeypatch.context() as patch:
            patch.setattr(files, "pipe_file", losing)
            assert renewed.wait(10)
        lease.require()


def test_servers_that_ignore_conditions_are_found_out(store: ObjectStore) -> None:
    assert connected(f"s3://atlases/leases/{next(_number)}").conditional
    with store.careless():
        bucket = Bucket(f"s3://atlases/leases/{next(_number)}")
        assert not connected(bucket.address).conditional
    assert bucket.below() == []


def test_who_writes_a_lease_at_the_same_moment_is_noticed(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either writes; the other one writes last, and lives."""
    beats = itertools.count(1)
    with store.careless():
        bucket = Bucket(f"s3://atlases/leases/{next(_number)}")

        def meanwhile(_: float) -> None:
            bucket._there.files.pipe_file(bucket._there.at("lease.json"), b'{"token": "of another", "beat": %d}' % next(beats))

        monkeypatch.setattr(leases.time, "sleep", meanwhile)
        with pytest.raises(Refusal, match="another build is writing there"), leased(bucket, tmp_path / "one"):
            pass


def test_a_place_whose_lease_is_lost_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    bucket = Bucket(f"memory://atlases/leases/{next(_number)}")
    with leased(bucket, tmp_path / "one") as lease:
        held = Held(bucket, lease).inside("work")
        for name in ("a", "b"):
            with held.committing(name) as temporary:
                temporary.write_text("mine")
        held.delete("b")
        assert held.names() == ["a"]
        assert pickle.loads(pickle.dumps(held)) == bucket.inside("work")
        lease._lost = True
        with pytest.raises(Unreachable, match="another build has taken over"):
            held.delete("a")
        with pytest.raises(Unreachable, match="another build has taken over"), held.committing("a") as temporary:
            temporary.write_text("other")
    assert held.read("a") == b"mine"
