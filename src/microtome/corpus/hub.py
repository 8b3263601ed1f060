"""Data sets of the Hugging Face hub, streamed: `hf:NAME[:config][:split]`.

The only importer of `datasets`, which is an extra. Local tables belong in `tabular`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from microtome.core import Refusal
from microtome.corpus.documents import Document, Reading, Unusable, choose_label
from microtome.corpus.tabular import from_records

__all__ = ["HubName", "hub_documents"]

_SPLITS: Final = re.compile(r"train|test|validation|valid|dev|eval|unsupervised")


@dataclass(frozen=True)
class HubName:
    """What to stream: a data set, its configuration (None: its only one) and its split.

    A single part after the name is the split where it is a usual split's name, and else the configuration.

    >>> HubName.parse("hf:wikitext:wikitext-2-raw-v1:test")
    HubName(name='wikitext', config='wikitext-2-raw-v1', split='test')
    >>> HubName.parse("hf:imdb").split
    'train'
    """

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Read `hf:NAME[:config][:split]`; anything else is refused."""
        name, *rest = text.removeprefix("hf:").split(":")
        if not name or len(rest) > 2 or not all(rest):
            raise Refusal(
                f"data set {text!r}", why="not of the form hf:NAME[:config][:split]", instead="write for example hf:imdb:train"
            )
        if len(rest) == 2:
            return cls(name, rest[0], rest[1])
        if rest and _SPLITS.fullmatch(rest[0]):
            return cls(name, None, rest[0])
        return cls(name, rest[0] if rest else None)


def hub_documents(source: str, reading: Reading) -> Iterator[Document]:
    """Rows of a data set of the hub, as they stream in; nothing is downloaded ahead.

    Errors: `Refusal` without the extra, for a data set that cannot be opened, or without a text column.
    """
    wanted = HubName.parse(source)
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Refusal(
            source, why="reading data sets of the hub needs the package datasets", instead="pip install 'microtome[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(
            source, why=f"the data set cannot be opened: {first}", instead="check name, configuration, split and connection"
        ) from error
    yield from from_records(_records(rows, wanted, reading), source, reading)


def _records(rows: Any, wanted: HubName, reading: Reading) -> Iterator[tuple[str, Mapping[str, Any] | Unusable]]:
    """Rows under their number, class labels by name where the data set knows the names."""
    features = rows.features or {}
    label = choose_label(list(features), reading.label_column, wanted.name) if features else None
    names = getattr(features[label], "names", None) if label is not None else None
    for number, row in enumerate(rows, start=1):
        if names is not None and isinstance(row[label], int) and 0 <= row[label] < len(names):
            row = {**row, label: names[row[label]]}
        yield f"{wanted.name}:{number}", row
