"""Reading and writing dictionaries in the formats that are known: by the files that are there, and by the name of a format.

A format is a module with a `FORMAT`, and a row of `FORMATS`. How one lays out its files belongs in its module.
"""

import re
from pathlib import Path
from typing import Final

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Dictionary
from microtome.factors.formats import dictionary_learning, gemma_scope, saelens, sparsify
from microtome.factors.formats.folded import dictionary_of, folded_at
from microtome.factors.formats.layout import Format, Found
from microtome.model.model import Model
from microtome.model.spellings import parse_site

__all__ = ["FORMATS", "read_dictionary", "write_dictionary_as"]

FORMATS: Final[dict[str, Format]] = {
    each.name: each for each in (saelens.FORMAT, dictionary_learning.FORMAT, sparsify.FORMAT, gemma_scope.FORMAT)
}
_SOME: Final = 3
"""Folders that a refusal names."""


def read_dictionary(
    path: Path,
    *,
    site: Site | None = None,
    writes: Site | None = None,
    name: str | None = None,
    model: Model | None = None,
) -> Dictionary:
    """The dictionary in a folder (or a file of it) that another tool wrote, with that tool's codes.

    Codes are rule((x - centre) W + b) and what is made of them codes Phi + offset, as in the files. Directions of other lengths than 1 are made 1,
    and where they differ in length codes are scaled by it: `learnt["lengths"]` says so. `site`, and of a transcoder `writes`, override what the
    files say about places; `name` is that of the folder if it is not given. With `model` names are looked up in its architecture, and the
    dictionary is for that model and refuses others.

    Errors: `Refusal` for files that are no such layout, miss tensors, have some that do not fit, are damaged, or hold code; for what a dictionary
    cannot say; where the site is unknown; and where layer or width is not the model's.
    Cost: one read of the file, and a few copies of its tensors.
    """
    folder = path if path.is_dir() else path.parent
    found = _format_of(path, folder).read(folder)
    reads = site or _site(found.reads, path, model, "site")
    target = None
    if found.writes is not None:
        target = writes or _site(found.writes, path, model, "writes")
    elif writes is not None:
        raise Refusal(f"what {path} writes", why="it is no transcoder, and writes what it reads", instead="leave writes out")
    _require_square(found, path)
    if model is not None:
        _require_of(model, path, [(reads, len(found.folded.centre)), (target or reads, len(found.folded.offset))])
    given = name or re.sub(r"[^A-Za-z0-9_-]+", "-", folder.absolute().name).strip("-") or "dictionary"
    learnt = {key: value for key, value in found.told.items() if value != ""}
    return dictionary_of(found.folded, given, reads, target, learnt, "" if model is None else model.fingerprint)


def write_dictionary_as(dictionary: Dictionary, folder: Path, format: str) -> tuple[Path, ...]:
    """The folders written: one for each site of the dictionary inside `folder`, named as the tool names that place.

    Scaling goes into weights and biases, which differ from site to site, so that codes of the model's own states are those of the dictionary; up to
    rounding to float32. What is told about massive states stays behind: other tools code them, too. `format` is one of `FORMATS`.

    Errors: `Refusal` for what the format cannot say, before anything is written.
    Cost: a few copies of the tensors in float64.
    """
    if format not in FORMATS:
        raise Refusal(f"format {format!r}", why="it is not known here", instead=f"use one of {', '.join(FORMATS)}")
    known = FORMATS[format]
    parts = {site: folded_at(dictionary, site) for site in dictionary.reads}
    places = {site: folder / known.place(dictionary, site) for site in parts}
    for site, folded in parts.items():
        known.write(folded, dictionary, site, places[site])
    return tuple(places.values())


def _format_of(path: Path, folder: Path) -> Format:
    """The format by the files that are there.

    Errors: `Refusal` where none is, naming folders inside that are dictionaries.
    """
    if not path.exists():
        raise Refusal(str(path), why="there is no such file or folder", instead="name a folder of a dictionary")
    fitting = [each for each in FORMATS.values() if all((folder / file).is_file() for file in each.files)]
    if path.is_file():
        fitting = [each for each in fitting if path.name in each.files]
    if fitting:
        return fitting[0]
    layouts = "; ".join(f"{' and '.join(each.files)} ({each.name})" for each in FORMATS.values())
    inside = _dictionaries_in(path) if path.is_dir() else []
    instead = f"name one of its folders, as {', '.join(inside)}" if inside else f"name a folder with one of: {layouts}"
    raise Refusal(str(path), why="it is no dictionary of a known layout", instead=instead)


def _dictionaries_in(folder: Path) -> list[str]:
    """The first few folders directly inside that are dictionaries."""
    below = sorted(each for each in folder.iterdir() if each.is_dir())
    known = [each.name for each in below if any(all((each / file).is_file() for file in row.files) for row in FORMATS.values())]
    return known[:_SOME]


def _site(told: str, path: Path, model: Model | None, argument: str) -> Site:
    instead = f'give {argument}=, as in Site("resid_post", 6)'
    if not told:
        raise Refusal(f"site of {path}", why="its files do not say at which site its states were taken", instead=instead)
    try:
        return parse_site(told, model)
    except Refusal as error:
        raise Refusal(f"site of {path}", why=f"its files call it {told!r}: {error.why}", instead=instead) from error


def _require_square(found: Found, path: Path) -> None:
    folded = found.folded
    if folded.skip is not None and len(folded.centre) != len(folded.offset):
        why = "its linear part is between states of different widths"
        raise Refusal(str(path), why=why, instead="use it in the tool that it is of")


def _require_of(model: Model, path: Path, ends: list[tuple[Site, int]]) -> None:
    """Refuse a dictionary of another model, where layers or widths show it."""
    widths = {"d_model": model.shape.d_model, "unit": model.shape.d_mlp, "d_head": model.shape.heads * model.shape.d_head}
    for site, width in ends:
        if site.layer is not None and site.layer >= model.shape.layers:
            why = f"it is of {site}, and {model.name} has layers 0 to {model.shape.layers - 1}"
            raise Refusal(str(path), why=why, instead="open the model that it is of")
        wanted = widths.get(site.spec.axes[-1])
        if wanted is not None and "head_kv" not in site.spec.axes and width != wanted:
            why = f"states at {site} of {model.name} have {wanted} numbers, and the dictionary is of {width}"
            raise Refusal(str(path), why=why, instead="open the model that it is of")
