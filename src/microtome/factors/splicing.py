"""What a reconstruction is worth to the model: states of a site are replaced by what a dictionary makes of them, and the model goes on with these.

Beside it stand the clean model, and models whose states there are all 0, or all the mean. How states are replaced is known to `intervene`; how near a
reconstruction is belongs in `evaluation`. Additional axes: `group` counts groups of documents or windows, `part` sums of a group, `variant` what
states are replaced by.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Role, Site
from microtome.factors.evaluation import GROUPS, Candidate, Groups, Stat, jackknifed
from microtome.intervene import Edit, Masked, Set, edited, final_states, predictions
from microtome.model import Model, capture
from microtome.readout.sample import target_ids

__all__ = ["MEAN", "ZERO", "remade", "spliced"]

ZERO: Final = "zero ablation"
MEAN: Final = "mean ablation"
_AT_ONCE: Final = 1 << 24
"""Codes that are held at a time."""


def remade(
    candidate: Candidate,
    states: Mapping[Site, Float[Tensor, "window token d_model"]],
    site: Site,
    chosen: Bool[Tensor, "window token"],
    rest: Literal["dropped", "kept"] = "dropped",
) -> Float[Tensor, "window token d_written"]:
    """What a dictionary makes of the chosen states at a site that it writes, in the model's own units; 0 elsewhere.

    `states` are those of all sites that it reads. With the rest kept, what the dictionary misses is added again, in float64: that is the state itself,
    whatever the dictionary, and a splice of it changes nothing; then `states` has those at `site`, too.
    Errors: `Refusal` for a site that the dictionary does not write.
    Cost: a code of every chosen state.
    """
    dictionary, reads = candidate.dictionary, _reads(candidate, site)
    rows = {read: states[read][chosen] for read in reads}
    parts = []
    for part in torch.arange(int(chosen.sum()), device=chosen.device).split(max(1, _AT_ONCE // dictionary.units)):
        few = {read: each[part] for read, each in rows.items()}
        parts.append(dictionary.decode(candidate.codes(few), site, few[reads[0]]).double())
    made = torch.cat(parts).to(chosen.device) if parts else torch.zeros(0, dictionary.directions.shape[2], dtype=torch.float64)
    if rest == "kept":
        made = made + (states[site][chosen].double() - made)
    whole = torch.zeros(*chosen.shape, made.shape[1], dtype=torch.float64, device=chosen.device)
    whole[chosen] = made
    return whole


def _reads(candidate: Candidate, site: Site) -> tuple[Site, ...]:
    """The sites whose states are coded to make those of one."""
    dictionary = candidate.dictionary
    if site not in dictionary.writes:
        why = f"it makes states of {', '.join(map(str, dictionary.writes))}"
        raise Refusal(f"a splice of {candidate.name} at {site}", why=why, instead="name one of these sites")
    return (site,) if dictionary.arrangement == "shared" else dictionary.reads


def spliced(
    model: Model,
    batches: Iterable[Batch],
    site: Site,
    candidates: Sequence[Candidate],
    mean: Float[Tensor, " d_model"],
    *,
    over: Literal["documents", "windows"] = "documents",
    roles: frozenset[Role] = CONTENT,
) -> dict[str, dict[str, Stat]]:
    """Losses of the model on windows of the confirm half with each candidate in the place of a site, of `ZERO`, and of `MEAN`.

    All tokens of `roles` are replaced, but for those that are massive for one of the candidates (`Scaling.usual`). Judged are those that have a
    target: the next token, or, of a masked language model, what the batch's mask hides (`Corpus.mask`). `mean` is that of
    the states of the discover half (`harvest.scaling_of` knows it). By name, in nats a token:

        loss, loss_clean             cross-entropy with the states replaced, and as they are
        loss_added                   loss - loss_clean
        kl                           KL(clean || replaced) of the whole distributions
        loss_recovered_zero, _mean   (loss ablated - loss) / (loss ablated - loss_clean): 1 is the clean model, 0 the ablated one

    What is recovered is undefined where the ablation does no harm. Intervals are by a jackknife over documents, or over windows where documents are few.
    Source: Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features, on loss recovered; Karvonen et al. 2025, arXiv:2503.09532.
    Errors: `Refusal` for a site that cannot be edited, for a model without a head, for a masked model's batches without targets, and for no token to judge.
    Cost: 3 forward passes and one more for each candidate, the head for each, and codes of all states.
    """
    if len({each.name for each in candidates} | {ZERO, MEAN}) < len(candidates) + 2:
        raise Refusal("a splice", why="two candidates have the same name", instead="give each a name of its own")
    names = (ZERO, MEAN, *(each.name for each in candidates))
    sums = torch.zeros(GROUPS, 2 + 2 * len(names), dtype=torch.float64)
    groups = Groups()
    for batch in batches:
        mine = (batch.half == Half.CONFIRM).nonzero()[:, 0]
        if len(mine):
            few = batch.take(mine)
            window, row = _sums(model, few, site, candidates, mean, roles)
            sums.index_add_(0, groups.of((few.document if over == "documents" else few.window).cpu()[window]), row)
    if not bool(sums[:, 0].any()):
        why = "no token of the confirm half has something to predict"
        raise Refusal(f"a splice at {site} of {model.name}", why=why, instead="give more text")
    return _stats(sums, names)


def _sums(
    model: Model,
    batch: Batch,
    site: Site,
    candidates: Sequence[Candidate],
    mean: Float[Tensor, " d_model"],
    roles: frozenset[Role],
) -> tuple[Int64[Tensor, " row"], Float64[Tensor, "row part"]]:
    """Of each token that is judged the window, by its place in the batch, and what it adds to the sums."""
    targets, counted = _targets(model, batch, roles)
    replaced, final = batch.counted(roles), Site("final_norm")
    reads = [_reads(each, site) for each in candidates]
    states = capture(model, batch, sorted({site, final, *(read for each in reads for read in each)}))
    for each, mine in zip(candidates, reads, strict=True):
        for read in mine:
            usual = each.dictionary.scaling.usual(states[read], each.dictionary.place(read))
            replaced = replaced & usual.to(replaced.device)
    values: list[float | Tensor] = [0.0, mean]
    values += [remade(each, states, site, replaced) for each in candidates]
    found = []
    for value in values:
        with edited(model, batch, [Edit(site, Set(value), tokens=Masked(replaced))]):
            found.append(final_states(model, batch)[counted])
    told = predictions(model, states[final][counted], torch.stack(found), targets[counted])
    row = torch.cat([torch.ones_like(told.clean)[None], told.clean[None], told.loss, told.kl]).T
    return counted.nonzero()[:, 0].cpu(), row


def _targets(
    model: Model, batch: Batch, roles: frozenset[Role]
) -> tuple[Int64[Tensor, "window token"], Bool[Tensor, "window token"]]:
    if model.shape.causal:
        return target_ids(batch, "next", roles)
    if batch.targets is None:
        why = "a masked language model predicts what is hidden from it, and nothing is"
        raise Refusal(f"losses of {model.name}", why=why, instead="give batches that were masked (Corpus.mask)")
    return target_ids(batch, "masked", roles)


def _stats(sums: Float64[Tensor, "group part"], names: Sequence[str]) -> dict[str, dict[str, Stat]]:
    count = len(names)

    def values(of: Float64[Tensor, "*draw part"]) -> dict[str, Tensor]:
        clean, *rest = (of[..., 1:] / of[..., :1]).unbind(-1)
        loss, kl = dict(zip(names, rest[:count], strict=True)), dict(zip(names, rest[count:], strict=True))
        made = {"clean": clean}
        for name in names:
            made |= {f"loss/{name}": loss[name], f"loss_added/{name}": loss[name] - clean, f"kl/{name}": kl[name]}
            for short, ablated in (("zero", ZERO), ("mean", MEAN)):
                made[f"loss_recovered_{short}/{name}"] = (loss[ablated] - loss[name]) / (loss[ablated] - clean)
        return made

    found = jackknifed(sums, values)
    kinds = ("loss", "loss_added", "kl", "loss_recovered_zero", "loss_recovered_mean")
    result = {name: {kind: found[f"{kind}/{name}"] for kind in kinds} | {"loss_clean": found["clean"]} for name in names}
    for short, ablated in (("zero", ZERO), ("mean", MEAN)):
        harm = found[f"loss_added/{ablated}"]
        least = harm.value if math.isnan(harm.low) else harm.low
        if not least > 0:
            none = Stat(math.nan, undefined=f"{ablated} does no harm there")
            for of in result.values():
                of[f"loss_recovered_{short}"] = none
    return result
