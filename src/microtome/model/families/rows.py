"""What a family row is made of: taps, recipes, weight sources, norms, heads.

Everything that microtome knows of an architecture is a `Family`: a value, built from `Part`s that several families share.
Paths are relative to the block for sites and weights of a layer, to the trunk (the model without head) for those of the model,
and to the whole model where they begin with a slash. Running a row belongs in `model.observe` and `model.weights`; the rows
themselves are in the other modules of this package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from microtome.model.shape import Dims, Shape, shape_of
from microtome.model.shape import Head as HeadKind

__all__ = [
    "LABELS",
    "Facts",
    "Family",
    "Head",
    "NormRow",
    "Part",
    "Place",
    "Recipe",
    "Side",
    "Source",
    "Tap",
    "Variant",
    "WeightRow",
    "as_is",
    "source",
    "taken",
]


Side = Literal["in", "out", "expert"]


@dataclass(frozen=True)
class Tap:
    """A tensor on its way into or out of a module.

    `select` is the argument's position or keyword on the way in, the item of a tuple (or the key of an output record) on the
    way out; what a module returns as a plain tensor is its item 0.
    """

    module: str
    side: Side
    select: int | str = 0


@dataclass(frozen=True)
class Facts:
    """What a computed site may look at besides its taps: the sizes, the block's own modules, the batch's extent."""

    shape: Shape
    config: Any
    block: nn.Module
    layer: int | None
    windows: int
    tokens: int

    def at(self, path: str) -> Any:
        """The module at `path` inside the block (inside the trunk for sites of the model)."""
        return self.block.get_submodule(path)


def as_is(facts: Facts, value: Any) -> Any:
    """The tapped tensor itself, or the rows of experts."""
    return value


@dataclass(frozen=True)
class Recipe:
    """How a site is had: what to tap, and a function of the facts and the tapped tensors, called when the last is there."""

    taps: tuple[Tap, ...]
    compute: Callable[..., Any] = as_is


def taken(module: str, side: Side, select: int | str = 0, compute: Callable[..., Any] = as_is) -> Recipe:
    """The recipe of a site that is one tapped tensor."""
    return Recipe((Tap(module, side, select),), compute)


@dataclass(frozen=True)
class Source:
    """One way to have a weight: the tensors it is made of, and the view of them in the row-vector convention.

    `{e}` in a name stands for each expert in turn.
    """

    names: tuple[str, ...]
    view: Callable[..., Tensor]


@dataclass(frozen=True)
class WeightRow:
    """A weight: its sources, of which the first whose tensors all exist counts."""

    sources: tuple[Source, ...]


def source(view: Callable[..., Tensor], *names: str) -> WeightRow:
    """The row of a weight that is made of the tensors `names` together."""
    return WeightRow((Source(names, view),))


@dataclass(frozen=True)
class NormRow:
    """A norm: its module, kind, epsilon (a number, or the configuration's name for it), and what is added to its gain."""

    module: str
    kind: Literal["rms", "layer"]
    eps: float | str
    plus: float = 0.0


@dataclass(frozen=True)
class Head:
    """What turns `final_norm` into `logits`: its kind, the function, its weights, and the output's name for the logits.

    `transform` is True where a dense layer and a nonlinearity stand between the stream and W_U, so that W_U alone does not
    give logits.
    """

    kind: HeadKind
    apply: Callable[[nn.Module, Tensor], Tensor]
    weights: Mapping[str, WeightRow] = field(default_factory=dict)
    output: str = "logits"
    transform: bool = False


LABELS = Head("labels", lambda module, value: module(value))
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification", "ForMultipleChoice")


@dataclass(frozen=True)
class Place:
    """Where a layer is: its block's path in the trunk, and which call of that block it is (shared blocks run often)."""

    block: str
    call: int = 0


@dataclass(frozen=True)
class Part:
    """Sites, absent sites, weights and norms that belong together, shared between families."""

    sites: Mapping[str, Recipe] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, WeightRow] = field(default_factory=dict)
    norms: Mapping[str, NormRow] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    """Norms of earlier parts that a variant does not have."""


@dataclass(frozen=True)
class Variant:
    """What is different about a family where its configuration says so."""

    when: Callable[[Any], bool]
    parts: tuple[Part, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    final: tuple[str, ...] | None = None


def _numbered(block: str) -> Callable[[Any, int], Place]:
    return lambda config, layer: Place(block.replace("{i}", str(layer)))


@dataclass(frozen=True, eq=False)
class Family:
    """An architecture: where every tensor and every weight is, or why it is not there.

    `prefix` is the trunk's name inside a model with a head. `layout` are the fields of `Shape` that are facts of the family.
    `final` are the trunk's modules that turn the last `resid_post` into `final_norm`, in order. `disk` are replacements (pattern,
    text) that turn the built model's parameter names into those in checkpoints. `inputs` is what the model reads.
    """

    name: str
    prefix: str
    block: str
    parts: tuple[Part, ...]
    layout: Mapping[str, Any]
    heads: Mapping[str, Head]
    final: tuple[str, ...] = ()
    dims: Dims = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    disk: tuple[tuple[str, str], ...] = ()
    inputs: Literal["text", "image"] = "text"
    place: Callable[[Any, int], Place] | None = None

    def of(self, config: Any) -> "Family":
        """This row with the variants that `config` selects applied."""
        row = self
        for variant in self.variants:
            if variant.when(config):
                row = replace(
                    row,
                    parts=row.parts + variant.parts,
                    layout={**row.layout, **variant.layout},
                    final=row.final if variant.final is None else variant.final,
                )
        return replace(row, variants=())

    @cached_property
    def sites(self) -> Mapping[str, Recipe]:
        """Recipes by site name; a later part overrides an earlier one."""
        found: dict[str, Recipe] = {}
        for part in self.parts:
            found = {name: recipe for name, recipe in {**found, **part.sites}.items() if name not in part.absent}
        return found

    @cached_property
    def absent(self) -> Mapping[str, str]:
        """Why sites and weights are absent, by name."""
        found: dict[str, str] = {}
        for part in self.parts:
            here = part.sites.keys() | part.weights.keys()
            found = {name: why for name, why in {**found, **part.absent}.items() if name not in here}
        return found

    @cached_property
    def weights(self) -> Mapping[str, WeightRow]:
        """Weight rows by name, heads aside."""
        found: dict[str, WeightRow] = {}
        for part in self.parts:
            found = {name: row for name, row in {**found, **part.weights}.items() if name not in part.absent}
        return found

    @cached_property
    def norms(self) -> Mapping[str, NormRow]:
        """Norm rows by name."""
        found: dict[str, NormRow] = {}
        for part in self.parts:
            found = {name: row for name, row in found.items() if name not in part.without} | dict(part.norms)
        return found

    def at(self, config: Any, layer: int) -> Place:
        """Where layer `layer` is."""
        return (self.place or _numbered(self.block))(config, layer)

    def head(self, class_name: str) -> Head | None:
        """The head of a model class of this family, by the longest matching end of the class name.

        A classifier's head gives labels; None for a bare trunk and for classes whose output has no logits.
        """
        ends = [end for end in self.heads if class_name.endswith(end)]
        if ends:
            return self.heads[max(ends, key=len)]
        return LABELS if class_name.endswith(_CLASSIFIERS) else None

    def shape(self, config: Any, head: HeadKind) -> Shape:
        """The shape of a configuration of this family."""
        return shape_of(
            config, self.dims, **{"gated": False, "rotary": False, "learned_positions": False, **self.layout}, head=head
        )
