"""The fixed binary merge tree over work units.

Node (level, index) covers units index * 2^level up to the next. Which states are merged with which depends on the number of
units alone, never on who finished first: that, with fixed units, is what makes results the same to the byte for any order
of work, number of workers and restarts.
"""

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Node", "root", "settled"]

_NAME: Final = re.compile(r"\d{2}-\d{8,}")


@dataclass(frozen=True, order=True)
class Node:
    """A subtree: the units from `index * 2**level` up to, not including, the next node of its level."""

    level: int
    index: int

    @property
    def parent(self) -> "Node":
        """The node this one merges into."""
        return Node(self.level + 1, self.index // 2)

    @property
    def sibling(self) -> "Node":
        """The other half of the parent."""
        return Node(self.level, self.index ^ 1)

    def units(self, total: int) -> range:
        """The units this node covers, out of `total`."""
        return range(min(self.index << self.level, total), min((self.index + 1) << self.level, total))

    def __str__(self) -> str:
        return f"{self.level:02d}-{self.index:08d}"

    @classmethod
    def names(cls, text: str) -> bool:
        """Whether `text` is what `str` gives of a node."""
        return _NAME.fullmatch(text) is not None

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read what `str` gives."""
        level, index = text.split("-")
        return cls(int(level), int(index))


def root(total: int) -> Node:
    """The node that covers all of `total` units.

    >>> root(5)
    Node(level=3, index=0)
    """
    return Node((total - 1).bit_length(), 0)


def settled(node: Node, total: int) -> Node:
    """The largest node of the same units: the first at or above `node` whose sibling holds any, or the root.

    >>> settled(Node(0, 4), 5)
    Node(level=2, index=1)
    """
    while node.level < root(total).level and not node.sibling.units(total):
        node = node.parent
    return node
