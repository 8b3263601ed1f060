"""Errors of object storage: those that pass are waited for, the others are told as refusals.

Every protocol has errors of its own; they are known here by what they say of themselves, so that no package of a protocol is
imported. What is asked of storage belongs in `buckets`.
"""

import errno
import random
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from microtome.core import Interrupted, Refusal

__all__ = ["Unreachable", "patiently"]

PATIENCE: float = 60.0
"""Seconds for which errors that pass are waited for."""

_LONGEST_PAUSE: Final = 8.0

_PASSING_ERRNO: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # what s3fs makes of "slow down" and "service unavailable"
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.EREMOTEIO,  # and of "internal error"
        errno.ETIMEDOUT,
    }
)

_PASSING_NAMES: Final = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "ResponseParserError",
    }
)
"""Classes of botocore, aiohttp and urllib3, or what theirs are derived from, that mean a connection failed."""

_PASSING_STATUS: Final = frozenset({408, 425, 429})

_PASSING_CODES: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown"})

_EXTRAS: Final = {"s3": "microtome[s3]", "s3a": "microtome[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""What is to be installed for a protocol."""

T = TypeVar("T")


class Unreachable(Interrupted):
    """An address cannot be used now; what is finished stays there, so that the same command continues it."""


def patiently(address: str, call: Callable[[], T], seconds: float | None = None) -> T:
    """What `call` gives; it is called again, after a growing pause, while its error is one that passes.

    Those are connections that fail or break, time-outs, the statuses 408, 425, 429 and 500 up, and requests that met another one. `seconds` is for how long: a
    minute unless told. Errors: `Unreachable` after that; `Refusal` for others, but `FileNotFoundError` of a file, `FileExistsError`
    and what failed for reasons of our own are left as they are.
    """
    began, pause = time.monotonic(), 0.1
    allowed = PATIENCE if seconds is None else seconds
    while True:
        try:
            return call()
        except Refusal:
            raise
        except Exception as error:
            left = allowed - (time.monotonic() - began)
            if not _passes(error):
                refusal = _refusal(address, error)
                if refusal is None:
                    raise
                raise refusal from error
            if left <= 0:
                raise _unreachable(address, error) from error
        time.sleep(min(pause * (0.5 + random.random()), left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was made of."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__
    return found


def _said(error: BaseException) -> tuple[str, int]:
    """Code and HTTP status of an answer that an error was made of; an empty one and 0 where there was none."""
    for each in _chain(error):
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        code = getattr(each, "code", None) or getattr(each, "status", None)
        if str(code).isdigit():  # gcsfs has a number or its digits
            return "", int(str(code))
    return "", 0


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _passes(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    if not _PASSING_NAMES.isdisjoint(_names(error)):  # before any status: that of an answer that broke off says nothing
        return True
    code, status = _said(error)
    if status:
        return status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def _unreachable(address: str, error: BaseException) -> Unreachable:
    return Unreachable(
        address,
        why=f"it cannot be reached: {_text(error)}",
        instead="check the network and the endpoint, and run the same command again: finished work is kept",
    )


def _refusal(address: str, error: BaseException) -> Refusal | None:
    """What an error that does not pass amounts to; None where it is about a single file, or a fault of our own."""
    protocol = address.split("://")[0]
    code, status = _said(error)
    names = _names(error)
    if isinstance(error, ImportError):
        package = _EXTRAS.get(protocol)
        return Refusal(
            address,
            why=f"what reads {protocol}:// is not installed",
            instead=f"run: pip install '{package}'" if package else f"install what fsspec asks for: {error}",
        )
    if code == "NoSuchBucket":
        return Refusal(address, why="there is no such bucket", instead="make the bucket, or name one that is there")
    if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}:
        return Refusal(
            address,
            why=f"there are no credentials for {protocol}:// ({_text(error)})",
            instead="set those of the protocol, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return Refusal(
            address,
            why=f"it may not be used with these credentials: {_text(error)}",
            instead="check the credentials, and that they may list, read, write and delete there",
        )
    if isinstance(error, FileNotFoundError | FileExistsError) or status in (404, 409, 412):
        return None
    if isinstance(error, OSError | ValueError) or status or "BotoCoreError" in names:
        return Refusal(address, why=_text(error), instead="check the address, the endpoint and the credentials")
    return None


def _text(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
