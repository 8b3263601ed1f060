"""Vectors with labels, and who may be judged on what: the two halves of the documents.

What a case is, a word, a token or a text, is the business of who makes them (`words`); methods see rows.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Half, Refusal

__all__ = ["Cases", "require_classes"]


@dataclass(frozen=True, eq=False)
class Cases:
    """Vectors `x` with labels `y`, indices into `classes`. Probes learn from the discover half and are judged on the confirm half.

    `kind` numbers what a control task gives its random labels to: the word that a row is a token of, say.
    Errors: `Refusal` for vectors that are not finite, a document in both halves, fewer than two classes, and a class with fewer than two
    examples to learn from or none to be judged on.
    """

    x: Float[Tensor, "row unit"]
    y: Int[Tensor, " row"]
    classes: tuple[str, ...]
    document: Int[Tensor, " row"]
    half: Int[Tensor, " row"]
    kind: Int[Tensor, " row"]

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.x.sum(dtype=torch.float64))):
            raise Refusal("labelled cases", why="an activation is not finite", instead="leave such rows out")
        sides = [set(self.document[self.half == side].tolist()) for side in Half]
        if shared := sides[0] & sides[1]:
            raise Refusal(f"document {min(shared)}", why="it is in both halves", instead="split the halves by document")
        require_classes(self.y[self.half == Half.DISCOVER], self.classes, 2, "to learn from, in the discover half")
        require_classes(self.y[self.half == Half.CONFIRM], self.classes, 1, "to be judged on, in the confirm half")

    @property
    def discover(self) -> tuple[Float[Tensor, "row unit"], Int[Tensor, " row"]]:
        """Vectors and labels to learn from."""
        mine = self.half == Half.DISCOVER
        return self.x[mine], self.y[mine]

    @property
    def confirm(self) -> tuple[Float[Tensor, "row unit"], Int[Tensor, " row"]]:
        """Vectors and labels to be judged on."""
        mine = self.half == Half.CONFIRM
        return self.x[mine], self.y[mine]

    @property
    def majority(self) -> float:
        """The accuracy, in the confirm half, of naming the discover half's commonest class."""
        y = self.y[self.half == Half.DISCOVER]
        return float((self.y[self.half == Half.CONFIRM] == torch.bincount(y).argmax()).double().mean())

    def standardised(self) -> "Cases":
        """Each unit less its mean and divided by its standard deviation, both of the discover half; a constant unit becomes 0.

        What a unit's scale is says nothing (it can be moved to the weights that it is written with), and 0 is then its mean.
        """
        mine = self.x[self.half == Half.DISCOVER]
        mean, deviation = mine.mean(0), mine.std(0)
        scale = torch.where(deviation > 0, deviation, torch.inf)
        return replace(self, x=(self.x - mean) / scale)

    def relabelled(self, y: Int[Tensor, " row"]) -> "Cases":
        """The same rows under other labels."""
        return replace(self, y=y)

    def only(self, units: Int[Tensor, " unit"]) -> "Cases":
        """The same rows, some units of them."""
        return replace(self, x=self.x[:, units])

    def against_rest(self, name: str) -> Bool[Tensor, " row"]:
        """Which rows are of the class `name`.

        Errors: `Refusal` for a class that there is not.
        """
        if name not in self.classes:
            raise Refusal(f"class {name!r}", why=f"there are {', '.join(self.classes)}", instead="name one of them")
        return self.y == self.classes.index(name)


def require_classes(y: Int[Tensor, " row"], classes: tuple[str, ...], fewest: int, what: str) -> None:
    """Refuse labels of fewer than two classes, and a class of fewer than `fewest` examples."""
    counts = torch.bincount(y, minlength=len(classes)).tolist()
    if len(classes) < 2:
        raise Refusal("labelled cases", why="there is one class only", instead="give labels that differ")
    for name, count in zip(classes, counts, strict=True):
        if count < fewest:
            why = f"it has {count} examples {what}, and {fewest} are needed"
            raise Refusal(f"class {name!r}", why=why, instead="leave the class out, merge it with another, or give more text")
