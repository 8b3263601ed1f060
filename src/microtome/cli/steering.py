"""What `microtome steer` prints: what a model writes while units are changed, beside two texts that say whether that matters."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.core import Batch
    from microtome.factors.dictionary import Dictionary
    from microtome.intervene import Change, Edit, Written
    from microtome.model import Model

__all__ = ["Steering", "dictionary_of", "steered"]

_SALT: Final = 0x57EE6
_WIDTH: Final = 100


@dataclass(frozen=True)
class Steering:
    """Units, what is done to them, where, and how much is written; factors are of `dictionary`.

    Errors: `Refusal` unless one of `scale` and `set_to` is given, and for a unit that is named twice.
    """

    units: tuple[str, ...]
    scale: float | None
    set_to: float | None
    tokens: Literal["all", "prompt", "generated"]
    most: int
    temperature: float
    seed: int
    dictionary: "Dictionary | None" = None

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.set_to is None):
            raise Refusal("steering", why="a unit is scaled or set, and not both", instead="give --scale 8, or --set 8")
        if len(set(self.units)) < len(self.units):
            raise Refusal("steering", why="a unit is named twice, and would be changed twice", instead="name each once")
        if factors := [unit for unit in self.units if unit.startswith("factors") and self.dictionary is None]:
            raise Refusal(
                f"steering {factors[0]}", why="it is of a dictionary", instead="name its file, or its atlas, with --dictionary"
            )

    def __str__(self) -> str:
        return f"times {self.scale:g}" if self.scale is not None else f"set to {self.set_to:g}"

    @property
    def change(self) -> "Change":
        """What is done to each unit."""
        from microtome.intervene import Scale, Set

        return Scale(self.scale) if self.scale is not None else Set(float(self.set_to or 0))


def dictionary_of(units: Sequence[str], path: str) -> "Dictionary":
    """The dictionary at `path` of which factors are named.

    Errors: `Refusal` where none is, where they are of several, and where there is none of the name.
    """
    from microtome.core import UnitAddress
    from microtome.factors.stored import find_dictionary
    from microtome.store import folder_of

    names = {parsed.name for parsed in map(UnitAddress.parse, units) if parsed.basis == "factors"}
    if len(names) != 1:
        why = "units of several dictionaries are named" if names else "no factor is named"
        raise Refusal(
            f"--dictionary {path}", why=why, instead="name factors of one dictionary: --unit factors@main/30@resid_pre.10"
        )
    (name,) = names
    return find_dictionary(folder_of(path), name)


def steered(load: Callable[[], "Model"], prompts: Sequence[str], asked: Steering) -> str:
    """Three texts behind each prompt: as the model is, with the units changed, and with random units of their layers changed instead.

    Behind each text is its loss by the unchanged model, in nats a token: how likely the model finds what was written.
    """
    from microtome.corpus import prompt_batch
    from microtome.intervene import Sampling, generate

    model = load()
    edits, others = (_edits(model, units, asked) for units in (asked.units, _beside(model, asked)))
    batch = prompt_batch(model.tokenizer, prompts, context=model.shape.context, device=model.device)
    sampling = Sampling(temperature=asked.temperature, seed=asked.seed)
    ways: dict[str, Sequence[Edit]] = {"as it is": (), _named(asked.units, asked): edits}
    ways[f"{_named(_beside(model, asked), asked)} (drawn at random from the same layers)"] = others
    written = {name: generate(model, batch, given, most=asked.most, sampling=sampling) for name, given in ways.items()}
    lines: list[str] = []
    for row, prompt in enumerate(prompts):
        lines += [*([""] * bool(row)), f"{prompt} ..."]
        for name, found in written.items():
            said = found.texts[row] if len(found.ids[row]) else "(nothing)"
            text = textwrap.fill(said.replace("\n", "⏎ ").strip(), _WIDTH, initial_indent="  ", subsequent_indent="  ")
            lines += ["", f"{name}: {_loss(model, batch, found, row)}", text]
    return "\n".join(lines)


def _edits(model: "Model", units: Sequence[str], asked: Steering) -> list["Edit"]:
    from microtome.core import UnitAddress
    from microtome.factors.steering import factor_edit
    from microtome.intervene import EVERY, Generated, Prompt, unit_edit

    tokens = {"all": EVERY, "prompt": Prompt(), "generated": Generated()}[asked.tokens]
    edits, by_site = [], {}
    for unit in units:
        if unit.startswith("factors"):
            by_site.setdefault(UnitAddress.parse(unit).site, []).append(unit)
        else:
            edits.append(unit_edit(model, unit, asked.change, tokens))
    if asked.dictionary is not None:
        asked.dictionary.require_for(model.fingerprint, model.name)
        edits += [factor_edit(asked.dictionary, own, asked.change, tokens) for own in by_site.values()]
    return edits


def _beside(model: "Model", asked: Steering) -> list[str]:
    """A unit drawn for each that is changed, of its basis and layer, and none of those."""
    from microtome.core import UnitAddress
    from microtome.numerics import hash_parts

    taken = {str(UnitAddress.parse(unit)) for unit in asked.units}
    found = []
    for number, unit in enumerate(asked.units):
        own = UnitAddress.parse(unit)
        factors = 0 if asked.dictionary is None else asked.dictionary.units
        count = {"heads": model.shape.heads, "factors": factors}.get(own.basis, model.shape.d_mlp)
        begin = int(hash_parts(asked.seed, _SALT, number, own.index)) % count
        near = (str(replace(own, index=(begin + step) % count)) for step in range(count))
        other = next((each for each in near if each not in taken), None)
        if other is None:
            raise Refusal(f"steering {unit}", why="all units of its layer are changed", instead="leave one for comparison")
        taken.add(other)
        found.append(other)
    return found


def _named(units: Sequence[str], asked: Steering) -> str:
    return f"{', '.join(units)} {asked}"


def _loss(model: "Model", batch: "Batch", written: "Written", row: int) -> str:
    """How likely the unchanged model finds a text."""
    from microtome.intervene import text_loss

    if not len(written.ids[row]):
        return "nothing written"
    own = batch.alone(row)
    loss = float(text_loss(model, own, [written.ids[row].to(own.ids.device)])[0])
    return f"loss by the unchanged model {loss:.2f}"
