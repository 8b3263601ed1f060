"""What explanations of neurons ask of a model: activations in texts of one's own, runs with an activation replaced, and random directions beside units.

What explains, simulates and judges units of any basis is in `explain`. A random direction of a layer's activations (`Turned`) is explained like a
unit, as the control that asks whether units are easier to explain than anything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, ExpertRows, Refusal, Role, Site, UnitAddress
from microtome.corpus.tokenising import wrapping
from microtome.explain import NOTHING, Activation, Excerpts
from microtome.explain.ablation import Run
from microtome.intervene import Edit, Set, edited
from microtome.model import Model, capture, observe
from microtome.neurons.basis import Neurons

__all__ = ["Turned", "ablation_run", "filler", "unit_activation"]

_TOKENS: Final = 4096
"""Tokens of texts that are tried in one forward pass."""
_SPECIAL: Final = ("mask_token", "bos_token", "cls_token", "eos_token", "unk_token")


@dataclass(frozen=True)
class Turned:
    """`units` random orthogonal directions of the activations of a block: what explanations of its units are compared with.

    A direction reads all units, those of large activations most.
    """

    basis: Neurons
    units: int
    seed: int = 0

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the block."""
        return self.basis.sites

    @property
    def signed(self) -> bool:
        """Both ends mean as much as each other."""
        return True

    @cached_property
    def directions(self) -> Float[Tensor, "unit direction"]:
        """One column each, of length 1."""
        drawn = torch.randn(self.basis.units, self.units, generator=torch.Generator().manual_seed(self.seed))
        return torch.linalg.qr(drawn).Q

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        """Projections."""
        x = self.basis.encode(values)
        return x.float() @ self.directions.to(x.device)

    def address(self, index: int) -> UnitAddress:
        """`turned.24/7`."""
        return UnitAddress("turned", index, layer=self.basis.layer)


def unit_activation(model: Model, unit: UnitAddress) -> Activation:
    """What an end of a neuron has in texts of a few tokens, each read by itself between the tokens that begin and end a text.

    A model whose tokenizer puts none before a text gets `filler` there, for a first token is unlike others. The sign of the address is
    the end, which is positive in what is given.
    Errors: `Refusal` for units of experts and of other bases.
    """
    if unit.basis != "neurons" or unit.expert is not None or unit.layer is None:
        why = "only neurons of dense blocks have an activation at every token"
        raise Refusal(f"the activation of {unit}", why=why, instead="name a unit such as neurons.0/0")
    around = wrapping(model.tokenizer)
    before, after = around.before or (filler(model),), around.after
    site, sign = Site("mlp_act", unit.layer), -1.0 if unit.sign == "-" else 1.0

    def activation(ids: Int[Tensor, "text token"]) -> Float[Tensor, "text token"]:
        found = torch.zeros(ids.shape, dtype=torch.float64)
        width = len(before) + ids.shape[1] + len(after)
        for rows in torch.arange(len(ids)).split(max(1, _TOKENS // width)):
            wrapped = _wrapped(ids[rows], before, after)

            def receive(_: Site, value: Tensor, rows: Tensor = rows) -> None:
                mine = value[:, len(before) : len(before) + ids.shape[1], unit.index]
                found[rows] = sign * mine.double().cpu()

            observe(model, wrapped.to(model.device), [site], receive)
        return found

    return activation


def filler(model: Model) -> int:
    """The token that stands for nothing in particular: the mask, or else the end of a line, or the token that begins texts, or ends them.

    Errors: `Refusal` for a tokenizer that has none of these.
    """
    backend, names = model.tokenizer.backend_tokenizer, model.tokenizer.special_tokens_map
    line = backend.encode("\n", add_special_tokens=False).ids
    if "mask_token" not in names and len(line) == 1:
        return line[0]
    for name in _SPECIAL:
        if name in names and (token := backend.token_to_id(str(names[name]))) is not None:
            return token
    raise Refusal(f"a filler for {model.name}", why="its tokenizer has no special token", instead="name a token yourself")


def ablation_run(model: Model, unit: UnitAddress) -> Run:
    """Runs excerpts by themselves with a neuron set to given activations of the end that its address has: for `ablation_score`."""
    site, sign = Site("mlp_act", unit.layer), -1.0 if unit.sign == "-" else 1.0

    def run(part: Excerpts, activation: Float[Tensor, "excerpt token"]) -> Float[Tensor, "excerpt token vocab"]:
        batch = _wrapped(part.ids, (), ()).to(model.device)
        edit = Edit(site, Set((sign * activation).float()[..., None]), [unit.index])
        with edited(model, batch, [edit]):
            logits = capture(model, batch, [Site("logits")])[Site("logits")]
        return logits.float().log_softmax(-1).cpu()

    return run


def _wrapped(ids: Int[Tensor, "text token"], before: Sequence[int], after: Sequence[int]) -> Batch:
    """Texts as windows: tokens in front, and those behind where each text ends."""
    texts, width = ids.shape
    lengths = (ids != NOTHING).sum(1)
    wide = torch.zeros(texts, len(before) + width + len(after), dtype=torch.int64)
    roles = torch.full(wide.shape, int(Role.PAD), dtype=torch.uint8)
    wide[:, : len(before)] = torch.tensor(before, dtype=torch.int64)
    wide[:, len(before) : len(before) + width] = ids.clamp(min=0)
    place = torch.arange(wide.shape[1])
    end = (len(before) + lengths)[:, None]
    roles[place < end] = int(Role.CONTENT)
    roles[:, : len(before)] = int(Role.SPECIAL)
    for number, token in enumerate(after):
        wide[place == end + number] = token
        roles[place == end + number] = int(Role.SPECIAL)
    if not before:
        roles[:, 0] = int(Role.FIRST)
    wide.masked_fill_(roles == int(Role.PAD), 0)
    window, none = torch.arange(texts), torch.zeros(texts, dtype=torch.int64)
    return Batch(wide, roles, window, window, none, none.to(torch.uint8), none - 1, extra={})
