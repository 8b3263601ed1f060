"""Which dictionary a build trains, and its training on rows of the text: the lens's own choices, each of which can be told otherwise.

A text of a hundred thousand tokens is little for a dictionary; so one is shared by six sites, as in the source work, and its size follows from how
many states there are. How an autoencoder or a dictionary is trained belongs in `training` and `learning`.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.factors.aims import Fixed
from microtome.factors.autoencoder import require_shards
from microtome.factors.dictionary import Arrangement, Dictionary
from microtome.factors.harvest import Form, Harvested, Live, Source, of_half, scaling_of, usual
from microtome.factors.job import Job, Told
from microtome.factors.launch_cluster import OnCluster
from microtome.factors.learning import PAPER, Learner, Learning, paper_sites
from microtome.factors.mesh import Mesh
from microtome.factors.mixing import Mixing, in_order, part_of, served
from microtome.factors.scaling import Normalisation, Scaling
from microtome.factors.spread import Progress, Spread, learnt
from microtome.factors.training import Training
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, Matching, TopK
from microtome.model import Model, Shape, sites_named
from microtome.model.selection import vector_width

__all__ = [
    "SMALLEST",
    "SOURCE_WORK",
    "Plan",
    "default_units",
    "device_of",
    "learning_operations",
    "shared_sites",
    "sites_of",
    "trained",
    "training_operations",
]

_SITES: Final = 6
_UNITS: Final = 2048
_PER_UNIT: Final = 64
"""States of the discover half that a unit of a default dictionary has, at least."""
_FEWEST: Final = 64
"""Units below which a default dictionary is not worth having."""
SMALLEST: Final = _FEWEST, _FEWEST * _PER_UNIT
"""Units of the smallest default dictionary, and how many states it needs."""
_STEPS: Final = 100
"""Steps that a short text is cut into, so that there is something to learn in."""
_LEAST_ROWS: Final = 256
_TRIED: Final = 32
"""Factors of a code, where costs are tried."""
_SEARCHED: Final = 8.0
"""FLOP of an exact code, in products of d_model and units: twice what `benchmarks.factors_coding` takes, beside the products of a forward pass."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")


