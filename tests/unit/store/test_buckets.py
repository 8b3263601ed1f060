"""Places keep their contract at every kind of address; what is half written is not seen; errors of storage are told in one line."""

import contextlib
import http.server
import itertools
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.core import Refusal
from microtome.core.cache import cache_root
from microtome.store import Bucket, Damaged, Folder, Place, Shelf, StoredStates, Unreachable, buckets, faults, place_of
from microtome.store.conditional import create, look, swap
from microtome.store.connections import connected
from tests.storage import ObjectStore, forget_connections, free_port, object_store

_number = itertools.count()


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as started:
        started.bucket("places")
        yield started


@pytest.fixture
def bucket(store: ObjectStore) -> Bucket:
    return Bucket(f"s3://places/{next(_number)}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PATIENCE", 0.3)


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    match request.param:
        case "folder":
            return place_of(tmp_path / "place")
        case "memory":
            return place_of(f"memory://places/{next(_number)}")
        case _:
            return request.getfixturevalue("bucket")


def _commit(place: Place, name: str, content: bytes) -> None:
    with place.committing(name) as temporary:
        temporary.write_bytes(content)


def test_what_is_committed_is_there_until_it_is_deleted(place: Place) -> None:
    assert place.names() == []
    assert place.read("a.json") is None
    _commit(place, "b.json", b"two")
    _commit(place, "a.json", b"one")
    _commit(place.inside("deeper"), "c.json", b"three")
    assert place.names() == ["a.json", "b.json"]
    assert place.inside("deeper").names() == ["c.json"]
    if isinstance(place, Bucket):
        _commit(place.inside("deep"), "d.json", b"four")
        assert place.below() == ["a.json", "b.json", "deep/d.json", "deeper/c.json"]
        assert place.inside("deep").below() == ["d.json"]
    assert place.read("a.json") == b"one"
    _commit(place, "a.json", b"another")
    assert place.read("a.json") == b"another"
    place.delete("a.json")
    place.delete("a.json")
    assert place.names() == ["b.json"]


def test_a_commit_is_not_seen_before_it_is_whole_nor_when_it_fails(place: Place) -> None:
    _commit(place, "a", b"old")

    def fail(name: str) -> None:
        with place.committing(name) as temporary:
            temporary.write_bytes(b"half")
            assert place.names() == ["a"]
            assert place.read("a") == b"old"
            raise KeyError(name)

    for name in ("a", "b"):
        with pytest.raises(KeyError, match=name):
            fail(name)
        assert place.names() == ["a"]
        assert place.read("a") == b"old"


def test_a_local_file_has_the_bytes_and_follows_what_is_there(place: Place) -> None:
    with pytest.raises(FileNotFoundError):
        place.local("a")
    _commit(place, "a", b"one")
    first = place.local("a")
    assert first.read_bytes() == b"one"
    assert place.local("a") == first
    _commit(place, "a", b"second")
    assert place.local("a").read_bytes() == b"second"
    place.delete("a")
    with pytest.raises(FileNotFoundError):
        place.local("a")


def test_a_place_is_a_value_that_can_be_sent(place: Place) -> None:
    _commit(place, "a", b"one")
    copy = pickle.loads(pickle.dumps(place))
    assert copy == place
    assert copy.read("a") == b"one"


def test_states_of_folds_are_kept_and_damage_is_noticed(place: Place) -> None:
    shelf = Shelf(place, "work")
    shelf.write("00-0", {"moments": {"sum": torch.arange(100.0)}})
    assert shelf.committed() == {"00-0"}
    stored = shelf.read("00-0")
    assert isinstance(stored, StoredStates)
    assert torch.equal(stored["moments"]["sum"], torch.arange(100.0))
    assert isinstance(Shelf(place, "other work").read("00-0"), Damaged)
    content = bytearray(place.read("00-0.safetensors") or b"")
    content[-5] ^= 1
    _commit(place, "00-0.safetensors", bytes(content))
    assert isinstance(shelf.read("00-0"), Damaged)
    shelf.delete("00-0")
    assert place.names() == []


def test_states_without_their_marker_do_not_exist(place: Place) -> None:
    shelf = Shelf(place)
    shelf.write("00-0", {"moments": {"sum": torch.zeros(3)}})
    place.delete("00-0.json")
    assert shelf.committed() == set()
    assert shelf.stems() == ["00-0"]
    assert isinstance(shelf.read("00-0"), Damaged)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("atlas", Folder(Path("atlas"))),
        (Path("a/b"), Folder(Path("a/b"))),
        ("file:///data/atlas", Folder(Path("/data/atlas"))),
        ("s3://bucket/atlas/", Bucket("s3://bucket/atlas")),
        ("gs://bucket/atlas", Bucket("gs://bucket/atlas")),
    ],
)
def test_addresses(address: str | Path, expected: Place) -> None:
    assert place_of(address) == expected


