"""A resource: something that the page is told, on a server by a path and parameters, in an export by a file.

Which resources there are is said in `resources`, how they are served in `app`, how they are written out in `export`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel

from microtome.web.reader import View

__all__ = ["Answer", "Nothing", "Resource", "file_of", "once"]

P = TypeVar("P", bound=BaseModel)
Answer = BaseModel | Sequence[BaseModel]
_OTHER: Final = re.compile(r"[^A-Za-z0-9.-]")


class Nothing(BaseModel):
    """The parameters of what is asked for without any."""


@dataclass(frozen=True)
class Resource(Generic[P]):
    """What the page is told at GET /api/`path` and in an export: a record, or a list of them, made of a run and parameters.

    An export has a file for each of `keys`, or what the answer is made of in shards; None: only a server answers. What `shows` says is
    in it: an export without its text leaves out what shows the text itself.
    """

    path: str
    parameters: type[P]
    record: Any
    read: Callable[[View, P], Answer]
    keys: Callable[[View], Iterable[P]] | Literal["shards"] | None = None
    shows: Literal["numbers", "text"] = "numbers"


def once(view: View) -> list[Nothing]:
    """The keys of what has no parameters: one."""
    return [Nothing()]


def file_of(path: str, asked: BaseModel) -> str:
    """The file of an export that answers a resource: `path`, or `path`/key, where key is the parameters in order with "_" between.

    >>> file_of("layers", Nothing())
    'layers.json.gz'
    """
    values = ["" if value is None else str(value) for value in dict(asked).values()]
    key = "_".join(_OTHER.sub("-", value) for value in values)
    return f"{path}/{key}.json.gz" if values else f"{path}.json.gz"
