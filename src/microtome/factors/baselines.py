"""Dictionaries that cost next to nothing, made of the same states: what a trained one has to be better than, at as many factors to a code.

A search finds better codes than an encoder does: compare what is coded alike, too (`Dictionary.coded_by(Greedy(k))`). All are `Dictionary` values
on the scaling of the one that they stand beside, so that whatever judges one judges the others. Signed components are pairs of factors, one for
each sign. How dictionaries are judged belongs in `evaluation`; a model that has learnt nothing, whose states ask the same of a whole method, in
`model.twin`.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from microtome.core import Refusal, Site
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder, Largest
from microtome.factors.harvest import Rows
from microtome.factors.scaling import Scaling
from microtome.numerics import hash_parts

__all__ = [
    "BASELINES",
    "CONTROLS",
    "EXACT",
    "GREEDY",
    "REFITTED",
    "Baseline",
    "Sample",
    "baselines",
    "lowest",
    "sampled",
]

Baseline = Literal["pca", "pca largest", "ica", "nmf", "k-means", "random directions", "random states"]
"""pca: the first components, as many as a code of the other has factors, each of which is always there: the best of all subspaces of that size. pca
largest: of all components those that are largest in the state at hand. The others are directions with greedy codes (`Greedy`) of as many factors: ica
and nmf: components; k-means: centres; random directions: normal ones; random states: states of the sample, drawn."""

BASELINES: Final[tuple[Baseline, ...]] = (
    "pca", "pca largest", "ica", "nmf", "k-means", "random directions", "random states",
)  # fmt: skip
CONTROLS: Final[Mapping[Baseline, str]] = {
    "pca": "principal components, as many",
    "pca largest": "largest principal components, as many",
    "ica": "independent components, as many, greedy codes",
    "nmf": "non-negative parts, as many, greedy codes",
    "k-means": "centres of k-means, as many, greedy codes",
    "random directions": "random directions, as many, greedy codes",
    "random states": "random states, as many, greedy codes",
}
"""What each is called where it is a control: `as many` factors to a code."""
GREEDY: Final = "greedy codes of the same directions"
EXACT: Final = "exact codes of the same directions"
"""The lasso's."""
REFITTED: Final = "exact codes, amounts refitted"
_ROUNDS: Final = 200
"""Rounds of fits that go round by round."""
_EPOCHS: Final = 10
"""Readings of the sample by factorisations in small batches, which are the slowest."""
_SPREAD: Final = 256
"""Centres that are spread out before they are moved, at most."""
_SALT: Final = 0x626173656C


@dataclass(frozen=True, eq=False)
class Sample:
    """Scaled states of the discover half, those of all sites one after the other, and what they were scaled by."""

    states: Float[Tensor, "row d_model"]
    sites: tuple[Site, ...]
    scaling: Scaling
    model: str = ""
    seed: int = 0


def sampled(dictionary: Dictionary, rows: Iterable[Rows], sites: Sequence[Site], count: int = 20_000, seed: int = 0) -> Sample:
    """Scaled states at the sites that a dictionary reads, of `count` tokens at most, those of lowest hash of (seed, window, position).

    `rows` are those of the half that is learnt from, `sites` what their places are. Of a transcoder they are the states of what it reads. Massive
    states are left out.
    Errors: `Refusal` for no row, and for a site that rows do not have.
    Cost: one read.
    """
    if missing := [site for site in dictionary.reads if site not in sites]:
        why = f"rows have {', '.join(map(str, sites))}"
        raise Refusal(f"a sample of states at {missing[0]}", why=why, instead="keep states of all sites of a dictionary")
    kept: Rows | None = None
    for read in rows:
        kept = lowest([read] if kept is None else [kept, read], count, seed)
    if kept is None:
        raise Refusal("a sample of states", why="there is no row", instead="give more text")
    places = {site: kept.states[:, list(sites).index(site)] for site in dictionary.reads}
    usual = {site: dictionary.scaling.usual(states, dictionary.place(site)) for site, states in places.items()}
    scaled = dictionary.scaled({site: states[usual[site]] for site, states in places.items()})
    return Sample(torch.cat(list(scaled.values())).float(), dictionary.reads, dictionary.scaling, dictionary.model, seed)


def lowest(parts: Sequence[Rows], count: int, seed: int) -> Rows:
    """The `count` rows of lowest hash of (seed, window, position), in its order."""
    names = ("states", "id", "window", "position", "half")
    joined = Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    return joined.take(hash_parts(seed, _SALT, joined.window, joined.position).argsort(stable=True)[:count])