def test_an_address_that_became_a_path_is_refused() -> None:
    with pytest.raises(Refusal, match="a Path has no place for the // of an address; pass the address as text"):
        place_of(Path("s3://bucket/atlas"))


def test_listings_are_of_now_when_another_process_writes(bucket: Bucket, store: ObjectStore) -> None:
    assert bucket.names() == []
    script = (
        "import sys; from microtome.store import Bucket\nwith Bucket(sys.argv[1]).committing('a') as t: t.write_bytes(b'1')"
    )
    subprocess.run([sys.executable, "-c", script, bucket.address], check=True)
    assert bucket.names() == ["a"]
    assert bucket.read("a") == b"1"


def test_an_upload_that_never_ended_is_not_seen(bucket: Bucket, store: ObjectStore) -> None:
    path = bucket.address.removeprefix("s3://")
    started = store.files.call_s3("create_multipart_upload", Bucket="places", Key=f"{path.split('/', 1)[1]}/a")
    store.files.call_s3(
        "upload_part",
        Bucket="places",
        Key=f"{path.split('/', 1)[1]}/a",
        PartNumber=1,
        UploadId=started["UploadId"],
        Body=b"half",
    )
    assert bucket.names() == []
    assert bucket.read("a") is None


def test_a_file_above_a_hundred_megabytes_goes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * (101 * 4096))
    bucket.send(source, "large")
    assert bucket.local("large").read_bytes() == source.read_bytes()
    bucket.delete("large")


def test_what_arrives_otherwise_is_sent_again_and_then_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, files = tmp_path / "a", connected(bucket.address).files
    source.write_bytes(b"what was sent")
    sent: list[bytes] = []

    def spoilt(local: str, remote: str) -> None:
        sent.append(Path(local).read_bytes())
        files.pipe_file(remote, sent[-1].swapcase() if len(sent) == 1 else sent[-1])

    monkeypatch.setattr(files, "put_file", spoilt)
    bucket.send(source, "a")
    assert len(sent) == 2
    assert bucket.read("a") == b"what was sent"
    monkeypatch.setattr(files, "put_file", lambda _, remote: files.pipe_file(remote, b"WHAT was sent"))
    with pytest.raises(Refusal, match="what arrived there is not what was sent"):
        bucket.send(source, "a")


def test_a_checksum_of_another_kind_is_no_reason_to_refuse(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"encrypted by a key of the storage")
    monkeypatch.setattr(buckets, "_md5", lambda _: "0" * 32)
    bucket.send(source, "a")
    assert bucket.read("a") == source.read_bytes()


def test_two_that_want_a_copy_at_once_get_it_whole(bucket: Bucket) -> None:
    _commit(bucket, "a", b"x" * 1_000_000)
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _: bucket.local("a"), range(16)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == b"x" * 1_000_000
    assert not list(paths[0].parent.glob("*.part"))


def test_copies_are_bounded_and_those_last_used_stay(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "COPIES", 250)
    monkeypatch.setattr(buckets, "_KEPT", 1)
    for name in ("a", "b"):
        _commit(bucket, name, name.encode() * 100)
        bucket.local(name)
        time.sleep(0.01)
    first = bucket.local("a")
    _commit(bucket, "c", b"c" * 100)
    time.sleep(0.01)
    bucket.local("c")
    folder = cache_root() / "fetched" / "states"
    assert first.exists()
    assert sorted(path.read_bytes()[:1] for path in folder.glob("*-*")) == [b"a", b"c"]


@pytest.mark.parametrize("kind", ["s3", "careless", "memory"])
def test_small_objects_are_made_once_and_replaced_by_who_has_seen_them(kind: str, store: ObjectStore) -> None:
    place = Bucket(f"{'memory' if kind == 'memory' else 's3'}://places/{next(_number)}")
    with store.careless() if kind == "careless" else contextlib.nullcontext():
        assert look(place, "word") is None
        mark = create(place, "word", b"one")
        assert mark is not None
        assert create(place, "word", b"two") is None
        assert look(place, "word") == (b"one", mark)
        after = swap(place, "word", b"three", mark)
        assert after is not None
        assert swap(place, "word", b"four", mark) is None
        assert look(place, "word") == (b"three", after)
        place.delete("word")
        assert swap(place, "word", b"five", after) is None
        assert place.names() == []


