"""Weights of any family in one convention (row vectors: x @ W), from the built model or from its files.

The same rows and the same views serve both: only how a named tensor is fetched differs. Nothing is copied where a view will do,
and from files nothing is read but the pages that are touched. What a weight means for a lens belongs in the lens.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Refusal
from microtome.model.families import Family, Head, WeightRow
from microtome.model.shape import Shape

__all__ = ["Fetch", "Norm", "Weights", "built_tensors", "stored_tensors"]

Fetch = Callable[[str], Tensor | None]
"""Gives the tensor of a parameter by the built model's name, relative to the trunk (or to the model, after a slash), or None."""

OF_MODEL: Final = frozenset({"W_E", "W_pos", "W_type", "W_U", "b_U", "final_norm", "embed_norm"})
"""Weights and norms that exist once; all others exist once per layer."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm: x / rms(x) * gain, or (x - mean(x)) / std(x) * gain + bias. Gemma's 1 + w is already in `gain`."""

    kind: Literal["rms", "layer"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float


@dataclass(frozen=True, eq=False)
class Weights:
    """All weights of a model by name and layer.

    Names: W_E (vocab d_model), W_pos (position d_model), W_U (d_model vocab), b_U; per layer W_Q (head d_model d_head), W_K and W_V
    (head_kv d_model d_head), W_O (head d_head d_model), b_Q, b_K, b_V (head d_head), b_O (d_model), W_in, W_gate, W_up
    (d_model unit), W_out (unit d_model), b_in, b_gate, b_up, b_out, router (d_model expert); in a mixture of experts the MLP's
    have a leading expert axis. Dtype and device are those of the source.
    """

    family: Family
    shape: Shape
    config: Any
    head: Head | None
    fetch: Fetch

    def has(self, name: str, layer: int | None = None) -> bool:
        """Whether the model has this weight or norm; a linear layer without bias has no b_..."""
        if name in self.family.norms:
            return self._gain(name, layer) is not None
        row = self._rows.get(name)
        return row is not None and any(all(self._present(part, name, layer) for part in way.names) for way in row.sources)

    def get(self, name: str, layer: int | None = None) -> Tensor:
        """A weight in the row-vector convention; one that the model does not have is refused.

        Cost: none for a plain weight (a view), the size of the weight where parts must be put together.
        """
        row = self._rows.get(name)
        found = None if row is None else self._found(row, name, layer)
        if found is None:
            raise Refusal(
                f"weight {_address(name, layer)} of {self.family.name}",
                why=self._why_not(name),
                instead=f"use one of {', '.join(self.names(layer))}",
            )
        view, tensors = found
        return view(self.shape, *tensors)

    def norm(self, name: str, layer: int | None = None) -> Norm:
        """A norm's kind, gain, bias and epsilon, by name: attn_norm, attn_norm_post, mlp_norm, mlp_norm_post, final_norm, ..."""
        gain = self._gain(name, layer) if name in self.family.norms else None
        if gain is None:
            raise Refusal(
                f"norm {_address(name, layer)} of {self.family.name}",
                why="the model has no such norm",
                instead=f"use one of {', '.join(n for n in self.family.norms if self.has(n, None if n in OF_MODEL else layer or 0))}",
            )
        row = self.family.norms[name]
        eps = float(getattr(self.config, row.eps)) if isinstance(row.eps, str) else row.eps
        bias = None if row.kind == "rms" else self.fetch(self._path(f"{row.module}.bias", name, layer))
        return Norm(row.kind, gain.float() + row.plus if row.plus else gain, bias, eps)

    def names(self, layer: int | None = None) -> tuple[str, ...]:
        """The weights there are, once per model (`layer` None) or in a layer."""
        return tuple(name for name in self._rows if (name in OF_MODEL) == (layer is None) and self.has(name, layer))

    @cached_property
    def _rows(self) -> Mapping[str, WeightRow]:
        rows = {**self.family.weights, **(self.head.weights if self.head else {})}
        return {name: row for name, row in rows.items() if name not in self.family.absent}

    def _why_not(self, name: str) -> str:
        if name in ("W_U", "b_U") and self.head is None:
            return "the model was opened without a head"
        default = (
            "the model has no such weight" if name in self._rows else f"{self.family.name} models have no weight of this name"
        )
        return self.family.absent.get(name, default)

    def _gain(self, name: str, layer: int | None) -> Tensor | None:
        return self.fetch(self._path(f"{self.family.norms[name].module}.weight", name, layer))

    def _path(self, path: str, name: str, layer: int | None) -> str:
        """The parameter's name in the trunk; refuses a layer too many or too few."""
        if name in OF_MODEL:
            if layer is not None:
                raise Refusal(f"weight {_address(name, layer)}", why="it exists once per model", instead=f"ask for {name}")
            return path
        if layer is None or not 0 <= layer < self.shape.layers:
            raise Refusal(
                f"weight {_address(name, layer)}",
                why="it exists once per layer",
                instead=f"name a layer below {self.shape.layers}",
            )
        return f"{self.family.at(self.config, layer).block}.{path}"

    def _found(self, row: WeightRow, name: str, layer: int | None) -> tuple[Callable[..., Tensor], list[Tensor]] | None:
        for way in row.sources:
            tensors = [self._tensor(part, name, layer) for part in way.names]
            present = [tensor for tensor in tensors if tensor is not None]
            if len(present) == len(tensors):
                return way.view, present
        return None

    def _present(self, part: str, name: str, layer: int | None) -> bool:
        """Whether a stored tensor is there, of experts each; nothing is put together."""
        paths = self._paths(part, name, layer)
        return bool(paths) and all(self.fetch(path) is not None for path in paths)

    def _tensor(self, part: str, name: str, layer: int | None) -> Tensor | None:
        paths = self._paths(part, name, layer)
        found = [tensor for path in paths if (tensor := self.fetch(path)) is not None]
        if not found or len(found) < len(paths):
            return None
        return torch.stack(found) if "{e}" in part else found[0]

    def _paths(self, part: str, name: str, layer: int | None) -> list[str]:
        """The parameter's name, or where experts are stored one by one theirs."""
        path = part if part.startswith("/") else self._path(part, name, layer)
        return [path.replace("{e}", str(expert)) for expert in range(self.shape.experts)] if "{e}" in path else [path]


def _address(name: str, layer: int | None) -> str:
    return name if layer is None else f"{name}.{layer}"


def built_tensors(module: nn.Module, prefix: str) -> Fetch:
    """Fetches from a built model whose trunk is called `prefix` ('' where the model is a bare trunk)."""
    named = dict(module.named_parameters(remove_duplicate=False))

    def fetch(name: str) -> Tensor | None:
        found = named.get(name[1:] if name.startswith("/") else f"{prefix}{name}")
        return None if found is None else found.detach()

    return fetch


def stored_tensors(tensors: Mapping[str, Tensor], family: Family) -> Fetch:
    """Fetches from a checkpoint's tensors by their names on disk (`disk.DiskTensors`: by memory map, whatever the shards)."""

    def fetch(name: str) -> Tensor | None:
        spelling = next((each for each in _spellings(name, family) if each in tensors), None)
        return None if spelling is None else tensors[spelling]

    return fetch


def _spellings(name: str, family: Family) -> Iterator[str]:
    """How checkpoints may call a parameter: with or without the trunk's name, by today's names or by those of the family's past."""
    bare = [name[1:]] if name.startswith("/") else [f"{family.prefix}.{name}", name]
    for spelling in bare:
        yield spelling
    for spelling in bare:
        for pattern, text in family.disk:
            spelling = re.sub(pattern, text, spelling)
        yield spelling
