"""What becomes of predictions, and of text that the model writes, when units are switched off, scaled, set or pushed: clean beside edited.

Beside both stands what the same edit does to units drawn at random from the same places: a unit whose edit does no more than that does nothing of its own.
How a tensor is changed is known to `intervene`, and how factors are to `factors.steering`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Site, UnitAddress
from microtome.factors import factor_edit
from microtome.factors.dictionary import Dictionary
from microtome.intervene import EVERY, Add, At, Edit, Sampling, Scale, Set, Written, edited, generate, unit_edit
from microtome.intervene.changes import Change
from microtome.live.clock import Clock
from microtome.live.model_of_atlas import Loaded
from microtome.live.passes import Watcher, watch
from microtome.live.reading import predicts, targets
from microtome.model import Model, unembed
from microtome.numerics import hash_parts

__all__ = ["DRAWS", "MOST_EDITS", "MOST_WRITTEN", "Comparison", "UnitEdit", "compare", "edits_of", "write"]

MOST_EDITS: Final = 32
MOST_WRITTEN: Final = 64
TOP: Final = 10
DRAWS: Final = 4
"""Times that other units are drawn."""
_SALT: Final = 0x11FE
_ROWS: Final = 1 << 24


@dataclass(frozen=True)
class UnitEdit:
    """What is done to a unit, at all tokens or at one: switched off, multiplied by `value`, set to it, or `value` added.

    Errors: `Refusal` for an address that is none, for a change that needs a value and has none, and for one that heads do not have.
    """

    unit: str
    change: Literal["off", "scale", "set", "add"]
    value: float | None = None
    place: int | None = None

    def __post_init__(self) -> None:
        basis = UnitAddress.parse(self.unit).basis
        if (self.value is None) != (self.change == "off"):
            why = "a unit is switched off without a value" if self.change == "off" else "there is no value"
            raise Refusal(
                f"an edit of {self.unit}", why=why, instead="give a value to scale by, set to or add, and none to switch off"
            )
        if basis == "heads" and self.change in ("set", "add"):
            why = "what a head adds is a vector, and not a number"
            raise Refusal(f"an edit of {self.unit}", why=why, instead="switch it off, or scale it")

    @property
    def made(self) -> Change:
        """The change of `intervene`."""
        if self.change == "off" or self.value is None:
            return Set(0.0)
        return {"scale": Scale, "set": Set, "add": Add}[self.change](self.value)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions at each token, clean and edited: the most probable tokens of each, with the probabilities that both give them.

    `kl` is KL(clean || edited) in nats, and `loss` that of what is to be predicted (NaN where nothing is). `control` is the mean KL where units drawn at
    random are edited so; NaN where none can be.
    """

    clean: Int[Tensor, "token k"]
    clean_probability: Float[Tensor, "way token k"]
    edited: Int[Tensor, "token k"]
    edited_probability: Float[Tensor, "way token k"]
    kl: Float[Tensor, " token"]
    loss: Float[Tensor, "way token"]
    control: Float[Tensor, " token"]


@dataclass(frozen=True)
class _Timed(Sampling):
    """Drawing tokens while there is time."""

    clock: Clock = Clock()

    def draw(self, logits: Float[Tensor, "window vocab"], window: Int[Tensor, " window"], place: int) -> Int[Tensor, " window"]:
        """The same, or `Overdue`."""
        self.clock.check()
        return super().draw(logits, window, place)


def edits_of(model: Model, asked: Sequence[UnitEdit], dictionaries: Sequence[Dictionary], tokens: int) -> list[Edit]:
    """The edits as `intervene` knows them; factors of one dictionary and site that are changed alike are changed at once.

    Errors: `Refusal` for more than `MOST_EDITS`, for a unit that is named twice for the same tokens, or is not there, and for a place that the text does
    not have.
    """
    if len(asked) > MOST_EDITS:
        raise Refusal(f"{len(asked)} edits", why=f"at most {MOST_EDITS} are made at once", instead="name fewer units")
    alike: dict[tuple[str, Site | None, str, float | None, int | None], list[UnitAddress]] = {}
    named: set[tuple[str, int | None]] = set()
    found = []
    for each in asked:
        unit = UnitAddress.parse(each.unit)
        if (str(unit), each.place) in named or (str(unit), None) in named:
            raise Refusal(
                f"an edit of {unit}", why="it is named twice, and would be changed twice", instead="name each unit once"
            )
        named.add((str(unit), each.place))
        if each.place is not None and not 0 <= each.place < tokens:
            why = f"the text has {tokens} tokens, counted from 0"
            raise Refusal(f"an edit at token {each.place}", why=why, instead="name one of them, or none for all")
        if unit.basis == "factors":
            alike.setdefault((unit.name or "", unit.site, each.change, each.value, each.place), []).append(unit)
        else:
            found.append(unit_edit(model, unit, each.made, _where(each.place)))
    for (name, _, change, value, place), units in alike.items():
        own = _dictionary(name, units[0], dictionaries)
        own.require_for(model.fingerprint, model.name)
        found.append(factor_edit(own, units, UnitEdit(str(units[0]), change, value).made, _where(place)))  # pyright: ignore[reportArgumentType]
    return found


