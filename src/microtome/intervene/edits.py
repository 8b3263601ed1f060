"""Edits are values: a site, what is done there, to which units and tokens. They hold while a `with` block lasts, and leave no trace.

An edit knows no module: where a site can be changed, and where not, is said by `model.edit`. What can be done is said in `changes`, which
tokens in `tokens`; what an edit does to the model's answers belongs in `effects`, changes of weights in `weights`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site, UnitAddress
from microtome.intervene.changes import Change, Chosen
from microtome.intervene.tokens import EVERY, Tokens
from microtome.model import Model
from microtome.model.edit import edit_hooks
from microtome.model.hooks import attached

__all__ = ["Edit", "edited", "edited_step", "unit_edit"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of the numbers at a site: of `units` (None: all; of heads' sites the axes head and d_head laid flat) at some tokens.

    Errors: `Refusal` for no unit, and for one that is named twice.
    """

    site: Site
    change: Change
    units: Sequence[int] | None = None
    tokens: Tokens = EVERY

    def __post_init__(self) -> None:
        if self.units is not None and (not len(self.units) or len(set(self.units)) < len(self.units)):
            why = "one is named twice" if len(self.units) else "none is named"
            raise Refusal(
                f"an edit of {len(self.units)} units at {self.site}", why=why, instead="name each once, or None for all"
            )


def unit_edit(model: Model, address: UnitAddress | str, change: Change, tokens: Tokens = EVERY) -> Edit:
    """The edit of one unit by its address: a neuron's activation, or what a head adds to the stream (its `z`, before W_O).

    Errors: `Refusal` for an address that the model does not have, and for units of other bases.
    """
    unit = UnitAddress.parse(address) if isinstance(address, str) else address
    shape = model.shape
    sites = {"neurons": ("mlp_act", shape.d_mlp, 1), "heads": ("z", shape.heads, shape.d_head)}
    if unit.basis not in sites:
        raise Refusal(f"an edit of {unit}", why="only neurons and heads have a site", instead="name neurons.0/0 or heads.0/0")
    if unit.part is not None or unit.sign is not None or unit.site is not None:
        why = "a unit is changed whole, and not an end, a part or what a site has of it"
        raise Refusal(f"an edit of {unit}", why=why, instead=f"name {UnitAddress(unit.basis, unit.index, layer=unit.layer)}")
    name, count, width = sites[unit.basis]
    whole = UnitAddress(unit.basis, unit.index, layer=unit.layer)
    if replace(unit, expert=None) != whole or unit.layer is None or unit.layer >= shape.layers or unit.index >= count:
        last = UnitAddress(unit.basis, count - 1, layer=shape.layers - 1)
        why = f"{unit.basis} of {model.name} are up to {last}"
        raise Refusal(f"an edit of {unit}", why=why, instead="name one of them")
    return Edit(Site(name, unit.layer), change, range(unit.index * width, (unit.index + 1) * width), tokens)


@contextmanager
def edited(model: Model, batch: Batch, edits: Iterable[Edit]) -> Iterator[None]:
    """Apply `edits` to every forward pass of `batch` inside the `with` block; those at one site one after the other.

    Observations inside the block see what was edited. Outside it, and with no edit, the logits are those of the bare model, bitwise:
    nothing but hooks is used, and weights are not touched.
    Errors: `Refusal` for sites that cannot be edited (see `model.edit_hooks`), and, in the pass, for units and tokens that are not there,
    and for a change that makes NaN or infinity.
    """
    with edited_step(model, batch, batch, edits, generated=None):
        yield


@contextmanager
def edited_step(model: Model, batch: Batch, step: Batch, edits: Iterable[Edit], generated: int | None) -> Iterator[None]:
    """The same where a pass reads only the last columns of a batch, `step`, and remembers the others.

    Places are those in the whole batch, of which the model has written the last `generated` columns itself; None where it writes none.
    """
    by_site: dict[Site, list[Edit]] = {}
    for edit in edits:
        by_site.setdefault(edit.site, []).append(edit)
    changes = {site: _in_turn(each, batch, generated) for site, each in by_site.items()}
    with attached(edit_hooks(model, step, changes)):
        yield


def _in_turn(edits: Sequence[Edit], batch: Batch, generated: int | None) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        for edit in edits:
            value = _changed(edit, value, batch, generated)
        return value

    return change


def _changed(
    edit: Edit, value: Float[Tensor, "window token *any"], batch: Batch, generated: int | None
) -> Float[Tensor, "window token *any"]:
    """What an edit puts in the place of `value`, which it leaves alone."""
    flat = value.flatten(2)
    begin = batch.ids.shape[1] - flat.shape[1]
    chosen = edit.tokens.mask(batch, generated) & (batch.roles != Role.PAD)
    row, place = (each.to(value.device) for each in chosen[:, begin:].nonzero(as_tuple=True))
    units = None if edit.units is None else _units(edit, flat.shape[2]).to(value.device)
    where = (row, place) if units is None else (row[:, None], place[:, None], units)
    rows = flat[where]
    at = Chosen(row, place + begin, batch.window.to(value.device)[row], units, flat.shape[2], _size(batch))
    new: object = edit.change.of(rows.clone(), at)
    if not isinstance(new, Tensor) or new.shape != rows.shape:
        made = f"of shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        why = f"its change makes {made} of rows of shape {tuple(rows.shape)}"
        raise Refusal(f"an edit at {edit.site}", why=why, instead="return a number for each that is given")
    new = new.to(rows)
    if not bool(torch.isfinite(new).all()) and bool(torch.isfinite(rows).all()):
        raise Refusal(f"an edit at {edit.site}", why="it makes NaN or infinity", instead="change less, or other numbers")
    return flat.index_put(where, new).view(value.shape)


def _size(batch: Batch) -> tuple[int, int]:
    windows, tokens = batch.ids.shape
    return windows, tokens


def _units(edit: Edit, width: int) -> Tensor:
    assert edit.units is not None, "only some units are changed"
    units = torch.tensor(list(edit.units), dtype=torch.int64)
    if int(units.min()) < 0 or int(units.max()) >= width:
        why = f"there are units 0 to {width - 1}, and {int(units.min())} to {int(units.max())} are named"
        raise Refusal(f"an edit at {edit.site}", why=why, instead="name units that are there")
    return units