def test_one_of_many_makes_an_object(bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: create(bucket, "word", str(n).encode()), range(8)))
    assert sum(mark is not None for mark in made) == 1


def test_no_such_bucket(store: ObjectStore) -> None:
    missing = Bucket("s3://not-there/atlas")
    for ask in (missing.names, lambda: missing.read("a"), lambda: _commit(missing, "a", b"1")):
        with pytest.raises(Refusal, match="s3://not-there/atlas: there is no such bucket; make the bucket"):
            ask()


def test_no_credentials(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    forget_connections()
    with pytest.raises(Refusal, match=r"there are no credentials for s3:// .*; set those of the protocol"):
        Bucket("s3://places").names()
    forget_connections()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/atlas", "what reads gs:// is not installed; run: pip install 'gcsfs'"),
        ("nosuch://bucket/atlas", "Protocol not known: nosuch; check the address"),
    ],
)
def test_protocols_that_cannot_be_read(address: str, message: str) -> None:
    with pytest.raises(Refusal, match=message.replace("(", r"\(")):
        Bucket(address).names()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    forget_connections()
    monkeypatch.setattr("fsspec.url_to_fs", absent)
    with pytest.raises(Refusal, match=r"what reads s3:// is not installed; run: pip install 'microtome\[s3\]'"):
        Bucket("s3://places").names()


class _Answering(http.server.BaseHTTPRequestHandler):
    """Answers every request with the next of its statuses, and counts."""

    statuses: Iterator[int]
    asked = 0

    def _answer(self) -> None:
        type(self).asked += 1
        status = next(self.statuses)
        code = {403: "AccessDenied", 503: "SlowDown", 200: "", 404: "NoSuchKey"}[status]
        body = f"<Error><Code>{code}</Code><Message>said by the test</Message></Error>".encode() if code else b"content"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> Iterator[Callable[[Iterator[int]], type[_Answering]]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(statuses: Iterator[int]) -> type[_Answering]:
        handler = type("Handler", (_Answering,), {"statuses": statuses})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers[-1].server_port}")
        forget_connections()
        return handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    monkeypatch.undo()
    forget_connections()


def test_no_permission(answering: Callable[[Iterator[int]], type[_Answering]]) -> None:
    handler = answering(itertools.repeat(403))
    with pytest.raises(Refusal, match="it may not be used with these credentials: said by the test; check the credentials"):
        Bucket("s3://places/x").read("a")
    assert handler.asked <= 2  # no more is asked of who has said no


def test_what_passes_is_waited_for(answering: Callable[[Iterator[int]], type[_Answering]]) -> None:
    handler = answering(iter([503, 503, 503, 200]))
    assert Bucket("s3://places/x").read("a") == b"content"
    assert handler.asked == 4


@pytest.mark.usefixtures("impatient")
def test_what_does_not_pass_is_told_in_time(answering: Callable[[Iterator[int]], type[_Answering]]) -> None:
    answering(itertools.repeat(503))
    with pytest.raises(Unreachable, match="it cannot be reached: .*said by the test; .* finished work is kept"):
        Bucket("s3://places/x").read("a")


@pytest.mark.usefixtures("impatient")
def test_nobody_there(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    forget_connections()
    with pytest.raises(Unreachable, match=r"s3://places: it cannot be reached: Could not connect to the endpoint"):
        Bucket("s3://places").names()
    forget_connections()


def test_a_refusal_stays_what_it_is_between_processes() -> None:
    refusal = pickle.loads(pickle.dumps(Unreachable("s3://a", why="it is far", instead="wait")))
    assert type(refusal) is Unreachable
    assert str(refusal) == "s3://a: it is far; wait"


def test_our_own_faults_are_not_hidden() -> None:
    def wrong() -> Any:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        faults.patiently("s3://places", wrong)


def test_an_answer_that_breaks_off_is_one_that_passes() -> None:
    class ClientPayloadError(Exception):
        """Of aiohttp, by its name."""

    class ContentLengthError(Exception):
        status = 400

    answers = iter([ContentLengthError("not enough data")])

    def asked() -> str:
        for error in answers:
            raise ClientPayloadError("Response payload is not completed") from error
        return "there"

    assert faults.patiently("s3://bucket/atlas", asked) == "there"