@dataclass(frozen=True)
class Plan:
    """A dictionary to train: of a name, at sites, of so many units, by a variant of autoencoder or by sparse coding, on states scaled so.

    No name is that of the run, no site six of the stream, and without a number there are as many units as the text has states for, 2,048 at most.
    `tokens` are how many of the corpus's are looked at for it, at most; they are kept as numbers of a `Form`, or as nothing: then every pass of
    training is a forward pass over the text. `passes` is how often those of the discover half are learnt from; the confirm half is there to
    judge by. Tokens with `massive` states (`scaling.MASSIVE` times as far from the mean as the median one) are not learnt from. `order` is that of
    states in sparse coding. Of `Learning` the plan's own numbers of units, passes and seed hold. Batches are made of `streams`, see `mixing`; processes
    that an autoencoder's training is `spread` over read their own, and change its result by rounding alone: they are no part of what a plan is.
    Errors: `Refusal` for a name that could not be part of an address, for no unit and no pass, for sparse coding of what is not shared, and for
    what cannot be spread so.
    """

    name: str = ""
    sites: tuple[str, ...] = ()
    units: int | None = None
    method: Variant | Learning = BatchTopK(32)
    arrangement: Arrangement = "shared"
    normalisation: Normalisation = "mean+rms"
    tokens: int = 1 << 18
    keep: Form | Literal["nothing"] = "bfloat16"
    massive: Literal["left out", "kept"] = "left out"
    rows: int = 2048
    passes: int = 3
    order: Literal["mixed", "text"] = "mixed"
    streams: int = 1
    spread: Spread = field(default=Spread(), compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            why = "names of dictionaries become parts of addresses and of files"
            raise Refusal(f"dictionary {self.name!r}", why=why, instead="use at most 64 letters, digits, _ and -")
        if self.passes < 1 or (self.units is not None and self.units < 1):
            raise Refusal(
                f"{self.units} units in {self.passes} passes", why="there is nothing to learn", instead="give numbers above 0"
            )
        if isinstance(self.method, Learning) and self.arrangement != "shared":
            why = "sparse coding is of states of one place"
            raise Refusal(
                f"a {self.arrangement} by sparse coding", why=why, instead="train an autoencoder, or share the dictionary"
            )
        _require_spread(self)

    @property
    def tried(self) -> "Plan":
        """What stands in for it where costs are tried on a few states: one pass, and an autoencoder in place of sparse coding.

        Searching for codes takes as long on the few as on all of a short text; what it costs, `training_operations` has.
        """
        if not isinstance(self.method, Learning):
            return replace(self, passes=1, streams=1, spread=Spread())
        method = BatchTopK(min(_TRIED, self.units or _TRIED))
        return replace(self, method=method, normalisation="mean+rms", massive="left out", passes=1)


def _require_spread(plan: Plan) -> None:
    """Refuse what cannot be trained by several processes."""
    if isinstance(plan.method, Learning):
        if plan.streams > 1 or plan.spread.processes > 1:
            why = "it takes states one after another"
            raise Refusal("sparse coding over several processes", why=why, instead="train an autoencoder, or name 1 process")
        return
    mesh = Mesh(shards=plan.spread.shards)
    require_shards(plan.method, mesh)
    mesh.shard(plan.units or 0)
    part_of(plan.rows, 0, plan.spread.processes // plan.spread.shards)
    Mixing(plan.rows, 2 * plan.rows, streams=plan.streams)
    if plan.spread.processes > 1 and plan.keep == "nothing":
        why = "states are taken while one process reads the text"
        raise Refusal("training over several processes", why=why, instead="keep states: --keep bfloat16")


SOURCE_WORK: Final = Plan(
    units=PAPER.units,
    method=PAPER,
    normalisation="none",
    massive="kept",
    passes=PAPER.passes,
    order="text",
    rows=PAPER.minibatch,
    sites=("paper",),
)
"""Sparse coding as Yun et al. did it: every second layer, states as they are, see `learning.PAPER`."""


def shared_sites(shape: Shape) -> tuple[Site, ...]:
    """Six places of the stream, as far apart as can be, the embeddings first: of 12 layers those before 0, 2, 4, 6, 8 and 10.

    Source: Yun et al. 2021, arXiv:2103.15949, section 3.
    """
    count = min(_SITES, shape.layers)
    return tuple(Site("resid_pre", place * shape.layers // count) for place in range(count))


def device_of(plan: Plan, model: Model) -> str:
    """The device that a dictionary is trained on, or of whose kind those of several processes are: that of the model, but on a cluster what was asked for.

    Errors: `Refusal` as of `OnCluster.device`.
    """
    launcher = plan.spread.launcher
    if plan.spread.processes > 1 and isinstance(launcher, OnCluster) and model.opening is not None:
        return launcher.device(model.opening.device)
    return str(model.device)


def sites_of(plan: Plan, model: Model) -> tuple[Site, ...]:
    """The sites that a plan names in a model; `paper` are those of the source work.

    Errors: `Refusal` where the model lacks one, see `model.sites_named`; for sites of several widths; and for a transcoder of other than two.
    """
    if plan.sites == ("paper",):
        return paper_sites(model.shape.layers)
    found = sites_named(model, plan.sites) if plan.sites else shared_sites(model.shape)
    widths = {vector_width(model, site) for site in found}
    if len(widths) > 1:
        why = f"their states have {' and '.join(map(str, sorted(widths)))} numbers"
        raise Refusal(f"a dictionary of {', '.join(map(str, found))}", why=why, instead="name sites whose states are as wide")
    if plan.arrangement == "transcoder" and len(found) != 2:
        why = f"it reads one site and makes another, and there are {len(found)}"
        raise Refusal("a transcoder", why=why, instead="name two: --sites mlp_in.3 --sites mlp_out.3")
    return found


def default_units(states: int) -> int:
    """How many units a text of so many states in the discover half is enough for; 0 where it is too short for any."""
    units = min(_UNITS, states // _PER_UNIT // _FEWEST * _FEWEST)
    return units if units >= _FEWEST else 0


def learning_operations(states: int, passes: int, width: int, units: int) -> float:
    """FLOP of training an autoencoder, roughly."""
    return 6.0 * states * passes * width * units


def training_operations(plan: Plan, states: int, width: int, units: int) -> float:
    """FLOP of training, roughly, and where codes are searched for of coding the states of both halves afterwards."""
    if not isinstance(plan.method, Learning):
        return learning_operations(states, plan.passes, width, units)
    codes = plan.method.codes
    searched = _SEARCHED * width * units
    learnt = 4.0 * codes.steps * width * units if isinstance(codes, Fixed) else searched
    return states * (plan.passes * learnt + 2 * searched)


def trained(
    plan: Plan,
    name: str,
    units: int,
    harvested: Harvested | Live,
    model: Model,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Dictionary:
    """Train a dictionary of `units` factors on the rows of the discover half.

    Errors: `Refusal` for fewer states than units.
    Cost: two reads of the rows; then for each state and pass about 6 d_model units FLOP of an autoencoder, or an exact code.
    """
    shared = plan.arrangement == "shared"
    every = of_half(harvested.rows, Half.DISCOVER)
    scaling = scaling_of(every, plan.normalisation)
    source = every if plan.massive == "kept" else usual(every, scaling)
    tokens = sum(len(rows.id) for rows in every(0))
    states = sum(len(rows.id) for rows in source(0)) * (len(harvested.harvest.sites) if shared else 1)
    if states < units:
        why = f"there are {states:,} states to learn from"
        raise Refusal(f"a dictionary of {units:,} units", why=why, instead="give more text, or name fewer units")
    if isinstance(plan.method, TopK | Matching) and plan.method.k > units:
        why = f"a code is to have {plan.method.k} of them"
        raise Refusal(f"a dictionary of {units:,} units", why=why, instead="give more units, or sparser codes")
    told: Told = {
        "method": str(plan.method),
        "normalisation": plan.normalisation,
        "states": states,
        "massive tokens left out": tokens - states // (len(harvested.harvest.sites) if shared else 1),
        "passes": plan.passes,
        "seed": seed,
        "model_name": model.name,
        "kept as": plan.keep,
        "kept noise": harvested.noise(),
    }
    asked = _Asked(name, units, states, harvested.harvest.sites, scaling, model, seed, progress)
    if not isinstance(plan.method, Learning):
        return _autoencoded(plan, asked, harvested, told)
    made = _coded(plan, asked, source)
    return replace(made, learnt={**told, **made.learnt})


@dataclass(frozen=True, eq=False)
class _Asked:
    """What both ways of training need to know."""

    name: str
    units: int
    states: int
    sites: tuple[Site, ...]
    scaling: Scaling
    model: Model
    seed: int
    progress: Progress | None


def _autoencoded(plan: Plan, asked: _Asked, harvested: Harvested | Live, told: Told) -> Dictionary:
    assert isinstance(plan.method, Variant), "an autoencoder has a variant"
    rows = min(plan.rows, max(_LEAST_ROWS, asked.states * plan.passes // _STEPS), max(1, asked.states // 2))
    job = Job(
        name=asked.name,
        units=asked.units,
        variant=plan.method,
        arrangement=plan.arrangement,
        harvested=harvested,
        massive=plan.massive,
        scaling=asked.scaling,
        training=Training(steps=asked.states * plan.passes // rows, batch=rows),
        mixing=Mixing(rows, max(1 << 19, 2 * rows), plan.passes, asked.seed, plan.streams),
        seed=asked.seed,
        model=asked.model.fingerprint,
        learnt=told,
        device=device_of(plan, asked.model),
    )
    return learnt(job, plan.spread, asked.progress)


def _coded(plan: Plan, asked: _Asked, source: Source) -> Dictionary:
    """By sparse coding; the source work reads states in the order of the text, others are mixed."""
    assert isinstance(plan.method, Learning), "sparse coding has settings of its own"
    settings = replace(plan.method, units=asked.units, passes=plan.passes, seed=asked.seed)
    mixing = Mixing(rows=plan.rows, room=max(1 << 19, 2 * plan.rows), passes=plan.passes, seed=asked.seed)
    learner = Learner(settings, None if settings.weighting == "none" else _counts(asked, source))
    steps = asked.states * plan.passes // plan.rows
    ordered = plan.order == "text"
    batches = in_order(source, asked.scaling, plan.passes) if ordered else served(source, asked.scaling, "shared", mixing)
    for step, each in enumerate(batches):
        learner.feed(each.states[:, 0], each.id)
        if asked.progress is not None:
            asked.progress(min(step + 1, steps), steps)
    return learner.finish().dictionary(asked.name, asked.sites, asked.scaling, asked.model.fingerprint)


def _counts(asked: _Asked, source: Source) -> Int64[Tensor, " vocab"]:
    """How often each token is among those that are learnt from."""
    vocab = asked.model.shape.vocab
    return sum((torch.bincount(rows.id, minlength=vocab) for rows in source(0)), torch.zeros(vocab, dtype=torch.int64))
