"""A feed-forward block as a mixture of experts: units in groups of one size, few of which a token keeps.

How units are grouped is said in `unit_groups`. Groups are chosen at a token by what they write there (which must be known), by their
centroids, or by a small network. How few units a token needs, groups aside, is asked in `sparsity` and `kept`.

Axes of this module: `way`, a way of choosing; `kept`, how many groups are.

Source: Zhang et al. 2022, arXiv:2110.01786, section 3.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.intervene import Edit, Scale
from microtome.intervene.tokens import OfRole
from microtome.model import Model, capture
from microtome.neurons.kept import KeptCurve, kept_losses
from microtome.neurons.rows import TokenRows
from microtome.neurons.unit_groups import Block, Grouping, Groups, centroids
from microtome.readout.sample import Target

__all__ = [
    "ZHANG",
    "Chooser",
    "GroupScores",
    "Network",
    "at_random",
    "by_centroid",
    "by_network",
    "by_truth",
    "groups_kept",
    "judged_groups",
]

Chooser = Callable[[Float[Tensor, "row d_model"], Float[Tensor, "row unit"]], Float[Tensor, "row expert"]]
"""Scores of the groups at tokens, by what the block reads there and by its activations."""


@dataclass(frozen=True)
class Network:
    """How the small network is trained: units of its hidden layer for each group, passes over the tokens, Adam's rate, tokens at once."""

    hidden: int = 2
    passes: int = 30
    rate: float = 0.01
    at_once: int = 512
    seed: int = 0


ZHANG: Final = Network(hidden=1)
"""As many hidden units as groups, thirty passes at 0.01, as in the published code, whose hidden layer is a tanh that starts at the centroids."""


@dataclass(frozen=True, eq=False)
class GroupScores:
    """How well groups stand for a block, where a number of them is `kept` at each token.

    `error` is |y - y'| / |y| over all tokens, y = sum of h_i v_i; `recall` the share of the groups kept that are among as many that write most.
    Random choices recall `kept` / groups in the mean.
    """

    by: Grouping
    ways: tuple[str, ...]
    kept: tuple[int, ...]
    groups: int
    error: Float64[Tensor, "way kept"]
    recall: Float64[Tensor, "way kept"]
    tokens: int


def by_truth(block: Block, groups: Groups) -> Chooser:
    """The groups that write most: sum of |h_i| |v_i|. Of a ReLU block with values of one length this is the paper's sum of activations."""
    return lambda x, h: groups.summed(block.written(h))


def by_centroid(block: Block, groups: Groups) -> Chooser:
    """The groups whose units would be active if they all read with the mean of what they read with.

    Plain: the nearest of the centroids of reads of length 1, 2 x c / |x| - |c|^2. Gated: silu(x g) |x u|, g the mean of gate vectors, u that of
    up vectors times |v|, turned to one side.
    """
    if len(block.reads) == 1:
        (means,) = centroids(torch.nn.functional.normalize(block.reads, dim=2), groups.group, groups.count)
        return lambda x, h: 2 * torch.nn.functional.normalize(x, dim=1) @ means.T - means.square().sum(1)
    gates, ups = block.reads[0], block.reads[1] * block.values.norm(dim=1, keepdim=True)
    gate, up = centroids(torch.stack([gates, ups]), groups.group, groups.count)
    return lambda x, h: torch.nn.functional.silu(x @ gate.T) * (x @ up.T).abs()


