"""Sizes and layout of a transformer, read from its configuration.

A `Shape` says what a lens needs to know before any tensor is touched: how many of everything, and how a block is put
together. Where the tensors are belongs in `model.families`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

__all__ = ["Dims", "Head", "NormLayout", "Patches", "Shape", "shape_of"]

NormLayout = Literal["pre", "post", "sandwich", "parallel"]
Head = Literal["causal", "masked", "labels", "none"]
Dims = Mapping[str, Callable[[Any], Any]]
"""How a family's configuration spells a size, where it differs from the common names."""


@dataclass(frozen=True)
class Patches:
    """How a picture becomes tokens: `before` special ones (class token, registers), then patches of height x width, row by row.

    `rows` and `columns` are those of the pictures that the model has positions for; of other pictures it interpolates them where
    it `stretches`, and refuses them where not.
    """

    height: int
    width: int
    rows: int
    columns: int
    before: int
    stretches: bool


@dataclass(frozen=True)
class Shape:
    """How many of everything there is, and how a block is put together.

    `norm` is where norms sit: `pre` before each branch, `post` after each residual addition, `sandwich` after each branch (and
    before it, where the model has that too), `parallel` once for an attention and an MLP that read the same stream. `context`
    is the largest number of tokens, None where nothing limits it. `experts` is 0 for a dense model. `head` says what the model
    predicts: the next token, a masked token, labels of its own, or nothing. `patches` is None for a model that reads text.
    """

    layers: int
    d_model: int
    heads: int
    heads_kv: int
    d_head: int
    d_mlp: int
    vocab: int
    context: int | None
    experts: int
    gated: bool
    norm: NormLayout
    causal: bool
    head: Head
    rotary: bool
    learned_positions: bool
    patches: Patches | None = None


def _d_head(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


_COMMON: Dims = {
    "layers": lambda config: config.num_hidden_layers,
    "d_model": lambda config: config.hidden_size,
    "heads": lambda config: config.num_attention_heads,
    "heads_kv": lambda config: getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    "d_head": _d_head,
    "d_mlp": lambda config: config.intermediate_size,
    "vocab": lambda config: config.vocab_size,
    "context": lambda config: config.max_position_embeddings,
    "experts": lambda config: 0,
    "patches": lambda config: None,
}


def shape_of(config: Any, dims: Dims, **layout: Any) -> Shape:
    """The shape of a configuration: common spellings, then those of the family (`dims`), then its layout."""
    counted = {name: read(config) for name, read in {**_COMMON, **dims}.items()}
    values = {**layout, **counted}
    return Shape(**{field.name: values[field.name] for field in fields(Shape)})