def baselines(
    sample: Sample, factors: int, directions: int, kinds: Sequence[Baseline] = BASELINES
) -> dict[Baseline, Dictionary]:
    """Dictionaries by kind: codes of `factors` factors at most, the other's l0 rounded; of `directions` factors where that can be chosen.

    Components are at most as many as the states are wide, two factors each. Those that are found round by round may not have settled (`learnt` says).
    Source: Hyvarinen and Oja 2000, doi:10.1016/S0893-6080(00)00026-5, on independent components.
    Source: Lee and Seung 1999, doi:10.1038/44565, on parts by non-negative factorisation; here of what states have above and below 0, side by side.
    Errors: `Refusal` for more factors than the states are wide, and for fewer states than that.
    Cost: rows d_model^2 FLOP and a decomposition for pca; the others some seconds to minutes, by rows and directions.
    """
    rows, width = sample.states.shape
    if not 1 <= factors <= width or rows < width:
        why = f"there are {rows} states of {width} numbers"
        raise Refusal(f"baselines with codes of {factors} factors", why=why, instead="give more states, or sparser codes")
    found: dict[Baseline, Dictionary] = {}
    for kind in kinds:
        coder: Coder = Greedy(factors)
        if kind in ("pca", "pca largest"):
            components = _principal(sample.states)
            made, settled = _signed(components if kind == "pca largest" else components[:factors]), True
            rule = Above(torch.zeros(len(made))) if kind == "pca" else Largest(factors)
            coder = Encoder(made.T[None].clone(), -made @ sample.states.mean(0), rule)
        else:
            made, settled = _directions(kind, sample, max(factors, directions))
        found[kind] = _dictionary(kind, sample, made, coder, settled)
    return found


def _dictionary(kind: str, sample: Sample, made: Tensor, coder: Coder, settled: bool) -> Dictionary:  # noqa: FBT001 - one of two answers
    return Dictionary(
        name=kind.replace(" ", "-"),
        arrangement="shared",
        reads=sample.sites,
        writes=sample.sites,
        coder=coder,
        scaling=sample.scaling,
        directions=made[None],
        offset=sample.states.mean(0)[None],
        model=sample.model,
        learnt={"method": kind, "states": len(sample.states), "seed": sample.seed, "settled": int(settled)},
    )


def _directions(kind: Baseline, sample: Sample, count: int) -> tuple[Float[Tensor, "unit d_model"], bool]:
    """Directions of length 1, and whether the search for them came to an end."""
    centred = sample.states - sample.states.mean(0)
    generator = torch.Generator().manual_seed(_SALT + sample.seed)  # not that of what is drawn elsewhere with this seed
    if kind == "random directions":
        return normalize(torch.randn(count, centred.shape[1], generator=generator), dim=1), True
    if kind == "random states":
        drawn = torch.randperm(len(centred), generator=generator)[:count]
        return _lengthened(centred[drawn]), True
    fitted = {"ica": _independent, "nmf": _parts, "k-means": _centres}[kind]
    return fitted(centred, count, sample.seed)


def _principal(states: Float[Tensor, "row d_model"]) -> Float[Tensor, "component d_model"]:
    """Principal components, the first first."""
    wide = states.double()
    wide = wide - wide.mean(0)
    return torch.linalg.eigh(wide.T @ wide).eigenvectors.T.flip(0).float()


def _independent(centred: Tensor, count: int, seed: int) -> tuple[Tensor, bool]:
    """Columns of the mixing matrix: what a component adds to a state."""
    from sklearn.decomposition import FastICA

    components = min(count // 2 or 1, *centred.shape)
    model: Any = FastICA(components, whiten="unit-variance", max_iter=_ROUNDS, tol=1e-3, random_state=seed)
    settled = _fit(model, centred)
    return _lengthened(_signed(torch.from_numpy(model.mixing_.T).float())), settled


def _parts(centred: Tensor, count: int, seed: int) -> tuple[Tensor, bool]:
    """What states have above 0 and below, factorised side by side: a part adds to some coordinates and takes from others."""
    from sklearn.decomposition import MiniBatchNMF

    components = min(count, *centred.shape)
    make: Any = MiniBatchNMF  # whose annotations know less than it does
    model = make(components, init="nndsvda", max_iter=_EPOCHS, batch_size=2048, random_state=seed)
    settled = _fit(model, torch.cat([centred.clamp(min=0), (-centred).clamp(min=0)], 1))
    above, below = torch.from_numpy(model.components_).float().chunk(2, dim=1)
    return _lengthened(above - below), settled


def _centres(centred: Tensor, count: int, seed: int) -> tuple[Tensor, bool]:
    from sklearn.cluster import MiniBatchKMeans

    make: Any = MiniBatchKMeans
    # to spread many centres out takes far longer than to move them, and ends no better
    begin = "k-means++" if count <= _SPREAD else "random"
    model = make(min(count, len(centred)), init=begin, n_init=1, batch_size=4096, random_state=seed)
    settled = _fit(model, centred)
    return _lengthened(torch.from_numpy(model.cluster_centers_).float()), settled


def _fit(model: Any, x: Tensor) -> bool:
    """Fit; whether the search came to an end."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(x.numpy())
    for each in told:
        if not issubclass(each.category, ConvergenceWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return not any(issubclass(each.category, ConvergenceWarning) for each in told)


def _signed(components: Float[Tensor, "component d_model"]) -> Float[Tensor, "unit d_model"]:
    return torch.cat([components, -components])


def _lengthened(directions: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
    """Of length 1; those of no length are left out."""
    length = directions.norm(dim=1)
    return normalize(directions[length > 1e-9 * length.max()], dim=1)