def by_network(
    block: Block, groups: Groups, x: Float[Tensor, "row d_model"], h: Float[Tensor, "row unit"], how: Network = Network()
) -> Chooser:
    """A network of one hidden layer, trained on tokens of other documents to say what share of the largest sum each group writes.

    Cost: passes rows groups (d_model + groups) FLOP, about 6 times `hidden`.
    """
    truth = by_truth(block, groups)(x, h)
    wanted = truth / truth.amax(1, keepdim=True).clamp(min=torch.finfo(truth.dtype).tiny)
    with torch.random.fork_rng([]):
        torch.manual_seed(how.seed)
        layers = [
            torch.nn.Linear(x.shape[1], how.hidden * groups.count),
            torch.nn.Linear(how.hidden * groups.count, groups.count),
        ]
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    adam = torch.optim.Adam(network.parameters(), lr=how.rate)
    generator = torch.Generator().manual_seed(how.seed)
    scale = x.shape[1] ** 0.5
    read = scale * torch.nn.functional.normalize(x, dim=1)
    with torch.enable_grad():
        for _ in range(how.passes):
            for rows in torch.randperm(len(x), generator=generator).split(how.at_once):
                adam.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(network(read[rows]), wanted[rows]).backward()
                adam.step()
    network.requires_grad_(requires_grad=False)
    return lambda x, h: network(scale * torch.nn.functional.normalize(x, dim=1))


def at_random(groups: Groups, seed: int = 0) -> Chooser:
    """Groups drawn at each token: the control."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x, h: torch.rand(len(x), groups.count, generator=generator)


def judged_groups(
    block: Block, groups: Groups, choosers: Mapping[str, Chooser], tokens: TokenRows, kept: Sequence[int]
) -> GroupScores:
    """Errors and recalls at tokens with rows of `mlp_in` and `mlp_act`, which nothing was chosen or trained on.

    Errors: `Refusal` for numbers of groups that there are not.
    Cost: 2 rows units d_model FLOP for each way and number.
    """
    _require_kept(groups, kept)
    x, h = (tokens.values[Site(name, block.layer)] for name in ("mlp_in", "mlp_act"))
    best, whole = by_truth(block, groups)(x, h), h @ block.values
    error, recall = (torch.zeros(len(choosers), len(kept), dtype=torch.float64) for _ in range(2))
    for way, choose in enumerate(choosers.values()):
        scores = choose(x, h)
        for at, count in enumerate(kept):
            mine, right = (_top(each, count) for each in (scores, best))
            error[way, at] = (whole - (h * mine[:, groups.group]) @ block.values).double().norm() / whole.double().norm()
            recall[way, at] = (mine & right).sum() / float(count * len(x))
    return GroupScores(groups.by, tuple(choosers), tuple(kept), groups.count, error, recall, len(x))


def groups_kept(
    model: Model,
    batches: Iterable[Batch],
    block: Block,
    groups: Groups,
    choosers: Mapping[str, Chooser],
    kept: Sequence[int],
    *,
    target: Target = "next",
    roles: frozenset[Role] = CONTENT,
) -> KeptCurve:
    """What the loss owes to the groups that a token does not keep, of this one block; tokens that are not of `roles` keep all.

    Cost: a forward pass for each way and number.
    """
    _require_kept(groups, kept)
    sites = [Site(name, block.layer) for name in ("mlp_in", "mlp_act")]

    def variants(batch: Batch) -> list[list[Edit]]:
        found = capture(model, batch, sites)
        x, h = (found[site].flatten(0, 1).float().cpu() for site in sites)
        made = []
        for choose in choosers.values():
            scores = choose(x, h)
            for count in kept:
                mask = _top(scores, count)[:, groups.group].float().unflatten(0, tuple(batch.ids.shape))
                made.append([Edit(sites[1], Scale(mask.to(model.device)), tokens=OfRole(roles))])
        return made

    losses = kept_losses(model, batches, variants, target=target, roles=roles)
    return KeptCurve((block.layer,), tuple(choosers), tuple(kept), losses)


def _require_kept(groups: Groups, kept: Sequence[int]) -> None:
    if not kept or not 1 <= min(kept) <= max(kept) <= groups.count:
        raise Refusal(f"{list(kept)} groups kept", why=f"there are {groups.count}", instead="name numbers from 1 to that")


def _top(scores: Float[Tensor, "row expert"], count: int) -> Tensor:
    """True at the `count` largest of each row, of equal ones the first."""
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter(1, best, value=True)
