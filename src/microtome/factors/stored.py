"""A dictionary in a file: its tensors as safetensors, and all else as JSON in the header. Formats of other tools are the business of `formats`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.coding import Greedy, Lasso
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder, Largest
from microtome.factors.scaling import Scaling
from microtome.store import committed

__all__ = ["FORMAT", "find_dictionary", "is_ours", "open_dictionary", "save_dictionary", "write_dictionary"]

FORMAT: Final = "microtome dictionary"
_VERSION: Final = 1
_SEARCHES: Final[dict[str, type[Lasso] | type[Greedy]]] = {"lasso": Lasso, "greedy": Greedy}


def save_dictionary(dictionary: Dictionary, path: Path) -> None:
    """Commit it as one file: whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as temporary:
        write_dictionary(dictionary, temporary)


def write_dictionary(dictionary: Dictionary, path: Path) -> None:
    """Its bytes, which are the same for the same dictionary."""
    coder, tensors = _coder_parts(dictionary.coder)
    tensors |= {"directions": dictionary.directions, "offset": dictionary.offset}
    tensors |= {"centre": dictionary.scaling.centre, "size": dictionary.scaling.size}
    if dictionary.scaling.longest is not None:
        tensors["longest"] = dictionary.scaling.longest
    if dictionary.target_scaling is not None:
        tensors |= {"target_centre": dictionary.target_scaling.centre, "target_size": dictionary.target_scaling.size}
    if dictionary.skip is not None:
        tensors["skip"] = dictionary.skip
    told = {
        "name": dictionary.name,
        "arrangement": dictionary.arrangement,
        "reads": [str(site) for site in dictionary.reads],
        "writes": [str(site) for site in dictionary.writes],
        "coder": coder,
        "model": dictionary.model,
        "learnt": dict(sorted(dictionary.learnt.items())),
    }
    header = {FORMAT: json.dumps({"version": _VERSION, **told}, sort_keys=True)}  # one key: the order of several is not fixed
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}, path, header)


def open_dictionary(path: Path) -> Dictionary:
    """The dictionary in a file that `save_dictionary` wrote.

    Errors: `Refusal` for a file that is not there, is damaged, is something else, or is of a later version.
    """
    told, tensors = _read(path)
    infinite = [
        name for name, tensor in sorted(tensors.items()) if name != "longest" and not bool(torch.isfinite(tensor).all())
    ]
    if infinite:
        raise Refusal(str(path), why=f"its {infinite[0]} has numbers that are not finite", instead="train the dictionary anew")
    try:
        return _whole(told, tensors)
    except KeyError as error:
        raise Refusal(str(path), why=f"it lacks {error.args[0]}", instead="train the dictionary anew") from error


def _whole(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dictionary:
    scaling = Scaling(tensors["centre"], tensors["size"], tensors.get("longest"))
    target = Scaling(tensors["target_centre"], tensors["target_size"]) if "target_size" in tensors else None
    return Dictionary(
        name=told["name"],
        arrangement=told["arrangement"],
        reads=tuple(map(Site.parse, told["reads"])),
        writes=tuple(map(Site.parse, told["writes"])),
        coder=_coder_of(told["coder"], tensors),
        scaling=scaling,
        directions=tensors["directions"],
        offset=tensors["offset"],
        target_scaling=target,
        skip=tensors.get("skip"),
        model=told["model"],
        learnt=told["learnt"],
    )


def find_dictionary(path: Path, name: str | None = None) -> Dictionary:
    """The dictionary in a file, or the one of this name in the folder of an atlas; no name is needed where the atlas has one.

    Errors: `Refusal` as of `open_dictionary`, where a folder has no dictionary of the name, and where it has several and none is named.
    """
    if not path.is_dir():
        return open_dictionary(path)
    found = [open_dictionary(file) for file in sorted((path / "dictionaries").glob("*.safetensors"))]
    chosen = [each for each in found if name is None or each.name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(each.name for each in found) or "none"
    why = f"it has {names}" if name is None or not chosen else f"it has several of the name {name}"
    raise Refusal(f"a dictionary of {path}", why=why, instead="name one of an atlas, or the file of one")


def is_ours(path: Path) -> bool:
    """Whether this is the folder of an atlas, or a file that `save_dictionary` wrote. What is not there is taken for ours, to be refused as such."""
    if path.is_dir() or not path.exists():
        return (path / "atlas.json").is_file() or not path.exists()
    try:
        with safe_open(path, "pt") as file:
            return FORMAT in (file.metadata() or {})
    except SafetensorError:
        return False


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise Refusal(
            str(path), why="there is no such file", instead="name a dictionary: dictionaries/NAME.safetensors of an atlas"
        )
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            # copied: of mapped numbers, which begin anywhere, products can be rounded otherwise than of the same numbers in memory
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError as error:
        raise Refusal(str(path), why="the file is damaged", instead="train the dictionary anew") from error
    if not told:
        raise Refusal(str(path), why="it is no dictionary of microtome", instead="name one that microtome has trained")
    if told["version"] > _VERSION:
        why = f"it is of version {told['version']}, and this microtome knows {_VERSION}"
        raise Refusal(str(path), why=why, instead="install a newer microtome")
    return told, tensors


def _coder_parts(coder: Coder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not isinstance(coder, Encoder):
        (kind,) = (name for name, search in _SEARCHES.items() if isinstance(coder, search))
        return {"kind": kind, **dataclasses.asdict(coder)}, {}
    tensors = {"encoder": coder.weights, "encoder_bias": coder.bias}
    if isinstance(coder.rule, Largest):
        return {"kind": "largest", "k": coder.rule.k}, tensors
    return {"kind": "above"}, tensors | {"threshold": coder.rule.threshold}


def _coder_of(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Coder:
    rest = {name: value for name, value in told.items() if name != "kind"}
    if told["kind"] in _SEARCHES:
        return _SEARCHES[told["kind"]](**rest)
    rule = Largest(**rest) if told["kind"] == "largest" else Above(tensors["threshold"])
    return Encoder(tensors["encoder"], tensors["encoder_bias"], rule)
