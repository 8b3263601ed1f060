"""An autoencoder as the files of other tools have it: weights and biases in the model's own units, and no scaling beside them.

A dictionary becomes one at each of its sites, and one becomes a dictionary; both keep codes and what is made of them. Which tensors stand for
it in a file, and what a place is called there, belongs in the modules of formats. Additional axes: `d_read` and `d_written` count the numbers of
a state that is read and of one that is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary, Encoder, Largest
from microtome.factors.scaling import Scaling

__all__ = ["Folded", "Told", "dictionary_of", "folded_at", "unit_lengths"]

Told = Mapping[str, str | int | float]

_SAME: Final = 1e-5
"""Lengths whose ratio is that near to 1 are the same: as near as float32 keeps them while a dictionary is trained."""


@dataclass(frozen=True, eq=False)
class Folded:
    """Codes of a state x are what `rule` keeps of (x - centre) W + b, and codes Phi + offset + x S is made of them; S is None for 0."""

    weights: Float[Tensor, "d_read unit"]
    bias: Float[Tensor, " unit"]
    rule: Above | Largest
    directions: Float[Tensor, "unit d_written"]
    offset: Float[Tensor, " d_written"]
    centre: Float[Tensor, " d_read"]
    skip: Float[Tensor, "d_read d_written"] | None = None

    @property
    def lengths(self) -> Float[Tensor, " unit"]:
        """Of directions; 1 for those that are 0, which nothing can be divided by."""
        lengths = self.directions.norm(dim=1)
        return torch.where(lengths > 0, lengths, 1)

    def centred(self, centre: Float[Tensor, " d_read"]) -> "Folded":
        """The same with another centre: the difference goes into the bias."""
        shift = (centre.double() - self.centre.double()) @ self.weights.double()
        return replace(self, centre=centre, bias=self.bias.double() + shift)

    def stretched(self, by: Float[Tensor, " unit"]) -> "Folded":
        """Codes are longer `by` that much and directions shorter; where a number of codes is kept, these may be others than before."""
        rule = Above(self.rule.threshold * by) if isinstance(self.rule, Above) else self.rule
        return replace(
            self, weights=self.weights * by, bias=self.bias * by, rule=rule, directions=self.directions / by[:, None]
        )


def unit_lengths(folded: Folded) -> tuple[Folded, float, Told]:
    """Directions of length 1 as far as codes allow it: the autoencoder, by what all its directions were divided, and what was done to codes.

    Where all lengths are the same, that length becomes the size by which states are divided, and codes stay as they are. Where they differ, it
    goes into the codes; but not where the k largest are kept, of which others would be the largest.
    """
    lengths = folded.lengths
    live = folded.directions.norm(dim=1) > 0
    common = float(lengths[live].mean()) if bool(live.any()) else 1.0
    if bool(((lengths[live] / common - 1).abs() <= _SAME).all()):
        size = 1.0 if abs(common - 1) <= _SAME else common
        return replace(folded, directions=folded.directions / size), size, {}
    if isinstance(folded.rule, Largest):
        return folded, 1.0, {"lengths": "directions keep their lengths: codes of other lengths would be others of the largest"}
    return folded.stretched(lengths), 1.0, {"lengths": "codes are those of the files, times the length of the direction there"}


def dictionary_of(folded: Folded, name: str, reads: Site, writes: Site | None, learnt: Told, model: str) -> Dictionary:
    """The dictionary with the same codes and the same reconstructions; `writes` makes it a transcoder.

    Codes are scaled where directions differ in length, so that these are 1; `learnt` says so under `lengths`.
    """
    straight, size, done = unit_lengths(folded)
    centre, offset = straight.centre, straight.offset
    shared = writes is None
    inner = size if shared else 1.0  # a transcoder's states are as they are, and only what it writes is divided
    made = offset - centre if shared else offset
    skip = straight.skip
    if skip is not None:
        made = made + centre @ skip
    return Dictionary(
        name=name,
        arrangement="shared" if shared else "transcoder",
        reads=(reads,),
        writes=(reads if writes is None else writes,),
        coder=Encoder((straight.weights * inner)[None], straight.bias, straight.rule),
        scaling=Scaling(centre[None], torch.tensor([inner])),
        directions=straight.directions[None],
        offset=(made / size)[None],
        target_scaling=None if shared else Scaling(torch.zeros_like(offset)[None], torch.tensor([size])),
        skip=None if skip is None else skip / size,
        model=model,
        learnt={**learnt, **done},
    )


def folded_at(dictionary: Dictionary, site: Site) -> Folded:
    """What a dictionary is at one of its sites, in float64: the same codes of states that are not scaled.

    Errors: `Refusal` where codes are searched for, or are of several sites at once: no other tool has such files.
    """
    coder = dictionary.coder
    if not isinstance(coder, Encoder):
        why = "its codes are searched for, and files of other tools have an encoder"
        raise Refusal(f"dictionary {dictionary.name}", why=why, instead="save it as microtome's own file")
    if dictionary.arrangement == "crosscoder":
        why = "it has one code for several sites, and files of other tools are of one site"
        raise Refusal(f"dictionary {dictionary.name}", why=why, instead="save it as microtome's own file")
    if dictionary.skip is not None and dictionary.arrangement != "transcoder":
        why = "it has a linear part without being a transcoder"
        raise Refusal(f"dictionary {dictionary.name}", why=why, instead="save it as microtome's own file")
    place = dictionary.place(site)
    read = dictionary.scaling.at(place)
    written = dictionary.target_scaling or read
    centre, size = _wide(read.centre[0]), _wide(read.size[0])
    other, scale = _wide(written.centre[0]), _wide(written.size[0])
    offset = _wide(dictionary.offset[0]) * scale + other
    skip = None if dictionary.skip is None else _wide(dictionary.skip) * (scale / size)
    return Folded(
        weights=_wide(coder.weights[0]) / size,
        bias=_wide(coder.bias),
        rule=Above(_wide(coder.rule.threshold)) if isinstance(coder.rule, Above) else coder.rule,
        directions=_wide(dictionary.directions[0]) * scale,
        offset=offset if skip is None else offset - centre @ skip,
        centre=centre,
        skip=skip,
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
