"""Units whose activation is a known function of tokens, and their examples, found by the survey as those of a model are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.core import Batch, ExpertRows, Role, Site, UnitAddress
from microtome.explain import Examples, ExcerptRecord, ExcerptSurvey, Selection

SITE = Site("mlp_act", 0)
SMALL = Selection(length=32, active=12, random=12, shortest=4)


@dataclass(frozen=True)
class Units:
    """A basis that is what the site holds."""

    units: int
    signed: bool = True
    sites: tuple[Site, ...] = (SITE,)

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Tensor:
        found = values[SITE]
        assert isinstance(found, Tensor)
        return found

    def address(self, index: int) -> UnitAddress:
        return UnitAddress("neurons", index, layer=0)


def text(windows: int, tokens: int, vocab: int, seed: int = 0) -> Tensor:
    """Random ids, all of them equally frequent."""
    return torch.randint(0, vocab, (windows, tokens), generator=torch.Generator().manual_seed(seed))


def batch_of(ids: Tensor, first: int = 0) -> Batch:
    """Windows of alternating halves, whose first token does not count."""
    count = torch.arange(first, first + len(ids))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    zeros = torch.zeros_like(count)
    return Batch(ids, roles, count, count, zeros, (count % 2).to(torch.uint8), zeros - 1, extra={})


def surveyed(ids: Tensor, activation: Tensor, selection: Selection = SMALL, *, signed: bool = True) -> ExcerptRecord:
    """The excerpts of units with these activations (window, token, unit)."""
    fold = ExcerptSurvey(Units(activation.shape[2], signed), selection)
    state = fold.init()
    for rows in torch.arange(len(ids)).split(7):
        fold.update(state, {SITE: activation[rows].float()}, batch_of(ids[rows], int(rows[0])))
    return fold.result(state)


def examples_of(unit: Callable[[Tensor], Tensor], vocab: int = 6, windows: int = 60, selection: Selection = SMALL) -> Examples:
    """The examples of one unit on random text."""
    ids = text(windows, 64, vocab)
    return surveyed(ids, unit(ids).float()[..., None], selection).examples(0)


def token_unit(ids: Tensor) -> Tensor:
    """2 at token 3."""
    return 2.0 * (ids == 3)


def bigram_unit(ids: Tensor) -> Tensor:
    """3 at token 3 behind token 1."""
    before = torch.nn.functional.pad(ids, (1, 0), value=-1)[:, :-1]
    return 3.0 * ((ids == 3) & (before == 1))


def random_unit(ids: Tensor) -> Tensor:
    """Nothing that tokens would say."""
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) ** 4


def name(token: int) -> str:
    """Token 3 is t3."""
    return f"t{token}"