def compare(
    loaded: Loaded,
    batch: Batch,
    asked: Sequence[UnitEdit],
    dictionaries: Sequence[Dictionary] = (),
    *,
    seed: int = 0,
    clock: Clock | None = None,
) -> Comparison:
    """Predictions of a text as the model is, and with units edited; with no edit they are the same, to the bit.

    Errors: as of `edits_of`; `Refusal` for a model that predicts no tokens; `Overdue`.
    Cost: 2 passes and `DRAWS` more, and the head for each.
    """
    model, clock = loaded.model, clock or Clock()
    if predicts(model) == "nothing":
        why = "it has no head that predicts tokens"
        raise Refusal(
            f"predictions of {model.name}", why=why, instead="look at its active units, or at the parts of its states"
        )
    tokens = batch.ids.shape[1]
    edits = edits_of(model, asked, dictionaries, tokens)
    clean, after = (_predicted(model, batch, each, clock) for each in ((), edits))
    target = targets(model, batch).cpu()
    best, other = (each.topk(min(TOP, each.shape[1]), dim=1).indices for each in (clean, after))
    ways = torch.stack([clean, after])
    loss = -ways.gather(2, target.clamp(min=0)[None, :, None].expand(2, -1, 1))[:, :, 0]
    controls = []
    for draw in range(DRAWS if asked else 0):
        drawn = _drawn(model, asked, dictionaries, hash_seed=seed * DRAWS + draw)
        if drawn is not None:
            controls.append(_kl(clean, _predicted(model, batch, edits_of(model, drawn, dictionaries, tokens), clock)))
    return Comparison(
        clean=best,
        clean_probability=ways.gather(2, best.expand(2, -1, -1)).exp(),
        edited=other,
        edited_probability=ways.gather(2, other.expand(2, -1, -1)).exp(),
        kl=_kl(clean, after),
        loss=loss.masked_fill(target[None] < 0, torch.nan),
        control=torch.stack(controls).mean(0) if controls else torch.full((tokens,), torch.nan),
    )


def write(
    loaded: Loaded,
    batch: Batch,
    asked: Sequence[UnitEdit],
    dictionaries: Sequence[Dictionary] = (),
    *,
    most: int = 40,
    sampling: Sampling | None = None,
    clock: Clock | None = None,
    cache: Literal["kept", "none"] = "kept",
) -> tuple[Written, Written]:
    """What the model goes on to write behind a text as it is, and with units edited at all tokens, or at one of the text.

    Errors: as of `edits_of`; `Refusal` for a model that does not write, and for more than `MOST_WRITTEN` tokens; `Overdue`.
    """
    if not 1 <= most <= MOST_WRITTEN:
        raise Refusal(f"{most} tokens", why=f"from 1 to {MOST_WRITTEN} are written", instead="ask for a number between")
    drawing = sampling or Sampling(temperature=0.0)
    timed = _Timed(drawing.temperature, drawing.top_p, drawing.seed, clock or Clock())
    edits = edits_of(loaded.model, asked, dictionaries, batch.ids.shape[1])
    clean, after = (generate(loaded.model, batch, each, most=most, sampling=timed, cache=cache) for each in ((), edits))
    return clean, after


def _where(place: int | None) -> Any:
    return EVERY if place is None else At((place,))


def _dictionary(name: str, unit: UnitAddress, dictionaries: Sequence[Dictionary]) -> Dictionary:
    found = next((each for each in dictionaries if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in dictionaries) or "none"
        raise Refusal(f"an edit of {unit}", why=f"the run has the dictionaries {known}", instead="name a factor of one of them")
    return found


def _predicted(model: Model, batch: Batch, edits: Sequence[Edit], clock: Clock) -> Float[Tensor, "token vocab"]:
    """Log-probabilities at each token while edits hold."""
    final, found = Site("final_norm"), list[Tensor]()

    def receive(seen: Mapping[Site, Any]) -> None:
        rows = seen[final][0].split(max(1, _ROWS // model.shape.vocab))
        found.extend(unembed(model, each).float().log_softmax(1).cpu() for each in rows)

    between = [Watcher((Site("resid_post", layer),), lambda seen: None) for layer in range(model.shape.layers - 1)]
    with edited(model, batch, edits):
        watch(model, batch, [*between, Watcher((final,), receive)], clock)
    return torch.cat(found)


def _kl(clean: Float[Tensor, "token vocab"], after: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    return (clean.exp() * (clean - after)).sum(1).clamp(min=0)  # rounding alone is below


def _drawn(
    model: Model, asked: Sequence[UnitEdit], dictionaries: Sequence[Dictionary], hash_seed: int
) -> list[UnitEdit] | None:
    """The same edits of other units of the same layers and dictionaries; None where all of one are edited."""
    taken = {str(UnitAddress.parse(each.unit)) for each in asked}
    found = []
    for number, each in enumerate(asked):
        own = UnitAddress.parse(each.unit)
        units = next((one.units for one in dictionaries if one.name == own.name), 0)
        count = {"heads": model.shape.heads, "factors": units}.get(own.basis, model.shape.d_mlp)
        begin = int(hash_parts(hash_seed, _SALT, number, own.index)) % max(count, 1)
        near = (str(replace(own, index=(begin + step) % count)) for step in range(count))
        other = next((one for one in near if one not in taken), None)
        if other is None:
            return None
        taken.add(other)
        found.append(replace(each, unit=other))
    return found
