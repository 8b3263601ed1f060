"""Small objects that several processes may want to write: made only where there is none, replaced only where nobody else has.

S3 looks and writes in one request, and so excludes that two succeed. Other storage may not, nor may servers that speak S3 and ignore
conditions: then it is looked at before and after, which leaves the time of a request in which two may both believe it.
"""

import hashlib

from microtome.store.buckets import Bucket
from microtome.store.connections import connected, unmet

__all__ = ["create", "look", "swap"]


def look(bucket: Bucket, name: str) -> tuple[bytes, str] | None:
    """A small file and its mark, by which `swap` knows it; None where there is none."""
    while True:
        try:
            mark = _mark(bucket, name)
            data = bucket.read(name)
            if data is not None and _mark(bucket, name) == mark:
                return data, mark or hashlib.sha256(data).hexdigest()
        except FileNotFoundError:
            return None


def create(bucket: Bucket, name: str, data: bytes) -> str | None:
    """Write a small file where there is none; its mark, or None where it was not written. S3, GCS and memory exclude that two do."""
    there = connected(bucket.address)

    def written() -> None:
        if not there.conditional and there.files.exists(there.at(name)):
            raise FileExistsError(name)
        try:
            there.files.pipe_file(there.at(name), data, mode="create")
        except (NotImplementedError, TypeError, ValueError):
            if there.conditional:  # it excludes that two write, and is not to be asked for less
                raise
            there.files.pipe_file(there.at(name), data)

    # One that is there may be what this request has written itself, before its answer was lost and it was made again.
    try:
        there.asked(written)
    except OSError as error:
        if not unmet(error):
            raise
    return _mark_of(bucket, name, data)


def swap(bucket: Bucket, name: str, data: bytes, mark: str, seconds: float | None = None) -> str | None:
    """Replace a small file that is the one with `mark`; its new mark, or None where it was not. `seconds` as of `faults.patiently`."""
    there = connected(bucket.address)
    try:
        if there.conditional:
            told = there.asked(lambda: there.files.pipe_file(there.at(name), data, IfMatch=mark), seconds)
            return str(told["ETag"])
        now = look(bucket, name)
        if now is None or now[1] != mark:
            return None
        there.asked(lambda: there.files.pipe_file(there.at(name), data), seconds)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not unmet(error):
            raise
    return _mark_of(bucket, name, data)


def _mark_of(bucket: Bucket, name: str, data: bytes) -> str | None:
    """The mark of what is there, where that is `data`."""
    found = look(bucket, name)
    return found[1] if found is not None and found[0] == data else None


def _mark(bucket: Bucket, name: str) -> str:
    there = connected(bucket.address)
    told = there.asked(lambda: there.files.info(there.at(name)))
    return str(told["ETag"]) if there.conditional else ""
