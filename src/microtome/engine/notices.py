"""What workers log and warn of: it travels with their answers, and whoever reads those says it again, once.

Nobody sees what a process of its own writes, on another machine least of all. Orders and answers belong in `worker`.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Notice", "Notices", "noticed"]

_LOGGER = "microtome"


@dataclass(frozen=True)
class Notice:
    """Something that was logged, or, with a `category`, that was warned of: by the logger or file `name`, at a level or line."""

    name: str
    number: int
    message: str
    category: type[Warning] | None = None


class _Recorder(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.notices: list[Notice] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notices.append(Notice(record.name, record.levelno, record.getMessage()))


@contextlib.contextmanager
def noticed() -> Iterator[list[Notice]]:
    """What is logged and warned of within the block, in this process: complete when it ends, each sentence once."""
    recorder, found = _Recorder(), list[Notice]()
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(recorder)
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield found
    finally:
        logger.removeHandler(recorder)
    warnings_ = [Notice(each.filename, each.lineno, str(each.message), _known(each.category)) for each in warned]
    found += dict.fromkeys([*recorder.notices, *warnings_])


def _known(category: type[Warning]) -> type[Warning]:
    """The category, or the nearest one above it that every interpreter has: this one may be of a library that the reader lacks."""
    return next(each for each in category.__mro__ if each.__module__ == "builtins")


@dataclass(eq=False)
class Notices:
    """Says what workers have noticed. Memory: the sentences that were said."""

    _said: set[tuple[str, str]] = field(default_factory=set)

    def say(self, worker: int, notices: Iterable[Notice]) -> None:
        """Log, or warn of, what no worker has noticed before, with the worker's number."""
        for each in notices:
            if (each.name, each.message) in self._said:
                continue
            self._said.add((each.name, each.message))
            sentence = f"worker {worker}: {each.message}"
            if each.category is None:
                logging.getLogger(each.name).log(each.number, "%s", sentence)
            else:
                warnings.warn_explicit(sentence, each.category, each.name, each.number)
